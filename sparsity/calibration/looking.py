"""A look at every clip before any work: it opens, its masks fit, how long it is, and what it is held against."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from sparsity.calibration.clips import MADE_FRAMES, ClipSource

TRUE, DENSE = "against true masks", "against the dense run's masks"


@dataclass(frozen=True)
class Look:
    """What a look at a clip finds.

    Attributes
    ----------
    frames
        Its length.
    made
        Whether it is a made clip.
    labelled
        Whether there are true masks to hold a run against.
    """

    frames: int
    made: bool
    labelled: bool


def look(source: ClipSource, names: Sequence[str]) -> dict[str, Look]:
    """Open every video and read its masks; made clips are as they should be.

    Raises
    ------
    InputError
        A clip can't be used; see `ClipSource.open`.
    """
    return {name: _look(source, name) for name in tqdm(names, "looking", unit="clip", disable=None)}


def _look(source: ClipSource, name: str) -> Look:
    if source.is_made(name):
        return Look(MADE_FRAMES, made=True, labelled=True)
    clip = source.open(name)
    return Look(clip.video.num_frames or 0, made=False, labelled=clip.truth is not None)


def unit_of(looks: Iterable[Look]) -> str:
    """Say what a mean loss over clips is the mean of, and what the clips were held against."""
    groups: dict[tuple[str, str], int] = {}
    for one in sorted(looks, key=lambda one: (one.made, not one.labelled)):
        kind = "made clip" if one.made else "video", TRUE if one.labelled else DENSE
        groups[kind] = groups.get(kind, 0) + 1
    measures = {measure for _, measure in groups}
    if len(groups) == 1:
        over = "".join(f"{kind}s" for kind, _ in groups)
    else:
        named = [
            f"{count} {kind}{'s' * (count != 1)}" + (f" {measure}" if len(measures) > 1 else "")
            for (kind, measure), count in groups.items()
        ]
        over = f"{', '.join(named[:-1])} and {named[-1]}"
    against = f", {DENSE}" if measures == {DENSE} else ""
    return f"J&F points, mean over {over}{against}"
