"""A spectral inverter at work on an image: chunks of pixels in, stored spectra out, rows after rows.

Pixels are computed in chunks of a fixed number that are counted from the image's first pixel on, the
last one padded; each chunk runs on one thread. A part of the image computes the chunks that it
touches whole and keeps its own pixels of them. So the same bytes come out however an image is cut.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectralift_cli.core.checkpoint import Checkpoint
from spectralift_cli.core.cube import AnyArray, BoolArray, CubeMeta, to_units
from spectralift_cli.core.cubeio import CubeReader, row_blocks
from spectralift_cli.core.devices import Workers, on_device
from spectralift_cli.core.formats.rawio import PAGE
from spectralift_cli.core.models.base import SpectralModel, row_width
from spectralift_cli.core.output_range import OutputRange
from spectralift_cli.core.placement import Placement

_SYNC_BYTES = 64 * 2**20


def stream_rows(
    reader: CubeReader,
    rows: slice,
    compute: Compute,
    *,
    group: int,
    read_rows: int,
    step: int = 1,
    page_offset: Callable[[int], int] | None = None,
) -> Generator[tuple[slice, AnyArray], None, None]:
    """Yield (rows, stored values) of a part of the sharp cube from top to bottom.

    The next rows are read while some are computed; close the generator before the reader where it is
    left early, so that nothing is read any more. What is yielded lives until the second next.

    Args:
        reader: the MSI.
        rows: which; the chunks that they touch are computed whole.
        compute: stored MSI pixels to stored HSI pixels.
        group: pixels computed between two yields, whole chunks.
        read_rows: rows read at a time.
        step: whole multiples of so many rows are yielded, except at the end.
        page_offset: how far behind the beginning of a page of memory what begins with a row is to
            lie; see `CubeWriter.page_offset`. None for at its beginning.
    """
    cols, chunk, total = reader.meta.cols, compute.chunk, reader.meta.rows * reader.meta.cols
    first, last = rows.start * cols, rows.stop * cols
    at, end = first // chunk * chunk, min(total, -(-last // chunk) * chunk)
    rooms = compute.rooms(group + step * cols)
    filled, row = 0, rows.start
    done = rooms[0].at(page_offset(row) if page_offset else 0)
    for pixels in _read_ahead(_whole_chunks(reader, at, end, read_rows, chunk)):
        for part in row_blocks(len(pixels), _even(len(pixels), group, chunk)):
            count = part.stop - part.start
            compute(pixels[part], done[filled : filled + count], at, first, last)
            head = max(0, first - at)  # pixels of the row before
            if head:
                done[filled : filled + count - head] = done[filled + head : filled + count]
            filled += count - head
            at += count
            ready = min(filled // cols, rows.stop - row)
            if row + ready < rows.stop:
                ready -= ready % step
            if ready:
                yield (
                    slice(row, row + ready),
                    done[: ready * cols].reshape(ready, cols, done.shape[1]),
                )
                row += ready
                # only now: what was yielded before may have been in use until this was taken
                rooms.reverse()
                rest = done[ready * cols : filled]
                done = rooms[0].at(page_offset(row) if page_offset else 0)
                done[: len(rest)] = rest
                filled = len(rest)


def _even(pixels: int, group: int, chunk: int) -> int:
    """Return the pixels, whole chunks, of groups that have about as many each.

    While a small last one is computed the one before it would not be written.
    """
    groups = -(-pixels // group)
    return -(-pixels // (groups * chunk)) * chunk


def _whole_chunks(
    reader: CubeReader, start: int, end: int, read_rows: int, chunk: int
) -> Iterator[AnyArray]:
    """Yield the stored pixels start..end (n, M) in whole chunks, the last one apart."""
    cols, bands = reader.meta.cols, reader.meta.bands
    first_row = start // cols
    skip = start - first_row * cols
    waiting = np.empty((0, bands), reader.meta.dtype)  # pixels short of a chunk
    left = end - start
    for part in row_blocks(-(-end // cols) - first_row, read_rows):
        block = reader.read(slice(first_row + part.start, first_row + part.stop))
        block = block.reshape(-1, bands)[skip : skip + left - len(waiting)]  # (pixels, M)
        skip = 0
        pixels = np.concatenate([waiting, block]) if len(waiting) else block
        whole = len(pixels) if len(pixels) == left else len(pixels) // chunk * chunk
        if whole:
            yield pixels[:whole]
        left -= whole
        waiting = pixels[whole:].copy()


def _read_ahead(items: Iterator[AnyArray]) -> Iterator[AnyArray]:
    """Yield what an iterator yields, the next one being made by another thread meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


class WriteBehind:
    """One thread that writes while others compute; at most one write is under way.

    Args:
        write: called in order with what `write` is given: rows, values and more.
    """

    def __init__(self, write: Callable[..., None]) -> None:
        self._write = write
        self._pool = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def write(self, rows: slice, values: AnyArray, *more: Any) -> None:
        """Wait for the last write and begin this one; raise what the last one raised."""
        self.wait()
        self._pending = self._pool.submit(self._write, rows, values, *more)

    def wait(self) -> None:
        """Wait until all is written; raise what the last write raised."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._pool.shutdown()


class SyncBehind:
    """A thread that brings to the disk what was written, from time to time, while more is computed.

    The system would leave it to the end, where nothing else is left to do meanwhile.

    Args:
        sync: brings everything to the disk that was written before; see `CubeWriter.sync`.
    """

    def __init__(self, sync: Callable[[], None]) -> None:
        self._sync = sync
        self._pool = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        self._written = 0

    def wrote(self, size: int) -> None:
        """Tell that so many bytes were written; raise what the last `sync` raised."""
        self._written += size
        if self._written < _SYNC_BYTES or (self._pending is not None and not self._pending.done()):
            return
        if self._pending is not None:
            self._pending.result()
        self._written = 0
        self._pending = self._pool.submit(self._sync)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown()
        if kind is None and self._pending is not None:
            self._pending.result()


class Engine:
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
            self._bands = model.hsi_bands
            self._narrow = [
                torch.empty((chunk, self._bands), device=device)
                for _ in range(count)
                if row_width(self._bands) > self._bands
            ]
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

    def __enter__(self) -> Engine:
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
        spectra = self._kernels[worker](on_device)
        return self._narrow[worker].copy_(spectra[:, : self._bands]) if self._narrow else spectra

    def fetch(self, worker: int, spectra: Tensor) -> NDArray[np.float32]:
        """Return spectra (n, B) as an array on the host that lives until the worker's next call."""
        host = self._outputs[worker]
        if host is None:
            return spectra.cpu().numpy()  # no copy where they are on the processor already
        copied = host[: len(spectra)].copy_(spectra, non_blocking=True)
        self._streams[worker].synchronize()
        return copied.numpy()


@dataclass(frozen=True)
class Counts:
    """What became of pixels and values; they add up over the parts of an image.

    Args:
        holes: pixels without a value in some MSI band, which are nodata in the output.
        clipped: values brought into the range of `clip`.
        saturated: values brought into the range of the stored type.
        moved: valid values that rounded onto nodata and moved by one count.
        beyond: pixels far outside the range of the LR pixels, held at its end.
    """

    holes: int = 0
    clipped: int = 0
    saturated: int = 0
    moved: int = 0
    beyond: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.holes + other.holes,
            self.clipped + other.clipped,
            self.saturated + other.saturated,
            self.moved + other.moved,
            self.beyond + other.beyond,
        )


class _Room:
    """Memory for stored HSI pixels, which may begin anywhere in a page.

    Args:
        pixels: as many.
        meta: of the output.
    """

    def __init__(self, pixels: int, meta: CubeMeta) -> None:
        self.pixels = pixels
        self._meta = meta
        self._memory = mmap.mmap(-1, PAGE + pixels * meta.bands * meta.dtype.itemsize)

    def at(self, offset: int) -> AnyArray:
        """Return it as (pixels, B), beginning so many bytes behind the beginning of a page."""
        bands = self._meta.bands
        flat = np.frombuffer(self._memory, self._meta.dtype, self.pixels * bands, offset)
        return flat.reshape(self.pixels, bands)


def _with_holes(units: NDArray[np.float32]) -> BoolArray:
    """Tell which pixels (n, M) lack a value in some band."""
    finite = np.isfinite(units)
    if finite.all():  # as a rule, and told at once
        return np.zeros(len(units), bool)
    whole = finite[:, 0].copy()
    for band in range(1, finite.shape[1]):  # of few bands: several times as fast as all(axis=1)
        whole &= finite[:, band]
    return ~whole


class Compute:
    """Stored MSI pixels (n, M) to stored HSI pixels (n, B)."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        msi: CubeMeta,
        out: CubeMeta,
        target: OutputRange,
        engine: Engine,
        placement: Placement | None,
    ) -> None:
        self.counts = Counts()
        self.chunk = engine.chunk
        self._rooms: list[_Room] = []
        self._lock = threading.Lock()
        self._out = out
        self._scaling = checkpoint.scaling
        self._radiometry = checkpoint.radiometry
        self._used = checkpoint.used_bands
        if out.bands != self._used.size:  # the others are dropped
            self._used = self._used[self._used]
        self._all_used = bool(self._used.all())
        self._msi = msi
        self._fill = np.nan if out.nodata is None else out.nodata
        self._target = target.on(engine.device)
        self._engine = engine
        self._at: tuple[AnyArray, AnyArray] | None = None
        if engine.needs_position and placement is not None:
            rows, cols = placement.lr_positions()
            h, w = placement.lr_shape
            self._at = (rows / h).astype(np.float32), (cols / w).astype(np.float32)
        trained = engine.trained_range
        self._range = None if trained is None else trained.cpu().numpy()

    def rooms(self, pixels: int) -> list[_Room]:
        """Return room for stored HSI pixels twice: to be filled, and maybe still in use.

        The same for every call of the same size; who yields the first exchanges them.
        """
        if not self._rooms or self._rooms[0].pixels != pixels:
            self._rooms = [_Room(pixels, self._out) for _ in range(2)]
        return self._rooms

    def __call__(
        self, pixels: AnyArray, out: AnyArray, at: int, first: int = 0, last: int | None = None
    ) -> None:
        """Fill `out` (n, B) with what the pixels (n, M) become.

        Args:
            pixels: stored MSI values.
            out: where to.
            at: index of the first pixel in the image, a multiple of the chunk.
            first: index of the first pixel that counts.
            last: index behind the last one that counts; None for all.
        """
        last = at + len(pixels) if last is None else last

        def work(worker: int, start: int) -> None:
            part = slice(start, start + self.chunk)
            self._chunk(worker, pixels[part], out[part], at + start, (first, last))

        self._engine.run(work, range(0, len(pixels), self.chunk))

    def _position(self, first: int, count: int) -> AnyArray | None:
        """Return (count, 2) rows and columns of pixels as parts of the LR-HSI."""
        if self._at is None:
            return None
        row, col = np.divmod(np.arange(first, first + count), self._msi.cols)
        return np.stack([self._at[0][row], self._at[1][col]], axis=1)

    def _chunk(
        self, worker: int, stored: AnyArray, out: AnyArray, at: int, counted: tuple[int, int]
    ) -> None:
        units = to_units(stored[None], self._msi)[0]  # (n, M)
        holes = _with_holes(units)
        valid = ~holes
        # pixels of a neighbouring part are computed with their chunk and counted there
        valid[: max(0, counted[0] - at)] = False
        valid[max(0, counted[1] - at) :] = False
        whole = bool(valid.all())
        has_holes = bool(holes.any())
        if has_holes:
            units[holes] = 0
        if self._radiometry is not None:
            units = self._radiometry.apply(units)
        scaled = self._scaling.apply(units)
        beyond = 0
        if self._range is not None:
            far = (scaled < self._range[0]) | (scaled > self._range[1])
            if far.any():
                beyond = int((far.any(axis=1) & valid).sum())
        position = self._position(at, len(stored))
        spectra = self._engine.network(worker, scaled, position)  # (chunk, used)
        mask = None if whole else torch.from_numpy(valid).to(spectra.device)
        became = self._target.apply(spectra[: len(stored)], mask)
        values = self._engine.fetch(worker, spectra[: len(stored)])
        if self._all_used:
            out[...] = values
        else:
            out[:, self._used] = values
            out[:, ~self._used] = self._fill
        moved = 0
        if became.on_nodata:
            moved = self._target.keep_off_nodata(out, self._used, holes, valid)
        if has_holes:
            out[holes] = self._fill
        inside = slice(max(0, counted[0] - at), max(0, counted[1] - at))
        found = Counts(
            int(holes[inside].sum()) if has_holes else 0, became.clipped, became.saturated, moved, beyond
        )  # fmt: skip
        with self._lock:
            self.counts += found
