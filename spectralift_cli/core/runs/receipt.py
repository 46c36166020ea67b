"""The receipt of a run's stage: what it was made of, what it made, and checksums to prove it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spectralift_cli.core.errors import DataError

_SCHEMA = "spectralift.run-receipt/1"
_CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Receipt:
    """The proof that a stage is done.

    Args:
        stage: its name.
        inputs: what determines its outputs, as JSON has it; see `runs.inputs`.
        files: role -> path in the run's folder.
        outputs: plain name of a file or folder at the top of the run's folder -> sha256.
        result: what the stage tells besides, as JSON has it.
        seconds: it took.
        warnings: it gave, which hold as long as its outputs are kept.
    """

    stage: str
    inputs: Mapping[str, Any]
    files: Mapping[str, str]
    outputs: Mapping[str, str]
    result: Mapping[str, Any]
    seconds: float
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {"schema": _SCHEMA, **asdict(self), "warnings": list(self.warnings)}

    @classmethod
    def from_json(cls, found: object) -> Receipt:
        """Return the receipt that a JSON value holds.

        Raises:
            DataError: it holds none, or one that names something outside the run's folder.
        """
        if not isinstance(found, dict) or found.get("schema") != _SCHEMA:
            raise _damaged()
        stage, seconds, said = (found.get(name) for name in ("stage", "seconds", "warnings"))
        if not isinstance(stage, str) or not stage.isidentifier():
            raise _damaged()
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise _damaged()
        if not isinstance(said, list) or not all(isinstance(text, str) for text in said):
            raise _damaged()
        inputs, files, outputs, result = (
            _table(found.get(name)) for name in ("inputs", "files", "outputs", "result")
        )
        for name, digest in outputs.items():
            if not is_plain_name(name) or not isinstance(digest, str):
                raise _damaged()
        if not all(isinstance(path, str) and path in outputs for path in files.values()):
            raise _damaged()
        return cls(stage, inputs, files, outputs, result, float(seconds), tuple(said))


def _table(found: object) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise _damaged()
    return found


def _damaged() -> DataError:
    return DataError("the receipt of a stage is damaged", "its stage is made again")


def is_plain_name(name: object) -> bool:
    """Tell whether a text names something in a folder itself, and nothing else."""
    return isinstance(name, str) and name.isprintable() and name == Path(name).name != ""


def plain_names(names: object) -> list[str]:
    """Return the plain names of a list that a file holds."""
    return [name for name in names if is_plain_name(name)] if isinstance(names, list) else []


class Checksums:
    """The sha256 of outputs; a file that did not change is read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, int, int], bytes] = {}

    def of(self, path: Path) -> str:
        """Return the sha256 of a file's contents, or of the names and contents in a folder.

        Raises:
            OSError: it cannot be read, or holds something that is neither file nor folder.
        """
        if not path.is_dir() or path.is_symlink():
            return self._file(path).hex()
        digest = hashlib.sha256()
        for name, file in _files(path):
            digest.update(f"{name}\0".encode(errors="surrogateescape") + self._file(file))
        return digest.hexdigest()

    def damaged(self, outputs: Mapping[str, str], folder: Path) -> list[str]:
        """Return the names of outputs, of name -> sha256, that are not in a folder as written."""
        return [name for name, digest in outputs.items() if self._get(folder / name) != digest]

    def _get(self, path: Path) -> str:
        try:
            return self.of(path)
        except OSError:
            return ""

    def _file(self, path: Path) -> bytes:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(fd, "rb", buffering=0) as file:
            about = os.fstat(fd)
            key = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns)
            if key not in self._known:
                digest = hashlib.sha256()
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
                self._known[key] = digest.digest()
        return self._known[key]


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield (relative name, path) of all that is in a folder but folders, in one order."""
    found = [
        Path(parent) / name
        for parent, folders, names in os.walk(folder)
        # a link to a folder is opened, and refused, as a file
        for name in (*names, *(f for f in folders if (Path(parent) / f).is_symlink()))
    ]
    for path in sorted(found):
        yield path.relative_to(folder).as_posix(), path
