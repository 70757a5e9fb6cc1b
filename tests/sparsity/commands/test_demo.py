"""``make demo``: the table, the overlay and the page; and plain words where weights are random."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import av
import pytest

from probes import models
from probes.errors import InputError
from sparsity.clips import sources as clips
from sparsity.commands import story
from sparsity.commands.story import RANDOM, run_demo
from sparsity.profile import Profile, load_profile
from sparsity.work.model import ModelChoice

FRAMES = 5
"""Of each clip: as many as memory needs to be read at several ages."""

SIZE = 128
"""Side of the models' input in pixels, at which frames take a seventh of the time that they take the demo."""


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo on short clips and small pictures, where the built-in profile counts as made for them."""

    def small(*model: Any, **given: Any) -> Any:
        return models.build_predictor(*model, **{**given, "image_size": SIZE})

    def built_in(name: str) -> Profile:
        return load_profile(name).model_copy(
            update={"image_size": SIZE if name == "demo" else None}
        )

    monkeypatch.setattr(clips, "MADE_FRAMES", FRAMES)
    monkeypatch.setattr("sparsity.calibration.cost.FRAMES", 3)
    monkeypatch.setattr(story, "BUDGET", 0.001)  # one setting
    monkeypatch.setattr(story, "SPEEDUP", 1.1)  # of five frames two are dense
    monkeypatch.setattr(story, "build_predictor", small)
    monkeypatch.setattr(story, "ModelChoice", partial(ModelChoice, image_size=SIZE))
    monkeypatch.setattr(story, "load_profile", built_in)


def table(text: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.count("%") == 3}


def test_the_whole_story_is_told(tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = run_demo(out)
    rows = table(found.text())
    assert list(rows)[:4] == ["stock", "exact", "paper", "recommended"] and "calibrated" in rows
    assert rows["stock"][1] == "1.00" and rows["stock"][3] == "100.0"
    assert RANDOM not in found.text()
    report = json.loads((out / "report.json").read_text())
    assert [row["name"] for row in report["rows"]] == list(rows)
    profile = json.loads((out / "calibrated.json").read_text())
    assert profile["promise"]["share"] == 0.6316 and profile["routing"] is not None
    assert load_profile(out / "calibrated.json").promise.text() in found.text()
    page = (out / "report.html").read_text()
    assert page.count('class="plotly-graph-div"') == 6
    assert [row["name"] for row in report["photographed"]] == list(rows)
    assert found.text().count("photographed cat") == 1 and "Chelsea" in page
    for row in report["rows"] + report["photographed"]:
        assert f"<strong>{row['ratio']:.2f}</strong>" in page
    for name in ("overlay", "overlay-photographed"):
        with av.open(str(out / f"{name}.mp4")) as video:
            assert sum(1 for _ in video.decode(video=0)) == FRAMES


def test_without_trained_weights_the_demo_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(story, "WEIGHTS", tmp_path / "none")
    found = run_demo(tmp_path / "out")
    text = found.text()
    assert text.startswith(RANDOM)
    rows = table(text)
    assert list(rows) == ["stock", "exact", "paper", "recommended"]
    assert rows["stock"][1] == "1.00" and rows["stock"][3] == "100.0"
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert json.loads(found.json()) == {
        "random_weights": True,
        "rows": report["rows"],
        "photographed": [],
    }
    assert not (tmp_path / "out" / "report.html").exists()


def test_weights_that_cannot_be_read_are_not_taken_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = models._demo_file
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(file("weights.safetensors").read_bytes()[:1000])
    monkeypatch.setattr(
        models, "_demo_file", lambda name: torn if name == "weights.safetensors" else file(name)
    )
    with pytest.raises(InputError, match=r"torn\.safetensors"):
        run_demo(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_few_clips_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 clips given; no bound"):
        run_demo(tmp_path / "out", clips=2)
    assert not (tmp_path / "out").exists()
