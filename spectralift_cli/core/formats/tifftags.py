"""A cube's metadata in a TIFF: GDAL's band items and back.

Written, all of it inside the file: GDAL's `IMAGERY` domain (`CENTRAL_WAVELENGTH_UM`, `FWHM_UM`),
the band items `wavelength`, `wavelength_units`, `fwhm` that GDAL's ENVI driver uses, `bbl` (1 for a
good band, 0 for a bad one, as in an ENVI header), the band description, nodata, scale, offset, CRS,
transform, and the dataset item `SPECTRALIFT` with the provenance as JSON. Read are the same,
`IMAGERY` first; where there are no items, wavelengths that every band's description names.
"""

from __future__ import annotations

import math
import re
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
from rasterio.crs import CRS
from rasterio.errors import CRSError

from spectralift_cli.core.cube import BoolArray, CubeMeta, FloatArray
from spectralift_cli.core.errors import SpectraliftWarning
from spectralift_cli.core.formats.arrays import dump_json, parse_json
from spectralift_cli.core.formats.spectral import fitting_nodata, to_nm

_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
_PROVENANCE = "SPECTRALIFT"
_NUMBER = r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
_UNIT = r"(nm|nanomet(?:er|re)s?|um|µm|μm|microns?|micromet(?:er|re)s?)"  # both letters that look like mu
# a number behind a dash ends a range, 650-680 nm, which is not a centre
_WITH_UNIT = re.compile(rf"(?<![\w.\-–]){_NUMBER}\s*{_UNIT}(?!\w)", re.IGNORECASE)
_IN_PARENTHESES = re.compile(rf"\(\s*{_NUMBER}\s*\)", re.IGNORECASE)


def read_fields(
    dataset: Any, dtype: np.dtype[Any], nodata_text: str, source: object
) -> dict[str, Any]:
    """Return the fields of `CubeMeta` that a dataset's bands carry, without shape and dtype.

    Args:
        dataset: rasterio's, open.
        dtype: the stored type.
        nodata_text: the file's nodata tag; for 64-bit integers, which GDAL rounds to float64.
        source: the file, for messages.
    """
    bands = range(1, dataset.count + 1)
    items = [{k.lower(): v for k, v in dataset.tags(b).items()} for b in bands]
    imagery = [dataset.tags(b, ns="IMAGERY") for b in bands]
    names = _names(dataset.descriptions)
    centres, widths = _spectrum(imagery, items, source)
    if centres is None and names is not None:
        centres = wavelengths_in(names, source)
    if centres is not None and names == _automatic_names(centres):
        names = None
    transform = tuple(float(v) for v in dataset.transform[:6])
    # alone, because the other items of the dataset need not be UTF-8 (a camera's description)
    text = dataset.get_tag_item(_PROVENANCE)
    return {
        "wavelengths_nm": centres,
        "fwhm_nm": widths,
        "bad_bands": _bad_bands(items, source),
        "nodata": _nodata(dataset.nodatavals, dtype, nodata_text, source),
        "scale": np.array(dataset.scales),
        "offset": np.array(dataset.offsets),
        "crs": _wkt(dataset, source),
        "transform": transform if transform != _IDENTITY and np.isfinite(transform).all() else None,
        "band_names": names,
        "provenance": (parse_json(text, source) or None) if text else None,
    }


def wavelengths_in(texts: Sequence[str], source: object) -> FloatArray | None:
    """Return the wavelengths in nanometres that names of bands hold, or None.

    Every text must hold exactly one number with a unit of length (`650.3 nm`, `B4 0.65 um`), or
    every one exactly one number in parentheses (`Band 3 (650.0)`); anything else is no wavelength.
    """
    for pattern in (_WITH_UNIT, _IN_PARENTHESES):
        found = [pattern.findall(text) for text in texts]
        if not found or any(len(matches) != 1 for matches in found):
            continue
        if pattern is _WITH_UNIT:
            converted = [to_nm([float(m[0][0])], m[0][1], source) for m in found]
            kept = [nm for nm in converted if nm is not None]
            return np.concatenate(kept) if len(kept) == len(texts) else None
        values = [float(matches[0]) for matches in found]
        # small whole numbers in parentheses count something
        if all(value == int(value) and value < 100 for value in values):
            return None
        return to_nm(values, None, source)
    return None


def write_fields(dataset: Any, meta: CubeMeta) -> None:
    """Give a dataset that is being created the items of its bands; see the module's description.

    nodata, CRS and transform are given on creation, not here.
    """
    if meta.is_scaled:
        dataset.scales = np.broadcast_to(meta.scale, meta.bands).tolist()
        dataset.offsets = np.broadcast_to(meta.offset, meta.bands).tolist()
    names = meta.band_names
    if names is None and meta.wavelengths_nm is not None:
        names = _automatic_names(meta.wavelengths_nm)
    if names is not None and (kept := tuple(map(storable_name, names))) != names:
        _warn("control characters and leading blanks of band names are dropped")
        names = kept
    for index in range(meta.bands):
        items: dict[str, str] = {}
        imagery: dict[str, str] = {}
        if meta.wavelengths_nm is not None:
            centre = float(meta.wavelengths_nm[index])
            items |= {"wavelength": repr(centre), "wavelength_units": "nm"}
            imagery["CENTRAL_WAVELENGTH_UM"] = _um_text(centre)
        if meta.fwhm_nm is not None:
            width = float(meta.fwhm_nm[index])
            items |= {"fwhm": repr(width), "wavelength_units": "nm"}
            imagery["FWHM_UM"] = _um_text(width)
        if meta.bad_bands is not None:
            items["bbl"] = "0" if meta.bad_bands[index] else "1"
        if items:
            dataset.update_tags(index + 1, **items)
        if imagery:
            dataset.update_tags(index + 1, ns="IMAGERY", **imagery)
        if names is not None:
            dataset.set_band_description(index + 1, names[index])
    if meta.provenance is not None:
        dataset.update_tags(**{_PROVENANCE: dump_json(meta.provenance)})


def storable_name(name: str) -> str:
    """Return a band name as GDAL's XML keeps it: no control characters, no leading blanks."""
    kept = (c for c in name if c in "\t\n" or unicodedata.category(c) not in ("Cc", "Cs"))
    return "".join(kept).lstrip(" \t\n")


def needs_exact_nodata(meta: CubeMeta) -> bool:
    """Tell whether the nodata value is an integer that rasterio, in float64, would round."""
    nodata = meta.nodata
    return meta.dtype.kind in "iu" and nodata is not None and abs(nodata) > 2**53


def _um_text(nanometres: float) -> str:
    """Return micrometres as text: the decimal point moved, so that no digit changes."""
    return str(Decimal(repr(nanometres)).scaleb(-3))


def _nm_of_um(text: str) -> float:
    try:
        return float(Decimal(text.strip()).scaleb(3))
    except (ArithmeticError, ValueError):  # the first is the parent of decimal's own
        return math.nan


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _automatic_names(wavelengths_nm: FloatArray) -> tuple[str, ...]:
    return tuple(f"{value:.2f} nm" for value in wavelengths_nm)


def _names(descriptions: Sequence[str | None]) -> tuple[str, ...] | None:
    return tuple(d or "" for d in descriptions) if any(descriptions) else None


def _complete(
    items: Sequence[Mapping[str, str]], key: str, source: object, what: str
) -> list[str] | None:
    """Return one item of every band; None, and a warning if only some bands have it."""
    values = [item[key] for item in items if key in item]
    if len(values) == len(items):
        return values
    if values:
        _warn(f"{source}: {what} for {len(values)} of {len(items)} bands are ignored")
    return None


def _spectrum(
    imagery: Sequence[Mapping[str, str]], items: Sequence[Mapping[str, str]], source: object
) -> tuple[FloatArray | None, FloatArray | None]:
    """Return centres and widths in nanometres from the bands' items."""
    centres = widths = None
    texts = _complete(imagery, "CENTRAL_WAVELENGTH_UM", source, "wavelengths")
    if texts is not None:
        centres = to_nm([_nm_of_um(t) for t in texts], "nm", source)
    texts = _complete(imagery, "FWHM_UM", source, "widths")
    if texts is not None:
        widths = to_nm([_nm_of_um(t) for t in texts], "nm", source)
    texts = _complete(items, "wavelength", source, "wavelengths")
    stored: Any = None if texts is None else np.array([_float(t) for t in texts])
    units = {item.get("wavelength_units", "") for item in items}
    unit = units.pop() if len(units) == 1 else "different units"
    if centres is None and stored is not None:
        centres = to_nm(stored, unit, source)
    if widths is None:
        texts = _complete(items, "fwhm", source, "widths")
        if texts is not None:
            widths = to_nm([_float(t) for t in texts], unit, source, like_nm=stored)
    return centres, widths


def _bad_bands(items: Sequence[Mapping[str, str]], source: object) -> BoolArray | None:
    texts = _complete(items, "bbl", source, "flags of bad bands")
    if texts is None:
        return None
    flags = np.array([_float(t) for t in texts])
    if not np.isin(flags, (0, 1)).all():
        _warn(f"{source}: flags of bad bands (bbl) other than 0 and 1 are ignored")
        return None
    bad: BoolArray = flags == 0
    return bad


def _nodata(
    values: Sequence[float | None], dtype: np.dtype[Any], text: str, source: object
) -> float | int | None:
    first = values[0]
    if any(v != first and not (v != v and first != first) for v in values):
        _warn(f"{source}: the bands' nodata values differ; that of band 1, {first}, is used")
    if dtype.kind in "iu" and dtype.itemsize == 8:
        exact = _exact_integer(text)
        if abs(exact) > 2**53:
            first = exact
    return fitting_nodata(first, dtype, source)


def _exact_integer(text: str) -> int:
    """Return a nodata text's whole number, 0 where it is none; GDAL writes some as 1e+18."""
    if re.fullmatch(r"[+-]?\d{1,20}", text):
        return int(text)
    value = _float(text)
    return int(value) if math.isfinite(value) and abs(value) < 2**65 else 0


def _wkt(dataset: Any, source: object) -> str | None:
    try:
        crs = dataset.crs
        return str(crs.to_wkt()) or None if crs else None
    except CRSError as error:
        _warn(f"{source}: its coordinate reference system is ignored ({error})")
        return None


def usable_crs(wkt: str | None, source: object) -> CRS | None:
    """Return a CRS as rasterio's, or None with a warning if it cannot be understood."""
    if wkt is None:
        return None
    try:
        return CRS.from_user_input(wkt)
    except CRSError as error:
        _warn(f"{source}: written without the CRS, which cannot be understood ({error})")
        return None


def _warn(message: str) -> None:
    warnings.warn(message, SpectraliftWarning, stacklevel=3)
