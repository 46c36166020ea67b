"""`spectralift sample`: write a sample cube."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from spectralift_cli.commands import options
from spectralift_cli.commands.console import Console, Result, command, table

_DEFAULT_SIZE = "96,96,60"
_SYNTHETIC = "Sample `synthetic`"


@command
def sample(
    console: Console,
    name: Annotated[
        str, typer.Argument(help="Which sample; --list shows them.", metavar="NAME")
    ] = "indian-pines",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Where to write; the ending chooses the format."),
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="List the samples.")] = False,
    window: options.Window = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="ROWS,COLS,BANDS",
            show_default=_DEFAULT_SIZE,
            rich_help_panel=_SYNTHETIC,
            help="Size of the scene.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=2**63 - 1,
            show_default="42",
            rich_help_panel=_SYNTHETIC,
            help="Seed of the scene.",
        ),
    ] = None,
    crs: Annotated[
        str | None,
        typer.Option(
            metavar="CRS",
            show_default="none",
            rich_help_panel=_SYNTHETIC,
            help="Georeference the scene, for example EPSG:32633; pixels of 10 map units.",
        ),
    ] = None,
    co: options.CreationOptions = None,
    overwrite: options.Overwrite = False,
) -> Result:
    """Write a sample cube: real AVIRIS data, or a synthetic scene made on the spot."""
    from spectralift_cli.core import samples

    if show_list:
        if output is not None:
            raise typer.BadParameter("--list and -o exclude each other")
        rows = [(s.name, s.help) for s in samples.SAMPLES]
        return Result(data={"samples": [s.__dict__ for s in samples.SAMPLES]}, table=table(rows))
    if name not in [s.name for s in samples.SAMPLES]:
        known = ", ".join(s.name for s in samples.SAMPLES)
        raise typer.BadParameter(f"no sample is called {name!r}; there are {known}")
    if output is None:
        raise typer.BadParameter("say where to write: -o CUBE")
    options.check_output_name(output)
    rectangle = options.parse_window(window)
    creation = options.parse_creation_options(co)
    given = {"--size": size, "--seed": seed, "--crs": crs}
    used = [option for option, value in given.items() if value is not None]
    if name != "synthetic" and used:
        raise typer.BadParameter(f"{used[0]} does not apply to the sample {name}")
    files = samples.write_sample(
        name, output, window=rectangle, size=_parse_size(size), seed=42 if seed is None else seed,
        crs=crs, options=creation, overwrite=overwrite,
    )  # fmt: skip
    console.say(f"{name}: {samples.note(name)}")
    return Result(outputs=files, data={"sample": name})


def _parse_size(text: str | None) -> tuple[int, int, int]:
    words = (text or _DEFAULT_SIZE).split(",")
    if len(words) != 3 or not all(re.fullmatch(r"\s*\d{1,9}\s*", word) for word in words):
        raise typer.BadParameter(f"--size {text!r} is not ROWS,COLS,BANDS in whole numbers")
    rows, cols, bands = map(int, words)
    return rows, cols, bands
