"""A cube's metadata in an ENVI header, both ways.

What the usual keys cannot give back exactly (a WKT that Esri's dialect changes, an oblique
transform, band names with commas) travels once more in the key `spectralift`, percent-encoded JSON
that also holds the provenance. Such a copy counts only while the usual key still says what it said
when both were written: other programs edit the one and carry the other along.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from spectralift_cli.core.cube import CubeMeta, FloatArray
from spectralift_cli.core.errors import DataError, SpectraliftWarning
from spectralift_cli.core.formats import arrays
from spectralift_cli.core.formats.envi_georef import (
    map_info_words,
    read_georeference,
    same_crs,
    to_esri,
)
from spectralift_cli.core.formats.envi_header import (
    EnviHeader,
    braced,
    format_envi_header,
    parse_envi_header,
)
from spectralift_cli.core.formats.spectral import fitting_nodata, to_nm

# fields that the usual keys may hold inexactly, and those keys
_INEXACT = {
    "crs": "coordinate system string",
    "transform": "map info",
    "band_names": "band names",
}


def read_meta(header: EnviHeader, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> CubeMeta:
    """Return the metadata of an image of that shape and (native) dtype.

    Raises:
        DataError: a list of another length than the bands, a text where a number belongs, or a
            value that cannot be (a scale of 0).
    """
    source, bands = header.path, shape[2]
    centres, widths = _read_spectral(header, bands)
    good = header.numbers("bbl", bands)
    scale, offset = _read_scaling(header, bands)
    crs, transform = read_georeference(header)
    try:
        meta = CubeMeta(
            shape=shape,
            dtype=dtype,
            wavelengths_nm=centres,
            fwhm_nm=widths,
            bad_bands=None if good is None else good == 0,
            nodata=fitting_nodata(header.number("data ignore value"), dtype, source),
            scale=scale,
            offset=offset,
            crs=crs,
            transform=transform,
            band_names=_read_names(header, bands),
        )
    except DataError as error:
        raise DataError(f"{source}: {error.message}", error.hint or "mend the header") from error
    return meta.replace(**_read_own(header, meta))


def _read_spectral(header: EnviHeader, bands: int) -> tuple[FloatArray | None, FloatArray | None]:
    """Return wavelengths and widths in nanometres; widths share the centres' unit."""
    unit = header.text("wavelength units")
    centres = header.numbers("wavelength", bands)
    widths = header.numbers("fwhm", bands)
    centres_nm = None if centres is None else to_nm(centres, unit, header.path)
    if widths is None or (centres is not None and centres_nm is None):
        return centres_nm, None
    if centres is None and (unit or "unknown").lower() == "unknown":
        _warn(f"{header.path}: 'fwhm' has neither wavelengths nor a unit; it is ignored")
        return None, None
    return centres_nm, to_nm(widths, unit, header.path, like_nm=centres)


def _read_scaling(header: EnviHeader, bands: int) -> tuple[float | FloatArray, float | FloatArray]:
    """Return scale and offset: 1/factor, or the data gains (to radiance) and offsets."""
    factor = header.number("reflectance scale factor")
    gains = header.numbers("data gain values", bands)
    offsets = header.numbers("data offset values", bands)
    linear = (1.0 if gains is None else gains, 0.0 if offsets is None else offsets)
    if factor is None:
        return linear
    if not 0 < factor < float("inf"):
        raise DataError(
            f"{header.path}: a reflectance scale factor of {factor:g} is not possible",
            "mend the header or remove that line",
        )
    from_factor = (1.0 / factor, 0.0)
    for other in (from_factor, (1.0, 0.0)):
        if all(np.all(u == np.float64(v)) for u, v in zip(linear, other, strict=True)):
            break
    else:
        _warn(
            f"{header.path}: has a reflectance scale factor and data gains that differ from it; "
            "the factor is used"
        )
    return from_factor


def _read_names(header: EnviHeader, bands: int) -> tuple[str, ...] | None:
    names = header.words("band names", bands + 1)
    if names is None:
        return None
    if len(names) == bands + 1 and not names[-1]:
        names.pop()  # a comma after the last one
    if len(names) != bands:
        _warn(f"{header.path}: has not {bands} band names for its {bands} bands; they are ignored")
        return None
    return tuple(names)


def _read_own(header: EnviHeader, meta: CubeMeta) -> dict[str, Any]:
    """Return the fields of the key `spectralift` that still belong to this header."""
    text = header.text("spectralift")
    if text is None:
        return {}
    fields = arrays.parse_json(unquote(text), header.path)
    shape = fields.pop("shape", None)
    exact = arrays.meta_from_json(
        meta.shape, meta.dtype, {k: fields[k] for k in ("provenance", *_INEXACT) if k in fields},
        header.path,
    )  # fmt: skip
    own: dict[str, Any] = {"provenance": exact.provenance}
    known = {name: getattr(exact, name) for name in _INEXACT if name in fields}
    if known and shape == list(meta.shape):
        # somebody may have edited the usual keys since: they must say what the copies would
        as_written = parse_envi_header(
            format_envi_header(_labels(meta.replace(**known))), header.path
        )
        for name, value in known.items():
            if _squeezed(header, _INEXACT[name]) == _squeezed(as_written, _INEXACT[name]):
                own[name] = value
    return own


def _squeezed(header: EnviHeader, key: str) -> str:
    return "".join((header.text(key) or "").split())


def format_meta(path: Path, meta: CubeMeta, layout: Mapping[str, str]) -> str:
    """Return a header's text: its entries of the layout, then the cube's metadata.

    What the usual keys cannot express is kept in the key `spectralift`; a georeference that other
    programs will therefore not find is named in a warning.
    """
    entries = {**layout, **_labels(meta), **_numbers(meta)}
    for field, key in (("crs", "coordinate system string"), ("transform", "map info")):
        if getattr(meta, field) is not None and key not in entries:
            _warn(
                f"{path}: an ENVI header cannot express the {field}; "
                "only spectralift will find it there"
            )
    own = _own_fields(parse_envi_header(format_envi_header(entries), path), meta)
    if own:
        text = arrays.dump_json(own)
        for char in "%{}":
            text = text.replace(char, f"%{ord(char):02X}")
        entries["spectralift"] = "{" + text + "}"
    return format_envi_header(entries)


def _labels(meta: CubeMeta) -> dict[str, str]:
    """Return the entries that may hold their fields inexactly."""
    entries: dict[str, str] = {}
    words = None if meta.transform is None else map_info_words(meta.transform, meta.crs)
    esri = None if meta.crs is None else to_esri(meta.crs)
    if words is not None:
        entries["map info"] = braced([", ".join(words)])
    if esri is not None:
        entries["coordinate system string"] = "{" + esri + "}"
    if meta.band_names is not None:
        entries["band names"] = braced(_plain_name(name) for name in meta.band_names)
    return entries


def _plain_name(name: str) -> str:
    """Return a band name without what ends a list, its words or its lines."""
    text = name.translate(str.maketrans("{},", "();"))
    text = "".join(c if c.isprintable() else " " for c in text)
    return text.strip()


def _numbers(meta: CubeMeta) -> dict[str, str]:
    """Return the entries of wavelengths, bad bands, nodata and scaling, exact in text."""
    entries: dict[str, str] = {}
    if meta.wavelengths_nm is not None or meta.fwhm_nm is not None:
        entries["wavelength units"] = "Nanometers"
    if meta.wavelengths_nm is not None:
        entries["wavelength"] = braced(map(repr, meta.wavelengths_nm.tolist()))
    if meta.fwhm_nm is not None:
        entries["fwhm"] = braced(map(repr, meta.fwhm_nm.tolist()))
    if meta.bad_bands is not None:
        entries["bbl"] = braced("0" if bad else "1" for bad in meta.bad_bands)
    if meta.nodata is not None:
        entries["data ignore value"] = repr(meta.nodata)
    if meta.is_scaled:
        scale, offset = meta.scale, meta.offset
        if isinstance(scale, float) and scale > 0 and isinstance(offset, float) and offset == 0:
            factor = 1.0 / scale
            if factor < float("inf") and 1.0 / factor == scale:
                return {**entries, "reflectance scale factor": repr(factor)}
        for key, values in (("data gain values", scale), ("data offset values", offset)):
            full = np.broadcast_to(np.asarray(values, dtype=np.float64), (meta.bands,))
            entries[key] = braced(map(repr, full.tolist()))
    return entries


def _own_fields(as_read: EnviHeader, meta: CubeMeta) -> dict[str, Any]:
    """Return what goes into the key `spectralift`: provenance, and fields a reader would miss."""
    crs, transform = read_georeference(as_read)
    wanted = {
        "crs": not same_crs(crs, meta.crs),
        "transform": transform != meta.transform,
        "band_names": _read_names(as_read, meta.bands) != meta.band_names,
    }
    fields = arrays.meta_to_json(meta)
    own = {name: fields[name] for name, want in wanted.items() if want and name in fields}
    if own:
        own["shape"] = list(meta.shape)
    if meta.provenance is not None:
        own["provenance"] = fields["provenance"]
    return own


def _warn(message: str) -> None:
    warnings.warn(message, SpectraliftWarning, stacklevel=3)
