"""What the clips behind a promise were like, which of them lost most, and a picture of where.

Losses grow with frames and differ by what is tracked, so a promise says little of videos that are longer, hold more objects or
look otherwise to the model: the profile keeps how they were, and its use warns beyond that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np

from probes.estimates import FEWEST
from probes.frames import Pixels
from sparsity.calibration.report import Look
from sparsity.clips.masks import draw_over
from sparsity.clips.sources import ClipSource
from sparsity.evaluation.evaluate import track
from sparsity.profile import BUILTIN, Profile, Seen, Stratum
from sparsity.work.model import ModelChoice, shared_predictor

WORST = 3
"""Clips that are named and shown."""

ROOM = 0.1
"""Share of a cue's range, and at least that share of its size, by which a video may lie outside it: few videos span little."""

DIGITS = 4


def seen_of(
    looks: Mapping[str, Look], runs: Mapping[str, Mapping[str, Any]], losses: Sequence[float]
) -> Seen:
    """Say what clips were like that a setting was run on.

    Parameters
    ----------
    looks
        By clip.
    runs
        The setting's `sparsity.evaluation.evaluate.Outcome` by clip, as JSON has it.
    losses
        Points that it lost, by clip.
    """
    counts = [len(run["quality"]["objects"]) for run in runs.values()]
    lengths = [looks[name].frames for name in runs]
    cues = {}
    for name in next(iter(runs.values()))["cues"]:
        values = [run["cues"][name] for run in runs.values()]
        low, high = min(values), max(values)
        room = ROOM * max(high - low, abs(high), abs(low))
        cues[name] = round(low - room, DIGITS), round(high + room, DIGITS)
    return Seen(
        frames=(min(lengths), max(lengths)),
        objects=(min(counts), max(counts)),
        cues=cues,
        drift=round(max(100 - run["quality"]["agreement"] for run in runs.values()), DIGITS),
        strata=strata([run["character"] for run in runs.values()], losses),
    )


def strata(
    characters: Sequence[Mapping[str, float]], losses: Sequence[float]
) -> tuple[Stratum, ...]:
    """Split clips in halves by each respect, the lower first.

    Parameters
    ----------
    characters
        Of each clip, see `sparsity.evaluation.evaluate.character`.
    losses
        Points, by clip.
    """
    found = []
    for of in get_args(Stratum.model_fields["of"].annotation):
        values, lost = np.array([one[of] for one in characters]), np.array(losses)
        order = np.argsort(values, kind="stable")
        for half in np.array_split(order, 2):
            if len(half):
                found.append(
                    Stratum(
                        of=of,
                        low=round(float(values[half].min()), DIGITS),
                        high=round(float(values[half].max()), DIGITS),
                        videos=len(half),
                        mean_loss=round(float(lost[half].mean()), DIGITS),
                        worst=round(float(lost[half].max()), DIGITS),
                    )
                )
    return tuple(found)


def told(seen: Seen) -> list[str]:
    """Say where the losses lay, a line for each respect in which one half lost more than the other; of fewer than
    `FEWEST` videos a half nothing is said."""
    said = [f"seen     {_between(seen.frames, 'frame')}, {_between(seen.objects, 'object')}"]
    for low, high in zip(seen.strata[::2], seen.strata[1::2], strict=True):
        more, less = (low, high) if low.mean_loss > high.mean_loss else (high, low)
        enough = min(more.videos, less.videos) >= FEWEST
        if enough and not math.isclose(more.mean_loss, less.mean_loss, abs_tol=0.05):
            said.append(
                f"         more is lost where {more.of} is {'low' if more is low else 'high'} ({more.low:.2g} to "
                f"{more.high:.2g}: {more.mean_loss:+.2f} over {more.videos} clips; else {less.mean_loss:+.2f} over {less.videos})"
            )
    return said


def _between(ends: tuple[int, int], what: str) -> str:
    low, high = ends
    count = f"{low}" if low == high else f"{low} to {high}"
    return f"{count} {what}{'' if high == 1 else 's'}"


def worst_clips(
    runs: Mapping[str, Mapping[str, Any]], losses: Sequence[float]
) -> list[dict[str, Any]]:
    """Return the clips that lost most, with the frame on which they agree least with the dense run."""
    found = []
    for (name, run), lost in sorted(
        zip(runs.items(), losses, strict=True), key=lambda pair: -pair[1]
    )[:WORST]:
        frame, agreed = min(run["by_frame"], key=lambda pair: pair[1])
        found.append({"clip": name, "loss": float(lost), "frame": frame, "agreement": agreed})
    return found


def pictures_of(
    source: ClipSource, choice: ModelChoice, profile: Profile, worst: Sequence[Mapping[str, Any]]
) -> list[Pixels]:
    """Draw the frames of `worst_clips` twice side by side, RGB: with the dense run's masks, and with those of a profile."""
    predictor, pictures = shared_predictor(choice), []
    for row in worst:
        clip, frame, drawn = source.open(row["clip"]), row["frame"], []
        for one in (BUILTIN["exact"], profile):
            with predictor.use(one, force=True), choice.autocast(predictor.device.type):
                mask = track(predictor, clip).masks[frame]
            if mask.ndim == 3:
                mask = (mask * np.arange(1, len(mask) + 1)[:, None, None]).max(0)
            drawn.append(draw_over(clip.video.frame(frame), mask.astype(np.uint8)))
        pictures.append(np.concatenate(drawn, axis=1))
    return pictures
