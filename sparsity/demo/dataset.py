"""Made clips as a data set in DAVIS layout, for whatever reads data sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from sparsity.demo.clips import Clip
from sparsity.masks import write_mask


def write_davis(root: Path, clips: Mapping[str, Clip]) -> None:
    """Write clips by name: ``JPEGImages/480p/NAME/00000.jpg`` … and ``Annotations/480p/NAME/00000.png`` …"""
    for name, clip in clips.items():
        frames, annotations = (root / f / "480p" / name for f in ("JPEGImages", "Annotations"))
        for folder in (frames, annotations):
            folder.mkdir(parents=True)
        for t, (frame, mask) in enumerate(zip(clip.frames, clip.masks, strict=True)):
            Image.fromarray(frame).save(frames / f"{t:05d}.jpg", quality=92)
            write_mask(annotations / f"{t:05d}.png", mask, "")
