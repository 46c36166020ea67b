"""What an estimate consists of: each part with its uncertainty, whether it is used, and why."""

from __future__ import annotations

from dataclasses import dataclass

from spectralift_cli.core.cube import FloatArray

PARTS = ("shift", "psf", "gain", "srf")


@dataclass(frozen=True, eq=False)
class Shift:
    """Where the LR-HSI's content lies, in LR pixels (rows down, columns to the right).

    Args:
        shift_px: (2,), see `Placement.shifted`.
        std_px: (2,) standard errors.
        interval_px: (2, 2) lower and upper end of the 95 % interval, by axis.
        used: it pays, see `why`.
        why: what decided.
        fit: how well it fits, in words.
    """

    shift_px: FloatArray
    std_px: FloatArray
    interval_px: FloatArray
    used: bool
    why: str
    fit: str


@dataclass(frozen=True, eq=False)
class Psf:
    """The effective kernel on the HR grid: blur and the LR pixel's footprint together.

    Args:
        kernel: (2n+1, 2n+1) not negative, sum 1, centroid at the centre; as `Blur` convolves.
        std: (2n+1, 2n+1) standard errors.
        width_px: (2,) root mean square width, rows and columns, in HR pixels.
        relative_error: expected L2 norm of the kernel's error over its own.
        used: always, where the images agree at all.
        why: likewise.
        fit: how well it fits, in words.
    """

    kernel: FloatArray
    std: FloatArray
    width_px: FloatArray
    relative_error: float
    used: bool
    why: str
    fit: str


@dataclass(frozen=True, eq=False)
class Gain:
    """SRF(LR-HSI) = gain * blurred(HR-MSI) + offset, per MSI band; offsets in the LR-HSI's units.

    Args:
        gain: (M,).
        gain_std: (M,) standard errors.
        gain_interval: (M, 2) 95 %.
        offset: (M,).
        offset_std: (M,).
        offset_interval: (M, 2) 95 %.
        used: they pay, see `why`.
        why: what decided.
        fit: how well it fits, in words.
    """

    gain: FloatArray
    gain_std: FloatArray
    gain_interval: FloatArray
    offset: FloatArray
    offset_std: FloatArray
    offset_interval: FloatArray
    used: bool
    why: str
    fit: str


@dataclass(frozen=True, eq=False)
class Response:
    """The spectral response as weights over all bands of the LR-HSI.

    Args:
        weights: (M, B) not negative, rows sum to 1.
        std: (M, B) standard errors.
        relative_error: (M,) expected L2 norm of a row's error over its own.
        used: it pays, or nothing else is known; see `why`.
        why: what decided.
        fit: how well it fits, in words.
    """

    weights: FloatArray
    std: FloatArray
    relative_error: FloatArray
    used: bool
    why: str
    fit: str


@dataclass(frozen=True, eq=False)
class Findings:
    """All parts of an estimate; None for one that was not asked for.

    Args:
        shift: see `Shift`.
        psf: see `Psf`.
        gain: see `Gain`.
        srf: see `Response`.
        explained: (M,) share of the variance of the LR-HSI, seen through the response, that the
            blurred HR-MSI explains.
        lr_pixels: that took part.
        blocks: spatial blocks that the uncertainties come from.
    """

    shift: Shift | None
    psf: Psf | None
    gain: Gain | None
    srf: Response | None
    explained: FloatArray
    lr_pixels: int
    blocks: int
