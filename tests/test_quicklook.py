"""Quicklooks: colours against the CIE's tables, means against loops, files against rasterio."""

from __future__ import annotations

import io
import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from spectralift_cli.app import app
from spectralift_cli.core.config import QuicklookConfig
from spectralift_cli.core.cube import Cube
from spectralift_cli.core.cubeio import CubeReader, SelectedReader
from spectralift_cli.core.errors import (
    DataError,
    OptionError,
    OutputExistsError,
    SpectraliftWarning,
)
from spectralift_cli.core.formats import open_cube, write_cube
from spectralift_cli.core.pictures import reduce
from spectralift_cli.core.pictures.colour import (
    choose_composite,
    encode_srgb,
    linear_srgb_of_tristimulus,
    matching_functions,
    tristimulus_weights,
)
from spectralift_cli.core.pictures.rgb import quicklook, write_quicklook
from tests.conftest import Run

CRS = rasterio.crs.CRS.from_epsg(32633).to_wkt()
VISIBLE = np.linspace(400, 900, 26)


class MemoryReader(CubeReader):
    """A cube in memory that keeps the rows it was asked for."""

    def __init__(self, cube: Cube, block_rows: int = 5, row_unit: int = 1) -> None:
        super().__init__(Path("memory"), cube.meta)
        self.values, self.block_rows, self.row_unit = cube.values, block_rows, row_unit
        self.seen: set[int] = set()

    def _read(self, start, stop):
        self.seen |= set(range(start, stop))
        return self.values[start:stop]

    def close(self):
        pass


def cube(shape=(12, 9, 26), wavelengths_nm=VISIBLE, seed=0, **fields):
    values = np.random.default_rng(seed).random(shape).astype(np.float32)
    return Cube.of(values, wavelengths_nm=wavelengths_nm, **fields)


def draw(image, like=None, **config):
    other = None if like is None else MemoryReader(like)
    return quicklook(MemoryReader(image), QuicklookConfig(**config), other)


def test_matching_functions_are_those_of_the_cie():
    # CIE 1931 2-degree observer, CIE 15:2004 table T.4
    table = {
        450: (0.3362, 0.0380, 1.7721), 500: (0.0049, 0.3230, 0.2720), 550: (0.4334, 0.9950, 0.0087),
        600: (1.0622, 0.6310, 0.0008), 650: (0.2835, 0.1070, 0.0000),
    }  # fmt: skip
    found = matching_functions(np.array(list(table), float))
    np.testing.assert_allclose(found, list(table.values()), atol=0.025)
    sums = matching_functions(np.arange(380.0, 781.0)).sum(axis=0)
    np.testing.assert_allclose(sums, 106.86, rtol=0.005)  # the CIE's, by 1 nm


def test_true_colour_integrates_the_spectrum_through_the_bands():
    centres = np.array([420.0, 470, 520, 555, 610, 680, 760])
    spectrum = np.array([0.1, 0.2, 0.5, 0.4, 0.3, 0.6, 0.9])
    grid = np.arange(380.0, 781.0)
    functions = np.maximum(matching_functions(grid), 0)
    drawn = np.interp(grid, centres, spectrum)[:, None]
    expected = (drawn * functions).sum(axis=0) / functions.sum(axis=0)
    np.testing.assert_allclose(spectrum @ tristimulus_weights(centres), expected, rtol=1e-12)


def test_a_spectrum_without_colour_is_grey_and_primaries_are_theirs():
    matrix = linear_srgb_of_tristimulus()
    np.testing.assert_allclose(np.ones(3) @ matrix, 1, atol=1e-3)
    grid = np.arange(400.0, 701.0, 10)
    for centre, channel in ((450, 2), (540, 1), (630, 0)):
        spectrum = np.exp(-(((grid - centre) / 20) ** 2))
        assert (spectrum @ tristimulus_weights(grid) @ matrix).argmax() == channel
    assert encode_srgb(np.array([0, 0.0031308, 0.2140411, 1])) == pytest.approx(
        [0, 0.04045, 0.5, 1], abs=1e-4
    )


@pytest.mark.parametrize(
    ("wavelengths_nm", "bands", "mode", "first_bands"),
    [
        (VISIBLE, 26, "true", None),
        ([480, 560, 660], 3, "true", None),  # a multispectral image's blue, green and red
        ([560, 660, 860, 1650], 4, "false", [2, 1, 0]),
        (np.linspace(1000, 2400, 12), 12, "spread", [10, 6, 2]),
        (None, 12, "spread", [10, 6, 2]),
        ([480, 860], 2, "grey", [0]),
        (None, 1, "grey", [0]),
    ],
)
def test_what_is_drawn_without_being_told(wavelengths_nm, bands, mode, first_bands):
    found = choose_composite(cube((2, 2, bands), wavelengths_nm).meta, QuicklookConfig())
    assert found.mode == mode
    if first_bands is not None:
        assert found.bands.tolist() == first_bands


def test_bad_bands_are_not_drawn():
    bad = np.zeros(26, bool)
    bad[3:6] = True
    image = cube(bad_bands=bad)
    assert not set(choose_composite(image.meta, QuicklookConfig()).bands) & {3, 4, 5}
    with pytest.warns(SpectraliftWarning, match="band 5 is flagged"):
        draw(image, bands="5,7,9")


def test_chosen_bands_are_stretched_between_their_percentiles():
    image = cube((40, 30, 26))
    picture = draw(image, rgb="640,540,440", stretch="10,80")
    assert picture.record["bands"] == [13, 8, 3]
    for channel, band in enumerate((12, 7, 2)):
        values = image.values[:, :, band].astype(np.float64)
        low, high = np.percentile(values, (10, 80))
        expected = np.round(255 * np.clip((values - low) / (high - low), 0, 1))
        np.testing.assert_array_equal(picture.rgba[:, :, channel], expected)
    assert (picture.rgba[:, :, 3] == 255).all()
    np.testing.assert_array_equal(draw(image, bands="13,8,3", stretch="10,80").rgba, picture.rgba)


def test_one_stretch_keeps_a_grey_cube_grey():
    values = np.repeat(np.random.default_rng(0).random((9, 8, 1)), 26, axis=2)
    picture = draw(Cube.of(values, wavelengths_nm=VISIBLE), one_stretch=True)
    assert np.ptp(picture.rgba[:, :, :3].astype(int), axis=2).max() <= 1
    assert len({tuple(pair) for pair in picture.limits.tolist()}) == 1


@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_like_gives_equal_values_equal_colours(data):
    whole = cube((14, 11, 26), seed=data.draw(st.integers(0, 99)))
    rows = data.draw(st.integers(2, 14))
    config = data.draw(st.sampled_from([{}, {"rgb": "640,540,440"}, {"one_stretch": True}]))
    # the same values, stored otherwise
    stored = (whole.values[:rows].astype(np.float64) - 3) / 2
    part = Cube.of(stored, wavelengths_nm=VISIBLE, scale=2.0, offset=3.0)
    pattern = draw(whole, **config)
    found = draw(part, like=whole, **config)
    np.testing.assert_array_equal(found.limits, pattern.limits)
    difference = found.rgba.astype(int) - pattern.rgba[:rows]
    assert np.abs(difference).max() <= 1


def test_like_takes_the_mode_too():
    swir = cube((6, 6, 12), np.linspace(1000, 2400, 12))
    with pytest.raises(DataError, match="12 bands cannot be drawn in true colour"):
        draw(swir, like=cube())
    assert draw(cube(), like=swir).composite.mode == "spread"
    pan = cube((6, 6, 1), [600.0])
    assert draw(cube((4, 4, 1), [550.0]), like=pan).composite.mode == "grey"
    with pytest.raises(DataError, match="cannot be drawn in grey"):
        draw(cube(), like=pan)


@given(data=st.data())
@settings(deadline=None, max_examples=30)
def test_means_of_cells_are_those_of_a_loop_however_rows_are_cut(data):
    rows, cols = data.draw(st.integers(1, 23)), data.draw(st.integers(1, 17))
    factor, block = data.draw(st.integers(1, 25)), data.draw(st.integers(1, 24))
    image = cube((rows, cols, 3), None, seed=rows * 100 + cols)
    image.values[np.random.default_rng(cols).random(image.values.shape) < 0.2] = np.nan
    composite = choose_composite(image.meta, QuicklookConfig(bands="3,1,2"))
    found = reduce.read_reduced(MemoryReader(image, block), composite, factor)
    for r in range(0, rows, factor):
        for c in range(0, cols, factor):
            cell = image.values[r : r + factor, c : c + factor, [2, 0, 1]].reshape(-1, 3)
            cell = cell[np.isfinite(cell).all(axis=1)].astype(np.float64)
            expected = cell.mean(axis=0) if len(cell) else np.full(3, np.nan)
            np.testing.assert_allclose(found[r // factor, c // factor], expected, rtol=1e-12)
    whole = reduce.read_reduced(MemoryReader(image, rows), composite, factor)
    np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize(("row_unit", "most_rows"), [(1, 10), (4, 40), (100, 100)])
def test_large_cubes_are_read_in_part_where_rows_can_be_skipped(monkeypatch, row_unit, most_rows):
    image = cube((100, 20, 26))
    image.values[:] = np.linspace(0.2, 0.8, 100)[:, None, None]  # smooth: few rows tell enough
    monkeypatch.setattr(reduce, "READ_BYTES", 10 * image.meta.row_bytes)
    reader = MemoryReader(image, 7, row_unit)
    picture = quicklook(reader, QuicklookConfig(max_size=10))
    assert picture.factor == 10
    assert len(reader.seen) <= most_rows
    assert {row // 10 for row in reader.seen} == set(range(10))
    monkeypatch.undo()
    everything = quicklook(MemoryReader(image), QuicklookConfig(max_size=10))
    assert np.abs(picture.rgba.astype(int) - everything.rgba).max() < 12


def test_holes_are_transparent_and_do_not_count():
    clean = cube((20, 15, 26))
    stored = np.round(clean.values * 1000).astype(np.int16)
    stored[4:9, 3:6] = -99
    stored[12, 2, :2] = -99  # a few bands of many
    picture = draw(Cube.of(stored, wavelengths_nm=VISIBLE, nodata=-99, scale=1e-3))
    hole = np.zeros((20, 15), bool)
    hole[4:9, 3:6] = True
    np.testing.assert_array_equal(picture.rgba[:, :, 3] == 0, hole)
    assert not picture.rgba[hole].any()
    assert picture.record["transparent_pixels"] == 15
    whole = np.where(hole[:, :, None], np.nan, stored * 1e-3).astype(np.float64)
    whole[12, 2, :2] = np.nan
    same = draw(Cube.of(whole, wavelengths_nm=VISIBLE))
    np.testing.assert_array_equal(same.rgba, picture.rgba)


def test_images_without_contrast_or_values():
    flat = Cube.of(np.full((5, 4, 26), 0.3), wavelengths_nm=VISIBLE)
    with pytest.warns(SpectraliftWarning, match="is constant"):
        picture = draw(flat, rgb="640,540,440")
    assert np.unique(picture.rgba[:, :, :3]).tolist() == [128]
    spike = np.zeros((30, 30, 1))
    spike[3, 3] = 1  # both percentiles are 0
    assert draw(Cube.of(spike)).limits.tolist() == [[0, 1]]
    with pytest.raises(DataError, match="no pixel is valid"):
        draw(Cube.of(np.full((5, 4, 3), np.nan)))
    with pytest.raises(DataError, match="no pixel is valid"):
        draw(Cube.of(np.full((5, 4, 3), np.nan)), like=Cube.of(np.arange(60.0).reshape(5, 4, 3)))


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"bands": "1,2"}, DataError, "3 bands or 1, not 2"),
        ({"bands": "1,2,99"}, DataError, "bands 99"),
        ({"rgb": "650,550,2000"}, DataError, "near 2000 nm"),
        ({"rgb": "a,b,c"}, DataError, "not a choice"),
        ({"stretch": "98,2"}, DataError, "98,2"),
        ({"stretch": "2"}, DataError, "percentiles"),
        ({"rgb": "650,550,450", "bands": "1,2,3"}, OptionError, "exclude"),
        ({"max_size": 0}, DataError, "max-size is 0"),
    ],
)
def test_wrong_choices_are_explained(config, error, message):
    with pytest.raises(error, match=message):
        draw(cube(), **config)


def georeferenced(tmp_path):
    image = cube((33, 20, 26), crs=CRS, transform=(5.0, 0.5, 4e5, 0.25, -5.0, 5e6))
    path = tmp_path / "in.hdr"
    write_cube(path.with_suffix(".npz"), image)
    return open_cube(path.with_suffix(".npz")), image


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_pictures_know_where_they_are(tmp_path, name):
    reader, image = georeferenced(tmp_path)
    with reader:
        picture, files = write_quicklook(
            reader, tmp_path / name, QuicklookConfig(max_size=11), world_file=name == "a.png"
        )
    assert [p.name for p in files] == (
        [name] if name == "a.tif" else [name, "a.pgw", "a.png.aux.xml"]
    )
    with rasterio.open(tmp_path / name) as found:
        assert (found.height, found.width, found.count) == (11, 7, 4)
        assert found.crs == rasterio.crs.CRS.from_wkt(CRS)
        a, b, c, d, e, f = image.meta.transform
        expected = rasterio.Affine(3 * a, 3 * b, c, 3 * d, 3 * e, f)
        assert found.transform.almost_equals(expected, 1e-9)
        np.testing.assert_array_equal(found.read().transpose(1, 2, 0), picture.rgba)
        assert found.colorinterp[3].name == "alpha"
    if name == "a.png":
        numbers = [float(line) for line in (tmp_path / "a.pgw").read_text().split()]
        a, b, d, e = 3 * a, 3 * b, 3 * d, 3 * e
        assert numbers == pytest.approx([a, d, b, e, c + (a + b) / 2, f + (d + e) / 2])


def test_files_appear_whole_or_not_at_all(tmp_path):
    reader, _ = georeferenced(tmp_path)
    png = tmp_path / "x.png"
    with reader:
        write_quicklook(reader, png, world_file=True)
        before = png.read_bytes()
        assert matplotlib.image.imread(io.BytesIO(before)).shape == (33, 20, 4)
        with pytest.raises(OutputExistsError):
            write_quicklook(reader, png)
        write_quicklook(reader, png, overwrite=True)
        assert png.read_bytes() == before  # same input, same bytes
        # the georeference of the older picture is gone with it
        assert sorted(p.name for p in tmp_path.glob("*x.p*")) == ["x.png"]
        with pytest.raises(OptionError, match=r"written as \.png"):
            write_quicklook(reader, tmp_path / "x.jpg")
        with pytest.raises(OptionError, match="does not apply to a GeoTIFF"):
            write_quicklook(reader, tmp_path / "x.tif", world_file=True)
    with pytest.raises(DataError, match="no georeference"):
        write_quicklook(MemoryReader(cube()), tmp_path / "y.png", world_file=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.npz", "x.png"]


@pytest.mark.parametrize("interleave", ["BSQ", "BIL", "BIP"])
def test_chosen_bands_are_read_as_from_the_whole(tmp_path, interleave):
    image = cube((11, 7, 26))
    for order in ("0", "1"):
        options = {"INTERLEAVE": interleave, "BYTE_ORDER": order}
        write_cube(tmp_path / "c.hdr", image, options=options, overwrite=True)
        bands = np.array([20, 3, 3, 0])
        with open_cube(tmp_path / "c.hdr") as reader:
            assert reader.row_unit == 1
            rows = slice(2, 9)
            np.testing.assert_array_equal(reader.read(rows, bands), image.values[rows][:, :, bands])
            part = SelectedReader(reader, [5, 1], (1, 2, 8, 4))
            np.testing.assert_array_equal(part.read(), image.values[1:9, 2:6, [5, 1]])
            np.testing.assert_array_equal(
                part.read(slice(3, 5), np.array([1])), image.values[4:6, 2:6, [1]]
            )


def test_command(tmp_path: Path, spectralift: Run) -> None:
    source, target = tmp_path / "c.npz", tmp_path / "q.png"
    write_cube(source, cube((40, 30, 26), crs=CRS, transform=(5.0, 0.0, 4e5, 0.0, -5.0, 5e6)))
    done = spectralift("quicklook", source, "-o", target, "--max-size", "20", "--world-file")
    assert (done.returncode, done.stdout) == (0, f"{target}\n"), done.stderr
    assert done.stderr.startswith("CIE true colour from ")
    words = ["quicklook", source, "-o", target, "--bands", "3,2,1", "--like", source, "--json"]
    assert spectralift(*words).returncode == 4
    document = json.loads(spectralift(*words, "--overwrite", "-q").stdout)
    assert document["outputs"] == [str(target)]
    assert (document["mode"], document["bands"], document["rows"]) == ("rgb", [3, 2, 1], 40)


@pytest.mark.parametrize(
    "words", [["-o", "q.jpg"], ["-o", "q.png", "--rgb", "650,550,450", "--bands", "1"]]
)
def test_command_usage(tmp_path: Path, words: list[str]) -> None:
    write_cube(tmp_path / "c.npz", cube())
    found = CliRunner().invoke(app, ["quicklook", str(tmp_path / "c.npz"), *words])
    assert (found.exit_code, found.stdout) == (2, "")
