"""Whether a result agrees with both images it was made of, and the indices without a reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from spectralift_cli.core.config import MetricsConfig
from spectralift_cli.core.cube import AnyArray, BoolArray, Progress, no_progress
from spectralift_cli.core.cubeio import CubeReader, SelectedReader, row_blocks
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats import open_cube
from spectralift_cli.core.metrics import noreference
from spectralift_cli.core.metrics.blocks import BandMoments, Context, Observer
from spectralift_cli.core.metrics.evaluate import Scores, evaluate
from spectralift_cli.core.resources import available_memory_bytes
from spectralift_cli.core.validation.figures import Figure, Section
from spectralift_cli.core.validation.inputs import Pair
from spectralift_cli.core.validation.reproject import (
    InUnitsOfMsi,
    bands_with_values,
    degrade,
    write_seen_by_hsi,
    write_seen_by_msi,
)

_MOST_PAIRED_BANDS = 24  # of D_lambda by Alparone, whose work grows with their square
_FINE_SHARE = 0.01  # a residual below this part of the signal is as good as agreement
_LARGE_SHARE = 0.05


def matching_result(result: CubeReader, pair: Pair) -> CubeReader:
    """Return a result with the LR-HSI's bands, checked against both images.

    Raises:
        DataError: it is not on the HR-MSI's grid or has other bands than the LR-HSI.
    """
    ours, sharp = result.meta, pair.hr_msi.meta
    if (ours.rows, ours.cols) != (sharp.rows, sharp.cols):
        raise DataError(
            f"{result.path}: has {ours.rows} x {ours.cols} pixels, the HR-MSI {sharp.rows} x "
            f"{sharp.cols}",
            "give a result on the grid of the HR-MSI, as infer writes it",
        )
    if ours.bands != pair.lr_hsi.meta.bands:
        raise DataError(
            f"{result.path}: has {ours.bands} bands, the LR-HSI {pair.lr_hsi.meta.bands}",
            "give a result with all bands: infer without --drop-bad-bands",
        )
    return result


def agreement(
    result: CubeReader,
    pair: Pair,
    work: Path,
    maps: Path | None = None,
    progress: Progress = no_progress,
) -> list[Section]:
    """Compare a result with the LR-HSI and the HR-MSI, and compute the indices without reference.

    Args:
        result: on the HR-MSI's grid, in the LR-HSI's units and bands.
        pair: both images.
        work: folder for temporary cubes.
        maps: folder to write maps of the residuals into, which exists; None for none.
        progress: called with (done, total).

    Raises:
        DataError: grids or bands differ, or nothing is valid in both.
    """
    result = matching_result(result, pair)
    used = bands_with_values(result) & bands_with_values(pair.lr_hsi)
    if not used.any():
        raise DataError(
            f"{result.path} and {pair.lr_hsi.path} have values in no band in common",
            "check the nodata values: spectralift info",
        )
    total = 2 * pair.lr_hsi.meta.rows + 2 * pair.hr_msi.meta.rows
    lr_seen, msi_seen = work / "seen_by_hsi.npy", work / "seen_by_msi.npy"
    at = 0

    def part(rows: int) -> Progress:
        nonlocal at
        start, at = at, at + rows
        return lambda done, of: progress(start + done * rows // max(1, of), total)

    write_seen_by_hsi(
        result, pair.observation, pair.lr_hsi.meta, used, lr_seen, part(pair.lr_hsi.meta.rows)
    )
    write_seen_by_msi(
        result, pair.srf, pair.hr_msi.meta, used, msi_seen, part(pair.hr_msi.meta.rows)
    )
    sections = []
    with open_cube(lr_seen) as seen, open_cube(msi_seen, allow_2d=True) as msi:
        sections.append(
            _compared(
                "lr_hsi", _of_bands(pair.lr_hsi, used), _of_bands(seen, used), maps,
                part(pair.lr_hsi.meta.rows),
            )
        )  # fmt: skip
        shown = msi if pair.radiometry is None else InUnitsOfMsi(msi, pair.radiometry)
        sections.append(_compared("hr_msi", pair.hr_msi, shown, maps, part(pair.hr_msi.meta.rows)))
        sections.append(_no_reference(result, pair, seen, used))
    return sections


def _of_bands(reader: CubeReader, used: BoolArray) -> CubeReader:
    return reader if used.all() else SelectedReader(reader, np.flatnonzero(used).tolist())


_ONE_BAND = "a single band has no angle."
_TITLES = {
    "lr_hsi": (
        "Result against the LR-HSI",
        "The result blurred with the PSF and averaged over LR pixels, minus the LR-HSI; LR pixels "
        "whose view leaves the sharp image are left out. It tells whether the spectra are kept "
        "where the LR-HSI can tell, not whether the details are true: the LR-HSI interpolated "
        "would do as well.",
    ),
    "hr_msi": (
        "Result against the HR-MSI",
        "The result seen through the spectral response, minus the HR-MSI. It tells whether the "
        "detail is kept where the MSI can tell, not whether the spectra in between are true.",
    ),
}


def _compared(
    name: str, image: CubeReader, seen: CubeReader, maps: Path | None, progress: Progress
) -> Section:
    """Score what an instrument sees of a result against what it saw of the scene."""
    title, about = _TITLES[name]
    context = Context(image.meta.shape, 1.0, 1.0)
    moments = BandMoments(context)
    scores = _scored(image, seen, moments, maps and maps / name, progress)
    count = np.where(moments.count > 0, moments.count, np.nan)
    rmse = np.sqrt(moments.squared / count)
    bias = np.where(moments.count > 0, moments.mean_y - moments.mean_x, np.nan)
    values = float(moments.count.sum())
    whole = float(np.sqrt(moments.squared.sum() / values))
    signal = float(np.sqrt((moments.m2_x + moments.count * moments.mean_x**2).sum() / values))
    share = whole / signal if signal > 0 else np.nan
    one_band = image.meta.bands == 1
    sam = math.nan if one_band else scores.values["sam"]
    worst = int(np.nanargmax(np.abs(bias)))
    what = "LR-HSI" if name == "lr_hsi" else "HR-MSI"
    left = f"{scores.valid_pixels:,} of {scores.pixels:,} pixels"
    figures = [
        Figure(
            "sam_deg", sam, "deg", f"mean angle between spectra over {left}",
            _ONE_BAND if one_band else
            f"spectra of the result, as the {what}'s instrument sees them, are turned by "
            f"{sam:.3g} degrees on average.",
            scores.scores["sam"].note,
        ),
        Figure(
            "rmse", whole, "data units", f"over all bands and {left}", _grade(share, what),
        ),
        Figure(
            "rmse_share", share, "", "RMSE over the root mean square of the image",
            f"the residual is {100 * share:.3g} % of the signal.",
        ),
        Figure(
            "largest_bias", float(bias[worst]), "data units",
            f"mean of result minus {what} of the band where it is largest, band {worst + 1}",
            f"no band is brighter or darker than the {what} by more than this on average.",
        ),
    ]  # fmt: skip
    return Section(
        name, title, about, figures, {"rmse": rmse, "bias": bias}, None if maps is None else name
    )


def _grade(share: float, what: str) -> str:
    if share <= _FINE_SHARE:
        return f"the result agrees with the {what} to within 1 %; noise alone is often as large."
    if share <= _LARGE_SHARE:
        return (
            f"the result departs from the {what} by a few percent: compare it with the image's "
            "noise; refine brings both closer together."
        )
    return (
        f"the result departs from the {what} by more than 5 %: look at the maps; a wrong PSF, "
        "shift or spectral response shows up here."
    )


def _scored(
    image: CubeReader, seen: CubeReader, moments: Observer, maps: Path | None, progress: Progress
) -> Scores:
    config = MetricsConfig()
    if maps is None:
        return evaluate(image, seen, config, progress, observers=[moments])
    from spectralift_cli.core.identity import identity, provenance
    from spectralift_cli.core.pictures.errormaps import ErrorMaps

    made = provenance("validate", image.choices, {"image": identity(*image.files)})
    with ErrorMaps(maps, image.meta, provenance=made) as drawn:
        scores = evaluate(image, seen, config, progress, observers=[moments, drawn])
        drawn.commit(scores, image.meta)
    return scores


_ABOUT_NO_REFERENCE = (
    "These compare relations rather than values and reward consistency only. The LR-HSI "
    "interpolated scores well on D_lambda, since it invents no spectra; any detail copied from the "
    "sharp image scores well on D_s, whether or not it is true; only the product punishes both "
    "ends. Compare results of one pair of images, never numbers of different scenes."
)


def _no_reference(result: CubeReader, pair: Pair, seen: CubeReader, used: BoolArray) -> Section:
    bands = np.flatnonzero(used)
    lr = pair.lr_hsi.read_units()[:, :, bands]
    degraded = seen.read_units()[:, :, bands]
    seen_pixels = np.asarray(np.isfinite(degraded).all(axis=2))
    lr = np.where(seen_pixels[:, :, None], lr, np.float32(np.nan))
    chosen = bands[_evenly(len(bands), _MOST_PAIRED_BANDS)]
    told = "all bands" if len(chosen) == len(bands) else f"{len(chosen)} evenly spaced bands"
    khan = _tried(lambda: noreference.spectral_distortion_khan(degraded, lr))
    room = _room(result, pair, len(chosen))
    if room:
        alparone: tuple[float, str] = (math.nan, room)
        spatial: tuple[float, str] = (math.nan, room)
    else:
        blocks = row_blocks(result.meta.rows, result.block_rows)
        fused = np.concatenate([result.read_units(rows)[:, :, chosen] for rows in blocks])
        picked = np.searchsorted(bands, chosen)
        alparone = _tried(lambda: noreference.spectral_distortion(fused, lr[:, :, picked]))
        spatial = _tried(lambda: _spatial(fused, lr[:, :, picked], pair))
    hqnr = noreference.hybrid_quality(khan[0], spatial[0])
    note = khan[1] or spatial[1]
    figures = [
        Figure(
            "d_lambda_khan", khan[0], "", "Khan et al. 2009: 1 - Q2n of the result, blurred and "
            "averaged, with the LR-HSI; blocks of 32 x 32; 0 is best",
            "how far spectra moved where the LR-HSI can tell; 0.05 and more is a lot.", khan[1],
        ),
        Figure(
            "d_lambda_alparone", alparone[0], "", "Alparone et al. 2008: mean change of Q between "
            f"every two of {told}; Gaussian windows of 11 x 11; 0 is best",
            "how far bands relate to each other otherwise than in the LR-HSI; sharper detail alone "
            "raises it.", alparone[1],
        ),
        Figure(
            "d_s", spatial[0], "", "Alparone et al. 2008: mean change of Q with the most alike MSI "
            f"band, over {told}, the MSI blurred and averaged at low resolution; 0 is best",
            "how far bands resemble the sharp image more or less than they do at low resolution.",
            spatial[1],
        ),
        Figure(
            "hqnr", hqnr, "", "(1 - D_lambda of Khan)(1 - D_s); 1 is best",
            "both at once; a high value is no proof of a good image, a low one is a reason to "
            "look.", note,
        ),
    ]  # fmt: skip
    return Section("no_reference", "Indices without a reference", _ABOUT_NO_REFERENCE, figures)


def _spatial(fused: AnyArray, lr: AnyArray, pair: Pair) -> float:
    sharp = pair.hr_msi.read_units()
    sharp_lr = degrade(sharp, pair.observation)
    pairing = noreference.pair_by_correlation(lr, sharp_lr)
    return noreference.spatial_distortion(fused, lr, sharp, sharp_lr, pairing)


def _evenly(count: int, most: int) -> list[int]:
    if count <= most:
        return list(range(count))
    return [round(at) for at in np.linspace(0, count - 1, most).tolist()]


def _room(result: CubeReader, pair: Pair, bands: int) -> str:
    """Return why the full-resolution indices cannot be computed, or nothing."""
    pixels = result.meta.rows * result.meta.cols
    needed = pixels * (4 * bands + 3 * pair.hr_msi.meta.bands) * 8
    there = available_memory_bytes()
    if needed <= there:
        return ""
    return f"it takes {needed / 1e6:,.0f} MB of memory, {there / 1e6:,.0f} MB are free"


def _tried(function: Callable[[], float]) -> tuple[float, str]:
    """Return an index, or NaN with the reason where the images define none."""
    try:
        return function(), ""
    except DataError as error:
        return math.nan, error.message
