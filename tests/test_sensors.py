"""Built-in sensors: their tables, which bands an image has, and responses folded onto real cubes."""

from __future__ import annotations

import csv
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectralift_cli.core.cube import CubeMeta
from spectralift_cli.core.errors import DataError, OptionError, SpectraliftWarning
from spectralift_cli.core.formats import open_cube
from spectralift_cli.core.pairs import ResponseChoice, find_curves, find_response
from spectralift_cli.core.sensors import SENSORS, find_sensor, load_edges
from spectralift_cli.core.sensors.bands import sensor_bands
from spectralift_cli.core.sensors.curve import (
    Curve,
    fold_curves,
    gaussian,
    parse_msi_bands,
    sensor_curves,
)

VNIR_SWIR = np.linspace(400, 2500, 211)


def hsi(wavelengths_nm, **more):
    shape = (2, 2, len(wavelengths_nm))
    return CubeMeta(shape, np.dtype("f4"), wavelengths_nm=wavelengths_nm, **more)


def msi(bands, **more):
    return CubeMeta((4, 4, bands), np.dtype("u2"), **more)


def names_of(curves):
    return [curve.name for curve in curves]


def trapezoid_weights(curve, centres, fwhm):
    """Integrate a response against each band on a fixed 0.1 nm grid, by a plain sum."""
    step = 0.1
    grid = np.arange(curve.wavelengths_nm[0] - 1, curve.wavelengths_nm[-1] + 1, step)
    response = np.interp(grid, curve.wavelengths_nm, np.clip(curve.response, 0, None), 0, 0)
    sigma = np.asarray(fwhm) / (2 * np.sqrt(2 * np.log(2)))
    row = np.array(
        [
            (response * np.exp(-0.5 * ((grid - centre) / width) ** 2)).sum() * step
            for centre, width in zip(centres, sigma, strict=True)
        ]
    )
    return row / row.sum()


@pytest.mark.parametrize("name", SENSORS)
def test_every_sensor_has_bands_that_fold_and_a_source(name):
    row = SENSORS[name]
    curves = sensor_curves(row)
    assert len(set(names_of(curves))) == len(curves)
    assert row.source
    assert row.help
    for common, band in row.common.items():
        assert band in names_of(curves)
        assert common == "".join(c for c in common.lower() if c.isalnum())
    srf = fold_curves(curves, np.linspace(350, 2600, 451), None, None, row.kind)
    np.testing.assert_allclose(srf.weights.sum(axis=1), 1, atol=1e-12)
    for curve, weights in zip(curves, srf.weights, strict=True):
        low, high = curve.range_nm
        assert low < curve.centre_nm < high
        assert abs(weights @ np.linspace(350, 2600, 451) - curve.centre_nm) < curve.fwhm_nm
    for alias in (name, name.upper(), *row.aliases):
        assert find_sensor(alias) == (name, ())


def test_band_edges_become_gaussians_of_the_stated_width():
    for name, row in SENSORS.items():
        if not row.edge_stds:
            continue
        for edges, curve in zip(load_edges(row), sensor_curves(row), strict=True):
            std = (edges.high_nm - edges.low_nm) / row.edge_stds
            expected = np.exp(-0.5 * ((curve.wavelengths_nm - edges.centre_nm) / std) ** 2)
            np.testing.assert_allclose(curve.response, expected, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    ("name", "band", "centre_nm", "fwhm_nm"),
    [  # ESA's and USGS's own summaries of the curves, to their rounding
        ("sentinel-2a", "B2", 492, 66), ("sentinel-2a", "B8A", 865, 21),
        ("sentinel-2b", "B12", 2186, 185), ("landsat-8", "B4", 655, 37), ("landsat-9", "B6", 1609, 85),
        ("aster", "B3N", 807, 105), ("rapideye", "B4", 710, 40), ("modis-terra", "B4", 555, 20),
    ],
)  # fmt: skip
def test_tables_hold_the_sensors_they_name(name, band, centre_nm, fwhm_nm):
    curve = next(c for c in sensor_curves(SENSORS[name]) if c.name == band)
    assert curve.centre_nm == pytest.approx(centre_nm, abs=8)
    assert curve.fwhm_nm == pytest.approx(fwhm_nm, rel=0.12)


def test_tables_are_those_of_the_source(srfs: Path):
    files = {
        "sentinel-2a": "Sentinel-2A_MSI", "sentinel-2b": "Sentinel-2B_MSI", "aster": "Terra_ASTER",
        "landsat-8": "Landsat-8_OLI_TIRS", "landsat-9": "Landsat-9_OLI_TIRS", "rapideye": "RapidEye_MSI",
    }  # fmt: skip
    for name, file in files.items():
        with (srfs / f"pyrsr_{file}.csv").open() as lines:
            header, *rows = csv.reader(line for line in lines if not line.startswith("#"))
        table = np.array(rows, dtype=float)
        for curve in sensor_curves(SENSORS[name]):
            theirs = table[:, header.index(curve.name)]
            ours = np.interp(table[:, 0], curve.wavelengths_nm, curve.response, 0, 0)
            np.testing.assert_allclose(ours, theirs, atol=6e-6, err_msg=f"{name} {curve.name}")


def test_the_maker_of_the_tables_trims_and_rounds(tmp_path):
    from tests.tools import make_sensor_curves as maker

    with tarfile.open(tmp_path / "sdist.tar.gz", "w:gz") as archive:

        def add(name, text):
            path = tmp_path / "member"
            path.write_text(text)
            archive.add(path, f"pyrsr-{maker.VERSION}/{name}")

        add("LICENSE", "a licence")
        for table in maker.TABLES.values():
            folder = f"pyrsr/data/{table.folder}"
            add(f"{folder}/reference", "URL: https://x\nDATE: today\nAUTHORSHIP: someone\n")
            samples = [(500, 0.000004), (502, -0.1234567), (504, 1), (506, 0)]
            rows = "".join(f"{nm / table.nm:.6f} {r}\n" for nm, r in samples)
            for band in table.bands:
                add(f"{folder}/band_{band}", "4 a header\n" + rows)
    maker.main(tmp_path / "sdist.tar.gz", tmp_path)
    lines = (tmp_path / "landsat-8.csv").read_text().splitlines()
    assert lines[1] == "# source: someone, today, https://x"
    assert lines[5] == "B1,502,2,-0.12346,1"
    assert (tmp_path / "LICENSE-pyrsr.txt").read_text() == "a licence"


@pytest.mark.parametrize("sensor", ["sentinel-2a", "landsat-8"])
@pytest.mark.parametrize("known_fwhm", [True, False])
def test_curves_fold_as_a_trapezoid_integration(sensor, known_fwhm):
    rng = np.random.default_rng(5)
    centres = np.concatenate([np.arange(420, 990, 6.5), np.arange(900, 2450, 10.0)])
    centres += rng.uniform(-1, 1, centres.size)
    fwhm = rng.uniform(6, 12, centres.size) if known_fwhm else None
    check_folding(sensor, centres, fwhm)


@pytest.mark.parametrize("sensor", ["sentinel-2a", "landsat-8"])
@pytest.mark.parametrize("scene", ["berlin_enmap_30m.hdr", "dlr_hysu.hdr"])
def test_curves_fold_onto_real_cubes(sensor, scene, scenes: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpectraliftWarning)
        with open_cube(scenes / scene) as cube:
            meta = cube.meta
    check_folding(sensor, meta.wavelengths_nm, meta.fwhm_nm)


def check_folding(sensor, centres, fwhm):
    curves = sensor_curves(SENSORS[sensor])
    srf = fold_curves(curves, centres, fwhm, None, "x")
    spacing = np.abs(np.subtract.outer(centres, centres))
    widths = fwhm
    if fwhm is None:  # no two detectors' bands are closer here than a band is wide
        steps = np.abs(np.diff(centres))
        either = np.minimum(np.append(steps, np.inf), np.append(np.inf, steps))
        back = np.flatnonzero(np.diff(centres) < 0)
        assert spacing.min() == 0
        for i in back:
            either[i], either[i + 1] = steps[i - 1], steps[i + 1]
        widths = either
    reached = [i for i, row in enumerate(srf.weights) if row.any() and srf.coverage[i] > 0.5]
    assert len(reached) >= 4
    for i in reached:
        expected = trapezoid_weights(curves[i], centres, widths)
        np.testing.assert_allclose(srf.weights[i], expected, atol=1e-3, err_msg=curves[i].name)


def test_worldview_3_names_what_a_vnir_cube_does_not_cover():
    with pytest.raises(DataError, match=r"8 of 16 .* SWIR1 \(0.00\).*SWIR8 \(0.00\)") as caught:
        find_response(ResponseChoice(sensor="WorldView-3"), hsi(np.arange(380.0, 1061, 5)), "cube")
    assert "--drop-uncovered-bands" in caught.value.hint


@given(
    centre=st.floats(500, 2300), fwhm=st.floats(5, 200), step=st.floats(2, 15),
    width=st.floats(3, 25),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_a_gaussian_folds_to_the_product_of_two_gaussians(centre, fwhm, step, width):
    nm = np.arange(350, 2600, step)
    srf = fold_curves((gaussian("g", centre, fwhm),), nm, np.full(nm.size, width), None, "x")
    # the integral of a product of Gaussians is a Gaussian whose variance is the sum
    expected = np.exp2(-4 * (nm - centre) ** 2 / (fwhm**2 + width**2))
    np.testing.assert_allclose(srf.weights[0], expected / expected.sum(), atol=2e-4)


@given(bad=st.lists(st.booleans(), min_size=60, max_size=60))
@settings(deadline=None, max_examples=30)
def test_bad_bands_take_no_part(bad):
    nm = np.linspace(400, 990, 60)
    bad = np.array(bad) & (np.arange(60) % 7 != 0)
    curves = parse_msi_bands("480:65,560:35,700:120")
    srf = fold_curves(curves, nm, None, bad, "x")
    full = fold_curves(curves, nm, None, None, "x")
    assert (srf.weights[:, bad] == 0).all()
    good = full.weights[:, ~bad]
    np.testing.assert_allclose(
        srf.weights[:, ~bad], good / good.sum(axis=1, keepdims=True), atol=1e-12
    )
    assert (srf.coverage <= full.coverage + 1e-12).all()


def test_all_bands_bad_is_refused():
    with pytest.raises(DataError, match="all 3 bands"):
        fold_curves(
            parse_msi_bands("500:50"), np.array([490.0, 500, 510]), None, np.ones(3, bool), "x"
        )


@pytest.mark.parametrize(
    ("sensor", "names", "expected"),
    [
        ("sentinel-2a", ("B02", "B03", "B04", "B08"), "B2 B3 B4 B8"),
        ("sentinel-2a", ("Red", "green", "BLUE", "nir"), "B4 B3 B2 B8"),
        ("sentinel-2b", ("T33UUU_20m_B8A", "B4, central wavelength 665 nm"), "B8A B4"),
        ("sentinel-2a", ("Band 2", "Band 3"), "B2 B3"),
        ("landsat-8", tuple(f"SR_B{i}" for i in range(2, 8)), "B2 B3 B4 B5 B6 B7"),
        ("landsat-9", ("coastal", "swir16", "swir22", "pan"), "B1 B6 B7 B8"),
        ("superdove", ("coastal_blue", "green_i", "green", "rededge"),
         "CoastalBlue GreenI GreenII RedEdge"),
        ("worldview-2", ("B8", "B1"), "NIR2 Coastal"),
    ],
)  # fmt: skip
def test_band_names_tell_which_bands_an_image_has(sensor, names, expected):
    found = sensor_bands(sensor, (), msi(len(names), band_names=names))
    assert names_of(found) == expected.split()


def test_without_names_wavelengths_tell_and_else_the_number():
    near = msi(3, wavelengths_nm=[560, 490, 865], band_names=("Band 1", "Band 2", "Band 3"))
    assert names_of(sensor_bands("sentinel-2a", (), near)) == ["B3", "B2", "B8A"]
    assert len(sensor_bands("sentinel-2a", (), msi(13))) == 13
    assert len(sensor_bands("sentinel-2a", (), None)) == 13
    with pytest.raises(DataError, match=r"has 4 bands, 13 are expected .* B1, B2, .*B12") as caught:
        sensor_bands("sentinel-2a", (), msi(4))
    assert "--sensor sentinel-2a:B1,B2,B3,B4" in caught.value.hint
    with pytest.raises(DataError, match="has 9 bands, 8 are expected") as caught:
        sensor_bands("worldview-2", (), msi(9))
    assert "convert --bands" in caught.value.hint


def test_names_that_only_count_do_not_name_a_sensors_bands():
    unnamed = msi(4, band_names=("Band 1", "Band 2", "Band 3", "Band 4"))
    with pytest.raises(DataError, match="has 4 bands, 13 are expected"):
        sensor_bands("sentinel-2a", (), unnamed)
    chosen = sensor_bands("sentinel-2a", ("b2", "B03", "red", "B8"), unnamed)
    assert names_of(chosen) == ["B2", "B3", "B4", "B8"]
    counted = msi(4, band_names=("B1", "B2", "B3", "B4"))
    assert names_of(sensor_bands("sentinel-2a", ("B2", "B3", "B4", "B8"), counted))[-1] == "B8"
    with pytest.warns(SpectraliftWarning, match="may only count them"):
        assert names_of(sensor_bands("sentinel-2a", (), counted)) == ["B1", "B2", "B3", "B4"]


@pytest.mark.parametrize(
    ("wanted", "image", "message"),
    [
        ("B4,B3,B2", msi(3, band_names=("blue", "green", "red")), "called B2, B3, B4, not B4, B3, B2"),
        ("B4,B3,B2", msi(3, wavelengths_nm=[490, 560, 665]), "band 1 is at 490 nm, B4 .* covers"),
        ("B2,B3", msi(3), "has 3 bands, 2 are expected of sentinel-2a: B2, B3"),
        ("B2,B13", None, "has no band 'B13'"),
        ("B2,blue", None, "names a band twice"),
    ],
)  # fmt: skip
def test_other_bands_or_another_order_are_refused(wanted, image, message):
    with pytest.raises(DataError, match=message) as caught:
        sensor_bands("sentinel-2a", tuple(wanted.split(",")), image)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("sentinel2", "no sensor", "did you mean sentinel-2"),
        ("", "no sensor", "there are pan"),
        ("s2a:", "empty band", "sentinel-2a:BAND"),
        ("s2a:B2,,B3", "empty band", ""),
    ],
)
def test_unknown_sensors_get_their_nearest_neighbour(text, message, hint):
    with pytest.raises(DataError, match=message) as caught:
        find_sensor(text)
    assert hint in caught.value.hint


def test_inline_bands_are_gaussians():
    blue, swir = parse_msi_bands("480:65, 1610.5:90")
    assert (blue.name, blue.centre_nm, swir.name) == ("B1", pytest.approx(480), "B2")
    assert blue.fwhm_nm == pytest.approx(65, rel=1e-4)
    assert swir.centre_nm == pytest.approx(1610.5)


@pytest.mark.parametrize(
    "text", ["", "480", "480:", "480:0", "0:5", "480:-3", "480:65,", "nan:5", "480:inf", "1e9:5", "5:50",
             ",".join(["480:65"] * 1025)],
)  # fmt: skip
def test_what_is_no_list_of_bands_is_refused(text):
    with pytest.raises(DataError) as caught:
        parse_msi_bands(text)
    assert caught.value.hint


def test_metadata_of_the_msi_make_its_response():
    image = msi(2, wavelengths_nm=[560, 480], fwhm_nm=[35, 65], band_names=("g", "b"))
    srf = find_response(ResponseChoice(), hsi(VNIR_SWIR), "cube", image)
    assert (srf.source, srf.band_names) == ("gaussian-from-metadata", ("g", "b"))
    again = find_response(ResponseChoice(msi_bands="560:35,480:65"), hsi(VNIR_SWIR), "cube", image)
    np.testing.assert_array_equal(again.weights, srf.weights)
    assert again.source == "gaussian-from-msi-bands"
    with pytest.raises(OptionError, match="lacks wavelengths or their FWHM") as caught:
        find_response(ResponseChoice(), hsi(VNIR_SWIR), "cube", msi(2, wavelengths_nm=[560, 480]))
    assert "--sensor" in caught.value.hint
    with pytest.raises(DataError, match=r"lists 1 bands, .* has 2"):
        find_curves(ResponseChoice(msi_bands="560:35"), image)


def test_choices_exclude_each_other_and_need_wavelengths(tmp_path):
    for choice in (
        ResponseChoice(sensor="s2a", msi_bands="480:65"),
        ResponseChoice(sensor="s2a", num_msi_bands=4),
        ResponseChoice(srf_file=tmp_path, sensor="s2a"),
    ):
        with pytest.raises(OptionError, match="exclude each other"):
            find_response(choice, hsi(VNIR_SWIR), "cube")
    with pytest.raises(OptionError, match="documented sensors only"):
        find_response(ResponseChoice(sensor="s2a", invented=True), hsi(VNIR_SWIR), "cube")
    bare = CubeMeta((2, 2, 5), np.dtype("f4"))
    with pytest.raises(DataError, match="no wavelengths") as caught:
        find_response(ResponseChoice(sensor="s2a"), bare, "cube")
    assert "--wavelengths" in caught.value.hint


@pytest.mark.parametrize(
    ("nm", "response"),
    [([500], [1]), ([500, 510], [1]), ([510, 500], [1, 1]), ([0, 5], [1, 1]), ([1, np.inf], [1, 1]),
     ([1, 2], [1, np.nan]), ([1, 2], [0, -1])],
)  # fmt: skip
def test_what_is_no_curve_is_refused(nm, response):
    with pytest.raises(DataError):
        Curve("b", np.array(nm, float), np.array(response, float))


def test_coverage_follows_the_designs_rule():
    choice = ResponseChoice(sensor="s2a", drop_uncovered_bands=True)
    with pytest.warns(SpectraliftWarning, match=r"dropped, .* B10 \(0.00\), B11 .*, B12"):
        srf = find_response(choice, hsi(np.arange(400.0, 1000, 5)), "cube")
    assert srf.band_names[-1] == "B9"
    assert srf.sensor_bands == 13
    with pytest.warns(SpectraliftWarning, match=r"covered less than 0.95 .* B2 \(0.[6-9]"):
        find_response(ResponseChoice(sensor="s2a:B2,B3"), hsi(np.arange(470.0, 1000, 5)), "cube")
