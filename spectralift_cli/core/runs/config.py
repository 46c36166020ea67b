"""What a run does, from a config file and `--set key=value`, flat or native.

A *native* config has `schema: spectralift.run/1` and one block a stage (`runs.blocks`). A *flat* one
has SpectraLift's own keys (`runs.flatconfig`); it is translated into blocks. Dotted keys
(`train.epochs`) set one option of a block in either. Relative paths are relative to the current
folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from spectralift_cli.core.config import (
    InferConfig,
    MetricsConfig,
    RefineConfig,
    ReportConfig,
    SynthConfig,
    TrainConfig,
)
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.runs.blocks import (
    BLOCKS,
    SCHEMA,
    InferFiles,
    RefineFiles,
    SynthFiles,
    TrainFiles,
    ValidateConfig,
    ValidateFiles,
    block_keys,
    build_block,
    check_names,
    plain,
    unknown_key,
)
from spectralift_cli.core.runs.configtext import parse_settings
from spectralift_cli.core.runs.flatconfig import (
    FlatConfig,
    cube_stem,
    flat_blocks,
    flat_snapshot,
    parse_flat,
    unused_files,
)


@dataclass(frozen=True)
class RunConfig:
    """A run, resolved and checked as far as it can be without opening a file.

    Args:
        synth: how the scene is made, with its files; None where it is not.
        train: the training, with its files (which the scene replaces if one is made).
        infer: the inference, with its files.
        metrics: one config for each convention that is scored.
        refine: the refinement, with its files; None where it is not done.
        must_refine: whether an image that cannot be refined is an error, because that is asked for.
        needs_truth: whether a run without ground truth is an error, because scores are asked for.
        validate: of the validation, with what is written of it; None where it is not done.
        report: of report.html; None where it is not written.
        snapshot: the complete config, which makes the same run again.
        flat: the config as given, if it is SpectraLift's.
        unused: keys of files that are given but have no part in the run.
    """

    synth: tuple[SynthFiles, SynthConfig] | None
    train: tuple[TrainFiles, TrainConfig]
    infer: tuple[InferFiles, InferConfig]
    metrics: tuple[MetricsConfig, ...]
    needs_truth: bool
    refine: tuple[RefineFiles, RefineConfig] | None = None
    must_refine: bool = False
    validate: tuple[ValidateFiles, ValidateConfig] | None = None
    report: ReportConfig | None = None
    snapshot: Mapping[str, Any] = field(default_factory=dict)
    flat: FlatConfig | None = None
    unused: Sequence[str] = ()

    @property
    def quiet(self) -> bool:
        """Whether only warnings and errors are wanted."""
        return self.flat is not None and not self.flat.verbose

    @property
    def msi(self) -> Path | None:
        """The image to sharpen where it is not the scene's."""
        return self.infer[0].hr_msi or self.train[0].hr_msi

    @property
    def shows_one_ground(self) -> bool:
        """Whether the image to sharpen is the one that belongs to the LR-HSI."""
        return self.infer[0].hr_msi is None or self.infer[0].hr_msi == self.train[0].hr_msi

    @property
    def truth_is_impossible(self) -> bool:
        """Whether the image to sharpen comes without a scene, and so without a ground truth."""
        return self.msi is not None or (self.synth is None and self.train[0].scene is None)

    def cube_name(self, msi_bands: int) -> str:
        """Return the sharp cube's file name without its ending."""
        if self.flat is None:
            return "super_resolved_hsi"
        stem = cube_stem(self.flat, self.synth[1] if self.synth else None)
        return stem.format(bands=msi_bands)

    def to_yaml(self) -> str:
        """Return the text of used_config.yaml."""
        text = yaml.safe_dump(dict(self.snapshot), sort_keys=False, allow_unicode=True)
        return (
            "# All that determined this run; `spectralift run` on this file makes it again.\n"
            f"# Relative paths start at the folder it was run in.\n{text}"
        )


def resolve_config(
    document: Mapping[str, Any] | None, settings: Sequence[str] = (), source: str = "--set"
) -> RunConfig:
    """Return what a run does.

    Args:
        document: a config as `read_config` returns it; None for one made of `settings` alone.
        settings: key=value, which override it; `block.key` for an option of a block.
        source: the config's file, for messages.

    Raises:
        DataError: an unknown key (with its nearest neighbour), a value of the wrong type or out of
            bounds, or files that are missing or exclude each other.
        OptionError: a creation option that the format does not have.
    """
    overrides = parse_settings(settings)
    if document is None:
        if not overrides:
            raise DataError("there is no config", "give a YAML or JSON file, or --set key=value")
        document, source = {}, "--set"
        native = all("." in name or name == "schema" for name in overrides)
    else:
        native = "schema" in document or "schema" in overrides
        source += " with --set" if overrides else ""
    merged = {**document, **overrides}
    if native:
        return _native(merged, source)
    if isinstance(next((merged[name] for name in BLOCKS if name in merged), None), dict):
        raise DataError(
            f"{source}: has blocks of stages but no schema", f"add the line schema: {SCHEMA}"
        )
    return _flat(merged, source)


def _native(merged: Mapping[str, Any], source: str) -> RunConfig:
    schema = merged.get("schema", SCHEMA)
    if schema != SCHEMA:
        raise DataError(
            f"{source}: its schema is {schema!r:.60}, this version runs {SCHEMA!r}",
            "correct it, or use the version of spectralift that the config was made for",
        )
    blocks = {name: value for name, value in merged.items() if "." not in name}
    check_names(blocks, source)
    blocks.pop("schema", None)
    blocks.setdefault("report", None)  # a native run ends with one
    dotted = {name: value for name, value in merged.items() if "." in name}
    blocks = _with_dotted(blocks, dotted, source)
    config = _resolve(blocks, source)
    if "refine" not in blocks and config.shows_one_ground:
        config = dataclasses.replace(config, refine=(RefineFiles(), RefineConfig()))
    if "validate" not in blocks and config.shows_one_ground:
        config = dataclasses.replace(config, validate=(ValidateFiles(), ValidateConfig()))
    _check_uncertainty(config, source)
    return dataclasses.replace(config, snapshot=_snapshot(config))


def _flat(merged: Mapping[str, Any], source: str) -> RunConfig:
    dotted = {name: value for name, value in merged.items() if "." in name}
    flat = parse_flat({name: v for name, v in merged.items() if name not in dotted}, source)
    blocks = flat_blocks(flat, source)
    blocks = _with_dotted(blocks, dotted, source)
    if blocks["infer"].get("hr_msi") is not None:
        blocks.pop("metrics", None)  # the ground truth is of another image
    config = _resolve(blocks, source)
    _check_uncertainty(config, source)
    return dataclasses.replace(
        config,
        snapshot=flat_snapshot(flat) | dotted,
        flat=flat,
        unused=unused_files(flat, blocks),
    )


def _with_dotted(
    blocks: Mapping[str, Any], dotted: Mapping[str, Any], source: str
) -> dict[str, Any]:
    """Return the blocks with the options that `block.key` names."""
    known = [f"{block}.{name}" for block in BLOCKS for name in block_keys(block)]
    found = dict(blocks)
    for name, value in dotted.items():
        block, _, option = name.partition(".")
        option = option.replace("-", "_")
        if f"{block}.{option}" not in known:
            check_names([block], source)
            raise unknown_key(name, known, source)
        there = found.get(block)
        if there is not None and not isinstance(there, dict):
            continue  # which build_block refuses
        kept = {k: v for k, v in (there or {}).items() if k.replace("-", "_") != option}
        found[block] = {**kept, option: value}
    return found


def _resolve(blocks: Mapping[str, Any], source: str) -> RunConfig:
    synth = build_block("synth", blocks["synth"], source) if "synth" in blocks else None
    train = build_block("train", blocks.get("train"), source)
    infer = build_block("infer", blocks.get("infer"), source)
    _check_files(synth, train[0], infer[0], source)
    refine = build_block("refine", blocks["refine"], source) if "refine" in blocks else None
    several, one = build_block("metrics", blocks.get("metrics"), source)
    if several.modes and "mode" in blocks["metrics"]:
        raise DataError(f"{source}: metrics has both mode and modes", "keep one of them")
    metrics = tuple(dataclasses.replace(one, mode=mode) for mode in several.modes or (one.mode,))
    validate = build_block("validate", blocks["validate"], source) if "validate" in blocks else None
    asked, look = build_block("report", blocks.get("report"), source)
    config = RunConfig(
        synth, train, infer, metrics, needs_truth="metrics" in blocks,
        refine=refine if refine and refine[0].enabled else None, must_refine=refine is not None,
        validate=validate if validate and validate[0].when != "never" else None,
        report=look if "report" in blocks and asked.write else None,
    )  # fmt: skip
    if config.validate and config.validate[0].when == "always" and not config.shows_one_ground:
        raise DataError(
            f"{source}: validate needs both images of one ground, infer.hr_msi is another image",
            "leave the block validate out",
        )
    if config.needs_truth and config.truth_is_impossible:
        raise DataError(
            f"{source}: metrics needs the ground truth of the image that is sharpened, which only "
            "a synthetic scene has",
            "leave the block metrics out",
        )
    return config


def _check_files(
    synth: tuple[SynthFiles, SynthConfig] | None, train: TrainFiles, infer: InferFiles, source: str
) -> None:
    if synth is not None:
        if synth[0].cube is None:
            raise DataError(f"{source}: synth names no cube", "give synth: cube: FILE")
        named = [name for name, value in plain(train).items() if value != getattr(TrainFiles, name)]
        if named:
            raise DataError(
                f"{source}: the run makes its scene, so train.{named[0]} has no part in it",
                "leave it out, or leave the block synth out",
            )
        return
    if train.scene is None and train.lr_hsi is None:
        raise DataError(
            f"{source}: names nothing to fuse",
            "give synth: cube: FILE, or train: scene: FOLDER, or train: lr_hsi: and hr_msi:",
        )
    if train.scene is None and train.hr_msi is None and infer.hr_msi is None:
        raise DataError(f"{source}: names no image to sharpen", "give train: hr_msi: FILE")


def _check_uncertainty(config: RunConfig, source: str) -> None:
    """Refuse an uncertainty that nothing calibrates, or that a refinement may exceed."""
    if not config.infer[0].uncertainty:
        return
    if not config.train[1].uncertainty:
        raise DataError(
            f"{source}: infer.uncertainty is true and train.uncertainty is false, so that no "
            "calibration would be there",
            "give train: uncertainty: true",
        )
    if config.refine is not None and config.refine[1].ungated:
        raise DataError(
            f"{source}: infer.uncertainty is true and refine.ungated is true, which may make errors "
            "larger than what is expected",
            "give refine: ungated: false, or leave infer.uncertainty out",
        )


def _snapshot(config: RunConfig) -> dict[str, Any]:
    """Return the complete native config, without what has no part in the run."""
    found: dict[str, Any] = {"schema": SCHEMA}
    if config.synth is not None:
        found["synth"] = plain(*config.synth)
    own = () if config.synth is not None else (config.train[0],)
    found["train"] = plain(*own, config.train[1])
    found["infer"] = plain(*config.infer)
    found["refine"] = plain(*config.refine) if config.refine else {"enabled": False}
    if config.needs_truth or (config.synth is not None and not config.truth_is_impossible):
        scored = plain(config.metrics[0])
        del scored["mode"]
        found["metrics"] = {"modes": [one.mode for one in config.metrics], **scored}
    found["validate"] = plain(*config.validate) if config.validate else {"when": "never"}
    found["report"] = {"write": config.report is not None, **plain(config.report or ReportConfig())}
    return found
