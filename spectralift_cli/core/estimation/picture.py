"""The effective PSF as a picture."""

from __future__ import annotations

from pathlib import Path

from matplotlib.patches import Rectangle

from spectralift_cli.core.estimation.parts import Psf
from spectralift_cli.core.pictures import style

_WIDTH_PX, _HEIGHT_PX = 640, 560


def draw_psf(psf: Psf, ratio: tuple[float, float], path: Path, *, overwrite: bool = False) -> Path:
    """Write the effective kernel as a PNG: HR pixel axes, the LR pixel's outline, a colour bar.

    Args:
        psf: the kernel.
        ratio: HR pixels to one LR pixel, rows and columns.
        path: the PNG.
        overwrite: replace an existing one.

    Raises:
        OutputExistsError: it exists and `overwrite` is false.
        DataError: it cannot be written.
    """
    half = len(psf.kernel) // 2
    with style.styled():
        figure = style.new_figure(_WIDTH_PX, _HEIGHT_PX)
        axes = figure.subplots()
        image = style.draw_map(
            axes, psf.kernel, limits=(0.0, float(psf.kernel.max())), colour_bar=False
        )
        image.set_extent((-half - 0.5, half + 0.5, half + 0.5, -half - 0.5))
        axes.set_axis_on()
        axes.grid(visible=False)
        axes.set_xlabel("Columns from the LR pixel's centre (HR pixels)")
        axes.set_ylabel("Rows (HR pixels)")
        down, across = ratio
        axes.add_patch(
            Rectangle(
                (-across / 2, -down / 2), across, down, fill=False, edgecolor="white",
                linewidth=1.2, linestyle="--", label="LR pixel",
            )
        )  # fmt: skip
        axes.legend(loc="upper right", labelcolor="white")
        axes.set_title("Effective PSF: blur and LR pixel together")
        style.draw_colour_bar(image, [axes], "Weight", "sum 1")
        return style.save_figure(figure, path, overwrite=overwrite)
