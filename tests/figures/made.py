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

GREYS = np.repeat(
    (20 + 12 * np.arange(FRAMES, dtype=np.uint8))[:, None, None, None], 3, axis=3
) * np.ones((1, 90, 160, 1), np.uint8)
"""Frames of the recorded video: frame t is one grey level, which tells it from the others."""


def make_recording(
    folder: Path, *, rows: bool = True, window: int = 4, prompted: tuple[int, ...] = (0,)
) -> Recording:
    """Write a recording of one clip, 6 frames, one object, and open it.

    In the encoder and in self-attention each token attends to the token mirrored left to right; in memory to
    the token on its right, in the last column to the first. On prompted frames nothing but the encoder is seen.

    Parameters
    ----------
    window
        Tokens per side of a window.
    prompted
        Frames with a prompt; tracking goes forward from the first and then back.
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
        name="demo", fingerprint="0" * 64, image_size=128, grid=GRID, window=window, layers=2
    )
    rng = np.random.default_rng(0)
    sizes = {
        "frame": np.zeros(FRAMES),
        "row_frame": np.zeros(FRAMES),
        "encoder_statistics": np.zeros((1, 1, 2)),
        "object_statistics": np.zeros((1, 1, 2)),
        "iou": np.zeros((1, 3)),
        "prompt_frames": np.zeros((1, len(prompted))),
    }
    draft = Header(model=model, settings=settings, versions={}, date="2026-01-01")
    arrays = {
        name: rng.random(shape).astype(dtype)
        for name, (dtype, shape) in array_forms(draft, sizes).items()
    }
    order = [*range(prompted[0], FRAMES), *reversed(range(prompted[0]))]
    arrays["frame"] = arrays["row_frame"] = np.array(order, np.int32)
    arrays["conditioning"] = np.isin(order, prompted)
    arrays["reverse"] = np.array(order) < prompted[0]
    arrays["row_object"] = np.ones(FRAMES, np.int32)
    arrays["similarity"][:, :, 6] = np.nan
    mask = np.zeros((4 * GRID, 4 * GRID), bool)
    mask[12:20, 8:18] = True
    arrays["best"][:] = np.packbits(mask)
    arrays["memory_frame"] = np.array([_remembered(t, prompted) for t in order], np.int32)
    held = np.where(arrays["conditioning"][:, None], -1, np.array(prompted))
    arrays["prompt_frames"] = held.astype(np.int32)
    if rows:
        arrays |= _rows(arrays["conditioning"])
    folder.mkdir(parents=True)
    save_file(arrays, folder / "clip.safetensors")
    digest = hashlib.sha256((folder / "clip.safetensors").read_bytes()).hexdigest()
    info = ClipInfo(
        name="clip",
        video=hashlib.sha256(GREYS[order].tobytes()).hexdigest(),
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


def _remembered(t: int, prompted: tuple[int, ...]) -> list[int]:
    """The frame in each memory slot of a frame, -1 for none: the nearest prompted one, then six neighbours."""
    if t in prompted:
        return [-1] * SLOTS
    back = 1 if t > prompted[0] else -1
    near = [t - back * (SLOTS - slot) for slot in range(1, SLOTS)]
    return [
        min(prompted, key=lambda p: abs(t - p)), *(n if 0 <= n < FRAMES else -1 for n in near)
    ]  # fmt: skip


def _rows(conditioning: np.ndarray) -> dict[str, np.ndarray]:
    itself = np.eye(N).reshape(N, GRID, GRID)
    mirrored, right = itself[:, :, ::-1], np.roll(itself, 1, axis=2)
    encoder = np.repeat((mirrored * 255).astype(np.uint8)[None], FRAMES, 0)
    memory = np.repeat((right * 255).astype(np.uint8)[None, :, None], FRAMES, 0)
    memory = np.repeat(memory, SLOTS, 2)
    decoder = np.full((FRAMES, 4, GRID, GRID), 128, np.uint8)
    seen = ~conditioning[:, None]
    return {
        f"rows/{ENCODER}": np.ascontiguousarray(encoder),
        f"rows/{ITSELF}": np.ascontiguousarray(encoder),
        f"rows/{MEMORY}": np.ascontiguousarray(memory),
        f"rows/{DECODER}": decoder,
        f"row_scale/{ENCODER}": np.ones((FRAMES, N), np.float32),
        f"row_scale/{ITSELF}": (seen * np.ones(N)).astype(np.float32),
        f"row_scale/{MEMORY}": (seen * np.full(N, 1 / SLOTS)).astype(np.float32),
        f"row_scale/{DECODER}": (seen * np.full(4, 0.1)).astype(np.float32),
    }
