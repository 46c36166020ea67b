"""What the formats of bare arrays share: axis orders, size guards, the metadata they carry along.

Formats that hold named arrays (.h5, .npz, .mat) store `cube`, `wavelengths_nm`, `fwhm_nm`,
`bad_bands` and one JSON string `spectralift` with the rest; .npy keeps all of it in its sidecar.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spectralift_cli.core.cube import STORED_DTYPES, AnyArray, CubeMeta
from spectralift_cli.core.errors import DataError, SpectraliftWarning
from spectralift_cli.core.floats import as_float64
from spectralift_cli.core.formats import OpenRequest
from spectralift_cli.core.resources import default_memory_bytes

# names that a spectral cube's array goes by; the first one is ours
CUBE_NAMES = ("cube",)
META_NAMES = ("wavelengths_nm", "fwhm_nm", "bad_bands", "spectralift")
_JSON_LIMIT = 2**20


def cube_axes(shape: tuple[int, ...], request: OpenRequest, source: object) -> tuple[int, int, int]:
    """Return which stored axes are rows, cols and bands; -1 for the bands of a 2-D array.

    Args:
        shape: of the stored array.
        request: its `axis_order` and `allow_2d`.
        source: the file (and variable), for messages.

    Raises:
        DataError: the array has neither 2 nor 3 axes, an empty axis, or 2 where 3 are needed.
    """
    if 0 in shape:
        raise DataError(f"{source}: an array of shape {shape} has no values", "choose another one")
    order = request.axis_order
    if len(shape) == 2:
        if order is not None and order != "yx":
            raise DataError(
                f"{source}: the array is 2-D {shape} but --axis-order {order} names three axes",
                "use --axis-order yx for a one-band image",
            )
        if order is None and not request.allow_2d:
            raise DataError(
                f"{source}: the array is 2-D {shape}, a cube has 3 axes",
                "if it is a one-band image, say --axis-order yx",
            )
        return (0, 1, -1)
    if len(shape) != 3:
        raise DataError(
            f"{source}: the array has {len(shape)} axes {shape}, a cube has 3",
            "choose another variable or file",
        )
    if order == "yx":
        raise DataError(
            f"{source}: the array is 3-D {shape} but --axis-order yx names two axes",
            "use a permutation of yxb",
        )
    order = order or "yxb"
    return (order.index("y"), order.index("x"), order.index("b"))


def to_cube_axes(array: AnyArray, axes: tuple[int, int, int]) -> AnyArray:
    """Return an array with its stored axes moved to (rows, cols, bands)."""
    return array[:, :, None] if axes[2] < 0 else array.transpose(axes)


def cube_shape(shape: tuple[int, ...], axes: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return (rows, cols, bands) of a stored shape."""
    return (shape[axes[0]], shape[axes[1]], 1 if axes[2] < 0 else shape[axes[2]])


def check_dtype(dtype: np.dtype[Any], source: object) -> np.dtype[Any]:
    """Return a stored dtype in native byte order.

    Raises:
        DataError: it is complex, boolean, an object or something else that is not a cube's.
    """
    native = dtype.newbyteorder("=")
    if native.hasobject:
        raise DataError(
            f"{source}: holds Python objects, which are never unpickled",
            "save it again as an array of numbers",
        )
    if native.name not in STORED_DTYPES:
        kind = "complex" if native.kind == "c" else native.name
        raise DataError(
            f"{source}: {kind} values are not a cube's",
            f"save it again as one of {', '.join(STORED_DTYPES)}",
        )
    return native


def check_size(
    shape: tuple[int, ...], itemsize: int, stored_bytes: int, source: object, *, ratio: float = 1.0
) -> int:
    """Return the bytes a header promises, after checking that the file can hold them.

    Args:
        shape: promised shape.
        itemsize: bytes a value.
        stored_bytes: bytes that are there.
        source: for messages.
        ratio: the most that compression can gain (1,032 for deflate, 1 for none).

    Raises:
        DataError: negative sizes, or more than `stored_bytes * ratio` promised.
    """
    if any(n < 0 for n in shape):
        raise DataError(
            f"{source}: the header gives a negative size {shape}", "the file is damaged"
        )
    promised = math.prod(shape) * itemsize
    if promised > stored_bytes * ratio:
        raise DataError(
            f"{source}: {shape} of {itemsize} bytes needs {promised:,} bytes, "
            f"the file has {stored_bytes:,}",
            "the file is truncated or its header is wrong",
        )
    return promised


def check_memory(nbytes: int, request: OpenRequest, source: object) -> None:
    """Refuse to load more than the memory a reader that cannot stream may take.

    Raises:
        DataError: with both numbers.
    """
    limit = request.memory_bytes if request.memory_bytes is not None else default_memory_bytes()
    if nbytes > limit:
        raise DataError(
            f"{source}: must be loaded whole and takes {nbytes / 1e6:,.0f} MB, "
            f"more than the {limit / 1e6:,.0f} MB allowed",
            "raise --memory, or convert it on a larger machine to .h5, .npy or .zarr",
        )


def meta_to_json(meta: CubeMeta) -> dict[str, Any]:
    """Return everything but shape and dtype as a JSON object; NaN nodata is the text "nan"."""

    def number(value: Any) -> Any:
        return value.tolist() if isinstance(value, np.ndarray) else value

    nodata = meta.nodata
    if isinstance(nodata, float) and not math.isfinite(nodata):
        nodata_json: Any = str(nodata)
    else:
        nodata_json = nodata
    fields = {
        "wavelengths_nm": number(meta.wavelengths_nm),
        "fwhm_nm": number(meta.fwhm_nm),
        "bad_bands": number(meta.bad_bands),
        "nodata": nodata_json,
        "scale": number(meta.scale) if np.any(np.asarray(meta.scale) != 1) else None,
        "offset": number(meta.offset) if np.any(np.asarray(meta.offset) != 0) else None,
        "crs": meta.crs,
        "transform": None if meta.transform is None else list(meta.transform),
        "band_names": None if meta.band_names is None else list(meta.band_names),
        "provenance": None if meta.provenance is None else dict(meta.provenance),
    }
    return {key: value for key, value in fields.items() if value is not None}


def meta_from_json(
    shape: tuple[int, int, int], dtype: np.dtype[Any], fields: Mapping[str, Any], source: object
) -> CubeMeta:
    """Return the metadata that `meta_to_json` wrote, checked as a hostile file's.

    Raises:
        DataError: a field has the wrong type or does not fit the cube.
    """
    known: dict[str, Any] = {}
    try:
        for name in ("wavelengths_nm", "fwhm_nm"):
            if fields.get(name) is not None:
                known[name] = as_float64(fields[name])
        if fields.get("bad_bands") is not None:
            known["bad_bands"] = np.asarray(fields["bad_bands"]).astype(bool)
        for name in ("scale", "offset"):
            if fields.get(name) is not None:
                known[name] = as_float64(fields[name])
        if fields.get("nodata") is not None:
            value = fields["nodata"]
            known["nodata"] = float(value) if isinstance(value, str) else value
            if not isinstance(known["nodata"], int | float):
                raise TypeError("nodata is not a number")
        if fields.get("crs") is not None:
            known["crs"] = str(fields["crs"])
        if fields.get("transform") is not None:
            known["transform"] = tuple(float(v) for v in fields["transform"])
        if fields.get("band_names") is not None:
            known["band_names"] = tuple(str(v) for v in fields["band_names"])
        if isinstance(fields.get("provenance"), Mapping):
            dump_json(fields["provenance"])  # raises where a reader let NaN pass
            known["provenance"] = dict(fields["provenance"])
        return CubeMeta(shape=shape, dtype=dtype, **known)
    except DataError as error:
        raise DataError(f"{source}: {error.message}", error.hint) from error
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{source}: its metadata cannot be used ({error})", "mend or remove the metadata"
        ) from error


def sides_of(meta: CubeMeta, variable: str) -> tuple[dict[str, AnyArray], str]:
    """Return what is stored beside a named array: arrays by name, and JSON text for the rest.

    The JSON names the array and its shape, so that a reader can tell what it describes.
    """
    fields = meta_to_json(meta)
    sides: dict[str, AnyArray] = {}
    for name, dtype in (("wavelengths_nm", "<f8"), ("fwhm_nm", "<f8"), ("bad_bands", "?")):
        if name in fields:
            sides[name] = np.asarray(fields.pop(name), dtype)
    return sides, dump_json({**fields, "variable": variable, "shape": list(meta.shape)})


def meta_from_sides(
    shape: tuple[int, int, int],
    dtype: np.dtype[Any],
    variable: str,
    fields: Mapping[str, Any],
    sides: Mapping[str, AnyArray],
    source: object,
) -> CubeMeta:
    """Return the metadata that `sides_of` made.

    Args:
        shape: of the cube, (rows, cols, bands).
        dtype: of its values.
        variable: the array that was chosen; JSON that names another one is passed over.
        fields: the JSON object, {} if there is none.
        sides: `wavelengths_nm`, `fwhm_nm`, `bad_bands`, as far as the file has them.
        source: for messages.

    Raises:
        DataError: a field has the wrong type.
    """
    if fields.get("variable", variable) != variable:
        fields = {}
    if fields.get("shape", list(shape)) != list(shape):
        warnings.warn(
            f"{source}: its metadata describe a cube of shape {fields['shape']}, "
            f"not {list(shape)}; they are ignored",
            SpectraliftWarning,
            stacklevel=2,
        )
        fields = {}
    fitting = {}
    for name, values in sides.items():
        if values.size == shape[2]:
            fitting[name] = values
        else:
            warnings.warn(
                f"{source}: {name} has {values.size} values for {shape[2]} bands; it is ignored",
                SpectraliftWarning,
                stacklevel=2,
            )
    return meta_from_json(shape, dtype, {**fields, **fitting}, source)


def dump_json(fields: Mapping[str, Any]) -> str:
    """Return canonical JSON: sorted keys, no spaces, no NaN."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)


def strict_json(text: str | bytes) -> Any:
    """Return what JSON holds; NaN and infinity, which Python's parser takes, could not be written.

    Raises:
        ValueError: it is not JSON, or holds a number that is not finite.
        RecursionError: it is nested too deeply.
    """

    def finite(word: str) -> float:
        value = float(word)
        if not math.isfinite(value):
            raise ValueError(f"{word} is not a JSON number")
        return value

    return json.loads(text, parse_constant=finite, parse_float=finite)


def parse_json(text: str | bytes, source: object) -> dict[str, Any]:
    """Return a JSON object found in a file; {} with a warning if it is none or over 1 MB."""
    parsed: Any = None
    if len(text) <= _JSON_LIMIT:
        try:
            parsed = strict_json(text)
        except (ValueError, RecursionError):
            parsed = None
    if not isinstance(parsed, dict):
        warnings.warn(
            f"{source}: its metadata is not a JSON object of at most 1 MB; it is ignored",
            SpectraliftWarning,
            stacklevel=2,
        )
        return {}
    return parsed


def choose_variable(
    candidates: Mapping[str, tuple[int, ...]], request: OpenRequest, path: Path
) -> str:
    """Return the name of the array that is the cube.

    `--var` wins; then an array called `cube`; then the only 3-D array; then, where 2-D is allowed,
    the only 2-D array.

    Args:
        candidates: name -> stored shape of every numeric array in the file.
        request: its `var`, `axis_order` and `allow_2d`.
        path: for messages.

    Raises:
        DataError: no such variable, none, or several (they are listed).
    """
    listing = ", ".join(f"{n} {'x'.join(map(str, s))}" for n, s in list(candidates.items())[:12])
    if request.var is not None:
        if request.var in candidates:
            return request.var
        raise DataError(
            f"{path}: has no numeric array called {request.var!r}",
            f"it has {listing}" if listing else "it has no numeric array at all",
        )
    for name in CUBE_NAMES:
        if name in candidates:
            return name
    found = [n for n, s in candidates.items() if len(s) == 3]
    flat_is_fine = request.allow_2d or request.axis_order == "yx"
    if request.axis_order == "yx" or (flat_is_fine and not found):
        flat_ones = [n for n, s in candidates.items() if len(s) == 2]
        # scalars and vectors are 2-D in a .mat too; one of them is meant only if nothing else is
        found = [n for n in flat_ones if min(candidates[n]) > 1] or flat_ones
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(f"{n} {'x'.join(map(str, candidates[n]))}" for n in found[:12])
        raise DataError(
            f"{path}: holds {len(found)} arrays that could be the cube: {several}",
            f"choose one: --var {found[0]}",
        )
    flat = [n for n, s in candidates.items() if len(s) == 2 and min(s) > 1]
    hint = (
        "if a 2-D one is a one-band image, say --axis-order yx" if flat else "choose another file"
    )
    raise DataError(
        f"{path}: holds no 3-D numeric array" + (f" (it has {listing})" if listing else ""), hint
    )


def choose_or_explain(
    candidates: Mapping[str, tuple[int, ...]],
    refused: Mapping[str, DataError],
    request: OpenRequest,
    path: Path,
) -> str:
    """Choose as `choose_variable` does; where it finds no cube, say what was passed over and why.

    Args:
        candidates: name -> stored shape of every numeric array in the file.
        refused: name -> why it cannot be the cube, for everything else in the file.
        request: its `var`, `axis_order` and `allow_2d`.
        path: for messages.

    Raises:
        DataError: as `choose_variable`, or the reason why the array meant cannot be used.
    """
    meant = CUBE_NAMES if request.var is None else (request.var,)
    for name in meant:
        if name in refused:
            raise refused[name]
    try:
        return choose_variable(candidates, request, path)
    except DataError:
        if request.var is not None or any(len(shape) == 3 for shape in candidates.values()):
            raise
        if not refused:
            raise
        first, *others = refused.values()
        more = f" (and {len(others)} more that cannot be used)" if others else ""
        raise DataError(first.message + more, first.hint) from None
