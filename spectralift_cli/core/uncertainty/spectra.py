"""The spectra that a model makes of an HR-MSI's pixels, scaled, wherever these lie."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from spectralift_cli.core.checkpoint import Checkpoint
from spectralift_cli.core.cube import AnyArray
from spectralift_cli.core.cubeio import CubeReader
from spectralift_cli.core.devices import resolve_device
from spectralift_cli.core.given import Execution
from spectralift_cli.core.inference import predict
from spectralift_cli.core.placement import Placement
from spectralift_cli.core.uncertainty.reference import FloatPixels

_SAMPLE = 2**14  # HR pixels, of which means are taken

Indices = NDArray[np.intp]


class SharpSpectra:
    """Pixels of an HR-MSI in units to scaled spectra, theirs and the model's.

    Args:
        checkpoint: the model.
        placement: of its LR-HSI on the MSI's grid; None where the model needs no position.
        execution: device and threads of the network.
    """

    def __init__(
        self, checkpoint: Checkpoint, placement: Placement | None, execution: Execution
    ) -> None:
        self._checkpoint = checkpoint
        self._model = checkpoint.model()
        self._device, self._threads = resolve_device(execution.device), execution.threads
        self._at: tuple[AnyArray, AnyArray] | None = None
        if self._model.needs_position and placement is not None:
            rows, cols = placement.lr_positions()
            h, w = placement.lr_shape
            self._at = (rows / h).astype(np.float32), (cols / w).astype(np.float32)

    def __call__(
        self, units: AnyArray, rows: Indices, cols: Indices
    ) -> tuple[FloatPixels, FloatPixels]:
        """Return (n, M) and (n, B), scaled, of valid pixels (n, M) at these rows and columns."""
        checkpoint = self._checkpoint
        if checkpoint.radiometry is not None:
            units = checkpoint.radiometry.apply(units)
        x = checkpoint.scaling.apply(units).astype(np.float32)
        given = x
        if self._at is not None:
            given = np.hstack([x, np.stack([self._at[0][rows], self._at[1][cols]], axis=1)])
        return x, predict(self._model, given, device=self._device, threads=self._threads)


def sample(hr_msi: CubeReader, spectra: SharpSpectra) -> tuple[FloatPixels, FloatPixels]:
    """Return the spectra, (n, M) and (n, B), of some 16,000 valid pixels on a regular lattice."""
    meta = hr_msi.meta
    step = max(1, math.ceil(math.sqrt(meta.rows * meta.cols / _SAMPLE)))
    cols = np.arange(min(step // 2, meta.cols - 1), meta.cols, step)
    found: list[tuple[AnyArray, Indices, Indices]] = []
    for row in range(min(step // 2, meta.rows - 1), meta.rows, step):
        units = hr_msi.read_units(slice(row, row + 1))[0, cols]
        valid = np.isfinite(units).all(axis=1)
        found.append((units[valid], np.full(int(valid.sum()), row), cols[valid]))
    values, at_row, at_col = (np.concatenate(part) for part in zip(*found, strict=True))
    return spectra(values, at_row, at_col)
