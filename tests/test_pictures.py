"""Curves with gaps, maps with colour bars, the maps of `metrics --maps`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import rasterio

from spectralift_cli.core.config import MetricsConfig
from spectralift_cli.core.cube import Cube
from spectralift_cli.core.errors import (
    DataError,
    OptionError,
    OutputExistsError,
    SpectraliftWarning,
)
from spectralift_cli.core.formats import write_cube
from spectralift_cli.core.pictures import style
from spectralift_cli.core.pictures.errormaps import read_limits, usual_limits
from spectralift_cli.core.stages import evaluate
from tests.conftest import Run

CRS = rasterio.crs.CRS.from_epsg(32633).to_wkt()
# 10 nm apart, with a gap where bands were taken out, and two detectors that overlap
WAVELENGTHS_NM = np.concatenate([np.arange(400.0, 700, 10), np.arange(690.0, 800, 10), [900.0],
                                 np.arange(1000.0, 1200, 10)])  # fmt: skip


def segments(axes):
    """The x values that are joined by lines, one list a stroke of two points or more."""
    strokes = []
    for line in axes.get_lines():
        if line.get_linestyle() == "None":
            continue
        x, y = line.get_data()
        known = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
        for part in np.split(known, np.flatnonzero(np.diff(known) > 1) + 1):
            if len(part) > 1:
                strokes.append(x[part].tolist())
    return strokes


def dots(axes):
    return [
        x for line in axes.get_lines() if line.get_linestyle() == "None" for x in line.get_xdata()
    ]


def test_curves_break_at_gaps_overlaps_bad_bands_and_missing_values():
    bad = np.zeros(WAVELENGTHS_NM.size, bool)
    bad[10:13] = True
    values = np.sin(WAVELENGTHS_NM)
    values[20] = np.inf
    with style.styled():
        axes = style.new_figure(600, 400).subplots()
        style.draw_curves(
            axes, {"a": values}, WAVELENGTHS_NM, bad_bands=bad, label="RMSE", unit="deg"
        )
    found = segments(axes)
    assert found == [
        WAVELENGTHS_NM[:10].tolist(), WAVELENGTHS_NM[13:20].tolist(), WAVELENGTHS_NM[21:30].tolist(),
        WAVELENGTHS_NM[30:41].tolist(), WAVELENGTHS_NM[42:].tolist(),
    ]  # fmt: skip
    assert dots(axes) == [900.0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Wavelength (nm)", "RMSE (deg)")
    (shade,) = axes.patches
    left, right = shade.get_xy()[0], shade.get_xy()[0] + shade.get_width()
    assert left == pytest.approx(495)
    assert right == pytest.approx(525)


def test_multispectral_bands_are_joined_and_dotted():
    axes = style.new_figure(300, 200).subplots()
    centres = np.array([480.0, 560, 660, 860, 1610, 2200])
    style.draw_curves(axes, {"a": np.arange(6.0), "b": np.arange(6.0)}, centres)
    assert segments(axes) == [centres.tolist()] * 2
    assert dots(axes) == centres.tolist() * 2
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    numbered = style.new_figure(300, 200).subplots()
    style.draw_curves(numbered, {"a": [1.0, np.nan, 3.0, 4.0]})
    assert all(float(tick).is_integer() for tick in numbered.get_xticks())  # bands have no halves
    assert segments(numbered) == [[3, 4]]
    assert dots(numbered) == [1, 3, 4]
    assert numbered.get_xlabel() == "Band"
    one = style.new_figure(300, 200).subplots()
    style.draw_curves(one, {"a": [2.0]}, bad_bands=np.array([False]))
    assert dots(one) == [1]


def test_maps_share_limits_and_have_units_and_grey_holes():
    values = np.linspace(0, 5, 12).reshape(3, 4)
    values[0, 1] = np.nan
    figure = style.new_figure(400, 300)
    left, right = figure.subplots(1, 2)
    images = [
        style.draw_map(axes, values * k, limits=(1.0, 4.0), colour_bar=False)
        for axes, k in ((left, 1), (right, 0.5))
    ]
    bar = style.draw_colour_bar(images[0], [left, right], "SAM", "deg")
    assert {image.get_clim() for image in images} == {(1.0, 4.0)}
    assert bar.ax.get_ylabel() == "SAM (deg)"
    assert bar.extend == "both"
    assert images[0].get_cmap().name == "cividis"
    shown = images[0].to_rgba(images[0].get_array())
    assert mpl.colors.to_hex(shown[0, 1]) == style.HOLE_COLOUR
    flat = style.new_figure(300, 200).subplots()
    assert style.draw_map(flat, np.zeros((2, 2))).get_clim() == (-0.5, 0.5)
    empty = style.new_figure(300, 200).subplots()
    style.draw_map(empty, np.full((2, 2), np.nan))


FIGURE = """
import sys, matplotlib, numpy as np
matplotlib.rcParams["font.size"] = float(sys.argv[1])  # as a user's matplotlibrc may
from spectralift_cli.core.pictures import style
with style.styled():
    figure = style.new_figure(400, 300)
    axes = figure.subplots(1, 2)
    style.draw_curves(axes[0], {"a": np.arange(30.0)}, np.arange(400.0, 700, 10), label="x")
    style.draw_map(axes[1], np.arange(6.0).reshape(2, 3), "x", "nm")
    axes[0].set_title("a title")
    data = style.png_bytes(figure)
assert matplotlib.rcParams["font.size"] == float(sys.argv[1])
assert "matplotlib.pyplot" not in sys.modules
sys.stdout.buffer.write(data)
"""


def test_figures_are_the_same_bytes_whatever_the_users_settings():
    drawn = [
        subprocess.run([sys.executable, "-c", FIGURE, size], capture_output=True, check=True).stdout
        for size in ("10", "23")
    ]
    assert drawn[0] == drawn[1]
    assert drawn[0].startswith(b"\x89PNG")
    assert b"Software" not in drawn[0]


def test_figures_are_written_whole(tmp_path):
    figure = style.new_figure(200, 100)
    path = style.save_figure(figure, tmp_path / "f.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OutputExistsError):
        style.save_figure(figure, path)


@pytest.mark.parametrize(
    ("top", "limit"),
    [(0.0, 1.0), (0.0231, 0.025), (1.0, 1.0), (9.1, 10.0), (640, 800), (6.3e-7, 8e-7)],
)
def test_usual_limits_are_round_numbers_above(top, limit):
    assert usual_limits(np.full(50, top)) == (0.0, limit)
    assert usual_limits(np.array([np.nan])) == (0.0, 1.0)


def pair(tmp_path, bands=30, seed=0):
    """A reference with a place and bad bands, and a prediction with holes and a spectrum of zeros."""
    rng = np.random.default_rng(seed)
    truth = rng.random((23, 17, bands)).astype(np.float32)
    guess = (truth + rng.normal(0, 0.1, truth.shape)).astype(np.float32)
    guess[3, 4] = 0
    guess[5:7, 2] = np.nan
    guess[9, 9, 2:5] = np.nan
    bad = np.zeros(bands, bool)
    bad[-1] = True
    place = {"crs": CRS, "transform": (2.0, 0.0, 4e5, 0.0, -2.0, 5e6)}
    reference, prediction = tmp_path / "truth.h5", tmp_path / "guess.tif"
    wavelengths = np.linspace(400, 900, bands)
    write_cube(reference, Cube.of(truth, wavelengths_nm=wavelengths, bad_bands=bad))
    write_cube(prediction, Cube.of(guess, **place))
    return reference, prediction, truth.astype(np.float64), guess.astype(np.float64)


def test_maps_hold_the_errors_of_every_pixel(tmp_path):
    reference, prediction, truth, guess = pair(tmp_path)
    folder = tmp_path / "maps"
    scores = evaluate(reference, prediction, maps_folder=folder)
    assert scores.to_json() == evaluate(reference, prediction).to_json()
    expected = np.full((2, 23, 17), np.nan)
    for r in range(23):
        for c in range(17):
            known = np.isfinite(guess[r, c])
            x, y = truth[r, c, known], guess[r, c, known]
            if known.any():
                expected[1, r, c] = np.sqrt(np.mean((x - y) ** 2))
            if y.any():
                cosine = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
                expected[0, r, c] = np.degrees(np.arccos(cosine))
    for index, name in enumerate(("sam_deg", "rmse")):
        with rasterio.open(folder / f"{name}.tif") as found:
            assert found.crs == rasterio.crs.CRS.from_wkt(CRS)
            assert tuple(found.transform)[:6] == (2.0, 0.0, 4e5, 0.0, -2.0, 5e6)
            assert found.dtypes == ("float32",)
            assert np.isnan(found.nodata)
            np.testing.assert_allclose(found.read(1), expected[index], rtol=2e-6)
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert np.nanmean(expected[0]) == pytest.approx(scores.values["sam"])
    assert sorted(p.name for p in folder.iterdir()) == [
        "bands.png", "maps.json", "rmse.png", "rmse.tif", "sam_deg.png", "sam_deg.tif"
    ]  # fmt: skip


def test_maps_do_not_depend_on_the_blocks(tmp_path, monkeypatch):
    from spectralift_cli.core.metrics import evaluate as module

    reference, prediction, *_ = pair(tmp_path)
    evaluate(reference, prediction, maps_folder=tmp_path / "a")
    monkeypatch.setattr(module, "_BLOCK_VALUES", 1500)
    evaluate(reference, prediction, maps_folder=tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_maps_can_take_over_limits_and_are_kept_and_replaced(tmp_path):
    reference, prediction, *_ = pair(tmp_path)
    first, second = tmp_path / "first", tmp_path / "second"
    evaluate(reference, prediction, maps_folder=first)
    evaluate(reference, reference, maps_folder=second)  # no error anywhere
    assert read_limits(second) == {"sam_deg": (0.0, 1.0), "rmse": (0.0, 1.0)}
    with pytest.raises(OutputExistsError):
        evaluate(reference, reference, maps_folder=second, maps_like=first)
    evaluate(reference, reference, maps_folder=second, maps_like=first, overwrite=True)
    assert read_limits(second) == read_limits(first)
    assert read_limits(first)["rmse"][1] == pytest.approx(0.1, rel=0.6)
    with pytest.raises(OptionError, match="--maps-like"):
        evaluate(reference, prediction, maps_like=first)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("precious")
    with pytest.raises(DataError, match="neither empty nor one of ours"):
        evaluate(reference, prediction, maps_folder=mine, overwrite=True)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"maps": {}}', '{"maps": {"sam_deg": {"limits": [0]}, "rmse": {"limits": [0, 1]}}}',
     '{"maps": {"sam_deg": {"limits": [1, 0]}, "rmse": {"limits": [0, 1]}}}',
     '{"maps": {"sam_deg": {"limits": [0, NaN]}, "rmse": {"limits": [0, 1]}}}', "[" * 100_000],
)  # fmt: skip
def test_damaged_limits_are_refused(tmp_path, text):
    (tmp_path / "maps.json").write_text(text)
    with pytest.raises(DataError, match=r"maps\.json"):
        read_limits(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        read_limits(tmp_path / "none")


def test_maps_of_one_band_in_mode_published(tmp_path: Path) -> None:
    reference, prediction, *_ = pair(tmp_path, bands=1)
    config = MetricsConfig(mode="published")
    with pytest.warns(SpectraliftWarning, match="clipped"):
        evaluate(reference, prediction, config, maps_folder=tmp_path / "maps")
    assert (tmp_path / "maps" / "bands.png").exists()


def test_command(tmp_path: Path, spectralift: Run) -> None:
    reference, prediction, *_ = pair(tmp_path)
    folder = tmp_path / "maps"
    done = spectralift("metrics", reference, prediction, "--maps", folder, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outputs"] == [str(folder)]
