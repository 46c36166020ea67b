"""Writing GeoTIFF and Cloud Optimized GeoTIFF: rows from top to bottom through rasterio.

GDAL reports some write errors of a full disk only to its log, when the file is closed. So the
commit walks the finished file's directories: every strip and tile must be there and lie inside it.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
import tifffile
from affine import Affine
from rasterio.enums import Resampling
from rasterio.windows import Window

from spectralift_cli.core.cube import AnyArray, CubeMeta
from spectralift_cli.core.cubeio import BLOCK_BYTES, CubeWriter
from spectralift_cli.core.errors import DataError, OptionError
from spectralift_cli.core.formats.gdalio import (
    LARGEST_BLOCK_BYTES,
    gdal_env,
    gdal_errors,
    local_path,
    open_quietly,
)
from spectralift_cli.core.formats.tiffpages import TiffDirectories
from spectralift_cli.core.formats.tifftags import needs_exact_nodata, usable_crs, write_fields
from spectralift_cli.core.outputs import Staging
from spectralift_cli.core.resources import default_memory_bytes

_STRIP_BYTES = 256 * 1024  # small enough to read a few rows, large enough to compress well
_TILE = 256
_MOST_BANDS = 65535
_COG_PREDICTOR = {"1": "NO", "2": "STANDARD", "3": "FLOATING_POINT"}
_NO_ROOM = "free some room or choose another folder"


class GeoTiffWriter(CubeWriter):
    """A GeoTIFF being written by whole strips or rows of tiles."""

    def __init__(
        self, path: Path, meta: CubeMeta, options: Mapping[str, str], overwrite: bool
    ) -> None:
        self._options = _checked(options, meta)
        self._as_cog = self._options["DRIVER"] == "COG"
        profile, block_rows = _profile(self._options, meta)
        super().__init__(path, meta, block_rows)
        stale = [path.with_name(path.name + ending) for ending in (".aux.xml", ".ovr", ".msk")]
        self._stage = Staging(path, stale=stale, overwrite=overwrite)
        self._dataset: Any = None
        self._plain = self._stage.path()
        # GDAL 3.10 does not end when it writes overviews of 64-bit integers with nodata
        self._nodata_after_overviews = (
            self._as_cog and meta.dtype.name in ("int64", "uint64") and meta.nodata is not None
        )
        try:
            if self._as_cog:
                self._plain = self._stage.folder / "plain.tif"
                self._check_room()
            self._dataset = self._create(profile)
        except BaseException:
            self.abort()
            raise

    def _check_room(self) -> None:
        """Refuse to begin a COG for which, with its forerunner, the disk has no room."""
        needed = self.meta.nbytes * 4 // 3  # the image and its overviews
        if self._options["COMPRESS"] == "NONE":
            needed *= 2
        free = shutil.disk_usage(self._stage.folder).free
        if free < needed:
            raise DataError(
                f"{self.path}: a Cloud Optimized GeoTIFF is made from a plain one and needs "
                f"{needed / 1e6:,.0f} MB here, {free / 1e6:,.0f} MB are free",
                f"{_NO_ROOM}, or write a plain GeoTIFF (--co DRIVER=GTIFF)",
            )

    def _create(self, profile: dict[str, Any]) -> Any:
        meta = self.meta
        transform = None if meta.transform is None else Affine(*meta.transform)
        nodata = meta.nodata
        if needs_exact_nodata(meta):
            nodata = 0  # a place for the tag; _commit puts the right value there
        elif self._nodata_after_overviews:
            nodata = None
        with self._gdal("cannot be created"):
            dataset = open_quietly(
                local_path(self._plain),
                "w",
                driver="GTiff",
                height=meta.rows,
                width=meta.cols,
                count=meta.bands,
                dtype=meta.dtype.name,
                nodata=nodata,
                crs=usable_crs(meta.crs, self.path),
                transform=transform,
                **profile,
            )
            try:
                write_fields(dataset, meta)
            except BaseException:
                dataset.close()
                raise
        return dataset

    @contextlib.contextmanager
    def _gdal(self, failure: str, hint: str = _NO_ROOM) -> Any:
        with gdal_errors(self.path, failure, hint), gdal_env(sidecars=False):
            yield

    def _write(self, start: int, block: AnyArray) -> None:
        planes = np.ascontiguousarray(block.transpose(2, 0, 1))  # (bands, n, cols)
        with self._gdal("cannot be written"):
            self._dataset.write(planes, window=Window(0, start, self.meta.cols, len(block)))

    def _close(self) -> None:
        dataset, self._dataset = self._dataset, None
        if dataset is not None:
            with self._gdal("cannot be written"):
                dataset.close()

    def _commit(self) -> tuple[Path, ...]:
        try:
            self._close()
            if needs_exact_nodata(self.meta):
                self._write_exact_nodata()
            self._check_whole(self._plain)
            if self._as_cog:
                self._add_overviews()
                self._check_whole(self._plain)
                self._copy_to_cog()
                self._check_whole(self._stage.path())
        except BaseException:
            self.abort()
            raise
        return self._stage.commit()

    def _write_exact_nodata(self) -> None:
        """Replace the text of the nodata tag, which rasterio would round to float64."""
        with tifffile.TiffFile(self._plain, mode="r+") as tiff:
            tiff.pages.first.tags["GDAL_NODATA"].overwrite(str(self.meta.nodata))

    def _add_overviews(self) -> None:
        """Give the plain file the overviews of the Cloud Optimized one.

        From values interleaved by pixel, or left to the COG driver, they would cost a reading of
        the whole file for each band.
        """
        side = int(self._options["BLOCKSIZE"])
        levels = max(0, math.ceil(math.log2(max(self.meta.rows, self.meta.cols) / side)))
        with self._gdal("cannot be given overviews"):
            if levels:
                # the mean leaves nodata out, where interpolation would spread it
                mean = not self._nodata_after_overviews
                method = Resampling.average if mean else Resampling.nearest
                with open_quietly(local_path(self._plain), "r+", driver="GTiff") as dataset:
                    dataset.build_overviews([2 ** (k + 1) for k in range(levels)], method)
            if self._nodata_after_overviews:
                with open_quietly(local_path(self._plain), "r+", driver="GTiff") as dataset:
                    dataset.nodata = self.meta.nodata

    def _copy_to_cog(self) -> None:
        """Make the Cloud Optimized file of the plain one and its overviews."""
        options, source = self._options, self._plain
        side = int(options["BLOCKSIZE"])
        with self._gdal("cannot be made Cloud Optimized"):
            if options["INTERLEAVE"] == "PIXEL" and _cog_takes_its_source_order(options):
                source = self._stage.folder / "pixel.tif"
                tiles = {"TILED": "YES", "BLOCKXSIZE": side, "BLOCKYSIZE": side}
                rasterio.shutil.copy(
                    local_path(self._plain),
                    local_path(source),
                    driver="GTiff",
                    INTERLEAVE="PIXEL",
                    COPY_SRC_OVERVIEWS="YES",
                    BIGTIFF="YES",
                    **tiles,
                )
                self._plain.unlink()
            rasterio.shutil.copy(
                local_path(source),
                local_path(self._stage.path()),
                driver="COG",
                COMPRESS=options["COMPRESS"],
                PREDICTOR=_COG_PREDICTOR[options["PREDICTOR"]],
                BLOCKSIZE=side,
                BIGTIFF=options["BIGTIFF"],
                OVERVIEWS="FORCE_USE_EXISTING",
                NUM_THREADS="1",
                **({"INTERLEAVE": options["INTERLEAVE"]} if _cog_has_interleave() else {}),
            )
        source.unlink()

    def _check_whole(self, path: Path) -> None:
        try:
            with TiffDirectories(path) as tiff:
                for page in tiff.pages:
                    tiff.check(page, complete=True)
        except DataError as error:
            reason = error.message.removeprefix(f"{path}: ")
            raise DataError(
                f"{self.path}: cannot be written; the file was cut short ({reason})", _NO_ROOM
            ) from error

    def abort(self) -> None:
        """Drop what was written."""
        with contextlib.suppress(DataError):
            self._close()
        self._stage.abort()


def create_geotiff(
    path: Path, meta: CubeMeta, options: Mapping[str, str], overwrite: bool
) -> CubeWriter:
    """Start a GeoTIFF or Cloud Optimized GeoTIFF; see `create_cube`.

    Raises:
        DataError: more than 65,535 bands, or no room.
        OptionError: creation options that contradict each other or the data type.
    """
    return GeoTiffWriter(path, meta, options, overwrite)


def _checked(options: Mapping[str, str], meta: CubeMeta) -> dict[str, str]:
    """Return the creation options with their defaults, after checking that they go together."""
    chosen = {
        "DRIVER": "GTIFF", "COMPRESS": "NONE", "PREDICTOR": "1", "INTERLEAVE": "PIXEL",
        "TILED": "NO", "BIGTIFF": "IF_SAFER", **options,
    }  # fmt: skip
    cog = chosen["DRIVER"] == "COG"
    if meta.bands > _MOST_BANDS:
        raise DataError(
            f"a TIFF holds at most {_MOST_BANDS:,} bands, the cube has {meta.bands:,}",
            "choose another format or fewer bands",
        )
    if chosen["PREDICTOR"] != "1" and chosen["COMPRESS"] in ("NONE", "PACKBITS"):
        raise OptionError(
            f"PREDICTOR={chosen['PREDICTOR']} does nothing for COMPRESS={chosen['COMPRESS']}",
            "choose COMPRESS=DEFLATE, LZW or ZSTD, or leave PREDICTOR out",
        )
    if chosen["PREDICTOR"] == "3" and meta.dtype.kind != "f":
        raise OptionError(
            f"PREDICTOR=3 is for floating point, the cube holds {meta.dtype.name}",
            "choose PREDICTOR=2",
        )
    if cog and options.get("TILED") == "NO":
        raise OptionError("a Cloud Optimized GeoTIFF is always tiled", "leave TILED=NO out")
    if cog and chosen["COMPRESS"] == "PACKBITS":
        raise OptionError(
            "a Cloud Optimized GeoTIFF cannot be COMPRESS=PACKBITS", "choose LZW, DEFLATE or ZSTD"
        )
    ignored = not _cog_has_interleave() and not _cog_takes_its_source_order(chosen)
    if cog and chosen["INTERLEAVE"] == "BAND" and ignored:
        raise OptionError(
            f"GDAL {rasterio.__gdal_version__} ignores INTERLEAVE=BAND for a compressed COG",
            "it takes GDAL 3.11; leave INTERLEAVE or COMPRESS out",
        )
    if cog and needs_exact_nodata(meta):
        raise DataError(
            f"a Cloud Optimized GeoTIFF cannot hold the nodata value {meta.nodata} exactly",
            "choose --co DRIVER=GTIFF or another nodata value",
        )
    tiled = cog or chosen["TILED"] == "YES"
    if "BLOCKSIZE" in options and not tiled:
        raise OptionError("BLOCKSIZE is the side of a tile", "add TILED=YES, or leave it out")
    chosen["TILED"] = "YES" if tiled else "NO"
    chosen["BLOCKSIZE"] = str(_tile_side(options.get("BLOCKSIZE"), meta, cog=cog))
    return chosen


def _cog_has_interleave() -> bool:
    return tuple(int(n) for n in rasterio.__gdal_version__.split(".")[:2]) >= (3, 11)


def _cog_takes_its_source_order(options: Mapping[str, str]) -> bool:
    """Tell whether values in a COG are interleaved as in its source, whatever the option says.

    Before GDAL 3.11 the COG driver has no INTERLEAVE: uncompressed files inherit it, compressed
    ones are interleaved by pixel.
    """
    return not _cog_has_interleave() and options["COMPRESS"] == "NONE"


def _tile_side(asked: str | None, meta: CubeMeta, *, cog: bool) -> int:
    """Return the side of a tile: as asked, or 256, and less where a row of tiles is large."""
    if asked is None:
        side = _TILE
        # a COG is made from strips and needs no row of its tiles in memory
        while side > 16 and side * meta.row_bytes > LARGEST_BLOCK_BYTES and not cog:
            side //= 2
        return side
    side, least = int(asked), 128 if cog else 16  # GDAL's least for a COG, TIFF's for tiles
    if side % 16 or not least <= side <= 4096:
        raise OptionError(
            f"BLOCKSIZE={asked} is not a multiple of 16 from {least} to 4096", "choose 256 or 512"
        )
    # one tile of the COG and its copy; a row of tiles held, joined and reordered
    pixel_bytes = meta.row_bytes // meta.cols
    needed = 2 * side * side * pixel_bytes if cog else 3 * side * meta.row_bytes
    limit = default_memory_bytes()
    if needed > limit:
        raise DataError(
            f"writing tiles {side} high takes {needed / 1e6:,.0f} MB of memory, "
            f"{limit / 1e6:,.0f} MB may be used",
            "choose a smaller BLOCKSIZE, or strips",
        )
    return side


def _profile(options: Mapping[str, str], meta: CubeMeta) -> tuple[dict[str, Any], int]:
    """Return GDAL's creation options of the file that takes the rows, and how many at once."""
    # the plain file of which `_copy_to_cog` makes a COG: strips of one band each
    forerunner = options["DRIVER"] == "COG"
    interleave = "BAND" if forerunner else options["INTERLEAVE"]
    profile: dict[str, Any] = {
        "INTERLEAVE": interleave,
        "COMPRESS": "NONE" if forerunner else options["COMPRESS"],
        # GDAL judges by the image alone, to which overviews are added
        "BIGTIFF": "YES" if forerunner else options["BIGTIFF"],
        "PHOTOMETRIC": "MINISBLACK",  # three bands of bytes need not be red, green and blue
        # every block is written when its turn comes and none is filled in on closing: a run that
        # is cut off would otherwise write the rest of the file first
        "SPARSE_OK": "TRUE",
        "WRITE_EMPTY_TILES_SYNCHRONOUSLY": "TRUE",
    }
    if options["PREDICTOR"] != "1" and not forerunner:
        profile["PREDICTOR"] = options["PREDICTOR"]
    if options["TILED"] == "YES" and not forerunner:
        unit = int(options["BLOCKSIZE"])
        profile |= {"TILED": "YES", "BLOCKXSIZE": unit, "BLOCKYSIZE": unit}
    else:
        strip_row = meta.row_bytes // (meta.bands if interleave == "BAND" else 1)
        unit = max(1, min(meta.rows, _STRIP_BYTES // strip_row, BLOCK_BYTES // meta.row_bytes))
        profile["BLOCKYSIZE"] = unit
    return profile, unit * max(1, BLOCK_BYTES // (unit * meta.row_bytes))
