"""Apply a trained spectral inverter to an HR-MSI, block by block: the sharp hyperspectral cube.

The same bytes come out however rows are read and for any number of threads; see `engine`.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import time
import warnings
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from spectralift_cli.core.checkpoint import Checkpoint
from spectralift_cli.core.config import InferConfig
from spectralift_cli.core.cube import AnyArray, CubeMeta
from spectralift_cli.core.cubeio import CubeReader, CubeWriter
from spectralift_cli.core.devices import check_threads, resolve_device
from spectralift_cli.core.engine import (
    Compute,
    Counts,
    Engine,
    SyncBehind,
    WriteBehind,
    stream_rows,
)
from spectralift_cli.core.errors import DataError, SpectraliftWarning
from spectralift_cli.core.footprint import Cut, Footprint
from spectralift_cli.core.formats import create_cube
from spectralift_cli.core.given import ON_PROCESSOR, Execution, Storage
from spectralift_cli.core.identity import identity, provenance
from spectralift_cli.core.levels import check_levels, sample_levels
from spectralift_cli.core.models.base import SpectralModel
from spectralift_cli.core.msi_bands import check_bands
from spectralift_cli.core.optionfields import to_json
from spectralift_cli.core.output_range import OutputRange, output_meta
from spectralift_cli.core.pairs import place_model
from spectralift_cli.core.placement import Placement
from spectralift_cli.core.resources import available_memory_bytes, peak_memory_bytes

if TYPE_CHECKING:
    from spectralift_cli.core.uncertainty.write import UncertaintyResult

CPU_CHUNK = 4096
GPU_CHUNK = 65_536
_TRIAL_GROUPS = 2
_GPU_WORKERS = 4  # some copy and store while another computes


@dataclass(frozen=True, eq=False)
class InferPlan:
    """What inference will do, known before it does.

    Args:
        meta: of the output.
        batch_size: pixels of a chunk.
        cut: threads at work, pixels between two writes, rows read at a time.
        needed_bytes: about the most it holds, besides PyTorch itself.
        device: where it computes.
        footprint: what it holds.
        memory_bytes: the most that the process may hold, or None.
        placement: of the model's LR-HSI on the image, where it is known.
    """

    meta: CubeMeta
    batch_size: int
    cut: Cut
    needed_bytes: int
    device: str
    footprint: Footprint
    memory_bytes: int | None
    placement: Placement | None = None

    def after(self, passed_bytes: int) -> InferPlan:
        """Return the plan after something that held so much more than the program before it."""
        footprint = dataclasses.replace(self.footprint, passed_bytes=passed_bytes)
        return dataclasses.replace(self, footprint=footprint)

    def written_by(self, writer: CubeWriter) -> InferPlan:
        """Return the plan with what a writer really holds.

        Raises:
            DataError: it is too much for the promised memory.
        """
        if self.memory_bytes is None:
            return self
        footprint = self.footprint.written_by(writer)
        cut = footprint.within(self.memory_bytes)
        return dataclasses.replace(
            self, footprint=footprint, cut=cut, needed_bytes=footprint.needed(cut)
        )


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
        uncertainty: what was written of it, if it was asked for.
    """

    files: tuple[Path, ...]
    pixels: int
    holes: int
    clipped: int
    saturated: int
    moved: int
    beyond: int = 0
    placement: Placement | None = None
    uncertainty: UncertaintyResult | None = None


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
    with Engine(own, chunk, precision, device, workers) as engine:

        def work(worker: int, start: int) -> None:
            part = slice(start, min(start + chunk, len(msi)))
            spectra = engine.network(worker, msi[part])[: part.stop - start]
            out[part] = engine.fetch(worker, spectra)

        engine.run(work, range(0, len(msi), chunk))
    return out


def plan_inference(
    checkpoint: Checkpoint,
    reader: CubeReader,
    config: InferConfig,
    *,
    stored: Storage = Storage(),
    batch_size: int | None = None,
    execution: Execution = ON_PROCESSOR,
    output: Path | None = None,
) -> InferPlan:
    """Return what `infer` will write and what it needs; the arguments are those of `infer`.

    Without `output` the plan leaves out what the writer holds; see `InferPlan.written_by`.

    Raises:
        DataError: the MSI has other bands than the model takes, or cannot be placed on the LR-HSI
            that the model holds; the stored type cannot be written; or the batch does not fit into
            memory.
    """
    msi, source = reader.meta, reader.path
    check_bands(msi, checkpoint.srf, checkpoint.hsi.wavelengths_nm, source, "the model")
    placement = place_model(checkpoint, msi, source)
    meta = output_meta(checkpoint, msi, stored, drop_bad_bands=config.drop_bad_bands)
    device = resolve_device(execution.device)
    chunk = _chunk_size(batch_size, msi.rows * msi.cols, device)
    workers = _worker_count(execution.threads, msi.rows * msi.cols, chunk, device)
    footprint = Footprint.of(checkpoint.empty_model(), reader, meta, chunk, workers, output)
    if execution.memory_bytes is not None:
        cut = footprint.within(execution.memory_bytes)
    else:
        cut, there = footprint.widest, available_memory_bytes()
        if device.type == "cpu" and footprint.needed(cut) > there:
            raise DataError(
                f"batches of {chunk:,} pixels take {footprint.needed(cut) / 1e6:,.0f} MB of memory, "
                f"{there / 1e6:,.0f} MB are free",
                f"use a smaller --inference-batch-size (default {CPU_CHUNK:,}), or say with "
                "--memory how much it may take",
            )
    return InferPlan(
        meta, chunk, cut, footprint.needed(cut), str(device), footprint, execution.memory_bytes,
        placement,
    )  # fmt: skip


def infer(
    checkpoint: Checkpoint,
    hr_msi: CubeReader,
    output: Path,
    config: InferConfig,
    *,
    stored: Storage = Storage(),
    batch_size: int | None = None,
    execution: Execution = ON_PROCESSOR,
    overwrite: bool = False,
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
        stored: type, scale, nodata and creation options of the output.
        batch_size: pixels of a chunk; None for the default. Changes speed and memory, and the
            result in the last digits of a float32 at most.
        execution: device, threads, memory; its progress is called as progress(rows done, rows).
        overwrite: replace an existing output.

    Raises:
        DataError: the MSI does not fit the model or is in other units, a file cannot be read or
            written, or the network gives values that are not finite.
        OutputExistsError: the output exists and `overwrite` is false.
    """
    inference = prepare(
        checkpoint, hr_msi, config, stored=stored, batch_size=batch_size, execution=execution
    )
    rows = inference.meta.rows
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(
            create_cube(output, inference.meta, options=stored.options, overwrite=overwrite)
        )
        inference = inference.written_by(writer)
        compute = stack.enter_context(inference.computing())
        with (
            SyncBehind(writer.sync) as sync,
            WriteBehind(writer.write) as behind,
            contextlib.closing(inference.stream(compute, slice(0, rows), writer)) as stream,
        ):
            for part, values in stream:
                behind.write(part, values)
                sync.wrote(values.nbytes)
                execution.progress(part.stop, rows)
        files = writer.commit()
    return inference.result(output, files, compute.counts)


@dataclass(frozen=True, eq=False)
class Inference:
    """An inference whose inputs are open and checked.

    Args:
        checkpoint: the trained inverter.
        hr_msi: the MSI.
        config: clipping, precision and what becomes of bands left out of training.
        plan: of its work.
        meta: of the output, with its provenance.
        inputs: role -> identity of what it reads.
    """

    checkpoint: Checkpoint
    hr_msi: CubeReader
    config: InferConfig
    plan: InferPlan
    meta: CubeMeta
    inputs: Mapping[str, Mapping[str, Any]]

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return torch.device(self.plan.device)

    def written_by(self, writer: CubeWriter) -> Inference:
        """Return the same, cut so that the promised memory is enough for a writer, too.

        Raises:
            DataError: it cannot be.
        """
        return dataclasses.replace(self, plan=self.plan.written_by(writer))

    def close(self) -> None:
        """Close the MSI."""
        self.hr_msi.close()

    @contextlib.contextmanager
    def computing(self) -> Iterator[Compute]:
        """Yield what turns stored MSI pixels into stored HSI pixels, with its threads at work."""
        config, plan = self.config, self.plan
        target = OutputRange.of(self.checkpoint, self.meta, config.clip, config.clip_range)
        with Engine(
            self.checkpoint.model(),
            plan.batch_size,
            config.precision,
            self.device,
            plan.cut.workers,
        ) as engine:
            yield Compute(
                self.checkpoint, self.hr_msi.meta, self.meta, target, engine, plan.placement
            )

    def stream(
        self,
        compute: Compute,
        rows: slice,
        writer: CubeWriter | None = None,
        reader: CubeReader | None = None,
    ) -> Generator[tuple[slice, AnyArray], None, None]:
        """Yield (rows, stored values) of a part of the output; see `stream_rows`.

        Args:
            compute: of this inference.
            rows: the part.
            writer: that takes them, in portions that suit it; None where nobody does.
            reader: through which the MSI is read if one is given; its rows are the same.
        """
        cut = self.plan.cut
        return stream_rows(
            reader or self.hr_msi, rows, compute, group=cut.group, read_rows=cut.read_rows,
            step=writer.block_rows if writer and writer.random_access else 1,
            page_offset=None if writer is None else writer.page_offset,
        )  # fmt: skip

    def trial(self) -> float:
        """Return the pixels a second of a short trial on this machine: reading and computing."""
        cols = self.meta.cols
        rows = slice(0, min(self.meta.rows, -(-_TRIAL_GROUPS * self.plan.cut.group // cols)))
        seconds = math.inf
        with self.computing() as compute:
            for _ in range(2):  # the first time libraries and caches are cold
                started = time.perf_counter()
                for _part in self.stream(compute, rows):
                    pass
                seconds = min(seconds, time.perf_counter() - started)
        return rows.stop * cols / seconds

    def result(self, output: Path, files: tuple[Path, ...], counts: Counts) -> InferResult:
        """Return what was done, with a warning of values and pixels out of range."""
        meta = self.meta
        pixels = meta.rows * meta.cols
        if counts.saturated:
            values = (pixels - counts.holes) * int(self.checkpoint.used_bands.sum())
            warnings.warn(
                f"{output}: {counts.saturated:,} of {values:,} values are beyond what "
                f"{meta.dtype.name} can hold with this scale and were set to its nearest value",
                SpectraliftWarning,
                stacklevel=3,
            )
        if counts.beyond:
            warnings.warn(
                f"{self.hr_msi.path}: {counts.beyond:,} of {pixels - counts.holes:,} pixels are far "
                "outside the range of the LR pixels the model was trained on; they are held at its "
                "end",
                SpectraliftWarning,
                stacklevel=3,
            )
        return InferResult(
            files, pixels, counts.holes, counts.clipped, counts.saturated, counts.moved,
            counts.beyond, self.plan.placement,
        )  # fmt: skip


def prepare(
    checkpoint: Checkpoint,
    hr_msi: CubeReader,
    config: InferConfig,
    *,
    stored: Storage = Storage(),
    batch_size: int | None = None,
    execution: Execution = ON_PROCESSOR,
    output: Path | None = None,
    checks_levels: bool = True,
) -> Inference:
    """Return an inference ready to compute; the arguments are those of `plan_inference`.

    Without `checks_levels` the MSI's values are not compared with the LR-HSI's: another process has
    done it.

    Raises:
        DataError: the MSI does not fit the model or is in other units.
    """
    plan = plan_inference(
        checkpoint, hr_msi, config, stored=stored, batch_size=batch_size, execution=execution,
        output=output,
    )  # fmt: skip
    if checks_levels and checkpoint.levels is not None:
        before = peak_memory_bytes()
        check_levels(
            checkpoint.levels, sample_levels(hr_msi, plan.placement), checkpoint.srf.band_names,
            hr_msi.path, hr_msi.meta.scale, checkpoint.radiometry,
        )  # fmt: skip
        plan = plan.after(peak_memory_bytes() - before)
    inputs = {"model": checkpoint.identity(), "hr_msi": identity(*hr_msi.files)}
    meta = plan.meta.replace(
        provenance=provenance(
            "infer",
            {
                **to_json(config),
                "dtype": plan.meta.dtype.name,
                **stored.numbers,
                **hr_msi.choices,
            },
            inputs,
            earlier=checkpoint.provenance,
        )
    )
    return Inference(checkpoint, hr_msi, config, plan, meta, inputs)


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
