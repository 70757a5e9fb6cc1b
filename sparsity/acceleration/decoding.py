"""Masks of a tracked frame: decoded, and what they say about the next frame sent on its way to the host."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsity.acceleration.encoder import window_grid
from sparsity.acceleration.graphs import plainly
from sparsity.acceleration.saliency import token_to_image
from sparsity.acceleration.tracked import Tracked
from sparsity.acceleration.transfer import to_host
from sparsity.routing import cue_row
from sparsity.window_cues import token_logits

if TYPE_CHECKING:
    from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor


def decode_tracked(
    predictor: EfficientSAM2VideoPredictor,
    decode: Callable[..., tuple[Tensor, ...]],
    tracked: Tracked,
    features: Tensor,
    high_res: list[Tensor] | None,
    multimask: bool,
) -> tuple[Tensor, ...]:
    """Decode masks without prompts; where windows are routed, `tracked` gets candidates and decoder saliency.

    Parameters
    ----------
    decode
        sam2's ``_forward_sam_heads``.
    features, high_res, multimask
        As it takes them.
    """
    routes = predictor.profile.windows is not None

    def heads(given: tuple[Tensor, list[Tensor] | None]) -> tuple[Any, Tensor | None]:
        features, fine = given
        with token_to_image(predictor.sam_mask_decoder) if routes else nullcontext() as noted:
            found = decode(features, None, None, fine, multimask)
        if noted is None:
            return found, None
        with predictor._casting_once():
            return found, noted.saliency(predictor.sam_image_embedding_size)

    kind = "mask decoder", routes, multimask
    found, saliency = predictor._run(kind, heads, (features, high_res))
    told = found[6].flatten(1).amax(1)
    if routes:
        tracked.candidates, tracked.best = found[0], found[3][:, 0]
        tracked.saliency = saliency
        told = _cue_rows(predictor, tracked, told)
    # on its way before the memory encoder runs, which the host then need not wait for
    tracked.known = to_host(told)
    return found


def _cue_rows(predictor: EfficientSAM2VideoPredictor, tracked: Tracked, scores: Tensor) -> Tensor:
    """What each object's result says about the next frame, `sparsity.routing.cue_row` of each."""
    profile, grid = predictor.profile, window_grid(predictor)
    windows, router = profile.windows, profile.router
    assert windows is not None and tracked.best is not None, "candidates come with the best one"
    last: list[Tensor | None] = [None] * len(scores)
    if profile.guard.mask_jump is not None or router is not None:
        for b in range(len(scores)):
            before = tracked.adjacent(b)
            if before is not None:
                last[b] = before["pred_masks"].to(tracked.best.device)[0, 0]

    def rows(given: tuple[Any, ...]) -> Tensor:
        candidates, best, last, saliency, scores = given
        objects = range(len(scores))
        logits = [None if router is None else token_logits(candidates[b], best[b]) for b in objects]
        return torch.stack(
            [
                cue_row(
                    candidates[b], best[b], last[b], None if saliency is None else saliency[b], scores[b],
                    grid, windows, router, logits[b],
                )
                for b in objects
            ]
        )  # fmt: skip

    run = predictor._run if router is None else plainly  # a router's motion is found on the host
    given = tracked.candidates, tracked.best, last, tracked.saliency, scores
    return run(("cues", windows, grid), rows, given)
