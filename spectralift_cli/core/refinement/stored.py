"""Corrected units back into what a cube stores: clipping, rounding, saturation, nodata."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectralift_cli.core.cube import AnyArray, BoolArray, CubeMeta

Floats32 = NDArray[np.float32]


@dataclass
class Storing:
    """Turns blocks of units into stored values and counts what had to give way.

    Args:
        meta: of the output.
        clip: lowest and highest value in units, or None.
    """

    meta: CubeMeta
    clip: tuple[float, float] | None
    clipped: int = 0
    saturated: int = 0
    moved: int = 0

    def __call__(self, stored: AnyArray, units: Floats32, changed: BoolArray) -> AnyArray:
        """Return stored values (n, W, B) of changed units; what is not changed stays as stored.

        Args:
            stored: the input's values.
            units: (n, W, B), finite where changed.
            changed: (n, W, B).
        """
        values: Any = units.astype(np.float64)
        if self.clip is not None:
            outside = ((values < self.clip[0]) | (values > self.clip[1])) & changed
            self.clipped += int(outside.sum())
            values = np.clip(values, *self.clip)
        if self.meta.is_scaled:
            values = (values - self.meta.offset) / self.meta.scale
        out = stored.copy()
        if self.meta.dtype.kind == "f":
            limit = np.finfo(self.meta.dtype).max
            out[changed] = np.clip(values[changed], -limit, limit).astype(self.meta.dtype)
        else:
            out[changed] = self._integers(np.rint(values[changed]))
        self._keep_off_nodata(out, changed)
        return out

    def _integers(self, values: Any) -> AnyArray:
        info = np.iinfo(self.meta.dtype)
        beyond = (values < info.min) | (values > info.max)
        self.saturated += int(beyond.sum())
        # float64 cannot hold the ends of 64 bits: out of range is set, the rest converted
        safe = np.where(beyond, 0, values).astype(self.meta.dtype)
        safe[values < info.min] = info.min
        safe[values > info.max] = info.max
        return np.asarray(safe)

    def _keep_off_nodata(self, out: AnyArray, changed: BoolArray) -> None:
        nodata = self.meta.nodata
        if nodata is None or np.isnan(nodata):
            return
        hit = (out == np.asarray(nodata).astype(out.dtype)) & changed
        if not hit.any():
            return
        self.moved += int(hit.sum())
        if self.meta.dtype.kind == "f":
            out[hit] = np.nextafter(out[hit], np.asarray(np.inf, out.dtype))
        else:
            top = nodata >= np.iinfo(self.meta.dtype).max
            out[hit] = int(nodata) + (-1 if top else 1)
