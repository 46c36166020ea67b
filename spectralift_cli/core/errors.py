"""Errors and warnings that a user may see; each error carries its exit code.

The command line prints an error as two lines, `error: ...` and `  hint: ...`, and exits with
`exit_code`. Python users catch `SpectraliftError` for all of them.
"""

from __future__ import annotations


class SpectraliftError(Exception):
    """Something a user can mend: what is wrong, with its numbers, and the remedy.

    Args:
        message: one sentence that names the thing and the numbers that disagree.
        hint: one sentence with the remedy.
    """

    exit_code = 3

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class DataError(SpectraliftError):
    """A file, its contents or a resource (disk, memory, device) cannot be used. Exit code 3."""


class OptionError(SpectraliftError):
    """Options that contradict each other or do not apply. Exit code 2."""

    exit_code = 2


class OutputExistsError(SpectraliftError):
    """The output is already there and overwriting was not asked for. Exit code 4."""

    exit_code = 4


class CheckFailedError(SpectraliftError):
    """A check that the user asked for did not hold. Exit code 5."""

    exit_code = 5


class SpectraliftWarning(UserWarning):
    """Something a user should know about a result that was nevertheless made."""
