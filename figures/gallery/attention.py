"""What the encoder, the decoder and memory attend to, on a made clip."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import plotly.graph_objects as go

from figures.attention import draw_encoder_and_decoder
from figures.filmstrip import draw_memory_filmstrip
from figures.readings import object_map, recollections
from figures.style import ThemeName, evidence

CLIP, SEED, FRAMES, FRAME = "smooth", 1, 10, 8
BLOCK, MEMORY = "encoder.stage3.block9.global", "memory.layer2.cross"


def attention(theme: ThemeName) -> dict[str, go.Figure]:
    """Track two objects with the demo model; the figures by name."""
    from probes import build_predictor, record
    from sparsity.demo.clips import make_clip

    clip = make_clip(CLIP, seed=SEED, frames=FRAMES, objects=2)
    prompts = {k: clip.masks[0] == k for k in (1, 2)}
    with TemporaryDirectory() as folder:
        recording = record(
            build_predictor("demo"),
            clip.frames,
            prompts,
            out=Path(folder) / "made.recording",
            statistics=BLOCK,
            rows=[BLOCK, MEMORY],
            model="demo",
            say=lambda text: None,
        )
        shot = recording.clip("clip")
        queries = recording.header.settings.row_queries
    at = {k: shot.row(FRAME, k) for k in (1, 2)}
    masks = {t: {1: clip.masks[t] == 1} for t in range(FRAMES)}
    both = draw_encoder_and_decoder(
        clip.frames[FRAME],
        {k: clip.masks[FRAME] == k for k in at},
        {k: object_map(shot, queries, BLOCK, i) for k, i in at.items()},
        {k: shot.decoder_saliency[i] for k, i in at.items()},
        f"Made clip, frame {FRAME}; encoder: stage 3, block 9, queries on the object; decoder: mean over "
        f"layers, heads and output tokens.{evidence('demo')}",
        theme=theme,
    )
    strip = draw_memory_filmstrip(
        clip.frames,
        recollections(shot, 1, [FRAME - 1, FRAME, FRAME + 1], MEMORY),
        "Made clip, object 1, memory layer 2, mean over queries and heads. CS: cosine with the first "
        f"recollection, beside the same with tokens shuffled.{evidence('demo')}",
        masks=masks,
        theme=theme,
    )
    return {"encoder-decoder": both, "film-strip": strip}
