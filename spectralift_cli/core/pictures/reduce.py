"""An image small enough to look at, from a cube of any size, in one pass by rows.

Square cells of pixels become one pixel each, by the mean of their valid values. Of a cube that is too
large to be read whole, some rows of every cell stand for it. Sums are formed row by row from top to
bottom, so the result does not depend on how the rows were cut into blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from spectralift_cli.core.cube import (
    AnyArray,
    BoolArray,
    CubeMeta,
    FloatArray,
    Progress,
    no_progress,
    valid_mask,
)
from spectralift_cli.core.cubeio import CubeReader, row_blocks
from spectralift_cli.core.pictures.colour import Composite

# a quicklook reads at most about this much, where rows can be skipped
READ_BYTES = 2**30
# values of a block that is computed on at once
_BLOCK_VALUES = 2**21
# a pixel of a composite is a hole if the bands that are valid hold less than this of a channel
_LEAST_SHARE = 0.5


class CellMeans:
    """Means over square cells of pixels, of rows that pass by in any blocks, from top to bottom.

    Args:
        rows: of the image.
        cols: likewise.
        channels: likewise.
        factor: pixels a cell is high and wide; cells at the right and the bottom may have fewer.
    """

    def __init__(self, rows: int, cols: int, channels: int, factor: int) -> None:
        self.factor = factor
        self._starts = np.arange(0, cols, factor)
        shape = (-(-rows // factor), len(self._starts), channels)
        self._sums, self._counts = np.zeros(shape), np.zeros(shape)

    def add(self, rows: Sequence[int] | AnyArray, values: FloatArray) -> None:
        """Add rows of pixels.

        Args:
            rows: (n,) their numbers in the image.
            values: (n, cols, channels), NaN in holes.
        """
        valid = np.isfinite(values)
        filled = values if valid.all() else np.where(valid, values, 0)
        sums = np.add.reduceat(filled, self._starts, axis=1)
        counts = np.add.reduceat(valid, self._starts, axis=1, dtype=np.float64)
        for index, row in enumerate(rows):
            self._sums[row // self.factor] += sums[index]
            self._counts[row // self.factor] += counts[index]

    def result(self) -> FloatArray:
        """Return the means, (cells, cells, channels); NaN where a cell has no valid value."""
        out = np.full_like(self._sums, np.nan)
        return np.divide(self._sums, self._counts, out=out, where=self._counts > 0)


def factor_for(meta: CubeMeta, max_size: int) -> int:
    """Return the side of the cells that make an image of at most `max_size` pixels a side."""
    return -(-max(meta.rows, meta.cols) // max_size)


def read_reduced(
    reader: CubeReader, composite: Composite, factor: int, progress: Progress = no_progress
) -> FloatArray:
    """Return a cube's composite, in units, reduced by a factor.

    Args:
        reader: the cube.
        composite: which bands make which channel.
        factor: see `factor_for`.
        progress: called with rows done and in all.

    Returns:
        (rows / factor, cols / factor, channels), rounded up; NaN in holes. The channels are linear
        red, green and blue, or grey. A pixel is a hole if valid bands hold less than half the weight
        of a channel.
    """
    meta = reader.meta
    chosen = meta.select_bands(composite.bands)
    cells = CellMeans(meta.rows, meta.cols, composite.weights.shape[1], factor)
    held: list[tuple[AnyArray, AnyArray]] = []
    height = max(1, _BLOCK_VALUES // (meta.cols * len(composite.bands)))

    def flush() -> None:
        numbers, blocks = zip(*held, strict=True)
        cells.add(np.concatenate(numbers), _channels(np.concatenate(blocks), chosen, composite))
        held.clear()

    for rows in _rows_to_read(reader, factor):
        stored = reader.read(rows, composite.bands)
        for part in row_blocks(len(stored), height):
            held.append((np.arange(rows.start + part.start, rows.start + part.stop), stored[part]))
            if sum(len(numbers) for numbers, _ in held) >= height:
                flush()
        progress(rows.stop, meta.rows)
    if held:
        flush()
    means = cells.result()
    if composite.matrix is None:
        return means
    return sum_of_products(means, composite.matrix)


def sum_of_products(channels: FloatArray, matrix: FloatArray) -> FloatArray:
    """Return `channels @ matrix`, its terms added in one order however many pixels there are."""
    terms = (channels[..., i, None] * row for i, row in enumerate(matrix))
    total = next(terms)
    for term in terms:
        total = total + term
    return np.asarray(total, dtype=np.float64)


def _rows_to_read(reader: CubeReader, factor: int) -> Iterator[slice]:
    """Yield the rows to read: all, or some of every row of cells where that saves reading."""
    meta = reader.meta
    cell_rows = -(-meta.rows // factor)
    wanted = max(1, READ_BYTES // (meta.row_bytes * cell_rows))
    height = max(wanted, reader.row_unit)  # less would cost the same
    if height > factor // 2:
        yield from row_blocks(meta.rows, reader.block_rows)
        return
    for cell in range(cell_rows):
        top, bottom = cell * factor, min((cell + 1) * factor, meta.rows)
        start = min(top + (factor - height) // 2, max(top, bottom - height))
        start = max(top, start - start % reader.row_unit)
        yield slice(start, min(start + height, bottom))


def _channels(stored: AnyArray, meta: CubeMeta, composite: Composite) -> FloatArray:
    """Return the channels of stored values of the composite's bands, NaN in holes.

    Band by band, since a matrix product's rounding depends on how many rows it is given.
    """
    shape = (*stored.shape[:2], composite.weights.shape[1])
    sums, shares = np.zeros(shape), np.zeros(shape)
    mask = valid_mask(stored, meta)
    whole = bool(mask.all())
    scale, offset = (np.broadcast_to(v, (meta.bands,)) for v in (meta.scale, meta.offset))
    for band, weights in enumerate(composite.weights):
        with np.errstate(over="ignore", invalid="ignore"):  # in holes
            values = stored[:, :, band] * np.float64(scale[band]) + offset[band]
        valid: BoolArray | float = 1.0 if whole else mask[:, :, band]
        if not whole:
            values = np.where(valid, values, 0)
        for channel in np.flatnonzero(weights):
            sums[:, :, channel] += weights[channel] * values
            shares[:, :, channel] += weights[channel] * valid
    hole = (shares < _LEAST_SHARE).any(axis=2)
    np.divide(sums, shares, out=sums, where=shares > 0)
    sums[hole] = np.nan
    return sums
