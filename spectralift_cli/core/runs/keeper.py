"""The stages of a run one by one: each is made, or kept if nothing of it has changed."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spectralift_cli.core.cube import Progress
from spectralift_cli.core.errors import SpectraliftWarning
from spectralift_cli.core.runs.job import RunJob
from spectralift_cli.core.runs.log import RunLog
from spectralift_cli.core.runs.receipt import Receipt

StageProgress = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Made:
    """What a stage made.

    Args:
        files: in the work folder, by role.
        result: what it tells besides, JSON-ready.
        told: what the user is told, from the seconds it took.
    """

    files: Mapping[str, Path]
    result: Mapping[str, Any]
    told: Callable[[float], str]


@dataclass
class Keeper:
    """Makes stages, or keeps them.

    Args:
        job: the run's work on disk.
        log: where it is said.
        progress: called with a stage's name, gives the `progress(done, total)` of that stage.
        done: the receipts of the stages so far, by stage.
        kept: the stages of these that were not made.
        goes_on: whether a stage that is being made finds its `partial` to go on from.
    """

    job: RunJob
    log: RunLog
    progress: StageProgress
    done: dict[str, Receipt] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    goes_on: bool = False

    def path(self, receipt: Receipt, role: str) -> Path:
        """Return where a file lies that a stage has made."""
        return self.job.work / receipt.files[role]

    def try_stage(
        self,
        name: str,
        inputs: Mapping[str, Any],
        make: Callable[[Progress], Made | None],
        *,
        partial: Sequence[str] = (),
        successor: str = "",
        follows: Callable[[Receipt], Mapping[str, Any]] | None = None,
    ) -> Receipt | None:
        """Make a stage, or keep it.

        Args:
            name: of the stage.
            inputs: what determines its outputs.
            make: called with the progress; gives None where the run goes on without what the stage
                would have made.
            partial: see `RunJob.begin`.
            successor: see `RunJob.kept`.
            follows: see `RunJob.kept`.
        """
        found, reason = self.job.kept(name, inputs, successor, follows)
        if found is not None:
            for text in found.warnings:
                warnings.warn(text, SpectraliftWarning, stacklevel=3)
            self.log.say(f"{name}: unchanged, kept")
            self.kept.add(name)
            self.done[name] = found
            return found
        if reason:
            self.log.say(f"{name}: made again ({reason})")
        self.goes_on = self.job.begin(name, inputs, partial)
        known = len(self.log.warnings)
        start = time.perf_counter()
        with self.progress(name) as update:
            made = make(update)
        if made is None:
            return None
        seconds = time.perf_counter() - start
        receipt = self.job.finish(
            name, inputs, made.files, made.result, seconds, self.log.warnings[known:]
        )
        self.done[name] = receipt
        self.log.say(f"{name}: {made.told(seconds)}")
        return receipt

    def stage(
        self,
        name: str,
        inputs: Mapping[str, Any],
        make: Callable[[Progress], Made],
        *,
        partial: Sequence[str] = (),
        successor: str = "",
        follows: Callable[[Receipt], Mapping[str, Any]] | None = None,
    ) -> Receipt:
        """Make a stage without which there is no run, or keep it; see `try_stage`."""
        receipt = self.try_stage(
            name, inputs, make, partial=partial, successor=successor, follows=follows
        )
        if receipt is None:
            raise ValueError(f"{name} gave nothing")
        return receipt
