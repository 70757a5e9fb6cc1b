"""Made clips with exact masks: real photo textures, known motion, one name per difficulty; and a photograph panned over.

The photographs ship inside scikit-image and scikit-learn, so everyone has them, and none of them
is used to train the demo model. A clip is the same on every run for the same name, seed, length,
size and number of objects.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sparsity.clips.made_scenes import SPRITE, STAGES, Stage, Thing, photograph
from sparsity.clips.masks import write_mask

CLIP_NAMES = tuple(STAGES)


@dataclass(frozen=True)
class Clip:
    """A made clip.

    Attributes
    ----------
    frames : uint8 [T, H, W, 3]
        RGB.
    masks : uint8 [T, H, W]
        Object ids 1..K of the visible pixels, 0 elsewhere.
    name : str
    absent : bool [T, K]
        True where an object has no visible pixel.
    """

    frames: np.ndarray
    masks: np.ndarray
    name: str
    absent: np.ndarray


def _shoot(
    stage: Stage, t: int, length: int, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Render one frame and its mask."""
    photo = stage.scenes[stage.scene_at(t)]
    zoom, shift_x, shift_y = stage.camera(t)
    cover = min(photo.width / width, photo.height / height) / zoom
    left = photo.width / 2 + shift_x * photo.width * (1 - 1 / zoom) * 2 - cover * width / 2
    top = photo.height / 2 + shift_y * photo.height * (1 - 1 / zoom) * 2 - cover * height / 2
    coefficients = (cover, 0, left, 0, cover, top)
    placed = photo.transform(
        (width, height), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    )
    frame = np.array(placed)
    mask = np.zeros((height, width), np.uint8)
    for thing in stage.things:
        x, y = thing.path(t)
        radius = thing.radius * height * (1 + thing.breathe * math.sin(0.21 * t))
        wide = radius * thing.slim
        _draw(frame, mask, thing, x * width, y * height, (wide, radius), t, length)
    return frame, mask


def _draw(
    frame: np.ndarray,
    mask: np.ndarray,
    thing: Thing,
    x: float,
    y: float,
    radii: tuple[float, float],
    t: int,
    length: int,
) -> None:
    """Draw a thing over the frame at (x, y) pixels; pixels it mostly covers become its own."""
    height, width = mask.shape
    reach = math.hypot(*radii) + 1 if thing.spin else max(radii) + 1
    left, right = max(0, math.floor(x - reach)), min(width, math.ceil(x + reach))
    top, bottom = max(0, math.floor(y - reach)), min(height, math.ceil(y + reach))
    if left >= right or top >= bottom:
        return
    sprite = thing.sprite
    if thing.last_sprite is not None:
        share = t / max(1, length - 1)
        sprite = (sprite * (1 - share) + thing.last_sprite * share).astype(np.uint8)
    cos, sin = math.cos(thing.spin * t), math.sin(thing.spin * t)
    sx, sy = SPRITE / 2 / radii[0], SPRITE / 2 / radii[1]
    a, b, d, e = cos * sx, sin * sx, -sin * sy, cos * sy
    c = SPRITE / 2 - a * (x - left) - b * (y - top)
    f = SPRITE / 2 - d * (x - left) - e * (y - top)
    image = Image.fromarray(sprite)
    if sx > 2:  # shrunk a lot: average first, so that texture does not flicker
        small = image.reduce(int(sx))
        ratio = small.width / SPRITE
        a, b, c, d, e, f = (v * ratio for v in (a, b, c, d, e, f))
        image = small
    box = (right - left, bottom - top)
    warped = image.transform(
        box, Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR
    )
    pixels = np.asarray(warped)
    alpha = pixels[..., 3:].astype(np.uint16)
    view = frame[top:bottom, left:right]
    view[:] = (pixels[..., :3] * alpha + view * (255 - alpha) + 127) // 255
    mask[top:bottom, left:right][pixels[..., 3] > 127] = thing.identity


def make_clip(
    name: str,
    seed: int = 0,
    frames: int = 24,
    size: tuple[int, int] = (288, 512),
    objects: int | None = None,
) -> Clip:
    """Make a clip of the given difficulty.

    Parameters
    ----------
    name : str
        One of ``CLIP_NAMES``.
    seed : int
        Textures, shapes and motion.
    frames : int
        Length.
    size : (int, int)
        Height and width in pixels, each at least 32.
    objects : int, optional
        1 to 8; by default 8 in ``many_objects``, 2 in ``distractors``, 1 elsewhere.

    Returns
    -------
    Clip
        Every object is visible in frame 0.

    Raises
    ------
    ValueError
        Unknown name, or a number out of range.

    Examples
    --------
    >>> clip = make_clip("smooth", frames=3, size=(72, 128))
    >>> clip.frames.shape, clip.masks.shape
    ((3, 72, 128, 3), (3, 72, 128))
    """
    if name not in STAGES:
        raise ValueError(f"clip name is {name!r}; expected one of {', '.join(CLIP_NAMES)}")
    stage_of, default = STAGES[name]
    count = default if objects is None else objects
    if not 1 <= count <= 8:
        raise ValueError(f"objects is {count}; expected 1 to 8")
    if frames < 1 or min(size) < 32:
        raise ValueError(
            f"frames is {frames} and size {size}; expected at least 1 frame of at least 32 x 32"
        )
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    stage = stage_of(rng, frames, count)
    height, width = size
    video = np.empty((frames, height, width, 3), np.uint8)
    masks = np.empty((frames, height, width), np.uint8)
    for t in range(frames):
        video[t], masks[t] = _shoot(stage, t, frames, height, width)
    seen = [np.bincount(mask.ravel(), minlength=count + 1)[1 : count + 1] for mask in masks]
    return Clip(video, masks, name, np.array(seen) == 0)


def write_davis(root: Path, clips: Mapping[str, Clip]) -> None:
    """Write clips by name: ``JPEGImages/480p/NAME/00000.jpg`` … and ``Annotations/480p/NAME/00000.png`` …"""
    for name, clip in clips.items():
        frames, annotations = (root / f / "480p" / name for f in ("JPEGImages", "Annotations"))
        for folder in (frames, annotations):
            folder.mkdir(parents=True)
        for t, (frame, mask) in enumerate(zip(clip.frames, clip.masks, strict=True)):
            Image.fromarray(frame).save(frames / f"{t:05d}.jpg", quality=92)
            write_mask(annotations / f"{t:05d}.png", mask, "")


PHOTOGRAPHED = "photographed cat"
"""Name of its clip."""

PHOTOGRAPH = "skimage/data/chelsea.png"
"""Of a cat, CC0, by Stefan van der Walt."""

EYE = (
    (134, 108), (135, 97), (137, 91), (145, 87.5), (155, 86), (165, 86), (175, 88), (185, 90.5), (193, 94), (200, 101),
    (206, 108), (210, 116), (212, 124), (214, 133), (213, 141), (208, 146), (200, 148), (190, 148.5), (180, 148), (170, 147),
    (162, 145), (154, 141), (147, 135), (141, 128), (137, 120),
)  # fmt: skip
"""The cat's right eye with its dark rim, drawn by hand to a pixel or two: corners of its outline, x and y in pixels of the
photograph."""

FINE = 4
"""Pixels of the drawn outline per pixel of the photograph, along a side."""


def photographed_cat(frames: int = 16, size: tuple[int, int] = (270, 480)) -> Clip:
    """Pan, turn and zoom over the photograph of a cat: a real picture, and an exact truth of how it moves.

    No package that everything here is built on ships a video of use.

    Parameters
    ----------
    frames
        Length; the same path is taken in so many steps.
    size
        Height and width of a frame in pixels; 9 to 16 shows no more than there is.

    Returns
    -------
    Clip
        Frames ``[T, H, W, 3]`` and masks ``[T, H, W]`` with an eye as object 1.
    """
    picture = photograph(PHOTOGRAPH)
    drawn = Image.new("L", (FINE * picture.width, FINE * picture.height))
    ImageDraw.Draw(drawn).polygon([(FINE * x, FINE * y) for x, y in EYE], fill=255)
    outline = drawn.resize(picture.size, Image.Resampling.BOX)
    shots = [_coefficients(t / max(1, frames - 1), size) for t in range(frames)]
    height, width = size

    def seen(image: Image.Image, at: tuple[float, ...]) -> np.ndarray:
        return np.asarray(
            image.transform((width, height), Image.Transform.AFFINE, at, Image.Resampling.BICUBIC)
        )

    return Clip(
        np.stack([seen(picture, at) for at in shots]),
        np.stack([(seen(outline, at) > 127).astype(np.uint8) for at in shots]),
        PHOTOGRAPHED,
        np.zeros((frames, 1), bool),
    )


def _coefficients(share: float, size: tuple[int, int]) -> tuple[float, ...]:
    """From a frame's pixels to the photograph's, after a share of the path: an affine map as Pillow takes it."""
    height, width = size
    x, y = 222 - 40 * share, 135 + 15 * math.sin(math.pi * share)  # middle of the frame
    scale = (420 - 90 * share) / width  # pixels of the photograph per pixel
    turn = math.radians(4 * math.sin(math.pi * share))
    cos, sin = scale * math.cos(turn), scale * math.sin(turn)
    left, top = (width - 1) / 2, (height - 1) / 2
    return cos, -sin, x - cos * left + sin * top, sin, cos, y - sin * left - cos * top
