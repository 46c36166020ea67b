"""LR pixels as training rows: of one image, for candidates with and without a prior, or of several."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spectralift_cli.core.auto.lines import Features, pixel_features, prior_features
from spectralift_cli.core.coarse import ScalePairs, Subspace, filled, interpolate_at, scale_pairs
from spectralift_cli.core.cube import BoolArray
from spectralift_cli.core.holdout import GUARD, Places, Split, block_splits, inner_pixels
from spectralift_cli.core.sharplook import SharpLook

FloatPixels = NDArray[np.float32]
Floats = NDArray[np.float64]

_COMPONENTS = 12  # of the prior: more hold noise, fewer lose rare spectra
_SPANS = 3.0  # spans of the LR-MSI beyond its range, where the line ends too
_LEARNING_SCALE, _JUDGING_SCALE = 2, 4


@dataclass(frozen=True, eq=False)
class Sample:
    """Training rows of one kind of candidate: LR pixels (flat indices of the grid) and what is seen."""

    pixels: NDArray[np.int64]
    u: FloatPixels
    y: FloatPixels

    def where(self, chosen: BoolArray) -> Sample:
        """Return the rows of the LR pixels that are chosen: (h w,) of bool."""
        kept = chosen[self.pixels]
        return Sample(self.pixels[kept], self.u[kept], self.y[kept])


class PixelProblem:
    """LR pixels as the candidates without a prior see them.

    Args:
        lr_msi: (N, M) scaled.
        lr_hsi: (N, B) scaled.
        srf: (M, B) response.
        places: of the pixels, by which they are held out.
        sharp: what is known of the HR-MSI, scaled; None for nothing.
    """

    learning: Sample | None = None
    judging: Sample | None = None

    def __init__(
        self,
        lr_msi: FloatPixels,
        lr_hsi: FloatPixels,
        srf: Floats,
        places: Places,
        sharp: SharpLook | None = None,
    ) -> None:
        self.x, self.y, self.srf, self.sharp = lr_msi, lr_hsi, srf, sharp
        self.msi_noise = np.zeros((lr_msi.shape[1],) * 2)  # (M, M), see `Features`
        if sharp is not None:
            self.msi_noise = sharp.noise_for(lr_msi)
        self.pixel = Sample(np.arange(len(lr_msi)), lr_msi, lr_hsi)
        self.grid: FloatPixels = np.zeros((1, 1, 0), np.float32)  # of the prior, which has none
        self._places = places

    @property
    def msi_range(self) -> FloatPixels:
        """(2, M) lowest and highest MSI values that an inverter lets pass."""
        low, high = self.x.min(axis=0), self.x.max(axis=0)
        span = _SPANS * (high - low)
        return np.stack([low - span, high + span])

    def sharp_rows(self, columns: int) -> FloatPixels:
        """Return what is seen at some HR pixels (n, columns); none where there is no HR-MSI.

        Args:
            columns: M, or with the prior's scores behind them.
        """
        if self.sharp is None:
            return np.zeros((0, columns), np.float32)
        seen = np.clip(self.sharp.pixels, *self.msi_range)
        if columns == seen.shape[1]:
            return seen
        return np.hstack([seen, interpolate_at(self.grid, self.sharp.position)])

    def splits(self) -> list[Split]:
        """Return the ways to hold pixels out, as masks that `Sample.where` takes."""
        return self._places.splits()

    def inner(self) -> BoolArray:
        """Return the mask of the pixels away from borders."""
        return self._places.inner()

    def features(self, sample: Sample) -> Features:
        """Return the features of a sample by its number of columns."""
        return pixel_features(sample.u, self.y.shape[1], self.msi_noise)


class Problem(PixelProblem):
    """The LR pixels of one image, with the prior on its grid."""

    def __init__(
        self,
        lr_msi: FloatPixels,
        lr_hsi: FloatPixels,
        srf: Floats,
        valid: BoolArray,
        shape: tuple[int, int],
        seed: int,
        sharp: SharpLook | None = None,
        psf_radius_lr_px: int | None = None,
    ) -> None:
        self._guard = GUARD if psf_radius_lr_px is None else psf_radius_lr_px
        super().__init__(lr_msi, lr_hsi, srf, Places.of_grid(shape, valid, self._guard), sharp)
        self.shape, self.valid = shape, valid
        self._row_of = np.cumsum(valid) - 1  # flat index -> row of x and y
        pixels = np.flatnonzero(valid)
        self.pixel = Sample(pixels, lr_msi, lr_hsi)
        self.subspace = Subspace.of(lr_hsi, _COMPONENTS)
        grid = np.zeros((valid.size, len(self.subspace.basis)), np.float32)
        grid[pixels] = self.subspace.scores(lr_hsi)
        self.grid = filled(grid.reshape(*shape, -1), valid.reshape(shape))
        if not len(self.subspace.basis):  # all spectra are the same
            return
        rng, noise = np.random.default_rng(seed), self.subspace.noise
        self.learning = self._sample(scale_pairs(self.grid, _LEARNING_SCALE, noise, rng))
        self.judging = self._sample(scale_pairs(self.grid, _JUDGING_SCALE, noise, rng))
        if self.judging is None:
            self.judging = self.learning

    def _sample(self, pairs: ScalePairs | None) -> Sample | None:
        if pairs is None:
            return None
        pairs = pairs.where(self.valid)
        rows = self._row_of[pairs.pixels]
        return Sample(pairs.pixels, np.hstack([self.x[rows], pairs.scores]), self.y[rows])

    def splits(self) -> list[Split]:
        """Return the ways to hold pixels out, as masks of the image's grid (h w,)."""
        return block_splits(self.shape, self.valid, self._guard)

    def inner(self) -> BoolArray:
        """Return the mask (h w,) of the pixels away from borders."""
        return inner_pixels(self.shape)

    def features(self, sample: Sample) -> Features:
        """Return the features of a sample by its number of columns."""
        if sample.u.shape[1] == self.x.shape[1]:
            return super().features(sample)
        return prior_features(sample.u, self.srf, self.subspace, self.msi_noise)
