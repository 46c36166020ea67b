"""Inference by blocks: the same pixels however they are cut, in the units and type asked for."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spectralift_cli.core import footprint, inference
from spectralift_cli.core.checkpoint import Checkpoint
from spectralift_cli.core.config import InferConfig
from spectralift_cli.core.cube import Cube, CubeMeta
from spectralift_cli.core.cubeio import CubeReader
from spectralift_cli.core.errors import (
    DataError,
    OptionError,
    OutputExistsError,
    SpectraliftWarning,
)
from spectralift_cli.core.formats import open_cube, read_cube, write_cube
from spectralift_cli.core.given import Execution, Storage
from spectralift_cli.core.inference import InferResult, infer, predict
from spectralift_cli.core.operators.scaling import Scaling
from tests.inverters import forward, make_checkpoint
from tests.strategies import TRANSFORM, UTM33N

PLAIN = InferConfig(clip="none")


def random_msi(*shape: int) -> np.ndarray:
    return np.random.default_rng(8).random(shape, dtype=np.float32)


def run(
    folder: Path, checkpoint: Checkpoint, msi: Cube, config: InferConfig = PLAIN, **more: Any
) -> tuple[Cube, InferResult]:
    source = write_cube(folder / "msi.npy", msi, overwrite=True)[0]
    with open_cube(source) as reader:
        result = infer(checkpoint, reader, folder / "out.npy", config, overwrite=True, **more)
    return read_cube(result.files[0]), result


def expected_units(checkpoint: Checkpoint, msi_units: np.ndarray) -> np.ndarray:
    """(rows, cols, used bands) in units, by the formula in float64."""
    lo, hi = checkpoint.scaling.lo, checkpoint.scaling.hi
    pixels = (msi_units.reshape(-1, msi_units.shape[2]).astype(np.float64) - lo) / (hi - lo)
    out = forward(dict(checkpoint.weights), pixels) * (hi - lo) + lo
    return out.reshape(*msi_units.shape[:2], -1)


def test_predict_is_the_formula_for_any_batch_and_threads() -> None:
    checkpoint = make_checkpoint(191, 4, hidden=64)
    x = random_msi(9001, 4)
    expected = forward(dict(checkpoint.weights), x)
    span = np.ptp(expected)
    found = {size: predict(checkpoint.model(), x[:n], batch_size=size)
             for size, n in ((1, 40), (7, 4000), (4096, 9001), (9001, 9001), (10**7, 9001))}  # fmt: skip
    for values in found.values():
        np.testing.assert_allclose(values, expected[: len(values)], rtol=0, atol=1e-5 * span)
    one, three = (predict(checkpoint.model(), x, threads=n) for n in (1, 3))
    assert one.tobytes() == three.tobytes() == found[4096].tobytes()
    rough = predict(checkpoint.model(), x, precision="bf16")
    assert 1e-4 * span < np.abs(rough - expected).max() < 0.02 * span
    assert predict(checkpoint.model(), x[:0]).shape == (0, 191)
    with pytest.raises(DataError, match="4 MSI bands"):
        predict(checkpoint.model(), x[:, :3])


def test_bytes_do_not_depend_on_blocks_or_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = make_checkpoint(5, 3, scaling=Scaling(0.1, 0.8))
    msi = random_msi(131, 97, 3)
    msi[40, 11:60, 1] = np.nan
    seen = set()
    for block_bytes, threads in ((1, 1), (97 * 12 * 9, 2), (40_000, 3), (16 * 2**20, 2)):
        monkeypatch.setattr(footprint, "BLOCK_BYTES", block_bytes)
        for name in ("msi.npy", "msi.npy.json"):
            (tmp_path / name).unlink(missing_ok=True)
        _, result = run(tmp_path, checkpoint, Cube.of(msi), execution=Execution("cpu", threads))
        seen.add(b"".join(path.read_bytes() for path in result.files))
    assert len(seen) == 1
    values = read_cube(tmp_path / "out.npy").values
    holes = np.isnan(msi).any(axis=2)
    assert (np.isnan(values) == holes[:, :, None]).all()
    expected = expected_units(checkpoint, msi)
    np.testing.assert_allclose(values[~holes], expected[~holes], rtol=0, atol=1e-5)


def test_output_has_the_msis_place_and_the_hsis_bands(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(
        5, dtype=np.dtype("float64"), wavelengths_nm=np.linspace(400, 900, 5), nodata=-1.0,
        fwhm_nm=np.full(5, 8.0), band_names=tuple("vwxyz"), scale=0.5,
    )  # fmt: skip
    msi = Cube.of(random_msi(6, 4, 3), crs=UTM33N, transform=TRANSFORM, band_names=tuple("abc"))
    done: list[tuple[int, int]] = []
    cube, result = run(
        tmp_path, checkpoint, msi, execution=Execution("cpu", progress=lambda *a: done.append(a))
    )
    meta = cube.meta
    assert (meta.shape, meta.dtype.name, meta.is_scaled) == ((6, 4, 5), "float32", False)
    assert (meta.crs, meta.transform, meta.band_names) == (UTM33N, TRANSFORM, tuple("vwxyz"))
    assert meta.nodata is not None and np.isnan(meta.nodata)
    np.testing.assert_array_equal(meta.wavelengths_nm, np.linspace(400, 900, 5))
    np.testing.assert_array_equal(meta.fwhm_nm, np.full(5, 8.0))
    assert meta.provenance is not None
    step = meta.provenance["steps"][-1]
    assert step["inputs"]["model"] == checkpoint.identity()
    assert step["options"] == {
        "clip": "none", "precision": "fp32", "drop_bad_bands": False, "dtype": "float32"
    }  # fmt: skip
    assert done[-1] == (6, 6)
    assert result.pixels == 24
    np.testing.assert_allclose(cube.values, expected_units(checkpoint, msi.values), atol=1e-5)


def integer_case(dtype: str, **fields: Any) -> tuple[Checkpoint, Cube]:
    """A checkpoint of an integer LR-HSI and an integer MSI with holes, in other stored units."""
    checkpoint = make_checkpoint(4, dtype=np.dtype(dtype), scaling=Scaling(0.2, 0.7), **fields)
    stored = np.random.default_rng(5).integers(0, 4000, (30, 20, 3)).astype(np.uint16)
    stored[4, 5, 0] = stored[9, 9, 2] = 65535
    return checkpoint, Cube.of(stored, nodata=65535, scale=2.5e-4)


def by_loop(
    units: np.ndarray, meta: CubeMeta, clip: tuple[float, float] | None
) -> tuple[np.ndarray, int, int, int]:
    """Store (rows, cols, bands) units one at a time; NaN is a hole."""
    out = np.empty(units.shape, meta.dtype)
    info = np.iinfo(meta.dtype)
    clipped = saturated = moved = 0
    scale = np.broadcast_to(meta.scale, units.shape[2])
    offset = np.broadcast_to(meta.offset, units.shape[2])
    for index, unit in np.ndenumerate(units):
        if np.isnan(unit):
            assert meta.nodata is not None
            out[index] = meta.nodata
            continue
        if clip is not None and not clip[0] <= unit <= clip[1]:
            unit = min(max(unit, clip[0]), clip[1])
            clipped += 1
        count = round((unit - offset[index[2]]) / scale[index[2]])
        if not info.min <= count <= info.max:
            count = min(max(count, info.min), info.max)
            saturated += 1
        if count == meta.nodata:
            count += -1 if count == info.max else 1
            moved += 1
        out[index] = count
    return out, clipped, saturated, moved


@pytest.mark.parametrize(
    ("dtype", "fields", "config", "more"),
    [
        ("int16", {"scale": 1e-4, "nodata": 3000}, PLAIN, {}),
        ("int16", {"scale": -1e-3, "offset": 100.0, "nodata": -99}, PLAIN, {"nodata": 99500}),
        ("uint8", {"scale": 2e-3, "nodata": 255}, PLAIN, {}),
        ("uint8", {"scale": 2e-3}, InferConfig(clip="0.3,0.45"), {}),
        ("uint16", {"scale": np.array([1e-4, 2e-4, 1e-3, 5.0]), "offset": np.array([0, 0.1, -3, 0]),
                    "nodata": 0}, PLAIN, {}),
        ("float32", {}, InferConfig(clip="0.25,0.6"), {"dtype": "int32", "scale": 1e-5}),
        ("int16", {"scale": 1e-4, "nodata": 15000}, PLAIN, {"dtype": "uint8", "scale": 0.01}),
    ],
)  # fmt: skip
def test_integer_rules(
    dtype: str, fields: dict[str, Any], config: InferConfig, more: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint, msi = integer_case(dtype, **fields)
    if more.get("nodata") == 99500:  # int16 cannot hold it
        with pytest.raises(DataError, match="99500 cannot occur in int16"):
            run(tmp_path, checkpoint, msi, config, stored=Storage(**more))
        more = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cube, result = run(tmp_path, checkpoint, msi, config, stored=Storage(**more))
    float_units, _ = run(tmp_path, checkpoint, msi, PLAIN, stored=Storage("float64"))
    expected, clipped, saturated, moved = by_loop(float_units.values, cube.meta, config.clip_range)
    # folding two maps into one may turn a tie over, by a count and for a few values in a thousand
    difference = np.abs(cube.values.astype(np.int64) - expected.astype(np.int64))
    assert difference.max() <= 1 + (moved > 0)
    assert (difference > 0).mean() < 3e-3
    assert result.holes == 2
    assert abs(result.clipped - clipped) <= 2
    assert abs(result.saturated - saturated) <= 2
    assert abs(result.moved - moved) <= 2
    assert bool(caught) == bool(saturated)
    assert cube.meta.nodata is not None
    assert (cube.values[4, 5] == cube.meta.nodata).all()
    assert (cube.values == cube.meta.nodata).sum() == 2 * 4


def test_clip_auto_is_the_unit_range_for_scaled_data(tmp_path: Path) -> None:
    msi = Cube.of(8 * random_msi(20, 20, 3) - 4)
    scaled = make_checkpoint(5, auto_clip=(0.0, 1.0))
    cube, result = run(tmp_path, scaled, msi, InferConfig())
    free, unclipped = run(tmp_path, scaled, msi, PLAIN)
    np.testing.assert_array_equal(cube.values, np.clip(free.values, 0, 1))
    assert result.clipped == ((free.values < 0) | (free.values > 1)).sum() > 0
    assert unclipped.clipped == 0
    other, _ = run(tmp_path, make_checkpoint(5), msi, InferConfig())
    np.testing.assert_array_equal(other.values, free.values)


def test_bands_left_out_of_training_are_nodata(tmp_path: Path) -> None:
    used = np.array([True, False, True, True])
    checkpoint = make_checkpoint(4, used=used, dtype=np.dtype("int16"), scale=1e-3)
    msi = Cube.of(np.random.default_rng(0).integers(0, 2, (5, 5, 3)).astype(np.uint8))
    cube, _ = run(tmp_path, checkpoint, msi)
    assert cube.meta.nodata == -32768  # the LR-HSI has none, and one is needed
    assert (cube.values[:, :, 1] == -32768).all()
    np.testing.assert_allclose(
        cube.units()[:, :, used], expected_units(checkpoint, msi.values), atol=6e-4
    )
    whole = make_checkpoint(4, dtype=np.dtype("int16"), scale=1e-3)
    assert run(tmp_path, whole, msi)[0].meta.nodata is None  # no holes can be


class Huge(CubeReader):
    """An image that nobody could read."""

    def __init__(self) -> None:
        super().__init__(Path("huge"), CubeMeta((10**6, 10**6, 3), np.dtype("u1")))

    def _read(self, start: int, stop: int) -> np.ndarray:
        raise AssertionError

    def close(self) -> None:
        pass


def test_errors_name_both_sides(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(5, 3)
    msi = Cube.of(random_msi(4, 4, 4))
    with pytest.raises(DataError, match=r"has 4 bands, but the model takes 3: a, b, c"):
        run(tmp_path, checkpoint, msi)
    good = Cube.of(random_msi(4, 4, 3))
    with pytest.raises(DataError, match="complex64 is not a type"):
        run(tmp_path, checkpoint, good, stored=Storage("complex64"))
    with pytest.raises(OptionError, match="do not apply to float32"):
        run(tmp_path, checkpoint, good, stored=Storage(scale=2.0))
    with pytest.raises(DataError, match="batch of 0"):
        run(tmp_path, checkpoint, good, batch_size=0)
    with pytest.raises(DataError, match=r"batches of 1,000,000,000,000 pixels take .* MB are free"):
        inference.plan_inference(checkpoint, Huge(), PLAIN, batch_size=10**15)
    with pytest.raises(DataError, match="not finite"):
        run(tmp_path, checkpoint, Cube.of(np.full((4, 4, 3), 3e38, np.float32)))
    with pytest.warns(SpectraliftWarning, match="which is 1 counts of int16"):
        run(tmp_path, checkpoint, good, stored=Storage("int16"))
    with open_cube(tmp_path / "msi.npy") as reader, pytest.raises(OutputExistsError):
        infer(checkpoint, reader, tmp_path / "out.npy", PLAIN)


def test_image_may_replace_itself(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(3, 3)
    path = write_cube(tmp_path / "x.npy", Cube.of(random_msi(70, 70, 3)))[0]
    expected = expected_units(checkpoint, read_cube(path).values)
    with open_cube(path) as reader:
        infer(checkpoint, reader, path, PLAIN, overwrite=True)
    np.testing.assert_allclose(read_cube(path).values, expected, atol=1e-5)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_cuda_agrees_with_the_processor(dtype: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(191, 4, hidden=64, dtype=np.dtype(dtype), scaling=Scaling(0, 3000))
    msi = 3000 * random_msi(600, 300, 4)
    msi[3, 4] = np.nan
    here, _ = run(tmp_path, checkpoint, Cube.of(msi))
    there, result = run(tmp_path, checkpoint, Cube.of(msi), execution=Execution("cuda"))
    again, _ = run(tmp_path, checkpoint, Cube.of(msi), execution=Execution("cuda"))
    assert there.values.tobytes() == again.values.tobytes()
    assert result.holes == 1
    np.testing.assert_allclose(
        there.values.astype(np.float64), here.values, atol=1 if dtype == "int16" else 0.1
    )
    rough, _ = run(tmp_path, checkpoint, Cube.of(msi), InferConfig(clip="none", precision="bf16"),
                   execution=Execution("cuda"))  # fmt: skip
    difference = np.abs(rough.values.astype(np.float64) - here.values)
    assert 1 < np.nanmax(difference) < 0.02 * np.nanmax(np.abs(here.values.astype(np.float64)))
