"""GDAL on our terms: local files, the GTiff driver alone, a small cache, errors as `DataError`.

rasterio's environment sets GDAL's options for the calls inside it and puts them back; the cache is
the process's, so each call runs in its own short environment rather than in one that lasts as long
as a reader.
"""

from __future__ import annotations

import math
import threading
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError  # GDAL's own errors; rasterio lets some of them pass
from rasterio.env import Env
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.session import DummySession

from spectralift_cli.core.cube import AnyArray, CubeMeta
from spectralift_cli.core.cubeio import BLOCK_BYTES, CubeReader
from spectralift_cli.core.errors import DataError

CACHE_BYTES = 64 * 2**20
# the most that one read may hold where the file's strips or tiles would have it take more
LARGEST_BLOCK_BYTES = 64 * 2**20

_FILTERS = threading.Lock()


def gdal_env(*, sidecars: bool = True) -> Env:
    """Return GDAL's settings for a few calls.

    Args:
        sidecars: whether `.aux.xml` beside a TIFF is read, and written for what a TIFF cannot hold.
    """
    return Env(
        session=DummySession(),  # else rasterio looks for cloud credentials
        GDAL_CACHEMAX=CACHE_BYTES,
        GDAL_DISABLE_READDIR_ON_OPEN="TRUE",  # a folder may hold very many files
        GDAL_PAM_ENABLED="YES" if sidecars else "NO",
        GTIFF_REPORT_COMPD_CS="YES",  # else a vertical CRS is dropped
        GDAL_VALIDATE_CREATION_OPTIONS="NO",  # its list lacks one that works; ours are checked
    )


@contextmanager
def gdal_errors(path: Path, failure: str, hint: str) -> Iterator[None]:
    """Raise what GDAL and rasterio raise as a `DataError` that names the path.

    Args:
        path: the file, for the message.
        failure: what did not work ("cannot be decoded").
        hint: the remedy.
    """
    try:
        yield
    except (RasterioError, CPLE_BaseError) as error:
        reason = error.__cause__ or error.__context__ or error
        raise DataError(f"{path}: {failure} ({reason})", hint) from error
    except UnicodeError as error:
        raise DataError(
            f"{path}: its name or metadata are not UTF-8 ({error})",
            "rename it, or remove the metadata with gdal_edit.py -unsetmd",
        ) from error


def open_quietly(*args: Any, **options: Any) -> Any:
    """Call `rasterio.open` without its warning of a missing georeference: most cubes have none."""
    # the filters of warnings belong to the process; two threads must not restore them crosswise
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(*args, **options)


def local_path(path: Path) -> Path:
    """Return the absolute path, which GDAL cannot mistake for a URL or a virtual file.

    Raises:
        DataError: it lies in a folder whose name GDAL takes for a virtual file system.
    """
    absolute = path.absolute()
    if str(absolute).startswith("/vsi"):
        raise DataError(
            f"{path}: GDAL takes names below {absolute.parts[1]} for virtual files",
            "move the file to another folder",
        )
    return absolute


def open_dataset(path: Path, directory: int | None = None) -> Any:
    """Open a TIFF's first image, or the one whose directory lies at a byte offset.

    Returns:
        rasterio's dataset reader.

    Raises:
        DataError: GDAL cannot open it.
    """
    absolute = local_path(path)
    name = absolute if directory is None else f"GTIFF_DIR:off:{directory}:{absolute}"
    hint = "check the file with gdalinfo"
    with gdal_errors(path, "cannot be opened as a TIFF", hint), gdal_env():
        return open_quietly(name, driver="GTiff")


class PlaneReader(CubeReader):
    """A cube whose values GDAL gives by planes (bands or pages) of rows and columns.

    Args:
        path: the file.
        meta: the cube's metadata.
        layout: for `info`.
        axes: which of (plane, y, x) are the cube's rows, columns and bands.
        block: (planes, rows, columns) of values that are decoded together.
    """

    def __init__(
        self,
        path: Path,
        meta: CubeMeta,
        layout: Mapping[str, Any],
        axes: tuple[int, int, int],
        block: tuple[int, int, int],
    ) -> None:
        super().__init__(path, meta, layout)
        self._axes = axes
        self._sizes = tuple(meta.shape[axes.index(axis)] for axis in range(3))
        self.block_rows = natural_rows(block[axes[0]], meta)
        self.row_unit = min(block[axes[0]], meta.rows)

    @abstractmethod
    def _planes(self, planes: slice, rows: slice, cols: slice) -> AnyArray:
        """Return a box of stored values, (planes, rows, cols)."""

    def _read(self, start: int, stop: int) -> AnyArray:
        if stop <= start:
            return np.empty((0, self.meta.cols, self.meta.bands), self.meta.dtype)
        box = [slice(0, size) for size in self._sizes]
        box[self._axes[0]] = slice(start, stop)
        failure = f"rows {start:,} to {stop:,} cannot be decoded"
        hint = "the file is damaged; fetch or make it again"
        with gdal_errors(self.path, failure, hint), gdal_env():
            return self._planes(*box).transpose(self._axes)


def natural_rows(unit: int, meta: CubeMeta) -> int:
    """Return how many rows to read at once where `unit` rows are decoded together.

    Whole units up to 16 MB, one unit up to 64 MB; of a larger unit a part that divides it, at the
    price of decoding the unit once for each part.
    """
    unit = min(unit, meta.rows)
    if unit * meta.row_bytes <= LARGEST_BLOCK_BYTES:
        return min(meta.rows, unit * max(1, BLOCK_BYTES // (unit * meta.row_bytes)))
    most = max(1, LARGEST_BLOCK_BYTES // meta.row_bytes)
    parts = math.ceil(unit / most)
    whole = next((n for n in range(parts, min(unit, 2 * parts) + 1) if unit % n == 0), None)
    return most if whole is None else unit // whole
