"""Streams by their address, from real servers on this machine; and what is said where there is none."""

from __future__ import annotations

import copy
import io
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from probes.errors import InputError
from probes.frames import KEPT_OF_STREAM, EndOfVideo
from probes.live import LiveVideo, is_live, shown
from probes.video import VideoSource, notes_of, open_video
from sparsity import accelerate
from tests.conftest import make_frames, make_mask

TS_PACKET = 188


def written(frames: np.ndarray, kind: str, **options: str) -> bytes:
    """A clip at 12 frames a second, as a file's bytes in a format that can be read as it comes."""
    file = io.BytesIO()
    with av.open(file, "w", format=kind, options=options) as container:
        stream = container.add_stream("libx264", rate=12, options={"g": "4", "bf": "2"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


@pytest.fixture(scope="module")
def transport() -> bytes:
    """A clip of 20 frames as an MPEG transport stream."""
    return written(make_frames(20), "mpegts")


@contextmanager
def served(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """A TCP server that answers one connection; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            try:
                connection, _ = server.accept()
                with connection:
                    answer(connection)
            except OSError:
                pass  # the reader went away

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
    thread.join(20)


def sending(data: bytes, then: Callable[[socket.socket], object] | None = None) -> Any:
    """An answer: all of these bytes, and what comes then."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(data)
        if then is not None:
            then(connection)

    return answer


def frames_in(video: VideoSource) -> list[np.ndarray]:
    """All frames, to the end."""
    found: list[np.ndarray] = []
    while True:
        try:
            found.append(video.frame(len(found)).copy())
        except EndOfVideo:
            return found


def test_a_transport_stream_gives_the_frames_of_its_file(transport: bytes) -> None:
    file = open_video(transport)
    with served(sending(transport)) as address:
        video = open_video(address)
        assert isinstance(video, VideoSource) and isinstance(video, LiveVideo)
        assert (video.height, video.width, video.fps) == (96, 128, 12.0)
        assert video.num_frames is None and video.names is None
        found = frames_in(video)
    assert len(found) == video.num_frames == file.num_frames == 20 and notes_of(video) == ()
    assert all(np.array_equal(found[t], file.frame(t)) for t in range(20))
    assert not np.array_equal(found[0], file.frame(9))
    with pytest.raises(InputError, match="has gone by, only frames 4 to 19 are held"):
        video.frame(20 - KEPT_OF_STREAM - 1)
    with pytest.raises(InputError, match="frame 20 of a copied stream|ended after 20"):
        copy.deepcopy(video).frame(20)


def test_an_http_address_gives_the_frames_of_its_file() -> None:
    """A fragmented mp4 behind a user and a password, sent without a length, with one, or with one that it falls short of;
    turned upright."""
    data = written(make_frames(8), "mp4", movflags="frag_keyframe+empty_moov")
    turned = bytearray(data)
    matrix = data.index(b"tkhd") + 4 + 40
    turned[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    asked: list[str] = []
    longer = {"/sized": 0, "/short": 1000}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "video/mp4")
            name = self.path.partition("?")[0]
            if name in longer:
                self.send_header("Content-Length", str(len(data) + longer[name]))
            self.end_headers()
            self.wfile.write(turned if name == "/turned" else data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        at = f"127.0.0.1:{server.server_port}"
        for name in ("live", "sized"):
            video = open_video(f"http://me:secret@{at}/{name}?key=hidden")
            found = frames_in(video)
            file = open_video(data)
            assert len(found) == 8 and video.fps == file.fps == 12.0
            assert all(np.array_equal(found[t], file.frame(t)) for t in range(8))
            assert not np.array_equal(found[0], found[7])
        upright = open_video(f"http://{at}/turned?key=hidden")
        assert (upright.height, upright.width) == (128, 96)
        assert np.array_equal(upright.frame(3), np.rot90(found[3], -1))
        assert not np.array_equal(upright.frame(3), np.rot90(found[3]))
        with pytest.raises(InputError, match=re.escape(f"http://{at}/short?… broke off (")):
            frames_in(open_video(f"http://me:secret@{at}/short?key=hidden"))
        server.shutdown()
        thread.join(20)
    assert set(asked) == {f"/{name}?key=hidden" for name in ("live", "sized", "turned", "short")}


def test_what_is_lost_on_the_way_is_passed_over(transport: bytes) -> None:
    """Half of the packets in the middle don't arrive: the rest does, and it is said that something was lost."""
    packets = [transport[i : i + TS_PACKET] for i in range(0, len(transport), TS_PACKET)]
    third = len(packets) // 3
    lossy = b"".join(p for i, p in enumerate(packets) if not third < i < 2 * third or i % 2)
    with served(sending(lossy)) as address:
        video = open_video(address)
        found = frames_in(video)
    whole = [open_video(transport).frame(t) for t in range(20)]
    assert 10 <= len(found) <= 20
    assert np.array_equal(found[0], whole[0]) and np.array_equal(found[-1], whole[-1])
    (note,) = notes_of(video)
    assert note.startswith(address) and "known to be damaged" in note
    assert len(found) < 20 or not all(map(np.array_equal, found, whole))


def test_a_predictor_tracks_a_stream_by_its_address(small_stock: Any, transport: bytes) -> None:
    fast = accelerate(small_stock, "exact")

    def tracked(source: Any, mask: np.ndarray) -> list[torch.Tensor]:
        state = fast.init_state(source, history="bounded")
        fast.add_new_mask(state, 0, 1, mask)
        return [logits for _, _, logits in fast.propagate_in_video(state)]

    expected = tracked(transport, make_mask())
    with served(sending(transport)) as address:
        found = tracked(address, make_mask())
    assert len(found) == len(expected) == 20 and all(map(torch.equal, found, expected))
    with served(sending(transport)) as address:
        other = tracked(address, make_mask(30))
    assert len(other) == 20 and not torch.equal(other[0], expected[0])


def test_a_stream_that_breaks_off_says_so(transport: bytes) -> None:
    """All frames that arrived are there; a sender that closes its stream ends it instead."""
    half = transport[: len(transport) // 2 // TS_PACKET * TS_PACKET]
    with served(sending(half)) as address:
        closed = frames_in(LiveVideo(address, patience=60))
    assert 5 < len(closed) < 20
    leave = threading.Event()
    with served(sending(half, lambda _: bool(leave.wait(60)))) as address:
        video, held = LiveVideo(address, patience=2), []
        with pytest.raises(
            InputError, match=r"^tcp://127\.0\.0\.1:\d+ broke off \(nothing came for 2 s\); exp"
        ):
            while True:
                held.append(video.frame(len(held)).copy())
        leave.set()
    assert len(held) == len(closed) and all(map(np.array_equal, held, closed))
    assert not np.array_equal(held[0], held[-1])

    def fails(connection: socket.socket) -> None:
        time.sleep(0.5)  # until what was sent has been read
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with served(sending(half, fails)) as address:
        video = LiveVideo(address, patience=20)
        with pytest.raises(InputError, match=r"broke off \(Connection reset by peer\)"):
            frames_in(video)


def test_what_does_not_answer_is_one_line_without_secrets() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        at = f"127.0.0.1:{closed.getsockname()[1]}"
    for address, name, why in (
        (f"http://me:p@ss/w?rd@{at}/live", f"http://{at}/live", "("),
        (f"rtsp://me:secret@{at}/1?token=secret", f"rtsp://{at}/1?…", "(Connection refused)"),
        ("nothing://me:secret@there/", "nothing://there/", "(Protocol not found)"),
        ("/dev/video99", "/dev/video99", "(No such file or directory)"),
        ("dshow:video=Camera", "dshow:video=Camera", "("),
    ):
        with pytest.raises(InputError) as refused:
            open_video(address)
        said = str(refused.value)
        assert said.startswith(f"{name} can't be opened as a video {why}"), said
        assert "\n" not in said and "secret" not in said and "p@ss" not in said
    with pytest.raises(InputError, match=r"rtsp:/cam/1 given as a Path, which drops a slash"):
        open_video(Path("rtsp://me:secret@cam/1"))
    leave = threading.Event()
    with served(lambda _: bool(leave.wait(60))) as address:
        with pytest.raises(InputError, match=r"can't be opened as a video \(no answer in 0\.3 s\)"):
            LiveVideo(address, patience=0.3)
        leave.set()
    with (
        served(sending(b"no video at all, " * 1000)) as address,
        pytest.raises(InputError, match="can't be opened as a video"),
    ):
        open_video(address)


def test_files_are_told_from_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("12:30.mp4", "avfoundation:0", "clip.mp4", "https:", "-"):
        Path(name).touch()
        assert not is_live(name) and not is_live(Path(name)), name
    Path("avfoundation:0").unlink()
    for name in ("avfoundation:0", "v4l2:/dev/video1", "/dev/video1", "udp://@:1234", "SRT://h:1"):
        assert is_live(name), name
    assert shown("udp://@:1234") == "udp://:1234" and shown("clip?.mp4") == "clip?.mp4"
    with pytest.raises(InputError, match="rtsps does not exist; expected a folder"):
        open_video("rtsps")
