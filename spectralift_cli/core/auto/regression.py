"""The closed-form fit: ridge regression on blurred features, chosen on held-out LR pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectralift_cli.core.auto.lines import Line, pixel_features
from spectralift_cli.core.coarse import product
from spectralift_cli.core.cube import BoolArray
from spectralift_cli.core.devices import Workers
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.holdout import Split
from spectralift_cli.core.physics.lens import Lens
from spectralift_cli.core.physics.waves import WaveChoice, Waves

Floats32 = NDArray[np.float32]
Floats = NDArray[np.float64]

LEAST_PIXELS = 64  # LR pixels that see the HR-MSI
_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_PAIRS = (0.0, 0.3)  # weights of the LR pixels' own pairs
_LINE_PENALTY = 1e-4  # of the ridge
_SPLITS = 3
_DROPPED = 0.1  # of the held-out error, for which see `_TOLERANCE` of the search


@dataclass(frozen=True, eq=False)
class _Columns:
    """Features of one length scale: M of the line, 1, F waves.

    Args:
        waves: that were drawn.
        seen: (n, D) of the LR pixels, through the optics.
        pairs: (p, D) of the LR pixels' own MSI.
    """

    waves: Waves
    seen: Floats
    pairs: Floats


@dataclass(frozen=True, eq=False)
class _Best:
    """The best choice so far, with its mean square on held-out pixels."""

    score: float
    length: float
    pairs: float
    ridge: float
    columns: _Columns


class Regression:
    """An inverter fitted through the physics, see `spectralift_cli.core.physics`.

    Attributes:
        pixels: (n,) flat indices of the LR pixels that see enough of the HR-MSI.
        features: the standardised MSI.
        length: length scale that was chosen.
        ridge: likewise.
        pairs: weight of the LR pixels' pairs, likewise.
        rmse: on held-out LR pixels, in scaled units.
        line: the linear part.
        waves: the rest.
        low: (M,) of the standardised MSI that took part.
        high: likewise.
    """

    def __init__(
        self,
        lr_msi: Floats32,
        lr_hsi: Floats32,
        valid: BoolArray,
        msi_range: Floats32,
        lens: Lens,
        splits: Sequence[Split],
        choice: WaveChoice,
        seed: int,
        workers: Workers,
    ) -> None:
        """Choose and fit.

        Args:
            lr_msi: (N, M) scaled.
            lr_hsi: (N, B) scaled.
            valid: (h w,) which pixels of the grid these are.
            msi_range: (2, M) beyond which the MSI is held.
            lens: of the HR-MSI.
            splits: of the grid.
            choice: of length scales.
            seed: of the waves.
            workers: that share the work; how many changes no byte.

        Raises:
            DataError: too few LR pixels see the HR-MSI, or no split holds any of them out.
        """
        row_of = np.cumsum(valid) - 1
        own = valid[lens.pixels]
        self.pixels = lens.pixels[own]
        tiled = np.concatenate([tile.pixels for tile in lens.tiles] or [self.pixels])
        self._paired = tiled[valid[tiled]]
        self._splits = [
            split for split in splits
            if split.held[self.pixels].any() and split.training[self.pixels].sum() >= 2
        ][:_SPLITS]  # fmt: skip
        if len(self.pixels) < LEAST_PIXELS or not self._splits:
            raise DataError(
                f"{len(self.pixels)} LR pixels see enough of the HR-MSI through the PSF, at least "
                f"{LEAST_PIXELS}, not all in one place, are needed to fit through the physics",
                "give images that share more ground, or choose another --model",
            )
        self._y = lr_hsi[row_of[self.pixels]]
        x = lr_msi[row_of[self._paired]]
        self._y_pairs = lr_hsi[row_of[self._paired]]
        self._row_at = np.full(valid.size, -1)
        self._row_at[self.pixels] = np.arange(len(self.pixels))
        pair_at = np.zeros(valid.size, np.int64)
        pair_at[self._paired] = np.arange(len(self._paired))
        self._pair_of = pair_at[self.pixels]
        self.features = pixel_features(x, lr_hsi.shape[1], np.zeros((x.shape[1],) * 2))
        ends = np.stack([np.minimum(lens.low, x.min(axis=0)), np.maximum(lens.high, x.max(axis=0))])
        self.low, self.high = self.features(ends.clip(*msi_range).astype(np.float32))
        best: _Best | None = None
        drawn = [Waves.drawn(x.shape[1], choice, length, seed) for length in choice.lengths]
        every = self._columns(lens, own, x, msi_range, drawn, workers)
        for length, columns in zip(choice.lengths, every, strict=True):
            best = self._better(best, length, columns)
        if best is None:
            raise ValueError("there is no length scale to choose")
        self._chosen = best.columns
        self.length, self.ridge, self.pairs = best.length, best.ridge, best.pairs
        self.rmse = float(np.sqrt(best.score))
        weights = self._weights(np.ones(valid.size, bool))
        self.line, self.waves = self._apart(weights, self.features(lens.sample().clip(*msi_range)))

    @property
    def model_config(self) -> dict[str, Any]:
        """Of the builder of `FourierModel`."""
        return {"waves": len(self.waves.phases), "components": len(self.waves.basis)}

    def tensors(self, msi_range: Floats32) -> dict[str, Tensor]:
        """Return the weights of a `FourierModel`.

        Args:
            msi_range: (2, M) beyond which the MSI is held.
        """
        arrays = {
            "msi_range": msi_range, "linear": self.line.matrix, "constant": self.line.constant,
            "features": self.features.matrix, "shift": self.features.shift,
            "low": self.low, "high": self.high, **dataclasses.asdict(self.waves),
        }  # fmt: skip
        return {name: torch.tensor(array, dtype=torch.float32) for name, array in arrays.items()}

    def rows_at(self, pixels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return (n,) the rows that `without` has for flat indices, -1 where there is none."""
        return self._row_at[pixels]

    def without(self, split: Split) -> tuple[Floats32, Floats32]:
        """Return estimates of `pixels` by a fit without the held-out ones.

        Returns:
            (n, B) of what the optics show of the HR pixels' estimates, and (n, B) from the LR
            pixels' own MSI.
        """
        weights = self._weights(split.training)
        own = self._chosen.pairs[self._pair_of]
        seen, alone = (product(each, weights) for each in (self._chosen.seen, own))
        return seen.astype(np.float32), alone.astype(np.float32)

    def _columns(
        self, lens: Lens, own: BoolArray, x: Floats32, msi_range: Floats32,
        drawn: Sequence[Waves], workers: Workers,
    ) -> Iterator[_Columns]:  # fmt: skip
        bands = x.shape[1]
        z_pairs = self.features(x)

        def line(msi: Floats32, group: slice) -> Floats32:
            return np.ascontiguousarray(self.features(msi.clip(*msi_range))[:, group])

        straight = lens.see(line, bands, workers)[own].astype(np.float64)
        for each in drawn:

            def turned(msi: Floats32, group: slice, each: Waves = each) -> Floats32:
                return each.features(self.features(msi.clip(*msi_range)), group)

            seen = lens.see(turned, len(each.phases), workers)[own].astype(np.float64)
            yield _Columns(
                each,
                np.hstack([straight, np.ones((len(straight), 1)), seen]),
                np.hstack([z_pairs, np.ones((len(x), 1)), each.features(z_pairs)]).astype(float),
            )

    def _better(self, best: _Best | None, length: float, columns: _Columns) -> _Best:
        """Score every weight of the pairs and every ridge on the held-out pixels."""
        errors = np.zeros((len(_PAIRS), len(_RIDGES)))
        count = 0
        for split in self._splits:
            held = split.held[self.pixels]
            tests, truth = columns.seen[held], self._y[held]
            count += truth.size
            alone = self._moments(columns.seen, self._y, split.training[self.pixels])
            paired = self._moments(columns.pairs, self._y_pairs, split.training[self._paired])
            for number, weight in enumerate(_PAIRS):
                gram, moment = (a + weight * b for a, b in zip(alone, paired, strict=True))
                for index, found in enumerate(self._solved(gram, moment, _RIDGES)):
                    missed = product(tests, found) - truth
                    errors[number, index] += float(np.square(missed).sum())
        number, index = divmod(int(np.argmin(errors)), len(_RIDGES))
        score = float(errors[number, index]) / count
        if best is not None and best.score <= score:
            return best
        return _Best(score, length, _PAIRS[number], _RIDGES[index], columns)

    @staticmethod
    def _moments(columns: Floats, spectra: Floats32, chosen: BoolArray) -> tuple[Floats, Floats]:
        rows = columns[chosen]
        return product(rows.T, rows), product(rows.T, spectra[chosen])

    def _weights(self, training: BoolArray) -> Floats:
        """Return (D, B) of the chosen fit to some pixels of the grid."""
        columns = self._chosen
        gram, moment = self._moments(columns.seen, self._y, training[self.pixels])
        if self.pairs:
            more = self._moments(columns.pairs, self._y_pairs, training[self._paired])
            gram, moment = gram + self.pairs * more[0], moment + self.pairs * more[1]
        return next(self._solved(gram, moment, [self.ridge]))

    def _solved(self, gram: Floats, moment: Floats, ridges: Sequence[float]) -> Iterator[Floats]:
        """Yield (gram + ridge * penalty)^-1 moment for each ridge, by one decomposition."""
        penalty = np.ones(len(gram))
        penalty[: self.features.lines + 1] = _LINE_PENALTY
        root = 1 / np.sqrt(penalty)
        values, axes = (
            part.numpy()
            for part in torch.linalg.eigh(torch.from_numpy(gram * root[:, None] * root))
        )
        turned = product(axes.T, moment * root[:, None])
        for ridge in ridges:
            damped = turned / (np.maximum(values, 0) + ridge)[:, None]
            yield root[:, None] * product(axes, damped)

    def _apart(self, weights: Floats, sharp: Floats32) -> tuple[Line, Waves]:
        """Return the line and the waves of (D, B) weights, judged by standardised HR pixels."""
        bands = self.features.lines
        slope, constant = weights[:bands], weights[bands]
        line = Line(
            self.features, product(self.features.matrix, slope),
            constant + self.features.shift @ slope,
        )  # fmt: skip
        return line, self._chosen.waves.with_coefficients(
            weights[bands + 1 :], sharp, _DROPPED * self.rmse
        )
