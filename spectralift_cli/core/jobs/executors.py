"""Who computes the blocks of a job: this process, processes beside it, or a Dask cluster.

An executor is entered before anything else is imported or read, so that others can prepare
themselves meanwhile; `run` then ensures the blocks. They are proven by their receipts; nothing else
comes back from where they are computed. This module imports nothing of PyTorch's size.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import secrets
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from spectralift_cli.core.errors import DataError, SpectraliftWarning
from spectralift_cli.core.jobs.crew import Assignment, Blocks, Crew, failure_of, raise_failure
from spectralift_cli.core.resources import available_cpus, available_memory_bytes

if TYPE_CHECKING:
    from spectralift_cli.core.jobs.blocks import BlockWorker, InferTask
    from spectralift_cli.core.jobs.folder import Job

Done = Callable[[int], None]
_CONNECT_S = 15
_SCHEDULER_FILE_BYTES = 2**20  # a document of a few hundred, and as much again for each worker
_POLL_S = 1.0
_PROCESS_BYTES = 300 * 10**6  # of Python and PyTorch, as examples/scale.md says
_WINDOW_PER_THREAD = 2  # some blocks are computed while the next ones are on their way
_BLOCKS_PER_TASK = 4  # so that one is computed while the last is brought to the disk
_TASKS_PER_THREAD = 4  # at least, so that no thread is idle for long in the end


class Executor(Protocol):
    """Whoever can ensure the blocks of a job, from when it is entered on."""

    def adapted(self, task: InferTask) -> InferTask:
        """Return the task as this process is to open it."""

    def run(self, worker: BlockWorker, blocks: Sequence[int], done: Done) -> None:
        """Ensure every block; call done(block) after each, in any order and from any thread.

        Raises:
            SpectraliftError: a block cannot be computed, or nobody is left to do it.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class _Hired:
    """What executors have in common: nothing to open or to close."""

    def adapted(self, task: InferTask) -> InferTask:
        """Return the task as it is."""
        return task

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let everybody go."""


class ThisProcess(_Hired):
    """The calling process alone."""

    def run(self, worker: BlockWorker, blocks: Sequence[int], done: Done) -> None:
        """Ensure every block; see `Executor`."""
        worker.run(blocks, done)


class LocalProcesses(_Hired):
    """The calling process and others on this machine; one of these that dies is replaced.

    Args:
        count: how many in all, at least 1. They share the task's threads.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._crew = Crew(count - 1)

    def adapted(self, task: InferTask) -> InferTask:
        """Return the task with this process's share of the threads."""
        from spectralift_cli.core.devices import check_threads

        share = max(1, check_threads(task.execution.threads) // self._count)
        return replace(task, execution=replace(task.execution, threads=share))

    def run(self, worker: BlockWorker, blocks: Sequence[int], done: Done) -> None:
        """Ensure every block; see `Executor`."""
        shared = Blocks(blocks, done, worker.unit_of)
        job = worker.job
        self._crew.begin(Assignment(worker.task, job.folder, job.id), shared)
        worker.run(shared, shared.done, shared.fail)
        self._crew.end()

    def __enter__(self) -> Self:
        needed, there = self._count * _PROCESS_BYTES, available_memory_bytes()
        if self._count > 1 and needed > there:
            raise DataError(
                f"{self._count} workers take {needed / 1e6:,.0f} MB of memory at least, Python and "
                f"PyTorch alone; {there / 1e6:,.0f} MB are free",
                f"give fewer --workers: this machine has {available_cpus()} processors",
            )
        self._crew.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._crew.__exit__(kind, value, traceback)


class DaskCluster(_Hired):
    """The workers of a running Dask cluster, which see the same files under the same paths.

    Args:
        address: of the scheduler, like tcp://host:8786, or None.
        scheduler_file: in its place, the file that names it.
    """

    def __init__(self, address: str | None = None, scheduler_file: Path | None = None) -> None:
        self._address = address
        self._file = scheduler_file
        self._client: Any = None
        self._failure: BaseException | None = None
        self._connecting = threading.Thread(target=self._connect, name="connecting", daemon=True)

    def run(self, worker: BlockWorker, blocks: Sequence[int], done: Done) -> None:
        """Ensure every block; see `Executor`."""
        self._connecting.join()
        if self._failure is not None:
            raise self._failure
        distributed = _import_distributed()
        try:
            with self._client.as_current():
                self._submit_all(distributed, worker, blocks, done)
        except (OSError, distributed.CancelledError) as error:  # of the connection and its futures
            raise self._lost() from error

    def _connect(self) -> None:
        """Connect, and let every worker import what it will need."""
        try:
            distributed = _import_distributed()
            address = self._address if self._file is None else address_in(self._file)
            try:
                self._client = distributed.Client(address, timeout=_CONNECT_S, set_as_default=False)
                for name in self._client.nthreads():
                    distributed.fire_and_forget(
                        self._client.submit(prepare, workers=[name], pure=False)
                    )
            except (OSError, ValueError, TimeoutError) as error:
                raise DataError(
                    f"{address}: no Dask scheduler answers there",
                    "start one (dask scheduler), or check the address",
                ) from error
        except BaseException as failure:  # raised by `run`
            self._failure = failure

    @property
    def _named(self) -> str:
        return self._address or f"the scheduler of {self._file}"

    def _lost(self) -> DataError:
        return DataError(
            f"{self._named}: there is no connection to the Dask scheduler",
            "start it again, then continue with --resume",
        )

    def _submit_all(
        self, distributed: Any, worker: BlockWorker, blocks: Sequence[int], done: Done
    ) -> None:
        """Keep a bounded number of tasks with the cluster until all blocks are done."""
        client, job, task = self._client, worker.job, worker.task
        threads = max(1, sum(client.nthreads().values()))
        queue = deque(tasks_of(blocks, threads))
        # of this run: a task of another one with the same first block may have fewer
        run = f"spectralift-{job.id}-{secrets.token_hex(4)}"
        has_waited = False
        under_way: dict[Any, Sequence[int]] = {}
        while queue or under_way:
            if client.status != "running":
                raise self._lost()
            threads = sum(client.nthreads().values())
            while queue and len(under_way) < max(1, _WINDOW_PER_THREAD * threads):
                some = queue.popleft()
                future = client.submit(
                    ensure_on_cluster, task, str(job.folder), job.id, some, pure=False, retries=3,
                    key=f"{run}-{some[0]}",
                )  # fmt: skip
                under_way[future] = some
            with contextlib.suppress(TimeoutError):
                distributed.wait(list(under_way), timeout=_POLL_S, return_when="FIRST_COMPLETED")
            if not threads and not has_waited:
                has_waited = True
                warnings.warn(
                    f"{self._named}: the Dask cluster has no workers; this run waits for one",
                    SpectraliftWarning,
                    stacklevel=2,
                )
            for future in [future for future in under_way if future.done()]:
                some = under_way.pop(future)
                if future.status in ("cancelled", "lost"):
                    raise self._lost()
                if future.status == "error":
                    error = future.exception()
                    raise DataError(
                        f"{task.output}: the Dask workers cannot compute blocks {some[0]} to "
                        f"{some[-1]}: {type(error).__name__}: {error}",
                        "they need this version of spectralift, and the files under the same paths",
                    )
                raise_failure(future.result())
                for block in some:
                    done(block)

    def __enter__(self) -> Self:
        self._connecting.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None or not self._connecting.is_alive():
            self._connecting.join()
            if self._client is not None:
                with contextlib.suppress(OSError, TimeoutError):
                    self._client.close(timeout=1)


def address_in(file: Path) -> str:
    """Return the address in the file of a Dask scheduler.

    Raises:
        DataError: there is no such file, or it names no scheduler.
    """
    hint = "dask scheduler --scheduler-file writes it"
    if not file.is_file():
        raise DataError(f"{file}: no such file", hint)
    try:
        with file.open("rb") as opened:
            address = json.loads(opened.read(_SCHEDULER_FILE_BYTES))["address"]
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})", hint) from error
    except (ValueError, RecursionError, TypeError, LookupError):
        address = None
    if not isinstance(address, str):
        raise DataError(f"{file}: is not the file of a Dask scheduler, it holds no address", hint)
    return address


def tasks_of(blocks: Sequence[int], threads: int) -> list[Sequence[int]]:
    """Return the blocks in the tasks that a cluster of so many threads is given."""
    size = max(1, min(_BLOCKS_PER_TASK, len(blocks) // (_TASKS_PER_THREAD * threads)))
    return [blocks[at : at + size] for at in range(0, len(blocks), size)]


def _import_distributed() -> Any:
    try:
        # before the import, which reads it: a lost scheduler is told by our error, not by its log
        quiet = {"distributed": "critical", "distributed.client": "critical"}
        importlib.import_module("dask").config.set({"logging": quiet})
        return importlib.import_module("distributed")  # untyped, and an optional dependency
    except ModuleNotFoundError as error:
        raise DataError(
            "a Dask cluster needs the package distributed, which is not installed",
            "pip install 'spectralift-cli[dask]'",
        ) from error


class _Held:
    """What a Dask worker's thread keeps between two tasks: the open model, image and output."""

    def __init__(self) -> None:
        self._key: Any = None
        self._worker: BlockWorker | None = None

    def ensure(
        self, task: InferTask, folder: str, job_id: str, blocks: Iterable[int]
    ) -> dict[str, Any]:
        """Ensure blocks; return what went wrong, which may have to travel, as plain values."""
        from spectralift_cli.core.jobs.blocks import BlockWorker

        try:
            with _joined(folder, job_id) as job:
                if self._key != (job_id, task) or self._worker is None:
                    self.drop()
                    self._worker = BlockWorker(task, job)
                    self._key = (job_id, task)
                self._worker.run(blocks, lambda block: None)
        except Exception as error:
            self.drop()
            return failure_of(error)
        return {}

    def drop(self) -> None:
        """Close what is open."""
        if self._worker is not None:
            self._worker.__exit__(None, None, None)
            self._worker = None


@contextlib.contextmanager
def _joined(folder: str, job_id: str) -> Iterator[Job]:
    """Join a job for one task, so that nobody waits for a process that has nothing to do."""
    from spectralift_cli.core.jobs.folder import Job

    try:
        job = Job(Path(folder), job_id)
    except FileNotFoundError as error:
        raise DataError(
            f"{folder}: the job is not there on process {os.getpid()}",
            "all workers need the same files under the same paths",
        ) from error
    with job:
        yield job


_ON_CLUSTER = threading.local()


def prepare() -> None:
    """Import in a Dask worker what its first task will need."""
    importlib.import_module("spectralift_cli.core.jobs.blocks")


def ensure_on_cluster(
    task: InferTask, folder: str, job_id: str, blocks: Sequence[int]
) -> dict[str, Any]:
    """Ensure blocks in a Dask worker, whose threads each keep files of their own open."""
    import torch

    torch.set_num_threads(1)  # for good: a thread that set it back would disturb the others
    if not hasattr(_ON_CLUSTER, "held"):
        _ON_CLUSTER.held = _Held()
    execution = replace(task.execution, threads=task.execution.threads or 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpectraliftWarning)
        found: dict[str, Any] = _ON_CLUSTER.held.ensure(
            replace(task, execution=execution), folder, job_id, blocks
        )
    return found
