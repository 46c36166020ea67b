"""The steps of a refinement: compare the images, learn the prior, judge, solve, correct by rows."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from spectralift_cli.core.config import RefineConfig
from spectralift_cli.core.cube import BoolArray
from spectralift_cli.core.errors import SpectraliftWarning
from spectralift_cli.core.placement import Placement
from spectralift_cli.core.refinement.gate import UNGATED, Verdict, judge
from spectralift_cli.core.refinement.images import (
    HeldCube,
    Sharp,
    bands_with_values,
    look,
    moments,
    usable_response,
)
from spectralift_cli.core.refinement.match import (
    BAD_MATCH,
    CLEARLY_BETTER,
    Match,
    Pair,
    matched,
    through_response,
)
from spectralift_cli.core.refinement.msi_step import MsiStep
from spectralift_cli.core.refinement.optics import Optical, Optics
from spectralift_cli.core.refinement.outcome import Reprojection
from spectralift_cli.core.refinement.posterior import Gram, Prior
from spectralift_cli.core.refinement.relation import Relation
from spectralift_cli.core.refinement.signal import SignalSpace, multiply

Floats32 = NDArray[np.float32]

_MATCH_PIXELS = 2**22  # HR pixels that the PSF is compared on
_GAIN_OFF = 0.02
# the discrepancy principle (Morozov 1966): a residual above the noise has more to say
_MET = 1.1
_MOST_RAISED = 8


class Correction:
    """The steps of a refinement, in the order in which they are called."""

    def __init__(
        self,
        cube: HeldCube,
        lr: HeldCube,
        msi: HeldCube,
        relation: Relation,
        config: RefineConfig,
    ) -> None:
        srf, placement, optical = relation.srf, relation.placement, relation.optical
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
        self.match, self._rival = self._matched(lr_msi, placement, optical)
        self.optics = Optics(self.match.psf, placement, optical.includes_footprint)
        share = self.optics.share(None if self.sharp.valid.all() else self.sharp.valid)
        self.use: BoolArray = self._lr_valid & Optics.whole(share)
        self._scale = np.where(self.use, 1 / np.where(self.use, share, 1), 0).astype(np.float32)
        # held-out LR pixels see through the same wrong kernel: then the HR-MSI is asked, too
        self.doubtful = self._rival is not None and not config.ungated
        self.steps = 0
        self.raised = 1  # what the prior's covariance was multiplied by
        self.factor = 0.0

    def _matched(
        self, lr_msi: Floats32, placement: Placement, optical: Optical
    ) -> tuple[Match, Match | None]:
        """Compare the images through the PSF, over as many rows as are enough.

        Returns:
            The match to go by, and the much better one of a corrected PSF, where the given one is to
            be trusted nevertheless.
        """
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
        given = matched(images, optical.psf, trusted=self.config.trust_psf)
        if not self.config.trust_psf or optical.psf is None or given.after < BAD_MATCH:
            return given, None
        best = matched(images, optical.psf)
        return given, best if best.after <= CLEARLY_BETTER * given.after else None

    def look_at_lr(self, done: Callable[[int], None]) -> None:
        """Find what the LR-HSI says of the estimate, and from it the prior."""
        seeing = self.optics.seeing(self.space.components)
        for part, block in self._cube.blocks():
            coefficients = self.space.coefficients(block[:, :, self.sharp.used])
            coefficients[~self.sharp.valid[part]] = 0
            seeing.add(part, coefficients)
            done(part.stop - part.start)
        self._residual = (self._seen - seeing.image * self._scale[:, :, None])[self.use]
        noise = self.sharp.msi_noise_std[self._bands]
        # a gain between the images that nobody corrected is an error of the MSI
        off = (self.match.gain - 1) * self.sharp.msi_rms[self._bands]
        self._msi_noise = np.hypot(noise, off)
        noise_power = self.space.noise_power
        unmatched = self.match.covariance(self._seen, self._lr_valid, noise_power)
        self.prior = Prior.of(
            self._residual.astype(np.float64), self.config.strength,
            self.space.response(self._srf), self._msi_noise, np.diag(noise_power) + unmatched,
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

    def decide(self, done: Callable[[int], None]) -> None:
        """Solve on the LR grid, and ask held-out pixels what the solution is worth."""
        self._step = MsiStep.of(self.prior, self.space, self._srf, self.config.strength)
        seeing = self.optics.seeing(self._step.findings)
        squares, count = np.zeros(len(self._srf)), 0
        for part, block in self._cube.blocks():
            residual, there = self._msi_residual(part, block)
            good = residual[there].astype(np.float64)
            squares += np.square(good).sum(axis=0)
            count += len(good)
            seeing.add(part, self._step.find(residual, self.sharp.weights[part]))
            done(part.stop - part.start)
        self._msi_before = np.sqrt(squares / max(count, 1))
        self._msi_after, self._msi_count = np.zeros(len(self._srf)), count
        if not self.use.any():
            self.verdict = Verdict("drop", 0.0, 0.0, 0.0, 0, 0)
            self._lr_after = self._residual
            return
        first = self._step.coefficients((seeing.image * self._scale[:, :, None])[self.use])
        gram = Gram(self.optics, self.sharp.weights, self.use, self._scale)
        while True:
            variances, into, self._out = self.prior.left()
            inward, outward = into.astype(np.float32), self._out.astype(np.float32)
            residual, explained = multiply(self._residual, inward), multiply(first, inward)
            v, self.steps = gram.solve(variances, residual - explained)
            v *= variances.astype(np.float32)
            whole = explained + gram.matrix @ v
            # what a wrong kernel leaves cannot be explained by errors of the cube, and need not be
            met = self._lr_distance(multiply(residual - whole, outward)) <= _MET
            if met or self.match.after > BAD_MATCH or self.raised == _MOST_RAISED:
                break
            self.raised *= 2
            self.prior = dataclasses.replace(self.prior, covariance=2 * self.prior.covariance)
        self.verdict = (
            UNGATED if self.config.ungated else judge(gram, variances, residual, explained)
        )
        self._v = np.zeros(self._seen.shape, np.float32)
        self._v[self.use] = v * self._scale[self.use][:, None]
        if self.doubtful:
            self.verdict = self.verdict.limited(self._msi_share(done))
        self.factor = self.verdict.factor
        self._lr_after = multiply(residual - self.factor * whole, outward)

    def _msi_share(self, done: Callable[[int], None]) -> float:
        """Return by which share of the correction the HR-MSI is nearest, in units of its noise."""
        agreed = moved = 0.0
        for part, block in self._cube.blocks():
            residual, there = self._msi_residual(part, block)
            seen = through_response(self._added(part, residual), self._srf)[there] / self._msi_noise
            wanted = residual[there] / self._msi_noise
            agreed += float((seen * wanted).sum())
            moved += float(np.square(seen).sum())
            done(part.stop - part.start)
        return agreed / moved if moved else 0.0

    def _added(self, part: slice, residual: Floats32) -> Floats32:
        """Return the whole correction (n, W, B) of some rows, in units."""
        weights = self.sharp.weights[part]
        findings = self._step.find(residual, weights)
        second = self.optics.spread(self._v, part) * weights[:, :, None]
        change = self._step.within(findings) + multiply(second, self._out.astype(np.float32))
        return self.space.spectra(change) + self._step.beyond(findings)

    def corrected(self, part: slice) -> tuple[Floats32, BoolArray]:
        """Return the corrected units (n, W, B) of some rows, and which values they change."""
        block = self._cube.read(part)
        residual, there = self._msi_residual(part, block)
        added = self._added(part, residual) * np.float32(self.factor)
        after = (residual - through_response(added, self._srf))[there]
        self._msi_after += np.square(after, dtype=np.float64).sum(axis=0)
        used = self.sharp.used
        units = np.zeros(block.shape, np.float32)
        units[:, :, used] = block[:, :, used] + added
        changed = self.sharp.valid[part][:, :, None] & used
        return np.where(changed, units, 0), changed

    def reprojection(self, *, before: bool) -> Reprojection:
        """Return how far the estimate or the result is from both images."""
        msi = self._msi_before
        if not before and self.factor:
            msi = np.sqrt(self._msi_after / max(self._msi_count, 1))
        noise = self.sharp.msi_noise_std[self._bands]
        lr = self._lr_distance(self._residual if before else self._lr_after)
        return Reprojection(lr, float(np.median(msi / noise)))

    def _lr_distance(self, residual: Floats32) -> float:
        """Return the median over bands of the RMSE that residual coefficients make, per noise."""
        if not len(residual):
            return float("nan")
        basis = self.space.basis
        power = residual.T.astype(np.float64) @ residual / len(residual)
        error = np.einsum("bk,kl,bl->b", basis, power, basis)
        return float(np.median(np.sqrt(error / (np.square(basis) @ self.space.noise_power))))

    def warn(self) -> None:
        """Say what the user should know of the inputs."""
        if self.match.before > BAD_MATCH and self.match.pixels:
            corrected = ""
            if self.match.steps:
                corrected = f"; corrected, {self.match.after:.3g} times are left"
            elif self._rival is not None:
                corrected = (
                    f", where a PSF corrected by the images, without --trust-psf, leaves "
                    f"{self._rival.after:.3g} times"
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
