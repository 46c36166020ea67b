"""Random Fourier features of the MSI, drawn for a Matern kernel; see the package's derivation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from spectralift_cli.core.coarse import product
from spectralift_cli.core.models.fourier import waves

Floats32 = NDArray[np.float32]
Floats = NDArray[np.float64]

_SMOOTHNESS = 2.5


@dataclass(frozen=True)
class WaveChoice:
    """What a fit chooses among.

    Args:
        count: F, waves.
        lengths: length scales in standard deviations of the LR-MSI.
    """

    count: int
    lengths: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Waves:
    """Random Fourier features with their coefficients.

    Args:
        frequencies: (M, F).
        phases: (F,).
        coefficients: (F, K); (F, K) @ (K, B) are those of the spectra.
        basis: (K, B), orthonormal.
    """

    frequencies: Floats32
    phases: Floats32
    coefficients: Floats32
    basis: Floats32

    @classmethod
    def drawn(cls, bands: int, choice: WaveChoice, length: float, seed: int) -> Waves:
        """Draw the waves of a Matern kernel of a length scale; their coefficients are still zero.

        Its spectral density is Student's t distribution of 2 v degrees of freedom.
        """
        rng = np.random.default_rng(seed)
        normal = rng.standard_normal((bands, choice.count))
        spread = np.sqrt(rng.chisquare(2 * _SMOOTHNESS, choice.count) / (2 * _SMOOTHNESS))
        phases = rng.uniform(0, 2 * np.pi, choice.count)
        return cls(
            (normal / spread / length).astype(np.float32), phases.astype(np.float32),
            np.zeros((choice.count, 0), np.float32), np.zeros((0, 0), np.float32),
        )  # fmt: skip

    def features(self, z: Floats32, group: slice = slice(None)) -> Floats32:
        """Return (n, F), or a group of them, of standardised MSI (n, M)."""
        frequencies = torch.from_numpy(np.ascontiguousarray(self.frequencies[:, group]))
        made = waves(torch.from_numpy(z), frequencies, torch.from_numpy(self.phases[group]))
        return made.numpy() * np.float32(np.sqrt(len(self.phases[group]) / len(self.phases)))

    def with_coefficients(self, coefficients: Floats, z: Floats32, allowed: float) -> Waves:
        """Return waves of fewest components that spectra need, which saves inference most of a product.

        Args:
            coefficients: (F, B).
            z: (n, M) standardised MSI, to judge by.
            allowed: root mean square there of what the components that are left out say.
        """
        spectra = product(self.features(z), coefficients)
        found = torch.linalg.eigh(torch.from_numpy(product(spectra.T, spectra)))
        left = np.sqrt(np.cumsum(found[0].clamp(min=0).numpy()) / spectra.size)
        dropped = min(int((left <= allowed).sum()), len(left) - 1)
        axes = found[1].numpy()[:, dropped:]
        # the sign of an eigenvector is arbitrary: fixed, so that it cannot differ between runs
        axes = axes * np.where(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])] < 0, -1, 1)
        return dataclasses.replace(
            self, coefficients=product(coefficients, axes).astype(np.float32),
            basis=axes.T.astype(np.float32),
        )  # fmt: skip
