"""Zarr: a group with the array `cube` (wavelength, y, x) and its coordinates.

A group rather than a bare array, because GDAL, xarray and rioxarray take the georeference and the
wavelengths from coordinate arrays beside the cube; GDAL opens the group as a raster, the cube being
its only array with more than one axis. Version 3 needs GDAL 3.11; `--co VERSION=2` suits older ones.
A chunk holds all bands of a patch of pixels: what is computed pixel by pixel then reads and writes
whole chunks, from as many workers as there are patches.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from numcodecs import GZip, Zstd
from zarr.codecs import GzipCodec, ZstdCodec
from zarr.storage import LocalStore

from spectralift_cli.core.cube import AnyArray, CubeMeta
from spectralift_cli.core.cubeio import BLOCK_BYTES, CubeReader, CubeWriter
from spectralift_cli.core.errors import DataError, OptionError
from spectralift_cli.core.formats import OpenRequest, arrays
from spectralift_cli.core.formats.zarr_codecs import Shards
from spectralift_cli.core.formats.zarr_meta import (
    band_dimension,
    cube_attributes,
    fill_value,
    find_axes,
    read_fields,
    side_arrays,
)
from spectralift_cli.core.formats.zarr_store import ZarrArray, list_arrays
from spectralift_cli.core.outputs import SharedStaging, Staging
from spectralift_cli.core.resources import available_cpus, default_memory_bytes

_CHUNK_SIDE = 128
_MIN_CHUNK_ROWS = 8
# of a row of chunks: what the writer holds, what the reader keeps without hesitation, and the part
# of all memory that it keeps at the most
_WRITE_ROW_BYTES = 2 * BLOCK_BYTES
_CACHE_BYTES = 8 * BLOCK_BYTES
_KEPT_PART = 8
_MAX_CHUNKS_PER_ROW = 1_000_000
_MAX_CHUNK_BYTES = 2**31 - 1
_WRITE_THREADS = 4


class ZarrReader(CubeReader):
    """An array of a Zarr store, read by rows of chunks; the last one read is kept."""

    def __init__(
        self,
        path: Path,
        node: ZarrArray,
        meta: CubeMeta,
        axes: tuple[int, int, int],
        request: OpenRequest,
        layout: Mapping[str, Any],
    ) -> None:
        super().__init__(path, meta, layout)
        self._node = node
        self._axes = axes
        self._request = request
        inner = node.codecs.inner_shape if isinstance(node.codecs, Shards) else node.chunk_shape
        self._step = self.row_unit = min(inner[axes[0]], meta.rows)
        slab_bytes = self._step * meta.row_bytes
        # what is not kept is decoded again for every few rows of it: of a wide image it may be large
        self._keeps = slab_bytes <= _most_kept(request)
        if self._keeps:
            self.held_bytes = slab_bytes
        if slab_bytes <= _CACHE_BYTES:
            self.block_rows = self._step * max(1, BLOCK_BYTES // slab_bytes)
        self._kept: tuple[int, AnyArray] | None = None

    def _read(self, start: int, stop: int) -> AnyArray:
        out = np.empty((stop - start, self.meta.cols, self.meta.bands), self._node.dtype)
        if not self._keeps:
            self._fill(start, out)
            return out
        at = start
        while at < stop:
            first = at - at % self._step
            end = min(first + self._step, self.meta.rows)
            if at == first and stop >= end:  # whole rows of chunks need not be kept
                self._fill(at, out[at - start : end - start])
            else:
                if self._kept is None or self._kept[0] != first:
                    kept = np.empty((end - first, *out.shape[1:]), self._node.dtype)
                    self._fill(first, kept)
                    self._kept = (first, kept)
                end = min(end, stop)
                out[at - start : end - start] = self._kept[1][at - first : end - first]
            at = end
        return out

    def _fill(self, start: int, out: AnyArray) -> None:
        """Read rows from `start` into an array (n, cols, bands)."""
        region = [slice(0, n) for n in self._node.shape]
        region[self._axes[0]] = slice(start, start + len(out))
        flat = self._axes[2] < 0
        stored = out[:, :, 0] if flat else out.transpose(np.argsort(self._axes))
        self._node.read(tuple(region), self._request, stored)

    def close(self) -> None:
        """Forget the kept rows; no file stays open."""
        self._kept = None


def open_zarr(path: Path, request: OpenRequest) -> CubeReader:
    """Open a local Zarr store of version 2 or 3; see `open_cube`."""
    found = list_arrays(path)
    nodes = {name: node for name, node in found.items() if isinstance(node, ZarrArray)}
    refused = {name: error for name, error in found.items() if isinstance(error, DataError)}
    wanted = request.var or next((n for n in ("/", *arrays.CUBE_NAMES) if n in refused), None)
    if wanted in refused:
        raise refused[wanted]
    candidates = {name: node.shape for name, node in nodes.items() if node.dtype.kind != "b"}
    if refused and not any(len(shape) > 1 for shape in candidates.values()):
        raise next(iter(refused.values()))
    name = arrays.choose_variable(candidates, request, path)
    node = nodes[name]
    source = path if name == "/" else path / name
    native = arrays.check_dtype(node.dtype, source)
    axes = find_axes(node, request, source)
    group = name.rpartition("/")[0]
    siblings = {
        other.removeprefix(f"{group}/"): value
        for other, value in found.items()
        if other.rpartition("/")[0] == group and other != name
    }
    _check_grid(node, axes, request, source)
    fields = read_fields(node, siblings, axes, request, source)
    meta = arrays.meta_from_json(arrays.cube_shape(node.shape, axes), native, fields, source)
    layout = {
        "zarr_format": node.version,
        "variable": name,
        "stored_shape": list(node.shape),
        "dimensions": list(node.dims),
        "chunks": list(node.chunk_shape),
        "compression": node.codecs.compression,
        "sharded": isinstance(node.codecs, Shards),
    }
    return ZarrReader(path, node, meta, axes, request, layout)


def _most_kept(request: OpenRequest) -> int:
    if request.memory_bytes is not None:
        return request.memory_bytes // _KEPT_PART
    return max(_CACHE_BYTES, default_memory_bytes() // _KEPT_PART)


def _check_grid(
    node: ZarrArray, axes: tuple[int, int, int], request: OpenRequest, source: object
) -> None:
    """Refuse arrays whose single row, or the chunks it lies in, nobody could want to read."""
    inner = node.codecs.inner_shape if isinstance(node.codecs, Shards) else node.chunk_shape
    others = [axis for axis in range(len(node.shape)) if axis != axes[0]]
    row_bytes = math.prod(node.shape[axis] for axis in others) * node.dtype.itemsize
    arrays.check_memory(row_bytes, request, f"{source}: a row")
    arrays.check_memory(math.prod(inner) * node.dtype.itemsize, request, f"{source}: a chunk")
    chunks = math.prod(-(-node.shape[axis] // inner[axis]) for axis in others)
    if chunks > _MAX_CHUNKS_PER_ROW:
        raise DataError(
            f"{source}: a row is cut into {chunks:,} chunks, "
            f"at most {_MAX_CHUNKS_PER_ROW:,} are read",
            "write it again with larger chunks",
        )


class ZarrWriter(CubeWriter):
    """A Zarr group, rows from top to bottom; every row of chunks is complete when written.

    Of a shared group the rows of chunks come in any order.
    """

    def __init__(
        self,
        path: Path,
        meta: CubeMeta,
        options: Mapping[str, str],
        overwrite: bool,
        shared: Path | None = None,
    ) -> None:
        chunks = _chunk_shape(meta, options.get("CHUNK"))
        super().__init__(path, meta, block_rows=chunks[1])
        self._chunk_cols = chunks[2]
        self.random_access = shared is not None
        self._stage: Staging = (
            Staging(path, overwrite=overwrite)
            if shared is None
            else SharedStaging(shared, path, overwrite=overwrite)
        )
        try:
            folder = self._stage.path()
            if shared is None:
                self._array = _create_group(folder, meta, options, chunks)
            else:
                self._place_metadata(shared, options, chunks)
                self._array = zarr.open_group(LocalStore(folder), mode="r+")["cube"]
        except BaseException:
            self._stage.abort()
            raise

    def _place_metadata(
        self, shared: Path, options: Mapping[str, str], chunks: tuple[int, int, int]
    ) -> None:
        """Put everything but the cube's chunks in place, whatever lies there."""
        with tempfile.TemporaryDirectory(dir=shared.parent) as empty:
            _create_group(Path(empty), self.meta, options, chunks)
            for file in sorted(p for p in Path(empty).rglob("*") if p.is_file()):
                self._stage.place(self.path / file.relative_to(empty), file.read_bytes())

    def _write(self, start: int, block: AnyArray) -> None:
        stop = start + len(block)
        if start % self.block_rows or (stop % self.block_rows and stop != self.meta.rows):
            raise ValueError(f"rows {start}..{stop} are not whole rows of chunks")
        rows = slice(start, stop)

        def write_chunk(col: int) -> None:
            cols = slice(col, min(col + self._chunk_cols, self.meta.cols))
            self._array[:, rows, cols] = block[:, cols].transpose(2, 0, 1)  # (B, n, w)

        # one call a chunk: after a failure nothing of zarr's own may still be writing
        with ThreadPoolExecutor(min(_WRITE_THREADS, available_cpus())) as pool:
            list(pool.map(write_chunk, range(0, self.meta.cols, self._chunk_cols)))

    def _commit(self) -> tuple[Path, ...]:
        if self.random_access:  # a process killed in the middle of a chunk left it half
            for path in self._stage.path().rglob("*.part*"):
                path.unlink()
        return self._stage.commit()

    def abort(self) -> None:
        """Drop what was written."""
        self._stage.abort()


def _create_group(
    folder: Path, meta: CubeMeta, options: Mapping[str, str], chunks: tuple[int, int, int]
) -> Any:
    """Make a group with its side arrays and an empty cube; return the cube's array."""
    version: Literal[2, 3] = 2 if options.get("VERSION") == "2" else 3
    folder.mkdir(exist_ok=True)
    group = zarr.create_group(LocalStore(folder), zarr_format=version)
    for name, side in side_arrays(meta).items():
        array = _create(group, name, side.values, side.dims, side.attrs, version)
        array[...] = side.values
    return _create(
        group,
        "cube",
        meta,
        (band_dimension(meta), "y", "x"),
        cube_attributes(meta, version),
        version,
        shape=(meta.bands, meta.rows, meta.cols),
        chunks=chunks,
        compressors=_compressor(options.get("COMPRESS", "ZSTD"), version),
        fill_value=fill_value(meta, version),
    )


def _create(
    group: Any,
    name: str,
    like: Any,
    dims: tuple[str, ...],
    attrs: Mapping[str, Any],
    version: int,
    **more: Any,
) -> Any:
    settings: dict[str, Any] = {
        "shape": like.shape, "chunks": like.shape or (), "compressors": None, "fill_value": 0,
        "dtype": like.dtype, "attributes": dict(attrs),
    }  # fmt: skip
    settings |= more
    if version == 3:
        settings["dimension_names"] = dims
    else:
        settings["attributes"]["_ARRAY_DIMENSIONS"] = list(dims)
    return group.create_array(name, **settings)


def _compressor(name: str, version: int) -> Any:
    if name == "NONE":
        return None
    if name == "GZIP":
        return GzipCodec(level=5) if version == 3 else GZip(level=5)
    return ZstdCodec(level=1) if version == 3 else Zstd(level=1)


def _chunk_shape(meta: CubeMeta, side: str | None) -> tuple[int, int, int]:
    """Return (bands, rows, cols) of a chunk.

    Raises:
        OptionError: the chosen side is 0, or makes a chunk of 2 GiB.
    """
    if side is None:
        rows = cols = _CHUNK_SIDE
        # a row of chunks is held until it is complete: of wide cubes it has fewer rows
        while rows > _MIN_CHUNK_ROWS and rows * meta.row_bytes > _WRITE_ROW_BYTES:
            rows //= 2
    else:
        rows = cols = int(side)
    shape = (meta.bands, min(rows, meta.rows), min(cols, meta.cols))
    nbytes = math.prod(shape) * meta.dtype.itemsize
    if not rows or nbytes > _MAX_CHUNK_BYTES:
        raise OptionError(
            f"CHUNK={rows} makes chunks of {nbytes:,} bytes, 1 to {_MAX_CHUNK_BYTES:,} are possible",
            "choose a side of 16 to 512 pixels",
        )
    return shape


def create_zarr(
    path: Path,
    meta: CubeMeta,
    options: Mapping[str, str],
    overwrite: bool,
    shared: Path | None = None,
) -> CubeWriter:
    """Start a Zarr store; see `create_cube`."""
    return ZarrWriter(path, meta, options, overwrite, shared)
