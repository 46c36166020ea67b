"""Describe the folder of a run from its run.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats.arrays import strict_json

_MOST_BYTES = 4 * 2**20
_SCHEMA = "spectralift.run/1"
_PARTS: dict[str, type] = {"stages": list, "model": dict, "image": dict, "outputs": dict}


def is_run(path: Path) -> bool:
    """Tell whether a path is a run's folder, or the run.json inside one."""
    return path.name == "run.json" or (path / "run.json").is_file()


def describe_run(path: Path) -> dict[str, Any]:
    """Return a run's description: seconds of each stage, model, image, outputs, warnings.

    Raises:
        DataError: its run.json is missing, damaged, or another program's.
    """
    source = path if path.name == "run.json" else path / "run.json"
    try:
        with source.open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error.strerror})", "check the path") from error
    try:
        report = strict_json(text) if len(text) <= _MOST_BYTES else None
    except (ValueError, RecursionError):
        report = None
    is_ours = isinstance(report, dict) and report.get("schema") == _SCHEMA
    if not isinstance(report, dict) or not is_ours:
        raise DataError(
            f"{source}: is not the report of a run of this program",
            f"it holds at most 4 MB of JSON with the schema {_SCHEMA}",
        )
    wrong = [name for name, kind in _PARTS.items() if not isinstance(report.get(name), kind)]
    if wrong:
        raise DataError(f"{source}: is damaged, its {wrong[0]!r} is missing", "run it again")
    return {
        "kind": "run",
        "path": str(path),
        **{name: report[name] for name in _PARTS},
        **{name: report.get(name) for name in ("config", "device", "seconds", "versions")},
        "warnings": report.get("warnings"),
    }
