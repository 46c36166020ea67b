"""SpectraLift as a method of HyperBench 0.1.0, a benchmark of hyperspectral super-resolution.

HyperBench degrades a scene and scores what comes back. It hands every case to a pipeline as arrays;
this one writes them to files, calls `spectralift train` and `spectralift infer`, and reads the cube.
HyperBench pins NumPy 1.26.4 and SpectraLift needs NumPy 2, so each has an environment of its own, and
this file, which runs in HyperBench's, imports neither (NumPy and Python 3.9 are all it needs).

    export SPECTRALIFT=/path/to/venv/bin/spectralift   # not needed where it is on the PATH
    hyperbench run --config hyperbench.yaml --pipeline-module hyperbench_adapter.py \
        --method-name spectralift
    hyperbench run --config hyperbench.yaml --pipeline-module hyperbench_adapter.py \
        --pipeline-name paper --method-name spectralift-paper

From Python, with options of your own:

    from hyperbench import PipelineAdapter, load_benchmark_config, run_benchmark
    from hyperbench_adapter import SpectraLift

    method = PipelineAdapter(SpectraLift(train=["--effort", "best"]), name="best")
    run_benchmark(method, load_benchmark_config("hyperbench.yaml"))

Scores, and what they do and do not compare: hyperbench.md.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


class SpectraLift:
    """A pipeline for HyperBench's `PipelineAdapter`, with `input_backend="numpy"`.

    Args:
        train: further options of `spectralift train`.
        infer: further options of `spectralift infer`. Both commands run in a folder that holds
            lr_hsi.npz, hr_msi.npz, srf.npy and psf.npy, for options that take a file.
        program: the command, None for that in the environment variable SPECTRALIFT, else
            `spectralift`; may have arguments, like `python -m spectralift_cli`.
    """

    def __init__(
        self, train: Sequence[str] = (), infer: Sequence[str] = (), program: str | None = None
    ) -> None:
        self.train = tuple(train)
        self.infer = tuple(infer)
        self.program = program

    def run_pipeline(
        self,
        HR_MSI: Any,
        LR_HSI: Any,
        srf: Any,
        psf: Any = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Make the sharp hyperspectral cube of one case.

        Args:
            HR_MSI: (H, W, M) or (1, H, W, M).
            LR_HSI: (h, w, B) or (1, h, w, B), the same ground to the edge as the HR-MSI: H / h need
                not be a whole number, since HyperBench resamples 145 rows into 36.
            srf: (M, B), rows sum to 1.
            psf: (k, k) or None; written for options, the pipeline itself needs none.
            metadata: of the case; its `seed` is that of the training.

        Returns:
            (H, W, B) float32, not clipped, which is left to HyperBench; and columns for its table:
            the wall time of both commands (their start, some seconds, included), the model, and
            how the preset auto weighed its models.

        Raises:
            ValueError: the arrays do not fit each other.
            RuntimeError: the program is not found, or ends with an error.
        """
        hr_msi, lr_hsi, response = _image(HR_MSI), _image(LR_HSI), np.asarray(srf, np.float32)
        if response.shape != (hr_msi.shape[2], lr_hsi.shape[2]):
            raise ValueError(
                f"the SRF is {response.shape}, the images have {hr_msi.shape[2]} and "
                f"{lr_hsi.shape[2]} bands; the pipeline takes --input-backend numpy only"
            )
        with tempfile.TemporaryDirectory(prefix="spectralift-hyperbench-") as folder:
            work = Path(folder)
            _write_image(work / "hr_msi.npz", hr_msi, hr_msi.shape)
            _write_image(work / "lr_hsi.npz", lr_hsi, hr_msi.shape)
            np.save(work / "srf.npy", response)
            if psf is not None:
                np.save(work / "psf.npy", np.asarray(psf, np.float32))
            seed = (metadata or {}).get("seed")
            trained, train_s = self._run(
                work, "train", "--lr-hsi", "lr_hsi.npz", "--hr-msi", "hr_msi.npz",
                "--srf-file", "srf.npy", "-o", "model.safetensors",
                *([] if seed is None else ["--seed", str(seed)]), *self.train,
            )  # fmt: skip
            _, infer_s = self._run(
                work, "infer", "model.safetensors", "hr_msi.npz", "-o", "sharp.npy",
                "--clip", "none", *self.infer,
            )  # fmt: skip
            sharp = np.load(work / "sharp.npy", allow_pickle=False)
        return sharp, {
            "pipeline_train_time_sec": train_s,
            "model_inference_time_sec": infer_s,
            "spectralift_model": trained["model"],
            "spectralift_choice": trained["choice"],
        }

    def _run(self, work: Path, *words: str) -> tuple[dict[str, Any], float]:
        """Run a command in a folder and return its JSON document and the seconds it took."""
        command = [*self._program(), *words, "--json", "--quiet"]
        started = time.perf_counter()
        done = subprocess.run(
            command, cwd=work, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        seconds = time.perf_counter() - started
        if done.returncode != 0:  # HyperBench puts the message into its table
            raise RuntimeError(
                f"spectralift {words[0]} ended with {done.returncode}: {done.stderr.strip()}"
            )
        print(done.stderr, end="", file=sys.stderr)  # warnings
        return json.loads(done.stdout), seconds

    def _program(self) -> list[str]:
        program, *rest = shlex.split(self.program or os.environ.get("SPECTRALIFT") or "spectralift")
        found = shutil.which(program)
        if found is None:
            raise RuntimeError(
                f"{program} is not found: put spectralift on the PATH, or name it in the "
                "environment variable SPECTRALIFT"
            )
        # absolute, since the commands run elsewhere; not resolved, which would leave a venv
        return [os.path.abspath(found), *rest]  # noqa: PTH100


def _image(array: Any) -> np.ndarray:
    """Return an image as (rows, cols, bands), without HyperBench's batch dimension."""
    image = np.asarray(array, np.float32)
    if image.ndim == 4 and image.shape[0] == 1:
        image = image[0]
    if image.ndim != 3:
        raise ValueError(f"an image is {image.shape}, not (rows, cols, bands)")
    return image


def _write_image(path: Path, image: np.ndarray, hr_shape: Sequence[int]) -> None:
    """Write an image with a transform whose unit is the HR pixel.

    It places the LR pixels where HyperBench's resampling took them from; their sizes alone would say
    that 36 of 145 rows are at ratio 4, with the last one left over.
    """
    down, across = hr_shape[0] / image.shape[0], hr_shape[1] / image.shape[1]
    place = {"transform": [across, 0.0, 0.0, 0.0, down, 0.0]}  # x = across * col, y = down * row
    np.savez(path, cube=image, spectralift=json.dumps(place))


# what `hyperbench run` finds: the preset auto by default, the others by --pipeline-name
pipeline = SpectraLift()
paper = SpectraLift(train=("--preset", "paper"))  # the published network and training
refined = SpectraLift(infer=("--refine", "--lr-hsi", "lr_hsi.npz"))  # finds the PSF itself
