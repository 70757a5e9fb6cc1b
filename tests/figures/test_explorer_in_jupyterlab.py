"""The explorer in a real JupyterLab: its kernel answers the browser's requests for attention rows."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import numpy as np
import pytest

from tests.conftest import make_frames
from tests.figures.browser import open_page
from tests.figures.made import FRAMES, MEMORY, make_recording
from tests.figures.test_explorer import DATA, brightest, click, slide

ROOT = Path(__file__).parents[2]
CELL = "import numpy, figures\nfigures.explore('clip.recording', numpy.load('frames.npy'))"
# without a kernel's name JupyterLab asks for one, and its news would ask too
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
NEWS = {"@jupyterlab/apputils-extension:announcements": True}
IDLE = "document.querySelector('.jp-Notebook-ExecutionIndicator[data-status=idle]') !== null"


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a JupyterLab over a folder with a recording and a notebook that explores it."""
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    folder = tmp_path / "work"
    make_recording(folder / "clip.recording")
    np.save(folder / "frames.npy", make_frames(FRAMES, 90, 160))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)], metadata=KERNEL)
    nbformat.write(notebook, folder / "explore.ipynb")
    settings = tmp_path / "JUPYTER_CONFIG_DIR" / "labconfig"
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
    )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{address}/api")
        yield f"{address}/lab/tree/explore.ipynb"
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


@pytest.mark.filterwarnings("ignore")
def test_a_click_in_jupyterlab_shows_what_the_pixel_attends_to(lab: str, chromium: str) -> None:
    with open_page(lab, width=1400, height=1000) as page:
        page.wait("document.querySelector('.jp-Notebook .jp-CodeCell') !== null", 90)
        page.wait(
            "/Python 3/.test(document.querySelector('.jp-Toolbar-kernelName')?.textContent)", 60
        )
        page.wait(IDLE, 90)
        page.complaints.clear()
        page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells'), true")
        page.wait("document.querySelector('.esx')?.dataset.ready", 90)
        page.evaluate("document.querySelector('.query').scrollIntoView(); true")
        click(page, ".query", 0.2, 0.3)
        assert brightest(page) == pytest.approx((6.5 / 8, 2.5 / 8), abs=0.02)
        page.press("ArrowRight")
        page.wait(f"{DATA}.frame === '1'")
        click(page, ".query", 0.7, 0.3)
        assert brightest(page) == pytest.approx((2.5 / 8, 2.5 / 8), abs=0.02)
        slide(page, 4)
        page.wait(f"{DATA}.frame === '4'")
        click(page, "figure[data-slot='5']", 0.5, 0.3)
        assert page.evaluate(f"{DATA}.site") == MEMORY
        # the made memory attends to the token on the right
        assert brightest(page) == pytest.approx((6.5 / 8, 2.5 / 8), abs=0.02)
        assert page.complaints == []
