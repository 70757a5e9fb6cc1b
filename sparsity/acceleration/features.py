"""Features of a frame in sam2's one-frame cache: routed where a decision says so, dense everywhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from sparsity.acceleration.encoder import Routing, window_grid
from sparsity.acceleration.reuse import CHANGE, PICTURE, LastComputed, parts_of
from sparsity.acceleration.session import FeatureKind, Session
from sparsity.acceleration.windows import cells_within, window_tokens
from sparsity.profile import Windows
from sparsity.select import WindowGrid

if TYPE_CHECKING:
    from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor


def prepare_features(
    predictor: EfficientSAM2VideoPredictor, state: dict[str, Any], session: Session, frame: int
) -> None:
    """See to it that what sam2 finds in its cache for a frame is what is wanted; stock computes what is missing."""
    profile, routed = predictor.profile, session.routing
    windows, cells = (None, None) if routed is None else (routed.windows, routed.cells)
    wanted = FeatureKind(windows, cells, profile.technique("encoder"))
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
            routing = Routing(windows, cells, shortcut, CHANGE in parts, techniques, last)
            features, change = encoder(image, routing, exact=wanted.exact)
            state["cached_features"] = {frame: (image, features)}
            if change is not None:
                last.parts[CHANGE] = (change,)
            rule = profile.windows
            if rule is not None and rule.rolling_refresh is not None:
                grid = window_grid(predictor)
                pictures = session.pictures_of(
                    frame, image[0], grid.cells if rule.trimmed else grid
                )
                rows = None if windows is None else _pictured(grid, rule, windows, cells, image)
                fresh = pictures if rows is None else pictures[rows]
                last.complete(PICTURE[rule.trimmed], rows, fresh)
            last.frame = frame
        session.features = wanted
    if windows is None:
        session.last_dense = frame


def _pictured(
    grid: WindowGrid,
    rule: Windows,
    windows: tuple[int, ...],
    cells: tuple[int, ...] | None,
    image: Tensor,
) -> Tensor:
    """Rows of the pictures that are of what is computed, int64."""
    if rule.trimmed:
        return cells_within(grid, windows, cells, image.device)
    return window_tokens(grid.tokens, grid.window, windows, image.device).ids


def _add(change: Tensor) -> Any:
    """The cached shortcut: what the blocks changed when each window was last computed, added again."""
    return lambda x: x + change
