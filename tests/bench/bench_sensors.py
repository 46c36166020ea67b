"""What it costs to have a sensor's band edges and not its measured response curves.

The HR-MSI is simulated with the measured curves (SPECTRALIFT_SRFS); the model is trained once with
these and once with our Gaussians from band edges. Spectral angle of the result against the truth, in
degrees, on two real scenes (SPECTRALIFT_SCENES); ratio 4, Gaussian PSF, 35 and 40 dB, mean of three
seeds. Bands that a scene covers less than half are left out of both.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import numpy as np

import spectralift_cli as sl
from spectralift_cli.core.cube import CubeMeta
from spectralift_cli.core.pairs import ResponseChoice
from spectralift_cli.core.sensors import SENSORS
from spectralift_cli.core.sensors.curve import Curve, fold_curves, sensor_curves
from spectralift_cli.core.sensors.response import REFUSED_BELOW
from spectralift_cli.core.sensors.srf import read_curves, write_srf
from tests.bench.harness import scratch

# sensor, file of its measured curves
PAIRS = {
    "worldview-2": "acolite_WorldView2.csv",
    "ikonos": "acolite_IKONOS2.csv",
    "quickbird-2": "acolite_QuickBird2.csv",
    "geoeye-1": "acolite_GeoEye1.csv",
    "superdove": "acolite_PlanetScope_SD8.csv",
    "pleiades": "acolite_PHR1A.csv",
}
SEEDS = (0, 1, 2)


def measured_curves(path: Path) -> list[Curve]:
    """Return the multispectral bands of a file of measured curves."""
    found = read_curves(path)
    if found is None:
        sys.exit(f"{path}: holds no curves")
    return [curve for curve in found[0] if "pan" not in curve.name.lower()]


def weight_files(sensor: str, path: Path, meta: CubeMeta, folder: Path) -> tuple[Path, Path, float]:
    """Write the weights of both responses; return them and the share of response misplaced."""
    assert meta.wavelengths_nm is not None
    sets = (measured_curves(path), list(sensor_curves(SENSORS[sensor])))
    both = [
        fold_curves(curves, meta.wavelengths_nm, meta.fwhm_nm, meta.bad_bands, name)
        for curves, name in zip(sets, ("measured", "edges"), strict=True)
    ]
    covered = [i for i in range(both[0].num_msi_bands)
               if all(srf.coverage is not None and srf.coverage[i] >= REFUSED_BELOW for srf in both)]  # fmt: skip
    kept = [srf.select(tuple(covered)) for srf in both]
    files = []
    for srf in kept:
        files.append(folder / f"{srf.source}.csv")
        write_srf(files[-1], srf, meta.wavelengths_nm, overwrite=True)
    apart = float(np.abs(kept[0].weights - kept[1].weights).sum(axis=1).mean() / 2)
    return files[0], files[1], apart


def spectral_angle(scene: sl.Scene, srf: Path, seed: int) -> float:
    """Return the spectral angle of a model trained with a response, in degrees."""
    folder = scene.folder.parent
    inputs = sl.TrainInputs(
        lr_hsi=scene.path("lr_hsi"), hr_msi=scene.path("hr_msi"),
        response=ResponseChoice(srf_file=srf),
    )  # fmt: skip
    model = folder / "m.safetensors"
    sl.train(inputs, model, sl.TrainConfig(seed=seed, effort="fast"), overwrite=True)
    sl.infer(model, scene.path("hr_msi"), folder / "sharp.npy", overwrite=True)
    return float(sl.evaluate(scene.folder, folder / "sharp.npy").values["sam"])


def main() -> None:
    """Print a row for each scene and sensor."""
    scenes, srfs = (os.environ.get(f"SPECTRALIFT_{name}") for name in ("SCENES", "SRFS"))
    if not scenes or not srfs:
        print("needs SPECTRALIFT_SCENES and SPECTRALIFT_SRFS", file=sys.stderr)
        sys.exit(3)
    root = Path(scenes)
    cubes = {
        "hysu": (root / "dlr_hysu.hdr", sl.Reading()),
        "jasper": (
            root / "jasper_ridge.mat",
            sl.Reading(var="Y", wavelengths=root / "jasper_ridge_wavelengths_nm.txt"),
        ),
    }
    print("scene   sensor       bands  misplaced response  SAM deg measured  edges  cost")
    with scratch(1e9) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", sl.SpectraliftWarning)
        for name, (cube, reading) in cubes.items():
            with reading.open(cube) as reader:
                meta = reader.meta
            for sensor, file in PAIRS.items():
                measured, edges, apart = weight_files(sensor, Path(srfs) / file, meta, folder)
                angles = []
                for seed in SEEDS:
                    scene = sl.synth(
                        cube, folder / "scene", sl.SynthConfig(seed=seed), srf_file=measured,
                        reading=reading, overwrite=True,
                    )  # fmt: skip
                    angles.append([spectral_angle(scene, srf, seed) for srf in (measured, edges)])
                with scene.open("hr_msi") as msi:
                    bands = msi.meta.bands
                true, gauss = np.mean(angles, axis=0)
                print(
                    f"{name:7} {sensor:12} {bands:5}  {apart:18.1%}  {true:16.2f} {gauss:6.2f} "
                    f"{gauss / true - 1:+6.1%}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
