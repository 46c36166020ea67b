"""Preset `auto`: fit several inverters, weigh them on held-out LR pixels, fit again on all.

Candidates: the linear model, residual networks per pixel, and both again as corrections of the
LR-HSI interpolated at the pixel (the coarse prior). Every candidate is fitted to a part of the LR
pixels and scored on the others, in spatial blocks; the prior stands there for the image averaged
over 4 x 4 pixels, so that it is judged across such a gap of scales as it will have to bridge,
while it learns from the smaller gap of 2 x 2, where more pixels are left. The weights that score
best decide; nothing else does, and no ground truth or HR-MSI takes part.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectralift_cli.core.coarse import ScalePairs, Subspace, filled, product, scale_pairs
from spectralift_cli.core.config import TrainConfig
from spectralift_cli.core.cube import BoolArray, Progress, no_progress
from spectralift_cli.core.devices import Workers, check_threads, one_thread_each
from spectralift_cli.core.errors import SpectraliftWarning
from spectralift_cli.core.holdout import Errors, Split, block_splits, inner_pixels
from spectralift_cli.core.kernelfit import fit_kernel
from spectralift_cli.core.netfit import Nets, NetSize, fit_nets

FloatPixels = NDArray[np.float32]
Floats = NDArray[np.float64]

LEAST_PIXELS = 64
SQRT5 = 5**0.5
_COMPONENTS = 12  # of the prior: more hold noise, fewer lose rare spectra
_LEARNING_SCALE, _JUDGING_SCALE = 2, 4
_RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_LARGE = 4000  # LR pixels
_FEW_MEMBERS_FROM = 1500  # LR pixels
_RIDGE_SPLITS = 3  # of large images; of small ones all
_SCORED_PIXELS = 300  # that small images should be validated on, by more splits
_MOST_SPLITS = 5
_CLEAR_GAIN = 0.98  # of held-out squared error, for which a fit departs from its simplest form
_BEYOND = 0.25  # of their distance, how far combinations of two pixels reach beyond them
_STUDENT_STEPS = 1.0  # of a student, in steps of its teachers
# of the validation error, what a student may differ by: errors add up as squares, so that a
# quarter raises the error by 3 % at most
_TOLERANCE = 0.25
_MARGIN = 1.0  # standard deviations beyond the training range, where the clamp begins
_SPANS = 3.0  # spans of the LR-MSI beyond its range, where the line ends too
_FLAT = 1e-4  # a band that varies by less than this part of the liveliest one says nothing
CANDIDATES = ("linear", "residual-mlp", "prior-linear", "prior-mlp")
# what may be chosen where a model is asked for by name
_OF_MODEL = {
    "linear": ("linear",),
    "residual-mlp": ("linear", "residual-mlp"),
    "prior-mlp": ("prior-linear", "prior-mlp"),
    "kernel": ("linear",),
    "ensemble": CANDIDATES,
}


@dataclass(frozen=True)
class Effort:
    """How much work a fit is worth.

    Args:
        validation_splits: of the splits, how many the networks are validated on.
        validation_members: networks of a fit there.
        members: networks of a final fit.
        steps: of a fit at 1,000 LR pixels; it grows with the square root of their number.
    """

    validation_splits: int
    validation_members: int
    members: int
    steps: int


EFFORTS = {
    "fast": Effort(1, 1, 2, 300),
    "default": Effort(2, 2, 4, 500),
    "best": Effort(4, 4, 8, 1000),
}


@dataclass(frozen=True, eq=False)
class AutoFit:
    """What preset `auto` chose and fitted.

    Args:
        model_name: a key of `MODELS`.
        model_config: of its builder.
        weights: of the model.
        choice: in words, with the validation's scores.
        scores: numbers of the validation.
    """

    model_name: str
    model_config: dict[str, Any]
    weights: dict[str, Tensor]
    choice: str
    scores: dict[str, float | int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Features:
    """What a candidate sees, u = [MSI, scores], and how it makes features of it.

    Args:
        matrix: (seen, D); z = u @ matrix + shift.
        shift: (D,)
        lines: how many of the features the linear part uses, the first ones.
        base: (seen, B) and (B,) what the linear part corrects: nothing, or the prior itself.
    """

    matrix: Floats
    shift: Floats
    lines: int
    base: tuple[Floats, Floats]

    def __call__(self, u: FloatPixels) -> FloatPixels:
        return (product(u, self.matrix) + self.shift).astype(np.float32)


@dataclass(frozen=True, eq=False)
class _Line:
    """The linear part over u: u @ matrix + constant."""

    features: _Features
    matrix: Floats
    constant: Floats

    def __call__(self, u: FloatPixels) -> FloatPixels:
        return (product(u, self.matrix) + self.constant).astype(np.float32)


@dataclass(frozen=True, eq=False)
class _Part:
    """A line with the networks for what it leaves over, and the range of their features."""

    line: _Line
    nets: Nets | None
    low: FloatPixels
    high: FloatPixels

    def estimates(self, u: FloatPixels) -> list[FloatPixels]:
        """Return the estimate of the line, and the one with networks if there are any."""
        line = self.line(u)
        if self.nets is None:
            return [line]
        z = np.clip(self.line.features(u), self.low, self.high)
        return [line, line + self.nets(z)]


def _deviation(values: FloatPixels) -> tuple[Floats, Floats]:
    """Return mean and 1 / standard deviation of columns, 0 for one that hardly varies."""
    deviation = values.std(axis=0, dtype=np.float64)
    lively = deviation > _FLAT * max(float(deviation.max(initial=0)), 1e-9)
    inverse = np.where(lively, 1 / np.where(lively, deviation, 1), 0)
    return values.mean(axis=0, dtype=np.float64), inverse


def _pixel_features(lr_msi: FloatPixels, bands: int) -> _Features:
    mean, inverse = _deviation(lr_msi)
    count = lr_msi.shape[1]
    base = np.zeros((count, bands)), np.zeros(bands)
    return _Features(np.diag(inverse), -mean * inverse, count, base)


def _prior_features(u: FloatPixels, srf: Floats, subspace: Subspace) -> _Features:
    """Features of u = [MSI (M), scores (K)]: the MSI, what it has beyond the prior's, the scores."""
    count, seen = len(srf), len(subspace.basis)
    mean, inverse = _deviation(u[:, :count])
    matrix = np.zeros((u.shape[1], 2 * count + seen))
    shift = np.zeros(2 * count + seen)
    matrix[:count, :count], shift[:count] = np.diag(inverse), -mean * inverse
    matrix[:count, count : 2 * count] = np.eye(count)
    matrix[count:, count : 2 * count] = -subspace.basis @ srf.T
    shift[count : 2 * count] = -subspace.mean @ srf.T
    beyond = u @ matrix[:, count : 2 * count] + shift[count : 2 * count]
    _, inverse = _deviation(beyond.astype(np.float32))
    matrix[:, count : 2 * count] *= inverse
    shift[count : 2 * count] *= inverse
    matrix[count : count + seen, 2 * count :] = np.eye(seen)
    base = np.vstack([np.zeros((count, len(subspace.mean))), subspace.basis])
    return _Features(matrix, shift, 2 * count, (base, subspace.mean))


def _fit_lines(
    u: FloatPixels, y: FloatPixels, features: _Features, ridges: Sequence[float]
) -> list[_Line]:
    """Fit by least squares with each ridge, relative to the features' variance of 1."""
    z = _with_ones(features(u)[:, : features.lines])
    target = y - (product(u, features.base[0]) + features.base[1])
    gram, moment = product(z.T, z), product(z.T, target)
    lines = []
    for ridge in ridges:
        solved = np.linalg.solve(gram + _penalty(ridge, *z.shape), moment)
        slope = solved[:-1]
        used = features.matrix[:, : features.lines]
        constant = features.base[1] + solved[-1] + features.shift[: features.lines] @ slope
        lines.append(_Line(features, features.base[0] + used @ slope, constant))
    return lines


def _with_ones(z: FloatPixels) -> Floats:
    return np.hstack([z.astype(np.float64), np.ones((len(z), 1))])


def _penalty(ridge: float, pixels: int, columns: int) -> Floats:
    penalty = np.full(columns, ridge * pixels + 1e-12)
    penalty[-1] = 1e-9  # the constant is free
    return np.diag(penalty)


def _fit_part(u: FloatPixels, y: FloatPixels, line: _Line, size: NetSize, seed: int) -> _Part:
    z = line.features(u)
    residual = y - line(u)
    scale = residual.std(axis=0)
    scale = np.maximum(scale, 1e-3 * float(scale.max(initial=0)) + 1e-9).astype(np.float32)
    nets = fit_nets(z, residual, scale, size, seed) if size.members else None
    low, high = z.min(axis=0) - _MARGIN, z.max(axis=0) + _MARGIN
    return _Part(line, nets, low.astype(np.float32), high.astype(np.float32))


def _distilled(part: _Part, u: FloatPixels, size: NetSize, seed: int, allowed: float) -> _Part:
    """Teach one network what several give on average, and keep it if it says nearly the same.

    It learns from affine combinations of pairs of pixels, which reach a little beyond them:
    spectra mix linearly, and HR pixels are purer than LR pixels.

    Args:
        part: with its networks.
        u: what the pixels of the fit show.
        size: of the teachers' fit.
        seed: of the combinations and the student.
        allowed: root mean square of the difference, in scaled units.
    """
    if part.nets is None or size.members < 2:
        return part
    rng = np.random.default_rng(seed)
    z = part.line.features(u)

    def combinations(count: int) -> FloatPixels:
        one, other = rng.integers(0, len(z), (2, count))
        share = rng.uniform(-_BEYOND, 1 + _BEYOND, (count, 1)).astype(np.float32)
        mixed: FloatPixels = z[one] + share * (z[other] - z[one])
        return mixed.clip(part.low, part.high)

    shown = np.vstack([z, combinations(len(z))])
    wanted = part.nets(shown)
    scale = np.maximum(wanted.std(axis=0), 1e-3 * float(wanted.std()) + 1e-9)
    alone = replace(size, members=1, steps=int(_STUDENT_STEPS * size.steps))
    student = fit_nets(shown, wanted, scale, alone, seed)
    unseen = combinations(4096)
    difference = student(unseen) - part.nets(unseen)
    if float(np.sqrt(np.square(difference, dtype=np.float64).mean())) > allowed:
        return part
    return replace(part, nets=student)


@dataclass(frozen=True, eq=False)
class _Sample:
    """Training rows of one kind of candidate: LR pixels (flat indices of the grid) and what is seen."""

    pixels: NDArray[np.int64]
    u: FloatPixels
    y: FloatPixels

    def where(self, chosen: BoolArray) -> _Sample:
        kept = chosen[self.pixels]
        return _Sample(self.pixels[kept], self.u[kept], self.y[kept])


class _Problem:
    """The LR pixels of one image, with the prior on its grid."""

    def __init__(
        self,
        lr_msi: FloatPixels,
        lr_hsi: FloatPixels,
        srf: Floats,
        valid: BoolArray,
        shape: tuple[int, int],
        seed: int,
    ) -> None:
        self.shape, self.valid, self.srf = shape, valid, srf
        self.x, self.y = lr_msi, lr_hsi
        self._row_of = np.cumsum(valid) - 1  # flat index -> row of x and y
        pixels = np.flatnonzero(valid)
        self.pixel = _Sample(pixels, lr_msi, lr_hsi)
        self.subspace = Subspace.of(lr_hsi, _COMPONENTS)
        grid = np.zeros((valid.size, len(self.subspace.basis)), np.float32)
        grid[pixels] = self.subspace.scores(lr_hsi)
        self.grid = filled(grid.reshape(*shape, -1), valid.reshape(shape))
        self.learning: _Sample | None = None
        self.judging: _Sample | None = None
        if not len(self.subspace.basis):  # all spectra are the same
            return
        rng, noise = np.random.default_rng(seed), self.subspace.noise
        self.learning = self._sample(scale_pairs(self.grid, _LEARNING_SCALE, noise, rng))
        self.judging = self._sample(scale_pairs(self.grid, _JUDGING_SCALE, noise, rng))
        if self.judging is None:
            self.judging = self.learning

    def _sample(self, pairs: ScalePairs | None) -> _Sample | None:
        if pairs is None:
            return None
        pairs = pairs.where(self.valid)
        rows = self._row_of[pairs.pixels]
        return _Sample(pairs.pixels, np.hstack([self.x[rows], pairs.scores]), self.y[rows])

    def features(self, sample: _Sample) -> _Features:
        """Return the features of a sample by its number of columns."""
        if sample.u.shape[1] == self.x.shape[1]:
            return _pixel_features(sample.u, self.y.shape[1])
        return _prior_features(sample.u, self.srf, self.subspace)


def fit_auto(
    lr_msi: FloatPixels,
    lr_hsi: FloatPixels,
    srf: Floats,
    valid: BoolArray,
    shape: tuple[int, int],
    config: TrainConfig,
    *,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> AutoFit:
    """Choose and fit an inverter.

    Args:
        lr_msi: (N, M) scaled, finite.
        lr_hsi: (N, B) scaled, finite.
        srf: (M, B) response over these bands, whose rows sum to 1.
        valid: (h w,) which pixels of the image these are.
        shape: (h, w) of the image.
        config: effort, model by name, seed.
        threads: at most; None for all this process may use. Changes no byte of the result.
        progress: called as progress(fits done, all fits).
    """
    with one_thread_each():
        return _fit_auto(lr_msi, lr_hsi, srf, valid, shape, config, threads, progress)


def _fit_auto(
    lr_msi: FloatPixels, lr_hsi: FloatPixels, srf: Floats, valid: BoolArray,
    shape: tuple[int, int], config: TrainConfig, threads: int | None, progress: Progress,
) -> AutoFit:  # fmt: skip
    problem = _Problem(lr_msi, lr_hsi, srf, valid, shape, config.seed)
    if config.model == "kernel" and len(lr_msi) >= LEAST_PIXELS:
        return _kernel(problem, config.seed)
    wanted = _OF_MODEL[config.model or "ensemble"]  # a kernel of few pixels is a line
    samples = {False: problem.pixel, True: problem.learning}
    wanted = tuple(name for name in wanted if samples[name.startswith("prior")] is not None)
    few = len(lr_msi) < LEAST_PIXELS
    if few or not wanted:
        if wanted != ("linear",):
            warnings.warn(
                f"{len(lr_msi)} LR pixels are too few to hold blocks of them out (at least "
                f"{LEAST_PIXELS}): the linear model is fitted, its ridge chosen pixel by pixel",
                SpectraliftWarning,
                stacklevel=2,
            )
        return _linear_only(problem)
    return _Search(problem, wanted, config, threads, progress).run()


def _linear_only(problem: _Problem) -> AutoFit:
    """Fit the linear model with the ridge that leaves single pixels out best."""
    sample, features = problem.pixel, problem.features(problem.pixel)
    z = _with_ones(features(sample.u))
    errors, ridges = [], (*_RIDGES, 1.0, 10.0)
    for ridge in ridges:
        hat = z @ np.linalg.solve(z.T @ z + _penalty(ridge, *z.shape), z.T)
        left = (sample.y - hat @ sample.y) / np.maximum(1 - np.diag(hat), 1e-6)[:, None]
        errors.append(float(np.square(left).mean()))
    best = int(np.argmin(errors))
    ridge = ridges[best]
    (line,) = _fit_lines(sample.u, sample.y, features, [ridge])
    part = _Part(line, None, *_no_range())
    score = float(np.sqrt(errors[best]))
    return AutoFit(
        "linear", {}, _tensors(problem, part, 1.0),
        f"linear, leave-one-out error {score:.3g}, ridge {ridge:g}",
        {"validation_rmse": score, "ridge": ridge},
    )  # fmt: skip


def _kernel(problem: _Problem, seed: int) -> AutoFit:
    """Fit the kernel model, its length scale and noise chosen on held-out blocks."""
    sample = problem.pixel
    (line,) = _fit_lines(sample.u, sample.y, problem.features(sample), _RIDGES[:1])
    z = line.features(sample.u)
    splits = block_splits(problem.shape, problem.valid)[:_RIDGE_SPLITS]
    fit = fit_kernel(z, sample.y - line(sample.u), sample.pixels, splits, seed)
    factor = SQRT5 / fit.length
    arrays: dict[str, Any] = {
        "factor": np.diag(line.features.matrix) * factor,
        "shift": line.features.shift * factor,
        "centres": fit.centres * factor,
        "coefficients": fit.coefficients,
    }
    tensors = {name: torch.tensor(array, dtype=torch.float32) for name, array in arrays.items()}
    tensors |= _tensors(problem, _Part(line, None, *_no_range()), 1.0)
    choice = f"kernel: held-out error {fit.rmse:.4g}, length {fit.length:g}, noise {fit.noise:g}"
    scores = {"validation_rmse": fit.rmse, "length": fit.length, "noise": fit.noise}
    return AutoFit("kernel", {"centres": len(fit.centres)}, tensors, choice, scores)


def _no_range() -> tuple[FloatPixels, FloatPixels]:
    return np.zeros(0, np.float32), np.zeros(0, np.float32)


class _Search:
    """The validation of the candidates and the final fit."""

    def __init__(
        self,
        problem: _Problem,
        wanted: tuple[str, ...],
        config: TrainConfig,
        threads: int | None,
        progress: Progress,
    ) -> None:
        self._problem = problem
        self._wanted = wanted
        self._seed = config.seed
        self._effort = EFFORTS[config.effort]
        self._threads = check_threads(threads)
        self._progress = progress
        self._done, self._all = 0, 1
        self._samples: dict[bool, _Sample] = {}
        self._inner: dict[bool, bool] = {}
        self._lines: dict[bool, int] = {}
        self._splits = block_splits(problem.shape, problem.valid)
        self._kinds = [k for k in (False, True) if any(w.startswith("prior") == k for w in wanted)]

    def run(self) -> AutoFit:
        """Validate, choose, fit."""
        held = np.mean([split.held.sum() for split in self._splits])
        more = min(int(np.ceil(_SCORED_PIXELS / held)), _MOST_SPLITS)
        splits = self._splits[: max(self._effort.validation_splits, more)]
        needs_nets = any(name.endswith("mlp") for name in self._wanted)
        pieces = [(kind, split) for split in range(len(splits)) for kind in self._kinds]
        self._all = len(pieces) * needs_nets + len(self._kinds)
        with Workers(self._threads) as workers:
            ridges = {kind: self._prepare(kind) for kind in self._kinds}
            size = self._size(self._effort.validation_members, share=0.7)
            if not needs_nets:
                size = replace(size, members=0)
            fits: dict[tuple[bool, int], _Part] = {}

            def validate(_: int, piece: tuple[bool, int]) -> None:
                kind, number = piece
                sample = self._learning(kind).where(splits[number].training)
                fits[piece] = self._fit(kind, sample, ridges[kind], size, number)

            workers.run(validate, pieces)
            errors = self._errors(splits, fits)
            weights = errors.best_weights()
            shares = dict(zip(self._wanted, weights.tolist(), strict=True))
            chosen = [kind for kind in self._kinds if self._share(kind, shares) > 0]
            parts: dict[bool, _Part] = {}

            def finish(_: int, kind: bool) -> None:
                size = self._size(self._effort.members)
                if not shares.get("prior-mlp" if kind else "residual-mlp", 0):
                    size = replace(size, members=0)
                sample = self._learning(kind)
                part = self._fit(kind, sample, ridges[kind], size, 100)
                allowed = _TOLERANCE * errors.rmse_of(weights)
                seed = (self._seed * 1024 + 200 + kind) % 2**63
                parts[kind] = _distilled(part, sample.u, size, seed, allowed)

            workers.run(finish, chosen)
        return self._result(parts, shares, errors, weights)

    def _learning(self, kind: bool) -> _Sample:
        return self._samples[kind]

    def _size(self, members: int, share: float = 1.0) -> NetSize:
        pixels = len(self._problem.x)
        batch = 1 << int(np.clip(np.log2(max(pixels, 1) / 6), 5, 9))
        steps = share * self._effort.steps * np.clip(np.sqrt(pixels / 1000), 0.7, 4)
        # many pixels leave little to average away, and time is then better spent on steps
        fewer = max(1, round(members * min(1.0, float(np.sqrt(_FEW_MEMBERS_FROM / pixels)))))
        return NetSize(members=fewer, steps=int(steps), batch=batch)

    def _fit(self, kind: bool, sample: _Sample, ridge: float, size: NetSize, number: int) -> _Part:
        features = replace(self._problem.features(sample), lines=self._lines[kind])
        (line,) = _fit_lines(sample.u, sample.y, features, [ridge])
        seed = (self._seed * 1024 + 2 * number + kind) % 2**63
        part = _fit_part(sample.u, sample.y, line, size, seed)
        if size.members:
            self._done += 1
            self._progress(min(self._done, self._all), self._all)
        return part

    def _prepare(self, kind: bool) -> float:
        """Return the ridge whose lines score best; likewise choose pixels and features for them.

        LR pixels at the border are left out where lines are better without, and the prior's line
        uses the scores, which lets it give less weight to noisy ones, where that is better.
        """
        sample = self._problem.learning if kind else self._problem.pixel
        if sample is None:  # the kinds that lack a sample were left out before
            raise AssertionError
        choices = [sample, sample.where(inner_pixels(self._problem.shape))]
        slim = self._problem.features(sample).lines
        widths = [slim, slim + self._problem.grid.shape[2]] if kind else [slim]
        total = np.zeros((len(choices), len(widths), len(_RIDGES)))
        large = len(self._problem.x) > _LARGE
        for split in self._splits[: _RIDGE_SPLITS if large else None]:
            judged = self._judged(kind, split)
            for which, choice in enumerate(choices):
                training = choice.where(split.training)
                if len(training.pixels) < 2:
                    total[which] = np.inf
                    continue
                features = self._problem.features(training)
                for which_width, width in enumerate(widths):
                    slice_of = replace(features, lines=width)
                    lines = _fit_lines(training.u, training.y, slice_of, _RIDGES)
                    total[which, which_width] += [
                        float(np.square(line(judged.u) - judged.y).sum()) for line in lines
                    ]
        best = total.min(axis=(1, 2))
        inner = bool(best[1] < _CLEAR_GAIN * best[0])
        self._samples[kind] = choices[inner]
        self._inner[kind] = inner
        best = total[int(inner)].min(axis=1)
        wide = int(len(widths) > 1 and best[-1] < _CLEAR_GAIN * best[0])
        self._lines[kind] = widths[wide]
        return _RIDGES[int(np.argmin(total[int(inner), wide]))]

    def _judged(self, kind: bool, split: Split) -> _Sample:
        """Return the held-out pixels; the per-pixel candidates see the same rows as the prior's."""
        if self._problem.judging is None:
            return self._problem.pixel.where(split.held)
        sample = self._problem.judging.where(split.held)
        if kind:
            return sample
        return _Sample(sample.pixels, sample.u[:, : self._problem.x.shape[1]], sample.y)

    def _errors(self, splits: list[Split], fits: Mapping[tuple[bool, int], _Part]) -> Errors:
        total: Errors | None = None
        for number, split in enumerate(splits):
            estimates: dict[str, FloatPixels] = {}
            for kind in self._kinds:
                judged = self._judged(kind, split)
                names = ("prior-linear", "prior-mlp") if kind else ("linear", "residual-mlp")
                found = fits[kind, number].estimates(judged.u)
                estimates |= dict(zip(names, found, strict=False))
            errors = Errors.of([estimates[name] for name in self._wanted], judged.y)
            total = errors if total is None else total + errors
        if total is None:
            raise AssertionError  # 64 pixels and more always leave a split
        return total

    @staticmethod
    def _share(kind: bool, shares: Mapping[str, float]) -> float:
        return sum(share for name, share in shares.items() if name.startswith("prior") == kind)

    def _result(
        self, parts: Mapping[bool, _Part], shares: Mapping[str, float], errors: Errors,
        weights: Floats,
    ) -> AutoFit:  # fmt: skip
        members = []
        for kind, part in sorted(parts.items()):
            share = self._share(kind, shares)
            net = shares.get("prior-mlp" if kind else "residual-mlp", 0) / share
            tensors = _tensors(self._problem, part, net)
            name, config = self._named(kind, part)
            members.append((name, config, tensors, share))
        scores: dict[str, float | int] = {"validation_pixels": errors.pixels}
        scores["validation_rmse"] = errors.rmse_of(weights)
        for name, rmse in zip(self._wanted, errors.rmse.tolist(), strict=True):
            scores[f"validation_rmse_{name}"] = rmse
            scores[f"weight_{name}"] = shares[name]
        blend = " + ".join(f"{shares[name]:.1f} {name}" for name in self._wanted if shares[name])
        alone = ", ".join(
            f"{name} {rmse:.4g}" for name, rmse in zip(self._wanted, errors.rmse, strict=True)
        )
        if any(self._inner.values()):
            blend += " (borders left out)"
        choice = f"{blend}: held-out error {scores['validation_rmse']:.4g} ({alone})"
        if len(members) == 1:
            name, config, tensors, _ = members[0]
            return AutoFit(name, config, tensors, choice, scores)
        joined = {"member_weights": torch.tensor([share for *_, share in members])}
        for index, (_, _, tensors, _) in enumerate(members):
            joined |= {f"members.{index}.{name}": tensor for name, tensor in tensors.items()}
        listed = [{"name": name, "config": config} for name, config, *_ in members]
        return AutoFit("ensemble", {"members": listed}, joined, choice, scores)

    def _named(self, kind: bool, part: _Part) -> tuple[str, dict[str, Any]]:
        nets = part.nets
        if not kind and nets is None:
            return "linear", {}
        config: dict[str, Any] = {
            "hidden_size": 1 if nets is None else nets.out.shape[1],
            "layers": 1 if nets is None else len(nets.weights),
            "members": 0 if nets is None else len(nets.out),
        }
        if not kind:
            return "residual-mlp", config
        problem = self._problem
        config |= {
            "components": problem.grid.shape[2], "grid": list(problem.shape),
            "features": part.line.features.matrix.shape[1],
        }  # fmt: skip
        return "prior-mlp", config


def _tensors(problem: _Problem, part: _Part, net_share: float) -> dict[str, Tensor]:
    """Return the weights of a `ResidualMLP`, its networks multiplied by `net_share`."""
    low, high = problem.x.min(axis=0), problem.x.max(axis=0)
    span = _SPANS * (high - low)
    arrays: dict[str, Any] = {
        "msi_range": np.stack([low - span, high + span]),
        "linear": part.line.matrix,
        "constant": part.line.constant,
    }
    features = part.line.features
    if len(features.matrix) > problem.x.shape[1]:
        arrays["scores"] = problem.grid
    nets = part.nets
    if nets is not None:
        arrays |= {"features": features.matrix, "shift": features.shift}
        arrays |= {"low": part.low, "high": part.high}
    tensors = {name: torch.tensor(array, dtype=torch.float32) for name, array in arrays.items()}
    if nets is not None:
        tensors |= {f"weights.{i}": w.clone() for i, w in enumerate(nets.weights)}
        tensors |= {f"biases.{i}": b.clone() for i, b in enumerate(nets.biases)}
        tensors |= {"out": nets.out * net_share, "out_bias": nets.out_bias * net_share}
    return tensors
