"""Whether two images are in the same units: their levels, band by band."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spectralift_cli.core.cube import FloatArray
from spectralift_cli.core.cubeio import CubeReader
from spectralift_cli.core.errors import DataError, SpectraliftWarning
from spectralift_cli.core.placement import Placement
from spectralift_cli.core.radiometry import Radiometry

PERCENTS = (1.0, 25.0, 50.0, 75.0, 99.0)
_COMPARED = (2, 4)  # the median, and the bright end, which water and shadow do not move
_SAMPLED_ROWS = 32
_SAMPLED_COLS = 4096  # in each: what is held must not grow with the width of a mosaic
# factors between two images of the same ground: up to the first, sensors, haze and extents explain
# them, from the second on only other units do
_ALIKE = 3.0
_UNLIKE = 30.0
_USUAL = (100.0, 1000.0, 10_000.0)


@dataclass(frozen=True, eq=False)
class SharpImage:
    """What training needs to know of an HR-MSI.

    Args:
        source: its file.
        placement: of the LR-HSI on it.
        levels: (M, 5) `PERCENTS` of its values in units over the overlap; None if none is valid.
        scale: stored value to unit.
    """

    source: object
    placement: Placement
    levels: FloatArray | None
    scale: float | FloatArray


def levels_of(pixels: NDArray[np.float32]) -> FloatArray | None:
    """Return the (M, 5) `PERCENTS` of pixels (N, M) that have values in all bands, or None."""
    valid = pixels[np.isfinite(pixels).all(axis=1)]
    if not len(valid):
        return None
    found: FloatArray = np.percentile(valid.astype(np.float64), PERCENTS, axis=0).T
    return found


def sample_levels(msi: CubeReader, placement: Placement | None) -> FloatArray | None:
    """Return the (M, 5) `PERCENTS` of some evenly spaced pixels of some rows of an MSI, in units.

    Args:
        msi: the image.
        placement: of the LR-HSI, whose area is looked at; None for the whole image.

    Returns:
        The levels, or None where no sampled pixel is valid.
    """
    meta = msi.meta
    rows, cols = slice(0, meta.rows), slice(0, meta.cols)
    if placement is not None:
        rows, cols = placement.overlap_hr()
    across = _evenly(cols, _SAMPLED_COLS)
    lines = [
        msi.read_units(slice(row, row + 1))[0, across]  # (n, M)
        for row in _evenly(rows, _SAMPLED_ROWS).tolist()
    ]
    return levels_of(np.concatenate(lines)) if lines else None


def _evenly(span: slice, most: int) -> NDArray[np.intp]:
    """Return up to so many indices in the middle of equal parts of a span."""
    count = span.stop - span.start
    parts = min(count, most)
    found: NDArray[np.intp] = span.start + (
        (np.arange(parts) + 0.5) * count / max(parts, 1)
    ).astype(np.intp)
    return found


def check_levels(
    lr_msi: FloatArray | None,
    hr_msi: FloatArray | None,
    band_names: tuple[str, ...],
    source: object,
    scale: float | FloatArray,
    radiometry: Radiometry | None = None,
) -> None:
    """Refuse an MSI in other units than the LR-HSI; warn where its radiometry is far off.

    Of each band the factor between medians or 99th percentiles is taken, whichever is nearer to 1.

    Args:
        lr_msi: (M, 5) levels of the LR-HSI seen through the response, or None if unknown.
        hr_msi: (M, 5) levels of the HR-MSI, or None.
        band_names: (M,)
        source: the HR-MSI's file, for messages.
        scale: its stored value to unit.
        radiometry: what will be applied to it, or None.

    Raises:
        DataError: the factor is 30 or more, or 1/30 or less.
    """
    if lr_msi is None or hr_msi is None:
        return
    if radiometry is not None:
        hr_msi = np.sort(radiometry.apply(hr_msi.T).T, axis=1)
    found = _typical(lr_msi, hr_msi)
    if found is None:
        return
    factors, typical = found
    factor, known = float(factors[typical]), np.flatnonzero(np.isfinite(factors))
    told = (
        f"the median of MSI band {band_names[typical]} is {hr_msi[typical, 2]:.4g} and that of "
        f"the LR-HSI seen through its response {lr_msi[typical, 2]:.4g}"
    )
    times = max(factor, 1 / factor)
    if times >= _UNLIKE:
        raise DataError(
            f"{source}: is in other units than the LR-HSI: {told}, a factor of {times:,.3g}",
            _remedy(source, factor, scale),
        )
    far = [i for i in known if not 1 / _ALIKE <= factors[i] <= _ALIKE]
    if far:
        listed = ", ".join(f"{band_names[i]} {factors[i]:.2g}" for i in far[:16])
        warnings.warn(
            f"{source}: its radiometry is far from the LR-HSI's, by factors of {listed}; "
            f"{told}. spectralift estimate finds gain and offset of each band",
            SpectraliftWarning,
            stacklevel=2,
        )


def check_alike(
    one: FloatArray | None,
    other: FloatArray | None,
    band_names: tuple[str, ...],
    sources: tuple[object, object],
    scale: float | FloatArray,
) -> None:
    """Refuse an LR-HSI in other units than the one that it is to be trained with.

    Args:
        one: (M, 5) levels of the first, seen through the response, or None if unknown.
        other: (M, 5) those of the other, or None.
        band_names: (M,)
        sources: their files, for messages.
        scale: stored value to unit of the other.

    Raises:
        DataError: the factor, see `check_levels`, is 30 or more, or 1/30 or less.
    """
    found = None if one is None or other is None else _typical(one, other)
    if one is None or other is None or found is None:
        return
    factors, typical = found
    factor = float(factors[typical])
    if (times := max(factor, 1 / factor)) >= _UNLIKE:
        raise DataError(
            f"{sources[1]}: is in other units than {sources[0]}: the medians of MSI band "
            f"{band_names[typical]}, seen through the response, are {other[typical, 2]:.4g} and "
            f"{one[typical, 2]:.4g}, a factor of {times:,.3g}",
            _remedy(sources[1], factor, scale),
        )


def _typical(one: FloatArray, other: FloatArray) -> tuple[FloatArray, int] | None:
    """Return the factor of every band, and the band of the middle one; None where none is known."""
    factors = _factors(one, other)
    known = np.flatnonzero(np.isfinite(factors))
    if not known.size:
        return None
    return factors, int(known[np.argsort(factors[known])[known.size // 2]])


def _factors(lr: FloatArray, hr: FloatArray) -> FloatArray:
    """Return (M,) factors from LR to HR levels; NaN where levels are not positive."""
    low, high = lr[:, _COMPARED], hr[:, _COMPARED]
    usable = (low > 0) & (high > 0)
    logs = np.full(low.shape, np.inf)
    logs[usable] = np.log(high[usable]) - np.log(low[usable])
    nearest = np.abs(logs).argmin(axis=1)
    found = logs[np.arange(len(logs)), nearest]
    factors: FloatArray = np.where(np.isfinite(found), np.exp(np.minimum(found, 700)), np.nan)
    return factors


def _remedy(source: object, factor: float, scale: float | FloatArray) -> str:
    times = max(factor, 1 / factor)
    usual = min(_USUAL, key=lambda number: abs(np.log(times / number)))
    if np.ndim(scale) or not 1 / _ALIKE <= times / usual <= _ALIKE * 1.2:
        return "bring both images into the same units: spectralift convert IN OUT --assign-scale S"
    meant = float(np.asarray(scale)) * (usual if factor < 1 else 1 / usual)
    return (
        f"if its values are meant {usual:,.0f} times {'larger' if factor < 1 else 'smaller'}: "
        f"spectralift convert {source} OUT --assign-scale {meant:g}"
    )
