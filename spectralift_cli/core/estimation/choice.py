"""Which parts of an estimate pay: decided on LR pixels that took no part in making it.

The pixels are held out in spatial blocks, dealt to folds. A part is used where it lowers the error
on them by more than twice the standard error of that gain over the blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from spectralift_cli.core.cube import BoolArray, FloatArray
from spectralift_cli.core.estimation.imagepair import IntArray

FOLDS = 6
_SIGNIFICANT = 2.0
# an improvement of the error below this is none, however sure
_LEAST_GAIN = 0.01

# fits on the pixels it is given, (n,) True, and returns (n, M) errors at all of them
Candidate = Callable[[BoolArray], FloatArray]


@dataclass(frozen=True)
class Verdict:
    """Whether a part pays.

    Args:
        used: it does.
        why: in words, with the numbers.
    """

    used: bool
    why: str


def held_out_errors(candidate: Candidate, labels: IntArray) -> FloatArray:
    """Return (n, M) errors of a candidate, each fitted without the fold of its pixel's block."""
    _, number = np.unique(labels, return_inverse=True)
    found: FloatArray | None = None
    for fold in range(min(FOLDS, int(number.max()) + 1)):
        held = number % FOLDS == fold
        errors = candidate(~held)
        found = np.zeros(errors.shape) if found is None else found
        found[held] = errors[held]
    return np.zeros((0, 0)) if found is None else found


def compare(
    name: str, without: FloatArray, with_it: FloatArray, weights: FloatArray, labels: IntArray
) -> Verdict:
    """Decide between errors without and with a part.

    Args:
        name: of the part, for the words: "the shift".
        without: (n, M) errors in the same units for both.
        with_it: (n, M).
        weights: (n,) of the pixels.
        labels: (n,) their blocks.
    """
    # every band counts the same, by its error without the part
    size = np.sqrt(weights @ without**2 / weights.sum()) + 1e-300
    before, after = ((e / size) ** 2 for e in (without, with_it))
    names = np.unique(labels)
    shares = np.array([weights[labels == n].sum() for n in names]) / weights.sum()
    gains = np.array([
        weights[labels == n] @ (before - after)[labels == n].mean(axis=1) / weights.sum()
        for n in names
    ])  # fmt: skip
    gain = float(gains.sum())
    spread = float(
        np.sqrt(((gains - shares * gain) ** 2).sum() * len(names) / max(1, len(names) - 1))
    )
    root_before = float(np.sqrt(weights @ before.mean(axis=1) / weights.sum()))
    root_after = float(np.sqrt(weights @ after.mean(axis=1) / weights.sum()))
    change = 100 * (root_after / root_before - 1)
    used = gain > _SIGNIFICANT * spread and -change > 100 * _LEAST_GAIN
    numbers = (
        f"with it the error on held-out LR pixels changes by {change:+.1f} % (mean square "
        f"{-100 * gain:+.1f} +- {100 * spread:.1f} %)"
    )
    return Verdict(used, f"{name}: {'used' if used else 'not used'}, {numbers}")
