"""Trimmed windows: which tokens are computed, what they attend to, what observers see and what the report says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from probes.errors import InputError
from probes.observing import AttentionCall, observe
from sparsity import accelerate
from sparsity.acceleration.model.encoder import window_grid
from sparsity.acceleration.model.windows import window_tokens
from sparsity.acceleration.session import Chosen, RoutedFeatures
from sparsity.profile import BUILTIN, Profile
from sparsity.techniques.retrieval import Retrieval
from sparsity.techniques.routing import Decision, Refresh, Routing
from sparsity.techniques.select import WindowGrid, windows_of_mask
from tests.sparsity.acceleration.conftest import PROMPTS, Run, make_frames, off_by, run, track

CPU = torch.device("cpu")


def profile(**routing: Any) -> Profile:
    """The recommended profile with other settings of its routing."""
    recommended = BUILTIN["recommended"]
    assert recommended.routing is not None
    return recommended.model_copy(
        update={"routing": recommended.routing.model_copy(update=routing)}
    )


def run_of(
    predictor: Any, frames: int, chosen: Chosen | Callable[[int], Chosen] = None
) -> tuple[dict[str, Any], dict[int, torch.Tensor]]:
    """State and masks of a clip, whose frames from the third on are computed as chosen, if they are."""
    state = predictor.init_state(make_frames(frames))
    if chosen is not None:
        predictor.choose_windows(state, lambda frame: chosen if frame > 1 else None)
    PROMPTS["mask"][0].give(predictor, state)
    return state, run(predictor, state)


@given(st.data(), st.sampled_from([WindowGrid(16, 4), WindowGrid(16, 14), WindowGrid(24, 4)]))
def test_tokens_of_cells_are_computed_and_no_others(data: st.DataObject, grid: WindowGrid) -> None:
    cells = tuple(sorted(data.draw(st.sets(st.integers(0, grid.cells.count - 1), min_size=1))))
    found = window_tokens(grid, cells, CPU)
    row, column = found.tokens // grid.tokens // 2, found.tokens % grid.tokens // 2
    of_token = (row * grid.cells.side + column).tolist()
    assert sorted(of_token) == sorted(cells * 4)
    windows = grid.windows_of(cells)
    assert tuple(found.ids.tolist()) == windows
    half = WindowGrid(grid.tokens // 2, grid.window // 2)
    pooled = window_tokens(half, cells, CPU, 1)
    assert pooled.ids.tolist() == found.ids.tolist()
    assert sorted(pooled.tokens.tolist()) == list(cells)
    some = torch.zeros(grid.count, dtype=torch.bool)
    some[list(windows)] = True
    whole = window_tokens(grid, grid.cells_of(some), CPU)
    trimmed = len(whole.tokens) - len(found.tokens)
    assert trimmed == 4 * (grid.cells_within(windows) - len(cells))
    assert whole.keys is None
    assert (0 if found.keys is None else int((~found.keys).sum())) == trimmed
    if found.keys is not None:
        assert bool(found.keys.flatten()[found.slots].all()), "what is computed is read"


@pytest.mark.parametrize("geometry", ["demo_predictor", "padded_predictor"])
def test_tokens_of_a_trimmed_window_attend_to_one_another(
    geometry: str, request: pytest.FixtureRequest
) -> None:
    """In blocks whose windows lie inside the grid it is full attention of what is left of each window."""
    fast = accelerate(request.getfixturevalue(geometry), "exact")
    grid, encoder = window_grid(fast), fast.parts.encoder
    block = encoder.stage3[encoder.first]
    every = torch.nonzero(grid.window_of_cell == 0)[:, 0].tolist()
    x = torch.randn(8, block.norm.shape[0], generator=torch.Generator().manual_seed(0))
    where, whole = (window_tokens(grid, tuple(cells), CPU) for cells in (every[1:3], every))
    with torch.inference_mode():
        found, expected = block.windowed(x.clone(), where), block.among(x.clone())
        beside = torch.zeros(len(whole.tokens), x.shape[1])
        beside[torch.isin(whole.tokens, where.tokens)] = x
        other = block.windowed(beside, whole)[torch.isin(whole.tokens, where.tokens)]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert off_by(other, expected) > 1e-3, "in a whole window there are more to attend to"


def test_masks_trim_the_windows_they_touch(demo_predictor: Any) -> None:
    """What is computed is what the last mask touches; the report counts it."""
    rule = {"unit": "cell", "candidates": "best", "refresh": None, "score_below": -1000.0}
    margin = 24.0
    fast = accelerate(demo_predictor, profile(**rule, margin_px=margin))
    grid, seen = window_grid(fast), {}
    state = fast.init_state(make_frames(5))
    PROMPTS["mask"][0].give(fast, state)
    for frame, _, _ in fast.propagate_in_video(state):
        seen[frame] = fast.session(state).decision
    results = state["output_dict_per_obj"][0]["non_cond_frame_outputs"]
    report = fast.report(state)
    for item in report.frames[2:]:
        mask = results[item.frame - 1]["pred_masks"][0, 0] > 0
        cells = torch.nonzero(windows_of_mask(mask, grid.cells, margin)).flatten().tolist()
        assert list(seen[item.frame][1].cells) == cells == item.cells
        assert item.windows == sorted({int(grid.window_of_cell[cell]) for cell in cells})
        assert item.trimmed_to == pytest.approx(len(cells) * 4 / (item.windows_kept * 16))
        assert item.trimmed_to < 1
    shares = [f.windows_kept / f.windows_total * f.trimmed_to for f in report.frames]
    assert report.windows_share == pytest.approx(sum(shares) / 5)


def test_windows_that_are_refreshed_are_whole(demo_predictor: Any) -> None:
    cells, grid = {}, window_grid(demo_predictor)
    for refresh in (None, Refresh(one_in=6)):
        fast = accelerate(demo_predictor, profile(unit="cell", refresh=refresh))
        state, _ = run_of(fast, 3)
        cells[refresh is not None] = set(fast.session(state).decision[1].cells)
    of = grid.window_of_cell.tolist()

    def whole(cells: set[int]) -> set[int]:
        counts = [sum(of[cell] == w for cell in cells) for w in range(grid.count)]
        return {w for w, count in enumerate(counts) if count == 4}

    left_out = grid.cells.count - len(cells[False])
    added = whole(cells[True]) - whole(cells[False])
    assert len(added) == -(-left_out // (6 * 4)) > 0
    assert cells[True] == cells[False] | {cell for cell, window in enumerate(of) if window in added}


@pytest.mark.parametrize("units", [("window", "cell"), ("cell", "window")])
def test_profiles_that_trim_and_others_take_turns(
    demo_predictor: Any, units: tuple[str, str]
) -> None:
    """What one left for its rolling refresh is nothing to the other: its first frame is whole."""
    fast = accelerate(demo_predictor, profile(unit=units[0]))
    state = fast.init_state(make_frames(6))
    fast.choose_windows(state, lambda frame: (3, 4, 7) if frame > 1 else None)
    PROMPTS["mask"][0].give(fast, state)
    frames = fast.propagate_in_video(state)
    for _ in range(4):
        next(frames)
    with fast.use(profile(unit=units[1])):
        list(frames)
    reasons = [item.reason for item in fast.report(state).frames]
    assert reasons[2:] == ["given", "given", "nothing cached", "given"]


def test_all_cells_are_the_whole_window(demo_predictor: Any) -> None:
    """Trimming to everything changes nothing, to one cell of each window it does."""
    rule = profile(refresh=None, unit="cell").model_copy(update={"retrieval": Retrieval()})
    of = window_grid(demo_predictor).window_of_cell.tolist()
    some = (3, 4, 7)
    every = tuple(cell for cell, window in enumerate(of) if window in some)
    one = tuple(of.index(window) for window in some)
    found, reports = {}, {}
    for name, chosen in (
        ("whole", some), ("every", Decision(every, "given")), ("one", Decision(one, "given"))
    ):  # fmt: skip
        fast = accelerate(demo_predictor, rule)
        state, logits = run_of(fast, 4, chosen)
        found[name], reports[name] = logits[3], replace(fast.report(state).frames[-1], objects={})
    assert torch.equal(found["every"], found["whole"]) and reports["every"] == reports["whole"]
    assert off_by(found["one"], found["whole"]) > 1e-3 and reports["one"] != reports["whole"]


def test_stock_code_around_routed_windows_trims_too(demo_predictor: Any) -> None:
    plain = Profile(name="plain", routing=Routing(margin_px=0))
    cut = Profile(name="cut", routing=Routing(margin_px=0, unit="cell"))
    runs: dict[str, Run] = {
        p.name: track(accelerate(demo_predictor, p), make_frames(4), PROMPTS["mask"])
        for p in (plain, cut)
    }
    assert runs["cut"].report.windows_share < runs["plain"].report.windows_share
    assert runs["cut"].logits[3].isfinite().all() and not runs["cut"].equal(runs["plain"])


@pytest.mark.parametrize("cells", [(), (0, 36), (-1,)])
def test_cells_that_are_not_there_are_refused(demo_predictor: Any, cells: tuple[int, ...]) -> None:
    fast = accelerate(demo_predictor, profile(unit="cell"))
    with pytest.raises(InputError, match=r"cells .* frame 2; expected one or more of 0 to 35"):
        run_of(fast, 3, Decision(cells, "given"))
    state, _ = run_of(fast, 3, Decision((0, 35), "given"))
    assert fast.report(state).frames[-1].reason == "given"


def test_a_profile_that_does_not_trim_takes_no_cells(demo_predictor: Any) -> None:
    fast, of = (
        accelerate(demo_predictor, "recommended"),
        window_grid(demo_predictor).window_of_cell,
    )
    whole = tuple(torch.nonzero(of == 5)[:, 0].tolist())
    with pytest.raises(InputError, match=r"set routing\.unit to cell, or return windows"):
        run_of(fast, 3, Decision(whole[:-1], "given"))
    state, _ = run_of(fast, 3, Decision(whole, "given"))
    windows = fast.report(state).frames[-1].windows
    assert windows is not None and 5 in windows


class MaskedAttention(TorchFunctionMode):
    """Notes what attention with a mask gives."""

    def __init__(self) -> None:
        super().__init__()
        self.out: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (kwargs or {}).get("attn_mask") is not None:
            self.out.append(out.clone())
        return out


def test_trimmed_windows_are_observed(demo_predictor: Any) -> None:
    """Calls say which slots of their windows take part, and masks don't change by a bit."""
    fast, calls = accelerate(demo_predictor, profile(unit="cell", margin_px=0.0)), []
    _, expected = run_of(fast, 4)

    def told(call: AttentionCall) -> None:
        if call.there is not None:
            calls.append(replace(call, q=call.q.clone(), k=call.k.clone(), v=call.v.clone()))

    with observe(fast, told, sites="encoder.*"), MaskedAttention() as computed:
        state, logits = run_of(fast, 4)
    assert all(torch.equal(logits[f], expected[f]) for f in expected)
    trimmed = {f.frame: f for f in fast.report(state).frames if f.cells is not None}
    assert {call.moment.frame for call in calls} == set(trimmed) == {2, 3}
    assert {call.site.split(".")[1] for call in calls} == {"stage3", "stage4"}
    for call, out in zip(calls, computed.out, strict=True):
        report = trimmed[call.moment.frame]
        assert call.there.shape == (len(report.windows), 1, 1, call.k.shape[2])
        assert call.keys.tolist() == report.windows
        tokens_of_cell = call.there.shape[3] // 4
        assert int(call.there.sum()) == len(report.cells) * tokens_of_cell
        scores = call.q @ call.k.mT / call.q.shape[-1] ** 0.5
        among = scores.masked_fill(~call.there, -torch.inf).softmax(-1) @ call.v
        assert off_by(among, out) <= 1e-4
        assert off_by(scores.softmax(-1) @ call.v, out) > 1e-3, "those left out would be read"


def test_windows_that_cells_would_straddle_are_refused(own_demo: Any) -> None:
    for window, half in ((6, 3), (5, 2)):
        own_demo.image_encoder.trunk.window_spec = [8, 4, window, half]
        for unit in ("window", "cell"):
            routed = Profile(name="routed", routing=Routing.model_validate({"unit": unit}))
            if window % 2 == 0:
                assert accelerate(own_demo, routed).profile == routed
                continue
            with pytest.raises(InputError, match=r"windows of 5 tokens .* set routing to null"):
                accelerate(own_demo, routed)


CELLS = (3, 7)


def test_features_of_some_cells_serve_no_others() -> None:
    version, image = (0, torch.float32), torch.ones(3, 2, 2)
    features = RoutedFeatures(4, (1, 2), version, image, {})
    assert features.serve(4, (1, 2), version, image)
    assert features.serve(4, (1, 2), version, image.clone())
    assert not features.serve(4, (1, 3), version, image)
    assert not features.serve(5, (1, 2), version, image)
    assert not features.serve(4, (1, 2), (1, torch.float32), image)
    assert not features.serve(4, (1, 2), (0, torch.bfloat16), image)
    assert not features.serve(4, (1, 2), version, image + 1)
