"""A line with networks for what it leaves over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectralift_cli.core.auto.lines import Line
from spectralift_cli.core.auto.samples import PixelProblem
from spectralift_cli.core.netfit import CPU, Nets, NetSize, fit_nets

FloatPixels = NDArray[np.float32]

_MARGIN = 1.0  # standard deviations beyond the training range, where the clamp begins


@dataclass(frozen=True, eq=False)
class Part:
    """A line with the networks for what it leaves over, and the range of their features."""

    line: Line
    nets: Nets | None
    low: FloatPixels
    high: FloatPixels

    @property
    def members(self) -> int:
        """Number of networks."""
        return 0 if self.nets is None else len(self.nets.out)

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


def no_range() -> tuple[FloatPixels, FloatPixels]:
    """Return the range of a part without networks, which needs none."""
    return np.zeros(0, np.float32), np.zeros(0, np.float32)


def part_tensors(problem: PixelProblem, part: Part, net_share: float) -> dict[str, Tensor]:
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
