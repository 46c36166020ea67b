"""Run the benchmarks: `python -m tests.bench [NAME ...]`; without names, all of them.

Each `bench_NAME.py` prints a table and exits 0, or says what it lacks (disk, a GPU) and exits 3.
`BENCH_DIR` names the folder for large files (default: the system's temporary folder).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main(names: list[str]) -> int:
    """Run the named benchmarks; return 1 if one failed, 3 if one lacked something."""
    known = {path.stem.removeprefix("bench_"): path for path in sorted(HERE.glob("bench_*.py"))}
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"no benchmark is called {unknown[0]}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    worst = 0
    for name in names or known:
        print(f"== {name}", flush=True)
        code = subprocess.run([sys.executable, "-m", f"tests.bench.bench_{name}"]).returncode
        worst = {0: worst, 3: worst or 3}.get(code, 1)
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
