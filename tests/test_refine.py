"""Refinement: the operator and the solver against dense algebra, the gate, and what may not change."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectralift_cli.core.config import RefineConfig
from spectralift_cli.core.cube import Cube
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats import open_cube, write_cube
from spectralift_cli.core.observation import Observation
from spectralift_cli.core.operators.psf import make_psf
from spectralift_cli.core.placement import Placement
from spectralift_cli.core.refinement.gate import judge
from spectralift_cli.core.refinement.match import Pair, guess_psf, match
from spectralift_cli.core.refinement.msi_step import MsiStep
from spectralift_cli.core.refinement.optics import Optical, Optics
from spectralift_cli.core.refinement.outcome import RefineResult
from spectralift_cli.core.refinement.posterior import Gram, Prior
from spectralift_cli.core.refinement.refine import refine
from spectralift_cli.core.refinement.relation import Images, Relation
from spectralift_cli.core.refinement.signal import SignalSpace, multiply, noise_in_axes
from spectralift_cli.core.refinement.weights import weights
from spectralift_cli.core.sensors.response import Srf

optics_list = st.builds(
    lambda k, lr, scale, origin, seed, footprint: Optics(
        np.random.default_rng(seed).random((2 * k + 1, 2 * k + 1)),
        Placement(lr, (23, 26), scale, origin), footprint,
    ),
    st.integers(0, 3), st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.floats(1, 8.4), st.floats(1, 8.4)),
    st.tuples(st.floats(-5, 5), st.floats(-5, 5)), st.integers(0, 99), st.booleans(),
)  # fmt: skip


@given(optics_list, st.integers(1, 22))
@settings(deadline=None, max_examples=25)
def test_optics_by_rows_is_the_reference_operator_and_its_adjoint(optics: Optics, cut: int) -> None:
    rng = np.random.default_rng(1)
    reference = Observation(optics.psf, optics.placement, optics.includes_footprint, "zero")
    x = rng.normal(size=(23, 26, 3)).astype(np.float32)
    y = rng.normal(size=(*optics.placement.lr_shape, 3)).astype(np.float32)
    seeing = optics.seeing(3)
    for rows in (slice(cut, 23), slice(0, cut)):
        seeing.add(rows, x[rows])
    spread = np.concatenate([optics.spread(y, s) for s in (slice(0, cut), slice(cut, 23))])
    np.testing.assert_allclose(seeing.image, reference(x.astype(np.float64)), atol=2e-6)
    np.testing.assert_allclose(spread, reference.adjoint(y.astype(np.float64)), atol=2e-6)
    left = np.vdot(seeing.image.astype(np.float64), y)
    right = np.vdot(x.astype(np.float64), spread)
    assert abs(left - right) <= 1e-5 * np.linalg.norm(x) * np.linalg.norm(y)


@given(optics_list, st.integers(0, 99))
@settings(deadline=None, max_examples=15)
def test_the_gram_matrix_is_the_product_of_dense_operators(optics: Optics, seed: int) -> None:
    rng = np.random.default_rng(seed)
    h, w = optics.placement.lr_shape
    use = rng.random((h, w)) < 0.8
    use[0, 0] = True
    weight = rng.random((23, 26)).astype(np.float32)
    scale = rng.uniform(1, 1.01, (h, w)).astype(np.float32)
    dense = sum(np.kron(d.toarray(), e.toarray()) for d, e in optics.factors)
    dense = (scale.ravel()[:, None] * dense)[use.ravel()]
    expected = dense @ (weight.ravel()[:, None] * dense.T)
    gram = Gram(optics, weight, use, scale)
    np.testing.assert_allclose(gram.matrix.toarray(), expected, atol=1e-6)
    variances = np.array([0.0, 0.3, 40.0, 9000.0])
    right = rng.normal(size=(int(use.sum()), 4)).astype(np.float32)
    solved, _ = gram.solve(variances, right)
    for k, s in enumerate(variances):
        direct = np.linalg.solve(s * expected + np.eye(len(expected)), right[:, k])
        np.testing.assert_allclose(solved[:, k], direct, atol=1e-4 * np.abs(right).max())


def test_the_posterior_is_that_of_one_dense_solve() -> None:
    """12 x 12 pixels, 5 coefficients, a non-integer ratio: all unknowns in one linear system."""
    rng = np.random.default_rng(5)
    count, msi_bands = 5, 2
    placement = Placement((4, 5), (12, 12), (2.8, 2.3), (0.4, 0.2))
    optics = Optics(make_psf("gaussian", 1.1, 2), placement)
    use = Optics.whole(optics.share())
    assert 4 <= use.sum() < use.size
    response = rng.normal(size=(count, msi_bands))
    msi_noise = np.array([0.3, 0.7])
    root = rng.normal(size=(count, count))
    noise = np.diag(rng.uniform(1, 3, count)) + 0.2 * np.outer(root[0], root[0])
    prior = Prior(root @ root.T, response, msi_noise, noise)
    ones = np.ones(count)
    space = SignalSpace(0 * ones, ones, ones, np.eye(count), ones)
    step = MsiStep.of(prior, space, response.T, 1.0)
    d = rng.normal(size=(int(use.sum()), count)).astype(np.float32)
    m = 0.1 * rng.normal(size=(12, 12, msi_bands)).astype(np.float32)

    findings = step.find(m, np.ones((12, 12), np.float32))
    assert not step.beyond(findings).any()
    first = step.within(findings)
    variances, into, out_of = prior.left()
    gram = Gram(optics, np.ones((12, 12), np.float32), use, np.ones((4, 5), np.float32))
    rest = (d - optics.see(first)[use]) @ into
    v = np.zeros((4, 5, count), np.float32)
    v[use] = gram.solve(variances, rest.astype(np.float32))[0] * variances
    found = first + optics.spread(v, slice(0, 12)) @ out_of

    a = sum(np.kron(x.toarray(), y.toarray()) for x, y in optics.factors)[use.ravel()]
    eye, sure = np.eye(144), np.linalg.inv(noise)
    quiet = np.diag(1 / msi_noise**2)
    precision = (
        np.kron(a.T @ a, sure) + np.kron(eye, response @ quiet @ response.T)
        + np.kron(eye, np.linalg.inv(prior.covariance))
    )  # fmt: skip
    right = np.kron(a.T, sure) @ d.ravel() + np.kron(eye, response @ quiet) @ m.ravel()
    direct = np.linalg.solve(precision, right).reshape(12, 12, count)
    assert np.abs(found - direct).max() <= 1e-4 * np.abs(direct).max()


def test_an_error_that_no_lr_pixel_showed_follows_the_msi_smoothly() -> None:
    """Two pixels: one as far off as the prior expects, one 30 % brighter than the estimate in all bands."""
    rng = np.random.default_rng(3)
    bands, count = 40, 4
    rms = rng.uniform(0.5, 2, bands)
    srf = np.kron(np.eye(4), np.full((1, 10), 0.1))
    basis = np.linalg.qr(rng.normal(size=(bands, count)))[0]
    space = SignalSpace(np.zeros(bands), 0.01 * rms, rms, basis, np.ones(count))
    prior = Prior(np.eye(count), space.response(srf), np.full(4, 1e-3), np.eye(count))
    step = MsiStep.of(prior, space, srf, 1.0)
    residual = np.stack([prior.response[0] / 4, 0.3 * srf @ rms])[None].astype(np.float32)
    findings = step.find(residual, np.ones((1, 2), np.float32))
    near, far = step.beyond(findings)[0]
    assert not near.any()
    np.testing.assert_allclose(far, 0.3 * rms, rtol=0.05)
    added = space.spectra(step.within(findings)) + step.beyond(findings)
    assert np.abs(residual - added @ srf.T).max() < 2e-3
    np.testing.assert_allclose(
        step.coefficients(findings), space.coefficients(added.astype(np.float32)), atol=1e-3
    )


@pytest.mark.parametrize("pixels", [80, 400])
def test_axes_found_in_noisy_data_lean_towards_its_noise(pixels: int) -> None:
    """Against a simulation: the noise's own power along axes from strong to hardly seen."""
    rng = np.random.default_rng(pixels)
    bands = 160
    strength = np.array([900.0, 30.0, 9.0, 4.0])
    direction = np.linalg.qr(rng.normal(size=(bands, 4)))[0]
    found, expected = [], []
    for _ in range(20):
        noise = rng.normal(size=(bands, pixels))
        seen = direction @ (np.sqrt(strength)[:, None] * rng.normal(size=(4, pixels))) + noise
        values, axes = np.linalg.eigh(seen @ seen.T / pixels)
        values, axes = values[:-6:-1], axes[:, :-6:-1]
        found.append(np.square(axes.T @ noise).mean(axis=1))
        expected.append(noise_in_axes(values, bands / pixels))
    np.testing.assert_allclose(np.mean(expected, axis=0), np.mean(found, axis=0), rtol=0.12)
    assert np.mean(expected, axis=0)[0] == pytest.approx(1, abs=0.02)
    assert np.mean(expected, axis=0)[-1] > 2


def test_noise_and_signal_are_told_apart() -> None:
    rng = np.random.default_rng(2)
    pixels, bands = 900, 40
    spectra = rng.gamma(2, size=(pixels, 4)) @ rng.random((4, bands)) * 300
    noise = np.linspace(1, 4, bands)
    seen = spectra + noise * rng.normal(size=spectra.shape)
    space = SignalSpace.of(seen.sum(axis=0), seen.T @ seen, pixels)
    assert space.components == 4
    np.testing.assert_allclose(space.noise_std, noise, rtol=0.15)
    coefficients = space.coefficients(seen.astype(np.float32))
    back = space.spectra(coefficients) + space.mean
    assert np.abs(back - spectra).std() < 0.6 * np.abs(seen - spectra).std()


def scene(
    seed: int, sigma: float = 2.0, ratio: int = 4, size: int = 72
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return ground truth, LR-HSI, HR-MSI, SRF and PSF of patches with smooth mixtures."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    bands, parts = 24, 4
    fields = np.stack([gaussian_filter(rng.normal(size=(size, size)), s) for s in (1, 2, 3, 5)], 2)
    share = np.exp(3 * fields / fields.std(axis=(0, 1)))
    share /= share.sum(axis=2, keepdims=True)
    spectra = gaussian_filter(rng.random((parts, bands)), (0, 2)) * np.array([[0.2, 0.6, 1, 1.4]]).T
    truth = share @ spectra
    srf = np.kron(np.eye(3), np.full((1, bands // 3), 3 / bands))
    psf = make_psf("gaussian", sigma, 6)
    placement = Placement((size // ratio,) * 2, (size, size), (ratio, ratio))
    lr = Observation(psf, placement)(truth)
    lr += 0.003 * rng.normal(size=lr.shape)
    msi = truth @ srf.T
    msi += 0.002 * rng.normal(size=msi.shape)
    return truth, lr.astype(np.float32), msi.astype(np.float32), srf, psf


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Return the norm of the difference of two kernels, whatever their sizes."""
    size = max(len(one), len(other))
    padded = [np.pad(k / k.sum(), (size - len(k)) // 2) for k in (one, other)]
    return float(np.linalg.norm(padded[0] - padded[1]))


@pytest.mark.parametrize("given_psf", ["true", "narrow", "moved", "none"])
def test_the_psf_is_corrected_by_the_images(given_psf: str) -> None:
    _, lr, msi, srf, psf = scene(3)
    lr_msi = (lr @ srf.T).astype(np.float32)
    placement = Placement((18, 18), (72, 72), (4, 4))
    noise = np.full(3, 0.003 / np.sqrt(8))
    images = Pair(lr_msi, np.ones((18, 18), bool), msi, noise, np.full(3, 0.002), placement)
    start = {
        "true": psf, "narrow": make_psf("gaussian", 1.3, 6), "moved": np.roll(psf, 1, 0),
        "none": None,
    }[given_psf]  # fmt: skip
    if start is None:
        start = guess_psf(images)
    found = match(images, start)
    assert (found.steps == 0) == (given_psf == "true")
    if given_psf != "true":
        assert found.before > 20 * found.after
        assert distance(found.psf, psf) < 0.4 * distance(start, psf)
    assert distance(found.psf, psf) < 0.3 * np.linalg.norm(psf)
    left_alone = match(images, start, correct=False)
    assert left_alone.steps == 0
    assert left_alone.psf is start


def test_the_gate_drops_what_noise_asks_for_and_keeps_what_predicts() -> None:
    rng = np.random.default_rng(0)
    placement = Placement((20, 20), (80, 80), (4, 4))
    optics = Optics(make_psf("gaussian", 3.4, 7), placement)
    use = Optics.whole(optics.share())
    gram = Gram(optics, np.ones((80, 80), np.float32), use, np.ones((20, 20), np.float32))
    variances = np.full(3, 300.0)
    noise = rng.normal(size=(int(use.sum()), 3)).astype(np.float32)
    nothing = np.zeros_like(noise)
    dropped = judge(gram, variances, noise, nothing)
    assert dropped.decision == "drop"
    assert dropped.factor == 0
    real = optics.see(20 * rng.normal(size=(80, 80, 3)).astype(np.float32))[use]
    kept = judge(gram, variances, real + noise, nothing)
    assert kept.decision == "keep"
    assert kept.gain > 10 * kept.gain_std
    too_much = judge(gram, variances, real + noise, 4 * real)
    assert too_much.decision == "damp"
    assert 0 < too_much.factor < 0.9


def test_weights_follow_light_and_contrast_and_have_mean_one() -> None:
    bright = np.tile(np.array([[0.0, 1.0, 4.0]], np.float32), (3, 1))
    varied = np.ones((3, 3), np.float32)
    valid = np.array([[True, True, True], [True, True, True], [True, True, False]])
    found = weights(bright, varied, valid)
    assert found[valid].mean() == pytest.approx(1, abs=1e-6)
    assert found[0, 0] < found[0, 1] < found[0, 2]
    assert found[0, 0] > 0
    assert found[2, 2] == 1


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene with an estimate whose spectra are off where two of its parts are."""
    folder = tmp_path_factory.mktemp("refine")
    truth, lr, msi, srf, psf = scene(1)
    rng = np.random.default_rng(4)
    from scipy.ndimage import gaussian_filter

    drift = gaussian_filter(rng.normal(size=truth.shape), (5, 5, 3))
    off = 0.12 * drift / drift.std() * truth
    off -= (off @ srf.T) @ np.linalg.pinv(srf.T)  # what the MSI sees of it is right already
    for name, values in (("truth", truth), ("lr", lr), ("msi", msi), ("estimate", truth + off)):
        write_cube(folder / f"{name}.npy", Cube.of(values.astype(np.float32)))
    np.savetxt(folder / "srf.csv", srf, delimiter=",")
    np.savetxt(folder / "psf.csv", psf, delimiter=",")
    return folder


def run(
    files: Path, output: Path, estimate: Path | None = None, psf: np.ndarray | None = None,
    origin_px: tuple[float, float] = (0.0, 0.0), **more: object,
) -> RefineResult:  # fmt: skip
    config = RefineConfig(**{k: v for k, v in more.items() if k in RefineConfig.__annotations__})  # type: ignore[arg-type]
    rest = {k: v for k, v in more.items() if k not in RefineConfig.__annotations__}
    srf = Srf(np.loadtxt(files / "srf.csv", delimiter=","), ("a", "b", "c"))
    kernel = np.loadtxt(files / "psf.csv", delimiter=",") if psf is None else psf
    with (
        open_cube(estimate or files / "estimate.npy") as cube, open_cube(files / "lr.npy") as lr,
        open_cube(files / "msi.npy") as msi,
    ):  # fmt: skip
        placement = Placement((18, 18), (72, 72), (4.0, 4.0), origin_px)
        return refine(
            Images(cube, lr, msi, Relation(srf, placement, Optical(kernel))), output, config, **rest  # type: ignore[arg-type]
        )  # fmt: skip


def error(files: Path, cube: Path) -> float:
    with open_cube(files / "truth.npy") as truth, open_cube(cube) as found:
        return float(np.sqrt(np.nanmean((found.read_units() - truth.read()) ** 2)))


def test_a_wrong_estimate_gets_right_and_agrees_with_both_images(
    files: Path, tmp_path: Path
) -> None:
    result = run(files, tmp_path / "out.npy")
    assert result.verdict.decision == "keep"
    assert result.after.lr < 1.1 < result.before.lr
    assert result.raised == 1
    assert result.after.msi < 1.1
    assert error(files, tmp_path / "out.npy") < 0.8 * error(files, files / "estimate.npy")


def test_strength_is_raised_until_the_lr_hsi_is_met(files: Path, tmp_path: Path) -> None:
    weak = run(files, tmp_path / "weak.npy", strength=0.25)
    assert weak.raised in (2, 4, 8)
    assert weak.after.lr <= 1.1
    as_much = run(files, tmp_path / "as_much.npy", strength=0.25 * weak.raised)
    assert as_much.raised == 1
    np.testing.assert_allclose(
        np.load(tmp_path / "weak.npy"), np.load(tmp_path / "as_much.npy"), atol=1e-6
    )


def test_a_kernel_kept_against_the_images_is_judged_by_the_msi(files: Path, tmp_path: Path) -> None:
    """Held-out LR pixels see through the same box, the HR-MSI does not."""
    from scipy.ndimage import gaussian_filter

    with open_cube(files / "truth.npy") as truth:
        soft = gaussian_filter(truth.read(), (1.5, 1.5, 0))
    write_cube(tmp_path / "soft.npy", Cube.of(soft))
    box = {"psf": np.ones((3, 3)), "estimate": tmp_path / "soft.npy"}
    with pytest.warns(UserWarning, match="without --trust-psf, leaves"):
        result = run(files, tmp_path / "out.npy", trust_psf=True, **box)
    assert result.verdict.msi_share is not None
    assert result.verdict.factor <= max(result.verdict.msi_share, 0)
    assert "bears out" in str(result.verdict)
    assert result.after.msi <= result.before.msi
    with pytest.warns(UserWarning, match="; corrected"):
        free = run(files, tmp_path / "free.npy", **box)
    assert free.verdict.msi_share is None


@pytest.mark.parametrize("wrong", ["narrow", "wide", "moved", "box", "pair"])
def test_a_wrong_psf_or_registration_does_no_harm(files: Path, tmp_path: Path, wrong: str) -> None:
    psf = np.loadtxt(files / "psf.csv", delimiter=",")
    given_psf = {
        "narrow": make_psf("gaussian", 1.4, 6), "wide": make_psf("gaussian", 2.6, 6),
        "moved": np.roll(psf, 1, 1), "box": np.ones((3, 3)), "pair": psf,
    }[wrong]  # fmt: skip
    origin = (2.0, 2.0) if wrong == "pair" else (0.0, 0.0)
    before = error(files, files / "estimate.npy")
    for trust in (False, True):
        with pytest.warns(UserWarning, match="times the noise's power"):
            run(files, tmp_path / "out.npy", psf=given_psf, origin_px=origin, trust_psf=trust,
                overwrite=True)  # fmt: skip
        assert error(files, tmp_path / "out.npy") <= before * 10 ** (0.1 / 20)


def test_bytes_do_not_depend_on_memory(files: Path, tmp_path: Path) -> None:
    """Held in memory or read again for every pass: no tiles, no seams, the same sums."""
    for name, memory in (("held.npy", 10**9), ("read.npy", 1000)):
        run(files, tmp_path / name, memory_bytes=memory)
    assert (tmp_path / "held.npy").read_bytes() == (tmp_path / "read.npy").read_bytes()


def test_blocks_of_rows_do_not_show(files: Path, tmp_path: Path) -> None:
    """Small blocks change the order of sums alone."""
    from spectralift_cli.core.refinement import images

    run(files, tmp_path / "one.npy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "_BLOCK_VALUES", 72 * 24 * 24)
        run(files, tmp_path / "three.npy")
    one, three = (np.load(tmp_path / f"{name}.npy") for name in ("one", "three"))
    assert np.abs(one - three).max() < 1e-3 * np.ptp(one)


def test_holes_integers_and_georeference_stay(files: Path, tmp_path: Path) -> None:
    with open_cube(files / "estimate.npy") as cube:
        stored = np.rint(cube.read() * 10_000).astype(np.int16)
    hole = np.zeros((72, 72), bool)
    hole[30:33, 40:42] = True
    stored[hole] = -1
    meta = Cube.of(
        stored, scale=1e-4, nodata=-1, transform=(5.0, 0, 300, 0, -5.0, 900),
        wavelengths_nm=np.linspace(400, 900, 24),
    )  # fmt: skip
    write_cube(tmp_path / "in.tif", meta)
    result = run(files, tmp_path / "out.tif", estimate=tmp_path / "in.tif")
    with open_cube(tmp_path / "out.tif") as out, open_cube(tmp_path / "in.tif") as source:
        assert dataclasses.replace(out.meta, provenance=None).dtype == np.int16
        assert (out.meta.scale, out.meta.nodata, out.meta.transform) == (
            source.meta.scale, source.meta.nodata, source.meta.transform
        )  # fmt: skip
        values = out.read()
    assert (values[hole] == -1).all()
    assert (values[~hole] != -1).all()
    assert result.holes == 6
    assert error(files, tmp_path / "out.tif") < 0.8 * error(files, files / "estimate.npy")


def test_what_noise_alone_suggests_is_dropped_and_the_cube_copied(
    files: Path, tmp_path: Path
) -> None:
    result = run(files, tmp_path / "out.npy", estimate=files / "truth.npy")
    if result.verdict.decision == "drop":
        assert (tmp_path / "out.npy").read_bytes()[128:] == (files / "truth.npy").read_bytes()[128:]
    assert error(files, tmp_path / "out.npy") < 2e-3


def test_images_that_do_not_belong_together_are_refused(files: Path, tmp_path: Path) -> None:
    with open_cube(files / "estimate.npy") as cube:
        small = Cube.of(cube.read()[:-4])
        few = Cube.of(cube.read()[:, :, :-1])
        empty = Cube.of(np.full_like(cube.read(), np.nan))
    for values, message in (
        (small, "68 x 72 pixels"), (few, "23 bands"), (empty, "no band with values")
    ):  # fmt: skip
        write_cube(tmp_path / "in.npy", values, overwrite=True)
        with pytest.raises(DataError, match=message):
            run(files, tmp_path / "out.npy", estimate=tmp_path / "in.npy")
    with pytest.raises(DataError, match="wider than the image"):
        run(files, tmp_path / "out.npy", psf=np.ones((91, 91)))
    with pytest.raises(DataError, match="lies wholly in"):
        run(files, tmp_path / "out.npy", origin_px=(70.0, 0.0))
    assert not list(tmp_path.glob("out*"))


def test_products_do_not_depend_on_how_rows_are_cut() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(50, 7, 33)).astype(np.float32)
    matrix = rng.normal(size=(33, 6)).astype(np.float32)
    np.testing.assert_allclose(multiply(values, matrix), values @ matrix, atol=1e-5)
