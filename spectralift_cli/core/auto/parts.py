"""A line with networks for what it leaves over, and their distillation into one network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectralift_cli.core.auto.lines import Line
from spectralift_cli.core.auto.samples import Problem
from spectralift_cli.core.netfit import CPU, Nets, NetSize, fit_nets

FloatPixels = NDArray[np.float32]

_BEYOND = 0.25  # of their distance, how far combinations of two pixels reach beyond them
_STUDENT_STEPS = 2.0  # of a student, in steps of its teachers
_MARGIN = 1.0  # standard deviations beyond the training range, where the clamp begins


@dataclass(frozen=True, eq=False)
class Part:
    """A line with the networks for what it leaves over, and the range of their features."""

    line: Line
    nets: Nets | None
    low: FloatPixels
    high: FloatPixels

    def estimates(self, u: FloatPixels) -> list[FloatPixels]:
        """Return the estimate of the line, and the one with networks if there are any."""
        line = self.line(u)
        if self.nets is None:
            return [line]
        z = np.clip(self.line.features(u), self.low, self.high)
        return [line, line + self.nets(z)]


def fit_part(
    u: FloatPixels,
    y: FloatPixels,
    line: Line,
    size: NetSize,
    seed: int,
    device: torch.device = CPU,
) -> Part:
    """Fit networks to what a line leaves over at pixels (n, seen) with spectra (n, B)."""
    z = line.features(u)
    residual = y - line(u)
    scale = residual.std(axis=0)
    scale = np.maximum(scale, 1e-3 * float(scale.max(initial=0)) + 1e-9).astype(np.float32)
    noise = line.features.noise.astype(np.float32)
    nets = fit_nets(z, residual, scale, size, seed, device, noise) if size.members else None
    low, high = z.min(axis=0) - _MARGIN, z.max(axis=0) + _MARGIN
    return Part(line, nets, low.astype(np.float32), high.astype(np.float32))


def distilled(
    part: Part, u: FloatPixels, sharp: FloatPixels, size: NetSize, seed: int, allowed: float
) -> Part:
    """Teach one network what several give on average, and keep it if it says nearly the same.

    It learns from HR pixels and from affine combinations of pairs of LR pixels, which reach a little
    beyond them: spectra mix linearly, and HR pixels are purer than LR pixels. It is examined on
    other HR pixels, or on other combinations where there is no HR-MSI.

    Args:
        part: with its networks.
        u: what the pixels of the fit show.
        sharp: what some HR pixels show; may be none.
        size: of the teachers' fit.
        seed: of the combinations and the student.
        allowed: root mean square of the difference, in scaled units.
    """
    if part.nets is None or size.members < 2:
        return part
    rng = np.random.default_rng(seed)
    z = part.line.features(u)
    beyond = part.line.features(sharp).clip(part.low, part.high)
    lessons, exam = beyond[::2], beyond[1::2]

    def combinations(count: int) -> FloatPixels:
        one, other = rng.integers(0, len(z), (2, count))
        share = rng.uniform(-_BEYOND, 1 + _BEYOND, (count, 1)).astype(np.float32)
        mixed: FloatPixels = z[one] + share * (z[other] - z[one])
        return mixed.clip(part.low, part.high)

    shown = np.vstack([z, combinations(len(z)), lessons])
    wanted = part.nets(shown)
    scale = np.maximum(wanted.std(axis=0), 1e-3 * float(wanted.std()) + 1e-9)
    alone = replace(size, members=1, steps=int(_STUDENT_STEPS * size.steps))
    student = fit_nets(shown, wanted, scale, alone, seed, part.nets.out.device)
    if not len(exam):
        exam = combinations(4096)
    difference = student(exam) - part.nets(exam)
    if float(np.sqrt(np.square(difference, dtype=np.float64).mean())) > allowed:
        return part
    return replace(part, nets=student)


def no_range() -> tuple[FloatPixels, FloatPixels]:
    """Return the range of a part without networks, which needs none."""
    return np.zeros(0, np.float32), np.zeros(0, np.float32)


def part_tensors(problem: Problem, part: Part, net_share: float) -> dict[str, Tensor]:
    """Return the weights of a `ResidualMLP`, its networks multiplied by `net_share`."""
    arrays: dict[str, Any] = {
        "msi_range": problem.msi_range,
        "linear": part.line.matrix,
        "constant": part.line.constant,
    }
    features = part.line.features
    if len(features.matrix) > problem.x.shape[1]:
        arrays["scores"] = problem.grid
    nets = part.nets
    if nets is not None:
        arrays |= {"features": features.matrix, "shift": features.shift}
        arrays |= {"low": part.low, "high": part.high}
    tensors = {name: torch.tensor(array, dtype=torch.float32) for name, array in arrays.items()}
    if nets is not None:
        tensors |= {f"weights.{i}": w.clone().cpu() for i, w in enumerate(nets.weights)}
        tensors |= {f"biases.{i}": b.clone().cpu() for i, b in enumerate(nets.biases)}
        tensors |= {"out": nets.out.cpu() * net_share, "out_bias": nets.out_bias.cpu() * net_share}
    return tensors
