"""Does the PSF map the HR-MSI onto the LR-HSI seen through the response, and if not, what would?

Both images show LR-MSI = LR-HSI @ SRF.T = mean(blur(HR-MSI)) but for noise, so the LR-MSI tells how
far a PSF, or the registration, is off before any hyperspectral estimate comes in. To first order a
wrong kernel k differs from the right one by its derivatives,

    k + a dk/dr + b dk/dc + c d2k/dr2 + d d2k/dc2 + e d2k/(dr dc),

a and b a displacement, c to e half the second moments that lack. The five numbers are fitted by
least squares together with a gain and an offset a band, the kernel is changed by them, and again,
until they are no longer significant. What no kernel explains then counts as noise of the LR-HSI:
its power relative to the image's roughness says by how much each component of the signal may be
wrong (`Match.covariance`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import convolve2d

from spectralift_cli.core.cube import BoolArray, FloatArray
from spectralift_cli.core.placement import Placement
from spectralift_cli.core.refinement.images import finite_pixels
from spectralift_cli.core.refinement.optics import Optics
from spectralift_cli.core.refinement.signal import multiply

Floats32 = NDArray[np.float32]

_MOST_STEPS = 6
_SIGNIFICANT = 3.0  # standard errors
_LEAST_PER_PARAMETER = 4  # observations
_LEAST_IMPROVEMENT = 0.99
# of white noise of variance 1, what first and second differences have on average
_DIFFERENCE_NOISE = (0.5 + 6.0) / 2
_SHIFTS = [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1)]
# times the noise's power, from which a mismatch is worth a word and a fresh start worth a try
BAD_MATCH = 2.0
# of the power that is left, what another kernel must fall below to be taken instead
CLEARLY_BETTER = 0.5
# start widths where no PSF is known, in LR pixels
_WIDTHS = (0.25, 0.4, 0.6, 0.85, 1.2)


@dataclass(frozen=True, eq=False)
class Match:
    """How well a PSF maps the one image onto the other.

    Args:
        psf: the kernel, corrected where that was asked for and significant.
        steps: corrections that were made.
        before: mean square of what the kernel left at first, in units of the noise's.
        after: likewise at the end; 1 where nothing but noise is left.
        roughness: mean square of the LR-MSI's differences between neighbours, in the same units.
        gain: (M,) of the LR-MSI over the blurred HR-MSI.
        pixels: LR pixels compared.
    """

    psf: FloatArray
    steps: int
    before: float
    after: float
    roughness: float
    gain: FloatArray
    pixels: int

    def covariance(self, image: Floats32, valid: BoolArray, noise_power: FloatArray) -> FloatArray:
        """Return (K, K) the covariance of the error that the kernel makes in coefficients.

        Args:
            image: (h, w, K) coefficients of the LR-HSI.
            valid: (h, w).
            noise_power: (K,) variance of noise in each.
        """
        excess = max(self.after - 1, 0.0)
        bands = image.shape[2]
        moments = np.zeros((bands, bands))
        if excess > 0 and self.roughness > 0:
            found = _differences(image, valid)
            for each in found:
                flat = each.astype(np.float64)
                moments += flat.T @ flat / max(1, len(flat)) / len(found)
            moments -= _DIFFERENCE_NOISE * np.diag(noise_power)
            values, axes = np.linalg.eigh(moments)
            moments = (axes * np.maximum(values, 0)) @ axes.T * (excess / self.roughness)
        return moments


@dataclass(frozen=True, eq=False)
class Pair:
    """Both images as an MSI's bands.

    Args:
        lr_msi: (h, w, M) the LR-HSI through the response.
        lr_valid: (h, w) pixels with values.
        msi: (H, W, M) the HR-MSI, NaN in holes.
        lr_noise_std: (M,) of the LR-MSI.
        msi_noise_std: (M,) of the HR-MSI.
        placement: of the LR grid on the HR grid.
        includes_footprint: whether PSFs hold the LR pixel's footprint.
    """

    lr_msi: Floats32
    lr_valid: BoolArray
    msi: Floats32
    lr_noise_std: FloatArray
    msi_noise_std: FloatArray
    placement: Placement
    includes_footprint: bool = False


def match(images: Pair, psf: FloatArray, *, correct: bool = True) -> Match:
    """Compare two images through a PSF, and correct it.

    Args:
        images: to compare.
        psf: to begin with.
        correct: whether to change it.

    Raises:
        DataError: the kernel is no PSF, or is wider than the image.
    """
    Optics(psf, images.placement, images.includes_footprint)  # refuses what is none
    seen = _Seen(images)
    state = seen.fit(psf)
    before, steps = state.power, 0
    for _ in range(_MOST_STEPS if correct else 0):
        if not state.significant or state.psf.shape[0] + 4 > min(images.placement.hr_shape):
            break
        changed = seen.fit(_changed(state.psf, state.step))
        if not changed.power < _LEAST_IMPROVEMENT * state.power:
            break
        state, steps = changed, steps + 1
    return Match(state.psf, steps, before, state.power, seen.roughness, state.gain, seen.pixels)


def matched(images: Pair, psf: FloatArray | None, *, trusted: bool = False) -> Match:
    """Return the PSF that maps two images onto each other, from one that somebody gave or none.

    Args:
        images: to compare.
        psf: what is said to be the PSF, or None.
        trusted: whether it is taken as it is, also where the images disagree.

    Raises:
        DataError: the kernel is no PSF, or is wider than the image.
    """
    if psf is None:
        return match(images, guess_psf(images))
    given = match(images, psf, correct=not trusted)
    if trusted or given.after < BAD_MATCH:
        return given
    # small steps from a kernel of quite another width may end short of what a fresh start finds
    found = match(images, guess_psf(images))
    if found.after > CLEARLY_BETTER * given.after:
        return given
    return dataclasses.replace(found, before=given.before, steps=given.steps + found.steps)


def guess_psf(images: Pair) -> FloatArray:
    """Return the Gaussian, of a few widths, that maps two images onto each other best."""
    scale = max(images.placement.scale)
    most = (min(images.placement.hr_shape) - 1) // 2 - 1
    seen = _Seen(images)
    best = np.inf, np.ones((1, 1))
    for width in _WIDTHS:
        sigma = width * scale
        half = int(max(0, min(np.ceil(2.2 * sigma), most)))
        line = np.exp(-0.5 * np.square(np.arange(-half, half + 1) / sigma))
        kernel = np.outer(line, line) / line.sum() ** 2
        power = seen.fit(kernel).power
        if power < best[0]:
            best = power, kernel
    return best[1]


@dataclass(frozen=True, eq=False)
class _Fit:
    psf: FloatArray
    power: float
    step: FloatArray  # (5,)
    significant: bool
    gain: FloatArray


class _Seen:
    """Both images, ready to be compared through kernels."""

    def __init__(self, images: Pair) -> None:
        self._images = images
        self._hr_valid = finite_pixels(images.msi)
        self._filled = np.where(self._hr_valid[:, :, None], images.msi, 0).astype(np.float32)
        # the mean is taken out, so that a share slightly below 1 costs no precision
        level: Floats32 = np.zeros(images.msi.shape[2], np.float32)
        if self._hr_valid.any():
            mean = self._filled[self._hr_valid].mean(axis=0, dtype=np.float64)
            level = mean.astype(np.float32)
        self._filled[self._hr_valid] -= level
        self._lr = np.subtract(images.lr_msi, level, dtype=np.float32)
        per_noise = np.divide(self._lr, images.lr_noise_std, dtype=np.float32)
        found = _differences(per_noise, images.lr_valid)
        squares = [float(np.square(each, dtype=np.float64).mean()) for each in found if each.size]
        self.roughness = max(float(np.mean(squares)) - _DIFFERENCE_NOISE if squares else 0.0, 0.0)
        self.pixels = 0

    def fit(self, psf: FloatArray) -> _Fit:
        """Compare through a kernel, and find the step that would improve it."""
        moved = {s: self._through(_shifted(psf, *s)) for s in _SHIFTS}
        noise = np.sqrt(
            np.square(self._images.lr_noise_std)
            + np.square(self._images.msi_noise_std) * self._optics(psf).noise_power
        )
        use = self._images.lr_valid & np.logical_and.reduce([whole for _, whole in moved.values()])
        self.pixels = int(use.sum())
        at = {s: image[use] / noise for s, (image, _) in moved.items()}
        here, truth = at[0, 0], self._lr[use] / noise
        bands = here.shape[1]
        features = [
            (at[1, 0] - at[-1, 0]) / 2,
            (at[0, 1] - at[0, -1]) / 2,
            at[1, 0] - 2 * here + at[-1, 0],
            at[0, 1] - 2 * here + at[0, -1],
            (at[1, 1] + at[-1, -1] - at[1, -1] - at[-1, 1]) / 4,
        ]
        left = truth - here
        gain = np.ones(bands)
        if len(truth) < 3:
            return _Fit(psf, 1.0, np.zeros(5), False, gain)
        # gain and offset of every band are taken out of everything first
        for b in range(bands):
            base = np.stack([np.ones(len(here)), here[:, b] - here[:, b].mean()], axis=1)
            targets = np.stack([left[:, b], *(f[:, b] for f in features)], axis=1)
            fitted, *_ = np.linalg.lstsq(base, targets, rcond=None)
            gain[b] = 1 + fitted[1, 0]
            rest = targets - base @ fitted
            left[:, b] = rest[:, 0]
            for f, column in zip(features, rest[:, 1:].T, strict=True):
                f[:, b] = column
        freedom = left.size - 2 * bands
        power = float(np.square(left).sum() / max(freedom, 1))
        if freedom < _LEAST_PER_PARAMETER * 5:
            return _Fit(psf, power, np.zeros(5), False, gain)
        design = np.stack([f.ravel() for f in features], axis=1)
        normal = design.T @ design
        normal += 1e-12 * np.trace(normal) * np.eye(5)
        step = np.linalg.solve(normal, design.T @ left.ravel())
        after = np.square(left.ravel() - design @ step).sum() / max(freedom - 5, 1)
        errors = np.sqrt(np.diag(np.linalg.inv(normal)) * after)
        significant = bool((np.abs(step) > _SIGNIFICANT * errors).any())
        return _Fit(psf, power, step, significant, gain)

    def _optics(self, psf: FloatArray) -> Optics:
        return Optics(psf, self._images.placement, self._images.includes_footprint)

    def _through(self, psf: FloatArray) -> tuple[Floats32, BoolArray]:
        optics = self._optics(psf)
        share = optics.share(None if self._hr_valid.all() else self._hr_valid)
        whole = Optics.whole(share)
        image = optics.see(self._filled)
        image /= np.where(whole, share, 1)[:, :, None]
        return image, whole


def through_response(spectra: Floats32, srf: FloatArray) -> Floats32:
    """Return (..., M) what an MSI of response (M, B) sees of spectra (..., B)."""
    return multiply(spectra, srf.T.astype(np.float32))


def _shifted(psf: FloatArray, down: int, right: int) -> FloatArray:
    padded = np.pad(psf, 1)
    moved: FloatArray = np.roll(padded, (down, right), axis=(0, 1))
    return moved


def _changed(psf: FloatArray, step: FloatArray) -> FloatArray:
    a, b, c, d, e = step
    stencil = np.array(
        [
            [e / 4, c - a / 2, -e / 4],
            [d - b / 2, 1 - 2 * c - 2 * d, d + b / 2],
            [-e / 4, c + a / 2, e / 4],
        ]
    )
    changed: FloatArray = convolve2d(psf, stencil)
    return changed


def _differences(image: Floats32, valid: BoolArray) -> list[Floats32]:
    """Return first and second differences along both axes, (n, B) each, where all are valid."""
    found: list[Floats32] = []
    for axis in (0, 1):
        values, usable = np.moveaxis(image, axis, 0), np.moveaxis(valid, axis, 0)
        inner = usable[2:] & usable[1:-1] & usable[:-2]
        found.append((values[2:] - values[:-2])[inner] / np.float32(2))
        found.append((values[2:] - 2 * values[1:-1] + values[:-2])[inner])
    return found
