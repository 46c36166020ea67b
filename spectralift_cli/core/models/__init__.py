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
    "linear": ModelRow(
        "least squares in closed form",
        "spectralift_cli.core.models.residual:build_linear",
    ),
    "residual-mlp": ModelRow(
        "the linear model and the mean of small networks for what it leaves over",
        "spectralift_cli.core.models.residual:build_residual",
    ),
    "kernel": ModelRow(
        "the linear model and kernel ridge regression (Matern 5/2) of what it leaves over",
        "spectralift_cli.core.models.kernel:build_kernel",
    ),
    "prior-mlp": ModelRow(
        "the LR-HSI interpolated at the pixel, corrected by the MSI; for this image only",
        "spectralift_cli.core.models.residual:build_prior",
    ),
    "physics": ModelRow(
        "the linear model and random Fourier features, fitted to the LR-HSI through the PSF",
        "spectralift_cli.core.models.fourier:build_fourier",
    ),
    "ensemble": ModelRow(
        "a weighted sum of the others",
        "spectralift_cli.core.models.ensemble:build_ensemble",
    ),
}
