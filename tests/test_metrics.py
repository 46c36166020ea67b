"""Metrics against scikit-image, torchmetrics, sewar 0.4.6 and explicit loops."""

from __future__ import annotations

import csv
import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectralift_cli.core.config import MetricsConfig
from spectralift_cli.core.cube import Cube
from spectralift_cli.core.cubeio import CubeReader
from spectralift_cli.core.errors import DataError, OptionError, SpectraliftWarning
from spectralift_cli.core.metrics import METRICS, parse_checks
from spectralift_cli.core.metrics import evaluate as evaluate_module
from spectralift_cli.core.metrics.evaluate import evaluate, per_band_csv


class MemoryReader(CubeReader):
    def __init__(self, cube: Cube, block_rows: int | None = None) -> None:
        super().__init__(Path("memory"), cube.meta)
        self.values = cube.values
        self.block_rows = block_rows or self.block_rows

    def _read(self, start, stop):
        return self.values[start:stop]

    def close(self):
        pass


def score(x, y, block_rows=None, **config):
    x, y = (v if isinstance(v, Cube) else Cube.of(np.asarray(v)) for v in (x, y))
    return evaluate(
        MemoryReader(x, block_rows), MemoryReader(y, block_rows), MetricsConfig(**config)
    )


def images(shape=(33, 29, 5), seed=0, noise=0.05):
    """Smooth images in [0, 1], brighter from band to band, and a noisy copy."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[: shape[0], : shape[1]]
    phase = rng.uniform(0, 6, (shape[2], 2))
    waves = [np.sin(rows / 5 + a) * np.cos(cols / 4 + b) for a, b in phase]
    x = np.stack(waves, axis=2) * 0.3 + np.linspace(0.35, 0.65, shape[2])
    return x, np.clip(x + rng.normal(0, noise, shape), 0, 1)


def test_standard_psnr_and_ssim_are_scikit_images():
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    x, y = images()
    for factor, data_range in ((1, None), (1, 0.5), (10_000, None)):
        a, b = x * factor, y * factor
        found = score(a, b, data_range=data_range)
        stated = data_range or (1.0 if factor == 1 else a.max() - a.min())
        assert found.conventions["data_range"] == pytest.approx(stated, rel=1e-15)
        expected = peak_signal_noise_ratio(a, b, data_range=stated)
        assert found.values["psnr"] == pytest.approx(expected, rel=1e-12)
        ssim = structural_similarity(
            a, b, data_range=stated, channel_axis=2,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )  # fmt: skip
        assert found.values["ssim"] == pytest.approx(ssim, rel=1e-10)
        bands = [peak_signal_noise_ratio(a[..., i], b[..., i], data_range=stated) for i in range(5)]
        np.testing.assert_allclose(found.per_band["psnr"], bands, rtol=1e-12)
        assert found.values["mpsnr"] == pytest.approx(np.mean(bands), rel=1e-12)


def test_standard_sam_ergas_and_rmse_are_torchmetrics():
    import torch
    from torchmetrics.functional import image as tm

    x, y = images()
    found = score(x, y, ratio=8)
    a, b = (torch.from_numpy(v.transpose(2, 0, 1)[None].copy()) for v in (x, y))
    sam = math.degrees(float(tm.spectral_angle_mapper(b, a)))
    assert found.values["sam"] == pytest.approx(sam, rel=1e-9)
    # torchmetrics' ratio multiplies in some versions and divides in others: 1 means the same
    ergas = float(tm.error_relative_global_dimensionless_synthesis(b, a, ratio=1)) / 8
    assert found.values["ergas"] == pytest.approx(ergas, rel=1e-9)
    rmse = float(torch.nn.functional.mse_loss(b, a)) ** 0.5
    assert found.values["rmse"] == pytest.approx(rmse, rel=1e-12)


def q_by_loop(x, y):
    """Wang and Bovik's Q over every 8 x 8 window, each by its own mean and covariance."""
    found = []
    for r in range(x.shape[0] - 7):
        for c in range(x.shape[1] - 7):
            a, b = x[r : r + 8, c : c + 8].ravel(), y[r : r + 8, c : c + 8].ravel()
            (vx, cxy), (_, vy) = np.cov(a, b, bias=True)
            means = a.mean() ** 2 + b.mean() ** 2
            if vx + vy == 0:
                found.append(2 * a.mean() * b.mean() / means)
            else:
                found.append(4 * cxy * a.mean() * b.mean() / ((vx + vy) * means))
    return np.mean(found)


def test_standard_uiqi_cc_and_mae_by_loops():
    x, y = images((20, 17, 3))
    x[:9, :9, 1] = 0.25  # windows where both are flat
    y[:9, :9, 1] = 0.75
    found = score(x, y)
    bands = [q_by_loop(x[..., i], y[..., i]) for i in range(3)]
    np.testing.assert_allclose(found.per_band["uiqi"], bands, rtol=1e-9)
    correlations = [np.corrcoef(x[..., i].ravel(), y[..., i].ravel())[0, 1] for i in range(3)]
    np.testing.assert_allclose(found.per_band["cc"], correlations, rtol=1e-12)
    assert found.values["cc"] == pytest.approx(np.mean(correlations), rel=1e-12)
    assert found.values["mae"] == pytest.approx(np.abs(x - y).mean(), rel=1e-12)


def sewar_scores(x, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports names that SciPy has deprecated
        from sewar import full_ref

        a, b = ((v * 255).astype(np.uint8) for v in (x, y))
        return {
            "psnr": full_ref.psnr(a, b),
            "ssim": full_ref.ssim(a, b)[0],
            "uiqi": full_ref.uqi(x, y),
            "ergas": full_ref.ergas(x, y),
            "sam_bands": full_ref.sam(x, y),
            "rmse": full_ref.rmse(x, y),
        }


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("shape", [(33, 29, 5), (11, 40, 2), (64, 13, 1)])
def test_published_scores_are_sewars(shape, dtype):
    x, y = (v.astype(dtype) for v in images(shape))
    # 8-bit data kept as k/255: truncation must follow the array's own arithmetic
    x[:5] = np.round(x[:5].astype(np.float64) * 255) / 255
    expected = sewar_scores(x, y)
    found = score(x, y, mode="published").values
    assert set(found) == {*expected, "sam"}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-9 if name != "uiqi" else 1e-6), name


def test_published_sam_is_the_mean_angle_of_pixels_in_degrees():
    x, y = images()
    angles = [
        np.degrees(np.arccos(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)))
        for a, b in zip(x.reshape(-1, 5), y.reshape(-1, 5), strict=True)
    ]
    assert score(x, y, mode="published").values["sam"] == pytest.approx(np.mean(angles), rel=1e-9)


def test_published_uiqi_of_independent_noise_is_far_from_zero():
    rng = np.random.default_rng(0)
    x, y = rng.random((2, 64, 64, 1))
    assert score(x, y, mode="published").values["uiqi"] == pytest.approx(0.74, abs=0.02)
    assert abs(score(x, y).values["uiqi"]) < 0.02


def test_published_mode_says_what_it_clips():
    x, y = images()
    with pytest.warns(SpectraliftWarning, match=r"2 of 9,570 values were clipped"):
        y[0, 0, :2] = 1.5, -0.5
        score(x, y, mode="published")


@given(
    shape=st.tuples(st.integers(1, 30), st.integers(1, 14), st.integers(1, 3)),
    block_rows=st.integers(1, 31),
    block_values=st.integers(1, 2000),
    mode=st.sampled_from(["standard", "published"]),
    holes=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_scores_do_not_depend_on_the_blocks(shape, block_rows, block_values, mode, holes):
    x, y = images(shape, seed=sum(shape))
    if holes:
        x[shape[0] // 2, shape[1] // 3] = np.nan
        y[0, 0, 0] = np.nan
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore", SpectraliftWarning)
        try:
            whole = score(x, y, shape[0], mode=mode)
        except DataError:
            return  # every pixel was a hole
        patch.setattr(evaluate_module, "_BLOCK_VALUES", block_values)
        parts = score(x, y, block_rows, mode=mode)
    assert json.dumps(parts.to_json()) == json.dumps(whole.to_json())
    for name, values in whole.per_band.items():
        np.testing.assert_array_equal(parts.per_band[name], values, err_msg=name)


def test_holes_of_either_cube_count_for_neither():
    x, y = images()
    holes = np.zeros(x.shape, bool)
    holes[12, 7] = True  # a whole pixel
    holes[20, 20, 1] = True  # one band of a pixel
    clean = ~holes
    stored = np.where(holes, -999, np.round(x * 10_000)).astype(np.int16)
    x = stored * 1e-4
    x[12, 7] = np.nan
    y[20, 20, 1] = np.inf
    truth = Cube.of(np.where(clean, stored, -999), nodata=-999, scale=1e-4)
    found = score(truth, y, data_range=1)
    error = (x - y)[clean]
    assert found.values["rmse"] == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-12)
    kept = clean[..., 1]
    expected = np.corrcoef(x[..., 1][kept], y[..., 1][kept])[0, 1]
    assert found.per_band["cc"][1] == pytest.approx(expected, rel=1e-12)
    assert (found.pixels, found.valid_pixels) == (33 * 29, 33 * 29 - 1)
    # windows that touch a hole are left out: the 8 x 8 ones of band 1
    inside = [
        q_by_loop(x[r : r + 8, c : c + 8, 1], y[r : r + 8, c : c + 8, 1])
        for r in range(26)
        for c in range(22)
        if kept[r : r + 8, c : c + 8].all()
    ]
    assert found.per_band["uiqi"][1] == pytest.approx(np.mean(inside), rel=1e-9)


def test_a_band_without_values_is_left_out_and_named():
    x, y = images()
    x[..., 2] = np.nan
    with pytest.warns(SpectraliftWarning, match="1 of 5 bands have no value"):
        found = score(x, y)
    rest = [0, 1, 3, 4]
    expected = score(x[..., rest], y[..., rest])
    for name, value in expected.values.items():
        assert found.values[name] == pytest.approx(value, rel=1e-12), name
    assert np.isnan(found.per_band["rmse"][2])


def test_a_large_offset_costs_no_digits():
    x, y = images()
    near, far = score(x, y), score(x + 1e7, y + 1e7, data_range=1)
    assert far.values["cc"] == pytest.approx(near.values["cc"], rel=1e-6)
    assert score(x, x).values["sam"] == 0


def test_what_is_undefined_is_null_with_a_note():
    x, y = images()
    same = score(x, x).to_json()
    assert same["psnr_db"] is None
    assert "identical" in same["psnr_db_note"]
    assert same["rmse"] == 0
    assert same["ssim"] == same["cc"] == pytest.approx(1)
    constant = score(np.full_like(x, 5), y).to_json()
    assert constant["psnr_db"] is constant["ssim"] is constant["data_range"] is constant["cc"]
    assert "--data-range" in constant["psnr_db_note"]
    assert "constant" in constant["cc_note"]
    small = score(x[:6], y[:6]).to_json()
    assert small["ssim"] is None
    assert "6 x 29 pixels has no 11 x 11 window" in small["ssim_note"]
    dark = x.copy()
    dark[3, 4] = 0
    dark[..., 1] = 0
    zero = score(dark, y).to_json()
    assert zero["ergas"] is None
    assert "band 2" in zero["ergas_note"]
    assert "1 pixels" in zero["sam_deg_note"]
    assert zero["sam_pixels"] == 33 * 29 - 1
    for fields in (same, constant, small, zero):
        json.dumps(fields, allow_nan=False)


def test_cubes_that_cannot_be_compared_are_refused():
    x, y = images()
    with pytest.raises(DataError, match=r"33 x 29 x 5 .* 32 x 29 x 5"):
        score(x, y[1:])
    with pytest.raises(DataError, match="none of the 957 pixels"):
        score(np.full_like(x, np.nan), y)


def test_every_row_of_the_table_is_scored_in_its_modes():
    x, y = images()
    for mode in ("standard", "published"):
        found = score(x, y, mode=mode)
        names = [name for name, row in METRICS.items() if mode in row.modes]
        assert list(found.values) == names
        assert {METRICS[name].key for name in names} <= set(found.to_json())
        worse = score(x, np.clip(y + 0.1 * np.sin(np.arange(5)), 0, 1), mode=mode)
        for name in names:
            if name != "cc":  # which no offset changes
                gain = found.values[name] - worse.values[name]
                assert (gain > 0) == (METRICS[name].better == "higher"), name


def test_progress_reaches_its_total():
    x, y = (MemoryReader(Cube.of(v), 7) for v in images())
    steps: list[tuple[int, int]] = []
    evaluate(x, y, MetricsConfig(), lambda done, total: steps.append((done, total)))
    assert steps[-1] == (66, 66)
    assert steps == sorted(steps)


def test_per_band_csv_holds_every_band():
    x, y = images()
    y[..., 0] = x[..., 0]
    x[..., 1] = 0.5
    with_nm = list(csv.DictReader(per_band_csv(score(x, y), np.linspace(400, 800, 5)).splitlines()))
    assert [row["wavelength_nm"] for row in with_nm] == [
        "400.0",
        "500.0",
        "600.0",
        "700.0",
        "800.0",
    ]
    assert with_nm[0]["psnr_db"] == "inf"
    assert with_nm[1]["cc"] == ""
    assert float(with_nm[2]["rmse"]) == score(x, y).per_band["rmse"][2]
    assert "wavelength_nm" not in per_band_csv(score(x, y), None)


def test_checks():
    x, y = images()
    found = score(x, y)
    under = parse_checks(["psnr=10", "ssim = 0.99"], "under")
    over = parse_checks(["sam_deg=90", "rmse=0.001"], "over")
    first, second = found.failures(under + over)
    assert first.startswith("ssim is ")
    assert first.endswith("below 0.99")
    assert second.endswith("above 0.001")
    assert score(x, x).failures(parse_checks(["psnr=100"], "under")) == []
    undefined = score(np.full_like(x, 5), y).failures(parse_checks(["psnr=1"], "under"))
    assert undefined == ["psnr_db is undefined, below 1"]


@pytest.mark.parametrize(
    ("text", "option", "mode", "message", "hint"),
    [
        ("sam=3", "under", "standard", "lower sam is better", "--fail-over sam=3"),
        ("psnr=3", "over", "standard", "higher psnr is better", "--fail-under psnr=3"),
        ("pnsr=3", "under", "standard", "no metric 'pnsr'", "did you mean psnr?"),
        ("zzzzzz=3", "under", "standard", "no metric", "known metrics: psnr"),
        ("psnr", "under", "standard", "not a metric and a number", "psnr=30"),
        ("psnr=nan", "under", "standard", "not a metric and a number", "psnr=30"),
        ("sam=x", "over", "standard", "not a metric and a number", "sam=3"),
        ("mae=1", "over", "published", "mode published has no mae", "it has psnr"),
    ],
)
def test_checks_that_make_no_sense(text, option, mode, message, hint):
    with pytest.raises(OptionError, match=message) as caught:
        parse_checks([text], option, mode)
    assert hint in caught.value.hint
