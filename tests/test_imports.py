"""Who may import whom: cli → figures → sparsity → probes → sam2, and never the other way."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("probes", "sparsity", "figures")

ROOF = {
    "sparsity.calibration.command",
    "sparsity.cli",
    "sparsity.demo_run",
    "sparsity.evaluation.bench_command",
}
"""What the command is made of; it alone may import figures from inside sparsity."""

SAM2_USERS = {
    "probes.layout",
    "probes.models",
    "probes.observing",
    "probes.random_weights",
    "probes.sites",
    "sparsity.acceleration",
}
"""Modules, or packages with all that is in them, that may import sam2."""

WITHOUT_TORCH = ("probes.records", "sparsity.profile", "sparsity.evaluation.results")
"""What figures read."""


def modules() -> Iterator[tuple[str, Path]]:
    """Yield every module of the packages with its file."""
    for package in OURS:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imported(source: str) -> set[str]:
    """Return the modules that source code imports, those for type checking alone left out."""
    tree = ast.parse(source)
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.add(node.module)
    return found


def forbidden(module: str, target: str) -> bool:
    """Tell whether `module` must not import `target`."""
    layer, goal = module.split(".")[0], target.split(".")[0]
    if goal in ("tests", "benchmarks", "notebooks"):
        return True
    if goal == "sam2":
        return not any(module == user or module.startswith(user + ".") for user in SAM2_USERS)
    if layer == "probes":
        return goal in ("sparsity", "figures")
    if layer == "sparsity":
        return goal == "figures" and module not in ROOF
    if layer == "figures":
        return goal == "torch"
    return False


@pytest.mark.parametrize(
    ("module", "path"), list(modules()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_imports_go_one_way(module: str, path: Path) -> None:
    found = imported(path.read_text(encoding="utf-8"))
    assert [target for target in sorted(found) if forbidden(module, target)] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("probes.video", "from sparsity.profile import Profile"),
        ("probes.mass", "def f():\n    import sam2.build_sam"),
        ("sparsity.select", "import figures.style"),
        ("figures.windows", "import torch"),
        ("sparsity.profile", "from tests.conftest import make_frames"),
    ],
)
def test_the_other_way_is_noticed(module: str, source: str) -> None:
    assert any(forbidden(module, target) for target in imported(source))


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def _without_torch(names: list[str]) -> subprocess.CompletedProcess[str]:
    """Import modules in a fresh interpreter where torch and sam2 can't be found."""
    return _run(
        "import sys\n"
        "sys.modules['torch'] = sys.modules['sam2'] = None\n"
        f"import importlib\nfor name in {names!r}: importlib.import_module(name)"
    )


def test_figures_open_without_torch_and_sam2() -> None:
    names = [name for name, _ in modules() if name.split(".")[0] == "figures"]
    said = _without_torch([*names, *WITHOUT_TORCH])
    assert said.returncode == 0, said.stderr


def test_that_interpreter_really_lacks_torch() -> None:
    assert "ModuleNotFoundError" in _without_torch(["probes.video"]).stderr


@pytest.mark.parametrize("package", ["probes", "sparsity"])
def test_every_public_name_can_be_imported(package: str) -> None:
    said = _run(f"import {package}\nfor name in {package}.__all__: getattr({package}, name)")
    assert said.returncode == 0, said.stderr
    said = _run(f"import {package}; {package}.nothing")
    assert f"module '{package}' has no attribute 'nothing'" in said.stderr


def test_a_function_is_not_hidden_by_the_module_it_comes_from() -> None:
    said = _run(
        "import importlib, pkgutil, types, probes, sparsity, figures\n"
        "for package in (probes, sparsity, figures):\n"
        "    for name in package.__all__:\n"
        "        for _ in range(2):\n"
        "            assert not isinstance(getattr(package, name), types.ModuleType), name\n"
        "        modules = {m.name for m in pkgutil.iter_modules(package.__path__)}\n"
        "        assert name not in modules, name\n"
    )
    assert said.returncode == 0, said.stderr
