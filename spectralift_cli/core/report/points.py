"""Pixels that are worth a look, chosen from the data alone, always the same ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spectralift_cli.core.cube import BoolArray, FloatArray
from spectralift_cli.core.report.lattice import Lattice
from spectralift_cli.core.report.survey import FloatBlock

# red and near infrared, in which vegetation differs most (Rouse et al. 1974)
_RED_NM = (600.0, 700.0)
_INFRARED_NM = (750.0, 1000.0)
_LEAST_NDVI = 0.3
# the very brightest and darkest pixels are glints and faults more often than ground
_TAIL_PERCENT = 2.0
# points lie at least this part of the image's longer side apart
_APART = 0.1
# and this part of a side away from the edges, where there are such
_EDGE = 0.04


@dataclass(frozen=True)
class Point:
    """A pixel of the HR grid.

    Args:
        number: from 1, as it is marked.
        row: 0-based.
        col: 0-based.
        why: what it was chosen for.
    """

    number: int
    row: int
    col: int
    why: str


def choose_points(
    msi: FloatBlock,
    usable: BoolArray,
    lattice: Lattice,
    *,
    centres_nm: FloatArray | None = None,
    rmse: FloatArray | None = None,
    most: int = 6,
) -> list[Point]:
    """Choose pixels: largest error, vegetation, bright, dark, typical, then unlike all the others.

    Args:
        msi: (r, c, M) the MSI on the lattice, in units.
        usable: (r, c) pixels with values in every image.
        lattice: of the HR grid.
        centres_nm: (M,) of its bands, or None.
        rmse: (r, c) error against the ground truth, or None.
        most: how many.

    Returns:
        At most `most` points, fewer in a small image, none where nothing is usable.
    """
    usable = usable & np.isfinite(msi).all(axis=2)
    if not usable.any():
        return []
    inner = usable & _within_edges(usable.shape)
    usable = inner if inner.any() else usable
    rows, cols = np.nonzero(usable)
    spectra = msi[rows, cols].astype(np.float64)  # (N, M)
    spread = spectra.std(axis=0)
    scaled = (spectra - spectra.mean(axis=0)) / np.where(spread > 0, spread, 1)
    bright = spectra.mean(axis=1)
    ranks = np.argsort(np.argsort(bright, kind="stable"), kind="stable") / max(1, bright.size - 1)
    typical = np.square(scaled - np.median(scaled, axis=0)).sum(axis=1)
    # what is looked for, the smaller the better; infinite where it is not to be found
    wishes: list[tuple[str, FloatArray]] = []
    if rmse is not None:
        errors = rmse[rows, cols]
        wishes.append(("largest error", np.where(np.isfinite(errors), -errors, np.inf)))
    ndvi = _ndvi(spectra, centres_nm)
    if ndvi is not None:
        wishes.append(("greenest by NDVI", np.where(ndvi >= _LEAST_NDVI, -ndvi, np.inf)))
    wishes += [
        ("bright", np.abs(ranks - (1 - _TAIL_PERCENT / 100))),
        ("dark", np.abs(ranks - _TAIL_PERCENT / 100)),
        ("most typical spectrum", typical),
    ]
    far = np.hypot(*lattice.shape) * _APART
    at = np.stack([lattice.rows[rows], lattice.cols[cols]], axis=1).astype(np.float64)
    free = np.ones(rows.size, bool)
    chosen: list[tuple[int, str]] = []

    def take(badness: FloatArray, why: str) -> None:
        cost = np.where(free, badness, np.inf)
        best = int(cost.argmin())
        if np.isfinite(cost[best]):
            chosen.append((best, why))
            free[np.hypot(*(at - at[best]).T) < far] = False

    for why, badness in wishes[:most]:
        take(badness, why)
    central = (ranks > _TAIL_PERCENT / 100) & (ranks < 1 - _TAIL_PERCENT / 100)
    while len(chosen) < most and (free & central).any():
        nearest = np.full(rows.size, np.inf)
        for index, _ in chosen:
            nearest = np.minimum(nearest, np.square(scaled - scaled[index]).sum(axis=1))
        take(np.where(central, -nearest, np.inf), "unlike the other points")
    return [
        Point(number, int(at[index, 0]), int(at[index, 1]), why)
        for number, (index, why) in enumerate(chosen, 1)
    ]


def _within_edges(shape: tuple[int, ...]) -> BoolArray:
    """Tell which pixels have room around them for their mark."""
    sides = []
    for size in shape:
        margin = int(size * _EDGE)
        sides.append((np.arange(size) >= margin) & (np.arange(size) < size - margin))
    inside: BoolArray = np.logical_and.outer(*sides)
    return inside


def _ndvi(spectra: FloatArray, centres_nm: FloatArray | None) -> FloatArray | None:
    """Return (N,) (infrared - red) / (infrared + red), or None where the MSI lacks one of them."""
    if centres_nm is None:
        return None
    pair = []
    for low, high in (_RED_NM, _INFRARED_NM):
        (inside,) = np.nonzero((centres_nm >= low) & (centres_nm <= high))
        if not inside.size:
            return None
        pair.append(spectra[:, inside[0]])
    red, infrared = pair
    total = infrared + red
    ndvi: FloatArray = np.full(total.shape, -1.0)
    np.divide(infrared - red, total, out=ndvi, where=total > 0)
    return ndvi
