"""Inference that is cut, shared, killed and continued: always the bytes of one undisturbed run."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectralift_cli.core.checkpoint import Checkpoint, save_checkpoint
from spectralift_cli.core.config import InferConfig
from spectralift_cli.core.cube import AnyArray, Cube, CubeMeta
from spectralift_cli.core.cubeio import CubeWriter
from spectralift_cli.core.engine import Counts
from spectralift_cli.core.errors import (
    DataError,
    OptionError,
    OutputExistsError,
)
from spectralift_cli.core.formats import open_cube, write_cube
from spectralift_cli.core.formats.rawio import PAGE
from spectralift_cli.core.inference import prepare
from spectralift_cli.core.jobs import executors
from spectralift_cli.core.jobs.blocks import InferTask
from spectralift_cli.core.jobs.folder import Job, job_path
from spectralift_cli.core.jobs.plan import BlockGrid, Shard, differences
from spectralift_cli.core.jobs.sharing import SharedResult, Sharing, infer_shared
from spectralift_cli.core.operators.scaling import Scaling
from spectralift_cli.core.stages import Execution, Storage, infer
from tests.conftest import Run
from tests.inverters import make_checkpoint

SHARED = ("out.npy", "out.bil", "out.bsq", "out.zarr")
BATCH = 190  # no multiple of the width, so that blocks end inside chunks


def checkpoint_and_msi() -> tuple[Checkpoint, Cube]:
    """Integers with holes, clipping, saturation and values on nodata: every count occurs."""
    checkpoint = make_checkpoint(
        5, 3, scaling=Scaling(0.1, 0.8), dtype=np.dtype("int16"), scale=1e-4, nodata=3000
    )
    stored = np.random.default_rng(8).integers(0, 20_000, (300, 97, 3)).astype(np.uint16)
    stored[40, 11:60, 1] = 65535
    stored[-1, -1, 0] = 65535
    return checkpoint, Cube.of(stored, nodata=65535, scale=1e-4)


def make_task(tmp_path: Path) -> InferTask:
    """An inference of about ten blocks; chunks of Zarr have 16 rows."""
    checkpoint, msi = checkpoint_and_msi()
    save_checkpoint(checkpoint, tmp_path / "model.safetensors")
    write_cube(tmp_path / "msi.hdr", msi)
    return InferTask(
        tmp_path / "model.safetensors", tmp_path / "msi.hdr", tmp_path / "out.npy", batch_size=BATCH
    )


@pytest.fixture
def task(tmp_path: Path) -> InferTask:
    return make_task(tmp_path)


def with_output(task: InferTask, name: str, **more: Any) -> InferTask:
    options = {"CHUNK": "16"} if name.endswith(".zarr") else None
    fields = {
        **vars(task), "output": task.output.with_name(name), "stored": Storage(options=options), **more,
    }  # fmt: skip
    return InferTask(**fields)


def bytes_of(output: Path) -> dict[str, bytes]:
    """The output's files, told by what follows its stem."""
    found: dict[str, bytes] = {}
    for path in sorted(output.parent.glob(f"{output.stem}.*")):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                found[str(file.relative_to(output.parent)).removeprefix(output.stem)] = (
                    file.read_bytes()
                )
    return found


def undisturbed(task: InferTask) -> tuple[dict[str, bytes], Any]:
    """What one plain run writes, and its result; nothing of it stays."""
    folder = task.output.parent / "plain"
    folder.mkdir(exist_ok=True)
    output = folder / task.output.name
    result = infer(
        task.model, task.image, output, task.config, stored=task.stored, batch_size=task.batch_size,
        overwrite=True,
    )  # fmt: skip
    found = bytes_of(output)
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()
    return found, result


def assert_same(shared: SharedResult, task: InferTask) -> None:
    expected, result = undisturbed(task)
    assert bytes_of(task.output) == expected
    assert shared.result is not None
    for name in ("pixels", "holes", "clipped", "saturated", "moved", "beyond"):
        assert getattr(shared.result, name) == getattr(result, name), name
    assert not [p for p in task.output.parent.iterdir() if p.name.startswith(".")]


@pytest.mark.filterwarnings("ignore:.*beyond what")
@pytest.mark.parametrize(
    ("name", "workers"), [*((name, None) for name in SHARED), ("out.bsq", 2), ("out.zarr", 2)]
)
def test_bytes_and_counts_are_those_of_one_run(
    task: InferTask, name: str, workers: int | None
) -> None:
    task = with_output(task, name)
    done: list[tuple[int, int]] = []
    shared = infer_shared(
        task, Sharing(workers=workers, resume=True), progress=lambda *a: done.append(a)
    )
    assert shared.blocks == shared.blocks_done == done[-1][1] > 8
    assert_same(shared, task)


@pytest.mark.filterwarnings("ignore:.*beyond what")
@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3)))[1::2])
def test_shards_in_any_order(task: InferTask, order: tuple[int, ...]) -> None:
    for index in order[:2]:
        state = infer_shared(task, Sharing(shard=Shard(index, 3)))
        assert state.result is None
        assert 0 < state.blocks_done < state.blocks
        assert not task.output.exists()
    assert_same(infer_shared(task, Sharing(shard=Shard(order[2], 3))), task)


def flip(path: Path, at: int = -100) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def half_done(task: InferTask) -> Path:
    """Leave a job whose first half is complete, as a run leaves it that was killed there."""
    assert infer_shared(task, Sharing(shard=Shard(1, 2))).result is None
    return job_path(task.output)


def a_value_file(job: Path, name: str) -> tuple[Path, int]:
    """A file of the first block's values and a place in it."""
    if name.endswith(".zarr"):
        return job / "data" / name / "cube" / "c" / "0" / "0" / "0", -20
    return job / "data" / name, 2000


@pytest.mark.filterwarnings("ignore:.*beyond what")
@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("damage", ["value", "receipt", "metadata", "truncated", "partial"])
def test_damage_between_runs_is_mended(task: InferTask, name: str, damage: str) -> None:
    task = with_output(task, name)
    job = half_done(task)
    values, at = a_value_file(job, name)
    if damage == "value":
        flip(values, at)
    elif damage == "receipt":
        flip(job / "receipts" / "000001.json", 20)
    elif damage == "truncated":
        values.write_bytes(values.read_bytes()[:-30])
    elif damage == "partial":  # what a killed write leaves
        (values.parent / "0.0123456789abcdef.partial").write_bytes(b"half")
        (job / "receipts" / "000007.json.01234567.part").write_bytes(b"{")
    else:
        files = {".npy": name, ".zarr": f"{name}/zarr.json"}
        file = files.get(task.output.suffix, "out.hdr")
        flip(job / "data" / file, 5)
    assert_same(infer_shared(task, Sharing(resume=True)), task)


@pytest.mark.filterwarnings("ignore:.*beyond what")
def test_finishing_run_checks_the_blocks_of_others(task: InferTask) -> None:
    job = half_done(task)
    flip(*a_value_file(job, "out.npy"))
    assert_same(infer_shared(task, Sharing(shard=Shard(2, 2))), task)


def test_changed_input_or_options_are_refused(task: InferTask) -> None:
    job = half_done(task)
    before = bytes_of(job / "data" / "out.npy")
    resume = Sharing(resume=True)

    def refused(match: str, **more: Any) -> None:
        with pytest.raises(DataError, match=match) as caught:
            infer_shared(with_output(task, "out.npy", **more), resume)
        assert "--overwrite" in caught.value.hint

    refused(r"differs: options\.clip$", config=InferConfig(clip="none"))
    refused(r"differs: arithmetic\.batch_size$", batch_size=BATCH + 1)
    refused(r"dtype", stored=Storage(dtype="int32"))
    flip(task.image.with_suffix(".img"), 20_000)
    refused(r"differs: hr_msi\.sha256$")
    flip(task.image.with_suffix(".img"), 20_000)
    save_checkpoint(make_checkpoint(5, 3, dtype=np.dtype("int16")), task.model, overwrite=True)
    refused(r"model")
    plan = job / "plan.json"
    plan.write_text(plan.read_text()[:-9])
    refused("plan.json: is damaged")
    assert bytes_of(job / "data" / "out.npy") == before


@pytest.mark.filterwarnings("ignore:.*beyond what")
def test_changed_rows_that_the_identity_of_a_large_image_misses(
    task: InferTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spectralift_cli.core.identity._WHOLE_BYTES", 0)
    monkeypatch.setattr("spectralift_cli.core.identity._PART_BYTES", 100)
    half_done(task)
    flip(task.image.with_suffix(".img"), 20_000)  # row 34
    with pytest.raises(DataError, match="rows 32 to 64 have changed"):
        infer_shared(task, Sharing(resume=True))
    flip(task.image.with_suffix(".img"), 20_000)
    assert_same(infer_shared(task, Sharing(resume=True)), task)


@pytest.mark.filterwarnings("ignore:.*beyond what")
def test_unfinished_job_is_neither_ignored_nor_lost(task: InferTask) -> None:
    job = half_done(task)
    for again in (
        lambda: infer_shared(task, Sharing(workers=1)),
        lambda: infer(task.model, task.image, task.output, batch_size=BATCH),
    ):
        with pytest.raises(OutputExistsError, match="unfinished job") as caught:
            again()
        assert "--resume" in caught.value.hint
    other = Job(job, json.loads((job / "plan.json").read_text())["id"])
    with other, pytest.raises(DataError, match="by another process"):
        infer_shared(with_output(task, "out.npy", overwrite=True), Sharing(workers=1))
    infer(task.model, task.image, task.output, batch_size=BATCH, overwrite=True)
    assert not job.exists()
    with pytest.raises(OutputExistsError):
        infer_shared(task, Sharing(resume=True))
    assert not job.exists()
    assert_same(
        infer_shared(with_output(task, "out.npy", overwrite=True), Sharing(resume=True)), task
    )


@pytest.mark.filterwarnings("ignore:.*beyond what")
def test_job_whose_output_was_moved_already_is_cleared_away(task: InferTask) -> None:
    job = half_done(task)
    for path in (job / "data").iterdir():
        path.unlink()
    assert_same(infer_shared(task, Sharing()), task)


def test_job_that_lacks_its_plan_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    output = tmp_path / "x.npy"
    Job.join(output, {}, must_be_new=True).leave()
    (job_path(output) / "plan.json").unlink()
    with pytest.raises(DataError, match=r"lacks plan\.json"):
        Job.join(output, {}, must_be_new=False)


def test_what_cannot_be_shared(task: InferTask) -> None:
    for name in ("out.tif", "out.h5", "out.mat", "out.npz"):
        with pytest.raises(OptionError, match="one writer") as caught:
            infer_shared(with_output(task, name), Sharing(resume=True))
        assert "convert" in caught.value.hint
    with pytest.raises(OptionError, match="exclude each other"):
        Sharing(workers=2, scheduler="tcp://127.0.0.1:1")
    with pytest.raises(OptionError, match="CHUNK=0"):
        infer_shared(
            with_output(task, "out.zarr", stored=Storage(options={"CHUNK": "0"})),
            Sharing(workers=1),
        )
    assert not [p for p in task.output.parent.iterdir() if p.name.startswith(".")]


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 10**6), st.integers(1, 10**5), st.integers(1, 500)),
    chunk=st.integers(1, 10**5), step=st.integers(1, 512), shards=st.integers(1, 9),
)  # fmt: skip
def test_blocks_and_shards_cover_every_row_once(
    shape: tuple[int, int, int], chunk: int, step: int, shards: int
) -> None:
    grid = BlockGrid.of(CubeMeta(shape, np.dtype("int16")), chunk, step)
    assert grid.count <= 4096
    assert grid.block_rows % step == 0
    blocks = [b for i in range(shards) for b in Shard(i + 1, shards).of(grid.count)]
    ends = [0, *(grid.part(block).stop for block in blocks)]
    assert [grid.part(block).start for block in blocks] == ends[:-1]
    assert ends[-1] == shape[0]


def test_differences_are_named() -> None:
    mine = {"a": 1, "b": {"c": [1, 2], "d": None}, "e": {}}
    assert list(differences(mine, mine)) == []
    assert list(differences(mine, {"a": 2, "b": {"c": [1]}, "e": 3})) == ["a", "b.c", "e"]
    assert list(differences(mine, "text")) == [""]


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_any_rows_are_those_of_the_whole(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    checkpoint, msi = checkpoint_and_msi()
    cube = Cube(msi.values[:60], msi.meta.window(0, 0, 60, 97))
    path = write_cube(tmp_path_factory.mktemp("any") / "msi.npy", cube)[0]
    cuts = sorted({0, 60, *data.draw(st.lists(st.integers(1, 59), max_size=3))})
    step = data.draw(st.integers(1, 7))
    head = 2 * data.draw(st.integers(0, 2**12))
    with open_cube(path) as reader:
        reader.block_rows = data.draw(st.integers(1, 60))
        whole = prepare(checkpoint, reader, InferConfig(), batch_size=6000)
        batch = data.draw(st.integers(50, 700))
        parts = prepare(checkpoint, reader, InferConfig(), batch_size=batch)
        one = prepare(
            checkpoint, reader, InferConfig(), batch_size=batch, execution=Execution("cpu", 1)
        )
        with one.computing() as compute:
            expected = np.concatenate([v.copy() for _, v in one.stream(compute, slice(0, 60))])
            total = compute.counts
        counts = Counts()
        found = np.empty_like(expected)
        writer = WriterOfRows(parts.meta, step, head)
        for start, stop in itertools.pairwise(cuts):
            with parts.computing() as compute:
                row = start
                for rows, values in kept_one_step(
                    parts.stream(compute, slice(start, stop), writer)
                ):
                    assert rows.start == row
                    assert values.ctypes.data % PAGE == writer.page_offset(row)
                    assert (rows.stop - rows.start) % step == 0 or rows.stop == stop
                    found[rows] = values
                    row = rows.stop
                assert row == stop
                counts += compute.counts
    assert found.tobytes() == expected.tobytes()
    assert counts == total
    assert whole.meta.shape == expected.shape


class WriterOfRows(CubeWriter):
    """Wants rows together, and where in a page of memory they begin; `head` bytes come first."""

    random_access = True

    def __init__(self, meta: CubeMeta, block_rows: int, head: int) -> None:
        super().__init__(Path("memory"), meta, block_rows)
        self.head = head

    def page_offset(self, row: int) -> int:
        return (self.head + row * self.meta.row_bytes) % PAGE

    def _write(self, start: int, block: AnyArray) -> None:
        raise NotImplementedError

    def _commit(self) -> tuple[Path, ...]:
        raise NotImplementedError

    def abort(self) -> None:
        pass


def kept_one_step(
    items: Iterator[tuple[slice, np.ndarray]],
) -> Iterator[tuple[slice, np.ndarray]]:
    """Use what was yielded only after the next was computed, as a slow writer does."""
    last = None
    for item in items:
        if last is not None:
            yield last
        last = item
    if last is not None:
        yield last


def test_refusals_come_before_any_work_and_leave_nothing(task: InferTask, spectralift: Run) -> None:
    folder = task.output.parent
    words = ("infer", task.model, task.image, "--inference-batch-size", BATCH)
    before = sorted(folder.iterdir())
    for code, more, output in (
        (2, ("--workers", "2"), "other.tif"),
        (2, ("--shard", "1/2", "--dry-run"), "other.tif"),
        (2, ("--co", "CHUNK=x", "--dry-run"), "other.zarr"),
        (3, ("--dry-run",), "nowhere/other.npy"),
        (2, ("--refine", "--workers", "2"), "other.npy"),
        (2, ("--refine", "--memory", "1GB"), "other.npy"),
        (2, ("--uncertainty", "u.npy", "--memory", "1GB"), "other.npy"),
    ):
        done = spectralift(*words, *more, "-o", output, cwd=folder)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert [line[:7] for line in done.stderr.splitlines()] == ["error: ", "  hint:"]
        assert sorted(folder.iterdir()) == before


def test_workers_that_the_memory_cannot_hold_are_not_started(
    task: InferTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "available_memory_bytes", lambda: 700 * 10**6)
    with pytest.raises(DataError, match=r"3 workers take 900 MB .* 700 MB are free"):
        infer_shared(task, Sharing(workers=3))
    assert not job_path(task.output).exists()


def test_a_cluster_that_never_answered_leaves_no_job(
    task: InferTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed", reason="the extra dask is not installed")
    monkeypatch.setattr(executors, "_CONNECT_S", 1)
    file = tmp_path / "scheduler.json"
    for text in ("\x93NUMPY", "[]", '{"address": 3}', "[" * 99_999):
        file.write_text(text)
        with pytest.raises(DataError, match="holds no address"):
            infer_shared(task, Sharing(scheduler_file=file))
    with pytest.raises(DataError, match="no Dask scheduler answers there"):
        infer_shared(task, Sharing(scheduler="tcp://127.0.0.1:1"))
    assert not job_path(task.output).exists()


def test_commands(task: InferTask, spectralift: Run) -> None:
    words = ("infer", task.model, task.image, "--inference-batch-size", BATCH)
    done = spectralift(*words, "--shard", "1/2", "-o", "out.npy", cwd=task.output.parent)
    assert (done.returncode, done.stdout) == (0, ".out.npy.job\n"), done.stderr
    assert "5 of 10 blocks are done" in done.stderr
    done = spectralift(*words, "--resume", "--json", "-o", "out.npy", cwd=task.output.parent)
    document = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert document["outputs"] == ["out.npy", "out.npy.json"]
    assert bytes_of(task.output) == undisturbed(task)[0]
    for bad in (
        ("--shard", "0/2"),
        ("--shard", "3/2"),
        ("--workers", "2", "--scheduler", "tcp://x:1"),
    ):
        done = spectralift(*words, *bad, "-o", "other.npy", cwd=task.output.parent)
        assert done.returncode == 2, done.stderr
