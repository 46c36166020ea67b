"""All stages of a run, from its config to one folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import json
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spectralift_cli import __version__
from spectralift_cli.core import stages
from spectralift_cli.core.cube import Progress, no_progress
from spectralift_cli.core.devices import check_threads, resolve_device
from spectralift_cli.core.errors import DataError, SpectraliftError, SpectraliftWarning
from spectralift_cli.core.inference import InferResult
from spectralift_cli.core.metrics import METRICS
from spectralift_cli.core.metrics.evaluate import Scores
from spectralift_cli.core.outputs import Staging, write_text
from spectralift_cli.core.pairs import ResponseChoice
from spectralift_cli.core.refinement.outcome import RefineResult
from spectralift_cli.core.refining import RefineInputs, refine
from spectralift_cli.core.resources import peak_memory_bytes
from spectralift_cli.core.runblocks import SCHEMA
from spectralift_cli.core.runconfig import RunConfig
from spectralift_cli.core.runplaces import LOG_NAME, append_log, inside, places
from spectralift_cli.core.scene import open_scene
from spectralift_cli.core.training import Trained

METRICS_SCHEMA = "spectralift.run-metrics/1"
_MATLAB_NAME_CHARACTERS = 63

StageProgress = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class RunResult:
    """What a run made.

    Args:
        folder: the run's folder.
        files: in it, by role: `scene` (a folder), `model`, `history`, `cube` (and `cube_json`,
            `cube_img`, ... where it is more than a file), `metrics`, `config`, `log`.
        report: the contents of run.json.
        scores: one for each convention; empty where there is no ground truth.
    """

    folder: Path
    files: Mapping[str, Path]
    report: Mapping[str, Any]
    scores: Sequence[Scores] = ()


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
    overwrite: bool = False,
    progress: StageProgress = _no_bar,
    announce: Callable[[str], None] = lambda line: None,
) -> RunResult:
    """Run all stages into one folder.

    The folder holds the scene (where one is made), model.safetensors, the sharp cube, history.csv
    (preset paper), metrics.json (where there is a ground truth), used_config.yaml, run.log and run.json. It is made
    aside and moved into place when all is done.

    Args:
        config: what to do.
        output: the folder; None for the config's `output_dir`.
        device: auto, cpu, cuda, cuda:N or mps.
        threads: at most; None for all this process may use.
        memory_bytes: the most for a file that cannot be read by rows; None for the default.
        overwrite: replace an existing run.
        progress: called with a stage's name, gives the `progress(done, total)` of that stage.
        announce: called with lines about what is done.

    Raises:
        OptionError: there is neither an output nor an `output_dir`.
        OutputExistsError: the folder exists and `overwrite` is false.
        SpectraliftError: whatever a stage raises.
    """
    folder, log_dir = places(config, output)
    run = _Run(config, device, threads, memory_bytes, progress, announce)
    with Staging(folder, overwrite=overwrite) as stage:
        if folder.exists() and not folder.is_dir():
            raise DataError(f"{folder}: is a file, a run is a folder", "choose another name for it")
        work = stage.path()
        work.mkdir()
        with _speaking_of(folder, work, run.warn):
            result = run.execute(work, folder, log_dir)
        stage.commit()
    if inside(log_dir, folder) is None:
        append_log(log_dir, result.files["log"], folder)
    return result


@contextlib.contextmanager
def _speaking_of(folder: Path, work: Path, record: Callable[[str], None]) -> Iterator[None]:
    """Name the run's folder instead of the one it is made in, in warnings and errors."""

    def final(text: str) -> str:
        return text.replace(str(work), str(folder))

    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *more: Any, **named: Any) -> None:
            if issubclass(category, SpectraliftWarning):
                record(final(str(message)))
                message = category(final(str(message)))
            shown(message, category, *more, **named)

        warnings.showwarning = show
        try:
            yield
        except SpectraliftError as error:
            if str(work) not in error.message + error.hint:
                raise
            raise type(error)(final(error.message), final(error.hint)) from error


@dataclass
class _Run:
    """One run, stage by stage, with its log."""

    config: RunConfig
    device: str
    threads: int | None
    memory_bytes: int | None
    progress: StageProgress
    announce: Callable[[str], None]
    lines: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def log(self, line: str) -> None:
        """Write a line into the log."""
        self.lines.append(f"{datetime.now().astimezone().isoformat(timespec='seconds')} {line}")

    def say(self, line: str) -> None:
        """Write a line into the log and tell the user."""
        self.log(line)
        self.announce(line)

    def warn(self, message: str) -> None:
        """Record a warning that is shown elsewhere."""
        if message not in self.warnings:
            self.warnings.append(message)
            self.log(f"warning: {message}")

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        """Time a stage."""
        start = time.perf_counter()
        with self.progress(name) as update:
            yield update
        self.seconds[name] = time.perf_counter() - start

    def execute(self, work: Path, folder: Path, log_dir: Path) -> RunResult:
        """Run all stages into `work`, which becomes `folder`."""
        start = time.perf_counter()
        device = resolve_device(self.device)
        self._start(str(device))
        self._check_early()
        files: dict[str, Path] = {}
        scene = self._synth(work, files)
        trained = self._train(work, scene, files)
        inferred = self._infer(work, scene, trained, files)
        refined = self._refine(scene, files)
        scores = self._metrics(work, scene, files)
        files["config"] = work / "used_config.yaml"
        write_text(files["config"], self.config.to_yaml())
        files["log"] = work / (inside(log_dir, folder) or Path()) / LOG_NAME
        names = {role: path.relative_to(work).as_posix() for role, path in files.items()}
        report = self._report(trained, inferred, names, device, time.perf_counter() - start)
        if refined is not None:
            report["refine"] = refined.to_json()
        if self.config.report is not None:
            self._page(work, report, files, names)
            report |= {
                "stages": self._stages(),
                "seconds": round(time.perf_counter() - start, 3),
                "outputs": dict(names),
                "warnings": list(self.warnings),
            }
        self._finish(report, names)
        files["log"].parent.mkdir(parents=True, exist_ok=True)
        write_text(files["log"], "\n".join(self.lines) + "\n")
        text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
        write_text(work / "run.json", text + "\n")
        final = {role: folder / name for role, name in names.items()}
        return RunResult(folder, final, report, scores)

    def _start(self, device: str) -> None:
        self.log(f"spectralift {__version__} run on {platform.node()}, {platform.platform()}")
        versions = ", ".join(f"{name} {number}" for name, number in _versions().items())
        self.log(f"{versions}, device {device}, {check_threads(self.threads)} threads")
        for line in self.config.to_yaml().splitlines()[2:]:
            self.log(f"config {line}")
        if self.config.unused:
            self.say(f"not used: {', '.join(self.config.unused)}")

    def _check_early(self) -> None:
        """Open the image to sharpen, so that a wrong name is told before the training."""
        if self.config.msi is not None:
            self._msi_reading().open(self.config.msi, allow_2d=True).close()

    def _msi_reading(self) -> stages.Reading:
        files = self.config.infer[0]
        return stages.Reading(files.var, files.axis_order, None, self.memory_bytes)

    def _execution(self, progress: Progress) -> stages.Execution:
        return stages.Execution(self.device, self.threads, progress)

    def _synth(self, work: Path, files: dict[str, Path]) -> Path | None:
        """Return the scene that the other stages work on, made here where the config says so."""
        if self.config.synth is None:
            return self.config.train[0].scene
        given, config = self.config.synth
        if given.cube is None:
            raise ValueError("resolve_config makes sure of the cube")
        files["scene"] = work / "scene"
        with self.stage("synth") as update:
            scene = stages.synth(
                given.cube, files["scene"], config, psf_file=given.psf_file,
                srf_file=given.srf_file, sensor=given.sensor, msi_bands=given.msi_bands,
                cube_format=given.format,
                reading=stages.Reading(
                    given.var, given.axis_order, given.wavelengths, self.memory_bytes
                ),
                progress=update,
            )  # fmt: skip
        shapes = []
        for role in ("gt", "lr_hsi", "hr_msi"):
            with scene.open(role) as reader:
                shapes.append(f"{role} {'x'.join(map(str, reader.meta.shape))}")
        self.say(f"synth: {', '.join(shapes)} in {self.seconds['synth']:.1f} s")
        return files["scene"]

    def _train(self, work: Path, scene: Path | None, files: dict[str, Path]) -> Trained:
        given, config = self.config.train
        if self.config.synth is not None:
            inputs = stages.TrainInputs(scene=scene)
        else:
            response = ResponseChoice(
                srf_file=given.srf_file, sensor=given.sensor, msi_bands=given.msi_bands,
                num_msi_bands=given.num_msi_bands,
                fwhm_factor=given.fwhm_factor, invented=given.srf_wavelengths == "invented",
                drop_uncovered_bands=given.drop_uncovered_bands,
            )  # fmt: skip
            inputs = stages.TrainInputs(
                scene=scene, lr_hsi=given.lr_hsi, hr_msi=given.hr_msi, response=response,
                reading=stages.Reading(
                    given.var, given.axis_order, given.wavelengths, self.memory_bytes
                ),
            )  # fmt: skip
        files["model"] = work / "model.safetensors"
        if config.preset == "paper":
            files["history"] = work / "history.csv"
        with self.stage("train") as update:
            trained = stages.train(
                inputs, files["model"], config, history_file=files.get("history"),
                execution=self._execution(update), announce=lambda plan: self.say(str(plan)),
            )  # fmt: skip
        chosen = trained.checkpoint.choice
        if not chosen:
            chosen = f"final loss {trained.checkpoint.scores['final_loss']:.6g}"
        self.say(f"train: {chosen} in {self.seconds['train']:.1f} s")
        self._compare_bands(trained.plan.msi_bands)
        return trained

    def _compare_bands(self, msi_bands: int) -> None:
        """Warn where a flat config says another number of bands than its response has."""
        flat = self.config.flat
        if flat and flat.synthetic and flat.num_msi_bands != msi_bands and flat.provide_srf:
            warnings.warn(
                f"num_msi_bands is {flat.num_msi_bands}, {flat.srf_file} has {msi_bands}, "
                "which is what counts",
                SpectraliftWarning,
                stacklevel=2,
            )

    def _infer(
        self, work: Path, scene: Path | None, trained: Trained, files: dict[str, Path]
    ) -> InferResult:
        given, config = self.config.infer
        image = self.config.msi or scene
        if image is None:
            raise ValueError("resolve_config makes sure of an image")
        name = self.config.cube_name(trained.plan.msi_bands)
        options = dict(given.co)
        if self.config.flat is not None and "VARIABLE" in {row.name for row in given.row.options}:
            options.setdefault("VARIABLE", self._variable(name, given.format))
        with self.stage("infer") as update:
            result = stages.infer(
                files["model"], image, work / f"{name}.{given.format}", config,
                stored=stages.Storage(
                    given.dtype, given.scale, given.offset, given.nodata, options
                ),
                batch_size=given.inference_batch_size,
                reading=self._msi_reading(), execution=self._execution(update),
            )  # fmt: skip
        files["cube"] = result.files[0]
        files |= {f"cube_{path.suffix[1:]}": path for path in result.files[1:]}
        rate = result.pixels / max(self.seconds["infer"], 1e-9)
        self.say(
            f"infer: {result.pixels:,} pixels in {self.seconds['infer']:.1f} s "
            f"({rate:,.0f} pixels/s)"
        )
        return result

    def _refine(self, scene: Path | None, files: dict[str, Path]) -> RefineResult | None:
        """Make the cube agree with both images; where nobody asked for it, as far as that works."""
        if self.config.refine is None:
            return None
        given, config = self.config.refine
        train = self.config.train[0]
        reading = stages.Reading(memory_bytes=self.memory_bytes)
        if scene is not None and self.config.msi is None:
            inputs = RefineInputs(scene=scene, psf_file=given.psf_file, reading=reading)
        else:
            lr_hsi = train.lr_hsi if scene is None else open_scene(scene).path("lr_hsi")
            inputs = RefineInputs(
                lr_hsi=lr_hsi, hr_msi=self.config.msi, model=files["model"],
                psf_file=given.psf_file, reading=reading,
                lr_reading=stages.Reading(
                    train.var, train.axis_order, train.wavelengths, self.memory_bytes
                ),
                msi_reading=self._msi_reading(),
            )  # fmt: skip
        options = dict(self.config.infer[0].co)
        try:
            with self.stage("refine") as update:
                result = refine(
                    files["cube"], inputs, files["cube"], config, options=options, overwrite=True,
                    progress=update,
                )  # fmt: skip
        except DataError as error:
            if self.config.must_refine:
                raise
            warnings.warn(
                f"the cube is not refined: {error.message} ({error.hint})",
                SpectraliftWarning,
                stacklevel=2,
            )
            return None
        self.say(f"refine: {result.verdict} in {self.seconds['refine']:.1f} s")
        return result

    def _variable(self, name: str, ending: str) -> str:
        """Return the variable's name: the file's, as far as MATLAB takes it."""
        if ending != "mat" or len(name) <= _MATLAB_NAME_CHARACTERS:
            return name
        short = name[:_MATLAB_NAME_CHARACTERS]
        warnings.warn(
            f"{name} has {len(name)} characters, MATLAB takes {_MATLAB_NAME_CHARACTERS}: the "
            f"variable is {short}",
            SpectraliftWarning,
            stacklevel=2,
        )
        return short

    def _metrics(self, work: Path, scene: Path | None, files: dict[str, Path]) -> list[Scores]:
        """Score the cube where the scene has a ground truth of it."""
        if self.config.truth_is_impossible or scene is None:
            return []
        if not open_scene(scene).has("gt"):
            if self.config.needs_truth:
                raise DataError(
                    f"{scene}: has no ground truth to score against",
                    "leave the block metrics out",
                )
            return []
        scores = []
        with self.stage("metrics") as update:
            for config in self.config.metrics:
                reading = stages.Reading(memory_bytes=self.memory_bytes)
                scores.append(
                    stages.evaluate(scene, files["cube"], config, reading=reading, progress=update)
                )
        modes = {found.mode: found.to_json() for found in scores}
        document = {"schema": METRICS_SCHEMA, "modes": modes}
        files["metrics"] = work / "metrics.json"
        write_text(files["metrics"], json.dumps(document, indent=2, allow_nan=False) + "\n")
        for found in scores:
            values = ", ".join(
                f"{name} {value:.5g} {METRICS[name].unit}".rstrip()
                for name, value in found.values.items()
            )
            self.log(f"metrics, mode {found.mode}: {values}")
        return scores

    def _report(
        self,
        trained: Trained,
        inferred: InferResult,
        names: Mapping[str, str],
        device: torch.device,
        seconds: float,
    ) -> dict[str, Any]:
        model = trained.checkpoint.empty_model()
        memory = {"peak_memory_mb": round(peak_memory_bytes() / 1e6, 1)}
        if device.type == "cuda":
            memory["peak_device_memory_mb"] = round(
                torch.cuda.max_memory_allocated(device) / 1e6, 1
            )
        return {
            "schema": SCHEMA,
            "versions": {"spectralift": __version__, **_versions()},
            "config": "native" if self.config.flat is None else "flat",
            "device": str(device),
            "threads": check_threads(self.threads),
            "stages": self._stages(),
            "seconds": round(seconds, 3),
            "model": {
                "name": trained.checkpoint.model_name,
                "choice": trained.checkpoint.choice,
                "parameters": model.parameter_count,
                "flops_per_pixel": model.flops_per_pixel,
                "flops_image": model.flops_per_pixel * inferred.pixels,
                "lr_pixels": trained.plan.valid_pixels,
                **trained.checkpoint.scores,
            },
            "image": {
                "pixels": inferred.pixels,
                "holes": inferred.holes,
                "clipped_values": inferred.clipped,
                "saturated_values": inferred.saturated,
            },
            **memory,
            "outputs": dict(names),
            "warnings": list(self.warnings),
        }

    def _stages(self) -> list[dict[str, Any]]:
        return [{"stage": name, "seconds": round(took, 3)} for name, took in self.seconds.items()]

    def _page(
        self,
        work: Path,
        document: Mapping[str, Any],
        files: dict[str, Path],
        names: dict[str, str],
    ) -> None:
        """Write report.html; what hinders it is a warning, since the results are there."""
        from spectralift_cli.core.report.page import report  # here: it imports matplotlib

        page = work / "report.html"
        with self.stage("report") as update:
            try:
                report(work, page, self.config.report, run=document, progress=update)
            except SpectraliftError as error:
                warnings.warn(
                    f"report.html is not written: {error.message}; {error.hint}",
                    SpectraliftWarning,
                    stacklevel=2,
                )
                return
        files["report"], names["report"] = page, page.name

    def _finish(self, report: Mapping[str, Any], names: Mapping[str, str]) -> None:
        model = report["model"]
        self.say(
            f"{model['parameters']:,} parameters, {model['flops_per_pixel']:,} FLOPs a pixel, "
            f"{model['flops_image'] / 1e9:,.3g} GFLOPs the image, peak memory "
            f"{report['peak_memory_mb']:,.0f} MB, {report['seconds']:.1f} s"
        )
        for role, name in names.items():
            self.log(f"{role}: {name}")


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": str(torch.__version__),
    }
