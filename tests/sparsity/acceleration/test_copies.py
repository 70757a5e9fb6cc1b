"""A predictor that is copied, pickled, moved, or made where others would not make it."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
import torch
from sam2.sam2_video_predictor import SAM2VideoPredictorVOS

from probes import build_predictor
from probes.errors import InputError
from sparsity import EfficientSAM2VideoPredictor, accelerate, build_efficient_sam2_video_predictor
from sparsity.acceleration.model import weights
from tests.sparsity.acceleration.conftest import (
    LONG,
    PROMPTS,
    Runs,
    last,
    make_frames,
    off_by,
    step,
    track,
)

SOME = 4
"""Frames after which windows were left out and keys too."""


def pickled(predictor: Any) -> Any:
    """A copy as another process gets it."""
    return pickle.loads(pickle.dumps(predictor))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copy_stands_alone(
    small_demo: Any, long_folder: str, copied: Callable[[Any], Any], runs: Runs
) -> None:
    fast, expected = accelerate(small_demo, "paper"), runs(small_demo, profile="paper")
    assert track(fast, long_folder, PROMPTS["mask"], SOME).equal(expected, SOME)
    other = copied(fast)  # weights are packed now
    assert track(other, long_folder, PROMPTS["mask"], SOME).equal(expected, SOME)
    with other.use(None):
        found = track(other, long_folder, PROMPTS["mask"], SOME)
    assert found.equal(runs(small_demo), SOME) and not found.equal(expected, SOME)
    with torch.no_grad():
        other.memory_attention.layers[0].linear2.weight.mul_(0.5)
    assert not track(other, long_folder, PROMPTS["mask"], SOME).equal(expected, SOME)
    assert track(fast, long_folder, PROMPTS["mask"], SOME).equal(expected, SOME)
    same = other.stock.memory_attention.layers[0].linear2.weight
    assert same is other.memory_attention.layers[0].linear2.weight


def stored(state: dict[str, Any]) -> dict[str, Any]:
    """A state that was written to a file and read."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    found: dict[str, Any] = torch.load(file, weights_only=False)
    return found


@pytest.mark.parametrize("profile", ["exact", "recommended"])
def test_a_copied_state_goes_on_alike(demo_predictor: Any, long_folder: str, profile: str) -> None:
    fast = accelerate(demo_predictor, profile)
    run = track(fast, long_folder, PROMPTS["mask"], SOME)
    copies = [copy.deepcopy(run.state), stored(run.state), run.state]
    found = [
        {f: v.clone() for f, _, v in fast.propagate_in_video(state, SOME, 2)} for state in copies
    ]
    for frame in range(SOME, SOME + 3):
        assert all(torch.equal(other[frame], found[-1][frame]) for other in found)
    assert not torch.equal(found[0][SOME], found[0][SOME + 1])


@pytest.mark.process
def test_another_process_takes_nothing_for_its_own(
    demo_predictor: Any, long_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one made of its weights, or in its number format, may be of others there: the first frame is dense."""

    def elsewhere() -> Any:
        """The predictor as a process has it that has just begun."""
        found = subprocess_count()
        monkeypatch.setattr(weights, "_versions", found)
        return accelerate(demo_predictor, "recommended")

    here = elsewhere()
    state = track(here, long_folder, PROMPTS["mask"], SOME).state
    found = {}
    for half in (False, True):
        fast, again = elsewhere(), stored(state)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found[half] = step(fast, again, SOME), last(fast, again).reason
    assert (found[False][1], found[True][1]) == ("nothing cached", "nothing cached")
    assert found[True][0].isfinite().all() and not torch.equal(found[True][0], found[False][0])
    step(here, state, SOME)
    assert last(here, state).reason == "routed"


def subprocess_count() -> Iterator[int]:
    """Where another process begins to count."""
    code = "from sparsity.acceleration.model import weights; print(next(weights._versions))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return count(int(said.stdout))


def test_made_and_run_under_inference_mode() -> None:
    """Parameters made there count no changes."""
    with torch.inference_mode():
        stock = build_predictor("demo", image_size=128, device="cpu")
        assert stock.maskmem_tpos_enc.is_inference()
        fast = accelerate(stock, "exact")
        run = track(fast, make_frames(4), PROMPTS["mask"])
        found, expected = (step(p, run.state, 3) for p in (fast, stock))
    assert off_by(found, expected) <= 1e-4
    assert off_by(run.logits[2], run.logits[3]) > 1e-3


def test_a_shallow_copy_shares_weights_and_nothing_else(
    demo_predictor: Any, long_folder: str, runs: Runs
) -> None:
    fast = accelerate(demo_predictor, "exact")
    other = copy.copy(fast)
    with other.use(None):
        found = track(other, long_folder, PROMPTS["mask"], SOME)
        assert fast.profile.name == "exact" and other.profile.name == "dense"
    assert found.equal(runs(demo_predictor), SOME)
    assert other.mask_downsample is fast.mask_downsample
    assert other.profile == fast.profile and other.parts.weights is not fast.parts.weights


def test_weights_changed_through_data_are_taken_over_when_said(own_demo: Any) -> None:
    fast = accelerate(own_demo, "exact")
    state = track(fast, make_frames(4), PROMPTS["mask"]).state
    before = step(fast, state, 3)
    own_demo.memory_attention.layers[0].linear2.weight.data.mul_(0.5)
    expected = step(own_demo, state, 3)
    assert off_by(step(fast, state, 3), expected) > 1e-3, "nobody said so"
    fast.weights_changed()
    assert off_by(step(fast, state, 3), expected) <= 1e-4
    assert off_by(before, expected) > 1e-3


def test_made_like_sam2_makes_its_own_is_refused(demo_predictor: Any) -> None:
    with pytest.raises(InputError, match=r"write accelerate\(predictor\)"):
        EfficientSAM2VideoPredictor(demo_predictor.image_encoder)
    assert isinstance(accelerate(demo_predictor), EfficientSAM2VideoPredictor)


def test_from_pretrained_does_not_return_a_stock_predictor() -> None:
    with pytest.raises(
        InputError, match=r"accelerate\(SAM2VideoPredictor.from_pretrained\('a/b'\)\)"
    ):
        EfficientSAM2VideoPredictor.from_pretrained("a/b")


def test_sam2s_compiled_predictor_is_refused_with_what_to_do(demo_predictor: Any) -> None:
    theirs = copy.copy(demo_predictor)
    theirs.__class__ = (
        SAM2VideoPredictorVOS  # as sam2 makes it with vos_optimized, not compiled yet
    )
    with pytest.raises(
        InputError, match="SAM2VideoPredictorVOS was given, .* without vos_optimized"
    ):
        accelerate(theirs)
    with pytest.raises(InputError, match="graphs launch its parts .* instead; leave it out"):
        build_efficient_sam2_video_predictor("unread.yaml", vos_optimized=True)
    accelerate(demo_predictor)  # which it was made from is eager still


def test_a_history_of_no_kind_is_refused(demo_predictor: Any, long_folder: str) -> None:
    fast = accelerate(demo_predictor, "exact")
    with pytest.raises(InputError, match="history 'bound' given; expected 'full' or 'bounded'"):
        fast.init_state(long_folder, history="bound")
    assert fast.init_state(long_folder, history="bounded")["num_frames"] == LONG
