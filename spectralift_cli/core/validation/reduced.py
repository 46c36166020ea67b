"""Both images degraded once more, so that the LR-HSI itself is the truth (Wald's protocol)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from spectralift_cli.core.cube import FloatArray
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.observation import Observation
from spectralift_cli.core.placement import Placement
from spectralift_cli.core.validation.inputs import Pair
from spectralift_cli.core.validation.reproject import degrade, seen_by_hsi

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
        shrink: factor over the ratio of the images, by which kernels on the HR grid narrow.
        window: (row, col) of the truth's first pixel in the LR-HSI.
    """

    lr_hsi: FloatPixels
    hr_msi: FloatPixels
    truth: FloatPixels
    factor: int
    shrink: float
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
    msi = seen_by_hsi(pair.hr_msi, observation, _LEAST_SHARE)
    lr = pair.lr_hsi.read_units()
    seen = np.asarray(np.isfinite(msi).all(axis=2))
    rows, cols = (np.flatnonzero(seen.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        raise DataError(
            "no LR pixel is seen by valid pixels of the HR-MSI",
            "check the HR-MSI's nodata value, and the georeference of both images",
        )
    top, left = int(rows[0]), int(cols[0])
    shape = int(rows[-1]) + 1 - top, int(cols[-1]) + 1 - left
    scale = pair.placement.scale
    ratio = math.sqrt(scale[0] * scale[1])
    factor = reduction_factor(shape, ratio)
    lr = lr[top : top + shape[0], left : left + shape[1]]
    msi = msi[top : top + shape[0], left : left + shape[1]]
    coarse = _degraded(lr, observation, factor, ratio)
    while factor > 2 and _whole_pixels(coarse) < LEAST_PIXELS:  # holes and borders cost pixels
        factor -= 1
        coarse = _degraded(lr, observation, factor, ratio)
    truth = lr[: len(coarse) * factor, : coarse.shape[1] * factor]
    sharp = msi[: truth.shape[0], : truth.shape[1]]
    return ReducedPair(coarse, sharp, truth, factor, factor / ratio, (top, left))


def _degraded(lr: FloatPixels, observation: Observation, factor: int, ratio: float) -> FloatPixels:
    """Return the LR-HSI blurred and averaged over factor x factor pixels, NaN in holes."""
    h, w = lr.shape[0] // factor, lr.shape[1] // factor
    placement = Placement((h, w), (h * factor, w * factor), (float(factor), float(factor)))
    kernel = rescaled_kernel(observation.psf, factor / ratio)
    optics = Observation(kernel, placement, observation.includes_footprint)
    cut = lr[: h * factor, : w * factor]
    used = np.isfinite(cut).any(axis=(0, 1))
    coarse = np.full((h, w, lr.shape[2]), np.nan, np.float32)
    coarse[:, :, used] = degrade(cut[:, :, used], optics, _LEAST_SHARE)
    return coarse


def _whole_pixels(image: FloatPixels) -> int:
    """Return how many pixels hold all bands that hold anything."""
    used = np.isfinite(image).any(axis=(0, 1))
    return int(np.isfinite(image[:, :, used]).all(axis=2).sum()) if used.any() else 0
