"""Validation one scale down runs what the user runs, with the PSF that the images agree on."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import numpy as np
import pytest

import spectralift_cli as sl
from spectralift_cli.core.errors import OptionError, SpectraliftWarning
from spectralift_cli.core.formats.kernels import read_psf, write_psf
from spectralift_cli.core.identity import provenance
from spectralift_cli.core.operators.psf import make_psf
from spectralift_cli.core.validation.figures import Validation
from spectralift_cli.core.validation.inputs import ValidateInputs, open_pair
from spectralift_cli.core.validation.likeness import warn_of_differences
from spectralift_cli.core.validation.reduced import rescaled_kernel
from spectralift_cli.core.validation.rehearsal import Pipeline
from spectralift_cli.core.validation.sight import with_matching_psf
from spectralift_cli.core.validation.validate import validate
from tests.conftest import Run
from tests.test_validate import seen

LINEAR = sl.TrainConfig(model="linear")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> sl.Scene:
    """A scene of 24 x 24 LR pixels with some noise."""
    folder = tmp_path_factory.mktemp("pipeline")
    sl.write_sample("synthetic", folder / "cube.npy", size=(96, 96, 24))
    config = sl.SynthConfig(
        sigma=2.0, kernel_size=7, num_msi_bands=3, snr_spatial=40.0, snr_spectral=40.0
    )
    return sl.synth(folder / "cube.npy", folder / "scene", config, cube_format="npy")


@pytest.fixture(scope="module")
def dimmed(scene: sl.Scene, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The scene's MSI in another radiometry, and what `estimate` finds between the images."""
    folder = tmp_path_factory.mktemp("dimmed")
    cube = sl.read_cube(scene.path("hr_msi"))
    values = (cube.units() * np.float32([0.6, 0.8, 0.7]) + np.float32(0.03)).astype(np.float32)
    sl.write_cube(folder / "msi.npy", sl.Cube(values, cube.meta))
    inputs = sl.EstimateInputs(
        lr_hsi=scene.path("lr_hsi"), hr_msi=folder / "msi.npy",
        response=sl.ResponseChoice(srf_file=scene.path("srf")),
    )  # fmt: skip
    found = sl.estimate(inputs, folder / "estimate.json", parts=("psf", "gain"))
    assert found.radiometry is not None
    return folder / "msi.npy", folder / "estimate.json"


def loose(scene: sl.Scene, hr_msi: Path | None = None, **more: Path) -> ValidateInputs:
    return ValidateInputs(
        lr_hsi=scene.path("lr_hsi"), hr_msi=hr_msi or scene.path("hr_msi"),
        response=sl.ResponseChoice(srf_file=scene.path("srf")), **more,
    )  # fmt: skip


def psnr(found: Validation) -> float:
    return found.section("reduced").values["psnr_db"]


def test_one_scale_down_runs_the_stages_that_the_user_runs(scene: sl.Scene, tmp_path: Path) -> None:
    """The stages called by hand, on images degraded by another route, give the same scores."""
    psf, truth = read_psf(scene.path("psf")), scene.path("lr_hsi")
    narrow = rescaled_kernel(psf, 3 / 4)  # 24 x 24 pixels are degraded by 3: 4 would leave 36
    for role, kernel, factor in (("hr_msi", psf, 4), ("lr_hsi", narrow, 3)):
        image = sl.read_cube(scene.path(role)).units().astype(np.float64)
        coarse = seen(image, kernel, factor).astype(np.float32)
        sl.write_cube(tmp_path / f"{role}.npy", sl.Cube.of(coarse))
    write_psf(tmp_path / "psf.csv", narrow)
    lr, msi, cube, refined = (
        tmp_path / f"{n}.npy" for n in ("lr_hsi", "hr_msi", "cube", "refined")
    )
    model, response = tmp_path / "m.safetensors", sl.ResponseChoice(srf_file=scene.path("srf"))
    sl.train(sl.TrainInputs(lr_hsi=lr, hr_msi=msi, response=response), model, LINEAR)
    sl.infer(model, msi, cube)
    both = sl.RefineInputs(
        lr_hsi=lr, hr_msi=msi, response=response, psf_file=tmp_path / "psf.csv"
    )  # fmt: skip
    sl.refine(cube, both, refined)
    plain = validate(loose(scene, psf_file=scene.path("psf")), LINEAR)
    better = validate(
        loose(scene, psf_file=scene.path("psf")), LINEAR, refine=sl.RefineConfig()
    )  # fmt: skip
    score = sl.MetricsConfig(ratio=3.0)
    for found, made in ((plain, cube), (better, refined)):
        expected = sl.evaluate(truth, made, score).values
        values = found.section("reduced").values
        assert values["psnr_db"] == pytest.approx(expected["psnr"], abs=2e-3)
        assert values["sam_deg"] == pytest.approx(expected["sam"], abs=2e-3)
    assert psnr(better) > psnr(plain) + 0.1
    assert "refine (refinement kept" in better.section("reduced").about
    assert "not: refine (--refine)" in plain.section("reduced").about


def test_an_estimate_applies_to_both_parts(
    scene: sl.Scene, dimmed: tuple[Path, Path], tmp_path: Path
) -> None:
    msi, estimate = dimmed
    without = validate(
        loose(scene, msi, psf_file=scene.path("psf")), LINEAR, result=scene.path("gt")
    )  # fmt: skip
    told = validate(loose(scene, msi, estimate=estimate), LINEAR, result=scene.path("gt"))
    right = validate(loose(scene, psf_file=scene.path("psf")), LINEAR)
    assert psnr(told) > psnr(without) + 6
    assert psnr(told) == pytest.approx(psnr(right), abs=0.7)
    assert told.psf == "estimated from the images"
    assert "estimate, as given (uses PSF, gain)" in told.section("reduced").about
    assert told.section("hr_msi").values["rmse_share"] < 0.02
    assert without.section("hr_msi").values["rmse_share"] > 0.2
    assert told.provenance["steps"][-1]["inputs"]["estimate"]


def test_an_estimate_may_be_found_anew(scene: sl.Scene, dimmed: tuple[Path, Path]) -> None:
    msi, estimate = dimmed
    found = validate(loose(scene, msi, estimate=estimate), LINEAR, estimate_anew=True)
    given = validate(loose(scene, msi, estimate=estimate), LINEAR)
    assert "estimate, anew (uses" in found.section("reduced").about
    # 64 LR pixels tell less than 576
    assert psnr(given) - 3 < psnr(found) < psnr(given) + 1


def test_a_wrong_psf_gives_way_to_what_the_images_tell(scene: sl.Scene, tmp_path: Path) -> None:
    wrong, right = tmp_path / "narrow.csv", scene.path("psf")
    write_psf(wrong, make_psf("gaussian", 0.6, 3))
    with pytest.warns(SpectraliftWarning, match=r"narrow\.csv\) does not map .* --trust-psf keeps"):
        corrected = validate(loose(scene, psf_file=wrong), LINEAR, result=scene.path("gt"))
    trusted = validate(
        loose(scene, psf_file=wrong), LINEAR, result=scene.path("gt"), trust_psf=True
    )  # fmt: skip
    known = validate(loose(scene, psf_file=right), LINEAR, result=scene.path("gt"))
    unknown = validate(loose(scene), LINEAR, result=scene.path("gt"))
    assert corrected.psf.startswith("not narrow.csv but found from the images, ")
    assert unknown.psf.startswith("found from the images, ")
    assert (trusted.psf, known.psf) == ("narrow.csv", "psf.csv")
    residual = {
        name: found.section("lr_hsi").values["rmse"]
        for name, found in (("known", known), ("unknown", unknown), ("corrected", corrected))
    }
    for name in ("unknown", "corrected"):
        assert residual[name] < 1.1 * residual["known"]
    assert trusted.section("lr_hsi").values["rmse"] > 1.5 * residual["known"]
    assert psnr(corrected) == pytest.approx(psnr(known), abs=0.3)
    assert psnr(trusted) < psnr(known) - 1
    assert trusted.provenance["steps"][-1]["options"]["trust_psf"] is True


def test_a_right_psf_stays_to_the_last_bit(scene: sl.Scene) -> None:
    with open_pair(ValidateInputs(scene=scene.folder)) as pair:
        assert with_matching_psf(pair) is pair


def test_too_few_pixels_to_find_a_psf_are_told(scene: sl.Scene, tmp_path: Path) -> None:
    for role, size in (("lr_hsi", 6), ("hr_msi", 24)):
        cube = sl.read_cube(scene.path(role))
        small = sl.Cube(cube.values[:size, :size], cube.meta.window(0, 0, size, size))
        sl.write_cube(tmp_path / f"{role}.npy", small)
    inputs = ValidateInputs(
        lr_hsi=tmp_path / "lr_hsi.npy", hr_msi=tmp_path / "hr_msi.npy",
        response=sl.ResponseChoice(srf_file=scene.path("srf")),
    )  # fmt: skip
    with open_pair(inputs) as pair, pytest.warns(SpectraliftWarning, match="PSF is not known"):
        assert with_matching_psf(pair).psf.startswith("assumed")


def test_what_was_made_otherwise_is_told(scene: sl.Scene) -> None:
    train = provenance("train", LINEAR.used_json(), {"estimate": {}, "lr_hsi": {}})
    refined = provenance("refine", {}, {}, earlier=provenance("infer", {}, {}, earlier=train))
    with pytest.warns(SpectraliftWarning) as told:
        warn_of_differences(refined, Pipeline(sl.TrainConfig(model="residual-mlp")), False)
    text = " / ".join(str(each.message) for each in told)
    assert "the result was refined" in text and "--refine does it" in text
    assert "give --estimate JSON" in text
    assert "model linear (here residual-mlp)" in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_differences(refined, Pipeline(LINEAR, sl.RefineConfig()), True)
        for unknown in (None, {}, {"steps": 3}, {"steps": [1, {"command": "train"}]}):
            warn_of_differences(unknown, Pipeline(LINEAR), False)


def test_command_takes_the_options_and_refuses_those_without_a_part(
    spectralift: Run, scene: sl.Scene, dimmed: tuple[Path, Path]
) -> None:
    msi, estimate = dimmed
    words = (
        "validate", "--lr-hsi", scene.path("lr_hsi"), "--hr-msi", msi, "--srf-file",
        scene.path("srf"), "--estimate", estimate, "--model", "linear",
    )  # fmt: skip
    done = spectralift(*words, "--refine", "--json", "-q")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert "estimate, as given" in document["sections"]["reduced"]["about"]
    told = document["provenance"]["steps"][-1]["options"]["refine"]
    assert told == dataclasses.asdict(sl.RefineConfig())
    for option in ("--refine", "--estimate-anew"):
        refused = spectralift(*words, "--no-reduced", "--result", scene.path("gt"), option)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert f"{option} does not apply with --no-reduced" in refused.stderr
    both = spectralift(*words, "--psf-file", scene.path("psf"))
    assert (both.returncode, both.stdout) == (2, "")


def test_what_fails_one_scale_down_is_said_to(scene: sl.Scene, tmp_path: Path) -> None:
    cube = sl.read_cube(scene.path("lr_hsi"))
    values = cube.values.copy()
    values[1:, :, 3] = np.nan  # no pixel one scale down has all bands
    sl.write_cube(tmp_path / "holes.npy", sl.Cube(values, cube.meta))
    inputs = ValidateInputs(
        lr_hsi=tmp_path / "holes.npy", hr_msi=scene.path("hr_msi"),
        response=sl.ResponseChoice(srf_file=scene.path("srf")), psf_file=scene.path("psf"),
    )  # fmt: skip
    with pytest.raises(sl.SpectraliftError, match=r"^one scale down: ") as caught:
        validate(inputs, LINEAR)
    assert "spectralift-" not in caught.value.message
    assert "--no-reduced" in caught.value.hint
    with pytest.raises(OptionError, match="exclude each other"):
        validate(loose(scene, psf_file=scene.path("psf"), estimate=tmp_path / "none.json"))
