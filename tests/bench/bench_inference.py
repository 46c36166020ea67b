"""Inference of preset `paper`: pixels a second in memory, and time and peak memory when streamed.

Streamed: a generated MSI of 8192 x 8192 x 4 uint16 to 100 bands of int16 (13.4 GB) and one of
4096 x 4096, into ENVI and Zarr, each in a process of its own.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

from spectralift_cli.core.checkpoint import Checkpoint, save_checkpoint
from spectralift_cli.core.config import TrainConfig
from spectralift_cli.core.cube import CubeMeta
from spectralift_cli.core.formats import create_cube
from spectralift_cli.core.inference import predict
from spectralift_cli.core.models.paper import build_paper
from spectralift_cli.core.operators.scaling import Scaling
from spectralift_cli.core.resources import available_cpus
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
