"""Training of preset `paper`: seconds and epochs a second, for any number of threads the same bytes.

With the `samples` extra the pixels are Indian Pines's (144 x 144 at ratio 4: 1,296 LR pixels);
24,320 LR pixels are a Washington-DC-size scene.
"""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import numpy as np
import torch

from spectralift_cli.core.config import TrainConfig
from spectralift_cli.core.fitting import fit
from spectralift_cli.core.resources import available_cpus

RUNS = ((1296, 2500), (24_320, 60))


def spectra(pixels: int) -> np.ndarray:
    """Return (pixels, 200) float32 spectra near [0, 1]: Indian Pines's, else mixtures."""
    found = importlib.util.find_spec("tensorly")
    if found is None or found.origin is None:
        generator = np.random.default_rng(0)
        shares = generator.dirichlet(np.ones(6), pixels)
        ends = np.cumsum(generator.normal(size=(6, 200)), axis=1)
        mixed = shares @ (ends - ends.min()) / np.ptp(ends)
        return mixed.astype(np.float32)
    path = Path(found.origin).parent / "datasets/data/Indian_pines_corrected.npy"
    cube = np.load(path)[:144, :144].astype(np.float32)
    low, high = (np.float32(end) for end in np.percentile(cube, [1, 99]))
    cube = (cube - low) / (high - low)
    if pixels == 1296:
        return cube.reshape(36, 4, 36, 4, 200).mean((1, 3)).reshape(-1, 200)
    return np.resize(cube.reshape(-1, 200), (pixels, 200))


def response(bands: int) -> np.ndarray:
    """Return the (4, bands) response of a sensor with bands at 1/10, 3/10, 1/2 and 3/4 of them."""
    centres = np.array([0.1, 0.3, 0.5, 0.75])[:, None] * bands
    weights = np.exp(-(((np.arange(bands) - centres) / (0.06 * bands)) ** 2))
    return weights / weights.sum(1, keepdims=True)


def pairs(pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (pixels, 4) and (pixels, 200) float32, an LR-MSI and its LR-HSI."""
    hsi = spectra(pixels)
    return hsi @ response(200).T.astype(np.float32), hsi


def main() -> None:
    """Print a row for each size, device and number of threads."""
    print("LR pixels  epochs  device  threads  seconds  epochs/s     loss")
    for pixels, epochs in RUNS:
        msi, hsi = pairs(pixels)
        places = [("cpu", n) for n in sorted({1, available_cpus()})]
        places += [("cuda", 1)] if torch.cuda.is_available() else []
        for device, threads in places:
            started = time.perf_counter()
            fitted = fit(
                msi,
                hsi,
                TrainConfig(preset="paper", epochs=epochs),
                device=torch.device(device),
                threads=threads,
            )
            seconds = time.perf_counter() - started
            print(
                f"{pixels:9,} {epochs:7,}  {device:6} {threads:8} {seconds:8.1f} "
                f"{epochs / seconds:9.1f} {fitted.history.loss[-1]:8.5f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
