"""Cubes on disk, read and written by blocks of rows.

What every format implements: a reader gives any rows, a writer takes them and shows the cube whole or
not at all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from spectralift_cli.core.cube import (
    AnyArray,
    CubeMeta,
    check_window,
    to_units,
)
from spectralift_cli.core.errors import DataError

# the size of a block of rows that balances call overhead against memory
BLOCK_BYTES = 16 * 2**20


def row_blocks(rows: int, height: int) -> Iterator[slice]:
    """Yield slices of at most `height` rows that cover `rows`."""
    for start in range(0, rows, max(1, height)):
        yield slice(start, min(start + max(1, height), rows))


class CubeReader(ABC):
    """A cube on disk, open for reading by rows; close it or use it in a `with`.

    Attributes:
        path: the file or folder.
        meta: the metadata.
        format_name: the format's name in the table.
        layout: facts about the file for `info` (interleave, compression, variable, ...).
        choices: what the user said of the file that its values or metadata depend on, JSON-ready;
            part of the provenance of whatever is made of it.
        streams: whether `read` touches little more than the rows that are asked for.
        swath: whether rows and columns are the sensor's own rather than those of a map.
        block_rows: the number of rows that is natural to read at once.
        row_unit: rows that are decoded together; 1 where a row costs no more than its own bytes, so
            that rows may be skipped, all of them where it is not known.
        held_bytes: of values that it keeps between two reads.
    """

    format_name: str = ""
    streams: bool = True
    swath: bool = False
    held_bytes: int = 0

    def __init__(self, path: Path, meta: CubeMeta, layout: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.meta = meta
        self.layout: dict[str, Any] = dict(layout or {})
        self.choices: dict[str, Any] = {}
        self.block_rows = max(1, min(meta.rows, BLOCK_BYTES // max(1, meta.row_bytes)))
        self.row_unit = meta.rows

    @property
    def stored_row_bytes(self) -> int:
        """Bytes of a row as it is read, with what is not taken of it."""
        return self.meta.row_bytes

    @property
    def files(self) -> tuple[Path, ...]:
        """The files or folder that hold the cube, `path` first."""
        return (self.path,)

    @abstractmethod
    def _read(self, start: int, stop: int) -> AnyArray:
        """Return the stored values of rows start..stop, (stop - start, cols, bands)."""

    def _read_bands(self, start: int, stop: int, bands: NDArray[np.intp]) -> AnyArray:
        """Return the stored values of some bands; overridden where the others need not be read."""
        return self._read(start, stop)[:, :, bands]

    @abstractmethod
    def close(self) -> None:
        """Release the file."""

    def read(self, rows: slice = slice(None), bands: NDArray[np.intp] | None = None) -> AnyArray:
        """Return stored values (n, cols, bands), native byte order, of a slice of rows (step 1).

        Args:
            rows: which rows.
            bands: 0-based indices of the bands in the wanted order; None for all.

        Raises:
            DataError: the file ends early or is damaged.
        """
        start, stop, step = rows.indices(self.meta.rows)
        if step != 1:
            raise ValueError(f"rows are read with step 1, not {step}")
        try:
            stop = max(start, stop)
            block = (
                self._read(start, stop) if bands is None else self._read_bands(start, stop, bands)
            )
        except OSError as error:
            raise DataError(
                f"{self.path}: rows {start} to {stop} cannot be read ({error.strerror or error})",
                "the disk or the connection to it fails",
            ) from error
        if block.dtype != self.meta.dtype:
            block = block.astype(self.meta.dtype)
        return block

    def read_units(self, rows: slice = slice(None)) -> NDArray[np.float32]:
        """Return units (n, cols, bands) float32 of a slice of rows, NaN in holes."""
        return to_units(self.read(rows), self.meta)

    def blocks(self, height: int | None = None) -> Iterator[tuple[slice, AnyArray]]:
        """Yield (rows, stored values) from top to bottom."""
        for rows in row_blocks(self.meta.rows, height or self.block_rows):
            yield rows, self.read(rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class CubeWriter(ABC):
    """A cube being written by rows; it appears at `commit` and leaves nothing without it.

    A writer with `random_access` takes rows in any order. The others take them from top to bottom
    and pass them on in blocks of `block_rows`, so that the bytes of the file do not depend on how
    the rows were cut.

    Attributes:
        held_bytes: memory that it takes between two writes, besides the rows of an unfinished block.
    """

    random_access: bool = False
    held_bytes: int = 0

    def __init__(self, path: Path, meta: CubeMeta, block_rows: int = 1) -> None:
        self.path = path
        self.meta = meta
        self.block_rows = max(1, block_rows)
        self._seen = np.zeros(meta.rows, bool)
        self._held: list[AnyArray] = []  # rows that do not fill a block yet
        self._flushed = 0

    @abstractmethod
    def _write(self, start: int, block: AnyArray) -> None:
        """Store (n, cols, bands) values of rows start..start+n."""

    @abstractmethod
    def _commit(self) -> tuple[Path, ...]:
        """Finish the files and move them into place; return them, the main one first."""

    @abstractmethod
    def abort(self) -> None:
        """Drop what was written; harmless after `commit`."""

    def write(self, rows: slice, block: AnyArray) -> None:
        """Write stored values of a slice of rows.

        Args:
            rows: slice with step 1.
            block: (n, cols, bands) of the cube's dtype.

        Raises:
            ValueError: the block's shape or dtype is not the cube's, or the order is not kept.
            DataError: the disk is full.
        """
        start, stop, _ = rows.indices(self.meta.rows)
        expected = (stop - start, self.meta.cols, self.meta.bands)
        if block.shape != expected or block.dtype != self.meta.dtype:
            raise ValueError(
                f"a block {block.shape} of {block.dtype} was given for rows {start}..{stop} "
                f"of a cube that takes {expected} of {self.meta.dtype}"
            )
        try:
            if self.random_access:
                self._write(start, block)
            else:
                self._write_in_order(start, block)
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be written ({error.strerror or error})",
                "free some room or choose another folder",
            ) from error
        self._seen[start:stop] = True

    def page_offset(self, row: int) -> int:
        """Return where in a page of the file, of `rawio.PAGE` bytes, a row's values begin.

        What is given to `write` from the same place in a page of memory may be spared a copy. 0
        where it makes no difference.
        """
        del row
        return 0

    def assume(self, rows: slice) -> None:
        """Take a slice of rows for written: another process has done it in the same folder."""
        self._seen[rows] = True

    def sync(self) -> None:
        """Bring what was written to the disk, where other hosts, too, can read it.

        One thread may call it while another writes.

        Raises:
            DataError: the disk is full.
        """
        try:
            self._sync()
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be written ({error.strerror or error})",
                "free some room or choose another folder",
            ) from error

    def _sync(self) -> None:  # noqa: B027  # a format that closes its files has nothing to do
        """See `sync`."""

    def _write_in_order(self, start: int, block: AnyArray) -> None:
        due = self._flushed + sum(len(b) for b in self._held)
        if start != due:
            raise ValueError(f"row {due} is due, row {start} was given")
        self._held.append(block)
        held = due + len(block) - self._flushed
        whole = held if due + len(block) == self.meta.rows else held - held % self.block_rows
        if not whole:
            self._held[-1] = block.copy()  # the caller may reuse its buffer
            return
        joined = block if len(self._held) == 1 else np.concatenate(self._held)
        for rows in row_blocks(whole, self.block_rows):
            self._write(self._flushed + rows.start, joined[rows])
        self._held = [joined[whole:].copy()] if whole < held else []
        self._flushed += whole

    def commit(self) -> tuple[Path, ...]:
        """Move the finished cube into place; return its files, the main one first.

        Raises:
            ValueError: some rows were never written.
            DataError: the disk is full.
            OutputExistsError: the output appeared meanwhile and is not to be overwritten.
        """
        missing = int((~self._seen).sum())
        if missing:
            raise ValueError(f"{missing} of {self.meta.rows} rows were never written")
        try:
            return self._commit()
        except OSError as error:
            self.abort()
            raise DataError(
                f"{self.path}: cannot be written ({error.strerror or error})",
                "free some room or choose another folder",
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.abort()


class SelectedReader(CubeReader):
    """A reader's rectangle of pixels and choice of bands, itself a reader.

    Args:
        source: the reader; closing the selection closes it.
        bands: 0-based band indices in the wanted order, or None for all.
        window: (row, col, height, width) inside the source, or None for all.

    Raises:
        DataError: the window leaves the cube or a band does not exist.
    """

    def __init__(
        self,
        source: CubeReader,
        bands: Sequence[int] | None = None,
        window: tuple[int, int, int, int] | None = None,
    ) -> None:
        meta = source.meta
        row, col, height, width = window or (0, 0, meta.rows, meta.cols)
        meta = check_window(meta, row, col, height, width)
        if bands is not None:
            outside = [b + 1 for b in bands if not 0 <= b < meta.bands]
            if outside or not bands:
                raise DataError(
                    f"band {outside[0] if outside else 'selection is empty;'} is not one of "
                    f"the cube's {meta.bands} bands",
                    f"bands count from 1 to {meta.bands}",
                )
            meta = meta.select_bands(bands)
        super().__init__(source.path, meta, source.layout)
        self.format_name = source.format_name
        self.streams = source.streams
        self.swath = source.swath
        self.block_rows = source.block_rows
        self.row_unit = source.row_unit
        self.held_bytes = source.held_bytes
        self.choices = source.choices
        self._source = source
        self._row = row
        self._cols = slice(col, col + width)
        self._bands = None if bands is None else np.asarray(bands, dtype=np.intp)

    @property
    def stored_row_bytes(self) -> int:
        """Bytes of a row of the source and of the selection."""
        return self._source.stored_row_bytes + self.meta.row_bytes

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the source."""
        return self._source.files

    def _read(self, start: int, stop: int) -> AnyArray:
        rows = slice(self._row + start, self._row + stop)
        return self._source.read(rows, self._bands)[:, self._cols]

    def close(self) -> None:
        """Close the source."""
        self._source.close()
