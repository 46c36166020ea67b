"""Half a minute of byte fuzzing, and the cases that longer runs (`make fuzz`) have found."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from spectralift_cli.core.errors import DataError
from spectralift_cli.core.formats import open_cube, write_cube
from tests.fuzz.engine import fuzz
from tests.fuzz.targets import TARGETS, sample


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_files_are_read_or_refused(name: str) -> None:
    outcome = fuzz(name, 30 / len(TARGETS), most_failures=1)
    assert not outcome.failures, outcome.failures[0][1]
    assert outcome.cases > 3


def test_text_stored_as_no_characters(tmp_path: Path) -> None:
    """SciPy crashes on a char array whose element type is not one of text."""
    path = tmp_path / "x.mat"
    write_cube(path, sample(), options={"VERSION": "5"})
    data = bytearray(path.read_bytes())
    start = data.index(b"spectralift", 128)
    at = data.index(struct.pack("<I", 16), start + 11)  # miUTF8, the type of the characters
    data[at] = 219
    path.write_bytes(data)
    with pytest.raises(DataError, match="type 219"):
        open_cube(path)
