"""`spectralift synth`: degrade a cube into a scene."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spectralift_cli.commands import options
from spectralift_cli.commands.console import Console, Result, command, table
from spectralift_cli.core.config import SynthConfig


@command
def synth(
    console: Console,
    cube: options.InputCube,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="SCENE", help="Folder of the scene.")
    ],
    config: SynthConfig,
    psf_file: options.PsfFile = None,
    srf_file: options.SrfFile = None,
    sensor: options.Sensor = None,
    msi_bands: options.MsiBands = None,
    cube_format: Annotated[
        str, typer.Option("--format", metavar="ENDING", help="Format of the cubes in the scene.")
    ] = "h5",
    var: options.Var = None,
    axis_order: options.AxisOrder = None,
    wavelengths: options.Wavelengths = None,
    memory: options.Memory = None,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
) -> Result:
    """Degrade a sharp cube into LR-HSI and HR-MSI, with SRF, PSF and ground truth."""
    memory_bytes = options.parse_size(memory)
    options.refuse_replaced(console.given, "psf_file", ("psf_type", "sigma", "kernel_size"))
    options.refuse_several_responses(
        console.given, ("num_msi_bands", "fwhm_factor", "srf_wavelengths")
    )

    from spectralift_cli.core import stages

    reading = stages.Reading(var, axis_order, wavelengths, memory_bytes)
    with options.stdin_as_file(srf_file) as srf_path:
        if dry_run:
            plan = stages.plan_synth(
                cube, config, psf_file=psf_file, srf_file=srf_path, sensor=sensor,
                msi_bands=msi_bands, cube_format=cube_format, reading=reading,
            )  # fmt: skip
            cubes = {"gt": plan.gt, "hr_msi": plan.hr_msi, "lr_hsi": plan.lr_hsi}
            data = {
                "plan": {role: list(meta.shape) for role, meta in cubes.items()},
                "psf_shape": list(plan.psf.shape),
                "memory_bytes": plan.memory_bytes,
                "options": plan.options,
            }
            rows = [
                (
                    str(output / plan.file_name(role)),
                    "x".join(map(str, meta.shape)),
                    meta.dtype.name,
                )
                for role, meta in cubes.items()
            ]
            rows += [
                (str(output / "psf.csv"), "x".join(map(str, plan.psf.shape)), "PSF"),
                (
                    str(output / "srf.csv"),
                    "x".join(map(str, plan.srf.weights.shape)),
                    "SRF weights",
                ),
                ("memory", f"{plan.memory_bytes / 1e6:,.0f} MB", ""),
            ]
            return Result(data=data, table=table(rows))
        with console.progress(f"synth {cube.name}") as progress:
            scene = stages.synth(
                cube, output, config, psf_file=psf_file, srf_file=srf_path, sensor=sensor,
                msi_bands=msi_bands, cube_format=cube_format, reading=reading, overwrite=overwrite,
                progress=progress,
            )  # fmt: skip
        files = [scene.folder / name for name in sorted(scene.roles.values())]
        return Result(outputs=[output, *files], data={"recipe": dict(scene.recipe)})
