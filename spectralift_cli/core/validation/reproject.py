"""A result seen by the instruments of its two inputs, rows by rows."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from spectralift_cli.core.cube import (
    AnyArray,
    BoolArray,
    CubeMeta,
    FloatArray,
    Progress,
    no_progress,
)
from spectralift_cli.core.cubeio import BLOCK_BYTES, CubeReader, SelectedReader, row_blocks
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats import create_cube
from spectralift_cli.core.observation import Observation
from spectralift_cli.core.operators.blur import Blur
from spectralift_cli.core.radiometry import Radiometry
from spectralift_cli.core.sensors.response import Srf

_LEAST_SHARE = 0.99  # of an LR pixel's weight that must lie on valid HR pixels
_WINDOW_BYTES = 8 * BLOCK_BYTES


class InUnitsOfMsi(SelectedReader):
    """What the LR-HSI's radiometry shows, in that of the MSI: (x - offset) / gain."""

    def __init__(self, source: CubeReader, radiometry: Radiometry) -> None:
        super().__init__(source)
        self.meta = self.meta.replace(
            scale=1 / radiometry.gain, offset=-radiometry.offset / radiometry.gain
        )


def bands_with_values(reader: CubeReader) -> BoolArray:
    """Return (B,) which bands are not flagged as bad and hold a value somewhere."""
    meta = reader.meta
    bad = np.zeros(meta.bands, bool) if meta.bad_bands is None else meta.bad_bands
    found = np.zeros(meta.bands, bool)
    for rows in row_blocks(meta.rows, reader.block_rows):
        found |= np.isfinite(reader.read_units(rows)).any(axis=(0, 1))
        if (found | bad).all():
            break
    return found & ~bad


def degrade(values: AnyArray, observation: Observation, share: float = _LEAST_SHARE) -> AnyArray:
    """Return what an instrument sees of an image with holes.

    Holes carry no weight: seen = mean(blur(values)) / mean(blur(1 where valid)).

    Args:
        values: (H, W, B), NaN in holes; a pixel with a hole in one band counts as one in all.
        observation: the instrument.
        share: of an LR pixel's weight that must lie on valid pixels; NaN where less does.

    Returns:
        (h, w, B), float32 for float32.
    """
    valid: BoolArray = np.asarray(np.isfinite(values).all(axis=2))
    inside = observation.share_inside(valid)
    if not valid.all():
        values = np.where(valid[:, :, None], values, values.dtype.type(0))
    seen = observation(values)
    if not (valid.all() and (inside > 1 - 1e-9).all()):
        weight = observation(valid.astype(np.float64))  # mirrors at edges as the image does
        known = weight > 1e-6
        seen = (seen / np.where(known, weight, 1)[:, :, None]).astype(seen.dtype)
    out: AnyArray = np.where((inside >= share - 1e-9)[:, :, None], seen, seen.dtype.type(np.nan))
    return out


def write_seen_by_hsi(
    result: CubeReader,
    observation: Observation,
    like: CubeMeta,
    used: BoolArray,
    path: Path,
    progress: Progress = no_progress,
) -> None:
    """Write what the LR-HSI's instrument sees of a result; NaN where it cannot be told.

    Args:
        result: (H, W, B) on the HR grid.
        observation: the instrument.
        like: metadata of the LR-HSI, whose grid and bands the output has.
        used: (B,) which bands to compute; the others become NaN.
        path: of a temporary cube.
        progress: called with LR rows done and in all.
    """
    meta = like.replace(
        dtype=np.dtype(np.float32), nodata=math.nan, scale=1.0, offset=0.0, provenance=None
    )
    bands = np.flatnonzero(used)
    with create_cube(path, meta) as writer:
        for rows in row_blocks(meta.rows, _rows_at_once(result.meta, observation)):
            out = np.full((rows.stop - rows.start, meta.cols, meta.bands), np.nan, np.float32)
            window, seen = _window(observation, rows)
            if window.stop > window.start:
                values = result.read_units(window)[:, :, bands]
                out[:, :, bands] = degrade(values, seen)
            writer.write(rows, out)
            progress(rows.stop, meta.rows)
        writer.commit()


def seen_by_hsi(image: CubeReader, observation: Observation, share: float) -> AnyArray:
    """Return (h, w, B) float32 what the LR-HSI's instrument sees of a sharp image, read by rows.

    Args:
        image: (H, W, B) on the HR grid.
        observation: the instrument.
        share: of an LR pixel's weight that must lie on valid pixels; NaN where less does.
    """
    h, w = observation.placement.lr_shape
    out = np.full((h, w, image.meta.bands), np.nan, np.float32)
    for rows in row_blocks(h, _rows_at_once(image.meta, observation)):
        window, seen = _window(observation, rows)
        if window.stop > window.start:
            out[rows] = degrade(image.read_units(window), seen, share)
    return out


def _rows_at_once(meta: CubeMeta, observation: Observation) -> int:
    """Return LR rows whose window of HR rows, with its halo, takes a bounded share of memory."""
    halo = Blur(observation.psf).halo[0]
    hr_rows = max(_WINDOW_BYTES // (meta.cols * meta.bands * 4), 4 * halo) - 2 * halo
    return max(1, int(hr_rows / observation.placement.scale[0]))


def _window(observation: Observation, rows: slice) -> tuple[slice, Observation]:
    """Return the HR rows that LR rows depend on, and the observation of these alone."""
    placement = observation.placement
    halo = Blur(observation.psf).halo[0] + 2
    start = placement.origin_px[0] + placement.scale[0] * rows.start
    stop = placement.origin_px[0] + placement.scale[0] * rows.stop
    height = placement.hr_shape[0]
    first = min(max(0, math.floor(start) - halo), height)
    last = max(first, min(height, math.ceil(stop) + halo))
    cols = slice(0, placement.hr_shape[1])
    if last == first:
        return slice(first, first), observation
    cut = placement.window_lr(rows, slice(0, placement.lr_shape[1]))
    cut = cut.window_hr(slice(first, last), cols)
    return slice(first, last), Observation(
        observation.psf, cut, observation.includes_footprint, observation.boundary
    )


def write_seen_by_msi(
    result: CubeReader,
    srf: Srf,
    like: CubeMeta,
    used: BoolArray,
    path: Path,
    progress: Progress = no_progress,
) -> None:
    """Write what the HR-MSI's instrument sees of a result: result @ SRF.T over the used bands.

    Args:
        result: (H, W, B) on the HR grid.
        srf: (M, B) response.
        like: metadata of the HR-MSI, whose grid and bands the output has.
        used: (B,) which bands hold values.
        path: of a temporary cube.
        progress: called with rows done and in all.

    Raises:
        DataError: an MSI band lies on unused bands alone.
    """
    meta = like.replace(
        dtype=np.dtype(np.float32), nodata=math.nan, scale=1.0, offset=0.0, provenance=None
    )
    weights = weights_over(srf, used)
    with create_cube(path, meta) as writer:
        for rows in row_blocks(meta.rows, result.block_rows):
            values = result.read_units(rows)[:, :, used].astype(np.float64)
            # band by band: a product's rounding depends on how many rows it is given
            seen = np.stack([(values * row).sum(axis=2) for row in weights], axis=2)
            writer.write(rows, seen.astype(np.float32))
            progress(rows.stop, meta.rows)
        writer.commit()


def weights_over(srf: Srf, used: BoolArray) -> FloatArray:
    """Return the response over some bands, rows divided by their sums, (M, used bands).

    Raises:
        DataError: an MSI band's response lies on other bands alone.
    """
    weights = srf.weights[:, used]
    sums = weights.sum(axis=1)
    for name, total in zip(srf.band_names, sums, strict=True):
        if not total > 0:
            raise DataError(
                f"nothing of MSI band {name}'s response lies on the {int(used.sum())} bands that "
                "hold values",
                "leave the band out of the SRF and the MSI (--drop-uncovered-bands)",
            )
    out: FloatArray = weights / sums[:, None]
    return out
