"""A headless Chromium driven through its debugging protocol, for tests of what happens in a real browser."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import websocket

CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)


class Line:
    """A connection to the browser or to one of its tabs."""

    def __init__(self, address: str) -> None:
        self._socket = websocket.create_connection(address, timeout=60, suppress_origin=True)
        self._count = 0

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and return its result."""
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._count:
                assert "error" not in message, message["error"]
                return message["result"]
            self.note(message)

    def note(self, message: dict[str, Any]) -> None:
        """Take what is told beside answers."""

    def close(self) -> None:
        """Let go of it."""
        self._socket.close()


class Page(Line):
    """One tab: runs JavaScript, clicks, presses keys, and remembers what the console complained about."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.complaints: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def note(self, message: dict[str, Any]) -> None:
        """Keep complaints."""
        parameters = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"]))
        if message.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.complaints.append(
                f"{parameters['entry']['text']} {parameters['entry'].get('url')}"
            )
        if message.get("method") == "Runtime.consoleAPICalled" and parameters["type"] == "error":
            self.complaints.append(str(parameters["args"]))

    def evaluate(self, code: str) -> Any:
        """Return the value of a JavaScript expression; promises are awaited."""
        found = self.send(
            "Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, code: str, seconds: float = 30) -> Any:
        """Wait until an expression is true, and return it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = self.evaluate(code)
            if found:
                return found
            time.sleep(0.02)
        raise AssertionError(f"{code} did not come true in {seconds} s; {self.complaints}")

    def click(self, x: float, y: float, button: str = "left") -> None:
        """Click at a place of the window, in pixels."""
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, clickCount=1)

    def drag(self, *places: tuple[float, float]) -> None:
        """Press the button at the first place, move over the others, and release it at the last one."""
        kinds = ["mousePressed", *["mouseMoved"] * (len(places) - 1), "mouseReleased"]
        for kind, (x, y) in zip(kinds, [*places, places[-1]], strict=True):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """Press and release a key, such as ``ArrowRight``."""
        named = {
            "Tab": 9,
            "Enter": 13,
            "ArrowLeft": 37,
            "ArrowUp": 38,
            "ArrowRight": 39,
            "ArrowDown": 40,
        }
        code = named.get(key) or ord(key.upper())
        for kind in ("rawKeyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code
            )

    def picture(self, path: Path) -> None:
        """Write what the window shows as PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))


class Browser:
    """A running Chromium."""

    def __init__(self, port: str, path: str) -> None:
        self._place = f"ws://127.0.0.1:{port}"
        self._line = Line(self._place + path)

    @contextmanager
    def open(self, address: str, width: int = 1160, height: int = 900) -> Iterator[Page]:
        """Open an address in a tab that shares neither storage nor cache with another one."""
        context = self._line.send("Target.createBrowserContext")
        target = self._line.send("Target.createTarget", url="about:blank", **context)["targetId"]
        page = Page(f"{self._place}/devtools/page/{target}")
        try:
            page.send("Emulation.setFocusEmulationEnabled", enabled=True)
            page.send(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=height,
                deviceScaleFactor=1,
                mobile=False,
            )
            page.send("Page.navigate", url=address)
            yield page
        finally:
            page.close()
            self._line.send("Target.disposeBrowserContext", **context)

    def close(self) -> None:
        """Let go of it; it runs on."""
        self._line.close()


@contextmanager
def start_browser() -> Iterator[Browser]:
    """Start a fresh browser without a profile of its own."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [
                CHROMIUM,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--disable-background-networking",
                f"--user-data-dir={folder}",
                "--remote-debugging-port=0",
                "about:blank",
            ],
            stderr=subprocess.DEVNULL,
        )
        try:
            browser = Browser(*_place(Path(folder)))
            yield browser
            browser.close()
        finally:
            process.terminate()
            process.wait(20)


def _place(profile: Path) -> tuple[str, str]:
    """Port and path at which the browser listens."""
    told = profile / "DevToolsActivePort"
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if told.exists() and "\n" in (text := told.read_text(encoding="utf-8")):
            port, path = text.split()
            return port, path
        time.sleep(0.1)
    raise AssertionError("Chromium did not start in 60 s")
