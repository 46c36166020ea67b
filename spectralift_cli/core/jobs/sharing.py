"""Joining a job, having its blocks computed, and moving the finished output into place.

What PyTorch brings along is imported inside: whoever helps is started before.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from spectralift_cli.core.cube import Progress, no_progress
from spectralift_cli.core.errors import OptionError
from spectralift_cli.core.formats import check_shares_rows, open_cube
from spectralift_cli.core.jobs.executors import DaskCluster, Executor, LocalProcesses, ThisProcess
from spectralift_cli.core.jobs.plan import Shard

if TYPE_CHECKING:
    from spectralift_cli.core.inference import InferResult
    from spectralift_cli.core.jobs.blocks import BlockWorker, InferTask


@dataclass(frozen=True)
class Sharing:
    """Who works on an output, and whether a job that is there goes on.

    Args:
        workers: local processes, or None for this one alone.
        shard: the share of this run, or None for everything.
        scheduler: address of a Dask scheduler, or None.
        scheduler_file: the file that names it, or None.
        resume: continue a job that was killed, or begin one.

    Raises:
        OptionError: local processes and a Dask cluster at once.
    """

    workers: int | None = None
    shard: Shard | None = None
    scheduler: str | None = None
    scheduler_file: Path | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        clusters = [self.scheduler, self.scheduler_file, self.workers]
        if sum(one is not None for one in clusters) > 1:
            raise OptionError(
                "--workers, --scheduler and --scheduler-file exclude each other", "give one of them"
            )
        if self.workers is not None and self.workers < 1:
            raise OptionError(f"{self.workers} workers cannot work", "give --workers 1 or more")

    def executor(self) -> Executor:
        """Return who computes the blocks, to be entered first of all."""
        if self.scheduler is not None or self.scheduler_file is not None:
            return DaskCluster(self.scheduler, self.scheduler_file)
        return ThisProcess() if self.workers is None else LocalProcesses(self.workers)


@dataclass(frozen=True)
class SharedResult:
    """What a run did for a job.

    Args:
        result: of the whole output, or None while other blocks are missing.
        folder: the job's.
        blocks_done: blocks that are proven complete.
        blocks: of the job.
    """

    result: InferResult | None
    folder: Path
    blocks_done: int
    blocks: int


def infer_shared(
    task: InferTask,
    sharing: Sharing,
    *,
    executor: Executor | None = None,
    progress: Progress = no_progress,
) -> SharedResult:
    """Write the sharp hyperspectral cube of an HR-MSI together with other processes.

    The output has the bytes that one process alone would write.

    Args:
        task: the inference.
        sharing: who works on it.
        executor: of `sharing`, where the caller has entered it already.
        progress: called with (done, total) blocks of this run, by one thread at a time.

    Raises:
        DataError: see `infer`; or an input changed since the job was begun.
        OptionError: the format takes one writer only.
        OutputExistsError: the output, or an unfinished job of it, is there and neither `overwrite`
            nor `resume` was asked for.
    """
    if executor is None:
        check_shares_rows(task.output)
        with sharing.executor() as own:
            return infer_shared(task, sharing, executor=own, progress=progress)
    from spectralift_cli.core.engine import Counts
    from spectralift_cli.core.jobs.blocks import BlockWorker
    from spectralift_cli.core.jobs.folder import Job, job_path, refuse_unfinished

    given, task = task, executor.adapted(_absolute(task))
    check_shares_rows(task.output)
    joins = sharing.resume or sharing.shard is not None
    if not joins:
        refuse_unfinished(task.output, overwrite=task.overwrite)
    with contextlib.closing(task.open()) as inference:
        plan = task.plan(inference)
        job = Job.join(task.output, plan, must_be_new=not joins, overwrite=task.overwrite)
        try:
            with job, BlockWorker(task, job, inference) as worker:
                blocks = range(worker.grid.count)
                ensured = _ensure(worker, sharing, executor, progress)
                receipts = [job.receipt(block) for block in blocks]
                complete = [receipt for receipt in receipts if receipt is not None]
                result = None
                if len(complete) == len(blocks):
                    names = [path.name for path in _finish(worker, ensured)]
                    files = tuple(given.output.with_name(name) for name in names)
                    counts = sum((receipt.counts for receipt in complete), Counts())
                    result = inference.result(given.output, files, counts)
        except BaseException:
            job.remove_if_new()
            raise
    return SharedResult(result, job_path(given.output), len(complete), len(blocks))


def _ensure(
    worker: BlockWorker, sharing: Sharing, executor: Executor, progress: Progress
) -> set[int]:
    """Ensure this run's share of the blocks; return them."""
    total = worker.grid.count
    share = range(total) if sharing.shard is None else sharing.shard.of(total)
    ensured: set[int] = set()

    lock = threading.Lock()

    def done(block: int) -> None:
        with lock:
            ensured.add(block)
            progress(len(ensured), len(share))

    executor.run(worker, share, done)
    return ensured


def _finish(worker: BlockWorker, ensured: set[int]) -> tuple[Path, ...]:
    """Check the blocks of other runs and move the output into place; return its files.

    Two runs that find all blocks complete at the same time take turns; the second finds it done.

    Raises:
        DataError: the job was removed and not finished.
    """
    from spectralift_cli.core.jobs.folder import gone

    with worker.job.alone() as is_there:
        if not is_there:
            with open_cube(worker.task.output) as reader:
                if reader.meta.provenance != worker.inference.meta.provenance:
                    raise gone(worker.job.folder)  # that is an older one, which was to be replaced
                return reader.files
        others = [block for block in range(worker.grid.count) if block not in ensured]
        worker.run(worker.unproven(others), lambda block: None)
        worker.writer.assume(slice(None))
        files = worker.writer.commit()
        worker.job.remove()
    return files


def _absolute(task: InferTask) -> InferTask:
    """Return the task with paths that mean the same wherever a process was started."""
    from spectralift_cli.core.devices import resolve_device

    wavelengths = task.reading.wavelengths
    return replace(
        task,
        model=task.model.absolute(),
        image=task.image.absolute(),
        output=task.output.absolute(),
        estimate=task.estimate and task.estimate.absolute(),
        execution=replace(task.execution, device=str(resolve_device(task.execution.device))),
        reading=replace(task.reading, wavelengths=wavelengths and wavelengths.absolute()),
    )
