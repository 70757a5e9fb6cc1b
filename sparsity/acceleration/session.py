"""What the accelerated predictor keeps about one video, inside the video's own inference state.

Nothing about a video lives on the model. Results of an object on a frame (kept memory tokens, routing cues)
lie in the very dict that holds its mask, so they follow it when objects are removed, frames are tracked
anew or results are dropped.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from probes.video import ModelFrames, VideoSource
from sparsity.acceleration.derived import Version
from sparsity.acceleration.report import FrameReport, ObjectReport, Report
from sparsity.acceleration.reuse import LastComputed
from sparsity.profile import Memory, Windows
from sparsity.routing import Decision, ObjectCues, parts_computed
from sparsity.select import WindowGrid, window_pictures

KEY = "efficient"
"""Key of our entry in sam2's dicts."""

LAST_REPORTED = 10_000
"""Frames of a stream that its report keeps, with a bounded history."""

Chosen = tuple[int, ...] | Decision | None
"""Windows to compute, or a decision that also says to which cells they are trimmed; None for a dense frame."""

WindowChooser = Callable[[int], Chosen]
"""From a frame's index to what is to be computed."""


@dataclass(frozen=True)
class ChosenTokens:
    """Kept tokens of a memory frame.

    Attributes
    ----------
    per_layer
        Their grid places by memory-attention layer, int64 ``[K]`` each.
    features, position
        What is remembered there, layer after layer, ``[sum of K, mem]``.
    memory
        The settings that chose them.
    """

    per_layer: list[Tensor]
    features: Tensor
    position: Tensor
    memory: Memory

    def follow(self, memory: Memory) -> bool:
        """Whether other settings choose the same tokens."""
        return (self.memory.keep, self.memory.queries) == (memory.keep, memory.queries)


@dataclass
class Held:
    """Projections of a conditioning frame, whose keys never change: its temporal position stays 0.

    Attributes
    ----------
    version
        Of the memory attention whose weights made them, and in which number format.
    keys, values
        By layer, ``[tokens, C]``; keys are turned.
    """

    version: Version
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)


@dataclass
class FrameExtras:
    """Our entry in an object's result on a frame.

    Attributes
    ----------
    cues
        What the result says about the next frame, and the settings it was reduced with.
    tokens
        By direction (reverse or not): the tokens that are kept, once they were chosen.
    added
        What memory attention added to the features when each token read memory last, float32
        ``[tokens, C]``; handed on from frame to frame, where only some tokens read memory.
    held
        Of a conditioning frame: its projections, once they were made.
    """

    cues: ObjectCues | None = None
    windows: Windows | None = None
    tokens: dict[bool, ChosenTokens] = field(default_factory=dict)
    added: Tensor | None = None
    held: Held | None = None


@dataclass(frozen=True)
class FeatureKind:
    """How cached image features were computed.

    Attributes
    ----------
    windows, cells
        As in `sparsity.routing.Decision`.
    exact
        By exact rewrites, not by stock code.
    """

    windows: tuple[int, ...] | None = None
    cells: tuple[int, ...] | None = None
    exact: bool = False

    def serves(self, wanted: FeatureKind) -> bool:
        """Whether features of this kind may be used where `wanted` is asked for."""
        if wanted.windows is None:
            return self.windows is None and (self.exact == wanted.exact or wanted.exact)
        if self.windows is None or self.cells is not None:
            return self.windows is None or self == wanted
        return set(wanted.windows) <= set(self.windows)


@dataclass(frozen=True)
class FrameFeatures:
    """Image features of the frame that was encoded last, and what made them.

    Attributes
    ----------
    version
        Of the encoder: its weights and number format.
    image
        ``[1, 3, S, S]``.
    output
        sam2's backbone output.
    """

    frame: int
    kind: FeatureKind
    version: Version
    image: Tensor
    output: dict[str, Any]


@dataclass
class Session:
    """Our entry in a video's inference state.

    Attributes
    ----------
    history
        ``"full"`` keeps all results like stock; ``"bounded"`` drops what no future frame can read.
    chooser
        Chooses windows instead of the profile's rule, when given.
    features
        Those that were computed here; a copy does without. sam2's own one-frame cache holds none of them, so that a
        stock predictor never takes routed features for its own.
    routing
        Decision that is being carried out; None outside tracking calls, where frames are dense.
    decision
        The last decision, with the frame and direction it is for.
    ahead
        Results of objects that were tracked together with an earlier one, by object index, with the frame
        and direction they are for.
    thumbnails
        Of the adjacent and the current frame, while the guard watches for scene cuts.
    pictures
        Of the windows or cells of the frame that was pictured last, with the frame and their number.
    last_dense
        The last frame that was encoded densely.
    last
        What every window gave when it was last computed, for the cached shortcut and techniques that reuse it.
    current
        Report of the frame that is being tracked.
    """

    report: Report
    history: Literal["full", "bounded"] = "full"
    chooser: WindowChooser | None = None
    features: FrameFeatures | None = None
    routing: Decision | None = None
    decision: tuple[int, bool, Decision] | None = None
    ahead: dict[int, tuple[int, bool, tuple[dict[str, Any], Tensor]]] = field(default_factory=dict)
    thumbnails: dict[int, Tensor] = field(default_factory=dict)
    pictures: tuple[int, int, Tensor] | None = None
    last_dense: int | None = None
    last: LastComputed | None = None
    current: FrameReport | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes over: all but the features, which are large and soon made."""
        return {**self.__dict__, "features": None}

    def begin_pass(self) -> None:
        """Forget what belongs to an earlier propagation, which may have been abandoned midway."""
        self.ahead.clear()
        self.decision = self.current = None

    def pictures_of(self, frame: int, image: Tensor, grid: WindowGrid) -> Tensor:
        """`sparsity.select.window_pictures` of a frame ``[3, S, S]``, made once for its decision and its features."""
        if self.pictures is None or self.pictures[:2] != (frame, grid.count):
            self.pictures = frame, grid.count, window_pictures(image, grid)
        return self.pictures[2]

    def frame_report(
        self, frame: int, reverse: bool, decision: Decision, grid: WindowGrid
    ) -> FrameReport:
        """The report of a frame, begun when the pass comes to it."""
        current = self.current
        if current is None or (current.frame, current.reverse) != (frame, reverse):
            windows = None if decision.windows is None else list(decision.windows)
            kept = grid.count if windows is None else len(windows)
            trimmed = 1.0 if decision.cells is None else _left_of_windows(decision, grid)
            current = FrameReport(
                frame, reverse, kept, grid.count, windows, decision.reason, trimmed
            )
            self.report.frames.append(current)
            self.current = current
        return current

    def note_prompts(
        self, state: dict[str, Any], frame: int, reverse: bool, grid: WindowGrid
    ) -> None:
        """Enter objects whose result on this frame is a prompt into the report."""
        report = self.frame_report(frame, reverse, Decision(None, "prompt"), grid)
        for index, outputs in state["output_dict_per_obj"].items():
            out = outputs["cond_frame_outputs"].get(frame)
            if out is not None:
                object_id = state["obj_idx_to_id"][index]
                report.objects[object_id] = ObjectReport(float(out["object_score_logits"].max()))


def _left_of_windows(decision: Decision, grid: WindowGrid) -> float:
    """Share of a trimmed frame's windows that is computed."""
    of = grid.window_of_cell
    whole = parts_computed(replace(decision, cells=None), of)
    return float(parts_computed(decision, of).sum() / whole.sum())


def forget_results(state: dict[str, Any], frame: int, reverse: bool, reach: int) -> None:
    """Drop results that lie further back than `reach`, that of memory frames and pointers of later frames.

    Of a stream, which may never end, the report keeps the latest frames alone.
    """
    per_object = [o["non_cond_frame_outputs"] for o in state["output_dict_per_obj"].values()]
    for results in (*per_object, *state["frames_tracked_per_obj"].values()):
        old = [t for t in results if (t - frame if reverse else frame - t) > reach]
        for t in old:
            del results[t]
    if state["num_frames"] == sys.maxsize:
        del state[KEY].report.frames[:-LAST_REPORTED]


def new_state(
    source: VideoSource,
    frames: ModelFrames,
    device: torch.device,
    storage: torch.device,
    frames_on_cpu: bool,
) -> dict[str, Any]:
    """Begin the dict in which sam2 keeps a video, as its ``init_state`` does (sam2 1.1.0), frames made when asked for."""
    state: dict[str, Any] = {
        "images": frames,
        "num_frames": sys.maxsize if source.num_frames is None else source.num_frames,
        "offload_video_to_cpu": frames_on_cpu,
        "offload_state_to_cpu": storage != device,
        "video_height": source.height,
        "video_width": source.width,
        "device": device,
        "storage_device": storage,
        "obj_id_to_idx": OrderedDict(),
        "obj_idx_to_id": OrderedDict(),
        "obj_ids": [],
    }
    per_object = (
        "point_inputs_per_obj",
        "mask_inputs_per_obj",
        "cached_features",
        "constants",
        "output_dict_per_obj",
        "temp_output_dict_per_obj",
        "frames_tracked_per_obj",
    )
    return state | {key: {} for key in per_object}
