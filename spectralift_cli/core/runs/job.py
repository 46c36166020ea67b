"""A run on disk while it is made: `.OUT.job`, which outlives a run that is killed.

It holds job.json (whose lock the run holds), OUT (what becomes the run's folder) and for every
finished stage a receipt: what the stage was made of, and checksums of what it made. `--resume`
keeps a stage whose inputs are those of its receipt and whose outputs are as they were written,
from the work of a killed run or from a run that is there already; of the latter it takes hard
links, so that the old run stays whole until the new one replaces it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from spectralift_cli.core.errors import DataError, OutputExistsError
from spectralift_cli.core.jobs.folder import job_path
from spectralift_cli.core.jobs.plan import differences
from spectralift_cli.core.outputs import SharedStaging, Staging, write_text
from spectralift_cli.core.runs.blocks import SCHEMA as RUN_SCHEMA
from spectralift_cli.core.runs.files import as_json, is_filled, read_json, remove, take_over
from spectralift_cli.core.runs.receipt import Checksums, Receipt, plain_names

_SCHEMA = "spectralift.run-job/1"
_MOST_NAMES = 4
_MARK, _BEGUN = "job.json", "begun.json"


class RunJob:
    """The work of one run, which this process holds alone until `close`.

    Args:
        output: the run's folder.
        resume: continue a killed run, or take over what has not changed of a finished one.
        overwrite: drop what a killed run left, and replace a finished one.

    Attributes:
        work: the folder that becomes the output.
        receipts: of the stages that are done in `work`, by stage.

    Raises:
        OutputExistsError: the output or the work of a killed run is there, and neither `resume` nor
            `overwrite` is asked for.
        DataError: another process is at work on it, the output is no run, or the place cannot be
            written.
    """

    def __init__(self, output: Path, *, resume: bool = False, overwrite: bool = False) -> None:
        self.output = output
        self.receipts: dict[str, Receipt] = {}
        self._old: dict[str, Receipt] = {}
        self._begun: Mapping[str, Any] = {}
        self._sums = Checksums()
        self._check_place(resume, overwrite)
        self.folder = job_path(output)
        self.work = self.folder / output.name
        self._lock_fd = self._take(resume, overwrite)
        try:
            if resume:
                self._load()
        except BaseException:
            self.close()
            raise

    def _check_place(self, resume: bool, overwrite: bool) -> None:
        output = self.output
        if os.path.lexists(output) and not (resume or overwrite):
            raise OutputExistsError(
                f"{output}: exists already",
                "--overwrite replaces it, --resume makes again what has changed",
            )
        if output.exists() and not output.is_dir():
            raise DataError(f"{output}: is a file, a run is a folder", "choose another name for it")
        if resume and is_filled(output):
            self._finished()
        with Staging(output, overwrite=True):  # what cannot be written is refused before the work
            pass

    def _finished(self) -> dict[str, Any]:
        """Return the run.json of the run that is there already.

        Raises:
            DataError: it is no run.
        """
        try:
            found = read_json(self.output / "run.json")
        except (FileNotFoundError, DataError):
            found = {}
        if found.get("schema") != RUN_SCHEMA:
            raise DataError(
                f"{self.output}: is a folder without the run.json of a run",
                "choose another name for the output",
            )
        return found

    def _take(self, resume: bool, overwrite: bool) -> int:
        """Return the descriptor that holds the lock of the job, which is made if need be."""
        while True:
            if not os.path.lexists(self.folder):
                made = self._make()
                if made is not None:
                    return made
                continue
            fd = self._lock()
            if fd is None:
                continue  # it was finished or removed just now
            self._begun = self._read_begun()
            holds = self.work.is_dir() and (
                any((self.folder / "receipts").glob("*.json")) or self._partial
            )
            if holds and not (resume or overwrite):
                os.close(fd)
                raise OutputExistsError(
                    f"{self.folder}: an unfinished run of this output is there",
                    "--resume continues it, --overwrite starts afresh",
                )
            if holds and resume:
                return fd
            self._discard()  # where the work has been moved away, only its removal was cut off
            self._begun = {}
            os.close(fd)

    def _make(self) -> int | None:
        """Make the job whole, and locked; return None where another process was faster."""
        try:
            stage = Staging(self.folder)
        except OutputExistsError:
            return None
        with stage:
            new = stage.path()
            try:
                (new / self.output.name).mkdir(parents=True)
                (new / "receipts").mkdir()
                (new / _MARK).write_text(json.dumps({"schema": _SCHEMA}) + "\n", encoding="utf-8")
                fd = os.open(new / _MARK, os.O_RDONLY)
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(fd, fcntl.LOCK_EX)
                try:
                    new.rename(self.folder)
                except OSError:
                    os.close(fd)
                    raise
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    return None
                raise DataError(
                    f"{self.folder}: cannot be written ({error.strerror})",
                    "free some room or choose another folder",
                ) from error
        return fd

    def _lock(self) -> int | None:
        """Return the descriptor that holds the lock of the job that is there, None if it is gone."""
        mark = self.folder / _MARK
        try:
            fd = os.open(mark, os.O_RDONLY)
        except FileNotFoundError:
            if not os.path.lexists(self.folder):
                return None
            raise self._foreign() from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            raise DataError(
                f"{self.folder}: is being worked on by another process", "wait for it, or stop it"
            ) from error
        except OSError as error:
            os.close(fd)
            raise DataError(
                f"{self.folder}: cannot be locked ({error.strerror})",
                "remove it if no other run is at work on it",
            ) from error
        try:
            if not os.path.samestat(os.fstat(fd), mark.stat()):
                raise FileNotFoundError
            if read_json(mark).get("schema") != _SCHEMA:
                raise self._foreign()
        except FileNotFoundError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _foreign(self) -> DataError:
        return DataError(
            f"{self.folder}: is not the work of a run that this version can continue",
            "finish or remove it, or choose another name for the output",
        )

    def _load(self) -> None:
        """Read the receipts of both runs; remove what no receipt speaks of."""
        for path in sorted((self.folder / "receipts").glob("*.json")):
            with contextlib.suppress(DataError):
                receipt = Receipt.from_json(read_json(path))
                self.receipts[receipt.stage] = receipt
        stages = self._finished().get("stages") if is_filled(self.output) else None
        for entry in stages if isinstance(stages, list) else []:
            with contextlib.suppress(DataError):
                told = entry.get("receipt") if isinstance(entry, dict) else None
                receipt = Receipt.from_json(told)
                self._old[receipt.stage] = receipt
        outputs = {name for receipt in self.receipts.values() for name in receipt.outputs}
        self._sweep({*outputs, *self._partial})

    def _read_begun(self) -> dict[str, Any]:
        try:
            return read_json(self.folder / _BEGUN)
        except (FileNotFoundError, DataError):
            return {}

    @property
    def _partial(self) -> list[str]:
        """What the stage that was begun last can go on from."""
        names = plain_names(self._begun.get("partial"))
        return [name for name in names if (self.work / name).is_file()]

    def _sweep(self, keep: Collection[str]) -> None:
        for path in self.work.iterdir():
            if path.name not in keep:
                remove(path)

    def kept(
        self,
        stage: str,
        inputs: Mapping[str, Any],
        successor: str = "",
        follows: Callable[[Receipt], Mapping[str, Any]] | None = None,
    ) -> tuple[Receipt | None, str]:
        """Return the receipt of a stage that need not be made, or why it must be made again.

        Args:
            stage: its name.
            inputs: what determines its outputs.
            successor: a later stage that writes in place of this one's outputs.
            follows: called with this stage's receipt, gives the inputs of the successor; None where
                there is no successor this time.

        Returns:
            (receipt, "") with its outputs in `work`, or (None, reason); the reason is "" where the
            stage has never been finished.
        """
        reason = ""
        for receipts, folder in ((self.receipts, self.work), (self._old, self.output)):
            found, later = receipts.get(stage), receipts.get(successor)
            if found is None:
                continue
            changed = list(differences(as_json(inputs), found.inputs))
            damaged = [] if changed else self._sums.damaged(found.outputs, folder)
            if changed:
                more = " ..." if len(changed) > _MOST_NAMES else ""
                reason = reason or f"changed: {', '.join(changed[:_MOST_NAMES])}{more}"
            elif not damaged:
                self._adopt(found, folder, found.outputs)
                return found, ""
            elif later is None or not set(damaged) <= set(later.outputs):
                reason = reason or f"not as it was written: {', '.join(damaged)}"
            elif (
                follows is not None
                and as_json(follows(found)) == later.inputs
                and not self._sums.damaged(later.outputs, folder)
            ):
                # what is damaged comes with the successor's outputs
                self._adopt(found, folder, [n for n in found.outputs if n not in damaged])
                return found, ""
            else:
                reason = reason or f"{successor} has replaced {', '.join(damaged)}"
        return None, reason

    def _adopt(self, receipt: Receipt, folder: Path, names: Iterable[str]) -> None:
        if folder != self.work:
            for name in names:
                remove(self.work / name)
                take_over(folder / name, self.work / name)
        self._record(receipt)

    def _record(self, receipt: Receipt) -> None:
        if self.receipts.get(receipt.stage) == receipt:
            return
        path = self.folder / "receipts" / f"{receipt.stage}.json"
        write_text(path, json.dumps(receipt.to_json(), sort_keys=True) + "\n", overwrite=True)
        self.receipts[receipt.stage] = receipt

    def begin(self, stage: str, inputs: Mapping[str, Any], partial: Iterable[str] = ()) -> bool:
        """Make room for the outputs of a stage.

        Args:
            stage: its name.
            inputs: what determines its outputs.
            partial: files in `work` from which it can go on when it is killed.

        Returns:
            Whether these files are there, of the same inputs.
        """
        unwanted = set(self.receipts[stage].outputs) if stage in self.receipts else set()
        for other, receipt in list(self.receipts.items()):
            if other == stage or unwanted & set(receipt.outputs):
                (self.folder / "receipts" / f"{other}.json").unlink(missing_ok=True)
                unwanted |= set(receipt.outputs)
                del self.receipts[other]
        begun = {"stage": stage, "inputs": as_json(inputs), "partial": sorted(partial)}
        continues = begun == self._begun
        if not continues:
            unwanted |= set(self._partial)
        for name in unwanted:
            remove(self.work / name)
        write_text(self.folder / _BEGUN, json.dumps(begun, sort_keys=True) + "\n", overwrite=True)
        self._begun = begun
        return continues and self._partial == sorted(partial)

    def finish(
        self,
        stage: str,
        inputs: Mapping[str, Any],
        files: Mapping[str, Path],
        result: Mapping[str, Any],
        seconds: float,
        warnings: Iterable[str],
    ) -> Receipt:
        """Write the receipt of a stage that is made.

        Args:
            stage: its name.
            inputs: what determines its outputs.
            files: in `work`, by role.
            result: of the stage, JSON-ready.
            seconds: it took.
            warnings: it gave.
        """
        names = {role: path.relative_to(self.work).as_posix() for role, path in files.items()}
        outputs = {name: self._sums.of(self.work / name) for name in sorted(set(names.values()))}
        receipt = Receipt(
            stage, as_json(inputs), names, outputs, as_json(result), round(seconds, 3),
            tuple(warnings),
        )  # fmt: skip
        self._record(receipt)
        return receipt

    def is_unchanged(self, receipts: Iterable[Receipt], config: str) -> bool:
        """Tell whether the finished run that is there has these stages, no others, and this config.

        Its outputs must be whole: a stage that was made again for their damage may have the receipt
        it had before.
        """
        if {r.stage: r for r in receipts} != self._old:
            return False
        # of what a later stage has replaced, that stage's
        written = {name: sha256 for r in self._old.values() for name, sha256 in r.outputs.items()}
        if self._sums.damaged(written, self.output):
            return False
        with contextlib.suppress(OSError):
            return (self.output / "used_config.yaml").read_text(encoding="utf-8") == config
        return False

    def commit(self, names: Collection[str]) -> None:
        """Move the work into place, with what others have put into the run that is there.

        Args:
            names: what belongs to the run, at the top of `work`.

        Raises:
            DataError: it cannot be moved there.
        """
        self._sweep(names)
        for path in sorted(self._others()):
            if not os.path.lexists(self.work / path.name):
                take_over(path, self.work / path.name)
        # who may replace what is there was decided at the start
        SharedStaging(self.folder, self.output, overwrite=True).commit()
        self._discard()

    def _others(self) -> list[Path]:
        """Return what no run has written into the folder of the finished run."""
        if not self._old:
            return []
        outputs = self._finished().get("outputs")
        named = outputs.values() if isinstance(outputs, dict) else ()
        written = [str(name).split("/")[0] for name in named]
        ours = {"run.json", *written, *(n for r in self._old.values() for n in r.outputs)}
        return [
            path for path in self.output.iterdir()
            if path.name not in ours and not path.name.endswith(".part")
        ]  # fmt: skip

    def discard(self) -> None:
        """Drop the work."""
        self._discard()
        self.close()

    def close(self) -> None:
        """Let go of the job; what is done stays, and an empty one goes. Harmless when called again."""
        if self._lock_fd < 0:
            return
        if not self.keeps_work:
            self._discard()
        fd, self._lock_fd = self._lock_fd, -1
        os.close(fd)

    @property
    def keeps_work(self) -> bool:
        """Whether a stage is done, or one that can go on is begun."""
        return bool(self.receipts or self._partial)

    def _discard(self) -> None:
        # under a name of `Staging` first: half a job is none, and the next run clears up after a kill
        unwanted = self.folder.with_name(f".{self.output.name}.{secrets.token_hex(4)}.part")
        with contextlib.suppress(FileNotFoundError):
            self.folder.rename(unwanted)
            shutil.rmtree(unwanted, ignore_errors=True)
