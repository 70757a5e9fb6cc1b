"""Fetching: against a real local server that cuts the line, serves wrong bytes, or isn't there."""

from __future__ import annotations

import hashlib
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from probes import checkpoints
from probes.checkpoints import Checkpoint, download, fetch_checkpoint, fetched
from probes.errors import InputError

pytestmark = pytest.mark.process  # a server

CONTENT = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()
WANTED = Checkpoint("weights.pt", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


class Server(ThreadingHTTPServer):
    """Serves `content`; hangs up after `cuts[i]` bytes of answer i."""

    def __init__(self, content: bytes, cuts: tuple[int, ...] = (), ranges: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.cuts, self.ranges = content, cuts, ranges
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        if not self.path.endswith("weights.pt"):
            self.send_error(404)
            return
        start = 0
        if asked and self.server.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked).group(1))
            self.send_response(206)
        else:
            self.send_response(200)
        body = self.server.content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        answer = len(self.server.asked) - 1
        if answer < len(self.server.cuts):
            self.wfile.write(body[: self.server.cuts[answer]])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(*args: object, **kwargs: object) -> Iterator[Server]:
    server = Server(*args, **kwargs)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "PATIENCE", 0.001)


def test_a_file_is_fetched_once(tmp_path: Path) -> None:
    with serving(CONTENT) as server:
        path = download(WANTED, tmp_path, server.url)
        again = download(WANTED, tmp_path, server.url)
    assert path.read_bytes() == CONTENT
    assert again == path
    assert server.asked == [None]
    assert [p.name for p in tmp_path.iterdir()] == ["weights.pt"]


def test_a_cut_line_is_taken_up_where_it_broke(tmp_path: Path) -> None:
    with serving(CONTENT, cuts=(1_100_000, 900_000)) as server:
        path = download(WANTED, tmp_path, server.url)
    assert path.read_bytes() == CONTENT
    starts = [int(r.removeprefix("bytes=").rstrip("-")) for r in server.asked[1:]]
    assert len(starts) == 2
    assert 0 < starts[0] < starts[1]


def test_what_came_is_kept_for_the_next_command(tmp_path: Path) -> None:
    with (
        serving(CONTENT, cuts=(300_000,) + 9 * (0,)) as server,
        pytest.raises(InputError, match="can't be fetched .* bytes are kept"),
    ):
        download(WANTED, tmp_path, server.url)
    assert not (tmp_path / "weights.pt").exists()
    have = (tmp_path / "weights.pt.part").stat().st_size
    assert have > 0
    with serving(CONTENT) as server:
        download(WANTED, tmp_path, server.url)
    assert server.asked == [f"bytes={have}-"]
    assert (tmp_path / "weights.pt").read_bytes() == CONTENT


def test_a_server_without_ranges_sends_it_from_the_start(tmp_path: Path) -> None:
    with serving(CONTENT, cuts=(500_000,), ranges=False) as server:
        assert download(WANTED, tmp_path, server.url).read_bytes() == CONTENT


def test_wrong_bytes_are_refused_and_not_kept(tmp_path: Path) -> None:
    wrong = bytearray(CONTENT)
    wrong[1_000_000] ^= 1
    with (
        serving(bytes(wrong)) as server,
        pytest.raises(InputError, match="delivered other bytes") as caught,
    ):
        download(WANTED, tmp_path, server.url)
    assert WANTED.sha256 in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [CONTENT + b"x", CONTENT[:-1]], ids=["longer", "shorter"])
def test_another_size_is_refused(tmp_path: Path, content: bytes) -> None:
    with serving(content) as server, pytest.raises(InputError, match="can't be fetched"):
        download(WANTED, tmp_path, server.url)
    assert not (tmp_path / "weights.pt").exists()


def test_a_page_in_place_of_the_file_costs_nothing_of_what_came(tmp_path: Path) -> None:
    """A network to log in to answers with a page of its own, which is no beginning of the file."""
    with serving(CONTENT, cuts=(300_000,) + 9 * (0,)) as server, pytest.raises(InputError):
        download(WANTED, tmp_path, server.url)
    have = (tmp_path / "weights.pt.part").read_bytes()
    with (
        serving(b"<html>log in</html>", ranges=False) as server,
        pytest.raises(InputError, match=r"it offers 19 of 3000000 bytes"),
    ):
        download(WANTED, tmp_path, server.url)
    assert len(server.asked) == 1 and (tmp_path / "weights.pt.part").read_bytes() == have
    with serving(CONTENT) as server:
        assert download(WANTED, tmp_path, server.url).read_bytes() == CONTENT


def test_a_file_that_is_not_there_is_asked_for_once(tmp_path: Path) -> None:
    with serving(CONTENT) as server, pytest.raises(InputError, match="404"):
        download(Checkpoint("other.bin", 5, "0" * 64), tmp_path, server.url)
    assert len(server.asked) == 1


def test_offline_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv(
            "EFFICIENT_SAM2_CHECKPOINTS_URL", f"http://127.0.0.1:{closed.getsockname()[1]}"
        )
        monkeypatch.setenv("EFFICIENT_SAM2_CACHE", str(tmp_path))
        with pytest.raises(
            InputError, match="connect to the network and run the same command again"
        ):
            fetch_checkpoint("sam2.1-tiny")


@pytest.mark.parametrize("address", ["mirror.local/sam2", "ftp://mirror.local", "http://"])
def test_what_is_no_address_is_said_at_once(tmp_path: Path, address: str) -> None:
    with pytest.raises(InputError, match="begins with https://.*; correct EFFICIENT_SAM2_CHECK"):
        download(WANTED, tmp_path, address)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        InputError, match="sam2.1-tiny, sam2.1-small, sam2.1-base-plus, sam2.1-large"
    ):
        fetch_checkpoint("sam3")


def test_a_model_without_its_checkpoint_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFICIENT_SAM2_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="run `efficient-sam2 fetch sam2.1-large`"):
        fetched("sam2.1-large")
