"""The picture of a response: each band's curve over wavelength, above the bands of a cube."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spectralift_cli.core.cube import CubeMeta, FloatArray
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.sensors.response import band_spacing_nm

# Okabe and Ito (2008): told apart with every kind of colour vision; dashes tell the rest
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":", "-.")
_CUBE_COLOUR = "#8C8C8C"
_STRIP = (-0.10, 0.06)  # below the curves: bottom and height, in units of the maximum
# without what would differ from run to run: time, versions, random identifiers
_METADATA: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
# labels of neighbouring bands closer than this share of the axis are put on different heights
_LABEL_SHARE = 0.055


def check_picture_name(output: Path) -> str:
    """Return the format that a picture's ending names.

    Raises:
        DataError: none that is drawn.
    """
    ending = output.suffix.lower()
    if ending not in _METADATA:
        raise DataError(
            f"{output}: the ending does not name a picture that can be drawn",
            f"use one of {', '.join(_METADATA)}",
        )
    return ending


def response_picture(
    title: str,
    lines: Sequence[tuple[str, FloatArray, FloatArray]],
    hsi: CubeMeta | None,
    ending: str,
) -> bytes:
    """Return a picture of a response, the same bytes for the same response.

    Args:
        title: above the picture.
        lines: name, (K,) wavelengths in nm and (K,) responses of each band; drawn relative to their
            maximum.
        hsi: metadata of a cube whose bands are drawn below, with gaps at those flagged as bad, or
            None.
        ending: .png, .svg or .pdf.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {**matplotlib.rcParamsDefault, "svg.hashsalt": "spectralift", "pdf.fonttype": 42}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(9, 4), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        seen = [_seen_range(nm, response) for _, nm, response in lines]
        low, high = min(s[0] for s in seen), max(s[1] for s in seen)
        spans = np.zeros((0, 2)) if hsi is None else band_spans(hsi)
        if spans.size:
            low, high = min(low, spans[:, 0].min()), max(high, spans[:, 1].max())
            _draw_cube(axes, spans)
        margin = 0.02 * (high - low)
        axes.set_xlim(low - margin, high + margin)
        _draw_lines(axes, lines, high - low)
        axes.set_ylim(_STRIP[0] - 0.03, 1.24)
        ticks = {0.0: "0", 0.25: "0.25", 0.5: "0.5", 0.75: "0.75", 1.0: "1"}
        if spans.size:
            ticks[_STRIP[0] + _STRIP[1] / 2] = "cube"
        axes.set_yticks(list(ticks), list(ticks.values()))
        axes.set_xlabel("wavelength (nm)")
        axes.set_ylabel("relative response")
        axes.set_title(title, fontsize=10, loc="left")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        out = io.BytesIO()
        figure.savefig(out, format=ending.lstrip("."), metadata=_METADATA[ending])
        return out.getvalue()


def band_spans(hsi: CubeMeta) -> FloatArray:
    """Return (N, 2) wavelengths from and to of a cube's bands that are not flagged as bad, in nm.

    A band reaches half its spacing to both sides, half its FWHM where it has no neighbour.
    """
    centres = np.zeros(0) if hsi.wavelengths_nm is None else hsi.wavelengths_nm
    reach = band_spacing_nm(centres) / 2
    if hsi.fwhm_nm is not None:
        reach = np.where(reach > 0, reach, hsi.fwhm_nm / 2)
    good = np.ones(centres.size, np.bool_) if hsi.bad_bands is None else ~hsi.bad_bands
    return np.stack([centres - reach, centres + reach], axis=1)[good]


def _seen_range(nm: FloatArray, response: FloatArray) -> tuple[float, float]:
    """Return where a response is at least a hundredth of its maximum: far tails are cut off."""
    inside = np.flatnonzero(response >= 0.01 * response.max())
    return float(nm[inside[0]]), float(nm[inside[-1]])


def joined(spans: FloatArray) -> FloatArray:
    """Return spans (N, 2) in ascending order, those joined that lie less than half a band apart.

    Spacings differ a little from band to band; what is drawn as a gap shall be a missing band.
    """
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    found = [list(spans[0])]
    for low, high in spans[1:].tolist():
        if low - found[-1][1] < (high - low) / 2:
            found[-1][1] = max(found[-1][1], high)
        else:
            found.append([low, high])
    return np.array(found)


def _draw_cube(axes: Any, spans: FloatArray) -> None:
    strips = [(start, stop - start) for start, stop in joined(spans).tolist()]
    axes.broken_barh(strips, _STRIP, facecolor=_CUBE_COLOUR, linewidth=0, zorder=1)


def _draw_lines(
    axes: Any, lines: Sequence[tuple[str, FloatArray, FloatArray]], width_nm: float
) -> None:
    heights: list[float] = [-np.inf] * 3  # where the last label of each height stands
    peaks = [float(nm[np.flatnonzero(r >= 0.5 * r.max())].mean()) for _, nm, r in lines]
    for place in np.argsort(peaks, kind="stable"):
        name, nm, response = lines[place]
        colour = _COLOURS[place % len(_COLOURS)]
        dash = _DASHES[place // len(_COLOURS) % len(_DASHES)]
        relative = response / response.max()
        axes.plot(nm, relative, dash, color=colour, linewidth=1.4, zorder=3)
        axes.fill_between(nm, relative, color=colour, alpha=0.10, linewidth=0, zorder=2)
        level = next(
            (i for i, last in enumerate(heights) if peaks[place] - last >= _LABEL_SHARE * width_nm),
            int(np.argmin(heights)),
        )
        heights[level] = peaks[place]
        axes.text(
            peaks[place], 1.03 + 0.07 * level, name, color=colour, fontsize=7, ha="center",
            va="bottom",
        )  # fmt: skip
