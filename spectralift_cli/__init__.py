"""Sharp hyperspectral images from a blurry hyperspectral and a sharp multispectral one.

    import spectralift_cli as sl

    scene = sl.synth("cube.h5", "scene", sl.SynthConfig(downsample_ratio=4))
    sl.train(sl.TrainInputs(scene=scene.folder), "model.safetensors")
    sl.infer("model.safetensors", "scene", "sharp.tif")
    print(sl.evaluate("scene", "sharp.tif").values)

These are the functions that the commands call. Names are imported on first use, so that importing
the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# public name -> module it is resolved from
_API = {
    **dict.fromkeys(
        ("synth", "train", "infer", "evaluate", "Reading", "Execution", "Storage", "TrainInputs"),
        "spectralift_cli.core.stages",
    ),
    **dict.fromkeys(
        (
            "SynthConfig",
            "TrainConfig",
            "InferConfig",
            "RefineConfig",
            "MetricsConfig",
            "ReportConfig",
        ),
        "spectralift_cli.core.config",
    ),
    **dict.fromkeys(("refine", "infer_refined", "RefineInputs"), "spectralift_cli.core.refining"),
    **dict.fromkeys(
        ("open_cube", "create_cube", "read_cube", "write_cube"), "spectralift_cli.core.formats"
    ),
    **dict.fromkeys(("Cube", "CubeMeta"), "spectralift_cli.core.cube"),
    **dict.fromkeys(("Scene", "open_scene"), "spectralift_cli.core.scene"),
    **dict.fromkeys(("Checkpoint", "load_checkpoint"), "spectralift_cli.core.checkpoint"),
    **dict.fromkeys(("SpectraliftError", "SpectraliftWarning"), "spectralift_cli.core.errors"),
    "ResponseChoice": "spectralift_cli.core.pairs",
    "Ranks": "spectralift_cli.core.ranks",
    **dict.fromkeys(("estimate", "EstimateInputs"), "spectralift_cli.core.estimation.estimate"),
    **dict.fromkeys(("Estimate", "read_estimate"), "spectralift_cli.core.estimation.result"),
    "validate": "spectralift_cli.core.validation.validate",
    "ValidateInputs": "spectralift_cli.core.validation.inputs",
    "write_sample": "spectralift_cli.core.samples",
    "convert": "spectralift_cli.core.convert",
    "QuicklookConfig": "spectralift_cli.core.config",
    "quicklook": "spectralift_cli.core.pictures.files",
    "report": "spectralift_cli.core.report.page",
}

__all__ = ["__version__", *_API]  # names resolved by __getattr__

if TYPE_CHECKING:
    from spectralift_cli.core.checkpoint import Checkpoint, load_checkpoint
    from spectralift_cli.core.config import (
        InferConfig,
        MetricsConfig,
        QuicklookConfig,
        RefineConfig,
        ReportConfig,
        SynthConfig,
        TrainConfig,
    )
    from spectralift_cli.core.convert import convert
    from spectralift_cli.core.cube import Cube, CubeMeta
    from spectralift_cli.core.errors import SpectraliftError, SpectraliftWarning
    from spectralift_cli.core.estimation.estimate import EstimateInputs, estimate
    from spectralift_cli.core.estimation.result import Estimate, read_estimate
    from spectralift_cli.core.formats import create_cube, open_cube, read_cube, write_cube
    from spectralift_cli.core.pairs import ResponseChoice
    from spectralift_cli.core.pictures.files import quicklook
    from spectralift_cli.core.ranks import Ranks
    from spectralift_cli.core.refining import RefineInputs, infer_refined, refine
    from spectralift_cli.core.report.page import report
    from spectralift_cli.core.samples import write_sample
    from spectralift_cli.core.scene import Scene, open_scene
    from spectralift_cli.core.stages import (
        Execution,
        Reading,
        Storage,
        TrainInputs,
        evaluate,
        infer,
        synth,
        train,
    )
    from spectralift_cli.core.validation.inputs import ValidateInputs
    from spectralift_cli.core.validation.validate import validate


def __getattr__(name: str) -> Any:
    if name not in _API:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_API[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
