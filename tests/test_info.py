"""`info` on what is not a cube, and what it says of GeoTIFFs that this program wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from scipy.io import savemat
from typer.testing import CliRunner

import spectralift_cli as sl
from spectralift_cli.app import app
from spectralift_cli.core.cube import Cube
from spectralift_cli.core.describe_run import describe_run
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats import write_cube
from spectralift_cli.core.formats.kernels import describe_psf, read_psf, write_psf
from tests.strategies import TRANSFORM, UTM33N


def info(*words: object) -> list[dict[str, object]]:
    done = CliRunner().invoke(app, ["info", *map(str, words), "--json"])
    assert done.exit_code == 0, done.stderr
    items: list[dict[str, object]] = json.loads(done.stdout)["items"]
    return items


# --- point spread functions and responses -----------------------------------------------------


def test_psf_is_not_called_a_response(tmp_path: Path) -> None:
    kernel = np.zeros((5, 5))
    kernel[3, 1:4] = (0.25, 0.5, 0.25)  # a row below the centre
    write_psf(tmp_path / "psf.csv", kernel)
    (item,) = info(tmp_path / "psf.csv")
    assert (item["kind"], item["size"]) == ("psf", 5)
    assert item["centroid_px"] == [1.0, 0.0]
    assert item["sigma_px"] == [0.0, pytest.approx(np.sqrt(0.5))]
    done = CliRunner().invoke(app, ["info", str(tmp_path / "psf.csv")])
    assert "point spread function, 5 x 5 HR pixels" in done.stdout


@pytest.mark.parametrize(
    "table",
    ["0.5,0.5,0\n0,1,0\n0,0,1\n", "0.25,0.25\n0.25,0.25\n", "wavelength_nm,a\n400,1\n",
     "0.5,0.25,0.25\n", "1,nan,0\n0,0,0\n0,0,0\n"],
)  # fmt: skip
def test_responses_are_no_psf(table: str, tmp_path: Path) -> None:
    (tmp_path / "srf.csv").write_text(table)
    assert describe_psf(tmp_path / "srf.csv") is None


def test_psf_file_of_two_arrays_names_no_option_that_there_is_not(tmp_path: Path) -> None:
    savemat(tmp_path / "p.mat", {"a": np.ones((3, 3)), "b": np.ones((5, 5))})
    with pytest.raises(DataError, match="holds 2 arrays") as caught:
        read_psf(tmp_path / "p.mat")
    assert "--var" not in caught.value.hint
    assert read_psf(tmp_path / "p.mat", var="b").shape == (5, 5)


# --- runs ------------------------------------------------------------------------------------


REPORT = {
    "schema": "spectralift.run/1", "config": "native", "device": "cpu", "seconds": 1.5,
    "stages": [{"stage": "train", "seconds": 1.25}], "warnings": [],
    "model": {"choice": "linear", "lr_pixels": 90}, "image": {"pixels": 1440, "holes": 0},
    "outputs": {"cube": "sharp.h5", "model": "model.safetensors"},
}  # fmt: skip


def test_run_folder(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(REPORT))
    (item,) = info(tmp_path)
    assert (item["kind"], item["outputs"]) == ("run", REPORT["outputs"])
    done = CliRunner().invoke(app, ["info", str(tmp_path)])
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert lines["stages"].endswith("train 1.25 s")
    assert lines["model"].endswith("model.safetensors")  # the role of that name comes last
    assert lines["cube"].endswith("sharp.h5")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"schema": "blender.run/1"}', json.dumps({**REPORT, "stages": 3}), "[" * 10**5,
     json.dumps({**REPORT, "model": None})],
)  # fmt: skip
def test_damaged_run(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(DataError, match=r"run.json: is"):
        describe_run(tmp_path)


# --- formats ---------------------------------------------------------------------------------


def test_formats_tell_which_files_are_loaded_whole() -> None:
    done = CliRunner().invoke(app, ["info", "--formats"])
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("mat "))
    assert "read (not version 5), write" in line
    rows = json.loads(CliRunner().invoke(app, ["info", "--formats", "--json"]).stdout)["formats"]
    products = {row["name"]: row for row in rows if row["comes_as"]}
    assert set(products) == {"enmap", "prisma", "emit"}
    assert not any(row["writes"] for row in products.values())


# --- the sidecar-free GeoTIFF ----------------------------------------------------------------


def test_super_resolved_geotiff_stands_alone(tmp_path: Path) -> None:
    """All that the inputs say of the bands and the map is inside the one file."""
    rng = np.random.default_rng(5)
    # spectra of two materials in smooth shares, so that a linear model has something to find
    y, x = np.mgrid[0:24, 0:32] / 16
    share = (0.5 + 0.4 * np.sin(3 * x + y))[:, :, None]
    spectra = rng.random((2, 6)) * 4000 + 500
    values = (share * spectra[0] + (1 - share) * spectra[1]).astype(np.int16)
    values[0:4, 0:4] = -9999
    centres = [450.5, 550.25, 650.125, 750.0, 850.75, 950.5]
    fields = {"crs": UTM33N, "transform": TRANSFORM, "scale": 1e-4, "nodata": -9999}
    cube = Cube.of(
        values, wavelengths_nm=centres, fwhm_nm=[10.5] * 6, bad_bands=[False] * 5 + [True],
        band_names=[f"AVIRIS {i}" for i in range(6)], **fields,
    )  # fmt: skip
    write_cube(tmp_path / "cube.tif", cube)
    with pytest.warns(sl.SpectraliftWarning, match="16 of 768 pixels have holes"):
        scene = sl.synth(
            tmp_path / "cube.tif", tmp_path / "scene",
            sl.SynthConfig(downsample_ratio=4, num_msi_bands=3), cube_format="tif",
        )  # fmt: skip
    model = tmp_path / "m.safetensors"
    sl.train(sl.TrainInputs(scene=scene.folder), model, sl.TrainConfig(model="linear"))
    storage = sl.Storage(dtype="int16", scale=1e-4, nodata=-9999)
    sl.infer(model, scene.folder, tmp_path / "sharp.tif", stored=storage)
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(tmp_path / "sharp.tif", alone)
    assert [p.name for p in tmp_path.glob("sharp.tif*")] == ["sharp.tif"]

    with rasterio.open(alone / "sharp.tif") as file:
        assert (file.count, file.height, file.width, file.nodata) == (6, 24, 32, -9999)
        assert file.crs == CRS.from_epsg(32633)
        assert tuple(file.transform)[:6] == TRANSFORM
        np.testing.assert_array_equal(file.scales, [1e-4] * 6)
        np.testing.assert_array_equal(file.offsets, [0] * 6)
        assert file.descriptions == cube.meta.band_names
        for band, centre in enumerate(centres, start=1):
            items, imagery = file.tags(band), file.tags(band, ns="IMAGERY")
            assert (float(items["wavelength"]), items["wavelength_units"]) == (centre, "nm")
            assert float(items["fwhm"]) == 10.5
            assert items["bbl"] == ("0" if band == 6 else "1")
            assert float(imagery["CENTRAL_WAVELENGTH_UM"]) == pytest.approx(centre / 1e3, rel=1e-15)
            assert float(imagery["FWHM_UM"]) == pytest.approx(10.5e-3, rel=1e-15)
        stored = file.read(masked=True)
    assert stored.mask[:, 0:2, 0:2].all()
    assert not stored.mask[:5, 8:, 8:].any()

    given, made = info(tmp_path / "cube.tif", alone / "sharp.tif")
    same = ("rows", "cols", "bands", "dtype", "wavelengths_nm", "fwhm_nm", "bad_bands", "band_names", "nodata",
            "scale", "offset", "crs", "transform", "bounds")  # fmt: skip
    assert {key: given.get(key) for key in same} == {key: made.get(key) for key in same}
