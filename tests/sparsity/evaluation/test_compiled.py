"""sam2's compiled form is a copy that is measured like the others; the model it was made of stays as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from probes import build_predictor
from probes.errors import InputError
from probes.observing import STEPS, observe
from probes.video import open_video
from sparsity.acceleration.build import accelerate
from sparsity.clips.sources import clip_of
from sparsity.evaluation.compiled import compiled_stock
from sparsity.evaluation.interleaved import FULL_BANK, STOCK, UNTIMED, Variant, bench
from sparsity.evaluation.meters import REST
from tests.conftest import make_frames, make_mask


@pytest.fixture(scope="module")
def stock() -> Any:
    """The demo model at a size at which it is quick."""
    return build_predictor("demo", image_size=128, device="cpu")


@pytest.fixture
def compiled(stock: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[str]]:
    """The compiled form, and which of its methods torch was asked to compile; they run as they are, for it takes minutes."""
    asked: list[str] = []

    def leave(function: Any, **how: Any) -> Any:
        asked.append(type(function.__self__).__name__)
        return function

    monkeypatch.setattr(torch, "compile", leave)
    return compiled_stock(stock), asked


def test_it_is_a_copy_with_the_same_weights(stock: Any, compiled: Any) -> None:
    copied, asked = compiled
    assert sorted(asked) == [
        "ImageEncoder",
        "MaskDecoder",
        "MemoryAttention",
        "MemoryEncoder",
        "PromptEncoder",
    ]
    pairs = zip(stock.parameters(), copied.parameters(), strict=True)
    assert all(torch.equal(one, other) and one is not other for one, other in pairs)
    assert "forward" in vars(copied.image_encoder)
    assert "forward" not in vars(stock.image_encoder)
    with pytest.raises(InputError, match="is compiled"), observe(copied, lambda call: None):
        pass
    accelerate(stock)


def test_its_row_is_timed_stage_by_stage_and_its_operations_are_not_counted(
    stock: Any, compiled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[None] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(None))
    video = open_video(make_frames(FULL_BANK + UNTIMED + 1))
    rows = [Variant(STOCK, None), Variant("compiled", None, compiled[0])]
    clip = clip_of("made", video, make_mask().astype(np.uint8))
    eager, found = bench(stock, rows, clip, timed=1, say=lambda _: None)
    assert list(found.stages) == list(eager.stages) == [*STEPS.values(), REST]
    assert all(found.stages[stage] > 0 for stage in STEPS.values())
    assert len(begun) == FULL_BANK + UNTIMED + 1, "each frame says where it begins, the prompt too"
    assert found.flops is None and eager.flops and len(found.seconds) == 1
