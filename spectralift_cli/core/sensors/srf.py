"""SRF files: response curves, weights and bare matrices, told apart by their form.

*Curve*: the first column is `wavelength_nm` or `wavelength_um`, each other column one MSI band; the
samples are folded onto the cube's bands. *Weights*: the first column is `hsi_band`, one row a cube
band (`hsi_band,wavelength_nm,<msi band>,...`). *Matrix*: numbers only, M x B or B x M, with or
without a line of names. Weights and matrices are used as they are, rows divided by their sum.

Curves are read from ENVI spectral libraries, .flt filters and named arrays as well; see `libraries`.

Text is separated by commas, semicolons, tabs or spaces; lines that start with `#` are comments, of
which `# source: ...` says where the response comes from.
"""

from __future__ import annotations

import csv
import io
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from spectralift_cli.core.cube import BoolArray, FloatArray
from spectralift_cli.core.errors import DataError, SpectraliftWarning
from spectralift_cli.core.floats import as_float64
from spectralift_cli.core.formats import find_format, open_cube
from spectralift_cli.core.formats.spectral import to_nm
from spectralift_cli.core.outputs import write_text
from spectralift_cli.core.sensors.curve import Curve, fold_curves
from spectralift_cli.core.sensors.libraries import make_curves, read_library
from spectralift_cli.core.sensors.response import (
    Srf,
    check_coverage,
    documented_srf,
    fold_curve,
    invented_wavelengths,
    normalise_rows,
)

__all__ = [
    "Srf",
    "check_coverage",
    "describe_srf",
    "documented_srf",
    "fold_curve",
    "invented_wavelengths",
    "parse_srf",
    "read_curves",
    "read_srf",
    "write_srf",
]

# a response of 16 bands on a cube of 400, or at every nanometre, takes 0.2 MB
LIMIT_BYTES = 4 * 2**20

_WAVELENGTH = re.compile(r"^wavelengths?(?:[\s_]*[(\[]?\s*(?P<unit>[a-zµμ]+)\s*[)\]]?)?$")
_FORMS = (
    "a response curve (first column wavelength_nm), weights (first column hsi_band) or a bare "
    "M x B matrix"
)


def read_srf(
    path: str | Path,
    wavelengths_nm: FloatArray | None,
    fwhm_nm: FloatArray | None,
    bands: int,
    *,
    bad_bands: BoolArray | None = None,
) -> Srf:
    """Read a spectral response for a cube of `bands` bands.

    Args:
        path: text (.csv, .tsv, .txt, any other ending) in one of the three forms; a bare matrix
            as .npy or as the only 2-D array of a .mat, .npz or .h5; or curves in a file of another
            program, see `libraries`. Arrays whose wavelengths are the cube's own are weights.
        wavelengths_nm: (bands,) the cube's band centres, or None if unknown.
        fwhm_nm: (bands,) the cube's widths, or None.
        bands: B.
        bad_bands: (bands,) bands onto which curves are not folded, or None.

    Returns:
        The response, with coverage where the file holds curves; see `check_coverage`.

    Raises:
        DataError: no such file, it is damaged or too large, fits the cube in no orientation, or
            holds a response that cannot be normalised.
    """
    path = Path(path)
    curves, text = _open(path)
    if curves is not None:
        own = _on_bands(curves, wavelengths_nm, path)
        return own or _fold(curves, "curve", wavelengths_nm, fwhm_nm, bands, bad_bands, path)
    if text is None:
        return _as_matrix(_read_array(path), bands, (), str(path), "matrix")
    return parse_srf(text, wavelengths_nm, fwhm_nm, bands, str(path), bad_bands=bad_bands)


def read_curves(path: str | Path) -> tuple[tuple[Curve, ...], str] | None:
    """Return the curves in a file and what they are called, or None if it holds weights.

    Raises:
        DataError: as for `read_srf`.
    """
    path = Path(path)
    curves, text = _open(path)
    if curves is not None:
        return curves, "curve"
    if text is None:
        return None
    header, table, origin = _parse_table(text, str(path))
    found = _table_curves(header, table, str(path))
    return None if found is None else (found, _stamp("curve", origin))


def _open(path: Path) -> tuple[tuple[Curve, ...] | None, str | None]:
    """Return the curves of another program's file or the text of a table; neither for a matrix."""
    try:
        if not path.is_file():
            raise DataError(f"{path}: no such SRF file", "check the path")
        curves = read_library(path)
        row = find_format(path)
        if curves is not None or (row is not None and row.name in ("npy", "npz", "mat", "hdf5")):
            return curves, None
        size = path.stat().st_size
        if size > LIMIT_BYTES:
            raise DataError(
                f"{path}: {size:,} bytes are too many for an SRF table, the limit is "
                f"{LIMIT_BYTES:,}",
                f"give {_FORMS}",
            )
        return None, path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", "check the file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not a text file", f"give {_FORMS}") from error


def _on_bands(
    curves: tuple[Curve, ...], wavelengths_nm: FloatArray | None, source: Path
) -> Srf | None:
    """Return curves that are sampled at a cube's band centres as weights; None if they are not."""
    nm = curves[0].wavelengths_nm
    if wavelengths_nm is None or nm.shape != wavelengths_nm.shape:
        return None
    order = np.argsort(wavelengths_nm, kind="stable")
    if not np.allclose(nm, wavelengths_nm[order], rtol=0, atol=0.5):
        return None
    weights = np.empty((len(curves), nm.size))
    weights[:, order] = [curve.response for curve in curves]
    return Srf(normalise_rows(weights, source), tuple(c.name for c in curves), source="matrix")


def parse_srf(
    text: str,
    wavelengths_nm: FloatArray | None,
    fwhm_nm: FloatArray | None,
    bands: int,
    source: str = "standard input",
    *,
    bad_bands: BoolArray | None = None,
) -> Srf:
    """Return the spectral response in a text; arguments and errors as for `read_srf`.

    Args:
        text: the table.
        wavelengths_nm: (bands,) or None.
        fwhm_nm: (bands,) or None.
        bands: B.
        source: the file, for messages.
        bad_bands: (bands,) or None.
    """
    if len(text) > LIMIT_BYTES:
        raise DataError(
            f"{source}: {len(text):,} characters are too many for an SRF table, the limit is "
            f"{LIMIT_BYTES:,}",
            f"give {_FORMS}",
        )
    header, table, origin = _parse_table(text, source)
    first = header[0].strip().lower() if header else ""
    if first == "hsi_band":
        return _from_weights(header, table, wavelengths_nm, bands, source, origin or "weights")
    curves = _table_curves(header, table, source)
    if curves is None:
        return _as_matrix(table, bands, header, source, _stamp("matrix", origin))
    stamp = _stamp("curve", origin)
    return _fold(curves, stamp, wavelengths_nm, fwhm_nm, bands, bad_bands, source)


def _table_curves(
    header: tuple[str, ...], table: FloatArray, source: str
) -> tuple[Curve, ...] | None:
    """Return a table's columns as curves; None if its first column is not called a wavelength."""
    found = _WAVELENGTH.match(header[0].strip().lower()) if header else None
    if found is None:
        return None
    if table.shape[1] < 2:
        raise DataError(
            f"{source}: the column {header[0]!r} is no list of wavelengths with responses beside it",
            "give wavelength_nm and one column for each MSI band",
        )
    return make_curves(table[:, 0], found["unit"], table[:, 1:], list(header[1:]), source)


def _fold(
    curves: tuple[Curve, ...],
    stamp: str,
    wavelengths_nm: FloatArray | None,
    fwhm_nm: FloatArray | None,
    bands: int,
    bad_bands: BoolArray | None,
    source: object,
) -> Srf:
    if wavelengths_nm is None:
        raise DataError(
            f"{source}: response curves need the cube's wavelengths, which are unknown",
            "give them with --wavelengths FILE",
        )
    if len(wavelengths_nm) != bands:
        raise DataError(
            f"{len(wavelengths_nm)} wavelengths for {bands} bands", "give one for each band"
        )
    try:
        return fold_curves(curves, wavelengths_nm, fwhm_nm, bad_bands, stamp)
    except DataError as error:
        raise DataError(f"{source}: {error.message}", error.hint) from error


def write_srf(
    path: str | Path, srf: Srf, wavelengths_nm: FloatArray | None, *, overwrite: bool = False
) -> None:
    """Write a response as weights; `read_srf` returns the same weights, names and source.

    Args:
        path: the CSV file.
        srf: the response.
        wavelengths_nm: (B,) the cube's band centres, written beside the weights, or None.
        overwrite: replace an existing file.

    Raises:
        OutputExistsError: it exists and `overwrite` is false.
        DataError: it cannot be written.
    """
    out = io.StringIO()
    out.write(f"# source: {_one_line(srf.source)}\n")
    writer = csv.writer(out, lineterminator="\n")
    lead = ["hsi_band"] if wavelengths_nm is None else ["hsi_band", "wavelength_nm"]
    writer.writerow([*lead, *(_one_line(name) for name in srf.band_names)])
    for band, weights in enumerate(srf.weights.T):
        cells = [str(band + 1)]
        if wavelengths_nm is not None:
            cells.append(repr(float(wavelengths_nm[band])))
        writer.writerow([*cells, *(repr(float(weight)) for weight in weights)])
    write_text(Path(path), out.getvalue(), overwrite=overwrite)


def describe_srf(path: str | Path) -> dict[str, Any]:
    """Return what an SRF file holds, without a cube to lay it over, as JSON-ready values.

    Raises:
        DataError: no such file, too large, or no table.
    """
    path = Path(path)
    curves, text = _open(path)
    if curves is not None:
        samples = [curve.wavelengths_nm for curve in curves]
        return {
            "kind": "srf", "path": str(path), "source": None, "form": "curve",
            "samples": max(nm.size for nm in samples),
            "msi_bands": [curve.name for curve in curves],
            "wavelengths_nm": [min(float(nm[0]) for nm in samples),
                               max(float(nm[-1]) for nm in samples)],
        }  # fmt: skip
    if text is None:
        raise DataError(f"{path}: is an array, not a table", f"give {_FORMS} as text")
    header, table, origin = _parse_table(text, str(path))
    first = header[0].strip().lower() if header else ""
    described: dict[str, Any] = {"kind": "srf", "path": str(path), "source": origin or None}
    found = _WAVELENGTH.match(first)
    if found is not None:
        curve_nm = to_nm(table[:, 0], found["unit"], str(path))
        described |= {"form": "curve", "samples": len(table), "msi_bands": list(header[1:])}
        described["wavelengths_nm"] = (
            None if curve_nm is None else [float(curve_nm.min()), float(curve_nm.max())]
        )
    elif first == "hsi_band":
        names = [n for n in header[1:] if n.strip().lower() != "wavelength_nm"]
        described |= {"form": "weights", "hsi_bands": len(table), "msi_bands": names}
    else:
        described |= {"form": "matrix", "shape": list(table.shape)}
    return described


def _parse_table(text: str, source: str) -> tuple[tuple[str, ...], FloatArray, str]:
    """Return the header (empty if there is none), the numbers (rows, columns) and the source."""
    origin = ""
    lines: list[str] = []
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            key, _, value = line.lstrip("# \t").partition(":")
            if key.strip().lower() == "source" and not origin:
                origin = _one_line(value)
        elif line.strip():
            lines.append(line)
    if not lines:
        raise DataError(f"{source}: holds no table", f"give {_FORMS}")
    delimiter = max(",;\t", key=lines[0].count)
    try:
        if delimiter in lines[0]:
            rows = list(csv.reader(lines, delimiter=delimiter, strict=True))
        else:
            rows = [line.split() for line in lines]
    except csv.Error as error:
        raise DataError(f"{source}: is not a table ({error})", f"give {_FORMS}") from error
    header = () if _numbers(rows[0]) is not None else tuple(word.strip() for word in rows[0])
    values: list[list[float]] = []
    for number, row in enumerate(rows[bool(header) :], start=1 + bool(header)):
        parsed = _numbers(row)
        if parsed is None or len(parsed) != len(rows[0]):
            raise DataError(
                f"{source}: row {number} ({' '.join(row)[:40]!r}) is not made of "
                f"{len(rows[0])} numbers",
                f"give {_FORMS}",
            )
        values.append(parsed)
    if not values:
        raise DataError(f"{source}: has a header but no rows", f"give {_FORMS}")
    table: FloatArray = np.array(values, dtype=np.float64)
    return header, table, origin


def _numbers(words: list[str]) -> list[float] | None:
    try:
        return [float(word) for word in words]
    except ValueError:
        return None


def _from_weights(
    header: tuple[str, ...],
    table: FloatArray,
    wavelengths_nm: FloatArray | None,
    bands: int,
    source: str,
    origin: str,
) -> Srf:
    if len(table) != bands:
        raise DataError(
            f"{source}: has weights for {len(table)} bands, the cube has {bands}",
            "use the weights that were made for this cube, or a response curve",
        )
    if not (np.diff(table[:, 0]) == 1).all() or table[0, 0] not in (0, 1):
        raise DataError(
            f"{source}: the column hsi_band does not count the cube's bands from 1 to {bands}",
            "one row for each band, in the cube's order",
        )
    first = 1
    if len(header) > 1 and _WAVELENGTH.match(header[1].lower()):
        _compare_wavelengths(table[:, 1], header[1], wavelengths_nm, source)
        first = 2
    if table.shape[1] == first:
        raise DataError(f"{source}: has no column of weights", "add one for each MSI band")
    return Srf(normalise_rows(table[:, first:].T, source), header[first:], source=origin)


def _compare_wavelengths(
    column: FloatArray, name: str, wavelengths_nm: FloatArray | None, source: str
) -> None:
    """Warn if weights were made for a cube with other wavelengths."""
    found = _WAVELENGTH.match(name.lower())
    made_for = to_nm(column, found["unit"] if found else None, source)
    if made_for is None or wavelengths_nm is None or len(wavelengths_nm) != len(made_for):
        return
    apart = float(np.abs(made_for - wavelengths_nm).max())
    if apart > 1:
        warnings.warn(
            f"{source}: these weights were made for wavelengths up to {apart:.3g} nm away from "
            "the cube's",
            SpectraliftWarning,
            stacklevel=4,
        )


def _as_matrix(
    table: FloatArray, bands: int, header: tuple[str, ...], source: str, origin: str
) -> Srf:
    """Return a bare matrix as a response, its orientation told by the cube's number of bands."""
    rows, cols = table.shape
    names: tuple[str, ...] = ()
    if cols == bands:  # also where M = B: rows are MSI bands
        weights = table
    elif rows == bands:
        weights, names = table.T, header
    else:
        raise DataError(
            f"{source}: a matrix of {rows} x {cols} fits a cube of {bands} bands in neither "
            f"orientation (M x {bands} or {bands} x M)",
            f"give {_FORMS}",
        )
    names = names or tuple(f"B{i + 1}" for i in range(len(weights)))
    return Srf(normalise_rows(weights, source), names, source=origin)


def _read_array(path: Path) -> FloatArray:
    """Return the only 2-D array of an array file, (rows, cols)."""
    with open_cube(path, axis_order="yx", memory_bytes=16 * LIMIT_BYTES) as reader:
        rows, cols, _ = reader.meta.shape
        if rows * cols * 8 > 16 * LIMIT_BYTES:
            raise DataError(
                f"{path}: a matrix of {rows} x {cols} is too large for an SRF",
                "give M x B, a row for each MSI band",
            )
        matrix: FloatArray = as_float64(reader.read()[:, :, 0])
        return matrix


def _stamp(form: str, origin: str) -> str:
    return f"{form}: {origin}" if origin else form


def _one_line(text: str) -> str:
    """Return a text as one line of at most 200 printable characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:200]
