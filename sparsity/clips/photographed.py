"""A real photograph under a camera that moves as it is told: a real picture, and an exact truth of how it moves.

No package that everything here is built on ships a video of use. The photograph is scikit-image's ``chelsea.png``
(CC0, by Stefan van der Walt); the outline of its eye was drawn by hand, to a pixel or two, and moves exactly with the picture.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from sparsity.clips.made import Clip
from sparsity.clips.made_scenes import photograph

NAME = "photographed cat"

PHOTOGRAPH = "skimage/data/chelsea.png"

EYE = (
    (134, 108), (135, 97), (137, 91), (145, 87.5), (155, 86), (165, 86), (175, 88), (185, 90.5), (193, 94), (200, 101),
    (206, 108), (210, 116), (212, 124), (214, 133), (213, 141), (208, 146), (200, 148), (190, 148.5), (180, 148), (170, 147),
    (162, 145), (154, 141), (147, 135), (141, 128), (137, 120),
)  # fmt: skip
"""The cat's right eye with its dark rim: corners of its outline, x and y in pixels of the photograph."""

FINE = 4
"""Pixels of the drawn outline per pixel of the photograph, along a side."""


def photographed_cat(frames: int = 16, size: tuple[int, int] = (270, 480)) -> Clip:
    """Pan, turn and zoom over the photograph of a cat.

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
        NAME,
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
