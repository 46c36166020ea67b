"""The stage train as a function on files: open what it is given, fit, write the model."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from spectralift_cli.core import pairs
from spectralift_cli.core.checkpoint import (
    CHECKPOINT_SUFFIX,
    save_checkpoint,
)
from spectralift_cli.core.config import TrainConfig
from spectralift_cli.core.cube import CubeMeta, FloatArray
from spectralift_cli.core.cubeio import CubeReader
from spectralift_cli.core.devices import check_threads, resolve_device
from spectralift_cli.core.errors import OptionError, OutputExistsError
from spectralift_cli.core.estimation.apply import check_estimate
from spectralift_cli.core.estimation.result import read_estimate
from spectralift_cli.core.fitstate import discard_state, state_path_of
from spectralift_cli.core.formats import open_cube
from spectralift_cli.core.formats.kernels import read_psf
from spectralift_cli.core.given import AnyPath, Execution, Reading, check_absent
from spectralift_cli.core.grids import check_on_map
from spectralift_cli.core.identity import identity
from spectralift_cli.core.levels import SharpImage, sample_levels
from spectralift_cli.core.msi_bands import check_bands, without_dropped
from spectralift_cli.core.outputs import write_text
from spectralift_cli.core.pairs import ResponseChoice
from spectralift_cli.core.placement import Placement, place
from spectralift_cli.core.ranks import Ranks, joined
from spectralift_cli.core.scene import Scene, open_scene
from spectralift_cli.core.sensors.response import Srf
from spectralift_cli.core.sensors.srf import read_srf
from spectralift_cli.core.source import Source

# what fits models brings SciPy along, a second that inference does without: it is imported inside
if TYPE_CHECKING:
    from spectralift_cli.core.fitting import Keeping
    from spectralift_cli.core.refinement.optics import Optical
    from spectralift_cli.core.training import Trained, TrainingPlan


@dataclass(frozen=True)
class TrainInputs:
    """What a spectral inverter is trained on: a scene, or loose files.

    Args:
        scene: a scene's folder; excludes the others.
        lr_hsi: the blurry hyperspectral image.
        hr_msi: the sharp multispectral image: tells which bands of a sensor it has, or its own
            response, and is checked against one from elsewhere; preset auto learns its noise.
        response: where the spectral response comes from, for loose files.
        reading: how to read the LR-HSI.
        estimate: file of what was estimated from both images; a response that it uses replaces
            any other, its gain, offset and shift apply at inference.
    """

    scene: Path | None = None
    lr_hsi: Path | None = None
    hr_msi: Path | None = None
    response: ResponseChoice = field(default_factory=ResponseChoice)
    reading: Reading = Reading()
    estimate: Path | None = None


def _optical(kernel: FloatArray, *, includes_footprint: bool) -> Optical:
    from spectralift_cli.core.refinement.optics import Optical

    return Optical(kernel, includes_footprint)


def _open_training(inputs: TrainInputs) -> Source:
    if inputs.estimate is None:
        return _open_inputs(inputs, None)
    found = read_estimate(inputs.estimate)
    opened = _open_inputs(inputs, found.srf)
    try:
        check_estimate(found, opened.lr_hsi.meta, opened.srf, inputs.estimate)
    except BaseException:
        opened.close()
        raise
    optical = opened.optical
    if found.effective_psf is not None:
        optical = _optical(found.effective_psf, includes_footprint=True)
    return dataclasses.replace(
        opened, radiometry=found.radiometry, shift_px=found.shift_px, optical=optical,
        inputs={**opened.inputs, "estimate": identity(inputs.estimate)},
    )  # fmt: skip


def _open_inputs(inputs: TrainInputs, estimated: Srf | None) -> Source:
    if inputs.scene is not None:
        reading = dataclasses.replace(inputs.reading, memory_bytes=None)
        loose = inputs.lr_hsi or inputs.hr_msi or inputs.response != ResponseChoice()
        if loose or reading != Reading():
            raise OptionError(
                "a scene excludes loose files and how to read them", "a scene brings its own files"
            )
        return _open_scene_training(open_scene(inputs.scene), estimated)
    if inputs.lr_hsi is None:
        raise OptionError("there is nothing to train on", "give a SCENE, or --lr-hsi FILE")
    reader = inputs.reading.open(inputs.lr_hsi)
    msi: CubeReader | None = None
    try:
        check_on_map(reader)
        sharp: SharpImage | None = None
        identities: dict[str, Mapping[str, object]] = {}
        if inputs.response.srf_file is not None:
            identities["srf"] = identity(inputs.response.srf_file)
        if inputs.hr_msi is None:
            srf = estimated or pairs.find_response(inputs.response, reader.meta, inputs.lr_hsi)
        else:
            msi = open_cube(inputs.hr_msi, allow_2d=True)
            check_on_map(msi)
            srf = estimated or pairs.find_response(
                inputs.response, reader.meta, inputs.lr_hsi, msi.meta, inputs.hr_msi
            )
            placement = place(reader.meta, msi.meta, sources=(inputs.lr_hsi, inputs.hr_msi))
            identities["hr_msi"] = identity(*msi.files)
            msi = without_dropped(msi, srf)
            sharp = _look_at(msi, srf, reader.meta, placement)
    except BaseException:
        reader.close()
        if msi is not None:
            msi.close()
        raise
    return Source(reader, srf, sharp=sharp, hr_msi=msi, inputs=identities)


def _open_scene_training(scene: Scene, estimated: Srf | None) -> Source:
    reader = scene.open("lr_hsi")
    msi: CubeReader | None = None
    try:
        meta = reader.meta
        srf = estimated or read_srf(
            scene.path("srf"), meta.wavelengths_nm, meta.fwhm_nm, meta.bands
        )
        msi = scene.open("hr_msi")
        placement = pairs.scene_placement(scene, meta, msi.meta)
        msi = without_dropped(msi, srf)
        sharp = _look_at(msi, srf, meta, placement)
        radius = pairs.psf_radius_lr_px(scene)
        optical = None
        if scene.has("psf"):
            optical = _optical(
                read_psf(scene.path("psf")), includes_footprint=scene.psf_includes_footprint
            )
    except BaseException:
        reader.close()
        if msi is not None:
            msi.close()
        raise
    return Source(
        reader, srf, scene.data_scaled, scene.scaling, sharp, msi, radius,
        {"scene": scene.identity()}, shares_extent=pairs.shares_extent(scene), optical=optical,
    )  # fmt: skip


def _look_at(msi: CubeReader, srf: Srf, hsi: CubeMeta, placement: Placement) -> SharpImage:
    """Check an HR-MSI's bands and return what training needs to know of it."""
    check_bands(msi.meta, srf, hsi.wavelengths_nm, msi.path, "the response")
    return SharpImage(msi.path, placement, sample_levels(msi, placement), msi.meta.scale)


def train(
    inputs: TrainInputs | Sequence[TrainInputs],
    output: AnyPath,
    config: TrainConfig | None = None,
    *,
    history_file: AnyPath | None = None,
    execution: Execution = Execution(),
    announce: Callable[[TrainingPlan], None] | None = None,
    resume: bool = False,
    save_every_s: float = 30.0,
    overwrite: bool = False,
    ranks: Ranks | None = None,
) -> Trained:
    """Fit a spectral inverter and write its checkpoint.

    While it runs, its state is kept in `OUTPUT.state`, from which `resume` continues.

    Args:
        inputs: a scene, or loose files; or several of them, of the same two sensors, for one model.
        output: the checkpoint (.safetensors).
        config: preset and options; None for the defaults.
        history_file: CSV of epoch, learning rate and loss, or None.
        execution: device, threads, progress.
        announce: called with what will be fitted before it is.
        resume: continue a killed training.
        save_every_s: seconds between savings of the state.
        overwrite: replace existing outputs.
        ranks: the place of this process among those that train the published network together, all
            called alike; the first alone writes. None for a process on its own.

    Raises:
        DataError: see `spectralift_cli.core.training.train` and `train_pool`.
        OptionError: inputs that exclude each other, or too few; a name without the ending; what
            belongs to one scene, asked for several.
        OutputExistsError: an output exists and `overwrite` is false.
    """
    output = Path(output)
    config = config or TrainConfig()
    if config.preset == "auto" and (history_file is not None or resume):
        raise OptionError(
            f"--{'resume' if resume else 'history'} does not apply to the preset auto, whose fits "
            "are short and have no epochs in common",
            "it belongs to --preset paper",
        )
    if output.suffix.lower() != CHECKPOINT_SUFFIX:
        raise OptionError(
            f"{output}: the name of a checkpoint ends in {CHECKPOINT_SUFFIX}",
            f"write it as {output.with_suffix(CHECKPOINT_SUFFIX)}",
        )
    several = check_several(inputs, config)
    if ranks is not None and config.published is None:
        raise OptionError(
            f"{ranks.count} processes cannot fit the preset auto together, whose fits are small",
            "let one process do it, without torchrun; several train --preset paper",
        )
    leads = ranks is None or ranks.leads
    state = state_path_of(output)
    if leads:
        _check_outputs(several, output, history_file, state, resume, overwrite)
    if ranks is not None:
        execution = dataclasses.replace(execution, device=ranks.device_name(execution.device))
    device = resolve_device(execution.device)
    fitting = execution
    if ranks is not None and execution.threads is None:
        share = max(1, check_threads(None) // ranks.local_count)
        fitting = dataclasses.replace(execution, threads=share)
    from spectralift_cli.core.pooltraining import train_pool
    from spectralift_cli.core.training import train as train_model

    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(closing(_open_training(each))) for each in several]
        group = stack.enter_context(joined(ranks, device))
        paper: Keeping = {
            "state_path": state, "save_every_s": save_every_s, "resume": resume, "group": group,
        }  # fmt: skip
        if _takes_pool(opened, config):
            trained = train_pool(opened, config, execution=fitting, announce=announce, **paper)
        else:
            (one,) = opened
            trained = train_model(one, config, execution=fitting, announce=announce, **paper)
            if config.uncertainty and leads:
                trained = _calibrated(trained, several[0], one.lr_hsi, execution)
    if not leads:
        return trained
    save_checkpoint(trained.checkpoint, output, overwrite=overwrite)
    if history_file is not None:
        write_text(Path(history_file), trained.history.to_csv(), overwrite=overwrite)
    discard_state(state)
    return trained


def check_several(
    inputs: TrainInputs | Sequence[TrainInputs], config: TrainConfig
) -> Sequence[TrainInputs]:
    """Return all inputs of a training, having refused what one scene alone can have.

    Raises:
        OptionError: an estimate or a calibration of the uncertainty for several scenes or a part of
            the pixels; a scene that is given twice; or nothing to train on.
    """
    several = [inputs] if isinstance(inputs, TrainInputs) else list(inputs)
    if not several:
        raise OptionError("there is nothing to train on", "give a SCENE, or --lr-hsi FILE")
    named = [Path(one.scene or one.lr_hsi or "").resolve() for one in several]
    twice = next((path for path in named if named.count(path) > 1), None)
    if twice is not None:
        raise OptionError(f"{twice} is given twice to train on", "give every scene once")
    if len(several) > 1 and any(one.estimate is not None for one in several):
        raise OptionError(
            f"an estimate is of one pair of images, these are {len(several)} scenes",
            "leave --estimate out, and give infer the estimate of the image it sharpens",
        )
    if config.uncertainty and (len(several) > 1 or config.max_pixels is not None):
        what = f"{len(several)} scenes" if len(several) > 1 else "a part of the LR pixels"
        raise OptionError(
            f"--uncertainty is calibrated on all LR pixels of one scene, not on {what}",
            "leave --uncertainty out",
        )
    return several


def _takes_pool(opened: Sequence[Source], config: TrainConfig) -> bool:
    """Tell whether pixels of several images are pooled, or some of one image's drawn."""
    meta = opened[0].lr_hsi.meta
    most = config.max_pixels or meta.rows * meta.cols
    return len(opened) > 1 or meta.rows * meta.cols > most


def _check_outputs(
    several: Sequence[TrainInputs],
    output: Path,
    history_file: AnyPath | None,
    state: Path,
    resume: bool,
    overwrite: bool,
) -> None:
    files = [p for one in several for p in (one.lr_hsi, one.hr_msi, one.response.srf_file)]
    read = [path for path in files if path is not None]
    check_absent(output, overwrite, apart_from=read)
    if history_file is not None:
        check_absent(Path(history_file), overwrite, apart_from=[output, *read])
    if state.exists() and not resume and not overwrite:
        raise OutputExistsError(
            f"{state}: a training that was killed left its state",
            "--resume continues it, --overwrite starts afresh",
        )


def _calibrated(
    trained: Trained,
    inputs: TrainInputs,
    lr_hsi: CubeReader,
    execution: Execution,
) -> Trained:
    """Return what was trained with a calibration of its uncertainty."""
    from spectralift_cli.core.uncertainty.calibrate import calibrate
    from spectralift_cli.core.validation.inputs import (
        ValidateInputs,
        open_pair,
        warn_of_assumed_psf,
    )

    if inputs.scene is None and inputs.hr_msi is None:
        raise OptionError(
            "--uncertainty needs to know the HR-MSI's pixels, for which errors are to be expected",
            "give --hr-msi FILE",
        )
    images = ValidateInputs(inputs.scene, inputs.lr_hsi, inputs.hr_msi, inputs.response)
    with open_pair(images) as pair:
        if pair.psf_role == "nothing":
            warn_of_assumed_psf()
        found = calibrate(
            trained.checkpoint, lr_hsi, pair.hr_msi, pair.observation, pair.psf,
            execution=execution,
        )  # fmt: skip
    checkpoint = dataclasses.replace(trained.checkpoint, calibration=found)
    return dataclasses.replace(trained, checkpoint=checkpoint)


def plan_train(inputs: TrainInputs | Sequence[TrainInputs], config: TrainConfig) -> TrainingPlan:
    """Return what `train` would fit."""
    from spectralift_cli.core.lrpixels import check_units, load_pairs
    from spectralift_cli.core.pooltraining import open_pool
    from spectralift_cli.core.training import plan_training

    with contextlib.ExitStack() as stack:
        several = check_several(inputs, config)
        opened = [stack.enter_context(closing(_open_training(each))) for each in several]
        if _takes_pool(opened, config):
            return open_pool(opened, config)[1]
        (one,) = opened
        data = load_pairs(one.lr_hsi, one.srf, scaling=one.scaling)
        check_units(data, one.srf, one.sharp, one.radiometry)
        return plan_training(data, config, one.sharp)
