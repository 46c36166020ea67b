"""What `srf` does: list the built-in sensors, describe and draw a response, fold one onto a cube."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spectralift_cli.core import pairs
from spectralift_cli.core.cube import CubeMeta, FloatArray
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.outputs import write_bytes
from spectralift_cli.core.sensors import SENSORS, find_sensor
from spectralift_cli.core.sensors.curve import Curve, is_msi_bands, sensor_curves
from spectralift_cli.core.sensors.response import Srf
from spectralift_cli.core.sensors.srf import read_curves, read_srf, write_srf


@dataclass(frozen=True, eq=False)
class Response:
    """A response as `srf show` tells of it.

    Args:
        name: the sensor, file or list that was named.
        source: what it is called in an SRF made of it.
        curves: its bands over wavelength; () where only weights over a cube's bands are known.
        srf: the same over the bands of a cube, None without one.
        hsi: metadata of the cube, or None.
    """

    name: str
    source: str
    curves: tuple[Curve, ...]
    srf: Srf | None = None
    hsi: CubeMeta | None = None

    def bands(self) -> list[dict[str, Any]]:
        """Return a JSON-ready row a band; None where something is not known.

        Centre and FWHM are those of the points at half maximum, the range is where the response is at
        least a hundredth of its maximum; of weights, the centre is the weighted mean wavelength.
        """
        if self.curves:
            rows = [curve_row(curve) for curve in self.curves]
        else:
            rows = [
                {"band": name, "centre_nm": centre, "fwhm_nm": None, "range_nm": None}
                for name, centre in zip(self._names(), self._weighted_centres(), strict=True)
            ]
        coverage = None if self.srf is None else self.srf.coverage
        for i, row in enumerate(rows):
            row["coverage"] = None if coverage is None else float(coverage[i])
        return rows

    def _names(self) -> tuple[str, ...]:
        return () if self.srf is None else self.srf.band_names

    def _weighted_centres(self) -> list[float | None]:
        if self.srf is None or self.hsi is None or self.hsi.wavelengths_nm is None:
            return [None] * len(self._names())
        centres: FloatArray = self.srf.weights @ self.hsi.wavelengths_nm
        return [float(nm) for nm in centres]


def curve_row(curve: Curve) -> dict[str, Any]:
    """Return what is told of a curve: band, centre, FWHM and range in nm, JSON-ready."""
    return {
        "band": curve.name,
        "centre_nm": curve.centre_nm,
        "fwhm_nm": curve.fwhm_nm,
        "range_nm": list(curve.range_nm),
    }


def list_sensors() -> list[dict[str, Any]]:
    """Return a JSON-ready row a built-in sensor, with its bands."""
    found = []
    for name, row in SENSORS.items():
        bands = [curve_row(curve) for curve in sensor_curves(row)]
        ends = [nm for band in bands for nm in band["range_nm"]]
        found.append(
            {
                "name": name,
                "aliases": list(row.aliases),
                "help": row.help,
                "kind": row.kind,
                "range_nm": [min(ends), max(ends)],
                "source": row.source,
                "bands": bands,
            }
        )
    return found


def find(text: str, hsi: CubeMeta | None = None, source: object = "the cube") -> Response:
    """Return the response that a text names: a built-in sensor, a list `centre:fwhm,...` or a file.

    Args:
        text: as for `--sensor` or `--msi-bands`, or the path of a file. A file called like a sensor
            is named `./NAME`.
        hsi: metadata of a cube to lay it over, or None.
        source: the cube's file, for messages.

    Raises:
        DataError: it is none of them, or does not fit the cube; a file of weights without a cube.
    """
    if is_msi_bands(text):
        choice = pairs.ResponseChoice(msi_bands=text)
    elif Path(text).is_file() and not _names_sensor(text):
        return _of_file(Path(text), hsi, source)
    else:
        choice = pairs.ResponseChoice(sensor=text)
    curves, stamp = pairs.find_curves(choice)
    srf = None if hsi is None else pairs.lay_over(curves, stamp, hsi, source)
    return Response(text, stamp, curves, srf, hsi)


def _names_sensor(text: str) -> bool:
    try:
        find_sensor(text)
    except DataError:
        return False
    return True


def _of_file(path: Path, hsi: CubeMeta | None, source: object) -> Response:
    found = read_curves(path)
    if found is not None:
        curves, stamp = found
        srf = None if hsi is None else pairs.lay_over(curves, stamp, hsi, source)
        return Response(str(path), stamp, curves, srf, hsi)
    if hsi is None:
        raise DataError(
            f"{path}: holds weights over the bands of a cube, which is not named",
            "name the cube they were made for: --cube CUBE",
        )
    srf = read_srf(path, hsi.wavelengths_nm, hsi.fwhm_nm, hsi.bands)
    return Response(str(path), srf.source, (), srf, hsi)


def draw(response: Response, output: Path, *, overwrite: bool = False) -> None:
    """Draw a response over the bands of its cube, as PNG, SVG or PDF by the ending.

    Raises:
        DataError: another ending, a response without wavelengths, or it cannot be written.
        OutputExistsError: it exists and `overwrite` is false.
    """
    from spectralift_cli.core.sensors.plot import check_picture_name, response_picture

    ending = check_picture_name(output)
    lines = [(curve.name, curve.wavelengths_nm, curve.response) for curve in response.curves]
    if not lines and response.srf is not None and response.hsi is not None:
        nm = response.hsi.wavelengths_nm
        if nm is None:
            raise DataError(
                f"{response.name}: weights without wavelengths cannot be drawn over them",
                "give the cube's with --wavelengths FILE",
            )
        order = np.argsort(nm, kind="stable")
        named = zip(response.srf.band_names, response.srf.weights, strict=True)
        lines = [(name, nm[order], weights[order]) for name, weights in named]
    title = response.name if response.source in ("curve", "weights") else response.source
    picture = response_picture(title, lines, response.hsi, ending)
    write_bytes(output, picture, overwrite=overwrite)


def build(
    choice: pairs.ResponseChoice, hsi: CubeMeta, source: object, output: Path, *, overwrite: bool
) -> Srf:
    """Fold a response onto a cube's bands and write the weights.

    Args:
        choice: where it comes from.
        hsi: metadata of the cube.
        source: its file, for messages.
        output: the CSV file.
        overwrite: replace an existing one.

    Raises:
        OptionError: nothing or several things are chosen.
        DataError: the response does not fit the cube; see `find_response`.
        OutputExistsError: it exists and `overwrite` is false.
    """
    srf = pairs.find_response(choice, hsi, source)
    write_srf(output, srf, hsi.wavelengths_nm, overwrite=overwrite)
    return srf
