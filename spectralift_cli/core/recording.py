"""Steps of a fit as recordings on a CUDA device, so that small images are not bound by launches.

A step of a small network is some hundred kernels of a few microseconds, and launching each from
Python takes longer than running it. A CUDA graph launches them all at once. What a step reads and
writes must therefore lie in the same memory every time; what changes from step to step is written
there before (an index of pixels, the size of the step as a tensor).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from spectralift_cli.core.errors import SpectraliftWarning

Work = Callable[[], None]

_TRIALS = 3  # before recording, so that libraries have chosen their kernels and taken their memory


def recorded(work: Work, changed: Sequence[Tensor], device: torch.device) -> Work:
    """Return a function that does the same as `work`, on a CUDA device by replaying a recording.

    The same kernels run on the same memory, so that the result is that of `work` to the last bit.
    Where the device refuses to record, `work` itself is returned, with a warning.

    Args:
        work: no more than operations on tensors whose memory stays where it is; every number that
            differs between calls is in one of them.
        changed: tensors that keep something from call to call, which `work` changes: it is tried
            before it is recorded, and they are put back. What it overwrites whole need not be named.
        device: of all of them.
    """
    if device.type != "cuda":
        return work
    before = [tensor.clone() for tensor in changed]
    try:
        graph = _record(work, device)
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        torch.cuda.synchronize(device)
        reason = str(error).splitlines()[0]
        warnings.warn(
            f"{device} does not record steps ({reason}): they are launched one by one, which is "
            "slower",
            SpectraliftWarning,
            stacklevel=2,
        )
        return work
    finally:
        for tensor, old in zip(changed, before, strict=True):
            tensor.copy_(old)
    return graph.replay


def _record(work: Work, device: torch.device) -> torch.cuda.CUDAGraph:
    with torch.cuda.device(device):
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(_TRIALS):
                work()
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # other threads, as those that watch over NCCL, may use the device meanwhile
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            work()
    return graph
