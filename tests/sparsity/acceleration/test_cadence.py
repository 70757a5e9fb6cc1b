"""Features that are computed every k-th frame and carried over to those between."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch

from probes import build_predictor
from probes.errors import InputError
from probes.observing import listen
from sparsity import accelerate
from sparsity.clips.made import Clip, make_clip
from sparsity.profile import BUILTIN, FURTHER, Profile, parse_profile
from sparsity.techniques.reuse import carried_levels
from sparsity.techniques.routing import Refresh, Routing
from tests.sparsity.acceleration.conftest import run

FRAMES = 9


def every(k: int, base: str = "exact") -> Profile:
    """A built-in profile with features of every k-th frame."""
    profile = BUILTIN[base]
    routing = Routing(every=k) if profile.routing is None else profile.routing
    unit = "frame" if profile.routing is None else routing.unit
    routing = routing.model_copy(update={"every": k, "unit": unit})
    return profile.model_copy(update={"routing": routing})


@pytest.fixture(scope="module")
def fast() -> Any:
    return accelerate(build_predictor("demo", device="cpu", image_size=192), "exact")


@pytest.fixture(scope="module")
def clip() -> Clip:
    return make_clip("tiny", 1, FRAMES, (96, 128))


def begun(fast: Any, clip: Clip, **options: Any) -> dict[str, Any]:
    state: dict[str, Any] = fast.init_state(clip.frames, **options)
    fast.add_new_mask(state, 0, 1, clip.masks[0] == 1)
    return state


def tracked(fast: Any, clip: Clip, profile: Profile) -> tuple[dict[int, torch.Tensor], Any]:
    with fast.use(profile):
        state = begun(fast, clip)
        return run(fast, state), fast.report(state)


def equal(one: dict[int, torch.Tensor], other: dict[int, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[t], other[t]) for t in one)


@pytest.mark.parametrize("base", ["exact", "paper", "recommended"])
def test_every_second_frame(fast: Any, clip: Clip, base: str) -> None:
    as_it_is, before = tracked(fast, clip, BUILTIN[base])
    found, report = tracked(fast, clip, every(2, base))
    carried = {f.frame: f.carried_from for f in report.frames if f.carried_from is not None}
    assert carried == {2: 1, 4: 3, 6: 5, 8: 7}
    for item in report.frames:
        if item.frame in carried:
            assert (item.windows, item.windows_kept, item.reason) == ([], 0, "carried over")
        elif base != "exact" and item.frame > 2:
            assert item.reason in ("routed", "saliency added"), "windows are left out as ever"
    assert all(f.carried_from is None for f in before.frames)
    assert report.windows_share < before.windows_share
    assert equal({t: found[t] for t in (0, 1)}, {t: as_it_is[t] for t in (0, 1)})
    assert not torch.equal(found[2], as_it_is[2])


def test_every_frame_changes_nothing(fast: Any, clip: Clip) -> None:
    assert every(1, "paper") == BUILTIN["paper"]
    third, report = tracked(fast, clip, every(3))
    assert [f.carried_from for f in report.frames] == [None, None, 1, 1, None, 4, 4, None, 7]
    assert not equal(third, tracked(fast, clip, every(2))[0])


def test_nothing_is_encoded_on_frames_between(fast: Any, clip: Clip) -> None:
    seen: dict[int, Any] = {}

    def note(told: Any) -> None:
        seen[told.moment.frame] = told.what[2][0].clone()  # the finest level

    still = Clip(clip.frames[:1].repeat(6, 0), clip.masks, clip.name, clip.absent)
    with listen(fast, encoded=note):
        tracked(fast, still, every(2))
        assert torch.allclose(seen[3], seen[5])
        moving = dict(seen)
        tracked(fast, clip, every(2))
    background = (seen[2] - seen[1]).abs().amax(-1).flatten() < 1e-5
    assert background.float().mean() > 0.8, "as it was, but for the object"
    assert not torch.allclose(seen[3], seen[1]) and moving.keys() == set(range(6))


def test_prompts_and_the_guard_have_features_computed(fast: Any, clip: Clip) -> None:
    profile = every(4, "recommended")
    cut = np.concatenate([clip.frames[:5], 255 - clip.frames[5:]])
    with fast.use(profile):
        state = fast.init_state(cut)
        fast.add_new_mask(state, 0, 1, clip.masks[0] == 1)
        fast.add_new_mask(state, 7, 2, clip.masks[7] == 1)
        run(fast, state)
    reasons = {f.frame: f.reason for f in fast.report(state).frames}
    assert reasons[4] == "carried over" and reasons[5] == "scene cut"
    assert reasons[7] == "prompt" and reasons[8] == "first tracked"


def test_a_saved_state_goes_on_as_if_nothing_had_been(fast: Any, clip: Clip) -> None:
    for base in ("exact", "recommended"):
        expected, _ = tracked(fast, clip, every(2, base))
        with fast.use(every(2, base)):
            state = begun(fast, clip)
            run(fast, state, max_frame_num_to_track=5)
            again = pickle.loads(pickle.dumps(state))
            found = run(fast, again, start_frame_idx=6)
        assert fast.report(again).frames[-3].carried_from == 5
        assert equal(found, {t: expected[t] for t in (6, 7, 8)})


def test_reverse_and_cameras(fast: Any, clip: Clip) -> None:
    with fast.use(every(2)):
        state = fast.init_state(clip.frames)
        fast.add_new_mask(state, 5, 1, clip.masks[5] == 1)
        run(fast, state)
        run(fast, state, reverse=True)
        back = [f.carried_from for f in fast.report(state).frames if f.reverse]
        assert back == [None, None, 4, None, 2, None]
        camera = fast.camera((96, 128))
        camera.prompt(1, mask=clip.masks[0] == 1)
        masks = [camera.track(frame)[1] for frame in clip.frames]
    expected, _ = tracked(fast, clip, every(2))
    assert all(torch.equal(mask, expected[t][0, 0] > 0) for t, mask in enumerate(masks))


def test_what_does_not_fit_is_refused() -> None:
    for routing, more, said in (
        (Routing(every=2), {"unit": "frame", "every": 1}, "leaves no window out"),
        (Routing(every=2, refresh=Refresh(one_in=6)), {"unit": "frame"}, "leaves no window out"),
        (Routing(every=2), {"every": 0}, "routing.every is 0"),
    ):
        profile = BUILTIN["paper"].model_copy(update={"routing": routing.model_copy(update=more)})
        with pytest.raises(InputError, match=said):
            parse_profile(profile.to_json())
    whole = {"routing": Routing(unit="frame", every=2)}
    with pytest.raises(InputError, match="leaves no window out that reuse"):
        parse_profile(BUILTIN["recommended"].model_copy(update=whole).to_json())
    for base in ("exact", "paper", "recommended"):
        assert parse_profile(every(2, base).to_json()) == every(2, base)
    assert FURTHER["every second frame"](BUILTIN["paper"]) == every(2, "paper")


def test_what_objects_cover_moves_and_the_rest_stays() -> None:
    before, now = torch.full((32, 32), -1.0), torch.full((32, 32), -1.0)
    before[8:16, 4:12], now[8:16, 8:16] = 1, 1
    generator = torch.Generator().manual_seed(0)
    fine = torch.rand(1, 3, 32, 32, generator=generator)
    (moved,) = carried_levels([fine], [(now, before)], 1, 0.0)
    assert torch.allclose(moved[..., 8:16, 12:20], fine[..., 8:16, 8:16], atol=1e-4)
    elsewhere = torch.ones(32, 32, dtype=torch.bool)
    elsewhere[7:17, 11:21] = False
    assert torch.allclose(moved[..., elsewhere], fine[..., elsewhere], atol=1e-4)
    assert not torch.allclose(moved, fine, atol=1e-2)
    (twice,) = carried_levels([fine], [(now, before)], 2, 0.0)
    assert torch.allclose(twice[..., 9:15, 13:19], fine[..., 9:15, 5:11], atol=1e-4)
    for nothing in ([], [(now, torch.full_like(now, -1.0))], [(now, now)]):
        (same,) = carried_levels([fine], nothing, 1, 0.0)
        assert torch.allclose(same, fine, atol=1e-5)
