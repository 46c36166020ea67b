"""Whether an image lies on a map, as fusion needs it."""

from __future__ import annotations

from spectralift_cli.core.cubeio import CubeReader
from spectralift_cli.core.errors import DataError


def check_on_map(reader: CubeReader) -> None:
    """Refuse a swath: its rows and columns follow the sensor, so no ratio and no shift relates them
    to those of another image.

    Raises:
        DataError: with the command that orthorectifies it.
    """
    if reader.swath:
        raise DataError(
            f"{reader.path}: is not orthorectified: its rows and columns are the sensor's, not a "
            "map's, and cannot be laid over those of another image",
            "orthorectify it first (GDAL 3.4 or newer): gdalmdimtranslate -array "
            f"name=/reflectance,resample=yes {reader.path.name} ortho.tif",
        )
