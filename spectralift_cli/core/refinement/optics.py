"""The LR-HSI's view of the sharp grid as a sum of separable products, by blocks of rows.

A kernel of rank R is sum_r u_r v_r^T (singular value decomposition), and the means over LR pixels
are separable, so that LR = sum_r D_r HR E_r^T with sparse D_r (h, H) and E_r (w, W). This holds at
any ratio, needs no FFT and no neighbour beyond the rows at hand. Beyond the edges there is nothing:
LR pixels that look there see less than all of their weight, which `share` tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from spectralift_cli.core.cube import BoolArray, FloatArray
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.operators.psf import check_psf
from spectralift_cli.core.placement import Placement

Floats32 = NDArray[np.float32]

# singular values below this part of the largest say nothing that float32 could hold
_RANK_CUT = 1e-7
_WHOLE = 0.99  # share of its weight that an LR pixel must see to count


@dataclass(frozen=True, eq=False)
class Optical:
    """What is known of the blur between the images.

    Args:
        psf: (k, k) on the HR grid; None to find one.
        includes_footprint: whether it holds the LR pixel's footprint already.
    """

    psf: FloatArray | None = None
    includes_footprint: bool = False


@dataclass(frozen=True, eq=False)
class Optics:
    """LR = mean(blur(HR)) with its transpose.

    Args:
        psf: (k, k), k odd, on the HR grid, summing to 1.
        placement: of the LR grid on the HR grid.
        includes_footprint: whether the kernel holds the LR pixel's footprint already.

    Raises:
        DataError: the kernel is no PSF, or is wider than the image.
    """

    psf: FloatArray
    placement: Placement
    includes_footprint: bool = False

    def __post_init__(self) -> None:
        psf = check_psf(self.psf, "the PSF")
        object.__setattr__(self, "psf", psf)
        rows, cols = self.placement.hr_shape
        if psf.shape[0] > min(rows, cols):
            raise DataError(
                f"the PSF of {psf.shape[0]} x {psf.shape[0]} pixels is wider than the image of "
                f"{rows} x {cols}",
                "give the PSF on the sharp image's grid, cut to where it is not zero",
            )

    @cached_property
    def factors(self) -> list[tuple[sparse.csr_array, sparse.csr_array]]:
        """The pairs (D_r, E_r), float64."""
        footprint = "point" if self.includes_footprint else "area"
        down, across = (self.placement.weights(axis, footprint) for axis in (0, 1))
        left, values, right = np.linalg.svd(self.psf)
        rank = int((values > _RANK_CUT * values[0]).sum())
        return [
            (
                sparse.csr_array(down @ _convolution(left[:, r] * values[r], down.shape[1])),
                sparse.csr_array(across @ _convolution(right[r], across.shape[1])),
            )
            for r in range(rank)
        ]

    @cached_property
    def _single(self) -> list[tuple[sparse.csc_array, sparse.csr_array, sparse.csr_array]]:
        """The factors in float32: D by columns, E, and E transposed."""
        return [
            (
                sparse.csc_array(down.astype(np.float32)),
                across.astype(np.float32),
                sparse.csr_array(across.T.astype(np.float32)),
            )
            for down, across in self.factors
        ]

    def seeing(self, bands: int) -> Seeing:
        """Return an empty LR image that HR rows are added to."""
        return Seeing(self, bands)

    def see(self, values: Floats32) -> Floats32:
        """Return the LR image (h, w, B) of a whole HR image (H, W, B)."""
        seeing = self.seeing(values.shape[2])
        seeing.add(slice(0, len(values)), values)
        return seeing.image

    def spread(self, values: Floats32, rows: slice) -> Floats32:
        """Return some rows of the transpose's image.

        Args:
            values: (h, w, B).
            rows: of the HR image.

        Returns:
            (n, W, B) float32.
        """
        bands = values.shape[2]
        count, width = rows.stop - rows.start, self.placement.hr_shape[1]
        found = np.zeros((width, count * bands), np.float32)
        for down, _, across_t in self._single:
            found_part = _columns(down, rows)
            if found_part is None:
                continue
            part, touched = found_part
            seen = values[touched]  # (t, w, B)
            tall = part.T @ seen.reshape(len(seen), -1)  # (n, w B)
            wide = tall.reshape(count, -1, bands).transpose(1, 0, 2).reshape(-1, count * bands)
            found += across_t @ wide  # (W, n B)
        return np.ascontiguousarray(found.reshape(width, count, bands).transpose(1, 0, 2))

    def share(self, valid: BoolArray | None = None) -> Floats32:
        """Return (h, w) the part of each LR pixel's weight that lies on valid HR pixels.

        Args:
            valid: (H, W); None for all.
        """
        shape = self.placement.hr_shape
        ones = np.ones(shape, np.float32) if valid is None else valid.astype(np.float32)
        return self.see(ones[:, :, None])[:, :, 0]

    @cached_property
    def noise_power(self) -> float:
        """The variance of an LR pixel over that of white noise on the HR pixels it sees."""
        down, across = self.windows()
        # at the middle of the image, where nothing is cut
        weights = np.einsum(
            "ra,rb->ab", down.values[:, len(down.starts) // 2],
            across.values[:, len(across.starts) // 2],
        )  # fmt: skip
        return float(np.square(weights).sum())

    @staticmethod
    def whole(share: Floats32) -> BoolArray:
        """Return which LR pixels see enough to be compared with."""
        enough: BoolArray = share >= _WHOLE - 1e-5
        return enough

    def windows(self) -> tuple[Windows, Windows]:
        """Return each factor's rows as dense windows, for (rows, columns)."""
        return Windows.of([d for d, _ in self.factors]), Windows.of([e for _, e in self.factors])

    def matrix(self, lr_rows: slice, windows: tuple[Windows, Windows]) -> sparse.csr_array:
        """Return the operator's rows for some LR rows, (n w, H W) float32.

        Args:
            lr_rows: of the LR image.
            windows: what `windows` returns.
        """
        down, across = windows
        (height, width), (h, w) = self.placement.hr_shape, self.placement.lr_shape
        del height, h
        count = lr_rows.stop - lr_rows.start
        # (n, w, a, b): the weights of LR pixel (i, j) over its window of a x b HR pixels
        weights = np.einsum("ria,rjb->ijab", down.values[:, lr_rows], across.values, optimize=True)
        at_row = down.starts[lr_rows, None] + np.arange(down.size)  # (n, a)
        at_col = across.starts[:, None] + np.arange(across.size)  # (w, b)
        index = at_row[:, None, :, None] * width + at_col[None, :, None, :]
        size = down.size * across.size
        pointers = np.arange(0, (count * w + 1) * size, size)
        triple = (weights.astype(np.float32).ravel(), index.ravel(), pointers)
        return sparse.csr_array(triple, shape=(count * w, self.placement.hr_shape[0] * width))


@dataclass(frozen=True, eq=False)
class Windows:
    """Rows of sparse matrices as dense windows.

    Args:
        values: (R, n, size) the entries of row i of matrix r from column starts[i] on.
        starts: (n,)
    """

    values: FloatArray
    starts: NDArray[np.int64]

    @property
    def size(self) -> int:
        """Columns of a window."""
        return int(self.values.shape[2])

    @classmethod
    def of(cls, matrices: list[sparse.csr_array]) -> Windows:
        """Return the windows that hold every entry of every matrix."""
        count, width = matrices[0].shape
        pattern = sum(abs(m) for m in matrices).tocsr()
        starts = np.zeros(count, np.int64)
        ends = np.zeros(count, np.int64)
        for i in range(count):
            used = pattern.indices[pattern.indptr[i] : pattern.indptr[i + 1]]
            if used.size:
                starts[i], ends[i] = used.min(), used.max() + 1
        size = max(1, int((ends - starts).max()))
        starts = np.clip(starts, 0, width - size)
        values = np.zeros((len(matrices), count, size))
        for r, matrix in enumerate(matrices):
            entries = matrix.tocoo()
            values[r, entries.row, entries.col - starts[entries.row]] = entries.data
        return cls(values, starts)


class Seeing:
    """An LR image in the making, to which HR rows are added in any order.

    Attributes:
        image: (h, w, B) float32, complete when all rows were added.
    """

    def __init__(self, optics: Optics, bands: int) -> None:
        self._optics = optics
        self.image: Floats32 = np.zeros((*optics.placement.lr_shape, bands), np.float32)

    def add(self, rows: slice, values: Floats32) -> None:
        """Add what is seen of HR rows, (n, W, B) float32."""
        count, width, bands = values.shape
        turned = np.ascontiguousarray(values.transpose(1, 0, 2)).reshape(width, count * bands)
        for down, across, _ in self._optics._single:
            found = _columns(down, rows)
            if found is None:
                continue
            part, touched = found
            narrow = across @ turned  # (w, n B)
            tall = narrow.reshape(-1, count, bands).transpose(1, 0, 2).reshape(count, -1)
            here = self.image[touched]
            here += (part @ tall).reshape(here.shape)


def _columns(down: sparse.csc_array, rows: slice) -> tuple[sparse.csr_array, slice] | None:
    """Return the columns of D for some HR rows, cut to the LR rows they touch, and these; or None."""
    first, last = down.indptr[rows.start], down.indptr[rows.stop]
    used = down.indices[first:last]
    if not used.size:
        return None
    touched = slice(int(used.min()), int(used.max()) + 1)
    pointers = down.indptr[rows.start : rows.stop + 1] - first
    part = sparse.csc_array(
        (down.data[first:last], used - touched.start, pointers),
        shape=(touched.stop - touched.start, rows.stop - rows.start),
    )
    return part.tocsr(), touched


def _convolution(kernel: FloatArray, size: int) -> sparse.csr_array:
    """Return the (size, size) matrix that convolves a line with a kernel, zeros beyond its ends."""
    half = len(kernel) // 2
    offsets = [k - half for k in range(len(kernel)) if abs(k - half) < size]
    # y[i] = sum_k kernel[k] x[i - (k - half)]
    bands = [np.full(size - abs(o), kernel[o + half]) for o in offsets]
    return sparse.csr_array(
        sparse.diags_array(bands, offsets=[-o for o in offsets], shape=(size, size))
    )


def row_windows(rows: int, height: int) -> Iterator[slice]:
    """Yield slices of at most `height` rows that cover `rows`."""
    for start in range(0, rows, height):
        yield slice(start, min(start + height, rows))
