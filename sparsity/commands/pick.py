"""``efficient-sam2 pick``: point at objects in a browser; a file of prompts out.

The page comes from a small server on 127.0.0.1. Whoever knows its address, which has a random part, gets the page and the
frames of this video, and can write this file of prompts; everybody else gets 403 for everything, and so does a site that has
its own name answer with 127.0.0.1.
"""

from __future__ import annotations

import json
import secrets
import sys
import threading
import time
import webbrowser
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from probes.errors import InputError, some_of
from sparsity.commands.options import check_out, with_model

if TYPE_CHECKING:  # they need torch
    from collections.abc import Iterator

    from figures.picker import Picking
    from sparsity.work.model import ModelChoice

SILENCE = 600.0
"""Seconds without a word from the page after which the command ends; the page says one every half minute."""

RELOADING = 3.0
"""Seconds after which the command ends when the page was closed: one that is loaded again asks meanwhile."""

MOST = 256 * 2**20
"""Bytes of what a page sends, at most."""

PAGE = {
    "": "text/html",
    "page.js": "text/javascript",
    "picker.js": "text/javascript",
    "picker.css": "text/css",
}
"""Files of the page by their address, with their types."""

HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
}
"""Of every answer: nothing is loaded from elsewhere, shown inside another page, or tells others the address."""


@with_model
def pick(
    video: Annotated[str, typer.Argument(help="video file or folder of frames")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="the file of prompts, ending in .json; default: that of --prompts"
        ),
    ] = None,
    *,
    choice: ModelChoice,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="a file of prompts to go on from")
    ] = None,
    masks: Annotated[
        bool, typer.Option(help="show the model's mask after each click, of this frame alone")
    ] = True,
    browser: Annotated[
        bool, typer.Option(help="open the page; --no-browser prints its address alone")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="overwrite --out")] = False,
) -> None:
    """Click on objects, draw boxes around them or paint them in a browser; writes what segment --prompts takes."""
    if out is None and prompts is None:
        raise InputError(
            "neither --out nor --prompts given; expected a file to write, or one to go on from; add --out prompts.json"
        )
    target = prompts if out is None else out
    assert target is not None, "one of the two is given"
    check_out(target, ".json")
    if target.is_dir() or (target.exists() and not force and target != prompts):
        raise InputError(
            f"{target} is there already; expected a new file; choose another --out, or --force to overwrite a file"
        )
    from figures.picker import Picking, entries_of
    from probes import open_video, read_prompts
    from sparsity.work.model import shared_stock

    source = open_video(video)
    begun = [] if prompts is None else entries_of(read_prompts(prompts, source))
    predictor = shared_stock(choice) if masks else None
    kind = predictor.device.type if predictor is not None else "cpu"
    picking = Picking(source, Path(video).resolve().name, predictor, partial(choice.autocast, kind))
    with serving(picking, target, begun) as server:
        print(f"{server.address}\npoint at objects there; Ctrl-C ends without saving", flush=True)
        if browser:
            webbrowser.open(server.address)
        saved = server.wait()
    print(saved or f"closed without saving; {target} was not written")
    if not saved:
        raise typer.Exit(1)


class Server(ThreadingHTTPServer):
    """Gives out one video's page, and takes its prompts.

    Attributes
    ----------
    picking, out
        The video, and where prompts are written.
    token
        What an address must begin with.
    entries
        Prompts as the page begins with them: as they were saved last.
    """

    daemon_threads = True

    def __init__(self, picking: Picking, out: Path, entries: list[dict[str, Any]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.picking, self.out = picking, out
        self.token = secrets.token_urlsafe(24)
        self.entries = entries
        self._saved = ""
        self._ended = threading.Event()
        self.stay(SILENCE)

    @property
    def address(self) -> str:
        """Of the page."""
        return f"http://127.0.0.1:{self.server_port}/{self.token}/"

    def stay(self, seconds: float) -> None:
        """Wait so long for the next word."""
        self._until = time.monotonic() + seconds

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what went wrong, unless the page went away before it was answered."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def wait(self) -> str:
        """Return when the page is done or nothing has been heard of it for long: what was saved, or nothing."""
        while time.monotonic() < self._until and not self._ended.wait(0.2):
            pass
        return self._saved

    def answer(self, what: str, given: Any) -> dict[str, Any] | None:
        """Do what the page asks for; None where there is no such thing.

        Raises
        ------
        InputError
            The prompts can't be used.
        """
        match what:
            case "begin":
                return {"meta": self.picking.meta, "entries": self.entries}
            case "mask":
                return {"runs": self.picking.mask(given)}
            case "save":
                prompts = self.picking.save(given, self.out)
                self.entries = given
                objects = [str(i) for i in sorted({prompt.object for prompt in prompts})]
                count = f"{len(prompts)} prompt{'s' * (len(prompts) > 1)}"
                self._saved = f"{self.out}: {count}, objects {some_of(objects)}"
                return {"words": f"saved {self._saved}"}
            case "alive":
                return {}
            case "closed":
                self.stay(RELOADING)
                return {}
            case "done":
                self._ended.set()
                return {}
            case _:
                return None


@contextmanager
def serving(
    picking: Picking, out: Path, entries: list[dict[str, Any]] | None = None
) -> Iterator[Server]:
    """Serve a page for as long as the context lasts, with prompts to begin with."""
    with Server(picking, out, entries or []) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    timeout = 60  # seconds for a request to come whole
    error_message_format = "%(code)d %(message)s\n"
    error_content_type = "text/plain"

    def parse_request(self) -> bool:
        """Read what is asked for, and refuse strangers whatever they ask for."""
        if not super().parse_request():
            return False
        token, _, self.what = urlsplit(self.path).path.removeprefix("/").partition("/")
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if (
            secrets.compare_digest(token.encode(), self.server.token.encode())
            and host.rpartition(":")[0] in ("127.0.0.1", "localhost")
            and origin in (None, f"http://{host}")
        ):
            self.server.stay(SILENCE)
            return True
        self.send_error(HTTPStatus.FORBIDDEN)
        return False

    def do_GET(self) -> None:
        """Give a file of the page, or a frame."""
        folder, _, name = self.what.partition("/")
        if self.what in PAGE:
            from figures.picker import page_file

            self._give(page_file(self.what).encode(), f"{PAGE[self.what]}; charset=utf-8")
        elif folder == "frames" and name.endswith(".jpg") and name[:-4].isdecimal():
            try:
                picture = self.server.picking.frame(int(name[:-4]))
            except (IndexError, ValueError) as error:
                self.send_error(HTTPStatus.NOT_FOUND, explain=str(error))
            else:
                self._give(picture, "image/jpeg")
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        """Take what the page says, and answer in JSON."""
        try:
            length = int(self.headers.get("Content-Length", ""))
            if not 0 <= length <= MOST:
                raise ValueError(length)
            given = json.loads(self.rfile.read(length) or "null")
        except ValueError:
            self.send_error(HTTPStatus.BAD_REQUEST)
            return
        status = HTTPStatus.OK
        try:
            said = self.server.answer(self.what, given)
        except Exception as error:  # the page waits for an answer, whatever went wrong
            status = HTTPStatus.BAD_REQUEST
            said = {"failed": str(error) or type(error).__name__}
        if said is None:
            self.send_error(HTTPStatus.NOT_FOUND)
        else:
            self._give(json.dumps(said).encode(), "application/json", status)

    def _give(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def end_headers(self) -> None:
        """Add what every answer has."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing; the terminal is the command's."""

    def version_string(self) -> str:
        """Tell nobody which Python this is."""
        return "pick"
