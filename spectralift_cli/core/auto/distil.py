"""A blend of lines and networks as one: lines add up exactly, networks are taught to one student."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from spectralift_cli.core.auto.lines import Features, Line
from spectralift_cli.core.auto.parts import Part, no_range
from spectralift_cli.core.netfit import NetSize, fit_nets

FloatPixels = NDArray[np.float32]
Floats = NDArray[np.float64]

_BEYOND = 0.25  # of their distance, how far combinations of two pixels reach beyond them
_STUDENT_STEPS = 2.0  # in steps of the teachers
_EXAM_PIXELS = 4096


@dataclass(frozen=True, eq=False)
class Share:
    """A part's share in a blend.

    Args:
        part: a line with networks or without.
        line: what the line counts.
        nets: what the networks count.
    """

    part: Part
    line: float
    nets: float

    @property
    def teaches(self) -> bool:
        """Whether networks take part."""
        return self.part.nets is not None and self.nets > 0

    def nets_at(self, u: FloatPixels) -> FloatPixels:
        """Return what the networks add at pixels (n, seen or more): (n, B)."""
        if self.part.nets is None:
            raise ValueError("there are no networks to ask")
        features = self.part.line.features
        z = features(u[:, : len(features.matrix)]).clip(self.part.low, self.part.high)
        return np.float32(self.nets) * self.part.nets(z)


def as_one(
    shares: Sequence[Share],
    u: FloatPixels,
    sharp: FloatPixels,
    size: NetSize,
    seed: int,
    allowed: float,
    count_steps: Callable[[int], None] = lambda steps: None,
) -> Part | None:
    """Return a part with at most one network that says nearly the same as a blend.

    The student learns from LR pixels, from HR pixels, and from affine combinations of pairs of LR
    pixels, which reach a little beyond them: spectra mix linearly, and HR pixels are purer than LR
    pixels. It is examined on other HR pixels, or on other combinations where there is no HR-MSI.

    Args:
        shares: the one with the most columns last.
        u: what the LR pixels show (N, seen), for the most columns.
        sharp: what some HR pixels show (n, seen); may be none.
        size: of the teachers' fit.
        seed: of the combinations and the student.
        allowed: root mean square of the difference, in scaled units.
        count_steps: called with the steps that the student's fit took.

    Returns:
        The part, or None if the student differs by more, or if there are two teachers of one
        network each: such are fitted to many pixels, which take long to learn and save little.
    """
    seen = u.shape[1]
    teachers = [share for share in shares if share.teaches]
    home = teachers[-1].part if teachers else shares[-1].part
    features = _widened(home.line.features, seen)
    matrix = sum(share.line * _padded(share.part.line.matrix, seen) for share in shares)
    constant = sum(share.line * share.part.line.constant for share in shares)
    line = Line(features, np.asarray(matrix), np.asarray(constant))
    if not teachers or home.nets is None:
        return Part(line, None, *no_range())
    if all(share.part.members == 1 for share in teachers):
        if len(teachers) > 1:
            return None
        alone = replace(home.nets, out=home.nets.out * teachers[0].nets,
                        out_bias=home.nets.out_bias * teachers[0].nets)  # fmt: skip
        return Part(line, alone, home.low, home.high)
    rng = np.random.default_rng(seed)

    def combinations(count: int) -> FloatPixels:
        one, other = rng.integers(0, len(u), (2, count))
        share = rng.uniform(-_BEYOND, 1 + _BEYOND, (count, 1)).astype(np.float32)
        mixed: FloatPixels = u[one] + share * (u[other] - u[one])
        return mixed

    def teach(pixels: FloatPixels) -> FloatPixels:
        told: FloatPixels = np.sum([share.nets_at(pixels) for share in teachers], axis=0)
        return told

    def shown(pixels: FloatPixels) -> FloatPixels:
        return features(pixels).clip(home.low, home.high)

    lessons = np.vstack([u, combinations(len(u)), sharp[::2]])
    exam = sharp[1::2] if len(sharp) > 1 else combinations(_EXAM_PIXELS)
    wanted = teach(lessons)
    scale = np.maximum(wanted.std(axis=0), 1e-3 * float(wanted.std()) + 1e-9)
    alone_size = replace(size, members=1, steps=int(_STUDENT_STEPS * size.steps))
    count_steps(alone_size.steps)
    student = fit_nets(shown(lessons), wanted, scale, alone_size, seed, home.nets.out.device)
    difference = student(shown(exam)) - teach(exam)
    if float(np.sqrt(np.square(difference, dtype=np.float64).mean())) > allowed:
        return None
    return Part(line, student, home.low, home.high)


def _padded(matrix: Floats, rows: int) -> Floats:
    """Return a matrix with rows of zeros below, for columns that it does not see."""
    return np.vstack([matrix, np.zeros((rows - len(matrix), matrix.shape[1]))])


def _widened(features: Features, seen: int) -> Features:
    """Return features that see further columns and ignore them."""
    base = _padded(features.base[0], seen), features.base[1]
    return replace(features, matrix=_padded(features.matrix, seen), base=base)
