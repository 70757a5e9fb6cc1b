"""Pointing at objects in a real browser, on the page that ``efficient-sam2 pick`` serves.

Two objects are clicked and one is boxed, the masks show, a later frame is corrected, something is undone, everything is
saved; the file gives `run_segment` the masks of the same calls in Python.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from figures.picker import Picking
from probes import open_video, read_prompts
from sparsity import ModelChoice, run_segment
from sparsity.commands import pick
from sparsity.commands.pick import Server, serving
from sparsity.work.formats import read_masks
from sparsity.work.model import shared_predictor, shared_stock
from tests.conftest import HEIGHT, WIDTH
from tests.figures.browser import Browser, Page
from tests.figures.picked import READY, STATUS, at, button, expect

pytestmark = pytest.mark.process

CHOICE = ModelChoice(image_size=128, device="cpu")


@contextmanager
def picking(
    browser: Browser, video: Any, out: Path, masks: bool = True
) -> Iterator[tuple[Page, Server]]:
    """Open the page over a video; in the end nothing may have been complained about."""
    made = Picking(open_video(video), "clip", shared_stock(CHOICE) if masks else None)
    with serving(made, out) as server, browser.open(server.address, width=1000) as page:
        page.wait(READY)
        yield page, server
        assert page.complaints == []


def by_hand(video: Path, entries: list[dict[str, Any]]) -> dict[int, dict[int, np.ndarray]]:
    """Masks by frame and object of the calls that a point, two points, a box, and a point on frame 2 stand for."""
    predictor = shared_predictor(CHOICE)
    first, second, third, last = entries
    found: dict[int, dict[int, np.ndarray]] = {}

    def track(state: Any, start: int, end: int) -> None:
        for frame, ids, logits in predictor.propagate_in_video(state, start, end - start):
            found[frame] = {i: logits[k, 0].numpy() > 0 for k, i in enumerate(ids)}

    with predictor.use("dense"):
        state = predictor.init_state(video, corrections="keep")
        predictor.add_new_points_or_box(state, 0, 1, points=first["points"], labels=[1])
        points = [point[:2] for point in second["points"]]
        predictor.add_new_points_or_box(state, 0, 2, points=points, labels=[1, 0])
        predictor.add_new_points_or_box(state, 0, 3, box=third["box"])
        track(state, 0, 2)
        predictor.add_new_points_or_box(state, 2, 1, points=last["points"], labels=[1])
        track(state, 2, 3)
    return found


def test_what_is_pointed_at_is_what_segment_tracks(
    browser: Browser, clip_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "prompts.json"
    with picking(browser, clip_folder, out) as (page, server):
        page.click(*at(page, 0.4, 0.5))
        expect(page, masks=1)
        share = page.evaluate(f"Number({STATUS}.match(/covers ([\\d.]+) %/)[1])")
        button(page, "New object")
        page.click(*at(page, 0.9, 0.9))
        button(page, "Undo")
        expect(page, prompts=1, object=2, masks=1)
        page.click(*at(page, 0.8, 0.25))
        page.click(*at(page, 0.1, 0.1), "right")
        page.press("n")
        page.drag(at(page, 0.1, 0.1), at(page, 0.5, 0.5), at(page, 0.7, 0.9))
        expect(page, prompts=3, masks=3)
        page.press(".")
        page.press(".")
        page.press("1")
        expect(page, frame=2, object=1, masks=0)
        page.click(*at(page, 0.5, 0.5))
        expect(page, prompts=4, masks=1)
        assert "by this prompt alone" in page.evaluate(STATUS)
        button(page, "Save and finish")
        page.wait(f"{STATUS}.includes('can be closed')")
        assert server.wait() == f"{out}: 4 prompts, objects 1, 2, 3"
    run_segment(
        clip_folder, out, CHOICE, tmp_path / "masks", profile="dense", kind="coco-rle", max_frames=4,
        overlay=False,
    )  # fmt: skip
    entries = json.loads(out.read_text())
    assert [[e["frame"], e["object"]] for e in entries] == [[0, 1], [0, 2], [0, 3], [2, 1]]
    (plus, minus), near = entries[1]["points"], {"abs": 0.3}
    assert plus == pytest.approx([0.8 * WIDTH, 0.25 * HEIGHT], **near)
    assert minus == pytest.approx([0.1 * WIDTH, 0.1 * HEIGHT, 0], **near)
    box = [0.1 * WIDTH, 0.1 * HEIGHT, 0.7 * WIDTH, 0.9 * HEIGHT]
    assert entries[2]["box"] == pytest.approx(box, **near)
    masks = read_masks(tmp_path / "masks" / "masks.json")
    expected = by_hand(clip_folder, entries)
    assert sorted(masks) == sorted(expected) == [0, 1, 2, 3]
    for frame, layers in masks.items():
        assert sorted(layers) == [1, 2, 3]
        assert all((layers[i] == expected[frame][i]).all() for i in layers), frame
    assert share == pytest.approx(100 * masks[0][1].mean(), abs=0.051)
    assert (masks[1][1] != masks[2][1]).any() and (masks[0][1] != masks[0][3]).any()


def test_painted_with_the_brush_named_and_removed(
    browser: Browser, clip_frames: np.ndarray, tmp_path: Path
) -> None:
    out = tmp_path / "prompts.json"
    with picking(browser, clip_frames, out, masks=False) as (page, server):
        page.click(*at(page, 0.9, 0.9), "right")
        assert "first click on object 1 itself" in page.evaluate(STATUS)
        button(page, "Eraser")
        page.click(*at(page, 0.5, 0.5))
        assert "no mask to erase from" in page.evaluate(STATUS)
        button(page, "Brush")
        page.drag(at(page, 0.2, 0.5), at(page, 0.8, 0.5))
        expect(page, prompts=1, masks=1)
        button(page, "Eraser")
        page.drag(at(page, 0.5, 0.2), at(page, 0.5, 0.8))
        page.evaluate(
            "(() => {const f = document.querySelector('.pick input[type=text]');"
            " f.value = 'dög'; f.dispatchEvent(new Event('change'))})()"
        )
        page.press("n")
        page.press("p")
        page.click(*at(page, 0.5, 0.5))
        expect(page, prompts=2)
        button(page, "remove object 2")
        expect(page, prompts=1, object=1, saved="false")
        button(page, "Save")
        expect(page, saved="true")
        (prompt,) = read_prompts(out, open_video(clip_frames))
        assert prompt.label == "dög"
        y = HEIGHT // 2
        inside = [prompt.mask[y, round(x * WIDTH)] for x in (0.1, 0.3, 0.5, 0.7, 0.9)]
        assert inside == [False, True, False, True, False]
        with browser.open(server.address) as again:
            again.wait(READY)
            expect(again, prompts=1, masks=1)
            named = "document.querySelector('.pick input[type=text]').value"
            assert again.evaluate(named) == "dög"


def test_an_object_ends_and_comes_again(
    browser: Browser, clip_frames: np.ndarray, tmp_path: Path
) -> None:
    out = tmp_path / "prompts.json"
    with picking(browser, clip_frames, out, masks=False) as (page, _):
        button(page, "Ends here")
        assert "has no prompt on a frame before" in page.evaluate(STATUS)
        page.click(*at(page, 0.4, 0.5))
        for key in (".", ".", "x"):
            page.press(key)
        expect(page, prompts=2, frame=2)
        assert "ends here" in page.evaluate(STATUS)
        page.press(".")
        expect(page, frame=3)
        page.click(*at(page, 0.9, 0.9), "right")
        assert "first click on object 1 itself" in page.evaluate(STATUS)
        page.click(*at(page, 0.5, 0.5))
        button(page, "Save")
        expect(page, prompts=3, saved="true")
        ended = [(p.frame, p.remove) for p in read_prompts(out, open_video(clip_frames))]
        assert ended == [(0, False), (2, True), (3, False)]
        page.press(",")
        expect(page, frame=2)
        page.click(*at(page, 0.4, 0.5))
        button(page, "Save")
        expect(page, prompts=3, saved="true")
        corrected = read_prompts(out, open_video(clip_frames))
        assert not any(p.remove for p in corrected) and corrected[1].points is not None


def test_everything_can_be_done_with_keys(
    browser: Browser, clip_frames: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pick, "RELOADING", 0.2)
    out = tmp_path / "prompts.json"
    with picking(browser, clip_frames, out, masks=False) as (page, server):
        page.evaluate("document.querySelector('.pick canvas').focus()")
        for key in ("ArrowLeft", "ArrowLeft", "ArrowUp", "Enter", "b", *["ArrowRight"] * 3):
            page.press(key)
        page.press("ArrowDown")
        page.press("b")
        for key in (".", "Enter", "u", "r", "Enter", ",", "n", "2"):
            page.press(key)
        expect(page, frame=0, object=2, prompts=2)
        button(page, "Save")
        expect(page, saved="true")
        clicked, painted = read_prompts(out, open_video(clip_frames))
        assert clicked.points.tolist() == [[63, 47]] and clicked.box.tolist() == [63, 47, 66, 48]
        assert painted.frame == 1 and painted.mask[HEIGHT // 2, WIDTH // 2]
        page.send("Page.navigate", url="about:blank")
        assert server.wait().endswith("2 prompts, objects 1")


def test_what_fails_is_said(browser: Browser, clip_frames: np.ndarray, tmp_path: Path) -> None:
    with picking(browser, clip_frames, tmp_path / "gone" / "prompts.json") as (page, server):
        button(page, "Save")
        page.wait(f"{STATUS}.includes('no prompts were given')")
        page.click(*at(page, 0.4, 0.5))
        expect(page, masks=1)
        button(page, "Save")
        page.wait(f"{STATUS}.includes('No such file')")
        server.shutdown()
        server.server_close()
        button(page, "Save")
        page.wait(f"{STATUS}.includes('has ended')")
        page.complaints.clear()  # of the browser itself: two answers of status 400, and none


def test_everybody_can_use_it(
    browser: Browser,
    clip_frames: np.ndarray,
    tmp_path: Path,
    serious_faults: Callable[[Page, str], list[str]],
) -> None:
    with picking(browser, clip_frames, tmp_path / "prompts.json", masks=False) as (page, _):
        page.click(*at(page, 0.4, 0.5))
        expect(page, prompts=1)
        for scheme in ("light", "dark"):
            chosen = {"name": "prefers-color-scheme", "value": scheme}
            page.send("Emulation.setEmulatedMedia", features=[chosen])
            assert serious_faults(page, ".pick") == []
        page.evaluate("document.querySelector('.pick input[type=range]').ariaLabel = null")
        page.evaluate("document.querySelector('.pick .object [type=radio]').ariaLabel = null")
        assert serious_faults(page, ".pick") != []
