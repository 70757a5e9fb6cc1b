"""The gallery: the page shows the pictures that are there, they are small, and their figures can be drawn."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import figures
from benchmarks.gallery import BUDGET, PICTURES, TRADE_OFFS, speed
from figures import readings
from figures.attention import lift
from probes import build_predictor
from sparsity.clips.masks import write_video
from tests.conftest import make_frames
from tests.figures.test_story import report

ROOT = PICTURES.parents[1]


def shown(page: str) -> set[str]:
    """Names of the gallery's pictures in a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return set(re.findall(r"!\[[^]]+\]\([./]*figures/gallery/([\w-]+)\.png\)", text))


def test_the_pages_show_every_picture_and_no_other() -> None:
    there = {path.stem for path in PICTURES.glob("*.png")}
    assert shown("README.md") | shown("docs/gallery.md") == there
    assert shown("README.md") != shown("docs/gallery.md")


def test_the_lines_of_the_page_draw_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other, as they stand there but for the model, on a video that is opened."""
    text = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    write_video(tmp_path / "clip.mp4", make_frames(10, 240, 320), None)
    shutil.copyfile(TRADE_OFFS, "speed.json")
    recall = {"layers": [[[0.5, 1.0]]], "ages": [1], "share": [0.1, 1.0], "exposure": [0.5]}
    margins = {"unit": "window", "candidates": "best", "kept": 0.4, "recall": 0.9, "margin_px": 8}
    found = report() | {"coverage": [margins], "recall": recall}
    (tmp_path / "mine.calibration.json").write_text(json.dumps(found), encoding="utf-8")
    small = partial(build_predictor, "demo", image_size=128, device="cpu")
    monkeypatch.setattr("probes.build_predictor", lambda name: small())
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    # on frame 8 the object is not where it was on the first
    clip, site = names["clip"], "encoder.stage3.block9.global"
    first, shown = (clip.masks()[clip.row(t, 1)] for t in (0, 8))
    assert not np.array_equal(first, shown) and np.array_equal(names["masks"][1], shown)
    mass = readings.object_map(clip, names["queries"], site, names["i"])
    assert lift(mass, shown) != lift(mass, first)


def test_all_figures_are_on_the_page() -> None:
    text = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    code = "".join(re.findall(r"```python\n(.*?)```", text, re.S))
    there = [f"figures.{name}" for name in figures.__all__ if name.startswith(("draw_", "explore"))]
    there += [f"calibration.{name}" for name in ("frontier", "losses", "coverage", "mass_recall")]
    assert [name for name in there if name not in code] == [] and len(there) >= 15


def test_pictures_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in PICTURES.glob("*.png")}
    assert {name: size for name, size in sizes.items() if size > BUDGET} == {}
    assert 0 < sum(sizes.values()) <= 1_200_000


@pytest.mark.parametrize("path", sorted(PICTURES.glob("*.png")), ids=lambda path: path.stem)
def test_pictures_are_wide_enough_to_read(path: Path) -> None:
    with Image.open(path) as picture:
        assert picture.width >= 700


def test_measured_figures_say_what_they_are_of() -> None:
    drawn = speed()
    assert drawn.keys() == {"times", "scaling", "speed-accuracy"}
    points = {trace.name for trace in drawn["speed-accuracy"].data}
    assert {"stock", "SWR", "SMR", "paper", "recommended"} <= points
    for name in ("times", "scaling"):
        (caption,) = [
            note.text for note in drawn[name].layout.annotations if note.name == "caption"
        ]
        assert "Random weights" in caption and re.search(r"bfloat16|float32", caption)
