"""A recording with made numbers, in the real file format: attention that is known, so that it can be looked for."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from probes.records import (
    KEEP_SHARES,
    STATISTICS,
    ClipInfo,
    Header,
    ModelInfo,
    Recording,
    Settings,
    array_forms,
    load_recording,
)

GRID, FRAMES, SLOTS = 8, 6, 7
ENCODER, ITSELF, MEMORY, DECODER = (
    "encoder.stage3.block5.global",
    "memory.layer1.self",
    "memory.layer1.cross",
    "decoder.final.token_to_image",
)
N = GRID * GRID


def make_recording(folder: Path, *, rows: bool = True) -> Recording:
    """Write a recording of one clip, 6 frames, one object, and open it.

    In the encoder and in self-attention each token attends to the token mirrored left to right; in memory to
    itself.
    """
    settings = Settings(
        dtype="float32",
        query_rows=N,
        encoder_sites=(ENCODER,),
        object_sites=(ENCODER, DECODER),
        map_sites=(ENCODER,),
        row_sites=(ENCODER, ITSELF, MEMORY, DECODER) if rows else (),
        row_queries=tuple(range(N)) if rows else (),
        row_grid=GRID if rows else 0,
    )
    model = ModelInfo(
        name="demo", fingerprint="0" * 64, image_size=128, grid=GRID, window=4, layers=2
    )
    rng = np.random.default_rng(0)
    sizes = {
        "frame": np.zeros(FRAMES),
        "row_frame": np.zeros(FRAMES),
        "encoder_statistics": np.zeros((1, 1, 2)),
        "object_statistics": np.zeros((1, 1, 2)),
        "iou": np.zeros((1, 3)),
    }
    draft = Header(model=model, settings=settings, versions={}, date="2026-01-01")
    arrays = {
        name: rng.random(shape).astype(dtype)
        for name, (dtype, shape) in array_forms(draft, sizes).items()
    }
    arrays["frame"] = arrays["row_frame"] = np.arange(FRAMES, dtype=np.int32)
    arrays["row_object"] = np.ones(FRAMES, np.int32)
    arrays["similarity"][:, :, 6] = np.nan
    mask = np.zeros((4 * GRID, 4 * GRID), bool)
    mask[12:20, 8:18] = True
    arrays["best"][:] = np.packbits(mask)
    remembered = np.arange(FRAMES)[:, None] - 7 + np.arange(SLOTS)[None]
    remembered[:, 0] = np.where(np.arange(FRAMES) > 0, 0, -1)
    arrays["memory_frame"] = np.maximum(remembered, -1).astype(np.int32)
    if rows:
        arrays |= _rows()
    folder.mkdir(parents=True)
    save_file(arrays, folder / "clip.safetensors")
    digest = hashlib.sha256((folder / "clip.safetensors").read_bytes()).hexdigest()
    info = ClipInfo(
        name="clip",
        video="0" * 64,
        prompt="0" * 64,
        height=90,
        width=160,
        frames=FRAMES,
        objects=(1,),
        shard="clip.safetensors",
        sha256=digest,
    )
    header = draft.model_copy(update={"clips": (info,)})
    (folder / "header.json").write_text(header.to_json(), encoding="utf-8")
    assert header.settings.statistics == STATISTICS and header.settings.keep_shares == KEEP_SHARES
    return load_recording(folder)


def _rows() -> dict[str, np.ndarray]:
    itself = np.eye(N).reshape(N, GRID, GRID)
    mirrored = itself[:, :, ::-1]
    encoder = np.repeat((mirrored * 255).astype(np.uint8)[None], FRAMES, 0)
    memory = np.repeat((itself * 255).astype(np.uint8)[None, :, None], FRAMES, 0)
    memory = np.repeat(memory, SLOTS, 2)
    decoder = np.full((FRAMES, 4, GRID, GRID), 128, np.uint8)
    return {
        f"rows/{ENCODER}": np.ascontiguousarray(encoder),
        f"rows/{ITSELF}": np.ascontiguousarray(encoder),
        f"rows/{MEMORY}": np.ascontiguousarray(memory),
        f"rows/{DECODER}": decoder,
        f"row_scale/{ENCODER}": np.ones((FRAMES, N), np.float32),
        f"row_scale/{ITSELF}": np.ones((FRAMES, N), np.float32),
        f"row_scale/{MEMORY}": np.full((FRAMES, N, SLOTS), 1 / SLOTS, np.float32),
        f"row_scale/{DECODER}": np.full((FRAMES, 4), 0.1, np.float32),
    }
