"""What is fuzzed: for each reader, a file that it likes, and what a user does with it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spectralift_cli.core.config import SynthConfig, TrainConfig
from spectralift_cli.core.cube import Cube, CubeMeta
from spectralift_cli.core.cubeio import row_blocks

_READ_BYTES = 64 * 2**20  # of a cube that claims more, only the first rows are read


@dataclass(frozen=True)
class Target:
    """One reader under test.

    Args:
        make: writes a good file, with all that belongs to it, into a folder; returns the path to
            read.
        read: what a user does with that path.
        share: of the mutations, how many fall into the first and last 2 KiB, where headers are.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    share: float = 0.6


def sample() -> Cube:
    """Return a small cube with all metadata there is."""
    values = np.arange(7 * 6 * 5, dtype=np.int16).reshape(7, 6, 5)
    meta = CubeMeta(
        values.shape, values.dtype,
        wavelengths_nm=np.linspace(450, 900, 5), fwhm_nm=np.full(5, 10.0),
        bad_bands=np.array([False, False, True, False, False]), nodata=-99, scale=1e-4,
        transform=(30.0, 0.0, 383472.0, 0.0, -30.0, 5818302.0),
        crs='LOCAL_CS["local",UNIT["metre",1]]', band_names=tuple("abcde"),
    )  # fmt: skip
    return Cube(values, meta)


def _cube(suffix: str, **options: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from spectralift_cli.core.formats import write_cube

        path = folder / f"x{suffix}"
        write_cube(path, sample(), options=options or None)
        return path

    return make


def _enmap(folder: Path) -> Path:
    from tests.products import write_enmap

    return write_enmap(folder)


def _prisma(folder: Path) -> Path:
    from tests.products import write_prisma

    return write_prisma(folder / "PRS_L2D_STD_20220101000000_20220101000004_0001.he5")


def _emit(folder: Path) -> Path:
    from tests.products import write_emit

    return write_emit(folder / "EMIT_L2A_RFL_001_20220101T000000_2200101_001.nc")


def _library(folder: Path) -> Path:
    """An ENVI spectral library of two responses."""
    spectra = np.array([[0, 0.5, 1, 0.5, 0], [0, 0, 0.5, 1, 0.5]], "<f4")
    (folder / "s.sli").write_bytes(spectra.tobytes())
    (folder / "s.hdr").write_text(
        "ENVI\nsamples = 5\nlines = 2\nbands = 1\nheader offset = 0\nfile type = ENVI Spectral "
        "Library\ndata type = 4\ninterleave = bsq\nbyte order = 0\nwavelength units = Nanometers\n"
        "wavelength = {450, 550, 650, 750, 850}\nspectra names = {a, b}\n"
    )
    return folder / "s.sli"


def _tiff_stack(folder: Path) -> Path:
    import tifffile

    path = folder / "x.tif"
    tifffile.imwrite(path, np.moveaxis(sample().values, 2, 0), compression="zlib")
    return path


def read_cube(path: Path) -> None:
    """Describe a cube and read its first and last rows as units."""
    from spectralift_cli.core.formats import open_cube

    with open_cube(path, memory_bytes=_READ_BYTES) as reader:
        meta = reader.meta
        blocks = list(row_blocks(min(meta.rows, 10_000), max(1, min(reader.block_rows, 1000))))
        for rows in (blocks[0], blocks[-1]):
            if (rows.stop - rows.start) * meta.cols * meta.bands * 8 <= _READ_BYTES:
                reader.read_units(rows)


def _checkpoint(folder: Path) -> Path:
    from spectralift_cli.core import stages

    scene = _scene(folder)
    path = folder / "m.safetensors"
    config = TrainConfig(model="prior-mlp", effort="fast")
    stages.train(stages.TrainInputs(scene=scene), path, config)
    for left in sorted(scene.rglob("*"), reverse=True):
        left.unlink()
    scene.rmdir()
    return path


def _read_checkpoint(path: Path) -> None:
    from spectralift_cli.core.checkpoint import load_checkpoint
    from spectralift_cli.core.inference import predict

    checkpoint = load_checkpoint(path)
    model = checkpoint.empty_model().with_weights(checkpoint.weights)
    if model.inputs <= 64 and model.flops_per_pixel < 10**7:
        predict(model, np.full((3, model.inputs), 0.5, np.float32), batch_size=4, threads=1)


def _state(folder: Path) -> Path:
    import torch

    from spectralift_cli.core.fitstate import FitState, save_state

    path = folder / "m.safetensors.state"
    numbers = [torch.linspace(0, 1, 10) for _ in range(3)]
    state = FitState(
        weights=numbers[0], m=numbers[1], v=numbers[2], losses=torch.ones(4),
        generator=torch.Generator().manual_seed(1).get_state(),
    )  # fmt: skip
    save_state(state, path, {"preset": "paper"})
    return path


def _read_state(path: Path) -> None:
    from spectralift_cli.core.fitstate import load_state

    load_state(path, {"preset": "paper"}, 10, 8)


def _scene(folder: Path) -> Path:
    from spectralift_cli.core import stages
    from spectralift_cli.core.samples import write_sample

    cube = folder / "cube.npy"
    for file in (written := write_sample("synthetic", cube, size=(48, 48, 12))):
        assert file.exists()
    scene = folder / "scene"
    stages.synth(cube, scene, SynthConfig(downsample_ratio=4), cube_format="npy")
    for file in written:
        file.unlink()
    return scene


def _read_scene(path: Path) -> None:
    from spectralift_cli.core.describe import describe_scene
    from spectralift_cli.core.scene import open_scene

    scene = open_scene(path)
    describe_scene(path)
    scene.ratio, scene.data_scaled  # noqa: B018  they are computed
    for role in ("lr_hsi", "hr_msi"):
        with scene.open(role) as reader:
            reader.read_units(slice(0, 1))


NATIVE = """\
schema: spectralift.run/1
synth: {cube: x.h5, psf_type: gaussian, sigma: 1.7, downsample_ratio: 4, snr_spatial: 35}
train: {preset: auto, effort: fast, seed: 7}
infer: {clip: auto}
metrics: {ratio: 4}
"""
FLAT = {
    "mat_file": "/dev/null", "mat_key": "cube", "psf_type": "gaussian", "sigma": 3.4,
    "downsample_ratio": 4, "num_msi_bands": 4, "epochs": 10, "seed": 42,
}  # fmt: skip


def _text(name: str, text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        path.write_text(text)
        return path

    return make


def _read_config(path: Path) -> None:
    from spectralift_cli.core.runs.config import resolve_config
    from spectralift_cli.core.runs.configtext import read_config

    resolve_config(read_config(path), (), str(path))


def _read_srf(path: Path) -> None:
    from spectralift_cli.core.sensors.response import check_coverage
    from spectralift_cli.core.sensors.srf import describe_srf, read_srf

    describe_srf(path)
    check_coverage(read_srf(path, np.linspace(450, 900, 5), None, 5), drop=True)


def _read_library(path: Path) -> None:
    from spectralift_cli.core.sensors.srf import read_srf

    read_srf(path, np.linspace(450, 850, 5), None, 5)


def _read_psf(path: Path) -> None:
    from spectralift_cli.core.formats.kernels import read_psf

    read_psf(path)


def _read_wavelengths(path: Path) -> None:
    from spectralift_cli.core.formats.spectral import read_wavelengths

    read_wavelengths(path)


def _estimate(folder: Path) -> Path:
    from spectralift_cli.core.estimation.parts import Findings, Gain, Psf, Response, Shift
    from spectralift_cli.core.estimation.result import Estimate

    m, b, judged = 2, 3, (True, "it pays", "fits well")
    kernel, ends = np.full((3, 3), 1 / 9), np.zeros((m, 2))
    found = Findings(
        Shift(np.zeros(2), np.full(2, 0.1), np.zeros((2, 2)), *judged),
        Psf(kernel, kernel / 9, np.ones(2), 0.1, *judged),
        Gain(np.ones(m), np.ones(m), ends, np.zeros(m), np.ones(m), ends, *judged),
        Response(np.full((m, b), 1 / b), np.zeros((m, b)), np.zeros(m), *judged),
        np.ones(m), 9, 4,
    )  # fmt: skip
    nm = np.linspace(450, 650, b)
    made = Estimate(found, ("a", "b"), b, nm, (0, 2), 3, (4.0, 4.0), {"steps": []})
    path = folder / "estimate.json"
    path.write_text(made.to_text())
    return path


def _read_estimate(path: Path) -> None:
    from spectralift_cli.core.estimation.result import read_estimate

    found = read_estimate(path)
    found.to_text(), found.shift_px, found.effective_psf


def _validation(folder: Path) -> Path:
    from spectralift_cli.core.validation import figures

    numbers = [figures.Figure("sam_deg", 1.5, "deg", "as usual", "small"),
               figures.Figure("hqnr", float("nan"), "", "", "both", "too few pixels")]  # fmt: skip
    section = figures.Section("lr_hsi", "a", "b", numbers, {"rmse": np.ones(3)}, "maps")
    found = figures.Validation((section,), "assumed", {"steps": []})
    path = folder / figures.DOCUMENT
    path.write_text(json.dumps({"schema": figures.SCHEMA, **found.to_json()}))
    return path


def _read_validation(path: Path) -> None:
    from spectralift_cli.core.validation.document import read_validation

    read_validation(path).to_json()


_PLAN = {"shape": [7, 6, 5], "blocks": [[0, 4], [4, 7]], "options": {"clip": "auto", "seed": 7}}


def _job(folder: Path) -> Path:
    """An output that is half done: the plan of its job and the receipt of a block."""
    from spectralift_cli.core.engine import Counts
    from spectralift_cli.core.jobs.folder import Job, Receipt

    output = folder / "x.npy"
    with Job.join(output, _PLAN, must_be_new=True) as job:
        job.add_receipt(0, Receipt("0" * 64, "1" * 64, Counts(holes=3)))
    return output


def _read_job(path: Path) -> None:
    from spectralift_cli.core.jobs.folder import Job

    with Job.join(path, _PLAN, must_be_new=False) as job:
        job.receipt(0)


_STAGE = {"version": "1", "options": {"sigma": 3.4, "bands": [1, 2]}, "files": {"cube": "00"}}


def _run_job(folder: Path) -> Path:
    """A run that was killed in its second stage, over a finished one."""
    from spectralift_cli.core.runs.job import RunJob

    output = folder / "run"
    with contextlib.closing(RunJob(output)) as job:
        (job.work / "metrics.json").write_text("{}")
        files = {"metrics": job.work / "metrics.json"}
        receipt = job.finish("metrics", _STAGE, files, {"modes": {}}, 1.5, ["a warning"])
        job.begin("train", _STAGE, ["m.state"])
    document = {"schema": "spectralift.run/1", "outputs": {"metrics": "metrics.json"},
                "stages": [{"stage": "metrics", "receipt": receipt.to_json()}]}  # fmt: skip
    output.mkdir()
    (output / "run.json").write_text(json.dumps(document))
    (output / "metrics.json").write_text("{}")
    return output


def _read_run_job(path: Path) -> None:
    from spectralift_cli.core.runs.job import RunJob

    with contextlib.closing(RunJob(path, resume=True)) as job:
        job.kept("metrics", _STAGE)
        job.kept("metrics", {**_STAGE, "version": "2"}, "report", lambda receipt: receipt.inputs)
        job.begin("train", _STAGE, ["m.state"])


def _table(header: str, columns: int, rows: int) -> str:
    lines = [header] if header else []
    for row in range(rows):
        cells = [str(400 + 50 * row)] if header else []
        lines.append(",".join(cells + [f"{(row * 7 + c) % 5 / 4}" for c in range(columns)]))
    return "\n".join(lines) + "\n"


CUBES = {
    "npy": Target(_cube(".npy"), read_cube),
    "npz": Target(_cube(".npz"), read_cube),
    "mat5": Target(_cube(".mat", VERSION="5"), read_cube),
    "mat73": Target(_cube(".mat", VERSION="7.3"), read_cube, share=0.3),
    "hdf5": Target(_cube(".h5"), read_cube, share=0.3),
    "geotiff": Target(_cube(".tif"), read_cube),
    "tiff-stack": Target(_tiff_stack, read_cube),
    "envi": Target(_cube(".hdr"), read_cube),
    "zarr": Target(_cube(".zarr"), read_cube),
}
TARGETS = {
    **CUBES,
    "enmap": Target(_enmap, read_cube),
    "prisma": Target(_prisma, read_cube, share=0.3),
    "emit": Target(_emit, read_cube, share=0.3),
    "srf-library": Target(_library, _read_library),
    "checkpoint": Target(_checkpoint, _read_checkpoint),
    "state": Target(_state, _read_state),
    "scene": Target(_scene, _read_scene),
    "config-native": Target(_text("c.yaml", NATIVE), _read_config),
    "config-flat": Target(_text("c.json", json.dumps(FLAT, indent=1)), _read_config),
    "estimate": Target(_estimate, _read_estimate),
    "job": Target(_job, _read_job),
    "run-job": Target(_run_job, _read_run_job),
    "validation": Target(_validation, _read_validation),
    "srf-curve": Target(_text("s.csv", _table("wavelength_nm,a,b", 2, 12)), _read_srf),
    "srf-matrix": Target(_text("s.csv", _table("", 5, 2)), _read_srf),
    "psf": Target(_text("p.csv", _table("", 5, 5)), _read_psf),
    "wavelengths": Target(_text("w.txt", "450 10\n560 11.5\n670 12\n"), _read_wavelengths),
}
