"""Where the pixels of a coarse image lie on the grid of a sharp one, and means over their areas.

Both grids are placed by their georeference, so that the ratio may be any number of at least 1 (8.33
too), the origins need not coincide and neither image need cover the other. Images without one cover
the same ground, and the ratio of their sizes is a whole number.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spectralift_cli.core.cube import AnyArray, BoolArray, CubeMeta, FloatArray
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.operators.bandwise import per_band
from spectralift_cli.core.operators.downsample import separable

if TYPE_CHECKING:
    from scipy import sparse

# how far grids may be turned or sheared against each other over the whole image, in HR pixels
_MAX_TURN_PX = 0.25
# edges closer than this to an edge of the other grid lie on it: georeference is rounded in files
_SNAP_PX = 1e-4
_MAX_RATIO = 4096


@dataclass(frozen=True)
class Placement:
    """A coarse grid on a sharp one.

    LR pixel (i, j) covers rows `origin_px[0] + scale[0] * (i, i + 1)` of the sharp image and columns
    `origin_px[1] + scale[1] * (j, j + 1)`, where 0 is the outer edge of its first row or column.

    Args:
        lr_shape: (rows, cols) of the coarse image.
        hr_shape: (rows, cols) of the sharp image.
        scale: HR pixels to one LR pixel, down and across, at least 1.
        origin_px: upper left corner of the coarse image, in HR pixels, any sign.
    """

    lr_shape: tuple[int, int]
    hr_shape: tuple[int, int]
    scale: tuple[float, float]
    origin_px: tuple[float, float] = (0.0, 0.0)

    def shifted(self, shift_px: tuple[float, float]) -> Placement:
        """Return the placement where the content of the coarse image is known to be displaced.

        Args:
            shift_px: (rows, cols), in LR pixels: what this placement puts at LR position p is seen
                at p + shift_px (rows down, columns to the right).
        """
        origin = (
            self.origin_px[0] - shift_px[0] * self.scale[0],
            self.origin_px[1] - shift_px[1] * self.scale[1],
        )
        return dataclasses.replace(self, origin_px=origin)

    def lr_positions(self) -> tuple[FloatArray, FloatArray]:
        """Return (H,) rows and (W,) columns of the HR pixels' centres on the coarse grid.

        0 is the outer edge of the first LR pixel, so its centre lies at 0.5.
        """
        rows, cols = (
            (np.arange(n, dtype=np.float64) + 0.5 - origin) / scale
            for n, origin, scale in zip(self.hr_shape, self.origin_px, self.scale, strict=True)
        )
        return rows, cols

    def weights(self, axis: int, footprint: str = "area") -> sparse.csr_array:
        """Return the (h, H) or (w, W) matrix that makes LR from HR pixels along one axis.

        Args:
            axis: 0 for rows, 1 for columns.
            footprint: "area" averages over the LR pixel's side; "point" takes the value at its
                centre, linear between the HR pixels' centres, for kernels that hold the footprint.

        Returns:
            Rows sum to 1 where the sharp image holds all of the footprint, else to the share that
            it holds.
        """
        from scipy import sparse  # a quarter of a second that inference does without

        count, size = self.lr_shape[axis], self.hr_shape[axis]
        starts = self.origin_px[axis] + self.scale[axis] * np.arange(count + 1)
        nearest = np.rint(starts)
        starts = np.where(np.abs(starts - nearest) < _SNAP_PX, nearest, starts)
        if footprint == "point":
            # a hat as wide as a HR pixel's neighbourhood, around the centre
            at = (starts[:-1] + starts[1:]) / 2 - 0.5
            at = np.where(np.abs(at - np.rint(at)) < _SNAP_PX, np.rint(at), at)
            first = np.floor(at).astype(np.int64)
            pixels = np.stack([first, first + 1], axis=1)
            shares = np.stack([first + 1 - at, at - first], axis=1)
        elif footprint == "area":
            first = np.floor(starts[:-1]).astype(np.int64)
            reach = int(np.ceil(self.scale[axis])) + 1
            pixels = first[:, None] + np.arange(reach)
            inside = np.minimum(pixels + 1, starts[1:, None]) - np.maximum(
                pixels, starts[:-1, None]
            )
            shares = np.maximum(inside, 0) / np.diff(starts)[:, None]
        else:
            raise ValueError(f"footprint is {footprint!r}, not area or point")
        kept = (pixels >= 0) & (pixels < size) & (shares > 0)
        rows = np.broadcast_to(np.arange(count)[:, None], pixels.shape)
        triple = (shares[kept], (rows[kept], pixels[kept]))
        return sparse.csr_array(triple, shape=(count, size))

    def inside(self, margin_px: tuple[int, int] = (0, 0)) -> BoolArray:
        """Return (h, w) which LR pixels lie wholly in the sharp image, `margin_px` from its edges."""
        return np.logical_and.outer(*(self._inside(axis, margin_px[axis]) for axis in (0, 1)))

    def _inside(self, axis: int, margin: int) -> BoolArray:
        starts = self.origin_px[axis] + self.scale[axis] * np.arange(self.lr_shape[axis] + 1)
        fits: BoolArray = (starts[:-1] >= margin - _SNAP_PX) & (
            starts[1:] <= self.hr_shape[axis] - margin + _SNAP_PX
        )
        return fits

    def overlap_lr(self) -> tuple[slice, slice]:
        """Return the LR rows and columns that the sharp image touches; empty where none."""
        return self._touched(0), self._touched(1)

    def _touched(self, axis: int) -> slice:
        first = np.floor(-self.origin_px[axis] / self.scale[axis] + _SNAP_PX)
        last = np.ceil((self.hr_shape[axis] - self.origin_px[axis]) / self.scale[axis] - _SNAP_PX)
        start = int(np.clip(first, 0, self.lr_shape[axis]))
        return slice(start, max(start, int(np.clip(last, 0, self.lr_shape[axis]))))

    def overlap_hr(self) -> tuple[slice, slice]:
        """Return the HR rows and columns whose centres lie on the coarse image; empty where none."""
        found = []
        for axis, at in enumerate(self.lr_positions()):
            hit = np.flatnonzero((at >= 0) & (at <= self.lr_shape[axis]))
            found.append(slice(int(hit[0]), int(hit[-1]) + 1) if hit.size else slice(0, 0))
        return found[0], found[1]

    def window_hr(self, rows: slice, cols: slice) -> Placement:
        """Return the placement on a rectangle of the sharp image."""
        return dataclasses.replace(
            self,
            hr_shape=(rows.stop - rows.start, cols.stop - cols.start),
            origin_px=(self.origin_px[0] - rows.start, self.origin_px[1] - cols.start),
        )

    def window_lr(self, rows: slice, cols: slice) -> Placement:
        """Return the placement of a rectangle of the coarse image."""
        return dataclasses.replace(
            self,
            lr_shape=(rows.stop - rows.start, cols.stop - cols.start),
            origin_px=(
                self.origin_px[0] + rows.start * self.scale[0],
                self.origin_px[1] + cols.start * self.scale[1],
            ),
        )

    def __str__(self) -> str:
        ratio = " x ".join(f"{scale:.4g}" for scale in dict.fromkeys(self.scale))
        rows, cols = self.overlap_lr()
        covered = (rows.stop - rows.start) * (cols.stop - cols.start)
        whole = int(self.inside().sum())
        total = self.lr_shape[0] * self.lr_shape[1]
        return (
            f"ratio {ratio}, LR origin at HR row {self.origin_px[0]:.4g}, "
            f"column {self.origin_px[1]:.4g}; of {total:,} LR pixels {covered:,} are touched, "
            f"{whole:,} lie wholly in the HR image"
        )


@dataclass(frozen=True)
class MapMean:
    """Average a sharp image over the areas of LR pixels placed by map coordinates.

    Linear: weights(rows) @ image @ weights(cols).T. LR pixels that the image holds only in part get
    the sum over that part, not a mean; `Placement.inside` says which are whole.

    Args:
        placement: where they lie.
        footprint: see `Placement.weights`.
    """

    placement: Placement
    footprint: str = "area"

    def __call__(self, values: AnyArray) -> AnyArray:
        """Average an image (H, W) or cube (H, W, B) to (h, w[, B]); float32 for float32."""
        down, across = (self.placement.weights(axis, self.footprint) for axis in (0, 1))
        shape = self.placement.lr_shape
        return per_band(values, shape, lambda image: separable(down, image, across))

    def adjoint(self, values: AnyArray) -> AnyArray:
        """Apply the transpose, (h, w[, B]) to (H, W[, B]); float32 for float32."""
        down, across = (self.placement.weights(axis, self.footprint).T.tocsr() for axis in (0, 1))
        shape = self.placement.hr_shape
        return per_band(values, shape, lambda image: separable(down, image, across))


def placement_json(placement: Placement | None) -> dict[str, object] | None:
    """Return a placement and the overlap of its images as a JSON object."""
    if placement is None:
        return None
    rows, cols = placement.overlap_lr()
    hr_rows, hr_cols = placement.overlap_hr()
    return {
        "ratio": list(placement.scale),
        "origin_px": list(placement.origin_px),
        "lr_pixels": placement.lr_shape[0] * placement.lr_shape[1],
        "lr_pixels_touched": (rows.stop - rows.start) * (cols.stop - cols.start),
        "lr_pixels_inside": int(placement.inside().sum()),
        "hr_pixels": placement.hr_shape[0] * placement.hr_shape[1],
        "hr_pixels_covered": (hr_rows.stop - hr_rows.start) * (hr_cols.stop - hr_cols.start),
    }


def place(
    lr: CubeMeta,
    hr: CubeMeta,
    *,
    sources: tuple[object, object] = ("the LR-HSI", "the HR-MSI"),
) -> Placement:
    """Place a coarse image on a sharp one.

    With georeference on both sides by map coordinates; without, by their sizes, whose ratio must be
    a whole number and the same down and across (rows and columns left over at the end, fewer than
    make an LR pixel, do not count).

    Args:
        lr: of the coarse image.
        hr: of the sharp image.
        sources: their files, for messages.

    Raises:
        DataError: one image alone has a georeference while the sizes fit no whole ratio; the
            reference systems differ; the grids are turned against each other; the sharp image is
            not sharper; or they do not overlap.
    """
    lr_shape, hr_shape = (lr.rows, lr.cols), (hr.rows, hr.cols)
    if lr.transform is None or hr.transform is None:
        return _by_sizes(lr_shape, hr_shape, sources)
    _check_reference(lr, hr, sources)
    to_hr = np.linalg.inv(_matrix(hr.transform)) @ _matrix(lr.transform)  # LR to HR col, row
    across, down = to_hr[0, 0], to_hr[1, 1]
    turn = max(abs(to_hr[0, 1]) * lr.rows, abs(to_hr[1, 0]) * lr.cols)
    if turn > _MAX_TURN_PX or across <= 0 or down <= 0:
        raise DataError(
            f"{sources[1]}: its grid is turned or mirrored against that of {sources[0]}, by up to "
            f"{turn:.3g} HR pixels over the image",
            f"bring it onto the same axes first: rio warp {sources[1]} OUT.tif --like {sources[0]} "
            "--res RES",
        )
    placement = Placement(
        lr_shape, hr_shape, (float(down), float(across)), (float(to_hr[1, 2]), float(to_hr[0, 2]))
    )
    _check_scale(placement, sources)
    rows, cols = placement.overlap_lr()
    if rows.start == rows.stop or cols.start == cols.stop:
        raise DataError(
            f"{sources[0]} ({_extent(*lr_shape, lr.transform)}) and {sources[1]} "
            f"({_extent(*hr_shape, hr.transform)}) do not overlap",
            "give two images of the same ground, or mend their georeference",
        )
    return placement


def _by_sizes(
    lr_shape: tuple[int, int], hr_shape: tuple[int, int], sources: tuple[object, object]
) -> Placement:
    ratios = [hr // lr for lr, hr in zip(lr_shape, hr_shape, strict=True)]
    spare = [hr - lr * max(ratios) for lr, hr in zip(lr_shape, hr_shape, strict=True)]
    ratio = max(ratios)
    if min(ratios) != ratio or ratio < 1 or any(not 0 <= left < ratio for left in spare):
        raise DataError(
            f"{sources[1]} ({hr_shape[0]} x {hr_shape[1]} pixels) is no whole multiple of "
            f"{sources[0]} ({lr_shape[0]} x {lr_shape[1]} pixels), and they are not both "
            "georeferenced",
            "cut both to the same ground, or give both a georeference",
        )
    placement = Placement(lr_shape, hr_shape, (float(ratio), float(ratio)))
    _check_scale(placement, sources)
    return placement


def _check_scale(placement: Placement, sources: tuple[object, object]) -> None:
    down, across = placement.scale
    if min(down, across) < 1 - 1e-6:
        raise DataError(
            f"{sources[1]} is not sharper than {sources[0]}: one LR pixel is {down:.4g} x "
            f"{across:.4g} HR pixels, at least 1 is needed",
            "give the hyperspectral image as LR-HSI and the sharper one as HR-MSI",
        )
    if max(down, across) > _MAX_RATIO:
        raise DataError(
            f"one pixel of {sources[0]} is {down:.4g} x {across:.4g} pixels of {sources[1]}, at "
            f"most {_MAX_RATIO} make sense",
            "check the georeference of both images",
        )


def _check_reference(lr: CubeMeta, hr: CubeMeta, sources: tuple[object, object]) -> None:
    if lr.crs is None or hr.crs is None:
        return  # map coordinates without a name are taken for the same
    if lr.crs == hr.crs:
        return
    from rasterio.crs import CRS  # here: heavy, and mostly the texts are the same
    from rasterio.errors import CRSError

    try:
        ours, theirs = CRS.from_wkt(lr.crs), CRS.from_wkt(hr.crs)
        codes = ours.to_epsg(), theirs.to_epsg()
    except CRSError as error:
        raise DataError(
            f"the reference system of {sources[0]} or {sources[1]} cannot be understood ({error})",
            "mend the georeference of the files",
        ) from error
    if ours == theirs or (codes[0] is not None and codes[0] == codes[1]):
        return
    names = [f"EPSG:{code}" if code else crs.to_string()[:60] for code, crs in
             zip(codes, (ours, theirs), strict=True)]  # fmt: skip
    raise DataError(
        f"{sources[0]} is in {names[0]}, {sources[1]} in {names[1]}",
        f"bring the MSI into that of the LR-HSI: gdalwarp -t_srs {names[0]} -r cubic "
        f"{sources[1]} OUT.tif",
    )


def _matrix(transform: tuple[float, ...]) -> FloatArray:
    matrix: FloatArray = np.array([transform[:3], transform[3:], (0.0, 0.0, 1.0)])
    if abs(np.linalg.det(matrix)) < 1e-30:
        raise DataError(
            f"the transform {transform} maps all pixels onto a line", "mend the georeference"
        )
    return matrix


def _extent(rows: int, cols: int, transform: tuple[float, ...]) -> str:
    corners = _matrix(transform) @ np.array([[0, cols, 0, cols], [0, 0, rows, rows], [1, 1, 1, 1]])
    (x0, y0), (x1, y1) = corners[:2].min(axis=1), corners[:2].max(axis=1)
    return f"x {x0:.10g} to {x1:.10g}, y {y0:.10g} to {y1:.10g}"
