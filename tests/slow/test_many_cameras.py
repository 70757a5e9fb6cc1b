"""Dozens of random sequences of what comes to cameras, beside stock on the same frames.

Not part of ``make test``: ``python -m pytest tests/slow/test_many_cameras.py`` takes some ten minutes on one core.
"""

from __future__ import annotations

from typing import Any

from probes import build_predictor
from sparsity import accelerate
from tests.sparsity.acceleration.live import play, reference


def test_dense_cameras_give_what_stock_gives() -> None:
    stock: Any = build_predictor("demo", image_size=64, device="cpu")
    fast, beside = accelerate(stock, "dense"), reference(stock)
    for seed in range(80):
        played = play(seed, fast, beside)
        assert played.apart == 0, (seed, played.done)


def test_exact_cameras_give_it_but_for_rounding() -> None:
    """Which moves pixels at edges."""
    stock: Any = build_predictor("demo", image_size=128, device="cpu")
    fast, beside = accelerate(stock, "exact"), reference(stock)
    for seed in range(60):
        played = play(seed, fast, beside)
        assert played.apart <= 4, (seed, played.done)
