"""`python -m spectralift_cli`, and the entry point of the `spectralift` script."""

from __future__ import annotations

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
    sys.exit(0)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


if __name__ == "__main__":
    main()
