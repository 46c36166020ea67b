"""Refinement as functions on files: what `refine`, `infer --refine` and `run` call."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from spectralift_cli.core import pairs
from spectralift_cli.core.checkpoint import load_checkpoint
from spectralift_cli.core.config import InferConfig, RefineConfig
from spectralift_cli.core.cube import Progress, no_progress
from spectralift_cli.core.cubeio import CubeReader
from spectralift_cli.core.errors import OptionError
from spectralift_cli.core.estimation.apply import check_estimate
from spectralift_cli.core.estimation.result import Estimate, read_estimate
from spectralift_cli.core.formats.kernels import read_psf
from spectralift_cli.core.given import AnyPath, Execution, Reading, Storage
from spectralift_cli.core.grids import check_on_map
from spectralift_cli.core.inference import InferResult
from spectralift_cli.core.msi_bands import without_dropped
from spectralift_cli.core.outputs import Staging
from spectralift_cli.core.pairs import ResponseChoice
from spectralift_cli.core.placement import place
from spectralift_cli.core.refinement.optics import Optical
from spectralift_cli.core.refinement.outcome import RefineResult
from spectralift_cli.core.refinement.plan import RefinePlan, plan_refinement
from spectralift_cli.core.refinement.refine import refine as refine_cube
from spectralift_cli.core.refinement.relation import Images, Relation
from spectralift_cli.core.scene import Scene, open_scene
from spectralift_cli.core.sensors.srf import read_srf
from spectralift_cli.core.stages import infer


@dataclass(frozen=True)
class RefineInputs:
    """What a sharp cube is made to agree with: a scene, or loose files.

    Args:
        scene: a scene's folder; excludes the other files but the PSF.
        lr_hsi: the blurry hyperspectral image.
        hr_msi: the sharp multispectral image.
        response: where the spectral response comes from, for loose files.
        model: a checkpoint that knows the response, in its place.
        psf_file: point spread function; None for the scene's, or to find one from the images.
        estimate: file of what was estimated from both images, of which what it marks as used
            applies: kernel, shift, radiometry, and the response where no other is given.
        reading: how to read the cube.
        lr_reading: how to read a loose LR-HSI.
        msi_reading: how to read a loose HR-MSI.
    """

    scene: Path | None = None
    lr_hsi: Path | None = None
    hr_msi: Path | None = None
    response: ResponseChoice = field(default_factory=ResponseChoice)
    model: Path | None = None
    psf_file: Path | None = None
    estimate: Path | None = None
    reading: Reading = Reading()
    lr_reading: Reading = Reading()
    msi_reading: Reading = Reading()


def refine(
    cube: AnyPath,
    inputs: RefineInputs,
    output: AnyPath,
    config: RefineConfig | None = None,
    *,
    options: Mapping[str, str] | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> RefineResult:
    """Make a sharp cube agree with the two images it stands for.

    Args:
        cube: the estimate, on the HR-MSI's grid and in the LR-HSI's units, from whatever source.
        inputs: the images and what is known of how they relate.
        output: the refined cube; the ending chooses the format.
        config: how; None for the defaults.
        options: creation options of the output's format.
        overwrite: replace an existing output.
        progress: called with (done, total).

    Raises:
        DataError: a file is damaged, or the images do not fit each other.
        OptionError: inputs that exclude each other, or too few.
        OutputExistsError: the output exists and `overwrite` is false.
    """
    with _open_refining(cube, inputs) as images:
        return refine_cube(
            images, Path(output), config or RefineConfig(),
            memory_bytes=inputs.reading.memory_bytes, options=options, overwrite=overwrite,
            progress=progress,
        )  # fmt: skip


def plan_refine(cube: AnyPath, inputs: RefineInputs) -> RefinePlan:
    """Return what `refine` would do and need."""
    with _open_refining(cube, inputs) as images:
        return plan_refinement(images, inputs.reading.memory_bytes)


def refine_inputs(
    model: AnyPath,
    image: AnyPath,
    *,
    lr_hsi: Path | None = None,
    psf_file: Path | None = None,
    estimate: Path | None = None,
    reading: Reading = Reading(),
) -> RefineInputs:
    """Return what the cube that `infer` makes of an image is refined with.

    Args:
        model: the checkpoint, which knows the response.
        image: the HR-MSI, or a scene.
        lr_hsi: the blurry hyperspectral image; None for the scene's.
        psf_file: see `RefineInputs`.
        estimate: see `RefineInputs`.
        reading: how to read the HR-MSI.

    Raises:
        OptionError: no LR-HSI for a loose image, or one beside a scene's.
    """
    path, scene = pairs.sharp_image(Path(image))
    memory = Reading(memory_bytes=reading.memory_bytes)
    if scene is not None:
        if lr_hsi is not None:
            raise OptionError("a scene excludes --lr-hsi", "a scene brings its own files")
        return RefineInputs(
            scene=scene.folder, psf_file=psf_file, estimate=estimate, reading=memory
        )
    if lr_hsi is None:
        raise OptionError(
            "--refine needs the blurry hyperspectral image, too", "give --lr-hsi FILE, or a scene"
        )
    return RefineInputs(
        lr_hsi=lr_hsi, hr_msi=path, model=Path(model), psf_file=psf_file,
        estimate=estimate, reading=memory,
        lr_reading=memory, msi_reading=reading,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Refined:
    """What `infer_refined` did, stage by stage."""

    inferred: InferResult
    refined: RefineResult


def infer_refined(
    model: AnyPath,
    image: AnyPath,
    output: AnyPath,
    config: InferConfig | None = None,
    refining: RefineConfig | None = None,
    *,
    inputs: RefineInputs,
    stored: Storage = Storage(),
    batch_size: int | None = None,
    reading: Reading = Reading(),
    execution: Execution = Execution(),
    uncertainty_file: AnyPath | None = None,
    overwrite: bool = False,
) -> Refined:
    """Write the sharp cube of an HR-MSI, made to agree with both images; see `infer`, `refine`.

    The cube in between lies beside the output while it is needed, in a private folder.

    Args:
        model: a checkpoint.
        image: the HR-MSI, or a scene that holds one.
        output: the cube; the ending chooses the format.
        config: of the inference; None for the defaults.
        refining: of the refinement; None for the defaults.
        inputs: the images of the refinement.
        stored: see `infer`.
        batch_size: see `infer`.
        reading: see `infer`.
        execution: see `infer`; its progress is called for each stage in turn.
        uncertainty_file: see `infer`. The errors are those before the refinement, which is kept
            only where held-out LR pixels say that it lowers them.
        overwrite: replace existing outputs.

    Raises:
        DataError: see `infer` and `refine`.
        OptionError: an uncertainty of what is refined whatever held-out LR pixels say, or both
            outputs in one file.
        OutputExistsError: an output exists and `overwrite` is false.
    """
    output = Path(output)
    if uncertainty_file is not None:
        if refining is not None and refining.ungated:
            raise OptionError(
                "an ungated refinement may make errors larger than the uncertainty tells",
                "leave out ungated, or the uncertainty",
            )
        if output.resolve() == Path(uncertainty_file).resolve():
            raise OptionError(f"{output} is named twice, for both cubes", "choose another name")
    with Staging(output, overwrite=overwrite) as aside:
        estimate = aside.path().with_name("estimate.npy")
        inferred = infer(
            model, image, estimate, config,
            stored=dataclasses.replace(stored, options=None), batch_size=batch_size,
            reading=reading, execution=execution, estimate=inputs.estimate,
            uncertainty_file=uncertainty_file, overwrite=overwrite,
        )  # fmt: skip
        refined = refine(
            estimate, inputs, output, refining, options=stored.options, overwrite=overwrite,
            progress=execution.progress,
        )  # fmt: skip
    return Refined(inferred, refined)


@contextlib.contextmanager
def _open_refining(cube: AnyPath, inputs: RefineInputs) -> Iterator[Images]:
    if inputs.scene is not None:
        loose = inputs.lr_hsi or inputs.hr_msi or inputs.model
        if loose or inputs.response != ResponseChoice():
            raise OptionError("a scene excludes loose files", "a scene brings its own files")
    elif inputs.lr_hsi is None or inputs.hr_msi is None:
        raise OptionError(
            "the images that the cube stands for are not known",
            "give --scene SCENE, or --lr-hsi FILE and --hr-msi FILE",
        )
    if inputs.psf_file is not None and inputs.estimate is not None:
        raise OptionError("--psf-file and --estimate exclude each other", "give one of them")
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(inputs.reading.open(cube))
        estimate = None if inputs.estimate is None else read_estimate(inputs.estimate)
        if inputs.scene is not None:
            scene = open_scene(inputs.scene)
            lr, sharp = (stack.enter_context(scene.open(role)) for role in ("lr_hsi", "hr_msi"))
            relation = _of_scene(scene, lr, sharp)
        else:
            lr = stack.enter_context(inputs.lr_reading.open(str(inputs.lr_hsi)))
            sharp = stack.enter_context(inputs.msi_reading.open(str(inputs.hr_msi), allow_2d=True))
            relation = _of_files(inputs, lr, sharp, estimate)
        if inputs.psf_file is not None:
            relation = relation.with_psf(read_psf(inputs.psf_file), False, inputs.psf_file)
        if estimate is not None and inputs.estimate is not None:
            relation = _estimated(relation, estimate, lr, inputs.estimate)
        sharp = without_dropped(sharp, relation.srf)
        yield Images(reader, lr, sharp, relation)


def _of_scene(scene: Scene, lr: CubeReader, sharp: CubeReader) -> Relation:
    path = scene.path("srf")
    srf = read_srf(path, lr.meta.wavelengths_nm, lr.meta.fwhm_nm, lr.meta.bands)
    placement = pairs.scene_placement(scene, lr.meta, sharp.meta)
    relation = Relation(srf, placement, files={"srf": path})
    if not scene.has("psf"):
        return relation
    psf = scene.path("psf")
    return relation.with_psf(read_psf(psf), scene.psf_includes_footprint, psf)


def _of_files(
    inputs: RefineInputs, lr: CubeReader, sharp: CubeReader, estimate: Estimate | None
) -> Relation:
    for image in (lr, sharp):
        check_on_map(image)
    placement = place(lr.meta, sharp.meta, sources=(inputs.lr_hsi, inputs.hr_msi))
    if inputs.model is not None:
        if inputs.response != ResponseChoice():
            raise OptionError(
                "the model knows the response already",
                "leave --srf-file and its like out, or --model",
            )
        checkpoint = load_checkpoint(inputs.model)
        relation = Relation(checkpoint.srf, placement, files={"model": inputs.model})
        return relation.displaced(checkpoint.shift_px, checkpoint.radiometry)
    if estimate is not None and estimate.srf is not None and not inputs.response.given:
        return Relation(estimate.srf, placement)
    srf = pairs.find_response(inputs.response, lr.meta, inputs.lr_hsi, sharp.meta, inputs.hr_msi)
    file = inputs.response.srf_file
    return Relation(srf, placement, files={} if file is None else {"srf": file})


def _estimated(relation: Relation, estimate: Estimate, lr: CubeReader, source: Path) -> Relation:
    """Return the relation with what an estimate marks as used: radiometry, shift and kernel."""
    check_estimate(estimate, lr.meta, relation.srf, source)
    found = dataclasses.replace(relation, files={**relation.files, "estimate": source})
    found = found.displaced(estimate.shift_px, estimate.radiometry)
    psf = estimate.effective_psf
    return found if psf is None else dataclasses.replace(found, optical=Optical(psf, True))
