"""Refine a sharp cube: learn from the images, judge on held-out pixels, correct by rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from spectralift_cli.core.config import RefineConfig
from spectralift_cli.core.cube import Progress, no_progress
from spectralift_cli.core.cubeio import CubeReader
from spectralift_cli.core.devices import one_thread_each
from spectralift_cli.core.formats import create_cube
from spectralift_cli.core.identity import provenance
from spectralift_cli.core.optionfields import to_json
from spectralift_cli.core.refinement.correction import Correction
from spectralift_cli.core.refinement.images import HeldCube, Sharp, check_images
from spectralift_cli.core.refinement.outcome import RefineResult
from spectralift_cli.core.refinement.plan import limit_bytes
from spectralift_cli.core.refinement.relation import Images
from spectralift_cli.core.refinement.stored import Storing

_PASSES = 4


def refine(
    images: Images,
    output: Path,
    config: RefineConfig,
    *,
    memory_bytes: int | None = None,
    overwrite: bool = False,
    options: Mapping[str, str] | None = None,
    progress: Progress = no_progress,
) -> RefineResult:
    """Write a cube that agrees with both images, with the type, bands and places of the estimate.

    Args:
        images: the estimate, the LR-HSI and the HR-MSI, with what relates them.
        output: where; the ending chooses the format.
        config: how.
        memory_bytes: the most to take; None for half of what is free, 2 GB at most. Changes no
            byte.
        overwrite: replace an existing output.
        options: creation options of the format.
        progress: called as progress(rows done, rows of all passes).

    Raises:
        DataError: images that do not fit each other or hold no values; see `check_images`.
        OutputExistsError: the output exists and `overwrite` is false.
    """
    check_images(images)
    estimate = images.estimate
    limit = limit_bytes(memory_bytes)
    rows = estimate.meta.rows
    done = _Count(progress, _PASSES * rows)
    meta = estimate.meta.replace(
        provenance=provenance(
            "refine", {**to_json(config), **estimate.choices}, images.identities(),
            earlier=estimate.meta.provenance,
        )
    )  # fmt: skip
    with (
        one_thread_each(),
        create_cube(output, meta, options=options, overwrite=overwrite) as writer,
    ):
        cube = HeldCube(estimate, limit // 4)
        lr = HeldCube(images.lr_hsi, limit // 8)
        msi = HeldCube(images.hr_msi, limit // 8, images.relation.radiometry)
        work = Correction(cube, lr, msi, images.relation, config)
        done.total += rows if work.doubtful else 0
        done.add(rows)
        work.look_at_lr(done.add)
        work.decide(done.add)
        found = Storing(meta, _clip_range(config, estimate, work.sharp))
        for part, _ in cube.blocks():
            stored = estimate.read(part)
            if work.factor:
                units, changed = work.corrected(part)
                stored = found(stored, units, changed)
            writer.write(part, stored)
            done.add(part.stop - part.start)
        files = writer.commit()
    work.warn()
    return RefineResult(
        files, work.verdict, work.match, work.space.components, int(work.use.sum()),
        work.reprojection(before=True), work.reprojection(before=False), work.steps, work.raised,
        meta.rows * meta.cols, int((~work.sharp.valid).sum()),
        found.clipped, found.saturated, found.moved,
    )  # fmt: skip


class _Count:
    def __init__(self, progress: Progress, total: int) -> None:
        self.total = total
        self._progress, self._done = progress, 0

    def add(self, rows: int) -> None:
        self._done += rows
        self._progress(self._done, self.total)


def _clip_range(
    config: RefineConfig, estimate: CubeReader, sharp: Sharp
) -> tuple[float, float] | None:
    """Return the range that values are brought into: for auto [0, 1] where they lie in it already."""
    if config.clip != "auto":
        return config.clip_range
    inside = sharp.span[0] >= 0 and sharp.span[1] <= 1
    return (0.0, 1.0) if inside and estimate.meta.dtype.kind == "f" else None
