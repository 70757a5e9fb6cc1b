"""Techniques beyond the paper: every one of the table, and what each does of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probes import observe
from probes.errors import InputError
from sparsity import accelerate
from sparsity.acceleration.model.attention import blocked
from sparsity.acceleration.model.encoder import window_grid
from sparsity.acceleration.model.saliency import Watch, query_sample
from sparsity.acceleration.session import Chosen
from sparsity.clips.made import make_clip
from sparsity.profile import BUILTIN, FURTHER, Profile, further_profiles, parse_profile
from sparsity.techniques import KEY
from sparsity.techniques.retrieval import Retrieval
from sparsity.techniques.reuse import REUSED_PARTS
from sparsity.techniques.routing import Decision, Refresh
from tests.sparsity.acceleration.conftest import (
    FULL,
    PROMPTS,
    Prompt,
    Run,
    Runs,
    encoded,
    make_frames,
    make_mask,
    off_by,
    run,
    step,
    track,
)

SOME = (1, 3, 4)
"""Windows of nine that are computed."""

EVERY = tuple(range(9))
SECOND = "+ every second frame"
"""It carries features over whichever windows are kept."""

NAMES = [profile.name for profile in further_profiles()]


def both_methods(keep: float) -> Profile:
    """The paper's profile with another share of tokens."""
    return BUILTIN["paper"].model_copy(update={"retrieval": Retrieval(keep=keep)})


def technique(name: str, keep: float = 0.2, **routing: Any) -> Profile:
    """The profile of a row of the table, with another share of tokens and other settings of its routing."""
    profile = {p.name: p for p in further_profiles()}[name]
    assert profile.retrieval is not None and profile.routing is not None
    return profile.model_copy(
        update={
            "retrieval": profile.retrieval.model_copy(update={"keep": keep}),
            "routing": profile.routing.model_copy(update=routing),
            "resize": "torch" if name == "+ faster resize" else "pillow",  # other pictures
        }
    )


def routed_run(
    stock: Any, profile: Profile, windows: tuple[int, ...], frames: np.ndarray | None = None
) -> Run:
    """Track four frames, from the third on by given windows.

    A profile that trims windows gets all cells of all windows, or one cell of each of some.
    """
    fast = accelerate(stock, profile)
    state = fast.init_state(make_frames(4) if frames is None else frames)
    chosen: Chosen = windows
    if profile.routing is not None and profile.routing.unit == "cell":
        of = window_grid(fast).window_of_cell.tolist()
        first = {of.index(w) for w in windows} if windows != EVERY else set(range(len(of)))
        chosen = Decision(tuple(sorted(first)), "given")
    fast.choose_windows(state, lambda frame: chosen if frame > 1 else None)
    PROMPTS["mask"][0].give(fast, state)
    return Run(run(fast, state), state)


@pytest.fixture(scope="module")
def plain(demo_predictor: Any) -> Callable[[float, tuple[int, ...]], Run]:
    """Runs without any of the techniques, made once."""
    made: dict[Any, Run] = {}

    def run(keep: float, windows: tuple[int, ...]) -> Run:
        if (keep, windows) not in made:
            made[keep, windows] = routed_run(demo_predictor, both_methods(keep), windows)
        return made[keep, windows]

    return run


@pytest.mark.parametrize("name", sorted({*NAMES} - {"+ int8", "+ faster resize", SECOND}))
def test_with_everything_kept_it_changes_nothing(
    demo_predictor: Any, name: str, plain: Any
) -> None:
    run = routed_run(demo_predictor, technique(name, keep=1.0), EVERY)
    expected = plain(1.0, EVERY)
    assert max(off_by(run.logits[f], expected.logits[f]) for f in range(4)) <= 1e-3
    assert off_by(run.logits[3], expected.logits[2]) > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_it_changes_what_it_is_for(demo_predictor: Any, name: str, plain: Any) -> None:
    run, expected = routed_run(demo_predictor, technique(name), SOME), plain(0.2, SOME)
    assert off_by(run.logits[0], expected.logits[0]) == 0
    assert off_by(run.logits[3], expected.logits[3]) > 1e-4
    found = [item.windows for item in run.report.frames]
    assert found[:2] == [None, None]
    added = 1 if technique(name).routing.refresh else 0  # of 6 that are left out one in 6
    if name == SECOND:
        assert found.pop(2) == []
    assert {len(windows) for windows in found[2:]} == {len(SOME) + added}
    assert all(set(SOME) <= set(windows) for windows in found[2:])


def settings_of(document: Any, name: str = "") -> dict[str, Any]:
    """Settings of a profile by their dotted names."""
    if not isinstance(document, dict):
        return {name: document}
    parts = [settings_of(value, f"{name}.{key}".strip(".")) for key, value in document.items()]
    return {key: value for part in parts for key, value in part.items()}


def changed(profile: Profile) -> set[str]:
    """Settings in which a profile differs from the paper's; a technique's own settings go with the technique."""
    mine, papers = (
        settings_of(p.model_dump(exclude={"name"})) for p in (profile, BUILTIN["paper"])
    )
    names = {key for key in mine.keys() | papers.keys() if mine.get(key) != papers.get(key)}
    return {".".join(name.split(".")[:2]) for name in names}


def test_the_table_has_a_row_for_each_switch() -> None:
    rows = {name: changed(switch(BUILTIN["paper"])) for name, switch in FURTHER.items()}
    assert all(rows.values()) and changed(BUILTIN["paper"]) == set()
    recommended = {name for name in changed(BUILTIN["recommended"]) if name[:5] != "guard"}
    assert recommended <= set().union(*rows.values()), "what is recommended is measured alone"
    parts = [switch(BUILTIN["paper"]).reused for switch in FURTHER.values()]
    assert sorted(map(sorted, filter(None, parts))) == sorted([part] for part in REUSED_PARTS)
    assert [*(f"+ {name}" for name in FURTHER), "recommended"] == NAMES
    for profile in further_profiles():
        assert parse_profile(profile.to_json()) == profile


def test_the_page_has_a_paragraph_for_each() -> None:
    page = (Path(__file__).parents[3] / "docs" / "techniques.md").read_text(encoding="utf-8")
    assert [name for name in FURTHER if f"**{name.capitalize()}**" not in page] == []
    assert "**Unknown technique**" not in page


@pytest.mark.parametrize("reuse", [True, *((part,) for part in REUSED_PARTS)], ids=str)
@pytest.mark.parametrize("missing", [{"routing": None}, {"exact": False}], ids=lambda m: [*m][0])
def test_what_reuse_rests_on_must_be_on(reuse: Any, missing: dict[str, Any]) -> None:
    whole = BUILTIN["paper"].model_copy(update={"reuse": reuse})
    assert parse_profile(whole.to_json()) == whole
    with pytest.raises(InputError, match="reuse needs routing to leave something out, and exact"):
        parse_profile(whole.model_copy(update=missing).to_json())


def test_on_a_still_picture_early_stages_are_what_they_were(demo_predictor: Any) -> None:
    still = make_frames(1).repeat(4, axis=0)
    run = routed_run(demo_predictor, technique("+ early stages reused"), SOME, still)
    expected = routed_run(demo_predictor, both_methods(0.2), SOME, still)
    assert off_by(run.logits[3], expected.logits[3]) <= 1e-3
    stale = routed_run(demo_predictor, technique("+ last block reused"), SOME, still)
    assert off_by(stale.logits[3], expected.logits[3]) > 1e-3, "its keys came from other windows"


def test_reused_windows_are_as_old_as_their_last_computation(demo_predictor: Any) -> None:
    """Fine levels of a window change when it is computed, and stay when it is not."""
    fast = accelerate(demo_predictor, technique("+ early stages reused"))
    route = {2: SOME, 3: (0, *SOME), 4: SOME}
    state = fast.init_state(make_frames(5) // 2 + np.arange(5, dtype=np.uint8)[:, None, None, None])
    fast.choose_windows(state, route.get)
    PROMPTS["mask"][0].give(fast, state)
    seen = []
    for _ in fast.propagate_in_video(state):
        seen.append(encoded(state)[0].clone())
    corner, last = (..., slice(0, 16), slice(0, 16)), (..., slice(32, 48), slice(32, 48))
    same = [
        [torch.equal(seen[f][part], seen[f - 1][part]) for f in range(2, 5)]
        for part in (corner, last)
    ]
    assert same == [[True, False, True], [True, True, True]]


CARRYING = ["+ stage 4 reused", "+ rolling refresh", "+ cached shortcut"]


@pytest.mark.parametrize("name", CARRYING)
def test_what_is_reused_must_be_of_the_adjacent_frame(
    demo_predictor: Any, name: str, runs: Runs
) -> None:
    fast, state = accelerate(demo_predictor), runs(demo_predictor, profile="paper").resumed()
    with fast.use(technique(name)):
        fast.choose_windows(state, lambda frame: SOME)
        reasons = []
        for frame in (FULL, FULL - 1, FULL - 3):
            step(fast, state, frame)
            reasons.append(fast.report(state).frames[-1].reason)
    assert reasons == ["nothing cached", "given", "nothing cached"]


@pytest.mark.parametrize("name", CARRYING)
def test_what_another_profile_left_behind_is_not_reused(demo_predictor: Any, name: str) -> None:
    """Frames that were routed without it between then and now would let it look young."""
    found = {}
    for between in ("paper", technique(name)):
        fast = accelerate(demo_predictor, technique(name))
        state = fast.init_state(make_frames(5))
        fast.choose_windows(state, lambda frame: SOME if frame > 1 else None)
        PROMPTS["mask"][0].give(fast, state)
        run(fast, state, max_frame_num_to_track=2)
        with fast.use(between):
            run(fast, state, start_frame_idx=3, max_frame_num_to_track=0)
        run(fast, state, start_frame_idx=4)
        found[str(between)] = [item.reason for item in fast.report(state).frames[2:]]
    assert list(found.values()) == [["given"] * 2 + ["nothing cached"], ["given"] * 3]


def test_what_is_reused_must_be_of_the_same_weights_and_number_format(small_demo: Any) -> None:
    stock = copy.deepcopy(small_demo)
    fast = accelerate(stock, technique("+ stage 4 reused"))
    state = routed_run(stock, fast.profile, (1, 2)).state

    def reason() -> str:
        step(fast, state, 3)
        return fast.report(state).frames[-1].reason

    assert [reason(), reason()] == ["nothing cached", "given"]
    with torch.autocast("cpu", torch.bfloat16):
        assert [reason(), reason()] == ["nothing cached", "given"]
    with torch.no_grad():
        stock.image_encoder.trunk.blocks[-1].norm1.weight.mul_(0.5)
    assert [reason(), reason()] == ["nothing cached", "given"]


@pytest.mark.parametrize("unit", ["window", "cell"])
def test_what_changed_is_refreshed(demo_predictor: Any, unit: str) -> None:
    """Change counts from a window's last computation; a still window is left alone while others move."""
    frames = make_frames(1).repeat(5, axis=0)
    above, below, left, right = slice(0, 32), slice(64, 96), slice(0, 42), slice(86, 128)
    frames[2:, above, left] = 0  # window 0, from frame 2 on
    frames[3:, below, right] = 255  # window 8, from frame 3 on
    frames[4:, above, right] = 128  # window 2, from frame 4 on
    profile = technique("+ rolling refresh", refresh=Refresh(one_in=12), unit=unit)
    fast = accelerate(demo_predictor, profile)
    state = fast.init_state(frames)
    fast.choose_windows(state, lambda frame: SOME if frame > 1 else None)
    PROMPTS["mask"][0].give(fast, state)
    run(fast, state)
    found = [set(item.windows or ()) - set(SOME) for item in fast.report(state).frames]
    assert found[2:5] == [{0}, {8}, {2}]


def left_out_and_refreshed(stock: Any, frames: np.ndarray | Path, unit: str) -> tuple[int, int]:
    """Track a clip by `SOME` windows; count those that are left out, and those of them that are refreshed."""
    fast = accelerate(stock, technique("recommended", unit=unit))
    state = fast.init_state(frames)
    fast.choose_windows(state, lambda frame: SOME if frame > 1 else None)
    PROMPTS["mask"][0].give(fast, state)
    run(fast, state)
    added = [set(item.windows or ()) - set(SOME) for item in fast.report(state).frames[2:]]
    return len(added) * (9 - len(SOME)), sum(map(len, added))


@pytest.mark.parametrize("unit", ["window", "cell"])
def test_where_nothing_moves_nothing_is_refreshed(demo_predictor: Any, unit: str) -> None:
    """Also behind a camera's noise; one moving thing, in a window that is computed anyway, is enough for turns."""
    still = make_frames(1).repeat(8, axis=0)
    noise = np.random.default_rng(0).normal(0, 4, still.shape)
    noisy = (still + noise).clip(0, 255).astype(np.uint8)
    assert left_out_and_refreshed(demo_predictor, still, unit) == (36, 0)
    assert left_out_and_refreshed(demo_predictor, noisy, unit) == (36, 0)
    noisy[::2, 32:64, 43:85] = 255  # window 4
    assert left_out_and_refreshed(demo_predictor, noisy, unit) == (36, 6)


def write_h264(path: Path, frames: np.ndarray) -> Path:
    """Encode a clip in groups of twelve pictures, at a rate that is scarce for noise."""
    with av.open(str(path), "w") as file:
        rate = dict.fromkeys(("b", "maxrate", "bufsize"), "400000")
        stream = file.add_stream("libx264", rate=25, options={"g": "12", "threads": "1", **rate})
        stream.height, stream.width, stream.pix_fmt = (*frames.shape[1:3], "yuv420p")
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    return path


@pytest.mark.parametrize("unit", ["window", "cell"])
def test_noise_behind_h264_is_no_motion(demo_predictor: Any, tmp_path: Path, unit: str) -> None:
    """A key frame changes the whole picture, and what was left out since before it; what moves stands out still."""
    still = make_clip("static_camera", frames=1).frames.repeat(40, axis=0)
    noise = np.random.default_rng(0).normal(0, 8, still.shape)
    noisy = (still + noise).clip(0, 255).astype(np.uint8)
    file = write_h264(tmp_path / "still.mp4", noisy)
    left_out, refreshed = left_out_and_refreshed(demo_predictor, file, unit)
    assert left_out == 38 * 6 and refreshed <= 0.01 * left_out
    for t in range(20, 40):  # something small in window 2, which is left out
        left = 360 + 20 * (t % 6)
        noisy[t, 20:52, left : left + 32] = 255
    file = write_h264(tmp_path / "moving.mp4", noisy)
    _, refreshed = left_out_and_refreshed(demo_predictor, file, unit)
    assert refreshed >= 18


def test_a_frame_whose_windows_are_all_refreshed_is_encoded_whole(
    demo_predictor: Any, plain: Any
) -> None:
    found = {}
    for every in (1, 4):
        profile = technique("recommended", keep=1.0, refresh=Refresh(one_in=every))
        found[every] = routed_run(demo_predictor, profile, SOME)
    whole = plain(1.0, EVERY)
    assert off_by(found[1].logits[3], whole.logits[3]) <= 1e-3
    assert off_by(found[4].logits[3], whole.logits[3]) > 1e-3


def test_the_call_an_observer_sees_names_the_keys_that_were_left(demo_predictor: Any) -> None:
    fast = accelerate(demo_predictor, Profile(name="cut", retrieval=Retrieval(keep=0.2)))
    seen = []
    with observe(fast, seen.append, sites="memory.*cross"):
        track(fast, make_frames(4), PROMPTS["mask"])
    last = seen[-1]
    assert len(last.keys) == last.k.shape[2] == len(set(last.keys.tolist()))
    tokens = fast.sam_image_embedding_size**2
    of_frame = (last.keys // tokens).bincount()
    assert of_frame[:3].tolist() == [tokens, int(0.2 * tokens), tokens], (
        "the prompt and the newest frame are whole"
    )


def test_a_frame_that_is_tracked_once_more_reads_the_same(demo_predictor: Any, runs: Runs) -> None:
    """Its newest frame was chosen from meanwhile, and is whole still."""
    fast, state = accelerate(demo_predictor), runs(demo_predictor, profile="paper").resumed()
    first, again = (step(fast, state, FULL) for _ in range(2))
    reports = fast.report(state).frames[-2:]
    assert [item.objects[1].pruned_frames for item in reports] == [5, 5]
    assert torch.equal(first, again)
    assert not torch.equal(first, step(fast, state, FULL + 1))


def test_projections_of_a_prompt_are_held_until_weights_change(own_demo: Any) -> None:
    fast = accelerate(own_demo, "exact")
    state = track(fast, make_frames(4), PROMPTS["mask"]).state
    prompt = state["output_dict_per_obj"][0]["cond_frame_outputs"][0]
    held, before = prompt[KEY]["held"], step(fast, state, 3)
    assert sorted(held.keys) == list(range(4))
    assert prompt[KEY]["held"] is held
    with torch.no_grad():
        own_demo.memory_attention.layers[1].cross_attn_image.k_proj.weight.mul_(-1)
    after = step(fast, state, 3)
    assert prompt[KEY]["held"] is not held
    assert off_by(after, step(own_demo, state, 3)) <= 1e-3
    assert off_by(after, before) > 1e-3


def test_projections_are_held_of_prompts_that_are_read_alone(own_demo: Any) -> None:
    """Four prompts, of which the two nearest are read on a frame."""
    own_demo.max_cond_frames_in_attn = 2
    fast = accelerate(own_demo, "exact")
    state = fast.init_state(make_frames(8))
    for frame in range(4):
        Prompt(frame, mask=make_mask()).give(fast, state)
    run(fast, state)
    expected = step(own_demo, state, 7)
    assert off_by(step(fast, state, 7), expected) <= 1e-4
    prompts = state["output_dict_per_obj"][0]["cond_frame_outputs"]
    held = [frame for frame, out in prompts.items() if "held" in out.get(KEY, {})]
    assert len(prompts) == 4 and 1 <= len(held) <= 2
    assert off_by(step(own_demo, state, 6), expected) > 1e-3


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
        see=lambda weights, row, _: [frame.see(weights, row) for frame in seen] and None,
    )  # fmt: skip
    expected = [saliency[0] for saliency in watch.measure(q[None], k[None])]
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


def test_given_windows_are_refreshed_like_found_ones(demo_predictor: Any) -> None:
    reasons = {}
    for every in (2, None):
        guard = BUILTIN["paper"].guard.model_copy(update={"refresh_every": every})
        profile = both_methods(0.2).model_copy(update={"guard": guard})
        report = routed_run(demo_predictor, profile, SOME, make_frames(5)).report
        reasons[every] = [item.reason for item in report.frames[2:]]
    assert reasons[None] == ["given", "given", "given"]
    assert reasons[2] == ["given", "refresh", "given"]
