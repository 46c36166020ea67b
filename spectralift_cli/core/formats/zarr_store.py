"""The arrays in a local Zarr store, version 2 or 3, and their values by regions.

A store is a folder that anybody may have made: its metadata is bounded and checked field by field,
its files are regular ones inside the folder, a chunk is held against the memory before it is read.
"""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spectralift_cli.core.cube import AnyArray
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats import OpenRequest, arrays
from spectralift_cli.core.formats.zarr_codecs import (
    Codecs,
    Shards,
    parse_v2,
    parse_v3,
    unsupported,
)

_METADATA_BYTES = 4 * 2**20
_MAX_NODES = 1000
_MAX_DEPTH = 4
# a compressed chunk is hardly ever larger than its values; this bounds what is read of one
_CHUNK_SLACK = 2**20
_MISSING = 2**64 - 1
_V3_KEYS = {
    "zarr_format", "node_type", "shape", "data_type", "chunk_grid", "chunk_key_encoding",
    "fill_value", "codecs", "attributes", "dimension_names", "storage_transformers",
}  # fmt: skip
_V3_DTYPES = {
    "bool": "?", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4",
    "uint32": "u4", "int64": "i8", "uint64": "u8", "float16": "f2", "float32": "f4",
    "float64": "f8",
}  # fmt: skip
_NAMED_FILLS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True, eq=False)
class ZarrArray:
    """One array of a store.

    Args:
        root: the store's folder, resolved.
        folder: the array's.
        version: 2 or 3.
        shape: of the array.
        chunk_shape: of a chunk, or of a shard.
        dtype: in native byte order.
        codecs: how a chunk or shard is stored.
        fill: the value of chunks that are not there.
        has_fill: whether the metadata names one (version 2 need not).
        dims: names of the axes, "" where there is none.
        attrs: attributes.
        separator: between the numbers of a chunk's name.
        prefix: before them.
    """

    root: Path
    folder: Path
    version: int
    shape: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    codecs: Codecs | Shards
    fill: Any
    has_fill: bool
    dims: tuple[str, ...]
    attrs: Mapping[str, Any]
    separator: str
    prefix: str

    def read(
        self, region: tuple[slice, ...], request: OpenRequest, out: AnyArray | None = None
    ) -> AnyArray:
        """Return the values of a region, one slice with step 1 an axis, native byte order.

        Args:
            region: of the array.
            request: whose memory limit holds for every chunk.
            out: where to put them, of the region's shape and the array's dtype.

        Raises:
            DataError: a chunk is damaged, or takes more than the memory allowed.
        """
        if out is None:
            out = np.empty([s.stop - s.start for s in region], self.dtype)
        out[...] = self.fill
        for index in _cells(region, self.chunk_shape):
            key = self.prefix + self.separator.join(map(str, index)) if index else self.prefix
            path = self.folder / (key or "0")
            fd = _open_inside(path, self.root)
            if fd is None:
                continue
            try:
                self._read_chunk(fd, index, region, out, request, path)
            except DataError as error:
                raise DataError(_prefixed(error, path), error.hint) from error
            finally:
                os.close(fd)
        return out

    def _read_chunk(
        self,
        fd: int,
        index: tuple[int, ...],
        region: tuple[slice, ...],
        out: AnyArray,
        request: OpenRequest,
        path: Path,
    ) -> None:
        origin = tuple(i * n for i, n in zip(index, self.chunk_shape, strict=True))
        size = os.fstat(fd).st_size
        if isinstance(self.codecs, Codecs):
            raw = _read_chunk_bytes(fd, 0, size, self.chunk_shape, self.dtype, request, path)
            _paste(out, region, self.codecs.decode(raw, self.chunk_shape), origin)
            return
        shards = self.codecs
        inner = shards.inner_shape
        counts = tuple(s // n for s, n in zip(self.chunk_shape, inner, strict=True))
        index_bytes = shards.index_bytes(counts)
        arrays.check_memory(index_bytes, request, path)
        at = 0 if shards.index_first else size - index_bytes
        if index_bytes > size:
            raise DataError(
                f"the chunk is damaged: its index takes {index_bytes:,} bytes, it has {size:,}",
                "fetch or write the store again",
            )
        places = shards.index_codecs.decode(_pread(fd, at, index_bytes), (*counts, 2))
        local = tuple(
            slice(max(0, r.start - o), min(n, r.stop - o))
            for r, o, n in zip(region, origin, self.chunk_shape, strict=True)
        )
        for cell in _cells(local, inner):
            offset, length = (int(n) for n in places[cell])
            if offset == length == _MISSING:
                continue
            if offset + length > size:
                raise DataError(
                    f"the chunk is damaged: a part ends at byte {offset + length:,} of {size:,}",
                    "fetch or write the store again",
                )
            raw = _read_chunk_bytes(fd, offset, length, inner, self.dtype, request, path)
            corner = tuple(o + i * n for o, i, n in zip(origin, cell, inner, strict=True))
            _paste(out, region, shards.codecs.decode(raw, inner), corner)


def _cells(region: tuple[slice, ...], shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield the indices of the cells of a grid of `shape` that a region touches."""
    return itertools.product(
        *(
            range(s.start // n, -(-s.stop // n) if s.stop > s.start else s.start // n)
            for s, n in zip(region, shape, strict=True)
        )
    )


def _paste(
    out: AnyArray, region: tuple[slice, ...], chunk: AnyArray, origin: tuple[int, ...]
) -> None:
    target, source = [], []
    for wanted, start, n in zip(region, origin, chunk.shape, strict=True):
        first, last = max(wanted.start, start), min(wanted.stop, start + n)
        target.append(slice(first - wanted.start, last - wanted.start))
        source.append(slice(first - start, last - start))
    out[tuple(target)] = chunk[tuple(source)]


def _read_chunk_bytes(
    fd: int,
    offset: int,
    length: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    request: OpenRequest,
    path: Path,
) -> bytes:
    nbytes = math.prod(shape) * dtype.itemsize
    arrays.check_memory(nbytes, request, path)
    if length > nbytes + nbytes // 8 + _CHUNK_SLACK:
        raise DataError(
            f"the chunk is damaged: {length:,} bytes are stored for {nbytes:,}",
            "fetch or write the store again",
        )
    return _pread(fd, offset, length)


def _pread(fd: int, offset: int, length: int) -> bytes:
    parts: list[bytes] = []
    while length:
        part = os.pread(fd, min(length, 2**30), offset)
        if not part:
            raise DataError("the chunk is damaged: it ends early", "fetch the store again")
        parts.append(part)
        offset, length = offset + len(part), length - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _open_inside(path: Path, root: Path) -> int | None:
    """Open a regular file of the store; None if there is none.

    Raises:
        DataError: a link leads out of the store, or it is no regular file.
    """
    try:
        real = Path(os.path.realpath(path, strict=True))
        if not real.is_relative_to(root):
            raise DataError(
                f"{path}: links to {real}, outside of the store",
                "copy the file to where the link is",
            )
        fd = os.open(real, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO would wait for its writer
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DataError(f"{path}: is a link to itself", "remove the link") from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise DataError(f"{path}: is not a regular file", "fetch or write the store again")
    return fd


def _read_json(path: Path, root: Path) -> dict[str, Any] | None:
    """Return a metadata file's object; None if there is no such file."""
    fd = _open_inside(path, root)
    if fd is None:
        return None
    try:
        size = os.fstat(fd).st_size
        if size > _METADATA_BYTES:
            raise DataError(
                f"{path}: takes {size:,} bytes, at most {_METADATA_BYTES:,} are read",
                "is it a Zarr store's metadata?",
            )
        parsed = json.loads(_pread(fd, 0, size))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: is not JSON ({type(error).__name__})", "fetch or write the store again"
        ) from error
    finally:
        os.close(fd)
    if not isinstance(parsed, dict):
        raise DataError(f"{path}: is not a JSON object", "fetch or write the store again")
    return parsed


def list_arrays(path: Path) -> dict[str, ZarrArray | DataError]:
    """Return the arrays of a store by name ("/" for a store that is one array).

    An array that cannot be read comes as the error that says why.

    Raises:
        DataError: the store's own metadata is damaged, or it has more than 1,000 nodes.
    """
    root = Path(os.path.realpath(path))
    found: dict[str, ZarrArray | DataError] = {}
    _visit(path, "", root, found, itertools.count(1))
    return found


def _visit(
    folder: Path,
    name: str,
    root: Path,
    found: dict[str, ZarrArray | DataError],
    counter: Iterator[int],
) -> None:
    if next(counter) > _MAX_NODES:
        raise DataError(
            f"{root}: has more than {_MAX_NODES:,} arrays and groups", "name the group inside it"
        )
    try:
        parse: Any = None
        if (node := _read_json(folder / "zarr.json", root)) is not None:
            parse = _parse_v3 if node.get("node_type") == "array" else None
        elif (node := _read_json(folder / ".zarray", root)) is not None:
            parse = _parse_v2
        elif _read_json(folder / ".zgroup", root) is None:
            return
        if parse is not None:
            found[name or "/"] = parse(node, folder, root)
            return
    except DataError as error:
        found[name or "/"] = DataError(_prefixed(error, folder), error.hint)
        return
    if name.count("/") + 1 >= _MAX_DEPTH:
        return
    with os.scandir(folder) as entries:
        children = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
    for child in children:
        _visit(folder / child, f"{name}/{child}".lstrip("/"), root, found, counter)


def _prefixed(error: DataError, path: Path) -> str:
    return error.message if str(path) in error.message else f"{path}: {error.message}"


def _parse_v3(node: dict[str, Any], folder: Path, root: Path) -> ZarrArray:
    for key in node.keys() - _V3_KEYS:
        extension = node[key]
        if not isinstance(extension, dict) or extension.get("must_understand") is not False:
            raise unsupported(f"the Zarr extension {key!r}")
    if node.get("zarr_format") != 3 or node.get("storage_transformers"):
        raise unsupported("a Zarr store with storage transformers or of another version")
    name = node.get("data_type")
    if not isinstance(name, str) or name not in _V3_DTYPES:
        raise unsupported(f"the data type {str(name)[:60]!r}")
    dtype = np.dtype(_V3_DTYPES[name])
    shape = _sizes(node.get("shape"), "shape", 0)
    grid = node.get("chunk_grid")
    config = grid.get("configuration") if isinstance(grid, dict) else None
    if not isinstance(config, dict) or grid.get("name") != "regular":  # type: ignore[union-attr]
        raise unsupported(f"the chunk grid {str(grid)[:60]}")
    chunk_shape = _sizes(config.get("chunk_shape"), "chunk shape", 1)
    prefix, separator = _chunk_names(node.get("chunk_key_encoding"))
    dims = node.get("dimension_names")
    return _checked(
        ZarrArray(
            root, folder, 3, shape, chunk_shape, dtype,
            parse_v3(node.get("codecs"), chunk_shape, dtype),
            _fill(node.get("fill_value"), dtype), True,
            _dims(dims, len(shape)), _object(node.get("attributes")), separator,
            # the array without axes has one chunk, "c", or "0" by version 2's names
            prefix + separator if shape and prefix else prefix,
        )
    )  # fmt: skip


def _parse_v2(node: dict[str, Any], folder: Path, root: Path) -> ZarrArray:
    text = node.get("dtype")
    if node.get("zarr_format") != 2 or not isinstance(text, str):
        raise unsupported(f"the data type {str(text)[:60]}")
    if re.fullmatch(r"[<>|]([iu][1248]|f[248]|b1)", text) is None:
        raise unsupported(f"the data type {text[:60]!r}")
    dtype = np.dtype(text)
    shape = _sizes(node.get("shape"), "shape", 0)
    attrs = _object(_read_json(folder / ".zattrs", root))
    separator = node.get("dimension_separator", ".")
    if separator not in (".", "/"):
        raise unsupported(f"the separator {str(separator)[:60]!r}")
    native = dtype.newbyteorder("=")
    fill = node.get("fill_value")
    return _checked(
        ZarrArray(
            root, folder, 2, shape, _sizes(node.get("chunks"), "chunk shape", 1), native,
            parse_v2(
                node.get("compressor"), node.get("filters"), node.get("order"), len(shape), dtype
            ),
            _fill(fill, native), fill is not None,
            _dims(attrs.get("_ARRAY_DIMENSIONS"), len(shape)), attrs, separator, "",
        )
    )  # fmt: skip


def _checked(array: ZarrArray) -> ZarrArray:
    if len(array.shape) != len(array.chunk_shape):
        raise DataError(
            f"{array.folder}: the array has {len(array.shape)} axes, "
            f"its chunks {len(array.chunk_shape)}",
            "the store is damaged; fetch or write it again",
        )
    return array


def _sizes(value: Any, what: str, least: int) -> tuple[int, ...]:
    fits = isinstance(value, list) and len(value) <= 16
    if not fits or not all(type(n) is int and least <= n < 2**62 for n in value):
        raise DataError(
            f"the {what} {str(value)[:80]} is not a list of whole numbers from {least}",
            "the store is damaged; fetch or write it again",
        )
    return tuple(value)


def _chunk_names(encoding: Any) -> tuple[str, str]:
    kind = encoding.get("name") if isinstance(encoding, dict) else encoding
    config = encoding.get("configuration") if isinstance(encoding, dict) else None
    given = config.get("separator") if isinstance(config, dict) else None
    separator = given or {"default": "/", "v2": "."}.get(str(kind))
    if kind not in ("default", "v2") or separator not in ("/", "."):
        raise unsupported(f"the chunk names {str(encoding)[:60]!r}")
    return ("c" if kind == "default" else ""), separator


def _fill(value: Any, dtype: np.dtype[Any]) -> Any:
    """Return a fill value as a scalar of `dtype`; 0 where none is named."""
    if value is None:
        return dtype.type(0)
    try:
        if dtype.kind == "f" and isinstance(value, str):
            if value.startswith("0x"):
                bits = int(value, 16).to_bytes(dtype.itemsize, "little")
                return np.frombuffer(bits, dtype.newbyteorder("<"))[0].astype(dtype)
            return dtype.type(_NAMED_FILLS[value])
        if dtype.kind == "f" and type(value) in (int, float):
            with np.errstate(over="ignore"):
                return dtype.type(value)
        if (dtype.kind in "iu" and type(value) is int) or type(value) is bool:
            return dtype.type(value)
        if dtype.kind in "iu" and type(value) is float and value.is_integer():
            return dtype.type(int(value))
    except (KeyError, ValueError, OverflowError):
        pass
    raise DataError(
        f"the fill value {str(value)[:60]!r} is none of {dtype.name}",
        "the store is damaged; fetch or write it again",
    )


def _dims(names: Any, ndim: int) -> tuple[str, ...]:
    if not isinstance(names, list) or len(names) != ndim:
        return ("",) * ndim
    return tuple(name if isinstance(name, str) else "" for name in names)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
