"""Inference of whole mosaics: speed beside its ceilings, workers, shards, a Dask cluster.

An MSI of uint16 with 4 bands becomes 100 bands of int16. `BENCH_SIDES="4096 8192"` chooses the sides
of the images that are written to a file (default 8192: 13 GB), `BENCH_SINK=16384` that of the one
whose blocks are only counted and checksummed, 0 leaves it out; `BENCH_SHARED="2048 4096 8192"` those
that are shared between processes. What a run costs at the least is the program's start, about a
second and a half of importing PyTorch: two workers are compared where that is small beside the work.
A worker of one thread computes on one, and reads, checks and writes on others: it is measured on one
processor, and also where it may use the second. The disk's ceiling is the faster of dd through
the page cache and past it.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import multiprocessing
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from spectralift_cli.core.checkpoint import load_checkpoint
from spectralift_cli.core.config import InferConfig
from spectralift_cli.core.cube import AnyArray, CubeMeta
from spectralift_cli.core.cubeio import CubeReader
from spectralift_cli.core.engine import WriteBehind
from spectralift_cli.core.inference import predict, prepare
from spectralift_cli.core.resources import available_cpus, peak_memory_bytes
from tests.bench.bench_inference import write_inputs
from tests.bench.harness import run, scratch

BANDS = 100
SHARED_SIDES = "2048 4096 8192"
SHARDS_TO = 2048  # the largest side at which shards, whose times only add up, are run in all orders
RATE_PIXELS = 2_000_000
# runs a program on one of the processors
_ON_ONE = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.execv(sys.argv[1], sys.argv[1:])
"""


class GeneratedMsi(CubeReader):
    """An MSI that is computed as it is read: no disk is large enough for all that is wanted."""

    def __init__(self, side: int) -> None:
        meta = CubeMeta((side, side, 4), np.dtype("uint16"), scale=1e-4, nodata=0)
        super().__init__(Path("generated"), meta)
        row = np.random.default_rng(0).integers(1, 5000, (side, 4), dtype=np.uint16)
        self._row = row

    @property
    def files(self) -> tuple[Path, ...]:
        return ()

    def _read(self, start: int, stop: int) -> AnyArray:
        shifts = np.arange(start, stop, dtype=np.uint16)[:, None, None]
        return self._row[None] + shifts % 7

    def close(self) -> None:
        pass


def in_memory_rate(model: Path, threads: int | None = None) -> float:
    """Return the pixels a second of the network alone, all in memory; by all threads if not told."""
    msi = np.random.default_rng(0).random((RATE_PIXELS, 4), dtype=np.float32)
    network = load_checkpoint(model).model()
    best = np.inf
    for _ in range(3):
        started = time.perf_counter()
        predict(network, msi, threads=threads)
        best = min(best, time.perf_counter() - started)
    return RATE_PIXELS / best


def dd_rate(folder: Path, size: int) -> float:
    """Return the bytes a second at which dd writes zeros to a file on the same disk, synced.

    Through the page cache or past it, whichever is faster.
    """
    size = min(size, 4 * 10**9)
    command = ["dd", "if=/dev/zero", f"of={folder / 'zeros'}", "bs=4M", f"count={size // 2**22}",
               "conv=fdatasync"]  # fmt: skip
    best = 0.0
    for more in ([], ["oflag=direct"]):  # the latter is not known everywhere
        started = time.perf_counter()
        done = subprocess.run([*command, *more], check=False, capture_output=True)
        if done.returncode == 0:
            best = max(best, size / (time.perf_counter() - started))
        (folder / "zeros").unlink(missing_ok=True)
    if not best:
        sys.exit(f"dd cannot write in {folder}")
    return best


def infer_command(model: Path, msi: Path, out: Path, *more: object) -> list[str]:
    words = ["infer", model, msi, "-o", out, "--overwrite", "-q", *more]
    return [sys.executable, "-m", "spectralift_cli", *map(str, words)]


def to_files(sides: list[int]) -> None:
    print(
        "\nto a file           GB   seconds  Mpixels/s  network  of the network  of the disk  "
        "of the lower  peak MB\n"
        "(network: its own Mpixels/s in memory, the mean of just before and just after)"
    )
    for side in sides:
        size = side * side * BANDS * 2
        with scratch(size * 1.4 + side * side * 8 + 1e8) as folder:
            model, msi = write_inputs(folder, side)
            disk = dd_rate(folder, size)
            before = in_memory_rate(model)
            for more in ((), ("--resume",)):
                seconds, peak = run(*infer_command(model, msi, folder / "out.hdr", *more))
                after = in_memory_rate(model)  # a shared machine is now faster, now slower
                network, before = (before + after) / 2, after
                rate = side * side / seconds
                ceiling = min(network, disk / (BANDS * 2))
                print(
                    f"{side} {' '.join(more):9} {size / 1e9:7.1f} {seconds:9.1f} {rate / 1e6:10.2f} "
                    f"{network / 1e6:8.2f} {rate / network:15.0%} {rate * BANDS * 2 / disk:12.0%} "
                    f"{rate / ceiling:13.0%} {peak:8.0f}",
                    flush=True,
                )
            print(f"  dd {disk / 1e6:.0f} MB/s: {disk / BANDS / 2e6:.2f} Mpixels/s")


def to_sink(side: int) -> None:
    """Count and checksum blocks of an image whose cube no disk here could hold."""
    with scratch(1e8) as folder:
        model, _ = write_inputs(folder, 256)
        before = in_memory_rate(model)
        # in a process of its own, whose peak memory is that of the inference
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            seconds, checksum, peak = pool.submit(infer_to_nothing, model, side).result()
        network = (before + in_memory_rate(model)) / 2
    rate = side * side / seconds
    print(
        f"\nto a checksum: {side} x {side}, {seconds:.1f} s, {rate / 1e6:.2f} Mpixels/s, "
        f"{rate / network:.0%} of the network's {network / 1e6:.2f}, peak {peak / 1e6:.0f} MB, "
        f"crc32 {checksum:08x}"
    )


def infer_to_nothing(model: Path, side: int) -> tuple[float, int, int]:
    """Return the seconds, the checksum and the peak memory in bytes of an inference to nowhere."""
    inference = prepare(
        load_checkpoint(model), GeneratedMsi(side), InferConfig(), checks_levels=False
    )
    checksum, pixels, started = 0, 0, time.perf_counter()

    def count(rows: slice, values: AnyArray) -> None:
        nonlocal checksum, pixels
        checksum = zlib.crc32(values.reshape(-1).view(np.uint8).data, checksum)
        pixels += (rows.stop - rows.start) * side

    with inference.computing() as compute, WriteBehind(count) as behind:
        for rows, values in inference.stream(compute, slice(0, side)):
            behind.write(rows, values)
    seconds = time.perf_counter() - started
    if pixels != side * side:
        sys.exit(f"{pixels:,} of {side * side:,} pixels came out")
    return seconds, checksum, peak_memory_bytes()


@contextlib.contextmanager
def dask_cluster(folder: Path) -> Iterator[Path]:
    """Run a scheduler and two workers of one thread; yield the scheduler file."""
    file = folder / "scheduler.json"
    words = [["scheduler", "--port", "0"], *[["worker", "--nthreads", "1", "--no-nanny"]] * 2]
    started = []
    try:
        for extra in words:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "dask", *extra, "--host", "127.0.0.1", "--no-dashboard",
                     "--scheduler-file", str(file)],
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )
            )  # fmt: skip
            while not file.exists():
                time.sleep(0.1)
        time.sleep(5)  # until the workers have come
        yield file
    finally:
        for process in started:
            process.kill()
            process.wait()


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shared(side: int, scheduler: Path) -> None:
    """Compare one single-threaded process with two, with a cluster and with shards."""
    size = side * side * BANDS * 2
    with scratch(size * 1.2 + side * side * 8 + 1e8) as folder:
        model, msi = write_inputs(folder, side)
        out = folder / "out.npy"
        disk = size / dd_rate(folder, size)
        network = [side * side / in_memory_rate(model, threads) for threads in (1, 2)]
        print(
            f"\n{side} x {side}, one thread a process         seconds  times one  same bytes\n"
            f"  (the network alone {network[0]:.1f} s, with two threads {network[1]:.1f} s; "
            f"dd alone {disk:.1f} s)"
        )

        def timed(label: str, *commands: list[str]) -> None:
            seconds = sum(run(*command)[0] for command in commands)
            found = sha256_of(out)
            out.unlink()
            out.with_name("out.npy.json").unlink()
            first.setdefault("seconds", seconds)
            first.setdefault("sha256", found)
            same = "yes" if found == first["sha256"] else "NO"
            ratio = float(first["seconds"]) / seconds
            print(f"{label:36} {seconds:9.1f} {ratio:10.2f}  {same:>10}", flush=True)
            if same == "NO":
                sys.exit(1)

        first: dict[str, float | str] = {}
        one = infer_command(model, msi, out, "--workers", 1, "--threads", 1)
        if hasattr(os, "sched_setaffinity"):
            timed("one worker, one processor", [sys.executable, "-c", _ON_ONE, *one])
        timed("one worker, all processors", one)
        timed("two workers", infer_command(model, msi, out, "--workers", 2, "--threads", 2))
        timed("Dask, two workers", infer_command(model, msi, out, "--scheduler-file", scheduler))
        timed("plain, one thread", infer_command(model, msi, out, "--threads", 1))
        timed("plain, all threads", infer_command(model, msi, out))
        for order in itertools.permutations((1, 2, 3)) if side <= SHARDS_TO else ():
            commands = [infer_command(model, msi, out, "--shard", f"{i}/3") for i in order]
            timed(f"shards {' '.join(map(str, order))}, one after another", *commands)


if __name__ == "__main__":
    print(f"{available_cpus()} processors, PyTorch {torch.__version__}")
    with scratch(1e6) as place, dask_cluster(place) as scheduler_file:
        for shared_side in os.environ.get("BENCH_SHARED", SHARED_SIDES).split():
            shared(int(shared_side), scheduler_file)
    to_files([int(side) for side in os.environ.get("BENCH_SIDES", "8192").split()])
    if sink := int(os.environ.get("BENCH_SINK", "16384")):
        to_sink(sink)
