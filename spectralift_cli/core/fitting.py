"""Fit a network to pairs of spectra by Adam on the mean absolute error.

The pixels of a step are dealt to a fixed number of lanes, which depends on sizes alone. Each lane
sums its gradients on one thread, in chunks that fit a processor's cache; the lanes' sums are added
in their order. So the result has the same bytes for any number of threads or processes, and the work
scales.
"""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectralift_cli.core.config import TrainConfig
from spectralift_cli.core.cube import Progress, no_progress
from spectralift_cli.core.devices import Workers, check_threads, on_device
from spectralift_cli.core.errors import DataError, SpectraliftWarning
from spectralift_cli.core.fitstate import FitState, fingerprint, load_state, save_state
from spectralift_cli.core.models.base import SpectralModel, build_model
from spectralift_cli.core.ranks import Group
from spectralift_cli.core.recording import Work, recorded
from spectralift_cli.core.resources import available_memory_bytes
from spectralift_cli.core.schedules import check_schedule, learning_rate

# below this a lane costs more in overhead than it saves; lanes on a GPU are for other GPUs
_LANE_PIXELS = {"cpu": 512, "cuda": 2**17}
_MAX_LANES = 16
_CPU_CHUNK = 4096
_GPU_CHUNK = 2**18
# the loss is read from a GPU only this often, because reading waits for all work queued there
_GPU_CHECK_EPOCHS = 25


@dataclass(frozen=True, eq=False)
class History:
    """Learning rate and loss of epochs 1..E.

    Args:
        lr: (E,) learning rates.
        loss: (E,) mean absolute errors in scaled units, each before its epoch's steps (the mean
            over the epoch's batches).
    """

    lr: NDArray[np.float64]
    loss: NDArray[np.float64]

    def to_csv(self) -> str:
        """Return the text of history.csv: epoch, lr, loss."""
        rows = zip(self.lr.tolist(), self.loss.tolist(), strict=True)
        lines = (f"{epoch},{lr:.9g},{loss:.9g}\n" for epoch, (lr, loss) in enumerate(rows, 1))
        return "epoch,lr,loss\n" + "".join(lines)


@dataclass(frozen=True)
class Pace:
    """How long a fit took.

    Args:
        steps: changes of weights, of all networks together.
        seconds: of the clock.
    """

    steps: int
    seconds: float

    def to_json(self) -> dict[str, float | int]:
        """Return a JSON object: steps, seconds, steps_per_s."""
        rate = self.steps / self.seconds if self.seconds > 0 else math.inf
        return {
            "steps": self.steps,
            "seconds": round(self.seconds, 3),
            "steps_per_s": round(rate, 1),
        }

    def __str__(self) -> str:
        return f"{self.steps:,} steps in {self.seconds:.2f} s, {self.steps / max(self.seconds, 1e-9):,.0f} a second"


@dataclass(frozen=True, eq=False)
class Fitted:
    """A network and how it got there.

    Args:
        model: with its weights, on the CPU.
        history: of the training.
        pace: of what this process did of it.
    """

    model: SpectralModel
    history: History
    pace: Pace


class KerasAdam:
    """Adam as Keras computes it, on one flat vector.

        m += (g - m)(1 - b1);  v += (g^2 - v)(1 - b2)
        w -= lr sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)

    This is Kingma and Ba's "epsilon hat" form (arXiv 1412.6980, section 2): epsilon is added to the
    square root before its bias is corrected. PyTorch adds it after, which in the first steps makes
    Keras's epsilon larger by the factor 1 / sqrt(1 - b2^t), 32 at t = 1.

    Args:
        weights: (parameters,) changed in place.
        gradient: (parameters,) of the steps, read in place.
    """

    beta1 = 0.9
    beta2 = 0.999
    epsilon = 1e-7

    def __init__(self, weights: Tensor, gradient: Tensor) -> None:
        self.weights, self._gradient = weights, gradient
        self.m = torch.zeros_like(weights)
        self.v = torch.zeros_like(weights)
        self._square = torch.empty_like(weights)
        self._root = torch.empty_like(weights)
        self._size = torch.zeros((), device=weights.device)

    def prepare(self, lr: float, t: int) -> None:
        """Make the next step the t-th (from 1), with this learning rate."""
        self._size.fill_(-lr * math.sqrt(1 - self.beta2**t) / (1 - self.beta1**t))

    def step(self) -> None:
        """Take the step that was prepared; nothing here differs from step to step but tensors."""
        self.m.lerp_(self._gradient, 1 - self.beta1)
        self.v.lerp_(torch.mul(self._gradient, self._gradient, out=self._square), 1 - self.beta2)
        torch.sqrt(self.v, out=self._root).add_(self.epsilon)
        self.weights.add_(torch.mul(self.m, self._size, out=self._square).div_(self._root))


class _Lane:
    """One share of a step's pixels: a network on the common weights with gradients of its own."""

    def __init__(
        self, model: SpectralModel, weights: Tensor, lr_msi: Tensor, lr_hsi: Tensor, batch: int
    ) -> None:
        self.sums = torch.zeros(weights.numel() + 1, device=weights.device)  # the loss behind
        self.gradient, self.loss = self.sums[:-1], self.sums[-1]
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        self._model = model.with_weights(_split(weights, shapes)).requires_grad_(True)
        gradients = _split(self.gradient, shapes)
        for name, parameter in self._model.named_parameters():
            parameter.grad = gradients[name]  # backward adds to what is there
        self._lr_msi, self._lr_hsi = lr_msi, lr_hsi
        self._chunk = min(batch, _CPU_CHUNK if weights.device.type == "cpu" else _GPU_CHUNK)
        self._error = torch.empty((self._chunk, lr_hsi.shape[1]), device=weights.device)

    def run(self, pixels: Tensor | slice, count: int, batch: int) -> None:
        """Put the sum over these pixels of |error| / values of the batch, and its gradient, here.

        Args:
            pixels: indices, or a slice of all.
            count: how many they are.
            batch: pixels of the whole step.
        """
        self.sums.zero_()
        share = 1 / (batch * self._lr_hsi.shape[1])
        for start in range(0, count, self._chunk):
            stop = min(start + self._chunk, count)
            if isinstance(pixels, slice):
                part = slice(pixels.start + start, pixels.start + stop)
                x, y = self._lr_msi[part], self._lr_hsi[part]
            else:
                index = pixels[start:stop]
                x, y = self._lr_msi.index_select(0, index), self._lr_hsi.index_select(0, index)
            out = self._model(x)
            error = torch.sub(out.detach(), y, out=self._error[: stop - start])  # (pixels, B)
            self.loss += torch.linalg.vector_norm(error, 1) * share
            out.backward(error.sign_().mul_(share))


class _Trainer:
    """The weights, the optimiser and this process's lanes on one device."""

    def __init__(
        self,
        config: TrainConfig,
        lr_msi: Tensor,
        lr_hsi: Tensor,
        weights: Tensor,
        workers: Workers,
        group: Group | None,
    ) -> None:
        self.weights = weights
        self.pixels = len(lr_msi)
        self.batch = min(config.training_batch_size or self.pixels, self.pixels)
        self._workers, self._group = workers, group
        lanes = self._share(self._lane_count(self.batch))
        self._lanes = [
            _Lane(_build(config, lr_msi, lr_hsi), weights, lr_msi, lr_hsi, self.batch)
            for _ in range(max(1, len(lanes)))
        ]
        # the first lane adds the others' sums to its own; between processes the sum has its place
        self._total = (
            self._lanes[0].sums if group is None else torch.zeros_like(self._lanes[0].sums)
        )
        self.adam = KerasAdam(weights, self._total[:-1])
        state = [weights, self.adam.m, self.adam.v]
        self._change = recorded(self.adam.step, state, weights.device)
        self._chosen = torch.zeros(self.batch, dtype=torch.long, device=weights.device)
        self._sums: dict[int, Work] = {}  # by the number of pixels of a step

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps in an epoch."""
        return math.ceil(self.pixels / self.batch)

    def epoch(self, lr: float, steps_done: int, generator: torch.Generator) -> Tensor:
        """Go once over the pixels, in random order if a step takes fewer; return the mean loss."""
        if self.batch == self.pixels:
            return self._step(self.pixels, lr, steps_done + 1)
        order = torch.randperm(self.pixels, generator=generator).to(self.weights.device)
        total = torch.zeros((), device=self.weights.device)
        for step, start in enumerate(range(0, self.pixels, self.batch), 1):
            index = order[start : start + self.batch]
            self._chosen[: len(index)] = index
            loss = self._step(len(index), lr, steps_done + step)
            total += loss * (len(index) / self.pixels)
        return total

    def _step(self, count: int, lr: float, t: int) -> Tensor:
        if count not in self._sums:
            self._sums[count] = recorded(self._summing(count), (), self.weights.device)
        self._sums[count]()
        self._add_up(self._lane_count(count))
        self.adam.prepare(lr, t)
        self._change()
        return self._total[-1]

    def _summing(self, count: int) -> Work:
        """Return what puts the sums of a step of so many pixels into this process's lanes."""
        lanes = self._lane_count(count)
        own = self._share(lanes)
        edges = [count * i // lanes for i in range(lanes + 1)]

        def work(_: int, lane: int) -> None:
            part = slice(edges[lane], edges[lane + 1])
            pixels = part if self.batch == self.pixels else self._chosen[part]
            self._lanes[lane - own.start].run(pixels, part.stop - part.start, count)

        return lambda: self._workers.run(work, own)

    def _add_up(self, lanes: int) -> None:
        own = [lane.sums for lane in self._lanes[: len(self._share(lanes))]]
        if self._group is not None:
            self._group.sum_in_order(own, lanes, self._total)
            return
        for sums in own[1:]:
            self._total += sums

    def _share(self, lanes: int) -> range:
        return range(lanes) if self._group is None else self._group.share(lanes)

    def _lane_count(self, count: int) -> int:
        return lane_count(count, self.weights.numel(), self.weights.device)


class Keeping(TypedDict, total=False):
    """How a fit's state is kept and who takes part in it: arguments of `fit`, described there."""

    state_path: Path | None
    save_every_s: float
    resume: bool
    group: Group | None


def fit(
    lr_msi: NDArray[np.float32],
    lr_hsi: NDArray[np.float32],
    config: TrainConfig,
    *,
    device: torch.device | None = None,
    threads: int | None = None,
    progress: Progress = no_progress,
    state_path: Path | None = None,
    save_every_s: float = 30.0,
    resume: bool = False,
    group: Group | None = None,
) -> Fitted:
    """Fit the network of a preset to pairs of spectra.

    Loss: mean absolute error. Adam in Keras's form, b1 .9, b2 .999, eps 1e-7, with the epoch's
    learning rate in each of its steps (Shah and Duarte, arXiv 2507.13339).

    Every random number comes from one generator of `config.seed`: the initial weights, then the
    order of pixels of each epoch whose steps take a part of them. The result has the same bytes on
    the same machine and kind of device for any number of threads, and however often the training
    was killed and resumed.

    With `state_path`, the state is saved there every `save_every_s` seconds and at the end; the
    caller removes it (`discard_state`) when the result is safe.

    Args:
        lr_msi: (N, M) scaled, finite; N at least 2.
        lr_hsi: (N, B) scaled, finite.
        config: the preset, its schedule, epochs, batch, width and seed.
        device: where; None for the processor.
        threads: at most; None for all this process may use.
        progress: called as progress(epochs done, all epochs).
        state_path: file for the state.
        save_every_s: seconds between savings.
        resume: go on from the state if there is one; without one the training starts afresh.
        group: of processes that fit together, each with the same arguments; the first of them alone
            reads and writes the state. The bytes are those of one process.

    Raises:
        DataError: fewer than 2 pixels or different numbers of them; the loss is not finite; the
            state is of another training or damaged; there is too little memory.
    """
    if len(lr_msi) != len(lr_hsi) or len(lr_msi) < 2:
        raise DataError(
            f"{len(lr_msi)} MSI and {len(lr_hsi)} HSI spectra cannot be fitted",
            "give the same number of both, at least 2",
        )
    check_schedule(config)
    device = device or torch.device("cpu")
    model = _build(config, lr_msi, lr_hsi)
    _check_memory(model, device, config, len(lr_msi))
    generator = torch.Generator().manual_seed(config.seed)
    initial = model.initial_weights(generator)
    names = {name: tensor.shape for name, tensor in initial.items()}
    weights = torch.cat([tensor.reshape(-1) for tensor in initial.values()]).to(device)
    losses = torch.zeros(config.epochs, device=device)
    done = 0
    leads = group is None or group.rank == 0
    state_path = state_path if leads else None
    fitting = fingerprint(config, lr_msi, lr_hsi, device.type) if state_path or group else {}
    # copies: where borrowed memory begins differs from run to run, and with it the last bit
    count = check_threads(threads) if device.type == "cpu" else 1
    pairs = [torch.tensor(array, dtype=torch.float32, device=device) for array in (lr_msi, lr_hsi)]
    with on_device(device), Workers(count) as workers:
        trainer = _Trainer(config, pairs[0], pairs[1], weights, workers, group)
        adam = trainer.adam
        if state_path is not None and resume and state_path.exists():
            state = load_state(state_path, fitting, weights.numel(), config.epochs)
            for target, source in ((weights, state.weights), (adam.m, state.m), (adam.v, state.v)):
                target.copy_(source)
            generator.set_state(state.generator)
            done = len(state.losses)
            losses[:done] = state.losses
        if group is not None:
            _warn_of_idle(group, lane_count(trainer.batch, weights.numel(), device), trainer.batch)
            group.check_same(
                hashlib.sha256(repr(sorted(fitting.items())).encode()).digest(), device
            )
            random = generator.get_state().to(device)
            epochs_done = torch.tensor(done, device=device)
            group.send_to_all([weights, adam.m, adam.v, losses, random, epochs_done])
            generator.set_state(random.cpu())
            done = int(epochs_done)
        begun = saved_at = time.monotonic()
        for epoch in range(done + 1, config.epochs + 1):
            lr = learning_rate(epoch, config)
            steps_done = (epoch - 1) * trainer.steps_per_epoch
            losses[epoch - 1] = trainer.epoch(lr, steps_done, generator)
            last = epoch == config.epochs
            due = state_path is not None and (last or time.monotonic() - saved_at >= save_every_s)
            if last or due or device.type == "cpu" or epoch % _GPU_CHECK_EPOCHS == 0:
                _check_losses(losses[:epoch], config)
                progress(epoch, config.epochs)
            if due and state_path is not None:
                state = FitState(weights, adam.m, adam.v, generator.get_state(), losses[:epoch])
                save_state(state, state_path, fitting)
                saved_at = time.monotonic()
        pace = Pace(trainer.steps_per_epoch * (config.epochs - done), time.monotonic() - begun)
    if not bool(torch.isfinite(weights).all()):
        raise _diverged(config.epochs, config)
    final = {name: tensor.clone() for name, tensor in _split(weights.cpu(), names).items()}
    rates = [learning_rate(epoch, config) for epoch in range(1, config.epochs + 1)]
    history = History(np.array(rates), losses.cpu().numpy().astype(np.float64))
    return Fitted(model.with_weights(final), history, pace)


def _build(config: TrainConfig, lr_msi: Any, lr_hsi: Any) -> SpectralModel:
    widths = {"hidden_size": config.hidden_size}
    return build_model(config.preset, lr_msi.shape[1], lr_hsi.shape[1], widths)


def _split(flat: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Return views of a flat vector, one for each name and shape in turn."""
    parts = torch.split(flat, [shape.numel() for shape in shapes.values()])
    return {name: part.view(shapes[name]) for name, part in zip(shapes, parts, strict=True)}


def lane_count(batch: int, parameters: int, device: torch.device) -> int:
    """Return how many lanes share a batch: a power of two, by sizes alone."""
    if device.type not in _LANE_PIXELS:
        return 1
    most = max(1, 2**26 // parameters)  # 256 MB of gradients
    count = max(1, min(batch // _LANE_PIXELS[device.type], _MAX_LANES, most))
    return 1 << (count.bit_length() - 1)


def _check_memory(
    model: SpectralModel, device: torch.device, config: TrainConfig, pixels: int
) -> None:
    parameters = model.parameter_count
    lanes = lane_count(pixels, parameters, device)
    # weights, moments and scratch; gradients; the activations of two lanes at work
    activations = 2 * min(pixels, _CPU_CHUNK) * (16 * config.hidden_size + 3 * model.hsi_bands)
    needed, there = 4 * ((5 + lanes) * parameters + activations), available_memory_bytes()
    if device.type == "cpu" and needed > there:
        raise DataError(
            f"a network of {parameters:,} parameters takes {needed / 1e6:,.0f} MB to train, "
            f"{there / 1e6:,.0f} MB are free",
            f"lower hidden-size, which is {config.hidden_size}",
        )


def _warn_of_idle(group: Group, lanes: int, batch: int) -> None:
    if group.count > lanes:
        warnings.warn(
            f"steps of {batch:,} LR pixels keep {lanes} of {group.count} processes busy",
            SpectraliftWarning,
            stacklevel=3,
        )


def _check_losses(losses: Tensor, config: TrainConfig) -> None:
    if math.isfinite(float(losses[-1])):
        return  # a loss that is lost stays lost, so the last one speaks for all
    epoch = int((~torch.isfinite(losses)).nonzero()[0]) + 1
    raise _diverged(epoch, config)


def _diverged(epoch: int, config: TrainConfig) -> DataError:
    return DataError(
        f"the training diverged: the loss is not finite in epoch {epoch} at a learning rate of "
        f"{learning_rate(epoch, config):.3g}",
        "lower the learning rates (max-lr, init-lr), and look for absurd values in the LR-HSI",
    )
