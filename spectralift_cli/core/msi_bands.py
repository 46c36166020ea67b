"""Whether an MSI's bands are those of a spectral response, in its order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spectralift_cli.core.cube import CubeMeta, FloatArray
from spectralift_cli.core.cubeio import CubeReader, SelectedReader
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.sensors.response import Srf

# two bands are only said to be exchanged if another one fits this much better: nominal centres lie
# some nm from a response's centroid, and sensors have bands a few nm apart
_NEARER_TIMES = 3.0
_NEARER_NM = 10.0
_LISTED = 16


def without_dropped(msi: CubeReader, srf: Srf) -> CubeReader:
    """Return an MSI without the bands that were dropped from its response, if it has them still."""
    if srf.kept is not None and msi.meta.bands == srf.sensor_bands:
        return SelectedReader(msi, srf.kept)
    return msi


def check_bands(
    msi: CubeMeta, srf: Srf, wavelengths_nm: FloatArray | None, source: object, taker: str
) -> None:
    """Refuse an MSI whose bands are not those of a response, or in another order.

    The order is told by wavelengths where both are known, else by names where both have the same.

    Args:
        msi: metadata of the MSI, without the bands that were dropped from the response.
        srf: the response.
        wavelengths_nm: (B,) of the hyperspectral bands that it weighs, or None.
        source: the MSI's file, for messages.
        taker: what takes the bands, for messages, e.g. "the response".

    Raises:
        DataError: another number of bands, or other bands in their places.
    """
    centroids = None if wavelengths_nm is None else srf.weights @ wavelengths_nm  # (M,)
    if msi.bands != srf.num_msi_bands:
        raise DataError(
            f"{source}: has {msi.bands} bands{_own(msi)}, but {taker} takes {srf.num_msi_bands}: "
            f"{_expected(srf, centroids)}",
            f"choose them in this order: spectralift convert {source} OUT --bands "
            f"{_choice(msi, srf, centroids)}",
        )
    order = _order(msi, srf, centroids)
    if order is not None and (order != np.arange(msi.bands)).any():
        raise DataError(
            f"{source}: its bands{_own(msi)} are in another order than {taker} takes them: "
            f"{_expected(srf, centroids)}",
            f"bring them into that order: spectralift convert {source} OUT --bands "
            f"{','.join(str(i + 1) for i in order)}",
        )


def _order(msi: CubeMeta, srf: Srf, centroids_nm: FloatArray | None) -> NDArray[np.intp] | None:
    """Return (M,) which MSI band (0-based) is each of the response's; None if nothing tells."""
    if msi.wavelengths_nm is not None and centroids_nm is not None:
        apart = np.abs(centroids_nm[:, None] - msi.wavelengths_nm)  # (M, M)
        nearest = _nearest_pairs(apart)
        rows = np.arange(msi.bands, dtype=np.intp)
        better = _NEARER_TIMES * apart[rows, nearest] + _NEARER_NM < apart.diagonal()
        return nearest if better.any() else rows
    if msi.band_names is None:
        return None
    ours, theirs = _names(srf.band_names), _names(msi.band_names)
    if len(set(ours)) < len(ours) or set(ours) != set(theirs):
        return None
    return np.array([theirs.index(name) for name in ours], dtype=np.intp)


def _choice(msi: CubeMeta, srf: Srf, centroids_nm: FloatArray | None) -> str:
    """Return what `--bands` would take to choose the response's bands, as far as that is known."""
    if msi.bands > srf.num_msi_bands:
        if msi.band_names is not None:
            ours, theirs = _names(srf.band_names), _names(msi.band_names)
            if set(ours) <= set(theirs) and len(set(theirs)) == len(theirs):
                return ",".join(str(theirs.index(name) + 1) for name in ours)
        if msi.wavelengths_nm is not None and centroids_nm is not None:
            apart = np.abs(centroids_nm[:, None] - msi.wavelengths_nm)
            return ",".join(str(i + 1) for i in _nearest_pairs(apart))
    return "LIST"


def _nearest_pairs(apart: FloatArray) -> NDArray[np.intp]:
    """Return for each of our bands (rows) theirs (columns), so that the distances' sum is least."""
    from scipy.optimize import linear_sum_assignment  # which takes a while

    _, nearest = linear_sum_assignment(apart)
    found: NDArray[np.intp] = nearest
    return found


def _names(names: tuple[str, ...]) -> list[str]:
    return [name.strip().casefold() for name in names]


def _expected(srf: Srf, centroids_nm: FloatArray | None) -> str:
    centres = [""] * srf.num_msi_bands
    if centroids_nm is not None:
        centres = [f" ({centre:.0f} nm)" for centre in centroids_nm]
    return _listing([name + at for name, at in zip(srf.band_names, centres, strict=True)])


def _own(msi: CubeMeta) -> str:
    if msi.wavelengths_nm is not None:
        return f" ({_listing([f'{centre:.0f}' for centre in msi.wavelengths_nm])} nm)"
    return "" if msi.band_names is None else f" ({_listing(list(msi.band_names))})"


def _listing(words: list[str]) -> str:
    more = len(words) - _LISTED
    return ", ".join(words[:_LISTED]) + (f" and {more} more" if more > 0 else "")
