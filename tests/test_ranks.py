"""Training in several processes: the bytes of one, and the end of all when one is lost."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch.distributed
from typer.testing import CliRunner

from spectralift_cli.app import app
from spectralift_cli.core.cube import Cube
from spectralift_cli.core.errors import OptionError
from spectralift_cli.core.formats import write_cube
from spectralift_cli.core.ranks import Group, Ranks
from tests.test_training import even_srf, pairs

needs_processes = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this PyTorch cannot connect processes",
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(**more: object) -> dict[str, str]:
    """Of a process that speaks to no other machine."""
    local = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "COLUMNS": "100", "TERM": "dumb"}
    return {**os.environ, **local, **{name: str(value) for name, value in more.items()}}


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A training of 1,122 LR pixels: two lanes a step, and one in the last step of an epoch."""
    _, hsi = pairs(33 * 34)
    write_cube(tmp_path / "lr.npy", Cube.of(hsi.reshape(33, 34, 12)))
    np.savetxt(tmp_path / "srf.csv", even_srf().weights, delimiter=",")
    loose = ["--lr-hsi", str(tmp_path / "lr.npy"), "--srf-file", str(tmp_path / "srf.csv")]
    return ["train", *loose, "--preset", "paper", "--hidden-size", "8"]


def alone(words: list[str], model: Path) -> bytes:
    done = CliRunner().invoke(app, [*words, "-o", str(model)])
    assert done.exit_code == 0, done.stderr
    return model.read_bytes()


@needs_processes
def test_torchrun_gives_the_bytes_of_one_process(tmp_path: Path, words: list[str]) -> None:
    words += ["--epochs", "12", "--training-batch-size", "1100"]
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
         "--master-addr", "127.0.0.1", "--master-port", str(free_port()), "-m", "spectralift_cli",
         *words, "-o", str(tmp_path / "m.safetensors")],
        env=environment(), capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout == f"{tmp_path / 'm.safetensors'}\n"  # said once
    assert run.stderr.count("1,122 LR pixels") == 1
    assert (tmp_path / "m.safetensors").read_bytes() == alone(words, tmp_path / "one.safetensors")


@needs_processes
def test_a_lost_process_ends_the_others_and_the_training_can_be_resumed(
    tmp_path: Path, words: list[str]
) -> None:
    model, port = tmp_path / "m.safetensors", free_port()
    state = tmp_path / "m.safetensors.state"
    words += ["--epochs", "600"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "spectralift_cli", *words, "-o", str(model), "--save-every", "0.1"],
            env=environment(
                RANK=rank, WORLD_SIZE=2, LOCAL_RANK=rank, LOCAL_WORLD_SIZE=2,
                MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
            ),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not state.exists() and time.monotonic() < deadline:
            assert processes[0].poll() is None, processes[0].communicate()
            time.sleep(0.01)
        processes[1].kill()
        stdout, stderr = processes[0].communicate(timeout=60)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert processes[0].returncode == 3, stderr
    assert "error: another process of this training was lost" in stderr
    assert stdout == ""
    assert state.exists()
    assert not model.exists()
    resumed = alone([*words, "--resume"], model)  # in one process, to the bytes of one
    assert not state.exists()
    assert resumed == alone(words, tmp_path / "one.safetensors")


def test_the_place_of_a_process_is_told_by_torchruns_variables() -> None:
    given = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert Ranks.of(given) is None  # MASTER_ADDR is missing
    given["MASTER_ADDR"] = "10.0.0.1"
    assert Ranks.of(given) == Ranks(5, 8, 1, 4)
    assert not Ranks(5, 8, 1, 4).leads
    assert Ranks.of({**given, "RANK": "0", "WORLD_SIZE": "1"}) is None
    for broken in ({"RANK": "8"}, {"RANK": "one"}, {"LOCAL_RANK": "4"}, {"RANK": "-1"}):
        with pytest.raises(OptionError):
            Ranks.of({**given, **broken})
    assert Ranks(5, 8, 1, 4).device_name("cpu") == "cpu"
    assert Ranks(5, 8, 1, 4).device_name("cuda") == "cuda:1"
    with pytest.raises(OptionError, match="one GPU, 4 processes"):
        Ranks(5, 8, 1, 4).device_name("cuda:0")


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16, 40])
def test_items_are_dealt_once_and_in_their_order(count: int) -> None:
    for items in (1, 2, 4, 8, 16):
        group = Group(Ranks(0, count, 0, count))
        assert [i for rank in range(count) for i in group.share(items, rank)] == list(range(items))


def test_one_process_fits_the_preset_auto(tmp_path: Path, words: list[str]) -> None:
    """The others say nothing, write nothing and leave at once."""
    loose = words[: words.index("--preset")]
    model = tmp_path / "m.safetensors"
    torchrun = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    fast = [*loose, "--model", "linear", "-o", str(model)]
    other = CliRunner().invoke(app, fast, env={**torchrun, "RANK": "1", "LOCAL_RANK": "1"})
    assert (other.exit_code, other.stdout, other.stderr) == (0, "", "")
    assert not model.exists()
    first = CliRunner().invoke(app, fast, env={**torchrun, "RANK": "0", "LOCAL_RANK": "0"})
    assert (first.exit_code, first.stdout) == (0, f"{model}\n")
    assert "keeps 1 of 2 processes busy" in first.stderr
