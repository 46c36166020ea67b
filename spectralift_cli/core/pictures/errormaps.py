"""Where a prediction is wrong: maps of spectral angle and RMSE, curves of RMSE and PSNR over bands.

A folder of georeferenced float32 GeoTIFFs with full resolution and of PNGs to look at, with
`maps.json`, which lists them with the limits of their colour bars. Another evaluation can take over
those limits, so that the maps of two predictions can be compared.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from spectralift_cli.core.config import MetricsConfig
from spectralift_cli.core.cube import CubeMeta, FloatArray, Progress, no_progress
from spectralift_cli.core.cubeio import CubeReader, CubeWriter
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats import create_cube
from spectralift_cli.core.identity import identity, provenance
from spectralift_cli.core.metrics.blocks import PairBlock, spectral_angles
from spectralift_cli.core.metrics.evaluate import Scores, evaluate
from spectralift_cli.core.outputs import Staging
from spectralift_cli.core.pictures.reduce import CellMeans, factor_for

SCHEMA = "spectralift.maps/1"
DOCUMENT = "maps.json"
BANDS_PICTURE = "bands.png"
_DOCUMENT_BYTES = 2**20
_PICTURE_PIXELS = 1024  # longest side of the map in a picture
_SHOWN_PERCENT = 98.0  # of the pixels lie within the colour bar's default limits


@dataclass(frozen=True)
class ErrorMap:
    """One map: its name, which files are called after, and what stands beside its colours."""

    name: str
    label: str
    unit: str


MAPS = (
    ErrorMap("sam_deg", "Spectral angle", "deg"),
    ErrorMap("rmse", "RMSE over bands", "data units"),
)


class ErrorMaps:
    """Gathers and writes the maps of one evaluation while both cubes pass by in blocks of rows.

    An observer of `evaluate`: give it to that function, then call `commit`.

    Args:
        folder: the maps' folder.
        meta: shape and georeference.
        like: limits to take over, see `read_limits`.
        provenance: for the GeoTIFFs.
        overwrite: replace an existing folder of maps.

    Raises:
        OutputExistsError: it exists and `overwrite` is false.
        DataError: it cannot be written there.
    """

    def __init__(
        self,
        folder: Path,
        meta: CubeMeta,
        *,
        like: Mapping[str, tuple[float, float]] | None = None,
        provenance: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        self._limits = dict(like or {})
        self._meta = meta
        self._factor = factor_for(meta, _PICTURE_PIXELS)
        self._cells = CellMeans(meta.rows, meta.cols, len(MAPS), self._factor)
        self._stage = Staging(folder, overwrite=overwrite)
        self._writers: list[CubeWriter] = []
        try:
            if folder.exists() and not folder.is_dir():
                raise DataError(
                    f"{folder}: is a file, maps are a folder", "choose another name for the maps"
                )
            self._stage.path().mkdir()
            for each in MAPS:
                plain = CubeMeta(
                    shape=(meta.rows, meta.cols, 1), dtype=np.dtype(np.float32), nodata=math.nan,
                    crs=meta.crs, transform=meta.transform,
                    band_names=(f"{each.label} ({each.unit})",), provenance=provenance,
                )  # fmt: skip
                self._writers.append(create_cube(self._stage.path() / f"{each.name}.tif", plain))
        except BaseException:
            self.abort()
            raise

    def update(self, block: PairBlock) -> None:
        """Write the rows of a block; a pixel without a valid value, or without an angle, is NaN."""
        x, y = block.units
        seen = block.valid.sum(axis=2)
        squared = ((x - y) ** 2).sum(axis=2)
        rmse = np.sqrt(np.divide(squared, seen, out=np.full_like(squared, np.nan), where=seen > 0))
        values = np.stack([np.rad2deg(spectral_angles(block)), rmse], axis=2)
        rows = slice(block.stop - len(values), block.stop)
        for index, writer in enumerate(self._writers):
            writer.write(rows, values[:, :, index : index + 1].astype(np.float32))
        self._cells.add(range(rows.start, rows.stop), values)

    def commit(self, scores: Scores, reference: CubeMeta) -> tuple[Path, ...]:
        """Draw the pictures and move the folder into place; return it and its files.

        Args:
            scores: of the whole images; their RMSE and PSNR of each band are drawn.
            reference: its wavelengths and bad bands are the curves'.
        """
        for writer in self._writers:
            writer.commit()
        folder = self._stage.path()
        reduced = self._cells.result()
        document: dict[str, Any] = {"schema": SCHEMA, "reduced_by": self._factor, "maps": {}}
        for index, each in enumerate(MAPS):
            values = reduced[:, :, index]
            limits = self._limits.get(each.name) or usual_limits(values)
            self._write(folder / f"{each.name}.png", map_picture(values, each, limits, scores))
            document["maps"][each.name] = {
                "file": f"{each.name}.tif", "picture": f"{each.name}.png", "unit": each.unit,
                "limits": list(limits),
            }  # fmt: skip
        self._write(folder / BANDS_PICTURE, band_picture(scores, reference))
        document["bands"] = BANDS_PICTURE
        text = json.dumps(document, indent=2, allow_nan=False) + "\n"
        self._write(folder / DOCUMENT, text.encode())
        (target,) = self._stage.commit()
        pictures = [f"{each.name}{ending}" for each in MAPS for ending in (".tif", ".png")]
        return (target, *(target / name for name in (*pictures, BANDS_PICTURE, DOCUMENT)))

    def _write(self, path: Path, data: bytes) -> None:
        try:
            path.write_bytes(data)
        except OSError as error:
            raise DataError(
                f"{self._stage.key}: cannot be written ({error.strerror})",
                "free some room or choose another folder",
            ) from error

    def abort(self) -> None:
        """Drop what was written; harmless after `commit`."""
        for writer in self._writers:
            writer.abort()
        self._stage.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.abort()


def evaluate_with_maps(
    reference: CubeReader,
    prediction: CubeReader,
    folder: Path,
    config: MetricsConfig | None = None,
    *,
    like: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> Scores:
    """Score a cube against its reference, see `evaluate`, and write maps of where it is wrong.

    Args:
        reference: the truth.
        prediction: a cube of the same shape.
        folder: of the maps.
        config: conventions of the scores.
        like: folder of maps whose limits of colours to take over, or None.
        overwrite: replace an existing folder of maps.
        progress: called with rows done and in all.

    Raises:
        DataError: see `evaluate` and `read_limits`.
        OutputExistsError: the folder exists and `overwrite` is false.
    """
    # whichever of the two knows where it is
    place = reference.meta if reference.meta.transform is not None else prediction.meta
    made_from = {"reference": identity(*reference.files), "prediction": identity(*prediction.files)}
    with ErrorMaps(
        folder, reference.meta.replace(crs=place.crs, transform=place.transform),
        like=None if like is None else read_limits(Path(like)),
        provenance=provenance("metrics", reference.choices, made_from), overwrite=overwrite,
    ) as maps:  # fmt: skip
        scores = evaluate(reference, prediction, config, progress, observers=[maps])
        maps.commit(scores, reference.meta)
    return scores


def usual_limits(values: FloatArray) -> tuple[float, float]:
    """Return the limits of an error map's colours: 0, and a round number above 98 % of the values."""
    known = values[np.isfinite(values)]
    top = float(np.percentile(known, _SHOWN_PERCENT)) if known.size else 0.0
    if top <= 0:  # no error anywhere
        return 0.0, 1.0
    unit = 10.0 ** math.floor(math.log10(top))
    steps = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
    return 0.0, float(f"{unit * next(s for s in steps if unit * s >= top or s == 10):.3g}")


def read_limits(folder: Path) -> dict[str, tuple[float, float]]:
    """Return the limits of the colour bars of a folder of maps, by name of the map.

    Raises:
        DataError: it is no such folder, or its `maps.json` is damaged.
    """
    path = folder / DOCUMENT
    hint = "name a folder that metrics --maps wrote"
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(_DOCUMENT_BYTES))
        pairs = {each.name: document["maps"][each.name]["limits"] for each in MAPS}
        limits = {name: (float(low), float(high)) for name, (low, high) in pairs.items()}
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", hint) from error
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise DataError(f"{path}: does not hold the limits of maps ({error})", hint) from error
    if not all(math.isfinite(low) and low < high < math.inf for low, high in limits.values()):
        raise DataError(f"{path}: has limits that are no range: {limits}", hint)
    return limits


def map_picture(
    values: FloatArray, each: ErrorMap, limits: tuple[float, float], scores: Scores
) -> bytes:
    """Return a map as a PNG with its colour bar and the score of the whole image."""
    from spectralift_cli.core.pictures import style

    rows, cols = values.shape
    side = 640 / max(rows, cols)
    name = each.name.partition("_")[0]
    with style.styled():
        figure = style.new_figure(
            max(260, round(cols * side)) + 130, max(180, round(rows * side)) + 50
        )
        axes = figure.subplots()
        # over the figure, since a narrow map has no room for it
        figure.suptitle(f"{each.label}: {scores.values[name]:.4g} {each.unit}", fontsize=11)
        style.draw_map(axes, values, each.label, each.unit, limits)
        return style.png_bytes(figure)


def band_picture(scores: Scores, reference: CubeMeta) -> bytes:
    """Return the RMSE and the PSNR of every band as a PNG, one above the other."""
    from spectralift_cli.core.pictures import style

    with style.styled():
        figure = style.new_figure(900, 640)
        panels = figure.subplots(2, sharex=True)
        for axes, (name, label, unit) in zip(
            panels, (("rmse", "RMSE", "data units"), ("psnr", "PSNR", "dB")), strict=True
        ):
            style.draw_curves(
                axes, {label: scores.per_band[name]}, reference.wavelengths_nm,
                bad_bands=reference.bad_bands, label=label, unit=unit,
            )  # fmt: skip
            axes.label_outer()
        errors = scores.per_band["rmse"]
        top = float(np.nanmax(errors, initial=0))
        panels[0].set_ylim(0, 1.08 * top if top > 0 else 1)
        return style.png_bytes(figure)
