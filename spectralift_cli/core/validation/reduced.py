"""The whole pipeline one scale down, where the LR-HSI itself is the truth (Wald's protocol)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from spectralift_cli.core.coarse import filled, interpolate
from spectralift_cli.core.config import InferConfig, MetricsConfig, TrainConfig
from spectralift_cli.core.cube import Cube, CubeMeta, CubeReader, FloatArray, Progress, no_progress
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats import open_cube, write_cube
from spectralift_cli.core.inference import infer
from spectralift_cli.core.metrics.evaluate import Scores, evaluate
from spectralift_cli.core.observation import Observation
from spectralift_cli.core.placement import Placement
from spectralift_cli.core.training import train
from spectralift_cli.core.validation.figures import Figure, Section
from spectralift_cli.core.validation.inputs import Pair
from spectralift_cli.core.validation.reproject import degrade

FloatPixels = NDArray[np.float32]

# fewer LR pixels one scale down tell more of their number than of the pipeline
LEAST_PIXELS = 64
_LEAST_SHARE = 0.5  # of an LR pixel that must be seen; borders mirror
_SUBPIXELS = 5


@dataclass(frozen=True, eq=False)
class ReducedPair:
    """Both images degraded once more.

    Args:
        lr_hsi: (h, w, B) the LR-HSI, blurred and averaged, NaN in holes.
        hr_msi: (h factor, w factor, M) the HR-MSI on the LR grid.
        truth: (h factor, w factor, B) the LR-HSI itself.
        factor: of the degradation.
        window: (row, col) of the truth's first pixel in the LR-HSI.
    """

    lr_hsi: FloatPixels
    hr_msi: FloatPixels
    truth: FloatPixels
    factor: int
    window: tuple[int, int]


def reduction_factor(shape: tuple[int, int], ratio: float) -> int:
    """Return by how much to degrade once more: the ratio, or less where few pixels would be left.

    Args:
        shape: (rows, cols) of the LR-HSI where both images show it.
        ratio: between the two images.

    Raises:
        DataError: even a factor of 2 leaves fewer than 2 x 2 pixels.
    """
    fitting = math.isqrt(max(1, shape[0] * shape[1] // LEAST_PIXELS))
    factor = max(2, min(round(ratio), fitting))
    if min(shape) // factor < 2:
        raise DataError(
            f"the LR-HSI of {shape[0]} x {shape[1]} pixels cannot be degraded once more",
            "leave the validation at reduced resolution out: --no-reduced",
        )
    return factor


def rescaled_kernel(kernel: FloatArray, share: float) -> FloatArray:
    """Return a kernel whose width is multiplied by `share`, sampled on whole pixels, sum 1.

    Each new pixel takes the mean over 5 x 5 points inside it, linear between old pixels.
    """
    if abs(share - 1) < 1e-9:
        return np.asarray(kernel / kernel.sum(), np.float64)
    half = max(1, math.ceil(share * (len(kernel) // 2)))
    fine = (np.arange((2 * half + 1) * _SUBPIXELS) + 0.5) / _SUBPIXELS - half - 0.5
    at = fine / share + len(kernel) // 2
    grid = np.meshgrid(at, at, indexing="ij")
    dense = ndimage.map_coordinates(kernel, grid, order=1, mode="grid-constant")
    size = 2 * half + 1
    made = dense.reshape(size, _SUBPIXELS, size, _SUBPIXELS).mean(axis=(1, 3))
    return np.asarray(made / made.sum(), np.float64)


def reduce_pair(pair: Pair) -> ReducedPair:
    """Degrade both images once more, with the PSF of the pair.

    The HR-MSI goes through the observation to the LR grid. The LR-HSI goes through the same optics
    one scale down: the kernel's width in LR pixels is that in HR pixels, times factor / ratio where
    the factor is not the ratio.

    Raises:
        DataError: the images are too small, or hardly overlap.
    """
    observation = pair.observation
    msi = degrade(pair.hr_msi.read_units(), observation, _LEAST_SHARE)
    lr = pair.lr_hsi.read_units()
    seen = np.asarray(np.isfinite(msi).all(axis=2))
    rows, cols = (np.flatnonzero(seen.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        raise DataError("no LR pixel lies wholly in the HR-MSI", "check the images' georeference")
    top, left = int(rows[0]), int(cols[0])
    shape = int(rows[-1]) + 1 - top, int(cols[-1]) + 1 - left
    scale = pair.placement.scale
    ratio = math.sqrt(scale[0] * scale[1])
    factor = reduction_factor(shape, ratio)
    height, width = (size // factor * factor for size in shape)
    cut = slice(top, top + height), slice(left, left + width)
    truth, sharp = lr[cut], msi[cut]
    placement = Placement(
        (height // factor, width // factor), (height, width), (float(factor), float(factor))
    )
    optics = Observation(
        rescaled_kernel(observation.psf, factor / ratio), placement,
        observation.includes_footprint,
    )  # fmt: skip
    used = np.isfinite(truth).any(axis=(0, 1))
    coarse = np.full((*placement.lr_shape, truth.shape[2]), np.nan, np.float32)
    coarse[:, :, used] = degrade(truth[:, :, used], optics, _LEAST_SHARE)
    return ReducedPair(coarse, sharp, truth, factor, (top, left))


def validate_reduced(
    pair: Pair,
    config: TrainConfig,
    work: Path,
    *,
    infer_config: InferConfig | None = None,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> tuple[Section, Scores]:
    """Run training and inference one scale down and score them against the LR-HSI.

    Args:
        pair: both images.
        config: of the training.
        work: folder for temporary cubes.
        infer_config: of the inference; None for the defaults.
        threads: at most.
        progress: called with (done, total) of the training.

    Returns:
        The section, and the scores it tells of.

    Raises:
        DataError: see `reduce_pair`, or training is not possible there.
    """
    reduced = reduce_pair(pair)
    hsi, msi = pair.lr_hsi.meta, pair.hr_msi.meta
    _store(work / "lr_hsi.npy", reduced.lr_hsi, hsi)
    _store(work / "hr_msi.npy", reduced.hr_msi, msi)
    _store(work / "truth.npy", reduced.truth, hsi)
    _store(work / "interpolated.npy", _interpolated(reduced), hsi)
    with open_cube(work / "lr_hsi.npy") as lr:
        trained = train(
            lr, pair.srf, config, scaling=pair.scaling, threads=threads, progress=progress
        )
    with open_cube(work / "hr_msi.npy", allow_2d=True) as sharp:
        infer(
            trained.checkpoint, sharp, work / "result.npy", infer_config or InferConfig(), dtype="float32",
            threads=threads, overwrite=True,
        )  # fmt: skip
    metrics = MetricsConfig(ratio=float(reduced.factor))
    with open_cube(work / "truth.npy") as truth:
        scores = _scores(truth, work / "result.npy", metrics)
        baseline = _scores(truth, work / "interpolated.npy", metrics)
    return _section(
        scores, baseline, reduced, pair, trained.checkpoint.choice or config.preset
    ), scores


def _store(path: Path, values: FloatPixels, like: CubeMeta) -> None:
    meta = like.replace(
        shape=values.shape, dtype=np.dtype(np.float32), nodata=math.nan, scale=1.0, offset=0.0,
        crs=None, transform=None, provenance=None,
    )  # fmt: skip
    write_cube(path, Cube(values, meta), overwrite=True)


def _interpolated(reduced: ReducedPair) -> FloatPixels:
    used = np.isfinite(reduced.lr_hsi).any(axis=(0, 1))
    coarse = reduced.lr_hsi[:, :, used]
    valid = np.asarray(np.isfinite(coarse).all(axis=2))
    out = np.full(reduced.truth.shape, np.nan, np.float32)
    if valid.any():
        whole = filled(np.where(valid[:, :, None], coarse, np.float32(0)), valid)
        out[:, :, used] = interpolate(whole, *reduced.truth.shape[:2])
    return out


def _scores(truth: CubeReader, path: Path, config: MetricsConfig) -> Scores:
    with open_cube(path) as image:
        return evaluate(truth, image, config)


def _section(
    scores: Scores, baseline: Scores, reduced: ReducedPair, pair: Pair, method: str
) -> Section:
    rows, cols, _ = reduced.truth.shape
    h, w, _ = reduced.lr_hsi.shape
    about = (
        f"Both images degraded once more by {reduced.factor} (PSF: {pair.psf}): trained on "
        f"{h} x {w} LR pixels, applied to the MSI at {rows} x {cols}, compared with the LR-HSI "
        f"there, whose noise counts as error. Method: {method}. It ranks methods and settings; the "
        "numbers at full resolution differ."
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
