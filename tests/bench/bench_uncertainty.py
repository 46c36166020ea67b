"""Do the quantiles of `infer --uncertainty` hold, and do the flags find what was not seen?

Scenes of SPECTRALIFT_SCENES with known truth, and Indian Pines where the `samples` extra is there.
Coverage: share of pixels whose true RMSE over bands lies below the quantile, with and without the
inflation from LR to HR ("plain": as at held-out LR pixels); rank correlation (Spearman) of expected
with true error, which the inflation, a factor for all pixels, leaves as it is. "beyond PCs" is the
RMS of what the truth holds outside of its own first 12 principal components over the RMS of the
error: noise and rare detail of the sharp cube, which the LR-HSI does not show and no uncertainty
can expect. Jasper Ridge and Samson were used to develop the method, the others to judge it.

Then the share of a material's pixels that are flagged when all LR pixels that hold some of it are
cut out of training. Materials are the clusters of spectral angles (k-means) of scenes that are known
to consist of so many, a material's pixels those at most half as far from its centre as from others.
BENCH_CASES names some of the scenes, `flags` among them.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from scipy.cluster.vq import kmeans2
from scipy.stats import spearmanr

import spectralift_cli as sl
from spectralift_cli.core.checkpoint import load_checkpoint, save_checkpoint
from spectralift_cli.core.uncertainty.calibrate import noise_free
from spectralift_cli.core.validation.inputs import ValidateInputs, open_pair
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


MATERIALS = {"jasper-ridge": 4, "samson": 3}  # tree, water, soil, road; soil, tree, water
_HELD_SHARE = 0.05  # of an LR pixel, from which it counts as holding a material
_LEAST_LEFT = 0.3


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
    flat = dataclasses.replace(calibration, shift=0.0, scatter=calibration.model.factors)
    plainly = dataclasses.replace(checkpoint, calibration=flat)
    save_checkpoint(plainly, model, overwrite=True)
    sl.infer(model, scene.folder, sharp, uncertainty_file=file, overwrite=True)
    low = sl.read_cube(file).units()[valid]
    plain = [float((error <= low[:, 1 + i]).mean()) for i in (0, 1)]
    order = float(spearmanr(expected[:, 0], error).statistic)
    bias = float(expected[:, 0].mean() / error.mean())
    spectra = truth.reshape(-1, truth.shape[2]).astype(np.float32)
    spectra = spectra[np.isfinite(spectra).all(axis=1)]
    hidden = np.square(spectra - noise_free(spectra)).mean() / np.square(error).mean()
    return (
        *covered,
        *plain,
        order,
        bias,
        calibration.growth,
        calibration.spread,
        float(np.sqrt(hidden)),
        float(expected[:, 3].mean()),
        seconds,
    )


def flags(cube: Path, var: str | None, count: int, work: Path) -> list[tuple[float, ...]]:
    """Return, for each material, its pixels and the shares flagged of it and of all others."""
    scene = sl.synth(
        cube, work / "scene", overwrite=True, reading=sl.Reading(var=var),
        config=sl.SynthConfig(srf_wavelengths="invented"),
    )  # fmt: skip
    truth = sl.read_cube(scene.path("gt")).units()
    spectra = truth.reshape(-1, truth.shape[2])
    spectra = spectra / np.linalg.norm(spectra, axis=1, keepdims=True)
    centres, labels = kmeans2(spectra, count, minit="++", rng=np.random.default_rng(42))
    apart = np.linalg.norm(spectra[:, None] - centres, axis=2)  # (H W, K)
    lr = sl.read_cube(scene.path("lr_hsi"))
    rows = []
    for material in range(count):
        own = np.delete(apart, material, axis=1).min(axis=1) > 2 * apart[:, material]
        others = (labels != material) & ~own
        mask = (labels == material).reshape(*truth.shape[:2], 1).astype(np.float64)
        with open_pair(ValidateInputs(scene.folder)) as pair:
            share = pair.observation(mask)[:, :, 0]
        values = lr.values.copy()
        values[share > _HELD_SHARE] = np.nan
        if own.sum() < 50 or (share <= _HELD_SHARE).mean() < _LEAST_LEFT:
            continue
        sl.write_cube(work / "cut.npy", type(lr)(values, lr.meta), overwrite=True)
        inputs = sl.TrainInputs(
            lr_hsi=work / "cut.npy", hr_msi=scene.path("hr_msi"),
            response=sl.ResponseChoice(srf_file=scene.path("srf")),
        )  # fmt: skip
        model, file = work / "m.safetensors", work / "u.npy"
        config = sl.TrainConfig(model="linear", uncertainty=True)
        sl.train(inputs, model, config, overwrite=True)
        sl.infer(
            model, scene.path("hr_msi"), work / "sharp.npy", uncertainty_file=file, overwrite=True
        )
        flag = sl.read_cube(file).values[:, :, 3].ravel() == 1
        rows.append((float(own.sum()), float(flag[own].mean()), float(flag[others].mean())))
    return rows


def main() -> None:
    """Print a row for each scene and case, the means, and what is flagged of materials cut out."""
    names = (
        "cover 68", "cover 95", "plain 68", "plain 95", "rank corr", "expected/true", "growth",
        "its spread", "beyond PCs", "flagged", "train s",
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
        if rows:
            print(f"{'mean':35}" + "".join(f"{value:14.3f}" for value in np.mean(rows, axis=0)))
        if chosen == [""] or "flags" in chosen:
            print(f"\n{'cut out of':20}{'its pixels':>14}{'flagged':>14}{'of others':>14}")
            for name, count in MATERIALS.items():
                for pixels, found, false in flags(*cubes[name][:2], count, work):
                    print(f"{name:20}{pixels:14.0f}{found:14.3f}{false:14.3f}", flush=True)


if __name__ == "__main__":
    main()
