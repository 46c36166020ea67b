"""Pictures as data URIs: pixels as PNG, drawings as SVG, the same bytes for the same values."""

from __future__ import annotations

import base64
import io
import warnings
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from spectralift_cli.core.cube import FloatArray
from spectralift_cli.core.pictures.rasters import png_of
from spectralift_cli.core.pictures.style import MAP_COLOURS, new_figure, styled
from spectralift_cli.core.report.parts import Bar, Mark, Picture, Plot

# small, so that the text is still read where a phone shows it 350 pixels wide
PLOT_WIDTH_PX, PLOT_HEIGHT_PX = 480, 300
_BAR_LEVELS = 128
_TICKS = 3
_LABEL_LETTERS = 24
# what else would tell the date and the version
_SVG_METADATA = ("Date", "Creator", "Format", "Type")


def data_uri(data: bytes, kind: str) -> str:
    """Return bytes as a data URI of a MIME type."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def png_uri(rgba: NDArray[np.uint8]) -> str:
    """Return an image (rows, cols, 4) as a data URI."""
    return data_uri(png_of(rgba), "image/png")


def picture(rgba: NDArray[np.uint8], title: str, alt: str, marks: tuple[Mark, ...] = ()) -> Picture:
    """Return colours (rows, cols, 4) as a picture."""
    rows, cols = rgba.shape[:2]
    return Picture(png_uri(rgba), cols, rows, title, alt, marks=marks)


def map_picture(
    values: FloatArray,
    title: str,
    alt: str,
    *,
    limits: tuple[float, float],
    label: str,
    colours: str = MAP_COLOURS,
    marks: tuple[Mark, ...] = (),
) -> Picture:
    """Return values (rows, cols) as a picture with its colour bar, holes transparent.

    Args:
        values: NaN in holes.
        title: stands above it.
        alt: what is to be seen.
        limits: values of the first and last colour; what lies beyond takes that colour.
        label: of the colour bar, with the unit.
        colours: name of a matplotlib colour map.
        marks: drawn on it.
    """
    low, high = limits
    if not low < high:  # a constant map
        low, high = low - 0.5, low + 0.5
    palette = mpl.colormaps[colours]
    known = np.isfinite(values)
    unit = np.clip((np.where(known, values, low) - low) / (high - low), 0, 1)
    rgba = palette(unit, bytes=True)
    rgba[~known] = 0
    strip = palette(np.linspace(0, 1, _BAR_LEVELS)[None, :], bytes=True)
    seen = values[known]
    ends = ("≤ " if seen.size and seen.min() < low else "",
            "≥ " if seen.size and seen.max() > high else "")  # fmt: skip
    ticks = [f"{value:.3g}" for value in np.linspace(low, high, _TICKS)]
    ticks[0], ticks[-1] = ends[0] + ticks[0], ends[1] + ticks[-1]
    bar = Bar(png_uri(strip), ticks, label)
    rows, cols = values.shape
    return Picture(png_uri(rgba), cols, rows, title, alt, bar, marks)


def figure_of(height_px: int = PLOT_HEIGHT_PX) -> tuple[Figure, Any]:
    """Return an empty figure of the page's size and its axes; call it inside `styled`."""
    figure = new_figure(PLOT_WIDTH_PX, height_px)
    return figure, figure.subplots()


def plot(figure: Figure, title: str, alt: str, *, only_lines: bool = True) -> Plot:
    """Return a figure as a drawing; its letters are outlines, so that it needs no font."""
    out = io.BytesIO()
    with (
        styled(),
        mpl.rc_context({"svg.hashsalt": "spectralift", "svg.fonttype": "path"}),
        warnings.catch_warnings(),
    ):
        # a band's name may have letters that the font lacks: they are boxes in the legend
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(out, format="svg", metadata=dict.fromkeys(_SVG_METADATA))
    width, height = (round(float(side) * figure.dpi) for side in figure.get_size_inches())
    uri = data_uri(out.getvalue(), "image/svg+xml")
    return Plot(uri, width, height, title, alt, only_lines)


def label_text(name: str) -> str:
    """Return a name from a file as a label: short, on one line, without matplotlib's markup."""
    plain = "".join(letter for letter in name if letter.isprintable()).strip()
    short = plain if len(plain) <= _LABEL_LETTERS else f"{plain[: _LABEL_LETTERS - 1]}…"
    # `$` opens a formula, and a leading underscore keeps a curve out of the legend
    return short.replace("\\", "/").replace("$", r"\$").lstrip("_") or "unnamed"
