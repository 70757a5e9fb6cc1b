"""A benchmark as somebody asks for it: which rows, on which clip, routed how; and its result."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from probes.errors import InputError
from probes.video import open_video
from sparsity.acceleration.build import accelerate
from sparsity.acceleration.model.encoder import window_grid
from sparsity.acceleration.model.quantized import why_not_int8
from sparsity.clips.prompt import PromptOptions
from sparsity.clips.sources import Clip, made_clip
from sparsity.evaluation.compiled import without_autotuned_products
from sparsity.evaluation.interleaved import (
    FULL_BANK,
    STOCK,
    Measured,
    Route,
    Variant,
    bench,
    compiled_row,
    fixed_windows,
    ladder,
    untimed,
    windows_of_track,
)
from sparsity.evaluation.meters import environment, model_of
from sparsity.evaluation.results import (
    Data,
    Environment,
    Model,
    Quality,
    Ratio,
    Result,
    Run,
    Times,
    load_result,
)
from sparsity.profile import Profile, load_profile
from sparsity.work.model import ModelChoice

WITHOUT_WEIGHTS = "no weights: random ones say nothing about quality"
NOT_GIVEN = "not given: store one with evaluate and name it with --quality"

SPREAD = (10, 90)
"""Percentiles of the frame-by-frame ratios that a row's ``low`` and ``high`` are."""

SAME_MASKS = {STOCK: ("stock", "dense")}
"""Runs whose masks are bit for bit those of a row, so that their quality is the row's."""


@dataclass(frozen=True)
class Request:
    """What is to be measured; see the options of ``efficient-sam2 bench``.

    Attributes
    ----------
    profiles
        A row each, besides the standard ones.
    rows
        Names of the rows to measure, stock among them; empty for all.
    frames
        That count.
    objects
        Of the made clip, which is tracked unless a `video` with a `prompt` (a mask picture) is given.
    windows, routes
        Fixed windows, or a folder of masks; at most one of them.
    quality
        A stored result of ``evaluate``.
    compile
        Whether to add a row of sam2 as it compiles itself.
    """

    profiles: tuple[str | Path | Profile, ...] = ()
    rows: tuple[str, ...] = ()
    frames: int = 10
    objects: int = 1
    video: str | None = None
    prompt: Path | None = None
    windows: str | None = None
    routes: Path | None = None
    quality: Path | None = None
    compile: bool = False


def run_bench(request: Request, choice: ModelChoice, *, force: bool = False) -> Result:
    """Measure what was asked for.

    Parameters
    ----------
    request, choice
        What to measure, of which model.
    force
        Use profiles that were made for another model.

    Raises
    ------
    InputError
        Something given can't be used; everything is looked at before anything is measured.
    """
    profiles = tuple(load_profile(name) for name in request.profiles)
    stored = None if request.quality is None else load_result(request.quality)
    on_gpu = choice.may_take_a_gpu and torch.cuda.is_available()
    clip = _clip(request, torch.device("cuda" if on_gpu else "cpu"))
    stock = choice.build()
    for profile in profiles:
        accelerate(stock, profile, force=force)
    if force:
        profiles = tuple(p.model_copy(update={"model": None}) for p in profiles)
    trained = choice.trained
    route = _route(request, stock, trained)
    device = stock.device
    variants, not_here = possible_rows(_variants(request, profiles), device)
    dtype = choice.number_format(device.type)
    cells, not_compiled = _compiled(request, stock)
    variants += cells
    stamp = environment(device, dtype)
    model = model_of(choice, stock)
    with without_autotuned_products() if cells and device.type == "cpu" else nullcontext():
        measured = bench(
            stock,
            variants,
            clip,
            timed=request.frames,
            autocast=partial(choice.autocast, device.type),
            route=route,
            share_bank=not trained,
        )
    said = "" if route is None else f"; {route.said}"

    def quality(variant: Variant) -> Quality | str:
        if variant.predictor is not None:
            return _said_of_compiled(device.type) + said
        if not trained:
            return WITHOUT_WEIGHTS + said
        if stored is None:
            return NOT_GIVEN + said
        if (
            route is not None
            and variant.profile is not None
            and variant.profile.routing is not None
        ):
            return (
                route.said.capitalize() + ": their quality is not that of the profile's own routes"
            )
        return stored_quality(stored, dtype, model)(variant)

    made = rows(variants, measured, len(clip.objects), quality)
    return Result(
        environment=Environment(**stamp, compiled=bool(cells)),
        model=model,
        data=Data(
            root=clip.name,
            clips=[clip.name],
            frames=request.frames,
            settings={"route": "the profile's own" if route is None else route.said},
        ),
        runs=made + not_here + not_compiled,
    )


def _compiled(request: Request, stock: Any) -> tuple[list[Variant], list[Run]]:
    """Return the row of compiled sam2, or one that says why there is none."""
    if not request.compile:
        return [], []
    try:
        return [compiled_row(stock)], []
    except InputError as error:
        return [], [Run(name="compiled", frames=0, objects=0, why=str(error))]


def possible_rows(variants: list[Variant], device: torch.device) -> tuple[list[Variant], list[Run]]:
    """Take out the rows in int8 where there is none; say why."""
    why = why_not_int8(device)
    out = [v for v in variants if why and v.profile is not None and v.profile.quantize]
    runs = [Run(name=v.name, frames=0, objects=0, why=f"not measured: {why}") for v in out]
    return [v for v in variants if v not in out], runs


def _said_of_compiled(device: str) -> str:
    """Say what the compiled row is, and why it has no quality of its own."""
    held = ", max-autotune over ATen's products alone" if device == "cpu" else ""
    return f"compiled by sam2's vos_optimized{held}; masks are the eager row's up to rounding"


def _variants(request: Request, profiles: tuple[Profile, ...]) -> list[Variant]:
    every = ladder(profiles)
    for profile in profiles:
        rows_of = [variant.profile for variant in every if variant.name == profile.name]
        if rows_of != [profile]:
            raise InputError(
                f"a profile of the name {profile.name!r} given, which another row has; expected different names; "
                "rename it"
            )
    known = [variant.name for variant in every]
    strange = [name for name in request.rows if name not in known]
    if strange or (request.rows and STOCK not in request.rows):
        raise InputError(
            f"rows {', '.join(request.rows)} given; expected {STOCK}, which the others are compared with, and "
            f"any of {', '.join(known[1:])}; choose among them"
        )
    return [variant for variant in every if not request.rows or variant.name in request.rows]


def _clip(request: Request, device: torch.device) -> Clip:
    """Return the user's clip, or a made one that is long enough."""
    if (request.video is None) != (request.prompt is None):
        raise InputError(
            f"video {request.video} and prompt {request.prompt} given; expected both, or none for a made clip; "
            "add the other"
        )
    if request.video is None or request.prompt is None:
        needed = FULL_BANK + untimed(device) + request.frames
        return made_clip(needed, request.objects)
    if request.prompt.is_dir():
        raise InputError(
            f"prompt {request.prompt} is a folder; expected the mask of the first frame; name the file"
        )
    video = open_video(request.video)
    prompt = PromptOptions(request.prompt, frame=0).check(video)
    return Clip(Path(request.video).name, video, prompt)


def _route(request: Request, stock: Any, trained: bool) -> Route | None:
    if request.windows is not None and request.routes is not None:
        raise InputError(
            f"windows {request.windows} and routes {request.routes} given; expected one of the two; drop one"
        )
    grid = window_grid(stock)
    if request.routes is not None:
        return windows_of_track(request.routes, grid, stock.image_size)
    if request.windows is not None or not trained:
        return fixed_windows(request.windows, grid)
    return None


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
    known = profile.adapter.sha256 is not None
    adapter = profile.adapter.model_copy(update={"file": None} if known else {})
    return profile.model_copy(update={"name": "", "image_size": None, "adapter": adapter})


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
