"""What every row of the table of formats promises, checked by iterating over the table."""

from __future__ import annotations

import importlib
import sys
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectralift_cli.core.cube import Cube
from spectralift_cli.core.cubeio import BLOCK_BYTES, row_blocks
from spectralift_cli.core.errors import DataError, OptionError, SpectraliftWarning
from spectralift_cli.core.formats import (
    ALL_FIELDS,
    FORMATS,
    Format,
    create_cube,
    find_format,
    open_cube,
    read_cube,
    write_cube,
)
from tests.strategies import assert_same_cube, cubes

WRITABLE = [row for row in FORMATS if row.creator]
every_format = pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.name)
every_writable = pytest.mark.parametrize("row", WRITABLE, ids=lambda row: row.name)
SMALL = Cube.of(np.arange(6 * 5 * 3, dtype=np.int16).reshape(6, 5, 3), nodata=1)


def output(folder: Path, row: Format) -> Path:
    return folder / f"x{row.suffixes[0]}"


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@every_format
def test_rows_resolve_and_are_told_apart(row: Format) -> None:
    for where in filter(None, (row.opener, row.creator)):
        module, _, function = where.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
    assert row.holds <= ALL_FIELDS
    assert row.help
    assert not row.help.endswith(".")
    for suffix in row.suffixes:
        assert suffix == suffix.lower()
        assert find_format(Path(f"a.b{suffix.upper()}")) is row
    for option in row.options:
        assert option.name == option.name.upper()
        assert option.help


@every_writable
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_round_trip(
    row: Format, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    cube = data.draw(cubes(row.dtypes, row.holds))
    path = output(tmp_path_factory.mktemp(row.name), row)
    files = write_cube(path, cube)
    assert files[0] == path
    assert {p.name for p in files} == {p.name for p in path.parent.iterdir()}
    with open_cube(path) as reader:
        assert reader.format_name == row.name
        assert_same_cube(Cube(reader.read(), reader.meta), cube)


@every_writable
@settings(deadline=None, max_examples=10)
@given(data=st.data())
def test_bytes_and_values_do_not_depend_on_how_rows_are_cut(
    row: Format, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    cube = data.draw(cubes(row.dtypes, row.holds, max_side=9))
    rows, heights = cube.meta.rows, st.integers(1, cube.meta.rows)
    found = []
    for height in (rows, data.draw(heights)):
        folder = tmp_path_factory.mktemp(row.name)
        with create_cube(output(folder, row), cube.meta) as writer:
            for part in row_blocks(rows, height):
                writer.write(part, cube.values[part])
            writer.commit()
        found.append(tree(folder))
    assert found[0].keys() == found[1].keys()
    assert [name for name in found[0] if found[0][name] != found[1][name]] == []
    with open_cube(output(folder, row)) as reader:
        for part in row_blocks(rows, data.draw(heights)):
            np.testing.assert_array_equal(reader.read(part), cube.values[part])


@every_writable
@pytest.mark.parametrize("name", ["all NaN", "largest", "infinite"])
def test_extreme_values(row: Format, name: str, tmp_path: Path) -> None:
    values = np.full((3, 2, 2), np.nan, np.float32)
    if name == "largest":
        values[...] = np.finfo(np.float32).max
    elif name == "infinite":
        values[0] = np.inf
    path = output(tmp_path, row)
    write_cube(path, Cube.of(values))
    with open_cube(path) as reader:
        np.testing.assert_array_equal(reader.read(), values)
        units = reader.read_units()
        assert np.isnan(units[~np.isfinite(values)]).all()


@every_writable
def test_streaming_flags_are_honest(row: Format, tmp_path: Path) -> None:
    """Allocations that Python's libraries make; the benchmarks measure whole processes."""
    values = np.zeros((1280, 256, 256), np.uint8)  # 80 MiB
    meta = Cube.of(values).meta
    few_blocks = 3 * BLOCK_BYTES + 4 * 2**20
    path = output(tmp_path, row)
    # version 5 of .mat, whose rows lie scattered, is held whole up to its limit of 256 MB
    options = {"VERSION": "7.3"} if row.name == "mat" else {}
    tracemalloc.start()
    try:
        with create_cube(path, meta, options=options) as writer:
            for part in row_blocks(meta.rows, 16):
                writer.write(part, values[part])
            writer.commit()
        written = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        with open_cube(path) as reader:
            assert row.reads_rows or not reader.streams
            reader.read(slice(700, 710))
            streams = reader.streams
        read = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    if row.writes_rows:
        assert written < few_blocks, f"{written / 1e6:.1f} MB while writing"
    if streams:
        assert read < few_blocks, f"{read / 1e6:.1f} MB while reading"


@every_writable
def test_option_that_does_not_apply_is_refused(row: Format, tmp_path: Path) -> None:
    path = output(tmp_path, row)
    write_cube(path, SMALL)
    if not row.axis_order:
        with pytest.raises(OptionError, match="--axis-order does not apply"):
            open_cube(path, axis_order="byx")
    if row.variables:
        with pytest.raises(DataError, match="'nothing'"):
            open_cube(path, var="nothing")
    else:
        with pytest.raises(OptionError, match="--var does not apply"):
            open_cube(path, var="cube")
    with pytest.raises(OptionError, match="not a permutation"):
        open_cube(path, axis_order="xx")


@every_writable
def test_creation_options(row: Format, tmp_path: Path) -> None:
    path = output(tmp_path, row)
    with pytest.raises(OptionError, match="no creation option 'COLOUR'"):
        create_cube(path, SMALL.meta, options={"COLOUR": "RED"})
    for option in row.options:
        if option.choices != ("*",):
            with pytest.raises(OptionError, match="is not possible"):
                create_cube(path, SMALL.meta, options={option.name: "-7"})
        for choice in option.choices:
            value = "cube" if choice == "*" else choice.lower()
            assert _some_combination_works(path, row, option.name, value), (option.name, choice)
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def _some_combination_works(path: Path, row: Format, name: str, value: str) -> bool:
    """A level or a predictor may need a compression, or floats; then it says so."""
    compressions = [o.choices for o in row.options if o.name == "COMPRESS" != name]
    for cube in (SMALL, Cube.of(SMALL.values.astype(np.float32))):
        for compression in (None, *(c for choices in compressions for c in choices)):
            options = {name.lower(): value}
            if compression is not None:
                options["COMPRESS"] = compression
            try:
                write_cube(path, cube, options=options, overwrite=True)
            except OptionError as error:
                assert error.hint or error.message
                continue
            np.testing.assert_array_equal(read_cube(path).values, SMALL.values)
            return True
    return False


@every_writable
def test_other_dtypes_are_refused(row: Format, tmp_path: Path) -> None:
    for dtype in ("float16", "int8"):
        if dtype not in row.dtypes:
            with pytest.raises(DataError, match=f"cannot hold {dtype}"):
                write_cube(output(tmp_path, row), Cube.of(np.zeros((2, 2, 2), dtype)))


def test_what_a_format_cannot_hold_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    from spectralift_cli.core import formats

    poor = dataclasses.replace(FORMATS[0], holds=frozenset({"wavelengths"}))
    monkeypatch.setattr(formats, "FORMATS", (poor, *FORMATS[1:]))
    with pytest.warns(SpectraliftWarning, match="npy cannot hold nodata$"):
        create_cube(tmp_path / "x.npy", SMALL.meta).abort()


@pytest.mark.parametrize("row", [r for r in FORMATS if r.extra], ids=lambda row: row.name)
def test_missing_extra_is_named(
    row: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, row.extra, None)
    monkeypatch.delitem(sys.modules, row.creator.partition(":")[0], raising=False)
    with pytest.raises(DataError, match="not installed") as caught:
        write_cube(output(tmp_path, row), SMALL)
    assert f"spectralift-cli[{row.extra}]" in caught.value.hint


@every_writable
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_truncated_files_are_data_errors_or_whole(
    row: Format, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """However much is missing, the reader refuses, or has every value (padding was cut)."""
    folder = tmp_path_factory.mktemp(row.name)
    path = output(folder, row)
    write_cube(path, SMALL)
    name, content = data.draw(st.sampled_from(sorted(tree(folder).items())))
    if not content:
        return
    (folder / name).write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SpectraliftWarning)
            found = read_cube(path)
    except DataError as error:
        assert error.hint
        return
    np.testing.assert_array_equal(found.values, SMALL.values)


# --- inputs that are no cube -----------------------------------------------------------------


def test_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    write_cube(tmp_path / "indian_pines.npy", SMALL)
    with pytest.raises(DataError, match="no such file") as caught:
        open_cube(tmp_path / "indianpines.npy")
    assert caught.value.hint == f"did you mean {tmp_path / 'indian_pines.npy'}?"
    with pytest.raises(DataError) as caught:
        open_cube(tmp_path / "zzz.tif")
    assert caught.value.hint == "check the path"
    with pytest.raises(DataError) as caught:
        open_cube(tmp_path / "nowhere" / "zzz.tif")
    assert "nowhere does not exist" in caught.value.hint


@every_format
def test_empty_and_meaningless_files(row: Format, tmp_path: Path) -> None:
    for suffix in row.suffixes:
        path = tmp_path / f"x{suffix}"
        path.write_bytes(b"")
        with pytest.raises(DataError, match="empty"):
            open_cube(path)
        for content in (b"wavelength,reflectance\n400,0.1\n" * 20, bytes(range(256)) * 8):
            path.write_bytes(content)
            with pytest.raises(DataError):
                read_cube(path)


@every_writable
def test_content_decides_where_the_ending_says_nothing(row: Format, tmp_path: Path) -> None:
    path = output(tmp_path, row)
    write_cube(path, SMALL)
    if row.name == "envi":
        return  # its data file has no mark of its own
    path.rename(tmp_path / "download")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpectraliftWarning)
        np.testing.assert_array_equal(read_cube(tmp_path / "download").values, SMALL.values)


@every_writable
def test_a_row_larger_than_the_memory_allowed_is_refused(row: Format, tmp_path: Path) -> None:
    path = write_cube(output(tmp_path, row), SMALL)[0]
    with pytest.raises(DataError, match=r"more than the 0 MB allowed"):
        open_cube(path, memory_bytes=8)


def test_folders_and_devices(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither a scene nor a Zarr store"):
        open_cube(tmp_path)
    (tmp_path / "scene.json").write_text("{}")
    with pytest.raises(DataError, match="is a scene"):
        open_cube(tmp_path)
    with pytest.raises(DataError, match="not a regular file"):
        open_cube("/dev/null")


def test_unknown_endings(tmp_path: Path) -> None:
    (tmp_path / "x.jpeg").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(DataError, match="not a format that is known") as caught:
        open_cube(tmp_path / "x.jpeg")
    assert ".npy" in caught.value.hint
    with pytest.raises(DataError, match="does not name a format") as caught:
        write_cube(tmp_path / "x.jpeg", SMALL)
    assert ".tif" in caught.value.hint


def test_wavelengths_from_a_file_replace_the_cubes_own(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    write_cube(path, Cube(SMALL.values, SMALL.meta.replace(wavelengths_nm=[1.0, 2.0, 3.0])))
    (tmp_path / "w.txt").write_text("# centre fwhm\n0.40, 0.01\n0.50, 0.01\n0.45, 0.02\n")
    with pytest.warns(SpectraliftWarning, match="micrometres"):
        meta = read_cube(path, wavelengths=tmp_path / "w.txt").meta
    assert meta.wavelengths_nm is not None
    assert meta.fwhm_nm is not None
    np.testing.assert_allclose(meta.wavelengths_nm, [400, 500, 450])
    np.testing.assert_allclose(meta.fwhm_nm, [10, 10, 20])
    (tmp_path / "w.txt").write_text("400\n500\n")
    with pytest.raises(DataError, match="2 values but the cube has 3 bands"):
        read_cube(path, wavelengths=tmp_path / "w.txt")
