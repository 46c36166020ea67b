"""The file of an estimate: one JSON document, written by `estimate` and read by its consumers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spectralift_cli.core.cube import FloatArray
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.estimation.parts import Findings, Gain, Psf, Response, Shift
from spectralift_cli.core.formats.arrays import strict_json
from spectralift_cli.core.radiometry import Radiometry
from spectralift_cli.core.sensors.response import Srf, normalise_rows

SCHEMA = "spectralift.estimate/1"
# a response of 16 bands over 400 with its errors takes 0.3 MB, a kernel of 255 x 255 2 MB
_LIMIT_BYTES = 16 * 2**20
_MAX_KERNEL = 1023
_DIGITS = 9
_HINT = "make it again with spectralift estimate"


@dataclass(frozen=True, eq=False)
class Estimate:
    """What two images say of each other, and which of it is to be used.

    Args:
        findings: the parts; the response over all bands of the LR-HSI.
        band_names: (M,) of the MSI.
        hsi_bands: B.
        wavelengths_nm: (B,) of the LR-HSI, or None.
        kept: (M,) 0-based indices of the bands in the MSI before any were dropped, or None.
        sensor_bands: how many bands `kept` was chosen from; None with it.
        ratio: HR pixels to one LR pixel, rows and columns.
        provenance: how it was made, with the identities of the images.
    """

    findings: Findings
    band_names: tuple[str, ...]
    hsi_bands: int
    wavelengths_nm: FloatArray | None
    kept: tuple[int, ...] | None
    sensor_bands: int | None
    ratio: tuple[float, float]
    provenance: Mapping[str, Any]

    @property
    def radiometry(self) -> Radiometry | None:
        """Gain and offset where they are to be used."""
        gain = self.findings.gain
        return None if gain is None or not gain.used else Radiometry(gain.gain, gain.offset)

    @property
    def shift_px(self) -> tuple[float, float]:
        """The shift in LR pixels; zero where it is not to be used."""
        shift = self.findings.shift
        if shift is None or not shift.used:
            return 0.0, 0.0
        return float(shift.shift_px[0]), float(shift.shift_px[1])

    @property
    def srf(self) -> Srf | None:
        """The estimated response where it is to be used."""
        found = self.findings.srf
        if found is None or not found.used:
            return None
        return Srf(
            normalise_rows(found.weights, "the estimate"), self.band_names, source="estimated",
            kept=self.kept, sensor_bands=self.sensor_bands,
        )  # fmt: skip

    @property
    def effective_psf(self) -> FloatArray | None:
        """The kernel with the LR pixel's footprint where it is to be used."""
        psf = self.findings.psf
        return None if psf is None or not psf.used else psf.kernel

    def to_json(self) -> dict[str, Any]:
        """Return the document; numbers are rounded beyond what any of them is known to."""
        found = self.findings
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "msi": {
                "band_names": list(self.band_names),
                "kept": None if self.kept is None else list(self.kept),
                "sensor_bands": self.sensor_bands,
            },
            "hsi": {"bands": self.hsi_bands, "wavelengths_nm": _listed(self.wavelengths_nm)},
            "ratio": list(self.ratio),
            "lr_pixels": found.lr_pixels,
            "blocks": found.blocks,
            "explained": _listed(found.explained),
            "shift": None,
            "psf": None,
            "gain": None,
            "srf": None,
            "provenance": dict(self.provenance),
        }
        if found.shift is not None:
            document["shift"] = {
                "shift_px": _listed(found.shift.shift_px), "std_px": _listed(found.shift.std_px),
                "interval_95_px": _listed(found.shift.interval_px),
                "unit": "LR pixels (rows down, columns right)", **_judged(found.shift),
            }  # fmt: skip
        if found.psf is not None:
            document["psf"] = {
                "effective_psf": _listed(found.psf.kernel), "std": _listed(found.psf.std),
                "includes_footprint": True, "width_px": _listed(found.psf.width_px),
                "relative_error": found.psf.relative_error,
                "unit": "HR pixels; the kernel sums to 1", **_judged(found.psf),
            }  # fmt: skip
        if found.gain is not None:
            gain = found.gain
            document["gain"] = {
                "gain": _listed(gain.gain), "gain_std": _listed(gain.gain_std),
                "gain_interval_95": _listed(gain.gain_interval),
                "offset": _listed(gain.offset), "offset_std": _listed(gain.offset_std),
                "offset_interval_95": _listed(gain.offset_interval),
                "unit": "SRF(LR-HSI) = gain * HR-MSI + offset; offsets in units of the LR-HSI",
                **_judged(gain),
            }  # fmt: skip
        if found.srf is not None:
            document["srf"] = {
                "weights": _listed(found.srf.weights), "std": _listed(found.srf.std),
                "relative_error": _listed(found.srf.relative_error),
                "unit": "weights over the bands of the LR-HSI; rows sum to 1", **_judged(found.srf),
            }  # fmt: skip
        return document

    def to_text(self) -> str:
        """Return the contents of the file."""
        return json.dumps(_rounded(self.to_json()), indent=1, allow_nan=False) + "\n"


def read_estimate(path: str | Path) -> Estimate:
    """Read an estimate and check all of it, as a file that may be hostile.

    Raises:
        DataError: no such file, or it is damaged, too large, or something else.
    """
    path = Path(path)
    try:
        if not path.is_file():
            what = "is not a file" if path.exists() else "no such file"
            raise DataError(f"{path}: {what}", "give the JSON that spectralift estimate wrote")
        with path.open("rb") as file:
            text = file.read(_LIMIT_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", "check the file") from error
    if len(text) > _LIMIT_BYTES:
        raise DataError(f"{path}: is larger than {_LIMIT_BYTES:,} bytes", _HINT)
    try:
        document = strict_json(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON", "give what spectralift estimate wrote") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise DataError(
            f"{path}: its schema is {str(schema)[:60]!r}, an estimate's is {SCHEMA!r}",
            "give the JSON that spectralift estimate wrote",
        )
    try:
        return _from_json(document)
    except DataError as error:
        raise DataError(f"{path}: {error.message}", _HINT) from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else f"is damaged ({error})"
        raise DataError(f"{path}: the estimate {what}", _HINT) from error


def _from_json(document: Mapping[str, Any]) -> Estimate:
    msi, hsi = document["msi"], document["hsi"]
    names = tuple(_text(name) for name in _list(msi["band_names"]))
    m, b = len(names), _count(hsi["bands"])
    if not m:
        raise ValueError("it has no MSI band")
    nm, kept = hsi["wavelengths_nm"], msi["kept"]
    shift, psf, gain, srf = (document[name] for name in ("shift", "psf", "gain", "srf"))
    findings = Findings(
        shift=None if shift is None else Shift(
            _array(shift["shift_px"], 2), _array(shift["std_px"], 2),
            _array(shift["interval_95_px"], 2, 2), *_judgement(shift),
        ),
        psf=None if psf is None else _psf(psf),
        gain=None if gain is None else Gain(
            _array(gain["gain"], m), _array(gain["gain_std"], m),
            _array(gain["gain_interval_95"], m, 2), _array(gain["offset"], m),
            _array(gain["offset_std"], m), _array(gain["offset_interval_95"], m, 2),
            *_judgement(gain),
        ),
        srf=None if srf is None else Response(
            _array(srf["weights"], m, b), _array(srf["std"], m, b),
            _array(srf["relative_error"], m), *_judgement(srf),
        ),
        explained=_array(document["explained"], m),
        lr_pixels=_count(document["lr_pixels"]),
        blocks=_count(document["blocks"]),
    )  # fmt: skip
    down, across = _array(document["ratio"], 2)
    estimate = Estimate(
        findings=findings, band_names=names, hsi_bands=b,
        wavelengths_nm=None if nm is None else _array(nm, b),
        kept=None if kept is None else tuple(_index(index) for index in _list(kept)),
        sensor_bands=None if msi["sensor_bands"] is None else _count(msi["sensor_bands"]),
        ratio=(float(down), float(across)), provenance=dict(document["provenance"]),
    )  # fmt: skip
    if (kept is None) != (estimate.sensor_bands is None) or (
        estimate.kept is not None
        and (len(estimate.kept) != m or max(estimate.kept) >= (estimate.sensor_bands or 0))
    ):
        raise ValueError("the MSI's kept bands do not fit its names")
    estimate.radiometry, estimate.srf  # noqa: B018  # raise for numbers that cannot be used
    return estimate


def _psf(fields: Mapping[str, Any]) -> Psf:
    if fields["includes_footprint"] is not True:
        raise ValueError("its PSF does not include the footprint")
    size = len(_list(fields["effective_psf"]))
    if size % 2 == 0 or size > _MAX_KERNEL:
        raise ValueError(f"its PSF is {size} pixels a side")
    kernel = _array(fields["effective_psf"], size, size)
    total = float(kernel.sum())
    if kernel.min() < 0 or not abs(total - 1) < 1e-6:
        raise ValueError(f"its PSF has a least value of {kernel.min():g} and sums to {total:g}")
    return Psf(
        kernel / total, _array(fields["std"], size, size), _array(fields["width_px"], 2),
        float(_array(fields["relative_error"])), *_judgement(fields),
    )  # fmt: skip


def _judged(part: Shift | Psf | Gain | Response) -> dict[str, Any]:
    return {"used": part.used, "why": part.why, "fit": part.fit}


def _judgement(fields: Mapping[str, Any]) -> tuple[bool, str, str]:
    if not isinstance(fields["used"], bool):
        raise TypeError("used is neither true nor false")
    return fields["used"], _text(fields["why"]), _text(fields["fit"])


def _listed(values: FloatArray | None) -> Any:
    return None if values is None else values.tolist()


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def _array(value: Any, *shape: int) -> FloatArray:
    """Return finite numbers of a shape that is known, before anything of that size is made."""
    if not shape:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise TypeError(f"{str(value)[:40]!r} is not a number")
    elif len(_list(value)) != shape[0]:
        raise ValueError(f"a list has {len(value)} items, not {shape[0]}")
    else:
        rows = [_array(item, *shape[1:]) for item in value]
        return np.stack(rows) if rows else np.zeros(shape)
    number = np.asarray(value, dtype=np.float64)
    if not np.isfinite(number):
        raise ValueError("a number is not finite")
    return number


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{str(value)[:40]!r} is not a list")
    return value


def _index(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise ValueError(f"{str(value)[:40]!r} is not a count")
    return value


def _count(value: Any) -> int:
    if _index(value) < 1:
        raise ValueError("a count is 0")
    return int(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:40]!r} is not a text")
    return value
