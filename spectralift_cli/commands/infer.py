"""`spectralift infer`: make the sharp hyperspectral cube."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spectralift_cli.commands import options
from spectralift_cli.commands.console import Console, Result, command, table
from spectralift_cli.core.config import InferConfig
from spectralift_cli.core.errors import OptionError

if TYPE_CHECKING:
    from spectralift_cli.core.inference import InferResult

_REFINING = "Refining"


@command
def infer(
    console: Console,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Checkpoint made by train.")],
    image: Annotated[
        Path, typer.Argument(metavar="HR_MSI", help="Sharp multispectral image, or a scene.")
    ],
    output: options.OutputCube,
    config: InferConfig,
    estimate: options.Estimate = None,
    refine: Annotated[
        bool,
        typer.Option(
            "--refine",
            rich_help_panel=_REFINING,
            help="Make the cube agree with both images, as the command refine does.",
        ),
    ] = False,
    lr_hsi: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=_REFINING,
            show_default="the scene's",
            help="Blurry hyperspectral image to agree with.",
        ),
    ] = None,
    psf_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=_REFINING,
            show_default="the scene's, else found from the images",
            help="Point spread function on the HR grid.",
        ),
    ] = None,
    dtype: options.DType = None,
    scale: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=options.WRITING,
            show_default="the LR-HSI's",
            help="Stored value to unit of an integer output, for example 0.0001.",
        ),
    ] = None,
    offset: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=options.WRITING,
            show_default="the LR-HSI's",
            help="Added after the scale, for an integer output.",
        ),
    ] = None,
    nodata: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=options.WRITING,
            show_default="the LR-HSI's",
            help="Mark of holes in an integer output; floats have NaN.",
        ),
    ] = None,
    inference_batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=2**31 - 1,
            show_default="cache-sized",
            help="Pixels at a time; changes memory and speed, not the result.",
        ),
    ] = None,
    uncertainty: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also write the expected RMSE of every pixel, its 68 % and 95 % quantiles, which hold "
            "on average over scenes and not in each, and a flag for spectra unlike the training's; "
            "needs train --uncertainty.",
        ),
    ] = None,
    var: options.Var = None,
    axis_order: options.AxisOrder = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            rich_help_panel=options.RUN,
            show_default="what speed asks for, whatever the size of the image",
            help="Most memory that a process may hold, Python and PyTorch included, like 600MB or 2GB: "
            "what needs more is refused. Less is slower, with the same bytes. Kept on --device cpu; "
            "not with --refine or --uncertainty.",
        ),
    ] = None,
    co: options.CreationOptions = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    workers: options.Workers = None,
    shard: options.ShardText = None,
    scheduler: options.Scheduler = None,
    scheduler_file: options.SchedulerFile = None,
    resume: options.ResumeJob = False,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
) -> Result:
    """Make the sharp hyperspectral cube: the LR-HSI's bands and units on the HR-MSI's grid."""
    options.check_output_name(output)
    if uncertainty is not None:
        options.check_output_name(uncertainty)
    memory_bytes = options.parse_size(memory)
    creation = options.parse_creation_options(co)
    share = options.parse_shard(shard)
    shared = (workers, share, scheduler, scheduler_file) != (None,) * 4 or resume
    if not refine and (lr_hsi or psf_file):
        raise typer.BadParameter("--lr-hsi and --psf-file say how to refine: give --refine, too")
    more = "--refine" if refine else "--uncertainty" if uncertainty else None
    if more is not None and (shared or memory_bytes is not None):
        what = "a job that is shared or resumed" if shared else "--memory: it holds more at a time"
        raise OptionError(
            f"{more} does not go with {what}",
            "infer without it, then spectralift refine" if refine else "leave one of them out",
        )
    if shared:
        from spectralift_cli.core.formats import check_shares_rows
        from spectralift_cli.core.jobs.plan import Shard
        from spectralift_cli.core.jobs.sharing import Sharing

        sharing = Sharing(workers, share and Shard(*share), scheduler, scheduler_file, resume)
        check_shares_rows(output)

    if shared and not dry_run:
        from spectralift_cli.core.jobs.sharing import infer_shared

        # who helps is started now and imports PyTorch while this process does
        with (
            _telling_of_resume(console, output),
            sharing.executor() as executor,
            console.progress(f"infer {image.name}") as progress,
        ):
            from spectralift_cli.core.given import Execution, Reading, Storage
            from spectralift_cli.core.jobs.blocks import InferTask

            state = infer_shared(
                InferTask(
                    model, image, output, config, Storage(dtype, scale, offset, nodata, creation),
                    inference_batch_size, Reading(var, axis_order, None, memory_bytes), overwrite,
                    Execution(device, threads, memory_bytes=memory_bytes), estimate,
                ),
                sharing, executor=executor, progress=progress,
            )  # fmt: skip
        if state.result is None:
            console.say(
                f"{state.blocks_done} of {state.blocks} blocks are done; "
                f"{output} appears with the last"
            )
            blocks = {"blocks_done": state.blocks_done, "blocks": state.blocks}
            return Result(outputs=[state.folder], data={"unfinished": blocks})
        return _made(console, state.result)

    from spectralift_cli.core import stages
    from spectralift_cli.core.placement import placement_json

    reading = stages.Reading(var, axis_order, None, memory_bytes)
    stored = stages.Storage(dtype, scale, offset, nodata, creation)
    inputs = None
    if refine:
        from spectralift_cli.core import refining

        inputs = refining.refine_inputs(
            model, image, lr_hsi=lr_hsi, psf_file=psf_file, estimate=estimate, reading=reading
        )
    if dry_run:
        forecast = stages.plan_infer(
            model, image, output, config, stored=stored, batch_size=inference_batch_size,
            reading=reading,
            execution=stages.Execution(device, threads, memory_bytes=memory_bytes),
            estimate=estimate,
        )  # fmt: skip
        plan = forecast.plan
        shape = "x".join(map(str, plan.meta.shape))
        rate = f"{forecast.pixels_per_s / 1e6:,.2f} million pixels/s"
        rows = [
            (str(output), f"{shape} {plan.meta.dtype.name}, {plan.meta.nbytes / 1e6:,.1f} MB"),
            ("device", plan.device),
            (
                "at a time",
                f"{plan.batch_size:,} pixels on {plan.cut.workers} "
                f"thread{'s' * (plan.cut.workers > 1)}",
            ),
            ("memory", f"{plan.needed_bytes / 1e6:,.0f} MB besides PyTorch itself"),
            ("time", f"{forecast.seconds:,.1f} s at the {rate} of a trial just now, or the disk's"),
        ]
        if plan.placement is not None:
            rows.append(("placement", str(plan.placement)))
        if inputs is not None:
            rows.append(("then", "refined to agree with both images; see refine --dry-run"))
        data = {
            "shape": list(plan.meta.shape), "dtype": plan.meta.dtype.name,
            "size_bytes": plan.meta.nbytes, "batch_size": plan.batch_size,
            "workers": plan.cut.workers, "memory_bytes": plan.needed_bytes, "device": plan.device,
            "trial_pixels_per_s": forecast.pixels_per_s, "trial_seconds": forecast.seconds,
            "placement": placement_json(plan.placement), "refine": refine,
        }  # fmt: skip
        return Result(data={"plan": data}, table=table(rows))
    if inputs is not None:
        with console.progress(f"infer and refine {image.name}") as progress:
            both = refining.infer_refined(
                model, image, output, config, inputs=inputs,
                stored=stored, batch_size=inference_batch_size, reading=reading,
                execution=stages.Execution(device, threads, progress),
                uncertainty_file=uncertainty, overwrite=overwrite,
            )  # fmt: skip
        for line in both.refined.summary():
            console.say(line)
        told, files = _uncertainty(console, both.inferred)
        return Result(
            outputs=both.refined.files, side_files=files, data=both.refined.to_json() | told
        )
    with console.progress(f"infer {image.name}") as progress:
        result = stages.infer(
            model, image, output, config, stored=stored, batch_size=inference_batch_size,
            reading=reading,
            execution=stages.Execution(device, threads, progress, memory_bytes),
            overwrite=overwrite, estimate=estimate, uncertainty_file=uncertainty,
        )  # fmt: skip
    return _made(console, result)


@contextlib.contextmanager
def _telling_of_resume(console: Console, output: Path) -> Iterator[None]:
    """Say how an interrupted job goes on, if it kept anything."""
    try:
        yield
    except BaseException as stop:
        from spectralift_cli.core.jobs.folder import job_path

        # an interrupt or SIGTERM; errors have hints of their own
        if not isinstance(stop, Exception) and job_path(output).is_dir():
            console.say(f"{job_path(output)} keeps what is done: --resume continues it")
        raise


def _made(console: Console, result: InferResult) -> Result:
    """Say what was made, and return it."""
    from spectralift_cli.core.placement import placement_json

    counts = ("pixels", "holes", "clipped", "saturated", "moved")
    place = placement_json(result.placement)
    if result.placement is not None and place is not None:
        console.say(str(result.placement))
        covered = place["hr_pixels_covered"]
        if covered != result.pixels:
            console.say(f"the LR-HSI covers {covered:,} of {result.pixels:,} pixels")
    data = {"counts": {name: getattr(result, name) for name in counts}, "placement": place}
    told, side_files = _uncertainty(console, result)
    return Result(outputs=result.files, side_files=side_files, data=data | told)


def _uncertainty(console: Console, result: InferResult) -> tuple[dict[str, object], Sequence[Path]]:
    """Say what was written of the uncertainty; return it for --json, and its files."""
    expected = result.uncertainty
    if expected is None:
        return {}, ()
    console.say(str(expected))
    told = {
        "flagged": expected.flagged, "pixels": expected.pixels,
        "mean_expected_rmse": expected.mean_expected,
    }  # fmt: skip
    return {"uncertainty": told}, expected.files
