"""A smooth model of how an LR pixel sees the HR image: a Gaussian blur over its area, anywhere.

One axis at a time, in closed form and for any sub-pixel position, so that shift and width can be
found by least squares before the kernel itself is.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.special import ndtr

from spectralift_cli.core.cube import BoolArray, FloatArray
from spectralift_cli.core.estimation.imagepair import ImagePair
from spectralift_cli.core.placement import Placement

LEAST_SIGMA_PX = 0.15
_REACH = 4.0  # standard deviations
LEAST_SHARE = 0.99


@dataclass(frozen=True)
class Blurring:
    """Where and how wide the LR pixels see.

    Args:
        shift_px: (rows, cols) in LR pixels, see `Placement.shifted`.
        sigma_px: (rows, cols) standard deviations of the blur before the LR pixel's area, in HR
            pixels.
    """

    shift_px: tuple[float, float]
    sigma_px: tuple[float, float]


def footprint_integral(t: FloatArray, scale: float, sigma_px: float) -> FloatArray:
    """Return the integral up to t of (box of width `scale`) * (Gaussian of `sigma_px`), 0 to 1.

    (s / r) (P((t + r/2) / s) - P((t - r/2) / s)) with P(v) = v Phi(v) + phi(v).
    """

    def ramp(v: FloatArray) -> FloatArray:
        return np.asarray(v * ndtr(v) + np.exp(-(v**2) / 2) / np.sqrt(2 * np.pi))

    upper, lower = (t + scale / 2) / sigma_px, (t - scale / 2) / sigma_px
    return np.asarray(sigma_px / scale * (ramp(upper) - ramp(lower)))


# derivatives move along one axis at a time
@functools.lru_cache(maxsize=16)
def axis_weights(
    placement: Placement, axis: int, shift_px: float, sigma_px: float
) -> sparse.csr_array:
    """Return the (h, H) or (w, W) weights of HR pixels along one axis.

    Rows sum to 1 where all of the response lies on the HR image, else to the share that does.
    """
    count, size = placement.lr_shape[axis], placement.hr_shape[axis]
    scale = placement.scale[axis]
    centres = placement.origin_px[axis] + scale * (np.arange(count) + 0.5 - shift_px)
    sigma_px = max(sigma_px, LEAST_SIGMA_PX)
    reach = int(np.ceil(scale / 2 + _REACH * sigma_px)) + 1
    first = np.floor(centres).astype(np.int64) - reach
    pixels = first[:, None] + np.arange(2 * reach + 1)
    edges = np.concatenate([pixels, pixels[:, -1:] + 1], axis=1) - centres[:, None]
    shares = np.diff(footprint_integral(edges, scale, sigma_px), axis=1)
    shares /= shares.sum(axis=1, keepdims=True)
    kept = (pixels >= 0) & (pixels < size)
    rows = np.broadcast_to(np.arange(count)[:, None], pixels.shape)
    return sparse.csr_array((shares[kept], (rows[kept], pixels[kept])), shape=(count, size))


def seen_through(pair: ImagePair, blurring: Blurring) -> FloatArray:
    """Return (h, w, M) the means of the MSI over what the LR pixels see of it."""
    rows, cols = (_weights(pair, axis, blurring) for axis in (0, 1))
    whole = np.outer(rows.sum(axis=1), cols.sum(axis=1))
    across = [rows @ (cols @ pair.msi[:, :, m].T).T for m in range(pair.msi_bands)]
    return np.stack(across, axis=2) / np.maximum(whole, 1e-12)[:, :, None]


def whole_pixels(pair: ImagePair, blurring: Blurring) -> BoolArray:
    """Return (h, w) which valid LR pixels see valid HR pixels (nearly) alone."""
    rows, cols = (_weights(pair, axis, blurring) for axis in (0, 1))
    share = rows @ (cols @ pair.msi_valid.T.astype(np.float64)).T
    whole: BoolArray = (share >= LEAST_SHARE) & pair.hsi_valid
    return whole


def respond(pair: ImagePair, blurring: Blurring) -> tuple[FloatArray, BoolArray]:
    """Return `seen_through` and `whole_pixels`."""
    return seen_through(pair, blurring), whole_pixels(pair, blurring)


def _weights(pair: ImagePair, axis: int, blurring: Blurring) -> sparse.csr_array:
    return axis_weights(pair.placement, axis, blurring.shift_px[axis], blurring.sigma_px[axis])
