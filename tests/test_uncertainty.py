"""The uncertainty of a sharp cube: its calibration, its file, its errors."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

import spectralift_cli as sl
from spectralift_cli.core import samples
from spectralift_cli.core.checkpoint import load_checkpoint, save_checkpoint
from spectralift_cli.core.errors import DataError, OptionError
from spectralift_cli.core.refining import infer_refined, refine_inputs
from spectralift_cli.core.runs.config import resolve_config
from spectralift_cli.core.runs.pipeline import execute
from spectralift_cli.core.uncertainty.calibrate import noise_free
from spectralift_cli.core.uncertainty.calibration import (
    ErrorModel,
    Judged,
    scatter_of,
    upper_quantile,
)
from spectralift_cli.core.uncertainty.growth import Growth, find_growth, left_out
from spectralift_cli.core.uncertainty.reference import Reference
from tests.conftest import Run

LINEAR = sl.TrainConfig(model="linear", uncertainty=True)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> sl.Scene:
    folder = tmp_path_factory.mktemp("uncertainty")
    sl.write_sample("synthetic", folder / "cube.npy", size=(128, 112, 30), crs="EPSG:32633")
    config = sl.SynthConfig(sigma=2.0, kernel_size=5)
    return sl.synth(folder / "cube.npy", folder / "scene", config, cube_format="npy")


@pytest.fixture(scope="module")
def model(scene: sl.Scene) -> Path:
    path = scene.folder.parent / "m.safetensors"
    sl.train(sl.TrainInputs(scene=scene.folder), path, LINEAR)
    return path


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 400), st.floats(0.01, 0.99), st.integers(0, 99))
def test_conformal_quantile_covers_a_new_value(count: int, level: float, seed: int) -> None:
    values = np.random.default_rng(seed).random(count)
    found = upper_quantile(values, level)
    below = int((values <= found).sum())
    assert below >= min(count, math.ceil((count + 1) * level))
    assert found in values


def test_error_model_finds_what_errors_depend_on() -> None:
    """One slope, though each model errs by its own level; the constant is the first ones'."""
    rng = np.random.default_rng(0)
    slope = np.array([0, 0.7, 0, -0.2])

    def judged(count: int, level: float) -> Judged:
        features = rng.normal(size=(count, 4))
        logs = features @ slope + level + 0.3 * rng.normal(size=count)
        return Judged(features, np.exp(logs))

    model, departures = ErrorModel.fit([judged(900, -3.1), judged(900, -2.9)], [judged(900, 1)])
    assert model.slope == pytest.approx(slope, abs=0.03)
    assert departures.shape == (2700,)
    assert departures.std() == pytest.approx(0.3, abs=0.02)
    parts = judged(3000, -3.1), judged(3000, -2.9)
    new = Judged(
        np.concatenate([part.features for part in parts]),
        np.concatenate([part.errors for part in parts]),
    )
    typical = model.typical(new.features)
    found = [float((new.errors <= typical * factor).mean()) for factor in model.factors[1:]]
    assert found == pytest.approx([0.68, 0.95], abs=0.03)
    far = model.typical(np.full((1, 4), 1e6))
    assert np.isfinite(far).all()  # beyond what was seen, the line ends


def test_each_band_is_told_from_the_others() -> None:
    rng = np.random.default_rng(3)
    known, asked = rng.random((300, 4)), rng.random((50, 4))
    known[:, 3] = known[:, :3] @ [0.2, 0.3, 0.5] + 0.1 * rng.normal(size=300)
    squares = np.zeros(50)
    for band in range(4):
        others = [i for i in range(4) if i != band]
        design = np.hstack([known[:, others], np.ones((300, 1))])
        line = np.linalg.lstsq(design, known[:, band], rcond=None)[0]
        squares += (np.hstack([asked[:, others], np.ones((50, 1))]) @ line - asked[:, band]) ** 2
    found = left_out(known.astype(np.float32), asked.astype(np.float32))
    np.testing.assert_allclose(found, np.sqrt(squares / 4), rtol=0.02, atol=2e-3)  # but for a ridge


@settings(deadline=None, max_examples=20)
@given(st.floats(-1, 2), st.floats(0, 0.5), st.integers(0, 99))
def test_growth_is_what_the_witnesses_tell(growth: float, apart: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    lr = rng.normal(size=(80, 4))
    hr = np.repeat(lr, 3, axis=0)
    hr[:, 1] += growth - apart
    hr[:, 3] += growth + apart
    seen = rng.uniform(0.1, 1, 80)
    found = find_growth(lr, hr, seen, np.repeat(seen, 2) * math.exp(growth))
    assert found.mean == pytest.approx(growth, abs=1e-9)
    assert found.spread == pytest.approx(apart * math.sqrt(4 / 3), abs=1e-9)
    hr[:, 2] += growth  # with one band
    assert find_growth(lr, hr, None, None).mean == pytest.approx(growth, abs=1e-9)


def test_quantiles_hold_where_the_growth_is_drawn_anew() -> None:
    """Scenes whose three witnesses and true growth come from one population of unknown spread."""
    rng = np.random.default_rng(4)
    covered = []
    for _ in range(600):
        spread = rng.uniform(0.05, 0.5)
        told = rng.normal(0.4, spread, 3)
        growth = Growth(float(told.mean()), float(told.std(ddof=1) * math.sqrt(4 / 3)), 2)
        scatter = scatter_of(0.4 * rng.normal(size=300), growth.steps(0.1))
        true = rng.normal(0.4, spread) + 0.1 * rng.normal() + 0.4 * rng.normal(size=300)
        ratios = np.exp(true - growth.mean)
        covered.append([(ratios <= bound).mean() for bound in scatter[1:]])
    assert np.mean(covered, axis=0) == pytest.approx([0.68, 0.95], abs=0.025)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 60), st.integers(0, 99))
def test_scatter_without_steps_is_conformal(count: int, seed: int) -> None:
    departures = np.random.default_rng(seed).normal(size=count)
    found = scatter_of(departures, np.zeros(1))
    expected = [np.exp(departures).mean()]
    expected += [math.exp(upper_quantile(departures, level)) for level in (0.68, 0.95)]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("pixels", [400, 2000])
def test_noise_is_taken_out_and_signal_kept(pixels: int) -> None:
    rng = np.random.default_rng(1)
    clean = rng.random((pixels, 5)) @ rng.random((5, 150)) + 1
    noisy = clean + 0.05 * rng.normal(size=clean.shape)
    left = np.square(noise_free(noisy.astype(np.float32)) - clean).mean() / 0.05**2
    directions = 5 / 150 + 5 / pixels  # of the signal, and how far noise turns them
    assert left == pytest.approx(directions, rel=0.25)
    spectra = clean.astype(np.float32)
    np.testing.assert_allclose(noise_free(spectra), spectra, rtol=1e-4)
    flat = np.full((9, 6), 0.5, np.float32)
    np.testing.assert_allclose(noise_free(flat), flat, rtol=1e-6)


def test_distance_is_that_of_the_nearest_training_pixel() -> None:
    rng = np.random.default_rng(2)
    x = rng.random((200, 3)).astype(np.float32)
    reference = Reference.of(x, rng.random((200, 7)).astype(np.float32))
    new = rng.normal(size=(50, 3)).astype(np.float32)
    apart = (new[:, None].astype(np.float64) - x[None]) @ reference.whitening
    expected = np.sqrt(np.square(apart).sum(axis=2)).min(axis=1)
    np.testing.assert_allclose(reference.distance(new), expected, rtol=1e-6, atol=1e-6)
    assert reference.distance(x).max() < 1e-6
    whitened = (x - reference.centre) @ reference.whitening
    np.testing.assert_allclose(np.cov(whitened.T, bias=True), np.eye(3), atol=1e-5)


def test_file_holds_four_bands_on_the_map(scene: sl.Scene, model: Path, tmp_path: Path) -> None:
    sl.infer(model, scene.folder, tmp_path / "sr.npy", uncertainty_file=tmp_path / "u.tif")
    with rasterio.open(tmp_path / "u.tif") as dataset, sl.open_cube(scene.path("hr_msi")) as msi:
        assert dataset.count == 4
        assert dataset.descriptions[0] == "expected RMSE over bands"
        assert tuple(dataset.transform)[:6] == pytest.approx(msi.meta.transform)
        mean, q68, q95, flag = dataset.read()
    assert (mean > 0).all() and (q68 <= q95).all()
    assert set(np.unique(flag)) <= {0.0, 1.0}
    error = np.sqrt(
        np.square(
            sl.read_cube(tmp_path / "sr.npy").units() - sl.read_cube(scene.path("gt")).units()
        ).mean(axis=2)
    )
    assert (error <= q95).mean() > 0.8
    assert (error <= q68).mean() > 0.5
    assert flag.mean() < 0.1


def test_expected_errors_have_the_size_and_order_of_the_true_ones(tmp_path: Path) -> None:
    orders, sizes = [], []
    for seed in (42, 1, 2):
        cube = samples.synthetic(128, 112, 30, seed=seed)
        sl.write_cube(tmp_path / "cube.npy", cube, overwrite=True)
        config = sl.SynthConfig(sigma=2.0, kernel_size=5)
        scene = sl.synth(
            tmp_path / "cube.npy", tmp_path / "scene", config, cube_format="npy", overwrite=True
        )
        model = tmp_path / "m.safetensors"
        sl.train(sl.TrainInputs(scene=scene.folder), model, LINEAR, overwrite=True)
        sl.infer(
            model, scene.folder, tmp_path / "sr.npy", uncertainty_file=tmp_path / "u.npy",
            overwrite=True,
        )  # fmt: skip
        found, truth = (sl.read_cube(p).units() for p in (tmp_path / "sr.npy", scene.path("gt")))
        error = np.sqrt(np.square(found - truth).mean(axis=2)).ravel()
        expected = sl.read_cube(tmp_path / "u.npy").units()[:, :, 0].ravel()
        orders.append(float(spearmanr(expected, error).statistic))
        sizes.append(float(np.log(expected.mean() / error.mean())))
    assert np.mean(orders) > 0.25 and min(orders) > 0.1
    assert np.abs(sizes).mean() < math.log(1.5) and np.abs(sizes).max() < math.log(2)


def test_scale_and_holes_carry_through(scene: sl.Scene, model: Path, tmp_path: Path) -> None:
    """The same images in counts give the same uncertainty in counts; holes stay holes."""
    images = {}
    for role in ("lr_hsi", "hr_msi"):
        cube = sl.read_cube(scene.path(role))
        images[role] = tmp_path / f"{role}.npy"
        values = (cube.values * 1000).astype(np.float32)
        if role == "hr_msi":
            values[5, 7, 0] = np.nan
        sl.write_cube(images[role], sl.Cube(values, cube.meta))
    inputs = sl.TrainInputs(
        lr_hsi=images["lr_hsi"], hr_msi=images["hr_msi"],
        response=sl.ResponseChoice(srf_file=scene.path("srf")),
    )  # fmt: skip
    with pytest.warns(sl.SpectraliftWarning, match="the PSF is not known"):
        sl.train(inputs, tmp_path / "m.safetensors", LINEAR)
    sl.infer(
        tmp_path / "m.safetensors", images["hr_msi"], tmp_path / "sr.npy",
        uncertainty_file=tmp_path / "u.npy",
    )  # fmt: skip
    sl.infer(model, scene.folder, tmp_path / "a.npy", uncertainty_file=tmp_path / "ua.npy")
    counts, units = (sl.read_cube(tmp_path / f"{n}.npy").values[:, :, 0] for n in ("u", "ua"))
    assert np.isnan(counts[5, 7]) and np.isfinite(np.delete(counts.ravel(), 5 * 112 + 7)).all()
    assert np.nanmedian(counts) / np.median(units) == pytest.approx(1000, rel=0.6)  # another PSF


def test_cut_out_material_is_flagged(tmp_path: Path) -> None:
    rows, cols, bands = 128, 128, 40
    cube = samples.synthetic(rows, cols, bands, seed=42)
    rng = np.random.default_rng(42)
    samples._spectra(rng, 6, np.linspace(400.0, 2500.0, bands))
    abundances = samples._abundances(rng, 6, rows, cols)
    sl.write_cube(tmp_path / "cube.npy", cube)
    scene = sl.synth(
        tmp_path / "cube.npy", tmp_path / "scene", sl.SynthConfig(sigma=2.0), cube_format="npy"
    )  # fmt: skip
    lr = sl.read_cube(scene.path("lr_hsi"))
    share = abundances.reshape(6, 32, 4, 32, 4).mean(axis=(2, 4))
    rates = []
    for material in range(6):
        pure = abundances[material] > 0.7
        if pure.sum() < 50:
            continue
        values = lr.values.copy()
        values[share[material] > 0.15] = np.nan
        sl.write_cube(tmp_path / "cut.npy", sl.Cube(values, lr.meta), overwrite=True)
        inputs = sl.TrainInputs(
            lr_hsi=tmp_path / "cut.npy", hr_msi=scene.path("hr_msi"),
            response=sl.ResponseChoice(srf_file=scene.path("srf")),
        )  # fmt: skip
        with pytest.warns(sl.SpectraliftWarning):
            sl.train(inputs, tmp_path / "m.safetensors", LINEAR, overwrite=True)
        sl.infer(
            tmp_path / "m.safetensors", scene.path("hr_msi"), tmp_path / "sr.npy",
            uncertainty_file=tmp_path / "u.npy", overwrite=True,
        )  # fmt: skip
        flag = sl.read_cube(tmp_path / "u.npy").values[:, :, 3]
        rates.append(
            (material, float(flag[pure].mean()), float(flag[abundances[material] < 0.01].mean()))
        )
    assert len(rates) == 6
    assert min(rate for _, rate, _ in rates) >= 0.9
    assert max(false for _, _, false in rates) < 0.05


def test_checkpoint_keeps_the_calibration(model: Path, tmp_path: Path) -> None:
    first = load_checkpoint(model)
    assert first.calibration is not None
    save_checkpoint(first, tmp_path / "again.safetensors")
    again = load_checkpoint(tmp_path / "again.safetensors")
    assert again.to_bytes() == model.read_bytes()
    x = np.random.default_rng(0).random((9, 4), np.float32)
    y = np.random.default_rng(1).random((9, 30), np.float32)
    srf = first.srf.weights.copy()
    assert again.calibration is not None
    np.testing.assert_array_equal(
        first.calibration.expect(x, y, srf), again.calibration.expect(x, y, srf)
    )  # fmt: skip
    assert first.identity()["size"] < 100_000


@pytest.mark.parametrize("change", [{"shift": math.nan}, {"shift": 1e9}, {"scatter": np.ones(2)}])
def test_damaged_calibrations_are_refused(model: Path, change: dict[str, object]) -> None:
    calibration = load_checkpoint(model).calibration
    assert calibration is not None
    with pytest.raises(DataError, match="calibration of the uncertainty is damaged"):
        dataclasses.replace(calibration, **change)


def test_calibration_is_the_same_for_any_number_of_threads(scene: sl.Scene, tmp_path: Path) -> None:
    config = sl.TrainConfig(uncertainty=True, model="linear")
    small = sl.read_cube(scene.path("lr_hsi")).meta
    assert small.rows == 32
    made = []
    for threads in (1, 2):
        path = tmp_path / f"{threads}.safetensors"
        inputs = sl.TrainInputs(scene=scene.folder)
        sl.train(inputs, path, config, execution=sl.Execution(threads=threads))
        made.append(path.read_bytes())
        sl.infer(
            path, scene.folder, tmp_path / "sr.npy", overwrite=True,
            uncertainty_file=tmp_path / f"{threads}.npy", execution=sl.Execution(threads=threads),
        )  # fmt: skip
    assert made[0] == made[1]
    assert (tmp_path / "1.npy").read_bytes() == (tmp_path / "2.npy").read_bytes()


def test_what_lacks_a_calibration_says_how_to_get_one(scene: sl.Scene, tmp_path: Path) -> None:
    model = tmp_path / "plain.safetensors"
    sl.train(sl.TrainInputs(scene=scene.folder), model, sl.TrainConfig(model="linear"))
    with pytest.raises(DataError, match="holds no calibration") as caught:
        sl.infer(model, scene.folder, tmp_path / "sr.npy", uncertainty_file=tmp_path / "u.npy")
    assert "--uncertainty" in caught.value.hint
    assert not (tmp_path / "sr.npy").exists()
    inputs = sl.TrainInputs(
        lr_hsi=scene.path("lr_hsi"), response=sl.ResponseChoice(srf_file=scene.path("srf"))
    )  # fmt: skip
    with pytest.raises(OptionError, match="needs to know the HR-MSI"):
        sl.train(inputs, tmp_path / "other.safetensors", LINEAR)


def test_command_writes_both_cubes(
    spectralift: Run, scene: sl.Scene, model: Path, tmp_path: Path
) -> None:
    words = ("infer", model, scene.folder, "-o", tmp_path / "sr.npy", "--uncertainty")
    done = spectralift(*words, tmp_path / "u.tif", "--json", "-q")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["outputs"][0] == str(tmp_path / "sr.npy")
    assert document["outputs"][-1] == str(tmp_path / "u.tif")
    assert document["uncertainty"]["pixels"] == 128 * 112
    again = spectralift(*words, tmp_path / "u.tif")
    assert again.returncode == 4


def test_a_run_writes_it_and_its_report_shows_it(scene: sl.Scene, tmp_path: Path) -> None:
    config = {
        "schema": "spectralift.run/1",
        "train": {"scene": str(scene.folder), "model": "linear", "uncertainty": True},
        "infer": {"format": "npy", "uncertainty": True},
    }
    done = execute(resolve_config(config), tmp_path / "out")
    assert done.files["uncertainty"] == tmp_path / "out" / "uncertainty.npy"
    assert done.report["outputs"]["uncertainty_json"] == "uncertainty.npy.json"
    page = done.files["report"].read_text()
    assert "is expected to be" in page and "meant for 95 %" in page
    sl.infer(
        done.files["model"], scene.folder, tmp_path / "sr.npy", uncertainty_file=tmp_path / "u.npy"
    )
    assert (tmp_path / "u.npy").read_bytes() == done.files["uncertainty"].read_bytes()
    again: dict[str, Any] = yaml.safe_load(done.files["config"].read_text())
    assert resolve_config(again).infer[0].uncertainty


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("infer.uncertainty=true",), "train.uncertainty is false"),
        (("infer.uncertainty=true", "train.uncertainty=true", "refine.ungated=true"), "ungated"),
    ],
)
def test_a_run_refuses_what_it_cannot_calibrate(given: tuple[str, ...], told: str) -> None:
    with pytest.raises(DataError, match=told) as caught:
        resolve_config(None, ["train.scene=scene", *given])
    assert caught.value.exit_code == 3 and caught.value.hint.startswith("give ")
    allowed = [pair for pair in given if "refine" not in pair]
    resolve_config(None, ["train.scene=scene", *allowed, "train.uncertainty=true"])


def test_refinement_leaves_the_uncertainty_as_it_is(
    scene: sl.Scene, model: Path, tmp_path: Path
) -> None:
    """It is of the estimate before, which a gated refinement does not make worse."""
    inputs = refine_inputs(model, scene.folder)
    file, plain = tmp_path / "u.npy", tmp_path / "plain.npy"
    infer_refined(model, scene.folder, tmp_path / "a.npy", inputs=inputs, uncertainty_file=file)
    infer_refined(model, scene.folder, tmp_path / "b.npy", inputs=inputs)
    sl.infer(model, scene.folder, tmp_path / "c.npy", uncertainty_file=plain)
    assert file.read_bytes() == plain.read_bytes()
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    with pytest.raises(OptionError, match="named twice"):
        infer_refined(model, scene.folder, file, inputs=inputs, uncertainty_file=file)
    with pytest.raises(OptionError, match="ungated"):
        infer_refined(
            model, scene.folder, tmp_path / "d.npy", None, sl.RefineConfig(ungated=True),
            inputs=inputs, uncertainty_file=tmp_path / "e.npy",
        )  # fmt: skip
    assert not (tmp_path / "e.npy").exists()
