"""`spectralift validate`: quality without a ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spectralift_cli.commands import options
from spectralift_cli.commands.console import Console, Result, command, table
from spectralift_cli.core.config import RefineConfig, SynthConfig, TrainConfig

if TYPE_CHECKING:
    from spectralift_cli.core.validation.figures import Validation


@command
def validate(
    console: Console,
    config: TrainConfig,
    scene: Annotated[
        Path | None, typer.Argument(metavar="SCENE", help="Scene to validate.")
    ] = None,
    scene_option: options.SceneOption = None,
    lr_hsi: options.LrHsi = None,
    hr_msi: options.HrMsi = None,
    srf_file: options.SrfFile = None,
    sensor: options.Sensor = None,
    msi_bands: options.MsiBands = None,
    num_msi_bands: options.NumMsiBands = None,
    fwhm_factor: options.FwhmFactor = None,
    drop_uncovered_bands: options.DropUncoveredBands = False,
    psf_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default="the scene's, else found from the images",
            help="Point spread function of the LR-HSI, on the HR grid: .csv, .npy, .mat, ...",
        ),
    ] = None,
    trust_psf: Annotated[
        bool,
        typer.Option(
            "--trust-psf", help="Take the given PSF as it is, also where the images disagree."
        ),
    ] = False,
    estimate: options.Estimate = None,
    estimate_anew: Annotated[
        bool,
        typer.Option(
            "--estimate-anew", help="One scale down, estimate again from the degraded images."
        ),
    ] = False,
    refine: Annotated[
        bool,
        typer.Option("--refine", help="One scale down, refine as infer --refine and run do."),
    ] = False,
    result: Annotated[
        Path | None,
        typer.Option(
            metavar="CUBE", help="Sharp cube to compare with both images, on the HR-MSI's grid."
        ),
    ] = None,
    maps: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Also write maps of both residuals (GeoTIFF, PNG) and validate.json.",
        ),
    ] = None,
    no_reduced: Annotated[
        bool, typer.Option("--no-reduced", help="Do not run the pipeline one scale down.")
    ] = False,
    var: options.Var = None,
    axis_order: options.AxisOrder = None,
    wavelengths: options.Wavelengths = None,
    memory: options.Memory = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    overwrite: options.Overwrite = False,
) -> Result:
    """Judge fusion without a ground truth.

    Runs the pipeline one scale down, where the LR-HSI is the truth: train with its options, infer,
    and with --estimate, --estimate-anew and --refine what these do. Of a --result it also tells how
    far it agrees with the LR-HSI and the HR-MSI, and D_lambda, D_s and HQNR.
    """
    options.refuse_several_responses(console.given, ("num_msi_bands", "fwhm_factor"))
    memory_bytes = options.parse_size(memory)

    from spectralift_cli.core.pairs import ResponseChoice
    from spectralift_cli.core.stages import Reading
    from spectralift_cli.core.validation.inputs import ValidateInputs
    from spectralift_cli.core.validation.validate import validate as run

    with options.stdin_as_file(srf_file) as srf_path, console.progress("validate") as progress:
        found = run(
            ValidateInputs(
                scene=options.only_scene(scene, scene_option), lr_hsi=lr_hsi, hr_msi=hr_msi,
                response=ResponseChoice(
                    srf_file=srf_path, sensor=sensor, msi_bands=msi_bands,
                    num_msi_bands=num_msi_bands,
                    fwhm_factor=SynthConfig.fwhm_factor if fwhm_factor is None else fwhm_factor,
                    drop_uncovered_bands=drop_uncovered_bands,
                ),
                psf_file=psf_file, estimate=estimate,
                lr_reading=Reading(var, axis_order, wavelengths, memory_bytes),
                msi_reading=Reading(memory_bytes=memory_bytes),
            ),
            config, result=result, maps=maps, reduced=not no_reduced,
            refine=RefineConfig() if refine else None, estimate_anew=estimate_anew,
            trust_psf=trust_psf, device=device, threads=threads, overwrite=overwrite,
            progress=progress,
        )  # fmt: skip
    return Result(
        side_files=[] if maps is None else [maps], data=found.to_json(), table=_table(found)
    )


def _table(found: Validation) -> str:
    lines = [f"PSF: {found.psf}"]
    for section in found.sections:
        rows = [("figure", "value", "unit", "what it means here")]
        for figure in section.figures:
            note = f" ({figure.note})" if figure.note else ""
            rows.append((figure.name, f"{figure.value:.5g}", figure.unit or "-",
                         figure.meaning + note))  # fmt: skip
        lines += ["", section.title, section.about, table(rows, header=True, right=[1])]
    return "\n".join(lines)
