"""A predictor that is copied, pickled, moved, or made where others would not make it."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from probes import build_predictor
from probes.errors import InputError
from sparsity import EfficientSAM2VideoPredictor, accelerate
from tests.sparsity.acceleration.conftest import LONG, PROMPTS, StockRuns, off_by, step, track


def pickled(predictor: Any) -> Any:
    """A copy as another process gets it."""
    return pickle.loads(pickle.dumps(predictor))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copy_stands_alone(
    demo_predictor: Any, long_folder: str, copied: Callable[[Any], Any], stock_runs: StockRuns
) -> None:
    fast = accelerate(demo_predictor, "paper")
    expected = track(fast, long_folder, PROMPTS["mask"])  # weights are packed now
    other = copied(fast)
    assert track(other, long_folder, PROMPTS["mask"]).equal(expected)
    with other.use(None):
        found = track(other, long_folder, PROMPTS["mask"])
    assert found.equal(stock_runs(demo_predictor, "mask")) and not found.equal(expected)
    with torch.no_grad():
        other.memory_attention.layers[0].linear2.weight.mul_(0.5)
    assert not track(other, long_folder, PROMPTS["mask"]).equal(expected)
    assert track(fast, long_folder, PROMPTS["mask"]).equal(expected)
    same = other._stock.memory_attention.layers[0].linear2.weight
    assert same is other.memory_attention.layers[0].linear2.weight


@pytest.mark.parametrize("profile", ["exact", "recommended"])
def test_a_copied_state_goes_on_alike(demo_predictor: Any, long_folder: str, profile: str) -> None:
    fast = accelerate(demo_predictor, profile)
    run = track(fast, long_folder, PROMPTS["mask"], max_frame_num_to_track=6)
    stored = io.BytesIO()
    torch.save(run.state, stored)
    stored.seek(0)
    copies = [copy.deepcopy(run.state), torch.load(stored, weights_only=False), run.state]
    found = [{f: v.clone() for f, _, v in fast.propagate_in_video(state, 7)} for state in copies]
    for frame in range(7, LONG):
        assert all(torch.equal(other[frame], found[-1][frame]) for other in found)
    assert not torch.equal(found[0][7], found[0][8])


def _elsewhere(job: Callable[..., Any], *given: Any) -> Any:
    """What a job gives in a process of its own, where counts begin alike."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply_async(job, given).get(timeout=120)


def _track_and_store(fast: Any, folder: str, file: Path) -> None:
    torch.save(track(fast, folder, PROMPTS["mask"], max_frame_num_to_track=6).state, file)


def _go_on(fast: Any, half: bool, file: Path) -> tuple[np.ndarray, str]:
    """Logits of the next frame, and why it was dense or that it was not."""
    state = torch.load(file, weights_only=False)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        return step(fast, state, 7).numpy(), fast.report(state).frames[-1].reason


def test_another_process_goes_on_in_another_number_format(
    demo_predictor: Any, long_folder: str, tmp_path: Path
) -> None:
    """What the first one made in float32 is not taken for the second one's own."""
    fast, file = accelerate(demo_predictor, "recommended"), tmp_path / "state.pt"
    _elsewhere(_track_and_store, fast, long_folder, file)
    (same, as_before), (found, anew) = (
        _elsewhere(_go_on, fast, half, file) for half in (False, True)
    )
    assert (as_before, anew) == ("routed", "nothing cached")
    assert np.isfinite(found).all() and not np.array_equal(found, same)


def test_made_and_run_under_inference_mode(long_folder: str) -> None:
    """Parameters made there count no changes."""
    with torch.inference_mode():
        stock = build_predictor("demo", image_size=256, device="cpu")
        assert stock.maskmem_tpos_enc.is_inference()
        fast = accelerate(stock, "exact")
        run = track(fast, long_folder, PROMPTS["mask"], max_frame_num_to_track=3)
        found, expected = (step(p, run.state, 3) for p in (fast, stock))
    assert off_by(found, expected) <= 1e-4
    assert off_by(run.logits[2], run.logits[3]) > 1e-3


def test_a_shallow_copy_shares_weights_and_nothing_else(
    demo_predictor: Any, long_folder: str, stock_runs: StockRuns
) -> None:
    fast = accelerate(demo_predictor, "exact")
    other = copy.copy(fast)
    with other.use(None):
        assert track(other, long_folder, PROMPTS["mask"]).equal(stock_runs(demo_predictor, "mask"))
        assert fast.profile.name == "exact" and other.profile.name == "dense"
    assert other.mask_downsample is fast.mask_downsample
    assert other.profile == fast.profile and other._derived is not fast._derived


def test_weights_changed_through_data_are_taken_over_when_said(long_folder: str) -> None:
    stock = build_predictor("demo", image_size=256, device="cpu")
    fast = accelerate(stock, "exact")
    state = track(fast, long_folder, PROMPTS["mask"], max_frame_num_to_track=3).state
    before = step(fast, state, 3)
    stock.memory_attention.layers[0].linear2.weight.data.mul_(0.5)
    expected = step(stock, state, 3)
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


def test_a_history_of_no_kind_is_refused(demo_predictor: Any, long_folder: str) -> None:
    fast = accelerate(demo_predictor, "exact")
    with pytest.raises(InputError, match="history 'bound' given; expected 'full' or 'bounded'"):
        fast.init_state(long_folder, history="bound")
    assert fast.init_state(long_folder, history="bounded")["num_frames"] == LONG
