"""The files a stage works on: from a scene, or named one by one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spectralift_cli.core.config import SynthConfig
from spectralift_cli.core.cube import CubeMeta
from spectralift_cli.core.errors import DataError, OptionError
from spectralift_cli.core.placement import Placement, place
from spectralift_cli.core.scene import Scene, is_scene, open_scene
from spectralift_cli.core.sensors.response import (
    Srf,
    check_coverage,
    documented_srf,
    invented_wavelengths,
)
from spectralift_cli.core.sensors.srf import read_srf

if TYPE_CHECKING:
    from spectralift_cli.core.checkpoint import Checkpoint


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


def shares_extent(scene: Scene) -> bool:
    """Tell whether a scene's images show the same ground to the edge, whatever their sizes.

    So they do in the published protocol.
    """
    return scene.recipe.get("protocol") == "published"


def whole_image(lr: CubeMeta, hr: CubeMeta) -> Placement:
    """Return the placement of an LR image that shows exactly the ground of an HR image."""
    scale = hr.rows / lr.rows, hr.cols / lr.cols
    return Placement((lr.rows, lr.cols), (hr.rows, hr.cols), scale)


def scene_placement(scene: Scene, lr: CubeMeta, hr: CubeMeta) -> Placement:
    """Return where a scene's LR pixels lie on the HR image.

    The published protocol lets them share the whole image, whatever its size.

    Raises:
        DataError: the images do not fit each other, see `place`.
    """
    if shares_extent(scene):
        return whole_image(lr, hr)
    return place(lr, hr, sources=(scene.path("lr_hsi"), scene.path("hr_msi")))


def place_model(checkpoint: Checkpoint, msi: CubeMeta, source: object) -> Placement | None:
    """Return where the pixels of the model's LR-HSI are seen on an MSI.

    None for a model that does not hold them, and an image that map coordinates do not place on
    them: such a model serves any scene.

    Args:
        checkpoint: the model.
        msi: metadata of the image.
        source: its file, for messages.

    Raises:
        DataError: the model holds the LR-HSI, and the image cannot show its area, see `place`.
    """
    hsi = checkpoint.hsi
    placed = hsi.transform is not None and msi.transform is not None
    needed = checkpoint.empty_model().needs_position
    if not placed and not needed:
        return None
    try:
        if checkpoint.shares_extent and not placed:
            placement = whole_image(hsi, msi)
        else:
            placement = place(hsi, msi, sources=("the model's LR-HSI", source))
    except DataError as error:
        if not needed:
            return None
        raise DataError(
            f"{source}: cannot show the area of the LR-HSI, whose pixels the model holds as a "
            f"prior: {error.message}",
            f"{error.hint}; a model trained with --model residual-mlp serves any area",
        ) from error
    return placement.shifted(checkpoint.shift_px)
