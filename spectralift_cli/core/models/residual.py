"""A linear map plus a small network for what the line leaves over, with or without a coarse prior.

All inverters of this form are one class: u = [MSI spectrum, prior scores at the pixel], and

    out = u @ linear + constant + net(clamp(u @ features + shift)) @ out_layers

Without hidden layers it is the linear model, without a prior a per-pixel network. The clamp keeps
the network within the range it was trained on, so that beyond it the output goes on as a line; the
MSI itself is held within a wider range, so that no input gives an unbounded output.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from spectralift_cli.core.errors import DataError
from spectralift_cli.core.models.base import Kernel, SpectralModel, row_width, widened

MAX_SIZE = 8192
_MAX_GRID = 2**20


class ResidualMLP(SpectralModel):
    """A linear base and the mean of a few residual networks on standardised, clamped features.

    A network has `layers` hidden layers y1 = silu(z W1 + b1), y_i = silu(y_(i-1) W_i + b_i) +
    y_(i-1); its last product is divided by the number of networks beforehand.

    Args:
        msi_bands: M.
        hsi_bands: B.
        features: D, what the networks see; 0 for the linear model.
        hidden_size: width of the hidden layers.
        layers: hidden layers of each network.
        members: networks that are averaged.
        prior: K, scores of the LR-HSI at the pixel; 0 for none.
        grid: (rows, cols) of the LR-HSI's scores.
    """

    def __init__(
        self,
        msi_bands: int,
        hsi_bands: int,
        *,
        features: int = 0,
        hidden_size: int = 0,
        layers: int = 0,
        members: int = 0,
        prior: int = 0,
        grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(msi_bands, hsi_bands)
        self.needs_position = prior > 0
        self.layers = layers
        self.members = members

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device="meta"))

        seen = msi_bands + prior
        self.msi_range = empty(2, msi_bands)
        self.linear = empty(seen, hsi_bands)
        self.constant = empty(hsi_bands)
        if prior and grid is not None:
            self.scores = empty(*grid, prior)
        if members:
            self.features = empty(seen, features)
            self.shift = empty(features)
            self.low = empty(features)
            self.high = empty(features)
            widths = [features] + [hidden_size] * layers
            self.weights = nn.ParameterList(
                empty(members, n_in, n_out) for n_in, n_out in itertools.pairwise(widths)
            )
            self.biases = nn.ParameterList(empty(members, n) for n in widths[1:])
            self.out = empty(members, hidden_size, hsi_bands)
            self.out_bias = empty(hsi_bands)

    @property
    def flops_per_pixel(self) -> int:
        """Floating point operations that inference spends on a pixel; the prior's table is free."""
        tables = (self.scores,) if self.needs_position else ()
        skipped = sum(2 * table.numel() for table in tables)
        return super().flops_per_pixel - skipped

    @property
    def trained_range(self) -> Tensor:
        """The (2, M) lowest and highest values that pass unchanged."""
        return self.msi_range

    def initial_weights(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Return zeros: what fits these models begins elsewhere (`spectralift_cli.core.netfit`)."""
        del generator
        return {name: torch.zeros(p.shape) for name, p in self.named_parameters()}

    def forward(self, x: Tensor) -> Tensor:
        """Return HSI spectra (n, B) of MSI spectra (n, M), with (row, col) behind them if needed."""
        return self.kernel(len(x))(x)[:, : self.hsi_bands]

    def kernel(self, pixels: int, precision: str = "fp32") -> Kernel:
        """Return an inference function; see `SpectralModel.kernel`.

        With bf16 the networks' hidden and output layers compute in bfloat16, the line in float32.
        """
        return self.scaled_kernel(pixels, 1.0, precision)

    def scaled_kernel(self, pixels: int, share: float, precision: str = "fp32") -> Kernel:
        """Return a kernel of `share` times the spectra, which its last layers carry."""
        return _ResidualKernel(
            self, pixels, torch.bfloat16 if precision == "bf16" else torch.float32, share
        )


class _ResidualKernel:
    """The forward pass into buffers that stay in the processor's cache."""

    def __init__(
        self, model: ResidualMLP, pixels: int, dtype: torch.dtype, share: float = 1.0
    ) -> None:
        def own(tensor: Tensor, to: torch.dtype = torch.float32) -> Tensor:
            # on memory of its own: where an array begins decides which instructions run
            return tensor.detach().to(to, copy=True).contiguous()

        self._m = model.msi_bands
        self._dtype = dtype
        self._low, self._high = own(model.msi_range)
        self._linear = widened(own(model.linear * share))
        self._constant = widened(own(model.constant * share))
        device = self._linear.device
        self._u = torch.empty((pixels, len(self._linear)), device=device)
        self._sum = torch.empty((pixels, row_width(model.hsi_bands)), device=device)
        self._prior = _Prior(own(model.scores), pixels) if model.needs_position else None
        self._members = model.members
        if not model.members:
            return
        self._features, self._shift = own(model.features), own(model.shift)
        self._clamp = own(model.low), own(model.high)
        self._weights = [own(w, dtype) for w in model.weights]
        self._biases = [own(b, dtype) for b in model.biases]
        self._out = widened(own(model.out * share, dtype))
        self._constant[: model.hsi_bands] += model.out_bias.detach() * share
        width = model.out.shape[1]
        self._z = torch.empty((pixels, self._features.shape[1]), device=device)
        self._y = [torch.empty((pixels, width), dtype=dtype, device=device) for _ in range(2)]
        self._low_sum = None if dtype == torch.float32 else torch.empty_like(self._sum, dtype=dtype)

    def __call__(self, x: Tensor) -> Tensor:
        u = self._u
        torch.clamp(x[:, : self._m], self._low, self._high, out=u[:, : self._m])
        if self._prior is not None:
            self._prior(x[:, self._m :], u[:, self._m :])
        torch.addmm(self._constant, u, self._linear, out=self._sum)  # (pixels, W)
        if not self._members:
            return self._sum
        z = torch.addmm(self._shift, u, self._features, out=self._z)
        torch.clamp(z, *self._clamp, out=z)
        first = z.to(self._dtype)
        total = self._sum if self._low_sum is None else self._low_sum.zero_()
        for member in range(self._members):
            a, b = self._y
            torch.addmm(self._biases[0][member], first, self._weights[0][member], out=a)
            silu(a, inplace=True)
            for w, bias in zip(self._weights[1:], self._biases[1:], strict=True):
                torch.addmm(bias[member], a, w[member], out=b)
                silu(b, inplace=True).add_(a)
                a, b = b, a
            total.addmm_(a, self._out[member])
        if self._low_sum is not None:
            self._sum.add_(self._low_sum)
        return self._sum


class _Prior:
    """The LR-HSI's scores at a position, bilinear between pixel centres, constant beyond them."""

    def __init__(self, scores: Tensor, pixels: int) -> None:
        self._rows, self._cols, count = scores.shape
        self._table = scores.reshape(-1, count)
        self._part = torch.empty((pixels, count), device=scores.device)

    def __call__(self, position: Tensor, out: Tensor) -> None:
        top, down = _cell(position[:, 0], self._rows)
        left, right = _cell(position[:, 1], self._cols)
        below = (top + 1).clamp_(max=self._rows - 1)
        beside = (left + 1).clamp_(max=self._cols - 1)
        corners = (
            (top, left, (1 - down) * (1 - right)), (top, beside, (1 - down) * right),
            (below, left, down * (1 - right)), (below, beside, down * right),
        )  # fmt: skip
        out.zero_()
        for row, col, share in corners:
            torch.index_select(self._table, 0, row * self._cols + col, out=self._part)
            out.addcmul_(self._part, share[:, None])


def _cell(position: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the pixel whose centre is before a position in 0..1, and how far beyond it that is."""
    at = (position * size - 0.5).clamp_(0, size - 1)
    first = at.floor()
    return first.long(), at - first


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise DataError(
            f"the model's {name} is {value!r}, no whole number from {low} to {high}",
            "the checkpoint is damaged: train again",
        )
    return value


def build_linear(msi_bands: int, hsi_bands: int) -> ResidualMLP:
    """Return the linear model, without storage."""
    return ResidualMLP(msi_bands, hsi_bands)


def build_residual(
    msi_bands: int, hsi_bands: int, *, hidden_size: int, layers: int, members: int
) -> ResidualMLP:
    """Return a per-pixel residual network, without storage.

    Raises:
        DataError: a size out of bounds.
    """
    return ResidualMLP(
        msi_bands, hsi_bands, features=msi_bands,
        hidden_size=_whole("hidden size", hidden_size, 1, MAX_SIZE),
        layers=_whole("layers", layers, 1, 64), members=_whole("members", members, 0, 64),
    )  # fmt: skip


def build_prior(
    msi_bands: int,
    hsi_bands: int,
    *,
    components: int,
    grid: Any,
    features: int,
    hidden_size: int,
    layers: int,
    members: int,
) -> ResidualMLP:
    """Return a residual network that also sees the LR-HSI at the pixel, without storage.

    Args:
        msi_bands: M.
        hsi_bands: B.
        components: K, scores of the LR-HSI.
        grid: [rows, cols] of the LR-HSI.
        features: D, what the networks see.
        hidden_size: width.
        layers: hidden layers.
        members: networks.

    Raises:
        DataError: a size out of bounds.
    """
    if not isinstance(grid, list | tuple) or len(grid) != 2:
        raise DataError(f"the model's grid is {grid!r}", "the checkpoint is damaged: train again")
    rows, cols = (_whole("grid", n, 1, _MAX_GRID) for n in grid)
    return ResidualMLP(
        msi_bands, hsi_bands, features=_whole("features", features, 1, MAX_SIZE),
        hidden_size=_whole("hidden size", hidden_size, 1, MAX_SIZE),
        layers=_whole("layers", layers, 1, 64), members=_whole("members", members, 0, 64),
        prior=_whole("components", components, 1, MAX_SIZE), grid=(rows, cols),
    )  # fmt: skip
