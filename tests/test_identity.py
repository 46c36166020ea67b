"""What identifies an input, and the provenance that carries it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from spectralift_cli import __version__
from spectralift_cli.core import identity as module
from spectralift_cli.core.identity import identity, provenance


def test_a_small_file_is_its_sha256_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"cube")
    (tmp_path / "b.npy").write_bytes(b"cube")
    expected = {"size": 4, "sha256": hashlib.sha256(b"cube").hexdigest()}
    assert identity(tmp_path / "a.npy") == identity(tmp_path / "b.npy") == expected


def test_members_count_and_stay_apart(tmp_path: Path) -> None:
    for folder, parts in (("one", ("ab", "c")), ("two", ("a", "bc"))):
        (tmp_path / folder / "c").mkdir(parents=True)
        (tmp_path / folder / "x.json").write_text(parts[0])
        (tmp_path / folder / "c" / "0").write_text(parts[1])
    one, two = identity(tmp_path / "one"), identity(tmp_path / "two")
    assert one["size"] == two["size"] == 3
    assert one != two
    (tmp_path / "one").rename(tmp_path / "three")
    assert identity(tmp_path / "three") == one
    pair = [tmp_path / "three" / "x.json", tmp_path / "three" / "c" / "0"]
    assert identity(*pair) != identity(pair[0])
    assert identity(*pair) == identity(*reversed(pair))


def test_a_large_file_is_known_by_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WHOLE_BYTES", 100)
    monkeypatch.setattr(module, "_PART_BYTES", 10)
    content = bytearray(range(200))
    path = tmp_path / "large"
    path.write_bytes(content)
    before = identity(path)
    parts = content[:10] + content[95:105] + content[190:]
    assert before == {"size": 200, "sha256_of_parts": hashlib.sha256(parts).hexdigest()}
    for at, is_seen in ((0, True), (50, False), (100, True), (199, True)):
        changed = bytearray(content)
        changed[at] ^= 1
        path.write_bytes(changed)
        assert (identity(path) != before) == is_seen


def test_provenance_goes_on_from_the_main_input() -> None:
    first = provenance("sample", {"seed": 1}, {})
    second = provenance("synth", {"ratio": 4}, {"cube": {"size": 1}}, earlier=first)
    assert [step["command"] for step in second["steps"]] == ["sample", "synth"]
    assert second["steps"][1] == {
        "command": "synth", "version": __version__, "options": {"ratio": 4},
        "inputs": {"cube": {"size": 1}},
    }  # fmt: skip
    for hostile in ({"steps": [1]}, {"schema": module.SCHEMA, "steps": "x"}, {"schema": 1}):
        assert provenance("a", {}, {}, earlier=hostile)["steps"] == [
            {"command": "a", "version": __version__, "options": {}, "inputs": {}}
        ]
    chain = first
    for _ in range(100):
        chain = provenance("convert", {}, {}, earlier=chain)
    assert len(chain["steps"]) == 64
