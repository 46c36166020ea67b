"""The sections to look at: images, spectra, error maps, curves, PSF, response, training."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from spectralift_cli.core.cube import FloatArray
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.pictures.style import CURVE_COLOURS, draw_curves, draw_map, styled
from spectralift_cli.core.placement import Placement
from spectralift_cli.core.report.context import Context, Spectra
from spectralift_cli.core.report.figures import figure_of, label_text, map_picture, picture, plot
from spectralift_cli.core.report.material import IMAGES, finite
from spectralift_cli.core.report.parts import Gallery, Mark, Part, Picture, Plot, Table, Text
from spectralift_cli.core.report.survey import Composite, Survey, band_centres
from spectralift_cli.core.sensors.response import Srf

# the same colour for an image wherever it is drawn: blue, vermilion, black, and green for the MSI
_COLOURS = {
    "lr_hsi": CURVE_COLOURS[0],
    "result": CURVE_COLOURS[1],
    "gt": CURVE_COLOURS[-1],
    "hr_msi": CURVE_COLOURS[2],
}
_SHORT = {"lr_hsi": "LR-HSI", "hr_msi": "HR-MSI", "result": "result", "gt": "truth"}
_MAP_PERCENT = 99.0
_HISTORY_BYTES = 64 * 2**20
_HISTORY_POINTS = 800
_MOST_LEGEND = 8
_MOST_RESPONSES = 32


def images(context: Context) -> list[Part] | None:
    """Show all images side by side under one stretch."""
    parts: list[Part] = []
    for number, one in enumerate(context.composites):
        if one.key not in context.stretches:
            continue
        stretch = context.stretches[one.key]
        members: list[Picture | Plot] = []
        for role, title in IMAGES.items():
            found = context.surveys.get("lr" if role == "lr_hsi" else "hr")
            channels = found.channels.get(role, {}).get(one.key) if found is not None else None
            if channels is None or found is None:
                continue
            marks = _marks(context, found, role) if number == 0 else ()
            alt = f"{title}: {one.caption}, {channels.shape[0]} x {channels.shape[1]} pixels shown"
            members.append(picture(stretch.rgba(channels), title, alt, marks))
        if members:
            parts.append(Gallery(members, _caption(context, one)))
    return parts or None


def _caption(context: Context, one: Composite) -> str:
    text = f"{one.caption}. One stretch for all, from the 2nd to the 98th percentile of the "
    text += IMAGES[context.stretched_by[one.key]].partition(" (")[0]
    if "hr" in context.surveys and not context.surveys["hr"].lattice.is_all:
        text += f"; {context.surveys['hr'].lattice} shown"
    if one.msi is not None and context.radiometry is not None:
        text += ". The HR-MSI is shown in the LR-HSI's radiometry, by its gain and offset"
    return f"{text}. Holes are transparent."


def _marks(context: Context, found: Survey, role: str) -> tuple[Mark, ...]:
    """Return the chosen points as marks on a picture."""
    lattice = found.lattice
    first = lattice.step // 2
    marks = []
    for at in context.spectra:
        if role == "lr_hsi":
            if at.lr_pixel is None:
                continue
            row, col = at.lr_pixel
        else:
            row, col = at.point.row, at.point.col
        x, y = ((index - first) / lattice.step + 0.5 for index in (col, row))
        marks.append(Mark(at.point.number, x, y))
    return tuple(marks)


def spectra(context: Context) -> list[Part] | None:
    """Draw the spectra of all images at the chosen points."""
    if not context.spectra:
        return None
    if _has_one_band(context):
        return [_values(context)]
    members: list[Picture | Plot] = [_spectrum(context, at) for at in context.spectra]
    words = [
        "The points are marked in the images above; they are chosen from the data. Row and column "
        "on the sharp grid, from 0, stand in brackets."
    ]
    if any(at.lr_pixel is not None for at in context.spectra):
        words.append(
            "The LR-HSI's spectrum is that of the large pixel around the point, so it is blurred."
        )
    if "hr_msi" in context.metas:
        words.append("The MSI's dots lie at the centres of its bands, the bars show their width.")
        if context.radiometry is not None:
            words.append("Its values are brought into the LR-HSI's radiometry.")
    return [Text(" ".join(words)), Gallery(members)]


def _has_one_band(context: Context) -> bool:
    return context.hsi is not None and context.hsi.bands == 1


def _values(context: Context) -> Table:
    """List the values at the chosen points, where one band makes no spectrum."""
    roles = [role for role in IMAGES if any(role in at.values for at in context.spectra)]
    rows = []
    for at in context.spectra:
        held = [", ".join(f"{value:.4g}" for value in at.values.get(role, ())) for role in roles]
        place = f"{at.point.row}, {at.point.col}"
        rows.append((f"{at.point.number}. {at.point.why}", place, *(text or "–" for text in held)))
    header = ("point", "row, column", *(f"{_SHORT[role]}, data units" for role in roles))
    caption = "The points are marked in the images above; they are chosen from the data"
    return Table(rows, header, caption, range(2, len(header)))


def _spectrum(context: Context, at: Spectra) -> Plot:
    point = at.point
    wavelengths_nm = context.wavelengths_nm
    curves = {
        _SHORT[role]: at.values[role] for role in ("lr_hsi", "result", "gt") if role in at.values
    }
    with styled():
        figure, axes = figure_of()
        axes.set_prop_cycle(color=[_COLOURS[r] for r in _COLOURS if _SHORT[r] in curves])
        if curves:
            draw_curves(
                axes, curves, wavelengths_nm, bad_bands=context.bad_bands, label="Value",
                unit="data units",
            )  # fmt: skip
            for line in axes.get_lines():
                if line.get_label() == _SHORT["gt"]:
                    line.set(linewidth=1, linestyle=(0, (4, 2)))
        if "hr_msi" in at.values and context.material.srf is not None:
            _draw_bands(context, axes, context.material.srf, at.values["hr_msi"])
        _legend_below(figure, axes, 4)
    title = f"{point.number}. {point.why} ({point.row}, {point.col})"
    held = ", ".join(_SHORT[role] for role in at.values)
    return plot(figure, title, f"Spectra of {held} at row {point.row}, column {point.col}")


def _draw_bands(context: Context, axes: Any, srf: Srf, values: NDArray[np.float32]) -> None:
    """Draw the MSI's values as dots with bars as wide as the middle 80 % of each response."""
    x = _positions(context, srf.num_hsi_bands)
    order = np.argsort(x, kind="stable")
    shares = np.abs(srf.weights[:, order]).cumsum(axis=1)
    total = shares[:, -1:]
    ends = [
        x[order][np.minimum((shares < part * total).sum(axis=1), x.size - 1)] for part in (0.1, 0.9)
    ]
    centres = band_centres(srf, x)
    errors = np.maximum(np.stack([centres - ends[0], ends[1] - centres]), 0)
    axes.errorbar(
        centres, values, xerr=errors, fmt="o", color=_COLOURS["hr_msi"], markersize=5,
        elinewidth=1.2, label=_SHORT["hr_msi"], zorder=3,
    )  # fmt: skip


def _positions(context: Context, bands: int) -> FloatArray:
    if context.wavelengths_nm is not None:
        return context.wavelengths_nm
    return np.arange(1, bands + 1, dtype=np.float64)


def _legend_below(figure: Figure, axes: Any, columns: int) -> None:
    """Put the legend under the axes, where it hides no curve."""
    inside = axes.get_legend()
    if inside is not None:
        inside.remove()
    handles, names = axes.get_legend_handles_labels()
    if len(names) > 1:
        figure.legend(handles, names, loc="outside lower center", ncols=columns)


def errors(context: Context) -> list[Part] | None:
    """Map the errors against the ground truth."""
    found = context.surveys.get("hr")
    if found is None or found.sam_deg is None or found.rmse is None:
        return None
    members: list[Picture | Plot] = []
    header, columns = ["error of a pixel"], [["mean", "median", "99th percentile", "largest"]]
    for title, values, unit in (
        ("Spectral angle (SAM)", found.sam_deg, "degrees"),
        ("RMSE over bands", found.rmse, "data units"),
    ):
        known = values[np.isfinite(values)]
        if not known.size or (unit == "degrees" and _has_one_band(context)):
            continue
        mean, median, high = known.mean(), np.median(known), np.percentile(known, _MAP_PERCENT)
        label = f"{title}, {unit}"
        alt = (
            f"Map of the {title} of each pixel: mean {mean:.3g}, median {median:.3g}, 99th "
            f"percentile {high:.3g} {unit}"
        )
        marks = _marks(context, found, "result")
        members.append(
            map_picture(values, title, alt, limits=(0.0, float(high)), label=label, marks=marks)
        )
        columns.append([f"{v:.4g}" for v in (mean, median, high, known.max())])
        header.append(f"{title}, {unit}")
    if not members:
        return None
    caption = (
        f"Error of each pixel against the ground truth, {found.lattice}; dark is good. The scale "
        "ends at the 99th percentile."
    )
    rows = list(zip(*columns, strict=True))
    return [Gallery(members, caption), Table(rows, header, numeric=range(1, len(header)))]


def bands(context: Context) -> list[Part] | None:
    """Draw the errors of each band against the ground truth."""
    found = context.surveys.get("hr")
    if found is None or found.band_rmse is None or not np.isfinite(found.band_rmse).any():
        return None
    if _has_one_band(context):
        return None  # the scores say it
    wavelengths_nm, bad = context.wavelengths_nm, context.bad_bands
    members: list[Picture | Plot] = []
    with styled():
        figure, axes = figure_of()
        draw_curves(
            axes, {"RMSE": found.band_rmse}, wavelengths_nm, bad_bands=bad, label="RMSE",
            unit="data units",
        )  # fmt: skip
        axes.set_ylim(bottom=0)
    members.append(plot(figure, "RMSE of each band", _extremes(found.band_rmse, "RMSE")))
    stated = (finite(scores.get("data_range")) for scores in context.material.scores)
    data_range = next((value for value in stated if value), None)
    caption = "Less RMSE is better."
    if data_range is not None:
        with np.errstate(divide="ignore"):
            psnr = 20 * np.log10(data_range / found.band_rmse)
        with styled():
            figure, axes = figure_of()
            draw_curves(
                axes, {"PSNR": psnr}, wavelengths_nm, bad_bands=bad, label="PSNR", unit="dB"
            )
        members.append(plot(figure, "PSNR of each band", _extremes(psnr, "PSNR in dB")))
        caption += f" More PSNR is better; its data range is {data_range:g}."
    if not found.lattice.is_all:
        caption += f" From {found.lattice}."
    return [Gallery(members, caption)]


def _extremes(values: FloatArray, what: str) -> str:
    known = values[np.isfinite(values)]
    if not known.size:
        return f"{what} of each band: undefined"
    return f"{what} of each band: from {known.min():.3g} to {known.max():.3g}"


def operators(context: Context) -> list[Part] | None:
    """Draw the PSF and the spectral response between the two images."""
    members: list[Picture | Plot] = []
    captions = []
    srf = context.material.srf
    if srf is not None:
        members.append(_response(context, srf))
        captions.append(
            "The response says how the MSI's bands are made of the hyperspectral bands; each "
            "one's weights sum to 1."
        )
        if srf.num_msi_bands > _MOST_RESPONSES:
            captions.append(f"Shown: {_MOST_RESPONSES} of {srf.num_msi_bands} bands.")
    if context.material.psf is not None:
        members.append(psf_plot(context.placement, context.material.psf))
        scene = context.material.scene
        effective = scene is not None and scene.psf_includes_footprint
        captions.append(
            "The PSF is that of the LR-HSI on the grid of the MSI, "
            + ("with" if effective else "without")
            + " the footprint of its pixel, which the square shows."
        )
    parts: list[Part] = [Gallery(members, " ".join(captions))] if members else []
    if srf is not None:
        parts.append(_response_table(context, srf))
    return parts or None


def _response_table(context: Context, srf: Srf) -> Table:
    centres = band_centres(srf, _positions(context, srf.num_hsi_bands))
    known = context.wavelengths_nm is not None
    rows = []
    for band, name in enumerate(srf.band_names[:_MOST_RESPONSES]):
        row = [str(band + 1), name[:100], f"{centres[band]:.{0 if known else 1}f}"]
        if srf.coverage is not None:
            row.append(f"{100 * srf.coverage[band]:.0f} %")
        rows.append(row)
    header = ["", "MSI band", "centre (nm)" if known else "centre (HSI band)"]
    if srf.coverage is not None:
        header.append("covered")
    return Table(rows, header, f"Response: {srf.source}", (0, 2, 3))


def _response(context: Context, srf: Srf) -> Plot:
    curves: dict[str, FloatArray] = {}
    for name, weights in zip(srf.band_names[:_MOST_RESPONSES], srf.weights, strict=False):
        label = label_text(name)
        while label in curves:
            label += "'"
        curves[label] = weights
    with styled():
        figure, axes = figure_of()
        draw_curves(
            axes, curves, context.wavelengths_nm, bad_bands=context.bad_bands, label="Weight"
        )
        if len(curves) > _MOST_LEGEND:
            axes.get_legend().remove()
        else:
            _legend_below(figure, axes, 4)
    names = ", ".join(srf.band_names)[:300]
    return plot(figure, "Spectral response", f"Weights of the hyperspectral bands in: {names}")


def psf_plot(placement: Placement | None, kernel: FloatArray, name: str = "PSF") -> Plot:
    """Draw a kernel on the HR grid with the outline of an LR pixel, where that is known."""
    with styled():
        figure, axes = figure_of()
        draw_map(axes, kernel, "Weight")
        if placement is not None:
            down, across = placement.scale
            middle = (len(kernel) - 1) / 2
            corner = (middle - across / 2, middle - down / 2)
            axes.add_patch(
                Rectangle(corner, across, down, fill=False, edgecolor="white", linewidth=1.5)
            )
    size = len(kernel)
    alt = f"Point spread function, {size} x {size} HR pixels, largest weight {kernel.max():.3g}"
    return plot(figure, f"{name}, {size} x {size} HR pixels", alt, only_lines=False)


def training(context: Context) -> list[Part] | None:
    """Draw loss and learning rate of a training that has epochs."""
    path = context.material.history
    if path is None:
        return None
    epochs, rates, losses = _history(context)
    if not epochs.size:
        return None
    members: list[Picture | Plot] = []
    for title, values, label in (
        ("Training loss", losses, "Mean absolute error"),
        ("Learning rate", rates, "Learning rate"),
    ):
        with styled():
            figure, axes = figure_of()
            axes.plot(epochs, values)
            if (values > 0).all():
                axes.set_yscale("log")
            axes.set_xlabel("Epoch")
            axes.set_ylabel(label)
        alt = (
            f"{title} over {epochs[-1]:.0f} epochs: {values[0]:.3g} at first, {values[-1]:.3g} last"
        )
        members.append(plot(figure, title, alt))
    return [Gallery(members, "The loss is in scaled units, on the LR pixels.")]


def _history(context: Context) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return epochs, learning rates and losses, thinned out; empty where there are none."""
    path = context.material.history
    empty = np.zeros(0)
    if path is None:
        return empty, empty, empty
    with path.open("rb") as file:
        data = file.read(_HISTORY_BYTES + 1)
    if len(data) > _HISTORY_BYTES:
        context.material.warn(f"{path}: is too long to draw, over {_HISTORY_BYTES:,} bytes")
        return empty, empty, empty
    head, *lines = data.split(b"\n")
    lines = [line for line in lines if line]
    if not lines:
        return empty, empty, empty
    kept = np.unique(np.linspace(0, len(lines) - 1, _HISTORY_POINTS).round().astype(int))
    try:
        table = np.array([[float(cell) for cell in lines[i].split(b",")] for i in kept])
        if head != b"epoch,lr,loss" or table.shape[1:] != (3,) or not np.isfinite(table).all():
            raise ValueError("its columns are not epoch, lr, loss")
    except ValueError as error:
        raise DataError(
            f"{path}: is no history of a training ({error})", "the run is damaged; make it again"
        ) from error
    return table[:, 0], table[:, 1], table[:, 2]
