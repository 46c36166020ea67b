"""A sharp cube, the two images that it stands for, and how these relate."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spectralift_cli.core.cube import FloatArray
from spectralift_cli.core.cubeio import CubeReader
from spectralift_cli.core.identity import identity
from spectralift_cli.core.placement import Placement
from spectralift_cli.core.radiometry import Radiometry
from spectralift_cli.core.refinement.optics import Optical
from spectralift_cli.core.sensors.response import Srf


@dataclass(frozen=True, eq=False)
class Relation:
    """How two images relate, as far as it is known, and the files that say so.

    Args:
        srf: the response between them.
        placement: of the LR grid on the HR grid.
        optical: the blur, as far as it is known.
        radiometry: what brings the HR-MSI into the LR-HSI's units, where they differ.
        files: role -> path, for the provenance.
    """

    srf: Srf
    placement: Placement
    optical: Optical = field(default_factory=Optical)
    radiometry: Radiometry | None = None
    files: Mapping[str, Path] = field(default_factory=dict)

    def with_psf(self, psf: FloatArray, includes_footprint: bool, file: Path) -> Relation:
        """Return the relation with a kernel."""
        return dataclasses.replace(
            self, optical=Optical(psf, includes_footprint), files={**self.files, "psf": file}
        )

    def displaced(self, shift_px: tuple[float, float], radiometry: Radiometry | None) -> Relation:
        """Return the relation with a shift in LR pixels and a radiometry that somebody found."""
        return dataclasses.replace(
            self, placement=self.placement.shifted(shift_px), radiometry=radiometry
        )


@dataclass(frozen=True, eq=False)
class Images:
    """The open images of a refinement with what relates them.

    Args:
        estimate: the sharp cube, on the HR-MSI's grid, in the LR-HSI's units.
        lr_hsi: the blurry hyperspectral image.
        hr_msi: the sharp multispectral image, in the same units but for the relation's radiometry.
        relation: of the two.
    """

    estimate: CubeReader
    lr_hsi: CubeReader
    hr_msi: CubeReader
    relation: Relation

    def identities(self) -> dict[str, Any]:
        """Return what identifies the inputs."""
        cubes = {"cube": self.estimate, "lr_hsi": self.lr_hsi, "hr_msi": self.hr_msi}
        return {
            **{role: identity(*reader.files) for role, reader in cubes.items()},
            **{role: identity(path) for role, path in self.relation.files.items()},
        }
