"""Features of a frame in sam2's one-frame cache: routed where a decision says so, dense everywhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from sparsity.acceleration.encoder import Routing
from sparsity.acceleration.reuse import LastComputed
from sparsity.acceleration.session import FeatureKind, Session

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
        cached = profile.windows is not None and profile.shortcut.kind == "cached"
        keep = cached and windows is None
        if windows is not None or wanted.exact or keep:
            image = state["images"][frame].to(state["device"]).float().unsqueeze(0)
            shortcut = predictor._shortcut
            if shortcut is None and session.change is not None:
                shortcut = _add(session.change)
            encoder, techniques = predictor._encoder, profile.calibrated_techniques
            if windows is None:
                session.last = LastComputed(encoder.version, frame)
            routing = Routing(windows, shortcut, keep, techniques, session.last)
            features, change = encoder(image, routing, exact=wanted.exact)
            state["cached_features"] = {frame: (image, features)}
            session.change = session.change if change is None else change
            if session.last is not None:
                session.last.frame = frame
        session.features = wanted
    if windows is None:
        session.last_dense = frame


def _add(change: Tensor) -> Any:
    """The cached shortcut: what the last dense frame's blocks changed, added again."""
    return lambda x: x + change
