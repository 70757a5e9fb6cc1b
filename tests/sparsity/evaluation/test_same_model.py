"""Workers hold the model that the command began with, whatever they held before."""

from __future__ import annotations

import pytest
import torch

from probes.errors import InputError
from probes.models import fingerprint
from sparsity.acceleration.build import shared_stock
from sparsity.evaluation.same_model import SameModel
from sparsity.options import ModelChoice

CHOICE = ModelChoice("sam2.1-tiny", weights="random", seed=3, image_size=256, device="cpu")


def test_a_model_that_was_loaded_before_its_file_was_replaced_is_built_anew() -> None:
    before = shared_stock(CHOICE)
    wanted = fingerprint(before)
    with torch.no_grad():
        before.maskmem_tpos_enc.add_(1.0)
    work = SameModel(lambda clip: fingerprint(shared_stock(CHOICE)), CHOICE, wanted)
    assert work("a") == wanted != fingerprint(before)
    assert shared_stock(CHOICE) is not before


def test_a_worker_that_can_only_build_another_model_is_refused() -> None:
    work = SameModel(lambda clip: clip, CHOICE, "sha256:another")
    with pytest.raises(InputError, match="expected the same weights on every machine") as caught:
        work("a")
    assert "\n" not in str(caught.value)
