"""Quicklooks: a cube as a colour picture, stretched by percentiles or like another picture."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectralift_cli.core.config import QuicklookConfig
from spectralift_cli.core.cube import BoolArray, FloatArray, Progress, no_progress
from spectralift_cli.core.cubeio import CubeReader
from spectralift_cli.core.errors import DataError, OptionError, SpectraliftWarning
from spectralift_cli.core.pictures import rasters
from spectralift_cli.core.pictures.colour import Composite, choose_composite, encode_srgb
from spectralift_cli.core.pictures.reduce import factor_for, read_reduced


@dataclass(frozen=True, eq=False)
class Quicklook:
    """A picture of a cube.

    Args:
        rgba: (rows, cols, 4); what is a hole in the cube is transparent.
        composite: which bands make which colour.
        limits: (colours, 2) values in units that become black and white.
        factor: pixels of the cube a pixel of the picture is high and wide.
        text: what is drawn, for people.
        record: the same for `--json`.
    """

    rgba: NDArray[np.uint8]
    composite: Composite
    limits: FloatArray
    factor: int
    text: str
    record: dict[str, Any]


def quicklook(
    reader: CubeReader,
    config: QuicklookConfig | None = None,
    like: CubeReader | None = None,
    progress: Progress = no_progress,
) -> Quicklook:
    """Draw a cube in colour.

    Each colour is stretched between percentiles of its own, as is usual in remote sensing: that
    takes out the haze and the colour of the light, which most cubes contain. True colour is an amount
    of light, so it is then given the screen's gamma; bands are not.

    Args:
        reader: the cube.
        config: which colours, percentiles, size; None for the defaults.
        like: a cube whose mode and stretch (values in units) are taken, so that both pictures can be
            compared; its percentiles are those of `config`.
        progress: called with rows done and in all.

    Raises:
        DataError: bands the cube does not have, no valid pixel, or it cannot be drawn like the other.
    """
    config = config or QuicklookConfig()
    if like is None:
        composite = choose_composite(reader.meta, config)
    else:
        pattern = choose_composite(like.meta, config)
        composite = choose_composite(reader.meta, config, like=pattern)
        if pattern.weights.shape[1] != composite.weights.shape[1]:
            raise DataError(
                f"{reader.path} and {like.path} have no colours in common",
                "choose bands that both have: --rgb 650,550,450",
            )
    total = reader.meta.rows + (0 if like is None else like.meta.rows)
    factor = factor_for(reader.meta, config.max_size)
    image = read_reduced(reader, composite, factor, lambda done, _: progress(done, total))
    if like is None:
        limits = stretch_limits(image, composite, config, reader.path)
    else:
        other = read_reduced(
            like, pattern, factor_for(like.meta, config.max_size),
            lambda done, _: progress(reader.meta.rows + done, total),
        )  # fmt: skip
        limits = stretch_limits(other, pattern, config, like.path)
        if not np.isfinite(image).any():
            _no_pixels(reader.path, composite)
    holes = int((~np.isfinite(image).all(axis=2)).sum())
    record = {
        **composite.to_json(reader.meta),
        "limits": limits.tolist(), "reduced_by": factor, "rows": image.shape[0],
        "cols": image.shape[1], "transparent_pixels": holes,
    }  # fmt: skip
    shown = ", ".join(dict.fromkeys(f"{low:.5g} to {high:.5g}" for low, high in limits))
    text = f"{composite.describe(reader.meta)}; stretched from {shown}"
    if factor > 1:
        text += f"; reduced by {factor}"
    return Quicklook(render(image, composite, limits), composite, limits, factor, text, record)


def stretch_limits(
    image: FloatArray, composite: Composite, config: QuicklookConfig, source: object
) -> FloatArray:
    """Return the values that become black and white, (colours, 2).

    Args:
        image: (rows, cols, colours), NaN in holes.
        composite: for messages.
        config: percentiles of the valid pixels; where they coincide, the smallest and the largest
            value are taken.
        source: the file, for messages.

    Raises:
        DataError: there is no valid pixel.
    """
    valid = image[np.isfinite(image).all(axis=2)]  # (pixels, colours)
    if not valid.size:
        _no_pixels(source, composite)
    limits = []
    for values in [valid.ravel()] if config.one_stretch else valid.T:
        low, high = np.percentile(values, config.percentiles)
        if not low < high:
            low, high = values.min(), values.max()
        if not low < high:
            message = f"{source}: is constant where it is drawn, so it has no contrast to stretch"
            warnings.warn(message, SpectraliftWarning, stacklevel=2)
        limits.append((float(low), float(high)))
    return np.array(limits * (valid.shape[1] // len(limits)))


def _no_pixels(source: object, composite: Composite) -> None:
    bands = ", ".join(str(band + 1) for band in composite.bands[:8])
    raise DataError(
        f"{source}: no pixel is valid in the bands that are drawn ({bands})",
        "check the nodata value with spectralift info, or choose other bands",
    )


def render(image: FloatArray, composite: Composite, limits: FloatArray) -> NDArray[np.uint8]:
    """Return a picture of 8 bits: black at and below the lower limit, white at and above the upper.

    Args:
        image: (rows, cols, colours), NaN in holes.
        composite: true colour is given the screen's gamma.
        limits: see `stretch_limits`; of a colour whose limits coincide, equal values are mid-grey.

    Returns:
        (rows, cols, 4), alpha 0 in holes.
    """
    low, high = limits[:, 0], limits[:, 1]
    span = high - low
    valid: BoolArray = np.asarray(np.isfinite(image).all(axis=2))
    filled = np.where(valid[:, :, None], image, 0)
    level = (filled - low) / np.where(span > 0, span, 1)
    level = np.where(span > 0, level, 0.5 + np.sign(filled - low) / 2)
    level = np.clip(level, 0, 1)
    if composite.is_linear_light:
        level = encode_srgb(level)
    rgba = np.zeros((*valid.shape, 4), np.uint8)
    rgba[:, :, :3] = np.round(255 * level)  # one channel of grey goes into all three
    rgba[:, :, 3] = 255 * valid
    rgba[~valid] = 0
    return rgba


def write_quicklook(
    reader: CubeReader,
    output: Path,
    config: QuicklookConfig | None = None,
    *,
    like: CubeReader | None = None,
    world_file: bool = False,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> tuple[Quicklook, Sequence[Path]]:
    """Draw a cube into a PNG, or into a GeoTIFF of red, green, blue and alpha.

    Args:
        reader: the cube.
        output: ends in .png, .tif or .tiff.
        config: which colours, percentiles, size; None for the defaults.
        like: see `quicklook`.
        world_file: beside a PNG write the georeference: `.pgw` and `.png.aux.xml`, which holds the
            coordinate system. A GeoTIFF always has it.
        overwrite: replace an existing picture.
        progress: called with rows done and in all.

    Returns:
        The picture and its files, `output` first.

    Raises:
        OptionError: another ending, or a world file for a GeoTIFF.
        DataError: see `quicklook`; a world file of a cube without a georeference.
        OutputExistsError: it exists and `overwrite` is false.
    """
    ending = output.suffix.lower()
    if ending not in (".png", *rasters.TIFF_ENDINGS):
        raise OptionError(
            f"{output}: a picture is written as .png, or with its georeference as .tif",
            f"write it as {output.with_suffix('.png')}",
        )
    if world_file and ending != ".png":
        raise OptionError(
            "--world-file does not apply to a GeoTIFF, which holds its georeference itself",
            "leave it out, or write a .png",
        )
    if world_file and reader.meta.transform is None:
        raise DataError(
            f"{reader.path}: has no georeference to put into a world file",
            "leave --world-file out",
        )
    with rasters.PictureFile(output, world_file=world_file, overwrite=overwrite) as file:
        picture = quicklook(reader, config, like, progress)
        files = file.write(picture.rgba, reader.meta, picture.factor)
    return picture, files
