"""A benchmark as somebody asks for it: which rows, on which clip, routed how; and its result."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probes.errors import InputError
from probes.models import fingerprint
from probes.video import open_video
from sparsity.acceleration.build import accelerate
from sparsity.acceleration.compiled_predictor import without_autotuned_products
from sparsity.acceleration.encoder import window_grid
from sparsity.demo.clips import make_clip
from sparsity.evaluation.bench import (
    FULL_BANK,
    STOCK,
    Material,
    Variant,
    bench,
    compiled_cells,
    ladder,
    untimed,
)
from sparsity.evaluation.environment import environment
from sparsity.evaluation.results import Data, Environment, Model, Quality, Result, Run, load_result
from sparsity.evaluation.routes import Route, fixed_windows, windows_of_track
from sparsity.evaluation.rows import rows, stored_quality
from sparsity.options import ModelChoice
from sparsity.profile import Profile
from sparsity.profiles import load_profile
from sparsity.prompt import Prompt

CLIP_SIZE = (270, 480)
"""Height and width of the made clip."""

WITHOUT_WEIGHTS = "no weights: random ones say nothing about quality"
NOT_GIVEN = "not given: store one with evaluate and name it with --quality"


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
        Whether to add the compiled cells: sam2 as it compiles itself, and ours.
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
    material = _material(request, torch.device("cuda" if on_gpu else "cpu"))
    stock = choice.build()
    for profile in profiles:
        accelerate(stock, profile, force=force)
    if force:
        profiles = tuple(p.model_copy(update={"model": None}) for p in profiles)
    trained = choice.weights != "random"
    route = _route(request, stock, trained)
    variants = _variants(request, profiles)
    device = stock.device
    dtype = choice.number_format(device.type)
    cells, not_compiled = _compiled(request, stock)
    variants += cells
    stamp = environment(device, dtype)
    model = Model(
        name=str(choice.config or choice.model),
        fingerprint=fingerprint(stock),
        image_size=stock.image_size,
        trained=trained,
    )
    with without_autotuned_products() if cells and device.type == "cpu" else nullcontext():
        measured = bench(
            stock,
            variants,
            material,
            timed=request.frames,
            autocast=partial(choice.autocast, device.type),
            route=route,
            share_bank=not trained,
        )
    said = "" if route is None else f"; {route.said}"

    def quality(variant: Variant) -> Quality | str:
        if variant.predictor is not None:
            return _said_of_compiled(variant, device.type) + said
        if not trained:
            return WITHOUT_WEIGHTS + said
        if stored is None:
            return NOT_GIVEN + said
        if (
            route is not None
            and variant.profile is not None
            and variant.profile.windows is not None
        ):
            return (
                route.said.capitalize() + ": their quality is not that of the profile's own routes"
            )
        return stored_quality(stored, dtype, model)(variant)

    made = rows(variants, measured, len(material.objects), quality)
    return Result(
        environment=Environment(**stamp, compiled=bool(cells)),
        model=model,
        data=Data(
            root=material.name,
            clips=[material.name],
            frames=request.frames,
            settings={"route": "the profile's own" if route is None else route.said},
        ),
        runs=[_explain(run, made) for run in made] + not_compiled,
    )


def _compiled(request: Request, stock: Any) -> tuple[list[Variant], list[Run]]:
    """Return the compiled cells, or a row that says why there are none."""
    if not request.compile:
        return [], []
    try:
        return compiled_cells(stock), []
    except InputError as error:
        return [], [Run(name="compiled", frames=0, objects=0, why=str(error))]


def _said_of_compiled(variant: Variant, device: str) -> str:
    """Say what a compiled row is, and why it has no quality of its own."""
    if variant.profile is not None:
        what = "compiled: encoder and memory's self-attention; the decoder runs eager"
    elif device == "cpu":
        what = "compiled by sam2's vos_optimized, max-autotune over ATen's products alone"
    else:
        what = "compiled by sam2's vos_optimized"
    return what + "; masks are the eager row's up to rounding"


def _explain(run: Run, others: list[Run]) -> Run:
    """Say on a compiled row of ours that it is slower than the eager one, where it is."""
    eager = next((o for o in others if f"{o.name} compiled" == run.name), None)
    times = run.ms_per_frame, eager and eager.ms_per_frame
    if eager is None or eager.name == STOCK or not times[0] or not times[1]:
        return run
    if times[0].median <= times[1].median:
        return run
    return run.model_copy(update={"why": f"{run.why}; slower than eager here"})


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


def _material(request: Request, device: torch.device) -> Material:
    needed = FULL_BANK + untimed(device) + request.frames
    if (request.video is None) != (request.prompt is None):
        raise InputError(
            f"video {request.video} and prompt {request.prompt} given; expected both, or none for a made clip; "
            "add the other"
        )
    if request.video is None or request.prompt is None:
        clip = make_clip("smooth", 1, needed, CLIP_SIZE, request.objects)
        ids = range(1, request.objects + 1)
        return Material(clip.frames, {i: clip.masks[0] == i for i in ids}, "made clip smooth/1")
    source = open_video(request.video)
    masks = Prompt(mask=request.prompt).check(source).masks
    assert masks is not None, "a mask prompt was asked for"
    count = needed if source.num_frames is None else min(needed, source.num_frames)
    frames = np.stack([source.frame(t) for t in range(count)])
    return Material(frames, masks, Path(request.video).name)


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
