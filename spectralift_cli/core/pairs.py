"""The files a stage works on: from a scene, or named one by one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spectralift_cli.core.config import SynthConfig
from spectralift_cli.core.cube import CubeMeta
from spectralift_cli.core.errors import DataError, OptionError
from spectralift_cli.core.placement import Placement, place
from spectralift_cli.core.scene import Scene, is_scene, open_scene
from spectralift_cli.core.sensors import SENSORS, find_sensor
from spectralift_cli.core.sensors.bands import sensor_bands
from spectralift_cli.core.sensors.curve import (
    FROM_METADATA,
    FROM_OPTION,
    Curve,
    fold_curves,
    gaussian,
    parse_msi_bands,
)
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
    """How the response between the two images is found; at most one of the first four is given.

    Args:
        srf_file: curves or weights.
        sensor: `NAME` or `NAME:BAND,BAND,...` of a built-in sensor; see `find_sensor`.
        msi_bands: `centre:fwhm,...` in nm, a Gaussian a band.
        num_msi_bands: of the documented sensor (1, 3, 4, 8 or 16).
        fwhm_factor: a documented band's Gaussian std is (high - low) / factor.
        invented: lay the documented sensor over invented wavelengths, as the published package does.
        drop_uncovered_bands: drop MSI bands that the cube covers less than half.
    """

    srf_file: Path | None = None
    num_msi_bands: int | None = None
    fwhm_factor: float = SynthConfig.fwhm_factor
    invented: bool = False
    drop_uncovered_bands: bool = False
    sensor: str | None = None
    msi_bands: str | None = None

    @property
    def given(self) -> tuple[str, ...]:
        """The options that say where the response comes from, as the command line writes them."""
        names = ("srf_file", "sensor", "msi_bands", "num_msi_bands")
        return tuple(
            "--" + name.replace("_", "-") for name in names if getattr(self, name) is not None
        )


def find_response(
    choice: ResponseChoice,
    hsi: CubeMeta,
    source: object,
    msi: CubeMeta | None = None,
    msi_source: object = "the MSI",
) -> Srf:
    """Return the response over a cube's bands.

    With nothing chosen it is made from the MSI's own wavelengths and FWHM.

    Args:
        choice: where it comes from.
        hsi: metadata of the hyperspectral cube. Bands flagged as bad take no part in a response
            that is folded.
        source: its file, for messages.
        msi: metadata of the multispectral image, which tells which of a sensor's bands it has, or
            None.
        msi_source: its file, for messages.

    Raises:
        OptionError: several of a file, a sensor, a list and a number of bands are chosen; or none,
            and the MSI does not tell its wavelengths and widths.
        DataError: the response does not fit the cube or the MSI, or the cube lacks wavelengths.
    """
    if len(choice.given) > 1:
        raise OptionError(
            f"{' and '.join(choice.given)} exclude each other",
            "each of them alone says what the MSI sees",
        )
    if choice.invented and choice.num_msi_bands is None:
        raise OptionError(
            "invented wavelengths are for the documented sensors only", "give --num-msi-bands"
        )
    drop = choice.drop_uncovered_bands
    if choice.srf_file is not None:
        srf = read_srf(
            choice.srf_file, hsi.wavelengths_nm, hsi.fwhm_nm, hsi.bands, bad_bands=hsi.bad_bands
        )
        return check_coverage(srf, drop=drop)
    if choice.num_msi_bands is None:
        curves, stamp = find_curves(choice, msi, msi_source)
        return check_coverage(lay_over(curves, stamp, hsi, source), drop=drop)
    if choice.invented:
        wavelengths_nm = invented_wavelengths(choice.num_msi_bands, hsi.bands)
        return documented_srf(choice.num_msi_bands, wavelengths_nm, choice.fwhm_factor)
    if hsi.wavelengths_nm is None:
        raise _no_wavelengths(source)
    srf = documented_srf(choice.num_msi_bands, hsi.wavelengths_nm, choice.fwhm_factor)
    return check_coverage(srf, drop=drop)


def find_curves(
    choice: ResponseChoice, msi: CubeMeta | None = None, msi_source: object = "the MSI"
) -> tuple[tuple[Curve, ...], str]:
    """Return the responses of a sensor, of a list of bands or of an MSI's metadata, and their stamp.

    Raises:
        OptionError: nothing is chosen and the MSI does not tell its wavelengths and widths.
        DataError: no such sensor or band, or not those of the MSI.
    """
    if choice.sensor is not None:
        name, wanted = find_sensor(choice.sensor)
        row = SENSORS[name]
        return sensor_bands(name, wanted, msi, msi_source), f"{row.kind}: {name} ({row.source})"
    if choice.msi_bands is not None:
        curves = parse_msi_bands(choice.msi_bands)
        if msi is not None and len(curves) != msi.bands:
            raise DataError(
                f"--msi-bands lists {len(curves)} bands, {msi_source} has {msi.bands}",
                "give centre:fwhm for each band of the image, in its order",
            )
        if msi is not None and msi.band_names is not None:
            named = zip(msi.band_names, curves, strict=True)
            curves = tuple(dataclasses.replace(curve, name=name) for name, curve in named)
        return curves, FROM_OPTION
    if msi is None or msi.wavelengths_nm is None or msi.fwhm_nm is None:
        lacks = "" if msi is None else f": {msi_source} lacks wavelengths or their FWHM"
        raise OptionError(
            f"the spectral response of the MSI is not known{lacks}",
            "give --sensor NAME (srf list shows them), --msi-bands CENTRE:FWHM,..., --srf-file "
            "FILE, or --num-msi-bands N for a documented sensor",
        )
    names = msi.band_names or tuple(f"B{i + 1}" for i in range(msi.bands))
    rows = zip(names, msi.wavelengths_nm, msi.fwhm_nm, strict=True)
    return tuple(gaussian(name, float(nm), float(fwhm)) for name, nm, fwhm in rows), FROM_METADATA


def lay_over(curves: tuple[Curve, ...], stamp: str, hsi: CubeMeta, source: object) -> Srf:
    """Return responses folded onto a cube's bands; see `fold_curves`.

    Raises:
        DataError: the cube has no wavelengths, or unusable ones.
    """
    if hsi.wavelengths_nm is None:
        raise _no_wavelengths(source)
    return fold_curves(curves, hsi.wavelengths_nm, hsi.fwhm_nm, hsi.bad_bands, stamp)


def _no_wavelengths(source: object) -> DataError:
    return DataError(
        f"{source}: has no wavelengths, so a sensor's response cannot be laid over its bands",
        "give them with --wavelengths FILE, or the response as weights with --srf-file",
    )


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
