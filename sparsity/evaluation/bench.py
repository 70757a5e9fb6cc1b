"""Time per frame of several runs, interleaved in one process: one frame of each in turn.

Times of separate processes differ by ten per cent on their own, so only ratios of neighbouring frames are
trusted. Every run first gets a full memory bank (the prompt and six more frames, and their pointers); then
come two frames that warm caches and choose memory tokens, one on which operations are counted, one on which
stages are timed and memory is measured, and at last the frames whose time counts.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from probes.errors import InputError
from sparsity.acceleration.build import accelerate
from sparsity.acceleration.compiled_predictor import compiled_stock
from sparsity.evaluation.flops import counted_flops
from sparsity.evaluation.routes import Route
from sparsity.evaluation.timing import REST, PeakMemory, seconds_of, stage_seconds
from sparsity.profile import Profile
from sparsity.profiles import BUILTIN
from sparsity.techniques import further_profiles

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
class Material:
    """What is tracked: frames uint8 ``[T, H, W, 3]`` and the objects on the first one, bool ``[H, W]`` by id."""

    frames: NDArray[np.uint8]
    objects: dict[int, NDArray[np.bool_]]
    name: str


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
        "SWR": Profile(name="SWR", windows=paper.windows),
        "SMR": Profile(name="SMR", memory=paper.memory),
        "SWR + SMR": Profile(name="SWR + SMR", windows=paper.windows, memory=paper.memory),
    }
    rows = [Variant(STOCK, None), Variant("exact", BUILTIN["exact"])]
    rows += [Variant(name, profile) for name, profile in plain.items()]
    rows.append(Variant("paper", paper))
    rows += [Variant(profile.name, profile) for profile in further_profiles()]
    return rows + [Variant(p.name, p) for p in further if p.name not in {r.name for r in rows}]


def compiled_cells(stock: Any) -> list[Variant]:
    """List the compiled rows: sam2 as it compiles itself, and ours, exact alone and with the paper's profile.

    Raises
    ------
    InputError
        torch can't compile here.
    """
    ours = accelerate(stock, "dense", compiled=True)
    profiles = (BUILTIN["exact"], BUILTIN["paper"])
    return [
        Variant(f"{STOCK} compiled", None, compiled_stock(stock)),
        *(Variant(f"{profile.name} compiled", profile, ours) for profile in profiles),
    ]


def bench(
    stock: Any,
    variants: list[Variant],
    material: Material,
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
    material
        At least ``FULL_BANK + untimed(device) + timed`` frames.
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
    if len(material.frames) < needed:
        raise InputError(
            f"{material.name} has {len(material.frames)} frames; expected {needed}, of which {timed} count; "
            "give a longer video or fewer frames"
        )
    if not material.objects:
        raise InputError(
            f"{material.name} has no object on its first frame; expected one; prompt it"
        )
    with torch.inference_mode(), autocast():
        runners = _runners(stock, variants, material, needed, route, share_bank, say)
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
        self.frames: Iterator[Any] = predictor.propagate_in_video(state, start_frame_idx=start)

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
    material: Material,
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
    start = accelerated.init_state(material.frames[:needed])
    # frames are decoded before the clock starts, for all alike
    start["images"] = torch.stack([start["images"][t] for t in range(needed)])

    def runner(variant: Variant, state: dict[str, Any], at: int) -> _Runner:
        predictor = variant.predictor or (stock if variant.profile is None else accelerated)
        given = variant.route or route
        rule = None if variant.profile is None else variant.profile.windows
        accelerated.choose_windows(state, given.chooser(rule) if given and rule else None)
        return _Runner(variant, predictor, state, at)

    eager = [variant for variant in variants if variant.predictor is None]
    frames = FULL_BANK + len(variants) * (needed - FULL_BANK)
    frames = frames if share_bank else len(variants) * needed

    def begun(variant: Variant) -> _Runner:
        begins = runner(variant, _copy(start), 0)
        with begins.use():
            for object_id, mask in material.objects.items():
                begins.predictor.add_new_mask(begins.state, 0, object_id, mask)
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
