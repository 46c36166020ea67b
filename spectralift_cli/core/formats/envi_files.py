"""Which ENVI header and which data file belong together; nothing is guessed between two.

The header of `x.img` is `x.img.hdr` or `x.hdr`. The data of `x.hdr` is `x` or `x` with one of the
usual suffixes; of several, the one whose suffix is the header's interleave.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from spectralift_cli.core.errors import DataError, OutputExistsError, SpectraliftWarning
from spectralift_cli.core.formats.envi_header import read_envi_header

_HEADER = ".hdr"
_SUFFIXES = (".img", ".dat", ".raw", ".bin", ".bsq", ".bil", ".bip", ".hyspex", ".envi")
# GDAL's and ENVI's side files (statistics, georeference, pyramids, masks) of a data file
_SIDE_SUFFIXES = (".aux.xml", ".ovr", ".msk", ".enp")


def is_header(path: Path) -> bool:
    """Tell whether a path is named as a header."""
    return path.name.lower().endswith(_HEADER)


def find_header(data: Path) -> Path:
    """Return the header of a data file.

    Raises:
        DataError: there is none.
    """
    found = _existing([data.with_name(data.name + _HEADER), data.with_suffix(_HEADER)])
    if not found:
        with data.open("rb") as file:
            is_text = file.read(5) in (b"ENVI\n", b"ENVI\r", b"ENVI ")
        if is_text:
            raise DataError(
                f"{data}: is an ENVI header without the ending .hdr", "rename it to end in .hdr"
            )
        raise DataError(
            f"{data}: has no ENVI header, neither {data.name}{_HEADER} nor "
            f"{data.with_suffix(_HEADER).name} is there",
            "put the header beside it",
        )
    if len(found) > 1:
        warnings.warn(
            f"{data}: has two headers; {found[0].name} is read, {found[1].name} is not",
            SpectraliftWarning,
            stacklevel=3,
        )
    return found[0]


def find_data(header: Path, interleave: str) -> Path:
    """Return the data file of a header.

    Args:
        header: the header's path, ending in .hdr.
        interleave: the header's, lower case.

    Raises:
        DataError: there is none, or several and none is named by the interleave.
    """
    found = _candidates(header)
    chosen = found if len(found) == 1 else _named_by(found, interleave)
    if len(chosen) == 1:
        return chosen[0]
    base = header.name[: -len(_HEADER)]
    if found:
        names = ", ".join(p.name for p in found)
        raise DataError(
            f"{header}: {len(found)} files could be its data: {names}",
            "name the data file itself instead of the header, or move the others away",
        )
    raise DataError(
        f"{header}: there is no data file beside it",
        f"it should be called {base} or {base}.img, .dat, .raw, .bsq, .bil or .bip",
    )


def check_own_data(data: Path, header: Path, interleave: str) -> None:
    """Check that a header found by a data file's name does not rather describe its neighbour.

    Raises:
        DataError: x.bil was named, but x.hdr is of interleave bsq and x.bsq is there.
    """
    if header.name.lower() == (data.name + _HEADER).lower():
        return
    chosen = _named_by(_candidates(header), interleave)
    if len(chosen) == 1 and not chosen[0].samefile(data):
        raise DataError(
            f"{data}: {header.name} has interleave {interleave} and describes {chosen[0].name}",
            f"give {data.name} a header of its own, {data.name}{_HEADER}",
        )


def output_pair(path: Path) -> tuple[Path, Path]:
    """Return the header and the data file to write for either's name.

    Raises:
        DataError: the name has nothing before its suffix.
    """
    if not path.suffix:
        raise DataError(f"{path}: an ENVI file needs a name before its suffix", "choose a name")
    if not is_header(path):
        return path.with_suffix(_HEADER), path
    base = path.name[: -len(_HEADER)]
    if base.lower().endswith(_SUFFIXES):  # x.img.hdr
        return path, path.with_name(base)
    return path, path.with_name(base + ".img")


def displaced_files(header: Path, data: Path, overwrite: bool) -> list[Path]:
    """Return the older files that go when a pair is written, since they would mislead its readers.

    These are side files of the data file; and, when overwriting, a second header of the data file
    and the data file under another name that belonged to the old header.

    Raises:
        OutputExistsError: there is a second header and `overwrite` is false.
        DataError: a file that is not ours to remove would pass for the data of the new header.
    """
    old: list[Path] = []
    for other in _existing([data.with_name(data.name + _HEADER), data.with_suffix(_HEADER)]):
        if other.name == header.name:
            continue
        if not overwrite:
            raise OutputExistsError(
                f"{other}: exists already and would be read as the header of {data.name}",
                "--overwrite replaces it",
            )
        if other.name.lower() != (data.name + _HEADER).lower() and _old_data(other) != data:
            raise DataError(
                f"{other}: is the header of another file, yet would be read as {data.name}'s",
                "choose another name for the output",
            )
        old.append(other)
    rivals = [p for p in _candidates(header, ignore=data) if p.name != data.name]
    replaced = _old_data(header) if overwrite and rivals else None
    for rival in rivals:
        if replaced is None or not rival.samefile(replaced):
            raise DataError(
                f"{rival}: lies beside and would pass for the data of {header.name}",
                "choose another name for the output, or move that file away",
            )
        old.append(rival)
    sides = [p.with_name(p.name + s) for p in (data, *old) for s in _SIDE_SUFFIXES]
    return [*old, *sides]


def _old_data(header: Path) -> Path | None:
    try:
        interleave = read_envi_header(header).text("interleave") or ""
        return find_data(header, interleave.lower())
    except (DataError, OSError):  # what is there makes no pair
        return None


def _candidates(header: Path, ignore: Path | None = None) -> list[Path]:
    """Return the files that could be a header's data; the one of x.img.hdr is x.img alone."""
    base = header.name[: -len(_HEADER)]
    if not base:
        return []
    plain = header.with_name(base)
    if base.lower().endswith(_SUFFIXES) and (plain == ignore or plain.is_file()):
        return [plain]
    return _existing([plain, *(header.with_name(base + s) for s in _SUFFIXES)])


def _named_by(files: list[Path], interleave: str) -> list[Path]:
    return [p for p in files if p.suffix.lower() == f".{interleave}"]


def _existing(paths: list[Path]) -> list[Path]:
    """Return the files among paths, each suffix also in capitals; a file under two names once."""
    found: dict[tuple[int, int], Path] = {}
    for path in paths:
        for variant in (path, path.with_suffix(path.suffix.upper())):
            if variant.is_file():
                there = variant.stat()
                found.setdefault((there.st_dev, there.st_ino), variant)
    return list(found.values())
