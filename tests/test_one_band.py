"""One hyperspectral band: the whole chain, its validation and its page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import spectralift_cli as sl
from spectralift_cli.app import app


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a cube of one band."""
    work = tmp_path_factory.mktemp("one")
    rng = np.random.default_rng(5)
    coarse = np.kron(rng.random((16, 16)), np.ones((4, 4))) + 0.2 * rng.random((64, 64))
    sl.write_cube(work / "cube.npy", sl.Cube.of(coarse[:, :, None].astype(np.float32)))
    blocks = {
        "schema": "spectralift.run/1",
        "synth": {"cube": str(work / "cube.npy"), "num_msi_bands": 1, "kernel_size": 5,
                  "sigma": 1.5, "srf_wavelengths": "invented"},
        "train": {"model": "linear"},
        "validate": {"when": "always"},
    }  # fmt: skip
    (work / "run.json").write_text(json.dumps(blocks))
    done = CliRunner().invoke(app, ["run", str(work / "run.json"), "-o", str(work / "out")])
    assert done.exit_code == 0, done.stderr
    return work / "out"


def test_refining_leaves_numbers(folder: Path) -> None:
    values = sl.read_cube(folder / "super_resolved_hsi.h5").units()
    assert np.isfinite(values).all()
    decided = json.loads((folder / "run.json").read_text())["refine"]["verdict"]
    assert decided["factor"] in (0, 1) or 0 < decided["factor"] < 1
    assert np.isfinite([decided["gain"], decided["gain_std"]]).all()
    scores = json.loads((folder / "metrics.json").read_text())["modes"]["standard"]
    assert scores["psnr_db"] > 25


def test_no_angle_is_told_of_a_single_band(folder: Path) -> None:
    document = json.loads((folder / "validate" / "validate.json").read_text())
    for name in ("reduced", "lr_hsi", "hr_msi"):
        figures = {f["name"]: f for f in document["sections"][name]["figures"]}
        assert figures["sam_deg"]["value"] is None
        assert np.isfinite(figures["rmse"]["value"])
    page = (folder / "report.html").read_text()
    assert "A hyperspectral image of 1 band on 16 x 16 pixels" in page
    for absent in ("Spectral angle", "Angle of each pixel", "Errors by band", "<dt>SAM</dt>"):
        assert absent not in page
    assert "truth, data units" in page  # values in a table in place of curves
