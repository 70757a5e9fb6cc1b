"""What a calibration says beside its figures: what so many clips can promise, what was promised, and what limited it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import product
from typing import Any

import numpy as np
from tqdm import tqdm

from probes.errors import InputError
from sparsity.calibration.bounds import (
    APPROXIMATE,
    CERTAIN,
    FEW,
    HEADROOM,
    WITHOUT_LEVEL,
    Choice,
    certain_bound,
    coverage_at,
    holds,
    kind_for,
    largest_share,
    smallest_certifiable,
    spared,
    videos_needed,
)
from sparsity.calibration.cost import Cost
from sparsity.calibration.ledger import level_of
from sparsity.calibration.request import Request, Risk
from sparsity.calibration.search import Candidate, describe, units_of
from sparsity.calibration.thresholds import MARGINS, WHICH, covered, mask_only
from sparsity.calibration.traces import Trace
from sparsity.clips.sources import MADE_FRAMES, ClipSource
from sparsity.profile import Profile, Promise, percent

WORTH_HAVING = 1.1
"""Times fewer operations under which a profile isn't worth its bother."""

FEWEST_FRAMES = 4
"""A prompt, two dense frames and one that can be routed."""

HALVINGS = 10
"""Of the accepted loss, in looking for what a certain bound carries."""


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
    if clip.num_frames < FEWEST_FRAMES:
        raise InputError(
            f"{name} has {clip.num_frames} frames; expected {FEWEST_FRAMES} or more, of which one can be routed; "
            "leave it out"
        )
    dict(clip.truth or {})  # reads all masks
    for t in range(
        clip.num_frames
    ):  # and all pictures: one that is cut off is named before hours of work
        clip.video.frame(t)
    return Look(clip.num_frames, made=False, labelled=clip.truth is not None)


def unit_of(looks: Iterable[Look], risk: Risk = "loss") -> str:
    """Say what a mean loss over clips is the mean of."""
    kinds = Counter("made clip" if one.made else "video" for one in looks)
    if len(kinds) == 1:
        over = f"{next(iter(kinds))}s"
    else:
        named = [f"{n} {kind}{'s' * (n != 1)}" for kind, n in sorted(kinds.items(), reverse=True)]
        over = " and ".join(named)
    points = "J&F points" if risk == "loss" else "points of agreement with the dense run"
    return f"{points}, mean over {over}"


def check_reach(request: Request, count: int) -> None:
    """Refuse a certain bound that `count` clips don't bring within the accepted loss, whatever happens on them.

    Raises
    ------
    InputError
        It is larger than `max_drop` even where no clip loses anything.
    """
    if request.bound != "certain" or math.isinf(request.level):
        return
    least = smallest_certifiable(count, request.confidence)
    if least > request.level:
        needed = videos_needed(request.level, request.confidence)
        raise InputError(
            f"bound certain and {request.option} {request.level:g} given; {count} clips for the promise, two thirds of "
            f"all, can't state less than {least:.1f} points; expected {needed} or more; give more videos, a larger "
            f"--{request.option}, or --bound share"
        )


def certifiable(request: Request, count: int, question: int = 1) -> str:
    """Say what `count` clips can promise, before anything is run; later questions of the same clips are asked at a part of
    the level."""
    level, confidence = request.level, level_of(question, request.confidence)
    kind = request.bound or kind_for(count, confidence, level)
    least = certain_bound(np.zeros(count), confidence, level).upper
    said = f"question {question} of these clips: " if question > 1 else ""
    said += (
        f"{count} clips for the promise can certify a mean loss of {least:.1f} points at "
        f"{percent(request.confidence)} at best"
    )
    finite = math.isfinite(level)
    if kind == "certain":
        said += ", whatever the videos are."
        return said if not finite else f"{said} {_carried(count, confidence, level)}"
    if finite:
        said += f"; certifying {level:g} takes {videos_needed(level, confidence)} clips"
    if request.bound is None:
        enough = videos_needed((level if finite else WITHOUT_LEVEL) / HEADROOM, confidence)
        said += f"; from {enough} clips on the bound is a certain one"
    if kind == "share":
        lost = spared(count, confidence) if finite else 0
        over = f"{level:g} points" if finite else "the worst of them"
        share = largest_share(lost, count, confidence)
        said += (
            f". Here it is of the share of videos: at {percent(request.confidence)}, at most {share:.0%} lose more than {over}, "
            "which is exact"
        )
        if finite:
            said += (
                f" and asks that {lost or 'none'} of these do at most"
                if lost
                else " and asks that none of these do"
            )
        if count < FEW:
            return f"{said}; {count} clips are too few for a bound on their mean."
        return f"{said}; beside it the mean's bound is approximate ({_approximate(count)})."
    return f"{said}. Here it is approximate ({_approximate(count)}): it can't know of kinds of videos not given."


def _approximate(count: int) -> str:
    """Say what the approximate bound is worth."""
    return f"Student t and BCa; in simulation it covered {coverage_at(count):.0%} at worst"


def _carried(count: int, confidence: float, level: float) -> str:
    """Say up to which mean loss a certain bound stays within the level, where all videos lose the same."""
    low, high = 0.0, level
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        holds = certain_bound(np.full(count, middle), confidence, level).upper <= level
        low, high = (middle, high) if holds else (low, middle)
    return (
        f"It stays within {level:g} where they lose {low:.2g} points on average, all alike; uneven losses may take "
        "less."
    )


def kept_shares(runs: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Windows and keys that runs kept, mean shares over clips."""
    kept = [(run["quality"]["windows_kept"], run["quality"]["keys_kept"]) for run in runs]
    windows, keys = np.mean(kept, axis=0).tolist()
    return windows, keys


def promise_of(
    request: Request, choice: Choice, runs: Sequence[Mapping[str, Any]], unit: str, question: int
) -> Promise:
    """Say what is promised of the setting that was chosen.

    Parameters
    ----------
    runs
        Of it on the clips of the promise, as `sparsity.evaluation.evaluate.ClipWork` returned them.
    question
        Number of this one among those that were asked of these clips.
    """
    found, tail = choice.promise, choice.promise.tail
    windows, keys = kept_shares(runs)
    return Promise(
        mean_loss=round(found.mean, 4), upper_bound=round(found.upper, 4),
        confidence=request.confidence, method=found.method, clips=found.videos, unit=unit,
        risk=request.risk, question=question,
        share=None if tail is None else round(tail.share, 4),
        over=None if tail is None else round(tail.over, 4),
        coverage=coverage_at(found.videos) if found.method == APPROXIMATE else None,
        expected_windows=round(windows, 4), expected_keys=round(keys, 4),
    )  # fmt: skip


def stated(
    request: Request,
    chosen: Profile | None,
    choice: Choice,
    outcomes: dict[str, Any],
    traces: Sequence[Trace],
    cost: Cost | None,
    looks: Sequence[Look],
    question: int,
    tested: Sequence[Candidate],
) -> Profile:
    """Return the chosen setting with its promise; every window and key where none holds.

    Parameters
    ----------
    outcomes
        By clip of the promise and setting, as `sparsity.evaluation.evaluate.ClipWork` returned them.
    cost
        Of the base that it builds on.
    looks
        At the clips of the promise.
    question
        Number of this one among those that were asked of these clips.
    tested
        All that were tested, in order.
    """
    unit = unit_of(looks, request.risk)
    if chosen is None or cost is None:
        promise = Promise(
            mean_loss=0.0, upper_bound=0.0, confidence=request.confidence,
            method="every window and key is computed", clips=len(outcomes), unit=unit,
            risk=request.risk, question=question,
            expected_windows=1.0, expected_keys=1.0, expected_speedup=1.0,
        )  # fmt: skip
        profile = Profile(name="calibrated", exact=True, graphs=True)
    else:
        runs = [of_clip[chosen.name] for of_clip in outcomes.values()]
        promise = promise_of(request, choice, runs, unit, question)
        assert promise.expected_windows is not None and promise.expected_keys is not None
        speedup = 1 / cost(promise.expected_windows, promise.expected_keys)
        promise = promise.model_copy(update={"expected_speedup": round(speedup, 3)})
        profile = chosen
    made_by = made_by_of(request) | {"recordings": {trace.name: trace.digest for trace in traces}}
    safer = next_safer(choice, tested)
    if safer is not None:
        made_by["safer"] = safer.model_dump(mode="json", by_alias=True, exclude={"adapter"})
    return profile.model_copy(update={"name": "calibrated", "promise": promise, "made_by": made_by})


def next_safer(choice: Choice, tested: Sequence[Candidate]) -> Profile | None:
    """Return the cheapest other setting that holds and lost less than the chosen one, which a watch falls back to."""
    if choice.index is None:
        return None
    chosen = choice.bounds[choice.index].mean
    lower = [i for i in choice.held if choice.bounds[i].mean < chosen]
    at = min(lower, key=lambda i: tested[i].cost, default=None)
    return None if at is None else tested[at].profile.model_copy(update={"name": "next safer"})


def made_by_of(request: Request) -> dict[str, Any]:
    """What was asked, of what, with what."""
    return {
        "versions": {name: version(name) for name in ("efficient-sam2", "sam2", "torch", "mapie")},
        "clips": list(request.clips),
        "settings": asked_by(request),
        "seed": request.seed,
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def asked_by(request: Request) -> dict[str, Any]:
    """What makes a request another question, beside its clips and its model."""
    named = (
        "max_drop", "max_drift", "target_speedup", "bound", "budget", "adapter", "base"
    )  # fmt: skip
    return {name: getattr(request, name) for name in named}


def limits(
    request: Request, choice: Choice, tested: Sequence[Candidate], speedup: float = math.inf
) -> list[str]:
    """Say what kept the profile from being faster.

    Parameters
    ----------
    speedup
        Times fewer operations of the profile.
    """
    if request.target_speedup is not None:
        return []
    failed = [i for i, one in choice.bounds.items() if not holds(one, request.level)]
    if not failed:
        said = ["limit    none: every tested setting holds; a larger --budget tries more"]
    else:
        bound = choice.bounds[failed[0]]
        over = f"bound {bound.upper:.2f} over {request.level:g}"
        if bound.tail is not None and bound.tail.lost > spared(bound.videos, bound.confidence):
            over = f"{bound.tail.lost} of {bound.videos} clips lose more than {request.level:g}"
        said = [
            f"limit    {describe(tested[failed[0]].profile)}: mean loss {bound.mean:+.2f}, {over}"
        ]
    ways = f"more videos, or a larger --{request.option}"
    if choice.index is None:
        if bound.method in CERTAIN.values():
            ways = f"more videos, a larger --{request.option}, or --bound share, which asks for less than a mean"
        elif bound.tail is not None and bound.videos >= FEW:
            ways = (
                f"more videos, a larger --{request.option}, or --bound approximate, which takes these videos to show every "
                "kind there is"
            )
        said.append(
            f"no setting holds: the profile computes every window and reads every key; give {ways}"
        )
    elif speedup < WORTH_HAVING:
        said.append(f"{speedup:.2f}x is not worth having: use the profile exact; or give {ways}")
    return said


def apart(request: Request, drift: Sequence[float]) -> list[str]:
    """Say how clips without true masks fared, which are counted apart.

    Parameters
    ----------
    drift
        Points of agreement that the chosen setting lost on each.
    """
    if not len(drift):
        return []
    least = largest_share(0, len(drift), request.confidence)
    return [
        f"apart    {len(drift)} clips without true masks: {np.mean(drift):.2f} points of agreement with the dense run lost on "
        f"average; at {percent(request.confidence)}, at most {least:.0%} of such videos lose more than {max(drift):.2f} (exact)"
    ]


def row(c: Candidate) -> dict[str, Any]:
    """A setting and what replays say of it."""
    return {
        "name": c.profile.name,
        "said": describe(c.profile),
        "windows": c.windows,
        "keys": c.keys,
        "cost": c.cost,
        "recall": c.recall,
    }


def coverage(traces: Sequence[Trace]) -> list[dict[str, Any]]:
    """Windows kept and tokens covered, by unit, masks and margin."""
    rows = []
    for unit, which, margin in product(units_of(traces), WHICH, MARGINS):
        kept, recall = covered(traces, mask_only(margin, which, unit))
        named = {"unit": unit, "candidates": which, "margin_px": margin}
        rows.append({**named, "kept": kept, "recall": recall})
    return rows


def recall(traces: Sequence[Trace]) -> dict[str, Any]:
    """Mass recall by layer at the first and the oldest age, by kept share of tokens."""
    memories = [t.memory for t in traces if t.memory is not None]
    if not memories:
        return {}
    curve = np.mean([m.curve[:, [0, -1]] for m in memories], axis=0)  # [layers, 2, tokens]
    tokens = curve.shape[-1]
    picked = np.unique(np.geomspace(1, tokens, 40).astype(int))
    return {
        "share": (picked / tokens).tolist(),
        "ages": [min(m.ages[0] for m in memories), max(m.ages[-1] for m in memories)],
        "layers": curve[:, :, picked - 1].tolist(),
        "exposure": np.mean([m.exposure for m in memories], axis=0).tolist(),
    }
