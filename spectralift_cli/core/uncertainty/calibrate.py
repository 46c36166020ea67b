"""Calibrate the expectation of errors on held-out LR pixels, one scale down and on the HR-MSI."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from spectralift_cli.core.auto import fit_auto
from spectralift_cli.core.checkpoint import Checkpoint
from spectralift_cli.core.coarse import Subspace, product
from spectralift_cli.core.config import TrainConfig
from spectralift_cli.core.cube import BoolArray, FloatArray
from spectralift_cli.core.cubeio import CubeReader
from spectralift_cli.core.devices import one_thread_each, resolve_device
from spectralift_cli.core.errors import DataError, SpectraliftWarning
from spectralift_cli.core.fitting import fit
from spectralift_cli.core.given import ON_PROCESSOR, Execution
from spectralift_cli.core.holdout import block_splits, inner_pixels
from spectralift_cli.core.inference import predict
from spectralift_cli.core.lrpixels import load_pairs
from spectralift_cli.core.models.base import SpectralModel, build_model
from spectralift_cli.core.observation import Observation
from spectralift_cli.core.pairs import place_model
from spectralift_cli.core.placement import Placement
from spectralift_cli.core.uncertainty.calibration import (
    Calibration,
    ErrorModel,
    Judged,
    scatter_of,
    upper_quantile,
)
from spectralift_cli.core.uncertainty.growth import find_growth, left_out
from spectralift_cli.core.uncertainty.reference import FloatPixels, Reference
from spectralift_cli.core.uncertainty.spectra import SharpSpectra, sample
from spectralift_cli.core.validation.reduced import rescaled_kernel
from spectralift_cli.core.validation.reproject import degrade

_SCORED_PIXELS = 200
_FEWEST_SPLITS, _MOST_SPLITS = 2, 3
_LEAST_COARSE = 100  # pixels one scale down
_FEWEST_COARSE = 16
_FLAG_LEVEL = 0.99  # of held-out LR pixels lie nearer to those seen than what is flagged
_LEAST_INSIDE = 0.5
_SIGNALS = 12  # components that may hold more than noise
_UNLIKE = 2.0  # times the variance of even noise that of noise may be, unlike as bands are


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

    def __init__(self, config: TrainConfig, srf: FloatArray, execution: Execution) -> None:
        self.config, self.srf = config, srf
        self._device, self._threads = resolve_device(execution.device), execution.threads

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


@one_thread_each()
def calibrate(
    checkpoint: Checkpoint,
    lr_hsi: CubeReader,
    hr_msi: CubeReader,
    observation: Observation,
    psf: str,
    *,
    execution: Execution = ON_PROCESSOR,
) -> Calibration:
    """Return how wrong a model is to be expected.

    Errors are those against spectra freed of the LR-HSI's noise, as far as that lies outside of
    its principal components (`noise_free`).

    1. The model is fitted again without blocks of LR pixels, which gives errors at held-out pixels.
    2. HR pixels are purer, and no LR pixel is held out of them. How errors scatter, and what they
       depend on, is seen one scale down as well: the LR-HSI is degraded once more by the same
       optics, a model fitted there and applied to the LR pixels.
    3. One line of log RMSE over cheap features is fitted to both, each for its own level.
    4. The level at HR pixels is that of the held-out LR pixels times a growth, to which the HR-MSI
       bears witness (`find_growth`). Growth found one scale down, where there are few pixels and
       these are blurred twice, missed by more.
    5. Quantiles hold the scatter of pixels, the growth's spread and the level's standard error.

    Args:
        checkpoint: what was trained.
        lr_hsi: on this image.
        hr_msi: of which errors are to be expected.
        observation: how the LR-HSI's instrument sees the HR grid.
        psf: where the PSF comes from, in words.
        execution: device and threads; its progress is called with fits done and in all.

    Raises:
        DataError: too few LR pixels, or an MSI without a value.
    """
    config = replace(checkpoint.train_config, uncertainty=False)
    data = load_pairs(lr_hsi, checkpoint.srf, scaling=checkpoint.scaling)
    image = _Image(data.lr_msi, data.lr_hsi, data.valid, data.shape)
    ratio = math.sqrt(math.prod(observation.placement.scale))
    factor, optics = _step(image, observation, ratio)
    coarse, fine = _coarser(image, optics, data.weights)
    placement = place_model(checkpoint, hr_msi.meta, hr_msi.path)
    spectra = SharpSpectra(checkpoint, placement, execution)
    sharp = sample(hr_msi, spectra)
    if not len(sharp[0]):
        raise DataError(
            f"{hr_msi.path}: has no pixel with values in all bands, so that no error can be expected",
            "give the image that is to be sharpened",
        )
    clean = noise_free(image.y)
    fitter = _Fitter(config, data.weights, execution)
    splits = _splits(image)
    execution.progress(0, len(splits) + 1)

    held: list[Judged] = []
    distances: list[FloatArray] = []
    left: list[FloatArray] = []
    for mask, training in splits:
        known, asked = image.where(training), image.where(mask)
        held.append(_judge(fitter, known, asked, clean[image.rows_of(mask)]))
        distances.append(Reference.of(known.x, known.y).distance(asked.x))
        if image.x.shape[1] > 1:
            left.append(left_out(known.x, asked.x))
        execution.progress(len(held), len(splits) + 1)
    finer = _judge(fitter, coarse, fine, clean[image.rows_of(_within(image, fine))])
    execution.progress(len(splits) + 1, len(splits) + 1)

    model, departures = ErrorModel.fit(held, [finer])
    reference = Reference.of(image.x, image.y)
    features = reference.features(*sharp, data.weights)
    growth = find_growth(
        np.concatenate([each.features for each in held]),
        features,
        np.concatenate(left) if left else None,
        left_out(image.x, sharp[0]) if left else None,
    )
    logs = np.concatenate([each.logs for each in held])
    shift = float(logs.mean()) + growth.mean - float(model.line(features).mean())
    scatter = scatter_of(departures, growth.steps(_level_error(held)))
    flag = upper_quantile(np.concatenate(distances), _FLAG_LEVEL)
    return Calibration(
        reference, model, shift, scatter, math.exp(growth.mean), growth.spread, flag, ratio, factor,
        len(logs), psf,
    )  # fmt: skip


def _judge(fitter: _Fitter, known: _Image, asked: _Image, truth: FloatPixels) -> Judged:
    """Fit to known pixels and return the errors at those asked for."""
    estimate = fitter.apply(fitter.fit(known), asked)
    features = Reference.of(known.x, known.y).features(asked.x, estimate, fitter.srf)
    apart = estimate.astype(np.float64) - truth
    return Judged(features, np.sqrt(np.square(apart).mean(axis=1)))


def noise_free(spectra: FloatPixels) -> FloatPixels:
    """Return spectra (N, B) as those principal components have them that hold more than noise.

    These are at most 12, three quarters of few bands, and of larger variance than components of
    noise alone can have, 2 floor (1 + sqrt(B / N))^2. What is left out is no error of an estimate.

    Source: Marchenko and Pastur, Math. USSR Sbornik 1, 1967.
    """
    count, bands = spectra.shape
    most = max(1, bands - max(bands - _SIGNALS, bands // 4))
    subspace = Subspace.of(spectra, most)
    signals = subspace.noise * (1 + math.sqrt(bands / count)) < math.sqrt(1 / _UNLIKE)
    signals[:1] = True  # the first, whatever it holds
    scores = np.ascontiguousarray(subspace.scores(spectra)[:, signals])
    found = product(scores, np.ascontiguousarray(subspace.basis[signals])) + subspace.mean
    return found.astype(np.float32)


def _level_error(held: Sequence[Judged]) -> float:
    """Return the standard error of the mean log error: neighbours err alike, so count splits."""
    means = [float(each.logs.mean()) for each in held]
    if len(means) < 2:
        return float(held[0].logs.std())
    return float(np.std(means, ddof=1)) / math.sqrt(len(means))


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
    fine = _Image(image.x, image.y, fine_valid, (height, width))
    chosen = image.rows_of(_within(image, fine))
    fine = replace(fine, x=image.x[chosen], y=image.y[chosen])
    return _Image(x, y, valid, placement.lr_shape), fine


def _within(image: _Image, part: _Image) -> BoolArray:
    """Return (h w,) of the image's pixels which are in a part of it that starts at its corner."""
    (rows, cols), (height, width) = image.shape, part.shape
    found = np.zeros((rows, cols), bool)
    found[:height, :width] = part.valid.reshape(part.shape)
    return found.ravel()


def _too_few(pixels: int) -> DataError:
    return DataError(
        f"{pixels} LR pixels are too few to calibrate an uncertainty, which holds some of them out "
        "and degrades the image once more",
        "use a larger LR-HSI, or train without --uncertainty",
    )
