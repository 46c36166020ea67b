"""The main job from the shell: synth, train, infer and metrics, chained, repeated, and refused."""

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

import spectralift_cli as sl
from spectralift_cli.app import app
from tests.conftest import Run
from tests.test_cli import two_lines

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, spectralift: Run) -> Path:
    """A folder with a cube, its scene, a short training and the sharp cube, made by the shell."""
    folder = tmp_path_factory.mktemp("main-job")
    cube = "--size 40,36,12 --crs EPSG:32633 -o cube.h5"
    for words in (
        f"sample synthetic {cube}",
        "synth cube.h5 -o scene",
        "train scene -o model.safetensors --preset paper --epochs 60 --history history.csv",
        "infer model.safetensors scene -o sharp.tif",
    ):
        done = spectralift(*words.split(), cwd=folder)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 1
    return folder


def test_the_chain_is_a_pipe_of_paths(made: Path, tmp_path: Path) -> None:
    script = (
        'm=$(spectralift train "$(spectralift synth ip.h5 -o s)" -o m.safetensors --preset paper --epochs 20) && '
        'spectralift metrics s "$(spectralift infer "$m" s -o sr.h5)" --json'
    )
    shutil.copy(made / "cube.h5", tmp_path / "ip.h5")
    shim = tmp_path / "spectralift"
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m spectralift_cli "$@"\n')
    shim.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)
    assert scores["schema"] == "spectralift.metrics/1"
    assert scores["ergas_ratio"] == 4
    assert scores["psnr_db"] > 15


def test_two_runs_with_the_same_seed_give_the_same_bytes(
    made: Path, tmp_path: Path, spectralift: Run
) -> None:
    options = ("--threads", "1", "-q")
    for words in (
        ("synth", made / "cube.h5", "-o", "scene", "-q"),
        (
            "train",
            "scene",
            "-o",
            "model.safetensors",
            "--preset",
            "paper",
            "--epochs",
            60,
            *options,
        ),
        ("infer", "model.safetensors", "scene", "-o", "sharp.tif", *options),
    ):
        done = spectralift(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    names = ["model.safetensors", "sharp.tif"]
    names += [f"scene/{path.name}" for path in (made / "scene").iterdir()]
    assert len(names) == 8
    for name in names:
        assert (tmp_path / name).read_bytes() == (made / name).read_bytes(), name


def test_the_sharp_cube_has_the_grid_of_the_msi_and_the_bands_of_the_hsi(made: Path) -> None:
    with sl.open_cube(made / "cube.h5") as cube, sl.open_cube(made / "sharp.tif") as sharp:
        assert sharp.meta.shape == cube.meta.shape
        assert sharp.meta.transform == cube.meta.transform
        np.testing.assert_array_equal(sharp.meta.wavelengths_nm, cube.meta.wavelengths_nm)
        assert sharp.meta.provenance is not None
        commands = [step["command"] for step in sharp.meta.provenance["steps"]]
    assert commands == ["sample", "synth", "train", "infer"]
    history = (made / "history.csv").read_text().splitlines()
    assert history[0].startswith("epoch,")
    assert len(history) == 61


def test_loose_files_keep_georeference_and_units(made: Path, tmp_path: Path) -> None:
    """LR-HSI as ENVI in reflectance x 10000, HR-MSI as GeoTIFF with a CRS, SRF as CSV."""
    run = CliRunner()
    scene = made / "scene"
    words: list[list[object]] = [
        ["convert", scene / "lr_hsi.h5", "lr.hdr", "--dtype", "int16", "--scale", "1e-4",
         "--nodata", "-9999"],
        ["convert", scene / "hr_msi.h5", "msi.tif"],
        ["train", "--lr-hsi", "lr.hdr", "--hr-msi", "msi.tif", "--srf-file", scene / "srf.csv",
         "-o", "m.safetensors", "--preset", "paper", "--epochs", "60"],
        ["infer", "m.safetensors", "msi.tif", "-o", "sharp.tif"],
    ]  # fmt: skip
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        for command in words:
            done = run.invoke(app, [str(word) for word in command])
            assert done.exit_code == 0, done.stderr
    finally:
        os.chdir(before)
    with sl.open_cube(tmp_path / "sharp.tif") as sharp, sl.open_cube(tmp_path / "msi.tif") as msi:
        assert (sharp.meta.dtype.name, sharp.meta.scale, sharp.meta.nodata) == (
            "int16",
            1e-4,
            -9999,
        )
        assert (sharp.meta.crs, sharp.meta.transform) == (msi.meta.crs, msi.meta.transform)
        assert sharp.meta.wavelengths_nm is not None
        assert 0 < np.nanmean(sharp.read_units()) < 1


def test_bands_that_the_cube_does_not_cover_are_dropped_from_both_sides(
    made: Path, tmp_path: Path
) -> None:
    """An MSI that still has the dropped band gives what the MSI without it gives."""
    centres = {"a": 1000, "far": 9000, "b": 1500, "c": 2000}
    rows = [
        ",".join([f"{nm}", *(f"{np.exp(-(((nm - c) / 200) ** 2)):.6f}" for c in centres.values())])
        for nm in range(400, 10000, 50)
    ]
    srf = tmp_path / "srf.csv"
    srf.write_text("\n".join([f"wavelength_nm,{','.join(centres)}", *rows]))
    values = sl.read_cube(made / "scene" / "hr_msi.h5").values
    np.save(tmp_path / "all.npy", values)
    np.save(tmp_path / "covered.npy", values[:, :, [0, 2, 3]])
    choice = sl.ResponseChoice(srf_file=srf, drop_uncovered_bands=True)
    made_with = []
    for name in ("all", "covered"):
        inputs = sl.TrainInputs(
            lr_hsi=made / "scene" / "lr_hsi.h5", hr_msi=tmp_path / f"{name}.npy", response=choice
        )
        model = tmp_path / f"{name}.safetensors"
        with pytest.warns(sl.SpectraliftWarning, match=r"dropped.*far"):
            sl.train(inputs, model, sl.TrainConfig(preset="paper", epochs=2))
        sl.infer(model, inputs.hr_msi, tmp_path / f"{name}-sharp.npy")
        made_with.append(sl.read_cube(tmp_path / f"{name}-sharp.npy").values)
    np.testing.assert_array_equal(*made_with)


def test_srf_from_stdin(made: Path, tmp_path: Path) -> None:
    srf = (made / "scene" / "srf.csv").read_text()
    words = ["train", "--lr-hsi", str(made / "scene/lr_hsi.h5"), "--srf-file", "-", "--dry-run"]
    done = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "m.safetensors")], input=srf)
    assert done.exit_code == 0, done.stderr
    assert "4 -> 12 bands" in done.stdout


def test_the_state_of_a_killed_training_is_not_lost_by_starting_again(
    made: Path, tmp_path: Path
) -> None:
    state = tmp_path / "m.safetensors.state"
    state.write_bytes(b"hours of work")
    words = ["train", str(made / "scene"), "-o", str(tmp_path / "m.safetensors")]
    words += ["--preset", "paper", "--epochs", "2"]
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, done.stdout) == (4, "")
    assert "--resume" in done.stderr
    assert state.read_bytes() == b"hours of work"
    assert CliRunner().invoke(app, [*words, "--overwrite"]).exit_code == 0
    assert not state.exists()


def test_an_interrupted_training_says_how_it_goes_on(made: Path, tmp_path: Path) -> None:
    model = tmp_path / "m.safetensors"
    words = ["train", made / "scene", "-o", model, "--preset", "paper", "--epochs", 10**6]
    command = [sys.executable, "-m", "spectralift_cli", *map(str, words), "--save-every", "0.1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not Path(f"{model}.state").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"{model}.state keeps the training: --resume continues it" in stderr


def test_dry_runs_write_nothing(made: Path, tmp_path: Path) -> None:
    for words in (
        ["synth", made / "cube.h5", "-o", tmp_path / "s"],
        ["train", made / "scene", "-o", tmp_path / "m.safetensors"],
        ["infer", made / "model.safetensors", made / "scene", "-o", tmp_path / "x.tif"],
    ):
        done = CliRunner().invoke(app, [*map(str, words), "--dry-run", "--json"])
        assert done.exit_code == 0, done.stderr
        assert json.loads(done.stdout)["plan"]
    assert list(tmp_path.iterdir()) == []


def test_checks_exit_5_and_still_print_the_scores(made: Path) -> None:
    words = ["metrics", str(made / "scene"), str(made / "sharp.tif")]
    passing = CliRunner().invoke(app, [*words, "--fail-under", "psnr=1", "--fail-over", "sam=90"])
    assert passing.exit_code == 0, passing.stderr
    failing = CliRunner().invoke(app, [*words, "--fail-under", "psnr=99", "--json"])
    assert failing.exit_code == 5
    assert json.loads(failing.stdout)["psnr_db"] < 99
    assert two_lines(failing.stderr)
    wrong = CliRunner().invoke(app, [*words, "--fail-over", "psnr=30"])
    assert (wrong.exit_code, wrong.stdout) == (2, "")


def test_the_pipeline_makefile_rebuilds_only_what_changed(made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "cube.h5", tmp_path / "mine.h5")
    shim = tmp_path / "spectralift"
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m spectralift_cli "$@"\n')
    shim.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    make = ["make", "-f", str(ROOT / "examples" / "Makefile"), "CUBE=mine.h5", "EPOCHS=5"]

    def run() -> str:
        done = subprocess.run(make, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "spectralift synth" in run()
    assert "Nothing to be done" in run()
    (tmp_path / "sharp.h5").unlink()
    again = run()
    assert "spectralift infer" in again
    assert "spectralift train" not in again


BAD = [
    (["infer", "model.safetensors", "cube.h5", "-o", "x.h5"], "12 bands"),
    (["infer", "cube.h5", "scene", "-o", "x.h5"], "cube.h5"),
    (["infer", "pickle.safetensors", "scene", "-o", "x.h5"], "pickle.safetensors"),
    (["infer", "short.safetensors", "scene", "-o", "x.h5"], "short.safetensors"),
    (["infer", "model.safetensors", "scene", "-o", "x.h5", "--clip", "1,0"], "LO,HI"),
    (["infer", "model.safetensors", "scene", "-o", "x.h5", "--device", "cuda:77"], "cuda:77"),
    (["train", "cube.h5", "-o", "x.safetensors"], "not a folder"),
    (["train", "--lr-hsi", "cube.h5", "--srf-file", "wrong.csv", "-o", "x.safetensors"], "3"),
    (["train", "--lr-hsi", "tiny.npy", "--srf-file", "tiny.csv", "-o", "x.safetensors"], "2"),
    (["synth", "cube.h5", "-o", "x", "--downsample-ratio", "41"], "41"),
    (["synth", "cube.h5", "-o", "x", "--snr-spatial", "nan"], "nan"),
    (["synth", "cube.h5", "-o", "x", "--psf-file", "zero.csv"], "sum"),
    (["synth", "cube.h5", "-o", "x", "--srf-file", "wrong.csv"], "12"),
    (["metrics", "scene", "scene/lr_hsi.h5"], "40 x 36"),
]


@pytest.mark.parametrize(("words", "told"), BAD, ids=lambda v: " ".join(v))
def test_bad_input_exits_3_with_two_lines_and_leaves_nothing(
    words: list[str], told: str, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    Path("pickle.safetensors").write_bytes(b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00.")
    Path("short.safetensors").write_bytes(Path("model.safetensors").read_bytes()[:-9])
    Path("wrong.csv").write_text("1,2,3\n4,5,6\n")
    Path("zero.csv").write_text("0,0,0\n0,0,0\n0,0,0\n")
    np.save("tiny.npy", np.ones((1, 1, 2), np.float32))
    Path("tiny.csv").write_text("1,1\n")
    before = sorted(Path.cwd().iterdir())
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, done.stdout) == (3, ""), done.stderr
    assert two_lines(done.stderr), done.stderr
    assert told in done.stderr
    assert sorted(Path.cwd().iterdir()) == before


USAGE = [
    ["train", "-o", "x.safetensors"],
    ["train", "scene", "--scene", "scene", "-o", "x.safetensors"],
    ["train", "scene", "--lr-hsi", "cube.h5", "-o", "x.safetensors"],
    ["train", "--lr-hsi", "cube.h5", "-o", "x.safetensors"],
    ["train", "scene", "-o", "x.safetensors", "--preset", "paper", "--epochs", "0"],
    ["train", "scene", "-o", "x.safetensors", "--preset", "magic"],
    ["train", "scene", "-o", "x.safetensors", "--epochs", "9"],
    ["train", "scene", "-o", "x.safetensors", "--preset", "paper", "--effort", "best"],
    ["train", "scene", "-o", "x.safetensors", "--history", "h.csv"],
    ["synth", "cube.h5", "-o", "x", "--sigma", "-1"],
    ["synth", "cube.h5", "-o", "x", "--psf-type", "round"],
    ["synth", "cube.h5", "-o", "x", "--psf-file", "zero.csv", "--sigma", "3.4"],
    ["synth", "cube.h5", "-o", "x", "--srf-file", "wrong.csv", "--num-msi-bands", "4"],
    ["train", "--lr-hsi", "cube.h5", "--srf-file", "s.csv", "--fwhm-factor", "4", "-o", "x"],
    ["train", "scene", "--var", "cube", "-o", "x.safetensors"],
    ["train", "scene", "-o", "scene", "--overwrite"],
    ["train", "scene", "-o", "x.tif"],
    ["train", "scene", "-o", "x.safetensors", "--history", "x.safetensors"],
    ["train", "--lr-hsi", "cube.h5", "--srf-file", "s.csv", "-o", "cube.h5", "--overwrite"],
    ["metrics", "scene", "sharp.tif", "--per-band", "sharp.tif", "--overwrite"],
    ["infer", "model.safetensors", "scene", "-o", "x.xyz"],
    ["metrics", "scene", "sharp.tif", "--mode", "published", "--ratio", "4"],
]


@pytest.mark.parametrize("words", USAGE, ids=" ".join)
def test_usage_errors_exit_2(words: list[str], made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    before = sorted(Path.cwd().iterdir())
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, done.stdout) == (2, ""), done.stderr
    assert two_lines(done.stderr), done.stderr
    assert sorted(Path.cwd().iterdir()) == before


def test_python_api_is_lazy_complete_and_the_same_code(made: Path) -> None:
    script = (
        "import sys, spectralift_cli; print([m for m in ('numpy', 'torch') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
    assert all(getattr(sl, name) is not None for name in sl.__all__)
    shell = CliRunner().invoke(
        app, ["metrics", str(made / "scene"), str(made / "sharp.tif"), "--json"]
    )
    scores = sl.evaluate(made / "scene", made / "sharp.tif")
    assert json.loads(shell.stdout)["psnr_db"] == scores.values["psnr"]
