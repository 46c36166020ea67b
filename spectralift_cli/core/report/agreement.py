"""The section on the result against both inputs, seen as their instruments saw the scene."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spectralift_cli.core.cube import BoolArray, FloatArray, no_progress, to_units
from spectralift_cli.core.cubeio import CubeReader, SelectedReader
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats import open_cube
from spectralift_cli.core.observation import Observation
from spectralift_cli.core.operators.blur import BOUNDARIES
from spectralift_cli.core.pictures.style import draw_curves, styled
from spectralift_cli.core.report.context import Context
from spectralift_cli.core.report.figures import figure_of, map_picture, plot
from spectralift_cli.core.report.lattice import Lattice
from spectralift_cli.core.report.parts import Gallery, Part, Picture, Plot, Table, Text
from spectralift_cli.core.report.survey import survey
from spectralift_cli.core.validation.reproject import (
    InUnitsOfMsi,
    bands_with_values,
    write_seen_by_hsi,
    write_seen_by_msi,
)

# of the result; reading and blurring more takes longer than a page is worth waiting for
MOST_VALUES = 50_000_000
# longest side of a map: it tells where the residual is, and a page of noise stays under 5 MB
_MAP_SIZE = 256
_MAP_PERCENT = 99.0
_NAMES = {"lr_hsi": "LR-HSI", "hr_msi": "HR-MSI"}


@dataclass(frozen=True, eq=False)
class Residual:
    """What an instrument would see of the result, minus what it saw of the scene.

    Args:
        lattice: of the image's pixels that were compared.
        rmse: (r, c) root mean squared residual over bands, in the image's units, NaN where it
            cannot be told.
        band_rmse: (bands,) over the lattice, NaN for bands without values.
        sam_deg: mean angle between spectra; NaN for one band.
        share: RMSE over the root mean square of the image.
    """

    lattice: Lattice
    rmse: FloatArray
    band_rmse: FloatArray
    sam_deg: float
    share: float

    @property
    def whole(self) -> float:
        """RMSE over bands and pixels."""
        return _whole(self.rmse)


def _whole(rmse: FloatArray) -> float:
    known = rmse[np.isfinite(rmse)]
    return float(np.sqrt(np.square(known).mean())) if known.size else math.nan


def residuals(context: Context) -> tuple[dict[str, Residual], list[str]]:
    """Compare the result with the inputs that it can be compared with.

    Returns:
        role -> residual, and why there is none of an input.

    Raises:
        DataError: a file is damaged.
    """
    material, found = context.material, {}
    notes: list[str] = []
    images = material.images
    with tempfile.TemporaryDirectory(prefix="spectralift-") as folder:
        work = Path(folder)
        with images["result"].open() as result:
            used = bands_with_values(result)
            if "lr_hsi" in images:
                with images["lr_hsi"].open() as lr:
                    used &= bands_with_values(lr)
            if not used.any():
                return {}, ["The result and the LR-HSI have values in no band in common."]
            if "lr_hsi" in images:
                seen = _observation(context)
                if isinstance(seen, str):
                    notes.append(f"It is not compared with the LR-HSI: {seen}.")
                else:
                    with images["lr_hsi"].open() as lr:
                        path = work / "lr.npy"
                        write_seen_by_hsi(result, seen, lr.meta, used, path)
                        with open_cube(path) as made:
                            found["lr_hsi"] = _compared(context, lr, made, used)
            if "hr_msi" in images:
                with images["hr_msi"].open() as msi:
                    try:
                        found["hr_msi"] = _against_msi(context, result, msi, used, work)
                    except DataError as error:
                        notes.append(f"It is not compared with the HR-MSI: {error.message}.")
    return found, notes


def _observation(context: Context) -> Observation | str:
    """Return how the LR-HSI's instrument sees the sharp grid, or why that is not known."""
    material, placement = context.material, context.placement
    if placement is None:
        return "it is not known where its pixels lie on the sharp grid"
    estimate, checkpoint, scene = material.estimate, material.checkpoint, material.scene
    if estimate is not None:
        placement = placement.shifted(estimate.shift_px)
    elif checkpoint is not None:
        placement = placement.shifted(checkpoint.shift_px)
    if material.psf is not None:
        if scene is None or not scene.has("psf"):
            return Observation(material.psf, placement)
        boundary = str(scene.recipe.get("boundary", "reflect"))
        if boundary not in BOUNDARIES:
            return f"the scene's recipe names the boundary {boundary[:40]!r}, which is none"
        return Observation(material.psf, placement, scene.psf_includes_footprint, boundary)
    if estimate is not None and estimate.effective_psf is not None:
        return Observation(estimate.effective_psf, placement, includes_footprint=True)
    return "its PSF is not known; report --estimate takes one that spectralift estimate found"


def _against_msi(
    context: Context, result: CubeReader, msi: CubeReader, used: BoolArray, work: Path
) -> Residual:
    estimate, radiometry = context.material.estimate, context.radiometry
    srf = (None if estimate is None else estimate.srf) or context.material.srf
    if srf is None:
        raise DataError("there is no spectral response", "give one")
    path = work / "msi.npy"
    write_seen_by_msi(result, srf, msi.meta, used, path)
    with open_cube(path) as made:
        seen = made if radiometry is None else InUnitsOfMsi(made, radiometry)
        return _compared(context, msi, seen, np.ones(msi.meta.bands, bool))


def _compared(context: Context, image: CubeReader, seen: CubeReader, used: BoolArray) -> Residual:
    bands = np.flatnonzero(used).tolist()
    image, seen = SelectedReader(image, bands), SelectedReader(seen, bands)
    lattice = Lattice.of(image.meta.shape[:2], min(context.config.image_size, _MAP_SIZE))
    pair = survey({"gt": image, "result": seen}, [], lattice, no_progress)
    if pair.rmse is None or pair.sam_deg is None or pair.band_rmse is None:
        raise ValueError("a survey of both images compares them")
    known = np.isfinite(pair.rmse)
    power, count = 0.0, 0
    for part, (block,) in lattice.blocks(image):
        values = to_units(block, image.meta).astype(np.float64)[known[part]]
        values = values[np.isfinite(values)]
        power, count = power + float(np.square(values).sum()), count + values.size
    band_rmse = np.full(used.size, np.nan)
    band_rmse[used] = pair.band_rmse
    angles = pair.sam_deg[np.isfinite(pair.sam_deg)]
    sam_deg = float(angles.mean()) if angles.size and len(bands) > 1 else math.nan
    share = _whole(pair.rmse) / math.sqrt(power / count) if power > 0 else math.nan
    return Residual(lattice, pair.rmse, band_rmse, sam_deg, share)


def agreement(context: Context) -> list[Part] | None:
    """Show how far the result is from both inputs where they can tell."""
    metas = context.metas
    if "result" not in metas or not (_NAMES.keys() & metas.keys()):
        return None
    rows, cols, bands = metas["result"].shape
    large = rows * cols * bands > MOST_VALUES
    # a validation shows it, of every pixel; what an estimate changes is worth another look
    if _is_validated(context) and (large or context.material.estimate is None):
        return None
    if large:
        return [
            Text(
                f"Not computed: the result has {rows * cols * bands:,} values, a page compares up "
                f"to {MOST_VALUES:,}. spectralift validate --result compares any number."
            )
        ]
    found, notes = residuals(context)
    shown = {role: one for role, one in found.items() if np.isfinite(one.rmse).any()}
    notes += [
        f"It is not compared with the {_NAMES[role]}: no pixel is whole in both."
        for role in found
        if role not in shown
    ]
    parts: list[Part] = [Text(" ".join([*_sentences(shown), *notes]))]
    if shown:
        parts += [_maps(shown), _table(shown)]
    if "lr_hsi" in shown:
        parts.append(Gallery([band_curve(context, shown["lr_hsi"].band_rmse)]))
    return parts


def _is_validated(context: Context) -> bool:
    """Tell whether a validation compares the result with the inputs."""
    found = context.material.validation
    return found is not None and any(section.name in _NAMES for section in found.sections)


def _sentences(shown: Mapping[str, Residual]) -> list[str]:
    words = []
    if "lr_hsi" in shown:
        words.append(
            f"Blurred and averaged to large pixels, the result departs from the LR-HSI by "
            f"{_percent(shown['lr_hsi'].share)} of its signal."
        )
    if "hr_msi" in shown:
        words.append(
            "Seen through the spectral response, it departs from the HR-MSI by "
            f"{_percent(shown['hr_msi'].share)} of its signal."
        )
    if words:
        words.append(
            "Noise in the inputs is part of this; what stands out in the maps beyond it is a "
            "mismatch. Agreement does not prove that details between the inputs are true."
        )
    return words


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %" if np.isfinite(share) else "an undefined part"


def _maps(shown: Mapping[str, Residual]) -> Gallery:
    members: list[Picture | Plot] = []
    for role, one in shown.items():
        high = float(np.percentile(one.rmse[np.isfinite(one.rmse)], _MAP_PERCENT))
        title = f"Result against the {_NAMES[role]}"
        alt = f"Map of the residual of each {_NAMES[role]} pixel: RMSE {one.whole:.3g} data units"
        members.append(
            map_picture(
                one.rmse, title, alt, limits=(0.0, high), label="RMSE over bands, data units"
            )
        )
    lattices = "; ".join(f"{_NAMES[role]}: {one.lattice}" for role, one in shown.items())
    caption = f"Residual of each pixel; {lattices}. The scales end at the 99th percentile."
    if "lr_hsi" in shown:
        caption += " LR pixels whose view leaves the sharp image are left out (transparent)."
    return Gallery(members, caption)


def _table(shown: Mapping[str, Residual]) -> Table:
    rows = []
    for role, one in shown.items():
        pixels = int(np.isfinite(one.rmse).sum())
        angle = f"{one.sam_deg:.4g}" if np.isfinite(one.sam_deg) else "–"
        rows.append((_NAMES[role], f"{one.whole:.4g}", _percent(one.share), angle, f"{pixels:,}"))
    header = ("against", "RMSE, data units", "of its signal", "SAM, degrees", "pixels")
    return Table(rows, header, numeric=(1, 2, 3, 4))


def band_curve(context: Context, rmse: FloatArray) -> Plot:
    """Draw the residual of each band (B,) against the LR-HSI, NaN where there is none."""
    with styled():
        figure, axes = figure_of()
        draw_curves(
            axes, {"RMSE": rmse}, context.wavelengths_nm, bad_bands=context.bad_bands,
            label="RMSE", unit="data units",
        )  # fmt: skip
        axes.set_ylim(bottom=0)
    known = rmse[np.isfinite(rmse)]
    alt = "RMSE of each band against the LR-HSI"
    if known.size:
        alt += f": from {known.min():.3g} to {known.max():.3g}"
    return plot(figure, "RMSE of each band against the LR-HSI", alt)
