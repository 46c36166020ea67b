"""MATLAB files: version 5 (and 4) by SciPy, version 7.3, which is HDF5, by h5py.

A variable of a version 5 file is decoded whole, so reading and writing one takes memory for all of
it; version 7.3 goes by rows. Beside the cube our files hold the variables `wavelengths_nm`,
`fwhm_nm`, `bad_bands` (logical) and the text `spectralift`, JSON with the rest.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy.io import loadmat, savemat

from spectralift_cli.core.cube import AnyArray, CubeMeta
from spectralift_cli.core.cubeio import CubeReader, CubeWriter
from spectralift_cli.core.errors import DataError, OptionError
from spectralift_cli.core.formats import OpenRequest, arrays, hdf5_tree, mat73
from spectralift_cli.core.formats.mat_headers import MatFile, Variable, read_index
from spectralift_cli.core.outputs import Staging
from spectralift_cli.core.resources import default_memory_bytes

# the largest cube that is written as version 5 unless told so
_V5_BYTES = 256 * 10**6
# of one variable, by the format; its elements' headers need a little of it
_V5_LIMIT_BYTES = 2**31 - 4096
# SciPy stamps the clock and the platform here; readers go by its first 19 characters
_V5_TEXT = b"MATLAB 5.0 MAT-file, written by spectralift".ljust(116)
_SIDE_VALUES = 2**16
_KEYWORDS = frozenset({
    "break", "case", "catch", "classdef", "continue", "else", "elseif", "end", "for", "function",
    "global", "if", "otherwise", "parfor", "persistent", "return", "spmd", "switch", "try", "while",
})  # fmt: skip


class MatReader(CubeReader):
    """A variable of a version 4 or 5 file, loaded whole when its first row is asked for."""

    streams = False

    def __init__(
        self,
        path: Path,
        meta: CubeMeta,
        index: MatFile,
        variable: Variable,
        axes: tuple[int, int, int],
        request: OpenRequest,
    ) -> None:
        layout = {
            "version": str(index.version),
            "variable": variable.name,
            "stored_shape": list(variable.shape),
            "compression": "deflate" if variable.compressed else "none",
        }
        super().__init__(path, meta, layout)
        self._index = index
        self._variable = variable
        self._axes = axes
        self._request = request
        self._values: AnyArray | None = None

    def _read(self, start: int, stop: int) -> AnyArray:
        if self._values is None:
            source = f"{self.path}: {self._variable.name}"
            arrays.check_memory(self._variable.nbytes, self._request, source)
            array = _load(self.path, self._index, [self._variable.name])[self._variable.name]
            self._values = arrays.to_cube_axes(array, self._axes)
        return self._values[start:stop]

    def close(self) -> None:
        """Forget the values."""
        self._values = None


def open_mat(path: Path, request: OpenRequest) -> CubeReader:
    """Open a MATLAB file of any version; see `open_cube`. The axes are those MATLAB shows."""
    if h5py.is_hdf5(path):
        return mat73.open_v73(path, request)
    index = read_index(path)
    fields = _read_json(path, index)
    candidates: dict[str, tuple[int, ...]] = {}
    refused: dict[str, DataError] = {}
    for name, variable in index.variables.items():
        if name in arrays.META_NAMES:
            continue
        if variable.kind:
            refused[name] = DataError(
                f"{path}: {name}: {variable.kind}, a cube is an array of real numbers",
                "choose another variable with --var, or save the array itself: "
                "save('x.mat', 'cube')",
            )
        else:
            candidates[name] = mat73.full_shape(name, variable.shape, fields, request)
    name = arrays.choose_or_explain(candidates, refused, request, path)
    variable, source = index.variables[name], f"{path}: {name}"
    axes = arrays.cube_axes(candidates[name], request, source)
    shape = arrays.cube_shape(candidates[name], axes)
    if len(variable.shape) < len(candidates[name]):
        axes = (axes[0], axes[1], -1)
    dtype = arrays.check_dtype(np.dtype(variable.dtype), source)
    meta = arrays.meta_from_sides(shape, dtype, name, fields, _read_sides(path, index), source)
    return MatReader(path, meta, index, variable, axes, request)


def _load(path: Path, index: MatFile, names: Sequence[str]) -> dict[str, AnyArray]:
    """Decode variables whose headers were found sound.

    Raises:
        DataError: the values are damaged.
    """
    try:
        # SciPy warns of an unreadable variable and returns a text in its place
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = loadmat(
                path, appendmat=False, mat_dtype=index.version == 5, variable_names=list(names)
            )
    # its readers raise whatever the damage runs into: ValueError, TypeError, KeyError, zlib.error,
    # struct.error, EOFError, MatReadError, MemoryError, UnicodeDecodeError, warnings and more
    except Exception as error:
        raise DataError(
            f"{path}: {names[0]} cannot be read ({str(error)[:200] or type(error).__name__})",
            "the file is truncated or damaged",
        ) from error
    for name in names:
        array, expected = found.get(name), index.variables[name]
        fits = isinstance(array, np.ndarray) and (
            expected.is_text
            or (array.shape, array.dtype.newbyteorder("=")) == (expected.shape, expected.dtype)
        )
        if not fits:
            raise DataError(
                f"{path}: {name} was read as something else than its header says",
                "the file is damaged; save it again",
            )
    return {name: found[name] for name in names}


def _read_json(path: Path, index: MatFile) -> dict[str, Any]:
    variable = index.variables.get("spectralift")
    if variable is None or not variable.is_text:
        return {}
    text = _load(path, index, ["spectralift"])["spectralift"]
    return arrays.parse_json("".join(str(part) for part in text.reshape(-1)), path)


def _read_sides(path: Path, index: MatFile) -> dict[str, AnyArray]:
    small = [
        name
        for name in ("wavelengths_nm", "fwhm_nm", "bad_bands")
        if name in index.variables
        and index.variables[name].dtype is not None
        and index.variables[name].kind in ("", "holds true and false")
        and math.prod(index.variables[name].shape) <= _SIDE_VALUES
    ]
    return _load(path, index, small) if small else {}


def small_arrays(path: Path) -> dict[str, AnyArray]:
    """Return the numeric arrays of at most 2**20 values by name; the others are passed over.

    Raises:
        DataError: the file is damaged, or these have more than 2**23 values together.
    """
    if h5py.is_hdf5(path):  # whose axes are reversed
        return {name: array.T for name, array in hdf5_tree.small_arrays(path).items()}
    index = read_index(path)
    counts = {
        name: math.prod(variable.shape)
        for name, variable in index.variables.items()
        if variable.dtype is not None and not variable.kind and min(variable.shape, default=0) > 0
    }
    names = [name for name, count in counts.items() if count <= hdf5_tree.SMALL_VALUES]
    total = sum(counts[name] for name in names)
    if total > 8 * hdf5_tree.SMALL_VALUES:
        raise DataError(
            f"{path}: holds {total:,} values in small arrays, at most "
            f"{8 * hdf5_tree.SMALL_VALUES:,} are read",
            "save the arrays that are meant alone",
        )
    return _load(path, index, names) if names else {}


class MatWriter(CubeWriter):
    """A version 5 file; rows in any order, held until the commit."""

    random_access = True

    def __init__(
        self, path: Path, meta: CubeMeta, variable: str, compress: bool, overwrite: bool
    ) -> None:
        super().__init__(path, meta)
        # SciPy copies the values once to write them, and twice more to deflate them
        needed = meta.nbytes * (4 if compress else 2)
        allowed = default_memory_bytes()
        if needed > allowed:
            raise DataError(
                f"{path}: writing version 5 takes {needed / 1e6:,.0f} MB of memory, "
                f"more than the {allowed / 1e6:,.0f} MB allowed",
                "add --co VERSION=7.3, which is written by rows",
            )
        self._variable = variable
        self._compress = compress
        self._stage = Staging(path, overwrite=overwrite)
        self._values: AnyArray = np.empty(meta.shape, meta.dtype, order="F")

    def _write(self, start: int, block: AnyArray) -> None:
        self._values[start : start + len(block)] = block

    def _commit(self) -> tuple[Path, ...]:
        sides, text = arrays.sides_of(self.meta, self._variable)
        variables = {self._variable: self._values, **sides, "spectralift": text}
        with self._stage.path().open("wb") as file:
            savemat(file, variables, format="5", do_compression=self._compress, oned_as="row")
            file.seek(0)
            file.write(_V5_TEXT)
        return self._stage.commit()

    def abort(self) -> None:
        """Drop what was written."""
        self._values = np.empty(0)
        self._stage.abort()


def create_mat(
    path: Path, meta: CubeMeta, options: Mapping[str, str], overwrite: bool
) -> CubeWriter:
    """Start a MATLAB file; see `create_cube`.

    Raises:
        OptionError: the variable's name is not one that MATLAB takes, or is that of the metadata.
        DataError: version 5 is asked for but cannot hold the cube.
    """
    variable = _check_variable(options.get("VARIABLE", arrays.CUBE_NAMES[0]), path)
    version = options.get("VERSION", "5" if meta.nbytes <= _V5_BYTES else "7.3")
    compress = options.get("COMPRESS") == "DEFLATE"
    if version == "7.3":
        return mat73.create_v73(path, meta, variable, compress, overwrite)
    if meta.nbytes > _V5_LIMIT_BYTES:
        raise DataError(
            f"{path}: the cube takes {meta.nbytes:,} bytes, "
            f"a variable of version 5 at most {_V5_LIMIT_BYTES:,}",
            "add --co VERSION=7.3",
        )
    return MatWriter(path, meta, variable, compress, overwrite)


def _check_variable(name: str, path: Path) -> str:
    fits = re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,62}", name) and name not in _KEYWORDS
    if not fits or name in arrays.META_NAMES:
        raise OptionError(
            f"{path}: VARIABLE={name[:80]!r} cannot name the cube in a MATLAB file",
            "use a letter, then up to 62 letters, digits and _; "
            f"no keyword and none of {', '.join(arrays.META_NAMES)}",
        )
    return name
