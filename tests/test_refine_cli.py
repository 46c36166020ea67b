"""`refine`, `infer --refine` and the stage of `run`, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from spectralift_cli.app import app
from spectralift_cli.core.cube import Cube
from spectralift_cli.core.formats import open_cube, read_cube, write_cube
from tests.conftest import Run


def invoke(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene, a linear model of it and what that infers."""
    folder = tmp_path_factory.mktemp("refined")
    for words in (
        ("sample", "synthetic", "--size", "48,40,12", "--crs", "EPSG:32633", "-o", "cube.tif"),
        ("synth", "cube.tif", "-o", "scene", "--sigma", "1.5", "--kernel-size", "4"),
        ("train", "scene", "-o", "m.safetensors", "--model", "linear"),
        ("infer", "m.safetensors", "scene", "-o", "sharp.npy"),
    ):  # fmt: skip
        done = invoke(*(folder / w if ("." in w[1:] and w != "1.5") or w == "scene" else w
                        for w in words))  # fmt: skip
        assert done.exit_code == 0, done.stderr
    return folder


def test_stdout_is_the_cube_and_stderr_says_what_was_decided(
    made: Path, spectralift: Run, tmp_path: Path
) -> None:
    words = ("refine", made / "sharp.npy", "--scene", made / "scene", "-o", tmp_path / "out.h5")
    done = spectralift(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'out.h5'}\n"
    assert "refinement " in done.stderr
    assert "standard error" in done.stderr
    assert "HR-MSI" in done.stderr
    again = spectralift(*words, "--threads", "1")
    assert again.returncode == 2  # nothing to share out
    document = json.loads(spectralift(*words, "--json", "--overwrite", "-q").stdout)
    assert document["schema"] == "spectralift.refine/1"
    assert document["verdict"]["decision"] in ("keep", "damp", "drop")
    assert document["counts"]["pixels"] == 48 * 40
    assert set(document["reprojection"]) == {"before", "after"}
    with open_cube(tmp_path / "out.h5") as out:
        assert out.meta.provenance is not None
        step = out.meta.provenance["steps"][-1]
    assert step["command"] == "refine"
    assert set(step["inputs"]) == {"cube", "lr_hsi", "hr_msi", "srf", "psf"}
    assert step["options"]["strength"] == 32


def test_loose_files_give_what_the_scene_gives(made: Path, tmp_path: Path) -> None:
    scene = made / "scene"
    loose = ("--lr-hsi", scene / "lr_hsi.h5", "--hr-msi", scene / "hr_msi.h5")
    psf = ("--psf-file", scene / "psf.csv")
    for name, words in (
        ("a.npy", ("--scene", scene)),
        ("b.npy", (*loose, "--srf-file", scene / "srf.csv", *psf)),
        ("c.npy", (*loose, "--model", made / "m.safetensors", *psf)),
    ):  # fmt: skip
        done = invoke("refine", made / "sharp.npy", *words, "-o", tmp_path / name)
        assert done.exit_code == 0, done.stderr
    first = np.load(tmp_path / "a.npy")
    np.testing.assert_array_equal(first, np.load(tmp_path / "b.npy"))
    np.testing.assert_array_equal(first, np.load(tmp_path / "c.npy"))


def test_an_estimate_gives_kernel_shift_and_gain(made: Path, tmp_path: Path) -> None:
    """The HR-MSI is 10 % too dark and the PSF unknown: what estimate finds is as good as the truth."""
    scene = made / "scene"
    dark = read_cube(scene / "hr_msi.h5")
    write_cube(tmp_path / "dark.npy", Cube.of((dark.values * 0.9).astype(np.float32)))
    files = ("--lr-hsi", scene / "lr_hsi.h5", "--hr-msi", tmp_path / "dark.npy",
             "--srf-file", scene / "srf.csv")  # fmt: skip
    found = invoke("estimate", *files, "-o", tmp_path / "est.json")
    assert found.exit_code == 0, found.stderr
    used = json.loads((tmp_path / "est.json").read_text())
    assert used["gain"]["used"] is True
    truth = read_cube(scene / "gt.h5").values
    errors = {}
    for name, words in (("plain", ()), ("estimate", ("--estimate", tmp_path / "est.json"))):
        out = tmp_path / f"{name}.npy"
        done = invoke("refine", made / "sharp.npy", *files, *words, "-o", out)
        assert done.exit_code == 0, done.stderr
        errors[name] = float(np.sqrt(np.mean((np.load(out) - truth) ** 2)))
    with open_cube(tmp_path / "estimate.npy") as out_cube:
        assert out_cube.meta.provenance is not None
        assert "estimate" in out_cube.meta.provenance["steps"][-1]["inputs"]
    assert errors["estimate"] < errors["plain"]
    both = invoke("refine", made / "sharp.npy", *files, "--estimate", tmp_path / "est.json",
                  "--psf-file", scene / "psf.csv", "-o", tmp_path / "o.npy")  # fmt: skip
    assert both.exit_code == 2


def test_infer_refines_at_once(made: Path, tmp_path: Path) -> None:
    refined = invoke(
        "refine", made / "sharp.npy", "--scene", made / "scene", "-o", tmp_path / "a.npy"
    )
    at_once = invoke(
        "infer", made / "m.safetensors", made / "scene", "--refine", "-o", tmp_path / "b.npy"
    )
    assert (refined.exit_code, at_once.exit_code) == (0, 0), at_once.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "a.npy", "a.npy.json", "b.npy", "b.npy.json"
    ]  # fmt: skip
    lonely = invoke(
        "infer", made / "m.safetensors", made / "scene/hr_msi.h5", "--refine",
        "-o", tmp_path / "c.npy",
    )  # fmt: skip
    assert lonely.exit_code == 2
    assert "--lr-hsi" in lonely.stderr
    assert "HR-MSI" in at_once.stderr  # how far from both images it is
    planned = invoke(
        "infer", made / "m.safetensors", made / "scene/hr_msi.h5", "--refine", "--dry-run",
        "-o", tmp_path / "c.npy",
    )  # fmt: skip
    assert planned.exit_code == 2  # a plan promises nothing that would be refused


def test_a_plan_writes_nothing(made: Path, tmp_path: Path) -> None:
    done = invoke(
        "refine", made / "sharp.npy", "--scene", made / "scene", "-o", tmp_path / "o.h5",
        "--dry-run", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    plan = json.loads(done.stdout)["plan"]
    assert plan["shape"] == [48, 40, 12]
    assert plan["scale"] == [4, 4]
    assert plan["psf_shape"] == [9, 9]
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_refined_ends_with_3_or_2(made: Path, tmp_path: Path) -> None:
    scene = made / "scene"
    small = read_cube(made / "sharp.npy")
    write_cube(tmp_path / "small.npy", Cube.of(small.values[:-1]))
    (tmp_path / "zero.csv").write_text("1,-1,1\n-1,0,-1\n1,-1,1\n")
    np.savetxt(tmp_path / "wide.csv", np.ones((45, 45)), delimiter=",")
    cube, loose = made / "sharp.npy", ("--lr-hsi", scene / "lr_hsi.h5")
    msi = ("--hr-msi", scene / "hr_msi.h5")
    for code, text, words in (
        (3, "47 x 40", (tmp_path / "small.npy", "--scene", scene)),
        (3, "sum to 0", (cube, "--scene", scene, "--psf-file", tmp_path / "zero.csv")),
        (3, "wider than the image", (cube, "--scene", scene, "--psf-file", tmp_path / "wide.csv")),
        (3, "no such", (cube, *loose, *msi, "--srf-file", tmp_path / "none.csv")),
        (2, "response", (cube, *loose, *msi)),
        (2, "--hr-msi", (cube, *loose)),
        (2, "scene", (cube, *loose, "--scene", scene)),
    ):  # fmt: skip
        done = invoke("refine", *words, "-o", tmp_path / "out.npy")
        assert done.exit_code == code, (words, done.stderr)
        assert text in done.stderr, done.stderr
        assert done.stderr.count("\n") == 2
    assert not (tmp_path / "out.npy").exists()


def test_a_native_run_refines_and_a_flat_one_does_not(made: Path, tmp_path: Path) -> None:
    native = ("--set", "schema=spectralift.run/1", "--set", f"train.scene={made / 'scene'}",
              "--set", "train.model=linear", "--set", "infer.format=npy")  # fmt: skip
    for name, more in (("on", ()), ("off", ("--set", "refine.enabled=false"))):
        done = invoke("run", *native, *more, "-o", tmp_path / name)
        assert done.exit_code == 0, done.stderr
        report = json.loads((tmp_path / name / "run.json").read_text())
        assert ("refine" in report) == (name == "on")
        assert ("refine" in [s["stage"] for s in report["stages"]]) == (name == "on")
    once = invoke("infer", made / "m.safetensors", made / "scene", "--refine",
                  "-o", tmp_path / "b.npy")  # fmt: skip
    assert once.exit_code == 0
    np.testing.assert_array_equal(
        np.load(tmp_path / "on/super_resolved_hsi.npy"), np.load(tmp_path / "b.npy")
    )
    with open_cube(tmp_path / "off/super_resolved_hsi.npy") as plain:
        np.testing.assert_array_equal(plain.read(), np.load(made / "sharp.npy"))


def test_a_sensor_by_name_is_the_response_of_its_scene(tmp_path: Path, spectralift: Run) -> None:
    """Weights that synth wrote for a sensor, and the sensor itself, lead to the same cube."""
    cube, scene = tmp_path / "c.npy", tmp_path / "s"
    assert spectralift("sample", "synthetic", "-o", cube).returncode == 0
    assert spectralift("synth", cube, "--sensor", "ikonos", "-o", scene).returncode == 0
    images = ("--lr-hsi", scene / "lr_hsi.h5", "--hr-msi", scene / "hr_msi.h5")
    rough = tmp_path / "rough.npy"
    np.save(rough, np.full((96, 96, 60), 0.3, np.float32))
    made = []
    for name, response in (("a", ("--sensor", "ikonos")), ("b", ("--srf-file", scene / "srf.csv"))):
        done = spectralift("refine", rough, *images, *response, "-o", tmp_path / f"{name}.npy")
        assert done.returncode == 0, done.stderr
        made.append(np.load(tmp_path / f"{name}.npy"))
    np.testing.assert_allclose(made[0], made[1], atol=1e-5)
    both = spectralift(
        "refine",
        rough,
        *images,
        "--sensor",
        "ikonos",
        "--msi-bands",
        "480:60",
        "-o",
        tmp_path / "x.npy",
    )
    assert both.returncode == 2
