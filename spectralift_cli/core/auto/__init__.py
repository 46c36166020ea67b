"""Preset `auto`: fit several inverters, weigh them on held-out LR pixels, fit again on all.

Candidates: the linear model, residual networks per pixel, and both again as corrections of the
LR-HSI interpolated at the pixel (the coarse prior). Every candidate is fitted to a part of the LR
pixels and scored on the others, in spatial blocks; the prior stands there for the image averaged
over 4 x 4 pixels, so that it is judged across such a gap of scales as it will have to bridge,
while it learns from the smaller gap of 2 x 2, where more pixels are left. The weights that score
best decide; nothing else does, and no ground truth takes part. Of the HR-MSI, where there is one,
only the noise, the contrast and, to distil, some pixels take part (`SharpLook`).
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spectralift_cli.core.auto.lines import RIDGES, fit_lines, penalty, with_ones
from spectralift_cli.core.auto.parts import Part, no_range, part_tensors
from spectralift_cli.core.auto.samples import PixelProblem, Problem
from spectralift_cli.core.auto.search import EFFORTS, RIDGE_SPLITS, AutoFit, Effort, Search
from spectralift_cli.core.config import TrainConfig
from spectralift_cli.core.cube import BoolArray, Progress, no_progress
from spectralift_cli.core.devices import on_device, one_thread_each
from spectralift_cli.core.errors import OptionError, SpectraliftWarning
from spectralift_cli.core.holdout import Places
from spectralift_cli.core.kernelfit import fit_kernel
from spectralift_cli.core.netfit import CPU
from spectralift_cli.core.sharplook import SharpLook

__all__ = [
    "CANDIDATES",
    "EFFORTS",
    "LEAST_PIXELS",
    "AutoFit",
    "Effort",
    "check_model_of_pool",
    "fit_auto",
    "fit_pool",
]

FloatPixels = NDArray[np.float32]
Floats = NDArray[np.float64]

LEAST_PIXELS = 64
_SQRT5 = 5**0.5
CANDIDATES = ("linear", "residual-mlp", "prior-linear", "prior-mlp")
# what may be chosen where a model is asked for by name
_OF_MODEL = {
    "linear": ("linear",),
    "residual-mlp": ("linear", "residual-mlp"),
    "prior-mlp": ("prior-linear", "prior-mlp"),
    "kernel": ("linear",),
    "ensemble": CANDIDATES,
}


def fit_auto(
    lr_msi: FloatPixels,
    lr_hsi: FloatPixels,
    srf: Floats,
    valid: BoolArray,
    shape: tuple[int, int],
    config: TrainConfig,
    *,
    sharp: SharpLook | None = None,
    psf_radius_lr_px: int | None = None,
    device: torch.device = CPU,
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
        config: effort, model by name (not `paper`, which `fitting.fit` fits), seed.
        sharp: what is known of the HR-MSI, scaled; None for nothing.
        psf_radius_lr_px: guard band around held-out pixels; None where the PSF is not known.
        device: where the networks and kernels are fitted.
        threads: at most; None for all this process may use. Changes no byte of the result.
        progress: called as progress(fits done, all fits).
    """
    with one_thread_each(), on_device(device):
        problem = Problem(lr_msi, lr_hsi, srf, valid, shape, config.seed, sharp, psf_radius_lr_px)
        return _fit_auto(problem, config, device, threads, progress)


def fit_pool(
    lr_msi: FloatPixels,
    lr_hsi: FloatPixels,
    srf: Floats,
    places: Places,
    config: TrainConfig,
    *,
    sharp: SharpLook | None = None,
    device: torch.device = CPU,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> AutoFit:
    """Choose and fit an inverter for LR pixels of several images, or some of one image's.

    Candidates with the coarse prior are left out: they hold the one LR-HSI whose area they serve,
    and need all of its pixels.

    Args:
        lr_msi: (N, M) scaled, finite.
        lr_hsi: (N, B) scaled, finite.
        srf: (M, B) response over these bands, whose rows sum to 1.
        places: where the pixels lie; every image is held out in blocks of its own.
        config: see `fit_auto`.
        sharp: what is known of the HR-MSIs, scaled; None for nothing.
        device: where the networks and kernels are fitted.
        threads: at most; None for all this process may use. Changes no byte of the result.
        progress: called as progress(fits done, all fits).

    Raises:
        OptionError: the config asks for a model with the prior.
    """
    check_model_of_pool(config)
    with one_thread_each(), on_device(device):
        problem = PixelProblem(lr_msi, lr_hsi, srf, places, sharp)
        found = _fit_auto(problem, config, device, threads, progress)
    if config.model not in (None, "ensemble"):
        return found
    why = "several scenes" if len(places.shapes) > 1 else "a part of the LR pixels"
    left_out = f"{found.choice}; candidates with a prior left out, for {why}"
    return dataclasses.replace(found, choice=left_out)


def check_model_of_pool(config: TrainConfig) -> None:
    """Refuse a model that `fit_pool` cannot fit.

    Raises:
        OptionError: it holds the prior.
    """
    if config.model == "prior-mlp":
        raise OptionError(
            "--model prior-mlp holds the whole LR-HSI of one scene, whose area alone it serves: it "
            "does not apply to several scenes or to a part of the LR pixels",
            "leave --model out, or train it on one scene without --max-pixels",
        )


def _fit_auto(
    problem: PixelProblem,
    config: TrainConfig,
    device: torch.device,
    threads: int | None,
    progress: Progress,
) -> AutoFit:
    pixels = len(problem.x)
    # where valid pixels lie only along the borders, no block of inner ones is left to hold out
    few = pixels < LEAST_PIXELS or not problem.splits()
    if config.model == "kernel" and not few:
        return _kernel(problem, config.seed, device)
    wanted = _OF_MODEL[config.model or "ensemble"]  # a kernel of few pixels is a line
    samples = {False: problem.pixel, True: problem.learning}
    wanted = tuple(name for name in wanted if samples[name.startswith("prior")] is not None)
    if few or not wanted:
        if wanted != ("linear",):
            warnings.warn(
                f"{pixels} LR pixels are too few, or too scattered, to hold blocks of them out (at "
                f"least {LEAST_PIXELS}): the linear model is fitted, its ridge chosen pixel by pixel",
                SpectraliftWarning,
                stacklevel=2,
            )
        return _linear_only(problem)
    return Search(problem, wanted, config, device, threads, progress).run()


def _linear_only(problem: PixelProblem) -> AutoFit:
    """Fit the linear model with the ridge that leaves single pixels out best."""
    sample, features = problem.pixel, problem.features(problem.pixel)
    z = with_ones(features(sample.u))
    errors, ridges = [], (*RIDGES, 1.0, 10.0)
    for ridge in ridges:
        hat = z @ np.linalg.solve(z.T @ z + penalty(features, ridge, len(z)), z.T)
        left = (sample.y - hat @ sample.y) / np.maximum(1 - np.diag(hat), 1e-6)[:, None]
        errors.append(float(np.square(left).mean()))
    best = int(np.argmin(errors))
    ridge = ridges[best]
    (line,) = fit_lines(sample.u, sample.y, features, [ridge])
    part = Part(line, None, *no_range())
    score = float(np.sqrt(errors[best]))
    return AutoFit(
        "linear", {}, part_tensors(problem, part, 1.0),
        f"linear, leave-one-out error {score:.3g}, ridge {ridge:g}",
        {"validation_rmse": score, "ridge": ridge},
    )  # fmt: skip


def _kernel(problem: PixelProblem, seed: int, device: torch.device) -> AutoFit:
    """Fit the kernel model, its length scale and noise chosen on held-out blocks."""
    sample = problem.pixel
    (line,) = fit_lines(sample.u, sample.y, problem.features(sample), RIDGES[:1])
    z = line.features(sample.u)
    splits = problem.splits()[:RIDGE_SPLITS]
    fit = fit_kernel(z, sample.y - line(sample.u), sample.pixels, splits, seed, device)
    factor = _SQRT5 / fit.length
    arrays: dict[str, Any] = {
        "factor": np.diag(line.features.matrix) * factor,
        "shift": line.features.shift * factor,
        "centres": fit.centres * factor,
        "coefficients": fit.coefficients,
    }
    tensors = {name: torch.tensor(array, dtype=torch.float32) for name, array in arrays.items()}
    tensors |= part_tensors(problem, Part(line, None, *no_range()), 1.0)
    choice = f"kernel: held-out error {fit.rmse:.4g}, length {fit.length:g}, noise {fit.noise:g}"
    scores = {"validation_rmse": fit.rmse, "length": fit.length, "noise": fit.noise}
    return AutoFit("kernel", {"centres": len(fit.centres)}, tensors, choice, scores)
