"""The first step of a tracked frame: which cells are computed, from what the session knows."""

from __future__ import annotations

import torch

from probes.errors import InputError
from probes.seam import Told
from sparsity.acceleration.parts import Parts
from sparsity.acceleration.report import note_failures
from sparsity.acceleration.session import Chosen, Frame, Session
from sparsity.techniques import KEY
from sparsity.techniques.failure import FailureModel
from sparsity.techniques.reuse import picture_of
from sparsity.techniques.routing import (
    CARRIED,
    Decision,
    FrameCues,
    ObjectCues,
    carries,
    decide,
    refreshed,
)
from sparsity.techniques.select import WindowGrid

NOT_ROUTED, CHANGED = Decision(None, "not routed"), Decision(None, "changed encoder")

GIVEN = Decision(None, "features given")


def route(parts: Parts, session: Session, frame: Frame) -> None:
    """Decide what of a frame is computed; once for all objects that are tracked into it alike."""
    asked = frame.index, frame.reverse, parts.here.used.profile, parts.here.routes
    if session.decision is None or session.decision[0] != asked:
        decision = NOT_ROUTED
        if parts.here.used.profile.routing is not None:
            decision = CHANGED
            if parts.here.routes:
                features = frame.state["cached_features"].get(frame.index)
                given = features is not None and session.made(features[1]) is None
                decision = GIVEN if given else routed(parts, session, frame)
        session.decision, session.current = (asked, decision), None
        if "decided" in parts.seam.listeners:
            parts.seam.tell("decided", Told(parts.seam.now.moment, decision))
    frame.decision = session.decision[1]


def routed(parts: Parts, session: Session, frame: Frame) -> Decision:
    """Choose the cells of a frame from the results on the adjacent one (method 2.3, 2.4).

    A frame is dense where something that cells left out would take over is not there.
    """
    decision = _chosen(parts, session, frame)
    profile, needed = parts.here.used.profile, parts.here.carried
    rule, last, grid = profile.routing, session.last, frame.grid
    assert rule is not None, "it routes"
    if decision.cells is None or not needed:
        return decision
    if last is None or not last.serve(needed, frame.index, parts.encoder.version, rule.every):
        return Decision(None, "nothing cached")
    if rule.refresh is None:
        return decision
    before, image = last.parts[picture_of(rule.unit)][0], frame.picture
    known = session.routing
    change = known.changes(before, last.frame, frame.index, image, rule, grid)
    return refreshed(decision, change, rule, grid, known.noise_floor, frame.index)


def _chosen(parts: Parts, session: Session, frame: Frame) -> Decision:
    profile, known = parts.here.used.profile, session.routing
    rule, guard = profile.routing, profile.guard
    assert rule is not None, "it routes"
    since = 1 if known.last_dense is None else abs(frame.index - known.last_dense)
    if session.chooser is not None:
        if guard.refresh_every is not None and since >= guard.refresh_every:
            return Decision(None, "refresh")
        chosen = session.chooser(frame.index)
        if chosen is not None and carries(_since_computed(parts, session, frame), rule):
            return CARRIED
        return _given(chosen, frame.index, frame.grid, rule.unit)
    results = frame.state["output_dict_per_obj"].items()
    # an object that was added during this pass has no prompt of its own yet, and waits for the next
    per_object = {index: own for index, own in results if own["cond_frame_outputs"]}
    if guard.scene_cut is not None and frame.adjacent not in known.thumbnails:
        known.see(frame.index, frame.image)
    if any(frame.index in outputs["cond_frame_outputs"] for outputs in per_object.values()):
        return Decision(None, "prompt")
    if any(frame.adjacent in outputs["cond_frame_outputs"] for outputs in per_object.values()):
        return Decision(None, "first tracked")
    cues: dict[int, ObjectCues | None] = {}
    for index, outputs in per_object.items():
        notes = outputs["non_cond_frame_outputs"].get(frame.adjacent, {}).get(KEY, {})
        found, reduced_by = notes.get("routing", (None, None))
        cues[index] = found if reduced_by == rule else None
    change = 0.0
    if guard.scene_cut is not None and None not in cues.values():
        change = known.change_since(frame.adjacent, frame.index, frame.image)
    computed = _since_computed(parts, session, frame)
    failure = 0.0
    if guard.failure is not None and None not in cues.values():
        failure = _failure(session, frame, guard.failure)
    return decide(FrameCues(cues, change, since, computed, failure), rule, guard, frame.grid)


def _since_computed(parts: Parts, session: Session, frame: Frame) -> int | None:
    """Frames, in the direction of tracking, since features were computed that can be carried over; None: there are none."""
    latest = session.latest
    if latest is None or latest.made != parts.made:
        return None
    ahead = frame.index - latest.frame
    return -ahead if frame.reverse else ahead


def _failure(session: Session, frame: Frame, model: FailureModel) -> float:
    """Highest probability that an object's mask on the adjacent frame is wrong."""
    if not session.report.frames or session.report.frames[-1].frame != frame.adjacent:
        return 0.0
    note_failures(session.report, frame.state, model)
    found = [said.failure for said in session.report.frames[-1].objects.values()]
    return max((p for p in found if p is not None), default=0.0)


def _given(chosen: Chosen, frame: int, grid: WindowGrid, unit: str) -> Decision:
    """Check what somebody's own rule chose: windows, or cells."""
    if chosen is None:
        return Decision(None, "given")
    if isinstance(chosen, Decision):
        wanted, count, what = chosen.cells, grid.cells.count, "cells"
        if wanted is None:
            return Decision(None, "given")
    else:
        wanted, count, what = chosen, grid.count, "windows"
    some = tuple(sorted(set(wanted)))
    if not some or some[0] < 0 or some[-1] >= count:
        raise InputError(
            f"{what} {wanted} chosen for frame {frame}; expected one or more of 0 to {count - 1}, or None for a "
            "dense frame; return such"
        )
    windows = torch.zeros(grid.count, dtype=torch.bool)
    windows[list(grid.windows_of(some) if what == "cells" else some)] = True
    whole = grid.cells_of(windows)
    if what == "windows" or some == whole:
        return Decision(whole, "given")
    if unit == "window":
        raise InputError(
            f"cells chosen for frame {frame}, but the profile in use computes whole windows; set routing.unit to "
            "cell, or return windows"
        )
    return Decision(some, "given")
