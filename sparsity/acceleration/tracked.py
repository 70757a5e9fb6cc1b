"""Objects that one pass tracks into a frame: what is noted on the way down, and each one's part of the outcome."""

from __future__ import annotations

from collections.abc import Callable
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
from sparsity.routing import cues_on_host

if TYPE_CHECKING:
    from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor


@dataclass
class Tracked:
    """Objects that one pass tracks into a frame; stands in for sam2's ``output_dict`` on the way down."""

    outputs: list[dict[str, dict[int, Any]]]
    frame: int
    reverse: bool
    windows: tuple[int, ...] | None = None
    cells: tuple[int, ...] | None = None
    whole: bool = False  # the frame is rescued: all of its memory is read
    candidates: Tensor | None = None
    best: Tensor | None = None
    saliency: Tensor | None = None
    known: Callable[[], Tensor] | None = None  # what the host has to know, once it has arrived
    banks: list[Bank] = field(default_factory=list)
    recalls: list[Recall] = field(default_factory=list)

    def adjacent(self, b: int) -> dict[str, Any] | None:
        """An object's result on the frame that was tracked before this one, or None."""
        results = self.outputs[b]["non_cond_frame_outputs"]
        return results.get(self.frame + 1 if self.reverse else self.frame - 1)


def part_of(value: Any, b: int) -> Any:
    """One object's part of a batched result."""
    if isinstance(value, Tensor):
        return value[b : b + 1]
    return [item[b : b + 1] for item in value] if isinstance(value, list) else value


def parts_of_all(
    predictor: EfficientSAM2VideoPredictor,
    tracked: Tracked,
    together: dict[str, Any],
    memory: Memory,
) -> list[tuple[dict[str, Any], ObjectReport]]:
    """Give every object its part of a batched result, with its routing cues, and its report."""
    assert tracked.known is not None, "the decoder ran"
    known, cues = tracked.known(), None
    if tracked.candidates is not None:
        cues = cues_on_host(known, window_grid(predictor))
    scores = known.tolist() if cues is None else [cue.score for cue in cues]
    found = []
    for b, score in enumerate(scores):
        part = {key: part_of(value, b) for key, value in together.items()}
        before = tracked.adjacent(b)
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
