"""The calibrated expectation of a pixel's error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectralift_cli.core.cube import FloatArray
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.uncertainty.reference import LANDMARKS, FloatPixels, Reference

PREFIX = "calibration."
LEVELS = (0.68, 0.95)
_RIDGE = 1e-2  # of the standardised features, per pixel
_REACH = 0.5  # spans of a feature beyond what was seen, up to which it goes on
_ARRAYS = ("centre", "whitening", "landmarks", "line", "floors")


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
    def fit(cls, features: FloatArray, errors: FloatArray) -> Self:
        """Fit to held-out pixels: ridge regression, then conformal factors.

        A quantile is the ceil((n + 1) p)-th smallest ratio (Lei et al., JASA 113, 2018).

        Args:
            features: (n, F)
            errors: (n,) RMSE over bands, of pixels that the fit behind them has not seen.
        """
        centre, scale = features.mean(axis=0), features.std(axis=0)
        scale = np.where(scale > 1e-9, scale, 1.0)
        z = (features - centre) / scale
        logs = np.log(np.maximum(errors, 1e-12))
        gram = z.T @ z + _RIDGE * len(z) * np.eye(z.shape[1])
        slope = np.linalg.solve(gram, z.T @ (logs - logs.mean())) / scale
        constant = float(logs.mean() - centre @ slope)
        low, high = features.min(axis=0), features.max(axis=0)
        span = _REACH * (high - low)
        model = cls(low - span, high + span, slope, constant, np.ones(3))
        return replace(model, factors=scatter_of(errors / model.typical(features)))

    def typical(self, features: FloatArray) -> FloatArray:
        """Return (n,) exp(line)."""
        held = np.clip(features, self.low, self.high)
        out: FloatArray = np.exp((held * self.slope).sum(axis=1) + self.constant)
        return out


def scatter_of(ratios: FloatArray) -> FloatArray:
    """Return (3,) the mean and the 68 % and 95 % quantiles of found over expected errors (n,)."""
    return np.array([ratios.mean(), *(upper_quantile(ratios, level) for level in LEVELS)])


def grown(typical: FloatArray, growth: float, noise: float) -> FloatArray:
    """Return errors one or more scales further up: sqrt(growth^2 (typical^2 - noise) + noise).

    Args:
        typical: (n,) errors at the coarser scale, noise included.
        growth: of what is no noise.
        noise: its variance. At least a twentieth of a squared error is taken for something else.
    """
    square = np.square(typical)
    out: FloatArray = np.sqrt(growth**2 * np.maximum(square - noise, square / 20) + noise)
    return out


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
        growth: of errors from LR to HR pixels, noise apart, see `grown`.
        scatter: (3,) of HR errors, as `ErrorModel.factors`.
        noise: standard deviation of the LR-HSI's noise, scaled.
        flag_distance: beyond which a pixel's spectrum lies outside what was seen.
        ratio: between the images, that the inflation is for.
        factor: of the step one scale down, where the inflation was measured.
        pixels: that were held out.
        psf: where the PSF of that step comes from, in words.

    Raises:
        DataError: shapes that do not fit each other, or numbers that are not finite.
    """

    reference: Reference
    model: ErrorModel
    growth: float
    scatter: FloatArray
    noise: float
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
            and all(a.shape == (count + 4,) for a in (model.low, model.high, model.slope))
            and model.factors.shape == (3,) and self.scatter.shape == (3,)
        )  # fmt: skip
        numbers = [getattr(one, name) for name in _ARRAYS]
        numbers += [model.low, model.high, model.slope, model.factors, self.scatter]
        numbers += [
            np.array([model.constant, self.growth, self.noise, self.flag_distance, self.ratio])
        ]
        if not shapes or not all(np.isfinite(a).all() for a in numbers):
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
            typical, factors = grown(typical, self.growth, self.noise**2), self.scatter
        expected = typical[:, None] * factors
        flag = self.reference.distance(x) > self.flag_distance
        return np.hstack([np.maximum.accumulate(expected, axis=1), flag[:, None]])

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
            "growth": self.growth, "scatter": self.scatter.tolist(), "noise": self.noise, "flag_distance": self.flag_distance,
            "ratio": self.ratio, "factor": self.factor, "pixels": self.pixels, "psf": self.psf,
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
            float(fields["growth"]), _vector(fields["scatter"]), float(fields["noise"]), float(fields["flag_distance"]), float(fields["ratio"]),
            int(fields["factor"]), int(fields["pixels"]), str(fields["psf"]),
        )  # fmt: skip


def _vector(value: Any) -> FloatArray:
    return np.asarray(value, dtype=np.float64)
