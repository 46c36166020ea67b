"""The quality metrics, as a table, and the checks (`--fail-under psnr=30`) that name them.

A row, an accumulator and a function add a metric. Both cubes pass by in blocks of rows: the
accumulator sees each block once, and the function turns what it gathered into a score. Rows that
need the same sums name the same accumulator, which then runs once. This module imports only the
standard library, so that help and completion may read the table.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from spectralift_cli.core.errors import OptionError

Direction = Literal["higher", "lower"]


@dataclass(frozen=True)
class Recipe:
    """How a metric is computed in one mode.

    Args:
        accumulator: "module:class" of an `Accumulator` that gathers sums over blocks of rows.
        function: "module:function", called with the accumulator and the context; returns a `Score`.
        overlap_rows: rows above a block that the accumulator must see again, one less than its
            window is high.
    """

    accumulator: str
    function: str
    overlap_rows: int = 0


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    Args:
        key: its name in JSON and CSV, which carries the unit.
        help: one line with the formula's name and its conventions.
        unit: of the value; "data" for the reference's own unit, "" for none.
        better: which values are better.
        modes: a recipe for each mode that has the metric.
    """

    key: str
    help: str
    unit: str
    better: Direction
    modes: Mapping[str, Recipe]


_BLOCKS = "spectralift_cli.core.metrics.blocks"
_STANDARD = "spectralift_cli.core.metrics.standard"
_PUBLISHED = "spectralift_cli.core.metrics.published"
_MOMENTS = f"{_BLOCKS}:BandMoments"
_ANGLES = f"{_BLOCKS}:SpectralAngles"

METRICS: dict[str, Metric] = {
    "psnr": Metric(
        "psnr_db", "peak signal to noise ratio over all values", "dB", "higher",
        {
            "standard": Recipe(_MOMENTS, f"{_STANDARD}:psnr"),
            "published": Recipe(f"{_PUBLISHED}:QuantisedErrors", f"{_PUBLISHED}:psnr"),
        },
    ),
    "mpsnr": Metric(
        "mpsnr_db", "PSNR of each band, mean over bands", "dB", "higher",
        {"standard": Recipe(_MOMENTS, f"{_STANDARD}:mpsnr")},
    ),
    "ssim": Metric(
        "ssim", "structural similarity, mean over bands", "", "higher",
        {
            "standard": Recipe(f"{_STANDARD}:GaussianSsim", f"{_BLOCKS}:mean_of_windows", 10),
            "published": Recipe(f"{_PUBLISHED}:QuantisedSsim", f"{_BLOCKS}:mean_of_windows", 10),
        },
    ),
    "uiqi": Metric(
        "uiqi", "universal image quality index Q, mean over bands", "", "higher",
        {
            "standard": Recipe(f"{_STANDARD}:Uiqi", f"{_BLOCKS}:mean_of_windows", 7),
            "published": Recipe(f"{_PUBLISHED}:SewarUiqi", f"{_BLOCKS}:mean_of_windows", 7),
        },
    ),
    "ergas": Metric(
        "ergas", "relative dimensionless global error", "", "lower",
        {
            "standard": Recipe(_MOMENTS, f"{_STANDARD}:ergas"),
            "published": Recipe(_MOMENTS, f"{_PUBLISHED}:ergas"),
        },
    ),
    "sam": Metric(
        "sam_deg", "angle between spectra, mean over pixels", "deg", "lower",
        {
            "standard": Recipe(_ANGLES, f"{_STANDARD}:sam"),
            "published": Recipe(_ANGLES, f"{_STANDARD}:sam"),
        },
    ),
    "sam_bands": Metric(
        "sam_bands_rad", "angle between band images, mean over bands (sewar's `sam`)", "rad", "lower",
        {"published": Recipe(_MOMENTS, f"{_PUBLISHED}:sam_bands")},
    ),
    "cc": Metric(
        "cc", "Pearson correlation of each band, mean over bands", "", "higher",
        {"standard": Recipe(_MOMENTS, f"{_STANDARD}:cc")},
    ),
    "rmse": Metric(
        "rmse", "root mean squared error over all values", "data", "lower",
        {
            "standard": Recipe(_MOMENTS, f"{_STANDARD}:rmse"),
            "published": Recipe(_MOMENTS, f"{_STANDARD}:rmse"),
        },
    ),
    "mae": Metric(
        "mae", "mean absolute error over all values", "data", "lower",
        {"standard": Recipe(_MOMENTS, f"{_STANDARD}:mae")},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One bound that a score must keep.

    Args:
        metric: its name in the table.
        bound: a finite number in the metric's unit.
    """

    metric: str
    bound: float

    def failure(self, value: float) -> str:
        """Return what is wrong with a score, or "" if it keeps the bound; NaN never does."""
        row = METRICS[self.metric]
        higher = row.better == "higher"
        if (value >= self.bound) if higher else (value <= self.bound):
            return ""
        found = "undefined" if math.isnan(value) else f"{value:.6g}"
        return f"{row.key} is {found}, {'below' if higher else 'above'} {self.bound:g}"


def parse_checks(
    texts: Sequence[str], option: Literal["under", "over"], mode: str = "standard"
) -> tuple[Check, ...]:
    """Return the checks of `--fail-under` or `--fail-over`.

    Args:
        texts: "metric=bound", the metric by its name (psnr) or key (psnr_db).
        option: "under" for metrics of which more is better, "over" for the others.
        mode: the mode whose metrics can be checked.

    Raises:
        OptionError: not of that form, an unknown metric (with its nearest neighbour), one that the
            mode does not have, or the wrong direction.
    """
    return tuple(_parse_check(text, option, mode) for text in texts)


def _parse_check(text: str, option: str, mode: str) -> Check:
    flag = f"--fail-{option}"
    word, equals, number = text.partition("=")
    word = word.strip().lower()
    try:
        bound = float(number)
    except ValueError:
        bound = math.nan
    if not equals or not math.isfinite(bound):
        raise OptionError(
            f"{flag} {text}: not a metric and a number", f"write it like {flag} {_EXAMPLE[option]}"
        )
    names = {row.key: name for name, row in METRICS.items()} | {name: name for name in METRICS}
    if word not in names:
        close = difflib.get_close_matches(word, names, n=1)
        known = f"known metrics: {', '.join(METRICS)}"
        raise OptionError(
            f"{flag} {text}: there is no metric {word!r}",
            f"did you mean {names[close[0]]}?" if close else known,
        )
    name = names[word]
    if mode not in METRICS[name].modes:
        raise OptionError(
            f"{flag} {text}: mode {mode} has no {name}",
            f"it has {', '.join(n for n, row in METRICS.items() if mode in row.modes)}",
        )
    better = METRICS[name].better
    if better != {"under": "higher", "over": "lower"}[option]:
        other = {"under": "over", "over": "under"}[option]
        raise OptionError(
            f"{flag} {text}: a {better} {name} is better, so it cannot fail by being "
            f"{'low' if option == 'under' else 'high'}",
            f"use --fail-{other} {text}",
        )
    return Check(name, bound)


_EXAMPLE = {"under": "psnr=30", "over": "sam=3"}
