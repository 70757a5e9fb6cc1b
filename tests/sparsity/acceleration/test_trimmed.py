"""Trimmed windows: which tokens are computed, what they attend to, and what the report says."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probes.errors import InputError
from probes.observing import observe
from sparsity import accelerate
from sparsity.acceleration.encoder import window_grid
from sparsity.acceleration.session import FeatureKind
from sparsity.acceleration.windows import cells_within, window_tokens
from sparsity.profile import Memory, Profile, Windows
from sparsity.profiles import BUILTIN
from sparsity.routing import Decision
from sparsity.select import WindowGrid, windows_of_mask
from tests.conftest import make_frames
from tests.sparsity.acceleration.conftest import PROMPTS, off_by, track

CPU = torch.device("cpu")


def profile(**windows: Any) -> Profile:
    """The recommended profile with other settings of its windows."""
    recommended = BUILTIN["recommended"]
    assert recommended.windows is not None
    return recommended.model_copy(
        update={"windows": recommended.windows.model_copy(update=windows)}
    )


@given(st.data(), st.sampled_from([WindowGrid(16, 4), WindowGrid(16, 14), WindowGrid(24, 4)]))
def test_tokens_of_cells_are_computed_and_no_others(data: st.DataObject, grid: WindowGrid) -> None:
    cells = tuple(sorted(data.draw(st.sets(st.integers(0, grid.cells.count - 1), min_size=1))))
    windows = tuple(sorted({int(grid.window_of_cell[cell]) for cell in cells}))
    found = window_tokens(grid.tokens, grid.window, windows, CPU, cells)
    row, column = found.tokens // grid.tokens // 2, found.tokens % grid.tokens // 2
    of_token = (row * grid.cells.side + column).tolist()
    assert sorted(of_token) == sorted(cells * 4)
    assert sorted(cells_within(grid, windows, cells, CPU).tolist()) == list(cells)
    whole = window_tokens(grid.tokens, grid.window, windows, CPU)
    trimmed = len(whole.tokens) - len(found.tokens)
    assert (0 if found.keys is None else int((~found.keys).sum())) == trimmed
    if found.keys is not None:
        assert bool(found.keys.flatten()[found.slots].all()), "what is computed is read"


@pytest.mark.parametrize("geometry", ["demo_predictor", "tiny_predictor"])
def test_tokens_of_a_trimmed_window_attend_to_one_another(
    geometry: str, request: pytest.FixtureRequest
) -> None:
    """In blocks whose windows lie inside the grid it is full attention of what is left of each window."""
    fast = accelerate(request.getfixturevalue(geometry), "exact")
    grid, encoder = window_grid(fast), fast._encoder
    block = encoder.stage3[encoder.first]
    cells = torch.nonzero(grid.window_of_cell == 0)[1:3, 0].tolist()
    x = torch.randn(8, block.norm1.shape[0], generator=torch.Generator().manual_seed(0))
    where = window_tokens(grid.tokens, grid.window, (0,), CPU, tuple(cells))
    with torch.inference_mode():
        found, expected = block.windowed(x.clone(), where), block.among(x.clone())
        whole = window_tokens(grid.tokens, grid.window, (0,), CPU)
        beside = torch.zeros(len(whole.tokens), x.shape[1])
        beside[torch.isin(whole.tokens, where.tokens)] = x
        other = block.windowed(beside, whole)[torch.isin(whole.tokens, where.tokens)]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert off_by(other, expected) > 1e-3, "in a whole window there are more to attend to"


def test_masks_trim_the_windows_they_touch(demo_predictor: Any) -> None:
    """What is computed is what the last mask touches; the report counts it."""
    rule = {"trimmed": True, "candidates": "best", "rolling_refresh": None, "score_below": -1000.0}
    fast = accelerate(demo_predictor, profile(**rule))
    grid, margin = window_grid(fast), 24.0
    seen = {}
    with fast.use(profile(**rule, margin_px=margin)):
        state = fast.init_state(make_frames(5))
        PROMPTS["mask"][0].give(fast, state)
        for frame, _, _ in fast.propagate_in_video(state):
            seen[frame] = fast._session(state).decision
    results = state["output_dict_per_obj"][0]["non_cond_frame_outputs"]
    for item in fast.report(state).frames[2:]:
        decision = seen[item.frame][2]
        mask = results[item.frame - 1]["pred_masks"][0, 0] > 0
        cells = torch.nonzero(windows_of_mask(mask, grid.cells, margin)).flatten().tolist()
        assert list(decision.cells) == cells
        assert item.windows == sorted({int(grid.window_of_cell[cell]) for cell in cells})
        assert item.trimmed_to == pytest.approx(len(cells) * 4 / (item.windows_kept * 16))
        assert item.trimmed_to < 1
    shares = [f.windows_kept / f.windows_total * f.trimmed_to for f in fast.report(state).frames]
    assert fast.report(state).windows_share == pytest.approx(sum(shares) / 5)


def test_windows_that_are_refreshed_are_whole(demo_predictor: Any) -> None:
    decisions = {}
    for every in (None, 6):
        fast = accelerate(demo_predictor, profile(trimmed=True, rolling_refresh=every))
        state = fast.init_state(make_frames(4))
        PROMPTS["mask"][0].give(fast, state)
        for _ in range(2):
            list(fast.propagate_in_video(state, max_frame_num_to_track=2))
        decisions[every] = fast._session(state).decision[2]
    grid = window_grid(fast)
    of = grid.window_of_cell.tolist()

    def whole(decision: Decision) -> set[int]:
        counts = [sum(of[cell] == w for cell in decision.cells) for w in range(grid.count)]
        return {w for w, count in enumerate(counts) if count == 4}

    left_out = grid.cells.count - len(decisions[None].cells)
    added = whole(decisions[6]) - whole(decisions[None])
    assert len(added) == -(-left_out // (6 * 4))
    assert set(decisions[6].windows) == set(decisions[None].windows) | added


@pytest.mark.parametrize("trims", [(False, True), (True, False)])
def test_profiles_that_trim_and_others_take_turns(
    demo_predictor: Any, trims: tuple[bool, bool]
) -> None:
    """What one left for its rolling refresh is nothing to the other: its first frame is whole."""
    fast = accelerate(demo_predictor, profile(trimmed=trims[0]))
    state = fast.init_state(make_frames(6))
    fast.choose_windows(state, lambda frame: (5, 6, 9) if frame > 1 else None)
    PROMPTS["mask"][0].give(fast, state)
    frames = fast.propagate_in_video(state)
    for _ in range(4):
        next(frames)
    with fast.use(profile(trimmed=trims[1])):
        list(frames)
    reasons = [item.reason for item in fast.report(state).frames]
    assert reasons[2:] == ["given", "given", "nothing cached", "given"]


def test_all_cells_are_the_whole_window(demo_predictor: Any) -> None:
    """Trimming to everything changes nothing, to one cell of each window it does."""
    logits = {}
    rule = profile(rolling_refresh=None, trimmed=True).model_copy(update={"memory": Memory()})
    of = WindowGrid(16, 4).window_of_cell.tolist()
    some = (5, 6, 9)
    every = tuple(cell for cell, window in enumerate(of) if window in some)
    for name, cells in (("whole", None), ("every", every), ("one", every[::4])):
        fast = accelerate(demo_predictor, rule)
        state = fast.init_state(make_frames(4))
        if name == "one":
            cells = tuple(of.index(window) for window in some)
        chosen = Decision(some, "given", cells)
        fast.choose_windows(state, lambda frame, c=chosen: c if frame > 1 else None)
        PROMPTS["mask"][0].give(fast, state)
        logits[name] = [v.clone() for _, _, v in fast.propagate_in_video(state)][-1]
    assert torch.equal(logits["every"], logits["whole"])
    assert off_by(logits["one"], logits["whole"]) > 1e-3


def test_stock_code_around_routed_windows_trims_too(demo_predictor: Any) -> None:
    techniques: dict[str, bool] = {}
    plain = Profile(name="plain", windows=Windows(margin_px=0), techniques=techniques)
    cut = Profile(name="cut", windows=Windows(margin_px=0, trimmed=True), techniques=techniques)
    runs = {
        p.name: track(accelerate(demo_predictor, p), make_frames(4), PROMPTS["mask"])
        for p in (plain, cut)
    }
    fast = accelerate(demo_predictor, cut)
    report = fast.report(runs["cut"].state)
    assert report.windows_share < fast.report(runs["plain"].state).windows_share
    assert runs["cut"].logits[3].isfinite().all() and not runs["cut"].equal(runs["plain"])


@pytest.mark.parametrize("cells", [(), (0, 1), (0, 99), (-1,)])
def test_cells_of_other_windows_are_refused(demo_predictor: Any, cells: tuple[int, ...]) -> None:
    fast = accelerate(demo_predictor, profile(trimmed=True))
    state = fast.init_state(make_frames(4))
    fast.choose_windows(state, lambda frame: Decision((5,), "given", cells) if frame > 1 else None)
    PROMPTS["mask"][0].give(fast, state)
    with pytest.raises(InputError, match=r"cells of other windows than \(5,\)"):
        list(fast.propagate_in_video(state))


def test_a_profile_that_does_not_trim_takes_no_cells(demo_predictor: Any) -> None:
    fast = accelerate(demo_predictor, "recommended")
    state = fast.init_state(make_frames(4))
    fast.choose_windows(state, lambda frame: Decision((5,), "given", (18,)) if frame > 1 else None)
    PROMPTS["mask"][0].give(fast, state)
    with pytest.raises(InputError, match=r"set windows\.trimmed"):
        list(fast.propagate_in_video(state))


def test_trimmed_windows_cannot_be_observed(demo_predictor: Any) -> None:
    fast = accelerate(demo_predictor, profile(trimmed=True))
    state = fast.init_state(make_frames(5))
    PROMPTS["mask"][0].give(fast, state)
    with (
        observe(fast, lambda call: None, sites="encoder.*"),
        pytest.raises(InputError, match="windows are trimmed while .*; switch it off to observe"),
    ):
        list(fast.propagate_in_video(state))


def test_windows_that_cells_would_straddle_are_refused(demo_predictor: Any) -> None:
    odd = copy.deepcopy(demo_predictor)
    odd.image_encoder.trunk.window_spec = [8, 4, 5, 2]
    whole = Profile(name="whole", windows=Windows())
    accelerate(odd, whole)
    cut = whole.model_copy(update={"windows": Windows(trimmed=True)})
    with pytest.raises(InputError, match=r"windows of 5 tokens .* set windows.trimmed to false"):
        accelerate(odd, cut)


def test_features_of_trimmed_windows_serve_nothing_else() -> None:
    trimmed = FeatureKind((1, 2), (3, 7), True)
    assert trimmed.serves(trimmed)
    assert not trimmed.serves(FeatureKind((1, 2), (3,), True))
    assert not trimmed.serves(FeatureKind((1,), None, True))
    assert FeatureKind((1, 2), None, True).serves(FeatureKind((1,), (3,), True))
    assert FeatureKind(None, None, True).serves(trimmed)
