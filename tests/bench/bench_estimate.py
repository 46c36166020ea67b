"""`estimate` on pairs whose truth is known: three PSFs, two ratios, shifts up to 1.5 LR pixels, gains
0.8 to 1.2, 35 dB noise on both images; once with the response known, once without.

Indian Pines (145 x 145), the synthetic sample (256 x 256) and, where SPECTRALIFT_SCENES names their
folder, Jasper Ridge and Samson (ratio 4 alone: at 8 too few LR pixels are left). Columns: the largest
errors over axes or bands, and how many of the stated uncertainties cover the truth: 95 % intervals
of shifts and gains, twice the stated relative error of the kernel and of the response's rows.

    python -m tests.bench.bench_estimate [SCENE ...]
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np

from spectralift_cli.core.cube import FloatArray
from spectralift_cli.core.estimation.analysis import analyse
from spectralift_cli.core.estimation.parts import Findings
from spectralift_cli.core.formats import open_cube
from spectralift_cli.core.samples import indian_pines, synthetic
from tests.estimation import PSFS, Truth, known_pair

SEEDS = (0, 1)


def cubes() -> dict[str, tuple[FloatArray, FloatArray, tuple[int, ...]]]:
    """Return name -> values, wavelengths and ratios."""
    found = {}
    for name, cube in (("indian-pines", indian_pines()), ("synthetic", synthetic(256, 256, 60))):
        nm = cube.meta.wavelengths_nm
        assert nm is not None
        found[name] = (cube.units().astype(np.float64), nm, (4, 8))
    folder = os.environ.get("SPECTRALIFT_SCENES")
    if folder is None:
        print("SPECTRALIFT_SCENES is not set: the samples alone", file=sys.stderr)
        return found
    for name, file, side in (
        ("jasper-ridge", "jasper_ridge.mat", Path(folder, "jasper_ridge_wavelengths_nm.txt")),
        ("samson", "samson.npz", None),
    ):
        with open_cube(Path(folder, file), wavelengths=side) as reader:
            nm = reader.meta.wavelengths_nm
            assert nm is not None
            found[name] = (reader.read_units().astype(np.float64), nm, (4,))
    return found


class Tally:
    """Which acceptance figures hold, and which uncertainties cover the truth."""

    def __init__(self) -> None:
        self.held: dict[str, list[bool]] = defaultdict(list)
        self.covered: dict[str, list[bool]] = defaultdict(list)

    def add(self, truth: Truth, found: Findings, *, known: bool) -> list[float]:
        """Return the errors: shift, gain %, kernel %, least row correlation."""
        assert found.shift is not None and found.psf is not None and found.gain is not None
        label = "known" if known else "unknown"
        shift = np.abs(found.shift.shift_px - truth.shift_px)
        low, high = found.shift.interval_px.T
        self.covered[f"shift, {label} response"] += list(
            (low <= truth.shift_px) & (truth.shift_px <= high)
        )
        gain = np.abs(found.gain.gain / truth.gain - 1)
        low, high = found.gain.gain_interval.T
        self.covered[f"gain, {label} response"] += list((low <= truth.gain) & (truth.gain <= high))
        kernel = truth.kernel_error(found.psf.kernel)
        self.covered[f"PSF, {label} response"].append(kernel <= 2 * found.psf.relative_error)
        self.held[f"shift within 0.05 LR pixel, {label} response"].append(shift.max() <= 0.05)
        self.held[f"gains within 1 %, {label} response"] += list(gain <= 0.01)
        self.held[f"PSF within 15 %, {label} response"].append(kernel <= 0.15)
        row = 1.0
        if found.srf is not None:
            pairs = list(zip(found.srf.weights, truth.srf, strict=True))
            rows = np.array([np.corrcoef(a, b)[0, 1] for a, b in pairs])
            errors = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs]
            self.covered["response"] += list(np.array(errors) <= 2 * found.srf.relative_error)
            self.held["row correlation above 0.98"] += list(rows > 0.98)
            row = float(rows.min())
        return [float(shift.max()), 100 * float(gain.max()), 100 * kernel, row]


def main(names: list[str]) -> None:
    """Print a row a case, then the totals."""
    warnings.simplefilter("ignore")
    tally = Tally()
    print(
        f"{'scene':14} {'psf':10} ratio seed pixels | known: shift gain_% psf_% "
        "| unknown: shift gain_% psf_% corr | s"
    )
    for name, (values, nm, ratios) in cubes().items():
        if names and name not in names:
            continue
        for ratio in ratios:
            for psf in PSFS:
                for seed in SEEDS:
                    truth = known_pair(values, nm, psf=psf, ratio=ratio, seed=seed)
                    started = time.perf_counter()
                    found = analyse(truth.pair, truth.srf, ("shift", "psf", "gain"))
                    one = tally.add(truth, found, known=True)
                    blind = analyse(truth.pair, None, ("shift", "psf", "gain", "srf"))
                    two = tally.add(truth, blind, known=False)
                    print(
                        f"{name:14} {psf[0]:10} {ratio:5} {seed:4} {found.lr_pixels:6} |"
                        f" {one[0]:12.4f} {one[1]:6.2f} {one[2]:5.1f} |"
                        f" {two[0]:14.4f} {two[1]:6.2f} {two[2]:5.1f} {two[3]:4.3f} |"
                        f" {time.perf_counter() - started:.0f}",
                        flush=True,
                    )
    for title, rows in (("holds", tally.held), ("uncertainty covers", tally.covered)):
        for name, flags in rows.items():
            print(f"{title}: {name}: {sum(flags)} of {len(flags)} ({np.mean(flags):.0%})")


if __name__ == "__main__":
    main(sys.argv[1:])
