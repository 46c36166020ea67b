"""The three images of a refinement, checked against each other, and what is learned in one pass."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from spectralift_cli.core.cube import BoolArray, FloatArray
from spectralift_cli.core.cubeio import CubeReader, row_blocks
from spectralift_cli.core.errors import DataError, SpectraliftWarning
from spectralift_cli.core.radiometry import Radiometry
from spectralift_cli.core.refinement.relation import Images
from spectralift_cli.core.refinement.weights import HALO_PX, brightness, contrast, weights
from spectralift_cli.core.sensors.response import Srf

Floats32 = NDArray[np.float32]

_BLOCK_VALUES = 2**22
_LEAST_RESPONSE = 0.95  # of an MSI band's weight that must lie on bands with values
_NOISE_BLOCK = 8
# the share of the image's blocks taken for flat, so that their variation is noise
_FLAT_QUANTILE = 0.1


class HeldCube:
    """A cube in units by rows, kept in memory where it fits, since it is passed over several times.

    Args:
        reader: the cube.
        limit_bytes: the most to keep.
        radiometry: gain and offset that values are brought to, or None.
    """

    def __init__(
        self, reader: CubeReader, limit_bytes: int, radiometry: Radiometry | None = None
    ) -> None:
        self.reader = reader
        self._radiometry = radiometry
        self._held: Floats32 | None = None
        rows, cols, bands = reader.meta.shape
        self._fits = rows * cols * bands * 4 <= limit_bytes
        # of the image alone, so that no sum depends on the memory at hand; whole noise blocks
        fitting = _BLOCK_VALUES // max(1, cols * bands)
        self._height = min(rows, max(fitting - fitting % _NOISE_BLOCK, _NOISE_BLOCK))

    @property
    def held_bytes(self) -> int:
        """What it keeps."""
        return int(np.prod(self.reader.meta.shape)) * 4 if self._fits else 0

    @property
    def block_rows(self) -> int:
        """Rows of a block."""
        return self._height

    def read(self, rows: slice) -> Floats32:
        """Return units (n, cols, bands), NaN in holes."""
        if not self._fits:
            return self._units(rows)
        if self._held is None:
            self._held = np.empty(self.reader.meta.shape, np.float32)
            for part in row_blocks(self.reader.meta.rows, self._height):
                self._held[part] = self._units(part)
        return self._held[rows]

    def _units(self, rows: slice) -> Floats32:
        units = self.reader.read_units(rows)
        return units if self._radiometry is None else self._radiometry.apply(units)

    def blocks(self) -> Iterator[tuple[slice, Floats32]]:
        """Yield (rows, units) from top to bottom."""
        for rows in row_blocks(self.reader.meta.rows, self._height):
            yield rows, self.read(rows)


@dataclass(frozen=True, eq=False)
class Sharp:
    """What one pass over the estimate and the HR-MSI tells.

    Args:
        used: (B,) bands with values in both hyperspectral images.
        valid: (H, W) pixels where the estimate has all of these.
        weights: (H, W) w^2 of the prior.
        span: lowest and highest value of the estimate.
        msi_noise_std: (M,)
        msi_rms: (M,)
    """

    used: BoolArray
    valid: BoolArray
    weights: Floats32
    span: tuple[float, float]
    msi_noise_std: FloatArray
    msi_rms: FloatArray


def check_images(images: Images) -> None:
    """Refuse images that do not belong together.

    Raises:
        DataError: sizes, numbers of bands or grids that differ, or no common ground.
    """
    estimate, lr, msi = images.estimate, images.lr_hsi, images.hr_msi
    srf = images.relation.srf
    ours, theirs = estimate.meta, msi.meta
    if (ours.rows, ours.cols) != (theirs.rows, theirs.cols):
        raise DataError(
            f"{estimate.path} has {ours.rows} x {ours.cols} pixels, the HR-MSI {msi.path} "
            f"{theirs.rows} x {theirs.cols}",
            "refine takes a cube on the MSI's grid, as infer makes it",
        )
    for transform in (ours.transform, theirs.transform):
        if transform is None:
            break
    else:
        pixel = max(abs(theirs.transform[0]), abs(theirs.transform[4]))  # type: ignore[index]
        apart = np.abs(np.subtract(ours.transform, theirs.transform))  # type: ignore[arg-type]
        if max(apart[2], apart[5]) > 0.01 * pixel or max(apart[[0, 1, 3, 4]]) > 1e-4 * pixel:
            raise DataError(
                f"{estimate.path} and the HR-MSI {msi.path} lie on different grids: their "
                f"transforms are {ours.transform} and {theirs.transform}",
                "refine takes a cube on the MSI's grid, as infer makes it",
            )
    for reader, name in ((estimate, "cube"), (lr, "LR-HSI")):
        if reader.meta.bands != srf.num_hsi_bands:
            raise DataError(
                f"{reader.path}: the {name} has {reader.meta.bands} bands, the response has "
                f"{srf.num_hsi_bands}",
                "give the cube, the LR-HSI and the response with the same hyperspectral bands",
            )
    if theirs.bands != srf.num_msi_bands:
        raise DataError(
            f"{msi.path}: has {theirs.bands} bands, the response has {srf.num_msi_bands}",
            "choose the bands with convert --bands, in the order of the response",
        )
    if not images.relation.placement.inside().any():
        raise DataError(
            f"no pixel of the LR-HSI {lr.path} lies wholly in the HR-MSI {msi.path}",
            "give two images of the same ground",
        )


def look(estimate: HeldCube, msi: HeldCube, lr_bands: BoolArray) -> Sharp:
    """Pass over the estimate and the MSI once.

    Args:
        estimate: in units.
        msi: in units.
        lr_bands: (B,) bands where the LR-HSI has values.

    Raises:
        DataError: the estimate has no values, or the MSI none.
    """
    rows, cols, bands = estimate.reader.meta.shape
    counts = np.zeros(bands, np.int64)
    low, high = np.inf, -np.inf
    for _, block in estimate.blocks():
        finite = np.isfinite(block)
        counts += finite.sum(axis=(0, 1))
        if finite.any():
            low = min(low, float(block[finite].min()))
            high = max(high, float(block[finite].max()))
    used = lr_bands & (counts > 0)
    if not used.any():
        raise DataError(
            f"{estimate.reader.path}: has no band with values that the LR-HSI has, too",
            "check the nodata values of both",
        )
    count = msi.reader.meta.bands
    squares, pixels = np.zeros(count), 0
    for _, block in msi.blocks():
        good = block[np.isfinite(block).all(axis=2)].astype(np.float64)
        squares += np.square(good).sum(axis=0)
        pixels += len(good)
    if not pixels or not squares.all():
        raise DataError(
            f"{msi.reader.path}: has no valid pixels, or a band that is zero everywhere",
            "check its nodata value, and that it is the right file",
        )
    msi_rms = np.sqrt(squares / pixels)
    valid = np.zeros((rows, cols), bool)
    bright = np.zeros((rows, cols), np.float32)
    varied = np.zeros((rows, cols), np.float32)
    quiet: list[FloatArray] = []
    for part, block in estimate.blocks():
        around = slice(max(0, part.start - HALO_PX), min(rows, part.stop + HALO_PX))
        sharp = msi.read(around)
        seen = finite_pixels(sharp)
        inner = slice(part.start - around.start, part.stop - around.start)
        spectra = block[:, :, used]
        valid[part] = np.isfinite(spectra).all(axis=2)
        bright[part] = brightness(spectra)
        varied[part] = contrast(sharp, seen, msi_rms)[inner]
        # second differences look two rows ahead
        ahead = slice(inner.start, inner.stop + 2)
        quiet.append(_flat_variance(np.where(seen[:, :, None], sharp, np.nan)[ahead]))
    if not valid.any():
        raise DataError(
            f"{estimate.reader.path}: has no pixel with values in all bands",
            "check its nodata value",
        )
    found = np.concatenate(quiet)
    noise = np.quantile(found, _FLAT_QUANTILE, axis=0) if len(found) else np.zeros(count)
    noise_std = np.maximum(np.sqrt(noise), 1e-5 * msi_rms)
    return Sharp(used, valid, weights(bright, varied, valid), (low, high), noise_std, msi_rms)


def _flat_variance(block: Floats32) -> FloatArray:
    """Return (n, M) the noise variances that 8 x 8 blocks of an image would have, were they flat.

    The second difference along both axes, [1 -2 1; -2 4 -2; 1 -2 1], has 36 times the variance of
    white noise and nothing of a plane or a quadratic (Immerkaer, Computer Vision and Image
    Understanding 64 (1996)).
    """
    values = block.astype(np.float64)
    for axis in (0, 1):
        if values.shape[axis] < 3:
            return np.zeros((0, block.shape[2]))
        values = np.diff(values, n=2, axis=axis)
    rows, cols = (n // _NOISE_BLOCK for n in values.shape[:2])
    if not rows or not cols:
        mean: FloatArray = np.square(values).mean(axis=(0, 1))[None] / 36
        return _finite(mean)
    cut = values[: rows * _NOISE_BLOCK, : cols * _NOISE_BLOCK]
    parts = cut.reshape(rows, _NOISE_BLOCK, cols, _NOISE_BLOCK, -1)
    found: FloatArray = np.square(parts).mean(axis=(1, 3)).reshape(rows * cols, -1) / 36
    return _finite(found)


def finite_pixels(block: Floats32) -> BoolArray:
    """Return (n, W) which pixels of a block (n, W, B) have all values."""
    found: BoolArray = np.logical_and.reduce(np.isfinite(block), axis=2)
    return found


def _finite(rows: FloatArray) -> FloatArray:
    good: FloatArray = rows[np.isfinite(rows).all(axis=1)]
    return good


def bands_with_values(lr: HeldCube) -> BoolArray:
    """Return (B,) which bands of the LR-HSI have values.

    Raises:
        DataError: none has.
    """
    found = np.zeros(lr.reader.meta.bands, bool)
    for _, block in lr.blocks():
        found |= np.logical_or.reduce(np.isfinite(block), axis=(0, 1))
    if not found.any():
        raise DataError(f"{lr.reader.path}: has no valid value", "check its nodata value")
    return found


def moments(lr: HeldCube, used: BoolArray) -> tuple[BoolArray, FloatArray, FloatArray]:
    """Return (h, w) the LR pixels with all used bands, and their sum and sum of outer products."""
    rows, cols, _ = lr.reader.meta.shape
    valid = np.zeros((rows, cols), bool)
    count = int(used.sum())
    total, squares = np.zeros(count), np.zeros((count, count))
    for part, block in lr.blocks():
        spectra = block[:, :, used]
        valid[part] = np.isfinite(spectra).all(axis=2)
        good = torch.from_numpy(spectra[valid[part]].astype(np.float64))
        total += good.sum(dim=0).numpy()
        squares += (good.T @ good).numpy()
    return valid, total, squares


def usable_response(srf: Srf, used: BoolArray) -> tuple[BoolArray, FloatArray]:
    """Return (M,) which MSI bands the used bands show, and their weights (M', B'), rows of sum 1.

    Raises:
        DataError: they show none.
    """
    weights_ = srf.weights[:, used]
    share = weights_.sum(axis=1)
    kept = share >= _LEAST_RESPONSE
    if not kept.any():
        raise DataError(
            f"the bands with values hold at most {share.max():.0%} of any MSI band's response",
            "give an LR-HSI and a cube whose bands have values",
        )
    if not kept.all():
        names = [name for name, keep in zip(srf.band_names, kept, strict=True) if not keep]
        warnings.warn(
            f"the MSI band {', '.join(names)} takes no part: the hyperspectral bands with values "
            f"hold less than {_LEAST_RESPONSE:.0%} of its response",
            SpectraliftWarning,
            stacklevel=2,
        )
    return kept, weights_[kept] / share[kept, None]
