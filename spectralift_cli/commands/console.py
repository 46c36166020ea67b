"""What every command shares: stdout for the result, stderr for the talk, warnings, progress.

`command` gives a function the options every command has and prints what it returns: one line with
the path of the output, or a table, or with `--json` one JSON document.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from spectralift_cli.commands import config_options
from spectralift_cli.core.errors import CheckFailedError, SpectraliftWarning
from spectralift_cli.core.optionfields import options_of

_PLAIN_INTERVAL_S = 10.0
_COMMON = "Common options"


@dataclass
class Result:
    """What a command made.

    Args:
        outputs: the files, the one of `-o` first; empty for a command that writes nothing.
        data: the result for `--json`.
        table: what to print where there is no output.
        side_files: files written beside a table.
        failures: checks that the user asked for and that did not hold.
    """

    outputs: Sequence[Path] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    table: str = ""
    side_files: Sequence[Path] = ()
    failures: Sequence[str] = ()


class Console:
    """The talk of one command on stderr."""

    def __init__(
        self, *, as_json: bool = False, quiet: bool = False, verbose: bool = False
    ) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.verbose = verbose
        self.warnings: list[str] = []
        self.given: frozenset[str] = frozenset()  # the parameters that the user gave a value

    def say(self, message: str) -> None:
        """Print a line of talk, unless quiet."""
        if not self.quiet:
            typer.echo(message, err=True)

    def detail(self, message: str) -> None:
        """Print a line that only `-v` shows."""
        if self.verbose:
            typer.echo(message, err=True)

    def warn(self, message: str) -> None:
        """Print a warning the first time it occurs."""
        one_line = " ".join(message.split())
        if one_line not in self.warnings:
            self.warnings.append(one_line)
            typer.echo(f"warning: {one_line}", err=True)

    @contextlib.contextmanager
    def progress(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """Yield a `progress(done, total)`: a bar on a terminal, a line every ten seconds elsewhere."""
        if self.quiet:
            yield lambda done, total: None
        elif sys.stderr.isatty():
            with _bar(label) as update:
                yield update
        else:
            yield _plain_lines(label)

    @contextlib.contextmanager
    def collecting_warnings(self) -> Iterator[None]:
        """Show each SpectraliftWarning once; others are for developers and only shown by -v."""

        def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
            if issubclass(category, SpectraliftWarning):
                self.warn(str(message))
            else:
                self.detail(f"{category.__name__}: {message}")

        with warnings.catch_warnings():
            warnings.simplefilter("always", SpectraliftWarning)
            warnings.showwarning = show
            yield


@contextlib.contextmanager
def _bar(label: str) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console as RichConsole
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=RichConsole(stderr=True), transient=True
    ) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _plain_lines(label: str) -> Callable[[int, int], None]:
    last = time.monotonic()

    def update(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PLAIN_INTERVAL_S:
            last = now
            typer.echo(
                f"{label}: {done:,} of {total:,} ({100 * done / max(total, 1):.0f} %)", err=True
            )

    return update


def command(function: Callable[..., Result]) -> Callable[..., None]:
    """Make a Typer command of a function whose first parameter is a `Console`.

    A parameter annotated with a config dataclass becomes one option a field.
    """

    @functools.wraps(function)
    def run(
        ctx: typer.Context, as_json: bool, quiet: bool, verbose: bool, debug: bool, **arguments: Any
    ) -> None:
        ctx.ensure_object(dict)["debug"] = debug
        console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
        console.given = frozenset(name for name, value in arguments.items() if value is not None)
        for name, config in configs.items():
            values = {key: arguments.pop(key) for key in options_of(config)}
            arguments[name] = config_options.build(config, values)
        with console.collecting_warnings():
            result = function(console, **arguments)
        _print(result, console, _name_of(ctx))
        if result.failures:
            raise CheckFailedError(
                "; ".join(result.failures),
                "these bounds were asked for by --fail-under and --fail-over",
            )

    own: list[inspect.Parameter] = []
    configs: dict[str, type] = {}
    for parameter in list(inspect.signature(function, eval_str=True).parameters.values())[1:]:
        if config_options.is_config(parameter.annotation):
            configs[parameter.name] = parameter.annotation
            own += config_options.parameters_of(parameter.annotation)
        else:
            own.append(parameter)
    common = [
        _flag("as_json", "--json", "Print one JSON document instead of a path or table."),
        _flag("quiet", "-q", "Only warnings and errors on stderr.", "--quiet"),
        _flag("verbose", "-v", "More detail on stderr.", "--verbose"),
        _flag("debug", "--debug", "Show the traceback of an error."),
    ]
    context = inspect.Parameter(
        "ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
    )
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [context, *(p.replace(kind=keyword) for p in (*own, *common))]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # Typer reads it
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def _flag(name: str, option: str, text: str, *more: str) -> inspect.Parameter:
    annotation = Annotated[bool, typer.Option(option, *more, help=text, rich_help_panel=_COMMON)]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation
    )


def _name_of(ctx: typer.Context) -> str:
    """Return a command's name without the program's: `info`, or `srf-show` for one of a group."""
    words: list[str] = []
    while ctx.parent is not None:
        words.insert(0, ctx.info_name or "")
        ctx = ctx.parent  # type: ignore[assignment]  # Typer makes every context of its own class
    return "-".join(words)


def _print(result: Result, console: Console, name: str) -> None:
    if console.as_json:
        document = {
            "schema": f"spectralift.{name}/1",
            "outputs": [str(path) for path in (*result.outputs, *result.side_files)],
            "warnings": console.warnings,
            **result.data,
        }
        text = json.dumps(strict(document), indent=2, ensure_ascii=False, allow_nan=False)
    elif result.outputs:
        text = str(result.outputs[0])
    else:
        text = result.table
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def strict(value: Any) -> Any:
    """Return JSON without NaN: a non-finite number is null, its reason in `<key>_note`."""
    if isinstance(value, Mapping):
        out: dict[str, Any] = {}
        for key, item in value.items():
            out[str(key)] = strict(item)
            if isinstance(item, float) and not math.isfinite(item):
                out.setdefault(f"{key}_note", f"not finite: {item}")
        return out
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    return value


def table(rows: Sequence[Sequence[str]], *, header: bool = False, right: Sequence[int] = ()) -> str:
    """Return rows of text as aligned columns, a rule under the header."""
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    if header:
        lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
