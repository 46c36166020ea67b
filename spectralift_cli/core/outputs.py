"""Outputs that appear whole or not at all.

Every output, one file, several files or a folder, is first made inside a private folder
`.NAME.<id>.part` beside its target and then moved into place. The private folder is held under an
flock while its run lives, so a later run can tell what a killed one left behind and remove it.

A set of members (an ENVI header and its data, an array and its sidecar) has a *key* member: the one
without which the set cannot be read. The old key is removed first and the new key renamed in last,
so an interruption leaves no readable set rather than a mix of two.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from spectralift_cli.core.errors import DataError, OutputExistsError

_FOLDER_MARKERS = ("zarr.json", ".zgroup", ".zarray", "scene.json", "run.json")


class Staging:
    """A private folder beside the target in which an output is prepared.

    Args:
        key: the output's path; for a set, the member that makes the set readable.
        others: the further members of the set, all in the key's folder.
        stale: paths that belong to an older output of the same name and would mislead a reader of
            the new one (GDAL's `.aux.xml`); removed on commit.
        overwrite: replace what exists.

    Raises:
        OutputExistsError: a member exists and `overwrite` is false.
        DataError: the target's folder is missing or not writable, or the target is a folder that
            this program did not make.
    """

    def __init__(
        self,
        key: Path,
        *,
        others: Sequence[Path] = (),
        stale: Sequence[Path] = (),
        overwrite: bool = False,
    ) -> None:
        self.key = key
        self.members = (*others, key)  # the key is renamed in last
        self._stale = tuple(stale)
        self._overwrite = overwrite
        self._lock_fd = -1
        parent = key.parent
        if not key.name:
            raise DataError(f"{key}: not the name of an output", "give a file name after -o")
        if not parent.is_dir():
            raise DataError(
                f"{key}: the folder {parent} does not exist", f"make it first: mkdir -p {parent}"
            )
        _remove_abandoned(key)
        self._check_existing()
        self.folder = self._make_folder()

    def _check_existing(self) -> None:
        for member in reversed(self.members):  # the one the user named comes first
            if not os.path.lexists(member):
                continue
            if not self._overwrite:
                raise OutputExistsError(f"{member}: exists already", "--overwrite replaces it")
            if member.is_dir() and not member.is_symlink() and not is_our_folder(member):
                raise DataError(
                    f"{member}: is a folder that is neither empty nor one of ours",
                    "choose another name for the output",
                )

    def _make_folder(self) -> Path:
        while True:
            folder = self.key.parent / f".{self.key.name}.{secrets.token_hex(4)}.part"
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            except OSError as error:
                raise DataError(
                    f"{self.key}: cannot write there ({error.strerror})",
                    "choose a folder that you may write to, on a disk with room",
                ) from error
            try:
                fd = os.open(folder, os.O_RDONLY)
            except FileNotFoundError:
                continue  # a clean-up of another run came between
            fcntl.flock(fd, fcntl.LOCK_EX)
            if _same_folder(fd, folder):
                self._lock_fd = fd
                return folder
            os.close(fd)

    def path(self, member: Path | None = None) -> Path:
        """Return where to write a member (the key if none is named) before the commit."""
        return self.folder / (member or self.key).name

    def commit(self) -> tuple[Path, ...]:
        """Move every member into place; return the final paths, the key first.

        Raises:
            OutputExistsError: somebody else made the output meanwhile and `overwrite` is false.
            DataError: the disk is full or the folder is no longer writable.
        """
        try:
            self._check_existing()
            for member in self.members:
                _sync(self.path(member))
            self._replace()
        except OSError as error:
            self.abort()
            raise DataError(
                f"{self.key}: cannot be written ({error.strerror})",
                "free some room or choose another folder",
            ) from error
        except BaseException:
            self.abort()
            raise
        self.abort()  # removes the private folder, now empty
        return (self.key, *(m for m in self.members if m != self.key))

    def _replace(self) -> None:
        retired: list[Path] = []
        first = (self.key, *self._stale) if len(self.members) > 1 else self._stale
        for path in first:
            if os.path.lexists(path) and not path.is_dir():
                path.unlink()
        for member in self.members:
            if member.is_dir() and not member.is_symlink():
                old = member.parent / f".{member.name}.old-{secrets.token_hex(4)}"
                member.rename(old)
                retired.append(old)
            elif self.path(member).is_dir() and os.path.lexists(member):
                member.unlink()  # a folder cannot be renamed onto a file
            self.path(member).rename(member)
        for old in retired:
            shutil.rmtree(old, ignore_errors=True)

    def abort(self) -> None:
        """Remove the private folder and whatever is in it."""
        if self._lock_fd < 0:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock_fd)
        self._lock_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.abort()


def write_text(path: Path, text: str, *, overwrite: bool = False) -> None:
    """Write a text file atomically.

    Raises:
        OutputExistsError: it exists and `overwrite` is false.
        DataError: it cannot be written.
    """
    with Staging(path, overwrite=overwrite) as stage:
        try:
            stage.path().write_text(text, encoding="utf-8")
        except OSError as error:
            raise DataError(
                f"{path}: cannot be written ({error.strerror})",
                "free some room or choose another folder",
            ) from error
        stage.commit()


def is_our_folder(folder: Path) -> bool:
    """Tell whether a folder is empty or carries the mark of a scene, a run or a Zarr store."""
    return any((folder / name).is_file() for name in _FOLDER_MARKERS) or not any(folder.iterdir())


def _same_folder(fd: int, folder: Path) -> bool:
    try:
        there = folder.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _remove_abandoned(key: Path) -> None:
    """Remove what killed runs left beside `key`; bring back a folder they had set aside."""
    name = re.escape(key.name)
    for path in key.parent.iterdir():
        # exactly the names that are made here, so that nobody else's folder is ever touched
        found = re.fullmatch(rf"\.{name}\.(?:old-)?[0-9a-f]{{8}}(\.part)?", path.name)
        if found is None or not path.is_dir() or path.is_symlink():
            continue
        if not found[1] and not _is_live(key):
            if key.exists():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.rename(key)
        elif found[1] and _take_lock(path):
            shutil.rmtree(path, ignore_errors=True)


def _is_live(key: Path) -> bool:
    """Tell whether another run is preparing the same output right now."""
    return any(not _take_lock(p) for p in key.parent.glob(f".{_escape(key.name)}.*.part"))


def _escape(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _take_lock(folder: Path) -> bool:
    """Tell whether the folder's lock is free, that is, whether its run is gone."""
    try:
        fd = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _sync(path: Path) -> None:
    if path.is_dir():
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
