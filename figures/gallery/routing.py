"""What profile `paper` computes of a made clip: the picture at the top of the README, and the player."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from figures.overview import MemoryTile, draw_overview
from figures.player import RoutedFrame, draw_window_player
from figures.style import ThemeName, evidence

CLIP, SEED, FRAME = "smooth", 1, 12
LAYER = "memory.layer0.cross"


@dataclass(frozen=True)
class Tracked:
    """A routed run: each frame, the memory that the last one read, and a window's share of the grid's side."""

    frames: list[RoutedFrame]
    memory: list[MemoryTile]
    window_share: float


def tracked() -> Tracked:
    """Track a made clip with the demo model at profile `paper`."""
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
    masks = [
        merge_objects(logits[:, 0].float().cpu().numpy(), ids)
        for _, ids, logits in predictor.propagate_in_video(state)
    ]
    frames = [
        RoutedFrame(clip.frames[report.frame], mask, _windows(report), report.reason, report.frame)
        for report, mask in zip(predictor.report(state).frames, masks, strict=True)
    ]
    grid = predictor.image_size // 16
    share = predictor.image_encoder.trunk.window_spec[2] / grid
    return Tracked(frames, _memory(reads[0], clip.frames, grid), share)


def routing(run: Tracked, theme: ThemeName) -> dict[str, go.Figure]:
    """Draw the overview and the player, by name."""
    last = run.frames[-1]
    return {
        "hero": draw_overview(
            last.frame,
            last.masks,
            last.windows,
            run.window_share,
            run.memory,
            f"Frame {FRAME} of a made clip, profile paper. Dark windows take the shortcut; of older memory frames "
            "only the tokens that stood out when the frame was first recalled are read, the prompted and the "
            f"newest frame are read whole.{evidence('demo')}",
            theme=theme,
        ),
        "window-player": draw_window_player(
            run.frames,
            run.window_share,
            f"Made clip, profile paper. Dark windows take the shortcut.{evidence('demo')}",
            shown=len(run.frames) // 2,
            theme=theme,
        ),
    }


def _windows(report: Any) -> np.ndarray:
    """Which windows a frame computed, bool ``[rows, columns]``."""
    side = round(report.windows_total**0.5)
    windows = np.zeros(report.windows_total, bool)
    windows[slice(None) if report.windows is None else report.windows] = True
    return windows.reshape(side, side)


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
