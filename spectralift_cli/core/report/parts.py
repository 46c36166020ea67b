"""What sections are made of; the template has a way to show each kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Text:
    """A paragraph, under a heading where it opens a part of a section."""

    kind: ClassVar[str] = "text"
    text: str
    heading: str = ""


@dataclass(frozen=True)
class Listing:
    """Points of a list; `alarming` ones stand out."""

    kind: ClassVar[str] = "listing"
    items: Sequence[str]
    alarming: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of text.

    Args:
        rows: the cells.
        header: of the columns; without one the first column heads the rows.
        caption: what it shows, or "".
        numeric: columns that are numbers.
        stacks: whether a narrow page shows each row as a block without the header: its first two
            cells on a line, the others below.
    """

    kind: ClassVar[str] = "table"
    rows: Sequence[Sequence[str]]
    header: Sequence[str] = ()
    caption: str = ""
    numeric: Sequence[int] = ()
    stacks: bool = False


@dataclass(frozen=True)
class Cards:
    """Tables side by side."""

    kind: ClassVar[str] = "cards"
    tables: Sequence[Table]


@dataclass(frozen=True)
class Tile:
    """A number that stands out: its name, value with unit, and what is better."""

    name: str
    value: str
    about: str


@dataclass(frozen=True)
class Tiles:
    """Numbers in a row."""

    kind: ClassVar[str] = "tiles"
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Mark:
    """A numbered mark on a picture, in pixels of the picture."""

    number: int
    x: float
    y: float


@dataclass(frozen=True)
class Bar:
    """A colour bar: its picture as a data URI, texts from low to high, what it shows."""

    uri: str
    labels: Sequence[str]
    title: str


@dataclass(frozen=True)
class Picture:
    """A picture of pixels: a composite or a map.

    Args:
        uri: data URI of a PNG.
        width: of the PNG, in its pixels.
        height: likewise.
        title: stands above it.
        alt: what is to be seen, for those who do not see it.
        bar: its colour bar, or None.
        marks: drawn on it.
    """

    kind: ClassVar[str] = "picture"
    uri: str
    width: int
    height: int
    title: str
    alt: str
    bar: Bar | None = None
    marks: Sequence[Mark] = ()

    @property
    def reach(self) -> float:
        """Radius of a mark in the picture's pixels."""
        return max(self.width, self.height) / 34


@dataclass(frozen=True)
class Plot:
    """A drawing on white.

    Args:
        uri: data URI of an SVG.
        width: in pixels.
        height: likewise.
        title: stands above it.
        alt: what is to be seen.
        only_lines: whether its colours may be inverted for a dark page.
    """

    kind: ClassVar[str] = "plot"
    uri: str
    width: int
    height: int
    title: str
    alt: str
    only_lines: bool = True


@dataclass(frozen=True)
class Gallery:
    """Pictures or plots side by side, and what they show."""

    kind: ClassVar[str] = "gallery"
    members: Sequence[Picture | Plot]
    caption: str = ""

    @property
    def of_plots(self) -> bool:
        """Whether all members are drawings, which need more room than pictures."""
        return all(member.kind == "plot" for member in self.members)


Part = Text | Listing | Table | Cards | Tiles | Gallery


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        key: its anchor.
        title: its heading.
        parts: from top to bottom.
    """

    key: str
    title: str
    parts: Sequence[Part]
