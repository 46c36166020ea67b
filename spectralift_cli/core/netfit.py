"""Fit a few small residual networks at once by Adam on mini-batches, on one thread or device.

The networks of one fit differ by their initial weights and the order of pixels, and share every
product as one batched product, so that a step costs little more than its arithmetic. One fit runs
on one thread; several run side by side. So the same bytes come out for any number of threads. Random
numbers are drawn on the processor for every device, so that all devices begin alike.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import silu

from spectralift_cli.core.recording import recorded

FloatPixels = NDArray[np.float32]

CPU = torch.device("cpu")
_CPU_CHUNK = 4096  # pixels whose hidden units fit a processor's cache
_GPU_CHUNK = 2**18
_WARM_UP = 0.1
_WEIGHT_DECAY = 1e-4


@dataclass(frozen=True)
class NetSize:
    """The size of a fit.

    Args:
        hidden: width of the hidden layers.
        layers: hidden layers.
        members: networks that are averaged.
        steps: of the optimiser.
        batch: pixels a step and network.
        rate: largest learning rate.
    """

    hidden: int = 64
    layers: int = 3
    members: int = 4
    steps: int = 600
    batch: int = 256
    rate: float = 4e-3


@dataclass(frozen=True, eq=False)
class Nets:
    """Fitted networks, on the device of their fit; shapes as in `ResidualMLP`.

    Args:
        weights: of each layer (members, in, out).
        biases: of each layer (members, out).
        out: (members, hidden, Q), divided by the number of members.
        out_bias: (Q,)
    """

    weights: list[Tensor]
    biases: list[Tensor]
    out: Tensor
    out_bias: Tensor

    def __call__(self, z: FloatPixels) -> FloatPixels:
        """Return the mean output (N, Q) of the networks at features (N, D)."""
        parts = []
        with torch.inference_mode():
            chunk = _CPU_CHUNK if self.out.device.type == "cpu" else _GPU_CHUNK
            for part in torch.split(torch.from_numpy(z).to(self.out.device), chunk):
                y = part.expand(len(self.out), -1, -1)
                for index, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
                    inner = silu(torch.baddbmm(b[:, None], y, w))
                    y = inner if index == 0 else inner + y
                parts.append(torch.bmm(y, self.out).sum(0) + self.out_bias)
        return torch.cat(parts).cpu().numpy()


class _FlatAdam:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) on views of one flat vector.

    PyTorch's own, fused or not, loads its compiler on its first step, which takes longer than many
    a fit here.

    Args:
        shapes: of the parameters.
        device: where they live.
    """

    beta1 = 0.9
    beta2 = 0.99
    epsilon = 1e-8

    def __init__(self, shapes: list[tuple[int, ...]], device: torch.device) -> None:
        sizes = [math.prod(shape) for shape in shapes]
        self._weights = torch.zeros(sum(sizes), device=device)
        self._gradient = torch.zeros_like(self._weights)
        self._m = torch.zeros_like(self._weights)
        self._v = torch.zeros_like(self._weights)
        self._root = torch.empty_like(self._weights)
        self._change = torch.empty_like(self._weights)
        # what differs from step to step: the correction of v, the decay and the size of the step
        self._numbers = torch.zeros(3, device=device)
        self.state = (self._weights, self._gradient, self._m, self._v)
        views = zip(self._weights.split(sizes), self._gradient.split(sizes), shapes, strict=True)  # type: ignore[no-untyped-call]
        self.parameters: list[Tensor] = []
        for weights, gradient, shape in views:
            parameter = weights.view(shape).requires_grad_()
            parameter.grad = gradient.view(shape)  # backward adds to what is there
            self.parameters.append(parameter)

    def prepare(self, rate: float, t: int) -> None:
        """Make the next step the t-th (from 1), with this learning rate."""
        numbers = (
            math.sqrt(1 - self.beta2**t), 1 - rate * _WEIGHT_DECAY, -rate / (1 - self.beta1**t)
        )  # fmt: skip
        for place, number in zip(self._numbers, numbers, strict=True):
            place.fill_(number)

    @torch.no_grad()
    def step(self) -> None:
        """Take the step that was prepared with the gradients that were added up, and clear them."""
        correction, decay, size = self._numbers
        self._m.lerp_(self._gradient, 1 - self.beta1)
        self._v.mul_(self.beta2).addcmul_(self._gradient, self._gradient, value=1 - self.beta2)
        torch.sqrt(self._v, out=self._root)
        self._root.div_(correction).add_(self.epsilon)
        self._weights.mul_(decay)
        torch.mul(self._m, size, out=self._change).div_(self._root)
        self._weights.add_(self._change)
        self._gradient.zero_()


def fit_nets(
    z: FloatPixels,
    targets: FloatPixels,
    scale: FloatPixels,
    size: NetSize,
    seed: int,
    device: torch.device = CPU,
    noise: FloatPixels | None = None,
) -> Nets:
    """Fit networks z -> targets by the mean absolute error; their output starts at zero.

    Args:
        z: (N, D) standardised features.
        targets: (N, Q).
        scale: (Q,) positive, what the outputs are multiplied by, so that the last layer is of the
            order of 1; the error itself is not divided by it.
        size: of the networks and the fit.
        seed: of the weights and the order of pixels.
        device: where the fit runs and the networks stay.
        noise: (M, D); white noise of M dimensions @ this is added to the features, afresh each
            time a pixel is used. None for none.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs, wanted = torch.tensor(z, device=device), torch.tensor(targets, device=device)
    factor = torch.tensor(scale, device=device)
    count, members = len(inputs), size.members
    widths = [inputs.shape[1]] + [size.hidden] * size.layers + [wanted.shape[1]]
    shapes: list[tuple[int, ...]] = []
    for n_in, n_out in itertools.pairwise(widths):
        shapes += [(members, n_in, n_out), (members, 1, n_out)]
    adam = _FlatAdam(shapes, device)
    parameters = adam.parameters
    for index in range(size.layers):  # the last layer stays zero
        deviation = math.sqrt(2 / widths[index])
        with torch.no_grad():
            initial = torch.empty(shapes[2 * index]).normal_(0, deviation, generator=generator)
            parameters[2 * index].copy_(initial)
    batch = min(size.batch, count)
    share = 1 / (batch * float(torch.tensor(scale).sum()))
    order = torch.empty(members, 0, dtype=torch.long, device=device)
    spread = None if noise is None or not noise.any() else torch.tensor(noise, device=device)
    drawn = torch.empty(members, 0, len(() if noise is None else noise), device=device)
    chosen = torch.zeros(members * batch, dtype=torch.long, device=device)
    white = torch.zeros(members, batch, drawn.shape[2], device=device)

    def step() -> None:
        y = inputs.index_select(0, chosen).view(members, batch, -1)
        if spread is not None:
            y = y + white @ spread
        for layer in range(size.layers):
            inner = silu(torch.baddbmm(parameters[2 * layer + 1], y, parameters[2 * layer]))
            y = inner if layer == 0 else inner + y
        out = torch.baddbmm(parameters[-1], y, parameters[-2]) * factor
        error = out.detach() - wanted.index_select(0, chosen).view(members, batch, -1)
        torch.autograd.backward(out, error.sign_().mul_(share))
        adam.step()

    take = recorded(step, adam.state, device)
    for number in range(size.steps):
        done = number / size.steps
        rate = min(1, (done + 1e-3) / _WARM_UP) * (1 + math.cos(math.pi * done)) / 2
        if order.shape[1] < batch:
            fresh = [torch.randperm(count, generator=generator) for _ in range(members)]
            order = torch.cat([order, torch.stack(fresh).to(device)], 1)
            if spread is not None:
                noises = torch.randn(members, count, len(spread), generator=generator)
                drawn = torch.cat([drawn, noises.to(device)], 1)
        chosen.view(members, batch).copy_(order[:, :batch])
        order = order[:, batch:]
        if spread is not None:
            white.copy_(drawn[:, :batch])
            drawn = drawn[:, batch:]
        adam.prepare(size.rate * rate + 1e-6, number + 1)
        take()
    final = [parameter.detach() for parameter in parameters]
    return Nets(
        [final[2 * layer] for layer in range(size.layers)],
        [final[2 * layer + 1][:, 0] for layer in range(size.layers)],
        final[-2] * factor / members,
        (final[-1][:, 0] * factor).mean(0),
    )
