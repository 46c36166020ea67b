"""The variables of a MATLAB file of version 4 or 5, by their headers alone.

SciPy decodes the values, but it believes every length it meets: a name or an array that claims
4 GB is allocated, a negative size makes its listing run in circles. So the headers are read here,
with bounds, and SciPy is let loose only on variables that keep their word.

Formats: MathWorks, "MAT-File Format" (R2023b), chapters 1 (level 5) and 2 (level 4).
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats import arrays

_MAX_VARIABLES = 10_000
_MAX_NAME = 1024
_PEEK_BYTES = 4096
_DEFLATE_RATIO = 1032.0
_TEXT_BYTES = 2 * 2**20  # of a char variable that is read as metadata, two bytes a character

_MATRIX, _COMPRESSED = 14, 15
_INT8, _INT32, _UINT32 = 1, 5, 6
_STORED = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
_NUMERIC = {
    6: "float64", 7: "float32", 8: "int8", 9: "uint8", 10: "int16", 11: "uint16", 12: "int32",
    13: "uint32", 14: "int64", 15: "uint64",
}  # fmt: skip
_CHAR, _OPAQUE = 4, 17
# how text is stored: 8-bit, 16-bit and 32-bit characters. SciPy looks other types up in a table
# that has no row for them, and crashes
_STORED_TEXT = frozenset({1, 2, 4, 16, 17, 18})
_OTHERS = {
    1: "is a cell array", 2: "is a struct", 3: "is an object", _CHAR: "holds text",
    5: "is a sparse matrix", 16: "is a function", _OPAQUE: "is an object",
}  # fmt: skip
_V4_TYPES = ("f8", "f4", "i4", "i2", "u2", "u1")
_V4_KINDS = {1: "holds text", 2: "is a sparse matrix"}


@dataclass(frozen=True)
class Variable:
    """A variable as its header describes it.

    Args:
        name: its name.
        kind: what it is if not an array of real numbers ("is a cell array"), else "".
        shape: its dimensions, as MATLAB counts them.
        dtype: type of the values once read, native byte order; None if they are not numbers.
        stored: type of the values in the file, which may be smaller.
        compressed: whether the file holds it deflated.
        value_bytes: bytes of the values in the file, inflated.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None = None
    stored: np.dtype[Any] | None = None
    compressed: bool = False
    value_bytes: int = 0

    @property
    def is_text(self) -> bool:
        """Whether it is text of a size that metadata may have, and as long as it says."""
        length = math.prod(self.shape) if min(self.shape, default=-1) >= 0 else -1
        return self.kind == "holds text" and 0 <= length <= self.value_bytes <= _TEXT_BYTES

    @property
    def nbytes(self) -> int:
        """Bytes of the values in memory while they are read."""
        count = math.prod(self.shape)
        sizes = {t: t.itemsize for t in (self.dtype, self.stored) if t is not None}
        return count * sum(sizes.values())


@dataclass(frozen=True)
class MatFile:
    """A file's version (4 or 5) and variables."""

    version: int
    variables: dict[str, Variable]


def read_index(path: Path) -> MatFile:
    """Read the headers of all variables.

    Raises:
        DataError: it is not a MATLAB file of version 4 or 5, is truncated, or a header promises
            what the file cannot hold.
    """
    with path.open("rb") as file:
        head = file.read(128)
        size = os.fstat(file.fileno()).st_size
        version = _version(head, path)
        if version == 4:
            found = _scan_v4(file, size, path)
        else:
            found = _scan_v5(file, size, "<" if head[126:128] == b"IM" else ">", path)
        variables: dict[str, Variable] = {}
        for variable in found:
            if variable.name in variables:
                raise DataError(
                    f"{path}: holds two variables called {variable.name!r}",
                    "the file is damaged; save it again",
                )
            variables[variable.name] = variable
            if len(variables) > _MAX_VARIABLES:
                raise DataError(
                    f"{path}: holds more than {_MAX_VARIABLES:,} variables", "save the cube alone"
                )
    if not variables:
        raise DataError(f"{path}: holds no variable", "save it again")
    return MatFile(version, variables)


def _version(head: bytes, path: Path) -> int:
    if len(head) >= 20 and 0 in head[:4]:  # level 4 begins with a number below 5000
        return 4
    if len(head) == 128 and head[126:128] in (b"IM", b"MI"):
        (version,) = struct.unpack("<H" if head[126:128] == b"IM" else ">H", head[124:126])
        if version == 0x0100:
            return 5
        if version == 0x0200:
            raise DataError(
                f"{path}: is a MATLAB file of version 7.3 without its HDF5 part",
                "the file is truncated; fetch or save it again",
            )
    raise DataError(
        f"{path}: is not a MATLAB file, or its header of 128 bytes is damaged",
        "save it again with MATLAB or scipy.io.savemat",
    )


def _truncated(path: Path, end: int, size: int) -> DataError:
    return DataError(
        f"{path}: a variable ends at byte {end:,}, the file at byte {size:,}",
        "the file is truncated; fetch or save it again",
    )


def _scan_v4(file: BinaryIO, size: int, path: Path) -> Iterator[Variable]:
    offset = 0
    while offset < size:
        head = os.pread(file.fileno(), 20, offset)
        if len(head) < 20:
            raise _truncated(path, offset + 20, size)
        order = "<" if struct.unpack("<i", head[:4])[0] in range(5000) else ">"
        mopt, rows, cols, imaginary, name_bytes = struct.unpack(order + "5i", head)
        precision, kind = mopt // 10 % 10, mopt % 10
        known = mopt // 1000 == (order == ">") and precision < len(_V4_TYPES) and kind < 3
        if not known or min(rows, cols) < 0 or imaginary not in (0, 1):
            raise DataError(
                f"{path}: is not a MATLAB file, or the variable at byte {offset:,} is damaged",
                "save it again with MATLAB or scipy.io.savemat",
            )
        if not 1 <= name_bytes <= _MAX_NAME:
            raise DataError(
                f"{path}: a variable's name of {name_bytes:,} bytes is not possible",
                "the file is damaged",
            )
        name = os.pread(file.fileno(), name_bytes, offset + 20).split(b"\0")[0].decode("latin-1")
        stored = np.dtype(order + _V4_TYPES[precision])
        nbytes = rows * cols * stored.itemsize * (1 + imaginary)
        offset += 20 + name_bytes + nbytes
        if offset > size:
            raise _truncated(path, offset, size)
        what = _V4_KINDS.get(kind) or ("holds complex numbers" if imaginary else "")
        dtype = None if what else stored.newbyteorder("=")
        yield Variable(name, what, (rows, cols), dtype, stored, value_bytes=nbytes)


def _scan_v5(file: BinaryIO, size: int, order: str, path: Path) -> Iterator[Variable]:
    offset = 128
    while offset < size:
        tag = os.pread(file.fileno(), 8, offset)
        if len(tag) < 8:
            raise _truncated(path, offset + 8, size)
        kind, nbytes = struct.unpack(order + "2I", tag)
        end = offset + 8 + nbytes
        if kind not in (_MATRIX, _COMPRESSED):
            raise DataError(
                f"{path}: holds an element of type {kind} at byte {offset:,} in place of a variable",
                "the file is damaged; save it again",
            )
        if end > size:
            raise _truncated(path, end, size)
        if kind == _COMPRESSED:
            packed = os.pread(file.fileno(), min(nbytes, 2 * _PEEK_BYTES), offset + 8)
            head = _inflate_start(packed, path)
        else:
            head = os.pread(file.fileno(), min(8 + nbytes, _PEEK_BYTES), offset)
        variable = _parse_matrix(head, order, nbytes, kind == _COMPRESSED, path)
        # MATLAB keeps its function workspace in a nameless variable
        if variable is not None and variable.name:
            yield variable
        offset = end


def _inflate_start(packed: bytes, path: Path) -> bytes:
    try:
        return zlib.decompressobj().decompress(packed, _PEEK_BYTES)
    except zlib.error as error:
        raise DataError(
            f"{path}: a compressed variable is damaged ({error})", "fetch or save it again"
        ) from error


class _Elements:
    """The elements of a matrix: tags of 8 bytes and their data, small ones inside the tag."""

    def __init__(self, data: bytes, order: str) -> None:
        self._data = data
        self._order = order
        self._at = 8  # after the matrix's own tag

    def tag(self) -> tuple[int, int, int]:
        """Return type, bytes and start of the next element's data."""
        first, second = struct.unpack_from(self._order + "2I", self._data, self._at)
        if first >> 16:
            kind, nbytes, start = first & 0xFFFF, first >> 16, self._at + 4
            self._at += 8
        else:
            kind, nbytes, start = first, second, self._at + 8
            self._at = start + (nbytes + 7) // 8 * 8
        return kind, nbytes, start

    def data(self, kind: int, most: int) -> bytes:
        """Return the next element's data, of a type and a size that are expected."""
        found, nbytes, start = self.tag()
        if found != kind or nbytes > most or start + nbytes > len(self._data):
            raise ValueError(f"element of type {found} with {nbytes:,} bytes")
        return self._data[start : start + nbytes]


def _parse_matrix(
    head: bytes, order: str, element_bytes: int, compressed: bool, path: Path
) -> Variable | None:
    """Return the variable at the start of a matrix element, None for an empty element."""
    try:
        kind, total = struct.unpack_from(order + "2I", head)
        if kind != _MATRIX:
            raise ValueError(f"element of type {kind}")
        if total == 0:
            return None
        elements = _Elements(head, order)
        (flags, _) = struct.unpack(order + "2I", elements.data(_UINT32, 8))
        matlab_class = flags & 0xFF
        if matlab_class == _OPAQUE:  # has no dimensions, and its name comes first
            return Variable(elements.data(_INT8, _MAX_NAME).decode("latin-1"), "is an object", ())
        dims = elements.data(_INT32, 4 * 32)
        shape = struct.unpack(f"{order}{len(dims) // 4}i", dims)
        name = elements.data(_INT8, _MAX_NAME).decode("latin-1")
        what = _OTHERS.get(
            matlab_class, "" if matlab_class in _NUMERIC else "is of an unknown class"
        )
        if what and matlab_class != _CHAR:
            return Variable(name, what, shape)
        if 0 in shape:
            return Variable(name, "is empty", shape)
        stored_kind, value_bytes, _ = elements.tag()
    except (struct.error, ValueError) as error:
        raise DataError(
            f"{path}: the header of a variable is damaged ({error})", "fetch or save it again"
        ) from error
    source = f"{path}: {name}"
    ratio = _DEFLATE_RATIO if compressed else 1.0
    arrays.check_size((value_bytes,), 1, element_bytes, source, ratio=ratio)
    if matlab_class == _CHAR:
        if stored_kind not in _STORED_TEXT:
            raise DataError(
                f"{source}: text is stored as elements of type {stored_kind}, which are no characters",
                "the file is damaged; fetch or save it again",
            )
        return Variable(name, "holds text", shape, compressed=compressed, value_bytes=value_bytes)
    stored = _STORED.get(stored_kind)
    promised = 0
    if stored is not None and min(shape, default=-1) >= 0:
        itemsize = np.dtype(stored).itemsize
        promised = arrays.check_size(shape, itemsize, value_bytes, source)
    if stored is None or len(shape) < 2 or promised != value_bytes:
        raise DataError(
            f"{source}: {shape} values of type {stored_kind} do not fill {value_bytes:,} bytes",
            "the file is damaged; fetch or save it again",
        )
    dtype = np.dtype(_NUMERIC[matlab_class])
    if flags & 0x800:
        what = "holds complex numbers"
    elif flags & 0x200:
        what, dtype = "holds true and false", np.dtype(bool)
    return Variable(name, what, shape, dtype, np.dtype(stored), compressed, value_bytes)
