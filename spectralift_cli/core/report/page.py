"""The page: one file that needs nothing else, neither network nor script.

Its content security policy allows pictures inside the page and the one style whose hash it names,
and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from spectralift_cli import __version__
from spectralift_cli.core.config import MetricsConfig, ReportConfig
from spectralift_cli.core.cube import Progress, no_progress
from spectralift_cli.core.errors import DataError, SpectraliftWarning
from spectralift_cli.core.metrics.evaluate import evaluate
from spectralift_cli.core.outputs import Staging, write_text
from spectralift_cli.core.report.context import look
from spectralift_cli.core.report.material import Material, gather
from spectralift_cli.core.report.parts import Section
from spectralift_cli.core.report.sections import sections

_PACKAGE = "spectralift_cli.core.report"


@dataclass(frozen=True)
class Report:
    """A page that was written.

    Args:
        path: the file.
        title: of the page.
        sections: keys of its sections, from top to bottom.
        size_bytes: of the file.
    """

    path: Path
    title: str
    sections: tuple[str, ...]
    size_bytes: int


def report(
    source: str | Path,
    output: str | Path,
    config: ReportConfig | None = None,
    *,
    result: str | Path | None = None,
    model: str | Path | None = None,
    uncertainty: str | Path | None = None,
    estimate: str | Path | None = None,
    validation: str | Path | None = None,
    run: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> Report:
    """Write a page about a scene or a run that can be mailed to a colleague.

    Same contents of the scene or run, same bytes, wherever it lies. Large images are shown by every
    n-th row and column, so that little of them is read; scores are of all pixels.

    Args:
        source: a scene's or a run's folder.
        output: the HTML file.
        config: title and sizes; None for the defaults.
        result: the sharp cube; None for the run's.
        model: the checkpoint that made it; None for the run's.
        uncertainty: cube that `infer --uncertainty` wrote; None for the run's.
        estimate: JSON that `estimate` wrote.
        validation: JSON that `validate` wrote.
        run: the contents of run.json, where it is not written yet.
        overwrite: replace an existing page.
        progress: called with (done, total).

    Raises:
        DataError: neither scene nor run, a file is damaged, or images do not fit each other.
        OutputExistsError: the page exists and `overwrite` is false.
    """
    output = Path(output)
    config = config or ReportConfig()
    with Staging(output, overwrite=overwrite):  # before the work, what cannot be written is refused
        pass
    early: list[str] = []
    with _recording(early):
        material = gather(
            Path(source),
            result=None if result is None else Path(result),
            model=None if model is None else Path(model),
            uncertainty=None if uncertainty is None else Path(uncertainty),
            estimate=None if estimate is None else Path(estimate),
            validation=None if validation is None else Path(validation),
            run=run,
        )
        context = look(material, config, progress)
        _score(material)
    for message in early:
        material.warn(message)
    found = sections(context)
    title = config.title or material.title
    text = render(title, found)
    write_text(output, text, overwrite=overwrite)
    keys = tuple(section.key for section in found)
    return Report(output, title, keys, len(text.encode()))


def _score(material: Material) -> None:
    """Score a result against the ground truth where a run has not done so."""
    images = material.images
    if material.scores or "gt" not in images or "result" not in images:
        return
    ratio = None if material.scene is None else material.scene.ratio
    with images["gt"].open() as truth, images["result"].open() as guess:
        try:
            scores = evaluate(truth, guess, MetricsConfig(ratio=ratio))
        except DataError as error:  # a result of holes alone; the page shows them
            material.warn(f"the result is not scored: {error.message}")
            return
    material.scores.append(scores.to_json())


@contextmanager
def _recording(messages: list[str]) -> Iterator[None]:
    """Note the warnings that are shown, which belong on the page too."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *more: Any, **named: Any) -> None:
            if issubclass(category, SpectraliftWarning):
                messages.append(str(message))
            shown(message, category, *more, **named)

        warnings.showwarning = show
        yield


def render(title: str, found: list[Section]) -> str:
    """Return the text of the page."""
    files = resources.files(_PACKAGE)
    style = files.joinpath("style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(
        files.joinpath("template.html.j2").read_text(encoding="utf-8")
    )
    return template.render(
        title=title,
        sections=found,
        version=__version__,
        style=Markup(style),  # noqa: S704  # our own file, not what somebody wrote
        style_hash=f"sha256-{digest}",
    )
