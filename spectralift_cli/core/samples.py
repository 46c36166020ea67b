"""Sample cubes: a real scene from an installed package, and a synthetic one made on the spot."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spectralift_cli.core.cube import Cube, FloatArray, check_window
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats import read_cube, write_cube
from spectralift_cli.core.identity import provenance

# AVIRIS has 220 bands here; the corrected scene leaves out 104-108, 150-163 and 220 (1-based),
# which water absorbs (Baumgardner, Biehl and Landgrebe 2015, doi 10.4231/R7RX991C)
_AVIRIS_BANDS = 220
_REMOVED = (*range(104, 109), *range(150, 164), 220)


@dataclass(frozen=True)
class Sample:
    """One sample cube: its name and a line about it."""

    name: str
    help: str


SAMPLES = (
    Sample("indian-pines", "AVIRIS 1992, 145 x 145 x 200 uint16, from the package tensorly"),
    Sample("synthetic", "mixed smooth spectra with spatial structure, any size, no download"),
)


def indian_pines() -> Cube:
    """Return Indian Pines (AVIRIS, 145 x 145 x 200, uint16 DN) from the installed tensorly.

    The wavelengths are approximate: 220 bands evenly spaced over 400-2500 nm, less the 20 removed.

    Raises:
        DataError: tensorly is not installed, or is installed without its data.
    """
    spec = importlib.util.find_spec("tensorly")
    hint = "pip install 'spectralift-cli[samples]', or use the sample `synthetic`"
    if spec is None or spec.origin is None:
        raise DataError("the sample indian-pines needs the package tensorly", hint)
    path = Path(spec.origin).parent / "datasets" / "data" / "Indian_pines_corrected.npy"
    if not path.is_file():
        raise DataError(f"{path}: the installed tensorly lacks this file", hint)
    cube = read_cube(path)
    kept = [band for band in range(_AVIRIS_BANDS) if band + 1 not in _REMOVED]
    centres_nm = np.linspace(400.0, 2500.0, _AVIRIS_BANDS)[kept]
    return Cube(cube.values, cube.meta.replace(wavelengths_nm=centres_nm))


def synthetic(
    rows: int = 96,
    cols: int = 96,
    bands: int = 60,
    *,
    seed: int = 42,
    crs: str | None = None,
    origin_xy: tuple[float, float] = (500_000.0, 5_400_000.0),
    gsd: float = 10.0,
) -> Cube:
    """Make a scene of smooth spectra mixed by smooth abundances, with fields and small objects.

    Reflectance = sum over materials of abundance x spectrum, times a smooth illumination; stored as
    uint16 with scale 1e-4. Same arguments, same bytes.

    Args:
        rows: 1 to 20,000 pixels.
        cols: 1 to 20,000 pixels.
        bands: 1 to 1,000, evenly spaced over 400-2500 nm.
        seed: of the scene.
        crs: coordinate reference system as WKT; None for a scene without georeference.
        origin_xy: map coordinates of the upper left corner, if there is a crs.
        gsd: ground sampling distance in map units, if there is a crs.

    Raises:
        DataError: a size is out of range.
    """
    if not (1 <= rows <= 20_000 and 1 <= cols <= 20_000 and 1 <= bands <= 1000):
        raise DataError(
            f"a synthetic scene of {rows} x {cols} x {bands} is out of range",
            "use 1 to 20,000 rows and columns and 1 to 1,000 bands",
        )
    rng = np.random.default_rng(seed)
    materials = 6
    centres_nm = np.linspace(400.0, 2500.0, bands) if bands > 1 else np.array([550.0])
    spectra = _spectra(rng, materials, centres_nm)  # (K, B)
    abundances = _abundances(rng, materials, rows, cols)  # (K, H, W)
    light = 0.9 + 0.1 * _smooth_field(rng, rows, cols, 4)
    values = np.empty((rows, cols, bands), np.uint16)
    for row in range(rows):
        reflectance = (abundances[:, row].T @ spectra) * light[row, :, None]  # (W, B)
        values[row] = np.rint(reflectance * 1e4)
    spacing = float(centres_nm[1] - centres_nm[0]) if bands > 1 else 100.0
    return Cube.of(
        values,
        wavelengths_nm=centres_nm,
        fwhm_nm=np.full(bands, 1.1 * spacing),
        nodata=65535,
        scale=1e-4,
        crs=crs,
        transform=None if crs is None else (gsd, 0.0, origin_xy[0], 0.0, -gsd, origin_xy[1]),
    )


def _spectra(rng: np.random.Generator, materials: int, centres_nm: FloatArray) -> FloatArray:
    """Return (K, B) reflectances in 0.02..0.7: a slope plus a few broad features each."""
    position = (centres_nm - 400.0) / 2100.0  # (B,)
    spectra = np.empty((materials, centres_nm.size))
    for k in range(materials):
        curve = rng.uniform(0.1, 0.4) + rng.uniform(-0.2, 0.3) * position
        for _ in range(5):
            depth, centre = rng.uniform(-0.2, 0.25), rng.uniform(0, 1)
            curve = curve + depth * np.exp(-(((position - centre) / rng.uniform(0.03, 0.2)) ** 2))
        spectra[k] = np.clip(curve, 0.02, 0.7)
    return spectra


def _abundances(rng: np.random.Generator, materials: int, rows: int, cols: int) -> FloatArray:
    """Return (K, H, W) fractions that sum to 1: fields with soft borders, then small objects."""
    height = np.stack([_smooth_field(rng, rows, cols, 6) for _ in range(materials)])
    weights = np.exp(12.0 * height)
    weights /= weights.sum(axis=0)
    for _ in range(max(1, rows * cols // 400)):
        row, col = rng.integers(rows), rng.integers(cols)
        tall, wide = rng.integers(1, 6, size=2)
        patch = weights[:, row : row + tall, col : col + wide]
        patch *= 0.2
        patch[rng.integers(materials)] += 0.8
    return weights


def _smooth_field(rng: np.random.Generator, rows: int, cols: int, waves: int) -> FloatArray:
    """Return (H, W) in 0..1: a sum of plane waves of at most `waves` periods over the scene."""
    y = np.linspace(0, 1, rows)[:, None]
    x = np.linspace(0, 1, cols)[None, :]
    field = np.zeros((rows, cols))
    for _ in range(8):
        fy, fx = rng.uniform(-waves, waves, size=2)
        field += np.cos(2 * np.pi * (fy * y + fx * x) + rng.uniform(0, 2 * np.pi))
    low, high = field.min(), field.max()
    return (field - low) / (high - low) if high > low else np.full_like(field, 0.5)


def note(name: str) -> str:
    """Return what a user should know of a sample's data."""
    if name == "indian-pines":
        return "AVIRIS digital numbers; wavelengths are approximate (400-2500 nm, evenly spaced)"
    return "synthetic reflectance, stored as uint16 x 1e-4"


def write_sample(
    name: str,
    path: str | Path,
    *,
    window: tuple[int, int, int, int] | None = None,
    size: tuple[int, int, int] = (96, 96, 60),
    seed: int = 42,
    crs: str | None = None,
    options: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> tuple[Path, ...]:
    """Write a sample cube; return its files, the main one first.

    Args:
        name: one of `SAMPLES`.
        path: where; the ending chooses the format.
        window: (row, col, height, width) of it, or None for all.
        size: (rows, cols, bands) of `synthetic`.
        seed: of `synthetic`.
        crs: of `synthetic`, like EPSG:32633; None for no georeference.
        options: creation options of the format.
        overwrite: replace an existing output.

    Raises:
        DataError: no such sample, the window leaves it, or the path cannot be written.
        OutputExistsError: the path exists and `overwrite` is false.
    """
    if name not in [sample.name for sample in SAMPLES]:
        raise DataError(
            f"no sample is called {name!r}",
            f"there are {', '.join(sample.name for sample in SAMPLES)}",
        )
    if name == "indian-pines":
        cube = indian_pines()
        recipe: dict[str, Any] = {}
    else:
        cube = synthetic(*size, seed=seed, crs=None if crs is None else _wkt(crs))
        recipe = {"size": list(size), "seed": seed, "crs": crs}
    meta, values = cube.meta, cube.values
    if window is not None:
        row, col, height, width = window
        meta = check_window(meta, row, col, height, width)
        values = values[row : row + height, col : col + width]
        recipe["window"] = list(window)
    recipe |= {"name": name, "note": note(name)}
    meta = meta.replace(provenance=provenance("sample", recipe, {}))
    return write_cube(path, Cube(values, meta), options=options, overwrite=overwrite)


def _wkt(text: str) -> str:
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        return str(CRS.from_user_input(text).to_wkt())
    except CRSError as error:
        raise DataError(
            f"{text!r} is not a coordinate reference system", "give one like EPSG:32633"
        ) from error
