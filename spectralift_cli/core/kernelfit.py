"""Kernel ridge regression in closed form: the coefficients of `KernelModel`.

With more pixels than centres it is the subset-of-regressors form of Nystrom's method: coefficients
a = (Knm' Knm + noise Kmm)^-1 Knm' R; with as many, it is kernel ridge regression itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectralift_cli.core.holdout import Split
from spectralift_cli.core.models.kernel import matern52
from spectralift_cli.core.netfit import CPU

FloatPixels = NDArray[np.float32]

MAX_CENTRES = 1024
LENGTHS = (1.0, 2.0, 4.0, 8.0)  # standard deviations of the MSI
NOISES = (1e-4, 1e-3, 1e-2, 1e-1)
_JITTER = 1e-8


@dataclass(frozen=True, eq=False)
class KernelFit:
    """A fitted kernel.

    Args:
        length: length scale in standard deviations.
        noise: variance of the noise over that of the signal.
        centres: (centres, M) standardised.
        coefficients: (centres, B).
        rmse: on held-out pixels, in scaled units.
    """

    length: float
    noise: float
    centres: FloatPixels
    coefficients: NDArray[np.float64]
    rmse: float


def fit_kernel(
    z: FloatPixels,
    residual: FloatPixels,
    pixels: NDArray[np.int64],
    splits: list[Split],
    seed: int,
    device: torch.device = CPU,
) -> KernelFit:
    """Fit the residual of a line; length scale and noise score best on held-out blocks.

    Args:
        z: (N, M) standardised MSI.
        residual: (N, B) what the line leaves over.
        pixels: (N,) flat indices in the image.
        splits: of the image.
        seed: of the choice of centres.
        device: where; Apple's lack float64, so that the processor does their work.
    """
    device = CPU if device.type == "mps" else device
    chosen = np.arange(len(z))
    if len(z) > MAX_CENTRES:
        chosen = np.sort(np.random.default_rng(seed).permutation(len(z))[:MAX_CENTRES])
    inputs = torch.tensor(z, dtype=torch.float64, device=device)
    wanted = torch.tensor(residual, dtype=torch.float64, device=device)
    centres = inputs[chosen]
    best: tuple[float, float, float] = (math.inf, LENGTHS[0], NOISES[0])
    for length in LENGTHS:
        factor = math.sqrt(5) / length
        table = matern52(inputs * factor, centres * factor)  # (N, centres)
        errors = np.zeros(len(NOISES))
        count = 0
        for split in splits:
            training, held = split.training[pixels], split.held[pixels]
            # only centres that take part in the training
            own = np.flatnonzero(training[chosen])
            if not len(own) or not held.any():
                continue
            count += int(held.sum())
            tests = table[held][:, own]
            for index, noise in enumerate(NOISES):
                found = _solve(table[training][:, own], table[chosen[own]][:, own],
                               wanted[training], noise)  # fmt: skip
                errors[index] += float((tests @ found - wanted[held]).square().mean(1).sum())
        index = int(np.argmin(errors))
        best = min(best, (float(errors[index]) / max(1, count), length, NOISES[index]))
    score, length, noise = best
    factor = math.sqrt(5) / length
    table = matern52(inputs * factor, centres * factor)
    coefficients = _solve(table, table[chosen], wanted, noise)
    return KernelFit(length, noise, z[chosen], coefficients.cpu().numpy(), math.sqrt(score))


def _solve(table: Tensor, between: Tensor, wanted: Tensor, noise: float) -> Tensor:
    """Return (centres, B) coefficients."""
    gram = table.T @ table + noise * between
    gram += _JITTER * float(gram.diagonal().mean()) * torch.eye(len(gram)).to(gram)
    solved: Tensor = torch.linalg.solve(gram, table.T @ wanted)
    return solved
