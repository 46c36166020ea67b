"""What an output says of its making: identities of the inputs and the steps that led to it.

Provenance holds what determines values and nothing else: never arguments as typed, paths, times,
hosts, threads, workers or devices.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from spectralift_cli import __version__

SCHEMA = "spectralift.provenance/1"
_WHOLE_BYTES = 64 * 10**6
_PART_BYTES = 10**6
_MOST_STEPS = 64


def identity(*paths: Path) -> dict[str, Any]:
    """Return what identifies the contents of an input, whatever its name and place.

    Under 64 MB in total: the sha256 of everything. Above: the size, and the sha256 of the first,
    middle and last MB of each file (and of the whole of files smaller than 3 MB).

    Args:
        paths: the files, or folders, that make up the input (an ENVI header and its data), in any
            order.

    Returns:
        {"size": bytes, "sha256": hex} or {"size": bytes, "sha256_of_parts": hex}.
    """
    # in one order, whichever of an image's files was named
    files = sorted((f for path in paths for f in _files(path)), key=lambda file: file[0])
    sizes = [file.stat().st_size for _, file in files]
    whole = sum(sizes) < _WHOLE_BYTES
    digest = hashlib.sha256()
    for (name, path), size in zip(files, sizes, strict=True):
        if len(files) > 1:
            digest.update(f"{name}\0{size}\0".encode())
        with path.open("rb") as file:
            for start, stop in _parts(size, whole):
                file.seek(start)
                while start < stop:
                    chunk = file.read(min(2**20, stop - start))
                    if not chunk:
                        break
                    digest.update(chunk)
                    start += len(chunk)
    return {"size": sum(sizes), "sha256" if whole else "sha256_of_parts": digest.hexdigest()}


def _files(path: Path) -> Iterable[tuple[str, Path]]:
    """Yield (name, file): of a file its ending, of a folder all files by their relative names."""
    if not path.is_dir():
        yield path.suffix.lower(), path
        return
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        yield file.relative_to(path).as_posix(), file


def _parts(size: int, whole: bool) -> list[tuple[int, int]]:
    if whole or size <= 3 * _PART_BYTES:
        return [(0, size)]
    middle = (size - _PART_BYTES) // 2
    return [(0, _PART_BYTES), (middle, middle + _PART_BYTES), (size - _PART_BYTES, size)]


def provenance(
    command: str,
    options: Mapping[str, Any],
    inputs: Mapping[str, Mapping[str, Any]],
    *,
    earlier: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the provenance of an output: the steps of its main input, then this one.

    Args:
        command: which made it.
        options: those that determine values, resolved, JSON-ready; a float that is not finite,
            which JSON has not, becomes a text.
        inputs: role -> `identity`.
        earlier: the main input's own provenance; anything else than ours is left out.
    """
    steps = earlier.get("steps") if earlier and earlier.get("schema") == SCHEMA else None
    step = {
        "command": command,
        "version": __version__,
        "options": {
            key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in options.items()
        },
        "inputs": {role: dict(found) for role, found in inputs.items()},
    }
    known = [s for s in steps if isinstance(s, dict)] if isinstance(steps, list) else []
    return {"schema": SCHEMA, "steps": [*known[1 - _MOST_STEPS :], step]}
