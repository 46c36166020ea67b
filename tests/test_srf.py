"""Spectral responses: documented sensors, folded curves, files in every form, coverage."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import integrate, io

from spectralift_cli.core.errors import DataError, SpectraliftWarning
from spectralift_cli.core.sensors import DOCUMENTED_BY_BAND_COUNT, SENSORS, documented_bands
from spectralift_cli.core.sensors.response import band_spacing_nm, covered_intervals
from spectralift_cli.core.sensors.srf import (
    Srf,
    check_coverage,
    documented_srf,
    fold_curve,
    invented_wavelengths,
    parse_srf,
    read_srf,
    write_srf,
)

CUBE_NM = np.linspace(400, 1000, 61)


def trapezoid_folding(curve_nm, curve, centres, fwhm):
    """Fold on a fixed fine grid: another grid, order of operations and code than the package's."""
    step = 0.125
    grid = np.arange(curve_nm[0], curve_nm[-1] + step / 2, step)
    clipped = np.clip(curve, 0, None)
    response = np.stack([np.interp(grid, curve_nm, clipped[:, m]) for m in range(curve.shape[1])])
    response[:, [0, -1]] /= 2
    weights = np.empty((curve.shape[1], len(centres)))
    for b, (centre, width) in enumerate(zip(centres, fwhm, strict=True)):
        weights[:, b] = response @ 2.0 ** (-((2 * (grid - centre) / width) ** 2)) * step
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("count", DOCUMENTED_BY_BAND_COUNT)
def test_documented_rows_are_the_published_gaussians(count):
    wavelengths = invented_wavelengths(count, 200)
    srf = documented_srf(count, wavelengths, 4.2)
    for row, band in zip(srf.weights, documented_bands(count), strict=True):
        std = (band.high_nm - band.low_nm) / 4.2
        expected = [np.exp(-((x - band.centre_nm) ** 2) / (2 * std**2)) for x in wavelengths]
        np.testing.assert_allclose(row, np.array(expected) / sum(expected), rtol=1e-12)
    assert wavelengths[0] == min(b.low_nm for b in documented_bands(count))
    assert wavelengths[-1] == max(b.high_nm for b in documented_bands(count))
    assert check_coverage(srf) is srf


def test_documented_sensors_are_in_the_table():
    counts = {name: len(documented_bands(n)) for n, name in DOCUMENTED_BY_BAND_COUNT.items()}
    assert set(counts) <= set(SENSORS)
    assert list(counts.values()) == [1, 3, 4, 8, 16]
    with pytest.raises(DataError, match=r"has 5 bands, only 1, 3, 4, 8, 16"):
        documented_bands(5)


def test_documented_coverage_is_the_gaussian_inside_the_range():
    coverage = documented_srf(16, CUBE_NM, 4.2).coverage
    band = documented_bands(16)[7]
    std = (band.high_nm - band.low_nm) / 4.2
    inside, _ = integrate.quad(
        lambda x: np.exp(-((x - band.centre_nm) ** 2) / (2 * std**2)), 395, 1005
    )
    assert coverage[7] == pytest.approx(inside / (std * np.sqrt(2 * np.pi)), rel=1e-9)
    assert (coverage[8:] < 1e-6).all()


@pytest.mark.parametrize("known_fwhm", [True, False])
def test_folding_matches_a_trapezoid_integration(known_fwhm):
    rng = np.random.default_rng(3)
    centres = np.cumsum(rng.uniform(4, 11, 60)) + 420
    centres[30:] -= 25  # two detectors overlap
    fwhm = rng.uniform(5, 14, 60) if known_fwhm else None
    curve_nm = np.unique(np.round(np.sort(rng.uniform(430, 760, 90)), 1))
    peaks = np.array([480.0, 560, 660])
    curve = np.exp(-(((curve_nm[:, None] - peaks) / 22) ** 2)) - 0.01
    srf = fold_curve(curve_nm, curve, ("b", "g", "r"), centres, fwhm)
    widths = band_spacing_nm(centres) if fwhm is None else fwhm
    expected = trapezoid_folding(curve_nm, curve, centres, widths)
    np.testing.assert_allclose(srf.weights, expected, atol=1e-4)
    assert (srf.weights >= 0).all()


def test_real_curves_fold_as_a_trapezoid_integration(srfs):
    files = sorted(srfs.glob("*.csv"))
    assert files
    for path in files:
        with path.open() as file:
            rows = list(csv.reader(line for line in file if not line.startswith("#")))
        table = np.array(rows[1:], dtype=float)
        bands = [i for i in range(1, table.shape[1]) if table[:, i].max() > 0]
        centres, fwhm = np.linspace(380, 2500, 213), np.full(213, 12.0)
        srf = read_srf(path, centres, fwhm, 213)
        expected = trapezoid_folding(table[:, 0], table[:, bands], centres, fwhm)
        np.testing.assert_allclose(srf.weights, expected, atol=1e-3, err_msg=path.name)


def test_spacing_ignores_the_overlap_of_detectors():
    wavelengths = np.array([900.0, 910, 920, 903, 913, 923, 933])
    np.testing.assert_array_equal(band_spacing_nm(wavelengths), 10)
    np.testing.assert_array_equal(band_spacing_nm(wavelengths[::-1].copy()), 10)
    shuffled = np.random.default_rng(0).permutation(np.arange(400.0, 900, 5))
    np.testing.assert_array_equal(band_spacing_nm(shuffled), 5)


@pytest.mark.parametrize(
    ("missing", "expected"),
    [(1, [(395, 505)]), (3, [(395, 435), (465, 505)])],
    ids=["one missing band is no gap", "three missing bands are"],
)
def test_gaps_are_not_covered(missing, expected):
    wavelengths = np.arange(400.0, 501, 10)
    kept = np.delete(wavelengths, slice(4, 4 + missing))
    if missing == 3:
        assert 450 not in kept
    assert covered_intervals(kept, None) == expected


def test_coverage_of_a_curve_is_its_integral_inside_the_range():
    curve_nm = np.array([980.0, 1000, 1040])  # a triangle, its peak at 1000
    curve = np.array([[0.0], [5], [0]])
    srf = fold_curve(curve_nm, curve, ("edge",), CUBE_NM, None)
    # the cube ends at 1005: the rising side whole, of the falling side the first 5 nm
    falling = (5 + 5 * 35 / 40) / 2 * 5
    assert srf.coverage[0] == pytest.approx((50 + falling) / 150, rel=1e-12)


def test_coverage_decides_what_is_refused_warned_and_dropped():
    srf = documented_srf(16, CUBE_NM, 4.2)
    with pytest.raises(DataError, match=r"8 of 16 MSI bands .* SWIR1 \(0.00\)") as caught:
        check_coverage(srf)
    assert "--drop-uncovered-bands" in caught.value.hint
    with pytest.warns(SpectraliftWarning) as caught_warnings:
        kept = check_coverage(srf, drop=True)
    assert [str(w.message).split(":")[0][:17] for w in caught_warnings] == [
        "MSI bands covered",
        "MSI bands dropped",
    ]
    assert kept.kept == tuple(range(8))
    np.testing.assert_array_equal(kept.weights, srf.weights[:8])
    with pytest.raises(DataError, match="2 of 2"):
        check_coverage(srf.select((9, 12)), drop=True)


# a response that can be normalised and whose rows already are
@st.composite
def responses(draw):
    m, b = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    weights = draw(hnp.arrays(np.float64, (m, b), elements=st.floats(0, 1e6)))
    weights[:, draw(st.integers(0, b - 1))] += 1.0
    names = draw(
        st.lists(
            st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1),
            min_size=m, max_size=m,
        )
    )  # fmt: skip
    return Srf(weights / weights.sum(axis=1, keepdims=True), tuple(names), source="curve: a, b")


@given(srf=responses(), with_wavelengths=st.booleans())
@settings(deadline=None, max_examples=60)
def test_a_written_response_reads_back_exactly(tmp_path_factory, srf, with_wavelengths):
    path = tmp_path_factory.mktemp("srf") / "srf.csv"
    wavelengths = np.linspace(0.1, 2500 / 3, srf.num_hsi_bands) if with_wavelengths else None
    write_srf(path, srf, wavelengths)
    found = read_srf(path, wavelengths, None, srf.num_hsi_bands)
    np.testing.assert_array_equal(found.weights, srf.weights)
    assert found.band_names == tuple(name[:200] for name in srf.band_names)
    assert found.source == srf.source
    first = path.read_bytes()
    write_srf(path, found, wavelengths, overwrite=True)
    assert path.read_bytes() == first


MATRIX = np.array([[1.0, 2, 1, 0], [0, 0, 3, 3]])
NORMAL = MATRIX / MATRIX.sum(axis=1, keepdims=True)


def text_of(matrix, delimiter=",", header=""):
    rows = [delimiter.join(map(str, row)) for row in matrix.tolist()]
    return "\n".join(["# a comment, with commas", *([header] if header else []), *rows]) + "\n"


@pytest.mark.parametrize("delimiter", [",", ";", "\t", " "])
@pytest.mark.parametrize("transposed", [False, True])
def test_bare_matrices_fit_in_either_orientation(delimiter, transposed):
    text = text_of(MATRIX.T if transposed else MATRIX, delimiter)
    np.testing.assert_allclose(parse_srf(text, None, None, 4).weights, NORMAL)
    header = delimiter.join(["pan", "nir"] if transposed else list("abcd"))
    text = text_of(MATRIX.T if transposed else MATRIX, delimiter, header)
    found = parse_srf(text, None, None, 4)
    np.testing.assert_allclose(found.weights, NORMAL)
    assert found.band_names == (("pan", "nir") if transposed else ("B1", "B2"))


def test_a_square_matrix_has_msi_bands_as_rows():
    square = np.array([[1.0, 3], [1, 1]])
    np.testing.assert_allclose(
        parse_srf(text_of(square), None, None, 2).weights, [[0.25, 0.75], [0.5, 0.5]]
    )


def test_array_files(tmp_path):
    np.save(tmp_path / "a.npy", MATRIX.T)
    io.savemat(tmp_path / "a.mat", {"srf": MATRIX})
    io.savemat(tmp_path / "pan.mat", {"srf": MATRIX[:1]})
    for name, expected in (("a.npy", NORMAL), ("a.mat", NORMAL), ("pan.mat", NORMAL[:1])):
        np.testing.assert_allclose(read_srf(tmp_path / name, None, None, 4).weights, expected)
    with pytest.raises(DataError, match=r"2 x 4 fits a cube of 9 bands in neither"):
        read_srf(tmp_path / "a.mat", None, None, 9)
    np.save(tmp_path / "wide.npy", np.ones((3, 2**22), np.uint8))
    with pytest.raises(DataError, match="too large for an SRF"):
        read_srf(tmp_path / "wide.npy", None, None, 4)


def test_a_curve_in_micrometres_descending_is_the_same_curve():
    nm = "wavelength_nm,b\n500,0\n520,1\n560,0\n"
    um = "wavelength_um;b\n0.56;0\n0.52;1\n0.5;0\n"
    a, b = (parse_srf(text, CUBE_NM, None, 61) for text in (nm, um))
    np.testing.assert_allclose(a.weights, b.weights, rtol=1e-9)
    assert a.source == "curve"
    assert a.coverage == pytest.approx(1)


def test_weights_made_for_another_cube_are_pointed_out():
    text = "hsi_band,wavelength_nm,pan\n1,400,0.5\n2,410,0.5\n"
    parse_srf(text, np.array([400.5, 409.5]), None, 2)
    with pytest.warns(SpectraliftWarning, match="up to 40 nm away"):
        parse_srf(text, np.array([400.0, 450]), None, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no table"),
        ("# only a comment\n", "holds no table"),
        ("a,b\n", "no rows"),
        ("1,2,3\n4,5,6\n", "2 x 3 fits a cube of 4 bands"),
        ("1,2,3,4\n1,2,3\n", "row 2 .* not made of 4 numbers"),
        ("1,2,3,nan\n", "1 values that are not finite"),
        ("1,2,3,inf\n", "not finite"),
        ("-1,-2,-3,1\n", "negative"),
        ("1,-1,2,-2\n", "zero or nearly so"),
        ("0,0,0,0\n1,1,1,1\n", "MSI band 1 sums to 0"),
        ("hsi_band,b\n1,1\n2,1\n", "weights for 2 bands, the cube has 4"),
        ("hsi_band,b\n1,1\n3,1\n2,1\n4,1\n", "does not count"),
        ("hsi_band\n1\n2\n3\n4\n", "no column of weights"),
        ("wavelength_nm,b\n500,1\n", "two or more wavelengths"),
        ("wavelength_nm,b\n500,1\n500,1\n", "each given once"),
        ("wavelength_nm,b\n500,-1\n600,0\n", "no positive response in b"),
        ("wavelength_nm,b\n500,inf\n600,0\n", "not finite"),
        ("wavelength_nm\n500\n600\n", "no list of wavelengths"),
        ('"1,2,3,4\n', "row 1|not a table"),
    ],
)
def test_what_is_no_response_is_refused(text, message):
    with pytest.raises(DataError, match=message) as caught:
        parse_srf(text, np.linspace(450, 650, 4), None, 4)
    assert caught.value.hint


def test_files_that_are_no_table_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such SRF file"):
        read_srf(tmp_path / "missing.csv", None, None, 4)
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(DataError, match="not a text file"):
        read_srf(binary, None, None, 4)
    huge = tmp_path / "huge.csv"
    with huge.open("wb") as file:
        file.truncate(5 * 2**20)
    with pytest.raises(DataError, match=r"5,242,880 bytes .* 4,194,304"):
        read_srf(huge, None, None, 4)
    curve = tmp_path / "curve.csv"
    curve.write_text("wavelength_nm,b\n500,1\n600,1\n")
    with pytest.raises(DataError, match="need the cube's wavelengths"):
        read_srf(curve, None, None, 4)


def test_the_hysure_matrix_of_a_real_pair(scenes: Path):
    srf = read_srf(scenes / "paris_srf_hysure_9x128.csv", None, None, 128)
    assert srf.weights.shape == (9, 128)
    np.testing.assert_allclose(srf.weights.sum(axis=1), 1)
