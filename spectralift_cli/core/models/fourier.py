"""The linear model plus random Fourier features of the MSI: what a fit through the physics gives."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from spectralift_cli.core.errors import DataError
from spectralift_cli.core.models.base import Adder, Kernel, SpectralModel, row_width, widened

MAX_SIZE = 8192


def waves(z: Tensor, frequencies: Tensor, phases: Tensor) -> Tensor:
    """Return sqrt(2 / F) cos(z @ frequencies + phases), (n, F) of (n, D).

    Rahimi and Recht, Random Features for Large-Scale Kernel Machines, NIPS 2007.
    """
    turned = torch.addmm(phases, z, frequencies)
    return turned.cos_().mul_(math.sqrt(2 / len(phases)))


class FourierModel(SpectralModel):
    """out = x @ linear + constant + waves(clamp(x @ features + shift)) @ coefficients @ basis.

    The clamp keeps the waves within the range they were fitted to, so that beyond it the output
    goes on as a line.

    Args:
        msi_bands: M.
        hsi_bands: B.
        count: F, waves.
        components: K, of the spectra that the waves add.
    """

    def __init__(self, msi_bands: int, hsi_bands: int, count: int, components: int) -> None:
        super().__init__(msi_bands, hsi_bands)

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device="meta"))

        self.msi_range = empty(2, msi_bands)
        self.linear = empty(msi_bands, hsi_bands)
        self.constant = empty(hsi_bands)
        self.features = empty(msi_bands, msi_bands)
        self.shift = empty(msi_bands)
        self.low = empty(msi_bands)
        self.high = empty(msi_bands)
        self.frequencies = empty(msi_bands, count)
        self.phases = empty(count)
        self.coefficients = empty(count, components)
        self.basis = empty(components, hsi_bands)

    @property
    def trained_range(self) -> Tensor:
        """The (2, M) lowest and highest values that pass unchanged."""
        return self.msi_range

    def initial_weights(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Return zeros: the fit is in closed form (`spectralift_cli.core.physics`)."""
        del generator
        return {name: torch.zeros(p.shape) for name, p in self.named_parameters()}

    def kernel(self, pixels: int, precision: str = "fp32") -> Kernel:
        """Return an inference function; see `SpectralModel.kernel`.

        The last two products are in bfloat16 where that is asked for, all before them in float32.
        """
        add = self.adding_kernel(pixels, 1.0, precision)
        out = torch.empty((pixels, row_width(self.hsi_bands)), device=self.linear.device)

        def call(x: Tensor) -> Tensor:
            add(x, out.zero_())
            return out

        return call

    def adding_kernel(self, pixels: int, share: float, precision: str = "fp32") -> Adder:
        """Return a function that adds `share` times the spectra; see `SpectralModel`.

        Waves, line and constant end in one product, [scores, u, 1] @ [basis; linear; constant].
        """
        parts = {name: p.detach().clone() for name, p in self.named_parameters()}
        device = parts["linear"].device
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        bands, count = self.msi_bands, len(parts["basis"])
        line = widened(torch.cat([parts["linear"], parts["constant"][None]]) * share)
        size = math.sqrt(2 / len(parts["phases"]))  # of the waves
        coefficients = (parts["coefficients"] * size).to(dtype)
        basis = widened((parts["basis"] * share).to(dtype))
        whole = torch.cat([basis, line]) if dtype == torch.float32 else line
        z = torch.empty((pixels, bands), device=device)
        f = torch.empty((pixels, len(parts["phases"])), device=device)
        # in float32 the scores stand before the line's inputs, in one buffer
        before = count if dtype == torch.float32 else 0
        seen = torch.ones((pixels, before + bands + 1), device=device)
        u = seen[:, before : before + bands]
        apart = torch.empty((pixels, count), dtype=dtype, device=device)
        scores = seen[:, :count] if before else apart

        def call(x: Tensor, total: Tensor) -> None:
            torch.clamp(x[:, :bands], parts["msi_range"][0], parts["msi_range"][1], out=u)
            torch.addmm(parts["shift"], u, parts["features"], out=z)
            torch.clamp(z, parts["low"], parts["high"], out=z)
            torch.addmm(parts["phases"], z, parts["frequencies"], out=f).cos_()
            torch.mm(f.to(dtype), coefficients, out=scores)
            total.addmm_(seen, whole)
            if not before:
                total.add_(scores @ basis)

        return call


def build_fourier(msi_bands: int, hsi_bands: int, *, waves: Any, components: Any) -> FourierModel:
    """Return a model of random Fourier features, without storage.

    Raises:
        DataError: the number of waves or components is out of bounds.
    """
    for what, count in (("waves", waves), ("components", components)):
        if type(count) is not int or not 1 <= count <= MAX_SIZE:
            raise DataError(
                f"the model has {count!r} {what}, outside 1 to {MAX_SIZE:,}",
                "the checkpoint is damaged: train again",
            )
    return FourierModel(msi_bands, hsi_bands, waves, components)
