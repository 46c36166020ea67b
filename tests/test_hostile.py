"""Every bad input the reading commands must survive: exit code 3, two lines, nothing left behind."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from typer.testing import CliRunner

from spectralift_cli.app import app
from tests.conftest import Run
from tests.test_cli import CHAIN, two_lines

VALUES = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
HEADER = "ENVI\nsamples = 4\nlines = 3\nbands = {bands}\ndata type = 2\ninterleave = bip\nbyte order = 0\n"


def envi(path: Path, header: str, data: bytes = VALUES.tobytes()) -> Path:
    path.with_suffix(".img").write_bytes(data)
    path.write_text(header)
    return path


def object_npy(folder: Path) -> Path:
    np.save(folder / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return folder / "x.npy"


def object_npz(folder: Path) -> Path:
    np.savez(folder / "x.npz", cube=np.array([[[print]]], dtype=object))
    return folder / "x.npz"


def bomb_npz(folder: Path) -> Path:
    """A small archive whose member claims, and inflates to, far more than it holds."""
    header = b"\x93NUMPY\x01\x00v\x00" + (
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (100000, 1000, 10000), }".ljust(117)
        + b"\n"
    )
    with zipfile.ZipFile(folder / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cube.npy", header + b"\0" * 20_000_000)
    return folder / "x.npz"


def cells_only(folder: Path) -> Path:
    path = folder / "x.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        target = file.create_dataset("#refs#/a", data=np.zeros((2, 2)))
        cell = file.create_dataset("c", (1, 1), dtype=h5py.ref_dtype)
        cell[0, 0] = target.ref
        cell.attrs["MATLAB_class"] = np.bytes_("cell")
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    return path


def several_arrays(folder: Path) -> Path:
    scipy.io.savemat(folder / "x.mat", {"first": VALUES, "second": VALUES})
    return folder / "x.mat"


def flat_array(folder: Path) -> Path:
    np.save(folder / "x.npy", VALUES[0])
    return folder / "x.npy"


def complex_array(folder: Path) -> Path:
    np.save(folder / "x.npy", VALUES.astype(np.complex64))
    return folder / "x.npy"


def hdf5(build: Callable[[h5py.File, Path], None]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with h5py.File(folder / "other.h5", "w") as file:
            file["cube"] = VALUES
        (folder / "raw.bin").write_bytes(VALUES.tobytes())
        with h5py.File(folder / "x.h5", "w") as file:
            build(file, folder)
        return folder / "x.h5"

    return make


def external_link(file: h5py.File, folder: Path) -> None:
    file["cube"] = h5py.ExternalLink(str(folder / "other.h5"), "/cube")


def external_storage(file: h5py.File, folder: Path) -> None:
    file.create_dataset(
        "cube", VALUES.shape, VALUES.dtype, external=[(str(folder / "raw.bin"), 0, VALUES.nbytes)]
    )


def virtual_dataset(file: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout(VALUES.shape, VALUES.dtype)
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "cube", VALUES.shape)
    file.create_virtual_dataset("cube", layout)


def dangling_link(file: h5py.File, folder: Path) -> None:
    file["cube"] = h5py.SoftLink("/nowhere")


def cyclic_link(file: h5py.File, folder: Path) -> None:
    file["cube"] = h5py.SoftLink("/again")
    file["again"] = h5py.SoftLink("/cube")


def missing_filter(file: h5py.File, folder: Path) -> None:
    space = h5py.h5s.create_simple(VALUES.shape)
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk(VALUES.shape)
    plist.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))  # zstd, which h5py does not bring
    dataset = h5py.h5d.create(file.id, b"cube", h5py.h5t.NATIVE_INT16, space, plist)
    dataset.write_direct_chunk((0, 0, 0), VALUES.tobytes())


def written(name: str, data: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def header_of(text: str) -> Callable[[Path], Path]:
    return lambda folder: envi(folder / "x.hdr", text)


CASES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "empty file": (written("x.tif", b""), "0 bytes"),
    "text named npy": (written("x.npy", b"just a text\n"), "NumPy"),
    "text named npz": (written("x.npz", b"just a text\n"), "x.npz"),
    "text named mat": (written("x.mat", b"just a text\n"), "x.mat"),
    "text named h5": (written("x.h5", b"just a text\n"), "x.h5"),
    "text named tif": (written("x.tif", b"just a text\n"), "x.tif"),
    "text named hdr": (written("x.hdr", b"just a text\n"), "ENVI"),
    "unknown": (written("x.xyz", b"just a text\n"), "x.xyz"),
    "objects in npy": (object_npy, "unpickled"),
    "objects in npz": (object_npz, "unpickled"),
    "zip bomb": (bomb_npz, "x.npz"),
    "cells only": (cells_only, "cell"),
    "several arrays": (several_arrays, "--var"),
    "2-D": (flat_array, "--axis-order yx"),
    "complex": (complex_array, "complex"),
    "external link": (hdf5(external_link), "other"),
    "external storage": (hdf5(external_storage), "x.h5"),
    "virtual dataset": (hdf5(virtual_dataset), "virtual"),
    "dangling link": (hdf5(dangling_link), "nowhere"),
    "cyclic link": (hdf5(cyclic_link), "x.h5"),
    "missing filter": (hdf5(missing_filter), "filter"),
    "10^12 bands": (header_of(HEADER.format(bands=10**12)), "1000000000000"),
    "more than the file holds": (header_of(HEADER.format(bands=6)), "120"),
    "negative bands": (header_of(HEADER.format(bands=-5)), "-5"),
    "absurd dimensions": (header_of(HEADER.format(bands=5).replace("3", "9" * 30)), "9" * 12),
    "no data file": (
        lambda folder: written("y.hdr", HEADER.format(bands=5).encode())(folder), "y.hdr",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input_exits_3_with_two_lines_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    make, told = CASES[name]
    source = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    done = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / "out.npy")])
    assert (done.exit_code, done.stdout) == (3, ""), (done.stderr, done.exception)
    assert two_lines(done.stderr), done.stderr
    assert told.replace(",", "") in done.stderr.replace(",", "")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("ending", CHAIN)
def test_truncated_files_of_every_format(ending: str, tmp_path: Path) -> None:
    """Whatever is cut off, the answer is an error, or (never wrong) the same values."""
    run = CliRunner()
    good = tmp_path / f"good{ending}"
    made = run.invoke(app, ["sample", "synthetic", "--size", "30,20,8", "-o", str(good), "-q"])
    assert made.exit_code == 0, made.stderr
    files = [p for p in good.rglob("*") if p.is_file()] if good.is_dir() else [good]
    victim = max(files, key=lambda p: p.stat().st_size)
    if ending == ".hdr":
        victim = good.with_suffix(".img")
    whole = victim.read_bytes()
    for share in (0.05, 0.4, 0.75, 0.99):
        victim.write_bytes(whole[: int(len(whole) * share)])
        target = tmp_path / "out.npy"
        done = run.invoke(app, ["convert", str(good), str(target), "-q"])
        assert (done.exit_code, done.stdout) == (3, ""), (share, done.exception, done.stderr)
        assert two_lines(done.stderr), done.stderr
        assert not list(tmp_path.glob("*out.npy*"))


def test_holes_all_nan_and_soft_links_inside_work(tmp_path: Path) -> None:
    values = VALUES.astype(np.float32)
    values[0, 0, 0] = np.nan
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["group/data"] = values
        file["cube"] = h5py.SoftLink("/group/data")
    np.save(tmp_path / "nan.npy", np.full((2, 2, 2), np.nan, np.float32))
    for name, expected in (("x.h5", values), ("nan.npy", np.full((2, 2, 2), np.nan))):
        target = tmp_path / f"{name}.npz"
        done = CliRunner().invoke(app, ["convert", str(tmp_path / name), str(target)])
        assert done.exit_code == 0, done.stderr
        np.testing.assert_array_equal(np.load(target)["cube"], expected)


def test_a_target_that_cannot_be_written(tmp_path: Path, spectralift: Run) -> None:
    np.save(tmp_path / "x.npy", VALUES)
    for target in ("/proc/x.npy", tmp_path / "x.npy" / "y.npy"):
        done = spectralift("convert", tmp_path / "x.npy", target)
        assert (done.returncode, done.stdout) == (3, "")
        assert two_lines(done.stderr), done.stderr


@pytest.mark.parametrize("ending", CHAIN)
def test_a_full_disk_keeps_the_old_output(ending: str, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: the same error at the same place."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.integers(0, 2**15, (100, 100, 30), np.int16))
    target = tmp_path / f"out{ending}"
    run = CliRunner()
    np.save(tmp_path / "small.npy", VALUES)
    made = run.invoke(app, ["convert", str(tmp_path / "small.npy"), str(target)])
    assert made.exit_code == 0, made.stderr
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    words = [sys.executable, "-m", "spectralift_cli", "convert", tmp_path / "x.npy", target]
    done = subprocess.run(
        [*words, "--overwrite"], capture_output=True, text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, ""), done.stderr
    # the libtiff inside GDAL 3.10 prints this failure itself, past every handler that can be set
    said = [line for line in done.stderr.splitlines() if not line.startswith("_tiffWriteProc: ")]
    assert two_lines("\n".join(said)), done.stderr
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
