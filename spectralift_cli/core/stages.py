"""The stages as functions on files: what the commands, `run` and Python users call."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectralift_cli.core import pairs
from spectralift_cli.core.checkpoint import (
    CHECKPOINT_SUFFIX,
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from spectralift_cli.core.config import InferConfig, MetricsConfig, SynthConfig, TrainConfig
from spectralift_cli.core.cube import CubeMeta, CubeReader, FloatArray, Progress, no_progress
from spectralift_cli.core.devices import check_threads, resolve_device
from spectralift_cli.core.errors import DataError, OptionError, OutputExistsError
from spectralift_cli.core.estimation.apply import applied, check_estimate
from spectralift_cli.core.estimation.result import read_estimate
from spectralift_cli.core.fitstate import discard_state, state_path_of
from spectralift_cli.core.formats import open_cube
from spectralift_cli.core.formats.kernels import read_psf
from spectralift_cli.core.grids import check_on_map
from spectralift_cli.core.identity import identity
from spectralift_cli.core.inference import InferPlan, InferResult, prepare
from spectralift_cli.core.inference import infer as infer_cube
from spectralift_cli.core.jobs.folder import refuse_unfinished
from spectralift_cli.core.levels import SharpImage, sample_levels
from spectralift_cli.core.metrics.evaluate import Scores, per_band_csv
from spectralift_cli.core.metrics.evaluate import evaluate as evaluate_cubes
from spectralift_cli.core.msi_bands import check_bands, without_dropped
from spectralift_cli.core.operators.scaling import Scaling
from spectralift_cli.core.outputs import write_text
from spectralift_cli.core.pairs import ResponseChoice
from spectralift_cli.core.placement import Placement, place
from spectralift_cli.core.pooling import Source
from spectralift_cli.core.radiometry import Radiometry
from spectralift_cli.core.ranks import Ranks, joined
from spectralift_cli.core.scene import Scene, open_scene
from spectralift_cli.core.sensors.response import Srf
from spectralift_cli.core.sensors.srf import read_srf
from spectralift_cli.core.synthesis import SynthPlan, plan_synthesis, synthesize
from spectralift_cli.core.uncertainty.write import calibration_of, write_uncertainty

# what fits models brings SciPy along, a second that inference does without: it is imported inside
if TYPE_CHECKING:
    import torch

    from spectralift_cli.core.refinement.optics import Optical
    from spectralift_cli.core.training import Trained, TrainingPlan

AnyPath = str | Path


@dataclass(frozen=True)
class Reading:
    """How to read a cube that does not say everything itself; see `open_cube`."""

    var: str | None = None
    axis_order: str | None = None
    wavelengths: Path | None = None
    memory_bytes: int | None = None

    def open(self, path: AnyPath, *, allow_2d: bool = False) -> CubeReader:
        """Open a cube."""
        return open_cube(
            path, var=self.var, axis_order=self.axis_order, wavelengths=self.wavelengths,
            memory_bytes=self.memory_bytes, allow_2d=allow_2d,
        )  # fmt: skip


@dataclass(frozen=True)
class Execution:
    """How to compute: changes time and memory, never the result.

    Args:
        device: auto, cpu, cuda, cuda:N or mps.
        threads: at most; None for all this process may use.
        progress: called with (done, total).
        memory_bytes: the most that this process may ever hold; None for what speed asks for. `infer`
            alone keeps to it, on a processor.
    """

    device: str = "auto"
    threads: int | None = None
    progress: Progress = field(default=no_progress)
    memory_bytes: int | None = None


def synth(
    cube: AnyPath,
    output: AnyPath,
    config: SynthConfig | None = None,
    *,
    psf_file: AnyPath | None = None,
    srf_file: AnyPath | None = None,
    sensor: str | None = None,
    msi_bands: str | None = None,
    cube_format: str = "h5",
    reading: Reading = Reading(),
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> Scene:
    """Degrade a cube into a scene: LR-HSI, HR-MSI, SRF, PSF and ground truth.

    Args:
        cube: the sharp hyperspectral cube.
        output: the scene's folder.
        config: protocol, PSF, ratio, noise, sensor; None for the defaults.
        psf_file: kernel in place of the config's shape; see `read_psf`.
        srf_file: response in place of the config's sensor; see `read_srf`.
        sensor: built-in sensor in place of the config's, `NAME` or `NAME:BAND,BAND,...`.
        msi_bands: Gaussians in place of the config's sensor, `centre:fwhm,...` in nm.
        cube_format: ending of the cubes in the scene.
        reading: how to read the cube.
        overwrite: replace an existing scene.
        progress: called with (done, total).

    Raises:
        DataError: a file is damaged or does not fit; see `synthesize`.
        OptionError: two of `srf_file`, `sensor` and `msi_bands` are given.
        OutputExistsError: the scene exists and `overwrite` is false.
    """
    config = config or SynthConfig()
    with reading.open(cube) as reader:
        return synthesize(
            reader, Path(output), config,
            psf=None if psf_file is None else read_psf(psf_file),
            srf=_custom_srf(reader, config, srf_file, sensor, msi_bands),
            cube_format=cube_format, overwrite=overwrite, progress=progress,
        )  # fmt: skip


def plan_synth(
    cube: AnyPath,
    config: SynthConfig,
    *,
    psf_file: AnyPath | None = None,
    srf_file: AnyPath | None = None,
    sensor: str | None = None,
    msi_bands: str | None = None,
    cube_format: str = "h5",
    reading: Reading = Reading(),
) -> SynthPlan:
    """Return what `synth` would make."""
    with reading.open(cube) as reader:
        return plan_synthesis(
            reader.meta, config,
            psf=None if psf_file is None else read_psf(psf_file),
            srf=_custom_srf(reader, config, srf_file, sensor, msi_bands), cube_format=cube_format,
        )  # fmt: skip


def _custom_srf(
    reader: CubeReader,
    config: SynthConfig,
    srf_file: AnyPath | None,
    sensor: str | None,
    msi_bands: str | None,
) -> Srf | None:
    choice = ResponseChoice(
        srf_file=None if srf_file is None else Path(srf_file), sensor=sensor, msi_bands=msi_bands,
        drop_uncovered_bands=config.drop_uncovered_bands,
    )  # fmt: skip
    return pairs.find_response(choice, reader.meta, reader.path) if choice.given else None


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


@dataclass(frozen=True, eq=False)
class _Opened:
    """The open LR-HSI with all that training needs of the other inputs."""

    reader: CubeReader
    srf: Srf
    scaling: Scaling | None
    identities: dict[str, Mapping[str, object]]
    sharp: SharpImage | None = None
    shares_extent: bool = False
    radiometry: Radiometry | None = None
    shift_px: tuple[float, float] = (0.0, 0.0)
    hr_msi: CubeReader | None = None
    psf_radius_lr_px: int | None = None
    scaled_from: tuple[float, float] | None = None
    optical: Optical = field(default_factory=lambda: _optical())

    def source(self) -> Source:
        """Return the image as one of a pool."""
        return Source(
            self.reader, self.srf, self.scaling is not None, self.scaled_from, self.sharp,
            self.hr_msi, self.psf_radius_lr_px, self.identities, self.radiometry, self.shift_px,
            self.shares_extent,
        )  # fmt: skip

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *failure: object) -> None:
        self.reader.close()
        if self.hr_msi is not None:
            self.hr_msi.close()


def _optical(kernel: FloatArray | None = None, *, includes_footprint: bool = False) -> Optical:
    from spectralift_cli.core.refinement.optics import Optical

    return Optical(kernel, includes_footprint)


def _open_training(inputs: TrainInputs) -> _Opened:
    if inputs.estimate is None:
        return _open_inputs(inputs, None)
    found = read_estimate(inputs.estimate)
    opened = _open_inputs(inputs, found.srf)
    try:
        check_estimate(found, opened.reader.meta, opened.srf, inputs.estimate)
    except BaseException:
        opened.__exit__()
        raise
    opened.identities["estimate"] = identity(inputs.estimate)
    optical = opened.optical
    if found.effective_psf is not None:
        optical = _optical(found.effective_psf, includes_footprint=True)
    return dataclasses.replace(
        opened, radiometry=found.radiometry, shift_px=found.shift_px, optical=optical
    )


def _open_inputs(inputs: TrainInputs, estimated: Srf | None) -> _Opened:
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
    return _Opened(reader, srf, None, identities, sharp, hr_msi=msi)


def _open_scene_training(scene: Scene, estimated: Srf | None) -> _Opened:
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
        optical = _optical()
        if scene.has("psf"):
            optical = _optical(
                read_psf(scene.path("psf")), includes_footprint=scene.psf_includes_footprint
            )
    except BaseException:
        reader.close()
        if msi is not None:
            msi.close()
        raise
    scaling = Scaling() if scene.data_scaled else None
    return _Opened(
        reader, srf, scaling, {"scene": scene.identity()}, sharp,
        shares_extent=pairs.shares_extent(scene), hr_msi=msi, psf_radius_lr_px=radius,
        scaled_from=scene.scaling,
        optical=optical,
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
    threads = execution.threads
    device = resolve_device(ranks.device_name(execution.device) if ranks else execution.device)
    if ranks is not None and threads is None:
        threads = max(1, check_threads(None) // ranks.local_count)
    from spectralift_cli.core.pooltraining import train_pool
    from spectralift_cli.core.training import train as train_model

    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(_open_training(each)) for each in several]
        group = stack.enter_context(joined(ranks, device))
        paper: dict[str, Any] = {
            "state_path": state, "save_every_s": save_every_s, "resume": resume, "group": group,
        }  # fmt: skip
        if _takes_pool(opened, config):
            trained = train_pool(
                [one.source() for one in opened], config, device=device, threads=threads,
                progress=execution.progress, announce=announce, **paper,
            )  # fmt: skip
        else:
            (one,) = opened
            trained = train_model(
                one.reader, one.srf, config,
                scaling=one.scaling, hr_msi=one.hr_msi, psf_radius_lr_px=one.psf_radius_lr_px,
                device=device, threads=threads, progress=execution.progress, announce=announce,
                inputs=one.identities, radiometry=one.radiometry, shift_px=one.shift_px,
                sharp=one.sharp, shares_extent=one.shares_extent, optical=one.optical, **paper,
            )  # fmt: skip
            if config.uncertainty and leads:
                trained = _calibrated(trained, several[0], one.reader, device, execution)
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


def _takes_pool(opened: Sequence[_Opened], config: TrainConfig) -> bool:
    """Tell whether pixels of several images are pooled, or some of one image's drawn."""
    meta = opened[0].reader.meta
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
    _check_absent(output, overwrite, apart_from=read)
    if history_file is not None:
        _check_absent(Path(history_file), overwrite, apart_from=[output, *read])
    if state.exists() and not resume and not overwrite:
        raise OutputExistsError(
            f"{state}: a training that was killed left its state",
            "--resume continues it, --overwrite starts afresh",
        )


def _calibrated(
    trained: Trained,
    inputs: TrainInputs,
    lr_hsi: CubeReader,
    device: torch.device,
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
            trained.checkpoint, lr_hsi, pair.hr_msi, pair.observation, pair.psf, device=device,
            threads=execution.threads, progress=execution.progress,
        )  # fmt: skip
    checkpoint = dataclasses.replace(trained.checkpoint, calibration=found)
    return dataclasses.replace(trained, checkpoint=checkpoint)


def plan_train(inputs: TrainInputs | Sequence[TrainInputs], config: TrainConfig) -> TrainingPlan:
    """Return what `train` would fit."""
    from spectralift_cli.core.pooltraining import open_pool
    from spectralift_cli.core.training import check_units, load_pairs, plan_training

    with contextlib.ExitStack() as stack:
        several = check_several(inputs, config)
        opened = [stack.enter_context(_open_training(each)) for each in several]
        if _takes_pool(opened, config):
            return open_pool([one.source() for one in opened], config)[1]
        (one,) = opened
        data = load_pairs(one.reader, one.srf, scaling=one.scaling)
        check_units(data, one.srf, one.sharp, one.radiometry)
        return plan_training(data, config, one.sharp)


def _check_absent(path: Path, overwrite: bool, *, apart_from: Sequence[AnyPath] = ()) -> None:
    """Refuse an output that exists or is also another file of the same command, before any work."""
    for other in apart_from:
        if path.resolve() == Path(other).resolve():
            raise OptionError(
                f"{path} is named twice, as an output and as another file", "choose another name"
            )
    if os.path.lexists(path) and not overwrite:
        raise OutputExistsError(f"{path}: exists already", "--overwrite replaces it")
    if not path.parent.is_dir():
        raise DataError(
            f"{path}: the folder {path.parent} does not exist",
            f"make it first: mkdir -p {path.parent}",
        )


@dataclass(frozen=True)
class Storage:
    """How a sharp cube is stored; see `spectralift_cli.core.inference.infer`.

    Args:
        dtype: stored type; None for the LR-HSI's if it is an integer, else float32.
        scale: stored value to unit of an integer output; None for the LR-HSI's.
        offset: likewise.
        nodata: mark of holes in an integer output; None for the LR-HSI's.
        options: creation options of the output's format.
    """

    dtype: str | None = None
    scale: float | None = None
    offset: float | None = None
    nodata: float | None = None
    options: Mapping[str, str] | None = None


def infer(
    model: AnyPath,
    image: AnyPath,
    output: AnyPath,
    config: InferConfig | None = None,
    *,
    stored: Storage = Storage(),
    batch_size: int | None = None,
    reading: Reading = Reading(),
    execution: Execution = Execution(),
    estimate: AnyPath | None = None,
    uncertainty_file: AnyPath | None = None,
    overwrite: bool = False,
) -> InferResult:
    """Write the sharp hyperspectral cube of an HR-MSI.

    Args:
        model: a checkpoint.
        image: the HR-MSI, or a scene that holds one.
        output: the cube; the ending chooses the format.
        config: what determines the values; None for the defaults.
        stored: type, scale, nodata and creation options of the output.
        batch_size: pixels at a time; None for the default. Changes memory and speed only.
        reading: how to read the HR-MSI.
        execution: device, threads, progress.
        estimate: file of an estimate whose radiometry and shift replace the model's.
        uncertainty_file: cube of the expected error of every pixel to write, or None; see
            `spectralift_cli.core.uncertainty.write.write_uncertainty`.
        overwrite: replace existing outputs.

    Raises:
        DataError: a file is damaged, or the image has other bands than the model.
        OutputExistsError: the output, or an unfinished job of it, exists and `overwrite` is false.
    """
    refuse_unfinished(Path(output), overwrite=overwrite)
    checkpoint = open_model(model, estimate)
    path, _ = pairs.sharp_image(Path(image))
    if uncertainty_file is not None:
        calibration_of(checkpoint, model)
        _check_absent(Path(uncertainty_file), overwrite, apart_from=[output, model, path])
    with reading.open(path, allow_2d=True) as reader:
        check_on_map(reader)
        msi = without_dropped(reader, checkpoint.srf)
        made = infer_cube(
            checkpoint, msi, Path(output),
            config or InferConfig(),
            dtype=stored.dtype, scale=stored.scale, offset=stored.offset, nodata=stored.nodata,
            batch_size=batch_size, device=resolve_device(execution.device),
            threads=execution.threads, memory_bytes=execution.memory_bytes,
            options=stored.options, overwrite=overwrite, progress=execution.progress,
        )  # fmt: skip
        if uncertainty_file is None:
            return made
        expected = write_uncertainty(
            checkpoint, msi, Path(uncertainty_file), source=model,
            device=resolve_device(execution.device), threads=execution.threads,
            overwrite=overwrite, progress=execution.progress,
        )  # fmt: skip
        return dataclasses.replace(made, uncertainty=expected)


def open_model(path: AnyPath, estimate: AnyPath | None = None) -> Checkpoint:
    """Load a checkpoint, with an estimate's radiometry and shift in place of its own if given."""
    checkpoint = load_checkpoint(Path(path))
    return checkpoint if estimate is None else applied(checkpoint, Path(estimate))


@dataclass(frozen=True, eq=False)
class InferForecast:
    """What `infer` would do.

    Args:
        plan: of its work; what it holds in memory also depends on the output's format.
        pixels_per_s: read and computed in a short trial on this machine, without writing.
    """

    plan: InferPlan
    pixels_per_s: float

    @property
    def seconds(self) -> float:
        """About how long it would take if the disk keeps up."""
        return self.plan.meta.rows * self.plan.meta.cols / self.pixels_per_s


def plan_infer(
    model: AnyPath,
    image: AnyPath,
    output: AnyPath,
    config: InferConfig | None = None,
    *,
    stored: Storage = Storage(),
    batch_size: int | None = None,
    reading: Reading = Reading(),
    execution: Execution = Execution(),
    estimate: AnyPath | None = None,
) -> InferForecast:
    """Return what `infer` would write, need and take; the arguments are those of `infer`."""
    checkpoint = open_model(model, estimate)
    path, _ = pairs.sharp_image(Path(image))
    with reading.open(path, allow_2d=True) as reader:
        check_on_map(reader)
        inference = prepare(
            checkpoint, without_dropped(reader, checkpoint.srf), config or InferConfig(),
            dtype=stored.dtype, scale=stored.scale, offset=stored.offset, nodata=stored.nodata,
            batch_size=batch_size, device=resolve_device(execution.device),
            threads=execution.threads, memory_bytes=execution.memory_bytes, output=Path(output),
        )  # fmt: skip
        return InferForecast(inference.plan, inference.trial())


def evaluate(
    reference: AnyPath,
    prediction: AnyPath,
    config: MetricsConfig | None = None,
    *,
    per_band_file: AnyPath | None = None,
    maps_folder: AnyPath | None = None,
    maps_like: AnyPath | None = None,
    reading: Reading = Reading(),
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> Scores:
    """Score a prediction against a reference.

    Args:
        reference: a cube, or a scene, which stands for its ground truth and ratio.
        prediction: a cube of the same shape.
        config: conventions; None for the defaults.
        per_band_file: CSV of the scores of every band to write, or None.
        maps_folder: folder of error maps and curves to write, or None; see `ErrorMaps`.
        maps_like: folder of other maps whose limits of colours to take, or None.
        reading: how to read both.
        overwrite: replace an existing CSV or folder of maps.
        progress: called with (done, total).

    Raises:
        DataError: the shapes differ, or no pixel is valid in both.
        OptionError: `maps_like` without `maps_folder`.
        OutputExistsError: the CSV or the folder exists and `overwrite` is false.
    """
    if maps_like is not None and maps_folder is None:
        raise OptionError("--maps-like does not apply without maps", "give --maps DIR as well")
    if per_band_file is not None:
        _check_absent(Path(per_band_file), overwrite, apart_from=[reference, prediction])
    config = config or MetricsConfig()
    path, scene = pairs.reference_image(Path(reference))
    if scene is not None and config.ratio is None:
        config = dataclasses.replace(config, ratio=scene.ratio)
    with reading.open(path) as truth, reading.open(prediction) as guess:
        if maps_folder is None:
            scores = evaluate_cubes(truth, guess, config, progress)
        else:
            from spectralift_cli.core.pictures.errormaps import evaluate_with_maps

            scores = evaluate_with_maps(
                truth, guess, Path(maps_folder), config, like=maps_like, overwrite=overwrite,
                progress=progress,
            )  # fmt: skip
        wavelengths_nm = truth.meta.wavelengths_nm
    if per_band_file is not None:
        text = per_band_csv(scores, wavelengths_nm)
        write_text(Path(per_band_file), text, overwrite=overwrite)
    return scores
