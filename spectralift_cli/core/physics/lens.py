"""What the LR-HSI's instrument sees of functions of the HR-MSI's pixels, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spectralift_cli.core.cube import BoolArray, FloatArray
from spectralift_cli.core.cubeio import CubeReader, row_blocks
from spectralift_cli.core.devices import Workers
from spectralift_cli.core.operators.psf import check_psf
from spectralift_cli.core.operators.scaling import Scaling
from spectralift_cli.core.placement import Placement
from spectralift_cli.core.radiometry import Radiometry
from spectralift_cli.core.refinement.images import finite_pixels
from spectralift_cli.core.refinement.optics import Optics, row_windows

Floats32 = NDArray[np.float32]
# (pixels, M) scaled MSI and which of the features to (pixels, features)
PixelFeatures = Callable[[Floats32, slice], Floats32]

_MOST_LR = 2**14
_MOST_HR_VALUES = 2**24
_TILE_SIDE = 32
# of the image alone, so that no sum depends on threads or on how the file is read
_BLOCK_PIXELS = 2**14
_SAMPLE = 4096
_GROUP = 64  # features at a time
# below this part of the largest singular value a PSF's factors cost time and change nothing
_RANK_CUT = 1e-3


@dataclass(frozen=True, eq=False)
class View:
    """The HR-MSI, and how the LR-HSI's instrument blurs it.

    Args:
        hr_msi: the image, in the LR-HSI's bands' order of the response.
        placement: of the LR grid on it, displaced as the images are.
        scaling: from units.
        psf: (k, k) on its grid; None to find it from the two images.
        includes_footprint: whether the PSF holds the LR pixel's footprint already.
        radiometry: what brings it into the LR-HSI's, or None.
    """

    hr_msi: CubeReader
    placement: Placement
    scaling: Scaling
    psf: FloatArray | None = None
    includes_footprint: bool = False
    radiometry: Radiometry | None = None

    def read(self, rows: slice, cols: slice) -> Floats32:
        """Return a rectangle (n, m, M) scaled, NaN in holes."""
        bands = self.hr_msi.meta.bands
        found = np.empty((rows.stop - rows.start, cols.stop - cols.start, bands), np.float32)
        for part in row_blocks(len(found), self.hr_msi.block_rows):
            there = slice(rows.start + part.start, rows.start + part.stop)
            units = self.hr_msi.read_units(there)[:, cols]
            if self.radiometry is not None:
                units = self.radiometry.apply(units)
            found[part] = self.scaling.apply(units)
        return found


@dataclass(frozen=True, eq=False)
class Tile:
    """A rectangle of LR pixels with the HR pixels that they see.

    Args:
        pixels: (n,) flat indices of the LR pixels, row by row.
        optics: between the two.
        msi: (H, W, M) scaled, 0 in holes.
        valid: (H, W) which of them have values.
        whole: (n,) which LR pixels see enough valid HR pixels.
        share: (n,) of their weight.
    """

    pixels: NDArray[np.int64]
    optics: Optics
    msi: Floats32
    valid: BoolArray
    whole: BoolArray
    share: Floats32

    @classmethod
    def of(cls, view: View, psf: FloatArray, rows: slice, cols: slice) -> Tile:
        """Read what some LR pixels see.

        Raises:
            DataError: the PSF is wider than the image.
        """
        placement = view.placement
        window = [
            _reach(part, placement.origin_px[axis], placement.scale[axis], len(psf), size)
            for axis, (part, size) in enumerate(zip((rows, cols), placement.hr_shape, strict=True))
        ]
        optics = Optics(
            psf, placement.window_lr(rows, cols).window_hr(*window), view.includes_footprint
        )
        msi = view.read(*window)
        valid = finite_pixels(msi)
        msi[~valid] = 0
        share = optics.share(None if valid.all() else valid).ravel()
        width = placement.lr_shape[1]
        pixels = np.arange(rows.start, rows.stop)[:, None] * width + np.arange(
            cols.start, cols.stop
        )
        return cls(pixels.ravel(), optics, msi, valid, Optics.whole(share), share)

    def see(self, features: PixelFeatures, group: slice) -> Floats32:
        """Return (whole pixels, group) what the LR pixels see of a group of features."""
        height, width, bands = self.msi.shape
        seeing = self.optics.seeing(group.stop - group.start)
        for part in row_windows(height, max(1, _BLOCK_PIXELS // width)):
            values = features(self.msi[part].reshape(-1, bands), group)
            values[~self.valid[part].ravel()] = 0
            seeing.add(part, values.reshape(part.stop - part.start, width, -1))
        image = seeing.image.reshape(len(self.pixels), -1)[self.whole]
        return np.asarray(image / self.share[self.whole, None], np.float32)


class Lens:
    """The HR-MSI through the LR-HSI's optics.

    Of images with more than 16,384 LR pixels, or more than 2^24 HR values under them, tiles of 32 x
    32 LR pixels (fewer, where few may be had) spread evenly over the image take part.

    Attributes:
        tiles: of LR pixels, with the HR pixels that they see.
        pixels: (n,) flat indices of the LR pixels of all tiles that see enough of the HR-MSI.
        low: (M,) of the valid HR values that take part.
        high: likewise.

    Raises:
        DataError: the PSF is none, or wider than the image.
    """

    def __init__(self, view: View, psf: FloatArray) -> None:
        kernel = _low_rank(check_psf(psf, "the PSF"))
        self.tiles = [Tile.of(view, kernel, *each) for each in _rectangles(view)]
        whole = [tile.pixels[tile.whole] for tile in self.tiles]
        self.pixels = np.concatenate(whole) if whole else np.zeros(0, np.int64)
        values = [tile.msi[tile.valid] for tile in self.tiles if tile.valid.any()]
        bands = view.hr_msi.meta.bands
        self.low, self.high = (
            np.array([end(v, axis=0) for v in values]).reshape(-1, bands)
            for end in (np.min, np.max)
        )
        if values:
            self.low, self.high = self.low.min(axis=0), self.high.max(axis=0)

    def sample(self) -> Floats32:
        """Return (n, M) some of the valid HR pixels, evenly spread, 4,096 or a few more."""
        total = sum(int(tile.valid.sum()) for tile in self.tiles)
        step = max(1, total // _SAMPLE)
        return np.concatenate([tile.msi[tile.valid][::step] for tile in self.tiles])

    def see(self, features: PixelFeatures, count: int, workers: Workers) -> Floats32:
        """Return (n, count) what the LR pixels see of features of the HR pixels.

        Args:
            features: of pixels, each by itself; called from several threads at once.
            count: how many there are.
            workers: that share the work; how many changes no byte.
        """
        counts = [int(tile.whole.sum()) for tile in self.tiles]
        ends = np.cumsum(counts)
        out = np.empty((len(self.pixels), count), np.float32)
        pieces = [
            (number, slice(start, min(start + _GROUP, count)))
            for number in range(len(self.tiles))
            for start in range(0, count, _GROUP)
        ]

        def work(_: int, piece: tuple[int, slice]) -> None:
            number, group = piece
            rows = slice(ends[number] - counts[number], ends[number])
            out[rows, group] = self.tiles[number].see(features, group)

        workers.run(work, pieces)
        return out


def _rectangles(view: View) -> list[tuple[slice, slice]]:
    """Return the LR rows and columns of every tile."""
    placement = view.placement
    rows, cols = placement.overlap_lr()
    sides = rows.stop - rows.start, cols.stop - cols.start
    values = placement.scale[0] * placement.scale[1] * view.hr_msi.meta.bands
    most = max(1, min(_MOST_LR, int(_MOST_HR_VALUES / values)))
    if not math.prod(sides):
        return []
    if math.prod(sides) <= most:
        return [(rows, cols)]
    side = min(_TILE_SIDE, math.isqrt(most))
    starts = [
        range(part.start, max(part.start + 1, part.stop - side + 1), side) for part in (rows, cols)
    ]
    corners = [(row, col) for row in starts[0] for col in starts[1]]
    count = min(len(corners), max(1, most // side**2))
    chosen = np.linspace(0, len(corners) - 1, count + 2).astype(int)[1:-1]
    return [
        (slice(row, min(row + side, rows.stop)), slice(col, min(col + side, cols.stop)))
        for row, col in (corners[number] for number in np.unique(chosen))
    ]


def _reach(part: slice, origin: float, scale: float, kernel: int, size: int) -> slice:
    """Return the HR rows or columns that LR pixels see, half a kernel and a pixel around them."""
    margin = kernel // 2 + 1
    first = math.floor(origin + scale * part.start) - margin
    last = math.ceil(origin + scale * part.stop) + margin
    spare = max(0, kernel - (min(size, last) - max(0, first)))  # windows hold the whole kernel
    return slice(max(0, first - spare), min(size, last + spare))


def _low_rank(psf: FloatArray) -> FloatArray:
    """Return a PSF's separable parts that matter, of sum 1."""
    left, values, right = np.linalg.svd(psf)
    rank = int((values > _RANK_CUT * values[0]).sum())
    kept = (left[:, :rank] * values[:rank]) @ right[:rank]
    return np.asarray(kept / kept.sum(), np.float64)
