"""The promise of `infer --memory`, kept by real processes on an image of wide rows."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from spectralift_cli.core.checkpoint import save_checkpoint
from spectralift_cli.core.cube import Cube
from spectralift_cli.core.footprint import Footprint
from spectralift_cli.core.formats import open_cube, write_cube
from spectralift_cli.core.operators.scaling import Scaling
from tests.bench.harness import measure
from tests.inverters import make_checkpoint

MSI_BANDS = 12  # rows that are read ahead take more than the promise leaves for them
ROWS, COLS, BANDS = 18, 60_000, 100  # a row of the output has 12 MB, the whole 216 MB


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    checkpoint = make_checkpoint(
        BANDS, MSI_BANDS, hidden=16, scaling=Scaling(0.1, 0.8), dtype=np.dtype("int16"), scale=1e-4
    )
    # known levels: those of the image are compared with them before anything is computed
    levels = np.tile(0.9 * np.array([0.01, 0.25, 0.5, 0.75, 0.99]), (MSI_BANDS, 1))
    save_checkpoint(dataclasses.replace(checkpoint, levels=levels), folder / "model.safetensors")
    stored = np.random.default_rng(1).integers(0, 9000, (ROWS, COLS, MSI_BANDS)).astype(np.uint16)
    write_cube(folder / "msi.npy", Cube.of(stored, scale=1e-4))
    return folder


def infer(folder: Path, *more: object) -> tuple[int, str, float]:
    """Return exit code, stderr and peak MB of a process that writes a cube or refuses to."""
    words = ["infer", folder / "model.safetensors", folder / "msi.npy", "-q", *more]
    code, said, _, peak_mb = measure(
        sys.executable, "-m", "spectralift_cli", *map(str, words), stderr=subprocess.PIPE
    )
    return code, said, peak_mb


@pytest.fixture(scope="module")
def least_mb(folder: Path) -> int:
    """What the refusal of a promise that cannot be kept says is needed."""
    code, said, _ = infer(folder, "-o", folder / "x.npy", "--memory", "100MB")
    assert code == 3
    assert not (folder / "x.npy").exists()
    error, hint = said.splitlines()
    found = re.fullmatch(
        r"error: this inference takes (\d+) MB of memory at least, (\d+) of them Python, PyTorch and "
        r"the model; --memory promises 100",
        error,
    )
    assert found is not None, error
    assert hint == f"  hint: give --memory {found[1]}MB or more"
    assert int(found[2]) < int(found[1])
    return int(found[1])


def test_promise_is_kept(folder: Path, least_mb: int) -> None:
    code, said, free_mb = infer(folder, "-o", folder / "free.npy", "--threads", 8)
    assert code == 0, said
    promised = least_mb + 5  # what a program of this size takes differs a little from run to run
    for name, more in (("x.npy", ()), ("y.npy", ("--resume",))):
        code, said, peak_mb = infer(
            folder, "-o", folder / name, "--memory", f"{promised}MB", "--threads", 8, *more
        )
        assert code == 0, said
        assert peak_mb <= promised < free_mb
        assert (folder / name).read_bytes() == (folder / "free.npy").read_bytes()


def test_promise_holds_for_a_writer_that_buffers(folder: Path, least_mb: int) -> None:
    promised = least_mb + 100
    code, said, peak_mb = infer(folder, "-o", folder / "x.tif", "--memory", f"{promised}MB")
    assert code == 0, said
    assert peak_mb <= promised


def test_promise_counts_the_blocks_that_gdal_keeps(tmp_path: Path) -> None:
    with open_cube(
        write_cube(tmp_path / "x.tif", Cube.of(np.ones((64, 48, 4), np.uint16)))[0]
    ) as image:
        assert image.held_bytes == image.meta.nbytes
        footprint = Footprint.of(
            make_checkpoint(BANDS, 4).empty_model(), image, image.meta, chunk=512, workers=1
        )
    without = dataclasses.replace(footprint, held_bytes=0)
    cut = footprint.widest
    assert footprint.needed(cut) - without.needed(cut) == 64 * 48 * 4 * 2


def test_dry_run_tells_size_memory_and_time(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "spectralift_cli", "infer", str(folder / "model.safetensors"),
         str(folder / "msi.npy"), "-o", str(folder / "z.npy"), "--dry-run", "--json",
         "--memory", "500MB"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    plan = json.loads(done.stdout)["plan"]
    assert plan["size_bytes"] == ROWS * COLS * BANDS * 2
    assert plan["memory_bytes"] < 500e6
    pixels = plan["trial_seconds"] * plan["trial_pixels_per_s"]
    assert pixels == pytest.approx(ROWS * COLS)
    assert not (folder / "z.npy").exists()
