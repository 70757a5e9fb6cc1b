"""The demo model's figures are the same on one, two and four workers, and in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsity.clips.made import make_clip, write_davis
from sparsity.evaluation.evaluate import evaluate
from sparsity.work.model import ModelChoice
from sparsity.work.spread import Spread

KINDS = ("smooth", "fast", "occlusion", "distractors")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    write_davis(root, {kind: make_clip(kind, 1, 4, (96, 160)) for kind in KINDS})
    return root


def figures(root: Path, out: Path, spread: Spread, profile: str = "paper") -> list[object]:
    result = evaluate(root, ModelChoice(device="cpu"), out, profiles=[profile], spread=spread)
    return [run.model_dump(mode="json") for run in result.runs]


@pytest.mark.process
def test_the_number_of_workers_does_not_change_a_figure(root: Path, tmp_path: Path) -> None:
    alone = figures(root, tmp_path / "0.json", Spread(threads=1))
    for jobs in (1, 2, 4):
        spread = Spread(jobs=jobs, threads=1)
        assert figures(root, tmp_path / f"{jobs}.json", spread) == alone
    assert figures(root, tmp_path / "other.json", Spread(threads=1), "exact") != alone
