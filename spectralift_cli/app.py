"""The command line: the table of commands and the one error boundary.

The boundary stands inside the Typer group, so that a test's `CliRunner` sees what users see.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from spectralift_cli import __version__
from spectralift_cli.commands import (
    convert,
    estimate,
    infer,
    info,
    metrics,
    quicklook,
    refine,
    run,
    sample,
    srf,
    synth,
    train,
)
from spectralift_cli.core.errors import SpectraliftError

# Typer carries its own copy of Click and exports only this leaf of its usage errors
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

EXIT_CLOSED_STDOUT = 141  # 128 + SIGPIPE
_RESOURCE_ERRNOS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
     errno.ENOMEM, errno.EMFILE, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
)  # fmt: skip


class Group(TyperGroup):
    """The group with the error boundary around parsing and running."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments of the group itself."""
        with _boundary(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Parse the arguments of the command and run it."""
        with _boundary(ctx):
            return super().invoke(ctx)


@contextlib.contextmanager
def _boundary(ctx: Any) -> Iterator[None]:
    """Turn what a user can mend into two lines and an exit code; let bugs show their traceback."""
    try:
        yield
    except SpectraliftError as error:
        _fail(ctx, error.message, error.hint, error.exit_code)
    except BrokenPipeError:
        discard_stdout()
        raise typer.Exit(EXIT_CLOSED_STDOUT) from None
    except SystemExit as leave:
        # rich, which prints the help, leaves with 1 when nobody reads it
        if not isinstance(leave.__context__, BrokenPipeError):
            raise
        raise typer.Exit(EXIT_CLOSED_STDOUT) from None
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(130) from None
    except MemoryError:
        _fail(ctx, "there is not enough memory", "close other programs, or lower --memory", 3)
    except OSError as error:
        if error.errno not in _RESOURCE_ERRNOS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _fail(ctx, f"{where}{error.strerror}", "check the path, its permissions and the disk", 3)
    except _UsageError as error:
        command = getattr(getattr(error, "ctx", None), "command_path", None) or ctx.command_path
        message = error.format_message()  # type: ignore[attr-defined]  # every usage error has it
        if not message:  # no arguments at all: the help has been printed
            raise typer.Exit(2) from None
        message = message.rstrip(".").replace("Value error, ", "")  # pydantic's preface
        hint = f"{command} --help lists what it takes"
        _fail(ctx, f"{message[:1].lower()}{message[1:]}", hint, 2)
    except RuntimeError as error:
        # torch has no error class of its own for a failed allocation on the CPU
        if type(error).__name__ != "OutOfMemoryError" and "can't allocate memory" not in str(error):
            raise
        _fail(
            ctx, f"there is not enough memory ({str(error).splitlines()[0]})", "lower --memory", 3
        )


def _fail(ctx: Any, message: str, hint: str, code: int) -> None:
    if (ctx.obj or {}).get("debug"):
        traceback.print_exc()
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    if hint:
        typer.echo(f"  hint: {' '.join(hint.split())}", err=True)
    raise typer.Exit(code)


def discard_stdout() -> None:
    """Point a closed stdout at nothing: the interpreter flushes it once more on its way out."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


app = typer.Typer(
    name="spectralift",
    cls=Group,
    help="Fuse a blurry hyperspectral image (LR-HSI) with a sharp multispectral one (HR-MSI) "
    "into a sharp hyperspectral image.",
    epilog="stdout carries the result, stderr the talk. Exit codes: 0 ok, 1 bug, 2 usage, "
    "3 file, data or resource, 4 output exists, 5 check failed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for _command in (
    sample.sample, info.info, convert.convert, synth.synth, train.train, infer.infer,
    estimate.estimate, refine.refine, metrics.metrics, quicklook.quicklook, run.run,
):  # fmt: skip
    app.command()(_command)
app.add_typer(srf.app)


def _print_version(value: bool) -> None:
    if value:
        sys.stdout.write(f"spectralift {__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Fuse an LR-HSI with an HR-MSI into a sharp hyperspectral image."""
    del version
    ctx.ensure_object(dict)
