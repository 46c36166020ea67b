"""What determines the outputs of each of a run's stages, as JSON that can be compared.

A stage is made again when any of it changes: an option, the contents of a file (wherever it lies and
whatever its name), what an earlier stage made, or this program's version. Threads, devices, memory
and sizes of batches are none of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spectralift_cli import __version__
from spectralift_cli.core.identity import identity
from spectralift_cli.core.runs.blocks import plain
from spectralift_cli.core.runs.config import RunConfig
from spectralift_cli.core.runs.receipt import Receipt
from spectralift_cli.core.scene import Scene
from spectralift_cli.core.stages import Reading

# of memory and speed only
_NO_PART = ("inference_batch_size",)


def _stage(files: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    return {"version": __version__, "options": dict(options), "files": dict(files)}


def _options(*parts: Any) -> dict[str, Any]:
    """Return config dataclasses as one mapping without what is identified by its contents."""
    files = {
        field.name for part in parts for field in dataclasses.fields(part)
        if isinstance(getattr(part, field.name), Path)
    }  # fmt: skip
    return {
        name: value for name, value in plain(*parts).items()
        if name not in files and name not in _NO_PART
    }  # fmt: skip


def identify(*paths: Path) -> dict[str, Any]:
    """Return what identifies the contents of files.

    Where `identity` does not read all of them, the times of their last change count, too.
    """
    found = identity(*paths)
    if "sha256" not in found:
        found["modified_ns"] = sorted(path.stat().st_mtime_ns for path in paths)
    return found


def _image(path: Path, reading: Reading) -> dict[str, Any]:
    """Return what identifies an image with all files that belong to it."""
    with reading.open(path, allow_2d=True) as reader:
        return identify(*reader.files)


def _named(**paths: Path | None) -> dict[str, Any]:
    return {name: identify(path) for name, path in paths.items() if path is not None}


def identify_scene(scene: Scene) -> dict[str, Any]:
    """Return what identifies a scene that somebody else made, file by file."""
    names = sorted({"scene.json", *scene.roles.values(), *scene.files})
    return {name: identify(scene.folder / name) for name in names}


def made_by(*receipts: Receipt | None) -> dict[str, str]:
    """Return the checksums of what stages made; of one name, the last that wrote it."""
    return {
        name: digest for found in receipts if found is not None
        for name, digest in found.outputs.items()
    }  # fmt: skip


def synth_inputs(config: RunConfig, reading: Reading) -> dict[str, Any]:
    """Return what determines the scene."""
    if config.synth is None or config.synth[0].cube is None:
        raise ValueError("the run makes no scene")
    given, options = config.synth
    files = {"cube": _image(config.synth[0].cube, reading)}
    named = _named(
        psf_file=given.psf_file, srf_file=given.srf_file, wavelengths=given.wavelengths
    )  # fmt: skip
    return _stage(files | named, _options(given, options))


def train_inputs(config: RunConfig, scene: Mapping[str, Any], reading: Reading) -> dict[str, Any]:
    """Return what determines the model.

    Args:
        config: the run.
        scene: what identifies the scene; empty where loose files are trained on.
        reading: how to read a loose LR-HSI.
    """
    given, options = config.train
    files: dict[str, Any] = {"scene": dict(scene)} if scene else {}
    if config.synth is not None:
        return _stage(files, _options(options))
    if given.lr_hsi is not None:
        files["lr_hsi"] = _image(given.lr_hsi, reading)
    if given.hr_msi is not None:
        files["hr_msi"] = _image(given.hr_msi, Reading())
    files |= _named(srf_file=given.srf_file, wavelengths=given.wavelengths)
    return _stage(files, _options(given, options))


def infer_inputs(
    config: RunConfig, scene: Mapping[str, Any], name: str, reading: Reading, trained: Receipt
) -> dict[str, Any]:
    """Return what determines the sharp cube.

    Args:
        config: the run.
        scene: what identifies the scene, or nothing.
        name: of the cube's file.
        reading: how to read a loose HR-MSI.
        trained: the receipt of the training.
    """
    image: Any = dict(scene) if config.msi is None else _image(config.msi, reading)
    files = {"model": trained.outputs[trained.files["model"]], "image": image}
    return _stage(files, {"name": name, **_options(*config.infer)})


def refine_inputs(config: RunConfig, cube: Receipt, trained: Receipt) -> dict[str, Any]:
    """Return what determines the refined cube.

    Args:
        config: the run.
        cube: the receipt of the inference.
        trained: the receipt of the training, which has read the LR-HSI.
    """
    if config.refine is None:
        raise ValueError("the run does not refine")
    given, options = config.refine
    files = {
        "cube": made_by(cube), **cube.inputs["files"], "trained_on": trained.inputs["files"],
        **_named(psf_file=given.psf_file),
    }  # fmt: skip
    more = {"must": config.must_refine, "co": config.infer[0].co}
    return _stage(files, _options(given, options) | more)


def metrics_inputs(
    config: RunConfig, scene: Mapping[str, Any], cube: Mapping[str, str]
) -> dict[str, Any]:
    """Return what determines the scores."""
    modes = [_options(one) for one in config.metrics]
    return _stage({"scene": dict(scene), "cube": dict(cube)}, {"modes": modes})


def validate_inputs(config: RunConfig, cube: Receipt, refined: Receipt | None) -> dict[str, Any]:
    """Return what determines the validation.

    Args:
        config: the run.
        cube: the receipt of the inference.
        refined: that of the refinement, or None.
    """
    if config.validate is None:
        raise ValueError("the run does not validate")
    given, options = config.validate
    train = _options(*config.train)
    del train["uncertainty"]  # which takes no part
    refine = None if config.refine is None else _options(*config.refine)
    named = {} if config.refine is None else _named(psf_file=config.refine[0].psf_file)
    files = {"result": made_by(cube, refined), **cube.inputs["files"], **named}
    more = {"train": train, "refine": refine, "refined": refined is not None}
    return _stage(files, _options(given, options) | more)


def report_inputs(
    config: RunConfig, stages: Mapping[str, Receipt], warnings: Sequence[str]
) -> dict[str, Any]:
    """Return what determines the page: all that the other stages made and said, and the config."""
    files = {name: dict(found.outputs) for name, found in stages.items()}
    used = hashlib.sha256(config.to_yaml().encode()).hexdigest()
    return _stage(
        {**files, "used_config": used, "warnings": list(warnings)}, _options(config.report)
    )
