"""Where an ENVI image lies: `map info` and `coordinate system string`, to and from our terms.

`map info = {projection, x, y, east, north, x size, y size, ..., units=..., rotation=...}` ties the
pixel (x, y), counted from 1 at the upper left corner of the first pixel, to (east, north). As in
GDAL, a rotation of exactly 180 means rows that run northwards; other angles turn the grid about
the tie point, counterclockwise in degrees. Coordinate systems are WKT in Esri's dialect.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import rasterio
from rasterio.crs import CRS
from rasterio.enums import WktVersion
from rasterio.errors import CRSError

from spectralift_cli.core.errors import SpectraliftWarning
from spectralift_cli.core.formats.envi_header import EnviHeader

Transform = tuple[float, float, float, float, float, float]

# EPSG codes of UTM are a hundred times these numbers plus the zone
_UTM_EPSG = {
    ("north", "WGS-84"): 326, ("south", "WGS-84"): 327, ("north", "NAD-83"): 269, ("north", "NAD-27"): 267,
}  # fmt: skip
_GEOGRAPHIC_EPSG = {"WGS-84": 4326, "NAD-83": 4269, "NAD-27": 4267}
_DATUMS = {"wgs84": "WGS-84", "nad83": "NAD-83", "northamerica1983": "NAD-83",
           "nad27": "NAD-27", "northamerica1927": "NAD-27"}  # fmt: skip
_UTM, _GEOGRAPHIC, _ARBITRARY = "UTM", "Geographic Lat/Lon", "Arbitrary"


@dataclass(frozen=True)
class _MapInfo:
    """`map info`, taken apart: the tie point's pixel and place, pixel sizes, the words after them."""

    projection: str
    pixel: tuple[float, float]
    place: tuple[float, float]
    size: tuple[float, float]
    rotation_deg: float = 0.0
    details: tuple[str, ...] = ()
    units: str = ""

    def transform(self) -> Transform | None:
        """Return the affine transform, None if a pixel has no size or a number is not finite."""
        (width, height), (east, north) = self.size, self.place
        if not math.isfinite(self.rotation_deg):
            return None
        if self.rotation_deg == 0:
            a, b, d, e = width, 0.0, 0.0, -height
        elif abs(self.rotation_deg) == 180:
            a, b, d, e = width, 0.0, 0.0, height
        else:
            angle = math.radians(self.rotation_deg)
            a, b = width * math.cos(angle), height * math.sin(angle)
            d, e = width * math.sin(angle), -height * math.cos(angle)
        right, down = self.pixel[0] - 1, self.pixel[1] - 1
        transform = (a, b, east - a * right - b * down, d, e, north - d * right - e * down)
        if not (width and height and all(math.isfinite(v) for v in transform)):
            return None
        if self.projection.lower() == _GEOGRAPHIC.lower() and self.units == "seconds":
            a, b, c, d, e, f = (v / 3600 for v in transform)
            return (a, b, c, d, e, f)
        return transform

    def epsg(self) -> int | None:
        """Return the code of the projection, where it is one of the usual ones."""
        name = self.projection.lower()
        if name == _UTM.lower() and len(self.details) >= 3:
            zone, hemisphere, datum = self.details[:3]
            base = _UTM_EPSG.get((hemisphere.lower(), _datum(datum)))
            usual_units = self.units in ("", "meters", "metres")
            if base and usual_units and zone.isascii() and zone.isdecimal():
                number = int(zone[:4])
                return base * 100 + number if 1 <= number <= 60 else None
        if name == _GEOGRAPHIC.lower() and self.details:
            return _GEOGRAPHIC_EPSG.get(_datum(self.details[0]))
        return None


def read_georeference(header: EnviHeader) -> tuple[str | None, Transform | None]:
    """Return the CRS as WKT and the affine transform, each None where the header has none.

    The coordinate system string counts before the projection that `map info` names. `x start` and
    `y start` say where this image lies in a larger one; the tie point already belongs to this one,
    so they do not move it. What is damaged or not understood is ignored with a warning.
    """
    info = _map_info(header)
    transform = None if info is None else info.transform()
    if info is not None and transform is None:
        _warn(f"{header.path}: 'map info' describes no grid of pixels; it is ignored")
    string = header.text("coordinate system string")
    parsed = None if string is None else _from_esri(string.replace("\n", ""))
    crs = None if parsed is None else _to_wkt(parsed)
    if crs is not None:
        return crs, transform
    if string is not None:
        _warn(f"{header.path}: the coordinate system string is not understood; it is ignored")
    if info is None or info.projection.lower() in (_ARBITRARY.lower(), "pixel", ""):
        return None, transform
    epsg = info.epsg()
    code = _from_epsg(epsg) if epsg is not None else None
    if code is None:
        _warn(
            f"{header.path}: the projection {info.projection[:40]!r} of 'map info' is not "
            "understood without a coordinate system string; the image has no CRS"
        )
        return None, transform
    return _to_wkt(code), transform


def _map_info(header: EnviHeader) -> _MapInfo | None:
    words = header.words("map info", 32)
    if words is None:
        return None
    named = {}
    for word in words:
        name, equals, value = word.partition("=")
        if equals:
            named[name.strip().lower()] = value.strip().lower()
    plain = [word for word in words if "=" not in word]
    try:
        x, y, east, north, width, height = (float(word) for word in plain[1:7])
        rotation = float(named.get("rotation", 0))
    except ValueError:
        _warn(f"{header.path}: 'map info' lacks its six numbers; it is ignored")
        return None
    return _MapInfo(
        plain[0], (x, y), (east, north), (width, height), rotation,
        tuple(plain[7:]), named.get("units", ""),
    )  # fmt: skip


def map_info_words(transform: Transform, crs: str | None) -> list[str] | None:
    """Return the parts of `map info` for a transform, None if it cannot express it.

    Sheared grids cannot be expressed, and programs disagree about rotated ones whose pixels are
    not square.
    """
    a, b, c, d, e, f = transform
    rotation, size = 0.0, (a, -e)
    if b == 0 and d == 0:
        if e > 0:
            rotation, size = 180.0, (a, e)
    else:
        angle = math.atan2(d, a)
        rotation = math.degrees(angle)
        size = (math.hypot(a, d), b * math.sin(angle) - e * math.cos(angle))
        if not math.isclose(*size, rel_tol=1e-9):
            return None
    projection, details = _projection(crs)
    found = _MapInfo(projection, (1.0, 1.0), (c, f), size, rotation).transform()
    tolerance = 1e-9 * abs(size[0])
    if found is None or max(abs(u - v) for u, v in zip(found, transform, strict=True)) > tolerance:
        return None
    turn = [f"rotation={rotation!r}"] if rotation else []
    return [projection, "1", "1", *map(repr, (c, f, *size)), *details, *turn]


def _projection(crs: str | None) -> tuple[str, list[str]]:
    """Return what `map info` calls a CRS, and the words that follow the pixel sizes."""
    parsed = None if crs is None else _from_wkt(crs)
    epsg = None if parsed is None else _epsg(parsed)
    if epsg is not None:
        for (hemisphere, datum), base in _UTM_EPSG.items():
            zone = epsg - base * 100
            if 1 <= zone <= 60:
                return _UTM, [str(zone), hemisphere.capitalize(), datum, "units=Meters"]
        for datum, code in _GEOGRAPHIC_EPSG.items():
            if epsg == code:
                # degrees are the default, and naming them keeps GDAL from finding the code
                return _GEOGRAPHIC, [datum]
    return _ARBITRARY, []


def to_esri(crs: str) -> str | None:
    """Return a CRS as a coordinate system string, None if that cannot express it."""
    parsed = _from_wkt(crs)
    text = None if parsed is None else _esri_wkt(parsed)
    return None if text is None or any(c in text for c in "{}\r\n") else text


def same_crs(first: str | None, second: str | None) -> bool:
    """Tell whether two WKT texts mean the same."""
    if first is None or second is None or first == second:
        return first == second
    one = _from_wkt(first)
    return one is not None and bool(one == _from_wkt(second))


# rasterio.Env keeps GDAL from printing what it also raises


def _from_wkt(text: str) -> CRS | None:
    try:
        with rasterio.Env():
            return CRS.from_wkt(text)
    except CRSError:
        return None


def _from_esri(text: str) -> CRS | None:
    try:
        with rasterio.Env():
            return CRS.from_wkt(text, morph_from_esri_dialect=True)
    except CRSError:
        return None


def _from_epsg(code: int) -> CRS | None:
    try:
        with rasterio.Env():
            return CRS.from_epsg(code)
    except CRSError:  # not every zone has a code in every datum
        return None


def _esri_wkt(crs: CRS) -> str | None:
    try:
        with rasterio.Env():
            return str(crs.to_wkt(version=WktVersion.WKT1_ESRI))
    except CRSError:
        return None


def _epsg(crs: CRS) -> int | None:
    """Return the EPSG code that has the very meaning of a CRS in Esri's dialect, if any."""
    try:
        with rasterio.Env():
            code: int | None = crs.to_epsg()
    except CRSError:
        return None
    spelled = None if code is None else _esri_wkt(CRS.from_epsg(code))
    theirs = _esri_wkt(crs)
    if spelled is None or theirs is None or _from_esri(spelled) != _from_esri(theirs):
        return None
    return code


def _to_wkt(crs: CRS) -> str | None:
    """Return WKT, the authority's own where the CRS has a code: Esri's names are not compared.

    A damaged CRS may be parsed and yet not be written: None.
    """
    code = _epsg(crs)
    try:
        with rasterio.Env():
            return str((crs if code is None else CRS.from_epsg(code)).to_wkt())
    except CRSError:
        return None


def _datum(name: str) -> str:
    return _DATUMS.get("".join(c for c in name.lower() if c.isalnum()), name)


def _warn(message: str) -> None:
    warnings.warn(message, SpectraliftWarning, stacklevel=3)
