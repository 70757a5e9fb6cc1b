"""On routed frames only the tokens of computed windows read memory, if the profile says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from probes.errors import InputError
from sparsity import accelerate
from sparsity.acceleration.model.encoder import window_grid
from sparsity.acceleration.model.windows import window_tokens
from sparsity.profile import Profile, parse_profile
from sparsity.techniques import KEY
from sparsity.techniques.adapter import Adapter
from sparsity.techniques.retrieval import Retrieval
from sparsity.techniques.routing import Routing
from tests.sparsity.acceleration.conftest import (
    LONG,
    PROMPTS,
    Runs,
    make_frames,
    off_by,
    run,
    track,
)


def profile(readers: str = "routed") -> Profile:
    """Both methods with all exact rewrites."""
    retrieval = Retrieval.model_validate({"keep": 0.2, "readers": readers})
    return Profile(name="readers", exact=True, routing=Routing(), retrieval=retrieval)


def test_all_windows_read_like_all_tokens(demo_predictor: Any) -> None:
    found = []
    for readers in ("all", "routed"):
        fast = accelerate(demo_predictor, profile(readers))
        every = tuple(range(window_grid(fast).count))
        state = fast.init_state(make_frames(4))
        fast.choose_windows(state, lambda frame, every=every: every)
        for prompt in PROMPTS["three objects"]:
            prompt.give(fast, state)
        found.append(list(run(fast, state).values()))
    assert max(map(off_by, *found)) <= 1e-3, "memory is kept in bfloat16"
    assert off_by(found[0][3], found[0][2]) > 1e-2


def test_the_report_says_how_many_tokens_read(demo_predictor: Any, runs: Runs) -> None:
    frames = runs(demo_predictor, "three objects", profile()).report.frames
    routed = [item for item in frames if item.windows is not None]
    assert len(routed) >= 5
    for item in routed:
        share = item.windows_kept / item.windows_total  # windows divide this grid
        assert {found.queries_share for found in item.objects.values()} == {share}
    dense = [item for item in frames[1:] if item.windows is None]
    assert all(found.queries_share == 1.0 for item in dense for found in item.objects.values())


def test_tokens_that_do_not_read_keep_what_they_had(demo_predictor: Any) -> None:
    """On a still picture their memory-conditioned features stay; those of the others follow their memory."""
    fast = accelerate(
        demo_predictor, profile().model_copy(update={"adapter": Adapter(kind="cached")})
    )
    still = make_frames(1).repeat(4, axis=0)
    windows, added = (3, 4), []
    state = fast.init_state(still)
    fast.choose_windows(state, lambda frame: windows if frame > 2 else None)
    PROMPTS["mask"][0].give(fast, state)
    for frame, _, _ in fast.propagate_in_video(state):
        if frame > 0:
            result = state["output_dict_per_obj"][0]["non_cond_frame_outputs"][frame]
            added.append(result[KEY]["readers"].clone())
    assert len(added) == 3
    grid = window_grid(fast)
    some = torch.zeros(grid.count, dtype=torch.bool)
    some[list(windows)] = True
    inside = window_tokens(grid, grid.cells_of(some), fast.device).tokens
    outside = torch.ones(grid.tokens**2, dtype=torch.bool)
    outside[inside] = False
    torch.testing.assert_close(added[2][outside], added[1][outside], rtol=1e-4, atol=1e-4)
    assert (added[2][inside] - added[1][inside]).abs().max() > 1e-2
    assert (added[1][outside] - added[0][outside]).abs().max() > 1e-2, "dense frames read anew"


def test_only_the_newest_result_carries_what_was_added(demo_predictor: Any, runs: Runs) -> None:
    state = runs(demo_predictor, "three objects", profile()).state
    for of_object in state["output_dict_per_obj"].values():
        results = of_object["non_cond_frame_outputs"]
        assert [frame for frame, out in results.items() if "readers" in out[KEY]] == [LONG - 1]


def test_it_differs_from_all_tokens_reading(demo_predictor: Any) -> None:
    some, whole = (
        track(accelerate(demo_predictor, profile(readers)), make_frames(6), PROMPTS["mask"])
        for readers in ("routed", "all")
    )
    assert not some.equal(whole)
    masks = [(some.logits[f] > 0, whole.logits[f] > 0) for f in whole.logits]
    overlaps = [float((a & b).sum() / (a | b).sum()) for a, b in masks]
    assert min(overlaps) > 0.8, "the object's own tokens read memory as before"
    assert off_by(some.logits[1], whole.logits[1]) == 0, "dense frames are the same"


def test_it_needs_windows() -> None:
    document = profile().model_copy(update={"routing": None}).to_json()
    with pytest.raises(InputError, match="'routed' needs tokens to be routed by; set routing"):
        parse_profile(document)
