"""ENVI: a text header `.hdr` and beside it a file of plain numbers, read and written by rows.

Stored values are returned as they are; scale factors and gains only become the cube's scale and
offset.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from spectralift_cli.core.cube import AnyArray, CubeMeta
from spectralift_cli.core.cubeio import CubeReader, CubeWriter
from spectralift_cli.core.errors import DataError, SpectraliftWarning
from spectralift_cli.core.formats import OpenRequest, arrays
from spectralift_cli.core.formats import envi_files as pairs
from spectralift_cli.core.formats.envi_header import EnviHeader, read_envi_header
from spectralift_cli.core.formats.envi_meta import format_meta, read_meta
from spectralift_cli.core.formats.rawio import PAGE, RowFile, pread_into
from spectralift_cli.core.outputs import SharedStaging, Staging

DATA_TYPES = {
    1: "u1", 2: "i2", 3: "i4", 4: "f4", 5: "f8", 12: "u2", 13: "u4", 14: "i8", 15: "u8",
}  # fmt: skip
_COMPLEX_TYPES = (6, 9)
_CODES = {np.dtype(name): code for code, name in DATA_TYPES.items()}
_BYTE_ORDERS: dict[int, Literal["<", ">"]] = {0: "<", 1: ">"}
# the file's axes, in terms of the cube's (rows, cols, bands)
_AXES = {"bip": (0, 1, 2), "bil": (0, 2, 1), "bsq": (2, 0, 1)}


class EnviReader(CubeReader):
    """Rows of a flat file of numbers in one of the three interleaves, read with pread."""

    def __init__(
        self,
        path: Path,
        file: BinaryIO,
        files: tuple[Path, Path],
        meta: CubeMeta,
        stored: tuple[str, np.dtype[Any], int],
    ) -> None:
        header, data = files
        self._interleave, self._dtype, self._offset = stored
        layout = {
            "interleave": self._interleave,
            "byte_order": "big" if self._dtype.str[0] == ">" else "little",
            "header_offset": self._offset,
            "header": header.name,
            "data": data.name,
        }
        super().__init__(path, meta, layout)
        self._file = file
        self._data = data
        self._files = (path, data if path == header else header)
        self.row_unit = 1

    def _read(self, start: int, stop: int) -> AnyArray:
        return self._read_runs(start, stop, np.arange(self.meta.bands))

    def _read_bands(self, start: int, stop: int, bands: NDArray[np.intp]) -> AnyArray:
        if self._interleave == "bsq":
            return self._read_runs(start, stop, bands)
        return self._read(start, stop)[:, :, bands]

    def _read_runs(self, start: int, stop: int, bands: NDArray[np.intp]) -> AnyArray:
        sizes = (stop - start, self.meta.cols, len(bands))
        axes = _AXES[self._interleave]
        block: AnyArray = np.empty([sizes[axis] for axis in axes], self._dtype)
        # one run of bytes, or one a band
        by_band = self._interleave == "bsq"
        runs = block if by_band else block[None]
        count = self.meta.bands if by_band else 1
        step, row_bytes = self.meta.nbytes // count, self.meta.row_bytes // count
        for run, index in zip(runs, bands if by_band else (0,), strict=True):
            offset = self._offset + int(index) * step + start * row_bytes
            pread_into(self._file.fileno(), run, offset, self._data)
        if not self._dtype.isnative:
            block = block.byteswap(inplace=True).view(self.meta.dtype)
        return block.transpose(np.argsort(axes))

    @property
    def files(self) -> tuple[Path, ...]:
        """The header and the data file, the one that was named first."""
        return self._files

    def close(self) -> None:
        """Close the data file."""
        self._file.close()


def open_envi(path: Path, request: OpenRequest) -> CubeReader:
    """Open an ENVI image by its header or its data file; see `open_cube`.

    A list of wavelengths, widths, bad bands or gains of another length than the image has bands is
    an error: no rule says which bands it leaves out. Band names are only labels; a list of another
    length is ignored with a warning. Empty lists count as missing.

    Raises:
        DataError: the header or the data file is missing, ambiguous or damaged, the file is no
            image, is compressed or complex, or is shorter than the header promises.
    """
    del request  # the header fixes the axes, and there is one image
    named_header = pairs.is_header(path)
    header_path = path if named_header else pairs.find_header(path)
    header = read_envi_header(header_path)
    shape, dtype, interleave, offset = _read_layout(header)
    if named_header:
        data_path = pairs.find_data(header_path, interleave)
    else:
        pairs.check_own_data(path, header_path, interleave)
        data_path = path
    file = data_path.open("rb")
    try:
        there = os.fstat(file.fileno()).st_size
        _check_size(shape, dtype, offset, there, data_path)
        meta = read_meta(header, shape, dtype.newbyteorder("="))
        files = (header_path, data_path)
        return EnviReader(path, file, files, meta, (interleave, dtype, offset))
    except BaseException:
        file.close()
        raise


def _read_layout(header: EnviHeader) -> tuple[tuple[int, int, int], np.dtype[Any], str, int]:
    """Return shape, stored dtype, interleave and header offset, refusing what is no plain image."""
    source = header.path
    kind = (header.text("file type") or "ENVI Standard").lower()
    if "spectral library" in kind:
        raise DataError(
            f"{source}: is an ENVI spectral library of {header.whole('lines')} spectra, not an image",
            "give an image; a response or wavelength table is read from .csv",
        )
    if not kind.startswith("envi") or "meta" in kind or "virtual" in kind:
        raise DataError(
            f"{source}: the header is of file type {kind[:40]!r}, not of a plain ENVI image",
            "open the file that it describes instead",
        )
    if header.whole("file compression", 0):
        raise DataError(f"{source}: the image is compressed", "save it again uncompressed")
    for key in ("major frame offsets", "minor frame offsets"):
        if re.search("[1-9]", header.text(key) or ""):
            raise DataError(f"{source}: {key} are not supported", "save it again as ENVI Standard")
    rows, cols, bands = (header.whole(key) for key in ("lines", "samples", "bands"))
    offset = header.whole("header offset", 0)
    if min(rows, cols, bands) < 1 or offset < 0:
        raise DataError(
            f"{source}: {rows} lines, {cols} samples, {bands} bands and a header offset of "
            f"{offset} bytes are not an image's",
            "mend the header: at least 1 of each, and an offset of at least 0",
        )
    interleave = header.required("interleave").lower()
    if interleave not in _AXES:
        raise DataError(
            f"{source}: the interleave {interleave[:40]!r} is none of bsq, bil and bip",
            "mend the header",
        )
    return (rows, cols, bands), _read_dtype(header), interleave, offset


def _read_dtype(header: EnviHeader) -> np.dtype[Any]:
    code = header.whole("data type")
    if code in _COMPLEX_TYPES:
        raise DataError(
            f"{header.path}: data type {code} is complex, which a cube is not",
            "save the magnitude or the real part as data type 4",
        )
    if code not in DATA_TYPES:
        raise DataError(
            f"{header.path}: data type {code} is none of ENVI's {sorted(DATA_TYPES)}",
            "mend the header",
        )
    dtype = np.dtype(DATA_TYPES[code])
    if header.text("byte order") is None and dtype.itemsize > 1:
        _warn(f"{header.path}: has no byte order; 0 (little endian) is taken")
    order = header.whole("byte order", 0)
    if order not in _BYTE_ORDERS:
        raise DataError(f"{header.path}: byte order {order} is neither 0 nor 1", "mend the header")
    return dtype.newbyteorder(_BYTE_ORDERS[order])


def _check_size(
    shape: tuple[int, int, int], dtype: np.dtype[Any], offset: int, there: int, data: Path
) -> None:
    promised = arrays.check_size(shape, dtype.itemsize, max(0, there - offset), data)
    if offset + promised < there:
        _warn(
            f"{data}: has {there:,} bytes, the header describes {offset + promised:,}; "
            "what follows them is not read"
        )


class EnviWriter(CubeWriter):
    """A header and its data file of fixed size, rows written in any order at their places."""

    random_access = True

    def __init__(
        self,
        path: Path,
        meta: CubeMeta,
        interleave: str,
        byte_order: int,
        overwrite: bool,
        shared: Path | None = None,
    ) -> None:
        super().__init__(path, meta)
        header, self._data_path = pairs.output_pair(path)
        self._axes = _AXES[interleave]
        self._runs = meta.bands if interleave == "bsq" else 1
        self._dtype = meta.dtype.newbyteorder(_BYTE_ORDERS[byte_order])
        text = format_meta(
            header,
            meta,
            {
                "samples": str(meta.cols),
                "lines": str(meta.rows),
                "bands": str(meta.bands),
                "header offset": "0",
                "file type": "ENVI Standard",
                "data type": str(_CODES[meta.dtype]),
                "interleave": interleave,
                "byte order": str(byte_order),
            },
        )
        stale = pairs.displaced_files(header, self._data_path, overwrite)
        others = (self._data_path,)
        self._stage: Staging = (
            Staging(header, others=others, stale=stale, overwrite=overwrite)
            if shared is None
            else SharedStaging(shared, header, others=others, stale=stale, overwrite=overwrite)
        )
        try:
            self._stage.place(header, text.encode())
            self._file = RowFile(self._stage.path(self._data_path), meta.nbytes)
        except BaseException:
            self._stage.abort()
            raise
        self.held_bytes = self._file.held_bytes

    def page_offset(self, row: int) -> int:
        """Return where in a page of the file a row begins; see `CubeWriter`."""
        return row * self.meta.row_bytes % PAGE if self._axes == _AXES["bip"] else 0

    def _write(self, start: int, block: AnyArray) -> None:
        data = np.ascontiguousarray(block.transpose(self._axes), dtype=self._dtype)
        runs = data if self._runs > 1 else data[None]
        step, row_bytes = self.meta.nbytes // self._runs, self.meta.row_bytes // self._runs
        for index, run in enumerate(runs):
            self._file.write(run, index * step + start * row_bytes)

    def _sync(self) -> None:
        self._file.sync()

    def _commit(self) -> tuple[Path, ...]:
        self._file.close()
        return self._stage.commit()

    def abort(self) -> None:
        """Drop what was written."""
        self._file.close()
        self._stage.abort()


def create_envi(
    path: Path,
    meta: CubeMeta,
    options: Mapping[str, str],
    overwrite: bool,
    shared: Path | None = None,
) -> CubeWriter:
    """Start an ENVI header and its data file; see `create_cube`.

    `x.hdr` is written with `x.img`, `x.bil` with `x.hdr`; the interleave is the data file's suffix
    if that names one, else BIP.

    Raises:
        DataError: a file that would pass for the data of this header lies beside it.
        OutputExistsError: the pair, or another header of the data file, is there already.
    """
    suffix = path.suffix.lower().removeprefix(".")
    interleave = options.get("INTERLEAVE", suffix if suffix in _AXES else "bip").lower()
    byte_order = int(options.get("BYTE_ORDER", "0"))
    return EnviWriter(path, meta, interleave, byte_order, overwrite, shared)


def _warn(message: str) -> None:
    warnings.warn(message, SpectraliftWarning, stacklevel=3)
