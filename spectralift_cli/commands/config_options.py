"""Typer options made from the fields of a config dataclass, so that each stands once."""

from __future__ import annotations

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import typer

from spectralift_cli.core.optionfields import SYNONYMS, Option, options_of


def is_config(annotation: Any) -> bool:
    """Tell whether a parameter's annotation is a config dataclass."""
    return dataclasses.is_dataclass(annotation) and isinstance(annotation, type)


def parameters_of(config: type[Any]) -> list[inspect.Parameter]:
    """Return one keyword parameter a field, None where the user says nothing."""
    hints = typing.get_type_hints(config)
    found = []
    for name, (field, option) in options_of(config).items():
        kind = _plain_type(hints[name])
        found.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[_cli_type(kind, option) | None, _typer_option(field, option)],
            )
        )
    return found


def build(config: type[Any], values: Mapping[str, Any]) -> Any:
    """Return the config of the options a user gave; the others take their defaults.

    Raises:
        OptionError: an option that the chosen preset does not use.
    """
    given = {
        name: int(value) if isinstance(value, str) and _is_int_choice(option) else value
        for name, (_, option) in options_of(config).items()
        if (value := values[name]) is not None
    }
    check_given: Callable[[Mapping[str, Any]], None] | None = getattr(config, "check_given", None)
    if check_given is not None:
        check_given(given)
    return config(**given)


def _plain_type(hint: Any) -> Any:
    """Return T of `T | None`."""
    if isinstance(hint, types.UnionType):
        return next(part for part in typing.get_args(hint) if part is not type(None))
    return hint


def _is_int_choice(option: Option) -> bool:
    return bool(option.choices) and isinstance(option.choices[0], int)


def _cli_type(kind: Any, option: Option) -> Any:
    if not option.choices:
        return kind
    words = [str(choice) for choice in option.choices]
    words += [SYNONYMS[w] for w in words if w in SYNONYMS and SYNONYMS[w] not in words]
    return Literal[tuple(words)]


def _typer_option(field: dataclasses.Field[Any], option: Option) -> Any:
    flag = f"--{field.name.replace('_', '-')}"
    default = None if field.default is None else _shown(field.default)
    bounds = ""
    if option.low is not None and option.high is not None:
        unbounded = option.high >= 2**31 - 1
        bounds = f"at least {option.low:g}" if unbounded else f"{option.low:g} to {option.high:g}"
    unit = " ".join(word for word in (bounds, option.unit) if word)
    text = f"{option.help} ({unit})" if unit else option.help
    return typer.Option(
        flag,
        help=f"{text[:1].upper()}{text[1:]}.",
        show_default=default or False,
        callback=_bound_check(option),
        rich_help_panel=option.panel or None,
    )


def _shown(value: Any) -> str:
    return "" if value is False else f"{value:g}" if isinstance(value, float) else str(value)


def _bound_check(option: Option) -> Callable[[Any], Any] | None:
    """Return a callback that makes a value out of bounds a usage error; NaN is left to core."""
    low, high = option.low, option.high
    if low is None or high is None:
        return None

    def check(value: Any) -> Any:
        fine = value is None or math.isnan(value) or low <= value <= high
        if not fine and not (option.allow_inf and value == math.inf):
            raise typer.BadParameter(f"{value:g} is outside {low:g} to {high:g}")
        return value

    return check
