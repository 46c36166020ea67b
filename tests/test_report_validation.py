"""A validation reaches the report: from a run that has no ground truth, or lying beside the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import spectralift_cli as sl
from spectralift_cli.app import app
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats.kernels import write_psf
from spectralift_cli.core.report.material import gather
from spectralift_cli.core.runs.config import resolve_config
from spectralift_cli.core.validation.inputs import ValidateInputs
from spectralift_cli.core.validation.validate import validate

TITLE = "Quality without a ground truth"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> sl.Scene:
    folder = tmp_path_factory.mktemp("validation")
    sl.write_sample("synthetic", folder / "cube.npy", size=(64, 64, 12))
    config = sl.SynthConfig(sigma=2.0, kernel_size=5, num_msi_bands=3)
    return sl.synth(folder / "cube.npy", folder / "scene", config, cube_format="npy")


def run(tmp_path: Path, blocks: dict[str, Any], *words: str) -> Any:
    (tmp_path / "run.json").write_text(json.dumps({"schema": "spectralift.run/1", **blocks}))
    words = ("run", str(tmp_path / "run.json"), "-o", str(tmp_path / "out"), "--json", *words)
    return CliRunner().invoke(app, words)


def of_files(scene: sl.Scene) -> dict[str, Any]:
    """Return a config of a pair that nobody knows the truth of."""
    files = {name: str(scene.path(name)) for name in ("lr_hsi", "hr_msi")}
    return {"train": {**files, "srf_file": str(scene.path("srf")), "model": "linear"}}


def test_a_run_without_truth_validates_and_shows_it(scene: sl.Scene, tmp_path: Path) -> None:
    done = run(tmp_path, of_files(scene))
    assert done.exit_code == 0, done.stderr
    folder = tmp_path / "out"
    outputs = json.loads((folder / "run.json").read_text())["outputs"]
    assert outputs["validation"] == "validate"
    document = json.loads((folder / "validate" / "validate.json").read_text())
    assert list(document["sections"]) == ["reduced", "lr_hsi", "hr_msi", "no_reference"]
    assert "refine (" in document["sections"]["reduced"]["about"]  # as the run itself
    page = (folder / "report.html").read_text()
    assert TITLE in page and page.count("Angle of each pixel") == 2
    again = run(tmp_path, {**of_files(scene), "validate": {"maps": False, "reduced": False}},
                "--overwrite")  # fmt: skip
    assert again.exit_code == 0, again.stderr
    assert not (folder / "validate").exists()
    document = json.loads((folder / "validate.json").read_text())
    assert list(document["sections"]) == ["lr_hsi", "hr_msi", "no_reference"]
    assert TITLE in (folder / "report.html").read_text()


def test_resuming_keeps_it_as_long_as_nothing_it_tells_of_changed(
    scene: sl.Scene, tmp_path: Path
) -> None:
    blocks = {**of_files(scene), "validate": {"reduced": False}, "report": {"write": False}}
    assert run(tmp_path, blocks).exit_code == 0
    again = run(tmp_path, blocks, "--resume")
    assert "validate: unchanged, kept" in again.stderr
    assert "nothing has changed" in again.stderr
    blocks["refine"] = {"enabled": False}
    other = run(tmp_path, blocks, "--resume")
    assert other.exit_code == 0, other.stderr
    assert "train: unchanged, kept" in other.stderr
    assert "validate: made again (changed: " in other.stderr


@pytest.mark.parametrize(("when", "done"), [(None, False), ("always", True), ("never", False)])
def test_where_there_is_a_truth_only_who_asks_gets_one(
    when: str | None, done: bool, scene: sl.Scene, tmp_path: Path
) -> None:
    block = {} if when is None else {"validate": {"when": when, "reduced": False}}
    report = {"report": {"write": False}}
    blocks = {"train": {"scene": str(scene.folder), "model": "linear"}, **block, **report}
    made = run(tmp_path, blocks)
    assert made.exit_code == 0, made.stderr
    assert (tmp_path / "out" / "validate" / "validate.json").exists() == done


def test_a_pair_that_allows_none_is_warned_of_or_refused(scene: sl.Scene, tmp_path: Path) -> None:
    blocks = of_files(scene)
    blocks["infer"] = {"hr_msi": str(scene.path("hr_msi")) + "/../hr_msi.npy"}  # another name
    assert resolve_config({"schema": "spectralift.run/1", **blocks}).validate is None
    with pytest.raises(DataError, match="validate needs both images of one ground"):
        resolve_config(
            {"schema": "spectralift.run/1", **blocks, "validate": {"when": "always"}}
        )  # fmt: skip
    small = tmp_path / "small"
    small.mkdir()
    for role, size in (("lr_hsi", 3), ("hr_msi", 12)):
        cube = sl.read_cube(scene.path(role))
        cut = sl.Cube(cube.values[:size, :size], cube.meta.window(0, 0, size, size))
        sl.write_cube(small / f"{role}.npy", cut)
    write_psf(small / "psf.csv", np.ones((1, 1)))
    train = {**of_files(scene)["train"], "lr_hsi": str(small / "lr_hsi.npy"),
             "hr_msi": str(small / "hr_msi.npy")}  # fmt: skip
    blocks = {"train": train, "refine": {"psf_file": str(small / "psf.csv")}}
    told = run(tmp_path, blocks)
    assert told.exit_code == 0, told.stderr
    assert "the cube is not validated: one scale down: the LR-HSI of 3 x 3 pixels" in told.stderr
    refused = run(tmp_path, {**blocks, "validate": {"when": "always"}}, "--overwrite")
    assert refused.exit_code == 3


def test_a_validation_beside_the_result_is_shown_unasked(scene: sl.Scene, tmp_path: Path) -> None:
    result = tmp_path / "sharp.npy"
    truth = sl.read_cube(scene.path("gt"))
    sl.write_cube(result, truth)
    inputs = ValidateInputs(scene=scene.folder)
    validate(inputs, result=result, maps=tmp_path / "validate", reduced=False)
    found = gather(scene.folder, result=result)
    assert found.validation is not None and not found.warnings
    assert found.validation_folder == tmp_path / "validate"
    assert gather(scene.folder).validation is None  # nobody named the folder of the result
    # another result under the same name
    sl.write_cube(result, sl.Cube(truth.values * np.float32(0.9), truth.meta), overwrite=True)
    stale = gather(scene.folder, result=result)
    assert stale.validation is None
    assert "it tells of another result; --validation shows it anyway" in stale.warnings[0]
    asked = gather(scene.folder, result=result, validation=tmp_path / "validate")
    assert asked.validation is not None and not asked.warnings
    # a file of somebody else
    (tmp_path / "validate" / "validate.json").write_text('{"schema": "theirs"}')
    foreign = gather(scene.folder, result=result)
    assert foreign.validation is None
    assert "a validation is not shown" in foreign.warnings[0]


def test_maps_that_are_gone_or_damaged_are_told(scene: sl.Scene, tmp_path: Path) -> None:
    maps = tmp_path / "validate"
    inputs = ValidateInputs(scene=scene.folder)
    validate(inputs, result=scene.path("gt"), maps=maps, reduced=False)
    (maps / "lr_hsi" / "rmse.tif").write_bytes(b"II*\0 no picture")
    for path in (maps / "hr_msi").iterdir():
        path.unlink()
    page = tmp_path / "page.html"
    sl.report(scene.folder, page, result=scene.path("gt"), validation=maps)
    text = page.read_text()
    assert "A map of it cannot be shown" in text
    assert "Its maps are not beside it, or hold no value." in text


def test_a_result_of_holes_alone_gets_a_page_that_says_so(scene: sl.Scene, tmp_path: Path) -> None:
    truth = sl.read_cube(scene.path("gt"))
    sl.write_cube(tmp_path / "nan.npy", sl.Cube(np.full_like(truth.values, np.nan), truth.meta))
    page = tmp_path / "page.html"
    sl.report(scene.folder, page, result=tmp_path / "nan.npy")
    text = page.read_text()
    assert "the result is not scored: none of the 4096 pixels is valid in both cubes" in text
    assert "Result: 100 % of the pixels have no value" in text
