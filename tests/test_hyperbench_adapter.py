"""The HyperBench example, called as HyperBench 0.1.0 calls it, through the real command line.

HyperBench itself is no dependency (it pins another NumPy); `call` stands for its `PipelineAdapter`.
"""

from __future__ import annotations

import ast
import importlib.util
import shlex
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import spectralift_cli as sl

SOURCE = Path(__file__).parent.parent / "examples" / "hyperbench_adapter.py"
PROGRAM = f"{shlex.quote(sys.executable)} -m spectralift_cli"


@pytest.fixture(scope="module")
def adapter() -> ModuleType:
    """The module, loaded as `hyperbench run --pipeline-module` loads it."""
    spec = importlib.util.spec_from_file_location("hyperbench_user_pipeline_module", SOURCE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(pipeline: Any, case: dict[str, Any], batch: bool = False) -> tuple[Any, dict[str, Any]]:
    """Call a pipeline and check its answer as `PipelineAdapter.predict` does.

    Float32 arrays under these names, with a batch dimension if asked for; back comes a prediction
    or a pair of it and a dict, and the prediction is brought to float32 (H, W, B).
    """
    assert hasattr(pipeline, "run_pipeline")
    images = {name: np.asarray(case[name], np.float32) for name in ("HR_MSI", "LR_HSI")}
    if batch:
        images = {name: image[None] for name, image in images.items()}
    result = pipeline.run_pipeline(
        **images, srf=np.asarray(case["srf"], np.float32), psf=case.get("psf"),
        metadata={"case_id": "case_00000", "seed": 7, "downsample_ratio": 4},
    )  # fmt: skip
    assert isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)
    prediction = np.asarray(result[0], np.float32)
    assert prediction.ndim == 3 and np.isfinite(prediction).all()
    return prediction, result[1]


def mixtures(rows: int, cols: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a cube that a linear inverter recovers exactly, and its SRF.

    Three spectra mixed by planes over the image, seen in four bands.
    """
    rng = np.random.default_rng(1)
    down, across = np.meshgrid(
        (np.arange(rows) + 0.5) / rows, (np.arange(cols) + 0.5) / cols, indexing="ij"
    )
    shares = np.stack([np.ones_like(down), down, across], axis=-1)
    spectra = 0.2 + 0.25 * rng.random((3, 9))
    srf = rng.random((4, 9))
    return shares @ spectra, srf / srf.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def case() -> dict[str, Any]:
    """26 x 34 pixels, of which 4.33 and 4.25 make an LR pixel: a ratio HyperBench does make.

    The means of planes over LR pixels are the planes at their centres.
    """
    cube, srf = mixtures(26, 34)
    coarse, _ = mixtures(6, 8)
    return {"truth": cube, "HR_MSI": cube @ srf.T, "LR_HSI": coarse, "srf": srf, "psf": np.eye(3)}


def test_a_case_comes_back_sharp(
    adapter: ModuleType, case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what the commands are given, read back by the toolkit, is what HyperBench gave."""
    monkeypatch.setenv("SPECTRALIFT", PROGRAM)
    kept = tmp_path / "kept"
    words = []

    class Kept(adapter.SpectraLift):  # type: ignore[name-defined,misc]
        def _run(self, work: Path, *given: str) -> Any:
            words.append(given)
            if given[0] == "infer":  # by now everything is there
                shutil.copytree(work, kept)
            return super()._run(work, *given)

    train = ("--model", "linear", "--threads", "1")
    prediction, stats = call(Kept(train=train, infer=("--dtype", "float32")), case, batch=True)
    assert case["truth"].max() > 1.1  # and is not clipped
    np.testing.assert_allclose(prediction, case["truth"], atol=2e-3)
    assert (stats["spectralift_model"], stats["pipeline_train_time_sec"] > 0) == ("linear", True)
    assert sorted(p.name for p in kept.iterdir()) == [
        "hr_msi.npz", "lr_hsi.npz", "model.safetensors", "psf.npy", "srf.npy"
    ]  # fmt: skip
    with sl.open_cube(kept / "lr_hsi.npz") as low, sl.open_cube(kept / "hr_msi.npz") as high:
        # coarse pixels lie where HyperBench took them from
        assert low.meta.transform == pytest.approx((34 / 8, 0, 0, 0, 26 / 6, 0))
        assert high.meta.transform == (1, 0, 0, 0, 1, 0)
        np.testing.assert_array_equal(low.read(), np.float32(case["LR_HSI"]))
    assert words[0][-6:] == ("--seed", "7", *train)
    assert words[1][-2:] == ("--dtype", "float32")


def test_what_goes_wrong_is_told(
    adapter: ModuleType, case: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = adapter.SpectraLift(train=("--model", "none-such"), program=PROGRAM).run_pipeline
    images = {name: case[name] for name in ("HR_MSI", "LR_HSI", "srf")}
    with pytest.raises(RuntimeError, match=r"train ended with 2: (.|\n)*none-such"):
        run(**images)
    with pytest.raises(ValueError, match=r"the SRF is \(9, 4\), the images have 4 and 9 bands"):
        run(**{**images, "srf": case["srf"].T})
    with pytest.raises(ValueError, match="not \\(rows, cols, bands\\)"):
        run(**{**images, "HR_MSI": np.zeros((2, 4, 4, 3))})
    monkeypatch.setenv("SPECTRALIFT", "/nowhere/spectralift")
    with pytest.raises(RuntimeError, match="SPECTRALIFT"):
        adapter.pipeline.run_pipeline(**images)


def test_it_needs_only_numpy_and_their_oldest_python(adapter: ModuleType) -> None:
    tree = ast.parse(SOURCE.read_text(), feature_version=(3, 9))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip
    assert imported - sys.stdlib_module_names == {"numpy"}
    # what `hyperbench run` looks for
    assert not hasattr(adapter, "run_pipeline") and adapter.pipeline.train == ()
    assert adapter.paper.train == ("--preset", "paper")
