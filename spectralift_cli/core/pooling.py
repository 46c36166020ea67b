"""The pixels of several LR-HSIs, or some of one LR-HSI's, as one training set.

The images are read by rows, twice: which bands have values in all of them, then the pixels. More
than `TrainConfig.max_pixels` are never held, see `Drawing`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from spectralift_cli.core.cube import BoolArray, FloatArray, Progress, no_progress
from spectralift_cli.core.cubeio import CubeReader, row_blocks
from spectralift_cli.core.devices import one_thread_each
from spectralift_cli.core.drawing import Drawing
from spectralift_cli.core.errors import DataError, SpectraliftWarning
from spectralift_cli.core.holdout import GUARD, Places
from spectralift_cli.core.levels import check_alike, check_levels, levels_of
from spectralift_cli.core.operators.scaling import Scaling
from spectralift_cli.core.placement import Placement
from spectralift_cli.core.resources import available_memory_bytes
from spectralift_cli.core.sensors.response import over_used_bands
from spectralift_cli.core.source import Source

FloatPixels = NDArray[np.float32]

_BLOCK_PIXELS = 2**16
# products of one sensor give their bands' centres to a fraction of a nanometre
_APART_NM = 1.0
# a shift of 1 nm moves a twentieth of a response 20 nm wide from one of its sides to the other
_OTHER_RESPONSE = 0.05
_OTHER_SCALING = 0.01  # of the range
_COPIES = 6  # of the values: drawn, and held out, fitted and left over in preset auto's fits


@dataclass(frozen=True, eq=False)
class Pool:
    """The pixels a spectral inverter is fitted to, of one image or several.

    Args:
        lr_msi: (N, M) float32, scaled.
        lr_hsi: (N, used bands) float32, scaled.
        used_bands: (B,) bands that no image flags as bad and every image has values in.
        scaling: from units, one for all images.
        weights: (M, used bands) the first image's response over the used bands.
        places: of the pixels.
        pixels: of all images, those with holes too.
        valid: of these, without a hole in a used band; N where all are taken.
    """

    lr_msi: FloatPixels
    lr_hsi: FloatPixels
    used_bands: BoolArray
    scaling: Scaling
    weights: NDArray[np.float64]
    places: Places
    pixels: int
    valid: int

    def levels(
        self, image: int | None = None, overlap: Placement | None = None
    ) -> FloatArray | None:
        """Return the (M, 5) percentiles of the LR-MSI in units, or None where it has no pixel.

        Args:
            image: of one image alone; None for all.
            overlap: on its HR-MSI, to look at what both show alone; None for all.
        """
        chosen = np.ones(len(self.lr_msi), bool)
        if image is not None:
            chosen = self.places.image == image
        if overlap is not None:
            rows, cols = overlap.overlap_lr()
            row, col = self.places.row, self.places.col
            chosen &= (row >= rows.start) & (row < rows.stop)
            chosen &= (col >= cols.start) & (col < cols.stop)
        return levels_of(self.scaling.undo(self.lr_msi[chosen]))


def load_pool(
    sources: Sequence[Source],
    *,
    max_pixels: int | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Pool:
    """Read LR-HSIs of the same sensors and make the pairs (LR-MSI, LR-HSI) of their pixels.

    LR-MSI = LR-HSI @ SRF.T over the used bands, with the first image's SRF.

    Args:
        sources: at least one.
        max_pixels: pixels at most that are taken, drawn evenly over all valid ones; None for all.
        seed: of the drawing.
        progress: called as progress(rows read, rows to read), every image twice.

    Raises:
        DataError: the images have other bands, other responses or other units; too few pixels are
            valid; or what is to be held does not fit into memory.
    """
    first = sources[0]
    for other in sources:
        _check_bands(first, other)
        _check_scaled(first, other)
        _warn_of_other_scalings(first, other)
    bands = first.lr_hsi.meta.bands
    bad = np.zeros(bands, bool)
    for source in sources:
        flagged = source.lr_hsi.meta.bad_bands
        bad |= np.zeros(bands, bool) if flagged is None else flagged
    _check_memory(sources, max_pixels, int((~bad).sum()))
    read = _Reading(sources, progress)
    finite = np.array(
        [_finite_of_each_band(source.lr_hsi, read) for source in sources]
    )  # (images, B)
    used = ~bad & (finite > 0).all(axis=0)
    if not used.any():
        raise DataError(_no_band(sources, bad, finite), "leave the image with the gap out")
    for other in sources[1:]:
        _check_response(first, other, used)
    valid, (image, index, values) = _draw(sources, used, max_pixels, seed, read)
    if len(values) < 2:
        raise DataError(
            f"{valid} LR pixels of {_named(sources)} have values in all {int(used.sum())} used "
            "bands, training needs at least 2",
            "check the nodata values, and flag bands with many holes as bad (convert --bands)",
        )
    weights = over_used_bands(first.srf, used)
    scaling = _scaling(sources, values)
    lr_msi = np.empty((len(values), len(weights)), np.float32)
    # one thread: a product that is split over threads may sum in another order
    with one_thread_each():
        for part in row_blocks(len(values), _BLOCK_PIXELS):
            values[part] = scaling.apply(values[part])
            seen = torch.from_numpy(values[part]).double() @ torch.from_numpy(weights.T.copy())
            lr_msi[part] = seen.numpy()
    shapes = [(source.lr_hsi.meta.rows, source.lr_hsi.meta.cols) for source in sources]
    widths = np.array([cols for _, cols in shapes])
    row, col = np.divmod(index, widths[image])
    radii = [source.psf_radius_lr_px for source in sources]
    guards = [GUARD if radius is None else radius for radius in radii]
    places = Places(shapes, guards, image, row, col)
    total = sum(rows * cols for rows, cols in shapes)
    return Pool(lr_msi, values, used, scaling, weights, places, total, valid)


def check_pool(pool: Pool, sources: Sequence[Source]) -> None:
    """Refuse LR-HSIs in other units than the first, and HR-MSIs in other units than their LR-HSI.

    Raises:
        DataError: their values are 30 times or more away from each other.
    """
    names, reference = sources[0].srf.band_names, pool.levels(0)
    for number, source in enumerate(sources):
        levels = pool.levels(number)
        if number:
            check_alike(
                reference, levels, names, (sources[0].lr_hsi.path, source.lr_hsi.path),
                source.lr_hsi.meta.scale,
            )  # fmt: skip
        sharp = source.sharp
        if sharp is not None:
            check_levels(
                pool.levels(number, sharp.placement),
                sharp.levels,
                names,
                sharp.source,
                sharp.scale,
                source.radiometry,
            )


class _Reading:
    """Tells how far the reading of all images is, each of which is read twice."""

    def __init__(self, sources: Sequence[Source], progress: Progress) -> None:
        self._progress = progress
        self._rows, self._total = 0, 2 * sum(source.lr_hsi.meta.rows for source in sources)

    def done(self, rows: int) -> None:
        """Add rows that have been read."""
        self._rows += rows
        self._progress(self._rows, self._total)


def _check_bands(first: Source, other: Source) -> None:
    one, two = first.lr_hsi, other.lr_hsi
    same = "train on scenes of the same two sensors, or bring their bands into line with convert"
    if two.meta.bands != one.meta.bands:
        raise DataError(
            f"{two.path}: has {two.meta.bands} bands, {one.path} has {one.meta.bands}", same
        )
    for source in (first, other):
        if source.srf.num_hsi_bands != source.lr_hsi.meta.bands:
            raise DataError(
                f"{source.lr_hsi.path}: has {source.lr_hsi.meta.bands} bands but the SRF has weights "
                f"for {source.srf.num_hsi_bands}",
                "fold the SRF onto this cube: spectralift srf build",
            )
    if other.srf.num_msi_bands != first.srf.num_msi_bands:
        raise DataError(
            f"{two.path}: its MSI has {other.srf.num_msi_bands} bands, that of {one.path} has "
            f"{first.srf.num_msi_bands}",
            same,
        )
    if one.meta.wavelengths_nm is None or two.meta.wavelengths_nm is None:
        return
    apart = np.abs(two.meta.wavelengths_nm - one.meta.wavelengths_nm)
    worst = int(apart.argmax())
    if apart[worst] > _APART_NM:
        raise DataError(
            f"{two.path}: its band {worst + 1} lies at {two.meta.wavelengths_nm[worst]:.2f} nm, "
            f"that of {one.path} at {one.meta.wavelengths_nm[worst]:.2f} nm, "
            f"more than {_APART_NM:g} nm apart",
            same,
        )


def _check_scaled(first: Source, other: Source) -> None:
    if first.scaled != other.scaled:
        scaled, raw = (first, other) if first.scaled else (other, first)
        raise DataError(
            f"{scaled.lr_hsi.path}: was scaled to 0..1 when its scene was made, {raw.lr_hsi.path} "
            "was not",
            "train on scenes that were made alike",
        )


def _warn_of_other_scalings(first: Source, other: Source) -> None:
    one, two = first.scaled_from, other.scaled_from
    if one is None or two is None:
        return
    if max(abs(a - b) for a, b in zip(one, two, strict=True)) > _OTHER_SCALING * (one[1] - one[0]):
        warnings.warn(
            f"{other.lr_hsi.path}: was scaled from {two[0]:.4g}..{two[1]:.4g} to 0..1 when its scene "
            f"was made, {first.lr_hsi.path} from {one[0]:.4g}..{one[1]:.4g}: the same ground has other "
            "values in each",
            SpectraliftWarning,
            stacklevel=3,
        )


def _check_response(first: Source, other: Source, used: BoolArray) -> None:
    """Refuse a response that differs; by half of the sum of absolute differences of its weights."""
    one, two = (source.srf.weights[:, used] for source in (first, other))
    sums = [np.where(x.sum(axis=1) == 0, 1, x.sum(axis=1))[:, None] for x in (one, two)]
    apart = np.abs(one / sums[0] - two / sums[1]).sum(axis=1) / 2
    worst = int(apart.argmax())
    if apart[worst] > _OTHER_RESPONSE:
        raise DataError(
            f"{other.lr_hsi.path}: the response of its MSI band {worst + 1} "
            f"({other.srf.band_names[worst]}) differs by {apart[worst]:.1%} from that of "
            f"{first.lr_hsi.path} ({first.srf.band_names[worst]}), at most "
            f"{_OTHER_RESPONSE:.0%} are allowed",
            "train on scenes of the same two sensors, their MSI bands in the same order",
        )


def _finite_of_each_band(reader: CubeReader, read: _Reading) -> NDArray[np.int64]:
    """Return (B,) how many pixels of each band have a value."""
    meta = reader.meta
    if meta.dtype.kind != "f" and meta.nodata is None:
        read.done(meta.rows)
        return np.full(meta.bands, meta.rows * meta.cols)
    finite = np.zeros(meta.bands, np.int64)
    for rows in row_blocks(meta.rows, reader.block_rows):
        finite += np.isfinite(reader.read_units(rows)).sum(axis=(0, 1))
        read.done(rows.stop - rows.start)
    return finite


def _no_band(sources: Sequence[Source], bad: BoolArray, finite: NDArray[np.int64]) -> str:
    worst = int((finite[:, ~bad] > 0).sum(axis=1).argmin()) if (~bad).any() else 0
    return (
        f"none of the {bad.size} bands has values in all of {_named(sources)}: {int(bad.sum())} are "
        f"flagged as bad, {sources[worst].lr_hsi.path} has values in "
        f"{int((finite[worst] > 0).sum())}"
    )


def _check_memory(sources: Sequence[Source], max_pixels: int | None, bands: int) -> None:
    total = sum(source.lr_hsi.meta.rows * source.lr_hsi.meta.cols for source in sources)
    wanted, there = min(total, max_pixels or total), available_memory_bytes()
    pixel_bytes = _COPIES * max(1, bands) * 4
    if wanted * pixel_bytes > there:
        raise DataError(
            f"training on {wanted:,} LR pixels of {bands} bands takes {wanted * pixel_bytes / 1e6:,.0f} "
            f"MB of memory, {there / 1e6:,.0f} MB are free",
            f"draw fewer of them, like --max-pixels {max(2, there // (2 * pixel_bytes))}",
        )


def _named(sources: Sequence[Source]) -> str:
    first = str(sources[0].lr_hsi.path)
    return first if len(sources) == 1 else f"{first} and {len(sources) - 1} more"


def _draw(
    sources: Sequence[Source],
    used: BoolArray,
    max_pixels: int | None,
    seed: int,
    read: _Reading,
) -> tuple[int, tuple[NDArray[np.int32], NDArray[np.int64], FloatPixels]]:
    """Return how many pixels are valid, and image, flat index and values in units of those drawn."""
    total = sum(source.lr_hsi.meta.rows * source.lr_hsi.meta.cols for source in sources)
    drawing, valid = Drawing(max_pixels or total, int(used.sum()), total, seed), 0
    for image, source in enumerate(sources):
        reader, cols = source.lr_hsi, source.lr_hsi.meta.cols
        for rows in row_blocks(reader.meta.rows, reader.block_rows):
            units = reader.read_units(rows).reshape(-1, used.size)[:, used]  # (pixels, used)
            good = np.flatnonzero(np.isfinite(units).all(axis=1))
            valid += len(good)
            drawing.show(image, rows.start * cols + good, units[good])
            read.done(rows.stop - rows.start)
    return valid, drawing.result()


def _scaling(sources: Sequence[Source], values: FloatPixels) -> Scaling:
    if sources[0].scaled:
        return Scaling()
    return Scaling.for_data(
        lambda: (values[part] for part in row_blocks(len(values), _BLOCK_PIXELS)),
        floating=all(source.lr_hsi.meta.dtype.kind == "f" for source in sources),
    )
