"""Keep, damp or drop a refinement by how it predicts LR pixels that it did not see.

LR pixels are held out in blocks of 2 x 2, a ninth at a time; the correction found without them is
looked at where they are. In coefficients whose noise is 1, d the residual of the estimate and q
what the correction explains of it, the share f of the correction that predicts best is

    f = sum d q / sum q^2, between 0 and 1,   and it gains sum d^2 - sum (d - f q)^2.

The gain's standard error is that over blocks, which share no pixel.

LR pixels held out see through the same kernel as the others, so that a wrong one deceives this judge.
Where a kernel is to be trusted although the images ask for another, the HR-MSI, which needs none, is
the second: with m what it shows beyond the estimate and c what it would show of the correction, in
units of its noise, no more than the share sum c m / sum c^2 is applied.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spectralift_cli.core.cube import FloatArray
from spectralift_cli.core.refinement.posterior import Gram

Floats32 = NDArray[np.float32]

_BLOCK, _PERIOD = 2, 3
# of the nine ways to deal the blocks; diagonals first, so that any three cover rows and columns
_ORDER = (0, 4, 8, 1, 5, 6, 2, 3, 7)
# LR pixels from which three of them are enough, and from which one is
_MANY, _VERY_MANY = 4000, 100_000
_NEARLY_ALL = 0.9
_TOLERANCE = 1e-3  # of the solver, which judges and is not the result


@dataclass(frozen=True)
class Verdict:
    """What held-out LR pixels say of a refinement.

    Args:
        decision: keep, damp or drop; ungated where nobody asked.
        factor: of the correction that is applied, 0 to 1.
        gain: share of the estimate's held-out squared error, noise included, that it takes away.
        gain_std: its standard error.
        held_pixels: LR pixels it was judged on.
        blocks: of pixels.
        msi_share: of the correction, by which the HR-MSI is nearest; None where it was not asked.
    """

    decision: str
    factor: float
    gain: float
    gain_std: float
    held_pixels: int
    blocks: int
    msi_share: float | None = None

    def limited(self, msi_share: float) -> Verdict:
        """Return the verdict with no more of the correction than the HR-MSI bears out."""
        share = 1.0 if msi_share >= _NEARLY_ALL else max(msi_share, 0.0)
        decision = self.decision if share == 1 or not self.factor else "damp" if share else "drop"
        factor = self.factor * share
        return dataclasses.replace(
            self, decision=decision, factor=factor, msi_share=float(msi_share)
        )

    def __str__(self) -> str:
        if self.decision == "ungated":
            return "refinement applied whatever held-out pixels say"
        words = {"keep": "kept", "damp": f"damped to {self.factor:.2f}", "drop": "dropped"}
        asked = "" if self.msi_share is None else (
            f"; the images ask for another PSF, and the HR-MSI bears out {self.msi_share:.2f} of it"
        )  # fmt: skip
        return (
            f"refinement {words[self.decision]}: held-out error {-100 * self.gain:+.2f} % "
            f"(standard error {100 * self.gain_std:.2f} %) on {self.held_pixels:,} LR pixels in "
            f"{self.blocks:,} blocks{asked}"
        )


UNGATED = Verdict("ungated", 1.0, 0.0, 0.0, 0, 0)


def judge(gram: Gram, variances: FloatArray, residual: Floats32, first: Floats32) -> Verdict:
    """Decide by held-out LR pixels.

    Args:
        gram: of all valid LR pixels.
        variances: (K,) of the decoupled coefficients.
        residual: (n, K) d of the estimate.
        first: (n, K) what the MSI's step explains of it, A z1.
    """
    use = gram.use
    folds, blocks = _deal(use.shape)
    count = len(residual)
    splits = _ORDER[: 9 if count < _MANY else 3 if count < _VERY_MANY else 1]
    gains: dict[int, tuple[float, float, float]] = {}
    held_pixels = 0
    rest = residual - first
    for number in splits:
        held = (folds == number) & use
        training = use & ~held
        if not held.any() or not training.any():
            continue
        inside = training[use]
        v, _ = gram.solve(variances, rest, inside, _TOLERANCE)
        explained = (first + (gram.matrix @ v) * variances.astype(np.float32))[~inside]
        d, q = residual[~inside].astype(np.float64), explained.astype(np.float64)
        held_pixels += len(d)
        sums = np.stack([(d * d).sum(1), (d * q).sum(1), (q * q).sum(1)], axis=1)
        for block in np.unique(blocks[held]):
            mine = sums[blocks[held] == block].sum(axis=0)
            gains[int(block)] = tuple(mine)
    if len(gains) < 2:
        return Verdict("drop", 0.0, 0.0, 0.0, held_pixels, len(gains))
    dd, dq, qq = np.array(list(gains.values())).T
    best = float(np.clip(dq.sum() / max(qq.sum(), 1e-30), 0, 1))
    factor = 1.0 if best >= _NEARLY_ALL else best
    each = 2 * factor * dq - factor**2 * qq
    total = max(float(dd.sum()), 1e-30)
    gain = float(each.sum()) / total
    # of a ratio of sums over blocks
    spread = each - gain * dd
    error = float(np.sqrt(np.square(spread).sum() * len(each) / (len(each) - 1))) / total
    # not `gain <= error`: what is no number helps nothing
    decision = "drop" if not gain > error else "keep" if factor == 1 else "damp"
    return Verdict(
        decision, factor if decision != "drop" else 0.0, gain, error, held_pixels, len(each)
    )


def _deal(shape: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (h, w) which of nine parts each LR pixel belongs to, and the number of its block."""
    # small images still have a block a side in every part
    rows, cols = (np.arange(n) // min(_BLOCK, max(1, n // _PERIOD)) for n in shape)
    folds = rows[:, None] % _PERIOD * _PERIOD + cols[None, :] % _PERIOD
    return folds, rows[:, None] * (int(cols.max()) + 1) + cols[None, :]
