"""Fit a spectral inverter to the pixels of an LR-HSI.

The LR-MSI is the LR-HSI seen through the SRF; the network learns the way back, pixel by pixel. The
network sees no ground truth (Shah and Duarte, arXiv 2507.13339), and preset paper's no HR-MSI.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np

from spectralift_cli.core.auto import AutoFit, fit_auto, no_sharp_image
from spectralift_cli.core.checkpoint import Checkpoint
from spectralift_cli.core.config import TrainConfig
from spectralift_cli.core.devices import one_thread_each, resolve_device
from spectralift_cli.core.fitting import History, Keeping, Pace, fit
from spectralift_cli.core.given import ON_PROCESSOR, Execution
from spectralift_cli.core.identity import identity as identity_of
from spectralift_cli.core.identity import provenance
from spectralift_cli.core.levels import SharpImage
from spectralift_cli.core.lrpixels import FloatPixels, TrainingData, check_units, load_pairs
from spectralift_cli.core.models.base import build_model
from spectralift_cli.core.operators.scaling import Scaling
from spectralift_cli.core.physics.lens import View
from spectralift_cli.core.placement import Placement, placement_json
from spectralift_cli.core.refinement.optics import Optical
from spectralift_cli.core.sharplook import SharpLook, look_at
from spectralift_cli.core.source import Source

NO_HISTORY = History(np.zeros(0), np.zeros(0))


@dataclass(frozen=True)
class TrainingPlan:
    """What will be fitted, known before it is.

    Args:
        model: its name in the table.
        valid_pixels: N, LR pixels without a hole in any used band.
        pixels: of the whole LR-HSI.
        msi_bands: M.
        used_bands: of the LR-HSI that take part.
        hsi_bands: B, of the whole LR-HSI.
        parameters: weights and biases.
        flops_per_pixel: of inference.
        epochs: passes over the pixels; 0 where the fit itself decides, as preset auto's.
        steps_per_epoch: changes of the weights in each; likewise.
        placement: of the LR-HSI on the HR-MSI, or None where there is none or are several.
        scenes: whose pixels these are.
        drawn_from: valid pixels of which N were drawn; None where all take part.
    """

    model: str
    valid_pixels: int
    pixels: int
    msi_bands: int
    used_bands: int
    hsi_bands: int
    parameters: int
    flops_per_pixel: int
    epochs: int
    steps_per_epoch: int
    placement: Placement | None = None
    scenes: int = 1
    drawn_from: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {**self.__dict__, "placement": placement_json(self.placement)}

    def __str__(self) -> str:
        left_out = self.pixels - (self.drawn_from or self.valid_pixels)
        bands = f"{self.used_bands}" + (
            f" of {self.hsi_bands}" if self.used_bands < self.hsi_bands else ""
        )
        size = f"{self.parameters:,} parameters, " if self.parameters else ""
        text = (
            f"model {self.model}: {self.msi_bands} -> {bands} bands, "
            f"{size}{self.valid_pixels:,} LR pixels"
            + (f" drawn from {self.drawn_from:,}" if self.drawn_from else "")
            + (f" of {self.scenes} scenes" if self.scenes > 1 else "")
            + (f" ({left_out:,} with holes left out)" if left_out else "")
        )
        return (
            text
            if not self.epochs
            else (
                text
                + f", {self.epochs:,} epochs of {self.steps_per_epoch:,} "
                + ("step" if self.steps_per_epoch == 1 else "steps")
            )
        )


@dataclass(frozen=True, eq=False)
class Trained:
    """What training gives.

    Args:
        checkpoint: the model with everything inference needs.
        history: learning rate and loss of every epoch; empty from preset auto.
        plan: what was fitted.
        pace: how long the fit took.
    """

    checkpoint: Checkpoint
    history: History
    plan: TrainingPlan
    pace: Pace


def plan_training(
    data: TrainingData, config: TrainConfig, sharp: SharpImage | None = None
) -> TrainingPlan:
    """Return what training on this data will fit, and where the HR-MSI lies if there is one.

    Raises:
        DataError: the model physics is asked for without an HR-MSI.
    """
    placement = None if sharp is None else sharp.placement
    if config.model == "physics" and sharp is None:
        raise no_sharp_image()
    return plan_fit(
        config, data.lr_msi, data.lr_hsi, data.pixels, data.used_bands.size, placement=placement
    )


def plan_fit(
    config: TrainConfig,
    lr_msi: FloatPixels,
    lr_hsi: FloatPixels,
    pixels: int,
    hsi_bands: int,
    **more: Any,
) -> TrainingPlan:
    """Return what training on pixels (N, M) and (N, used bands) will fit.

    Args:
        config: how.
        lr_msi: see `TrainingData`.
        lr_hsi: likewise.
        pixels: see `TrainingPlan`, as are all others.
        hsi_bands: likewise.
        **more: likewise.
    """
    (valid_pixels, msi_bands), used_bands = lr_msi.shape, lr_hsi.shape[1]
    published = config.published
    if published is None:
        return TrainingPlan(
            config.model or "auto", valid_pixels, pixels, msi_bands, used_bands, hsi_bands,
            parameters=0, flops_per_pixel=0, epochs=0, steps_per_epoch=0, **more,
        )  # fmt: skip
    model = build_model("paper", msi_bands, used_bands, {"hidden_size": published.hidden_size})
    batch = min(valid_pixels, published.training_batch_size or valid_pixels)
    return TrainingPlan(
        "paper", valid_pixels, pixels, msi_bands, used_bands, hsi_bands, model.parameter_count,
        model.flops_per_pixel, published.epochs, math.ceil(valid_pixels / batch), **more,
    )  # fmt: skip


def train(
    source: Source,
    config: TrainConfig,
    *,
    execution: Execution = ON_PROCESSOR,
    announce: Callable[[TrainingPlan], None] | None = None,
    **paper: Unpack[Keeping],
) -> Trained:
    """Train the spectral inverter of an LR-HSI.

    Bands that are flagged as bad or hold no value are left out of training and come back as nodata;
    so do LR pixels with a hole in any other band, for training only.

    Args:
        source: the LR-HSI with what is known of its HR-MSI.
        config: how.
        execution: device and threads; its progress is called as progress(epochs done, all epochs).
        announce: called with the plan before the first epoch.
        **paper: of the published network's fit.

    Raises:
        DataError: see `load_pairs`, `check_units` and `fit`.
    """
    data = load_pairs(source.lr_hsi, source.srf, scaling=source.scaling)
    check_units(data, source.srf, source.sharp, source.radiometry)
    plan = plan_training(data, config, source.sharp)
    if announce is not None:
        announce(plan)
    if config.published is None:
        begun = time.monotonic()
        with one_thread_each():
            look = look_at_sharp(source)
        found = fit_auto(
            data.lr_msi, data.lr_hsi, data.weights, data.valid, data.shape, config,
            sharp=None if look is None else look.scaled(data.scaling),
            view=None if look is None else _view(source, data.scaling),
            psf_radius_lr_px=source.psf_radius_lr_px, device=resolve_device(execution.device),
            threads=execution.threads, progress=execution.progress,
        )  # fmt: skip
        history, pace = NO_HISTORY, Pace(found.steps, time.monotonic() - begun)
    else:
        found, history, pace = fit_published(
            data.lr_msi, data.lr_hsi, config, execution=execution, **paper
        )
    hsi = source.lr_hsi.meta
    if not data.used_bands.all():
        hsi = hsi.replace(bad_bands=~data.used_bands)
    checkpoint = Checkpoint(
        model_name=found.model_name,
        model_config=found.model_config,
        weights=found.weights,
        train_config=config,
        srf=source.srf,
        hsi=hsi.replace(provenance=None),
        used_bands=data.used_bands,
        scaling=data.scaling,
        auto_clip=(0.0, 1.0) if data.scaling.is_identity else None,
        scores={"lr_pixels": plan.valid_pixels, **found.scores},
        choice=found.choice,
        radiometry=source.radiometry,
        shift_px=source.shift_px,
        shares_extent=source.shares_extent,
        levels=data.levels(),
        provenance=provenance(
            "train",
            {**config.used_json(), **source.lr_hsi.choices},
            {"lr_hsi": identity_of(*source.lr_hsi.files), **source.inputs},
            earlier=source.lr_hsi.meta.provenance,
        ),
    )
    return Trained(checkpoint, history, plan, pace)


def look_at_sharp(source: Source) -> SharpLook | None:
    """Return what is seen of an HR-MSI in the LR-HSI's units, where both lie; None for nothing."""
    look = None if source.hr_msi is None else look_at(source.hr_msi)
    if look is None:
        return None
    if source.radiometry is not None:
        look = look.corrected(source.radiometry)
    return look if source.placement is None else look.placed(source.placement)


def _view(source: Source, scaling: Scaling) -> View | None:
    """Return the HR-MSI as a fit through the physics sees it; None without one."""
    if source.hr_msi is None or source.placement is None:
        return None
    known = source.optical or Optical()
    return View(
        source.hr_msi, source.placement, scaling, known.psf, known.includes_footprint,
        source.radiometry,
    )  # fmt: skip


def fit_published(
    lr_msi: FloatPixels,
    lr_hsi: FloatPixels,
    config: TrainConfig,
    *,
    execution: Execution,
    **paper: Unpack[Keeping],
) -> tuple[AutoFit, History, Pace]:
    """Fit the published network, by preset paper or by its name under preset auto; see `fit`."""
    published = config.published
    if published is None:
        raise ValueError("the config asks for another model than the published network")
    if config.preset != "paper":
        paper["state_path"] = None  # only preset paper resumes
    fitted = fit(
        lr_msi, lr_hsi, published, device=resolve_device(execution.device),
        threads=execution.threads, progress=execution.progress, **paper,
    )  # fmt: skip
    scores = {"epochs": published.epochs, "final_loss": float(fitted.history.loss[-1])}
    found = AutoFit(
        "paper", {"hidden_size": published.hidden_size}, fitted.model.state_dict(), "", scores
    )
    return found, fitted.history, fitted.pace
