"""Zarr stores: zarr-python and GDAL as oracles, and stores that somebody hostile made."""

from __future__ import annotations

import base64
import gzip
import json
import os
import shutil
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from spectralift_cli.core.cube import Cube
from spectralift_cli.core.cubeio import row_blocks
from spectralift_cli.core.errors import DataError, OptionError, SpectraliftWarning
from spectralift_cli.core.formats import create_cube, open_cube, read_cube, write_cube
from tests.strategies import TRANSFORM, UTM33N, assert_same_cube, cubes

zarr = pytest.importorskip("zarr")
from zarr.codecs import (  # noqa: E402
    BloscCodec,
    BytesCodec,
    Crc32cCodec,
    GzipCodec,
    TransposeCodec,
    ZstdCodec,
)

from numcodecs import LZ4, Blosc, GZip, Shuffle, Zlib, Zstd  # noqa: E402  # isort: skip

GDAL_READS_V3 = tuple(map(int, rasterio.__gdal_version__.split(".")[:2])) >= (3, 11)
VALUES = (np.arange(50 * 40 * 5).reshape(50, 40, 5) % 1009).astype(np.int16)
GEO = Cube.of(
    VALUES,
    wavelengths_nm=[400.0, 500.0, 450.0, 600.0, 700.0],
    fwhm_nm=[10.0, 11.0, 12.0, 13.0, 14.0],
    bad_bands=[False, True, False, False, False],
    nodata=-99,
    scale=1e-4,
    offset=0.5,
    crs=UTM33N,
    transform=TRANSFORM,
)


def edit(path: Path, **changes: Any) -> None:
    node = json.loads(path.read_text())
    for key, value in changes.items():
        if value is ...:
            del node[key]
        else:
            node[key] = value
    path.write_text(json.dumps(node))


# --- what we write ---------------------------------------------------------------------------


@given(cubes(), st.sampled_from(["2", "3"]), st.sampled_from(["NONE", "ZSTD", "GZIP"]))
@settings(deadline=None, max_examples=25)
def test_zarr_python_reads_ours_and_so_do_we(
    tmp_path_factory: pytest.TempPathFactory, cube: Cube, version: str, compress: str
) -> None:
    path = tmp_path_factory.mktemp("ours") / "x.zarr"
    options = {"VERSION": version, "COMPRESS": compress, "CHUNK": "3"}
    write_cube(path, cube, options=options)
    group = zarr.open_group(path, mode="r")
    assert group.metadata.zarr_format == int(version)
    np.testing.assert_array_equal(group["cube"][...].transpose(1, 2, 0), cube.values)
    if cube.meta.wavelengths_nm is not None:
        np.testing.assert_array_equal(group["wavelength"][...], cube.meta.wavelengths_nm)
        assert group["wavelength"].attrs["units"] == "nm"
    assert_same_cube(read_cube(path), cube, same_crs_text=True)


@pytest.mark.parametrize("version", ["2", pytest.param("3", marks=pytest.mark.skipif(
    not GDAL_READS_V3, reason=f"GDAL {rasterio.__gdal_version__} reads version 3 from 3.11 on"
))])  # fmt: skip
def test_gdal_opens_the_store_as_a_georeferenced_raster(tmp_path: Path, version: str) -> None:
    path = tmp_path / "x.zarr"
    write_cube(path, GEO, options={"VERSION": version, "CHUNK": "16"})
    with rasterio.open(path) as raster:
        assert (raster.count, raster.height, raster.width) == (5, 50, 40)
        np.testing.assert_array_equal(raster.read().transpose(1, 2, 0), VALUES)
        assert raster.crs.to_epsg() == 32633
        assert tuple(raster.transform)[:6] == TRANSFORM
        assert raster.nodata == -99
        assert raster.scales == (1e-4,) * 5
        assert raster.offsets == (0.5,) * 5
        tags = [raster.tags(band) for band in raster.indexes]
        assert [t["DIM_wavelength_VALUE"] for t in tags] == ["400", "500", "450", "600", "700"]
        assert tags[0]["DIM_wavelength_UNIT"] == "nm"
    plain = Cube.of(VALUES, transform=TRANSFORM)
    write_cube(path, plain, options={"VERSION": version}, overwrite=True)
    with rasterio.open(path) as raster:
        assert raster.nodata in (None, -(2**15))  # version 3 cannot be without a fill value


def test_xarrays_conventions(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    write_cube(path, GEO)
    group = zarr.open_group(path, mode="r")
    cube = group["cube"]
    assert cube.metadata.dimension_names == ("wavelength", "y", "x")
    assert cube.attrs["_FillValue"] == -99
    assert (cube.attrs["scale_factor"], cube.attrs["add_offset"]) == (1e-4, 0.5)
    assert group[cube.attrs["grid_mapping"]].attrs["crs_wkt"] == UTM33N
    np.testing.assert_array_equal(group["x"][:2], [380001.5, 380004.0])
    np.testing.assert_array_equal(group["y"][:2], [5819999.5, 5819997.0])
    floats = Cube.of(VALUES.astype(np.float32), nodata=-1.0)
    write_cube(path, floats, overwrite=True)
    packed = zarr.open_group(path, mode="r")["cube"].attrs["_FillValue"]
    assert struct.unpack("<d", base64.b64decode(packed)) == (-1.0,)


def test_rotated_transform_survives(tmp_path: Path) -> None:
    cube = Cube.of(VALUES, transform=(2.0, 0.5, 100.0, -0.25, -3.0, 50.0), crs=UTM33N)
    write_cube(tmp_path / "x.zarr", cube)
    assert not (tmp_path / "x.zarr" / "x").exists()
    assert_same_cube(read_cube(tmp_path / "x.zarr"), cube, same_crs_text=True)


def test_bytes_do_not_depend_on_how_rows_were_cut(tmp_path: Path) -> None:
    def files(heights: int) -> dict[str, bytes]:
        path = tmp_path / f"{heights}" / "x.zarr"
        path.parent.mkdir()
        with create_cube(path, GEO.meta, options={"CHUNK": "16"}) as writer:
            for rows in row_blocks(50, heights):
                writer.write(rows, VALUES[rows])
            writer.commit()
        return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}

    whole = files(50)
    assert len([name for name in whole if name.startswith("cube/c/")]) == 4 * 3
    assert files(7) == whole


def test_chunks_of_wide_cubes_have_fewer_rows(tmp_path: Path) -> None:
    def chunks(cols: int, **options: str) -> list[int]:
        meta = Cube.of(np.zeros((200, 1, 100), np.int16)).meta.replace(shape=(200, cols, 100))
        with create_cube(tmp_path / "x.zarr", meta, options=options) as writer:
            return [writer.block_rows]

    assert chunks(100) == [128]
    assert chunks(8192) == [16]
    assert chunks(8192, CHUNK="64") == [64]
    for side in ("0", "100000"):
        with pytest.raises(OptionError, match="chunks of"):
            chunks(200_000, CHUNK=side)


def test_streaming_holds_few_chunks(tmp_path: Path) -> None:
    values = np.zeros((1024, 64, 512), np.uint8)  # 32 MiB
    values[::3] = 7
    path = tmp_path / "x.zarr"
    tracemalloc.start()
    try:
        with create_cube(path, Cube.of(values).meta, options={"CHUNK": "32"}) as writer:
            for rows in row_blocks(1024, 8):
                writer.write(rows, values[rows])
            writer.commit()
        with open_cube(path) as reader:
            for rows in row_blocks(1024, 10):
                np.testing.assert_array_equal(reader.read(rows), values[rows])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 * 2**20


# --- what others write -----------------------------------------------------------------------

LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {"compressors": None},
    "zstd": {"compressors": ZstdCodec(level=3, checksum=True)},
    "gzip + crc": {"compressors": [GzipCodec(), Crc32cCodec()]},
    "crc + blosc": {"compressors": [Crc32cCodec(), BloscCodec(cname="lz4")]},
    "big endian": {"serializer": BytesCodec(endian="big"), "compressors": ZstdCodec()},
    "transposed": {"filters": TransposeCodec(order=(2, 0, 1))},
    "sharded": {"shards": (12, 12, 6), "compressors": ZstdCodec()},
    "dots": {"chunk_key_encoding": {"name": "default", "separator": "."}},
    "v2 names": {"chunk_key_encoding": {"name": "v2", "separator": "/"}},
    "v2": {"zarr_format": 2},
    "v2 none": {"zarr_format": 2, "compressors": None, "order": "F"},
    "v2 zlib": {"zarr_format": 2, "compressors": Zlib(), "filters": [Shuffle(elementsize=4)]},
    "v2 gzip": {"zarr_format": 2, "compressors": GZip()},
    "v2 blosc": {"zarr_format": 2, "compressors": Blosc(shuffle=2)},
    "v2 lz4": {"zarr_format": 2, "compressors": LZ4()},
    "v2 zstd": {"zarr_format": 2, "compressors": Zstd(), "dtype": ">f4"},
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
def test_zarr_pythons_stores_by_rows(tmp_path: Path, name: str) -> None:
    layout = LAYOUTS[name]
    values = np.random.default_rng(0).normal(size=(25, 13, 6)).astype(np.float32)
    settings_ = {"shape": values.shape, "chunks": (4, 6, 3), "dtype": "f4", **layout}
    array = zarr.create_array(tmp_path / "x.zarr", **settings_)
    array[:20] = values[:20]  # the last chunks are not written: they hold the fill value
    expected = np.asarray(array[...], np.float32)
    with open_cube(tmp_path / "x.zarr") as reader:
        for start, stop in ((0, 25), (3, 5), (5, 21), (7, 7), (24, 25), (0, 1)):
            np.testing.assert_array_equal(reader.read(slice(start, stop)), expected[start:stop])
        kept = reader.read(slice(1, 3))
        kept[...] = -1  # a caller's block is its own
        np.testing.assert_array_equal(reader.read(slice(1, 3)), expected[1:3])


@pytest.mark.parametrize(
    ("dims", "order"),
    [
        (("band", "y", "x"), "byx"),
        (("Y", "X", "Band"), "yxb"),
        (("lat", "wavelength", "lon"), "ybx"),
        (("x", "y", "band"), "xyb"),
        (("u", "v", "wavelength"), "yxb"),
        (("wavelength", "u", "v"), "byx"),
        (None, "yxb"),
    ],
)
def test_axes_by_the_names_of_dimensions(
    tmp_path: Path, dims: tuple[str, ...] | None, order: str
) -> None:
    stored = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    array = zarr.create_array(
        tmp_path / "x.zarr", shape=stored.shape, dtype="u1", dimension_names=dims
    )
    array[...] = stored
    expected = stored.transpose([order.index(axis) for axis in "yxb"])
    np.testing.assert_array_equal(read_cube(tmp_path / "x.zarr").values, expected)
    other = stored.transpose(["bxy".index(axis) for axis in "yxb"])
    np.testing.assert_array_equal(read_cube(tmp_path / "x.zarr", axis_order="bxy").values, other)


@pytest.mark.parametrize("version", [2, 3])
def test_foreign_metadata(tmp_path: Path, version: int) -> None:
    group = zarr.create_group(tmp_path / "x.zarr", zarr_format=version)

    def put(name: str, data: Any, dims: list[str], **attrs: Any) -> None:
        data = np.asarray(data)
        names = {"dimension_names": dims} if version == 3 else {}
        if version == 2:
            attrs["_ARRAY_DIMENSIONS"] = dims
        array = group.create_array(
            name, shape=data.shape, dtype=data.dtype, chunks=data.shape, attributes=attrs, **names
        )
        array[...] = data

    put("refl", np.ones((3, 4, 2), "u2"), ["y", "x", "wavelength"], scale_factor=0.5,
        add_offset=1, _FillValue=65535, grid_mapping="crs")  # fmt: skip
    put("crs", 0, [], spatial_ref=UTM33N)
    put("wavelength", [0.4, 0.5], ["wavelength"], units="micrometers")
    put("x", np.float32([10, 12, 14, 16]), ["x"])
    put("y", [5, 4, 3], ["y"])
    put("mask", np.ones((3, 4), "u1"), ["y", "x"])
    meta = read_cube(tmp_path / "x.zarr").meta
    assert meta.shape == (3, 4, 2)
    assert (meta.scale, meta.offset, meta.nodata, meta.crs) == (0.5, 1.0, 65535, UTM33N)
    assert meta.transform == (2.0, 0.0, 9.0, 0.0, -1.0, 5.5)
    assert meta.wavelengths_nm is not None
    np.testing.assert_allclose(meta.wavelengths_nm, [400, 500])
    assert read_cube(tmp_path / "x.zarr", var="mask", axis_order="yx").meta.bands == 1
    with pytest.raises(DataError, match="'none'") as caught:
        open_cube(tmp_path / "x.zarr", var="none")
    assert "refl 3x4x2" in caught.value.hint


def test_rasters_written_by_gdal(tmp_path: Path) -> None:
    with rasterio.open(
        tmp_path / "x.zarr", "w", driver="Zarr", width=40, height=50, count=5, dtype="int16",
        crs="EPSG:32633", transform=rasterio.Affine(*TRANSFORM),
    ) as raster:  # fmt: skip
        raster.write(VALUES.transpose(2, 0, 1))
    cube = read_cube(tmp_path / "x.zarr")
    np.testing.assert_array_equal(cube.values, VALUES)
    assert cube.meta.transform == TRANSFORM
    # rasterio 1.4 does not pass the coordinate system on; this is GDAL's way to name it
    attrs = tmp_path / "x.zarr" / "x" / ".zattrs"
    edit(attrs, _CRS={"url": "http://www.opengis.net/def/crs/EPSG/0/32633"})
    crs = read_cube(tmp_path / "x.zarr").meta.crs
    assert crs is not None
    assert rasterio.crs.CRS.from_wkt(crs).to_epsg() == 32633
    for url in ("http://127.0.0.1:9/crs", "http://www.opengis.net/def/crs/EPSG/0/999999999"):
        edit(attrs, _CRS={"url": url})
        with pytest.warns(SpectraliftWarning, match="not known"):
            assert read_cube(tmp_path / "x.zarr").meta.crs is None


def test_selection_made_by_others_moves_coordinates_and_wins(tmp_path: Path) -> None:
    """What xarray's isel().to_zarr() does: arrays are cut, attributes are copied."""
    write_cube(tmp_path / "a.zarr", GEO)
    source = zarr.open_group(tmp_path / "a.zarr", mode="r")
    target = zarr.create_group(tmp_path / "b.zarr")
    cut = {"wavelength": slice(1, 3), "y": slice(10, 20), "x": slice(4, 40)}
    for name, array in source.arrays():
        dims = array.metadata.dimension_names
        data = array[tuple(cut[dim] for dim in dims)] if dims else array[...]
        target.create_array(
            name, shape=data.shape, dtype=data.dtype, dimension_names=dims,
            attributes=dict(array.attrs),
        )[...] = data  # fmt: skip
    found = read_cube(tmp_path / "b.zarr")
    expected = GEO.meta.select_bands([1, 2]).window(10, 4, 10, 36)
    assert_same_cube(found, Cube(VALUES[10:20, 4:40, 1:3], expected), same_crs_text=True)


# --- damage and malice -----------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "x.zarr"
    write_cube(path, GEO, options={"COMPRESS": "GZIP", "CHUNK": "16"})
    return path


def refused(store: Path, match: str, **options: Any) -> DataError:
    with pytest.raises(DataError, match=match) as caught:
        read_cube(store, **options)
    assert str(store) in caught.value.message
    return caught.value


HOSTILE_NODES: dict[str, tuple[dict[str, Any], str]] = {
    "negative": ({"shape": [-5, 50, 40]}, "whole numbers"),
    "text shape": ({"shape": "555"}, "whole numbers"),
    "true shape": ({"shape": [True, 50, 40]}, "whole numbers"),
    "axes differ": ({"shape": [50, 40]}, "2 axes, its chunks 3"),
    "empty": ({"shape": [0, 50, 40]}, "no values"),
    "row of 10^12": ({"shape": [10**6, 50, 10**6]}, "a row"),
    "beyond 64 bits": ({"shape": [2**70, 50, 40]}, "whole numbers"),
    "no chunk": (
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 1, 1]}}},
        "chunk shape",
    ),
    "huge chunk": (
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [9**9, 9**9, 1]}}},
        "a chunk",
    ),
    "tiny chunks": (
        {
            "shape": [10000, 50, 10000],
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, 1, 1]}},
        },
        "cut into 100,000,000 chunks",
    ),
    "other grid": ({"chunk_grid": {"name": "rectilinear"}}, "chunk grid"),
    "no grid": ({"chunk_grid": None}, "chunk grid"),
    "complex": ({"data_type": "complex64"}, "complex64"),
    "strings": ({"data_type": {"name": "fixed_length_utf32"}}, "data type"),
    "bool": ({"data_type": "bool", "fill_value": False}, "no numeric array|bool"),
    "unknown codec": ({"codecs": [{"name": "bytes"}, {"name": "pcodec"}]}, "pcodec|byte order"),
    "pickle": (
        {"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, "numcodecs.pickle"]},
        "numcodecs.pickle",
    ),
    "no codecs": ({"codecs": []}, "bytes"),
    "codecs of codecs": ({"codecs": [[[]]]}, "codec"),
    "two compressions": (
        {
            "codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "gzip", "configuration": {"level": 1}},
                {"name": "zstd", "configuration": {"level": 1}},
            ]
        },
        "more than one compression",
    ),
    "fill": ({"fill_value": "many"}, "fill value"),
    "fill too large": ({"fill_value": 10**6}, "fill value"),
    "names": ({"chunk_key_encoding": {"name": "../../etc"}}, "chunk names"),
    "transformer": ({"storage_transformers": [{"name": "x"}]}, "transformers"),
    "extension": ({"surprise": {"must_understand": True}}, "surprise"),
    "version": ({"zarr_format": 4}, "another version"),
    "scale": ({"attributes": {"spectralift": {"scale": "x"}}}, "metadata"),
    "per-band scale": ({"attributes": {"spectralift": {"scale": [1, 2]}}}, "scale has 2 values"),
}


@pytest.mark.parametrize("name", HOSTILE_NODES)
def test_hostile_metadata(store: Path, name: str) -> None:
    changes, reason = HOSTILE_NODES[name]
    edit(store / "cube" / "zarr.json", **changes)
    refused(store, reason)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "9" * 5000, " " * (4 * 2**20 + 1)])
def test_metadata_that_is_none(store: Path, text: str) -> None:
    (store / "cube" / "zarr.json").write_text(text)
    refused(store, "JSON|at most")
    (store / "zarr.json").write_text(text)
    refused(store, "JSON|at most")


def test_attributes_of_the_wrong_kind_say_nothing(store: Path) -> None:
    edit(store / "cube" / "zarr.json", dimension_names=[1, None, {}], attributes=[])
    edit(store / "wavelength" / "zarr.json", attributes={"units": 7})
    meta = read_cube(store).meta  # (y, x, band) without names
    assert meta.shape == (5, 50, 40)
    assert meta.wavelengths_nm is None


def with_transform(store: Path, transform: list[Any]) -> None:
    attributes = json.loads((store / "cube" / "zarr.json").read_text())["attributes"]
    attributes["spectralift"]["transform"] = transform
    edit(store / "cube" / "zarr.json", attributes=attributes)


@pytest.mark.filterwarnings("error")
def test_absurd_transforms(store: Path) -> None:
    with_transform(store, [1e308, 0, 1e308, 0, -1e308, 1e308])
    assert read_cube(store).meta.transform == TRANSFORM  # what the coordinates say
    with_transform(store, [10**400, 0, 0, 0, -1, 0])
    refused(store, "transform")


def damaged_chunk(store: Path, data: bytes) -> None:
    (store / "cube" / "c" / "0" / "1" / "1").write_bytes(data)


def test_damaged_chunks(store: Path) -> None:
    chunk = store / "cube" / "c" / "0" / "1" / "1"
    good = chunk.read_bytes()
    size = 5 * 16 * 16 * 2
    for data, reason in (
        (good[:-9], "end is missing|instead of"),
        (b"", "damaged"),
        (b"not gzip", "damaged"),
        (gzip.compress(b"\0" * (size - 1)), "instead of 2,560"),
        (gzip.compress(b"\0" * (size + 1)), "instead of 2,560"),
        (gzip.compress(b"\0" * 100_000_000), "instead of 2,560"),
        (good + b"x" * 2**21, "are stored for 2,560"),
    ):
        damaged_chunk(store, data)
        error = refused(store, reason)
        assert "c/0/1/1" in error.message
        with open_cube(store) as reader:  # rows of other chunks are well
            np.testing.assert_array_equal(reader.read(slice(0, 16)), VALUES[:16])
    chunk.unlink()
    assert (read_cube(store).values[16:32, 16:32] == -99).all()


def test_zstd_bombs_are_refused_before_they_grow(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    write_cube(path, GEO, options={"CHUNK": "16"})
    block = struct.pack("<I", (131072 << 3) | 2)[:3] + b"\0"  # 128 KiB of zeros in 4 bytes
    last = struct.pack("<I", (131072 << 3) | 3)[:3] + b"\0"
    nameless = b"\x28\xb5\x2f\xfd\0\x58" + block * 10_000 + last
    named = b"\x28\xb5\x2f\xfd\xc0\x58" + struct.pack("<Q", 2**40) + last
    tracemalloc.start()
    try:
        for bomb in (nameless, named):
            damaged_chunk(path, bomb)
            refused(path, "too small|instead of")
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def test_checksum_of_a_chunk(tmp_path: Path) -> None:
    array = zarr.create_array(
        tmp_path / "x.zarr", shape=(4, 4, 4), dtype="u2", compressors=[Crc32cCodec()]
    )
    array[...] = 7
    chunk = tmp_path / "x.zarr" / "c" / "0" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[5] ^= 1
    chunk.write_bytes(data)
    refused(tmp_path / "x.zarr", "checksum")


def test_shard_index_that_leads_astray(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    array = zarr.create_array(
        path, shape=(4, 4, 4), dtype="u2", chunks=(2, 4, 4), shards=(4, 4, 4), compressors=None
    )
    array[...] = 7
    shard = path / "c" / "0" / "0" / "0"
    good = shard.read_bytes()
    index = len(good) - 36

    def with_place(offset: int, length: int) -> bytes:
        import google_crc32c

        places = struct.pack("<QQ", offset, length) + good[index + 16 : index + 32]
        return good[:index] + places + struct.pack("<L", google_crc32c.value(places))

    for data, reason in (
        (with_place(2**63, 64), "ends at byte"),
        (with_place(0, 63), "instead of 64"),
        (with_place(0, 2**40), "ends at byte"),
        (good[:index] + bytes([good[index] ^ 1]) + good[index + 1 :], "checksum"),
        (good[:20], "index takes 36 bytes"),
    ):
        shard.write_bytes(data)
        refused(path, reason)
    edit(path / "zarr.json", codecs=[{"name": "sharding_indexed", "configuration": {}}])
    refused(path, "chunk shape")


def test_links_out_of_the_store(store: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"\0" * 2560)
    chunk = store / "cube" / "c" / "0" / "0" / "0"
    moved = store / "moved"
    chunk.rename(moved)
    chunk.symlink_to(moved)  # within the store it is fine
    np.testing.assert_array_equal(read_cube(store).values, VALUES)
    for target in (secret, Path("/dev/zero")):
        chunk.unlink()
        chunk.symlink_to(target)
        refused(store, "outside of the store")
    chunk.unlink()
    chunk.symlink_to(chunk)
    refused(store, "link to itself")
    chunk.unlink()
    os.mkfifo(chunk)
    refused(store, "not a regular file")
    chunk.unlink()
    chunk.mkdir()
    refused(store, "not a regular file")
    shutil.rmtree(store / "cube" / "c" / "0" / "0")
    (store / "cube" / "c" / "0" / "0").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "0").write_bytes(b"")
    refused(store, "outside of the store")
    # the store itself may be a link
    (tmp_path / "link.zarr").symlink_to(store, target_is_directory=True)
    assert open_cube(tmp_path / "link.zarr").meta.shape == (50, 40, 5)


def test_memory_holds_for_chunks(store: Path) -> None:
    with open_cube(store, memory_bytes=3000) as reader:
        assert reader.read().shape == (50, 40, 5)
    refused(store, "a chunk: must be loaded", memory_bytes=2000)
    refused(store, "a row: must be loaded", memory_bytes=300)


def test_groups_without_end(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    for name in ("", *(f"g{i}" for i in range(1100))):
        (path / name).mkdir(parents=True)
        (path / name / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    refused(path, "more than 1,000")


def test_array_in_a_nested_group(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "x.zarr").create_group("scenes").create_group("one")
    for name, data in (("refl", VALUES), ("wavelength", np.arange(400.0, 405.0))):
        group.create_array(name, shape=data.shape, dtype=data.dtype)[...] = data
    with open_cube(tmp_path / "x.zarr") as reader:
        assert reader.layout["variable"] == "scenes/one/refl"
        assert reader.meta.wavelengths_nm is not None
        np.testing.assert_array_equal(reader.read(), VALUES)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("samples")
    small = Cube.of(VALUES[:6, :5], wavelengths_nm=[1, 2, 3, 4, 5], crs=UTM33N, transform=TRANSFORM)
    paths = []
    for compress in ("NONE", "ZSTD", "GZIP"):
        for version in "23":
            paths.append(folder / f"{compress}{version}.zarr")
            write_cube(paths[-1], small, options={"COMPRESS": compress, "VERSION": version})
    for name in ("sharded", "gzip + crc", "crc + blosc", "v2 lz4", "v2 zlib"):
        paths.append(folder / f"{name}.zarr")
        more = {"shape": (12, 12, 6), "chunks": (4, 6, 3), "dtype": "f4", **LAYOUTS[name]}
        zarr.create_array(paths[-1], **more)[...] = 0.5
    return paths


@given(st.data())
@settings(deadline=None, max_examples=250)
@pytest.mark.filterwarnings("ignore::spectralift_cli.core.errors.SpectraliftWarning")
def test_any_damage_is_a_data_error_or_none(samples: list[Path], data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(samples))
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.stat().st_size)
    file = data.draw(st.sampled_from(files))
    good = file.read_bytes()
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(good) - 1))] = data.draw(
            st.one_of(st.integers(0, 255), st.sampled_from(b'0123456789[]{}",-.'))
        )
    keep = data.draw(st.one_of(st.just(len(good)), st.integers(0, len(good))))
    file.write_bytes(damaged[:keep])
    try:
        with open_cube(path, memory_bytes=2**20) as reader:
            reader.read(slice(0, 6))
    except DataError as error:
        assert str(path) in error.message
    finally:
        file.write_bytes(good)
