"""The files a stage works on: from a scene, or named one by one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from spectralift_cli.core.config import SynthConfig
from spectralift_cli.core.cube import CubeMeta
from spectralift_cli.core.errors import DataError, OptionError
from spectralift_cli.core.formats.kernels import read_psf
from spectralift_cli.core.operators.psf import psf_radius_px
from spectralift_cli.core.scene import Scene, is_scene, open_scene
from spectralift_cli.core.sensors.response import (
    Srf,
    check_coverage,
    documented_srf,
    invented_wavelengths,
)
from spectralift_cli.core.sensors.srf import read_srf


@dataclass(frozen=True)
class ResponseChoice:
    """How the response between the two images is found.

    Args:
        srf_file: curves or weights; None for a documented sensor.
        num_msi_bands: of the documented sensor (1, 3, 4, 8 or 16); None where a file is given.
        fwhm_factor: a documented band's Gaussian std is (high - low) / factor.
        invented: lay the documented sensor over invented wavelengths, as the published package does.
        drop_uncovered_bands: drop MSI bands that the cube covers less than half.
    """

    srf_file: Path | None = None
    num_msi_bands: int | None = None
    fwhm_factor: float = SynthConfig.fwhm_factor
    invented: bool = False
    drop_uncovered_bands: bool = False


def find_response(choice: ResponseChoice, hsi: CubeMeta, source: object) -> Srf:
    """Return the response over a cube's bands.

    Args:
        choice: where it comes from.
        hsi: metadata of the hyperspectral cube.
        source: its file, for messages.

    Raises:
        OptionError: neither or both of a file and a number of bands are chosen.
        DataError: the response does not fit the cube, or the cube lacks wavelengths.
    """
    if choice.srf_file is not None:
        if choice.num_msi_bands is not None:
            raise OptionError(
                "--srf-file and --num-msi-bands exclude each other",
                "the file says how many bands there are",
            )
        srf = read_srf(choice.srf_file, hsi.wavelengths_nm, hsi.fwhm_nm, hsi.bands)
        return check_coverage(srf, drop=choice.drop_uncovered_bands)
    if choice.num_msi_bands is None:
        raise OptionError(
            "the spectral response of the MSI is not known",
            "give --srf-file FILE, or --num-msi-bands N for a documented sensor",
        )
    if choice.invented:
        wavelengths_nm = invented_wavelengths(choice.num_msi_bands, hsi.bands)
        return documented_srf(choice.num_msi_bands, wavelengths_nm, choice.fwhm_factor)
    if hsi.wavelengths_nm is None:
        raise DataError(
            f"{source}: has no wavelengths, so a sensor's response cannot be laid over its bands",
            "give them with --wavelengths FILE, or the response as weights with --srf-file",
        )
    srf = documented_srf(choice.num_msi_bands, hsi.wavelengths_nm, choice.fwhm_factor)
    return check_coverage(srf, drop=choice.drop_uncovered_bands)


def psf_radius_lr_px(scene: Scene) -> int | None:
    """Return how far the PSF of a scene reaches in LR pixels, at least 1, or None if it has none.

    That is half the side of the square with 99 % of |kernel|, rounded up.
    """
    if not scene.has("psf"):
        return None
    return max(1, math.ceil(psf_radius_px(read_psf(scene.path("psf"))) / scene.ratio))


def sharp_image(path: Path) -> tuple[Path, Scene | None]:
    """Return the HR-MSI that a path stands for: that of a scene, or the file itself."""
    if not is_scene(path):
        return path, None
    scene = open_scene(path)
    return scene.path("hr_msi"), scene


def reference_image(path: Path) -> tuple[Path, Scene | None]:
    """Return the reference that a path stands for: a scene's ground truth, or the file itself."""
    if not is_scene(path):
        return path, None
    scene = open_scene(path)
    return scene.path("gt"), scene
