"""The two images as estimation takes them: values in units, what is valid, and where they lie."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spectralift_cli.core.cube import BoolArray, FloatArray
from spectralift_cli.core.cubeio import CubeReader, row_blocks
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.placement import Placement

IntArray = NDArray[np.int64]

# fewer LR pixels than this say nothing of a kernel, a gain and a shift at once
LEAST_PIXELS = 25
_BLOCKS_A_SIDE = 6
_LEAST_BLOCK_PX = 3
# more LR pixels, or HR values, make the estimate little better and the memory large
MOST_LR_SIDE = 128
_MOST_HR_VALUES = 48 * 10**6
# HR pixels beyond the LR pixels' own, for shift and blur, in LR pixels
_MARGIN_LR_PX = 5


@dataclass(frozen=True, eq=False)
class ImagePair:
    """An LR-HSI and an HR-MSI of the same ground.

    Args:
        hsi: (h, w, B) of the bands in use, in units; holes hold the band's mean.
        hsi_valid: (h, w) pixels with a value in every band.
        msi: (H, W, M) in units; holes hold the band's mean.
        msi_valid: (H, W) pixels with a value in every band.
        placement: of the LR on the HR grid.
        wavelengths_nm: (B,) centres, or None.
    """

    hsi: FloatArray
    hsi_valid: BoolArray
    msi: FloatArray
    msi_valid: BoolArray
    placement: Placement
    wavelengths_nm: FloatArray | None = None

    @property
    def msi_bands(self) -> int:
        """M."""
        return int(self.msi.shape[2])

    def blocks(self) -> IntArray:
        """Return (h, w) the number of the spatial block of each LR pixel.

        At most 6 x 6 blocks, none smaller than 3 pixels a side: neighbours see the same HR pixels,
        so that blocks, not pixels, are what can be held out or vary independently.
        """
        counts = [max(1, min(_BLOCKS_A_SIDE, n // _LEAST_BLOCK_PX)) for n in self.hsi_valid.shape]
        rows, cols = (
            np.arange(n) * count // n for n, count in zip(self.hsi_valid.shape, counts, strict=True)
        )
        numbers: IntArray = rows[:, None] * counts[1] + cols[None, :]
        return numbers

    def only(self, pixels: BoolArray) -> ImagePair:
        """Return the pair with some (h, w) LR pixels alone valid."""
        return dataclasses.replace(self, hsi_valid=self.hsi_valid & pixels)

    def central(self, side: int) -> ImagePair:
        """Return the middle of the pair, at most `side` LR pixels a side, its HR margin kept."""
        lr, hr = central_windows(self.placement, side)
        placement = self.placement.window_lr(*lr).window_hr(*hr)
        return dataclasses.replace(
            self, hsi=self.hsi[lr], hsi_valid=self.hsi_valid[lr], msi=self.msi[hr],
            msi_valid=self.msi_valid[hr], placement=placement,
        )  # fmt: skip


def central_windows(
    placement: Placement, side: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return the LR rows and columns in the middle of the overlap, and the HR ones around them."""
    lr, hr = [], []
    for axis, touched in enumerate(placement.overlap_lr()):
        spare = max(0, touched.stop - touched.start - side)
        part = slice(touched.start + spare // 2, touched.stop - (spare - spare // 2))
        scale, origin = placement.scale[axis], placement.origin_px[axis]
        first = int(np.floor(origin + scale * (part.start - _MARGIN_LR_PX)))
        last = int(np.ceil(origin + scale * (part.stop + _MARGIN_LR_PX)))
        size = placement.hr_shape[axis]
        lr.append(part)
        hr.append(slice(max(0, min(first, size - 1)), max(1, min(last, size))))
    return (lr[0], lr[1]), (hr[0], hr[1])


def read_pair(
    lr_hsi: CubeReader, hr_msi: CubeReader, placement: Placement
) -> tuple[ImagePair, BoolArray]:
    """Read what estimation needs of two images: at most their middle.

    Args:
        lr_hsi: the blurry hyperspectral image.
        hr_msi: the sharp multispectral one.
        placement: of the LR on the HR grid.

    Returns:
        The pair, and (B,) which bands of the LR-HSI are in it: not flagged as bad, with values.

    Raises:
        DataError: too few LR pixels are valid in both images, or a band is constant.
    """
    side = MOST_LR_SIDE
    values = placement.scale[0] * placement.scale[1] * hr_msi.meta.bands
    while side > 16 and (side + 2 * _MARGIN_LR_PX) ** 2 * values > _MOST_HR_VALUES:
        side -= 4
    lr, hr = central_windows(placement, side)
    sharp = _read(hr_msi, *hr)
    holes: BoolArray = np.asarray(np.isnan(sharp).any(axis=2))
    if holes.all():
        raise DataError(f"{hr_msi.path}: has no valid pixel under the LR-HSI", "check its nodata")
    spectra = _read(lr_hsi, *lr)
    bad = lr_hsi.meta.bad_bands
    finite: BoolArray = np.asarray(np.isfinite(spectra).any(axis=(0, 1)))
    used: BoolArray = np.asarray(finite if bad is None else finite & ~bad)
    spectra = spectra[:, :, used]
    valid: BoolArray = np.asarray(np.isfinite(spectra).all(axis=2) & used.any())
    if valid.sum() < LEAST_PIXELS:
        raise DataError(
            f"{lr_hsi.path}: {int(valid.sum())} LR pixels are valid where the images overlap, "
            f"{LEAST_PIXELS} are needed to estimate anything",
            "give images that share more ground",
        )
    _check_contrast(spectra[valid], lr_hsi, "every band")
    for band in range(sharp.shape[2]):
        _check_contrast(sharp[~holes][:, [band]], hr_msi, f"band {band + 1}")
    spectra = np.where(valid[:, :, None], spectra, spectra[valid].mean(axis=0))
    sharp = np.where(holes[:, :, None], sharp[~holes].mean(axis=0), sharp)
    wavelengths = lr_hsi.meta.wavelengths_nm
    moved = placement.window_lr(*lr).window_hr(*hr)
    kept = None if wavelengths is None else wavelengths[used]
    return ImagePair(spectra, valid, sharp, ~holes, moved, kept), used


def _read(reader: CubeReader, rows: slice, cols: slice) -> FloatArray:
    """Return (n, m, bands) float64 units of a rectangle, NaN in holes."""
    found = np.empty((rows.stop - rows.start, cols.stop - cols.start, reader.meta.bands))
    for part in row_blocks(rows.stop - rows.start, reader.block_rows):
        there = slice(rows.start + part.start, rows.start + part.stop)
        found[part] = reader.read_units(there)[:, cols]
    return found


def _check_contrast(values: FloatArray, reader: CubeReader, what: str) -> None:
    spread = float(values.std(axis=0).max())
    if not spread > 1e-7 * float(np.abs(values).max()):
        raise DataError(
            f"{reader.path}: {what} is constant ({float(values.flat[0]):.6g}) where the images "
            "overlap, so that nothing can be estimated from it",
            "leave it out with convert --bands, or check that this is the right image",
        )
