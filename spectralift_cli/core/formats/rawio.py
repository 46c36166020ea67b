"""Arrays to and from byte ranges of a file, without mapping it.

Touched pages of a mapping count as the process's memory; pread and pwrite leave them to the system.
"""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from spectralift_cli.core.cube import AnyArray
from spectralift_cli.core.errors import DataError

if TYPE_CHECKING:
    from typing_extensions import Buffer

# from this size on a file is written past the page cache: a smaller one is soon read again
_DIRECT_BYTES = 256 * 2**20
_LEAST_DIRECT_BYTES = 2**20  # of one write: each waits for the disk
_ROOM_BYTES = 4 * 2**20
# of the file system's blocks and, where those are larger, of the page cache (64 KiB on some ARM)
PAGE = max(4096, mmap.PAGESIZE)


def pread_into(fd: int, buffer: AnyArray, offset: int, path: Path) -> None:
    """Fill a C-contiguous array with a file's bytes at an offset.

    Raises:
        DataError: the file ends before the array is full.
    """
    view = _bytes_of(buffer)
    while len(view):
        got = os.preadv(fd, [view[: 2**30]], offset)
        if not got:
            raise DataError(f"{path}: ends early, at byte {offset:,}", "the file is truncated")
        view, offset = view[got:], offset + got


def pwrite_all(fd: int, data: AnyArray, offset: int) -> None:
    """Write an array's bytes at an offset, however often the system has to be asked."""
    _pwrite(fd, _bytes_of(data), offset)


class RowFile:
    """A file of a given size, made or joined, of which several processes may write their bytes.

    A large one is written past the page cache (O_DIRECT) where the system can: copying gigabytes
    into the cache takes processors longer than many a disk takes to store them, and pushes out of
    it what others read. Bytes that share a page with somebody else's go through the cache all the
    same, so that no page is written from two sides. The disk has all values after `sync` only.
    Values that lie in memory as they do in the file, as far behind the beginning of a page, are
    not copied on their way.

    Args:
        path: the file; what it holds already stays.
        size: it has from now on, in bytes.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, path: Path, size: int) -> None:
        # not for reading: NFS would then fetch a page before it changes a part of it, and send the
        # whole page back, over what another host has written into it meanwhile
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        self._direct_fd = -1
        try:
            os.ftruncate(self._fd, size)
            if size >= _DIRECT_BYTES:
                self._direct_fd = _open_direct(path)
        except BaseException:
            self.close()
            raise
        # aligned to pages, as direct writes have to be
        room = mmap.mmap(-1, _ROOM_BYTES if self._direct_fd >= 0 else PAGE)
        self._room: AnyArray = np.frombuffer(room, np.uint8)

    @property
    def held_bytes(self) -> int:
        """Memory that it takes as long as it is open."""
        return self._room.nbytes

    def write(self, data: AnyArray, offset: int) -> None:
        """Write an array's bytes at an offset; one thread at a time.

        Raises:
            OSError: the disk is full.
        """
        view = _bytes_of(data)
        head = -offset % PAGE
        tail = (offset + len(view)) % PAGE
        whole = len(view) - head - tail
        if self._direct_fd < 0 or whole < _LEAST_DIRECT_BYTES:
            _pwrite(self._fd, view, offset)
            return
        _pwrite(self._fd, view[:head], offset)
        _pwrite(self._fd, view[head + whole :], offset + head + whole)
        step = self._room.nbytes
        for at in range(head, head + whole, step):
            part = view[at : min(at + step, head + whole)]
            done = self._write_direct(part, offset + at)
            _pwrite(self._fd, part[done:], offset + at + done)  # nothing, as a rule

    def _write_direct(self, part: memoryview, offset: int) -> int:
        """Write whole pages past the cache; return how many bytes the system took."""
        if self._direct_fd < 0:
            return 0
        values = np.frombuffer(part, np.uint8)
        if values.ctypes.data % PAGE:
            aligned = self._room[: len(values)]
            np.copyto(aligned, values)  # other threads go on meanwhile, unlike with views
            values = aligned
        try:
            return os.pwrite(self._direct_fd, values.data, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        # a file system of larger pages, or one that takes the flag and no such write
        os.close(self._direct_fd)
        self._direct_fd = -1
        return 0

    def sync(self) -> None:
        """Wait until the values are on the disk; one thread may while another writes.

        Raises:
            OSError: the disk is full.
        """
        getattr(os, "fdatasync", os.fsync)(self._fd)

    def close(self) -> None:
        """Close the file; harmless when called again."""
        # forgotten before they are closed: a signal may come in between, and this is called again
        fds, self._fd, self._direct_fd = (self._fd, self._direct_fd), -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)


def _open_direct(path: Path) -> int:
    """Return a descriptor that writes past the page cache, or -1 where the file system has none."""
    if not hasattr(os, "O_DIRECT"):
        return -1
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return -1


def _bytes_of(data: AnyArray) -> memoryview:
    return memoryview(cast("Buffer", data.reshape(-1).view(np.uint8)))


def _pwrite(fd: int, view: memoryview, offset: int) -> None:
    while len(view):
        done = os.pwrite(fd, view[: 2**30], offset)
        view, offset = view[done:], offset + done
