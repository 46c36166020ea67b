"""The Berlin pair end to end: EnMAP at 30 m and HyMap at 3.6 m, sharp on HyMap's grid.

The sharp cube, averaged over the areas of the EnMAP pixels by map coordinates, is compared with the
EnMAP image itself, in reflectance x 10000. That image was simulated from the same flight with its
own PSF, which plain area means do not have, so that the difference does not go to zero.
`SPECTRALIFT_SCENES` names the folder of the scenes.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from pathlib import Path

import numpy as np

from spectralift_cli.core import stages
from spectralift_cli.core.checkpoint import load_checkpoint, save_checkpoint
from spectralift_cli.core.config import TrainConfig
from spectralift_cli.core.cube import CubeMeta, FloatArray
from spectralift_cli.core.formats import open_cube, read_cube
from spectralift_cli.core.placement import MapMean, place
from tests.bench.harness import scratch

LR, HR = "berlin_enmap_30m.hdr", "berlin_hymap_3p6m.hdr"
MODELS = {
    "linear": TrainConfig(model="linear"),
    "paper": TrainConfig(preset="paper"),
    "auto": TrainConfig(),
}


def write_srf(path: Path, msi: CubeMeta) -> None:
    """Write Gaussian curves of the centres and widths in an MSI's own metadata."""
    if msi.wavelengths_nm is None or msi.fwhm_nm is None:
        sys.exit("the MSI does not say its wavelengths and widths")
    nm = np.arange(400.0, 1000.0)
    curves = np.exp(-4 * np.log(2) * ((nm[:, None] - msi.wavelengths_nm) / msi.fwhm_nm) ** 2)
    header = "wavelength_nm," + ",".join(f"B{band + 1}" for band in range(msi.bands))
    table = np.column_stack([nm, curves])
    np.savetxt(path, table, delimiter=",", header=header, comments="")


def agreement(coarse: Path, sharp: Path) -> tuple[FloatArray, FloatArray, int]:
    """Return the angles (N,) in degrees and the per-band RMSE (B,) after averaging, and N."""
    truth, made = read_cube(coarse), read_cube(sharp)
    placement = place(truth.meta, made.meta)
    again = MapMean(placement)(made.units())
    valid = placement.inside() & np.isfinite(again).all(2) & np.isfinite(truth.units()).all(2)
    a, b = again[valid].astype(np.float64), truth.units()[valid].astype(np.float64)  # (N, B)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    angles: FloatArray = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    rmse: FloatArray = np.sqrt(np.square(a - b).mean(axis=0))
    return angles, rmse, len(a)


def main() -> int:
    """Print the table."""
    scenes = os.environ.get("SPECTRALIFT_SCENES")
    if not scenes or not (Path(scenes) / LR).exists():
        print(f"SPECTRALIFT_SCENES names no folder with {LR}", file=sys.stderr)
        return 3
    lr, hr = Path(scenes) / LR, Path(scenes) / HR
    with scratch(2e9) as folder:
        with open_cube(lr) as coarse, open_cube(hr) as msi:
            print(place(coarse.meta, msi.meta))
            write_srf(folder / "srf.csv", msi.meta)
        response = stages.ResponseChoice(srf_file=folder / "srf.csv")
        inputs = stages.TrainInputs(lr_hsi=lr, hr_msi=hr, response=response)
        print(
            "\nmodel              seconds  SAM mean  median   RMSE    RMSE of bands min/median/max"
        )

        def report(name: str, seconds: float, model: Path) -> None:
            stages.infer(model, hr, folder / "sharp.tif", overwrite=True)
            angles, rmse, count = agreement(lr, folder / "sharp.tif")
            print(
                f"{name:18} {seconds:7.1f} {angles.mean():9.3f} {np.median(angles):7.3f} "
                f"{np.sqrt(np.square(rmse).mean()):6.1f}    {rmse.min():.1f} / {np.median(rmse):.1f}"
                f" / {rmse.max():.1f}  ({count:,} LR pixels)",
                flush=True,
            )

        for name, config in MODELS.items():
            started = time.perf_counter()
            model = folder / f"{name}.safetensors"
            stages.train(inputs, model, config)
            report(name, time.perf_counter() - started, model)
        # what it costs to take both images for the same extent, as without georeference
        auto = load_checkpoint(folder / "auto.safetensors")
        same = dataclasses.replace(auto, hsi=auto.hsi.replace(transform=None), shares_extent=True)
        save_checkpoint(same, folder / "same.safetensors")
        report("auto, same extent", 0.0, folder / "same.safetensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
