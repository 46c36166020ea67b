"""Spectral responses as weights over a cube's bands, and how much of each response a cube covers."""

from __future__ import annotations

import dataclasses
import math
import warnings
from dataclasses import dataclass

import numpy as np

from spectralift_cli.core.cube import BoolArray, FloatArray
from spectralift_cli.core.errors import DataError, SpectraliftWarning
from spectralift_cli.core.sensors import documented_bands

REFUSED_BELOW = 0.5
WARNED_BELOW = 0.95

# a distance between neighbours of up to this many band widths is sampling, beyond it a gap: one
# missing band (two widths) costs nothing, a removed water-vapour window does
_GAP_WIDTHS = 2.5
_MAX_WAVELENGTH_NM = 1e6
_MAX_FWHM_NM = 2e3
_SIGMA_PER_FWHM = 1 / math.sqrt(8 * math.log(2))
# a sum of weights this small, against the sum of their magnitudes, is rounding
_TINY = 1e-6


@dataclass(frozen=True, eq=False)
class Srf:
    """The response of M multispectral bands as weights over a cube's B bands: MSI = HSI @ weights.T.

    Args:
        weights: (M, B) float64, finite; each row sums to 1, except that the row of a band which the
            cube does not reach at all is zero (and is for `check_coverage` to refuse or drop).
        band_names: (M,) names.
        coverage: (M,) share of each response that the cube's bands cover, 0 to 1; None if only
            weights are known.
        source: where the response comes from, e.g. "gaussian-from-band-edges".
        kept: (M,) 0-based indices of these bands in the sensor before any were dropped, or None if
            none were.
        sensor_bands: how many bands `kept` was chosen from; None with it.

    Raises:
        DataError: the parts do not fit each other, or a row cannot be a response.
    """

    weights: FloatArray
    band_names: tuple[str, ...]
    coverage: FloatArray | None = None
    source: str = "weights"
    kept: tuple[int, ...] | None = None
    sensor_bands: int | None = None

    def __post_init__(self) -> None:
        weights = np.array(self.weights, dtype=np.float64)
        if weights.ndim != 2 or 0 in weights.shape:
            raise DataError(
                f"a spectral response needs (MSI bands, HSI bands), got {weights.shape}",
                "give a matrix with a row for each MSI band",
            )
        if len(self.band_names) != len(weights):
            raise DataError(
                f"{len(self.band_names)} band names for {len(weights)} responses",
                "name every MSI band once",
            )
        coverage = self.coverage
        if coverage is not None:
            coverage = np.array(coverage, dtype=np.float64)
            if coverage.shape != (len(weights),):
                raise DataError(
                    f"coverage of shape {coverage.shape} for {len(weights)} responses",
                    "give one coverage for each MSI band",
                )
            coverage.setflags(write=False)
        sums = weights.sum(axis=1)
        unreached = (weights == 0).all(axis=1) & (coverage is not None)
        if not np.isfinite(weights).all() or not np.allclose(
            sums[~unreached], 1, rtol=0, atol=1e-9
        ):
            raise DataError(
                f"the rows of a spectral response must sum to 1, these sum to {sums.tolist()}",
                "normalise the rows",
            )
        weights.setflags(write=False)
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "coverage", coverage)
        object.__setattr__(self, "band_names", tuple(self.band_names))

    @property
    def num_msi_bands(self) -> int:
        """M, the number of multispectral bands."""
        return len(self.weights)

    @property
    def num_hsi_bands(self) -> int:
        """B, the number of hyperspectral bands."""
        return int(self.weights.shape[1])

    def select(self, indices: tuple[int, ...]) -> Srf:
        """Return the response of some bands (0-based), remembering which they were."""
        before = self.kept or tuple(range(self.num_msi_bands))
        chosen = list(indices)
        return dataclasses.replace(
            self,
            weights=self.weights[chosen],
            band_names=tuple(self.band_names[i] for i in chosen),
            coverage=None if self.coverage is None else self.coverage[chosen],
            kept=tuple(before[i] for i in chosen),
            sensor_bands=self.sensor_bands or self.num_msi_bands,
        )


def normalise_rows(matrix: FloatArray, source: object) -> FloatArray:
    """Return a matrix (M, B) with every row divided by its sum (unless that is 1 but for rounding).

    Raises:
        DataError: a value is not finite, or a row's sum is negative or lost in rounding.
    """
    if not np.isfinite(matrix).all():
        raise DataError(
            f"{source}: the response has {int((~np.isfinite(matrix)).sum())} values that are not "
            "finite",
            "a response is made of finite numbers",
        )
    # dividing by the largest magnitude first keeps the sums of huge and of subnormal values finite
    peaks = np.abs(matrix).max(axis=1, keepdims=True)
    scaled = matrix / np.where(peaks > 0, peaks, 1)
    sums = scaled.sum(axis=1)
    for row, (total, magnitude) in enumerate(zip(sums, np.abs(scaled).sum(axis=1), strict=True)):
        if total <= _TINY * magnitude:
            kind = "negative" if total < -_TINY * magnitude else "zero or nearly so"
            raise DataError(
                f"{source}: the response of MSI band {row + 1} sums to "
                f"{total * peaks[row, 0]:.6g}, which is {kind}, so it cannot be normalised",
                "remove the band or mend its response",
            )
    # rows that sum to 1 already keep their last digit, so that a written response reads back exactly
    with np.errstate(over="ignore"):  # a sum beyond all floats is not 1
        exact = np.abs(matrix.sum(axis=1) - 1) <= 1e-12
    normalised: FloatArray = np.where(exact[:, None], matrix, scaled / sums[:, None])
    return normalised


def documented_srf(num_msi_bands: int, wavelengths_nm: FloatArray, fwhm_factor: float) -> Srf:
    """Lay the Gaussian responses of a documented sensor over wavelengths.

    w[m, b] = exp(-(wavelength[b] - centre[m])^2 / 2 std[m]^2), std = (high - low) / fwhm_factor,
    rows divided by their sum. Source: HyperBench 0.1.0.

    Args:
        num_msi_bands: 1, 3, 4, 8 or 16; see `DOCUMENTED_BY_BAND_COUNT`.
        wavelengths_nm: (B,) true band centres, or `invented_wavelengths`, over which coverage says
            nothing and need not be checked.
        fwhm_factor: positive.

    Raises:
        DataError: no such sensor, or a wavelength that is not finite and positive.
    """
    from scipy.special import ndtr  # which inference does without

    bands = documented_bands(num_msi_bands)
    wavelengths = _checked_wavelengths(wavelengths_nm, "the cube")
    centres = np.array([band.centre_nm for band in bands])
    std = np.array([band.high_nm - band.low_nm for band in bands]) / fwhm_factor
    exponents = -(((wavelengths - centres[:, None]) / std[:, None]) ** 2) / 2  # (M, B)
    response = np.exp(exponents)
    sums = response.sum(axis=1, keepdims=True)
    weights = np.divide(response, sums, out=np.zeros_like(response), where=sums > 1e-30)
    coverage = np.zeros(len(bands))
    for low, high in covered_intervals(wavelengths, None):
        coverage += ndtr((high - centres) / std) - ndtr((low - centres) / std)
    names = tuple(band.name for band in bands)
    return Srf(weights, names, np.clip(coverage, 0, 1), "gaussian-from-band-edges")


def invented_wavelengths(num_msi_bands: int, bands: int) -> FloatArray:
    """Return the (bands,) wavelengths that the published generator gives to any cube, in nm.

    linspace(lowest edge, highest edge, bands) of the documented sensor. Source: HyperBench 0.1.0.

    Raises:
        DataError: no documented sensor has that many bands.
    """
    edges = documented_bands(num_msi_bands)
    low = min(band.low_nm for band in edges)
    return np.linspace(low, max(band.high_nm for band in edges), bands)


def band_spacing_nm(wavelengths_nm: FloatArray) -> FloatArray:
    """Return the (B,) distance of each band to the nearer of its neighbours, 0 if it has none.

    Neighbours are those in the file's order: where two detectors overlap, the bands of one lie
    arbitrarily close to those of the other, which says nothing of their widths. Steps against the
    prevailing direction are therefore ignored; where more than a quarter are such, the bands are in
    no order and sorted first.
    """
    steps = np.diff(wavelengths_nm)
    if not steps.size:
        return np.zeros_like(wavelengths_nm)
    if np.median(np.sign(steps)) < 0:
        steps = -steps
    if (steps < 0).mean() > 0.25:
        order = np.argsort(wavelengths_nm, kind="stable")
        spacing = np.empty_like(wavelengths_nm)
        spacing[order] = band_spacing_nm(wavelengths_nm[order])
        return spacing
    usable = np.where(steps > 0, steps, np.inf)
    either = np.minimum(np.append(usable, np.inf), np.append(np.inf, usable))  # (B,)
    known = usable[np.isfinite(usable)]
    return np.where(np.isfinite(either), either, np.median(known) if known.size else 0.0)


def covered_intervals(
    wavelengths_nm: FloatArray, fwhm_nm: FloatArray | None, bad_bands: BoolArray | None = None
) -> list[tuple[float, float]]:
    """Return the ranges of wavelengths that a cube's bands cover, ascending and disjoint, in nm.

    A band's own width is the larger of its spacing and its FWHM. It covers half its spacing (half
    its FWHM if it is the only band) to both sides. Between neighbours (in order of wavelength) everything is covered as long as they
    are at most 2.5 own widths apart (of the wider one); a larger distance is a gap, covered only
    half a band spacing into it from either side.

    Args:
        wavelengths_nm: (B,) band centres in any order.
        fwhm_nm: (B,) widths, or None.
        bad_bands: (B,) True for bands that cover nothing, or None.
    """
    spacing = band_spacing_nm(wavelengths_nm)
    width = spacing if fwhm_nm is None else np.maximum(spacing, fwhm_nm)
    reach = np.where(spacing > 0, spacing, width) / 2
    order = np.argsort(wavelengths_nm, kind="stable")
    if bad_bands is not None:
        order = order[~bad_bands[order]]
    intervals: list[tuple[float, float]] = []
    before = -1
    for band in order:
        low, high = wavelengths_nm[band] - reach[band], wavelengths_nm[band] + reach[band]
        if before >= 0:
            distance = wavelengths_nm[band] - wavelengths_nm[before]
            near = distance <= _GAP_WIDTHS * max(width[band], width[before])
            if near or low <= intervals[-1][1]:
                start, stop = intervals.pop()
                low, high = min(start, low), max(stop, high)
        intervals.append((float(low), float(high)))
        before = band
    return intervals


def fold_curve(
    curve_nm: FloatArray,
    curve: FloatArray,
    band_names: tuple[str, ...],
    wavelengths_nm: FloatArray,
    fwhm_nm: FloatArray | None,
    source: str = "curve",
    *,
    bad_bands: BoolArray | None = None,
) -> Srf:
    """Fold tabulated response curves onto a cube's bands.

    w[m, b] = integral of R_m(l) exp(-4 ln 2 (l - centre_b)^2 / fwhm_b^2) dl, rows divided by their
    sum. The Gaussians have equal peaks, so that a wide band, which stands for more of the spectrum,
    weighs more. R is linear between its samples and 0 outside; negative samples count as 0. The
    coverage is the share of the integral of R_m inside `covered_intervals`.

    Args:
        curve_nm: (K,) wavelengths of the samples, strictly ascending.
        curve: (K, M) samples, any scale.
        band_names: (M,) names.
        wavelengths_nm: (B,) band centres of the cube, in any order.
        fwhm_nm: (B,) full widths at half maximum; None to take the band spacing.
        source: what to call the response.
        bad_bands: (B,) True for bands that take no part, or None: their weights are 0, the rows sum
            to 1 over the others, and coverage counts only these.

    Raises:
        DataError: wavelengths or samples are unusable, a response has no positive integral, a width
            is neither known nor to be had from the spacing, or all bands are bad.
    """
    centres = _checked_wavelengths(wavelengths_nm, "the cube")
    good = np.ones(centres.size, np.bool_) if bad_bands is None else ~bad_bands
    if not good.any():
        raise DataError(
            f"all {centres.size} bands of the cube are flagged as bad",
            "mend its list of bad bands",
        )
    widths = band_spacing_nm(centres) if fwhm_nm is None else np.asarray(fwhm_nm, np.float64)
    if widths.shape != centres.shape or not ((widths > 0) & (widths <= _MAX_FWHM_NM)).all():
        raise DataError(
            f"band widths from {widths.min():g} to {widths.max():g} nm cannot take a response "
            f"(they must lie above 0 and below {_MAX_FWHM_NM:g} nm)",
            "give centre and FWHM of every band with --wavelengths",
        )
    curve_nm = _checked_wavelengths(curve_nm, source)
    if curve_nm.size < 2 or (np.diff(curve_nm) <= 0).any():
        raise DataError(
            f"{source}: a response curve needs two or more wavelengths in ascending order, "
            "each given once",
            "sort the rows by wavelength",
        )
    if not np.isfinite(curve).all():
        raise DataError(f"{source}: the response holds values that are not finite", "mend the file")
    positive = np.maximum(curve, 0)
    positive = positive / np.maximum(positive.max(axis=0), np.finfo(float).tiny)  # (K, M)
    total = np.trapezoid(positive, curve_nm, axis=0)
    if not (total > 0).all():
        empty = ", ".join(
            name for name, area in zip(band_names, total, strict=True) if not area > 0
        )
        raise DataError(f"{source}: no positive response in {empty}", "remove the band")
    weights = np.stack(
        [
            _folded(curve_nm, positive, centre, width)
            for centre, width in zip(centres, widths, strict=True)
        ],
        axis=1,
    )  # (M, B)
    weights[:, ~good] = 0
    sums = weights.sum(axis=1, keepdims=True)
    weights = np.divide(weights, sums, out=np.zeros_like(weights), where=sums > 1e-9)
    intervals = covered_intervals(centres, fwhm_nm, ~good)
    covered = _integral_inside(curve_nm, positive, intervals)
    return Srf(weights, band_names, np.clip(covered / total, 0, 1), source)


def _folded(curve_nm: FloatArray, curve: FloatArray, centre: float, fwhm: float) -> FloatArray:
    """Return the (M,) integrals of the curves against one band's Gaussian."""
    # 2.5 FWHM are 5.9 standard deviations; 20 points a width integrate a Gaussian to rounding
    low = max(centre - 2.5 * fwhm, curve_nm[0])
    high = min(centre + 2.5 * fwhm, curve_nm[-1])
    if low >= high:
        return np.zeros(curve.shape[1])
    count = math.ceil((high - low) / min(0.25, fwhm / 20)) + 1
    # the curve's own samples join the grid, so that no line or kink falls between its points
    knots = curve_nm[(curve_nm > low) & (curve_nm < high)]
    grid = np.union1d(np.linspace(low, high, count), knots)
    gauss = np.exp(-(((grid - centre) / (_SIGMA_PER_FWHM * fwhm)) ** 2) / 2)
    samples = [np.interp(grid, curve_nm, column) for column in curve.T]
    return np.asarray(np.trapezoid(np.stack(samples) * gauss, grid, axis=1), dtype=np.float64)


def _integral_inside(
    curve_nm: FloatArray, curve: FloatArray, intervals: list[tuple[float, float]]
) -> FloatArray:
    """Return the (M,) integrals of piecewise linear curves over the union of intervals, exactly."""
    inside = np.zeros(curve.shape[1])
    for low, high in intervals:
        start, stop = max(low, curve_nm[0]), min(high, curve_nm[-1])
        if start >= stop:
            continue
        # a curve is linear between its samples, so that trapezoids between them are exact
        knots = np.concatenate([[start], curve_nm[(curve_nm > start) & (curve_nm < stop)], [stop]])
        for band, column in enumerate(curve.T):
            inside[band] += np.trapezoid(np.interp(knots, curve_nm, column), knots)
    return inside


def over_used_bands(srf: Srf, used: BoolArray) -> FloatArray:
    """Return the (M, used) weights over the bands of a cube that have values, rows summing to 1.

    Raises:
        DataError: a band of the MSI lies on the others by more than half.
    """
    weights = srf.weights[:, used]
    shares = weights.sum(axis=1)
    for name, share in zip(srf.band_names, shares, strict=True):
        if share < REFUSED_BELOW:
            raise DataError(
                f"{share:.0%} of MSI band {name}'s response lies on bands of the LR-HSI that have "
                f"values, at least {REFUSED_BELOW:.0%} must",
                "leave the band out of the SRF and the MSI (--drop-uncovered-bands)",
            )
        if share < WARNED_BELOW:
            warnings.warn(
                f"{share:.0%} of MSI band {name}'s response lies on bands of the LR-HSI that have "
                "values; the rest is left out",
                SpectraliftWarning,
                stacklevel=3,
            )
    normalised: FloatArray = weights if used.all() else weights / shares[:, None]
    return normalised


def check_coverage(srf: Srf, *, drop: bool = False) -> Srf:
    """Refuse or drop the MSI bands that the cube's wavelengths do not cover.

    Below 0.5 a band is refused, or dropped with a warning if `drop`; below 0.95 it is kept with a
    warning. Rows are normalised over the cube's bands as they are, so the others stay unchanged.

    Args:
        srf: as `documented_srf` or `read_srf` returned it; without coverage nothing is checked.
        drop: drop instead of refusing.

    Returns:
        The response of the bands that remain; its `kept` names them if any were dropped.

    Raises:
        DataError: a band is covered less than half and `drop` is false, or none would remain.
    """
    if srf.coverage is None:
        return srf
    low = [i for i, share in enumerate(srf.coverage) if not share >= REFUSED_BELOW]
    partly = [i for i, share in enumerate(srf.coverage) if REFUSED_BELOW <= share < WARNED_BELOW]
    if low and (not drop or len(low) == srf.num_msi_bands):
        remedy = "leave them out with --drop-uncovered-bands"
        if len(low) == srf.num_msi_bands:
            remedy = "check the wavelengths of the cube and that this is the right sensor"
        raise DataError(
            f"{len(low)} of {srf.num_msi_bands} MSI bands are covered less than {REFUSED_BELOW} "
            f"by the cube's wavelengths: {_listing(srf, low)}",
            remedy,
        )
    if partly:
        warnings.warn(
            f"MSI bands covered less than {WARNED_BELOW} by the cube's wavelengths: "
            f"{_listing(srf, partly)}",
            SpectraliftWarning,
            stacklevel=2,
        )
    if not low:
        return srf
    warnings.warn(
        f"MSI bands dropped, covered less than {REFUSED_BELOW} by the cube's wavelengths: "
        f"{_listing(srf, low)}",
        SpectraliftWarning,
        stacklevel=2,
    )
    return srf.select(tuple(i for i in range(srf.num_msi_bands) if i not in low))


def _listing(srf: Srf, indices: list[int]) -> str:
    if srf.coverage is None:
        return ""
    return ", ".join(f"{srf.band_names[i]} ({srf.coverage[i]:.2f})" for i in indices)


def _checked_wavelengths(wavelengths_nm: FloatArray, source: str) -> FloatArray:
    array: FloatArray = np.asarray(wavelengths_nm, dtype=np.float64).ravel()
    if not array.size or not ((array > 0) & (array <= _MAX_WAVELENGTH_NM)).all():
        raise DataError(
            f"{source}: wavelengths must be finite, above 0 and at most {_MAX_WAVELENGTH_NM:g} nm",
            "give them in nanometres with --wavelengths",
        )
    return array
