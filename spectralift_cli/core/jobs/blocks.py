"""Computing a block of a job's output, and checking one that is there."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from spectralift_cli import __version__
from spectralift_cli.core import pairs
from spectralift_cli.core.config import InferConfig
from spectralift_cli.core.cube import AnyArray
from spectralift_cli.core.cubeio import CubeReader, CubeWriter, SelectedReader, row_blocks
from spectralift_cli.core.engine import Compute, Counts, WriteBehind
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats import create_cube, open_cube
from spectralift_cli.core.formats.arrays import meta_to_json
from spectralift_cli.core.given import ON_PROCESSOR, Execution, Reading, Storage
from spectralift_cli.core.grids import check_on_map
from spectralift_cli.core.inference import Inference, prepare
from spectralift_cli.core.jobs.folder import Job, Receipt
from spectralift_cli.core.jobs.plan import BlockGrid
from spectralift_cli.core.msi_bands import without_dropped
from spectralift_cli.core.optionfields import to_json
from spectralift_cli.core.resources import available_cpus
from spectralift_cli.core.stages import open_model

# blocks that are computed and not yet on the disk
_MOST_UNSETTLED = 4
_CHECKED_BYTES = 4 * 2**20  # read back at a time
_CHECK_COPIES = 2  # as it is stored, and in the order of the checksum


@dataclass(frozen=True)
class InferTask:
    """An inference as every process that works on it is told of it; see `stages.infer`.

    Args:
        model: a checkpoint.
        image: the HR-MSI, or a scene.
        output: the cube.
        config: what determines the values.
        stored: how the output is stored.
        batch_size: pixels of a chunk, or None.
        reading: how to read the HR-MSI.
        overwrite: replace an existing output.
        execution: device, and threads and memory of one process; its progress is not called.
        estimate: file of an estimate whose radiometry and shift replace the model's, or None.
    """

    model: Path
    image: Path
    output: Path
    config: InferConfig = field(default_factory=InferConfig)
    stored: Storage = field(default_factory=Storage)
    batch_size: int | None = None
    reading: Reading = field(default_factory=Reading)
    overwrite: bool = False
    execution: Execution = ON_PROCESSOR
    estimate: Path | None = None

    def open(self, *, checks_levels: bool = True) -> Inference:
        """Open the model and the MSI; the caller closes the latter."""
        checkpoint = open_model(self.model, self.estimate)
        path, _ = pairs.sharp_image(self.image)
        reader = self.reading.open(path, allow_2d=True)
        try:
            check_on_map(reader)
            return prepare(
                checkpoint, without_dropped(reader, checkpoint.srf), self.config,
                stored=self.stored, batch_size=self.batch_size,
                execution=self.execution, checks_levels=checks_levels,
            )  # fmt: skip
        except BaseException:
            reader.close()
            raise

    def plan(self, inference: Inference) -> dict[str, Any]:
        """Return what determines the output's bytes, JSON-ready."""
        meta = meta_to_json(inference.meta.replace(provenance=None))
        return {
            "version": __version__,
            **{role: dict(found) for role, found in inference.inputs.items()},
            "options": {
                **to_json(self.config), **inference.hr_msi.choices, "co": self.stored.options or {}
            },
            "output": {
                "name": self.output.name, "shape": list(inference.meta.shape),
                "dtype": inference.meta.dtype.name, "meta": meta,
            },
            # the last digits depend on these
            "arithmetic": {
                "batch_size": inference.plan.batch_size, "device": inference.device.type,
                "torch": torch.__version__,
            },
        }  # fmt: skip


class BlockWorker:
    """One process at work on the blocks of a job.

    Args:
        task: the inference.
        job: joined by this process.
        inference: the open inference, which the caller closes; None to open one here.

    Raises:
        DataError: what is opened here is not what the job was planned with: a worker that is started
            late finds other files, one on another host may be of another version.
    """

    def __init__(self, task: InferTask, job: Job, inference: Inference | None = None) -> None:
        self.task = task
        self.job = job
        self._stack = contextlib.ExitStack()
        self.inference = inference or self._stack.enter_context(
            contextlib.closing(task.open(checks_levels=False))
        )
        try:
            if inference is None:
                job.check_plan(task.plan(self.inference))
            self.writer: CubeWriter = self._stack.enter_context(
                create_cube(
                    task.output, self.inference.meta, options=task.stored.options,
                    overwrite=task.overwrite, shared=job.data,
                )
            )  # fmt: skip
            self.inference = self.inference.written_by(self.writer)
        except BaseException:
            self._stack.close()
            raise
        self._compute: Compute | None = None
        self.grid = BlockGrid.of(
            self.inference.meta, self.inference.plan.batch_size, self.writer.block_rows
        )

    def run(
        self,
        blocks: Iterable[int],
        done: Callable[[int], None],
        failed: Callable[[BaseException], None] = lambda _: None,
    ) -> None:
        """Ensure blocks: prove each complete by its receipt, or compute it.

        While one is computed, the last ones are written, brought to the disk and given receipts.

        Args:
            blocks: which; may wait for the next.
            done: called with each that is proven, from any thread.
            failed: called with what is going to be raised, from any thread, so that `blocks` need
                wait no longer.

        Raises:
            DataError: the rows of the MSI are not those that a finished block was made of, or see
                `infer`.
        """
        with (
            _Settling(self._settle, done, failed) as settling,
            WriteBehind(_telling(failed, self._write)) as behind,
        ):
            for block in blocks:
                settling.check()
                if self.unproven([block]):
                    self._begin(block, behind, settling)
                else:
                    done(block)

    def unit_of(self, block: int) -> int:
        """Return which rows of the MSI, of those that are decoded together, a block begins in."""
        start: int = self.grid.part(block).start
        return start // self.inference.hr_msi.row_unit

    def unproven(self, blocks: Sequence[int]) -> list[int]:
        """Return those blocks that are not there as their receipts say.

        Raises:
            DataError: one is, yet the rows of the MSI are no longer those it was made of.
        """

        def proof(block: int) -> Receipt | None:
            receipt = self.job.receipt(block)
            if receipt is None or self._stored_crc32(block) != receipt.crc32:
                return None
            return receipt

        plan = self.inference.plan
        held = _CHECK_COPIES * self._checked_rows() * self.inference.meta.row_bytes
        threads = min(available_cpus(), plan.footprint.spare(plan.cut) // held)
        with ThreadPoolExecutor(max(1, threads)) as pool:
            # reading back and checking; the MSI's reader serves one thread only
            receipts = dict(zip(blocks, pool.map(proof, blocks), strict=True))
        for block, receipt in receipts.items():
            if receipt is not None:
                self._check_input(block, receipt)
        return [block for block, receipt in receipts.items() if receipt is None]

    def _check_input(self, block: int, receipt: Receipt) -> None:
        # of a large image the plan knows only the beginning, the middle and the end
        part = self.grid.part(block)
        digest = _HashedRows(self.inference.hr_msi, part)
        height = min(digest.block_rows, self.inference.plan.cut.read_rows)
        for rows in row_blocks(part.stop - part.start, height):
            digest.read(slice(part.start + rows.start, part.start + rows.stop))
        if digest.sha256() != receipt.input_sha256:
            raise DataError(
                f"{self.inference.hr_msi.path}: rows {part.start} to {part.stop} have changed since "
                "the output's were computed",
                "restore the image, or start afresh with --overwrite, without --resume and --shard",
            )

    def _begin(self, block: int, behind: WriteBehind, settling: _Settling) -> None:
        """Compute a block; it is written and settled behind."""
        if self._compute is None:  # its buffers and threads serve all blocks
            self._compute = self._stack.enter_context(self.inference.computing())
        self._compute.counts = Counts()
        part = self.grid.part(block)
        taken = _HashedRows(self.inference.hr_msi, part)
        crc = _Crc32()
        with contextlib.closing(
            self.inference.stream(self._compute, part, self.writer, taken)
        ) as stream:
            for rows, values in stream:
                if rows.stop < part.stop:
                    behind.write(rows, values, crc, None)
                    continue
                counts = self._compute.counts

                def settle(crc32: int, counts: Counts = counts, block: int = block) -> None:
                    settling.add(block, Receipt(crc32, taken.sha256(), counts))

                behind.write(rows, values, crc, settle)

    def _write(
        self, rows: slice, values: AnyArray, crc: _Crc32, settle: Callable[[int], None] | None
    ) -> None:
        self.writer.write(rows, values)
        crc.update(values)
        if settle is not None:
            settle(crc.value)

    def _settle(self, receipts: Mapping[int, Receipt]) -> None:
        """Bring to the disk what was written, then say so."""
        try:
            self.writer.sync()
        except DataError as error:
            raise DataError(error.message, "free some room, then continue with --resume") from error
        for block, receipt in receipts.items():
            self.job.add_receipt(block, receipt)

    def _checked_rows(self) -> int:
        """Return how many rows are read back at a time: of whole chunks, where there are some."""
        step = self.writer.block_rows
        rows = max(1, _CHECKED_BYTES // self.inference.meta.row_bytes // step) * step
        return min(rows, self.grid.block_rows)

    def _stored_crc32(self, block: int) -> int | None:
        """Return the checksum of a block's stored values, or None where they cannot be read."""
        part = self.grid.part(block)
        crc = _Crc32()
        try:
            with open_cube(self.job.data / self.task.output.name) as reader:
                meta = self.inference.meta
                if (reader.meta.shape, reader.meta.dtype) != (meta.shape, meta.dtype):
                    return None
                for rows in row_blocks(part.stop - part.start, self._checked_rows()):
                    crc.update(reader.read(slice(part.start + rows.start, part.start + rows.stop)))
        except DataError:
            return None
        return crc.value

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()


class _Settling:
    """A thread that settles blocks, as many at once as have come in while it was busy.

    Args:
        settle: called with receipts by block.
        done: called with each block then.
        failed: called with what `settle` raised.
    """

    def __init__(
        self,
        settle: Callable[[Mapping[int, Receipt]], None],
        done: Callable[[int], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._settle = settle
        self._done = done
        self._failed = failed
        # bounded, so that a slow disk is waited for before all memory is waiting to be written
        self._queue: Queue[tuple[int, Receipt] | None] = Queue(_MOST_UNSETTLED)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="settling", daemon=True)

    def add(self, block: int, receipt: Receipt) -> None:
        """Take a block that is written."""
        self._queue.put((block, receipt))

    def check(self) -> None:
        """Raise what went wrong, if anything did."""
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        goes_on = True
        while goes_on:
            come = [self._queue.get()]
            with contextlib.suppress(Empty):
                while True:
                    come.append(self._queue.get_nowait())
            goes_on = None not in come
            receipts = dict(item for item in come if item is not None)
            if self._failure is not None or not receipts:
                continue  # what comes after a failure is dropped
            try:
                self._settle(receipts)
                for block in receipts:
                    self._done(block)
            except BaseException as failure:  # raised by `check`
                self._failure = failure
                self._failed(failure)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._queue.put(None)
        self._thread.join()
        if kind is None:
            self.check()


def _telling(
    failed: Callable[[BaseException], None], call: Callable[..., None]
) -> Callable[..., None]:
    """Return a function that tells of its failure before it raises it."""

    def told(*args: Any) -> None:
        try:
            call(*args)
        except BaseException as failure:
            failed(failure)
            raise

    return told


class _HashedRows(SelectedReader):
    """A reader that hashes the rows of a block as they pass, read once from top to bottom."""

    def __init__(self, source: CubeReader, part: slice) -> None:
        super().__init__(source)
        self._part = part
        self._digest = hashlib.sha256()

    def _read(self, start: int, stop: int) -> AnyArray:
        values = super()._read(start, stop)
        inside = values[max(0, self._part.start - start) : max(0, self._part.stop - start)]
        self._digest.update(_little_bytes(inside))
        return values

    def sha256(self) -> str:
        """Return the hash of the block's rows; all of them have been read."""
        return self._digest.hexdigest()


class _Crc32:
    """A checksum of stored values, row after row.

    It finds what disks and killed processes do, not what somebody does on purpose, at several times
    the speed of a cryptographic one: the latter would take a fifth of the time of the network.
    """

    def __init__(self) -> None:
        self.value = 0

    def update(self, values: AnyArray) -> None:
        """Add values that follow."""
        self.value = zlib.crc32(_little_bytes(values), self.value)


def _little_bytes(values: AnyArray) -> memoryview:
    """Return stored values as bytes, row after row, little endian."""
    little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8).data
