"""Where tensors live and how many threads work on them.

Small matrices run several times slower when their product is split over threads than on one thread
each, and a split product may sum in another order. So work is cut into pieces of fixed size, each
piece runs on one thread, and the pieces are shared out: the same bytes for any number of threads.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Self, TypeVar

import torch

from spectralift_cli.core.errors import DataError, OptionError
from spectralift_cli.core.resources import available_cpus, one_blas_thread

_T = TypeVar("_T")


def resolve_device(name: str = "auto") -> torch.device:
    """Return the device that a name stands for.

    Args:
        name: auto (CUDA, else Apple's MPS, else the processor), cpu, cuda, cuda:N or mps.

    Raises:
        OptionError: the name is none of these.
        DataError: there is no such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    found = re.fullmatch(r"(cpu|mps|cuda)(?::(\d{1,4}))?", name)
    if found is None or (found[2] and found[1] != "cuda"):
        raise OptionError(f"{name!r} is not a device", "use auto, cpu, cuda, cuda:N or mps")
    if found[1] == "cuda":
        index = int(found[2] or 0)
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if index >= count:
            raise DataError(
                f"device {name} is not there: PyTorch {torch.__version__} sees {count} CUDA devices",
                "use --device auto or cpu" if not count else f"use cuda:0 to cuda:{count - 1}",
            )
        return torch.device("cuda", index)
    if found[1] == "mps" and not torch.backends.mps.is_available():
        raise DataError("device mps is not there", "use --device auto or cpu")
    return torch.device(found[1])


def check_threads(threads: int | None) -> int:
    """Return the number of threads to work with: the one given, else what this process may use.

    Raises:
        OptionError: it is below 1.
    """
    if threads is None:
        return available_cpus()
    if threads < 1:
        raise OptionError(f"{threads} threads cannot work", "give --threads 1 or more")
    return threads


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Let PyTorch and NumPy use one thread inside an operation; what was set before comes back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with one_blas_thread():
            yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    """Work on a device: its lack of memory becomes an error that a user can mend.

    Raises:
        DataError: the device has too little memory.
    """
    if device.type != "cuda":
        yield
        return
    try:
        with warnings.catch_warnings():
            # PyTorch's own gradient thread says this of itself, once, and mends it
            warnings.filterwarnings("ignore", "Attempting to run cuBLAS", UserWarning)
            yield
    except torch.cuda.OutOfMemoryError as error:
        total = torch.cuda.get_device_properties(device).total_memory
        raise DataError(
            f"device {device} has {total / 1e9:.0f} GB of memory, which is not enough",
            "use a smaller batch, or --device cpu",
        ) from error


class Workers:
    """A few threads, the calling one among them, that share out pieces of work.

    Args:
        count: number of threads, at least 1.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ThreadPoolExecutor | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(one_thread_each())
        if self.count > 1:
            # PyTorch keeps the number of threads inside an operation per calling thread
            self._pool = self._stack.enter_context(
                ThreadPoolExecutor(self.count - 1, initializer=torch.set_num_threads, initargs=(1,))
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def run(self, work: Callable[[int, _T], None], pieces: Iterable[_T]) -> None:
        """Call work(worker, piece) once for every piece; return when all are done.

        Args:
            work: called from several threads at once, each with its own worker number from 0.
            pieces: in any number.

        Raises:
            Exception: the first that `work` raised; pieces not begun by then are dropped.
        """
        queue = deque(pieces)

        def drain(worker: int) -> None:
            try:
                while True:
                    try:
                        piece = queue.popleft()
                    except IndexError:
                        return
                    work(worker, piece)
            except BaseException:
                queue.clear()
                raise

        futures: list[Future[None]] = []
        if self._pool is not None:
            others = min(self.count, len(queue)) - 1
            futures = [self._pool.submit(drain, worker + 1) for worker in range(others)]
        try:
            drain(0)
        finally:
            # on a busy machine a thread may not have woken up before all is done: no need of it then
            begun = [future for future in futures if not future.cancel()]
            wait(begun)
        for future in begun:
            future.result()
