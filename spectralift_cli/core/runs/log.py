"""What a run says: its log, the warnings it gives, and the folder it speaks of."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from spectralift_cli.core.errors import SpectraliftError, SpectraliftWarning


@dataclass
class RunLog:
    """The lines and warnings of a run.

    Args:
        announce: called with the lines that the user is to see at once.
    """

    announce: Callable[[str], None]
    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def log(self, line: str) -> None:
        """Write a line into the log."""
        self.lines.append(f"{datetime.now().astimezone().isoformat(timespec='seconds')} {line}")

    def say(self, line: str) -> None:
        """Write a line into the log and tell the user."""
        self.log(line)
        self.announce(line)

    def warn(self, message: str) -> None:
        """Record a warning that is shown elsewhere."""
        if message not in self.warnings:
            self.warnings.append(message)
            self.log(f"warning: {message}")


@contextlib.contextmanager
def speaking_of(folder: Path, work: Path, record: Callable[[str], None]) -> Iterator[None]:
    """Name the run's folder instead of the one it is made in, in warnings and errors."""

    def final(text: str) -> str:
        return text.replace(str(work), str(folder))

    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *more: Any, **named: Any) -> None:
            if issubclass(category, SpectraliftWarning):
                record(final(str(message)))
                message = category(final(str(message)))
            shown(message, category, *more, **named)

        warnings.showwarning = show
        try:
            yield
        except SpectraliftError as error:
            if str(work) not in error.message + error.hint:
                raise
            raise type(error)(final(error.message), final(error.hint)) from error
