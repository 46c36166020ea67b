"""`run --resume`: what is proven is kept, the rest is made again, and the bytes are a fresh run's."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats import write_cube
from spectralift_cli.core.runs import inputs as runinputs
from spectralift_cli.core.runs.config import resolve_config
from spectralift_cli.core.runs.configtext import read_config
from spectralift_cli.core.runs.pipeline import execute
from spectralift_cli.core.runs.receipt import Receipt
from spectralift_cli.core.samples import synthetic
from tests.test_faults import Server, wait_for
from tests.test_run import bytes_of, config, done, run

NATIVE: dict[str, Any] = {
    "schema": "spectralift.run/1",
    "synth": {"cube": "cube.npy", "kernel_size": 2},
    "train": {"preset": "paper", "epochs": 30, "hidden_size": 8},
    "report": {"write": False},
}
STAGES = ("synth", "train", "infer", "refine", "metrics")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a cube and a config in it."""
    monkeypatch.chdir(tmp_path)
    write_cube("cube.npy", synthetic(24, 20, 10))
    synth = {**NATIVE["synth"], "cube": str(tmp_path / "cube.npy")}  # the server is elsewhere
    config("n.yaml", {**NATIVE, "synth": synth})
    return tmp_path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("log"))
    yield server
    server.close()


def kept(text: str) -> list[str]:
    """The stages that were kept, by what was said."""
    return [line.split(":")[0] for line in text.splitlines() if line.endswith(": unchanged, kept")]


def sets(*pairs: str) -> list[str]:
    return [word for pair in pairs for word in ("--set", pair)]


def flip(path: Path) -> None:
    """Change one bit in the middle of a file, in place."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))


# --- a run that was killed


def test_killed_in_the_middle_of_training(here: Path, server: Server) -> None:
    words = ["run", here / "n.yaml", "-o", here / "out", *sets("train.epochs=1500")]
    assert server.run("run", here / "n.yaml", "-o", here / "whole", *words[4:]) == 0, server.said
    expected = bytes_of("whole")
    state = here / ".out.job/out/model.safetensors.state"
    server.start(*words)
    wait_for(state.exists)
    server.kill(signal.SIGKILL)
    assert server.wait() == -signal.SIGKILL
    assert not Path("out").exists()
    assert server.run(*words) == 4
    assert "unfinished run of this output is there" in server.said
    assert "--resume continues it, --overwrite starts afresh" in server.said
    before = state.read_bytes()
    for damage in (False, True):
        shutil.copytree(".out.job", "copy")
        if damage:
            flip(state)
        assert server.run(*words, "--resume") == 0, server.said
        assert kept(server.said) == ["synth"]
        told = "is not as it was written" if damage else "goes on from model.safetensors.state"
        assert told in server.said
        assert bytes_of("out") == expected
        assert not list(here.glob(".out*"))
        shutil.rmtree("out")
        Path("copy").rename(".out.job")
    assert state.read_bytes() == before
    # of other options: begun afresh, and said so
    other = [*words[:4], *sets("train.epochs=30"), "--resume"]
    assert server.run(*other) == 0, server.said
    assert "goes on" not in server.said
    done("n.yaml", "-o", "fresh")
    assert bytes_of("out") == bytes_of("fresh")


def test_killed_at_random_moments(here: Path, server: Server) -> None:
    words = ["run", here / "n.yaml", "-o", here / "out", *sets("train.epochs=200"), "--resume"]
    begun = time.monotonic()
    assert server.run(*words) == 0, server.said
    length_s = time.monotonic() - begun
    expected = bytes_of("out")
    shutil.rmtree("out")
    moments, kills = random.Random("run"), 0
    while kills < 6:
        if Path("out").exists():
            assert bytes_of("out") == expected
            shutil.rmtree("out")
        server.start(*words)
        time.sleep(moments.uniform(0, 0.9 * length_s))
        server.kill(signal.SIGKILL)
        kills += server.wait() == -signal.SIGKILL
    if not Path("out").exists():
        assert server.run(*words) == 0, server.said
    assert bytes_of("out") == expected
    assert not list(here.glob(".out*"))


def test_interrupted_says_how_to_go_on_and_is_not_shared(here: Path, server: Server) -> None:
    words = ["run", here / "n.yaml", "-o", here / "out"]
    server.start(*words, *sets("train.epochs=10000000"))
    wait_for(Path(".out.job/receipts/synth.json").exists)
    for more in (["--resume"], ["--overwrite"], []):
        second = run(*words[1:], *more)
        assert second.exit_code == 3
        assert ".out.job: is being worked on by another process" in second.stderr
    server.kill(signal.SIGTERM)
    assert server.wait() == 143
    assert ".out.job keeps what is done: --resume continues it" in server.said
    Path("n.yaml").write_text(Path("n.yaml").read_text().replace("epochs: 30", "epochs: 20"))
    told = done(*words[1:], "--resume").stderr
    assert kept(told) == ["synth"]
    assert "train: made again" not in told  # it never was finished


def test_a_bit_flipped_in_what_a_killed_run_kept(here: Path, server: Server) -> None:
    words = ["run", here / "n.yaml", "-o", here / "out"]
    server.start(*words, *sets("train.epochs=10000000"))
    wait_for(Path(".out.job/receipts/synth.json").exists)
    server.kill(signal.SIGKILL)
    server.wait()
    flip(Path(".out.job/out/scene/lr_hsi.h5"))
    told = done(*words[1:], "--resume").stderr
    assert "synth: made again (not as it was written: scene)" in told
    done("n.yaml", "-o", "fresh")
    assert bytes_of("out") == bytes_of("fresh")


# --- a run that is finished


CHANGES = [
    ([], STAGES),
    (["metrics.mode=published"], STAGES[:4]),
    (["refine.enabled=false"], STAGES[:2]),
    (["infer.format=hdr"], STAGES[:2]),
    (["infer.format=hdr", "refine.strength=3"], STAGES[:2]),
    (["infer.format=hdr", "refine.strength=3", "metrics.ratio=2"], STAGES[:4]),
    (["train.epochs=20", "metrics.ratio=2"], STAGES[:1]),
    (["synth.seed=5", "report.write=true"], ()),
]


def test_only_what_changed_is_made_again(here: Path) -> None:
    done("n.yaml", "-o", "out")
    for number, (pairs, expected) in enumerate(CHANGES):
        told = done("n.yaml", "-o", "out", "--resume", *sets(*pairs)).stderr
        assert tuple(kept(told)) == expected, told
        done("n.yaml", "-o", f"fresh{number}", *sets(*pairs))
        assert bytes_of("out") == bytes_of(f"fresh{number}")
        report = json.loads(Path("out/run.json").read_text())
        assert not pairs or [s["stage"] for s in report["stages"] if s["kept"]] == list(expected)
        assert not list(here.glob(".out*"))
    # of memory and speed only: the config is another, and what it makes is not
    batches = [*sets(*CHANGES[-1][0]), "--set", "infer.inference_batch_size=9"]
    assert kept(done("n.yaml", "-o", "out", "--resume", *batches).stderr) == list(STAGES)


def test_nothing_changed_touches_nothing(here: Path) -> None:
    first = done("n.yaml", "-o", "out", "--json")
    before = {
        path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in Path("out").rglob("*")
    }
    again = done("n.yaml", "-o", "out", "--json", "--resume", "--threads", 1)
    assert "out: nothing has changed" in again.stderr
    assert before == {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in Path("out").rglob("*")}
    assert json.loads(again.stdout)["metrics"] == json.loads(first.stdout)["metrics"]
    assert json.loads(again.stdout)["outputs"] == json.loads(first.stdout)["outputs"]


def test_an_input_that_changed(here: Path) -> None:
    done("n.yaml", "-o", "out")
    Path("cube.npy").rename("same.npy")
    Path("cube.npy.json").rename("same.npy.json")
    told = done("n.yaml", "-o", "out", "--resume", *sets("synth.cube=same.npy")).stderr
    assert kept(told) == list(STAGES)  # only its name is another
    cube = synthetic(24, 20, 10, seed=3)
    write_cube("same.npy", cube, overwrite=True)
    told = done("n.yaml", "-o", "out", "--resume", *sets("synth.cube=same.npy")).stderr
    assert kept(told) == []
    assert "synth: made again (changed: files.cube.sha256)" in told
    done("n.yaml", "-o", "fresh", *sets("synth.cube=same.npy"))
    assert bytes_of("out") == bytes_of("fresh")


def test_loose_files_and_a_scene_of_others(here: Path) -> None:
    done("n.yaml", "-o", "first")
    scene = {"schema": "spectralift.run/1", "train": {"scene": "first/scene", **NATIVE["train"]},
             "report": {"write": False}}  # fmt: skip
    loose = {
        **scene,
        "train": {"lr_hsi": "first/scene/lr_hsi.h5", "hr_msi": "first/scene/hr_msi.h5",
                  "srf_file": "first/scene/srf.csv", **NATIVE["train"]},
        "refine": {"psf_file": "first/scene/psf.csv"},
    }  # fmt: skip
    for number, values in enumerate((scene, loose)):
        out = f"out{number}"
        done(config("c.yaml", values), "-o", out)
        stages = [s for s in STAGES[1:] if s != "metrics" or values is scene]
        assert kept(done("c.yaml", "-o", out, "--resume").stderr) == stages
    response = Path("first/scene/srf.csv")
    rows = response.read_text().splitlines()
    response.write_text("\n".join([*rows[:-1], rows[-1][:-1] + "9"]) + "\n")
    assert "train: made again (changed: files.s" in done("c.yaml", "-o", "out1", "--resume").stderr


@pytest.mark.parametrize("name", ["scene/gt.h5", "model.safetensors", "metrics.json"])
def test_a_bit_flipped_in_a_finished_run(
    name: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: 1.0)  # all stages take 0 s
    done("n.yaml", "-o", "out")
    expected = bytes_of("out")
    flip(Path("out", name))
    told = done("n.yaml", "-o", "out", "--resume").stderr
    assert f"(not as it was written: {name.split('/')[0]})" in told
    assert len(kept(told)) == 4
    assert bytes_of("out") == expected


def test_damage_is_mended_when_the_new_receipt_equals_the_old_one(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)  # every stage takes the same time
    run_config = resolve_config(read_config(Path("n.yaml")), (), "n.yaml")
    execute(run_config, Path("out"))
    expected = bytes_of("out")
    flip(Path("out/model.safetensors"))
    execute(run_config, Path("out"), resume=True)
    assert bytes_of("out") == expected


def test_the_old_run_stays_until_the_new_one_is_whole(here: Path, server: Server) -> None:
    done("n.yaml", "-o", "out")
    expected = bytes_of("out")
    words = ["run", here / "n.yaml", "-o", here / "out", "--resume"]
    server.start(*words, *sets("train.epochs=10000000"))
    wait_for(Path(".out.job/out/model.safetensors.state").exists)
    server.kill(signal.SIGKILL)
    server.wait()
    assert bytes_of("out") == expected
    failed = run(*words[1:], *sets("refine.psf_file=nowhere.csv"))
    assert failed.exit_code == 3
    assert "nowhere.csv" in failed.stderr
    assert bytes_of("out") == expected
    assert kept(done(*words[1:]).stderr) == list(
        STAGES
    )  # from the old run, where the new one has other
    assert bytes_of("out") == expected
    assert not list(here.glob(".out*"))


def test_what_others_put_into_a_run_stays(here: Path) -> None:
    done("n.yaml", "-o", "out")
    Path("out/notes").mkdir()
    Path("out/notes/a.txt").write_text("precious")
    done("n.yaml", "-o", "out", "--resume", *sets("infer.format=npy"))
    assert Path("out/notes/a.txt").read_text() == "precious"
    assert not Path("out/super_resolved_hsi.h5").exists()
    assert Path("out/super_resolved_hsi.npy").exists()


def test_warnings_hold_as_long_as_what_they_are_about(here: Path) -> None:
    pairs = sets("synth.downsample_ratio=7", "refine.enabled=false")
    first = done("n.yaml", "-o", "out", *pairs)
    again = done("n.yaml", "-o", "out", "--resume", *pairs, *sets("metrics.mode=published"))
    for result in (first, again):
        assert "the ratio 7 does not divide" in result.stderr
    assert len(json.loads(Path("out/run.json").read_text())["warnings"]) == 1


# --- what is refused, and what a file must not do


def test_refusals(here: Path) -> None:
    assert run("n.yaml", "-o", "out", "--resume", "--overwrite").exit_code == 2
    done("n.yaml", "-o", "out", "--resume")  # nothing to continue: a run like any other
    exists = run("n.yaml", "-o", "out")
    assert exists.exit_code == 4
    assert "--resume makes again what has changed" in exists.stderr
    for other in ("out/scene", "."):
        refused = run("n.yaml", "-o", other, "--resume")
        assert refused.exit_code == 3
        assert "is a folder without the run.json of a run" in refused.stderr
    Path(".new.job").mkdir()
    Path(".new.job/plan.json").write_text("{}")  # a job of infer
    for words in (["--resume"], ["--overwrite"], []):
        refused = run("n.yaml", "-o", "new", *words)
        assert refused.exit_code == 3
        assert "is not the work of a run" in refused.stderr
    assert Path(".new.job/plan.json").exists()


def test_another_version_makes_all_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done("n.yaml", "-o", "out")
    monkeypatch.setattr(runinputs, "__version__", "9.9.9")
    told = done("n.yaml", "-o", "out", "--resume").stderr
    assert kept(told) == []
    assert "train: made again (changed: version)" in told


GOOD = {
    "schema": "spectralift.run-receipt/1", "stage": "synth", "inputs": {}, "outputs": {"a": "00"},
    "files": {"scene": "a"}, "result": {}, "seconds": 1, "warnings": ["x"],
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "other/1"}, {"stage": "../synth"}, {"stage": 3}, {"inputs": []},
        {"outputs": {"../a": "00"}}, {"outputs": {"/etc": "00"}}, {"outputs": {"..": "00"}},
        {"outputs": {"": "00"}}, {"outputs": {"a/b": "00"}}, {"outputs": {"a": 3}},
        {"files": {"scene": "b"}}, {"files": {"scene": ["a"]}}, {"seconds": "1"},
        {"seconds": True}, {"warnings": [1]}, {"warnings": "x"}, {"result": None},
    ],
)  # fmt: skip
def test_hostile_receipts(change: dict[str, Any]) -> None:
    assert Receipt.from_json(GOOD).files == {"scene": "a"}
    with pytest.raises(DataError):
        Receipt.from_json({**GOOD, **change})


def test_links_are_no_outputs(here: Path) -> None:
    """What a link leads to is neither read nor taken over."""
    done("n.yaml", "-o", "out")
    shutil.move("out/model.safetensors", "elsewhere")
    Path("out/model.safetensors").symlink_to(here / "elsewhere")
    told = done("n.yaml", "-o", "out", "--resume").stderr
    assert "train: made again (not as it was written: model.safetensors)" in told
    assert not Path("out/model.safetensors").is_symlink()


def test_large_inputs_are_known_by_their_times_too(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"x")
    with large.open("wb") as file:
        file.truncate(80 * 10**6)
    before = [runinputs.identify(path) for path in (small, large)]
    for path in (small, large):
        os.utime(path, ns=(1, 1))
    after = [runinputs.identify(path) for path in (small, large)]
    assert before[0] == after[0]
    assert before[1] != after[1]
