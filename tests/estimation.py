"""Image pairs whose shift, PSF, gains and response are known, for tests and the benchmark."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spectralift_cli.core.cube import FloatArray
from spectralift_cli.core.estimation.imagepair import ImagePair
from spectralift_cli.core.observation import Observation
from spectralift_cli.core.operators.psf import make_psf
from spectralift_cli.core.placement import Placement
from spectralift_cli.core.sensors.response import documented_srf

# name and width over the ratio; the shapes differ, the widths are alike
PSFS = (("gaussian", 0.45), ("moffat", 0.8), ("parabolic", 1.2))


@dataclass(frozen=True)
class Truth:
    """A pair with all that an estimate should find."""

    pair: ImagePair
    shift_px: FloatArray
    kernel: FloatArray
    gain: FloatArray
    offset: FloatArray
    srf: FloatArray

    def response(self, observation: Observation) -> FloatArray:
        """Return (H, W) the weights of the HR pixels in a LR pixel in the middle."""
        rows, cols = self.pair.placement.lr_shape
        impulse = np.zeros((rows, cols))
        impulse[rows // 2, cols // 2] = 1
        return np.asarray(observation.adjoint(impulse))

    def kernel_error(self, kernel: FloatArray) -> float:
        """Return the L2 norm of an effective kernel's error over the true one's own.

        Both as an LR pixel sees the HR pixels at the true shift, footprint included.
        """
        placed = self.pair.placement.shifted((float(self.shift_px[0]), float(self.shift_px[1])))
        true = self.response(Observation(self.kernel, placed, boundary="zero"))
        found = self.response(Observation(kernel, placed, includes_footprint=True, boundary="zero"))
        return float(np.linalg.norm(found - true) / np.linalg.norm(true))


def known_pair(
    values: FloatArray,
    wavelengths_nm: FloatArray,
    *,
    psf: tuple[str, float] = PSFS[0],
    ratio: int = 4,
    seed: int = 0,
    snr_db: float = 35.0,
    most_shift_px: float = 1.5,
    num_msi_bands: int = 4,
) -> Truth:
    """Make a pair from a cube (H, W, B).

    Shift, gains (0.8 to 1.2) and offsets (3 % of the cube's 99th percentile) are drawn. The LR-HSI
    is cut from one that is observed whole, so that what lies beyond its edge is real ground.

    Args:
        values: the cube.
        wavelengths_nm: (B,).
        psf: name and sigma over the ratio.
        ratio: HR pixels to one LR pixel.
        seed: of shift, gains, offsets and noise.
        snr_db: of both images.
        most_shift_px: LR pixels along each axis.
        num_msi_bands: of the documented sensor.
    """
    rng = np.random.default_rng(seed)
    cube = values / np.percentile(values, 99)
    rows, cols = (n // ratio for n in cube.shape[:2])
    cube = cube[: rows * ratio, : cols * ratio]
    shift = rng.uniform(-most_shift_px, most_shift_px, 2)
    gain = rng.uniform(0.8, 1.2, num_msi_bands)
    offset = rng.uniform(-0.03, 0.03, num_msi_bands)
    srf = documented_srf(num_msi_bands, wavelengths_nm, 4.2).weights
    kernel = make_psf(psf[0], psf[1] * ratio, 2 * ratio)
    whole = Placement((rows, cols), cube.shape[:2], (float(ratio), float(ratio)))
    placed = whole.shifted((float(shift[0]), float(shift[1])))
    lr = noisy(Observation(kernel, placed)(cube), snr_db, rng)
    hr = noisy((cube @ srf.T - offset) / gain, snr_db, rng)
    cut = 1 + int(np.ceil(np.abs(shift).max()))
    hr = hr[cut * ratio : -cut * ratio, cut * ratio : -cut * ratio]
    lr = lr[cut:-cut, cut:-cut]
    placement = Placement(lr.shape[:2], hr.shape[:2], (float(ratio), float(ratio)))
    pair = ImagePair(
        lr, np.ones(lr.shape[:2], np.bool_), hr, np.ones(hr.shape[:2], np.bool_), placement,
        wavelengths_nm,
    )  # fmt: skip
    return Truth(pair, shift, kernel, gain, offset, srf)


def noisy(values: FloatArray, snr_db: float, rng: np.random.Generator) -> FloatArray:
    """Return (H, W, B) with white noise of an SNR per band: mean square over noise variance."""
    std = np.sqrt((values**2).mean(axis=(0, 1)) / 10 ** (snr_db / 10))
    return np.asarray(values + std * rng.normal(size=values.shape))
