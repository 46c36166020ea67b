"""Options that several commands take, declared once."""

from __future__ import annotations

import contextlib
import re
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from spectralift_cli.core.config import SynthConfig
from spectralift_cli.core.formats import FORMATS, find_format
from spectralift_cli.core.sensors import DOCUMENTED_BY_BAND_COUNT, SENSORS

_SUFFIXES = ", ".join(suffix for row in FORMATS for suffix in row.suffixes[:1])
READING = "Reading"
WRITING = "Writing"
RUN = "Computing"

InputCube = Annotated[Path, typer.Argument(help=f"Cube ({_SUFFIXES}).", show_default=False)]
OutputCube = Annotated[
    Path,
    typer.Option(
        "-o", "--output", help=f"Where to write; the ending chooses the format ({_SUFFIXES}).",
        show_default=False,
    ),
]  # fmt: skip
Var = Annotated[
    str | None,
    typer.Option(
        help="Variable or dataset to read (.mat, .npz, .h5, .zarr).",
        rich_help_panel=READING, show_default="the only 3-D array",
    ),
]  # fmt: skip
AxisOrder = Annotated[
    str | None,
    typer.Option(
        metavar="ORDER", rich_help_panel=READING, show_default="yxb",
        help="Stored axes, a permutation of yxb, or yx for a 2-D one-band image.",
    ),
]  # fmt: skip
Wavelengths = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", rich_help_panel=READING, show_default="the file's own",
        help="Band centres (nm or um; FWHM as a second column), one line a band.",
    ),
]  # fmt: skip
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", show_default="half of what is free", rich_help_panel=READING,
        help="Most memory for a file that cannot be read by rows, like 500MB or 2GB.",
    ),
]  # fmt: skip
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an existing output.", rich_help_panel=WRITING)
]
CreationOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--co", metavar="KEY=VALUE", rich_help_panel=WRITING, show_default=False,
        help="Creation option of the output format; may be repeated. `info --formats` lists them.",
    ),
]  # fmt: skip
Window = Annotated[
    str | None,
    typer.Option(
        metavar="ROW,COL,HEIGHT,WIDTH", show_default="everything",
        help="Rectangle of pixels; ROW and COL count from 0.",
    ),
]  # fmt: skip

PsfFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", show_default=False,
        help="Point spread function in place of a documented shape: .csv, .npy, .mat, ...",
    ),
]  # fmt: skip
LOOSE = "Loose files"
LrHsi = Annotated[
    Path | None,
    typer.Option(metavar="FILE", rich_help_panel=LOOSE, help="Blurry hyperspectral image."),
]
HrMsi = Annotated[
    Path | None,
    typer.Option(metavar="FILE", rich_help_panel=LOOSE, help="Sharp multispectral image."),
]
SrfFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", show_default=False,
        help="Spectral response: curves (first column wavelength_nm or _um; .sli, .flt, .npz, .mat) "
        "or weights over the bands (.csv, .npy, .mat); - is stdin.",
    ),
]  # fmt: skip


def complete_sensor(incomplete: str) -> list[tuple[str, str]]:
    """Return the built-in sensors whose names start with what was typed."""
    start = incomplete.lower()
    return [(name, row.help) for name, row in SENSORS.items() if name.startswith(start)]


Sensor = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[:BAND,...]", show_default=False, autocompletion=complete_sensor,
        help="Built-in sensor (`srf list`), with the image's bands in its order where its band "
        "names do not tell: sentinel-2a:B2,B3,B4,B8.",
    ),
]  # fmt: skip
MsiBands = Annotated[
    str | None,
    typer.Option(
        metavar="CENTRE:FWHM,...", show_default=False,
        help="The MSI's bands as Gaussians in nm: 480:65,560:35,665:30.",
    ),
]  # fmt: skip
DropUncoveredBands = Annotated[
    bool,
    typer.Option(
        "--drop-uncovered-bands",
        help="Drop MSI bands that the cube's wavelengths cover less than half.",
    ),
]
_COUNTS = ", ".join(map(str, DOCUMENTED_BY_BAND_COUNT))
NumMsiBands = Annotated[
    int | None,
    typer.Option(
        "--num-msi-bands", "--num-bands-msi-non-synthetic", rich_help_panel=LOOSE,
        show_default=False, help=f"Use the documented sensor with that many bands ({_COUNTS}).",
    ),
]  # fmt: skip
FwhmFactor = Annotated[
    float | None,
    typer.Option(
        min=1e-3, max=1e3, rich_help_panel=LOOSE, show_default=f"{SynthConfig.fwhm_factor:g}",
        help="A documented band's Gaussian std is (high edge - low edge) / factor.",
    ),
]  # fmt: skip
RESPONSES = ("srf_file", "sensor", "msi_bands")
Estimate = Annotated[
    Path | None,
    typer.Option(
        metavar="JSON", show_default=False,
        help="What `estimate` found between the two images: what it marks as used applies.",
    ),
]  # fmt: skip
SceneOption = Annotated[
    Path | None, typer.Option("--scene", metavar="SCENE", help="The scene, as an option.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")]
Device = Annotated[
    str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=RUN)
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1, max=4096, rich_help_panel=RUN, show_default="all this process may use",
        help="Processor threads; changes the speed, not the result.",
    ),
]  # fmt: skip
DType = Annotated[
    Literal["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"] | None,
    typer.Option(
        rich_help_panel=WRITING, show_default="the LR-HSI's if integer, else float32",
        help="Stored type; integers take the LR-HSI's scale, offset and nodata.",
    ),
]  # fmt: skip
Workers = Annotated[
    int | None,
    typer.Option(
        min=1, max=1024, rich_help_panel=RUN, show_default="this process alone",
        help="Processes on this machine, this one among them, that share the work (.npy, ENVI, "
        ".zarr); changes no byte.",
    ),
]  # fmt: skip
ShardText = Annotated[
    str | None,
    typer.Option(
        "--shard", metavar="I/N", rich_help_panel=RUN, show_default="everything",
        help="Do the I-th of N shares; runs of the others, anywhere, do theirs and the last one "
        "finishes the output.",
    ),
]  # fmt: skip
Scheduler = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS", rich_help_panel=RUN, show_default=False,
        help="Dask scheduler whose workers do the work, like tcp://host:8786.",
    ),
]  # fmt: skip
SchedulerFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", rich_help_panel=RUN, show_default=False,
        help="File that names the Dask scheduler.",
    ),
]  # fmt: skip
ResumeJob = Annotated[
    bool,
    typer.Option(
        "--resume", rich_help_panel=RUN,
        help="Keep what is done if this run is killed, and continue what a killed run kept.",
    ),
]  # fmt: skip

_STDIN_BYTES = 16 * 2**20
_SIZE_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE_UNITS |= {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_size(text: str | None) -> int | None:
    """Return the bytes of a size like 500MB, 2GB, 1.5GiB or 4096.

    Raises:
        typer.BadParameter: it is none.
    """
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d{1,12}(?:\.\d{1,6})?)\s*([KMGT]?I?)B?\s*", text.upper())
    if found is None or found.group(2) not in _SIZE_UNITS:
        raise typer.BadParameter(f"{text!r} is not a size like 500MB or 2GB")
    return int(float(found.group(1)) * _SIZE_UNITS[found.group(2)])


def parse_window(text: str | None) -> tuple[int, int, int, int] | None:
    """Return (row, col, height, width) of `ROW,COL,HEIGHT,WIDTH`.

    Raises:
        typer.BadParameter: it is not four whole numbers.
    """
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if len(words) != 4 or not all(re.fullmatch(r"-?\d{1,15}", word) for word in words):
        raise typer.BadParameter(f"{text!r} is not ROW,COL,HEIGHT,WIDTH in whole pixels")
    row, col, height, width = map(int, words)
    return row, col, height, width


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """Return (I, N) of `I/N`.

    Raises:
        typer.BadParameter: it is not 1/N to N/N.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    index, count = map(int, found.groups()) if found else (0, 0)
    if not 1 <= index <= count:
        raise typer.BadParameter(f"{text!r} is not a share like 1/3, 2/3 or 3/3")
    return index, count


def parse_creation_options(pairs: Sequence[str] | None) -> dict[str, str]:
    """Return the KEY=VALUE pairs of `--co`, keys in upper case.

    Raises:
        typer.BadParameter: one is not KEY=VALUE, or a key comes twice.
    """
    parsed: dict[str, str] = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or not key or not value:
            raise typer.BadParameter(f"--co {pair!r} is not KEY=VALUE")
        if key.upper() in parsed:
            raise typer.BadParameter(f"--co {key} is given twice")
        parsed[key.upper()] = value
    return parsed


def check_output_name(path: Path) -> None:
    """Refuse an output whose ending names no writable format, before any work is done.

    Raises:
        typer.BadParameter: no such format.
    """
    row = find_format(path)
    if row is None or not row.creator:
        raise typer.BadParameter(
            f"{path}: the ending does not name a format that can be written ({_SUFFIXES})"
        )


def refuse_replaced(given: Collection[str], option: str, replaced: Sequence[str]) -> None:
    """Refuse options that a file stands in for, rather than ignore them.

    Args:
        given: the parameters that the user gave a value.
        option: the parameter of the file.
        replaced: the parameters that it replaces.

    Raises:
        typer.BadParameter: both are given.
    """
    unused = [name for name in replaced if name in given] if option in given else []
    if unused:
        raise typer.BadParameter(
            f"--{unused[0].replace('_', '-')} does not apply: "
            f"--{option.replace('_', '-')} replaces it"
        )


def refuse_several_responses(given: Collection[str], replaced: Sequence[str]) -> None:
    """Refuse more than one of `--srf-file`, `--sensor` and `--msi-bands`, or what each replaces.

    Args:
        given: the parameters that the user gave a value.
        replaced: the parameters that each of them replaces.

    Raises:
        typer.BadParameter: both are given.
    """
    for i, name in enumerate(RESPONSES):
        refuse_replaced(given, name, (*RESPONSES[i + 1 :], *replaced))


def only_scene(argument: Path | None, option: Path | None) -> Path | None:
    """Return the scene given as an argument or as `--scene`.

    Raises:
        typer.BadParameter: both are given.
    """
    if argument is not None and option is not None:
        raise typer.BadParameter(f"the scene is given twice: {argument} and --scene {option}")
    return argument if argument is not None else option


@contextlib.contextmanager
def stdin_as_file(path: Path | None) -> Iterator[Path | None]:
    """Yield a path as it is, or, where it is `-`, a temporary file with what comes from stdin."""
    if path is None or str(path) != "-":
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "stdin.csv"
        file.write_bytes(sys.stdin.buffer.read(_STDIN_BYTES))
        yield file
