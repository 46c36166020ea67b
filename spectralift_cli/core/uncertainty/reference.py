"""What a model was trained on, in a few numbers, and what a pixel shows against it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spectralift_cli.core.coarse import product
from spectralift_cli.core.cube import FloatArray

FloatPixels = NDArray[np.float32]

LANDMARKS = 256
# below this part of the largest variance a direction of the MSI is noise
_VARIANCE_FLOOR = 1e-3
_RIDGE = 1e-6
_BLOCK = 4096
# of a typical value, where a logarithm of a small quantity levels off
_FLOOR_SHARE = 0.05
# the first columns of `Reference.features`; the whitened spectrum follows
BRIGHTNESS, DISTANCE, DEPARTURE, MISMATCH = range(4)
SPECTRUM = 4


@dataclass(frozen=True, eq=False)
class Reference:
    """The training pixels of a model, summarised.

    Args:
        centre: (M,) their mean.
        whitening: (M, M), (x - centre) @ whitening has about unit variance.
        landmarks: (L, M) whitened spectra that stand for all of them, at most 256.
        line: (M + 1, B) least squares from the MSI spectrum and 1 to the HSI spectrum.
        floors: (4,) below which brightness, distance, departure and mismatch count as this.
    """

    centre: FloatArray
    whitening: FloatArray
    landmarks: FloatArray
    line: FloatArray
    floors: FloatArray

    @classmethod
    def of(cls, x: FloatPixels, y: FloatPixels) -> Reference:
        """Summarise training pairs (N, M) and (N, B), scaled."""
        centre = x.mean(axis=0, dtype=np.float64)
        apart = x - centre
        covariance = product(apart.T, apart) / len(x)
        variances, axes = np.linalg.eigh(covariance)
        floor = max(_VARIANCE_FLOOR * float(variances[-1]), 1e-12)
        whitening = axes / np.sqrt(np.maximum(variances, floor))
        landmarks = _spread(product(apart, whitening), LANDMARKS)
        ones = np.hstack([x.astype(np.float64), np.ones((len(x), 1))])
        gram = product(ones.T, ones)
        gram += np.diag(np.full(len(gram), _RIDGE * float(np.trace(gram)) / len(gram)))
        line = np.linalg.solve(gram, product(ones.T, y))
        fitted = product(ones, line)
        spread = float(np.sqrt(np.square(fitted - y).mean())) + 1e-9
        level = float(np.abs(x).mean()) + 1e-9
        floors = np.array([level, 1.0, spread, spread]) * _FLOOR_SHARE
        return cls(centre, whitening, landmarks, np.asarray(line, np.float64), floors)

    def distance(self, x: FloatPixels) -> FloatArray:
        """Return (n,) how far MSI spectra (n, M) lie from the nearest landmark, whitened."""
        out = np.empty(len(x))
        squares = np.square(self.landmarks).sum(axis=1)
        for start in range(0, len(x), _BLOCK):
            z = product(x[start : start + _BLOCK] - self.centre, self.whitening)
            square = np.square(z).sum(axis=1)[:, None] + squares - 2 * product(z, self.landmarks.T)
            out[start : start + _BLOCK] = np.sqrt(np.maximum(square.min(axis=1), 0))
        return out

    def features(self, x: FloatPixels, estimate: FloatPixels, srf: FloatArray) -> FloatArray:
        """Return what errors are expected by, (n, 4 + M).

        Logarithms of the brightness, of the distance from what was seen, of how far the estimate
        departs from the linear one and of how far it departs, seen through the response, from the
        MSI; then the whitened spectrum.

        Args:
            x: (n, M) MSI spectra, scaled.
            estimate: (n, B) HSI spectra, scaled.
            srf: (M, B) response over these bands.
        """
        line = product(x, self.line[:-1]) + self.line[-1]
        raw = np.stack([
            np.abs(x).mean(axis=1),
            self.distance(x),
            np.sqrt(np.square(estimate - line).mean(axis=1)),
            np.sqrt(np.square(product(estimate, np.ascontiguousarray(srf.T)) - x).mean(axis=1)),
        ], axis=1)  # fmt: skip
        logs = np.log(raw + self.floors)
        return np.hstack([logs, product(x - self.centre, self.whitening)])


def _spread(z: FloatArray, count: int) -> FloatArray:
    """Return up to `count` points, each the farthest from those before it (Gonzalez 1985)."""
    chosen = [int(np.square(z).sum(axis=1).argmin())]
    nearest = np.square(z - z[chosen[0]]).sum(axis=1)
    while len(chosen) < min(count, len(z)):
        farthest = int(nearest.argmax())
        if nearest[farthest] <= 0:  # the rest are copies
            break
        chosen.append(farthest)
        nearest = np.minimum(nearest, np.square(z - z[farthest]).sum(axis=1))
    return z[chosen]
