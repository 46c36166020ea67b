"""From a sharp cube and a recipe to a scene: ground truth, LR-HSI, HR-MSI, SRF and PSF.

The ground truth is the cube clipped at its 1st and 99th percentile and scaled to [0, 1]; the HR-MSI
is ground truth @ SRF.T plus noise; the LR-HSI is the ground truth blurred, averaged over LR pixels,
plus noise. The protocols `physical` and `published` differ in borders, in sizes that the ratio does
not divide, in wavelengths and in how noise is drawn; see `SynthConfig` and `operators`.

The cube is read three times by rows: twice for exact percentiles, once to degrade it. In memory are
a strip of it, the HR-MSI and the LR-HSI.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectralift_cli.core.config import SynthConfig
from spectralift_cli.core.cube import CubeMeta, FloatArray, Progress, no_progress
from spectralift_cli.core.cubeio import BLOCK_BYTES, CubeReader, SelectedReader, row_blocks
from spectralift_cli.core.errors import DataError, SpectraliftWarning
from spectralift_cli.core.formats import create_cube, find_format, writable_suffixes
from spectralift_cli.core.formats.kernels import write_psf
from spectralift_cli.core.identity import identity, provenance
from spectralift_cli.core.operators.blur import Blur
from spectralift_cli.core.operators.degradation import Degradation
from spectralift_cli.core.operators.downsample import AreaMean
from spectralift_cli.core.operators.noise import physical_noise, published_noise
from spectralift_cli.core.operators.psf import check_psf, make_psf
from spectralift_cli.core.operators.scaling import Scaling
from spectralift_cli.core.optionfields import to_json
from spectralift_cli.core.resources import available_memory_bytes
from spectralift_cli.core.scene import Scene, SceneWriter, create_scene
from spectralift_cli.core.sensors.srf import (
    Srf,
    check_coverage,
    documented_srf,
    invented_wavelengths,
    write_srf,
)

_STRIP_BYTES = 128 * 2**20
# an MSI value more of whose response than this falls on holes is a hole: enough for the far tails
# of a Gaussian response, too little to bias the value
_MAX_SPECTRAL_HOLE_SHARE = 0.01

_FloatBlock = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class SynthPlan:
    """What a synthesis will make, decided without reading a value.

    Args:
        config: the options.
        window: (row, col, height, width) of the cube that is used.
        gt: metadata of the ground truth (H, W, B).
        hr_msi: metadata of the HR-MSI (H, W, M).
        lr_hsi: metadata of the LR-HSI (h, w, B).
        psf: (k, k) kernel, sum 1.
        srf: the spectral response.
        options: the resolved options that determine values, JSON-ready.
        suffix: file name ending of the cubes.
    """

    config: SynthConfig
    window: tuple[int, int, int, int]
    gt: CubeMeta
    hr_msi: CubeMeta
    lr_hsi: CubeMeta
    psf: FloatArray
    srf: Srf
    options: dict[str, Any]
    suffix: str

    @property
    def degradation(self) -> Degradation:
        """Blur and downsampling."""
        fractional = self.config.protocol == "published"
        return Degradation(
            Blur(self.psf, self.config.resolved_boundary),
            AreaMean(self.config.downsample_ratio, fractional),
        )

    @property
    def strip_rows(self) -> int:
        """HR rows that are degraded together; a matter of the shape alone, as the bytes are."""
        return max(1, _STRIP_BYTES // self.gt.row_bytes)

    @property
    def memory_bytes(self) -> int:
        """The memory it takes, roughly."""
        halo = 2 * self.degradation.blur.halo[0]
        strip = min(self.gt.rows, max(self.strip_rows, 2 * halo) + halo) * self.gt.row_bytes
        return 2 * strip + 4 * BLOCK_BYTES + 2 * (self.hr_msi.nbytes + self.lr_hsi.nbytes)

    def file_name(self, role: str) -> str:
        """Return the file name of a cube's role."""
        return role + self.suffix


def plan_synthesis(
    meta: CubeMeta,
    config: SynthConfig,
    *,
    psf: FloatArray | None = None,
    srf: Srf | None = None,
    cube_format: str = "h5",
) -> SynthPlan:
    """Decide what a synthesis makes of a cube, without its values.

    Args:
        meta: of the cube.
        config: the options.
        psf: (k, k) kernel that replaces the one of the options.
        srf: response over the cube's bands that replaces the documented sensor of the options.
        cube_format: file name ending of the cubes.

    Raises:
        DataError: the options, PSF or SRF do not fit the cube.
    """
    suffix = "." + cube_format.lower().lstrip(".")
    row = find_format(Path("cube" + suffix))
    if row is None or suffix not in row.suffixes:
        raise DataError(
            f"{cube_format!r} does not name a format that can be written",
            f"use one of {writable_suffixes()}",
        )
    window = _usable_window(meta, config)
    gt = meta.window(*window).replace(
        dtype=np.dtype(np.float32), nodata=float("nan"), scale=1.0, offset=0.0, provenance=None
    )
    if psf is None:
        kernel = make_psf(config.psf_type, config.sigma, config.kernel_size, config.protocol)
    else:
        kernel = check_psf(psf, "the PSF")
    response, wavelengths = (srf, None) if srf is not None else _documented_response(meta, config)
    if response.num_hsi_bands != meta.bands:
        raise DataError(
            f"the spectral response is over {response.num_hsi_bands} bands, the cube has {meta.bands}",
            "give a response made for this cube; spectralift srf build makes one",
        )
    # invented wavelengths span the sensor, and mean nothing; but a few bands may miss a response
    if wavelengths != "invented" or not response.weights.any(axis=1).all():
        response = check_coverage(response, drop=config.drop_uncovered_bands)
    return SynthPlan(
        config=config,
        window=window,
        gt=gt,
        hr_msi=_msi_meta(gt, response),
        lr_hsi=_lr_meta(gt, config.downsample_ratio),
        psf=kernel,
        srf=response,
        options=_options(config, kernel, response, psf is not None, wavelengths),
        suffix=suffix,
    )


def synthesize(
    source: CubeReader,
    output: str | Path,
    config: SynthConfig,
    *,
    psf: FloatArray | None = None,
    srf: Srf | None = None,
    cube_format: str = "h5",
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> Scene:
    """Degrade a cube into a scene.

    Holes of the cube (nodata, NaN) take no part in any statistic and are NaN in the ground truth. An
    LR-HSI value is a hole where more than a quarter of the weight of its blur and footprint falls
    into holes, and else estimated from the rest; an MSI value is a hole where more than a hundredth
    of its response does.

    Args:
        source: the sharp cube.
        output: the scene's folder.
        config: the options; see `SynthConfig`.
        psf: (k, k) kernel in place of the one of the options.
        srf: response over the cube's bands in place of a documented sensor.
        cube_format: file name ending of the cubes.
        overwrite: replace an existing scene.
        progress: called with (rows done, rows in all) over three passes.

    Returns:
        The scene, on disk.

    Raises:
        DataError: the cube cannot be degraded this way (too small, without contrast, a band without
            a valid value), or the scene cannot be written.
        OutputExistsError: the scene exists and `overwrite` is false.
    """
    plan = plan_synthesis(source.meta, config, psf=psf, srf=srf, cube_format=cube_format)
    free = available_memory_bytes()
    if plan.memory_bytes > free:
        raise DataError(
            f"the synthesis takes {plan.memory_bytes / 1e6:,.0f} MB of memory, "
            f"{free / 1e6:,.0f} MB are free",
            "degrade a window of the cube: spectralift convert --window",
        )
    history = provenance(
        "synth",
        {**plan.options, **source.choices},
        {"cube": identity(*source.files)},
        earlier=source.meta.provenance,
    )
    with create_scene(output, overwrite=overwrite) as scene:
        # not closed: the caller owns the source
        cube = SelectedReader(source, window=plan.window)
        work = _Work(cube, plan, progress)
        scaling = work.scaling()
        msi, lr = work.degrade(scaling, scene, history)
        _add_cube(scene, "hr_msi", plan, plan.hr_msi, msi, history)
        _add_cube(scene, "lr_hsi", plan, plan.lr_hsi, lr, history)
        write_srf(scene.folder / "srf.csv", plan.srf, plan.gt.wavelengths_nm)
        scene.add("srf", scene.folder / "srf.csv")
        scene.add("psf", write_psf(scene.folder / "psf.csv", plan.psf))
        recipe = {
            **plan.options,
            "ratio": config.downsample_ratio,
            "scaling": {"lo": scaling.lo, "hi": scaling.hi},
            "data_scaled": True,
            "psf_includes_footprint": False,
        }
        return scene.commit(recipe, history)


class _Work:
    """The passes over the cube."""

    def __init__(self, cube: CubeReader, plan: SynthPlan, progress: Progress) -> None:
        self._cube = cube
        self._plan = plan
        self._progress = progress
        self._done = 0
        self._block_rows = max(1, BLOCK_BYTES // plan.gt.row_bytes)

    def _read(self, rows: slice) -> _FloatBlock:
        block = self._cube.read_units(rows)
        self._done += rows.stop - rows.start
        self._progress(self._done, 3 * self._plan.gt.rows)
        return block

    def scaling(self) -> Scaling:
        """Return the scaling by the cube's percentiles, after looking for bands without values."""
        seen = np.zeros(self._plan.gt.bands, np.bool_)

        def blocks() -> Iterator[_FloatBlock]:
            for rows in row_blocks(self._plan.gt.rows, self._block_rows):
                block = self._read(rows)
                np.logical_or(seen, np.isfinite(block).any(axis=(0, 1)), out=seen)
                yield block

        scaling = Scaling.from_values(blocks)
        empty = np.flatnonzero(~seen) + 1
        if empty.size:
            raise DataError(
                f"{empty.size} of {seen.size} bands have no valid value, band {empty[0]} first",
                "leave them out: spectralift convert --bands or --drop-bad-bands",
            )
        return scaling

    def degrade(
        self, scaling: Scaling, scene: SceneWriter, history: dict[str, Any]
    ) -> tuple[_FloatBlock, _FloatBlock]:
        """Write the ground truth; return the HR-MSI (H, W, M) and the LR-HSI (h, w, B), noisy."""
        plan = self._plan
        msi = np.empty(plan.hr_msi.shape, np.float32)
        lr = np.empty(plan.lr_hsi.shape, np.float32)
        operator = plan.degradation
        path = scene.folder / plan.file_name("gt")
        window, base, read, holes = np.empty((0, *plan.gt.shape[1:]), np.float32), 0, 0, 0
        with create_cube(path, plan.gt.replace(provenance=history)) as writer:
            for lr_rows, hr_rows in operator.strips(plan.gt.rows, plan.strip_rows):
                overlap = window[hr_rows.start - base :]
                window = np.empty((hr_rows.stop - hr_rows.start, *plan.gt.shape[1:]), np.float32)
                window[: len(overlap)] = overlap
                base = hr_rows.start
                for part in row_blocks(hr_rows.stop - read, self._block_rows):
                    rows = slice(read + part.start, read + part.stop)
                    block = np.clip(scaling.apply(self._read(rows)), 0, 1)
                    holes += int(np.isnan(block).any(axis=2).sum())
                    writer.write(rows, block)
                    msi[rows] = spectral_response(block, plan.srf.weights)
                    window[rows.start - base : rows.stop - base] = block
                read = hr_rows.stop
                lr[lr_rows] = operator.strip(window, lr_rows, hr_rows, plan.gt.rows)
            scene.add("gt", *writer.commit())
        if holes:
            _warn(
                f"{holes} of {plan.gt.rows * plan.gt.cols} pixels have holes; "
                f"{int(np.isnan(lr).any(axis=2).sum())} of {lr.shape[0] * lr.shape[1]} LR pixels "
                "have too little else and are holes as well"
            )
        config = plan.config
        if config.protocol == "published":
            generator = np.random.RandomState(config.seed)  # whose draws are the protocol
            msi = published_noise(msi, config.snr_spectral, generator)
            return msi, published_noise(lr, config.snr_spatial, generator)
        msi = physical_noise(msi, config.snr_spectral, config.seed, role=0)
        return msi, physical_noise(lr, config.snr_spatial, config.seed, role=1)


def spectral_response(values: _FloatBlock, weights: FloatArray) -> _FloatBlock:
    """Return what a multispectral sensor sees: values @ weights.T.

    A hole in a band counts as missing: up to a hundredth of a response may be, beyond it the value
    is NaN.

    Args:
        values: (H, W, B) float32, NaN in holes.
        weights: (M, B), each row summing to 1.

    Returns:
        (H, W, M) float32, computed in float64.
    """
    pixels = values.reshape(-1, values.shape[2]).astype(np.float64)  # (N, B)
    holes = np.isnan(pixels)
    if not holes.any():
        return (pixels @ weights.T).astype(np.float32).reshape(*values.shape[:2], -1)
    missing = holes.astype(np.float64)
    magnitude = np.abs(weights)
    share = missing @ (magnitude / magnitude.sum(axis=1, keepdims=True)).T  # (N, M)
    left = 1 - missing @ weights.T
    pixels[holes] = 0.0
    kept = share <= _MAX_SPECTRAL_HOLE_SHARE
    seen = np.full(share.shape, np.nan)
    np.divide(pixels @ weights.T, left, out=seen, where=kept)
    return seen.astype(np.float32).reshape(*values.shape[:2], -1)


def _usable_window(meta: CubeMeta, config: SynthConfig) -> tuple[int, int, int, int]:
    ratio = config.downsample_ratio
    h, w = (AreaMean(ratio).lr_size(n) for n in meta.shape[:2])
    if (h * ratio, w * ratio) == meta.shape[:2]:
        return (0, 0, meta.rows, meta.cols)
    trouble = f"the ratio {ratio} does not divide {meta.rows} x {meta.cols} pixels"
    if config.protocol == "published":
        _warn(f"{trouble}: {h} x {w} LR pixels share them, HR pixels being cut (fractional area)")
        return (0, 0, meta.rows, meta.cols)
    _warn(f"{trouble}: cropped to {h * ratio} x {w * ratio} from the upper left")
    return (0, 0, h * ratio, w * ratio)


def _documented_response(meta: CubeMeta, config: SynthConfig) -> tuple[Srf, str]:
    """Return the documented sensor's response, and which wavelengths it was laid over."""
    count, kind = config.num_msi_bands, config.resolved_srf_wavelengths
    if kind == "true" and meta.wavelengths_nm is None:
        if config.srf_wavelengths == "true":
            raise DataError(
                "the cube has no wavelengths to lay the spectral response over",
                "give them with --wavelengths, or choose --srf-wavelengths invented",
            )
        _warn(
            "the cube has no wavelengths: those of the spectral response are invented, evenly "
            "spaced over the sensor's range"
        )
        kind = "invented"
    if kind == "true" and meta.wavelengths_nm is not None:
        return documented_srf(count, meta.wavelengths_nm, config.fwhm_factor), kind
    return documented_srf(count, invented_wavelengths(count, meta.bands), config.fwhm_factor), kind


def _msi_meta(gt: CubeMeta, srf: Srf) -> CubeMeta:
    centres = None
    if gt.wavelengths_nm is not None:
        centres = srf.weights @ gt.wavelengths_nm
        if not ((centres > 0) & np.isfinite(centres)).all():  # a response with negative weights
            centres = None
    return gt.replace(
        shape=(gt.rows, gt.cols, srf.num_msi_bands),
        wavelengths_nm=centres,
        fwhm_nm=None,
        bad_bands=None,
        band_names=srf.band_names,
    )


def _lr_meta(gt: CubeMeta, ratio: int) -> CubeMeta:
    h, w = gt.rows // ratio, gt.cols // ratio
    transform = gt.transform
    if transform is not None:
        a, b, c, d, e, f = transform
        across, down = gt.cols / w, gt.rows / h  # the ratio, unless LR pixels cut HR pixels
        transform = (a * across, b * down, c, d * across, e * down, f)
    return gt.replace(shape=(h, w, gt.bands), transform=transform)


def _options(
    config: SynthConfig,
    kernel: FloatArray,
    srf: Srf,
    custom_psf: bool,
    wavelengths: str | None,
) -> dict[str, Any]:
    """Return the options that determine values, without those that something else replaced."""
    options = to_json(config)
    options["boundary"] = config.resolved_boundary
    options["num_msi_bands"] = srf.num_msi_bands
    options["srf_source"] = srf.source
    if custom_psf:
        del options["sigma"]
        options["psf_type"] = "custom"
        options["kernel_size"] = kernel.shape[0] // 2
        options["psf_sha256"] = _digest(kernel)
    if wavelengths is None:
        for name in ("fwhm_factor", "srf_wavelengths"):
            del options[name]
        options["srf_sha256"] = _digest(srf.weights)
    else:
        options["srf_wavelengths"] = wavelengths
    return options


def _digest(array: FloatArray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array, dtype="<f8").tobytes()).hexdigest()


def _add_cube(
    scene: SceneWriter,
    role: str,
    plan: SynthPlan,
    meta: CubeMeta,
    values: _FloatBlock,
    history: dict[str, Any],
) -> None:
    meta = meta.replace(provenance=history)
    with create_cube(scene.folder / plan.file_name(role), meta) as writer:
        writer.write(slice(None), values)
        scene.add(role, *writer.commit())


def _warn(message: str) -> None:
    warnings.warn(message, SpectraliftWarning, stacklevel=3)
