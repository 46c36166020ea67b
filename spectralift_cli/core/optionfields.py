"""What an option is: a dataclass field with its help, unit and bounds; its check and its JSON.

The options themselves are in `config`. This module imports only the standard library.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from spectralift_cli.core.errors import DataError

_T = TypeVar("_T")


@dataclass(frozen=True)
class Option:
    """What a user is told of one field.

    Args:
        help: one line; unit, bounds and default are added to it from here.
        unit: of the value, or "".
        low: smallest value, or None.
        high: largest value, or None.
        choices: the values it may take, for a text or an integer, or ().
        allow_inf: whether positive infinity is meaningful (an SNR without noise).
        panel: heading it stands under in help, or "".
        later: added after files were written: left out of JSON where it has its default, so that
            what does not use it keeps its bytes.
    """

    help: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str | int, ...] = ()
    allow_inf: bool = False
    panel: str = ""
    later: bool = False


def option(default: Any, text: str, **more: Any) -> Any:
    """Return a dataclass field with its default, its help and more of its `Option`."""
    return field(default=default, metadata={"option": Option(text, **more)})


# `paper` and `published` mean the same wherever either is a value
SYNONYMS = {"paper": "published", "published": "paper"}


def canonical(value: str, choices: tuple[str, ...]) -> str:
    """Return `value`, or its synonym where only that one is a choice."""
    return SYNONYMS[value] if value not in choices and SYNONYMS.get(value) in choices else value


def options_of(config: type[Any]) -> dict[str, tuple[dataclasses.Field[Any], Option]]:
    """Return the fields of a config class with their options, by name."""
    return {f.name: (f, f.metadata["option"]) for f in dataclasses.fields(config)}


def check(config: Any) -> None:
    """Check every field of a config against its bounds and choices.

    Raises:
        DataError: a value is outside, with the value and the bounds.
    """
    for name, (_, option) in options_of(type(config)).items():
        value = getattr(config, name)
        label = name.replace("_", "-")
        if value is None:
            continue
        if option.choices and value not in option.choices:
            raise DataError(
                f"{label} is {value!r}, which is not a choice",
                f"choose from {', '.join(map(str, option.choices))}",
            )
        if option.low is None or option.high is None:
            continue
        if option.allow_inf and value == math.inf:
            continue
        if not option.low <= value <= option.high:  # also catches NaN
            raise DataError(
                f"{label} is {value}, outside {option.low:g} to {option.high:g} {option.unit}".rstrip(),
                "choose a finite value within the bounds",
            )


def to_json(config: Any) -> dict[str, Any]:
    """Return a config as a JSON object; infinity becomes the text "inf"."""
    options = options_of(type(config))
    return {
        key: "inf" if isinstance(value, float) and math.isinf(value) else value
        for key, value in dataclasses.asdict(config).items()
        if not (options[key][1].later and value == options[key][0].default)
    }


def from_json(config: type[_T], fields: Mapping[str, Any], source: object) -> _T:
    """Return the config that `to_json` wrote, checked by type, bound and name.

    Raises:
        DataError: an unknown key (with its nearest neighbour) or a value of the wrong type.
    """
    import difflib

    from pydantic import TypeAdapter, ValidationError

    known = options_of(config)
    for key in fields:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
            raise DataError(f"{source}: unknown key {key!r}", hint)
    try:
        return TypeAdapter(config).validate_python(dict(fields))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"{source}: {where} is {first['input']!r:.80}: {first['msg']}", "mend the value"
        ) from error
