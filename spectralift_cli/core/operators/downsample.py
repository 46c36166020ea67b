"""Averaging HR pixels into LR pixels, and its adjoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spectralift_cli.core.cube import AnyArray, FloatArray
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.operators.bandwise import per_band

if TYPE_CHECKING:
    from scipy import sparse


@dataclass(frozen=True)
class AreaMean:
    """Average the area of every LR pixel; along a side, n HR pixels make n // ratio LR pixels.

    With `fractional` false an LR pixel is the mean of exactly ratio x ratio HR pixels, and the
    n % ratio rows and columns that are left over at the end do not count. With `fractional` true
    the LR pixels share the whole image, each n / (n // ratio) HR pixels long, and a HR pixel that
    lies in two of them counts in proportion: OpenCV's INTER_AREA. Both agree where the ratio
    divides the size. The mean is separable: weights(H) @ image @ weights(W).T.

    Args:
        ratio: HR pixels to one LR pixel along a side, at least 1.
        fractional: how sizes are treated that the ratio does not divide.
    """

    ratio: int
    fractional: bool = False

    def __post_init__(self) -> None:
        if self.ratio < 1:
            raise ValueError(f"the ratio is {self.ratio}, it must be at least 1")

    def lr_size(self, n: int) -> int:
        """Return the LR pixels that `n` HR pixels make.

        Raises:
            DataError: fewer pixels than one LR pixel needs.
        """
        if n < self.ratio:
            raise DataError(
                f"the downsampling ratio {self.ratio} is larger than the image's side of {n} pixels",
                f"choose a --downsample-ratio of at most {n}",
            )
        return n // self.ratio

    def weights(self, n: int) -> sparse.csr_array:
        """Return the (lr_size(n), n) matrix of one axis; each row sums to 1."""
        from scipy import sparse  # a quarter of a second that inference does without

        m = self.lr_size(n)
        # integers keep the edges exact: LR pixel i covers [i n / m, (i+1) n / m]
        span, per = (n, m) if self.fractional else (self.ratio, 1)
        first = np.arange(m) * span  # start of each LR pixel in units of 1/per HR pixels
        rows, cols, data = [], [], []
        for start in first:
            pixels = np.arange(start // per, -(-(start + span) // per))
            overlap = np.minimum((pixels + 1) * per, start + span) - np.maximum(pixels * per, start)
            rows.append(np.full(pixels.size, start // span))
            cols.append(pixels)
            data.append(overlap / span)
        triple = (np.concatenate(data), (np.concatenate(rows), np.concatenate(cols)))
        return sparse.csr_array(triple, shape=(m, n))

    def __call__(self, values: AnyArray) -> AnyArray:
        """Average an image (H, W) or cube (H, W, B).

        Returns:
            (h, w) or (h, w, B), float32 for float32, else float64; averaged in float64.
        """
        down, across = (self.weights(n) for n in values.shape[:2])
        shape = (down.shape[0], across.shape[0])
        return per_band(values, shape, lambda image: separable(down, image, across))

    def adjoint(self, values: AnyArray, shape: tuple[int, int]) -> AnyArray:
        """Apply the transpose, from (h, w[, B]) to `shape` (H, W[, B]); left-over pixels get 0."""
        down, across = (self.weights(n).T.tocsr() for n in shape)
        return per_band(values, shape, lambda image: separable(down, image, across))


def separable(down: sparse.csr_array, image: FloatArray, across: sparse.csr_array) -> FloatArray:
    """Return down @ image @ across.T, (h, H) by (H, W) by (W, w)."""
    return np.ascontiguousarray((across @ (down @ image).T).T)
