"""What training, checkpoints and inference ask of a spectral inverter."""

from __future__ import annotations

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spectralift_cli.core.errors import DataError
from spectralift_cli.core.models import MODELS

Kernel = Callable[[Tensor], Tensor]
Adder = Callable[[Tensor, Tensor], None]


class SpectralModel(nn.Module, ABC):
    """A network from an MSI spectrum to an HSI spectrum, pixel by pixel.

    A builder returns it on PyTorch's meta device: shapes without storage, so that what a file
    promises can be compared before anything is allocated, and no random number is drawn that is
    not asked for. `with_weights` gives it storage.

    Args:
        msi_bands: M, bands that go in.
        hsi_bands: B, bands that come out.
    """

    def __init__(self, msi_bands: int, hsi_bands: int) -> None:
        super().__init__()
        self.msi_bands = msi_bands
        self.hsi_bands = hsi_bands
        self.needs_position = False

    @property
    def inputs(self) -> int:
        """Columns that go in: M, and 2 for the position where the model needs one.

        A position is (row, col) of the pixel's centre as parts of the LR-HSI's height and width,
        from 0 to 1 inside it; so a pixel still decides by itself, however the image is cut.
        """
        return self.msi_bands + 2 * self.needs_position

    @property
    def trained_range(self) -> Tensor | None:
        """The (2, M) lowest and highest scaled MSI values that pass unchanged, or None."""
        return None

    @abstractmethod
    def initial_weights(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the weights that training starts from, float32 on the CPU, by name."""

    @abstractmethod
    def kernel(self, pixels: int, precision: str = "fp32") -> Kernel:
        """Return a function for inference on exactly `pixels` pixels at a time.

        It takes scaled MSI spectra (pixels, `inputs`) float32, with positions if it needs them, on
        the weights' device and returns (pixels, `row_width(B)`) float32, of which the first B columns
        are the spectra, in a buffer of its own, which the next call overwrites and the caller may
        change. It serves one thread; threads that work at once need one each.

        Args:
            pixels: of a call.
            precision: "fp32" or "bf16".
        """

    def scaled_kernel(self, pixels: int, share: float, precision: str = "fp32") -> Kernel:
        """Return a kernel of `share` times the spectra; see `kernel`."""
        whole = self.kernel(pixels, precision)
        return lambda x: whole(x).mul_(share)

    def adding_kernel(self, pixels: int, share: float, precision: str = "fp32") -> Adder:
        """Return a function (x, total) that adds `share` times the spectra to a kernel's result.

        See `kernel`; a model whose last step is a product adds it up there, which saves passes over
        the spectra.
        """
        whole = self.kernel(pixels, precision)

        def call(x: Tensor, total: Tensor) -> None:
            total.add_(whole(x), alpha=share)

        return call

    @property
    def parameter_count(self) -> int:
        """Number of weights and biases."""
        return sum(p.numel() for p in self.parameters())

    @property
    def flops_per_pixel(self) -> int:
        """Floating point operations that inference spends on a pixel.

        Two for each weight of a matrix (multiply and add), one for each bias.
        """
        return sum((2 if p.ndim > 1 else 1) * p.numel() for p in self.parameters())

    def kernel_bytes(self, pixels: int) -> int:
        """Return about the memory that a kernel for so many pixels takes, its weights included."""
        # the prior's grid is no layer
        widest = max(max(p.shape) for n, p in self.named_parameters() if not n.endswith("scores"))
        layers = 3 * pixels * (widest + self.hsi_bands)
        return 4 * (layers + self.parameter_count)

    def with_weights(self, weights: Mapping[str, Tensor]) -> SpectralModel:
        """Take these tensors as weights, without copying them; return the model itself."""
        self.load_state_dict(dict(weights), strict=True, assign=True)
        return self.requires_grad_(False)


def row_width(bands: int) -> int:
    """Return the columns of a kernel's result for B bands: B, or 1 or 3 more where that is odd.

    A product with an odd number of columns takes up to a fifth longer than one with four's multiple.
    """
    return bands if bands % 2 == 0 else -(-bands // 4) * 4


def widened(tensor: Tensor) -> Tensor:
    """Return a copy of the weights (..., B) of a last layer with zeros up to a kernel's columns."""
    bands = tensor.shape[-1]
    wide = tensor.new_zeros((*tensor.shape[:-1], row_width(bands)))
    wide[..., :bands] = tensor
    return wide


def build_model(
    name: str, msi_bands: int, hsi_bands: int, config: Mapping[str, Any]
) -> SpectralModel:
    """Return a model of the table, without storage.

    Args:
        name: a key of `MODELS`.
        msi_bands: M, at least 1.
        hsi_bands: B, at least 1.
        config: the keyword arguments of its builder.

    Raises:
        DataError: there is no such model, or it does not take this configuration.
    """
    if name not in MODELS:
        raise DataError(f"{name!r} is not a model", f"known models: {', '.join(MODELS)}")
    module, _, function = MODELS[name].builder.partition(":")
    builder: Callable[..., SpectralModel] = getattr(importlib.import_module(module), function)
    try:
        call = inspect.signature(builder).bind(msi_bands, hsi_bands, **config)
    except TypeError as error:
        raise DataError(
            f"model {name} does not take the configuration {dict(config)}",
            "the checkpoint was made by another version of spectralift, or is damaged",
        ) from error
    return builder(*call.args, **call.kwargs)
