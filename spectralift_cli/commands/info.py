"""`spectralift info`: describe cubes, scenes, checkpoints and spectral responses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from spectralift_cli.commands import options
from spectralift_cli.commands.console import Console, Result, command, table
from spectralift_cli.core.formats import ALL_FIELDS, FORMATS


@command
def info(
    console: Console,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PATH...", help="Cubes, scenes, runs, checkpoints, SRFs, PSFs."),
    ] = None,
    show_formats: Annotated[
        bool, typer.Option("--formats", help="List the formats and their creation options.")
    ] = False,
    stats: Annotated[
        bool, typer.Option("--stats/--no-stats", help="Read the values for their statistics.")
    ] = True,
    var: options.Var = None,
    axis_order: options.AxisOrder = None,
    wavelengths: options.Wavelengths = None,
    memory: options.Memory = None,
) -> Result:
    """Describe cubes (shape, type, wavelengths, nodata, georeference, statistics) and other files.

    Scenes, folders of runs, checkpoints (.safetensors), and tables of an SRF or a PSF (.csv, .tsv,
    .txt) are described too.
    """
    if show_formats:
        return Result(data={"formats": [_format_row(f) for f in FORMATS]}, table=_formats_table())
    if not paths:
        raise typer.BadParameter("name at least one cube, or say --formats")
    memory_bytes = options.parse_size(memory)

    from spectralift_cli.core import describe
    from spectralift_cli.core.describe_run import describe_run, is_run
    from spectralift_cli.core.formats import open_cube
    from spectralift_cli.core.scene import is_scene

    items = []
    for path in paths:
        ending = path.suffix.lower()
        if is_scene(path):
            items.append(describe.describe_scene(path))
        elif is_run(path):
            items.append(describe_run(path))
        elif ending == ".safetensors":
            items.append(describe.describe_checkpoint(path))
        elif ending in (".csv", ".tsv", ".txt"):
            from spectralift_cli.core.formats.kernels import describe_psf
            from spectralift_cli.core.sensors.srf import describe_srf

            items.append(describe_psf(path) or describe_srf(path))
        else:
            reader = open_cube(
                path, var=var, axis_order=axis_order, wavelengths=wavelengths, allow_2d=True,
                memory_bytes=memory_bytes,
            )  # fmt: skip
            with reader, console.progress(f"info {path.name}") as progress:
                found = describe.statistics(reader, progress) if stats else None
                items.append(describe.describe(reader, found))
    return Result(data={"items": items}, table="\n\n".join(map(_describe, items)))


def _describe(item: Mapping[str, Any]) -> str:
    return table(_ROWS[item["kind"]](item))


def _scene_rows(item: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("path", item["path"]), ("kind", "scene")]
    for role, found in item["roles"].items():
        shape = "x".join(map(str, found.get("shape", [])))
        words = [found["file"], shape, found.get("dtype", ""), found.get("crs") or ""]
        rows.append((role, "  ".join(word for word in words if word)))
    recipe = item["recipe"]
    for key in ("ratio", "protocol", "psf_type", "sigma", "snr_spatial", "snr_spectral", "seed"):
        if key in recipe:
            rows.append((key.replace("_", " "), str(recipe[key])))
    return [*rows, *_made_by(item)]


def _checkpoint_rows(item: Mapping[str, Any]) -> list[tuple[str, str]]:
    used = f"{item['used_bands']} of {item['hsi_bands']} bands"
    scores = (f"{k.replace('_', ' ')} {v:.6g}" for k, v in item["scores"].items())
    rows = [
        ("path", item["path"]),
        ("kind", f"checkpoint, model {item['model']}, {item['parameters']:,} parameters"),
        ("from", f"{len(item['msi_bands'])} MSI bands: {', '.join(item['msi_bands'])}"),
        ("to", f"{used}, {_range(item['wavelengths_nm'], 'nm')}"),
        ("SRF", item["srf_source"]),
        ("scaling", f"{item['scaling']['lo']:g} to {item['scaling']['hi']:g} becomes 0 to 1"),
        ("CRS", item["crs"] or ""),
        ("bounds", _bounds(item)),
        ("shift", _shift(item)),
        ("radiometry", _radiometry(item)),
        ("trained", ", ".join(f"{k} {v}" for k, v in item["train"].items() if v is not None)),
        ("chosen", item["choice"]),
        ("scores", ", ".join(scores)),
    ]
    rows = [row for row in rows if row[1]]
    return [*rows, *_made_by(item)]


def _bounds(item: Mapping[str, Any]) -> str:
    box = item["bounds"]
    return f"{' '.join(f'{v:.10g}' for v in box)}  (W S E N of the LR-HSI)" if box else ""


def _shift(item: Mapping[str, Any]) -> str:
    down, across = item["shift_px"]
    return f"{down:g} rows, {across:g} columns of the LR-HSI" if down or across else ""


def _radiometry(item: Mapping[str, Any]) -> str:
    found = item["radiometry"]
    if found is None:
        return ""
    lines = zip(item["msi_bands"], found["gain"], found["offset"], strict=True)
    return ", ".join(f"{name} x {gain:.5g} + {offset:.5g}" for name, gain, offset in lines)


def _srf_rows(item: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("path", item["path"]), ("kind", f"spectral response, {item['form']}")]
    if item["form"] == "matrix":
        rows.append(("shape", "x".join(map(str, item["shape"]))))
    else:
        count = item.get("samples", item.get("hsi_bands"))
        rows.append(("rows", f"{count} {'samples' if item['form'] == 'curve' else 'HSI bands'}"))
        rows.append(("MSI bands", f"{len(item['msi_bands'])}: {', '.join(item['msi_bands'])}"))
    if item.get("wavelengths_nm"):
        rows.append(("wavelengths", _range(item["wavelengths_nm"], "nm")))
    if item["source"]:
        rows.append(("source", item["source"]))
    return rows


def _psf_rows(item: Mapping[str, Any]) -> list[tuple[str, str]]:
    centroid, sigma = item["centroid_px"], item["sigma_px"]
    widths = ["none" if value is None else f"{value:.4g}" for value in sigma]
    return [
        ("path", item["path"]),
        ("kind", f"point spread function, {item['size']} x {item['size']} HR pixels"),
        ("values", f"{item['min']:.4g} to {item['max']:.4g}, sum {item['sum']:.9g}"),
        ("centroid", f"{centroid[0]:+.4f} rows, {centroid[1]:+.4f} cols from the centre"),
        ("std", f"{widths[0]} rows, {widths[1]} cols"),
    ]


def _run_rows(item: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("path", item["path"]), ("kind", f"run, config {item['config']}")]
    taken = [s for s in item["stages"] if isinstance(s, dict)]
    rows.append(("stages", ", ".join(f"{s.get('stage')} {s.get('seconds')} s" for s in taken)))
    model = item["model"]
    chosen = model.get("choice") or model.get("name")
    rows.append(("model", f"{chosen}, from {model.get('lr_pixels')} LR pixels"))
    rows.append(
        ("image", ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in item["image"].items()))
    )
    return rows + [(str(role), str(name)) for role, name in item["outputs"].items()]


def _made_by(item: Mapping[str, Any]) -> list[tuple[str, str]]:
    steps = (item["provenance"] or {}).get("steps")
    if not isinstance(steps, list):
        return []
    made = [str(s.get("command", "?")) for s in steps if isinstance(s, dict)]
    return [("made by", " -> ".join(made))]


def _cube_rows(item: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("path", item["path"]),
        ("format", _format_line(item)),
        ("shape", f"{item['rows']} rows x {item['cols']} cols x {item['bands']} bands"),
        ("type", f"{item['dtype']}, {item['size_bytes'] / 1e6:,.1f} MB"),
        ("wavelengths", _wavelength_line(item)),
        ("FWHM", _range(item["fwhm_nm"], "nm")),
        ("bad bands", _bad_line(item["bad_bands"])),
        ("nodata", "none" if item["nodata"] is None else f"{item['nodata']:g}"),
        ("scale", f"{_scalar(item['scale'])}, offset {_scalar(item['offset'])}"),
        ("CRS", item["crs"] or "none"),
        ("transform", _transform_line(item["transform"])),
    ]
    if item["bounds"]:
        rows.append(("bounds", " ".join(f"{v:.10g}" for v in item["bounds"]) + "  (W S E N)"))
    if "statistics" in item:
        rows += _statistics_rows(item["statistics"], item)
    return [*rows, *_made_by(item)]


def _format_line(item: Mapping[str, Any]) -> str:
    layout = ", ".join(f"{k} {v}" for k, v in item["layout"].items() if v not in (None, "", []))
    return f"{item['format']}, {layout}" if layout else str(item["format"])


def _wavelength_line(item: Mapping[str, Any]) -> str:
    line = _range(item["wavelengths_nm"], "nm")
    back = item["wavelengths_step_back_at_bands"]
    return f"{line}; step back at band {', '.join(map(str, back))}" if back else line


def _range(values: list[float] | None, unit: str) -> str:
    return "none" if values is None else f"{min(values):g} to {max(values):g} {unit}"


def _scalar(value: float | list[float]) -> str:
    return _range(value, "by band") if isinstance(value, list) else f"{value:g}"


def _bad_line(bands: list[int] | None) -> str:
    if bands is None:
        return "not flagged"
    return f"{len(bands)}: {', '.join(map(str, bands))}" if bands else "none"


def _transform_line(transform: list[float] | None) -> str:
    if transform is None:
        return "none"
    a, b, c, d, e, f = transform
    turned = "" if not b and not d else f", rotated ({b:g}, {d:g})"
    return f"pixel {a:g} x {e:g}, origin {c:.10g} {f:.10g}{turned}"


def _statistics_rows(stats: Mapping[str, Any], item: Mapping[str, Any]) -> list[tuple[str, str]]:
    holes = f"{100 * stats['nodata_share']:.3g} % of values, {stats['nodata_pixels']} whole pixels"
    if stats["empty_bands"]:
        holes += f", nothing in bands {', '.join(map(str, stats['empty_bands']))}"
    rows = [("holes", holes)]
    if stats["min"] is None:
        return [*rows, ("values", "none is valid")]
    rows.append(("values", f"{stats['min']:g} to {stats['max']:g} (stored)"))
    low, middle, high = stats["percentiles"].values()
    about = "" if stats["percentiles_exact"] else ", of a sample"
    rows.append(("percentiles", f"1 %: {low:g}, 50 %: {middle:g}, 99 %: {high:g} (stored{about})"))
    scale, offset = item["scale"], item["offset"]
    if isinstance(scale, float) and isinstance(offset, float) and (scale, offset) != (1.0, 0.0):
        ends = sorted((stats["min"] * scale + offset, stats["max"] * scale + offset))
        rows.append(("in units", f"{ends[0]:g} to {ends[1]:g}"))
    return rows


_ROWS: Mapping[str, Callable[[Mapping[str, Any]], list[tuple[str, str]]]] = {
    "cube": _cube_rows,
    "scene": _scene_rows,
    "checkpoint": _checkpoint_rows,
    "srf": _srf_rows,
    "psf": _psf_rows,
    "run": _run_rows,
}


def _format_row(row: Any) -> dict[str, Any]:
    return {
        "name": row.name,
        "help": row.help,
        "suffixes": list(row.suffixes),
        "reads_rows": row.reads_rows,
        "loaded_whole": row.loaded_whole or None,
        "comes_as": list(row.comes_as),
        "writes": bool(row.creator),
        "writes_rows": row.writes_rows,
        "dtypes": list(row.dtypes),
        "loses": sorted(ALL_FIELDS - row.holds),
        "needs": row.extra or None,
        "creation_options": {o.name: o.help for o in row.options},
    }


def _formats_table() -> str:
    rows = [("format", "endings", "streams", "what it is")]
    for row in FORMATS:
        read = f"read (not {row.loaded_whole})" if row.loaded_whole else "read"
        ways = [w for w, can in ((read, row.reads_rows), ("write", row.writes_rows)) if can]
        needs = f" (needs the extra {row.extra})" if row.extra else ""
        rows.append(
            (
                row.name,
                " ".join(row.suffixes) or "by content",
                ", ".join(ways) or "no",
                row.help + needs,
            )
        )
    creation = [(f"--co {o.name}=", f.name, o.help) for f in FORMATS for o in f.options]
    return table(rows, header=True) + "\n\n" + table(creation)
