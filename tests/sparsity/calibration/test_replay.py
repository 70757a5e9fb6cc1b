"""Replays decide as the predictor does, recall what they say, and are saved and read whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from probes.errors import InputError
from probes.observing import listen
from sparsity.calibration.capture import capture, read_trace, write_trace
from sparsity.calibration.cost import BASES, SECOND, WHOLE, Cost, Drift
from sparsity.calibration.report import coverage
from sparsity.calibration.search import (
    SAVES,
    Base,
    Candidate,
    candidates,
    describe,
    fast_enough,
    fewest_cells,
    frontier,
    grid,
    shortlist,
    spread_out,
)
from sparsity.calibration.thresholds import (
    MARGINS,
    covered,
    keep_for,
    margin_for,
    mask_jump_for,
    mask_only,
    scene_cut_for,
)
from sparsity.calibration.traces import Trace, replay_decisions, replay_retrieval, replay_routing
from sparsity.profile import BUILTIN, Profile
from sparsity.techniques.adapter import Adapter
from sparsity.techniques.retrieval import Retrieval
from sparsity.techniques.routing import Guard, Refresh, Routing
from sparsity.techniques.select import WindowGrid
from tests.sparsity.calibration.conftest import made

RULES = Guard(mask_jump=0.15, scene_cut=0.1, refresh_every=4, score_below=0.0)


UNITS = pytest.mark.parametrize("unit", ["window", "cell"])


def report_of(predictor, clip, profile):
    """Track a clip with a profile, and report it."""
    with predictor.use(profile):
        state = clip.begin(predictor)
        for _ in predictor.propagate_in_video(state):
            pass
        return predictor.report(state)


@pytest.fixture(
    params=[
        (Routing(margin_px=0.0, candidates="best"), Guard()),
        (Routing(margin_px=8.0, score_below=20.0, saliency_mass=0.5), Guard(kept_share=1.0)),
        (mask_only(4.0, "all"), RULES),
    ],
    ids=["best mask", "saliency", "guard"],
)
def rules(request):
    return request.param


@UNITS
def test_replayed_decisions_are_those_of_the_run(demo_predictor, rules, unit):
    routing, guard = rules[0].model_copy(update={"unit": unit}), rules[1]
    profile = Profile(name="p", routing=routing, guard=guard, exact=True)
    real = []
    with listen(demo_predictor, decided=lambda told: real.append(told.what)):
        trace = capture(demo_predictor, made("distractors", frames=8), profile)
    assert len(real) == len(trace.frames) - 1
    assert replay_decisions(trace, routing, guard) == real
    assert replay_decisions(trace, mask_only(64.0, "all", unit), Guard()) != real
    other = "window" if unit == "cell" else "cell"
    assert replay_decisions(trace, routing.model_copy(update={"unit": other}), guard) != real


@UNITS
@pytest.mark.parametrize("every", [None, 3])
def test_what_is_kept_is_counted_as_the_report_counts_it(demo_predictor, every, unit):
    refresh = None if every is None else Refresh(one_in=every)
    routing = Routing(unit=unit, margin_px=0.0, candidates="best", refresh=refresh)
    profile = Profile(name="p", routing=routing, exact=True)
    clip = made("smooth", frames=7)
    frames = report_of(demo_predictor, clip, profile).frames[1:]
    trace = capture(demo_predictor, clip, profile)
    shares = np.array([f.windows_kept / f.windows_total * f.trimmed_to for f in frames])
    kept = replay_routing(trace, routing, Guard()).kept
    assert any(f.trimmed_to < 1 for f in frames) is (unit == "cell")
    if unit == "cell" and every is not None:  # windows that are refreshed count whole
        plain = routing.model_copy(update={"refresh": None})
        trimmed = replay_routing(trace, plain, Guard()).kept
        assert np.all(shares <= kept + 1e-9) and np.all(kept <= shares + trimmed)
    else:
        assert kept == pytest.approx(shares)
    other = routing.model_copy(update={"refresh": Refresh(one_in=2)})
    assert replay_routing(trace, other, Guard()).kept.mean() > np.mean(shares)


@UNITS
def test_recall_counts_object_tokens_in_what_is_computed(traces, unit):
    trace, given = traces[0], (mask_only(0.0, "best", unit), Guard(kept_share=1.0))
    decisions, replayed = replay_decisions(trace, *given), replay_routing(trace, *given)
    t = next(i for i, d in enumerate(decisions) if d.cells is not None)
    cells = decisions[t].cells
    inside = trace.tokens[t + 1][list(cells)].sum()
    assert replayed.recall[t] == pytest.approx(float(inside / trace.tokens[t + 1].sum()))
    windows = trace.grid.windows_of(cells)
    trimmed_to = len(cells) / trace.grid.cells_within(windows)
    assert replayed.kept[t] == pytest.approx(len(windows) / trace.grid.count * trimmed_to)
    assert (trimmed_to < 1) is (unit == "cell")


@UNITS
def test_a_larger_margin_keeps_more_and_misses_less(traces, unit):
    for trace in traces:
        rules = [mask_only(margin, "best", unit) for margin in (0.0, 16.0, 64.0)]
        found = [replay_routing(trace, rule, Guard()) for rule in rules]
        kept, recall = zip(*((f.kept.mean(), f.recall.mean()) for f in found), strict=True)
        assert kept == tuple(sorted(kept)) and recall == tuple(sorted(recall))
        assert kept[0] < kept[2]


def test_all_tokens_recall_everything_and_fewer_recall_less(traces):
    memory = [replay_retrieval(traces[0], Retrieval(keep=share)) for share in (0.02, 0.3, 1.0)]
    assert memory[2].recall == pytest.approx(1.0) and memory[2].mass == pytest.approx(1.0)
    assert memory[2].keys == 1.0 and memory[0].keys < memory[1].keys < 1
    assert memory[0].mass < memory[1].mass < 1
    assert np.all(memory[0].recall < memory[1].recall)


def test_kept_tokens_match_those_of_a_real_run(demo_predictor, traces):
    clip, memory = made("smooth"), Retrieval(keep=0.05)
    profile = Profile(name="m", retrieval=memory, exact=True)
    report = report_of(demo_predictor, clip, profile)
    replayed = replay_retrieval(traces[0], memory)
    assert replayed.keys == pytest.approx(report.keys_share, abs=1e-6)
    assert replayed.prunable == pytest.approx(report.prunable_keys_share, abs=1e-6)


def test_tokens_go_where_they_hold_most(traces):
    even = replay_retrieval(traces[0], Retrieval(keep=0.1)).recall[:, -1].mean()
    divided = keep_for(traces[:1], 0.1)
    assert np.mean(divided) == pytest.approx(0.1, abs=0.005)
    assert replay_retrieval(traces[0], Retrieval(keep=divided)).recall[:, -1].mean() >= even
    assert len(set(divided)) > 1


@UNITS
def test_the_margin_is_the_smallest_that_covers(traces, unit):
    assert margin_for(traces, "all", 0.5, unit) == 0.0
    assert margin_for(traces, "all", 1.0, unit) >= margin_for(traces, "all", 0.9, unit)
    margin = margin_for(traces, "best", 0.95, unit)
    assert covered(traces, mask_only(margin, "best", unit))[1] >= 0.95
    below = [m for m in MARGINS if m < margin]
    assert all(covered(traces, mask_only(m, "best", unit))[1] < 0.95 for m in below)


def test_cells_keep_less_than_their_windows_and_need_a_larger_margin(traces):
    for margin in (0.0, 16.0):
        cells, windows = (
            covered(traces, mask_only(margin, "best", unit)) for unit in ("cell", "window")
        )
        assert cells[0] < windows[0] and cells[1] <= windows[1]
    assert margin_for(traces, "best", 0.95, "cell") > margin_for(traces, "best", 0.95)


def test_both_units_are_tried_and_told_where_a_window_has_several_cells(traces):
    settings, rows = grid(traces, Drift(())), coverage(traces)
    assert {s.routing.unit for s in settings} == {"window", "cell"}
    assert {row["unit"] for row in rows} == {"window", "cell"} and len(rows) == 4 * len(MARGINS)
    assert fewest_cells(traces).unit == "cell"
    single = [replace(following("one", [*range(2, 20)]), grid=WindowGrid(24, 2))]
    assert {s.routing.unit for s in grid(single, Drift(()))} == {"window"}
    assert {row["unit"] for row in coverage(single)} == {"window"}
    assert fewest_cells(single).unit == "window"


@pytest.mark.parametrize("name", BASES)
def test_hundreds_of_settings_are_replayed(traces, name):
    drift, base = Drift(tuple(float(s) for s in range(12))), BUILTIN[name]
    settings = grid(traces, drift)
    found = candidates(traces, settings, Cost(0.5, 0.3, 0.2), drift, Adapter(kind="cached"), base)
    assert len(found) == len(settings) > 200
    refreshed = {c.profile.guard.refresh_every for c in found}
    assert refreshed == {None, drift.refresh, 2 * drift.refresh}
    for c in found:
        assert c.profile.adapter.kind == "cached" and "cached adapter" in describe(c.profile)
        assert ("by cells" in describe(c.profile)) is (c.profile.routing.unit == "cell")
        assert c.profile.routing.refresh == base.routing.refresh
        assert c.profile.reuse == base.reuse
        readers = c.profile.retrieval.readers if c.profile.retrieval else "all"
        assert readers == base.retrieval.readers
    best = frontier(found)
    costs, recalls = [c.cost for c in best], [c.recall for c in best]
    assert costs == sorted(costs) and recalls == sorted(recalls)
    assert all(any(b.cost <= c.cost and b.recall >= c.recall for b in best) for c in found)
    assert shortlist(found, 1) == [([c for c in best if c.cost <= SAVES] or best[:1])[-1]]


def on(name: str, int8: float | None = None) -> Base:
    """A base as it may be measured."""
    cost = Cost(0.5, 0.3, 0.2)
    return Base(name, cost, cost, Drift(()), Candidate(BUILTIN[name], 1.0, 1.0, 1.0, 1.0), int8)


def test_memory_alone_and_whole_frames_every_second_frame_are_tried(traces):
    found = on(WHOLE).candidates(traces, Adapter(kind="cached"))
    alone = [c for c in found if c.profile.routing is None]
    carried = [c for c in found if c.profile.routing is not None]
    assert len(carried) == len(alone) + 1 and all(c.profile.retrieval for c in alone)
    for c in carried:
        assert c.profile.routing == SECOND and c.profile.guard.scene_cut is not None
        assert 0.4 < c.windows < 0.8 and "features of one frame in 2" in describe(c.profile)
        assert "margin" not in describe(c.profile)
        assert Profile.model_validate_json(c.profile.to_json()) == c.profile, "it may be written"
    assert all(c.windows == 1 for c in alone)
    assert not any(c.profile.reuse or c.profile.adapter.kind != "identity" for c in found)


@pytest.mark.parametrize("name", [WHOLE, *BASES])
def test_each_setting_is_tried_in_int8_too_where_that_is_worth_it(traces, name):
    plain = on(name).candidates(traces[:1], Adapter(kind="cached"))
    both = on(name, 0.8).candidates(traces[:1], Adapter(kind="cached"))
    assert not any(c.profile.quantize for c in plain) and both[: len(plain)] == plain
    quantized = both[len(plain) :]
    assert all("int8" in describe(c.profile) for c in quantized)
    if name == WHOLE:
        assert (quantized[0].windows, quantized[0].keys, quantized[0].cost) == (1, 1, 0.8)
        quantized = quantized[1:]
    for one, other in zip(plain, quantized, strict=True):
        assert other.cost == pytest.approx(0.8 * one.cost) and other.recall == one.recall
        assert other.profile.routing == one.profile.routing
    ladder = shortlist(both, 4)
    assert not any(c.profile.quantize for c in ladder), "of that, replays say nothing"
    assert shortlist(quantized, 4), "where there is nothing else"


def test_frames_that_are_carried_over_are_replayed_as_the_predictor_does(demo_predictor):
    guard = Guard(scene_cut=0.1, score_below=0.0)
    profile = Profile(name="p", routing=SECOND, guard=guard, exact=True)
    clip, real = made("smooth", frames=8), []
    with listen(demo_predictor, decided=lambda told: real.append(told.what)):
        trace = capture(demo_predictor, clip, profile)
    assert replay_decisions(trace, SECOND, guard) == real
    assert sum(decision.carried for decision in real) == 3
    frames = report_of(demo_predictor, clip, profile).frames[1:]
    kept = replay_routing(trace, SECOND, guard).kept
    assert kept.tolist() == [f.windows_kept / f.windows_total for f in frames]
    third = SECOND.model_copy(update={"every": 3})
    assert replay_decisions(trace, third, guard) != real


def test_what_saves_nothing_is_not_run():
    def costing(*costs: float) -> list[Candidate]:
        return [Candidate(Profile(name=str(c)), 1.0, 1.0, c, c) for c in costs]

    saving = costing(0.5, 0.6, 0.7, 0.8)
    assert spread_out([*saving, *costing(0.99, 1.0)], 2) == [saving[0], saving[-1]]
    assert spread_out(saving, 9) == saving
    assert spread_out(costing(0.5, 0.6, 0.81, 0.9), 1)[0].cost == 0.6, "the surest that saves"
    assert spread_out(costing(0.85, 0.9), 1)[0].cost == 0.85
    nothing = costing(0.99, 1.0)
    assert spread_out(nothing, 2) == nothing, "there is nothing else to run"


def routed(unit: str, *costs: float) -> list[Candidate]:
    rule = Routing(unit=unit)
    return [Candidate(Profile(name=f"{unit} {c}", routing=rule), c, 1.0, c, c) for c in costs]


def test_both_units_are_run_where_several_settings_are():
    """By cells everything is cheaper: together, no setting by windows were on the frontier."""
    windows, cells = routed("window", 0.6, 0.7, 0.8), routed("cell", 0.5, 0.6, 0.7)
    cells = [replace(c, recall=0.9 + c.recall / 10) for c in cells]
    every = [*windows, *cells]
    assert frontier(every) == cells == shortlist(cells, 3)
    assert shortlist(every, 4) == [windows[0], windows[-1], cells[0], cells[-1]]
    assert shortlist(every, 1) == cells[-1:]
    assert shortlist(fast_enough(every, 1 / 0.75), 3, surest=True) == [*windows[:2], cells[-1]]
    assert shortlist(fast_enough(every, 1 / 0.55), 3, surest=True) == cells[:1]
    with pytest.raises(InputError, match=r"target-speedup 3 given; .* cheapest setting is 2.00x;"):
        fast_enough(every, 3.0)


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
    plain, guarded = (
        replay_decisions(calm[2], windows, guard) for guard in (Guard(), Guard(mask_jump=jump))
    )
    leap = 18  # the square hurries on the frame before, and is then far away
    assert replay_routing(calm[2], windows, Guard()).recall[leap] < 0.99
    assert plain[leap].cells is not None
    assert [t for t, d in enumerate(guarded) if d.reason == "mask jump"] == [leap, leap + 1]
    quiet = following("quiet", list(range(2, 30)))
    assert mask_jump_for([quiet, fast], windows, 0.99) is None, "every frame is covered"


def test_a_trace_is_read_back_and_half_a_file_is_not(traces, tmp_path):
    path = tmp_path / "clip.safetensors"
    write_trace(path, traces[2])
    again = read_trace(path)
    assert again.digest == traces[2].digest
    assert torch.equal(again.best, traces[2].best) and again.memory.ages == traces[2].memory.ages
    other = replace(traces[2], score=traces[2].score + 1)
    assert other.digest != traces[2].digest
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SafetensorError):
        read_trace(path)
