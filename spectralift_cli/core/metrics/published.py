"""The metrics of mode `published`: the numbers that sewar 0.4.6 gives, quirks included.

They are what the published tables hold, and comparable with those only. Re-implemented from the
formulas; each docstring names what differs from `standard`.
"""

from __future__ import annotations

import warnings

import numpy as np

from spectralift_cli.core.cube import FloatArray
from spectralift_cli.core.errors import SpectraliftWarning
from spectralift_cli.core.metrics.blocks import (
    BandMoments,
    Context,
    PairBlock,
    Score,
    WindowMeans,
    mean_of_bands,
)
from spectralift_cli.core.metrics.standard import ergas_at, quality_index, windowed_moments

_PEAK = 255.0
# sewar's default ratio, which the published tables use at every ratio
ERGAS_RATIO = 4.0


class QuantisedErrors:
    """Squared errors between the images as 8-bit counts, made by truncation of 255 times the data.

    Attributes:
        squared: (bands,) sums of squared differences in counts.
        count: (bands,) values that are valid in both cubes.
        clipped: values outside [0, 1] (before truncation), which were clipped to 0..255.
    """

    def __init__(self, context: Context) -> None:
        self.squared, self.count = np.zeros((2, context.shape[2]))
        self.clipped = 0

    def update(self, block: PairBlock) -> None:
        """Add the rows of a block."""
        x, y = block.counts()
        for values in (x, y):
            self.clipped += int(((values < 0) | (values > _PEAK)).sum())
            np.clip(values, 0, _PEAK, out=values)
        # whole numbers, so that the order of these sums does not matter
        self.squared += ((x - y) ** 2).sum(axis=(0, 1))
        self.count += block.valid.sum(axis=(0, 1))


def psnr(errors: QuantisedErrors, context: Context) -> Score:
    """Return 10 log10(255^2 / mse) of the 8-bit counts, all bands pooled, in dB.

    Truncation hides errors below one count in 255 and shifts nothing else; values outside [0, 1]
    are clipped, and reported.
    """
    del context
    if errors.clipped:
        warnings.warn(
            f"published PSNR and SSIM need data in [0, 1]: {errors.clipped:,} of "
            f"{2 * int(errors.count.sum()):,} values were clipped",
            SpectraliftWarning,
            stacklevel=2,
        )
    with np.errstate(divide="ignore"):
        value = float(10 * np.log10(_PEAK**2 / (errors.squared.sum() / errors.count.sum())))
        known = np.where(errors.count > 0, errors.count, np.nan)
        per_band = 10 * np.log10(_PEAK**2 / (errors.squared / known))
    note = "the images are identical as 8-bit counts" if np.isinf(value) else ""
    return Score(value, note, per_band)


def ergas(moments: BandMoments, context: Context) -> Score:
    """Return 25 sqrt(mean over bands of (rmse_b / mean_b)^2), as if the ratio were always 4."""
    del context
    return ergas_at(moments, 100 / ERGAS_RATIO)


def sam_bands(moments: BandMoments, context: Context) -> Score:
    """Return the mean over bands of the angle between the two images of a band, in radians.

    This is what sewar calls `sam`; the published tables hold the angle between spectra in degrees.
    """
    del context
    n = moments.count
    dots = moments.c_xy + n * moments.mean_x * moments.mean_y
    squares_x = moments.m2_x + n * moments.mean_x**2
    squares_y = moments.m2_y + n * moments.mean_y**2
    norms = np.sqrt(squares_x) * np.sqrt(squares_y)
    cosines = np.divide(dots, norms, out=np.full_like(norms, np.nan), where=norms > 0)
    per_band = np.arccos(np.clip(cosines, -1, 1))
    zeros = int(((n > 0) & ~(norms > 0)).sum())
    note = f"{zeros} bands of zeros are left out" if zeros else ""
    return Score(mean_of_bands(per_band), note, per_band)


class QuantisedSsim(WindowMeans):
    """Structural similarity of 8-bit counts in uniform windows of 11 x 11 pixels, data range 255."""

    size = 11
    quantise = True

    def local(self, x: FloatArray, y: FloatArray) -> FloatArray:
        """Return the similarity of every window."""
        c1, c2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2
        mean_x, mean_y, xx, yy, xy = windowed_moments(x, y, np.full(self.size, 1 / self.size))
        means = mean_x * mean_x + mean_y * mean_y
        product = mean_x * mean_y
        top = (2 * product + c1) * (2 * (xy - product) + c2)
        return top / ((means + c1) * (xx + yy - means + c2))


class SewarUiqi(WindowMeans):
    """The index Q of uniform windows of 8 x 8 pixels, from means where the formula has sums.

    With N = 64 and means instead of sums, N mean(xy) - mean(x) mean(y) is hardly a covariance: it is
    dominated by the second moments, and two independent noise images score 0.74. The last row and
    the last column of windows are left out, since sewar cuts half a window, rounded, off all sides.
    """

    size = 8

    def local(self, x: FloatArray, y: FloatArray) -> FloatArray:
        """Return the index of every window."""
        mean_x, mean_y, xx, yy, xy = windowed_moments(x, y, np.full(self.size, 1 / self.size))
        n = self.size**2
        means = mean_x * mean_x + mean_y * mean_y
        product = mean_x * mean_y
        return quality_index(product, n * xy - product, means, n * (xx + yy) - means)

    def used(self, block: PairBlock) -> tuple[slice, slice]:
        """Leave out the windows that end in the image's last row or column."""
        return slice(None, -1 if block.stop == self.context.shape[0] else None), slice(None, -1)
