"""Preset `auto`: fit several inverters, weigh them on held-out LR pixels, fit again on all.

Candidates: the linear model, residual networks per pixel, and both again as corrections of the
LR-HSI interpolated at the pixel (the coarse prior). Every candidate is fitted to a part of the LR
pixels and scored on the others, in spatial blocks; the prior stands there for the image averaged
over 4 x 4 pixels, so that it is judged across such a gap of scales as it will have to bridge,
while it learns from the smaller gap of 2 x 2, where more pixels are left. The weights that score
best decide; nothing else does, and no ground truth takes part. Of the HR-MSI, where there is one,
the noise, the contrast and, to distil, some pixels take part (`SharpLook`), and with three bands or
more a fifth candidate is fitted to the LR-HSI through the PSF (`spectralift_cli.core.physics`).
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
from spectralift_cli.core.auto.regression import Regression
from spectralift_cli.core.auto.samples import PixelProblem, Problem
from spectralift_cli.core.auto.search import EFFORTS, RIDGE_SPLITS, AutoFit, Effort, Search
from spectralift_cli.core.config import TrainConfig
from spectralift_cli.core.cube import BoolArray, Progress, no_progress
from spectralift_cli.core.devices import Workers, check_threads, on_device, one_thread_each
from spectralift_cli.core.errors import DataError, OptionError, SpectraliftWarning
from spectralift_cli.core.holdout import Places
from spectralift_cli.core.kernelfit import fit_kernel
from spectralift_cli.core.netfit import CPU
from spectralift_cli.core.physics.lens import Lens, View
from spectralift_cli.core.physics.optical import find_psf
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
# with fewer, spectra are too ambiguous for a function of the MSI alone: on the suite's pan cases it
# took part in blends to their harm
_LEAST_BANDS_OF_PHYSICS = 3
CANDIDATES = ("linear", "residual-mlp", "prior-linear", "prior-mlp")
# what may be chosen where a model is asked for by name
_OF_MODEL = {
    "linear": ("linear",),
    "residual-mlp": ("linear", "residual-mlp"),
    "prior-mlp": ("prior-linear", "prior-mlp"),
    "kernel": ("linear",),
    "physics": ("linear",),
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
    view: View | None = None,
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
        view: of the HR-MSI, to fit through the physics; None for none.
        psf_radius_lr_px: guard band around held-out pixels; None where the PSF is not known.
        device: where the networks and kernels are fitted.
        threads: at most; None for all this process may use. Changes no byte of the result.
        progress: called as progress(fits done, all fits).

    Raises:
        DataError: the model physics is asked for without an HR-MSI, or with one that too few LR
            pixels see.
    """
    with one_thread_each(), on_device(device):
        problem = Problem(lr_msi, lr_hsi, srf, valid, shape, config.seed, sharp, psf_radius_lr_px)
        return _fit_auto(problem, config, view, device, threads, progress)


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
    and need all of its pixels. So is the fit through the physics, which needs one pair of images.

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
        OptionError: the config asks for a model with the prior, or through the physics.
    """
    check_model_of_pool(config)
    with one_thread_each(), on_device(device):
        problem = PixelProblem(lr_msi, lr_hsi, srf, places, sharp)
        found = _fit_auto(problem, config, None, device, threads, progress)
    if config.model not in (None, "ensemble"):
        return found
    why = "several scenes" if len(places.shapes) > 1 else "a part of the LR pixels"
    left_out = f"{found.choice}; physics and candidates with a prior left out, for {why}"
    return dataclasses.replace(found, choice=left_out)


def check_model_of_pool(config: TrainConfig) -> None:
    """Refuse a model that `fit_pool` cannot fit.

    Raises:
        OptionError: it holds the prior, or is fitted through the physics.
    """
    why = {
        "prior-mlp": "holds the whole LR-HSI of one scene, whose area alone it serves",
        "physics": "is fitted to the LR-HSI and the HR-MSI of one scene",
    }.get(config.model or "")
    if why is not None:
        raise OptionError(
            f"--model {config.model} {why}: it does not apply to several scenes or to a part of the "
            "LR pixels",
            "leave --model out, or train it on one scene without --max-pixels",
        )


def _fit_auto(
    problem: PixelProblem,
    config: TrainConfig,
    view: View | None,
    device: torch.device,
    threads: int | None,
    progress: Progress,
) -> AutoFit:
    pixels = len(problem.x)
    # where valid pixels lie only along the borders, no block of inner ones is left to hold out
    few = pixels < LEAST_PIXELS or not problem.splits()
    if config.model == "kernel" and not few:
        return _kernel(problem, config.seed, device)
    if config.model == "physics" and isinstance(problem, Problem) and not few:
        return _physics(problem, view, config, threads)
    # a kernel, or a fit through the physics, of few pixels is a line
    wanted = _OF_MODEL[config.model or "ensemble"]
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
    lens, without = None, ""
    if config.model in (None, "ensemble") and isinstance(problem, Problem):
        lens, without = _candidate_lens(problem, view)
    return Search(problem, wanted, config, device, threads, progress, lens, without).run()


def _candidate_lens(problem: Problem, view: View | None) -> tuple[Lens | None, str]:
    """Return what the candidate `physics` sees, or None and why it is left out."""
    bands = problem.x.shape[1]
    if bands < _LEAST_BANDS_OF_PHYSICS:
        return None, f"{bands} MSI bands, of {_LEAST_BANDS_OF_PHYSICS} at least"
    if view is None:
        return None, "no HR-MSI"
    try:
        return _lens(problem, view), ""
    except DataError as error:
        return None, error.message


def _lens(problem: Problem, view: View) -> Lens:
    """Return the HR-MSI through the PSF on which both images agree."""
    bands = problem.x.shape[1]
    noise = np.zeros(bands) if problem.sharp is None else problem.sharp.noise
    psf = find_psf(view, problem.x, problem.y, problem.srf, problem.valid, problem.shape, noise)
    return Lens(view, psf)


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


def _physics(
    problem: Problem, view: View | None, config: TrainConfig, threads: int | None
) -> AutoFit:
    """Fit the model that is fitted through the PSF, its choices made on held-out blocks."""
    if view is None:
        raise no_sharp_image()
    with Workers(check_threads(threads)) as workers:
        found = Regression(
            problem.x, problem.y, problem.valid, problem.msi_range, _lens(problem, view),
            problem.splits(), EFFORTS[config.effort].waves, config.seed, workers,
        )  # fmt: skip
    choice = (
        f"physics: held-out error {found.rmse:.4g}, length {found.length:g}, ridge {found.ridge:g}"
        + (f", LR pairs count {found.pairs:g}" if found.pairs else "")
    )
    scores = {
        "validation_rmse": found.rmse, "length": found.length, "ridge": found.ridge,
        "weight_of_pairs": found.pairs, "lr_pixels_through_psf": len(found.pixels),
    }  # fmt: skip
    tensors = found.tensors(problem.msi_range)
    return AutoFit("physics", found.model_config, tensors, choice, scores)


def no_sharp_image() -> DataError:
    """Return the refusal of the model physics without an HR-MSI."""
    return DataError(
        "the model physics needs the HR-MSI, whose pixels it blurs to compare them with the LR-HSI",
        "give --hr-msi FILE or a scene, or choose another --model",
    )
