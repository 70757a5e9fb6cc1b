"""Windows that go through the shortcut, as groups for `probes.attribution`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from probes.errors import InputError
from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor


def windows_through_shortcut(
    predictor: EfficientSAM2VideoPredictor, state: dict[str, Any], frame: int, object_id: int
) -> Callable[[Tensor], Tensor]:
    """Make a function from kept windows to an object's mask logits on a frame.

    Parameters
    ----------
    predictor
        With a profile that has `windows`.
    state
        Tracked up to the frame before; the frame itself is tracked anew at each call.
    frame, object_id
        Which mask to look at.

    Raises
    ------
    InputError
        The profile does not route windows.
    """
    if predictor.profile.windows is None:
        raise InputError(
            f"profile {predictor.profile.name!r} routes no windows; ablation takes some away; use one with windows, "
            "for example paper"
        )

    def run(kept: Tensor) -> Tensor:
        windows = None if bool(kept.all()) else tuple(torch.nonzero(kept)[:, 0].tolist())
        state["cached_features"] = {}  # those of more windows would be taken
        predictor.choose_windows(state, lambda _: windows)
        try:
            _, ids, masks = next(iter(predictor.propagate_in_video(state, frame, 0)))
        finally:
            predictor.choose_windows(state, None)
        return masks[ids.index(object_id), 0]

    return run
