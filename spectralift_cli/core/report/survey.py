"""What the page shows of the images: composites under one stretch, error maps, errors of bands."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spectralift_cli.core.cube import BoolArray, FloatArray, Progress, to_units
from spectralift_cli.core.cubeio import CubeReader
from spectralift_cli.core.metrics.blocks import BandMoments, Context, PairBlock, spectral_angles
from spectralift_cli.core.metrics.standard import rmse_of_bands
from spectralift_cli.core.report.lattice import Lattice
from spectralift_cli.core.sensors.response import Srf

FloatBlock = NDArray[np.float32]

# visible bands are told by their centres; beyond this they are none
_COLOURS_NM = (650.0, 550.0, 460.0)
_COLOUR_NAMES = ("red", "green", "blue")
_FARTHEST_NM = 60.0
_PERCENTILES = (2.0, 98.0)
# a band whose share of all responses is below this part of the largest is not seen by the MSI
_UNSEEN = 0.05
# a pixel that lacks more than this share of a channel's weight is a hole
_MOST_MISSING = 0.5


@dataclass(frozen=True, eq=False)
class Composite:
    """How bands become the channels of a picture, as weights that sum to 1.

    Args:
        key: its name in code.
        caption: what the channels are.
        hsi: (1 or 3, B) of a hyperspectral image.
        msi: (1 or 3, M) of the MSI, or None where it does not show this.
    """

    key: str
    caption: str
    hsi: FloatArray
    msi: FloatArray | None = None

    def of_hsi(self, values: FloatBlock) -> FloatArray:
        """Return the channels (r, c, 1 or 3) of hyperspectral values (r, c, B)."""
        return _weigh(values, self.hsi)

    def of_msi(self, values: FloatBlock) -> FloatArray:
        """Return the channels (r, c, 1 or 3) of multispectral values (r, c, M)."""
        if self.msi is None:
            raise ValueError(f"the composite {self.key} is not one of the MSI")
        return _weigh(values, self.msi)


def _weigh(values: FloatBlock, weights: FloatArray) -> FloatArray:
    """Return the weighted means over bands; NaN where too much is missing.

    By einsum, not by BLAS, whose last digit depends on the number of threads.
    """
    known = np.isfinite(values)
    filled = np.where(known, values, 0).astype(np.float64)
    if known.all():
        means: FloatArray = np.einsum("rcb,kb->rck", filled, weights)
        return means
    magnitude = np.abs(weights)
    share = np.einsum("rcb,kb->rck", known.astype(np.float64), magnitude) / magnitude.sum(axis=1)
    there = np.einsum("rcb,kb->rck", known.astype(np.float64), weights)
    usable = (share >= 1 - _MOST_MISSING) & (np.abs(there) > 1e-6)
    total = np.einsum("rcb,kb->rck", filled, weights)
    shown: FloatArray = np.full(total.shape, np.nan)
    np.divide(total, there, out=shown, where=usable)
    return shown


def seen_bands(srf: Srf, wavelengths_nm: FloatArray | None) -> tuple[tuple[int, ...], str]:
    """Return which of the MSI's bands are red, green and blue, or the one band; and a caption.

    By their centres where wavelengths are known, else by their names, else the third, second and
    first, which is how sensors mostly number them.
    """
    names = srf.band_names
    count = srf.num_msi_bands
    if count < 3:
        return (0,), f"Of the MSI: {names[0]}"
    if wavelengths_nm is not None:
        centres = band_centres(srf, wavelengths_nm)
        nearest = [int(np.abs(centres - nm).argmin()) for nm in _COLOURS_NM]
        near = all(
            abs(centres[b] - nm) <= _FARTHEST_NM for b, nm in zip(nearest, _COLOURS_NM, strict=True)
        )
        if near and len(set(nearest)) == 3:
            return tuple(nearest), "Natural colour, of the MSI: " + ", ".join(
                names[b] for b in nearest
            )
    lower = [name.strip().lower() for name in names]
    for wanted in (_COLOUR_NAMES, tuple(name[0] for name in _COLOUR_NAMES)):
        if all(lower.count(name) == 1 for name in wanted):
            bands = tuple(lower.index(name) for name in wanted)
            return bands, "Natural colour, of the MSI: " + ", ".join(names[b] for b in bands)
    return (2, 1, 0), f"False colour, of the MSI: {names[2]}, {names[1]}, {names[0]}"


def band_centres(srf: Srf, positions: FloatArray) -> FloatArray:
    """Return (M,) centres of gravity of the responses' magnitudes over (B,) positions."""
    magnitude = np.abs(srf.weights)
    total = magnitude.sum(axis=1)
    return np.asarray(magnitude @ positions / np.where(total > 0, total, 1))


def composites(
    srf: Srf, wavelengths_nm: FloatArray | None, bad_bands: BoolArray | None
) -> list[Composite]:
    """Return the pictures that a page shows: as the MSI sees it, and what the MSI does not see."""
    bands, caption = seen_bands(srf, wavelengths_nm)
    picked = np.zeros((len(bands), srf.num_msi_bands))
    picked[np.arange(len(bands)), bands] = 1
    found = [Composite("seen", caption, srf.weights[list(bands)], picked)]
    share: FloatArray = np.abs(srf.weights).max(axis=0)
    unseen: BoolArray = share < _UNSEEN * share.max()
    if bad_bands is not None:
        unseen &= ~bad_bands
    order = np.arange(srf.num_hsi_bands)
    if wavelengths_nm is not None:
        order = np.argsort(wavelengths_nm, kind="stable")
    index = order[_long_runs(unseen[order], max(3, srf.num_hsi_bands // 20))]
    if index.size < max(3, srf.num_hsi_bands / 10):
        return found
    groups = np.array_split(index, 3)[::-1]  # the longest wavelengths are red
    weights = np.zeros((3, srf.num_hsi_bands))
    for channel, group in enumerate(groups):
        weights[channel, group] = 1 / group.size
    texts = [_range_text(group, wavelengths_nm) for group in groups]
    caption = "Bands that the MSI does not see; means of " + ", ".join(texts)
    return [*found, Composite("unseen", caption, weights)]


def _long_runs(flags: BoolArray, least: int) -> BoolArray:
    """Return flags without the runs of True that are shorter than `least`."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    kept: BoolArray = np.zeros(flags.shape, bool)
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        kept[start:stop] = stop - start >= least
    return kept


def _range_text(group: NDArray[np.intp], wavelengths_nm: FloatArray | None) -> str:
    if wavelengths_nm is None:
        return f"bands {group.min() + 1} to {group.max() + 1}"
    return f"{wavelengths_nm[group].min():.0f} to {wavelengths_nm[group].max():.0f} nm"


@dataclass(frozen=True, eq=False)
class Stretch:
    """Values in units that become black and white, a pair for each channel.

    Args:
        low: (K,)
        high: (K,)
    """

    low: FloatArray
    high: FloatArray

    @classmethod
    def of(cls, channels: FloatArray) -> Stretch:
        """Return the stretch from the 2nd to the 98th percentile of the valid pixels."""
        pixels = channels.reshape(-1, channels.shape[-1])
        pixels = pixels[np.isfinite(pixels).all(axis=1)]
        if not pixels.size:
            count = channels.shape[-1]
            return cls(np.zeros(count), np.ones(count))
        low, high = np.percentile(pixels, _PERCENTILES, axis=0)
        return cls(low, np.where(high > low, high, low + 1))

    def rgba(self, channels: FloatArray) -> NDArray[np.uint8]:
        """Return (r, c, 4) 8-bit colours, holes transparent."""
        known: BoolArray = np.asarray(np.isfinite(channels).all(axis=2))
        unit = (np.where(known[..., None], channels, 0) - self.low) / (self.high - self.low)
        levels = np.rint(255 * np.clip(unit, 0, 1)).astype(np.uint8)
        rgba = np.zeros((*known.shape, 4), np.uint8)
        rgba[..., :3] = levels  # one channel goes to all three
        rgba[..., 3] = np.where(known, 255, 0)
        return rgba


@dataclass(eq=False)
class Survey:
    """What one pass over result and ground truth gathered on the lattice.

    Args:
        lattice: of the HR grid.
        channels: role -> key of the composite -> (r, c, K) in units.
        sam_deg: (r, c) spectral angle between result and ground truth, NaN where undefined; None
            without both.
        rmse: (r, c) root mean squared error over bands, in units; likewise.
        band_rmse: (B,) root mean squared errors over the lattice; likewise.
        holes: role -> share of the lattice's pixels without any value.
    """

    lattice: Lattice
    channels: dict[str, dict[str, FloatArray]]
    sam_deg: FloatArray | None = None
    rmse: FloatArray | None = None
    band_rmse: FloatArray | None = None
    holes: dict[str, float] | None = None


def survey(
    readers: Mapping[str, CubeReader],
    shown: list[Composite],
    lattice: Lattice,
    progress: Progress,
) -> Survey:
    """Pass once over hyperspectral images of one grid.

    Args:
        readers: role -> cube; errors are of `result` against `gt` where both are there.
        shown: the composites.
        lattice: of their grid.
        progress: called with (rows done, rows in all).
    """
    size = (len(lattice.rows), len(lattice.cols))
    channels = {
        role: {one.key: np.full((*size, len(one.hsi)), np.nan) for one in shown} for role in readers
    }
    found = Survey(lattice, channels, holes={})
    empty = dict.fromkeys(readers, 0)
    moments: BandMoments | None = None
    if "result" in readers and "gt" in readers:
        found.sam_deg, found.rmse = np.full(size, np.nan), np.full(size, np.nan)
        moments = BandMoments(Context((*size, readers["gt"].meta.bands), math.nan, math.nan))
    for part, blocks in lattice.blocks(*readers.values()):
        stored = dict(zip(readers, blocks, strict=True))
        for role, block in stored.items():
            values = to_units(block, readers[role].meta)
            empty[role] += int((~np.isfinite(values)).all(axis=2).sum())
            for one in shown:
                channels[role][one.key][part] = one.of_hsi(values)
        if moments is not None and found.sam_deg is not None and found.rmse is not None:
            metas = readers["gt"].meta, readers["result"].meta
            pair = PairBlock(stored["gt"], stored["result"], *metas, 0, part.stop)
            moments.update(pair)
            found.sam_deg[part] = np.rad2deg(spectral_angles(pair))
            found.rmse[part] = _pixel_rmse(pair)
        progress(part.stop, size[0])
    if moments is not None:
        found.band_rmse = rmse_of_bands(moments)
    found.holes = {role: number / (size[0] * size[1]) for role, number in empty.items()}
    return found


def _pixel_rmse(pair: PairBlock) -> FloatArray:
    """Return (n, cols) root mean squared errors over the valid bands, NaN where there are none."""
    x, y = pair.units
    count = pair.valid.sum(axis=2)
    mean = np.square(x - y).sum(axis=2) / np.maximum(count, 1)
    return np.where(count > 0, np.sqrt(mean), np.nan)
