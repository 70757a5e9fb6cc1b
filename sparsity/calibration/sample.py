"""What the clips are a sample of: which loss counts, which clips count as one, which search and which carry the promise.

Two things can be lost, and they are not the same: *loss* is J&F against true masks, *drift* is agreement with the dense
run, which needs no labels. A clip lost 3.8 points against the dense run's masks and gained 1.6 against the truth. So
clips without true masks are never averaged with others: where loss is asked for they are counted apart.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probes.errors import InputError, some_of, tell_left_out
from sparsity.calibration.report import Look
from sparsity.calibration.request import FEWEST_CLIPS, MAX_DRIFT, MAX_DROP, Request, Risk
from sparsity.calibration.search import split_clips

PART = re.compile(r"[-_. ]*(?:part|segment|seg|chunk|cut|shot|take)[-_. ]*\d+$", re.IGNORECASE)
"""What clips of one source differ by, at the end of their names."""


@dataclass(frozen=True)
class Sample:
    """Clips with a loss, and the sources that they count by.

    Attributes
    ----------
    request
        With the loss that is accepted, and those clips alone that have it.
    apart
        Clips without true masks, where loss against these was asked for.
    sources
        Source of each clip; clips of one source count as one.
    """

    request: Request
    apart: tuple[str, ...]
    sources: Mapping[str, str]

    def split(self, share: float) -> tuple[list[str], list[str]]:
        """Split the clips into those of the search and those of the promise, all clips of a source together."""
        names = self.request.clips
        of_search = set(split_clips(self.counted(names), share, self.request.seed)[0])
        parts: tuple[list[str], list[str]] = [], []
        for name in names:
            parts[self.sources[name] not in of_search].append(name)
        return parts

    def counted(self, names: Sequence[str]) -> list[str]:
        """Return the sources of clips, each once, in the order in which they come."""
        return list(dict.fromkeys(self.sources[name] for name in names))

    def pooled(self, losses: NDArray[np.float64], names: Sequence[str]) -> NDArray[np.float64]:
        """Return the mean over each source's clips: losses of clips ``[n, m]`` to those of sources."""
        of = np.array([self.sources[name] for name in names])
        return np.stack([losses[of == source].mean(axis=0) for source in self.counted(names)])


def sample_of(request: Request, looks: Mapping[str, Look]) -> Sample:
    """Say what clips are a sample of: by what is asked of them, or by whether they have true masks.

    Raises
    ------
    InputError
        There are too few clips with a loss, or too few sources.
    """
    labelled = tuple(name for name in request.clips if looks[name].labelled)
    if request.max_drift is None and request.max_drop is None:
        if len(labelled) < FEWEST_CLIPS:
            request = replace(request, max_drift=MAX_DRIFT)
        else:
            request = replace(request, max_drop=MAX_DROP)
    apart: tuple[str, ...] = ()
    if request.risk == "loss":
        if len(labelled) < FEWEST_CLIPS:
            raise InputError(
                f"max-drop given; {len(labelled)} of {len(request.clips)} clips have true masks; expected {FEWEST_CLIPS} or "
                "more with a mask for each frame, for loss is J&F against these; add masks, or give --max-drift, "
                "which asks for agreement with the dense run"
            )
        apart = tuple(name for name in request.clips if name not in labelled)
        request = replace(request, clips=labelled)
    sources = sources_of(request.clips, request.groups)
    count = len(set(sources.values()))
    if count < FEWEST_CLIPS:
        raise InputError(
            f"{len(request.clips)} clips of {count} source{'s' * (count != 1)} given; clips of one source count as one, and "
            f"{FEWEST_CLIPS} are needed; give more videos, or say with --groups which belong together"
        )
    return Sample(request, apart, sources)


def sources_of(names: Sequence[str], listed: Path | None = None) -> dict[str, str]:
    """Return the source of each clip: as listed, else its name up to ``-part2``, ``_seg03``, ``.chunk1`` and the like.

    Parameters
    ----------
    listed
        File with lines ``clip,source``; clips that it leaves out are their own sources.

    Raises
    ------
    InputError
        It can't be read, a line has not two fields, or a clip has two sources.

    Warns
    -----
    LeftOut
        It names what is none of the clips.

    Examples
    --------
    >>> sources_of(["yard-part1", "yard-part2", "made-smooth-1"])
    {'yard-part1': 'yard', 'yard-part2': 'yard', 'made-smooth-1': 'made-smooth-1'}
    """
    if listed is None:
        return {name: PART.sub("", name) or name for name in names}
    try:
        rows = list(csv.reader(listed.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError):
        raise InputError(
            f"groups {listed} can't be read; expected a text file with lines clip,source; correct the path"
        ) from None
    found: dict[str, str] = {}
    for row in filter(None, rows):
        if len(row) != 2:
            raise InputError(
                f"groups {listed} has the line {','.join(row)!r}; expected clip,source; correct it"
            )
        clip, source = (cell.strip() for cell in row)
        if found.setdefault(clip, source) != source:
            raise InputError(
                f"groups {listed} puts {clip} with {found[clip]} and with {source}; expected one source a clip; correct it"
            )
    if unknown := [clip for clip in found if clip not in names]:
        tell_left_out([f"groups {listed} names {some_of(unknown)}, which no clip taken is called"])
    return {name: found.get(name, name) for name in names}


def losses_of(
    outcomes: Mapping[str, Any], settings: Sequence[str], risk: Risk
) -> NDArray[np.float64]:
    """Loss in points by clip and setting, ``[clips, settings]``: of J&F, or of agreement with the dense run."""

    def lost(run: Mapping[str, Any]) -> float:
        return float(run["loss"] if risk == "loss" else 100 - run["quality"]["agreement"])

    return np.array([[lost(runs[name]) for name in settings] for runs in outcomes.values()])
