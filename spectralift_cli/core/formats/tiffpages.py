"""The directories of a TIFF, walked without trust.

A TIFF's directories may promise more than the file holds, loop, or, after a write to a full disk,
point past its end; libtiff notices only when it comes to the place, and tifffile loads whatever it
is told to. This walk reads a directory's few numbers, and the tables of strips and tiles by
pieces, so that its memory does not depend on the file. GDAL decodes; this decides whether it may.
"""

from __future__ import annotations

import codecs
import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from spectralift_cli.core.cube import AnyArray
from spectralift_cli.core.errors import DataError

MAX_PAGES = 20_000
_MAX_ENTRIES = 4096  # libtiff and tifffile stop here too
_MAX_SIDE = 2**31 - 1  # GDAL's and libtiff's
_TEXT_BYTES = 1024
_TEXT_PIECE = 2**20
_TABLE_PIECE = 2**18  # entries of a strip table looked at in one go

_TYPES = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4,
               16: 8, 17: 8, 18: 8}  # fmt: skip
# the most bytes that one stored byte can stand for: PackBits makes 128 of 2, an LZW code of 9 bits
# or more at most 4,094; deflate's bound is zlib's. Other codecs have no useful bound.
_MOST_GAIN = {1: 1, 32773: 64, 5: 4094, 8: 1032, 32946: 1032}
_PALETTE, _YCBCR = 3, 6
_REDUCED, _MASK = 1, 4


@dataclass(frozen=True)
class Entry:
    """One tag of a directory: its type, how many values, and where in the file they lie."""

    kind: int
    count: int
    offset: int


@dataclass(frozen=True)
class Page:
    """One directory: an image, or an overview or mask of one.

    Args:
        offset: where the directory lies.
        entries: its tags by number.
        width: in pixels, likewise height.
        samples: values a pixel.
        bits: of one sample.
        kind: (sample format, photometric interpretation).
        compression: the TIFF code, 1 for none.
        planar: whether each sample has its own strips or tiles.
        block: (width, height) of a tile, or of a strip.
        tiled: whether blocks are tiles.
        subfile: NewSubfileType: 1 for an overview, 4 for a mask.
        description: ImageDescription, its first 1,024 bytes.
        name: PageName, likewise.
        nodata: GDAL's nodata value as text, or "".
    """

    offset: int
    entries: dict[int, Entry] = field(repr=False)
    width: int
    height: int
    samples: int
    bits: int
    kind: tuple[int, int]
    compression: int
    planar: bool
    block: tuple[int, int]
    tiled: bool
    subfile: int
    description: str = ""
    name: str = ""
    nodata: str = ""

    @property
    def is_image(self) -> bool:
        """Whether it is neither an overview nor a mask."""
        return not self.subfile & (_REDUCED | _MASK)

    @property
    def is_palette(self) -> bool:
        """Whether its values are places in a table of colours."""
        return self.kind[1] == _PALETTE

    @property
    def same(self) -> tuple[Any, ...]:
        """What pages of one stack have in common."""
        return (self.width, self.height, self.samples, self.bits, self.kind)

    @property
    def blocks_per_plane(self) -> int:
        """Strips or tiles of one plane."""
        across, down = self.block
        return math.ceil(self.width / across) * math.ceil(self.height / down)

    def block_bytes(self, rows: int) -> int:
        """Bytes of a decoded strip or tile of that many rows."""
        row_bits = self.block[0] * self.bits * (1 if self.planar else self.samples)
        return rows * math.ceil(row_bits / 8)


class TiffDirectories:
    """The chain of directories of one file.

    Attributes:
        path: the file.
        size: its bytes.
        big: whether offsets have 64 bits.
        byte_order: "<" or ">".
        pages: every directory in order.

    Raises:
        DataError: not a TIFF, cut short, a loop, or more than 20,000 directories.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DataError(
                f"{path}: cannot be opened ({error.strerror})", "check its permissions"
            ) from error
        try:
            self.size = os.fstat(self._fd).st_size
            first = self._read_header()
            self.pages = tuple(self._walk(first))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> TiffDirectories:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def images(self) -> tuple[Page, ...]:
        """Return the pages that are neither overviews nor masks; all, if none is left."""
        return tuple(p for p in self.pages if p.is_image) or self.pages

    def check_metadata(self, page: Page) -> None:
        """Check that GDAL's metadata of a page are UTF-8, which rasterio relies on.

        Raises:
            DataError: they are not, or leave the file.
        """
        entry = page.entries.get(42112)
        if entry is None or entry.kind != 2:
            return
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            for start in range(0, entry.count, _TEXT_PIECE):
                length = min(_TEXT_PIECE, entry.count - start)
                decoder.decode(self._pread(entry.offset + start, length))
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise self._damaged(f"its GDAL metadata are not UTF-8 text ({error.reason})") from error

    def check(self, page: Page, *, complete: bool = False) -> int:
        """Check that every strip or tile of a page lies inside the file.

        A block at 0 of 0 bytes is absent, which is legal: it holds nodata or zeros.

        Args:
            page: one of `pages`.
            complete: refuse absent blocks too, as after a write that leaves none.

        Returns:
            The number of absent blocks.

        Raises:
            DataError: the tables are missing or short, a block leaves the file, or the blocks are
                too short for what the page's size promises.
        """
        planes = page.samples if page.planar else 1
        expected = page.blocks_per_plane * planes
        offsets = page.entries.get(324 if page.tiled else 273)
        counts = page.entries.get(325 if page.tiled else 279)
        if offsets is None or counts is None:
            raise self._damaged("a directory has no table of its strips or tiles")
        for table in (offsets, counts):
            if table.count < expected:
                raise self._damaged(
                    f"{page.width} x {page.height} x {page.samples} needs {expected:,} strips or "
                    f"tiles, the file lists {table.count:,}"
                )
        last_rows = page.height - (page.height - 1) // page.block[1] * page.block[1]
        full = page.block_bytes(page.block[1])
        last = full if page.tiled else page.block_bytes(last_rows)
        absent, stored, promised = 0, 0, 0
        for start in range(0, expected, _TABLE_PIECE):
            stop = min(start + _TABLE_PIECE, expected)
            where = self._numbers(offsets, start, stop)
            count = self._numbers(counts, start, stop)
            is_last = np.arange(start, stop) % page.blocks_per_plane == page.blocks_per_plane - 1
            there = count > 0
            absent += int((~there).sum())
            if page.compression == 1:  # some writers count a last strip's missing rows
                count = np.minimum(count, np.where(is_last, *_fitting(last, full)))
            outside = there & ((where == 0) | (where > self.size) | (count > self.size - where))
            if outside.any():
                index = int(np.flatnonzero(outside)[0])
                raise self._damaged(
                    f"strip or tile {start + index + 1:,} of {expected:,} ends at byte "
                    f"{int(where[index]) + int(count[index]):,}, the file has {self.size:,}"
                )
            stored += int(count[there].sum())
            ends = int((there & is_last).sum())
            promised += last * ends + full * (int(there.sum()) - ends)
        gain = _MOST_GAIN.get(page.compression)
        if gain is not None and page.kind[1] != _YCBCR and promised > stored * gain:
            raise self._damaged(
                f"{page.width} x {page.height} x {page.samples} of {page.bits} bits needs "
                f"{promised:,} bytes, more than {stored:,} stored bytes can hold"
            )
        if complete and absent:
            raise self._damaged(f"{absent:,} of {expected:,} strips or tiles were not written")
        return absent

    def _damaged(self, what: str) -> DataError:
        return DataError(f"{self.path}: {what}", "the file is truncated or damaged")

    def _pread(self, offset: int, length: int) -> bytes:
        if offset + length > self.size:
            raise self._damaged(
                f"a directory needs bytes up to {offset + length:,}, the file has {self.size:,}"
            )
        return os.pread(self._fd, length, offset)

    def _read_header(self) -> int:
        """Learn byte order and kind; return where the first directory lies."""
        head = os.pread(self._fd, 16, 0)
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        magic = struct.unpack(f"{order}H", head[2:4])[0] if order and len(head) >= 8 else 0
        if order is None or magic not in (42, 43) or (magic == 43 and len(head) < 16):
            raise DataError(f"{self.path}: is not a TIFF file", "check what the file really is")
        self.byte_order, self.big = order, magic == 43
        if self.big:
            return int(struct.unpack(f"{order}Q", head[8:16])[0])
        return int(struct.unpack(f"{order}I", head[4:8])[0])

    def _walk(self, offset: int) -> Iterator[Page]:
        count_format, tail_format = ("Q", "Q") if self.big else ("H", "I")
        entry = struct.Struct(self.byte_order + ("HHQ8s" if self.big else "HHI4s"))
        seen: set[int] = set()
        if not offset:
            raise self._damaged("it has no directory")
        while offset:
            if offset in seen:
                raise self._damaged(f"its directories form a loop at byte {offset:,}")
            if len(seen) == MAX_PAGES:
                raise self._damaged(f"it has more than {MAX_PAGES:,} directories")
            seen.add(offset)
            count_bytes = struct.calcsize(count_format)
            (count,) = struct.unpack(
                self.byte_order + count_format, self._pread(offset, count_bytes)
            )
            if not 0 < count <= _MAX_ENTRIES:
                raise self._damaged(f"the directory at byte {offset:,} claims {count:,} entries")
            start, length = offset + count_bytes, count * entry.size
            body = self._pread(start, length + struct.calcsize(tail_format))
            entries: dict[int, Entry] = {}
            for index in range(count):
                code, kind, number, _ = entry.unpack_from(body, index * entry.size)
                position = start + (index + 1) * entry.size - (8 if self.big else 4)
                entries.setdefault(code, self._entry(kind, number, position))
            yield self._page(offset, entries)
            (offset,) = struct.unpack(self.byte_order + tail_format, body[length:])

    def _entry(self, kind: int, count: int, position: int) -> Entry:
        """Resolve whether a tag's values lie in its entry or elsewhere."""
        width = 8 if self.big else 4
        if count * _TYPE_BYTES.get(kind, 1) <= width:
            return Entry(kind, count, position)
        (where,) = struct.unpack(
            self.byte_order + ("Q" if self.big else "I"), self._pread(position, width)
        )
        return Entry(kind, count, where)

    def _numbers(self, entry: Entry, start: int, stop: int) -> AnyArray:
        """Return some of a tag's whole numbers as uint64."""
        code = _TYPES.get(entry.kind)
        if code is None or stop > entry.count:
            raise self._damaged("a directory holds a number of the wrong type")
        dtype = np.dtype(self.byte_order + code)
        data = self._pread(entry.offset + start * dtype.itemsize, (stop - start) * dtype.itemsize)
        return np.frombuffer(data, dtype).astype(np.uint64)

    def _text(self, entry: Entry | None) -> str:
        if entry is None or entry.kind != 2:
            return ""
        data = self._pread(entry.offset, min(entry.count, _TEXT_BYTES))
        return data.split(b"\0")[0].decode("utf-8", "replace").strip()

    def _page(self, offset: int, entries: dict[int, Entry]) -> Page:
        def first(code: int, default: int) -> int:
            entry = entries.get(code)
            return default if entry is None else int(self._numbers(entry, 0, 1)[0])

        width, height = first(256, 0), first(257, 0)
        samples = first(277, 1)
        tiled = 322 in entries
        if tiled:
            block = (first(322, 0), first(323, 0))
        else:
            block = (width, min(first(278, height), height))
        sizes = (width, height, samples, *block)
        if min(sizes) < 1 or max(sizes) > _MAX_SIDE:
            raise self._damaged(
                f"the directory at byte {offset:,} describes an image of {width} x {height} x "
                f"{samples} in blocks of {block[0]} x {block[1]}"
            )
        return Page(
            offset=offset,
            entries=entries,
            width=width,
            height=height,
            samples=samples,
            bits=first(258, 1),
            kind=(first(339, 1), first(262, 1)),
            compression=first(259, 1),
            planar=first(284, 1) == 2 and samples > 1,
            block=block,
            tiled=tiled,
            # the older SubfileType says 2 for a reduced image
            subfile=first(254, _REDUCED if first(255, 1) == 2 else 0),
            description=self._text(entries.get(270)),
            name=self._text(entries.get(285)),
            nodata=self._text(entries.get(42113)),
        )


def _fitting(*sizes: int) -> tuple[np.uint64, ...]:
    """Return sizes as numpy numbers; what does not fit is more than any file has."""
    return tuple(np.uint64(min(size, 2**63)) for size in sizes)
