"""Scores of a cube against its reference, in one pass over both by blocks of rows."""

from __future__ import annotations

import csv
import importlib
import io
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spectralift_cli.core.config import MetricsConfig
from spectralift_cli.core.cube import AnyArray, CubeMeta, FloatArray, Progress, no_progress
from spectralift_cli.core.cubeio import CubeReader, row_blocks
from spectralift_cli.core.errors import DataError, SpectraliftWarning
from spectralift_cli.core.metrics import METRICS, Check
from spectralift_cli.core.metrics.blocks import (
    Accumulator,
    Context,
    Observer,
    PairBlock,
    Score,
    SpectralAngles,
)
from spectralift_cli.core.metrics.published import ERGAS_RATIO

DEFAULT_RATIO = 4.0

# values of a block that is computed on at once; some ten float64 arrays of that size live together
_BLOCK_VALUES = 2**20


@dataclass(frozen=True)
class Scores:
    """Every metric of one mode, with the conventions that its numbers depend on.

    Args:
        mode: "standard" or "published".
        scores: by name of the metric, in the order of the table.
        conventions: data range, ratio, windows; for reports.
        pixels: pixels of the image.
        valid_pixels: pixels with at least one value that is valid in both cubes.
    """

    mode: str
    scores: Mapping[str, Score]
    conventions: Mapping[str, Any]
    pixels: int
    valid_pixels: int

    @property
    def values(self) -> dict[str, float]:
        """The value of every metric, by name."""
        return {name: score.value for name, score in self.scores.items()}

    @property
    def per_band(self) -> dict[str, FloatArray]:
        """(bands,) scores of the metrics that have them, by name; NaN where undefined."""
        return {
            name: score.per_band
            for name, score in self.scores.items()
            if score.per_band is not None
        }

    def failures(self, checks: tuple[Check, ...]) -> list[str]:
        """Return what is wrong for every check that does not hold; see `parse_checks`."""
        found = (check.failure(self.scores[check.metric].value) for check in checks)
        return [text for text in found if text]

    def to_json(self) -> dict[str, Any]:
        """Return a strict JSON object: a number that is not finite is null with a `<key>_note`."""
        fields: dict[str, Any] = {"mode": self.mode}
        for name, score in self.scores.items():
            key = METRICS[name].key
            fields[key] = score.value if math.isfinite(score.value) else None
            note = score.note or ("" if math.isfinite(score.value) else str(score.value))
            if note:
                fields[f"{key}_note"] = note
        for key, value in self.conventions.items():
            finite = not isinstance(value, float) or math.isfinite(value)
            fields[key] = value if finite else None
            if not finite:
                fields[f"{key}_note"] = "undefined"
        return fields | {"pixels": self.pixels, "valid_pixels": self.valid_pixels}


def evaluate(
    reference: CubeReader,
    prediction: CubeReader,
    config: MetricsConfig | None = None,
    progress: Progress = no_progress,
    observers: Sequence[Observer] = (),
) -> Scores:
    """Score a cube against its reference.

    A value that is a hole (nodata, NaN, infinite) in either cube counts for neither; windows that
    touch a hole are left out of SSIM and UIQI, and SAM takes the bands that are valid in both. A
    band without any valid value is left out of every mean over bands, with a warning.

    Args:
        reference: the truth.
        prediction: a cube of the same shape.
        config: mode, ratio (standard ERGAS; 4 if None) and data range (standard PSNR and SSIM; if
            None, 1 for a reference inside [0, 1], else its largest less its smallest value).
            Mode published uses neither.
        progress: called with rows done and in all; the default data range costs a pass of its own.
        observers: whatever else is to see every block, once and from top to bottom.

    Raises:
        DataError: the shapes differ, no value is valid in both, or a file is damaged.
    """
    config = config or MetricsConfig()
    shape = reference.meta.shape
    if prediction.meta.shape != shape:
        raise DataError(
            f"the reference is {_times(shape)} (rows x cols x bands), the prediction "
            f"{_times(prediction.meta.shape)}",
            "compare cubes of the same grid and bands; convert --window and --bands cut them",
        )
    rows = shape[0]
    standard = config.mode == "standard"
    scan = standard and config.data_range is None
    total = rows * (2 if scan else 1)
    data_range = config.data_range or math.nan
    if scan:
        data_range = _data_range(reference, lambda done: progress(done, total))
    context = Context(shape, data_range, config.ratio or DEFAULT_RATIO)
    recipes = {
        name: metric.modes[config.mode]
        for name, metric in METRICS.items()
        if config.mode in metric.modes
    }
    gathered: dict[str, Accumulator] = {
        text: _resolve(text)(context)
        for text in dict.fromkeys(recipe.accumulator for recipe in recipes.values())
    }
    overlap = max(recipe.overlap_rows for recipe in recipes.values())
    valid_bands = np.zeros(shape[2], bool)
    valid_pixels = 0
    for block in _pair_blocks(reference, prediction, overlap):
        for accumulator in (*gathered.values(), *observers):
            accumulator.update(block)
        valid_bands |= block.valid.any(axis=(0, 1))
        valid_pixels += int(block.valid.any(axis=2).sum())
        progress(total - rows + block.stop, total)
    if not valid_pixels:
        raise DataError(
            f"none of the {shape[0] * shape[1]} pixels is valid in both cubes",
            "check the nodata values: spectralift info",
        )
    if not valid_bands.all():
        warnings.warn(
            f"{int((~valid_bands).sum())} of {shape[2]} bands have no value that is valid in both "
            "cubes; they are left out",
            SpectraliftWarning,
            stacklevel=2,
        )
    scores = {
        name: _resolve(recipe.function)(gathered[recipe.accumulator], context)
        for name, recipe in recipes.items()
    }
    conventions: dict[str, Any] = {"data_range": context.data_range} if standard else {}
    conventions |= {
        "ergas_ratio": context.ratio if standard else ERGAS_RATIO,
        "psnr_values": "data units" if standard else "8-bit counts, 255 x data truncated",
        "ssim_window": "gaussian 11x11, sigma 1.5" if standard else "uniform 11x11, 8-bit counts",
        "uiqi_window": "uniform 8x8" if standard else "uniform 8x8, means for sums",
    }
    for accumulator in gathered.values():
        if isinstance(accumulator, SpectralAngles):
            conventions["sam_pixels"] = accumulator.count
    return Scores(config.mode, scores, conventions, shape[0] * shape[1], valid_pixels)


def per_band_csv(scores: Scores, wavelengths_nm: FloatArray | None) -> str:
    """Return the scores of every band as CSV: band (from 1), wavelength_nm if known, metrics.

    An undefined score is an empty cell, an infinite one `inf`.
    """
    columns = {METRICS[name].key: values for name, values in scores.per_band.items()}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    known = wavelengths_nm is not None
    writer.writerow(["band", *(["wavelength_nm"] if known else []), *columns])
    for band, values in enumerate(zip(*columns.values(), strict=True)):
        cells = [str(band + 1)]
        if wavelengths_nm is not None:
            cells.append(repr(float(wavelengths_nm[band])))
        cells.extend("" if math.isnan(value) else repr(float(value)) for value in values)
        writer.writerow(cells)
    return out.getvalue()


def _pair_blocks(
    reference: CubeReader, prediction: CubeReader, overlap: int
) -> Iterator[PairBlock]:
    """Yield `PairBlock`s from top to bottom, each with up to `overlap` rows above it."""
    metas = (reference.meta, prediction.meta)
    above: tuple[AnyArray, AnyArray] | None = None
    for read in row_blocks(metas[0].rows, min(reference.block_rows, prediction.block_rows)):
        stored = (reference.read(read), prediction.read(read))
        for part in row_blocks(read.stop - read.start, _height(metas[0])):
            fresh = [values[part] for values in stored]
            count = 0 if above is None else len(above[0])
            if above is not None:
                fresh = [np.concatenate(pair) for pair in zip(above, fresh, strict=True)]
            yield PairBlock(fresh[0], fresh[1], *metas, count, read.start + part.stop)
            if overlap:
                above = (fresh[0][-overlap:].copy(), fresh[1][-overlap:].copy())


def _data_range(reference: CubeReader, progress: Callable[[int], None]) -> float:
    """Return 1 if all valid values lie in [0, 1], else their range; NaN for a constant image."""
    meta = reference.meta
    low, high = math.inf, -math.inf
    for rows, stored in reference.blocks():
        for part in row_blocks(len(stored), _height(meta)):
            block = PairBlock(stored[part], stored[part], meta, meta, 0, rows.start + part.stop)
            values, valid = block.units[0], block.valid
            low = min(low, float(values.min(where=valid, initial=math.inf)))
            high = max(high, float(values.max(where=valid, initial=-math.inf)))
        progress(rows.stop)
    if low >= 0 and high <= 1:
        return 1.0
    return high - low if high > low else math.nan


def _height(meta: CubeMeta) -> int:
    return max(1, _BLOCK_VALUES // (meta.cols * meta.bands))


def _resolve(text: str) -> Any:
    module, _, name = text.partition(":")
    return getattr(importlib.import_module(module), name)


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
