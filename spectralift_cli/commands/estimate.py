"""`spectralift estimate`: what two images say of each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spectralift_cli.commands import options
from spectralift_cli.commands.console import Console, Result, command, table

if TYPE_CHECKING:
    from spectralift_cli.core.estimation.result import Estimate

_PARTS = ("shift", "psf", "gain", "srf")


@command
def estimate(
    console: Console,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="JSON", help="Estimate to write (.json).")
    ],
    scene: Annotated[
        Path | None, typer.Argument(metavar="SCENE", help="Scene with the two images.")
    ] = None,
    scene_option: options.SceneOption = None,
    lr_hsi: options.LrHsi = None,
    hr_msi: options.HrMsi = None,
    srf_file: options.SrfFile = None,
    sensor: options.Sensor = None,
    msi_bands: options.MsiBands = None,
    drop_uncovered_bands: options.DropUncoveredBands = False,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="PART,...", show_default=",".join(_PARTS),
            help="Estimate these alone: shift, psf, gain (with offset), srf.",
        ),
    ] = None,
    no_shift: Annotated[bool, typer.Option("--no-shift", help="Take the shift for 0.")] = False,
    no_psf: Annotated[
        bool, typer.Option("--no-psf", help="Do not report the PSF.")
    ] = False,
    no_gain: Annotated[
        bool, typer.Option("--no-gain", help="Do not report gain and offset.")
    ] = False,
    no_srf: Annotated[
        bool, typer.Option("--no-srf", help="Keep the nominal spectral response.")
    ] = False,
    psf_size: Annotated[
        int | None,
        typer.Option(
            min=3, max=255, show_default="follows the ratio",
            help="Side of the PSF's kernel (odd, 3 to 255 HR pixels).",
        ),
    ] = None,
    psf_png: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw the PSF (.png).")
    ] = None,
    var: options.Var = None,
    axis_order: options.AxisOrder = None,
    wavelengths: options.Wavelengths = None,
    overwrite: options.Overwrite = False,
) -> Result:  # fmt: skip
    """Estimate how an HR-MSI and an LR-HSI relate, from the two images alone.

    The sub-pixel shift, the PSF (blur and LR pixel together), gain and offset of every MSI band, and
    the spectral response (SRF), each with its uncertainty. What lowers the error on held-out LR
    pixels significantly is marked as used, and `train --estimate` and `infer --estimate` take that.
    Where no response is given (--sensor, --srf-file, --msi-bands or the MSI's metadata), it is
    estimated; where one is, it is kept unless the estimated one is significantly better.
    """
    options.refuse_several_responses(console.given, ())
    left_out = {"shift": no_shift, "psf": no_psf, "gain": no_gain, "srf": no_srf}
    refused = [part for part in _PARTS if left_out[part]]
    if only is not None and refused:
        raise typer.BadParameter(f"--no-{refused[0]} does not apply: --only names the parts")
    chosen = _PARTS if only is None else tuple(word.strip() for word in only.split(","))

    from spectralift_cli.core.estimation.estimate import EstimateInputs
    from spectralift_cli.core.estimation.estimate import estimate as estimate_files
    from spectralift_cli.core.pairs import ResponseChoice

    with options.stdin_as_file(srf_file) as srf_path:
        inputs = EstimateInputs(
            scene=options.only_scene(scene, scene_option), lr_hsi=lr_hsi, hr_msi=hr_msi,
            response=ResponseChoice(
                srf_file=srf_path, sensor=sensor, msi_bands=msi_bands,
                drop_uncovered_bands=drop_uncovered_bands,
            ),
            var=var, axis_order=axis_order, wavelengths=wavelengths,
        )  # fmt: skip
        with console.progress("estimate") as progress:
            found = estimate_files(
                inputs, output, parts=[part for part in chosen if part not in refused],
                psf_size=psf_size, psf_png=psf_png, overwrite=overwrite, progress=progress,
            )  # fmt: skip
    console.say(_told(found))
    outputs = [output] if psf_png is None else [output, psf_png]
    return Result(outputs=outputs, data=found.to_json())


def _told(found: Estimate) -> str:
    """Return what was found as a table, and what is used, with the reasons."""
    parts = found.findings
    rows = []
    if parts.shift is not None:
        for name, value, std in zip(
            ("rows", "columns"), parts.shift.shift_px, parts.shift.std_px, strict=True
        ):
            rows.append((f"shift, {name}", f"{value:+.3f} +- {std:.3f}", "LR pixels"))
    if parts.psf is not None:
        down, across = parts.psf.width_px
        rows.append(("PSF, rms width", f"{down:.2f} x {across:.2f}", "HR pixels"))
    if parts.gain is not None:
        gain = parts.gain
        for i, name in enumerate(found.band_names):
            rows.append((
                f"gain, offset {name}", f"{gain.gain[i]:.4g} +- {gain.gain_std[i]:.2g}",
                f"{gain.offset[i]:+.4g} +- {gain.offset_std[i]:.2g}",
            ))  # fmt: skip
    lines = [table(rows)] if rows else []
    for part in (parts.shift, parts.psf, parts.gain, parts.srf):
        if part is not None:
            lines += [f"{part.why}; {part.fit}"]
    return "\n".join(lines)
