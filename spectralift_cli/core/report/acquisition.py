"""When and by what an image was taken, where its file says so."""

from __future__ import annotations

from pathlib import Path

from spectralift_cli.core.errors import SpectraliftError
from spectralift_cli.core.formats import find_format

# keys of ENVI headers (NV5, "ENVI Header Files")
_ENVI = {"sensor": "sensor type", "taken": "acquisition time"}
# GDAL's IMAGERY domain (GDAL data model, "IMAGERY Domain")
_GDAL = {"sensor": "SATELLITEID", "taken": "ACQUISITIONDATETIME"}


def acquisition(path: Path) -> list[tuple[str, str]]:
    """Return (what, value) of the sensor and the date in an image's file; empty where it says none."""
    row = find_format(path)
    texts: dict[str, str | None] = {}
    if row is not None and row.name == "envi":
        texts = _of_envi(path)
    elif row is not None and row.name == "tiff":
        texts = _of_tiff(path)
    known = {what: (value or "").strip()[:100] for what, value in texts.items()}
    return [(what, value) for what, value in known.items() if value.lower() not in ("", "unknown")]


def _of_envi(path: Path) -> dict[str, str | None]:
    from spectralift_cli.core.formats.envi_header import read_envi_header

    header = path if path.suffix.lower() == ".hdr" else path.with_suffix(".hdr")
    try:
        entries = read_envi_header(header)
        return {what: entries.text(key) for what, key in _ENVI.items()}
    except (SpectraliftError, OSError):
        return {}  # the image itself was read: what is beside its values is not worth an error


def _of_tiff(path: Path) -> dict[str, str | None]:
    import rasterio
    from rasterio.errors import RasterioError

    try:
        with rasterio.open(path) as dataset:
            tags = dataset.tags(ns="IMAGERY")
    except RasterioError:
        return {}
    return {what: tags.get(key) for what, key in _GDAL.items()}
