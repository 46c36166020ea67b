"""`spectralift quicklook`: a cube as a colour picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spectralift_cli.commands import options
from spectralift_cli.commands.console import Console, Result, command
from spectralift_cli.core.config import QuicklookConfig


@command
def quicklook(
    console: Console,
    cube: options.InputCube,
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
    like: Annotated[
        Path | None,
        typer.Option(
            metavar="CUBE", help="Draw with the mode and the stretch (in units) of another cube."
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

    Holes are transparent. Of a very large cube only some rows are read.
    """
    memory_bytes = options.parse_size(memory)

    import contextlib

    from spectralift_cli.core.formats import open_cube
    from spectralift_cli.core.pictures.rgb import write_quicklook

    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(
            open_cube(
                cube, var=var, axis_order=axis_order, wavelengths=wavelengths, allow_2d=True,
                memory_bytes=memory_bytes,
            )
        )  # fmt: skip
        other = None
        if like is not None:
            other = stack.enter_context(open_cube(like, allow_2d=True, memory_bytes=memory_bytes))
        progress = stack.enter_context(console.progress(f"quicklook {cube.name}"))
        picture, files = write_quicklook(
            reader, output, config, like=other, world_file=world_file, overwrite=overwrite,
            progress=progress,
        )  # fmt: skip
    console.say(picture.text)
    return Result(outputs=files, data=picture.record)
