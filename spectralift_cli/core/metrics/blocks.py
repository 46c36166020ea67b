"""What metrics gather while two cubes pass by in blocks of rows.

Every sum is formed row by row and the rows are added from top to bottom, so that the result does
not depend on how the rows were cut into blocks, to the last digit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np

from spectralift_cli.core.cube import AnyArray, BoolArray, CubeMeta, FloatArray, valid_mask

NO_RANGE = "the reference is constant, so it has no range; state one with --data-range"


@dataclass(frozen=True)
class Context:
    """What the metrics of one evaluation share.

    Args:
        shape: (rows, cols, bands).
        data_range: peak-to-peak range for PSNR and SSIM in data units; NaN if it is undefined.
        ratio: LR to HR pixel size.
    """

    shape: tuple[int, int, int]
    data_range: float
    ratio: float


@dataclass(frozen=True)
class Score:
    """One metric's result.

    Args:
        value: the score; NaN or infinite where the data define none.
        note: why it is not finite, or what was left out.
        per_band: (bands,) scores, NaN where undefined; None if the metric has none.
    """

    value: float
    note: str = ""
    per_band: FloatArray | None = None


class Observer(Protocol):
    """Sees blocks of rows that arrive from top to bottom."""

    def update(self, block: PairBlock) -> None:
        """Add the rows of a block."""


class Accumulator(Observer, Protocol):
    """Gathers sums over blocks of rows that arrive from top to bottom."""

    def __init__(self, context: Context) -> None: ...


class PairBlock:
    """Consecutive rows of two cubes, with some rows above them for metrics with windows.

    A value is a hole if either cube has one there. In what this class returns, holes are 0 in both.

    Args:
        reference: (above + n, cols, bands) stored values.
        prediction: likewise.
        reference_meta: whose nodata, scale and offset apply.
        prediction_meta: likewise.
        above: how many of the rows were seen before.
        stop: index in the cube of the row below the block.
    """

    def __init__(
        self,
        reference: AnyArray,
        prediction: AnyArray,
        reference_meta: CubeMeta,
        prediction_meta: CubeMeta,
        above: int,
        stop: int,
    ) -> None:
        self._stored = (reference, prediction)
        self._metas = (reference_meta, prediction_meta)
        self.above = above
        self.stop = stop

    @cached_property
    def valid(self) -> BoolArray:
        """(n, cols, bands), False in holes."""
        x, y = self._map(valid_mask, slice(self.above, None))
        return x & y

    @cached_property
    def units(self) -> tuple[FloatArray, FloatArray]:
        """Reference and prediction in units, (n, cols, bands) float64 each."""
        return self._filled(self._map(_units, slice(self.above, None)), self.valid)

    def counts(self) -> tuple[FloatArray, FloatArray]:
        """Return reference and prediction times 255, truncated, (n, cols, bands) float64 each."""
        return self._filled(self._map(_counts, slice(self.above, None)), self.valid)

    def band(
        self, band: int, above: int, *, quantise: bool = False
    ) -> tuple[FloatArray, FloatArray, BoolArray]:
        """Return one band of both cubes and where both are valid, (above + n, cols) each.

        Args:
            band: 0-based.
            above: how many rows above the block to return at most.
            quantise: return counts of 0 to 255 instead of units.
        """
        rows = slice(max(0, self.above - above), None)
        x, y = self._map(valid_mask, rows, band)
        valid = x & y
        pair = self._map(_counts if quantise else _units, rows, band)
        if quantise:
            pair = (np.clip(pair[0], 0, 255), np.clip(pair[1], 0, 255))
        return (*self._filled(pair, valid), valid)

    def _map(
        self,
        function: Callable[[AnyArray, CubeMeta], AnyArray],
        rows: slice,
        band: int | None = None,
    ) -> tuple[AnyArray, AnyArray]:
        """Apply a function of stored values and metadata to some rows of both cubes."""
        x, y = (
            function(stored[rows], meta)
            if band is None
            else function(np.ascontiguousarray(stored[rows, :, band]), _of_band(meta, band))
            for stored, meta in zip(self._stored, self._metas, strict=True)
        )
        return x, y

    @staticmethod
    def _filled(
        pair: tuple[FloatArray, FloatArray], valid: BoolArray
    ) -> tuple[FloatArray, FloatArray]:
        if not valid.all():
            for values in pair:
                values[~valid] = 0
        return pair


def _units(stored: AnyArray, meta: CubeMeta) -> FloatArray:
    """Return stored values in units, always a new array."""
    values: FloatArray = np.array(stored, dtype=np.float64, order="C")
    if meta.is_scaled:
        with np.errstate(over="ignore", invalid="ignore"):  # in holes
            values *= meta.scale
            values += meta.offset
    return values


def _counts(stored: AnyArray, meta: CubeMeta) -> FloatArray:
    """Return units times 255, truncated, not yet clipped.

    Quantising follows the arithmetic of the array it is given: 8-bit data kept as k/255 in float32
    give k back only if the product is rounded to float32 too.
    """
    if stored.dtype.kind == "f" and stored.dtype.itemsize <= 4 and not meta.is_scaled:
        values: AnyArray = np.array(stored, dtype=np.float32, order="C")
    else:
        values = _units(stored, meta)
    with np.errstate(over="ignore", invalid="ignore"):  # in holes
        return np.asarray(np.trunc(values * 255), dtype=np.float64)


def _of_band(meta: CubeMeta, band: int) -> CubeMeta:
    """Return metadata whose nodata, scale and offset are those of one band."""
    if np.ndim(meta.scale) or np.ndim(meta.offset):
        return meta.select_bands([band])
    return meta


class BandMoments:
    """Counts, means, centred second moments and errors of every band, in data units.

    Each row's moments are taken about its own mean and merged by Chan's formulas (Chan, Golub and
    LeVeque 1983), which lose no digits to a large offset.

    Attributes:
        count: (bands,) values that are valid in both cubes.
        mean_x, mean_y: (bands,) means of the reference and the prediction; 0 without values.
        m2_x, m2_y, c_xy: (bands,) sums of squared deviations and of their products.
        squared, absolute: (bands,) sums of squared and absolute differences.
    """

    def __init__(self, context: Context) -> None:
        bands = context.shape[2]
        self.count, self.mean_x, self.mean_y, self.m2_x = np.zeros((4, bands))
        self.m2_y, self.c_xy, self.squared, self.absolute = np.zeros((4, bands))

    def update(self, block: PairBlock) -> None:
        """Add the rows of a block."""
        valid = block.valid
        x, y = block.units
        error = x - y
        squared, absolute = (error * error).sum(axis=1), np.abs(error, out=error).sum(axis=1)
        count = valid.sum(axis=1, dtype=np.float64)  # (n, bands), like everything below
        some = np.maximum(count, 1)
        mean_x, mean_y = x.sum(axis=1) / some, y.sum(axis=1) / some
        dx, dy = x - mean_x[:, None], y - mean_y[:, None]
        if not valid.all():
            dx[~valid] = 0
            dy[~valid] = 0
        m2_x, m2_y, c_xy = (dx * dx).sum(axis=1), (dy * dy).sum(axis=1), (dx * dy).sum(axis=1)
        for row in range(len(count)):
            total = self.count + count[row]
            share = count[row] / np.maximum(total, 1)
            step_x, step_y = mean_x[row] - self.mean_x, mean_y[row] - self.mean_y
            weight = self.count * share
            self.m2_x += m2_x[row] + step_x * step_x * weight
            self.m2_y += m2_y[row] + step_y * step_y * weight
            self.c_xy += c_xy[row] + step_x * step_y * weight
            self.mean_x += step_x * share
            self.mean_y += step_y * share
            self.squared += squared[row]
            self.absolute += absolute[row]
            self.count = total


def spectral_angles(block: PairBlock) -> FloatArray:
    """Return the angle between the two spectra of every pixel, over the bands valid in both.

    The angle is 2 atan2(|u - v|, |u + v|) of the unit spectra u and v, which equals
    arccos(u . v) but keeps its digits near 0 (Kahan, How Futile are Mindless Assessments of
    Roundoff, section 12).

    Returns:
        (n, cols) radians; NaN where a spectrum is zero in all valid bands, or has none: it has no
        direction.
    """
    x, y = block.units
    norm_x, norm_y = (np.sqrt((values * values).sum(axis=2)) for values in (x, y))
    usable = (norm_x > 0) & (norm_y > 0)
    u = x / np.where(usable, norm_x, 1)[:, :, None]
    v = y / np.where(usable, norm_y, 1)[:, :, None]
    apart, together = (np.sqrt((values * values).sum(axis=2)) for values in (u - v, u + v))
    return np.where(usable, 2 * np.arctan2(apart, together), np.nan)


class SpectralAngles:
    """Sums of `spectral_angles`; pixels without an angle are counted and left out.

    Attributes:
        total: sum of the angles in radians.
        count: pixels in it.
        zero_spectra: pixels with a valid value that were left out.
        pixels: pixels with a valid value.
    """

    def __init__(self, context: Context) -> None:
        del context
        self.total = 0.0
        self.count = self.zero_spectra = self.pixels = 0

    def update(self, block: PairBlock) -> None:
        """Add the rows of a block."""
        angles = spectral_angles(block)
        usable = ~np.isnan(angles)
        seen = block.valid.any(axis=2)
        for row in np.where(usable, angles, 0).sum(axis=1):
            self.total += float(row)
        self.count += int(usable.sum())
        self.zero_spectra += int((seen & ~usable).sum())
        self.pixels += int(seen.sum())


class WindowMeans(ABC):
    """Mean over all windows that lie inside the image and touch no hole, for every band.

    A subclass says how large its window is and what is computed in it.
    """

    size: ClassVar[int]
    quantise: ClassVar[bool] = False

    def __init__(self, context: Context) -> None:
        self.context = context
        self.total, self.count = np.zeros((2, context.shape[2]))

    @abstractmethod
    def local(self, x: FloatArray, y: FloatArray) -> FloatArray:
        """Return the measure of every window, (rows - size + 1, cols - size + 1), of two images."""

    def used(self, block: PairBlock) -> tuple[slice, slice]:
        """Return which rows and columns of windows, of those that end in the block, count."""
        del block
        return slice(None), slice(None)

    def update(self, block: PairBlock) -> None:
        """Add the windows that end in the rows of a block."""
        used = self.used(block)
        for band in range(self.context.shape[2]):
            x, y, valid = block.band(band, self.size - 1, quantise=self.quantise)
            if min(x.shape) < self.size:
                return
            measure = self.local(x, y)
            counted = np.ones(measure.shape)
            if not valid.all():
                counted[window_sum((~valid).astype(np.float64), np.ones(self.size)) > 0] = 0
                measure[counted == 0] = 0
            for row in measure[used].sum(axis=1):
                self.total[band] += row
            self.count[band] += counted[used].sum()


def window_sum(image: FloatArray, weights: FloatArray) -> FloatArray:
    """Return the weighted sum of every window that lies inside an image.

    Terms are added in the same order in every window; a running sum would be faster but would make
    the result depend on where a block began.

    Args:
        image: (rows, cols), at least as large as the window.
        weights: (k,) of rows and columns alike.

    Returns:
        (rows - k + 1, cols - k + 1).
    """
    for axis in (0, 1):
        length = image.shape[axis] - len(weights) + 1
        total = np.zeros(())
        for start, weight in enumerate(weights):
            part = image[start : start + length] if axis == 0 else image[:, start : start + length]
            total = weight * part if start == 0 else np.add(total, weight * part, out=total)
        image = total
    return image


def mean_of_windows(windows: WindowMeans, context: Context) -> Score:
    """Return the mean over bands of the means over windows."""
    per_band = windows.total / np.where(windows.count > 0, windows.count, np.nan)
    note = ""
    if not (windows.count > 0).any():
        size = windows.size
        note = (
            f"the image of {context.shape[0]} x {context.shape[1]} pixels has no "
            f"{size} x {size} window without a hole"
        )
    elif not np.isfinite(per_band[windows.count > 0]).all():
        note = NO_RANGE
    return Score(mean_of_bands(per_band), note, per_band)


def mean_of_bands(per_band: FloatArray) -> float:
    """Return the mean over the bands that have a score (are not NaN); NaN if none has."""
    known = per_band[~np.isnan(per_band)]
    return float(known.mean()) if known.size else float("nan")
