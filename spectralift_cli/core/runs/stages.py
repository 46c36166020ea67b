"""Each stage of a run, from its config to its receipt: what it reads, makes and tells."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectralift_cli.core import refining, stages
from spectralift_cli.core.checkpoint import Checkpoint, load_checkpoint
from spectralift_cli.core.cube import Progress
from spectralift_cli.core.errors import DataError, SpectraliftWarning
from spectralift_cli.core.fitstate import discard_state, is_whole, state_path_of
from spectralift_cli.core.metrics import METRICS
from spectralift_cli.core.outputs import write_text
from spectralift_cli.core.pairs import ResponseChoice
from spectralift_cli.core.runs import inputs as runinputs
from spectralift_cli.core.runs.config import RunConfig
from spectralift_cli.core.runs.keeper import Keeper, Made
from spectralift_cli.core.runs.receipt import Receipt
from spectralift_cli.core.scene import open_scene
from spectralift_cli.core.validation.document import document_text
from spectralift_cli.core.validation.figures import DOCUMENT
from spectralift_cli.core.validation.inputs import ValidateInputs
from spectralift_cli.core.validation.validate import validate

METRICS_SCHEMA = "spectralift.run-metrics/1"
_MATLAB_NAME_CHARACTERS = 63
_COUNTS = ("pixels", "holes", "clipped", "saturated")


@dataclass
class RunStages:
    """The stages that make files, in the order of their methods.

    Args:
        config: the run.
        keeper: makes or keeps each stage.
        device: auto, cpu, cuda, cuda:N or mps.
        threads: at most; None for all this process may use.
        memory_bytes: the most for a file that cannot be read by rows; None for the default.
        checkpoint: the model, once it is trained.
    """

    config: RunConfig
    keeper: Keeper
    device: str
    threads: int | None
    memory_bytes: int | None
    checkpoint: Checkpoint | None = None

    @property
    def model(self) -> Checkpoint:
        """What the training has made."""
        if self.checkpoint is None:
            raise ValueError("there is no model before the training")
        return self.checkpoint

    def check_early(self) -> None:
        """Open the image to sharpen, so that a wrong name is told before the training."""
        if self.config.msi is not None:
            self._msi_reading().open(self.config.msi, allow_2d=True).close()

    def _msi_reading(self) -> stages.Reading:
        files = self.config.infer[0]
        return stages.Reading(files.var, files.axis_order, None, self.memory_bytes)

    def _lr_reading(self) -> stages.Reading:
        files = self.config.train[0]
        return stages.Reading(files.var, files.axis_order, files.wavelengths, self.memory_bytes)

    def _response(self) -> ResponseChoice:
        files = self.config.train[0]
        return ResponseChoice(
            srf_file=files.srf_file, sensor=files.sensor, msi_bands=files.msi_bands,
            num_msi_bands=files.num_msi_bands,
            fwhm_factor=files.fwhm_factor, invented=files.srf_wavelengths == "invented",
            drop_uncovered_bands=files.drop_uncovered_bands,
        )  # fmt: skip

    def _execution(self, progress: Progress) -> stages.Execution:
        return stages.Execution(self.device, self.threads, progress)

    def synth(self) -> tuple[Path | None, Mapping[str, Any]]:
        """Return the scene that the other stages work on, made here where the config says so.

        Returns:
            Its folder and what identifies it; (None, {}) where there are only loose files.
        """
        if self.config.synth is None:
            folder = self.config.train[0].scene
            return folder, {} if folder is None else runinputs.identify_scene(open_scene(folder))
        given, config = self.config.synth
        cube = given.cube
        if cube is None:
            raise ValueError("resolve_config makes sure of the cube")
        reading = stages.Reading(
            given.var, given.axis_order, given.wavelengths, self.memory_bytes
        )  # fmt: skip

        def make(update: Progress) -> Made:
            scene = stages.synth(
                cube, self.keeper.job.work / "scene", config, psf_file=given.psf_file,
                srf_file=given.srf_file, sensor=given.sensor, msi_bands=given.msi_bands,
                cube_format=given.format, reading=reading, progress=update,
            )  # fmt: skip
            shapes = []
            for role in ("gt", "lr_hsi", "hr_msi"):
                with scene.open(role) as reader:
                    shapes.append(f"{role} {'x'.join(map(str, reader.meta.shape))}")
            told = ", ".join(shapes)
            return Made({"scene": scene.folder}, {}, lambda took: f"{told} in {took:.1f} s")

        receipt = self.keeper.stage("synth", runinputs.synth_inputs(self.config, reading), make)
        return self.keeper.path(receipt, "scene"), receipt.outputs

    def train(self, scene: Path | None, identified: Mapping[str, Any]) -> Receipt:
        """Train on the scene, or on the files that the config names."""
        given, config = self.config.train
        reading = self._lr_reading()
        if self.config.synth is not None:
            inputs = stages.TrainInputs(scene=scene)
        else:
            inputs = stages.TrainInputs(
                scene=scene, lr_hsi=given.lr_hsi, hr_msi=given.hr_msi, response=self._response(),
                reading=reading,
            )  # fmt: skip
        files = {"model": self.keeper.job.work / "model.safetensors"}
        if config.preset == "paper":
            files["history"] = self.keeper.job.work / "history.csv"
        state = state_path_of(files["model"])

        def make(update: Progress) -> Made:
            if self.keeper.goes_on and not is_whole(state):
                self.keeper.log.say(f"train: begun again, {state.name} is not as it was written")
                discard_state(state)
            elif self.keeper.goes_on:
                self.keeper.log.say(f"train: goes on from {state.name}")
            trained = stages.train(
                inputs, files["model"], config, history_file=files.get("history"),
                execution=self._execution(update), resume=self.keeper.goes_on,
                announce=lambda plan: self.keeper.log.say(str(plan)),
            )  # fmt: skip
            self.checkpoint = trained.checkpoint
            chosen = trained.checkpoint.choice
            if not chosen:
                chosen = f"final loss {trained.checkpoint.scores['final_loss']:.6g}"
            return Made(files, {}, lambda took: f"{chosen} in {took:.1f} s")

        receipt = self.keeper.stage(
            "train", runinputs.train_inputs(self.config, identified, reading), make,
            partial=[state.name] if config.preset == "paper" else [],
        )  # fmt: skip
        if self.checkpoint is None:
            self.checkpoint = load_checkpoint(self.keeper.path(receipt, "model"))
        self._compare_bands(self.checkpoint.msi_bands)
        return receipt

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

    def infer(self, scene: Path | None, identified: Mapping[str, Any], trained: Receipt) -> Receipt:
        """Make the sharp cube."""
        given, config = self.config.infer
        image = self.config.msi or scene
        if image is None:
            raise ValueError("resolve_config makes sure of an image")
        name = self.config.cube_name(self.model.msi_bands)
        options = dict(given.co)
        if self.config.flat is not None and "VARIABLE" in {row.name for row in given.row.options}:
            options.setdefault("VARIABLE", self._variable(name, given.format))

        work = self.keeper.job.work
        uncertain = work / f"uncertainty.{given.format}" if given.uncertainty else None

        def make(update: Progress) -> Made:
            result = stages.infer(
                self.keeper.path(trained, "model"), image, work / f"{name}.{given.format}", config,
                stored=stages.Storage(
                    given.dtype, given.scale, given.offset, given.nodata, options
                ),
                batch_size=given.inference_batch_size,
                reading=self._msi_reading(), execution=self._execution(update),
                uncertainty_file=uncertain,
            )  # fmt: skip
            files = _by_role("cube", result.files)
            if result.uncertainty is not None:
                files |= _by_role("uncertainty", result.uncertainty.files)
                self.keeper.log.say(str(result.uncertainty))
            return Made(
                files,
                {count: getattr(result, count) for count in _COUNTS},
                lambda took: (
                    f"{result.pixels:,} pixels in {took:.1f} s "
                    f"({result.pixels / max(took, 1e-9):,.0f} pixels/s)"
                ),
            )

        inputs = runinputs.infer_inputs(
            self.config, identified, name, self._msi_reading(), trained
        )  # fmt: skip

        def refined(cube: Receipt) -> Mapping[str, Any]:
            return runinputs.refine_inputs(self.config, cube, trained)

        follows = None if self.config.refine is None else refined
        return self.keeper.stage("infer", inputs, make, successor="refine", follows=follows)

    def refine(self, scene: Path | None, cube: Receipt) -> Receipt | None:
        """Make the cube agree with both images; where nobody asked for it, as far as that works."""
        if self.config.refine is None:
            return None
        given, config = self.config.refine
        train = self.config.train[0]
        trained = self.keeper.done["train"]
        reading = stages.Reading(memory_bytes=self.memory_bytes)
        if scene is not None and self.config.msi is None:
            inputs = refining.RefineInputs(scene=scene, psf_file=given.psf_file, reading=reading)
        else:
            lr_hsi = train.lr_hsi if scene is None else open_scene(scene).path("lr_hsi")
            inputs = refining.RefineInputs(
                lr_hsi=lr_hsi, hr_msi=self.config.msi, model=self.keeper.path(trained, "model"),
                psf_file=given.psf_file, reading=reading,
                lr_reading=self._lr_reading(), msi_reading=self._msi_reading(),
            )  # fmt: skip
        options = dict(self.config.infer[0].co)
        path = self.keeper.path(cube, "cube")

        def make(update: Progress) -> Made | None:
            try:
                result = refining.refine(
                    path, inputs, path, config, options=options, overwrite=True, progress=update
                )
            except DataError as error:
                if self.config.must_refine:
                    raise
                warnings.warn(
                    f"the cube is not refined: {error.message} ({error.hint})",
                    SpectraliftWarning,
                    stacklevel=2,
                )
                return None
            return Made(
                _by_role("cube", result.files), result.to_json(),
                lambda took: f"{result.verdict} in {took:.1f} s",
            )  # fmt: skip

        return self.keeper.try_stage(
            "refine", runinputs.refine_inputs(self.config, cube, trained), make
        )

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

    def metrics(self, scene: Path | None, identified: Mapping[str, Any]) -> Receipt | None:
        """Score the cube where the scene has a ground truth of it."""
        if self.config.truth_is_impossible or scene is None:
            return None
        if not open_scene(scene).has("gt"):
            if self.config.needs_truth:
                raise DataError(
                    f"{scene}: has no ground truth to score against",
                    "leave the block metrics out",
                )
            return None
        written = runinputs.made_by(self.keeper.done["infer"], self.keeper.done.get("refine"))

        def make(update: Progress) -> Made:
            cube = self.keeper.path(self.keeper.done["infer"], "cube")
            reading = stages.Reading(memory_bytes=self.memory_bytes)
            scores = [
                stages.evaluate(scene, cube, config, reading=reading, progress=update)
                for config in self.config.metrics
            ]
            modes = {found.mode: found.to_json() for found in scores}
            document = {"schema": METRICS_SCHEMA, "modes": modes}
            path = self.keeper.job.work / "metrics.json"
            write_text(path, json.dumps(document, indent=2, allow_nan=False) + "\n")
            for found in scores:
                values = ", ".join(
                    f"{name} {value:.5g} {METRICS[name].unit}".rstrip()
                    for name, value in found.values.items()
                )
                self.keeper.log.log(f"metrics, mode {found.mode}: {values}")
            told = ", ".join(modes)
            return Made({"metrics": path}, {"modes": modes}, lambda took: f"{told} in {took:.1f} s")

        inputs = runinputs.metrics_inputs(self.config, identified, written)
        return self.keeper.stage("metrics", inputs, make)

    def validate(self, scene: Path | None, cube: Receipt, *, scored: bool) -> Receipt | None:
        """Judge the cube without a ground truth; where nobody asked for it, as far as that works.

        Args:
            scene: its folder, or None for loose files.
            cube: the receipt of the inference.
            scored: whether there is a ground truth, and so no need where nobody asks.
        """
        if self.config.validate is None or not self.config.shows_one_ground:
            return None
        given, config = self.config.validate
        if given.when == "auto" and scored:
            return None
        train = dataclasses.replace(self.config.train[1], uncertainty=False)
        refined = self.keeper.done.get("refine")
        refine = None if refined is None or self.config.refine is None else self.config.refine[1]
        maps = self.keeper.job.work / "validate" if given.maps else None

        def make(update: Progress) -> Made | None:
            try:
                found = validate(
                    self._validate_inputs(scene), train, result=self.keeper.path(cube, "cube"),
                    maps=maps, reduced=config.reduced, refine=refine if config.reduced else None,
                    trust_psf=refine is not None and refine.trust_psf, device=self.device,
                    threads=self.threads, progress=update,
                )  # fmt: skip
            except DataError as error:
                if given.when == "always":
                    raise
                warnings.warn(
                    f"the cube is not validated: {error.message} ({error.hint})",
                    SpectraliftWarning,
                    stacklevel=2,
                )
                return None
            path = maps or self.keeper.job.work / DOCUMENT
            if maps is None:
                write_text(path, document_text(found))
            for section in found.sections:
                figures = ", ".join(f"{one.name} {one.value:.5g}" for one in section.figures)
                self.keeper.log.log(f"validate, {section.title}: {figures}")
            told = ", ".join(section.title for section in found.sections)
            return Made({"validation": path}, {}, lambda took: f"{told} in {took:.1f} s")

        inputs = runinputs.validate_inputs(self.config, cube, refined)
        return self.keeper.try_stage("validate", inputs, make)

    def _validate_inputs(self, scene: Path | None) -> ValidateInputs:
        psf_file = None if self.config.refine is None else self.config.refine[0].psf_file
        if scene is not None and self.config.msi is None:
            return ValidateInputs(scene=scene, psf_file=psf_file)
        return ValidateInputs(
            lr_hsi=self.config.train[0].lr_hsi, hr_msi=self.config.msi, response=self._response(),
            psf_file=psf_file, lr_reading=self._lr_reading(), msi_reading=self._msi_reading(),
        )  # fmt: skip


def _by_role(role: str, files: Sequence[Path]) -> dict[str, Path]:
    """Return an image's files, the main one first, by role and ending."""
    return {role: files[0], **{f"{role}_{path.suffix[1:]}": path for path in files[1:]}}
