"""Many clips: in this process, on local worker processes, or on a Dask cluster, with the same numbers.

A clip is one task. Its result is a JSON file of its own, written by the process that was started by the
user, so nothing needs a shared file system but the clips, and a second start goes on with the clips that
have no file yet. What a dying worker held, Dask gives to another one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tqdm import tqdm

from probes.errors import InputError
from sparsity.evaluation.spread import Spread as Spread
from sparsity.evaluation.spread import Work, outcomes
from sparsity.runs import write_text

LONGEST_NAME = 100
"""Letters of a file's name that are left as they are; some file systems hold 143, with the suffixes."""


@dataclass
class Summary:
    """What became of the clips.

    Attributes
    ----------
    results
        By clip, in the order asked for.
    resumed
        Clips whose result was there already.
    retried
        Clips that were begun again because a worker died, and how often.
    failed
        Clips that can't be worked on, and why.
    """

    results: dict[str, Any] = field(default_factory=dict)
    resumed: list[str] = field(default_factory=list)
    retried: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """Return it in a line for each thing worth knowing."""
        lines = [f"{len(self.results)} clips done"]
        if self.resumed:
            lines[0] += f", {len(self.resumed)} of them before"
        for clip, times in self.retried.items():
            lines.append(f"{clip} was begun again {times} times: its worker died")
        lines += [f"{clip} failed: {why}" for clip, why in self.failed.items()]
        return "\n".join(lines)

    def check(self) -> None:
        """Raise where a clip failed.

        Raises
        ------
        InputError
            With the first failure.
        """
        if self.failed:
            clip, why = next(iter(self.failed.items()))
            raise InputError(
                f"{len(self.failed)} of {len(self.failed) + len(self.results)} clips failed, first {clip} "
                f"({why}); {'the others are' if self.results else 'none is'} done; mend it and run the same "
                "command again"
            )


def map_clips(
    work: Work,
    clips: list[str],
    folder: Path,
    settings: dict[str, Any],
    spread: Spread,
    contents: Mapping[str, str] | None = None,
) -> Summary:
    """Work on every clip once.

    Parameters
    ----------
    work
        Called with a clip's name, in whatever process takes the clip.
    clips
        Names, each once.
    folder
        For one JSON file a clip; made when it is not there.
    settings
        Everything that decides the results. A file with other settings is made anew.
    spread
        Where to work.
    contents
        By clip: another text where the clip itself was changed, see `sparsity.runs.listing`.

    Returns
    -------
    Summary
        With the results in the order of `clips`, wherever and whenever they were made.

    Raises
    ------
    InputError
        The scheduler doesn't answer. What is wrong with single clips stands in the summary.
    """
    known = contents or {}
    stamps = {clip: _stamp({**settings, "content": known.get(clip)}) for clip in clips}
    folder.mkdir(parents=True, exist_ok=True)
    summary = Summary()
    found = {clip: _read(result_file(folder, clip), stamps[clip]) for clip in clips}
    summary.resumed = [clip for clip in clips if found[clip] is not None]
    left = [clip for clip in clips if found[clip] is None]
    with tqdm(
        total=len(clips), initial=len(clips) - len(left), unit="clip", disable=None
    ) as progress:
        for clip, result, why in outcomes(work, left, spread, summary.retried):
            progress.update()
            if why is not None:
                summary.failed[clip] = why
                continue
            found[clip] = {"settings": stamps[clip], "clip": clip, "result": result}
            folder.mkdir(parents=True, exist_ok=True)  # another process may be done with the same
            write_text(result_file(folder, clip), json.dumps(found[clip]))
    summary.results = {clip: entry["result"] for clip, entry in found.items() if entry is not None}
    return summary


def _stamp(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def result_file(folder: Path, clip: str) -> Path:
    """Where the result of a clip lies: under its name, or a hash where that is too long when it is quoted."""
    name = quote(os.fsencode(clip), safe=" ")
    if len(name) > LONGEST_NAME:
        name = hashlib.sha256(name.encode()).hexdigest()
    return folder / f"{name}.json"


def _read(file: Path, stamp: str) -> dict[str, Any] | None:
    """Return a clip's file if it is whole and of these settings."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(found, dict) and found.get("settings") == stamp and "result" in found
    return found if whole else None
