"""The Gaussian posterior of a sharp cube, given both images and an estimate of it.

With coefficients z_p (K,) of a correction at HR pixel p, X_p = X0_p + noise_std * (basis @ z_p)
(`signal`), the two images say

    y_h - A X0 = A z + n_h,   n_h ~ N(0, N)    N: what the axes took up of the noise (`signal`), and
                                               what the PSF leaves (`match`)
    y_m - X0 SRF^T = z P + n_m,   n_m ~ N(0, L),   P (K, M) the response to each coefficient

with A the LR-HSI's blur and mean, the same for every coefficient. The prior is the estimate:
z_p ~ N(0, w_p^2 C), independent pixels, C (K, K) from the covariance of the LR residual less noise,
and w_p how far pixel p may be off: see `weights`. Wei, Dobigeon and Tourneret (IEEE Transactions on
Image Processing 24 (2015), FUSE) and Simoes et al. (IEEE Transactions on Geoscience and Remote
Sensing 53 (2015), HySure) pose fusion this way, with a prior about images; here it is about an
estimate's errors, so that small data terms leave the estimate as it is.

1. The MSI is per pixel, and so is its part of the posterior; `msi_step` has it in closed form. It
   leaves, of the covariance,

       w_p^2 C1,   C1 = C - C P (P^T C P + L)^-1 P^T C

   (exactly where w is constant; elsewhere the MSI's noise is taken to vary with w, too, for this
   second step alone).
2. In the basis that makes N the identity and C1 diagonal, diag(s), coefficients decouple, and each
   is solved on the LR grid:

       (s_k G + I) v_k = d_k - A z1_k,   G = A diag(w^2) A^T,   z_k = z1_k + s_k w^2 A^T v_k.

   G is a sparse (h w, h w) matrix of a few neighbours a row, so no iteration touches the sharp grid:
   conjugate gradients, all coefficients side by side, preconditioned by the inverse of s_k G0 + I
   with G0 the stationary part of G, diagonal in the cosine transform.

Hence nothing is cut into tiles: the LR image is solved as a whole, and the sharp one is passed over
by rows, before (A X0, A z1) and after (A^T v). Nothing has seams, and nothing wraps around.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, sparse

from spectralift_cli.core.cube import BoolArray, FloatArray
from spectralift_cli.core.refinement.optics import Optics, row_windows

Floats32 = NDArray[np.float32]

_TOLERANCE = 1e-5
_MOST_STEPS = 300
_GROUP_VALUES = 2**23  # of a vector of the solver
_LEAST_VARIANCE = 1e-3  # of the noise's; below it the LR residual shows nothing
_BAND_ENTRIES = 2**22  # of the operator's matrix, at a time


@dataclass(frozen=True, eq=False)
class Prior:
    """The covariance C of the estimate's errors, and what the MSI leaves of it.

    Args:
        covariance: (K, K) C.
        response: (K, M) P.
        msi_noise_std: (M,)
        noise: (K, K) N.
    """

    covariance: FloatArray
    response: FloatArray
    msi_noise_std: FloatArray
    noise: FloatArray

    @classmethod
    def of(
        cls, residual: FloatArray, strength: float, response: FloatArray, msi_noise_std: FloatArray,
        noise: FloatArray,
    ) -> Prior:  # fmt: skip
        """Learn C from the LR residual.

        Args:
            residual: (n, K) of the estimate at valid LR pixels.
            strength: C over the residual's covariance beyond noise: errors of single HR pixels are
                larger than those of the means over a footprint.
            response: (K, M).
            msi_noise_std: (M,).
            noise: (K, K).
        """
        found = residual.T @ residual / max(1, len(residual)) - noise
        values, axes = np.linalg.eigh((found + found.T) / 2)
        covariance = (axes * np.maximum(values, _LEAST_VARIANCE)) @ axes.T * strength
        return cls(covariance, response, msi_noise_std, noise)

    def left(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return s (K,), and the maps (K, K) into and out of the decoupled basis of step 2.

        Coefficients z (..., K) become z @ into; z' @ out_of brings corrections back.
        """
        across = self.response.T @ self.covariance  # (M, K) P^T C
        seen = across @ self.response + np.diag(np.square(self.msi_noise_std))
        remaining = self.covariance - across.T @ np.linalg.solve(seen, across)
        noise, axes = np.linalg.eigh(self.noise)
        whiten, colour = axes / np.sqrt(noise), (axes * np.sqrt(noise)).T
        whitened = whiten.T @ remaining @ whiten
        variances, turn = np.linalg.eigh((whitened + whitened.T) / 2)
        return np.maximum(variances, 0), whiten @ turn, turn.T @ colour


class Gram:
    """G = A diag(w^2) A^T over the valid LR pixels.

    Args:
        optics: A.
        weights: (H, W) w^2.
        use: (h, w) the LR pixels that count.
        scale: (h, w) what the rows of A are multiplied by, 1 / share seen.
    """

    def __init__(self, optics: Optics, weights: Floats32, use: BoolArray, scale: Floats32) -> None:
        self.use = use
        height, width = optics.placement.lr_shape
        windows = optics.windows()
        reach = [_reach(window.starts, window.size) for window in windows]
        per_row = width * windows[0].size * windows[1].size
        step = max(1, _BAND_ENTRIES // per_row - 2 * reach[0])
        flat, each = weights.ravel(), scale.ravel().astype(np.float32)
        number = np.cumsum(use.ravel()) - 1  # of each used LR pixel among them
        count = int(use.sum())
        # filled from the front; what is never touched costs no memory
        most = count * min(count, (2 * reach[0] + 1) * (2 * reach[1] + 1))
        data, indices = np.empty(most, np.float32), np.empty(most, np.int32)
        pointers = np.zeros(count + 1, np.int64)
        stencil = np.zeros((reach[0] + 1, reach[1] + 1))
        row = filled = 0
        for rows in row_windows(height, step):
            around = slice(max(0, rows.start - reach[0]), min(height, rows.stop + reach[0]))
            near = optics.matrix(around, windows)
            inner = slice((rows.start - around.start) * width, (rows.stop - around.start) * width)
            mine = np.flatnonzero(use[rows].ravel()) + inner.start
            heavy = near[mine]
            heavy.data *= flat[heavy.indices]
            block = (heavy @ near.T).tocsr()
            here = np.repeat(mine, np.diff(block.indptr)) + around.start * width
            there = block.indices + around.start * width
            kept = use.ravel()[there]
            here, there = here[kept], there[kept]
            values = block.data[kept] * each[here] * each[there]
            down = np.abs(here // width - there // width)
            across = np.abs(here % width - there % width)
            # what only a common zero of two windows joins lies further apart
            close = (down <= reach[0]) & (across <= reach[1])
            here, there, values = here[close], there[close], values[close]
            np.add.at(stencil, (down[close], across[close]), values)
            new = filled + len(values)
            data[filled:new], indices[filled:new] = values, number[there]
            ends = filled + np.cumsum(np.bincount(number[here] - row, minlength=len(mine)))
            pointers[row + 1 : row + len(mine) + 1] = ends
            row, filled = row + len(mine), new
        self.matrix = sparse.csr_array(
            (data[:filled], indices[:filled], pointers), shape=(count, count)
        )
        at = [np.outer(np.pi * np.arange(n) / n, np.arange(k)) for n, k in
              zip((height, width), stencil.shape, strict=True)]  # fmt: skip
        symbol = np.cos(at[0]) @ (stencil / max(1, count)) @ np.cos(at[1]).T
        self._symbol = np.maximum(symbol, 0).astype(np.float32)

    def solve(
        self, variances: FloatArray, right: Floats32, part: BoolArray | None = None,
        tolerance: float = _TOLERANCE,
    ) -> tuple[Floats32, int]:  # fmt: skip
        """Solve (s_k G + I) v_k = d_k for every k by preconditioned conjugate gradients.

        Args:
            variances: (K,) s.
            right: (n, K) d.
            part: (n,) the LR pixels that take part, the others having v = 0; None for all.
            tolerance: of the residual's norm over that of d.

        Returns:
            (n, K) v, and how many steps it took.
        """
        found = np.zeros_like(right)
        steps = 0
        # a few at a time, by the image alone, to hold fewer vectors of a large one
        group = max(1, _GROUP_VALUES // max(1, len(right)))
        mask = None if part is None else part.astype(np.float32)[:, None]
        for first in range(0, right.shape[1], group):
            these = slice(first, first + group)
            masked = right[:, these] if mask is None else right[:, these] * mask
            solved, took = self._solve(
                variances[these].astype(np.float32), np.ascontiguousarray(masked), mask, tolerance
            )
            found[:, these] = solved
            steps = max(steps, took)
        return found, steps

    def _solve(
        self, s: Floats32, right: Floats32, mask: Floats32 | None, tolerance: float
    ) -> tuple[Floats32, int]:
        damping = np.float32(1) / (1 + s * self._symbol[:, :, None])  # (h, w, K)
        v = np.zeros_like(right)
        r = right.copy()
        z = self._precondition(r, damping, mask)
        p = z.copy()
        rz = _dots(r, z)
        goal = tolerance**2 * np.maximum(_dots(right, right), 1e-30)
        for step in range(_MOST_STEPS):
            if (_dots(r, r) <= goal).all():
                return v, step
            ap = self.matrix @ p
            ap *= s
            if mask is not None:
                ap *= mask
            ap += p
            alpha = (rz / np.maximum(_dots(p, ap), 1e-30)).astype(np.float32)
            v += alpha * p
            r -= alpha * ap
            z = self._precondition(r, damping, mask)
            new = _dots(r, z)
            p *= (new / np.maximum(rz, 1e-30)).astype(np.float32)
            p += z
            rz = new
        return v, _MOST_STEPS

    def _precondition(self, values: Floats32, damping: Floats32, mask: Floats32 | None) -> Floats32:
        image = np.zeros((*self.use.shape, values.shape[1]), np.float32)
        image[self.use] = values
        waves = fft.dctn(image, axes=(0, 1), norm="ortho", overwrite_x=True)
        waves *= damping
        back: Floats32 = fft.idctn(waves, axes=(0, 1), norm="ortho", overwrite_x=True)
        found: Floats32 = back[self.use]
        return found if mask is None else found * mask


def _dots(a: Floats32, b: Floats32) -> FloatArray:
    total: FloatArray = np.einsum("nk,nk->k", a, b, dtype=np.float64)
    return total


def _reach(starts: NDArray[np.int64], size: int) -> int:
    """Return how many rows apart two LR rows may be that see an HR row in common."""
    last = np.searchsorted(starts, starts + size)
    return int((last - np.arange(len(starts))).max()) - 1
