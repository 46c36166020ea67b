"""The command `estimate`, its file, and what `train` and `infer` take from it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import threadpoolctl

import spectralift_cli as sl
from spectralift_cli.core.checkpoint import load_checkpoint
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.estimation.analysis import analyse
from spectralift_cli.core.estimation.result import SCHEMA, read_estimate
from spectralift_cli.core.formats.arrays import strict_json
from spectralift_cli.core.samples import synthetic
from tests.conftest import Run
from tests.estimation import Truth, known_pair

RATIO = 4


@pytest.fixture(scope="module")
def truth() -> Truth:
    made = synthetic(96, 96, 40)
    assert made.meta.wavelengths_nm is not None
    return known_pair(made.units().astype(np.float64), made.meta.wavelengths_nm, seed=3)


@pytest.fixture(scope="module")
def files(truth: Truth, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """lr.h5 and hr.h5, placed by map coordinates, and srf.csv."""
    folder = tmp_path_factory.mktemp("pair")
    placement = truth.pair.placement
    down, across = placement.origin_px
    utm = 'LOCAL_CS["somewhere"]'
    sl.write_cube(
        folder / "hr.h5",
        sl.Cube.of(truth.pair.msi.astype(np.float32), transform=(1, 0, 0, 0, -1, 0), crs=utm),
    )
    sl.write_cube(
        folder / "lr.h5",
        sl.Cube.of(
            truth.pair.hsi.astype(np.float32), wavelengths_nm=truth.pair.wavelengths_nm, crs=utm,
            transform=(RATIO, 0, across, 0, -RATIO, -down),
        ),
    )  # fmt: skip
    np.savetxt(folder / "srf.csv", truth.srf, delimiter=",")
    return folder


def words(files: Path, *more: object) -> list[object]:
    return ["estimate", "--lr-hsi", files / "lr.h5", "--hr-msi", files / "hr.h5", *more]


@pytest.fixture(scope="module")
def estimate(files: Path, spectralift: Run) -> Path:
    done = spectralift(
        *words(files, "--srf-file", files / "srf.csv", "-o", files / "e.json"),
        "--psf-png", files / "psf.png",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{files / 'e.json'}\n"
    assert "held-out LR pixels" in done.stderr
    return files / "e.json"


def test_the_linear_algebra_has_one_thread(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums that are split over threads would depend on the machine's processors."""
    seen: list[int] = []

    def spy(*given: Any) -> Any:
        found = threadpoolctl.threadpool_info()
        seen.extend(one["num_threads"] for one in found if one["user_api"] == "blas")
        return analyse(*given)

    monkeypatch.setattr("spectralift_cli.core.estimation.estimate.analyse", spy)
    inputs = sl.EstimateInputs(
        lr_hsi=files / "lr.h5", hr_msi=files / "hr.h5",
        response=sl.ResponseChoice(srf_file=files / "srf.csv"),
    )  # fmt: skip
    with threadpoolctl.threadpool_limits(3, user_api="blas"):
        sl.estimate(inputs, tmp_path / "e.json", parts=["shift"])
        outside = threadpoolctl.threadpool_info()
    assert set(seen) == {1}
    assert {one["num_threads"] for one in outside if one["user_api"] == "blas"} == {3}


def test_file_holds_what_was_found(estimate: Path, truth: Truth) -> None:
    document = strict_json(estimate.read_text())
    assert document["schema"] == SCHEMA
    found = read_estimate(estimate)
    np.testing.assert_allclose(found.shift_px, truth.shift_px, rtol=0, atol=0.05)
    assert found.radiometry is not None and found.effective_psf is not None
    np.testing.assert_allclose(found.radiometry.gain, truth.gain, rtol=0.01)
    assert found.srf is None  # the one that was given is right
    assert document["psf"]["includes_footprint"] is True
    assert set(document["provenance"]["steps"][0]["inputs"]) == {"lr_hsi", "hr_msi", "srf"}
    assert (estimate.parent / "psf.png").read_bytes().startswith(b"\x89PNG")


def test_same_inputs_same_bytes_and_json_is_the_document(
    estimate: Path, files: Path, spectralift: Run, tmp_path: Path
) -> None:
    done = spectralift(
        *words(
            files, "--srf-file", files / "srf.csv", "-o", tmp_path / "again.json", "--json", "-q"
        )
    )
    assert (tmp_path / "again.json").read_bytes() == estimate.read_bytes()
    document = strict_json(done.stdout)
    assert document["outputs"] == [str(tmp_path / "again.json")] and document["warnings"] == []
    np.testing.assert_allclose(
        document["gain"]["gain"], strict_json(estimate.read_text())["gain"]["gain"], rtol=1e-6
    )


def test_model_keeps_gain_and_shift_and_infer_takes_another(
    estimate: Path, files: Path, tmp_path: Path
) -> None:
    # without the HR-MSI, whose noise in the radiometry of the estimate the training would allow for
    inputs = sl.TrainInputs(
        lr_hsi=files / "lr.h5", estimate=estimate,
        response=sl.ResponseChoice(srf_file=files / "srf.csv"),
    )  # fmt: skip
    config = sl.TrainConfig(model="linear")
    sl.train(inputs, tmp_path / "m.safetensors", config)
    found, model = read_estimate(estimate), load_checkpoint(tmp_path / "m.safetensors")
    assert model.radiometry is not None and found.radiometry is not None
    np.testing.assert_array_equal(model.radiometry.gain, found.radiometry.gain)
    assert model.shift_px == found.shift_px
    sl.infer(tmp_path / "m.safetensors", files / "hr.h5", tmp_path / "with.npy")
    # a model that was trained without gives the same once it is told
    without = sl.TrainInputs(
        lr_hsi=files / "lr.h5", response=sl.ResponseChoice(srf_file=files / "srf.csv")
    )
    sl.train(without, tmp_path / "plain.safetensors", config)
    sl.infer(
        tmp_path / "plain.safetensors", files / "hr.h5", tmp_path / "told.npy", estimate=estimate
    )
    sl.infer(tmp_path / "plain.safetensors", files / "hr.h5", tmp_path / "plain.npy")
    cubes = [np.load(tmp_path / f"{name}.npy") for name in ("with", "told", "plain")]
    np.testing.assert_array_equal(cubes[0], cubes[1])
    assert np.abs(cubes[0] - cubes[2]).max() > 0.01


def test_unknown_response_is_trained_with(files: Path, spectralift: Run, tmp_path: Path) -> None:
    done = spectralift(*words(files, "--no-psf", "-o", tmp_path / "e.json", "-q"))
    assert done.returncode == 0, done.stderr
    found = read_estimate(tmp_path / "e.json")
    assert found.srf is not None and found.findings.psf is None
    inputs = sl.TrainInputs(lr_hsi=files / "lr.h5", estimate=tmp_path / "e.json")
    sl.train(inputs, tmp_path / "m.safetensors", sl.TrainConfig(model="linear"))
    model = load_checkpoint(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(model.srf.weights, found.srf.weights)
    assert model.srf.source == "estimated"


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(schema="spectralift.scene/1"),
        lambda d: d.pop("gain"),
        lambda d: d["gain"].update(gain=[1.0, 2.0]),
        lambda d: d["gain"].update(gain=[0.0, 1.0, 1.0, 1.0]),
        lambda d: d["gain"].update(used="yes"),
        lambda d: d["shift"].update(shift_px=[1.0, True]),
        lambda d: d["shift"].update(std_px=[1.0, "2"]),
        lambda d: d["psf"].update(includes_footprint=False),
        lambda d: d["psf"]["effective_psf"].pop(),
        lambda d: d["psf"]["effective_psf"][0].__setitem__(0, -1.0),
        lambda d: d["hsi"].update(bands=10**12),
        lambda d: d["hsi"].update(bands=-1),
        lambda d: d["msi"].update(kept=[0, 1, 2, 9], sensor_bands=4),
        lambda d: d["msi"].update(band_names=[]),
        lambda d: d.update(provenance=3),
    ],
)
def test_hostile_files_are_refused(
    estimate: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    document = copy.deepcopy(strict_json(estimate.read_text()))
    change(document)
    (tmp_path / "bad.json").write_text(json.dumps(document))
    with pytest.raises(DataError) as error:
        read_estimate(tmp_path / "bad.json")
    assert "bad.json" in error.value.message and error.value.hint


@pytest.mark.parametrize(
    "text", ["", "[" * 100_000, "NaN", '{"schema": "spectralift.estimate/1", "gain": NaN}', "\xff"]
)
def test_what_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError):
        read_estimate(tmp_path / "bad.json")


def test_estimate_of_other_images_is_refused(estimate: Path, tmp_path: Path) -> None:
    sl.write_cube(
        tmp_path / "other.npy",
        sl.Cube.of(np.ones((8, 8, 7), np.float32), wavelengths_nm=np.linspace(400, 1000, 7)),
    )
    inputs = sl.TrainInputs(
        lr_hsi=tmp_path / "other.npy", estimate=estimate,
        response=sl.ResponseChoice(num_msi_bands=4),
    )  # fmt: skip
    with pytest.raises(DataError, match="an LR-HSI of 40 bands, this one has 7"):
        sl.train(inputs, tmp_path / "m.safetensors")


def test_usage_errors(files: Path, estimate: Path, spectralift: Run, tmp_path: Path) -> None:
    out = ["-o", tmp_path / "e.json"]
    for wrong, message in (
        (["--only", "shift,colour"], "'colour' is not a part"),
        (["--only", "shift", "--no-gain"], "--only names the parts"),
        (["--no-psf", "--psf-size", "9"], "--psf-size does not apply"),
        (["--psf-size", "8"], "an odd side"),
        (["--no-srf"], "the spectral response of the MSI is not known"),
    ):
        done = spectralift(*words(files, *out, *wrong))
        assert done.returncode == 2 and message in done.stderr, done.stderr
    assert spectralift(*words(files, "-o", estimate)).returncode == 4
    assert not (tmp_path / "e.json").exists()


def test_images_that_allow_no_estimate(spectralift: Run, tmp_path: Path) -> None:
    def attempt(lr: np.ndarray[Any, Any], hr: np.ndarray[Any, Any], message: str) -> None:
        for name, values in (("lr", lr), ("hr", hr)):
            sl.write_cube(tmp_path / f"{name}.npy", sl.Cube.of(values), overwrite=True)
        done = spectralift(
            "estimate", "--lr-hsi", tmp_path / "lr.npy", "--hr-msi", tmp_path / "hr.npy",
            "-o", tmp_path / "e.json",
        )  # fmt: skip
        assert done.returncode == 3, done.stderr
        assert message in done.stderr and "hint:" in done.stderr

    rng = np.random.default_rng(0)
    lr = rng.normal(size=(12, 12, 5)).astype(np.float32)
    hr = rng.normal(size=(48, 48, 3)).astype(np.float32)
    attempt(np.ones_like(lr), hr, "every band is constant (1)")
    attempt(lr, np.concatenate([hr[:, :, :2], np.ones((48, 48, 1), np.float32)], 2), "band 3 is")
    attempt(lr[:4, :4], hr[:16, :16], "16 LR pixels are valid where the images overlap")
    attempt(lr[:6, :6], hr[:24, :24], "LR pixels see nothing but valid HR pixels")
    attempt(lr, np.full_like(hr, np.nan), "no valid pixel")


def test_one_lr_band_has_no_response(files: Path, tmp_path: Path, spectralift: Run) -> None:
    cube = sl.read_cube(files / "lr.h5")
    one = sl.Cube.of(cube.values[:, :, [20]], transform=cube.meta.transform, crs=cube.meta.crs)
    sl.write_cube(tmp_path / "lr.h5", one)
    pair = ["--lr-hsi", tmp_path / "lr.h5", "--hr-msi", files / "hr.h5"]
    done = spectralift(
        "estimate", *pair, "-o", tmp_path / "e.json", "--only", "shift,srf", "--json"
    )
    assert done.returncode == 0, done.stderr
    document = strict_json(done.stdout)
    assert document["srf"] is None and "one band" in document["warnings"][0]
    done = spectralift("estimate", *pair, "-o", tmp_path / "f.json", "--only", "srf")
    assert done.returncode == 3 and "no response can be estimated" in done.stderr
