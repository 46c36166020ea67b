"""Pictures as files that know where they are: PNG with a world file, GeoTIFF with alpha."""

from __future__ import annotations

import io
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from xml.sax.saxutils import escape

import matplotlib.image
import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.transform import Affine

from spectralift_cli.core.cube import CubeMeta
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats.gdalio import gdal_env, gdal_errors, local_path, open_quietly
from spectralift_cli.core.formats.tifftags import usable_crs
from spectralift_cli.core.outputs import Staging

TIFF_ENDINGS = (".tif", ".tiff")


class PictureFile:
    """The file, or the files, that a picture will be; nothing is left where it is not written.

    Args:
        path: ends in .png, .tif or .tiff.
        world_file: beside a PNG put `.pgw` and `.png.aux.xml`.
        overwrite: replace existing files.

    Raises:
        OutputExistsError: one exists and `overwrite` is false.
        DataError: the folder is missing or not writable.
    """

    def __init__(self, path: Path, *, world_file: bool = False, overwrite: bool = False) -> None:
        self.path = path
        world, aux = path.with_suffix(".pgw"), path.with_name(path.name + ".aux.xml")
        self._sidecars = (world, aux) if world_file else ()
        # an older picture's georeference would be taken for this one's
        stale = () if world_file else (world, aux) if path.suffix.lower() == ".png" else (aux,)
        self._stage = Staging(path, others=self._sidecars, stale=stale, overwrite=overwrite)

    def write(self, rgba: NDArray[np.uint8], meta: CubeMeta, factor: int = 1) -> tuple[Path, ...]:
        """Write the picture and move it into place; return its files, the picture first.

        Args:
            rgba: (rows, cols, 4).
            meta: of the cube it was drawn from.
            factor: pixels of the cube a pixel of the picture is high and wide.
        """
        transform = scaled_transform(meta, factor)
        try:
            if self.path.suffix.lower() in TIFF_ENDINGS:
                self._write_geotiff(rgba, meta, transform)
            else:
                self._stage.path().write_bytes(png_of(rgba))
                if self._sidecars and transform is not None:
                    world, aux = self._sidecars
                    self._stage.path(world).write_text(world_file_text(transform))
                    self._stage.path(aux).write_text(aux_text(transform, meta.crs))
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be written ({error.strerror or error})",
                "free some room or choose another folder",
            ) from error
        return self._stage.commit()

    def _write_geotiff(
        self, rgba: NDArray[np.uint8], meta: CubeMeta, transform: Affine | None
    ) -> None:
        rows, cols, _ = rgba.shape
        hint = "free some room or choose another folder"
        with gdal_errors(self.path, "cannot be written", hint), gdal_env(sidecars=False):
            dataset = open_quietly(
                local_path(self._stage.path()), "w", driver="GTiff", height=rows, width=cols,
                count=4, dtype="uint8", crs=usable_crs(meta.crs, self.path), transform=transform,
                PHOTOMETRIC="RGB", ALPHA="UNASSOCIATED", COMPRESS="DEFLATE", PREDICTOR=2,
            )  # fmt: skip
            with dataset:
                dataset.colorinterp = (
                    ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha
                )  # fmt: skip
                dataset.write(np.ascontiguousarray(rgba.transpose(2, 0, 1)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stage.abort()


def png_of(rgba: NDArray[np.uint8]) -> bytes:
    """Return an image (rows, cols, 4) as a PNG file, without date and version."""
    out = io.BytesIO()
    nothing: Any = {"Software": None}  # Any: the stubs do not know that None leaves a field out
    matplotlib.image.imsave(out, rgba, format="png", metadata=nothing)
    return out.getvalue()


def scaled_transform(meta: CubeMeta, factor: int) -> Affine | None:
    """Return the transform of pixels that are `factor` pixels of the cube high and wide."""
    if meta.transform is None:
        return None
    a, b, c, d, e, f = meta.transform
    return Affine(a * factor, b * factor, c, d * factor, e * factor, f)


def world_file_text(transform: Affine) -> str:
    """Return a world file: the pixel's size and rotation, and the centre of the first pixel."""
    a, b, c, d, e, f = transform[:6]
    numbers = (a, d, b, e, c + (a + b) / 2, f + (d + e) / 2)
    return "".join(f"{number!r}\n" for number in numbers)


def aux_text(transform: Affine, crs: str | None) -> str:
    """Return GDAL's `.aux.xml`, the place of a PNG's coordinate system."""
    numbers = ", ".join(f"{number!r}" for number in transform.to_gdal())
    srs = "" if crs is None else f"  <SRS>{escape(crs)}</SRS>\n"
    return f"<PAMDataset>\n{srs}  <GeoTransform>{numbers}</GeoTransform>\n</PAMDataset>\n"
