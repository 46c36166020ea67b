"""The whole pipeline one scale down: estimate, train, infer and refine as the user would run them.

The degraded images become a scene in a temporary folder, and the stages run on its files as they do
on any other, so that what is scored is what the user gets.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from spectralift_cli.core import stages
from spectralift_cli.core.coarse import filled, interpolate
from spectralift_cli.core.config import MetricsConfig, RefineConfig, TrainConfig
from spectralift_cli.core.cube import Cube, CubeMeta
from spectralift_cli.core.errors import SpectraliftError, SpectraliftWarning
from spectralift_cli.core.estimation.estimate import EstimateInputs
from spectralift_cli.core.estimation.estimate import estimate as estimate_files
from spectralift_cli.core.estimation.result import Estimate
from spectralift_cli.core.formats import open_cube, write_cube
from spectralift_cli.core.formats.kernels import write_psf
from spectralift_cli.core.metrics.evaluate import Scores, evaluate
from spectralift_cli.core.outputs import write_text
from spectralift_cli.core.refining import RefineInputs, infer_refined
from spectralift_cli.core.scene import Scene, create_scene
from spectralift_cli.core.sensors.srf import write_srf
from spectralift_cli.core.validation.figures import Figure, Section
from spectralift_cli.core.validation.inputs import Pair
from spectralift_cli.core.validation.reduced import (
    LEAST_PIXELS,
    FloatPixels,
    ReducedPair,
    reduce_pair,
    rescaled_kernel,
)

_WHERE = "one scale down: "
_AS_MAY_BE = stages.Execution()


@dataclass(frozen=True)
class Pipeline:
    """What is run one scale down.

    Args:
        train: of the training.
        refine: of the refinement; None where none is done.
        estimate_anew: whether shift, PSF, gain and response are estimated there from the degraded
            images, in place of what is known of the images themselves.
    """

    train: TrainConfig = field(default_factory=TrainConfig)
    refine: RefineConfig | None = None
    estimate_anew: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the options that determine the scores."""
        found = self.train.used_json()
        del found["uncertainty"]
        if self.refine is not None:
            found["refine"] = dataclasses.asdict(self.refine)
        return found | ({"estimate_anew": True} if self.estimate_anew else {})


@dataclass(frozen=True, eq=False)
class _Run:
    """What the stages made: the cube, and what they chose, in words."""

    cube: Path
    told: tuple[str, ...]


def rehearse(
    pair: Pair,
    said: Pair,
    pipeline: Pipeline,
    work: Path,
    *,
    execution: stages.Execution = _AS_MAY_BE,
) -> tuple[Section, Scores]:
    """Run a pipeline one scale down and score it against the LR-HSI.

    Args:
        pair: both images with the optics that degrade them once more.
        said: the same with the PSF as it was given, which is what `refine` gets; it corrects a
            wrong one by itself.
        pipeline: the stages.
        work: folder for temporary files.
        execution: device, threads; its progress is called for each stage in turn.

    Returns:
        The section, and the scores it tells of.

    Raises:
        DataError: see `reduce_pair`, or a stage cannot run there.
    """
    with _named(work):
        reduced = reduce_pair(pair)
        scene = _written(work / "reduced", reduced, pair, said)
        made = _run(scene, reduced, said, pipeline, work, execution)
        metrics = MetricsConfig(ratio=float(reduced.factor))
        scores = _scores(scene, made.cube, metrics)
        _store(work / "interpolated.npy", _interpolated(reduced), pair.lr_hsi.meta)
        baseline = _scores(scene, work / "interpolated.npy", metrics)
    return _section(scores, baseline, reduced, pair, pipeline, made.told), scores


@contextlib.contextmanager
def _named(work: Path) -> Iterator[None]:
    """Say of warnings and errors that they come from one scale down, not from the user's files."""

    def told(text: str) -> str:
        return text.replace(f"{work}/reduced/", "").replace(f"{work}/", "")

    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *more: Any, **named: Any) -> None:
            if issubclass(category, SpectraliftWarning):
                message = category(_WHERE + told(str(message)))
            shown(message, category, *more, **named)

        warnings.showwarning = show
        try:
            yield
        except SpectraliftError as error:
            hint = told(error.hint)
            if "--no-reduced" not in hint:
                hint += "; --no-reduced leaves this part out"
            raise type(error)(_WHERE + told(error.message), hint) from error


def _written(folder: Path, reduced: ReducedPair, pair: Pair, said: Pair) -> Scene:
    """Write the degraded images as a scene that knows what the user's images know of each other."""
    hsi, msi = pair.lr_hsi.meta, pair.hr_msi.meta
    cubes = (
        ("lr_hsi", reduced.lr_hsi, hsi), ("hr_msi", reduced.hr_msi, msi),
        ("gt", reduced.truth, hsi),
    )  # fmt: skip
    with create_scene(folder) as scene:
        for role, values, like in cubes:
            scene.add(role, *_store(scene.folder / f"{role}.npy", values, like))
        write_srf(scene.folder / "srf.csv", pair.srf, hsi.wavelengths_nm)
        scene.add("srf", scene.folder / "srf.csv")
        seen = said.observation
        if said.psf_role == "scene":
            kernel = rescaled_kernel(seen.psf, reduced.shrink)
            scene.add("psf", write_psf(scene.folder / "psf.csv", kernel))
        return scene.commit(
            {
                "ratio": float(reduced.factor),
                "data_scaled": pair.scaling is not None,
                "psf_includes_footprint": seen.includes_footprint,
            }
        )


def _run(
    scene: Scene, reduced: ReducedPair, said: Pair, pipeline: Pipeline, work: Path,
    execution: stages.Execution,
) -> _Run:  # fmt: skip
    told = []
    estimate: Path | None = None
    if pipeline.estimate_anew:
        estimate = work / "estimate.json"
        found = estimate_files(EstimateInputs(scene=scene.folder), estimate)
        told.append(f"estimate, anew ({_used(found)})")
    elif said.estimate is not None:
        estimate = work / "estimate.json"
        write_text(estimate, _one_scale_down(said.estimate, reduced).to_text())
        told.append(f"estimate, as given ({_used(said.estimate)})")
    model, cube = work / "model.safetensors", work / "result.npy"
    trained = stages.train(
        stages.TrainInputs(scene=scene.folder, estimate=estimate), model, pipeline.train,
        execution=execution,
    )  # fmt: skip
    told.append(f"train ({trained.checkpoint.choice or pipeline.train.preset})")
    stored = stages.Storage(dtype="float32")
    if pipeline.refine is None:
        stages.infer(model, scene.folder, cube, stored=stored, execution=execution)
        return _Run(cube, (*told, "infer"))
    psf_file = None
    if said.psf_role == "file" and estimate is None:
        kernel = rescaled_kernel(said.observation.psf, reduced.shrink)
        psf_file = write_psf(work / "psf.csv", kernel)
    inputs = RefineInputs(scene=scene.folder, psf_file=psf_file, estimate=estimate)
    made = infer_refined(
        model, scene.folder, cube, refining=pipeline.refine, inputs=inputs, stored=stored,
        execution=execution,
    )  # fmt: skip
    return _Run(cube, (*told, "infer", f"refine ({made.refined.verdict})"))


def _one_scale_down(estimate: Estimate, reduced: ReducedPair) -> Estimate:
    """Return what is left of an estimate between the degraded images: no shift, a narrower PSF."""
    psf = estimate.findings.psf
    if psf is not None:
        kernel = rescaled_kernel(psf.kernel, reduced.shrink)
        psf = dataclasses.replace(
            psf, kernel=kernel, std=np.zeros(kernel.shape), width_px=psf.width_px * reduced.shrink
        )
    findings = dataclasses.replace(estimate.findings, shift=None, psf=psf)
    return dataclasses.replace(
        estimate, findings=findings, kept=None, sensor_bands=None,
        ratio=(float(reduced.factor), float(reduced.factor)),
    )  # fmt: skip


def _used(estimate: Estimate) -> str:
    found = estimate.findings
    parts = {"shift": found.shift, "PSF": found.psf, "gain": found.gain, "response": found.srf}
    used = [name for name, part in parts.items() if part is not None and part.used]
    return f"uses {', '.join(used)}" if used else "uses nothing"


def _store(path: Path, values: FloatPixels, like: CubeMeta) -> tuple[Path, ...]:
    meta = like.replace(
        shape=values.shape, dtype=np.dtype(np.float32), nodata=math.nan, scale=1.0, offset=0.0,
        crs=None, transform=None, provenance=None,
    )  # fmt: skip
    return tuple(write_cube(path, Cube(values, meta)))


def _interpolated(reduced: ReducedPair) -> FloatPixels:
    used = np.isfinite(reduced.lr_hsi).any(axis=(0, 1))
    coarse = reduced.lr_hsi[:, :, used]
    valid = np.asarray(np.isfinite(coarse).all(axis=2))
    out = np.full(reduced.truth.shape, np.nan, np.float32)
    if valid.any():
        whole = filled(np.where(valid[:, :, None], coarse, np.float32(0)), valid)
        out[:, :, used] = interpolate(whole, *reduced.truth.shape[:2])
    return out


def _scores(scene: Scene, path: Path, config: MetricsConfig) -> Scores:
    with scene.open("gt") as truth, open_cube(path) as image:
        return evaluate(truth, image, config)


def _section(
    scores: Scores, baseline: Scores, reduced: ReducedPair, pair: Pair, pipeline: Pipeline,
    told: tuple[str, ...],
) -> Section:  # fmt: skip
    rows, cols, _ = reduced.truth.shape
    h, w, _ = reduced.lr_hsi.shape
    about = (
        f"Both images degraded once more by {reduced.factor} (PSF: {pair.psf}): trained on "
        f"{h} x {w} LR pixels, applied to the MSI at {rows} x {cols}, compared with the LR-HSI "
        f"there, whose noise counts as error. Run there: {', '.join(told)}; not: "
        f"{'' if pipeline.refine else 'refine (--refine), '}rounding to the output's type. It "
        "ranks methods and settings; the numbers at full resolution differ."
    )
    ratio = math.sqrt(math.prod(pair.placement.scale))
    if reduced.factor != round(ratio):
        about += (
            f" The ratio of the images is {ratio:.4g}; degrading by it would leave fewer than "
            f"{LEAST_PIXELS} LR pixels, so a factor of {reduced.factor} and a PSF narrowed alike "
            "stand for it."
        )
    convention = f"mode standard, {rows} x {cols} pixels, against the LR-HSI"
    figures = []
    for name, key, unit in (
        ("psnr", "psnr_db", "dB"), ("sam", "sam_deg", "deg"), ("ergas", "ergas", ""),
        ("rmse", "rmse", "data units"),
    ):  # fmt: skip
        value, other = scores.values[name], baseline.values[name]
        if name == "sam" and reduced.truth.shape[2] == 1:
            value = math.nan  # a single band has no angle
        figures.append(
            Figure(
                key, value, unit, convention + _stated(name, scores, reduced.factor),
                _against(name, value, other, unit), scores.scores[name].note,
            )
        )  # fmt: skip
    return Section(
        "reduced", "One scale down (reduced resolution)", about, figures,
        {"rmse": scores.per_band["rmse"]},
    )  # fmt: skip


def _stated(name: str, scores: Scores, factor: int) -> str:
    if name == "psnr":
        return f", data range {scores.conventions['data_range']:.4g}, all bands pooled"
    return f", ratio {factor}" if name == "ergas" else ""


def _against(name: str, value: float, other: float, unit: str) -> str:
    if not (math.isfinite(value) and math.isfinite(other)):
        return "the data define no value."
    better = value > other if name == "psnr" else value < other
    shown = f"{other:.4g}{' ' + unit if unit else ''}"
    if better:
        return f"the LR-HSI merely interpolated has {shown}: the sharp image helps."
    return (
        f"the LR-HSI merely interpolated has {shown}, which is no worse: on this measure the "
        "pipeline adds nothing here."
    )
