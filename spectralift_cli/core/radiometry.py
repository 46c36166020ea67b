"""Gain and offset that bring an HR-MSI into the radiometry of an LR-HSI."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from spectralift_cli.core.cube import AnyArray, FloatArray
from spectralift_cli.core.errors import DataError


@dataclass(frozen=True, eq=False)
class Radiometry:
    """The line from an HR-MSI's values to what the LR-HSI would show: gain * x + offset, per band.

    SRF(LR-HSI) ~= gain * mean(blur(HR-MSI)) + offset, both images in units.

    Args:
        gain: (M,) finite, not zero.
        offset: (M,) finite, in units of the LR-HSI.

    Raises:
        DataError: the two do not fit each other, or a number cannot be a gain or an offset.
    """

    gain: FloatArray
    offset: FloatArray

    def __post_init__(self) -> None:
        gain, offset = (np.array(v, dtype=np.float64) for v in (self.gain, self.offset))
        if gain.ndim != 1 or gain.shape != offset.shape or not gain.size:
            raise DataError(
                f"gains of shape {gain.shape} and offsets of shape {offset.shape} are no radiometry",
                "give one gain and one offset for each MSI band",
            )
        if not (np.isfinite(gain).all() and np.isfinite(offset).all() and (gain != 0).all()):
            raise DataError(
                f"gains {gain.tolist()} with offsets {offset.tolist()} lose the MSI's values",
                "gains must be finite and not zero, offsets finite",
            )
        for name, array in (("gain", gain), ("offset", offset)):
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    @property
    def bands(self) -> int:
        """M, the number of MSI bands."""
        return int(self.gain.size)

    def apply(self, units: AnyArray) -> AnyArray:
        """Return gain * x + offset of (..., M) values in units; float32 for float32, else float64.

        NaN stays NaN; computed in float64.
        """
        dtype = units.dtype if units.dtype == np.float32 else np.dtype(np.float64)
        with np.errstate(over="ignore"):  # a value too large for float32 becomes infinite
            made: AnyArray = (units.astype(np.float64) * self.gain + self.offset).astype(dtype)
        return made

    def select(self, bands: tuple[int, ...]) -> Radiometry:
        """Return that of some bands (0-based), in that order."""
        chosen = list(bands)
        return Radiometry(self.gain[chosen], self.offset[chosen])

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which `from_json` makes an equal one."""
        return {"gain": self.gain.tolist(), "offset": self.offset.tolist()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Return what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: the object is not of this form.
            DataError: see the class.
        """
        return cls(
            np.asarray(fields["gain"], dtype=np.float64),
            np.asarray(fields["offset"], dtype=np.float64),
        )
