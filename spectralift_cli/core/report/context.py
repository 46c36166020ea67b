"""What all sections look at: the images' metadata, one pass over their values, chosen points."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from spectralift_cli.core.config import ReportConfig
from spectralift_cli.core.cube import BoolArray, CubeMeta, FloatArray, Progress, to_units
from spectralift_cli.core.cubeio import CubeReader
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.pairs import scene_placement
from spectralift_cli.core.placement import Placement, place
from spectralift_cli.core.radiometry import Radiometry
from spectralift_cli.core.report.lattice import Lattice
from spectralift_cli.core.report.material import IMAGES, Material
from spectralift_cli.core.report.points import Point, choose_points
from spectralift_cli.core.report.survey import (
    Composite,
    FloatBlock,
    Stretch,
    Survey,
    band_centres,
    composites,
    survey,
)

# the images of the sharp grid, the MSI first: it decides the grid where there is one
_SHARP = ("hr_msi", "result", "gt")


@dataclass(frozen=True)
class Spectra:
    """What each image holds at a point.

    Args:
        point: the pixel.
        values: role -> (bands,) units, NaN in holes; `hr_msi` has its own bands.
        lr_pixel: (row, col) of the LR-HSI's pixel that holds the point, or None.
    """

    point: Point
    values: dict[str, FloatBlock]
    lr_pixel: tuple[int, int] | None


@dataclass(eq=False)
class Context:
    """All that the sections draw on.

    Args:
        material: what was found.
        config: the report's options.
        metas: role -> metadata of the image.
        layouts: role -> format of the file.
        placement: of the LR grid on the HR grid; None where it is not known.
        composites: how the images are shown; empty without a response.
        stretches: key of a composite -> the one stretch of all its pictures.
        stretched_by: key of a composite -> role of the image that the stretch is made of.
        surveys: grid ("lr", "hr") -> what was gathered there.
        points: the chosen pixels.
        spectra: of them.
    """

    material: Material
    config: ReportConfig
    metas: dict[str, CubeMeta] = field(default_factory=dict)
    layouts: dict[str, str] = field(default_factory=dict)
    placement: Placement | None = None
    composites: list[Composite] = field(default_factory=list)
    stretches: dict[str, Stretch] = field(default_factory=dict)
    stretched_by: dict[str, str] = field(default_factory=dict)
    surveys: dict[str, Survey] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    spectra: list[Spectra] = field(default_factory=list)

    @property
    def hsi(self) -> CubeMeta | None:
        """Metadata of the hyperspectral bands: the LR-HSI's, else the result's."""
        found = [self.metas[role] for role in ("lr_hsi", "result", "gt") if role in self.metas]
        return found[0] if found else None

    @property
    def wavelengths_nm(self) -> FloatArray | None:
        """(B,) band centres of the hyperspectral bands, or None."""
        return None if self.hsi is None else self.hsi.wavelengths_nm

    @property
    def radiometry(self) -> Radiometry | None:
        """What brings the HR-MSI into the LR-HSI's: of the estimate, else of the model, or None."""
        estimate, checkpoint = self.material.estimate, self.material.checkpoint
        if estimate is not None:
            return estimate.radiometry
        return None if checkpoint is None else checkpoint.radiometry

    def in_lr_units(self, msi: FloatBlock) -> FloatBlock:
        """Return (..., M) values of the HR-MSI beside which those of the other images can be put."""
        found = self.radiometry
        return msi if found is None else np.asarray(found.apply(msi))

    @property
    def bad_bands(self) -> BoolArray | None:
        """(B,) bands that are flagged, or None."""
        return None if self.hsi is None else self.hsi.bad_bands


def look(material: Material, config: ReportConfig, progress: Progress) -> Context:
    """Read what the page needs of the images, decimated, by blocks of rows.

    Raises:
        DataError: there is no image at all, images do not fit each other, or a file is damaged.
    """
    context = Context(material, config)
    with ExitStack() as stack:
        readers = {
            role: stack.enter_context(material.images[role].open())
            for role in IMAGES
            if role in material.images
        }
        if not readers:
            raise DataError(
                f"{material.folder}: none of its images can be read",
                "run the command in the folder that the run was started in",
            )
        context.metas = {role: reader.meta for role, reader in readers.items()}
        context.layouts = {role: reader.format_name for role, reader in readers.items()}
        _check_shapes(context)
        context.placement = _placement(context)
        if material.srf is not None:
            context.composites = composites(material.srf, context.wavelengths_nm, context.bad_bands)
        _look(context, readers, progress)
    return context


def _check_shapes(context: Context) -> None:
    metas = context.metas
    shown = context.material
    sharp = [role for role in _SHARP if role in metas]
    for role in sharp[1:]:
        if metas[role].shape[:2] != metas[sharp[0]].shape[:2]:
            raise DataError(
                f"{shown.images[role].path}: has {_by(metas[role].shape[:2])} pixels, "
                f"{shown.images[sharp[0]].path} has {_by(metas[sharp[0]].shape[:2])}",
                "give a result on the grid of the HR-MSI",
            )
    spectral = [role for role in ("lr_hsi", "result", "gt") if role in metas]
    for role in spectral[1:]:
        if metas[role].bands != metas[spectral[0]].bands:
            raise DataError(
                f"{shown.images[role].path}: has {metas[role].bands} bands, "
                f"{shown.images[spectral[0]].path} has {metas[spectral[0]].bands}",
                "give a result with the bands of the LR-HSI",
            )
    if shown.srf is None:
        return
    sides = [("hr_msi", shown.srf.num_msi_bands)]
    sides += [(role, shown.srf.num_hsi_bands) for role in spectral[:1]]
    for role, bands in sides:
        if role in metas and metas[role].bands != bands:
            raise DataError(
                f"{shown.images[role].path}: has {metas[role].bands} bands, the spectral response "
                f"has {bands}",
                "give the images that the response was made for",
            )


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _placement(context: Context) -> Placement | None:
    """Return where LR pixels lie on the HR grid; what hinders it becomes a warning."""
    found, metas = context.material, context.metas
    if "lr_hsi" not in metas or "hr_msi" not in metas or not found.same_ground:
        return None
    lr, hr = metas["lr_hsi"], metas["hr_msi"]
    paths = found.images["lr_hsi"].path, found.images["hr_msi"].path
    try:
        if found.scene is not None and paths[1] == found.scene.path("hr_msi"):
            return scene_placement(found.scene, lr, hr)
        return place(lr, hr, sources=(paths[0].name, paths[1].name))
    except DataError as error:
        found.warn(f"LR-HSI spectra are not shown beside the others: {error.message}")
        return None


def _look(context: Context, readers: dict[str, CubeReader], progress: Progress) -> None:
    most = context.config.image_size
    steps = 2 if "lr_hsi" in readers else 1

    def part(number: int) -> Progress:
        return lambda done, total: progress(number * total + done, steps * total)

    shown = context.composites
    if "lr_hsi" in readers:
        meta = context.metas["lr_hsi"]
        lattice = Lattice.of(meta.shape[:2], most)
        context.surveys["lr"] = survey({"lr_hsi": readers["lr_hsi"]}, shown, lattice, part(0))
    sharp = next((role for role in _SHARP if role in readers), None)
    if sharp is None:
        return
    lattice = Lattice.of(context.metas[sharp].shape[:2], most)
    cubes = {role: reader for role, reader in readers.items() if role in ("result", "gt")}
    found = survey(cubes, shown, lattice, part(steps - 1))
    context.surveys["hr"] = found
    if "hr_msi" in readers:
        meta = readers["hr_msi"].meta
        parts = [to_units(blocks[0], meta) for _, blocks in lattice.blocks(readers["hr_msi"])]
        msi = context.in_lr_units(np.concatenate(parts))
        found.channels["hr_msi"] = {
            one.key: one.of_msi(msi) for one in shown if one.msi is not None
        }
        if found.holes is not None:
            found.holes["hr_msi"] = float((~np.isfinite(msi)).all(axis=2).mean())
        context.points = _points(context, msi, found)
    _stretch(context)
    context.spectra = [_spectra(context, readers, point) for point in context.points]


def _stretch(context: Context) -> None:
    """Find one stretch for all pictures of a composite: of the MSI, else of the LR-HSI, ..."""
    pictures = [context.surveys[grid].channels for grid in ("hr", "lr") if grid in context.surveys]
    for one in context.composites:
        for role in ("hr_msi", "lr_hsi", "result", "gt"):
            held = [roles[role][one.key] for roles in pictures if one.key in roles.get(role, {})]
            if held:
                context.stretches[one.key] = Stretch.of(held[0])
                context.stretched_by[one.key] = role
                break


def _points(context: Context, msi: FloatBlock, found: Survey) -> list[Point]:
    usable = np.ones(msi.shape[:2], bool)
    for role, channels in found.channels.items():
        if role != "hr_msi" and "seen" in channels:
            usable &= np.isfinite(channels["seen"]).all(axis=2)
    srf, wavelengths_nm = context.material.srf, context.wavelengths_nm
    known = srf is not None and wavelengths_nm is not None
    centres_nm = band_centres(srf, wavelengths_nm) if known else None  # type: ignore[arg-type]  # both are there
    usable &= _inside(context, found.lattice)
    return choose_points(
        msi, usable, found.lattice, centres_nm=centres_nm, rmse=found.rmse,
        most=context.config.points,
    )  # fmt: skip


def _inside(context: Context, lattice: Lattice) -> BoolArray:
    """Tell which pixels of the lattice lie on the LR-HSI, where it is known where that lies."""
    if context.placement is None:
        return np.ones((len(lattice.rows), len(lattice.cols)), bool)
    rows, cols = context.placement.overlap_hr()
    down = (lattice.rows >= rows.start) & (lattice.rows < rows.stop)
    across = (lattice.cols >= cols.start) & (lattice.cols < cols.stop)
    inside: BoolArray = np.logical_and.outer(down, across)
    return inside


def _spectra(context: Context, readers: dict[str, CubeReader], point: Point) -> Spectra:
    values: dict[str, FloatBlock] = {}
    for role in _SHARP:
        if role in readers:
            line = readers[role].read_units(slice(point.row, point.row + 1))
            values[role] = line[0, point.col].copy()
    if "hr_msi" in values:
        values["hr_msi"] = context.in_lr_units(values["hr_msi"])
    lr_pixel = None
    if context.placement is not None:
        rows, cols = context.placement.lr_positions()
        row, col = _index(rows, point.row), _index(cols, point.col)
        shape = context.placement.lr_shape
        if 0 <= row < shape[0] and 0 <= col < shape[1]:
            lr_pixel = row, col
            line = readers["lr_hsi"].read_units(slice(row, row + 1))
            values["lr_hsi"] = line[0, col].copy()
    return Spectra(point, values, lr_pixel)


def _index(positions: FloatArray, at: int) -> int:
    return int(np.floor(positions[at]))
