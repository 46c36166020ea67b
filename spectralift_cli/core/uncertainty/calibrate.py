"""Calibrate the expectation of errors on held-out LR pixels and one scale down."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import brentq

from spectralift_cli.core.auto import fit_auto
from spectralift_cli.core.checkpoint import Checkpoint
from spectralift_cli.core.coarse import product
from spectralift_cli.core.config import TrainConfig
from spectralift_cli.core.cube import BoolArray, CubeReader, FloatArray, Progress, no_progress
from spectralift_cli.core.errors import DataError, SpectraliftWarning
from spectralift_cli.core.fitting import fit
from spectralift_cli.core.holdout import block_splits, inner_pixels
from spectralift_cli.core.inference import predict
from spectralift_cli.core.models.base import SpectralModel, build_model
from spectralift_cli.core.observation import Observation
from spectralift_cli.core.placement import Placement
from spectralift_cli.core.training import load_pairs
from spectralift_cli.core.uncertainty.calibration import (
    Calibration,
    ErrorModel,
    grown,
    scatter_of,
    upper_quantile,
)
from spectralift_cli.core.uncertainty.reference import FloatPixels, Reference
from spectralift_cli.core.validation.reduced import rescaled_kernel
from spectralift_cli.core.validation.reproject import degrade

_SCORED_PIXELS = 200
_FEWEST_SPLITS, _MOST_SPLITS = 2, 3
_LEAST_COARSE = 100  # pixels one scale down
_FEWEST_COARSE = 16
_FLAG_LEVEL = 0.99  # of held-out LR pixels lie nearer to those seen than what is flagged
_LEAST_INSIDE = 0.5
_SIGNALS = 12  # components that may hold more than noise
# of errors, from one scale to the next; purer pixels are not easier, so less than 1 tells of the few
# pixels one scale down
_GROWTHS = 1.0, 20.0


@dataclass(frozen=True, eq=False)
class _Image:
    """LR pixels on their grid, scaled: x (N, M), y (N, B), which of the h w pixels they are."""

    x: FloatPixels
    y: FloatPixels
    valid: BoolArray
    shape: tuple[int, int]

    def rows_of(self, chosen: BoolArray) -> BoolArray:
        """Return (N,) which of the pixels are chosen of (h w,)."""
        return chosen[self.valid]

    def where(self, chosen: BoolArray) -> _Image:
        kept = self.rows_of(chosen)
        return _Image(self.x[kept], self.y[kept], self.valid & chosen, self.shape)

    def positions(self) -> FloatPixels:
        """Return (N, 2) centres as parts of the grid's height and width."""
        row, col = np.divmod(np.flatnonzero(self.valid), self.shape[1])
        at = np.stack([(row + 0.5) / self.shape[0], (col + 0.5) / self.shape[1]], axis=1)
        return at.astype(np.float32)


class _Fitter:
    """Fits models to parts of an image as the training did, and applies them."""

    def __init__(
        self, config: TrainConfig, srf: FloatArray, device: torch.device | None, threads: int | None
    ) -> None:
        self.config, self.srf = config, srf
        self._device, self._threads = device, threads

    def fit(self, image: _Image) -> SpectralModel:
        config = self.config
        if config.preset != "auto":
            fitted = fit(image.x, image.y, config, device=self._device, threads=self._threads)
            return fitted.model
        with warnings.catch_warnings():
            # that few pixels are left is the calibration's doing, not the user's
            warnings.simplefilter("ignore", SpectraliftWarning)
            found = fit_auto(
                image.x, image.y, self.srf, image.valid, image.shape, config,
                threads=self._threads,
            )  # fmt: skip
        size = len(self.srf), image.y.shape[1]
        return build_model(found.model_name, *size, found.model_config).with_weights(found.weights)

    def apply(self, model: SpectralModel, image: _Image) -> FloatPixels:
        given = image.x
        if model.needs_position:
            given = np.hstack([given, image.positions()])
        return predict(model, given, threads=self._threads)


def calibrate(
    checkpoint: Checkpoint,
    lr_hsi: CubeReader,
    observation: Observation,
    psf: str,
    *,
    device: torch.device | None = None,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> Calibration:
    """Return how wrong a model is to be expected.

    1. The model is fitted again without blocks of LR pixels, and a line of log RMSE over cheap
       features is fitted to its errors there, with conformal quantiles of what scatters around it.
    2. Errors of HR pixels are larger, since these are purer. By how much is measured one scale
       down: the LR-HSI is degraded once more by the same optics, a model is fitted and its
       held-out errors modelled there, and compared with its errors at the LR pixels, noise apart
       (`grown`). The step is as large as the pixels allow, up to the ratio of the images. What it
       shows is used as it is: carried on to the whole ratio as a power, the accidents of a few
       coarse pixels made errors four times too large. Errors scatter as they do at either scale,
       whichever is more.

    Noise of the LR-HSI is part of every error that can be observed, and stays part of what is
    expected: RMSE against a spectrum that was measured as the LR-HSI was. Its variance is that of
    the components of the spectra that hold nothing else; the degraded image, which has less, gets
    as much.

    Args:
        checkpoint: what was trained.
        lr_hsi: on this image.
        observation: how its instrument sees the HR grid.
        psf: where the PSF comes from, in words.
        device: where to fit; None for the processor.
        threads: at most; None for all this process may use. Changes no byte.
        progress: called with fits done and in all.

    Raises:
        DataError: too few LR pixels.
    """
    config = replace(checkpoint.train_config, uncertainty=False)
    data = load_pairs(lr_hsi, checkpoint.srf, scaling=checkpoint.scaling)
    image = _Image(data.lr_msi, data.lr_hsi, data.valid, data.shape)
    ratio = math.sqrt(math.prod(observation.placement.scale))
    factor, optics = _step(image, observation, ratio)
    coarse, fine = _coarser(image, optics, data.weights)
    noise = noise_variance(image.y)
    lacking = noise * (1 - _noise_share(optics))
    fitter = _Fitter(config, data.weights, device, threads)
    splits = [_splits(each) for each in (image, coarse)]
    total = sum(map(len, splits)) + 1
    done = 0

    def held_out(
        each: _Image, masks: list[tuple[BoolArray, BoolArray]], noise: float
    ) -> tuple[ErrorModel, FloatArray, int]:
        nonlocal done
        features, errors, distances = [], [], []
        for held, training in masks:
            sample, judged = each.where(training), each.where(held)
            estimate = fitter.apply(fitter.fit(sample), judged)
            reference = Reference.of(sample.x, sample.y)
            features.append(reference.features(judged.x, estimate, data.weights))
            errors.append(_rmse(estimate, judged.y, noise))
            distances.append(reference.distance(judged.x))
            done += 1
            progress(done, total)
        model = ErrorModel.fit(np.concatenate(features), np.concatenate(errors))
        return model, np.concatenate(distances), sum(map(len, errors))

    model, distances, pixels = held_out(image, splits[0], 0.0)
    below, _, _ = held_out(coarse, splits[1], lacking)
    estimate = fitter.apply(fitter.fit(coarse), fine)
    progress(total, total)
    reference = Reference.of(coarse.x, coarse.y)
    typical = below.typical(reference.features(fine.x, estimate, data.weights))
    errors = _rmse(estimate, fine.y)
    growth = growth_of(typical, errors, noise)
    scatter = np.maximum(scatter_of(errors / grown(typical, growth, noise)), model.factors)
    flag = upper_quantile(distances, _FLAG_LEVEL)
    return Calibration(
        Reference.of(image.x, image.y),
        model,
        growth,
        scatter,
        math.sqrt(noise),
        flag,
        ratio,
        factor,
        pixels,
        psf,
    )


def noise_variance(spectra: FloatPixels) -> float:
    """Return the mean over bands of the noise variance of spectra (N, B).

    With bands divided by their root mean square, the median variance of the principal components
    after the first 12; of few bands, of the last quarter.

    Source: as in `spectralift_cli.core.coarse.Subspace`.
    """
    values = spectra.astype(np.float64)
    rms = np.sqrt(np.square(values).mean(axis=0))
    rms = np.maximum(rms, 1e-6 * max(float(rms.max()), 1e-6))
    whitened = (values - values.mean(axis=0)) / rms
    variances = np.linalg.eigvalsh(product(whitened.T, whitened) / len(values))
    bands = len(variances)
    left = max(1, bands - _SIGNALS, bands // 4)
    if len(values) <= left:  # too few pixels to fill all directions
        left = max(1, len(values) - _SIGNALS)
        variances = variances[bands - len(values) :]
    floor = max(0.0, float(np.median(variances[:left])))
    return floor * float(np.square(rms).mean())


def _noise_share(optics: Observation) -> float:
    """Return the variance of white noise of variance 1 after the optics, in the middle."""
    middle = np.zeros(optics.placement.lr_shape)
    middle[tuple(size // 2 for size in middle.shape)] = 1
    return float(np.square(optics.adjoint(middle)).sum())


def _rmse(estimate: FloatPixels, truth: FloatPixels, lacking: float = 0.0) -> FloatArray:
    """Return (n,) RMSE over bands, of a truth that gets the noise it lacks, a variance."""
    squares = np.square(estimate.astype(np.float64) - truth).mean(axis=1)
    return np.asarray(np.sqrt(squares + lacking), np.float64)


def growth_of(typical: FloatArray, errors: FloatArray, noise: float) -> float:
    """Return the growth for which errors are as `grown` expects, in the geometric mean.

    Args:
        typical: (n,) errors that are expected at the coarser scale.
        errors: (n,) found at the finer one.
        noise: variance that is in both.
    """

    def missed(growth: float) -> float:
        return float(np.log(errors / grown(typical, growth, noise)).mean())

    low, high = _GROWTHS
    if missed(low) <= 0 or missed(high) >= 0:
        return low if missed(low) <= 0 else high
    return float(brentq(missed, low, high))


def _splits(image: _Image) -> list[tuple[BoolArray, BoolArray]]:
    """Return (held, training) masks, more of them where few pixels are held in each."""
    found = [
        split
        for split in block_splits(image.shape, image.valid)
        if block_splits(image.shape, split.training)  # the fit holds pixels out itself
    ]
    if not found:
        raise _too_few(len(image.x))
    held = np.mean([split.held.sum() for split in found])
    count = int(np.clip(math.ceil(_SCORED_PIXELS / held), _FEWEST_SPLITS, _MOST_SPLITS))
    return [(split.held, split.training) for split in found[:count]]


def _step(image: _Image, observation: Observation, ratio: float) -> tuple[int, Observation]:
    """Return the factor of the step one scale down and its optics on the LR grid."""
    rows, cols = image.shape
    factor = max(2, min(round(ratio), math.isqrt(max(1, rows * cols // _LEAST_COARSE))))
    h, w = rows // factor, cols // factor
    if min(h, w) < 2 or h * w < _FEWEST_COARSE:
        raise _too_few(len(image.x))
    placement = Placement((h, w), (h * factor, w * factor), (float(factor), float(factor)))
    kernel = rescaled_kernel(observation.psf, factor / ratio)
    return factor, Observation(kernel, placement, observation.includes_footprint)


def _coarser(image: _Image, optics: Observation, srf: FloatArray) -> tuple[_Image, _Image]:
    """Return the image one scale down, and the pixels of the finer one that it covers."""
    (rows, cols), placement = image.shape, optics.placement
    grid = np.full((rows * cols, image.y.shape[1]), np.nan, np.float32)
    grid[image.valid] = image.y
    height, width = placement.hr_shape
    cut = grid.reshape(rows, cols, -1)[:height, :width]
    seen = degrade(cut, optics, _LEAST_INSIDE).reshape(-1, cut.shape[2])
    valid = np.asarray(np.isfinite(seen).all(axis=1))
    if valid.sum() < _FEWEST_COARSE:
        raise _too_few(len(image.x))
    y = seen[valid]
    x = (y.astype(np.float64) @ srf.T).astype(np.float32)
    inner = inner_pixels((height, width))
    fine_valid = np.asarray(np.isfinite(cut).all(axis=2)).ravel() & inner
    kept = np.zeros((rows, cols), bool)
    kept[:height, :width] = fine_valid.reshape(height, width)
    chosen = image.rows_of(kept.ravel())
    fine = _Image(image.x[chosen], image.y[chosen], fine_valid, (height, width))
    return _Image(x, y, valid, placement.lr_shape), fine


def _too_few(pixels: int) -> DataError:
    return DataError(
        f"{pixels} LR pixels are too few to calibrate an uncertainty, which holds some of them out "
        "and degrades the image once more",
        "use a larger LR-HSI, or train without --uncertainty",
    )
