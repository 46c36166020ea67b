"""`spectralift metrics`: quality against a reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from spectralift_cli.commands import options
from spectralift_cli.commands.console import Console, Result, command, table
from spectralift_cli.core.config import MetricsConfig
from spectralift_cli.core.metrics import METRICS, parse_checks


@command
def metrics(
    console: Console,
    reference: Annotated[
        Path,
        typer.Argument(metavar="REFERENCE", help="Cube, or a scene, which has its ground truth."),
    ],
    prediction: Annotated[Path, typer.Argument(metavar="PREDICTION", help="Cube to score.")],
    config: MetricsConfig,
    per_band: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Also write the scores of every band.")
    ] = None,
    maps: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Also write maps of SAM and RMSE (GeoTIFF, PNG) and curves over bands (PNG).",
        ),
    ] = None,
    maps_like: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Take the colour bars of other maps, to compare with them."
        ),
    ] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC=VALUE", help="Exit 5 if a score is lower; may be repeated."),
    ] = None,
    fail_over: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC=VALUE", help="Exit 5 if a score is higher; may be repeated."),
    ] = None,
    memory: options.Memory = None,
    overwrite: options.Overwrite = False,
) -> Result:
    """Score a cube against a reference: PSNR, SSIM, SAM, ERGAS, UIQI, RMSE, MAE, CC."""
    memory_bytes = options.parse_size(memory)
    checks = (
        *parse_checks(fail_under or (), "under", config.mode),
        *parse_checks(fail_over or (), "over", config.mode),
    )

    from spectralift_cli.core import stages

    reading = stages.Reading(memory_bytes=memory_bytes)
    with console.progress("metrics") as progress:
        scores = stages.evaluate(
            reference, prediction, config, per_band_file=per_band,
            maps_folder=maps, maps_like=maps_like, reading=reading, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    document = scores.to_json()
    return Result(
        side_files=[path for path in (per_band, maps) if path is not None],
        data=document,
        table=score_table(document),
        failures=scores.failures(checks),
    )


def score_table(scores: Mapping[str, Any]) -> str:
    """Return the scores of one mode as a table: name, value, unit, what it is."""
    conventions = (("data_range", "data range"), ("ergas_ratio", "ratio"))
    stated = [f"{text} {scores[key]:g}" for key, text in conventions if scores.get(key) is not None]
    rows = [("metric", "value", "unit", ", ".join([f"mode {scores['mode']}", *stated]))]
    for name, metric in METRICS.items():
        if metric.key not in scores:
            continue
        value = scores[metric.key]
        shown = "undefined" if value is None else f"{value:.5g}"
        note = scores.get(f"{metric.key}_note")
        better = {"higher": "more is better", "lower": "less is better"}[metric.better]
        about = f"{metric.help}; {better}" + (f" ({note})" if note else "")
        rows.append((name, shown, metric.unit or "-", about))
    return table(rows, header=True, right=[1])
