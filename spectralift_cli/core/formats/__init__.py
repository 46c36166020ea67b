"""The formats a cube can be in, as a table, and the two functions that open and create cubes.

A row and two functions add a format: `opener(path, request) -> CubeReader` and
`creator(path, meta, options, overwrite) -> CubeWriter`, named as text and imported on use. This
module imports nothing heavy, so that help and completion may read the table.
"""

from __future__ import annotations

import difflib
import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectralift_cli.core.errors import DataError, OptionError, SpectraliftWarning

if TYPE_CHECKING:
    from spectralift_cli.core.cube import Cube, CubeMeta, CubeReader, CubeWriter

_INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
_FLOATS = ("float32", "float64")
ALL_FIELDS = frozenset(
    {"wavelengths", "fwhm", "bad_bands", "nodata", "scale", "crs", "transform", "band_names",
     "provenance"}
)  # fmt: skip


@dataclass(frozen=True)
class CreationOption:
    """A `--co KEY=VALUE` of a format.

    Args:
        name: the key, upper case.
        help: what it does, with its default.
        choices: the allowed values, upper case; empty for a whole number.
    """

    name: str
    help: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """One row of the table.

    Args:
        name: its name in help and `info`.
        help: one line.
        suffixes: lower-case file name endings; the first one is the usual.
        opener: "module:function".
        creator: "module:function", empty where we only read.
        reads_rows: it can read a block of rows without loading the cube.
        writes_rows: it can write a block of rows without holding the cube.
        dtypes: the stored types it can hold.
        holds: the fields of `CubeMeta` it can hold (`ALL_FIELDS`).
        axis_order: whether `--axis-order` applies, because the file does not fix its axes.
        variables: whether a file can hold several arrays, told apart by `--var`.
        shares_rows: several processes can write blocks of rows of one output.
        options: what `--co` takes.
        extra: the optional dependency it needs, or "".
    """

    name: str
    help: str
    suffixes: tuple[str, ...]
    opener: str
    creator: str
    reads_rows: bool
    writes_rows: bool
    dtypes: tuple[str, ...]
    holds: frozenset[str] = ALL_FIELDS
    axis_order: bool = False
    variables: bool = False
    shares_rows: bool = False
    options: tuple[CreationOption, ...] = field(default=())
    extra: str = ""


_DEFLATE_LEVELS = tuple(str(level) for level in range(10))
_HDF5_OPTIONS = (
    CreationOption("COMPRESS", "compression of the chunks (NONE)", ("NONE", "GZIP", "LZF")),
    CreationOption("LEVEL", "gzip level (4)", _DEFLATE_LEVELS),
)

FORMATS: tuple[Format, ...] = (
    Format(
        name="npy",
        help="NumPy array, with a sidecar .npy.json for the metadata",
        suffixes=(".npy",),
        opener="spectralift_cli.core.formats.npy:open_npy",
        creator="spectralift_cli.core.formats.npy:create_npy",
        reads_rows=True,
        writes_rows=True,
        shares_rows=True,
        dtypes=(*_INTEGERS, "float16", *_FLOATS),
        axis_order=True,
    ),
    Format(
        name="npz",
        help="NumPy archive (members cube, wavelengths_nm, ...)",
        suffixes=(".npz",),
        opener="spectralift_cli.core.formats.npz:open_npz",
        creator="spectralift_cli.core.formats.npz:create_npz",
        reads_rows=True,
        writes_rows=True,
        dtypes=(*_INTEGERS, "float16", *_FLOATS),
        axis_order=True,
        variables=True,
        options=(
            CreationOption("COMPRESS", "compression (NONE)", ("NONE", "DEFLATE")),
            CreationOption("LEVEL", "deflate level (6)", _DEFLATE_LEVELS),
        ),
    ),
    Format(
        name="mat",
        help="MATLAB file, version 5 up to 256 MB, version 7.3 above",
        suffixes=(".mat",),
        opener="spectralift_cli.core.formats.mat:open_mat",
        creator="spectralift_cli.core.formats.mat:create_mat",
        reads_rows=True,
        writes_rows=True,
        dtypes=(*_INTEGERS, *_FLOATS),
        axis_order=True,
        variables=True,
        options=(
            CreationOption("VERSION", "file version (by size)", ("5", "7.3")),
            CreationOption("COMPRESS", "compression (NONE)", ("NONE", "DEFLATE")),
            CreationOption("VARIABLE", "name of the cube's variable (cube)", ("*",)),
        ),
    ),
    Format(
        name="hdf5",
        help="HDF5 file (datasets cube, wavelengths_nm, ...)",
        suffixes=(".h5", ".hdf5"),
        opener="spectralift_cli.core.formats.hdf5:open_hdf5",
        creator="spectralift_cli.core.formats.hdf5:create_hdf5",
        reads_rows=True,
        writes_rows=True,
        dtypes=(*_INTEGERS, "float16", *_FLOATS),
        axis_order=True,
        variables=True,
        options=(
            *_HDF5_OPTIONS,
            CreationOption("VARIABLE", "name of the cube's dataset (cube)", ("*",)),
        ),
    ),
    Format(
        name="tiff",
        help="GeoTIFF, Cloud Optimized GeoTIFF, or a plain stack of TIFF pages",
        suffixes=(".tif", ".tiff"),
        opener="spectralift_cli.core.formats.geotiff:open_tiff",
        creator="spectralift_cli.core.formats.geotiff:create_geotiff",
        reads_rows=True,
        writes_rows=True,
        dtypes=(*_INTEGERS, *_FLOATS),
        axis_order=True,
        options=(
            CreationOption("DRIVER", "plain GeoTIFF or cloud optimized (GTIFF)", ("GTIFF", "COG")),
            CreationOption(
                "COMPRESS", "compression (NONE)", ("NONE", "LZW", "DEFLATE", "ZSTD", "PACKBITS")
            ),
            CreationOption("PREDICTOR", "differencing before compression (1)", ("1", "2", "3")),
            CreationOption("INTERLEAVE", "order of the values (PIXEL)", ("PIXEL", "BAND")),
            CreationOption("TILED", "tiles instead of strips (NO)", ("YES", "NO")),
            CreationOption("BLOCKSIZE", "side of a tile in pixels, a multiple of 16 (256)"),
            CreationOption("BIGTIFF", "64-bit offsets (IF_SAFER)", ("YES", "NO", "IF_SAFER")),
        ),
    ),
    Format(
        name="envi",
        help="ENVI header and its data file",
        suffixes=(".hdr", ".img", ".bsq", ".bil", ".bip", ".dat", ".raw"),
        opener="spectralift_cli.core.formats.envi:open_envi",
        creator="spectralift_cli.core.formats.envi:create_envi",
        reads_rows=True,
        writes_rows=True,
        shares_rows=True,
        dtypes=("uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", *_FLOATS),
        options=(
            CreationOption("INTERLEAVE", "order of the values (BIP)", ("BSQ", "BIL", "BIP")),
            CreationOption("BYTE_ORDER", "0 little endian, 1 big endian (0)", ("0", "1")),
        ),
    ),
    Format(
        name="zarr",
        help="Zarr store (version 3, or 2), axes (wavelength, y, x)",
        suffixes=(".zarr",),
        opener="spectralift_cli.core.formats.zarr:open_zarr",
        creator="spectralift_cli.core.formats.zarr:create_zarr",
        reads_rows=True,
        writes_rows=True,
        shares_rows=True,
        dtypes=(*_INTEGERS, "float16", *_FLOATS),
        axis_order=True,
        variables=True,
        options=(
            CreationOption("COMPRESS", "compression of the chunks (ZSTD)", ("NONE", "ZSTD", "GZIP")),
            CreationOption("CHUNK", "side of a chunk in pixels (128, or fewer rows of wide cubes)"),
            CreationOption("VERSION", "of the format (3); 2 is for GDAL before 3.11", ("2", "3")),
        ),
        extra="zarr",
    ),
)  # fmt: skip


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
        path: a file, an ENVI header or its data file, or a Zarr store.
        var: the variable, where a file holds several arrays.
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
    row = _format_of_input(path)
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
    row = find_format(path)
    if row is None or not row.creator:
        raise DataError(
            f"{path}: the ending does not name a format that can be written",
            f"use one of {writable_suffixes()}",
        )
    if meta.dtype.name not in row.dtypes:
        raise DataError(
            f"{path}: {row.name} cannot hold {meta.dtype.name} values",
            f"choose --dtype from {', '.join(row.dtypes)}",
        )
    checked = check_creation_options(row, options or {})
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


def _format_of_input(path: Path) -> Format:
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
        raise DataError(
            f"{path}: is a folder that is neither a scene nor a Zarr store",
            "name the file inside it",
        )
    if not path.is_file():
        raise DataError(f"{path}: is not a regular file", "give a file or a Zarr store")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty (0 bytes)", "make or fetch it again")
    if row is not None and row.name != "zarr":
        return row
    sniffed = _sniff(path)
    if sniffed is None:
        raise DataError(
            f"{path}: not a format that is known here",
            f"use one of {', '.join(s for f in FORMATS for s in f.suffixes[:2])}",
        )
    return by_name[sniffed]


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
