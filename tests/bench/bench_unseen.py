"""`auto` against `paper` on scenes that are not in the suite of `make bench-accuracy`.

The synthetic sample always, and the EnMAP scene of Berlin where SPECTRALIFT_SCENES holds it. Mean of
three seeds; seconds of training, with reading and checkpoint.
"""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path

import numpy as np

import spectralift_cli as sl
from tests.bench.harness import scratch

CASES = ((4, 4, 35.0), (8, 4, 35.0), (4, 8, 30.0), (1, 4, 35.0))  # bands, ratio, SNR
SEEDS = (0, 1, 2)


def scores(scene: sl.Scene, preset: str) -> tuple[float, ...]:
    """Return mean PSNR, SAM, ERGAS and training seconds of a preset."""
    folder, rows = scene.folder.parent, []
    for seed in SEEDS:
        started = time.perf_counter()
        sl.train(
            sl.TrainInputs(scene=scene.folder), folder / "m.safetensors",
            sl.TrainConfig(preset=preset, seed=seed), overwrite=True,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        sl.infer(folder / "m.safetensors", scene.folder, folder / "sharp.npy", overwrite=True)
        found = sl.evaluate(scene.folder, folder / "sharp.npy").values
        rows.append((found["psnr"], found["sam"], found["ergas"], seconds))
    return tuple(float(value) for value in np.mean(rows, axis=0))


def main() -> None:
    """Print a row for each scene and case."""
    print(
        "scene      case     PSNR dB paper  auto   SAM deg paper  auto   ERGAS paper  auto   s  auto"
    )
    with scratch(1e9) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", sl.SpectraliftWarning)
        sl.write_sample("synthetic", folder / "cube.h5", size=(128, 128, 100), seed=7)
        cubes = {"synthetic": folder / "cube.h5"}
        berlin = Path(os.environ.get("SPECTRALIFT_SCENES", "")) / "berlin_enmap_30m.hdr"
        if berlin.is_file():
            cubes["berlin"] = berlin
        for name, cube in cubes.items():
            for bands, ratio, snr in CASES:
                config = sl.SynthConfig(
                    num_msi_bands=bands, downsample_ratio=ratio, snr_spatial=snr, boundary="zero",
                    srf_wavelengths="invented",
                )  # fmt: skip
                scene = sl.synth(cube, folder / "scene", config, overwrite=True)
                paper, auto = scores(scene, "paper"), scores(scene, "auto")
                pairs = "  ".join(f"{p:8.2f} {a:6.2f}" for p, a in zip(paper, auto, strict=True))
                print(f"{name:10} {ratio}x {bands} bands  {pairs}", flush=True)


if __name__ == "__main__":
    main()
