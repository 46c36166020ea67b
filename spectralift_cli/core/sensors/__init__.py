"""The multispectral sensors we know, as a table. `catalog.py` and `srf.py` lay them over a cube.

The rows and the band tables they name import only the standard library, so that help and completion
may read them.
"""

from __future__ import annotations

import difflib
import importlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

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


# what is known of a sensor's responses; the stamp of an SRF made from it
TABULATED = "tabulated"
BAND_EDGES = "gaussian-from-band-edges"

# standard deviations of a Gaussian between its two half-maximum points: edges that are its FWHM
FWHM_STDS = math.sqrt(8 * math.log(2))
# and between the outermost edges that some makers publish, where the response has nearly vanished:
# the published package's choice, `fwhm_factor` 4.2, which puts them at 11 % of the maximum
OUTER_STDS = 4.2


@dataclass(frozen=True)
class Sensor:
    """One row of the table.

    Args:
        help: one line.
        bands: "module:NAME" of a tuple of `BandEdges`, or the name of a file in `curves`.
        source: where the edges or curves come from.
        aliases: other names of the sensor, lower case.
        common: common names of bands (lower case letters and digits) -> band, where they are
            unambiguous.
        edge_stds: standard deviations between a band's edges; 0 for tabulated curves.
    """

    help: str
    bands: str
    source: str
    aliases: tuple[str, ...] = ()
    common: Mapping[str, str] = field(default_factory=dict)
    edge_stds: float = 0.0

    @property
    def kind(self) -> str:
        """What is known of its responses: `TABULATED` or `BAND_EDGES`."""
        return BAND_EDGES if self.edge_stds else TABULATED


_DOCUMENTED = "spectralift_cli.core.sensors.documented"
_EDGES = "spectralift_cli.core.sensors.band_edges"
_HYPERBENCH = "tables of HyperBench 0.1.0 (Shah and Duarte, arXiv 2507.13339)"
_PYRSR = "pyrsr 0.8.0 (Apache-2.0)"
_S2 = f"ESA COPE-GSEG-EOPG-TN-15-0007 version 3.0, in {_PYRSR}"
_S2_COMMON = {
    "coastal": "B1", "coastalaerosol": "B1", "blue": "B2", "green": "B3", "red": "B4",
    "rededge1": "B5", "rededge2": "B6", "rededge3": "B7", "nir": "B8", "rededge4": "B8A",
    "nir08": "B8A", "narrownir": "B8A", "nirnarrow": "B8A", "watervapour": "B9", "nir09": "B9",
    "cirrus": "B10", "swir1": "B11", "swir16": "B11", "swir2": "B12", "swir22": "B12",
}  # fmt: skip
_OLI_COMMON = {
    "coastal": "B1", "coastalaerosol": "B1", "blue": "B2", "green": "B3", "red": "B4", "nir": "B5",
    "nir08": "B5", "swir1": "B6", "swir16": "B6", "swir2": "B7", "swir22": "B7", "pan": "B8",
    "panchromatic": "B8", "cirrus": "B9",
}  # fmt: skip
_RGBN = {"nearinfrared": "NIR", "nir1": "NIR"}
_WORLDVIEW = {"coastalblue": "Coastal", "nir": "NIR1"}

SENSORS: dict[str, Sensor] = {
    "pan": Sensor("one panchromatic band, 409-1048 nm", f"{_DOCUMENTED}:PAN", _HYPERBENCH,
        common={"panchromatic": "Pan"}, edge_stds=OUTER_STDS),
    "ikonos-bgr": Sensor("IKONOS blue, green, red", f"{_DOCUMENTED}:IKONOS_BGR", _HYPERBENCH,
        edge_stds=OUTER_STDS),
    "ikonos": Sensor("IKONOS blue, green, red, near infrared", f"{_DOCUMENTED}:IKONOS",
        _HYPERBENCH, ("ikonos-2",), _RGBN, OUTER_STDS),
    "worldview-2": Sensor("WorldView-2, eight bands", f"{_DOCUMENTED}:WORLDVIEW_2", _HYPERBENCH,
        ("wv2", "wv-2"), _WORLDVIEW, OUTER_STDS),
    "worldview-3": Sensor("WorldView-3, eight VNIR and eight SWIR bands",
        f"{_DOCUMENTED}:WORLDVIEW_3", _HYPERBENCH, ("wv3", "wv-3"), _WORLDVIEW, OUTER_STDS),
    "quickbird-2": Sensor("QuickBird-2 blue, green, red, near infrared", f"{_EDGES}:QUICKBIRD_2",
        "QuickBird in CATALYST's format reference (after DigitalGlobe)", ("quickbird", "qb2", "qb"),
        _RGBN, OUTER_STDS),
    "geoeye-1": Sensor("GeoEye-1 blue, green, red, near infrared", f"{_EDGES}:GEOEYE_1",
        "GeoEye-1 page of ESA's Charter mission documents (after Maxar)", ("geoeye", "ge1"), _RGBN,
        FWHM_STDS),
    "superdove": Sensor("PlanetScope SuperDove (PSB.SD), eight bands", f"{_EDGES}:SUPERDOVE",
        "Planet, PlanetScope 8-band asset: band order and wavelengths",
        ("planetscope-sd", "psb.sd", "planetscope"),
        {"coastal": "CoastalBlue", "green": "GreenII", "green2": "GreenII", "green1": "GreenI"},
        FWHM_STDS),
    "pleiades": Sensor("Pleiades-1A/1B blue, green, red, near infrared", f"{_EDGES}:PLEIADES",
        "Pleiades in CATALYST's format reference (after Airbus)",
        ("pleiades-1a", "pleiades-1b", "pléiades", "phr", "phr1a", "phr1b"), _RGBN, OUTER_STDS),
    "ali": Sensor("EO-1 Advanced Land Imager, nine multispectral bands", f"{_EDGES}:ALI",
        "EO-1 User Guide 2.3 (USGS and NASA, 2003)", ("eo-1-ali", "eo1-ali", "eo-1"),
        {"blue": "MS-1", "green": "MS-2", "red": "MS-3"}, FWHM_STDS),
    "sentinel-2a": Sensor("Sentinel-2A MSI, thirteen bands", "sentinel-2a.csv", _S2,
        ("s2a", "sentinel2a"), _S2_COMMON),
    "sentinel-2b": Sensor("Sentinel-2B MSI, thirteen bands", "sentinel-2b.csv", _S2,
        ("s2b", "sentinel2b"), _S2_COMMON),
    "landsat-8": Sensor("Landsat-8 OLI, nine bands without the thermal ones", "landsat-8.csv",
        f"NASA Ball_BA_RSR.v1.2 (2014), in {_PYRSR}", ("l8", "landsat8", "oli"), _OLI_COMMON),
    "landsat-9": Sensor("Landsat-9 OLI-2, nine bands without the thermal ones", "landsat-9.csv",
        f"NASA L9_OLI2_Ball_BA_RSR.v1.0 (2021), in {_PYRSR}", ("l9", "landsat9", "oli-2"),
        _OLI_COMMON),
    "aster": Sensor("Terra ASTER, ten bands without the thermal ones", "aster.csv",
        f"NASA ASTER-RSR (2017), in {_PYRSR}", ("terra-aster",),
        {"green": "B1", "red": "B2", "nir": "B3N"}),
    "rapideye": Sensor("RapidEye, five bands", "rapideye.csv",
        f"BlackBridge Spectral_Response_Curves (2014), in {_PYRSR}", ("re",),
        {"blue": "B1", "green": "B2", "red": "B3", "rededge": "B4", "nir": "B5"}),
    "modis-terra": Sensor("Terra MODIS, the seven land bands", "modis-terra.csv",
        f"NASA HMODIST_RSRs, in {_PYRSR}", ("modis", "terra-modis"),
        {"red": "B1", "nir": "B2", "blue": "B3", "green": "B4"}),
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
    return load_edges(SENSORS[DOCUMENTED_BY_BAND_COUNT[num_msi_bands]])


def load_edges(sensor: Sensor) -> tuple[BandEdges, ...]:
    """Return the bands of a row whose kind is `BAND_EDGES`."""
    module, _, name = sensor.bands.partition(":")
    bands: tuple[BandEdges, ...] = getattr(importlib.import_module(module), name)
    return bands


def find_sensor(text: str) -> tuple[str, tuple[str, ...]]:
    """Return a sensor's name in the table and the bands asked for, of `NAME[:BAND,BAND,...]`.

    Names and aliases count in any case, and whatever separates their words.

    Raises:
        DataError: no such sensor (with its nearest neighbour), or an empty band.
    """
    wanted, colon, listed = text.partition(":")
    known = {_letters(word): name for name, row in SENSORS.items() for word in (name, *row.aliases)}
    name = known.get(_letters(wanted))
    if name is None:
        close = difflib.get_close_matches(_letters(wanted), known, n=1)
        hint = f"did you mean {known[close[0]]}? " if close else ""
        raise DataError(
            f"no sensor is called {wanted[:60]!r}", hint + f"there are {', '.join(SENSORS)}"
        )
    bands = tuple(word.strip() for word in listed.split(",")) if colon else ()
    if not all(bands):
        raise DataError(
            f"--sensor {text[:60]!r} names an empty band", f"write it as {name}:BAND,BAND,..."
        )
    return name, bands


def _letters(text: str) -> str:
    return re.sub(r"[\s._-]+", "", text).lower()
