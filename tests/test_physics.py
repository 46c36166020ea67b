"""The fit through the physics: against dense algebra written out, and what must not change it."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from spectralift_cli.app import app
from spectralift_cli.core import stages
from spectralift_cli.core.auto import fit_auto
from spectralift_cli.core.auto.regression import Regression
from spectralift_cli.core.auto.samples import Problem
from spectralift_cli.core.checkpoint import load_checkpoint
from spectralift_cli.core.config import SynthConfig, TrainConfig
from spectralift_cli.core.cubeio import CubeReader
from spectralift_cli.core.devices import Workers
from spectralift_cli.core.errors import DataError, OptionError
from spectralift_cli.core.formats import open_cube
from spectralift_cli.core.inference import predict
from spectralift_cli.core.models.base import SpectralModel, build_model
from spectralift_cli.core.observation import Observation
from spectralift_cli.core.operators.scaling import Scaling
from spectralift_cli.core.physics import lens as lens_module
from spectralift_cli.core.physics.lens import Lens, View
from spectralift_cli.core.physics.optical import find_psf
from spectralift_cli.core.physics.waves import WaveChoice
from spectralift_cli.core.placement import Placement
from spectralift_cli.core.radiometry import Radiometry
from tests.conftest import Run
from tests.test_auto import image, response, restored, write

CONFIG = TrainConfig(model="physics", effort="fast", seed=3)


class Pair:
    """Both images of a made-up scene of 12 x 13 LR pixels at 4x, 9 bands, 3 of them in the MSI."""

    shape = 12, 13
    psf = np.outer(*[np.exp(-0.5 * (np.arange(-4, 5) / 2) ** 2)] * 2) * (1 + np.eye(9))
    placement = Placement(shape, (48, 52), (4.0, 4.0))

    def __init__(
        self,
        stack: contextlib.ExitStack,
        folder: Path,
        msi_bands: int = 3,
        holes: bool = False,
        sharp: np.ndarray | None = None,
    ) -> None:
        self._stack, self._folder = stack, folder
        self.sharp = image(48, 52, 9) if sharp is None else sharp
        self.srf = response(msi_bands, 9)
        noise = np.random.default_rng(8).normal(0, 1e-3, (48, 52, msi_bands))
        self.msi = (self.sharp @ self.srf.T + noise).astype(np.float32)
        self.lr = Observation(self.psf, self.placement)(self.sharp).reshape(-1, 9)
        self.valid = np.ones(156, bool)
        if holes:
            self.msi[20:24, 30:33, 1] = np.nan
            self.valid[[0, 70, 71]] = False
        self.y = self.lr[self.valid].astype(np.float32)
        self.x = (self.y @ self.srf.T).astype(np.float32)
        self.reader = self.opened(self.msi)

    def opened(self, values: np.ndarray) -> CubeReader:
        number = len(list(self._folder.iterdir()))
        path = write(self._folder / f"{number}.npy", values.astype(np.float32))
        return self._stack.enter_context(open_cube(path))

    def view(self, **more: Any) -> View:
        return View(
            **{"hr_msi": self.reader, "placement": self.placement, "scaling": Scaling(),
               "psf": self.psf, **more}
        )  # fmt: skip

    def fitted(self, config: TrainConfig = CONFIG, **more: Any) -> Any:
        return fit_auto(
            self.x, self.y, self.srf, self.valid, self.shape, config,
            **{"view": self.view(), "psf_radius_lr_px": 1, **more},
        )  # fmt: skip

    def problem(self) -> Problem:
        return Problem(self.x, self.y, self.srf, self.valid, self.shape, 3, None, 1)

    def regression(self, y: np.ndarray | None = None, waves: int = 128) -> Regression:
        problem = self.problem()
        with Workers(1) as workers:
            return Regression(
                self.x, self.y if y is None else y, self.valid, problem.msi_range,
                Lens(self.view(), self.psf), problem.splits(), WaveChoice(waves, (2.0,)), 3, workers,
            )  # fmt: skip

    def seen_by_loop(self, plane: np.ndarray) -> np.ndarray:
        """(156,) means over LR pixels of an image blurred by the definition; NaN where unknown."""
        kernel = self.psf / self.psf.sum()
        out = np.full(self.shape, np.nan)
        for i, j in itertools.product(range(12), range(13)):
            total = weight = 0.0
            for r, c in itertools.product(range(4 * i, 4 * i + 4), range(4 * j, 4 * j + 4)):
                for a, b in itertools.product(range(9), range(9)):
                    row, col = r - (a - 4), c - (b - 4)
                    if 0 <= row < 48 and 0 <= col < 52 and np.isfinite(plane[row, col]):
                        total += kernel[a, b] * plane[row, col] / 16
                        weight += kernel[a, b] / 16
            if weight >= 0.99:
                out[i, j] = total / weight
        return out.ravel()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Pair]]:
    with contextlib.ExitStack() as stack:
        yield lambda **more: Pair(stack, tmp_path, **more)


def whole(model: SpectralModel, msi: np.ndarray) -> np.ndarray:
    return predict(model, msi.reshape(-1, msi.shape[2]), threads=1)


def test_the_lens_sees_what_the_definition_says_beside_holes_and_edges(
    make: Callable[..., Pair],
) -> None:
    pair = make(holes=True)
    lens = Lens(pair.view(), pair.psf)
    with Workers(1) as workers:
        seen = lens.see(lambda msi, group: np.tanh(3 * msi[:, group]), 3, workers)
    for band in range(3):
        plane = np.tanh(3 * pair.msi[:, :, band])
        plane[np.isnan(pair.msi).any(axis=2)] = np.nan
        expected = pair.seen_by_loop(plane)
        np.testing.assert_array_equal(np.flatnonzero(np.isfinite(expected)), np.sort(lens.pixels))
        # the PSF's singular values below 1e-3 are left out
        np.testing.assert_allclose(seen[:, band], expected[lens.pixels], atol=2e-3)


def test_the_fit_is_the_ridge_regression_of_dense_matrices(make: Callable[..., Pair]) -> None:
    """Features, normal equations and held-out choice again, in float64 without the project's code."""
    pair = make()
    found = pair.regression()
    tensors = found.tensors(pair.problem().msi_range)
    w = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    dense = Observation(pair.psf, pair.placement, boundary="zero")
    share = dense.share_inside().ravel()
    use = share >= 0.99 - 1e-5

    def features(msi: np.ndarray) -> np.ndarray:
        z = msi.reshape(-1, 3).astype(np.float64) @ w["features"] + w["shift"]
        turned = np.sqrt(2 / 128) * np.cos(z @ w["frequencies"] + w["phases"])
        return np.hstack([z, np.ones((len(z), 1)), turned])

    sharp = features(pair.msi)
    blurred = dense(sharp.reshape(48, 52, -1)).reshape(156, -1)[use] / share[use, None]
    own, y = features(pair.x), pair.lr
    penalty = np.r_[np.full(4, 1e-4), np.ones(128)]

    def solve(training: np.ndarray, pairs: float, ridge: float) -> np.ndarray:
        rows = training[use]
        stack = np.vstack([
            blurred[rows], np.sqrt(pairs) * own[training], np.diag(np.sqrt(ridge * penalty))
        ])  # fmt: skip
        target = np.vstack([y[use][rows], np.sqrt(pairs) * y[training], np.zeros((132, 9))])
        return np.linalg.lstsq(stack, target, rcond=None)[0]

    splits = [s for s in pair.problem().splits() if s.held[use].any()][:3]
    errors = {
        choice: np.concatenate([
            (blurred[s.held[use]] @ solve(s.training, *choice) - y[s.held & use]).ravel()
            for s in splits
        ])
        for choice in itertools.product((0.0, 0.3), (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0))
    }  # fmt: skip
    rmse = {choice: float(np.sqrt(np.square(e).mean())) for choice, e in errors.items()}
    best = min(rmse, key=lambda choice: rmse[choice])
    assert (found.pairs, found.ridge) == best
    assert found.rmse == pytest.approx(rmse[best], rel=5e-3)
    expected = sharp @ solve(np.ones(156, bool), *best)
    model = build_model("physics", 3, 9, found.model_config).with_weights(tensors)
    got = whole(model, pair.msi)
    # components that add less than 0.1 of the error are left out
    assert np.sqrt(np.square(got - expected).mean()) < 0.12 * rmse[best]


def test_it_knows_the_hr_pixels_where_pairs_see_only_means(make: Callable[..., Pair]) -> None:
    """Spectra bend with two abundances that differ between patches as large as LR pixels."""
    rng = np.random.default_rng(2)
    a, b = (np.kron(rng.random((12, 14)), np.ones((4, 4)))[:, :52, None] for _ in range(2))
    at = np.linspace(0, 1, 9)
    sharp = 0.2 + 0.3 * a * at + 0.2 * b * (1 - at) + 0.3 * (a - b) ** 4 * np.sin(9 * at)
    pair = make(sharp=sharp.astype(np.float32), msi_bands=2)
    errors = {}
    for name in ("physics", "kernel", "linear"):
        found = pair.fitted(TrainConfig(model=name, seed=3))
        error = whole(restored(found, 2, 9), pair.msi) - sharp.reshape(-1, 9)
        errors[name] = float(np.sqrt(np.square(error).mean()))
    assert errors["physics"] < 0.8 * min(errors["kernel"], errors["linear"])


def test_neither_threads_nor_tiles_in_any_order_change_a_byte(make: Callable[..., Pair]) -> None:
    pair = make(holes=True)
    config = TrainConfig(effort="fast", seed=5)
    one, two = (pair.fitted(config, threads=n) for n in (1, 2))
    assert "physics" in one.choice
    assert one.choice == two.choice
    assert one.weights.keys() == two.weights.keys()
    for name, tensor in one.weights.items():
        assert torch.equal(tensor, two.weights[name]), name


def test_large_images_are_seen_by_tiles_as_by_whole(
    make: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = make(holes=True)
    full = Lens(pair.view(), pair.psf)
    monkeypatch.setattr(lens_module, "_MOST_LR", 60)
    monkeypatch.setattr(lens_module, "_TILE_SIDE", 4)
    monkeypatch.setattr(lens_module, "_BLOCK_PIXELS", 100)
    parts = Lens(pair.view(), pair.psf)
    assert len(parts.tiles) == 3
    assert 0 < len(parts.pixels) <= 48
    assert all(tile.msi.nbytes < pair.msi.nbytes / 2 for tile in parts.tiles)
    with Workers(2) as workers:
        a, b = (
            each.see(lambda msi, group: np.exp(msi[:, group]), 3, workers) for each in (full, parts)
        )
    rows = {pixel: row for row, pixel in enumerate(full.pixels.tolist())}
    np.testing.assert_allclose(b, a[[rows[pixel] for pixel in parts.pixels.tolist()]], rtol=1e-5)


def test_holes_of_both_images_take_no_part(make: Callable[..., Pair]) -> None:
    pair = make(holes=True)
    found = pair.fitted()
    edge_and_holes = pair.seen_by_loop(np.where(np.isnan(pair.msi).any(axis=2), np.nan, 1.0))
    assert found.scores["lr_pixels_through_psf"] == (np.isfinite(edge_and_holes) & pair.valid).sum()
    assert all(torch.isfinite(tensor).all() for tensor in found.weights.values())
    inside = np.isfinite(pair.msi).all(axis=2).ravel()
    got = whole(restored(found, 3, 9), np.nan_to_num(pair.msi))[inside]
    assert (
        np.sqrt(np.square(got - pair.sharp.reshape(-1, 9)[inside]).mean()) < 0.03
    )  # 0.025 without holes


def test_a_psf_that_is_wrong_or_unknown_is_mended_by_the_images(make: Callable[..., Pair]) -> None:
    pair = make()
    known = pair.fitted().scores["validation_rmse"]
    shifted = np.roll(np.pad(pair.psf, 1), 1, axis=0)
    for psf in (None, np.ones((1, 1)), np.ones((33, 33)), shifted):
        assert pair.fitted(view=pair.view(psf=psf)).scores["validation_rmse"] < 1.15 * known
    kernel = find_psf(
        pair.view(psf=None), pair.x, pair.y, pair.srf, pair.valid, pair.shape, np.full(3, 1e-3)
    )
    widths = []
    for each in (kernel, pair.psf / pair.psf.sum()):
        assert each.sum() == pytest.approx(1, abs=1e-6)
        rows, cols = np.indices(each.shape) - len(each) // 2
        widths.append(np.sqrt((each * (np.square(rows) + np.square(cols))).sum() / 2))
    assert widths[0] == pytest.approx(widths[1], rel=0.1)


def test_gain_and_offset_of_the_msi_are_undone(make: Callable[..., Pair]) -> None:
    pair = make()
    gain, offset = np.array([2.0, 0.5, 1.2]), np.array([0.1, -0.2, 0.0])
    reader = pair.opened((pair.msi - offset) / gain)
    view = pair.view(hr_msi=reader, radiometry=Radiometry(gain, offset))
    same = whole(restored(pair.fitted(view=view), 3, 9), pair.msi)
    np.testing.assert_allclose(same, whole(restored(pair.fitted(), 3, 9), pair.msi), atol=2e-4)


def test_auto_weighs_it_and_says_why_it_did_not(make: Callable[..., Pair]) -> None:
    pair = make()
    config = TrainConfig(effort="fast", seed=3)
    found = pair.fitted(config)
    names = [name for name in found.scores if name.startswith("weight_")]
    assert names[-1] == "weight_physics"
    assert sum(found.scores[name] for name in names) == pytest.approx(1)
    assert found.scores["weight_physics"] > 0  # LR pairs alone know less
    assert "without physics: no HR-MSI" in pair.fitted(config, view=None).choice
    assert "without physics: 2 MSI bands" in make(msi_bands=2).fitted(config).choice
    wide = pair.view(psf=np.ones((55, 55)))
    assert "without physics: the PSF of 55 x 55" in pair.fitted(config, view=wide).choice
    little = pair.opened(np.where(np.arange(52)[:, None] < 30, pair.msi, np.nan))
    found = pair.fitted(config, view=pair.view(hr_msi=little))
    assert "without physics: 50 LR pixels see enough of the HR-MSI" in found.choice


def test_by_name_it_is_refused_where_it_cannot_be_fitted(make: Callable[..., Pair]) -> None:
    pair = make()
    with pytest.raises(DataError, match="needs the HR-MSI"):
        pair.fitted(view=None)
    little = pair.opened(np.where(np.arange(52)[:, None] < 30, pair.msi, np.nan))
    with pytest.raises(DataError, match=r"50 LR pixels see enough.*at least 64"):
        pair.fitted(view=pair.view(hr_msi=little))
    with pytest.raises(DataError, match="55 x 55 pixels is wider than the image"):
        pair.fitted(view=pair.view(psf=np.ones((55, 55))))
    with pytest.raises(OptionError, match="--effort does not apply to the model kernel"):
        TrainConfig.check_given({"model": "kernel", "effort": "best"})
    TrainConfig.check_given({"model": "physics", "effort": "best"})
    with pytest.raises(OptionError, match="--uncertainty does not apply to the model physics"):
        TrainConfig(model="physics", uncertainty=True)
    bad: dict[str, Any]
    for bad in ({"waves": 0, "components": 1}, {"waves": 5, "components": 10**9}, {"waves": "5"}):
        with pytest.raises(DataError):
            build_model("physics", 3, 9, bad)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene of the synthetic sample, 16 x 15 LR pixels."""
    folder = tmp_path_factory.mktemp("physics")
    stages.synth(
        write(folder / "cube.npy", image(64, 60, 12)), folder / "scene",
        SynthConfig(sigma=1.5, kernel_size=4, num_msi_bands=4, srf_wavelengths="invented"),
        cube_format="npy",
    )  # fmt: skip
    return folder / "scene"


def test_from_the_command_line_to_a_sharp_cube(
    scene: Path, spectralift: Run, tmp_path: Path
) -> None:
    model, again = tmp_path / "m.safetensors", tmp_path / "again.safetensors"
    done = spectralift("train", scene, "--model", "physics", "-o", model)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{model}\n"
    assert "chose physics: held-out error" in done.stderr
    stages.train(
        stages.TrainInputs(scene=scene), again, TrainConfig(model="physics"),
        execution=stages.Execution(threads=1),
    )  # fmt: skip
    assert again.read_bytes() == model.read_bytes()
    checkpoint = load_checkpoint(model)
    assert checkpoint.model_name == "physics"
    assert not checkpoint.model().needs_position  # any image of the sensor will do
    stages.infer(model, scene, tmp_path / "sharp.npy")
    assert stages.evaluate(scene, tmp_path / "sharp.npy").to_json()["psnr_db"] > 30


def test_loose_files_need_the_msi_but_no_psf(scene: Path, spectralift: Run, tmp_path: Path) -> None:
    words = ["train", "--lr-hsi", str(scene / "lr_hsi.npy"), "--srf-file", str(scene / "srf.csv"),
             "--model", "physics", "-o", str(tmp_path / "m.safetensors")]  # fmt: skip
    refused = spectralift(*words)
    assert refused.returncode == 3
    assert refused.stderr.splitlines() == [
        "error: the model physics needs the HR-MSI, whose pixels it blurs to compare them with the "
        "LR-HSI",
        "  hint: give --hr-msi FILE or a scene, or choose another --model",
    ]
    assert CliRunner().invoke(app, [*words, "--dry-run"]).exit_code == 3
    done = CliRunner().invoke(app, [*words, "--hr-msi", str(scene / "hr_msi.npy")])
    assert done.exit_code == 0, done.stderr
    assert "physics" in CliRunner().invoke(app, ["info", str(tmp_path / "m.safetensors")]).stdout


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_kernel_computes_what_the_formula_says(precision: str) -> None:
    rng = np.random.default_rng(0)
    model = build_model("physics", 3, 11, {"waves": 20, "components": 6})
    weights = {
        name: torch.tensor(rng.normal(0, 0.5, p.shape), dtype=torch.float32)
        for name, p in model.named_parameters()
    }
    weights["msi_range"] = torch.tensor([[-1.0] * 3, [1.0] * 3])
    weights |= {"low": torch.full((3,), -0.7), "high": torch.full((3,), 0.8)}
    model.with_weights(weights)
    x = rng.normal(0, 1, (500, 3)).astype(np.float32)
    w = {name: tensor.double().numpy() for name, tensor in weights.items()}
    u = x.clip(-1, 1)
    z = (u @ w["features"] + w["shift"]).clip(-0.7, 0.8)
    turned = np.sqrt(2 / 20) * np.cos(z @ w["frequencies"] + w["phases"])
    expected = u @ w["linear"] + w["constant"] + turned @ w["coefficients"] @ w["basis"]
    got = predict(model, x, precision=precision, threads=1, batch_size=128)
    np.testing.assert_allclose(got, expected, atol=3e-6 if precision == "fp32" else 0.03)


def test_held_out_spectra_take_no_part_in_their_estimates(make: Callable[..., Pair]) -> None:
    pair = make()
    split, elsewhere = pair.problem().splits()[:2]
    other = pair.y.copy()
    other[split.held] += np.float32(1e-4)  # too little to change what is chosen
    a, b = (pair.regression(y, waves=16) for y in (pair.y, other))
    assert (a.length, a.ridge, a.pairs) == (b.length, b.ridge, b.pairs)
    for one, two in zip(a.without(split), b.without(split), strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(a.without(elsewhere)[0], b.without(elsewhere)[0])
    assert a.rmse != b.rmse
