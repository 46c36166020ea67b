"""What a CUDA graph asks of a step, held on the processor: a tape of its operations is the step.

A graph repeats operations on the same memory. A number that is taken from Python into an operation
stays what it was, and a tensor that is made anew is never seen. The tape below repeats in that way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spectralift_cli.core import fitting, netfit, recording
from spectralift_cli.core.config import TrainConfig
from spectralift_cli.core.devices import resolve_device
from spectralift_cli.core.errors import SpectraliftWarning
from spectralift_cli.core.netfit import Nets, NetSize, fit_nets
from tests.test_training import digest, pairs

Work = Callable[[], None]
CONFIGS = [
    TrainConfig(preset="paper", epochs=9, hidden_size=8),
    TrainConfig(preset="paper", epochs=4, hidden_size=8, training_batch_size=300),
]


class Tape(TorchDispatchMode):
    """Remember every operation with its tensors, to repeat it on their memory."""

    def __init__(self) -> None:
        super().__init__()
        self.played: list[tuple[Any, ...]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        self.played.append((function, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, out in self.played:
            fresh = function(*args, **kwargs)
            for kept, made in zip(tree_leaves(out), tree_leaves(fresh), strict=True):
                if isinstance(kept, torch.Tensor) and kept.data_ptr() != made.data_ptr():
                    kept.copy_(made)


def taped(work: Work, changed: Sequence[torch.Tensor], device: torch.device) -> Work:
    before = [tensor.clone() for tensor in changed]
    work()  # the trial, of which nothing may be left
    tape = Tape()
    with tape:
        work()
    for tensor, old in zip(changed, before, strict=True):
        tensor.copy_(old)
    return tape.replay


@pytest.mark.parametrize("config", CONFIGS, ids=["whole", "batches"])
def test_a_replayed_step_of_the_published_training_is_the_step(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = digest(fitting.fit(*pairs(), config, threads=1))
    monkeypatch.setattr(fitting, "recorded", taped)
    assert digest(fitting.fit(*pairs(), config, threads=1)) == expected


def net_bytes(nets: Nets) -> bytes:
    tensors = (*nets.weights, *nets.biases, nets.out, nets.out_bias)
    return b"".join(tensor.cpu().numpy().tobytes() for tensor in tensors)


def small_nets(device: str = "cpu") -> bytes:
    rng = np.random.default_rng(0)
    z, y = (rng.normal(size=(90, n)).astype(np.float32) for n in (3, 5))
    noise = rng.normal(size=(2, 3)).astype(np.float32)
    size = NetSize(hidden=8, layers=2, members=2, steps=12, batch=32)
    return net_bytes(fit_nets(z, y, np.ones(5, np.float32), size, 1, resolve_device(device), noise))


def test_a_replayed_step_of_small_networks_is_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = small_nets()
    monkeypatch.setattr(netfit, "recorded", taped)
    assert small_nets() == expected


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device")
@pytest.mark.parametrize("config", CONFIGS, ids=["whole", "batches"])
def test_graphs_on_cuda_give_the_bytes_of_launched_steps(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = resolve_device("cuda")
    graphs = digest(fitting.fit(*pairs(), config, device=device)), small_nets("cuda")
    for module in (fitting, netfit):
        monkeypatch.setattr(module, "recorded", lambda work, changed, device: work)
    assert graphs == (digest(fitting.fit(*pairs(), config, device=device)), small_nets("cuda"))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device")
def test_a_device_that_does_not_record_launches_steps_one_by_one() -> None:
    device = resolve_device("cuda")
    count = torch.zeros((), device=device)

    def work() -> None:
        count.add_(1)
        count.item()  # a graph cannot wait for the device

    with pytest.warns(SpectraliftWarning, match="launched one by one"):
        again = recording.recorded(work, [count], device)
    again()
    assert count.item() == 1
