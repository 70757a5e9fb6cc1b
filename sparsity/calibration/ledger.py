"""How many questions were asked of the same clips: each has its part of the level, and the profile says which it was.

Who asks the same clips for 1 point, then for 2, then with another adapter, and takes what pleases, errs more often than
each answer says. The first question has the whole level, as if it were the only one; all later ones share a fifth of it
between them, whatever their number. So all answers together are wrong in 6 of 100 cases at most where each says 95 %.
Fresh clips, and ``efficient-sam2 recheck`` on them, cost nothing.

The ledger lies beside the videos, as ``.efficient-sam2-questions.json``, so that it is found whatever is written where; where
there is no folder of videos, or one that can't be written to, it lies beside the result.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from probes.errors import InputError
from probes.files import write_text
from sparsity.clips.sources import ClipSource
from sparsity.work.store import digest

FILE = ".efficient-sam2-questions.json"

LATER = 0.2
"""Part of the level that all questions after the first share."""


def level_of(number: int, confidence: float) -> float:
    """Return the confidence at which question `number` of the same clips is tested, to be stated at `confidence`.

    Parts of the level are 1, then a fifth of 1/2, 1/6, 1/12, …, which add up to that fifth.

    Examples
    --------
    >>> [round(1 - level_of(number, 0.95), 4) for number in (1, 2, 3)]
    [0.05, 0.005, 0.0017]
    """
    part = 1.0 if number == 1 else LATER / (number * (number - 1))
    return 1 - (1 - confidence) * part


def ask(source: ClipSource, names: Sequence[str], question: Any, beside: Path) -> int:
    """Note a question and return its number among those that were asked of any of the same clips.

    Asked again, of the same clips, it keeps its number: a calibration that goes on asks nothing new.

    Parameters
    ----------
    names
        Clips of the promise.
    question
        Everything that was asked, as JSON can hold it.
    beside
        Folder for the ledger where there is none of videos.

    Raises
    ------
    InputError
        The ledger that is there can't be read.
    """
    clips = [digest(source.listing(name)) for name in names]
    asked = {"question": digest(question), "clips": clips}
    file = ledger_of(source, beside)
    ledger = read(file)
    if asked not in ledger:
        ledger.append(asked)
        beside.mkdir(parents=True, exist_ok=True)
        try:
            write_text(file, json.dumps(ledger))
        except OSError:  # of a folder that may only be read
            file = beside / FILE
            ledger = read(file)
            ledger += [asked] * (asked not in ledger)
            write_text(file, json.dumps(ledger))
    before = ledger[: ledger.index(asked) + 1]
    return sum(not set(clips).isdisjoint(one["clips"]) for one in before)


def ledger_of(source: ClipSource, beside: Path) -> Path:
    """Return the file in which questions of a source's clips are noted."""
    return (source.videos or beside) / FILE


def read(file: Path) -> list[dict[str, Any]]:
    """Read a ledger; empty where there is none.

    Raises
    ------
    InputError
        It is damaged.
    """
    if not file.is_file():
        return []
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return [{"question": str(one["question"]), "clips": list(one["clips"])} for one in found]
    except (ValueError, TypeError, KeyError):
        raise InputError(
            f"{file} can't be read; expected the questions that were asked of these clips; restore it, or remove it and "
            "count them yourself"
        ) from None
