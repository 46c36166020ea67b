"""How stages are told to read, compute and store; what they refuse before they begin."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spectralift_cli.core.cube import Progress, no_progress
from spectralift_cli.core.cubeio import CubeReader
from spectralift_cli.core.errors import DataError, OptionError, OutputExistsError
from spectralift_cli.core.formats import open_cube

AnyPath = str | Path


@dataclass(frozen=True)
class Reading:
    """How to read a cube that does not say everything itself; see `open_cube`."""

    var: str | None = None
    axis_order: str | None = None
    wavelengths: Path | None = None
    memory_bytes: int | None = None

    def open(self, path: AnyPath, *, allow_2d: bool = False) -> CubeReader:
        """Open a cube."""
        return open_cube(
            path, var=self.var, axis_order=self.axis_order, wavelengths=self.wavelengths,
            memory_bytes=self.memory_bytes, allow_2d=allow_2d,
        )  # fmt: skip


@dataclass(frozen=True)
class Execution:
    """How to compute: changes time and memory, never the result.

    Args:
        device: auto, cpu, cuda, cuda:N or mps.
        threads: at most; None for all this process may use.
        progress: called with (done, total).
        memory_bytes: the most that this process may ever hold; None for what speed asks for, which
            does not depend on the image. `infer` alone keeps to it, on a processor.
    """

    device: str = "auto"
    threads: int | None = None
    progress: Progress = field(default=no_progress)
    memory_bytes: int | None = None


ON_PROCESSOR = Execution("cpu")


@dataclass(frozen=True)
class Storage:
    """How a sharp cube is stored.

    Args:
        dtype: stored type; None for the LR-HSI's if it is an integer, else float32.
        scale: stored value to unit of an integer output; None for the LR-HSI's.
        offset: likewise.
        nodata: mark of holes in an integer output; None for the LR-HSI's, or, where it has none and
            there may be holes, the type's lowest (unsigned: highest) value. Floats have NaN.
        options: creation options of the output's format.
    """

    dtype: str | None = None
    scale: float | None = None
    offset: float | None = None
    nodata: float | None = None
    options: Mapping[str, str] | None = None

    @property
    def numbers(self) -> dict[str, float]:
        """Scale, offset and nodata, as far as they are given."""
        given = {"scale": self.scale, "offset": self.offset, "nodata": self.nodata}
        return {name: value for name, value in given.items() if value is not None}


def check_absent(path: Path, overwrite: bool, *, apart_from: Sequence[AnyPath] = ()) -> None:
    """Refuse an output that exists or is also another file of the same command, before any work."""
    for other in apart_from:
        if path.resolve() == Path(other).resolve():
            raise OptionError(
                f"{path} is named twice, as an output and as another file", "choose another name"
            )
    if os.path.lexists(path) and not overwrite:
        raise OutputExistsError(f"{path}: exists already", "--overwrite replaces it")
    if not path.parent.is_dir():
        raise DataError(
            f"{path}: the folder {path.parent} does not exist",
            f"make it first: mkdir -p {path.parent}",
        )
