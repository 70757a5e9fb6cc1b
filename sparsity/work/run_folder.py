"""The folder of a run's results: which files in it are ours, whose settings they carry, and what a finished run left there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probes.errors import InputError
from probes.files import sweep, write_text
from sparsity.work.formats import JOINED, Format
from sparsity.work.overlay import parts_of
from sparsity.work.store import check_folder, digest

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

SHOWN = 6
"""Rescued frames that the summary names, and stretches of frames whose masks are likely wrong."""


@dataclass(frozen=True)
class Outcome:
    """What a run left behind.

    Attributes
    ----------
    promise
        Of its profile: see `sparsity.acceleration.report.Report.promise`.
    watched
        The same in a line with what it rests on; None where nobody watched.
    """

    out: Path
    results: str
    frames: int
    objects: list[int]
    milliseconds: dict[str, float]
    windows_share: float
    keys_share: float
    rescued: dict[str, str]
    left_out: list[str]
    overlay: bool
    beyond: list[str]
    promise: str
    watched: str | None = None
    look_at: dict[str, list[list[int]]] | None = None

    def summary(self) -> str:
        """Return it in a few lines."""
        lines = [f"frame {frame} ({rule})" for frame, rule in list(self.rescued.items())[:SHOWN]]
        more = len(self.rescued) - len(lines)
        spent = dict(self.milliseconds)
        parts = ", ".join(f"{name} {ms:.0f}" for name, ms in spent.items() if name != "all")
        lines += [f"{more} more in the report"] if more else []
        return "\n".join(
            (
                f"masks    {self.out / self.results}  ({self.frames} frames, {len(self.objects)} objects)",
                f"overlay  {self.out / 'overlay.mp4' if self.overlay else 'none'}",
                f"report   {self.out / 'report.json'}",
                f"time     {spent.pop('all'):.0f} ms a frame by the wall ({parts}, overlapping)",
                f"windows computed {self.windows_share:.0%}, memory keys read {self.keys_share:.0%}",
                f"guard    encoded densely: {', '.join(lines) or 'no frame'}",
                *(f"beyond   {said}" for said in self.beyond),
                *([f"promise  {self.watched}"] if self.watched else []),
                *([] if self.look_at is None else [f"look at  {_stretches(self.look_at)}"]),
            )
        )


def _stretches(look_at: dict[str, list[list[int]]]) -> str:
    """Name frames whose masks are likely wrong, object by object."""
    said, left = [], SHOWN
    for number, of in look_at.items():
        shown = [f"{a}-{b}" if b > a else str(a) for a, b in of[:left]]
        left -= len(shown)
        if shown:
            said.append(f"frames {', '.join(shown)} of object {number}")
    more = sum(map(len, look_at.values())) - SHOWN
    said += [f"{more} more in the report"] if more > 0 else []
    return "; ".join(said) + ": likely wrong" if said else "no frame: no mask is likely wrong"


class RunFolder:
    """The output folder of a run: which files in it are ours, and whose settings they carry."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.masks = path / "masks"
        self.overlay = path / "overlay.mp4"
        self.drawn = parts_of(self.overlay)
        self.joined = [path / name for name in JOINED.values()]
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

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other runs out of the folder, where the file system can.

        Raises
        ------
        InputError
            Another run is in it.
        """
        if fcntl is None:
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDONLY)
        try:
            with suppress(OSError):
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise InputError(
                        f"another run is writing into {self.path}; expected one at a time; wait for its end, or choose "
                        "another --out"
                    ) from None
            yield
        finally:
            os.close(handle)

    def enter(self, settings: dict[str, Any], force: bool) -> bool:
        """Make the folder ready; True where it holds results of the same settings."""
        self.hash = digest(settings)
        sweep(self.path)
        found = self._found()
        if found is not None and found == settings:
            return True
        if found is not None and not force:
            other = [key for key in settings if found.get(key) != settings[key]]
            raise InputError(
                f"{self.path} holds a run with another {', '.join(other)}; expected the same settings or a "
                "new folder; choose another --out, or --force to replace it"
            )
        self.clear(masks=found is not None)
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.settings, json.dumps(settings, indent=1, sort_keys=True))
        return False

    def clear(self, masks: bool = False) -> None:
        """Remove what a run writes at its end, and its saved state; and where it is wanted, its masks."""
        for file in (self.overlay, self.report, self.state, *self.joined):
            file.unlink(missing_ok=True)
        for folder in (self.drawn, *([self.masks] if masks else [])):
            shutil.rmtree(folder, ignore_errors=True)

    def _found(self) -> dict[str, Any] | None:
        """Return the settings of the run that the folder holds."""
        try:
            found = json.loads(self.settings.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def outcome(self, form: Format) -> Outcome:
        """Read back what the report of a finished run says."""
        report = json.loads(self.report.read_text(encoding="utf-8"))
        summary, watch = report["report"]["summary"], report["report"]["watch"]
        return Outcome(
            self.path,
            form.result.name,
            report["frames"],
            report["objects"],
            report["milliseconds_a_frame"],
            summary["windows_share"],
            summary["keys_share"],
            summary["rescued"],
            report["left_out"],
            self.overlay.is_file(),
            summary["beyond"],
            summary["promise"],
            None if watch is None else watch["said"],
            summary.get("look_at"),  # none in the report of an older run
        )
