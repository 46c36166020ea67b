"""Product readers, on small files in the documented layouts, against plain h5py and rasterio."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

from spectralift_cli.core.convert import convert
from spectralift_cli.core.cube import Cube
from spectralift_cli.core.errors import DataError, OptionError, SpectraliftWarning
from spectralift_cli.core.formats import open_cube, read_cube
from spectralift_cli.core.formats.xmltree import read_xml
from tests.conftest import Run
from tests.products import (
    EMIT_CENTRES,
    ENMAP_CENTRES,
    ENMAP_NAME,
    GRID,
    PRISMA_SWIR,
    PRISMA_VNIR,
    enmap_xml,
    write_emit,
    write_enmap,
    write_geotiff,
    write_prisma,
)
from tests.strategies import assert_same_cube

WRITERS = {
    "enmap": lambda folder: write_enmap(folder / "product"),
    "prisma": lambda folder: write_prisma(folder / "PRS_L2D_STD_1.he5"),
    "emit": lambda folder: write_emit(folder / "EMIT_L2A_RFL_001.nc"),
}


# --- what holds for all ----------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".tif", ".h5"])
@pytest.mark.parametrize("product", WRITERS)
def test_conversion_keeps_everything(product: str, suffix: str, tmp_path: Path) -> None:
    source = WRITERS[product](tmp_path)
    cube = read_cube(source)
    reader = open_cube(source)
    assert reader.format_name == product
    if product == "emit":
        with pytest.warns(SpectraliftWarning, match="is not orthorectified"):
            convert(reader, tmp_path / f"x{suffix}")
    else:
        convert(reader, tmp_path / f"x{suffix}")
    found = read_cube(tmp_path / f"x{suffix}")
    assert_same_cube(Cube(found.values, found.meta.replace(provenance=None)), cube)


@pytest.mark.parametrize("product", WRITERS)
def test_rows_are_those_of_the_whole(product: str, tmp_path: Path) -> None:
    with open_cube(WRITERS[product](tmp_path)) as reader:
        whole = reader.read()
        assert whole.shape == reader.meta.shape
        for start in range(reader.meta.rows):
            np.testing.assert_array_equal(reader.read(slice(start, start + 2)), whole[start:][:2])
        assert reader.read(slice(1, 1)).shape == (0, *reader.meta.shape[1:])


@pytest.mark.parametrize("product", WRITERS)
def test_name_of_the_file_does_not_matter_where_its_content_tells(
    product: str, tmp_path: Path
) -> None:
    source = WRITERS[product](tmp_path)
    renamed = source.parent / "download"
    if product == "enmap":  # which image the metadata belong to is told by name
        renamed = source.parent.rename(tmp_path / "download")
    else:
        source.rename(renamed)
    with open_cube(renamed) as reader:
        assert reader.format_name == product


@pytest.mark.parametrize("product", WRITERS)
def test_axes_are_the_products_own(product: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--axis-order does not apply"):
        open_cube(WRITERS[product](tmp_path), axis_order="byx")


@pytest.mark.parametrize("product", ["prisma", "emit"])
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_damaged_files_are_data_errors_or_read(
    product: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    source = WRITERS[product](tmp_path_factory.mktemp(product))
    content = bytearray(source.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    source.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    try:
        read_cube(source)
    except DataError as error:
        assert error.hint
    except SpectraliftWarning:
        pass


# --- EnMAP -----------------------------------------------------------------------------------


@pytest.mark.parametrize("named", ["image", "metadata", "folder"])
def test_enmap(named: str, tmp_path: Path) -> None:
    image = write_enmap(tmp_path / "p")
    metadata = image.with_name(f"{ENMAP_NAME}-METADATA.XML")
    path = {"image": image, "metadata": metadata, "folder": image.parent}[named]
    with open_cube(path) as reader, rasterio.open(image) as oracle:
        meta = reader.meta
        np.testing.assert_array_equal(reader.read(), oracle.read().transpose(1, 2, 0))
        assert set(reader.files) == {image, metadata}
        assert reader.layout["product"] == "EnMAP L2A"
        np.testing.assert_array_equal(meta.wavelengths_nm, ENMAP_CENTRES)
        np.testing.assert_array_equal(meta.fwhm_nm, [6 + i / 8 for i in range(1, 8)])
        np.testing.assert_array_equal(meta.bad_bands, [i == 5 for i in range(7)])
        assert (meta.scale, meta.offset, meta.nodata) == (1e-4, 0.0, -32768)
        assert meta.transform == tuple(GRID)[:6]
        units = reader.read_units()
        assert np.isnan(units[0, 0]).all()
        np.testing.assert_allclose(units[3, 2, 1], oracle.read(2)[3, 2] * 1e-4, rtol=1e-6)


def test_enmap_background_value_stands_in_for_nodata(tmp_path: Path) -> None:
    assert read_cube(write_enmap(tmp_path / "p", nodata=None)).meta.nodata == -32768


def test_enmap_without_metadata_is_a_geotiff(tmp_path: Path) -> None:
    image = write_enmap(tmp_path / "p")
    image.with_name(f"{ENMAP_NAME}-METADATA.XML").unlink()
    with open_cube(image) as reader:
        assert (reader.format_name, reader.meta.wavelengths_nm) == ("tiff", None)
    (tmp_path / "p" / f"{ENMAP_NAME}-METADATA.XML").write_text("<other/>")
    with open_cube(image) as reader:
        assert reader.format_name == "tiff"


def test_enmap_folder_of_two_images_is_refused_by_name(tmp_path: Path) -> None:
    image = write_enmap(tmp_path / "p")
    shutil.copy(image, image.with_name(f"{ENMAP_NAME}-SPECTRAL_IMAGE_COG.tiff"))
    with pytest.raises(DataError, match=r"2 EnMAP images.*IMAGE.TIF.*COG"):
        open_cube(tmp_path / "p")
    with open_cube(image) as reader:
        assert reader.path == image


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (enmap_xml(ENMAP_CENTRES[:-1]), "describes 6 bands, its image has 7"),
        (enmap_xml().replace('number="3"', 'number="2"'), "'3' is missing"),
        (enmap_xml().replace("640.25", "red"), "wavelengthCenterOfBand of band 2 is not a number"),
        (enmap_xml().replace("640.25", "nan"), "wavelengthCenterOfBand of band 2 is not a number"),
        (enmap_xml().replace("640.25", "-1"), "the wavelength of band 2 is -1, not above 0"),
        (enmap_xml().replace(">0.0001<", ">0<"), "the gain of band 1 is 0"),
        (enmap_xml()[:-20], "is not XML"),
        (enmap_xml(prolog='<!DOCTYPE level_X [<!ENTITY a "b">]>'), "has a document type"),
        (enmap_xml(prolog='<!DOCTYPE level_X SYSTEM "file:///etc/passwd">'), "has a document type"),
        (enmap_xml().replace("UTF-8", "EBCDIC-9"), "is not XML"),
    ],
)
def test_enmap_metadata_that_do_not_fit(xml: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_cube(write_enmap(tmp_path / "p", xml=xml))
    assert caught.value.hint


def test_xml_bombs_cost_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.xml"
    path.write_bytes('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'.encode("utf-16"))
    with pytest.raises(DataError, match="document type"):
        read_xml(path)
    path.write_text("<a>" * 100_000)
    with pytest.raises(DataError, match="over 64 deep"):
        read_xml(path)
    with path.open("wb") as file:
        file.truncate(40 * 2**20)
    with pytest.raises(DataError, match="too large"):
        read_xml(path)
    path.write_text('<n:a xmlns:n="urn:x" n:k="v"><n:b>1</n:b></n:a>')
    assert read_xml(path).findtext("b") == "1"


# --- PRISMA ----------------------------------------------------------------------------------


def test_prisma_is_one_ascending_cube(tmp_path: Path) -> None:
    path = write_prisma(tmp_path / "p.he5")
    cube = read_cube(path)
    meta = cube.meta
    centres = np.concatenate([PRISMA_VNIR, PRISMA_SWIR])
    np.testing.assert_array_equal(meta.wavelengths_nm, sorted(centres[centres > 0]))
    assert meta.band_names is not None
    assert meta.band_names[1:5] == ("VNIR 4", "SWIR 4", "VNIR 3", "SWIR 3")
    with h5py.File(path) as file:
        fields = file["HDFEOS/SWATHS/PRS_L2D_HCO/Data Fields"]
        for band, name in enumerate(meta.band_names):
            detector, number = name.split()
            stored = fields[f"{detector}_Cube"][:, int(number) - 1, :]
            np.testing.assert_array_equal(cube.values[:, :, band], stored)
            part = detector.title()
            assert meta.wavelengths_nm is not None
            assert meta.fwhm_nm is not None
            assert meta.bad_bands is not None
            assert meta.wavelengths_nm[band] == file.attrs[f"List_Cw_{part}"][int(number) - 1]
            assert meta.fwhm_nm[band] == file.attrs[f"List_Fwhm_{part}"][int(number) - 1]
            flag = file.attrs[f"List_Cw_{part}_Flags"][int(number) - 1]
            assert meta.bad_bands[band] == (flag == 0)
            low, high = (file.attrs[f"L2Scale{part}{end}"] for end in ("Min", "Max"))
            expected = np.where(stored == 0, np.nan, low + stored * (high - low) / 65535)
            np.testing.assert_allclose(cube.units()[:, :, band], expected, rtol=1e-6)
    assert meta.nodata == 0
    assert CRS.from_wkt(meta.crs) == CRS.from_epsg(32633)
    assert meta.transform == tuple(GRID)[:6]


def test_prisma_dataset_can_be_named(tmp_path: Path) -> None:
    path = write_prisma(tmp_path / "p.he5")
    name = "HDFEOS/SWATHS/PRS_L2D_PCO/Data Fields/Cube"
    with open_cube(path, var=name, allow_2d=True) as reader:
        assert (reader.format_name, reader.meta.shape) == ("hdf5", (36, 24, 1))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"List_Cw_Vnir": None}, "its List_Cw_Vnir are no 5 wavelengths"),
        ({"List_Cw_Vnir": np.float32([1, 2])}, "List_Cw_Vnir has 2 values, the cube 5 bands"),
        ({"List_Cw_Swir": np.full(5, np.nan)}, "its List_Cw_Swir are no 5 wavelengths"),
        ({"List_Cw_Swir": np.zeros(5)}, "no band of its SWIR cube has a wavelength"),
        ({"L2ScaleVnirMax": None}, "L2ScaleVnirMin and Max are 0.0 and None"),
        ({"L2ScaleSwirMax": np.float32(0)}, "which give no reflectance"),
    ],
)
def test_prisma_attributes_that_do_not_fit(
    attributes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_cube(write_prisma(tmp_path / "p.he5", **attributes))
    assert "--var" in caught.value.hint


@pytest.mark.parametrize(
    "attributes",
    [{"Epsg_Code": None}, {"Epsg_Code": np.uint32(7)}, {"Product_LRcorner_northing": None},
     {"Product_URcorner_easting": np.nan}],
)  # fmt: skip
def test_prisma_without_georeference(
    attributes: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(SpectraliftWarning, match="give no georeference"):
        meta = read_cube(write_prisma(tmp_path / "p.he5", **attributes)).meta
    assert (meta.crs, meta.transform) == (None, None)
    assert capfd.readouterr().err == ""  # PROJ would speak for itself


def test_prisma_cubes_of_two_sizes(tmp_path: Path) -> None:
    path = write_prisma(tmp_path / "p.he5")
    with h5py.File(path, "a") as file:
        fields = file["HDFEOS/SWATHS/PRS_L2D_HCO/Data Fields"]
        del fields["SWIR_Cube"]
        fields["SWIR_Cube"] = np.ones((6, 5, 3), np.uint16)
    with pytest.raises(DataError, match=r"6 x 4 pixels.*6 x 3"):
        open_cube(path)


# --- EMIT ------------------------------------------------------------------------------------


def test_emit(tmp_path: Path) -> None:
    path = write_emit(tmp_path / "e.nc")
    with h5py.File(path, locking=False) as file, open_cube(path) as reader:
        meta = reader.meta
        np.testing.assert_array_equal(reader.read(), file["reflectance"][()])
        np.testing.assert_array_equal(meta.wavelengths_nm, EMIT_CENTRES)
        np.testing.assert_array_equal(meta.fwhm_nm, [8.5, 8.5, 8.75, 8.75])
        np.testing.assert_array_equal(meta.bad_bands, [False, False, True, False])
        assert np.isnan(reader.read_units()[1, 1]).all()
        assert (meta.nodata, meta.crs, meta.transform) == (-9999.0, None, None)
        assert reader.swath
    with pytest.raises(OptionError, match="--var does not apply to emit"):
        open_cube(path, var="reflectance")
    with open_cube(path, var="location/elev", allow_2d=True) as reader:
        assert reader.format_name == "hdf5"


def test_emit_band_parameters_that_do_not_fit(tmp_path: Path) -> None:
    path = write_emit(tmp_path / "e.nc", centres=EMIT_CENTRES[:3])
    with pytest.raises(DataError, match="sensor_band_parameters/wavelengths are no 4 numbers"):
        open_cube(path)


def test_emit_signalling_nans_are_refused_without_a_warning(tmp_path: Path) -> None:
    """Converting them would warn, as fuzzing found."""
    signalling = np.array([0x7F800001], "<u4").view("<f4")
    path = write_emit(tmp_path / "e.nc")
    with h5py.File(path, "r+") as file:
        group = file["sensor_band_parameters"]
        stored = group["fwhm"][()]
        del group["fwhm"]
        group["fwhm"] = np.concatenate([signalling, stored[1:].astype("<f4")])
    with pytest.raises(DataError, match="fwhm_nm holds values that are negative or not finite"):
        open_cube(path)


def test_emit_swath_is_not_fused(spectralift: Run, tmp_path: Path) -> None:
    path = write_emit(tmp_path / "e.nc")
    item = json.loads(spectralift("info", path, "--json").stdout)["items"][0]
    assert (item["format"], item["layout"]["grid"]) == ("emit", "swath, not orthorectified")
    (tmp_path / "srf.csv").write_text("wavelength_nm,a\n380,1\n390,1\n")
    done = spectralift(
        "train",
        "--lr-hsi",
        path,
        "--srf-file",
        tmp_path / "srf.csv",
        "-o",
        tmp_path / "m.safetensors",
    )
    assert done.returncode == 3
    assert "is not orthorectified" in done.stderr
    assert "gdalmdimtranslate" in done.stderr


# --- Sentinel-2 and Landsat ------------------------------------------------------------------

DN = np.arange(4 * 3 * 4, dtype=np.uint16).reshape(4, 3, 4) * 100 + 1000


def write_stack(
    path: Path, names: list[str], tags: dict[str, str], *, bands: list[dict[str, str]] | None = None
) -> Path:
    write_geotiff(path, DN[:, :, : len(names)])
    with rasterio.open(path, "r+") as file:
        file.update_tags(**tags)
        for index, name in enumerate(names, start=1):
            if name:
                file.set_band_description(index, name)
            if bands:
                file.update_tags(index, **bands[index - 1])
    return path


@pytest.mark.parametrize(
    ("names", "tags", "product", "short"),
    [
        (["B02", "B8A"], {}, "Sentinel-2", ("B2", "B8A")),
        (["B2", "B12"], {}, "Sentinel-2", ("B2", "B12")),
        (["T32UQD_20220724T102559_B02_10m", "T32UQD_20220724T102559_B11_20m"], {}, "Sentinel-2",
         ("B2", "B11")),
        (["B04", "SCL"], {"PRODUCT_TYPE": "S2MSI2A"}, "Sentinel-2", ("B4", "SCL")),
        (["B04", "B03"], {"DATATAKE_1_SPACECRAFT_NAME": "Sentinel-2B"}, "Sentinel-2B",
         ("B4", "B3")),
        (["SR_B4", "SR_B3", "QA_PIXEL"], {}, "Landsat", ("B4", "B3", "QA_PIXEL")),
        (["LC08_L2SP_193023_20200101_02_T1_SR_B4.TIF", "LC08_L2SP_193023_20200101_02_T1_SR_B5.TIF"],
         {}, "Landsat", ("B4", "B5")),
        (["B4", "B5"], {"SPACECRAFT_ID": "LANDSAT_9"}, "Landsat 9", ("B4", "B5")),
        (["B02", "B03"], {}, None, ("B02", "B03")),  # either of them, or neither
        (["red", "nir"], {}, None, ("red", "nir")),
        (["B8A", "B08A"], {}, "Sentinel-2", ("B8A", "B08A")),  # two bands keep two names
    ],
)  # fmt: skip
def test_band_names_of_stacks(
    names: list[str], tags: dict[str, str], product: str | None, short: tuple[str, ...],
    tmp_path: Path,
) -> None:  # fmt: skip
    with open_cube(write_stack(tmp_path / "x.tif", names, tags)) as reader:
        assert reader.layout.get("product") == product
        assert reader.meta.band_names == short
        assert not reader.meta.is_scaled


def test_names_in_band_items_and_wavelengths_in_descriptions(tmp_path: Path) -> None:
    names = ["B4, central wavelength 665 nm", "B8, central wavelength 842 nm"]
    meta = read_cube(write_stack(tmp_path / "x.tif", names, {"PRODUCT_TYPE": "S2MSI1C"})).meta
    assert meta.band_names == ("B4", "B8")
    np.testing.assert_array_equal(meta.wavelengths_nm, [665, 842])
    items = [{"BANDNAME": "B4"}, {"BANDNAME": "B8A"}]
    meta = read_cube(write_stack(tmp_path / "y.tif", ["", ""], {}, bands=items)).meta
    assert meta.band_names == ("B4", "B8A")


def test_sentinel2_reflectance(tmp_path: Path) -> None:
    tags = {
        "BOA_QUANTIFICATION_VALUE": "10000", "PROCESSING_BASELINE": "05.09",
        "SPECIAL_VALUE_NODATA": "0", "BOA_ADD_OFFSET": "-1000",
    }  # fmt: skip
    cube = read_cube(write_stack(tmp_path / "x.tif", ["B02", "B8A", "SCL"], tags))
    expected = (DN[:, :, :2].astype(float) - 1000) / 10000
    np.testing.assert_allclose(cube.units()[:, :, :2], expected, atol=1e-7)
    np.testing.assert_array_equal(cube.units()[:, :, 2], DN[:, :, 2])
    assert cube.meta.nodata == 0
    per_band = [{"BOA_ADD_OFFSET": "-500"}, {"BOA_ADD_OFFSET": "-1000"}]
    cube = read_cube(write_stack(tmp_path / "y.tif", ["B02", "B8A"], tags, bands=per_band))
    np.testing.assert_allclose(cube.meta.offset, [-0.05, -0.1])


def test_sentinel2_offset_that_is_missing_is_told(tmp_path: Path) -> None:
    tags = {"BOA_QUANTIFICATION_VALUE": "10000", "PROCESSING_BASELINE": "04.00"}
    path = write_stack(tmp_path / "x.tif", ["B02", "B8A"], tags)
    with pytest.warns(SpectraliftWarning, match="is of 04.00 and gives none"):
        meta = read_cube(path).meta
    assert (meta.scale, meta.offset) == (1e-4, 0.0)
    path = write_stack(tmp_path / "y.tif", ["B02", "B8A"], {**tags, "PROCESSING_BASELINE": "02.14"})
    assert read_cube(path).meta.scale == 1e-4


def test_landsat_reflectance(tmp_path: Path) -> None:
    tags = {f"REFLECTANCE_MULT_BAND_{n}": "2.75e-05" for n in (3, 4)}
    tags |= {f"REFLECTANCE_ADD_BAND_{n}": "-0.2" for n in (3, 4)}
    cube = read_cube(write_stack(tmp_path / "x.tif", ["SR_B4", "SR_B3", "QA_PIXEL"], tags))
    np.testing.assert_allclose(cube.units()[:, :, :2], DN[:, :, :2] * 2.75e-05 - 0.2, atol=1e-7)
    np.testing.assert_array_equal(cube.units()[:, :, 2], DN[:, :, 2])


def test_what_the_geotiff_states_comes_first(tmp_path: Path) -> None:
    path = write_stack(tmp_path / "x.tif", ["B02", "B8A"], {"BOA_QUANTIFICATION_VALUE": "10000"})
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (2e-4, 2e-4), (0.5, 0.5)
    meta = read_cube(path).meta
    assert (meta.scale, meta.offset) == (2e-4, 0.5)


def test_hyperspectral_bands_named_b_are_not_sentinel2(tmp_path: Path) -> None:
    values = np.zeros((2, 2, 30), np.uint16)
    path = write_geotiff(tmp_path / "x.tif", values)
    with rasterio.open(path, "r+") as file:
        for index in range(1, 31):
            file.set_band_description(index, f"B{index:02d}")
    with open_cube(path) as reader:
        assert "product" not in reader.layout
        assert reader.meta.band_names is not None
        assert reader.meta.band_names[0] == "B01"
