"""What an accelerated run did: windows, keys, scores and reasons, frame by frame."""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from probes.errors import BeyondPromise
from sparsity.acceleration.watch import RECENT, Watch
from sparsity.profile import Seen
from sparsity.techniques.failure import REMEMBERED, FailureModel, mask_change, run_features
from sparsity.techniques.routing import RESCUES

LIKELY = 0.5
"""Probability from which a mask is worth a look."""

BRIDGED = 2
"""Frames between two that are worth a look, at most, that are named with them."""


@dataclass
class ObjectReport:
    """One object on one frame.

    Attributes
    ----------
    score
        Object-score logit; above 0 the object is present.
    ious
        IoU that the mask decoder predicts of each candidate mask; none where no mask was decoded (a mask as prompt, a
        result that was given out unchanged).
    taken
        Place of the candidate that was taken; None for the one of the highest predicted IoU, as ever without a
        ``memory_policy.stable_below``.
    keys_used
        Keys that memory cross-attention read, one number per layer; empty where none ran.
    keys_total
        Keys that a dense run reads.
    prunable_keys_used, prunable_keys_total
        The same for keys of frames that may be pruned (neither exempt nor pointers), mean over layers.
    pruned_frames
        Retrieval frames that were read in part.
    queries_share
        Share of the frame's tokens that read memory.
    memory_frames
        Frames that were read, conditioning ones first, then from the oldest to the newest.
    failure
        Probability that the mask is wrong (`note_failures`); None on prompted frames, and where nobody fitted that for the
        model.
    """

    score: float
    keys_used: list[int] = field(default_factory=list)
    keys_total: int = 0
    prunable_keys_used: float = 0.0
    prunable_keys_total: int = 0
    pruned_frames: int = 0
    queries_share: float = 1.0
    ious: list[float] = field(default_factory=list)
    taken: int | None = None
    memory_frames: list[int] = field(default_factory=list)
    failure: float | None = None

    @property
    def iou(self) -> float | None:
        """Predicted IoU of the mask that was taken; None where none was predicted."""
        if self.taken is not None:
            return self.ious[self.taken]
        return max(self.ious, default=None)


@dataclass
class FrameReport:
    """One tracked frame.

    Attributes
    ----------
    frame, reverse
        Index and direction.
    windows_kept, windows_total
        Windows of encoder stage 3 that were computed, of how many.
    windows
        Their indices; None when all were.
    reason
        ``"routed"``, ``"saliency added"``, or why the frame was dense.
    trimmed_to
        Share of these windows' cells that was computed; 1 unless they were trimmed.
    cells
        Indices of the cells that were computed, where windows were trimmed to them; else None.
    encoded_together
        Frames of how many videos were encoded in one batch, this one's included; 1 for a frame that was encoded by itself.
    carried_from
        Frame whose features were carried over to this one, of which nothing was computed; None where its own were.
    objects
        By object id.
    """

    frame: int
    reverse: bool
    windows_kept: int
    windows_total: int
    windows: list[int] | None
    reason: str
    trimmed_to: float = 1.0
    cells: list[int] | None = None
    encoded_together: int = 1
    carried_from: int | None = None
    objects: dict[int, ObjectReport] = field(default_factory=dict)

    @property
    def rescued(self) -> bool:
        """Whether a rule of the guard saw trouble and made the frame dense; a refresh is none."""
        return self.reason in RESCUES


@dataclass
class Report:
    """A whole run so far, as `EfficientSAM2VideoPredictor.report` gives it.

    Attributes
    ----------
    profile
        Name of the profile that was last in use.
    forced
        Whether the profile was made for another model or input size and forced.
    frames
        In the order of tracking.
    changed
        Parts of the model that aren't sam2's own and were run as they are, and what was found there.
    quantized
        Number format of the linear layers by the profile that was last in use; None where it is the run's own.
    seen
        What the videos behind that profile's promise were like; None where it has none.
    watch
        What was seen of the promise while it was used; None where nobody watched.
    """

    profile: str
    forced: bool
    frames: list[FrameReport] = field(default_factory=list)
    changed: dict[str, str] = field(default_factory=dict)
    quantized: str | None = None
    seen: Seen | None = None
    watch: Watch | None = None

    @property
    def promise(self) -> str:
        """``"holds"``, ``"unknown"`` or ``"broken since frame …"``: see `sparsity.acceleration.watch.Watch.verdict`."""
        return "unknown" if self.watch is None else self.watch.verdict

    @property
    def cues(self) -> dict[str, float]:
        """What a run says of its video without any truth: lowest mean score of an object, and how much was computed."""
        objects = sorted({i for frame in self.frames for i in frame.objects}, key=str)
        scores = [_mean([*self.scores(i).values()]) for i in objects]
        return {
            "lowest mean score": min(scores, default=0.0),
            "share of windows": self.windows_share,
            "share of rescued frames": len(self.rescued) / max(1, len(self.frames)),
        }

    @property
    def beyond(self) -> list[str]:
        """In what the video is beyond those that the profile's promise is of, a line each; none where it has no promise."""
        if self.seen is None or not self.frames:
            return []
        objects = {i for frame in self.frames for i in frame.objects}
        return self.seen.beyond(len({f.frame for f in self.frames}), len(objects), self.cues)

    @property
    def lately_beyond(self) -> list[str]:
        """In what cues of the last frames lie outside those of the videos behind the promise."""
        if self.seen is None or len(self.frames) < RECENT:
            return []
        last = replace(self, frames=self.frames[-RECENT:])
        return [f"lately, {said}" for said in self.seen.beyond(0, 0, last.cues)]

    def warn_beyond(self, frames: int, objects: int) -> None:
        """Warn before a video is tracked that is longer, or holds more objects, than those of the profile's promise."""
        for said in self.seen.beyond(frames, objects) if self.seen is not None else ():
            warnings.warn(f"profile {self.profile}: {said}", BeyondPromise, stacklevel=3)

    @property
    def windows_share(self) -> float:
        """Mean share of windows computed, dense frames counted as 1 and trimmed windows by what is left of them."""
        return _mean(
            [frame.windows_kept / frame.windows_total * frame.trimmed_to for frame in self.frames]
        )

    @property
    def keys_share(self) -> float:
        """Mean share of memory keys read over frames, objects and layers."""
        return _mean(
            [
                sum(item.keys_used) / len(item.keys_used) / item.keys_total
                for frame in self.frames
                for item in frame.objects.values()
                if item.keys_used
            ]
        )

    @property
    def prunable_keys_share(self) -> float:
        """Mean share of prunable keys read, over frames and objects that have any."""
        return _mean(
            [
                item.prunable_keys_used / item.prunable_keys_total
                for frame in self.frames
                for item in frame.objects.values()
                if item.prunable_keys_total
            ]
        )

    @property
    def reasons(self) -> dict[str, int]:
        """How often each reason occurred."""
        return dict(Counter(frame.reason for frame in self.frames))

    @property
    def rescued(self) -> dict[int, str]:
        """Frames that the guard rescued from routing, with its rule; the later pass where there were two."""
        return {frame.frame: frame.reason for frame in self.frames if frame.rescued}

    def scores(self, object_id: int) -> dict[int, float]:
        """Object-score logits of one object by frame; above 0 the object is present."""
        return {
            item.frame: item.objects[object_id].score
            for item in self.frames
            if object_id in item.objects
        }

    @property
    def look_at(self) -> dict[int, list[tuple[int, int]]] | None:
        """By object, first and last frames of the stretches on which its mask is likely wrong; None where nobody looked."""
        found: dict[int, dict[int, float]] = {}
        for item in self.frames:
            for i, one in item.objects.items():
                if one.failure is not None:
                    found.setdefault(i, {})[item.frame] = one.failure
        if not found:
            return None
        likely = {i: sorted(t for t, p in of.items() if p >= LIKELY) for i, of in found.items()}
        return {i: _stretches(frames) for i, frames in likely.items() if frames}

    def to_json(self) -> str:
        """The report as one JSON document."""
        look_at = self.look_at
        summary = {
            "windows_share": self.windows_share,
            "keys_share": self.keys_share,
            "prunable_keys_share": self.prunable_keys_share,
            "reasons": self.reasons,
            "rescued": self.rescued,
            "beyond": self.beyond,
            "promise": self.promise,
            "look_at": None if look_at is None else {str(i): of for i, of in look_at.items()},
        }
        document = asdict(replace(self, seen=None, watch=None))
        del document["seen"]
        document["watch"] = None if self.watch is None else self.watch.as_json()
        for frame in document["frames"]:  # ids may be numpy's, or anything that sam2 takes
            frame["objects"] = {str(i): item for i, item in frame["objects"].items()}
        return json.dumps({**document, "summary": summary}, indent=1)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 1.0


def _stretches(frames: list[int]) -> list[tuple[int, int]]:
    """First and last of stretches of ascending frames, which `BRIDGED` others at most interrupt."""
    found: list[tuple[int, int]] = []
    for frame in frames:
        if found and frame - found[-1][1] <= BRIDGED + 1:
            found[-1] = found[-1][0], frame
        else:
            found.append((frame, frame))
    return found


def note_failures(report: Report, state: dict[str, Any], model: FailureModel) -> None:
    """Enter into the report's last frame how likely the mask of each of its objects is wrong.

    Parameters
    ----------
    report
        Of the video's state, which has just been tracked into that frame.
    state
        sam2's; read are scores and low-resolution masks of adjacent and prompted frames. On a GPU three masks are waited for.
    model
        Fitted for the model that runs.
    """
    if not report.frames:
        return
    now = report.frames[-1]
    adjacent = now.frame + (1 if now.reverse else -1)
    for object_id, said in now.objects.items():
        outputs = state["output_dict_per_obj"][state["obj_id_to_idx"][object_id]]
        prompted, tracked = outputs["cond_frame_outputs"], outputs["non_cond_frame_outputs"]
        before = prompted.get(adjacent, tracked.get(adjacent))
        if now.frame in prompted or now.frame not in tracked or before is None:
            continue
        history = [
            item.objects[object_id]
            for item in report.frames[-REMEMBERED:]
            if object_id in item.objects
            and item.reverse == now.reverse
            and item.frame not in prompted
        ]
        made = (tracked[now.frame], before, prompted[min(prompted)])
        masks = [out["pred_masks"][0, 0] > 0 for out in made]
        features = run_features(
            [one.score for one in history],
            [math.nan if one.iou is None else one.iou for one in history],
            mask_change(masks[1].to(masks[0].device), masks[0], masks[2].to(masks[0].device)),
        )
        said.failure = round(model.probability(features), 4)
