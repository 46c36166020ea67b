"""SpectraLift's own config files: one flat mapping, which means what it meant there.

That is protocol `published`, preset `paper`, no refinement, and scores in both conventions.
"""

# ruff: noqa: RUF009  # key() returns dataclasses.field(), which ruff cannot know

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectralift_cli.core.config import SynthConfig, TrainConfig
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats import find_format
from spectralift_cli.core.optionfields import check, options_of
from spectralift_cli.core.runs.blocks import build, key, plain, unknown_key

# value of output_file_type -> ending and creation options
OUTPUT_FILE_TYPES: dict[str, tuple[str, dict[str, str]]] = {
    "numpy": ("npy", {}),
    "h5": ("h5", {"COMPRESS": "GZIP"}),
    "matlab": ("mat", {}),
}
_TRAINING = (
    "lr_schedule", "init_lr", "max_lr", "final_lr", "min_lr", "num_restarts", "epochs",
    "hidden_size", "training_batch_size",
)  # fmt: skip


@dataclass(frozen=True)
class FlatConfig:
    """SpectraLift's keys with its template's values; None is "not given".

    A training key that is not given takes the value of preset `paper`.
    """

    synthetic: bool = key(True, "degrade a sharp cube; false: fuse two real images")
    mat_file: Path | None = key(None, "synthetic: the sharp cube")
    mat_key: str | None = key(None, "synthetic: its variable")
    provide_psf: bool | None = key(None, "use psf_file (default: if it is given)")
    psf_file: Path | None = key(None, "kernel, square, normalised to sum 1")
    provide_srf: bool | None = key(None, "use srf_file (default: if it is given)")
    srf_file: Path | None = key(None, "spectral response, M x B or B x M")
    lr_hsi_file: Path | None = key(None, "real-world: the blurry hyperspectral image")
    hr_msi_file: Path | None = key(None, "real-world: the sharp multispectral image")
    num_bands_msi_non_synthetic: int | None = key(
        None, "real-world, without srf_file: the documented sensor with that many bands"
    )
    psf_type: str = key(SynthConfig.psf_type, "shape of the point spread function")
    sigma: float = key(SynthConfig.sigma, "width of the PSF", unit="HR pixels")
    kernel_size: int = key(SynthConfig.kernel_size, "half width n of the kernel, 2n+1 wide")
    downsample_ratio: int = key(SynthConfig.downsample_ratio, "HR pixels to one LR pixel")
    snr_spatial: float = key(SynthConfig.snr_spatial, "SNR of the LR-HSI", unit="dB")
    snr_spectral: float = key(SynthConfig.snr_spectral, "SNR of the HR-MSI", unit="dB")
    num_msi_bands: int = key(SynthConfig.num_msi_bands, "bands of the MSI")
    fwhm_factor: float = key(SynthConfig.fwhm_factor, "width of an SRF band over its std")
    seed: int = key(SynthConfig.seed, "of noise and weights")
    lr_schedule: str | None = key(None, "one_cycle, cosine_restart or flat")
    init_lr: float | None = key(None, "learning rate at the start")
    max_lr: float | None = key(None, "largest learning rate")
    final_lr: float | None = key(None, "learning rate at the end of one_cycle")
    min_lr: float | None = key(None, "lowest learning rate of cosine_restart")
    num_restarts: int | None = key(None, "periods of cosine_restart")
    epochs: int | None = key(None, "passes over the LR pixels")
    hidden_size: int | None = key(None, "width of the hidden layers")
    training_batch_size: int | None = key(None, "LR pixels a step; null: all")
    inference_batch_size: int | None = key(None, "pixels at a time; null: cache-sized")
    verbose: bool = key(True, "1: shapes and scores; 0: warnings and errors only")
    output_file_type: str = key(
        "numpy", "format of the sharp cube, in any case", choices=tuple(OUTPUT_FILE_TYPES)
    )
    output_dir: Path | None = key(None, "folder of the run; -o replaces it")
    log_dir: Path | None = key(None, "folder of the log (default: that of the run)")

    def __post_init__(self) -> None:
        object.__setattr__(self, "output_file_type", self.output_file_type.lower())
        for name, file in (("provide_psf", self.psf_file), ("provide_srf", self.srf_file)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, file is not None)
        check(self)


def parse_flat(values: Mapping[str, Any], source: str) -> FlatConfig:
    """Return a flat config, checked by name and type; null and "" are as if not given.

    Raises:
        DataError: an unknown key (with its nearest neighbour) or a wrong value.
    """
    known = options_of(FlatConfig)
    for name in values:
        if name not in known:
            raise unknown_key(name, known, source)
    given = {
        name: int(value) if name == "verbose" and isinstance(value, str) and value.isdecimal()
        else value
        for name, value in values.items() if value is not None and value != ""
    }  # fmt: skip
    return build(FlatConfig, given, source)


def flat_blocks(flat: FlatConfig, source: str) -> dict[str, dict[str, Any]]:
    """Return the blocks of the native config that mean the same.

    Raises:
        DataError: a file that the mode needs is not named.
    """
    training = {name: getattr(flat, name) for name in _TRAINING}
    blocks: dict[str, dict[str, Any]] = {
        "train": {"preset": "paper", "seed": flat.seed}
        | {name: value for name, value in training.items() if value is not None},
        "metrics": {"modes": ["standard", "published"]},
    }
    if flat.synthetic:
        blocks["synth"] = _synth_block(flat, source)
    else:
        blocks["train"] |= _loose_files(flat, source)
        del blocks["metrics"]  # there is no ground truth
    ending, co = OUTPUT_FILE_TYPES[flat.output_file_type]
    blocks["infer"] = {
        "dtype": "float32", "format": ending, "co": co,
        "inference_batch_size": flat.inference_batch_size,
    }  # fmt: skip
    return blocks


def _synth_block(flat: FlatConfig, source: str) -> dict[str, Any]:
    cube = _needed(flat, "mat_file", "true", source)
    block: dict[str, Any] = {"cube": str(cube), "protocol": "published"}
    row = find_format(cube)
    if flat.mat_key is not None and (row is None or row.variables):
        block["var"] = flat.mat_key
    taken = ["downsample_ratio", "snr_spatial", "snr_spectral", "seed"]
    if flat.provide_psf:
        block["psf_file"] = str(_needed(flat, "psf_file", "true and provide_psf true", source))
    else:
        taken += ["psf_type", "sigma", "kernel_size"]
    if flat.provide_srf:
        block["srf_file"] = str(_needed(flat, "srf_file", "true and provide_srf true", source))
    else:
        taken += ["num_msi_bands", "fwhm_factor"]
    return block | {name: getattr(flat, name) for name in taken}


def _loose_files(flat: FlatConfig, source: str) -> dict[str, Any]:
    block: dict[str, Any] = {
        "lr_hsi": str(_needed(flat, "lr_hsi_file", "false", source)),
        "hr_msi": str(_needed(flat, "hr_msi_file", "false", source)),
    }
    count = flat.num_bands_msi_non_synthetic
    # a file without provide_srf is what is meant where nothing else says what the MSI sees
    if flat.provide_srf or (flat.srf_file is not None and count is None):
        name = str(_needed(flat, "srf_file", "false and provide_srf true", source))
        return block | {"srf_file": name}
    if count is None:
        raise DataError(
            f"{source}: neither srf_file nor num_bands_msi_non_synthetic says what the MSI sees",
            "give srf_file, or num_bands_msi_non_synthetic for a documented sensor",
        )
    return block | {
        "num_msi_bands": count, "srf_wavelengths": "invented", "fwhm_factor": flat.fwhm_factor
    }  # fmt: skip


def _needed(flat: FlatConfig, name: str, mode: str, source: str) -> Path:
    path: Path | None = getattr(flat, name)
    if path is None:
        other = "synthetic: false takes lr_hsi_file and hr_msi_file instead"
        raise DataError(
            f"{source}: synthetic is {mode}, but {name} is not given",
            f"give {name}" + (f"; {other}" if name == "mat_file" else ""),
        )
    return path


def unused_files(flat: FlatConfig, blocks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the file keys that are given but have no part in the run."""
    used = {
        value for block in blocks.values() for value in block.values() if isinstance(value, str)
    }
    names = ("mat_file", "psf_file", "srf_file", "lr_hsi_file", "hr_msi_file")
    given = {name: getattr(flat, name) for name in names}
    return [name for name, path in given.items() if path is not None and str(path) not in used]


def cube_stem(flat: FlatConfig, synth: SynthConfig | None) -> str:
    """Return the name SpectraLift gives the sharp cube, with {bands} for the MSI's bands.

    Args:
        flat: the config.
        synth: the synthesis that was resolved from it, or None in real-world mode.
    """
    if synth is None:
        return "super_resolved_hsi"
    subject = flat.mat_key or (flat.mat_file.stem if flat.mat_file else "")
    shape = flat.psf_type if flat.provide_psf else synth.psf_type
    words = (re.sub(r"[^A-Za-z0-9_]+", "_", word)[:100] for word in (subject, shape))
    return "_".join(("super_resolved_hsi", *words, str(synth.downsample_ratio), "{bands}"))


def flat_snapshot(flat: FlatConfig) -> dict[str, Any]:
    """Return all keys of a flat config with the values that apply."""
    found = plain(flat) | {"verbose": int(flat.verbose)}
    for name in _TRAINING:
        if found[name] is None:
            found[name] = getattr(TrainConfig, name)
    return found
