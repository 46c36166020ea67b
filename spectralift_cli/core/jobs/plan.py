"""What a job makes and how it is cut: the same in every process that joins it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from spectralift_cli.core.cube import CubeMeta
from spectralift_cli.core.errors import DataError

# a block's border chunks are computed for its neighbour, too: it has many more
_LEAST_CHUNKS = 16
_FEW_BLOCKS = 64  # enough to keep several processes busy to the end
_BLOCK_BYTES = 64 * 2**20
_MOST_BLOCKS = 4096


@dataclass(frozen=True)
class BlockGrid:
    """Blocks of whole rows; never of the number of processes, so that any may join.

    Args:
        rows: of the output.
        block_rows: rows of a block; the last one may have fewer.
    """

    rows: int
    block_rows: int

    @classmethod
    def of(cls, meta: CubeMeta, chunk: int, step: int) -> BlockGrid:
        """Return the grid of an output.

        Args:
            meta: of the output.
            chunk: pixels that are computed together.
            step: rows that the format writes together.
        """
        pixels = meta.rows * meta.cols
        fitting = _BLOCK_BYTES * meta.cols // meta.row_bytes
        wanted = max(
            min(pixels // _FEW_BLOCKS, fitting), _LEAST_CHUNKS * chunk, -(-pixels // _MOST_BLOCKS)
        )
        rows = -(-wanted // meta.cols)
        return cls(meta.rows, -(-rows // step) * step)

    @property
    def count(self) -> int:
        """Number of blocks."""
        return -(-self.rows // self.block_rows)

    def part(self, block: int) -> slice:
        """Return the rows of a block, counted from 0."""
        start = block * self.block_rows
        return slice(start, min(start + self.block_rows, self.rows))


@dataclass(frozen=True)
class Shard:
    """One of several equal shares of the blocks.

    Args:
        index: which, from 1.
        count: of how many.

    Raises:
        DataError: the index is not one of them.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise DataError(
                f"shard {self.index}/{self.count} is none of {self.count}",
                f"count from 1/{self.count} to {self.count}/{self.count}",
            )

    def of(self, blocks: int) -> range:
        """Return the share's blocks: neighbours, so that its rows are read from top to bottom."""
        ends = [blocks * i // self.count for i in (self.index - 1, self.index)]
        return range(*ends)


def differences(mine: Any, theirs: Any, name: str = "") -> Iterator[str]:
    """Yield the dotted names of what differs between two JSON values."""
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        for key in sorted({*mine, *theirs}, key=str):
            inner = f"{name}.{key}" if name else str(key)
            yield from differences(mine.get(key), theirs.get(key), inner)
    elif mine != theirs:
        yield name
