"""What a killed training needs to go on: its state in a file beside the model."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectralift_cli.core.config import TrainConfig
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.optionfields import to_json
from spectralift_cli.core.outputs import write_bytes
from spectralift_cli.core.tensorfile import dump_tensors, load_tensors

_SCHEMA = "spectralift.training-state/1"
_KIND = "the state of a training"
_AFRESH = "leave --resume out to train afresh"


@dataclass(frozen=True, eq=False)
class FitState:
    """A training after some epochs.

    Args:
        weights: (parameters,) float32.
        m: (parameters,) Adam's first moment.
        v: (parameters,) Adam's second moment.
        generator: (bytes,) uint8, the random generator's state.
        losses: (epochs done,) float32.
    """

    weights: Tensor
    m: Tensor
    v: Tensor
    generator: Tensor
    losses: Tensor


def state_path_of(model_path: Path) -> Path:
    """Return where the training of a model keeps its state: MODEL.state."""
    return model_path.with_name(model_path.name + ".state")


def fingerprint(
    config: TrainConfig, lr_msi: NDArray[Any], lr_hsi: NDArray[Any], device_type: str
) -> dict[str, Any]:
    """Return what a training's bytes depend on, as a flat JSON object."""
    digest = hashlib.sha256()
    for array in (lr_msi, lr_hsi):
        digest.update(f"{array.shape} {array.dtype}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return {**to_json(config), "data": digest.hexdigest()[:16], "device": device_type}


def save_state(state: FitState, path: Path, fitting: Mapping[str, Any]) -> None:
    """Write the state, whole or not at all, over an older one.

    Raises:
        DataError: it cannot be written.
    """
    tensors = {field.name: getattr(state, field.name) for field in fields(state)}
    document = {"schema": _SCHEMA, "fitting": dict(fitting), "sha256": _checksum(tensors)}
    data = dump_tensors(tensors, document)
    write_bytes(path, data, overwrite=True)


def load_state(path: Path, fitting: Mapping[str, Any], parameters: int, epochs: int) -> FitState:
    """Read a state and check that it belongs to this training.

    Args:
        path: the file.
        fitting: the training's `fingerprint`.
        parameters: number of its weights.
        epochs: it has.

    Raises:
        DataError: it is damaged, or the state of other options or data.
    """
    document, tensors = load_tensors(path, _KIND)
    found = document.get("fitting")
    if document.get("schema") != _SCHEMA or not isinstance(found, dict):
        raise DataError(f"{path}: is not {_KIND} that this version can continue", _AFRESH)
    if document.get("sha256") != _checksum(tensors):
        raise DataError(f"{path}: is damaged, its numbers are not those that were written", _AFRESH)
    for key in sorted(fitting.keys() | found.keys()):
        if found.get(key) != fitting.get(key):
            raise DataError(
                f"{path}: belongs to another training: {key.replace('_', '-')} is "
                f"{found.get(key)} there and {fitting.get(key)} here",
                f"{_AFRESH}, or give the same options and data",
            )
    sizes = {
        "weights": parameters,
        "m": parameters,
        "v": parameters,
        "generator": torch.Generator().get_state().numel(),
        "losses": epochs,  # at most
    }
    for name, size in sizes.items():
        tensor = tensors.get(name)
        dtype = torch.uint8 if name == "generator" else torch.float32
        fits = tensor is not None and tensor.dtype == dtype and tensor.ndim == 1
        if (
            tensor is None
            or not fits
            or not (tensor.numel() == size or (name == "losses" and tensor.numel() < size))
            or not bool(torch.isfinite(tensor).all())
        ):
            raise DataError(f"{path}: its {name} are damaged", _AFRESH)
    try:
        torch.Generator().set_state(tensors["generator"])
    except RuntimeError as error:  # PyTorch has no narrower one for a state that cannot be
        raise DataError(f"{path}: its generator is damaged", _AFRESH) from error
    return FitState(**{name: tensors[name] for name in sizes})


def is_whole(path: Path) -> bool:
    """Tell whether a state is as it was written."""
    try:
        document, tensors = load_tensors(path, _KIND)
    except DataError:
        return False
    return document.get("sha256") == _checksum(tensors)


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def discard_state(path: Path) -> None:
    """Remove the state of a training whose result is safe; harmless if there is none."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
