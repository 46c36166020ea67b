"""What a validation found: figures that say by which convention they hold and what they mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spectralift_cli.core.cube import FloatArray

SCHEMA = "spectralift.validate/1"
DOCUMENT = "validate.json"


@dataclass(frozen=True)
class Figure:
    """A number that can be read by itself.

    Args:
        name: its key, with the unit where it has one.
        value: NaN or infinite where the data define none.
        unit: of the value, "" for none.
        convention: how it was computed.
        meaning: what this value means here, a sentence.
        note: why it is not finite, or "".
    """

    name: str
    value: float
    unit: str
    convention: str
    meaning: str
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return a strict JSON object."""
        fields: dict[str, Any] = {
            "name": self.name, "value": _number(self.value), "unit": self.unit,
            "convention": self.convention, "meaning": self.meaning,
        }  # fmt: skip
        note = self.note or ("" if math.isfinite(self.value) else f"not finite: {self.value}")
        return fields | ({"value_note": note} if note else {})


@dataclass(frozen=True, eq=False)
class Section:
    """Figures that were found in one way.

    Args:
        name: its key: `reduced`, `lr_hsi`, `hr_msi` or `no_reference`.
        title: a heading.
        about: what was compared with what, and what it rewards.
        figures: the numbers.
        per_band: curves over the bands of what was compared, NaN where undefined.
        maps: folder of its maps inside the folder of maps, or None.
    """

    name: str
    title: str
    about: str
    figures: Sequence[Figure]
    per_band: Mapping[str, FloatArray] = field(default_factory=dict)
    maps: str | None = None

    @property
    def values(self) -> dict[str, float]:
        """The value of every figure, by name."""
        return {figure.name: figure.value for figure in self.figures}

    def to_json(self) -> dict[str, Any]:
        """Return a strict JSON object."""
        return {
            "title": self.title,
            "about": self.about,
            "figures": [figure.to_json() for figure in self.figures],
            "per_band": {
                name: [_number(float(value)) for value in np.asarray(curve)]
                for name, curve in self.per_band.items()
            },
            "maps": self.maps,
        }


@dataclass(frozen=True, eq=False)
class Validation:
    """All that one validation found.

    Args:
        sections: in the order of reading.
        psf: where the point spread function comes from, in words.
        provenance: what went in and the options that determine the numbers.
    """

    sections: tuple[Section, ...]
    psf: str
    provenance: Mapping[str, Any]

    def section(self, name: str) -> Section:
        """Return a section by its name.

        Raises:
            KeyError: there is none.
        """
        return {section.name: section for section in self.sections}[name]

    def to_json(self) -> dict[str, Any]:
        """Return a strict JSON object."""
        return {
            "psf": self.psf,
            "sections": {section.name: section.to_json() for section in self.sections},
            "provenance": dict(self.provenance),
        }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
