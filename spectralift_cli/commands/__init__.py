"""One thin file a command: parse, call one core function, report. Only this package knows Typer."""
