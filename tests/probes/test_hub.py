"""Weights from folders and from the hub: a real local server in its place that wants a token and cuts the line."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from probes import checkpoints
from probes.checkpoints import Checkpoint
from probes.errors import InputError
from probes.hub import OFFICIAL, fetch_from_hub, find, is_hub_name
from probes.models import build_predictor, fingerprint, name_of
from tests.probes.transformers_models import make_transformers

pytestmark = pytest.mark.process  # a server

TOKEN = "hf_secret"
COMMIT = "c0ffee"


class Hub(ThreadingHTTPServer):
    """Serves repositories ``{name: {file: bytes}}`` to whom the token is known; hangs up once amid each large file."""

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.broken = repositories, set[str]()
        self.asked: list[tuple[str, str | None]] = []
        self.altered = b""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append((self.path, asked))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.send_error(401)
        elif found := re.fullmatch(r"/api/models/(\w+/[\w.-]+)\?blobs=true", self.path):
            files = self.server.repositories.get(found[1])
            if files is None:
                self.send_error(404)
                return
            siblings = [
                {"rfilename": name, "size": len(data), "lfs": _lfs(name, data)}
                for name, data in files.items()
            ]
            self._send(json.dumps({"sha": COMMIT, "siblings": siblings}).encode())
        elif found := re.fullmatch(rf"/(\w+/[\w.-]+)/resolve/(?:{COMMIT}|main)/(.*)", self.path):
            data = self.server.altered or self.server.repositories[found[1]][found[2]]
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
            self._send(data[start:], 206 if asked else 200, found[2])
        else:
            self.send_error(404)

    def _send(self, body: bytes, status: int = 200, file: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if len(body) > 10**6 and file not in self.server.broken:
            self.server.broken.add(file)
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _lfs(name: str, data: bytes) -> dict[str, Any] | None:
    return None if name.endswith(".json") else {"sha256": hashlib.sha256(data).hexdigest()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved")
    make_transformers().save_pretrained(path)
    return path


@pytest.fixture
def hub(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    files = {path.name: path.read_bytes() for path in saved.iterdir()}
    server = Hub({"someone/narrow-sam2": {**files, "README.md": b"hello"}})
    monkeypatch.setattr(checkpoints, "PATIENCE", 0.001)
    for name, value in {
        "HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "HF_HUB_CACHE": str(tmp_path / "theirs"),
        "EFFICIENT_SAM2_CACHE": str(tmp_path / "cache"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_repository_is_fetched_once_and_found_by_name(
    hub: Hub, saved: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="run `efficient-sam2 fetch someone/narrow-sam2`"):
        build_predictor("someone/narrow-sam2")
    path = fetch_from_hub("someone/narrow-sam2")
    assert path.read_bytes() == (saved / "model.safetensors").read_bytes()
    assert sorted(p.name for p in path.parent.iterdir()) == ["config.json", "model.safetensors"]
    assert any(asked and int(asked[6:-1]) > 10**6 for _, asked in hub.asked), "it was resumed"
    before = len(hub.asked)
    assert fetch_from_hub("someone/narrow-sam2") == path
    assert [path for path, _ in hub.asked[before:]] == [
        "/api/models/someone/narrow-sam2?blobs=true"
    ]
    by_name = build_predictor("someone/narrow-sam2", device="cpu")
    by_folder = build_predictor(str(saved), device="cpu")
    assert fingerprint(by_name) == fingerprint(by_folder)
    assert TOKEN not in "".join(capfd.readouterr())


def test_weights_in_several_files(hub: Hub, saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    make_transformers().save_pretrained(folder, max_shard_size="2MB")
    parts = sorted(folder.glob("model-*.safetensors"))
    assert len(parts) > 1
    hub.repositories["someone/in-parts"] = {p.name: p.read_bytes() for p in folder.iterdir()}
    fetch_from_hub("someone/in-parts")
    by_name = build_predictor("someone/in-parts", device="cpu")
    assert fingerprint(by_name) == fingerprint(build_predictor(str(saved), device="cpu"))
    first, second = parts[:2]
    first.write_bytes(second.read_bytes())
    with pytest.raises(InputError, match=f"and {first.name} differ in tensor"):
        build_predictor(str(folder), device="cpu")
    first.unlink()
    with pytest.raises(InputError, match=f"{first.name} does not exist"):
        build_predictor(str(folder), device="cpu")


def test_other_bytes_are_refused(hub: Hub, saved: Path, tmp_path: Path) -> None:
    right = (saved / "model.safetensors").read_bytes()
    hub.altered = right[:-1] + bytes([right[-1] ^ 1])
    with pytest.raises(InputError, match="delivered other bytes"):
        fetch_from_hub("someone/narrow-sam2")
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        ("someone/else", TOKEN, r"\(404 Not Found\); .*check the name, or set HF_TOKEN"),
        ("someone/narrow-sam2", "hf_wrong", r"\(401 Unauthorized\)"),
        ("someone/narrow-sam2", "", r"\(401 Unauthorized\)"),
        ("facebook/sam2.1-hiera-tiny", "hf_wrong", r"\(401 Unauthorized\)"),
    ],
    ids=["no repository", "wrong token", "no token", "official"],
)
def test_what_cannot_be_read_is_refused_without_the_token(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, name: str, token: str, message: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(InputError, match=message) as caught:
        fetch_from_hub(name)
    assert str(caught.value).isprintable()
    assert not token or token not in str(caught.value)


def test_without_a_network_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"can't be reached \(ConnectionError\); .* HF_ENDPOINT"):
        fetch_from_hub("someone/narrow-sam2")


def test_an_official_name_is_the_same_checkpoint(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_predictor: Any
) -> None:
    assert OFFICIAL["facebook/sam2.1-hiera-base-plus"] == "sam2.1-base-plus"
    made = tmp_path / "made.pt"
    torch.save({"model": tiny_predictor.state_dict()}, made)
    data = made.read_bytes()
    wanted = Checkpoint("sam2.1_hiera_tiny.pt", len(data), hashlib.sha256(data).hexdigest())
    monkeypatch.setitem(checkpoints.CHECKPOINTS, "sam2.1-tiny", wanted)
    hub.repositories["facebook/sam2.1-hiera-tiny"] = {wanted.file: data}
    fetch_from_hub("facebook/sam2.1-hiera-tiny")
    model = build_predictor("facebook/sam2.1-hiera-tiny", image_size=256, device="cpu")
    assert fingerprint(model) == fingerprint(tiny_predictor)
    assert name_of(model) == "sam2.1-tiny"


def test_what_other_libraries_fetched_is_found(hub: Hub, saved: Path, tmp_path: Path) -> None:
    kept = tmp_path / "theirs" / "models--someone--other"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("abc")
    (kept / "snapshots").mkdir()
    (kept / "snapshots" / "abc").symlink_to(saved)
    assert find("someone/other").weights.samefile(saved / "model.safetensors")
    with pytest.raises(InputError, match="no weights of someone/nothing"):
        find("someone/nothing")


def test_a_folder_holds_one_model(tmp_path: Path, dividing_config: Path) -> None:
    with pytest.raises(InputError, match=r"0 files of weights \(none\)"):
        find(str(tmp_path))
    (tmp_path / "a.pt").touch()
    assert find(str(tmp_path)).weights.name == "a.pt"
    with pytest.raises(InputError, match="a.pt, of a model that isn't known"):
        build_predictor(str(tmp_path))
    (tmp_path / "b.pt").touch()
    with pytest.raises(InputError, match=r"2 files of weights \(a.pt, b.pt\)"):
        find(str(tmp_path))
    (tmp_path / "sam2.1_hiera_small.pt").touch()
    assert find(str(tmp_path)).model == "sam2.1-small"


def test_hub_names_and_paths_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert is_hub_name("facebook/sam2.1-hiera-large")
    assert not any(map(is_hub_name, ("models/mine", "sam2.1-tiny", "/a/b", "a/b/c", "../a", "")))
