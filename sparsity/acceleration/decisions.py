"""When a frame of a session is routed, and by which windows: what the session knows, put before the rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from probes.errors import InputError
from probes.video import STD
from sparsity.acceleration.encoder import window_grid
from sparsity.acceleration.reuse import PICTURE, parts_of
from sparsity.acceleration.session import KEY, Chosen, Session
from sparsity.routing import Decision, FrameCues, ObjectCues, decide, refreshed, trimmed
from sparsity.select import WindowGrid, scene_change, thumbnail

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
    rule, grid = predictor.profile.windows, window_grid(predictor)
    if rule is None or rule.rolling_refresh is None:
        return decision
    image, before = state["images"][frame].to(state["device"]), last.parts[PICTURE[rule.trimmed]][0]
    pictures = session.pictures_of(frame, image, grid.cells if rule.trimmed else grid)
    change = (pictures - before).abs().mean(1).cpu()
    of, parts = torch.arange(grid.count), 1
    if rule.trimmed:
        of, parts = grid.window_of_cell, (grid.window // 2) ** 2
    return refreshed(decision, change, of, parts, rule.rolling_refresh)


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
        return _given(session.chooser(frame), frame, window_grid(predictor), windows.trimmed)
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
    known = FrameCues(cues, change, since)
    decision = decide(known, windows, guard)
    return trimmed(decision, known, window_grid(predictor)) if windows.trimmed else decision


def _given(chosen: Chosen, frame: int, grid: WindowGrid, trims: bool) -> Decision:
    """Check windows that somebody's own rule chose, and cells that it trimmed them to."""
    wanted = chosen if isinstance(chosen, Decision) else Decision(chosen, "given")
    if wanted.windows is None:
        return Decision(None, "given")
    windows, cells = tuple(sorted(set(wanted.windows))), wanted.cells
    if not windows or windows[0] < 0 or windows[-1] >= grid.count:
        raise InputError(
            f"windows {chosen} chosen for frame {frame}; expected one or more of 0 to {grid.count - 1}, or None for a "
            "dense frame; return such"
        )
    if cells is not None and not trims:
        raise InputError(
            f"cells chosen for frame {frame}, but the profile in use does not trim windows; set windows.trimmed, or "
            "return windows alone"
        )
    if cells is not None:
        cells, of = tuple(sorted(set(cells))), grid.window_of_cell.tolist()
        if {of[cell] for cell in cells if 0 <= cell < len(of)} != set(windows):
            raise InputError(
                f"cells of other windows than {windows} chosen for frame {frame}; expected some of each of these, of "
                f"0 to {len(of) - 1}; return such, or None for whole windows"
            )
    return Decision(windows, "given", cells)


def _scene_change(state: dict[str, Any], session: Session, frame: int, adjacent: int) -> float:
    """How much the picture changed since the adjacent frame, as a share of full scale."""
    for index in (adjacent, frame):
        if index not in session.thumbnails:
            session.thumbnails[index] = thumbnail(state["images"][index].to(state["device"]))
    session.thumbnails = {index: session.thumbnails[index] for index in (adjacent, frame)}
    spread = session.thumbnails[frame].new_tensor(STD).view(3, 1, 1)
    return scene_change(session.thumbnails[adjacent] * spread, session.thumbnails[frame] * spread)
