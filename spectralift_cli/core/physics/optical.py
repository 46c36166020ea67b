"""The PSF between two images where nobody knows it: as `refine` finds it."""

from __future__ import annotations

import numpy as np

from spectralift_cli.core.coarse import product
from spectralift_cli.core.cube import BoolArray, FloatArray
from spectralift_cli.core.physics.lens import Floats32, View
from spectralift_cli.core.refinement.match import Pair, guess_psf, match
from spectralift_cli.core.refinement.signal import SignalSpace

_MATCH_PIXELS = 2**22  # HR pixels that the images are compared on


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

    Args:
        view: of the HR-MSI.
        lr_msi: (N, M) scaled.
        lr_hsi: (N, B) scaled.
        srf: (M, B).
        valid: (h w,) which pixels of the grid these are.
        shape: (h, w).
        msi_noise: (M,) standard deviation of the HR-MSI's noise, scaled.

    Raises:
        DataError: fewer than 4 LR pixels.
    """
    height, width = view.placement.hr_shape
    count = min(height, max(_MATCH_PIXELS // width, 1))
    first = (height - count) // 2
    rows, cols = slice(first, first + count), slice(0, width)
    spectra = lr_hsi.astype(np.float64)
    space = SignalSpace.of(spectra.sum(axis=0), product(spectra.T, spectra), len(spectra))
    grid = np.zeros((valid.size, lr_msi.shape[1]), np.float32)
    grid[valid] = lr_msi
    rms = np.sqrt(np.square(lr_msi, dtype=np.float64).mean(axis=0))
    images = Pair(
        grid.reshape(*shape, -1), valid.reshape(shape), view.read(rows, cols),
        np.sqrt(np.square(srf) @ np.square(space.noise_std)), np.maximum(msi_noise, 1e-5 * rms),
        view.placement.window_hr(rows, cols),
    )  # fmt: skip
    return match(images, guess_psf(images)).psf
