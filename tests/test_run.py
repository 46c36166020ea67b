"""`run`: flat and native configs, one folder out, the same bytes twice, and configs that are none."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
from scipy.io import loadmat, savemat
from typer.testing import CliRunner, Result

from spectralift_cli.app import app
from spectralift_cli.core.checkpoint import load_checkpoint
from spectralift_cli.core.describe_run import describe_run
from spectralift_cli.core.formats import read_cube, write_cube
from spectralift_cli.core.metrics import METRICS
from spectralift_cli.core.runs.configtext import LIMIT_BYTES
from spectralift_cli.core.runs.flatconfig import FlatConfig
from spectralift_cli.core.samples import synthetic
from spectralift_cli.core.scene import open_scene
from spectralift_cli.core.sensors.response import documented_srf, invented_wavelengths

EXAMPLES = Path(__file__).parent.parent / "examples"
ROWS, COLS, BANDS = 24, 20, 10
FLAT = {
    "mat_file": "cube.mat", "mat_key": "toy", "sigma": 1.2, "kernel_size": 2, "epochs": 5,
    "hidden_size": 8,
}  # fmt: skip
NATIVE = {
    "schema": "spectralift.run/1",
    "synth": {"cube": "cube.mat", "kernel-size": 2},
    "train": {"preset": "paper", "epochs": 5, "hidden_size": 8},
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a cube in it."""
    monkeypatch.chdir(tmp_path)
    write_cube("cube.mat", synthetic(ROWS, COLS, BANDS), options={"VARIABLE": "toy"})
    return tmp_path


def run(*words: object, **more: Any) -> Result:
    return CliRunner().invoke(app, ["run", *map(str, words)], **more)


def done(*words: object, **more: Any) -> Result:
    result = run(*words, **more)
    assert result.exit_code == 0, result.stderr
    return result


def config(name: str, values: object) -> str:
    text = json.dumps(values) if name.endswith("json") else yaml.safe_dump(values)
    Path(name).write_text(text)
    return name


def bytes_of(folder: str) -> dict[str, bytes]:
    """Return what must be the same from run to run: all but times and host."""
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in files
        if path.name not in ("run.json", "run.log")
    }


# --- whole runs


@pytest.mark.parametrize(("kind", "ending"), [("numpy", ".npy"), ("H5", ".h5"), ("MatLab", ".mat")])
def test_flat_synthetic(kind: str, ending: str, here: Path) -> None:
    source = config("c.yaml", {**FLAT, "output_file_type": kind, "log_dir": "logs"})
    result = done(source, "-o", "out")
    assert result.stdout == "out\n"
    name = "super_resolved_hsi_toy_gaussian_4_4"
    expected = {"scene", "model.safetensors", "history.csv", name + ending, "metrics.json",
                "used_config.yaml", "run.json", "run.log"}  # fmt: skip
    expected |= {f"{name}.npy.json"} if ending == ".npy" else set()
    assert {path.name for path in Path("out").iterdir()} == expected
    cube = read_cube(f"out/{name}{ending}")
    assert (cube.meta.shape, cube.meta.dtype.name) == ((ROWS, COLS, BANDS), "float32")
    if ending == ".h5":
        with h5py.File(f"out/{name}.h5") as file:
            assert file[name].compression == "gzip"
    elif ending == ".mat":
        assert loadmat(f"out/{name}.mat")[name].shape == (ROWS, COLS, BANDS)
    assert Path("logs/run.log").read_text() == Path("out/run.log").read_text() + "\n"
    recipe = open_scene("out/scene").recipe
    assert (recipe["protocol"], recipe["srf_wavelengths"]) == ("published", "invented")
    metrics = json.loads(Path("out/metrics.json").read_text())["modes"]
    truth = read_cube("out/scene/gt.h5").values.astype(np.float64)
    rmse = np.sqrt(np.mean((truth - cube.values) ** 2))
    assert [metrics[m]["mode"] for m in ("standard", "published")] == ["standard", "published"]
    assert metrics["standard"][METRICS["rmse"].key] == pytest.approx(rmse, rel=1e-6)
    assert "mode published" in result.stderr


def test_report_and_json(here: Path) -> None:
    result = done(config("c.json", FLAT), "-o", "out", "--json", "--threads", 1)
    document = json.loads(result.stdout, parse_constant=pytest.fail)
    report = json.loads(Path("out/run.json").read_text())
    parameters = 4 * 8 + 8 + 5 * (8 * 8 + 8) + 8 * BANDS + BANDS
    weights = 4 * 8 + 5 * 8 * 8 + 8 * BANDS
    flops = 2 * weights + (parameters - weights)
    assert document["schema"] == report["schema"] == "spectralift.run/1"
    assert report["model"]["parameters"] == parameters
    assert report["model"]["flops_image"] == flops * ROWS * COLS
    assert [s["stage"] for s in report["stages"]] == ["synth", "train", "infer", "metrics"]
    assert 10 < report["peak_memory_mb"] < 1e5
    for name in report["outputs"].values():
        assert (Path("out") / name).exists()
    assert document["outputs"][0] == "out"
    for path in (Path("out"), Path("out/run.json")):
        described = describe_run(path)
        assert (described["kind"], described["outputs"]) == ("run", report["outputs"])
        assert described["model"] == report["model"]
    assert all(Path(name).exists() for name in document["outputs"])
    assert [scores["mode"] for scores in document["metrics"]] == ["standard", "published"]


@pytest.mark.parametrize("by", ["srf_file", "num_bands"])
@pytest.mark.parametrize("kind", ["NUMPY", "h5", "matlab"])
def test_flat_real_world(by: str, kind: str, here: Path) -> None:
    done(config("c.yaml", {**FLAT, "verbose": 0}), "-o", "first")
    hsi, msi = (read_cube(f"first/scene/{role}.h5").values for role in ("lr_hsi", "hr_msi"))
    savemat("hsi.mat", {"a": hsi})
    savemat("msi.mat", {"b": msi})
    weights = documented_srf(4, invented_wavelengths(4, BANDS), 4.2).weights
    savemat("srf.mat", {"s": 7 * weights.T})  # B x M, not normalised
    values = {
        "synthetic": False, "lr_hsi_file": "hsi.mat", "hr_msi_file": "msi.mat", "epochs": 5,
        "hidden_size": 8, "output_file_type": kind, "psf_type": None, "mat_file": "",
    }  # fmt: skip
    if by == "srf_file":
        values |= {"provide_srf": True, "srf_file": "srf.mat"}
    else:
        values |= {"num_bands_msi_non_synthetic": 4, "srf_file": "unused.mat", "provide_srf": False}
    result = done(config("r.yaml", values), "-o", "out")
    ending = {"NUMPY": "npy", "h5": "h5", "matlab": "mat"}[kind]
    cube = read_cube(f"out/super_resolved_hsi.{ending}")
    # the same spectra, response and data as in the synthetic run
    np.testing.assert_allclose(
        cube.values, read_cube("first/super_resolved_hsi_toy_gaussian_4_4.npy").values, atol=2e-6
    )
    assert not Path("out/metrics.json").exists()
    assert not Path("out/scene").exists()
    assert ("not used: srf_file" in result.stderr) == (by == "num_bands")
    if kind == "matlab":
        assert "super_resolved_hsi" in loadmat("out/super_resolved_hsi.mat")


def test_flat_custom_psf_and_srf(here: Path) -> None:
    savemat("psf.mat", {"k": np.full((3, 3), 5.0)})
    weights = np.random.default_rng(0).random((6, BANDS))
    savemat("srf.mat", {"s": weights})
    values = {**FLAT, "provide_psf": True, "psf_file": "psf.mat", "srf_file": "srf.mat",
              "psf_type": "own"}  # fmt: skip
    result = done(config("c.yaml", values), "-o", "out")
    assert Path("out/super_resolved_hsi_toy_own_4_6.npy").is_file()
    assert "num_msi_bands is 4, srf.mat has 6" in result.stderr
    checkpoint = load_checkpoint(Path("out/model.safetensors"))
    np.testing.assert_allclose(
        checkpoint.srf.weights, weights / weights.sum(axis=1, keepdims=True), rtol=1e-12
    )
    psf = np.loadtxt("out/scene/psf.csv", delimiter=",")
    np.testing.assert_allclose(psf, np.full((3, 3), 1 / 9))


def test_native_run_and_its_snapshot_give_the_same_bytes(here: Path) -> None:
    values = {**NATIVE, "infer": {"format": "hdr", "co": {"interleave": "bsq"}},
              "metrics": {"modes": ["published", "paper", "standard"][::2]}}  # fmt: skip
    done(config("n.yaml", values), "-o", "a", "-q")
    done("--config", "n.yaml", "-o", "b", "--threads", 1)
    assert Path("a/super_resolved_hsi.hdr").is_file()
    assert bytes_of("a") == bytes_of("b")
    done("a/used_config.yaml", "-o", "c")
    assert bytes_of("a") == bytes_of("c")
    assert open_scene("a/scene").recipe["protocol"] == "physical"


def test_flat_snapshot_gives_the_same_bytes(here: Path) -> None:
    source = config("c.json", {**FLAT, "init_lr": "1e-4", "lr_schedule": "cosine_restart"})
    first = done(source, "-o", "a", "--set", "train.num-restarts=1", "--set", "seed=7")
    done("-", "-o", "b", input=Path("a/used_config.yaml").read_text())
    assert bytes_of("a") == bytes_of("b")
    used = yaml.safe_load(Path("a/used_config.yaml").read_text())
    assert set(used) == {*FlatConfig.__dataclass_fields__, "train.num-restarts"}
    assert (used["seed"], used["init_lr"], used["max_lr"]) == (7, 1e-4, 1e-2)
    assert "final loss" in first.stderr
    trained = load_checkpoint(Path("a/model.safetensors")).train_config
    assert (trained.num_restarts, trained.seed) == (1, 7)


def test_set_alone_flat_and_native(here: Path) -> None:
    flat = [word for key, value in FLAT.items() for word in ("--set", f"{key}={value}")]
    done(*flat, "--set", "output_dir=deep/results", "--set", "verbose=0")
    assert json.loads(Path("deep/results/run.json").read_text())["config"] == "flat"
    pairs = [
        "synth.cube=cube.mat",
        "train.preset=paper",
        "train.epochs=5",
        "train.hidden-size=8",
        "infer.dtype=float64",
    ]
    result = done(*[word for pair in pairs for word in ("--set", pair)], "-o", "n")
    assert json.loads(Path("n/run.json").read_text())["config"] == "native"
    assert read_cube("n/super_resolved_hsi.h5").meta.dtype == np.float64
    assert result.stdout == "n\n"


def test_verbose_0_says_nothing_and_warnings_name_the_final_folder(here: Path) -> None:
    assert done(config("c.yaml", {**FLAT, "verbose": 0}), "-o", "out").stderr == ""
    georeferenced = synthetic(ROWS, COLS, BANDS, crs="EPSG:32633")
    write_cube("geo.tif", georeferenced)
    values = {**NATIVE, "synth": {"cube": "geo.tif", "srf_wavelengths": "invented"}}
    result = done(config("n.yaml", values), "--set", "synth.downsample_ratio=7",
                  "--set", "refine.enabled=false", "-o", "o2")  # fmt: skip
    report = json.loads(Path("o2/run.json").read_text())
    assert "the ratio 7 does not divide" in result.stderr
    assert len(report["warnings"]) == 1
    assert ".part" not in result.stderr + Path("o2/run.log").read_text()


def test_scene_and_loose_files_natively(here: Path) -> None:
    done(config("n.yaml", NATIVE), "-o", "a", "-q")
    scene = {"schema": "spectralift.run/1", "train": {"scene": "a/scene", **NATIVE["train"]}}  # type: ignore[dict-item]
    done(config("s.yaml", scene), "-o", "s")
    assert bytes_of("s")["super_resolved_hsi.h5"] == bytes_of("a")["super_resolved_hsi.h5"]
    assert bytes_of("s")["metrics.json"] == bytes_of("a")["metrics.json"]
    assert not Path("s/scene").exists()
    loose = {
        "schema": "spectralift.run/1",
        "train": {"lr_hsi": "a/scene/lr_hsi.h5", "hr_msi": "a/scene/hr_msi.h5",
                  "srf_file": "a/scene/srf.csv", **NATIVE["train"]},  # type: ignore[dict-item]
        "refine": {"psf_file": "a/scene/psf.csv"},
    }  # fmt: skip
    done(config("l.yaml", loose), "-o", "l")
    np.testing.assert_allclose(
        read_cube("l/super_resolved_hsi.h5").values, read_cube("a/super_resolved_hsi.h5").values,
        atol=2e-6,
    )  # fmt: skip
    assert not Path("l/metrics.json").exists()


def test_log_dir_inside_the_run(here: Path) -> None:
    values = {**FLAT, "output_dir": "res", "log_dir": "res/logs", "verbose": 0}
    done(config("c.yaml", values), "-o", "elsewhere")
    assert Path("elsewhere/logs/run.log").is_file()
    assert not Path("res").exists()
    values["log_dir"] = "res/../logs"
    done(config("c.yaml", values))
    assert Path("logs/run.log").is_file()
    assert Path("res/run.log").is_file()


def test_long_names_fit_into_matlab(here: Path) -> None:
    long = "a" * 60
    write_cube("cube.mat", synthetic(ROWS, COLS, BANDS), options={"VARIABLE": long}, overwrite=True)
    values = {**FLAT, "mat_key": long, "output_file_type": "matlab"}
    result = done(config("c.yaml", values), "-o", "out")
    name = f"super_resolved_hsi_{long}_gaussian_4_4"
    assert name[:63] in loadmat(f"out/{name}.mat")
    assert "MATLAB takes 63" in result.stderr


# --- what is already there, and what fails


def test_existing_folder(here: Path) -> None:
    source = config("c.yaml", {**FLAT, "verbose": 0})
    done(source, "-o", "out")
    before = bytes_of("out")
    assert run(source, "-o", "out", "--set", "seed=1").exit_code == 4
    assert bytes_of("out") == before
    done(source, "-o", "out", "--set", "seed=1", "--overwrite")
    assert bytes_of("out")["metrics.json"] != before["metrics.json"]
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("precious")
    assert run(source, "-o", "mine", "--overwrite").exit_code == 3
    Path("file").write_text("precious")
    assert run(source, "-o", "file", "--overwrite").exit_code == 3
    assert Path("file").read_text() == Path("mine/thesis.tex").read_text() == "precious"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"mat_key": "toi"}, "toy"),
        ({"mat_file": "cub.mat"}, "cube.mat"),
        ({"srf_file": "no.mat"}, "no.mat"),
        ({"downsample_ratio": 100}, "100"),
        ({"snr_spatial": float("nan")}, "nan"),
        ({"train.srf_file": "x.csv"}, "train.srf_file"),
        ({"infer.hr_msi": "nowhere.tif"}, "nowhere.tif"),
    ],
)
def test_failed_runs_leave_nothing(change: dict[str, Any], told: str, here: Path) -> None:
    before = sorted(here.iterdir())
    result = run(config("c.yaml", {**FLAT, **change}), "-o", "out")
    assert (result.exit_code, result.stdout) == (3, "")
    assert told in result.stderr
    assert ".part" not in result.stderr
    Path("c.yaml").unlink()
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_run_keeps_the_old_one(number: int, here: Path) -> None:
    source = config("c.yaml", {**FLAT, "verbose": 0})
    done(source, "-o", "out")
    before = bytes_of("out")
    words = [sys.executable, "-m", "spectralift_cli", "run", source, "-o", "out", "--overwrite"]
    with subprocess.Popen([*words, "--set", "epochs=10000000"]) as process:
        deadline = time.monotonic() + 60
        while not Path(".out.job/receipts/synth.json").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(60) == (143 if number == signal.SIGTERM else -number)
    assert bytes_of("out") == before
    assert [path.name for path in here.glob(".out*")] == [".out.job"]
    done(source, "-o", "out", "--overwrite")
    assert not list(here.glob(".out.*"))


def test_usage(here: Path) -> None:
    source = config("c.yaml", FLAT)
    assert run(source).exit_code == 2  # nowhere to write
    assert run(source, "--config", source, "-o", "out").exit_code == 2
    assert run("-o", "out").exit_code == 3
    assert run(source, "-o", "out", "--set", "epochs").exit_code == 3
    assert run(source, "-o", "out", "--device", "tpu").exit_code == 2
    assert not Path("out").exists()


def test_the_templates_run(here: Path) -> None:
    write_cube("ip.mat", read_cube("cube.mat"))
    write_cube("ip.h5", read_cube("cube.mat"))
    for name, epochs in (("config.yaml", "epochs=2"), ("config.json", "epochs=2"),
                         ("run.yaml", "train.effort=fast")):  # fmt: skip
        shutil.copy(EXAMPLES / name, name)
        done(name, "-o", name.replace(".", "_"), "--set", epochs, "-q")
    assert bytes_of("config_yaml") == bytes_of("config_json")


def test_stdin_is_bounded(here: Path) -> None:
    result = run("-", "-o", "out", input=b"#" * (LIMIT_BYTES + 5))
    assert result.exit_code == 3
    assert "standard input" in result.stderr
