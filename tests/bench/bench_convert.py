"""Converting a 4 GB ENVI cube to GeoTIFF, HDF5 and Zarr: wall time and peak memory.

The cube is a sparse file with a written diagonal of rows, so that it costs little disk to make.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.bench.harness import run, scratch

ROWS, COLS, BANDS = 5000, 2000, 200  # 4.0 GB of int16
HEADER = f"""ENVI
samples = {COLS}
lines = {ROWS}
bands = {BANDS}
header offset = 0
data type = 2
interleave = {{interleave}}
byte order = 0
wavelength units = Nanometers
wavelength = {{{{ {", ".join(f"{400 + 10 * b}" for b in range(BANDS))} }}}}
"""


def make(folder: Path, interleave: str) -> Path:
    """Write the cube; return its header."""
    header = folder / f"big_{interleave}.hdr"
    header.write_text(HEADER.format(interleave=interleave))
    rng = np.random.default_rng(0)
    with header.with_suffix(".img").open("wb") as file:
        file.truncate(ROWS * COLS * BANDS * 2)
        for offset in range(0, ROWS * COLS * BANDS * 2, 2**26):
            file.seek(offset)
            file.write(rng.integers(0, 10_000, 2**12, dtype=np.int16).tobytes())
    return header


def main() -> None:
    """Print a row for each conversion."""
    print("from  to    seconds   peak MB   MB/s")
    with scratch(6e9) as folder:
        for interleave in ("bsq", "bip"):
            source = make(folder, interleave)
            for ending in (".tif", ".h5", ".zarr", ".hdr"):
                target = folder / f"out{ending}"
                seconds, peak = run("spectralift", "convert", source, target, "-q")
                size = ROWS * COLS * BANDS * 2 / 1e6
                print(
                    f"{interleave:5} {ending:5} {seconds:7.1f} {peak:9.0f} {size / seconds:6.0f}",
                    flush=True,
                )
                run("rm", "-rf", target, target.with_suffix(".img"))


if __name__ == "__main__":
    main()
