"""Who computes the blocks of a job: this process, processes beside it, or a Dask cluster.

An executor has one function: `run(worker, blocks, done)` ensures every block and calls done(block)
after each. Blocks are proven by their receipts; nothing else comes back from where they are computed.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import threading
import traceback
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

import torch

from spectralift_cli.core import errors
from spectralift_cli.core.devices import check_threads
from spectralift_cli.core.errors import DataError, SpectraliftError, SpectraliftWarning
from spectralift_cli.core.jobs.blocks import BlockWorker, InferTask
from spectralift_cli.core.jobs.folder import Job

Done = Callable[[int], None]
_MOST_TRIES = 4
_CONNECT_S = 15
_POLL_S = 1.0
_WINDOW_PER_THREAD = 2  # one block is computed while the next one is on its way


class Executor(Protocol):
    """Whoever can ensure the blocks of a job."""

    def run(self, worker: BlockWorker, blocks: Iterable[int], done: Done) -> None:
        """Ensure every block; call done(block) after each, in any order.

        Args:
            worker: of the calling process.
            blocks: which.
            done: called in the calling process.

        Raises:
            SpectraliftError: a block cannot be computed, or nobody is left to do it.
        """


class ThisProcess:
    """The calling process alone."""

    def run(self, worker: BlockWorker, blocks: Iterable[int], done: Done) -> None:
        """Ensure every block; see `Executor`."""
        for block in blocks:
            worker.ensure(block)
            done(block)


@dataclass(frozen=True)
class LocalProcesses:
    """Processes on this machine; one that dies is replaced and its block computed again.

    Args:
        count: how many, at least 1. They share the task's threads.
    """

    count: int

    def run(self, worker: BlockWorker, blocks: Iterable[int], done: Done) -> None:
        """Ensure every block; see `Executor`."""
        queue = deque(blocks)
        count = min(self.count, len(queue))
        task = worker.task
        task = replace(task, threads=max(1, check_threads(task.threads) // max(1, count)))
        tries: Counter[int] = Counter()
        crew: dict[Connection, _Process] = {}
        with contextlib.ExitStack() as stack:
            while queue or any(process.block is not None for process in crew.values()):
                while queue and len(crew) < count:
                    process = stack.enter_context(_Process(task, worker.job))
                    crew[process.connection] = process
                for process in crew.values():
                    if process.block is None and queue:
                        process.hand_out(queue.popleft())
                busy = [c for c, process in crew.items() if process.block is not None]
                for connection in wait(busy):
                    process = crew[connection]  # type: ignore[index]  # it is one of `busy`
                    block = process.block
                    if block is None:
                        continue
                    if process.collect():
                        done(block)
                        continue
                    del crew[process.connection]
                    tries[block] += 1
                    if tries[block] == _MOST_TRIES:
                        raise DataError(
                            f"{task.output}: {_MOST_TRIES} processes died at block {block}, the "
                            f"last one with exit code {process.exit_code}",
                            "look for a lack of memory; --resume continues with fewer --workers",
                        )
                    queue.appendleft(block)


class _Process:
    """A process that computes one block at a time."""

    def __init__(self, task: InferTask, job: Job) -> None:
        # a fresh interpreter: PyTorch's threads do not survive a fork
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.block: int | None = None
        self._process = context.Process(
            target=_serve, args=(theirs, task, str(job.folder), job.id), daemon=True
        )
        self._process.start()
        theirs.close()  # so that its end closes when the process dies

    @property
    def exit_code(self) -> int | None:
        """Of a process that has ended; negative for the signal that ended it."""
        return self._process.exitcode

    def hand_out(self, block: int) -> None:
        """Ask for a block; that the process is dead shows when its answer is collected."""
        self.block = block
        with contextlib.suppress(OSError):
            self.connection.send(block)

    def collect(self) -> bool:
        """Take the answer; return False where the process died.

        Raises:
            SpectraliftError: the block cannot be computed.
        """
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            return False
        self.block = None
        _raise_failure(answer)
        return True

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *failure: object) -> None:
        self.connection.close()  # an idle process ends by itself
        if self.block is not None:
            self._process.terminate()
        self._process.join()


def _serve(connection: Connection, task: InferTask, folder: str, job_id: str) -> None:
    """Compute blocks for as long as the parent asks for some."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted, too, and ends this
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpectraliftWarning)  # the parent has said the same
        held = _Held()
        with contextlib.suppress(EOFError, OSError):
            while True:
                block = connection.recv()
                connection.send(held.ensure(task, folder, job_id, block))


@dataclass(frozen=True)
class DaskCluster:
    """The workers of a running Dask cluster, which see the same files under the same paths.

    Args:
        address: of the scheduler, like tcp://host:8786, or None.
        scheduler_file: in its place, the file that names it.
    """

    address: str | None = None
    scheduler_file: Path | None = None

    def run(self, worker: BlockWorker, blocks: Iterable[int], done: Done) -> None:
        """Ensure every block; see `Executor`."""
        distributed = _import_distributed()
        where = self.address or f"the scheduler of {self.scheduler_file}"
        lost = DataError(
            f"{where}: there is no connection to the Dask scheduler",
            "start it again, then continue with --resume",
        )
        file = None if self.scheduler_file is None else str(self.scheduler_file)
        if file is not None and not Path(file).is_file():
            raise DataError(f"{file}: no such file", "dask scheduler --scheduler-file writes it")
        try:
            client = distributed.Client(
                self.address, scheduler_file=file, timeout=_CONNECT_S, set_as_default=False
            )
        except (OSError, ValueError, TimeoutError) as error:
            raise lost from error
        try:
            with client.as_current():
                _submit_all(distributed, client, worker.task, worker.job, deque(blocks), done, lost)
        except (OSError, distributed.CancelledError) as error:  # of the connection and its futures
            raise lost from error
        finally:
            with contextlib.suppress(OSError, TimeoutError):
                client.close(timeout=1)


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


def _submit_all(
    distributed: Any,
    client: Any,
    task: InferTask,
    job: Job,
    queue: deque[int],
    done: Done,
    lost: DataError,
) -> None:
    """Keep a bounded number of blocks with the cluster until all are done."""
    under_way: dict[Any, int] = {}
    while queue or under_way:
        if client.status != "running":
            raise lost
        threads = sum(client.nthreads().values())
        while queue and len(under_way) < max(1, _WINDOW_PER_THREAD * threads):
            block = queue.popleft()
            future = client.submit(
                ensure_on_cluster, task, str(job.folder), job.id, block, pure=False, retries=3,
                key=f"spectralift-{job.id}-{block}",
            )  # fmt: skip
            under_way[future] = block
        with contextlib.suppress(TimeoutError):
            distributed.wait(list(under_way), timeout=_POLL_S, return_when="FIRST_COMPLETED")
        for future in [future for future in under_way if future.done()]:
            block = under_way.pop(future)
            if future.status in ("cancelled", "lost"):
                raise lost
            if future.status == "error":
                error = future.exception()
                raise DataError(
                    f"{task.output}: the Dask workers cannot compute block {block}: "
                    f"{type(error).__name__}: {error}",
                    "they need this version of spectralift, and the files under the same paths",
                )
            _raise_failure(future.result())
            done(block)


class _Held:
    """What a process keeps between two blocks: the open model, image and output of the last task."""

    def __init__(self) -> None:
        self._key: Any = None
        self._worker: BlockWorker | None = None

    def ensure(self, task: InferTask, folder: str, job_id: str, block: int) -> dict[str, Any]:
        """Ensure a block; return what went wrong, which may have to travel, as plain values."""
        try:
            with _joined(folder, job_id) as job:
                if self._key != (job_id, task) or self._worker is None:
                    self.drop()
                    self._worker = BlockWorker(task, job)
                    self._key = (job_id, task)
                self._worker.ensure(block)
        except SpectraliftError as error:
            return {"error": (type(error).__name__, error.message, error.hint)}
        except Exception:  # a bug, to be shown where somebody can see it
            return {"bug": traceback.format_exc()}
        return {}

    def drop(self) -> None:
        """Close what is open."""
        if self._worker is not None:
            self._worker.__exit__(None, None, None)
            self._worker = None


@contextlib.contextmanager
def _joined(folder: str, job_id: str) -> Iterator[Job]:
    """Join a job for one block, so that nobody waits for a process that has nothing to do."""
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


def ensure_on_cluster(task: InferTask, folder: str, job_id: str, block: int) -> dict[str, Any]:
    """Ensure a block in a Dask worker, whose threads each keep files of their own open."""
    torch.set_num_threads(1)  # for good: a thread that set it back would disturb the others
    if not hasattr(_ON_CLUSTER, "held"):
        _ON_CLUSTER.held = _Held()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpectraliftWarning)
        found: dict[str, Any] = _ON_CLUSTER.held.ensure(
            replace(task, threads=task.threads or 1), folder, job_id, block
        )
    return found


def _raise_failure(answer: dict[str, Any]) -> None:
    """Raise what went wrong in another process.

    Raises:
        SpectraliftError: of the class that it was there.
        RuntimeError: a bug, with its traceback.
    """
    if "error" in answer:
        name, message, hint = answer["error"]
        raise getattr(errors, name)(message, hint)
    if "bug" in answer:
        raise RuntimeError(answer["bug"])
