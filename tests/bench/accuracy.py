"""Accuracy of the presets on the suite, and of `refine` after `auto`: `python -m tests.bench.accuracy`, or `make bench-accuracy`.

Scenes: Indian Pines always (from the samples extra), the others where the folder SPECTRALIFT_SCENES
holds them. Every case is degraded by the core's own synthesis, fitted over several seeds and scored
against its ground truth; no training sees the ground truth. Rows are added to a CSV as they are
made, and rows that are there already are not made again, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

SCENES = {
    "indian-pines": "",
    "jasper-ridge": "jasper_ridge",
    "abu-beach": "abu_beach_v73",
    "samson": "samson",
    "hysu": "dlr_hysu",
    "cave-balloons": "cave_balloons",
    "hyperion-paris": "paris_hyperion_hs_30m",
}
_SUFFIXES = (".hdr", ".mat", ".npz", ".npy", ".h5")
_VARIABLES = {"abu-beach": "data"}
_SNR_DB = {4: 35.0, 8: 30.0, 16: 25.0, 32: 20.0}
_KEY = ("case", "preset", "effort", "seed")
_SCORES = ("psnr_db", "sam_deg", "ergas", "ssim", "train_s")
_COLUMNS = (*_KEY, *_SCORES, "lr_pixels", "chosen")
ERGAS_NOTE = "PSNR and SSIM on floats in [0, 1], SAM in degrees, ERGAS at the case's ratio"


@dataclass(frozen=True)
class Case:
    """One degradation of one scene."""

    scene: str
    ratio: int
    bands: int
    sigma: float
    boundary: str

    @property
    def name(self) -> str:
        """A name that is also a file's."""
        borders = "" if self.boundary == "zero" else f"-{self.boundary}"
        return f"{self.scene}-{self.ratio}x-{self.bands}b-s{self.sigma:g}{borders}"


def suite() -> list[Case]:
    """Return the cases of every scene that can be found."""
    kinds = [(4, 4, 3.4, "zero"), (4, 4, 1.7, "reflect"), (8, 4, 3.4, "zero"),
             (4, 8, 3.4, "zero"), (4, 1, 3.4, "zero")]  # fmt: skip
    cases = [Case(scene, *kind) for scene in SCENES for kind in kinds]
    cases += [Case(scene, 16, 4, 3.4, "zero") for scene in ("cave-balloons", "abu-beach")]
    cases += [Case("cave-balloons", 32, 4, 3.4, "zero")]
    return [case for case in cases if case.scene == "indian-pines" or _find(case.scene)]


def _find(scene: str) -> Path | None:
    folder = os.environ.get("SPECTRALIFT_SCENES")
    if not folder:
        return None
    found = (Path(folder) / (SCENES[scene] + suffix) for suffix in _SUFFIXES)
    return next((path for path in found if path.is_file()), None)


def degraded(case: Case, folder: Path) -> Path:
    """Return the case's scene, made in `folder` if it is not there."""
    from spectralift_cli.core import stages
    from spectralift_cli.core.config import SynthConfig
    from spectralift_cli.core.samples import write_sample

    made = folder / case.name
    if made.exists():
        return made
    source = _find(case.scene)
    if source is None:
        source = folder / "indian-pines.npy"
        if not source.exists():
            write_sample("indian-pines", source)
    config = SynthConfig(
        protocol="physical", sigma=case.sigma, downsample_ratio=case.ratio,
        snr_spatial=_SNR_DB[case.ratio], num_msi_bands=case.bands, boundary=case.boundary,
        srf_wavelengths="invented",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stages.synth(
            source, made, config, cube_format="npy",
            reading=stages.Reading(var=_VARIABLES.get(case.scene) if source.suffix == ".mat" else None),
        )  # fmt: skip
    return made


def measure(case: Case, preset: str, effort: str, seed: int, folder: str) -> dict[str, Any]:
    """Train on a case, infer, score; return one row of the CSV.

    Seconds are those of training alone, selection and distillation included, imports not.
    """
    import torch

    from spectralift_cli.core import stages
    from spectralift_cli.core.config import TrainConfig
    from spectralift_cli.core.refining import RefineInputs, infer_refined

    torch.set_num_threads(1)
    # the first call of an optimiser or a decomposition loads libraries, as an import does
    torch.linalg.eigh(torch.eye(3, dtype=torch.float64))
    scene = degraded(case, Path(folder))
    options: dict[str, Any] = {"preset": "auto" if preset == "refine" else preset, "seed": seed}
    if preset != "paper":
        options["effort"] = effort
    with tempfile.TemporaryDirectory() as work, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, sharp = Path(work) / "model.safetensors", Path(work) / "sharp.npy"
        started = time.perf_counter()
        trained = stages.train(
            stages.TrainInputs(scene=scene), model, TrainConfig(**options),
            execution=stages.Execution("cpu", int(os.environ.get("BENCH_THREADS", "2"))),
        )  # fmt: skip
        seconds = time.perf_counter() - started
        if preset == "refine":
            infer_refined(
                model, scene, sharp, inputs=RefineInputs(scene=scene),
                execution=stages.Execution("cpu", 1),
            )  # fmt: skip
        else:
            stages.infer(model, scene, sharp, execution=stages.Execution("cpu", 1))
        scores = stages.evaluate(scene, sharp).to_json()
    return {
        "case": case.name, "preset": preset, "effort": effort, "seed": seed,
        **{name: f"{scores[name]:.4f}" for name in _SCORES[:-1]},
        "train_s": f"{seconds:.2f}", "lr_pixels": trained.plan.valid_pixels,
        "chosen": getattr(trained.checkpoint, "choice", None) or trained.plan.model,
    }  # fmt: skip


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV of measurements."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _append(path: Path, row: dict[str, Any]) -> None:
    fresh = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        if fresh:
            writer.writeheader()
        writer.writerow(row)


@dataclass(frozen=True)
class Mean:
    """A case's mean over seeds, and the spread of its PSNR."""

    scores: dict[str, float]
    spread_db: float | None
    chosen: str

    @property
    def spread(self) -> str:
        """The spread in words, empty for a single seed."""
        return "" if self.spread_db is None else f" ± {self.spread_db:.2f}"


def means(rows: Sequence[dict[str, str]], preset: str, effort: str) -> dict[str, Mean]:
    """Return the mean of every case of a preset."""
    found: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        if row["preset"] == preset and row["effort"] == effort:
            found.setdefault(row["case"], []).append(row)
    return {
        case: Mean(
            {name: statistics.fmean(float(row[name]) for row in some) for name in _SCORES},
            statistics.pstdev([float(row["psnr_db"]) for row in some]) if len(some) > 1 else None,
            some[0]["chosen"],
        )
        for case, some in found.items()
    }


def _scene_of(case: str) -> str:
    return re.split(r"-\d+x-", case)[0]


def summary(paper: dict[str, Mean], auto: dict[str, Mean]) -> Iterator[str]:
    """Yield the lines of a Markdown table of differences: many bands and one, with and without CAVE."""
    yield "| cases | PSNR (mean of scene means) | SAM | ERGAS | median PSNR | worst PSNR | worst SAM |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for title, one, cave in (
        ("3 or more bands", False, True), ("3 or more bands, without CAVE", False, False),
        ("1 band", True, True), ("1 band, without CAVE", True, False),
    ):  # fmt: skip
        cases = [
            case for case in paper
            if case in auto and ("-1b-" in case) == one and (cave or "cave" not in case)
        ]  # fmt: skip
        if not cases:
            continue
        gain = {c: auto[c].scores["psnr_db"] - paper[c].scores["psnr_db"] for c in cases}
        change = {
            name: {c: auto[c].scores[name] / paper[c].scores[name] - 1 for c in cases}
            for name in ("sam_deg", "ergas")
        }
        worst, worst_sam = min(gain, key=gain.__getitem__), max(
            change["sam_deg"], key=change["sam_deg"].__getitem__
        )  # fmt: skip
        yield (
            f"| {title} ({len(cases)}) | {_by_scene(gain):+.2f} dB "
            f"| {_by_scene(change['sam_deg']):+.1%} | {_by_scene(change['ergas']):+.1%} "
            f"| {statistics.median(gain.values()):+.2f} dB | {gain[worst]:+.2f} dB ({worst}) "
            f"| {change['sam_deg'][worst_sam]:+.1%} ({worst_sam}) |"
        )


def _by_scene(values: dict[str, float]) -> float:
    scenes: dict[str, list[float]] = {}
    for case, value in values.items():
        scenes.setdefault(_scene_of(case), []).append(value)
    return statistics.fmean(statistics.fmean(some) for some in scenes.values())


def table(rows: Sequence[dict[str, str]], efforts: Sequence[str], note: str = "") -> str:
    """Return the Markdown document of all measurements."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    lines = [
        "# Accuracy of `auto` against `paper`",
        "",
        f"Made by `make bench-accuracy` at commit {commit or 'unknown'}. Means over the seeds; "
        f"{ERGAS_NOTE}.",
        "Seconds are those of training alone, as wall time after the imports.",
    ]
    lines += [note] if note else []
    paper = means(rows, "paper", "")
    for effort in efforts:
        auto = means(rows, "auto", effort)
        if not auto:
            continue
        both = [case.name for case in suite() if case.name in auto]
        after = means(rows, "refine", effort)
        seconds = sorted(auto[case].scores["train_s"] for case in both)
        lines += ["", f"## `--effort {effort}`", "", *summary(paper, auto), ""]
        if after:
            lines += ["Then `refine`, against `paper`:", "", *summary(paper, after), ""]
            lines += ["Then `refine`, against `auto`:", "", *summary(auto, after), ""]
        lines += [
            f"Training: median {statistics.median(seconds):.1f} s, longest {seconds[-1]:.1f} s.",
            "",
        ]
        lines += [
            "| case | PSNR paper | auto | refine | SAM paper | auto | refine | ERGAS paper | auto "
            "| refine | SSIM paper | auto | refine | s paper | auto | chosen |",
            "| --- " * 16 + "|",
        ]
        for case in both:
            one = auto[case]
            other, third = paper.get(case), after.get(case)
            cells = []
            for name, digits in zip(_SCORES, (2, 2, 2, 4, 1), strict=True):
                cells.append("" if other is None else f"{other.scores[name]:.{digits}f}")
                cells.append(f"{one.scores[name]:.{digits}f}")
                if name != "train_s":
                    cells.append("" if third is None else f"{third.scores[name]:.{digits}f}")
            cells[0] += "" if other is None else other.spread
            cells[1] += one.spread
            lines.append(f"| {case} | " + " | ".join(cells) + f" | {one.chosen} |")
    return "\n".join(lines) + "\n"


def main(words: Sequence[str] | None = None) -> int:
    """Measure what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+", default=["paper", "auto", "refine"])
    parser.add_argument("--efforts", nargs="+", default=["default"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cases", default="", help="regular expression")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--csv", type=Path, default=Path("accuracy.csv"))
    parser.add_argument("--table", type=Path, help="Markdown file to write")
    parser.add_argument("--note", default="", help="a line about the machine, for the table")
    parser.add_argument(
        "--scenes", type=Path, default=Path(tempfile.gettempdir()) / "spectralift-accuracy"
    )
    given = parser.parse_args(words)
    cases = [case for case in suite() if re.search(given.cases, case.name)]
    done = {tuple(row[name] for name in _KEY) for row in read_rows(given.csv)}
    work = [
        (case, preset, effort, seed)
        for preset in given.presets
        for effort in ([""] if preset == "paper" else given.efforts)
        for seed in given.seeds
        for case in cases
        if (case.name, preset, effort, str(seed)) not in done
    ]
    given.scenes.mkdir(parents=True, exist_ok=True)
    # large ones first, so that the last ones to run are short
    work.sort(key=lambda item: ("cave" not in item[0].scene, item[0].ratio))
    context = get_context("spawn")
    with ProcessPoolExecutor(given.jobs, mp_context=context) as pool:
        # one of each scene first: they share the sample
        firsts = list({case.scene: case for case in cases}.values())
        for some in (firsts, [case for case in cases if case not in firsts]):
            list(pool.map(degraded, some, [given.scenes] * len(some)))
        waiting = [pool.submit(measure, *item, str(given.scenes)) for item in work]
        for future in as_completed(waiting):
            row = future.result()
            _append(given.csv, row)
            print(*(f"{row[name]}" for name in _COLUMNS), flush=True)
    if given.table is not None:
        given.table.write_text(table(read_rows(given.csv), given.efforts, given.note))
    return 0


if __name__ == "__main__":
    sys.exit(main())
