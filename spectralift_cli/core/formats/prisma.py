"""PRISMA L2D products (.he5): the VNIR and SWIR cubes as one, ascending in wavelength.

Under `HDFEOS/SWATHS/PRS_L2D_HCO/Data Fields` lie `VNIR_Cube` and `SWIR_Cube`, uint16 (rows, bands,
cols), both descending in wavelength and overlapping from about 920 to 1010 nm. What is known of them
are attributes of the root: `List_Cw_Vnir` and `List_Fwhm_Vnir` in nm, `List_Cw_Vnir_Flags` (1: in
use), `L2ScaleVnirMin` and `L2ScaleVnirMax`, and the same for `Swir`:

    reflectance = min + stored * (max - min) / 65535, of that detector

A band whose wavelength is 0 was not transmitted: it has neither data nor a place in the spectrum and
is left out. A band with a wavelength and the flag 0 is marked bad. A stored 0 is a hole: a failed
retrieval, or the frame around the turned swath. The corners `Product_ULcorner_easting` etc. are the
centres of the corner pixels, in the CRS `Epsg_Code`. The error matrices are not used.

The layout is that which prismaread, EnMAP-Box and HyperCoast read. It was not checked against a
product of ASI itself.
"""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import CRSError

from spectralift_cli.core.cube import AnyArray, BoolArray, CubeMeta, FloatArray
from spectralift_cli.core.cubeio import CubeReader
from spectralift_cli.core.errors import DataError, SpectraliftWarning
from spectralift_cli.core.floats import as_float64
from spectralift_cli.core.formats import OpenRequest, arrays, hdf5_tree
from spectralift_cli.core.formats.gdalio import gdal_env
from spectralift_cli.core.formats.hdf5 import DatasetReader

_FIELDS = "HDFEOS/SWATHS/PRS_L2D_HCO/Data Fields"
_DETECTORS = ("Vnir", "Swir")
_FULL_SCALE = 65535
_HINT = "fetch the product again, or read one dataset of it with --var"


@dataclass(frozen=True)
class _Detector:
    """One detector's cube, and what the root says of its bands that are in use.

    Args:
        reader: of the whole cube, (rows, cols, bands) in stored order.
        kept: (n,) 0-based stored bands that have a wavelength.
        centres_nm: (n,) of those.
        widths_nm: (n,) or None.
        bad: (n,) flagged as not in use.
        scale: stored value to reflectance.
        offset: likewise.
        name: "VNIR" or "SWIR".
    """

    reader: DatasetReader
    kept: NDArray[np.intp]
    centres_nm: FloatArray
    widths_nm: FloatArray | None
    bad: BoolArray
    scale: float
    offset: float
    name: str


class PrismaReader(CubeReader):
    """Rows of both detectors, their bands in one order.

    Args:
        path: the file.
        meta: of the merged cube.
        layout: for `info`.
        detectors: the two cubes.
        order: (bands,) which of the detectors' kept bands, counted one after the other, each band
            of the merged cube is.
    """

    def __init__(
        self,
        path: Path,
        meta: CubeMeta,
        layout: dict[str, Any],
        detectors: tuple[_Detector, ...],
        order: NDArray[np.intp],
    ) -> None:
        super().__init__(path, meta, layout)
        self._detectors = detectors
        places = np.argsort(order)  # of each kept band in the merged cube
        ends = np.cumsum([d.kept.size for d in detectors])[:-1]
        self._places = np.split(places, ends)
        self.streams = all(d.reader.streams for d in detectors)
        self.block_rows = min(d.reader.block_rows for d in detectors)

    def _read(self, start: int, stop: int) -> AnyArray:
        out: AnyArray = np.empty((stop - start, self.meta.cols, self.meta.bands), self.meta.dtype)
        for detector, places in zip(self._detectors, self._places, strict=True):
            out[:, :, places] = detector.reader.read(slice(start, stop))[:, :, detector.kept]
        return out

    def close(self) -> None:
        """Close the file."""
        for detector in self._detectors:
            detector.reader.close()


def is_prisma(path: Path) -> bool:
    """Tell whether an HDF5 file holds PRISMA's L2D cubes."""
    return hdf5_tree.holds(path, (f"{_FIELDS}/VNIR_Cube", f"{_FIELDS}/SWIR_Cube"))


def open_prisma(path: Path, request: OpenRequest) -> CubeReader:
    """Open a PRISMA L2D file; see `open_cube`.

    Raises:
        DataError: cubes that do not fit each other, or attributes that are missing or do not fit.
    """
    file = hdf5_tree.open_file(path)
    try:
        detectors = tuple(_detector(file, name, path, request) for name in _DETECTORS)
        vnir, swir = (d.reader.meta for d in detectors)
        if (vnir.rows, vnir.cols, vnir.dtype) != (swir.rows, swir.cols, swir.dtype):
            raise DataError(
                f"{path}: the VNIR cube has {vnir.rows} x {vnir.cols} pixels of {vnir.dtype.name}, "
                f"the SWIR cube {swir.rows} x {swir.cols} of {swir.dtype.name}",
                _HINT,
            )
        order = np.argsort(np.concatenate([d.centres_nm for d in detectors]), kind="stable")
        meta = _merged(detectors, order, file, path)
        layout = {
            "product": "PRISMA L2D",
            "stored_shape": [list(d.reader.layout["stored_shape"]) for d in detectors],
            "chunks": detectors[0].reader.layout["chunks"],
            "compression": detectors[0].reader.layout["compression"],
            "bands_left_out": sum(d.reader.meta.bands - d.kept.size for d in detectors),
        }
        return PrismaReader(path, meta, layout, detectors, order)
    except BaseException:
        file.close()
        raise


def _detector(file: h5py.File, name: str, path: Path, request: OpenRequest) -> _Detector:
    """Return one detector's cube; `name` as the attributes spell it."""
    where = f"{_FIELDS}/{name.upper()}_Cube"
    source = f"{path}: {where}"
    found = hdf5_tree.resolve(file, where, path)
    if found is None or not isinstance(found[1], h5py.Dataset):
        raise DataError(f"{source}: is not a dataset", _HINT)
    dataset = found[1]
    hdf5_tree.check_storage(dataset, request, source)
    dtype = hdf5_tree.check_values(dataset, source)
    axes = arrays.cube_axes(dataset.shape, dataclasses.replace(request, axis_order="ybx"), source)
    shape = arrays.cube_shape(dataset.shape, axes)
    layout = {
        "stored_shape": list(dataset.shape),
        "chunks": None if dataset.chunks is None else list(dataset.chunks),
        "compression": "+".join(hdf5_tree.filters_of(dataset)) or "none",
    }
    reader = DatasetReader(dataset, path, CubeMeta(shape, dtype), axes, layout, request)
    centres = _list(file, f"List_Cw_{name}", shape[2], path)
    if centres is None or not np.isfinite(centres).all() or (centres < 0).any():
        raise DataError(f"{path}: its List_Cw_{name} are no {shape[2]} wavelengths", _HINT)
    kept = np.flatnonzero(centres > 0)
    if not kept.size:
        raise DataError(f"{path}: no band of its {name.upper()} cube has a wavelength", _HINT)
    widths = _list(file, f"List_Fwhm_{name}", shape[2], path)
    flags = _list(file, f"List_Cw_{name}_Flags", shape[2], path)
    low, high = (_number(file, f"L2Scale{name}{end}") for end in ("Min", "Max"))
    if low is None or high is None or not high > low:
        raise DataError(
            f"{path}: its L2Scale{name}Min and Max are {low} and {high}, which give no reflectance",
            _HINT,
        )
    usable = widths is not None and np.isfinite(widths[kept]).all() and (widths[kept] > 0).all()
    return _Detector(
        reader=reader,
        kept=kept,
        centres_nm=centres[kept],
        widths_nm=widths[kept] if widths is not None and usable else None,
        bad=np.zeros(kept.size, bool) if flags is None else flags[kept] == 0,
        scale=(high - low) / _FULL_SCALE,
        offset=low,
        name=name.upper(),
    )


def _merged(
    detectors: tuple[_Detector, ...], order: NDArray[np.intp], file: h5py.File, path: Path
) -> CubeMeta:
    """Return the metadata of the merged cube."""
    first = detectors[0].reader.meta
    widths = [d.widths_nm for d in detectors if d.widths_nm is not None]
    names = [f"{d.name} {band + 1}" for d in detectors for band in d.kept]
    sizes = [d.kept.size for d in detectors]
    crs, transform = _georeference(file, first.rows, first.cols, path)
    return CubeMeta(
        shape=(first.rows, first.cols, order.size),
        dtype=first.dtype,
        wavelengths_nm=np.concatenate([d.centres_nm for d in detectors])[order],
        fwhm_nm=np.concatenate(widths)[order] if len(widths) == len(detectors) else None,
        bad_bands=np.concatenate([d.bad for d in detectors])[order],
        nodata=0,
        scale=np.repeat([d.scale for d in detectors], sizes)[order],
        offset=np.repeat([d.offset for d in detectors], sizes)[order],
        crs=crs,
        transform=transform,
        band_names=tuple(names[index] for index in order),
    )


def _georeference(
    file: h5py.File, rows: int, cols: int, path: Path
) -> tuple[str | None, tuple[float, float, float, float, float, float] | None]:
    """Return CRS and transform; (None, None) with a warning where the attributes give none."""
    corners = {
        f"{corner}_{axis}": _number(file, f"Product_{corner}corner_{axis}")
        for corner in ("UL", "UR", "LL", "LR")
        for axis in ("easting", "northing")
    }
    code = _number(file, "Epsg_Code")
    known = {name: value for name, value in corners.items() if value is not None}
    try:
        west = min(known["UL_easting"], known["LL_easting"])
        east = max(known["UR_easting"], known["LR_easting"])
        north = max(known["UL_northing"], known["UR_northing"])
        south = min(known["LL_northing"], known["LR_northing"])
        # the corners are centres of pixels, one step fewer than pixels apart
        step_x, step_y = (east - west) / (cols - 1), (north - south) / (rows - 1)
        if code is None or not code.is_integer() or min(step_x, step_y) <= 0:
            raise ValueError("its corners or its EPSG code are none")
        with gdal_env():  # without it PROJ itself speaks of a code that it does not know
            wkt = CRS.from_epsg(int(code)).to_wkt()
    except (KeyError, ValueError, ArithmeticError, CRSError) as error:
        warnings.warn(
            f"{path}: its map projection attributes give no georeference ({error}); "
            "the cube is read without one",
            SpectraliftWarning,
            stacklevel=5,
        )
        return None, None
    return wkt, (step_x, 0.0, west - step_x / 2, 0.0, -step_y, north + step_y / 2)


def _list(file: h5py.File, name: str, count: int, path: Path) -> FloatArray | None:
    """Return a root attribute of one number a band; None if there is none."""
    values = np.asarray(hdf5_tree.attribute(file, name))
    if values.dtype.kind not in "biuf":
        return None
    if values.size != count:
        raise DataError(
            f"{path}: its attribute {name} has {values.size} values, the cube {count} bands", _HINT
        )
    found: FloatArray = as_float64(values.reshape(-1))
    return found


def _number(file: h5py.File, name: str) -> float | None:
    """Return a root attribute that is one finite number, else None."""
    value = np.asarray(hdf5_tree.attribute(file, name))
    if value.dtype.kind not in "iuf" or value.size != 1 or not np.isfinite(value).all():
        return None
    return float(value.reshape(-1)[0])
