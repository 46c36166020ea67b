"""What inference holds in memory, and how it is cut so that a promise is kept."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from spectralift_cli.core.cube import CubeMeta
from spectralift_cli.core.cubeio import BLOCK_BYTES, CubeReader, CubeWriter
from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats import find_format
from spectralift_cli.core.models.base import SpectralModel, row_width
from spectralift_cli.core.resources import peak_memory_bytes

_FEW_CHUNKS = 2  # of a thread between two writes, so that it seldom waits for the others
# a row of blocks that a writer from top to bottom holds while the next one joins it; see the
# writers of Zarr, GeoTIFF and HDF5, whose blocks are made lower where a row of them is large
_WRITER_BLOCK_BYTES = 2 * BLOCK_BYTES
_WRITER_LEAST_ROWS = 16
# held, joined, reordered and compressed
_WRITER_COPIES = 4
# of what is read: computed, coming, and each of them once more as it is cut into chunks
_READ_COPIES = 4
# what libraries take when they first multiply, read and write, and what a thread takes
_FIRST_USE_BYTES = 32 * 10**6
_THREAD_BYTES = 12 * 10**6


@dataclass(frozen=True)
class Cut:
    """How the work is cut.

    Args:
        workers: threads that compute.
        group: pixels computed between two writes, whole chunks.
        read_rows: rows of the MSI read at a time.
    """

    workers: int
    group: int
    read_rows: int


@dataclass(frozen=True)
class Footprint:
    """What an inference holds, besides the program itself, depending on how it is cut.

    Args:
        chunk: pixels that are computed together.
        thread_bytes: what a thread holds: the network's layers, a chunk's spectra, its weights.
        pixel_bytes: of the output.
        cols: pixels of a row.
        read_row_bytes: of a row of the MSI, with the bands that are not used.
        held_bytes: what its reader holds all the time.
        written_bytes: what the writer holds.
        step_rows: rows that are handed to the writer together.
        widest: the cut that nothing but speed decides.
        passed_bytes: of the most that the program has held so far: what it held for a while, and has
            given back or still holds as something that is counted here.
    """

    chunk: int
    thread_bytes: int
    pixel_bytes: int
    cols: int
    read_row_bytes: int
    held_bytes: int
    written_bytes: int
    widest: Cut
    step_rows: int = 1
    passed_bytes: int = 0

    @classmethod
    def of(
        cls,
        model: SpectralModel,
        msi: CubeReader,
        out: CubeMeta,
        chunk: int,
        workers: int,
        output: Path | None = None,
    ) -> Footprint:
        """Return the footprint of a model on an MSI.

        Args:
            model: without storage.
            msi: open.
            out: of the output.
            chunk: pixels that are computed together.
            workers: threads, as many as have something to do.
            output: where its ending tells what the writer may hold; None if `written_by` will.
        """
        meta = msi.meta
        pixel_bytes = out.bands * out.dtype.itemsize
        rows = max(1, min(meta.rows, BLOCK_BYTES // meta.row_bytes))
        rows = max(rows, min(meta.rows, -(-chunk // meta.cols)), msi.block_rows)
        # spectra as wide as they are, where the network leaves them wider
        narrowed = model.hsi_bands if row_width(model.hsi_bands) > model.hsi_bands else 0
        return cls(
            chunk=chunk,
            # with the spectra, the test of their range and what counts those beyond it
            thread_bytes=model.kernel_bytes(chunk) + chunk * (3 * out.bands + narrowed) * 4,
            pixel_bytes=pixel_bytes,
            cols=meta.cols,
            read_row_bytes=msi.stored_row_bytes,
            held_bytes=msi.held_bytes if msi.streams else meta.rows * msi.stored_row_bytes,
            written_bytes=0 if output is None else _written_bytes(output, out),
            widest=Cut(workers, _group(chunk, workers, pixel_bytes), rows),
        )  # fmt: skip

    def written_by(self, writer: CubeWriter) -> Footprint:
        """Return the same with what a writer really holds."""
        block = min(writer.block_rows * writer.meta.row_bytes, writer.meta.nbytes)
        if writer.random_access:  # it takes whole blocks and passes them on
            written = writer.held_bytes + (block if writer.block_rows > 1 else 0)
            return dataclasses.replace(self, written_bytes=written, step_rows=writer.block_rows)
        return dataclasses.replace(self, written_bytes=_WRITER_COPIES * block)

    def needed(self, cut: Cut) -> int:
        """Return about the most that is held, in bytes."""
        # two groups and the rows that are not handed on yet, and a copy in the file's order
        groups = (3 * cut.group + 2 * self.step_rows * self.cols) * self.pixel_bytes
        read = _READ_COPIES * cut.read_rows * self.read_row_bytes
        return (
            cut.workers * self.thread_bytes + groups + read + self.held_bytes + self.written_bytes
        )

    def spare(self, cut: Cut) -> int:
        """Return how much of what is needed nobody holds while nothing is computed, in bytes."""
        rooms = 2 * (cut.group + self.step_rows * self.cols) * self.pixel_bytes
        return self.needed(cut) - cut.workers * self.thread_bytes - rooms - self.held_bytes

    def within(self, memory_bytes: int) -> Cut:
        """Return the fastest cut that fits, the program included.

        Args:
            memory_bytes: the most that this process may ever hold.

        Raises:
            DataError: not even the smallest cut does.
        """
        program = peak_memory_bytes() - self.passed_bytes + _FIRST_USE_BYTES
        cut = self.widest
        while program + self.needed(cut) + cut.workers * _THREAD_BYTES > memory_bytes:
            smaller = self._smaller(cut)
            if smaller is None:
                least = program + self.needed(cut) + _THREAD_BYTES
                raise DataError(
                    f"this inference takes {_megabytes(least)} MB of memory at least, "
                    f"{_megabytes(program)} of them Python, PyTorch and the model; "
                    f"--memory promises {memory_bytes / 1e6:,.0f}",
                    f"give --memory {_megabytes(least)}MB or more"
                    + (", or a smaller --inference-batch-size" if self.chunk > 4096 else ""),
                )
            cut = smaller
        return cut

    def _smaller(self, cut: Cut) -> Cut | None:
        """Return the cut that is next in speed, or None if there is none."""
        read = cut.read_rows * self.read_row_bytes
        if cut.read_rows > 1 and 2 * read > cut.group * self.pixel_bytes:
            return dataclasses.replace(cut, read_rows=cut.read_rows // 2)
        least_group = cut.workers * self.chunk
        if cut.group > least_group:
            halved = cut.group // 2 // self.chunk * self.chunk
            return dataclasses.replace(cut, group=max(least_group, halved))
        if cut.read_rows > 1:
            return dataclasses.replace(cut, read_rows=cut.read_rows // 2)
        if cut.workers > 1:
            workers = cut.workers - 1
            return dataclasses.replace(cut, workers=workers, group=workers * self.chunk)
        return None


def _group(chunk: int, workers: int, pixel_bytes: int) -> int:
    fitting = BLOCK_BYTES // (chunk * pixel_bytes)
    return chunk * max(fitting, _FEW_CHUNKS * workers)


def _written_bytes(output: Path, out: CubeMeta) -> int:
    """Return the most that the writer of a format holds."""
    row = find_format(output)
    if row is not None and row.shares_rows and row.name != "zarr":
        return 0
    block = max(_WRITER_BLOCK_BYTES, _WRITER_LEAST_ROWS * out.row_bytes)
    return _WRITER_COPIES * min(out.nbytes, block)


def _megabytes(size: int) -> str:
    return f"{-(-size // 10**6):,}".replace(",", "")
