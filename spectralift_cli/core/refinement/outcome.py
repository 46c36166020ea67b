"""What a refinement did."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectralift_cli.core.refinement.gate import Verdict
from spectralift_cli.core.refinement.match import Match


@dataclass(frozen=True)
class Reprojection:
    """How far the cube is from both images, per noise: medians over bands of RMSE over noise.

    Args:
        lr: of the LR-HSI, within its signal's subspace.
        msi: of the HR-MSI.
    """

    lr: float
    msi: float


@dataclass(frozen=True, eq=False)
class RefineResult:
    """What a refinement did.

    Args:
        files: what was written, the main one first.
        verdict: of the held-out pixels.
        match: of the PSF with the images.
        components: of the LR-HSI's signal.
        lr_pixels: that were compared.
        before: reprojection of the estimate.
        after: reprojection of the result, before rounding and clipping.
        steps: of the conjugate gradients.
        raised: what the strength was multiplied by, for the LR-HSI to be met.
        pixels: of the image.
        holes: of these, left as they are.
        clipped: values brought into the clip range.
        saturated: values brought into the range of the stored type.
        moved: valid values that rounded onto nodata and moved by one count.
    """

    files: tuple[Path, ...]
    verdict: Verdict
    match: Match
    components: int
    lr_pixels: int
    before: Reprojection
    after: Reprojection
    steps: int
    raised: int
    pixels: int
    holes: int
    clipped: int
    saturated: int
    moved: int

    def summary(self) -> tuple[str, str]:
        """Return, as lines, what was decided and how far cube and result are from both images."""
        before, after = self.before, self.after
        return str(self.verdict), (
            f"reprojection error per noise, median over bands: LR-HSI {before.lr:.2f} -> "
            f"{after.lr:.2f}, HR-MSI {before.msi:.2f} -> {after.msi:.2f}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return what was decided and measured as a JSON object."""
        match_ = {
            "steps": self.match.steps, "before": self.match.before, "after": self.match.after,
            "gain": self.match.gain.tolist(), "lr_pixels": self.match.pixels,
        }  # fmt: skip
        counts = ("pixels", "holes", "clipped", "saturated", "moved")
        return {
            "verdict": dataclasses.asdict(self.verdict),
            "psf_match": match_,
            "components": self.components,
            "lr_pixels": self.lr_pixels,
            "reprojection": {
                "before": dataclasses.asdict(self.before), "after": dataclasses.asdict(self.after)
            },
            "solver_steps": self.steps,
            "strength_raised": self.raised,
            "counts": {name: getattr(self, name) for name in counts},
        }  # fmt: skip
