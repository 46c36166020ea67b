"""`spectralift train`: fit the spectral inverter."""

from __future__ import annotations

import contextlib
import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from spectralift_cli.commands import options
from spectralift_cli.commands.console import Console, Result, command
from spectralift_cli.core.config import SynthConfig, TrainConfig

if TYPE_CHECKING:
    from spectralift_cli.core.ranks import Ranks
    from spectralift_cli.core.stages import TrainInputs
    from spectralift_cli.core.training import TrainingPlan


@command
def train(
    console: Console,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="MODEL", help="Checkpoint to write (.safetensors)."),
    ],
    config: TrainConfig,
    scene: Annotated[
        list[Path] | None,
        typer.Argument(metavar="SCENE", help="Scene to train on; several for one model."),
    ] = None,
    scene_option: options.SceneOption = None,
    lr_hsi: options.LrHsi = None,
    hr_msi: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=options.LOOSE,
            help="Sharp multispectral image: its bands, place and units are checked; its band names "
            "choose a sensor's bands, its wavelengths and FWHM make the response where no option "
            "does; preset auto allows for its noise and fits through the PSF to its pixels.",
        ),
    ] = None,
    srf_file: options.SrfFile = None,
    sensor: options.Sensor = None,
    msi_bands: options.MsiBands = None,
    num_msi_bands: options.NumMsiBands = None,
    fwhm_factor: options.FwhmFactor = None,
    estimate: options.Estimate = None,
    drop_uncovered_bands: Annotated[
        bool,
        typer.Option(
            "--drop-uncovered-bands",
            rich_help_panel=options.LOOSE,
            help="Drop MSI bands that the cube's wavelengths cover less than half.",
        ),
    ] = False,
    var: options.Var = None,
    axis_order: options.AxisOrder = None,
    wavelengths: options.Wavelengths = None,
    memory: options.Memory = None,
    history: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV", help="Also write epoch, learning rate and loss (preset paper)."
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue a killed training of preset paper from MODEL.state."
        ),
    ] = False,
    save_every: Annotated[
        float, typer.Option(min=0.1, max=1e6, help="Seconds between savings of MODEL.state.")
    ] = 30.0,
    device: options.Device = "auto",
    threads: options.Threads = None,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
) -> Result:
    """Fit the model that turns an MSI spectrum into a hyperspectral one.

    The preset auto fits several models to a part of the LR pixels, weighs them by their error on
    the others, and fits them again to all. It needs no ground truth. Of the HR-MSI it takes the
    noise, and some pixels to make one network of several; and with 3 bands or more it fits one
    model to the LR-HSI through the PSF, at the HR pixels (--model physics fits that one alone).

    Several scenes of the same two sensors make one model; --max-pixels draws a part of their LR
    pixels, so that LR-HSIs larger than the memory can be trained on. `torchrun --nproc-per-node N
    -m spectralift_cli train ... --preset paper` shares the published training among processes.

    Trains on a SCENE, or on a loose LR-HSI with the response of the MSI: --sensor, --msi-bands,
    --srf-file, or --num-msi-bands for a documented sensor; none of them where the file of --hr-msi
    has wavelengths and FWHM.
    """
    memory_bytes = options.parse_size(memory)
    options.refuse_several_responses(console.given, ("num_msi_bands", "fwhm_factor"))

    from spectralift_cli.core import stages
    from spectralift_cli.core.pairs import ResponseChoice
    from spectralift_cli.core.ranks import Ranks

    with options.stdin_as_file(srf_file) as srf_path:
        response = ResponseChoice(
            srf_file=srf_path, sensor=sensor, msi_bands=msi_bands, num_msi_bands=num_msi_bands,
            fwhm_factor=SynthConfig.fwhm_factor if fwhm_factor is None else fwhm_factor,
            drop_uncovered_bands=drop_uncovered_bands,
        )  # fmt: skip
        chosen = stages.TrainInputs(
            scene=options.only_scene(scene[0] if scene else None, scene_option), lr_hsi=lr_hsi,
            hr_msi=hr_msi, response=response,
            reading=stages.Reading(var, axis_order, wavelengths, memory_bytes), estimate=estimate,
        )  # fmt: skip
        inputs = [chosen, *(replace(chosen, scene=more) for more in (scene or ())[1:])]
        ranks = Ranks.of(os.environ)
        if ranks is not None and not ranks.leads:
            _follow(ranks, inputs, output, config, device, threads, resume=resume, dry_run=dry_run)
        if ranks is not None and config.published is None:
            console.warn(
                f"the preset {config.preset}, whose fits are small, keeps 1 of {ranks.count} processes busy"
            )
            ranks = None
        if dry_run:
            plan = stages.plan_train(inputs, config)
            return Result(data={"plan": plan.to_json()}, table=_told(plan))
        with _telling_of_resume(console, output), console.progress("train") as progress:
            trained = stages.train(
                inputs, output, config, history_file=history,
                execution=stages.Execution(device, threads, progress),
                announce=lambda plan: console.say(_told(plan)),
                resume=resume, save_every_s=save_every, overwrite=overwrite, ranks=ranks,
            )  # fmt: skip
        if trained.checkpoint.choice:
            console.say(f"chose {trained.checkpoint.choice}")
        console.detail(f"fitted in {trained.pace}")
        outputs = [output] if history is None else [output, history]
        return Result(
            outputs=outputs,
            data={
                "plan": trained.plan.to_json(),
                "model": trained.checkpoint.model_name,
                "choice": trained.checkpoint.choice,
                "scores": dict(trained.checkpoint.scores),
                "pace": trained.pace.to_json(),
            },
        )


def _follow(
    ranks: Ranks,
    inputs: Sequence[TrainInputs],
    output: Path,
    config: TrainConfig,
    device: str,
    threads: int | None,
    *,
    resume: bool,
    dry_run: bool,
) -> NoReturn:
    """Do the part of a process that does not lead, which writes and says nothing, and leave."""
    from spectralift_cli.core import stages
    from spectralift_cli.core.errors import SpectraliftWarning

    # a process that waits for another inside PyTorch runs no handler of ours, and has nothing to undo
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if config.published is not None and not dry_run:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SpectraliftWarning)  # the first process says them
            execution = stages.Execution(device, threads)
            stages.train(inputs, output, config, execution=execution, resume=resume, ranks=ranks)
    raise typer.Exit


@contextlib.contextmanager
def _telling_of_resume(console: Console, output: Path) -> Iterator[None]:
    """Say how an interrupted training goes on, if it kept its state."""
    try:
        yield
    except BaseException as stop:
        from spectralift_cli.core.fitstate import state_path_of

        # an interrupt or SIGTERM; errors have hints of their own
        if not isinstance(stop, Exception) and state_path_of(output).exists():
            console.say(f"{state_path_of(output)} keeps the training: --resume continues it")
        raise


def _told(plan: TrainingPlan) -> str:
    return str(plan) if plan.placement is None else f"{plan.placement}\n{plan}"
