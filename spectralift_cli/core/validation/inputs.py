"""The pair of images that a validation looks at, with what relates them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from spectralift_cli.core import pairs
from spectralift_cli.core.cube import FloatArray
from spectralift_cli.core.cubeio import CubeReader
from spectralift_cli.core.errors import OptionError, SpectraliftWarning
from spectralift_cli.core.estimation.apply import check_estimate
from spectralift_cli.core.estimation.result import Estimate, read_estimate
from spectralift_cli.core.formats.kernels import read_psf
from spectralift_cli.core.given import Reading
from spectralift_cli.core.grids import check_on_map
from spectralift_cli.core.identity import identity
from spectralift_cli.core.msi_bands import check_bands, without_dropped
from spectralift_cli.core.observation import Observation
from spectralift_cli.core.operators.scaling import Scaling
from spectralift_cli.core.pairs import ResponseChoice
from spectralift_cli.core.placement import Placement, place
from spectralift_cli.core.radiometry import Radiometry
from spectralift_cli.core.scene import Scene, open_scene
from spectralift_cli.core.sensors.response import Srf
from spectralift_cli.core.sensors.srf import read_srf

_ASSUMED_FWHM = 1.0  # LR pixels
_AS_FOUND = Reading()


@dataclass(frozen=True)
class ValidateInputs:
    """What is validated: a scene, or loose files.

    Args:
        scene: a scene's folder; excludes the other files but the PSF.
        lr_hsi: the blurry hyperspectral image.
        hr_msi: the sharp multispectral image.
        response: where the spectral response comes from, for loose files.
        psf_file: point spread function on the HR grid, without the LR pixel's footprint; None for
            the scene's, or to assume one.
        estimate: file of what was estimated from both images, of which what it marks as used
            applies: kernel, shift, radiometry, and the response where it is better.
        lr_reading: how to read a loose LR-HSI.
        msi_reading: how to read a loose HR-MSI.
    """

    scene: Path | None = None
    lr_hsi: Path | None = None
    hr_msi: Path | None = None
    response: ResponseChoice = field(default_factory=ResponseChoice)
    psf_file: Path | None = None
    estimate: Path | None = None
    lr_reading: Reading = _AS_FOUND
    msi_reading: Reading = _AS_FOUND


@dataclass(frozen=True, eq=False)
class Pair:
    """The two open images and how the one sees the other.

    Args:
        lr_hsi: the blurry hyperspectral image.
        hr_msi: the sharp multispectral image, with the response's bands.
        srf: (M, B) response between the two.
        observation: how the LR-HSI's instrument sees the HR grid.
        psf: where its kernel comes from, in words.
        scaling: from units to the network's range, or None to find it.
        identities: role -> identity of the inputs.
        psf_role: what gave the kernel: `scene`, `file`, `estimate`, or `nothing`.
        radiometry: what brings the HR-MSI into the LR-HSI's, where they differ.
        estimate: what the images were found to say of each other.
    """

    lr_hsi: CubeReader
    hr_msi: CubeReader
    srf: Srf
    observation: Observation
    psf: str
    scaling: Scaling | None
    identities: Mapping[str, Mapping[str, Any]]
    psf_role: str = "nothing"
    radiometry: Radiometry | None = None
    estimate: Estimate | None = None

    @property
    def placement(self) -> Placement:
        """Where the LR pixels lie on the HR grid."""
        return self.observation.placement


@contextlib.contextmanager
def open_pair(inputs: ValidateInputs) -> Iterator[Pair]:
    """Open the images of a validation with what is known of how they relate.

    Where nothing says what the PSF is, one is assumed (`assumed_psf`) and the pair's `psf_role` is
    `nothing`.

    Raises:
        OptionError: inputs that exclude each other, or too few.
        DataError: a file is damaged, or the images do not fit each other.
    """
    if inputs.psf_file is not None and inputs.estimate is not None:
        raise OptionError("--psf-file and --estimate exclude each other", "give one of them")
    estimate = None if inputs.estimate is None else read_estimate(inputs.estimate)
    with contextlib.ExitStack() as stack:
        if inputs.scene is not None:
            loose = inputs.lr_hsi or inputs.hr_msi or inputs.response != ResponseChoice()
            read = [replace(r, memory_bytes=None) for r in (inputs.lr_reading, inputs.msi_reading)]
            if loose or read != [_AS_FOUND, _AS_FOUND]:
                raise OptionError(
                    "a scene excludes loose files and how to read them",
                    "a scene brings its own files",
                )
            yield _of_scene(open_scene(inputs.scene), inputs, estimate, stack)
        elif inputs.lr_hsi is None or inputs.hr_msi is None:
            raise OptionError(
                "there is nothing to validate",
                "give a SCENE, or --lr-hsi FILE and --hr-msi FILE",
            )
        else:
            yield _of_files(inputs.lr_hsi, inputs.hr_msi, inputs, estimate, stack)


def warn_of_assumed_psf() -> None:
    """Say that nothing tells the PSF."""
    warnings.warn(
        f"the PSF is not known: a Gaussian as wide as {_ASSUMED_FWHM:g} LR pixel (full width at "
        "half maximum), averaged over the LR pixel, is assumed; give --psf-file if you know it",
        SpectraliftWarning,
        stacklevel=3,
    )


def _of_scene(
    scene: Scene, inputs: ValidateInputs, estimate: Estimate | None, stack: contextlib.ExitStack
) -> Pair:
    lr, msi = (stack.enter_context(scene.open(role)) for role in ("lr_hsi", "hr_msi"))
    meta = lr.meta
    srf = None if estimate is None else estimate.srf
    srf = srf or read_srf(scene.path("srf"), meta.wavelengths_nm, meta.fwhm_nm, meta.bands)
    placement = pairs.scene_placement(scene, meta, msi.meta)
    pair = Pair(
        lr, msi, srf, *_blur(inputs, placement, estimate), Scaling() if scene.data_scaled else None,
        {"scene": scene.identity()}, _psf_role(inputs, estimate),
    )  # fmt: skip
    if pair.psf_role == "nothing" and scene.has("psf"):
        seen = Observation(
            read_psf(scene.path("psf")), pair.placement, scene.psf_includes_footprint,
            str(scene.recipe.get("boundary", "reflect")),
        )  # fmt: skip
        pair = replace(pair, observation=seen, psf="the scene's own", psf_role="scene")
    return _checked(pair, inputs, estimate, scene.path("hr_msi"))


def _of_files(
    lr_path: Path, msi_path: Path, inputs: ValidateInputs, estimate: Estimate | None,
    stack: contextlib.ExitStack,
) -> Pair:  # fmt: skip
    lr = stack.enter_context(inputs.lr_reading.open(lr_path))
    msi = stack.enter_context(inputs.msi_reading.open(msi_path, allow_2d=True))
    srf = None if estimate is None else estimate.srf
    srf = srf or pairs.find_response(inputs.response, lr.meta, lr_path, msi.meta, msi_path)
    placement = place(lr.meta, msi.meta, sources=(lr_path, msi_path))
    identities = {"lr_hsi": identity(*lr.files), "hr_msi": identity(*msi.files)}
    if inputs.response.srf_file is not None:
        identities["srf"] = identity(inputs.response.srf_file)
    pair = Pair(
        lr, msi, srf, *_blur(inputs, placement, estimate), None, identities,
        _psf_role(inputs, estimate),
    )  # fmt: skip
    return _checked(pair, inputs, estimate, msi_path)


def _checked(pair: Pair, inputs: ValidateInputs, estimate: Estimate | None, source: Path) -> Pair:
    lr, identities = pair.lr_hsi, dict(pair.identities)
    check_on_map(lr)
    check_on_map(pair.hr_msi)
    msi = without_dropped(pair.hr_msi, pair.srf)
    check_bands(msi.meta, pair.srf, lr.meta.wavelengths_nm, source, "the response")
    if inputs.psf_file is not None:
        identities["psf"] = identity(inputs.psf_file)
    if estimate is None or inputs.estimate is None:
        return replace(pair, hr_msi=msi, identities=identities)
    check_estimate(estimate, lr.meta, pair.srf, inputs.estimate)
    identities["estimate"] = identity(inputs.estimate)
    return replace(
        pair, hr_msi=msi, identities=identities, estimate=estimate, radiometry=estimate.radiometry
    )


def _psf_role(inputs: ValidateInputs, estimate: Estimate | None) -> str:
    if inputs.psf_file is not None:
        return "file"
    return "nothing" if estimate is None or estimate.effective_psf is None else "estimate"


def _blur(
    inputs: ValidateInputs, placement: Placement, estimate: Estimate | None
) -> tuple[Observation, str]:
    """Return how the LR-HSI's instrument sees the HR grid, and where the kernel comes from."""
    if estimate is not None:
        placement = placement.shifted(estimate.shift_px)
        if estimate.effective_psf is not None:
            seen = Observation(estimate.effective_psf, placement, includes_footprint=True)
            return seen, "estimated from the images"
    if inputs.psf_file is not None:
        return Observation(read_psf(inputs.psf_file), placement), f"{inputs.psf_file.name}"
    told = f"assumed: Gaussian of {_ASSUMED_FWHM:g} LR pixel full width at half maximum"
    return Observation(assumed_psf(placement.scale), placement), told


def assumed_psf(scale: tuple[float, float]) -> FloatArray:
    """Return the Gaussian that stands for an unknown PSF.

    Args:
        scale: HR pixels to one LR pixel, down and across.

    Returns:
        (k, k) of sum 1, its full width at half maximum one LR pixel.
    """
    sigmas = [_ASSUMED_FWHM * ratio / np.sqrt(8 * np.log(2)) for ratio in scale]
    half = max(1, int(np.ceil(3 * max(sigmas))))
    at = np.arange(-half, half + 1, dtype=np.float64)
    down, across = (np.exp(-np.square(at / sigma) / 2) for sigma in sigmas)
    kernel = np.outer(down, across)
    made: FloatArray = kernel / kernel.sum()
    return made
