"""The stages as functions on files: what the commands, `run` and Python users call."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from spectralift_cli.core import pairs
from spectralift_cli.core.checkpoint import (
    Checkpoint,
    load_checkpoint,
)
from spectralift_cli.core.config import InferConfig, MetricsConfig, SynthConfig
from spectralift_cli.core.cube import Progress, no_progress
from spectralift_cli.core.cubeio import CubeReader
from spectralift_cli.core.errors import OptionError
from spectralift_cli.core.estimation.apply import applied
from spectralift_cli.core.formats import check_creation
from spectralift_cli.core.formats.kernels import read_psf
from spectralift_cli.core.given import AnyPath, Execution, Reading, Storage, check_absent
from spectralift_cli.core.grids import check_on_map
from spectralift_cli.core.inference import InferPlan, InferResult, prepare
from spectralift_cli.core.inference import infer as infer_cube
from spectralift_cli.core.jobs.folder import refuse_unfinished
from spectralift_cli.core.metrics.evaluate import Scores, per_band_csv
from spectralift_cli.core.metrics.evaluate import evaluate as evaluate_cubes
from spectralift_cli.core.msi_bands import without_dropped
from spectralift_cli.core.outputs import write_text
from spectralift_cli.core.pairs import ResponseChoice
from spectralift_cli.core.scene import Scene
from spectralift_cli.core.sensors.response import Srf
from spectralift_cli.core.synthesis import SynthPlan, plan_synthesis, synthesize
from spectralift_cli.core.trainstage import TrainInputs, plan_train, train
from spectralift_cli.core.uncertainty.write import calibration_of, write_uncertainty

__all__ = [
    "AnyPath",
    "Execution",
    "InferForecast",
    "Reading",
    "ResponseChoice",
    "Storage",
    "TrainInputs",
    "evaluate",
    "infer",
    "open_model",
    "plan_infer",
    "plan_synth",
    "plan_train",
    "synth",
    "train",
]


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
        check_absent(Path(uncertainty_file), overwrite, apart_from=[output, model, path])
    with reading.open(path, allow_2d=True) as reader:
        check_on_map(reader)
        msi = without_dropped(reader, checkpoint.srf)
        made = infer_cube(
            checkpoint, msi, Path(output), config or InferConfig(), stored=stored,
            batch_size=batch_size, execution=execution, overwrite=overwrite,
        )  # fmt: skip
        if uncertainty_file is None:
            return made
        expected = write_uncertainty(
            checkpoint, msi, Path(uncertainty_file), source=model, execution=execution,
            overwrite=overwrite,
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
    """Return what `infer` would write, need and take; the arguments are those of `infer`.

    Raises:
        DataError: `infer` would refuse these, too; an output that exists is no reason.
        OptionError: likewise.
    """
    check_absent(Path(output), overwrite=True)
    checkpoint = open_model(model, estimate)
    path, _ = pairs.sharp_image(Path(image))
    with reading.open(path, allow_2d=True) as reader:
        check_on_map(reader)
        inference = prepare(
            checkpoint, without_dropped(reader, checkpoint.srf), config or InferConfig(),
            stored=stored, batch_size=batch_size, execution=execution, output=Path(output),
        )  # fmt: skip
        check_creation(Path(output), inference.meta.dtype.name, stored.options)
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
        check_absent(Path(per_band_file), overwrite, apart_from=[reference, prediction])
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
