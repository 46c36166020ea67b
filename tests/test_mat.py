"""MATLAB files: round trips in both versions, files by SciPy and h5py, and files that mean harm."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import loadmat, savemat, whosmat

from spectralift_cli.core.cube import Cube, CubeMeta
from spectralift_cli.core.errors import DataError, OptionError, SpectraliftWarning
from spectralift_cli.core.formats import FORMATS, create_cube, open_cube, read_cube, write_cube
from tests.strategies import assert_same_cube, cubes

VALUES = np.arange(4 * 5 * 6, dtype="<i2").reshape(4, 5, 6)
(MAT,) = (row for row in FORMATS if row.name == "mat")
VERSIONS = ("5", "7.3")
NAMES = ("cube", "super_resolved_hsi_indian_pines_gaussian_4_4")


@settings(deadline=None, max_examples=60)
@given(
    cube=cubes(dtypes=MAT.dtypes),
    version=st.sampled_from(VERSIONS),
    compress=st.sampled_from(("NONE", "DEFLATE")),
    name=st.sampled_from(NAMES),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, cube: Cube, version: str, compress: str, name: str
) -> None:
    path = tmp_path_factory.mktemp("mat") / "x.mat"
    write_cube(path, cube, options={"VERSION": version, "COMPRESS": compress, "VARIABLE": name})
    with open_cube(path) as reader:
        assert reader.layout["version"] == version
        assert reader.layout["variable"] == name
        assert (reader.layout["compression"] == "none") == (compress == "NONE")
        assert reader.streams == (version == "7.3")
    assert_same_cube(read_cube(path), cube, same_crs_text=True)
    if version == "5":
        found = loadmat(path)
        values, wavelengths_nm = found[name], found.get("wavelengths_nm")
        assert ("bad_bands", (1, cube.meta.bands), "logical") in whosmat(path) or (
            cube.meta.bad_bands is None
        )
    else:
        with h5py.File(path, "r") as file:
            values = file[name][()].T
            wavelengths_nm = file["wavelengths_nm"][()].T if "wavelengths_nm" in file else None
    np.testing.assert_array_equal(values, cube.values)
    if cube.meta.wavelengths_nm is not None:
        assert wavelengths_nm.shape == (1, cube.meta.bands)
        np.testing.assert_array_equal(wavelengths_nm[0], cube.meta.wavelengths_nm)


def test_bytes_depend_neither_on_the_cuts_nor_on_the_clock(tmp_path: Path) -> None:
    # 2,050 bands make several chunks a row, with edges that the values do not fill
    values = np.random.default_rng(1).integers(0, 50, (23, 70, 2050)).astype(np.uint8)
    cube = Cube.of(values, bad_bands=np.arange(2050) % 3 == 0)
    for folder, height in (("a", 23), ("b", 7)):
        (tmp_path / folder).mkdir()
        for version in VERSIONS:
            for compress in ("NONE", "DEFLATE"):
                path = tmp_path / folder / f"{version} {compress}.mat"
                options = {"VERSION": version, "COMPRESS": compress}
                with create_cube(path, cube.meta, options=options) as writer:
                    for start in range(0, 23, height):
                        writer.write(slice(start, start + height), values[start : start + height])
                    writer.commit()
        if folder == "a":
            time.sleep(1.1)  # the clocks in these files count in seconds
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
        np.testing.assert_array_equal(read_cube(path).values, values)


def test_version_7_3_is_what_matlab_writes(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    cube = Cube.of(VALUES, bad_bands=np.zeros(6, bool), nodata=-1)
    write_cube(path, cube, options={"VERSION": "7.3"})
    head = path.read_bytes()[:512]
    assert head.startswith(b"MATLAB 7.3 MAT-file")
    assert head[116:124] == bytes(8)
    assert head[124:128] == b"\x00\x02IM"
    with h5py.File(path, "r") as file:
        assert file.userblock_size == 512
        classes = {name: file[name].attrs["MATLAB_class"] for name in file}
        assert classes == {"cube": b"int16", "bad_bands": b"logical", "spectralift": b"char"}
        assert file["bad_bands"].attrs["MATLAB_int_decode"] == 1
        assert file["spectralift"].attrs["MATLAB_int_decode"] == 2
        assert file["spectralift"].dtype == np.uint16


def test_chosen_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spectralift_cli.core.formats.mat._V5_BYTES", VALUES.nbytes)
    write_cube(tmp_path / "a.mat", Cube.of(VALUES))
    write_cube(tmp_path / "b.mat", Cube.of(np.concatenate([VALUES, VALUES])))
    assert not h5py.is_hdf5(tmp_path / "a.mat")
    assert h5py.is_hdf5(tmp_path / "b.mat")
    large = CubeMeta(shape=(70_000, 70_000, 1), dtype=np.dtype("u1"))
    with pytest.raises(DataError, match="4,900,000,000 bytes") as caught:
        create_cube(tmp_path / "c.mat", large, options={"VERSION": "5"})
    assert "VERSION=7.3" in caught.value.hint
    monkeypatch.setattr("spectralift_cli.core.formats.mat.default_memory_bytes", lambda: 10**6)
    middling = CubeMeta(shape=(1000, 1000, 1), dtype=np.dtype("u1"))
    with pytest.raises(DataError, match="2 MB of memory, more than the 1 MB"):
        create_cube(tmp_path / "c.mat", middling, options={"VERSION": "5"})


@pytest.mark.parametrize("name", ["", "1a", "a b", "a-b", "end", "x" * 64, "bad_bands", "_a", "é"])
def test_refuses_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(OptionError, match="VARIABLE"):
        write_cube(tmp_path / "x.mat", Cube.of(VALUES), options={"VARIABLE": name})


def _as_matlab_saves(path: Path, arrays: dict[str, object]) -> None:
    """Write variables as MATLAB does for -v7.3: axes reversed, classes named."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            values = np.asarray(array)
            kind = {"b": "logical", "U": "char"}.get(values.dtype.kind, values.dtype.name)
            if kind == "char":
                values = np.array([[ord(c) for c in str(array)]], np.uint16)
            stored = values.astype("u1") if kind == "logical" else values
            file[name] = stored.T
            kind = {"float64": "double", "float32": "single"}.get(kind, kind)
            file[name].attrs["MATLAB_class"] = np.bytes_(kind)
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")


SAVERS = {
    "5": savemat,
    "5 compressed": lambda path, arrays: savemat(path, arrays, do_compression=True),
    "7.3": _as_matlab_saves,
}


@pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS)
def test_reads_what_others_write(tmp_path: Path, save: Callable) -> None:
    path = tmp_path / "x.mat"
    save(
        path,
        {
            "scene": "Jasper Ridge",
            "Y": VALUES,
            "mask": np.ones((4, 5, 6), bool),
            "map": np.zeros((4, 5), np.uint8),
            "k": 3.0,
            "nothing": np.zeros((0, 0)),
        },
    )
    cube = read_cube(path)
    np.testing.assert_array_equal(cube.values, VALUES)
    turned = read_cube(path, axis_order="bxy")
    np.testing.assert_array_equal(turned.values, VALUES.transpose(2, 1, 0))
    assert read_cube(path, var="map", axis_order="yx").meta.shape == (4, 5, 1)
    with open_cube(path) as reader:
        np.testing.assert_array_equal(reader.read(slice(1, 3)), VALUES[1:3])
        assert reader.layout["stored_shape"] == [4, 5, 6]
    for var, message in {
        "nope": "no numeric array called 'nope'",
        "scene": "holds text",
        "mask": "holds true and false",
        "map": "2-D",
    }.items():
        with pytest.raises(DataError, match=message):
            open_cube(path, var=var)


@pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS)
def test_several_cubes_are_listed(tmp_path: Path, save: Callable) -> None:
    path = tmp_path / "x.mat"
    save(path, {"a": VALUES, "b": VALUES[:, :, :2], "map": np.zeros((4, 5))})
    with pytest.raises(DataError, match=r"2 arrays .*: a 4x5x6, b 4x5x2") as caught:
        open_cube(path)
    assert "--var a" in caught.value.hint
    assert read_cube(path, var="b").meta.shape == (4, 5, 2)
    save(path, {"map": np.zeros((4, 5))})
    with pytest.raises(DataError, match="no 3-D numeric array") as caught:
        open_cube(path)
    assert "--axis-order yx" in caught.value.hint
    assert read_cube(path, allow_2d=True).meta.shape == (4, 5, 1)


@pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS)
def test_one_band_as_matlab_saves_it_again(tmp_path: Path, save: Callable) -> None:
    """MATLAB drops the last axis of 1; our text tells a cube of one band from a matrix."""
    text = '{"nodata":3,"shape":[4,5,1],"variable":"pan"}'
    save(tmp_path / "x.mat", {"pan": VALUES[:, :, 0], "spectralift": text})
    cube = read_cube(tmp_path / "x.mat")
    np.testing.assert_array_equal(cube.values, VALUES[:, :, :1])
    assert cube.meta.nodata == 3
    with open_cube(tmp_path / "x.mat") as reader:
        np.testing.assert_array_equal(reader.read(slice(2, 3)), VALUES[2:3, :, :1])
    with pytest.raises(DataError, match="2-D"):
        read_cube(tmp_path / "x.mat", axis_order="byx", var="pan")


@pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS)
def test_wavelengths_that_do_not_fit_are_ignored(tmp_path: Path, save: Callable) -> None:
    save(tmp_path / "x.mat", {"cube": VALUES, "wavelengths_nm": np.arange(7.0)})
    with pytest.warns(SpectraliftWarning, match="7 values for 6 bands"):
        assert read_cube(tmp_path / "x.mat").meta.wavelengths_nm is None


def test_doubles_stored_as_bytes_are_doubles(tmp_path: Path) -> None:
    """MATLAB stores whole-numbered doubles in the smallest integers; they stay doubles."""
    path = tmp_path / "x.mat"
    savemat(path, {"Y": VALUES.astype("u1")})
    data = bytearray(path.read_bytes())
    assert data[144] == 9  # the class uint8, in the array flags
    data[144] = 6
    path.write_bytes(data)
    cube = read_cube(path)
    assert cube.values.dtype == np.float64
    np.testing.assert_array_equal(cube.values, VALUES.astype("u1"))


def test_big_endian_and_version_4(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    image = VALUES[:, :, 0]
    for order, mopt in (("<", 30), (">", 1030)):
        name = b"pan\0"
        head = struct.pack(order + "5i", mopt, 4, 5, 0, len(name))
        path.write_bytes(head + name + image.astype(order + "i2").tobytes(order="F"))
        cube = read_cube(path, axis_order="yx")
        np.testing.assert_array_equal(cube.values[:, :, 0], image)
        assert cube.values.dtype == np.int16
    savemat(path, {"pan": image.astype(float), "text": "abc"}, format="4")
    np.testing.assert_array_equal(read_cube(path, axis_order="yx").values[:, :, 0], image)
    flat = VALUES.astype(">i2").tobytes(order="F")
    elements = struct.pack(">2I2I", 6, 8, 10, 0) + struct.pack(">2I3iI", 5, 12, 4, 5, 6, 0)
    elements += struct.pack(">HH4s", 1, 1, b"Y") + struct.pack(">2I", 3, len(flat)) + flat
    matrix = struct.pack(">2I", 14, len(elements)) + elements
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\x01\x00MI" + matrix)
    np.testing.assert_array_equal(read_cube(path).values, VALUES)


def test_memory_is_guarded(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    savemat(path, {"cube": np.zeros((100, 100, 100))}, do_compression=True)
    with open_cube(path, memory_bytes=10**6) as reader:
        assert reader.meta.shape == (100, 100, 100)
        with pytest.raises(DataError, match="8 MB, more than the 1 MB"):
            reader.read(slice(0, 1))


def _v5(*elements: bytes) -> bytes:
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + b"".join(elements)


def _element(
    shape: tuple[int, ...] = (4, 5, 6),
    values: bytes = VALUES.tobytes(order="F"),
    *,
    name: bytes = b"cube",
    claim: int | None = None,
    name_claim: int | None = None,
    flags: int = 10,
    stored: int = 3,
) -> bytes:
    dims = struct.pack(f"<2I{len(shape)}i", 5, 4 * len(shape), *shape)
    dims += bytes(-len(dims) % 8)
    label = struct.pack("<2I", 1, len(name) if name_claim is None else name_claim) + name
    label += bytes(-len(label) % 8)
    data = struct.pack("<2I", stored, len(values) if claim is None else claim) + values
    inner = struct.pack("<4I", 6, 8, flags, 0) + dims + label + data + bytes(-len(data) % 8)
    return struct.pack("<2I", 14, len(inner)) + inner


def _deflated(element: bytes) -> bytes:
    packed = zlib.compress(element)
    return struct.pack("<2I", 15, len(packed)) + packed


HOSTILE_V5 = {
    "text": (b"just a text of no more than a few words " * 5, "not a MATLAB file"),
    "short": (b"MATLAB 5.0", "not a MATLAB file"),
    "7.3 without HDF5": (b"MATLAB 7.3".ljust(124) + b"\x00\x02IM", "7.3 without its HDF5 part"),
    "no variable": (_v5(), "holds no variable"),
    "truncated": (_v5(_element())[:-50], "ends at byte"),
    "truncated tag": (_v5(_element())[:132], "ends at byte"),
    "truncated deflate": (_v5(_deflated(_element()))[:-5], "ends at byte"),
    "damaged deflate": (_v5(struct.pack("<2I", 15, 64) + bytes(64)), "compressed variable is dam"),
    "no deflate": (_v5(struct.pack("<2I", 15, 0)), "header of a variable"),
    "odd element": (_v5(struct.pack("<2I", 99, 8) + bytes(8)), "element of type 99"),
    "promised": (_v5(_element((40_000, 50_000, 60_000))), "needs .* bytes"),
    "promised deflated": (_v5(_deflated(_element((1000, 1000, 1000)))), "needs 2,000,000,000"),
    "claims 4 GB": (_v5(_deflated(_element(claim=2**32 - 1))), "needs 4,294,967,295 bytes"),
    "claims more": (_v5(_deflated(_element(claim=250, values=bytes(250)))), "do not fill 250"),
    "negative": (_v5(_element((-4, -5, 6))), "do not fill"),
    "one axis": (_v5(_element((120,))), "do not fill"),
    "odd type": (_v5(_element(stored=77)), "values of type 77"),
    "name of 4 GB": (_v5(_element(name_claim=2**32 - 1)), "header of a variable is damaged"),
    "many axes": (_v5(_element((1,) * 40)), "header of a variable is damaged"),
    "twice": (_v5(_element(), _deflated(_element())), "two variables called 'cube'"),
    "cells only": (_v5(_element(name=b"a", flags=1), _element(name=b"b", flags=1)), "cell array"),
    "struct": (_v5(_element(flags=2)), "is a struct"),
    "sparse": (_v5(_element(flags=5)), "is a sparse matrix"),
    "complex": (_v5(_element(flags=0x80A)), "complex numbers"),
    "unknown class": (_v5(_element(flags=99)), "unknown class"),
    "v4 backwards": (struct.pack("<5i4s", 0, -1, 24, 0, 4, b"abc"), "not a MATLAB file"),
    "v4 promised": (struct.pack("<5i4s", 0, 1000, 1000, 0, 4, b"abc"), "ends at byte 8,000,024"),
    "v4 name": (struct.pack("<5i4s", 0, 1, 1, 0, 2**30, b"abc"), "name of 1,073,741,824 bytes"),
}


@pytest.mark.parametrize("case", HOSTILE_V5)
def test_refuses_v5(tmp_path: Path, case: str) -> None:
    data, message = HOSTILE_V5[case]
    path = tmp_path / "x.mat"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        open_cube(path)
    assert caught.value.hint


def test_the_hostile_files_are_sound_but_for_their_flaw(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    for element in (_element(), _deflated(_element())):
        path.write_bytes(_v5(element))
        np.testing.assert_array_equal(read_cube(path).values, VALUES)


@settings(deadline=None, max_examples=150)
@given(compress=st.booleans(), changes=st.lists(st.tuples(st.integers(0), st.integers(0, 255))))
def test_damage_is_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, compress: bool, changes: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.mktemp("mat") / "x.mat"
    data = bytearray(_v5((_deflated if compress else bytes)(_element())))
    for place, value in changes:
        data[124 + place % (len(data) - 124)] = value
    path.write_bytes(data)
    try:
        cube = read_cube(path, memory_bytes=10**7)
    except DataError:
        return
    assert cube.values.shape == cube.meta.shape


def _cells(file: h5py.File) -> None:
    for name in ("a", "b"):
        file[f"#refs#/{name}"] = VALUES
        file.create_dataset(name, (1, 1), h5py.ref_dtype)
        file[name].attrs["MATLAB_class"] = np.bytes_("cell")


def _class(name: str, **attributes: object) -> Callable[[h5py.File], None]:
    def make(file: h5py.File) -> None:
        file["cube"] = VALUES
        file["cube"].attrs["MATLAB_class"] = np.bytes_(name)
        file["cube"].attrs.update(attributes)

    return make


def _complex(file: h5py.File) -> None:
    file["cube"] = np.zeros((2, 2, 2), [("real", "f8"), ("imag", "f8")])
    file["cube"].attrs["MATLAB_class"] = np.bytes_("double")


def _struct(file: h5py.File) -> None:
    file["s/field"] = VALUES
    file["s"].attrs["MATLAB_class"] = np.bytes_("struct")


def _far(file: h5py.File) -> None:
    file["cube"] = h5py.ExternalLink("o.h5", "/cube")


HOSTILE_V73 = {
    "cells only": (_cells, "a: is a cell array"),
    "char": (_class("char"), "holds text"),
    "logical": (_class("logical"), "true and false"),
    "class": (_class("datetime"), "class datetime"),
    "empty": (_class("double", MATLAB_empty=np.uint8(1)), "is empty"),
    "complex": (_complex, "complex numbers"),
    "struct": (_struct, "s: is a struct"),
    "external": (_far, "external link"),
}


@pytest.mark.parametrize("case", HOSTILE_V73)
def test_refuses_v73(tmp_path: Path, case: str) -> None:
    make, message = HOSTILE_V73[case]
    path = tmp_path / "x.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        make(file)
    with pytest.raises(DataError, match=message):
        open_cube(path)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_truncated_v73(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "x.mat"
    write_cube(path, Cube.of(VALUES), options={"VERSION": "7.3"})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(DataError):
        read_cube(path)


def test_real_scenes(scenes: Path) -> None:
    jasper = scenes / "jasper_ridge.mat"
    np.testing.assert_array_equal(read_cube(jasper).values, loadmat(jasper)["Y"])
    beach = read_cube(scenes / "abu_beach_v73.mat")
    assert beach.meta.shape == (150, 150, 188)
    with h5py.File(scenes / "abu_beach_v73.mat", "r") as file:
        np.testing.assert_array_equal(beach.values, file["data"][()].T)
