"""Every n-th row and column of a cube, read by blocks, so that a page needs little of a large one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spectralift_cli.core.cube import AnyArray
from spectralift_cli.core.cubeio import CubeReader, row_blocks

_BLOCK_VALUES = 2**21


@dataclass(frozen=True, eq=False)
class Lattice:
    """Pixels on every `step`-th row and column of an image, the first half a step from the corner.

    Args:
        shape: (rows, cols) of the image.
        step: 1 for all pixels.
    """

    shape: tuple[int, int]
    step: int

    @classmethod
    def of(cls, shape: tuple[int, int], most: int) -> Lattice:
        """Return the lattice of at most `most` pixels a side."""
        return cls(shape, -(-max(shape) // most))

    @property
    def rows(self) -> NDArray[np.intp]:
        """Row indices in the image."""
        return self._along(0)

    @property
    def cols(self) -> NDArray[np.intp]:
        """Column indices in the image."""
        return self._along(1)

    def _along(self, axis: int) -> NDArray[np.intp]:
        size = self.shape[axis]
        return np.arange(min(self.step // 2, size - 1), size, self.step, dtype=np.intp)

    @property
    def is_all(self) -> bool:
        """Whether it holds every pixel."""
        return self.step == 1

    def __str__(self) -> str:
        if self.is_all:
            return "every pixel"
        return f"1 of {self.step} rows and columns"

    def blocks(self, *readers: CubeReader) -> Iterator[tuple[slice, list[AnyArray]]]:
        """Yield (rows of the lattice, stored values of each cube (n, c, bands)), top to bottom."""
        rows, cols = self.rows, self.cols
        bands = sum(reader.meta.bands for reader in readers)
        height = max(1, _BLOCK_VALUES // (self.shape[1] * bands))
        for part in row_blocks(len(rows), height):
            yield part, [self._read(reader, rows[part], cols) for reader in readers]

    def _read(self, reader: CubeReader, rows: NDArray[np.intp], cols: NDArray[np.intp]) -> AnyArray:
        if self.is_all:
            return reader.read(slice(int(rows[0]), int(rows[-1]) + 1))
        lines = [reader.read(slice(int(row), int(row) + 1))[:, cols] for row in rows]
        return np.concatenate(lines)
