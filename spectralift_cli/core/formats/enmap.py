"""EnMAP L2A products: `*-SPECTRAL_IMAGE.TIF` with its `*-METADATA.XML`, or the folder of both.

The image is an ordinary GeoTIFF (or COG, `*-SPECTRAL_IMAGE_COG.TIF`) that says nothing of its bands.
The metadata do, one `bandID` a band under `level_X/specific/bandCharacterisation`:
`wavelengthCenterOfBand` and `FWHMOfBand` in nm, and reflectance = stored * `GainOfBand` +
`OffsetOfBand` (0.0001 and 0 in L2A). Bands stay in file order, which is that of wavelength, VNIR and
SWIR bands mixed where the detectors overlap. A band without data has the mean -1000000 and the
standard deviation 0 under `product/bandStatistics`; it is marked bad.

The layout is that which EnPT writes and EnMAP-Box (`importenmapl2aalgorithm.py`) and SNAP's EnMAP
reader read. It was not checked against a product of DLR itself.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from xml.etree.ElementTree import Element  # a type only; xmltree does the parsing

import numpy as np

from spectralift_cli.core.cube import BoolArray, CubeMeta, FloatArray
from spectralift_cli.core.cubeio import CubeReader, SelectedReader
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats import OpenRequest
from spectralift_cli.core.formats.geotiff import open_tiff
from spectralift_cli.core.formats.spectral import fitting_nodata
from spectralift_cli.core.formats.xmltree import read_xml

_IMAGE = re.compile(r"(?P<stem>.+)-SPECTRAL_IMAGE(?:_COG)?\.tiff?", re.IGNORECASE)
_METADATA = re.compile(r"(?P<stem>.+)-METADATA(?:\.xml)+", re.IGNORECASE)  # some end in .XML.XML
_HEAD_BYTES = 2**16
_EMPTY_MEAN, _EMPTY_DEVIATION = -1e6, 0.0
_HINT = "fetch the product again, with its -METADATA.XML"


class EnmapReader(SelectedReader):
    """The image of a product with what the metadata say of its bands.

    Args:
        image: the open GeoTIFF; closed with the reader.
        meta: the image's metadata completed.
        metadata_path: the XML file.
        level: the processing level it names, for `info`.
    """

    def __init__(
        self, image: CubeReader, meta: CubeMeta, metadata_path: Path, level: str | None
    ) -> None:
        super().__init__(image)
        self.meta = meta
        self.layout = {"product": " ".join(filter(None, ("EnMAP", level))), **image.layout}
        self._metadata_path = metadata_path

    @property
    def files(self) -> tuple[Path, ...]:
        """The image, its sidecars and the metadata."""
        return (*super().files, self._metadata_path)


def is_enmap(path: Path) -> bool:
    """Tell whether a path is the image, the metadata or the folder of an EnMAP product."""
    try:
        for _, metadata in _members(path):
            with metadata.open("rb") as file:
                head = file.read(_HEAD_BYTES)
            if b"<level_X" in head or b"bandCharacterisation" in head:
                return True
    except OSError:
        return False
    return False


def open_enmap(path: Path, request: OpenRequest) -> CubeReader:
    """Open an EnMAP product; see `open_cube`.

    Args:
        path: its spectral image, its metadata or its folder.
        request: how to read it.

    Raises:
        DataError: a folder of several products, metadata that are damaged or of another number of
            bands than the image.
    """
    members = _members(path)
    if len(members) != 1:
        names = ", ".join(image.name for image, _ in members[:4])
        raise DataError(
            f"{path}: holds {len(members)} EnMAP images: {names}", "name the one to be read"
        )
    image_path, metadata_path = members[0]
    root = read_xml(metadata_path)
    image = open_tiff(image_path, request)
    try:
        meta = _complete(image.meta, root, metadata_path)
    except BaseException:
        image.close()
        raise
    level = (root.findtext("base/level") or "").strip()
    return EnmapReader(image, meta, metadata_path, level if level.isalnum() else None)


def _members(path: Path) -> list[tuple[Path, Path]]:
    """Return the (image, metadata) that a path names, or of all products in a folder."""
    if path.is_dir():
        wanted, folder = None, path
    else:
        found = _IMAGE.fullmatch(path.name) or _METADATA.fullmatch(path.name)
        if found is None:
            return []
        wanted, folder = found["stem"].lower(), path.parent
    images: dict[str, list[Path]] = {}
    metadata: dict[str, Path] = {}
    for member in sorted(folder.iterdir()):
        if found := _IMAGE.fullmatch(member.name):
            images.setdefault(found["stem"].lower(), []).append(member)
        elif found := _METADATA.fullmatch(member.name):
            metadata.setdefault(found["stem"].lower(), member)
    if _IMAGE.fullmatch(path.name) and wanted in images and not path.is_dir():
        images = {wanted: [path]}  # the one that was named, where a COG lies beside it
    return [
        (image, metadata[stem])
        for stem, found_images in images.items()
        for image in found_images
        if stem in metadata and wanted in (None, stem)
    ]


def _complete(meta: CubeMeta, root: Element, source: Path) -> CubeMeta:
    """Return the image's metadata with wavelengths, widths, scale, offset and bad bands."""
    table = next(root.iter("bandCharacterisation"), None)
    bands = [] if table is None else table.findall("bandID")
    if len(bands) != meta.bands:
        raise DataError(
            f"{source}: describes {len(bands)} bands, its image has {meta.bands}", _HINT
        )
    by_number = _by_number(bands, meta.bands, source)
    centres, widths, gains, offsets = (
        _column(by_number, name, source)
        for name in ("wavelengthCenterOfBand", "FWHMOfBand", "GainOfBand", "OffsetOfBand")
    )
    for name, values in (("wavelength", centres), ("width", widths), ("gain", gains)):
        if (values <= 0).any():
            band = int(np.argmax(values <= 0))
            raise DataError(
                f"{source}: the {name} of band {band + 1} is {values[band]:g}, not above 0", _HINT
            )
    nodata = meta.nodata
    if nodata is None:
        background = _float(root.findtext("specific/backgroundValue"))
        nodata = fitting_nodata(background, meta.dtype, source)
    return meta.replace(
        wavelengths_nm=centres,
        fwhm_nm=widths,
        bad_bands=_empty_bands(root, meta.bands, source),
        scale=gains,
        offset=offsets,
        nodata=nodata,
    )


def _by_number(bands: list[Element], count: int, source: Path) -> list[Element]:
    """Return elements in the order of their attribute `number`, which counts from 1 to `count`."""
    numbered = {band.get("number", "").strip(): band for band in bands}
    try:
        return [numbered[str(number)] for number in range(1, count + 1)]
    except KeyError as error:
        raise DataError(
            f"{source}: its bands are not numbered from 1 to {count}; {error} is missing", _HINT
        ) from error


def _column(bands: list[Element], name: str, source: Path) -> FloatArray:
    """Return one number of every band."""
    values = [_float(band.findtext(name)) for band in bands]
    for number, value in enumerate(values, start=1):
        if value is None:
            raise DataError(f"{source}: the {name} of band {number} is not a number", _HINT)
    return np.array(values, dtype=np.float64)


def _empty_bands(root: Element, count: int, source: Path) -> BoolArray | None:
    """Return which bands the statistics say hold no data; None without statistics."""
    table = root.find("product/bandStatistics")
    if table is None:
        return None
    bands = _by_number(table.findall("bandID"), count, source)
    return np.array(
        [
            _float(band.findtext("mean")) == _EMPTY_MEAN
            and _float(band.findtext("stdDeviation")) == _EMPTY_DEVIATION
            for band in bands
        ]
    )


def _float(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
