"""The cube: values `(rows, cols, bands)` with what makes them physical, read and written by rows.

Stored values become units by `unit = stored * scale + offset`; a stored value equal to `nodata` is a
hole and is masked before scaling. Every format yields the same `CubeMeta`, so that nothing beyond
`formats/` knows where a cube came from.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from spectralift_cli.core.errors import DataError

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
AnyArray = NDArray[Any]
Progress = Callable[[int, int], None]

# numpy kinds that can be a cube's stored values, as native-endian dtype names
STORED_DTYPES = (
    "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64",
    "float16", "float32", "float64",
)  # fmt: skip

# the size of a block of rows that balances call overhead against memory
BLOCK_BYTES = 16 * 2**20


def no_progress(done: int, total: int) -> None:
    """Ignore progress."""


@dataclass(frozen=True, eq=False)
class CubeMeta:
    """What is known of a cube besides its values.

    Args:
        shape: (rows, cols, bands), each at least 1.
        dtype: stored type, native byte order, one of `STORED_DTYPES`.
        wavelengths_nm: (bands,) band centres in nanometres, in file order, or None.
        fwhm_nm: (bands,) full widths at half maximum in nanometres, or None.
        bad_bands: (bands,) True where a band is flagged as unusable, or None.
        nodata: the stored value that marks a hole, or None; NaN is always a hole in float data.
        scale: stored value to unit, a number or (bands,); finite and not zero.
        offset: added after scaling, a number or (bands,); finite.
        crs: coordinate reference system as WKT, or None.
        transform: affine (a, b, c, d, e, f): x = a col + b row + c, y = d col + e row + f, for the
            upper left corner of a pixel (rasterio's order), or None.
        band_names: (bands,) or None.
        provenance: how the cube was made (a JSON object), or None.

    Raises:
        DataError: the fields do not fit the shape or are not finite.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    wavelengths_nm: FloatArray | None = None
    fwhm_nm: FloatArray | None = None
    bad_bands: BoolArray | None = None
    nodata: float | int | None = None
    scale: float | FloatArray = 1.0
    offset: float | FloatArray = 0.0
    crs: str | None = None
    transform: tuple[float, float, float, float, float, float] | None = None
    band_names: tuple[str, ...] | None = None
    provenance: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise DataError(
                f"a cube needs (rows, cols, bands) of at least 1 each, got {self.shape}",
                "check the header or the variable that was chosen",
            )
        dtype = np.dtype(self.dtype).newbyteorder("=")
        if dtype.name not in STORED_DTYPES:
            raise DataError(
                f"a cube of {dtype.name} values is not supported",
                f"convert it to one of {', '.join(STORED_DTYPES)}",
            )
        object.__setattr__(self, "dtype", dtype)
        for name in ("wavelengths_nm", "fwhm_nm"):
            self._set_band_array(name, np.float64)
        self._set_band_array("bad_bands", np.bool_)
        for name in ("scale", "offset"):
            self._set_scaling(name)
        if self.band_names is not None:
            object.__setattr__(self, "band_names", tuple(self.band_names))
            self._check_length("band_names", len(self.band_names))
        if self.transform is not None:
            transform = tuple(float(v) for v in self.transform[:6])
            if len(transform) != 6 or not np.isfinite(transform).all():
                raise DataError(
                    f"the transform {self.transform} is not six finite numbers",
                    "mend the georeference of the file",
                )
            object.__setattr__(self, "transform", transform)
        if self.nodata is not None:
            object.__setattr__(self, "nodata", _as_stored(self.nodata, dtype))

    def _check_length(self, name: str, length: int) -> None:
        if length != self.bands:
            raise DataError(
                f"{name} has {length} values but the cube has {self.bands} bands",
                "mend the metadata, or give the wavelengths with --wavelengths",
            )

    def _set_band_array(self, name: str, dtype: type) -> None:
        value = getattr(self, name)
        if value is None:
            return
        array: Any = np.array(value, dtype=dtype).ravel()
        self._check_length(name, array.size)
        if dtype is np.float64 and not (np.isfinite(array).all() and (array >= 0).all()):
            raise DataError(
                f"{name} holds values that are negative or not finite",
                "mend the metadata, or give the wavelengths with --wavelengths",
            )
        array.setflags(write=False)
        object.__setattr__(self, name, array)

    def _set_scaling(self, name: str) -> None:
        array: Any = np.array(getattr(self, name), dtype=np.float64)
        if array.ndim:
            self._check_length(name, array.size)
            array = array.ravel()
            if (array == array[0]).all():
                array = array[0]
        if not np.isfinite(array).all() or (name == "scale" and (array == 0).any()):
            raise DataError(
                f"the cube's {name} is zero or not finite: {array}",
                "mend the metadata, or give another number",
            )
        if array.ndim:
            array.setflags(write=False)
        object.__setattr__(self, name, array if array.ndim else float(array))

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.shape[0]

    @property
    def cols(self) -> int:
        """Number of columns."""
        return self.shape[1]

    @property
    def bands(self) -> int:
        """Number of bands."""
        return self.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of all stored values."""
        return self.rows * self.row_bytes

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of stored values."""
        return self.cols * self.bands * self.dtype.itemsize

    @property
    def is_scaled(self) -> bool:
        """Whether stored values differ from units."""
        return bool(np.any(np.asarray(self.scale) != 1) or np.any(np.asarray(self.offset) != 0))

    def replace(self, **changes: Any) -> CubeMeta:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def select_bands(self, indices: Sequence[int] | NDArray[np.intp]) -> CubeMeta:
        """Return the metadata of the chosen bands (0-based), in that order."""
        index = np.asarray(indices, dtype=np.intp)

        def pick(value: Any) -> Any:
            return value[index] if isinstance(value, np.ndarray) else value

        return self.replace(
            shape=(self.rows, self.cols, index.size),
            wavelengths_nm=pick(self.wavelengths_nm),
            fwhm_nm=pick(self.fwhm_nm),
            bad_bands=pick(self.bad_bands),
            scale=pick(self.scale),
            offset=pick(self.offset),
            band_names=self.band_names and tuple(self.band_names[i] for i in index),
        )

    def window(self, row: int, col: int, height: int, width: int) -> CubeMeta:
        """Return the metadata of a rectangle of pixels, its transform moved along."""
        transform = self.transform
        if transform is not None:
            a, b, c, d, e, f = transform
            transform = (a, b, a * col + b * row + c, d, e, d * col + e * row + f)
        return self.replace(shape=(height, width, self.bands), transform=transform)


@dataclass(frozen=True, eq=False)
class Cube:
    """A whole cube in memory.

    Args:
        values: (rows, cols, bands) stored values.
        meta: their metadata; its shape and dtype are those of `values`.
    """

    values: AnyArray
    meta: CubeMeta

    @classmethod
    def of(cls, values: AnyArray, **fields: Any) -> Self:
        """Make a cube from an array (rows, cols, bands) and the other fields of `CubeMeta`."""
        return cls(values, CubeMeta(shape=values.shape, dtype=values.dtype, **fields))

    def units(self) -> NDArray[np.float32]:
        """Return the values in units, float32, NaN in holes."""
        return to_units(self.values, self.meta)


def valid_mask(block: AnyArray, meta: CubeMeta) -> BoolArray:
    """Tell which stored values are not holes; shape of `block`."""
    mask: BoolArray = np.isfinite(block) if block.dtype.kind == "f" else np.ones(block.shape, bool)
    if meta.nodata is not None and not np.isnan(meta.nodata):
        mask &= block != np.asarray(meta.nodata).astype(block.dtype)
    return mask


def to_units(block: AnyArray, meta: CubeMeta) -> NDArray[np.float32]:
    """Return stored values in units: holes become NaN first, then scale and offset apply.

    Args:
        block: (rows, cols, bands) stored values.
        meta: whose nodata, scale and offset apply.

    Returns:
        (rows, cols, bands) float32; computed in float64 where stored values are scaled.
    """
    mask = valid_mask(block, meta)
    with np.errstate(over="ignore", invalid="ignore"):  # of float64's nodata values
        if meta.is_scaled:
            scaled = np.multiply(block, meta.scale, dtype=np.float64)
            scaled += meta.offset
            units = scaled.astype(np.float32)
        else:
            units = block.astype(np.float32)
    if not mask.all():
        units[~mask] = np.nan
    return units


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


def check_window(meta: CubeMeta, row: int, col: int, height: int, width: int) -> CubeMeta:
    """Return the metadata of a window inside a cube.

    Raises:
        DataError: the window is empty or leaves the cube.
    """
    inside = row + height <= meta.rows and col + width <= meta.cols
    if min(row, col) < 0 or min(height, width) < 1 or not inside:
        raise DataError(
            f"the window {row},{col},{height},{width} leaves the cube of "
            f"{meta.rows} x {meta.cols} pixels",
            "give ROW,COL,HEIGHT,WIDTH with ROW and COL counted from 0 inside the cube",
        )
    return meta.window(row, col, height, width)


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


def _as_stored(value: float, dtype: np.dtype[Any]) -> float | int:
    """Return a nodata value in the stored type.

    Raises:
        DataError: the type cannot hold it; such a value could never mark anything.
    """
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return float(np.array(value).astype(dtype))
    info = np.iinfo(dtype)
    if not np.isfinite(value) or value != int(value) or not info.min <= value <= info.max:
        raise DataError(
            f"the nodata value {value:g} cannot occur in {dtype.name} data "
            f"({info.min} to {info.max})",
            "mend the header, or name the right value with --nodata",
        )
    return int(value)
