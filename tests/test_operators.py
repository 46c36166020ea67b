"""The operators against formulas written out, loops and SciPy, and the laws that they keep."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import io as scipy_io
from scipy import signal, special

from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats.kernels import read_psf, write_psf
from spectralift_cli.core.operators import PSFS
from spectralift_cli.core.operators.blur import Blur
from spectralift_cli.core.operators.degradation import MAX_HOLE_SHARE, Degradation
from spectralift_cli.core.operators.downsample import AreaMean
from spectralift_cli.core.operators.noise import noise_std, physical_noise, published_noise
from spectralift_cli.core.operators.psf import check_psf, make_psf
from spectralift_cli.core.operators.scaling import Scaling, percentiles

RNG = np.random.default_rng(5)


def loop_psf(name: str, s: float, n: int, protocol: str) -> np.ndarray:
    """A PSF, one pixel at a time, as reference.md writes it."""

    def value(x: int, y: int) -> float:
        r = math.sqrt(x * x + y * y)
        bessel = special.kv if protocol == "published" else special.jv
        z = 2.33811 * r / s
        return {
            "gaussian": lambda: math.exp(-(r**2) / (2 * s**2)),
            "kolmogorov": lambda: math.exp(-((r / s) ** (5 / 3))),
            "airy": lambda: 1.0 if r == 0 else (2 * bessel(1, z) / z) ** 2,
            "moffat": lambda: (1 + (r / s) ** 2) ** -3.5,
            "sinc": lambda: 1.0 if r == 0 else math.sin(math.pi * r / s) / (math.pi * r / s),
            "lorentzian2": lambda: 1 / (1 + (r / s) ** 4),
            "hermite": lambda: math.exp(-(r**2) / (2 * s**2)) * 2 * (r / s),
            "parabolic": lambda: max(0.0, 1 - (r / s) ** 2),
            "gabor": lambda: (
                math.exp(-(x**2 + 0.25 * y**2) / (2 * s**2)) * math.cos(2 * math.pi * x)
            ),
            "delta": lambda: float(r == 0),
        }[name]()

    kernel = np.array([[value(x, y) for x in range(-n, n + 1)] for y in range(-n, n + 1)])
    return kernel / kernel.sum()


@pytest.mark.parametrize("protocol", ["physical", "published"])
@pytest.mark.parametrize("name", PSFS)
def test_psf_is_its_formula(name: str, protocol: str) -> None:
    for sigma, n in ((3.4, 7), (0.8, 3)):
        kernel = make_psf(name, sigma, n, protocol)
        assert kernel.dtype == np.float64
        np.testing.assert_allclose(
            kernel, loop_psf(name, sigma, n, protocol), rtol=1e-9, atol=1e-15
        )


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (np.ones((3, 5)), "3 x 5"),
        (np.ones((4, 4)), "4 x 4"),
        (np.ones(9), "this array is 9"),
        (np.full((3, 3), np.nan), "9 of the PSF's 9"),
        (np.array([[0, 1, 0], [0, -1, 0], [0, 0, 0]]), "sum to 0"),
        (np.zeros((3, 3)), "sum to 0"),
    ],
)
def test_psf_that_cannot_be_normalised_is_refused(kernel: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match="PSF") as caught:
        check_psf(kernel, "k.csv")
    assert words in caught.value.message


def test_psf_of_one_pixel() -> None:
    assert make_psf("moffat", 2.0, 0).tolist() == [[1.0]]
    with pytest.raises(DataError, match="cannot be normalised"):
        make_psf("hermite", 2.0, 0)  # only the hole in its middle
    with pytest.raises(DataError, match="no PSF called"):
        make_psf("gausian", 2.0, 1)
    assert np.isfinite(check_psf(np.full((3, 3), 1e308), "huge")).all()


def test_psf_files(tmp_path: Path) -> None:
    kernel = make_psf("kolmogorov", 1.7, 4)
    path = write_psf(tmp_path / "psf.csv", kernel)
    assert np.abs(read_psf(path) - kernel).max() < 1e-17
    np.save(tmp_path / "k.npy", kernel * 7)
    scipy_io.savemat(tmp_path / "k.mat", {"psf": kernel * 3})
    for name in ("k.npy", "k.mat"):
        np.testing.assert_allclose(read_psf(tmp_path / name), kernel, rtol=1e-14)
    (tmp_path / "k.txt").write_text("# mine\n0 1 0\n1\t4 1\n0 1 0\n\n")
    assert read_psf(tmp_path / "k.txt")[1].tolist() == [0.125, 0.5, 0.125]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"1,2\n3,4\n", "2 x 2"),
        ("a.csv", b"1,2,3\n4,5\n", "row 2 has 2 numbers"),
        ("a.csv", b"1,x,3\n", "line 1"),
        ("a.csv", b"", "no numbers"),
        ("a.csv", b"\xff\xfe\x00", "not a text file"),
        ("a.csv", b"1,nan,1\n1,1,1\n1,1,1\n", "not finite"),
        ("a.csv", b"1\n" * 1100, "at most 1025"),
    ],
)
def test_psf_file_that_is_none(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_psf(tmp_path / name)
    assert words in caught.value.message


def test_psf_array_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such PSF"):
        read_psf(tmp_path / "missing.csv")
    np.save(tmp_path / "cube.npy", np.ones((3, 3, 2)))
    with pytest.raises(DataError, match="3 x 3 x 2"):
        read_psf(tmp_path / "cube.npy")
    np.save(tmp_path / "o.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(DataError):
        read_psf(tmp_path / "o.npy")


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 12), cols=st.integers(1, 12), n=st.integers(0, 9), seed=st.integers(0, 99)
)
def test_blur_is_scipys_convolution(rows: int, cols: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image, kernel = rng.random((rows, cols)), rng.random((2 * n + 1, 2 * n + 1))
    kernel /= kernel.sum()
    for boundary, scipys in (("zero", "fill"), ("reflect", "symm")):
        if boundary == "zero":
            expected = signal.convolve2d(image, kernel, mode="full", boundary=scipys)
            expected = expected[n : n + rows, n : n + cols]
        else:
            padded = np.pad(image, n, mode="symmetric")
            expected = signal.convolve2d(padded, kernel, mode="valid")
        np.testing.assert_allclose(Blur(kernel, boundary)(image), expected, atol=1e-12)


def loop_mean(image: np.ndarray, ratio: int, fractional: bool) -> np.ndarray:
    """Area means, one LR pixel at a time."""

    def weights(n: int, m: int, i: int) -> list[tuple[int, float]]:
        length = n / m if fractional else float(ratio)
        start, stop = i * length, (i + 1) * length
        pairs = [(p, min(p + 1, stop) - max(p, start)) for p in range(n)]
        return [(p, w / length) for p, w in pairs if w > 1e-9]

    (H, W), h, w = image.shape, image.shape[0] // ratio, image.shape[1] // ratio
    result = np.zeros((h, w))
    for i in range(h):
        for j in range(w):
            for p, a in weights(H, h, i):
                for q, b in weights(W, w, j):
                    result[i, j] += a * b * image[p, q]
    return result


@pytest.mark.parametrize("fractional", [False, True])
@pytest.mark.parametrize(
    ("shape", "ratio"), [((13, 17), 4), ((12, 8), 4), ((5, 9), 5), ((3, 3), 1)]
)
def test_area_mean_is_the_loop(shape: tuple[int, int], ratio: int, fractional: bool) -> None:
    image = RNG.random(shape)
    found = AreaMean(ratio, fractional)(image)
    np.testing.assert_allclose(found, loop_mean(image, ratio, fractional), atol=1e-14)


def test_area_mean_sizes() -> None:
    assert AreaMean(4, True).weights(307).shape == (76, 307)
    assert AreaMean(4, True).weights(145).shape == (36, 145)
    # where the ratio divides, both are the block mean, to the bit
    image = RNG.random((24, 16, 3))
    blocks = image.reshape(6, 4, 4, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(AreaMean(4)(image), blocks, rtol=1e-15)
    assert np.array_equal(AreaMean(4)(image), AreaMean(4, True)(image))
    with pytest.raises(DataError, match="ratio 8 is larger than the image's side of 7"):
        AreaMean(8)(np.ones((7, 9)))


_GAUSS, _SINC = make_psf("gaussian", 1.5, 3), make_psf("sinc", 2.0, 4)
_SKEW = check_psf(RNG.random((5, 5)), "random")
OPERATORS: dict[str, tuple[Callable[[Any], Any], Callable[[Any, tuple[int, int]], Any], bool]] = {}
for _label, _kernel in (("gauss", _GAUSS), ("sinc", _SINC), ("skew", _SKEW)):
    for _edge in ("reflect", "zero"):
        _blur = Blur(_kernel, _edge)
        OPERATORS[f"blur-{_label}-{_edge}"] = (
            _blur, lambda y, shape, b=_blur: b.adjoint(y), _edge == "reflect",
        )  # fmt: skip
        for _cut in (False, True):
            _all = Degradation(_blur, AreaMean(3, _cut))
            OPERATORS[f"degrade-{_label}-{_edge}-{_cut}"] = (_all, _all.adjoint, _edge == "reflect")
for _cut in (False, True):
    OPERATORS[f"mean-{_cut}"] = (AreaMean(3, _cut), AreaMean(3, _cut).adjoint, True)


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_laws(name: str) -> None:
    operator, adjoint, keeps_constants = OPERATORS[name]
    x, z = RNG.standard_normal((2, 11, 14, 2))
    image = operator(x)
    assert image.dtype == np.float64
    assert image.shape[2] == 2
    np.testing.assert_allclose(operator(2 * x - 3 * z), 2 * image - 3 * operator(z), atol=1e-12)
    if keeps_constants:
        np.testing.assert_allclose(operator(np.full(x.shape, 7.0)), 7.0, rtol=1e-12)
    single = operator(x.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, image, atol=2e-6)
    y = RNG.standard_normal(image.shape)
    back = adjoint(y, x.shape[:2])
    assert back.shape == x.shape
    assert np.vdot(image, y) == pytest.approx(np.vdot(x, back), rel=1e-11)
    # bands do not mix, and a transposed view is as good as a copy
    np.testing.assert_array_equal(operator(x[:, :, ::-1]), image[:, :, ::-1])


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(4, 40), ratio=st.integers(1, 4), n=st.integers(0, 6), height=st.integers(1, 30),
    fractional=st.booleans(), edge=st.sampled_from(["reflect", "zero"]), holes=st.booleans(),
)  # fmt: skip
def test_strips_are_the_whole(
    rows: int, ratio: int, n: int, height: int, fractional: bool, edge: str, holes: bool
) -> None:
    rng = np.random.default_rng(rows)
    values = rng.random((rows, 6, 2))
    if holes:
        values[rng.random(values.shape) < 0.05] = np.nan
    operator = Degradation(Blur(make_psf("gaussian", 2.0, n), edge), AreaMean(ratio, fractional))
    whole = operator(values)
    due = 0
    for lr_rows, hr_rows in operator.strips(rows, height):
        assert lr_rows.start == due
        part = operator.strip(values[hr_rows], lr_rows, hr_rows, rows)
        np.testing.assert_allclose(part, whole[lr_rows], atol=1e-12)
        due = lr_rows.stop
    assert due == len(whole)


@pytest.mark.parametrize("edge", ["reflect", "zero"])
def test_holes_are_left_out_of_the_weighted_mean(edge: str) -> None:
    values = RNG.random((12, 12, 2))
    values[2:8, 1:7, 0] = np.nan
    values[8, 9, :] = np.nan
    operator = Degradation(Blur(_GAUSS, edge), AreaMean(4))
    found = operator(values)

    def degrade(image: np.ndarray) -> np.ndarray:
        mode = "symmetric" if edge == "reflect" else "constant"
        blurred = signal.convolve2d(np.pad(image, 3, mode=mode), _GAUSS, mode="valid")
        return loop_mean(blurred, 4, False)

    for band in range(2):
        valid = ~np.isnan(values[:, :, band])
        whole, left = degrade(np.ones((12, 12))), degrade(valid.astype(float))
        expected = degrade(np.where(valid, values[:, :, band], 0)) * whole / left
        expected[1 - left / whole > MAX_HOLE_SHARE] = np.nan
        np.testing.assert_allclose(found[:, :, band], expected, atol=1e-12)
    assert np.isnan(found[:, :, 0]).any()
    assert np.isfinite(found[:, :, 1]).all()
    assert np.isnan(operator(np.full((12, 12, 1), np.nan))).all()
    if edge == "reflect":  # the mean of a constant with holes is the constant
        flat = np.where(np.isnan(values), np.nan, 0.3)
        np.testing.assert_allclose(operator(flat)[np.isfinite(found)], 0.3)


def test_noise_has_the_ratio_it_was_given() -> None:
    image = np.tile(RNG.random((300, 300, 1)).astype(np.float32), (1, 1, 2)) * [1, 10]
    image = image.astype(np.float32)
    for noisy in (
        physical_noise(image, 20.0, 3, 0),
        published_noise(image, 20.0, np.random.RandomState(3)),
    ):
        assert noisy.dtype == np.float32
        error = np.sqrt(np.mean((noisy.astype(float) - image) ** 2, axis=(0, 1)))
        np.testing.assert_allclose(error, np.sqrt(np.mean(image**2, axis=(0, 1))) / 10, rtol=0.02)
        assert abs(np.corrcoef((noisy - image).reshape(-1, 2).T)[0, 1]) < 0.02
    for snr in (math.nan, -math.inf):
        with pytest.raises(DataError, match="signal-to-noise"):
            noise_std(image, snr)


def test_published_noise_is_one_draw() -> None:
    a, b = RNG.random((1500, 300, 4), np.float32), RNG.random((3, 4, 2), np.float32)
    generator = np.random.RandomState(42)
    found = [published_noise(a, math.inf, generator), published_noise(b, 30.0, generator)]
    assert np.array_equal(found[0], a)
    again = np.random.RandomState(42)
    again.normal(size=a.shape)  # drawn although there is no noise
    std = np.sqrt(np.mean(b.astype(float) ** 2, axis=(0, 1)) / 10**3)
    np.testing.assert_allclose(found[1], b + again.normal(size=b.shape) * std, atol=1e-6)


def test_physical_noise_depends_on_seed_image_and_band() -> None:
    image = np.ones((40, 5, 3), np.float32)
    base = physical_noise(image, 10.0, 1, 0)
    assert not np.array_equal(base, physical_noise(image, 10.0, 2, 0))
    assert not np.array_equal(base, physical_noise(image, 10.0, 1, 1))
    assert np.array_equal(base[:, :, :2], physical_noise(image[:, :, :2], 10.0, 1, 0))
    assert np.array_equal(physical_noise(image, math.inf, 1, 0), image)
    image[0, 0] = np.nan
    holed = physical_noise(image, 10.0, 1, 0)
    assert np.isnan(holed).sum() == 3
    np.testing.assert_array_equal(holed[1:], base[1:])


@settings(deadline=None, max_examples=60)
@given(
    values=hnp.arrays(
        np.float32,
        st.integers(1, 60),
        elements=st.one_of(
            st.floats(-(2.0**100), 2.0**100, width=32),
            st.sampled_from([0.0, -0.0, 1.0, float("nan"), 1e-45]),
        ),
    ),
    percents=st.lists(st.floats(0, 100), min_size=1, max_size=3),
    cut=st.integers(1, 60),
)
def test_percentiles_are_numpys(values: np.ndarray, percents: list[float], cut: int) -> None:
    blocks = [values[i : i + cut] for i in range(0, values.size, cut)]
    valid = values[np.isfinite(values)].astype(np.float64)
    if not valid.size:
        with pytest.raises(DataError, match="no valid value"):
            percentiles(lambda: blocks, tuple(percents))
        return
    np.testing.assert_array_equal(
        percentiles(lambda: blocks, tuple(percents)), np.percentile(valid, percents)
    )


def test_scaling() -> None:
    counts = RNG.integers(0, 9000, (30, 20, 4)).astype(np.float32)
    scaling = Scaling.from_values(lambda: [counts])
    assert [scaling.lo, scaling.hi] == np.percentile(counts.astype(float), (1, 99)).tolist()
    assert scaling.apply(counts).max() > 1  # never clipped
    assert np.array_equal(np.rint(scaling.undo(scaling.apply(counts))), counts)
    exact = counts.astype(np.float64)
    np.testing.assert_allclose(scaling.undo(scaling.apply(exact)), exact, rtol=1e-14, atol=1e-11)
    weights = RNG.random((2, 4))
    weights /= weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(scaling.apply(exact) @ weights.T, scaling.apply(exact @ weights.T))

    ready = (counts / 9500).astype(np.float32)
    ready[0, 0] = 1.3  # beyond the 99th percentile
    assert Scaling.for_data(lambda: [ready], floating=True).is_identity
    assert Scaling().apply(ready).tobytes() == ready.tobytes()
    assert not Scaling.for_data(lambda: [ready * 2], floating=True).is_identity
    bits = (counts > 4500).astype(np.float32)
    assert Scaling.for_data(lambda: [bits], floating=False) == Scaling(0.0, 1.0)
    with pytest.raises(DataError, match="cannot be scaled"):
        Scaling.from_values(lambda: [np.ones(5, np.float32)])
