"""Fixtures that several test files use."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from spectralift_cli.core.resources import available_cpus

CompletedProcess = subprocess.CompletedProcess[str]
Run = Callable[..., CompletedProcess]


@pytest.fixture(scope="session")
def spectralift() -> Run:
    """Run the command line in a real process, without a terminal, as a shell script would."""

    def run(*words: object, cwd: Path | None = None, **more: object) -> CompletedProcess:
        environment = {**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
        return subprocess.run(
            [sys.executable, "-m", "spectralift_cli", *map(str, words)],
            cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=120, **more,
        )  # type: ignore[call-overload,no-any-return]  # fmt: skip

    return run


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """As many processes as CPUs, but few: each loads PyTorch, and starts processes that do."""
    del config
    return min(4, available_cpus())


def _folder(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set")
    return Path(value)


@pytest.fixture(scope="session")
def scenes() -> Path:
    """The folder of real scenes, named by SPECTRALIFT_SCENES."""
    return _folder("SPECTRALIFT_SCENES")


@pytest.fixture(scope="session")
def srfs() -> Path:
    """The folder of response curves, named by SPECTRALIFT_SRFS."""
    return _folder("SPECTRALIFT_SRFS")
