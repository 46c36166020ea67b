"""The text of an ENVI header: `key = value` lines below the word ENVI, values in braces over lines.

The syntax (NV5, "ENVI Header Files"): keys in any case, `;` in the first column starts a comment,
a value that opens with `{` runs to the first `}`. Nothing is interpreted here beyond numbers.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from spectralift_cli.core.cube import FloatArray
from spectralift_cli.core.errors import DataError

# a header of 2,000 bands with long names takes 0.3 MB
_LIMIT_BYTES = 16 * 2**20
_MOST_ENTRIES = 10_000
_LINE_WIDTH = 96
_WHOLE = re.compile(r"[+-]?[0-9]{1,20}")


class EnviHeader:
    """The entries of a header, looked up by lower-case key.

    Args:
        path: the file, for messages.
        entries: key -> value without braces.
        clashes: keys that were given two values; using one is an error, since other programs
            differ in which one they take.
    """

    def __init__(
        self, path: Path, entries: Mapping[str, str], clashes: Mapping[str, tuple[str, str]]
    ) -> None:
        self.path = path
        self._entries = entries
        self._clashes = clashes

    def text(self, key: str) -> str | None:
        """Return a value, None if it is missing or empty.

        Raises:
            DataError: the key stands there twice with different values.
        """
        if key in self._clashes:
            first, second = self._clashes[key]
            raise DataError(
                f"{self.path}: {key!r} is given twice, as {first[:40]!r} and {second[:40]!r}",
                "remove the wrong one from the header",
            )
        return self._entries.get(key) or None

    def required(self, key: str) -> str:
        """Return a value that an image cannot do without.

        Raises:
            DataError: it is missing.
        """
        value = self.text(key)
        if value is None:
            raise DataError(
                f"{self.path}: the header has no {key!r}",
                "an ENVI header needs samples, lines, bands, data type and interleave",
            )
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        """Return a whole number; without a default the key is required.

        Raises:
            DataError: it is missing or not a whole number of at most 20 digits.
        """
        value = self.text(key)
        if value is None and default is not None:
            return default
        value = self.required(key)
        if not _WHOLE.fullmatch(value):
            raise DataError(
                f"{self.path}: {key} = {value[:40]!r} is not a whole number", "mend the header"
            )
        return int(value)

    def number(self, key: str) -> float | int | None:
        """Return a number, None if it is missing; a whole one keeps all its digits.

        Raises:
            DataError: it is not a number.
        """
        value = self.text(key)
        if value is None:
            return None
        return int(value) if _WHOLE.fullmatch(value) else self._float(key, value)

    def words(self, key: str, most: int) -> list[str] | None:
        """Return the parts of a list, stripped; None if it is missing or empty.

        Of a longer list than `most`, the rest comes as one more word.
        """
        value = self.text(key)
        return None if value is None else [word.strip() for word in value.split(",", most)]

    def numbers(self, key: str, count: int) -> FloatArray | None:
        """Return a list of `count` numbers, None if it is missing or empty.

        Raises:
            DataError: it has another length or holds something else than numbers.
        """
        value = self.text(key)
        if value is None:
            return None
        value = value.removesuffix(",")
        # counted before it is split: a list's length is the file's word
        found = value.count(",") + 1
        if found != count:
            raise DataError(
                f"{self.path}: {key!r} lists {found:,} values but the image has {count:,} bands",
                "mend the header or remove that list from it",
            )
        return np.array([self._float(key, word) for word in value.split(",")], dtype=np.float64)

    def _float(self, key: str, word: str) -> float:
        try:
            if "_" in word:  # Python's 1_000 is nobody else's number
                raise ValueError
            return float(word)
        except ValueError:
            raise DataError(
                f"{self.path}: {word.strip()[:40]!r} in {key!r} is not a number", "mend the header"
            ) from None


def read_envi_header(path: Path) -> EnviHeader:
    """Read a header file.

    Raises:
        DataError: it does not start with ENVI, is over 16 MB, or a brace is never closed.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(_LIMIT_BYTES + 1)
    if len(data) > _LIMIT_BYTES:
        raise DataError(
            f"{path}: an ENVI header of more than {_LIMIT_BYTES // 2**20} MB is not read",
            "check that this is the header and not the data file",
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")  # what ENVI on Windows has always written
    return parse_envi_header(text, path)


def parse_envi_header(text: str, path: Path) -> EnviHeader:
    """Parse a header's text; `path` is for messages.

    Raises:
        DataError: it does not start with ENVI or a brace is never closed.
    """
    lines = (line.rstrip("\n") for line in io.StringIO(text, newline=None))
    first = next(lines, "")
    if not first.startswith("ENVI") or "\0" in text:
        raise DataError(
            f"{path}: is not an ENVI header, its first line is {first[:40]!r} and not 'ENVI'",
            "other formats use .hdr too; open the data file itself, or mend the header",
        )
    entries: dict[str, str] = {}
    clashes: dict[str, tuple[str, str]] = {}
    for line in lines:
        key, equals, value = line.partition("=")
        if line.startswith(";") or not equals:
            continue
        key, value = " ".join(key.lower().split()), value.strip()
        if value.startswith("{"):
            value = _braced_value(value, lines, key, path)
        if len(entries) >= _MOST_ENTRIES:
            raise DataError(
                f"{path}: the header has more than {_MOST_ENTRIES:,} entries", "it is damaged"
            )
        if entries.setdefault(key, value).split() != value.split():
            clashes[key] = (entries[key], value)
    return EnviHeader(path, entries, clashes)


def _braced_value(first: str, rest: Iterable[str], key: str, path: Path) -> str:
    parts = [first[1:]]
    if "}" not in first:
        for line in rest:
            if line.startswith(";"):
                continue
            parts.append(line)
            if "}" in line:
                break
        else:
            raise DataError(
                f"{path}: the brace after {key!r} is never closed", "the header is truncated"
            )
    parts[-1] = parts[-1].partition("}")[0]
    return "\n".join(parts).strip()


def braced(words: Iterable[str]) -> str:
    """Return a list as a header value, wrapped where it is long.

    Continuation lines start with a space, so that no word can be taken for a comment.
    """
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) > _LINE_WIDTH:
            lines.append("")
        lines[-1] += f" {word},"
    if len(lines) == 1:
        return "{" + lines[0].strip().removesuffix(",") + "}"
    return "{\n" + "\n".join(lines).removesuffix(",") + "}"


def format_envi_header(entries: Mapping[str, str]) -> str:
    """Return a header's text; the values are written as they are."""
    return "ENVI\n" + "".join(f"{key} = {value}\n" for key, value in entries.items())
