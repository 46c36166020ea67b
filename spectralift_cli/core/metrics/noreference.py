"""Quality without a reference: D_lambda, D_s, QNR and HQNR, on arrays in float64.

All of them compare relations rather than values: how bands relate to each other, or to the sharp
image, before and after fusion. Nothing but consistency is rewarded. The LR-HSI merely interpolated
scores well on the spectral index (it invents no spectra), and any detail copied from the sharp image
scores well on the spatial one, whether or not it is true; only their product punishes both ends, and
a good product is no proof of a good image.

| index | compares | 0 means |
| --- | --- | --- |
| `spectral_distortion_khan` | the result, degraded, with the LR-HSI, all bands at once | the result agrees with the LR-HSI |
| `spectral_distortion` | similarity of every two bands of the result and of the LR-HSI | bands relate as before |
| `spatial_distortion` | similarity to the sharp image of the result, and of the LR-HSI degraded alike | as similar to it as before |

HQNR = (1 - D_lambda of Khan)(1 - D_s) and QNR = (1 - D_lambda of Alparone)(1 - D_s): 1 is best.

Two similarities are used. Q of two bands is Wang and Bovik's index in Gaussian windows of 11 x 11
pixels, sigma 1.5, that lie inside the image, with Q = 0 where either window is flat, as torchmetrics
has it. (The index `uiqi` of `METRICS` has uniform windows of 8 x 8.) Q2n of two cubes takes a pixel's
spectrum as one hypercomplex number, in blocks of 32 x 32 pixels.

A pixel with a hole (NaN, infinite) in any band is left out, and with it every window that holds it;
bands that are nothing but holes are left out of everything. Values may be in any unit.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from spectralift_cli.core.cube import AnyArray, BoolArray, FloatArray
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.metrics.blocks import window_sum

WINDOW, SIGMA_PX = 11, 1.5
BLOCK = 32

# what is left of a flat window's variance is rounding of its second moment
_FLAT = 1e-14


def spectral_distortion(fused: AnyArray, lr: AnyArray, p: float = 1) -> float:
    """Return D_lambda of Alparone et al.: how much the bands' similarities to each other changed.

    (mean over pairs of bands of |Q(fused_a, fused_b) - Q(lr_a, lr_b)|^p)^(1/p); 0 for one band. The
    work grows with the square of the number of bands.

    Args:
        fused: (rows, cols, bands).
        lr: (lr rows, lr cols, bands), the LR-HSI.
        p: weight of large differences, at least 1.

    Raises:
        DataError: the bands differ, or an image has no whole window without a hole.

    Source: Alparone et al., Multispectral and Panchromatic Data Fusion Assessment Without Reference,
    PE&RS 74(2), 2008; numbers as torchmetrics' `spectral_distortion_index`.
    """
    fused, lr = _images(fused, lr)
    fused, lr = _without_empty_bands((fused, lr))
    high, low = (BandSimilarity(image, name) for image, name in ((fused, "result"), (lr, "LR-HSI")))
    bands = fused.shape[2]
    if bands < 2:
        return 0.0
    differences = [
        abs(high.between(a, high, b) - low.between(a, low, b))
        for a in range(bands)
        for b in range(a + 1, bands)
    ]
    return float(np.mean(np.array(differences) ** p) ** (1 / p))


def spectral_distortion_khan(degraded: AnyArray, lr: AnyArray) -> float:
    """Return D_lambda of Khan et al.: 1 - Q2n(result seen by the LR instrument, LR-HSI).

    Args:
        degraded: (lr rows, lr cols, bands), the result blurred and decimated as the LR-HSI was.
        lr: the LR-HSI, of the same shape.

    Raises:
        DataError: the shapes differ, or no pixel is valid in both.

    Source: Khan et al., Pansharpening Quality Assessment Using the Modulation Transfer Functions of
    Instruments, IEEE TGRS 47(11), 2009; with Q2n as in HQNR (Aiazzi et al., Full-scale Assessment of
    Pansharpening Methods and Data Products, Proc. SPIE 9244, 2014).
    """
    return max(0.0, 1 - q2n(lr, degraded))  # rounding can take Q2n beyond 1


def spatial_distortion(
    fused: AnyArray,
    lr: AnyArray,
    sharp: AnyArray,
    sharp_lr: AnyArray,
    pairing: Sequence[int] | NDArray[np.intp] | None = None,
    q: float = 1,
) -> float:
    """Return D_s: how much the bands' similarity to the sharp image changed.

    (mean over bands of |Q(fused_b, sharp_p(b)) - Q(lr_b, sharp_lr_p(b))|^q)^(1/q).

    Args:
        fused: (rows, cols, bands).
        lr: (lr rows, lr cols, bands), the LR-HSI.
        sharp: (rows, cols, sharp bands), the HR-MSI, or a panchromatic image.
        sharp_lr: (lr rows, lr cols, sharp bands), the same seen by the LR instrument.
        pairing: (bands,) the sharp band (from 0) that stands beside each band; None: the only one,
            or the band of the same number. See `pair_by_correlation`.
        q: weight of large differences, at least 1.

    Raises:
        DataError: shapes that do not fit, or an image has no whole window without a hole.

    Source: Alparone et al. 2008 (see `spectral_distortion`); numbers as torchmetrics'
    `spatial_distortion_index` with `pan_lr`, which pairs bands of the same number.
    """
    fused, lr = _images(fused, lr)
    sharp, sharp_lr = _images(sharp, sharp_lr)
    for first, second in ((fused, sharp), (lr, sharp_lr)):
        if first.shape[:2] != second.shape[:2]:
            raise DataError(
                f"images of {_size(first)} and {_size(second)} pixels are to be compared",
                "give the result and the sharp image on one grid, and both low-resolution ones",
            )
    pairs = _pairing(pairing, fused.shape[2], sharp.shape[2])
    known = _has_values(fused) & _has_values(lr)
    differences = []
    # each sharp band's windows are summed once, for all bands that it stands beside
    for partner in np.unique(pairs[known]):
        bands = np.flatnonzero(known & (pairs == partner))
        changes = []
        for image, beside in ((fused, sharp), (lr, sharp_lr)):
            joined = np.concatenate([image[:, :, bands], beside[:, :, partner, None]], axis=2)
            similarity = BandSimilarity(joined, "image")
            last = len(bands)
            changes.append(np.array([similarity.between(i, similarity, last) for i in range(last)]))
        differences.extend(np.abs(changes[0] - changes[1]))
    return float(np.mean(np.array(differences) ** q) ** (1 / q))


def hybrid_quality(d_lambda: float, d_s: float, alpha: float = 1, beta: float = 1) -> float:
    """Return (1 - D_lambda)^alpha (1 - D_s)^beta; with Khan's D_lambda HQNR, with Alparone's QNR."""
    return float((1 - d_lambda) ** alpha * (1 - d_s) ** beta)


def pair_by_correlation(lr: AnyArray, sharp_lr: AnyArray) -> NDArray[np.intp]:
    """Return for each band the sharp band that resembles it most at low resolution.

    By the largest absolute correlation over valid pixels; a constant band goes with band 0.

    Args:
        lr: (rows, cols, bands), the LR-HSI.
        sharp_lr: (rows, cols, sharp bands), the HR-MSI seen by the LR instrument.

    Raises:
        DataError: the grids differ, or no pixel is valid in both.
    """
    lr, sharp_lr = np.asarray(lr, np.float64), np.asarray(sharp_lr, np.float64)
    if lr.shape[:2] != sharp_lr.shape[:2]:
        raise DataError(
            f"images of {_size(lr)} and {_size(sharp_lr)} pixels are to be compared",
            "give both on the low-resolution grid",
        )
    known = _has_values(lr)
    valid = _whole(lr[:, :, known]) & _whole(sharp_lr)
    _check_some(valid, "LR-HSI")
    x, y = lr[valid], sharp_lr[valid]  # (pixels, bands)
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    spread = np.sqrt(np.outer((x * x).sum(axis=0), (y * y).sum(axis=0)))
    products = np.abs(x.T @ y)
    alike = np.divide(products, spread, out=np.zeros_like(products), where=spread > 0)
    return np.asarray(np.nan_to_num(alike).argmax(axis=1), dtype=np.intp)


class BandSimilarity:
    """Q between bands of images of one size, their windowed moments summed once a band.

    Q = 4 sxy mx my / ((sx^2 + sy^2)(mx^2 + my^2)), mean over windows; 0 in windows where either is
    flat or the denominator is 0. Source: Wang and Bovik, A Universal Image Quality Index, IEEE SPL
    9(3), 2002; Gaussian windows and the rule for flat ones are torchmetrics'.

    Args:
        image: (rows, cols, bands).
        name: what it is, for messages.

    Raises:
        DataError: no window of 11 x 11 pixels lies inside the image without a hole.
    """

    def __init__(self, image: FloatArray, name: str) -> None:
        offsets = np.arange(WINDOW) - WINDOW // 2
        weights = np.exp(-(offsets**2) / (2 * SIGMA_PX**2))
        self._weights: FloatArray = weights / weights.sum()
        if min(image.shape[:2]) < WINDOW:
            raise DataError(
                f"the {name} of {_size(image)} pixels is smaller than a window of "
                f"{WINDOW} x {WINDOW}",
                "give larger images",
            )
        valid = _whole(image)
        touched = window_sum((~valid).astype(np.float64), np.ones(WINDOW)) > 0
        self._counted: BoolArray = ~touched
        _check_some(self._counted, name, f"windows of {WINDOW} x {WINDOW} pixels")
        self._bands = [np.where(valid, band, 0.0) for band in np.moveaxis(image, 2, 0)]
        self._means = [window_sum(band, self._weights) for band in self._bands]
        self._variances = [
            self._variance(window_sum(band * band, self._weights), mean)
            for band, mean in zip(self._bands, self._means, strict=True)
        ]

    @staticmethod
    def _variance(square: FloatArray, mean: FloatArray) -> FloatArray:
        variance = square - mean * mean
        return np.where(variance > _FLAT * square, variance, 0.0)

    def between(self, a: int, other: BandSimilarity, b: int) -> float:
        """Return the mean of Q over windows between a band of this image and one of another."""
        product = self._means[a] * other._means[b]
        cross = window_sum(self._bands[a] * other._bands[b], self._weights)
        variances = self._variances[a] + other._variances[b]
        bottom = variances * (self._means[a] ** 2 + other._means[b] ** 2)
        varied = (self._variances[a] > 0) & (other._variances[b] > 0) & (bottom > 0)
        index = np.zeros_like(bottom)
        np.divide(4 * (cross - product) * product, bottom, out=index, where=varied)
        return float(index[self._counted & other._counted].mean())


def q2n(reference: AnyArray, image: AnyArray) -> float:
    """Return Q2n, the similarity of two cubes whose spectra are taken as hypercomplex numbers.

    In each block of 32 x 32 pixels, with z the spectrum as a hypercomplex number of 2^n parts,

        |cov(z1, z2)| / (s1 s2) * 2 |m1| |m2| / (|m1|^2 + |m2|^2) * 2 s1 s2 / (s1^2 + s2^2),

    mean over blocks. Both cubes are first brought to mean 1 and standard deviation 1 of the
    reference's band in the block (a band that is constant there is only shifted), which weighs all
    bands alike; bands are added up to a power of two, constant in both; at the right and the bottom
    the images are mirrored to whole blocks. 1 for equal cubes, and not symmetric.

    Args:
        reference: (rows, cols, bands).
        image: of the same shape.

    Raises:
        DataError: the shapes differ, or no block has two valid pixels.

    Source: Garzelli and Nencini, Hypercomplex Quality Assessment of Multi/Hyperspectral Images, IEEE
    GRSL 6(4), 2009; blocks, normalisation and mirrored edges as in the toolbox of Vivone et al., A
    Critical Comparison Among Pansharpening Algorithms, IEEE TGRS 53(5), 2015, without its rounding
    to whole numbers.
    """
    reference, image = _images(reference, image)
    if reference.shape != image.shape:
        raise DataError(
            f"cubes of {_size(reference)} and {_size(image)} pixels are to be compared",
            "degrade the result to the grid of the LR-HSI",
        )
    reference, image = _without_empty_bands((reference, image))
    rows, cols, bands = reference.shape
    edges = ((0, -rows % BLOCK), (0, -cols % BLOCK), (0, 0))
    x, y = (np.pad(values, edges, mode="symmetric") for values in (reference, image))
    signs = conjugate_product_signs(max(1, (bands - 1).bit_length()))
    found = []
    for top in range(0, x.shape[0], BLOCK):
        for left in range(0, x.shape[1], BLOCK):
            cut = slice(top, top + BLOCK), slice(left, left + BLOCK)
            pair = np.stack([x[cut].reshape(-1, bands), y[cut].reshape(-1, bands)])
            pair = pair[:, np.isfinite(pair).all(axis=(0, 2))]  # (2, pixels, bands)
            if pair.shape[1] > 1:
                found.append(_block_q2n(pair[0], pair[1], signs))
    if not found:
        _check_some(np.zeros(1, bool), "pair of images")
    return float(np.mean(found))


def _block_q2n(x: FloatArray, y: FloatArray, signs: FloatArray) -> float:
    """Return Q2n of one block, of spectra (pixels, bands)."""
    pixels, bands = x.shape
    parts = len(signs)
    mean, spread = x.mean(axis=0), x.std(axis=0, ddof=1)
    spread = np.where(spread > _FLAT**0.5 * np.abs(mean), spread, 1)
    x, y = (x - mean) / spread, (y - mean) / spread
    shift = y.mean(axis=0)
    mean_y = np.ones(parts)
    mean_y[:bands] += shift
    length_x, length_y = np.sqrt(parts), np.sqrt((mean_y**2).sum())  # x has mean 1 in every part
    bias = 2 * length_x * length_y / (length_x**2 + length_y**2)
    x, y = x - x.mean(axis=0), y - shift
    variances = ((x * x).sum() + (y * y).sum()) / (pixels - 1)
    if variances <= _FLAT * parts:
        return float(bias)
    covariance = np.zeros((parts, parts))
    covariance[:bands, :bands] = x.T @ y / (pixels - 1)
    # the product of units i and j is unit i xor j, up to its sign
    index = np.arange(parts)
    partner = index[:, None] ^ index  # (k, i): j with i xor j = k
    components = (signs * covariance)[index[None, :], partner].sum(axis=1)
    return float(np.sqrt((components**2).sum()) * bias * 2 / variances)


@functools.cache
def conjugate_product_signs(doublings: int) -> FloatArray:
    """Return the sign of the product of unit i and the conjugate of unit j, (2^n, 2^n).

    Hypercomplex numbers of 2^n parts by the Cayley-Dickson construction:
    (a, b)(c, d) = (a c - d* b, d a + b c*); two parts are complex numbers, four quaternions.

    Args:
        doublings: n.
    """
    signs = np.ones((1, 1))
    for _ in range(doublings):
        conjugate = np.where(np.arange(len(signs)) == 0, 1.0, -1.0)
        top = np.concatenate([signs, signs.T], axis=1)
        bottom = np.concatenate([signs * conjugate, -(conjugate[:, None] * signs).T], axis=1)
        signs = np.concatenate([top, bottom])
    return signs * np.where(np.arange(len(signs)) == 0, 1.0, -1.0)


def _images(first: AnyArray, second: AnyArray) -> tuple[FloatArray, FloatArray]:
    """Return two images of the same bands as float64 (rows, cols, bands)."""
    x, y = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if x.ndim != 3 or y.ndim != 3 or x.shape[2] != y.shape[2]:
        raise DataError(
            f"images of shapes {x.shape} and {y.shape} are to have the same bands",
            "give (rows, cols, bands) with the same bands in both",
        )
    return x, y


def _pairing(
    pairing: Sequence[int] | NDArray[np.intp] | None, bands: int, sharp_bands: int
) -> NDArray[np.intp]:
    if pairing is None:
        if sharp_bands not in (1, bands):
            raise DataError(
                f"{bands} bands and {sharp_bands} sharp bands have no obvious partners",
                "say which belong together, for example by pair_by_correlation",
            )
        return np.arange(bands) if sharp_bands == bands else np.zeros(bands, np.intp)
    pairs = np.asarray(pairing, dtype=np.intp)
    if pairs.shape != (bands,) or pairs.min() < 0 or pairs.max() >= sharp_bands:
        raise DataError(
            f"a pairing of shape {pairs.shape} does not name one of {sharp_bands} sharp bands for "
            f"each of {bands} bands",
            f"give {bands} numbers from 0 to {sharp_bands - 1}",
        )
    return pairs


def _has_values(image: FloatArray) -> BoolArray:
    """Tell which bands are not nothing but holes, (bands,)."""
    return np.asarray(np.isfinite(image).any(axis=(0, 1)))


def _whole(image: FloatArray) -> BoolArray:
    """Tell which pixels have a value in every band, (rows, cols)."""
    return np.asarray(np.isfinite(image).all(axis=2))


def _without_empty_bands(images: tuple[FloatArray, FloatArray]) -> tuple[FloatArray, FloatArray]:
    known = _has_values(images[0]) & _has_values(images[1])
    _check_some(known, "pair of images", "bands")
    return images[0][:, :, known], images[1][:, :, known]


def _check_some(valid: BoolArray, name: str, what: str = "pixels") -> None:
    if not valid.any():
        raise DataError(
            f"the {name} has no {what} without a hole", "check the nodata values: spectralift info"
        )


def _size(image: AnyArray) -> str:
    return " x ".join(map(str, image.shape[:2]))
