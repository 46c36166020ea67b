"""What this process may use: processors and memory, as affinity and control groups allow."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import threadpoolctl


def available_cpus() -> int:
    """Return the number of processors this process may use (affinity and cgroup quota)."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity
        count = os.cpu_count() or 1
    quota = _read_words("/sys/fs/cgroup/cpu.max")
    if len(quota) == 2 and quota[0].isdecimal() and int(quota[1]) > 0:
        count = min(count, max(1, int(quota[0]) // int(quota[1])))
    return max(1, count)


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let the linear algebra of NumPy and SciPy use one thread; what was set before comes back.

    The matrices here are small: threads mostly wait for each other, and a product that is split over
    them sums in an order that depends on the machine's processors.
    """
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        yield


def available_memory_bytes() -> int:
    """Return the memory that is free for this process, in bytes."""
    free = 2 * 2**30
    for line in _read_lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    limit = _read_words("/sys/fs/cgroup/memory.max")
    used = _read_words("/sys/fs/cgroup/memory.current")
    if limit and used and limit[0].isdecimal() and used[0].isdecimal():
        free = min(free, max(0, int(limit[0]) - int(used[0])))
    return free


def default_memory_bytes() -> int:
    """Return the memory that one stage takes unless told otherwise: half of what is free."""
    return available_memory_bytes() // 2


def peak_memory_bytes() -> int:
    """Return the most memory this program has held so far."""
    for line in _read_lines("/proc/self/status"):
        if line.startswith(
            "VmHWM:"
        ):  # the other number begins at that of the process that started it
            return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _read_lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _read_words(path: str) -> list[str]:
    lines = _read_lines(path)
    return lines[0].split() if lines else []
