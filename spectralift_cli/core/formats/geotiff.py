"""GeoTIFF and Cloud Optimized GeoTIFF through rasterio; `open_tiff` tells them from stacks.

One image of many bands is a GeoTIFF whether or not it has a georeference. Several images of one
band and one size are a stack (`tiffstack`). Before GDAL sees a file, `tiffpages` has checked that
its strips and tiles lie inside it.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.windows import Window

from spectralift_cli.core.cube import STORED_DTYPES, AnyArray, CubeMeta
from spectralift_cli.core.cubeio import CubeReader
from spectralift_cli.core.errors import DataError, SpectraliftWarning
from spectralift_cli.core.formats import OpenRequest
from spectralift_cli.core.formats.arrays import cube_axes
from spectralift_cli.core.formats.gdalio import (
    CACHE_BYTES,
    PlaneReader,
    gdal_env,
    gdal_errors,
    open_dataset,
)
from spectralift_cli.core.formats.msi_products import msi_fields
from spectralift_cli.core.formats.tiffpages import Page, TiffDirectories
from spectralift_cli.core.formats.tiffstack import StackReader, band_texts, check_no_hidden_pages
from spectralift_cli.core.formats.tifftags import read_fields, wavelengths_in
from spectralift_cli.core.formats.tiffwriter import create_geotiff
from spectralift_cli.core.resources import default_memory_bytes

__all__ = ["GeoTiffReader", "create_geotiff", "open_tiff"]

# what (plane, y, x) are called in `--axis-order`, and as tifffile and numpy see the three layouts
_PLANE, _Y, _X = 0, 1, 2
_BY_PLANE = ("byx", (_PLANE, _Y, _X))
_BY_PIXEL = ("yxb", (_Y, _X, _PLANE))
_NATURAL = (_Y, _X, _PLANE)


class GeoTiffReader(PlaneReader):
    """One image of a TIFF, whose planes are its bands.

    Args:
        path: the file.
        meta: the cube's metadata.
        layout: for `info`.
        axes: which of (band, y, x) are the cube's rows, columns and bands.
        block: (bands, rows, columns) of a strip or tile.
        dataset: rasterio's, open; the reader closes it.
    """

    def __init__(
        self,
        path: Path,
        meta: CubeMeta,
        layout: Mapping[str, Any],
        axes: tuple[int, int, int],
        block: tuple[int, int, int],
        dataset: Any,
    ) -> None:
        super().__init__(path, meta, layout, axes, block)
        self._dataset = dataset
        self.held_bytes = min(CACHE_BYTES, meta.nbytes)

    @property
    def files(self) -> tuple[Path, ...]:
        """The TIFF, and the sidecars that GDAL took something from."""
        others = (Path(name) for name in self._dataset.files)
        return (self.path, *(p for p in others if p != self.path.absolute()))

    def _planes(self, planes: slice, rows: slice, cols: slice) -> AnyArray:
        window = Window(cols.start, rows.start, cols.stop - cols.start, rows.stop - rows.start)
        bands = list(range(planes.start + 1, planes.stop + 1))
        array: AnyArray = self._dataset.read(bands, window=window)
        return array

    def close(self) -> None:
        """Close the file."""
        self._dataset.close()


def open_tiff(path: Path, request: OpenRequest) -> CubeReader:
    """Open a TIFF; see `open_cube`.

    `request.axis_order` names the axes as numpy and tifffile see them: (page, y, x) for a stack,
    (band, y, x) for planar bands, (y, x, band) for values interleaved by pixel.

    Raises:
        DataError: damaged or truncated, complex values or a palette, images of several sizes, or
            a strip or tile too large for the memory allowed.
    """
    with TiffDirectories(path) as tiff:
        pages = _chosen_pages(tiff)
        absent = sum(tiff.check(page) for page in pages)
        tiff.check_metadata(pages[0])
        layout = {
            "bigtiff": tiff.big,
            "byte_order": "big" if tiff.byte_order == ">" else "little",
            "directories": len(tiff.pages),
            "absent_blocks": absent,
        }
        first = pages[0]
        directory = None if first is tiff.pages[0] else first.offset
    dataset = open_dataset(path, directory)
    try:
        hint = "check the file with gdalinfo"
        with gdal_errors(path, "its metadata cannot be read", hint), gdal_env():
            return _reader(path, request, pages, dataset, layout)
    except BaseException:
        dataset.close()
        raise


def _chosen_pages(tiff: TiffDirectories) -> tuple[Page, ...]:
    """Return the page that is the cube, or the pages of the stack."""
    pages = tiff.images()
    first = pages[0]
    if first.is_palette:
        raise DataError(
            f"{tiff.path}: holds places in a table of colours, not measurements",
            "expand it first: gdal_translate -expand rgb",
        )
    if len(pages) == 1:
        check_no_hidden_pages(first, tiff.path)
        return pages
    if all(page.same == first.same for page in pages):
        if first.samples == 1:
            return pages
        raise DataError(
            f"{tiff.path}: holds {len(pages)} images of {first.samples} bands each, a cube is one "
            "image of many bands or many of one",
            "take one image out first, for example with gdal_translate GTIFF_DIR:1:FILE",
        )
    if first.samples > 1:
        warnings.warn(
            f"{tiff.path}: holds {len(pages)} images of different sizes or types; the first is read",
            SpectraliftWarning,
            stacklevel=4,
        )
        return (first,)
    other = next(page for page in pages if page.same != first.same)
    raise DataError(
        f"{tiff.path}: holds {len(pages)} images that differ, the first {first.height} x "
        f"{first.width} x {first.samples} of {first.bits} bits, another {other.height} x "
        f"{other.width} x {other.samples} of {other.bits} bits",
        "take the image that you want out first, for example with gdal_translate GTIFF_DIR:1:FILE",
    )


def _reader(
    path: Path,
    request: OpenRequest,
    pages: tuple[Page, ...],
    dataset: Any,
    layout: dict[str, Any],
) -> CubeReader:
    """Make the reader for an open image or stack, whose first image is `dataset`."""
    page, is_stack = pages[0], len(pages) > 1
    dtype = _dtype(dataset, path)
    planes = len(pages) if is_stack else dataset.count
    by_plane = is_stack or page.planar
    axes = _axes(request, planes, page, by_plane=by_plane, path=path)
    rows, cols = dataset.block_shapes[0]
    block = (1 if by_plane else planes, rows, cols)
    sizes = (planes, page.height, page.width)
    shape = (sizes[axes[0]], sizes[axes[1]], sizes[axes[2]])
    _check_memory(shape, block, dtype, request, path)
    layout |= {
        "kind": "stack of pages" if is_stack else "GeoTIFF",
        "interleave": "band" if by_plane else "pixel",
        "compression": dataset.compression.value if dataset.compression else "none",
        "blocks": [rows, cols],
        "tiled": page.tiled,
        "overviews": [] if is_stack else dataset.overviews(1),
        "nbits": page.bits,
    }
    fields = read_fields(dataset, dtype, page.nodata, path)
    if is_stack:
        fields |= _stack_fields(pages, planes, path, fields)
    else:
        fields |= msi_fields(dataset, fields, dtype, path)
        if product := fields.pop("product", None):
            layout["product"] = product
    if axes != _NATURAL:
        # the georeference belongs to y and x, and what a band has to the planes
        fields |= {"transform": None, "crs": None}
        if axes[2] != _PLANE:
            fields = {"nodata": fields["nodata"], "provenance": fields["provenance"]}
    try:
        meta = CubeMeta(shape=shape, dtype=dtype, **fields)
    except DataError as error:
        raise DataError(f"{path}: {error.message}", error.hint) from error
    if is_stack:
        dataset.close()
        return StackReader(path, meta, layout, axes, block, pages)
    return GeoTiffReader(path, meta, layout, axes, block, dataset)


def _dtype(dataset: Any, path: Path) -> np.dtype[Any]:
    name = dataset.dtypes[0]  # a TIFF's bands have one type
    if name not in STORED_DTYPES:
        raise DataError(
            f"{path}: {name} values are not a cube's",
            f"save it again as one of {', '.join(STORED_DTYPES)}",
        )
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


def _axes(
    request: OpenRequest, planes: int, page: Page, *, by_plane: bool, path: Path
) -> tuple[int, int, int]:
    """Return which of (plane, y, x) are the cube's rows, columns and bands."""
    if planes == 1 and request.axis_order in (None, "yx"):
        return _NATURAL
    order, stored_axes = _BY_PLANE if by_plane else _BY_PIXEL
    sizes = (planes, page.height, page.width)
    stored = tuple(sizes[axis] for axis in stored_axes) if planes > 1 else sizes[1:]
    chosen = dataclasses.replace(request, axis_order=request.axis_order or order)
    row, col, band = cube_axes(stored, chosen, path)
    return (stored_axes[row], stored_axes[col], stored_axes[band])


def _check_memory(
    shape: tuple[int, int, int],
    block: tuple[int, int, int],
    dtype: np.dtype[Any],
    request: OpenRequest,
    path: Path,
) -> None:
    """Refuse a file of which not one row can be read within the memory allowed."""
    limit = request.memory_bytes if request.memory_bytes is not None else default_memory_bytes()
    decoded = block[0] * block[1] * block[2] * dtype.itemsize
    row = shape[1] * shape[2] * dtype.itemsize
    for what, nbytes in (("strip or tile", decoded), ("row of the cube", row)):
        if nbytes > limit:
            raise DataError(
                f"{path}: one {what} takes {nbytes / 1e6:,.0f} MB, more than the "
                f"{limit / 1e6:,.0f} MB allowed",
                "raise --memory, or write the file again in smaller strips or tiles",
            )


def _stack_fields(
    pages: tuple[Page, ...], planes: int, path: Path, first: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the fields of a stack; its first page gives nodata, scale, CRS and transform."""
    texts = band_texts(pages)
    return {
        "wavelengths_nm": None if texts is None else wavelengths_in(texts, path),
        "fwhm_nm": None,
        "bad_bands": None,
        "band_names": texts,
        "scale": np.broadcast_to(first["scale"], planes),
        "offset": np.broadcast_to(first["offset"], planes),
    }
