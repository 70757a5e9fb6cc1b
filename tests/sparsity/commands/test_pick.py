"""The server of ``efficient-sam2 pick`` and the command: strangers get nothing, it ends, bad input is one line."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import signal
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from figures.picker import Picking
from probes import open_video
from sparsity.commands import pick
from sparsity.commands.app import run
from sparsity.commands.pick import Server, serving

POINT = [{"frame": 2, "object": 1, "points": [[50, 48]]}]
MODEL = ("--image-size", "128", "--device", "cpu")


@pytest.fixture
def server(clip_frames: np.ndarray, tmp_path: Path) -> Iterator[Server]:
    with serving(Picking(open_video(clip_frames), "clip"), tmp_path / "prompts.json") as running:
        yield running


def ask(
    port: int, path: str, method: str = "GET", given: Any = None, **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    """Send one request as it is written, and return status, body and headers of the answer."""
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    body = None if given is None else json.dumps(given)
    line.request(method, path, body, headers)
    answer = line.getresponse()
    found = answer.status, answer.read(), dict(answer.getheaders())
    line.close()
    return found


def test_strangers_get_nothing(server: Server, tmp_path: Path) -> None:
    good = f"/{server.token}/"
    assert ask(server.server_port, good)[0] == 200
    others = [
        "/",
        "/picker.js",
        "/x/",
        f"/{server.token[:-1]}/",
        f"/{server.token}x/",
        "//",
        "/%00/",
    ]
    for path in others:
        for method in ("GET", "POST", "PUT", "OPTIONS"):
            status, body, _ = ask(server.server_port, path, method)
            assert (status, body) == (403, b"403 Forbidden\n"), (path, method)
    for name in ("evil.example", f"evil.example:{server.server_port}", "127.0.0.1.evil.example:80"):
        assert ask(server.server_port, good, Host=name)[0] == 403
        assert (
            ask(server.server_port, f"{good}save", "POST", POINT, Origin=f"http://{name}")[0] == 403
        )
    assert not (tmp_path / "prompts.json").exists()
    here = f"localhost:{server.server_port}"
    assert ask(server.server_port, good, Host=here)[0] == 200
    told = ask(server.server_port, f"{good}save", "POST", POINT, Host=here, Origin=f"http://{here}")
    assert told[0] == 200 and (tmp_path / "prompts.json").is_file()


def test_tokens_differ(server: Server, clip_frames: np.ndarray, tmp_path: Path) -> None:
    with serving(Picking(open_video(clip_frames), "clip"), tmp_path / "p.json") as other:
        assert other.token != server.token and len(server.token) >= 32
        assert ask(other.server_port, f"/{server.token}/")[0] == 403


def test_the_page_and_the_frames_are_served_and_no_more(
    server: Server, clip_frames: np.ndarray
) -> None:
    good = f"/{server.token}/"
    for name, kind in {
        "": "text/html",
        "page.js": "text/javascript",
        "picker.js": "text/java",
    }.items():
        status, body, headers = ask(server.server_port, good + name)
        assert status == 200 and headers["Content-Type"].startswith(kind) and body
        assert headers["Content-Security-Policy"].startswith("default-src 'self'")
    status, body, headers = ask(server.server_port, f"{good}frames/7.jpg")
    assert status == 200 and headers["Content-Type"] == "image/jpeg"
    with Image.open(io.BytesIO(body)) as picture:
        assert np.abs(np.asarray(picture).astype(int) - clip_frames[7]).mean() < 6
    for path in (
        "frames/8.jpg", "frames/-1.jpg", f"frames/{'9' * 5000}.jpg", "frames/x.jpg", "frames/0.png",
        "frames/", "widget.py", "../picking.py", "frames/../../page.html", "%2e%2e/page.html", "/etc/passwd",
    ):  # fmt: skip
        assert ask(server.server_port, good + path)[0] == 404, path
    assert ask(server.server_port, f"{good}nothing", "POST", {})[0] == 404
    assert ask(server.server_port, good, "PUT")[0] == 501


def test_what_cannot_be_used_is_said_and_nothing_written(server: Server, tmp_path: Path) -> None:
    good = f"/{server.token}/"
    for entries, words in {
        "[]": "no prompts were given",
        '[{"frame": 8, "points": [[1, 1]]}]': "the video has frames 0 to 7",
        '{"frame": 8}': "expected a list of prompts",
        "[3]": "prompt 1 of prompts",
        json.dumps([{**POINT[0], "mask": "x"}]): "mask 'x' given; expected its run-length code",
    }.items():
        status, body, _ = ask(server.server_port, f"{good}save", "POST", json.loads(entries))
        assert status == 400 and words in json.loads(body)["failed"], entries
    assert (
        ask(server.server_port, f"{good}save", "POST", POINT, **{"Content-Length": "x"})[0] == 400
    )
    assert (
        ask(server.server_port, f"{good}save", "POST", POINT, **{"Content-Length": str(2**40)})[0]
        == 400
    )
    assert not (tmp_path / "prompts.json").exists()
    assert ask(server.server_port, f"{good}save", "POST", POINT)[0] == 200
    assert json.loads((tmp_path / "prompts.json").read_text()) == POINT
    assert (
        json.loads(ask(server.server_port, f"{good}begin", "POST")[1] or "{}").get("entries")
        == POINT
    )


def test_it_ends_with_the_page_or_after_silence(
    clip_frames: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picking = Picking(open_video(clip_frames), "clip")
    with serving(picking, tmp_path / "done.json") as server:
        ask(server.server_port, f"/{server.token}/save", "POST", POINT)
        ask(server.server_port, f"/{server.token}/done", "POST")
        assert server.wait() == f"{tmp_path / 'done.json'}: 1 prompt, objects 1"
    monkeypatch.setattr(pick, "RELOADING", 0.1)
    with serving(picking, tmp_path / "closed.json") as server:
        ask(server.server_port, f"/{server.token}/closed", "POST")
        ask(server.server_port, "/", "POST")  # a stranger's word is none
        assert server.wait() == ""
    monkeypatch.setattr(pick, "SILENCE", 1.5)
    with serving(picking, tmp_path / "silent.json") as server:
        begun, spoken = time.monotonic(), threading.Event()

        def speak() -> None:
            ask(server.server_port, f"/{server.token}/closed", "POST")
            for _ in range(5):  # it was loaded again
                ask(server.server_port, f"/{server.token}/")
                spoken.wait(0.5)

        threading.Thread(target=speak).start()
        assert server.wait() == "" and time.monotonic() - begun > 3


@pytest.mark.parametrize(
    ("video", "options", "words"),
    [
        (None, ["--out", "there.json"], "there.json is there already; expected a new file"),
        (None, ["--out", "new.txt"], "expected a name that ends in .json"),
        (None, ["--out", "no/new.json"], "no is no folder"),
        (None, ["--prompts", "none.json"], "prompts none.json can't be read"),
        ("nowhere.mp4", ["--out", "there.json", "--force"], "nowhere.mp4 does not exist"),
        (None, ["--out", "new.json", "--model", "sam3"], "sam3"),
    ],
)
def test_bad_input_is_one_line(
    video: str | None,
    options: list[str],
    words: str,
    clip_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.json").write_text("[]")
    assert run(["pick", video or str(clip_folder), "--no-browser", *options]) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and said.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["there.json"]


def visitor(monkeypatch: pytest.MonkeyPatch, visit: Callable[[str, int], None]) -> None:
    """Have somebody in place of a browser, who is told path and port of the page's address."""

    def open_page(address: str) -> None:
        found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)(/[\w-]{32}/)", address)
        assert found, address
        threading.Thread(target=visit, args=(found[2], int(found[1]))).start()

    monkeypatch.setattr(webbrowser, "open", open_page)


def test_the_command_writes_what_is_saved(
    clip_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, masks = tmp_path / "p.json", list[int]()

    def visit(path: str, port: int) -> None:
        masks.extend(json.loads(ask(port, f"{path}mask", "POST", POINT[0])[1])["runs"])
        ask(port, f"{path}save", "POST", POINT)
        ask(port, f"{path}done", "POST")

    visitor(monkeypatch, visit)
    assert run(["pick", str(clip_folder), "--out", str(out), *MODEL]) == 0
    assert json.loads(out.read_text()) == POINT and sum(masks) == 96 * 128
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("http://127.0.0.1:") and said[-1] == f"{out}: 1 prompt, objects 1"


def test_the_command_ends_without_a_file_when_nothing_is_saved(
    clip_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["pick", str(clip_folder), "--out", str(tmp_path / "p.json"), "--no-masks"]
    visitor(monkeypatch, lambda path, port: ask(port, f"{path}done", "POST") and None)
    assert run(words) == 1
    assert "closed without saving" in capsys.readouterr().out
    visitor(monkeypatch, lambda path, port: os.kill(os.getpid(), signal.SIGINT))
    assert run(words) == 130
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "p.json").exists()


def test_the_command_goes_on_from_prompts(
    clip_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, begun = tmp_path / "p.json", list[Any]()
    named = [{**POINT[0], "frame": "00002"}]
    file.write_text(json.dumps(named))
    ends = [*POINT, {"frame": 4, "object": 1, "remove": True}]

    def visit(path: str, port: int) -> None:
        begun.append(json.loads(ask(port, f"{path}begin", "POST")[1])["entries"])
        ask(port, f"{path}save", "POST", ends)
        ask(port, f"{path}done", "POST")

    visitor(monkeypatch, visit)
    words = ["pick", str(clip_folder), "--no-masks", "--prompts", str(file)]
    assert run([*words, "--out", str(tmp_path / "new.json")]) == 0
    assert json.loads(file.read_text()) == named, "another file was asked for"
    assert run(words) == 0 and begun == [POINT, POINT]
    assert json.loads(file.read_text()) == ends == json.loads((tmp_path / "new.json").read_text())
    capsys.readouterr()
    assert run(["pick", str(clip_folder)]) == 2
    assert "neither --out nor --prompts given; expected" in capsys.readouterr().err
    file.write_text('[{"frame": 77, "points": [[1, 1]]}]')
    assert run(words) == 2 and "the video has frames 0 to 7" in capsys.readouterr().err
