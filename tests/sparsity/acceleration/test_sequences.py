"""Whatever a client does one after the other, accelerated predictors answer as stock: random sequences of sam2's calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from probes import build_predictor
from sparsity import accelerate
from tests.sparsity.acceleration.sequences import NEAR, in_turn, side_by_side, write_clip

LENGTH = 12


@pytest.fixture(scope="module")
def smallest() -> Any:
    """The demo model at 64 pixels."""
    return build_predictor("demo", image_size=64, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The clip as a folder of JPEG files."""
    return write_clip(tmp_path_factory.mktemp("sequences"))


@pytest.mark.parametrize("seed", [0, 1])
def test_dense_answers_as_stock_to_any_sequence(smallest: Any, folder: str, seed: int) -> None:
    played = side_by_side(seed, smallest, accelerate(smallest, "dense"), folder, LENGTH)
    assert played.differs is None and len(played.calls) == LENGTH, played.calls


def test_exact_answers_otherwise(smallest: Any, folder: str) -> None:
    """By rounding, which is compared bit for bit here."""
    assert side_by_side(1, smallest, accelerate(smallest, "exact"), folder, LENGTH).differs


def test_profiles_that_take_turns_answer_as_each_promises(small_demo: Any, folder: str) -> None:
    played = in_turn(0, small_demo, accelerate(small_demo, "dense"), folder, LENGTH, NEAR)
    assert played.differs is None, (played.profile, played.calls)
    strict = dict.fromkeys(NEAR, torch.equal)
    assert in_turn(0, small_demo, accelerate(small_demo, "dense"), folder, LENGTH, strict).differs
