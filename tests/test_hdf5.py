"""HDF5: round trips, files by others, and files that mean harm. The oracle is plain h5py."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectralift_cli.core.cube import Cube
from spectralift_cli.core.errors import DataError, OptionError, SpectraliftWarning
from spectralift_cli.core.formats import create_cube, open_cube, read_cube, write_cube
from tests.strategies import assert_same_cube, cubes

VALUES = np.arange(4 * 5 * 6, dtype="<i2").reshape(4, 5, 6)
OPTIONS = (
    {},
    {"COMPRESS": "GZIP"},
    {"COMPRESS": "GZIP", "LEVEL": "9"},
    {"COMPRESS": "LZF"},
    {"VARIABLE": "scene/reflectance"},
)


@settings(deadline=None, max_examples=40)
@given(
    cube=cubes(),
    options=st.sampled_from(OPTIONS),
)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, cube: Cube, options: dict) -> None:
    path = tmp_path_factory.mktemp("h5") / "x.h5"
    write_cube(path, cube, options=options)
    assert_same_cube(read_cube(path), cube, same_crs_text=True)
    with h5py.File(path, "r") as file:
        dataset = file[options.get("VARIABLE", "cube")]
        np.testing.assert_array_equal(dataset[()], cube.values)
        assert (dataset.chunks is None) == ("COMPRESS" not in options)
        if cube.meta.wavelengths_nm is not None:
            beside = dataset.parent["wavelengths_nm"][()]
            np.testing.assert_array_equal(beside, cube.meta.wavelengths_nm)


def test_bytes_depend_neither_on_the_cuts_nor_on_the_clock(tmp_path: Path) -> None:
    # 2,050 bands make several chunks a row, with edges that the values do not fill
    values = np.random.default_rng(1).integers(0, 50, (23, 70, 2050)).astype(np.uint8)
    cube = Cube.of(values, wavelengths_nm=np.linspace(400, 2500, 2050))
    for folder, height in (("a", 23), ("b", 7)):
        (tmp_path / folder).mkdir()
        for number, options in enumerate(OPTIONS):
            path = tmp_path / folder / f"{number}.h5"
            with create_cube(path, cube.meta, options=options) as writer:
                for start in range(0, 23, height):
                    writer.write(slice(start, start + height), values[start : start + height])
                writer.commit()
        if folder == "a":
            time.sleep(1.1)  # HDF5's times count in seconds
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
        np.testing.assert_array_equal(read_cube(path).values, values)


def test_reads_what_others_write(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver="latest") as file:
        group = file.create_group("swath/data")
        dataset = group.create_dataset(
            "radiance", data=VALUES.transpose(2, 0, 1).astype(">i2"), chunks=(2, 3, 5),
            compression="gzip", fletcher32=True,
        )  # fmt: skip
        dataset.attrs["wavelengths"] = np.linspace(0.4, 0.9, 6)
        dataset.attrs["wavelength_units"] = "um"
        dataset.attrs["_FillValue"] = np.int16(7)
        dataset.attrs["scale_factor"] = 0.5
        dataset.attrs["add_offset"] = np.array([1.0])
        file["flags"] = np.zeros((4, 5), np.uint8)
        file["title"] = "text"
        file["table"] = np.zeros(3, [("a", "f4"), ("b", "i4")])
        group["up"] = file["swath"]  # groups may hold each other
        file["alias"] = h5py.SoftLink("/link")
        file["link"] = h5py.SoftLink("swath/data/radiance")
    for var in (None, "swath/data/radiance", "/swath/data/up/data/radiance", "alias"):
        with open_cube(path, var=var, axis_order="byx") as reader:
            np.testing.assert_array_equal(reader.read(), VALUES)
            np.testing.assert_array_equal(reader.read(slice(1, 3)), VALUES[1:3])
            assert reader.meta.nodata == 7
            assert (reader.meta.scale, reader.meta.offset) == (0.5, 1.0)
            np.testing.assert_allclose(reader.meta.wavelengths_nm, np.linspace(400, 900, 6))
            assert reader.layout["chunks"] == [2, 3, 5]
            assert reader.layout["byte_order"] == "big"
            assert reader.streams
    flags = read_cube(path, var="flags", axis_order="yx")
    assert flags.meta.shape == (4, 5, 1)


def test_ours_wins_over_attributes_and_describes_its_own_array_only(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    write_cube(path, Cube.of(VALUES, nodata=3, wavelengths_nm=np.arange(6) + 500.0))
    with h5py.File(path, "r+") as file:
        file["cube"].attrs["nodata"] = 99
        file["other"] = VALUES[:, :, :2]
    assert read_cube(path).meta.nodata == 3
    with pytest.warns(SpectraliftWarning, match="wavelengths_nm has 6 values for 2 bands"):
        other = read_cube(path, var="other")
    assert other.meta.nodata is None
    assert other.meta.wavelengths_nm is None
    with h5py.File(path, "r+") as file:
        del file["cube"]
        file["cube"] = VALUES[:2]
    with pytest.warns(SpectraliftWarning, match=r"shape \[4, 5, 6\], not \[2, 5, 6\]"):
        assert read_cube(path).meta.nodata is None


def test_soft_link_named_cube(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["g/one"] = VALUES
        file["g/two"] = VALUES + 1
        file["g/wavelengths_nm"] = np.arange(6) + 400.0
        file["cube"] = h5py.SoftLink("/g/two")
    cube = read_cube(path)
    np.testing.assert_array_equal(cube.values, VALUES + 1)
    assert cube.meta.wavelengths_nm is not None  # it lies beside the link's target
    with h5py.File(path, "r+") as file:
        file["g/spectralift"] = "["
    with pytest.warns(SpectraliftWarning, match="not a JSON object"), h5py.File(path, "r"):
        read_cube(path)  # also while the caller has it open, with HDF5's locks


def test_blocks_of_rows_are_whole_chunks(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("cube", (3000, 64, 128), "u1", chunks=(129, 64, 128))
    with open_cube(path) as reader:
        assert reader.block_rows % 129 == 0
        assert not reader.read(slice(0, 2)).any()  # nothing was written: fill values


def test_tall_compressed_chunks_are_loaded_once_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset(
            "cube", (9000, 100, 80), "u1", chunks=(9000, 100, 1), compression="gzip"
        )
        dataset[:, :, 3] = 5
    with open_cube(path) as reader:
        assert not reader.streams
        assert (reader.read(slice(8999, None))[..., 3] == 5).all()
    with open_cube(path, memory_bytes=10**6) as reader, pytest.raises(DataError, match="72 MB"):
        reader.read(slice(0, 1))


def _external_storage(file: h5py.File) -> None:
    size = VALUES.nbytes
    file.create_dataset("cube", VALUES.shape, VALUES.dtype, external=[("values.raw", 0, size)])


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(VALUES.shape, VALUES.dtype)
    layout[:] = h5py.VirtualSource("other.h5", "cube", VALUES.shape)
    file.create_virtual_dataset("cube", layout)


def _unknown_filter(file: h5py.File) -> None:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((2, 5, 6))
    properties.set_filter(32100, h5py.h5z.FLAG_OPTIONAL, (1, 2))
    space = h5py.h5s.create_simple(VALUES.shape)
    h5py.h5d.create(file.id, b"cube", h5py.h5t.NATIVE_INT16, space, properties)


def _links(**targets: object) -> Callable[[h5py.File], None]:
    def make(file: h5py.File) -> None:
        file["small"] = np.zeros((2, 2))
        for name, target in targets.items():
            file[name] = target

    return make


def _values(array: object, **more: object) -> Callable[[h5py.File], None]:
    return lambda file: file.create_dataset("cube", data=array, **more) and None


def _sparse(**more: object) -> Callable[[h5py.File], None]:
    return lambda file: file.create_dataset("cube", (10**5,) * 3, "u2", **more) and None


HOSTILE = {
    "external link": (_links(cube=h5py.ExternalLink("o.h5", "/x")), "external link into .*o.h5"),
    "soft to external": (
        _links(cube=h5py.SoftLink("/far/x"), far=h5py.ExternalLink("o.h5", "/")),
        "external link into .*o.h5",
    ),
    "external storage": (_external_storage, "another file, 'values.raw'"),
    "virtual": (_virtual, "virtual dataset, made of parts in other.h5"),
    "dangling": (_links(cube=h5py.SoftLink("/nowhere")), "'nowhere', which does not exist"),
    "through a dataset": (_links(cube=h5py.SoftLink("/small/x")), "'x', which does not exist"),
    "cyclic": (_links(cube=h5py.SoftLink("a"), a=h5py.SoftLink("cube")), "in a circle"),
    "own tail": (_links(cube=h5py.SoftLink("cube/x")), "in a circle"),
    "filter": (_unknown_filter, "number 32100"),
    "compound": (_values(np.zeros((2, 2, 2), [("a", "f4")])), "compound records"),
    "complex": (_values(np.zeros((2, 2, 2), "c8")), "complex numbers"),
    "bool": (_values(np.zeros((2, 2, 2), bool)), "true and false"),
    "text": (_values("abc"), "text"),
    "fixed text": (_values(np.full((2, 2, 2), b"ab")), "text"),
    "references": (lambda f: f.create_dataset("cube", (2, 2, 2), h5py.ref_dtype), "references"),
    "lists": (lambda f: f.create_dataset("cube", (2,), h5py.vlen_dtype(float)), "varying length"),
    "nested": (lambda f: f.create_dataset("cube", (2, 2, 2), np.dtype(("f4", (3,)))), "nested"),
    "no space": (_values(h5py.Empty("f4")), "no values"),
    "zero sized": (_values(np.zeros((3, 0, 2))), "has no values"),
    "four axes": (_values(np.zeros((2, 2, 2, 2))), "4 axes"),
    "two axes": (_values(np.zeros((2, 2))), "2-D"),
    "scalar": (_values(1.0), "0 axes"),
    "sparse": (_sparse(), "stores 0 of them"),
    "sparse chunks": (_sparse(chunks=(10, 10, 10)), "stores 0 of them"),
    "huge chunk": (_sparse(chunks=(1000, 1000, 1000), compression="gzip"), "2,000 MB"),
    "nothing": (lambda f: None, "no 3-D numeric array"),
    "several": (_links(a=VALUES, b=VALUES), "2 arrays that could be the cube: a 4x5x6, b 4x5x6"),
    "only odd ones": (
        _links(t="text", z=np.zeros((2, 2, 2), "c8"), far=h5py.ExternalLink("o.h5", "/")),
        "far: is an external link .*and 2 more",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_refuses(tmp_path: Path, case: str) -> None:
    make, message = HOSTILE[case]
    other = np.arange(8.0).reshape(2, 2, 2)
    write_cube(tmp_path / "o.h5", Cube.of(other))
    (tmp_path / "values.raw").write_bytes(VALUES.tobytes())
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        make(file)
    with pytest.raises(DataError, match=message) as caught:
        open_cube(path, memory_bytes=10**9)
    assert caught.value.hint
    if "cube" in h5py.File(path, "r"):
        with pytest.raises(DataError, match=message):
            open_cube(path, var="cube", memory_bytes=10**9)


def test_names_what_there_is(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["g/a"] = VALUES
    for var in ("nope", "g", "g/a/b", "", "/"):
        with pytest.raises(DataError, match="no numeric array called") as caught:
            open_cube(path, var=var)
        assert "g/a 4x5x6" in caught.value.hint


def test_a_bad_neighbour_does_not_hide_the_cube(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["data"] = VALUES
        file["far"] = h5py.ExternalLink("o.h5", "/")
        file["dangling"] = h5py.SoftLink("/nowhere")
        file["records"] = np.zeros((2, 2, 2), [("a", "f4")])
    np.testing.assert_array_equal(read_cube(path).values, VALUES)


@pytest.mark.parametrize("keep", [1, 8, 100, 600, 1200, -1])
def test_truncated(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "x.h5"
    write_cube(path, Cube.of(VALUES))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"x\.h5"):
        read_cube(path)


def test_damaged_chunk(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    write_cube(path, Cube.of(VALUES), options={"COMPRESS": "GZIP"})
    with h5py.File(path, "r") as file:
        chunk = file["cube"].id.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset : chunk.byte_offset + 8] = bytes(8)
    path.write_bytes(data)
    with pytest.raises(DataError, match="cannot be read"):
        read_cube(path)


@pytest.mark.parametrize("name", ["", "/", "wavelengths_nm", "a//b", "../x", "spectralift/x", "\n"])
def test_refuses_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(OptionError, match="VARIABLE"):
        write_cube(tmp_path / "x.h5", Cube.of(VALUES), options={"VARIABLE": name})


def test_level_needs_gzip(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="LEVEL=3 does not apply to COMPRESS=LZF"):
        write_cube(tmp_path / "x.h5", Cube.of(VALUES), options={"COMPRESS": "LZF", "LEVEL": "3"})


# h5py's own file on a full disk kills the process by a segmentation fault when it ends
_FULL_DISK = """
import json, resource, sys
import numpy as np
from spectralift_cli.core.cube import Cube
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats import write_cube

values = np.random.default_rng(0).random((200, 100, 50), dtype=np.float32)
said = {}
for limit in (500, 5_000, 1_000_000, 3_800_000, 4_000_100):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for name, options in json.loads(sys.argv[1]):
        try:
            write_cube(name, Cube.of(values), options=options, overwrite=True)
            said[f"{name} {options} {limit}"] = "written"
        except DataError as error:
            said[f"{name} {options} {limit}"] = error.message
print(json.dumps(said))
"""


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    cases = [
        ("x.h5", {}),
        ("x.h5", {"COMPRESS": "GZIP"}),
        ("x.mat", {"VERSION": "5"}),
        ("x.mat", {"VERSION": "7.3"}),
        ("x.mat", {"VERSION": "7.3", "COMPRESS": "DEFLATE"}),
    ]
    done = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, json.dumps(cases)],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    small = [text for key, text in said.items() if int(key.split()[-1]) <= 1_000_000]
    assert len(small) == 15
    assert all("File too large" in text for text in said.values() if text != "written")
    assert "written" not in small
    assert not any(p.suffix == ".part" for p in tmp_path.iterdir())


def test_abandoned_writer_leaves_no_file(tmp_path: Path) -> None:
    cube = Cube.of(VALUES)
    with create_cube(tmp_path / "x.h5", cube.meta) as writer:
        writer.write(slice(0, 2), VALUES[:2])
    writer.abort()  # once more does no harm
    assert not list(tmp_path.iterdir())


def test_damaged_root_and_names_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        space = h5py.h5s.create_simple((2, 2, 2))
        h5py.h5d.create(file.id, b"\xff\xfe", h5py.h5t.NATIVE_INT16, space)
    with pytest.raises(DataError, match="its name is not UTF-8"):
        open_cube(path)
    with h5py.File(path, "a") as file:
        file["cube"] = np.zeros((2, 2, 2))
    assert read_cube(path).meta.shape == (2, 2, 2)
    path.write_bytes(path.read_bytes().replace(b"HEAP", b"heap"))
    with pytest.raises(DataError, match="cannot be read"):
        open_cube(path)
