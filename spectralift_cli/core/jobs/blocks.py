"""Computing a block of a job's output, and checking one that is there."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from spectralift_cli import __version__
from spectralift_cli.core import pairs
from spectralift_cli.core.config import InferConfig, to_json
from spectralift_cli.core.cube import AnyArray, CubeWriter, row_blocks
from spectralift_cli.core.devices import resolve_device
from spectralift_cli.core.engine import WriteBehind
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats import create_cube, open_cube
from spectralift_cli.core.formats.arrays import meta_to_json
from spectralift_cli.core.grids import check_on_map
from spectralift_cli.core.inference import Inference, prepare
from spectralift_cli.core.jobs.folder import Job, Receipt
from spectralift_cli.core.jobs.plan import BlockGrid
from spectralift_cli.core.msi_bands import without_dropped
from spectralift_cli.core.stages import Reading, Storage, open_model


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
        device: where to compute.
        threads: of one process, or None for all it may use.
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
    device: str = "cpu"
    threads: int | None = None
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
                dtype=self.stored.dtype, scale=self.stored.scale, offset=self.stored.offset,
                nodata=self.stored.nodata, batch_size=self.batch_size,
                device=resolve_device(self.device), threads=self.threads,
                checks_levels=checks_levels,
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
    """

    def __init__(self, task: InferTask, job: Job, inference: Inference | None = None) -> None:
        self.task = task
        self.job = job
        self._stack = contextlib.ExitStack()
        self.inference = inference or self._stack.enter_context(
            contextlib.closing(task.open(checks_levels=False))
        )
        try:
            self.writer: CubeWriter = self._stack.enter_context(
                create_cube(
                    task.output, self.inference.meta, options=task.stored.options,
                    overwrite=task.overwrite, shared=job.data,
                )
            )  # fmt: skip
        except BaseException:
            self._stack.close()
            raise
        self.grid = BlockGrid.of(
            self.inference.meta, self.inference.plan.batch_size, self.writer.block_rows
        )

    def ensure(self, block: int) -> bool:
        """Prove a block complete by its receipt, or compute it; return whether it was computed.

        Raises:
            DataError: the rows of the MSI are not those that a finished block was made of, or see
                `infer`.
        """
        receipt = self.job.receipt(block)
        if receipt is not None and self._stored_sha256(block) == receipt.sha256:
            self._check_input(block, receipt)
            return False
        self._compute(block)
        return True

    def _check_input(self, block: int, receipt: Receipt) -> None:
        # of a large image the plan knows only the beginning, the middle and the end
        part = self.grid.part(block)
        if self._input_sha256(part) != receipt.input_sha256:
            raise DataError(
                f"{self.inference.hr_msi.path}: rows {part.start} to {part.stop} have changed since "
                "the output's were computed",
                "restore the image, or start afresh with --overwrite and without --shard",
            )

    def _compute(self, block: int) -> None:
        part = self.grid.part(block)
        digest = hashlib.sha256()

        def write(rows: slice, values: AnyArray) -> None:
            self.writer.write(rows, values)
            _update(digest, values)

        with self.inference.computing() as compute, WriteBehind(write) as behind:
            for rows, values in self.inference.stream(compute, part, self.writer.block_rows):
                behind.write(rows, values)
        try:
            self.writer.sync()
        except OSError as error:
            raise DataError(
                f"{self.task.output}: cannot be written ({error.strerror})",
                "free some room, then continue with --resume",
            ) from error
        receipt = Receipt(digest.hexdigest(), self._input_sha256(part), compute.counts)
        self.job.add_receipt(block, receipt)

    def _input_sha256(self, part: slice) -> str:
        digest = hashlib.sha256()
        reader = self.inference.hr_msi
        for rows in row_blocks(part.stop - part.start, reader.block_rows):
            _update(digest, reader.read(slice(part.start + rows.start, part.start + rows.stop)))
        return digest.hexdigest()

    def _stored_sha256(self, block: int) -> str | None:
        """Return the sha256 of a block's stored values, or None where they cannot be read."""
        part = self.grid.part(block)
        digest = hashlib.sha256()
        try:
            with open_cube(self.job.data / self.task.output.name) as reader:
                meta = self.inference.meta
                if (reader.meta.shape, reader.meta.dtype) != (meta.shape, meta.dtype):
                    return None
                for rows in row_blocks(part.stop - part.start, reader.block_rows):
                    values = reader.read(slice(part.start + rows.start, part.start + rows.stop))
                    _update(digest, values)
        except DataError:
            return None
        return digest.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()


def _update(digest: Any, values: AnyArray) -> None:
    """Add stored values to a digest, row after row, little endian."""
    little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    digest.update(little.reshape(-1).view(np.uint8))
