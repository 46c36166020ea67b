"""What a coarse sensor sees of a sharp image: blur, then area means; by strips, around holes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from spectralift_cli.core.cube import AnyArray, BoolArray, FloatArray
from spectralift_cli.core.operators.blur import Blur
from spectralift_cli.core.operators.downsample import AreaMean, separable

# an LR pixel more of whose weight than this falls into holes is a hole itself; the others are
# estimated from the rest of their weight
MAX_HOLE_SHARE = 0.25


@dataclass(frozen=True, eq=False)
class Degradation:
    """Blur and average an image.

    Holes (NaN) are left out: an LR value is the weighted mean of the valid HR values, weighted by
    kernel and footprint, unless more than a quarter of the weight is missing; then it is NaN. Where
    there are no holes the operator is linear.

    Args:
        blur: at the HR pixel size.
        area: the LR pixels.
    """

    blur: Blur
    area: AreaMean

    def __call__(self, values: AnyArray) -> AnyArray:
        """Degrade a cube (H, W, B), NaN in holes, to (h, w, B) of the same floating type."""
        rows = slice(0, values.shape[0])
        lr_rows = slice(0, self.area.lr_size(values.shape[0]))
        return self.strip(values, lr_rows, rows, values.shape[0])

    def adjoint(self, values: AnyArray, shape: tuple[int, int]) -> AnyArray:
        """Apply the transpose of the operator without holes, (h, w, B) to (*shape, B)."""
        return self.blur.adjoint(self.area.adjoint(values, shape))

    def strips(self, rows: int, height: int) -> Iterator[tuple[slice, slice]]:
        """Cut an image of `rows` HR rows into strips of about `height` HR rows.

        Yields:
            (LR rows, HR rows that they depend on), from top to bottom; neighbouring HR slices
            overlap by the halo of the blur.
        """
        count = self.area.lr_size(rows)
        # the HR rows that LR pixels share: all of them, or those that are not left over
        span = rows if self.area.fractional else count * self.area.ratio
        halo = self.blur.halo[0]
        step = max(1, (max(height, 4 * halo) - 2 * halo) * count // span)
        for start in range(0, count, step):
            stop = min(start + step, count)
            first, last = start * span // count, -(-stop * span // count)
            yield slice(start, stop), slice(max(0, first - halo), min(rows, last + halo))

    def strip(self, window: AnyArray, lr_rows: slice, hr_rows: slice, rows: int) -> AnyArray:
        """Degrade one of the `strips`.

        The blur treats the edges of the window as borders of the image, which is wrong within a
        halo of edges that are none; but there no LR pixel of the strip looks.

        Args:
            window: (n, W, B) the HR rows `hr_rows`, NaN in holes.
            lr_rows: which LR rows are wanted.
            hr_rows: which HR rows the window holds.
            rows: of the whole HR image.

        Returns:
            (m, w, B) of the type of the window.
        """
        shape = window.shape[:2]
        down = self.area.weights(rows)[lr_rows][:, hr_rows]
        across = self.area.weights(shape[1])
        result = np.empty((down.shape[0], across.shape[0], window.shape[2]), window.dtype)
        blur = self.blur.on(shape)

        def degrade(image: FloatArray) -> FloatArray:
            return separable(down, blur(image), across)

        def coverage(image: FloatArray) -> FloatArray:
            magnitude = Blur(np.abs(self.blur.kernel), self.blur.boundary)
            return separable(down, magnitude.on(shape)(image), across)

        mask: BoolArray | None = None  # of the band before; holes mostly lie in all bands alike
        for band in range(window.shape[2]):
            image = np.ascontiguousarray(window[:, :, band], dtype=np.float64)
            holes = np.isnan(image)
            if not holes.any():
                result[:, :, band] = degrade(image)
                continue
            if mask is None or not np.array_equal(mask, holes):
                mask = holes
                gain = _gain((~holes).astype(np.float64), degrade, coverage)
            result[:, :, band] = degrade(np.where(holes, 0.0, image)) * gain
        return result


def _gain(
    valid: FloatArray,
    degrade: Callable[[FloatArray], FloatArray],
    coverage: Callable[[FloatArray], FloatArray],
) -> FloatArray:
    """Return what makes up for the weight missing in each LR pixel, NaN where too much is."""
    everywhere = np.ones_like(valid)
    share = 1 - coverage(valid) / coverage(everywhere)
    whole, left = degrade(everywhere), degrade(valid)
    gain = np.ones_like(share)
    touched = share > 1e-9  # below is the rounding of the transforms
    # a kernel with negative lobes may lose less weight than share says, or much more
    lost = touched & ((share > MAX_HOLE_SHARE) | (left <= whole / 2))
    np.divide(whole, left, out=gain, where=touched & ~lost)
    gain[lost] = np.nan
    return gain
