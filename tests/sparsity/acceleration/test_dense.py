"""`use(None)` and the profile ``dense`` give what stock sam2 gives, bit for bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from sparsity import accelerate
from sparsity.profile import Memory, Profile, Windows
from tests.sparsity.acceleration.conftest import (
    PROMPTS,
    Prompt,
    StockRuns,
    off_by,
    part_of_mask,
    track,
)


@pytest.mark.parametrize("kind", PROMPTS)
def test_dense_equals_stock(stock: Any, kind: str, long_folder: str, stock_runs: StockRuns) -> None:
    expected = stock_runs(stock, kind)
    assert track(accelerate(stock, "dense"), long_folder, PROMPTS[kind]).equal(expected)


@pytest.mark.parametrize("kind", ["mask", "three objects"])
def test_sparse_differs_from_stock(
    stock: Any, kind: str, long_folder: str, stock_runs: StockRuns
) -> None:
    expected = stock_runs(stock, kind)
    assert not track(accelerate(stock, "paper"), long_folder, PROMPTS[kind]).equal(expected)


def test_use_none_equals_stock(stock: Any, long_folder: str, stock_runs: StockRuns) -> None:
    predictor = accelerate(stock, "paper")
    with predictor.use(None):
        run = track(predictor, long_folder, PROMPTS["mask"])
    assert run.equal(stock_runs(stock, "mask"))
    assert predictor.profile.name == "paper"
    assert not track(predictor, long_folder, PROMPTS["mask"]).equal(stock_runs(stock, "mask"))


def _step(predictor: Any, state: Any, frame: int) -> torch.Tensor:
    """Track one frame."""
    ((_, _, logits),) = predictor.propagate_in_video(state, frame, max_frame_num_to_track=0)
    return logits.clone()


def test_predictors_take_turns_on_shared_modules(
    stock: Any, long_folder: str, stock_runs: StockRuns
) -> None:
    fast = accelerate(stock, "paper")
    states = {p: p.init_state(long_folder) for p in (stock, fast)}
    for predictor, state in states.items():
        PROMPTS["mask"][0].give(predictor, state)
    runs = [predictor.propagate_in_video(state) for predictor, state in states.items()]
    pairs = [(a[2].clone(), b[2].clone()) for a, b in zip(*runs, strict=True)]
    alone = track(fast, long_folder, PROMPTS["mask"])
    expected = stock_runs(stock, "mask")
    for frame, (mine, faster) in enumerate(pairs):
        assert torch.equal(mine, expected.logits[frame])
        assert torch.equal(faster, alone.logits[frame])
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_use_none_in_mid_session_equals_stock_on_the_same_state(
    demo_predictor: Any, long_folder: str
) -> None:
    """The frames after the change are what stock would make of the state that routed tracking left."""
    fast = accelerate(demo_predictor, "paper")
    run = track(fast, long_folder, PROMPTS["mask"], max_frame_num_to_track=7)
    with fast.use(None):
        mine = [_step(fast, run.state, frame) for frame in (8, 9)]
    again = track(fast, long_folder, PROMPTS["mask"], max_frame_num_to_track=7)
    for frame, logits in zip((8, 9), mine, strict=True):
        assert torch.equal(logits, _step(demo_predictor, again.state, frame))
    still = track(fast, long_folder, PROMPTS["mask"], max_frame_num_to_track=7)
    assert not torch.equal(_step(fast, still.state, 8), mine[0])


def test_a_click_on_a_routed_frame_is_answered_from_dense_features(
    demo_predictor: Any, long_folder: str
) -> None:
    fast = accelerate(
        demo_predictor, Profile(name="methods alone", windows=Windows(), memory=Memory())
    )
    click = Prompt(
        7, 2, points=((110, 20),)
    )  # far from the first object, where nothing was computed
    run = track(fast, long_folder, PROMPTS["mask"], max_frame_num_to_track=7)
    assert fast.report(run.state).frames[-1].windows is not None, "frame 7 was routed"
    clicked = _click(fast, run.state, click)
    same = demo_predictor.init_state(long_folder)
    assert torch.equal(clicked, _click(demo_predictor, same, click))
    moved = Prompt(7, 2, points=((100, 80),))
    assert not torch.equal(clicked, _click(demo_predictor, same, moved))


def _click(predictor: Any, state: Any, prompt: Prompt) -> torch.Tensor:
    """What a click on an object says, that object alone."""
    _, ids, logits = predictor.add_new_points_or_box(
        state, prompt.frame, prompt.object_id, points=np.array(prompt.points, np.float32),
        labels=np.ones(1, np.int32),
    )  # fmt: skip
    return logits[ids.index(prompt.object_id)].clone()


def test_bfloat16_autocast_equals_stock(demo_predictor: Any, long_folder: str) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        expected = track(demo_predictor, long_folder, PROMPTS["mask"])
        assert track(accelerate(demo_predictor, "dense"), long_folder, PROMPTS["mask"]).equal(
            expected
        )
    assert not track(demo_predictor, long_folder, PROMPTS["mask"]).equal(expected)


def test_objects_keep_their_place(stock: Any, long_folder: str, stock_runs: StockRuns) -> None:
    """The partner of the tests with three objects: in another order they differ."""
    turned = tuple(Prompt(0, i + 1, part_of_mask((i + 1) % 3)) for i in range(3))
    run = track(accelerate(stock, "dense"), long_folder, turned)
    assert not run.equal(stock_runs(stock, "three objects"))


def test_stock_on_a_state_that_was_routed_computes_its_own_features(
    demo_predictor: Any, long_folder: str
) -> None:
    fast = accelerate(demo_predictor, "paper")
    click = Prompt(frame=7, points=((51, 48),))
    clicked = {}
    for name, predictor in (("routed", fast), ("stock", demo_predictor)):
        run = track(predictor, long_folder, PROMPTS["mask"], max_frame_num_to_track=7)
        clicked[name] = _clicked(demo_predictor, run.state, click)
        if name == "routed":
            assert fast.report(run.state).frames[-1].windows is not None
            own = fast.report(run.state).frames[-1]
            assert own.frame == 7
            fresh = track(fast, long_folder, PROMPTS["mask"], max_frame_num_to_track=7)
            clicked["dense"] = _clicked(fast, fresh.state, click)
    assert off_by(clicked["routed"], clicked["dense"]) <= 1e-4
    assert not torch.equal(clicked["routed"], clicked["stock"]), "memory was another"


def _clicked(predictor: Any, state: Any, click: Prompt) -> torch.Tensor:
    """Mask logits of a click on a frame that was tracked."""
    points, labels = np.array(click.points, np.float32), np.ones(len(click.points), np.int32)
    return predictor.add_new_points_or_box(state, click.frame, 1, points=points, labels=labels)[2]


def test_after_a_frame_that_is_not_there_a_click_is_answered_from_dense_features(
    demo_predictor: Any, long_folder: str
) -> None:
    fast = accelerate(
        demo_predictor, Profile(name="methods alone", windows=Windows(), memory=Memory())
    )
    found = []
    for fails in (False, True):
        state = track(fast, long_folder, PROMPTS["mask"], max_frame_num_to_track=7).state
        if fails:
            with pytest.raises(IndexError):
                _clicked(fast, state, Prompt(frame=40, points=((51, 48),)))
        found.append(_clicked(fast, state, Prompt(frame=7, points=((51, 48),))))
    assert torch.equal(*found)


def test_threads_with_a_predictor_each_do_not_hear_one_another(
    demo_predictor: Any, long_folder: str
) -> None:
    """Routing by decoder attention, two predictors on the same weights at once, and stock beside them."""
    asked = Windows(score_below=1000.0)
    profile = Profile(name="by saliency", windows=asked, memory=Memory())
    alone = track(accelerate(demo_predictor, profile), long_folder, PROMPTS["mask"])
    fast = [accelerate(demo_predictor, profile) for _ in range(2)]
    with ThreadPoolExecutor(3) as pool:
        jobs = [
            pool.submit(track, p, long_folder, PROMPTS["mask"]) for p in (*fast, demo_predictor)
        ]
        first, second, stock = (job.result() for job in jobs)
    assert first.equal(alone) and second.equal(alone)
    assert not stock.equal(alone)
