"""Does the score one scale down rank settings as the true score does?

Four scenes of SPECTRALIFT_SCENES with known truth; five methods at three noise levels, 15 settings
each. `validate` is given the right PSF, then one half as wide. Spearman's rank correlation between
its score and the score against the ground truth, for PSNR and SAM.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

import spectralift_cli as sl
from spectralift_cli.core.validation.inputs import ValidateInputs
from spectralift_cli.core.validation.validate import validate
from tests.bench.harness import scratch

CUBES = {
    "jasper-ridge": ("jasper_ridge.mat", "Y"), "abu-beach": ("abu_beach_v73.mat", "data"),
    "samson": ("samson.npz", "cube"), "hysu": ("dlr_hysu.hdr", None),
}  # fmt: skip
NOISE_DB = ((40.0, 45.0), (30.0, 35.0), (20.0, 25.0))  # of the LR-HSI and the HR-MSI
METHODS = {
    "linear": sl.TrainConfig(model="linear"),
    "residual-mlp": sl.TrainConfig(model="residual-mlp"),
    "prior-mlp": sl.TrainConfig(model="prior-mlp"),
    "auto": sl.TrainConfig(),
    "paper": sl.TrainConfig(preset="paper"),
}


def settings(cube: Path, var: str | None, folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (setting, true and found PSNR and SAM) of a scene, found with the right PSF and a wrong."""
    narrow = folder / "narrow.csv"
    at = np.arange(-7, 8)
    line = np.exp(-((at / 1.7) ** 2) / 2)
    np.savetxt(narrow, np.outer(line, line) / line.sum() ** 2, delimiter=",")
    for spatial, spectral in NOISE_DB:
        scene = sl.synth(
            cube, folder / "scene", overwrite=True, reading=sl.Reading(var=var),
            config=sl.SynthConfig(
                snr_spatial=spatial, snr_spectral=spectral, srf_wavelengths="invented"
            ),
        )  # fmt: skip
        for name, config in METHODS.items():
            model, sharp = folder / "m.safetensors", folder / "sharp.npy"
            sl.train(sl.TrainInputs(scene=scene.folder), model, config, overwrite=True)
            sl.infer(model, scene.folder, sharp, overwrite=True)
            true = sl.evaluate(scene.folder, sharp).values
            row = [true["psnr"], true["sam"]]
            for psf in (None, narrow):
                found = validate(ValidateInputs(scene=scene.folder, psf_file=psf), config)
                values = found.section("reduced").values
                row += [values["psnr_db"], values["sam_deg"]]
            yield f"{name:12} {spatial:g}/{spectral:g} dB", np.array(row)


def main() -> None:
    """Print a row for each setting and the correlations of each scene."""
    folder = os.environ.get("SPECTRALIFT_SCENES")
    if not folder:
        print("SPECTRALIFT_SCENES names no folder of scenes", file=sys.stderr)
        sys.exit(3)
    heads = ("true", "found", "wrong PSF")
    title = "  ".join(f"{unit} {head:>9}" for head in heads for unit in ("dB", "deg"))
    print(f"{'scene':13} {'setting':24} {title}")
    with scratch(1e9) as work, warnings.catch_warnings():
        warnings.simplefilter("ignore", sl.SpectraliftWarning)
        for name, (file, var) in CUBES.items():
            rows = []
            for setting, row in settings(Path(folder) / file, var, work):
                rows.append(row)
                numbers = "  ".join(f"{value:12.3f}" for value in row)
                print(f"{name:13} {setting:24} {numbers}", flush=True)
            table = np.array(rows)
            for column, head in ((2, "right PSF"), (4, "wrong PSF")):
                psnr, sam = (spearmanr(table[:, i], table[:, column + i]).statistic for i in (0, 1))
                print(
                    f"{name:13} rank correlation, {head}: PSNR {psnr:.3f}, SAM {sam:.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
