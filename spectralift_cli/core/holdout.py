"""Held-out LR pixels in spatial blocks with a guard band, and weights chosen on them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spectralift_cli.core.cube import BoolArray

Floats = NDArray[np.float64]

_PERIOD = 3  # of the blocks along a side; one in 9 is held out
_BLOCK_PIXELS = 4
GUARD = 2  # LR pixels, where the PSF is not known
_BORDER = 2  # rings that a blur with zero borders darkens, which sharp pixels never are
_LEAST_TRAINING_SHARE = 0.5
# below this part of the image's mean square a dark pixel's angle is noise and counts no more
_DARK_SHARE = 0.001
_ANGLE_SHARE = 1.5


@dataclass(frozen=True, eq=False)
class Split:
    """One way to hold pixels out.

    Args:
        held: (h w,) or (N,) the pixels to score on.
        training: likewise, the pixels to fit on: neither held nor within the guard band of held ones.
    """

    held: BoolArray
    training: BoolArray


def block_splits(shape: tuple[int, int], valid: BoolArray, guard: int = GUARD) -> list[Split]:
    """Cut a grid into blocks of 4 x 4 pixels and deal them to 9 splits, each holding a ninth out.

    Neighbours share a PSF and are nearly copies of each other, so a random choice would score
    memory; large blocks would score how a model does where it knows nothing, while in the end it
    knows a pixel everywhere. The guard band is narrower, down to 0, where less than half of the
    pixels would be left.

    Args:
        shape: (h, w) of the grid.
        valid: (h w,) pixels with values.
        guard: width of the guard band in LR pixels: the radius of the PSF.

    Returns:
        The splits with pixels on both sides, those that lie apart first.
    """

    def on_grid(chosen: BoolArray) -> BoolArray:
        grid = np.zeros(valid.size, bool)
        grid[valid] = chosen
        return grid

    splits = Places.of_grid(shape, valid, guard).splits()
    return [Split(on_grid(split.held), on_grid(split.training)) for split in splits]


@dataclass(frozen=True, eq=False)
class Places:
    """Where N pixels lie, on one image or several.

    Args:
        shapes: (h, w) of every image.
        guards: width of every image's guard band in its LR pixels.
        image: (N,) which image, from 0.
        row: (N,)
        col: (N,)
    """

    shapes: Sequence[tuple[int, int]]
    guards: Sequence[int]
    image: NDArray[np.int32]
    row: NDArray[np.int64]
    col: NDArray[np.int64]

    @classmethod
    def of_grid(cls, shape: tuple[int, int], valid: BoolArray, guard: int) -> Places:
        """Return the places of the valid pixels (h w,) of one image."""
        row, col = np.divmod(np.flatnonzero(valid), shape[1])
        return cls((shape,), (guard,), np.zeros(len(row), np.int32), row, col)

    def splits(self) -> list[Split]:
        """Return the splits of `block_splits`, every image cut for itself, as masks (N,)."""
        inner = self.inner()
        splits = []
        for number in (0, 4, 8, 1, 5, 6, 2, 3, 7):  # diagonals of the 3 x 3
            held, training = np.zeros(len(self.row), bool), np.zeros(len(self.row), bool)
            for image, (shape, guard) in enumerate(zip(self.shapes, self.guards, strict=True)):
                here = self.image == image
                lines = _Lines.held_out(shape, number)
                held[here] = lines.at(self.row[here], self.col[here])
                guarded = lines.guarded(guard)
                training[here] = ~guarded.at(self.row[here], self.col[here])
            split = Split(held & inner, training)
            if split.held.any() and split.training.sum() >= 2:
                splits.append(split)
        return splits

    def inner(self) -> BoolArray:
        """Return (N,) which pixels are `inner_pixels` of their images."""
        inner = np.zeros(len(self.row), bool)
        for image, (rows, cols) in enumerate(self.shapes):
            here = self.image == image
            border = _border(rows, cols)
            row, col = self.row[here], self.col[here]
            down, across = (
                (row >= border) & (row < rows - border),
                (col >= border) & (col < cols - border),
            )
            inner[here] = down & across
        return inner


@dataclass(frozen=True, eq=False)
class _Lines:
    """The pixels of a grid where chosen rows (h,) and chosen columns (w,) cross.

    A guard band around such pixels is that around the rows crossing that around the columns, so
    that no grid is needed to tell whether a pixel lies within it.
    """

    rows: BoolArray
    cols: BoolArray

    @classmethod
    def held_out(cls, shape: tuple[int, int], number: int) -> _Lines:
        rows, cols = (_block_of(size) for size in shape)
        return cls(rows == number // _PERIOD, cols == number % _PERIOD)

    @property
    def others(self) -> int:
        """Number of pixels of the grid that are not chosen."""
        return self.rows.size * self.cols.size - int(self.rows.sum()) * int(self.cols.sum())

    def at(self, row: NDArray[np.int64], col: NDArray[np.int64]) -> BoolArray:
        """Tell which pixels are chosen."""
        chosen: BoolArray = self.rows[row] & self.cols[col]
        return chosen

    def guarded(self, guard: int) -> _Lines:
        """Return the chosen pixels with the widest guard band, up to `guard`, that leaves enough."""

        for width in range(min(guard, max(self.rows.size, self.cols.size)), 0, -1):
            wide = _Lines(_widened(self.rows, width), _widened(self.cols, width))
            if wide.others >= _LEAST_TRAINING_SHARE * self.others:
                return wide
        return self


def inner_pixels(shape: tuple[int, int]) -> BoolArray:
    """Return (h w,) which pixels lie within the outer rings; all, where little else would be left."""
    inner = np.zeros(shape, bool)
    border = _border(*shape)
    inner[border : shape[0] - border, border : shape[1] - border] = True
    return inner.ravel()


def _widened(line: BoolArray, width: int) -> BoolArray:
    """Return which places of a line (n,) are at most `width` away from a chosen one."""
    near = np.convolve(line, np.ones(2 * width + 1, np.int64))
    wide: BoolArray = near[width : width + line.size] > 0
    return wide


def _border(rows: int, cols: int) -> int:
    return max(0, min(_BORDER, (min(rows, cols) - 5) // 2))


def _block_of(size: int) -> NDArray[np.int64]:
    blocks = max(_PERIOD, size // _BLOCK_PIXELS)
    return np.arange(size) * blocks // size % _PERIOD


@dataclass(frozen=True, eq=False)
class Errors:
    """Inner products of the candidates' errors on held-out pixels; they add up over splits.

    Args:
        values: (C, C) of errors in scaled units, per value.
        angles: (C, C) of the errors' parts across the true spectra, over these spectra's squares
            (radian^2 for small angles).
        pixels: that were scored.
    """

    values: Floats
    angles: Floats
    pixels: int

    def __add__(self, other: Errors) -> Errors:
        return Errors(
            self.values + other.values, self.angles + other.angles, self.pixels + other.pixels
        )

    @classmethod
    def of(cls, estimates: list[NDArray[np.float32]], truth: NDArray[np.float32]) -> Errors:
        """Return the products of candidates' (n, B) errors."""
        true = truth.astype(np.float64)
        square = np.square(true).sum(axis=1, keepdims=True)  # (n, 1)
        square = np.maximum(square, _DARK_SHARE * square.mean() + 1e-30)
        errors = [estimate - true for estimate in estimates]
        across = [
            (error - true * (error * true).sum(axis=1, keepdims=True) / square) / np.sqrt(square)
            for error in errors
        ]
        # summed by NumPy without BLAS, whose threads would change the last bits
        products = [
            np.array([[float((a * b).sum()) for b in some] for a in some])
            for some in (errors, across)
        ]
        return cls(products[0] / true.shape[1], products[1], len(true))

    @property
    def rmse(self) -> Floats:
        """(C,) root mean square errors of the candidates in scaled units."""
        return np.sqrt(np.diag(self.values) / max(1, self.pixels))

    def rmse_of(self, weights: Floats) -> float:
        """Return the root mean square error of a weighted sum of the candidates."""
        return float(np.sqrt(weights @ self.values @ weights / max(1, self.pixels)))

    def best_weights(self, steps: int = 10) -> Floats:
        """Return the weights, multiples of 1 / steps that sum to 1, of the smallest error.

        The error is the logarithm of the mean square plus half that of the mean squared angle.
        """
        count = len(self.values)
        grid = np.array(
            [w for w in itertools.product(range(steps + 1), repeat=count) if sum(w) == steps]
        ) / steps  # fmt: skip
        cost = np.log(np.einsum("wc,cd,wd->w", grid, self.values, grid) + 1e-300)
        cost += _ANGLE_SHARE * np.log(np.einsum("wc,cd,wd->w", grid, self.angles, grid) + 1e-300)
        best: Floats = grid[int(np.argmin(cost))]
        return best
