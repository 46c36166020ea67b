"""NumPy's .npz: a zip archive of .npy members, `cube` and its metadata.

A stored (uncompressed) cube is read by rows at its place in the archive; a deflated one has to be
inflated whole. An archive is as hostile as any file: sizes it names are held against the bytes
that are there before anything is allocated, and pickled members are never loaded.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from spectralift_cli.core.cube import AnyArray, CubeMeta
from spectralift_cli.core.cubeio import BLOCK_BYTES, CubeReader, CubeWriter
from spectralift_cli.core.errors import DataError, OptionError
from spectralift_cli.core.formats import OpenRequest, arrays
from spectralift_cli.core.formats.npy import RawReader, read_header
from spectralift_cli.core.outputs import Staging

# deflate turns at most 1,032 bytes into one
_DEFLATE_RATIO = 1032.0
_HEADER_BYTES = 16 * 1024  # NumPy refuses headers above 10,000 characters
_SIDE_BYTES = 8 * 2**20  # of an inflated metadata member
_MAX_MEMBERS = 4096
_DIRECTORY_BYTES = 4 * 2**20
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_METHODS = {zipfile.ZIP_STORED: "none", zipfile.ZIP_DEFLATED: "deflate"}
# what zipfile raises for archives that are damaged, encrypted or of a newer version
_ZIP_ERRORS = (
    zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, OverflowError, EOFError,
    struct.error, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class _Member:
    """An .npy member: its zip entry and what its header says."""

    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    header: bytes

    @property
    def promised(self) -> int:
        count = 1
        for n in self.shape:
            count *= n
        return count * self.dtype.itemsize


@contextlib.contextmanager
def _as_data_error(source: object) -> Iterator[None]:
    try:
        yield
    except _ZIP_ERRORS as error:
        reason = str(error) or type(error).__name__
        raise DataError(
            f"{source}: the archive cannot be read ({reason})",
            "the file is truncated or damaged; write it again with numpy.savez",
        ) from error


def _check_directory(file: BinaryIO, path: Path) -> int:
    """Return the file's size after bounding its directory, which zipfile loads whole.

    Raises:
        DataError: the end record is missing, or names a directory of more than 4 MiB.
    """
    size = os.fstat(file.fileno()).st_size
    start = max(0, size - 22 - 0xFFFF)
    tail = os.pread(file.fileno(), size - start, start)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < 22:
        raise DataError(
            f"{path}: is not a zip archive, or its end is missing ({size:,} bytes)",
            "the file is truncated; fetch or write it again",
        )
    (directory,) = struct.unpack_from("<L", tail, at + 12)
    locator = start + at - 20
    if locator >= 56:
        mark, _, named, _ = struct.unpack("<4sLQL", os.pread(file.fileno(), 20, locator))
        # zipfile has taken the record from before its locator or, lately, from where that points
        places = (locator - 56, named) if mark == b"PK\6\7" else ()
        records = [os.pread(file.fileno(), 56, place) for place in places if place < size]
        sizes = [
            int.from_bytes(record[40:48], "little")
            for record in records
            if len(record) == 56 and record[:4] == b"PK\6\6"
        ]
        directory = max(sizes, default=directory)
    if directory > _DIRECTORY_BYTES:
        raise DataError(
            f"{path}: the archive's directory takes {directory:,} bytes, "
            f"at most {_DIRECTORY_BYTES:,} are read",
            "save the cube alone with numpy.savez(path, cube=...)",
        )
    return size


def _check_entries(archive: zipfile.ZipFile, size: int, path: Path) -> None:
    """Refuse members that overlap or leave the file: the ways to make a small file a large bomb."""
    entries = sorted(archive.infolist(), key=lambda info: info.header_offset)
    if len(entries) > _MAX_MEMBERS:
        raise DataError(
            f"{path}: the archive has {len(entries):,} members, at most {_MAX_MEMBERS:,} are read",
            "save the cube alone with numpy.savez(path, cube=...)",
        )
    limits = [info.header_offset for info in entries[1:]] + [size]
    for info, limit in zip(entries, limits, strict=False):  # no member, one limit
        end = info.header_offset + _LOCAL_HEADER.size + info.compress_size
        if info.header_offset < 0 or end > limit:
            raise DataError(
                f"{path}: the member {info.filename!r} ends at byte {end:,}, "
                f"beyond byte {limit:,}, where it has to",
                "the file is truncated or damaged",
            )


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, source: str) -> _Member:
    if info.compress_type not in _METHODS:
        raise DataError(
            f"{source}: is compressed by method {info.compress_type}, which is not read here",
            "save it again with numpy.savez or numpy.savez_compressed",
        )
    with _as_data_error(source), archive.open(info) as stream:
        head = stream.read(_HEADER_BYTES)
    shape, fortran, dtype, offset = read_header(io.BytesIO(head), source)
    return _Member(info, shape, fortran, dtype, head[:offset])


def _check_member(member: _Member, source: str) -> None:
    """Hold the sizes in the header, in the archive's directory and in the file together.

    Raises:
        DataError: the three disagree.
    """
    info = member.info
    there = info.file_size - len(member.header)
    arrays.check_size(member.shape, member.dtype.itemsize, there, source)
    deflated = info.compress_type == zipfile.ZIP_DEFLATED
    ratio = _DEFLATE_RATIO if deflated else 1.0
    arrays.check_size(member.shape, member.dtype.itemsize, info.compress_size, source, ratio=ratio)
    if member.promised != there or (not deflated and info.compress_size != info.file_size):
        raise DataError(
            f"{source}: {member.shape} of {member.dtype.name} needs {member.promised:,} bytes, "
            f"the member has {there:,}",
            "the file is damaged; write it again with numpy.savez",
        )


def _load(archive: zipfile.ZipFile, member: _Member, source: str) -> AnyArray:
    """Inflate a checked member; zipfile verifies its checksum and never passes its size."""
    values = np.empty(member.promised, np.uint8)
    view = values.data
    filled = 0
    with _as_data_error(source), archive.open(member.info) as stream:
        stream.read(len(member.header))
        while part := stream.read(2**20):
            view[filled : filled + len(part)] = part
            filled += len(part)
    if filled != member.promised:
        raise DataError(
            f"{source}: holds {filled:,} of {member.promised:,} bytes", "the file is truncated"
        )
    return values.view(member.dtype).reshape(member.shape, order="F" if member.fortran else "C")


_IN_FILE_ORDER = ((0, 1, 2), (0, 1, -1))


class _StoredReader(RawReader):
    """Rows of an uncompressed member; its checksum is verified by whoever reads it in order."""

    def __init__(self, member: _Member, *args: Any) -> None:
        super().__init__(*args)
        self._expected_crc = member.info.CRC
        self._crc = zlib.crc32(member.header)
        # only where rows follow each other in the file do blocks of rows make up its checksum
        contiguous = self._row_axis == 0 and not self._fortran and self._axes in _IN_FILE_ORDER
        self._due = 0 if contiguous else -1

    def _read(self, start: int, stop: int) -> AnyArray:
        block = super()._read(start, stop)
        if start == self._due:
            as_stored = np.ascontiguousarray(block, dtype=self._dtype)
            self._crc = zlib.crc32(as_stored.view(np.uint8).data, self._crc)
            self._due = stop
            if stop == self.meta.rows:
                self._due = -1
                if self._crc != self._expected_crc:
                    raise DataError(
                        f"{self.path}: the values' checksum is {self._crc:08x}, "
                        f"the archive says {self._expected_crc:08x}",
                        "the file is damaged; fetch or write it again",
                    )
        return block


class _DeflatedReader(CubeReader):
    """A compressed member, inflated whole when its first row is asked for."""

    streams = False

    def __init__(
        self,
        file: BinaryIO,
        archive: zipfile.ZipFile,
        member: _Member,
        source: str,
        path: Path,
        meta: CubeMeta,
        axes: tuple[int, int, int],
        request: OpenRequest,
        layout: Mapping[str, Any],
    ) -> None:
        super().__init__(path, meta, layout)
        self._file = file
        self._archive = archive
        self._member = member
        self._source = source
        self._axes = axes
        self._request = request
        self._values: AnyArray | None = None

    def _read(self, start: int, stop: int) -> AnyArray:
        if self._values is None:
            arrays.check_memory(self._member.promised, self._request, self._source)
            whole = _load(self._archive, self._member, self._source)
            self._values = arrays.to_cube_axes(whole, self._axes)
        return self._values[start:stop].astype(self.meta.dtype)

    def close(self) -> None:
        """Close the archive and forget its values."""
        self._values = None
        self._archive.close()
        self._file.close()


def open_npz(path: Path, request: OpenRequest) -> CubeReader:
    """Open an .npz file; see `open_cube`."""
    file = path.open("rb")
    try:
        size = _check_directory(file, path)
        with _as_data_error(path):
            archive = zipfile.ZipFile(file)
        _check_entries(archive, size, path)
        name, member = _choose(archive, request, path)
        source = f"{path}:{name}"
        native = arrays.check_dtype(member.dtype, source)
        axes = arrays.cube_axes(member.shape, request, source)
        _check_member(member, source)
        fields = _read_fields(archive, name, path)
        meta = arrays.meta_from_json(arrays.cube_shape(member.shape, axes), native, fields, path)
        layout = {
            "variable": name,
            "stored_shape": list(member.shape),
            "order": "Fortran" if member.fortran else "C",
            "byte_order": "big" if member.dtype.byteorder == ">" else "little",
            "compression": _METHODS[member.info.compress_type],
        }
        if member.info.compress_type != zipfile.ZIP_STORED:
            return _DeflatedReader(file, archive, member, source, path, meta, axes, request, layout)
        offset = _data_offset(file, member, size, source)
        stored = (member.shape, member.dtype, member.fortran, offset)
        return _StoredReader(member, file, path, meta, stored, axes, layout)
    except BaseException:
        file.close()
        raise


def _choose(archive: zipfile.ZipFile, request: OpenRequest, path: Path) -> tuple[str, _Member]:
    members: dict[str, _Member] = {}
    refused: dict[str, DataError] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name == info.filename or name in arrays.META_NAMES:
            continue
        try:
            member = _read_member(archive, info, f"{path}:{name}")
            arrays.check_dtype(member.dtype, f"{path}:{name}")
        except DataError as error:
            refused[name] = error
        else:
            members[name] = member
    wanted = request.var or next((n for n in arrays.CUBE_NAMES if n in refused), None)
    if wanted in refused:
        raise refused[wanted]
    if refused and not members:
        raise next(iter(refused.values()))
    name = arrays.choose_variable({n: m.shape for n, m in members.items()}, request, path)
    return name, members[name]


def _data_offset(file: BinaryIO, member: _Member, size: int, source: str) -> int:
    """Return where a stored member's values begin, by its local header.

    Raises:
        DataError: the local header contradicts the archive's directory.
    """
    at = member.info.header_offset
    local = os.pread(file.fileno(), _LOCAL_HEADER.size, at)
    if len(local) == _LOCAL_HEADER.size and local[:4] == b"PK\3\4":
        fields = _LOCAL_HEADER.unpack(local)
        start: int = at + _LOCAL_HEADER.size + fields[9] + fields[10]
        head = os.pread(file.fileno(), len(member.header), start)
        if fields[3] == 0 and head == member.header and start + member.info.file_size <= size:
            return start + len(head)
    raise DataError(
        f"{source}: its place in the archive, byte {at:,}, holds something else",
        "the file is damaged; write it again with numpy.savez",
    )


def _read_fields(archive: zipfile.ZipFile, chosen: str, path: Path) -> dict[str, Any]:
    """Return the metadata members; they describe `cube`, not another array beside it."""
    entries = {info.filename: info for info in archive.infolist()}
    if chosen not in arrays.CUBE_NAMES and any(f"{n}.npy" in entries for n in arrays.CUBE_NAMES):
        return {}
    fields: dict[str, Any] = {}
    for name in ("spectralift", "bad_bands", "fwhm_nm", "wavelengths_nm"):
        if f"{name}.npy" not in entries:
            continue
        source = f"{path}:{name}"
        value = _side_array(archive, entries[f"{name}.npy"], source)
        if name == "spectralift":
            if value.dtype.kind not in "US" or value.size != 1:
                raise DataError(f"{source}: is not a text", "write the file again")
            text = value.reshape(-1)[0]
            fields |= arrays.parse_json(text if isinstance(text, bytes) else str(text), source)
        elif value.dtype.kind in "biuf" and value.size:
            fields[name] = value
        elif value.size:
            raise DataError(f"{source}: holds {value.dtype.name}, not numbers", "mend the member")
    return fields


def _side_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, source: str) -> AnyArray:
    if info.file_size > _SIDE_BYTES:
        raise DataError(
            f"{source}: takes {info.file_size:,} bytes, at most {_SIDE_BYTES:,} are read",
            "is it the member that its name says?",
        )
    member = _read_member(archive, info, source)
    if member.dtype.hasobject:
        arrays.check_dtype(member.dtype, source)
    _check_member(member, source)
    return _load(archive, member, source) if member.promised else np.empty(0)


def small_arrays(path: Path) -> dict[str, AnyArray]:
    """Return the numeric members of at most 8 MB each by name; the others are passed over.

    Raises:
        DataError: the archive is damaged, or these take more than 64 MB together.
    """
    found: dict[str, AnyArray] = {}
    with path.open("rb") as file:
        size = _check_directory(file, path)
        with _as_data_error(path):
            archive = zipfile.ZipFile(file)
        _check_entries(archive, size, path)
        small = [info for info in archive.infolist() if info.file_size <= _SIDE_BYTES]
        total = sum(info.file_size for info in small)
        if total > 8 * _SIDE_BYTES:
            raise DataError(
                f"{path}: holds {total:,} bytes of small arrays, at most {8 * _SIDE_BYTES:,} are "
                "read",
                "save the arrays that are meant alone",
            )
        for info in small:
            name = info.filename.removesuffix(".npy")
            if name != info.filename:
                member = _read_member(archive, info, f"{path}:{name}")
                if member.dtype.kind in "iuf" and member.promised:
                    _check_member(member, f"{path}:{name}")
                    found[name] = _load(archive, member, f"{path}:{name}")
    return found


class NpzWriter(CubeWriter):
    """An .npz file of `cube` (C order, little endian) and its metadata, rows from top to bottom."""

    def __init__(
        self, path: Path, meta: CubeMeta, options: Mapping[str, str], overwrite: bool
    ) -> None:
        # blocks of a fixed number of rows make the deflated bytes independent of the caller's cuts
        super().__init__(path, meta, block_rows=BLOCK_BYTES // meta.row_bytes)
        deflate = options.get("COMPRESS") == "DEFLATE"
        if "LEVEL" in options and not deflate:
            raise OptionError(
                f"{path}: LEVEL={options['LEVEL']} does not apply to COMPRESS=NONE",
                "add COMPRESS=DEFLATE, or leave LEVEL out",
            )
        self._stage = Staging(path, overwrite=overwrite)
        self._dtype = meta.dtype.newbyteorder("<")
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": meta.shape,
        }
        self._parts = contextlib.ExitStack()  # what is still open, the member above its archive
        try:
            self._archive = self._parts.enter_context(
                zipfile.ZipFile(
                    self._stage.path(),
                    "w",
                    zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED,
                    compresslevel=int(options.get("LEVEL", "6")) if deflate else None,
                )
            )
            # opened by name, a member bears the fixed time 1980-01-01 and not the clock's
            self._cube = self._archive.open("cube.npy", "w", force_zip64=True)
            self._parts.enter_context(self._cube)
            np.lib.format.write_array_header_1_0(self._cube, header)
        except BaseException:
            self.abort()
            raise

    def _write(self, start: int, block: AnyArray) -> None:
        del start  # rows come in order
        self._cube.write(np.ascontiguousarray(block, dtype=self._dtype).view(np.uint8).data)

    def _commit(self) -> tuple[Path, ...]:
        self._cube.close()
        fields = arrays.meta_to_json(self.meta)
        sides = {
            name: np.asarray(fields.pop(name), dtype)
            for name, dtype in (("wavelengths_nm", "<f8"), ("fwhm_nm", "<f8"), ("bad_bands", "?"))
            if name in fields
        }
        if fields:
            sides["spectralift"] = np.array(arrays.dump_json(fields))
        for name, values in sides.items():
            with self._archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, values, version=(1, 0), allow_pickle=False)
        self._archive.close()
        return self._stage.commit()

    def abort(self) -> None:
        """Drop what was written."""
        # closing completes the archive, which a full disk refuses; it is removed all the same
        with contextlib.suppress(OSError, ValueError):
            self._parts.close()
        self._stage.abort()


def create_npz(
    path: Path, meta: CubeMeta, options: Mapping[str, str], overwrite: bool
) -> CubeWriter:
    """Start an .npz file; see `create_cube`."""
    return NpzWriter(path, meta, options, overwrite)
