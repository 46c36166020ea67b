"""The metrics of mode `standard`: everything in float64 and in data units, nothing quantised."""

from __future__ import annotations

import numpy as np

from spectralift_cli.core.cube import FloatArray
from spectralift_cli.core.metrics.blocks import (
    NO_RANGE,
    BandMoments,
    Context,
    Score,
    SpectralAngles,
    WindowMeans,
    mean_of_bands,
    window_sum,
)


def rmse(moments: BandMoments, context: Context) -> Score:
    """Return sqrt(mean((x - y)^2)) over all valid values, in data units."""
    del context
    pooled = np.sqrt(moments.squared.sum() / moments.count.sum())
    return Score(float(pooled), per_band=rmse_of_bands(moments))


def mae(moments: BandMoments, context: Context) -> Score:
    """Return mean(|x - y|) over all valid values, in data units."""
    del context
    pooled = moments.absolute.sum() / moments.count.sum()
    return Score(float(pooled), per_band=moments.absolute / _counts(moments))


def psnr(moments: BandMoments, context: Context) -> Score:
    """Return 10 log10(data_range^2 / mean((x - y)^2)) over all valid values, in dB."""
    mse = moments.squared.sum() / moments.count.sum()
    per_band = _psnr(moments.squared / _counts(moments), context)
    value = float(_psnr(np.array([mse]), context)[0])
    return Score(value, _psnr_note(value, "the images are identical"), per_band)


def mpsnr(moments: BandMoments, context: Context) -> Score:
    """Return the mean over bands of each band's PSNR, in dB."""
    per_band = _psnr(moments.squared / _counts(moments), context)
    value = mean_of_bands(per_band)
    return Score(value, _psnr_note(value, f"{int(np.isinf(per_band).sum())} bands are identical"))


def ergas(moments: BandMoments, context: Context) -> Score:
    """Return 100 / ratio * sqrt(mean over bands of (rmse_b / mean_b)^2).

    mean_b is the mean of the reference's band. Source: Wald, Data Fusion, 2002 (with ratio the LR
    over the HR pixel size, so that h/l = 1/ratio).
    """
    return ergas_at(moments, 100 / context.ratio)


def ergas_at(moments: BandMoments, factor: float) -> Score:
    """Return factor * sqrt(mean over bands of (rmse_b / mean_b)^2)."""
    errors, means = rmse_of_bands(moments), moments.mean_x
    seen = moments.count > 0
    dark = seen & (means == 0)
    if dark.any():
        listing = ", ".join(str(band + 1) for band in np.flatnonzero(dark)[:8])
        return Score(float("inf"), f"the reference's mean is 0 in band {listing}")
    relative = errors[seen] / means[seen]
    return Score(float(factor * np.sqrt(np.mean(relative**2))))


def sam(angles: SpectralAngles, context: Context) -> Score:
    """Return the mean over pixels of the angle between spectra, in degrees.

    Pixels where either spectrum is zero in all valid bands are left out, and noted.
    """
    del context
    note = ""
    if angles.zero_spectra:
        note = f"{angles.zero_spectra} pixels with a spectrum of zeros are left out"
    if not angles.count:
        return Score(float("nan"), note)
    return Score(float(np.rad2deg(angles.total / angles.count)), note)


def cc(moments: BandMoments, context: Context) -> Score:
    """Return the mean over bands of Pearson's correlation; constant bands have none."""
    del context
    n = moments.count
    # what is left of a constant band's deviations is rounding of its mean
    known = (moments.m2_x > n * (1e-12 * moments.mean_x) ** 2) & (
        moments.m2_y > n * (1e-12 * moments.mean_y) ** 2
    )
    spread = np.sqrt(moments.m2_x) * np.sqrt(moments.m2_y)
    per_band = np.divide(moments.c_xy, spread, out=np.full_like(spread, np.nan), where=known)
    constant = int(((n > 0) & ~known).sum())
    note = f"{constant} bands that are constant in an image are left out" if constant else ""
    return Score(mean_of_bands(per_band), note, np.clip(per_band, -1, 1))


def rmse_of_bands(moments: BandMoments) -> FloatArray:
    """Return (bands,) root mean squared errors, NaN for bands without values."""
    return np.asarray(np.sqrt(moments.squared / _counts(moments)), dtype=np.float64)


def _counts(moments: BandMoments) -> FloatArray:
    return np.where(moments.count > 0, moments.count, np.nan)


def _psnr(mse: FloatArray, context: Context) -> FloatArray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(10 * np.log10(context.data_range**2 / mse), dtype=np.float64)


def _psnr_note(value: float, identical: str) -> str:
    if np.isnan(value):
        return NO_RANGE
    return identical if np.isinf(value) else ""


class GaussianSsim(WindowMeans):
    """Structural similarity in Gaussian windows of 11 x 11 pixels, sigma 1.5, of one band.

    ((2 mx my + C1)(2 sxy + C2)) / ((mx^2 + my^2 + C1)(sx^2 + sy^2 + C2)), C1 = (0.01 L)^2,
    C2 = (0.03 L)^2, L the data range, with weighted (population) variances. Source: Wang et al.
    2004; the conventions are scikit-image's with `gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False`.
    """

    size = 11

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        offsets = np.arange(self.size) - self.size // 2
        weights = np.exp(-(offsets**2) / (2 * 1.5**2))
        self.weights: FloatArray = weights / weights.sum()
        self.data_range = context.data_range

    def local(self, x: FloatArray, y: FloatArray) -> FloatArray:
        """Return the similarity of every window."""
        c1, c2 = (0.01 * self.data_range) ** 2, (0.03 * self.data_range) ** 2
        mean_x, mean_y, xx, yy, xy = windowed_moments(x, y, self.weights)
        means = mean_x * mean_x + mean_y * mean_y
        variances = xx + yy - means
        product = mean_x * mean_y
        top = (2 * product + c1) * (2 * (xy - product) + c2)
        return top / ((means + c1) * (variances + c2))


class Uiqi(WindowMeans):
    """Universal image quality index in uniform windows of 8 x 8 pixels, of one band.

    Q = 4 sxy mx my / ((sx^2 + sy^2)(mx^2 + my^2)); in windows where both images are flat
    2 mx my / (mx^2 + my^2), and 1 where the denominator is 0 even so. Source: Wang and Bovik 2002,
    their reference implementation's rules.
    """

    size = 8

    def local(self, x: FloatArray, y: FloatArray) -> FloatArray:
        """Return the index of every window."""
        mean_x, mean_y, xx, yy, xy = windowed_moments(x, y, np.full(self.size, 1 / self.size))
        means = mean_x * mean_x + mean_y * mean_y
        variances = xx + yy - means
        product = mean_x * mean_y
        # less than this is what rounding leaves of the difference
        flat = variances <= 1e-14 * (xx + yy)
        variances[flat] = 0
        return quality_index(product, xy - product, means, variances)


def windowed_moments(
    x: FloatArray, y: FloatArray, weights: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return the windowed sums of x, y, x^2, y^2 and xy."""
    return (
        window_sum(x, weights),
        window_sum(y, weights),
        window_sum(x * x, weights),
        window_sum(y * y, weights),
        window_sum(x * y, weights),
    )


def quality_index(
    product: FloatArray, covariance: FloatArray, means: FloatArray, variances: FloatArray
) -> FloatArray:
    """Return 4 sxy mx my / ((sx^2 + sy^2)(mx^2 + my^2)) with Wang and Bovik's rules for zeros.

    Args:
        product: mx my.
        covariance: sxy.
        means: mx^2 + my^2.
        variances: sx^2 + sy^2.
    """
    index = np.ones_like(means)
    np.divide(2 * product, means, out=index, where=(variances == 0) & (means != 0))
    whole = means * variances
    np.divide(4 * covariance * product, whole, out=index, where=whole != 0)
    return index
