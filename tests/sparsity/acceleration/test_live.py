"""Whatever comes to cameras, their masks are those of stock on the same frames: random sequences of calls."""

from __future__ import annotations

from typing import Any

from sparsity import accelerate
from tests.sparsity.acceleration.live import play, reference

SEED = 6


def test_dense_cameras_give_what_stock_gives(tiny_demo: Any) -> None:
    played = play(SEED, accelerate(tiny_demo, "dense"), reference(tiny_demo))
    assert played.apart == 0, played.done


def test_cameras_that_miss_prompts_give_other_masks(tiny_demo: Any) -> None:
    played = play(SEED, accelerate(tiny_demo, "dense"), reference(tiny_demo), deaf=True)
    assert played.apart > 0
