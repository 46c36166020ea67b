"""The reproduction that every later claim stands on: the paper's network on Indian Pines."""

from __future__ import annotations

from pathlib import Path

import pytest

import spectralift_cli as sl


def test_preset_paper_reproduces_the_published_scores(tmp_path: Path) -> None:
    """Their TensorFlow code scored RMSE .01904 and SAM 2.654 deg (one seed)."""
    pytest.importorskip("tensorly", reason="Indian Pines comes with the extra `samples`")
    sl.write_sample("indian-pines", tmp_path / "ip.npy", window=(0, 0, 144, 144))
    scene = sl.synth(tmp_path / "ip.npy", tmp_path / "scene", sl.SynthConfig(protocol="published"))
    model = tmp_path / "model.safetensors"
    sl.train(sl.TrainInputs(scene=scene.folder), model, sl.TrainConfig(preset="paper"))
    sl.infer(model, scene.folder, tmp_path / "sharp.npy")
    scores = sl.evaluate(scene.folder, tmp_path / "sharp.npy").values
    assert scores["rmse"] == pytest.approx(0.0190, abs=0.0006)
    assert scores["sam"] == pytest.approx(2.65, abs=0.08)
