"""`run` ends with a report: by default on native configs, when asked on flat ones, never at a cost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spectralift_cli.app import app
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats import write_cube
from spectralift_cli.core.report import page
from spectralift_cli.core.samples import synthetic

FLAT = {"mat_file": "cube.mat", "mat_key": "toy", "sigma": 1.2, "kernel_size": 2, "epochs": 2,
        "hidden_size": 4, "verbose": 0}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "words", "written"),
    [
        ("flat", [], False),
        ("flat", ["--set", "report.write=true"], True),
        ("native", ["--set", "report.write=false"], False),
        ("native", ["--set", "report.title=My page"], True),
    ],
)
def test_a_run_ends_with_one(
    kind: str, words: list[str], written: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_cube("cube.mat", synthetic(16, 16, 10), options={"VARIABLE": "toy"})
    native = {"schema": "spectralift.run/1", "synth": {"cube": "cube.mat", "kernel_size": 2},
              "train": {"preset": "paper", "epochs": 2, "hidden_size": 4}}  # fmt: skip
    Path("c.json").write_text(json.dumps(FLAT if kind == "flat" else native))
    result = CliRunner().invoke(app, ["run", "c.json", "-o", "out", "--json", *words])
    assert result.exit_code == 0, result.stderr
    assert Path("out/report.html").exists() == written
    document = json.loads(Path("out/run.json").read_text())
    assert document["outputs"].get("report") == ("report.html" if written else None)
    assert ("report" in [s["stage"] for s in document["stages"]]) == written
    assert ("out/report.html" in json.loads(result.stdout)["outputs"]) == written
    if "title" in " ".join(words):
        assert "<h1>My page</h1>" in Path("out/report.html").read_text()


def test_a_page_that_fails_leaves_the_run_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise DataError("no page today", "try tomorrow")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(page, "report", fail)
    write_cube("cube.npz", synthetic(16, 16, 10))
    pairs = ["synth.cube=cube.npz", "synth.kernel_size=2", "train.preset=paper", "train.epochs=2"]
    words = [word for pair in pairs for word in ("--set", pair)]
    result = CliRunner().invoke(app, ["run", *words, "-o", "out"])
    assert result.exit_code == 0
    assert "report.html is not written: no page today" in result.stderr
    assert Path("out/super_resolved_hsi.h5").exists()
    assert "no page today" in json.loads(Path("out/run.json").read_text())["warnings"][-1]
