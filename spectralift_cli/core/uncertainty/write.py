"""Write the uncertainty of a sharp cube: four bands on the HR-MSI's grid."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spectralift_cli.core.checkpoint import Checkpoint
from spectralift_cli.core.cube import AnyArray, CubeMeta
from spectralift_cli.core.cubeio import CubeReader, row_blocks
from spectralift_cli.core.devices import one_thread_each
from spectralift_cli.core.errors import DataError, SpectraliftWarning
from spectralift_cli.core.formats import create_cube
from spectralift_cli.core.given import ON_PROCESSOR, Execution
from spectralift_cli.core.identity import identity, provenance
from spectralift_cli.core.pairs import place_model
from spectralift_cli.core.placement import Placement
from spectralift_cli.core.uncertainty.calibration import Calibration
from spectralift_cli.core.uncertainty.spectra import SharpSpectra
from spectralift_cli.core.validation.reproject import weights_over

BANDS = (
    "expected RMSE over bands", "RMSE not exceeded by 68 %", "RMSE not exceeded by 95 %",
    "outside of what was seen in training",
)  # fmt: skip
_BLOCK_PIXELS = 2**15
_RATIO_TOLERANCE = 0.1


@dataclass(frozen=True)
class UncertaintyResult:
    """What was written.

    Args:
        files: the main one first.
        flagged: pixels whose spectrum lies outside of what was seen in training.
        pixels: with values.
        mean_expected: mean of the first band, in data units; NaN without a pixel.
    """

    files: tuple[Path, ...]
    flagged: int
    pixels: int
    mean_expected: float

    def __str__(self) -> str:
        return (
            f"expected RMSE {self.mean_expected:.4g} data units on average; {self.flagged:,} "
            f"of {self.pixels:,} pixels are unlike what was seen in training"
        )


def calibration_of(checkpoint: Checkpoint, source: object) -> Calibration:
    """Return a checkpoint's calibration.

    Raises:
        DataError: it was trained without.
    """
    if checkpoint.calibration is None:
        raise DataError(
            f"{source}: holds no calibration of the uncertainty",
            "train the model again with --uncertainty",
        )
    return checkpoint.calibration


def write_uncertainty(
    checkpoint: Checkpoint,
    hr_msi: CubeReader,
    output: Path,
    *,
    source: object = "the model",
    execution: Execution = ON_PROCESSOR,
    overwrite: bool = False,
) -> UncertaintyResult:
    """Write how wrong each pixel of a sharp cube is to be expected.

    Bands, float32, in data units: the expected RMSE over bands, what it stays below with 68 % and
    with 95 %, and 1 where the pixel's MSI spectrum lies outside of what was seen in training, else
    0. Holes of the MSI are NaN. The spectra are those of `infer` before clipping and rounding, the
    errors those against spectra without noise. The quantiles hold on average over scenes.

    Args:
        checkpoint: of a training with --uncertainty.
        hr_msi: the MSI, in the units of the LR-HSI and with the response's bands.
        output: where; the ending chooses the format.
        source: the checkpoint's file, for messages.
        execution: device and threads; its progress is called as progress(rows done, rows).
        overwrite: replace an existing output.

    Raises:
        DataError: the checkpoint holds no calibration, or the MSI does not fit the model.
        OutputExistsError: the output exists and `overwrite` is false.
    """
    calibration = calibration_of(checkpoint, source)
    msi = hr_msi.meta
    placement = place_model(checkpoint, msi, hr_msi.path)
    _check_ratio(calibration, checkpoint, msi, placement)
    meta = CubeMeta(
        shape=(msi.rows, msi.cols, len(BANDS)), dtype=np.dtype(np.float32), nodata=math.nan,
        crs=msi.crs, transform=msi.transform, band_names=BANDS,
        provenance=provenance(
            "infer --uncertainty", dict(hr_msi.choices),
            {"model": checkpoint.identity(), "hr_msi": identity(*hr_msi.files)},
            earlier=checkpoint.provenance,
        ),
    )  # fmt: skip
    work = _Pixels(checkpoint, calibration, placement, execution)
    flagged, pixels, total = 0, 0, 0.0
    with create_cube(output, meta, overwrite=overwrite) as writer, one_thread_each():
        for rows in row_blocks(msi.rows, max(1, _BLOCK_PIXELS // msi.cols)):
            out = work(hr_msi.read_units(rows), rows)
            writer.write(rows, out)
            valid = np.isfinite(out[:, :, 0])
            pixels += int(valid.sum())
            flagged += int((out[:, :, 3] == 1).sum())
            total += float(out[:, :, 0].sum(where=valid, dtype=np.float64))
            execution.progress(rows.stop, msi.rows)
        files = writer.commit()
    return UncertaintyResult(files, flagged, pixels, total / pixels if pixels else math.nan)


def _check_ratio(
    calibration: Calibration, checkpoint: Checkpoint, msi: CubeMeta, placement: Placement | None
) -> None:
    if placement is not None:
        ratio = math.sqrt(math.prod(placement.scale))
    else:
        ratio = math.sqrt(msi.rows * msi.cols / (checkpoint.hsi.rows * checkpoint.hsi.cols))
    if abs(ratio / calibration.ratio - 1) > _RATIO_TOLERANCE:
        warnings.warn(
            f"the uncertainty was calibrated for a ratio of {calibration.ratio:.3g}, this MSI "
            f"seems to have {ratio:.3g}: its quantiles hold for the former",
            SpectraliftWarning,
            stacklevel=3,
        )


class _Pixels:
    """Rows of MSI units to rows of the four bands."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        calibration: Calibration,
        placement: Placement | None,
        execution: Execution,
    ) -> None:
        self._spectra = SharpSpectra(checkpoint, placement, execution)
        self._scaling, self._calibration = checkpoint.scaling, calibration
        self._srf = weights_over(checkpoint.srf, checkpoint.used_bands)

    def __call__(self, units: AnyArray, rows: slice) -> AnyArray:
        n, cols, bands = units.shape
        out = np.full((n * cols, len(BANDS)), np.nan, np.float32)
        pixels = units.reshape(-1, bands)
        valid = np.asarray(np.isfinite(pixels).all(axis=1))
        if valid.any():
            row, col = np.divmod(np.flatnonzero(valid), cols)
            x, estimate = self._spectra(pixels[valid], rows.start + row, col)
            found = self._calibration.expect(x, estimate, self._srf)
            found[:, :3] *= self._scaling.hi - self._scaling.lo
            out[valid] = found
        return out.reshape(n, cols, -1)
