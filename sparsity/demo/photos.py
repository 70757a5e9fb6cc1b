"""Training material, decoded once: photographs with masks, cut-out objects and annotated clips.

Everything is held as uint8 at a fixed square size, because SAM 2 squeezes every frame to a square.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image

SMALLEST_SHARE = 0.012  # of the photograph; smaller annotated objects are not cut out
SMALLEST_SIDE = 24  # pixels of the annotated object's box


@dataclass
class Pool:
    """Decoded training material.

    Parameters
    ----------
    photos : Tensor, uint8 [P, 4, S, S]
        RGB and the mask (0 or 255) of each photograph's largest object.
    cutouts : Tensor, uint8 [C, 4, s, s]
        RGB and alpha of single objects, the object filling the square.
    clips : list of Tensor, uint8 [T, 4, S, S]
        Annotated videos: RGB and the mask of the union of their objects.
    held_out : list of Tensor, uint8 [T, 4, S, S]
        Videos for validation only.
    """

    photos: torch.Tensor
    cutouts: torch.Tensor
    clips: list[torch.Tensor]
    held_out: list[torch.Tensor]


def _stack(rgb: Image.Image, mask: np.ndarray, size: int, box=None) -> torch.Tensor:
    """Return RGB and mask, cropped to ``box`` and resized, as uint8 [4, size, size]."""
    alpha = Image.fromarray(mask.astype(np.uint8) * 255)
    if box is not None:
        rgb, alpha = rgb.crop(box), alpha.crop(box)
    pixels = np.asarray(rgb.resize((size, size), Image.Resampling.BILINEAR))
    cover = np.asarray(alpha.resize((size, size), Image.Resampling.BILINEAR))
    return torch.from_numpy(np.dstack([pixels, cover])).permute(2, 0, 1).contiguous()


def _cutout_box(one: np.ndarray) -> tuple[int, int, int, int] | None:
    """Return the square around the object, or None if it is too small or cut by the border."""
    rows, columns = np.nonzero(one)
    top, bottom = rows.min(), rows.max() + 1
    left, right = columns.min(), columns.max() + 1
    height, width = one.shape
    touches = (top == 0) + (left == 0) + (bottom == height) + (right == width)
    if min(bottom - top, right - left) < SMALLEST_SIDE or touches > 2:
        return None
    side = int(max(bottom - top, right - left) * 1.06) + 2
    x, y = (left + right) // 2 - side // 2, (top + bottom) // 2 - side // 2
    return int(x), int(y), int(x + side), int(y + side)


def load_stills(root: Path, size: int, cut: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Read a folder of photographs with masks (``images.csv``, ``images/``, ``masks/``)."""
    photos, cutouts = [], []
    with (root / "images.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    for row in rows:
        rgb = Image.open(root / row["file"]).convert("RGB")
        mask = np.asarray(Image.open(root / row["mask"]))
        mask = mask[..., 0] if mask.ndim == 3 else mask
        if row["mask_kind"].startswith("0/255"):
            mask = (mask > 127).astype(np.uint8)
        ids = [i for i in np.unique(mask) if i and (mask == i).mean() > SMALLEST_SHARE]
        if not ids:
            continue
        photos.append(_stack(rgb, mask == max(ids, key=lambda i: (mask == i).sum()), size))
        boxes = ((i, _cutout_box(mask == i)) for i in ids)
        cutouts += [_stack(rgb, mask == i, cut, box) for i, box in boxes if box]
    return torch.stack(photos), torch.stack(cutouts)


def load_clips(root: Path, names: list[str], size: int) -> list[torch.Tensor]:
    """Read clips of a DAVIS-layout folder; all objects of a clip count as one."""
    clips = []
    for name in names:
        frames = []
        for path in sorted((root / "JPEGImages" / "480p" / name).glob("*.jpg")):
            rgb = Image.open(path).convert("RGB")
            annotation = root / "Annotations" / "480p" / name / f"{path.stem}.png"
            frames.append(_stack(rgb, np.asarray(Image.open(annotation)) > 0, size))
        clips.append(torch.stack(frames))
    return clips


def load_pool(
    davis: Path, stills: Path, size: int = 384, cut: int = 224, cache: Path | None = None
) -> Pool:
    """Decode everything, or read it back from ``cache``.

    ``davis`` holds ``train.txt`` (clips to train on) and ``calibrate.txt`` (validation only).
    """
    if cache is not None and cache.exists():
        return Pool(**torch.load(cache, weights_only=True))
    lists = {s: (davis / f"{s}.txt").read_text().split() for s in ("train", "calibrate")}
    photos, cutouts = load_stills(stills, size, cut)
    pool = Pool(
        photos,
        cutouts,
        load_clips(davis, lists["train"], size),
        load_clips(davis, lists["calibrate"], size),
    )
    if cache is not None:
        partial = cache.with_name(cache.name + ".partial")
        torch.save({f.name: getattr(pool, f.name) for f in fields(pool)}, partial)
        partial.rename(cache)
    return pool
