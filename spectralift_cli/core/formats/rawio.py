"""Arrays to and from byte ranges of a file, without mapping it.

Touched pages of a mapping count as the process's memory; pread and pwrite leave them to the system.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np

from spectralift_cli.core.cube import AnyArray
from spectralift_cli.core.errors import DataError

if TYPE_CHECKING:
    from typing_extensions import Buffer


def pread_into(fd: int, buffer: AnyArray, offset: int, path: Path) -> None:
    """Fill a C-contiguous array with a file's bytes at an offset.

    Raises:
        DataError: the file ends before the array is full.
    """
    view = memoryview(cast("Buffer", buffer.reshape(-1).view(np.uint8)))
    while len(view):
        got = os.preadv(fd, [view[: 2**30]], offset)
        if not got:
            raise DataError(f"{path}: ends early, at byte {offset:,}", "the file is truncated")
        view, offset = view[got:], offset + got


def pwrite_all(fd: int, data: AnyArray, offset: int) -> None:
    """Write an array's bytes at an offset, however often the system has to be asked."""
    view = memoryview(cast("Buffer", data.reshape(-1).view(np.uint8)))
    while len(view):
        done = os.pwrite(fd, view[: 2**30], offset)
        view, offset = view[done:], offset + done


def open_for_rows(path: Path) -> BinaryIO:
    """Open a file to write at offsets, without cutting off what other processes wrote in it."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")


def sync_data(fd: int) -> None:
    """Wait until a file's values are on the disk, where the system can tell them from its times."""
    getattr(os, "fdatasync", os.fsync)(fd)
