"""What keeps a large job fast and alive: blocks that are shared out, chunks that are decoded once."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectralift_cli.core import engine, footprint
from spectralift_cli.core.config import InferConfig
from spectralift_cli.core.cube import AnyArray, Cube
from spectralift_cli.core.cubeio import row_blocks
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats import open_cube, write_cube, zarr
from spectralift_cli.core.inference import infer
from spectralift_cli.core.jobs.crew import Blocks
from spectralift_cli.core.jobs.executors import tasks_of
from tests.inverters import make_checkpoint


def test_blocks_that_are_lost_come_back_to_who_waits() -> None:
    done: list[int] = []
    blocks = Blocks(range(3), done.append)
    mine = iter(blocks)
    assert next(mine) == 0
    assert [blocks.take(), blocks.take(), blocks.take()] == [1, 2, None]
    blocks.done(0)
    waiting: list[int] = []

    def work() -> None:
        for block in mine:
            waiting.append(block)
            blocks.done(block)

    thread = threading.Thread(target=work)
    thread.start()
    blocks.done(2)
    assert thread.is_alive()  # block 1 may still be lost
    blocks.give_back([1])
    thread.join(30)
    assert not thread.is_alive()
    assert (waiting, done, len(blocks)) == ([1], [0, 2, 1], 0)


@given(
    units=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    takers=st.integers(1, 5),
    rng=st.randoms(use_true_random=False),
)
def test_units_are_decoded_by_one_process_while_there_are_others(
    units: list[int], takers: int, rng: random.Random
) -> None:
    unit_of = [unit for unit, size in enumerate(units) for _ in range(size)]
    blocks = Blocks(range(len(unit_of)), lambda block: None, unit_of.__getitem__)
    last: list[int | None] = [None] * takers
    seen: list[int] = []
    at: dict[int, set[int]] = {}
    while True:
        taker = rng.randrange(takers)
        begun = set(at)
        block = blocks.take(last[taker])
        if block is None:
            break
        unit = unit_of[block]
        before = last[taker]
        if before is not None and any(
            unit_of[b] == unit_of[before] and b not in seen for b in range(len(unit_of))
        ):
            assert unit == unit_of[before]
        if taker not in at.get(unit, set()):
            # somebody else's unit is joined only where no other is left
            assert unit not in begun or len(begun) == len(units)
        at.setdefault(unit, set()).add(taker)
        seen.append(block)
        last[taker] = block
    assert sorted(seen) == list(range(len(unit_of)))


def test_failure_elsewhere_ends_the_waiting() -> None:
    blocks = Blocks(range(2), lambda block: None)
    mine = iter(blocks)
    assert [next(mine), blocks.take()] == [0, 1]
    blocks.fail(DataError("no room", "make some"))
    with pytest.raises(DataError, match="no room"):
        next(mine)
    assert blocks.take() is None


@pytest.mark.parametrize(("blocks", "threads"), [(1, 4), (64, 2), (64, 100), (4096, 64)])
def test_tasks_hold_every_block_once(blocks: int, threads: int) -> None:
    tasks = tasks_of(range(blocks), threads)
    assert [block for task in tasks for block in task] == list(range(blocks))
    assert max(len(task) for task in tasks) <= 4
    assert len(tasks) >= min(blocks, threads)


@pytest.mark.parametrize(
    ("memory_bytes", "expected"), [(None, [64, 64, 22]), (100_000, [7] * 21 + [3])]
)
def test_chunks_of_an_image_are_decoded_once_where_memory_allows(
    memory_bytes: int | None,
    expected: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = np.random.default_rng(2).random((150, 40, 3)).astype(np.float32)
    write_cube(tmp_path / "msi.zarr", Cube.of(values), options={"CHUNK": "64"})
    decoded: list[int] = []
    fill = zarr.ZarrReader._fill

    def counted(self: zarr.ZarrReader, start: int, out: AnyArray) -> None:
        decoded.append(len(out))
        fill(self, start, out)

    monkeypatch.setattr(zarr.ZarrReader, "_fill", counted)
    # a row of chunks is far larger than what is read at a time: 7 rows
    monkeypatch.setattr(zarr, "_CACHE_BYTES", 0)
    monkeypatch.setattr(footprint, "BLOCK_BYTES", 7 * 40 * 12)
    with open_cube(tmp_path / "msi.zarr", memory_bytes=memory_bytes) as reader:
        reader.block_rows = 7
        infer(make_checkpoint(5, 3), reader, tmp_path / "out.npy", InferConfig(), batch_size=97)
    assert decoded == expected


@pytest.mark.parametrize(
    ("chunks", "expected"), [(82, [17, 17, 17, 17, 14]), (80, [20] * 4), (20, [20]), (3, [3])]
)
def test_groups_of_chunks_are_even(chunks: int, expected: list[int]) -> None:
    """Of 82 chunks by 20 the last two would be over before the 20 before them are written."""
    parts = row_blocks(100 * chunks, engine._even(100 * chunks, 20 * 100, 100))
    assert [(part.stop - part.start) // 100 for part in parts] == expected
