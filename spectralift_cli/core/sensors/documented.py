"""Band edges of the sensors that SpectraLift's documentation lists, in nanometres.

Source: the tables of the published package (Shah and Duarte, arXiv 2507.13339) and of HyperBench
0.1.0. The centres are the midpoints of the edges, rounded to a nanometre.
"""

from __future__ import annotations

from spectralift_cli.core.sensors import BandEdges

PAN = (BandEdges("Pan", 729, 409, 1048),)

IKONOS = (
    BandEdges("Blue", 480, 421, 539),
    BandEdges("Green", 552, 480, 624),
    BandEdges("Red", 666, 602, 729),
    BandEdges("NIR", 803, 713, 893),
)
IKONOS_BGR = IKONOS[:3]

WORLDVIEW_2 = (
    BandEdges("Coastal", 427, 396, 458),
    BandEdges("Blue", 478, 442, 515),
    BandEdges("Green", 546, 506, 586),
    BandEdges("Yellow", 608, 584, 632),
    BandEdges("Red", 659, 624, 694),
    BandEdges("RedEdge", 724, 699, 749),
    BandEdges("NIR1", 833, 765, 901),
    BandEdges("NIR2", 949, 856, 1043),
)

WORLDVIEW_3 = (
    BandEdges("Coastal", 426, 397, 454),
    BandEdges("Blue", 481, 445, 517),
    BandEdges("Green", 547, 507, 586),
    BandEdges("Yellow", 605, 580, 629),
    BandEdges("Red", 661, 626, 696),
    BandEdges("RedEdge", 724, 698, 749),
    BandEdges("NIR1", 832, 765, 899),
    BandEdges("NIR2", 948, 857, 1039),
    BandEdges("SWIR1", 1210, 1184, 1235),
    BandEdges("SWIR2", 1572, 1546, 1598),
    BandEdges("SWIR3", 1661, 1636, 1686),
    BandEdges("SWIR4", 1730, 1702, 1759),
    BandEdges("SWIR5", 2164, 2137, 2191),
    BandEdges("SWIR6", 2203, 2174, 2232),
    BandEdges("SWIR7", 2260, 2228, 2292),
    BandEdges("SWIR8", 2329, 2285, 2373),
)
