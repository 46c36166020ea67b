"""What run.json and the end of the log tell of a run."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import torch

from spectralift_cli import __version__
from spectralift_cli.core.checkpoint import Checkpoint
from spectralift_cli.core.resources import peak_memory_bytes


def versions() -> dict[str, str]:
    """Return the versions of what computes."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": str(torch.__version__),
    }


def facts(device: torch.device, threads: int) -> dict[str, Any]:
    """Return what a run ran on and with."""
    memory = {"peak_memory_mb": round(peak_memory_bytes() / 1e6, 1)}
    if device.type == "cuda":
        memory["peak_device_memory_mb"] = round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    return {
        "versions": {"spectralift": __version__, **versions()},
        "device": str(device),
        "threads": threads,
        **memory,
    }


def model_facts(checkpoint: Checkpoint, pixels: int) -> dict[str, Any]:
    """Return what a model is and costs on an image of so many pixels."""
    model = checkpoint.empty_model()
    return {
        "name": checkpoint.model_name,
        "choice": checkpoint.choice,
        "parameters": model.parameter_count,
        "flops_per_pixel": model.flops_per_pixel,
        "flops_image": model.flops_per_pixel * pixels,
        **checkpoint.scores,
    }
