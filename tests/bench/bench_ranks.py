"""Training of preset `paper` by several processes that torchrun starts: steps a second, and the bytes.

24,320 LR pixels, one thread a process; beside it one process with as many threads.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from spectralift_cli.core.cube import Cube
from spectralift_cli.core.formats import write_cube
from spectralift_cli.core.resources import available_cpus
from tests.bench.bench_training import response, spectra
from tests.bench.harness import scratch

ROWS, COLS, EPOCHS = 152, 160, 60


def measure(folder: Path, processes: int, threads: int) -> tuple[float, str]:
    """Return steps a second and a digest of the model."""
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--nproc-per-node", str(processes)]
        start += ["--master-addr", "127.0.0.1", "--master-port", "29577", "-m"]
    words = ["--lr-hsi", "lr.npy", "--srf-file", "srf.csv", "--preset", "paper", "--device", "cpu"]
    words += ["--epochs", str(EPOCHS), "--threads", str(threads), "-o", "m.safetensors"]
    done = subprocess.run(
        [*start, "spectralift_cli", "train", *words, "--overwrite", "--json", "-q"],
        cwd=folder, env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    digest = hashlib.sha256((folder / "m.safetensors").read_bytes()).hexdigest()[:12]
    return json.loads(done.stdout)["pace"]["steps_per_s"], digest


def main() -> None:
    """Print a row for each number of processes and threads."""
    cpus = available_cpus()
    counts = sorted({1, 2, cpus})
    with scratch(1e8) as folder:
        values = spectra(ROWS * COLS).reshape(ROWS, COLS, -1)
        write_cube(folder / "lr.npy", Cube.of(values))
        np.savetxt(folder / "srf.csv", response(values.shape[2]), delimiter=",")
        print(f"{ROWS * COLS:,} LR pixels, {EPOCHS} steps, {cpus} processors")
        print("processes  threads each  steps/s  bytes")
        for processes, threads in [(1, n) for n in counts] + [(n, 1) for n in counts if n > 1]:
            rate, digest = measure(folder, processes, threads)
            print(f"{processes:9} {threads:13} {rate:8.1f}  {digest}", flush=True)


if __name__ == "__main__":
    main()
