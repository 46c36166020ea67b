"""Small files in the layouts of the products, written without the package's own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import rasterio
from rasterio.transform import Affine

GRID = Affine(30.0, 0.0, 380000.0, 0.0, -30.0, 5820000.0)
ENMAP_CENTRES = (418.5, 640.25, 902.5, 911.0, 925.75, 1342.5, 2200.0)  # VNIR and SWIR mixed at 911
ENMAP_NAME = "ENMAP01-____L2A-DT0000001867_20220724T104526Z_008_V010302_20230628T165614Z"


def enmap_xml(
    centres: tuple[float, ...] = ENMAP_CENTRES, *, empty: tuple[int, ...] = (), prolog: str = ""
) -> str:
    """METADATA.XML; `empty` counts from 1. Bands are listed backwards: `number` orders them."""
    numbered = list(enumerate(centres, start=1))[::-1]
    bands = "".join(
        f'<bandID number="{i}"><wavelengthCenterOfBand>{nm}</wavelengthCenterOfBand>'
        f"<FWHMOfBand>{6 + i / 8}</FWHMOfBand><GainOfBand>0.0001</GainOfBand>"
        "<OffsetOfBand>0</OffsetOfBand></bandID>"
        for i, nm in numbered
    )
    statistics = "".join(
        f'<bandID number="{i}"><mean>{-1000000 if i in empty else 1500.5}</mean>'
        f"<stdDeviation>{0 if i in empty else 200.25}</stdDeviation></bandID>"
        for i, _ in numbered
    )
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>{prolog}'
        '<level_X xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">'
        "<base><level>L2A</level></base>"
        "<specific><backgroundValue>-32768</backgroundValue>"
        f"<bandCharacterisation>{bands}</bandCharacterisation>"
        '<deadPixelMap><bandID number="1">3</bandID></deadPixelMap></specific>'
        f"<product><bandStatistics>{statistics}</bandStatistics></product></level_X>"
    )


def write_geotiff(path: Path, values: np.ndarray, **profile: Any) -> Path:
    """A GeoTIFF of (rows, cols, bands) values in UTM 33N."""
    rows, cols, bands = values.shape
    profile = {"crs": "EPSG:32633", "transform": GRID, **profile}
    with rasterio.open(
        path, "w", driver="GTiff", height=rows, width=cols, count=bands, dtype=values.dtype.name,
        **profile,
    ) as file:  # fmt: skip
        file.write(values.transpose(2, 0, 1))
    return path


def write_enmap(folder: Path, *, xml: str | None = None, nodata: int | None = -32768) -> Path:
    """An EnMAP L2A product; returns its spectral image. Band 6 is empty."""
    folder.mkdir(exist_ok=True)
    values = np.arange(9 * 8 * 7, dtype=np.int16).reshape(9, 8, 7) * 7 - 40
    values[:, :, 5] = -32768
    values[0, 0] = -32768
    image = write_geotiff(folder / f"{ENMAP_NAME}-SPECTRAL_IMAGE.TIF", values, nodata=nodata)
    # a quality layer lies beside it, as in a product
    write_geotiff(folder / f"{ENMAP_NAME}-QL_QUALITY_CLOUD.TIF", values[:, :, :1].astype(np.uint8))
    text = enmap_xml(empty=(6,)) if xml is None else xml
    (folder / f"{ENMAP_NAME}-METADATA.XML").write_text(text)
    return image


PRISMA_VNIR = np.array([0.0, 972.5, 951.25, 700.5, 402.5], np.float32)
PRISMA_SWIR = np.array([2496.5, 1380.25, 960.5, 943.0, 0.0], np.float32)


def write_prisma(path: Path, *, rows: int = 6, cols: int = 4, **attributes: Any) -> Path:
    """A PRISMA L2D file; an attribute given as None is left out."""
    random = np.random.default_rng(3)
    known: dict[str, Any] = {
        "Processing_Level": np.bytes_("2D"),
        "Epsg_Code": np.uint32(32633),
        "L2ScaleVnirMin": np.float32(0.0), "L2ScaleVnirMax": np.float32(0.75),
        "L2ScaleSwirMin": np.float32(0.125), "L2ScaleSwirMax": np.float32(0.875),
        "List_Cw_Vnir": PRISMA_VNIR, "List_Cw_Swir": PRISMA_SWIR,
        "List_Fwhm_Vnir": np.float32([0, 13, 12.5, 10, 9]),
        "List_Fwhm_Swir": np.float32([8, 11, 14, 14.5, 0]),
        "List_Cw_Vnir_Flags": np.uint8([0, 1, 1, 1, 1]),
        "List_Cw_Swir_Flags": np.uint8([1, 0, 1, 1, 0]),
    }  # fmt: skip
    # the centres of the corner pixels
    west, north = GRID.c + 15, GRID.f - 15
    east, south = west + 30 * (cols - 1), north - 30 * (rows - 1)
    for corner, x, y in (
        ("UL", west, north), ("UR", east, north), ("LL", west, south), ("LR", east, south),
    ):  # fmt: skip
        known[f"Product_{corner}corner_easting"] = np.float64(x)
        known[f"Product_{corner}corner_northing"] = np.float64(y)
    known |= attributes
    with h5py.File(path, "w") as file:
        for name, value in known.items():
            if value is not None:
                file.attrs[name] = value
        group = file.create_group("HDFEOS/SWATHS/PRS_L2D_HCO/Data Fields")
        for name in ("VNIR", "SWIR"):
            cube = random.integers(1, 65536, (rows, 5, cols)).astype(np.uint16)
            cube[0, :, 0] = 0
            group.create_dataset(f"{name}_Cube", data=cube, chunks=(2, 5, cols), compression=4)
            group.create_dataset(f"{name}_PIXEL_L2_ERR_MATRIX", data=np.zeros_like(cube, np.uint8))
        pan = file.create_group("HDFEOS/SWATHS/PRS_L2D_PCO/Data Fields")
        pan.create_dataset("Cube", data=np.ones((rows * 6, cols * 6), np.uint16))
    return path


EMIT_CENTRES = np.array([381.0, 388.5, 1380.25, 2493.0], np.float32)


def write_emit(path: Path, *, centres: np.ndarray = EMIT_CENTRES) -> Path:
    """An EMIT L2A granule: 5 downtrack, 3 crosstrack, 4 bands; its map has 7 x 6 pixels."""
    values = np.random.default_rng(4).random((5, 3, 4), np.float32)
    values[1, 1] = -9999
    with h5py.File(path, "w") as file:
        file.attrs["spatial_ref"] = 'GEOGCS["WGS 84"]'
        file.attrs["geotransform"] = [-62.5, 5.4e-4, 0.0, -39.3, 0.0, -5.4e-4]
        cube = file.create_dataset("reflectance", data=values)
        cube.attrs["_FillValue"] = np.float32([-9999])
        file["sensor_band_parameters/wavelengths"] = centres
        file["sensor_band_parameters/fwhm"] = np.float32([8.5, 8.5, 8.75, 8.75])
        file["sensor_band_parameters/good_wavelengths"] = np.float32([1, 1, 0, 1])
        for name in ("lat", "lon", "elev"):
            file[f"location/{name}"] = np.zeros((5, 3))
        for name in ("glt_x", "glt_y"):
            file[f"location/{name}"] = np.ones((7, 6), np.int32)
    return path
