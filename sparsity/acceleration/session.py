"""What the accelerated predictor keeps about one video, inside the video's own inference state, and the frame under way.

Nothing about a video lives on the model. Results of an object on a frame (kept memory tokens, routing cues)
lie in the very dict that holds its mask, so they follow it when objects are removed, frames are tracked
anew or results are dropped.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from random import SystemRandom
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from probes.errors import InputError
from probes.layout import MemoryLayout, stored_results
from probes.video import Resize
from sparsity.acceleration.model.memory_attention import Recall
from sparsity.acceleration.model.weights import Version
from sparsity.acceleration.report import FrameReport, ObjectReport, Report
from sparsity.acceleration.watch import Watch
from sparsity.techniques import KEY
from sparsity.techniques.memory_policy import Remembered
from sparsity.techniques.reuse import LastComputed
from sparsity.techniques.routing import Decision, RoutingMemory
from sparsity.techniques.select import WindowGrid

getrandbits = SystemRandom().getrandbits
"""Not the client's random numbers, and others in every process."""

LAST_REPORTED = 10_000
"""Frames that the report keeps of a stream with a bounded history, and of a state that a client made by hand."""

Chosen = tuple[int, ...] | Decision | None
"""Windows to compute, or a decision that may hold some of their cells alone; None for a dense frame."""

History = Literal["full", "bounded"]

Corrections = Literal["stock", "keep"]

WindowChooser = Callable[[int], Chosen]
"""From a frame's index to what is to be computed."""

Outputs = dict[str, dict[int, Any]]
"""An object's results: sam2's ``output_dict``."""

Result = tuple[dict[str, Any], Tensor]
"""What sam2 makes of an object on a frame: the entries it keeps, and mask logits ``[1, 1, H, W]``."""


@dataclass
class Frame:
    """The frame under way: what is decided, made and noted of it on the way down.

    Attributes
    ----------
    state
        The video's; one without entries where a client tracks without a state.
    index, reverse
        Of the frame, and the direction of tracking.
    grid
        Windows of encoder stage 3.
    objects
        Indices of the objects that one pass tracks into it; none where features alone are asked for.
    outputs
        Results of each of these objects: sam2's ``output_dict``.
    decision
        What is computed.
    layouts, recalls
        Of each object's memory: which key is what, and what came of reading it.
    candidates, best, saliency
        What the decoder says for routing: candidate masks ``[objects, M, h, w]``, the chosen ones
        ``[objects, h, w]`` (logits), and decoder saliency ``[objects, grid, grid]``.
    known, ious, taken, marks
        Give what the host has to know of the masks, predicted IoUs ``[objects, M]``, which candidate was taken
        ``[objects]`` where it isn't always the one of the highest of these, and what a memory policy asks of the results
        (`sparsity.techniques.memory_policy.mark_rows`), once they have arrived.
    kept
        What each object's memory holds by a policy; none by stock's.
    """

    state: dict[str, Any]
    index: int
    grid: WindowGrid
    reverse: bool = False
    objects: list[int] = field(default_factory=list)
    outputs: list[dict[str, dict[int, Any]]] = field(default_factory=list)
    decision: Decision = Decision(None, "not tracked")
    layouts: tuple[MemoryLayout, ...] = ()
    recalls: list[Recall] = field(default_factory=list)
    candidates: Tensor | None = None
    best: Tensor | None = None
    saliency: Tensor | None = None
    known: Callable[[], Tensor] | None = None
    ious: Callable[[], Tensor] | None = None
    taken: Callable[[], Tensor] | None = None
    kept: list[Remembered] = field(default_factory=list)
    marks: Callable[[], Tensor] | None = None

    def __post_init__(self) -> None:
        for i in self.objects:
            self.outputs.append(self.state["output_dict_per_obj"][i])
        self.ids = tuple(self.state["obj_idx_to_id"][i] for i in self.objects)
        self.adjacent = self.index + 1 if self.reverse else self.index - 1
        self.before: list[dict[str, Any] | None] = [
            results["non_cond_frame_outputs"].get(self.adjacent) for results in self.outputs
        ]
        """Each object's result on the frame that was tracked before this one, or None."""

    def image(self, index: int) -> Tensor:
        """A frame of the video as the model takes it, ``[3, S, S]``, on its device."""
        found: Tensor = self.state["images"][index].to(self.state["device"])
        return found

    @cached_property
    def picture(self) -> Tensor:
        """This frame's own `image`, read once while it is under way."""
        return self.image(self.index)


@dataclass(frozen=True)
class Made:
    """Says of features in sam2's cache that we made them: by exact rewrites or not, in which version of the encoder, and
    how their picture was resized."""

    exact: bool
    version: Version | None
    resize: Resize


@dataclass(frozen=True)
class RoutedFeatures:
    """Image features of the frame that was encoded last with windows left out, and what made them.

    sam2's own one-frame cache never holds them, so that nobody takes them for dense ones.

    Attributes
    ----------
    cells
        As in `sparsity.techniques.routing.Decision`.
    version
        Of the encoder: its weights and number format, and the edits that were in place.
    image
        ``[3, S, S]``.
    output
        sam2's backbone output.
    """

    frame: int
    cells: tuple[int, ...]
    version: Hashable
    image: Tensor
    output: dict[str, Any]

    def serve(self, frame: int, cells: tuple[int, ...], version: Hashable, image: Tensor) -> bool:
        """Whether they may be used again: not where the client has put another picture there."""
        if (self.frame, self.version, self.cells) != (frame, version, cells):
            return False
        return image is self.image or torch.equal(image, self.image)


@dataclass(frozen=True)
class LastFeatures:
    """Features of the frame that was encoded last: sam2's backbone output, and what made it."""

    frame: int
    output: dict[str, Any]
    made: Made


@dataclass
class Session:
    """Our entry in a video's inference state.

    Attributes
    ----------
    history
        ``"full"`` keeps all results like stock; ``"bounded"`` drops what no future frame can read.
    corrections
        ``"keep"`` makes corrected frames conditioning, and gives out what didn't change; ``"stock"`` does as sam2.
    last_reported
        Frames that the report keeps, the latest ones; None for all.
    chooser
        Chooses windows instead of the profile's rule, when given.
    features
        Those of the last routed frame; a copy does without.
    latest
        Those of the last frame that was encoded, where a profile carries them over.
    published
        The features that we put into sam2's cache last, and what made them; what else is there is the client's.
    decision
        The last decision, after what it is for: frame, direction, profile, and whether windows may be left out.
    ahead
        Results of objects that were tracked together with an earlier one, by object index, with the frame
        and direction they are for.
    routing, last
        What routing remembers, and what every window gave when it was last computed.
    current
        Report of the frame that is being tracked.
    unchanged
        The frame, with the direction, of which a result was last given out without being computed again.
    batch
        The frame that was last encoded in one batch with those of other videos, and how many they were together, until it
        is reported.
    watch
        Over the promise of the profile in use; None where nobody asked for it.
    passes
        Whether one loop takes all objects through a frame just now.
    at_work
        Held by the thread that is at work on the video.
    """

    report: Report
    history: History = "full"
    corrections: Corrections = "stock"
    last_reported: int | None = None
    chooser: WindowChooser | None = None
    features: RoutedFeatures | None = None
    latest: LastFeatures | None = None
    published: tuple[dict[str, Any], Made] | None = None
    decision: tuple[Hashable, Decision] | None = None
    ahead: dict[int, tuple[int, bool, Result]] = field(default_factory=dict)
    routing: RoutingMemory = field(default_factory=RoutingMemory)
    last: LastComputed | None = None
    current: FrameReport | None = None
    unchanged: tuple[int, bool] | None = None
    batch: tuple[int, int] = (-1, 1)
    watch: Watch | None = None
    passes: bool = False

    at_work: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes over: all but the features, which are large and soon made."""
        return {**self.__dict__, "features": None, "passes": False, "at_work": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, at_work=threading.RLock())

    def made(self, features: dict[str, Any]) -> Made | None:
        """What made features that lie in sam2's cache; None where a client put them there."""
        known = self.published
        return known[1] if known is not None and known[0] is features else None

    def take_up(self, made: Made) -> None:
        """Have what frames take over pass for made here and now."""
        if self.last is not None:
            self.last.version = made.version
        if self.latest is not None:
            self.latest = replace(self.latest, made=made)

    def begin_pass(self) -> None:
        """Forget what belongs to an earlier propagation, which may have been abandoned midway."""
        self.ahead.clear()
        self.decision = self.current = None

    def tracked_ahead(self, index: int, frame: int, reverse: bool) -> Result | None:
        """Take the result of an object that was tracked together with an earlier one."""
        found = self.ahead.pop(index, None)
        if found is not None and found[:2] == (frame, reverse):
            return found[2]
        self.ahead.clear()
        return None

    def frame_report(
        self, frame: int, reverse: bool, decision: Decision, grid: WindowGrid
    ) -> FrameReport:
        """The report of a frame, begun when the pass comes to it."""
        current = self.current
        if current is None or (current.frame, current.reverse) != (frame, reverse):
            current = FrameReport(frame, reverse, grid.count, grid.count, None, decision.reason)
            if self.batch[0] == frame:
                current.encoded_together, self.batch = self.batch[1], (-1, 1)
            if self.latest is not None and decision.carried:
                current.carried_from, current.windows, current.windows_kept = (
                    self.latest.frame,
                    [],
                    0,
                )
            if decision.cells is not None:
                windows = grid.windows_of(decision.cells)
                current.windows, current.windows_kept = list(windows), len(windows)
                whole = grid.cells_within(windows)
                if whole > len(decision.cells):
                    current.cells = list(decision.cells)
                    current.trimmed_to = len(decision.cells) / whole
            self.report.frames.append(current)
            if self.last_reported is not None:
                del self.report.frames[: -self.last_reported]
            self.current = current
        return current

    def note_prompts(
        self, state: dict[str, Any], frame: int, reverse: bool, grid: WindowGrid
    ) -> None:
        """Enter objects whose result on this frame is a prompt into the report."""
        per_object = state["output_dict_per_obj"].items()
        prompts = {index: outputs["cond_frame_outputs"].get(frame) for index, outputs in per_object}
        prompted = any(out is not None for out in prompts.values())
        reason = "prompt" if prompted else "tracked by the client's own code"
        if self.unchanged == (frame, reverse) and not prompted:
            reason = "unchanged"
        decision = Decision(None, reason)
        report = self.frame_report(frame, reverse, decision, grid)
        for index, out in prompts.items():
            if out is not None:
                object_id = state["obj_idx_to_id"][index]
                score = float(out["object_score_logits"].max())
                ious = out.get(KEY, {}).get("ious", [])
                report.objects[object_id] = ObjectReport(score, ious=ious)


def check_kept(history: str, corrections: str) -> None:
    """Refuse what is no way to keep results or corrections."""
    for what, given, kinds in (
        ("history", history, get_args(History)),
        ("corrections", corrections, get_args(Corrections)),
    ):
        if given not in kinds:
            first, second = kinds
            raise InputError(
                f"{what} {given!r} given; expected {first!r} or {second!r}; choose one of them"
            )


def check_size(size: Any) -> None:
    """Refuse what is no height and width in pixels."""
    sides = size if isinstance(size, (tuple, list)) else ()
    if len(sides) != 2 or not all(isinstance(side, Integral) and int(side) > 0 for side in sides):
        raise InputError(
            f"size {size!r} given; expected height and width in pixels, whole and above 0, such as (480, 640); give these"
        )


@contextmanager
def alone(session: Session, passes: bool = False) -> Iterator[None]:
    """Hold that no other thread is at work on the same video.

    Parameters
    ----------
    passes
        Whether all objects are tracked through a frame in here, and nobody changes anything between them.

    Raises
    ------
    InputError
        One is.
    """
    if not session.at_work.acquire(blocking=False):
        raise InputError(
            "this video's state is being tracked in another thread; expected one thread at a time on a state; wait for "
            "it, or give each thread a state of its own"
        )
    before = session.passes
    session.passes = passes or before
    try:
        yield
    finally:
        session.passes = before
        session.at_work.release()


def made_from(outputs: dict[str, dict[int, Any]], layout: MemoryLayout, reverse: bool) -> Hashable:
    """Say which results of an object its result on a frame is made from; each has a number, another one with other memory."""
    numbers = []
    for out in stored_results(outputs, layout):
        notes = out.setdefault(KEY, {})
        memory = out["maskmem_features"]  # itself, so that it stays the same in a copy
        if "number" not in notes or notes["number"][1] is not memory:
            notes["number"] = getrandbits(64), memory
        numbers.append(notes["number"][0])
    return reverse, tuple(numbers), layout


def forget_results(
    state: dict[str, Any],
    frame: int,
    reverse: bool,
    reach: int,
    kept: Callable[[Outputs], Collection[int]],
) -> None:
    """Drop results that lie further back than `reach`, that of memory frames and pointers of later frames, but for
    those that an object's memory policy has `kept`."""
    for index, outputs in state["output_dict_per_obj"].items():
        stay = kept(outputs)
        for results in (outputs["non_cond_frame_outputs"], state["frames_tracked_per_obj"][index]):
            old = [t for t in results if (t - frame if reverse else frame - t) > reach]
            for t in old:
                if t not in stay:
                    del results[t]
