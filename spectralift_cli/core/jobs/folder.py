"""A job on disk: `.OUT.job` with plan.json, data/, receipts/ and a lock.

A process at work holds the lock together with others; who removes the job, or moves the output
out of it, holds it alone. Receipts are written after the values that they prove have reached it, and whole; a
receipt or value that the disk lost nevertheless is noticed by the checksum.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from spectralift_cli.core.engine import Counts
from spectralift_cli.core.errors import DataError, OutputExistsError
from spectralift_cli.core.jobs.plan import differences
from spectralift_cli.core.outputs import Staging, remove_abandoned

_SCHEMA = "spectralift.job/1"
_RECEIPT_SCHEMA = "spectralift.receipt/2"
_JSON_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Receipt:
    """The proof that a block is complete.

    Args:
        crc32: of its stored values, a checksum.
        input_sha256: of the MSI rows that it was made of.
        counts: of its pixels and values.
    """

    crc32: int
    input_sha256: str
    counts: Counts


def job_path(output: Path) -> Path:
    """Return where the job of an output lies."""
    return output.with_name(f".{output.name}.job")


def refuse_unfinished(output: Path, *, overwrite: bool = False) -> None:
    """Refuse to begin an output that a killed job has left unfinished.

    Args:
        output: the output.
        overwrite: remove that job instead.

    Raises:
        OutputExistsError: there is one, and `overwrite` is false.
        DataError: it is still being worked on.
    """
    folder = job_path(output)
    if output.parent.is_dir():
        remove_abandoned(folder)  # jobs of which the removal was cut off
    if not folder.is_dir():
        return
    if overwrite or _is_spent(folder):
        _remove(folder)
        return
    raise OutputExistsError(
        f"{folder}: an unfinished job of this output is there",
        "--resume continues it, --overwrite starts afresh",
    )


class Job:
    """A job that this process has joined; others may work on it at the same time.

    Args:
        folder: its folder.
        id: of this job, which a later one of the same name does not have.

    Raises:
        DataError: the job is gone, or another one has taken its place.
    """

    def __init__(self, folder: Path, id: str) -> None:  # noqa: A002  # a field's name
        self.folder = folder
        self.id = id
        self.data = folder / "data"
        self._lock_fd = _lock(folder, fcntl.LOCK_SH)
        try:
            if _read_json(folder / "plan.json").get("id") != id:
                raise _gone(folder)
        except BaseException:
            self.leave()
            raise

    @classmethod
    def join(
        cls, output: Path, plan: Mapping[str, Any], *, must_be_new: bool, overwrite: bool = False
    ) -> Job:
        """Begin the job of an output, or join the one that is there.

        Args:
            output: the output.
            plan: what is to be made.
            must_be_new: refuse to join.
            overwrite: the output may be there already.

        Raises:
            OutputExistsError: there is one and `must_be_new` is true, or the output is there.
            DataError: the one that is there has another plan or is damaged, or the place cannot be
                written.
        """
        folder = job_path(output)
        if must_be_new:
            refuse_unfinished(output)
        elif folder.is_dir() and _is_spent(folder):
            _remove(folder)
        while True:
            if os.path.lexists(output) and not overwrite:
                raise OutputExistsError(f"{output}: exists already", "--overwrite replaces it")
            made = None if folder.is_dir() else _make(folder, plan)
            try:
                found = _read_json(folder / "plan.json")
                job = cls(folder, str(found.get("id")))
            except FileNotFoundError:
                _refuse_incomplete(folder)
                continue  # it was finished or removed just now
            if made != job.id and must_be_new:
                job.leave()
                raise OutputExistsError(
                    f"{folder}: another run has begun the same output", "--resume joins it"
                )
            try:
                _check_plan(folder, plan, found)
            except BaseException:
                job.leave()
                raise
            return job

    def check_plan(self, plan: Mapping[str, Any]) -> None:
        """Refuse to work on the job by another plan.

        Args:
            plan: what this process would make.

        Raises:
            DataError: it differs from the job's.
        """
        _check_plan(self.folder, plan, _read_json(self.folder / "plan.json"))

    def receipt(self, block: int) -> Receipt | None:
        """Return a block's receipt, or None where there is none that can be read."""
        try:
            found = _read_json(self._receipt_path(block))
            if found["schema"] != _RECEIPT_SCHEMA or found["block"] != block:
                return None
            names = [field.name for field in fields(Counts)]
            counts = [found["counts"][name] for name in names]
            crc32, input_sha256 = found["crc32"], str(found["input_sha256"])
        except (FileNotFoundError, KeyError, TypeError, DataError):
            return None
        if not all(type(n) is int and n >= 0 for n in (crc32, *counts)):
            return None
        return Receipt(crc32, input_sha256, Counts(*counts))

    def add_receipt(self, block: int, receipt: Receipt) -> None:
        """Write a block's receipt; its values are written.

        Raises:
            DataError: the disk is full.
        """
        document = {"schema": _RECEIPT_SCHEMA, "block": block, **asdict(receipt)}
        _write_json(self._receipt_path(block), document)

    def _receipt_path(self, block: int) -> Path:
        return self.folder / "receipts" / f"{block:06}.json"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()

    def leave(self) -> None:
        """Let go of the job; harmless when called again."""
        # forgotten before it is closed: a signal may come in between, and this is called again then
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            os.close(fd)

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """Hold the job alone, once all others have left it; yield whether it is still there."""
        self.leave()
        try:
            self._lock_fd = _lock(self.folder, fcntl.LOCK_EX)
            is_there = _read_json(self.folder / "plan.json").get("id") == self.id
        except (FileNotFoundError, DataError):
            is_there = False
        try:
            yield is_there
        finally:
            self.leave()

    def remove_if_new(self) -> None:
        """Remove the job if nothing has been done for it and nobody else is at work on it."""
        self.leave()
        if not any((self.folder / "receipts").glob("*.json")):
            with contextlib.suppress(DataError):
                _remove(self.folder)

    def remove(self) -> None:
        """Remove the job; it is held alone."""
        _discard(self.folder)


def _make(folder: Path, plan: Mapping[str, Any]) -> str | None:
    """Make a job whole; return its id, or None where another process was faster.

    Raises:
        DataError: the place cannot be written.
    """
    if folder.is_symlink():
        raise DataError(
            f"{folder}: is a link to {folder.readlink()}, where there is no job",
            "bring back the disk that it lies on, or remove the link and start afresh",
        )
    try:
        stage = Staging(folder)
    except OutputExistsError:
        return None
    with stage:
        new = stage.path()
        identifier = secrets.token_hex(8)
        try:
            (new / "data").mkdir(parents=True)
            (new / "receipts").mkdir()
            (new / "lock").touch()
            _write_json(new / "plan.json", {"schema": _SCHEMA, "id": identifier, "plan": plan})
            new.rename(folder)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return None
            raise DataError(
                f"{folder}: cannot be written ({error.strerror})",
                "free some room or choose another folder",
            ) from error
    return identifier


def _check_plan(folder: Path, mine: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    names = list(differences(json.loads(json.dumps(mine)), found.get("plan")))
    if found.get("schema") != _SCHEMA or names:
        raise DataError(
            f"{folder}: was begun with other inputs or options; what differs: "
            f"{', '.join(names[:8]) or 'its version'}",
            "give the same as before, or start afresh with --overwrite and without --shard",
        )


def _refuse_incomplete(folder: Path) -> None:
    """Refuse a job that lacks a file, which waiting would not bring: jobs come and go as a whole.

    Raises:
        DataError: it does.
    """
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            lacking = {"plan.json", "lock"} - set(os.listdir(fd))  # noqa: PTH208  # of the folder that is open
            # one that was moved away meanwhile is being removed
            if lacking and os.path.samestat(os.fstat(fd), folder.stat()):
                raise DataError(
                    f"{folder}: is damaged, it lacks {' and '.join(sorted(lacking))}",
                    "remove that folder and start afresh",
                )
        finally:
            os.close(fd)


def _is_spent(folder: Path) -> bool:
    """Tell whether a job's output has been moved into place and only its removal was cut off."""
    with contextlib.suppress(FileNotFoundError):
        receipts, data = (any((folder / name).iterdir()) for name in ("receipts", "data"))
        return receipts and not data
    return False


def _remove(folder: Path) -> None:
    try:
        fd = _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return
    except BlockingIOError as error:
        raise DataError(
            f"{folder}: is being worked on by another process", "wait for it, or stop it"
        ) from error
    try:
        _discard(folder)
    finally:
        os.close(fd)


def _discard(folder: Path) -> None:
    # under a name of `Staging` first: half a job is none, and the next run clears up after a kill
    unwanted = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(unwanted)
        shutil.rmtree(unwanted, ignore_errors=True)


def _lock(folder: Path, how: int) -> int:
    """Return the descriptor that holds a job's lock.

    Raises:
        FileNotFoundError: the job is not there (any more).
        BlockingIOError: somebody else holds it, and waiting was not asked for.
        DataError: the file system has no locks.
    """
    path = folder / "lock"
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, how)
        there, here = path.stat(), os.fstat(fd)
        if (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino):
            raise FileNotFoundError(errno.ENOENT, "the job was replaced", str(path))
    except BlockingIOError:
        os.close(fd)
        raise
    except OSError as error:
        os.close(fd)
        if isinstance(error, FileNotFoundError):
            raise
        raise DataError(
            f"{folder}: cannot be locked ({error.strerror})",
            "put the output on a file system with locks, or leave the work to one process",
        ) from error
    except BaseException:
        os.close(fd)
        raise
    return fd


def _gone(folder: Path) -> DataError:
    return DataError(f"{folder}: the job has been finished or replaced", "start again")


def _read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object of a job.

    Raises:
        FileNotFoundError: there is none.
        DataError: it is damaged.
    """
    with path.open("rb") as file:
        # as much as there is: asked for more, Python would first make room for all of it
        data = file.read(min(os.fstat(file.fileno()).st_size, _JSON_BYTES) + 1)
    try:
        if len(data) > _JSON_BYTES:
            raise ValueError("too large")
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: is damaged", "start afresh with --overwrite and without --shard"
        ) from error
    return found if isinstance(found, dict) else {}


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        temporary.write_text(json.dumps(document, sort_keys=True) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise DataError(
            f"{path}: cannot be written ({error.strerror})",
            "free some room, then continue with --resume",
        ) from error
