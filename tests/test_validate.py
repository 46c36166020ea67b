"""Validation without a ground truth: reprojection, one scale down, the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import spectralift_cli as sl
from spectralift_cli.core.errors import DataError, OptionError
from spectralift_cli.core.observation import Observation
from spectralift_cli.core.operators.psf import make_psf
from spectralift_cli.core.placement import Placement
from spectralift_cli.core.validation import reproject
from spectralift_cli.core.validation.inputs import ValidateInputs, assumed_psf, open_pair
from spectralift_cli.core.validation.reduced import (
    reduce_pair,
    reduction_factor,
    rescaled_kernel,
)
from spectralift_cli.core.validation.reproject import degrade
from spectralift_cli.core.validation.validate import validate
from tests.conftest import Run

LINEAR = sl.TrainConfig(model="linear")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> sl.Scene:
    """A scene without noise, whose ground truth agrees with both images."""
    folder = tmp_path_factory.mktemp("validate")
    sl.write_sample("synthetic", folder / "cube.npy", size=(64, 72, 24))
    config = sl.SynthConfig(
        sigma=2.0, kernel_size=5, num_msi_bands=3, snr_spatial=np.inf, snr_spectral=np.inf
    )
    return sl.synth(folder / "cube.npy", folder / "scene", config, cube_format="npy")


def seen(image: np.ndarray, psf: np.ndarray, ratio: int) -> np.ndarray:
    """Blur by SciPy and average blocks by a loop: the operators by another route."""
    bands = [ndimage.convolve(band, psf, mode="reflect") for band in np.moveaxis(image, 2, 0)]
    out = np.empty((image.shape[0] // ratio, image.shape[1] // ratio, image.shape[2]))
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            for b, band in enumerate(bands):
                cut = band[i * ratio : (i + 1) * ratio, j * ratio : (j + 1) * ratio]
                out[i, j, b] = cut.mean()
    return out


def test_truth_leaves_no_residual(scene: sl.Scene) -> None:
    found = validate(
        ValidateInputs(scene=scene.folder), result=scene.path("gt"), reduced=False
    )  # fmt: skip
    for name in ("lr_hsi", "hr_msi"):
        values = found.section(name).values
        assert values["rmse"] < 1e-6
        assert values["sam_deg"] < 1e-4
        assert abs(values["largest_bias"]) < 1e-6
    assert found.section("no_reference").values["d_lambda_khan"] < 1e-6


def test_bias_of_a_band_is_found_in_both_images(scene: sl.Scene, tmp_path: Path) -> None:
    cube = sl.read_cube(scene.path("gt"))
    values = cube.values.copy()
    values[:, :, 4] += 0.25
    sl.write_cube(tmp_path / "off.npy", sl.Cube(values, cube.meta))
    found = validate(
        ValidateInputs(scene=scene.folder), result=tmp_path / "off.npy", reduced=False
    )  # fmt: skip
    bias = found.section("lr_hsi").per_band["bias"]
    assert bias[4] == pytest.approx(0.25, abs=1e-6)
    assert np.abs(np.delete(bias, 4)).max() < 1e-6
    with open_pair(ValidateInputs(scene=scene.folder)) as pair:
        own = pair.srf.weights[:, 4]
    assert found.section("hr_msi").per_band["bias"] == pytest.approx(0.25 * own, abs=1e-6)


def test_reprojection_is_blur_and_mean_however_rows_are_cut(
    scene: sl.Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = sl.read_cube(scene.path("gt")).units().astype(np.float64)
    with open_pair(ValidateInputs(scene=scene.folder)) as pair:
        used = np.ones(24, bool)
        made = []
        for size in (2**27, 1):
            monkeypatch.setattr(reproject, "_WINDOW_BYTES", size)
            path = tmp_path / f"{size}.npy"
            with sl.open_cube(scene.path("gt")) as reader:
                reproject.write_seen_by_hsi(
                    reader, pair.observation, pair.lr_hsi.meta, used, path
                )  # fmt: skip
            made.append(sl.read_cube(path).values)
        expected = seen(values, pair.observation.psf, 4)
    whole, cut = made
    inside = np.isfinite(whole).all(axis=2)
    assert inside[2:-2, 2:-2].all()
    assert not inside[0].any() and not inside[:, -1].any()
    assert (inside == np.isfinite(cut).all(axis=2)).all()
    for each in made:
        np.testing.assert_allclose(each[inside], expected[inside], atol=2e-6)


@settings(deadline=None, max_examples=25)
@given(
    ratio=st.floats(1.5, 4.5), top=st.floats(-3, 3), hole=st.integers(0, 18), seed=st.integers(0, 9)
)
def test_constant_stays_constant_beside_holes(
    ratio: float, top: float, hole: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    placement = Placement((5, 4), (20, 18), (ratio, ratio), (top, 1.0))
    observation = Observation(make_psf("gaussian", 1.3, 3), placement)
    image = np.full((20, 18, 2), 7.0)
    image[hole, rng.integers(18), rng.integers(2)] = np.nan
    out = degrade(image, observation, 0.5)
    assert np.isnan(out).all(axis=2).sum() == np.isnan(out).any(axis=2).sum()
    np.testing.assert_allclose(out[np.isfinite(out)], 7.0, rtol=1e-9)
    valid = np.isfinite(image).all(axis=2)
    assert (np.isfinite(out[:, :, 0]) == (observation.share_inside(valid) >= 0.5 - 1e-9)).all()


def test_both_images_are_degraded_by_the_same_optics(scene: sl.Scene) -> None:
    with open_pair(ValidateInputs(scene=scene.folder)) as pair:
        reduced = reduce_pair(pair)
        lr = pair.lr_hsi.read_units().astype(np.float64)
        msi = pair.hr_msi.read_units().astype(np.float64)
        psf = pair.observation.psf
    assert reduced.factor == 2  # 16 x 18 LR pixels: 4 would leave 16
    np.testing.assert_allclose(reduced.hr_msi, seen(msi, psf, 4), atol=1e-6)
    narrow = rescaled_kernel(psf, 0.5)
    np.testing.assert_allclose(reduced.lr_hsi, seen(lr, narrow, 2), atol=1e-6)
    np.testing.assert_array_equal(reduced.truth, lr.astype(np.float32))


@settings(deadline=None, max_examples=30)
@given(sigma=st.floats(2.0, 5.0), share=st.floats(0.4, 1.0))
def test_rescaled_kernel_has_the_asked_width(sigma: float, share: float) -> None:
    half = int(4 * sigma)
    kernel = make_psf("gaussian", sigma, half)
    made = rescaled_kernel(kernel, share)

    def variance(values: np.ndarray) -> float:
        at = np.arange(len(values)) - len(values) // 2
        return float((values.sum(axis=1) * at**2).sum())

    assert made.sum() == pytest.approx(1)
    assert len(made) % 2 == 1
    # the mean over a pixel and the lines between old pixels widen it by a part of a pixel
    assert variance(made) == pytest.approx(share**2 * variance(kernel), rel=0.05, abs=0.3)


def test_the_factor_leaves_enough_pixels() -> None:
    assert reduction_factor((100, 100), 4) == 4
    assert reduction_factor((100, 100), 8.33) == 8
    assert reduction_factor((36, 36), 8) == 4
    assert reduction_factor((9, 9), 8) == 2
    with pytest.raises(DataError, match="3 x 40 pixels cannot be degraded"):
        reduction_factor((3, 40), 4)


def test_assumed_psf_is_as_wide_as_an_lr_pixel() -> None:
    kernel = assumed_psf((10.0, 10.0))
    middle = kernel[len(kernel) // 2]
    assert (middle >= middle.max() / 2).sum() == 11  # from -5 to 5, the points at half maximum
    assert kernel.sum() == pytest.approx(1)


def test_the_better_method_scores_better_one_scale_down(scene: sl.Scene) -> None:
    """A pipeline that ignores the sharp image cannot do better than the one that uses it."""
    found = validate(ValidateInputs(scene=scene.folder), LINEAR)
    section = found.section("reduced")
    psnr = next(figure for figure in section.figures if figure.name == "psnr_db")
    baseline = float(psnr.meaning.partition(" has ")[2].partition(" ")[0])
    assert psnr.value > baseline + 3
    assert "factor of 2 and a PSF narrowed alike" in section.about


@pytest.mark.parametrize("bands", [1, 3])
def test_loose_files_without_wavelengths_with_holes(tmp_path: Path, bands: int) -> None:
    rng = np.random.default_rng(3)
    hsi, msi = 6, bands
    sharp = ndimage.gaussian_filter(rng.random((64, 64, hsi)), (3, 3, 0)) * 1000
    weights = rng.random((msi, hsi)) + 0.1
    weights /= weights.sum(axis=1, keepdims=True)
    psf = make_psf("gaussian", 1.5, 4)
    lr = seen(sharp, psf, 4).astype(np.float32)
    result = sharp.astype(np.float32)
    result[40, 11] = np.nan
    lr[3, 9, 2] = np.nan
    seen_sharp = np.rint(sharp @ weights.T).astype(np.int16)
    seen_sharp[20, 20] = -1
    stored = seen_sharp[:, :, 0] if msi == 1 else seen_sharp
    for name, values in (("lr", lr), ("result", result)):
        np.save(tmp_path / f"{name}.npy", values)
    if msi == 1:
        np.save(tmp_path / "msi.npy", stored)
    else:
        sl.write_cube(tmp_path / "msi.npy", sl.Cube.of(seen_sharp, nodata=-1))
    np.savetxt(tmp_path / "srf.csv", weights, delimiter=",")
    np.savetxt(tmp_path / "psf.csv", psf, delimiter=",")
    inputs = ValidateInputs(
        lr_hsi=tmp_path / "lr.npy", hr_msi=tmp_path / "msi.npy",
        response=sl.ResponseChoice(srf_file=tmp_path / "srf.csv"), psf_file=tmp_path / "psf.csv",
    )  # fmt: skip
    found = validate(inputs, LINEAR, result=tmp_path / "result.npy")
    assert found.psf == "psf.csv"
    # values are some 500; an LR pixel whose view holds a hole in less than a hundredth is kept
    assert found.section("lr_hsi").values["rmse"] < 0.05
    assert found.section("hr_msi").values["rmse"] < (20 if msi == 1 else 0.5)  # a hole, rounding
    assert np.isfinite(found.section("reduced").values["psnr_db"])
    json.dumps(found.to_json(), allow_nan=False)


def no_work(done: int, total: int) -> None:
    raise AssertionError(f"worked to {done} of {total}")


def test_what_cannot_be_validated_is_refused(scene: sl.Scene, tmp_path: Path) -> None:
    inputs = ValidateInputs(scene=scene.folder)
    cube = sl.read_cube(scene.path("gt"))
    small = sl.Cube(cube.values[:60], cube.meta.window(0, 0, 60, 72))
    sl.write_cube(tmp_path / "small.npy", small)
    with pytest.raises(DataError, match="60 x 72 pixels, the HR-MSI 64 x 72"):
        validate(inputs, result=tmp_path / "small.npy", reduced=False)
    with pytest.raises(DataError, match="3 bands, the LR-HSI 24"):
        validate(inputs, result=scene.path("hr_msi"), progress=no_work)  # told before the work
    with pytest.raises(OptionError, match="--maps does not apply without a result"):
        validate(inputs, maps=tmp_path / "maps")
    with pytest.raises(OptionError, match="leaves nothing to do"):
        validate(inputs, reduced=False)
    with pytest.raises(OptionError, match="--uncertainty does not apply"):
        validate(inputs, sl.TrainConfig(uncertainty=True))
    with pytest.raises(OptionError, match="a scene excludes loose files"):
        validate(ValidateInputs(scene=scene.folder, lr_hsi=scene.path("lr_hsi")))
    with pytest.raises(OptionError, match="there is nothing to validate"):
        validate(ValidateInputs(lr_hsi=scene.path("lr_hsi")))


def test_command_writes_maps_and_one_document(
    spectralift: Run, scene: sl.Scene, tmp_path: Path
) -> None:
    maps = tmp_path / "validate"
    words = ("validate", scene.folder, "--result", scene.path("gt"), "--maps", maps, "-q")
    done = spectralift(*words, "--model", "linear", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == "spectralift.validate/1"
    assert list(document["sections"]) == ["reduced", "lr_hsi", "hr_msi", "no_reference"]
    assert document["outputs"] == [str(maps)]
    kept = json.loads((maps / "validate.json").read_text())
    assert kept["sections"] == document["sections"]
    for section in ("lr_hsi", "hr_msi"):
        folder = maps / document["sections"][section]["maps"]
        shape = (16, 18, 1) if section == "lr_hsi" else (64, 72, 1)
        assert sl.read_cube(folder / "rmse.tif").meta.shape == shape
        assert (folder / "sam_deg.png").stat().st_size > 1000
    again = spectralift(*words, "--no-reduced")
    assert again.returncode == 4
    replaced = spectralift(*words, "--no-reduced", "--overwrite")
    assert replaced.returncode == 0
    assert "hqnr" in replaced.stdout and "One scale down" not in replaced.stdout
    refused = spectralift("validate", scene.folder, "--maps", tmp_path / "other")
    assert (refused.returncode, refused.stdout) == (2, "")
