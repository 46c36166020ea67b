"""`spectralift run`: all stages from one config."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from spectralift_cli.commands import options
from spectralift_cli.commands.console import Console, Result, command
from spectralift_cli.commands.metrics import score_table


@command
def run(
    console: Console,
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="YAML or JSON file; - is stdin.")
    ] = None,
    config_option: Annotated[
        Path | None, typer.Option("--config", metavar="CONFIG", help="The config, as an option.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="DIR", show_default="a flat config's output_dir",
            help="Folder of the run.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", show_default=False,
            help="Override a key: epochs=500, or train.epochs=500 of a block; may be repeated.",
        ),
    ] = None,
    memory: options.Memory = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue a killed run, or make again what has changed of a finished one.",
        ),
    ] = False,
    overwrite: options.Overwrite = False,
) -> Result:  # fmt: skip
    """Run all stages: synth (or real images), train, infer, metrics, into one folder.

    CONFIG is SpectraLift's own flat file, or one with `schema: spectralift.run/1` and a block for
    each stage; examples/ has templates. Relative paths in it start at the current folder.
    """
    if config is not None and config_option is not None:
        raise typer.BadParameter(
            f"the config is given twice: {config} and --config {config_option}"
        )
    if resume and overwrite:
        raise typer.BadParameter("--resume keeps what --overwrite would drop: give one of them")
    memory_bytes = options.parse_size(memory)

    from spectralift_cli.core.runs.config import resolve_config
    from spectralift_cli.core.runs.configtext import LIMIT_BYTES, parse_config, read_config
    from spectralift_cli.core.runs.pipeline import execute

    path = config or config_option
    if path is None:
        resolved = resolve_config(None, settings or ())
    elif str(path) == "-":
        document = parse_config(sys.stdin.buffer.read(LIMIT_BYTES + 1), "standard input")
        resolved = resolve_config(document, settings or (), "standard input")
    else:
        resolved = resolve_config(read_config(path), settings or (), str(path))
    console.quiet |= resolved.quiet
    result = execute(
        resolved, output, device=device, threads=threads, memory_bytes=memory_bytes,
        resume=resume, overwrite=overwrite, progress=console.progress, announce=console.say,
    )  # fmt: skip
    for found in result.scores:
        console.say(score_table(found))
    about = {k: v for k, v in result.report.items() if k not in ("schema", "outputs", "warnings")}
    return Result(
        outputs=[result.folder, *result.files.values()],
        data={**about, "files": result.report["outputs"], "metrics": list(result.scores)},
    )
