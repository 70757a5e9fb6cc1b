"""Memory policies: which of the tracked frames an object's memory holds, in place of the newest ones, and which of the masks.

SAM 2 reads the prompt and the newest ``num_maskmem - 1`` frames, good or bad: while an object is hidden or has been taken
for another, they soon show nothing else. A policy keeps as many frames and chooses them, object by object. It goes from
frame to frame: those kept so far and the one just tracked, of which one may have to go. So a choice needs no frame that
isn't kept, and memory stays flat. Conditioning frames and object pointers are read as ever.

Of a tracked frame the decoder makes several candidate masks and SAM 2 takes, and remembers, the one of the highest predicted
IoU. Where that one is unstable, a policy may take the most stable one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import FiniteFloat, PositiveInt
from torch import Tensor

from sparsity.techniques import KEY, Settings, Share

NAME = "memory_policy"
"""Under which a result remembers what the policy keeps."""

Box = tuple[float, float, float, float]
"""Centre x and y, width and height, in shares of the frame."""

Results = Mapping[str, Mapping[int, dict[str, Any]]]
"""An object's results, sam2's ``output_dict``."""


class MemoryPolicy(Settings):
    """Which tracked frames stay in memory. The newest is always read; none of these is part of the published method.

    ``recent``
        Stock: the newest ones.
    ``quality``
        The newest good ones. A frame is good where the object is there (`score_above`), its mask is trusted
        (`iou_above`) and lies where the last ones were heading (`motion_above`): the motion-aware memory selection of
        SAMURAI (Yang et al., arXiv 2411.11922), whose choice among candidate masks by motion is not made here.
    ``distractor``
        The newest good ones and, in what `recent` leaves of memory, anchors: good frames on which another candidate
        mask reached far beyond the chosen one, so a look-alike was near and told apart. The two parts of memory are
        DAM4SAM's (Videnovic et al., arXiv 2411.17576); anchors keep their age here.
    ``spread``
        Good ones that look least alike, by the cosine of their object pointers: of the two most alike the older goes.
        Keeping points far apart is Gonzalez's (1985) farthest-point rule, here one frame at a time.

    Attributes
    ----------
    recent
        Frames that stay for being the newest good ones, of ``distractor`` and ``spread``.
    score_above
        Object-score logit.
    iou_above
        IoU that the decoder predicts for its mask.
    motion_above
        IoU of the mask's box with the one that constant velocity predicts, in [0, 1).
    anchor_iou_above
        As `iou_above`, of anchors.
    anchor_box_below
        An anchor's box has at most this share of the area of one that holds another candidate mask too.
    anchor_gap
        Frames between anchors, at least.
    stable_below
        Where the candidate mask of the highest predicted IoU is less stable than this, the most stable one is taken in its
        place, given out and remembered (`stability`); of any kind, None for never. SAM 2 falls back on candidates in the same
        way where a single mask is unstable (``dynamic_multimask_via_stability``), but chooses among them by predicted
        IoU alone.
    """

    kind: Literal["recent", "quality", "distractor", "spread"] = "recent"
    recent: PositiveInt = 3
    score_above: FiniteFloat = 0.0
    iou_above: FiniteFloat = 0.5
    motion_above: FiniteFloat = 0.0
    anchor_iou_above: FiniteFloat = 0.8
    anchor_box_below: Share = 0.7
    anchor_gap: PositiveInt = 5
    stable_below: Share | None = None


STABILITY_OFFSET = 1.0
"""Logits between whose two signs a stable mask hardly changes: the default of SAM's ``stability_score_offset``."""

POSITION_GAIN, SPEED_GAIN = 0.7, 0.3
"""Shares of a box's surprise by which position and velocity follow it: a Kalman filter of constant velocity in its steady
state (alpha-beta filter; Kalata, IEEE Trans. Aerospace and Electronic Systems, 1984)."""


@dataclass(frozen=True)
class Motion:
    """Where an object's box is and how it changes in a frame."""

    box: Box
    speed: Box = (0.0, 0.0, 0.0, 0.0)

    @property
    def next(self) -> Box:
        """The box on the next frame, were its velocity constant."""
        x, y, w, h = (at + by for at, by in zip(self.box, self.speed, strict=True))
        return x, y, max(w, 0.0), max(h, 0.0)

    def follow(self, found: Box | None) -> Motion:
        """Go on to the next frame, where the box was `found`; None where the object isn't seen."""
        expected = self.next
        if found is None:
            return replace(self, box=expected)
        if box_iou(expected, found) == 0:
            return Motion(found)  # it came back elsewhere
        off = [f - e for f, e in zip(found, expected, strict=True)]
        x, y, w, h = (e + POSITION_GAIN * o for e, o in zip(expected, off, strict=True))
        dx, dy, dw, dh = (s + SPEED_GAIN * o for s, o in zip(self.speed, off, strict=True))
        return Motion((x, y, w, h), (dx, dy, dw, dh))


@dataclass(frozen=True)
class Mark:
    """What an object's result on a frame says of the frame.

    Attributes
    ----------
    score
        Object-score logit.
    iou
        IoU that the decoder predicts of the chosen mask.
    box
        Of the mask; None where it is empty.
    alone
        Area of the chosen mask's box over that of the least box which holds another candidate mask too, in (0, 1];
        1 where all agree.
    alike
        Cosine of its object pointer and that of each frame kept so far, in their order.
    """

    score: float
    iou: float = 1.0
    box: Box | None = None
    alone: float = 1.0
    alike: tuple[float, ...] = ()


@dataclass(frozen=True)
class Kept:
    """A frame in memory: whether it is good, an anchor, and how alike it is to frames that were kept when it came."""

    frame: int
    good: bool = True
    anchor: bool = False
    alike: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Remembered:
    """What is kept of an object in one direction of tracking, after some frame.

    Attributes
    ----------
    kept
        The frames that the next one reads, in the order of tracking; the last is the newest.
    motion
        Of the object; None before its first mask.
    """

    policy: MemoryPolicy
    reverse: bool
    kept: tuple[Kept, ...] = ()
    motion: Motion | None = None

    @property
    def frames(self) -> tuple[int, ...]:
        """Indices of the frames that are kept."""
        return tuple(one.frame for one in self.kept)

    def after(self, frame: int, mark: Mark | None, most: int, stride: int) -> Remembered:
        """What is kept once a frame was tracked.

        Parameters
        ----------
        mark
            What its result says; None of frames that others tracked or corrected, which are taken for good.
        most
            Frames that fit.
        stride
            Of frames other than the newest those of this stride alone are kept, as by sam2's
            ``memory_temporal_stride_for_eval``.
        """
        new, motion = Kept(frame), self.motion
        if mark is not None:
            new = self._judged(frame, mark)
            if motion is not None:
                motion = motion.follow(mark.box)
            elif mark.box is not None:
                motion = Motion(mark.box)
        kept = [*self.kept, new]
        if len(kept) > 1 and kept[-2].frame % stride:
            del kept[-2]
        while len(kept) > most:
            kept.remove(_least(kept, self.policy, most))
        return replace(self, kept=tuple(kept), motion=motion)

    def _judged(self, frame: int, mark: Mark) -> Kept:
        """Whether the frame just tracked is good, and an anchor."""
        policy, motion = self.policy, self.motion
        seen = mark.box is not None and mark.score > policy.score_above
        heads_there = (
            motion is None
            or mark.box is None
            or box_iou(motion.next, mark.box) > policy.motion_above
        )
        good = seen and mark.iou > policy.iou_above and heads_there
        apart = all(abs(frame - k.frame) >= policy.anchor_gap for k in self.kept if k.anchor)
        told_apart = mark.iou > policy.anchor_iou_above and mark.alone < policy.anchor_box_below
        anchor = policy.kind == "distractor" and good and told_apart and apart
        return Kept(frame, good, anchor, tuple(zip(self.frames, mark.alike, strict=False)))


def _least(kept: list[Kept], policy: MemoryPolicy, most: int) -> Kept:
    """The frame that goes, of one more than fit; never the newest."""
    older = kept[:-1]
    bad = [one for one in older if not one.good]
    if bad:
        return bad[0]
    if policy.kind == "distractor":
        anchors = [one for one in older if one.anchor]
        others = [one for one in older if not one.anchor]
        too_many = len(anchors) > max(0, most - policy.recent)
        return (anchors if too_many else others or anchors)[0]
    if policy.kind == "spread":
        there = {one.frame for one in kept}
        nearest = dict.fromkeys(there, -1.0)
        for one in kept:
            for frame, cosine in one.alike:
                if frame in there:
                    nearest[frame] = max(nearest[frame], cosine)
                    nearest[one.frame] = max(nearest[one.frame], cosine)
        free = older[: max(1, len(kept) - policy.recent)]
        return max(free, key=lambda one: nearest[one.frame])
    return older[0]


def remembered(
    results: Results, frame: int, reverse: bool, policy: MemoryPolicy, most: int, stride: int
) -> Remembered:
    """What is kept of an object when a frame is to be tracked, by its results on the frames before it.

    Results that remember nothing by this policy and in this direction (corrections, frames that were tracked
    otherwise) are taken for good ones.
    """
    tracked, prompts = results["non_cond_frame_outputs"], results["cond_frame_outputs"]
    step = 1 if reverse else -1
    plain: list[int] = []
    found, at = Remembered(policy, reverse), frame + step
    left = most * stride
    while left:
        known = tracked.get(at, {}).get(KEY, {}).get(NAME)
        if known is not None and (known.policy, known.reverse) == (policy, reverse):
            found = known
            break
        if at in tracked:
            plain.append(at)
        left -= at not in prompts
        at += step
    for at in reversed(plain):
        found = found.after(at, None, most, stride)
    return found


def stability(logits: Tensor) -> Tensor:
    """Area of masks where their logit is above 1, over that where it is above -1; 1 of masks without either.

    The stability score of SAM (Kirillov et al., arXiv 2304.02643, appendix B): the IoU of a mask drawn narrowly and widely.

    Parameters
    ----------
    logits
        ``[..., h, w]``.

    Returns
    -------
    Tensor
        float32 ``[...]``, in [0, 1].
    """
    narrow, wide = ((logits > edge).sum((-2, -1)) for edge in (STABILITY_OFFSET, -STABILITY_OFFSET))
    return torch.where(wide > 0, narrow / wide, 1.0)


def worth(logits: Tensor, ious: Tensor, stable_below: float) -> Tensor:
    """What candidate masks are chosen by, in place of their predicted IoU.

    Parameters
    ----------
    logits, ious
        ``[B, M, h, w]`` and ``[B, M]``.
    stable_below
        See `MemoryPolicy`.

    Returns
    -------
    Tensor
        ``[B, M]``: predicted IoUs, of objects whose best candidate is unstable all candidates' stability.
    """
    steady = stability(logits).to(ious.dtype)
    unstable = steady.gather(1, ious.argmax(1, keepdim=True)) < stable_below
    return torch.where(unstable, steady, ious)


def mark_rows(
    candidates: Tensor, best: Tensor, pointers: Tensor, kept: Sequence[Sequence[Tensor]]
) -> Tensor:
    """Reduce results of objects to what a policy asks of them, on the device where they are.

    Parameters
    ----------
    candidates
        Low-resolution logits of all candidate masks, ``[B, M, h, w]``.
    best
        Of the masks that were chosen, ``[B, h, w]``.
    pointers
        Object pointers, ``[B, C]``.
    kept
        By object, those of the frames kept so far, ``[1, C]`` each.

    Returns
    -------
    Tensor
        float32 ``[B, 5 + most kept]``: box (x0, y0, x1, y1 in shares of the frame; NaN of an empty mask), `Mark.alone`,
        `Mark.alike` (NaN where there are fewer).
    """
    boxes = _corners(best)
    # a mask without its rim, so that a stray pixel reaches nowhere
    cores = _corners(-F.max_pool2d(-torch.cat([best[:, None], candidates], 1), 3, 1, 1))
    mine = cores[:, :1]
    both = torch.cat([torch.minimum(mine, cores)[..., :2], torch.maximum(mine, cores)[..., 2:]], -1)
    alone = (_area(mine) / _area(both)).nan_to_num(1.0).amin(1)
    longest = max(map(len, kept), default=0)
    alike = best.new_full((len(best), longest), torch.nan, dtype=torch.float32)
    for b, known in enumerate(kept):
        if known:
            stored = torch.cat([one.to(pointers.device) for one in known]).float()
            alike[b, : len(known)] = F.cosine_similarity(stored, pointers[b : b + 1].float())
    return torch.cat([boxes, alone[:, None], alike], 1)


def mark_on_host(row: Sequence[float], score: float, iou: float | None) -> Mark:
    """Read an object's `mark_rows`, with its object score and its mask's predicted IoU."""
    x0, y0, x1, y1, alone, *alike = row
    box = None if x0 != x0 else ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)
    cosines = tuple(one for one in alike if one == one)
    return Mark(score, 1.0 if iou is None else iou, box, alone, cosines)


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes; 0 where both are empty.

    >>> box_iou((0.5, 0.5, 0.2, 0.2), (0.6, 0.5, 0.2, 0.2))
    0.333...
    """
    wide, high = (
        max(0.0, min(a[i] + a[i + 2] / 2, b[i] + b[i + 2] / 2) - max(a[i] - a[i + 2] / 2, b[i] - b[i + 2] / 2))
        for i in (0, 1)
    )  # fmt: skip
    both = wide * high
    union = a[2] * a[3] + b[2] * b[3] - both
    return both / union if union > 0 else 0.0


def _corners(logits: Tensor) -> Tensor:
    """Boxes x0, y0, x1, y1 of masks ``[..., h, w]``, in shares of the frame, float32 ``[..., 4]``; NaN of empty ones."""
    ends = []
    for inside in ((logits > 0).any(-2), (logits > 0).any(-1)):
        size = inside.shape[-1]
        place = torch.arange(size, device=logits.device, dtype=torch.float32).expand(inside.shape)
        first = place.where(inside, torch.inf).amin(-1)
        last = place.where(inside, -torch.inf).amax(-1) + 1
        ends.append((first / size, last / size))
    (x0, x1), (y0, y1) = ends
    found = torch.stack([x0, y0, x1, y1], -1)
    return found.where(found.isfinite().all(-1, keepdim=True), torch.nan)


def _area(corners: Tensor) -> Tensor:
    return (corners[..., 2] - corners[..., 0]) * (corners[..., 3] - corners[..., 1])
