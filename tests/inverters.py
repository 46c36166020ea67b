"""Checkpoints without training, and the paper's network written out in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from spectralift_cli.core.checkpoint import Checkpoint
from spectralift_cli.core.config import TrainConfig
from spectralift_cli.core.cube import CubeMeta
from spectralift_cli.core.models.paper import build_paper
from spectralift_cli.core.operators.scaling import Scaling
from spectralift_cli.core.sensors.response import Srf


def random_weights(msi_bands: int, hsi_bands: int, hidden: int = 64) -> dict[str, torch.Tensor]:
    """Initial weights with biases that are not zero, so that a forgotten one shows."""
    generator = torch.Generator().manual_seed(7)
    weights = build_paper(msi_bands, hsi_bands, hidden_size=hidden).initial_weights(generator)
    return {
        name: tensor if tensor.ndim == 2 else tensor.uniform_(-0.3, 0.3, generator=generator)
        for name, tensor in weights.items()
    }


def make_checkpoint(
    hsi_bands: int = 5,
    msi_bands: int = 3,
    *,
    hidden: int = 16,
    used: Any = None,
    scaling: Scaling | None = None,
    auto_clip: tuple[float, float] | None = None,
    **hsi: Any,
) -> Checkpoint:
    """A checkpoint with random weights; further arguments are the LR-HSI's `CubeMeta` fields."""
    used = np.ones(hsi_bands, bool) if used is None else np.asarray(used)
    weights = np.random.default_rng(3).random((msi_bands, hsi_bands))
    return Checkpoint(
        model_name="paper",
        model_config={"hidden_size": hidden},
        weights=random_weights(msi_bands, int(used.sum()), hidden),
        train_config=TrainConfig(preset="paper", hidden_size=hidden, epochs=9),
        srf=Srf(weights / weights.sum(1, keepdims=True), tuple("abcdefghijkl"[:msi_bands])),
        hsi=CubeMeta(**{"shape": (4, 4, hsi_bands), "dtype": np.dtype("float32"), **hsi}),
        used_bands=used,
        scaling=scaling or Scaling(),
        auto_clip=auto_clip,
        scores={"final_loss": 0.25},
        provenance={"schema": "spectralift.provenance/1", "steps": []},
    )


def forward(weights: dict[str, torch.Tensor], x: np.ndarray) -> np.ndarray:
    """The paper's formula in float64: x1 = a(L1 x); y = a(L2 x1) + x1; ... ; out = L_out y."""
    arrays = {name: tensor.numpy().astype(np.float64) for name, tensor in weights.items()}

    def linear(name: str, z: np.ndarray) -> np.ndarray:
        return z @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"]

    def a(z: np.ndarray) -> np.ndarray:
        return np.where(z > 0, z, 0.3 * z)

    x1 = a(linear("hidden.0", x.astype(np.float64)))
    y = a(linear("hidden.1", x1)) + x1
    y = a(linear("hidden.3", a(linear("hidden.2", y)))) + y
    y = a(linear("hidden.5", a(linear("hidden.4", y)))) + y
    return linear("out", y)
