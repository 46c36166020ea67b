"""Draw pixels from images of any size in bounded memory, the same ones however these are read.

Every pixel has a key, a hash of the seed, its image and its place. Those with the smallest keys are
drawn: a uniform sample without replacement, whose choice depends neither on how the rows are cut
nor on how many pixels there are before the last is read.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.float32]
Indices = NDArray[np.int64]
_Keys = NDArray[np.uint64]

_SPARE_SHARE = 4  # of the capacity, one part in so many is taken as room for candidates
_LEAST_SPARE = 64
_GOLDEN = 0x9E3779B97F4A7C15
_WORD = 2**64


def keys_of(index: Indices, image: int, seed: int) -> _Keys:
    """Return (n,) keys of the pixels with these flat indices; different for every pixel of an image.

    key = mix(mix(seed + (image + 1) golden) + index golden), mix being SplitMix64's finaliser.

    Source: Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014.
    """
    start = _mix(np.array([(seed + (image + 1) * _GOLDEN) % _WORD], np.uint64))
    with np.errstate(over="ignore"):
        return _mix(start + index.astype(np.uint64) * np.uint64(_GOLDEN))


def _mix(z: _Keys) -> _Keys:
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


class Drawing:
    """The pixels with the smallest keys of those that it was shown.

    It holds little more than what it will return: a quarter is added for candidates, and only
    where more pixels may come than it can keep.

    Args:
        capacity: most pixels to keep, at least 1.
        bands: values of a pixel.
        coming: pixels that may be shown at most.
        seed: of the keys.
    """

    def __init__(self, capacity: int, bands: int, coming: int, seed: int) -> None:
        self._capacity = min(capacity, coming)
        room = self._capacity
        if coming > room:
            room = min(coming, room + max(room // _SPARE_SHARE, _LEAST_SPARE))
        self._seed = seed
        self._keys = np.empty(room, np.uint64)
        self._image = np.empty(room, np.int32)
        self._index = np.empty(room, np.int64)
        self._values = np.empty((room, bands), np.float32)
        self._held = 0
        self._limit: np.uint64 | None = None  # the largest key that is kept, once it is full

    def show(self, image: int, index: Indices, values: Pixels) -> None:
        """Show pixels (n, bands) with their flat indices (n,) in an image."""
        keys = keys_of(index, image, self._seed)
        if self._limit is not None:
            small = keys < self._limit
            keys, index, values = keys[small], index[small], values[small]
        while len(keys):
            end = min(self._held + len(keys), len(self._keys))
            count = end - self._held
            into = slice(self._held, end)
            self._keys[into], self._index[into] = keys[:count], index[:count]
            self._image[into], self._values[into] = image, values[:count]
            self._held = end
            keys, index, values = keys[count:], index[count:], values[count:]
            if self._held == len(self._keys) > self._capacity:
                self._drop_the_largest()

    def _drop_the_largest(self) -> None:
        """Move the smallest keys to the front, in place."""
        if self._held <= self._capacity:
            return
        order = np.argpartition(self._keys[: self._held], self._capacity - 1)
        kept = np.zeros(self._held, bool)
        kept[order[: self._capacity]] = True
        holes = np.flatnonzero(~kept[: self._capacity])
        movers = self._capacity + np.flatnonzero(kept[self._capacity :])
        for array in (self._keys, self._image, self._index, self._values):
            array[holes] = array[movers]
        self._held = self._capacity
        self._limit = self._keys[: self._held].max()

    def result(self) -> tuple[NDArray[np.int32], Indices, Pixels]:
        """Return image (n,), flat index (n,) and values (n, bands), by image and then by index."""
        self._drop_the_largest()
        held = self._held
        order = np.lexsort((self._index[:held], self._image[:held]))
        if not (order == np.arange(held)).all():
            for band in range(self._values.shape[1]):  # without a second copy of them all
                self._values[:held, band] = self._values[order, band]
        return self._image[order], self._index[order], self._values[:held]
