"""The scene: a folder with a low-resolution HSI, a sharp MSI and all that relates them.

`scene.json` names the file of each role, the recipe (ratio, scaling, protocol, ...) and what
identifies every file. It is the member that makes a folder a scene; the folder is prepared aside
and moved into place whole.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self, TypeGuard

from spectralift_cli.core.cubeio import CubeReader
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats import open_cube
from spectralift_cli.core.formats.arrays import strict_json
from spectralift_cli.core.identity import identity
from spectralift_cli.core.outputs import Staging

SCHEMA = "spectralift.scene/1"
CUBE_ROLES = ("lr_hsi", "hr_msi", "gt")
REQUIRED_ROLES = ("lr_hsi", "hr_msi", "srf")
_JSON_BYTES = 4 * 2**20
_MAX_RATIO = 1e6


@dataclass(frozen=True, eq=False)
class Scene:
    """An open scene; its files are there, but only `verify` looks into them.

    Args:
        folder: the scene's folder.
        roles: role -> plain file name; `lr_hsi`, `hr_msi`, `srf` always, `gt` and `psf` where known.
        recipe: how it was made, at least `ratio`.
        files: file name -> `identity` of every file of every role.
        provenance: the steps that led to it, or None.
    """

    folder: Path
    roles: Mapping[str, str]
    recipe: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    provenance: Mapping[str, Any] | None = None

    def has(self, role: str) -> bool:
        """Tell whether the scene has a role."""
        return role in self.roles

    def path(self, role: str) -> Path:
        """Return the file of a role.

        Raises:
            DataError: the scene has none.
        """
        if role not in self.roles:
            raise DataError(
                f"{self.folder}: the scene has no {role}, only {', '.join(sorted(self.roles))}",
                "a synthetic scene has a ground truth (gt) and a PSF; others do not",
            )
        return self.folder / self.roles[role]

    def open(self, role: str) -> CubeReader:
        """Open the cube of a role for reading.

        Raises:
            DataError: the scene has none, or the file is damaged.
        """
        if role not in CUBE_ROLES:
            raise ValueError(f"{role} is not a cube, those are {', '.join(CUBE_ROLES)}")
        return open_cube(self.path(role), allow_2d=role == "hr_msi")

    @property
    def ratio(self) -> float:
        """HR pixels to one LR pixel along a side, as asked for; a whole number where synthetic."""
        return float(self.recipe["ratio"])

    @property
    def scaling(self) -> tuple[float, float] | None:
        """The (lo, hi) of the source, in its units, that became 0 and 1; None if it was not scaled."""
        found = self.recipe.get("scaling")
        return None if found is None else (float(found["lo"]), float(found["hi"]))

    @property
    def data_scaled(self) -> bool:
        """Whether the images are in the range [0, 1] already, so that training need not scale."""
        return self.recipe.get("data_scaled", False) is True

    @property
    def psf_includes_footprint(self) -> bool:
        """Whether the PSF holds the LR pixel's footprint, so that one samples after the blur."""
        return self.recipe.get("psf_includes_footprint", False) is True

    def identity(self) -> dict[str, Any]:
        """Return what identifies the scene as an input: its scene.json, which identifies the rest."""
        return identity(self.folder / "scene.json")

    def verify(self) -> None:
        """Compare every file with what scene.json says of it.

        Raises:
            DataError: a file was changed, or scene.json says nothing of it.
        """
        unknown = sorted(set(self.roles.values()) - set(self.files))
        changed = [
            name for name, found in self.files.items() if identity(self.folder / name) != found
        ]
        if unknown or changed:
            raise DataError(
                f"{self.folder}: {len(unknown) + len(changed)} files are not those the scene was "
                f"made of: {', '.join([*unknown, *changed])}",
                "make the scene again",
            )


def is_scene(path: str | Path) -> bool:
    """Tell whether a path is a scene's folder, or the scene.json inside one."""
    path = Path(path)
    return path.name == "scene.json" or (path / "scene.json").is_file()


def open_scene(path: str | Path) -> Scene:
    """Open a scene folder.

    Args:
        path: the folder, or the scene.json inside it.

    Raises:
        DataError: it is no scene, its scene.json is damaged, or a file is missing or lies outside.
    """
    folder = Path(path)
    if folder.name == "scene.json":
        folder = folder.parent
    document = _read_document(folder)
    source = folder / "scene.json"
    roles = _table(document, "roles", source)
    files = _table(document, "files", source)
    recipe = _table(document, "recipe", source)
    missing = [role for role in REQUIRED_ROLES if role not in roles]
    if missing:
        _damaged(source, f"it names no file for {', '.join(missing)}")
    for name in (*roles.values(), *files):
        _check_member(folder, name)
    _check_recipe(recipe, source)
    provenance = document.get("provenance")
    return Scene(folder, roles, recipe, files, provenance if isinstance(provenance, dict) else None)


def create_scene(path: str | Path, *, overwrite: bool = False) -> SceneWriter:
    """Start a scene that appears, whole, when its writer commits.

    Raises:
        OutputExistsError: it exists and `overwrite` is false.
        DataError: the place cannot be written, or holds something that is not ours.
    """
    return SceneWriter(Path(path), overwrite)


class SceneWriter:
    """A scene in the making; see `create_scene`. Use it in a `with`.

    Attributes:
        folder: where to write the files before the commit.
    """

    def __init__(self, path: Path, overwrite: bool) -> None:
        self._stage = Staging(path, overwrite=overwrite)
        self.folder = self._stage.path()
        try:
            if path.exists() and not path.is_dir():
                raise DataError(
                    f"{path}: is a file, a scene is a folder", "choose another name for the scene"
                )
            self.folder.mkdir()
        except BaseException:
            self._stage.abort()
            raise
        self._roles: dict[str, str] = {}
        self._files: dict[str, dict[str, Any]] = {}

    def add(self, role: str, *files: Path) -> None:
        """Record the finished files of a role, all in `folder`, the main one first."""
        self._roles[role] = files[0].name
        for path in files:
            self._files[path.name] = identity(path)

    def commit(
        self, recipe: Mapping[str, Any], provenance: Mapping[str, Any] | None = None
    ) -> Scene:
        """Write scene.json and move the folder into place.

        Args:
            recipe: JSON-ready, with `ratio`.
            provenance: the steps that led to it.

        Raises:
            DataError: the disk is full.
            OutputExistsError: somebody else made the scene meanwhile.
        """
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "roles": self._roles,
            "files": self._files,
            "recipe": dict(recipe),
        }
        if provenance is not None:
            document["provenance"] = dict(provenance)
        text = json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n"
        source = self.folder / "scene.json"
        try:
            with source.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(
                f"{self._stage.key}: cannot be written ({error.strerror})",
                "free some room or choose another folder",
            ) from error
        (folder,) = self._stage.commit()
        return open_scene(folder)

    def abort(self) -> None:
        """Drop what was written; harmless after `commit`."""
        self._stage.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.abort()


def _read_document(folder: Path) -> dict[str, Any]:
    source = folder / "scene.json"
    try:
        if not folder.is_dir():
            raise DataError(
                f"{folder}: " + ("is not a folder" if folder.exists() else "no such scene"),
                "a scene is a folder with a scene.json; spectralift synth makes one",
            )
        if not source.is_file():
            raise DataError(
                f"{folder}: is not a scene, it has no scene.json",
                "spectralift synth makes a scene; loose files are given with --lr-hsi and --hr-msi",
            )
        with source.open("rb") as file:
            text = file.read(_JSON_BYTES + 1)
    except OSError as error:
        raise DataError(
            f"{source}: cannot be read ({error.strerror})", "check its permissions"
        ) from error
    if len(text) > _JSON_BYTES:
        _damaged(source, f"it is larger than {_JSON_BYTES:,} bytes")
    try:
        document = strict_json(text)
    except (ValueError, RecursionError) as error:
        _damaged(source, f"it is not JSON ({error})")
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise DataError(
            f"{source}: its schema is {str(schema)[:60]!r}, this version reads {SCHEMA!r}",
            "make the scene again, or use the version of spectralift that made it",
        )
    return dict(document)


def _damaged(source: Path, what: str) -> NoReturn:
    raise DataError(f"{source}: {what}", "the scene is damaged; make it again")


def _table(document: Mapping[str, Any], key: str, source: Path) -> dict[str, Any]:
    table = document.get(key)
    if not isinstance(table, dict):
        _damaged(source, f"its {key!r} is not a JSON object")
    return table


def _check_member(folder: Path, name: object) -> None:
    """Refuse names that lead out of the folder, by their text or through links."""
    source = folder / "scene.json"
    plain = isinstance(name, str) and name == Path(name).name and name.isprintable()
    if not plain or not name or "\\" in str(name) or str(name).startswith("."):
        _damaged(source, f"{str(name)[:80]!r} is not the plain name of a file in the scene")
    member = folder / str(name)
    try:
        there = member.exists()
        inside = there and member.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:  # a name too long; a loop of links
        _damaged(source, f"{str(name)[:80]!r} cannot be opened ({error})")
    if not there:
        raise DataError(f"{folder}: the scene's file {name} is missing", "make the scene again")
    if not inside:
        _damaged(source, f"{name} is a link that leads out of the scene")


def _check_recipe(recipe: Mapping[str, Any], source: Path) -> None:
    ratio = recipe.get("ratio")
    if not _is_number(ratio) or not 1 <= ratio <= _MAX_RATIO:
        _damaged(source, f"its ratio is {str(ratio)[:60]}, not a number from 1 to {_MAX_RATIO:g}")
    scaling = recipe.get("scaling")
    if scaling is None:
        return
    lo, hi = (scaling.get("lo"), scaling.get("hi")) if isinstance(scaling, dict) else (None, None)
    if not (_is_number(lo) and _is_number(hi)) or not lo < hi:
        _damaged(source, f"its scaling is {str(scaling)[:80]}, not lo < hi")


def _is_number(value: object) -> TypeGuard[float]:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of more than 308 digits
        return False
