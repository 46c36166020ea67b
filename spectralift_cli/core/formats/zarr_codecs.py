"""How a Zarr chunk's bytes become its array, with every size known before anything is inflated.

The reader decodes chunks here rather than through zarr-python because a store is hostile: zarr-python
lets a compressed chunk grow without bound and imports the codecs a store names. The compressions
themselves are those of numcodecs (Zarr's own) and of Python.

Source: Zarr core specification 3.0 and its codecs (zarr-specs.readthedocs.io); version 2's metadata.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
from numcodecs.blosc import Blosc
from numcodecs.lz4 import LZ4
from numcodecs.zstd import Zstd

from spectralift_cli.core.cube import AnyArray
from spectralift_cli.core.errors import DataError

# what the libraries raise for damaged bytes
_CODEC_ERRORS = (RuntimeError, ValueError, zlib.error, struct.error)


def _damaged(reason: str) -> DataError:
    return DataError(f"the chunk is damaged: {reason}", "fetch or write the store again")


def _inflate(raw: bytes, size: int, wbits: int) -> bytes:
    inflater = zlib.decompressobj(wbits)
    data = inflater.decompress(raw, size + 1)
    if len(data) == size and not inflater.eof:
        inflater.decompress(inflater.unconsumed_tail, 1)  # reads the checksum behind the values
    if len(data) == size and not inflater.eof:
        raise _damaged("its end is missing")
    return data


def _zlib(raw: bytes, size: int) -> bytes:
    return _inflate(raw, size, zlib.MAX_WBITS)


def _gzip(raw: bytes, size: int) -> bytes:
    return _inflate(raw, size, zlib.MAX_WBITS | 16)


def _zstd(raw: bytes, size: int) -> AnyArray:
    promised = _zstd_content_size(raw)
    if promised is not None and promised != size:
        raise _damaged(f"it holds {promised:,} bytes instead of {size:,}")
    out = np.empty(size, np.uint8)
    Zstd().decode(raw, out=out)
    return out


def _zstd_content_size(raw: bytes) -> int | None:
    """Return the size a zstd frame's header names, if it does (RFC 8878, 3.1.1.1)."""
    if len(raw) < 6:
        raise _damaged(f"it has {len(raw)} bytes")
    descriptor = raw[4]
    single = descriptor >> 5 & 1
    width = (single, 2, 4, 8)[descriptor >> 6]
    at = 5 + (1 - single) + (0, 1, 2, 4)[descriptor & 3]
    if not width:
        return None
    return int.from_bytes(raw[at : at + width], "little") + (256 if width == 2 else 0)


def _blosc(raw: bytes, size: int) -> AnyArray:
    nbytes, _, cbytes = struct.unpack_from("<LLL", raw, 4)
    if nbytes != size or cbytes != len(raw):  # Blosc itself would read beyond a short chunk
        raise _damaged(
            f"it names {nbytes:,} bytes in {cbytes:,} instead of {size:,} in {len(raw):,}"
        )
    out = np.empty(size, np.uint8)
    Blosc().decode(raw, out=out)
    return out


def _lz4(raw: bytes, size: int) -> AnyArray:
    (promised,) = struct.unpack_from("<L", raw)
    if promised != size:
        raise _damaged(f"it holds {promised:,} bytes instead of {size:,}")
    out = np.empty(size, np.uint8)
    LZ4().decode(raw, out=out)
    return out


def _check_crc32c(raw: bytes) -> bytes:
    data, stored = raw[:-4], int.from_bytes(raw[-4:], "little")
    computed = google_crc32c.value(data)
    if len(raw) < 4 or stored != computed:
        raise _damaged(f"its checksum is {computed:08x}, it names {stored:08x}")
    return data


_COMPRESSIONS: dict[str, Callable[[bytes, int], bytes | AnyArray]] = {
    "zlib": _zlib, "gzip": _gzip, "zstd": _zstd, "blosc": _blosc, "lz4": _lz4,
}  # fmt: skip


@dataclass(frozen=True)
class Codecs:
    """The way from a stored chunk to its array.

    Args:
        dtype: of the stored values, with their byte order.
        order: the stored axes as a permutation of the array's.
        steps: what was done to the bytes, in the order of writing: names of `_COMPRESSIONS`,
            "crc32c", and "shuffle:N" (bytes of N-byte elements grouped).
    """

    dtype: np.dtype[Any]
    order: tuple[int, ...]
    steps: tuple[str, ...] = ()

    @property
    def compression(self) -> str:
        """The compression's name, for `info`."""
        return next((s for s in self.steps if s in _COMPRESSIONS), "none")

    def decode(self, raw: bytes, shape: Sequence[int]) -> AnyArray:
        """Return a chunk's array, of `shape`, which the caller has found to fit the memory.

        Raises:
            DataError: the bytes are damaged or are not as many as the shape takes.
        """
        size = math.prod(shape) * self.dtype.itemsize
        # what the compression was given: the values and the checksums of the steps before it
        given = size
        if self.compression != "none":
            given += 4 * self.steps[: self.steps.index(self.compression)].count("crc32c")
        data: bytes | AnyArray = raw
        try:
            for step in reversed(self.steps):
                data = _undo(step, data, given)
        except _CODEC_ERRORS as error:
            raise _damaged(str(error)) from error
        if len(data) != size:
            raise _damaged(f"it has {len(data):,} bytes instead of {size:,}")
        stored = np.frombuffer(data, self.dtype).reshape([shape[axis] for axis in self.order])
        return stored.transpose(np.argsort(self.order))


def _undo(step: str, data: bytes | AnyArray, size: int) -> bytes | AnyArray:
    if step in _COMPRESSIONS:
        return _COMPRESSIONS[step](bytes(data), size)
    if step == "crc32c":
        return _check_crc32c(bytes(data))
    width = int(step.partition(":")[2])  # of a shuffle
    array = np.frombuffer(data, np.uint8)
    whole = array.size // width * width
    grouped = array[:whole].reshape(width, -1).transpose().ravel()
    return np.concatenate([grouped, array[whole:]])


@dataclass(frozen=True)
class Shards:
    """Chunks packed into one file with an index of their places.

    Args:
        inner_shape: of the chunks inside; divides the shard's shape.
        codecs: of the chunks inside.
        index_codecs: of the index.
        index_first: the index lies at the file's start instead of its end.
    """

    inner_shape: tuple[int, ...]
    codecs: Codecs
    index_codecs: Codecs
    index_first: bool

    @property
    def compression(self) -> str:
        """The inner chunks' compression, for `info`."""
        return self.codecs.compression

    def index_bytes(self, counts: Sequence[int]) -> int:
        """Return the size of the index of a shard of `counts` chunks along each axis."""
        return math.prod(counts) * 16 + 4 * len(self.index_codecs.steps)


def unsupported(what: str) -> DataError:
    """Return the refusal of a part of Zarr that is not read here."""
    return DataError(f"{what} is not read here", "write it again with zarr-python's own codecs")


def parse_v3(codecs: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Codecs | Shards:
    """Return what a version 3 `codecs` list says, for chunks of `shape`.

    Raises:
        DataError: it is malformed, or names a codec that is not read here.
    """
    order = tuple(range(len(shape)))
    steps: list[str] = []
    stored: np.dtype[Any] | None = None
    shards: Shards | None = None
    if not isinstance(codecs, list):
        raise unsupported("a codec list that is none")
    for codec in codecs:
        name, config = _named(codec)
        if name == "transpose" and stored is None and shards is None:
            order = _permute(order, config.get("order"))
        elif name == "bytes" and stored is None and shards is None:
            stored = dtype.newbyteorder(_byte_order(config, dtype))
        elif name == "sharding_indexed" and len(codecs) == 1:
            shards = _parse_shards(config, shape, dtype)
        elif stored is not None:
            steps.append(_step(name, config))
        else:
            raise unsupported(f"the codec {name!r} at this place")
    if shards is not None:
        return shards
    if stored is None:
        raise unsupported("a codec list without 'bytes'")
    return Codecs(stored, order, _check_steps(steps))


def parse_v2(compressor: Any, filters: Any, order: Any, ndim: int, dtype: np.dtype[Any]) -> Codecs:
    """Return what a version 2 array says of its chunks.

    Raises:
        DataError: it is malformed, or names a codec that is not read here.
    """
    if order not in ("C", "F") or not isinstance(filters or [], list):
        raise unsupported(f"the order {order!r}")
    steps = []
    for codec in (*(filters or ()), compressor):
        if codec is None:
            continue
        if not isinstance(codec, dict) or not isinstance(codec.get("id"), str):
            raise unsupported(f"the codec {str(codec)[:60]!r}")
        steps.append(_step(codec["id"], codec))
    axes = tuple(range(ndim))
    return Codecs(dtype, axes if order == "C" else axes[::-1], _check_steps(steps))


def _named(codec: Any) -> tuple[str, Mapping[str, Any]]:
    if isinstance(codec, str):
        return codec, {}
    config = codec.get("configuration", {}) if isinstance(codec, dict) else None
    if config is None or not isinstance(config, dict) or not isinstance(codec.get("name"), str):
        raise unsupported(f"the codec {str(codec)[:60]!r}")
    return codec["name"], config


def _step(name: str, config: Mapping[str, Any]) -> str:
    short = name.removeprefix("numcodecs.")
    if short in _COMPRESSIONS or name == "crc32c":
        return short
    width = config.get("elementsize", 4)
    if short == "shuffle" and type(width) is int and 1 <= width <= 256:
        return f"shuffle:{width}"
    raise unsupported(f"the codec {name!r}")


def _check_steps(steps: list[str]) -> tuple[str, ...]:
    # with one compression the size after every step is known; a second one would hide it
    if sum(step in _COMPRESSIONS for step in steps) > 1:
        raise unsupported(f"more than one compression ({', '.join(steps)})")
    return tuple(steps)


def _permute(order: tuple[int, ...], wanted: Any) -> tuple[int, ...]:
    fits = isinstance(wanted, list) and all(type(n) is int for n in wanted)
    if not fits or sorted(wanted) != list(range(len(order))):
        raise unsupported(f"the transposition {str(wanted)[:60]!r}")
    return tuple(order[n] for n in wanted)


def _byte_order(config: Mapping[str, Any], dtype: np.dtype[Any]) -> Any:
    endian = config.get("endian", "little" if dtype.itemsize == 1 else None)
    if endian not in ("little", "big"):
        raise unsupported(f"the byte order {str(endian)[:60]!r}")
    return "<" if endian == "little" else ">"


def _parse_shards(
    config: Mapping[str, Any], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Shards:
    inner = config.get("chunk_shape")
    fits = isinstance(inner, list) and len(inner) == len(shape)
    fits = fits and all(type(n) is int and n >= 1 for n in inner or ())
    if not fits or any(outer % n for outer, n in zip(shape, inner or (), strict=True)):
        raise unsupported(f"the shard's chunk shape {str(inner)[:60]} in {shape}")
    inner_shape = tuple(inner or ())
    codecs = parse_v3(config.get("codecs"), inner_shape, dtype)
    counts = (*(outer // n for outer, n in zip(shape, inner_shape, strict=True)), 2)
    index = parse_v3(config.get("index_codecs"), counts, np.dtype("<u8"))
    where = config.get("index_location", "end")
    if isinstance(codecs, Shards) or isinstance(index, Shards) or where not in ("start", "end"):
        raise unsupported("a shard inside a shard, or its index")
    if set(index.steps) - {"crc32c"}:
        raise unsupported("a compressed shard index")
    return Shards(inner_shape, codecs, index, where == "start")
