"""What a refinement will do and need, known before it does."""

from __future__ import annotations

from dataclasses import dataclass

from spectralift_cli.core.cube import CubeMeta
from spectralift_cli.core.placement import Placement
from spectralift_cli.core.refinement.images import HeldCube, check_images
from spectralift_cli.core.refinement.relation import Images
from spectralift_cli.core.refinement.signal import MOST_COMPONENTS
from spectralift_cli.core.resources import default_memory_bytes

_MOST_BYTES = 2_000_000_000  # that are held where the user does not say


@dataclass(frozen=True, eq=False)
class RefinePlan:
    """What a refinement will do, known before it does.

    Args:
        meta: of the output.
        placement: of the LR grid on the HR grid.
        psf_shape: of the PSF, or None where it is found from the images.
        memory_bytes: about the most it holds.
        held: whether the images are kept in memory between passes.
    """

    meta: CubeMeta
    placement: Placement
    psf_shape: tuple[int, int] | None
    memory_bytes: int
    held: bool


def limit_bytes(asked: int | None) -> int:
    """Return what may be held: as asked, else half of what is free, 2 GB at most.

    Images are passed over four times, which takes as long from the system's cache as from memory.
    """
    return min(default_memory_bytes(), _MOST_BYTES) if asked is None else asked


def plan_refinement(images: Images, memory_bytes: int | None = None) -> RefinePlan:
    """Return what `refine` would do.

    Raises:
        DataError: images that do not fit each other; see `check_images`.
    """
    check_images(images)
    estimate, placement = images.estimate, images.relation.placement
    limit = limit_bytes(memory_bytes)
    held = [
        HeldCube(estimate, limit // 4),
        HeldCube(images.lr_hsi, limit // 8),
        HeldCube(images.hr_msi, limit // 8),
    ]
    (height, width), (h, w) = placement.hr_shape, placement.lr_shape
    psf = images.relation.optical.psf
    kernel = 4 * max(placement.scale) if psf is None else len(psf)
    reach = [2 * (kernel / scale + 1) + 1 for scale in placement.scale]
    block = held[0].block_rows * width * estimate.meta.bands * 4
    needed = (
        sum(image.held_bytes for image in held)
        + 4 * block
        + height * width * 16  # weights, brightness, contrast and masks
        + h * w * MOST_COMPONENTS * 4 * 10  # conjugate gradients
        + int(h * w * min(h * w, reach[0] * reach[1]) * 8 * 3)  # the Gram matrix and its parts
    )
    shape = None if psf is None else (len(psf), len(psf))
    return RefinePlan(estimate.meta, placement, shape, needed, bool(held[0].held_bytes))
