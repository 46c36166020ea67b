"""The degradation of an image, as operators on arrays: PSF, blur, downsampling, SRF, noise, scaling.

They know arrays, not files. This module is the table of point spread functions and imports only the
standard library, so that help and completion may read it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PsfShape:
    """One point spread function.

    Args:
        help: its formula; r is the distance in HR pixels, s the width sigma.
        function: "module:function", called with (r, x, y, sigma_px, protocol).
    """

    help: str
    function: str


_MODULE = "spectralift_cli.core.operators.psf"

PSFS: dict[str, PsfShape] = {
    "gaussian": PsfShape("exp(-r^2 / 2s^2)", f"{_MODULE}:gaussian"),
    "kolmogorov": PsfShape("exp(-(r/s)^(5/3))", f"{_MODULE}:kolmogorov"),
    "airy": PsfShape("(2 J1(z)/z)^2, z = 2.33811 r/s (published: K1)", f"{_MODULE}:airy"),
    "moffat": PsfShape("(1 + (r/s)^2)^-3.5", f"{_MODULE}:moffat"),
    "sinc": PsfShape("sinc(r/s)", f"{_MODULE}:sinc"),
    "lorentzian2": PsfShape("1 / (1 + (r/s)^4)", f"{_MODULE}:lorentzian2"),
    "hermite": PsfShape("exp(-r^2 / 2s^2) H1(r/s)", f"{_MODULE}:hermite"),
    "parabolic": PsfShape("max(0, 1 - (r/s)^2)", f"{_MODULE}:parabolic"),
    "gabor": PsfShape("exp(-(x^2 + 0.25 y^2) / 2s^2) cos(2 pi x)", f"{_MODULE}:gabor"),
    "delta": PsfShape("one pixel", f"{_MODULE}:delta"),
}
