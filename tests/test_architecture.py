"""The house rules that keep the layout what it says: who may import what."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "spectralift_cli"
MODULES = sorted(PACKAGE.rglob("*.py"))
STDLIB_ONLY_TABLES = (
    "core/config.py", "core/optionfields.py", "core/formats/__init__.py", "core/formats/table.py",
    "core/operators/__init__.py",
    "core/models/__init__.py", "core/metrics/__init__.py", "core/sensors/__init__.py",
)  # fmt: skip
THIRD_PARTY = ("torch", "numpy", "rasterio", "h5py", "scipy", "matplotlib", "tifffile", "zarr",
               "yaml", "pydantic", "safetensors", "jinja2", "tensorly")  # fmt: skip
WITHOUT_TORCH = (
    "core/cube.py",
    "core/cubeio.py",
    "core/scene.py",
    "core/formats/",
    "core/metrics/",
    "core/sensors/",
)


def imports(path: Path, *, only_top: bool = False) -> Iterator[str]:
    """Yield the dotted names a module imports; with `only_top` those not inside a function."""
    tree = ast.parse(path.read_text())
    skipped: set[int] = set()
    for node in ast.walk(tree):
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        is_type_checking = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if is_type_checking or (only_top and is_function):
            skipped.update(id(inner) for inner in ast.walk(node))
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def starts(name: str, roots: tuple[str, ...]) -> bool:
    return any(name == root or name.startswith(root + ".") for root in roots)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    where = path.relative_to(PACKAGE).as_posix()
    everything, top = set(imports(path)), set(imports(path, only_top=True))
    assert not [n for n in everything if starts(n, ("click", "typer._click"))]
    assert not [n for n in everything if starts(n, ("pickle", "dill", "joblib"))]
    if where.startswith("core/"):
        forbidden = ("typer", "rich", "logging", "spectralift_cli.commands", "spectralift_cli.app")
        assert not [n for n in everything if starts(n, forbidden)]
    else:
        assert not [n for n in top if starts(n, THIRD_PARTY)]
    if where.startswith("commands/"):
        assert not [n for n in everything if starts(n, ("spectralift_cli.app",))]
    if where.startswith(("core/operators/", "core/models/")):
        files = ("spectralift_cli.core.formats", "spectralift_cli.core.scene", "pathlib", "io")
        assert not [n for n in everything if starts(n, files)]
    if where.startswith(WITHOUT_TORCH):
        assert not [n for n in everything if starts(n, ("torch",))]
    if where in STDLIB_ONLY_TABLES:
        assert not [n for n in top if starts(n, THIRD_PARTY)]


def test_inference_starts_without_scipy() -> None:
    modules = ", ".join(
        f"spectralift_cli.core.{name}" for name in ("stages", "jobs.blocks", "formats.npy")
    )
    code = f"import sys, {modules}; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0, (
        "a second more, a worker each"
    )


def test_helpers_of_a_job_start_before_pytorch() -> None:
    code = "import sys, spectralift_cli.core.jobs.sharing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_core_prints_nothing() -> None:
    calls = [
        f"{path.name}:{node.lineno}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "eval", "exec")
    ]
    assert calls == []
