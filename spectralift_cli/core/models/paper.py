"""SpectralSR_MLP, the network of Shah and Duarte, "SpectraLift", arXiv 2507.13339."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, leaky_relu_

from spectralift_cli.core.errors import DataError
from spectralift_cli.core.models.base import Kernel, SpectralModel, row_width, widened

NEGATIVE_SLOPE = 0.3
HIDDEN_LAYERS = 6
MAX_HIDDEN_SIZE = 8192


class SpectralSRMLP(SpectralModel):
    """Six hidden layers with skips after layers 2, 4 and 6.

    With a = LeakyReLU of slope 0.3:
        x1 = a(L1 x); y = a(L2 x1) + x1; y = a(L4 a(L3 y)) + y; y = a(L6 a(L5 y)) + y; out = L_out y.

    Args:
        msi_bands: M.
        hsi_bands: B.
        hidden_size: width of the hidden layers; 64 as published.
    """

    def __init__(self, msi_bands: int, hsi_bands: int, hidden_size: int = 64) -> None:
        super().__init__(msi_bands, hsi_bands)
        self.hidden_size = hidden_size
        widths = [msi_bands] + [hidden_size] * HIDDEN_LAYERS
        self.hidden = nn.ModuleList(
            nn.Linear(n_in, n_out, device="meta") for n_in, n_out in itertools.pairwise(widths)
        )
        self.out = nn.Linear(hidden_size, hsi_bands, device="meta")

    def initial_weights(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Return Glorot-uniform weights, U(-l, l) with l = sqrt(6 / (n_in + n_out)), zero biases.

        Keras's defaults (Glorot and Bengio, AISTATS 2010, equation 16).
        """
        weights = {}
        for name, parameter in self.named_parameters():
            values = torch.zeros(parameter.shape)
            if parameter.ndim == 2:
                limit = math.sqrt(6 / sum(parameter.shape))
                values.uniform_(-limit, limit, generator=generator)
            weights[name] = values
        return weights

    def forward(self, x: Tensor) -> Tensor:
        """Return HSI spectra (..., B) of MSI spectra (..., M)."""
        first, *rest = self.hidden
        x1 = leaky_relu(first(x), NEGATIVE_SLOPE)  # (..., hidden)
        y = leaky_relu(rest[0](x1), NEGATIVE_SLOPE) + x1
        for one, two in ((rest[1], rest[2]), (rest[3], rest[4])):
            inner = leaky_relu(one(y), NEGATIVE_SLOPE)
            y = leaky_relu(two(inner), NEGATIVE_SLOPE) + y
        return self.out(y)  # type: ignore[no-any-return]  # (..., B)

    def kernel(self, pixels: int, precision: str = "fp32") -> Kernel:
        """Return an inference function; see `SpectralModel.kernel`.

        With bf16 the spectra enter in float32 and all layers but the first compute in bfloat16:
        about three digits, twice the speed or more where the processor multiplies bfloat16.
        """
        return _PaperKernel(self, pixels, torch.bfloat16 if precision == "bf16" else torch.float32)


class _PaperKernel:
    """The forward pass into three buffers of hidden units that stay in the processor's cache."""

    def __init__(self, model: SpectralSRMLP, pixels: int, dtype: torch.dtype) -> None:
        layers = [*model.hidden, model.out]
        # column-major as a product wants them, and on memory of their own: where an array begins
        # decides which instructions run, so borrowed memory could change the last bit
        types = [torch.float32] + [dtype] * HIDDEN_LAYERS
        self._weights = [
            layer.weight.detach().t().to(t, copy=True).contiguous()
            for layer, t in zip(layers, types, strict=True)
        ]
        self._biases = [
            layer.bias.detach().to(t, copy=True) for layer, t in zip(layers, types, strict=True)
        ]
        self._weights[-1], self._biases[-1] = widened(self._weights[-1]), widened(self._biases[-1])
        device = self._weights[0].device
        shape = (pixels, model.hidden_size)
        self._buffers = [torch.empty(shape, dtype=dtype, device=device) for _ in range(3)]
        self._first = (
            self._buffers[0] if dtype == torch.float32 else torch.empty(shape, device=device)
        )
        self._out = torch.empty((pixels, row_width(model.hsi_bands)), device=device)
        self._last = self._out if dtype == torch.float32 else self._out.to(dtype)

    def _layer(self, index: int, x: Tensor, out: Tensor) -> Tensor:
        torch.addmm(self._biases[index], x, self._weights[index], out=out)
        return leaky_relu_(out, NEGATIVE_SLOPE)

    def __call__(self, x: Tensor) -> Tensor:
        a, b, c = self._buffers  # (pixels, hidden) each
        self._layer(0, x, self._first)
        if self._first is not a:
            a.copy_(self._first)
        self._layer(1, a, b).add_(a)
        self._layer(2, b, a)
        self._layer(3, a, c).add_(b)
        self._layer(4, c, a)
        self._layer(5, a, b).add_(c)
        torch.addmm(self._biases[6], b, self._weights[6], out=self._last)  # (pixels, W)
        return self._out if self._last is self._out else self._out.copy_(self._last)


def build_paper(msi_bands: int, hsi_bands: int, *, hidden_size: int = 64) -> SpectralSRMLP:
    """Return the network of the paper, without storage.

    Args:
        msi_bands: M, at least 1.
        hsi_bands: B, at least 1.
        hidden_size: 1 to 8192.

    Raises:
        DataError: the width is no whole number within the bounds.
    """
    if type(hidden_size) is not int or not 1 <= hidden_size <= MAX_HIDDEN_SIZE:
        raise DataError(
            f"hidden-size is {hidden_size!r}, outside 1 to {MAX_HIDDEN_SIZE}",
            "choose a whole number within the bounds",
        )
    return SpectralSRMLP(msi_bands, hsi_bands, hidden_size)
