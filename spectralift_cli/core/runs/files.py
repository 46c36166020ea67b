"""The files of a run's work: small JSON objects, and outputs that are taken over or removed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats.arrays import strict_json

_JSON_BYTES = 4 * 2**20


def as_json(value: Any) -> Any:
    """Return a value as it comes back from JSON."""
    return json.loads(json.dumps(value, allow_nan=False))


def is_filled(folder: Path) -> bool:
    """Tell whether a folder is there and not empty."""
    return folder.is_dir() and any(folder.iterdir())


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        FileNotFoundError: there is none.
        DataError: it is damaged.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_JSON_BYTES + 1)
        found = strict_json(text) if len(text) <= _JSON_BYTES else None
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise DataError(f"{path}: is damaged", "start afresh with --overwrite")
    return found


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; harmless if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def take_over(source: Path, target: Path) -> None:
    """Link a file, or all files of a folder, to a new name; copy where the disk has no links."""
    if source.is_dir() and not source.is_symlink():
        target.mkdir()
        for path in sorted(source.iterdir()):
            take_over(path, target / path.name)
        return
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
