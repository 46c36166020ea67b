"""Refinement of a large image: seconds and peak memory of `spectralift refine`.

A mixture of six smooth maps and random spectra, 4000 x 4000 x 100 at ratio 4 (BENCH_SIDE changes the
side, BENCH_MEMORY=1GB is passed on as --memory), int16 in ENVI files. What is refined is the truth
with other spectra.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

import spectralift_cli as sl
from spectralift_cli.core.formats.kernels import write_psf
from spectralift_cli.core.observation import Observation
from spectralift_cli.core.operators.psf import make_psf
from spectralift_cli.core.placement import Placement
from tests.bench.harness import run, scratch

RATIO, BANDS, MATERIALS, MSI_BANDS = 4, 100, 6, 4
_STRIP = 64
_ROUGHNESS = 24  # sides of the image in radians of a wave of one


def maps(side: int, rng: np.random.Generator) -> np.ndarray:
    """Return (side, side, MATERIALS) float32 between 0 and 1: waves of random direction."""
    at = np.linspace(0, _ROUGHNESS, side, dtype=np.float32)
    made = np.empty((side, side, MATERIALS), np.float32)
    for one in range(MATERIALS):
        total = np.zeros((side, side), np.float32)
        for _ in range(4):
            down, across, phase = rng.uniform(-8, 8, 3).astype(np.float32)
            total += np.sin(at[:, None] * down + at[None] * across + phase)
        made[:, :, one] = 0.5 + total / 8
    return made


def write_rows(
    path: Path, shape: tuple[int, int, int], rows_of: Callable[[slice], np.ndarray]
) -> None:
    """Write a cube of int16 by rows; `rows_of(rows)` gives units."""
    meta = sl.CubeMeta(shape, np.dtype("int16"), scale=1e-4)
    with sl.create_cube(path, meta) as writer:
        for start in range(0, shape[0], _STRIP):
            rows = slice(start, min(start + _STRIP, shape[0]))
            units = rows_of(rows)
            writer.write(rows, np.rint(units * 1e4).astype(np.int16))
        writer.commit()


def make(folder: Path, side: int) -> None:
    """Write the images, the response and the PSF."""
    rng = np.random.default_rng(1)
    spectra = rng.uniform(0.02, 0.3, (MATERIALS, BANDS)).astype(np.float32)
    wrong = spectra + rng.normal(0, 0.01, (MATERIALS, BANDS)).astype(np.float32)
    srf = np.repeat(np.eye(MSI_BANDS, dtype=np.float32), BANDS // MSI_BANDS, axis=1)
    srf *= MSI_BANDS / BANDS
    truth = maps(side, rng)
    psf = make_psf("gaussian", 1.7, 5)
    small = Placement((side // RATIO,) * 2, (side, side), (float(RATIO),) * 2)
    seen = Observation(psf, small)(truth)
    write_psf(folder / "psf.csv", psf)
    np.save(folder / "srf.npy", srf)

    def noisy(values: np.ndarray, scale: float) -> np.ndarray:
        return values + rng.normal(0, scale, values.shape).astype(np.float32)

    msi = spectra @ srf.T
    write_rows(
        folder / "lr.hdr", (*small.lr_shape, BANDS), lambda r: noisy(seen[r] @ spectra, 2e-3)
    )
    write_rows(folder / "msi.hdr", (side, side, MSI_BANDS), lambda r: noisy(truth[r] @ msi, 1e-3))
    write_rows(folder / "sharp.hdr", (side, side, BANDS), lambda r: truth[r] @ wrong)


def main() -> None:
    """Make the images, refine, and print what it took."""
    side = int(os.environ.get("BENCH_SIDE", "4000"))
    with scratch(4 * side**2 * BANDS + side**2 * 64) as folder:
        # in a process of its own: Linux counts the peak of a parent as a child's
        run(sys.executable, "-m", "tests.bench.bench_refine_large", "--make", folder, str(side))
        files = ("--lr-hsi", "lr.hdr", "--hr-msi", "msi.hdr", "--srf-file", "srf.npy")
        words = ["refine", "sharp.hdr", *files, "--psf-file", "psf.csv", "-o", "refined.hdr"]
        if limit := os.environ.get("BENCH_MEMORY"):
            words += ["--memory", limit]
        os.chdir(folder)
        seconds, peak_mb = run(sys.executable, "-m", "spectralift_cli", *words)
        os.chdir("/")
        print(f"{side} x {side} x {BANDS} at {RATIO}x: {seconds:.0f} s, peak {peak_mb:,.0f} MB")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        make(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
