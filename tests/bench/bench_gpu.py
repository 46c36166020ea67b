"""Training and inference on a GPU, beside what its arithmetic and its bus can do in the same run.

Training: preset `paper` on 1,296 and 24,320 LR pixels, its steps replayed as a CUDA graph and launched
one by one. The ceiling of a step is the time of its products at the rate of a large one; forward and
backward take 3 times the operations of inference. Seconds to accuracy are those until the loss stays
within 1 % of what the whole preset ends at.

Inference: 4 to 191 bands, of pixels that lie on the device, and of an array on the host to an array
on the host. Without a GPU all of it runs on the processor with smaller counts, and says so.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable

import numpy as np
import torch

from spectralift_cli.core import fitting
from spectralift_cli.core.config import TrainConfig
from spectralift_cli.core.fitting import Fitted, fit
from spectralift_cli.core.inference import predict
from spectralift_cli.core.models.base import SpectralModel
from spectralift_cli.core.models.paper import build_paper
from tests.bench.bench_training import pairs

BANDS = 191
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Busy:
    """The share of time in which the GPU had work, sampled by nvidia-smi while a block runs."""

    def __init__(self, device: torch.device) -> None:
        self._tool = shutil.which("nvidia-smi") if device.type == "cuda" else None
        self._index = str(device.index or 0)
        self._samples: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def _sample(self) -> None:
        query = ["-i", self._index, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while self._tool and not self._stop.wait(0.2):
            done = subprocess.run([self._tool, *query], capture_output=True, text=True)
            if done.stdout.strip().isdecimal():
                self._samples.append(float(done.stdout))

    def __enter__(self) -> Busy:
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._stop.set()
        self._thread.join()

    def __str__(self) -> str:
        return f"{np.mean(self._samples):.0f} %" if self._samples else "-"


def best_seconds(work: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Return the seconds of the fastest of some calls, the device's work included; one goes before."""
    found = []
    for _ in range(repeats + 1):
        wait_for(device)
        started = time.perf_counter()
        work()
        wait_for(device)
        found.append(time.perf_counter() - started)
    return min(found[1:])


def wait_for(device: torch.device) -> None:
    """Wait until all work queued on a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ceilings(device: torch.device) -> tuple[dict[str, float], float, float]:
    """Print and return FLOP/s of a large product by precision, and bytes/s to and from the device."""
    size = 8192 if device.type == "cuda" else 1024
    rates = {}
    for name, dtype in PRECISIONS.items():
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty(size, size, dtype=dtype, device=device)

        def multiply(a: torch.Tensor = a, b: torch.Tensor = b, out: torch.Tensor = out) -> None:
            torch.mm(a, b, out=out)

        rates[name] = 2 * size**3 / best_seconds(multiply, device)
        print(f"product {size}^3, {name}: {rates[name] / 1e12:.3g} TFLOP/s")
    count = (2**28 if device.type == "cuda" else 2**25) // 4
    host = torch.empty(count, pin_memory=device.type == "cuda")
    there = torch.empty(count, device=device)
    up = 4 * count / best_seconds(lambda: there.copy_(host, non_blocking=True), device)
    down = 4 * count / best_seconds(lambda: host.copy_(there, non_blocking=True), device)
    what = "pinned copies" if device.type == "cuda" else "copies in memory"
    print(f"{what}: {up / 1e9:.1f} GB/s to the device, {down / 1e9:.1f} GB/s from it")
    return rates, up, down


def training(device: torch.device, flops_per_s: float) -> None:
    """Print steps a second and seconds to accuracy."""
    gpu = device.type == "cuda"
    runs = ((1296, 2500), (24_320, 2500)) if gpu else ((1296, 250), (24_320, 20))
    print(
        "\nLR pixels  epochs  steps     steps/s  of arithmetic  seconds  to accuracy     loss  busy"
    )
    for pixels, epochs in runs:
        msi, hsi = pairs(pixels)
        config = TrainConfig(preset="paper", epochs=epochs)

        def whole(
            msi: np.ndarray = msi, hsi: np.ndarray = hsi, config: TrainConfig = config
        ) -> Fitted:
            return fit(msi, hsi, config, device=device)

        for steps in ("replayed", "launched") if gpu else ("plain",):
            recorded = fitting.recorded
            if steps == "launched":
                fitting.recorded = lambda work, changed, device: work
            try:
                fit(msi, hsi, TrainConfig(preset="paper", epochs=3), device=device)  # wakes it up
                with Busy(device) as busy:
                    started = time.perf_counter()
                    fitted = whole()
                    seconds = time.perf_counter() - started
            finally:
                fitting.recorded = recorded
            pace, loss = fitted.pace, fitted.history.loss
            floor = 3 * fitted.model.flops_per_pixel * pixels / flops_per_s
            reached = int(np.flatnonzero(loss > 1.01 * loss[-1]).max(initial=-1)) + 1
            rate = pace.steps / pace.seconds
            print(
                f"{pixels:9,} {epochs:7,}  {steps:8} {rate:8.1f} {rate * floor:14.1%} {seconds:8.2f} "
                f"{seconds * reached / epochs:12.2f} {loss[-1]:8.5f}  {busy}",
                flush=True,
            )


def inference(device: torch.device, rates: dict[str, float], up: float, down: float) -> None:
    """Print pixels a second, on the device alone and with the way there and back."""
    gpu = device.type == "cuda"
    pixels = 4_000_000 if gpu else 400_000
    model = build_paper(4, BANDS)
    model.with_weights(model.initial_weights(torch.Generator().manual_seed(0)))
    msi = np.random.default_rng(0).random((pixels, 4), dtype=np.float32)
    print("\nprecision  transfer  Mpixels/s  of arithmetic  of the bus  busy")
    for precision in PRECISIONS:
        most = rates[precision] / model.flops_per_pixel
        with Busy(device) as busy:
            rate = resident(model, precision, device, 2**18 if gpu else 4096)
        print(f"{precision:9}  without  {rate / 1e6:10.2f} {rate / most:14.1%} {'-':>11}  {busy}")

        def both_ways(precision: str = precision) -> np.ndarray:
            return predict(model, msi, precision=precision, device=device)

        with Busy(device) as busy:
            rate = pixels / best_seconds(both_ways, device, repeats=3)
        # both directions of the bus work at once: the slower bounds
        bus = min(up / (4 * 4), down / (4 * BANDS))
        print(
            f"{precision:9}  with     {rate / 1e6:10.2f} {rate / most:14.1%} {rate / bus:11.1%}  {busy}"
        )


def resident(model: SpectralModel, precision: str, device: torch.device, chunk: int) -> float:
    """Return pixels a second of a chunk that lies on the device, again and again."""
    own = build_paper(4, BANDS).with_weights(model.state_dict()).to(device)
    seen = torch.rand((chunk, 4), device=device)
    kernel, rounds = own.kernel(chunk, precision), 100
    with torch.inference_mode():

        def work() -> None:
            for _ in range(rounds):
                kernel(seen)

        return rounds * chunk / best_seconds(work, device, repeats=3)


def main() -> None:
    """Measure on the GPU, or on one thread of the processor where there is none."""
    if torch.cuda.is_available():
        device = torch.device("cuda", 0)
        print(f"{torch.cuda.get_device_name(device)}, PyTorch {torch.__version__}")
    else:
        device = torch.device("cpu")
        print(
            "there is no CUDA device: this is the processor, with smaller counts; products and copies "
            "on one thread, training and inference with a transfer on all"
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rates, up, down = ceilings(device)
    training(device, rates["fp32"])
    inference(device, rates, up, down)
    torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
