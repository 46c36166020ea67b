"""How a coarse sensor sees a sharp image on another grid: blur, then means over its pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spectralift_cli.core.cube import AnyArray, BoolArray, FloatArray
from spectralift_cli.core.operators.blur import Blur
from spectralift_cli.core.placement import MapMean, Placement


@dataclass(frozen=True, eq=False)
class Observation:
    """LR = mean(blur(HR)), linear, with its adjoint.

    Args:
        psf: (k, k), k odd, on the HR grid; used normalised to sum 1.
        placement: of the LR grid on the HR grid.
        includes_footprint: the kernel holds the LR pixel's footprint already (an effective PSF), so
            that LR pixels take the blurred value at their centres instead of the mean over their
            areas.
        boundary: what the blur sees beyond the edges, see `Blur`; `valid` tells which LR pixels
            do not depend on it.
    """

    psf: FloatArray
    placement: Placement
    includes_footprint: bool = False
    boundary: str = "reflect"

    @property
    def mean(self) -> MapMean:
        """The LR pixels."""
        return MapMean(self.placement, "point" if self.includes_footprint else "area")

    def __call__(self, values: AnyArray) -> AnyArray:
        """Return what is seen of (H, W) or (H, W, B): (h, w[, B]); float32 for float32."""
        return self.mean(Blur(self.psf, self.boundary)(values))

    def adjoint(self, values: AnyArray) -> AnyArray:
        """Apply the transpose, (h, w[, B]) to (H, W[, B]); float32 for float32."""
        return Blur(self.psf, self.boundary).adjoint(self.mean.adjoint(values))

    def share_inside(self, valid: BoolArray | None = None) -> FloatArray:
        """Return (h, w) the share of each LR pixel's weight that lies on valid HR pixels, 0 to 1.

        Args:
            valid: (H, W) HR pixels with values; None for all.
        """
        ones = np.ones(self.placement.hr_shape) if valid is None else valid.astype(np.float64)
        seen = self.mean(Blur(np.abs(self.psf), "zero")(ones))
        share: FloatArray = np.clip(seen, 0, 1)
        return share

    def valid(self, valid: BoolArray | None = None, share: float = 0.99) -> BoolArray:
        """Return (h, w) which LR pixels see at least that share of their weight on valid HR pixels."""
        enough: BoolArray = self.share_inside(valid) >= share - 1e-9
        return enough
