"""The compiled predictor: eager's masks up to rounding, and nothing compiled again after its warm-up."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from probes.errors import InputError
from probes.observing import observe
from sparsity.acceleration.build import accelerate
from sparsity.acceleration.compiled import compilable, compiled_parts
from sparsity.acceleration.compiled_predictor import compiled_stock
from sparsity.acceleration.encoder import window_grid
from sparsity.acceleration.session import Chosen
from sparsity.profile import Profile
from sparsity.profiles import BUILTIN
from sparsity.routing import Decision
from sparsity.select import WindowGrid
from tests.sparsity.acceleration.conftest import PROMPTS, off_by, other_pixels, step, track

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++"),
    pytest.mark.filterwarnings(
        "ignore:.*torch.jit.*:DeprecationWarning"
    ),  # torch's compiler imports its older parts
]

ROUTES = ((5, 6), (5, 6, 9), (5, 6, 9, 10, 11), (6, 7))
"""Windows of a frame: the number changes, and so does the place."""


def one_cell_left_out(grid: WindowGrid, windows: tuple[int, ...]) -> Decision:
    """Windows trimmed to all of their cells but the first."""
    cells = torch.nonzero(torch.isin(grid.window_of_cell, torch.tensor(windows))).flatten()
    return Decision(windows, "given", tuple(cells[1:].tolist()))


def trimmed() -> Profile:
    """The recommended profile with trimmed windows."""
    recommended = BUILTIN["recommended"]
    assert recommended.windows is not None
    rule = recommended.windows.model_copy(update={"trimmed": True})
    return recommended.model_copy(update={"windows": rule})


def routed(predictor: Any, source: Any, routes: tuple[tuple[int, ...], ...] = ROUTES) -> Any:
    """Track with given windows, dense on every fifth frame."""
    state = predictor.init_state(source)
    for prompt in PROMPTS["mask"]:
        prompt.give(predictor, state)
    chosen: list[Chosen] = list(routes)
    if predictor.profile.windows is not None and predictor.profile.windows.trimmed:
        chosen = [one_cell_left_out(window_grid(predictor), windows) for windows in routes]
    predictor.choose_windows(state, lambda t: chosen[t % len(chosen)] if t % 5 else None)
    return {t: logits.clone() for t, _, logits in predictor.propagate_in_video(state)}


def graphs() -> int:
    """How many pieces torch has compiled in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.fixture(autouse=True, scope="module")
def untraced() -> Iterator[None]:
    """Keep the compiler's trace, which nobody reads here, out of pytest's log: it costs minutes."""
    trace = logging.getLogger("torch.__trace")
    trace.propagate = False
    yield
    trace.propagate = True


@pytest.fixture(scope="module")
def compiled(dividing_predictor: Any) -> Any:
    return accelerate(dividing_predictor, "paper", compiled=True)


def test_masks_are_eagers_up_to_rounding(
    compiled: Any, dividing_predictor: Any, long_folder: str
) -> None:
    eager = accelerate(dividing_predictor, "exact")
    expected = track(eager, long_folder, PROMPTS["mask"])
    before = graphs()
    one = step(eager, expected.state, 9)
    with compiled.use("exact"):
        found = track(compiled, long_folder, PROMPTS["mask"])
        assert off_by(step(compiled, expected.state, 9), one) < 1e-4
    assert graphs() > before, "something was compiled"
    assert other_pixels(found, expected) < 1e-4
    assert off_by(step(eager, expected.state, 8), one) > 1e-4


@pytest.mark.parametrize("profile", ["paper", "recommended"])
def test_nothing_is_compiled_again_however_many_windows_and_keys(
    compiled: Any, dividing_predictor: Any, long_folder: str, profile: str
) -> None:
    with compiled.use(profile):
        routed(compiled, long_folder, ROUTES[:2])
        warm = graphs()
        found = routed(compiled, long_folder)
        assert graphs() == warm
    expected = routed(accelerate(dividing_predictor, profile), long_folder)
    assert np.mean([((found[t] > 0) != (expected[t] > 0)).float().mean() for t in found]) < 1e-3


def test_trimmed_windows_compiled_are_eagers(
    compiled: Any, dividing_predictor: Any, long_folder: str
) -> None:
    with compiled.use(trimmed()):
        found = routed(compiled, long_folder, ROUTES[:2])
    eager = accelerate(dividing_predictor, trimmed())
    expected = routed(eager, long_folder, ROUTES[:2])
    assert np.mean([((found[t] > 0) != (expected[t] > 0)).float().mean() for t in found]) < 1e-3
    with eager.use("recommended"):
        whole = routed(eager, long_folder, ROUTES[:2])
    assert max(off_by(whole[t], expected[t]) for t in found) > 1e-3


def test_functions_have_a_form_for_each_width() -> None:
    """As many as several models and number formats in one process ask for; torch stops at eight unless told."""

    @compilable
    def doubled(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    before = graphs()
    with compiled_parts():
        for width in range(3, 13):
            x = torch.arange(2.0 * width).view(2, width)
            assert torch.equal(doubled(x), x * 2)
    assert graphs() == before + 10


def test_a_compiled_predictor_is_not_observed(compiled: Any) -> None:
    with (
        pytest.raises(InputError, match="the predictor is compiled"),
        observe(compiled, lambda call: None),
    ):
        pass


def test_sam2s_compiled_predictor_is_refused_with_what_to_do(dividing_predictor: Any) -> None:
    theirs = compiled_stock(dividing_predictor)
    with pytest.raises(InputError, match="without vos_optimized, and accelerate it with compiled"):
        accelerate(theirs)
    with pytest.raises(InputError, match="is compiled"), observe(theirs, lambda call: None):
        pass
    accelerate(dividing_predictor)  # which it was made from is eager still


def test_without_a_compiler_it_is_refused(dividing_config: Path) -> None:
    code = (
        "from probes.models import build_predictor\n"
        "from sparsity.acceleration.build import accelerate\n"
        f"model = build_predictor(config={str(dividing_config)!r}, weights='random', device='cpu')\n"
        "accelerate(model, 'paper', compiled=True)\n"
    )
    nowhere = {**os.environ, "CXX": "/nowhere/g++", "PYTHONPATH": os.getcwd()}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=nowhere, capture_output=True, text=True
    )
    assert "expected a C++ compiler" in ended.stderr
