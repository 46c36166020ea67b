"""Grids placed by map coordinates: means over areas against loops, laws, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectralift_cli.core.cube import CubeMeta
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.observation import Observation
from spectralift_cli.core.placement import MapMean, Placement, place

UTM33, UTM32 = (f"EPSG:{code}" for code in (32633, 32632))


def wkt(name: str) -> str:
    from rasterio.crs import CRS

    return str(CRS.from_string(name).to_wkt())


def meta(
    rows: int, cols: int, transform: tuple[float, ...] | None = None, crs: str = UTM33
) -> CubeMeta:
    return CubeMeta(
        (rows, cols, 2), np.dtype("float32"), transform=transform,  # type: ignore[arg-type]
        crs=wkt(crs) if transform else None,
    )  # fmt: skip


placements = st.builds(
    Placement,
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.tuples(st.floats(1, 9), st.floats(1, 9)),
    st.tuples(st.floats(-12, 12), st.floats(-12, 12)),
)


def loop_mean(placement: Placement, image: np.ndarray) -> np.ndarray:
    """Sum areas of overlap pixel by pixel."""
    out = np.zeros(placement.lr_shape)
    (top, left), (down, across) = placement.origin_px, placement.scale
    for i, j in np.ndindex(*out.shape):
        for r, c in np.ndindex(*image.shape):
            high = min(r + 1, top + (i + 1) * down) - max(r, top + i * down)
            wide = min(c + 1, left + (j + 1) * across) - max(c, left + j * across)
            if high > 0 and wide > 0:
                out[i, j] += image[r, c] * high * wide / (down * across)
    return out


@given(placements, st.integers(0, 2**16))
@settings(deadline=None, max_examples=40)
def test_area_means_equal_a_loop_over_overlaps(placement: Placement, seed: int) -> None:
    image = np.random.default_rng(seed).normal(size=placement.hr_shape)
    got = MapMean(placement)(image)
    # edges within 1e-4 pixels of another are taken for it
    np.testing.assert_allclose(got, loop_mean(placement, image), atol=2e-3)


@given(placements, st.sampled_from(["area", "point"]), st.integers(0, 2**16))
@settings(deadline=None, max_examples=40)
def test_adjoint(placement: Placement, footprint: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=placement.hr_shape), rng.normal(size=placement.lr_shape)
    mean = MapMean(placement, footprint)
    assert math.isclose(
        float((mean(x) * y).sum()), float((x * mean.adjoint(y)).sum()), rel_tol=1e-9, abs_tol=1e-9
    )


@given(placements)
@settings(deadline=None, max_examples=60)
def test_whole_pixels_keep_constants_and_straight_lines(placement: Placement) -> None:
    rows, cols = np.indices(placement.hr_shape) + 0.5
    plane = 2 + 3 * rows - 4 * cols
    whole = placement.inside()
    centres = [
        origin + scale * (np.arange(n) + 0.5)
        for n, scale, origin in zip(
            placement.lr_shape, placement.scale, placement.origin_px, strict=True
        )
    ]
    expected = 2 + 3 * centres[0][:, None] - 4 * centres[1][None, :]
    np.testing.assert_allclose(MapMean(placement)(np.ones_like(plane))[whole], 1, atol=1e-9)
    point = MapMean(placement, "point")
    inner = placement.inside() & (point(np.ones_like(plane)) > 1 - 1e-9)
    np.testing.assert_allclose(point(plane)[inner], expected[inner], atol=2e-3)


def test_observation_adjoint_and_what_it_sees() -> None:
    rng = np.random.default_rng(1)
    placement = Placement((5, 4), (30, 28), (5.3, 6.1), (1.2, 2.4))
    psf = rng.random((7, 7))
    for includes in (False, True):
        for boundary in ("reflect", "zero"):
            seen = Observation(psf, placement, includes, boundary)
            x, y = rng.normal(size=(30, 28, 2)), rng.normal(size=(5, 4, 2))
            assert float((seen(x) * y).sum()) == pytest.approx(float((x * seen.adjoint(y)).sum()))
    seen = Observation(psf, placement)
    valid = seen.valid(share=1.0)
    changed = rng.normal(size=(30, 28))
    other = Observation(psf, placement, boundary="zero")
    assert valid.any() and not valid.all()
    np.testing.assert_allclose(seen(changed)[valid], other(changed)[valid], atol=1e-9)
    holes = np.ones((30, 28), bool)
    holes[:15] = False
    assert not seen.valid(holes)[0].any()


def test_place_by_map_coordinates() -> None:
    lr = meta(80, 60, (30.0, 0, 383472.37, 0, -30.0, 5818302.35))
    hr = meta(660, 494, (3.6, 0, 383469.97, 0, -3.6, 5818303.55))
    placement = place(lr, hr)
    assert placement.scale == pytest.approx((30 / 3.6, 30 / 3.6))
    assert placement.origin_px == pytest.approx((1.2 / 3.6, 2.4 / 3.6), abs=1e-6)
    rows, cols = placement.lr_positions()
    for row, col in ((0, 0), (300, 411)):
        x, y = 383469.97 + 3.6 * (col + 0.5), 5818303.55 - 3.6 * (row + 0.5)
        assert rows[row] == pytest.approx((5818302.35 - y) / 30, abs=1e-6)
        assert cols[col] == pytest.approx((x - 383472.37) / 30, abs=1e-6)
    assert placement.overlap_hr() == (slice(0, 660), slice(1, 494))
    assert placement.shifted((0.5, -1)).origin_px == pytest.approx(
        (1.2 / 3.6 - 0.5 * 30 / 3.6, 2.4 / 3.6 + 30 / 3.6), abs=1e-6
    )
    # the same turned grid on both sides is no turn between them
    turned = (3.0, 1.0, 10.0, 1.0, -3.0, 20.0)
    coarse = (12.0, 4.0, 10.0, 4.0, -12.0, 20.0)
    assert place(meta(5, 5, coarse), meta(20, 20, turned)).scale == pytest.approx((4, 4))


def test_windows_of_a_placement_are_windows_of_its_mean() -> None:
    placement = Placement((6, 5), (40, 36), (6.2, 6.9), (1.3, 0.7))
    image = np.random.default_rng(0).normal(size=(40, 36))
    whole = MapMean(placement)(image)
    rows, cols = slice(7, 39), slice(7, 36)
    part = placement.window_hr(rows, cols).window_lr(slice(1, 5), slice(1, 4))
    assert part.inside().all()
    np.testing.assert_allclose(MapMean(part)(image[rows, cols]), whole[1:5, 1:4], atol=1e-9)


def test_place_by_sizes() -> None:
    assert place(meta(36, 36), meta(145, 145)).scale == (4.0, 4.0)
    assert place(meta(5, 7), meta(5, 7)).scale == (1.0, 1.0)


@pytest.mark.parametrize(
    ("lr", "hr", "message"),
    [
        (meta(10, 10), meta(25, 40), "no whole multiple"),
        (meta(40, 40), meta(10, 10), "no whole multiple"),
        (meta(9, 9, (3, 0, 0, 0, -3, 0)), meta(9, 9, (5, 0, 0, 0, -5, 0)), "not sharper"),
        (meta(9, 9, (30, 0, 0, 0, -30, 0)), meta(9, 9, (3, 0, 900, 0, -3, 0)), "do not overlap"),
        (meta(9, 9, (30, 0, 0, 0, -30, 0)), meta(90, 90, (3, 1, 0, 1, -3, 0)), "turned"),
        (meta(9, 9, (30, 0, 0, 0, -30, 0)), meta(90, 90, (3, 0, 0, 0, 3, 0)), "mirrored"),
        (meta(9, 9, (30, 0, 0, 0, -30, 0)), meta(90, 90, (3, 0, 0, 0, -3, 0), UTM32), "EPSG:32632"),
        (meta(9, 9, (1e9, 0, 0, 0, -1e9, 0)), meta(90, 90, (3, 0, 0, 0, -3, 0)), "at most"),
    ],
)
def test_refused(lr: CubeMeta, hr: CubeMeta, message: str) -> None:
    with pytest.raises(DataError, match=message):
        place(lr, hr)
