"""The two images as estimation takes them: values in units, what is valid, and where they lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spectralift_cli.core.cube import BoolArray, FloatArray
from spectralift_cli.core.placement import Placement

IntArray = np.ndarray[tuple[int, ...], np.dtype[np.int64]]

# fewer LR pixels than this say nothing of a kernel, a gain and a shift at once
LEAST_PIXELS = 25
_BLOCKS_A_SIDE = 6
_LEAST_BLOCK_PX = 3


@dataclass(frozen=True, eq=False)
class ImagePair:
    """An LR-HSI and an HR-MSI of the same ground.

    Args:
        hsi: (h, w, B) of the bands in use, in units; holes hold 0.
        hsi_valid: (h, w) pixels with a value in every band.
        msi: (H, W, M) in units; holes hold the band's mean.
        msi_valid: (H, W) pixels with a value in every band.
        placement: of the LR on the HR grid.
        wavelengths_nm: (B,) centres, or None.
    """

    hsi: FloatArray
    hsi_valid: BoolArray
    msi: FloatArray
    msi_valid: BoolArray
    placement: Placement
    wavelengths_nm: FloatArray | None = None

    @property
    def msi_bands(self) -> int:
        """M."""
        return int(self.msi.shape[2])

    def blocks(self) -> IntArray:
        """Return (h, w) the number of the spatial block of each LR pixel.

        At most 6 x 6 blocks, none smaller than 3 pixels a side: neighbours see the same HR pixels,
        so that blocks, not pixels, are what can be drawn or held out independently.
        """
        counts = [max(1, min(_BLOCKS_A_SIDE, n // _LEAST_BLOCK_PX)) for n in self.hsi_valid.shape]
        rows, cols = (
            np.arange(n) * count // n
            for n, count in zip(self.hsi_valid.shape, counts, strict=True)
        )
        numbers: IntArray = rows[:, None] * counts[1] + cols[None, :]
        return numbers
