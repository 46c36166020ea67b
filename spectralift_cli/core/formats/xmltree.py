"""XML from files that are not trusted: no document types, no entities, bounded size and depth."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn
from xml.etree.ElementTree import Element, TreeBuilder  # never parses, only builds
from xml.parsers import expat  # document types, and so entities, are refused below

from spectralift_cli.core.errors import DataError

_MOST_BYTES = 32 * 2**20
_MOST_DEPTH = 64
_HINT = "fetch the product's metadata again"


def read_xml(path: Path) -> Element:
    """Return the root element of an XML file, namespaces taken off its names.

    A document type is refused where it starts: entities, which read other files or grow without
    bound, can only be declared inside one.

    Raises:
        DataError: it cannot be read, is not XML, has a document type, or is over 32 MB or 64
            elements deep.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})", _HINT) from error
    if len(content) > _MOST_BYTES:
        raise DataError(f"{path}: is over {_MOST_BYTES // 2**20} MB, too large for metadata", _HINT)

    builder = TreeBuilder()
    depth = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MOST_DEPTH:
            raise DataError(f"{path}: its elements are over {_MOST_DEPTH} deep", _HINT)
        builder.start(name.rpartition(" ")[2], attributes)

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name.rpartition(" ")[2])

    def refuse_type(*_: object) -> NoReturn:
        raise DataError(f"{path}: has a document type, which is not read", _HINT)

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse_type
    try:
        parser.Parse(content, True)
    except (expat.ExpatError, ValueError, LookupError) as error:  # the others: odd encodings
        raise DataError(f"{path}: is not XML that can be read ({error})", _HINT) from error
    return builder.close()
