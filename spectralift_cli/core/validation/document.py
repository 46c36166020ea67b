"""The file of a validation: one JSON document, written by `validate` and read by `report`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spectralift_cli.core.cube import FloatArray
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats.arrays import strict_json
from spectralift_cli.core.validation.figures import (
    DOCUMENT,
    SCHEMA,
    Figure,
    Section,
    Validation,
)

# four sections of at most five figures and two curves over 400 bands take 0.1 MB
_LIMIT_BYTES = 4 * 2**20
_MOST_ITEMS, _LONGEST = 100, 4000
_HINT = "make it again with spectralift validate"


def document_text(found: Validation) -> str:
    """Return the contents of the file."""
    document = {"schema": SCHEMA, **found.to_json()}
    return json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def read_validation(path: str | Path) -> Validation:
    """Read what `validate --maps` or `validate --json` wrote, as a file that may be hostile.

    Args:
        path: the JSON, or the folder of maps that holds one.

    Raises:
        DataError: no such file, or it is damaged, too large, or something else.
    """
    path = Path(path)
    path = path / DOCUMENT if path.is_dir() else path
    wanted = "give the JSON that spectralift validate wrote, with --json or --maps"
    try:
        if not path.is_file():
            what = "is not a file" if path.exists() else "no such file"
            raise DataError(f"{path}: {what}", wanted)
        with path.open("rb") as file:
            text = file.read(_LIMIT_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", "check the file") from error
    if len(text) > _LIMIT_BYTES:
        raise DataError(f"{path}: is larger than {_LIMIT_BYTES:,} bytes", _HINT)
    try:
        document = strict_json(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON", wanted) from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise DataError(
            f"{path}: its schema is {str(schema)[:60]!r}, a validation's is {SCHEMA!r}", wanted
        )
    try:
        sections = _mapping(document["sections"])
        return Validation(
            tuple(_section(_text(name), _mapping(fields)) for name, fields in sections.items()),
            _text(document["psf"]), _mapping(document["provenance"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else f"is damaged ({error})"
        raise DataError(f"{path}: the validation {what}", _HINT) from error


def _section(name: str, fields: Mapping[str, Any]) -> Section:
    figures = fields["figures"]
    if not isinstance(figures, list) or len(figures) > _MOST_ITEMS:
        raise TypeError("figures is not a list of a few")
    maps = fields["maps"]
    return Section(
        name, _text(fields["title"]), _text(fields["about"]),
        [_figure(_mapping(figure)) for figure in figures],
        {_text(key): _curve(curve) for key, curve in _mapping(fields["per_band"]).items()},
        None if maps is None else _text(maps),
    )  # fmt: skip


def _figure(fields: Mapping[str, Any]) -> Figure:
    return Figure(
        _text(fields["name"]), _number(fields["value"]), _text(fields["unit"]),
        _text(fields["convention"]), _text(fields["meaning"]), _text(fields.get("value_note", "")),
    )  # fmt: skip


def _curve(values: object) -> FloatArray:
    if not isinstance(values, list):
        raise TypeError("a curve is not a list")
    return np.array([_number(value) for value in values], dtype=np.float64)


def _mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict) or len(value) > _MOST_ITEMS:
        raise TypeError(f"{str(value)[:40]!r} is not an object of a few keys")
    return value


def _number(value: object) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{str(value)[:40]!r} is not a number")
    return float(value)


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST:
        raise TypeError(f"{str(value)[:40]!r} is not a text of at most {_LONGEST} letters")
    return value
