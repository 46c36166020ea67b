"""Preset auto: what it chooses on, that it repeats itself, and what it does with odd images."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from spectralift_cli.app import app
from spectralift_cli.core import stages, training
from spectralift_cli.core.auto import fit_auto
from spectralift_cli.core.auto.distil import Share, as_one
from spectralift_cli.core.auto.lines import fit_lines
from spectralift_cli.core.auto.parts import Part, fit_part
from spectralift_cli.core.auto.samples import Problem
from spectralift_cli.core.checkpoint import load_checkpoint
from spectralift_cli.core.coarse import Subspace, interpolate, scale_pairs
from spectralift_cli.core.config import SynthConfig, TrainConfig
from spectralift_cli.core.cube import CubeMeta
from spectralift_cli.core.errors import DataError, OptionError, SpectraliftWarning
from spectralift_cli.core.fitting import fit
from spectralift_cli.core.formats import create_cube
from spectralift_cli.core.holdout import Errors, block_splits
from spectralift_cli.core.inference import predict
from spectralift_cli.core.models.base import SpectralModel, build_model
from spectralift_cli.core.netfit import NetSize

FAST = TrainConfig(effort="fast", seed=5)


def image(rows: int, cols: int, bands: int, seed: int = 0) -> np.ndarray:
    """A smooth mixture of three spectra that bend, so that no line fits it."""
    rng = np.random.default_rng(seed)
    at = np.linspace(0, 3, rows)[:, None], np.linspace(0, 4, cols)[None]
    shares = np.stack([np.sin(at[0] * k + at[1]) * 0.5 + 0.5 for k in (1, 2, 3)], axis=2)
    spectra = rng.random((3, bands))
    mixed = shares @ spectra / 3 + 0.2 * shares[:, :, :1] ** 2
    return (mixed + rng.normal(0, 2e-3, mixed.shape)).astype(np.float32)


def response(msi_bands: int, bands: int) -> np.ndarray:
    weights = np.random.default_rng(9).random((msi_bands, bands)) ** 4 + 1e-3
    return weights / weights.sum(axis=1, keepdims=True)


def fitted(cube: np.ndarray, msi_bands: int, config: TrainConfig = FAST, **more: Any) -> Any:
    """fit_auto on a cube whose NaN pixels are holes."""
    srf = response(msi_bands, cube.shape[2])
    valid = np.isfinite(cube).all(axis=2).ravel()
    y = cube.reshape(-1, cube.shape[2])[valid]
    x = (y @ srf.T).astype(np.float32)
    return fit_auto(x, y, srf, valid, cube.shape[:2], config, **more), x, y


def restored(found: Any, msi_bands: int, bands: int) -> SpectralModel:
    model = build_model(found.model_name, msi_bands, bands, found.model_config)
    return model.with_weights(found.weights)


def at_lr_pixels(model: SpectralModel, x: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Predictions at the LR pixels' own places."""
    if not model.needs_position:
        return predict(model, x, threads=1)
    row, col = np.divmod(np.arange(len(x)), shape[1])
    place = np.stack([(row + 0.5) / shape[0], (col + 0.5) / shape[1]], axis=1)
    return predict(model, np.hstack([x, place]).astype(np.float32), threads=1)


@pytest.mark.parametrize(
    "name", ["linear", "residual-mlp", "kernel", "prior-mlp", "ensemble", None]
)
def test_every_model_by_name_fits_better_than_the_mean(name: str | None) -> None:
    cube = image(18, 20, 9)
    found, x, y = fitted(cube, 2, TrainConfig(effort="fast", model=name, seed=1))
    model = restored(found, 2, 9)
    error = at_lr_pixels(model, x, (18, 20)) - y
    assert np.sqrt(np.square(error).mean()) < 0.5 * y.std(axis=0).mean()
    if name == "linear":
        assert found.model_name == "linear"
    if name == "residual-mlp":
        assert not model.needs_position
    assert found.scores["validation_rmse"] > 0
    weights = [value for key, value in found.scores.items() if key.startswith("weight_")]
    assert sum(weights) == pytest.approx(1) or name in ("linear", "kernel")


def test_same_seed_same_bytes_for_any_number_of_threads() -> None:
    cube = image(14, 15, 7)
    one, *_ = fitted(cube, 3, threads=1)
    two, *_ = fitted(cube, 3, threads=2)
    assert one.choice == two.choice
    assert one.weights.keys() == two.weights.keys()
    for key, tensor in one.weights.items():
        assert torch.equal(tensor, two.weights[key]), key


def test_the_folded_weights_do_what_the_parts_did() -> None:
    """The checkpoint's one product each must equal prior + line + networks, written out."""
    cube = image(16, 16, 6)
    found, x, _ = fitted(cube, 2, TrainConfig(model="prior-mlp", effort="fast", seed=3))
    w = {name: tensor.double().numpy() for name, tensor in found.weights.items()}
    u = np.hstack([x, w["scores"].reshape(256, -1)])
    expected = u @ w["linear"] + w["constant"]
    if "features" in w:
        z = np.clip(u @ w["features"] + w["shift"], w["low"], w["high"])
        silu = lambda v: v / (1 + np.exp(-v))  # noqa: E731
        for member in range(len(w["out"])):
            h = silu(z @ w["weights.0"][member] + w["biases.0"][member])
            for layer in (1, 2):
                h = silu(h @ w[f"weights.{layer}"][member] + w[f"biases.{layer}"][member]) + h
            expected = expected + h @ w["out"][member]
        expected = expected + w["out_bias"]
    got = at_lr_pixels(restored(found, 2, 6), x, (16, 16))
    np.testing.assert_allclose(got, expected, atol=2e-5)


def blend_of_two(members: int) -> tuple[list[Share], np.ndarray, NetSize]:
    """A line with networks that sees the MSI, and one that sees the prior too."""
    cube = image(20, 20, 6)
    srf, y = response(2, 6), cube.reshape(-1, 6)
    x = (y @ srf.T).astype(np.float32)
    problem = Problem(x, y, srf, np.ones(400, bool), (20, 20), seed=1)
    assert problem.learning is not None
    size = NetSize(hidden=32, layers=2, members=members, steps=150, batch=64)
    parts = []
    for sample in (problem.pixel, problem.learning):
        (line,) = fit_lines(sample.u, sample.y, problem.features(sample), [1e-3])
        parts.append(fit_part(sample.u, sample.y, line, size, 7))
    shares = [Share(parts[0], 0.3, 0.2), Share(parts[1], 0.7, 0.5)]
    return shares, problem.learning.u, size


def written_out(shares: list[Share], u: np.ndarray) -> np.ndarray:
    total = np.zeros((len(u), 6))
    for share in shares:
        seen = u[:, : len(share.part.line.matrix)]
        line, *more = share.part.estimates(seen)
        total += share.line * line
        if more:
            total += share.nets * (more[0] - line)
    return total


def test_a_blend_of_lines_is_one_line() -> None:
    shares, u, size = blend_of_two(members=0)
    one = as_one(shares, u, u[:0], size, 3, allowed=0)
    assert one is not None
    assert one.nets is None
    np.testing.assert_allclose(one.line(u), written_out(shares, u), atol=1e-5)


def test_a_student_says_what_its_teachers_say_or_is_not_taken() -> None:
    shares, u, size = blend_of_two(members=2)
    wanted = written_out(shares, u)
    assert as_one(shares, u, u[::7], size, 3, allowed=1e-9) is None
    one = as_one(shares, u, u[::7], size, 3, allowed=0.02)
    assert one is not None
    assert one.nets is not None
    assert len(one.nets.out) == 1
    assert np.sqrt(np.square(one.estimates(u)[1] - wanted).mean()) < 0.02
    # a single network needs no student: the same one, with its share
    shares, u, size = blend_of_two(members=1)
    alone = [
        shares[0],
        Share(Part(shares[1].part.line, None, *[np.zeros(0, np.float32)] * 2), 0.7, 0),
    ]
    one = as_one(alone, u, u[:0], size, 3, allowed=0)
    assert one is not None
    np.testing.assert_allclose(one.estimates(u)[1], written_out(alone, u), atol=1e-5)


@settings(deadline=None, max_examples=15)
@given(st.integers(5, 40), st.integers(5, 40))
def test_splits_keep_a_guard_band_and_both_sides(rows: int, cols: int) -> None:
    splits = block_splits((rows, cols), np.ones(rows * cols, bool))
    assert splits
    for split in splits:
        assert split.held.any()
        assert split.training.any()
        assert not (split.held & split.training).any()
        if min(rows, cols) >= 24:
            held = np.argwhere(split.held.reshape(rows, cols))
            training = np.argwhere(split.training.reshape(rows, cols))
            apart = np.abs(held[:, None] - training[None]).max(axis=2).min()
            assert apart > 2


def test_weights_favour_the_better_and_mix_the_independent() -> None:
    rng = np.random.default_rng(2)
    truth = rng.random((500, 8)).astype(np.float32)
    noise = rng.normal(0, 1, (3, 500, 8)).astype(np.float32)
    errors = Errors.of([truth + 0.1 * noise[0], truth + 0.1 * noise[1], truth + noise[2]], truth)
    np.testing.assert_allclose(errors.best_weights(), [0.5, 0.5, 0.0])
    np.testing.assert_allclose(errors.rmse, [0.1, 0.1, 1.0], rtol=0.05)


def test_interpolation_is_that_of_the_model() -> None:
    """Training and inference must see the same prior."""
    grid = np.random.default_rng(4).random((5, 7, 3)).astype(np.float32)
    model = build_model("prior-mlp", 1, 3, {"components": 3, "grid": [5, 7], "features": 5,
                                            "hidden_size": 1, "layers": 1, "members": 0})  # fmt: skip
    weights = {name: torch.zeros(p.shape) for name, p in model.named_parameters()}
    weights |= {"scores": torch.tensor(grid), "linear": torch.eye(4)[:, 1:].contiguous()}
    model.with_weights(weights)
    row, col = np.divmod(np.arange(20 * 21), 21)
    place = np.stack([np.zeros(420), (row + 0.5) / 20, (col + 0.5) / 21], axis=1)
    got = predict(model, place.astype(np.float32), threads=1).reshape(20, 21, 3)
    np.testing.assert_allclose(got, interpolate(grid, 20, 21), atol=1e-5)


def test_pairs_one_scale_down_are_means_interpolated() -> None:
    grid = np.random.default_rng(4).random((6, 6, 2)).astype(np.float32)
    pairs = scale_pairs(grid, 2, np.zeros(2), np.random.default_rng(0))
    assert pairs is not None
    coarse = grid.reshape(3, 2, 3, 2, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(
        pairs.scores[:36], interpolate(coarse, 6, 6).reshape(36, 2), atol=1e-6
    )
    assert scale_pairs(grid, 4, np.zeros(2), np.random.default_rng(0)) is None


def test_subspace_scores_are_white_and_rebuild_the_spectra() -> None:
    spectra = image(12, 12, 5).reshape(-1, 5)
    subspace = Subspace.of(spectra, 5)
    scores = subspace.scores(spectra)
    np.testing.assert_allclose(np.cov(scores.T, bias=True), np.eye(5), atol=1e-3)
    np.testing.assert_allclose(scores @ subspace.basis + subspace.mean, spectra, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "msi_bands", "note"),
    [
        ((3, 3, 6), 2, "too few"),
        ((1, 2, 6), 2, "too few"),
        ((3, 3, 6), 12, "too few"),
        ((12, 12, 1), 1, None),
        ((10, 10, 400), 4, None),
        ((4, 30, 5), 2, None),
        ((1, 90, 5), 2, None),
    ],
)
def test_odd_shapes_are_fitted_and_say_so(
    shape: tuple[int, int, int], msi_bands: int, note: str | None
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found, x, _ = fitted(image(*shape), msi_bands)
    told = " ".join(str(w.message) for w in caught if w.category is SpectraliftWarning)
    assert (note in told) if note else not told
    got = at_lr_pixels(restored(found, msi_bands, shape[2]), x, shape[:2])
    assert np.isfinite(got).all()


def test_pixels_along_the_borders_alone_leave_no_block_to_hold_out() -> None:
    cube = image(20, 20, 6)
    cube[2:-2, 2:-2] = np.nan
    with pytest.warns(SpectraliftWarning, match="too scattered"):
        found, _, _ = fitted(cube, 3)
    assert found.model_name == "linear"
    assert np.isfinite(found.scores["validation_rmse"])


def test_constant_flat_duplicate_and_holey_images() -> None:
    constant = np.full((12, 12, 5), 0.25, np.float32)
    found, x, y = fitted(constant, 2)
    np.testing.assert_allclose(at_lr_pixels(restored(found, 2, 5), x, (12, 12)), y, atol=1e-4)
    cube = image(12, 12, 5)
    duplicates = np.repeat(cube[:, :3], 4, axis=1)
    found, *_ = fitted(duplicates, 2)
    assert np.isfinite(found.scores["validation_rmse"])
    cube[2:5, 3:9] = np.nan
    found, x, y = fitted(cube, 2)
    assert all(bool(torch.isfinite(t).all()) for t in found.weights.values())
    # an MSI band without variance says nothing, and noise in it must not be blown up
    srf = response(2, 5)
    flat = np.full((144, 2), 0.5, np.float32)
    flat[:, 1] = np.linspace(0, 1, 144)
    y = image(12, 12, 5).reshape(-1, 5)
    found = fit_auto(flat, y, srf, np.ones(144, bool), (12, 12), FAST)
    model = restored(found, 2, 5)
    moved = flat + np.array([0.01, 0], np.float32)
    change = at_lr_pixels(model, moved, (12, 12)) - at_lr_pixels(model, flat, (12, 12))
    assert np.abs(change).max() < 0.2


def test_far_outside_the_trained_range_the_output_stays_bounded() -> None:
    found, x, y = fitted(image(16, 16, 6), 2)
    model = restored(found, 2, 6)
    span = y.max() - y.min()
    for value in (-1e6, -3.0, 4.0, 1e6):
        got = at_lr_pixels(model, np.full_like(x, value), (16, 16))
        assert np.abs(got - y.mean()).max() < 100 * span


def test_more_effort_is_a_choice_and_paper_options_are_refused() -> None:
    for wrong in ({"epochs": 9}, {"preset": "paper", "effort": "best"}, {"max_lr": 0.1}):
        with pytest.raises(OptionError, match="preset"):
            TrainConfig(**wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="not a choice"):
        TrainConfig(effort="none")


def test_model_paper_is_fitted_as_preset_paper_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[TrainConfig] = []

    def short(x: np.ndarray, y: np.ndarray, config: TrainConfig, **more: Any) -> Any:
        asked.append(config)
        return fit(x, y, TrainConfig(preset="paper", epochs=3, seed=config.seed), **more)

    monkeypatch.setattr(training, "fit", short)
    np.savetxt(tmp_path / "srf.csv", response(2, 5), delimiter=",")
    inputs = stages.TrainInputs(
        lr_hsi=write(tmp_path / "lr.npy", np.clip(image(4, 4, 5), 0, 1)),
        response=stages.ResponseChoice(srf_file=tmp_path / "srf.csv"),
    )
    config = TrainConfig(model="published", seed=4)
    found = stages.train(inputs, tmp_path / "m.safetensors", config)
    assert asked == [TrainConfig(preset="paper", seed=4)]
    assert found.plan.epochs == TrainConfig.epochs
    again = load_checkpoint(tmp_path / "m.safetensors")
    assert (again.model_name, again.train_config.model) == ("paper", "paper")
    assert not list(tmp_path.glob("*.state"))


@pytest.mark.parametrize("model", ["linear", "kernel", "published"])
def test_effort_is_refused_for_models_that_have_none(model: str) -> None:
    words = ["train", "scene", "-o", "m.safetensors", "--model", model, "--effort", "best"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert "--effort does not apply to the model" in done.stderr


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("residual-mlp", {"hidden_size": 0, "layers": 1, "members": 1}),
        ("residual-mlp", {"hidden_size": 8, "layers": 10**9, "members": 1}),
        ("prior-mlp", {"components": 3, "grid": "ab", "features": 5, "hidden_size": 1,
                       "layers": 1, "members": 0}),
        ("kernel", {"centres": -1}),
        ("ensemble", {"members": []}),
        ("ensemble", {"members": [{"name": "ensemble", "config": {}}]}),
        ("ensemble", {"members": [{"name": "nothing", "config": {}}]}),
    ],
)  # fmt: skip
def test_hostile_configurations_are_refused(name: str, config: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        build_model(name, 2, 3, config)


def write(path: Path, values: np.ndarray) -> Path:
    with create_cube(path, CubeMeta(values.shape, np.dtype("float32"))) as writer:
        writer.write(slice(None), values)
        writer.commit()
    return path


def test_the_command_prints_its_choice_and_infer_cuts_blocks_as_it_likes(tmp_path: Path) -> None:
    cube = np.clip(image(48, 52, 6), 0, 1)
    sharp = write(tmp_path / "gt.npy", cube)
    config = SynthConfig(protocol="published")
    stages.synth(sharp, tmp_path / "scene", config, cube_format="npy")
    words = ["train", str(tmp_path / "scene"), "-o", str(tmp_path / "m.safetensors"), "--effort",
             "fast", "--json"]  # fmt: skip
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert "chose " in done.stderr
    assert told["choice"] == load_checkpoint(tmp_path / "m.safetensors").choice
    outputs = []
    for threads, batch in ((1, None), (2, None)):
        out = tmp_path / f"sr{threads}.npy"
        stages.infer(
            tmp_path / "m.safetensors", tmp_path / "scene", out, batch_size=batch,
            execution=stages.Execution("cpu", threads),
        )  # fmt: skip
        outputs.append(out.read_bytes())
    assert outputs[0] == outputs[1]
    scores = stages.evaluate(tmp_path / "scene", tmp_path / "sr1.npy").to_json()
    assert scores["psnr_db"] > 25


def test_a_prior_is_refused_for_an_image_of_another_area(tmp_path: Path) -> None:
    lr = write(tmp_path / "lr.npy", np.clip(image(12, 16, 5), 0, 1))
    np.savetxt(tmp_path / "srf.csv", response(2, 5), delimiter=",")
    inputs = stages.TrainInputs(
        lr_hsi=lr, response=stages.ResponseChoice(srf_file=tmp_path / "srf.csv")
    )
    config = TrainConfig(model="prior-mlp", effort="fast")
    stages.train(inputs, tmp_path / "m.safetensors", config)
    other = write(tmp_path / "other.npy", np.zeros((64, 48, 2), np.float32))
    with pytest.raises(DataError, match="cannot show the area"):
        stages.infer(tmp_path / "m.safetensors", other, tmp_path / "x.npy")
    far = write(tmp_path / "far.npy", np.full((48, 64, 2), 12, np.float32))
    with (
        pytest.warns(SpectraliftWarning, match="far outside"),
        pytest.warns(SpectraliftWarning, match="radiometry is far"),
    ):
        result = stages.infer(tmp_path / "m.safetensors", far, tmp_path / "y.npy")
    assert result.beyond == 48 * 64
