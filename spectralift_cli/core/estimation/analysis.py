"""From two images in memory to an estimate: shift, kernel, radiometry and response in turn."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from spectralift_cli.core.cube import BoolArray, FloatArray, Progress, no_progress
from spectralift_cli.core.errors import SpectraliftWarning
from spectralift_cli.core.estimation.choice import Verdict, compare, held_out_errors
from spectralift_cli.core.estimation.footprint import Blurring, respond, seen_through
from spectralift_cli.core.estimation.imagepair import ImagePair
from spectralift_cli.core.estimation.parts import Findings, Gain, Psf, Response, Shift
from spectralift_cli.core.estimation.psf import Kernel, fit_kernel
from spectralift_cli.core.estimation.shift import Joint, fit_joint, search_shift, weighted_lines
from spectralift_cli.core.estimation.srf_fit import Response as BandResponse
from spectralift_cli.core.estimation.srf_fit import Spectra, clean_spectra, fit_response

# below this share of explained variance the images do not tell the same story
_POOR = 0.5
_GOOD = 0.95
_STEPS = 6  # of progress


@dataclass(frozen=True, eq=False)
class _Seen:
    """What LR pixels see of the MSI, at the shift and through the kernel found so far."""

    z: FloatArray  # (h, w, M), NaN where not all is there
    weights: FloatArray  # (h, w), 0 there


def analyse(
    pair: ImagePair,
    nominal: FloatArray | None,
    parts: Collection[str],
    psf_size: int | None = None,
    progress: Progress = no_progress,
) -> Findings:
    """Estimate some parts from an image pair.

    Without `shift` the images are taken to lie where their placement says, without `srf` the
    nominal response is taken for true. Kernel, gain and offset are always fitted, since the others
    depend on them, but only reported where they are asked for.

    Args:
        pair: the images.
        nominal: (M, B) the response over the pair's bands, or None if it is unknown.
        parts: some of `PARTS`; with `srf` where `nominal` is None.
        psf_size: side of the kernel in HR pixels, odd; None for one that suits.
        progress: called with (done, total).

    Raises:
        DataError: the images are too small.
    """
    free = "shift" in parts
    start = search_shift(pair, free)
    progress(1, _STEPS)
    response = nominal if nominal is not None else _first_response(pair, start)
    joint = fit_joint(pair, pair.hsi @ response.T, start, free)
    if nominal is None:  # once more, from the better place
        response = _first_response(pair, joint.blurring)
        joint = fit_joint(pair, pair.hsi @ response.T, joint.blurring, free)
    progress(2, _STEPS)
    fitted: list[BandResponse] | None = None
    verdict = Verdict(True, "the response is not known otherwise")
    if "srf" in parts:
        seen = _Seen(joint.seen, joint.weights)
        fitted = _responses(pair, seen)
        if nominal is not None:
            verdict = _judge_response(pair, seen, nominal)
        if verdict.used:
            response = np.stack([r.weights for r in fitted])
            joint = fit_joint(pair, pair.hsi @ response.T, joint.blurring, free)
    progress(3, _STEPS)
    y = pair.hsi @ response.T
    # also where it is not asked for: a wrong blur makes wrong gains
    kernel = fit_kernel(pair, y, joint, psf_size)
    seen = _Seen(kernel.seen, kernel.weights)
    if fitted is not None:
        fitted = _responses(pair, seen)
    progress(4, _STEPS)
    words = _words(kernel.explained)
    middle = float(np.median(kernel.explained))
    agree = middle >= _POOR
    if not agree:
        warnings.warn(
            f"the blurred MSI explains {100 * middle:.0f} % of the variance of the LR-HSI seen "
            f"through the response (median of the bands), less than {100 * _POOR:.0f} %: nothing of "
            "the estimate is used",
            SpectraliftWarning,
            stacklevel=2,
        )
    blocks = _blocks(pair, kernel.weights)
    factor = float(stdtrit(max(1, blocks - 1), 0.975))
    gain = None
    if "gain" in parts:
        lines = fitted if verdict.used else None
        gain = _gain(kernel, lines, factor, _judge_gain(pair, seen, response), words, agree)
    progress(5, _STEPS)
    shift = _shift(pair, y, joint, factor, words, agree) if free else None
    progress(_STEPS, _STEPS)
    return Findings(
        shift=shift,
        psf=_psf(kernel, words, agree) if "psf" in parts else None,
        gain=gain,
        srf=None if fitted is None else _srf(fitted, verdict, agree),
        explained=kernel.explained,
        lr_pixels=int((kernel.weights > 0).sum()),
        blocks=blocks,
    )


def _blocks(pair: ImagePair, weights: FloatArray) -> int:
    return int(np.unique(pair.blocks()[weights > 0]).size)


def _spectra(pair: ImagePair) -> Spectra:
    return clean_spectra(pair.hsi[pair.hsi_valid])


def _first_response(pair: ImagePair, blurring: Blurring) -> FloatArray:
    z, ok = respond(pair, blurring)
    return np.stack([r.weights for r in _responses(pair, _Seen(z, ok.astype(np.float64)))])


def _responses(
    pair: ImagePair, seen: _Seen, spectra: Spectra | None = None, kept: BoolArray | None = None
) -> list[BandResponse]:
    """Fit every band's response, on the pixels that are kept ((h, w), None for all)."""
    spectra = spectra or _spectra(pair)
    weights = seen.weights if kept is None else seen.weights * kept
    valid = pair.hsi_valid
    labels = pair.blocks()[valid]
    return [
        fit_response(spectra, seen.z[valid][:, m], weights[valid], labels, pair.wavelengths_nm)
        for m in range(pair.msi_bands)
    ]


def _judge_response(pair: ImagePair, seen: _Seen, nominal: FloatArray) -> Verdict:
    """Compare the estimated with the nominal response, gain and offset fitted for both."""
    spectra = _spectra(pair)
    use = seen.weights > 0
    z, x, w = seen.z[use], pair.hsi[use], seen.weights[use]
    labels = pair.blocks()[use]

    def with_nominal(kept: BoolArray) -> FloatArray:
        return _inverse_error(x @ nominal.T, z, w * kept)

    def with_estimate(kept: BoolArray) -> FloatArray:
        mask = np.zeros(use.shape, np.bool_)
        mask[use] = kept
        fitted = _responses(pair, seen, spectra, mask)
        return _inverse_error(x @ np.stack([r.weights for r in fitted]).T, z, w * kept)

    return compare(
        "the estimated response", held_out_errors(with_nominal, labels),
        held_out_errors(with_estimate, labels), w, labels,
    )  # fmt: skip


def _judge_gain(pair: ImagePair, seen: _Seen, response: FloatArray) -> Verdict:
    use = seen.weights > 0
    z, w, labels = seen.z[use], seen.weights[use], pair.blocks()[use]
    y = pair.hsi[use] @ response.T

    def fitted(kept: BoolArray) -> FloatArray:
        gain, offset = weighted_lines(z, y, w * kept)
        return np.asarray(gain * z + offset - y)

    return compare(
        "gain and offset", held_out_errors(lambda kept: z - y, labels),
        held_out_errors(fitted, labels), w, labels,
    )  # fmt: skip


def _inverse_error(y: FloatArray, z: FloatArray, weights: FloatArray) -> FloatArray:
    """Return (n, M) how far a line through y misses z: errors in the MSI's own units."""
    gain, offset = weighted_lines(y, z, weights)
    return np.asarray(gain * y + offset - z)


def _shift(
    pair: ImagePair, y: FloatArray, joint: Joint, factor: float, words: str, agree: bool
) -> Shift:
    use = joint.weights > 0
    w, labels = joint.weights[use], pair.blocks()[use]

    def errors(moved: bool) -> Callable[[BoolArray], FloatArray]:
        def of(kept: BoolArray) -> FloatArray:
            mask = np.zeros(use.shape, np.bool_)
            mask[use] = kept
            start = joint.blurring if moved else Blurring((0.0, 0.0), joint.blurring.sigma_px)
            fitted = fit_joint(pair.only(mask), y, start, moved)
            z = seen_through(pair, fitted.blurring)
            return np.asarray(fitted.gain * z[use] + fitted.offset - y[use])

        return of

    found = np.array(joint.blurring.shift_px)
    std = np.sqrt(np.maximum(np.diag(joint.covariance)[:2], 0))
    verdict = compare(
        "the shift", held_out_errors(errors(False), labels), held_out_errors(errors(True), labels),
        w, labels,
    )  # fmt: skip
    return Shift(
        shift_px=found, std_px=std,
        interval_px=np.stack([found - factor * std, found + factor * std], axis=1),
        used=verdict.used and agree, why=_why(verdict, agree),
        fit=f"known to {max(std):.2g} LR pixels; {words}",
    )  # fmt: skip


def _gain(
    fit: Kernel, lines: list[BandResponse] | None, factor: float, verdict: Verdict,
    words: str, agree: bool,
) -> Gain:  # fmt: skip
    bands = fit.gain.size
    if lines is None:
        gain, offset = fit.gain, fit.offset
        std = np.sqrt(np.maximum(np.diag(fit.covariance)[-2 * bands :], 0))
        gain_std, offset_std = std[:bands], std[bands:]
    else:  # with an estimated response its uncertainty is theirs too
        gain, offset = (np.array([getattr(r, n) for r in lines]) for n in ("gain", "offset"))
        gain_std, offset_std = (
            np.sqrt([max(r.covariance[i, i], 0.0) for r in lines]) for i in (0, 1)
        )
    share = 100 * float(np.max(gain_std / np.abs(gain)))
    return Gain(
        gain=gain, gain_std=gain_std, gain_interval=_interval(gain, gain_std, factor),
        offset=offset, offset_std=offset_std,
        offset_interval=_interval(offset, offset_std, factor),
        used=verdict.used and agree, why=_why(verdict, agree),
        fit=f"gains are known to {share:.2g} % or better; {words}",
    )  # fmt: skip


def _interval(value: FloatArray, std: FloatArray, factor: float) -> FloatArray:
    return np.stack([value - factor * std, value + factor * std], axis=1)


def _psf(kernel: Kernel, words: str, agree: bool) -> Psf:
    half = len(kernel.values) // 2
    at = np.arange(-half, half + 1, dtype=np.float64)
    widths = [float(np.sqrt(kernel.values.sum(axis=1 - axis) @ at**2)) for axis in (0, 1)]
    why = "the PSF: used wherever one is asked for" if agree else _DISAGREE
    return Psf(
        kernel=kernel.values, std=kernel.std, width_px=np.array(widths),
        relative_error=kernel.relative_error, used=agree, why=why,
        fit=f"the kernel is known to about {100 * kernel.relative_error:.0f} % (L2); {words}",
    )  # fmt: skip


def _srf(fitted: list[BandResponse], verdict: Verdict, agree: bool) -> Response:
    error = np.array([r.relative_error for r in fitted])
    return Response(
        weights=np.stack([r.weights for r in fitted]), std=np.stack([r.std for r in fitted]),
        relative_error=error, used=verdict.used and agree, why=_why(verdict, agree),
        fit=f"rows are known to {100 * error.min():.0f} to {100 * error.max():.0f} % (L2)",
    )  # fmt: skip


_DISAGREE = "the images agree too little for any of it to be used"


def _why(verdict: Verdict, agree: bool) -> str:
    return verdict.why if agree else _DISAGREE


def _words(explained: FloatArray) -> str:
    low, middle = float(explained.min()), float(np.median(explained))
    judgement = "good" if middle >= _GOOD else "fair" if middle >= _POOR else "poor"
    return (
        f"the fit is {judgement}: {100 * middle:.1f} % of the variance explained in the median band, "
        f"{100 * low:.1f} % in the worst"
    )
