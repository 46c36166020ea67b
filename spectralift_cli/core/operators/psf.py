"""Point spread functions on the HR pixel grid, normalised to sum 1.

The formulas are those of SpectraLift and HyperBench 0.1.0. A PSF here is what blurs the image before
it is sampled; it does not include the footprint of the LR pixel.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import numpy as np

from spectralift_cli.core.cube import AnyArray, FloatArray
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.operators import PSFS

_PsfFunction = Callable[[FloatArray, FloatArray, FloatArray, float, str], FloatArray]

# a kernel whose values cancel to less than this share of their magnitudes would amplify rounding
# and noise a thousandfold when it is normalised
_LEAST_SUM = 1e-3


def make_psf(
    name: str, sigma_px: float, kernel_size: int, protocol: str = "physical"
) -> FloatArray:
    """Return a PSF of the table.

    Args:
        name: a key of `PSFS`.
        sigma_px: the width s in its formula, in HR pixels, positive.
        kernel_size: n; the kernel is 2n+1 wide.
        protocol: "physical" or "published", which differ in `airy`.

    Returns:
        (2n+1, 2n+1) float64, sum 1, rows along y.

    Raises:
        DataError: no such PSF, or its values cannot be normalised (`hermite` on a single pixel).
    """
    if name not in PSFS:
        raise DataError(f"there is no PSF called {name!r}", f"choose from {', '.join(PSFS)}")
    if not (np.isfinite(sigma_px) and sigma_px > 0 and kernel_size >= 0):
        raise DataError(
            f"a PSF of sigma {sigma_px:g} on {2 * kernel_size + 1} pixels is not possible",
            "sigma must be positive and kernel-size at least 0",
        )
    module, _, function = PSFS[name].function.partition(":")
    shape: _PsfFunction = getattr(importlib.import_module(module), function)
    axis = np.arange(-kernel_size, kernel_size + 1, dtype=np.float64)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    # far tails underflow to 0, which is right
    with np.errstate(under="ignore", over="ignore"):
        values = shape(np.hypot(x, y), x, y, sigma_px, protocol)
    return check_psf(values, f"the PSF {name} (sigma {sigma_px:g}, kernel-size {kernel_size})")


def check_psf(kernel: AnyArray, source: object) -> FloatArray:
    """Return a kernel normalised to sum 1.

    Args:
        kernel: (k, k) numbers, k odd.
        source: what to call it in messages.

    Returns:
        (k, k) float64.

    Raises:
        DataError: it is not square, of even size, not finite, or sums to nearly zero.
    """
    array: FloatArray = np.asarray(kernel, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or array.shape[0] % 2 == 0:
        raise DataError(
            f"{source}: a PSF is square with an odd size, this array is "
            f"{' x '.join(map(str, array.shape)) or 'a single number'}",
            "pad or crop it to (2n+1) x (2n+1), its centre in the middle",
        )
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise DataError(
            f"{source}: {bad} of the PSF's {array.size} values are not finite",
            "mend these values",
        )
    peak = float(np.abs(array).max())
    scaled = array / peak if peak > 0 else array  # sums of huge or subnormal values stay finite
    total, magnitude = float(scaled.sum()), float(np.abs(scaled).sum())
    if not abs(total) > _LEAST_SUM * magnitude:
        raise DataError(
            f"{source}: the PSF's values sum to {total * peak:.3g}, the sum of their magnitudes is "
            f"{magnitude * peak:.3g}, so it cannot be normalised to sum 1",
            "choose another width or size, or another PSF",
        )
    return scaled / total


def gaussian(
    r: FloatArray, x: FloatArray, y: FloatArray, sigma_px: float, protocol: str
) -> FloatArray:
    """Compute exp(-r^2 / 2s^2)."""
    return np.exp(-((r / sigma_px) ** 2) / 2)


def kolmogorov(
    r: FloatArray, x: FloatArray, y: FloatArray, sigma_px: float, protocol: str
) -> FloatArray:
    """Compute exp(-(r/s)^(5/3))."""
    return np.exp(-((r / sigma_px) ** (5 / 3)))


def airy(r: FloatArray, x: FloatArray, y: FloatArray, sigma_px: float, protocol: str) -> FloatArray:
    """Compute (2 J1(z)/z)^2 with z = 2.33811 r/s; with K1 for J1 as published.

    The Airy pattern has the Bessel function J1. The published code has the modified one, K1, which
    diverges at the centre, and sets the centre to 1; that is also the limit with J1.
    """
    from scipy import special  # which inference does without

    z = 2.33811 * r / sigma_px
    bessel = special.k1 if protocol == "published" else special.j1
    away = z > 0
    pattern = np.ones_like(z)
    pattern[away] = (2 * bessel(z[away]) / z[away]) ** 2
    return pattern


def moffat(
    r: FloatArray, x: FloatArray, y: FloatArray, sigma_px: float, protocol: str
) -> FloatArray:
    """Compute (1 + (r/s)^2)^-3.5."""
    return (1 + (r / sigma_px) ** 2) ** -3.5


def sinc(r: FloatArray, x: FloatArray, y: FloatArray, sigma_px: float, protocol: str) -> FloatArray:
    """Compute sin(pi r/s) / (pi r/s), 1 at the centre."""
    return np.sinc(r / sigma_px)


def lorentzian2(
    r: FloatArray, x: FloatArray, y: FloatArray, sigma_px: float, protocol: str
) -> FloatArray:
    """Compute 1 / (1 + (r/s)^4)."""
    return 1 / (1 + (r / sigma_px) ** 4)


def hermite(
    r: FloatArray, x: FloatArray, y: FloatArray, sigma_px: float, protocol: str
) -> FloatArray:
    """Compute exp(-r^2 / 2s^2) H1(r/s) with H1(u) = 2u: a ring with a hole in the middle."""
    return np.exp(-((r / sigma_px) ** 2) / 2) * 2 * r / sigma_px


def parabolic(
    r: FloatArray, x: FloatArray, y: FloatArray, sigma_px: float, protocol: str
) -> FloatArray:
    """Compute max(0, 1 - (r/s)^2)."""
    return np.maximum(0.0, 1 - (r / sigma_px) ** 2)


def gabor(
    r: FloatArray, x: FloatArray, y: FloatArray, sigma_px: float, protocol: str
) -> FloatArray:
    """Compute exp(-(x^2 + 0.25 y^2) / 2s^2) cos(2 pi x), on whole pixels an elongated Gaussian."""
    return np.exp(-(x**2 + 0.25 * y**2) / (2 * sigma_px**2)) * np.cos(2 * np.pi * x)


def delta(
    r: FloatArray, x: FloatArray, y: FloatArray, sigma_px: float, protocol: str
) -> FloatArray:
    """Compute 1 at the centre and 0 elsewhere."""
    return np.where(r == 0, 1.0, 0.0)


def psf_radius_px(kernel: FloatArray, share: float = 0.99) -> int:
    """Return half the width, in pixels, of the square around the centre with a share of |kernel|.

    Args:
        kernel: (k, k), k odd.
        share: above 0, below 1.
    """
    half = len(kernel) // 2
    size = np.abs(kernel)
    wanted = share * size.sum()
    return next(
        n
        for n in range(half + 1)
        if n == half or size[half - n : half + n + 1, half - n : half + n + 1].sum() >= wanted
    )
