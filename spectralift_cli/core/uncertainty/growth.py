"""How much larger errors are at HR pixels than at LR pixels, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

from spectralift_cli.core.coarse import product
from spectralift_cli.core.cube import FloatArray
from spectralift_cli.core.uncertainty.reference import (
    DEPARTURE,
    DISTANCE,
    MISMATCH,
    FloatPixels,
)

_RIDGE = 1e-3  # of standardised bands, per pixel: bands may be all but copies of each other
_STUDENT_STEPS, _NORMAL_STEPS = 41, 11


@dataclass(frozen=True)
class Growth:
    """The growth of errors from LR to HR pixels as a random variable, in natural logarithms.

    Args:
        mean: of what the witnesses tell.
        spread: standard deviation of another witness: sqrt(variance of the k witnesses (1 + 1/k)).
        freedom: k - 1 degrees of freedom.
    """

    mean: float
    spread: float
    freedom: int

    def steps(self, level_error: float) -> FloatArray:
        """Return equally likely values of the growth about its mean, the level's error added.

        Student's t, since the spread is itself found from k witnesses; the level is normal.

        Args:
            level_error: standard error of the logarithm of the errors that grow.
        """
        students = stdtrit(self.freedom, _middles(_STUDENT_STEPS)) * self.spread
        normals = ndtri(_middles(_NORMAL_STEPS)) * level_error
        out: FloatArray = (students[:, None] + normals).ravel()
        return out


def _middles(count: int) -> FloatArray:
    """Return the middles of `count` equal parts of 0..1."""
    return (np.arange(count) + 0.5) / count


def left_out(training: FloatPixels, x: FloatPixels) -> FloatArray:
    """Return (n,) how far each MSI band is from the line over the others, RMS over bands.

    The error of the fusion in small: some bands of a spectrum are told from others, by a rule that
    LR pixels teach. Here the truth is known at HR pixels, too.

    Args:
        training: (N, M) LR pixels that the lines are fitted to, M at least 2.
        x: (n, M) pixels they are applied to.
    """
    centre, spread = training.mean(axis=0, dtype=np.float64), training.std(axis=0, dtype=np.float64)
    spread = np.maximum(spread, 1e-6 * float(spread.max()) + 1e-12)
    known, asked = ((a - centre) / spread for a in (training, x))
    gram = product(known.T, known) / len(known)
    squares = np.zeros(len(x))
    for band in range(training.shape[1]):
        others = np.arange(training.shape[1]) != band
        ridge = _RIDGE * np.eye(int(others.sum()))
        slope = np.linalg.solve(gram[np.ix_(others, others)] + ridge, gram[others, band])
        residual = product(asked[:, others], slope[:, None])[:, 0] - asked[:, band]
        squares += np.square(residual * spread[band])
    return np.asarray(np.sqrt(squares / training.shape[1]), np.float64)


def find_growth(
    lr: FloatArray, hr: FloatArray, lr_left: FloatArray | None, hr_left: FloatArray | None
) -> Growth:
    """Return the growth that the HR-MSI itself bears witness to.

    Three witnesses, each the growth of a mean logarithm from held-out LR pixels to HR pixels:
    how far MSI bands are from what the others tell (`left_out`), how far spectra are from those
    seen, and how far the estimate seen through the response is from the MSI. With one band, none
    can be left out; there the third is the departure of the estimate from a straight line.

    Args:
        lr: (n, F) features of held-out LR pixels, see `Reference.features`.
        hr: (m, F) of HR pixels.
        lr_left: (n,) `left_out`; None with one band.
        hr_left: (m,) likewise.
    """
    told = [float(hr[:, i].mean() - lr[:, i].mean()) for i in (DISTANCE, MISMATCH)]
    if lr_left is None or hr_left is None:
        told.append(float(hr[:, DEPARTURE].mean() - lr[:, DEPARTURE].mean()))
    else:
        told.append(_mean_log(hr_left) - _mean_log(lr_left))
    count = len(told)
    spread = float(np.std(told, ddof=1)) * float(np.sqrt(1 + 1 / count))
    return Growth(float(np.mean(told)), spread, count - 1)


def _mean_log(values: FloatArray) -> float:
    return float(np.log(np.maximum(values, 1e-12)).mean())
