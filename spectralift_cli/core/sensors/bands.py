"""Which of a sensor's bands an image holds: those asked for, else by names, wavelengths or number."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

from spectralift_cli.core.cube import CubeMeta
from spectralift_cli.core.errors import DataError, SpectraliftWarning
from spectralift_cli.core.sensors import SENSORS
from spectralift_cli.core.sensors.curve import Curve, sensor_curves

# `B2`, `B02`, `Band 2`, `SR_B2`, `T33UUU_B8A_10m`, `B4, central wavelength 665 nm`
_NUMBERED = re.compile(r"(?<![a-z0-9])b(?:and)?[\s_.-]*0*(\d{1,2}[a-z]?)(?![a-z0-9])")
# what programs call bands that have no name: where these count from 1 to the number of bands, they
# count the file's bands, not the sensor's; a bare B may mean either
_COUNTED = re.compile(r"(?:b|band|layer|lyr|channel)[\s_.-]*0*(\d{1,4})")
# how far an image's own band centre may lie outside the half maximum of the response meant for it
_CENTRE_SLACK_NM = 15.0


def sensor_bands(
    name: str, wanted: Sequence[str], msi: CubeMeta | None, source: object = "the MSI"
) -> tuple[Curve, ...]:
    """Return the responses of a sensor's bands, in the order of an image's.

    Args:
        name: in `SENSORS`.
        wanted: the image's bands, in its order; () to find them: by the image's band names if each
            names a band of the sensor, else by its wavelengths if each lies in one, else all of the
            sensor's if the image has as many. Without an image, all of them.
        msi: metadata of the image, or None.
        source: its file, for messages.

    Raises:
        DataError: a band that the sensor does not have, or one asked for twice; an image with
            another number of bands, or with names or wavelengths of other bands or another order;
            or nothing tells which bands it has.
    """
    curves = sensor_curves(SENSORS[name])
    named = None if msi is None else _by_names(name, curves, msi)
    counting = msi is not None and _count_only(msi)
    if wanted:
        chosen = _asked_for(name, curves, wanted)
        if named is not None and named != chosen and not counting:
            raise DataError(
                f"{source}: its bands are called {_names(curves, named)}, not "
                f"{_names(curves, chosen)} as asked for",
                f"leave the list out, --sensor {name}, or name them in the file's order",
            )
    elif named is not None:
        chosen = named
        if counting and len(chosen) < len(curves):
            warnings.warn(
                f"{source}: its bands are called B1 to B{len(chosen)}, which may only count them; "
                f"they are taken for these of {name}, --sensor {name}:BAND,BAND,... names others",
                SpectraliftWarning,
                stacklevel=2,
            )
    else:
        found = None if msi is None else _by_wavelengths(curves, msi)
        chosen = found if found is not None else tuple(range(len(curves)))
    if msi is not None:
        _check(name, curves, chosen, msi, source)
    return tuple(curves[i] for i in chosen)


def _count_only(msi: CubeMeta) -> bool:
    """Tell whether an image's band names are a word and a number that counts from 1."""
    names = [_COUNTED.fullmatch(each.strip().lower()) for each in msi.band_names or ()]
    return [match and int(match[1]) for match in names] == list(range(1, msi.bands + 1))


def _asked_for(name: str, curves: Sequence[Curve], wanted: Sequence[str]) -> tuple[int, ...]:
    known = _words(name, curves)
    for word in wanted:
        if _word(word) not in known:
            raise DataError(
                f"{name} has no band {word[:40]!r}",
                f"it has {', '.join(curve.name for curve in curves)}",
            )
    chosen = tuple(known[_word(word)] for word in wanted)
    if len(set(chosen)) != len(chosen):
        raise DataError(
            f"{name}:{','.join(wanted)[:60]} names a band twice", "name each band of the image once"
        )
    return chosen


def _by_names(name: str, curves: Sequence[Curve], msi: CubeMeta) -> tuple[int, ...] | None:
    if msi.band_names is None:
        return None
    if _count_only(msi) and msi.band_names[0].strip().lower()[1:2].isalpha():  # Band 1, layer 1
        return None
    known = _words(name, curves)
    found = [known.get(_word(each)) for each in msi.band_names]
    chosen = tuple(i for i in found if i is not None)
    return chosen if len(set(chosen)) == msi.bands else None


def _by_wavelengths(curves: Sequence[Curve], msi: CubeMeta) -> tuple[int, ...] | None:
    """Return the band whose centre is nearest to each of the image's, if it lies in its FWHM."""
    if msi.wavelengths_nm is None:
        return None
    chosen = []
    for nm in msi.wavelengths_nm:
        nearest = min(range(len(curves)), key=lambda i: abs(curves[i].centre_nm - nm))
        low, high = curves[nearest].half_maximum_nm
        if not low <= nm <= high:
            return None
        chosen.append(nearest)
    return tuple(chosen) if len(set(chosen)) == msi.bands else None


def _check(
    name: str, curves: Sequence[Curve], chosen: tuple[int, ...], msi: CubeMeta, source: object
) -> None:
    if len(chosen) != msi.bands:
        example = ",".join(curve.name for curve in curves[: msi.bands])
        remedy = f"say which of them it has, in its order, for example --sensor {name}:{example}"
        if msi.bands > len(chosen):
            remedy = "leave out what is not of this sensor: convert --bands"
        raise DataError(
            f"{source}: has {msi.bands} bands, {len(chosen)} are expected of {name}: "
            f"{_names(curves, chosen)}",
            remedy,
        )
    if msi.wavelengths_nm is None:
        return
    for position, (nm, i) in enumerate(zip(msi.wavelengths_nm, chosen, strict=True), 1):
        low, high = curves[i].half_maximum_nm
        if not low - _CENTRE_SLACK_NM <= nm <= high + _CENTRE_SLACK_NM:
            raise DataError(
                f"{source}: band {position} is at {nm:.4g} nm, {curves[i].name} of {name} covers "
                f"{low:.4g} to {high:.4g} nm; expected are {_names(curves, chosen)}",
                f"name the bands in the image's order: --sensor {name}:BAND,BAND,...",
            )


def _words(name: str, curves: Sequence[Curve]) -> dict[str, int]:
    """Return what each band may be called, as `_word` writes it."""
    names = {curve.name: i for i, curve in enumerate(curves)}
    known = {_word(each): i for each, i in names.items()}
    for common, each in SENSORS[name].common.items():
        known.setdefault(common, names[each])
    if not any(_NUMBERED.search(each.lower()) for each in names):
        for i in range(len(curves)):  # bands with words for names are numbered in their order, too
            known.setdefault(f"b{i + 1}", i)
    return known


def _word(text: str) -> str:
    """Return how a band's name is compared: `b8a` if it has a number, else its letters and digits."""
    numbered = set(_NUMBERED.findall(text.lower()))
    if len(numbered) == 1:
        return f"b{numbered.pop()}"
    return re.sub(r"[^a-z0-9]+", "", text.lower())


def _names(curves: Sequence[Curve], chosen: Sequence[int]) -> str:
    return ", ".join(curves[i].name for i in chosen)
