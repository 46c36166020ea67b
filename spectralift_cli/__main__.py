"""`python -m spectralift_cli`, and the entry point of the `spectralift` script."""

from __future__ import annotations

import gc
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

EXIT_SIGTERM = 128 + signal.SIGTERM


class Terminated(BaseException):
    """SIGTERM arrived; unwinds the stack so that outputs in preparation are dropped."""


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    _replace_closed_streams()
    try:
        from spectralift_cli.app import EXIT_CLOSED_STDOUT, app, discard_stdout

        try:
            app()
        finally:
            try:
                sys.stdout.flush()
            except BrokenPipeError:
                discard_stdout()
                sys.exit(EXIT_CLOSED_STDOUT)
    except Terminated:
        sys.exit(EXIT_SIGTERM)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    finally:
        gc.freeze()  # the collector's last walk through PyTorch takes a quarter of a second
    sys.exit(0)


def _replace_closed_streams() -> None:
    """Stand in for streams that the caller closed (`>&-`), which Python leaves as None.

    It also keeps their descriptors from becoming those of the next files that are opened.
    """
    if sys.stdin is None:
        sys.stdin = os.fdopen(os.open(os.devnull, os.O_RDONLY))  # the lowest free descriptor, 0
    if sys.stdout is None:
        unread, end = os.pipe()
        os.dup2(end, 1)  # a pipe that nobody reads, like `| true`
        for spare in {unread, end} - {1}:
            os.close(spare)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


if __name__ == "__main__":
    main()
