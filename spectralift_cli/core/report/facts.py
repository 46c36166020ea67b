"""The sections of words and numbers: warnings, inputs, scores, the model, settings, provenance."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from spectralift_cli.core.cube import CubeMeta
from spectralift_cli.core.describe import bounds, crs_name
from spectralift_cli.core.metrics import METRICS
from spectralift_cli.core.report.acquisition import acquisition
from spectralift_cli.core.report.context import Context
from spectralift_cli.core.report.material import IMAGES, finite
from spectralift_cli.core.report.parts import Cards, Listing, Part, Table, Text, Tile, Tiles

_TILES = ("psnr", "sam", "ergas", "rmse", "ssim")
_TILE_UNITS = {"dB": " dB", "deg": "°", "data": "", "": ""}
_BETTER = {"higher": "more is better", "lower": "less is better"}
# what a page takes of a damaged or hostile file
_LONGEST, _MOST_ROWS = 2000, 200


def warnings(context: Context) -> list[Part]:
    """Say what a reader must know before anything else."""
    found = list(context.material.warnings)
    holes = context.surveys["hr"].holes if "hr" in context.surveys else None
    for role, share in (holes or {}).items():
        if share > 0:
            found.append(f"{IMAGES[role]}: {_percent(share)} of the pixels have no value")
    found += _image_facts(context)
    if not found:
        return [Text("None.")]
    return [Listing(found, alarming=True)]


def _image_facts(context: Context) -> Iterator[str]:
    image = context.material.run.get("image")
    if not isinstance(image, dict):
        return
    pixels = finite(image.get("pixels"))
    meta = context.metas.get("result")
    for key, what in (
        ("clipped_values", "were beyond the range of the data and were clipped to it"),
        ("saturated_values", "did not fit the stored type and were saturated"),
    ):
        count = finite(image.get(key))
        if count and pixels and meta is not None:
            yield f"Result: {_percent(count / (pixels * meta.bands))} of the values {what}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %" if share >= 1e-4 else "under 0.01 %"


def inputs(context: Context) -> list[Part]:
    """Say what was fused with what."""
    parts: list[Part] = []
    one_band = context.hsi is not None and context.hsi.bands == 1
    tiles = [tile for scores in context.material.scores[:1] for tile in _tiles(scores, one_band)]
    checkpoint = context.material.checkpoint
    if not tiles and checkpoint is not None and "validation_rmse" in checkpoint.scores:
        held_out = f"{checkpoint.scores['validation_rmse']:.4g}"
        tiles.append(Tile("Held-out RMSE", held_out, "LR pixels, scaled units; less is better"))
    if tiles:
        parts.append(Tiles(tiles))
    parts.append(Text(_sentence(context)))
    parts.append(Cards([_image_card(context, role) for role in IMAGES if role in context.metas]))
    return parts


def _tiles(scores: Mapping[str, Any], one_band: bool) -> Iterator[Tile]:
    for name in _TILES:
        if one_band and name == "sam":
            continue  # a single value has no direction
        metric = METRICS[name]
        value = finite(scores.get(metric.key))
        if value is not None:
            yield Tile(
                name.upper(), f"{value:.4g}{_TILE_UNITS[metric.unit]}", _BETTER[metric.better]
            )


def _sentence(context: Context) -> str:
    metas = context.metas
    words = []
    if "lr_hsi" in metas and "hr_msi" in metas:
        lr, hr = metas["lr_hsi"], metas["hr_msi"]
        words.append(
            f"A hyperspectral image of {_bands(lr)} on {lr.rows} x {lr.cols} pixels and a "
            f"multispectral image of {_bands(hr)} on {hr.rows} x {hr.cols} pixels."
        )
    if "result" in metas:
        made = metas["result"]
        words.append(f"The result has {_bands(made)} on {made.rows} x {made.cols} pixels.")
    if context.placement is not None:
        placement = context.placement
        down, across = placement.scale
        words.append(f"One pixel of the first covers {down:.4g} x {across:.4g} of the second.")
        total = placement.lr_shape[0] * placement.lr_shape[1]
        whole = int(placement.inside().sum())
        if whole < total:
            words.append(f"{whole:,} of its {total:,} pixels lie wholly in the second.")
    elif "lr_hsi" in metas and not context.material.same_ground:
        words.append("The model was applied to another image than the one it was trained with.")
    if "gt" in metas:
        words.append("The ground truth is known, because the inputs were made from it.")
    elif "result" in metas:
        words.append("There is no ground truth, so the page shows no error against one.")
    return " ".join(words)


def _bands(meta: CubeMeta) -> str:
    return f"{meta.bands} {'band' if meta.bands == 1 else 'bands'}"


def _image_card(context: Context, role: str) -> Table:
    meta = context.metas[role]
    image = context.material.images[role]
    rows = [
        ("file", context.material.name(image.path)),
        ("format", context.layouts[role]),
        ("pixels", f"{meta.rows} x {meta.cols}"),
        ("bands", str(meta.bands)),
        ("stored as", _stored(meta)),
        ("wavelengths", _wavelengths(meta)),
        ("bad bands", "" if meta.bad_bands is None else str(int(meta.bad_bands.sum()))),
        ("pixel size", _pixel(meta)),
        ("map system", crs_name(meta.crs) or "none"),
        ("extent", _extent(meta)),
        *acquisition(image.path),
    ]
    return Table([row for row in rows if row[1]], caption=IMAGES[role])


def _stored(meta: CubeMeta) -> str:
    words = [meta.dtype.name]
    if meta.is_scaled:
        scale = np.unique(meta.scale)
        words.append(f"scale {scale[0]:g}" if scale.size == 1 else "scaled by band")
    if meta.nodata is not None:
        words.append(f"nodata {meta.nodata:g}")
    return ", ".join(words)


def _wavelengths(meta: CubeMeta) -> str:
    centres = meta.wavelengths_nm
    if centres is None:
        return "not known"
    if len(centres) == 1:
        return f"{centres[0]:.4g} nm"
    text = f"{centres.min():.4g} to {centres.max():.4g} nm"
    return text if meta.fwhm_nm is None else f"{text}, FWHM about {np.median(meta.fwhm_nm):.3g} nm"


def _pixel(meta: CubeMeta) -> str:
    if meta.transform is None:
        return "not known"
    a, b, _, d, e, _ = meta.transform
    return f"{np.hypot(a, d):.6g} x {np.hypot(b, e):.6g} {_map_unit(meta.crs)}".strip()


def _map_unit(wkt: str | None) -> str:
    """Return the unit of a reference system's axes, or "" where it is not known."""
    if wkt is None:
        return ""
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        crs = CRS.from_wkt(wkt)
        unit = "degree" if crs.is_geographic else str(crs.linear_units)
    except CRSError:
        return ""
    return {"metre": "m", "meter": "m", "unknown": ""}.get(unit, unit)


def _extent(meta: CubeMeta) -> str:
    found = bounds(meta)
    if found is None:
        return ""
    west, south, east, north = (f"{value:.10g}" for value in found)
    return f"{west} to {east} east, {south} to {north} north"


def scores(context: Context) -> list[Part] | None:
    """List all scores against the ground truth, with units and direction."""
    parts: list[Part] = []
    for found in context.material.scores:
        stated = [
            f"{text} {found[key]:g}"
            for key, text in (("data_range", "data range"), ("ergas_ratio", "ratio"))
            if finite(found.get(key)) is not None
        ]
        rows = []
        for name, metric in METRICS.items():
            if metric.key not in found:
                continue
            value = finite(found[metric.key])
            note = found.get(f"{metric.key}_note")
            about = f"{metric.help}{f' ({note})' if note else ''}"
            unit = {"data": "data units"}.get(metric.unit, metric.unit)
            shown = "undefined" if value is None else f"{value:.5g} {unit}".strip()
            rows.append((name.upper(), shown, _BETTER[metric.better], about))
        caption = ", ".join([f"Mode {found.get('mode')}", *stated])
        header = ("score", "value", "", "what it is")
        parts.append(Table(rows, header, caption, numeric=(1,), stacks=True))
    return parts or None


def model(context: Context) -> list[Part] | None:
    """Say which model made the result, why, and how it did on held-out LR pixels."""
    checkpoint = context.material.checkpoint
    if checkpoint is None:
        return None
    network = checkpoint.empty_model()
    scaling = checkpoint.scaling
    rows = [
        ("model", checkpoint.model_name),
        ("parameters", f"{network.parameter_count:,}"),
        ("from", f"{checkpoint.msi_bands} MSI bands"),
        ("to", f"{int(checkpoint.used_bands.sum())} of {checkpoint.hsi.bands} bands"),
        ("scaling", f"{scaling.lo:g} to {scaling.hi:g} becomes 0 to 1"),
    ]
    parts: list[Part] = []
    if checkpoint.choice:
        parts.append(Text(f"The training chose {checkpoint.choice}."))
    numbers = dict(checkpoint.scores)
    candidates = [
        key.removeprefix("validation_rmse_")
        for key in numbers
        if key.startswith("validation_rmse_")
    ]
    compared = [
        (
            name,
            f"{numbers.pop(f'validation_rmse_{name}'):.4g}",
            f"{numbers.pop(f'weight_{name}', 0):.3g}",
        )
        for name in candidates
    ]
    rows += [(key.replace("_", " "), f"{value:.6g}") for key, value in numbers.items()]
    parts.append(Table(rows, caption="The model"))
    if compared:
        parts.append(
            Table(
                compared,
                ("candidate", "held-out RMSE (scaled units)", "weight"),
                "What it was chosen from; less is better",
                (1, 2),
            )
        )
    return parts


def settings(context: Context) -> list[Part] | None:
    """List the options that determined the values."""
    found = context.material.settings
    blocks = {name: value for name, value in found.items() if isinstance(value, dict)}
    loose = {name: value for name, value in found.items() if name not in blocks}
    tables = [_options_table(name, block) for name, block in blocks.items()]
    if loose:
        tables.insert(0, _options_table("run", loose))
    scene = context.material.scene
    if scene is not None and "synth" not in blocks and scene.recipe:
        tables.append(_options_table("the scene's recipe", scene.recipe))
    versions = context.material.run.get("versions")
    if isinstance(versions, dict):
        tables.append(_options_table("software", versions))
    return [Cards(tables)] if tables else None


def provenance(context: Context) -> list[Part] | None:
    """List the steps that made the result, or the scene where there is none."""
    scene = context.material.scene
    sources: Sequence[Mapping[str, Any] | None] = (
        context.metas["result"].provenance if "result" in context.metas else None,
        scene.provenance if scene is not None else None,
        context.metas["lr_hsi"].provenance if "lr_hsi" in context.metas else None,
    )
    for source in sources:
        steps = source.get("steps") if source else None
        if isinstance(steps, list) and steps:
            tables = [_step(number, step) for number, step in enumerate(steps[:_MOST_ROWS], 1)]
            return [
                Text("Every output carries these steps; spectralift info --json prints them."),
                Cards(tables),
            ]
    return None


def _step(number: int, step: object) -> Table:
    found = step if isinstance(step, dict) else {}
    options, used = (found.get(key) for key in ("options", "inputs"))
    rows = _rows(options if isinstance(options, dict) else {})
    for role, what in (used if isinstance(used, dict) else {}).items():
        digest = what.get("sha256") or what.get("sha256_of_parts") if isinstance(what, dict) else ""
        rows.append((f"input {role}", f"sha256 {digest}" if digest else _text(what)))
    return Table(
        rows, caption=f"{number}. {_text(found.get('command'))}, {_text(found.get('version'))}"
    )


def _options_table(name: str, options: Mapping[str, Any]) -> Table:
    return Table(_rows(options), caption=name)


def _rows(options: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return options as rows, as many as ours have at most."""
    rows = [(str(key)[:100].replace("_", " "), _text(value)) for key, value in options.items()]
    return rows[:_MOST_ROWS]


def _text(value: object) -> str:
    if value is None or isinstance(value, str):
        return (value or "–")[:_LONGEST]
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, ensure_ascii=False, default=str)[:_LONGEST]
