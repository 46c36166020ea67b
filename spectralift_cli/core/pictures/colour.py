"""Which bands make which colour: CIE true colour, false colour, chosen bands, grey.

A `Composite` is data: the bands it reads, a weight of each band in each channel, and the matrix from
channels to red, green and blue. True colour takes the cube as the reflectance of a surface in light
that is the same at all wavelengths, so that a spectrum without colour is grey on the screen.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from spectralift_cli.core.config import QuicklookConfig
from spectralift_cli.core.convert import parse_bands
from spectralift_cli.core.cube import CubeMeta, FloatArray
from spectralift_cli.core.errors import DataError, SpectraliftWarning

Mode = Literal["true", "rgb", "false", "spread", "grey"]

# the matching functions are integrated over these wavelengths, which hold all but 1e-5 of them
_VISIBLE_NM = np.arange(380.0, 781.0)
# how much of the visible a cube must cover for true colour: from blue to red, without a gap as wide
# as a primary. Blue, green and red bands of a multispectral image do.
_BLUE_NM, _RED_NM, _WIDEST_GAP_NM = 500.0, 620.0, 130.0
# standard false colour: near infrared as red, red as green, green as blue (Landsat's 4-3-2)
_FALSE_NM, _FALSE_TOLERANCE_NM = (860.0, 660.0, 560.0), 45.0
# of three equal parts of the bands the middles; the longest wavelength is red, as in false colour
_SPREAD = (5 / 6, 3 / 6, 1 / 6)
# bands of less weight than this part of the largest add nothing that can be seen
_LEAST_WEIGHT = 1e-4

# linear sRGB from XYZ with white D65: IEC 61966-2-1:1999
_SRGB_OF_XYZ = np.array(
    [[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]]
)
_D65 = np.linalg.inv(_SRGB_OF_XYZ).sum(axis=1)  # XYZ of sRGB's white
# cone responses of the Bradford transform: Lam 1985, as in ICC.1:2010 annex E
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)


@dataclass(frozen=True, eq=False)
class Composite:
    """How the bands of a cube become the channels of a picture.

    Args:
        mode: true (CIE), rgb (bands that were asked for), false (near infrared, red, green), spread
            (bands evenly spread over the cube), grey (one band).
        bands: (n,) 0-based indices of the bands that are read.
        weights: (n, channels) weight of each in each channel, at least 0; columns sum to 1.
        matrix: (channels, 3) from channels to linear red, green and blue, or None where the
            channels are those already; then there are 3, or 1 for grey.
    """

    mode: Mode
    bands: NDArray[np.intp]
    weights: FloatArray
    matrix: FloatArray | None = None

    @property
    def is_linear_light(self) -> bool:
        """Whether the channels are amounts of light, which the screen's gamma applies to."""
        return self.mode == "true"

    def describe(self, meta: CubeMeta) -> str:
        """Return what is drawn in words, for people."""
        first = {
            "true": "CIE true colour", "rgb": "chosen bands", "grey": "grey",
            "false": "false colour (near infrared, red, green)",
            "spread": "false colour (bands evenly spread)",
        }[self.mode]  # fmt: skip
        nm = meta.wavelengths_nm
        if self.mode == "true" and nm is not None:
            used = nm[self.bands]
            return f"{first} from {len(self.bands)} bands, {used.min():g} to {used.max():g} nm"
        names = [
            f"band {band + 1}" + ("" if nm is None else f" ({nm[band]:g} nm)")
            for band in self.bands[self.weights.argmax(axis=0)]
        ]
        return f"{first}: {', '.join(names)}"

    def to_json(self, meta: CubeMeta) -> dict[str, Any]:
        """Return mode, bands (from 1) and their wavelengths."""
        nm = meta.wavelengths_nm
        return {
            "mode": self.mode,
            "bands": [int(band) + 1 for band in self.bands],
            "wavelengths_nm": None if nm is None else [float(v) for v in nm[self.bands]],
        }


def choose_composite(
    meta: CubeMeta, config: QuicklookConfig, like: Composite | None = None
) -> Composite:
    """Return how to draw a cube.

    Args:
        meta: of the cube.
        config: its `rgb` and `bands` ask for bands.
        like: of another cube; the same mode is chosen.

    Raises:
        DataError: bands that the cube does not have, or it cannot be drawn like the other.
    """
    if config.rgb is not None:
        words = [f"{word.strip()}nm" for word in config.rgb.split(",")]
        return _of_bands("rgb", parse_bands(",".join(words), meta), meta)
    if config.bands is not None:
        return _of_bands("rgb", parse_bands(config.bands, meta), meta)
    if like is not None:
        found = {"true": _true_colour, "false": _false_colour, "spread": _spread}.get(
            like.mode, _spread
        )(meta)
        if like.mode == "grey" or found is None:
            if like.mode == "grey" and meta.bands <= 2:
                return _grey(meta)
            name = {"true": "true colour", "false": "false colour"}.get(like.mode, "grey")
            raise DataError(
                f"the cube of {meta.bands} bands cannot be drawn in {name} like the other",
                "choose what both have: --rgb 650,550,450 or --bands 3,2,1",
            )
        return found
    if meta.bands <= 2:
        return _grey(meta)
    return _true_colour(meta) or _false_colour(meta) or _spread(meta)


def _of_bands(mode: Mode, bands: list[int], meta: CubeMeta) -> Composite:
    if len(bands) not in (1, 3):
        raise DataError(
            f"a picture has 3 bands or 1, not {len(bands)}",
            "name red, green and blue, or one band for grey",
        )
    flagged = [band + 1 for band in bands if meta.bad_bands is not None and meta.bad_bands[band]]
    if flagged:
        warnings.warn(
            f"band {flagged[0]} is flagged as bad and drawn all the same",
            SpectraliftWarning,
            stacklevel=2,
        )
    return Composite(mode, np.asarray(bands, dtype=np.intp), np.eye(len(bands)))


def _good(meta: CubeMeta) -> NDArray[np.intp]:
    """Return the bands that are not flagged as bad; all where all are."""
    if meta.bad_bands is None or meta.bad_bands.all():
        return np.arange(meta.bands)
    return np.flatnonzero(~meta.bad_bands)


def _grey(meta: CubeMeta) -> Composite:
    return _of_bands("grey", [int(_good(meta)[0])], meta)


def _true_colour(meta: CubeMeta) -> Composite | None:
    """Return the composite of CIE colorimetry, or None where the visible is not covered."""
    if meta.wavelengths_nm is None:
        return None
    good = _good(meta)
    order = good[np.argsort(meta.wavelengths_nm[good], kind="stable")]
    centres = meta.wavelengths_nm[order]
    inside = centres[(centres >= _VISIBLE_NM[0]) & (centres <= _VISIBLE_NM[-1])]
    covered = (
        inside.size >= 3
        and inside[0] <= _BLUE_NM
        and inside[-1] >= _RED_NM
        and np.diff(inside[inside <= _RED_NM + _WIDEST_GAP_NM]).max() <= _WIDEST_GAP_NM
    )
    if not covered:
        return None
    weights = tristimulus_weights(centres)
    used = (weights > _LEAST_WEIGHT * weights.max(axis=0)).any(axis=1)
    weights = weights[used] / weights[used].sum(axis=0)
    return Composite("true", order[used], weights, linear_srgb_of_tristimulus())


def _false_colour(meta: CubeMeta) -> Composite | None:
    if meta.wavelengths_nm is None:
        return None
    good = _good(meta)
    centres = meta.wavelengths_nm[good]
    away = np.abs(centres[:, None] - _FALSE_NM)  # (bands, 3)
    nearest = away.argmin(axis=0)
    if away.min(axis=0).max() > _FALSE_TOLERANCE_NM or len(set(nearest)) < 3:
        return None
    return _of_bands("false", [int(band) for band in good[nearest]], meta)


def _spread(meta: CubeMeta) -> Composite:
    good = _good(meta)
    return _of_bands("spread", [int(good[int(part * len(good))]) for part in _SPREAD], meta)


def tristimulus_weights(centres_nm: FloatArray) -> FloatArray:
    """Return each band's weight in X, Y and Z of the spectrum drawn through the bands.

    The spectrum is linear between band centres and constant beyond the first and the last; it is
    integrated against the CIE 1931 matching functions by sums of 1 nm from 380 to 780 nm, so that
    bands may lie at any distance from each other.

    Args:
        centres_nm: (bands,) increasing; of bands with the same centre the first counts.

    Returns:
        (bands, 3), at least 0; columns sum to 1, so that a constant spectrum has X = Y = Z.
    """
    unique, first = np.unique(centres_nm, return_index=True)
    # (bands, nm): what each band contributes to the spectrum
    shares = np.stack([np.interp(_VISIBLE_NM, unique, unit) for unit in np.eye(len(unique))])
    weights = np.zeros((len(centres_nm), 3))
    weights[first] = shares @ np.maximum(matching_functions(_VISIBLE_NM), 0)
    return np.asarray(weights / weights.sum(axis=0), dtype=np.float64)


def matching_functions(wavelengths_nm: FloatArray) -> FloatArray:
    """Return the CIE 1931 2-degree colour matching functions x, y and z, (n, 3).

    Sums of Gaussians with a width of their own on either side, fitted to the tables of the CIE.
    Source: Wyman, Sloan and Shirley, Simple Analytic Approximations to the CIE XYZ Color Matching
    Functions, Journal of Computer Graphics Techniques 2(2), 2013, equation 4.
    """

    def lobe(height: float, centre: float, left: float, right: float) -> FloatArray:
        offset = wavelengths_nm - centre
        width = np.where(offset < 0, left, right)
        return np.asarray(height * np.exp(-0.5 * (offset / width) ** 2), dtype=np.float64)

    x = lobe(1.056, 599.8, 37.9, 31.0) + lobe(0.362, 442.0, 16.0, 26.7)
    x += lobe(-0.065, 501.1, 20.4, 26.2)
    y = lobe(0.821, 568.8, 46.9, 40.5) + lobe(0.286, 530.9, 16.3, 31.1)
    z = lobe(1.217, 437.0, 11.8, 36.0) + lobe(0.681, 459.0, 26.0, 13.8)
    return np.stack([x, y, z], axis=1)


def linear_srgb_of_tristimulus() -> FloatArray:
    """Return the matrix (3, 3) of `xyz @ matrix` = linear sRGB for light of white (1, 1, 1).

    The white of equal energy is adapted to sRGB's D65 by the Bradford transform.
    """
    cones = _BRADFORD @ np.stack([np.ones(3), _D65], axis=1)  # (3, 2): of the two whites
    adapt = np.linalg.inv(_BRADFORD) @ np.diag(cones[:, 1] / cones[:, 0]) @ _BRADFORD
    return np.asarray((_SRGB_OF_XYZ @ adapt).T, dtype=np.float64)


def encode_srgb(linear: FloatArray) -> FloatArray:
    """Return linear light in [0, 1] as sRGB values in [0, 1]; IEC 61966-2-1's curve."""
    steep = 12.92 * linear
    curved = 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    return np.where(linear <= 0.0031308, steep, curved)
