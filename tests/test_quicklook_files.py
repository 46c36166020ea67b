"""Quicklooks of files: a scene stands for its HR-MSI, or for the image that a role names."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

import spectralift_cli as sl
from tests.conftest import Run

SHAPES = {"hr_msi": (24, 20), "lr_hsi": (6, 5), "gt": (24, 20)}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    values = np.random.default_rng(0).random((24, 20, 30)).astype(np.float32)
    cube = sl.Cube.of(values, wavelengths_nm=np.linspace(400, 950, 30))
    sl.write_cube(folder / "cube.npz", cube)
    return sl.synth(folder / "cube.npz", folder / "scene", sl.SynthConfig(kernel_size=3)).folder


@pytest.mark.parametrize("role", [None, *SHAPES])
def test_a_role_of_a_scene_is_drawn_as_its_file(
    tmp_path: Path, scene: Path, role: str | None
) -> None:
    where = sl.open_scene(scene).path(role or "hr_msi")
    drawn, files = sl.quicklook(scene, tmp_path / "a.png", role=role)
    alone, _ = sl.quicklook(where, tmp_path / "b.png")
    np.testing.assert_array_equal(drawn.rgba, alone.rgba)
    assert drawn.rgba.shape[:2] == SHAPES[role or "hr_msi"]
    assert list(files) == [tmp_path / "a.png"]
    shown = np.rint(255 * matplotlib.image.imread(tmp_path / "a.png"))
    np.testing.assert_array_equal(shown, drawn.rgba)


def test_a_scene_as_pattern_is_its_sharp_image(tmp_path: Path, scene: Path) -> None:
    sharp = sl.open_scene(scene).path("hr_msi")
    config = sl.QuicklookConfig(stretch="10,90")
    ours, _ = sl.quicklook(scene, tmp_path / "a.png", config, role="lr_hsi", like=scene)
    same, _ = sl.quicklook(scene, tmp_path / "b.png", config, role="lr_hsi", like=sharp)
    own, _ = sl.quicklook(scene, tmp_path / "c.png", config, role="lr_hsi")
    np.testing.assert_array_equal(ours.limits, same.limits)
    assert (ours.limits != own.limits).any()


def test_wrong_roles_are_explained(tmp_path: Path, scene: Path) -> None:
    lr_hsi = sl.open_scene(scene).path("lr_hsi")
    with pytest.raises(sl.SpectraliftError, match="--role gt chooses an image of a scene"):
        sl.quicklook(lr_hsi, tmp_path / "a.png", role="gt")
    with pytest.raises(sl.SpectraliftError, match="'psf' is no image of a scene"):
        sl.quicklook(scene, tmp_path / "a.png", role="psf")
    with pytest.raises(sl.SpectraliftError, match="this is a scene"):
        sl.quicklook(scene, tmp_path / "a.png", var="cube")
    assert not (tmp_path / "a.png").exists()


def test_command(tmp_path: Path, scene: Path, spectralift: Run) -> None:
    target = tmp_path / "lr.png"
    done = spectralift("quicklook", scene, "--role", "lr_hsi", "--like", scene, "-o", target)
    assert (done.returncode, done.stdout) == (0, f"{target}\n"), done.stderr
    assert matplotlib.image.imread(target).shape == (6, 5, 4)
    wrong = spectralift("quicklook", target, "--role", "gt", "-o", tmp_path / "x.png")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "hint: leave it out, or give a scene's folder" in wrong.stderr
