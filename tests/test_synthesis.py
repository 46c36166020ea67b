"""Scenes: the published generator against loops, the physical one, holes, and hostile folders."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import signal

from spectralift_cli.core import synthesis
from spectralift_cli.core.config import SynthConfig
from spectralift_cli.core.cube import Cube
from spectralift_cli.core.errors import DataError, OutputExistsError, SpectraliftWarning
from spectralift_cli.core.formats import open_cube, write_cube
from spectralift_cli.core.formats.kernels import read_psf
from spectralift_cli.core.operators import PSFS
from spectralift_cli.core.operators.psf import make_psf
from spectralift_cli.core.scene import Scene, create_scene, open_scene
from spectralift_cli.core.sensors.srf import Srf, read_srf
from tests.strategies import TRANSFORM, UTM33N
from tests.test_operators import loop_mean, loop_psf

IKONOS_EDGES = ((480, 421, 539), (552, 480, 624), (666, 602, 729), (803, 713, 893))


def smooth_cube(rows: int, cols: int, bands: int, seed: int = 1) -> np.ndarray:
    """Counts with spatial and spectral structure, (rows, cols, bands) uint16."""
    rng = np.random.default_rng(seed)
    y, x, b = np.mgrid[0:rows, 0:cols, 0:bands]
    waves = np.sin(y / 5 + b / 3) + np.cos(x / 7 - b / 4) + rng.random((rows, cols, bands))
    return np.asarray((waves + 3) * 900, dtype=np.uint16)


def make(
    folder: Path, values: np.ndarray, config: SynthConfig | None = None, **more: Any
) -> tuple[Scene, dict[str, np.ndarray]]:
    """Write a cube, make a scene of it, and read the scene's cubes."""
    fields = more.pop("fields", {})
    source = folder / "cube.npy"
    write_cube(source, Cube.of(values, **fields), overwrite=True)
    with open_cube(source) as reader:
        scene = synthesis.synthesize(
            reader, folder / "scene", config or SynthConfig(), **{"cube_format": "npy", **more}
        )
    cubes = {}
    for role in ("gt", "hr_msi", "lr_hsi"):
        with scene.open(role) as reader:
            cubes[role] = reader.read()
    return scene, cubes


def published_by_loops(
    raw: np.ndarray, name: str, ratio: int, seed: int, snr: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The published protocol as reference.md tells it: (ground truth, HR-MSI, LR-HSI)."""
    lo, hi = np.percentile(raw, (1, 99))
    gt = (np.clip(raw, lo, hi) - lo) / (hi - lo)
    bands = raw.shape[2]
    wavelengths = np.linspace(421, 893, bands)
    srf = np.zeros((4, bands))
    for m, (centre, low, high) in enumerate(IKONOS_EDGES):
        for b in range(bands):
            srf[m, b] = math.exp(-((wavelengths[b] - centre) ** 2) / 2 / ((high - low) / 4.2) ** 2)
        srf[m] /= sum(srf[m])
    msi = np.stack([sum(gt[:, :, b] * srf[m, b] for b in range(bands)) for m in range(4)], axis=2)
    kernel = loop_psf(name, 3.4, 7, "published")
    lr = np.stack(
        [
            loop_mean(signal.convolve2d(gt[:, :, b], kernel, mode="same"), ratio, True)
            for b in range(bands)
        ],
        axis=2,
    )
    generator = np.random.RandomState(seed)
    noisy = []
    for image, decibels in ((msi, snr[0]), (lr, snr[1])):
        draw = generator.normal(size=image.shape).astype(np.float32)
        std = [
            math.sqrt(np.mean(image[:, :, b] ** 2) / 10 ** (decibels / 10))
            for b in range(image.shape[2])
        ]
        noisy.append(image + draw * np.array(std))
    return gt, noisy[0], noisy[1]


@pytest.mark.parametrize("name", PSFS)
def test_published_protocol_is_the_documented_generator(tmp_path: Path, name: str) -> None:
    raw = smooth_cube(24, 32, 6)
    config = SynthConfig(protocol="paper", psf_type=name, seed=7)
    _, cubes = make(tmp_path, raw, config)
    expected = published_by_loops(raw, name, 4, 7, (40.0, 35.0))
    for role, values in zip(("gt", "hr_msi", "lr_hsi"), expected, strict=True):
        assert cubes[role].dtype == np.float32
        assert np.abs(cubes[role] - values).max() < 2e-5, role


def test_published_protocol_where_the_ratio_does_not_divide(tmp_path: Path) -> None:
    raw = smooth_cube(145, 145, 3)
    config = SynthConfig(protocol="published", snr_spatial=20.0)
    with pytest.warns(SpectraliftWarning, match="4 does not divide 145 x 145.*fractional"):
        scene, cubes = make(tmp_path, raw, config, fields={"transform": TRANSFORM, "crs": UTM33N})
    gt, msi, lr = published_by_loops(raw, "gaussian", 4, 42, (40.0, 20.0))
    assert cubes["lr_hsi"].shape == (36, 36, 3)
    for role, values in (("gt", gt), ("hr_msi", msi), ("lr_hsi", lr)):
        assert np.abs(cubes[role] - values).max() < 2e-5, role
    with scene.open("lr_hsi") as reader:
        a, b, c, d, e, f = reader.meta.transform or ()
    # the LR pixels cover the whole image
    assert (b, c, d, f) == (0, TRANSFORM[2], 0, TRANSFORM[5])
    assert a * 36 == pytest.approx(TRANSFORM[0] * 145)
    assert e * 36 == pytest.approx(TRANSFORM[4] * 145)


def test_physical_protocol(tmp_path: Path) -> None:
    raw = smooth_cube(30, 34, 5)
    bands_nm = np.array([450.0, 520.0, 560.0, 660.0, 830.0])
    fields = {
        "wavelengths_nm": bands_nm, "fwhm_nm": np.full(5, 10.0), "scale": 1e-4, "crs": UTM33N,
        "transform": TRANSFORM, "bad_bands": np.array([False, True, False, False, False]),
    }  # fmt: skip
    config = SynthConfig(psf_type="moffat", sigma=1.5, kernel_size=3, snr_spatial=math.inf,
                         snr_spectral=math.inf)  # fmt: skip
    with pytest.warns(SpectraliftWarning) as caught:
        scene, cubes = make(tmp_path, raw, config, fields=fields)
    assert "cropped to 28 x 32" in str(caught[0].message)
    units = raw[:28, :32].astype(float) * 1e-4
    lo, hi = np.percentile(units, (1, 99))
    assert scene.scaling == pytest.approx((lo, hi), rel=1e-6)
    gt = np.clip((units - lo) / (hi - lo), 0, 1)
    np.testing.assert_allclose(cubes["gt"], gt, atol=1e-6)
    weights = np.array(
        [
            np.exp(-(((bands_nm - c) / ((high - low) / 4.2)) ** 2) / 2)
            for c, low, high in IKONOS_EDGES
        ]
    )
    weights /= weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(cubes["hr_msi"], gt @ weights.T, atol=1e-6)
    kernel = make_psf("moffat", 1.5, 3)
    for band in range(5):
        blurred = signal.convolve2d(
            np.pad(gt[:, :, band], 3, mode="symmetric"), kernel, mode="valid"
        )
        blocks = blurred.reshape(7, 4, 8, 4).mean(axis=(1, 3))
        np.testing.assert_allclose(cubes["lr_hsi"][:, :, band], blocks, atol=1e-6)

    assert scene.ratio == 4
    assert scene.data_scaled
    assert not scene.psf_includes_footprint
    np.testing.assert_allclose(read_psf(scene.path("psf")), kernel, rtol=1e-14)
    srf = read_srf(scene.path("srf"), bands_nm, None, 5)
    np.testing.assert_allclose(srf.weights, weights, atol=1e-12)
    with scene.open("lr_hsi") as lr, scene.open("gt") as sharp, scene.open("hr_msi") as msi:
        assert lr.meta.transform == (10.0, 0.0, TRANSFORM[2], 0.0, -10.0, TRANSFORM[5])
        assert sharp.meta.transform == msi.meta.transform == TRANSFORM
        assert lr.meta.crs == sharp.meta.crs == msi.meta.crs == UTM33N
        for meta in (lr.meta, sharp.meta):
            assert np.array_equal(meta.wavelengths_nm, bands_nm)
            assert np.array_equal(meta.fwhm_nm, fields["fwhm_nm"])
            assert np.array_equal(meta.bad_bands, fields["bad_bands"])
        np.testing.assert_allclose(msi.meta.wavelengths_nm, weights @ bands_nm)
        assert msi.meta.band_names == ("Blue", "Green", "Red", "NIR")
        (step,) = (lr.meta.provenance or {})["steps"]
    assert step["command"] == "synth"
    assert step["options"]["boundary"] == "reflect"
    assert step["options"]["snr_spatial"] == "inf"
    assert set(step["inputs"]["cube"]) == {"size", "sha256"}
    assert str(tmp_path) not in json.dumps(step)


def test_one_trait_of_a_protocol_can_be_replaced(tmp_path: Path) -> None:
    raw = smooth_cube(16, 16, 4)
    noiseless = {"snr_spatial": math.inf, "snr_spectral": math.inf}
    results = []
    for index, traits in enumerate(
        ({"protocol": "published"}, {"boundary": "zero", "srf_wavelengths": "invented"})
    ):
        folder = tmp_path / str(index)
        folder.mkdir()
        config = SynthConfig(**noiseless, **traits)  # type: ignore[arg-type]
        results.append(make(folder, raw, config)[1])
    for role in results[0]:  # where the ratio divides and nothing is noisy, only the traits differ
        np.testing.assert_array_equal(results[0][role], results[1][role])


def tree(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.mark.parametrize("protocol", ["physical", "published"])
def test_same_input_same_bytes(tmp_path: Path, protocol: str) -> None:
    raw = smooth_cube(24, 24, 5)
    config = SynthConfig(protocol=protocol, srf_wavelengths="invented")
    first, _ = make(tmp_path, raw, config, cube_format="h5")
    before = tree(first.folder)
    assert set(before) == {"scene.json", "gt.h5", "hr_msi.h5", "lr_hsi.h5", "srf.csv", "psf.csv"}
    first.verify()
    with pytest.raises(OutputExistsError):
        make(tmp_path, raw, config)
    again, _ = make(tmp_path, raw, config, cube_format="h5", overwrite=True)
    assert tree(again.folder) == before
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    other = SynthConfig(protocol=protocol, srf_wavelengths="invented", seed=43)
    changed, _ = make(tmp_path, raw, other, cube_format="h5", overwrite=True)
    assert tree(changed.folder)["lr_hsi.h5"] != before["lr_hsi.h5"]


@pytest.mark.parametrize("protocol", ["physical", "published"])
def test_strips_make_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    raw = smooth_cube(160, 12, 4).astype(np.int32)
    config = SynthConfig(
        protocol=protocol, kernel_size=3, downsample_ratio=2, srf_wavelengths="invented"
    )
    seen: list[tuple[int, int]] = []
    whole = make(tmp_path, raw, config)[1]
    monkeypatch.setattr(synthesis, "_STRIP_BYTES", 12 * 4 * 4 * 16)
    monkeypatch.setattr(synthesis, "BLOCK_BYTES", 12 * 4 * 4 * 7)
    cut = make(
        tmp_path, raw, config, overwrite=True,
        progress=lambda done, total: seen.append((done, total)),
    )[1]  # fmt: skip
    for role in whole:
        np.testing.assert_allclose(cut[role], whole[role], atol=1e-7)
    assert len(seen) > 60
    assert seen == sorted(seen)
    assert seen[-1] == (480, 480)


def test_holes(tmp_path: Path) -> None:
    raw = smooth_cube(32, 32, 4).astype(np.int16)
    raw[0:8, 0:8] = -99
    raw[20, 20] = -99
    raw[25, 5, 0] = -99  # in one band only
    config = SynthConfig(sigma=1.0, kernel_size=2, num_msi_bands=1, srf_wavelengths="invented")
    with pytest.warns(SpectraliftWarning, match="66 of 1024 pixels have holes; 4 of 64 LR pixels"):
        scene, cubes = make(tmp_path, raw, config, fields={"nodata": -99})
    holes = raw == -99
    assert np.array_equal(np.isnan(cubes["gt"]), holes)
    assert np.array_equal(np.isnan(cubes["hr_msi"])[:, :, 0], holes.any(axis=2))
    assert np.isnan(cubes["lr_hsi"]).all(axis=2).sum() == 4
    lo, hi = np.percentile(raw[~holes].astype(float), (1, 99))
    assert scene.scaling == (lo, hi)
    for role in ("gt", "hr_msi", "lr_hsi"):
        with scene.open(role) as reader:
            assert np.isnan(reader.meta.nodata)


def test_msi_values_with_little_of_their_response_on_holes_are_kept() -> None:
    values = np.random.default_rng(0).random((1, 3, 3)).astype(np.float32)
    values[0, 1, 2] = values[0, 2, 0] = np.nan
    weights = np.array([[0.7, 0.295, 0.005], [0.0, 0.0, 1.0]])
    msi = synthesis.spectral_response(values, weights)
    kept = (0.7 * values[0, 1, 0] + 0.295 * values[0, 1, 1]) / 0.995
    assert msi[0, 1, 0] == pytest.approx(kept, rel=1e-6)
    assert np.isnan(msi)[0].tolist() == [[False, False], [False, True], [True, False]]


def test_custom_psf_and_srf(tmp_path: Path) -> None:
    raw = smooth_cube(8, 8, 3)
    kernel = np.zeros((3, 3))
    kernel[1, 2] = 5.0
    srf = Srf(np.array([[1.0, 0, 0], [0, 0.5, 0.5]]), ("a", "b"))
    config = SynthConfig(
        protocol="published", downsample_ratio=1, snr_spatial=math.inf, snr_spectral=math.inf
    )
    scene, cubes = make(tmp_path, raw, config, psf=kernel, srf=srf)
    gt = cubes["gt"]
    np.testing.assert_allclose(cubes["hr_msi"][:, :, 1], gt[:, :, 1:].mean(axis=2), atol=1e-7)
    # a convolution moves the image the way the kernel points, zeros follow
    np.testing.assert_allclose(cubes["lr_hsi"][:, 1:], gt[:, :-1], atol=1e-7)
    np.testing.assert_allclose(cubes["lr_hsi"][:, 0], 0, atol=1e-7)
    recipe = scene.recipe
    assert (recipe["psf_type"], recipe["kernel_size"], recipe["num_msi_bands"]) == ("custom", 1, 2)
    assert not {"sigma", "fwhm_factor", "srf_wavelengths"} & set(recipe)
    assert {"psf_sha256", "srf_sha256"} <= set(recipe)
    with pytest.raises(DataError, match="over 3 bands, the cube has 5"):
        make(tmp_path, smooth_cube(8, 8, 5), config, srf=srf, overwrite=True)


def test_uncovered_bands(tmp_path: Path) -> None:
    fields = {"wavelengths_nm": np.linspace(430, 720, 30)}
    raw = smooth_cube(8, 8, 30)
    with pytest.raises(DataError, match="NIR"):
        make(tmp_path, raw, SynthConfig(downsample_ratio=2), fields=fields)
    assert not (tmp_path / "scene").exists()
    with pytest.warns(SpectraliftWarning, match="dropped"):
        scene, cubes = make(
            tmp_path, raw, SynthConfig(downsample_ratio=2, drop_uncovered_bands=True), fields=fields
        )
    assert cubes["hr_msi"].shape == (8, 8, 3)
    assert scene.recipe["num_msi_bands"] == 3
    with pytest.warns(SpectraliftWarning, match="no wavelengths"):
        scene, _ = make(tmp_path, raw, SynthConfig(downsample_ratio=2), overwrite=True)
    assert scene.recipe["srf_wavelengths"] == "invented"
    with pytest.raises(DataError, match="no wavelengths"):
        make(tmp_path, raw, SynthConfig(srf_wavelengths="true"), overwrite=True)


@pytest.mark.parametrize(
    ("values", "config", "words"),
    [
        (np.arange(300.0).reshape(10, 10, 3), SynthConfig(downsample_ratio=16), "side of 10"),
        (np.ones((8, 8, 3)), SynthConfig(), "cannot be scaled from 1..1"),
        (np.full((8, 8, 3), np.nan), SynthConfig(), "no valid value"),
        (
            np.where(np.arange(3) == 1, np.nan, np.arange(192.0).reshape(8, 8, 3)),
            SynthConfig(),
            "1 of 3 bands have no valid value, band 2 first",
        ),
    ],
    ids=["too small", "constant", "all holes", "dead band"],
)
def test_cubes_that_cannot_be_degraded(
    tmp_path: Path, values: np.ndarray, config: SynthConfig, words: str
) -> None:
    fields = {"wavelengths_nm": np.array([500.0, 650.0, 800.0])}
    wide = Srf(np.full((1, 3), 1 / 3), ("pan",))
    with pytest.raises(DataError) as caught:
        make(tmp_path, values, config, fields=fields, srf=wide)
    assert words in caught.value.message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cube.npy", "cube.npy.json"]


def test_output_that_is_not_a_scene(tmp_path: Path) -> None:
    raw = smooth_cube(8, 8, 4)
    (tmp_path / "scene").write_text("mine")
    with pytest.raises(DataError, match="is a file"):
        make(tmp_path, raw, SynthConfig(srf_wavelengths="invented"), overwrite=True)
    assert (tmp_path / "scene").read_text() == "mine"
    with pytest.raises(DataError, match="does not name a format"):
        make(tmp_path, raw, SynthConfig(srf_wavelengths="invented"), cube_format="jpg")


# --- scene folders -------------------------------------------------------------------------------


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """A scene of three small files."""
    with create_scene(tmp_path / "scene") as writer:
        for role in ("lr_hsi", "hr_msi", "srf"):
            (writer.folder / f"{role}.csv").write_text(role)
            writer.add(role, writer.folder / f"{role}.csv")
        return writer.commit({"ratio": 4})


def test_scene_round_trip(scene: Scene) -> None:
    again = open_scene(scene.folder / "scene.json")
    assert (again.roles, again.recipe, again.files) == (scene.roles, scene.recipe, scene.files)
    assert again.ratio == 4
    assert again.scaling is None
    assert not again.data_scaled
    assert not again.has("gt")
    with pytest.raises(DataError, match="has no gt"):
        again.path("gt")
    found = scene.files["srf.csv"]
    assert found == {"size": 3, "sha256": hashlib.sha256(b"srf").hexdigest()}
    again.verify()
    (scene.folder / "srf.csv").write_text("frs")
    with pytest.raises(DataError, match=r"not those the scene was made of: srf.csv"):
        again.verify()
    (scene.folder / "srf.csv").unlink()
    with pytest.raises(DataError, match=r"srf.csv is missing"):
        open_scene(scene.folder)


def change(*keys: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def edit(document: dict[str, Any]) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = to

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (change("roles", "srf", to="../outside.csv"), "plain name"),
        (change("roles", "srf", to="/etc/passwd"), "plain name"),
        (change("roles", "srf", to=".."), "plain name"),
        (change("roles", "srf", to=""), "plain name"),
        (change("roles", "srf", to="a\0b"), "plain name"),
        (change("roles", "srf", to="..\\outside.csv"), "plain name"),
        (change("roles", "srf", to=["srf.csv"]), "plain name"),
        (change("roles", "srf", to="x" * 5000), "cannot be opened"),
        (change("roles", "srf", to="escape.csv"), "leads out of the scene"),
        (change("roles", "srf", to="loop.csv"), ""),
        (change("files", "escape.csv", to={}), "leads out of the scene"),
        (change("roles", to=[]), "'roles' is not a JSON object"),
        (change("roles", to={"srf": "srf.csv"}), "no file for lr_hsi, hr_msi"),
        (change("recipe", to=None), "'recipe' is not"),
        (change("recipe", "ratio", to="4"), "its ratio is 4"),
        (change("recipe", "ratio", to=True), "its ratio is True"),
        (change("recipe", "ratio", to=0), "its ratio is 0"),
        (change("recipe", "ratio", to=10**400), "its ratio is 1000"),
        (change("recipe", "ratio", to=math.nan), "not JSON"),
        (change("recipe", "scaling", to={"lo": 1, "hi": 1}), "its scaling"),
        (change("recipe", "scaling", to=[0, 1]), "its scaling"),
        (change("schema", to="spectralift.scene/2"), "this version reads"),
        (change("recipe", "blob", to="x" * 2**23), "larger than"),
    ],
)
def test_hostile_scenes(
    tmp_path: Path, scene: Scene, edit: Callable[[dict[str, Any]], None], words: str
) -> None:
    (tmp_path / "outside.csv").write_text("secret")
    (scene.folder / "escape.csv").symlink_to(tmp_path / "outside.csv")
    (scene.folder / "loop.csv").symlink_to("loop.csv")
    source = scene.folder / "scene.json"
    document = json.loads(source.read_text())
    edit(document)
    source.write_text(json.dumps(document))
    with pytest.raises(DataError) as caught:
        open_scene(scene.folder)
    assert words in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"schema": 1}', "\udcff"])
def test_scene_json_that_is_none(scene: Scene, text: str) -> None:
    (scene.folder / "scene.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError):
        open_scene(scene.folder)


def test_folders_that_are_no_scenes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such scene"):
        open_scene(tmp_path / "missing")
    with pytest.raises(DataError, match="is not a scene"):
        open_scene(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is not a folder"):
        open_scene(tmp_path / "file")


def test_real_scene_with_nodata(tmp_path: Path, scenes: Path) -> None:
    with pytest.warns(SpectraliftWarning, match="micrometres"):
        reader = open_cube(scenes / "dlr_hysu.hdr")
    with reader, pytest.warns(SpectraliftWarning, match="does not divide"):
        scene = synthesis.synthesize(reader, tmp_path / "s", SynthConfig(), cube_format="hdr")
        transform = reader.meta.transform or ()
    with scene.open("lr_hsi") as lr, scene.open("gt") as gt:
        assert lr.meta.shape == (21, 30, 135)
        assert np.nanmax(gt.read_units()) == 1
        assert (lr.meta.transform or ())[::4] == pytest.approx([t * 4 for t in transform[::4]])
    scene.verify()
    assert {"gt.hdr", "lr_hsi.hdr", "hr_msi.hdr"} < set(os.listdir(scene.folder))
