"""The LR-HSI as a coarse prior: its scores on a grid, interpolated, and pairs one scale down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spectralift_cli.core.cube import BoolArray

FloatPixels = NDArray[np.float32]
Floats = NDArray[np.float64]


def product(a: NDArray[Any], b: NDArray[Any]) -> Floats:
    """Return a @ b in float64 by PyTorch, whose number of threads, unlike NumPy's, is ours to set."""
    made = torch.from_numpy(np.asarray(a, np.float64)) @ torch.from_numpy(np.asarray(b, np.float64))
    return made.numpy()


@dataclass(frozen=True, eq=False)
class Subspace:
    """Principal components of spectra whose bands are divided by their root mean square.

    Noise mostly follows the signal of a band, so that this division makes it alike in all bands,
    and the components that are left out hold noise: without them the prior's dark pixels keep the
    direction of their spectra.

    Args:
        mean: (B,)
        basis: (K, B), scores @ basis + mean are spectra.
        projection: (B, K), (spectra - mean) @ projection are scores, of variance 1 each.
        noise: (K,) standard deviation of the scores' noise, by the components that are left out.
    """

    mean: Floats
    basis: Floats
    projection: Floats
    noise: Floats

    @classmethod
    def of(cls, spectra: FloatPixels, components: int) -> Subspace:
        """Return the first components of spectra (N, B); fewer where the data have fewer."""
        values = spectra.astype(np.float64)
        mean = values.mean(axis=0)
        rms = np.sqrt(np.square(values).mean(axis=0))
        rms = np.maximum(rms, 1e-6 * max(float(rms.max()), 1e-6))
        whitened = (values - mean) / rms
        found = torch.linalg.eigh(torch.from_numpy(product(whitened.T, whitened) / len(values)))
        variances, axes = found[0].numpy(), found[1].numpy()
        chosen = np.argsort(variances)[::-1][:components]
        floor = float(np.median(variances[: max(1, len(variances) - components)]))
        chosen = chosen[variances[chosen] > 1e-12]
        axes = axes[:, chosen]
        # the sign of an eigenvector is arbitrary: fixed, so that it cannot differ between runs
        axes = axes * np.where(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])] < 0, -1, 1)
        deviation = np.sqrt(variances[chosen])
        noise = np.sqrt(max(floor, 0.0)) / deviation
        return cls(mean, (axes * deviation).T * rms, axes / rms[:, None] / deviation, noise)

    def scores(self, spectra: FloatPixels) -> FloatPixels:
        """Return (..., K) scores of spectra (..., B)."""
        return product(spectra - self.mean, self.projection).astype(np.float32)


def filled(grid: FloatPixels, valid: BoolArray) -> FloatPixels:
    """Return a grid (h, w, K) whose holes take the values of the nearest valid pixel.

    Args:
        grid: values.
        valid: (h, w), at least one true.
    """
    if valid.all():
        return grid
    from scipy.ndimage import distance_transform_edt  # which inference does without

    nearest = distance_transform_edt(~valid, return_distances=False, return_indices=True)
    rows, cols = np.asarray(nearest)
    near: FloatPixels = grid[rows, cols]
    return near


def interpolate(grid: FloatPixels, rows: int, cols: int) -> FloatPixels:
    """Return a grid (h, w, K) at the centres of rows x cols pixels that cover it: bilinear.

    Beyond the centres of the outer pixels it stays constant.
    """
    top, down = _between(grid.shape[0], rows)
    left, right = _between(grid.shape[1], cols)
    below, beside = np.minimum(top + 1, len(grid) - 1), np.minimum(left + 1, grid.shape[1] - 1)
    tall = grid[top] * (1 - down)[:, None, None] + grid[below] * down[:, None, None]
    wide = tall[:, left] * (1 - right)[:, None] + tall[:, beside] * right[:, None]
    return wide.astype(np.float32)


def interpolate_at(grid: FloatPixels, position: FloatPixels) -> FloatPixels:
    """Return a grid (h, w, K) at places (n, 2), parts of its height and width: (n, K), bilinear."""
    top, down = _around(grid.shape[0], position[:, 0])
    left, right = _around(grid.shape[1], position[:, 1])
    below, beside = np.minimum(top + 1, len(grid) - 1), np.minimum(left + 1, grid.shape[1] - 1)
    down, right = down[:, None], right[:, None]
    upper = grid[top, left] * (1 - right) + grid[top, beside] * right
    lower = grid[below, left] * (1 - right) + grid[below, beside] * right
    placed: FloatPixels = (upper * (1 - down) + lower * down).astype(np.float32)
    return placed


def _between(size: int, count: int) -> tuple[NDArray[np.int64], FloatPixels]:
    return _around(size, (np.arange(count) + 0.5) / count)


def _around(size: int, place: NDArray[Any]) -> tuple[NDArray[np.int64], FloatPixels]:
    """Return the pixels whose centres are before places (0 to 1), and how far beyond these are."""
    at = np.clip(place.astype(np.float64) * size - 0.5, 0, size - 1)
    first = at.astype(np.int64)
    return first, (at - first).astype(np.float32)


@dataclass(frozen=True, eq=False)
class ScalePairs:
    """What the prior shows of LR pixels when it is made one scale further down.

    Args:
        pixels: (n,) flat indices of LR pixels, each in several phases.
        scores: (n, K) of the coarser image, interpolated at them.
    """

    pixels: NDArray[np.int64]
    scores: FloatPixels

    def where(self, chosen: BoolArray) -> ScalePairs:
        """Return the pairs of the LR pixels that are chosen: (h w,) of bool."""
        kept = chosen[self.pixels]
        return ScalePairs(self.pixels[kept], self.scores[kept])


def scale_pairs(
    grid: FloatPixels, factor: int, noise: Floats, rng: np.random.Generator
) -> ScalePairs | None:
    """Average a grid over factor x factor pixels, at every phase, and interpolate it back.

    The means have less noise than the pixels; they get as much, so that the prior is trusted
    as far as the LR-HSI itself deserves.

    Wald, Ranchin and Mangolini, Photogrammetric Engineering and Remote Sensing 63 (1997): what
    holds between two scales is learned between the next coarser two.

    Args:
        grid: (h, w, K) scores of the LR-HSI.
        factor: at least 2.
        noise: (K,) standard deviation of the scores' noise.
        rng: draws what the means lack of it.

    Returns:
        The pairs, or None where the grid has no two such pixels a side.
    """
    h, w, count = grid.shape
    pixels, scores = [], []
    for a in range(factor):
        for b in range(factor):
            rows, cols = (h - a) // factor, (w - b) // factor
            if min(rows, cols) < 2:
                continue
            part = grid[a : a + rows * factor, b : b + cols * factor]
            coarse = part.reshape(rows, factor, cols, factor, count).mean(axis=(1, 3))
            lacking = noise * np.sqrt(1 - factor**-2)
            coarse = (coarse + lacking * rng.standard_normal(coarse.shape)).astype(np.float32)
            scores.append(interpolate(coarse, *part.shape[:2]).reshape(-1, count))
            at: Any = np.arange(a, a + part.shape[0])[:, None] * w + np.arange(b, b + part.shape[1])
            pixels.append(at.ravel())
    if not pixels:
        return None
    return ScalePairs(np.concatenate(pixels), np.concatenate(scores).astype(np.float32))
