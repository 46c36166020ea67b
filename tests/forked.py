"""A server that has imported everything and forks a `spectralift` process for every line it reads.

A hundred real processes can then be started, and killed, in the time that importing PyTorch a few
times would take. Lines are JSON lists of arguments; the answers are the process's id when it begins
and its wait status when it has ended. Threads do not survive a fork, so nothing is computed here.
"""

from __future__ import annotations

import importlib
import json
import os
import sys


def serve() -> None:
    for name in (
        "app",
        "core.jobs.sharing",
        "core.runs.pipeline",
        *(f"core.formats.{x}" for x in ("npy", "envi", "zarr", "hdf5", "hdf5_write", "rawio")),
    ):
        importlib.import_module(f"spectralift_cli.{name}")
    for name in ("pydantic.type_adapter", "sympy"):  # PyTorch loads it with the first gradient
        importlib.import_module(name)
    from spectralift_cli.__main__ import main
    from spectralift_cli.core import stages
    from spectralift_cli.core.formats import rawio

    # the outputs of tests are written as those of mosaics are, past the page cache
    rawio._DIRECT_BYTES = rawio._LEAST_DIRECT_BYTES = 2**14
    # a training of a second leaves a state, too, when it is killed
    (stages.train.__kwdefaults__ or {})["save_every_s"] = 0.2
    for line in sys.stdin:
        words, log = json.loads(line)
        child = os.fork()
        if not child:
            fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(fd, 1)
            os.dup2(fd, 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            sys.argv = ["spectralift", *words]
            main()
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    serve()
