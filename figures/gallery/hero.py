"""The picture at the top of the README."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from figures.overview import MemoryTile, draw_overview
from figures.style import evidence

CLIP, SEED, FRAME = "smooth", 1, 12
LAYER = "memory.layer0.cross"


def hero() -> go.Figure:
    """Track a made clip with the demo model at profile `paper` and show what one frame costs."""
    from probes import build_predictor
    from sparsity import accelerate
    from sparsity.demo.clips import make_clip
    from sparsity.masks import merge_objects

    clip = make_clip(CLIP, seed=SEED, frames=FRAME + 1)
    predictor = accelerate(build_predictor("demo"), "paper")
    state = predictor.init_state(clip.frames)
    predictor.add_new_mask(state, 0, 1, clip.masks[0] == 1)
    reads: list[Any] = []

    def note(call: Any) -> None:
        if call.site == LAYER and call.moment.frame == FRAME:
            reads.append(call)

    predictor._seam.observers = (note,)
    for _, ids, logits in predictor.propagate_in_video(state):
        mask = merge_objects(logits[:, 0].float().cpu().numpy(), ids)
    report = predictor.report(state).frames[-1]

    side = round(report.windows_total**0.5)
    windows = np.zeros(report.windows_total, bool)
    windows[slice(None) if report.windows is None else report.windows] = True
    grid = predictor.image_size // 16
    share = predictor.image_encoder.trunk.window_spec[2] / grid
    return draw_overview(
        clip.frames[FRAME],
        mask,
        windows.reshape(side, side),
        share,
        _memory(reads[0], clip.frames, grid),
        f"Frame {FRAME} of a made clip, profile paper. Dark windows take the shortcut; of older memory frames "
        "only the tokens that stood out when the frame was first recalled are read, the prompted and the "
        f"newest frame are read whole.{evidence('demo')}",
    )


def _memory(call: Any, frames: np.ndarray, grid: int) -> list[MemoryTile]:
    """Lay the keys of a memory call out on the frames they came from."""
    layout = call.moment.layouts[0]
    read = np.ones(layout.keys, bool)
    if call.keys is not None:
        read[:] = False
        read[call.keys.cpu().numpy()] = True
    tiles = []
    for n, entry in enumerate(layout.frames):
        name = "prompted frame" if entry.conditioning else f"{entry.age} back"
        tokens = read[n * layout.tokens : (n + 1) * layout.tokens].reshape(grid, grid)
        tiles.append(MemoryTile(frames[entry.frame], tokens, name))
    return tiles
