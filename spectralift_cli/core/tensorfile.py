"""Tensors with one JSON document, in a .safetensors file; nothing is ever unpickled.

The document is the value of a single metadata key, because safetensors writes several keys in
random order. Everything a header promises is compared with the file's size before it is believed.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats.arrays import dump_json, strict_json
from spectralift_cli.core.resources import default_memory_bytes

_KEY = "spectralift"
_MAX_HEADER_BYTES = 32 * 2**20
_MAX_NESTING = 32
_DISGUISES = (
    (b"PK\x03\x04", "a ZIP archive, as torch.save writes it"),
    (b"\x80", "a Python pickle"),
    (b"\x89HDF", "an HDF5 file"),
)


def dump_tensors(tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> bytes:
    """Return the bytes of a tensor file; the same contents give the same bytes."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(contiguous, {_KEY: dump_json(document)})


def load_tensors(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a tensor file; return its JSON document and its tensors.

    Args:
        path: the file.
        kind: what it should be, for messages: "a checkpoint".

    Raises:
        DataError: there is no such file, or it is truncated, damaged, too large, or something else.
    """
    data = _read_bytes(path, kind)
    document = _document(data, path, kind)
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, KeyError) as error:  # KeyError: a type that PyTorch does not have
        raise DataError(
            f"{path}: its tensors are damaged ({error})", "make or fetch the file again"
        ) from error
    return document, tensors


def _read_bytes(path: Path, kind: str) -> bytes:
    try:
        if not path.is_file():
            what = "is not a file" if path.exists() else "no such file"
            raise DataError(f"{path}: {what}", f"give {kind}")
        size, limit = path.stat().st_size, default_memory_bytes()
        if size > limit:
            raise DataError(
                f"{path}: has {size:,} bytes, more than the {limit:,} of memory to load it into",
                f"check that it is {kind}",
            )
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", f"give {kind}") from error


def _document(data: bytes, path: Path, kind: str) -> dict[str, Any]:
    for magic, what in _DISGUISES:
        # a length is little endian, so that a header of 128 bytes begins with 0x80 too
        if data.startswith(magic) and not data[2:8] == bytes(6):
            raise DataError(
                f"{path}: is {what}, not {kind} of spectralift; such files are not opened",
                "give the .safetensors file that train wrote",
            )
    length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else -1
    there = len(data) - 8
    if not 2 <= length <= there:
        promise = f"promises a header of {length:,} bytes and has {max(0, there):,}"
        raise DataError(
            f"{path}: is not {kind}, or it is truncated"
            + (f": it {promise}" if length >= 0 else f" to {len(data)} bytes"),
            "make or fetch the file again",
        )
    if length > _MAX_HEADER_BYTES:
        raise DataError(
            f"{path}: its header has {length:,} bytes, more than the {_MAX_HEADER_BYTES:,} "
            f"that {kind} may have",
            "make or fetch the file again",
        )
    header = _parse(data[8 : 8 + length], path, kind)
    metadata = header.get("__metadata__")
    text = metadata.get(_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise DataError(
            f"{path}: is a safetensors file, but not {kind} of spectralift",
            "give the .safetensors file that train wrote",
        )
    return _parse(text, path, kind)


def _parse(text: str | bytes, path: Path, kind: str) -> dict[str, Any]:
    try:
        parsed = strict_json(text)
        # half a surrogate pair is JSON but no text that any output could hold
        json.dumps(parsed, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: is not {kind}: its header is not JSON", "make or fetch the file again"
        ) from error
    if not isinstance(parsed, dict) or _is_deep(parsed):
        raise DataError(
            f"{path}: is not {kind}: its header is not a JSON object of at most {_MAX_NESTING} "
            "levels",
            "make or fetch the file again",
        )
    return parsed


def _is_deep(value: Any) -> bool:
    """Tell whether JSON nests deeper than anything that later walks it by recursion should meet."""
    level: list[Any] = [value]
    for _ in range(_MAX_NESTING):
        inner = (v.values() if isinstance(v, dict) else v for v in level)
        level = [v for values in inner for v in values if isinstance(v, dict | list)]
        if not level:
            return False
    return True
