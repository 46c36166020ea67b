"""NumPy's .npy with its metadata in a verified sidecar `x.npy.json`.

The sidecar names the shape, dtype, size and a hash of the array file's head and tail; one that does
not match its array (it was written by something else meanwhile) is ignored with a warning.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tokenize
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from spectralift_cli.core.cube import AnyArray, CubeMeta
from spectralift_cli.core.cubeio import CubeReader, CubeWriter
from spectralift_cli.core.errors import DataError, SpectraliftWarning
from spectralift_cli.core.formats import OpenRequest, arrays
from spectralift_cli.core.formats.rawio import PAGE, RowFile, pread_into
from spectralift_cli.core.outputs import SharedStaging, Staging

_SIDECAR_SCHEMA = "spectralift.npy-sidecar/1"
_HASHED_BYTES = 64 * 1024
# what numpy.lib.format raises for headers that it does not understand
_HEADER_ERRORS = (
    ValueError, EOFError, SyntaxError, TypeError, LookupError, MemoryError, RecursionError,
    tokenize.TokenError,
)  # fmt: skip


def sidecar_path(path: Path) -> Path:
    """Return where the metadata of an array file lies."""
    return path.with_name(path.name + ".json")


def read_header(file: BinaryIO, source: object) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Read an .npy header; return shape, Fortran order, dtype and the offset of the values.

    Raises:
        DataError: it is not an .npy file, or holds objects, records or complex numbers.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
            version, np.lib.format.read_array_header_2_0
        )
        with warnings.catch_warnings():
            # NumPy remarks on Python 2's headers, and evaluating text on odd escapes in it
            warnings.simplefilter("ignore")
            shape, fortran, dtype = read(file)
    except _HEADER_ERRORS as error:
        raise DataError(
            f"{source}: is not a NumPy array file or its header is damaged",
            "write it again with numpy.save",
        ) from error
    if not all(isinstance(n, int) for n in shape):
        raise DataError(
            f"{source}: the header's shape {shape} is not made of whole numbers",
            "write it again with numpy.save",
        )
    return shape, fortran, dtype, file.tell()


class RawReader(CubeReader):
    """Rows of an uncompressed array at an offset in a file, read with pread."""

    def __init__(
        self,
        file: BinaryIO,
        path: Path,
        meta: CubeMeta,
        stored: tuple[tuple[int, ...], np.dtype[Any], bool, int],
        axes: tuple[int, int, int],
        layout: Mapping[str, Any],
    ) -> None:
        super().__init__(path, meta, layout)
        self._file = file
        shape, self._dtype, fortran, self._offset = stored
        # a Fortran array is the C array of its reversed axes
        self._shape = shape[::-1] if fortran else shape
        self._axes = axes
        self._fortran = fortran
        row_axis = len(shape) - 1 - axes[0] if fortran else axes[0]
        self._row_axis = row_axis
        self.row_unit = 1

    def _read(self, start: int, stop: int) -> AnyArray:
        shape, axis = self._shape, self._row_axis
        outer = int(np.prod(shape[:axis], dtype=np.int64))
        inner = int(np.prod(shape[axis + 1 :], dtype=np.int64)) * self._dtype.itemsize
        part = np.empty((outer, (stop - start) * inner), np.uint8)
        for index in range(outer):
            offset = self._offset + (index * shape[axis] + start) * inner
            pread_into(self._file.fileno(), part[index], offset, self.path)
        taken = part.reshape(-1).view(self._dtype)
        array = taken.reshape(*shape[:axis], stop - start, *shape[axis + 1 :])
        if self._fortran:
            array = array.transpose()
        return arrays.to_cube_axes(array, self._axes).astype(self.meta.dtype, copy=False)

    @property
    def files(self) -> tuple[Path, ...]:
        """The array file, and its sidecar if that was used."""
        used = self.layout.get("sidecar")
        return (self.path, sidecar_path(self.path)) if used else (self.path,)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def open_npy(path: Path, request: OpenRequest) -> CubeReader:
    """Open an .npy file; see `open_cube`."""
    file = path.open("rb")
    try:
        shape, fortran, dtype, offset = read_header(file, path)
        native = arrays.check_dtype(dtype, path)
        axes = arrays.cube_axes(shape, request, path)
        there = os.fstat(file.fileno()).st_size - offset
        arrays.check_size(shape, dtype.itemsize, there, path)
        fields = _read_sidecar(path, shape, dtype)
        meta = arrays.meta_from_json(
            arrays.cube_shape(shape, axes), native, fields, sidecar_path(path)
        )
        layout = {
            "stored_shape": list(shape),
            "order": "Fortran" if fortran else "C",
            "byte_order": "big" if dtype.byteorder == ">" else "little",
            "sidecar": sidecar_path(path).name if fields else None,
        }
        return RawReader(file, path, meta, (shape, dtype, fortran, offset), axes, layout)
    except BaseException:
        file.close()
        raise


def _fingerprint(path: Path) -> str:
    """Return the sha256 of a file's first and last 64 KB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(_HASHED_BYTES))
        file.seek(max(0, path.stat().st_size - _HASHED_BYTES))
        digest.update(file.read(_HASHED_BYTES))
    return digest.hexdigest()


def _read_sidecar(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> dict[str, Any]:
    sidecar = sidecar_path(path)
    if not sidecar.is_file():
        return {}
    with sidecar.open("rb") as file:
        fields = arrays.parse_json(file.read(2**20 + 1), sidecar)
    if not fields:
        return {}
    expected = _describe(path, shape, dtype)
    if any(fields.get(key) != value for key, value in expected.items()):
        warnings.warn(
            f"{sidecar}: does not describe the array beside it; it is ignored",
            SpectraliftWarning,
            stacklevel=4,
        )
        return {}
    meta = fields.get("meta")
    return meta if isinstance(meta, dict) else {}


def _describe(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> dict[str, Any]:
    return {
        "schema": _SIDECAR_SCHEMA,
        "shape": list(shape),
        "dtype": dtype.newbyteorder("=").name,
        "size": path.stat().st_size,
        "sha256_head_tail": _fingerprint(path),
    }


class NpyWriter(CubeWriter):
    """An .npy file (C order, little endian) and its sidecar; rows in any order."""

    random_access = True

    def __init__(
        self, path: Path, meta: CubeMeta, overwrite: bool, shared: Path | None = None
    ) -> None:
        super().__init__(path, meta)
        sidecar = sidecar_path(path)
        self._stage: Staging = (
            Staging(path, others=(sidecar,), overwrite=overwrite)
            if shared is None
            else SharedStaging(shared, path, others=(sidecar,), overwrite=overwrite)
        )
        header = {
            "descr": np.lib.format.dtype_to_descr(meta.dtype.newbyteorder("<")),
            "fortran_order": False,
            "shape": meta.shape,
        }
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, header)
        self._offset = head.tell()
        with contextlib.ExitStack() as undo:
            undo.callback(self._stage.abort)
            self._file = RowFile(self._stage.path(), self._offset + meta.nbytes)
            undo.callback(self._file.close)
            self._file.write(np.frombuffer(head.getbuffer(), np.uint8), 0)
            undo.pop_all()
        self.held_bytes = self._file.held_bytes

    def page_offset(self, row: int) -> int:
        """Return where in a page of the file a row begins; see `CubeWriter`."""
        return (self._offset + row * self.meta.row_bytes) % PAGE

    def _write(self, start: int, block: AnyArray) -> None:
        data = np.ascontiguousarray(block, dtype=self.meta.dtype.newbyteorder("<"))
        self._file.write(data, self._offset + start * self.meta.row_bytes)

    def _sync(self) -> None:
        self._file.sync()

    def _commit(self) -> tuple[Path, ...]:
        self._file.close()
        staged = self._stage.path()
        fields = _describe(staged, self.meta.shape, self.meta.dtype)
        fields["meta"] = arrays.meta_to_json(self.meta)
        self._stage.path(sidecar_path(self.path)).write_text(
            arrays.dump_json(fields) + "\n", encoding="utf-8"
        )
        return self._stage.commit()

    def abort(self) -> None:
        """Drop what was written."""
        self._file.close()
        self._stage.abort()


def create_npy(
    path: Path,
    meta: CubeMeta,
    options: Mapping[str, str],
    overwrite: bool,
    shared: Path | None = None,
) -> CubeWriter:
    """Start an .npy file and its sidecar; see `create_cube`."""
    del options  # it has none
    return NpyWriter(path, meta, overwrite, shared)
