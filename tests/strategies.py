"""Hypothesis strategies for cubes, and what "the same cube" means, shared by the tests."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spectralift_cli.core.cube import STORED_DTYPES, Cube
from spectralift_cli.core.formats import ALL_FIELDS

# EPSG:32633 in the form of WKT that every reader of the last decades understands
UTM33N = (
    'PROJCS["WGS 84 / UTM zone 33N",GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,'
    '298.257223563,AUTHORITY["EPSG","7030"]],AUTHORITY["EPSG","6326"]],PRIMEM["Greenwich",0,'
    'AUTHORITY["EPSG","8901"]],UNIT["degree",0.0174532925199433,AUTHORITY["EPSG","9122"]],'
    'AUTHORITY["EPSG","4326"]],PROJECTION["Transverse_Mercator"],PARAMETER["latitude_of_origin",0],'
    'PARAMETER["central_meridian",15],PARAMETER["scale_factor",0.9996],'
    'PARAMETER["false_easting",500000],PARAMETER["false_northing",0],UNIT["metre",1,'
    'AUTHORITY["EPSG","9001"]],AXIS["Easting",EAST],AXIS["Northing",NORTH],'
    'AUTHORITY["EPSG","32633"]]'
)
# quarters and eighths survive text, tags and affine arithmetic exactly
TRANSFORM = (2.5, 0.0, 380000.25, 0.0, -2.5, 5820000.75)


def shapes(max_side: int = 6, max_bands: int = 5) -> st.SearchStrategy[tuple[int, int, int]]:
    """(rows, cols, bands), one row, one column or one band among them more often than chance."""
    side = st.one_of(st.just(1), st.integers(1, max_side))
    return st.tuples(side, side, st.one_of(st.just(1), st.integers(1, max_bands)))


@st.composite
def wavelengths_nm(draw: st.DrawFn, bands: int) -> np.ndarray:
    """(bands,) centres in nm; half the time with a step back, as where two detectors overlap."""
    start = draw(st.integers(350, 900))
    centres = start + np.cumsum(draw(hnp.arrays(np.int64, bands, elements=st.integers(1, 40))))
    values = centres.astype(np.float64) + draw(st.sampled_from([0.0, 0.25, 0.5]))
    if bands > 2 and draw(st.booleans()):
        step = draw(st.integers(1, bands - 1))
        values[step:] -= 2 * (values[step] - values[step - 1])
    return np.clip(values, 100.0, None)


def _values(dtype: np.dtype[Any], shape: tuple[int, ...], holes: bool) -> st.SearchStrategy[Any]:
    if dtype.kind == "f":
        bits = dtype.itemsize * 8
        numbers = st.floats(-1000, 1000, width=bits)  # type: ignore[arg-type]  # 16, 32 or 64
        elements = st.one_of(numbers, st.just(float("nan"))) if holes else numbers
        return hnp.arrays(dtype, shape, elements=elements)
    info = np.iinfo(dtype)
    ends = st.sampled_from([int(info.min), int(info.max), 0, 1])
    return hnp.arrays(
        dtype, shape, elements=st.one_of(ends, st.integers(int(info.min), int(info.max)))
    )


def _scalings(bands: int, numbers: Sequence[float]) -> st.SearchStrategy[Any]:
    number = st.sampled_from(numbers)
    return st.one_of(number, st.lists(number, min_size=bands, max_size=bands).map(np.array))


@st.composite
def cubes(
    draw: st.DrawFn,
    dtypes: Collection[str] = STORED_DTYPES,
    holds: Collection[str] = ALL_FIELDS,
    holes: bool = True,
    max_side: int = 6,
    max_bands: int = 5,
) -> Cube:
    """A small cube with whatever metadata a format can hold.

    Args:
        draw: Hypothesis's.
        dtypes: names of stored types to draw from.
        holds: the fields of `ALL_FIELDS` that may be set; wavelengths, fwhm, bad_bands, nodata,
            scale (and offset), crs, transform, band_names, provenance.
        holes: whether float values may be NaN.
        max_side: most rows and columns.
        max_bands: most bands.
    """
    shape = draw(shapes(max_side, max_bands))
    bands = shape[2]
    dtype = np.dtype(draw(st.sampled_from(sorted(dtypes))))
    values = draw(_values(dtype, shape, holes))
    fields: dict[str, Any] = {}

    def maybe(field: str) -> bool:
        return field in holds and draw(st.booleans())

    if maybe("wavelengths"):
        fields["wavelengths_nm"] = draw(wavelengths_nm(bands))
        if maybe("fwhm"):
            widths = st.sampled_from([2.5, 10.0, 17.25])
            fields["fwhm_nm"] = draw(hnp.arrays(np.float64, bands, elements=widths))
    if maybe("bad_bands"):
        fields["bad_bands"] = draw(hnp.arrays(np.bool_, bands))
    if maybe("nodata"):
        if dtype.kind == "f":
            fields["nodata"] = draw(st.sampled_from([-999.0, 0.0, float("nan")]))
        else:
            info = np.iinfo(dtype)
            fields["nodata"] = draw(st.sampled_from([int(info.min), int(info.max), 0, 99]))
    if maybe("scale"):
        fields["scale"] = draw(_scalings(bands, [1e-4, 0.5, 2.0]))
        fields["offset"] = draw(_scalings(bands, [0.0, -0.125, 3.0]))
    if maybe("crs"):
        fields["crs"] = UTM33N
    if maybe("transform"):
        fields["transform"] = TRANSFORM
    if maybe("band_names"):
        fields["band_names"] = tuple(f"band {i + 1} (é)" for i in range(bands))
    if maybe("provenance"):
        fields["provenance"] = {"tool": "spectralift", "options": {"ratio": 4, "bands": [1, 2]}}
    return Cube.of(values, **fields)


def assert_same_cube(found: Cube, expected: Cube, *, same_crs_text: bool = False) -> None:
    """Fail unless stored values are identical and every field of the metadata is equal.

    Args:
        found: what was read.
        expected: what was written.
        same_crs_text: compare the WKT as text instead of by meaning.
    """
    assert found.values.dtype == expected.values.dtype
    np.testing.assert_array_equal(found.values, expected.values)
    a, b = found.meta, expected.meta
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    for name in ("wavelengths_nm", "fwhm_nm"):
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None) == (y is None), name
        if x is not None:
            np.testing.assert_allclose(x, y, rtol=1e-12, err_msg=name)
    assert (a.bad_bands is None) == (b.bad_bands is None)
    if a.bad_bands is not None:
        np.testing.assert_array_equal(a.bad_bands, b.bad_bands)
    assert (a.nodata is None) == (b.nodata is None), (a.nodata, b.nodata)
    if a.nodata is not None and b.nodata is not None:
        np.testing.assert_equal(a.nodata, b.nodata)
    for name in ("scale", "offset"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-12, err_msg=name)
    assert a.transform == b.transform
    assert a.band_names == b.band_names
    assert (a.provenance or None) == (b.provenance or None)
    if same_crs_text or a.crs is None or b.crs is None:
        assert a.crs == b.crs
    else:
        from rasterio.crs import CRS

        assert CRS.from_wkt(a.crs) == CRS.from_wkt(b.crs)
