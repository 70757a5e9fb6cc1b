"""What the encoder, the decoder and memory attend to, on made clips."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go

from figures.attention import draw_encoder_and_decoder
from figures.breadth import draw_breadth
from figures.concentration import draw_concentration
from figures.filmstrip import draw_memory_filmstrip
from figures.readings import (
    breadths,
    key_mass,
    object_map,
    recall_curves,
    recollections,
    row_sampling,
)
from figures.recall import draw_recall
from figures.style import ThemeName, evidence
from probes.records import Recording
from sparsity.demo.clips import Clip, make_clip

ONE, TWO = "smooth", "distractors"
OBJECTS = {ONE: 1, TWO: 2, "fast": 1}
"""Objects by clip."""

SEED, FRAMES, FRAME, KEEP = 1, 12, 8, 0.05
BLOCK, LAYER = "encoder.stage3.block9.global", 2


def made(name: str) -> Clip:
    """One of the clips that are recorded."""
    return make_clip(name, seed=SEED, frames=FRAMES, objects=OBJECTS[name])


def recorded(out: Path) -> Recording:
    """Track the clips with the demo model and record what it attends to."""
    from probes import build_predictor
    from probes.recording import record

    predictor = build_predictor("demo")
    for name, count in OBJECTS.items():
        clip = made(name)
        recording = record(
            predictor,
            clip.frames,
            {k: clip.masks[0] == k for k in range(1, count + 1)},
            out=out,
            name=name,
            statistics=["encoder.*", "memory.*.cross"],
            rows=[BLOCK, "memory.*.cross"],
            model="demo",
        )
    return recording


def attention(recording: Recording, theme: ThemeName) -> dict[str, go.Figure]:
    """Draw the figures that a recording holds, by name."""
    over = f"{len(OBJECTS)} made clips of {FRAMES} frames"
    return {
        "encoder-decoder": _encoder_and_decoder(recording, theme),
        "breadth": draw_breadth(
            breadths(recording),
            f"Median and quartiles over {over} and over heads; 1 is an even spread over all keys, distance is in "
            f"pixels of the model's input.{evidence('demo')}",
            theme=theme,
        ),
        "film-strip": _film_strip(recording, theme),
        "concentration": draw_concentration(
            {
                f"layer {layer}": key_mass(recording, f"memory.layer{layer}.cross")
                for layer in range(recording.header.model.layers)
            },
            f"Memory cross-attention, all frames of a full memory, mean of the frames' curves over {over}; approximate: "
            f"read from {row_sampling(recording)}.{evidence('demo')}",
            theme=theme,
        ),
        "recall": draw_recall(
            recall_curves(recording, KEEP),
            KEEP,
            f"The top {KEEP:.0%} of a memory frame's tokens, chosen when it is first recalled: the share of its "
            f"attention that they still catch. Bands: 95 % over {over}.{evidence('demo')}",
            theme=theme,
        ),
    }


def _encoder_and_decoder(recording: Recording, theme: ThemeName) -> go.Figure:
    clip, shot = made(TWO), recording.clip(TWO)
    queries = recording.header.settings.row_queries
    at = {k: shot.row(FRAME, k) for k in range(1, OBJECTS[TWO] + 1)}
    return draw_encoder_and_decoder(
        clip.frames[FRAME],
        {k: clip.masks[FRAME] == k for k in at},
        {k: object_map(shot, queries, BLOCK, i) for k, i in at.items()},
        {k: shot.decoder_saliency[i] for k, i in at.items()},
        f"Made clip, frame {FRAME}; outlined: the true objects; encoder: stage 3, block 9, queries on the object; "
        "decoder: mean over layers, heads and output tokens; lift: attention on the object over its share of the "
        f"area.{evidence('demo')}",
        theme=theme,
    )


def _film_strip(recording: Recording, theme: ThemeName) -> go.Figure:
    clip = made(ONE)
    return draw_memory_filmstrip(
        clip.frames,
        recollections(
            recording.clip(ONE), 1, [FRAME - 1, FRAME, FRAME + 1], f"memory.layer{LAYER}.cross"
        ),
        f"Made clip, memory layer {LAYER}, mean over heads, {row_sampling(recording)}; outlined: the true object. CS: "
        "cosine with the first recollection, from all queries, beside the same with tokens shuffled."
        f"{evidence('demo')}",
        masks={t: {1: clip.masks[t] == 1} for t in range(FRAMES)},
        theme=theme,
    )
