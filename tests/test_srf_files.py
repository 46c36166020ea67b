"""Response curves in other programs' files: ENVI spectral libraries, .flt filters, named arrays."""

from __future__ import annotations

import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import io

from spectralift_cli.core.errors import DataError, SpectraliftWarning
from spectralift_cli.core.sensors.srf import parse_srf, read_curves, read_srf

NM = np.arange(400.0, 701.0, 5)
TABLE = np.stack([np.exp(-(((NM - c) / 30) ** 2)) for c in (450, 550, 640)], axis=1)  # (K, 3)
CUBE_NM = np.linspace(380, 720, 69)
FWHM = np.full(69, 7.0)


@pytest.fixture(scope="module")
def expected():
    rows = "\n".join(",".join(map(repr, row)) for row in np.column_stack([NM, TABLE]).tolist())
    return parse_srf("wavelength_nm,b,g,r\n" + rows, CUBE_NM, FWHM, 69).weights


def weights(path):
    return read_srf(path, CUBE_NM, FWHM, 69).weights


def write_library(path: Path, table, nm, *, dtype="<f4", offset=0, **header):
    codes = {"f4": 4, "f8": 5, "i2": 2}
    fields = {
        "samples": len(nm), "lines": table.shape[1], "bands": 1, "header offset": offset,
        "file type": "ENVI Spectral Library", "data type": codes[dtype[1:]], "interleave": "bsq",
        "byte order": int(dtype[0] == ">"), "wavelength units": "Micrometers",
        "spectra names": "{" + ", ".join(f"s{i}" for i in range(table.shape[1])) + "}",
        "wavelength": "{" + ", ".join(repr(float(v) / 1000) for v in nm) + "}",
    } | header  # fmt: skip
    lines = [f"{key} = {value}" for key, value in fields.items() if value is not None]
    path.with_suffix(".hdr").write_text("ENVI\n" + "\n".join(lines) + "\n")
    path.write_bytes(b"x" * offset + table.T.astype(dtype).tobytes())
    return path


@pytest.mark.parametrize(
    ("dtype", "offset", "named"),
    [("<f4", 0, "a.sli"), (">f4", 7, "a.sli"), ("<f8", 0, "a.hdr"), (">f8", 0, "a.hdr")],
)
def test_envi_spectral_libraries(tmp_path, expected, dtype, offset, named):
    write_library(tmp_path / "a.sli", TABLE, NM, dtype=dtype, offset=offset)
    np.testing.assert_allclose(weights(tmp_path / named), expected, atol=1e-6)
    curves, stamp = read_curves(tmp_path / named)
    assert ([c.name for c in curves], stamp) == (["s0", "s1", "s2"], "curve")


def test_spectral_python_reads_and_writes_the_same_library(tmp_path, expected):
    envi = pytest.importorskip("spectral.io.envi")
    from spectral import BandInfo

    bands = BandInfo()
    bands.centers, bands.band_unit = list(NM), "nm"
    header = {"wavelength units": "nm", "wavelength": list(NM), "spectra names": ["b", "g", "r"]}
    library = envi.SpectralLibrary(TABLE.T.astype("f4"), header, bands)
    library.save(str(tmp_path / "theirs"))
    np.testing.assert_allclose(weights(tmp_path / "theirs.sli"), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lines": 4}, "4 spectra of 61 values need 976 bytes, it has 732"),
        ({"lines": 10**12}, "need .* bytes, it has 732"),
        ({"lines": -1}, "it has 732"),
        ({"samples": 0}, "it has 732"),
        ({"header offset": 4}, "it has 728"),
        ({"header offset": -4}, "header offset -4"),
        ({"bands": 2}, "2 bands"),
        ({"data type": 6}, "data type 6"),
        ({"file type": "ENVI Standard"}, "is of file type 'envi standard'"),
        ({"wavelength": None}, "lists no wavelengths"),
        ({"wavelength": "{1, 2}"}, "lists 2 values"),
        ({"wavelength units": "Wavenumber"}, "no responses"),
    ],
)
def test_damaged_libraries_are_refused(tmp_path, change, message):
    path = write_library(tmp_path / "a.sli", TABLE, NM, **change)
    with np.errstate(all="ignore"):
        context = (
            pytest.warns(SpectraliftWarning) if "Wavenumber" in change.values() else np.errstate()
        )
        with context, pytest.raises(DataError, match=message) as caught:
            weights(path)
    assert caught.value.hint


def test_signalling_nans_are_refused_without_a_warning(tmp_path):
    """Converting them would warn, as fuzzing found."""
    path = write_library(tmp_path / "a.sli", TABLE, NM)
    stored = path.read_bytes()
    path.write_bytes(np.array([0x7F800001], "<u4").tobytes() + stored[4:])
    with pytest.raises(DataError, match="finite"):
        read_srf(path, NM, None, len(NM))


def test_a_library_without_its_other_half_is_refused(tmp_path):
    write_library(tmp_path / "a.sli", TABLE, NM)
    (tmp_path / "a.hdr").rename(tmp_path / "b.hdr")
    with pytest.raises(DataError, match=r"a\.sli: has no ENVI header"):
        weights(tmp_path / "a.sli")
    with pytest.raises(DataError, match="no spectral library beside it"):
        weights(tmp_path / "b.hdr")


@pytest.mark.parametrize(
    ("first", "unit"), [("N nanometres", NM), ("Micrometers of x", NM / 1e3), ("W 1/cm", 1e7 / NM)]
)
def test_modtran_filters(tmp_path, expected, first, unit):
    lines = [first]
    for name, column in zip(("# blue", "green band", "red"), TABLE.T, strict=True):
        lines += [name]
        lines += [
            f"  {x!r}  {y!r}  1.0" for x, y in zip(unit.tolist(), column.tolist(), strict=True)
        ]
    (tmp_path / "a.flt").write_text("\n".join(lines))
    np.testing.assert_allclose(weights(tmp_path / "a.flt"), expected, atol=1e-9)
    assert [c.name for c in read_curves(tmp_path / "a.flt")[0]] == ["blue", "green band", "red"]


def test_a_6s_filter(tmp_path):
    nm = np.arange(600.0, 701.0, 2.5)
    response = np.exp(-(((nm - 650) / 20) ** 2))
    numbers = [" ".join(f"{v:.6f}" for v in response[i : i + 8]) for i in range(0, nm.size, 8)]
    (tmp_path / "red.flt").write_text("0.600 0.700\n" + "\n".join(numbers) + "\n")
    (curve,), _ = read_curves(tmp_path / "red.flt")
    assert curve.name == "red"
    np.testing.assert_allclose(curve.wavelengths_nm, nm, atol=1e-6)
    np.testing.assert_allclose(curve.response, response, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not the first line"),
        ("hello\n1 2\n", "not the first line"),
        ("0.6 0.7\n1 2 3\n", "has 3 responses, 0.6 to 0.7 um .* have 41"),
        ("0.6 0.7\n1 2 x\n", "have 41"),
        ("-1 1e9\n1\n", "have 0|have"),
        ("N x\n500 1\n", "below a band's name"),
        ("N x\nband\n500\n", "below a band's name"),
        ("N x\nband\n", "holds 0 bands"),
        ("N x\nband\n500 1\n500 1\n", "each given once"),
        ("W x\nband\n0 1\n500 1\n", "wavenumbers must be positive"),
    ],
)
def test_what_is_no_filter_is_refused(tmp_path, text, message):
    (tmp_path / "a.flt").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        weights(tmp_path / "a.flt")
    assert caught.value.hint


@given(st.text(alphabet="NMW0123456789.eE+- \n#ab,;", max_size=200))
@settings(deadline=None, max_examples=150)
def test_any_text_is_a_filter_or_an_error(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("flt") / "a.flt"
    path.write_text(text)
    try:
        curves, _ = read_curves(path)
    except DataError as error:
        assert error.hint
    else:
        assert curves


def test_arrays_with_wavelengths_are_curves(tmp_path, expected):
    np.savez(tmp_path / "a.npz", wavelengths_nm=NM, srf=TABLE)
    np.savez_compressed(tmp_path / "um.npz", wavelength_um=NM[::-1] / 1e3, srf=TABLE[::-1].T)
    io.savemat(tmp_path / "a.mat", {"wl_nm": NM, "response": TABLE.T, "note": np.eye(3)})
    with h5py.File(tmp_path / "v73.mat", "w") as file:
        file["wavelengths_nm"] = NM[:, None]
        file["srf"] = TABLE.T
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["wavelengths_nm"], file["srf"] = NM, TABLE
    for name in ("a.npz", "um.npz", "a.mat", "v73.mat", "a.h5"):
        np.testing.assert_allclose(weights(tmp_path / name), expected, atol=1e-9, err_msg=name)


def test_arrays_at_the_cubes_own_wavelengths_are_weights(tmp_path):
    matrix = np.zeros((2, 69))
    matrix[0, 3] = matrix[1, 5:7] = 1
    np.savez(tmp_path / "w.npz", wavelengths_nm=CUBE_NM, srf=matrix)
    np.testing.assert_allclose(weights(tmp_path / "w.npz"), matrix / matrix.sum(axis=1)[:, None])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"wavelengths_nm": NM, "a": TABLE, "b": TABLE}, "holds 2 arrays that could be responses"),
        ({"wavelengths_nm": NM, "srf": np.ones((4, 5))}, "holds 0 arrays"),
        ({"wavelengths_nm": NM, "wl": NM, "srf": TABLE}, "several lists of wavelengths"),
        ({"wavelengths_nm": np.ones((2, 3)), "srf": TABLE}, "no list of wavelengths"),
        ({"wavelengths_nm": np.r_[NM[:-1], np.nan], "srf": TABLE}, "no responses"),
        ({"wavelengths_nm": NM, "srf": -TABLE}, "no positive response"),
    ],
)
@pytest.mark.filterwarnings("ignore::spectralift_cli.core.errors.SpectraliftWarning")
def test_arrays_that_are_no_responses_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message) as caught:
        weights(tmp_path / "a.npz")
    assert caught.value.hint


def test_pickles_and_bombs_are_never_loaded(tmp_path):
    np.savez(tmp_path / "p.npz", wavelengths_nm=NM, srf=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match=r"Python objects|holds 0 arrays"):
        weights(tmp_path / "p.npz")
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(10):
            archive.writestr(f"a{i}.npy", b"\0" * (8 * 2**20 - 1))
    with pytest.raises(DataError, match="small arrays, at most"):
        weights(tmp_path / "bomb.npz")
    huge = tmp_path / "huge.flt"
    with huge.open("wb") as file:
        file.truncate(5 * 2**20)
    with pytest.raises(DataError, match="too many for a filter"):
        weights(huge)
