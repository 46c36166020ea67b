"""The sections of a report, as a table: a row and a function add one.

A function takes the `Context` and returns the parts of its section, or None where the data that it
shows are not there.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from spectralift_cli.core.report.context import Context
from spectralift_cli.core.report.parts import Part, Section


@dataclass(frozen=True)
class Row:
    """One section.

    Args:
        key: its anchor.
        title: its heading.
        function: "module:function", called with the context.
    """

    key: str
    title: str
    function: str


_FACTS = "spectralift_cli.core.report.facts"
_LOOKS = "spectralift_cli.core.report.looks"
_AGREEMENT = "spectralift_cli.core.report.agreement"
_EVIDENCE = "spectralift_cli.core.report.evidence"

# from top to bottom
SECTIONS = (
    Row("warnings", "Warnings", f"{_FACTS}:warnings"),
    Row("inputs", "What was fused", f"{_FACTS}:inputs"),
    Row("images", "Images", f"{_LOOKS}:images"),
    Row("spectra", "Spectra", f"{_LOOKS}:spectra"),
    Row("errors", "Errors", f"{_LOOKS}:errors"),
    Row("bands", "Errors by band", f"{_LOOKS}:bands"),
    Row("scores", "Scores", f"{_FACTS}:scores"),
    Row("agreement", "Agreement with the inputs", f"{_AGREEMENT}:agreement"),
    Row("refinement", "Refinement", f"{_EVIDENCE}:refinement"),
    Row("uncertainty", "Uncertainty", f"{_EVIDENCE}:uncertainty"),
    Row("validation", "Quality without a ground truth", f"{_EVIDENCE}:validation"),
    Row("operators", "Response and PSF", f"{_LOOKS}:operators"),
    Row("estimate", "What the images say of each other", f"{_EVIDENCE}:estimate"),
    Row("model", "Model", f"{_FACTS}:model"),
    Row("training", "Training", f"{_LOOKS}:training"),
    Row("settings", "Settings", f"{_FACTS}:settings"),
    Row("provenance", "Provenance", f"{_FACTS}:provenance"),
)


def sections(context: Context) -> list[Section]:
    """Return the sections whose data are there.

    The first one, the warnings, is made last, since the others may find something to warn of.
    """
    found = {}
    for row in reversed(SECTIONS):
        module, _, name = row.function.partition(":")
        function: Callable[[Context], list[Part] | None] = getattr(
            importlib.import_module(module), name
        )
        parts = function(context)
        if parts:
            found[row.key] = Section(row.key, row.title, parts)
    return [found[row.key] for row in SECTIONS if row.key in found]
