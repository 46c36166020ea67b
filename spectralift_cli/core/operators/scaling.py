"""The linear map between units and the range a network likes, and exact percentiles to choose it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spectralift_cli.core.cube import AnyArray, FloatArray
from spectralift_cli.core.errors import DataError

LOW_PERCENTILE = 1.0
HIGH_PERCENTILE = 99.0

Blocks = Callable[[], Iterable[AnyArray]]


@dataclass(frozen=True)
class Scaling:
    """The map x' = (x - lo) / (hi - lo), one pair for all bands and both images; never clips.

    One pair for everything keeps MSI = HSI @ SRF.T, because the rows of an SRF sum to 1.

    Args:
        lo: the value that becomes 0.
        hi: the value that becomes 1, above lo.

    Raises:
        DataError: lo and hi are not finite, or not in this order.
    """

    lo: float = 0.0
    hi: float = 1.0

    def __post_init__(self) -> None:
        if not (np.isfinite([self.lo, self.hi]).all() and self.lo < self.hi):
            raise DataError(
                f"values cannot be scaled from {self.lo:g}..{self.hi:g} to 0..1",
                "the image has no contrast: check that it is the right one, and its nodata value",
            )

    @classmethod
    def from_values(cls, blocks: Blocks) -> Scaling:
        """Return the scaling whose lo and hi are the 1st and 99th percentile of the valid values.

        Args:
            blocks: see `percentiles`.

        Raises:
            DataError: there is no valid value, or both percentiles are the same.
        """
        lo, hi = percentiles(blocks, (LOW_PERCENTILE, HIGH_PERCENTILE))
        return cls(float(lo), float(hi))

    @classmethod
    def for_data(cls, blocks: Blocks, *, floating: bool) -> Scaling:
        """Return the scaling for an image: the identity if it is scaled already.

        It is where the values are floating and their 1st and 99th percentile lie inside [0, 1].

        Args:
            blocks: see `percentiles`.
            floating: whether the values were stored as floating point numbers.
        """
        found = percentiles(blocks, (LOW_PERCENTILE, HIGH_PERCENTILE))
        lo, hi = (float(value) for value in found)
        return cls() if floating and lo >= 0 and hi <= 1 else cls(lo, hi)

    @property
    def is_identity(self) -> bool:
        """Whether values stay as they are."""
        return self.lo == 0 and self.hi == 1

    def apply(self, values: AnyArray) -> AnyArray:
        """Return (x - lo) / (hi - lo), float32 for float32, else float64; computed in float64."""
        return self._map(values, lambda x: (x - self.lo) / (self.hi - self.lo))

    def undo(self, values: AnyArray) -> AnyArray:
        """Return x' (hi - lo) + lo, float32 for float32, else float64; computed in float64."""
        return self._map(values, lambda x: x * (self.hi - self.lo) + self.lo)

    def _map(self, values: AnyArray, function: Callable[[FloatArray], FloatArray]) -> AnyArray:
        dtype = values.dtype if values.dtype == np.float32 else np.dtype(np.float64)
        if self.is_identity:
            return values.astype(dtype)
        return function(values.astype(np.float64)).astype(dtype)


def percentiles(blocks: Blocks, percents: tuple[float, ...]) -> FloatArray:
    """Return exact percentiles of finite values, by blocks, whatever their number.

    The result is that of `numpy.percentile` (linear interpolation, in float64) of all values
    together as float32. Memory: one block and a few histograms. The order statistics are found
    digit by digit: a first pass counts the upper 16 bits of the values, a second the lower 16 bits
    of those that share the upper bits of a wanted one.

    Args:
        blocks: called once a pass, twice in all; yields arrays of any shape, NaN in holes.
        percents: 0 to 100.

    Raises:
        DataError: there is no valid value.
    """
    upper = np.zeros(2**16, np.int64)
    for block in blocks():
        upper += np.bincount(_sortable(block) >> 16, minlength=2**16)
    count = int(upper.sum())
    if not count:
        raise DataError(
            "the image has no valid value", "check its nodata value and that it is the right file"
        )
    positions = np.asarray(percents, dtype=np.float64) / 100 * (count - 1)
    below = np.floor(positions).astype(np.int64)
    ranks = np.unique([below, np.minimum(below + 1, count - 1)])
    ends = np.cumsum(upper)
    buckets = np.searchsorted(ends, ranks, side="right")
    lower = {int(bucket): np.zeros(2**16, np.int64) for bucket in buckets}
    for block in blocks():
        keys = _sortable(block)
        heads = keys >> 16
        for bucket, histogram in lower.items():
            inside = keys[heads == bucket] & 0xFFFF
            histogram += np.bincount(inside, minlength=2**16)
    keys = np.empty(ranks.size, np.uint32)
    for i, (rank, bucket) in enumerate(zip(ranks, buckets, strict=True)):
        inner = np.cumsum(lower[int(bucket)])
        within = rank - (ends[bucket] - upper[bucket])
        keys[i] = (int(bucket) << 16) + int(np.searchsorted(inner, within, side="right"))
    statistics = dict(zip(ranks.tolist(), _unsorted(keys).astype(np.float64), strict=True))
    low = np.array([statistics[int(i)] for i in below])
    high = np.array([statistics[int(min(i + 1, count - 1))] for i in below])
    share = positions - below
    # numpy.percentile interpolates from the nearer end
    near_low, near_high = low + (high - low) * share, high - (high - low) * (1 - share)
    result: FloatArray = np.where(share < 0.5, near_low, near_high)
    return result


def _sortable(block: AnyArray) -> NDArray[np.uint32]:
    """Return the finite values as unsigned integers in the same order."""
    values = np.asarray(block, dtype=np.float32).ravel()
    values = values[np.isfinite(values)]
    values += np.float32(0)  # -0 becomes 0
    bits = values.view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))


def _unsorted(keys: NDArray[np.uint32]) -> NDArray[np.float32]:
    bits = np.where(keys >> 31, keys & np.uint32(0x7FFFFFFF), ~keys)
    return bits.astype(np.uint32).view(np.float32)
