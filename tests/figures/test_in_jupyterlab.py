"""Widgets in a real JupyterLab: the explorer gets attention rows, the picker masks, and the tracker tracks and is corrected."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probes import open_video, read_prompts
from sparsity import ModelChoice, run_segment
from sparsity.work.formats import read_masks
from tests.conftest import make_frames
from tests.figures import picked
from tests.figures.browser import Browser, Page
from tests.figures.explored import DATA, READY, brightest, choose, click, slide
from tests.figures.made import ENCODER, FRAMES, GREYS, MEMORY, make_recording

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
EXPLORE = "import numpy, figures\nfigures.explore('clip.recording', numpy.load('greys.npy'))"
PICK = """import numpy, figures, probes
predictor = probes.build_predictor("demo", image_size=128, device="cpu")
picker = figures.pick(numpy.load("frames.npy"), predictor)
picker.observe(lambda _: picker.save("prompts.json"), "entries")
picker"""
TRACK = """import sparsity
tracked = figures.track(sparsity.accelerate(predictor, "paper"), numpy.load("frames.npy"))
tracked"""
EXPORT = """if tracked.prompts:
    tracked.wait()
    tracked.save("tracked.json")
    kept = {f"{t}-{i}": mask for t, masks in tracked.masks.items() for i, mask in masks.items()}
    numpy.savez("tracked.npz", **kept)
    print("reasons", sorted(tracked.report.reasons))"""
# without a kernel's name JupyterLab asks for one, and its news would ask too
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
NEWS = {"@jupyterlab/apputils-extension:announcements": True}
IDLE = "document.querySelector('.jp-Notebook-ExecutionIndicator[data-status=idle]') !== null"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recording, frames, and a notebook with the widgets."""
    folder = tmp_path_factory.mktemp("lab") / "work"
    make_recording(folder / "clip.recording")
    np.save(folder / "greys.npy", GREYS)
    np.save(folder / "frames.npy", make_frames(FRAMES, 90, 160))
    import nbformat  # takes two seconds, which those spare who do not run this

    cells = [nbformat.v4.new_code_cell(code) for code in (EXPLORE, PICK, TRACK, EXPORT)]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=KERNEL)
    nbformat.write(notebook, folder / "widgets.ipynb")
    return folder


@pytest.fixture(scope="module")
def lab(folder: Path) -> Iterator[str]:
    """Address of a JupyterLab over the folder."""
    places = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    own = {name: str(folder.parent / name) for name in places}
    settings = folder.parent / "JUPYTER_CONFIG_DIR" / "labconfig"
    settings.mkdir(parents=True)
    (settings / "page_config.json").write_text(json.dumps({"disabledExtensions": NEWS}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "jupyterlab",
            "--no-browser",
            "--allow-root",
            f"--port={port}",
            "--IdentityProvider.token=",
            "--LabApp.expose_app_in_browser=True",
            f"--ServerApp.root_dir={folder}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **own, "PYTHONPATH": str(ROOT)},
    )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{address}/api")
        yield address
    finally:
        server.terminate()
        server.wait(30)


def _wait_for(address: str) -> None:
    end = time.monotonic() + 90
    while True:
        try:
            with urllib.request.urlopen(address) as answer:
                assert "version" in json.load(answer)
            return
        except OSError:
            assert time.monotonic() < end, "JupyterLab did not start in 90 s"
            time.sleep(0.3)


@pytest.fixture(scope="module")
def page(lab: str, browser: Browser) -> Iterator[Page]:
    """The notebook, run until its widgets are there; in the end nothing may have been complained about."""
    with browser.open(f"{lab}/lab/tree/widgets.ipynb", width=1400, height=1000) as page:
        page.wait("document.querySelector('.jp-Notebook .jp-CodeCell') !== null", 90)
        page.wait(
            "/Python 3/.test(document.querySelector('.jp-Toolbar-kernelName')?.textContent)", 60
        )
        page.wait(IDLE, 90)
        page.complaints.clear()
        page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells'), true")
        page.wait(READY, 90)
        page.wait(picked.READY, 90)
        page.wait("document.querySelector('.track')?.dataset.phase === 'waiting'", 90)
        yield page
        assert page.complaints == []


@pytest.mark.filterwarnings("ignore")
def test_a_click_in_jupyterlab_shows_what_the_pixel_attends_to(page: Page) -> None:
    page.evaluate("document.querySelector('.query').scrollIntoView(); true")
    choose(page, "site", ENCODER)
    slide(page, 0)
    click(page, ".query", 0.2, 0.3)
    assert brightest(page) == pytest.approx((6.5 / 8, 2.5 / 8), abs=0.02)
    page.press(".")
    page.wait(f"{DATA}.frame === '1'")
    click(page, ".query", 0.7, 0.3)
    assert brightest(page) == pytest.approx((2.5 / 8, 2.5 / 8), abs=0.02)
    slide(page, 4)
    page.wait(f"{DATA}.frame === '4'")
    click(page, "button[data-slot='5']", 0.5, 0.3)
    assert page.evaluate(f"{DATA}.site") == MEMORY
    # the made memory attends to the token on the right
    assert brightest(page) == pytest.approx((6.5 / 8, 2.5 / 8), abs=0.02)


@pytest.mark.filterwarnings("ignore")
def test_what_is_pointed_at_in_jupyterlab_is_there_in_python(page: Page, folder: Path) -> None:
    page.evaluate("document.querySelector('.pick').scrollIntoView(); true")
    page.click(*picked.at(page, 0.4, 0.5))
    picked.expect(page, masks=1)
    page.press("n")  # and no cell is made of it
    page.drag(picked.at(page, 0.6, 0.2), picked.at(page, 0.9, 0.8))
    picked.expect(page, object=2, prompts=2, masks=2)
    page.press(".")
    picked.expect(page, frame=1, masks=0)
    page.press("1")
    page.click(*picked.at(page, 0.4, 0.5))
    picked.expect(page, prompts=3, masks=1)
    page.press("u")
    picked.expect(page, prompts=2, masks=0)
    page.wait("document.querySelectorAll('.jp-CodeCell').length === 4")
    source = open_video(np.load(folder / "frames.npy"))
    end = time.monotonic() + 20
    while len(found := read_prompts(folder / "prompts.json", source)) != 2:
        assert time.monotonic() < end, "the kernel was not told of what was undone"
    point, box = found
    assert point.points[0] == pytest.approx((0.4 * 160, 0.5 * 90), abs=0.3)
    assert (point.object, box.object, box.frame) == (1, 2, 0) and box.box[0] > 90


@pytest.mark.filterwarnings("ignore")
def test_what_is_tracked_and_corrected_in_jupyterlab_is_what_segment_gives(
    page: Page, folder: Path
) -> None:
    page.evaluate("document.querySelector('.track').scrollIntoView(); true")

    def at(x: float, y: float) -> tuple[float, float]:
        return picked.at(page, x, y, ".track")

    def expect(**data: Any) -> None:
        picked.expect(page, ".track", **data)

    page.click(*at(0.4, 0.5))
    expect(prompts=1, phase="done", tracked=FRAMES, masks=1)
    page.press("n")
    page.click(*at(0.85, 0.2))
    expect(prompts=2, phase="done", tracked=FRAMES, masks=2)
    page.press("n")
    page.drag(at(0.1, 0.1), at(0.3, 0.3), at(0.6, 0.9))
    expect(prompts=3, phase="done", tracked=FRAMES, masks=3)
    for key in (".", ".", "1"):
        page.press(key)
    expect(frame=2, object=1, masks=3)
    words = "document.querySelector('.track .status').textContent"
    assert "score" in page.evaluate(words) and "windows" in page.evaluate(words)
    page.click(*at(0.85, 0.8), "right")
    expect(prompts=4, phase="done", tracked=FRAMES, masks=3)
    page.evaluate(
        "(() => {const notebook = window.jupyterapp.shell.currentWidget.content;"
        " notebook.deselectAll(); notebook.activeCellIndex = 3;"
        " window.jupyterapp.commands.execute('notebook:run-cell'); return true})()"
    )
    page.wait("document.body.textContent.includes('reasons [')", 60)
    run_segment(
        np.load(folder / "frames.npy"), folder / "tracked.json", ModelChoice(image_size=128, device="cpu"),
        folder / "masks", profile="paper", kind="coco-rle", overlay=False,
    )  # fmt: skip
    expected = read_masks(folder / "masks" / "masks.json")
    masks = np.load(folder / "tracked.npz")
    assert sorted(expected) == list(range(FRAMES)) and len(masks.files) == 3 * FRAMES
    for frame, layers in expected.items():
        for i, mask in layers.items():
            assert (masks[f"{frame}-{i}"] == mask).all(), (frame, i)
    assert (masks["1-1"] != masks["2-1"]).any() and (masks["2-1"] != masks["2-3"]).any()


@pytest.mark.filterwarnings("ignore")
def test_everybody_can_use_tracker_and_explorer(
    page: Page, serious_faults: Callable[[Page, str], list[str]]
) -> None:
    for theme in ("Dark", "Light"):
        page.evaluate(
            "window.jupyterapp.commands.execute('apputils:change-theme',"
            f" {{theme: 'JupyterLab {theme}'}}), true"
        )
        page.wait(f"document.body.dataset.jpThemeLight === '{str(theme == 'Light').lower()}'")
        assert serious_faults(page, ".track") == serious_faults(page, ".esx") == []
