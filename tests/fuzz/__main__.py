"""`python -m tests.fuzz [--seconds N] [TARGET ...]`; exit code 5 where something was found."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from spectralift_cli.core.resources import available_cpus
from tests.fuzz.engine import fuzz, make_case, make_seed, work


def main() -> int:
    """Fuzz the targets, as many at once as there are processors to do it."""
    if sys.argv[1:2] == ["--worker"]:
        name, seed, start, folder = sys.argv[2:]
        work(name, int(seed), int(start), Path(folder))
        return 0
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=float, default=600, help="for each target (600)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations (0)")
    parser.add_argument("--start", type=int, default=0, help="number of the first case (0)")
    parser.add_argument(
        "--jobs", type=int, default=available_cpus(), help="targets at once (all processors)"
    )
    parser.add_argument("--keep", type=Path, help="write one case (--start) of one target here")
    options = parser.parse_args()
    unknown = sorted(set(options.target) - set(TARGETS))
    if unknown:
        parser.error(f"unknown targets: {', '.join(unknown)}")
    if options.keep is not None:
        with tempfile.TemporaryDirectory() as scratch:
            make_seed(options.target[0], Path(scratch) / "seed")
            made = make_case(
                Path(scratch) / "seed", options.keep, options.target[0], options.seed, options.start
            )
        print(made)
        return 0
    names = options.target or list(TARGETS)
    with ProcessPoolExecutor(max(1, options.jobs), multiprocessing.get_context("spawn")) as pool:
        found = [
            pool.submit(fuzz, name, options.seconds, options.seed, options.start) for name in names
        ]
        failed = False
        for name, outcome in zip(names, (future.result() for future in found), strict=True):
            failed |= bool(outcome.failures)
            print(
                f"{name}: {outcome.cases:,} cases, {outcome.accepted:,} still read, "
                f"{len(outcome.failures)} failures",
                flush=True,
            )
            for number, what in outcome.failures:
                print(f"--- {name} case {number} (seed {options.seed})\n{what}", flush=True)
    return 5 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
