"""`report`: one page that loads nothing, shows images alike, and says the same twice."""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import io
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from typer.testing import CliRunner, Result

from spectralift_cli.app import app
from spectralift_cli.core import stages
from spectralift_cli.core.config import ReportConfig, SynthConfig
from spectralift_cli.core.cube import Cube, no_progress
from spectralift_cli.core.formats import read_cube, write_cube
from spectralift_cli.core.report.context import look
from spectralift_cli.core.report.figures import label_text
from spectralift_cli.core.report.lattice import Lattice
from spectralift_cli.core.report.material import gather
from spectralift_cli.core.report.page import render, report
from spectralift_cli.core.report.parts import Gallery, Section
from spectralift_cli.core.report.points import choose_points
from spectralift_cli.core.samples import synthetic
from spectralift_cli.core.scene import Scene
from tests.conftest import Run

EVIL = "<script>alert(1)</script>"
ROWS, COLS, BANDS = 32, 24, 30
SECTIONS = ["warnings", "inputs", "images", "spectra", "errors", "bands", "scores", "agreement",
            "refinement", "operators", "model", "training", "settings", "provenance"]  # fmt: skip


def spectralift_run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose file, MSI bands and title try to be markup, with its report."""
    folder = tmp_path_factory.mktemp("run")
    cube = folder / "<img src=x onerror=alert(1)>.npz"
    write_cube(cube, synthetic(ROWS, COLS, BANDS))
    weights = np.random.default_rng(0).random((BANDS, 4))
    with (folder / "srf.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["hsi_band", EVIL, "$\\frac{", "_hidden", "'\"><b>"])
        table.writerows([band + 1, *row] for band, row in enumerate(weights))
    values = {
        "schema": "spectralift.run/1",
        "synth": {"cube": str(cube), "srf_file": str(folder / "srf.csv"), "kernel_size": 2},
        "train": {"preset": "paper", "epochs": 5, "hidden_size": 8},
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(values))
    result = spectralift_run("run", folder / "c.yaml", "-o", folder / "out", "-q")
    assert result.exit_code == 0, result.stderr
    return folder / "out"


def scene_of(folder: Path, cube: Cube, **config: Any) -> Scene:
    write_cube(folder / "cube.npz", cube)
    return stages.synth(folder / "cube.npz", folder / "scene", SynthConfig(kernel_size=2, **config))


class Page(HTMLParser):
    """Every tag with its attributes, and the text of the styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.style = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "style":
            self.style += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


LOADING = {"src", "href", "xlink:href", "srcset", "poster", "action", "formaction", "data", "cite",
           "background", "ping", "manifest"}  # fmt: skip


def check_alone(text: str) -> Page:
    """Fail on anything by which the page, or a drawing in it, could load or run something."""
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form", "frame")
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name != "style"  # which the policy forbids
            assert name not in LOADING or value.startswith(("data:image/", "#")), (tag, name)
    assert "url(" not in page.style
    assert "@import" not in page.style
    for uri in re.findall(r'data:image/svg\+xml;base64,([^"]+)', text):
        drawing = Page(base64.b64decode(uri).decode())
        assert not drawing.all("script")
        for _, attributes in drawing.tags:
            for name in LOADING & attributes.keys():
                assert attributes[name].startswith(("#", "data:image/png")), attributes
    return page


def pixels(uri: str) -> Any:
    return matplotlib.image.imread(io.BytesIO(base64.b64decode(uri.partition(",")[2])), "png")


def pictures_of(text: str, section: str) -> list[dict[str, str]]:
    """Return the attributes of the pictures in a section, in their order."""
    found = re.search(rf'<section id="{section}">.*?</section>', text, re.DOTALL)
    return Page(found[0]).all("image") if found else []


# --- the file


def test_page_needs_nothing_else_and_its_policy_says_so(made: Path) -> None:
    text = (made / "report.html").read_text()
    page = check_alone(text)
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    metas = page.all("meta")
    assert metas[1]["http-equiv"] == "Content-Security-Policy"
    assert metas[1]["content"] == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )
    assert [section["id"] for section in page.all("section")] == SECTIONS
    anchors = [link["href"] for link in page.all("a")]
    assert anchors == [f"#{name}" for name in SECTIONS]
    assert all(image["alt"] for image in page.all("img"))
    drawn = [svg for svg in page.all("svg") if svg.get("role") == "img" and svg["aria-label"]]
    assert len(drawn) == len(page.all("svg")) == len(page.all("image")) > 5


def test_a_checker_that_can_fail() -> None:
    for bad in ('<img src="http://x/a.png">', "<script>1</script>", "<style>@import 'x'</style>",
                '<p style="color:red">', '<a onclick="x">', '<style>p{background:url(x)}</style>'):  # fmt: skip
        with pytest.raises(AssertionError):
            check_alone(bad)


def test_names_from_files_stay_text(made: Path) -> None:
    text = (made / "report.html").read_text()
    assert html.escape(EVIL) in text
    assert "&lt;img src=x onerror=alert(1)&gt;.npz, sharpened 4 times" in text
    page = Page(text)
    assert not page.all("b")
    assert not [image for image in page.all("img") if image["src"] == "x"]
    titled = render("</title><script>", [Section("a", EVIL, [Gallery([], EVIL)])])
    check_alone(titled)


def test_same_contents_same_bytes_wherever_they_lie(made: Path, tmp_path: Path) -> None:
    first = (made / "report.html").read_bytes()
    made_again = report(made, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == first
    assert made_again.size_bytes == len(first) < 5e6
    assert list(made_again.sections) == SECTIONS
    shutil.copytree(made, tmp_path / "elsewhere")
    report(tmp_path / "elsewhere" / "run.json", tmp_path / "moved.html")
    assert (tmp_path / "moved.html").read_bytes() == first
    assert str(made) not in first.decode().replace(str(made.parent / "srf.csv"), "")


def test_noise_which_compresses_worst_makes_less_than_5_mb(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    side, bands = 388, 9
    values = rng.integers(0, 1000, (side, side, bands), np.uint16)
    scene = scene_of(tmp_path, Cube.of(values, wavelengths_nm=np.linspace(400, 2500, bands)))
    write_cube(tmp_path / "sr.npy", Cube.of(rng.random((side, side, bands), np.float32)))
    config = ReportConfig(image_size=388)
    made = report(scene.folder, tmp_path / "r.html", config, result=tmp_path / "sr.npy")
    assert len(pictures_of(made.path.read_text(), "images")) == 7
    assert 2e6 < made.size_bytes < 5e6


# --- what it shows


def test_images_are_seen_alike(tmp_path: Path) -> None:
    scene = scene_of(tmp_path, synthetic(ROWS, COLS, BANDS), snr_spatial=300.0, snr_spectral=300.0)
    shutil.copy(scene.path("gt"), tmp_path / "sr.h5")
    report(scene.folder, tmp_path / "r.html", result=tmp_path / "sr.h5")
    text = (tmp_path / "r.html").read_text()
    lr, msi, result, truth, *unseen = (
        pixels(image["href"]) for image in pictures_of(text, "images")
    )
    np.testing.assert_array_equal(result, truth)
    # the MSI is the truth seen through the response, so under one stretch they look the same
    np.testing.assert_allclose(msi, truth, atol=1.01 / 255)
    assert lr.shape == (ROWS // 4, COLS // 4, 4)
    # channels by hand: the MSI's bands 3, 2, 1 between their 2nd and 98th percentiles
    bands = read_cube(scene.path("hr_msi")).units()[:, :, [2, 1, 0]].astype(float)
    low, high = np.percentile(bands.reshape(-1, 3), (2, 98), axis=0)
    np.testing.assert_allclose(
        msi[..., :3], np.clip((bands - low) / (high - low), 0, 1), atol=0.51 / 255
    )
    assert [image.shape[:2] for image in unseen] == [(8, 6), (ROWS, COLS), (ROWS, COLS)]
    assert "undefined" in text  # the PSNR of what is identical


def test_errors_are_those_of_a_loop_over_pixels(tmp_path: Path) -> None:
    scene = scene_of(tmp_path, synthetic(ROWS, COLS, BANDS))
    truth = read_cube(scene.path("gt")).values.astype(np.float64)
    rng = np.random.default_rng(0)
    guess = truth + rng.normal(0, 0.05, truth.shape)
    guess[3, 4, 5], guess[6, 7], guess[8, 9] = np.nan, np.nan, 0
    write_cube(tmp_path / "sr.npy", Cube.of(guess))
    material = gather(scene.folder, result=tmp_path / "sr.npy")
    found = look(material, ReportConfig(), no_progress).surveys["hr"]
    assert found.sam_deg is not None
    assert found.rmse is not None
    for row in range(ROWS):
        for col in range(COLS):
            x, y = truth[row, col], guess[row, col]
            known = np.isfinite(y)
            x, y = x[known], y[known]
            rmse = math.sqrt(np.mean((x - y) ** 2)) if known.any() else math.nan
            norms = np.linalg.norm(x) * np.linalg.norm(y)
            angle = math.degrees(math.acos(min(1, x @ y / norms))) if norms > 0 else math.nan
            assert found.rmse[row, col] == pytest.approx(rmse, rel=1e-9, nan_ok=True)
            assert found.sam_deg[row, col] == pytest.approx(angle, abs=1e-5, nan_ok=True)
    scores = stages.evaluate(scene.folder, tmp_path / "sr.npy").per_band["rmse"]
    np.testing.assert_allclose(found.band_rmse, scores, rtol=1e-12)
    assert found.holes is not None
    assert found.holes["result"] == pytest.approx(1 / (ROWS * COLS))


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 80))
@settings(deadline=None, max_examples=40)
def test_a_lattice_spans_the_image(rows: int, cols: int, most: int) -> None:
    lattice = Lattice.of((rows, cols), most)
    for chosen, size in ((lattice.rows, rows), (lattice.cols, cols)):
        assert 1 <= len(chosen) <= max(most, 1)
        assert 0 <= chosen[0] < lattice.step
        assert size - lattice.step <= chosen[-1] < size
        assert (np.diff(chosen) == lattice.step).all()


def test_large_images_are_shown_by_some_rows_and_columns(tmp_path: Path) -> None:
    scene = scene_of(tmp_path, synthetic(80, 72, 8))
    lattice = Lattice.of((80, 72), 32)
    with scene.open("gt") as reader:
        parts = [blocks[0] for _, blocks in lattice.blocks(reader)]
        np.testing.assert_array_equal(np.concatenate(parts), reader.read()[1::3, 1::3])
    made = report(scene.folder, tmp_path / "r.html", ReportConfig(image_size=32))
    text = made.path.read_text()
    assert "1 of 3 rows and columns shown" in text
    assert pixels(pictures_of(text, "images")[1]["href"]).shape == (27, 24, 4)


def test_points_are_what_they_are_called(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    msi = rng.uniform(0.2, 0.3, (40, 40, 4)).astype(np.float32)
    msi[20, 10] = 0.02, 0.05, 0.03, 0.6  # a tree
    error = np.zeros((40, 40))
    error[30, 31] = 1
    usable = np.ones((40, 40), bool)
    usable[:, 35:] = False
    centres_nm = np.array([480.0, 550.0, 660.0, 830.0])
    found = choose_points(msi, usable, Lattice((80, 80), 2), centres_nm=centres_nm, rmse=error)
    assert [(point.row, point.col) for point in found[:2]] == [(61, 63), (41, 21)]
    assert [point.number for point in found] == [1, 2, 3, 4, 5, 6]
    assert len({(point.row, point.col) for point in found}) == 6
    assert all(point.col < 70 for point in found)
    assert choose_points(msi, np.zeros((40, 40), bool), Lattice((80, 80), 2)) == []
    assert len(choose_points(msi[:1, :1], usable[:1, :1], Lattice((1, 1), 1))) == 1


def holes(values: Any) -> Any:
    values = values.astype(np.float32)
    values[2:9, 3:8] = np.nan
    values[12:14, :, 4] = np.nan
    return values


ODD = {
    "no wavelengths": lambda c: Cube.of(c.values, scale=1e-4),
    "one band": lambda c: Cube.of(c.values[:, :, :1], wavelengths_nm=[550.0]),
    "nan": lambda c: Cube.of(holes(c.values), wavelengths_nm=c.meta.wavelengths_nm),
    "bad bands": lambda c: Cube(
        c.values, c.meta.replace(bad_bands=np.arange(BANDS) % 7 == 3)),
    "georeferenced": lambda c: Cube(
        c.values, c.meta.replace(transform=(5.0, 0, 4e5, 0, -5.0, 5e6), crs=CRS.from_epsg(32633).to_wkt())),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore::spectralift_cli.core.errors.SpectraliftWarning")
def test_odd_cubes(kind: str, tmp_path: Path) -> None:
    cube = ODD[kind](synthetic(ROWS, COLS, BANDS))
    write_cube(tmp_path / "cube.npz", cube)
    np.savetxt(tmp_path / "srf.csv", np.ones((1 if kind == "one band" else 3, cube.meta.bands)))
    config = SynthConfig(kernel_size=1, seed=3)
    scene = stages.synth(
        tmp_path / "cube.npz", tmp_path / "scene", config, srf_file=tmp_path / "srf.csv"
    )
    truth = read_cube(scene.path("gt"))
    share = np.float32(0 if kind == "bad bands" else 0.98)  # also a constant result
    write_cube(tmp_path / "sr.h5", Cube(truth.values * share, truth.meta))
    made = report(
        scene.folder, tmp_path / "r.html", ReportConfig(points=1), result=tmp_path / "sr.h5"
    )
    text = made.path.read_text()
    check_alone(text)
    assert {"images", "scores", "operators"} <= set(made.sections)
    if kind == "nan":
        assert "of the pixels have no value" in text
        assert pixels(pictures_of(text, "images")[2]["href"])[4, 5, 3] == 0
    if kind == "georeferenced":
        assert "5 x 5 m" in text
        assert "EPSG:32633" in text


def test_labels_are_no_markup() -> None:
    assert label_text("_a$b$\n") == r"a\$b\$"
    assert len(label_text("x" * 99)) == 24
    assert label_text("\0") == "unnamed"


# --- the command


def test_command(made: Path, tmp_path: Path, spectralift: Run) -> None:
    page = tmp_path / "r.html"
    done = spectralift("report", made, "-o", page, "--title", "A & B")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{page}\n", "")
    assert "<h1>A &amp; B</h1>" in page.read_text()
    again = spectralift_run("report", made, "-o", page)
    assert (again.exit_code, again.stdout) == (4, "")
    replaced = spectralift_run("report", made, "-o", page, "--overwrite", "--json", "--points", "0")
    document = json.loads(replaced.stdout)
    assert document["schema"] == "spectralift.report/1"
    assert document["outputs"] == [str(page)]
    assert document["size_bytes"] == page.stat().st_size
    assert "spectra" not in document["sections"]


def test_what_cannot_be_used(made: Path, tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    write_cube(tmp_path / "small.npy", synthetic(5, 6, BANDS))
    write_cube(tmp_path / "few.npy", synthetic(ROWS, COLS, 7))
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    outputs = {"cube": "../small.npy"}
    (damaged / "run.json").write_text(
        json.dumps({"schema": "spectralift.run/1", "outputs": outputs})
    )
    cases: list[tuple[list[object], int, str]] = [
        ([tmp_path], 3, "neither a scene nor a run"),
        ([damaged], 3, "'../small.npy' is not a file of the run"),
        ([made, "--result", tmp_path / "small.npy"], 3, "5 x 6"),
        ([made, "--result", tmp_path / "few.npy"], 3, "7 bands"),
        ([made, "--result", tmp_path / "none.npy"], 3, "no such file"),
        ([made, "--image-size", "9"], 2, "outside 32"),
    ]
    for words, code, told in cases:
        result = spectralift_run("report", *words, "-o", page)
        assert (result.exit_code, result.stdout) == (code, ""), result.stderr
        assert told in result.stderr
        assert not page.exists()
    assert spectralift_run("report", made, "-o", tmp_path / "r.pdf").exit_code == 2


def test_inputs_that_went_away_are_told(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(made, run)
    used = yaml.safe_load((run / "used_config.yaml").read_text())
    used["train"] |= {"lr_hsi": "gone/lr.h5", "hr_msi": str(made / "scene" / "hr_msi.h5"),
                      "srf_file": "gone.csv"}  # fmt: skip
    del used["synth"], used["metrics"]
    (run / "used_config.yaml").write_text(yaml.safe_dump(used))
    document = json.loads((run / "run.json").read_text())
    for role in ("scene", "metrics"):
        del document["outputs"][role]
    (run / "run.json").write_text(json.dumps(document))
    made_page = report(run, tmp_path / "r.html")
    text = made_page.path.read_text()
    assert "the LR-HSI cannot be shown: gone/lr.h5: no such file" in text
    assert "There is no ground truth" in text
    assert not {"errors", "scores"} & set(made_page.sections)


# --- in a browser


def browse(page: Path, folder: Path, width: int) -> tuple[dict[str, Any], list[str]]:
    """Return what headless Chromium measured of a page in a frame, and what its console said."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed")
    outer = folder / f"outer{width}.html"
    outer.write_text(
        f"""<!doctype html><body><iframe src="{page.as_uri()}" width="{width}" height="900"></iframe>
        <script>
        onload = () => {{
          const inner = document.querySelector("iframe").contentDocument;
          const images = [...inner.images];
          document.body.textContent = JSON.stringify({{
            width: inner.documentElement.clientWidth,
            needed: inner.documentElement.scrollWidth,
            broken: images.filter(i => !i.naturalWidth).length,
            images: images.length,
            styled: inner.defaultView.getComputedStyle(inner.querySelector(".tile")).borderStyle,
          }});
        }};
        </script></body>"""
    )
    done = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         f"--user-data-dir={folder / 'profile'}", "--allow-file-access-from-files",
         "--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom", outer.as_uri()],
        capture_output=True, text=True, timeout=110, check=True,
    )  # fmt: skip
    found = re.search(r"\{.*\}", done.stdout)
    assert found is not None, done.stdout + done.stderr
    told = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(found[0])), told


@pytest.mark.parametrize("width", [1400, 390])
def test_browser_shows_it_without_complaint_or_sideways_scrolling(
    width: int, made: Path, tmp_path: Path
) -> None:
    measured, told = browse(made / "report.html", tmp_path, width)
    assert told == []
    assert measured["needed"] <= measured["width"] <= width
    assert measured["broken"] == 0
    assert measured["images"] > 8
    assert measured["styled"] == "solid"


def test_browser_keeps_the_policy(made: Path, tmp_path: Path) -> None:
    text = (made / "report.html").read_text()
    bad = text.replace("</main>", '<img src="http://127.0.0.1:9/x.png"><script>1</script></main>')
    (tmp_path / "bad.html").write_text(bad)
    _, told = browse(tmp_path / "bad.html", tmp_path, 900)
    assert len(told) == 2
    assert all("Content Security Policy" in line for line in told)
