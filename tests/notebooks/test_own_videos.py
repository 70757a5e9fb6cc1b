"""The notebooks with another model or your own videos: cells do what they say, and captions follow the model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import figures
import probes
from sparsity.acceleration.build import accelerate
from sparsity.clips.masks import write_video
from tests.conftest import make_frames, make_mask
from tests.notebooks.test_notebooks import CLIPS, HERE


def cells(name: str) -> list[str]:
    """Sources of a notebook's code cells."""
    notebook = json.loads((HERE / f"{name}.ipynb").read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.filterwarnings("ignore")
def test_own_videos_can_be_explored_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All three notebooks in one folder, two videos each, with a predictor that was read in the first cell."""
    predictor = probes.build_predictor("demo", weights="random", image_size=128, device="cpu")
    monkeypatch.chdir(tmp_path)
    mask = make_mask()
    videos = {name: make_frames(3) for name in ("one", "two")}
    for name, frames in videos.items():
        write_video(tmp_path / f"{name}.mp4", frames, None)
    before = set(os.listdir())
    titles = []
    for notebook in list(CLIPS)[:3]:
        for video in videos:
            shown: list[Any] = []
            names = {
                "predictor": predictor, "figures": figures, "record": probes.record, "display": shown.append,
            }  # fmt: skip
            own = f"VIDEO, MASK = {video + '.mp4'!r}, mask"
            source = cells(notebook)[-1].replace("VIDEO, MASK = None, None", own)
            assert own in source
            exec(source, {**names, "mask": mask})
            (explorer,) = shown
            titles.append(explorer.meta["title"])
            assert "Random weights" in explorer.meta["caption"]
    assert [title.split(": ")[1] for title in titles] == ["one, random", "two, random"] * 3
    assert set(os.listdir()) == before


@pytest.mark.parametrize("name", CLIPS)
def test_captions_follow_the_model(name: str) -> None:
    """No cell says what the demo model is evidence of, but what the model of the first cell is."""
    source = "\n".join(cells(name))
    assert 'evidence("demo")' not in source and "evidence('demo')" not in source
    assert "evidence(" in source and 'model="demo"' not in source


@pytest.mark.parametrize("name", CLIPS)
def test_the_model_is_chosen_in_the_first_cell_alone(name: str) -> None:
    first, *others = cells(name)
    built = ("build_predictor(", "ModelChoice(")
    assert any(word in first for word in built)
    assert not any(word in source for word in built for source in others)


@pytest.mark.parametrize(("which", "share"), [("tiny", 14 / 16), ("dividing", 4 / 16)])
def test_windows_of_the_player_are_as_large_as_the_models(
    which: str, share: float, request: pytest.FixtureRequest
) -> None:
    """Windows of Tiny reach over the border of its grid."""
    predictor = accelerate(request.getfixturevalue(f"{which}_predictor"), "dense")
    (source,) = (c for c in cells("05_calibrate_your_videos") if "draw_window_player" in c)
    frames, given = make_frames(2), []

    def draw_window_player(shown: Any, window_share: float, caption: str) -> None:
        given.append((window_share, [item.index for item in shown], caption))

    count = {"tiny": 4, "dividing": 16}[which]
    report = [
        SimpleNamespace(frame=t, windows_total=count, windows=(0,), reason="routed") for t in (0, 1)
    ]
    names = {
        "figures": SimpleNamespace(
            routed_frames=figures.routed_frames, draw_window_player=draw_window_player
        ),
        "clip": SimpleNamespace(name="clip", video=SimpleNamespace(frame=lambda t: frames[t])),
        "report": SimpleNamespace(frames=report),
        "masks": [make_mask()] * 2,
        "predictor": predictor,
        "CLIPS": 5,
        "said": "",
    }
    from sparsity.acceleration.model.encoder import window_grid

    exec(source, {**names, "window_grid": window_grid})
    assert given[0][:2] == (share, [0, 1])
