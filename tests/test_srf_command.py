"""`spectralift srf` and `--sensor` on the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from spectralift_cli.core.cube import CubeMeta
from spectralift_cli.core.formats import create_cube
from spectralift_cli.core.sensors import SENSORS
from spectralift_cli.core.sensors.plot import band_spans, joined
from spectralift_cli.core.sensors.srf import read_srf
from tests.conftest import Run

NM = np.arange(410.0, 1010.0, 10)


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cube") / "cube.h5"
    bad = (NM > 930) & (NM < 960)
    meta = CubeMeta(
        (24, 24, NM.size), np.dtype("f4"), wavelengths_nm=NM, fwhm_nm=NM * 0 + 11, bad_bands=bad
    )
    values = np.random.default_rng(0).uniform(0.1, 0.9, meta.shape).cumsum(axis=2) / NM.size
    with create_cube(path, meta) as writer:
        writer.write(slice(None), values.astype("f4"))
        writer.commit()
    return path


def test_list_is_a_table_of_every_sensor(spectralift: Run) -> None:
    done = spectralift("srf", "list")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()[2:]] == list(SENSORS)
    document = json.loads(spectralift("srf", "list", "--json").stdout)
    assert document["schema"] == "spectralift.srf-list/1"
    rows = {row["name"]: row for row in document["sensors"]}
    assert rows["sentinel-2a"]["kind"] == "tabulated"
    assert rows["ikonos"]["kind"] == "gaussian-from-band-edges"
    assert [b["band"] for b in rows["rapideye"]["bands"]] == ["B1", "B2", "B3", "B4", "B5"]
    low, high = rows["landsat-8"]["range_nm"]
    assert 420 < low < 440 < 2300 < high < 2360


def test_show_tells_the_bands_and_draws_them(tmp_path: Path, cube: Path, spectralift: Run) -> None:
    done = spectralift("srf", "show", "s2a:B2,B3,B9,B11", "--cube", cube, "--json")
    bands = json.loads(done.stdout)["bands"]
    assert [b["band"] for b in bands] == ["B2", "B3", "B9", "B11"]
    assert [round(b["coverage"], 1) for b in bands] == [1.0, 1.0, 0.1, 0.0]  # B9: bad bands
    assert "coverage" not in spectralift("srf", "show", "480:65,560:35").stdout
    pictures = []
    for name in ("a.png", "a.svg", "a.pdf", "b.png", "b.svg", "b.pdf"):
        done = spectralift("srf", "show", "s2a:B2,B3", "--cube", cube, "-o", tmp_path / name)
        assert (done.returncode, done.stdout) == (0, f"{tmp_path / name}\n"), done.stderr
        assert done.stderr.splitlines()[2].split()[0] == "B2"
        pictures.append((tmp_path / name).read_bytes())
    assert pictures[:3] == pictures[3:]
    image = matplotlib.image.imread(tmp_path / "a.png")
    assert image.shape[0] > 300
    assert len(np.unique(image.reshape(-1, 4), axis=0)) > 50
    assert b"<svg" in pictures[1]
    assert pictures[2].startswith(b"%PDF")


def test_the_strip_of_the_cube_has_gaps_at_bad_bands() -> None:
    bad = np.array([False, False, True, False])
    meta = CubeMeta((1, 1, 4), np.dtype("f4"), wavelengths_nm=[500, 510, 520, 530], bad_bands=bad)
    np.testing.assert_allclose(band_spans(meta), [[495, 505], [505, 515], [525, 535]])
    np.testing.assert_allclose(joined(band_spans(meta)), [[495, 515], [525, 535]])


def test_show_takes_files(tmp_path: Path, cube: Path, spectralift: Run) -> None:
    weights = tmp_path / "w.csv"
    assert spectralift("srf", "build", cube, "--sensor", "s2a:B3,B4", "-o", weights).returncode == 0
    refused = spectralift("srf", "show", weights)
    assert (refused.returncode, "--cube" in refused.stderr) == (3, True)
    shown = spectralift("srf", "show", weights, "--cube", cube, "-o", tmp_path / "w.png")
    assert shown.returncode == 0, shown.stderr
    assert [line.split()[:1] for line in shown.stderr.splitlines()[2:]] == [["B3"], ["B4"]]
    curve = tmp_path / "c.csv"
    curve.write_text("wavelength_nm,x\n500,0\n520,1\n540,0\n")
    row = json.loads(spectralift("srf", "show", curve, "--json").stdout)["bands"][0]
    assert (row["centre_nm"], row["fwhm_nm"]) == (520, 20)


def test_build_writes_weights_that_train_takes(
    tmp_path: Path, cube: Path, spectralift: Run
) -> None:
    target = tmp_path / "w.csv"
    done = spectralift("srf", "build", cube, "--msi-bands", "480:65,560:35,945:20", "-o", target)
    assert done.returncode == 3  # the third band lies where the cube's are flagged as bad
    assert "B3 (0." in done.stderr
    words = ("--msi-bands", "480:65,560:35,945:20", "--drop-uncovered-bands", "-o", target)
    done = spectralift("srf", "build", cube, *words)
    assert (done.returncode, done.stdout) == (0, f"{target}\n")
    srf = read_srf(target, NM, None, NM.size)
    assert srf.source == "gaussian-from-msi-bands"
    assert srf.weights.shape == (2, NM.size)
    assert spectralift("srf", "build", cube, *words).returncode == 4


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("build", "CUBE", "-o", "x.csv"), 2, "say which response"),
        (("build", "CUBE", "--sensor", "s2a", "--msi-bands", "5:1", "-o", "x.csv"), 2, "does not apply"),
        (("build", "CUBE", "--sensor", "s3", "-o", "x.csv"), 3, "no sensor is called 's3'"),
        (("show", "s2a", "-o", "x.gif"), 3, "does not name a picture"),
        (("show", "s2a:B77"), 3, "has no band 'B77'"),
        (("show", "missing.csv"), 3, "no sensor is called"),
        (("frobnicate",), 2, "frobnicate"),
    ],
)  # fmt: skip
def test_mistakes_get_two_lines(
    tmp_path: Path, cube: Path, spectralift: Run, words: tuple[str, ...], code: int, message: str
) -> None:
    done = spectralift("srf", *(cube if w == "CUBE" else w for w in words), cwd=tmp_path)
    assert done.returncode == code
    first, second = done.stderr.splitlines()
    assert first.startswith("error: ")
    assert message in first
    assert second.startswith("  hint: ")
    assert not list(tmp_path.iterdir())


def test_a_scene_of_a_sensor_trains_by_the_names_of_its_bands(
    tmp_path: Path, cube: Path, spectralift: Run
) -> None:
    made = spectralift(
        "synth", cube, "--sensor", "Landsat-8:B4,B3,B2", "-o", tmp_path / "scene", "--json"
    )
    recipe = json.loads(made.stdout)["recipe"]
    assert recipe["srf_source"].startswith("tabulated: landsat-8 (NASA")
    assert (recipe["num_msi_bands"], "fwhm_factor" in recipe) == (3, False)
    loose = ("--lr-hsi", tmp_path / "scene/lr_hsi.h5", "--hr-msi", tmp_path / "scene/hr_msi.h5")
    plan = spectralift(
        "train", *loose, "--sensor", "l8", "-o", tmp_path / "m.safetensors", "--dry-run"
    )
    assert (plan.returncode, plan.stdout.split(",")[0]) == (0, "model auto: 3 -> 58 of 60 bands")
    other = spectralift(
        "train", *loose, "--sensor", "l8:B2,B3,B4", "-o", tmp_path / "m.safetensors"
    )
    assert (other.returncode, "called B4, B3, B2" in other.stderr) == (3, True)
    none = spectralift("train", *loose, "-o", tmp_path / "m.safetensors")
    assert (none.returncode, "--sensor NAME" in none.stderr) == (2, True)
    both = spectralift(
        "train", *loose, "--sensor", "l8", "--num-msi-bands", "3", "-o", tmp_path / "m"
    )
    assert (both.returncode, "--num-msi-bands does not apply" in both.stderr) == (2, True)


def test_sensor_names_complete_without_anything_heavy() -> None:
    script = (
        "import sys\nsys.argv[0] = 'spectralift'\nfrom spectralift_cli.app import app\n"
        "try:\n    app()\nexcept SystemExit:\n    pass\n"
        "print([n for n in ('torch', 'numpy', 'matplotlib') if n in sys.modules], file=sys.stderr)"
    )
    words = "spectralift srf show sent"
    environment = {
        **os.environ, "_SPECTRALIFT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "3",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["sentinel-2a", "sentinel-2b"]
    assert done.stderr.splitlines()[-1] == "[]"
