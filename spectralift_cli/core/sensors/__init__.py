"""The multispectral sensors we know, as a table. `srf.py` lays their responses over a cube's bands.

The rows and the band tables they name import only the standard library, so that help and completion
may read them.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from spectralift_cli.core.errors import DataError


@dataclass(frozen=True)
class BandEdges:
    """One band of a sensor, known by its centre and edges only.

    Args:
        name: as the sensor's documents call it.
        centre_nm: nominal centre.
        low_nm: lower edge.
        high_nm: upper edge.
    """

    name: str
    centre_nm: float
    low_nm: float
    high_nm: float


@dataclass(frozen=True)
class Sensor:
    """One row of the table.

    Args:
        help: one line.
        bands: "module:NAME" of a tuple of `BandEdges`.
    """

    help: str
    bands: str


_DOCUMENTED = "spectralift_cli.core.sensors.documented"

SENSORS: dict[str, Sensor] = {
    "pan": Sensor("one panchromatic band, 409-1048 nm", f"{_DOCUMENTED}:PAN"),
    "ikonos-bgr": Sensor("IKONOS blue, green, red", f"{_DOCUMENTED}:IKONOS_BGR"),
    "ikonos": Sensor("IKONOS blue, green, red, near infrared", f"{_DOCUMENTED}:IKONOS"),
    "worldview-2": Sensor("WorldView-2, eight bands", f"{_DOCUMENTED}:WORLDVIEW_2"),
    "worldview-3": Sensor("WorldView-3, eight VNIR and eight SWIR bands", f"{_DOCUMENTED}:WORLDVIEW_3"),
}  # fmt: skip

# `num_msi_bands` of the published package chooses the sensor
DOCUMENTED_BY_BAND_COUNT: dict[int, str] = {
    1: "pan", 3: "ikonos-bgr", 4: "ikonos", 8: "worldview-2", 16: "worldview-3",
}  # fmt: skip


def documented_bands(num_msi_bands: int) -> tuple[BandEdges, ...]:
    """Return the bands of the documented sensor with that many.

    Raises:
        DataError: no documented sensor has that many bands.
    """
    if num_msi_bands not in DOCUMENTED_BY_BAND_COUNT:
        counts = ", ".join(map(str, DOCUMENTED_BY_BAND_COUNT))
        raise DataError(
            f"no documented sensor has {num_msi_bands} bands, only {counts}",
            "choose one of these counts, or give the response with --srf-file",
        )
    module, _, name = SENSORS[DOCUMENTED_BY_BAND_COUNT[num_msi_bands]].bands.partition(":")
    bands: tuple[BandEdges, ...] = getattr(importlib.import_module(module), name)
    return bands
