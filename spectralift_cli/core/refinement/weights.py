"""How far each HR pixel's estimate may be off: the prior's w_p^2.

Two things that the images show were measured to matter (tests/bench/refine.py): an error grows with
the spectrum it is an error of, so that dark water is left in peace while its bright neighbours,
under the same footprint, are corrected; and it grows where the MSI varies, because there the LR
pixels, from which the estimate was learned, are mixtures. So

    w_p^2 = brightness_p * contrast_p,

brightness the root mean square of the estimate's bands, contrast the local standard deviation of
the MSI's bands, both over their means and held above a floor; w^2 has mean 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from spectralift_cli.core.cube import BoolArray

Floats32 = NDArray[np.float32]

_DARKEST = 0.1  # of the root mean square
_FLATTEST = 0.3  # of the mean contrast, added everywhere
_RADIUS_PX = 2.0  # standard deviation of the neighbourhood
HALO_PX = 8  # rows beyond its own that a contrast depends on


def brightness(spectra: Floats32) -> Floats32:
    """Return (n, W) root mean squares of spectra (n, W, B), 0 in holes."""
    power = np.einsum("ijb,ijb->ij", spectra, spectra) / np.float32(spectra.shape[2])
    return np.where(np.isfinite(power), np.sqrt(power), 0).astype(np.float32)


def contrast(msi: Floats32, valid: BoolArray, rms: NDArray[np.float64]) -> Floats32:
    """Return (n, W) the local standard deviation of an MSI over all its bands.

    Args:
        msi: (n, W, M), anything in holes.
        valid: (n, W).
        rms: (M,) of the bands.
    """
    weight = _smooth(valid.astype(np.float32))
    weight = np.maximum(weight, 1e-6)
    total = np.zeros(valid.shape, np.float32)
    for band in range(msi.shape[2]):
        values = np.where(valid, msi[:, :, band] / np.float32(rms[band]), 0).astype(np.float32)
        mean = _smooth(values) / weight
        total += np.maximum(_smooth(values * values) / weight - mean * mean, 0)
    spread: Floats32 = np.sqrt(total / msi.shape[2])
    return spread


def weights(bright: Floats32, varied: Floats32, valid: BoolArray) -> Floats32:
    """Return (H, W) w^2 of brightness and contrast, mean 1 over valid pixels and finite in holes."""
    if not valid.any():
        return np.ones(valid.shape, np.float32)
    rms = float(np.sqrt(np.square(bright[valid], dtype=np.float64).mean()))
    level = np.maximum(bright / max(rms, 1e-30), _DARKEST)
    mean = float(varied[valid].mean(dtype=np.float64))
    uneven = varied + _FLATTEST * mean if mean > 0 else np.ones_like(varied)
    found = np.where(valid, level * uneven, 0)
    found /= max(float(found[valid].mean(dtype=np.float64)), 1e-30)
    return np.where(valid, found, 1).astype(np.float32)


def _smooth(image: Floats32) -> Floats32:
    once = gaussian_filter1d(image, _RADIUS_PX, axis=0, mode="nearest")
    smooth: Floats32 = gaussian_filter1d(once, _RADIUS_PX, axis=1, mode="nearest")
    return smooth
