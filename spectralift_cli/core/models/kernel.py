"""The linear model plus kernel ridge regression of its residual: Matern 5/2 on centres."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spectralift_cli.core.errors import DataError
from spectralift_cli.core.models.base import Kernel, SpectralModel, row_width, widened

MAX_CENTRES = 65_536
_TABLE = 2**19  # kernel values at a time on a processor


def matern52(scaled: Tensor, centres: Tensor) -> Tensor:
    """Return k(r) = (1 + r + r^2 / 3) exp(-r), r = sqrt(5) |x - c| / length: (n, centres).

    Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), equation 4.17.

    Args:
        scaled: (n, D), multiplied by sqrt(5) / length already.
        centres: (centres, D), likewise.
    """
    squared = (scaled * scaled).sum(1, keepdim=True) + (centres * centres).sum(1)
    squared.addmm_(scaled, centres.T, alpha=-2).clamp_(min=0)
    r = squared.sqrt()
    return squared.div_(3).add_(r).add_(1).mul_(r.neg_().exp_())


class KernelModel(SpectralModel):
    """out = x @ linear + constant + k(x, centres) @ coefficients.

    Far from all centres the kernel is 0, so that the line alone is left.

    Args:
        msi_bands: M.
        hsi_bands: B.
        centres: number of LR pixels the kernel stands on.
    """

    def __init__(self, msi_bands: int, hsi_bands: int, centres: int) -> None:
        super().__init__(msi_bands, hsi_bands)

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device="meta"))

        self.msi_range = empty(2, msi_bands)
        self.linear = empty(msi_bands, hsi_bands)
        self.constant = empty(hsi_bands)
        self.factor = empty(msi_bands)
        self.shift = empty(msi_bands)
        self.centres = empty(centres, msi_bands)
        self.coefficients = empty(centres, hsi_bands)

    @property
    def trained_range(self) -> Tensor:
        """The (2, M) lowest and highest values that pass unchanged."""
        return self.msi_range

    def initial_weights(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Return zeros: the fit is in closed form (`spectralift_cli.core.kernelfit`)."""
        del generator
        return {name: torch.zeros(p.shape) for name, p in self.named_parameters()}

    def kernel_bytes(self, pixels: int) -> int:
        """Return about the memory that a kernel takes; see `SpectralModel.kernel_bytes`."""
        tables = 4 * max(_TABLE, 64 * len(self.centres))
        return 4 * (tables + pixels * (self.hsi_bands + 4 * self.msi_bands) + self.parameter_count)

    def kernel(self, pixels: int, precision: str = "fp32") -> Kernel:
        """Return an inference function; see `SpectralModel.kernel`. It computes in float32 always."""
        del precision
        parts = {name: p.detach().clone() for name, p in self.named_parameters()}
        for name in ("linear", "constant", "coefficients"):
            parts[name] = widened(parts[name])
        out = torch.empty((pixels, row_width(self.hsi_bands)), device=parts["linear"].device)
        # the table of kernel values must fit a processor's cache, or a part of a GPU's memory,
        # whatever the number of centres
        table = _TABLE if out.device.type == "cpu" else 2**26
        step = max(64, table // max(1, len(parts["centres"])))

        def call(x: Tensor) -> Tensor:
            x = x.clamp(parts["msi_range"][0], parts["msi_range"][1])
            torch.addmm(parts["constant"], x, parts["linear"], out=out)
            scaled = torch.addcmul(parts["shift"], x, parts["factor"])
            for part, into in zip(torch.split(scaled, step), torch.split(out, step), strict=True):
                into.addmm_(matern52(part, parts["centres"]), parts["coefficients"])
            return out

        return call


def build_kernel(msi_bands: int, hsi_bands: int, *, centres: Any) -> KernelModel:
    """Return a kernel model, without storage.

    Raises:
        DataError: the number of centres is out of bounds.
    """
    if type(centres) is not int or not 1 <= centres <= MAX_CENTRES:
        raise DataError(
            f"the kernel has {centres!r} centres, outside 1 to {MAX_CENTRES:,}",
            "the checkpoint is damaged: train again",
        )
    return KernelModel(msi_bands, hsi_bands, centres)
