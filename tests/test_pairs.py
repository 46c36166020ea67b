"""Real pairs of images: place, units, band order, holes and bad bands, from train to infer."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from spectralift_cli.app import app
from spectralift_cli.core import stages
from spectralift_cli.core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from spectralift_cli.core.config import InferConfig, SynthConfig, TrainConfig
from spectralift_cli.core.cube import Cube, CubeMeta
from spectralift_cli.core.errors import DataError, SpectraliftWarning
from spectralift_cli.core.formats import open_cube, read_cube, write_cube
from spectralift_cli.core.inference import infer
from spectralift_cli.core.models.base import build_model
from spectralift_cli.core.observation import Observation
from spectralift_cli.core.operators.psf import make_psf
from spectralift_cli.core.operators.scaling import Scaling
from spectralift_cli.core.placement import MapMean, Placement, place
from spectralift_cli.core.radiometry import Radiometry
from spectralift_cli.core.samples import synthetic
from spectralift_cli.core.sensors.response import Srf
from tests.conftest import Run
from tests.inverters import make_checkpoint
from tests.strategies import UTM33N

WEST, NORTH = 383_000.0, 5_818_000.0
LR_M, HR_M = 30.0, 3.6
TRAIN = TrainConfig(model="prior-mlp", effort="fast")


def grid(pixel_m: float, west_m: float, south_m: float) -> tuple[float, ...]:
    """The transform of a grid whose origin lies east and south of the scene's."""
    return (pixel_m, 0.0, WEST + west_m, 0.0, -pixel_m, NORTH - south_m)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Files of a pair with a ratio of 8.33, origins apart and extents that both stick out."""

    lr: Path
    hr: Path
    srf: Path
    truth: np.ndarray
    folder: Path

    def train(self, model: Path) -> Checkpoint:
        response = stages.ResponseChoice(srf_file=self.srf)
        inputs = stages.TrainInputs(lr_hsi=self.lr, hr_msi=self.hr, response=response)
        return stages.train(inputs, model, TRAIN, overwrite=True).checkpoint


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """LR-HSI int16, reflectance x 10000, nodata -99; HR-MSI likewise with nodata 0 elsewhere."""
    folder = tmp_path_factory.mktemp("pair")
    gt = synthetic(260, 250, 24, crs=UTM33N, gsd=HR_M, origin_xy=(WEST, NORTH))
    sharp = gt.units().astype(np.float64) * 10_000
    # the LR-HSI begins 1.2 m south and 2.4 m east of the scene and ends two LR pixels before it
    placement = Placement((28, 27), (260, 250), (LR_M / HR_M,) * 2, (1.2 / HR_M, 2.4 / HR_M))
    blur = make_psf("gaussian", 3.0, 8)
    lr = np.rint(Observation(blur, placement)(sharp)).astype(np.int16)
    lr[3, 4, 7] = -99
    lr[:, :, 11] = -99  # a water-vapour band
    bad = np.zeros(24, bool)
    bad[12] = True
    wavelengths = gt.meta.wavelengths_nm
    assert wavelengths is not None
    weights = np.exp(-(((wavelengths - np.array([[500], [1000.0]])) / 120) ** 2))
    weights[:, 11:13] = 0
    weights /= weights.sum(1, keepdims=True)
    rows, cols = slice(41, 260), slice(13, 250)  # five LR pixels of the top are not in the MSI
    msi = np.rint(sharp[rows, cols] @ weights.T).astype(np.uint16)
    msi[100, 50:60] = 0
    np.savetxt(folder / "srf.csv", weights, delimiter=",")
    lr_file = write_cube(folder / "lr.hdr", Cube.of(
        lr, nodata=-99, wavelengths_nm=wavelengths, bad_bands=bad, crs=UTM33N,
        transform=grid(LR_M, 2.4, 1.2),
    ))[0]  # fmt: skip
    hr_file = write_cube(folder / "hr.tif", Cube.of(
        msi, nodata=0, crs=UTM33N, transform=grid(HR_M, 13 * HR_M, 41 * HR_M),
    ))[0]  # fmt: skip
    return Pair(lr_file, hr_file, folder / "srf.csv", sharp[rows, cols], folder)


@pytest.fixture(scope="module")
def model(pair: Pair) -> Path:
    pair.train(pair.folder / "m.safetensors")
    return pair.folder / "m.safetensors"


def test_the_prior_is_looked_up_by_map_coordinates(pair: Pair, model: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(model)
    result = stages.infer(model, pair.hr, tmp_path / "sr.tif")
    cube = read_cube(tmp_path / "sr.tif")
    hr = read_cube(pair.hr)
    meta = cube.meta
    assert (meta.dtype, meta.nodata, meta.scale, meta.crs) == (np.int16, -99, 1.0, hr.meta.crs)
    assert meta.transform == hr.meta.transform
    assert result.placement is not None
    rows, cols = result.placement.overlap_hr()
    assert (rows, cols) == (slice(0, 193), slice(0, 213))  # the LR-HSI ends before the MSI
    holes = (hr.values == 0).any(axis=2)
    assert result.holes == holes.sum() == 10
    values = cube.units()
    assert np.isnan(values[holes]).all()
    assert np.isnan(values[:, :, [11, 12]]).all()
    used = np.delete(np.arange(24), [11, 12])
    assert np.isfinite(values[~holes][:, used]).all()  # beyond the LR-HSI too

    # the same model, told that both images show the same ground to the edge
    wrong = dataclasses.replace(
        checkpoint, hsi=checkpoint.hsi.replace(transform=None), shares_extent=True
    )
    save_checkpoint(wrong, tmp_path / "wrong.safetensors")
    stages.infer(tmp_path / "wrong.safetensors", pair.hr, tmp_path / "wrong.tif")

    def rmse(path: Path) -> float:
        difference = (
            read_cube(path).units()[rows, cols][..., used] - pair.truth[rows, cols][..., used]
        )
        return float(np.sqrt(np.nanmean(difference.astype(np.float64) ** 2)))

    assert rmse(tmp_path / "sr.tif") < 0.8 * rmse(tmp_path / "wrong.tif")


def position_checkpoint(
    lr_shape: tuple[int, int], transform: tuple[float, ...], **more: Any
) -> Checkpoint:
    """A model whose two output bands are the row and column of the LR pixel that it looks up."""
    config = {"components": 2, "grid": list(lr_shape), "features": 3, "hidden_size": 1,
              "layers": 1, "members": 0}  # fmt: skip
    empty = build_model("prior-mlp", 1, 2, config)
    weights = {name: torch.zeros(p.shape) for name, p in empty.named_parameters()}
    rows, cols = np.indices(lr_shape)
    weights["scores"] = torch.tensor(np.stack([rows, cols], axis=2).astype(np.float32))
    weights["linear"] = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    hsi = CubeMeta((*lr_shape, 2), np.dtype("f4"), crs=UTM33N, transform=transform)  # type: ignore[arg-type]
    return Checkpoint(
        model_name="prior-mlp", model_config=config, weights=weights, train_config=TrainConfig(),
        srf=Srf(np.array([[0.5, 0.5]]), ("pan",)), hsi=hsi, used_bands=np.ones(2, bool),
        scaling=Scaling(), **more,
    )  # fmt: skip


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.75, -1.25)])
def test_positions_equal_map_coordinates_pixel_by_pixel(
    shift: tuple[float, float], tmp_path: Path
) -> None:
    checkpoint = position_checkpoint((6, 5), grid(LR_M, 2.4, 1.2), shift_px=shift)
    transform = grid(HR_M, 40.0, -31.0)
    msi = Cube.of(np.zeros((57, 31, 1), np.float32), crs=UTM33N, transform=transform)
    path = write_cube(tmp_path / "msi.npy", msi)[0]
    with open_cube(path) as reader:
        infer(checkpoint, reader, tmp_path / "out.npy", InferConfig(clip="none"), batch_size=37)
    got = read_cube(tmp_path / "out.npy").values
    for row, col in np.ndindex(57, 31):
        east = 40.0 + HR_M * (col + 0.5)
        south = -31.0 + HR_M * (row + 0.5)
        # what lies at LR position p is seen at p + shift
        at = np.array([(south - 1.2) / LR_M + shift[0], (east - 2.4) / LR_M + shift[1]]) - 0.5
        np.testing.assert_allclose(got[row, col], np.clip(at, 0, [5, 4]), atol=1e-4)


def test_the_overlap_is_told_and_what_cannot_be_placed_is_refused(
    pair: Pair, model: Path, tmp_path: Path
) -> None:
    def invoke(*words: object) -> Any:
        return CliRunner().invoke(app, [str(word) for word in words])

    out = tmp_path / "x.safetensors"
    trained = ("train", "--lr-hsi", pair.lr, "--srf-file", pair.srf, "-o", out, "--dry-run")
    told = invoke(*trained, "--hr-msi", pair.hr, "--json")
    assert told.exit_code == 0, told.stderr
    place_json = json.loads(told.stdout)["plan"]["placement"]
    assert place_json["ratio"] == pytest.approx([LR_M / HR_M] * 2)
    assert place_json["lr_pixels"] == 28 * 27
    assert place_json["lr_pixels_touched"] == 24 * 26
    assert place_json["hr_pixels_covered"] == 193 * 213
    done = invoke("infer", model, pair.hr, "-o", tmp_path / "sr.npy", "--drop-bad-bands")
    assert done.exit_code == 0, done.stderr
    assert "ratio 8.333" in done.stderr
    assert "covers 41,109 of 51,903 pixels" in done.stderr
    meta = read_cube(tmp_path / "sr.npy").meta
    assert meta.bands == 22
    lr = read_cube(pair.lr).meta
    assert lr.wavelengths_nm is not None
    np.testing.assert_array_equal(meta.wavelengths_nm, np.delete(lr.wavelengths_nm, [11, 12]))

    msi = read_cube(pair.hr)
    cases = {
        "do not overlap": {"transform": grid(HR_M, 9000.0, 0.0)},
        "EPSG:32632": {"crs": wkt32632()},
        "not sharper": {"transform": grid(45.0, 0.0, 0.0)},
    }
    for message, fields in cases.items():
        other = write_cube(
            tmp_path / "other.tif", Cube(msi.values, msi.meta.replace(**fields)), overwrite=True
        )[0]
        for words in (
            (*trained, "--hr-msi", other),
            ("infer", model, other, "-o", tmp_path / "no.tif"),
        ):
            failed = invoke(*words)
            assert failed.exit_code == 3, failed.stderr
            assert message in failed.stderr


def wkt32632() -> str:
    from rasterio.crs import CRS

    return str(CRS.from_epsg(32632).to_wkt())


def test_a_published_scene_shares_its_extent_at_a_ratio_that_is_not_whole(tmp_path: Path) -> None:
    write_cube(tmp_path / "gt.npy", synthetic(50, 47, 8))
    config = SynthConfig(protocol="published")
    with pytest.warns(SpectraliftWarning, match="fractional area"):
        scene = stages.synth(tmp_path / "gt.npy", tmp_path / "scene", config, cube_format="npy")
    stages.train(stages.TrainInputs(scene=tmp_path / "scene"), tmp_path / "m.safetensors", TRAIN)
    for image in (scene.folder, scene.path("hr_msi")):
        result = stages.infer(tmp_path / "m.safetensors", image, tmp_path / "x.npy", overwrite=True)
        assert result.placement == Placement((12, 11), (50, 47), (50 / 12, 47 / 11))


def test_a_model_that_holds_no_lr_image_serves_any_scene(tmp_path: Path) -> None:
    far = write_cube(tmp_path / "far.npy", Cube.of(
        np.ones((7, 9, 3), np.float32), crs=UTM33N, transform=grid(HR_M, 1e5, 0.0)
    ))[0]  # fmt: skip
    checkpoint = make_checkpoint(5, crs=UTM33N, transform=grid(LR_M, 0.0, 0.0))
    with open_cube(far) as reader:
        result = infer(checkpoint, reader, tmp_path / "out.npy", InferConfig())
    assert result.placement is None
    assert result.pixels == 63


def test_info_tells_what_inference_will_apply(tmp_path: Path) -> None:
    checkpoint = dataclasses.replace(
        make_checkpoint(5, crs=UTM33N, transform=grid(LR_M, 0.0, 0.0)), shift_px=(0.25, -0.5),
        radiometry=Radiometry(np.array([1.5, 2, 3]), np.arange(3.0)),
    )  # fmt: skip
    save_checkpoint(checkpoint, tmp_path / "m.safetensors")
    told = CliRunner().invoke(app, ["info", str(tmp_path / "m.safetensors")]).stdout
    assert "0.25 rows, -0.5 columns" in told
    assert "a x 1.5 + 0, b x 2 + 1, c x 3 + 2" in told
    assert "383000 5817880 383120 5818000" in told


def test_radiometry_comes_before_all_else(pair: Pair, model: Path, tmp_path: Path) -> None:
    gain, offset = np.array([1.25, 0.8]), np.array([-50.0, 120.0])
    hr = read_cube(pair.hr)
    own = (hr.units() - offset) / gain  # what a sensor of another radiometry would give
    other = write_cube(tmp_path / "own.tif", Cube.of(
        own.astype(np.float32), crs=hr.meta.crs, transform=hr.meta.transform
    ))[0]  # fmt: skip
    mended = dataclasses.replace(load_checkpoint(model), radiometry=Radiometry(gain, offset))
    save_checkpoint(mended, tmp_path / "mended.safetensors")
    stages.infer(model, pair.hr, tmp_path / "a.npy")
    stages.infer(tmp_path / "mended.safetensors", other, tmp_path / "b.npy")
    a, b = (read_cube(tmp_path / f"{name}.npy").values for name in "ab")
    assert np.abs(a.astype(int) - b).max() <= 1
    with pytest.raises(DataError, match="radiometry is that of 3 MSI bands, the model takes 2"):
        dataclasses.replace(mended, radiometry=Radiometry(np.ones(3), np.zeros(3)))


def test_older_checkpoints_have_neither_shift_nor_levels(tmp_path: Path) -> None:
    from tests.test_checkpoint import edited, put

    fields = ("radiometry", "shift_px", "shares_extent", "levels")
    (tmp_path / "old").write_bytes(
        edited(lambda doc, _: [doc.pop(name) for name in fields] and None)
    )
    old = load_checkpoint(tmp_path / "old")
    assert (old.radiometry, old.shift_px, old.shares_extent, old.levels) == (
        None, (0.0, 0.0), False, None,
    )  # fmt: skip
    full = dataclasses.replace(
        make_checkpoint(5, crs=UTM33N, transform=grid(LR_M, 0.0, 0.0)),
        radiometry=Radiometry(np.array([1.5, 2, 3]), np.arange(3.0)), shift_px=(0.25, -0.5),
        shares_extent=True, levels=np.arange(15.0).reshape(3, 5),
    )  # fmt: skip
    save_checkpoint(full, tmp_path / "full")
    found = load_checkpoint(tmp_path / "full")
    assert found.to_bytes() == full.to_bytes()
    assert (found.shift_px, found.shares_extent) == ((0.25, -0.5), True)
    assert found.hsi.transform == full.hsi.transform
    for name, value in (
        ("radiometry", {"gain": [1, 2], "offset": [0, 0]}), ("radiometry", {"gain": "a"}),
        ("radiometry", 5), ("shift_px", [1]), ("shift_px", "ab"), ("shift_px", None),
        ("levels", [[1, 2]]), ("levels", "x"),
    ):  # fmt: skip
        (tmp_path / "bad").write_bytes(put(name, value=value))
        with pytest.raises(DataError):
            load_checkpoint(tmp_path / "bad")


def test_mixed_up_units_are_refused_with_the_command_that_mends_them(
    pair: Pair, model: Path, tmp_path: Path, spectralift: Run
) -> None:
    hr = read_cube(pair.hr)
    reflectance = np.where(hr.values == 0, np.nan, hr.values / 10_000).astype(np.float32)
    meta = {"crs": hr.meta.crs, "transform": hr.meta.transform}
    write_cube(tmp_path / "unit.tif", Cube.of(reflectance, **meta))
    words = ("--lr-hsi", pair.lr, "--srf-file", pair.srf, "-o", "m.safetensors")
    failed = spectralift("train", *words, "--hr-msi", "unit.tif", cwd=tmp_path)
    assert failed.returncode == 3
    assert not (tmp_path / "m.safetensors").exists()
    error, hint = failed.stderr.splitlines()[-2:]
    assert "in other units than the LR-HSI" in error
    command = hint.split(": spectralift ")[1]
    assert command == "convert unit.tif OUT --assign-scale 10000"
    with pytest.raises(DataError, match="other units") as caught:
        stages.infer(model, tmp_path / "unit.tif", tmp_path / "x.tif")
    assert caught.value.hint.endswith("--assign-scale 10000")
    done = spectralift(*command.replace("OUT", "mended.tif").split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(
        read_cube(tmp_path / "mended.tif").units(), hr.units(), rtol=1e-6, equal_nan=True
    )
    dataclasses.replace(pair, hr=tmp_path / "mended.tif").train(tmp_path / "m.safetensors")
    stages.infer(model, pair.hr, tmp_path / "a.npy")
    stages.infer(model, tmp_path / "mended.tif", tmp_path / "b.npy")
    a, b = (read_cube(tmp_path / f"{name}.npy").values for name in "ab")
    assert np.abs(a.astype(int) - b).max() <= 1


def test_integers_floats_and_negative_reflectance_give_the_same_spectra(
    pair: Pair, tmp_path: Path
) -> None:
    """int16 x 10000 with a scale, and float reflectance with NaN, are the same pair."""
    lr, hr = read_cube(pair.lr), read_cube(pair.hr)
    shifted = np.where(lr.values == -99, -9999, lr.values.astype(int) - 900).astype(np.int16)
    scaled = Cube(shifted, lr.meta.replace(scale=1e-4, nodata=-9999))
    units = scaled.units()
    assert np.nanmin(units) < -0.02
    msi = np.where(hr.values == 0, -1, hr.values.astype(int) - 900).astype(np.int16)
    results = []
    for name, low, high in (
        ("i", scaled, Cube(msi, hr.meta.replace(dtype=np.dtype("i2"), nodata=-1, scale=1e-4))),
        ("f", Cube.of(units, crs=UTM33N, transform=lr.meta.transform, bad_bands=lr.meta.bad_bands,
                      wavelengths_nm=lr.meta.wavelengths_nm),
         Cube.of(np.where(msi == -1, np.nan, msi * 1e-4), crs=UTM33N, transform=hr.meta.transform)),
    ):  # fmt: skip
        case = dataclasses.replace(
            pair, lr=write_cube(tmp_path / f"{name}lr.npy", low)[0],
            hr=write_cube(tmp_path / f"{name}hr.npy", high)[0],
        )  # fmt: skip
        case.train(tmp_path / f"{name}.safetensors")
        stored = stages.Storage("int16", 1e-4, 0.0, -9999)
        stages.infer(
            tmp_path / f"{name}.safetensors", case.hr, tmp_path / f"{name}.tif", stored=stored
        )
        results.append(read_cube(tmp_path / f"{name}.tif"))
    one, other = results
    assert one.meta.dtype == other.meta.dtype == np.int16
    assert one.meta.scale == pytest.approx(1e-4)
    assert (one.values == -9999).mean() < 0.1
    difference = np.abs(one.values.astype(int) - other.values)
    assert (
        np.median(difference) <= 5
    )  # the same but for the last digits and what fitting makes of them
    assert ((one.values == -9999) == (other.values == -9999)).all()
    assert (one.values[one.values != -9999] < 0).any()


def test_berlin_agrees_with_the_enmap_image(scenes: Path, tmp_path: Path) -> None:
    """EnMAP at 30 m with HyMap at 3.6 m: sharp on HyMap's grid, and coarse again EnMAP itself."""
    lr = read_cube(scenes / "berlin_enmap_30m.hdr")
    msi = scenes / "berlin_hymap_3p6m.hdr"
    hr = read_cube(msi)
    write_gaussian_srf(tmp_path / "srf.csv", lr.meta, hr.meta)
    inputs = stages.TrainInputs(
        lr_hsi=scenes / "berlin_enmap_30m.hdr", hr_msi=msi,
        response=stages.ResponseChoice(srf_file=tmp_path / "srf.csv"),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stages.train(inputs, tmp_path / "m.safetensors", TrainConfig(effort="fast"))
        stages.infer(tmp_path / "m.safetensors", msi, tmp_path / "sr.tif")
    sharp = read_cube(tmp_path / "sr.tif")
    assert sharp.meta.shape == (660, 494, 177)
    assert (sharp.meta.dtype, sharp.meta.nodata) == (np.int16, -99)
    assert sharp.meta.transform == hr.meta.transform
    placement = place(lr.meta, sharp.meta)
    coarse, truth = MapMean(placement)(sharp.units()), lr.units()
    ok = placement.inside() & np.isfinite(coarse).all(2) & np.isfinite(truth).all(2)
    a, b = coarse[ok].astype(np.float64), truth[ok].astype(np.float64)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean() < 3.0
    assert np.sqrt(((a - b) ** 2).mean()) < 0.15 * b.mean()


def write_gaussian_srf(path: Path, hsi: CubeMeta, msi: CubeMeta) -> None:
    """Write curves of the MSI's centres and widths."""
    assert msi.wavelengths_nm is not None and msi.fwhm_nm is not None
    assert hsi.wavelengths_nm is not None
    nm = np.arange(400.0, 1000.0)
    curves = np.exp(-4 * np.log(2) * ((nm[:, None] - msi.wavelengths_nm) / msi.fwhm_nm) ** 2)
    header = "wavelength_nm," + ",".join(f"B{i + 1}" for i in range(msi.bands))
    np.savetxt(path, np.column_stack([nm, curves]), delimiter=",", header=header, comments="")
