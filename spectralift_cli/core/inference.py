"""Apply a trained spectral inverter to an HR-MSI, block by block: the sharp hyperspectral cube.

Pixels are computed in chunks of a fixed number that are counted from the image's first pixel on, the
last one padded; each chunk runs on one thread and fits a processor's cache. So the same bytes come
out however rows are read and for any number of threads.
"""

from __future__ import annotations

import contextlib
import copy
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectralift_cli.core.checkpoint import Checkpoint
from spectralift_cli.core.config import InferConfig, to_json
from spectralift_cli.core.cube import (
    BLOCK_BYTES,
    AnyArray,
    BoolArray,
    CubeMeta,
    CubeReader,
    CubeWriter,
    Progress,
    no_progress,
    row_blocks,
    to_units,
)
from spectralift_cli.core.devices import Workers, check_threads, on_device
from spectralift_cli.core.errors import DataError, SpectraliftWarning
from spectralift_cli.core.formats import create_cube
from spectralift_cli.core.identity import identity, provenance
from spectralift_cli.core.levels import check_levels, sample_levels
from spectralift_cli.core.models.base import SpectralModel
from spectralift_cli.core.msi_bands import check_bands
from spectralift_cli.core.output_range import OutputRange, output_meta
from spectralift_cli.core.pairs import place_model
from spectralift_cli.core.placement import Placement
from spectralift_cli.core.resources import available_memory_bytes

CPU_CHUNK = 4096
GPU_CHUNK = 65_536
_GPU_WORKERS = 4  # some copy and store while another computes


@dataclass(frozen=True, eq=False)
class InferPlan:
    """What inference will do, known before it does.

    Args:
        meta: of the output.
        batch_size: pixels of a chunk.
        workers: threads at work.
        block_rows: rows read at a time.
        memory_bytes: about the most it holds, besides PyTorch itself.
        device: where it computes.
        placement: of the model's LR-HSI on the image, where it is known.
    """

    meta: CubeMeta
    batch_size: int
    workers: int
    block_rows: int
    memory_bytes: int
    device: str
    placement: Placement | None = None


@dataclass(frozen=True)
class InferResult:
    """What inference did.

    Args:
        files: what was written, the main one first.
        pixels: of the image.
        holes: pixels without a value in some MSI band, which are nodata in the output.
        clipped: values brought into the range of `clip`.
        saturated: values brought into the range of the stored type.
        moved: valid values that rounded onto nodata and moved by one count.
        beyond: pixels far outside the range of the LR pixels, held at its end.
        placement: of the model's LR-HSI on the image, where it is known.
    """

    files: tuple[Path, ...]
    pixels: int
    holes: int
    clipped: int
    saturated: int
    moved: int
    beyond: int = 0
    placement: Placement | None = None


def predict(
    model: SpectralModel,
    msi: NDArray[np.float32],
    *,
    batch_size: int | None = None,
    precision: str = "fp32",
    device: torch.device | None = None,
    threads: int | None = None,
) -> NDArray[np.float32]:
    """Return the HSI spectra of MSI spectra, both scaled.

    Args:
        model: with weights, on the CPU.
        msi: (N, M) float32, scaled, finite; (N, M + 2) with the pixel's row and column, as parts of
            the LR-HSI's height and width, where the model needs its position.
        batch_size: pixels of a chunk; None for the default of the device. Changes speed and memory,
            and the result in the last digits of a float32 at most.
        precision: fp32, or bf16 for about three digits at twice the speed or more.
        device: where; None for the processor.
        threads: at most; None for all this process may use. Changes nothing in the result.

    Returns:
        (N, B) float32.

    Raises:
        DataError: another number of bands, or too little memory.
    """
    if msi.ndim != 2 or msi.shape[1] != model.inputs:
        raise DataError(
            f"MSI spectra of shape {msi.shape} do not fit a model of {model.msi_bands} MSI bands",
            f"give (pixels, {model.inputs})"
            + (", row and column last, as parts of the LR-HSI" if model.needs_position else ""),
        )
    device = device or torch.device("cpu")
    chunk = _chunk_size(batch_size, len(msi), device)
    workers = _worker_count(threads, len(msi), chunk, device)
    out = np.empty((len(msi), model.hsi_bands), np.float32)
    own = model if device.type == "cpu" else copy.deepcopy(model)  # the caller's stays where it is
    with _Engine(own, chunk, precision, device, workers) as engine:

        def work(worker: int, start: int) -> None:
            part = slice(start, min(start + chunk, len(msi)))
            spectra = engine.network(worker, msi[part])[: part.stop - start]
            out[part] = engine.fetch(worker, spectra)

        engine.run(work, range(0, len(msi), chunk))
    return out


def plan_inference(
    checkpoint: Checkpoint,
    msi: CubeMeta,
    *,
    dtype: np.dtype[Any] | str | None = None,
    scale: float | None = None,
    offset: float | None = None,
    nodata: float | None = None,
    batch_size: int | None = None,
    device: torch.device | None = None,
    threads: int | None = None,
    drop_bad_bands: bool = False,
    source: object = "the MSI",
) -> InferPlan:
    """Return what `infer` will write and what it needs; the arguments are those of `infer`.

    Raises:
        DataError: the MSI has other bands than the model takes, or cannot be placed on the LR-HSI
            that the model holds; the stored type cannot be written; or the batch does not fit into
            memory.
    """
    check_bands(msi, checkpoint.srf, checkpoint.hsi.wavelengths_nm, source, "the model")
    placement = place_model(checkpoint, msi, source)
    meta = output_meta(
        checkpoint, msi, dtype=dtype, scale=scale, offset=offset, nodata=nodata,
        drop_bad_bands=drop_bad_bands,
    )  # fmt: skip
    device = device or torch.device("cpu")
    chunk = _chunk_size(batch_size, msi.rows * msi.cols, device)
    workers = _worker_count(threads, msi.rows * msi.cols, chunk, device)
    block_rows = max(1, min(msi.rows, BLOCK_BYTES // msi.row_bytes))
    block_rows = max(block_rows, min(msi.rows, -(-chunk // msi.cols)))
    pixel_bytes = meta.bands * meta.dtype.itemsize
    # units of a chunk, three layers of hidden units, the spectra and the test of their range
    at_work = workers * chunk * (3 * _widest(checkpoint.empty_model()) + 3 * meta.bands) * 4
    held = (_group(chunk, workers, pixel_bytes) + chunk + msi.cols) * pixel_bytes
    needed = at_work + held + 3 * block_rows * msi.row_bytes
    there = available_memory_bytes()
    if device.type == "cpu" and needed > there:
        raise DataError(
            f"batches of {chunk:,} pixels take {needed / 1e6:,.0f} MB of memory, "
            f"{there / 1e6:,.0f} MB are free",
            f"use a smaller --inference-batch-size (default {CPU_CHUNK:,})",
        )
    return InferPlan(meta, chunk, workers, block_rows, needed, str(device), placement)


def infer(
    checkpoint: Checkpoint,
    hr_msi: CubeReader,
    output: Path,
    config: InferConfig,
    *,
    dtype: np.dtype[Any] | str | None = None,
    scale: float | None = None,
    offset: float | None = None,
    nodata: float | None = None,
    batch_size: int | None = None,
    device: torch.device | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    options: Mapping[str, str] | None = None,
    progress: Progress = no_progress,
) -> InferResult:
    """Write the sharp hyperspectral cube of an MSI.

    The output has the MSI's rows, columns and georeference and the LR-HSI's wavelengths, widths and
    band names. Pixels with a hole in any MSI band are holes; so are bands left out of training,
    unless they are dropped. A model that holds the LR-HSI looks up each pixel where map coordinates
    put it, beyond the LR-HSI's edges the nearest of its pixels.
    Integers are rounded to nearest; what their type cannot hold saturates and is counted; a valid
    value that rounds onto nodata moves by one count.

    Args:
        checkpoint: the trained inverter.
        hr_msi: the MSI, in the units of the LR-HSI.
        output: where; the ending chooses the format.
        config: clipping, precision and what becomes of bands left out of training.
        dtype: stored type; None for the LR-HSI's if that is an integer, else float32.
        scale: stored value to unit of an integer output; None for the LR-HSI's.
        offset: likewise.
        nodata: mark of holes in an integer output; None for the LR-HSI's, or, where it has none and
            there may be holes, the type's lowest (unsigned: highest) value. Floats have NaN.
        batch_size: pixels of a chunk; None for the default. Changes speed and memory, and the
            result in the last digits of a float32 at most.
        device: where; None for the processor.
        threads: at most; None for all this process may use. Changes no byte.
        overwrite: replace an existing output.
        options: creation options of the format.
        progress: called as progress(rows done, rows).

    Raises:
        DataError: the MSI does not fit the model or is in other units, a file cannot be read or
            written, or the network gives values that are not finite.
        OutputExistsError: the output exists and `overwrite` is false.
    """
    device = device or torch.device("cpu")
    plan = plan_inference(
        checkpoint, hr_msi.meta, dtype=dtype, scale=scale, offset=offset, nodata=nodata,
        batch_size=batch_size, device=device, threads=threads, source=hr_msi.path,
        drop_bad_bands=config.drop_bad_bands,
    )  # fmt: skip
    if checkpoint.levels is not None:
        check_levels(
            checkpoint.levels, sample_levels(hr_msi, plan.placement), checkpoint.srf.band_names,
            hr_msi.path, hr_msi.meta.scale, checkpoint.radiometry,
        )  # fmt: skip
    given = {"scale": scale, "offset": offset, "nodata": nodata}
    meta = plan.meta.replace(
        provenance=provenance(
            "infer",
            {
                **to_json(config),
                "dtype": plan.meta.dtype.name,
                **{key: value for key, value in given.items() if value is not None},
                **hr_msi.choices,
            },
            {"model": checkpoint.identity(), "hr_msi": identity(*hr_msi.files)},
            earlier=checkpoint.provenance,
        )
    )
    target = OutputRange.of(checkpoint, meta, config.clip, config.clip_range)
    workers = plan.workers
    with (
        create_cube(output, meta, options=options, overwrite=overwrite) as writer,
        _Engine(checkpoint.model(), plan.batch_size, config.precision, device, workers) as engine,
    ):
        tally = _Tally()
        compute = _Compute(checkpoint, hr_msi.meta, meta, target, engine, tally, plan.placement)
        block_rows = max(plan.block_rows, hr_msi.block_rows)
        group = _group(plan.batch_size, workers, meta.bands * meta.dtype.itemsize)
        _stream(hr_msi, block_rows, writer, compute, plan.batch_size, group, progress)
        files = writer.commit()
    if tally.saturated:
        values = (meta.rows * meta.cols - tally.holes) * int(checkpoint.used_bands.sum())
        warnings.warn(
            f"{output}: {tally.saturated:,} of {values:,} values are beyond what "
            f"{meta.dtype.name} can hold with this scale and were set to its nearest value",
            SpectraliftWarning,
            stacklevel=2,
        )
    pixels = meta.rows * meta.cols
    if tally.beyond:
        warnings.warn(
            f"{hr_msi.path}: {tally.beyond:,} of {pixels - tally.holes:,} pixels are far outside "
            "the range of the LR pixels the model was trained on; they are held at its end",
            SpectraliftWarning,
            stacklevel=2,
        )
    return InferResult(
        files, pixels, tally.holes, tally.clipped, tally.saturated, tally.moved, tally.beyond,
        plan.placement,
    )  # fmt: skip


def _chunk_size(batch_size: int | None, pixels: int, device: torch.device) -> int:
    if batch_size is None:
        return CPU_CHUNK if device.type == "cpu" else GPU_CHUNK
    if batch_size < 1:
        raise DataError(
            f"a batch of {batch_size} pixels is none", "give --inference-batch-size 1 or more"
        )
    return max(1, min(batch_size, pixels))


def _worker_count(threads: int | None, pixels: int, chunk: int, device: torch.device) -> int:
    """Return how many threads have something to do."""
    most = check_threads(threads) if device.type == "cpu" else _GPU_WORKERS
    return max(1, min(most, -(-pixels // chunk)))


def _group(chunk: int, workers: int, pixel_bytes: int) -> int:
    """Return the pixels that are computed before rows are written: whole chunks."""
    fitting = BLOCK_BYTES // (chunk * pixel_bytes)
    return chunk * max(fitting, 2 * workers)


def _widest(model: SpectralModel) -> int:
    # the prior's grid is no layer
    return max(max(p.shape) for n, p in model.named_parameters() if not n.endswith("scores"))


def _stream(
    reader: CubeReader,
    block_rows: int,
    writer: CubeWriter,
    compute: Callable[[AnyArray, AnyArray, int], None],
    chunk: int,
    group: int,
    progress: Progress,
) -> None:
    """Pass pixels from a reader through `compute`, in whole chunks, to a writer's whole rows."""
    meta, bands = writer.meta, writer.meta.bands
    waiting = np.empty((0, reader.meta.bands), reader.meta.dtype)  # pixels short of a chunk
    done = np.empty((group + meta.cols, bands), meta.dtype)  # pixels short of a row, then new ones
    filled, row, first = 0, 0, 0
    for rows in row_blocks(meta.rows, block_rows):
        block = reader.read(rows).reshape(-1, reader.meta.bands)  # (pixels, M)
        pixels = np.concatenate([waiting, block]) if len(waiting) else block
        whole = len(pixels) if rows.stop == meta.rows else len(pixels) // chunk * chunk
        for part in row_blocks(whole, group):
            count = part.stop - part.start
            compute(pixels[part], done[filled : filled + count], first)
            filled += count
            first += count
            ready = filled // meta.cols
            if ready:
                values = done[: ready * meta.cols].reshape(ready, meta.cols, bands)
                writer.write(slice(row, row + ready), values)
                row += ready
                rest = done[ready * meta.cols : filled].copy()
                filled = len(rest)
                done[:filled] = rest
                progress(row, meta.rows)
        waiting = pixels[whole:].copy()


class _Engine:
    """A network on a device, with a kernel and buffers for each thread at work."""

    def __init__(
        self,
        model: SpectralModel,
        chunk: int,
        precision: str,
        device: torch.device,
        count: int,
    ) -> None:
        self.chunk = chunk
        self.device = device
        self.needs_position = model.needs_position
        self.trained_range = model.trained_range
        self._workers = Workers(count)
        self._stack = contextlib.ExitStack()
        pinned = device.type == "cuda"
        with on_device(device):
            self._model = model.to(device)
            self._kernels = [model.kernel(chunk, precision) for _ in range(count)]
            shape = (chunk, model.inputs)
            self._inputs = [torch.zeros(shape, pin_memory=pinned) for _ in range(count)]
            self._on_device = (
                self._inputs
                if device.type == "cpu"
                else [torch.zeros(shape, device=device) for _ in range(count)]
            )
            self._outputs = [
                torch.empty((chunk, model.hsi_bands), pin_memory=True) if pinned else None
                for _ in range(count)
            ]
            # a stream each, so that one thread's copies overlap with another's products
            self._streams = (
                [torch.cuda.Stream(device) for _ in range(count)]  # type: ignore[no-untyped-call]
                if pinned
                else []
            )

    def __enter__(self) -> _Engine:
        self._stack.enter_context(self._workers)
        self._stack.enter_context(on_device(self.device))
        return self

    def __exit__(self, *failure: object) -> None:
        self._stack.close()

    def run(self, work: Callable[[int, int], None], starts: range) -> None:
        """Call work(worker, start) for every chunk, without gradients and each on its stream."""

        def wrapped(worker: int, start: int) -> None:
            with torch.inference_mode(), self._stream(worker):
                work(worker, start)

        self._workers.run(wrapped, starts)

    def _stream(self, worker: int) -> contextlib.AbstractContextManager[Any]:
        if not self._streams:
            return contextlib.nullcontext()
        return torch.cuda.stream(self._streams[worker])

    def network(self, worker: int, scaled: AnyArray, position: AnyArray | None = None) -> Tensor:
        """Return the spectra of up to a chunk of pixels, padded: (chunk, B) on the device.

        Args:
            worker: whose buffers.
            scaled: (n, M), or with the position's two columns behind.
            position: (n, 2) these columns, or None.
        """
        given = self._inputs[worker]
        array = given.numpy()
        array[: len(scaled), : scaled.shape[1]] = scaled
        if position is not None:
            array[: len(scaled), scaled.shape[1] :] = position
        array[len(scaled) :] = 0
        on_device = self._on_device[worker]
        if on_device is not given:
            on_device.copy_(given, non_blocking=True)
        return self._kernels[worker](on_device)

    def fetch(self, worker: int, spectra: Tensor) -> NDArray[np.float32]:
        """Return spectra (n, B) as an array on the host that lives until the worker's next call."""
        host = self._outputs[worker]
        if host is None:
            return spectra.cpu().numpy()  # no copy where they are on the processor already
        copied = host[: len(spectra)].copy_(spectra, non_blocking=True)
        self._streams[worker].synchronize()
        return copied.numpy()


class _Tally:
    """Counts that several threads add to."""

    def __init__(self) -> None:
        self.holes = self.clipped = self.saturated = self.moved = self.beyond = 0
        self._lock = threading.Lock()

    def add(self, holes: int, clipped: int, saturated: int, moved: int, beyond: int) -> None:
        with self._lock:
            self.beyond += beyond
            self.holes += holes
            self.clipped += clipped
            self.saturated += saturated
            self.moved += moved


class _Compute:
    """Stored MSI pixels (n, M) to stored HSI pixels (n, B)."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        msi: CubeMeta,
        out: CubeMeta,
        target: OutputRange,
        engine: _Engine,
        tally: _Tally,
        placement: Placement | None,
    ) -> None:
        self._scaling = checkpoint.scaling
        self._radiometry = checkpoint.radiometry
        self._used = checkpoint.used_bands
        if out.bands != self._used.size:  # the others are dropped
            self._used = self._used[self._used]
        self._msi = msi
        self._fill = np.nan if out.nodata is None else out.nodata
        self._target = target.on(engine.device)
        self._engine = engine
        self._tally = tally
        self._at: tuple[AnyArray, AnyArray] | None = None
        if engine.needs_position and placement is not None:
            rows, cols = placement.lr_positions()
            h, w = placement.lr_shape
            self._at = (rows / h).astype(np.float32), (cols / w).astype(np.float32)
        trained = engine.trained_range
        self._range = None if trained is None else trained.cpu().numpy()

    def __call__(self, pixels: AnyArray, out: AnyArray, first: int) -> None:
        """Fill `out` (n, B) with what the pixels (n, M) become; `first` is the index of the first."""
        chunk = self._engine.chunk

        def work(worker: int, start: int) -> None:
            part = slice(start, start + chunk)
            self._chunk(worker, pixels[part], out[part], first + start)

        self._engine.run(work, range(0, len(pixels), chunk))

    def _position(self, first: int, count: int) -> AnyArray | None:
        """Return (count, 2) rows and columns of pixels as parts of the LR-HSI."""
        if self._at is None:
            return None
        row, col = np.divmod(np.arange(first, first + count), self._msi.cols)
        return np.stack([self._at[0][row], self._at[1][col]], axis=1)

    def _chunk(self, worker: int, stored: AnyArray, out: AnyArray, first: int) -> None:
        units = to_units(stored[None], self._msi)[0]  # (n, M)
        holes: BoolArray = ~np.isfinite(units).all(axis=1)
        some = bool(holes.any())
        if some:
            units[holes] = 0
        if self._radiometry is not None:
            units = self._radiometry.apply(units)
        scaled = self._scaling.apply(units)
        beyond = 0
        if self._range is not None:
            far = (scaled < self._range[0]) | (scaled > self._range[1])
            beyond = int((far.any(axis=1) & ~holes).sum())
        position = self._position(first, len(stored))
        spectra = self._engine.network(worker, scaled, position)  # (chunk, used)
        valid = torch.from_numpy(~holes).to(spectra.device) if some else None
        clipped, saturated = self._target.apply(spectra[: len(stored)], valid)
        values = self._engine.fetch(worker, spectra[: len(stored)])
        if self._used.all():
            out[...] = values
        else:
            out[:, self._used] = values
            out[:, ~self._used] = self._fill
        moved = self._target.keep_off_nodata(out, self._used, holes)
        if some:
            out[holes] = self._fill
        self._tally.add(int(holes.sum()), clipped, saturated, moved, beyond)
