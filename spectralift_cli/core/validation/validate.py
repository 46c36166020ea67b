"""Judge a pipeline, and a result, without a ground truth."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from spectralift_cli.core.config import RefineConfig, TrainConfig
from spectralift_cli.core.cube import Progress, no_progress
from spectralift_cli.core.cubeio import CubeReader
from spectralift_cli.core.errors import DataError, OptionError
from spectralift_cli.core.formats import open_cube
from spectralift_cli.core.identity import identity, provenance
from spectralift_cli.core.outputs import Staging
from spectralift_cli.core.validation.agreement import agreement, matching_result
from spectralift_cli.core.validation.document import document_text
from spectralift_cli.core.validation.figures import DOCUMENT, Section, Validation
from spectralift_cli.core.validation.inputs import ValidateInputs, open_pair
from spectralift_cli.core.validation.likeness import warn_of_differences
from spectralift_cli.core.validation.sight import with_matching_psf


def validate(
    inputs: ValidateInputs,
    config: TrainConfig | None = None,
    *,
    result: str | Path | None = None,
    maps: str | Path | None = None,
    reduced: bool = True,
    refine: RefineConfig | None = None,
    estimate_anew: bool = False,
    trust_psf: bool = False,
    device: str = "auto",
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> Validation:
    """Judge fusion without a ground truth.

    (a) One scale down: both images degraded once more, the pipeline run there, scored against the
    LR-HSI. (b) Of a result: what both instruments would see of it, against what they saw.
    (c) Of a result: D_lambda, D_s and HQNR.

    Args:
        inputs: a scene, or loose files.
        config: of the training in (a); None for the defaults.
        result: a sharp cube on the HR-MSI's grid, in the LR-HSI's units and bands, or None.
        maps: folder of maps of both residuals and `validate.json`, or None; needs a result.
        reduced: whether to do (a).
        refine: of the refinement in (a); None where the pipeline does none.
        estimate_anew: in (a), estimate again from the degraded images what the inputs' estimate
            says of the images themselves.
        trust_psf: keep the given PSF also where the images tell another one.
        device: of training and inference: auto, cpu, cuda, cuda:N or mps.
        threads: at most; None for all this process may use. Changes no number.
        overwrite: replace an existing folder of maps.
        progress: called with (done, total) of the stage at work.

    Raises:
        OptionError: inputs that exclude each other, or too few; nothing to do.
        DataError: a file is damaged, or the images do not fit each other.
        OutputExistsError: the folder exists and `overwrite` is false.

    Source: (a) Wald, Ranchin and Mangolini, PE&RS 63(6), 1997; (c) see
    `spectralift_cli.core.metrics.noreference`.
    """
    if result is None and maps is not None:
        raise OptionError("--maps does not apply without a result", "give --result CUBE as well")
    if result is None and not reduced:
        raise OptionError(
            "--no-reduced without a result leaves nothing to do", "give --result CUBE as well"
        )
    if not reduced and (refine is not None or estimate_anew):
        option = "--refine" if refine is not None else "--estimate-anew"
        raise OptionError(
            f"{option} does not apply with --no-reduced", "it belongs to the part one scale down"
        )
    config = config or TrainConfig()
    if config.uncertainty:
        raise OptionError(
            "--uncertainty does not apply to validate", "it belongs to train and infer"
        )
    with contextlib.ExitStack() as stack:
        folder: Path | None = None
        stage: Staging | None = None
        if maps is not None:
            stage = Staging(Path(maps), overwrite=overwrite)
            stack.callback(stage.abort)
            if Path(maps).exists() and not Path(maps).is_dir():
                raise DataError(
                    f"{maps}: is a file, maps are a folder", "choose another name for the maps"
                )
            folder = stage.path()
            folder.mkdir()
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spectralift-")))
        said = stack.enter_context(open_pair(inputs))
        pair = with_matching_psf(said, trusted=trust_psf)
        identities = dict(pair.identities)
        reader: CubeReader | None = None
        if result is not None:  # what does not fit is told before the work
            reader = matching_result(stack.enter_context(open_cube(result)), pair)
        sections: list[Section] = []
        options: dict[str, Any] = {"trust_psf": True} if trust_psf else {}
        if reduced:
            from spectralift_cli.core.given import Execution  # here: they import torch
            from spectralift_cli.core.validation.rehearsal import Pipeline, rehearse

            if refine is not None:
                refine = dataclasses.replace(refine, trust_psf=trust_psf or refine.trust_psf)
            pipeline = Pipeline(config, refine, estimate_anew)
            execution = Execution(device, threads, progress)
            section, _ = rehearse(pair, said, pipeline, work, execution=execution)
            sections.append(section)
            options |= pipeline.to_json()
        if reader is not None:
            identities["result"] = identity(*reader.files)
            if reduced:
                warn_of_differences(reader.meta.provenance, pipeline, pair.estimate is not None)
            sections += agreement(reader, pair, work, folder, progress)
        found = Validation(tuple(sections), pair.psf, provenance("validate", options, identities))
        if stage is not None and folder is not None:
            (folder / DOCUMENT).write_text(document_text(found), encoding="utf-8")
            stage.commit()
        return found
