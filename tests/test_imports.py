"""Who may import whom: commands → figures → sparsity → probes → sam2, and inside sparsity room by room; no circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("probes", "sparsity", "figures")

FLOORS = (
    ("probes",),
    ("sparsity.techniques", "sparsity.clips"),
    ("sparsity.profile",),
    ("sparsity.acceleration",),
    ("sparsity.work",),
    ("sparsity.evaluation",),
    ("sparsity.calibration",),
    ("figures",),
    ("sparsity.commands",),
)
"""Rooms from the ground to the roof: a room imports itself and what lies on lower floors."""

SAM2 = ("probes", "sparsity.acceleration", "sparsity.work", "sparsity.evaluation")
"""Rooms that know sam2."""

WITHOUT_TORCH = (
    "probes.records",
    "probes.estimates",
    "sparsity.evaluation.results",
    "sparsity.evaluation.card",
)
"""What figures read."""

MOST_FILES = 173


def sources(root: Path = ROOT) -> dict[str, str]:
    """Every module of the packages with its text."""
    found = {}
    for package in OURS:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = path.read_text(encoding="utf-8")
    return found


SOURCES = sources()


def imported(source: str) -> Iterator[str]:
    """All modules that source code imports: also inside functions, and for type checking alone."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floor_of(module: str) -> tuple[int, str] | None:
    """The floor and the room of a module; None for the packages themselves, which import when they are asked."""
    for floor, rooms in enumerate(FLOORS):
        for room in rooms:
            if module == room or module.startswith(f"{room}."):
                return floor, room
    return None


def forbidden(module: str, target: str) -> bool:
    """Tell whether `module` must not import `target`."""
    own, goal, layer = floor_of(module), floor_of(target), target.split(".")[0]
    if layer in ("tests", "benchmarks", "notebooks", "training"):
        return True
    if layer == "sam2":
        return own is None or own[1] not in SAM2
    if layer == "torch":
        return own is not None and own[1] == "figures"
    if own is None or goal is None:
        return False
    return goal[1] != own[1] and goal[0] >= own[0]


@pytest.mark.parametrize("module", SOURCES)
def test_imports_go_one_way(module: str) -> None:
    assert [t for t in imported(SOURCES[module]) if forbidden(module, t)] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("probes.video", "from sparsity.profile import Profile"),
        ("sparsity.techniques.select", "def f():\n    import figures.style"),
        ("sparsity.work.store", "if TYPE_CHECKING:\n    from sparsity.evaluation import results"),
        ("sparsity.clips.prompt", "import sparsity.techniques.select"),
        ("sparsity.evaluation.quality", "from sparsity.commands.app import run"),
        ("sparsity.calibration.search", "import sam2.build_sam"),
        ("figures.tiles", "import torch"),
        ("sparsity.profile", "from tests.conftest import make_frames"),
    ],
)
def test_the_other_way_is_noticed(module: str, source: str) -> None:
    assert any(forbidden(module, target) for target in imported(source))
    assert not forbidden(module, "probes.errors")


def circle(texts: dict[str, str]) -> list[str]:
    """Modules that import one another in a circle; none where there is none."""
    arrows = {name: {t for t in imported(text) if t in texts} for name, text in texts.items()}
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def test_no_modules_import_one_another_in_a_circle() -> None:
    assert circle(SOURCES) == []
    hidden = "if TYPE_CHECKING:\n    from sparsity.acceleration.predictor import x"
    tied = {**SOURCES, "sparsity.acceleration.route": hidden}
    assert "sparsity.acceleration.route" in circle(tied)


def test_the_house_stays_small() -> None:
    assert len(SOURCES) <= MOST_FILES
    loose = {p.name for p in (ROOT / "sparsity").glob("*.py")}
    assert loose == {"__init__.py", "profile.py"}


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.process
def test_figures_open_without_torch_and_sam2() -> None:
    names = [name for name in SOURCES if name.split(".")[0] == "figures"]
    said = _run(
        "import importlib, sys\n"
        "sys.modules['torch'] = sys.modules['sam2'] = None\n"
        f"for name in {[*names, *WITHOUT_TORCH]!r}: importlib.import_module(name)\n"
        "try: import probes.video\n"
        "except ModuleNotFoundError: print('lacks torch')"
    )
    assert said.stdout == "lacks torch\n", said.stderr


@pytest.mark.process
def test_every_public_name_can_be_imported_and_hides_no_module() -> None:
    said = _run(
        "import pkgutil, types, probes, sparsity, figures\n"
        "for package in (probes, sparsity, figures):\n"
        "    for name in package.__all__:\n"
        "        for _ in range(2):\n"
        "            assert not isinstance(getattr(package, name), types.ModuleType), name\n"
        "        modules = {m.name for m in pkgutil.iter_modules(package.__path__)}\n"
        "        assert name not in modules, name\n"
        "    try: package.nothing\n"
        "    except AttributeError as error: print(error)\n"
    )
    assert said.stdout.splitlines() == [f"No {package} attribute nothing" for package in OURS]
