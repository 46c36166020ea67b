"""Writing a cube into one dataset of an HDF5 file, so that a full disk or Ctrl-C does no harm.

HDF5 writes much of a file while closing it. Where that fails (a full disk) the library keeps the
file open, tries again as the process ends, and dies there of a segmentation fault. So HDF5 writes
into a `Sink`, which never fails: it keeps what the disk refused in memory, which is a block of rows
at most, and the writer raises the disk's error as soon as HDF5 has returned.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import h5py
import numpy as np

from spectralift_cli.core.cube import AnyArray, CubeMeta
from spectralift_cli.core.cubeio import BLOCK_BYTES, CubeWriter
from spectralift_cli.core.formats.rawio import pwrite_all
from spectralift_cli.core.outputs import Staging

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

T = TypeVar("T")
_CHUNK_BYTES = 2**20


class Sink(io.RawIOBase):
    """A new file that takes every write; `error` tells what the disk said.

    Args:
        path: the file, which is made.
    """

    def __init__(self, path: Path) -> None:
        self.error: OSError | None = None
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        self._at = 0
        self._refused: list[tuple[int, bytes]] = []

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to a byte."""
        if whence == os.SEEK_CUR:
            offset += self._at
        elif whence == os.SEEK_END:
            ends = (at + len(data) for at, data in self._refused)
            offset += max(os.fstat(self._fd).st_size, *ends, 0)
        self._at = offset
        return offset

    def tell(self) -> int:
        """Return the current byte."""
        return self._at

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of `data`, to memory from the first failure on."""
        view = memoryview(data).cast("B")
        if self.error is None:
            try:
                pwrite_all(self._fd, np.frombuffer(view, np.uint8), self._at)
            except OSError as error:
                self.error = error
        if self.error is not None:
            self._refused.append((self._at, bytes(view)))
        self._at += len(view)
        return len(view)

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill a buffer with what was written, zeros beyond the end."""
        view = memoryview(buffer).cast("B")
        start, stop = self._at, self._at + len(view)
        view[:] = os.pread(self._fd, len(view), start).ljust(len(view), b"\0")
        for at, data in self._refused:
            low, high = max(at, start), min(at + len(data), stop)
            if low < high:
                view[low - start : high - start] = data[low - at : high - at]
        self._at = stop
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        """Set the file's size."""
        size = self._at if size is None else size
        if self.error is None:
            try:
                os.ftruncate(self._fd, size)
            except OSError as error:
                self.error = error
        return size

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            os.close(self._fd)
        super().close()


def chunk_shape(meta: CubeMeta) -> tuple[int, int, int]:
    """Return chunks (rows, cols, bands) of some 1 MB: whole spectra of a square of pixels.

    A row of chunks, which the writer holds, stays below 16 MB unless one row of pixels is larger.
    """
    side = math.isqrt(max(1, _CHUNK_BYTES // (meta.bands * meta.dtype.itemsize)))
    rows = max(1, min(side, meta.rows, BLOCK_BYTES // meta.row_bytes))
    cols = max(1, _CHUNK_BYTES // (rows * meta.bands * meta.dtype.itemsize))
    bands = max(1, _CHUNK_BYTES // meta.dtype.itemsize)
    return _even(meta.rows, rows), _even(meta.cols, cols), _even(meta.bands, bands)


def _even(size: int, most: int) -> int:
    """Return parts of at most `most` that cover `size` with little left over in the last one."""
    return -(-size // -(-size // most))


class DatasetWriter(CubeWriter):
    """A dataset written from top to bottom, by whole rows of chunks where it is chunked.

    Args:
        path: the output.
        meta: of the cube.
        lay_out: makes everything in the file and returns the cube's dataset.
        overwrite: replace an existing output.
        chunk_rows: rows of the dataset's chunks; 1 if it is contiguous.
        reversed_axes: the dataset's axes are (bands, cols, rows), as MATLAB's are.
        user_block: bytes to put before the HDF5 part, a power of two of at least 512 of them.
    """

    def __init__(
        self,
        path: Path,
        meta: CubeMeta,
        lay_out: Callable[[h5py.File], h5py.Dataset],
        overwrite: bool,
        *,
        chunk_rows: int = 1,
        reversed_axes: bool = False,
        user_block: bytes = b"",
    ) -> None:
        chunks_high = max(1, BLOCK_BYTES // (chunk_rows * meta.row_bytes))
        super().__init__(path, meta, chunk_rows * chunks_high)
        self._lay_out = lay_out
        self._reversed = reversed_axes
        self._user_block = user_block
        self._file: h5py.File | None = None
        self._dataset: h5py.Dataset | None = None
        self._sink: Sink | None = None
        self._released = False
        self._stage = Staging(path, overwrite=overwrite)
        # Ctrl-C raises KeyboardInterrupt in the main thread, in whatever Python code runs there. In
        # the sink, below a closing HDF5, it would end as a full disk does; in a thread it cannot.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hdf5")
        try:
            self._run(self._open)
        except BaseException:
            self.abort()
            raise

    def _run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Return the result of a call made in the writer's thread.

        Raises:
            OSError: the disk refused something meanwhile.
        """
        result = self._thread.submit(work, *arguments).result()
        if self._sink is not None and self._sink.error is not None:
            raise self._sink.error
        return result

    def _open(self) -> None:
        self._sink = Sink(self._stage.path())
        self._file = h5py.File(self._sink, "w", userblock_size=len(self._user_block))
        self._dataset = self._lay_out(self._file)

    def _close(self) -> None:
        self._dataset = None
        if self._file is not None:
            self._file.close()
            self._file = None
            if self._sink is not None:
                self._sink.seek(0)
                self._sink.write(self._user_block)

    def _put(self, start: int, block: AnyArray) -> None:
        rows = slice(start, start + len(block))
        if self._dataset is None:
            raise ValueError(f"{self.path}: is not open for writing any more")
        if self._reversed:
            self._dataset[:, :, rows] = block.transpose()
        else:
            self._dataset[rows] = block

    def _write(self, start: int, block: AnyArray) -> None:
        self._run(self._put, start, block)

    def _commit(self) -> tuple[Path, ...]:
        self._run(self._close)
        self._release()
        return self._stage.commit()

    def _release(self) -> None:
        self._released = True
        self._thread.shutdown()
        if self._sink is not None:
            self._sink.close()

    def abort(self) -> None:
        """Drop what was written."""
        if not self._released:
            try:
                self._thread.submit(self._close).result()
            finally:
                self._release()
        self._stage.abort()
