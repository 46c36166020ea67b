"""One look for every figure, and the same bytes for the same figure.

    with styled():
        figure = new_figure(900, 600)
        axes = figure.subplots()
        draw_curves(axes, {"result": rmse}, wavelengths_nm, bad_bands=bad, label="RMSE", unit="1")
        save_figure(figure, path)

Figures are made without pyplot, which keeps every figure alive, and drawn by Agg. matplotlib's
settings are its own defaults with ours on top, whatever the user's matplotlibrc says; the files
carry no date and no version. Colours tell apart for the colour-blind: the curves' are Okabe and
Ito's (Color Universal Design, 2008), the maps' are cividis (Nunez et al., PLoS ONE 13(7), 2018).
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.ticker import MaxNLocator

from spectralift_cli.core.cube import AnyArray, BoolArray, FloatArray
from spectralift_cli.core.outputs import write_bytes

DPI = 100
# Okabe and Ito's palette without its yellow, which is faint on white
CURVE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MAP_COLOURS = "cividis"
HOLE_COLOUR = "#d9d9d9"  # none of cividis' colours

# fewer bands are those of a multispectral instrument: far apart by design, not by a gap
_CONTIGUOUS_BANDS = 20
# a step this many times the usual one is a gap: of two detectors, or of bands that were taken out
_GAP_STEPS = 3.0

# Any: the stubs of some versions list the keys as literals
_SETTINGS: Any = {
    "figure.dpi": DPI, "savefig.dpi": DPI, "figure.facecolor": "white", "axes.facecolor": "white",
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, so it is the same everywhere
    "font.size": 10, "axes.titlesize": 11, "axes.labelsize": 10, "legend.fontsize": 9,
    "text.usetex": False, "axes.unicode_minus": True, "axes.formatter.use_locale": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": "#e6e6e6", "grid.linewidth": 0.8, "lines.linewidth": 1.4, "lines.markersize": 4,
    "axes.prop_cycle": cycler(color=CURVE_COLOURS), "image.cmap": MAP_COLOURS,
    "image.interpolation": "nearest", "legend.frameon": False, "figure.constrained_layout.use": True,
}  # fmt: skip

_SETTINGS_LOCK = threading.RLock()


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Draw in the house style: everything from `new_figure` to `save_figure` belongs inside.

    matplotlib's settings are the process's, so one thread draws at a time.
    """
    with _SETTINGS_LOCK, mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        yield


@styled()
def new_figure(width_px: int, height_px: int) -> Figure:
    """Return an empty figure of a size in pixels, its parts laid out without overlaps."""
    figure = Figure(figsize=(width_px / DPI, height_px / DPI), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


@styled()
def png_bytes(figure: Figure) -> bytes:
    """Return a figure as a PNG file, without date and version."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


def save_figure(figure: Figure, path: Path, *, overwrite: bool = False) -> Path:
    """Write a figure as a PNG that appears whole or not at all; errors as for `write_bytes`."""
    write_bytes(path, png_bytes(figure), overwrite=overwrite)
    return path


def with_unit(label: str, unit: str) -> str:
    """Return the text of an axis: `RMSE (deg)`, or the label alone of what has no unit."""
    return f"{label} ({unit})" if unit else label


@styled()
def draw_curves(
    axes: Any,
    curves: Mapping[str, AnyArray],
    wavelengths_nm: FloatArray | None = None,
    *,
    bad_bands: BoolArray | None = None,
    label: str = "",
    unit: str = "",
) -> None:
    """Draw values of every band over wavelength, or over the band's number where there is none.

    A line is broken at bad bands, at values that are not finite, where the wavelength steps back
    (detectors overlap) and where a step is over three times the usual one (a gap between detectors,
    or bands that were taken out); a band alone between two gaps is a dot. Bands of a multispectral
    image (under 20) are far apart by design: they are joined, with a dot each.

    Args:
        axes: matplotlib's, to draw on.
        curves: name for the legend -> (bands,) values; a single curve has no legend.
        wavelengths_nm: (bands,) or None.
        bad_bands: (bands,) True where a band is flagged, or None; shaded.
        label: what the values are.
        unit: their unit, or "".
    """
    bands = len(next(iter(curves.values())))
    x = np.arange(1, bands + 1, dtype=np.float64) if wavelengths_nm is None else wavelengths_nm
    bad = np.zeros(bands, bool) if bad_bands is None else np.asarray(bad_bands, bool)
    breaks = line_breaks(x)
    for name, values in curves.items():
        shown = np.where(bad, np.nan, np.asarray(values, dtype=np.float64))
        shown[~np.isfinite(shown)] = np.nan
        alone = _alone(shown, breaks) if bands >= _CONTIGUOUS_BANDS else np.isfinite(shown)
        # NaN between two points lifts the pen
        (line,) = axes.plot(
            np.insert(x, breaks, np.nan), np.insert(shown, breaks, np.nan), label=name
        )
        axes.plot(x[alone], shown[alone], ".", color=line.get_color(), markersize=5)
    for first, last in _runs(bad):
        axes.axvspan(*_extent(x, first, last), color=HOLE_COLOUR, alpha=0.6, linewidth=0)
    axes.set_xlabel("Band" if wavelengths_nm is None else "Wavelength (nm)")
    if wavelengths_nm is None:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(with_unit(label, unit))
    axes.margins(x=0.02)
    if len(curves) > 1:
        axes.legend()


def line_breaks(x: FloatArray) -> AnyArray:
    """Return the indices i for which no line joins the bands i - 1 and i; see `draw_curves`."""
    if len(x) < 2:
        return np.zeros(0, np.intp)
    steps = np.diff(x)
    apart = steps <= 0
    forward = steps[steps > 0]
    if len(x) >= _CONTIGUOUS_BANDS and forward.size:
        apart |= steps > _GAP_STEPS * np.median(forward)
    return np.flatnonzero(apart) + 1


def _alone(values: FloatArray, breaks: AnyArray) -> BoolArray:
    """Tell which values no line reaches: those with neither neighbour, or a break before each."""
    known = np.isfinite(values)
    joined = known[:-1] & known[1:]
    joined[breaks - 1] = False
    alone: BoolArray = known & ~np.append(False, joined) & ~np.append(joined, False)
    return alone


def _runs(flags: BoolArray) -> Iterator[tuple[int, int]]:
    """Yield (first, last) of every run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    for first, stop in zip(edges[::2], edges[1::2], strict=True):
        yield int(first), int(stop) - 1


def _extent(x: FloatArray, first: int, last: int) -> tuple[float, float]:
    """Return from where to where bands first..last reach: half a usual step beyond their centres."""
    half = float(np.median(np.abs(np.diff(x)))) / 2 if len(x) > 1 else 0.5
    ends = x[first : last + 1]
    return float(ends.min()) - half, float(ends.max()) + half


@styled()
def draw_map(
    axes: Any,
    values: AnyArray,
    label: str = "",
    unit: str = "",
    limits: tuple[float, float] | None = None,
    *,
    colours: str = MAP_COLOURS,
    colour_bar: bool = True,
) -> Any:
    """Draw a map of values by colour; holes (NaN) are light grey.

    Args:
        axes: matplotlib's, to draw on.
        values: (rows, cols).
        label: what the values are; stands at the colour bar.
        unit: their unit, or "".
        limits: (low, high) values of the first and last colour, the same for maps that are to be
            compared; what lies beyond takes the end's colour and the bar ends in an arrow there.
            None for those of the values.
        colours: name of a matplotlib colour map.
        colour_bar: draw one beside this map; for several maps with the same limits pass False, and
            then call `draw_colour_bar`.

    Returns:
        The image, for `draw_colour_bar`.
    """
    known = values[np.isfinite(values)]
    low, high = limits or ((float(known.min()), float(known.max())) if known.size else (0.0, 1.0))
    if not low < high:  # a constant map
        low, high = low - 0.5, low + 0.5
    palette = mpl.colormaps[colours].with_extremes(bad=HOLE_COLOUR)
    shown = np.ma.masked_invalid(values)
    image = axes.imshow(shown, cmap=palette, vmin=low, vmax=high, interpolation="nearest")
    axes.set_axis_off()
    if colour_bar:
        draw_colour_bar(image, [axes], label, unit)
    return image


@styled()
def draw_colour_bar(image: Any, axes: Sequence[Any], label: str = "", unit: str = "") -> Any:
    """Draw one colour bar beside the axes whose maps share their limits; return it.

    It ends in an arrow where a value of any of the maps lies beyond.
    """
    low, high = image.get_clim()
    maps = [np.ma.compressed(shown.get_array()) for ax in axes for shown in ax.get_images()]
    below = any(values.size and values.min() < low for values in maps)
    above = any(values.size and values.max() > high for values in maps)
    extend = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[(below, above)]
    bar = axes[0].figure.colorbar(image, ax=list(axes), extend=extend, shrink=0.85, pad=0.02)
    bar.set_label(with_unit(label, unit))
    bar.outline.set_visible(False)
    return bar
