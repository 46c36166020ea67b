"""The validation of the candidates on held-out LR pixels, and the final fit of those chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectralift_cli.core.auto.distil import Share, as_one
from spectralift_cli.core.auto.lines import RIDGES, fit_lines
from spectralift_cli.core.auto.parts import Part, fit_part, part_tensors
from spectralift_cli.core.auto.regression import Regression
from spectralift_cli.core.auto.samples import PixelProblem, Problem, Sample
from spectralift_cli.core.config import TrainConfig
from spectralift_cli.core.cube import Progress
from spectralift_cli.core.devices import Workers, check_threads
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.holdout import Errors, Split
from spectralift_cli.core.netfit import NetSize
from spectralift_cli.core.physics.lens import Lens
from spectralift_cli.core.physics.waves import WaveChoice

FloatPixels = NDArray[np.float32]
Floats = NDArray[np.float64]

RIDGE_SPLITS = 3  # of large images; of small ones all
_LARGE = 4000  # LR pixels
_FEW_MEMBERS_FROM = 1500  # LR pixels
_SCORED_PIXELS = 300  # that small images should be validated on, by more splits
_MOST_SPLITS = 5
_CLEAR_GAIN = 0.98  # of held-out squared error, for which a fit departs from its simplest form
# of the validation error, what a student may differ by: errors add up as squares, so that a tenth
# raises the error by half a percent, 0.04 dB
_TOLERANCE = 0.1
_LEAST_SHARE_OF_PHYSICS = 0.1  # less is not worth the time of inference
_NETS = {False: "residual-mlp", True: "prior-mlp"}  # without a prior, and with one


@dataclass(frozen=True)
class Effort:
    """How much work a fit is worth.

    Args:
        validation_splits: of the splits, how many the networks are validated on.
        validation_members: networks of a fit there.
        members: networks of a final fit.
        steps: of a fit at 1,000 LR pixels; it grows with the square root of their number.
        waves: of the fit through the physics.
    """

    validation_splits: int
    validation_members: int
    members: int
    steps: int
    waves: WaveChoice


EFFORTS = {
    "fast": Effort(1, 1, 2, 300, WaveChoice(96, (2.0,))),
    "default": Effort(2, 2, 4, 500, WaveChoice(96, (2.0,))),
    "best": Effort(4, 4, 8, 1000, WaveChoice(512, (1.0, 2.0, 4.0))),
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
        steps: changes of weights that the fits took, of all networks together.
    """

    model_name: str
    model_config: dict[str, Any]
    weights: dict[str, Tensor]
    choice: str
    scores: dict[str, float | int] = field(default_factory=dict)
    steps: int = 0


class Search:
    """The validation of the candidates and the final fit."""

    def __init__(
        self,
        problem: PixelProblem,
        wanted: tuple[str, ...],
        config: TrainConfig,
        device: torch.device,
        threads: int | None,
        progress: Progress,
        lens: Lens | None = None,
        without: str = "",
    ) -> None:
        """Prepare.

        Args:
            problem: the LR pixels.
            wanted: the candidates.
            config: effort and seed.
            device: of the networks.
            threads: at most; None for all this process may use.
            progress: called as progress(fits done, all fits).
            lens: the HR-MSI for the candidate `physics`; None without it.
            without: why it is not among the candidates, if that should be told.
        """
        self._problem = problem
        self._wanted = wanted
        self._lens, self._without = lens, without
        self._physics: Regression | None = None
        self._seed = config.seed
        self._effort = EFFORTS[config.effort]
        self._device = device
        # one thread keeps a GPU busy; several would only take turns at it
        self._threads = check_threads(threads) if device.type == "cpu" else 1
        self._progress = progress
        self._done, self._all = 0, 1
        self._steps: list[int] = []  # of every fit, which end in any order
        self._samples: dict[bool, Sample] = {}
        self._inner: dict[bool, bool] = {}
        self._lines: dict[bool, int] = {}
        self._splits = problem.splits()
        self._kinds = [k for k in (False, True) if any(_is_of(k, name) for name in wanted)]

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
            fits: dict[tuple[bool, int], Part] = {}

            def validate(_: int, piece: tuple[bool, int] | None) -> None:
                if piece is None:
                    self._through_the_physics(splits)
                    return
                kind, number = piece
                sample = self._learning(kind).where(splits[number].training)
                fits[piece] = self._fit(kind, sample, ridges[kind], size, number)

            workers.run(validate, [None, *pieces])
            errors = self._errors(splits, fits)
            weights = self._weights(errors)
            shares = dict(zip(self._wanted, weights.tolist(), strict=True))
            chosen = [kind for kind in self._kinds if self._share(kind, shares) > 0]
            parts: dict[bool, Part] = {}

            def finish(_: int, kind: bool) -> None:
                size = self._size(self._effort.members)
                if not shares.get(_NETS[kind], 0):
                    size = replace(size, members=0)
                parts[kind] = self._fit(kind, self._learning(kind), ridges[kind], size, 100)

            workers.run(finish, chosen)
            blend = [
                Share(parts[k], self._share(k, shares), shares.get(_NETS[k], 0)) for k in chosen
            ]
            allowed = _TOLERANCE * min(each.rmse_of(weights) for each in errors)
            one = self._distilled(blend, chosen[-1], 2, allowed) if blend else None
            if one is not None:
                blend = [one]
            elif len(blend) > 1:
                # each for itself, where one network cannot hold both

                def alone(_: int, index: int) -> None:
                    found = self._distilled([blend[index]], chosen[index], chosen[index], allowed)
                    blend[index] = found or blend[index]

                workers.run(alone, range(len(blend)))
        return self._result(blend, shares, errors[0], weights)

    def _weights(self, errors: list[Errors]) -> Floats:
        """Return the weights that the ways of judging agree on in the mean."""
        weights: Floats = np.mean([each.best_weights() for each in errors], axis=0)
        if self._physics is not None and weights[-1] < _LEAST_SHARE_OF_PHYSICS:
            weights[-1] = 0
            weights /= weights.sum()
        return weights

    def _through_the_physics(self, splits: list[Split]) -> None:
        """Fit the candidate `physics`, or leave it out and keep the reason."""
        problem = self._problem
        if self._lens is None or not isinstance(problem, Problem):
            return
        try:
            with Workers(1) as alone:  # the others are at work on the networks
                self._physics = Regression(
                    problem.x, problem.y, problem.valid, problem.msi_range, self._lens, splits,
                    self._effort.waves, self._seed, alone,
                )  # fmt: skip
        except DataError as error:
            self._without = error.message
            return
        if all((self._physics.rows_at(self._judged(False, s).pixels) >= 0).any() for s in splits):
            self._wanted = (*self._wanted, "physics")
        else:
            self._physics = None
            self._without = "no held-out LR pixel sees enough of the HR-MSI"

    def _distilled(
        self, blend: list[Share], widest: bool, number: int, allowed: float
    ) -> Share | None:
        """Return a blend as one share with one network, or None where that loses too much."""
        u = self._learning(widest).u
        sharp = self._problem.sharp_rows(u.shape[1])
        seed = (self._seed * 1024 + 200 + number) % 2**63
        size = self._size(self._effort.members)
        part = as_one(blend, u, sharp, size, seed, allowed, self._steps.append)
        return None if part is None else Share(part, 1.0, 1.0)

    def _learning(self, kind: bool) -> Sample:
        return self._samples[kind]

    def _size(self, members: int, share: float = 1.0) -> NetSize:
        pixels = len(self._problem.x)
        batch = 1 << int(np.clip(np.log2(max(pixels, 1) / 6), 5, 9))
        steps = share * self._effort.steps * np.clip(np.sqrt(pixels / 1000), 0.7, 4)
        # many pixels leave little to average away, and time is then better spent on steps
        fewer = max(1, round(members * min(1.0, float(np.sqrt(_FEW_MEMBERS_FROM / pixels)))))
        return NetSize(members=fewer, steps=int(steps), batch=batch)

    def _fit(self, kind: bool, sample: Sample, ridge: float, size: NetSize, number: int) -> Part:
        features = replace(self._problem.features(sample), lines=self._lines[kind])
        (line,) = fit_lines(sample.u, sample.y, features, [ridge])
        seed = (self._seed * 1024 + 2 * number + kind) % 2**63
        part = fit_part(sample.u, sample.y, line, size, seed, self._device)
        if size.members:
            self._steps.append(size.steps * size.members)
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
        choices = [sample, sample.where(self._problem.inner())]
        slim = self._problem.features(sample).lines
        widths = [slim, slim + self._problem.grid.shape[2]] if kind else [slim]
        total = np.zeros((len(choices), len(widths), len(RIDGES)))
        large = len(self._problem.x) > _LARGE
        for split in self._splits[: RIDGE_SPLITS if large else None]:
            judged = self._judged(kind, split)
            for which, choice in enumerate(choices):
                training = choice.where(split.training)
                if len(training.pixels) < 2:
                    total[which] = np.inf
                    continue
                features = self._problem.features(training)
                for which_width, width in enumerate(widths):
                    slice_of = replace(features, lines=width)
                    lines = fit_lines(training.u, training.y, slice_of, RIDGES)
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
        return RIDGES[int(np.argmin(total[int(inner), wide]))]

    def _judged(self, kind: bool, split: Split) -> Sample:
        """Return the held-out pixels; the per-pixel candidates see the same rows as the prior's."""
        if self._problem.judging is None:
            return self._problem.pixel.where(split.held)
        sample = self._problem.judging.where(split.held)
        if kind:
            return sample
        return Sample(sample.pixels, sample.u[:, : self._problem.x.shape[1]], sample.y)

    def _errors(self, splits: list[Split], fits: Mapping[tuple[bool, int], Part]) -> list[Errors]:
        """Return the errors on held-out pixels, in as many ways as they can be judged.

        The fit through the physics is judged by what the PSF shows of it, where it alone knows the
        HR-MSI, and like the others by the LR pixels' own MSI, which it was not made for. The first
        is too kind to it, the second too strict: neither alone chose as well as the mean of both.
        """
        total: list[Errors] = []
        for number, split in enumerate(splits):
            estimates: dict[str, FloatPixels] = {}
            for kind in self._kinds:
                judged = self._judged(kind, split)
                names = ("prior-linear", "prior-mlp") if kind else ("linear", "residual-mlp")
                found = fits[kind, number].estimates(judged.u)
                estimates |= dict(zip(names, found, strict=False))
            truth, ways = judged.y, [estimates]
            if self._physics is not None:
                rows = self._physics.rows_at(judged.pixels)
                seen = rows >= 0  # the others are judged on no more than it
                truth = truth[seen]
                estimates = {name: found[seen] for name, found in estimates.items()}
                ways = [
                    {**estimates, "physics": found[rows[seen]]}
                    for found in self._physics.without(split)
                ]
            errors = [Errors.of([way[name] for name in self._wanted], truth) for way in ways]
            total = [a + b for a, b in zip(total, errors, strict=True)] if total else errors
        return total  # 64 pixels and more always leave a split

    @staticmethod
    def _share(kind: bool, shares: Mapping[str, float]) -> float:
        return sum(share for name, share in shares.items() if _is_of(kind, name))

    def _result(
        self, blend: Sequence[Share], shares: Mapping[str, float], errors: Errors, weights: Floats
    ) -> AutoFit:
        members = []
        for share in blend:
            tensors = part_tensors(self._problem, share.part, share.nets / share.line)
            name, config = self._named(share.part)
            members.append((name, config, tensors, share.line))
        if self._physics is not None and shares["physics"]:
            # by itself: it takes no longer than a student, which would not learn it as exactly
            tensors = self._physics.tensors(self._problem.msi_range)
            members.append(("physics", self._physics.model_config, tensors, shares["physics"]))
        scores: dict[str, float | int] = {"validation_pixels": errors.pixels}
        scores["validation_rmse"] = errors.rmse_of(weights)
        for name, rmse in zip(self._wanted, errors.rmse.tolist(), strict=True):
            scores[f"validation_rmse_{name}"] = rmse
            scores[f"weight_{name}"] = shares[name]
        chosen = " + ".join(
            f"{round(shares[name], 2)} {name}" for name in self._wanted if shares[name]
        )
        alone = ", ".join(
            f"{name} {rmse:.4g}" for name, rmse in zip(self._wanted, errors.rmse, strict=True)
        )
        if any(self._inner.values()):
            chosen += " (borders left out)"
        choice = f"{chosen}: held-out error {scores['validation_rmse']:.4g} ({alone})"
        if self._without:
            choice += f"; without physics: {self._without}"
        if len(members) == 1:
            name, config, tensors, _ = members[0]
            return AutoFit(name, config, tensors, choice, scores, sum(self._steps))
        joined = {"member_weights": torch.tensor([share for *_, share in members])}
        for index, (_, _, tensors, _) in enumerate(members):
            joined |= {f"members.{index}.{name}": tensor for name, tensor in tensors.items()}
        listed = [{"name": name, "config": config} for name, config, *_ in members]
        return AutoFit("ensemble", {"members": listed}, joined, choice, scores, sum(self._steps))

    def _named(self, part: Part) -> tuple[str, dict[str, Any]]:
        nets = part.nets
        kind = len(part.line.matrix) > self._problem.x.shape[1]
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
            "components": problem.grid.shape[2], "grid": list(problem.grid.shape[:2]),
            "features": part.line.features.matrix.shape[1],
        }  # fmt: skip
        return "prior-mlp", config


def _is_of(kind: bool, name: str) -> bool:
    """Tell whether a candidate is a line or a network without a prior, or one with it."""
    return name != "physics" and name.startswith("prior") == kind
