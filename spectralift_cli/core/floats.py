"""Numbers of files as numbers to compute with."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def as_float64(values: ArrayLike) -> NDArray[np.float64]:
    """Return stored numbers as float64.

    A damaged file may hold signalling NaNs, of which a conversion would warn; they become the NaNs
    that whoever asks for the numbers has to expect anyway.
    """
    with np.errstate(invalid="ignore"):
        return np.asarray(values, dtype=np.float64)
