"""NumPy's own formats: what numpy writes we read, what we write numpy reads, damage is refused."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectralift_cli.core.cube import Cube
from spectralift_cli.core.errors import DataError, SpectraliftWarning
from spectralift_cli.core.formats import open_cube, read_cube, write_cube
from tests.strategies import assert_same_cube, cubes

VALUES = np.arange(4 * 5 * 3, dtype=np.int16).reshape(4, 5, 3)


def npy_header(shape: str, descr: str = "'<i2'", fortran: str = "False") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"
    padded = text.ljust((len(text) + 10) // 64 * 64 + 64 - 11) + "\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(padded)) + padded.encode()


def patched(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new)


# --- reading what numpy writes ---------------------------------------------------------------


@given(
    st.data(),
    st.sampled_from(["u1", "<i2", ">i2", "<f4", ">f8", "<f2", ">u8"]),
    st.sampled_from(["yxb", "byx", "ybx", "bxy"]),
    st.sampled_from(["npy", "stored", "deflated"]),
    st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_numpys_files_by_rows(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    dtype: str,
    order: str,
    kind: str,
    fortran: bool,
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    shape = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)))
    cube = rng.integers(0, 100, shape).astype(dtype)
    stored = cube.transpose(["yxb".index(axis) for axis in order])
    array = np.asfortranarray(stored) if fortran else np.ascontiguousarray(stored)
    folder = tmp_path_factory.mktemp("numpy")
    path = folder / ("x.npy" if kind == "npy" else "x.npz")
    if kind == "npy":
        np.save(path, array)
    elif kind == "stored":
        np.savez(path, some_name=array)
    else:
        np.savez_compressed(path, some_name=array)
    start = data.draw(st.integers(0, shape[0]))
    stop = data.draw(st.integers(start, shape[0]))
    with open_cube(path, axis_order=order) as reader:
        assert reader.streams == (kind != "deflated")
        assert reader.meta.dtype == np.dtype(dtype).newbyteorder("=")
        np.testing.assert_array_equal(reader.read(slice(start, stop)), cube[start:stop])
        np.testing.assert_array_equal(reader.read(), cube)


def test_metadata_members_of_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(
        path,
        cube=VALUES,
        wavelengths_nm=np.array([500, 400, 600], np.float32),
        bad_bands=np.array([0, 1, 0]),
        labels=np.zeros((4, 5), int),
    )
    meta = read_cube(path).meta
    assert meta.wavelengths_nm is not None
    assert meta.bad_bands is not None
    assert meta.wavelengths_nm.tolist() == [500, 400, 600]
    assert meta.bad_bands.tolist() == [False, True, False]
    # another array of the file is not described by the cube's wavelengths
    labels = read_cube(path, var="labels", axis_order="yx").meta
    assert labels.shape == (4, 5, 1)
    assert labels.wavelengths_nm is None


def test_choice_of_the_variable(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, a=VALUES, b=VALUES, c=np.array(["text"]))
    with pytest.raises(DataError) as caught:
        open_cube(path)
    assert "a 4x5x3, b 4x5x3" in caught.value.message
    assert "--var a" in caught.value.hint
    with pytest.raises(DataError, match="'d'"):
        open_cube(path, var="d")
    assert read_cube(path, var="b").meta.shape == (4, 5, 3)


# --- numpy reads what we write ---------------------------------------------------------------


@given(cubes())
@settings(deadline=None, max_examples=40)
def test_numpy_reads_ours(tmp_path_factory: pytest.TempPathFactory, cube: Cube) -> None:
    folder = tmp_path_factory.mktemp("ours")
    write_cube(folder / "x.npy", cube)
    np.testing.assert_array_equal(np.load(folder / "x.npy"), cube.values)
    write_cube(folder / "x.npz", cube, options={"COMPRESS": "DEFLATE", "LEVEL": "9"})
    with np.load(folder / "x.npz") as archive:  # allow_pickle is off
        np.testing.assert_array_equal(archive["cube"], cube.values)
        assert ("wavelengths_nm" in archive) == (cube.meta.wavelengths_nm is not None)
        if cube.meta.wavelengths_nm is not None:
            np.testing.assert_array_equal(archive["wavelengths_nm"], cube.meta.wavelengths_nm)
        assert all(archive[name].dtype != object for name in archive)
    assert_same_cube(read_cube(folder / "x.npz"), cube, same_crs_text=True)


def test_archive_bears_no_clock_and_is_stored_unless_asked(tmp_path: Path) -> None:
    for options, method in (({}, zipfile.ZIP_STORED), ({"COMPRESS": "DEFLATE"}, 8)):
        path = tmp_path / "x.npz"
        write_cube(path, Cube.of(VALUES, nodata=3), options=options, overwrite=True)
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
            assert [i.filename for i in archive.infolist()] == ["cube.npy", "spectralift.npy"]
            assert {i.date_time for i in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
            assert {i.compress_type for i in archive.infolist()} == {method}


def test_writing_and_streaming_hold_little_of_the_cube(tmp_path: Path) -> None:
    values = np.zeros((2048, 64, 512), np.uint8)  # 64 MiB
    path = tmp_path / "x.npz"
    tracemalloc.start()
    try:
        write_cube(path, Cube.of(values))
        with open_cube(path) as reader:
            reader.read(slice(1000, 1010))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20


# --- the sidecar -----------------------------------------------------------------------------


def test_sidecar_of_another_array_is_ignored_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    write_cube(path, Cube.of(VALUES, wavelengths_nm=[1.0, 2.0, 3.0]))
    np.save(path, VALUES + 1)
    with pytest.warns(SpectraliftWarning, match="does not describe the array"):
        assert read_cube(path).meta.wavelengths_nm is None


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '"x"', '{"a": 1}' + " " * 2**20])
def test_damaged_sidecar_is_ignored_with_a_warning(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.npy"
    np.save(path, VALUES)
    (tmp_path / "x.npy.json").write_text(text)
    with pytest.warns(SpectraliftWarning):
        np.testing.assert_array_equal(read_cube(path).values, VALUES)


# --- damage and malice -----------------------------------------------------------------------


class Bomb:
    """Fails the test if anything unpickles it."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return exec, ("raise SystemExit('unpickled')",)


def npy_of(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


HOSTILE_NPY = {
    "text": (b"wavelength,value\n400,0.1\n", "not a NumPy array"),
    "pickle": (npy_of(np.array([[[Bomb()]]])), "never unpickled"),
    "complex": (npy_of(VALUES.astype(np.complex64)), "complex"),
    "record": (npy_of(np.zeros((2, 2, 2), "i2,f4")), "not a cube's"),
    "truncated": (npy_of(VALUES)[:-1], "needs 120 bytes, the file has 119"),
    "header cut": (npy_of(VALUES)[:40], "damaged"),
    "promises 10^12": (npy_header("(10000, 10000, 10000)") + b"\0" * 64, "2,000,000,000,000"),
    "beyond 64 bits": (npy_header(f"({2**62}, {2**62}, 4)") + b"\0" * 64, "needs"),
    "negative": (npy_header("(-1, 2, 2)") + b"\0" * 64, "negative"),
    "empty": (npy_of(np.zeros((0, 2, 2))), "no values"),
    "2-D": (npy_of(VALUES[0]), "2-D"),
    "4-D": (npy_of(VALUES[None]), "4 axes"),
    "code": (npy_header("__import__('os')") + b"\0" * 64, "damaged"),
    "deep": (npy_header("(" * 3000 + ")" * 3000) + b"\0" * 64, "damaged"),
    "version 9": (patched(npy_of(VALUES), b"NUMPY\1", b"NUMPY\x09"), "damaged"),
}


@pytest.mark.parametrize("name", HOSTILE_NPY)
def test_hostile_npy_and_the_same_inside_an_archive(tmp_path: Path, name: str) -> None:
    data, reason = HOSTILE_NPY[name]
    path = tmp_path / "x.npy"
    path.write_bytes(data)
    with pytest.raises(DataError, match=reason):
        read_cube(path)
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        archive = tmp_path / "x.npz"
        with zipfile.ZipFile(archive, "w", method) as file:
            file.writestr("cube.npy", data)
        with pytest.raises(DataError):
            read_cube(archive)


def test_two_axes_come_with_their_remedy(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", VALUES[:, :, 0])
    with pytest.raises(DataError) as caught:
        open_cube(tmp_path / "x.npy")
    assert "--axis-order yx" in caught.value.hint
    image = read_cube(tmp_path / "x.npy", axis_order="yx")
    np.testing.assert_array_equal(image.values, VALUES[:, :, :1])
    assert read_cube(tmp_path / "x.npy", allow_2d=True).meta.shape == (4, 5, 1)


def archive_of(method: int = zipfile.ZIP_STORED, **members: Any) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, array in members.items():
            archive.writestr(f"{name}.npy", array if isinstance(array, bytes) else npy_of(array))
    return file.getvalue()


def entry(data: bytes, index: int = 0) -> int:
    """Where the central directory's entry of a member begins."""
    at = -1
    for _ in range(index + 1):
        at = data.index(b"PK\1\2", at + 1)
    return at


def with_field(data: bytes, offset: int, code: str, value: int, index: int = 0) -> bytes:
    out = bytearray(data)
    struct.pack_into(code, out, entry(data, index) + offset, value)
    return bytes(out)


def hostile_archives() -> dict[str, tuple[bytes, str]]:
    stored, deflated = archive_of(cube=VALUES), archive_of(zipfile.ZIP_DEFLATED, cube=VALUES)
    size = len(npy_of(VALUES))
    two = archive_of(a=VALUES, b=VALUES)
    second = struct.unpack_from("<L", two, entry(two, 1) + 42)[0]
    # a member that says it inflates to 200 MB
    bomb = npy_header("(1000, 1000, 100)")
    liar = archive_of(zipfile.ZIP_DEFLATED, cube=bomb + b"\0" * 1000)
    liar = with_field(liar, 24, "<L", len(bomb) + 200_000_000)
    return {
        "truncated": (stored[:-30], "end is missing"),
        "cut in the middle": (stored[: len(stored) // 2], "end is missing"),
        "junk": (b"PK\3\4" + b"x" * 200, "end is missing"),
        "directory elsewhere": (stored[:-6] + b"\xff\xff\0\0" + stored[-2:], "archive"),
        "huge directory": (stored[:-10] + b"\xff\xff\xff\x7f" + stored[-6:], "directory takes"),
        "stored crc lies": (with_field(stored, 16, "<L", 1), "CRC"),
        "stored size lies": (with_field(stored, 24, "<L", size + 2), "bytes|read"),
        "stored sizes lie": (
            with_field(with_field(stored, 24, "<L", size + 9999), 20, "<L", size + 9999),
            "beyond byte",
        ),
        "deflated crc lies": (with_field(deflated, 16, "<L", 1), "CRC"),
        "deflated says less": (with_field(deflated, 24, "<L", size - 2), "CRC"),
        "impossible ratio": (liar, "needs 200,000,000 bytes"),
        "encrypted": (with_field(deflated, 8, "<H", 1), "encrypted|password"),
        "bzip2": (archive_of(zipfile.ZIP_BZIP2, cube=VALUES), "method 12"),
        "unknown method": (with_field(deflated, 10, "<H", 97), "method 97"),
        "overlapping": (with_field(two, 42, "<L", second - 10, 1), "beyond byte"),
        "no arrays": (archive_of(), "no 3-D numeric array"),
        "metadata too large": (
            archive_of(zipfile.ZIP_DEFLATED, cube=VALUES, wavelengths_nm=np.zeros(2 * 2**20)),
            "at most",
        ),
        "metadata is a pickle": (archive_of(cube=VALUES, fwhm_nm=np.array([Bomb()])), "unpickled"),
        "metadata is text": (archive_of(cube=VALUES, fwhm_nm=np.array(["a", "b", "c"])), "numbers"),
        "wavelengths of another": (archive_of(cube=VALUES, wavelengths_nm=[1.0]), "1 values"),
    }


HOSTILE_ARCHIVES = hostile_archives()


@pytest.mark.parametrize("name", HOSTILE_ARCHIVES)
def test_hostile_archive(tmp_path: Path, name: str) -> None:
    data, reason = HOSTILE_ARCHIVES[name]
    path = tmp_path / "x.npz"
    path.write_bytes(data)
    with pytest.raises(DataError, match=reason):
        read_cube(path)


def test_compressed_archive_is_held_against_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, cube=np.zeros((100, 1000, 500), np.uint8))
    assert path.stat().st_size < 60_000
    with open_cube(path, memory_bytes=10_000_000) as reader:  # its metadata needs none
        assert reader.meta.shape == (100, 1000, 500)
        with pytest.raises(DataError, match="takes 50 MB, more than the 10 MB"):
            reader.read(slice(0, 1))


@pytest.mark.parametrize("dtype", ["<i4", ">i4"])
def test_checksum_of_a_streamed_cube(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, cube=np.arange(40_000, dtype=dtype).reshape(100, 100, 4))
    with open_cube(path) as reader:
        assert sum(len(block) for _, block in reader.blocks(7)) == 100
    data = bytearray(path.read_bytes())
    data[100_000] ^= 4
    path.write_bytes(data)
    with open_cube(path) as reader:
        reader.read(slice(50, 60))
        with pytest.raises(DataError, match="checksum"):
            list(reader.blocks(7))


def test_zip64_archive_with_a_comment(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.comment = b"made elsewhere"
        with archive.open("cube.npy", "w", force_zip64=True) as member:
            member.write(npy_of(VALUES))
    np.testing.assert_array_equal(read_cube(path).values, VALUES)


SAMPLES = {
    "x.npy": npy_of(VALUES),
    "x.npz": archive_of(cube=VALUES, wavelengths_nm=np.arange(3.0)),
    "y.npz": archive_of(zipfile.ZIP_DEFLATED, cube=VALUES, spectralift=np.array('{"nodata": 1}')),
}


@given(st.sampled_from(sorted(SAMPLES)), st.data())
@settings(deadline=None, max_examples=200)
@pytest.mark.filterwarnings("ignore::spectralift_cli.core.errors.SpectraliftWarning")
def test_any_damage_is_a_data_error_or_none(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    damaged = bytearray(SAMPLES[name])
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    keep = data.draw(st.one_of(st.just(len(damaged)), st.integers(1, len(damaged))))
    path = tmp_path_factory.getbasetemp() / f"damaged-{name}"
    path.write_bytes(damaged[:keep])
    try:
        with open_cube(path, memory_bytes=2**20) as reader:
            reader.read()
    except DataError as error:
        assert str(path) in error.message


def test_real_archives(scenes: Path) -> None:
    for name in ("samson", "cave_balloons"):
        cube = read_cube(scenes / f"{name}.npz")
        with np.load(scenes / f"{name}.npz") as archive:
            np.testing.assert_array_equal(cube.values, archive["cube"])
            assert cube.meta.wavelengths_nm is not None
            np.testing.assert_array_equal(cube.meta.wavelengths_nm, archive["wavelengths_nm"])
