"""The command line's contract: stdout, stderr, exit codes, signals, nothing half written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from spectralift_cli.app import app
from tests.conftest import Run

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "numpy", "rasterio", "h5py", "scipy", "matplotlib", "tifffile", "zarr", "yaml")
COMMANDS = (
    *(command.callback.__name__ for command in app.registered_commands),
    *(group.typer_instance.info.name for group in app.registered_groups),
)


def two_lines(text: str) -> bool:
    lines = [line for line in text.splitlines() if not line.startswith("warning: ")]
    return len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("  hint: ")


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory, spectralift: Run) -> Path:
    path = tmp_path_factory.mktemp("sample") / "in.npy"
    done = spectralift("sample", "synthetic", "--size", "9,7,5", "--crs", "EPSG:32633", "-o", path)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture
def cube(tmp_path: Path, sampled: Path) -> Path:
    """A cube with its sidecar, which the test may spoil."""
    for path in sampled.parent.iterdir():
        shutil.copy2(path, tmp_path)
    return tmp_path / sampled.name


@pytest.mark.parametrize("words", [["--help"], *([c, "--help"] for c in COMMANDS), ["--version"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    script = (
        "import sys\nfrom spectralift_cli.app import app\n"
        f"try:\n    app({words!r})\nexcept SystemExit as leave:\n    assert leave.code == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_completion_imports_nothing_heavy_and_completes() -> None:
    script = (
        "import sys\nsys.argv[0] = 'spectralift'\nfrom spectralift_cli.app import app\n"
        "try:\n    app()\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    environment = {
        **os.environ, "_SPECTRALIFT_COMPLETE": "complete_bash",
        "COMP_WORDS": "spectralift con", "COMP_CWORD": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["convert"]
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("shell", "name"),
    [("bash", "spectralift.bash"), ("zsh", "_spectralift"), ("fish", "spectralift.fish")],
)
def test_completion_scripts_are_those_of_the_program(shell: str, name: str) -> None:
    environment = {**os.environ, "_SPECTRALIFT_COMPLETE": f"source_{shell}"}
    script = "import sys; sys.argv[0] = 'spectralift'; from spectralift_cli.app import app; app()"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert (ROOT / "completions" / name).read_text() == done.stdout


def test_readme_names_every_command_and_no_other() -> None:
    readme = (ROOT / "README.md").read_text()
    table = [
        line.split("`")[1].split()[0] for line in readme.splitlines() if line.startswith("| `")
    ]
    assert table == list(COMMANDS)


def test_stdout_is_one_path_and_stderr_the_talk(cube: Path, spectralift: Run) -> None:
    target = cube.with_name("out.npy")
    done = spectralift("convert", cube, target)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{target}\n", "")


def test_json_is_one_strict_document(cube: Path, spectralift: Run) -> None:
    values = np.full((4, 3, 2), np.nan, np.float32)
    np.save(cube.with_name("nan.npy"), values)
    done = spectralift("info", cube.with_name("nan.npy"), cube, "--json")
    document = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(name))
    assert document["schema"] == "spectralift.info/1"
    empty, full = document["items"]
    assert empty["statistics"]["min"] is None
    assert empty["statistics"]["nodata_pixels"] == 12
    assert full["crs"] == "EPSG:32633"
    assert full["statistics"]["min"] == np.load(cube).min()
    written = spectralift("convert", cube, cube.with_name("j.npy"), "--json")
    assert json.loads(written.stdout)["outputs"] == [
        str(cube.with_name("j.npy")), str(cube.with_name("j.npy.json"))
    ]  # fmt: skip


def test_existing_output_is_kept_and_overwrite_replaces_it(cube: Path, spectralift: Run) -> None:
    target = cube.with_name("out.npy")
    target.write_bytes(b"precious")
    done = spectralift("convert", cube, target)
    assert (done.returncode, done.stdout) == (4, "")
    assert two_lines(done.stderr)
    assert target.read_bytes() == b"precious"
    assert spectralift("convert", cube, target, "--overwrite").returncode == 0
    np.testing.assert_array_equal(np.load(target), np.load(cube))


def test_in_place_conversion(cube: Path, spectralift: Run) -> None:
    before = np.load(cube)
    done = spectralift("convert", cube, cube, "--overwrite", "-b", "3,1")
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(cube), before[:, :, [2, 0]])


def test_same_input_same_bytes(cube: Path, spectralift: Run) -> None:
    for name in ("a.npy", "b.npy"):
        spectralift("convert", cube, cube.with_name(name), "--window", "1,2,5,4")
    for ending in ("", ".json"):
        a, b = (cube.with_name(f"{n}.npy{ending}").read_bytes() for n in "ab")
        assert a == b


USAGE = [
    ["convert"],
    ["convert", "IN", "OUT.xyz"],
    ["convert", "IN", "OUT.npy", "--window", "1,2"],
    ["convert", "IN", "OUT.npy", "--co", "COMPRESS"],
    ["convert", "IN", "OUT.npy", "--co", "NO=1"],
    ["convert", "IN", "OUT.npy", "--dtype", "int17"],
    ["convert", "IN", "OUT.npy", "--axis-order", "abc"],
    ["convert", "IN", "OUT.npy", "--memory", "lots"],
    ["convert", "IN", "OUT.npy", "--window", "0,0,1,1", "--bounds", "0", "0", "1", "1"],
    ["sample", "nothing", "-o", "OUT.npy"],
    ["sample", "synthetic"],
    ["sample", "indian-pines", "--seed", "1", "-o", "OUT.npy"],
    ["info"],
    ["nocommand"],
]


@pytest.mark.parametrize("words", USAGE, ids=" ".join)
def test_usage_errors_exit_2_with_two_lines(words: list[str], cube: Path) -> None:
    before = sorted(cube.parent.iterdir())
    filled = [w.replace("IN", str(cube)).replace("OUT", str(cube.with_name("out"))) for w in words]
    done = CliRunner().invoke(app, filled)
    assert (done.exit_code, done.stdout) == (2, "")
    assert two_lines(done.stderr)
    assert sorted(cube.parent.iterdir()) == before


DATA = [
    (["convert", "IN", "OUT.npy", "--window", "0,0,10,1"], "10"),
    (["convert", "IN", "OUT.npy", "-b", "6"], "5"),
    (["convert", "IN", "OUT.npy", "-b", "5000nm"], "2500"),
    (["convert", "IN", "OUT.npy", "-b", "red"], "650nm"),
    (["convert", "IN", "OUT.npy", "--bounds", "0", "0", "1", "1"], "500000"),
    (["convert", "IN", "OUT.npy", "--dtype", "uint8"], "255"),
    (["convert", "IN", "OUT.npy", "--scale", "0"], "scale"),
    (["convert", "IN", "OUT.npy", "--nodata", "-1"], "65535"),
    (["convert", "IN", "/nowhere/OUT.npy"], "does not exist"),
    (["convert", "missing.npy", "OUT.npy"], "no such file"),
    (["sample", "synthetic", "--size", "0,1,1", "-o", "OUT.npy"], "0 x 1 x 1"),
    (["sample", "synthetic", "--crs", "EPSG:0", "-o", "OUT.npy"], "EPSG:0"),
    (["info", "."], "folder"),
]


@pytest.mark.parametrize(("words", "told"), DATA, ids=lambda v: " ".join(v))
def test_data_errors_exit_3_with_two_lines_and_leave_nothing(
    words: list[str], told: str, cube: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(cube.parent)
    before = sorted(cube.parent.iterdir())
    filled = [w.replace("IN", str(cube)).replace("OUT", "out") for w in words]
    done = CliRunner().invoke(app, filled)
    assert (done.exit_code, done.stdout) == (3, "")
    assert two_lines(done.stderr), done.stderr
    assert told in done.stderr
    assert sorted(cube.parent.iterdir()) == before


def test_debug_shows_the_traceback(spectralift: Run) -> None:
    done = spectralift("info", "missing.npy", "--debug")
    assert done.returncode == 3
    assert "Traceback" in done.stderr


def test_warnings_are_shown_once_and_carried_in_json(cube: Path, spectralift: Run) -> None:
    centres = cube.with_name("um.txt")
    centres.write_text("0.5\n0.6\n0.7\n0.8\n0.9\n")
    done = spectralift("info", cube, cube, "--wavelengths", centres, "--json", "-q")
    assert done.stderr.count("warning: ") == 1
    document = json.loads(done.stdout)
    assert len(document["warnings"]) == 1
    assert document["items"][0]["wavelengths_nm"] == [500, 600, 700, 800, 900]


def test_closed_stdout_ends_quietly(cube: Path) -> None:
    words = [sys.executable, "-m", "spectralift_cli", "info", *[str(cube)] * 40]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141


@pytest.mark.parametrize("words", [["--help"], ["synth", "--help"], ["sample", "--list"]])
def test_a_stdout_that_nobody_reads_or_that_is_closed_ends_quietly(words: list[str]) -> None:
    program = [sys.executable, "-m", "spectralift_cli", *words]
    unread, end = os.pipe()
    os.close(unread)
    try:
        done = subprocess.run(program, stdout=end, stderr=subprocess.PIPE)
    finally:
        os.close(end)
    assert (done.returncode, done.stderr) == (141, b"")
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *program]
    done = subprocess.run(closed, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (141, b"")


def test_closed_stderr_and_stdin_change_nothing(cube: Path) -> None:
    program = [sys.executable, "-m", "spectralift_cli", "info", str(cube)]
    done = subprocess.run(["sh", "-c", 'exec "$@" <&- 2>&-', "sh", *program], capture_output=True)
    assert done.returncode == 0
    assert done.stdout.startswith(b"path")


def test_no_arguments_print_the_help_alone(spectralift: Run) -> None:
    done = spectralift()
    assert (done.returncode, done.stderr) == (2, "")
    assert "COMMAND" in done.stdout


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_interrupted_write_keeps_the_old_output(
    number: int, code: int, tmp_path: Path, spectralift: Run
) -> None:
    big, target = tmp_path / "big.npy", tmp_path / "out.npy"
    array = np.lib.format.open_memmap(big, mode="w+", dtype=np.int16, shape=(4000, 1000, 400))
    array.flush()  # 3.2 GB, sparse: writing it takes long enough to be interrupted
    del array
    target.write_bytes(b"old")
    words = [sys.executable, "-m", "spectralift_cli", "convert", big, target, "--overwrite"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".out.npy.*.part/out.npy")) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, b"")
    assert b"Traceback" not in err
    assert target.read_bytes() == b"old"
    strays = list(tmp_path.glob(".out.npy.*"))
    assert bool(strays) == (number == signal.SIGKILL)
    small = tmp_path / "small.npy"
    np.save(small, np.zeros((2, 2, 2), np.int16))
    assert spectralift("convert", small, target, "--overwrite").returncode == 0
    assert not list(tmp_path.glob(".out.npy.*"))


CHAIN = (".h5", ".hdr", ".tif", ".mat", ".npz", ".zarr", ".npy")


def test_a_chain_through_every_format_keeps_values_and_metadata(
    cube: Path, spectralift: Run
) -> None:
    made = [cube]
    for ending in CHAIN:
        done = spectralift("convert", made[-1], cube.with_name(f"chain{ending}"))
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        made.append(Path(done.stdout.strip()))
    described, *items = json.loads(spectralift("info", *made, "--json").stdout)["items"]
    for ending, item in zip(CHAIN, items, strict=True):
        for key in ("rows", "cols", "bands", "dtype", "nodata", "scale", "offset", "crs",
                    "wavelengths_nm", "fwhm_nm", "transform", "statistics"):  # fmt: skip
            assert item[key] == described[key], (ending, key)
    np.testing.assert_array_equal(np.load(made[-1]), np.load(cube))
