"""From a network's scaled spectra to what the sharp cube stores: units, clipping, integer rules."""

from __future__ import annotations

import dataclasses
import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectralift_cli.core.checkpoint import Checkpoint
from spectralift_cli.core.cube import STORED_DTYPES, AnyArray, BoolArray, CubeMeta
from spectralift_cli.core.errors import DataError, OptionError, SpectraliftWarning
from spectralift_cli.core.given import Storage

_FEW_COUNTS = 100


def output_meta(
    checkpoint: Checkpoint,
    msi: CubeMeta,
    stored: Storage,
    *,
    drop_bad_bands: bool = False,
) -> CubeMeta:
    """Return the metadata of the sharp cube; see `Storage` and `infer` for the rules.

    Raises:
        DataError: the type is not a cube's, or it cannot hold the nodata value.
        OptionError: scale, offset or nodata given for a floating output, which is in units and NaN.
    """
    hsi = checkpoint.hsi
    used = checkpoint.used_bands
    if drop_bad_bands:
        hsi, used = hsi.select_bands(np.flatnonzero(used)), used[used]
    default = hsi.dtype if hsi.dtype.kind in "iu" else np.dtype(np.float32)
    chosen = default if stored.dtype is None else _stored_dtype(stored.dtype)
    fields: dict[str, Any] = {}
    if chosen.kind == "f":
        if stored.numbers:
            raise OptionError(
                f"scale, offset and nodata do not apply to {chosen.name} output, which is in units "
                "with NaN in holes",
                "leave them out, or choose an integer --dtype",
            )
        fields = {"scale": 1.0, "offset": 0.0, "nodata": math.nan}
    else:
        fields["scale"] = hsi.scale if stored.scale is None else stored.scale
        fields["offset"] = hsi.offset if stored.offset is None else stored.offset
        fields["nodata"] = _integer_nodata(hsi, bool(used.all()), msi, chosen, stored.nodata)
        if chosen != hsi.dtype and stored.scale is None:
            _warn_if_coarse(checkpoint, chosen)
    return CubeMeta(
        shape=(msi.rows, msi.cols, hsi.bands),
        dtype=chosen,
        wavelengths_nm=hsi.wavelengths_nm,
        fwhm_nm=hsi.fwhm_nm,
        bad_bands=hsi.bad_bands,
        band_names=hsi.band_names,
        crs=msi.crs,
        transform=msi.transform,
        **fields,
    )


def _stored_dtype(dtype: Any) -> np.dtype[Any]:
    try:
        chosen: np.dtype[Any] | None = np.dtype(dtype)
    except TypeError:
        chosen = None
    if chosen is None or chosen.name not in STORED_DTYPES:
        raise DataError(
            f"{dtype} is not a type a cube is stored in", f"choose from {', '.join(STORED_DTYPES)}"
        )
    return chosen


def _integer_nodata(
    hsi: CubeMeta, all_used: bool, msi: CubeMeta, dtype: np.dtype[Any], nodata: float | None
) -> float | int | None:
    """Return the mark of holes: as given, as in the LR-HSI, or where holes may come the type's end."""
    if nodata is not None:
        return nodata
    info = np.iinfo(dtype)
    known = hsi.nodata
    if known is not None and info.min <= known <= info.max and known == int(known):
        return int(known)
    may_have_holes = msi.nodata is not None or msi.dtype.kind == "f"
    if known is None and all_used and not may_have_holes:
        return None
    return int(info.max if info.min == 0 else info.min)


def _warn_if_coarse(checkpoint: Checkpoint, dtype: np.dtype[Any]) -> None:
    span = checkpoint.scaling.hi - checkpoint.scaling.lo
    counts = span / float(np.abs(checkpoint.hsi.scale).max())
    if counts < _FEW_COUNTS:
        warnings.warn(
            f"the LR-HSI's values span {span:.3g} units, which is {counts:.3g} counts of "
            f"{dtype.name} at its scale; give --scale for finer steps",
            SpectraliftWarning,
            stacklevel=4,
        )


@dataclass(frozen=True)
class Moved:
    """What became of values on their way into the output.

    Args:
        clipped: values that the clip range moved.
        saturated: values that the type's range moved.
        on_nodata: whether some may equal nodata.
    """

    clipped: int
    saturated: int
    on_nodata: bool


@dataclass(frozen=True, eq=False)
class OutputRange:
    """The map from scaled spectra to stored values, and the ranges these must keep to.

    stored = gain x' + shift, then clipped, rounded for integers, and brought into the type's range.

    Args:
        gain: () or (used bands,) float32.
        shift: likewise.
        clip: lowest and highest stored value of the clip range, each () or (used bands,), or None.
        limits: lowest and highest value of the stored type as float32, or None for none.
        rounds: whether to round to nearest.
        nodata: of an integer output, or None.
    """

    gain: Tensor
    shift: Tensor
    clip: tuple[Tensor, Tensor] | None
    limits: tuple[Tensor, Tensor] | None
    rounds: bool
    nodata: int | None

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        meta: CubeMeta,
        rule: str,
        clip_range: tuple[float, float] | None,
    ) -> OutputRange:
        """Return the map for a checkpoint's spectra into an output.

        Args:
            checkpoint: whose scaling is undone.
            meta: of the output.
            rule: `InferConfig.clip`.
            clip_range: its explicit range in units, or None.
        """
        used = checkpoint.used_bands
        if meta.bands != used.size:  # the others are dropped
            used = used[used]
        lo, hi = checkpoint.scaling.lo, checkpoint.scaling.hi
        # both maps in one, in float64: undoing them in turn in float32 would lose an offset's digits
        scale = _of_bands(meta.scale, used)
        offset = _of_bands(meta.offset, used)
        clip_units = checkpoint.auto_clip if rule == "auto" else clip_range
        clip = None
        if clip_units is not None:
            ends = [(np.float64(end) - offset) / scale for end in clip_units]
            clip = (_float32(np.minimum(*ends)), _float32(np.maximum(*ends)))
        limits = _type_limits(meta.dtype)
        return cls(
            gain=_float32((hi - lo) / scale),
            shift=_float32((lo - offset) / scale),
            clip=clip,
            limits=None if limits is None else (_float32(limits[0]), _float32(limits[1])),
            rounds=meta.dtype.kind != "f",
            nodata=None if meta.dtype.kind == "f" or meta.nodata is None else int(meta.nodata),
        )

    def on(self, device: torch.device) -> OutputRange:
        """Return the same map with its tensors on a device."""

        def move(pair: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
            return None if pair is None else (pair[0].to(device), pair[1].to(device))

        return dataclasses.replace(
            self,
            gain=self.gain.to(device),
            shift=self.shift.to(device),
            clip=move(self.clip),
            limits=move(self.limits),
        )

    def apply(self, spectra: Tensor, valid: Tensor | None) -> Moved:
        """Turn scaled spectra into stored values, in place.

        Args:
            spectra: (n, used bands) float32.
            valid: (n,) which pixels count, or None for all.

        Raises:
            DataError: a value is not finite.
        """
        if self.gain.ndim:
            torch.addcmul(self.shift, spectra, self.gain, out=spectra)
        else:  # the same bits in a quarter of the time
            torch.add(self.shift, spectra, alpha=float(self.gain), out=spectra)
        ends = _ends(spectra)  # rounding and clamping keep the order: found once, they are known on
        if not math.isfinite(ends[0]) or not math.isfinite(ends[1]):
            raise DataError(
                "the network gives values that are not finite",
                "look for absurd values in the MSI, and whether its units are the LR-HSI's",
            )
        clipped, ends = _clamp(spectra, self.clip, valid, ends)
        if self.rounds:
            spectra.round_()
            ends = float(np.rint(ends[0])), float(np.rint(ends[1]))
        saturated, ends = _clamp(spectra, self.limits, valid, ends)
        on_nodata = self.nodata is not None and ends[0] <= self.nodata <= ends[1]
        return Moved(clipped, saturated, on_nodata)

    def keep_off_nodata(
        self, stored: AnyArray, used: BoolArray, holes: BoolArray, counted: BoolArray
    ) -> int:
        """Move valid values that equal nodata by one count, in place; return how many that count.

        They move up, or down where nodata is the type's highest value or ends the clip range.

        Args:
            stored: (n, B) of the output's type.
            used: (B,) bands that hold values.
            holes: (n,) pixels that do not.
            counted: (n,) pixels whose values count.
        """
        if self.nodata is None:
            return 0
        hit = stored == self.nodata
        if not hit.any():
            return 0
        hit &= used
        hit[holes] = False
        top = np.iinfo(stored.dtype).max
        if self.clip is not None:
            top = min(top, math.floor(float(self.clip[1].max())))
        stored[hit] = self.nodata - 1 if self.nodata >= top else self.nodata + 1
        return int(hit[counted].sum())


def _ends(spectra: Tensor) -> tuple[float, float]:
    """Return the lowest and the highest value, NaN where one is."""
    if spectra.device.type == "cpu":  # where each is vectorised, and both at once are not
        return float(spectra.amin()), float(spectra.amax())
    low, high = torch.aminmax(spectra)
    return float(low), float(high)


def _clamp(
    spectra: Tensor,
    limits: tuple[Tensor, Tensor] | None,
    valid: Tensor | None,
    ends: tuple[float, float],
) -> tuple[int, tuple[float, float]]:
    """Bring values into limits, in place; return how many moved, and the values' new ends.

    Args:
        spectra: (n, used bands).
        limits: lowest and highest value, each () or (used bands,), or None.
        valid: (n,) which pixels count, or None for all.
        ends: nothing is below the first or above the second.
    """
    if limits is None or (ends[0] >= float(limits[0].max()) and ends[1] <= float(limits[1].min())):
        return 0, ends  # the usual case
    outside = (spectra < limits[0]) | (spectra > limits[1])
    if valid is not None:
        outside &= valid[:, None]
    spectra.clamp_(*limits)
    low, high = (torch.clamp(torch.full_like(limits[0], end), *limits) for end in ends)
    return int(outside.sum()), (float(low.min()), float(high.max()))


def _of_bands(value: Any, used: BoolArray) -> Any:
    array = np.asarray(value, dtype=np.float64)
    return array[used] if array.ndim else array


def _float32(value: Any) -> Tensor:
    return torch.tensor(np.asarray(value, dtype=np.float64), dtype=torch.float32)


def _type_limits(dtype: np.dtype[Any]) -> tuple[float, float] | None:
    """Return the ends of a type's range as float32 can hold them: never beyond the true ones."""
    if dtype.kind == "f":
        return None if dtype.itemsize > 2 else (-65504.0, 65504.0)
    info = np.iinfo(dtype)
    high = np.float32(info.max)
    if int(high) > info.max:
        high = np.nextafter(high, np.float32(0))
    return float(info.min), float(high)
