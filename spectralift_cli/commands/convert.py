"""`spectralift convert`: change a cube's format, type, bands or extent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from spectralift_cli.commands import options
from spectralift_cli.commands.console import Console, Result, command

_SELECT = "Selection"
_VALUES = "Stored values"
_DType = Literal[
    "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16",
    "float32", "float64",
]  # fmt: skip


@command
def convert(
    console: Console,
    source: Annotated[Path, typer.Argument(metavar="IN", help="Cube to read.")],
    target: Annotated[
        Path, typer.Argument(metavar="OUT", help="Where to write; the ending chooses the format.")
    ],
    bands: Annotated[
        str | None,
        typer.Option(
            "-b",
            "--bands",
            metavar="BANDS",
            show_default="all",
            rich_help_panel=_SELECT,
            help="Bands in the wanted order: 7, 3-10 (from 1), 650nm, 400nm-700nm; comma-separated.",
        ),
    ] = None,
    drop_bad_bands: Annotated[
        bool,
        typer.Option(
            "--drop-bad-bands", rich_help_panel=_SELECT, help="Leave out bands flagged as bad."
        ),
    ] = False,
    window: options.Window = None,
    bounds: Annotated[
        tuple[float, float, float, float] | None,
        typer.Option(
            metavar="W S E N",
            show_default="everything",
            rich_help_panel=_SELECT,
            help="Rectangle in map units; pixels whose centres are inside.",
        ),
    ] = None,
    dtype: Annotated[
        _DType | None,
        typer.Option(
            show_default="as stored",
            rich_help_panel=_VALUES,
            help="Data type; values that do not fit are an error.",
        ),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=_VALUES,
            show_default="the file's",
            help="New factor from stored value to unit; stored values change, units stay.",
        ),
    ] = None,
    offset: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=_VALUES,
            show_default="the file's",
            help="New offset added after the factor; stored values change, units stay.",
        ),
    ] = None,
    nodata: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=_VALUES,
            show_default="the file's",
            help="Stored value that marks holes in the output.",
        ),
    ] = None,
    assign_scale: Annotated[
        float | None,
        typer.Option(
            show_default="the file's",
            rich_help_panel=_VALUES,
            help="Say what stored values stand for where the file does not: they stay, units change.",
        ),
    ] = None,
    assign_offset: Annotated[
        float | None,
        typer.Option(
            show_default="the file's",
            rich_help_panel=_VALUES,
            help="Offset that goes with --assign-scale.",
        ),
    ] = None,
    var: options.Var = None,
    axis_order: options.AxisOrder = None,
    wavelengths: options.Wavelengths = None,
    memory: options.Memory = None,
    co: options.CreationOptions = None,
    overwrite: options.Overwrite = False,
) -> Result:
    """Change a cube's format, data type, axis order, bands or window.

    Stored values, wavelengths, units, nodata and georeference are kept; what the new format cannot
    hold is named in a warning.
    """
    options.check_output_name(target)
    rectangle = options.parse_window(window)
    creation = options.parse_creation_options(co)
    memory_bytes = options.parse_size(memory)

    from spectralift_cli.core.convert import convert as convert_cube
    from spectralift_cli.core.formats import open_cube

    reader = open_cube(
        source, var=var, axis_order=axis_order, wavelengths=wavelengths, memory_bytes=memory_bytes
    )
    with console.progress(f"convert {source.name}") as progress:
        files = convert_cube(
            reader, target, bands=bands, drop_bad_bands=drop_bad_bands, window=rectangle,
            bounds=bounds, dtype=dtype, scale=scale, offset=offset, nodata=nodata,
            assign_scale=assign_scale, assign_offset=assign_offset, options=creation, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    return Result(outputs=files)
