"""The pixels of one LR-HSI as pairs to fit to: what the MSI's instrument would see of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from spectralift_cli.core.cube import BoolArray, FloatArray
from spectralift_cli.core.cubeio import CubeReader, row_blocks
from spectralift_cli.core.devices import one_thread_each
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.levels import SharpImage, check_levels, levels_of
from spectralift_cli.core.operators.scaling import Scaling
from spectralift_cli.core.placement import Placement
from spectralift_cli.core.radiometry import Radiometry
from spectralift_cli.core.resources import available_memory_bytes
from spectralift_cli.core.sensors.response import Srf, over_used_bands

FloatPixels = NDArray[np.float32]
_BLOCK_PIXELS = 2**16


@dataclass(frozen=True, eq=False)
class TrainingData:
    """The pixels a spectral inverter is fitted to.

    Args:
        lr_msi: (N, M) float32, scaled.
        lr_hsi: (N, used bands) float32, scaled.
        used_bands: (B,) which bands of the LR-HSI take part: those neither flagged as bad nor made
            of holes alone.
        scaling: from units.
        pixels: of the whole LR-HSI, those with holes too.
        shape: (rows, cols) of the LR-HSI.
        valid: (rows * cols,) which of its pixels these are.
        weights: (M, used bands) the response over the used bands.
    """

    lr_msi: FloatPixels
    lr_hsi: FloatPixels
    used_bands: BoolArray
    scaling: Scaling
    pixels: int
    shape: tuple[int, int]
    valid: BoolArray
    weights: NDArray[np.float64]

    def levels(self, placement: Placement | None = None) -> FloatArray | None:
        """Return the (M, 5) percentiles of the LR-MSI in units, or None where it has no pixel.

        Args:
            placement: on the HR-MSI, to look at their overlap alone; None for all.
        """
        chosen = np.ones(self.shape, bool)
        if placement is not None:
            chosen[...] = False
            chosen[placement.overlap_lr()] = True
        return levels_of(self.scaling.undo(self.lr_msi[chosen.ravel()[self.valid]]))


def load_pairs(lr_hsi: CubeReader, srf: Srf, *, scaling: Scaling | None = None) -> TrainingData:
    """Read an LR-HSI and make the pairs (LR-MSI, LR-HSI) of its valid pixels.

    LR-MSI = LR-HSI @ SRF.T over the used bands, the SRF's rows divided by their sum over these.

    Args:
        lr_hsi: the cube.
        srf: (M, B) weights over its bands.
        scaling: from units; None chooses it from the valid values (`Scaling.for_data`).

    Raises:
        DataError: the SRF has another number of bands; fewer than 2 pixels are valid; an MSI band
            lies on unused bands by more than half; or the cube does not fit into memory.
    """
    meta = lr_hsi.meta
    if srf.num_hsi_bands != meta.bands:
        raise DataError(
            f"{lr_hsi.path}: has {meta.bands} bands but the SRF has weights for "
            f"{srf.num_hsi_bands}",
            "fold the SRF onto this cube: spectralift srf build",
        )
    _check_memory(lr_hsi)
    units = np.empty((meta.rows * meta.cols, meta.bands), np.float32)  # (pixels, B)
    for rows in row_blocks(meta.rows, lr_hsi.block_rows):
        part = slice(rows.start * meta.cols, rows.stop * meta.cols)
        units[part] = lr_hsi.read_units(rows).reshape(-1, meta.bands)
    bad = np.zeros(meta.bands, bool) if meta.bad_bands is None else meta.bad_bands
    finite = np.zeros(meta.bands, np.int64)  # valid pixels of each band
    for part in row_blocks(len(units), _BLOCK_PIXELS):
        finite += np.isfinite(units[part]).sum(axis=0)
    used = ~bad & (finite > 0)
    keep = np.zeros(len(units), bool)
    for part in row_blocks(len(units) if used.any() else 0, _BLOCK_PIXELS):
        keep[part] = np.isfinite(units[part][:, used]).all(axis=1)
    if keep.sum() < 2:
        raise DataError(*_too_few(lr_hsi, used, bad, finite, int(keep.sum())))
    if not (used.all() and keep.all()):
        units = units[np.ix_(keep, used)]  # (N, used)
    weights = over_used_bands(srf, used)
    if scaling is None:
        scaling = Scaling.for_data(
            lambda: (units[part] for part in row_blocks(len(units), _BLOCK_PIXELS)),
            floating=meta.dtype.kind == "f",
        )
    lr_msi = np.empty((len(units), srf.num_msi_bands), np.float32)
    # one thread: a product that is split over threads may sum in another order
    with one_thread_each():
        for part in row_blocks(len(units), _BLOCK_PIXELS):
            units[part] = scaling.apply(units[part])
            seen = torch.from_numpy(units[part]).double() @ torch.from_numpy(weights.T.copy())
            lr_msi[part] = seen.numpy()
    return TrainingData(
        lr_msi, units, used, scaling, meta.rows * meta.cols, (meta.rows, meta.cols), keep, weights
    )


def check_units(
    data: TrainingData, srf: Srf, sharp: SharpImage | None, radiometry: Radiometry | None = None
) -> None:
    """Refuse an HR-MSI in other units than the LR-HSI, see `check_levels`.

    Args:
        data: of the LR-HSI.
        srf: the response between the two.
        sharp: what is known of the HR-MSI, or None.
        radiometry: what will be applied to the HR-MSI, or None.

    Raises:
        DataError: its values are 30 times or more away from the LR-HSI's.
    """
    if sharp is not None:
        check_levels(
            data.levels(sharp.placement), sharp.levels, srf.band_names, sharp.source, sharp.scale,
            radiometry,
        )  # fmt: skip


def _check_memory(lr_hsi: CubeReader) -> None:
    rows, cols, bands = lr_hsi.meta.shape
    needed, there = 3 * rows * cols * bands * 4, available_memory_bytes()  # read, chosen, fitted
    if needed > there:
        raise DataError(
            f"{lr_hsi.path}: training on {rows} x {cols} pixels of {bands} bands takes "
            f"{needed / 1e6:,.0f} MB of memory, {there / 1e6:,.0f} MB are free",
            f"draw a part of its pixels, like --max-pixels {max(2, there // (24 * bands))}, or train on "
            "a window of it: spectralift convert --window",
        )


def _too_few(
    lr_hsi: CubeReader, used: BoolArray, bad: BoolArray, finite: NDArray[np.int64], valid: int
) -> tuple[str, str]:
    pixels = lr_hsi.meta.rows * lr_hsi.meta.cols
    message = (
        f"{lr_hsi.path}: {valid} of {pixels:,} LR pixels have values in all "
        f"{int(used.sum())} used bands, training needs at least 2"
    )
    if pixels < 2:
        return message, "use a larger LR-HSI, or a smaller --downsample-ratio"
    if not used.any():
        return message, f"{int(bad.sum())} of {bad.size} bands are flagged as bad, the others empty"
    worst = int(np.argmin(np.where(used, finite, pixels + 1)))
    return message, (
        f"band {worst + 1} has values in {int(finite[worst]):,} pixels: flag it as bad or leave it "
        "out (convert --bands), and check the nodata value"
    )
