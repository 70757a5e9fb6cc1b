"""Hundreds of random sequences of sam2's calls, on stock and accelerated predictors.

Not part of ``make test``: ``python -m pytest tests/slow/test_many_sequences.py`` takes some twenty-five minutes on one core.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from probes import build_predictor
from sparsity import accelerate
from tests.sparsity.acceleration.sequences import NEAR, in_turn, side_by_side, write_clip

SEQUENCES, LENGTH = 120, 25


def test_dense_answers_as_stock(tmp_path: Path) -> None:
    stock: Any = build_predictor("demo", image_size=64, device="cpu")
    fast, folder = accelerate(stock, "dense"), write_clip(tmp_path)
    for seed in range(2 * SEQUENCES):
        played = side_by_side(seed, stock, fast, folder, LENGTH)
        assert played.differs is None, (seed, played.calls)


def test_profiles_that_take_turns_answer_as_each_promises(tmp_path: Path) -> None:
    stock: Any = build_predictor("demo", image_size=128, device="cpu")
    fast, folder = accelerate(stock, "dense"), write_clip(tmp_path)
    for seed in range(SEQUENCES):
        played = in_turn(seed, stock, fast, folder, LENGTH, NEAR)
        assert played.differs is None, (seed, played.profile, played.calls)
