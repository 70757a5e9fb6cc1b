"""Shared by the tests of probes: calls of the demo model under a profile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from probes.models import build_predictor
from probes.observing import AttentionCall, observe
from sparsity import accelerate


@pytest.fixture(scope="session")
def demo_stock() -> Any:
    """The demo model at 256 pixels, a grid of 16 x 16 tokens and 4 x 4 windows; not to be changed."""
    return build_predictor("demo", image_size=256, device="cpu")


@pytest.fixture(scope="session")
def small_stock() -> Any:
    """The demo model at 128 pixels, 2 x 2 windows, at which it takes half the time; not to be changed."""
    return build_predictor("demo", image_size=128, device="cpu")


@pytest.fixture(scope="session")
def demo_calls(
    demo_stock: Any, clip_frames: np.ndarray, clip_mask: np.ndarray
) -> Callable[..., list[AttentionCall]]:
    """All attention calls of frame 3 of the clip under a profile; object 2 is a shifted copy of object 1.

    They are made once and must not be changed.
    """

    @cache
    def run(profile: str, objects: int = 1) -> list[AttentionCall]:
        seen: list[AttentionCall] = []
        predictor = accelerate(demo_stock, profile)

        def keep(call: AttentionCall) -> None:
            if call.moment.frame == 3:
                seen.append(replace(call, q=call.q.clone(), k=call.k.clone(), v=call.v.clone()))

        with torch.inference_mode(), observe(predictor, keep, "*"):
            state = predictor.init_state(clip_frames)
            for i in range(objects):
                predictor.add_new_mask(state, 0, 1 + i, np.roll(clip_mask, 20 * i, 1))
            list(predictor.propagate_in_video(state, max_frame_num_to_track=3))
        return seen

    return run
