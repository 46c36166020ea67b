"""Refine a sharp cube: learn from the images, judge on held-out pixels, correct by rows."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectralift_cli.core.config import RefineConfig, to_json
from spectralift_cli.core.cube import (
    BoolArray,
    CubeMeta,
    CubeReader,
    FloatArray,
    Progress,
    no_progress,
)
from spectralift_cli.core.devices import one_thread_each
from spectralift_cli.core.errors import SpectraliftWarning
from spectralift_cli.core.formats import create_cube
from spectralift_cli.core.identity import provenance
from spectralift_cli.core.placement import Placement
from spectralift_cli.core.radiometry import Radiometry
from spectralift_cli.core.refinement.gate import UNGATED, Verdict, judge
from spectralift_cli.core.refinement.images import (
    HeldCube,
    Sharp,
    bands_with_values,
    check_images,
    look,
    moments,
    usable_response,
)
from spectralift_cli.core.refinement.match import (
    BAD_MATCH,
    Match,
    Pair,
    best_match,
    through_response,
)
from spectralift_cli.core.refinement.optics import Optics
from spectralift_cli.core.refinement.posterior import Gram, Prior
from spectralift_cli.core.refinement.signal import MOST_COMPONENTS, SignalSpace, multiply
from spectralift_cli.core.refinement.stored import Storing
from spectralift_cli.core.resources import default_memory_bytes
from spectralift_cli.core.sensors.response import Srf

Floats32 = NDArray[np.float32]

_MATCH_PIXELS = 2**22  # HR pixels that the PSF is compared on
_MOST_BYTES = 2_000_000_000  # that are held where the user does not say
_PASSES = 4
_GAIN_OFF = 0.02
# standard deviations beyond which a pixel's MSI says that the prior does not hold there (rare
# bright surfaces that no LR pixel showed): its correction grows no further
_FARTHEST = 3.0


@dataclass(frozen=True, eq=False)
class Optical:
    """What is known of the blur between the images.

    Args:
        psf: (k, k) on the HR grid; None to find one.
        includes_footprint: whether it holds the LR pixel's footprint already.
    """

    psf: FloatArray | None = None
    includes_footprint: bool = False


@dataclass(frozen=True, eq=False)
class RefinePlan:
    """What a refinement will do, known before it does.

    Args:
        meta: of the output.
        placement: of the LR grid on the HR grid.
        psf_shape: of the PSF, or None where it is found from the images.
        memory_bytes: about the most it holds.
        held: whether the images are kept in memory between passes.
    """

    meta: CubeMeta
    placement: Placement
    psf_shape: tuple[int, int] | None
    memory_bytes: int
    held: bool


def _limit_bytes(asked: int | None) -> int:
    """Return what may be held: as asked, else half of what is free, 2 GB at most.

    Images are passed over four times, which takes as long from the system's cache as from memory.
    """
    return min(default_memory_bytes(), _MOST_BYTES) if asked is None else asked


def plan_refinement(
    estimate: CubeReader, lr_hsi: CubeReader, hr_msi: CubeReader, srf: Srf, placement: Placement,
    *, optical: Optical = Optical(), memory_bytes: int | None = None,
) -> RefinePlan:  # fmt: skip
    """Return what `refine` would do.

    Raises:
        DataError: images that do not fit each other; see `check_images`.
    """
    check_images(estimate, lr_hsi, hr_msi, srf, placement)
    limit = _limit_bytes(memory_bytes)
    images = [
        HeldCube(estimate, limit // 4), HeldCube(lr_hsi, limit // 8), HeldCube(hr_msi, limit // 8)
    ]  # fmt: skip
    (height, width), (h, w) = placement.hr_shape, placement.lr_shape
    kernel = 4 * max(placement.scale) if optical.psf is None else len(optical.psf)
    reach = [2 * (kernel / scale + 1) + 1 for scale in placement.scale]
    block = images[0].block_rows * width * estimate.meta.bands * 4
    needed = (
        sum(image.held_bytes for image in images)
        + 4 * block
        + height * width * 16  # weights, brightness, contrast and masks
        + h * w * MOST_COMPONENTS * 4 * 10  # conjugate gradients
        + int(h * w * min(h * w, reach[0] * reach[1]) * 8 * 3)  # the Gram matrix and its parts
    )
    shape = None if optical.psf is None else (len(optical.psf), len(optical.psf))
    return RefinePlan(estimate.meta, placement, shape, needed, bool(images[0].held_bytes))


@dataclass(frozen=True)
class Reprojection:
    """How far the cube is from both images, per noise: medians over bands of RMSE over noise.

    Args:
        lr: of the LR-HSI, within its signal's subspace.
        msi: of the HR-MSI.
    """

    lr: float
    msi: float


@dataclass(frozen=True, eq=False)
class RefineResult:
    """What a refinement did.

    Args:
        files: what was written, the main one first.
        verdict: of the held-out pixels.
        match: of the PSF with the images.
        components: of the LR-HSI's signal.
        lr_pixels: that were compared.
        before: reprojection of the estimate.
        after: reprojection of the result, before rounding and clipping.
        steps: of the conjugate gradients.
        pixels: of the image.
        holes: of these, left as they are.
        clipped: values brought into the clip range.
        saturated: values brought into the range of the stored type.
        moved: valid values that rounded onto nodata and moved by one count.
    """

    files: tuple[Path, ...]
    verdict: Verdict
    match: Match
    components: int
    lr_pixels: int
    before: Reprojection
    after: Reprojection
    steps: int
    pixels: int
    holes: int
    clipped: int
    saturated: int
    moved: int

    def to_json(self) -> dict[str, Any]:
        """Return what was decided and measured as a JSON object."""
        match_ = {
            "steps": self.match.steps, "before": self.match.before, "after": self.match.after,
            "gain": self.match.gain.tolist(), "lr_pixels": self.match.pixels,
        }  # fmt: skip
        counts = ("pixels", "holes", "clipped", "saturated", "moved")
        return {
            "verdict": dataclasses.asdict(self.verdict),
            "psf_match": match_,
            "components": self.components,
            "lr_pixels": self.lr_pixels,
            "reprojection": {
                "before": dataclasses.asdict(self.before), "after": dataclasses.asdict(self.after)
            },
            "solver_steps": self.steps,
            "counts": {name: getattr(self, name) for name in counts},
        }  # fmt: skip


def refine(
    estimate: CubeReader,
    lr_hsi: CubeReader,
    hr_msi: CubeReader,
    srf: Srf,
    placement: Placement,
    output: Path,
    config: RefineConfig,
    *,
    optical: Optical = Optical(),
    radiometry: Radiometry | None = None,
    memory_bytes: int | None = None,
    overwrite: bool = False,
    options: Mapping[str, str] | None = None,
    inputs: Mapping[str, Any] | None = None,
    progress: Progress = no_progress,
) -> RefineResult:
    """Write a cube that agrees with both images, with the type, bands and places of the estimate.

    Args:
        estimate: the sharp cube, on the HR-MSI's grid, in the LR-HSI's units.
        lr_hsi: the blurry hyperspectral image.
        hr_msi: the sharp multispectral image, in the same units.
        srf: the response between them.
        placement: of the LR grid on the HR grid.
        output: where; the ending chooses the format.
        config: how.
        optical: the blur, as far as it is known.
        radiometry: what brings the HR-MSI into the LR-HSI's, where they differ.
        memory_bytes: the most to take; None for half of what is free, 2 GB at most. Changes no
            byte.
        overwrite: replace an existing output.
        options: creation options of the format.
        inputs: identities of the inputs, for the provenance.
        progress: called as progress(rows done, rows of all passes).

    Raises:
        DataError: images that do not fit each other or hold no values; see `check_images`.
        OutputExistsError: the output exists and `overwrite` is false.
    """
    check_images(estimate, lr_hsi, hr_msi, srf, placement)
    limit = _limit_bytes(memory_bytes)
    rows = estimate.meta.rows
    done = _Count(progress, _PASSES * rows)
    meta = estimate.meta.replace(
        provenance=provenance(
            "refine", {**to_json(config), **estimate.choices}, inputs or {},
            earlier=estimate.meta.provenance,
        )
    )  # fmt: skip
    with (
        one_thread_each(),
        create_cube(output, meta, options=options, overwrite=overwrite) as writer,
    ):
        cube = HeldCube(estimate, limit // 4)
        msi = HeldCube(hr_msi, limit // 8, radiometry)
        work = _Refinement(cube, HeldCube(lr_hsi, limit // 8), msi, srf, placement, optical, config)
        done.add(rows)
        work.look_at_lr(done)
        work.decide(done)
        found = Storing(meta, _clip_range(config, estimate, work.sharp))
        for part, _ in cube.blocks():
            stored = estimate.read(part)
            if work.factor:
                units, changed = work.corrected(part)
                stored = found(stored, units, changed)
            writer.write(part, stored)
            done.add(part.stop - part.start)
        files = writer.commit()
    work.warn()
    return RefineResult(
        files, work.verdict, work.match, work.space.components, int(work.use.sum()),
        work.reprojection(before=True), work.reprojection(before=False), work.steps,
        meta.rows * meta.cols, int((~work.sharp.valid).sum()),
        found.clipped, found.saturated, found.moved,
    )  # fmt: skip


class _Count:
    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def add(self, rows: int) -> None:
        self._done += rows
        self._progress(self._done, self._total)


class _Refinement:
    """The steps of a refinement, in the order in which they are called."""

    def __init__(
        self, cube: HeldCube, lr: HeldCube, msi: HeldCube, srf: Srf, placement: Placement,
        optical: Optical, config: RefineConfig,
    ) -> None:  # fmt: skip
        self.config = config
        self._cube, self._lr, self._msi = cube, lr, msi
        self.sharp: Sharp = look(cube, msi, bands_with_values(lr))
        used = self.sharp.used
        self._lr_valid, total, squares = moments(lr, used)
        self.space = SignalSpace.of(total, squares, int(self._lr_valid.sum()), config.components)
        self._bands, self._srf = usable_response(srf, used)
        self._names = [n for n, keep in zip(srf.band_names, self._bands, strict=True) if keep]
        h, w = self._lr_valid.shape
        self._seen = np.zeros((h, w, self.space.components), np.float32)
        lr_msi = np.zeros((h, w, len(self._srf)), np.float32)
        for part, block in lr.blocks():
            spectra = np.where(self._lr_valid[part][:, :, None], block[:, :, used], 0)
            self._seen[part] = self.space.coefficients(spectra)
            lr_msi[part] = through_response(spectra, self._srf)
        self._seen[~self._lr_valid] = 0
        self.match = self._matched(lr_msi, placement, optical)
        self.optics = Optics(self.match.psf, placement, optical.includes_footprint)
        share = self.optics.share(None if self.sharp.valid.all() else self.sharp.valid)
        self.use: BoolArray = self._lr_valid & Optics.whole(share)
        self._scale = np.where(self.use, 1 / np.where(self.use, share, 1), 0).astype(np.float32)
        self.steps = 0
        self.factor = 0.0

    def _matched(self, lr_msi: Floats32, placement: Placement, optical: Optical) -> Match:
        """Compare the images through the PSF, over as many rows as are enough."""
        height, width = placement.hr_shape
        count = min(height, max(_MATCH_PIXELS // width, 1))
        first = (height - count) // 2
        rows = slice(first, first + count)
        window = placement.window_hr(rows, slice(0, width))
        sharp = self._msi.read(rows)[:, :, self._bands]
        noise = np.sqrt(np.square(self._srf) @ np.square(self.space.noise_std))
        images = Pair(
            lr_msi, self._lr_valid, sharp, noise, self.sharp.msi_noise_std[self._bands], window,
            optical.includes_footprint,
        )  # fmt: skip
        return best_match(images, optical.psf, correct=not self.config.trust_psf)

    def look_at_lr(self, done: _Count) -> None:
        """Find what the LR-HSI says of the estimate, and from it the prior."""
        seeing = self.optics.seeing(self.space.components)
        for part, block in self._cube.blocks():
            coefficients = self.space.coefficients(block[:, :, self.sharp.used])
            coefficients[~self.sharp.valid[part]] = 0
            seeing.add(part, coefficients)
            done.add(part.stop - part.start)
        self._residual = (self._seen - seeing.image * self._scale[:, :, None])[self.use]
        noise = self.sharp.msi_noise_std[self._bands]
        # a gain between the images that nobody corrected is an error of the MSI
        off = (self.match.gain - 1) * self.sharp.msi_rms[self._bands]
        self._msi_noise = np.hypot(noise, off)
        self.prior = Prior.of(
            self._residual.astype(np.float64), self.config.strength,
            self.space.response(self._srf), self._msi_noise,
            self.match.covariance(self._seen, self._lr_valid),
        )  # fmt: skip

    def _msi_residual(self, part: slice, block: Floats32) -> tuple[Floats32, BoolArray]:
        """Return (n, W, M) what the MSI says of the estimate, 0 where it is silent, and (n, W) where."""
        sharp = self._msi.read(part)[:, :, self._bands]
        there = self.sharp.valid[part] & np.isfinite(sharp).all(axis=2)
        spectra = np.where(there[:, :, None], block[:, :, self.sharp.used], 0)
        residual = np.where(
            there[:, :, None], sharp - through_response(spectra, self._srf), 0
        ).astype(np.float32)
        return residual, there

    def _first_step(self, part: slice, residual: Floats32) -> Floats32:
        """Return (n, W, J) the MSI's step of the posterior in its own coordinates."""
        whiten, values, _ = self._msi_step
        weight = self.sharp.weights[part][:, :, None]
        spread = 1 + weight * values.astype(np.float32)  # of what the prior expects to see
        seen = multiply(residual, whiten.astype(np.float32))
        distance = np.sqrt(np.square(seen / np.sqrt(spread)).mean(axis=2, keepdims=True))
        believed = np.minimum(1, _FARTHEST / np.maximum(distance, _FARTHEST))
        first: Floats32 = seen * (weight / spread * believed)
        return first

    def decide(self, done: _Count) -> None:
        """Solve on the LR grid, and ask held-out pixels what the solution is worth."""
        # the prior's strength is what LR pixels need; it is not taken on trust for single pixels
        self._msi_step = self.prior.msi_step(1 / max(self.config.strength, 1e-30))
        seeing = self.optics.seeing(len(self._srf))
        squares, count = np.zeros(len(self._srf)), 0
        for part, block in self._cube.blocks():
            residual, there = self._msi_residual(part, block)
            good = residual[there].astype(np.float64)
            squares += np.square(good).sum(axis=0)
            count += len(good)
            seeing.add(part, self._first_step(part, residual))
            done.add(part.stop - part.start)
        self._msi_before = np.sqrt(squares / max(count, 1))
        self._msi_after, self._msi_count = np.zeros(len(self._srf)), count
        if not self.use.any():
            self.verdict = Verdict("drop", 0.0, 0.0, 0.0, 0, 0)
            self._lr_after = self._residual
            return
        variances, into, self._out = self.prior.left()
        back = self._msi_step[2].astype(np.float32)
        first = multiply((seeing.image * self._scale[:, :, None])[self.use], back)
        gram = Gram(self.optics, self.sharp.weights, self.use, self._scale)
        inward = into.astype(np.float32)
        residual, explained = multiply(self._residual, inward), multiply(first, inward)
        self.verdict = (
            UNGATED if self.config.ungated else judge(gram, variances, residual, explained)
        )
        self.factor = self.verdict.factor
        v, self.steps = gram.solve(variances, residual - explained)
        v *= variances.astype(np.float32)
        self._lr_after = multiply(
            residual - self.factor * (explained + gram.matrix @ v), self._out.astype(np.float32)
        )
        self._v = np.zeros(self._seen.shape, np.float32)
        self._v[self.use] = v * self._scale[self.use][:, None]

    def corrected(self, part: slice) -> tuple[Floats32, BoolArray]:
        """Return the corrected units (n, W, B) of some rows, and which values they change."""
        block = self._cube.read(part)
        residual, there = self._msi_residual(part, block)
        change = multiply(self._first_step(part, residual), self._msi_step[2].astype(np.float32))
        second = self.optics.spread(self._v, part) * self.sharp.weights[part][:, :, None]
        change += multiply(second, self._out.astype(np.float32))
        change *= np.float32(self.factor)
        after = (residual - multiply(change, self.prior.response.astype(np.float32)))[there]
        self._msi_after += np.square(after, dtype=np.float64).sum(axis=0)
        used = self.sharp.used
        units = np.zeros(block.shape, np.float32)
        units[:, :, used] = block[:, :, used] + self.space.spectra(change)
        changed = self.sharp.valid[part][:, :, None] & used
        return np.where(changed, units, 0), changed

    def reprojection(self, *, before: bool) -> Reprojection:
        """Return how far the estimate or the result is from both images."""
        residual = self._residual if before else self._lr_after
        basis = self.space.basis
        lr = float("nan")
        if len(residual):
            power = residual.T.astype(np.float64) @ residual / len(residual)
            error = np.einsum("bk,kl,bl->b", basis, power, basis)
            lr = float(np.median(np.sqrt(error / np.square(basis).sum(axis=1))))
        msi = self._msi_before
        if not before and self.factor:
            msi = np.sqrt(self._msi_after / max(self._msi_count, 1))
        noise = self.sharp.msi_noise_std[self._bands]
        return Reprojection(lr, float(np.median(msi / noise)))

    def warn(self) -> None:
        """Say what the user should know of the inputs."""
        if self.match.before > BAD_MATCH and self.match.pixels:
            corrected = (
                f"; corrected in {self.match.steps} steps, {self.match.after:.3g} times are left"
                if self.match.steps
                else ""
            )
            warnings.warn(
                f"the PSF and the registration leave {self.match.before:.3g} times the noise's "
                f"power between the LR-HSI and the HR-MSI{corrected}; what is left counts as noise",
                SpectraliftWarning,
                stacklevel=3,
            )
        off = np.abs(self.match.gain - 1)
        if off.max() > _GAIN_OFF and self.match.after < BAD_MATCH:
            worst = int(off.argmax())
            warnings.warn(
                f"the LR-HSI is {self.match.gain[worst]:.3g} times as bright as the HR-MSI in its "
                f"band {self._names[worst]}, beyond what refinement can tell from an error",
                SpectraliftWarning,
                stacklevel=3,
            )


def _clip_range(
    config: RefineConfig, estimate: CubeReader, sharp: Sharp
) -> tuple[float, float] | None:
    """Return the range that values are brought into: for auto [0, 1] where they lie in it already."""
    if config.clip != "auto":
        return config.clip_range
    inside = sharp.span[0] >= 0 and sharp.span[1] <= 1
    return (0.0, 1.0) if inside and estimate.meta.dtype.kind == "f" else None
