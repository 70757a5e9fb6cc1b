"""From what a benchmark measured to the rows of its result, and to the table of a result."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from pydantic import ValidationError

from sparsity.evaluation.bench import STOCK, Measured, Variant
from sparsity.evaluation.results import Model, Quality, Ratio, Result, Run, Times
from sparsity.profile import Profile

SPREAD = (10, 90)
"""Percentiles of the frame-by-frame ratios that a row's ``low`` and ``high`` are."""

SAME_MASKS = {STOCK: ("stock", "dense")}
"""Runs whose masks are bit for bit those of a row, so that their quality is the row's."""


def times(seconds: list[float]) -> Times:
    """Median and upper percentiles of frame times, in milliseconds.

    >>> times([0.1, 0.2, 0.3]).median
    200.0
    """
    median, p90, p99 = 1000 * np.percentile(seconds, (50, 90, 99))
    return Times(median=round(median, 3), p90=round(p90, 3), p99=round(p99, 3))


def ratio(stock: list[float], other: list[float]) -> Ratio:
    """How many times faster `other` is: over pairs of neighbouring frames the median, and `SPREAD`.

    >>> ratio([0.2, 0.4], [0.1, 0.1])
    Ratio(median=3.0, low=2.2, high=3.8)
    """
    pairs = np.asarray(stock) / np.asarray(other)
    low, median, high = np.percentile(pairs, (SPREAD[0], 50, SPREAD[1]))
    return Ratio(median=round(median, 4), low=round(low, 4), high=round(high, 4))


def rows(
    variants: list[Variant],
    measured: list[Measured],
    objects: int,
    quality: Callable[[Variant], Quality | str],
) -> list[Run]:
    """Make the rows of a result.

    Parameters
    ----------
    variants, measured
        Side by side; the run named stock is what ratios are against.
    objects
        Tracked at once.
    quality
        Of a variant's masks, or why there is none.
    """
    stock = next(found for found in measured if found.name == STOCK)
    made = []
    for variant, found in zip(variants, measured, strict=True):
        known = quality(variant)
        profile = variant.profile
        made.append(
            Run(
                name=found.name,
                profile=None if profile is None else profile.model_dump(mode="json", by_alias=True),
                frames=len(found.seconds),
                objects=objects,
                ms_per_frame=times(found.seconds),
                ratio=ratio(stock.seconds, found.seconds),
                stages={stage: round(ms, 3) for stage, ms in found.stages.items()},
                flops=found.flops,
                peak_memory_mb=None if found.peak_mb is None else round(found.peak_mb, 1),
                windows_kept=found.windows_kept,
                keys_kept=found.keys_kept,
                prunable_keys_kept=found.prunable_keys_kept,
                quality=None if isinstance(known, str) else known,
                why=known if isinstance(known, str) else None,
            )
        )
    return made


def stored_quality(stored: Result, dtype: str, model: Model) -> Callable[[Variant], Quality | str]:
    """Look rows' quality up in the result of an evaluation.

    Only a run with the same profile, of the same model at the same size in the same number format, says something
    about a row; for stock also the dense run, whose masks are equal.
    """
    same_model = stored.model.fingerprint == model.fingerprint
    same_size = stored.model.image_size == model.image_size
    same_dtype = stored.environment.dtype == dtype

    def look_up(variant: Variant) -> Quality | str:
        if not same_model:
            return "the stored quality is of another model"
        if not same_size:
            return f"the stored quality is at {stored.model.image_size} pixels"
        if not same_dtype:
            return f"the stored quality is of {stored.environment.dtype}"
        for run in stored.runs:
            if run.quality is not None and _same(run, variant):
                return run.quality
        return "not in the stored quality"

    return look_up


def _same(run: Run, variant: Variant) -> bool:
    if variant.profile is None:
        return run.name in SAME_MASKS[STOCK]
    if run.profile is None:
        return False
    try:
        stored = Profile.model_validate(
            run.profile
        )  # settings that are newer than it get their defaults
    except ValidationError:
        return False
    return _deciding(stored) == _deciding(variant.profile)


def _deciding(profile: Profile) -> Profile:
    """What of a profile decides masks: not its name, nor the size it is for, nor where weights of a known hash lie."""
    known = profile.shortcut.sha256 is not None
    shortcut = profile.shortcut.model_copy(update={"file": None} if known else {})
    return profile.model_copy(update={"name": "", "image_size": None, "shortcut": shortcut})


def table(result: Result) -> str:
    """Return the rows as text: time, ratio with spread, operations, shares, and quality or why there is none."""
    width = max(9, *(len(run.name) + 2 for run in result.runs))
    head = (
        f"{'':{width}}{'ms/frame':>9}{'p90':>8}{'p99':>8}{'ratio':>8}{'spread':>14}{'GFLOP':>9}{'MiB':>8}"
        f"{'windows':>9}{'keys':>7}  quality"
    )
    notes = list(dict.fromkeys(run.why for run in result.runs if run.why))
    lines = [_line(run, width, notes) for run in result.runs]
    return "\n".join([head, *lines, *(f"[{i}] {note}" for i, note in enumerate(notes, 1))])


def _line(run: Run, width: int, notes: list[str]) -> str:
    said = f"[{notes.index(run.why) + 1}]" if run.why else ""
    if run.quality is not None:
        loss = run.quality.loss
        said = f"J&F {run.quality.j_and_f:.1f}" + ("" if loss is None else f" (loss {loss:+.1f})")
    if run.ms_per_frame is None or run.ratio is None:
        return f"{run.name:{width}}{'-':>9}  {said}"
    time, gain = run.ms_per_frame, run.ratio
    memory = "-" if run.peak_memory_mb is None else f"{run.peak_memory_mb:.0f}"
    operations = "-" if run.flops is None else f"{run.flops / 1e9:.1f}"
    return (
        f"{run.name:{width}}{time.median:9.0f}{time.p90:8.0f}{time.p99:8.0f}{gain.median:8.2f}"
        f"{f'{gain.low:.2f}..{gain.high:.2f}':>14}{operations:>9}{memory:>8}"
        f"{run.windows_kept or 0:9.0%}{run.keys_kept or 0:7.0%}  {said}"
    )
