"""The LR-HSI's signal: a few components beyond its noise, both learned from the image.

Factor analysis: the bands are divided by their noise's standard deviation, so that noise is alike
in all of them; principal components beyond what noise alone could make hold the signal; what they
leave tells each band's noise, and so on until both agree. The largest eigenvalue that noise alone
makes of N pixels of B bands is (1 + sqrt(B / N))^2 (Marchenko and Pastur 1967; see Gavish and
Donoho, IEEE Transactions on Information Theory 60 (2014), for its use as a threshold).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from spectralift_cli.core.cube import FloatArray
from spectralift_cli.core.errors import DataError

Floats32 = NDArray[np.float32]

MOST_COMPONENTS = 20  # beyond about 20 components nothing but noise was gained
_ROUNDS = 6
_BEYOND_NOISE = 1.2  # times the largest eigenvalue of noise
# a band that the others explain too well would take all weight: none is quieter than this part
# of the typical band, each relative to its own root mean square
_QUIETEST = 0.3


@dataclass(frozen=True, eq=False)
class SignalSpace:
    """Spectra = mean + noise_std * (basis @ z), z the coefficients.

    Args:
        mean: (B,) of the LR-HSI.
        noise_std: (B,) standard deviation of its noise, in units.
        rms: (B,) its root mean square, in units.
        basis: (B, K), orthonormal.
        noise_power: (K,) variance of noise in each coefficient.
    """

    mean: FloatArray
    noise_std: FloatArray
    rms: FloatArray
    basis: FloatArray
    noise_power: FloatArray

    @property
    def components(self) -> int:
        """K."""
        return int(self.basis.shape[1])

    @classmethod
    def of(
        cls, total: FloatArray, squares: FloatArray, pixels: int, components: int | None = None
    ) -> SignalSpace:
        """Find the signal of spectra by their sums.

        Args:
            total: (B,) sum of the spectra.
            squares: (B, B) sum of their outer products.
            pixels: that were summed.
            components: K; None to find it.

        Raises:
            DataError: fewer than 4 pixels, or an image of nothing.
        """
        bands = len(total)
        if pixels < 4:
            raise DataError(
                f"{pixels} valid LR pixels are too few to tell signal from noise",
                "give an LR-HSI with more valid pixels, and check its nodata value",
            )
        mean = total / pixels
        covariance = squares / pixels - np.outer(mean, mean)
        rms = np.sqrt(np.maximum(np.diag(squares) / pixels, 0))
        if not rms.max() > 0:
            raise DataError("the LR-HSI is zero everywhere", "check that it is the right file")
        rms = np.maximum(rms, 1e-6 * rms.max())
        deviation = _beyond_others(covariance / np.outer(rms, rms), pixels) * rms
        rank = max(1, min(pixels - 1, bands))
        most = min(MOST_COMPONENTS if components is None else components, max(1, rank - 1))
        kept, axes = 1, np.eye(bands)[:, :1]
        for round_ in range(_ROUNDS + 1):
            whitened = covariance / np.outer(deviation, deviation)
            values, vectors = _eigen(whitened)
            kept = most
            if components is None:
                left_over = values[:rank][min(most, rank // 2) :]
                floor = max(float(np.median(left_over)), 1e-12)
                shape = min(bands, pixels) / max(bands, pixels)
                edge = _BEYOND_NOISE * floor * (1 + np.sqrt(shape)) ** 2
                kept = int(np.clip((values[:rank] > edge).sum(), 1, most))
            axes = vectors[:, :kept]
            if round_ == _ROUNDS or bands == 1:  # no other band tells the noise of a single one
                break
            left = np.eye(bands) - axes @ axes.T
            residual = np.einsum("ij,jk,ik->i", left, whitened, left)
            # what K axes take out of a band's noise, and of the pixels' degrees of freedom
            freedom = np.maximum(1 - np.square(axes).sum(axis=1), 0.05)
            freedom = freedom * max(pixels - 1 - kept, 1) / pixels
            relative = deviation * np.sqrt(np.maximum(residual, 1e-12) / freedom) / rms
            deviation = _not_too_quiet(relative) * rms
        noise = noise_in_axes(values[:kept], bands / pixels)
        return cls(mean, deviation, rms, axes, noise)

    def coefficients(self, spectra: Floats32) -> Floats32:
        """Return (..., K) of spectra (..., B) in units."""
        project = (self.basis / self.noise_std[:, None]).astype(np.float32)
        shift = self.mean.astype(np.float32)
        return multiply(spectra - shift, project)

    def spectra(self, coefficients: Floats32) -> Floats32:
        """Return the change (..., B) in units that coefficients (..., K) stand for."""
        return multiply(coefficients, (self.basis.T * self.noise_std).astype(np.float32))

    def response(self, srf: FloatArray) -> FloatArray:
        """Return (K, M) what the MSI sees of each coefficient.

        Args:
            srf: (M, B).
        """
        seen: FloatArray = self.basis.T @ (srf * self.noise_std).T
        return seen


def _beyond_others(correlation: FloatArray, pixels: int) -> FloatArray:
    """Return (B,) a first guess of the noise: what no other band explains, 1 where pixels are few.

    The variance of a band given all others is 1 over the diagonal of the inverse covariance (Roger
    and Arnold, International Journal of Remote Sensing 17 (1996), regress on the others).
    """
    bands = len(correlation)
    if pixels < 2 * bands:
        return np.ones(bands)
    ridge = 1e-9 * np.trace(correlation) / bands * np.eye(bands)
    alone = 1 / np.diag(np.linalg.inv(correlation + ridge))
    return _not_too_quiet(np.sqrt(np.maximum(alone, 1e-12) * pixels / (pixels - bands)))


def noise_in_axes(values: FloatArray, aspect: float) -> FloatArray:
    """Return (K,) the variance of noise along principal axes that were learned from the same noise.

    An axis found in noisy data leans towards the data's own noise, so that noise shows more than its
    variance there. With one signal of variance x^2 an axis, beta = B / N, and the limits of the
    eigenvalue and of the cosines c, c' between found and true singular vectors,

        e = (x^2 + 1) (x^2 + beta) / x^2,
        c^2 = (x^4 - beta) / (x^4 + beta x^2),   c'^2 = (x^4 - beta) / (x^4 + x^2),

    what the noise has along the found axis is e + x^2 c^2 - 2 sqrt(e) x c c', which is

        1 + beta + 3 beta / x^2 - beta (x^2 + 1) / (x^2 + beta):

    1 for a strong signal, the largest eigenvalue of noise alone, (1 + sqrt(beta))^2, for one that
    is just seen; an axis below that is all noise.

    Args:
        values: (K,) eigenvalues of the covariance, 1 being the variance of noise.
        aspect: beta, bands over pixels.

    Source: Benaych-Georges and Nadakuditi, Journal of Multivariate Analysis 111 (2012), as given in
    Gavish and Donoho, IEEE Transactions on Information Theory 63 (2017).
    """
    above = values - 1 - aspect
    seen = values > (1 + np.sqrt(aspect)) ** 2
    signal = np.where(seen, above + np.sqrt(np.maximum(above**2 - 4 * aspect, 0)), 2.0) / 2
    lean = aspect * (1 + 3 / signal - (signal + 1) / (signal + aspect))
    found: FloatArray = np.where(seen, 1 + lean, np.maximum(values, 1))
    return found


def _not_too_quiet(relative: FloatArray) -> FloatArray:
    held: FloatArray = np.maximum(relative, _QUIETEST * np.median(relative))
    return held


def multiply(values: Floats32, matrix: Floats32) -> Floats32:
    """Return values (..., B) @ matrix (B, K) by PyTorch, whose threads are ours to set."""
    flat = np.ascontiguousarray(values, np.float32).reshape(-1, values.shape[-1])
    made = torch.from_numpy(flat) @ torch.from_numpy(np.ascontiguousarray(matrix, np.float32))
    return made.numpy().reshape(*values.shape[:-1], matrix.shape[1])


def _eigen(matrix: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return eigenvalues, largest first, and eigenvectors with their largest entry positive."""
    values, vectors = torch.linalg.eigh(torch.from_numpy((matrix + matrix.T) / 2))
    order = np.arange(len(matrix))[::-1]
    axes = vectors.numpy()[:, order]
    signs = np.where(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])] < 0, -1.0, 1.0)
    return values.numpy()[order], axes * signs
