"""What the formats share about spectra: wavelength units, wavelength files, nodata that fits."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spectralift_cli.core.cube import FloatArray
from spectralift_cli.core.errors import DataError, SpectraliftWarning
from spectralift_cli.core.floats import as_float64

_NM_PER_UNIT = {
    "nm": 1.0, "nanometer": 1.0, "nanometers": 1.0, "nanometre": 1.0, "nanometres": 1.0,
    "um": 1e3, "µm": 1e3, "μm": 1e3, "micron": 1e3, "microns": 1e3,
    "micrometer": 1e3, "micrometers": 1e3, "micrometre": 1e3, "micrometres": 1e3,
    "mm": 1e6, "millimeters": 1e6, "m": 1e9, "meters": 1e9,
    "angstrom": 0.1, "angstroms": 0.1,
}  # fmt: skip
_NO_UNIT = {"", "unknown", "none", "undefined", "unitless"}
_LIMIT_BYTES = 16 * 2**20


def to_nm(
    values: Sequence[float] | FloatArray,
    unit: str | None,
    source: object,
    *,
    like_nm: FloatArray | None = None,
) -> FloatArray | None:
    """Return wavelengths or widths in nanometres.

    Args:
        values: (bands,) numbers as stored.
        unit: the unit as the file names it; None, "" and "Unknown" mean that it does not.
        source: the file, for messages.
        like_nm: for widths, the centres as stored: a missing unit is then judged by the centres.

    Returns:
        (bands,) nanometres; None if the unit is not a length (wavenumber, GHz) or the values are
        not finite and positive, with a warning. Without a unit, values below 100 are taken for
        micrometres, with a warning.
    """
    array: FloatArray = as_float64(values)
    if not array.size:
        return None
    if not np.isfinite(array).all() or (array < 0).any():
        _warn(f"{source}: wavelengths that are negative or not finite are ignored")
        return None
    name = (unit or "").strip().lower()
    if name in _NM_PER_UNIT:
        return array * _NM_PER_UNIT[name]
    if name not in _NO_UNIT:
        _warn(f"{source}: wavelengths in {unit!r} are ignored; nm and um are understood")
        return None
    if like_nm is not None:
        return array * (1e3 if _looks_like_um(like_nm) else 1.0)
    if _looks_like_um(array):
        _warn(
            f"{source}: wavelengths up to {array.max():g} without a unit are taken for micrometres"
        )
        return array * 1e3
    return array


def _looks_like_um(array: FloatArray) -> bool:
    return bool(array.max() < 100)


def steps_back(wavelengths_nm: FloatArray | None) -> list[int]:
    """Return the 1-based bands whose wavelength is below that of the band before them."""
    if wavelengths_nm is None:
        return []
    return [int(i) + 2 for i in np.flatnonzero(np.diff(wavelengths_nm) < 0)]


def fitting_nodata(value: float | None, dtype: np.dtype[Any], source: object) -> float | int | None:
    """Return a file's nodata value if its data type can hold it, else None with a warning."""
    if value is None:
        return None
    if dtype.kind == "f":
        return float(value)
    info = np.iinfo(dtype)
    if math.isfinite(value) and value == int(value) and info.min <= value <= info.max:
        return int(value)
    _warn(f"{source}: the nodata value {value:g} cannot occur in {dtype.name} data; it is ignored")
    return None


def read_wavelengths(path: Path) -> tuple[FloatArray, FloatArray | None]:
    """Read band centres, and FWHM if there is a second column, from a text or .npy file.

    Text: one band a line, numbers separated by commas, semicolons, tabs or spaces; `#` starts a
    comment; a header line may name the unit (`wavelength_nm`, `wavelength_um`). A single line of
    many numbers is read as one band each.

    Raises:
        DataError: there is no such file, it holds something else than numbers, or a width is 0.
    """
    try:
        if not path.is_file():
            raise DataError(f"{path}: no such file of wavelengths", "check the path")
        if path.stat().st_size > _LIMIT_BYTES:
            raise DataError(f"{path}: too large for a list of wavelengths", "one number per band")
        if path.suffix.lower() == ".npy":
            table, unit = _array_table(path)
        else:
            table, unit = _text_table(path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror})", "check its permissions"
        ) from error
    centres = to_nm(table[:, 0], unit, path)
    widths = to_nm(table[:, 1], unit, path, like_nm=table[:, 0]) if table.shape[1] > 1 else None
    if centres is None or (widths is not None and (widths <= 0).any()):
        raise DataError(
            f"{path}: wavelengths and widths must be positive numbers in nm or um",
            "one band a line: centre in nm, then FWHM in nm if known",
        )
    return centres, widths


def _array_table(path: Path) -> tuple[FloatArray, str | None]:
    try:
        array = np.load(path, allow_pickle=False)
        table: FloatArray = as_float64(array)
    except (ValueError, TypeError, EOFError) as error:
        raise DataError(
            f"{path}: not an array of wavelengths ({error})", "give (bands,) or (bands, 2)"
        ) from error
    if table.ndim == 1:
        table = table[:, None]
    if table.ndim != 2 or not table.size:
        raise DataError(
            f"{path}: an array of shape {array.shape} is not a list of wavelengths",
            "give (bands,) or (bands, 2)",
        )
    return table, None


def _text_table(path: Path) -> tuple[FloatArray, str | None]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not a text file of wavelengths", "one number per band, one line a band"
        ) from error
    unit = None
    rows: list[list[float]] = []
    for line in text.splitlines():
        words = [w for w in re.split(r"[,;\s]+", line.partition("#")[0].strip()) if w]
        if not words:
            continue
        try:
            rows.append([float(w) for w in words])
        except ValueError:
            found = re.search(r"(?:^|[_\s(\[])(nm|um|µm)\b", line.lower())
            if rows or (unit is None and found is None and not line[:1].isalpha()):
                raise DataError(
                    f"{path}: {line.strip()[:60]!r} is not a line of numbers",
                    "one band a line: centre in nm, then FWHM in nm if known",
                ) from None
            unit = found.group(1) if found else None
    if len(rows) == 1 and len(rows[0]) > 2:
        rows = [[value] for value in rows[0]]
    widths = {len(row) for row in rows}
    if not rows or len(widths) != 1:
        raise DataError(
            f"{path}: {len(rows)} lines with {sorted(widths)} numbers each are not a wavelength list",
            "one band a line: centre in nm, then FWHM in nm if known",
        )
    return np.array(rows, dtype=np.float64), unit


def _warn(message: str) -> None:
    warnings.warn(message, SpectraliftWarning, stacklevel=3)
