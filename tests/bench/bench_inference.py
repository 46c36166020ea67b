"""Inference: pixels a second in memory, of preset `paper` and of what preset `auto` fits, and time and
peak memory of preset `paper` when streamed.

What `auto` fits is fitted here, to the synthetic sample: by default, and every model by name.

Streamed: a generated MSI of 8192 x 8192 x 4 uint16 to 100 bands of int16 (13.4 GB) and one of
4096 x 4096, into ENVI and Zarr, each in a process of its own.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spectralift_cli.core import stages
from spectralift_cli.core.checkpoint import Checkpoint, save_checkpoint
from spectralift_cli.core.config import AUTO_MODELS, SynthConfig, TrainConfig
from spectralift_cli.core.cube import CubeMeta
from spectralift_cli.core.errors import SpectraliftWarning
from spectralift_cli.core.formats import create_cube
from spectralift_cli.core.inference import predict
from spectralift_cli.core.models.paper import build_paper
from spectralift_cli.core.operators.scaling import Scaling
from spectralift_cli.core.resources import available_cpus
from spectralift_cli.core.samples import write_sample
from spectralift_cli.core.sensors.response import Srf
from tests.bench.harness import run, scratch

SIDES = (4096, 8192)
ENDINGS = (".hdr", ".zarr")
_INFER = """
import sys
from pathlib import Path
from spectralift_cli.core.checkpoint import load_checkpoint
from spectralift_cli.core.config import InferConfig
from spectralift_cli.core.formats import open_cube
from spectralift_cli.core.inference import infer
model, msi, out = map(Path, sys.argv[1:])
with open_cube(msi) as reader:
    infer(load_checkpoint(model), reader, out, InferConfig())
"""


def in_memory() -> None:
    """Print pixels a second of `predict`."""
    print("\ndevice  threads  precision  batch   Mpixels/s  (4 -> 191 bands)")
    model = build_paper(4, 191)
    model.with_weights(model.initial_weights(torch.Generator().manual_seed(0)))
    msi = np.random.default_rng(0).random((1_000_000, 4), dtype=np.float32)
    places = [("cpu", n) for n in sorted({1, available_cpus()})]
    places += [("cuda", 1)] if torch.cuda.is_available() else []
    for device, threads in places:
        sizes = (1024, 2048, 4096, 8192) if device == "cpu" else (16_384, 65_536, 262_144)
        for precision in ("fp32", "bf16"):
            for size in sizes:
                best = np.inf
                for _ in range(3):
                    started = time.perf_counter()
                    predict(
                        model, msi, batch_size=size, precision=precision, threads=threads,
                        device=torch.device(device),
                    )  # fmt: skip
                    best = min(best, time.perf_counter() - started)
                speed = len(msi) / best / 1e6
                print(f"{device:6} {threads:8}  {precision:9} {size:7,} {speed:10.2f}", flush=True)


def fitted() -> None:
    """Print pixels a second of what preset auto fits to a synthetic scene, 4 to 191 bands."""
    threads = available_cpus()
    print(
        f"\ntrain          fitted          networks  parameters  Mpixels/s  (4 -> 191 bands, {threads} threads)"
    )
    rng = np.random.default_rng(0)
    with scratch(1e8) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", SpectraliftWarning)
        write_sample("synthetic", folder / "cube.h5", size=(144, 144, 191), seed=7)
        config = SynthConfig(srf_wavelengths="invented")
        scene = stages.synth(folder / "cube.h5", folder / "scene", config, cube_format="npy")
        for name in (None, *AUTO_MODELS):
            trained = stages.train(
                stages.TrainInputs(scene=scene.folder), folder / "m.safetensors",
                TrainConfig(model=name), overwrite=True,
            )  # fmt: skip
            model = trained.checkpoint.model()
            pixels = rng.random((1_000_000, model.inputs), dtype=np.float32)
            best = np.inf
            for _ in range(3):
                started = time.perf_counter()
                predict(model, pixels, threads=threads)
                best = min(best, time.perf_counter() - started)
            print(
                f"{'--model ' + name if name else 'default':22} {trained.checkpoint.model_name:14} "
                f"{_networks(trained.checkpoint.model_config):>8} {model.parameter_count:11,} "
                f"{len(pixels) / best / 1e6:10.2f}",
                flush=True,
            )


def _networks(config: Mapping[str, Any]) -> str:
    """Return how many networks a pixel passes through, of each member of an ensemble."""
    members = config.get("members", "")
    if isinstance(members, list):
        return " + ".join(_networks(member["config"]) or "0" for member in members)
    return str(members)


def write_inputs(folder: Path, side: int) -> tuple[Path, Path]:
    """Write a checkpoint of 100 int16 bands and an MSI; return their paths."""
    model = folder / "model.safetensors"
    weights = build_paper(4, 100).initial_weights(torch.Generator().manual_seed(0))
    checkpoint = Checkpoint(
        model_name="paper",
        model_config={"hidden_size": 64},
        weights=weights,
        train_config=TrainConfig(preset="paper"),
        srf=Srf(np.full((4, 100), 0.01), tuple("bgrn")),
        hsi=CubeMeta((64, 64, 100), np.dtype("int16"), scale=1e-4, nodata=-9999),
        used_bands=np.ones(100, bool),
        scaling=Scaling(0.0, 0.5),
    )
    save_checkpoint(checkpoint, model, overwrite=True)
    path = folder / f"msi{side}.npy"
    generator = np.random.default_rng(0)
    meta = CubeMeta((side, side, 4), np.dtype("uint16"), scale=1e-4, nodata=0)
    with create_cube(path, meta) as writer:
        for row in range(0, side, 256):
            block = generator.integers(0, 5000, (256, side, 4), dtype=np.uint16)
            writer.write(slice(row, row + 256), block)
        writer.commit()
    return model, path


def streamed() -> None:
    """Print time and peak memory of whole runs."""
    print("MSI              to      GB   seconds  Mpixels/s  peak MB")
    sides = [int(side) for side in os.environ.get("BENCH_SIDES", "").split()] or SIDES
    for side in sides:
        size = side * side * 100 * 2
        with scratch(size * 1.1 + side * side * 8 + 1e8) as folder:
            model, msi = write_inputs(folder, side)
            for ending in ENDINGS:
                out = folder / f"out{ending}"
                seconds, peak = run(sys.executable, "-c", _INFER, model, msi, out)
                print(
                    f"{side} x {side} x 4  {ending:5} {size / 1e9:5.1f} {seconds:9.1f} "
                    f"{side * side / seconds / 1e6:10.2f} {peak:8.0f}",
                    flush=True,
                )
                run("rm", "-rf", out, out.with_suffix(".img"))


if __name__ == "__main__":
    streamed()  # first, because a child's peak memory begins at its parent's
    in_memory()
    fitted()
