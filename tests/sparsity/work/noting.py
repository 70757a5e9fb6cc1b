"""Work on clips that notes its starts; a worker imports this file, so it is light."""

from __future__ import annotations

import os
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probes.errors import InputError

CLIPS = [f"clip {i}" for i in range(6)]


@dataclass(frozen=True)
class Note:
    """Notes down every start; dies over the clip `deadly` the first time, over `fatal` every time."""

    log: Path
    deadly: str = ""
    fatal: str = ""
    broken: str = ""
    seconds: float = 0.0
    waits: bool = False

    def __call__(self, clip: str) -> dict[str, Any]:
        with (self.log / "starts").open("a") as file:
            file.write(f"{clip}\n")
        time.sleep(self.seconds)
        while self.waits and len(self.starts()) > 2 and not (self.log / "go").exists():
            time.sleep(0.02)
        if clip == self.broken:
            raise InputError(f"{clip} has no frames; expected some; record it")
        if clip == self.deadly and not (self.log / "died").exists():
            (self.log / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if clip == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"letters": len(clip), "last": clip[-1]}

    def starts(self) -> list[str]:
        return (self.log / "starts").read_text().splitlines()


@dataclass(frozen=True)
class Removing:
    """Removes the folder in the middle, as another process does that has finished."""

    folder: Path

    def __call__(self, clip: str) -> str:
        if clip == "clip 4":
            shutil.rmtree(self.folder)
        return clip
