"""`use(None)` and the profile ``dense`` give what stock sam2 gives, bit for bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from sparsity import accelerate
from sparsity.profile import Profile
from sparsity.techniques.retrieval import Retrieval
from sparsity.techniques.routing import Routing
from tests.sparsity.acceleration.conftest import (
    FULL,
    PROMPTS,
    Prompt,
    Run,
    Runs,
    last,
    off_by,
    part_of_mask,
    step,
    track,
)

METHODS_ALONE = Profile(name="methods alone", routing=Routing(), retrieval=Retrieval())


@pytest.mark.parametrize("kind", PROMPTS)
def test_dense_equals_stock(stock: Any, kind: str, runs: Runs) -> None:
    assert runs(stock, kind, "dense").equal(runs(stock, kind))


def test_dense_equals_stock_on_sam2s_own_model(tiny_predictor: Any, long_folder: str) -> None:
    """Tiny as sam2 has it, an object by each kind of prompt."""
    (mask,), (point,), (box,) = (PROMPTS[kind] for kind in ("mask", "point", "box"))
    prompts = mask, Prompt(0, 2, points=point.points), Prompt(0, 3, box=box.box)
    expected = track(tiny_predictor, long_folder, prompts, 2)
    dense = accelerate(tiny_predictor, "dense")
    assert track(dense, long_folder, prompts, 2).equal(expected)
    exact = step(accelerate(tiny_predictor, "exact"), expected.state, 1)
    assert off_by(exact, step(tiny_predictor, expected.state, 1)) <= 1e-4
    assert off_by(exact.flip(0), exact) > 1e-2


@pytest.mark.parametrize("kind", ["mask", "three objects"])
def test_sparse_differs_from_stock(stock: Any, kind: str, runs: Runs) -> None:
    assert not runs(stock, kind, "paper").equal(runs(stock, kind))


def test_use_none_equals_stock(stock: Any, long_folder: str, runs: Runs) -> None:
    predictor = accelerate(stock, "paper")
    with predictor.use(None):
        run = track(predictor, long_folder, PROMPTS["mask"], 4)
    assert run.equal(runs(stock), 4)
    assert predictor.profile.name == "paper"
    again = track(predictor, long_folder, PROMPTS["mask"], 4)
    assert again.equal(runs(stock, profile="paper"), 4) and not again.equal(runs(stock), 4)


def test_predictors_take_turns_on_shared_modules(stock: Any, long_folder: str, runs: Runs) -> None:
    fast = accelerate(stock, "paper")
    states = {p: p.init_state(long_folder) for p in (stock, fast)}
    for predictor, state in states.items():
        PROMPTS["mask"][0].give(predictor, state)
    found = [predictor.propagate_in_video(state, 0, 4) for predictor, state in states.items()]
    pairs = [(a[2].clone(), b[2].clone()) for a, b in zip(*found, strict=True)]
    alone, expected = runs(stock, profile="paper"), runs(stock)
    assert len(pairs) == 5
    for frame, (mine, faster) in enumerate(pairs):
        assert torch.equal(mine, expected.logits[frame])
        assert torch.equal(faster, alone.logits[frame])
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_use_none_in_mid_session_equals_stock_on_the_same_state(
    demo_predictor: Any, runs: Runs
) -> None:
    """The frames after the change are what stock would make of the state that routed tracking left."""
    routed = runs(demo_predictor, profile="paper")
    fast = accelerate(demo_predictor, "paper")
    state, again, still = (routed.resumed() for _ in range(3))
    step(fast, state, FULL - 1)
    with fast.use(None):
        mine = [step(fast, state, frame) for frame in (FULL, FULL + 1)]
    for frame, logits in zip((FULL, FULL + 1), mine, strict=True):
        assert torch.equal(logits, step(demo_predictor, again, frame))
    assert not torch.equal(step(fast, still, FULL), mine[0])


@pytest.fixture
def on_a_routed_frame(demo_predictor: Any, runs: Runs) -> tuple[Any, Run]:
    """A predictor that has just tracked frame `FULL`, of which it computed some windows, and its run."""
    fast, state = accelerate(demo_predictor, METHODS_ALONE), _routed(demo_predictor, runs)
    return fast, Run({FULL: step(fast, state, FULL)}, state)


def _routed(demo_predictor: Any, runs: Runs) -> dict[str, Any]:
    return runs(demo_predictor, profile=METHODS_ALONE).resumed()


def test_a_click_on_a_routed_frame_is_answered_from_dense_features(
    demo_predictor: Any, long_folder: str, on_a_routed_frame: tuple[Any, Run]
) -> None:
    fast, run = on_a_routed_frame
    click = Prompt(
        FULL, 2, points=((110, 80),)
    )  # far from the first object, where nothing was computed
    assert last(fast, run.state).windows is not None, "the frame was routed"
    clicked = _click(fast, run.state, click)
    same = demo_predictor.init_state(long_folder)
    assert torch.equal(clicked, _click(demo_predictor, same, click))
    moved = Prompt(FULL, 2, points=((100, 10),))
    assert not torch.equal(clicked, _click(demo_predictor, same, moved))


def _click(predictor: Any, state: Any, prompt: Prompt) -> torch.Tensor:
    """What a click on an object says, that object alone."""
    _, ids, logits = predictor.add_new_points_or_box(
        state, prompt.frame, prompt.object_id, points=np.array(prompt.points, np.float32),
        labels=np.ones(1, np.int32),
    )  # fmt: skip
    return logits[ids.index(prompt.object_id)].clone()


def test_bfloat16_autocast_equals_stock(small_demo: Any, long_folder: str, runs: Runs) -> None:
    expected = runs(small_demo, half=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = track(accelerate(small_demo, "dense"), long_folder, PROMPTS["mask"], 4)
    assert found.equal(expected, 4)
    assert not runs(small_demo).equal(expected, 4)


def test_objects_keep_their_place(stock: Any, long_folder: str, runs: Runs) -> None:
    """The partner of the tests with three objects: in another order they differ."""
    turned = tuple(Prompt(0, i + 1, part_of_mask((i + 1) % 3)) for i in range(3))
    run = track(accelerate(stock, "dense"), long_folder, turned, 2)
    expected = runs(stock, "three objects").logits
    assert torch.equal(run.logits[1].roll(1, 0), expected[1])
    assert not torch.equal(run.logits[1], expected[1])


def test_stock_on_a_state_that_was_routed_computes_its_own_features(
    demo_predictor: Any, runs: Runs, on_a_routed_frame: tuple[Any, Run]
) -> None:
    fast, run = on_a_routed_frame
    click = Prompt(FULL, points=((38, 32),))
    own = last(fast, run.state)
    assert own.windows is not None and own.frame == FULL
    clicked = {
        "routed": _click(demo_predictor, run.state, click),
        "stock": _click(demo_predictor, runs(demo_predictor).resumed(), click),
        "dense": _click(fast, _routed(demo_predictor, runs), click),
    }
    assert off_by(clicked["routed"], clicked["dense"]) <= 1e-4
    assert not torch.equal(clicked["routed"], clicked["stock"]), "memory was another"


def test_after_a_frame_that_is_not_there_a_click_is_answered_from_dense_features(
    demo_predictor: Any, runs: Runs, on_a_routed_frame: tuple[Any, Run]
) -> None:
    fast, run = on_a_routed_frame
    found = []
    for fails, state in ((True, run.state), (False, _routed(demo_predictor, runs))):
        if fails:
            with pytest.raises(IndexError):
                _click(fast, state, Prompt(40, points=((38, 32),)))
        found.append(_click(fast, state, Prompt(FULL, points=((38, 32),))))
    assert torch.equal(*found)


def test_threads_with_a_predictor_each_do_not_hear_one_another(
    small_demo: Any, long_folder: str
) -> None:
    """Routing by decoder attention, two predictors on the same weights at once, and stock beside them."""
    asked = Routing(score_below=1000.0)
    profile = Profile(name="by saliency", routing=asked, retrieval=Retrieval())
    alone = track(accelerate(small_demo, profile), long_folder, PROMPTS["mask"], 4)
    fast = [accelerate(small_demo, profile) for _ in range(2)]
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(track, p, long_folder, PROMPTS["mask"], 4) for p in (*fast, small_demo)]
        first, second, stock = (job.result() for job in jobs)
    assert first.equal(alone) and second.equal(alone)
    assert not stock.equal(alone)
