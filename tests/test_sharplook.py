"""What is learned of an HR-MSI: its noise and what that means at LR pixels; the reach of a PSF."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import convolve, map_coordinates

from spectralift_cli.core import stages
from spectralift_cli.core.auto.lines import fit_lines, pixel_features
from spectralift_cli.core.checkpoint import load_checkpoint
from spectralift_cli.core.coarse import interpolate_at
from spectralift_cli.core.config import SynthConfig, TrainConfig
from spectralift_cli.core.formats import open_cube
from spectralift_cli.core.operators.psf import psf_radius_px
from spectralift_cli.core.operators.scaling import Scaling
from spectralift_cli.core.pairs import psf_radius_lr_px
from spectralift_cli.core.scene import open_scene
from spectralift_cli.core.sharplook import SharpLook, look_at
from tests.test_auto import image, write


def looked(path: Path, values: np.ndarray) -> SharpLook | None:
    with open_cube(write(path / "msi.npy", values.astype(np.float32))) as reader:
        return look_at(reader)


def noisy(rows: int, cols: int, sigma: list[float], seed: int = 0) -> np.ndarray:
    """Detail that all bands share, on half of the image, and white noise of their own."""
    rng = np.random.default_rng(seed)
    detail = np.zeros((rows, cols, 1))
    detail[: rows // 2] = rng.normal(0, 0.2, (rows // 2, cols, 1))
    shared = 1 + detail * np.linspace(0.5, 1, len(sigma))
    return shared + rng.normal(0, 1, (rows, cols, len(sigma))) * sigma


def test_noise_is_found_beside_detail(tmp_path: Path) -> None:
    sigma = [0.01, 0.02, 0.005, 0.04]
    found = looked(tmp_path, noisy(200, 210, sigma))
    assert found is not None
    np.testing.assert_allclose(found.noise, sigma, rtol=0.25)


def test_noise_of_one_band_comes_from_its_quiet_part(tmp_path: Path) -> None:
    found = looked(tmp_path, noisy(200, 210, [0.02]))
    assert found is not None
    np.testing.assert_allclose(found.noise, 0.02, rtol=0.25)


def test_detail_like_that_of_natural_images_is_no_noise(tmp_path: Path) -> None:
    """Amplitude falls as 1 / frequency, everywhere in the image and in each band by itself."""
    rng = np.random.default_rng(4)
    down, across = np.fft.fftfreq(256)[:, None, None], np.fft.fftfreq(256)[None, :, None]
    spectrum = np.fft.fft2(rng.normal(size=(256, 256, 2)), axes=(0, 1))
    detail = np.fft.ifft2(spectrum / np.maximum(np.hypot(down, across), 1 / 256), axes=(0, 1)).real
    detail /= detail.std()
    found = looked(tmp_path, detail)
    assert found is not None
    mask = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]]) / 6
    rough = convolve(detail[:, :, 0], mask).std()
    assert (found.noise < 0.5 * rough).all()  # the mask alone would say nearly all of it


def test_holes_are_left_out_and_tiny_images_tell_no_noise(tmp_path: Path) -> None:
    values = noisy(150, 40, [0.01, 0.02])
    values[70:75, 3:9, 1] = np.nan
    found = looked(tmp_path, values)
    assert found is not None
    assert np.isfinite(found.pixels).all()
    assert (found.noise > 0).all()
    (tmp_path / "b").mkdir()
    tiny = looked(tmp_path / "b", noisy(9, 9, [0.01, 0.02]))
    assert tiny is not None
    assert not tiny.noise.any()
    (tmp_path / "c").mkdir()
    assert looked(tmp_path / "c", np.full((9, 9, 2), np.nan)) is None


def test_pixels_carry_their_places_and_strips_do_not_repeat_them(tmp_path: Path) -> None:
    rows, cols = 131, 50  # two strips of 66 rows that share one
    row, col = np.mgrid[:rows, :cols]
    found = looked(tmp_path, np.stack([row, col], axis=2))
    assert found is not None
    assert len(found.pixels) == rows * cols
    size = np.array([rows, cols])
    np.testing.assert_allclose(found.position * size - 0.5, found.pixels, atol=1e-3)
    flat = np.stack([row.ravel(), col.ravel()])
    np.testing.assert_allclose(found.covariance, np.cov(flat, bias=True), atol=1e-9)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.integers(1, 5), st.floats(0.05, 1))
def test_noise_at_lr_pixels_keeps_the_ratio_of_signal_to_noise(
    seed: int, bands: int, contrast: float
) -> None:
    """An LR-MSI with c times the HR-MSI's deviations gets c times its noise, in every direction."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(bands, bands)) + 2 * np.eye(bands)
    lr_msi = (rng.normal(size=(400, bands)) @ mixing).astype(np.float32)
    covariance = np.atleast_2d(np.cov(lr_msi.T.astype(np.float64), bias=True)) / contrast**2
    sigma = rng.uniform(0.1, 1, bands)
    nothing = np.zeros((0, bands), np.float32), np.zeros((0, 2), np.float32)
    look = SharpLook(sigma, covariance, *nothing)
    root = look.noise_for(lr_msi)
    np.testing.assert_allclose(root, contrast * np.diag(sigma), atol=1e-3)
    halved = look.scaled(Scaling(0.0, 2.0)).noise_for(lr_msi / 2)
    np.testing.assert_allclose(halved, root / 2, atol=1e-3)


def test_the_line_with_noise_is_the_line_on_noisy_pixels() -> None:
    """The noise's expected Gram matrix against least squares on many noisy copies."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(300, 2)).astype(np.float32)
    y = (x @ rng.normal(size=(2, 4)) + 1).astype(np.float32)
    root = np.array([[0.3, 0.1], [0.0, 0.5]])
    features = pixel_features(x, 4, root)
    (line,) = fit_lines(x, y, features, [1e-9])
    copies = np.concatenate([x + rng.normal(size=x.shape) @ root for _ in range(400)])
    ones = np.hstack([copies, np.ones((len(copies), 1))])
    expected, *_ = np.linalg.lstsq(ones, np.tile(y, (400, 1)), rcond=None)
    np.testing.assert_allclose(line.matrix, expected[:2], atol=0.02)
    np.testing.assert_allclose(line.constant, expected[2], atol=0.02)


def test_interpolation_at_places_is_bilinear_between_centres() -> None:
    rng = np.random.default_rng(5)
    grid = rng.random((6, 9, 2)).astype(np.float32)
    place = rng.random((50, 2)).astype(np.float32)
    at = [place[:, 0] * 6 - 0.5, place[:, 1] * 9 - 0.5]
    for band in range(2):
        expected = map_coordinates(grid[:, :, band], at, order=1, mode="nearest")
        np.testing.assert_allclose(interpolate_at(grid, place)[:, band], expected, atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 6), st.integers(0, 10_000))
def test_psf_radius_is_the_smallest_square_with_the_share(half: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(2 * half + 1,) * 2) * rng.random() ** 3
    kernel[half, half] += 3
    found = psf_radius_px(kernel)
    row, col = np.mgrid[-half : half + 1, -half : half + 1]
    reach = np.maximum(abs(row), abs(col))
    shares = [np.abs(kernel)[reach <= n].sum() / np.abs(kernel).sum() for n in range(half + 1)]
    assert shares[found] >= 0.99 - 1e-12
    assert all(share < 0.99 + 1e-12 for share in shares[:found])


@pytest.mark.parametrize(("ratio", "expected"), [(2, 2), (4, 1), (8, 1)])
def test_a_scene_tells_the_guard_band_and_the_noise(
    tmp_path: Path, ratio: int, expected: int
) -> None:
    sharp = write(tmp_path / "gt.npy", np.clip(image(80, 80, 6), 0, 1))
    config = SynthConfig(
        sigma=1.4, downsample_ratio=ratio, snr_spectral=25, srf_wavelengths="invented"
    )
    scene = stages.synth(sharp, tmp_path / "scene", config, cube_format="npy")
    assert psf_radius_lr_px(open_scene(scene.folder)) == expected  # 99 % within 4 HR pixels
    path = tmp_path / "m.safetensors"
    train = TrainConfig(model="linear")
    trained = stages.train(stages.TrainInputs(scene=scene.folder), path, train)
    loose = stages.TrainInputs(
        lr_hsi=scene.path("lr_hsi"), response=stages.ResponseChoice(srf_file=scene.path("srf"))
    )
    blind = stages.train(loose, tmp_path / "blind.safetensors", train)
    with open_cube(scene.path("hr_msi")) as reader:
        look = look_at(reader)
    assert look is not None
    passed_on = [
        np.linalg.norm(look.noise[:, None] * each.checkpoint.weights["linear"].numpy())
        for each in (trained, blind)
    ]
    assert passed_on[0] < passed_on[1]
    assert load_checkpoint(path).identity() == trained.checkpoint.identity()
