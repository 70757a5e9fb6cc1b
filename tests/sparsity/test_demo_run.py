"""``make demo``: the table, the overlay and the report; and plain words where weights are random."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest

from probes import models
from probes.errors import InputError
from sparsity.demo_run import PROFILES, RANDOM, mean_j, run_demo


def test_without_trained_weights_the_demo_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> Path:
        raise InputError(f"the demo model's {name} is not installed")

    monkeypatch.setattr(models, "_demo_file", absent)
    found = run_demo(tmp_path / "out", frames=5)
    text = found.text()
    assert text.startswith(RANDOM)
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if "%" in line}
    assert list(rows) == ["stock", *PROFILES]
    assert rows["stock"][1] == "1.00"
    assert rows["stock"][4] == "1.000"
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["random_weights"]
    assert len(report["report"]["frames"]) == 5
    assert json.loads(found.json())["rows"] == report["rows"]
    assert [row["name"] for row in report["rows"]] == list(rows)
    with av.open(str(tmp_path / "out" / "overlay.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 5


def test_mean_j_skips_the_prompted_frame_and_counts_objects_alike() -> None:
    truth = [np.array([[1, 1, 2, 0]], np.uint8)] * 3
    assert mean_j(truth, truth) == 1
    other = [np.zeros((1, 4), np.uint8), np.array([[1, 0, 2, 0]], np.uint8), truth[0]]
    assert mean_j(other, truth) == pytest.approx((0.5 + 1 + 1 + 1) / 4)
