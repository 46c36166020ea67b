"""Band edges from makers' documents, in nanometres; centres are the midpoints of the edges.

QuickBird-2 and Pleiades are known by the outermost edges of their bands, the others by edges near
half maximum; `Sensor.edge_stds` says which.

Sources, by table:
QUICKBIRD_2: https://catalyst.earth/catalyst-system-files/help/references/gdb_r/QuickBird.html
GEOEYE_1: https://docs.mcube.terradue.com/missions/opt/geoeye-1/
SUPERDOVE: https://support.planet.com/hc/en-us/articles/35928274738333
PLEIADES: https://catalyst.earth/catalyst-system-files/help/references/gdb_r/Pleiades.html
ALI: EO-1 User Guide, version 2.3 (USGS and NASA, 2003).
"""

from __future__ import annotations

from spectralift_cli.core.sensors import BandEdges


def _bands(*rows: tuple[str, float, float]) -> tuple[BandEdges, ...]:
    return tuple(BandEdges(name, (low + high) / 2, low, high) for name, low, high in rows)


QUICKBIRD_2 = _bands(("Blue", 430, 545), ("Green", 466, 620), ("Red", 590, 710), ("NIR", 715, 918))
GEOEYE_1 = _bands(("Blue", 450, 510), ("Green", 510, 580), ("Red", 655, 690), ("NIR", 780, 920))
SUPERDOVE = _bands(
    ("CoastalBlue", 431, 452), ("Blue", 465, 515), ("GreenI", 513, 549), ("GreenII", 547, 583),
    ("Yellow", 600, 620), ("Red", 650, 680), ("RedEdge", 697, 713), ("NIR", 845, 885),
)  # fmt: skip
PLEIADES = _bands(("Blue", 430, 550), ("Green", 500, 620), ("Red", 590, 710), ("NIR", 740, 940))
ALI = _bands(
    ("MS-1p", 433, 453), ("MS-1", 450, 515), ("MS-2", 525, 605), ("MS-3", 630, 690),
    ("MS-4", 775, 805), ("MS-4p", 845, 890), ("MS-5p", 1200, 1300), ("MS-5", 1550, 1750),
    ("MS-7", 2080, 2350),
)  # fmt: skip
