"""Outputs that appear whole or not at all.

Every output, one file, several files or a folder, is first made inside a private folder
`.NAME.<id>.part` beside its target and then moved into place. The private folder is held under an
flock while its run lives, so a later run can tell what a killed one left behind and remove it.

A set of members (an ENVI header and its data, an array and its sidecar) has a *key* member: the one
without which the set cannot be read. The old key is removed first and the new key renamed in last,
so an interruption leaves no readable set rather than a mix of two. Before the old key goes, the
private folder's name says that the new set is whole (`.NAME.<id>.whole.part`): of a run that was
killed between the two, the next one moves what is left into place.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import glob
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from spectralift_cli.core.errors import DataError, OutputExistsError

# files that mark a folder as one that may be replaced, and what they hold where others use the name
_FOLDER_MARKERS = {
    "scene.json": b'"spectralift.scene/', "run.json": b'"spectralift.run/',
    "maps.json": b'"spectralift.maps/', "validate.json": b'"spectralift.validate/',
    "zarr.json": b"", ".zgroup": b"", ".zarray": b"",
}  # fmt: skip
_MARKER_BYTES = 4 * 2**20
_WHOLE = ".whole.part"


# what is being prepared, and by which process: an interrupt can come between the making of a private
# folder and the `with` that would remove it
_LIVE: dict[Staging, int] = {}


@atexit.register
def _abort_all() -> None:
    for stage, process in list(_LIVE.items()):
        if process == os.getpid():  # not a child that was forked meanwhile
            stage.abort()


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
        remove_abandoned(key)
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
            self.folder = folder
            _LIVE[self] = os.getpid()
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
            # a file system without locks looks as if every run lived: nothing is cleaned up there
            with contextlib.suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_EX)
            if _same_folder(fd, folder):
                self._lock_fd = fd
                return folder
            os.close(fd)

    def path(self, member: Path | None = None) -> Path:
        """Return where to write a member (the key if none is named) before the commit."""
        return self.folder / (member or self.key).name

    def place(self, member: Path, data: bytes) -> None:
        """Write a small member, or a file inside one, whole in place of what is there.

        Args:
            member: its final path.
            data: of a shared output the same bytes from every process.
        """
        path = self.folder / member.relative_to(self.key.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        temporary.write_bytes(data)
        temporary.replace(path)

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
        except BaseException as error:
            self.abort()
            with contextlib.suppress(OSError):
                remove_abandoned(self.key)  # a folder that was set aside comes back
            if isinstance(error, OSError):
                raise _unwritable(self.key, error) from error
            raise
        self.abort()  # removes the private folder, now empty
        return (self.key, *(m for m in self.members if m != self.key))

    def _replace(self) -> None:
        retired: list[Path] = []
        is_set = len(self.members) > 1
        if is_set and os.path.lexists(self.key):
            whole = self.folder.with_name(self.folder.name.removesuffix(".part") + _WHOLE)
            self.folder = self.folder.rename(whole)
        first = (self.key, *self._stale) if is_set else self._stale
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
        """Remove the private folder and whatever is in it.

        A set whose old key is gone already is put in place all the same.
        """
        if self not in _LIVE:
            return
        _clear(self.folder, self.key)
        # forgotten before it is closed: a signal may come in between, and this is called again then
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            os.close(fd)
        _LIVE.pop(self, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.abort()


class SharedStaging(Staging):
    """A folder in which several processes prepare one output, and which outlives each of them.

    The members move from there to a private folder and then into place, as they always do.

    Args:
        folder: where the members are prepared, on the disk of the target.
        key: see `Staging`; so are the others.
        others: likewise.
        stale: likewise.
        overwrite: likewise.

    Raises:
        OutputExistsError: see `Staging`.
        DataError: see `Staging`.
    """

    def __init__(
        self,
        folder: Path,
        key: Path,
        *,
        others: Sequence[Path] = (),
        stale: Sequence[Path] = (),
        overwrite: bool = False,
    ) -> None:
        self.key = key
        self.members = (*others, key)
        self.folder = folder
        self._stale = tuple(stale)
        self._overwrite = overwrite
        self._check_existing()

    def commit(self) -> tuple[Path, ...]:
        """Move every member into place; see `Staging.commit`."""
        try:
            for member in self.members:
                _sync(self.path(member))  # before the moves, which are then over in a moment
            with Staging(
                self.key, others=self.members[:-1], stale=self._stale, overwrite=self._overwrite
            ) as stage:
                for member in self.members:
                    self.path(member).rename(stage.path(member))
                return stage.commit()
        except OSError as error:
            raise _unwritable(self.key, error) from error

    def abort(self) -> None:
        """Leave the folder to the other processes."""


def write_bytes(path: Path, data: bytes, *, overwrite: bool = False) -> None:
    """Write a file atomically.

    Raises:
        OutputExistsError: it exists and `overwrite` is false.
        DataError: it cannot be written.
    """
    with Staging(path, overwrite=overwrite) as stage:
        try:
            stage.path().write_bytes(data)
        except OSError as error:
            raise _unwritable(path, error) from error
        stage.commit()


def write_text(path: Path, text: str, *, overwrite: bool = False) -> None:
    """Write a text file atomically, in UTF-8; errors as for `write_bytes`."""
    write_bytes(path, text.encode(), overwrite=overwrite)


def is_our_folder(folder: Path) -> bool:
    """Tell whether a folder is empty or carries the mark of a scene, a run or a Zarr store."""
    for name, mark in _FOLDER_MARKERS.items():
        if not (folder / name).is_file():
            continue
        with contextlib.suppress(OSError), (folder / name).open("rb") as file:
            if mark in file.read(_MARKER_BYTES):
                return True
    return not any(folder.iterdir())


def _unwritable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path}: cannot be written ({error.strerror})", "free some room or choose another folder"
    )


def _same_folder(fd: int, folder: Path) -> bool:
    try:
        there = folder.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def remove_abandoned(key: Path) -> None:
    """Remove what killed runs left beside `key`; bring back a folder they had set aside."""
    # exactly the names that are made here, so that nobody else's folder is ever touched
    ours = re.compile(rf"\.{re.escape(key.name)}\.(old-)?[0-9a-f]{{8}}((?:\.whole)?\.part)?")
    for path in key.parent.iterdir():
        found = ours.fullmatch(path.name)
        if found is None or bool(found[1]) == bool(found[2]):
            continue
        if not path.is_dir() or path.is_symlink():
            continue
        if found[2]:
            with _locked(path) as is_abandoned:
                if is_abandoned:
                    _clear(path, key)
        elif not _is_live(key):
            if key.exists():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.rename(key)


def _clear(folder: Path, key: Path) -> None:
    """Remove a private folder, after putting in place a whole set whose old key is gone."""
    cut_off = folder.name.endswith(_WHOLE) and not os.path.lexists(key)
    if cut_off and (folder / key.name).exists():
        try:
            for path in sorted(folder.iterdir(), key=lambda path: path.name == key.name):
                path.rename(key.parent / path.name)  # the key last
        except OSError:
            return  # a later run tries again
    shutil.rmtree(folder, ignore_errors=True)


def _is_live(key: Path) -> bool:
    """Tell whether another run is preparing the same output right now."""
    for path in key.parent.glob(f".{glob.escape(key.name)}.*.part"):
        with _locked(path) as is_abandoned:
            if not is_abandoned:
                return True
    return False


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold a folder's lock if it is free, that is, if its run is gone; yield whether it is."""
    try:
        fd = os.open(folder, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            is_free = False
        else:
            is_free = True
        yield is_free
    finally:
        os.close(fd)


def _sync(path: Path) -> None:
    if path.is_dir():
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
