"""Training on a part of the pixels of LR-HSIs of any size: seconds and peak memory.

Generated LR-HSIs of 1,000 columns and 120 bands of int16, as files of 0.3 and 1.2 GB (2.4 GB as the
float32 values that training takes).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from spectralift_cli.core.cube import CubeMeta
from spectralift_cli.core.formats import create_cube
from tests.bench.harness import run, scratch

COLS, BANDS = 1000, 120
ROWS = (1250, 5000)
COUNTS = (20_000, 200_000)


def write_lr_hsi(path: Path, rows: int) -> Path:
    """Write mixtures of six spectra."""
    rng = np.random.default_rng(0)
    ends = np.cumsum(rng.normal(size=(6, BANDS)), axis=1)
    ends = ((ends - ends.min()) / np.ptp(ends) * 8000 + 500).astype(np.float32)
    nm = np.linspace(430, 930, BANDS)
    meta = CubeMeta(
        (rows, COLS, BANDS), np.dtype("int16"), wavelengths_nm=nm, scale=1e-4, nodata=-9
    )
    with create_cube(path, meta) as writer:
        for row in range(0, rows, 50):
            shares = rng.dirichlet(np.ones(6), (50, COLS)).astype(np.float32)
            writer.write(slice(row, row + 50), (shares @ ends).astype(np.int16))
        writer.commit()
    return path


def main() -> None:
    """Print a row for each image and number of pixels."""
    print("LR pixels   drawn   preset  seconds  peak MB")
    with scratch(1.2 * sum(ROWS) * COLS * BANDS * 2) as folder:
        for rows in ROWS:
            path = write_lr_hsi(folder / f"{rows}.npy", rows)
            for count in COUNTS:
                for preset in (("--effort", "fast"), ("--preset", "paper", "--epochs", "5")):
                    seconds, peak = run(
                        sys.executable, "-m", "spectralift_cli", "train", "--lr-hsi", path,
                        "--num-msi-bands", "4", "--max-pixels", str(count), *preset, "-q",
                        "--overwrite", "-o", folder / "m.safetensors",
                    )  # fmt: skip
                    name = "paper" if "paper" in preset else "auto"
                    print(
                        f"{rows * COLS:9,} {count:7,}   {name:6} {seconds:8.1f} {peak:8.0f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
