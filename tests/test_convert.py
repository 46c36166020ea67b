"""Recoding and choosing, held against exact arithmetic; provenance of what was asked for."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spectralift_cli.core.convert import Recoding, convert, parse_bands, recode, window_of_bounds
from spectralift_cli.core.cube import Cube, CubeMeta
from spectralift_cli.core.errors import DataError, OptionError
from spectralift_cli.core.formats import open_cube, read_cube, write_cube

INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")


def meta_of(values: np.ndarray[Any, Any], **fields: Any) -> CubeMeta:
    return CubeMeta(shape=values.shape, dtype=values.dtype, **fields)


@settings(deadline=None, max_examples=150)
@given(
    value=st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-(2**65), 2**65).map(float)
    | st.sampled_from([2.0**k + d for k in (7, 8, 15, 16, 31, 32, 63, 64) for d in (-1, 0, 0.5)]),
    name=st.sampled_from(INTEGERS),
)
@example(value=2.0**63, name="int64")  # one more than the type holds, and its nearest float
@example(value=2.0**64, name="uint64")
def test_floats_become_the_nearest_integer_or_an_error(value: float, name: str) -> None:
    values = np.array([[[value]]])
    meta = meta_of(values)
    info = np.iinfo(name)
    expected = round(Fraction(value))  # half to even, exactly
    recoding = Recoding(meta, meta.replace(dtype=np.dtype(name)), rescale=True)
    if info.min <= expected <= info.max:
        assert int(recoding(values)[0, 0, 0]) == expected
    else:
        with pytest.raises(DataError, match=r"1 values between .* do not fit"):
            recoding(values)


@settings(deadline=None, max_examples=150)
@given(data=st.data(), source=st.sampled_from(INTEGERS), target=st.sampled_from(INTEGERS))
def test_integers_are_kept_or_refused(data: st.DataObject, source: str, target: str) -> None:
    low, high = int(np.iinfo(source).min), int(np.iinfo(source).max)
    value = data.draw(st.integers(low, high) | st.sampled_from([low, high]))
    values = np.array([[[value]]], source)
    recoding = Recoding(meta_of(values), meta_of(values.astype(target)), rescale=False)
    if np.iinfo(target).min <= value <= np.iinfo(target).max:
        assert int(recoding(values)[0, 0, 0]) == value
    else:
        with pytest.raises(DataError, match="do not fit"):
            recoding(values)


def test_units_stay_and_holes_are_masked_before_scaling(tmp_path: Path) -> None:
    stored = np.array([[[100, -9999, 250], [0, 1, -9999]]], np.int16)
    path = tmp_path / "a.npy"
    write_cube(path, Cube.of(stored, nodata=-9999, scale=0.01, offset=1.0))
    with recode(open_cube(path), dtype="uint16", scale=0.001, offset=0.0, nodata=0) as reader:
        assert reader.read().tolist() == [[[2000, 0, 3500], [1000, 1010, 0]]]
        np.testing.assert_allclose(
            reader.read_units(), [[[2.0, np.nan, 3.5], [1.0, 1.01, np.nan]]], rtol=1e-6
        )
    # a valid value that rounding puts onto nodata moves by one count; one that was there is refused
    with recode(open_cube(path), scale=0.01, offset=1.0, nodata=100) as reader:
        assert reader.read()[0, 0].tolist() == [101, 100, 250]
    with (
        recode(open_cube(path), nodata=250) as reader,
        pytest.raises(DataError, match="1 valid values equal the new nodata value 250"),
    ):
        reader.read()


def test_holes_need_a_mark() -> None:
    values = np.array([[[1.0, np.nan]]])
    meta = meta_of(values)
    with pytest.raises(DataError, match="holes") as caught:
        Recoding(meta, meta.replace(dtype=np.dtype("int16")), rescale=True)(values)
    assert "--nodata -32768" in caught.value.hint


def test_fractions_are_not_dropped_unasked(tmp_path: Path) -> None:
    write_cube(tmp_path / "a.npy", Cube.of(np.full((1, 1, 1), 0.5)))
    with open_cube(tmp_path / "a.npy") as reader, pytest.raises(OptionError, match="fractions"):
        recode(reader, dtype="uint8")


def test_bands_by_number_and_by_nanometres() -> None:
    centres = [400.0, 500.0, 600.0, 590.0, 700.0]  # a detector overlap
    meta = CubeMeta((1, 1, 5), np.dtype("u1"), wavelengths_nm=np.array(centres))
    assert parse_bands("5,1-2", meta) == [4, 0, 1]
    assert parse_bands("595nm-710NM, 410nm", meta) == [2, 4, 0]
    for text in ("0", "6", "3-2", "", "1-", "nm"):
        with pytest.raises(DataError):
            parse_bands(text, meta)


@settings(deadline=None, max_examples=60)
@given(
    row=st.integers(0, 6), col=st.integers(0, 4), south_up=st.booleans(),
    inset=st.sampled_from([0.01, 0.3, 0.49]),
)  # fmt: skip
def test_bounds_of_pixels_give_these_pixels(
    row: int, col: int, south_up: bool, inset: float
) -> None:
    e = 10.0 if south_up else -10.0
    meta = CubeMeta((7, 5, 1), np.dtype("u1"), transform=(20.0, 0, 1000.0, 0, e, 500.0))
    height, width = 7 - row, 5 - col
    x = sorted((1000 + 20 * (col + inset), 1000 + 20 * (col + width - inset)))
    y = sorted((500 + e * (row + inset), 500 + e * (row + height - inset)))
    assert window_of_bounds(meta, (x[0], y[0], x[1], y[1])) == (row, col, height, width)


@pytest.mark.parametrize("suffix", [".npy", ".h5", ".hdr", ".tif"])
def test_provenance_says_all_that_was_asked_for(tmp_path: Path, suffix: str) -> None:
    np.savez(tmp_path / "two.npz", a=np.zeros((3, 2, 4), "f4"), b=np.ones((3, 2, 4), "f4"))
    (tmp_path / "nm.txt").write_text("400\n500\n600\n")
    reader = open_cube(
        tmp_path / "two.npz", var="b", axis_order="byx", wavelengths=tmp_path / "nm.txt"
    )
    output = tmp_path / f"out{suffix}"
    convert(reader, output, scale=1.0, offset=0.0, nodata=math.nan)
    meta = read_cube(output).meta
    assert meta.shape == (2, 4, 3)
    assert meta.provenance is not None
    options = meta.provenance["steps"][-1]["options"]
    digest = options.pop("wavelengths")["sha256"]
    assert len(digest) == 64
    assert options == {
        "var": "b", "axis_order": "byx", "scale": 1.0, "offset": 0.0, "nodata": "nan"
    }  # fmt: skip
