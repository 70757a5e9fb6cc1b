"""Results as text: means over objects and clips, a data set's own figures, and what profiles promised against what was seen."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sparsity.evaluation.results import Quality, Result, Run
from sparsity.profile import Promise

HEADS = f"{'J&F':>6}{'J':>6}{'F':>6}"
"""Heads of the columns of `three_means`, once."""


def table(result: Result) -> str:
    """Return the runs as text, one a line."""
    width = max(12, *(len(run.name) + 2 for run in result.runs))
    lines = [
        f"{'':{width}}{'over objects':>18}{'over clips':>18}",
        f"{'':{width}}{2 * HEADS}{'agree':>7}{'loss':>7}{'95 %':>15}{'windows':>9}{'keys':>6}",
    ]
    for run in result.runs:
        q = run.quality
        if q is None:
            lines.append(f"{run.name:{width}}{run.why}")
            continue
        agree = "" if q.agreement is None else f"{q.agreement:.1f}"
        loss = "" if q.loss is None else f"{q.loss:+.1f}"
        ends = q.intervals.get("j_and_f" if q.loss is None else "loss")
        between = between_ends(ends)
        lines.append(
            f"{run.name:{width}}{three_means(q)}{agree:>7}{loss:>7}{between:>15}"
            f"{run.windows_kept:9.0%}{run.keys_kept:6.0%}"
        )
    clips, objects = len(result.data.clips), max(run.objects for run in result.runs)
    lines.append(
        f"{clips} clips, {objects} objects; over objects: as DAVIS and YouTube-VOS count; over clips: also agreement, "
        "loss and its interval (dense: of J&F), 95 %"
    )
    figures = {run.name: run.quality.figures for run in result.runs if run.quality is not None}
    lines += figure_lines(result.data.settings.get("rules"), figures, width)
    if "truth" in result.data.settings:
        lines.append(
            "First masks alone were given: J&F, J, F and loss are against the dense run's masks, and say nothing of the truth."
        )
    lines += promise_lines(result)
    if not result.model.trained:
        lines.append("The weights are RANDOM: these figures say nothing about quality.")
    return "\n".join(lines)


def figure_lines(
    rules: str | None, figures: Mapping[str, Mapping[str, float]], width: int
) -> list[str]:
    """Return the further figures of a data set's own rules, a line a run, under their names; none where there are none."""
    heads = list(dict.fromkeys(head for found in figures.values() for head in found))
    cells = {head: max(7, len(head) + 2) for head in heads}
    lines = [f"{rules or '':{width}}{''.join(f'{head:>{cells[head]}}' for head in heads)}"]
    for name, found in figures.items():
        shown = {head: f"{found[head]:.1f}" if head in found else "" for head in heads}
        lines.append(f"{name:{width}}{''.join(f'{shown[h]:>{cells[h]}}' for h in heads)}")
    return lines if heads else []


def between_ends(ends: tuple[float, float] | None) -> str:
    """Return an interval over clips as a cell, which says so where they are too few for one."""
    return "too few" if ends is None else f"{ends[0]:.1f} … {ends[1]:.1f}"


def three_means(quality: Quality) -> str:
    """Return J&F, J and F over objects, then over clips, six letters each."""
    both = (quality.over_objects, quality)
    return "".join(f"{q.j_and_f:6.1f}{q.j:6.1f}{q.f:6.1f}" for q in both)


def promise_lines(result: Result) -> list[str]:
    """Return what each run's profile promises and what was seen of it on these clips, a line each; none without promises."""
    dense = next((run.quality for run in result.runs if run.name == "dense"), None)
    lines = []
    for run in result.runs:
        promised = (run.profile or {}).get("promise")
        if promised is None or run.quality is None or dense is None:
            continue
        promise = Promise.model_validate(promised)
        lines += [
            f"{run.name} promises {promise.text()}",
            f"{run.name} seen     {seen_of(promise, run, dense, result)}",
        ]
    return lines


def seen_of(promise: Promise, run: Run, dense: Quality, result: Result) -> str:
    """Say what a run lost of what its profile's promise is about."""
    assert run.quality is not None, "a run that was scored"
    clips = run.quality.clips
    if promise.risk == "loss" and "truth" in result.data.settings:
        agreed = [100 - (clip.agreement or 0.0) for clip in clips.values()]
        return (
            f"nothing of it: it is of J&F against true masks, and first masks alone were given; {np.mean(agreed):.2f} points of "
            f"agreement with the dense run lost over {len(agreed)} clips"
        )
    if promise.risk == "loss":
        lost = [dense.clips[name].j_and_f - clip.j_and_f for name, clip in clips.items()]
    else:
        lost = [100 - (clip.agreement or 0.0) for clip in clips.values()]
    over = promise.upper_bound if promise.over is None else promise.over
    count = sum(x > over for x in lost)
    said = (
        f"mean loss {np.mean(lost):+.2f} over {len(lost)} clips; {count} lose more than {over:.2f}"
    )
    if promise.share is not None:
        said += (
            f" ({count / len(lost):.0%}; promised at most {promise.share:.0%} of videos like those)"
        )
    made_by = (run.profile or {}).get("made_by") or {}
    own = len(clips.keys() & set(made_by.get("clips", ())))
    return (
        f"{said}; {own} of these clips, by their names, are the calibration's own" if own else said
    )
