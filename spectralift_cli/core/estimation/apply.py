"""What `train` and `infer` take from an estimate: response, radiometry and shift."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spectralift_cli.core.cube import CubeMeta
from spectralift_cli.core.errors import DataError, SpectraliftWarning
from spectralift_cli.core.estimation.result import Estimate, read_estimate
from spectralift_cli.core.sensors.response import Srf

if TYPE_CHECKING:
    from spectralift_cli.core.checkpoint import Checkpoint

# a response that differs by more than rounding in the estimate's file
_SAME_WEIGHTS = 1e-6


def check_estimate(found: Estimate, hsi: CubeMeta, srf: Srf | None, source: Path) -> None:
    """Refuse an estimate of other images.

    Args:
        found: the estimate.
        hsi: metadata of the LR-HSI.
        srf: the response that is used, or None if it is the estimate's.
        source: the estimate's file, for messages.

    Raises:
        DataError: another number of bands, with both numbers.
    """
    if found.hsi_bands != hsi.bands:
        raise DataError(
            f"{source}: was made from an LR-HSI of {found.hsi_bands} bands, this one has "
            f"{hsi.bands}",
            "estimate from the same images: spectralift estimate",
        )
    if srf is not None and len(found.band_names) != srf.num_msi_bands:
        raise DataError(
            f"{source}: was made from an MSI of {len(found.band_names)} bands, the response has "
            f"{srf.num_msi_bands}",
            "estimate from the same images: spectralift estimate",
        )


def applied(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """Return a model that applies another estimate's radiometry and shift at inference.

    Raises:
        DataError: the file is no estimate, or one of images with other bands.
    """
    found = read_estimate(path)
    check_estimate(found, checkpoint.hsi, checkpoint.srf, path)
    srf = found.srf
    if srf is not None and not np.allclose(
        srf.weights, checkpoint.srf.weights, rtol=0, atol=_SAME_WEIGHTS
    ):
        warnings.warn(
            f"{path} has a response of its own, the model was trained with another "
            f"({checkpoint.srf.source}): train --estimate takes both into account",
            SpectraliftWarning,
            stacklevel=2,
        )
    return dataclasses.replace(checkpoint, radiometry=found.radiometry, shift_px=found.shift_px)
