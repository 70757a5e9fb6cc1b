"""Techniques beyond the paper: every one of the table, and what each does of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probes import build_predictor, observe
from probes.errors import InputError
from sparsity import accelerate
from sparsity.acceleration.attention import blocked
from sparsity.acceleration.encoder import window_grid
from sparsity.acceleration.session import KEY, Chosen
from sparsity.acceleration.token_saliency import Watch, query_sample
from sparsity.profile import CALIBRATED_TECHNIQUES, Memory, Profile
from sparsity.profiles import BUILTIN, parse_profile
from sparsity.routing import Decision
from sparsity.techniques import FURTHER, further_profiles
from tests.conftest import make_frames, make_mask
from tests.sparsity.acceleration.conftest import (
    PROMPTS,
    Prompt,
    Run,
    encoded,
    off_by,
    step,
    track,
)

SOME = (5, 6, 9, 10)
NAMES = [profile.name for profile in further_profiles()]


def both_methods(keep: float) -> Profile:
    """The paper's profile with another share of tokens."""
    return BUILTIN["paper"].model_copy(update={"memory": Memory(keep=keep)})


def technique(name: str, keep: float = 0.2) -> Profile:
    """The profile of a row of the table, with another share of tokens."""
    profile = {p.name: p for p in further_profiles()}[name]
    assert profile.memory is not None
    memory = profile.memory.model_copy(update={"keep": keep})
    return profile.model_copy(update={"memory": memory})


@pytest.fixture(scope="module")
def demo() -> Any:
    """The demo model at 256 pixels: 4 x 4 windows."""
    return build_predictor("demo", image_size=256, device="cpu")


def routed_run(
    stock: Any,
    profile: Profile,
    windows: tuple[int, ...],
    frames: np.ndarray | None = None,
) -> Run:
    """Track five frames, from the third on by given windows.

    A profile that trims windows gets all cells of all windows, or one cell of each of some.
    """
    fast = accelerate(stock, profile)
    state = fast.init_state(make_frames(5) if frames is None else frames)
    chosen: Chosen = windows
    if profile.windows is not None and profile.windows.trimmed:
        of = window_grid(fast).window_of_cell.tolist()
        first = {of.index(w) for w in windows} if len(windows) < 16 else set(range(len(of)))
        chosen = Decision(windows, "given", tuple(sorted(first)))
    fast.choose_windows(state, lambda frame: chosen if frame > 1 else None)
    PROMPTS["mask"][0].give(fast, state)
    return Run({f: v.clone() for f, _, v in fast.propagate_in_video(state)}, state)


@pytest.fixture(scope="module")
def plain(demo: Any) -> Callable[[float, tuple[int, ...]], Run]:
    """Runs without any of the techniques, made once."""
    made: dict[Any, Run] = {}

    def run(keep: float, windows: tuple[int, ...]) -> Run:
        if (keep, windows) not in made:
            made[keep, windows] = routed_run(demo, both_methods(keep), windows)
        return made[keep, windows]

    return run


@pytest.mark.parametrize("name", NAMES)
def test_with_everything_kept_it_changes_nothing(demo: Any, name: str, plain: Any) -> None:
    every = tuple(range(16))
    run = routed_run(demo, technique(name, keep=1.0), every)
    expected = plain(1.0, every)
    assert max(off_by(run.logits[f], expected.logits[f]) for f in range(5)) <= 1e-3
    assert off_by(run.logits[4], expected.logits[3]) > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_it_changes_what_it_is_for(demo: Any, name: str, plain: Any) -> None:
    run, expected = routed_run(demo, technique(name), SOME), plain(0.2, SOME)
    assert off_by(run.logits[0], expected.logits[0]) == 0
    assert off_by(run.logits[4], expected.logits[4]) > 1e-4
    found = [item.windows for item in accelerate(demo).report(run.state).frames]
    assert found[:2] == [None, None]
    added = 2 if technique(name).windows.rolling_refresh else 0  # of 12 that are left out one in 6
    assert [len(windows) for windows in found[2:]] == [len(SOME) + added] * 3
    assert all(set(SOME) <= set(windows) for windows in found[2:])


def test_the_table_and_the_switches_are_the_same() -> None:
    base = BUILTIN["paper"]
    switched = set().union(*(s(base).calibrated_techniques for s in FURTHER.values()))
    assert switched == set(CALIBRATED_TECHNIQUES), "each switch has a row"
    calibrated = [name for name, p in BUILTIN.items() if p.calibrated_techniques]
    assert calibrated == NAMES[-1:] == ["recommended"]
    for profile in further_profiles():
        assert parse_profile(profile.to_json()) == profile


def test_the_page_has_a_paragraph_for_each() -> None:
    page = (Path(__file__).parents[3] / "docs" / "techniques.md").read_text(encoding="utf-8")
    assert [name for name in FURTHER if f"**{name.capitalize()}**" not in page] == []
    assert "**Unknown technique**" not in page


@pytest.mark.parametrize("name", CALIBRATED_TECHNIQUES)
@pytest.mark.parametrize("missing", ["windows", "encoder"])
def test_what_it_rests_on_must_be_on(name: str, missing: str) -> None:
    profile = BUILTIN["paper"]
    techniques = {**profile.techniques, name: True, "encoder": missing != "encoder"}
    windows = None if missing == "windows" else profile.windows
    broken = profile.model_copy(update={"windows": windows, "techniques": techniques})
    with pytest.raises(InputError, match=f"{name!r} needs windows .* 'encoder'"):
        parse_profile(broken.to_json())


def test_on_a_still_picture_early_stages_are_what_they_were(demo: Any) -> None:
    still = make_frames(1).repeat(5, axis=0)
    run = routed_run(demo, technique("+ early stages reused"), SOME, still)
    expected = routed_run(demo, both_methods(0.2), SOME, still)
    assert off_by(run.logits[4], expected.logits[4]) <= 1e-3
    stale = routed_run(demo, technique("+ last block reused"), SOME, still)
    assert off_by(stale.logits[4], expected.logits[4]) > 1e-3, "its keys came from other windows"


def test_reused_windows_are_as_old_as_their_last_computation(demo: Any) -> None:
    """Fine levels of a window change when it is computed, and stay when it is not."""
    fast = accelerate(demo, technique("+ early stages reused"))
    route = {2: SOME, 3: (0, *SOME), 4: SOME}
    state = fast.init_state(make_frames(5) // 2 + np.arange(5, dtype=np.uint8)[:, None, None, None])
    fast.choose_windows(state, route.get)
    PROMPTS["mask"][0].give(fast, state)
    seen = []
    for _ in fast.propagate_in_video(state):
        seen.append(encoded(state)[0].clone())
    corner, last = (..., slice(0, 16), slice(0, 16)), (..., slice(48, 64), slice(48, 64))
    same = [
        [torch.equal(seen[f][part], seen[f - 1][part]) for f in range(2, 5)]
        for part in (corner, last)
    ]
    assert same == [[True, False, True], [True, True, True]]


@pytest.mark.parametrize("name", ["+ stage 4 reused", "+ rolling refresh", "+ cached shortcut"])
def test_what_is_reused_must_be_of_the_adjacent_frame(demo: Any, name: str) -> None:
    fast = accelerate(demo, "paper")
    state = track(fast, make_frames(6), PROMPTS["mask"]).state
    with fast.use(technique(name)):
        fast.choose_windows(state, lambda frame: SOME)
        reasons = []
        for frame in (5, 4, 2):
            step(fast, state, frame)
            reasons.append(fast.report(state).frames[-1].reason)
    assert reasons == ["nothing cached", "given", "nothing cached"]


@pytest.mark.parametrize("name", ["+ stage 4 reused", "+ rolling refresh", "+ cached shortcut"])
def test_what_another_profile_left_behind_is_not_reused(demo: Any, name: str) -> None:
    """Frames that were routed without it between then and now would let it look young."""
    found = {}
    for between in ("paper", technique(name)):
        fast = accelerate(demo, technique(name))
        state = fast.init_state(make_frames(6))
        fast.choose_windows(state, lambda frame: SOME if frame > 1 else None)
        PROMPTS["mask"][0].give(fast, state)
        list(fast.propagate_in_video(state, max_frame_num_to_track=2))
        with fast.use(between):
            list(fast.propagate_in_video(state, 3, max_frame_num_to_track=1))
        list(fast.propagate_in_video(state, 5))
        found[str(between)] = [item.reason for item in fast.report(state).frames[2:]]
    assert list(found.values()) == [["given"] * 3 + ["nothing cached"], ["given"] * 4]


def test_what_is_reused_must_be_of_the_same_weights_and_number_format() -> None:
    stock = build_predictor("demo", image_size=256, device="cpu")
    fast = accelerate(stock, technique("+ stage 4 reused"))
    state = routed_run(stock, fast.profile, SOME).state

    def reason() -> str:
        step(fast, state, 4)
        return fast.report(state).frames[-1].reason

    assert [reason(), reason()] == ["nothing cached", "given"]
    with torch.autocast("cpu", torch.bfloat16):
        assert [reason(), reason()] == ["nothing cached", "given"]
    with torch.no_grad():
        stock.image_encoder.trunk.blocks[-1].norm1.weight.mul_(0.5)
    assert [reason(), reason()] == ["nothing cached", "given"]


@pytest.mark.parametrize("trimmed", [False, True])
def test_what_changed_is_refreshed(demo: Any, trimmed: bool) -> None:
    """Change counts from a window's last computation; a still window is left alone while others move."""
    frames = make_frames(1).repeat(6, axis=0)
    height, width = frames.shape[1] // 4, frames.shape[2] // 4
    frames[2:, :height, :width] = 0  # window 0, from frame 2 on
    frames[3:, 3 * height :, 3 * width :] = 255  # window 15, from frame 3 on
    frames[4:, :height, 3 * width :] = 128  # window 3, from frame 4 on
    profile = technique("+ rolling refresh")
    rule = profile.windows.model_copy(update={"rolling_refresh": 12, "trimmed": trimmed})
    fast = accelerate(demo, profile.model_copy(update={"windows": rule}))
    state = fast.init_state(frames)
    fast.choose_windows(state, lambda frame: SOME if frame > 1 else None)
    PROMPTS["mask"][0].give(fast, state)
    list(fast.propagate_in_video(state))
    found = [set(item.windows or ()) - set(SOME) for item in fast.report(state).frames]
    assert found[2:5] == [{0}, {15}, {3}]


def test_a_frame_whose_windows_are_all_refreshed_is_encoded_whole(demo: Any) -> None:
    profile = technique("recommended", keep=1.0)
    assert profile.windows is not None
    found = {}
    for every in (1, 4):
        rule = profile.windows.model_copy(update={"rolling_refresh": every})
        found[every] = routed_run(demo, profile.model_copy(update={"windows": rule}), SOME)
    whole = routed_run(demo, both_methods(1.0), tuple(range(16)))
    assert off_by(found[1].logits[4], whole.logits[4]) <= 1e-3
    assert off_by(found[4].logits[4], whole.logits[4]) > 1e-3


def test_pooled_keys_cannot_be_observed(demo: Any) -> None:
    fast = accelerate(demo, technique("+ pooled background"))
    state = fast.init_state(make_frames(5))
    fast.choose_windows(state, lambda frame: SOME if frame > 1 else None)
    PROMPTS["mask"][0].give(fast, state)
    with (
        observe(fast, lambda call: None, sites="encoder.*"),
        pytest.raises(InputError, match="switch it off to observe"),
    ):
        list(fast.propagate_in_video(state))


def test_the_newest_frame_is_cut_before_it_is_read(demo: Any) -> None:
    tokens, kept, keys = 256, 51, {}
    for exempt in (("conditioning", "pointers"), ("pointers",)):
        memory = Memory(keep=0.2, exempt=exempt)
        fast = accelerate(demo, Profile(name="cut", memory=memory))
        run = track(fast, make_frames(5), PROMPTS["mask"])
        item = fast.report(run.state).frames[-1].objects[1]
        pointers = item.keys_total - 4 * tokens
        keys[exempt] = item.keys_used[0] - pointers
        assert item.pruned_frames == 5 - len(exempt)
    assert keys[("conditioning", "pointers")] == tokens + 3 * kept
    assert keys[("pointers",)] == 4 * kept


def test_the_call_an_observer_sees_names_the_keys_that_were_left(demo: Any) -> None:
    fast = accelerate(demo, Profile(name="cut", memory=Memory(keep=0.2, exempt=("pointers",))))
    seen = []
    with observe(fast, seen.append, sites="memory.*cross"):
        track(fast, make_frames(5), PROMPTS["mask"])
    last = seen[-1]
    assert len(last.keys) == last.k.shape[2] == len(set(last.keys.tolist()))
    newest = (last.keys >= 3 * 256) & (last.keys < 4 * 256)
    assert int(newest.sum()) == 51


def test_a_frame_all_of_whose_memory_was_cut_before(demo: Any) -> None:
    """Tracked once more, its newest frame was cut already: no memory frame is read whole."""
    fast = accelerate(demo, technique("+ prompt and newest frame pruned"))
    state = track(fast, make_frames(6), PROMPTS["mask"]).state
    first, again = (step(fast, state, 5) for _ in range(2))
    found = fast.report(state).frames[-1].objects[1]
    assert found.pruned_frames == 5
    assert torch.equal(first, again)
    assert not torch.equal(first, step(fast, state, 4))


def test_projections_of_a_prompt_are_held_until_weights_change() -> None:
    stock = build_predictor("demo", image_size=256, device="cpu")
    fast = accelerate(stock, "exact")
    state = track(fast, make_frames(5), PROMPTS["mask"]).state
    prompt = state["output_dict_per_obj"][0]["cond_frame_outputs"][0]
    held, before = prompt[KEY].held, step(fast, state, 4)
    assert sorted(held.keys) == list(range(4))
    assert prompt[KEY].held is held
    with torch.no_grad():
        stock.memory_attention.layers[1].cross_attn_image.k_proj.weight.mul_(-1)
    after = step(fast, state, 4)
    assert prompt[KEY].held is not held
    assert off_by(after, step(stock, state, 4)) <= 1e-3
    assert off_by(after, before) > 1e-3


def test_projections_are_held_of_prompts_that_are_read_alone(demo: Any, long_folder: str) -> None:
    """Six prompts, of which the two nearest are read on a frame."""
    demo.max_cond_frames_in_attn = 2
    try:
        state = demo.init_state(long_folder)
        for frame in range(6):
            Prompt(frame, mask=make_mask()).give(demo, state)
        fast = accelerate(demo, "exact")
        for _ in fast.propagate_in_video(state):
            pass
        expected = step(demo, state, 9)
        assert off_by(step(fast, state, 9), expected) <= 1e-4
    finally:
        demo.max_cond_frames_in_attn = -1
    prompts = state["output_dict_per_obj"][0]["cond_frame_outputs"]
    held = [frame for frame, out in prompts.items() if KEY in out and out[KEY].held is not None]
    assert len(prompts) == 6 and 1 <= len(held) <= 2
    assert off_by(step(demo, state, 8), expected) > 1e-3


@settings(deadline=None, max_examples=20)
@given(
    queries=st.integers(1, 700),
    tokens=st.integers(1, 60),
    others=st.integers(0, 40),
    rows=st.integers(1, 800),
    seed=st.integers(0, 99),
)
def test_saliency_read_off_the_weights_is_that_of_own_products(
    queries: int, tokens: int, others: int, rows: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(n, 16, generator=generator) for n in (queries, 2 * tokens + others))
    sample = query_sample(queries, rows, seed, q.device)
    watch = Watch((others, others + tokens), tokens, sample)
    seen = watch.seen(q)
    blocked(
        q[None, None], k[None, None], k[None, None, :, :4],
        see=lambda weights, row: [frame.see(weights, row) for frame in seen] and None,
    )  # fmt: skip
    expected = watch.measure(q, k)
    for frame, saliency in zip(seen, expected, strict=True):
        torch.testing.assert_close(frame.result(), saliency, rtol=1e-4, atol=1e-6)
    if tokens > 2:
        assert not torch.allclose(expected[0], expected[1], rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_that_give_a_frame_next_to_nothing_do_not_count(dtype: torch.dtype) -> None:
    tokens, faint = 8, 1e-40 if dtype != torch.float16 else 6e-8
    weights = torch.zeros(2, tokens, dtype=dtype)
    weights[0, 2] = faint
    weights[1, :2] = torch.tensor([0.25, 0.75])
    (seen,) = Watch((0,), tokens, None).seen(weights)
    seen.see(weights, 0)
    torch.testing.assert_close(seen.result(), torch.tensor([0.25, 0.75, 0, 0, 0, 0, 0, 0]))
    weights[0, 2] = 1.0
    seen.see(weights, 0)
    assert int(seen.result().argmax()) == 1 and float(seen.result()[2]) > 0


def test_given_windows_are_refreshed_like_found_ones(demo: Any) -> None:
    reasons = {}
    for every in (2, None):
        guard = BUILTIN["paper"].guard.model_copy(update={"refresh_every": every})
        run = routed_run(demo, both_methods(0.2).model_copy(update={"guard": guard}), SOME)
        report = accelerate(demo).report(run.state)
        reasons[every] = [item.reason for item in report.frames[2:]]
    assert reasons[None] == ["given", "given", "given"]
    assert reasons[2] == ["given", "refresh", "given"]
