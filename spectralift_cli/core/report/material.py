"""What a report is made of, found in a scene's or a run's folder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectralift_cli.core.cube import FloatArray
from spectralift_cli.core.cubeio import CubeReader, SelectedReader
from spectralift_cli.core.errors import DataError, SpectraliftError
from spectralift_cli.core.estimation.apply import check_estimate
from spectralift_cli.core.estimation.result import Estimate, read_estimate
from spectralift_cli.core.formats import open_cube
from spectralift_cli.core.formats.arrays import strict_json
from spectralift_cli.core.formats.kernels import read_psf
from spectralift_cli.core.identity import identity
from spectralift_cli.core.runs.blocks import SCHEMA as RUN_SCHEMA
from spectralift_cli.core.runs.config import RunConfig, resolve_config
from spectralift_cli.core.runs.configtext import read_config
from spectralift_cli.core.scene import Scene, is_scene, open_scene
from spectralift_cli.core.sensors.response import Srf
from spectralift_cli.core.sensors.srf import read_srf
from spectralift_cli.core.validation.document import read_validation
from spectralift_cli.core.validation.figures import DOCUMENT, Validation

if TYPE_CHECKING:
    from spectralift_cli.core.checkpoint import Checkpoint

# role -> what the page calls it, in the order of the page
IMAGES = {
    "lr_hsi": "LR-HSI (input)",
    "hr_msi": "HR-MSI (input)",
    "result": "Result",
    "gt": "Ground truth",
}
# what is read of a run's outputs
_RUN_ROLES = (
    "scene", "model", "history", "cube", "uncertainty", "metrics", "validation", "config"
)  # fmt: skip
_JSON_BYTES = 4 * 2**20
# what a page takes of a damaged or hostile file's texts
_MOST_WARNINGS, _LONGEST = 100, 2000


@dataclass(frozen=True)
class ImageFile:
    """An image and how it is opened.

    Args:
        path: of the file.
        options: further arguments of `open_cube`.
        kept: bands to read where others were dropped, or None.
    """

    path: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    kept: tuple[int, ...] | None = None

    @contextmanager
    def open(self) -> Iterator[CubeReader]:
        """Open it for reading by rows."""
        with open_cube(self.path, **self.options) as reader:
            yield reader if self.kept is None else SelectedReader(reader, self.kept)


@dataclass(eq=False)
class Material:
    """All that a report may show; what is not known is None or empty.

    Args:
        title: of the page.
        folder: of the scene or run; its files are named relative to it, others by their name.
        images: role (see `IMAGES`) -> file.
        scene: the scene, where there is one.
        srf: (M, B) response between the two images.
        psf: (k, k) on the HR grid.
        checkpoint: the model that made the result.
        history: CSV of a training.
        scores: one JSON object for each mode, as `Scores.to_json` makes it.
        settings: the run's config, block by block.
        run: the contents of run.json.
        uncertainty: cube of the expected errors.
        estimate: what the images say of each other.
        validation: quality without a ground truth.
        validation_folder: where the maps of its residuals lie.
        same_ground: whether LR-HSI and HR-MSI show the same ground, as they need not where a model
            is applied to another image.
        warnings: what a reader must know, in the order it was found.
    """

    title: str
    folder: Path
    images: dict[str, ImageFile] = field(default_factory=dict)
    scene: Scene | None = None
    srf: Srf | None = None
    psf: FloatArray | None = None
    checkpoint: Checkpoint | None = None
    history: Path | None = None
    scores: list[Mapping[str, Any]] = field(default_factory=list)
    settings: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    uncertainty: ImageFile | None = None
    estimate: Estimate | None = None
    validation: Validation | None = None
    validation_folder: Path | None = None
    same_ground: bool = True
    warnings: list[str] = field(default_factory=list)

    def warn(self, message: str) -> None:
        """Record a warning once, without the folder that the report may be written aside in."""
        text = " ".join(message.replace(f"{self.folder}/", "").split())
        if text not in self.warnings:
            self.warnings.append(text)

    def name(self, path: Path) -> str:
        """Return how the page names a file."""
        if path.is_relative_to(self.folder):
            return path.relative_to(self.folder).as_posix()
        return path.name


def gather(
    source: Path,
    *,
    result: Path | None = None,
    model: Path | None = None,
    uncertainty: Path | None = None,
    estimate: Path | None = None,
    validation: Path | None = None,
    run: Mapping[str, Any] | None = None,
) -> Material:
    """Find what a report on a scene or run is made of.

    Args:
        source: a scene's or a run's folder, or the scene.json or run.json inside.
        result: the sharp cube; None for the run's.
        model: the checkpoint that made it; None for the run's.
        uncertainty: what `infer --uncertainty` wrote; None for the run's.
        estimate: what `estimate` wrote.
        validation: what `validate` wrote; None for what lies in the run's or scene's folder or
            beside the result, where it is of the same images (`find_validation`).
        run: the contents of run.json, where it is not written yet.

    Raises:
        DataError: neither a scene nor a run; a file of it is damaged; or one that is given cannot
            be read.
    """
    if is_scene(source):
        found = _of_scene(open_scene(source))
    else:
        folder = source.parent if source.name == "run.json" else source
        found = _of_run(folder, _run_json(folder) if run is None else run)
    if result is not None:
        found.images["result"] = ImageFile(result)
    if model is not None:
        _take_model(found, model)
    if uncertainty is not None:
        found.uncertainty = ImageFile(uncertainty)
    if estimate is not None:
        _take_estimate(found, estimate)
    if validation is not None:
        _take_validation(found, validation)
    elif found.validation is None or result is not None:
        found.validation = found.validation_folder = None  # a run's is of its own result
        beside = find_validation(found)
        if beside is not None:
            _take_validation(found, beside)
    _drop_bands(found)
    return found


def _of_scene(scene: Scene) -> Material:
    folder = scene.folder
    found = Material(folder.resolve().name, folder)
    _take_scene(found, scene)
    return found


def _take_scene(found: Material, scene: Scene) -> None:
    found.scene = scene
    for role in ("lr_hsi", "hr_msi", "gt"):
        if scene.has(role):
            found.images[role] = ImageFile(scene.path(role), {"allow_2d": role == "hr_msi"})
    with found.images["lr_hsi"].open() as reader:
        meta = reader.meta
        found.srf = read_srf(scene.path("srf"), meta.wavelengths_nm, meta.fwhm_nm, meta.bands)
    if scene.has("psf"):
        found.psf = read_psf(scene.path("psf"))


def _run_json(folder: Path) -> Mapping[str, Any]:
    source = folder / "run.json"
    if not folder.exists():
        raise DataError(f"{folder}: no such folder", "give the folder of a scene or of a run")
    if not source.is_file():
        raise DataError(
            f"{folder}: is neither a scene nor a run, it has no scene.json and no run.json",
            "spectralift run makes a run, spectralift synth a scene",
        )
    try:
        with source.open("rb") as file:
            text = file.read(_JSON_BYTES + 1)
    except OSError as error:
        raise DataError(
            f"{source}: cannot be read ({error.strerror})", "check its permissions"
        ) from error
    try:
        document = strict_json(text) if len(text) <= _JSON_BYTES else None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: is not JSON ({error})", "make the run again") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if not isinstance(document, dict) or schema != RUN_SCHEMA:
        raise DataError(
            f"{source}: its schema is {str(schema)[:60]!r}, this version reads {RUN_SCHEMA!r}",
            "make the run again, or use the version of spectralift that made it",
        )
    return document


def _of_run(folder: Path, run: Mapping[str, Any]) -> Material:
    found = Material("", folder, run=run)
    outputs = run.get("outputs")
    names = outputs if isinstance(outputs, dict) else {}
    there = {role: _member(folder, names[role]) for role in _RUN_ROLES if role in names}
    told = run.get("warnings")
    for message in told[:_MOST_WARNINGS] if isinstance(told, list) else ():
        found.warn(str(message)[:_LONGEST])
    config = None
    if "config" in there:
        found.settings = read_config(there["config"])
        config = resolve_config(found.settings, source=str(there["config"]))
    found.title = _title(config)
    if "cube" in there:
        found.images["result"] = ImageFile(there["cube"])
    if "model" in there:
        _take_model(found, there["model"])
    if "uncertainty" in there:
        found.uncertainty = ImageFile(there["uncertainty"])
    if "validation" in there:
        _take_validation(found, there["validation"])
    found.history = there.get("history")
    if "metrics" in there:
        found.scores = _scores(there["metrics"])
    _take_inputs(found, there.get("scene"), config)
    return found


def _member(folder: Path, name: object) -> Path:
    """Return a file that run.json names, which must lie inside the run."""
    path = folder / str(name)
    inside = path.resolve().is_relative_to(folder.resolve())
    if not isinstance(name, str) or not inside or not path.exists():
        raise DataError(
            f"{folder}/run.json: {str(name)[:80]!r} is not a file of the run",
            "the run is damaged; make it again",
        )
    return path


def _take_inputs(found: Material, made: Path | None, config: RunConfig | None) -> None:
    """Find the images that a run fused: in its own scene, in another one, or loose."""
    if made is not None:
        _take_scene(found, open_scene(made))
    if config is None:
        return
    train, infer = config.train[0], config.infer[0]
    try:
        if made is None and train.scene is not None:
            _take_scene(found, open_scene(train.scene))
    except SpectraliftError as error:
        found.warn(f"the scene cannot be shown: {error.message}")
    psf_file = None if config.refine is None else config.refine[0].psf_file
    try:
        if found.psf is None and psf_file is not None:
            found.psf = read_psf(psf_file)
    except SpectraliftError as error:
        found.warn(f"the PSF cannot be shown: {error.message}")
    if train.lr_hsi is not None:
        options = {"var": train.var, "axis_order": train.axis_order}
        _take_image(found, "lr_hsi", train.lr_hsi, {**options, "wavelengths": train.wavelengths})
    if config.msi is not None:
        # the ground truth of a scene is of its own image
        found.images.pop("gt", None)
        found.same_ground = infer.hr_msi is None
        shape = {"var": infer.var, "axis_order": infer.axis_order, "allow_2d": True}
        _take_image(found, "hr_msi", config.msi, shape)


def _take_image(found: Material, role: str, path: Path, options: Mapping[str, Any]) -> None:
    found.images.pop(role, None)
    try:
        open_cube(path, **options).close()
    except SpectraliftError as error:
        found.warn(f"the {IMAGES[role].partition(' ')[0]} cannot be shown: {error.message}")
        return
    found.images[role] = ImageFile(path, options)


def _take_model(found: Material, path: Path) -> None:
    from spectralift_cli.core.checkpoint import load_checkpoint  # here: it imports torch

    found.checkpoint = load_checkpoint(path)
    if found.srf is None:
        found.srf = found.checkpoint.srf


def _take_estimate(found: Material, path: Path) -> None:
    found.estimate = read_estimate(path)
    if "lr_hsi" in found.images:
        with found.images["lr_hsi"].open() as reader:
            check_estimate(found.estimate, reader.meta, found.srf, path)


def _take_validation(found: Material, path: Path) -> None:
    found.validation = read_validation(path)
    found.validation_folder = path if path.is_dir() else path.parent


def find_validation(found: Material) -> Path | None:
    """Return a validation of the shown images that nobody named.

    It is looked for as `validate.json` and `validate/validate.json` in the folder of the scene or
    run, then in that of the result. One that is damaged, or of another result or other images, is
    not shown, which is a warning.
    """
    folders = [found.folder]
    if "result" in found.images:
        folders.append(found.images["result"].path.parent)
    for folder in dict.fromkeys(folders):
        for path in (folder / DOCUMENT, folder / "validate" / DOCUMENT):
            if not path.is_file():
                continue
            try:
                other = _of_other_images(found, read_validation(path))
            except DataError as error:
                found.warn(f"a validation is not shown: {error.message}")
                continue
            if not other:
                return path
            found.warn(f"{path} is not shown: it tells of {other}; --validation shows it anyway")
    return None


def _of_other_images(found: Material, validation: Validation) -> str:
    """Return what a validation tells of where that is not what is shown, else nothing."""
    steps = validation.provenance.get("steps")
    step = steps[-1] if isinstance(steps, list) and steps else None
    inputs = step.get("inputs") if isinstance(step, dict) else None
    if not isinstance(inputs, dict):
        return "it does not say what"
    for role, name in (("result", "another result"), ("lr_hsi", "another LR-HSI"),
                       ("hr_msi", "another HR-MSI")):  # fmt: skip
        if role not in inputs:
            continue
        if role not in found.images:
            return f"{name} than the page"
        with found.images[role].open() as reader:
            if identity(*reader.files) != inputs[role]:
                return name
    if "scene" in inputs and found.scene is not None:
        return "" if found.scene.identity() == inputs["scene"] else "another scene"
    return ""


def _drop_bands(found: Material) -> None:
    """Leave out the MSI's bands that were dropped from its response."""
    srf, msi = found.srf, found.images.get("hr_msi")
    if srf is None or msi is None or srf.kept is None:
        return
    with msi.open() as reader:
        if reader.meta.bands == srf.sensor_bands:
            found.images["hr_msi"] = ImageFile(msi.path, msi.options, srf.kept)


def _scores(path: Path) -> list[Mapping[str, Any]]:
    try:
        with path.open("rb") as file:
            text = file.read(_JSON_BYTES + 1)
        document = strict_json(text) if len(text) <= _JSON_BYTES else None
        modes = document["modes"] if isinstance(document, dict) else None
        if not isinstance(modes, dict) or not all(isinstance(m, dict) for m in modes.values()):
            raise TypeError("no modes")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path}: is no table of scores ({error})", "the run is damaged; make it again"
        ) from error
    return list(modes.values())


def _title(config: RunConfig | None) -> str:
    """Return a name that says what was fused, whatever the run's folder is called."""
    if config is None:
        return "Run"
    if config.synth is not None and config.synth[0].cube is not None:
        given, how = config.synth
        return f"{given.cube.name if given.cube else ''}, sharpened {how.downsample_ratio} times"
    train = config.train[0]
    if train.scene is not None:
        return train.scene.name or "Scene"
    names = [path.name for path in (train.lr_hsi, config.msi) if path is not None]
    return " + ".join(names)


def finite(value: object) -> float | None:
    """Return a number of a JSON document, or None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
