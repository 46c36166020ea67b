"""What the training may learn of an HR-MSI: its noise, its contrast and a sample of its pixels.

The LR-MSI is a mean over many pixels and bands and has next to no noise; the HR-MSI has the noise
of a camera. An inverter that never saw it passes it on, most of all where spectra are dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from spectralift_cli.core.coarse import product
from spectralift_cli.core.cubeio import CubeReader
from spectralift_cli.core.operators.scaling import Scaling
from spectralift_cli.core.placement import Placement
from spectralift_cli.core.radiometry import Radiometry

FloatPixels = NDArray[np.float32]
Floats = NDArray[np.float64]

_MOST_PIXELS = 2**20  # that are read
_STRIP = 66  # rows read at once: 8 blocks and the mask's margin
_BLOCK = 8
_LEAST_BLOCKS = 10
_QUIET = 0.1  # part of the blocks that holds noise alone
_SAMPLE = 16_384


@dataclass(frozen=True, eq=False)
class SharpLook:
    """Numbers about an HR-MSI.

    Args:
        noise: (M,) standard deviation of its white noise; 0 where the image is too small to tell, or
            detail hides it.
        covariance: (M, M) of its pixels.
        pixels: (n, M) some of them, evenly spread.
        position: (n, 2) their rows and columns as parts of the image's height and width, or, once
            `placed`, of the LR-HSI's.
    """

    noise: Floats
    covariance: Floats
    pixels: FloatPixels
    position: FloatPixels

    def scaled(self, scaling: Scaling) -> SharpLook:
        """Return the same numbers after a scaling."""
        span = scaling.hi - scaling.lo
        pixels = scaling.apply(self.pixels)
        return SharpLook(self.noise / span, self.covariance / span**2, pixels, self.position)

    def placed(self, placement: Placement) -> SharpLook:
        """Return the same with positions on the LR-HSI, the pixels beyond its edges left out."""
        grid = zip(
            self.position.T.astype(np.float64), placement.hr_shape, placement.origin_px,
            placement.scale, placement.lr_shape, strict=True,
        )  # fmt: skip
        parts = [(at * size - origin) / scale / count for at, size, origin, scale, count in grid]
        position = np.stack(parts, axis=1).astype(np.float32)
        on = ((position >= 0) & (position <= 1)).all(axis=1)
        return SharpLook(self.noise, self.covariance, self.pixels[on], position[on])

    def corrected(self, radiometry: Radiometry) -> SharpLook:
        """Return the same numbers of the image in another radiometry."""
        gain = radiometry.gain
        return SharpLook(
            self.noise * np.abs(gain), self.covariance * gain[:, None] * gain,
            radiometry.apply(self.pixels), self.position,
        )  # fmt: skip

    def noise_for(self, lr_msi: FloatPixels) -> Floats:
        """Return the noise to train on: M white dimensions @ this (M, M) belong on an LR-MSI (N, M).

        LR pixels have less contrast than HR pixels, least in the directions of fine detail, so the
        full noise would drown there what HR pixels show well. Along each principal axis of the
        LR-MSI the noise is therefore multiplied by the ratio of the two images' deviations, which
        keeps the signal-to-noise ratio of the HR-MSI.
        """
        centred = lr_msi - lr_msi.mean(axis=0, dtype=np.float64)
        found = torch.linalg.eigh(torch.from_numpy(product(centred.T, centred) / len(centred)))
        variances, axes = found[0].clamp(min=0).numpy(), found[1].numpy()
        sharp = (axes * product(self.covariance, axes)).sum(axis=0)
        contrast = np.sqrt(np.clip(variances / np.maximum(sharp, 1e-300), 0, 1))
        return self.noise[:, None] * product(axes * contrast, axes.T)


def pooled(looks: Sequence[SharpLook], shares: Sequence[float]) -> SharpLook:
    """Return the numbers of several HR-MSIs together.

    Noise is averaged as a variance. The covariance is that of all their pixels as one image: what
    varies within the images and between their means.

    Args:
        looks: at least one, in the same units.
        shares: positive, how much each counts.
    """
    if len(looks) == 1:
        return looks[0]
    weights = np.asarray(shares, np.float64) / np.sum(shares)
    means = np.stack([look.pixels.mean(axis=0, dtype=np.float64) for look in looks])  # (images, M)
    apart = means - weights @ means
    between = (weights[:, None, None] * apart[:, :, None] * apart[:, None, :]).sum(axis=0)
    within = sum(w * look.covariance for w, look in zip(weights, looks, strict=True))
    variance = sum(w * np.square(look.noise) for w, look in zip(weights, looks, strict=True))
    most = max(1, _SAMPLE // len(looks))
    chosen = [
        np.linspace(0, len(look.pixels) - 1, min(len(look.pixels), most)).astype(int)
        for look in looks
    ]
    return SharpLook(
        np.sqrt(variance),
        within + between,
        np.concatenate([look.pixels[part] for look, part in zip(looks, chosen, strict=True)]),
        np.concatenate([look.position[part] for look, part in zip(looks, chosen, strict=True)]),
    )


def look_at(hr_msi: CubeReader) -> SharpLook | None:
    """Look at an HR-MSI, at a million of its pixels at most.

    Noise: Immerkaer's mask (1 -2 1; -2 4 -2; 1 -2 1) / 6 leaves white noise as it is and little of
    a smooth image. The mean square is taken over blocks of 8 x 8 pixels; the quietest tenth of them
    ends at v, an upper bound. A second one: what the other bands' masked images explain by least
    squares is detail, and is taken off (Roger and Arnold). Of what is left, v at full resolution
    and v' of means over 2 x 2 pixels, noise has a quarter in v' of what it has in v, while the
    detail of natural images has the same in every octave (Field): noise^2 = 4/3 (v - v').

    Args:
        hr_msi: the image.

    Returns:
        Its numbers in units, or None if no pixel is valid.

    Source: J. Immerkaer, Fast noise variance estimation, Computer Vision and Image Understanding 64
        (1996); R. E. Roger and J. F. Arnold, Reliably estimating the noise in AVIRIS hyperspectral
        images, International Journal of Remote Sensing 17 (1996); D. J. Field, Relations between the
        statistics of natural images and the response properties of cortical cells, Journal of the
        Optical Society of America A 4 (1987).
    """
    rows, cols, bands = hr_msi.meta.shape
    strips = max(1, min(-(-rows // _STRIP), _MOST_PIXELS // (_STRIP * cols)))
    starts = np.unique(np.linspace(0, max(0, rows - _STRIP), strips).astype(int))
    fine, coarse, pixels, places = [], [], [], []
    end = 0
    for start in starts.tolist():
        stop = min(start + _STRIP, rows)
        strip = hr_msi.read_units(slice(start, stop)).astype(np.float64)
        fine.append(_in_blocks(_masked(strip)))
        coarse.append(_in_blocks(_masked(_halved(strip))))
        fresh = slice(max(0, end - start), None)  # the last strip may overlap the one before
        row, col = np.meshgrid(np.arange(start, stop)[fresh], np.arange(cols), indexing="ij")
        values = strip[fresh].reshape(-1, bands)
        good = np.isfinite(values).all(axis=1)
        pixels.append(values[good])
        place = np.stack([(row.ravel() + 0.5) / rows, (col.ravel() + 0.5) / cols], axis=1)
        places.append(place[good])
        end = stop
    values = np.concatenate(pixels)
    if not len(values):
        return None
    centred = values - values.mean(axis=0)
    chosen = np.linspace(0, len(values) - 1, min(len(values), _SAMPLE)).astype(int)
    return SharpLook(
        _noise(np.concatenate(fine), np.concatenate(coarse)),
        product(centred.T, centred) / len(values),
        values[chosen].astype(np.float32),
        np.concatenate(places)[chosen].astype(np.float32),
    )


def _masked(image: Floats) -> Floats:
    """Return (rows - 2, cols - 2, M) second differences along both sides, over 6."""
    down = image[2:] - 2 * image[1:-1] + image[:-2]
    across: Floats = (down[:, 2:] - 2 * down[:, 1:-1] + down[:, :-2]) / 6
    return across


def _halved(image: Floats) -> Floats:
    """Return means over 2 x 2 pixels."""
    rows, cols, bands = image.shape
    cut = image[: rows // 2 * 2, : cols // 2 * 2]
    means: Floats = cut.reshape(rows // 2, 2, cols // 2, 2, bands).mean(axis=(1, 3))
    return means


def _in_blocks(image: Floats) -> Floats:
    """Return (blocks, 64, M), whole blocks without holes."""
    rows, cols = (size // _BLOCK for size in image.shape[:2])
    bands = image.shape[2]
    cut = image[: rows * _BLOCK, : cols * _BLOCK].reshape(rows, _BLOCK, cols, _BLOCK, bands)
    blocks = cut.transpose(0, 2, 1, 3, 4).reshape(-1, _BLOCK**2, bands)
    return blocks[np.isfinite(blocks).all(axis=(1, 2))]


def _noise(fine: Floats, coarse: Floats) -> Floats:
    """Return (M,) the noise of masked blocks (blocks, 64, M) at full and at half resolution."""
    if min(len(fine), len(coarse)) < _LEAST_BLOCKS:
        return np.zeros(fine.shape[2])
    bound = _quiet(fine)
    # noise has a quarter of its mean square at half the resolution
    found = (_quiet(_alone(fine)) - _quiet(_alone(coarse))) / 0.75
    noise: Floats = np.sqrt(np.clip(found, 0, bound))
    return noise


def _quiet(blocks: Floats) -> Floats:
    """Return (M,) the mean square at which the quietest tenth of the blocks ends."""
    means: Floats = np.quantile(np.square(blocks).mean(axis=1), _QUIET, axis=0)
    return means


def _alone(blocks: Floats) -> Floats:
    """Return the blocks less what the other bands explain of each band by least squares."""
    flat = blocks.reshape(-1, blocks.shape[2])
    gram = product(flat.T, flat)
    floor = 1e-12 * float(np.trace(gram)) + 1e-300
    # by the inverse Gram matrix P: a band less its prediction is (x @ P)_b / P_bb
    precision = np.linalg.inv(gram + floor * np.eye(len(gram)))
    return product(flat, precision / np.diag(precision)).reshape(blocks.shape)
