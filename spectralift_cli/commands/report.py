"""`spectralift report`: a page about a scene or a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spectralift_cli.commands import options
from spectralift_cli.commands.console import Console, Result, command
from spectralift_cli.core.config import ReportConfig

_HTML = (".html", ".htm")


@command
def report(
    console: Console,
    source: Annotated[
        Path, typer.Argument(metavar="SCENE|RUN", help="Folder of a scene or of a run.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="HTML", help="The page to write.")
    ],
    config: ReportConfig,
    result: Annotated[
        Path | None,
        typer.Option(metavar="CUBE", help="The sharp cube.", show_default="the run's"),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(metavar="MODEL", help="The checkpoint behind it.", show_default="the run's"),
    ] = None,
    uncertainty: Annotated[
        Path | None,
        typer.Option(
            metavar="CUBE",
            help="Expected errors, of infer --uncertainty.",
            show_default="the run's",
        ),
    ] = None,
    estimate: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON", help="What estimate wrote: shift, gain and offset, PSF with errors."
        ),
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON",
            help="What validate --json or --maps wrote.",
            show_default="the run's, or validate.json (validate/validate.json) beside the result",
        ),
    ] = None,
    overwrite: options.Overwrite = False,
) -> Result:
    """Write one offline page: images, spectra, errors, scores, PSF, SRF, settings, provenance.

    It tells how far the result agrees with both inputs, what refine decided, and what estimate,
    validate and infer --uncertainty found where their files are given, or, of validate, lie in the
    folder of the run, the scene or the result. It holds everything it shows, needs no network and runs no script.
    """
    if output.suffix.lower() not in _HTML:
        raise typer.BadParameter(f"{output}: the name of a page ends in .html")

    from spectralift_cli.core.report.page import report as write_report

    with console.progress(f"report {source.name}") as progress:
        made = write_report(
            source, output, config, result=result, model=model, uncertainty=uncertainty,
            estimate=estimate, validation=validation, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    data = {"title": made.title, "sections": list(made.sections), "size_bytes": made.size_bytes}
    return Result(outputs=[made.path], data=data)
