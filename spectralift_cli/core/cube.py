"""The cube: values `(rows, cols, bands)` with what makes them physical.

Stored values become units by `unit = stored * scale + offset`; a stored value equal to `nodata` is a
hole and is masked before scaling. Every format yields the same `CubeMeta`, so that nothing beyond
`formats/` knows where a cube came from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from spectralift_cli.core.errors import DataError

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
AnyArray = NDArray[Any]
Progress = Callable[[int, int], None]

# numpy kinds that can be a cube's stored values, as native-endian dtype names
STORED_DTYPES = (
    "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64",
    "float16", "float32", "float64",
)  # fmt: skip


def no_progress(done: int, total: int) -> None:
    """Ignore progress."""


@dataclass(frozen=True, eq=False)
class CubeMeta:
    """What is known of a cube besides its values.

    Args:
        shape: (rows, cols, bands), each at least 1.
        dtype: stored type, native byte order, one of `STORED_DTYPES`.
        wavelengths_nm: (bands,) band centres in nanometres, in file order, or None.
        fwhm_nm: (bands,) full widths at half maximum in nanometres, or None.
        bad_bands: (bands,) True where a band is flagged as unusable, or None.
        nodata: the stored value that marks a hole, or None; NaN is always a hole in float data.
        scale: stored value to unit, a number or (bands,); finite and not zero.
        offset: added after scaling, a number or (bands,); finite.
        crs: coordinate reference system as WKT, or None.
        transform: affine (a, b, c, d, e, f): x = a col + b row + c, y = d col + e row + f, for the
            upper left corner of a pixel (rasterio's order), or None.
        band_names: (bands,) or None.
        provenance: how the cube was made (a JSON object), or None.

    Raises:
        DataError: the fields do not fit the shape or are not finite.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    wavelengths_nm: FloatArray | None = None
    fwhm_nm: FloatArray | None = None
    bad_bands: BoolArray | None = None
    nodata: float | int | None = None
    scale: float | FloatArray = 1.0
    offset: float | FloatArray = 0.0
    crs: str | None = None
    transform: tuple[float, float, float, float, float, float] | None = None
    band_names: tuple[str, ...] | None = None
    provenance: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise DataError(
                f"a cube needs (rows, cols, bands) of at least 1 each, got {self.shape}",
                "check the header or the variable that was chosen",
            )
        dtype = np.dtype(self.dtype).newbyteorder("=")
        if dtype.name not in STORED_DTYPES:
            raise DataError(
                f"a cube of {dtype.name} values is not supported",
                f"convert it to one of {', '.join(STORED_DTYPES)}",
            )
        object.__setattr__(self, "dtype", dtype)
        for name in ("wavelengths_nm", "fwhm_nm"):
            self._set_band_array(name, np.float64)
        self._set_band_array("bad_bands", np.bool_)
        for name in ("scale", "offset"):
            self._set_scaling(name)
        if self.band_names is not None:
            object.__setattr__(self, "band_names", tuple(self.band_names))
            self._check_length("band_names", len(self.band_names))
        if self.transform is not None:
            transform = tuple(float(v) for v in self.transform[:6])
            if len(transform) != 6 or not np.isfinite(transform).all():
                raise DataError(
                    f"the transform {self.transform} is not six finite numbers",
                    "mend the georeference of the file",
                )
            object.__setattr__(self, "transform", transform)
        if self.nodata is not None:
            object.__setattr__(self, "nodata", _as_stored(self.nodata, dtype))

    def _check_length(self, name: str, length: int) -> None:
        if length != self.bands:
            raise DataError(
                f"{name} has {length} values but the cube has {self.bands} bands",
                "mend the metadata, or give the wavelengths with --wavelengths",
            )

    def _set_band_array(self, name: str, dtype: type) -> None:
        value = getattr(self, name)
        if value is None:
            return
        array: Any = np.array(value, dtype=dtype).ravel()
        self._check_length(name, array.size)
        if dtype is np.float64 and not (np.isfinite(array).all() and (array >= 0).all()):
            raise DataError(
                f"{name} holds values that are negative or not finite",
                "mend the metadata, or give the wavelengths with --wavelengths",
            )
        array.setflags(write=False)
        object.__setattr__(self, name, array)

    def _set_scaling(self, name: str) -> None:
        array: Any = np.array(getattr(self, name), dtype=np.float64)
        if array.ndim:
            self._check_length(name, array.size)
            array = array.ravel()
            if (array == array[0]).all():
                array = array[0]
        if not np.isfinite(array).all() or (name == "scale" and (array == 0).any()):
            raise DataError(
                f"the cube's {name} is zero or not finite: {array}",
                "mend the metadata, or give another number",
            )
        if array.ndim:
            array.setflags(write=False)
        object.__setattr__(self, name, array if array.ndim else float(array))

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.shape[0]

    @property
    def cols(self) -> int:
        """Number of columns."""
        return self.shape[1]

    @property
    def bands(self) -> int:
        """Number of bands."""
        return self.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of all stored values."""
        return self.rows * self.row_bytes

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of stored values."""
        return self.cols * self.bands * self.dtype.itemsize

    @property
    def is_scaled(self) -> bool:
        """Whether stored values differ from units."""
        return bool(np.any(np.asarray(self.scale) != 1) or np.any(np.asarray(self.offset) != 0))

    def replace(self, **changes: Any) -> CubeMeta:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def select_bands(self, indices: Sequence[int] | NDArray[np.intp]) -> CubeMeta:
        """Return the metadata of the chosen bands (0-based), in that order."""
        index = np.asarray(indices, dtype=np.intp)

        def pick(value: Any) -> Any:
            return value[index] if isinstance(value, np.ndarray) else value

        return self.replace(
            shape=(self.rows, self.cols, index.size),
            wavelengths_nm=pick(self.wavelengths_nm),
            fwhm_nm=pick(self.fwhm_nm),
            bad_bands=pick(self.bad_bands),
            scale=pick(self.scale),
            offset=pick(self.offset),
            band_names=self.band_names and tuple(self.band_names[i] for i in index),
        )

    def window(self, row: int, col: int, height: int, width: int) -> CubeMeta:
        """Return the metadata of a rectangle of pixels, its transform moved along."""
        transform = self.transform
        if transform is not None:
            a, b, c, d, e, f = transform
            transform = (a, b, a * col + b * row + c, d, e, d * col + e * row + f)
        return self.replace(shape=(height, width, self.bands), transform=transform)


@dataclass(frozen=True, eq=False)
class Cube:
    """A whole cube in memory.

    Args:
        values: (rows, cols, bands) stored values.
        meta: their metadata; its shape and dtype are those of `values`.
    """

    values: AnyArray
    meta: CubeMeta

    @classmethod
    def of(cls, values: AnyArray, **fields: Any) -> Self:
        """Make a cube from an array (rows, cols, bands) and the other fields of `CubeMeta`."""
        return cls(values, CubeMeta(shape=values.shape, dtype=values.dtype, **fields))

    def units(self) -> NDArray[np.float32]:
        """Return the values in units, float32, NaN in holes."""
        return to_units(self.values, self.meta)


def valid_mask(block: AnyArray, meta: CubeMeta) -> BoolArray:
    """Tell which stored values are not holes; shape of `block`."""
    mask: BoolArray = np.isfinite(block) if block.dtype.kind == "f" else np.ones(block.shape, bool)
    if meta.nodata is not None and not np.isnan(meta.nodata):
        mask &= block != np.asarray(meta.nodata).astype(block.dtype)
    return mask


def to_units(block: AnyArray, meta: CubeMeta) -> NDArray[np.float32]:
    """Return stored values in units: holes become NaN first, then scale and offset apply.

    Args:
        block: (rows, cols, bands) stored values.
        meta: whose nodata, scale and offset apply.

    Returns:
        (rows, cols, bands) float32; computed in float64 where stored values are scaled.
    """
    mask = valid_mask(block, meta)
    with np.errstate(over="ignore", invalid="ignore"):  # of float64's nodata values
        if meta.is_scaled:
            scaled = np.multiply(block, meta.scale, dtype=np.float64)
            scaled += meta.offset
            units = scaled.astype(np.float32)
        else:
            units = block.astype(np.float32)
    if not mask.all():
        units[~mask] = np.nan
    return units


def check_window(meta: CubeMeta, row: int, col: int, height: int, width: int) -> CubeMeta:
    """Return the metadata of a window inside a cube.

    Raises:
        DataError: the window is empty or leaves the cube.
    """
    inside = row + height <= meta.rows and col + width <= meta.cols
    if min(row, col) < 0 or min(height, width) < 1 or not inside:
        raise DataError(
            f"the window {row},{col},{height},{width} leaves the cube of "
            f"{meta.rows} x {meta.cols} pixels",
            "give ROW,COL,HEIGHT,WIDTH with ROW and COL counted from 0 inside the cube",
        )
    return meta.window(row, col, height, width)


def _as_stored(value: float, dtype: np.dtype[Any]) -> float | int:
    """Return a nodata value in the stored type.

    Raises:
        DataError: the type cannot hold it; such a value could never mark anything.
    """
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return float(np.array(value).astype(dtype))
    info = np.iinfo(dtype)
    if not np.isfinite(value) or value != int(value) or not info.min <= value <= info.max:
        raise DataError(
            f"the nodata value {value:g} cannot occur in {dtype.name} data "
            f"({info.min} to {info.max})",
            "mend the header, or name the right value with --nodata",
        )
    return int(value)
