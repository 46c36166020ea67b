"""YAML and JSON of unknown origin as plain dictionaries: bounded, without aliases or double keys."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import yaml

from spectralift_cli.core.errors import DataError

# a configuration takes 2 kB; PyYAML takes seconds for a megabyte of brackets
LIMIT_BYTES = 128 * 2**10
_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = ("null", "bool", "int", "float", "str", "seq", "map")


def read_config(path: Path) -> dict[str, Any]:
    """Read a configuration file; .json is JSON, anything else YAML.

    Raises:
        DataError: it cannot be read; else see `parse_config`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LIMIT_BYTES + 1)
    except OSError as error:
        raise DataError(
            f"{path}: the config cannot be read ({error.strerror})", "check the path"
        ) from error
    return parse_config(data, str(path), as_json=path.suffix.lower() == ".json")


def parse_config(data: bytes, source: str, *, as_json: bool | None = None) -> dict[str, Any]:
    """Return the mapping that a configuration holds.

    Args:
        data: UTF-8 text, up to `LIMIT_BYTES`.
        source: its file, for messages.
        as_json: whether it is JSON; None to tell by a leading brace.

    Raises:
        DataError: too large, not UTF-8, not valid, a key twice, an alias, or no mapping of texts.
    """
    if len(data) > LIMIT_BYTES:
        raise DataError(
            f"{source}: a config of more than {LIMIT_BYTES:,} bytes is none",
            "give the YAML or JSON file of the run",
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{source}: is not UTF-8 text (byte {error.start})", "give a YAML or JSON file"
        ) from error
    if as_json is None:
        as_json = text.lstrip().startswith("{")
    found = _from_json(text, source) if as_json else _from_yaml(text, source)
    if not isinstance(found, dict):
        raise DataError(
            f"{source}: holds {_kind(found)}, a config is a mapping of keys to values",
            "write one `key: value` a line; examples/config.yaml is a template",
        )
    _check_scalars(found, source)
    return found


def parse_settings(pairs: Iterable[str]) -> dict[str, Any]:
    """Return the key=value pairs of `--set`, values read as YAML; a later one wins.

    Raises:
        DataError: one is not key=value, or its value is not valid.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise DataError(f"--set {pair!r} is not key=value", "write --set epochs=500")
        if len(value) > LIMIT_BYTES:
            raise DataError(f"--set {key}: the value has {len(value):,} characters", "use a file")
        settings[key.strip()] = _from_yaml(value, f"--set {key.strip()}")
        _check_scalars(settings[key.strip()], f"--set {key.strip()}")
    return settings


def _check_scalars(value: Any, source: str) -> None:
    """Refuse what no option takes and what would trip up those who print or open it."""
    if isinstance(value, dict):
        for key, item in value.items():
            _check_scalars(key, source)
            _check_scalars(item, source)
    elif isinstance(value, list):
        for item in value:
            _check_scalars(item, source)
    elif isinstance(value, int) and value.bit_length() > 64:
        raise DataError(
            f"{source}: a whole number of {value.bit_length():,} bits is beyond every option",
            "give one below 2^64",
        )
    elif isinstance(value, str) and ("\0" in value or _is_broken(value)):
        raise DataError(f"{source}: the text {value[:40]!r} is not UTF-8", "write it anew")


def _is_broken(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return True
    return False


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    return {"list": "a list", "str": "a text", "bool": "true or false"}.get(
        type(value).__name__, "a number"
    )


def _from_json(text: str, source: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ValueError(f"the key {key[:80]!r} stands there twice")
            found[key] = value
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{source}: is not a valid config ({_first_line(error)})",
            "mend it there; JSON has neither comments nor trailing commas",
        ) from error


def _from_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506  # a subclass of SafeLoader
    # PyYAML lets Python's own errors through: numbers of thousands of digits, "\Uffffffff"
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(
            f"{source}: is not a valid config ({_where(error)})",
            "mend it there; a text with : or # inside needs quotes",
        ) from error


def _where(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without aliases, which multiply, without tags and without double keys.

    Dates, base-60 numbers, `<<` and `=` are the texts they look like, as in YAML 1.2.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _not_plain(event, f"*{event.anchor} is an alias, write the value out")
        if isinstance(event, yaml.NodeEvent) and getattr(event, "tag", None) is not None:
            raise _not_plain(event, "a config has no tags")
        node = super().compose_node(parent, index)
        if isinstance(node, yaml.ScalarNode) and (
            node.tag.removeprefix(_TAG) not in _PLAIN_TAGS or (":" in node.value)
        ):
            node.tag = f"{_TAG}str"
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != f"{_TAG}str":
                raise _not_plain(key, "this key is not a text, put it in quotes")
            if key.value in seen:
                raise _not_plain(key, f"the key {key.value[:80]!r} stands there twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _not_plain(where: yaml.Event | yaml.Node, problem: str) -> ValueError:
    mark: Any = where.start_mark  # PyYAML's stubs name three types
    return ValueError(f"line {mark.line + 1}, column {mark.column + 1}: {problem}")
