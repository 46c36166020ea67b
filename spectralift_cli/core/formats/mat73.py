"""MATLAB files of version 7.3: HDF5 with MATLAB's header, attributes and reversed axes.

MATLAB stores its first axis fastest, so a cube (rows, cols, bands) lies in the file as
(bands, cols, rows). The reader and the writer turn the axes round; `--axis-order` means MATLAB's.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from spectralift_cli.core.cube import AnyArray, CubeMeta
from spectralift_cli.core.cubeio import CubeReader, CubeWriter
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats import OpenRequest, arrays, hdf5_tree
from spectralift_cli.core.formats.hdf5 import DatasetReader, compression, describe
from spectralift_cli.core.formats.hdf5_write import DatasetWriter, chunk_shape

_CLASSES = {
    "float64": "double", "float32": "single", "int8": "int8", "uint8": "uint8", "int16": "int16",
    "uint16": "uint16", "int32": "int32", "uint32": "uint32", "int64": "int64", "uint64": "uint64",
}  # fmt: skip
_ODD_CLASSES = {
    "cell": "is a cell array", "char": "holds text", "logical": "holds true and false",
    "struct": "is a struct", "function_handle": "is a function",
}  # fmt: skip
_SIDE_VALUES = 2**16
_TEXT_VALUES = 2**20

# 116 bytes of text without the clock, no subsystem data, version 7.3, little endian
_TEXT = (
    b"MATLAB 7.3 MAT-file, Platform: spectralift, "
    b"Created on: Thu Jan  1 00:00:00 1970 HDF5 schema 1.00 ."
)
_USER_BLOCK = (_TEXT.ljust(116) + struct.pack("<QH", 0, 0x0200) + b"IM").ljust(512, b"\0")


def full_shape(
    name: str, shape: tuple[int, ...], fields: Mapping[str, Any], request: OpenRequest
) -> tuple[int, ...]:
    """Return a variable's shape with the last axis of 1 that MATLAB drops from one-band cubes.

    Only our own metadata can tell a cube of one band from a matrix, and only where the user has not
    said what the axes are.
    """
    one_band = [*shape, 1]
    ours = fields.get("variable") == name and fields.get("shape") == one_band
    return tuple(one_band) if ours and len(shape) == 2 and request.axis_order is None else shape


def open_v73(path: Path, request: OpenRequest) -> CubeReader:
    """Open a MATLAB 7.3 file; see `open_cube`."""
    file = hdf5_tree.open_file(path)
    try:
        fields = _read_json(file, request, path)

        def shape_of(dataset: h5py.Dataset, name: str) -> tuple[int, ...]:
            return full_shape(name, tuple(dataset.shape[::-1]), fields, request)

        name, _, dataset = hdf5_tree.find_cube(
            file, path, request, check=_check_class, shape_of=shape_of, nested=False
        )
        source = f"{path}: {name}"
        hdf5_tree.check_storage(dataset, request, source)
        natural = shape_of(dataset, name)
        axes = arrays.cube_axes(natural, request, source)
        shape = arrays.cube_shape(natural, axes)
        if dataset.ndim < len(natural):
            axes = (axes[0], axes[1], -1)
        dtype = _check_class(dataset, source)
        sides = _read_sides(file, request, path)
        meta = arrays.meta_from_sides(shape, dtype, name, fields, sides, source)
        layout = {"version": "7.3", **describe(dataset, name), "stored_shape": list(natural)}
        if dataset.chunks is not None:
            layout["chunks"] = list(dataset.chunks[::-1])
        return DatasetReader(dataset, path, meta, axes, layout, request, reversed_axes=True)
    except BaseException:
        file.close()
        raise


def _check_class(dataset: h5py.Dataset, source: str) -> np.dtype[Any]:
    """Return the type of an array's values.

    Raises:
        DataError: MATLAB says that it is something else than a numeric array, or that it is empty.
    """
    matlab_class = hdf5_tree.attribute(dataset, "MATLAB_class")
    numeric = matlab_class is None or matlab_class in _CLASSES.values()
    is_empty = bool(np.any(hdf5_tree.attribute(dataset, "MATLAB_empty") or 0))
    if not numeric or is_empty:
        kind = _ODD_CLASSES.get(str(matlab_class), f"is of class {str(matlab_class)[:40]}")
        raise DataError(
            f"{source}: {'is empty' if is_empty else kind}, a cube is an array of real numbers",
            "choose another variable with --var, or save the array itself: "
            "save('x.mat', 'cube', '-v7.3')",
        )
    return hdf5_tree.check_values(dataset, source)


def _read_json(file: h5py.File, request: OpenRequest, path: Path) -> dict[str, Any]:
    codes = hdf5_tree.read_beside(file, "spectralift", _TEXT_VALUES, request, path)
    if codes is None or codes.dtype.kind != "u" or not codes.size:
        return {}
    text = codes.reshape(-1).astype("<u2").tobytes().decode("utf-16-le", "replace")
    return arrays.parse_json(text, path)


def _read_sides(file: h5py.File, request: OpenRequest, path: Path) -> dict[str, AnyArray]:
    sides = {
        name: hdf5_tree.read_beside(file, name, _SIDE_VALUES, request, path)
        for name in ("wavelengths_nm", "fwhm_nm", "bad_bands")
    }
    return {n: v for n, v in sides.items() if v is not None and v.dtype.kind in "biuf"}


def create_v73(
    path: Path, meta: CubeMeta, variable: str, compress: bool, overwrite: bool
) -> CubeWriter:
    """Start a MATLAB 7.3 file, in chunks of some 1 MB that hold whole spectra.

    Args:
        path: the output.
        meta: of the cube.
        variable: its name, checked.
        compress: deflate the chunks.
        overwrite: replace an existing output.
    """
    chunks = chunk_shape(meta)
    storage = compression({"COMPRESS": "GZIP"} if compress else {}, path)
    sides, text = arrays.sides_of(meta, variable)

    def lay_out(file: h5py.File) -> h5py.Dataset:
        for name, values in sides.items():
            logical = values.dtype.kind == "b"
            column = values.astype("u1" if logical else "<f8")[:, None]  # MATLAB's row vector
            dataset = file.create_dataset(name, data=column, track_times=False)
            _mark(dataset, "logical" if logical else "double", 1 if logical else None)
        codes = np.frombuffer(text.encode("utf-16-le"), "<u2")[:, None]
        _mark(file.create_dataset("spectralift", data=codes, track_times=False), "char", 2)
        cube = file.create_dataset(
            variable, meta.shape[::-1], meta.dtype.newbyteorder("<"), chunks=chunks[::-1],
            track_times=False, **storage,
        )  # fmt: skip
        _mark(cube, _CLASSES[meta.dtype.name])
        return cube

    return DatasetWriter(
        path, meta, lay_out, overwrite,
        chunk_rows=chunks[0], reversed_axes=True, user_block=_USER_BLOCK,
    )  # fmt: skip


def _mark(dataset: h5py.Dataset, matlab_class: str, decode: int | None = None) -> None:
    """Say what MATLAB takes a dataset for; `decode` is how it turns integers into that."""
    dataset.attrs["MATLAB_class"] = np.bytes_(matlab_class)
    if decode is not None:
        dataset.attrs["MATLAB_int_decode"] = np.int32(decode)
