"""The explorer in a notebook: a predictor is tracked under its own name, and what fails is said instead of awaited."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from figures import explore
from figures.explorer.content import explorer_content
from figures.explorer.sources import script, style
from figures.explorer.widget import Explorer
from probes import build_predictor
from tests.conftest import make_mask
from tests.figures.browser import open_page
from tests.figures.made import ENCODER, make_recording
from tests.figures.test_explorer import DATA

NOTE = "document.querySelector('.note').textContent"

PAGE = """<!doctype html><meta charset="utf-8"><style>{style}</style><main></main>
<script type="module">
const later = setTimeout;
window.setTimeout = (call, ms) => later(call, ms / 100);
let heard;
const answers = {answers};
const model = {{
  get: () => ({meta}),
  on: (_, call) => {{ heard = call; }},
  off: () => {{}},
  send: (message) => {{
    const answer = answers.shift();
    if (answer) later(() => heard({{ kind: "rows", key: message.key, ...answer }}, []), 5);
  }},
}};
{script}
widget.render({{ model, el: document.querySelector("main") }});
</script>"""


def test_a_predictor_is_shown_under_its_name_and_its_evidence(clip_frames: np.ndarray) -> None:
    for predictor, name, words in (
        (build_predictor("demo"), "demo", "Demo model"),
        (
            build_predictor("sam2.1-tiny", weights="random", image_size=256, device="cpu"),
            "random",
            "Random weights",
        ),
    ):
        meta = explore(predictor, clip_frames, {1: make_mask()}, max_frames=2).meta
        assert meta["title"].endswith(name) and words in meta["caption"]
        assert [frame["index"] for frame in meta["frames"]] == [0, 1]


def test_an_answer_that_fails_is_told(tmp_path: Path) -> None:
    content = explorer_content(make_recording(tmp_path / "clip.recording"), None, None, "light")
    broken = replace(content.clip, rows={**content.clip.rows, ENCODER: []})
    said: list[tuple[dict[str, Any], Any]] = []
    for clip in (content.clip, broken):
        shown = Explorer(replace(content, clip=clip))
        shown.send = lambda message, buffers=None: said.append((message, buffers))
        request = {"kind": "rows", "site": ENCODER, "index": 0, "key": "a"}
        shown._handle_custom_msg(request, [])
    (good, buffers), (bad, none) = said
    assert good == {"kind": "rows", "key": "a"} and len(buffers) == 1
    assert bad["key"] == "a" and "IndexError" in bad["failed"] and not none


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([{"failed": "no such rows"}], "no such rows"),
        ([], "the kernel did not answer in 30 s"),
    ],
)
def test_what_fails_is_said_in_the_browser(
    tmp_path: Path, chromium: str, answers: list[dict[str, str]], words: str
) -> None:
    content = explorer_content(make_recording(tmp_path / "clip.recording"), None, None, "light")
    program = script().replace("export default {", "const widget = {")
    text = PAGE.format(
        style=style(), script=program, meta=json.dumps(content.meta), answers=json.dumps(answers)
    )
    (tmp_path / "page.html").write_text(text, "utf-8")
    with open_page((tmp_path / "page.html").as_uri()) as page:
        page.wait("document.querySelector('.esx')?.dataset.ready", 20)
        assert words in page.evaluate(NOTE)
        # another pixel asks anew
        page.evaluate(
            "document.querySelector('.query').dispatchEvent(new MouseEvent('click', {clientX: 9, clientY: 9}))"
        )
        page.wait(f"{DATA}.ready > 1", 20)
        assert "the kernel did not answer in 30 s" in page.evaluate(NOTE)
        assert page.complaints == []
