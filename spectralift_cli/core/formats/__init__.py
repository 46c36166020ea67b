"""The formats a cube can be in, as a table, and the two functions that open and create cubes.

A row of `table` and two functions add a format: `opener(path, request) -> CubeReader` and
`creator(path, meta, options, overwrite) -> CubeWriter`, named as text and imported on use. A third,
`detector(path) -> bool`, tells a product from other files of the format it comes in. This module
imports nothing heavy, so that help and completion may read the table.
"""

from __future__ import annotations

import difflib
import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectralift_cli.core.errors import DataError, OptionError, SpectraliftWarning
from spectralift_cli.core.formats.table import ALL_FIELDS, FORMATS, CreationOption, Format

if TYPE_CHECKING:
    from spectralift_cli.core.cube import Cube, CubeMeta
    from spectralift_cli.core.cubeio import CubeReader, CubeWriter

__all__ = [
    "ALL_FIELDS",
    "FORMATS",
    "CreationOption",
    "Format",
    "OpenRequest",
    "check_creation",
    "check_creation_options",
    "check_shares_rows",
    "create_cube",
    "find_format",
    "open_cube",
    "read_cube",
    "writable_suffixes",
    "write_cube",
]


@dataclass(frozen=True)
class OpenRequest:
    """What a user may say about a file that does not say it itself.

    Args:
        var: name of the variable or dataset to read.
        axis_order: the stored axes as a permutation of "yxb" ("byx": bands first), or "yx".
        allow_2d: take a 2-D array for a one-band image (an MSI, a pan band).
        memory_bytes: the most that a reader which cannot stream may load; None for the default.
    """

    var: str | None = None
    axis_order: str | None = None
    allow_2d: bool = False
    memory_bytes: int | None = None


def find_format(path: Path) -> Format | None:
    """Return the format that a path's ending names, or None."""
    name = path.name.lower()
    for row in FORMATS:
        if name.endswith(row.suffixes):
            return row
    return None


def writable_suffixes() -> str:
    """Return the endings an output may have, for help and errors."""
    return ", ".join(suffix for row in FORMATS if row.creator for suffix in row.suffixes[:1])


def open_cube(
    path: str | Path,
    *,
    var: str | None = None,
    axis_order: str | None = None,
    wavelengths: str | Path | None = None,
    allow_2d: bool = False,
    memory_bytes: int | None = None,
) -> CubeReader:
    """Open a cube for reading by rows.

    Args:
        path: a file, an ENVI header or its data file, a Zarr store, or a product's file or folder.
        var: the variable, where a file holds several arrays. Of a product that comes as HDF5 it
            reads that dataset alone, without what the product says of it.
        axis_order: the stored axes, a permutation of "yxb" or "yx", for files that do not fix them.
        wavelengths: a file of band centres in nanometres (and FWHM as a second column) that replace
            the file's own.
        allow_2d: take a 2-D array for a one-band image.
        memory_bytes: the most that a file which cannot be read by rows may take in memory.

    Raises:
        DataError: there is no such file, it is damaged, of an unknown format, or not a cube.
        OptionError: an option does not apply to this format.
    """
    path = Path(path)
    row = _format_of_input(path, var)
    request = OpenRequest(var, _check_axis_order(axis_order), allow_2d, memory_bytes)
    if axis_order is not None and not row.axis_order:
        raise OptionError(
            f"{path}: --axis-order does not apply to {row.name}, which states its own axes",
            "leave --axis-order out",
        )
    if var is not None and not row.variables:
        raise OptionError(
            f"{path}: --var does not apply to {row.name}, which holds one image",
            "leave --var out",
        )
    from spectralift_cli.core.formats import arrays

    opener: Callable[..., CubeReader] = _resolve(row.opener, row)
    try:
        reader = opener(path, request)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be opened ({error.strerror or error})", "check its permissions"
        ) from error
    reader.format_name = row.name
    try:
        # of a sparse file a few bytes can make any number of values
        arrays.check_memory(reader.meta.row_bytes, request, f"{path}: a row")
    except DataError:
        reader.close()
        raise
    if var is not None:
        reader.choices["var"] = reader.layout.get("variable", var)
    if axis_order is not None:
        reader.choices["axis_order"] = axis_order
    if wavelengths is not None:
        from spectralift_cli.core.formats.spectral import read_wavelengths
        from spectralift_cli.core.identity import identity

        try:
            centres_nm, fwhm_nm = read_wavelengths(Path(wavelengths))
            reader.choices["wavelengths"] = identity(Path(wavelengths))
            reader.meta = reader.meta.replace(wavelengths_nm=centres_nm, fwhm_nm=fwhm_nm)
        except BaseException:
            reader.close()
            raise
    return reader


def create_cube(
    path: str | Path,
    meta: CubeMeta,
    *,
    options: Mapping[str, str] | None = None,
    overwrite: bool = False,
    shared: Path | None = None,
) -> CubeWriter:
    """Start a cube that appears, whole, when its writer commits.

    Args:
        path: where; the ending chooses the format.
        meta: shape, dtype and metadata; what the format cannot hold is named in a warning.
        options: creation options of the format (`--co`).
        overwrite: replace an existing output.
        shared: the folder in which this process and others prepare the output; it stays when the
            writer is closed. Each writes blocks of rows in any order, whole multiples of the
            writer's `block_rows` except at the end, and one commits.

    Raises:
        DataError: unknown ending, a dtype the format cannot hold, or a place that cannot be written.
        OptionError: a creation option that the format does not have, or one writer only in a format
            that is to be shared.
        OutputExistsError: it exists and `overwrite` is false.
    """
    path = Path(path)
    row, checked = check_creation(path, meta.dtype.name, options)
    lost = [name for name in _fields_present(meta) if name not in row.holds]
    if lost:
        warnings.warn(
            f"{path}: {row.name} cannot hold {', '.join(lost)}", SpectraliftWarning, stacklevel=2
        )
    if shared is not None:
        check_shares_rows(path)
    creator: Callable[..., CubeWriter] = _resolve(row.creator, row)
    more = {} if shared is None else {"shared": shared}
    try:
        return creator(path, meta, checked, overwrite, **more)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error})",
            "free some room or choose another folder",
        ) from error


def check_creation(
    path: Path, dtype: str, options: Mapping[str, str] | None = None
) -> tuple[Format, dict[str, str]]:
    """Return the format of a cube to be written, and its creation options as its creator takes them.

    Raises:
        DataError: the ending names no format that can be written, or one that cannot hold the type.
        OptionError: a creation option that the format does not have, or not with that value.
    """
    row = find_format(path)
    if row is None or not row.creator:
        raise DataError(
            f"{path}: the ending does not name a format that can be written",
            f"use one of {writable_suffixes()}",
        )
    if dtype not in row.dtypes:
        raise DataError(
            f"{path}: {row.name} cannot hold {dtype} values",
            f"choose --dtype from {', '.join(row.dtypes)}",
        )
    return row, check_creation_options(row, options or {})


def check_shares_rows(path: Path) -> None:
    """Check that several processes, one after the other or at once, can write an output.

    Raises:
        OptionError: they cannot in this format.
    """
    row = find_format(path)
    if row is None or not row.shares_rows:
        able = ", ".join(f.suffixes[0] for f in FORMATS if f.shares_rows)
        raise OptionError(
            f"{path}: this format takes one writer, from top to bottom in one go",
            f"write one of {able}, then spectralift convert",
        )


def read_cube(path: str | Path, **options: Any) -> Cube:
    """Read a whole cube; the options are those of `open_cube`."""
    from spectralift_cli.core.cube import Cube

    with open_cube(path, **options) as reader:
        return Cube(reader.read(), reader.meta)


def write_cube(
    path: str | Path,
    cube: Cube,
    *,
    options: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> tuple[Path, ...]:
    """Write a whole cube; return the files, the main one first. See `create_cube`."""
    with create_cube(path, cube.meta, options=options, overwrite=overwrite) as writer:
        writer.write(slice(None), cube.values)
        return writer.commit()


def _fields_present(meta: CubeMeta) -> list[str]:
    present = {
        "wavelengths": meta.wavelengths_nm is not None,
        "fwhm": meta.fwhm_nm is not None,
        "bad_bands": meta.bad_bands is not None,
        "nodata": meta.nodata is not None,
        "scale": meta.is_scaled,
        "crs": meta.crs is not None,
        "transform": meta.transform is not None,
        "band_names": meta.band_names is not None,
    }
    return [name for name, there in present.items() if there]


def _format_of_input(path: Path, var: str | None) -> Format:
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be opened ({error.strerror})", "check the path and its permissions"
        ) from error
    if not exists:
        raise DataError(f"{path}: no such file", _similar_name(path))
    row = find_format(path)
    by_name = {f.name: f for f in FORMATS}
    if is_folder:
        if any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray")):
            return by_name["zarr"]
        if (path / "scene.json").is_file():
            raise DataError(
                f"{path}: is a scene, a cube is needed here",
                f"name one of its cubes, for example {path / 'lr_hsi.h5'}",
            )
        product = _product(path, "folder", var)
        if product is not None:
            return product
        raise DataError(
            f"{path}: is a folder that is neither a scene nor a Zarr store nor a product's",
            "name the file inside it",
        )
    if not path.is_file():
        raise DataError(f"{path}: is not a regular file", "give a file or a Zarr store")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty (0 bytes)", "make or fetch it again")
    if row is None or row.name == "zarr":
        row = by_name.get(_sniff(path) or "")
    product = _product(path, "other" if row is None else row.name, var)
    if product is not None:
        return product
    if row is None:
        raise DataError(
            f"{path}: not a format that is known here",
            f"use one of {', '.join(s for f in FORMATS for s in f.suffixes[:2])}",
        )
    return row


def _product(path: Path, comes_as: str, var: str | None) -> Format | None:
    """Return the product that a file or folder is, by its content, or None.

    A dataset that `--var` names is read as it is, unless it is the very one that the product's
    reader reads: it must not lose what the reader knows of it.
    """
    for row in FORMATS:
        asked = var is None or var.strip("/") == row.variable
        if asked and comes_as in row.comes_as and _resolve(row.detector, row)(path):
            return row
    return None


_MAGIC = (
    (b"\x93NUMPY", "npy"),
    (b"PK\x03\x04", "npz"),
    (b"\x89HDF\r\n\x1a\n", "hdf5"),
    (b"MATLAB ", "mat"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
    (b"ENVI", "envi"),
)


def _sniff(path: Path) -> str | None:
    with path.open("rb") as file:
        head = file.read(16)
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    beside = (path.with_name(path.name + ".hdr"), path.with_suffix(".hdr"))
    return "envi" if any(p.is_file() for p in beside) else None


def _similar_name(path: Path) -> str:
    try:
        names = [p.name for p in path.parent.iterdir()]
    except OSError:
        return f"the folder {path.parent} does not exist or cannot be read"
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean {path.parent / close[0]}?" if close else "check the path"


def _check_axis_order(order: str | None) -> str | None:
    if order is None or order == "yx" or sorted(order) == ["b", "x", "y"]:
        return order
    raise OptionError(
        f"the axis order {order!r} is not a permutation of y, x and b",
        "use yxb (rows, cols, bands), byx (bands first), ybx, or yx for a 2-D array",
    )


def check_creation_options(row: Format, options: Mapping[str, str]) -> dict[str, str]:
    """Return creation options as the format's creator takes them: keys and choices in upper case.

    Raises:
        OptionError: the format does not have one, or not with that value.
    """
    known = {option.name: option for option in row.options}
    checked: dict[str, str] = {}
    for key, value in options.items():
        option = known.get(key.upper())
        if option is None:
            names = ", ".join(known) or "none"
            raise OptionError(
                f"{row.name} has no creation option {key!r}", f"its creation options: {names}"
            )
        if option.choices == ("*",):
            checked[option.name] = value
            continue
        upper = value.upper()
        fits = upper in option.choices if option.choices else upper.isascii() and upper.isdecimal()
        if not fits or len(upper) > 9:
            allowed = ", ".join(option.choices) or "a whole number"
            raise OptionError(f"{key}={value} is not possible for {row.name}", f"use {allowed}")
        checked[option.name] = upper
    return checked


def _resolve(where: str, row: Format) -> Callable[..., Any]:
    module, _, function = where.partition(":")
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not row.extra or error.name != row.extra:
            raise
        raise DataError(
            f"{row.name} needs the package {row.extra}, which is not installed",
            f"pip install 'spectralift-cli[{row.extra}]'",
        ) from error
    return getattr(loaded, function)  # type: ignore[no-any-return]  # named in the table
