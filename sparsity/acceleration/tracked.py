"""Objects that one pass tracks into a frame: what is noted on the way down, and each one's part of the outcome."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sparsity.acceleration.bank import Bank
from sparsity.acceleration.encoder import window_grid
from sparsity.acceleration.memory import Recall
from sparsity.acceleration.pruning import note_keys
from sparsity.acceleration.report import ObjectReport
from sparsity.acceleration.session import KEY, FrameExtras
from sparsity.profile import Memory
from sparsity.routing import object_cues

if TYPE_CHECKING:
    from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor


@dataclass
class Tracked:
    """Objects that one pass tracks into a frame; stands in for sam2's ``output_dict`` on the way down."""

    outputs: list[dict[str, dict[int, Any]]]
    reverse: bool
    windows: tuple[int, ...] | None = None
    candidates: Tensor | None = None
    best: Tensor | None = None
    saliency: Tensor | None = None
    banks: list[Bank] = field(default_factory=list)
    recalls: list[Recall] = field(default_factory=list)

    def adjacent(self, b: int, frame: int) -> dict[str, Any] | None:
        """An object's result on the frame that was tracked before `frame`, or None."""
        results = self.outputs[b]["non_cond_frame_outputs"]
        return results.get(frame + 1 if self.reverse else frame - 1)


def part_of(value: Any, b: int) -> Any:
    """One object's part of a batched result."""
    if isinstance(value, Tensor):
        return value[b : b + 1]
    return [item[b : b + 1] for item in value] if isinstance(value, list) else value


def extras(
    predictor: EfficientSAM2VideoPredictor,
    tracked: Tracked,
    b: int,
    part: dict[str, Any],
    frame: int,
) -> FrameExtras:
    """Reduce an object's result to its routing cues."""
    profile = predictor.profile
    windows, router = profile.windows, profile.router
    before = tracked.adjacent(b, frame)
    added = tracked.recalls[b].added if tracked.recalls else None
    if before is not None and KEY in before:
        before[KEY].added = None  # handed on; it is as large as a frame's features
    if windows is None or tracked.candidates is None or tracked.best is None:
        return FrameExtras(added=added)
    last = None
    if (profile.guard.mask_jump is not None or router is not None) and before is not None:
        last = before["pred_masks"].to(tracked.best.device)[0, 0]
    cues = object_cues(
        tracked.candidates[b],
        tracked.best[b],
        last,
        None if tracked.saliency is None else tracked.saliency[b],
        part["object_score_logits"].max(),
        window_grid(predictor),
        windows,
        router,
    )
    return FrameExtras(cues, windows, added=added)


def object_report(tracked: Tracked, b: int, part: dict[str, Any], memory: Memory) -> ObjectReport:
    """What the report says about one object on this frame."""
    report = ObjectReport(float(part["object_score_logits"].max()))
    if tracked.recalls:
        note_keys(report, tracked.banks[b], tracked.recalls[b], memory)
        report.queries_share = tracked.recalls[b].queries_share
    return report
