"""ENVI against SPy and rasterio, round trips of every field, and headers that lie."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
import spectral.io.envi as spy
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

from spectralift_cli.core.cube import Cube
from spectralift_cli.core.errors import DataError, OutputExistsError, SpectraliftWarning
from spectralift_cli.core.formats import FORMATS, create_cube, open_cube, read_cube, write_cube
from tests.strategies import TRANSFORM, UTM33N, assert_same_cube, cubes

ENVI = next(f for f in FORMATS if f.name == "envi")
INTERLEAVES = ("bsq", "bil", "bip")
VALUES = np.arange(4 * 5 * 3, dtype=np.int16).reshape(4, 5, 3) - 7
KEYS = {
    "samples": "5", "lines": "4", "bands": "3", "header offset": "0", "file type": "ENVI Standard",
    "data type": "2", "interleave": "bip", "byte order": "0",
}  # fmt: skip


def put(folder: Path, values: np.ndarray = VALUES, name: str = "x.img", **keys: str | None) -> Path:
    """Write a small image by hand; a key given as None is left out."""
    entries = KEYS | {key.replace("_", " "): value for key, value in keys.items()}
    lines = [f"{key} = {value}" for key, value in entries.items() if value is not None]
    header = folder / "x.hdr"
    header.write_text("\n".join(["ENVI", *lines]) + "\n")
    (folder / name).write_bytes(values.tobytes())
    return header


def turned(angle_deg: float, size: float) -> tuple[float, ...]:
    """A grid of square pixels turned counterclockwise about (500000, 1000000)."""
    cos, sin = (size * f(np.radians(angle_deg)) for f in (np.cos, np.sin))
    return (cos, sin, 5e5, sin, -cos, 1e6)


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_cube(path)
    return caught.value.message


# round trips


@settings(deadline=None, max_examples=80)
@given(
    cube=cubes(ENVI.dtypes),
    interleave=st.sampled_from(["BSQ", "BIL", "BIP"]),
    order=st.sampled_from(["0", "1"]),
)
def test_round_trip(tmp_path_factory, cube, interleave, order) -> None:
    path = tmp_path_factory.mktemp("envi") / "x.hdr"
    options = {"INTERLEAVE": interleave, "BYTE_ORDER": order}
    files = write_cube(path, cube, options=options)
    assert files == (path, path.with_name("x.img"))
    for named in files:
        with open_cube(named) as reader:
            rows = [block for _, block in reader.blocks(2)]
            assert_same_cube(Cube(np.concatenate(rows), reader.meta), cube)
            assert set(reader.files) == set(files)


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
affine_number = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 30.0]), st.floats(-1e6, 1e6), st.floats(allow_nan=False, allow_infinity=False)
)  # fmt: skip


@settings(deadline=None, max_examples=80)
@given(
    band_names=st.tuples(names, names, names),
    transform=st.tuples(*[affine_number] * 6),
    scale=st.floats(1e-300, 1e300).flatmap(lambda v: st.sampled_from([v, -v])),
    wavelengths=st.lists(st.floats(0, 1e6), min_size=3, max_size=3),
    epsg=st.sampled_from([None, 32733, 4326, 3035, 4979, 26917]),
)
def test_round_trip_of_awkward_metadata(
    tmp_path_factory, band_names, transform, scale, wavelengths, epsg
) -> None:
    crs = None if epsg is None else CRS.from_epsg(epsg).to_wkt()
    cube = Cube.of(
        VALUES, band_names=band_names, transform=transform, crs=crs, scale=scale,
        wavelengths_nm=np.array(wavelengths), fwhm_nm=np.array(wavelengths[::-1]),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("envi") / "x.bil"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpectraliftWarning)  # sheared transforms
        write_cube(path, cube)
        found = read_cube(path)
    assert_same_cube(found, cube)
    np.testing.assert_array_equal(found.meta.wavelengths_nm, wavelengths)
    assert found.meta.scale == scale


@pytest.mark.parametrize("interleave", INTERLEAVES)
def test_bytes_do_not_depend_on_how_rows_were_cut(tmp_path, interleave) -> None:
    cube = Cube.of(VALUES, provenance={"b": 1, "a": 2})
    first = write_cube(tmp_path / f"x.{interleave}", cube)
    (tmp_path / "again").mkdir()
    with create_cube(tmp_path / "again" / f"x.{interleave}", cube.meta) as writer:
        for start in (3, 1, 2, 0):
            writer.write(slice(start, start + 1), VALUES[start : start + 1])
        second = writer.commit()
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    raw = np.fromfile(first[1], "<i2")
    axes = {"bip": (0, 1, 2), "bil": (0, 2, 1), "bsq": (2, 0, 1)}[interleave]
    np.testing.assert_array_equal(raw, VALUES.transpose(axes).ravel())


# other programs


@pytest.mark.filterwarnings("ignore:line buffering:RuntimeWarning")  # SPy's, of tiny images
@settings(deadline=None, max_examples=25)
@given(
    cube=cubes(set(ENVI.dtypes), holds={"wavelengths", "fwhm", "bad_bands"}, holes=False),
    interleave=st.sampled_from(INTERLEAVES),
    order=st.sampled_from([0, 1]),
)
def test_with_spy(tmp_path_factory, cube, interleave, order) -> None:
    folder = tmp_path_factory.mktemp("spy")
    meta = cube.meta
    write_cube(
        folder / "ours.hdr", cube, options={"INTERLEAVE": interleave, "BYTE_ORDER": f"{order}"}
    )
    image = spy.open(str(folder / "ours.hdr"))
    np.testing.assert_array_equal(image.open_memmap(), cube.values)
    if meta.wavelengths_nm is not None:
        np.testing.assert_array_equal(image.bands.centers, meta.wavelengths_nm)
        assert image.bands.band_unit == "Nanometers"
    if meta.fwhm_nm is not None:
        np.testing.assert_array_equal(image.bands.bandwidths, meta.fwhm_nm)

    header = {"wavelength units": "Micrometers"}
    if meta.wavelengths_nm is not None:
        header["wavelength"] = list(meta.wavelengths_nm / 1000)
    spy.save_image(
        str(folder / "theirs.hdr"), cube.values, metadata=header, interleave=interleave,
        byteorder=order, dtype=meta.dtype,
    )  # fmt: skip
    found = read_cube(folder / "theirs.hdr")
    np.testing.assert_array_equal(found.values, cube.values)
    if meta.wavelengths_nm is not None:
        np.testing.assert_allclose(found.meta.wavelengths_nm, meta.wavelengths_nm, rtol=1e-12)


@pytest.mark.parametrize("nodata", [-99.0, float("nan"), None])
@pytest.mark.parametrize("epsg", [32633, 32733, 4326, 3035, 26917])
def test_ours_in_rasterio(tmp_path, epsg, nodata) -> None:
    cube = Cube.of(
        VALUES.astype(np.float32), crs=CRS.from_epsg(epsg).to_wkt(), transform=TRANSFORM, nodata=nodata,
        wavelengths_nm=np.array([450.0, 550.5, 2100.0]), band_names=("a", "b", "c"),
    )  # fmt: skip
    write_cube(tmp_path / "x.bsq", cube)
    with rasterio.open(tmp_path / "x.bsq") as there:
        np.testing.assert_array_equal(there.read(), cube.values.transpose(2, 0, 1))
        assert there.crs == CRS.from_epsg(epsg)
        assert there.transform[:6] == TRANSFORM
        np.testing.assert_equal(there.nodata, nodata)
        assert there.tags(2)["wavelength"] == "550.5"
        assert there.tags(3, ns="IMAGERY")["CENTRAL_WAVELENGTH_UM"] == "2.100"
        assert there.descriptions[0].startswith("a")


@pytest.mark.parametrize("interleave", INTERLEAVES)
@pytest.mark.parametrize("epsg", [32633, 4326, 3035, None])
@pytest.mark.parametrize(
    "transform",
    [
        Affine(30, 0, 5e5, 0, -30, 1e6),
        Affine(30, 0, 5e5, 0, 20, 1e6),
        Affine(*turned(25, 30)),
    ],
    ids=["north up", "south up", "rotated"],
)
def test_rasterios_in_ours_and_back(tmp_path, interleave, epsg, transform) -> None:
    profile = {
        "driver": "ENVI", "width": 5, "height": 4, "count": 3, "dtype": "int16", "nodata": -5,
        "interleave": {"bsq": "band", "bil": "line", "bip": "pixel"}[interleave],
        "crs": epsg and CRS.from_epsg(epsg), "transform": transform,
    }  # fmt: skip
    with rasterio.open(tmp_path / "theirs.img", "w", **profile) as there:
        there.write(VALUES.transpose(2, 0, 1))
        there.set_band_description(2, "second")
    cube = read_cube(tmp_path / "theirs.img")
    np.testing.assert_array_equal(cube.values, VALUES)
    assert cube.meta.nodata == -5
    assert cube.meta.band_names[1] == "second"
    np.testing.assert_allclose(cube.meta.transform, transform[:6], rtol=1e-12)
    assert cube.meta.crs is None if epsg is None else CRS.from_wkt(cube.meta.crs).to_epsg() == epsg
    exact = Cube(cube.values, cube.meta.replace(transform=tuple(transform[:6])))
    write_cube(tmp_path / "ours.hdr", exact)
    assert_same_cube(read_cube(tmp_path / "ours.hdr"), exact)
    with rasterio.open(tmp_path / "ours.img") as there:
        assert there.transform.almost_equals(transform, 1e-9)


def test_gains_reach_rasterio(tmp_path) -> None:
    scale, offset = np.array([0.1, 0.2, 0.3]), np.array([1.0, 2.0, 3.0])
    write_cube(tmp_path / "x.hdr", Cube.of(VALUES, scale=scale, offset=offset, transform=TRANSFORM))
    with rasterio.open(tmp_path / "x.img") as there:
        assert there.scales == tuple(scale)
        assert there.offsets == tuple(offset)


def test_edits_by_others_win_over_our_exact_copies(tmp_path) -> None:
    transform = turned(30, 3)
    cube = Cube.of(VALUES, transform=transform, crs=UTM33N, band_names=("a,b", "c", "d"))
    header, _ = write_cube(tmp_path / "x.hdr", cube)
    assert read_cube(header).meta.transform == transform
    text = header.read_text().replace("500000.0", "600000.0").replace("a;b", "z")
    header.write_text(text)
    meta = read_cube(header).meta
    assert meta.transform[2] == 600000
    assert meta.band_names == ("z", "c", "d")


# what headers say


def test_reflectance_scale_factor_and_micrometres_and_bad_bands(tmp_path) -> None:
    header = put(
        tmp_path, reflectance_scale_factor="10000.000000", wavelength_units="Micrometers",
        wavelength="{0.45,\n; 0.5,\n 0.55, 2.1}",
        fwhm="{ 0.005, 0.006,0.01 }", bbl="{1, 0, 1}", data_ignore_value="-7",
        band_names="{a, b}", description="{x =\n y; z}",
    )  # fmt: skip
    with pytest.warns(SpectraliftWarning, match="3 band names"):
        cube = read_cube(header)
    meta = cube.meta
    np.testing.assert_array_equal(cube.values, VALUES)
    assert meta.scale == 1e-4
    np.testing.assert_allclose(meta.wavelengths_nm, [450, 550, 2100])
    np.testing.assert_allclose(meta.fwhm_nm, [5, 6, 10])
    assert meta.bad_bands.tolist() == [False, True, False]
    assert meta.nodata == -7
    assert meta.band_names is None
    assert np.isnan(cube.units()[0, 0, 0])


def test_units_missing_are_told(tmp_path) -> None:
    header = put(tmp_path, wavelength="{0.45, 0.55, 2.1}", wavelength_units="Unknown")
    with pytest.warns(SpectraliftWarning, match="taken for micrometres"):
        assert read_cube(header).meta.wavelengths_nm[2] == 2100
    header = put(tmp_path, fwhm="{5, 6, 7}")
    with pytest.warns(SpectraliftWarning, match="neither wavelengths nor a unit"):
        assert read_cube(header).meta.fwhm_nm is None


def test_factor_and_contradicting_gains_are_told(tmp_path) -> None:
    header = put(tmp_path, reflectance_scale_factor="10000", data_gain_values="{0.1, 0.1, 0.2}")
    with pytest.warns(SpectraliftWarning, match="the factor is used"):
        assert read_cube(header).meta.scale == 1e-4


@pytest.mark.parametrize(
    ("info", "transform", "epsg"),
    [
        ("UTM, 1, 1, 500, 900, 2, 3, 33, North, WGS-84, units=Meters", (2, 0, 500, 0, -3, 900), 32633),
        ("UTM, 3, 1.5, 500, 900, 2, 3, 17, North, NAD-83", (2, 0, 496, 0, -3, 901.5), 26917),
        ("UTM, 1, 1, 500, 900, 2, 2, 56, South, WGS-84, rotation=90", (0, 2, 500, 2, 0, 900), 32756),
        ("UTM, 2, 1, 500, 900, 2, 2, 56, South, WGS-84, rotation=90", (0, 2, 500, 2, 0, 898), 32756),
        ("Geographic Lat/Lon, 1, 1, 10, 50, 0.5, 0.25, WGS-84, units=Degrees", (0.5, 0, 10, 0, -0.25, 50), 4326),
        ("Geographic Lat/Lon, 1, 1, 36000, 3600, 3600, 3600, WGS-84, units=Seconds", (1, 0, 10, 0, -1, 1), 4326),
        ("Arbitrary, 1, 1, 0, 0, 1, 1, 0, North", (1, 0, 0, 0, -1, 0), None),
    ],
)  # fmt: skip
def test_map_info(tmp_path, info, transform, epsg) -> None:
    header = put(tmp_path, map_info=f"{{{info}}}", x_start="85", y_start="93")
    meta = read_cube(header).meta
    np.testing.assert_allclose(meta.transform, transform, atol=1e-12)
    assert (meta.crs and CRS.from_wkt(meta.crs).to_epsg()) == epsg


@pytest.mark.parametrize(
    "info", ["UTM, 1, 1, north", "UTM, 1, 1, 0, 0, 0, 0, 33, North, WGS-84", "Bonne, 1,1,0,0,1,1", ",",
             "UTM, 1, 1, 0, 0, 1, 1, 33, North, WGS-84, rotation=inf"]
)  # fmt: skip
def test_map_info_that_cannot_be_used_is_told(tmp_path, info) -> None:
    header = put(tmp_path, map_info=f"{{{info}}}")
    with pytest.warns(SpectraliftWarning, match="map info"):
        assert read_cube(header).meta.crs in (None, CRS.from_epsg(32633).to_wkt())


@pytest.mark.parametrize("damage", [("0.0174", "0.E174"), ("PROJCS", "P")])
def test_crs_that_cannot_be_used_is_told(tmp_path, damage) -> None:
    wkt = CRS.from_epsg(32633).to_wkt(version="WKT1_ESRI").replace(*damage)
    header = put(tmp_path, coordinate_system_string=f"{{{wkt}}}")
    with pytest.warns(SpectraliftWarning, match="coordinate system string is not understood"):
        assert read_cube(header).meta.crs is None


def test_the_numbers_of_a_crs_count_and_not_its_name(tmp_path) -> None:
    wkt = CRS.from_epsg(32633).to_wkt(version="WKT1_ESRI").replace(",15.0]", ",16.0]")
    header = put(tmp_path, coordinate_system_string=f"{{{wkt}}}")
    crs = CRS.from_wkt(read_cube(header).meta.crs)
    assert crs != CRS.from_epsg(32633)
    assert crs.to_dict()["lon_0"] == 16


@pytest.mark.parametrize("order", ["0", "1"])
@pytest.mark.parametrize("interleave", INTERLEAVES)
def test_offset_order_latin1_and_line_ends(tmp_path, interleave, order) -> None:
    axes = {"bip": (0, 1, 2), "bil": (0, 2, 1), "bsq": (2, 0, 1)}[interleave]
    header = put(
        tmp_path, interleave=interleave.upper(), byte_order=order, header_offset="17", x="{\n; }\n}"
    )
    stored = VALUES.transpose(axes).astype(">i2" if order == "1" else "<i2")
    (tmp_path / "x.img").rename(tmp_path / "x")
    (tmp_path / "x").write_bytes(bytes(17) + stored.tobytes())
    text = header.read_text().replace("samples", ";samples = 9\nSAMPLES ") + "sensor type = Ä"
    header.write_bytes(text.replace("\n", "\r\n").encode("latin-1"))
    cube = read_cube(header)
    assert cube.values.dtype.isnative
    np.testing.assert_array_equal(cube.values, VALUES)
    with open_cube(tmp_path / "x") as reader:
        np.testing.assert_array_equal(reader.read(slice(1, 3)), VALUES[1:3])


# which files belong together


def test_of_several_data_files_the_interleave_names_one(tmp_path) -> None:
    header = put(tmp_path, name="x.bip")
    (tmp_path / "x.bsq").write_bytes(bytes(120))
    np.testing.assert_array_equal(read_cube(header).values, VALUES)
    assert "describes x.bip" in refusal(tmp_path / "x.bsq")
    (tmp_path / "x.bip").rename(tmp_path / "x.dat")
    assert "2 files could be its data: x.dat, x.bsq" in refusal(header)
    assert read_cube(tmp_path / "x.dat").values[0, 0, 0] == -7
    header.rename(tmp_path / "x.dat.HDR")
    assert read_cube(tmp_path / "x.dat.HDR").values[0, 0, 0] == -7
    assert read_cube(tmp_path / "x.dat").values[0, 0, 0] == -7
    assert "no ENVI header" in refusal(tmp_path / "x.bsq")


def test_two_headers_are_told(tmp_path) -> None:
    header = put(tmp_path)
    (tmp_path / "x.img.hdr").write_text(header.read_text())
    with pytest.warns(SpectraliftWarning, match="two headers; x.img.hdr is read"):
        open_cube(tmp_path / "x.img").close()


def test_overwriting_takes_what_belongs_to_the_old_output(tmp_path) -> None:
    old = write_cube(tmp_path / "x.bsq", Cube.of(VALUES))
    for side in ("x.img.aux.xml", "x.bsq.aux.xml"):
        (tmp_path / side).write_text("<PAMDataset/>")
    with pytest.raises(DataError, match=r"x\.bsq: lies beside"):
        write_cube(tmp_path / "x.hdr", Cube.of(VALUES))
    with open_cube(old[0]) as reader:  # IN = OUT
        new = write_cube(tmp_path / "x.hdr", Cube.of(reader.read() * 2), overwrite=True)
    assert sorted(tmp_path.iterdir()) == sorted(new) == [tmp_path / "x.hdr", tmp_path / "x.img"]
    np.testing.assert_array_equal(read_cube(new[0]).values, VALUES * 2)
    with pytest.raises(OutputExistsError):
        write_cube(tmp_path / "x.img", Cube.of(VALUES))


def test_strangers_files_are_neither_removed_nor_mistaken(tmp_path) -> None:
    (tmp_path / "x.raw").write_bytes(b"camera")
    with pytest.raises(DataError, match=r"x\.raw: lies beside"):
        write_cube(tmp_path / "x.hdr", Cube.of(VALUES), overwrite=True)
    (tmp_path / "x.raw").unlink()
    (tmp_path / "x.img.hdr").write_text("ENVI\n")
    with pytest.raises(OutputExistsError, match=r"x\.img\.hdr"):
        write_cube(tmp_path / "x.hdr", Cube.of(VALUES))
    (tmp_path / "x.img.hdr").rename(tmp_path / "x.hdr")
    with pytest.raises(DataError, match="header of another file"):
        write_cube(tmp_path / "x.img.hdr", Cube.of(VALUES), overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.hdr"]


def test_abort_leaves_nothing_and_shear_is_told(tmp_path) -> None:
    sheared = Cube.of(VALUES, transform=(30.0, 5.0, 0.0, 0.0, -30.0, 0.0))
    with pytest.warns(SpectraliftWarning, match="cannot express the transform"):
        create_cube(tmp_path / "x.hdr", sheared.meta).abort()
    assert not list(tmp_path.iterdir())


# hostile headers


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"bands": "1000000000000"}, "needs 40,000,000,000,000 bytes, the file has 120"),
        ({"bands": "9" * 5000}, "not a whole number"),
        ({"lines": "5"}, "needs 150 bytes, the file has 120"),
        ({"header offset": "500"}, "needs 120 bytes, the file has 0"),
        ({"lines": "-4"}, "-4 lines"),
        ({"samples": "0"}, "0 samples"),
        ({"header offset": "-2"}, "offset of -2"),
        ({"samples": "five"}, "'five' is not a whole number"),
        ({"samples": "1_0"}, "not a whole number"),
        ({"samples": None}, "no 'samples'"),
        ({"interleave": None}, "no 'interleave'"),
        ({"interleave": "zigzag"}, "'zigzag'"),
        ({"data type": "6"}, "complex"),
        ({"data type": "7"}, "data type 7"),
        ({"byte order": "2"}, "byte order 2"),
        ({"file type": "ENVI Spectral Library"}, "library of 4 spectra"),
        ({"file type": "TIFF"}, "'tiff'"),
        ({"file compression": "1"}, "compressed"),
        ({"major frame offsets": "{4, 0}"}, "major frame offsets"),
        ({"wavelength": "{1, 2}"}, "'wavelength' lists 2 values but the image has 3 bands"),
        ({"wavelength": "{1, 2, x}"}, "'x' in 'wavelength' is not a number"),
        ({"wavelength": "{1, 2, 3"}, "never closed"),
        ({"bbl": "{1,1,1,1}"}, "'bbl' lists 4"),
        ({"data ignore value": "none"}, "'none'"),
        ({"reflectance scale factor": "0"}, "factor of 0"),
        ({"reflectance scale factor": "nan"}, "factor of nan"),
        ({"data gain values": "{1, 0, 1}"}, "zero"),
        ({"Samples ": "6"}, "'samples' is given twice, as '5' and '6'"),
        ({"spectralift": "{%7B%22band_names%22:3%7D}"}, "metadata cannot be used"),
    ],
)  # fmt: skip
def test_refused(tmp_path, keys, said) -> None:
    header = put(tmp_path)
    entries = KEYS | keys
    lines = [f"{key} = {value}" for key, value in entries.items() if value is not None]
    header.write_text("\n".join(["ENVI", *lines]))
    assert said in refusal(header)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"#?RADIANCE\n", "is not an ENVI header"),
        (b"ENVI\nsamples = \0\n", "is not an ENVI header"),
        (bytes(range(256)), "is not an ENVI header"),
        (b"ENVI\n", "no 'lines'"),
        (b"ENVI\n" + b"".join(b"k%d = 1\n" % i for i in range(20_000)), "more than 10,000 entries"),
        (b"ENVI\n" + b"\n" * 2**24, "more than 16 MB"),
    ],
)
def test_no_header(tmp_path, content, said) -> None:
    header = put(tmp_path)
    header.write_bytes(content)
    assert said in refusal(header)


def test_missing_members(tmp_path) -> None:
    header = put(tmp_path)
    (tmp_path / "x.img").rename(tmp_path / "y.img")
    assert "no data file beside it" in refusal(header)
    assert "no ENVI header" in refusal(tmp_path / "y.img")
    header.rename(tmp_path / "x.txt")
    assert "without the ending .hdr" in refusal(tmp_path / "x.txt")


def test_cut_while_open(tmp_path) -> None:
    with open_cube(put(tmp_path)) as reader:
        os.truncate(tmp_path / "x.img", 40)
        with pytest.raises(DataError, match="ends early"):
            reader.read()


def test_doubtful_files_are_told(tmp_path) -> None:
    header = put(tmp_path, np.zeros(61, np.int16), byte_order=None, data_ignore_value="1e9")
    with pytest.warns(SpectraliftWarning) as told:
        open_cube(header).close()
    said = " ".join(str(w.message) for w in told)
    assert "has 122 bytes, the header describes 120" in said
    assert "no byte order" in said
    assert "nodata value 1e+09 cannot occur" in said


# real scenes


SCENES = os.environ.get("SPECTRALIFT_SCENES", "")


@pytest.mark.skipif(not SCENES, reason="SPECTRALIFT_SCENES is not set")
@pytest.mark.parametrize(
    ("name", "shape", "epsg", "expected"),
    [
        ("berlin_enmap_30m", (80, 60, 177), 32633, {"nodata": -99, "scale": 1.0}),
        ("berlin_hymap_3p6m", (660, 494, 4), 32633, {"nodata": None, "scale": 1.0}),
        ("dlr_hysu", (86, 123, 135), None, {"nodata": 15000, "scale": 1e-4}),
    ],
)
def test_scene(name, shape, epsg, expected) -> None:
    header = Path(SCENES) / f"{name}.hdr"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpectraliftWarning)  # HySU names no unit
        cube = read_cube(header)
    meta = cube.meta
    assert meta.shape == shape
    assert {key: getattr(meta, key) for key in expected} == expected
    image = spy.open(str(header), next(str(p) for p in header.parent.glob(f"{name}.b*")))
    np.testing.assert_array_equal(cube.values, image.open_memmap())
    np.testing.assert_allclose(meta.wavelengths_nm, np.array(image.bands.centers) * 1000)
    np.testing.assert_allclose(meta.fwhm_nm, np.array(image.bands.bandwidths) * 1000)
    with rasterio.open(image.filename) as there:
        np.testing.assert_array_equal(cube.values, there.read().transpose(1, 2, 0))
        assert meta.transform == there.transform[:6]
        ours = CRS.from_wkt(meta.crs)
        assert ours == there.crs
        assert ours.to_epsg() == epsg
