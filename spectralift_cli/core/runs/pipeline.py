"""A whole run, from its config to one folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import json
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectralift_cli import __version__
from spectralift_cli.core.cube import Progress, no_progress
from spectralift_cli.core.devices import check_threads, resolve_device
from spectralift_cli.core.errors import SpectraliftError, SpectraliftWarning
from spectralift_cli.core.outputs import write_text
from spectralift_cli.core.runs import inputs as runinputs
from spectralift_cli.core.runs.blocks import SCHEMA
from spectralift_cli.core.runs.config import RunConfig
from spectralift_cli.core.runs.document import facts, model_facts, versions
from spectralift_cli.core.runs.job import RunJob
from spectralift_cli.core.runs.keeper import Keeper, Made, StageProgress
from spectralift_cli.core.runs.log import RunLog, speaking_of
from spectralift_cli.core.runs.places import LOG_NAME, append_log, inside, places
from spectralift_cli.core.runs.stages import RunStages


@dataclass(frozen=True)
class RunResult:
    """What a run made.

    Args:
        folder: the run's folder.
        files: in it, by role: `scene` (a folder), `model`, `history`, `cube` (and `cube_json`,
            `cube_img`, ... where it is more than a file), `uncertainty` (likewise), `metrics`,
            `validation`, `config`, `log`.
        report: the contents of run.json.
        scores: one object for each convention, see `Scores.to_json`; empty where there is no ground
            truth.
    """

    folder: Path
    files: Mapping[str, Path]
    report: Mapping[str, Any]
    scores: Sequence[Mapping[str, Any]] = ()


@contextlib.contextmanager
def _no_bar(label: str) -> Iterator[Progress]:
    del label
    yield no_progress


def execute(
    config: RunConfig,
    output: Path | None = None,
    *,
    device: str = "auto",
    threads: int | None = None,
    memory_bytes: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: StageProgress = _no_bar,
    announce: Callable[[str], None] = lambda line: None,
) -> RunResult:
    """Run all stages into one folder.

    The folder holds the scene (where one is made), model.safetensors, the sharp cube, history.csv
    (preset paper), the uncertainty (where infer.uncertainty asks for it), metrics.json (where there
    is a ground truth), the folder validate (where there is none), report.html, used_config.yaml,
    run.log and run.json. It is made aside and moved into place when all is done; see `RunJob`.

    Args:
        config: what to do.
        output: the folder; None for the config's `output_dir`.
        device: auto, cpu, cuda, cuda:N or mps.
        threads: at most; None for all this process may use.
        memory_bytes: the most for a file that cannot be read by rows; None for the default.
        resume: continue a killed run, or make again what has changed of a finished one.
        overwrite: replace an existing run, and drop what a killed one left.
        progress: called with a stage's name, gives the `progress(done, total)` of that stage.
        announce: called with lines about what is done.

    Raises:
        OptionError: there is neither an output nor an `output_dir`.
        OutputExistsError: the folder or a killed run of it is there, and neither `resume` nor
            `overwrite` is true.
        SpectraliftError: whatever a stage raises.
    """
    folder, log_dir = places(config, output)
    job = RunJob(folder, resume=resume, overwrite=overwrite)
    with contextlib.closing(job):
        log = RunLog(announce)
        keeper = Keeper(job, log, progress)
        run = _Run(config, keeper, RunStages(config, keeper, device, threads, memory_bytes))
        try:
            with speaking_of(folder, job.work, log.warn):
                result, changed = run.execute(folder, log_dir)
        except BaseException:
            if job.keeps_work:
                announce(f"{job.folder} keeps what is done: --resume continues it")
            raise
        if not changed:
            announce(f"{folder}: nothing has changed")
            job.discard()
            return result
        job.commit(
            {"run.json", *(name.split("/")[0] for name in result.report["outputs"].values())}
        )
    if inside(log_dir, folder) is None:
        append_log(log_dir, result.files["log"], folder)
    return result


@dataclass
class _Run:
    """One run: its stages, and the files that tell of them."""

    config: RunConfig
    keeper: Keeper
    stages: RunStages

    def execute(self, folder: Path, log_dir: Path) -> tuple[RunResult, bool]:
        """Run all stages into the work folder; tell whether it is to become `folder`."""
        start = time.perf_counter()
        keeper, work, log = self.keeper, self.keeper.job.work, self.keeper.log
        self._start()
        self.stages.check_early()
        scene, identified = self.stages.synth()
        trained = self.stages.train(scene, identified)
        cube = self.stages.infer(scene, identified, trained)
        self.stages.refine(scene, cube)
        metrics = self.stages.metrics(scene, identified)
        self.stages.validate(scene, cube, scored=metrics is not None)
        names = {role: name for found in keeper.done.values() for role, name in found.files.items()}
        names["config"] = "used_config.yaml"
        names["log"] = ((inside(log_dir, folder) or Path()) / LOG_NAME).as_posix()
        write_text(work / names["config"], self.config.to_yaml(), overwrite=True)
        if self.config.report is not None:
            self._page(self._document(names, time.perf_counter() - start), names)
        scores = [] if metrics is None else list(metrics.result["modes"].values())
        if keeper.job.is_unchanged(keeper.done.values(), self.config.to_yaml()):
            return _of_folder(folder, scores), False
        report = self._document(names, time.perf_counter() - start)
        self._finish(report, names)
        (work / names["log"]).parent.mkdir(parents=True, exist_ok=True)
        write_text(work / names["log"], "\n".join(log.lines) + "\n", overwrite=True)
        text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
        write_text(work / "run.json", text + "\n", overwrite=True)
        files = {role: folder / name for role, name in names.items()}
        return RunResult(folder, files, report, scores), True

    def _start(self) -> None:
        log, device = self.keeper.log, resolve_device(self.stages.device)
        log.log(f"spectralift {__version__} run on {platform.node()}, {platform.platform()}")
        numbers = ", ".join(f"{name} {number}" for name, number in versions().items())
        log.log(f"{numbers}, device {device}, {check_threads(self.stages.threads)} threads")
        for line in self.config.to_yaml().splitlines()[2:]:
            log.log(f"config {line}")
        if self.config.unused:
            log.say(f"not used: {', '.join(self.config.unused)}")

    def _page(self, document: Mapping[str, Any], names: dict[str, str]) -> None:
        """Write report.html; what hinders it is a warning, since the results are there."""
        from spectralift_cli.core.report.page import report  # here: it imports matplotlib

        work = self.keeper.job.work
        page = work / "report.html"

        def make(update: Progress) -> Made | None:
            try:
                report(work, page, self.config.report, run=document, progress=update)
            except SpectraliftError as error:
                warnings.warn(
                    f"report.html is not written: {error.message}; {error.hint}",
                    SpectraliftWarning,
                    stacklevel=2,
                )
                return None
            return Made({"report": page}, {}, lambda took: f"{page.name} in {took:.1f} s")

        inputs = runinputs.report_inputs(self.config, self.keeper.done, self.keeper.log.warnings)
        receipt = self.keeper.try_stage("report", inputs, make)
        if receipt is not None:
            names |= receipt.files

    def _document(self, names: Mapping[str, str], seconds: float) -> dict[str, Any]:
        """Return the contents of run.json."""
        done = self.keeper.done
        image = done["infer"].result
        return {
            "schema": SCHEMA,
            "config": "native" if self.config.flat is None else "flat",
            **facts(resolve_device(self.stages.device), check_threads(self.stages.threads)),
            "stages": [
                {
                    "stage": name,
                    "seconds": found.seconds,
                    "kept": name in self.keeper.kept,
                    "receipt": found.to_json(),
                }
                for name, found in done.items()
            ],
            "seconds": round(seconds, 3),
            "model": model_facts(self.stages.model, image["pixels"]),
            "image": {
                "pixels": image["pixels"],
                "holes": image["holes"],
                "clipped_values": image["clipped"],
                "saturated_values": image["saturated"],
            },
            "outputs": dict(names),
            "warnings": list(self.keeper.log.warnings),
            **({"refine": dict(done["refine"].result)} if "refine" in done else {}),
        }

    def _finish(self, report: Mapping[str, Any], names: Mapping[str, str]) -> None:
        model = report["model"]
        self.keeper.log.say(
            f"{model['parameters']:,} parameters, {model['flops_per_pixel']:,} FLOPs a pixel, "
            f"{model['flops_image'] / 1e9:,.3g} GFLOPs the image, peak memory "
            f"{report['peak_memory_mb']:,.0f} MB, {report['seconds']:.1f} s"
        )
        for role, name in names.items():
            self.keeper.log.log(f"{role}: {name}")


def _of_folder(folder: Path, scores: Sequence[Mapping[str, Any]]) -> RunResult:
    """Return what the finished run that is there has made."""
    report = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    files = {role: folder / name for role, name in report["outputs"].items()}
    return RunResult(folder, files, report, scores)
