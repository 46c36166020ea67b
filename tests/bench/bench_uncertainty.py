"""Do the quantiles of `infer --uncertainty` hold, and do the flags find what was not seen?

Scenes of SPECTRALIFT_SCENES with known truth, and Indian Pines where the `samples` extra is there.
Coverage: share of pixels whose true RMSE over bands lies below the quantile, with and without the
inflation from LR to HR; correlation (Spearman) of expected with true error. Then the share of a
material's pixels that are flagged when all LR pixels that hold some of it are cut out of training.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

import spectralift_cli as sl
from spectralift_cli.core.checkpoint import load_checkpoint, save_checkpoint
from tests.bench.harness import scratch

CUBES = {
    "jasper-ridge": ("jasper_ridge.mat", "Y", None),
    "abu-beach": ("abu_beach_v73.mat", "data", None),
    "samson": ("samson.npz", "cube", None),
    "hysu": ("dlr_hysu.hdr", None, None),
    "cave": ("cave_balloons.npz", "cube", (150, 150, 192, 192)),
    "paris": ("paris_hyperion_hs_30m.npy", None, None),
}
CASES = ((4, 4, 3.4), (4, 4, 1.7))  # bands, ratio, sigma


def measure(scene: sl.Scene, folder: Path, config: sl.TrainConfig) -> tuple[float, ...]:
    """Return coverages with and without inflation, correlation, share of flags and seconds."""
    model, sharp, file = folder / "m.safetensors", folder / "sharp.npy", folder / "u.npy"
    started = time.perf_counter()
    sl.train(sl.TrainInputs(scene=scene.folder), model, config, overwrite=True)
    seconds = time.perf_counter() - started
    sl.infer(
        model, scene.folder, sharp, sl.InferConfig(clip="none"), uncertainty_file=file,
        overwrite=True,
    )  # fmt: skip
    truth, made, expected = (sl.read_cube(p).units() for p in (scene.path("gt"), sharp, file))
    error = np.sqrt(np.square(made.astype(np.float64) - truth).mean(axis=2))
    valid = np.isfinite(error) & np.isfinite(expected[:, :, 0])
    error, expected = error[valid], expected[valid]
    checkpoint = load_checkpoint(model)
    calibration = checkpoint.calibration
    if calibration is None:
        raise AssertionError
    covered = [float((error <= expected[:, 1 + i]).mean()) for i in (0, 1)]
    flat = dataclasses.replace(
        calibration, growth=1.0, scatter=calibration.model.factors
    )  # as at LR pixels
    plainly = dataclasses.replace(checkpoint, calibration=flat)
    save_checkpoint(plainly, model, overwrite=True)
    sl.infer(model, scene.folder, sharp, uncertainty_file=file, overwrite=True)
    low = sl.read_cube(file).units()[valid]
    plain = [float((error <= low[:, 1 + i]).mean()) for i in (0, 1)]
    order = float(spearmanr(expected[:, 0], error).statistic)
    bias = float(expected[:, 0].mean() / error.mean())
    return (
        *covered,
        *plain,
        order,
        bias,
        calibration.growth,
        float(expected[:, 3].mean()),
        seconds,
    )


def main() -> None:
    """Print a row for each scene and case, and the means."""
    names = (
        "cover 68", "cover 95", "plain 68", "plain 95", "rank corr", "expected/true", "growth",
        "flagged", "train s",
    )  # fmt: skip
    folder = os.environ.get("SPECTRALIFT_SCENES")
    if not folder:
        print("SPECTRALIFT_SCENES names no folder of scenes", file=sys.stderr)
        sys.exit(3)
    print(f"{'scene':20} {'case':14}" + "".join(f"{name:>14}" for name in names))
    rows = []
    chosen = os.environ.get("BENCH_CASES", "").split(",")
    with scratch(1e9) as work, warnings.catch_warnings():
        warnings.simplefilter("ignore", sl.SpectraliftWarning)
        cubes = {name: (Path(folder) / file, var, cut) for name, (file, var, cut) in CUBES.items()}
        try:
            sl.write_sample("indian-pines", work / "pines.npy")
            cubes["indian-pines"] = (work / "pines.npy", None, None)
        except sl.SpectraliftError as error:
            print(f"without Indian Pines: {error}", file=sys.stderr)
        for name, (path, var, cut) in cubes.items():
            if chosen != [""] and name not in chosen:
                continue
            if cut is not None:
                row, col, height, width = cut
                cube = sl.read_cube(path, var=var)
                part = cube.values[row : row + height, col : col + width]
                window = cube.meta.window(*cut)
                path, var = work / f"{name}.npy", None
                sl.write_cube(path, type(cube)(np.ascontiguousarray(part), window), overwrite=True)
            for bands, ratio, sigma in CASES:
                scene = sl.synth(
                    path, work / "scene", overwrite=True, reading=sl.Reading(var=var),
                    config=sl.SynthConfig(
                        num_msi_bands=bands, downsample_ratio=ratio, sigma=sigma,
                        srf_wavelengths="invented",
                    ),
                )  # fmt: skip
                row_ = measure(scene, work, sl.TrainConfig(uncertainty=True))
                rows.append(row_)
                numbers = "".join(f"{value:14.3f}" for value in row_)
                print(f"{name:20} {ratio}x {bands}b s{sigma:<6}{numbers}", flush=True)
    print(f"{'mean':35}" + "".join(f"{value:14.3f}" for value in np.mean(rows, axis=0)))


if __name__ == "__main__":
    main()
