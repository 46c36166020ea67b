"""What a job makes and how it is cut: the same in every process that joins it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from spectralift_cli.core.errors import DataError

# a block is large beside the chunks at its borders, which are computed twice, and beside a receipt
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
    def of(cls, rows: int, row_bytes: int, step: int) -> BlockGrid:
        """Return the grid of an output.

        Args:
            rows: of the output.
            row_bytes: of a row.
            step: rows that the format writes together.
        """
        wanted = max(_BLOCK_BYTES // row_bytes, -(-rows // _MOST_BLOCKS), 1)
        return cls(rows, math.ceil(wanted / step) * step)

    @property
    def count(self) -> int:
        """Number of blocks."""
        return -(-self.rows // self.block_rows)

    def part(self, block: int) -> slice:
        """Return the rows of a block, counted from 0."""
        start = block * self.block_rows
        return slice(start, min(start + self.block_rows, self.rows))

    def to_json(self) -> dict[str, int]:
        """Return it as a JSON object."""
        return {"rows": self.rows, "block_rows": self.block_rows}


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
