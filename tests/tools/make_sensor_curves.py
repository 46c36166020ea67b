"""Make the tables of `spectralift_cli/core/sensors/curves` from the sdist of pyrsr.

    python -m tests.tools.make_sensor_curves pyrsr-0.8.0.tar.gz [FOLDER]

One file a sensor, one line a band: name, first wavelength in nm, step in nm, responses. Values are
unclipped, as published, rounded to 1e-5 of full response; what rounds to 0 at either end is left
out. Thermal bands (beyond 4 um) are left out: they see emission, not reflectance. The licence of
pyrsr (Apache-2.0) goes beside them.
"""

from __future__ import annotations

import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parents[2] / "spectralift_cli/core/sensors/curves"
VERSION = "0.8.0"
DECIMALS = 5


@dataclass(frozen=True)
class Table:
    """Which of the package's files make one of ours: folder, unit in nm, bands in spectral order."""

    title: str
    folder: str
    nm: float
    bands: tuple[str, ...]


def _numbered(*numbers: int | str) -> tuple[str, ...]:
    return tuple(map(str, numbers))


S2_BANDS = _numbered(1, 2, 3, 4, 5, 6, 7, 8, "8A", 9, 10, 11, 12)
TABLES = {
    "sentinel-2a": Table("Sentinel-2A MSI", "Sentinel-2A/MSI", 1, S2_BANDS),
    "sentinel-2b": Table("Sentinel-2B MSI", "Sentinel-2B/MSI", 1, S2_BANDS),
    "landsat-8": Table("Landsat-8 OLI", "Landsat-8/OLI_TIRS", 1000, _numbered(*range(1, 10))),
    "landsat-9": Table("Landsat-9 OLI-2", "Landsat-9/OLI_TIRS", 1000, _numbered(*range(1, 10))),
    "aster": Table("Terra ASTER", "Terra/ASTER", 1, _numbered(1, 2, "3N", "3B", *range(4, 10))),
    "rapideye": Table("RapidEye MSI", "RapidEye/MSI", 1000, _numbered(*range(1, 6))),
    # Aqua's files for bands 1 to 7 are copies of Terra's, header included, so it is left out
    "modis-terra": Table("Terra MODIS, bands 1 to 7", "Terra/MODIS", 1, _numbered(*range(1, 8))),
}


def main(sdist: Path, folder: Path) -> None:
    """Write every table and the licence."""
    root = f"pyrsr-{VERSION}/pyrsr/data"
    with tarfile.open(sdist) as archive:

        def text(name: str) -> str:
            file = archive.extractfile(name)
            if file is None:
                raise SystemExit(f"{sdist}: {name} is not a file")
            return file.read().decode("utf-8")

        for name, table in TABLES.items():
            reference = dict(
                line.split(": ", 1)
                for line in text(f"{root}/{table.folder}/reference").splitlines()
                if ": " in line
            )
            lines = [
                f"# {table.title}: relative spectral response",
                f"# source: {reference['AUTHORSHIP']}, {reference['DATE']}, {reference['URL']}",
                f"# from the Python package pyrsr {VERSION}, Copyright (C) 2019-2026 Daniel Scheffler"
                " and GFZ Potsdam, Apache-2.0 (LICENSE-pyrsr.txt); changed: one file a sensor,",
                "# wavelengths in nm, values rounded to 1e-5, zeros at the ends and thermal bands "
                "left out (tests/tools/make_sensor_curves.py)",
                "# a line: band, first wavelength (nm), step (nm), responses",
            ]
            for band in table.bands:
                rows = text(f"{root}/{table.folder}/band_{band}").splitlines()[1:]
                values = np.array([row.split()[:2] for row in rows if row.strip()], dtype=float)
                lines.append(_line(f"B{band}", values[:, 0] * table.nm, values[:, 1]))
            (folder / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (folder / "LICENSE-pyrsr.txt").write_text(
            text(f"pyrsr-{VERSION}/LICENSE"), encoding="utf-8"
        )


def _line(name: str, nm: np.ndarray, response: np.ndarray) -> str:
    rounded = np.round(response, DECIMALS)
    inside = np.flatnonzero(rounded)
    nm, rounded = nm[inside[0] : inside[-1] + 1], rounded[inside[0] : inside[-1] + 1]
    step = round((nm[-1] - nm[0]) / (nm.size - 1), 6)
    if not np.allclose(nm, nm[0] + step * np.arange(nm.size), rtol=0, atol=1e-6 * nm[0]):
        raise SystemExit(f"{name}: the wavelengths are not evenly spaced")
    numbers = ("0" if value == 0 else f"{value:.{DECIMALS}f}".rstrip("0") for value in rounded)
    return f"{name},{nm[0]:.10g},{step:g},{','.join(n.removesuffix('.') for n in numbers)}"


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else FOLDER)
