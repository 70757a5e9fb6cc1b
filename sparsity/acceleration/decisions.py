"""When a frame of a session is routed, and by which windows: what the session knows, put before the rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from probes.errors import InputError
from probes.video import STD
from sparsity.acceleration.encoder import window_grid
from sparsity.acceleration.reuse import PICTURE, parts_of
from sparsity.acceleration.session import KEY, Session
from sparsity.routing import Decision, FrameCues, ObjectCues, decide
from sparsity.select import (
    most_changed,
    refreshed_count,
    scene_change,
    thumbnail,
    window_pictures,
)

if TYPE_CHECKING:
    from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor


def decide_frame(
    predictor: EfficientSAM2VideoPredictor,
    state: dict[str, Any],
    session: Session,
    frame: int,
    reverse: bool,
) -> Decision:
    """Choose the windows of a frame from the results on the adjacent one (method 2.3, 2.4).

    A frame is dense where something that windows left out would take over is not there.
    """
    decision = _decide(predictor, state, session, frame, reverse)
    needed, last = parts_of(predictor.profile), session.last
    if decision.windows is None or not needed:
        return decision
    if last is None or not last.serve(needed, frame, predictor._encoder.version):
        return Decision(None, "nothing cached")
    if PICTURE not in needed:
        return decision
    pictures = last.parts[PICTURE][0], _pictures(predictor, state, frame)
    return Decision(_refreshed(predictor, decision.windows, *pictures), decision.reason)


def _pictures(predictor: EfficientSAM2VideoPredictor, state: dict[str, Any], frame: int) -> Tensor:
    image = state["images"][frame].to(state["device"])
    return window_pictures(image, window_grid(predictor))


def _refreshed(
    predictor: EfficientSAM2VideoPredictor,
    windows: tuple[int, ...],
    before: Tensor,
    after: Tensor,
) -> tuple[int, ...]:
    """Add some of the windows left out, by the pictures they were computed from and their present ones."""
    rule = predictor.profile.windows
    assert rule is not None and rule.rolling_refresh is not None, "it is what pictures are kept for"
    left_out = tuple(sorted(set(range(len(after))) - set(windows)))
    count = refreshed_count(len(left_out), rule.rolling_refresh)
    return tuple(sorted((*windows, *most_changed(before, after, left_out, count))))


def _decide(
    predictor: EfficientSAM2VideoPredictor,
    state: dict[str, Any],
    session: Session,
    frame: int,
    reverse: bool,
) -> Decision:
    windows, guard = predictor.profile.windows, predictor.profile.guard
    if windows is None:
        return Decision(None, "not routed")
    since = 1 if session.last_dense is None else abs(frame - session.last_dense)
    if session.chooser is not None:
        if guard.refresh_every is not None and since >= guard.refresh_every:
            return Decision(None, "refresh")
        return Decision(
            _given(session.chooser(frame), frame, window_grid(predictor).count), "given"
        )
    results = state["output_dict_per_obj"].items()
    # an object that was added during this pass has no prompt of its own yet, and waits for the next
    per_object = {index: own for index, own in results if own["cond_frame_outputs"]}
    if any(frame in outputs["cond_frame_outputs"] for outputs in per_object.values()):
        return Decision(None, "prompt")
    adjacent = frame + 1 if reverse else frame - 1
    if any(adjacent in outputs["cond_frame_outputs"] for outputs in per_object.values()):
        return Decision(None, "first tracked")
    cues: dict[int, ObjectCues | None] = {}
    for index, outputs in per_object.items():
        extras = outputs["non_cond_frame_outputs"].get(adjacent, {}).get(KEY)
        cues[index] = extras.cues if extras is not None and extras.windows == windows else None
    change = 0.0
    if guard.scene_cut is not None and None not in cues.values():
        change = _scene_change(state, session, frame, adjacent)
    return decide(FrameCues(cues, change, since), windows, guard)


def _given(chosen: tuple[int, ...] | None, frame: int, total: int) -> tuple[int, ...] | None:
    """Check windows that somebody's own rule chose."""
    if chosen is None:
        return None
    windows = tuple(sorted(set(chosen)))
    if not windows or windows[0] < 0 or windows[-1] >= total:
        raise InputError(
            f"windows {chosen} chosen for frame {frame}; expected one or more of 0 to {total - 1}, or None for a "
            "dense frame; return such"
        )
    return windows


def _scene_change(state: dict[str, Any], session: Session, frame: int, adjacent: int) -> float:
    """How much the picture changed since the adjacent frame, as a share of full scale."""
    for index in (adjacent, frame):
        if index not in session.thumbnails:
            session.thumbnails[index] = thumbnail(state["images"][index].to(state["device"]))
    session.thumbnails = {index: session.thumbnails[index] for index in (adjacent, frame)}
    spread = session.thumbnails[frame].new_tensor(STD).view(3, 1, 1)
    return scene_change(session.thumbnails[adjacent] * spread, session.thumbnails[frame] * spread)
