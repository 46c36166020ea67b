"""The sections on what other stages found: refine, infer --uncertainty, validate, estimate."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from spectralift_cli.core.cube import FloatArray, to_units
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.estimation.parts import Gain, Psf, Shift
from spectralift_cli.core.formats import open_cube
from spectralift_cli.core.report.agreement import band_curve
from spectralift_cli.core.report.context import Context
from spectralift_cli.core.report.figures import map_picture
from spectralift_cli.core.report.lattice import Lattice
from spectralift_cli.core.report.looks import psf_plot
from spectralift_cli.core.report.material import finite
from spectralift_cli.core.report.parts import Cards, Gallery, Part, Picture, Plot, Table, Text
from spectralift_cli.core.validation.figures import Section

_MAP_PERCENT = 99.0
_MAP_SIZE = 256  # pixels, longest side of a residual's map
_DECISIONS = {
    "keep": "Held-out LR pixels say that the refinement helps, so it was applied.",
    "damp": "The images say that a part of the refinement helps, so it was damped.",
    "drop": "The images say that the refinement does not help, so the result is as the model made "
    "it.",
    "ungated": "The refinement was applied whatever held-out LR pixels say.",
}


def refinement(context: Context) -> list[Part] | None:
    """Say what held-out LR pixels decided on the refinement, and what it changed."""
    found = context.material.run.get("refine")
    verdict = found.get("verdict") if isinstance(found, dict) else None
    if not isinstance(found, dict) or not isinstance(verdict, dict):
        return None
    decision = str(verdict.get("decision"))
    parts: list[Part] = [Text(_DECISIONS.get(decision, f"The decision was {decision[:40]!r}."))]
    numbers = {name: finite(value) for name, value in verdict.items()}
    rows = []
    gain, error = numbers.get("gain"), numbers.get("gain_std")
    if decision != "ungated" and gain is not None and error is not None:
        rows.append(
            ("held-out error", f"{-100 * gain:+.3g} % (standard error {100 * error:.2g} %)")
        )
        pixels, blocks = numbers.get("held_pixels"), numbers.get("blocks")
        if pixels is not None and blocks is not None:
            rows.append(("judged on", f"{pixels:,.0f} LR pixels in {blocks:,.0f} blocks"))
    share = numbers.get("msi_share")
    if share is not None:
        rows.append(("share that the HR-MSI bears out", f"{100 * share:.3g} %"))
    factor = numbers.get("factor")
    if factor is not None:
        rows.append(("share applied", f"{100 * factor:.3g} %"))
    changes = found.get("reprojection")
    for key, name in (("lr", "LR-HSI"), ("msi", "HR-MSI")):
        before, after = (_number_at(changes, when, key) for when in ("before", "after"))
        if before is not None and after is not None:
            rows.append((f"distance to the {name}, per noise", f"{before:.3g}, then {after:.3g}"))
    if rows:
        parts.append(Table(rows, caption="Less error and less distance are better"))
    return parts


def _number_at(value: object, *keys: str) -> float | None:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return finite(value)


def uncertainty(context: Context) -> list[Part] | None:
    """Map the errors that are to be expected."""
    given = context.material.uncertainty
    if given is None:
        return None
    # here: they import torch, which a page without them does not need
    from spectralift_cli.core.uncertainty.write import BANDS

    with given.open() as reader:
        meta = reader.meta
        if meta.bands != len(BANDS):
            raise DataError(
                f"{given.path}: has {meta.bands} bands, an uncertainty has {len(BANDS)}",
                "give what spectralift infer --uncertainty wrote",
            )
        sharp = [context.metas[r] for r in ("result", "hr_msi") if r in context.metas]
        if sharp and sharp[0].shape[:2] != meta.shape[:2]:
            raise DataError(
                f"{given.path}: has {meta.rows} x {meta.cols} pixels, the sharp images "
                f"{sharp[0].rows} x {sharp[0].cols}",
                "give the uncertainty of the same image",
            )
        lattice = Lattice.of(meta.shape[:2], context.config.image_size)
        values = np.concatenate([to_units(b[0], meta) for _, b in lattice.blocks(reader)])
    known = np.isfinite(values).all(axis=2)
    if not known.any():
        return [Text("The uncertainty has no value.")]
    expected, bound = values[..., 0].astype(np.float64), values[..., 2]
    mean = float(expected[known].mean())
    flagged = float((values[..., 3][known] == 1).mean())
    words = [
        f"The error of a pixel (RMSE over bands) is expected to be {mean:.3g} data units on "
        f"average. {100 * flagged:.3g} % of the pixels have a spectrum outside of what was seen in "
        "training, where neither the result nor this number is sure. The numbers are of the result "
        "before any refinement; they hold on average over scenes, not in each."
    ]
    surveyed = context.surveys.get("hr")
    if surveyed is not None and surveyed.rmse is not None:
        both = known & np.isfinite(surveyed.rmse)
        if both.any():
            true, held = surveyed.rmse[both], surveyed.rmse[both] <= bound[both]
            words.append(
                f"Against the ground truth the error is {true.mean():.3g} on average, and "
                f"{100 * held.mean():.3g} % of the pixels stay below the bound that is meant for "
                "95 %."
            )
    high = float(np.percentile(expected[known], _MAP_PERCENT))
    alt = f"Map of the expected RMSE of each pixel: mean {mean:.3g}, 99th percentile {high:.3g}"
    shown = map_picture(
        np.where(known, expected, np.nan), "Expected RMSE", alt, limits=(0.0, high),
        label="Expected RMSE over bands, data units",
    )  # fmt: skip
    caption = f"What is to be expected of each pixel, {lattice}; dark is good."
    return [Text(" ".join(words)), Gallery([shown], caption)]


def validation(context: Context) -> list[Part] | None:
    """List what a validation found, with what each number means."""
    found = context.material.validation
    if found is None:
        return None
    parts: list[Part] = [Text(f"PSF: {found.psf}.")]
    for section in found.sections:
        rows = []
        for figure in section.figures:
            known = math.isfinite(figure.value)
            value = f"{figure.value:.4g} {figure.unit}".strip() if known else "undefined"
            note = f" ({figure.note})" if figure.note else ""
            name = _FIGURES.get(figure.name, figure.name)
            rows.append((name, value, figure.meaning + note))
        header = ("figure", "value", "what it means here")
        parts += [Text(section.about, section.title), Table(rows, header, "", (1,), stacks=True)]
        if section.maps is not None and context.material.validation_folder is not None:
            parts.append(_residual_maps(context, context.material.validation_folder, section))
        curve = section.per_band.get("rmse")
        hsi = context.hsi
        if section.name == "lr_hsi" and curve is not None and hsi and len(curve) == hsi.bands > 1:
            parts.append(Gallery([band_curve(context, curve)]))
    return parts


# how the page calls the figures of a validation
_FIGURES = {
    "psnr_db": "PSNR", "sam_deg": "SAM", "ergas": "ERGAS", "rmse": "RMSE",
    "rmse_share": "RMSE over signal", "largest_bias": "largest bias of a band",
    "d_lambda_khan": "D_lambda (Khan)", "d_lambda_alparone": "D_lambda (Alparone)", "d_s": "D_s",
    "hqnr": "HQNR",
}  # fmt: skip
_RESIDUALS = (
    ("rmse", "RMSE of each pixel", "RMSE over bands, data units"),
    ("sam_deg", "Angle of each pixel", "spectral angle, degrees"),
)


def _residual_maps(context: Context, folder: Path, section: Section) -> Part:
    """Draw the maps that `validate --maps` wrote beside its document."""
    name = str(section.maps)
    shown: list[Picture | Plot] = []
    lattice: Lattice | None = None
    for key, title, label in _RESIDUALS:
        path = folder / name / f"{key}.tif"
        if name != Path(name).name or not path.is_file():
            continue
        try:
            with open_cube(path, allow_2d=True) as reader:
                if reader.meta.bands != 1:
                    raise DataError(f"{path}: has {reader.meta.bands} bands, a map has one", "")
                lattice = Lattice.of(
                    reader.meta.shape[:2], min(context.config.image_size, _MAP_SIZE)
                )
                blocks = [to_units(b[0], reader.meta) for _, b in lattice.blocks(reader)]
        except DataError as error:
            return Text(f"A map of it cannot be shown: {error.message}.")
        values = np.concatenate(blocks)[..., 0].astype(np.float64)
        known = values[np.isfinite(values)]
        if known.size and (key == "rmse" or known.any()):  # one band has no angles
            high = float(np.percentile(known, _MAP_PERCENT))
            alt = f"Map, {section.title}: {label}, mean {known.mean():.3g}"
            shown.append(map_picture(values, title, alt, limits=(0.0, high), label=label))
    if not shown or lattice is None:
        return Text("Its maps are not beside it, or hold no value.")
    return Gallery(shown, f"{section.title}, {lattice}; dark is good. The scales end at the 99th "
                   "percentile.")  # fmt: skip


def estimate(context: Context) -> list[Part] | None:
    """Show shift, gain, offset and PSF between the images, with their errors."""
    found = context.material.estimate
    if found is None:
        return None
    parts = found.findings
    words = (
        f"From {parts.lr_pixels:,} LR pixels in {parts.blocks:,} blocks; ± is one standard error. "
        "A part is used where it lowers the error on held-out blocks."
    )
    cards = []
    if parts.shift is not None:
        cards.append(_shift_card(parts.shift))
    if parts.psf is not None:
        cards.append(_psf_card(parts.psf))
    if parts.srf is not None:
        rows = [
            ("used", _used(parts.srf.used)),
            ("why", _signs(parts.srf.why)),
            ("fit", parts.srf.fit),
        ]
        cards.append(Table(rows, caption="Spectral response"))
    shown: list[Part] = [Text(words)]
    if cards:
        shown.append(Cards(cards))
    if parts.gain is not None:
        words = f"SRF(LR-HSI) = gain x HR-MSI + offset; {_signs(parts.gain.why)}."
        shown += [Text(words, "Gain and offset"), _gain_table(parts.gain, found.band_names)]
    if parts.psf is not None:
        shown.append(
            Gallery(
                [psf_plot(context.placement, parts.psf.kernel, "Effective PSF")],
                "Blur and LR pixel together, on the grid of the MSI; the square is the LR pixel.",
            )
        )
    return shown


def _shift_card(shift: Shift) -> Table:
    rows = [
        (name, f"{shift.shift_px[axis]:.3f} ± {shift.std_px[axis]:.2g} LR pixels")
        for axis, name in enumerate(("down", "to the right"))
    ]
    rows += [("used", _used(shift.used)), ("why", _signs(shift.why)), ("fit", shift.fit)]
    return Table(rows, caption="Shift of the LR-HSI")


def _psf_card(psf: Psf) -> Table:
    down, across = psf.width_px
    rows = [
        ("width (RMS)", f"{down:.3g} x {across:.3g} HR pixels"),
        ("error", f"{100 * psf.relative_error:.2g} % of the kernel, expected"),
        ("used", _used(psf.used)),
        ("why", _signs(psf.why)),
        ("fit", psf.fit),
    ]
    return Table(rows, caption="Effective PSF")


def _gain_table(gain: Gain, names: tuple[str, ...]) -> Table:
    rows = [
        (
            name[:100],
            _with_error(gain.gain, gain.gain_std, band),
            _with_error(gain.offset, gain.offset_std, band),
        )
        for band, name in enumerate(names)
    ]
    return Table(rows, ("MSI band", "gain", "offset, data units"), numeric=(1, 2))


def _with_error(values: FloatArray, std: FloatArray, band: int) -> str:
    return f"{values[band]:.4g} ± {std[band]:.2g}"


def _signs(why: str) -> str:
    """Return a reason as `estimate` writes it, for a terminal, with the page's signs."""
    return why.replace("+-", "±")


def _used(used: bool) -> str:
    return "yes" if used else "no"
