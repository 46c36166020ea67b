"""Change a cube's format, data type, scaling, nodata, bands and extent, block by block."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spectralift_cli.core.cube import AnyArray, CubeMeta, Progress, no_progress, valid_mask
from spectralift_cli.core.cubeio import CubeReader, SelectedReader, row_blocks
from spectralift_cli.core.errors import DataError, OptionError, SpectraliftWarning
from spectralift_cli.core.formats import create_cube
from spectralift_cli.core.identity import identity, provenance


@dataclass(frozen=True)
class Recoding:
    """How stored values change on the way from one cube to another.

    With `rescale`, stored = (unit - offset) / scale of the target, rounded to nearest for integers;
    without, the stored value is kept as it is. Holes become the target's nodata (NaN if it is a
    float without one). Values the target type cannot hold are an error, never wrapped or cut off.

    Args:
        source: metadata of what is read.
        target: metadata of what is written; same shape.
        rescale: whether scale and offset change, and the stored values with them.
    """

    source: CubeMeta
    target: CubeMeta
    rescale: bool

    def __call__(self, block: AnyArray) -> AnyArray:
        """Return a block (rows, cols, bands) as the target stores it.

        Raises:
            DataError: values out of the target's range, holes it has no mark for, or valid values
                equal to its nodata.
        """
        source, target = self.source, self.target
        mask = valid_mask(block, source)
        holes = not mask.all()
        if holes and target.nodata is None and target.dtype.kind != "f":
            raise DataError(
                f"the cube has holes, and {target.dtype.name} without a nodata value has no mark "
                "for them",
                f"name one, for example --nodata {np.iinfo(target.dtype).min}",
            )
        values = block
        if self.rescale:
            units = block * np.float64(1) * source.scale + source.offset
            values = (units - target.offset) / target.scale
        if target.dtype.kind != "f" and values.dtype.kind == "f":
            values = np.rint(values)
        self._check_range(values, mask)
        with np.errstate(invalid="ignore"):
            out = values.astype(target.dtype)  # a copy unless nothing changes
        out = self._keep_off_nodata(out, mask)
        if holes:
            out = out.copy() if out is block else out
            out[~mask] = math.nan if target.nodata is None else target.nodata
        return out

    def _check_range(self, values: AnyArray, mask: AnyArray) -> None:
        target = self.target.dtype
        if values.dtype == target:
            return
        if target.kind == "f":
            low, high = -float(np.finfo(target).max), float(np.finfo(target).max)
        else:
            low, high = int(np.iinfo(target).min), int(np.iinfo(target).max)
        if target.kind != "f" and values.dtype.kind == "f":
            # as a float, 2^63 - 1 would be 2^63; the power of two itself is exact
            is_above = values >= float(high + 1)
        else:
            is_above = values > high
        outside = mask & ((values < low) | is_above)
        if target.kind == "f" and values.dtype.kind == "f":
            outside &= np.isfinite(values)
        count = int(outside.sum())
        if count:
            worst = values[outside]
            raise DataError(
                f"{count} values between {worst.min():g} and {worst.max():g} do not fit "
                f"{target.name} ({low:g} to {high:g})",
                "choose a wider --dtype, or a --scale that brings them into range",
            )

    def _keep_off_nodata(self, out: AnyArray, mask: AnyArray) -> AnyArray:
        nodata = self.target.nodata
        if nodata is None:
            return out
        clash = mask & (out == nodata)
        if not clash.any():
            return out
        if not (self.rescale and self.target.dtype.kind != "f"):
            raise DataError(
                f"{int(clash.sum())} valid values equal the new nodata value {nodata:g}",
                "choose a --nodata that does not occur in the data",
            )
        # rounding put them there: one count aside is within the rounding of a neighbour
        step = -1 if nodata == np.iinfo(self.target.dtype).max else 1
        return np.where(clash, np.asarray(nodata + step, out.dtype), out)


class RecodedReader(CubeReader):
    """A reader whose values pass through a `Recoding`."""

    def __init__(self, source: CubeReader, recoding: Recoding) -> None:
        super().__init__(source.path, recoding.target, source.layout)
        self.format_name, self.streams = source.format_name, source.streams
        self._source, self._recoding = source, recoding

    def _read(self, start: int, stop: int) -> AnyArray:
        return self._recoding(self._source.read(slice(start, stop)))

    def close(self) -> None:
        """Close the source."""
        self._source.close()


class DeclaredReader(CubeReader):
    """A reader whose stored values stand for other units than its file says.

    Args:
        source: the reader; closing this one closes it.
        scale: stored value to unit, in place of the file's; None to keep it.
        offset: likewise.
    """

    def __init__(self, source: CubeReader, scale: float | None, offset: float | None) -> None:
        meta = source.meta.replace(
            scale=source.meta.scale if scale is None else scale,
            offset=source.meta.offset if offset is None else offset,
        )
        super().__init__(source.path, meta, source.layout)
        self.format_name, self.streams = source.format_name, source.streams
        self.block_rows, self.choices = source.block_rows, source.choices
        self._source = source

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the source."""
        return self._source.files

    def _read(self, start: int, stop: int) -> AnyArray:
        return self._source.read(slice(start, stop))

    def close(self) -> None:
        """Close the source."""
        self._source.close()


def recode(
    reader: CubeReader,
    *,
    dtype: str | None = None,
    scale: float | None = None,
    offset: float | None = None,
    nodata: float | None = None,
) -> CubeReader:
    """Return a reader of the same cube in another data type, scaling or nodata.

    Args:
        reader: the cube; closed with the result.
        dtype: stored type, or None to keep it.
        scale: new stored-to-unit factor; the stored values change so that units stay.
        offset: new offset, likewise.
        nodata: new mark for holes, or None to keep it.

    Raises:
        OptionError: a float cube to integers without `scale`.
        DataError: a scale of zero, or a nodata the type cannot hold; while reading, see `Recoding`.
    """
    meta = reader.meta
    if dtype is None and scale is None and offset is None and nodata is None:
        return reader
    to = np.dtype(dtype) if dtype is not None else meta.dtype
    if meta.dtype.kind == "f" and to.kind != "f" and scale is None:
        raise OptionError(
            f"{to.name} would drop the fractions of {meta.dtype.name} values",
            "say --scale 1 to round them, or a scale like --scale 0.0001 to keep four digits",
        )
    kept: float | None = meta.nodata
    if nodata is not None:
        kept = nodata
    elif kept is not None and not _can_hold(kept, to):
        kept = None
    rescale = scale is not None or offset is not None
    target = meta.replace(
        dtype=to,
        nodata=kept,
        scale=meta.scale if scale is None else scale,
        offset=meta.offset if offset is None else offset,
    )
    return RecodedReader(reader, Recoding(meta, target, rescale))


def convert(
    reader: CubeReader,
    output: str | Path,
    *,
    bands: str | None = None,
    drop_bad_bands: bool = False,
    window: tuple[int, int, int, int] | None = None,
    bounds: tuple[float, float, float, float] | None = None,
    dtype: str | None = None,
    scale: float | None = None,
    offset: float | None = None,
    nodata: float | None = None,
    assign_scale: float | None = None,
    assign_offset: float | None = None,
    options: Mapping[str, str] | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> tuple[Path, ...]:
    """Write a cube in another format, block by block; return the files, the main one first.

    Args:
        reader: the source; closed when done. Its file may be the output's.
        output: the ending chooses the format.
        bands: see `parse_bands`; None for all.
        drop_bad_bands: leave out flagged bands.
        window: (row, col, height, width) in pixels.
        bounds: (west, south, east, north) in the cube's CRS; pixels whose centre is inside.
        dtype: see `recode`.
        scale: see `recode`.
        offset: see `recode`.
        nodata: see `recode`.
        assign_scale: what the stored values stand for, where the file says otherwise or nothing:
            they stay, the units change. Applied first.
        assign_offset: likewise.
        options: creation options of the format.
        overwrite: replace an existing output.
        progress: called with (rows done, rows).

    Raises:
        DataError: the source is damaged, a choice is empty or outside, or values do not fit.
        OptionError: options that exclude each other.
        OutputExistsError: the output exists and `overwrite` is false.
    """
    if reader.swath:
        warnings.warn(
            f"{reader.path}: is not orthorectified, and {output} will not say so: "
            "its rows and columns are the sensor's, not a map's",
            SpectraliftWarning,
            stacklevel=2,
        )
    if assign_scale is not None or assign_offset is not None:
        try:
            reader = DeclaredReader(reader, assign_scale, assign_offset)
        except DataError:
            reader.close()
            raise
    with reader:
        chosen = None if bands is None else parse_bands(bands, reader.meta)
        if drop_bad_bands:
            chosen = _without_bad(chosen, reader.meta)
        if bounds is not None:
            if window is not None:
                raise OptionError("--window and --bounds exclude each other", "give one of them")
            window = window_of_bounds(reader.meta, bounds)
        asked = {
            "bands": bands, "drop_bad_bands": drop_bad_bands, "window": window and list(window),
            "dtype": dtype, "scale": scale, "offset": offset, "nodata": nodata,
            "assign_scale": assign_scale, "assign_offset": assign_offset,
        }  # fmt: skip
        recipe = {k: v for k, v in asked.items() if v is not None and v is not False}
        source: CubeReader = reader
        if chosen is not None or window is not None:
            source = SelectedReader(reader, chosen, window)
        source = recode(source, dtype=dtype, scale=scale, offset=offset, nodata=nodata)
        meta = source.meta.replace(
            provenance=provenance(
                "convert",
                {**recipe, **reader.choices},
                {"cube": identity(*reader.files)},
                earlier=reader.meta.provenance,
            )
        )
        with create_cube(output, meta, options=options, overwrite=overwrite) as writer:
            height = max(1, min(source.block_rows, reader.block_rows))
            for rows in row_blocks(meta.rows, height):
                writer.write(rows, source.read(rows))
                progress(rows.stop, meta.rows)
            return writer.commit()


def parse_bands(text: str, meta: CubeMeta) -> list[int]:
    """Return the 0-based indices of a choice of bands, in the order given.

    Args:
        text: comma-separated: `7` or `3-10` count from 1; `650nm` is the band nearest to it;
            `400nm-700nm` every band inside, in file order.
        meta: of the cube.

    Raises:
        DataError: a band that is not there, or nanometres for a cube without wavelengths.
    """
    chosen: list[int] = []
    for word in (w.strip().lower() for w in text.split(",")):
        by_index = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", word)
        by_nm = re.fullmatch(r"(\d+(?:\.\d+)?)nm(?:-(\d+(?:\.\d+)?)nm)?", word)
        if by_index:
            first = int(by_index[1])
            last = int(by_index[2] or first)
            if not 1 <= first <= last <= meta.bands:
                raise DataError(
                    f"bands {word} are not among the cube's {meta.bands} bands",
                    f"bands count from 1 to {meta.bands}, a range goes upwards",
                )
            chosen += range(first - 1, last)
        elif by_nm:
            chosen += _bands_by_nm(word, float(by_nm[1]), by_nm[2], meta)
        else:
            raise DataError(
                f"{word!r} is not a choice of bands", "use 7, 3-10, 650nm or 400nm-700nm"
            )
    return chosen


def _bands_by_nm(word: str, low: float, high: str | None, meta: CubeMeta) -> Sequence[int]:
    centres = meta.wavelengths_nm
    if centres is None:
        raise DataError(
            f"bands {word} cannot be found, the cube has no wavelengths",
            "give them with --wavelengths FILE, or choose bands by index",
        )
    if high is None:
        nearest = int(np.argmin(np.abs(centres - low)))
        away = abs(float(centres[nearest]) - low)
        spacing = float(np.median(np.abs(np.diff(centres)))) if centres.size > 1 else 0.0
        width = 0.0 if meta.fwhm_nm is None else float(meta.fwhm_nm[nearest])
        if away > max(spacing, width, 1.0):
            raise DataError(
                f"no band lies near {low:g} nm, the nearest is at {centres[nearest]:g} nm",
                f"the cube covers {centres.min():g} to {centres.max():g} nm",
            )
        return [nearest]
    inside = np.flatnonzero((centres >= low) & (centres <= float(high)))
    if not inside.size:
        raise DataError(
            f"no band lies within {word}",
            f"the cube covers {centres.min():g} to {centres.max():g} nm",
        )
    return [int(i) for i in inside]


def window_of_bounds(
    meta: CubeMeta, bounds: tuple[float, float, float, float]
) -> tuple[int, int, int, int]:
    """Return the window (row, col, height, width) of pixels whose centres lie within bounds.

    Args:
        meta: of a cube with a north-up or rotated-by-180-degrees transform.
        bounds: (west, south, east, north) in map units; parts outside the cube are left away.

    Raises:
        DataError: no transform, a rotated one, or bounds that miss the cube.
    """
    west, south, east, north = bounds
    if meta.transform is None:
        raise DataError("the cube has no georeference, so --bounds means nothing", "use --window")
    a, b, c, d, e, f = meta.transform
    if b or d or not a or not e:
        raise DataError(
            "the cube's grid is rotated, so --bounds is not a window of it", "use --window"
        )
    if not (np.isfinite(bounds).all() and west < east and south < north):
        raise DataError(
            f"the bounds {west:g} {south:g} {east:g} {north:g} are empty", "give W S E N"
        )
    x = c + a * (np.arange(meta.cols) + 0.5)
    y = f + e * (np.arange(meta.rows) + 0.5)
    cols = np.flatnonzero((x >= west) & (x <= east))
    rows = np.flatnonzero((y >= south) & (y <= north))
    if not cols.size or not rows.size:
        raise DataError(
            f"the bounds {west:g} {south:g} {east:g} {north:g} miss the cube",
            f"it covers {min(c, c + a * meta.cols):.10g} {min(f, f + e * meta.rows):.10g} "
            f"{max(c, c + a * meta.cols):.10g} {max(f, f + e * meta.rows):.10g}",
        )
    return int(rows[0]), int(cols[0]), len(rows), len(cols)


def _without_bad(chosen: list[int] | None, meta: CubeMeta) -> list[int] | None:
    if meta.bad_bands is None:
        warnings.warn("the cube flags no bad bands, so none is dropped", SpectraliftWarning, 3)
        return chosen
    kept = [i for i in (range(meta.bands) if chosen is None else chosen) if not meta.bad_bands[i]]
    if not kept:
        raise DataError(f"all {meta.bands} bands are flagged as bad", "leave --drop-bad-bands out")
    return kept


def _can_hold(value: float, dtype: np.dtype[Any]) -> bool:
    if dtype.kind == "f":
        return bool(math.isnan(value) or abs(value) <= float(np.finfo(dtype).max))
    info = np.iinfo(dtype)
    return math.isfinite(value) and value == int(value) and info.min <= value <= info.max
