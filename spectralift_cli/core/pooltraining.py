"""Train one spectral inverter on several scenes, or on a part of the pixels of one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

from spectralift_cli.core.auto import check_model_of_pool, fit_pool
from spectralift_cli.core.checkpoint import Checkpoint
from spectralift_cli.core.config import TrainConfig
from spectralift_cli.core.cube import Progress, no_progress
from spectralift_cli.core.devices import one_thread_each, resolve_device
from spectralift_cli.core.fitting import Keeping, Pace
from spectralift_cli.core.given import ON_PROCESSOR, Execution
from spectralift_cli.core.identity import identity, provenance
from spectralift_cli.core.pooling import Pool, check_pool, load_pool
from spectralift_cli.core.sharplook import SharpLook, pooled
from spectralift_cli.core.source import Source
from spectralift_cli.core.training import (
    NO_HISTORY,
    Trained,
    TrainingPlan,
    fit_published,
    look_at_sharp,
    plan_fit,
)


def plan_pool(pool: Pool, config: TrainConfig, sources: Sequence[Source]) -> TrainingPlan:
    """Return what training on a pool will fit."""
    drawn = len(pool.lr_msi) < pool.valid
    sharp = sources[0].sharp if len(sources) == 1 else None
    placement = None if sharp is None else sharp.placement
    return plan_fit(
        config, pool.lr_msi, pool.lr_hsi, pool.pixels, pool.used_bands.size,
        placement=placement, scenes=len(sources), drawn_from=pool.valid if drawn else None,
    )  # fmt: skip


def open_pool(
    sources: Sequence[Source], config: TrainConfig, progress: Progress = no_progress
) -> tuple[Pool, TrainingPlan]:
    """Read the pixels to train on and check that all images belong together.

    Raises:
        DataError: see `load_pool` and `check_pool`.
        OptionError: the config asks for a model that holds the LR-HSI of one scene.
    """
    check_model_of_pool(config)
    pool = load_pool(sources, max_pixels=config.max_pixels, seed=config.seed, progress=progress)
    check_pool(pool, sources)
    return pool, plan_pool(pool, config, sources)


def train_pool(
    sources: Sequence[Source],
    config: TrainConfig,
    *,
    execution: Execution = ON_PROCESSOR,
    announce: Callable[[TrainingPlan], None] | None = None,
    **paper: Unpack[Keeping],
) -> Trained:
    """Train the spectral inverter of several LR-HSIs, or of a part of one's pixels.

    What holds for all of them goes into the checkpoint: one scaling, percentiles of all, the bands
    that are usable in each. Type, scale and nodata of what `infer` writes are the first's. A model
    of several has no place on the map.

    Args:
        sources: the images, of the same two sensors.
        config: how; its `max_pixels` bounds what is held in memory.
        execution: device and threads; its progress is called as progress(rows read, rows to read),
            then as progress(done, all) of the fit.
        announce: called with the plan before the fit.
        **paper: of the published network's fit.

    Raises:
        DataError: see `load_pool`, `check_pool` and `fit`.
        OptionError: the config asks for a model that holds the LR-HSI of one scene.
    """
    pool, plan = open_pool(sources, config, execution.progress)
    if announce is not None:
        announce(plan)
    if config.published is None:
        begun = time.monotonic()
        found = fit_pool(
            pool.lr_msi, pool.lr_hsi, pool.weights, pool.places, config,
            sharp=_look_at_all(sources, pool), device=resolve_device(execution.device),
            threads=execution.threads, progress=execution.progress,
        )  # fmt: skip
        history, pace = NO_HISTORY, Pace(found.steps, time.monotonic() - begun)
    else:
        found, history, pace = fit_published(
            pool.lr_msi, pool.lr_hsi, config, execution=execution, **paper
        )
    alone = sources[0] if len(sources) == 1 else None
    first = sources[0].lr_hsi.meta
    counts = {} if plan.drawn_from is None else {"lr_pixels_drawn_from": plan.drawn_from}
    checkpoint = Checkpoint(
        model_name=found.model_name,
        model_config=found.model_config,
        weights=found.weights,
        train_config=config,
        srf=sources[0].srf,
        hsi=first.replace(
            crs=first.crs if alone else None,
            transform=first.transform if alone else None,
            bad_bands=first.bad_bands if pool.used_bands.all() else ~pool.used_bands,
            provenance=None,
        ),
        used_bands=pool.used_bands,
        scaling=pool.scaling,
        auto_clip=(0.0, 1.0) if pool.scaling.is_identity else None,
        scores={"scenes": len(sources), "lr_pixels": plan.valid_pixels, **counts, **found.scores},
        choice=found.choice,
        radiometry=alone.radiometry if alone else None,
        shift_px=alone.shift_px if alone else (0.0, 0.0),
        shares_extent=alone is not None and alone.shares_extent,
        levels=pool.levels(),
        provenance=_provenance(sources, config),
    )
    return Trained(checkpoint, history, plan, pace)


def _look_at_all(sources: Sequence[Source], pool: Pool) -> SharpLook | None:
    """Look at every HR-MSI, where its LR-HSI lies; each counts by its LR pixels that take part."""
    looks, shares = [], []
    with one_thread_each():
        for number, source in enumerate(sources):
            look = look_at_sharp(source)
            share = int((pool.places.image == number).sum())
            if look is not None and len(look.pixels) and share:
                looks.append(look)
                shares.append(float(share))
        return pooled(looks, shares).scaled(pool.scaling) if looks else None


def _provenance(sources: Sequence[Source], config: TrainConfig) -> dict[str, Any]:
    """Return the provenance: what made each LR-HSI, one after the other, then this training."""
    inputs: dict[str, Mapping[str, Any]] = {}
    steps: list[Any] = []
    schema: Any = None
    for number, source in enumerate(sources, 1):
        end = "" if len(sources) == 1 else f"_{number}"
        reader = source.lr_hsi
        read = {"read": dict(reader.choices)} if reader.choices else {}
        inputs[f"lr_hsi{end}"] = {**identity(*reader.files), **read}
        inputs |= {f"{role}{end}": found for role, found in source.inputs.items()}
        earlier = reader.meta.provenance or {}
        if isinstance(earlier.get("steps"), list):
            schema = earlier.get("schema")
            steps += earlier["steps"]
    return provenance(
        "train", config.used_json(), inputs, earlier={"schema": schema, "steps": steps}
    )
