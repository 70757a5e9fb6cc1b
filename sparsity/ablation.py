"""Windows that go through the shortcut, as groups for `probes.attribution`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from probes.errors import InputError
from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor
from sparsity.acceleration.reuse import parts_of
from sparsity.acceleration.session import KEY


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
        The profile does not route windows, or lets windows reuse what earlier frames gave: tracking the frame once
        would change what the next call starts from.
    """
    profile = predictor.profile
    if parts_of(profile) or (profile.memory is not None and profile.memory.readers == "routed"):
        raise InputError(
            f"profile {profile.name!r} reuses what windows gave on earlier frames; ablation tracks one frame again and "
            "again from the same state; use a profile that reuses nothing, for example paper"
        )
    if predictor.profile.windows is None:
        raise InputError(
            f"profile {predictor.profile.name!r} routes no windows; ablation takes some away; use one with windows, "
            "for example paper"
        )

    def run(kept: Tensor) -> Tensor:
        windows = None if bool(kept.all()) else tuple(torch.nonzero(kept)[:, 0].tolist())
        state[KEY].features = None  # those of more windows would be taken
        predictor.choose_windows(state, lambda _: windows)
        try:
            _, ids, masks = next(iter(predictor.propagate_in_video(state, frame, 0)))
        finally:
            predictor.choose_windows(state, None)
        return masks[ids.index(object_id), 0]

    return run
