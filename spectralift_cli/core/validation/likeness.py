"""Whether the pipeline that runs one scale down is the one that made the result beside it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from spectralift_cli.core.errors import SpectraliftWarning

if TYPE_CHECKING:
    from spectralift_cli.core.validation.rehearsal import Pipeline

_HERE = "the part one scale down"
# of a training's options, what changes no value of its result
_NO_VALUES = ("uncertainty",)


def warn_of_differences(
    provenance: Mapping[str, Any] | None, pipeline: Pipeline, estimate: bool
) -> None:
    """Warn where a result was made otherwise than what runs one scale down.

    Args:
        provenance: of the result; None, or one of another origin, tells nothing.
        pipeline: what runs one scale down.
        estimate: whether an estimate is given for it.
    """
    steps = _steps(provenance)
    if "train" not in steps:
        return  # not of this toolkit's making, or from a format that cannot tell
    for message in _differences(steps, pipeline, estimate or pipeline.estimate_anew):
        warnings.warn(message, SpectraliftWarning, stacklevel=2)


def _differences(
    steps: Mapping[str, Mapping[str, Any]], pipeline: Pipeline, estimate: bool
) -> list[str]:
    found = []
    refined = "refine" in steps
    if refined and pipeline.refine is None:
        found.append(f"the result was refined, {_HERE} is not: --refine does it there, too")
    if not refined and pipeline.refine is not None:
        found.append(f"the result was not refined, {_HERE} is: leave --refine out")
    estimated = any("estimate" in _table(steps[name], "inputs") for name in steps)
    if estimated and not estimate:
        found.append(
            f"the result was made with an estimate, {_HERE} is not: give --estimate JSON as well"
        )
    theirs = _table(steps["train"], "options")
    other = [
        f"{name.replace('_', '-')} {theirs[name]} (here {value})"
        for name, value in pipeline.train.used_json().items()
        if name not in _NO_VALUES and name in theirs and theirs[name] != value
    ]
    if other:
        found.append(
            f"the result's model was trained otherwise than {_HERE}: {', '.join(other)}; give "
            "validate the options of train"
        )
    return found


def _steps(provenance: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    """Return the last step of each command; files of others may hold anything."""
    steps = None if provenance is None else provenance.get("steps")
    if not isinstance(steps, list):
        return {}
    return {str(step.get("command")): step for step in steps if isinstance(step, dict)}


def _table(step: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = step.get(key)
    return found if isinstance(found, dict) else {}
