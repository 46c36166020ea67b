"""A cube's metadata in a Zarr group, as GDAL, xarray and rioxarray write and read it.

What others understand is written their way: coordinates `wavelength`, `y`, `x` as arrays, CF's
`scale_factor`, `add_offset` and grid mapping, GDAL's `_CRS`. The rest, and what must come back
exactly, is a JSON object in the attribute `spectralift` of the cube's array.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import math
import re
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from spectralift_cli.core.cube import CubeMeta, FloatArray
from spectralift_cli.core.errors import DataError, SpectraliftWarning
from spectralift_cli.core.floats import as_float64
from spectralift_cli.core.formats import OpenRequest, arrays
from spectralift_cli.core.formats.spectral import fitting_nodata, to_nm
from spectralift_cli.core.formats.zarr_store import ZarrArray

_ROW_NAMES = {"y", "lat", "latitude", "row", "rows", "line", "lines", "northing", "height"}
_COL_NAMES = {"x", "lon", "longitude", "col", "cols", "column", "columns", "sample", "samples",
              "easting", "width"}  # fmt: skip
_BAND_NAMES = {"wavelength", "wavelengths", "wavelengths_nm", "band", "bands", "channel",
               "channels", "spectral", "wl", "lambda", "b", "z"}  # fmt: skip
_SPECTRAL_NAMES = ("wavelength", "wavelengths", "wavelengths_nm", "wl", "lambda")
_SIDE_BYTES = 64 * 2**20
# how far a coordinate may lie off a regular grid, in pixels; float32 metres come this far
_GRID_TOLERANCE = 0.02

Siblings = Mapping[str, ZarrArray | DataError]


def find_axes(node: ZarrArray, request: OpenRequest, source: object) -> tuple[int, int, int]:
    """Return which stored axes are rows, cols and bands, by the names of the dimensions.

    `--axis-order` wins; without it and without telling names, the order is (y, x, band).

    Raises:
        DataError: as `arrays.cube_axes`.
    """
    axes = arrays.cube_axes(node.shape, request, source)
    if request.axis_order is not None or axes[2] < 0:
        return axes
    names = [name.lower() for name in node.dims]

    def only(known: set[str]) -> int | None:
        found = [axis for axis, name in enumerate(names) if name in known]
        return found[0] if len(found) == 1 else None

    row, col, band = only(_ROW_NAMES), only(_COL_NAMES), only(_BAND_NAMES)
    if row is not None and col is not None:
        return (row, col, 3 - row - col)
    if band is not None:
        rest = [axis for axis in range(3) if axis != band]
        return (rest[0], rest[1], band)
    return axes


@dataclass(frozen=True)
class Side:
    """An array beside the cube: values, dimension names and attributes."""

    values: np.ndarray[Any, Any]
    dims: tuple[str, ...]
    attrs: Mapping[str, Any]


def band_dimension(meta: CubeMeta) -> str:
    """Return the name of the spectral dimension of a cube to be written."""
    return "band" if meta.wavelengths_nm is None else "wavelength"


def side_arrays(meta: CubeMeta) -> dict[str, Side]:
    """Return the arrays to be written beside the cube."""
    band = band_dimension(meta)
    sides: dict[str, Side] = {}
    if meta.wavelengths_nm is not None:
        spectral = {"units": "nm", "long_name": "band centre"}
        sides["wavelength"] = Side(meta.wavelengths_nm, (band,), spectral)
    if meta.fwhm_nm is not None:
        widths = {"units": "nm", "long_name": "full width at half maximum"}
        sides["fwhm_nm"] = Side(meta.fwhm_nm, (band,), widths)
    if meta.bad_bands is not None:
        flags = {"flag_meanings": "usable bad", "flag_values": [0, 1]}
        sides["bad_bands"] = Side(meta.bad_bands.astype(np.uint8), (band,), flags)
    if meta.transform is not None and meta.transform[1] == meta.transform[3] == 0:
        for name, (start, step), count in zip(
            ("x", "y"), _origin_and_step(meta.transform), (meta.cols, meta.rows), strict=True
        ):
            centres = start + step * (np.arange(count) + 0.5)
            sides[name] = Side(centres, (name,), {"axis": name.upper()})
    if meta.crs is not None:
        grid: dict[str, Any] = {"crs_wkt": meta.crs, "spatial_ref": meta.crs}
        if meta.transform is not None:
            a, b, c, d, e, f = meta.transform
            grid["GeoTransform"] = " ".join(repr(v) for v in (c, a, b, f, d, e))
        sides["spatial_ref"] = Side(np.zeros((), np.int32), (), grid)
    return sides


def _origin_and_step(transform: tuple[float, ...]) -> tuple[tuple[float, float], ...]:
    return ((transform[2], transform[0]), (transform[5], transform[4]))


def cube_attributes(meta: CubeMeta, version: int) -> dict[str, Any]:
    """Return the attributes of the cube's array."""
    ours = arrays.meta_to_json(meta)
    # these are arrays along the bands, so that a selection made with xarray keeps them in step
    for name in ("wavelengths_nm", "fwhm_nm", "bad_bands"):
        ours.pop(name, None)
    attrs: dict[str, Any] = {"spectralift": ours}
    if meta.crs is not None:
        attrs["_CRS"] = {"wkt": meta.crs}
        attrs["grid_mapping"] = "spatial_ref"
    if meta.is_scaled and isinstance(meta.scale, float) and isinstance(meta.offset, float):
        attrs["scale_factor"] = meta.scale
        attrs["add_offset"] = meta.offset
    if version == 3 and meta.nodata is not None and math.isfinite(meta.nodata):
        # in version 2 xarray takes the fill value instead; floats it keeps as text
        is_float = meta.dtype.kind == "f"
        packed = base64.b64encode(struct.pack("<d", meta.nodata)).decode()
        attrs["_FillValue"] = packed if is_float else meta.nodata
    return attrs


def fill_value(meta: CubeMeta, version: int) -> float | int | None:
    """Return the value of chunks that are not written.

    GDAL takes it for nodata, so a cube without nodata gets NaN, nothing (version 2), or the integer
    that data are least likely to hold.
    """
    if meta.nodata is not None:
        return meta.nodata
    if meta.dtype.kind == "f":
        return math.nan
    if version == 2:
        return None
    info = np.iinfo(meta.dtype)
    return int(info.min if meta.dtype.kind == "i" else info.max)


def read_fields(
    node: ZarrArray,
    siblings: Siblings,
    axes: tuple[int, int, int],
    request: OpenRequest,
    source: object,
) -> dict[str, Any]:
    """Return the metadata of a cube as `arrays.meta_from_json` takes it.

    Args:
        node: the cube's array.
        siblings: the other arrays of its group, by name.
        axes: of `find_axes`.
        request: whose memory limit applies.
        source: for messages.

    Raises:
        DataError: a coordinate is damaged.
    """
    rows, cols, bands = arrays.cube_shape(node.shape, axes)
    ours = node.attrs.get("spectralift")
    fields: dict[str, Any] = dict(ours) if isinstance(ours, dict) else _cf_fields(node, source)
    grid = siblings.get(str(node.attrs.get("grid_mapping", "spatial_ref")))
    grid_attrs = grid.attrs if isinstance(grid, ZarrArray) else {}
    if fields.get("crs") is None:
        fields["crs"] = _crs(node.attrs, grid_attrs, source)
    x, y = (
        _coordinate(siblings, node.dims[axis] or name, count, request)
        for axis, name, count in ((axes[1], "x", cols), (axes[0], "y", rows))
    )
    if fields.get("transform") is None:
        fields["transform"] = _geotransform(grid_attrs.get("GeoTransform"))
    fields["transform"] = _agreed_transform(fields["transform"], x, y)
    if axes[2] >= 0:
        fields |= _band_fields(siblings, node.dims[axes[2]], bands, request, source)
    return fields


def _cf_fields(node: ZarrArray, source: object) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, name in (("scale_factor", "scale"), ("add_offset", "offset")):
        if key in node.attrs:
            fields[name] = node.attrs[key]
    nodata = _number(node.attrs.get("_FillValue", node.attrs.get("missing_value")))
    if nodata is None and node.version == 2 and node.has_fill and node.fill != 0:
        # 0 is what zarr-python 2 put there unasked, so it says nothing
        nodata = node.fill.item()
    fields["nodata"] = fitting_nodata(nodata, node.dtype, source)
    return fields


def _number(value: Any) -> float | int | None:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        try:
            packed = base64.b64decode(value, validate=True)
            number = struct.unpack("<d", packed)[0] if len(packed) == 8 else float(value)
        except (binascii.Error, ValueError):
            return math.nan if value == "NaN" else None
        return float(number)
    return value if type(value) in (int, float) else None


def _crs(attrs: Mapping[str, Any], grid_attrs: Mapping[str, Any], source: object) -> str | None:
    gdal = attrs.get("_CRS")
    named = gdal if isinstance(gdal, dict) else {}
    for text in (named.get("wkt"), grid_attrs.get("crs_wkt"), grid_attrs.get("spatial_ref")):
        if isinstance(text, str) and text:
            return text
    url = named.get("url")
    if not isinstance(url, str):
        return None
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    # the code alone goes on: GDAL would fetch a URL that it does not know
    code = re.fullmatch(r"https?://www\.opengis\.net/def/crs/EPSG/[\d.]+/(\d{1,9})", url)
    if code is not None:
        with contextlib.suppress(CRSError):
            return str(CRS.from_epsg(int(code[1])).to_wkt())
    warnings.warn(
        f"{source}: the coordinate system {url[:80]!r} is not known; it is ignored",
        SpectraliftWarning,
        stacklevel=2,
    )
    return None


def _geotransform(text: Any) -> tuple[float, ...] | None:
    """Return GDAL's six numbers (c, a, b, f, d, e) in the order of `CubeMeta.transform`."""
    try:
        c, a, b, f, d, e = (float(word) for word in str(text).split())
    except ValueError:
        return None
    return (a, b, c, d, e, f)


def _coordinate(
    siblings: Siblings, name: str, count: int, request: OpenRequest
) -> FloatArray | None:
    node = siblings.get(name)
    if not isinstance(node, ZarrArray) or node.shape != (count,) or node.dtype.kind not in "iuf":
        return None
    if count * node.dtype.itemsize > _SIDE_BYTES:
        return None
    values: FloatArray = as_float64(node.read((slice(0, count),), request))
    return values


@np.errstate(over="ignore", invalid="ignore")
def _agreed_transform(stored: Any, x: FloatArray | None, y: FloatArray | None) -> Any:
    """Return the stored transform unless the coordinates of the pixels contradict it."""
    lines = [_line(centres) for centres in (x, y)]
    if lines[0] is None or lines[1] is None:
        return stored
    (x0, dx), (y0, dy) = lines[0], lines[1]
    found = (dx, 0.0, x0 - dx / 2, 0.0, dy, y0 - dy / 2)
    if not isinstance(stored, list | tuple) or len(stored) != 6:
        return found
    try:
        numbers = tuple(float(v) for v in stored if type(v) in (int, float))
    except OverflowError:  # a whole number of any length
        numbers = ()
    if len(numbers) != len(stored):
        return stored  # refused by whoever makes the metadata
    for (c, step), centres, size in zip(_origin_and_step(numbers), (x, y), (dx, dy), strict=True):
        ends = np.array([0, len(centres) - 1]) + 0.5  # type: ignore[arg-type]  # has a line
        off = np.abs(c + step * ends - centres[[0, -1]])  # type: ignore[index]
        if not off.max() <= _GRID_TOLERANCE * abs(size):
            return found
    return stored


@np.errstate(over="ignore", invalid="ignore")
def _line(centres: FloatArray | None) -> tuple[float, float] | None:
    """Return start and step of evenly spaced coordinates."""
    if centres is None or centres.size < 2 or not np.isfinite(centres).all():
        return None
    start = float(centres[0])
    step = float(centres[-1] - centres[0]) / (centres.size - 1)
    off = np.abs(centres - (start + step * np.arange(centres.size)))
    return (start, step) if step and off.max() <= _GRID_TOLERANCE * abs(step) else None


def _band_fields(
    siblings: Siblings, dim: str, bands: int, request: OpenRequest, source: object
) -> dict[str, Any]:
    """Return wavelengths, widths and bad bands from the arrays along the bands."""
    fields: dict[str, Any] = {}
    names = [dim] if dim.lower() in _SPECTRAL_NAMES else []
    for name in (*names, *_SPECTRAL_NAMES):
        stored = _coordinate(siblings, name, bands, request)
        if stored is None:
            continue
        fields["wavelengths_nm"] = to_nm(stored, _unit(siblings, name), source)
        for width in ("fwhm_nm", "fwhm"):
            widths = _coordinate(siblings, width, bands, request)
            if widths is not None:
                fields["fwhm_nm"] = to_nm(widths, _unit(siblings, width), source, like_nm=stored)
                break
        break
    bad = _coordinate(siblings, "bad_bands", bands, request)
    if bad is not None:
        fields["bad_bands"] = bad != 0
    return fields


def _unit(siblings: Siblings, name: str) -> str | None:
    node = siblings.get(name)
    unit = node.attrs.get("units") if isinstance(node, ZarrArray) else None
    if isinstance(unit, str):
        return unit
    return "nm" if name.endswith("_nm") else None
