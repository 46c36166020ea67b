"""Response curves in other programs' files: ENVI spectral libraries, .flt filters, named arrays.

*ENVI spectral library* (NV5, "ENVI Header Files"): a header with `file type = ENVI Spectral Library`,
`samples` wavelengths, `lines` spectra, and a data file of lines x samples; each spectrum is a band.

*.flt*, told apart by the first line. 6S (second simulation of the satellite signal, `iwave = 1`): two
numbers, the first and last wavelength in um, then the response at every 0.0025 um between them on
6S's grid, which starts at 0.25 um; one band. MODTRAN and FLAASH: a line whose first letter is the
unit (N nm, M um, W 1/cm), then for each band a line with its name and lines of wavelength, response
and possibly more.

*Arrays* (.npz, .mat, .h5): a vector called wavelength(s), wl or lambda, with the unit as `_nm` or
`_um`, and one matrix with as many rows or columns.

The layouts of .flt follow 6S's source and MODTRAN's manual; no file of another program was at hand.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from spectralift_cli.core.cube import AnyArray, FloatArray
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.floats import as_float64
from spectralift_cli.core.formats import find_format
from spectralift_cli.core.formats.spectral import to_nm
from spectralift_cli.core.sensors.curve import Curve

_TEXT_BYTES = 4 * 2**20
_LIBRARY_BYTES = 64 * 2**20
_MAX_BANDS = 1024
_SIXS_FIRST_UM, _SIXS_STEP_UM, _SIXS_SAMPLES = 0.25, 0.0025, 1501
_UNITS = {"n": "nm", "m": "um"}
_WAVELENGTH_NAME = re.compile(r"(?:wavelengths?|wl|lambda|wave)(?:_(nm|um))?")
_RESPONSE_NAMES = ("srf", "rsr", "response", "responses", "curves")
_HEADER_ENDING = ".hdr"


def read_library(path: Path) -> tuple[Curve, ...] | None:
    """Return the curves in a file of another program, or None if it is a table or bare matrix.

    Raises:
        DataError: it is damaged, too large, or holds no response curves.
        OSError: it cannot be read.
    """
    ending = path.suffix.lower()
    if ending in (".sli", _HEADER_ENDING):
        return _read_envi(path)
    if ending == ".flt":
        return parse_filters(_text(path), path)
    row = find_format(path)
    if row is None or row.name not in ("npz", "mat", "hdf5"):
        return None
    return curves_of_arrays(_arrays(path, row.name), path)


def _arrays(path: Path, kind: str) -> dict[str, AnyArray]:
    if kind == "npz":
        from spectralift_cli.core.formats.npz import small_arrays
    elif kind == "mat":
        from spectralift_cli.core.formats.mat import small_arrays
    else:
        from spectralift_cli.core.formats.hdf5_tree import small_arrays
    return small_arrays(path)


def curves_of_arrays(arrays: dict[str, AnyArray], source: object) -> tuple[Curve, ...] | None:
    """Return the curves in a file's arrays, or None if none of them is a vector of wavelengths.

    Raises:
        DataError: several could be the wavelengths or the responses, or none fits.
    """
    found = {name: _WAVELENGTH_NAME.fullmatch(name.lower()) for name in arrays}
    vectors = [name for name, match in found.items() if match is not None]
    if not vectors:
        return None
    if len(vectors) > 1:
        raise DataError(
            f"{source}: holds several lists of wavelengths: {', '.join(vectors[:8])}",
            "save the one that belongs to the responses",
        )
    vector = arrays[vectors[0]]
    count = vector.size
    if max(vector.shape, default=0) != count or count < 2:
        raise DataError(
            f"{source}: {vectors[0]} of shape {vector.shape} is no list of wavelengths",
            "a response needs two or more of them",
        )
    tables = {
        name: array.reshape(count, 1) if array.size == count else array
        for name, array in arrays.items()
        if name not in vectors
        and (array.size == count or (array.ndim == 2 and count in array.shape))
        and name not in ("fwhm_nm", "bad_bands")
    }
    named = [name for name in tables if name.lower() in _RESPONSE_NAMES]
    chosen = named if len(named) == 1 else list(tables)
    if len(chosen) != 1:
        listing = ", ".join(f"{n} {'x'.join(map(str, a.shape))}" for n, a in arrays.items())
        raise DataError(
            f"{source}: holds {len(chosen)} arrays that could be responses at the {count} "
            f"wavelengths of {vectors[0]} ({listing[:200]})",
            "save one matrix with a row or column for each wavelength, called srf",
        )
    table = as_float64(tables[chosen[0]])
    table = table if table.shape[0] == count else table.T  # (K, M)
    match = found[vectors[0]]
    unit = match[1] if match is not None else None
    names = [f"B{i + 1}" for i in range(table.shape[1])]
    return make_curves(vector.reshape(-1), unit, table, names, source)


def make_curves(
    stored: AnyArray, unit: str | None, table: FloatArray, names: list[str], source: object
) -> tuple[Curve, ...]:
    """Return the columns of a table as curves.

    Args:
        stored: (K,) wavelengths, ascending or descending.
        unit: of the wavelengths, None if unknown; see `to_nm`.
        table: (K, M) responses.
        names: of the M bands.
        source: for messages.

    Raises:
        DataError: the wavelengths are none, or a column is no response.
    """
    nm = to_nm(as_float64(stored), unit, source)
    if nm is None or len(names) > _MAX_BANDS:
        raise DataError(
            f"{source}: {len(names)} columns over wavelengths in {unit or 'no known unit'} are no "
            "responses",
            f"give wavelengths in nm or um, and at most {_MAX_BANDS:,} bands",
        )
    if nm[0] > nm[-1]:
        nm, table = nm[::-1], table[::-1]
    try:
        return tuple(Curve(name, nm, column) for name, column in zip(names, table.T, strict=True))
    except DataError as error:
        raise DataError(f"{source}: {error.message}", error.hint) from error


def _read_envi(path: Path) -> tuple[Curve, ...]:
    from spectralift_cli.core.formats.envi import DATA_TYPES
    from spectralift_cli.core.formats.envi_header import read_envi_header

    data_path, header_path = _envi_pair(path)
    header = read_envi_header(header_path)
    kind = (header.text("file type") or "").lower()
    if "spectral library" not in kind:
        raise DataError(
            f"{header_path}: is of file type {kind[:40]!r}, a response is an ENVI spectral library",
            "give a spectral library (.sli), or a table of curves (.csv)",
        )
    samples, spectra = header.whole("samples"), header.whole("lines")
    code, offset = header.whole("data type"), header.whole("header offset", 0)
    if code not in DATA_TYPES or header.whole("bands", 1) != 1 or offset < 0:
        raise DataError(
            f"{header_path}: data type {code}, {header.whole('bands', 1)} bands and header offset "
            f"{offset} are not those of a spectral library of real numbers",
            "save it again as floating point with one band",
        )
    dtype = np.dtype(DATA_TYPES[code])
    if header.whole("byte order", 0) == 1:
        dtype = dtype.newbyteorder(">")
    needed = samples * spectra * dtype.itemsize
    there = data_path.stat().st_size - offset
    fits = samples > 1 and 0 < spectra <= _MAX_BANDS and needed <= min(there, _LIBRARY_BYTES)
    if not fits:
        raise DataError(
            f"{data_path}: {spectra:,} spectra of {samples:,} values need {needed:,} bytes, it has "
            f"{there:,} and at most {_LIBRARY_BYTES:,} are read",
            "the file is truncated, its header is wrong, or it is no library of responses",
        )
    wavelengths = header.numbers("wavelength", samples)
    if wavelengths is None:
        raise DataError(
            f"{header_path}: the library lists no wavelengths", "add them to the header"
        )
    with data_path.open("rb") as file:
        file.seek(offset)
        table = np.frombuffer(file.read(needed), dtype).reshape(spectra, samples)
    words = header.words("spectra names", spectra) or []
    names = words if len(words) == spectra else [f"B{i + 1}" for i in range(spectra)]
    unit = header.text("wavelength units")
    return make_curves(wavelengths, unit, as_float64(table.T), names, header_path)


def _envi_pair(path: Path) -> tuple[Path, Path]:
    """Return the data and the header file of a spectral library named by either."""
    if path.suffix.lower() == _HEADER_ENDING:
        base = path.with_suffix("")
        candidates = [base, base.with_name(base.name + ".sli"), base.with_name(base.name + ".SLI")]
        found = [p for p in candidates if p.is_file()]
        if found:
            return found[0], path
        raise DataError(f"{path}: there is no spectral library beside it", f"it is {base}.sli")
    for header in (path.with_name(path.name + _HEADER_ENDING), path.with_suffix(_HEADER_ENDING)):
        if header.is_file():
            return path, header
    raise DataError(
        f"{path}: has no ENVI header", f"put {path.with_suffix(_HEADER_ENDING).name} beside it"
    )


def _text(path: Path) -> str:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > _TEXT_BYTES:
            raise DataError(
                f"{path}: {size:,} bytes are too many for a filter, the limit is {_TEXT_BYTES:,}",
                "give the bands that are meant alone",
            )
        return file.read(_TEXT_BYTES).decode("utf-8-sig", "replace")


def parse_filters(text: str, source: Path) -> tuple[Curve, ...]:
    """Return the bands of an .flt file's text; see the module for its two layouts.

    Raises:
        DataError: it is neither.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = _numbers(lines[0]) if lines else None
    if first is not None and len(first) == 2:
        return (_sixs_filter(first[0], first[1], lines[1:], source),)
    letter = lines[0][:1].lower() if lines else ""
    if letter not in ("n", "m", "w"):
        raise DataError(
            f"{source}: {(lines or [''])[0][:40]!r} is not the first line of a filter file",
            "it is the first and last wavelength in um (6S), or starts with N, M or W (MODTRAN)",
        )
    bands: list[tuple[str, list[tuple[float, float]]]] = []
    for line in lines[1:]:
        numbers = _numbers(line)
        if numbers is None:
            bands.append((line.lstrip("# ")[:60], []))
        elif len(numbers) < 2 or not bands:
            raise DataError(
                f"{source}: {line[:40]!r} is not a line of wavelength and response below a band's "
                "name",
                "check the file",
            )
        else:
            bands[-1][1].append((numbers[0], numbers[1]))
    filled = [(name, rows) for name, rows in bands if rows]
    if not filled or len(filled) > _MAX_BANDS:
        raise DataError(f"{source}: holds {len(filled)} bands", f"give 1 to {_MAX_BANDS:,}")
    curves: list[Curve] = []
    for name, rows in filled:
        table = np.array(rows)
        stored, unit = table[:, 0], _UNITS.get(letter)
        if letter == "w":
            if not (stored > 0).all():
                raise DataError(f"{source}: wavenumbers must be positive", "mend the file")
            stored, unit = 1e7 / stored, "nm"
        curves += make_curves(stored, unit, table[:, 1:], [name], source)
    return tuple(curves)


def _sixs_filter(low_um: float, high_um: float, lines: list[str], source: Path) -> Curve:
    def index(um: float) -> int:
        # 6S: iinf = (wlinf - .25) / .0025 + 1.5, truncated, counting from 1
        return int((um - _SIXS_FIRST_UM) / _SIXS_STEP_UM + 0.5) if 0 <= um <= 5 else -1

    start, stop = index(low_um), index(high_um)
    values: list[float] = []
    for line in lines:
        values += _numbers(line) or [np.nan]
    count = stop - start + 1
    if not (0 <= start < stop < _SIXS_SAMPLES) or len(values) != count:
        raise DataError(
            f"{source}: has {len(values)} responses, {low_um:g} to {high_um:g} um in steps of "
            f"{_SIXS_STEP_UM} um have {max(count, 0)}",
            "a 6S filter gives its first and last wavelength in um, then every response between",
        )
    nm = 1e3 * (_SIXS_FIRST_UM + _SIXS_STEP_UM * np.arange(start, stop + 1))
    return make_curves(nm, "nm", np.array(values)[:, None], [source.stem[:60]], source)[0]


def _numbers(line: str) -> list[float] | None:
    try:
        return [float(word) for word in re.split(r"[,;\s]+", line.strip(" ,;\t"))]
    except ValueError:
        return None
