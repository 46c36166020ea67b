"""D_lambda, D_s, QNR and Q2n against torchmetrics, explicit hypercomplex products and trivial cases."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from spectralift_cli.core.errors import DataError
from spectralift_cli.core.metrics.noreference import (
    BLOCK,
    hybrid_quality,
    pair_by_correlation,
    q2n,
    spatial_distortion,
    spectral_distortion,
    spectral_distortion_khan,
)


def scene(bands=5, sharp_bands=1, seed=0):
    """A result, an LR-HSI that it does not quite fit, and a sharp image at both resolutions."""
    rng = np.random.default_rng(seed)
    fused = gaussian_filter(rng.random((64, 48, bands)), (1.5, 1.5, 0)) + np.linspace(0, 1, bands)
    fused[:20, :20, 1] = 0.4  # flat windows
    lr = fused[1::2, 1::2] + rng.normal(0, 0.02, (32, 24, bands))
    detail = gaussian_filter(rng.random((64, 48, sharp_bands)), (1, 1, 0))
    sharp = fused[:, :, :sharp_bands] * 0.5 + 0.1 + detail
    return fused, lr, sharp, sharp[1::2, 1::2]


def tensor(image):
    import torch

    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]


@pytest.mark.parametrize("sharp_bands", [1, 5])
@pytest.mark.parametrize("order", [1, 2])
def test_qnr_is_torchmetrics(sharp_bands, order):
    from torchmetrics.functional import image as tm

    fused, lr, sharp, sharp_lr = scene(sharp_bands=sharp_bands)
    t_fused, t_lr = tensor(fused), tensor(lr)
    t_sharp, t_sharp_lr = (tensor(v).expand(1, 5, -1, -1).contiguous() for v in (sharp, sharp_lr))
    d_lambda = spectral_distortion(fused, lr, p=order)
    expected = float(tm.spectral_distortion_index(t_lr, t_fused, p=order))
    assert d_lambda == pytest.approx(expected, abs=1e-6)
    d_s = spatial_distortion(fused, lr, sharp, sharp_lr, q=order)
    expected = float(
        tm.spatial_distortion_index(t_fused, t_lr, t_sharp, t_sharp_lr, norm_order=order)
    )
    assert d_s == pytest.approx(expected, abs=1e-6)
    expected = float(
        tm.quality_with_no_reference(
            t_fused, t_lr, t_sharp, t_sharp_lr, alpha=2, beta=3, norm_order=order
        )
    )
    assert hybrid_quality(d_lambda, d_s, 2, 3) == pytest.approx(expected, abs=1e-6)


def product(x, y):
    """The Cayley-Dickson product of numbers along the last axis, by its definition."""
    if x.shape[-1] == 1:
        return x * y
    half = x.shape[-1] // 2
    a, b, c, d = x[..., :half], x[..., half:], y[..., :half], y[..., half:]
    second = product(d, a) + product(b, conjugate(c))
    return np.concatenate([product(a, c) - product(conjugate(d), b), second], axis=-1)


def conjugate(x):
    return np.concatenate([x[..., :1], -x[..., 1:]], axis=-1)


def q2n_of_block(x, y):
    """Q2n with every pixel's product written out."""
    pixels, bands = x.shape
    parts = 2 ** max(1, int(np.ceil(np.log2(bands))))
    mean, spread = x.mean(axis=0), x.std(axis=0, ddof=1)
    z1, z2 = np.ones((2, pixels, parts))
    z1[:, :bands], z2[:, :bands] = (x - mean) / spread + 1, (y - mean) / spread + 1
    m1, m2 = z1.mean(axis=0), z2.mean(axis=0)
    covariance = product(z1, conjugate(z2)).mean(axis=0) - product(m1, conjugate(m2))
    n1, n2 = np.linalg.norm(m1), np.linalg.norm(m2)
    variances = (z1**2).sum(axis=1).mean() - n1**2 + (z2**2).sum(axis=1).mean() - n2**2
    return np.linalg.norm(covariance) / variances * 2 * 2 * n1 * n2 / (n1**2 + n2**2)


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 7, 16])
def test_q2n_is_that_of_the_written_out_products(bands):
    rng = np.random.default_rng(bands)
    x = rng.random((BLOCK, 2 * BLOCK, bands)) * 1000
    y = x + rng.normal(50, 200, x.shape)
    halves = [
        q2n_of_block(*(v[:, at : at + BLOCK].reshape(-1, bands) for v in (x, y)))
        for at in (0, BLOCK)
    ]
    assert q2n(x, y) == pytest.approx(np.mean(halves), rel=1e-10)
    assert q2n(x / 1000, y / 1000) == pytest.approx(q2n(x, y), rel=1e-10)


def test_hamiltons_quaternions():
    units = np.eye(4)
    one, i, j, k = units
    np.testing.assert_array_equal(product(i, j), k)  # of the oracle itself
    np.testing.assert_array_equal(product(j, k), i)
    np.testing.assert_array_equal(product(i, i), -one)


def test_equal_images_have_no_distortion():
    fused, _, sharp, _ = scene(sharp_bands=3)
    pairing = [0, 1, 2, 2, 0]
    assert spectral_distortion(fused, fused) == 0
    assert spectral_distortion_khan(fused, fused) == pytest.approx(0, abs=1e-12)
    assert spatial_distortion(fused, fused, sharp, sharp, pairing) == 0
    assert hybrid_quality(0, 0) == 1
    constant = np.full((40, 33, 3), 0.5)
    assert spectral_distortion_khan(constant, constant) == pytest.approx(0, abs=1e-12)
    assert spectral_distortion(constant, constant) == 0
    assert spectral_distortion(fused[:, :, :1], fused[::2, ::2, :1]) == 0  # one band has no pairs


def test_worse_spectra_and_less_detail_score_worse():
    fused, lr, sharp, sharp_lr = scene(bands=5, sharp_bands=5)
    noisy = lr + np.random.default_rng(1).normal(0, 0.1, lr.shape)
    assert spectral_distortion_khan(noisy, lr) > spectral_distortion_khan(lr * 1.01, lr) > 0
    blurred = gaussian_filter(fused, (3, 3, 0))
    assert spatial_distortion(blurred, lr, sharp, sharp_lr) > spatial_distortion(
        fused, lr, sharp, sharp_lr
    )


def test_holes_and_empty_bands_are_left_out():
    fused, lr, sharp, sharp_lr = scene(sharp_bands=5)
    clean = (
        spectral_distortion(fused[:, :, :4], lr[:, :, :4]),
        spectral_distortion_khan(lr[:, :, :4] + 0.1, lr[:, :, :4]),
    )
    empty = lr.copy()
    empty[:, :, 4] = np.nan
    assert spectral_distortion(fused, empty) == clean[0]
    assert spectral_distortion_khan(lr + 0.1, empty) == clean[1]
    spatial = spatial_distortion(fused, empty, sharp, sharp_lr)
    assert spatial == spatial_distortion(
        fused[:, :, :4], lr[:, :, :4], sharp[:, :, :4], sharp_lr[:, :, :4]
    )
    holed = lr.copy()
    holed[:2, 3] = np.inf
    # windows that touch the holes are those of the first rows
    assert spectral_distortion(fused, holed) != spectral_distortion(fused, lr)
    garbage = holed.copy()
    garbage[:2, 3, 1:] = -1e9
    assert spectral_distortion(fused, garbage) == spectral_distortion(fused, holed)
    assert spectral_distortion_khan(lr, garbage) == spectral_distortion_khan(lr, holed)


def test_bands_are_paired_with_what_resembles_them():
    _, lr, _, _ = scene()
    sharp_lr = np.stack([lr[:, :, 3] * 2 + 5, -lr[:, :, 0], np.ones(lr.shape[:2])], axis=2)
    pairs = pair_by_correlation(lr, sharp_lr)
    assert (pairs[3], pairs[0]) == (0, 1)
    expected = [
        np.argmax([abs(np.corrcoef(lr[..., b].ravel(), s.ravel())[0, 1]) for s in (lr[..., 3], lr[..., 0])])
        for b in range(5)
    ]  # fmt: skip
    np.testing.assert_array_equal(pairs, expected)


@pytest.mark.parametrize(
    ("call", "numbers"),
    [
        (lambda: spectral_distortion(np.ones((20, 20, 3)), np.ones((20, 20, 4))), "3.*4"),
        (lambda: spectral_distortion(np.ones((20, 20, 3)), np.ones((9, 20, 3))), "9 x 20.*11 x 11"),
        (lambda: spectral_distortion_khan(np.ones((4, 4, 2)), np.ones((4, 5, 2))), "4 x 5.*4 x 4"),
        (lambda: q2n(np.full((4, 4, 2), np.nan), np.ones((4, 4, 2))), "no bands"),
        (
            lambda: spatial_distortion(*(np.ones((12, 12, b)) for b in (3, 3, 2, 2))),
            "3 bands and 2",
        ),
        (
            lambda: spatial_distortion(*(np.ones((12, 12, b)) for b in (3, 3, 2, 2)), [0, 1, 2]),
            "2 sharp bands for each of 3",
        ),
    ],
)
def test_images_that_do_not_fit_are_refused(call, numbers):
    with pytest.raises(DataError, match=numbers):
        call()
