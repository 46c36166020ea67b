"""Processes on this machine that compute blocks beside the calling one.

A process is started at once and imports PyTorch while its parent still plans, so this module imports
nothing of that size. It then asks for a block whenever it can begin one, and reports each when it is
proven; so a block is on its way to the disk while the next is computed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from spectralift_cli.core import errors
from spectralift_cli.core.errors import DataError, SpectraliftError, SpectraliftWarning

if TYPE_CHECKING:
    from spectralift_cli.core.jobs.blocks import InferTask

_MOST_TRIES = 4
_JOIN_S = 5.0


class Blocks:
    """Blocks that several processes share out; whoever loses one gives it back.

    Blocks of one unit of the MSI, rows that are decoded together, go to the same process as long as
    there are other units: else each process would decode the whole image.

    Args:
        blocks: which.
        done: called with each that is done, by one thread at a time.
        unit_of: the unit of a block; None where any process may have any.
    """

    def __init__(
        self,
        blocks: Iterable[int],
        done: Callable[[int], None],
        unit_of: Callable[[int], int] | None = None,
    ) -> None:
        self._unit_of = unit_of or (lambda block: block)
        self._units: dict[int, deque[int]] = {}  # what nobody has; no unit is empty
        self._left = 0
        for block in blocks:
            self._units.setdefault(self._unit_of(block), deque()).append(block)
            self._left += 1
        self._fresh = deque(self._units)  # units that nobody is at, the next one first
        self._done = done
        self._changed = threading.Condition(threading.RLock())
        self._failure: BaseException | None = None

    def __len__(self) -> int:
        """Return how many are not done yet."""
        return self._left

    def __iter__(self) -> Iterator[int]:
        """Yield blocks until all are done; wait while the last ones are with others.

        Raises:
            BaseException: what another process or thread failed by.
        """
        last: int | None = None
        while True:
            with self._changed:
                while not self._units and self._left and self._failure is None:
                    self._changed.wait()
                if self._failure is not None:
                    raise self._failure
                if not self._left:
                    return
                last = self._next(last)
            yield last

    def take(self, last: int | None = None) -> int | None:
        """Return a block, or None where the others have all of them.

        Args:
            last: the block that the same process had before, if any.
        """
        with self._changed:
            return self._next(last) if self._units and self._failure is None else None

    def _next(self, last: int | None) -> int:
        """Return a block of the unit of the last one, of a fresh one, or of the longest one."""
        unit = None if last is None else self._unit_of(last)
        while unit not in self._units and self._fresh:
            unit = self._fresh.popleft()
        if unit not in self._units:
            unit = max(self._units, key=lambda unit: len(self._units[unit]))
        blocks = self._units[unit]
        block = blocks.popleft()
        if not blocks:
            del self._units[unit]
        return block

    def done(self, block: int) -> None:
        """Count a block as done."""
        with self._changed:
            self._done(block)
            self._left -= 1
            self._changed.notify_all()

    def give_back(self, blocks: Iterable[int]) -> None:
        """Take blocks back that somebody has lost; they are the next ones."""
        with self._changed:
            for block in blocks:
                unit = self._unit_of(block)
                self._units.setdefault(unit, deque()).appendleft(block)
                self._fresh.appendleft(unit)
            self._changed.notify_all()

    def fail(self, failure: BaseException) -> None:
        """Let everybody stop who asks for a block."""
        with self._changed:
            self._failure = self._failure or failure
            self._changed.notify_all()


@dataclass(frozen=True)
class Assignment:
    """What a process needs to know besides the blocks.

    Args:
        task: the inference.
        folder: of the job.
        job_id: its id.
    """

    task: InferTask
    folder: Path
    job_id: str


class Crew:
    """Some processes; one that dies is replaced and its blocks are computed again.

    Args:
        count: how many; 0 is none.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._members: dict[Connection, _Member] = {}
        self._stop, self._stopped = multiprocessing.Pipe()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the processes; they prepare themselves and wait."""
        for _ in range(self._count):
            self._add()

    def begin(self, assignment: Assignment, blocks: Blocks) -> None:
        """Let them take blocks from now on, in the background."""
        if not self._members:
            return
        for member in self._members.values():
            member.assign(assignment)
        self._thread = threading.Thread(
            target=self._serve, args=(assignment, blocks), name="crew", daemon=True
        )
        self._thread.start()

    def end(self) -> None:
        """Hand out nothing more and let the processes leave the job."""
        self._halt()
        for member in self._members.values():
            if member.never_asked:  # it has nothing, and may be importing for some time yet
                member.kill()
            member.connection.close()  # one that waits for a block ends by itself

    def _halt(self) -> None:
        if self._thread is not None:
            self._stop.send(None)
            self._thread.join()
            self._thread = None

    def _add(self) -> _Member:
        member = _Member()
        self._members[member.connection] = member
        return member

    def _serve(self, assignment: Assignment, blocks: Blocks) -> None:
        """Answer the processes until told to stop."""
        tries: Counter[int] = Counter()
        try:
            while True:
                self._hand_out(blocks)
                ready = wait([self._stopped, *self._members])
                if self._stopped in ready:
                    return
                for connection in ready:
                    member = self._members[cast("Connection", connection)]
                    if member.hear(blocks):
                        continue
                    del self._members[member.connection]
                    self._bury(member, blocks, tries, assignment.task.output)
                    if len(blocks):
                        self._add().assign(assignment)
        except BaseException as failure:  # raised where the caller takes its next block
            blocks.fail(failure)

    def _hand_out(self, blocks: Blocks) -> None:
        for member in self._members.values():
            if member.waits:
                block = blocks.take(member.last)
                if block is None:
                    return
                member.hand_out(block)

    def _bury(self, member: _Member, blocks: Blocks, tries: Counter[int], output: Path) -> None:
        """Take back what a dead process had, the block first that it died at.

        Raises:
            DataError: too many have died at it.
        """
        if not member.blocks:
            if member.never_asked:
                tries[-1] += 1
            at, lost = -1, []
        else:
            at, lost = member.blocks[-1], member.blocks
            tries[at] += 1
        if tries[at] >= _MOST_TRIES:
            where = f"at block {at}" if at >= 0 else "before their first block"
            raise DataError(
                f"{output}: {_MOST_TRIES} processes died {where}, the last one with exit code "
                f"{member.exit_code}",
                "look for a lack of memory; --resume continues with fewer --workers",
            )
        blocks.give_back(lost)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._halt()  # before any process ends: it would be replaced
        if kind is not None:
            for member in self._members.values():
                member.kill()
        for member in self._members.values():
            member.leave()
        self._stop.close()
        self._stopped.close()


class _Member:
    """A process, as its parent sees it.

    Attributes:
        blocks: that it has and has not proven yet, the one it computes last.
        last: the one that it was given last.
        waits: whether it has asked for a block.
    """

    def __init__(self) -> None:
        # a fresh interpreter: PyTorch's threads do not survive a fork
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.blocks: list[int] = []
        self.last: int | None = None
        self.waits = False
        self.never_asked = True
        self._process = context.Process(target=_serve_and_exit, args=(theirs,), daemon=True)
        # it ignores Ctrl-C as soon as it runs our code; one that comes before must not end it with a
        # traceback. The tracker of multiprocessing, where it is not running yet, would unblock it
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()  # so that its end closes when the process dies

    @property
    def exit_code(self) -> int | None:
        """Of a process that has ended; negative for the signal that ended it."""
        self._process.join(_JOIN_S)
        return self._process.exitcode

    def assign(self, assignment: Assignment) -> None:
        """Say what is to be made; that the process is dead shows when it is heard."""
        self._send(assignment)

    def hand_out(self, block: int) -> None:
        """Give it a block; see `assign`."""
        self.waits = False
        self.last = block
        self.blocks.append(block)
        self._send(block)

    def _send(self, message: Any) -> None:
        with contextlib.suppress(OSError):
            self.connection.send(message)

    def hear(self, blocks: Blocks) -> bool:
        """Take a message; return False where the process has died.

        Raises:
            SpectraliftError: a block cannot be computed.
        """
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            return False
        if "done" in message:
            self.blocks.remove(message["done"])
            blocks.done(message["done"])
        elif "asks" in message:
            self.waits, self.never_asked = True, False
        raise_failure(message)
        return True

    def kill(self) -> None:
        """End it."""
        self._process.terminate()

    def leave(self) -> None:
        """Wait until it has ended."""
        self.connection.close()
        self._process.join(_JOIN_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def serve(connection: Connection) -> None:
    """Compute blocks in a process of its own for as long as the parent has some."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted, too, and ends this
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    from spectralift_cli.core.jobs.blocks import BlockWorker
    from spectralift_cli.core.jobs.folder import Job

    lock = threading.Lock()

    def say(**message: Any) -> None:
        # a parent that does not hear any more has closed its end, or died
        with lock, contextlib.suppress(OSError):
            connection.send(message)

    def heard() -> Iterator[Any]:
        with contextlib.suppress(EOFError, OSError):
            while True:
                yield connection.recv()

    def asked_for() -> Iterator[int]:
        say(asks=True)
        for block in messages:
            yield block
            say(asks=True)

    messages = heard()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpectraliftWarning)  # the parent has said the same
        for assignment in messages:
            try:
                with (
                    Job(assignment.folder, assignment.job_id) as job,
                    BlockWorker(assignment.task, job) as worker,
                ):
                    worker.run(
                        asked_for(),
                        lambda block: say(done=block),
                        lambda failure: say(**failure_of(failure)),
                    )
            except Exception as error:
                say(**failure_of(error))


def _serve_and_exit(connection: Connection) -> None:
    serve(connection)
    os._exit(0)  # nothing is open; to take PyTorch down takes a third of a second


def failure_of(error: BaseException) -> dict[str, Any]:
    """Return what went wrong, which may have to travel, as plain values."""
    if isinstance(error, SpectraliftError):
        return {"error": (type(error).__name__, error.message, error.hint)}
    # a bug, to be shown where somebody can see it
    return {"bug": "".join(traceback.format_exception(error))}


def raise_failure(answer: dict[str, Any]) -> None:
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
