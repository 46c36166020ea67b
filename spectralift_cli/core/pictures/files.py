"""Quicklooks of files: of a cube, or of an image of a scene."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from spectralift_cli.core.config import QuicklookConfig
from spectralift_cli.core.cube import Progress, no_progress
from spectralift_cli.core.cubeio import CubeReader
from spectralift_cli.core.errors import OptionError
from spectralift_cli.core.formats import open_cube
from spectralift_cli.core.pictures.rgb import Quicklook, write_quicklook
from spectralift_cli.core.scene import CUBE_ROLES, is_scene, open_scene

DEFAULT_ROLE = "hr_msi"


def quicklook(
    source: str | Path,
    output: str | Path,
    config: QuicklookConfig | None = None,
    *,
    role: str | None = None,
    like: str | Path | None = None,
    world_file: bool = False,
    var: str | None = None,
    axis_order: str | None = None,
    wavelengths: Path | None = None,
    memory_bytes: int | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> tuple[Quicklook, Sequence[Path]]:
    """Draw a cube, or an image of a scene, into a PNG or a GeoTIFF.

    Args:
        source: a cube, or a scene's folder.
        output: ends in .png, .tif or .tiff.
        config: which colours, percentiles, size; None for the defaults.
        role: which image of a scene, one of `CUBE_ROLES`; None for the HR-MSI.
        like: a cube whose mode and stretch (in units) are taken; a scene stands for its HR-MSI.
        world_file: see `write_quicklook`.
        var: how to read a cube, see `open_cube`, like the next two; a scene's images say it.
        axis_order: see `open_cube`.
        wavelengths: see `open_cube`.
        memory_bytes: most memory for a file that cannot be read by rows.
        overwrite: replace an existing picture.
        progress: called with rows done and in all.

    Returns:
        The picture and its files, `output` first.

    Raises:
        OptionError: a role of what is no scene, how to read what is one, or an unknown ending.
        DataError: the scene lacks the role, a file is damaged or cannot be drawn, see `quicklook`
            in `core.pictures.rgb`.
        OutputExistsError: the picture exists and `overwrite` is false.
    """
    source = Path(source)
    if not is_scene(source):
        if role is not None:
            raise OptionError(
                f"--role {role} chooses an image of a scene, and {source} is none",
                "leave it out, or give a scene's folder",
            )
    elif (var, axis_order, wavelengths) != (None, None, None):
        raise OptionError(
            f"{source}: --var, --axis-order and --wavelengths say how to read a cube, and this is "
            "a scene",
            "a scene's files say it themselves: leave them out",
        )
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(
            _open(source, role, memory_bytes, var, axis_order, wavelengths)
        )
        other = None
        if like is not None:
            other = stack.enter_context(_open(Path(like), None, memory_bytes))
        return write_quicklook(
            reader, Path(output), config, like=other, world_file=world_file, overwrite=overwrite,
            progress=progress,
        )  # fmt: skip


def _open(
    path: Path,
    role: str | None,
    memory_bytes: int | None,
    var: str | None = None,
    axis_order: str | None = None,
    wavelengths: Path | None = None,
) -> CubeReader:
    if is_scene(path):
        role = role or DEFAULT_ROLE
        if role not in CUBE_ROLES:
            raise OptionError(
                f"{role!r} is no image of a scene", f"those are {', '.join(CUBE_ROLES)}"
            )
        path = open_scene(path).path(role)
    return open_cube(
        path, var=var, axis_order=axis_order, wavelengths=wavelengths, memory_bytes=memory_bytes,
        allow_2d=True,
    )  # fmt: skip
