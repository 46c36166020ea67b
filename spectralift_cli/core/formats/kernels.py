"""Point spread functions as files: a table of numbers as text, or an array in any cube format."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from spectralift_cli.core.cube import FloatArray
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.floats import as_float64
from spectralift_cli.core.formats import open_cube
from spectralift_cli.core.operators.psf import check_psf
from spectralift_cli.core.outputs import write_text

_TEXT_SUFFIXES = (".csv", ".txt", ".tsv")
_MAX_SIDE = 1025  # kernel-size goes to 512
_SUM_TOLERANCE = 1e-6
_MAX_BYTES = 64 * 2**20  # a text of 1025 x 1025 numbers of up to 60 characters


def read_psf(path: str | Path, var: str | None = None) -> FloatArray:
    """Read a point spread function.

    Args:
        path: .csv or .txt, one row of the kernel a line, numbers separated by commas, semicolons or
            white space, `#` starting a comment; or an array, in .npy, .mat, .npz, .h5, .tif.
        var: name of the variable, where the file holds several arrays.

    Returns:
        (k, k) float64, sum 1.

    Raises:
        DataError: no such file, it is damaged, or it holds no usable kernel; see `check_psf`.
    """
    path = Path(path)
    if path.suffix.lower() in _TEXT_SUFFIXES:
        return check_psf(_read_text(path), path)
    try:
        reader = open_cube(path, var=var, allow_2d=True)
    except DataError as error:
        if var is not None or "--var" not in error.hint:
            raise
        # the option names the cube's variable, and no option names that of a PSF
        raise DataError(error.message, "give a file that holds the kernel alone") from error
    with reader:
        rows, cols, bands = reader.meta.shape
        if bands != 1 or max(rows, cols) > _MAX_SIDE:
            raise DataError(
                f"{path}: a PSF is one image of at most {_MAX_SIDE} x {_MAX_SIDE} pixels, this is "
                f"{rows} x {cols} x {bands}",
                "give a file, or name a variable, that holds the kernel alone",
            )
        meta = reader.meta
        values = as_float64(reader.read()[:, :, 0])
        return check_psf(values * meta.scale + meta.offset, path)


def describe_psf(path: Path) -> dict[str, Any] | None:
    """Return what a text file holds if it is a PSF, as JSON-ready values, else None.

    A PSF is told from a table of responses by its form: numbers only, as many rows as columns, an
    odd number of them, that sum to 1.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    try:
        kernel = _read_text(path)
    except DataError:
        if not path.is_file():
            raise
        return None  # what is wrong with it is said by the reader of responses
    size, total = len(kernel), float(kernel.sum())
    if kernel.shape != (size, size) or size % 2 == 0 or not abs(total - 1) < _SUM_TOLERANCE:
        return None
    axis = np.arange(size) - size // 2
    by_row, by_col = kernel.sum(axis=1) / total, kernel.sum(axis=0) / total
    centroid = [float(axis @ by_row), float(axis @ by_col)]
    # kernels that are negative in places may have no spread
    spread = [
        float(axis**2 @ share - c**2) for share, c in zip((by_row, by_col), centroid, strict=True)
    ]
    return {
        "kind": "psf",
        "path": str(path),
        "size": size,
        "sum": total,
        "min": float(kernel.min()),
        "max": float(kernel.max()),
        "centroid_px": centroid,
        "sigma_px": [math.sqrt(value) if value >= 0 else None for value in spread],
    }


def write_psf(path: str | Path, kernel: FloatArray, *, overwrite: bool = False) -> Path:
    """Write a point spread function (k, k) as CSV, every number to its last bit.

    Raises:
        DataError: it cannot be written.
        OutputExistsError: it exists and `overwrite` is false.
    """
    lines = (",".join(repr(float(value)) for value in row) for row in kernel)
    write_text(Path(path), "\n".join(lines) + "\n", overwrite=overwrite)
    return Path(path)


def _read_text(path: Path) -> FloatArray:
    try:
        if not path.is_file():
            raise DataError(f"{path}: no such PSF file", "check the path")
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise DataError(
                f"{path}: {size:,} bytes are too many for a PSF of at most "
                f"{_MAX_SIDE} x {_MAX_SIDE} numbers",
                "give a table with one row of the kernel a line",
            )
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file", "give a table of numbers") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", "check the file") from error
    rows: list[list[float]] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = re.split(r"[,;\s]+", line.partition("#")[0].strip(" \t,;"))
        if words == [""]:
            continue
        try:
            rows.append([float(word) for word in words])
        except ValueError:
            raise DataError(
                f"{path}: line {number}, {line.strip()[:60]!r}, is not a row of numbers",
                "give a table with one row of the kernel a line",
            ) from None
        if len(rows[-1]) != len(rows[0]) or len(rows) > _MAX_SIDE:
            raise DataError(
                f"{path}: row {len(rows)} has {len(rows[-1])} numbers and the first has "
                f"{len(rows[0])}; a PSF has at most {_MAX_SIDE} rows of equal length",
                "give a square table",
            )
    if not rows:
        raise DataError(f"{path}: holds no numbers", "give a table of numbers")
    return np.array(rows, dtype=np.float64)
