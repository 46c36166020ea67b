"""Learning rate schedules: one rate for every epoch e in 1..E."""

from __future__ import annotations

import math

from spectralift_cli.core.config import TrainConfig
from spectralift_cli.core.errors import OptionError


def check_schedule(config: TrainConfig) -> None:
    """Check that every epoch has a rate.

    Raises:
        OptionError: cosine_restart has more restarts than epochs, so that a period has no epoch.
    """
    if config.lr_schedule == "cosine_restart" and config.epochs < config.num_restarts:
        raise OptionError(
            f"{config.num_restarts} restarts do not fit into {config.epochs} epochs",
            "lower num-restarts or raise epochs",
        )


def learning_rate(epoch: int, config: TrainConfig) -> float:
    """Return the learning rate of an epoch.

    With E epochs:
        one_cycle: init_lr + (max_lr - init_lr) e / 0.3E up to e = 0.3E, then
            max_lr + (final_lr - max_lr) (e - 0.3E) / 0.7E;
        cosine_restart: with period P = E // num_restarts,
            min_lr + (max_lr - min_lr) (1 + cos(pi (e mod P) / P)) / 2;
        flat: init_lr.

    Args:
        epoch: e, from 1 to E.
        config: which schedule, its rates, and E.
    """
    if config.lr_schedule == "flat":
        return config.init_lr
    if config.lr_schedule == "cosine_restart":
        period = config.epochs // config.num_restarts
        swing = (1 + math.cos(math.pi * (epoch % period) / period)) / 2
        return config.min_lr + (config.max_lr - config.min_lr) * swing
    rise = 3 * config.epochs / 10
    if epoch <= rise:
        return _between(config.init_lr, config.max_lr, epoch / rise)
    return _between(config.max_lr, config.final_lr, (epoch - rise) / (config.epochs - rise))


def _between(start: float, end: float, share: float) -> float:
    """Return the point at a share of the way, exactly `start` at 0 and `end` at 1."""
    return start * (1 - share) + end * share
