"""Preset auto on a device: where its tensors live, and that CUDA agrees with the processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from spectralift_cli.core import auto, stages, training, trainstage
from spectralift_cli.core.config import TrainConfig
from spectralift_cli.core.devices import resolve_device
from spectralift_cli.core.inference import predict
from spectralift_cli.core.models.base import build_model
from spectralift_cli.core.netfit import NetSize, fit_nets
from tests.test_auto import image, response, restored, write

MODELS = ("linear", "residual-mlp", "kernel", "prior-mlp", "ensemble")
SMALL = {"hidden_size": 8, "layers": 2, "members": 2}


def pairs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    cube = image(16, 18, 6)
    srf = response(2, 6)
    y = cube.reshape(-1, 6)
    return (y @ srf.T).astype(np.float32), y, srf


def test_a_fit_keeps_every_tensor_on_its_device() -> None:
    """The meta device computes nothing, and refuses every operation that mixes devices."""
    rng = np.random.default_rng(0)
    z, y = (rng.normal(size=(90, n)).astype(np.float32) for n in (3, 5))
    size = NetSize(hidden=8, layers=2, members=2, steps=4, batch=32)
    nets = fit_nets(z, y, np.ones(5, np.float32), size, 1, torch.device("meta"))
    for tensor in (*nets.weights, *nets.biases, nets.out, nets.out_bias):
        assert tensor.device.type == "meta"


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("paper", {"hidden_size": 8}),
        ("linear", {}),
        ("residual-mlp", SMALL),
        ("kernel", {"centres": 7}),
        ("prior-mlp", {"components": 3, "grid": [4, 5], "features": 7, **SMALL}),
        ("physics", {"waves": 5, "components": 3}),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("bands", "columns"), [(6, 6), (7, 8), (5, 8)])
def test_inference_keeps_every_tensor_on_its_device(
    name: str, config: dict[str, object], precision: str, bands: int, columns: int
) -> None:
    model = build_model(name, 2, bands, config)  # on the meta device
    out = model.kernel(9, precision)(torch.empty((9, model.inputs), device="meta"))
    assert (out.shape, out.dtype, out.device.type) == ((9, columns), torch.float32, "meta")


def test_the_device_of_the_command_reaches_every_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.device] = []

    def spy(*given: object) -> object:
        seen.append(given[5])  # type: ignore[arg-type]
        return fit_nets(*given)  # type: ignore[arg-type]

    marked = torch.device("cpu", 0)  # computes as "cpu" does, and is told from it
    monkeypatch.setattr(auto.parts, "fit_nets", spy)
    for module in (trainstage, training):
        monkeypatch.setattr(module, "resolve_device", lambda name: {"here": marked}[name])
    np.savetxt(tmp_path / "srf.csv", response(2, 6), delimiter=",")
    inputs = stages.TrainInputs(
        lr_hsi=write(tmp_path / "lr.npy", np.clip(image(16, 18, 6), 0, 1)),
        response=stages.ResponseChoice(srf_file=tmp_path / "srf.csv"),
    )
    stages.train(
        inputs, tmp_path / "m.safetensors", TrainConfig(effort="fast"),
        execution=stages.Execution("here"),
    )  # fmt: skip
    assert len(seen) > 2
    assert set(map(str, seen)) <= {"cpu:0", "cpu"}  # a student is taught where its teachers are
    assert str(seen[0]) == "cpu:0"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device")
@pytest.mark.parametrize("name", MODELS)
def test_auto_on_cuda_agrees_with_the_processor(name: str) -> None:
    """The fits start from the same numbers; what they become differs by the order of sums."""
    x, y, srf = pairs()
    config = TrainConfig(effort="fast", model=name, seed=3)
    here, there, again = (
        auto.fit_auto(x, y, srf, np.ones(len(x), bool), (16, 18), config, device=device)
        for device in (torch.device("cpu"), resolve_device("cuda"), resolve_device("cuda"))
    )
    assert there.weights.keys() == again.weights.keys()
    for key, tensor in there.weights.items():
        assert tensor.device.type == "cpu"
        assert torch.equal(tensor, again.weights[key]), key
    row, col = np.divmod(np.arange(len(x)), 18)
    place = np.stack([(row + 0.5) / 16, (col + 0.5) / 18], axis=1).astype(np.float32)

    def error(found: auto.AutoFit, device: str) -> float:
        model = restored(found, 2, 6)
        seen = np.hstack([x, place]) if model.needs_position else x
        spectra = predict(model, seen, threads=1, device=resolve_device(device))
        return float(np.sqrt(np.square(spectra - y).mean()))

    assert error(there, "cuda") == pytest.approx(error(there, "cpu"), rel=1e-4)
    assert error(there, "cpu") == pytest.approx(error(here, "cpu"), rel=0.3)
