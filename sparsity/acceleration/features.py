"""Features of a frame as the profile wants them: routed where a decision says so, dense everywhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from sparsity.acceleration.encoder import Routing, window_grid
from sparsity.acceleration.reuse import CHANGE, PICTURE, LastComputed, parts_of
from sparsity.acceleration.session import FeatureKind, FrameFeatures, Session
from sparsity.acceleration.windows import cells_within, window_tokens
from sparsity.profile import Windows
from sparsity.select import WindowGrid

if TYPE_CHECKING:
    from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor


def own_features(
    predictor: EfficientSAM2VideoPredictor, state: dict[str, Any], session: Session, frame: int
) -> FrameFeatures | None:
    """Return a frame's features, encoded now unless those of the last call serve; None where stock's are wanted."""
    profile, routed = predictor.profile, session.routing
    windows, cells = (None, None) if routed is None else (routed.windows, routed.cells)
    wanted = FeatureKind(windows, cells, profile.technique("encoder"))
    parts, found = parts_of(profile), session.features
    if routed is not None and windows is None:
        session.last_dense = frame
    if windows is None and not wanted.exact and not parts:
        return None
    encoder, last = predictor._encoder, session.last
    same = found is not None and (found.frame, found.version) == (frame, encoder.version)
    if found is not None and same and found.kind.serves(wanted):
        return found
    image = state["images"][frame].to(state["device"]).float().unsqueeze(0)
    if windows is None or last is None:
        last = session.last = LastComputed(encoder.version, frame)
    last.carry(parts)
    techniques = profile.calibrated_techniques
    routing = Routing(windows, cells, predictor._shortcut, CHANGE in parts, techniques, last)
    output, change = encoder(image, routing, exact=wanted.exact, run=predictor._run)
    if change is not None:
        last.parts[CHANGE] = (change,)
    rule = profile.windows
    if rule is not None and rule.rolling_refresh is not None:
        grid = window_grid(predictor)
        pictures = session.pictures_of(frame, image[0], grid.cells if rule.trimmed else grid)
        rows = None if windows is None else _pictured(grid, rule, windows, cells, image)
        last.complete(PICTURE[rule.trimmed], rows, pictures if rows is None else pictures[rows])
    last.frame = frame
    session.features = FrameFeatures(frame, wanted, encoder.version, image, output)
    return session.features


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
