"""Objects that one pass tracks into a frame: what is noted on the way down, and each one's part of the outcome."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsity.acceleration.bank import Bank
from sparsity.acceleration.encoder import window_grid
from sparsity.acceleration.memory import Recall
from sparsity.acceleration.pruning import note_keys
from sparsity.acceleration.report import ObjectReport
from sparsity.acceleration.session import KEY, FrameExtras
from sparsity.profile import Memory
from sparsity.routing import ObjectCues, cue_row, cues_on_host
from sparsity.window_cues import token_logits

if TYPE_CHECKING:
    from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor


@dataclass
class Tracked:
    """Objects that one pass tracks into a frame; stands in for sam2's ``output_dict`` on the way down."""

    outputs: list[dict[str, dict[int, Any]]]
    reverse: bool
    windows: tuple[int, ...] | None = None
    cells: tuple[int, ...] | None = None
    whole: bool = False  # the frame is rescued: all of its memory is read
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


def parts_of_all(
    predictor: EfficientSAM2VideoPredictor,
    tracked: Tracked,
    together: dict[str, Any],
    frame: int,
    memory: Memory,
) -> list[tuple[dict[str, Any], ObjectReport]]:
    """Give every object its part of a batched result, with its routing cues, and its report.

    What the host has to know is fetched in one transfer.
    """
    scores = together["object_score_logits"].flatten(1).amax(1)
    cues: list[ObjectCues] | None = None
    if tracked.candidates is not None:
        cues = cues_on_host(
            torch.stack(
                [_cue_row(predictor, tracked, b, frame, scores[b]) for b in range(len(scores))]
            ),
            window_grid(predictor),
        )
    known = scores.tolist() if cues is None else [cue.score for cue in cues]
    found = []
    for b, score in enumerate(known):
        part = {key: part_of(value, b) for key, value in together.items()}
        before = tracked.adjacent(b, frame)
        if before is not None and KEY in before:
            before[KEY].added = None  # handed on; it is as large as a frame's features
        extras = FrameExtras() if cues is None else FrameExtras(cues[b], predictor.profile.windows)
        report = ObjectReport(score)
        if tracked.recalls:
            extras.added = tracked.recalls[b].added
            note_keys(report, tracked.banks[b], tracked.recalls[b], memory)
            report.queries_share = tracked.recalls[b].queries_share
        found.append(({**part, KEY: extras}, report))
    return found


def _cue_row(
    predictor: EfficientSAM2VideoPredictor, tracked: Tracked, b: int, frame: int, score: Tensor
) -> Tensor:
    profile = predictor.profile
    assert profile.windows is not None and tracked.candidates is not None
    assert tracked.best is not None, "candidates come with the best one"
    before, last = tracked.adjacent(b, frame), None
    watched = profile.guard.mask_jump is not None or profile.router is not None
    if watched and before is not None:
        last = before["pred_masks"].to(tracked.best.device)[0, 0]
    return cue_row(
        tracked.candidates[b],
        tracked.best[b],
        last,
        None if tracked.saliency is None else tracked.saliency[b],
        score,
        window_grid(predictor),
        profile.windows,
        profile.router,
        None if profile.router is None else token_logits(tracked.candidates[b], tracked.best[b]),
    )
