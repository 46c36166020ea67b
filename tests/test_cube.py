"""Laws of the cube's contracts: blocks of rows, selections, units."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectralift_cli.core.cube import Cube, CubeMeta, to_units, valid_mask
from spectralift_cli.core.cubeio import CubeReader, CubeWriter, SelectedReader, row_blocks
from spectralift_cli.core.errors import DataError
from tests.strategies import TRANSFORM, cubes


class MemoryReader(CubeReader):
    def __init__(self, cube: Cube) -> None:
        super().__init__(Path("memory"), cube.meta)
        self.values = cube.values
        self.closed = False

    def _read(self, start: int, stop: int) -> Any:
        return self.values[start:stop]

    def close(self) -> None:
        self.closed = True


class RecordingWriter(CubeWriter):
    """Keeps every block it is handed, and fails where a test asks it to."""

    def __init__(self, meta: CubeMeta, block_rows: int, random_access: bool = False) -> None:
        super().__init__(Path("memory"), meta, block_rows)
        self.random_access = random_access
        self.blocks: list[tuple[int, Any]] = []
        self.fails = False
        self.aborted = False

    def _write(self, start: int, block: Any) -> None:
        if self.fails:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.blocks.append((start, block.copy()))

    def _commit(self) -> tuple[Path, ...]:
        if self.fails:
            raise OSError(errno.ENOSPC, "No space left on device")
        return (self.path,)

    def abort(self) -> None:
        self.aborted = True


def cuts(rows: int) -> st.SearchStrategy[list[slice]]:
    """Ways to cut rows into consecutive blocks."""
    return st.sets(st.integers(1, rows), max_size=rows).map(
        lambda inner: [
            slice(a, b)
            for a, b in zip(
                [0, *sorted(inner - {rows})], [*sorted(inner - {rows}), rows], strict=True
            )
        ]
    )


@given(st.data(), st.integers(1, 30), st.integers(1, 12))
@settings(deadline=None, max_examples=80)
def test_ordered_writer_passes_on_whole_blocks_however_rows_are_cut(
    data: st.DataObject, rows: int, block_rows: int
) -> None:
    values = np.arange(rows * 2, dtype=np.int32).reshape(rows, 2, 1)
    writer = RecordingWriter(Cube.of(values).meta, block_rows)
    for part in data.draw(cuts(rows)):
        buffer = values[part].copy()
        writer.write(part, buffer)
        buffer[...] = -1  # a caller may reuse its buffer
    assert [start for start, _ in writer.blocks] == list(range(0, rows, block_rows))
    assert all(len(b) == block_rows for _, b in writer.blocks[:-1])
    np.testing.assert_array_equal(np.concatenate([b for _, b in writer.blocks]), values)
    assert writer.commit() == (writer.path,)


@given(st.data(), st.integers(1, 12))
@settings(deadline=None, max_examples=40)
def test_random_access_writer_takes_rows_in_any_order(data: st.DataObject, rows: int) -> None:
    values = np.arange(rows * 2, dtype=np.int32).reshape(rows, 2, 1)
    writer = RecordingWriter(Cube.of(values).meta, 4, random_access=True)
    out = np.zeros_like(values)
    for part in data.draw(cuts(rows).flatmap(st.permutations)):
        writer.write(part, values[part])
    for start, block in writer.blocks:
        out[start : start + len(block)] = block
    np.testing.assert_array_equal(out, values)


def test_writer_refuses_wrong_order_shape_dtype_and_missing_rows() -> None:
    values = np.zeros((4, 2, 1), np.int32)
    writer = RecordingWriter(Cube.of(values).meta, 2)
    with pytest.raises(ValueError, match="row 0 is due, row 2 was given"):
        writer.write(slice(2, 4), values[2:])
    with pytest.raises(ValueError, match=r"\(2, 2, 1\) of int64"):
        writer.write(slice(0, 2), values[:2].astype(np.int64))
    with pytest.raises(ValueError, match=r"\(4, 2, 1\)"):
        writer.write(slice(0, 2), values)
    writer.write(slice(0, 2), values[:2])
    with pytest.raises(ValueError, match="2 of 4 rows were never written"):
        writer.commit()


def test_full_disk_is_a_data_error() -> None:
    values = np.zeros((4, 2, 1), np.int32)
    writer = RecordingWriter(Cube.of(values).meta, 4)
    writer.fails = True
    with pytest.raises(DataError, match="No space left"):
        writer.write(slice(None), values)


def test_disk_that_fills_up_at_the_end_is_a_data_error() -> None:
    values = np.zeros((4, 2, 1), np.int32)
    writer = RecordingWriter(Cube.of(values).meta, 4)
    writer.write(slice(None), values)
    writer.fails = True
    with pytest.raises(DataError, match="No space left"):
        writer.commit()
    assert writer.aborted


def test_failing_disk_is_a_data_error_on_reading() -> None:
    class Failing(MemoryReader):
        def _read(self, start: int, stop: int) -> Any:
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(DataError, match="Input/output error"):
        Failing(Cube.of(np.zeros((2, 2, 1), np.int16))).read()


@given(st.data(), cubes(max_side=6))
@settings(deadline=None, max_examples=60)
def test_reading_by_any_blocks_gives_the_whole(data: st.DataObject, cube: Cube) -> None:
    reader = MemoryReader(cube)
    height = data.draw(st.integers(1, 8))
    whole = np.concatenate([block for _, block in reader.blocks(height)])
    np.testing.assert_array_equal(whole, cube.values)
    start = data.draw(st.integers(-8, 8))
    stop = data.draw(st.integers(-8, 8))
    np.testing.assert_array_equal(reader.read(slice(start, stop)), cube.values[start:stop])


@given(st.data(), cubes())
@settings(deadline=None, max_examples=60)
def test_selection_is_numpy_indexing(data: st.DataObject, cube: Cube) -> None:
    rows, cols, bands = cube.meta.shape
    row, col = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, cols - 1))
    height, width = data.draw(st.integers(1, rows - row)), data.draw(st.integers(1, cols - col))
    chosen = data.draw(st.lists(st.integers(0, bands - 1), min_size=1, max_size=4))
    source = MemoryReader(cube)
    with SelectedReader(source, chosen, (row, col, height, width)) as selected:
        expected = cube.values[row : row + height, col : col + width][:, :, chosen]
        np.testing.assert_array_equal(selected.read(), expected)
        np.testing.assert_array_equal(selected.read(slice(0, 1)), expected[:1])
        units = cube.units()[row : row + height, col : col + width][:, :, chosen]
        np.testing.assert_array_equal(selected.read_units(), units)
        if cube.meta.wavelengths_nm is not None:
            assert selected.meta.wavelengths_nm is not None
            np.testing.assert_array_equal(
                selected.meta.wavelengths_nm, cube.meta.wavelengths_nm[chosen]
            )
    assert source.closed


def test_window_moves_the_transform_to_its_corner() -> None:
    rotated = (2.0, 0.5, 100.0, -0.25, -3.0, 50.0)
    for transform in (TRANSFORM, rotated):
        a, b, c, d, e, f = transform
        meta = Cube.of(np.zeros((9, 9, 1), np.uint8), transform=transform).meta
        moved = meta.window(3, 5, 2, 2).transform
        assert moved is not None
        assert (moved[2], moved[5]) == (a * 5 + b * 3 + c, d * 5 + e * 3 + f)


@pytest.mark.parametrize("window", [(0, 0, 4, 1), (-1, 0, 1, 1), (0, 0, 0, 1), (2, 2, 2, 1)])
def test_selection_refuses_windows_outside(window: tuple[int, int, int, int]) -> None:
    with pytest.raises(DataError, match="3 x 3 pixels"):
        SelectedReader(MemoryReader(Cube.of(np.zeros((3, 3, 2), np.uint8))), None, window)


@pytest.mark.parametrize("bands", [[], [2], [-1]])
def test_selection_refuses_bands_outside(bands: list[int]) -> None:
    with pytest.raises(DataError, match="2 bands"):
        SelectedReader(MemoryReader(Cube.of(np.zeros((3, 3, 2), np.uint8))), bands)


@given(cubes())
@settings(deadline=None, max_examples=80)
def test_units_mask_nodata_before_scaling(cube: Cube) -> None:
    units = to_units(cube.values, cube.meta)
    scale = np.broadcast_to(cube.meta.scale, cube.meta.bands)
    offset = np.broadcast_to(cube.meta.offset, cube.meta.bands)
    nodata = cube.meta.nodata
    with np.errstate(over="ignore", invalid="ignore"):
        for index in np.ndindex(cube.values.shape):
            stored = cube.values[index]
            hole = bool(stored != stored) or not np.isfinite(stored)
            hole |= nodata is not None and stored == cube.values.dtype.type(nodata)
            assert valid_mask(cube.values, cube.meta)[index] == (not hole)
            if hole:
                assert np.isnan(units[index])
            elif cube.meta.is_scaled:
                expected = np.float32(float(stored) * scale[index[2]] + offset[index[2]])
                np.testing.assert_allclose(units[index], expected, rtol=1e-6, atol=1e-9)
            else:
                assert units[index] == np.float32(stored)


def test_a_valid_value_that_scales_onto_nodata_stays() -> None:
    cube = Cube.of(np.array([[[2, 4]]], np.int16), nodata=2, scale=0.5)
    np.testing.assert_array_equal(cube.units(), [[[np.nan, 2.0]]])


def test_nodata_beyond_float32_is_a_hole_without_a_remark() -> None:
    lowest = float(np.finfo(np.float64).min)  # GDAL's usual mark
    for scale in (1.0, 10.0):
        cube = Cube.of(np.array([[[lowest, 2.0]]]), nodata=lowest, scale=scale)
        np.testing.assert_array_equal(cube.units(), [[[np.nan, 2.0 * scale]]])


def bad_fields() -> Iterator[tuple[str, Any]]:
    yield "wavelengths_nm", [400.0]
    yield "wavelengths_nm", [400.0, np.nan]
    yield "wavelengths_nm", [400.0, -1.0]
    yield "fwhm_nm", [1.0, 2.0, 3.0]
    yield "bad_bands", [True]
    yield "nodata", 300
    yield "nodata", 1.5
    yield "nodata", np.nan
    yield "scale", 0.0
    yield "scale", np.inf
    yield "scale", [1.0, 0.0]
    yield "offset", [1.0]
    yield "offset", np.nan
    yield "transform", (1, 2, 3)
    yield "transform", (1, 0, 0, 0, np.nan, 0)
    yield "band_names", ("only one",)


@pytest.mark.parametrize(("name", "value"), list(bad_fields()))
def test_metadata_that_does_not_fit_is_refused(name: str, value: Any) -> None:
    with pytest.raises(DataError):
        Cube.of(np.zeros((2, 2, 2), np.uint8), **{name: value})


@pytest.mark.parametrize("shape", [(0, 1, 1), (1, 1), (1, 1, 1, 1)])
def test_shapes_without_values_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="at least 1"):
        CubeMeta(shape=shape, dtype=np.dtype("u1"))  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize("dtype", ["complex64", "bool", "U3", "O", "M8[s]"])
def test_dtypes_that_are_not_a_cubes_are_refused(dtype: str) -> None:
    with pytest.raises(DataError, match="not supported"):
        CubeMeta(shape=(1, 1, 1), dtype=np.dtype(dtype))


def test_row_blocks_cover_every_row_once() -> None:
    assert [list(range(10))[s] for s in row_blocks(10, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert list(row_blocks(2, 0)) == [slice(0, 1), slice(1, 2)]
