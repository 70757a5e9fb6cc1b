"""Sparse window routing (SWR): its settings, and the decision of one frame, which windows to compute and why.

The decision is pure: what it reads (`FrameCues`) is what the adjacent frame's results and a thumbnail say, so
calibration replays the same decision from a recording.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import Field, FiniteFloat, PositiveInt, model_validator
from torch import Tensor

from probes.video import thumbnail
from sparsity.techniques import Settings, Share
from sparsity.techniques.failure import FailureModel
from sparsity.techniques.select import (
    WindowGrid,
    mask_jump,
    most_changed,
    pictures,
    quantile,
    refreshed_count,
    scene_change,
    smallest_set,
    window_mass,
    windows_of_mask,
)


class Refresh(Settings):
    """A rolling refresh: on every routed frame up to one in `one_in` of the windows left out is computed too.

    Those whose picture changed most since they were computed last, by more than the video's noise; then the others in
    turn, as what they gave depends on the rest of the picture too. None while nothing changes. Not part of the published
    method.
    """

    one_in: PositiveInt


class Routing(Settings):
    """Which parts of encoder stage 3 are computed.

    Attributes
    ----------
    unit
        ``"window"`` computes windows that masks touch whole (paper). ``"cell"`` trims them to the cells of 2 x 2
        tokens that masks touch, `margin_px` included. ``"frame"`` computes frames whole, for `every` alone. Neither is part
        of the published method.
    saliency_mass
        Share of decoder saliency, in (0, 1], that the added windows must hold when a mask is empty or a
        score low (paper: 0.7).
    score_below
        Object-score logit under which the saliency windows are added (authors' code: 5.0).
    margin_px
        Distance in pixels of the model's input by which masks are grown before they choose windows.
    candidates
        ``"all"`` candidate masks of the decoder choose windows (paper), or the ``"best"`` alone.
    refresh
        None leaves out what no mask asks for.
    every
        Features are computed on every so many frames and carried over to those between, on which memory and decoder run
        all the same; but for frames that the guard or a prompt makes dense. Not part of the published method.
    """

    unit: Literal["window", "cell", "frame"] = "window"
    saliency_mass: Share = 0.7
    score_below: FiniteFloat = 5.0
    margin_px: Annotated[FiniteFloat, Field(ge=0)] = 8.0
    candidates: Literal["all", "best"] = "all"
    refresh: Refresh | None = None
    every: PositiveInt = 1

    @model_validator(mode="after")
    def _whole_frames_fit(self) -> Routing:
        if self.unit == "frame" and (self.every == 1 or self.refresh is not None):
            raise ValueError(
                "routing.unit 'frame' leaves no window out; set routing.every to 2 or more and routing.refresh to null, "
                "or choose 'window'"
            )
        return self


class Guard(Settings):
    """When a frame is encoded densely although it could be routed. ``None`` switches a rule off.

    Where a rule sees trouble (all but a refresh and `kept_share`), the frame reads all of its memory too.

    Attributes
    ----------
    refresh_every
        A dense frame at least every so many frames.
    mask_jump
        Dense when 1 - IoU between the two last masks of an object exceeds this, in (0, 1].
    scene_cut
        Dense when the mean absolute difference of the frame's thumbnail to the last one exceeds this,
        in (0, 1] of full scale.
    score_below
        Dense when an object-score logit falls below this, or a mask is empty.
    kept_share
        Dense when routing keeps more than this share of the windows, where it no longer pays.
    failure_above, failure
        Dense when an object's last mask is wrong with a probability of more than this, in (0, 1], by this fitted model;
        both or neither. On a GPU each frame then waits for the masks of the one before.
    """

    refresh_every: PositiveInt | None = None
    mask_jump: Share | None = None
    scene_cut: Share | None = None
    score_below: FiniteFloat | None = None
    kept_share: Share = 0.9
    failure_above: Share | None = None
    failure: FailureModel | None = None

    @model_validator(mode="after")
    def _a_model_for_the_rule(self) -> Guard:
        if (self.failure_above is None) != (self.failure is None):
            raise ValueError(
                "guard.failure_above and guard.failure belong together; give both or neither"
            )
        return self


STILL_SHARE = 0.1
"""Share of a frame's parts, or of the windows left out, whose change is taken for noise: those that changed least."""

ABOVE_NOISE = 3.0
"""How many times that change a window's must be to count: noise differs from place to place."""

STEP = 1 / 255 / 0.226
"""One step of 8 bits in a picture as the model takes it, whose channels are divided by 0.224 to 0.229."""

NOISE_FLOOR = 0.5 * STEP, 3 * STEP
"""What it can be: codecs change still pictures without noise by less than the first, and where nothing stands still, noise
would be mistaken by more than the second."""

RESCUES = ("scene cut", "empty mask", "low score", "mask jump", "likely wrong")
"""Reasons of a dense frame that say a rule of the guard saw trouble."""


@dataclass(frozen=True)
class ObjectCues:
    """What one object's result on the adjacent frame says about the next frame.

    Attributes
    ----------
    touched
        Bool, ``[parts]``: windows or cells, by the unit, that a candidate mask touches, margin included.
    mass
        float32, ``[windows]``: decoder saliency per window, sums to 1; None where no decoder ran.
    score
        Object-score logit.
    jump
        1 - IoU with the mask before it, in [0, 1]; 0 when there is none.
    """

    touched: Tensor
    mass: Tensor | None
    score: float
    jump: float = 0.0


@dataclass(frozen=True)
class FrameCues:
    """All that is known before a frame is encoded.

    Attributes
    ----------
    objects
        One entry per object, by object id; None for an object without a result on the adjacent frame.
    scene_change
        Mean absolute thumbnail difference to the adjacent frame, share of full scale.
    since_dense
        Frames since the last dense one; 1 directly after it.
    since_computed
        Frames since features were computed that can be carried over; None where there are none.
    failure
        Highest probability that an object's mask on the adjacent frame is wrong; 0 where the guard doesn't ask.
    """

    objects: dict[int, ObjectCues | None]
    scene_change: float = 0.0
    since_dense: int = 1
    since_computed: int | None = None
    failure: float = 0.0


@dataclass(frozen=True)
class Decision:
    """Cells of 2 x 2 tokens to compute, ascending; None means a dense frame. A window is its cells.

    `reason` says why, in one or two words.
    """

    cells: tuple[int, ...] | None
    reason: str

    @property
    def rescued(self) -> bool:
        """Whether a rule of the guard saw trouble: the frame is encoded densely and reads all of its memory."""
        return self.reason in RESCUES

    @property
    def carried(self) -> bool:
        """Whether nothing is computed, and the features are those of an earlier frame."""
        return self == CARRIED


CARRIED = Decision(None, "carried over")
"""What is decided of a frame between those whose features are computed."""


@dataclass
class RoutingMemory:
    """What routing remembers of a video from frame to frame.

    Attributes
    ----------
    last_dense
        The last frame that was encoded densely.
    thumbnails
        Of the adjacent and the current frame, while the guard watches for scene cuts.
    pictured
        Pictures of the parts of the frame that was pictured last, with the frame.
    noise
        By how much the stillest parts changed from a frame to the next, on the last frames that weren't repetitions.
    """

    last_dense: int | None = None
    thumbnails: dict[int, Tensor] = field(default_factory=dict)
    pictured: tuple[int, Tensor] | None = None
    noise: deque[float] = field(default_factory=lambda: deque(maxlen=8))

    def see(self, frame: int, image: Callable[[int], Tensor]) -> None:
        """Keep the thumbnail of a frame for the next one: by then a client may have dropped the picture."""
        if frame not in self.thumbnails:
            self.thumbnails = {frame: thumbnail(image(frame))}

    def change_since(self, adjacent: int, frame: int, image: Callable[[int], Tensor]) -> float:
        """How much the picture changed since the adjacent frame, as a share of full scale.

        `image` gives frames as the model takes them, ``[3, S, S]``, by index.
        """
        known = self.thumbnails
        self.thumbnails = {
            index: known[index] if index in known else thumbnail(image(index))
            for index in (adjacent, frame)
        }
        return scene_change(*self.thumbnails.values())

    def pictures_of(self, frame: int, image: Tensor, routing: Routing, grid: WindowGrid) -> Tensor:
        """`sparsity.techniques.select.pictures` of a frame ``[3, S, S]``, made once for its decision and its features."""
        parts = parts_of(routing.unit, grid)
        if self.pictured is None or (self.pictured[0], len(self.pictured[1])) != (
            frame,
            parts.count,
        ):
            self.pictured = frame, pictures(image, parts)
        return self.pictured[1]

    def changes(
        self,
        before: Tensor,
        adjacent: int,
        frame: int,
        image: Tensor,
        routing: Routing,
        grid: WindowGrid,
    ) -> Tensor:
        """How much the picture of each part changed since those `before`, ``[parts]`` on the host; notes the noise.

        One copy from the device, which is waited for.
        """
        seen = self.pictured
        now = self.pictures_of(frame, image, routing, grid)
        olds = [before]
        if seen is not None and seen[0] == adjacent and seen[1].shape == now.shape:
            olds.append(seen[1])
        change, *step = (now - torch.stack(olds)).abs().mean(2).cpu()
        if step and (still := quantile(step[0], STILL_SHARE)) > 0:
            self.noise.append(still)
        return change

    @property
    def noise_floor(self) -> float:
        """Change of a window's picture below which nothing changed but the noise, estimated from the last frames."""
        return max(NOISE_FLOOR[0], _above(max(self.noise, default=0.0)))


def parts_of(unit: str, grid: WindowGrid) -> WindowGrid:
    """The grid cut into what is routed: ``"window"`` or ``"cell"``."""
    return grid.cells if unit == "cell" else grid


def window_of(unit: str, grid: WindowGrid) -> Tensor:
    """Window of each part, int64 ``[parts]``."""
    return grid.window_of_cell if unit == "cell" else torch.arange(grid.count)


def cue_row(
    candidates: Tensor,
    best: Tensor,
    before: Tensor | None,
    saliency: Tensor | None,
    score: float | Tensor,
    grid: WindowGrid,
    routing: Routing,
) -> Tensor:
    """Reduce one object's result to its cues, on the device where it is.

    Parameters
    ----------
    candidates
        Low-resolution logits of all candidate masks, ``[M, h, w]``.
    best
        Low-resolution logits of the mask that was chosen, ``[h, w]``.
    before
        Chosen logits on the frame before, or None.
    saliency
        Decoder attention on the token grid, ``[tokens, tokens]``, or None where no decoder ran.
    score
        Object-score logit.

    Returns
    -------
    Tensor
        float32 ``[parts + windows + 2]``: `touched`, `mass` (NaN for None), `score` and `jump` of `ObjectCues`.
    """
    there = ((candidates if routing.candidates == "all" else best[None]) > 0).any(0)
    touched = windows_of_mask(there, parts_of(routing.unit, grid), routing.margin_px)
    jump = best.new_zeros(()) if before is None else mask_jump(before > 0, best > 0)
    if saliency is None:
        mass = torch.full((grid.count,), torch.nan, device=best.device)
    else:
        mass = window_mass(saliency, grid)
    numbers = torch.stack([torch.as_tensor(score, device=best.device).float(), jump.float()])
    return torch.cat([touched.to(best.device).float(), mass, numbers])


def cues_on_host(rows: Tensor, grid: WindowGrid) -> list[ObjectCues]:
    """Read the `cue_row` of each object, ``[O, parts + windows + 2]``."""
    touched, mass, numbers = rows.cpu().split((rows.shape[1] - grid.count - 2, grid.count, 2), 1)
    unknown = mass.isnan().any(1).tolist()
    each = zip((touched > 0).unbind(), mass.unbind(), unknown, numbers.tolist(), strict=True)
    return [
        ObjectCues(there, None if none else its, score, jump)
        for there, its, none, (score, jump) in each
    ]


def decide(cues: FrameCues, routing: Routing, guard: Guard, grid: WindowGrid) -> Decision:
    """Choose the cells of a frame (method 2.3), unless a rule of the guard asks for a dense one.

    The masks of all objects choose windows together. If no mask touches any, or an object's score is
    below `routing.score_below`, the smallest set of windows that holds `routing.saliency_mass` of each
    object's decoder saliency on the adjacent frame is added. By cells, windows are trimmed to those that masks touch;
    windows that no mask touches stay whole.
    """
    reason = _dense_reason(cues, guard)
    if reason is not None:
        return Decision(None, reason)
    if carries(cues.since_computed, routing):
        return CARRIED
    if routing.unit == "frame":
        return Decision(None, "whole")
    known = [cue for cue in cues.objects.values() if cue is not None]
    touched = torch.stack([cue.touched for cue in known]).any(0)
    of = window_of(routing.unit, grid)
    near = torch.zeros(grid.count, dtype=torch.bool)
    near[of[touched]] = True
    kept = near
    unsure = not bool(near.any()) or min(cue.score for cue in known) < routing.score_below
    if unsure:
        for cue in known:
            if cue.mass is not None:
                kept = kept | smallest_set(cue.mass, routing.saliency_mass)
    if not bool(kept.any()):
        return Decision(None, "nothing to route by")
    if int(kept.sum()) > guard.kept_share * kept.numel():
        return Decision(None, "most windows kept")
    reason = "saliency added" if unsure else "routed"
    return Decision(_cells(touched | (kept & ~near)[of], routing, grid), reason)


def refreshed(
    decision: Decision,
    change: Tensor,
    routing: Routing,
    grid: WindowGrid,
    floor: float = 0.0,
    turn: int = 0,
) -> Decision:
    """Add some of the windows left out or trimmed, whole: those whose parts left out changed most.

    None where no window changed by more than noise, computed ones included. What a codec does to noise adds up, and a key
    frame changes the whole picture at once: windows left out differ from when they were computed for as long as they
    are left out. So noise is also what the stillest of them changed since then.

    Parameters
    ----------
    change
        How much the picture of each part changed since it was computed last, ``[parts]``.
    floor
        Change of a window that is noise at any rate.
    turn
        Index of the frame: windows that did not change take turns.
    """
    assert decision.cells is not None, "dense frames need no refresh"
    assert routing.refresh is not None, "there is a refresh"
    computed, of = computed_parts(decision.cells, routing.unit, grid), window_of(routing.unit, grid)
    left_out = ~computed
    if not bool(left_out.any()):
        return decision
    mean, among = _by_window(change[left_out], of[left_out], grid)
    floor = max(floor, _above(quantile(mean[among], STILL_SHARE)))
    if not bool((_by_window(change, of, grid)[0] > floor).any()):
        return decision
    count = refreshed_count(left_out_windows(computed, routing, grid), routing.refresh.one_in)
    among = among.roll(-turn * count)
    added = most_changed(mean.where(mean > floor, 0.0), tuple(among.tolist()), count)
    whole = torch.zeros(grid.count, dtype=torch.bool)
    whole[list(added)] = True
    return Decision(_cells(computed | whole[of], routing, grid), decision.reason)


def _by_window(change: Tensor, of: Tensor, grid: WindowGrid) -> tuple[Tensor, Tensor]:
    """Mean change of each window's parts, ``[windows]``, given the window each is `of`; and which windows have any."""
    counts = of.bincount(minlength=grid.count)
    total = change.new_zeros(grid.count).index_add_(0, of, change)
    return total / counts.clamp(min=1), torch.nonzero(counts)[:, 0]


def _above(still: float) -> float:
    """The floor that lies above the noise of parts that stand still."""
    return min(ABOVE_NOISE * still, NOISE_FLOOR[1])


def carries(since_computed: int | None, routing: Routing) -> bool:
    """Whether a frame is one between those whose features are computed."""
    return since_computed is not None and 0 < since_computed < routing.every


def computed_parts(cells: tuple[int, ...], unit: str, grid: WindowGrid) -> Tensor:
    """Say which windows or cells some cells are of, bool ``[parts]``."""
    computed = torch.zeros(parts_of(unit, grid).count, dtype=torch.bool)
    computed[list(cells if unit == "cell" else grid.windows_of(cells))] = True
    return computed


def left_out_windows(computed: Tensor, routing: Routing, grid: WindowGrid) -> float:
    """Windows' worth of parts that are not computed."""
    parts_of_window = (grid.window // 2) ** 2 if routing.unit == "cell" else 1
    return int((~computed).sum()) / parts_of_window


def _cells(computed: Tensor, routing: Routing, grid: WindowGrid) -> tuple[int, ...]:
    """The cells of parts, bool ``[parts]``."""
    if routing.unit == "cell":
        return tuple(torch.nonzero(computed)[:, 0].tolist())
    return grid.cells_of(computed)


def _dense_reason(cues: FrameCues, guard: Guard) -> str | None:
    """The first rule that asks for a dense frame, or None."""
    known = [cue for cue in cues.objects.values() if cue is not None]
    if not known or len(known) < len(cues.objects):
        return "no adjacent result"
    if guard.refresh_every is not None and cues.since_dense >= guard.refresh_every:
        return "refresh"
    if guard.scene_cut is not None and cues.scene_change > guard.scene_cut:
        return "scene cut"
    if guard.score_below is not None:
        if any(not bool(cue.touched.any()) for cue in known):
            return "empty mask"
        if min((cue.score for cue in known), default=math.inf) < guard.score_below:
            return "low score"
    if guard.mask_jump is not None and max(cue.jump for cue in known) > guard.mask_jump:
        return "mask jump"
    if guard.failure_above is not None and cues.failure > guard.failure_above:
        return "likely wrong"
    return None
