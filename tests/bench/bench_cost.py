"""What whole mosaics cost: core-hours, GPU-hours, bytes and tasks, from rates measured here and now.

The MSI is 4 bands of uint16, the output 100 bands of int16, the network that of the preset `paper`.
A core's time is what the processor spent on `infer` with one thread, reading and writing included,
per pixel between two sizes, so that the program's start does not count.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from spectralift_cli.core.checkpoint import load_checkpoint
from spectralift_cli.core.cube import CubeMeta
from spectralift_cli.core.inference import CPU_CHUNK, predict
from spectralift_cli.core.jobs.executors import tasks_of
from spectralift_cli.core.jobs.plan import BlockGrid
from tests.bench.bench_inference import write_inputs
from tests.bench.harness import scratch

SIDES = (2048, 4096)  # both of the size that is written past the page cache
PIXELS = (10**9, 10**10, 10**11)
BANDS_IN, BANDS_OUT = 4, 100
CLUSTER_THREADS = 64
GPU_PIXELS = 20_000_000


def core_seconds(model: Path, msi: Path, out: Path) -> float:
    """Return the processor time of `infer` with one thread."""
    words = ["infer", model, msi, "-o", out, "--threads", "1", "--overwrite", "-q"]
    command = [sys.executable, "-m", "spectralift_cli", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command} failed with exit code {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def core_rate() -> float:
    """Return the pixels a second of one core."""
    with scratch(SIDES[-1] ** 2 * (BANDS_IN + BANDS_OUT) * 2 + 1e8) as folder:
        seconds = []
        for side in SIDES:
            model, msi = write_inputs(folder, side)
            runs = [core_seconds(model, msi, folder / "out.npy") for _ in range(3)]
            seconds.append(min(runs))
    return (SIDES[1] ** 2 - SIDES[0] ** 2) / (seconds[1] - seconds[0])


def gpu_rate() -> float | None:
    """Return the pixels a second of a GPU, transfers included, or None without one."""
    if not torch.cuda.is_available():
        return None
    with scratch(1e8) as folder:
        network = load_checkpoint(write_inputs(folder, 256)[0]).model()
    msi = np.random.default_rng(0).random((GPU_PIXELS, BANDS_IN), dtype=np.float32)
    best = np.inf
    for _ in range(3):
        started = time.perf_counter()
        predict(network, msi, device=torch.device("cuda"))
        best = min(best, time.perf_counter() - started)
    return GPU_PIXELS / best


def table(core: float, gpu: float | None) -> None:
    """Print the costs."""
    of_gpu = "not measured" if gpu is None else f"{gpu / 1e6:.1f} million pixels/s"
    print(f"one core: {core / 1e6:.2f} million pixels/s; a GPU: {of_gpu}\n")
    print("| pixels | core-hours | GPU-hours | read | written | blocks | Dask tasks |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for pixels in PIXELS:
        side = round(pixels**0.5)
        meta = CubeMeta((side, side, BANDS_OUT), np.dtype("int16"))
        blocks = BlockGrid.of(meta, CPU_CHUNK, 1).count
        hours = "not measured" if gpu is None else f"{pixels / gpu / 3600:.2f}"
        print(
            f"| 10^{len(str(pixels)) - 1} | {pixels / core / 3600:,.2f} | {hours} "
            f"| {pixels * BANDS_IN * 2 / 1e9:,.0f} GB | {pixels * BANDS_OUT * 2 / 1e9:,.0f} GB "
            f"| {blocks:,} | {len(tasks_of(range(blocks), CLUSTER_THREADS)):,} |"
        )
    print(f"\n(.npy or ENVI; tasks on a cluster of {CLUSTER_THREADS} threads)")


if __name__ == "__main__":
    table(core_rate(), gpu_rate())
