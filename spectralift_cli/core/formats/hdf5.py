"""HDF5: the cube as one dataset (rows, cols, bands), what is known of it in others beside it.

Our files hold `cube`, `wavelengths_nm`, `fwhm_nm`, `bad_bands` and a JSON text `spectralift`. Of
other files' metadata the attributes of the CF conventions (`_FillValue`, `scale_factor`,
`add_offset`) and `wavelengths`, `wavelength_units`, `fwhm` are understood.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from spectralift_cli.core.cube import AnyArray, CubeMeta
from spectralift_cli.core.cubeio import BLOCK_BYTES, CubeReader, CubeWriter
from spectralift_cli.core.errors import OptionError
from spectralift_cli.core.formats import OpenRequest, arrays, hdf5_tree
from spectralift_cli.core.formats.hdf5_write import DatasetWriter, chunk_shape
from spectralift_cli.core.formats.spectral import fitting_nodata, to_nm

# a row of compressed chunks larger than this is not inflated again for every block of rows
_TALL_BYTES = 4 * BLOCK_BYTES
_SIDE_VALUES = 2**16


class DatasetReader(CubeReader):
    """Rows of a dataset.

    Where compressed chunks are so tall that a row of them exceeds 64 MB, every block of rows would
    have to inflate most of the file again; such a dataset is loaded once, if memory allows.

    Args:
        dataset: of 2 or 3 axes, checked.
        path: its file.
        meta: of the cube.
        axes: which axes are rows, cols and bands (-1: none), see `arrays.cube_axes`.
        layout: see `CubeReader`.
        request: its `memory_bytes`.
        reversed_axes: `axes` count from the dataset's last axis, as in MATLAB's files.
    """

    def __init__(
        self,
        dataset: h5py.Dataset,
        path: Path,
        meta: CubeMeta,
        axes: tuple[int, int, int],
        layout: Mapping[str, Any],
        request: OpenRequest,
        *,
        reversed_axes: bool = False,
    ) -> None:
        super().__init__(path, meta, layout)
        self._dataset: h5py.Dataset | None = dataset
        self._file = dataset.file
        self._axes = axes
        self._reversed = reversed_axes
        self._row_axis = dataset.ndim - 1 - axes[0] if reversed_axes else axes[0]
        self._request = request
        self._whole: AnyArray | None = None
        self.row_unit = 1
        if dataset.chunks is not None:
            self.row_unit = height = min(dataset.chunks[self._row_axis], meta.rows)
            is_tall = height * meta.row_bytes > _TALL_BYTES
            if not is_tall:
                self.block_rows = min(meta.rows, max(1, self.block_rows // height) * height)
            self.streams = not is_tall or not hdf5_tree.filters_of(dataset)

    def _read(self, start: int, stop: int) -> AnyArray:
        if self.streams:
            return self._fetch(start, stop)
        if self._whole is None:
            arrays.check_memory(self.meta.nbytes, self._request, self.path)
            self._whole = self._fetch(0, self.meta.rows)
        return self._whole[start:stop]

    def _fetch(self, start: int, stop: int) -> AnyArray:
        if self._dataset is None:
            raise ValueError(f"{self.path}: is closed")
        chosen = [slice(None)] * self._dataset.ndim
        chosen[self._row_axis] = slice(start, stop)
        with hdf5_tree.as_data_error(self.path):
            array: AnyArray = self._dataset[tuple(chosen)]
        if self._reversed:
            array = array.transpose()
        return arrays.to_cube_axes(array, self._axes)

    def close(self) -> None:
        """Close the file."""
        self._whole = self._dataset = None
        self._file.close()


def open_hdf5(path: Path, request: OpenRequest) -> CubeReader:
    """Open an HDF5 file; see `open_cube`. `--var` may be a path, `group/data`."""
    file = hdf5_tree.open_file(path)
    try:
        name, group, dataset = hdf5_tree.find_cube(file, path, request)
        source = f"{path}: {name}"
        hdf5_tree.check_storage(dataset, request, source)
        axes = arrays.cube_axes(dataset.shape, request, source)
        shape = arrays.cube_shape(dataset.shape, axes)
        dtype = hdf5_tree.check_values(dataset, source)
        # a soft link may have led elsewhere: what lies beside the link comes first
        folders = list(dict.fromkeys((f"/{name}".rpartition("/")[0], group.name.rstrip("/"))))
        fields = {
            **attribute_fields(dataset, shape[2], dtype, source),
            **_read_json(file, folders, request, path),
        }
        sides = _read_sides(file, folders, request, path)
        leaf = name.rpartition("/")[2]
        meta = arrays.meta_from_sides(shape, dtype, leaf, fields, sides, source)
        return DatasetReader(dataset, path, meta, axes, describe(dataset, name), request)
    except BaseException:
        file.close()
        raise


def describe(dataset: h5py.Dataset, name: str) -> dict[str, Any]:
    """Return the facts about a dataset that `info` shows."""
    return {
        "variable": name,
        "stored_shape": list(dataset.shape),
        "byte_order": "big" if dataset.dtype.byteorder == ">" else "little",
        "chunks": None if dataset.chunks is None else list(dataset.chunks),
        "compression": "+".join(hdf5_tree.filters_of(dataset)) or "none",
    }


def _read_json(
    file: h5py.File, folders: list[str], request: OpenRequest, path: Path
) -> dict[str, Any]:
    for folder in folders:
        text = hdf5_tree.read_beside(file, f"{folder}/spectralift", 1, request, path)
        if text is not None and text.size and text.dtype.kind in "SO":
            value = text.reshape(-1)[0]
            return arrays.parse_json(value if isinstance(value, bytes | str) else "", path)
    return {}


def _read_sides(
    file: h5py.File, folders: list[str], request: OpenRequest, path: Path
) -> dict[str, AnyArray]:
    sides: dict[str, AnyArray] = {}
    for name in ("wavelengths_nm", "fwhm_nm", "bad_bands"):
        for folder in folders:
            values = hdf5_tree.read_beside(file, f"{folder}/{name}", _SIDE_VALUES, request, path)
            if values is not None and values.dtype.kind in "biuf":
                sides.setdefault(name, values)
    return sides


def attribute_fields(
    dataset: h5py.Dataset, bands: int, dtype: np.dtype[Any], source: str
) -> dict[str, Any]:
    """Return what the dataset's own attributes say plainly; what they say oddly is left out."""

    def numbers(*names: str) -> AnyArray | None:
        for name in names:
            values = np.asarray(hdf5_tree.attribute(dataset, name))
            if values.dtype.kind in "iuf" and values.size in (1, bands) and values.size:
                return values.reshape(-1)
        return None

    fields: dict[str, Any] = {}
    centres = numbers("wavelengths", "wavelength")
    if centres is not None and centres.size == bands:
        unit = hdf5_tree.attribute(dataset, "wavelength_units")
        unit = unit if isinstance(unit, str) else None
        fields["wavelengths_nm"] = to_nm(centres, unit, source)
        widths = numbers("fwhm")
        if fields["wavelengths_nm"] is not None and widths is not None and widths.size == bands:
            fields["fwhm_nm"] = to_nm(widths, unit, source, like_nm=centres)
    nodata = numbers("nodata", "_FillValue")
    if nodata is not None and nodata.size == 1:
        fields["nodata"] = fitting_nodata(nodata[0].item(), dtype, source)
    for field, name in (("scale", "scale_factor"), ("offset", "add_offset")):
        values = numbers(name)
        if values is not None and np.isfinite(values).all() and (field == "offset" or values.all()):
            fields[field] = values if values.size > 1 else values[0]
    return fields


def create_hdf5(
    path: Path, meta: CubeMeta, options: Mapping[str, str], overwrite: bool
) -> CubeWriter:
    """Start an HDF5 file; see `create_cube`.

    The cube's dataset is contiguous, or in chunks of some 1 MB where it is compressed.
    """
    variable = _check_variable(options.get("VARIABLE", arrays.CUBE_NAMES[0]), path)
    storage = compression(options, path)
    chunks = chunk_shape(meta) if storage else None
    folder, _, leaf = variable.rpartition("/")
    sides, text = arrays.sides_of(meta, leaf)

    def lay_out(file: h5py.File) -> h5py.Dataset:
        group = file.require_group(folder) if folder else file
        for name, values in sides.items():
            group.create_dataset(name, data=values, track_times=False)
        group.create_dataset("spectralift", data=np.bytes_(text), track_times=False)
        return group.create_dataset(
            leaf, meta.shape, meta.dtype.newbyteorder("<"), chunks=chunks, track_times=False,
            **storage,
        )  # fmt: skip

    return DatasetWriter(path, meta, lay_out, overwrite, chunk_rows=chunks[0] if chunks else 1)


def compression(options: Mapping[str, str], path: Path) -> dict[str, Any]:
    """Return h5py's arguments for the creation options COMPRESS and LEVEL; {} for none.

    Raises:
        OptionError: a level for something that has none.
    """
    name = options.get("COMPRESS", "NONE")
    if "LEVEL" in options and name != "GZIP":
        raise OptionError(
            f"{path}: LEVEL={options['LEVEL']} does not apply to COMPRESS={name}",
            "add --co COMPRESS=GZIP or leave LEVEL out",
        )
    if name == "NONE":
        return {}
    # shuffled, the high bytes of neighbouring values lie together, which is where they are alike
    storage: dict[str, Any] = {"compression": name.lower(), "shuffle": True}
    if name == "GZIP":
        storage["compression_opts"] = int(options.get("LEVEL", "4"))
    return storage


def _check_variable(name: str, path: Path) -> str:
    parts = name.strip("/").split("/")
    odd = any(part in ("", ".", "..") or not part.isprintable() for part in parts)
    if odd or len(name) > 255 or parts[-1] in arrays.META_NAMES:
        raise OptionError(
            f"{path}: VARIABLE={name[:80]!r} cannot name the cube's dataset",
            f"use letters, digits and /, and none of {', '.join(arrays.META_NAMES)}",
        )
    if set(parts[:-1]) & set(arrays.META_NAMES):
        raise OptionError(
            f"{path}: VARIABLE={name!r} puts the cube under the name of its metadata",
            "choose another group",
        )
    return "/".join(parts)
