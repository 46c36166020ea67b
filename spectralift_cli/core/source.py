"""What a spectral inverter is trained on: an LR-HSI with all that is known of its HR-MSI."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from spectralift_cli.core.cubeio import CubeReader
from spectralift_cli.core.levels import SharpImage
from spectralift_cli.core.operators.scaling import Scaling
from spectralift_cli.core.placement import Placement
from spectralift_cli.core.radiometry import Radiometry
from spectralift_cli.core.sensors.response import Srf

if TYPE_CHECKING:  # it brings SciPy along, a second that inference does without
    from spectralift_cli.core.refinement.optics import Optical


@dataclass(frozen=True, eq=False)
class Source:
    """An LR-HSI that takes part in a training, with what is known of its HR-MSI.

    Args:
        lr_hsi: the cube.
        srf: (M, B) weights over its bands.
        scaled: whether its values are in the range [0, 1] already.
        scaled_from: the values of its source, in units, that became 0 and 1; None if not known.
        sharp: the HR-MSI's place and levels, to check its units and bands; None without one.
        hr_msi: the HR-MSI in the LR-HSI's units, of which preset auto learns noise, contrast and
            some pixels (`look_at`); None for nothing.
        psf_radius_lr_px: of the PSF between the images, by which preset auto keeps held-out LR
            pixels apart from the others; None where it is not known.
        inputs: role -> identity of further inputs, for the provenance.
        radiometry: from the HR-MSI to the LR-HSI, which inference applies, or None; like all that
            follow of one image alone.
        shift_px: displacement of the LR-HSI's content in LR pixels, likewise.
        shares_extent: see `Checkpoint`.
        optical: what is known of the blur between the images, for fits through the physics; None
            for nothing.
    """

    lr_hsi: CubeReader
    srf: Srf
    scaled: bool = False
    scaled_from: tuple[float, float] | None = None
    sharp: SharpImage | None = None
    hr_msi: CubeReader | None = None
    psf_radius_lr_px: int | None = None
    inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    radiometry: Radiometry | None = None
    shift_px: tuple[float, float] = (0.0, 0.0)
    shares_extent: bool = False
    optical: Optical | None = None

    @property
    def scaling(self) -> Scaling | None:
        """From units to the network's range; None to choose it from the values."""
        return Scaling() if self.scaled else None

    @property
    def placement(self) -> Placement | None:
        """Of the LR-HSI's content on the HR-MSI, or None."""
        return None if self.sharp is None else self.sharp.placement.shifted(self.shift_px)

    def close(self) -> None:
        """Close both images."""
        self.lr_hsi.close()
        if self.hr_msi is not None:
            self.hr_msi.close()
