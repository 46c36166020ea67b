"""What the benchmarks share: room on disk, and a command's time and peak memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scratch(need_bytes: float) -> Iterator[Path]:
    """Yield an empty folder on a disk with room; exit 3 and say how much is needed if there is none."""
    base = Path(os.environ.get("BENCH_DIR", tempfile.gettempdir()))
    free = shutil.disk_usage(base).free
    if free < need_bytes:
        print(
            f"needs {need_bytes / 1e9:.1f} GB in {base}, {free / 1e9:.1f} GB are free; "
            "name another folder with BENCH_DIR",
            file=sys.stderr,
        )
        sys.exit(3)
    with tempfile.TemporaryDirectory(dir=base, prefix="spectralift-bench-") as folder:
        yield Path(folder)


# the peak of a process begins at that of the one that started it: a small one comes between
_MEASURE = """
import os, subprocess, sys, time
started = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
seconds = time.perf_counter() - started
print(os.waitstatus_to_exitcode(status), seconds, usage.ru_maxrss)
"""


def measure(*command: str | Path, stderr: int | None = None) -> tuple[int, str, float, float]:
    """Run a command; return its exit code, stderr, wall seconds and peak resident memory in MB.

    Args:
        command: the program and its arguments.
        stderr: as `subprocess.run` takes it; subprocess.PIPE to get it back.
    """
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *map(str, command)],
        stdout=subprocess.PIPE, stderr=stderr, text=True, check=True,
    )  # fmt: skip
    code, seconds, peak = done.stdout.split()
    unit = 1 if sys.platform == "darwin" else 1024
    return int(code), done.stderr or "", float(seconds), int(peak) * unit / 1e6


def run(*command: str | Path) -> tuple[float, float]:
    """Run a command; return its wall seconds and its peak resident memory in MB.

    Raises:
        SystemExit: it failed; its output was shown.
    """
    code, _, seconds, peak = measure(*command)
    if code:
        sys.exit(f"{command} failed with exit code {code}")
    return seconds, peak
