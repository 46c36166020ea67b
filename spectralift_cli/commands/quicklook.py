"""`spectralift quicklook`: a cube, or an image of a scene, as a colour picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from spectralift_cli.commands import options
from spectralift_cli.commands.console import Console, Result, command
from spectralift_cli.core.config import QuicklookConfig


@command
def quicklook(
    console: Console,
    cube: Annotated[Path, typer.Argument(metavar="CUBE|SCENE", help="Cube, or a scene's folder.")],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="PNG",
            show_default=False,
            help="Picture: .png, or .tif for a GeoTIFF.",
        ),
    ],
    config: QuicklookConfig,
    role: Annotated[
        Literal["lr_hsi", "hr_msi", "gt"] | None,
        typer.Option(help="Which image of a scene.", show_default="hr_msi"),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(
            metavar="CUBE|SCENE",
            help="Draw with the mode and the stretch (in units) of another cube, or of a scene's "
            "HR-MSI.",
        ),
    ] = None,
    world_file: Annotated[
        bool,
        typer.Option(
            "--world-file",
            rich_help_panel=options.WRITING,
            help="Also write the PNG's georeference: .pgw and .png.aux.xml.",
        ),
    ] = False,
    var: options.Var = None,
    axis_order: options.AxisOrder = None,
    wavelengths: options.Wavelengths = None,
    memory: options.Memory = None,
    overwrite: options.Overwrite = False,
) -> Result:
    """Draw a cube in colour: CIE true colour, or false colour where it lacks the visible.

    Of a scene, the image that --role names is drawn. Holes are transparent. Of a very large cube
    only some rows are read.
    """
    memory_bytes = options.parse_size(memory)

    from spectralift_cli.core.pictures.files import quicklook as draw

    with console.progress(f"quicklook {cube.name}") as progress:
        picture, files = draw(
            cube, output, config, role=role, like=like, world_file=world_file, var=var,
            axis_order=axis_order, wavelengths=wavelengths, memory_bytes=memory_bytes,
            overwrite=overwrite, progress=progress,
        )  # fmt: skip
    console.say(picture.text)
    return Result(outputs=files, data=picture.record)
