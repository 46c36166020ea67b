"""Describe cubes, scenes and checkpoints: what they say of themselves, and statistics of cubes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spectralift_cli.core.cube import (
    AnyArray,
    CubeMeta,
    FloatArray,
    Progress,
    no_progress,
    valid_mask,
)
from spectralift_cli.core.cubeio import CubeReader, row_blocks
from spectralift_cli.core.formats.spectral import steps_back
from spectralift_cli.core.scene import CUBE_ROLES, open_scene

PERCENTILES = (1.0, 50.0, 99.0)
# percentiles of larger float or wide integer cubes are taken from this many values at most
_SAMPLE_VALUES = 2**22


@dataclass(frozen=True)
class Statistics:
    """Statistics of the stored values that are not holes.

    Args:
        minimum: None if there is no valid value, like the others.
        maximum: largest value.
        percentiles: `PERCENTILES` of the values.
        exact: whether the percentiles are of all values rather than of an even sample.
        holes: number of values that are holes.
        hole_pixels: number of pixels whose bands are all holes.
        empty_bands: 1-based bands that hold nothing but holes.
    """

    minimum: float | None
    maximum: float | None
    percentiles: tuple[float, ...] | None
    exact: bool
    holes: int
    hole_pixels: int
    empty_bands: tuple[int, ...]


def statistics(reader: CubeReader, progress: Progress = no_progress) -> Statistics:
    """Return the statistics of a cube, reading it once by blocks of rows.

    Percentiles are exact for 8- and 16-bit integers (counted) and for up to 4 million values; of
    larger cubes every n-th valid value counts, n the same from first to last.
    """
    meta = reader.meta
    values = math.prod(meta.shape)
    counted = meta.dtype.kind != "f" and meta.dtype.itemsize <= 2
    sink: _Counts | _Sample = (
        _Counts(meta.dtype) if counted else _Sample(-(-values // _SAMPLE_VALUES))
    )
    low, high, holes, hole_pixels = math.inf, -math.inf, 0, 0
    band_has_data = np.zeros(meta.bands, bool)
    for rows in row_blocks(meta.rows, reader.block_rows):
        block = reader.read(rows)
        mask = valid_mask(block, meta)
        valid = block[mask]
        holes += block.size - valid.size
        if valid.size < block.size:
            hole_pixels += int((~mask.any(axis=2)).sum())
            band_has_data |= mask.any(axis=(0, 1))
        else:
            band_has_data[:] = True
        if valid.size:
            low, high = min(low, float(valid.min())), max(high, float(valid.max()))
            sink.add(valid)
        progress(rows.stop, meta.rows)
    found = math.isfinite(low)
    return Statistics(
        minimum=low if found else None,
        maximum=high if found else None,
        percentiles=sink.percentiles() if found else None,
        exact=counted or values <= _SAMPLE_VALUES,
        holes=holes,
        hole_pixels=hole_pixels,
        empty_bands=tuple(int(b) + 1 for b in np.flatnonzero(~band_has_data)),
    )


class _Counts:
    """How often each value of a small integer type occurs."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        info = np.iinfo(dtype)
        self._low = int(info.min)
        self._counts = np.zeros(int(info.max) - self._low + 1, np.int64)

    def add(self, valid: AnyArray) -> None:
        shifted = valid.astype(np.int64) - self._low
        self._counts += np.bincount(shifted, minlength=self._counts.size)

    def percentiles(self) -> tuple[float, ...]:
        """Return NumPy's linear percentiles of the counted values."""
        cumulative = np.cumsum(self._counts)
        last = int(cumulative[-1]) - 1
        found = []
        for percent in PERCENTILES:
            position = last * percent / 100
            below, above = math.floor(position), math.ceil(position)
            a, b = (int(np.searchsorted(cumulative, i + 1)) + self._low for i in (below, above))
            found.append(a + (b - a) * (position - below))
        return tuple(found)


class _Sample:
    """Every n-th value."""

    def __init__(self, step: int) -> None:
        self._step, self._skip = max(1, step), 0
        self._parts: list[AnyArray] = []

    def add(self, valid: AnyArray) -> None:
        self._parts.append(valid[self._skip :: self._step].copy())
        self._skip = (self._skip - valid.size) % self._step

    def percentiles(self) -> tuple[float, ...]:
        """Return NumPy's linear percentiles of the sample."""
        sample = np.concatenate(self._parts).astype(np.float64)
        return tuple(float(v) for v in np.percentile(sample, PERCENTILES))


def describe(reader: CubeReader, stats: Statistics | None) -> dict[str, Any]:
    """Return a cube's description as JSON-ready values; see the keys for the units."""
    meta = reader.meta
    rows, cols, bands = meta.shape
    described: dict[str, Any] = {
        "kind": "cube",
        "path": str(reader.path),
        "format": reader.format_name,
        "rows": rows,
        "cols": cols,
        "bands": bands,
        "dtype": meta.dtype.name,
        "size_bytes": meta.nbytes,
        "reads_rows": reader.streams,
        "layout": reader.layout,
        "wavelengths_nm": _listed(meta.wavelengths_nm),
        "wavelengths_step_back_at_bands": steps_back(meta.wavelengths_nm),
        "fwhm_nm": _listed(meta.fwhm_nm),
        "bad_bands": None
        if meta.bad_bands is None
        else [int(b) + 1 for b in np.flatnonzero(meta.bad_bands)],
        "band_names": None if meta.band_names is None else list(meta.band_names),
        "nodata": meta.nodata,
        "scale": _listed(meta.scale),
        "offset": _listed(meta.offset),
        "crs": crs_name(meta.crs),
        "crs_wkt": meta.crs,
        "transform": None if meta.transform is None else list(meta.transform),
        "bounds": bounds(meta),
        "provenance": None if meta.provenance is None else dict(meta.provenance),
    }
    if stats is not None:
        share = stats.holes / math.prod(meta.shape)
        described["statistics"] = {
            "unit": "stored values",
            "min": stats.minimum,
            "max": stats.maximum,
            "percentiles": None
            if stats.percentiles is None
            else {f"{p:g}": v for p, v in zip(PERCENTILES, stats.percentiles, strict=True)},
            "percentiles_exact": stats.exact,
            "nodata_share": share,
            "nodata_pixels": stats.hole_pixels,
            "empty_bands": list(stats.empty_bands),
        }
    return described


def describe_scene(path: Path) -> dict[str, Any]:
    """Return a scene's description: its roles with their shapes, its recipe and provenance.

    Raises:
        DataError: it is no scene, or a file of it is missing or damaged.
    """
    scene = open_scene(path)
    roles: dict[str, Any] = {}
    for role, name in scene.roles.items():
        roles[role] = {"file": name}
        if role in CUBE_ROLES:
            with scene.open(role) as reader:
                roles[role] |= {
                    "shape": list(reader.meta.shape),
                    "dtype": reader.meta.dtype.name,
                    "crs": crs_name(reader.meta.crs),
                }
    return {
        "kind": "scene",
        "path": str(path),
        "roles": roles,
        "recipe": dict(scene.recipe),
        "provenance": None if scene.provenance is None else dict(scene.provenance),
    }


def describe_checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint's description: model, training, bands, scaling, scores.

    Raises:
        DataError: no such file, or no checkpoint of ours.
    """
    from spectralift_cli.core.checkpoint import load_checkpoint

    found = load_checkpoint(path)
    model = found.empty_model()
    return {
        "kind": "checkpoint",
        "path": str(path),
        "model": found.model_name,
        "model_config": dict(found.model_config),
        "parameters": model.parameter_count,
        "flops_per_pixel": model.flops_per_pixel,
        "msi_bands": list(found.srf.band_names),
        "srf_source": found.srf.source,
        "hsi_bands": found.hsi.bands,
        "used_bands": int(found.used_bands.sum()),
        "wavelengths_nm": _listed(found.hsi.wavelengths_nm),
        "scaling": {"lo": found.scaling.lo, "hi": found.scaling.hi},
        "crs": crs_name(found.hsi.crs),
        "bounds": bounds(found.hsi),
        "shift_px": list(found.shift_px),
        "radiometry": None if found.radiometry is None else found.radiometry.to_json(),
        "train": found.train_config.used_json(),
        "choice": found.choice,
        "scores": dict(found.scores),
        "provenance": None if found.provenance is None else dict(found.provenance),
    }


def bounds(meta: CubeMeta) -> list[float] | None:
    """Return (west, south, east, north) of a cube in map units, or None without a transform."""
    if meta.transform is None:
        return None
    a, b, c, d, e, f = meta.transform
    corners = [(0, 0), (meta.cols, 0), (0, meta.rows), (meta.cols, meta.rows)]
    x = [a * col + b * row + c for col, row in corners]
    y = [d * col + e * row + f for col, row in corners]
    return [min(x), min(y), max(x), max(y)]


def crs_name(wkt: str | None) -> str | None:
    """Return a short name of a CRS: its EPSG code if it has one, else the name in its WKT."""
    if wkt is None:
        return None
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        crs = CRS.from_wkt(wkt)
        code = crs.to_epsg()
    except CRSError:
        return "not understood"
    if code is not None:
        return f"EPSG:{code}"
    words = wkt.split('"')
    return words[1] if len(words) > 1 else "unnamed"


def _listed(value: float | FloatArray | None) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value
