"""What tells an unfit MSI: its levels, its bands; and the line that brings it into radiometry."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectralift_cli.core.cube import Cube, CubeMeta
from spectralift_cli.core.errors import DataError, SpectraliftWarning
from spectralift_cli.core.formats import open_cube, write_cube
from spectralift_cli.core.levels import check_levels, levels_of, sample_levels
from spectralift_cli.core.msi_bands import check_bands
from spectralift_cli.core.placement import Placement
from spectralift_cli.core.radiometry import Radiometry
from spectralift_cli.core.sensors.response import Srf

floats = st.floats(-1e6, 1e6)
gains = st.lists(st.tuples(floats.filter(lambda g: abs(g) > 1e-3), floats), min_size=1, max_size=5)


@given(gains)
@settings(deadline=None, max_examples=30)
def test_radiometry_is_a_line_per_band_and_comes_back(rows: list[tuple[float, float]]) -> None:
    gain, offset = (np.array(column) for column in zip(*rows, strict=True))
    found = Radiometry(gain, offset)
    again = Radiometry.from_json(json.loads(json.dumps(found.to_json())))
    assert again.gain.tobytes() == gain.tobytes()
    assert again.offset.tobytes() == offset.tobytes()
    x = np.random.default_rng(0).normal(size=(3, 2, len(rows)))
    x[1, 1] = np.nan
    for index in np.ndindex(x.shape):
        expected = gain[index[2]] * x[index] + offset[index[2]]
        np.testing.assert_array_equal(again.apply(x)[index], expected)
    assert again.apply(x.astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize(
    ("gain", "offset"), [([0.0], [1.0]), ([np.nan], [0]), ([1], [np.inf]), ([1, 2], [0]), ([], [])]
)
def test_what_is_no_radiometry(gain: Sequence[float], offset: Sequence[float]) -> None:
    with pytest.raises(DataError):
        Radiometry(np.array(gain), np.array(offset))


def spread(levels: Sequence[float]) -> np.ndarray:
    """(M, 5) levels around medians."""
    return np.outer(levels, [0.2, 0.7, 1.0, 1.4, 3.0])


@pytest.mark.parametrize("factor", [100.0, 1000.0, 10_000.0, 1e-2, 1e-4, 45.0, 3e5])
def test_other_units_by_factor(factor: float) -> None:
    lr = spread([800, 1200, 2500])
    with pytest.raises(
        DataError, match=r"seen through its response 1200, a factor of \d"
    ) as caught:
        check_levels(lr, lr * factor * np.array([[0.8], [1.0], [1.2]]), tuple("abc"), "f.tif", 0.5)
    usual = {100.0, 1000.0, 10_000.0}
    times = max(factor, 1 / factor)
    if round(times) in usual:
        assert f"--assign-scale {0.5 / factor:g}" in caught.value.hint
    # gain and offset that are applied anyhow count
    mended = Radiometry(np.full(3, 1 / factor), np.zeros(3))
    check_levels(lr, lr * factor, tuple("abc"), "f.tif", 0.5, mended)


def test_levels_far_apart_are_warned_of_and_others_are_not() -> None:
    lr = spread([800, 1200, 2500])
    for alike in (lr, 2.5 * lr, lr / 2.5, -lr, None):
        check_levels(lr, alike, tuple("abc"), "f.tif", 1.0)
    # dark water in half of one image: the bright ends still agree
    dark = lr * np.array([0.01, 0.01, 0.01, 1, 1])
    check_levels(lr, dark, tuple("abc"), "f.tif", 1.0)
    with pytest.warns(SpectraliftWarning, match=r"by factors of b 6; .* spectralift estimate"):
        check_levels(lr, lr * np.array([[1], [6], [1]]), tuple("abc"), "f.tif", 1.0)


def test_levels_are_those_of_the_valid_pixels_in_the_overlap(tmp_path: Path) -> None:
    values = np.random.default_rng(3).random((300, 8, 2)).astype(np.float32)
    values[:, 5:] += 100
    values[40:60, 2, 1] = np.nan
    path = write_cube(tmp_path / "x.npy", Cube.of(values))[0]
    with open_cube(path) as reader:
        inside = Placement((4, 1), (300, 8), (5.0, 5.0), (40.0, 0.0))
        found = sample_levels(reader, inside)
        pixels = values[40:60, :5].reshape(-1, 2)
        pixels = pixels[np.isfinite(pixels).all(axis=1)].astype(np.float64)
        np.testing.assert_allclose(found, np.percentile(pixels, [1, 25, 50, 75, 99], axis=0).T)
        everywhere = sample_levels(reader, None)
        assert everywhere is not None
        assert everywhere[0, 4] > 100
    assert levels_of(np.full((4, 2), np.nan, np.float32)) is None


WAVELENGTHS = np.linspace(400, 1000, 61)


def sensor(centres: Sequence[float], names: Sequence[str]) -> Srf:
    weights = np.exp(-(((WAVELENGTHS - np.array(centres)[:, None]) / 25) ** 2))
    return Srf(weights / weights.sum(1, keepdims=True), tuple(names))


def msi_meta(centres: Sequence[float] | None, names: Sequence[str] | None, bands: int) -> CubeMeta:
    return CubeMeta(
        (3, 3, bands), np.dtype("u2"),
        wavelengths_nm=None if centres is None else np.array(centres),
        band_names=None if names is None else tuple(names),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("centres", "names", "bands", "choice"),
    [
        ((665, 560, 490, 842), None, 4, "3,2,1,4"),
        (None, ("b4", "B3", "B2", " B8 "), 4, "3,2,1,4"),
        ((842, 665, 560, 490, 705), None, 5, "4,3,2,1"),
        (None, ("B8", "B5", "B4", "B3", "B2"), 5, "5,4,3,1"),
        (None, None, 3, "LIST"),
    ],
)
def test_other_bands_are_refused_with_those_that_are_expected(
    centres: Sequence[float] | None, names: Sequence[str] | None, bands: int, choice: str
) -> None:
    srf = sensor((492, 561, 664, 835), ("B2", "B3", "B4", "B8"))
    with pytest.raises(DataError, match=r"B2 \(49\d nm\), B3 \(561 nm\)") as caught:
        check_bands(msi_meta(centres, names, bands), srf, WAVELENGTHS, "s2.tif", "the model")
    assert caught.value.hint.endswith(f"convert s2.tif OUT --bands {choice}")


@pytest.mark.parametrize(
    ("centres", "names"),
    [
        ((490, 560, 665, 842), ("red", "B3", "B2", "B4")),  # wavelengths are surer than names
        (None, ("one", "two", "three", "four")),
        (None, None),
        ((500, 545, 640, 860), None),  # nominal centres
    ],
)
def test_bands_that_may_well_be_right_pass(
    centres: Sequence[float] | None, names: Sequence[str] | None
) -> None:
    srf = sensor((492, 561, 664, 835), ("B2", "B3", "B4", "B8"))
    check_bands(msi_meta(centres, names, 4), srf, WAVELENGTHS, "s2.tif", "the model")
    # a panchromatic band overlaps all others, and two bands of one sensor may be a few nm apart
    near = sensor((600, 602, 665), ("pan", "a", "b"))
    check_bands(msi_meta((605, 598, 660), None, 3), near, WAVELENGTHS, "x", "the model")
