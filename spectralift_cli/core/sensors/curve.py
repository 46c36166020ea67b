"""The response of one multispectral band as samples over wavelength, and folding a set of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np

from spectralift_cli.core.cube import BoolArray, FloatArray
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.sensors import FWHM_STDS, Sensor, load_edges
from spectralift_cli.core.sensors.response import Srf, fold_curve

FROM_METADATA = "gaussian-from-metadata"
FROM_OPTION = "gaussian-from-msi-bands"

# of a Gaussian: linear between 80 samples a FWHM it is exact to 1e-4 of its maximum
_GAUSSIAN_REACH = 2.5  # FWHM to each side, 5.9 standard deviations
_GAUSSIAN_SAMPLES = 401
_MAX_WAVELENGTH_NM = 1e6
_NUMBER = r"\d{1,7}(?:\.\d{1,9})?"
_MSI_BAND = re.compile(rf"\s*({_NUMBER})\s*:\s*({_NUMBER})\s*")
_MAX_MSI_BANDS = 1024


@dataclass(frozen=True, eq=False)
class Curve:
    """The response of one band: linear between its samples, 0 outside.

    Args:
        name: of the band.
        wavelengths_nm: (K,) of the samples, strictly ascending, finite and positive, K >= 2.
        response: (K,) samples, finite, any scale, one of them positive; negative ones count as 0.

    Raises:
        DataError: they are not that.
    """

    name: str
    wavelengths_nm: FloatArray
    response: FloatArray

    def __post_init__(self) -> None:
        nm = np.array(self.wavelengths_nm, dtype=np.float64)
        response = np.array(self.response, dtype=np.float64)
        if nm.ndim != 1 or nm.size < 2 or response.shape != nm.shape:
            raise DataError(
                f"band {self.name}: a response curve needs two or more wavelengths with a sample "
                f"each, got {nm.size} and {response.size}",
                "give the response over a range of wavelengths",
            )
        if not ((nm > 0) & (nm <= _MAX_WAVELENGTH_NM)).all() or (np.diff(nm) <= 0).any():
            raise DataError(
                f"band {self.name}: the wavelengths of a response must be in order, each given "
                f"once, above 0 and at most {_MAX_WAVELENGTH_NM:g} nm",
                "sort the rows by wavelength",
            )
        if not np.isfinite(response).all():
            raise DataError(
                f"band {self.name}: the response holds values that are not finite", "mend the file"
            )
        if not (response > 0).any():
            raise DataError(f"no positive response in {self.name}", "remove the band")
        for name, array in (("wavelengths_nm", nm), ("response", response)):
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    @property
    def half_maximum_nm(self) -> tuple[float, float]:
        """The outermost wavelengths at half the maximum, between samples by a straight line."""
        nm, shape = self.wavelengths_nm, self.response / self.response.max()
        above = np.flatnonzero(shape >= 0.5)

        def crossing(inner: int, outer: int) -> float:
            if not 0 <= outer < nm.size:
                return float(nm[inner])
            share = (0.5 - shape[outer]) / (shape[inner] - shape[outer])
            return float(nm[outer] + share * (nm[inner] - nm[outer]))

        return crossing(above[0], above[0] - 1), crossing(above[-1], above[-1] + 1)

    @property
    def centre_nm(self) -> float:
        """The middle between the half maximum points."""
        low, high = self.half_maximum_nm
        return (low + high) / 2

    @property
    def fwhm_nm(self) -> float:
        """The full width at half maximum."""
        low, high = self.half_maximum_nm
        return high - low

    @property
    def range_nm(self) -> tuple[float, float]:
        """The outermost samples of at least a hundredth of the maximum."""
        seen = np.flatnonzero(self.response >= 0.01 * self.response.max())
        return float(self.wavelengths_nm[seen[0]]), float(self.wavelengths_nm[seen[-1]])


def gaussian(name: str, centre_nm: float, fwhm_nm: float) -> Curve:
    """Return a Gaussian response, exp(-4 ln 2 (l - centre)^2 / fwhm^2), cut where it is 3e-8.

    Args:
        name: of the band.
        centre_nm: positive.
        fwhm_nm: positive.

    Raises:
        DataError: centre or width is not positive and finite.
    """
    if not (0 < centre_nm <= _MAX_WAVELENGTH_NM and 0 < fwhm_nm <= centre_nm):
        raise DataError(
            f"band {name}: a centre of {centre_nm:g} nm with a width of {fwhm_nm:g} nm is no "
            "response",
            "give centre and FWHM in nm, the width above 0 and below the centre",
        )
    steps = np.linspace(-_GAUSSIAN_REACH, _GAUSSIAN_REACH, _GAUSSIAN_SAMPLES)
    nm: FloatArray = centre_nm + fwhm_nm * steps
    response: FloatArray = np.exp2(-((2 * steps) ** 2))
    kept = nm > 0
    return Curve(name, nm[kept], response[kept])


def parse_msi_bands(text: str) -> tuple[Curve, ...]:
    """Return the Gaussians of an inline list `centre:fwhm,centre:fwhm,...` in nm.

    Raises:
        DataError: it is not such a list, or has more than 1,024 bands.
    """
    words = text.split(",", _MAX_MSI_BANDS)
    found = [_MSI_BAND.fullmatch(word) for word in words[:_MAX_MSI_BANDS]]
    if len(words) > _MAX_MSI_BANDS or not all(found):
        raise DataError(
            f"{text[:60]!r} is not a list of bands",
            "give centre:fwhm in nm for each band, like 480:65,560:35,665:30",
        )
    return tuple(
        gaussian(f"B{i}", float(match[1]), float(match[2]))
        for i, match in enumerate(found, 1)
        if match is not None
    )


def is_msi_bands(text: str) -> bool:
    """Tell whether a text is meant as an inline list of bands."""
    return _MSI_BAND.fullmatch(text.split(",", 1)[0]) is not None


def sensor_curves(sensor: Sensor) -> tuple[Curve, ...]:
    """Return the responses of a row of `SENSORS`, in its order."""
    if sensor.edge_stds:
        fwhm_per_width = FWHM_STDS / sensor.edge_stds
        return tuple(
            gaussian(band.name, band.centre_nm, (band.high_nm - band.low_nm) * fwhm_per_width)
            for band in load_edges(sensor)
        )
    table = resources.files(__package__).joinpath("curves", sensor.bands)
    curves = []
    for line in table.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            name, first, step, *values = line.split(",")
            nm = float(first) + float(step) * np.arange(len(values), dtype=np.float64)
            curves.append(Curve(name, nm, np.array(values, dtype=np.float64)))
    return tuple(curves)


def fold_curves(
    curves: Sequence[Curve],
    wavelengths_nm: FloatArray,
    fwhm_nm: FloatArray | None,
    bad_bands: BoolArray | None,
    source: str,
) -> Srf:
    """Fold responses onto a cube's bands; each keeps its own samples. See `fold_curve`."""
    parts = []
    for curve in curves:
        seen = np.flatnonzero(curve.response > 0)  # tables of many bands are mostly zeros
        part = slice(max(seen[0] - 1, 0), seen[-1] + 2)
        nm, response = curve.wavelengths_nm[part], curve.response[part, None]
        parts.append(
            fold_curve(
                nm, response, (curve.name,), wavelengths_nm, fwhm_nm, source, bad_bands=bad_bands
            )
        )
    coverage = [0.0 if part.coverage is None else float(part.coverage[0]) for part in parts]
    weights = np.concatenate([part.weights for part in parts])  # (M, B)
    return Srf(weights, tuple(curve.name for curve in curves), np.array(coverage), source)
