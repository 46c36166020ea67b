"""Several scenes in one model, and pixels drawn in bounded memory, against plain loops."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from spectralift_cli.app import app
from spectralift_cli.core import stages
from spectralift_cli.core.checkpoint import load_checkpoint
from spectralift_cli.core.config import SynthConfig, TrainConfig
from spectralift_cli.core.cube import Cube
from spectralift_cli.core.cubeio import CubeReader
from spectralift_cli.core.drawing import Drawing, keys_of
from spectralift_cli.core.errors import DataError, OptionError, SpectraliftWarning
from spectralift_cli.core.formats import open_cube, write_cube
from spectralift_cli.core.holdout import Places, block_splits
from spectralift_cli.core.pooling import check_pool, load_pool
from spectralift_cli.core.sensors.response import Srf
from spectralift_cli.core.sharplook import SharpLook, pooled
from spectralift_cli.core.source import Source
from tests.test_training import even_srf

FAST = TrainConfig(effort="fast")


def cube(folder: Path, name: str, values: np.ndarray, **fields: Any) -> CubeReader:
    return open_cube(write_cube(folder / name, Cube.of(values, **fields))[0])


def scene_of(folder: Path, name: str, size: tuple[int, int], seed: int, **more: Any) -> Path:
    rng = np.random.default_rng(seed)
    fields = rng.dirichlet(np.ones(3), (size[0] // 8, size[1] // 8)).astype(np.float32)
    shares = fields.repeat(8, axis=0).repeat(8, axis=1)
    spectra = 0.5 + 0.4 * np.sin(np.linspace(0, 3, 12) * np.array([[1.0], [2.0], [3.0]]))
    nm = np.linspace(430, 930, 12)
    path = write_cube(folder / f"{name}.npy", Cube.of(shares @ spectra, wavelengths_nm=nm))[0]
    return stages.synth(path, folder / name, SynthConfig(**more), cube_format="npy").folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("scenes")
    return scene_of(folder, "a", (48, 56), 0), scene_of(folder, "b", (40, 40), 1)


@settings(deadline=None, max_examples=25)
@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=4), capacity=st.integers(1, 500),
    cut=st.integers(1, 120), seed=st.integers(0, 2**63 - 1),
)  # fmt: skip
def test_the_smallest_keys_are_drawn_however_the_pixels_come(
    sizes: list[int], capacity: int, cut: int, seed: int
) -> None:
    drawing = Drawing(capacity, 2, max(1, sum(sizes)), seed)
    ranked = []
    for image, size in enumerate(sizes):
        index = np.arange(size)
        ranked += [(int(k), image, i) for i, k in enumerate(keys_of(index, image, seed))]
        for start in range(0, size, cut):
            part = index[start : start + cut]
            drawing.show(image, part, np.stack([part, part + image], 1).astype(np.float32))
    images, indices, values = drawing.result()
    expected = sorted((image, i) for _, image, i in sorted(ranked)[:capacity])
    assert list(zip(images.tolist(), indices.tolist(), strict=True)) == expected
    assert (values == np.stack([indices, indices + images], 1)).all()


def test_a_drawing_is_uniform_and_holds_little_more_than_it_returns() -> None:
    drawing = Drawing(10_000, 3, 1_000_000, seed=4)
    room = sum(array.nbytes for array in vars(drawing).values() if isinstance(array, np.ndarray))
    for start in range(0, 1_000_000, 50_000):
        index = np.arange(start, start + 50_000)
        drawing.show(0, index, np.zeros((50_000, 3), np.float32))
    after = sum(array.nbytes for array in vars(drawing).values() if isinstance(array, np.ndarray))
    assert room == after < 1.5 * 10_000 * (3 * 4 + 8 + 8 + 4)
    counts = np.bincount(drawing.result()[1] // 100_000)  # of 1,000 each, deviation 30
    assert len(counts) == 10
    assert abs(counts - 1000).max() < 150


def test_a_pool_is_the_pixels_of_all_images_that_are_valid_in_all_shared_bands(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(2)
    one = rng.integers(1000, 3000, (5, 4, 12)).astype(np.int16)
    two = rng.integers(1000, 3000, (3, 7, 12)).astype(np.int16)
    one[1, 2, 7] = two[2, 6, 3] = -99  # two pixels with holes
    two[:, :, 4] = -99  # a band that one image lacks
    bad = np.arange(12) == 8  # another that the other flags
    fields = {"nodata": -99, "scale": 1e-3}
    srf = Srf(rng.dirichlet(np.ones(12), 3), ("a", "b", "c"))
    with (
        warnings.catch_warnings(),
        cube(tmp_path, "one.npy", one, bad_bands=bad, **fields) as a,
        cube(tmp_path, "two.npy", two, **fields) as b,
    ):
        warnings.simplefilter("ignore", SpectraliftWarning)  # of responses on bands left out
        pool = load_pool([Source(a, srf), Source(b, srf)])
    used = [band for band in range(12) if band not in (4, 8)]
    assert np.flatnonzero(pool.used_bands).tolist() == used
    spectra, where = [], []
    for image, values in enumerate((one, two)):
        for row, col in np.ndindex(values.shape[:2]):
            if (values[row, col, used] != -99).all():
                spectra.append((values[row, col, used] * 1e-3).astype(np.float32))
                where.append((image, row, col))
    places = pool.places
    assert [*zip(places.image, places.row, places.col, strict=True)] == where
    lo, hi = np.percentile(np.array(spectra, np.float64), [1, 99])
    assert (pool.scaling.lo, pool.scaling.hi) == pytest.approx((lo, hi), rel=1e-6)
    scaled = (np.array(spectra, np.float64) - lo) / (hi - lo)
    weights = srf.weights[:, used] / srf.weights[:, used].sum(1, keepdims=True)
    np.testing.assert_allclose(pool.lr_hsi, scaled, atol=1e-6)
    np.testing.assert_allclose(pool.lr_msi, scaled @ weights.T, atol=1e-6)
    assert (pool.pixels, pool.valid) == (41, 39)


def test_drawn_pixels_do_not_depend_on_how_a_file_is_read(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((61, 40, 12)).astype(np.float32)
    values[3, 5, 2] = np.nan
    found = []
    for height in (61, 7, 1):
        with cube(tmp_path, f"{height}.npy", values) as reader:
            reader.block_rows = height
            source, told = Source(reader, even_srf()), []
            found.append(
                load_pool([source], max_pixels=300, seed=9, progress=lambda *now: told.append(now))  # noqa: B023
            )
            assert told[-1] == (122, 122)
    for pool in found[1:]:
        assert pool.lr_hsi.tobytes() == found[0].lr_hsi.tobytes()
        assert pool.scaling == found[0].scaling
    assert (len(found[0].lr_msi), found[0].valid) == (300, 61 * 40 - 1)
    places = found[0].places
    assert (values[places.row, places.col] == found[0].scaling.undo(found[0].lr_hsi)).all()


def test_images_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values, nm = rng.random((6, 6, 12)).astype(np.float32) + 1, np.linspace(400, 950, 12)
    other = Srf(np.roll(even_srf().weights, 1, axis=1), ("a", "b", "c"))
    with (
        cube(tmp_path, "first.npy", values, wavelengths_nm=nm) as a,
        cube(tmp_path, "bands.npy", values[:, :, :9]) as fewer,
        cube(tmp_path, "shifted.npy", values, wavelengths_nm=nm + 1.5) as shifted,
        cube(tmp_path, "counts.npy", values * 1e4, wavelengths_nm=nm) as counts,
        cube(tmp_path, "near.npy", values * 3, wavelengths_nm=nm + 0.5) as near,
    ):
        first = Source(a, even_srf())
        cases = [
            (Source(fewer, even_srf(9)), r"bands.npy: has 9 bands, .*first.npy has 12"),
            (Source(shifted, even_srf()), r"401\.50 nm, that of .*first.npy at 400\.00 nm"),
            (Source(near, other), r"response of its MSI band 1 \(a\) differs by 25\.0%.*first.npy"),
            (Source(near, Srf(np.full((2, 12), 1 / 12), ("a", "b"))), "has 2 bands, .* has 3"),
            (Source(near, even_srf(), scaled=True), "near.npy: was scaled to 0..1 .*first.npy was not"),
        ]  # fmt: skip
        for second, message in cases:
            with pytest.raises(DataError, match=message):
                load_pool([first, second])
        together = [first, Source(counts, even_srf())]
        with pytest.raises(
            DataError, match=r"counts.npy: is in other units than .*first.npy.*1e\+04"
        ):
            check_pool(load_pool(together), together)
        check_pool(load_pool([first, Source(near, even_srf())]), [first, Source(near, even_srf())])
        scaled = [
            Source(a, even_srf(), scaled=True, scaled_from=(0, 4000)),
            Source(near, even_srf(), scaled=True, scaled_from=(0, 4100)),
        ]
        with pytest.warns(
            SpectraliftWarning, match=r"near.npy: was scaled from 0\.\.4100 .*0\.\.4000"
        ):
            load_pool(scaled)
        with pytest.raises(DataError, match="training on 1,000,000,000,000 LR pixels") as refused:
            oversized = type("Huge", (), {"meta": a.meta.replace(shape=(10**6, 10**6, 12)), "path": a.path})  # fmt: skip
            load_pool([replace(first, lr_hsi=oversized())])  # type: ignore[arg-type]
        assert "like --max-pixels" in refused.value.hint


def test_every_image_is_held_out_in_blocks_of_its_own() -> None:
    rng = np.random.default_rng(3)
    shapes, guards = [(17, 22), (9, 30)], [2, 1]
    masks = [rng.random(rows * cols) < 0.8 for rows, cols in shapes]
    image = np.concatenate([np.full(mask.sum(), i) for i, mask in enumerate(masks)])
    row, col = (
        np.concatenate([np.divmod(np.flatnonzero(m), s[1])[k] for m, s in zip(masks, shapes, strict=True)])
        for k in (0, 1)
    )  # fmt: skip
    together = Places(shapes, guards, image.astype(np.int32), row, col).splits()
    alone = [block_splits(s, m, g) for s, m, g in zip(shapes, masks, guards, strict=True)]
    assert len(together) == 9
    for split, *parts in zip(together, *alone, strict=True):
        for name in ("held", "training"):
            expected = [getattr(p, name)[m] for p, m in zip(parts, masks, strict=True)]
            assert (getattr(split, name) == np.concatenate(expected)).all()


def test_looks_are_pooled_as_one_image_would_be_seen() -> None:
    rng = np.random.default_rng(5)
    images = [
        rng.normal(size=(n, 3)) @ rng.normal(size=(3, 3)) + shift
        for n, shift in ((400, 1), (800, 4))
    ]
    looks = [
        SharpLook(np.full(3, noise), np.cov(x.T, bias=True), x.astype(np.float32), x[:, :2].astype(np.float32))
        for x, noise in zip(images, (1.0, 2.0), strict=True)
    ]  # fmt: skip
    found = pooled(looks, [400, 800])
    np.testing.assert_allclose(
        found.covariance, np.cov(np.concatenate(images).T, bias=True), rtol=1e-5
    )
    np.testing.assert_allclose(found.noise, np.sqrt((1 + 2 * 4) / 3))
    assert pooled(looks[:1], [7]) is looks[0]


def test_several_scenes_make_one_model_that_serves_them_all(
    tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    a, b = pair
    model = tmp_path / "m.safetensors"
    run = CliRunner()
    done = run.invoke(
        app, ["train", str(a), str(b), "-o", str(model), "--effort", "fast", "--json"]
    )
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["plan"]["scenes"] == 2
    assert document["scores"]["lr_pixels"] == document["plan"]["valid_pixels"] == 12 * 14 + 100
    assert "prior left out, for several scenes" in document["choice"]
    assert document["pace"]["steps"] > 0 < document["pace"]["seconds"]
    (step,) = [s for s in load_checkpoint(model).provenance["steps"] if s["command"] == "train"]  # type: ignore[index]
    assert list(step["inputs"]) == sorted(["lr_hsi_1", "scene_1", "lr_hsi_2", "scene_2"])
    assert "max_pixels" not in step["options"]
    inputs = [stages.TrainInputs(scene=a), stages.TrainInputs(scene=b)]
    stages.train(
        inputs, tmp_path / "again.safetensors", FAST, execution=stages.Execution(threads=1)
    )
    assert (tmp_path / "again.safetensors").read_bytes() == model.read_bytes()
    for scene in pair:
        stages.infer(model, scene, tmp_path / "sharp.npy", overwrite=True)
        assert stages.evaluate(scene, tmp_path / "sharp.npy").values["psnr"] > 30


def test_paper_trains_on_all_pixels_and_drawing_more_than_there_are_changes_nothing(
    tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    config = TrainConfig(preset="paper", epochs=3, hidden_size=4)
    inputs = stages.TrainInputs(scene=pair[0])
    both = [inputs, stages.TrainInputs(scene=pair[1])]
    plain = stages.train(inputs, tmp_path / "a.safetensors", config)
    more = stages.train(inputs, tmp_path / "b.safetensors", replace(config, max_pixels=10**6))
    for name, weights in plain.checkpoint.weights.items():
        assert (weights == more.checkpoint.weights[name]).all()
    assert load_checkpoint(tmp_path / "b.safetensors").train_config.max_pixels == 10**6
    drawn = stages.train(both, tmp_path / "c.safetensors", replace(config, max_pixels=150))
    assert drawn.checkpoint.scores["lr_pixels"] == 150
    assert drawn.checkpoint.scores["lr_pixels_drawn_from"] == 268
    assert drawn.checkpoint.hsi.transform is None
    assert "150 LR pixels drawn from 268 of 2 scenes" in str(drawn.plan)


def test_what_belongs_to_one_scene_is_refused_for_several(
    tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    both = [stages.TrainInputs(scene=scene) for scene in pair]
    cases = [
        (both, replace(FAST, model="prior-mlp"), "does not apply to several scenes"),
        (both, replace(FAST, uncertainty=True), "not on 2 scenes"),
        (both[:1], replace(FAST, uncertainty=True, max_pixels=9), "not on a part of the LR pixels"),
        ([both[0], replace(both[1], estimate=tmp_path)], FAST, "these are 2 scenes"),
        ([both[0], both[0]], FAST, "is given twice"),
        ([], FAST, "nothing to train on"),
    ]
    for inputs, config, message in cases:
        with pytest.raises(OptionError, match=message):
            stages.train(inputs, tmp_path / "m.safetensors", config)
    assert list(tmp_path.iterdir()) == []
