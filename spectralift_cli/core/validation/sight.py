"""The PSF that both images agree on, in place of one that does not map them onto each other."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np

from spectralift_cli.core.cube import FloatArray
from spectralift_cli.core.devices import one_thread_each
from spectralift_cli.core.errors import DataError, SpectraliftWarning
from spectralift_cli.core.observation import Observation
from spectralift_cli.core.refinement import match as matching
from spectralift_cli.core.refinement.images import (
    HeldCube,
    bands_with_values,
    moments,
    usable_response,
)
from spectralift_cli.core.refinement.signal import SignalSpace
from spectralift_cli.core.sharplook import look_at
from spectralift_cli.core.validation.inputs import Pair, warn_of_assumed_psf

_LEAST_PIXELS = 25  # compared, to tell anything of a kernel
_MOST_HR_PIXELS = 2**22  # that are compared
_HALF = 0.5  # of the mismatch: what a kernel must take away to stand in for a given one
_QUIETEST = 1e-5  # noise of the HR-MSI over its root mean square, where it cannot be told


def with_matching_psf(pair: Pair, *, trusted: bool = False) -> Pair:
    """Return a pair whose PSF maps its HR-MSI onto its LR-HSI.

    LR-HSI @ SRF.T = mean(blur(HR-MSI)) but for noise, so that both images tell a wrong kernel, as
    they tell `refine`. A given kernel stays as it is where it leaves less than twice the noise's
    power, or where no other leaves half as much; without one the best takes the place of the
    assumed one.

    Args:
        pair: both images, and what is said of their PSF.
        trusted: whether a given kernel is kept, whatever the images say.
    """
    known = pair.psf_role != "nothing"
    if known and trusted:
        return pair
    try:
        with one_thread_each():
            images = _images(pair)
            given = pair.observation.psf if known else None
            found = matching.matched(images, given)
            if given is not None and found.before >= matching.BAD_MATCH:
                # from a wrong kernel small steps lead close, a fresh start mostly closer
                fresh = matching.matched(images, None)
                if fresh.after < found.after:
                    found = dataclasses.replace(fresh, before=found.before)
    except DataError:  # images without signal, which training will tell better
        found = None
    if found is None or found.pixels < _LEAST_PIXELS:
        if not known:
            warn_of_assumed_psf()
        return pair
    footprint = known and pair.observation.includes_footprint
    seen = Observation(found.psf, pair.placement, footprint, pair.observation.boundary)
    down, across = _widths_px(found.psf)
    told = f"found from the images, {down:.2f} x {across:.2f} HR pixels (RMS) besides the LR pixel"
    if not known:
        return dataclasses.replace(pair, observation=seen, psf=told)
    if found.before < matching.BAD_MATCH or found.after > _HALF * found.before:
        if found.after >= matching.BAD_MATCH:
            warnings.warn(
                f"the PSF ({pair.psf}) and the registration leave {found.before:.3g} times the "
                "noise's power between the LR-HSI and the HR-MSI, and no other PSF much less: look "
                "at the spectral response and the registration, too",
                SpectraliftWarning,
                stacklevel=2,
            )
        return pair
    warnings.warn(
        f"the PSF ({pair.psf}) does not map the HR-MSI onto the LR-HSI: it leaves "
        f"{found.before:.3g} times the noise's power between them, the one that the images tell "
        f"leaves {found.after:.3g} and is used; --trust-psf keeps yours",
        SpectraliftWarning,
        stacklevel=2,
    )
    return dataclasses.replace(pair, observation=seen, psf=f"not {pair.psf} but {told}")


def _images(pair: Pair) -> matching.Pair:
    """Return both images as an MSI's bands, with their noise, over as many rows as are enough.

    Raises:
        DataError: the LR-HSI has too few pixels, or nothing but zeros; or no MSI band is covered.
    """
    rows, cols, _ = pair.hr_msi.meta.shape
    lr = HeldCube(pair.lr_hsi, 0)
    used = bands_with_values(lr)
    if pair.lr_hsi.meta.bad_bands is not None:
        used &= ~pair.lr_hsi.meta.bad_bands
    valid, total, squares = moments(lr, used)
    space = SignalSpace.of(total, squares, int(valid.sum()))
    with warnings.catch_warnings():  # the stages say which MSI bands take no part
        warnings.simplefilter("ignore", SpectraliftWarning)
        bands, srf = usable_response(pair.srf, used)
    seen = np.zeros((*valid.shape, len(srf)), np.float32)
    for part, block in lr.blocks():
        spectra = np.where(valid[part][:, :, None], block[:, :, used], 0)
        seen[part] = matching.through_response(spectra, srf)
    count = min(rows, max(_MOST_HR_PIXELS // cols, 1))
    first = (rows - count) // 2
    middle = slice(first, first + count)
    sharp = HeldCube(pair.hr_msi, 0, pair.radiometry).read(middle)[:, :, bands]
    look = look_at(pair.hr_msi)
    noise: FloatArray = np.zeros(len(bands)) if look is None else look.noise
    if pair.radiometry is not None:
        noise = noise * np.abs(pair.radiometry.gain)
    known = np.isfinite(sharp).all(axis=2)
    rms = np.sqrt(np.square(sharp[known], dtype=np.float64).mean(axis=0)) if known.any() else 0
    return matching.Pair(
        seen, valid, sharp, np.sqrt(np.square(srf) @ np.square(space.noise_std)),
        np.maximum(noise[bands], _QUIETEST * rms),
        pair.placement.window_hr(middle, slice(0, cols)), pair.observation.includes_footprint,
    )  # fmt: skip


def _widths_px(kernel: FloatArray) -> tuple[float, float]:
    """Return the RMS widths of a kernel, down and across, 0 where negative parts leave none."""
    at = np.arange(len(kernel)) - len(kernel) // 2
    found = []
    for axis in (1, 0):
        share = kernel.sum(axis=axis) / kernel.sum()
        centre = float(share @ at)
        found.append(float(np.sqrt(max(float(share @ at**2) - centre**2, 0.0))))
    return found[0], found[1]
