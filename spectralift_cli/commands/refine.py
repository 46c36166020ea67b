"""`spectralift refine`: make a sharp cube agree with both images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spectralift_cli.commands import options
from spectralift_cli.commands.console import Console, Result, command, table
from spectralift_cli.core.config import RefineConfig


@command
def refine(
    console: Console,
    cube: Annotated[
        Path,
        typer.Argument(
            metavar="CUBE", help="Sharp cube on the HR-MSI's grid, from infer or elsewhere."
        ),
    ],
    output: options.OutputCube,
    config: RefineConfig,
    scene: Annotated[
        Path | None, typer.Option(metavar="SCENE", help="Scene that holds both images.")
    ] = None,
    lr_hsi: options.LrHsi = None,
    hr_msi: options.HrMsi = None,
    srf_file: options.SrfFile = None,
    sensor: options.Sensor = None,
    msi_bands: options.MsiBands = None,
    drop_uncovered_bands: options.DropUncoveredBands = False,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL", rich_help_panel=options.LOOSE,
            help="Checkpoint that knows the spectral response, in place of --srf-file.",
        ),
    ] = None,
    psf_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", show_default="the scene's, else found from the images",
            help="Point spread function on the HR grid: .csv, .npy, .mat, ...",
        ),
    ] = None,
    estimate: options.Estimate = None,
    var: options.Var = None,
    axis_order: options.AxisOrder = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", show_default="half of what is free, 2GB at most", rich_help_panel=options.RUN,
            help="Most memory to take, like 500MB or 2GB; changes the speed, not the result.",
        ),
    ] = None,
    co: options.CreationOptions = None,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
) -> Result:  # fmt: skip
    """Make a sharp cube agree with the LR-HSI and the HR-MSI, where held-out pixels agree."""
    options.check_output_name(output)
    options.refuse_several_responses(console.given, ())
    memory_bytes = options.parse_size(memory)
    creation = options.parse_creation_options(co)

    from spectralift_cli.core import refining
    from spectralift_cli.core.pairs import ResponseChoice
    from spectralift_cli.core.stages import Reading

    with options.stdin_as_file(srf_file) as srf_path:
        response = ResponseChoice(
            srf_file=srf_path, sensor=sensor, msi_bands=msi_bands,
            drop_uncovered_bands=drop_uncovered_bands,
        )  # fmt: skip
        inputs = refining.RefineInputs(
            scene, lr_hsi, hr_msi, response, model, psf_file, estimate,
            Reading(var, axis_order, None, memory_bytes),
        )  # fmt: skip
        if dry_run:
            plan = refining.plan_refine(cube, inputs)
            shape = "x".join(map(str, plan.meta.shape))
            psf = "x".join(map(str, plan.psf_shape or ())) or "found from the images"
            rows = [
                (str(output), f"{shape} {plan.meta.dtype.name}, {plan.meta.nbytes / 1e6:,.1f} MB"),
                ("placement", str(plan.placement)),
                ("PSF", psf),
                ("cube", "kept in memory" if plan.held else "read four times, by rows"),
                ("memory", f"{plan.memory_bytes / 1e6:,.0f} MB besides PyTorch itself"),
            ]
            data = {
                "shape": list(plan.meta.shape), "dtype": plan.meta.dtype.name,
                "size_bytes": plan.meta.nbytes, "scale": list(plan.placement.scale),
                "origin_px": list(plan.placement.origin_px), "psf_shape": plan.psf_shape,
                "held": plan.held, "memory_bytes": plan.memory_bytes,
            }  # fmt: skip
            return Result(data={"plan": data}, table=table(rows))
        with console.progress(f"refine {cube.name}") as progress:
            result = refining.refine(
                cube, inputs, output, config, options=creation, overwrite=overwrite,
                progress=progress,
            )  # fmt: skip
    for line in result.summary():
        console.say(line)
    return Result(outputs=result.files, data=result.to_json())
