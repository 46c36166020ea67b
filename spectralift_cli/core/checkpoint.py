"""The trained spectral inverter and everything inference needs, in one .safetensors file.

The tensors are the weights, float32, by name; the JSON document beside them holds the model and
training configuration, the SRF, the LR-HSI's bands and units, the scaling, scores and provenance.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectralift_cli.core.config import TrainConfig
from spectralift_cli.core.cube import BoolArray, CubeMeta, FloatArray
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats.arrays import meta_from_json, meta_to_json
from spectralift_cli.core.levels import PERCENTS
from spectralift_cli.core.models.base import SpectralModel, build_model
from spectralift_cli.core.operators.scaling import Scaling
from spectralift_cli.core.optionfields import from_json, to_json
from spectralift_cli.core.outputs import write_bytes
from spectralift_cli.core.radiometry import Radiometry
from spectralift_cli.core.sensors.response import Srf
from spectralift_cli.core.tensorfile import dump_tensors, load_tensors
from spectralift_cli.core.uncertainty.calibration import PREFIX, Calibration

FORMAT = 1
CHECKPOINT_SUFFIX = ".safetensors"
_SCHEMA = "spectralift.checkpoint"
_KIND = "a checkpoint"
_DAMAGED = "make it again with spectralift train, or fetch it again"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained spectral inverter.

    Args:
        model_name: a key of `MODELS`.
        model_config: what its builder takes besides the numbers of bands.
        weights: float32 tensors on the CPU, by name.
        train_config: how it was trained.
        srf: (M, B) response that made the LR-MSI it was trained on.
        hsi: the LR-HSI's metadata: its shape (rows, cols, B), stored type, wavelengths, FWHM, bad
            bands, band names, nodata, scale, offset and georeference; without provenance.
        used_bands: (B,) which bands the network gives; the others come out as nodata.
        scaling: units to the network's range, for both images.
        auto_clip: the range in units that `clip = auto` means, or None for the output type's.
        scores: numbers about the training: pixels, epochs, loss, validation errors.
        choice: what the training chose and why, in words; "" where it had no choice.
        provenance: how it was made, or None.
        radiometry: (M,) gain and offset that bring the HR-MSI into the LR-HSI's radiometry before
            anything else; None for none.
        shift_px: (rows, cols) displacement of the LR-HSI's content in LR pixels, see
            `Placement.shifted`.
        shares_extent: whether the LR-HSI and its HR-MSI show the same ground to the edge though
            the ratio of their sizes need not be whole, as in the published protocol.
        levels: (M, 5) `PERCENTS` of the LR-MSI in units, to recognise an MSI in others; None if
            unknown.
        calibration: of the uncertainty; None if training was not asked for it.

    Raises:
        DataError: the parts do not fit each other.
    """

    model_name: str
    model_config: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    train_config: TrainConfig
    srf: Srf
    hsi: CubeMeta
    used_bands: BoolArray
    scaling: Scaling
    auto_clip: tuple[float, float] | None = None
    scores: Mapping[str, float | int] = field(default_factory=dict)
    provenance: Mapping[str, Any] | None = None
    choice: str = ""
    radiometry: Radiometry | None = None
    shift_px: tuple[float, float] = (0.0, 0.0)
    shares_extent: bool = False
    levels: FloatArray | None = None
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        bands = self.hsi.bands
        if self.srf.num_hsi_bands != bands or self.used_bands.shape != (bands,):
            raise DataError(
                f"the checkpoint's SRF has {self.srf.num_hsi_bands} bands and its list of used "
                f"bands {self.used_bands.size}, but its LR-HSI has {bands}",
                _DAMAGED,
            )
        if self.radiometry is not None and self.radiometry.bands != self.msi_bands:
            raise DataError(
                f"the radiometry is that of {self.radiometry.bands} MSI bands, the model takes "
                f"{self.msi_bands}",
                "estimate it again from the images that the model is trained on",
            )
        if not np.isfinite(self.shift_px).all():
            raise DataError(f"the shift {self.shift_px} is not finite", _DAMAGED)
        expected_levels = (self.msi_bands, len(PERCENTS))
        if self.levels is not None and (
            self.levels.shape != expected_levels or not np.isfinite(self.levels).all()
        ):
            raise DataError(
                f"the checkpoint's levels of the LR-MSI are not {expected_levels} finite numbers",
                _DAMAGED,
            )
        if self.calibration is not None:
            self.calibration.check(self.msi_bands, int(self.used_bands.sum()))
        if not self.used_bands.any():
            raise DataError("the checkpoint uses none of its bands", _DAMAGED)
        expected = {n: tuple(t.shape) for n, t in self.empty_model().state_dict().items()}
        found = {n: tuple(t.shape) for n, t in self.weights.items()}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise DataError(
                    f"the checkpoint's weights {name} have shape {found.get(name, 'none')} but "
                    f"its configuration asks for {expected.get(name, 'none')}",
                    _DAMAGED,
                )
        for name, tensor in self.weights.items():
            if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
                raise DataError(
                    f"the checkpoint's weights {name} are not finite float32 numbers", _DAMAGED
                )

    @property
    def msi_bands(self) -> int:
        """M, bands of the MSI it takes."""
        return self.srf.num_msi_bands

    def empty_model(self) -> SpectralModel:
        """Return the network without storage, to ask it for its shapes and counts."""
        used = int(self.used_bands.sum())
        return build_model(self.model_name, self.msi_bands, used, self.model_config)

    def model(self) -> SpectralModel:
        """Return the network with its weights, on the CPU."""
        return self.empty_model().with_weights(self.weights)

    def to_bytes(self) -> bytes:
        """Return the contents of the checkpoint's file; equal checkpoints give equal bytes."""
        document = {
            "schema": f"{_SCHEMA}/{FORMAT}",
            "model": {"name": self.model_name, "config": dict(self.model_config)},
            "train": to_json(self.train_config),
            "srf": _srf_to_json(self.srf),
            "hsi": {
                "shape": list(self.hsi.shape),
                "dtype": self.hsi.dtype.name,
                "meta": meta_to_json(self.hsi),
            },
            "used_bands": self.used_bands.tolist(),
            "scaling": dataclasses.asdict(self.scaling),
            "auto_clip": None if self.auto_clip is None else list(self.auto_clip),
            "scores": dict(self.scores),
            "choice": self.choice,
            "radiometry": None if self.radiometry is None else self.radiometry.to_json(),
            "shift_px": list(self.shift_px),
            "shares_extent": self.shares_extent,
            "levels": None if self.levels is None else self.levels.tolist(),
            "calibration": None if self.calibration is None else self.calibration.to_json(),
            "provenance": None if self.provenance is None else dict(self.provenance),
        }
        more = {} if self.calibration is None else self.calibration.tensors()
        return dump_tensors({**self.weights, **more}, document)

    def identity(self) -> dict[str, Any]:
        """Return the size and sha256 of the checkpoint's file."""
        data = self.to_bytes()
        return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def save_checkpoint(checkpoint: Checkpoint, path: Path, *, overwrite: bool = False) -> None:
    """Write a checkpoint; it appears whole or not at all.

    Raises:
        OutputExistsError: it exists and `overwrite` is false.
        DataError: it cannot be written.
    """
    write_bytes(path, checkpoint.to_bytes(), overwrite=overwrite)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and check all of it, as a file that may be hostile.

    Raises:
        DataError: no such file; truncated, damaged, from a newer version, or no checkpoint at all.
    """
    document, tensors = load_tensors(path, _KIND)
    _check_schema(document, path)
    try:
        extra = {n: tensors.pop(n) for n in list(tensors) if n.startswith(PREFIX)}
        model, hsi, scaling = document["model"], document["hsi"], document["scaling"]
        return Checkpoint(
            model_name=_text(model["name"]),
            model_config=dict(model["config"]),
            weights=tensors,
            train_config=from_json(TrainConfig, document["train"], path),
            srf=_srf_from_json(document["srf"]),
            hsi=meta_from_json(
                _shape(hsi["shape"]), np.dtype(_text(hsi["dtype"])), dict(hsi["meta"]), path
            ),
            used_bands=_flags(document["used_bands"]),
            scaling=Scaling(float(scaling["lo"]), float(scaling["hi"])),
            auto_clip=_pair(document["auto_clip"]),
            scores=_numbers(document["scores"]),
            provenance=None if document["provenance"] is None else dict(document["provenance"]),
            # older checkpoints have none of these
            choice=_text(document.get("choice", "")),
            radiometry=_radiometry(document.get("radiometry")),
            shift_px=_shift(document.get("shift_px", (0.0, 0.0))),
            shares_extent=document.get("shares_extent", False) is True,
            levels=_levels(document.get("levels")),
            calibration=_calibration(document.get("calibration"), extra),
        )
    except DataError as error:
        raise DataError(f"{path}: {error.message}".replace(f"{path}: {path}", f"{path}"),
                        error.hint) from error  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else f"is damaged ({error})"
        raise DataError(f"{path}: the checkpoint {what}", _DAMAGED) from error


def _check_schema(document: Mapping[str, Any], path: Path) -> None:
    name, _, number = str(document.get("schema")).partition("/")
    if name != _SCHEMA or not number.isdecimal() or len(number) > 9:
        raise DataError(
            f"{path}: is a tensor file of spectralift but not {_KIND}",
            "give the .safetensors file that train wrote",
        )
    if int(number) > FORMAT:
        raise DataError(
            f"{path}: has checkpoint format {number}, this version reads up to {FORMAT}",
            "use a newer version of spectralift",
        )


def _srf_to_json(srf: Srf) -> dict[str, Any]:
    return {
        "weights": srf.weights.tolist(),
        "band_names": list(srf.band_names),
        "coverage": None if srf.coverage is None else srf.coverage.tolist(),
        "source": srf.source,
        "kept": None if srf.kept is None else list(srf.kept),
        "sensor_bands": srf.sensor_bands,
    }


def _srf_from_json(fields: Mapping[str, Any]) -> Srf:
    coverage, kept, sensor = fields["coverage"], fields["kept"], fields["sensor_bands"]
    return Srf(
        weights=np.asarray(fields["weights"], dtype=np.float64),
        band_names=tuple(_text(name) for name in fields["band_names"]),
        coverage=None if coverage is None else np.asarray(coverage, dtype=np.float64),
        source=_text(fields["source"]),
        kept=None if kept is None else tuple(int(index) for index in kept),
        sensor_bands=None if sensor is None else int(sensor),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _shape(value: Any) -> tuple[int, int, int]:
    rows, cols, bands = (int(n) for n in value)
    return rows, cols, bands


def _flags(value: Any) -> BoolArray:
    if not isinstance(value, list) or not all(isinstance(flag, bool) for flag in value):
        raise TypeError("used_bands is not a list of true and false")
    return np.array(value, dtype=np.bool_)


def _pair(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    low, high = (float(number) for number in value)
    if not low < high:
        raise ValueError(f"clip range {low} to {high}")
    return low, high


def _radiometry(value: Any) -> Radiometry | None:
    return None if value is None else Radiometry.from_json(dict(value))


def _shift(value: Any) -> tuple[float, float]:
    down, across = (float(number) for number in value)
    return down, across


def _calibration(value: Any, tensors: Mapping[str, Tensor]) -> Calibration | None:
    return None if value is None else Calibration.of(dict(value), tensors)


def _levels(value: Any) -> FloatArray | None:
    return None if value is None else np.asarray(value, dtype=np.float64)


def _numbers(value: Any) -> dict[str, float | int]:
    scores = dict(value)
    if not all(isinstance(number, int | float) for number in scores.values()):
        raise TypeError("a score is not a number")
    return scores
