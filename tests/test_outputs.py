"""Outputs appear whole or not at all: killed runs, live runs, full disks, other people's folders."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from spectralift_cli.app import app
from spectralift_cli.core.cube import Cube
from spectralift_cli.core.errors import DataError, OutputExistsError
from spectralift_cli.core.formats import FORMATS, create_cube, open_cube, read_cube, write_cube
from spectralift_cli.core.outputs import Staging, write_text
from spectralift_cli.core.scene import create_scene

OLD = Cube.of(np.full((6, 5, 3), 7, np.int16), wavelengths_nm=[400.0, 500.0, 600.0])
NEW = Cube.of(np.full((8, 5, 3), 9, np.int16), wavelengths_nm=[410.0, 510.0, 610.0])

# writes NEW and stops, for its parent to kill it, at the moment that is named: before the first
# row, after half of the rows, or instead of the n-th call of a step of the commit
CHILD = """
import os, shutil, sys, time
from pathlib import Path
import numpy as np
from tests.test_outputs import NEW
from spectralift_cli.core.formats import create_cube

def stop(*args, **more):
    print("here", flush=True)
    time.sleep(60)

def stop_at(owner, name, count):
    original = getattr(owner, name)
    calls = []
    def stopping(*args, **more):
        calls.append(1)
        return stop() if len(calls) == count else original(*args, **more)
    setattr(owner, name, stopping)

path, moment = Path(sys.argv[1]), sys.argv[2]
with create_cube(path, NEW.meta, overwrite=True) as writer:
    if moment == "created":
        stop()
    writer.write(slice(0, 4), NEW.values[:4])
    if moment == "half":
        stop()
    writer.write(slice(4, 8), NEW.values[4:])
    if "." in moment:
        name, count = moment.split(".")
        owner = {"rename": Path, "unlink": Path, "fsync": os, "rmtree": shutil}[name]
        stop_at(owner, name, int(count))
    writer.commit()
stop()
"""
# one file; a set of two; a folder, whose first renaming sets the old one aside
MOMENTS = {
    ".npz": ("half", "fsync.1", "rename.1"),
    ".npy": ("created", "half", "fsync.2", "unlink.1", "rename.1", "rename.2", "rename.3",
             "rmtree.1"),
    ".zarr": ("half", "rename.1", "rename.2", "rmtree.1"),
}  # fmt: skip


def kill_a_run_at(path: Path, moment: str) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), moment], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "here\n"
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()


def read_or_none(path: Path) -> Cube | None:
    try:
        return read_cube(path)
    except DataError as error:
        assert "no such file" in error.message  # anything else is a broken output
        return None


def assert_whole(found: Cube | None) -> None:
    """Old or new or nothing; never a mix, which the wavelengths would tell."""
    if found is None:
        return
    expected = OLD if found.meta.rows == OLD.meta.rows else NEW
    np.testing.assert_array_equal(found.values, expected.values)
    assert found.meta.wavelengths_nm is not None
    np.testing.assert_array_equal(found.meta.wavelengths_nm, expected.meta.wavelengths_nm)


@pytest.mark.parametrize(
    ("suffix", "moment"), [(suffix, m) for suffix, moments in MOMENTS.items() for m in moments]
)
def test_killed_run_leaves_old_output_or_none_and_the_next_run_cleans_up(
    tmp_path: Path, suffix: str, moment: str
) -> None:
    path = tmp_path / f"out{suffix}"
    files = {p.name for p in write_cube(path, OLD)}
    kill_a_run_at(path, moment)
    assert_whole(read_or_none(path))
    if moment in ("created", "half", "fsync.1", "fsync.2"):
        assert read_cube(path).meta.rows == OLD.meta.rows
    write_cube(path, OLD, overwrite=True)
    assert {p.name for p in tmp_path.iterdir()} == files
    assert_whole(read_cube(path))


def test_folder_set_aside_by_a_killed_run_is_brought_back(tmp_path: Path) -> None:
    path = tmp_path / "out.zarr"
    write_cube(path, OLD)
    kill_a_run_at(path, "rename.2")  # the old folder is aside, the new one not yet in place
    assert not path.exists()
    with pytest.raises(OutputExistsError):
        write_cube(path, NEW)
    assert [p.name for p in tmp_path.iterdir()] == ["out.zarr"]
    assert read_cube(path).meta.rows == OLD.meta.rows


@pytest.mark.parametrize("moment", ["rename.2", "rename.3"])
def test_set_whose_old_key_is_gone_is_put_in_place_by_the_next_run(
    tmp_path: Path, moment: str
) -> None:
    path = tmp_path / "out.npy"
    write_cube(path, OLD)
    kill_a_run_at(path, moment)  # the old key is gone, the new one not yet in place
    assert not path.exists()
    with pytest.raises(OutputExistsError):
        write_cube(path, OLD)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.npy", "out.npy.json"]
    assert read_cube(path).meta.rows == NEW.meta.rows
    assert_whole(read_cube(path))


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError], ids=lambda e: e.__name__)
@pytest.mark.parametrize(("suffix", "rows", "count"), [(".npy", 8, 3), (".zarr", 6, 2)])
def test_commit_that_fails_between_two_renamings_loses_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    rows: int,
    count: int,
    failure: type[BaseException],
) -> None:
    path = tmp_path / f"out{suffix}"
    names = {p.name for p in write_cube(path, OLD)}
    original, calls = Path.rename, []

    def failing(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == count:
            raise failure
        return original(self, target)

    with create_cube(path, NEW.meta, overwrite=True) as writer:
        writer.write(slice(None), NEW.values)
        monkeypatch.setattr(Path, "rename", failing)
        with pytest.raises((KeyboardInterrupt, DataError)):
            writer.commit()
    assert {p.name for p in tmp_path.iterdir()} == names
    found = read_cube(path)
    assert found.meta.rows == rows  # a set is whole and new, a folder comes back
    assert_whole(found)


def test_second_run_leaves_a_live_runs_work_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.npy"
    with create_cube(path, OLD.meta) as first, create_cube(path, NEW.meta) as second:
        assert len(list(tmp_path.glob(".out.npy.*.part"))) == 2
        first.write(slice(None), OLD.values)
        second.write(slice(None), NEW.values)
        first.commit()
        with pytest.raises(OutputExistsError):
            second.commit()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.npy", "out.npy.json"]
    assert_whole(read_cube(path))


def test_aborted_writer_leaves_nothing(tmp_path: Path) -> None:
    for row in (f for f in FORMATS if f.creator):
        with create_cube(tmp_path / f"out{row.suffixes[0]}", OLD.meta) as writer:
            writer.write(slice(0, 2), OLD.values[:2])
        assert not list(tmp_path.iterdir()), row.name
        writer.abort()  # harmless


@pytest.mark.parametrize("row", [f for f in FORMATS if f.creator], ids=lambda f: f.name)
def test_existing_output_is_kept_unless_overwriting(tmp_path: Path, row: object) -> None:
    path = tmp_path / f"out{row.suffixes[0]}"  # type: ignore[attr-defined]
    write_cube(path, OLD)
    with pytest.raises(OutputExistsError, match="exists already"):
        write_cube(path, NEW)
    assert read_cube(path).meta.rows == OLD.meta.rows
    names = {p.name for p in tmp_path.iterdir()}
    # in and out may be the same: the input is read before it is replaced
    with open_cube(path) as reader:
        write_cube(path, Cube(reader.read() + 1, reader.meta), overwrite=True)
    assert {p.name for p in tmp_path.iterdir()} == names
    np.testing.assert_array_equal(read_cube(path).values, OLD.values + 1)


@contextlib.contextmanager
def files_limited_to(nbytes: int) -> Iterator[None]:
    """Let writes beyond a size fail with EFBIG, as a quota does; Python ignores SIGXFSZ."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("row", [f for f in FORMATS if f.creator], ids=lambda f: f.name)
def test_full_disk_leaves_the_old_output_and_no_strays(tmp_path: Path, row: object) -> None:
    path = tmp_path / f"out{row.suffixes[0]}"  # type: ignore[attr-defined]
    names = {p.name for p in write_cube(path, OLD)}
    noise = np.random.default_rng(1).integers(0, 2**15, (64, 128, 32), np.int16)
    with files_limited_to(100_000), pytest.raises(DataError, match=r"cannot be written"):
        write_cube(path, Cube.of(noise), overwrite=True)
    assert {p.name for p in tmp_path.iterdir()} == names
    assert_whole(read_cube(path))


def test_folder_that_is_not_ours_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "thesis.zarr"
    path.mkdir()
    (path / "chapter1.tex").write_text("years of work")
    with pytest.raises(DataError, match="neither empty nor one of ours"):
        write_cube(path, NEW, overwrite=True)
    assert (path / "chapter1.tex").read_text() == "years of work"
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.zarr"]


def test_scene_and_run_do_not_replace_a_folder_that_is_not_ours(tmp_path: Path) -> None:
    notes = tmp_path / "thesis" / "chapter1.tex"
    notes.parent.mkdir()
    notes.write_text("years of work")
    with pytest.raises(DataError, match="neither empty nor one of ours"):
        create_scene(notes.parent, overwrite=True)
    write_cube(tmp_path / "x.npy", OLD)
    words = ["run", "--set", f"synth.cube={tmp_path / 'x.npy'}", "-o", str(notes.parent)]
    done = CliRunner().invoke(app, [*words, "--overwrite"])
    assert (done.exit_code, done.stdout) == (3, "")
    assert "neither empty nor one of ours" in done.stderr
    assert notes.read_text() == "years of work"


@pytest.mark.parametrize("name", ["scene.json", "run.json"])
def test_mark_of_another_program_does_not_make_a_folder_ours(tmp_path: Path, name: str) -> None:
    path = tmp_path / "game.zarr"
    path.mkdir()
    (path / name).write_text('{"schema": "blender.scene/1"}')
    with pytest.raises(DataError, match="neither empty nor one of ours"):
        write_cube(path, NEW, overwrite=True)
    (path / name).write_text(f'{{"schema": "spectralift.{name.removesuffix(".json")}/1"}}')
    write_cube(path, NEW, overwrite=True)
    assert_whole(read_cube(path))


def test_folders_named_almost_like_ours_are_left_alone(tmp_path: Path) -> None:
    names = (
        ".out.npy.deadbeef",
        ".out.npy.old-deadbeef.part",
        ".out.npy.notes.part",
        ".out.npy.old",
    )
    for name in names:
        (tmp_path / name).mkdir()
    write_cube(tmp_path / "out.npy", NEW)
    write_cube(tmp_path / "out.npy", NEW, overwrite=True)
    found = {p.name for p in tmp_path.iterdir()}
    assert found == {*names, "out.npy", "out.npy.json"}


def test_file_system_without_locks_still_takes_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    write_cube(tmp_path / "out.npy", OLD)
    write_cube(tmp_path / "out.npy", NEW, overwrite=True)
    assert_whole(read_cube(tmp_path / "out.npy"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.npy", "out.npy.json"]


def test_file_where_a_folder_goes_and_the_reverse(tmp_path: Path) -> None:
    path = tmp_path / "out.zarr"
    path.write_text("a file")
    write_cube(path, NEW, overwrite=True)
    assert_whole(read_cube(path))
    (tmp_path / "empty.npy").mkdir()
    write_cube(tmp_path / "empty.npy", NEW, overwrite=True)
    assert_whole(read_cube(tmp_path / "empty.npy"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty.npy", "empty.npy.json", "out.zarr"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "missing", tmp_path / "file", Path("/proc/self")):
        with pytest.raises(DataError) as caught:
            write_cube(folder / "x.npy", NEW)
        assert str(folder) in caught.value.message
        assert caught.value.hint
    with pytest.raises(DataError, match="not the name of an output"):
        Staging(Path("/"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(DataError, match="cannot write there"):
            write_cube(tmp_path / "x.npy", NEW)
    finally:
        tmp_path.chmod(0o700)


def test_stale_companions_go_with_the_commit(tmp_path: Path) -> None:
    path, companion = tmp_path / "out.tif", tmp_path / "out.tif.aux.xml"
    companion.write_text("statistics of another file")
    with Staging(path, stale=(companion,)) as stage:
        stage.path().write_text("new")
        assert companion.exists()
        stage.commit()
    assert [p.name for p in tmp_path.iterdir()] == ["out.tif"]


def test_write_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "é\n")
    with pytest.raises(OutputExistsError):
        write_text(path, "other")
    write_text(path, "other", overwrite=True)
    assert path.read_text(encoding="utf-8") == "other"
    with files_limited_to(10), pytest.raises(DataError, match="File too large"):
        write_text(path, "x" * 100, overwrite=True)
    assert path.read_text(encoding="utf-8") == "other"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
