"""The stage `estimate`: from the files of two images to the file of an estimate."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from spectralift_cli.core import pairs
from spectralift_cli.core.cube import BoolArray, FloatArray, Progress, no_progress
from spectralift_cli.core.cubeio import CubeReader
from spectralift_cli.core.errors import (
    DataError,
    OptionError,
    OutputExistsError,
    SpectraliftWarning,
)
from spectralift_cli.core.estimation.analysis import analyse
from spectralift_cli.core.estimation.imagepair import read_pair
from spectralift_cli.core.estimation.parts import PARTS, Findings
from spectralift_cli.core.estimation.result import Estimate
from spectralift_cli.core.formats import open_cube
from spectralift_cli.core.grids import check_on_map
from spectralift_cli.core.identity import identity, provenance
from spectralift_cli.core.msi_bands import check_bands, without_dropped
from spectralift_cli.core.outputs import write_text
from spectralift_cli.core.pairs import ResponseChoice
from spectralift_cli.core.placement import Placement, place
from spectralift_cli.core.resources import one_blas_thread
from spectralift_cli.core.scene import open_scene
from spectralift_cli.core.sensors.response import Srf, over_used_bands
from spectralift_cli.core.sensors.srf import read_srf

_MOST_PSF_PX = 255


@dataclass(frozen=True)
class EstimateInputs:
    """Two images of the same ground: a scene, or loose files.

    Args:
        scene: a scene's folder; excludes the others.
        lr_hsi: the blurry hyperspectral image.
        hr_msi: the sharp multispectral image.
        response: the MSI's nominal response, for loose files; where nothing is chosen and the MSI
            does not tell its wavelengths and widths, the response is unknown.
        var: variable of the LR-HSI's file, see `open_cube`.
        axis_order: of the LR-HSI's file, likewise.
        wavelengths: file of the LR-HSI's wavelengths, likewise.
    """

    scene: Path | None = None
    lr_hsi: Path | None = None
    hr_msi: Path | None = None
    response: ResponseChoice = field(default_factory=ResponseChoice)
    var: str | None = None
    axis_order: str | None = None
    wavelengths: Path | None = None


@dataclass(frozen=True, eq=False)
class _Opened:
    lr_hsi: CubeReader
    hr_msi: CubeReader
    placement: Placement
    srf: Srf | None
    identities: dict[str, Mapping[str, Any]]


def estimate(
    inputs: EstimateInputs,
    output: str | Path,
    *,
    parts: Sequence[str] = PARTS,
    psf_size: int | None = None,
    psf_png: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> Estimate:
    """Estimate shift, PSF, gain and offset, and response between two images, and write them.

    Args:
        inputs: the images.
        output: the JSON file.
        parts: which of `PARTS` to estimate; the others keep their nominal values.
        psf_size: side of the kernel in HR pixels, odd, up to 255; None for one that follows the
            ratio and the blur.
        psf_png: picture of the kernel to write, or None.
        overwrite: replace existing outputs.
        progress: called with (done, total).

    Raises:
        OptionError: inputs that exclude each other, or a part that the options do not allow.
        DataError: the images do not fit each other, or allow no estimate.
        OutputExistsError: an output exists and `overwrite` is false.
    """
    output = Path(output)
    _check_options(inputs, parts, psf_size, psf_png)
    named = [output] if psf_png is None else [output, Path(psf_png)]
    others = [inputs.lr_hsi, inputs.hr_msi, inputs.response.srf_file, inputs.wavelengths]
    taken = {path.resolve() for path in others if path is not None}
    for path in named:
        if path.resolve() in taken:
            raise OptionError(
                f"{path} is named twice, as an output and as another file", "choose another name"
            )
        taken.add(path.resolve())
        if os.path.lexists(path) and not overwrite:
            raise OutputExistsError(f"{path}: exists already", "--overwrite replaces it")
    with _opened(inputs) as opened:
        found = _estimate(opened, parts, psf_size, progress)
    write_text(output, found.to_text(), overwrite=overwrite)
    if psf_png is not None and found.findings.psf is not None:
        from spectralift_cli.core.estimation.picture import draw_psf

        draw_psf(found.findings.psf, found.ratio, Path(psf_png), overwrite=overwrite)
    return found


def _check_options(
    inputs: EstimateInputs, parts: Sequence[str], psf_size: int | None, psf_png: str | Path | None
) -> None:
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        what = f"{unknown[0]!r} is not a part of an estimate" if unknown else "nothing is left"
        raise OptionError(f"{what} to estimate", f"choose from {', '.join(PARTS)}")
    if "psf" not in parts and (psf_size is not None or psf_png is not None):
        option = "--psf-size" if psf_size is not None else "--psf-png"
        raise OptionError(
            f"{option} does not apply: the PSF is not estimated",
            "leave it out, or estimate the PSF",
        )
    if psf_size is not None and (psf_size % 2 == 0 or not 3 <= psf_size <= _MOST_PSF_PX):
        raise OptionError(
            f"--psf-size is {psf_size}, a kernel has an odd side from 3 to {_MOST_PSF_PX} pixels",
            f"choose {min(max(3, psf_size + 1 - psf_size % 2), _MOST_PSF_PX)}",
        )
    if inputs.scene is not None and dataclasses.replace(inputs, scene=None) != EstimateInputs():
        raise OptionError(
            "a scene excludes loose files and how to read them", "a scene brings its own files"
        )
    if inputs.scene is None and (inputs.lr_hsi is None or inputs.hr_msi is None):
        raise OptionError(
            "two images are needed", "give a SCENE, or --lr-hsi FILE and --hr-msi FILE"
        )


@contextlib.contextmanager
def _opened(inputs: EstimateInputs) -> Iterator[_Opened]:
    with contextlib.ExitStack() as stack:
        if inputs.scene is not None:
            scene = open_scene(inputs.scene)
            lr = stack.enter_context(scene.open("lr_hsi"))
            hr = stack.enter_context(scene.open("hr_msi"))
            srf = read_srf(
                scene.path("srf"), lr.meta.wavelengths_nm, lr.meta.fwhm_nm, lr.meta.bands
            )
            placement = pairs.scene_placement(scene, lr.meta, hr.meta)
            identities: dict[str, Mapping[str, Any]] = {"scene": scene.identity()}
            yield _checked(lr, hr, placement, srf, identities)
            return
        if inputs.lr_hsi is None or inputs.hr_msi is None:
            raise ValueError("checked before")
        lr = stack.enter_context(
            open_cube(
                inputs.lr_hsi, var=inputs.var, axis_order=inputs.axis_order,
                wavelengths=inputs.wavelengths,
            )
        )  # fmt: skip
        hr = stack.enter_context(open_cube(inputs.hr_msi, allow_2d=True))
        check_on_map(lr)
        check_on_map(hr)
        placement = place(lr.meta, hr.meta, sources=(inputs.lr_hsi, inputs.hr_msi))
        identities = {"lr_hsi": identity(*lr.files), "hr_msi": identity(*hr.files)}
        if inputs.response.srf_file is not None:
            identities["srf"] = identity(inputs.response.srf_file)
        found = _nominal(inputs, lr, hr)
        yield _checked(lr, hr, placement, found, identities)


def _nominal(inputs: EstimateInputs, lr: CubeReader, hr: CubeReader) -> Srf | None:
    """Return the response that is chosen or that the MSI's metadata tell, or None."""
    told = hr.meta.wavelengths_nm is not None and hr.meta.fwhm_nm is not None
    if not inputs.response.given and not (told and lr.meta.wavelengths_nm is not None):
        return None
    return pairs.find_response(
        inputs.response, lr.meta, inputs.lr_hsi, hr.meta, inputs.hr_msi or "the MSI"
    )


def _checked(
    lr: CubeReader, hr: CubeReader, placement: Placement, srf: Srf | None,
    identities: dict[str, Mapping[str, Any]],
) -> _Opened:  # fmt: skip
    if srf is not None:
        source = hr.path
        hr = without_dropped(hr, srf)
        check_bands(hr.meta, srf, lr.meta.wavelengths_nm, source, "the response")
    return _Opened(lr, hr, placement, srf, identities)


@one_blas_thread()
def _estimate(
    opened: _Opened, parts: Sequence[str], psf_size: int | None, progress: Progress
) -> Estimate:
    lr, hr, srf = opened.lr_hsi.meta, opened.hr_msi.meta, opened.srf
    wanted = set(parts)
    if srf is None and "srf" not in wanted and lr.bands > 1:
        raise OptionError(
            "the spectral response of the MSI is not known",
            "give --sensor NAME, --srf-file FILE or --msi-bands, or have it estimated too (srf)",
        )
    pair, used = read_pair(opened.lr_hsi, opened.hr_msi, opened.placement)
    nominal = None if srf is None else over_used_bands(srf, used)
    if used.sum() == 1:
        nominal = np.ones((hr.bands, 1))
        if "srf" in wanted:
            warnings.warn(
                "the LR-HSI has one band: there is no response to estimate",
                SpectraliftWarning,
                stacklevel=2,
            )
            wanted.discard("srf")
        if not wanted:
            raise DataError(
                f"{opened.lr_hsi.path}: has one band, so that no response can be estimated",
                "estimate the other parts, or give an image with more bands",
            )
    findings = analyse(pair, nominal, wanted, psf_size, progress)
    names = srf.band_names if srf is not None else hr.band_names
    options: dict[str, Any] = {
        "parts": [part for part in PARTS if part in wanted],
        "psf_size": psf_size,
        "response": None if srf is None else srf.source,
        **opened.lr_hsi.choices,
    }
    return Estimate(
        findings=_over_all_bands(findings, used),
        band_names=names or tuple(f"B{i + 1}" for i in range(hr.bands)),
        hsi_bands=lr.bands,
        wavelengths_nm=lr.wavelengths_nm,
        kept=None if srf is None else srf.kept,
        sensor_bands=None if srf is None else srf.sensor_bands,
        ratio=opened.placement.scale,
        provenance=provenance("estimate", options, opened.identities),
    )


def _over_all_bands(findings: Findings, used: BoolArray) -> Findings:
    """Return the findings with weights of 0 on the LR-HSI's unused bands."""
    found = findings.srf
    if found is None or used.all():
        return findings

    def spread(values: FloatArray) -> FloatArray:
        whole = np.zeros((len(values), used.size))
        whole[:, used] = values
        return whole

    srf = dataclasses.replace(found, weights=spread(found.weights), std=spread(found.std))
    return dataclasses.replace(findings, srf=srf)
