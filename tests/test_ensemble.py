"""A blend is the weighted sum of what its members give apart, wherever the weights are multiplied in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from spectralift_cli.core.inference import predict
from spectralift_cli.core.models.base import SpectralModel, build_model

MEMBERS: dict[str, dict[str, Any]] = {
    "linear": {},
    "residual-mlp": {"hidden_size": 5, "layers": 2, "members": 2},
    "prior-mlp": {
        "hidden_size": 5, "layers": 1, "members": 1, "components": 2, "grid": [3, 4], "features": 8,
    },
    "physics": {"waves": 6, "components": 3},
}  # fmt: skip
WEIGHTS = (0.3, -0.4, 1.7)
M, B = 3, 7


def filled(model: SpectralModel, seed: int) -> SpectralModel:
    """Random weights, and ranges that clamp some inputs and not others."""
    generator = torch.Generator().manual_seed(seed)
    weights = {n: torch.randn(p.shape, generator=generator) for n, p in model.named_parameters()}
    if "msi_range" in weights:
        weights["msi_range"] = torch.tensor([[-0.5] * M, [0.8] * M])
    for name, value in (("low", -1.0), ("high", 1.0)):
        if name in weights:
            weights[name].fill_(value)
    return model.with_weights(weights)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "names",
    [("residual-mlp", "prior-mlp", "physics"), ("physics", "linear", "residual-mlp"),
     ("prior-mlp", "physics", "linear")],
)  # fmt: skip
def test_a_blend_is_the_weighted_sum_of_its_members(
    names: tuple[str, str, str], precision: str
) -> None:
    members = [filled(build_model(n, M, B, MEMBERS[n]), i) for i, n in enumerate(names)]
    listed = [{"name": name, "config": MEMBERS[name]} for name in names]
    tensors = {"member_weights": torch.tensor(WEIGHTS)}
    for index, member in enumerate(members):
        tensors |= {f"members.{index}.{n}": p.detach() for n, p in member.named_parameters()}
    blend = build_model("ensemble", M, B, {"members": listed}).with_weights(tensors)
    x = np.random.default_rng(0).uniform(-1, 1.2, (300, blend.inputs)).astype(np.float32)
    x[:, M:] = np.abs(x[:, M:]).clip(0, 1)
    apart = [
        predict(m, np.ascontiguousarray(x[:, : m.inputs]), precision=precision) for m in members
    ]
    expected = sum(w * a.astype(np.float64) for w, a in zip(WEIGHTS, apart, strict=True))
    tolerance = 1e-5 if precision == "fp32" else 3e-2
    size = float(np.abs(np.asarray(apart)).max())
    np.testing.assert_allclose(
        predict(blend, x, precision=precision), expected, atol=tolerance * size
    )
