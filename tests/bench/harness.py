"""What the benchmarks share: room on disk, and a command's time and peak memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
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


def run(*command: str | Path) -> tuple[float, float]:
    """Run a command; return its wall seconds and its peak resident memory in MB.

    Raises:
        SystemExit: it failed; its output was shown.
    """
    started = time.perf_counter()
    with subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    if process.returncode:
        sys.exit(f"{command} failed with exit code {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    return seconds, usage.ru_maxrss * unit / 1e6
