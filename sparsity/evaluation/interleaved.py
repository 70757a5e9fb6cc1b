"""Time per frame of several runs, interleaved in one process: one frame of each in turn.

Times of separate processes differ by ten per cent on their own, so only ratios of neighbouring frames are
trusted. Every run first gets a full memory bank (the prompt and six more frames, and their pointers); then
come two frames that warm caches and choose memory tokens, one on which operations are counted, one on which
stages are timed and memory is measured, and at last the frames whose time counts.
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tqdm import tqdm

from probes.errors import InputError
from probes.frames import natural_key
from probes.tracking import without_bar
from sparsity.acceleration.build import accelerate
from sparsity.acceleration.session import WindowChooser
from sparsity.clips.drawn import read_mask
from sparsity.clips.sources import Clip
from sparsity.evaluation.compiled import check_compiler, compiled_stock
from sparsity.evaluation.meters import REST, PeakMemory, counted_flops, seconds_of, stage_seconds
from sparsity.profile import BUILTIN, Profile, further_profiles
from sparsity.techniques.routing import Decision, Routing, parts_of
from sparsity.techniques.select import LOW_RES_STRIDE, WindowGrid, windows_of_mask

STOCK = "stock"
"""Name of the run that ratios are against: unmodified sam2."""

FULL_BANK = 8
"""Frames (the prompt is the first) after which a frame reads seven memory frames."""

UNTIMED = 4
"""Frames between the full bank and the first one that counts."""

UNTIMED_ON_GPU = 12
"""The same on a GPU, where what a frame launches is recorded for its sizes: pointers come to the bank up to the sixteenth
frame."""


@dataclass(frozen=True)
class Variant:
    """One row to be measured.

    Attributes
    ----------
    profile
        None: the stock predictor, unmodified.
    predictor
        A compiled predictor with the same weights.
    route
        Windows that are given to this row alone.
    """

    name: str
    profile: Profile | None
    predictor: Any = None
    route: Route | None = None


@dataclass
class Measured:
    """What was measured of one variant.

    Attributes
    ----------
    seconds
        Of the frames that count, in order; frame by frame neighbours of those of the other variants.
    stages
        Milliseconds of one more frame by stage of the model.
    flops
        Of one more frame; None where it runs compiled, which can't be counted.
    peak_mb
        Peak memory of the process while this variant's frame was computed, in MiB; the weights and the
        states of all variants are in it.
    windows_kept, keys_kept, prunable_keys_kept
        Shares in (0, 1] over the frames that count.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)
    flops: int | None = None
    peak_mb: float | None = None
    windows_kept: float = 1.0
    keys_kept: float = 1.0
    prunable_keys_kept: float = 1.0


def untimed(device: torch.device) -> int:
    """Frames that a device needs between the full bank and the first one that counts."""
    return UNTIMED_ON_GPU if device.type == "cuda" else UNTIMED


def ladder(further: tuple[Profile, ...] = ()) -> list[Variant]:
    """List the standard rows: stock, exact rewrites alone, SWR, SMR, both, and the paper's profile.

    Then a row for each further technique on top of the paper's profile, and one for those that pay together.

    Parameters
    ----------
    further
        More profiles, a row each.
    """
    paper = BUILTIN["paper"]
    plain = {
        "SWR": Profile(name="SWR", routing=paper.routing),
        "SMR": Profile(name="SMR", retrieval=paper.retrieval),
        "SWR + SMR": Profile(name="SWR + SMR", routing=paper.routing, retrieval=paper.retrieval),
    }
    rows = [Variant(STOCK, None), Variant("exact", BUILTIN["exact"])]
    rows += [Variant(name, profile) for name, profile in plain.items()]
    rows.append(Variant("paper", paper))
    rows += [Variant(profile.name, profile) for profile in further_profiles()]
    return rows + [Variant(p.name, p) for p in further if p.name not in {r.name for r in rows}]


def compiled_row(stock: Any) -> Variant:
    """Make the row of sam2 as it compiles itself.

    Raises
    ------
    InputError
        torch can't compile here.
    """
    check_compiler(stock.device)
    return Variant(f"{STOCK} compiled", None, compiled_stock(stock))


def bench(
    stock: Any,
    variants: list[Variant],
    clip: Clip,
    *,
    timed: int,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    route: Route | None = None,
    share_bank: bool = False,
    closely: bool = True,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> list[Measured]:
    """Measure variants side by side.

    Parameters
    ----------
    stock
        sam2's own predictor; the accelerated runs share its modules.
    variants
        Rows; the first one's frames are those that ratios are against.
    clip
        What is tracked, prompted on its first frame: at least ``FULL_BANK + untimed(device) + timed`` frames.
    timed
        Frames that count.
    autocast
        Makes the context in which everything runs.
    route
        Windows that are given instead of found.
    share_bank
        Fill the memory bank once and give each variant a copy, instead of letting each track from the prompt:
        for random weights, where what is remembered doesn't matter but a full bank does.
    closely
        Whether to time stages and measure memory, on a frame of its own.
    say
        Told how long it will take: roughly after the first frames, better once all variants have run.

    Raises
    ------
    InputError
        The clip is too short, or a profile doesn't fit the model.
    """
    untimed_frames = untimed(stock.device)
    needed = FULL_BANK + untimed_frames + timed
    if clip.num_frames < needed:
        raise InputError(
            f"{clip.name} has {clip.num_frames} frames; expected {needed}, of which {timed} count; "
            "give a longer video or fewer frames"
        )
    if not clip.objects:
        raise InputError(f"{clip.name} has no object on its first frame; expected one; prompt it")
    with torch.inference_mode(), autocast():
        runners = _runners(stock, variants, clip, needed, route, share_bank, say)
        for runner in runners:
            runner.step()  # casts weights, chooses memory tokens by the row's own settings
        once = sum(runner.step() for runner in runners)
        say(f"about {once * (needed - FULL_BANK - 2):.0f} s to go")
        for runner in runners:
            for _ in range(untimed_frames - UNTIMED):
                runner.step()
            runner.count()
        for runner in runners if closely else ():
            runner.look_closely()
        for frame in tqdm(range(timed), desc="bench", unit="frame", disable=None):
            turn = frame % len(runners)  # who follows whom must not always be the same
            for runner in runners[turn:] + runners[:turn]:
                runner.found.seconds.append(runner.step())
        for runner in runners:
            runner.note_shares(timed)
    return [runner.found for runner in runners]


class _Runner:
    """A variant on its way through the clip."""

    def __init__(self, variant: Variant, predictor: Any, state: dict[str, Any], start: int) -> None:
        self.predictor, self.state = predictor, state
        # what a profile was made for has been checked; hashing the weights again would cost seconds a frame
        self.profile = variant.profile and variant.profile.model_copy(update={"model": None})
        self.found = Measured(variant.name)
        self.compiled = variant.predictor is not None
        self.frames: Iterator[Any] = without_bar(
            predictor.propagate_in_video(state, start_frame_idx=start)
        )

    def use(self) -> AbstractContextManager[Any]:
        """Return the context in which this variant's profile is in use."""
        return nullcontext() if self.profile is None else self.predictor.use(self.profile)

    def step(self) -> float:
        """Track one frame; return its seconds."""
        with self.use():
            return seconds_of(lambda: next(self.frames), self.predictor.device)

    def count(self) -> None:
        """Track one frame and count its operations; compiled ones can't be counted."""
        if self.compiled:
            self.step()
            return
        with counted_flops() as counter:
            self.step()
        self.found.flops = counter.get_total_flops()

    def look_closely(self) -> None:
        """Track one frame; time its stages and measure its memory."""
        peak = PeakMemory(self.predictor.device)
        measurable = peak.reset()
        with stage_seconds(self.predictor) as spent:
            total = self.step()
        self.found.peak_mb = peak.megabytes() if measurable else None
        spent[REST] = total - sum(spent.values())
        self.found.stages = {stage: 1000 * seconds for stage, seconds in spent.items()}

    def note_shares(self, timed: int) -> None:
        """Take down how much was computed on the last frames."""
        if self.profile is None:
            return
        report = self.predictor.report(self.state)
        last = replace(report, frames=report.frames[-timed:])
        self.found.windows_kept = last.windows_share
        self.found.keys_kept = last.keys_share
        self.found.prunable_keys_kept = last.prunable_keys_share


def _runners(
    stock: Any,
    variants: list[Variant],
    clip: Clip,
    needed: int,
    route: Route | None,
    share_bank: bool,
    say: Callable[[str], None],
) -> list[_Runner]:
    """Make a runner of each variant, its memory bank full."""
    for variant in variants:
        if variant.profile is not None:
            accelerate(stock, variant.profile)  # refuses what doesn't fit
    accelerated = accelerate(stock, "dense")
    start = accelerated.init_state(clip.video)
    # frames are decoded before the clock starts, for all alike
    start["images"] = torch.stack([start["images"][t] for t in range(needed)])

    def runner(variant: Variant, state: dict[str, Any], at: int) -> _Runner:
        predictor = variant.predictor or (stock if variant.profile is None else accelerated)
        given = variant.route or route
        rule = None if variant.profile is None else variant.profile.routing
        accelerated.choose_windows(state, given.chooser(rule) if given and rule else None)
        return _Runner(variant, predictor, state, at)

    eager = [variant for variant in variants if variant.predictor is None]
    frames = FULL_BANK + len(variants) * (needed - FULL_BANK)
    frames = frames if share_bank else len(variants) * needed

    def begun(variant: Variant) -> _Runner:
        begins = runner(variant, _copy(start), 0)
        with begins.use():
            clip.give_to(begins.predictor, begins.state)
        for frame in range(FULL_BANK):
            seconds = begins.step()
            if frame == 2 and variant is (eager[-1] if share_bank else variants[0]):
                rows = ", ".join(each.name for each in variants)
                say(f"{len(variants)} rows ({rows}): about {seconds * frames:.0f} s in all")
        return begins

    if not share_bank:
        return [begun(variant) for variant in variants]
    full = begun(eager[-1]).state
    return [runner(variant, _copy(full), FULL_BANK) for variant in variants]


def _copy(state: dict[str, Any]) -> dict[str, Any]:
    """Copy a video's state; the frames are shared, image features are computed anew."""
    images = {id(state["images"]): state["images"]}
    return copy.deepcopy({**state, "cached_features": {}}, images)


@dataclass(frozen=True)
class Route:
    """What is given to the rows of a benchmark.

    Attributes
    ----------
    chooser
        From a row's rule to the windows of each frame.
    said
        What to say about them on the rows.
    """

    chooser: Callable[[Routing], WindowChooser]
    said: str


def central_windows(grid: WindowGrid, count: int) -> tuple[int, ...]:
    """Choose the `count` windows nearest to the centre of the window grid; among equals the lower index.

    >>> central_windows(WindowGrid(64, 16), 4)
    (5, 6, 9, 10)
    """
    middle = (grid.side - 1) / 2

    def distance(window: int) -> tuple[float, int]:
        row, column = divmod(window, grid.side)
        return (row - middle) ** 2 + (column - middle) ** 2, window

    return tuple(sorted(sorted(range(grid.count), key=distance)[:count]))


def fixed_windows(text: str | None, grid: WindowGrid) -> Route:
    """Read ``"KEPT/TOTAL"``; None keeps a quarter of the windows.

    Raises
    ------
    InputError
        The text is no such pair, or the model has another number of windows.
    """
    if text is None:
        text = f"{max(1, round(grid.count / 4))}/{grid.count}"
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if match is None:
        raise InputError(
            f"windows {text!r} given; expected KEPT/TOTAL such as {max(1, round(grid.count / 4))}/{grid.count}; "
            "write it so"
        )
    kept, total = int(match[1]), int(match[2])
    if total != grid.count or not 1 <= kept <= total:
        raise InputError(
            f"windows {text} given; this model has {grid.count} windows at its image size; expected 1 to "
            f"{grid.count} of {grid.count}; choose such a number"
        )
    windows = central_windows(grid, kept)
    return Route(lambda rule: lambda frame: windows, f"fixed windows {kept}/{total}")


def windows_of_track(folder: Path, grid: WindowGrid, image_size: int) -> Route:
    """Route each frame by the masks of the frame before it, from a folder of indexed PNG, one a frame.

    Margins are those of each row's own rule, and windows are trimmed where it says so.

    Raises
    ------
    InputError
        The folder has no masks.
    """
    files = sorted(folder.glob("[!.]*.png"), key=lambda file: natural_key(file.stem))
    if not files:
        raise InputError(
            f"routes {folder} given; expected a folder of PNG masks, one a frame; name one"
        )
    masks = [read_mask(file) for file in files]

    def chooser(rule: Routing) -> WindowChooser:
        chosen = [cells_of_ids(ids, grid, image_size, rule) for ids in masks]
        return lambda frame: chosen[min(frame, len(chosen)) - 1] if frame else Decision(None, "")

    return Route(chooser, f"windows of the masks in {folder.name}")


def cells_of_ids(
    ids: NDArray[np.uint8], grid: WindowGrid, image_size: int, rule: Routing
) -> Decision:
    """Choose the cells that any object of an id map ``[H, W]`` touches; a dense frame where there is no object."""
    side = image_size // LOW_RES_STRIDE
    there = torch.from_numpy(ids > 0).float()[None, None]
    low = F.interpolate(there, (side, side), mode="area")[0, 0] > 0
    hit = windows_of_mask(low, parts_of(rule.unit, grid), rule.margin_px)
    if rule.unit == "window":
        return Decision(grid.cells_of(hit) or None, "given")
    return Decision(tuple(torch.nonzero(hit)[:, 0].tolist()) or None, "given")
