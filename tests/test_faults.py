"""Real processes killed, interrupted or out of disk: after --resume the bytes of an undisturbed run."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spectralift_cli.core.checkpoint import save_checkpoint
from spectralift_cli.core.cube import Cube
from spectralift_cli.core.formats import write_cube
from spectralift_cli.core.jobs.folder import job_path
from spectralift_cli.core.operators.scaling import Scaling
from tests.inverters import make_checkpoint
from tests.test_jobs import bytes_of

SIDE = 512
BATCH = 256  # 64 blocks
DEADLINE_S = 100


class Server:
    """Starts `spectralift` processes quickly; see `tests.forked`."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "log.txt"
        self._child: int | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def start(self, *words: object) -> int:
        assert self._child is None, "the last process was not waited for"
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([[str(w) for w in words], str(self._log)]) + "\n")
        self._process.stdin.flush()
        self._child = int(self._answer())
        return self._child

    def kill(self, number: signal.Signals) -> None:
        """Send a signal to the process that was started, if it is still there."""
        assert self._child is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child, number)

    def wait(self) -> int:
        """Return the exit code, negative for the signal that ended the process."""
        code = os.waitstatus_to_exitcode(int(self._answer()))
        self._child = None
        return code

    def run(self, *words: object) -> int:
        self.start(*words)
        return self.wait()

    @property
    def said(self) -> str:
        return self._log.read_text()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and an image of 512 x 512 pixels."""
    folder = tmp_path_factory.mktemp("faults")
    checkpoint = make_checkpoint(
        24, 3, hidden=64, scaling=Scaling(0.1, 0.8), dtype=np.dtype("int16"), scale=1e-4, nodata=-1
    )
    save_checkpoint(checkpoint, folder / "model.safetensors")
    stored = np.random.default_rng(8).integers(0, 9000, (SIDE, SIDE, 3)).astype(np.uint16)
    write_cube(folder / "msi.npy", Cube.of(stored, nodata=65535, scale=1e-4))
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    yield server
    server.close()


def words(folder: Path, output: Path, *more: object) -> list[object]:
    return [
        "infer", folder / "model.safetensors", folder / "msi.npy", "-o", output,
        "--inference-batch-size", BATCH, "--threads", 1, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def expected(folder: Path, server: Server) -> dict[str, dict[str, bytes]]:
    """What undisturbed runs write, by ending."""
    found = {}
    for suffix in (".npy", ".zarr", ".bsq"):
        path = folder / f"expected{suffix}"
        assert server.run(*words(folder, path)) == 0, server.said
        found[suffix] = bytes_of(path)
        remove(path)
    return found


def remove(output: Path) -> None:
    for path in output.parent.glob(f"{output.stem}.*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def receipts(output: Path) -> int:
    return len(list((job_path(output) / "receipts").glob("*.json")))


def wait_for(condition: Any) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("suffix", [".npy", ".zarr"])
def test_killed_at_ten_random_moments(
    suffix: str, folder: Path, server: Server, expected: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    output = tmp_path / f"out{suffix}"
    resume = words(folder, output, "--resume")
    moments = random.Random(suffix)
    begun = time.monotonic()
    assert server.run(*resume) == 0, server.said
    length_s = time.monotonic() - begun
    kills = 0
    while kills < 10:
        if output.exists():
            assert bytes_of(output) == expected[suffix]
            remove(output)
        server.start(*resume)
        time.sleep(moments.uniform(0, 0.7 * length_s))
        server.kill(signal.SIGKILL)
        kills += server.wait() == -signal.SIGKILL
    if not output.exists():
        assert server.run(*resume) == 0, server.said
    assert bytes_of(output) == expected[suffix]
    assert hidden(tmp_path) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_interrupted(
    number: signal.Signals, code: int, folder: Path, server: Server,
    expected: dict[str, dict[str, bytes]], tmp_path: Path,
) -> None:  # fmt: skip
    output = tmp_path / "out.bsq"
    server.start(*words(folder, output, "--resume"))
    wait_for(lambda: receipts(output) > 2)
    server.kill(number)
    assert server.wait() == code, server.said
    assert "Traceback" not in server.said
    assert hidden(tmp_path) == [p.name for p in tmp_path.iterdir()] == [".out.bsq.job"]
    assert server.run(*words(folder, output)) == 4
    assert "--resume continues it" in server.said
    assert server.run(*words(folder, output, "--resume")) == 0, server.said
    assert bytes_of(output) == expected[".bsq"]


def test_disk_full(
    folder: Path, server: Server, expected: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk, and not everywhere")
    try:
        for suffix, more in ((".npy", ()), (".zarr", ()), (".npy", ("--workers", 2))):
            output = tmp_path / f"out{suffix}"
            subprocess.run(["mount", "-o", "remount,size=4m", str(tmp_path)], check=True)
            assert server.run(*words(folder, output, "--resume", *more)) == 3
            assert "No space left" in server.said
            assert "Traceback" not in server.said
            assert not output.exists()
            subprocess.run(["mount", "-o", "remount,size=64m", str(tmp_path)], check=True)
            assert 0 < receipts(output) < 64
            assert server.run(*words(folder, output, "--resume")) == 0, server.said
            assert bytes_of(output) == expected[suffix]
            remove(output)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def children(process: int) -> set[int]:
    """The processes that a process has started, by /proc; those of multiprocessing's tracker too."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        if int(text.rpartition(")")[2].split()[1]) == process:
            found.add(int(stat.parent.name))
    return found


def is_worker(process: int) -> bool:
    try:
        return b"spawn_main" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers in /proc")
def test_killed_worker_is_replaced(
    folder: Path, server: Server, expected: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    output = tmp_path / "out.npy"
    process = server.start(*words(folder, output, "--workers", 3))
    wait_for(lambda: receipts(output) > 2)
    workers = {child for child in children(process) if is_worker(child)}
    assert len(workers) == 2
    os.kill(min(workers), signal.SIGKILL)
    assert server.wait() == 0, server.said
    assert bytes_of(output) == expected[".npy"]
    assert hidden(tmp_path) == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers in /proc")
def test_ctrl_c_does_not_hit_a_worker_that_is_still_starting(
    folder: Path, server: Server, tmp_path: Path
) -> None:
    """The terminal sends it to all processes; the one that was started answers for the others."""
    process = server.start(*words(folder, tmp_path / "out.npy", "--workers", 2))
    workers: set[int] = set()
    wait_for(lambda: workers.update(filter(is_worker, children(process))) or workers)
    for _ in range(20):
        os.kill(min(workers), signal.SIGINT)
        time.sleep(0.01)
    assert server.wait() == 0, server.said
    assert "Traceback" not in server.said


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers in /proc")
def test_workers_end_with_their_killed_parent(
    folder: Path, server: Server, expected: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    output = tmp_path / "out.zarr"
    process = server.start(*words(folder, output, "--workers", 3))
    wait_for(lambda: receipts(output) > 2)
    workers = {child for child in children(process) if is_worker(child)}
    server.kill(signal.SIGKILL)
    assert server.wait() == -signal.SIGKILL
    assert not output.exists()
    assert server.run(*words(folder, output, "--resume")) == 0, server.said
    assert bytes_of(output) == expected[".zarr"]
    wait_for(lambda: not any(is_worker(worker) for worker in workers))
    assert hidden(tmp_path) == []


class Cluster:
    """A Dask scheduler and two workers on 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "scheduler.json"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._log = (folder / "dask.log").open("wb")
        self._start("scheduler", "--host", "127.0.0.1", "--port", "0")
        wait_for(self.file.exists)
        for _ in range(2):
            self._start("worker", "--nthreads", "1", "--no-nanny", "--host", "127.0.0.1")

    def _start(self, kind: str, *more: str) -> None:
        self._processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "dask", kind, "--scheduler-file", str(self.file),
                 "--no-dashboard", *more],
                cwd=self.file.parent, stdout=self._log, stderr=self._log,
            )
        )  # fmt: skip

    def kill_scheduler(self) -> None:
        self._processes[0].kill()

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self._log.close()


def test_dask_cluster_and_its_scheduler_killed(
    folder: Path, expected: dict[str, dict[str, bytes]], server: Server, tmp_path: Path
) -> None:
    pytest.importorskip("distributed", reason="the extra dask is not installed")
    (tmp_path / "cluster").mkdir()
    cluster = Cluster(tmp_path / "cluster")
    try:
        where = ("--scheduler-file", cluster.file)
        output = tmp_path / "out.npy"
        assert server.run(*words(folder, output, *where)) == 0, server.said
        assert bytes_of(output) == expected[".npy"]
        output = tmp_path / "again.npy"
        server.start(*words(folder, output, *where))
        wait_for(lambda: receipts(output) > 2)
        cluster.kill_scheduler()
        assert server.wait() == 3, server.said
        assert "no connection to the Dask scheduler" in server.said
        assert "Traceback" not in server.said
        assert not output.exists()
    finally:
        cluster.close()
    assert server.run(*words(folder, output, "--resume")) == 0, server.said
    assert bytes_of(output) == expected[".npy"]
    missing = tmp_path / "missing.json"
    assert server.run(*words(folder, output, "--overwrite", "--scheduler-file", missing)) == 3
    assert "no such file" in server.said
