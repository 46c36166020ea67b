"""Mutate files and read them, in processes that may crash, hang or ask for too much memory.

A case is made from (target, seed, number) alone, so that any failure can be made again. The worker
says which case it works on before it does; when it dies or falls silent, that case is the culprit.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HANG_S = 20.0
MEMORY_BYTES = 1_000_000_000  # that a reader may ask for beyond what is there already
_EDGE = 2048
_INTEGERS = (0, 1, 2, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
_NUMBERS = (
    "0", "-1", "1", "2", "99999999", "2147483648", "9223372036854775808", "1e308", "1e999", "nan",
    "-inf", "0.5", "1e-320", "", "null", "[]", "{}", '"x"', "true",
)  # fmt: skip
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


@dataclass
class Outcome:
    """What fuzzing one target found.

    Args:
        cases: that were tried.
        accepted: of them, files that were still read.
        failures: (case number, what happened).
    """

    cases: int = 0
    accepted: int = 0
    failures: list[tuple[int, str]] = field(default_factory=list)


def mutate(data: bytes, rng: random.Random, edge_share: float) -> bytes:
    """Return the bytes with one to four changes."""
    work = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        kind = rng.randrange(9)
        at = _position(len(work), rng, edge_share)
        if kind == 0:
            work[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1 and work:
            at = min(at, len(work) - 1)
            work[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            size = rng.choice((1, 2, 4, 8))
            value = rng.choice(_INTEGERS) % 256**size
            work[at : at + size] = value.to_bytes(size, rng.choice(("little", "big")))
        elif kind == 3:
            del work[at : at + rng.choice((1, 2, 8, 64, 1024))]
        elif kind == 4:
            part = work[at : at + rng.choice((1, 8, 64, 512))]
            work[at:at] = part * rng.choice((1, 2, 50))
        elif kind == 5:
            del work[at:]
        elif kind == 6:
            work[at:at] = rng.randbytes(rng.choice((1, 4, 32)))
        else:  # numbers in texts, which random bytes seldom hit
            found = list(_NUMBER.finditer(bytes(work[: 64 * _EDGE])))
            if found:
                match = rng.choice(found)
                work[match.start() : match.end()] = rng.choice(_NUMBERS).encode()
    return bytes(work)


def _position(size: int, rng: random.Random, edge_share: float) -> int:
    if rng.random() < edge_share:
        at = rng.randrange(_EDGE)
        return min(at, size) if rng.random() < 0.7 else max(0, size - at)
    return rng.randrange(size + 1)


def make_case(seed_folder: Path, folder: Path, name: str, seed: int, number: int) -> Path:
    """Copy a target's good files to `folder`, one of them mutated; return the path to read."""
    from tests.fuzz.targets import TARGETS

    rng = random.Random(f"{name}-{seed}-{number}")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(seed_folder / "files", folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    # as many tries for small files, which are headers and sidecars, as for large ones
    victim = rng.choice(files)
    victim.write_bytes(mutate(victim.read_bytes(), rng, TARGETS[name].share))
    return folder / (seed_folder / "read").read_text()


def make_seed(name: str, folder: Path) -> None:
    """Write the good files of a target and check that they are read."""
    from tests.fuzz.targets import TARGETS

    files = folder / "files"
    files.mkdir(parents=True)
    path = TARGETS[name].make(files)
    (folder / "read").write_text(str(path.relative_to(files)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        TARGETS[name].read(path)


def work(name: str, seed: int, start: int, seed_folder: Path) -> None:
    """Read mutated files until killed, one line of JSON before and after each."""
    from spectralift_cli.core.errors import SpectraliftError, SpectraliftWarning
    from tests.fuzz.targets import TARGETS

    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as scratch:
        good = Path(scratch) / "good"
        shutil.copytree(seed_folder / "files", good)
        path = good / (seed_folder / "read").read_text()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(path)  # imports are paid before memory is limited
        there = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (there + MEMORY_BYTES, resource.RLIM_INFINITY))
        number = start
        while True:
            case = make_case(seed_folder, Path(scratch) / "case", name, seed, number)
            print(json.dumps({"case": number}), flush=True)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                warnings.simplefilter("ignore", SpectraliftWarning)
                try:
                    target.read(case)
                    result = "accepted"
                except SpectraliftError:
                    result = "refused"
                except BaseException:  # the point of the exercise
                    result = traceback.format_exc()
            print(json.dumps({"result": result}), flush=True)
            number += 1


def fuzz(
    name: str, seconds: float, seed: int = 0, start: int = 0, most_failures: int = 5
) -> Outcome:
    """Fuzz one target for a time.

    Args:
        name: a key of `TARGETS`.
        seconds: that reading may take in all, without the start of the processes.
        seed: of the mutations.
        start: number of the first case.
        most_failures: after which to stop.
    """
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as scratch:
        seed_folder = Path(scratch) / "seed"
        make_seed(name, seed_folder)
        left, number = seconds, start
        while left > 0 and len(outcome.failures) < most_failures:
            before = time.monotonic()
            number, left = _watch(name, seed, number, seed_folder, left, outcome, most_failures)
            if left <= 0 and outcome.cases == 0 and time.monotonic() - before > 60:
                raise RuntimeError(f"{name}: not one case could be tried")
    return outcome


def _watch(
    name: str,
    seed: int,
    start: int,
    seed_folder: Path,
    seconds: float,
    outcome: Outcome,
    most_failures: int,
) -> tuple[int, float]:
    """Run a worker until time is up or it dies; return the next case and the seconds left."""
    command = [sys.executable, "-m", "tests.fuzz", "--worker", name, str(seed), str(start)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            [*command, str(seed_folder)], stdout=subprocess.PIPE, stderr=stderr,
            env=environment, text=False,
        )  # fmt: skip
        number, deadline = start, None
        try:
            assert process.stdout is not None
            for line in _lines(process):
                if deadline is None:
                    deadline = time.monotonic() + seconds
                if line is None:
                    outcome.failures.append((number, f"hangs for more than {HANG_S:g} s"))
                    return number + 1, deadline - time.monotonic()
                message = json.loads(line)
                if "case" in message:
                    number = message["case"]
                    continue
                outcome.cases += 1
                outcome.accepted += message["result"] == "accepted"
                if message["result"] not in ("accepted", "refused"):
                    outcome.failures.append((number, message["result"]))
                if time.monotonic() > deadline or len(outcome.failures) >= most_failures:
                    return number + 1, deadline - time.monotonic()
            stderr.seek(0)
            said = stderr.read()[-2000:].decode(errors="replace")
            if deadline is None:
                raise RuntimeError(f"the worker of {name} did not start:\n{said}")
            outcome.failures.append((number, f"dies with status {process.wait()}:\n{said}"))
            return number + 1, deadline - time.monotonic()
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _lines(process: subprocess.Popen[bytes]) -> Iterator[bytes | None]:
    """Yield the lines of a process; None after a silence of HANG_S (once it has begun to speak)."""
    assert process.stdout is not None
    handle, waiting = process.stdout.fileno(), b""
    patience = 120.0  # for the imports
    silence = 0.0
    with selectors.DefaultSelector() as selector:
        selector.register(handle, selectors.EVENT_READ)
        while True:
            # counted second by second: that both were suspended meanwhile is no silence
            if not selector.select(1.0):
                silence += 1.0
                if silence >= patience:
                    yield None
                    return
                continue
            silence = 0.0
            data = os.read(handle, 65536)
            if not data:
                return
            *whole, waiting = (waiting + data).split(b"\n")
            yield from whole
            patience = HANG_S
