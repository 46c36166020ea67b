"""Estimates of shift, PSF, radiometry and response, against truths that are known."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from spectralift_cli.core.cube import FloatArray
from spectralift_cli.core.errors import DataError, SpectraliftWarning
from spectralift_cli.core.estimation.analysis import analyse
from spectralift_cli.core.estimation.choice import compare
from spectralift_cli.core.estimation.footprint import axis_weights
from spectralift_cli.core.estimation.imagepair import ImagePair
from spectralift_cli.core.estimation.parts import Findings
from spectralift_cli.core.estimation.psf import fit_kernel
from spectralift_cli.core.estimation.shift import fit_joint, jackknife, search_shift
from spectralift_cli.core.estimation.srf_fit import clean_spectra
from spectralift_cli.core.observation import Observation
from spectralift_cli.core.placement import Placement
from spectralift_cli.core.samples import indian_pines, synthetic
from tests.estimation import PSFS, Truth, known_pair

ALL = ("shift", "psf", "gain", "srf")


@functools.cache
def cube(name: str, size: int = 128) -> tuple[FloatArray, FloatArray]:
    made = indian_pines() if name == "indian-pines" else synthetic(size, size, 60)
    assert made.meta.wavelengths_nm is not None
    return made.units().astype(np.float64), made.meta.wavelengths_nm


@functools.cache
def known(psf: int = 0, ratio: int = 4, seed: int = 7, name: str = "synthetic") -> Truth:
    # as many LR pixels at every ratio
    return known_pair(*cube(name, 32 * ratio), psf=PSFS[psf], ratio=ratio, seed=seed)


@functools.cache
def found(psf: int = 0, ratio: int = 4, seed: int = 7, name: str = "synthetic") -> Findings:
    truth = known(psf, ratio, seed, name)
    # one with the response as well, which takes other ways through the analysis
    return analyse(truth.pair, truth.srf, ALL if psf == 0 else ("shift", "psf", "gain"))


@pytest.mark.parametrize(
    ("psf", "ratio", "name"),
    [(0, 4, "synthetic"), (1, 4, "indian-pines"), (2, 8, "synthetic")],
)
def test_truth_is_found(psf: int, ratio: int, name: str) -> None:
    truth, estimate = known(psf, ratio, name=name), found(psf, ratio, name=name)
    assert estimate.shift is not None and estimate.psf is not None and estimate.gain is not None
    np.testing.assert_allclose(estimate.shift.shift_px, truth.shift_px, rtol=0, atol=0.05)
    np.testing.assert_allclose(estimate.gain.gain, truth.gain, rtol=0.01)
    assert truth.kernel_error(estimate.psf.kernel) < 0.15
    assert truth.kernel_error(estimate.psf.kernel) < 2 * estimate.psf.relative_error
    assert estimate.shift.used and estimate.gain.used
    # a wrong digit of an uncertainty shows as a distance of many of them
    assert (np.abs(estimate.shift.shift_px - truth.shift_px) < 4 * estimate.shift.std_px).all()
    assert (np.abs(estimate.gain.gain - truth.gain) < 4 * estimate.gain.gain_std).all()


def test_kernel_is_a_psf() -> None:
    psf = found().psf
    assert psf is not None
    half = len(psf.kernel) // 2
    at = np.arange(-half, half + 1)
    assert psf.kernel.min() >= 0
    np.testing.assert_allclose(psf.kernel.sum(), 1, rtol=1e-12)
    for axis in (0, 1):
        np.testing.assert_allclose(psf.kernel.sum(axis=axis) @ at, 0, atol=1e-3)


def test_response_is_found_where_it_is_unknown() -> None:
    truth = known()
    estimate = analyse(truth.pair, None, ALL)
    assert estimate.srf is not None and estimate.srf.used and estimate.shift is not None
    weights = estimate.srf.weights
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-9)
    for row, true, error in zip(weights, truth.srf, estimate.srf.relative_error, strict=True):
        assert np.corrcoef(row, true)[0, 1] > 0.98
        assert np.linalg.norm(row - true) < 2 * error * np.linalg.norm(true)
    np.testing.assert_allclose(estimate.shift.shift_px, truth.shift_px, rtol=0, atol=0.05)


def test_wrong_nominal_response_is_replaced_and_right_one_kept() -> None:
    truth = known()
    right = found()
    wrong = analyse(truth.pair, np.roll(truth.srf, 3, axis=1), ALL)
    assert right.srf is not None and not right.srf.used and "not used" in right.srf.why
    assert wrong.srf is not None and wrong.srf.used


def test_gain_and_shift_that_are_none_are_not_used() -> None:
    values, nm = cube("synthetic")
    truth = known_pair(values, nm, most_shift_px=0, unit_gain=True)
    estimate = analyse(truth.pair, truth.srf, ("shift", "gain"))
    assert estimate.shift is not None and not estimate.shift.used
    assert estimate.gain is not None and not estimate.gain.used
    assert estimate.psf is None and estimate.srf is None


def test_displaced_asymmetric_blur_is_told_by_its_kernel() -> None:
    """A kernel with a tail on one side: centroid 0, the tail where it belongs."""
    truth = known()
    kernel = np.zeros((13, 13))
    kernel[6, 4:11] = (0.35, 0.3, 0.2, 0.1, 0.03, 0.01, 0.01)  # centroid -0.78, tail to the right
    centroid = float(kernel.sum(axis=0) @ np.arange(-6, 7))
    pair = truth.pair
    clean = Observation(kernel, pair.placement, boundary="reflect")(pair.msi)
    y = clean * truth.gain + truth.offset
    joint = fit_joint(pair, y, search_shift(pair_of(pair, y)))
    fitted = fit_kernel(pair, y, joint)
    # what the kernel is not centred by, the shift holds: seen where it came from, less the centroid
    assert joint.blurring.shift_px[1] * 4 == pytest.approx(centroid, abs=0.25)
    skew = float(fitted.values.sum(axis=0) @ np.arange(-(len(fitted.values) // 2),
                 len(fitted.values) // 2 + 1) ** 3.0)  # fmt: skip
    assert skew > 0


def pair_of(pair: ImagePair, hsi: FloatArray) -> ImagePair:
    return ImagePair(hsi, pair.hsi_valid, pair.msi, pair.msi_valid, pair.placement)


def test_kernel_is_what_an_observation_applies() -> None:
    truth = known(1)
    y = truth.pair.hsi @ truth.srf.T
    joint = fit_joint(truth.pair, y, search_shift(truth.pair))
    kernel = fit_kernel(truth.pair, y, joint)
    placed = truth.pair.placement.shifted(joint.blurring.shift_px)
    seen = Observation(kernel.values, placed, includes_footprint=True)(truth.pair.msi)
    ok = kernel.weights > 0
    np.testing.assert_allclose(kernel.seen[ok], seen[ok], rtol=0, atol=1e-10)


def test_holes_are_left_out() -> None:
    truth = known()
    pair = truth.pair
    hsi, msi = pair.hsi.copy(), pair.msi.copy()
    hsi_valid, msi_valid = pair.hsi_valid.copy(), pair.msi_valid.copy()
    # as read_pair fills them
    hsi[3:6, 4:7], hsi_valid[3:6, 4:7] = hsi.mean(axis=(0, 1)), False
    msi[60:64, 60:64], msi_valid[60:64, 60:64] = msi.mean(axis=(0, 1)), False
    holed = ImagePair(hsi, hsi_valid, msi, msi_valid, pair.placement, pair.wavelengths_nm)
    estimate = analyse(holed, truth.srf, ("shift", "gain"))
    assert estimate.shift is not None and estimate.gain is not None
    np.testing.assert_allclose(estimate.shift.shift_px, truth.shift_px, rtol=0, atol=0.05)
    np.testing.assert_allclose(estimate.gain.gain, truth.gain, rtol=0.01)
    assert estimate.lr_pixels < found().lr_pixels


def test_images_that_have_nothing_in_common_warn_and_give_nothing() -> None:
    truth = known()
    other = np.random.default_rng(0).normal(size=truth.pair.msi.shape)
    pair = ImagePair(
        truth.pair.hsi, truth.pair.hsi_valid, other, truth.pair.msi_valid, truth.pair.placement
    )
    with pytest.warns(SpectraliftWarning, match="nothing of the estimate is used"):
        estimate = analyse(pair, truth.srf, ("shift", "gain"))
    assert estimate.shift is not None and estimate.gain is not None
    assert not estimate.shift.used and not estimate.gain.used


def test_images_too_small_are_refused() -> None:
    truth = known()
    with pytest.raises(DataError, match="LR pixels see nothing but valid HR pixels"):
        analyse(truth.pair.only(np.arange(truth.pair.hsi.shape[1]) < 1), truth.srf, ("shift",))


@pytest.mark.parametrize(("shift", "sigma"), [(0.0, 1.3), (0.37, 0.5), (-1.2, 3.0)])
def test_footprint_is_the_integral_of_box_and_gaussian(shift: float, sigma: float) -> None:
    placement = Placement((5, 5), (80, 80), (8.33, 8.33), (-1.0, 12.0))
    row = axis_weights(placement, 1, shift, sigma).toarray()[2]
    centre = 12.0 + 8.33 * (2.5 - shift)
    for pixel in (int(centre) - 5, int(centre), int(centre) + 4):
        # the share of a pixel: Gaussian mass of every point of the LR pixel's side in it
        share = quad(
            lambda t, p=pixel: norm.cdf(p + 1, t, sigma) - norm.cdf(p, t, sigma),
            centre - 8.33 / 2, centre + 8.33 / 2,
        )[0] / 8.33  # fmt: skip
        assert row[pixel] == pytest.approx(share, abs=2e-4)
    assert row.sum() == pytest.approx(1, abs=1e-3)


def test_jackknife_leaves_out_one_block_at_a_time() -> None:
    rng = np.random.default_rng(3)
    design, labels = rng.normal(size=(60, 3)), np.repeat(np.arange(6), 10)
    target = design @ [1.0, -2.0, 0.5] + rng.normal(size=60)
    whole = np.linalg.lstsq(design, target)[0]
    left = [np.linalg.lstsq(design[labels != g], target[labels != g])[0] for g in range(6)]
    expected = sum(np.outer(one - whole, one - whole) for one in left) * 5 / 6
    residual = target - design @ whole
    normals = np.stack([design[labels == g].T @ design[labels == g] for g in range(6)])
    scores = np.stack([design[labels == g].T @ residual[labels == g] for g in range(6)])
    np.testing.assert_allclose(jackknife(normals, scores), expected, rtol=1e-8)


def test_noise_of_spectra_is_found() -> None:
    rng = np.random.default_rng(1)
    std = np.linspace(0.01, 0.03, 40)
    spectra = (
        rng.normal(size=(900, 4)) @ rng.normal(size=(4, 40)) + rng.normal(size=(900, 40)) * std
    )
    made = clean_spectra(spectra)
    assert made.scores.shape[1] == 4
    np.testing.assert_allclose(made.noise_std, std, rtol=0.12)


def test_a_part_pays_only_if_it_does_so_in_most_blocks() -> None:
    rng = np.random.default_rng(5)
    labels, weights = np.repeat(np.arange(10), 20), np.ones(200)
    without = rng.normal(size=(200, 2))
    assert compare("it", without, 0.7 * without, weights, labels).used
    lucky = without.copy()
    lucky[:20] *= 0.1  # one block alone gains, and all the others lose a little
    lucky[20:] *= 1.01
    assert not compare("it", without, lucky, weights, labels).used
    assert not compare("it", without, without, weights, labels).used
