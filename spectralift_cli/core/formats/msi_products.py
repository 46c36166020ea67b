"""Sentinel-2 and Landsat images stacked as one GeoTIFF: band names, scale and offset.

GDAL, stackers and download tools leave what they know in the descriptions of the bands and in the
items of the file. Understood are

- names such as `B02`, `B8A`, `B04_10m`, `T32UQD_20220724T102559_B02_10m`, `B4, central wavelength
  665 nm` (Sentinel-2), `SR_B4`, `LC08_L2SP_..._SR_B4` (Landsat), and the band item `BANDNAME`; they
  become `B2`, `B8A`, `B4`, ..., by which sensors are matched;
- Sentinel-2: `BOA_QUANTIFICATION_VALUE` or `QUANTIFICATION_VALUE`, and `BOA_ADD_OFFSET` or
  `RADIO_ADD_OFFSET` of the band or the file, reflectance = (stored + offset) / quantification
  (Sentinel-2 Products Specification Document, processing baseline 04.00); `SPECIAL_VALUE_NODATA`;
- Landsat: `REFLECTANCE_MULT_BAND_n` and `REFLECTANCE_ADD_BAND_n` of the MTL file, reflectance =
  stored * mult + add (2.75e-05 and -0.2 in Collection 2 Level 2).

Scale and offset that the GeoTIFF itself states come first. Nothing is assumed that the file does not
say. A name like `B4` alone tells no sensor: names are left as they are until another one, or an
item, tells. The items are those of GDAL's SENTINEL2 driver and of open stackers. The layout was not
checked against a real product.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spectralift_cli.core.errors import SpectraliftWarning
from spectralift_cli.core.formats.spectral import fitting_nodata

_NAME = re.compile(
    r"(?:.*[_\s])?B(?:AND)?[\s_]?0?(?P<number>\d{1,2})(?P<narrow>A?)(?:_[126]0m)?"
    r"(?:\.(?:jp2|tiff?))?(?:,? central wavelength.*)?",
    re.IGNORECASE,
)
# what only one of the two writes: Sentinel-2's B8A and B12, tile and resolution, its satellites;
# Landsat's Level-2 prefixes and scene names
_SENTINEL2 = re.compile(
    r"(?:.*[_\s])?B0?8A(?:\W.*|_.*)?|(?:.*[_\s])?B12(?:\W.*|_.*)?|.*_B\w{2}_[126]0m.*|S2[A-D]_.*"
    r"|T\d{2}[A-Z]{3}_.*",
    re.IGNORECASE,
)
_LANDSAT = re.compile(r"(?:.*_)?S[RT]_B(?:AND)?\d{1,2}(?:\.tiff?)?|L[COTEM]0\d_.*", re.IGNORECASE)
_SPACECRAFT = ("SPACECRAFT_NAME", "DATATAKE_1_SPACECRAFT_NAME", "SPACECRAFT_ID")
_MOST_BANDS = 24  # 13 of Sentinel-2 and its Level-2A layers; a hyperspectral image's B12 is no clue
_LAST_BAND = 12
_OFFSET_BASELINE = 4.0  # from which on Sentinel-2 stores reflectance with an offset


def msi_fields(
    dataset: Any, fields: Mapping[str, Any], dtype: np.dtype[Any], source: Path
) -> dict[str, Any]:
    """Return what a GeoTIFF of Sentinel-2 or Landsat says beyond other GeoTIFFs.

    Args:
        dataset: rasterio's, open.
        fields: of `CubeMeta`, as every GeoTIFF has them; see `tifftags.read_fields`.
        dtype: the stored type.
        source: the file, for messages.

    Returns:
        The fields that change, and `product` with the product's name; {} for other files.
    """
    if dataset.count > _MOST_BANDS:
        return {}
    bands = range(1, dataset.count + 1)
    names = fields["band_names"]
    if names is None:
        named = [dataset.get_tag_item("BANDNAME", bidx=band) for band in bands]
        names = tuple(named) if all(named) else None
    if names is None:
        return {}
    product = _product(dataset, names)
    if product is None:
        return {}
    found = [_NAME.fullmatch(name) for name in names]
    short = tuple(
        name if match is None else f"B{int(match['number'])}{match['narrow'].upper()}"
        for name, match in zip(names, found, strict=True)
    )
    changed: dict[str, Any] = {"product": product}
    if len(set(short)) == len(short):
        changed["band_names"] = short
    is_plain = (fields["scale"] == 1).all() and (fields["offset"] == 0).all()
    if is_plain and dtype.kind in "iu":
        scaling = _sentinel2 if product.startswith("Sentinel-2") else _landsat
        spectral = [name if match else None for name, match in zip(short, found, strict=True)]
        changed |= scaling(dataset, spectral, source)
    special = _number(dataset, "SPECIAL_VALUE_NODATA")
    if fields["nodata"] is None and special is not None:
        changed["nodata"] = fitting_nodata(special, dtype, source)
    return changed


def _product(dataset: Any, names: tuple[str, ...]) -> str | None:
    """Return "Sentinel-2", "Sentinel-2A", "Landsat 8", ..., or None for something else."""
    for item in _SPACECRAFT:
        text = (dataset.get_tag_item(item) or "").strip()
        if re.fullmatch(r"Sentinel-?2[A-D]?", text, re.IGNORECASE):
            return f"Sentinel-2{text[-1].upper() if text[-1] != '2' else ''}"
        if landsat := re.fullmatch(r"LANDSAT[_ -]?(\d)", text, re.IGNORECASE):
            return f"Landsat {landsat[1]}"
    numbers = [int(found["number"]) for name in names if (found := _NAME.fullmatch(name))]
    if not numbers or max(numbers) > _LAST_BAND:
        return None
    kind = dataset.get_tag_item("PRODUCT_TYPE") or ""
    if kind.startswith("S2MSI") or _number(dataset, "BOA_QUANTIFICATION_VALUE") is not None:
        return "Sentinel-2"
    if any(_LANDSAT.fullmatch(name) for name in names):
        return "Landsat"
    if any(_SENTINEL2.fullmatch(name) for name in names):
        return "Sentinel-2"
    return None


def _sentinel2(dataset: Any, names: list[str | None], source: Path) -> dict[str, Any]:
    """Return scale and offset of the spectral bands; others (None) keep 1 and 0."""
    quantification = _number(dataset, "BOA_QUANTIFICATION_VALUE")
    if quantification is None:
        quantification = _number(dataset, "QUANTIFICATION_VALUE")
    if quantification is None or quantification <= 0:
        return {}
    scale, offset = np.ones(len(names)), np.zeros(len(names))
    known = False
    for index, name in enumerate(names):
        if name is None:
            continue
        shifts = [
            _number(dataset, item, bidx)
            for bidx in (index + 1, 0)
            for item in ("BOA_ADD_OFFSET", "RADIO_ADD_OFFSET")
        ]
        shift = next((value for value in shifts if value is not None), None)
        known = known or shift is not None
        scale[index] = 1 / quantification
        offset[index] = (shift or 0.0) / quantification
    baseline = _number(dataset, "PROCESSING_BASELINE")
    if not known and baseline is not None and baseline >= _OFFSET_BASELINE:
        warnings.warn(
            f"{source}: from processing baseline 04.00 on Sentinel-2 stores reflectance with an "
            f"offset (BOA_ADD_OFFSET, -1000); this file is of {baseline:05.2f} and gives none, so its "
            "reflectance may be 0.1 too high",
            SpectraliftWarning,
            stacklevel=6,
        )
    return {"scale": scale, "offset": offset}


def _landsat(dataset: Any, names: list[str | None], source: Path) -> dict[str, Any]:
    """Return scale and offset of the bands that the MTL items give both for."""
    del source
    scale, offset = np.ones(len(names)), np.zeros(len(names))
    for index, name in enumerate(names):
        if name is None:
            continue
        factor = _number(dataset, f"REFLECTANCE_MULT_BAND_{name[1:]}")
        shift = _number(dataset, f"REFLECTANCE_ADD_BAND_{name[1:]}")
        if factor and shift is not None:
            scale[index], offset[index] = factor, shift
    return {"scale": scale, "offset": offset}


def _number(dataset: Any, item: str, bidx: int = 0) -> float | None:
    """Return an item of the file (band 0) or of a band as a finite number, else None."""
    try:
        value = float(dataset.get_tag_item(item, bidx=bidx) or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
