"""Replays decide as the predictor does, recall what they say, and are saved and read whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sparsity.calibration.capture import capture, load_trace, save_trace
from sparsity.calibration.cost import Cost
from sparsity.calibration.drift import Drift
from sparsity.calibration.replay import replay_memory, replay_windows
from sparsity.calibration.router import fit_router
from sparsity.calibration.search import Candidate, candidates, describe, frontier, grid, spread_out
from sparsity.calibration.settings import BASES
from sparsity.calibration.thresholds import (
    keep_for,
    margin_for,
    mask_jump_for,
    mask_only,
    scene_cut_for,
)
from sparsity.calibration.traces import Trace
from sparsity.profile import EXACT_TECHNIQUES, Guard, Memory, Profile, Shortcut, Windows
from sparsity.profiles import BUILTIN
from sparsity.select import WindowGrid
from tests.sparsity.calibration.conftest import made

EXACT = dict.fromkeys(EXACT_TECHNIQUES, True)
RULES = Guard(mask_jump=0.15, scene_cut=0.1, refresh_every=4, score_below=0.0)


def report_of(predictor, clip, profile):
    """Track a clip with a profile, and report it."""
    with predictor.use(profile):
        state = predictor.init_state(clip.video)
        for object_id, mask in clip.prompts().items():
            predictor.add_new_mask(state, 0, object_id, mask)
        for _ in predictor.propagate_in_video(state):
            pass
        return predictor.report(state)


@pytest.fixture(
    params=[
        (Windows(margin_px=0.0, candidates="best"), Guard()),
        (Windows(margin_px=8.0, score_below=20.0, saliency_mass=0.5), Guard(kept_share=1.0)),
        (mask_only(4.0, "all"), RULES),
    ],
    ids=["best mask", "saliency", "guard"],
)
def rules(request):
    return request.param


@pytest.mark.parametrize("learnt", [False, True], ids=["margin", "router"])
def test_replayed_decisions_are_those_of_the_run(demo_predictor, traces, rules, learnt):
    windows, guard = rules
    router = fit_router(traces, 0.95) if learnt else None
    profile = Profile(name="p", windows=windows, guard=guard, router=router, techniques=EXACT)
    clip = made("distractors")
    frames = report_of(demo_predictor, clip, profile).frames[1:]
    trace = capture(demo_predictor, clip, profile)
    replayed = replay_windows(trace, windows, guard, router).decisions
    real = [(f.reason, None if f.windows is None else tuple(f.windows)) for f in frames]
    assert [(d.reason, d.windows) for d in replayed] == real
    other = replay_windows(trace, mask_only(64.0, "all"), Guard()).decisions
    assert [(d.reason, d.windows) for d in other] != real


@pytest.mark.parametrize("every", [None, 3])
def test_windows_of_a_rolling_refresh_are_counted(demo_predictor, every):
    windows = Windows(margin_px=0.0, candidates="best", rolling_refresh=every)
    profile = Profile(name="p", windows=windows, techniques=EXACT)
    clip = made("smooth")
    frames = report_of(demo_predictor, clip, profile).frames[1:]
    trace = capture(demo_predictor, clip, profile)
    shares = [f.windows_kept / f.windows_total for f in frames]
    assert replay_windows(trace, windows, Guard()).kept.tolist() == shares
    other = windows.model_copy(update={"rolling_refresh": 2})
    assert replay_windows(trace, other, Guard()).kept.mean() > np.mean(shares)


def test_recall_counts_object_tokens_in_the_windows(traces):
    trace = traces[0]
    replayed = replay_windows(trace, mask_only(0.0, "best"), Guard(kept_share=1.0))
    t = next(i for i, d in enumerate(replayed.decisions) if d.windows is not None)
    inside = trace.tokens[t + 1][list(replayed.decisions[t].windows)].sum()
    assert replayed.recall[t] == pytest.approx(float(inside / trace.tokens[t + 1].sum()))
    assert replayed.kept[t] == len(replayed.decisions[t].windows) / trace.grid.count


def test_a_larger_margin_keeps_more_windows_and_misses_less(traces):
    for trace in traces:
        found = [replay_windows(trace, mask_only(m, "best"), Guard()) for m in (0.0, 16.0, 64.0)]
        kept, recall = zip(*((f.kept.mean(), f.recall.mean()) for f in found), strict=True)
        assert kept == tuple(sorted(kept)) and recall == tuple(sorted(recall))
        assert kept[0] < kept[2]


def test_all_tokens_recall_everything_and_fewer_recall_less(traces):
    memory = [replay_memory(traces[0], Memory(keep=share)) for share in (0.02, 0.3, 1.0)]
    assert memory[2].recall == pytest.approx(1.0) and memory[2].mass == pytest.approx(1.0)
    assert memory[2].keys == 1.0 and memory[0].keys < memory[1].keys < 1
    assert memory[0].mass < memory[1].mass < 1
    assert np.all(memory[0].recall < memory[1].recall)


def test_kept_tokens_match_those_of_a_real_run(demo_predictor, traces):
    clip, memory = made("smooth"), Memory(keep=0.05)
    profile = Profile(name="m", memory=memory, techniques=EXACT)
    report = report_of(demo_predictor, clip, profile)
    replayed = replay_memory(traces[0], memory)
    assert replayed.keys == pytest.approx(report.keys_share, abs=1e-6)
    assert replayed.prunable == pytest.approx(report.prunable_keys_share, abs=1e-6)


def test_tokens_go_where_they_hold_most(traces):
    even = replay_memory(traces[0], Memory(keep=0.1)).recall[:, -1].mean()
    divided = keep_for(traces[:1], 0.1)
    assert np.mean(divided) == pytest.approx(0.1, abs=0.005)
    assert replay_memory(traces[0], Memory(keep=divided)).recall[:, -1].mean() >= even
    assert len(set(divided)) > 1


def test_the_margin_is_the_smallest_that_covers(traces):
    assert margin_for(traces, "all", 0.5) == 0.0
    assert margin_for(traces, "all", 1.0) >= margin_for(traces, "all", 0.9)


@pytest.mark.parametrize("name", BASES)
def test_hundreds_of_settings_are_replayed(traces, name):
    drift, base = Drift(tuple(float(s) for s in range(12))), BUILTIN[name]
    settings = grid(traces, drift)
    found = candidates(traces, settings, Cost(0.5, 0.3, 0.2), drift, Shortcut(kind="cached"), base)
    assert len(found) == len(settings) > 100
    refreshed = {c.profile.guard.refresh_every for c in found if c.profile.windows}
    assert refreshed == {None, drift.refresh, 2 * drift.refresh}
    for c in found:
        assert c.profile.shortcut.kind == ("cached" if c.profile.windows else "identity")
        assert ("cached shortcut" in describe(c.profile)) is (c.profile.windows is not None)
        if c.profile.windows:
            assert c.profile.windows.rolling_refresh == base.windows.rolling_refresh
            assert c.profile.calibrated_techniques == base.calibrated_techniques
            readers = c.profile.memory.readers if c.profile.memory else "all"
            assert readers == base.memory.readers
        else:
            assert c.profile.memory.readers == "all" and not c.profile.calibrated_techniques
    best = frontier(found)
    costs, recalls = [c.cost for c in best], [c.recall for c in best]
    assert costs == sorted(costs) and recalls == sorted(recalls)
    assert all(any(b.cost <= c.cost and b.recall >= c.recall for b in best) for c in found)


def test_what_saves_nothing_is_not_run():
    def costing(*costs: float) -> list[Candidate]:
        return [Candidate(Profile(name=str(c)), 1.0, 1.0, c, c) for c in costs]

    saving = costing(0.5, 0.6, 0.7, 0.8)
    assert spread_out([*saving, *costing(0.99, 1.0)], 2) == [saving[0], saving[-1]]
    assert spread_out(saving, 9) == saving
    nothing = costing(0.99, 1.0)
    assert spread_out(nothing, 2) == nothing, "there is nothing else to run"


def test_cuts_do_not_raise_the_threshold_that_finds_them(traces):
    calm = scene_cut_for(traces)
    rough = traces[0].thumbnails.clone()
    rough[5:9] += 0.4
    rough[9:] -= 0.3
    cut = replace(traces[0], thumbnails=rough)
    assert scene_cut_for([cut, *traces]) == calm < min(cut.change[5], cut.change[9])
    shaken = rough + 0.2 * (torch.arange(len(rough)) % 2)[:, None, None, None]
    assert scene_cut_for([replace(traces[0], thumbnails=shaken)]) > calm


def following(name: str, places: list[int]) -> Trace:
    """Return a trace of one square, 6 elements wide, by the column it is in on each frame."""
    best = torch.zeros(len(places), 1, 96, 96, dtype=torch.bool)
    for t, place in enumerate(places):
        best[t, 0, 40:46, place : place + 6] = True
    count = len(places)
    return Trace(
        name, "sha256:" + "0" * 64, WindowGrid(24, 4), tuple(range(count)), best[:, :, None], best,
        torch.full((count, 1, 24, 24), torch.nan), torch.ones(count, 1),
        torch.arange(count)[:, None] > 0, torch.zeros(count, 3, 16, 16), None,
    )  # fmt: skip


def test_a_fast_clip_does_not_switch_the_rule_of_mask_jumps_off():
    hurry = (22, 23, 24)
    calm = [following(f"calm {i}", [*range(2, 20), i, 70, *range(71, 80)]) for i in hurry]
    fast = following("fast", list(range(2, 80, 8)))
    windows = mask_only(16.0, "best")
    jump = mask_jump_for([*calm, fast], windows, 0.99)
    assert jump is not None and 0.3 < jump < 0.9
    found = [replay_windows(calm[2], windows, guard) for guard in (Guard(), Guard(mask_jump=jump))]
    leap = 18  # the square hurries on the frame before, and is then far away
    assert found[0].recall[leap] < 0.99 and found[0].decisions[leap].windows is not None
    assert [t for t, d in enumerate(found[1].decisions) if d.reason == "mask jump"] == [
        leap,
        leap + 1,
    ]
    quiet = following("quiet", list(range(2, 30)))
    assert mask_jump_for([quiet, fast], windows, 0.99) is None, "every frame is covered"


def test_a_trace_is_read_back_and_half_a_file_is_not(traces, tmp_path):
    path = tmp_path / "clip.safetensors"
    save_trace(traces[2], path)
    again = load_trace(path)
    assert again is not None and again.digest == traces[2].digest
    assert torch.equal(again.best, traces[2].best) and again.memory.ages == traces[2].memory.ages
    other = replace(traces[2], score=traces[2].score + 1)
    assert other.digest != traces[2].digest
    path.write_bytes(path.read_bytes()[:1000])
    assert load_trace(path) is None
