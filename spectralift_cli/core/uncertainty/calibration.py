"""The calibrated expectation of a pixel's error."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectralift_cli.core.coarse import product
from spectralift_cli.core.cube import FloatArray
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.uncertainty.reference import (
    LANDMARKS,
    SPECTRUM,
    FloatPixels,
    Reference,
)

PREFIX = "calibration."
LEVELS = (0.68, 0.95)
# per pixel; features are logarithms, or of variance 1, so that slopes are alike, and one that hardly
# varies must not count for much
_RIDGES = 0.01, 0.03, 0.1, 0.3, 1.0, 3.0
_REACH = 0.5  # spans of a feature beyond what was seen, up to which it goes on
_ARRAYS = ("centre", "whitening", "landmarks", "line", "floors")
_HALVINGS = 60
_LARGEST_SHIFT = 100.0  # exp of it is a number still


@dataclass(frozen=True, eq=False)
class Judged:
    """Errors of one model at pixels it has not seen, with what they may depend on.

    Args:
        features: (n, F) of `Reference.features`.
        errors: (n,) RMSE over bands.
    """

    features: FloatArray
    errors: FloatArray

    @property
    def logs(self) -> FloatArray:
        """(n,) natural logarithms of the errors."""
        out: FloatArray = np.log(np.maximum(self.errors, 1e-12))
        return out


@dataclass(frozen=True, eq=False)
class ErrorModel:
    """log RMSE = features @ slope + constant, and how far errors scatter around it.

    Args:
        low: (F,) where features are clamped from below.
        high: (F,) and from above.
        slope: (F,)
        constant: of the line.
        factors: (3,) of the mean and the 68 % and 95 % quantiles of RMSE / exp(line).
    """

    low: FloatArray
    high: FloatArray
    slope: FloatArray
    constant: float
    factors: FloatArray

    @classmethod
    def fit(cls, held: Sequence[Judged], finer: Sequence[Judged]) -> tuple[Self, FloatArray]:
        """Fit to some models' errors: ridge regression within each, one slope for all.

        The constant is that of the held-out LR pixels. The ridge, and whether the spectrum itself
        counts, are those that best tell the errors of each model from those of the others, apart
        from their level.

        Args:
            held: of held-out LR pixels, at least one.
            finer: of pixels a scale finer than those that their model was trained on.

        Returns:
            The line, and (n,) by how much the errors of each model depart, in logarithms, from a
            line of the others, their mean taken out.
        """
        judged = [*held, *finer]
        every = np.concatenate([each.features for each in judged])
        ways = itertools.product(_RIDGES, sorted({SPECTRUM, every.shape[1]}))
        scored = [(way, _departures(judged, *way)) for way in ways]
        way, departures = min(scored, key=lambda each: float(np.square(each[1]).sum()))
        slope = _slope(judged, *way)
        features = np.concatenate([each.features for each in held])
        logs = np.concatenate([each.logs for each in held])
        constant = float(logs.mean() - features.mean(axis=0) @ slope)
        low, high = every.min(axis=0), every.max(axis=0)
        span = _REACH * (high - low)
        model = cls(low - span, high + span, slope, constant, np.ones(3))
        ratios = np.exp(logs) / model.typical(features)
        factors = [ratios.mean(), *(upper_quantile(ratios, level) for level in LEVELS)]
        return replace(model, factors=np.array(factors)), departures

    def line(self, features: FloatArray) -> FloatArray:
        """Return (n,) expected log RMSE."""
        held = np.clip(features, self.low, self.high)
        out: FloatArray = (held * self.slope).sum(axis=1) + self.constant
        return out

    def typical(self, features: FloatArray) -> FloatArray:
        """Return (n,) exp(line)."""
        out: FloatArray = np.exp(self.line(features))
        return out


def _slope(judged: Sequence[Judged], ridge: float, used: int) -> FloatArray:
    """Return (F,) the slope of log errors over the first features, less the means of each model."""
    z = np.concatenate([each.features - each.features.mean(axis=0) for each in judged])
    slope = np.zeros(z.shape[1])
    z = z[:, :used]
    logs = np.concatenate([each.logs - each.logs.mean() for each in judged])
    gram = product(z.T, z) + ridge * len(z) * np.eye(z.shape[1])
    slope[:used] = np.linalg.solve(gram, product(z.T, logs[:, None])[:, 0])
    return slope


def _departures(judged: Sequence[Judged], ridge: float, used: int) -> FloatArray:
    """Return how errors depart from lines of the other models, or of their own if there is none."""
    found = []
    for each in judged:
        others = [other for other in judged if other is not each] or judged
        departures = each.logs - (each.features * _slope(others, ridge, used)).sum(axis=1)
        found.append(departures - departures.mean())
    return np.concatenate(found)


def scatter_of(departures: FloatArray, steps: FloatArray) -> FloatArray:
    """Return (3,) the mean and the 68 % and 95 % quantiles of an error over what is typical.

    The logarithm is the sum of a departure and of a step, independent of each other. The mean is
    without the steps, whose tails are too heavy for one.

    Args:
        departures: (n,) of pixels; their distribution is conformal: k / (n + 1) are at most the
            k-th smallest.
        steps: (m,) equally likely values of the error of the level.
    """
    ordered = np.sort(departures)

    def share(bound: float) -> float:
        return float(np.searchsorted(ordered, bound - steps, "right").mean()) / (len(ordered) + 1)

    quantiles = []
    for level in LEVELS:
        low, high = ordered[0] + steps.min(), ordered[-1] + steps.max()
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if share(middle) >= level else (middle, high)
        quantiles.append(high)
    return np.array([np.exp(departures).mean(), *np.exp(quantiles)])


def upper_quantile(values: FloatArray, level: float) -> float:
    """Return the ceil((n + 1) level)-th smallest value, the largest where there is none."""
    rank = min(len(values), math.ceil((len(values) + 1) * level))
    return float(np.partition(values, rank - 1)[rank - 1])


@dataclass(frozen=True, eq=False)
class Calibration:
    """What `infer --uncertainty` needs of a training.

    Args:
        reference: of the pixels the model was trained on.
        model: of errors at held-out LR pixels, at their scale.
        shift: what the line lacks at HR pixels, in logarithms.
        scatter: (3,) of HR errors, as `ErrorModel.factors`.
        growth: of mean log errors from LR to HR pixels, a factor.
        spread: of its logarithm, see `Growth`.
        flag_distance: beyond which a pixel's spectrum lies outside what was seen.
        ratio: between the images, that the inflation is for.
        factor: of the step one scale down.
        pixels: that were held out.
        psf: where the PSF of that step comes from, in words.

    Raises:
        DataError: shapes that do not fit each other, or numbers that are not finite.
    """

    reference: Reference
    model: ErrorModel
    shift: float
    scatter: FloatArray
    growth: float
    spread: float
    flag_distance: float
    ratio: float
    factor: int
    pixels: int
    psf: str

    def __post_init__(self) -> None:
        one, model = self.reference, self.model
        count = len(one.centre)
        shapes = (
            one.centre.ndim == 1 and one.whitening.shape == (count, count)
            and one.landmarks.ndim == 2 and one.landmarks.shape[1] == count
            and 1 <= len(one.landmarks) <= LANDMARKS
            and one.line.ndim == 2 and one.line.shape[0] == count + 1 and one.floors.shape == (4,)
            and all(a.shape == (SPECTRUM + count,) for a in (model.low, model.high, model.slope))
            and model.factors.shape == (3,) and self.scatter.shape == (3,)
        )  # fmt: skip
        numbers = [getattr(one, name) for name in _ARRAYS]
        numbers += [model.low, model.high, model.slope, model.factors, self.scatter]
        scalars = (
            model.constant,
            self.shift,
            self.growth,
            self.spread,
            self.flag_distance,
            self.ratio,
        )
        numbers.append(np.array(scalars))
        sane = abs(self.shift) < _LARGEST_SHIFT
        if not shapes or not sane or not all(np.isfinite(a).all() for a in numbers):
            raise DataError(
                "the calibration of the uncertainty is damaged", "train again with --uncertainty"
            )

    def check(self, msi_bands: int, used_bands: int) -> None:
        """Refuse a calibration of another model.

        Raises:
            DataError: its numbers of bands are others.
        """
        found = len(self.reference.centre), self.reference.line.shape[1]
        if found != (msi_bands, used_bands):
            raise DataError(
                f"the calibration of the uncertainty is for {found[0]} -> {found[1]} bands, the "
                f"model for {msi_bands} -> {used_bands}",
                "train again with --uncertainty",
            )

    def expect(
        self, x: FloatPixels, estimate: FloatPixels, srf: FloatArray, *, inflated: bool = True
    ) -> FloatArray:
        """Return (n, 4): expected RMSE and its 68 % and 95 % quantiles, scaled, and the flag, 0 or 1.

        Args:
            x: (n, M) MSI spectra, scaled.
            estimate: (n, B) HSI spectra, scaled.
            srf: (M, B) response over these bands.
            inflated: for HR pixels; else for LR pixels.
        """
        typical = self.model.typical(self.reference.features(x, estimate, srf))
        factors = self.model.factors
        if inflated:
            typical, factors = typical * math.exp(self.shift), self.scatter
        expected = typical[:, None] * factors
        flag = self.reference.distance(x) > self.flag_distance
        return np.hstack([expected, flag[:, None]])

    def tensors(self) -> dict[str, Tensor]:
        """Return its arrays, float32, for the checkpoint."""
        arrays: dict[str, NDArray[Any]] = {n: getattr(self.reference, n) for n in _ARRAYS}
        model = self.model
        arrays["features"] = np.stack([model.low, model.high, model.slope])
        return {
            PREFIX + name: torch.tensor(np.ascontiguousarray(array), dtype=torch.float32)
            for name, array in arrays.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Return what is not in `tensors`."""
        return {
            "constant": self.model.constant, "factors": self.model.factors.tolist(),
            "shift": self.shift, "scatter": self.scatter.tolist(), "growth": self.growth,
            "spread": self.spread, "flag_distance": self.flag_distance, "ratio": self.ratio, "factor": self.factor,
            "pixels": self.pixels, "psf": self.psf,
        }  # fmt: skip

    @classmethod
    def of(cls, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Return the calibration that `to_json` and `tensors` tell.

        Raises:
            DataError: they do not fit each other.
            KeyError, TypeError, ValueError: something is missing or of the wrong type.
        """
        arrays = {name: tensors[PREFIX + name].numpy().astype(np.float64) for name in _ARRAYS}
        low, high, slope = tensors[PREFIX + "features"].numpy().astype(np.float64)
        return cls(
            Reference(**arrays),
            ErrorModel(low, high, slope, float(fields["constant"]), _vector(fields["factors"])),
            float(fields["shift"]), _vector(fields["scatter"]), float(fields["growth"]),
            float(fields["spread"]), float(fields["flag_distance"]), float(fields["ratio"]),
            int(fields["factor"]), int(fields["pixels"]), str(fields["psf"]),
        )  # fmt: skip


def _vector(value: Any) -> FloatArray:
    return np.asarray(value, dtype=np.float64)
