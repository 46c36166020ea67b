"""The sum of a few inverters, each of which carries its weight in its own output layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spectralift_cli.core.errors import DataError
from spectralift_cli.core.models.base import Kernel, SpectralModel, build_model

_MAX_MEMBERS = 16


class Ensemble(SpectralModel):
    """The weighted sum of inverters.

    Args:
        members: all of the same numbers of bands, without storage.
    """

    def __init__(self, members: list[SpectralModel]) -> None:
        super().__init__(members[0].msi_bands, members[0].hsi_bands)
        self.needs_position = any(member.needs_position for member in members)
        self.member_weights = nn.Parameter(torch.empty(len(members), device="meta"))
        self.members = nn.ModuleList(members)

    @property
    def flops_per_pixel(self) -> int:
        """Floating point operations that inference spends on a pixel."""
        return sum(member.flops_per_pixel + 2 * self.hsi_bands for member in self._models())

    @property
    def trained_range(self) -> Tensor | None:
        """The range of the first member that has one."""
        ranges = (member.trained_range for member in self._models())
        return next((found for found in ranges if found is not None), None)

    def _models(self) -> list[SpectralModel]:
        return [member for member in self.members if isinstance(member, SpectralModel)]

    def initial_weights(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the members' initial weights, each with the same share."""
        found = {"member_weights": torch.full((len(self.members),), 1 / len(self.members))}
        for index, member in enumerate(self._models()):
            for name, tensor in member.initial_weights(generator).items():
                found[f"members.{index}.{name}"] = tensor
        return found

    def kernel_bytes(self, pixels: int) -> int:
        """Return about the memory that a kernel takes; see `SpectralModel.kernel_bytes`."""
        return sum(member.kernel_bytes(pixels) for member in self._models())

    def kernel(self, pixels: int, precision: str = "fp32") -> Kernel:
        """Return an inference function; see `SpectralModel.kernel`."""
        first, *others = self._models()
        share, *shares = (float(share) for share in self.member_weights.detach())
        begin = first.scaled_kernel(pixels, share, precision)
        adders = [
            (member.adding_kernel(pixels, part, precision), member.inputs)
            for member, part in zip(others, shares, strict=True)
        ]

        def call(x: Tensor) -> Tensor:
            total = begin(x[:, : first.inputs])
            for add, count in adders:
                add(x[:, :count], total)
            return total

        return call


def build_ensemble(msi_bands: int, hsi_bands: int, *, members: Any) -> Ensemble:
    """Return a sum of inverters, without storage.

    Args:
        msi_bands: M.
        hsi_bands: B.
        members: [{"name": ..., "config": {...}}, ...], none of which is an ensemble.

    Raises:
        DataError: the members are no such list.
    """
    fits = (
        isinstance(members, list)
        and 1 <= len(members) <= _MAX_MEMBERS
        and all(
            isinstance(m, Mapping)
            and isinstance(m.get("name"), str)
            and isinstance(m.get("config"), Mapping)
            and m["name"] != "ensemble"
            for m in members
        )
    )
    if not fits:
        raise DataError(
            f"an ensemble needs a list of 1 to {_MAX_MEMBERS} members, each a model by name",
            "the checkpoint is damaged: train again",
        )
    return Ensemble([build_model(m["name"], msi_bands, hsi_bands, m["config"]) for m in members])
