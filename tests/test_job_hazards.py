"""What may come between the processes of a job: other files, other runs, signals, full disks."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from spectralift_cli.core.checkpoint import save_checkpoint
from spectralift_cli.core.config import InferConfig
from spectralift_cli.core.cube import AnyArray, Cube
from spectralift_cli.core.errors import (
    DataError,
    SpectraliftWarning,
)
from spectralift_cli.core.formats import write_cube
from spectralift_cli.core.formats.envi import EnviReader
from spectralift_cli.core.formats.rawio import RowFile
from spectralift_cli.core.jobs.blocks import BlockWorker, InferTask
from spectralift_cli.core.jobs.executors import DaskCluster, ThisProcess
from spectralift_cli.core.jobs.folder import Job, job_path
from spectralift_cli.core.jobs.sharing import Sharing, infer_shared
from spectralift_cli.core.operators.scaling import Scaling
from spectralift_cli.core.stages import Execution, infer
from tests.test_jobs import (
    BATCH,
    SHARED,
    assert_same,
    bytes_of,
    checkpoint_and_msi,
    half_done,
    make_task,
    with_output,
)


@pytest.fixture
def task(tmp_path: Path) -> InferTask:
    return make_task(tmp_path)


@pytest.mark.filterwarnings("ignore:.*beyond what")
def test_blocks_are_checked_within_the_promised_memory(
    task: InferTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many processors could read them back at once."""
    stored = np.random.default_rng(8).integers(0, 9000, (192, 6000, 3)).astype(np.uint16)
    write_cube(task.image, Cube.of(stored, nodata=65535, scale=1e-4), overwrite=True)
    task = with_output(task, "out.zarr", batch_size=4096)
    half_done(task)
    monkeypatch.setattr("spectralift_cli.core.footprint.peak_memory_bytes", lambda: 0)
    monkeypatch.setattr("spectralift_cli.core.jobs.blocks.available_cpus", lambda: 64)
    at_once, most = 0, 0
    checked = BlockWorker._stored_crc32

    def counted(self: BlockWorker, block: int) -> int | None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.05)
        found = checked(self, block)
        at_once -= 1
        return found

    monkeypatch.setattr(BlockWorker, "_stored_crc32", counted)
    task = replace(task, execution=Execution("cpu", memory_bytes=54 * 10**6))
    with contextlib.closing(task.open()) as inference:
        plan = task.plan(inference)
        with (
            Job.join(task.output, plan, must_be_new=False) as job,
            BlockWorker(task, job, inference) as worker,
        ):
            missing = worker.unproven(range(worker.grid.count))
            assert len(missing) == worker.grid.count // 2 == 6
            needed_bytes = worker.inference.plan.needed_bytes
    assert most * 2 * 16 * 6000 * 10 <= needed_bytes < 54 * 10**6


def test_worker_that_opens_other_files_than_were_planned_stops(
    task: InferTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is started when another has died, or on another host: long after the plan was made."""
    with contextlib.closing(task.open()) as inference:
        plan = task.plan(inference)
    with Job.join(task.output, plan, must_be_new=True) as job:
        with BlockWorker(task, job):
            pass
        with monkeypatch.context() as patch:
            patch.setattr("spectralift_cli.core.jobs.blocks.__version__", "0")
            with pytest.raises(DataError, match=r"differs: version$"):
                BlockWorker(task, job)
        other = replace(checkpoint_and_msi()[0], scaling=Scaling(0.1, 0.7))
        save_checkpoint(other, task.model, overwrite=True)
        with pytest.raises(DataError, match=r"differs: model\.sha256$"):
            BlockWorker(task, job)


def test_workers_elsewhere_are_told_whole_paths(
    task: InferTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(task.model.parent)
    estimate = Path("estimate.json")
    told: list[InferTask] = []

    class Listening(ThisProcess):
        def adapted(self, task: InferTask) -> InferTask:
            told.append(task)
            return task

    for name in ("model", "image", "output"):
        task = replace(task, **{name: Path(getattr(task, name).name)})
    with pytest.raises(DataError, match=r"estimate\.json"):
        infer_shared(replace(task, estimate=estimate), Sharing(), executor=Listening())
    paths = (told[0].model, told[0].image, told[0].output, told[0].estimate)
    assert all(path is not None and path.is_absolute() for path in paths)


def test_job_on_a_disk_that_is_gone_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    output = tmp_path / "x.npy"
    job_path(output).symlink_to(tmp_path / "unmounted" / "job")
    with pytest.raises(DataError, match=r"is a link to .*unmounted"):
        Job.join(output, {}, must_be_new=False)
    assert job_path(output).is_symlink()


def test_interrupt_while_files_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal that comes as `close` returns: whoever cleans up then closes nothing twice."""
    job = Job.join(tmp_path / "x.npy", {}, must_be_new=True)
    file = RowFile(tmp_path / "file", 10)
    real = os.close

    def close(fd: int) -> None:
        real(fd)
        raise KeyboardInterrupt

    for leave in (job.leave, file.close):
        with monkeypatch.context() as patch:
            patch.setattr(os, "close", close)
            with pytest.raises(KeyboardInterrupt):
                leave()
        leave()


def test_job_of_which_the_removal_was_cut_off_leaves_nothing(task: InferTask) -> None:
    half = job_path(task.output).with_name(f".{job_path(task.output).name}.0123abcd.part")
    (half / "data").mkdir(parents=True)
    (half / "data" / "out.npy").write_bytes(bytes(100))
    infer(task.model, task.image, task.output, batch_size=BATCH)
    assert not half.exists()


class FinishedTask:
    """Stands for a Dask future."""

    status = "finished"

    def done(self) -> bool:
        return True

    def result(self) -> dict[str, Any]:
        return {}


class SilentCluster:
    """Stands for a Dask client whose only worker comes late and has done everything at once."""

    status = "running"

    def __init__(self) -> None:
        self.submitted: list[tuple[str, Sequence[int]]] = []
        self._asked = 0

    def nthreads(self) -> dict[str, int]:
        self._asked += 1
        return {} if self._asked < 3 else {"worker": 1}

    def submit(
        self, work: Any, task: Any, folder: str, job: str, blocks: Sequence[int], **more: Any
    ) -> FinishedTask:
        self.submitted.append((more["key"], blocks))
        return FinishedTask()


def test_tasks_of_two_runs_on_one_cluster_are_not_taken_for_each_other(task: InferTask) -> None:
    """Dask gives the one that asks second the result of the first where the keys are the same."""
    distributed = SimpleNamespace(wait=lambda *_, **__: None)
    worker: Any = SimpleNamespace(job=SimpleNamespace(id="1", folder=Path("x")), task=task)
    clients = [SilentCluster(), SilentCluster()]
    for client, count in zip(clients, (64, 3), strict=True):
        done: list[int] = []
        cluster = DaskCluster("tcp://127.0.0.1:1")
        cluster._client = client
        with pytest.warns(SpectraliftWarning, match="no workers; this run waits"):
            cluster._submit_all(distributed, worker, range(count), done.append)
        assert sorted(done) == list(range(count))
    first, second = ({key for key, _ in client.submitted} for client in clients)
    assert not first & second


@pytest.mark.parametrize("shared", [False, True])
def test_nothing_is_read_of_an_image_that_is_closed(
    task: InferTask, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full while the next rows are being read; GDAL would crash."""
    for module in ("footprint", "cubeio"):
        monkeypatch.setattr(f"spectralift_cli.core.{module}.BLOCK_BYTES", 16 * 97 * 6)
    read, close, write = EnviReader._read, EnviReader.close, RowFile.write
    reading = 0
    closed_while: list[int] = []

    def slow_read(self: EnviReader, start: int, stop: int) -> AnyArray:
        nonlocal reading
        reading += 1
        time.sleep(0.1)
        values = read(self, start, stop)
        reading -= 1
        return values

    def watched(self: EnviReader) -> None:
        closed_while.append(reading)
        close(self)

    def full(self: RowFile, data: AnyArray, offset: int) -> None:
        if offset > 128:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, data, offset)

    monkeypatch.setattr(EnviReader, "_read", slow_read)
    monkeypatch.setattr(EnviReader, "close", watched)
    monkeypatch.setattr(RowFile, "write", full)
    with pytest.raises(DataError, match="No space"):
        if shared:
            infer_shared(task, Sharing(resume=True))
        else:
            infer(task.model, task.image, task.output, batch_size=BATCH)
    assert closed_while
    assert not any(closed_while)


@pytest.mark.filterwarnings("ignore:.*beyond what")
@pytest.mark.parametrize("name", SHARED)
def test_an_older_output_does_not_pass_for_that_of_a_removed_job(
    task: InferTask, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run may come between the last block and the move into place."""
    task = with_output(task, name, overwrite=True)
    alone = Job.alone

    def finished_by_another(job: Job) -> Any:
        monkeypatch.setattr(Job, "alone", alone)
        job.leave()
        infer_shared(task, Sharing(resume=True))
        return alone(job)

    def removed_by_another(job: Job) -> Any:
        monkeypatch.setattr(Job, "alone", alone)
        shutil.rmtree(job.folder)
        return alone(job)

    infer_shared(replace(task, config=InferConfig(clip="none")), Sharing(resume=True))
    older = bytes_of(task.output)
    monkeypatch.setattr(Job, "alone", removed_by_another)
    with pytest.raises(DataError, match="finished or replaced"):
        infer_shared(task, Sharing(resume=True))
    assert bytes_of(task.output) == older
    monkeypatch.setattr(Job, "alone", finished_by_another)
    assert_same(infer_shared(task, Sharing(resume=True)), task)
