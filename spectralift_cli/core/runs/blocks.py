"""The blocks of a run's config: for each stage the files it reads and the options it takes.

`schema: spectralift.run/1` and one block a stage. Keys are the options' names in snake_case; the
kebab-case of the command line is understood.
"""

# ruff: noqa: RUF009  # key() returns dataclasses.field(), which ruff cannot know

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from spectralift_cli.core.config import (
    InferConfig,
    MetricsConfig,
    RefineConfig,
    ReportConfig,
    SynthConfig,
    TrainConfig,
)
from spectralift_cli.core.cube import STORED_DTYPES
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats import (
    Format,
    check_creation_options,
    find_format,
    writable_suffixes,
)
from spectralift_cli.core.optionfields import Option, canonical, check, from_json, options_of

SCHEMA = "spectralift.run/1"
_MODES = ("standard", "published")

_T = TypeVar("_T")


def key(default: Any, text: str, **more: Any) -> Any:
    """Return a dataclass field for a config key with its help."""
    return field(default=default, metadata={"option": Option(text, **more)})


@dataclass(frozen=True)
class SynthFiles:
    """What is degraded into a scene."""

    cube: Path | None = key(None, "the sharp hyperspectral cube")
    var: str | None = key(None, "its variable, where the file holds several arrays")
    axis_order: str | None = key(None, "its stored axes, a permutation of yxb")
    wavelengths: Path | None = key(None, "file of its band centres")
    psf_file: Path | None = key(None, "kernel in place of psf_type, sigma and kernel_size")
    srf_file: Path | None = key(None, "response in place of the sensor of num_msi_bands")
    sensor: str | None = key(None, "built-in sensor in its place, NAME or NAME:BAND,...")
    msi_bands: str | None = key(None, "Gaussians in its place, CENTRE:FWHM,... in nm")
    format: str = key("h5", "ending of the cubes in the scene")

    def __post_init__(self) -> None:
        object.__setattr__(self, "format", check_ending(self.format))


@dataclass(frozen=True)
class TrainFiles:
    """What is trained on where the run does not synthesize it."""

    scene: Path | None = key(None, "a scene's folder, which excludes the other files")
    lr_hsi: Path | None = key(None, "the blurry hyperspectral image")
    hr_msi: Path | None = key(None, "the sharp multispectral image")
    srf_file: Path | None = key(None, "response: curves, weights or a matrix")
    sensor: str | None = key(None, "built-in sensor, NAME or NAME:BAND,...")
    msi_bands: str | None = key(None, "the MSI's bands as Gaussians, CENTRE:FWHM,... in nm")
    num_msi_bands: int | None = key(None, "the documented sensor with that many bands")
    fwhm_factor: float = key(
        SynthConfig.fwhm_factor, "a documented band's Gaussian std is (high edge - low edge) / "
        "factor", low=1e-3, high=1e3,
    )  # fmt: skip
    srf_wavelengths: str = key(
        "true", "wavelengths the documented sensor is laid over", choices=("true", "invented")
    )
    drop_uncovered_bands: bool = key(False, "drop MSI bands that are covered less than half")
    var: str | None = key(None, "variable of the LR-HSI")
    axis_order: str | None = key(None, "stored axes of the LR-HSI, a permutation of yxb")
    wavelengths: Path | None = key(None, "file of the LR-HSI's band centres")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class InferFiles:
    """What is sharpened, and how the sharp cube is stored."""

    hr_msi: Path | None = key(None, "another image than the one of the scene or training")
    var: str | None = key(None, "its variable")
    axis_order: str | None = key(None, "its stored axes, a permutation of yxb, or yx")
    dtype: str | None = key(
        None, "stored type (default: the LR-HSI's if integer, else float32)",
        choices=tuple(STORED_DTYPES),
    )  # fmt: skip
    scale: float | None = key(None, "stored value to unit of integers (default: the LR-HSI's)")
    offset: float | None = key(None, "likewise, added")
    nodata: float | None = key(None, "mark of holes in integers (default: the LR-HSI's)")
    format: str = key("h5", "ending of the sharp cube")
    co: dict[str, str] = field(
        default_factory=dict, metadata={"option": Option("creation options of that format")}
    )
    inference_batch_size: int | None = key(
        None, "pixels at a time; changes memory and speed only", low=1, high=2**31 - 1
    )
    uncertainty: bool = key(
        False, "write uncertainty.FORMAT, too, of the cube before refine; needs train.uncertainty"
    )

    def __post_init__(self) -> None:
        check(self)
        object.__setattr__(self, "format", check_ending(self.format))
        if self.dtype is not None and self.dtype not in self.row.dtypes:
            raise DataError(
                f"{self.row.name} cannot hold {self.dtype} values",
                f"choose dtype from {', '.join(self.row.dtypes)}",
            )
        object.__setattr__(self, "co", check_creation_options(self.row, self.co))

    @property
    def row(self) -> Format:
        """The format that the ending names."""
        row = find_format(Path(f"cube.{self.format}"))
        if row is None:
            raise DataError(f"{self.format} is no format", f"use one of {writable_suffixes()}")
        return row


@dataclass(frozen=True)
class RefineFiles:
    """Whether the sharp cube is made to agree with both images, and what is known of their blur."""

    enabled: bool = key(True, "whether it is done at all")
    psf_file: Path | None = key(None, "point spread function (default: the scene's, or found)")


@dataclass(frozen=True)
class MetricsModes:
    """Which conventions are scored, where it is more than one."""

    modes: tuple[str, ...] = key((), "several modes: standard, published; excludes mode")

    def __post_init__(self) -> None:
        modes = tuple(canonical(mode, _MODES) for mode in self.modes)
        object.__setattr__(self, "modes", modes)
        for mode in modes:
            if mode not in _MODES or modes.count(mode) > 1:
                raise DataError(f"modes is {list(modes)}", f"name each once of {', '.join(_MODES)}")


@dataclass(frozen=True)
class ValidateFiles:
    """Whether the result is validated without a ground truth, and what of it is written."""

    when: str = key(
        "auto", "auto: where there is no ground truth to score against; always; never",
        choices=("auto", "always", "never"),
    )  # fmt: skip
    maps: bool = key(True, "write the maps of both residuals beside validate.json")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class ValidateConfig:
    """What a validation does."""

    reduced: bool = key(True, "run the pipeline one scale down, too: the time of another training")


@dataclass(frozen=True)
class ReportFiles:
    """Whether the run ends with a report."""

    write: bool = key(True, "write report.html")


# the files first, then the options that determine values
BLOCKS: dict[str, tuple[type[Any], type[Any]]] = {
    "synth": (SynthFiles, SynthConfig),
    "train": (TrainFiles, TrainConfig),
    "infer": (InferFiles, InferConfig),
    "refine": (RefineFiles, RefineConfig),
    "metrics": (MetricsModes, MetricsConfig),
    "validate": (ValidateFiles, ValidateConfig),
    "report": (ReportFiles, ReportConfig),
}


def block_keys(block: str) -> tuple[str, ...]:
    """Return the keys a block may have."""
    return tuple(name for kind in BLOCKS[block] for name in options_of(kind))


def build_block(block: str, values: object, source: str) -> tuple[Any, Any]:
    """Return a block's files and its config, checked.

    Args:
        block: a key of `BLOCKS`.
        values: as read; None (nothing under the block's name) stands for all defaults.
        source: the file, for messages.

    Raises:
        DataError: not a mapping, an unknown key (with its nearest neighbour), a wrong value.
    """
    if values is None:
        values = {}
    if not isinstance(values, Mapping):
        raise DataError(
            f"{source}: {block} is {values!r:.80}, a block of keys is needed there",
            f"write {block}: and its keys below, indented",
        )
    known = block_keys(block)
    given: dict[str, Any] = {}
    for name, value in values.items():
        plain = name.replace("-", "_")
        if plain not in known:
            raise unknown_key(f"{block}.{name}", [f"{block}.{k}" for k in known], source)
        if plain in given:
            raise DataError(f"{source}: {block}.{plain} stands there twice", "keep one of them")
        given[plain] = value
    files, config = BLOCKS[block]
    where = f"{source}: {block}"
    return build(files, _part(given, files), where), build(config, _part(given, config), where)


def _part(values: Mapping[str, Any], kind: type[Any]) -> dict[str, Any]:
    return {name: values[name] for name in options_of(kind) if name in values}


def build(kind: type[_T], values: Mapping[str, Any], source: str) -> _T:
    """Return a config of values as YAML has them, checked by name, type and bound.

    Raises:
        DataError: an unknown key, a value of the wrong type or out of bounds.
    """
    hints = typing.get_type_hints(kind)
    options = options_of(kind)
    fixed: dict[str, Any] = {}
    for name, value in values.items():
        takes = {hints.get(name), *typing.get_args(hints.get(name))}
        if isinstance(value, bool) and bool not in takes:
            if name not in options or "true" not in options[name][1].choices:
                # pydantic would take it for 1 or 0
                raise DataError(
                    f"{source}: {name} is {str(value).lower()}, which is neither number nor text",
                    f"{name}: {options[name][1].help}" if name in options else "mend the value",
                )
            value = str(value).lower()
        elif name == "co" and isinstance(value, Mapping):
            value = {str(k): _creation_text(v) for k, v in value.items()}
        fixed[name] = value
    try:
        return from_json(kind, fixed, source)
    except DataError as error:
        if error.message.startswith(f"{source}: "):
            raise
        raise type(error)(f"{source}: {error.message}", error.hint) from error


def _creation_text(value: object) -> str:
    """Return a creation option's value as --co has it; YAML takes YES and NO for true and false."""
    if isinstance(value, bool):
        return "YES" if value else "NO"
    return str(value)


def unknown_key(name: str, known: Iterable[str], source: str) -> DataError:
    """Return the error for a key that is not there, with its nearest neighbour."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known[:40])}"
    return DataError(f"{source}: unknown key {name[:80]!r}", hint)


def check_names(names: Iterable[str], source: str) -> None:
    """Refuse names at the top of a native config that are no stage.

    Raises:
        DataError: one is unknown, or comes with a later version.
    """
    for name in names:
        if name not in BLOCKS and name != "schema":
            dotted = [f"{block}.{option}" for block in BLOCKS for option in block_keys(block)]
            raise unknown_key(name, ["schema", *BLOCKS, *dotted], source)


def check_ending(ending: str) -> str:
    """Return an ending without its dot and in lower case.

    Raises:
        DataError: no format that can be written has it.
    """
    plain = ending.lower().lstrip(".")
    row = find_format(Path(f"cube.{plain}"))
    if row is None or not row.creator or f".{plain}" not in row.suffixes:
        raise DataError(
            f"format is {ending!r:.60}, which names none that can be written",
            f"use one of {writable_suffixes()}",
        )
    return plain


def plain(*parts: Any) -> dict[str, Any]:
    """Return config dataclasses as one mapping that YAML can hold, without what does not apply."""
    found: dict[str, Any] = {}
    for part in parts:
        unused = part.unused if isinstance(part, TrainConfig) else ()
        for name, value in dataclasses.asdict(part).items():
            if name in unused:
                continue
            if isinstance(value, Path):
                value = str(value)
            found[name] = list(value) if isinstance(value, tuple) else value
    return found
