"""EMIT L2A reflectance (.nc, which is HDF5): a swath in the sensor's own rows and columns.

`reflectance` is float32 (downtrack, crosstrack, bands), its `_FillValue` -9999;
`sensor_band_parameters` holds `wavelengths` and `fwhm` in nm and `good_wavelengths` (0: in a deep
absorption of water, marked bad here). Where each pixel lies on the ground is in `location/lat` and
`lon`; `location/glt_x` and `glt_y` look up the pixels of a map. The attributes `geotransform` and
`spatial_ref` belong to that map and not to the swath, so the cube has no georeference, and `swath`
is set: an image that is to be fused must be orthorectified first.

The layout is that of NASA's EMIT-Data-Resources and of GDAL, which orthorectifies it. It was not
checked against a granule of LP DAAC itself.
"""

from __future__ import annotations

from pathlib import Path

import h5py

from spectralift_cli.core.cube import CubeMeta, FloatArray
from spectralift_cli.core.cubeio import CubeReader
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.floats import as_float64
from spectralift_cli.core.formats import OpenRequest, arrays, hdf5_tree
from spectralift_cli.core.formats.hdf5 import DatasetReader, attribute_fields, describe

_BANDS = "sensor_band_parameters"
_VALUES = "reflectance"
_HINT = "fetch the granule again, or read one dataset of it with --var"


class EmitReader(DatasetReader):
    """Rows of the swath."""

    swath = True


def is_emit(path: Path) -> bool:
    """Tell whether an HDF5 file holds EMIT's reflectance on the swath."""
    return hdf5_tree.holds(path, (_VALUES, f"{_BANDS}/wavelengths", "location/glt_x"))


def open_emit(path: Path, request: OpenRequest) -> CubeReader:
    """Open an EMIT L2A granule; see `open_cube`.

    Raises:
        DataError: band parameters that do not fit the cube.
    """
    file = hdf5_tree.open_file(path)
    try:
        source = f"{path}: {_VALUES}"
        found = hdf5_tree.resolve(file, _VALUES, path)
        if found is None or not isinstance(found[1], h5py.Dataset):
            raise DataError(f"{source}: is not a dataset", _HINT)
        dataset = found[1]
        hdf5_tree.check_storage(dataset, request, source)
        dtype = hdf5_tree.check_values(dataset, source)
        axes = arrays.cube_axes(dataset.shape, request, source)
        shape = arrays.cube_shape(dataset.shape, axes)
        good = _parameter(file, "good_wavelengths", shape[2], path, request)
        meta = CubeMeta(
            shape=shape,
            dtype=dtype,
            wavelengths_nm=_parameter(file, "wavelengths", shape[2], path, request),
            fwhm_nm=_parameter(file, "fwhm", shape[2], path, request),
            bad_bands=None if good is None else good == 0,
            nodata=attribute_fields(dataset, shape[2], dtype, source).get("nodata"),
        )
        layout = {"product": "EMIT L2A", "grid": "swath, not orthorectified"}
        layout |= describe(dataset, _VALUES)
        return EmitReader(dataset, path, meta, axes, layout, request)
    except BaseException:
        file.close()
        raise


def _parameter(
    file: h5py.File, name: str, bands: int, path: Path, request: OpenRequest
) -> FloatArray | None:
    """Return one number a band of the group of band parameters; None if it has none."""
    where = f"{_BANDS}/{name}"
    if hdf5_tree.resolve(file, where, path) is None:
        return None
    values = hdf5_tree.read_beside(file, where, bands, request, path)
    if values is None or values.dtype.kind not in "iuf" or values.size != bands:
        raise DataError(f"{path}: its {where} are no {bands} numbers, one a band", _HINT)
    found: FloatArray = as_float64(values.reshape(-1))
    return found
