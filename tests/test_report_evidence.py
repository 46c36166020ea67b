"""`report` on agreement with the inputs, refinement, uncertainty, estimate and validation."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from spectralift_cli.core import stages
from spectralift_cli.core.config import ReportConfig, SynthConfig
from spectralift_cli.core.cube import Cube, no_progress
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.estimation.parts import Findings, Gain, Psf, Response, Shift
from spectralift_cli.core.estimation.result import Estimate
from spectralift_cli.core.formats import read_cube, write_cube
from spectralift_cli.core.report import agreement
from spectralift_cli.core.report.context import look
from spectralift_cli.core.report.material import gather
from spectralift_cli.core.report.page import report
from spectralift_cli.core.samples import synthetic
from spectralift_cli.core.scene import Scene
from spectralift_cli.core.validation.document import read_validation
from spectralift_cli.core.validation.figures import SCHEMA, Figure, Section, Validation
from tests.conftest import Run

ROWS, COLS, BANDS, RATIO = 32, 24, 30, 4


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("scene")
    write_cube(folder / "cube.npz", synthetic(ROWS, COLS, BANDS))
    config = SynthConfig(sigma=1.2, kernel_size=5, downsample_ratio=RATIO)
    return stages.synth(folder / "cube.npz", folder / "scene", config)


@pytest.fixture(scope="module")
def result(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guess with a wrong patch, a hole and one band of nothing."""
    values = read_cube(scene.path("gt")).units().astype(np.float32)
    values[8:16, 4:12] += 0.2
    values[20, 20] = np.nan
    values[:, :, 7] = np.nan
    path = tmp_path_factory.mktemp("result") / "sr.npy"
    write_cube(path, Cube.of(values))
    return path


def estimate_of(scene: Scene, shift_px: tuple[float, float] = (0.0, 0.0)) -> Estimate:
    size, m = 7, 4
    kernel = np.zeros((size, size))
    kernel[1:6, 1:6] = 1 / 25
    judged = (True, "lowers the held-out error by <12 %>", "explains 99 %")
    intervals = np.zeros((m, 2))
    meta = read_cube(scene.path("lr_hsi")).meta
    found = Findings(
        Shift(np.array(shift_px), np.full(2, 0.01), np.zeros((2, 2)), *judged),
        Psf(kernel, kernel / 10, np.array([1.4, 1.4]), 0.03, *judged),
        Gain(np.array([1, 2, 1, 1.0]), np.full(m, 0.02), intervals,
             np.full(m, 0.005), np.full(m, 0.001), intervals, *judged),
        Response(np.full((m, BANDS), 1 / BANDS), np.zeros((m, BANDS)), np.zeros(m), False, "", ""),
        np.full(m, 0.99), 48, 9,
    )  # fmt: skip
    return Estimate(
        found, tuple("abcd"), BANDS, meta.wavelengths_nm, None, None, (RATIO, RATIO), {}
    )


def section_of(path: Path, key: str) -> str:
    found = re.search(rf'<section id="{key}">.*?</section>', path.read_text(), re.DOTALL)
    return found[0] if found else ""


def test_residuals_are_those_of_scipy_and_a_product(scene: Scene, result: Path) -> None:
    material = gather(scene.folder, result=result)
    context = look(material, ReportConfig(), no_progress)
    found, notes = agreement.residuals(context)
    assert notes == []
    used = np.arange(BANDS) != 7
    values = read_cube(result).units().astype(np.float64)[:, :, used]
    hole = ~np.isfinite(values).all(axis=2)
    psf = np.loadtxt(scene.path("psf"), delimiter=",")
    zeros = np.where(hole[:, :, None], 0, values)

    def seen(image: Any) -> Any:
        blurred = ndimage.convolve(image, psf[:, :, None], mode="reflect")
        return blurred.reshape(ROWS // RATIO, RATIO, COLS // RATIO, RATIO, -1).mean(axis=(1, 3))

    lr = read_cube(scene.path("lr_hsi")).units()[:, :, used]
    weight = seen(1.0 - hole[:, :, None])
    error = seen(zeros) / np.maximum(weight, 1e-9) - lr
    # LR pixels that see over the edge, or the hole, by over 1 % of their weight are left out
    inside = ndimage.convolve(1.0 - hole, psf, mode="constant")
    inside = inside.reshape(ROWS // RATIO, RATIO, COLS // RATIO, RATIO).mean(axis=(1, 3))
    kept = inside >= 0.99
    assert 0 < kept.sum() < kept.size
    rmse = np.where(kept, np.sqrt(np.square(error).mean(axis=2)), np.nan)
    np.testing.assert_allclose(found["lr_hsi"].rmse, rmse, rtol=1e-4, atol=1e-6)
    bands = np.full(BANDS, np.nan)
    bands[used] = np.sqrt(np.square(error[kept]).mean(axis=0))
    np.testing.assert_allclose(found["lr_hsi"].band_rmse, bands, rtol=1e-4)
    share = np.sqrt(np.square(error[kept]).mean() / np.square(lr[kept]).mean())
    assert found["lr_hsi"].share == pytest.approx(share, rel=1e-4)

    assert material.srf is not None
    weights = material.srf.weights[:, used]
    msi = read_cube(scene.path("hr_msi")).units()
    error = values @ (weights / weights.sum(axis=1, keepdims=True)).T - msi
    np.testing.assert_allclose(
        found["hr_msi"].rmse, np.sqrt(np.square(error).mean(axis=2)), rtol=1e-4, atol=1e-6
    )


def test_an_estimate_gives_what_the_scene_lacks(scene: Scene, result: Path, tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text(estimate_of(scene, (1.0, 0.0)).to_text())
    plain = gather(scene.folder, result=result)
    plain.psf = None
    found, notes = agreement.residuals(look(plain, ReportConfig(), no_progress))
    assert found.keys() == {"hr_msi"}
    assert "--estimate" in notes[0]
    told = gather(scene.folder, result=result, estimate=tmp_path / "e.json")
    told.psf = None
    shifted, notes = agreement.residuals(look(told, ReportConfig(), no_progress))
    assert notes == []
    # one LR pixel down: the sharp image does not reach the first row
    assert np.isnan(shifted["lr_hsi"].rmse[0]).all()
    assert np.isfinite(shifted["lr_hsi"].rmse[2]).any()
    # in the MSI's own units: band b of gain 2 sees half of what the LR-HSI's radiometry shows
    values = read_cube(result).units().astype(np.float64)[3, 3]
    used = np.isfinite(values)
    assert told.srf is not None
    weights = told.srf.weights[:, used]
    gain, offset = np.array([1, 2, 1, 1.0]), 0.005
    inside = ((weights / weights.sum(axis=1, keepdims=True)) @ values[used] - offset) / gain
    error = inside - read_cube(scene.path("hr_msi")).units()[3, 3]
    expected = math.sqrt(np.square(error).mean())
    assert shifted["hr_msi"].rmse[3, 3] == pytest.approx(expected, rel=1e-4)


def test_large_results_are_left_to_validate(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "MOST_VALUES", 1000)
    made = report(scene.folder, tmp_path / "r.html", result=scene.path("gt"))
    text = section_of(made.path, "agreement")
    assert "the result has 23,040 values, a page compares up to 1,000" in text
    assert "<svg" not in text


def test_the_command_shows_estimate_validation_and_uncertainty(
    spectralift: Run, scene: Scene, result: Path, tmp_path: Path
) -> None:
    (tmp_path / "e.json").write_text(estimate_of(scene, (0.25, -0.5)).to_text())
    figures = [Figure("sam_deg", 1.25, "deg", "as usual", "small & good"),
               Figure("hqnr", math.nan, "", "", "both", "too few pixels")]  # fmt: skip
    validation = Validation(
        (Section("reduced", "One scale down", "About <it>", figures),), "a guess", {}
    )
    document = {"schema": SCHEMA, "outputs": [], **validation.to_json()}
    (tmp_path / "v.json").write_text(json.dumps(document))
    expected = np.full((ROWS, COLS, 4), 0.05, np.float32)
    expected[..., 3] = np.arange(COLS) < 6
    expected[:, -1] = np.nan
    write_cube(tmp_path / "u.npy", Cube.of(expected))
    done = spectralift(
        "report", scene.folder, "--result", result, "-o", tmp_path / "r.html", "--estimate",
        tmp_path / "e.json", "--validation", tmp_path / "v.json", "--uncertainty",
        tmp_path / "u.npy", "--json", "-q",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    keys = json.loads(done.stdout)["sections"]
    assert {"agreement", "uncertainty", "validation", "estimate"} < set(keys)
    page = tmp_path / "r.html"
    text = section_of(page, "estimate")
    for words in ("0.250 ± 0.01 LR pixels", "-0.500 ± 0.01", "2 ± 0.02", "0.005 ± 0.001",
                  "lowers the held-out error by &lt;12 %&gt;", "Effective PSF, 7 x 7 HR pixels"):  # fmt: skip
        assert words in text
    text = section_of(page, "validation")
    for words in ("1.25 deg", "small &amp; good", "undefined", "(too few pixels)"):
        assert words in text
    text = section_of(page, "uncertainty")
    assert "expected to be 0.05 data units" in text
    assert f"{100 * 6 / (COLS - 1):.3g} % of the pixels have a spectrum outside" in text
    assert 'class="bar"' in text
    wrong = spectralift(
        "report", scene.folder, "-o", tmp_path / "no.html", "--uncertainty", scene.path("gt"), "-q"
    )
    assert wrong.returncode == 3
    assert f"has {BANDS} bands, an uncertainty has 4" in wrong.stderr


def test_a_page_says_what_was_decided_on_the_refinement(
    scene: Scene, result: Path, tmp_path: Path
) -> None:
    material = gather(scene.folder, result=result)
    from spectralift_cli.core.report.evidence import refinement

    context = look(material, ReportConfig(points=0), no_progress)
    assert refinement(context) is None
    material.run = {"refine": {"verdict": {
        "decision": "damp", "factor": 0.625, "gain": 0.034, "gain_std": 0.0021,
        "held_pixels": 5000, "blocks": 1250,
    }, "reprojection": {"before": {"lr": 3.1, "msi": 2.0}, "after": {"lr": "1e9", "msi": 1.0}}}}  # fmt: skip
    parts = refinement(context)
    assert parts is not None
    text, table = parts
    assert "a part of the refinement helps" in text.text  # type: ignore[union-attr]  # a Text
    assert list(table.rows) == [  # type: ignore[union-attr]  # a Table
        ("held-out error", "-3.4 % (standard error 0.21 %)"),
        ("judged on", "5,000 LR pixels in 1,250 blocks"),
        ("share applied", "62.5 %"),
        ("distance to the HR-MSI, per noise", "2, then 1"),
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": "spectralift.validate/9"}, "its schema is"),
        ({"sections": {"reduced": {}}}, "lacks 'figures'"),
        ({"sections": []}, "is damaged"),
        ({"psf": 3}, "is damaged"),
    ],
)
def test_damaged_validations_are_refused(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "validate.json"
    found = Validation((Section("reduced", "t", "a", []),), "p", {})
    good = {"schema": SCHEMA, **found.to_json()}
    path.write_text(json.dumps(good))
    assert read_validation(tmp_path).to_json() == found.to_json()
    path.write_text(json.dumps({**good, **change}))
    with pytest.raises(DataError, match=words):
        read_validation(path)
