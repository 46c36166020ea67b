"""Refinement after `auto` on the accuracy suite: with the true PSF, without one, and with wrong ones.

Prints one row a case: gains over auto (PSNR in dB, SAM in %), the gate's decision and how far the
result is from both images. Wrong on purpose: a PSF 30 % too narrow or too wide, shifted by one HR
pixel, a 3 x 3 box; a pair registered two HR pixels off. Scenes as in `accuracy`; what auto infers is
kept beside them. `python -m tests.bench.bench_refine [REGEX OF CASES]`.
"""

from __future__ import annotations

import dataclasses
import re
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from tests.bench.accuracy import Case, degraded, suite

VARIANTS = ("true", "unknown", "narrow", "wide", "moved", "box", "pair")
WRONG = VARIANTS[2:]


def estimate(case: Case, folder: Path) -> tuple[Path, Path]:
    """Return the case's scene and what auto infers of it, made if it is not there."""
    from spectralift_cli.core import stages
    from spectralift_cli.core.config import TrainConfig

    scene = degraded(case, folder)
    sharp = folder / f"{case.name}-auto.npy"
    if not sharp.exists():
        model = folder / f"{case.name}-auto.safetensors"
        stages.train(
            stages.TrainInputs(scene=scene), model, TrainConfig(seed=0),
            execution=stages.Execution("cpu", 1), overwrite=True,
        )  # fmt: skip
        stages.infer(model, scene, sharp, execution=stages.Execution("cpu", 1))
    return scene, sharp


def refined(
    case: Case, scene_path: Path, sharp: Path, variant: str, out: Path
) -> tuple[float, ...]:
    """Refine with a PSF; return PSNR, SAM, seconds, reprojections and the applied share."""
    from spectralift_cli.core import stages
    from spectralift_cli.core.config import RefineConfig
    from spectralift_cli.core.formats import open_cube
    from spectralift_cli.core.formats.kernels import read_psf
    from spectralift_cli.core.operators.psf import make_psf
    from spectralift_cli.core.pairs import scene_placement
    from spectralift_cli.core.refinement.optics import Optical
    from spectralift_cli.core.refinement.refine import refine
    from spectralift_cli.core.refinement.relation import Images, Relation
    from spectralift_cli.core.scene import open_scene
    from spectralift_cli.core.sensors.srf import read_srf

    scene = open_scene(scene_path)
    true = read_psf(scene.path("psf"))
    psf = {
        "true": true, "pair": true, "unknown": None, "moved": np.roll(true, 1, axis=0),
        "narrow": make_psf("gaussian", 0.7 * case.sigma, 7),
        "wide": make_psf("gaussian", 1.3 * case.sigma, 7), "box": np.ones((3, 3)),
    }[variant]  # fmt: skip
    with open_cube(sharp) as cube, scene.open("lr_hsi") as lr, scene.open("hr_msi") as msi:
        srf = read_srf(scene.path("srf"), lr.meta.wavelengths_nm, lr.meta.fwhm_nm, lr.meta.bands)
        placement = scene_placement(scene, lr.meta, msi.meta)
        if variant == "pair":
            placement = dataclasses.replace(placement, origin_px=(2.0, 2.0))
        started = time.perf_counter()
        result = refine(
            Images(cube, lr, msi, Relation(srf, placement, Optical(psf))), out, RefineConfig(),
            overwrite=True,
        )  # fmt: skip
        seconds = time.perf_counter() - started
    scores = stages.evaluate(scene_path, out).to_json()
    return (
        scores["psnr_db"], scores["sam_deg"], seconds, result.before.lr, result.after.lr,
        result.before.msi, result.after.msi, result.verdict.factor,
    )  # fmt: skip


def main(words: list[str]) -> int:
    """Print the table and its summary; exit 1 where a case is worse than the bounds allow."""
    from spectralift_cli.core import stages

    warnings.simplefilter("ignore")
    cases = [case for case in suite() if re.search(words[0] if words else "", case.name)]
    folder = Path(tempfile.gettempdir()) / "spectralift-accuracy"
    folder.mkdir(exist_ok=True)
    gains: dict[str, list[float]] = {name: [] for name in VARIANTS}
    angles: dict[str, list[float]] = {name: [] for name in VARIANTS}
    print("case | auto dB, deg |", " | ".join(VARIANTS), "| applied | LR, MSI error per noise | s")
    for case in cases:
        scene, sharp = estimate(case, folder)
        auto = stages.evaluate(scene, sharp).to_json()
        cells, first = [], None
        with tempfile.TemporaryDirectory() as work:
            for name in VARIANTS:
                found = refined(case, scene, sharp, name, Path(work) / "out.npy")
                gains[name].append(found[0] - auto["psnr_db"])
                angles[name].append(100 * (found[1] / auto["sam_deg"] - 1))
                cells.append(f"{gains[name][-1]:+.2f} {angles[name][-1]:+.1f}")
                first = first or found
        assert first is not None
        print(
            f"{case.name} | {auto['psnr_db']:.2f} {auto['sam_deg']:.2f} | {' | '.join(cells)} | "
            f"{first[7]:.2f} | {first[3]:.2f} > {first[4]:.2f}, {first[5]:.2f} > {first[6]:.2f} | "
            f"{first[2]:.1f}", flush=True,
        )  # fmt: skip
    for name in VARIANTS:
        print(
            f"{name}: mean {statistics.fmean(gains[name]):+.3f} dB, worst {min(gains[name]):+.3f}; "
            f"SAM mean {statistics.fmean(angles[name]):+.2f} %, worst {max(angles[name]):+.2f} %"
        )
    wrong = [gain for name in WRONG for gain in gains[name]]
    print(f"wrong on purpose: mean {statistics.fmean(wrong):+.3f} dB, worst {min(wrong):+.3f} dB")
    return int(min(min(wrong), min(gains["true"])) < -0.1 or max(angles["true"]) > 2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
