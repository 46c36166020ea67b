"""The spectral inverters: networks from an MSI spectrum to an HSI spectrum, pixel by pixel.

This table imports only the standard library; a row names its builder as text.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelRow:
    """One spectral inverter.

    Args:
        help: one line.
        builder: "module:function", called as builder(msi_bands, hsi_bands, **model_config).
    """

    help: str
    builder: str


MODELS: dict[str, ModelRow] = {
    "paper": ModelRow(
        "SpectralSR_MLP of the paper: six hidden layers with skips",
        "spectralift_cli.core.models.paper:build_paper",
    ),
}
