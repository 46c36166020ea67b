"""Where a run and its log go."""

from __future__ import annotations

import warnings
from pathlib import Path

from spectralift_cli.core.errors import DataError, OptionError, SpectraliftWarning
from spectralift_cli.core.runs.config import RunConfig

LOG_NAME = "run.log"


def places(config: RunConfig, output: Path | None) -> tuple[Path, Path]:
    """Return the run's folder and that of its log; make the folders that only the config names.

    Args:
        config: the run, whose `output_dir` and `log_dir` count.
        output: the folder that replaces `output_dir`, or None.

    Raises:
        OptionError: neither names a folder.
        DataError: a folder cannot be made.
    """
    flat = config.flat
    given = flat.output_dir if flat else None
    folder = output or given
    if folder is None:
        raise OptionError("the run has no folder to write to", "give -o DIR")
    # resolved, or making `a/../logs` would make a
    log_dir = flat.log_dir.resolve() if flat and flat.log_dir else folder
    within = None if given is None else inside(log_dir, given)
    if within is not None:
        log_dir = folder / within  # it moves with the output
    made = [] if output else [folder.parent]
    for parent in made if inside(log_dir, folder) is not None else [*made, log_dir]:
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"{parent}: the folder cannot be made ({error.strerror})", "choose another one"
            ) from error
    return folder, log_dir


def inside(path: Path, folder: Path) -> Path | None:
    """Return a path relative to a folder, or None if it leads elsewhere."""
    path, folder = path.resolve(), folder.resolve()
    return path.relative_to(folder) if path.is_relative_to(folder) else None


def append_log(log_dir: Path, log: Path, folder: Path) -> None:
    """Add the finished run's log to the one in the folder that the config names."""
    target = log_dir / LOG_NAME
    try:
        with target.open("a", encoding="utf-8") as file:
            file.write(f"{log.read_text(encoding='utf-8')}\n")
    except OSError as error:
        warnings.warn(
            f"{target}: cannot be written ({error.strerror}); the log is in {folder}",
            SpectraliftWarning,
            stacklevel=3,
        )
