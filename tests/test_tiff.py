"""GeoTIFF, COG and stacks of pages, against rasterio and tifffile."""

from __future__ import annotations

import itertools
import struct
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning

from spectralift_cli.core.cube import Cube, CubeMeta
from spectralift_cli.core.errors import DataError, OptionError, SpectraliftWarning
from spectralift_cli.core.formats import FORMATS, create_cube, open_cube, read_cube, write_cube
from spectralift_cli.core.formats.gdalio import LARGEST_BLOCK_BYTES, natural_rows
from tests.strategies import TRANSFORM, UTM33N, assert_same_cube, cubes

TIFF = next(row for row in FORMATS if row.name == "tiff")
ROWS, COLS, BANDS = 37, 29, 5
VALUES = np.random.default_rng(7).integers(0, 9999, (ROWS, COLS, BANDS)).astype(np.uint16)
FULL = Cube.of(
    VALUES,
    wavelengths_nm=np.array([450.1, 550.0, 650.3, 2.0 / 3e-3, 1e3 / 3]),  # one without short form
    fwhm_nm=np.array([9.7, 10.0, 10.1, 11.0, 1 / 3]),
    bad_bands=np.array([False, True, False, False, True]),
    nodata=65535,
    scale=np.array([1e-4, 2e-4, 1 / 3, 1.0, 0.1]),
    offset=-0.1,
    crs=UTM33N,
    transform=TRANSFORM,
    band_names=("red <&>", "b", "c", "d", "é"),
    provenance={"tool": "x", "seed": 1},
)


def write_raster(path: Path, planes: np.ndarray, **profile: object) -> None:
    """Write (bands, rows, cols) by rasterio alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        bands, rows, cols = planes.shape
        with rasterio.open(
            path, "w", driver="GTiff", height=rows, width=cols, count=bands,
            dtype=planes.dtype.name, **profile,
        ) as dataset:  # fmt: skip
            dataset.write(planes)


def edit(path: Path, **tags: object) -> None:
    """Overwrite tags of the first page."""
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for name, value in tags.items():
            tiff.pages.first.tags[name].overwrite(value)


COG = {"DRIVER": "COG", "BLOCKSIZE": "128"}
WAYS = [
    {},
    {"INTERLEAVE": "BAND", "BIGTIFF": "YES"},
    {"COMPRESS": "DEFLATE", "PREDICTOR": "2", "TILED": "YES", "BLOCKSIZE": "16"},
    {"COMPRESS": "ZSTD", "INTERLEAVE": "BAND", "TILED": "YES"},
    {"COMPRESS": "LZW"},
    {"COMPRESS": "PACKBITS"},
    COG,
    COG | {"COMPRESS": "LZW", "PREDICTOR": "2"},
]


@settings(deadline=None, max_examples=60)
@given(cube=cubes(TIFF.dtypes), options=st.sampled_from(WAYS))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, cube: Cube, options: dict) -> None:
    nodata = cube.meta.nodata
    if "DRIVER" in options and cube.meta.dtype.kind in "iu" and abs(nodata or 0) > 2**53:
        options = {}  # refused; see test_options_that_contradict
    folder = tmp_path_factory.mktemp("t")
    write_cube(folder / "x.tif", cube, options=options)
    assert [p.name for p in folder.iterdir()] == ["x.tif"]  # no .aux.xml
    assert_same_cube(read_cube(folder / "x.tif"), cube)


@pytest.mark.parametrize("options", WAYS)
def test_wavelengths_and_scales_come_back_to_the_last_bit(tmp_path: Path, options: dict) -> None:
    write_cube(tmp_path / "x.tif", FULL, options=options)
    found = read_cube(tmp_path / "x.tif")
    assert_same_cube(found, FULL)
    for name in ("wavelengths_nm", "fwhm_nm", "scale", "offset"):
        assert np.array_equal(getattr(found.meta, name), getattr(FULL.meta, name)), name


def test_rasterio_and_tifffile_see_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    write_cube(path, FULL)
    with rasterio.open(path) as dataset:
        assert np.array_equal(dataset.read(), VALUES.transpose(2, 0, 1))
        assert dataset.crs == CRS.from_epsg(32633)
        assert tuple(dataset.transform[:6]) == TRANSFORM
        assert dataset.nodata == 65535
        assert dataset.descriptions == FULL.meta.band_names
        assert dataset.scales == tuple(np.asarray(FULL.meta.scale))
        assert dataset.offsets == (-0.1,) * BANDS
        assert dataset.tags(1, ns="IMAGERY") == {
            "CENTRAL_WAVELENGTH_UM": "0.4501", "FWHM_UM": "0.0097",
        }  # fmt: skip
        assert dataset.tags(2) == {
            "wavelength": "550.0", "wavelength_units": "nm", "fwhm": "10.0", "bbl": "0",
        }  # fmt: skip
    assert np.array_equal(tifffile.imread(path), VALUES)


def test_bands_without_names_are_described_by_wavelength(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    write_cube(path, Cube(VALUES, FULL.meta.replace(band_names=None)))
    with rasterio.open(path) as dataset:
        assert dataset.descriptions[:2] == ("450.10 nm", "550.00 nm")
    assert read_cube(path).meta.band_names is None


@pytest.mark.parametrize("dtype", TIFF.dtypes)
def test_cog_of_every_type(tmp_path: Path, dtype: str) -> None:
    values = np.tile(VALUES[:, :, :2], (8, 9, 1)).astype(dtype)
    path = tmp_path / "x.tif"
    write_cube(path, Cube.of(values, crs=UTM33N, transform=TRANSFORM, nodata=5), options=COG)
    with rasterio.open(path) as dataset:
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.overviews(1) == [2, 4]  # 296 x 261 in tiles of 128
        assert dataset.block_shapes == [(128, 128)] * 2
        assert np.array_equal(dataset.read(), values.transpose(2, 0, 1))
        assert dataset.interleaving.value.upper() == "PIXEL"
    with open_cube(path) as reader:
        assert reader.layout["directories"] == 3  # overviews are no bands
        assert np.array_equal(reader.read(), values)


@pytest.mark.parametrize("options", WAYS)
def test_bytes_do_not_depend_on_how_rows_were_cut(tmp_path: Path, options: dict) -> None:
    written = []
    for name, height in (("a.tif", ROWS), ("b.tif", 1), ("c.tif", 10)):
        with create_cube(tmp_path / name, FULL.meta, options=options) as writer:
            for start in range(0, ROWS, height):
                writer.write(slice(start, start + height), VALUES[start : start + height])
            writer.commit()
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1] == written[2]


@pytest.mark.parametrize("nodata", [-(2**63), 2**63 - 1, 2**53 + 1])
def test_nodata_beyond_float64(tmp_path: Path, nodata: int) -> None:
    cube = Cube.of(np.full((2, 3, 1), nodata), nodata=nodata)
    write_cube(tmp_path / "x.tif", cube)
    assert read_cube(tmp_path / "x.tif").meta.nodata == nodata
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        assert tiff.pages.first.tags["GDAL_NODATA"].value == str(nodata)


GDAL_WAYS = [
    {"interleave": interleave, "compress": compress} | extra
    for interleave, compress, extra in itertools.product(
        ["pixel", "band"],
        ["none", "deflate", "lzw", "zstd"],
        [{"blockysize": 8}, {"tiled": True, "blockxsize": 16, "blockysize": 32}],
    )
] + [{"bigtiff": "yes"}, {"endianness": "big"}, {"sparse_ok": True, "compress": "lzma"}]


@pytest.mark.parametrize("profile", GDAL_WAYS, ids=str)
def test_files_of_rasterio(tmp_path: Path, profile: dict) -> None:
    write_raster(tmp_path / "x.tif", VALUES.transpose(2, 0, 1), nodata=3, **profile)
    with open_cube(tmp_path / "x.tif") as reader:
        assert np.array_equal(reader.read(), VALUES)
        for height in (1, 10):
            blocks = [block for _, block in reader.blocks(height)]
            assert np.array_equal(np.concatenate(blocks), VALUES)
        assert reader.read(slice(9, 9)).shape == (0, COLS, BANDS)
        assert (reader.meta.nodata, reader.meta.transform, reader.meta.crs) == (3, None, None)


STACKS = [
    {},
    {"byteorder": ">"},
    {"bigtiff": True},
    {"compression": "zlib", "predictor": True},
    {"rowsperstrip": 7},
    {"tile": (16, 16)},
    {"imagej": True, "byteorder": ">"},
]


@pytest.mark.parametrize("written", STACKS, ids=str)
def test_stacks_of_tifffile(tmp_path: Path, written: dict) -> None:
    stack = np.ascontiguousarray(VALUES.transpose(2, 0, 1))
    kind = {} if "imagej" in written else {"photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "x.tif", stack, **written, **kind)
    with open_cube(tmp_path / "x.tif") as reader:
        assert reader.layout["kind"] == "stack of pages"
        assert np.array_equal(reader.read(), VALUES)
        assert np.array_equal(reader.read(slice(5, 23)), VALUES[5:23])


@pytest.mark.parametrize("order", ["".join(p) for p in itertools.permutations("yxb")])
@pytest.mark.parametrize("planar", ["pages", "contig", "separate"])
def test_axis_order_means_the_array_that_tifffile_sees(
    tmp_path: Path, order: str, planar: str
) -> None:
    axes = tuple("yxb".index(axis) for axis in order)
    stored = np.ascontiguousarray(VALUES.transpose(axes))
    kind = {} if planar == "pages" else {"planarconfig": planar}
    tifffile.imwrite(tmp_path / "x.tif", stored, photometric="minisblack", metadata=None, **kind)
    assert np.array_equal(tifffile.imread(tmp_path / "x.tif"), stored)
    with open_cube(tmp_path / "x.tif", axis_order=order) as reader:
        assert reader.meta.shape == VALUES.shape
        assert np.array_equal(reader.read(), VALUES)
        assert np.array_equal(reader.read(slice(2, 11)), VALUES[2:11])


def test_a_stack_of_more_pages_than_are_kept_open(tmp_path: Path) -> None:
    stack = np.arange(300 * 4 * 3, dtype=np.int32).reshape(300, 4, 3)
    tifffile.imwrite(tmp_path / "x.tif", stack, photometric="minisblack")
    with open_cube(tmp_path / "x.tif") as reader:
        for rows, block in reader.blocks(2):
            assert np.array_equal(block, stack.transpose(1, 2, 0)[rows])


def test_pages_named_by_wavelength(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "x.tif") as tiff:
        for band, name in enumerate(["650.5 nm", "550 nm"]):
            tiff.write(VALUES[:, :, band], extratags=[(285, 2, 0, name, True)], metadata=None)
    meta = read_cube(tmp_path / "x.tif").meta
    assert meta.wavelengths_nm.tolist() == [650.5, 550.0]
    assert meta.band_names == ("650.5 nm", "550 nm")


def described(path: Path, texts: list[str], items: list[dict], imagery: list[dict]) -> CubeMeta:
    write_raster(path, VALUES[:, :, : len(texts)].transpose(2, 0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "r+") as dataset:
            for band, text in enumerate(texts, 1):
                dataset.set_band_description(band, text)
                dataset.update_tags(band, **(items[band - 1] if items else {}))
                dataset.update_tags(band, ns="IMAGERY", **(imagery[band - 1] if imagery else {}))
    return read_cube(path).meta


def test_imagery_comes_before_items_and_they_before_descriptions(tmp_path: Path) -> None:
    texts = ["Band 1 (410.0)", "Band 2 (510.0)"]
    items = [{"wavelength": w, "wavelength_units": "Micrometers"} for w in ("0.42", "0.52")]
    imagery = [{"CENTRAL_WAVELENGTH_UM": w} for w in ("0.43", "0.53")]
    path = tmp_path / "x.tif"
    assert described(path, texts, items, imagery).wavelengths_nm.tolist() == [430.0, 530.0]
    assert described(path, texts, items, []).wavelengths_nm.tolist() == [420.0, 520.0]
    meta = described(path, texts, [], [])
    assert meta.wavelengths_nm.tolist() == [410.0, 510.0]
    assert meta.band_names == tuple(texts)
    with pytest.warns(SpectraliftWarning, match="1 of 2 bands are ignored"):
        described(path, ["a", "b"], [], [imagery[0], {}])


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["650.3 nm", "B8, 842nm"], [650.3, 842.0]),
        (["0.65 um", "2.1 µm"], [650.0, 2100.0]),
        (["Band 3 (650.0 Nanometers)", "Band 4 (700)"], None),  # not every band has a unit
        (["650 nm", "0.7 um"], [650.0, 700.0]),
        (["650-680 nm", "700-720 nm"], None),
        (["Band (1)", "Band (2)"], None),
        (["red 650 nm 30 nm", "nir 850 nm 30 nm"], None),
        (["1", "2"], None),
    ],
)
def test_wavelengths_in_descriptions(
    tmp_path: Path, texts: list[str], expected: list[float] | None
) -> None:
    found = described(tmp_path / "x.tif", texts, [], []).wavelengths_nm
    assert (None if found is None else found.tolist()) == expected


def test_sidecar_of_gdal(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    write_raster(path, VALUES[:, :, :2].transpose(2, 0, 1))
    sidecar = tmp_path / "x.tif.aux.xml"
    bands = "".join(
        f'<PAMRasterBand band="{b}"><NoDataValue>{b}</NoDataValue>'
        f"<Description>{600 + b}.5 nm</Description></PAMRasterBand>"
        for b in (1, 2)
    )
    sidecar.write_text(f"<PAMDataset>{bands}</PAMDataset>")
    with pytest.warns(SpectraliftWarning, match="nodata values differ; that of band 1, 1"):
        reader = open_cube(path)
    with reader:
        assert reader.meta.nodata == 1
        assert reader.meta.wavelengths_nm.tolist() == [601.5, 602.5]
        assert reader.files == (path, sidecar)
    write_cube(path, Cube.of(VALUES), overwrite=True)
    assert not sidecar.exists()
    assert read_cube(path).meta.wavelengths_nm is None


def test_one_band_sparse_and_small_types(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    write_raster(path, VALUES[None, :, :, 0])
    assert np.array_equal(read_cube(path).values, VALUES[:, :, :1])
    assert np.array_equal(read_cube(path, axis_order="yx").values, VALUES[:, :, :1])
    write_raster(path, np.full((3, 900, 20), -1, np.int16), sparse_ok=True, nodata=-1)
    assert path.stat().st_size < 10_000
    with open_cube(path) as reader:
        assert reader.layout["absent_blocks"] > 0
        assert (reader.read() == -1).all()
    write_raster(path, (VALUES[None, :, :, 0] % 4).astype(np.uint8), nbits=2)
    assert np.array_equal(read_cube(path).values[:, :, 0], VALUES[:, :, 0] % 4)
    half = VALUES.astype(np.float16)
    tifffile.imwrite(path, half, photometric="minisblack", planarconfig="contig")
    assert np.array_equal(read_cube(path).values, half.astype(np.float32))


def test_truncated_anywhere(tmp_path: Path) -> None:
    stack = np.ascontiguousarray(VALUES.transpose(2, 0, 1))
    whole = []
    for index, options in enumerate(WAYS):
        write_cube(tmp_path / f"{index}.tif", FULL, options=options)
        whole.append((tmp_path / f"{index}.tif").read_bytes())
    for compression in (None, "zlib"):
        tifffile.imwrite(tmp_path / "s.tif", stack, compression=compression, metadata=None)
        whole.append((tmp_path / "s.tif").read_bytes())
    cut = tmp_path / "cut.tif"
    for data in whole:
        for length in (1, 7, 9, 40, 300, len(data) // 2, len(data) * 9 // 10, len(data) - 40):
            cut.write_bytes(data[:length])
            with pytest.raises(DataError):
                read_cube(cut)


def colours(path: Path) -> None:
    table = np.zeros((3, 256), np.uint16)
    tifffile.imwrite(path, VALUES[:, :, 0].astype(np.uint8), photometric="palette", colormap=table)


def unequal_pages(path: Path) -> None:
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(VALUES[:, :, 0])
        tiff.write(VALUES[:5, :5, 0])


def imagej_promise(path: Path) -> None:
    text = "ImageJ=1.53\nimages=100000\nslices=100000\n"
    tifffile.imwrite(path, VALUES[:, :, 0], description=text, metadata=None)


def tall(path: Path) -> None:
    tifffile.imwrite(path, VALUES[:, :, 0], rowsperstrip=1, metadata=None)
    edit(path, ImageLength=2**31 - 1)


def wide(path: Path) -> None:
    tifffile.imwrite(path, VALUES[:, :, 0], compression="zlib", metadata=None)
    edit(path, ImageWidth=2**30)


def strip_outside(path: Path) -> None:
    tifffile.imwrite(path, VALUES[:, :, 0], metadata=None)
    edit(path, StripOffsets=2**31)


def loop(path: Path) -> None:
    tifffile.imwrite(path, VALUES[:, :, 0], metadata=None)
    with tifffile.TiffFile(path) as tiff:
        at = tiff.pages.first.offset
        end = at + 2 + 12 * len(tiff.pages.first.tags)
    with path.open("r+b") as file:
        file.seek(end)
        file.write(struct.pack("<I", at))


def not_utf8(path: Path) -> None:
    xml = b'<GDALMetadata><Item name="\xff">1</Item></GDALMetadata>'
    tag = (42112, 2, len(xml), xml, True)
    tifffile.imwrite(path, VALUES[:, :, 0], metadata=None, extratags=[tag])


BAD = [
    (colours, "table of colours"),
    (unequal_pages, "holds 2 images that differ, the first 37 x 29"),
    (imagej_promise, r"speaks of 107,300,000 values, its only directory of 1,073"),
    (tall, r"needs 2,147,483,647 strips or tiles, the file lists 37"),
    (wide, r"more than [\d,]+ stored bytes can hold"),
    (strip_outside, r"ends at byte 2,147,48\d,\d+, the file has"),
    (loop, "form a loop"),
    (not_utf8, "not UTF-8"),
    (lambda p: tifffile.imwrite(p, np.zeros((4, 5), np.complex64)), "complex64 values"),
    (lambda p: tifffile.imwrite(p, np.zeros((2, 9, 8, 3), np.uint8), photometric="rgb"),
     "2 images of 3 bands"),
    (lambda p: p.write_text("no image"), "is not a TIFF"),
    (lambda p: p.write_bytes(b"II*\0" + struct.pack("<I", 8) + b"\xff" * 100), "65,535 entries"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_files(tmp_path: Path, make: object, message: str) -> None:
    make(tmp_path / "x.tif")
    with pytest.raises(DataError, match=message) as caught:
        read_cube(tmp_path / "x.tif")
    assert caught.value.hint


def test_a_block_larger_than_the_memory_allowed(tmp_path: Path) -> None:
    write_raster(
        tmp_path / "x.tif", VALUES.transpose(2, 0, 1), tiled=True, blockxsize=512, blockysize=512,
        interleave="pixel",
    )  # fmt: skip
    with pytest.raises(DataError, match="one strip or tile takes 3 MB, more than the 1 MB"):
        open_cube(tmp_path / "x.tif", memory_bytes=10**6)


@given(
    unit=st.integers(1, 5000),
    rows=st.integers(1, 10_000),
    row_bytes=st.integers(1, 2**28),
)
def test_rows_read_at_once_are_bounded_and_whole_blocks(
    unit: int, rows: int, row_bytes: int
) -> None:
    meta = CubeMeta(shape=(rows, row_bytes, 1), dtype=np.dtype(np.uint8))
    height = natural_rows(unit, meta)
    assert 1 <= height <= rows
    assert height == 1 or height * row_bytes <= LARGEST_BLOCK_BYTES
    if min(unit, rows) * row_bytes <= LARGEST_BLOCK_BYTES:
        assert height == rows or height % min(unit, rows) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"PREDICTOR": "2"}, "does nothing"),
        ({"PREDICTOR": "3", "COMPRESS": "LZW"}, "floating point"),
        ({"BLOCKSIZE": "64"}, "side of a tile"),
        ({"TILED": "YES", "BLOCKSIZE": "100"}, "multiple of 16"),
        ({"DRIVER": "COG", "TILED": "NO"}, "always tiled"),
        ({"DRIVER": "COG", "COMPRESS": "PACKBITS"}, "PACKBITS"),
    ],
)
def test_options_that_contradict(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        create_cube(tmp_path / "x.tif", FULL.meta, options=options)
    assert not list(tmp_path.iterdir())


def test_what_a_tiff_cannot_hold(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    exact = Cube.of(np.zeros((2, 2, 1), np.int64), nodata=-(2**63))
    with pytest.raises(DataError, match="cannot hold the nodata value -9223372036854775808"):
        write_cube(path, exact, options={"DRIVER": "COG"})
    with pytest.raises(DataError, match="at most 65,535 bands"):
        write_cube(path, Cube.of(np.zeros((1, 1, 70_000), np.uint8)))
    with pytest.warns(SpectraliftWarning, match="without the CRS"):
        write_cube(path, Cube.of(VALUES, crs="no such CRS"))
    assert read_cube(path).meta.crs is None


FULL_DISK = """
import resource, sys
import numpy as np
from spectralift_cli.core.cube import CubeMeta
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats import create_cube
path, limit, cog, compress = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
rows = np.random.default_rng(0).integers(0, 9999, (300, 100, 20)).astype("int16")
meta = CubeMeta(shape=rows.shape, dtype=rows.dtype)
try:
    with create_cube(path, meta, options={"DRIVER": cog, "COMPRESS": compress}, overwrite=True) as w:
        w.write(slice(None), rows)
        w.commit()
except DataError as error:
    assert error.hint
    sys.exit(3)
"""


@pytest.mark.parametrize(
    ("driver", "compress", "limit"),
    [
        ("GTIFF", "NONE", 500),
        ("GTIFF", "NONE", 600_000),
        ("GTIFF", "NONE", 1_200_000),  # only the last strip does not fit
        ("GTIFF", "DEFLATE", 600_000),
        ("COG", "NONE", 600_000),
        ("COG", "NONE", 1_400_000),  # its overviews do not fit
        ("COG", "NONE", 1_600_000),  # the plain file fits
    ],
)
def test_full_disk(tmp_path: Path, driver: str, compress: str, limit: int) -> None:
    path = tmp_path / "x.tif"
    path.write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path), str(limit), driver, compress],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["x.tif"]
    assert path.read_text() == "old"


def test_threads(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    write_cube(path, Cube.of(VALUES))

    def read(_: int) -> bool:
        with open_cube(path) as reader:
            return all(np.array_equal(block, VALUES[rows]) for rows, block in reader.blocks(7))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(40)))


def test_an_abandoned_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    path.write_text("old")
    with create_cube(path, FULL.meta, overwrite=True) as writer:
        writer.write(slice(0, 3), VALUES[:3])
    assert [p.name for p in tmp_path.iterdir()] == ["x.tif"]
    assert path.read_text() == "old"
