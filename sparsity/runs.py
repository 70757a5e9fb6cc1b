"""The folder a run writes into, and how it ends: whole files, known settings, interrupts that can be resumed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from probes.errors import InputError


class RunFolder:
    """The output folder of a run: which files in it are ours, and whose settings they carry."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.masks = path / "masks"
        self.overlay = path / "overlay.mp4"
        self.report = path / "report.json"
        self.settings = path / "run.json"
        self.state = path / "state.pt"
        self.hash = ""

    def look(self, force: bool) -> None:
        """Refuse a folder that holds something else, before any work is done."""
        check_folder(self.path)
        if (
            self.path.is_dir()
            and any(self.path.iterdir())
            and not self.settings.is_file()
            and not force
        ):
            raise InputError(
                f"{self.path} holds other files; expected a new or empty folder; choose another --out, or "
                "--force to write into it"
            )

    def enter(self, settings: dict[str, Any], force: bool) -> bool:
        """Make the folder ready; True where it holds results of the same settings."""
        text = json.dumps(settings, sort_keys=True)
        self.hash = hashlib.sha256(text.encode()).hexdigest()
        found = self._found()
        if found is not None and found == settings:
            self.masks.mkdir(parents=True, exist_ok=True)
            return True
        if found is not None and not force:
            other = [key for key in settings if found.get(key) != settings[key]]
            raise InputError(
                f"{self.path} holds a run with another {', '.join(other)}; expected the same settings or a "
                "new folder; choose another --out, or --force to replace it"
            )
        if found is not None:
            shutil.rmtree(self.masks, ignore_errors=True)
        self.clear()
        self.masks.mkdir(parents=True, exist_ok=True)
        write_text(self.settings, json.dumps(settings, indent=1, sort_keys=True))
        return False

    def clear(self) -> None:
        """Remove what a run writes at its end, and its saved state."""
        for file in (self.overlay, self.report, self.state):
            file.unlink(missing_ok=True)

    def _found(self) -> dict[str, Any] | None:
        """Return the settings of the run that the folder holds."""
        try:
            found = json.loads(self.settings.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


@contextmanager
def stop_after_the_frame() -> Iterator[list[int]]:
    """Collect interrupts, so that the frame under way is finished; the second one stops at once."""
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    try:
        before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: interrupts don't arrive here
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def files_of(*places: Path) -> dict[str, Path]:
    """Files and those in folders, by a name that says where; hidden ones, which systems leave behind, apart."""
    return {
        f"{number}/{path.name}": path
        for number, place in enumerate(places)
        for path in (sorted(place.iterdir()) if place.is_dir() else [place])
        if path.is_file() and not path.name.startswith(".")
    }


def listing(*places: Path) -> str:
    """Hash of names, sizes and times of `files_of`: another one where a video or a mask was changed."""
    files = [(n, f.stat().st_size, f.stat().st_mtime_ns) for n, f in files_of(*places).items()]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def check_folder(path: Path) -> None:
    """Look at the place of a folder for results before the work.

    Raises
    ------
    InputError
        It is a file.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; expected a folder for results; choose another --out")


def check_different(*paths: Path) -> None:
    """Look at the names of a command's files before the work.

    Raises
    ------
    InputError
        Two of them are the same file.
    """
    places = [path.resolve() for path in paths]
    for path, place in zip(paths, places, strict=True):
        if places.count(place) > 1:
            raise InputError(
                f"{path} given for two results; expected a file for each; choose another name for one"
            )


def check_new_file(path: Path, force: bool) -> None:
    """Look at the place of a file before the work that it is for.

    Raises
    ------
    InputError
        It is a folder, or a file that is there, which only `force` replaces.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected a file; add a name")
    if path.exists() and not force:
        raise InputError(
            f"{path} exists; expected a new file; choose another name, or --force to replace it"
        )


def part_of(path: Path) -> Path:
    """Return a temporary name beside `path`, of this process alone: two that write the same file don't meet."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def write_text(path: Path, text: str) -> None:
    """Write a text file that is whole or absent."""
    part = part_of(path)
    part.write_text(text + "\n", encoding="utf-8")
    os.replace(part, path)
