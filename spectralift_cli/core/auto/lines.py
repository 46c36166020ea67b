"""What the candidates of preset `auto` see of a pixel, and the line that each begins with.

u = [MSI spectrum (M), scores of the coarse prior (K)], the latter where the candidate has a prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spectralift_cli.core.coarse import Subspace, product

FloatPixels = NDArray[np.float32]
Floats = NDArray[np.float64]

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_FLAT = 1e-4  # a band that varies by less than this part of the liveliest one says nothing


@dataclass(frozen=True, eq=False)
class Features:
    """What a candidate sees, u = [MSI, scores], and how it makes features of it.

    Args:
        matrix: (seen, D); z = u @ matrix + shift.
        shift: (D,)
        lines: how many of the features the linear part uses, the first ones.
        base: (seen, B) and (B,) what the linear part corrects: nothing, or the prior itself.
        noise: (M, D); the HR-MSI's noise in the features is M white dimensions @ this.
    """

    matrix: Floats
    shift: Floats
    lines: int
    base: tuple[Floats, Floats]
    noise: Floats

    def __call__(self, u: FloatPixels) -> FloatPixels:
        """Return (n, D) features of (n, seen)."""
        return (product(u, self.matrix) + self.shift).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Line:
    """The linear part over u: u @ matrix + constant."""

    features: Features
    matrix: Floats
    constant: Floats

    def __call__(self, u: FloatPixels) -> FloatPixels:
        """Return (n, B) spectra of (n, seen)."""
        return (product(u, self.matrix) + self.constant).astype(np.float32)


def _deviation(values: FloatPixels) -> tuple[Floats, Floats]:
    """Return mean and 1 / standard deviation of columns, 0 for one that hardly varies."""
    deviation = values.std(axis=0, dtype=np.float64)
    lively = deviation > _FLAT * max(float(deviation.max(initial=0)), 1e-9)
    inverse = np.where(lively, 1 / np.where(lively, deviation, 1), 0)
    return values.mean(axis=0, dtype=np.float64), inverse


def pixel_features(lr_msi: FloatPixels, bands: int, noise: Floats) -> Features:
    """Return the features of a candidate without a prior: the MSI (n, M), standardised.

    Args:
        lr_msi: (n, M).
        bands: B, of the spectra.
        noise: (M, M); the HR-MSI's noise is M white dimensions @ this.
    """
    mean, inverse = _deviation(lr_msi)
    count = lr_msi.shape[1]
    base = np.zeros((count, bands)), np.zeros(bands)
    return Features(np.diag(inverse), -mean * inverse, count, base, noise * inverse)


def prior_features(u: FloatPixels, srf: Floats, subspace: Subspace, noise: Floats) -> Features:
    """Features of u = [MSI (M), scores (K)]: the MSI, what it has beyond the prior's, the scores."""
    count, seen = len(srf), len(subspace.basis)
    mean, inverse = _deviation(u[:, :count])
    matrix = np.zeros((u.shape[1], 2 * count + seen))
    shift = np.zeros(2 * count + seen)
    matrix[:count, :count], shift[:count] = np.diag(inverse), -mean * inverse
    matrix[:count, count : 2 * count] = np.eye(count)
    matrix[count:, count : 2 * count] = -subspace.basis @ srf.T
    shift[count : 2 * count] = -subspace.mean @ srf.T
    beyond = u @ matrix[:, count : 2 * count] + shift[count : 2 * count]
    _, inverse = _deviation(beyond.astype(np.float32))
    matrix[:, count : 2 * count] *= inverse
    shift[count : 2 * count] *= inverse
    matrix[count : count + seen, 2 * count :] = np.eye(seen)
    base = np.vstack([np.zeros((count, len(subspace.mean))), subspace.basis])
    spread = product(noise, matrix[:count])
    return Features(matrix, shift, 2 * count, (base, subspace.mean), spread)


def fit_lines(
    u: FloatPixels, y: FloatPixels, features: Features, ridges: Sequence[float]
) -> list[Line]:
    """Fit by least squares with each ridge, relative to the features' variance of 1."""
    z = with_ones(features(u)[:, : features.lines])
    target = y - (product(u, features.base[0]) + features.base[1])
    gram, moment = product(z.T, z), product(z.T, target)
    lines = []
    for ridge in ridges:
        solved = np.linalg.solve(gram + penalty(features, ridge, len(z)), moment)
        slope = solved[:-1]
        used = features.matrix[:, : features.lines]
        constant = features.base[1] + solved[-1] + features.shift[: features.lines] @ slope
        lines.append(Line(features, features.base[0] + used @ slope, constant))
    return lines


def with_ones(z: FloatPixels) -> Floats:
    """Return features (n, D + 1) in float64 with a column of ones behind them."""
    return np.hstack([z.astype(np.float64), np.ones((len(z), 1))])


def penalty(features: Features, ridge: float, pixels: int) -> Floats:
    """Return what is added to the Gram matrix of `with_ones` features; the constant is free.

    That is the ridge, and what the HR-MSI's noise would add to these pixels, which have none.
    """
    diagonal = np.full(features.lines + 1, ridge * pixels + 1e-12)
    diagonal[-1] = 1e-9
    added = np.diag(diagonal)
    spread = features.noise[:, : features.lines]
    added[:-1, :-1] += pixels * product(spread.T, spread)
    return added
