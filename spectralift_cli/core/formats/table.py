"""The table of formats: one row each, plain data, so that help and completion may read it."""

from __future__ import annotations

from dataclasses import dataclass, field

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
        suffixes: lower-case file name endings; the first one is the usual. A product has none: it
            comes in a common format and is told by its content.
        opener: "module:function".
        creator: "module:function", empty where we only read.
        reads_rows: it can read a block of rows without loading the cube.
        writes_rows: it can write a block of rows without holding the cube.
        dtypes: the stored types it can hold.
        holds: the fields of `CubeMeta` it can hold (`ALL_FIELDS`).
        axis_order: whether `--axis-order` applies, because the file does not fix its axes.
        variables: whether a file can hold several arrays, told apart by `--var`.
        options: what `--co` takes.
        extra: the optional dependency it needs, or "".
        loaded_whole: which of its files are loaded whole although `reads_rows`, or "".
        detector: "module:function", (path) -> bool, that knows a product by its content; or "".
        comes_as: what a product comes as: names of formats, "folder", or "other" for a file that is
            in no format of this table.
        variable: the one dataset that a product is read from, or "".
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
    options: tuple[CreationOption, ...] = field(default=())
    extra: str = ""
    loaded_whole: str = ""
    detector: str = ""
    comes_as: tuple[str, ...] = ()
    variable: str = ""


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
        loaded_whole="compressed",
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
        loaded_whole="version 5",
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
        loaded_whole="tall compressed chunks",
    ),
    Format(
        name="tiff",
        help="GeoTIFF (Sentinel-2 and Landsat stacks too), COG, or a plain stack of TIFF pages",
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
    Format(
        name="enmap",
        help="EnMAP L2A: *-SPECTRAL_IMAGE.TIF with its *-METADATA.XML, or their folder",
        suffixes=(),
        opener="spectralift_cli.core.formats.enmap:open_enmap",
        creator="",
        reads_rows=True,
        writes_rows=False,
        dtypes=("int16",),
        detector="spectralift_cli.core.formats.enmap:is_enmap",
        comes_as=("folder", "tiff", "other"),
    ),
    Format(
        name="prisma",
        help="PRISMA L2D (.he5), VNIR and SWIR as one cube",
        suffixes=(),
        opener="spectralift_cli.core.formats.prisma:open_prisma",
        creator="",
        reads_rows=True,
        writes_rows=False,
        dtypes=("uint16",),
        loaded_whole="tall compressed chunks",
        detector="spectralift_cli.core.formats.prisma:is_prisma",
        comes_as=("hdf5",),
    ),
    Format(
        name="emit",
        help="EMIT L2A reflectance (.nc), a swath that is not on a map",
        suffixes=(),
        opener="spectralift_cli.core.formats.emit:open_emit",
        creator="",
        reads_rows=True,
        writes_rows=False,
        dtypes=("float32",),
        loaded_whole="tall compressed chunks",
        detector="spectralift_cli.core.formats.emit:is_emit",
        comes_as=("hdf5",),
        variable="reflectance",
    ),
)  # fmt: skip
