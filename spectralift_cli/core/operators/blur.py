"""Blurring with a point spread function, and its adjoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from spectralift_cli.core.cube import AnyArray, FloatArray
from spectralift_cli.core.operators.bandwise import per_band
from spectralift_cli.core.operators.psf import check_psf

BOUNDARIES = ("reflect", "zero")


@dataclass(frozen=True, eq=False)
class Blur:
    """Convolve every band with a kernel, the size kept: y[i] = sum_k kernel[k] x[i - k].

    Borders: "zero" takes what lies outside for 0, so that edges darken (the published protocol);
    "reflect" mirrors it about the outer edge of its border pixels, (d c b a | a b c d), so that a
    constant image stays constant and the light that leaves at an edge comes back there (SciPy's
    ndimage "reflect", NumPy's "symmetric"). Convolution by FFT in float64, one band at a time.

    Args:
        kernel: (k, k), k odd; used normalised to sum 1.
        boundary: "reflect" or "zero".

    Raises:
        DataError: the kernel cannot be used, see `check_psf`.
    """

    kernel: FloatArray
    boundary: str = "reflect"

    def __post_init__(self) -> None:
        if self.boundary not in BOUNDARIES:
            raise ValueError(f"boundary is {self.boundary!r}, not one of {BOUNDARIES}")
        kernel = _without_zero_margins(check_psf(self.kernel, "the kernel")).copy()
        kernel.setflags(write=False)
        object.__setattr__(self, "kernel", kernel)

    @property
    def halo(self) -> tuple[int, int]:
        """How many rows and columns beyond its own a pixel depends on."""
        return self.kernel.shape[0] // 2, self.kernel.shape[1] // 2

    def __call__(self, values: AnyArray) -> AnyArray:
        """Blur an image (H, W) or cube (H, W, B); one NaN makes its whole band NaN.

        Returns:
            The same shape, float32 for float32, else float64.
        """
        shape = values.shape[:2]
        return per_band(values, shape, self.on(shape))

    def on(self, shape: tuple[int, int]) -> Callable[[FloatArray], FloatArray]:
        """Return the blur of (H, W) float64 images, whose transforms are then made only once."""
        if self.kernel.size == 1:
            return lambda image: image
        convolve = _Convolution(self.kernel, shape)
        (top, left), (H, W) = self.halo, shape

        def blur(image: FloatArray) -> FloatArray:
            if self.boundary == "zero":
                return convolve(image)[top : top + H, left : left + W]
            padded = np.pad(image, ((top, top), (left, left)), mode="symmetric")
            # only the outermost 2 halo pixels wrap around
            return convolve(padded)[2 * top : 2 * top + H, 2 * left : 2 * left + W]

        return blur

    def adjoint(self, values: AnyArray) -> AnyArray:
        """Apply the transpose: the sum over y A(x) equals the sum over x adjoint(y).

        Args:
            values: (H, W) or (H, W, B).

        Returns:
            The same shape, float32 for float32, else float64.
        """
        shape = values.shape[:2]
        if self.kernel.size == 1:
            return per_band(values, shape, lambda image: image)
        correlate = _Convolution(self.kernel[::-1, ::-1], shape)
        (top, left), (H, W) = self.halo, shape

        def spread(image: FloatArray) -> FloatArray:
            full = correlate(image)[: H + 2 * top, : W + 2 * left]
            if self.boundary == "zero":
                return full[top : top + H, left : left + W]
            return _fold(_fold(full, top, H).T, left, W).T

        return per_band(values, shape, spread)


class _Convolution:
    """Circular convolution of images of up to (H, W) plus a halo all around, without wrapping.

    A length of H + 2 halo holds the full convolution of H rows, and the valid part of that of
    H + 2 halo rows.
    """

    def __init__(self, kernel: FloatArray, shape: tuple[int, int]) -> None:
        from scipy import fft  # which inference does without

        self._fft = fft
        rows, cols = (
            fft.next_fast_len(n + k - 1, real=True)
            for n, k in zip(shape, kernel.shape, strict=True)
        )
        self._shape = (rows, cols)
        self._spectrum = fft.rfft2(kernel, self._shape)

    def __call__(self, image: FloatArray) -> FloatArray:
        """Return float64 of the padded shape; its row i is row i of the full convolution."""
        spectrum = self._fft.rfft2(image, self._shape)
        spectrum *= self._spectrum
        result: FloatArray = self._fft.irfft2(spectrum, self._shape, overwrite_x=True)
        return result


def _without_zero_margins(kernel: FloatArray) -> FloatArray:
    """Return the kernel less the outer rings of zeros that both ends of an axis have."""
    for axis in (0, 1):
        used = np.flatnonzero(kernel.any(axis=1 - axis))
        spare = min(int(used[0]), kernel.shape[axis] - 1 - int(used[-1]))
        kernel = np.take(kernel, range(spare, kernel.shape[axis] - spare), axis=axis)
    return kernel


def _fold(padded: FloatArray, halo: int, size: int) -> FloatArray:
    """Apply the transpose of symmetric padding along the first axis."""
    origin = np.pad(np.arange(size), halo, mode="symmetric")
    folded = padded[halo : halo + size].copy()
    for row in (*range(halo), *range(halo + size, size + 2 * halo)):
        folded[origin[row]] += padded[row]
    return folded
