"""Files written at offsets, past the page cache where they are large: always the bytes given."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectralift_cli.core.cube import Cube
from spectralift_cli.core.formats import create_cube, rawio
from spectralift_cli.core.formats.rawio import PAGE, RowFile

SIZE = 40 * PAGE + 123


@pytest.fixture(autouse=True, scope="module")
def small() -> object:
    """Let small files pass for large ones, and a write take several rounds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rawio, "_DIRECT_BYTES", 1)
        patch.setattr(rawio, "_LEAST_DIRECT_BYTES", 2 * PAGE)
        patch.setattr(rawio, "_ROOM_BYTES", 3 * PAGE)
        yield


@pytest.fixture
def direct(tmp_path: Path) -> list[int]:
    """Sizes of the writes that went past the page cache; skips where the disk takes none."""
    if not hasattr(os, "O_DIRECT"):
        pytest.skip("this system writes through the page cache only")
    try:
        os.close(os.open(tmp_path / "probe", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
    except OSError:
        pytest.skip(f"the file system of {tmp_path} writes through the page cache only")
    return []


def in_page(data: bytes, offset: int) -> np.ndarray:
    """Return an array in memory of which the first byte lies `offset` bytes into a page."""
    room = np.zeros(len(data) + 2 * PAGE, np.uint8)
    start = -room.ctypes.data % PAGE + offset % PAGE
    room[start : start + len(data)] = np.frombuffer(data, np.uint8)
    return room[start : start + len(data)]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_bytes_are_where_they_were_written(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("rows") / "file"
    expected = bytearray(SIZE)
    path.write_bytes(b"\7" * 100)  # what is there already stays
    expected[:100] = b"\7" * 100
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    files = [RowFile(path, SIZE), RowFile(path, SIZE)]
    for _ in range(data.draw(st.integers(1, 6))):
        offset = data.draw(st.one_of(st.integers(0, SIZE), st.sampled_from((0, PAGE, PAGE - 1))))
        values = rng.bytes(data.draw(st.integers(0, SIZE - offset)))
        # in memory as in the file, or anyhow
        place = data.draw(st.sampled_from((offset, 1, 0)))
        data.draw(st.sampled_from(files)).write(in_page(values, place), offset)
        expected[offset : offset + len(values)] = values
    files[0].sync()
    for file in files:
        file.close()
    assert path.read_bytes() == expected


def test_large_writes_pass_the_cache_by(
    tmp_path: Path, direct: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = RowFile(tmp_path / "file", SIZE)
    through: list[int] = []
    monkeypatch.setattr(os, "pwrite", recorded(os.pwrite, file._direct_fd, direct, through))
    values = np.random.default_rng(0).bytes(10 * PAGE + 20)
    file.write(np.frombuffer(values, np.uint8), PAGE - 10)
    file.close()
    assert sum(direct) == 10 * PAGE
    assert sum(through) == 20
    assert (tmp_path / "file").read_bytes()[PAGE - 10 :][: len(values)] == values


def recorded(
    pwrite: Callable[..., int], fd: int, direct: list[int], through: list[int]
) -> Callable[..., int]:
    def write(to: int, data: object, offset: int) -> int:
        done = pwrite(to, data, offset)
        (direct if to == fd else through).append(done)
        return done

    return write


@pytest.mark.parametrize("fails_after", [0, 2])
def test_a_file_system_that_refuses_direct_writes(
    fails_after: int, tmp_path: Path, direct: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = RowFile(tmp_path / "file", SIZE)
    fd, real = file._direct_fd, os.pwrite

    def pwrite(to: int, data: Any, offset: int) -> int:
        if to == fd and len(direct) == fails_after:
            raise OSError(errno.EINVAL, "Invalid argument")
        if to == fd:
            direct.append(offset)
            return real(to, memoryview(data)[:-5], offset)  # cut short, too
        return real(to, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    values = np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8)
    file.write(values, 0)
    file.close()
    assert (tmp_path / "file").read_bytes() == values.tobytes()


def test_neighbours_write_at_once(tmp_path: Path, direct: list[int]) -> None:
    """Blocks that share pages, each written by one of four threads with a file of its own."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, 4000 * 1000, dtype=np.uint8)
    ends = np.sort(rng.choice(values.size, 199, replace=False))
    blocks = list(zip([0, *ends], [*ends, values.size], strict=True))

    def work(mine: list[tuple[int, int]]) -> None:
        file = RowFile(tmp_path / "file", values.size)
        for start, stop in mine:
            file.write(values[start:stop], start)
        file.close()

    threads = [threading.Thread(target=work, args=(blocks[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_bytes() == values.tobytes()


def test_nothing_of_a_page_but_what_was_given_is_sent_to_other_hosts(tmp_path: Path) -> None:
    """Opened for reading, too, NFS would fetch a page that is written in part and send all of it."""
    file = RowFile(tmp_path / "file", SIZE)
    flags = fcntl.fcntl(file._fd, fcntl.F_GETFL)
    file.close()
    assert flags & os.O_ACCMODE == os.O_WRONLY


def test_pages_are_those_of_the_system() -> None:
    """Half a page of 64 KiB written past the cache is lost where the cache holds the other half."""
    code = (
        "import mmap; mmap.PAGESIZE = 2**16\n"
        "from spectralift_cli.core.formats.rawio import PAGE; print(PAGE)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 2**16


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = RowFile(tmp_path / "file", SIZE)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        file.write(np.zeros(SIZE, np.uint8), 0)
    file.close()
    file.close()


@pytest.mark.parametrize("name", ["x.npy", "x.img", "x.bil"])
def test_writers_know_where_rows_begin_in_a_page(name: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2**31, (40, 301, 3), dtype=np.int32)
    cube = Cube.of(values)
    with create_cube(tmp_path / name, cube.meta) as writer:
        told = [writer.page_offset(row) for row in range(40)]
        writer.write(slice(0, 40), values)
        writer.commit()
    data = (tmp_path / name).read_bytes()
    rows = [data.find(row.tobytes()) % PAGE for row in values]
    # with the bands of a row one after the other no order in memory is that of the file
    assert told == ([0] * 40 if name == "x.bil" else rows)
