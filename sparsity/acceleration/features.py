"""Features of a frame in sam2's one-frame cache: routed where a decision says so, dense everywhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from sparsity.acceleration.encoder import Routing, window_grid
from sparsity.acceleration.reuse import CHANGE, PICTURE, LastComputed, parts_of
from sparsity.acceleration.session import FeatureKind, Session
from sparsity.acceleration.windows import window_tokens
from sparsity.select import window_pictures

if TYPE_CHECKING:
    from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor


def prepare_features(
    predictor: EfficientSAM2VideoPredictor, state: dict[str, Any], session: Session, frame: int
) -> None:
    """See to it that what sam2 finds in its cache for a frame is what is wanted; stock computes what is missing."""
    profile, routed = predictor.profile, session.routing
    windows = None if routed is None else routed.windows
    wanted = FeatureKind(windows, profile.technique("encoder"))
    cache = state["cached_features"]
    if frame in cache and not session.features.serves(wanted):
        state["cached_features"] = cache = {}
    if frame not in cache:
        parts = parts_of(profile)
        if windows is not None or wanted.exact or parts:
            image = state["images"][frame].to(state["device"]).float().unsqueeze(0)
            encoder, techniques = predictor._encoder, profile.calibrated_techniques
            last = session.last
            if windows is None or last is None:
                last = session.last = LastComputed(encoder.version, frame)
            last.carry(parts)
            shortcut = predictor._shortcut
            if shortcut is None and CHANGE in last.parts:
                shortcut = _add(*last.parts[CHANGE])
            routing = Routing(windows, shortcut, CHANGE in parts, techniques, last)
            features, change = encoder(image, routing, exact=wanted.exact)
            state["cached_features"] = {frame: (image, features)}
            if change is not None:
                last.parts[CHANGE] = (change,)
            if PICTURE in parts:
                grid = window_grid(predictor)
                ids = window_tokens(grid.tokens, grid.window, windows, image.device).ids
                fresh = window_pictures(image[0], grid)[ids]
                last.complete(PICTURE, None if windows is None else ids, fresh)
            last.frame = frame
        session.features = wanted
    if windows is None:
        session.last_dense = frame


def _add(change: Tensor) -> Any:
    """The cached shortcut: what the blocks changed when each window was last computed, added again."""
    return lambda x: x + change
