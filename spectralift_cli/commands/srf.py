"""`spectralift srf`: built-in sensors, a response's bands and picture, weights for a cube."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from spectralift_cli.commands import options
from spectralift_cli.commands.console import Console, Result, command, table

app = typer.Typer(
    name="srf",
    help="Spectral responses: list the built-in sensors, show one, fold one onto a cube.",
    no_args_is_help=True,
)


@command
def list_sensors(console: Console) -> Result:
    """List the built-in sensors: their bands, range and where their responses come from.

    The kind is `tabulated` (curves as published) or `gaussian-from-band-edges`.
    """
    del console
    from spectralift_cli.core import responses

    sensors = responses.list_sensors()
    rows = [("sensor", "kind", "bands", "nm", "source")]
    rows += [
        (s["name"], s["kind"], str(len(s["bands"])), _range(s["range_nm"]), s["source"])
        for s in sensors
    ]
    return Result(data={"sensors": sensors}, table=table(rows, header=True, right=(2, 3)))


@command
def show(
    console: Console,
    response: Annotated[
        str,
        typer.Argument(
            metavar="RESPONSE", show_default=False, autocompletion=options.complete_sensor,
            help="Built-in sensor (NAME or NAME:BAND,...), list CENTRE:FWHM,... in nm, or file.",
        ),
    ],
    cube: Annotated[
        Path | None,
        typer.Option(metavar="CUBE", help="Also tell how much of each band this cube covers."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="PICTURE", help="Draw the curves: .png, .svg or .pdf."
        ),
    ] = None,
    var: options.Var = None,
    axis_order: options.AxisOrder = None,
    wavelengths: options.Wavelengths = None,
    overwrite: options.Overwrite = False,
) -> Result:  # fmt: skip
    """Show the bands of a response, and with -o draw them over the bands of a cube.

    Centre and FWHM are those of the points at half maximum; the range is where the response is at
    least 1 % of its maximum; the coverage is the share of the response that the cube's bands cover.
    """
    from spectralift_cli.core import responses

    if cube is None:
        found = responses.find(response)
    else:
        meta = _meta(cube, var, axis_order, wavelengths)
        found = responses.find(response, meta, cube)
    bands = found.bands()
    if output is not None:
        responses.draw(found, output, overwrite=overwrite)
        console.say(_bands_table(bands))
    return Result(
        outputs=[] if output is None else [output],
        data={"response": found.name, "source": found.source, "bands": bands},
        table=_bands_table(bands),
    )


@command
def build(
    console: Console,
    cube: options.InputCube,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="CSV", help="File of the weights.")
    ],
    srf_file: options.SrfFile = None,
    sensor: options.Sensor = None,
    msi_bands: options.MsiBands = None,
    drop_uncovered_bands: options.DropUncoveredBands = False,
    var: options.Var = None,
    axis_order: options.AxisOrder = None,
    wavelengths: options.Wavelengths = None,
    overwrite: options.Overwrite = False,
) -> Result:
    """Fold a response onto the bands of a cube and write the weights, for --srf-file.

    Each weight is the integral of the response against the band's own Gaussian (its centre and FWHM,
    or its spacing where that is unknown); bands flagged as bad have weight 0; each row sums to 1.
    """
    options.refuse_several_responses(console.given, ())
    if not console.given & set(options.RESPONSES):
        raise typer.BadParameter("say which response: --sensor, --srf-file or --msi-bands")

    from spectralift_cli.core import responses
    from spectralift_cli.core.pairs import ResponseChoice

    meta = _meta(cube, var, axis_order, wavelengths)
    with options.stdin_as_file(srf_file) as srf_path:
        choice = ResponseChoice(
            srf_file=srf_path, sensor=sensor, msi_bands=msi_bands,
            drop_uncovered_bands=drop_uncovered_bands,
        )  # fmt: skip
        srf = responses.build(choice, meta, cube, output, overwrite=overwrite)
    return Result(
        outputs=[output],
        data={
            "source": srf.source,
            "msi_bands": list(srf.band_names),
            "hsi_bands": srf.num_hsi_bands,
            "coverage": None if srf.coverage is None else srf.coverage.tolist(),
        },
    )


def _meta(cube: Path, var: str | None, axis_order: str | None, wavelengths: Path | None) -> Any:
    from spectralift_cli.core.formats import open_cube

    with open_cube(cube, var=var, axis_order=axis_order, wavelengths=wavelengths) as reader:
        return reader.meta


def _bands_table(bands: list[dict[str, Any]]) -> str:
    rows = [("band", "centre nm", "FWHM nm", "range nm", "coverage")]
    for band in bands:
        rows.append(
            (
                band["band"],
                _number(band["centre_nm"], ".1f"),
                _number(band["fwhm_nm"], ".1f"),
                "" if band["range_nm"] is None else _range(band["range_nm"]),
                _number(band["coverage"], ".3f"),
            )
        )
    kept = [i for i in range(5) if any(row[i] for row in rows[1:])]
    return table([[row[i] for i in kept] for row in rows], header=True, right=range(1, len(kept)))


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _range(ends: list[float]) -> str:
    return f"{ends[0]:.0f}-{ends[1]:.0f}"


app.command("list")(list_sensors)
app.command("show")(show)
app.command("build")(build)
