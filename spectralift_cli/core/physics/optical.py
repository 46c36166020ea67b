"""The PSF between two images, corrected or found as `refine` does it."""

from __future__ import annotations

import numpy as np

from spectralift_cli.core.coarse import product
from spectralift_cli.core.cube import BoolArray, FloatArray
from spectralift_cli.core.physics.lens import Floats32, View
from spectralift_cli.core.refinement.match import Pair, matched
from spectralift_cli.core.refinement.signal import SignalSpace

_MATCH_PIXELS = 2**22  # HR pixels that the images are compared on
_LEAST_NOISE = 1e-5  # of an MSI band's root mean square: noise is divided by


def find_psf(
    view: View,
    lr_msi: Floats32,
    lr_hsi: Floats32,
    srf: FloatArray,
    valid: BoolArray,
    shape: tuple[int, int],
    msi_noise: FloatArray,
) -> FloatArray:
    """Return the kernel that maps the HR-MSI onto the LR-HSI seen through the response.

    The view's PSF, where the images agree with it.

    Args:
        view: of the HR-MSI.
        lr_msi: (N, M) scaled.
        lr_hsi: (N, B) scaled.
        srf: (M, B).
        valid: (h w,) which pixels of the grid these are.
        shape: (h, w).
        msi_noise: (M,) standard deviation of the HR-MSI's noise, scaled.

    Raises:
        DataError: fewer than 4 LR pixels, or a PSF that is none or wider than the image.
    """
    height, width = view.placement.hr_shape
    count = min(height, max(_MATCH_PIXELS // width, 1))
    first = (height - count) // 2
    rows, cols = slice(first, first + count), slice(0, width)
    spectra = lr_hsi.astype(np.float64)
    space = SignalSpace.of(spectra.sum(axis=0), product(spectra.T, spectra), len(spectra))
    grid = np.zeros((valid.size, lr_msi.shape[1]), np.float32)
    grid[valid] = lr_msi
    floor = _LEAST_NOISE * np.sqrt(np.square(lr_msi, dtype=np.float64).mean(axis=0))
    lr_noise = np.sqrt(np.square(srf) @ np.square(space.noise_std))
    images = Pair(
        grid.reshape(*shape, -1), valid.reshape(shape), view.read(rows, cols),
        np.maximum(lr_noise, floor), np.maximum(msi_noise, floor),
        view.placement.window_hr(rows, cols), view.includes_footprint,
    )  # fmt: skip
    return matched(images, view.psf).psf
