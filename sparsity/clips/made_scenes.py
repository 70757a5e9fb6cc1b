"""What happens in a made clip, by difficulty: textured shapes on paths before a photograph."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

SPRITE = 160  # pixels, side of a pre-rendered object

# Scenes are told apart from objects, so that an object never lies on its own photograph.
SCENES = (
    "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg",
    "skimage/data/motorcycle_left.png",
    "skimage/data/rocket.jpg",
)
SURFACES = (
    "skimage/data/coffee.png",
    "skimage/data/chelsea.png",
    "skimage/data/astronaut.png",
    "skimage/data/ihc.png",
    "skimage/data/retina.jpg",
    "skimage/data/color.png",
)
PILLARS = ("skimage/data/brick.png", "skimage/data/gravel.png", "skimage/data/grass.png")

Path2D = Callable[[int], tuple[float, float]]
"""Where a centre is at frame t: x and y in shares of the frame, outside 0..1 while out of the scene."""

Camera = Callable[[int], tuple[float, float, float]]
"""Zoom, and shift in x and y in shares of the photograph, at frame t."""


@dataclass(frozen=True)
class Thing:
    """A textured shape on a path; ``radius`` is a share of the frame's height."""

    sprite: np.ndarray  # uint8 [s, s, 4]
    radius: float
    path: Path2D
    spin: float = 0.0  # radians a frame
    breathe: float = 0.06  # relative change of size
    last_sprite: np.ndarray | None = None  # what it slowly turns into
    identity: int = 0  # object id; 0 for what only hides others
    slim: float = 1.0  # width in heights


@dataclass(frozen=True)
class Stage:
    """Photographs, which of them is behind at frame t, and the things before it, the nearest last."""

    scenes: list[Image.Image]
    scene_at: Callable[[int], int]
    camera: Camera
    things: list[Thing]


Staging = Callable[[np.random.Generator, int, int], Stage]
"""Sets a stage for random numbers, a length in frames and a number of objects."""


@cache
def photograph(name: str) -> Image.Image:
    package, _, inside = name.partition("/")
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} is not installed; its photographs are the textures")
    with Image.open(Path(spec.origin).parent / inside) as image:
        return image.convert("RGB")


def _sprite(rng: np.random.Generator, surface: str, tint: np.ndarray) -> np.ndarray:
    """Cut a random smooth shape out of a photograph; ``tint`` [3] scales its colours."""
    photo = photograph(surface)
    side = int(min(photo.size) * rng.uniform(0.4, 0.7))
    x, y = (int(rng.integers(0, extent - side + 1)) for extent in photo.size)
    crop = photo.crop((x, y, x + side, y + side)).resize((SPRITE, SPRITE), Image.Resampling.BOX)
    rgb = np.asarray(crop).astype(np.float32)
    axis = (np.arange(SPRITE) + 0.5) / SPRITE * 2 - 1
    across, down = np.meshgrid(axis, axis)
    angle, distance = np.arctan2(down, across), np.hypot(across, down)
    edge = np.full_like(angle, 0.78)
    for k in (2, 3, 4):
        edge += rng.normal() * 0.17 / k * np.cos(k * angle + rng.uniform(0, 2 * math.pi))
    edge = np.clip(edge, 0.45, 0.97)
    alpha = np.clip((edge - distance) * SPRITE / 4 + 0.5, 0, 1)
    shade = 1.1 - 0.35 * (distance / edge) ** 2 - 0.1 * down
    contrast = rgb - rgb.mean((0, 1))
    rgb = (rgb.mean((0, 1)) + 1.2 * contrast) * tint * shade[..., None]
    return np.dstack([np.clip(rgb, 0, 255), alpha * 255]).astype(np.uint8)


def _tint(rng: np.random.Generator, strength: float = 0.35) -> np.ndarray:
    return np.exp(rng.normal(0, strength, 3)).clip(0.45, 1.9)


def _things(
    rng: np.random.Generator, count: int, radius: float, paths: list[Path2D], breathe: float = 0.06
) -> list[Thing]:
    surfaces = rng.permutation(len(SURFACES))
    return [
        Thing(
            _sprite(rng, SURFACES[surfaces[i % len(SURFACES)]], _tint(rng)),
            radius * rng.uniform(0.85, 1.15),
            paths[i],
            spin=rng.normal() * 0.02,
            breathe=breathe,
            identity=i + 1,
        )
        for i in range(count)
    ]


def _drift(rng: np.random.Generator, speed: float, index: int = 0, count: int = 1) -> Path2D:
    """Return a wandering path inside the frame; ``speed`` is about shares of the width a frame."""
    ax, ay = 0.30 / math.sqrt(count), 0.25 / math.sqrt(count)
    wx = speed / ax * rng.uniform(0.8, 1.2) * rng.choice((-1, 1))
    wy = 0.77 * wx * rng.uniform(0.7, 1.3)
    px, py = rng.uniform(0, 2 * math.pi, 2)
    columns = math.ceil(math.sqrt(count * 1.7))
    rows = math.ceil(count / columns)
    cx = (index % columns + 0.5) / columns if count > 1 else 0.5
    cy = (index // columns + 0.5) / rows if count > 1 else 0.5
    return lambda t: (cx + ax * math.sin(wx * t + px), cy + ay * math.sin(wy * t + py))


def _pan(rng: np.random.Generator, amount: float = 1.0) -> Camera:
    phase = rng.uniform(0, 2 * math.pi, 3)
    rate = rng.uniform(0.02, 0.06, 3)

    def camera(t: int) -> tuple[float, float, float]:
        wave = np.sin(rate * t + phase) * amount
        return 1.25 + 0.08 * wave[0], 0.08 * wave[1], 0.06 * wave[2]

    return camera


def _scenes(rng: np.random.Generator, count: int) -> list[Image.Image]:
    return [photograph(SCENES[i]) for i in rng.permutation(len(SCENES))[:count]]


def _plain(rng: np.random.Generator, things: list[Thing], still: bool = False) -> Stage:
    return Stage(_scenes(rng, 1), lambda t: 0, _pan(rng, 0.0 if still else 1.0), things)


def _wandering(speed: float, radius: float, crowding: float = 0.4, still: bool = False) -> Staging:
    """Objects wander each in its own part of the frame; ``crowding`` says how they shrink with their number."""

    def stage(rng: np.random.Generator, length: int, count: int) -> Stage:
        paths = [_drift(rng, speed, i, count) for i in range(count)]
        return _plain(rng, _things(rng, count, radius / count**crowding, paths), still)

    return stage


def _crossing(rng: np.random.Generator, index: int, count: int, period: float) -> Path2D:
    """Return a path to and fro across the whole width, from the left at frame 0."""
    row = (index + 0.5) / count
    lift, phase = rng.uniform(0.02, 0.06), rng.uniform(0, 2 * math.pi)

    def path(t: int) -> tuple[float, float]:
        turn = abs((t / period + 0.02) % 2 - 1)  # 1 -> 0 -> 1
        return 0.13 + 0.74 * (1 - turn), row + lift * math.sin(0.3 * t + phase)

    return path


def _behind(
    rng: np.random.Generator,
    length: int,
    count: int,
    radius: float,
    slim: float,
    places: list[float],
) -> Stage:
    """Return a scene in which objects cross behind pillars at the given shares of the width."""
    period = float(np.clip(length * 0.8, 16, 40))
    paths = [_crossing(rng, i, count, period) for i in range(count)]
    things = _things(rng, count, radius / count**0.5, paths, breathe=0.02)
    pillar = _sprite(rng, PILLARS[int(rng.integers(len(PILLARS)))], _tint(rng, 0.2))
    pillar[..., 3] = 255
    for place in places:

        def stand(t: int, x: float = place) -> tuple[float, float]:
            return x, 0.5

        things.append(Thing(pillar, 0.75, stand, breathe=0.0, slim=slim))
    return _plain(rng, things)


def _occlusion(rng: np.random.Generator, length: int, count: int) -> Stage:
    """Objects pass behind a pillar wider than they are."""
    return _behind(rng, length, count, 0.17, 0.42, [rng.uniform(0.45, 0.6)])


def _leave_and_return(rng: np.random.Generator, length: int, count: int) -> Stage:
    """Each object stays, leaves sideways, is away for a while and comes back elsewhere."""
    period = int(np.clip(length, 20, 36))

    def visit(index: int) -> Path2D:
        row = (index + 0.5) / count if count > 1 else rng.uniform(0.4, 0.6)
        back = row if count > 1 else rng.uniform(0.35, 0.65)
        home, offset = rng.uniform(0.35, 0.65), int(0.28 * period * index / count)
        side = float(rng.choice((-1, 1)))

        def path(t: int) -> tuple[float, float]:
            cycle, now = divmod(t + offset, period)
            share = now / period
            sign = side if cycle % 2 == 0 else -side
            y = row if cycle % 2 == 0 else back
            sway = 0.03 * math.sin(0.4 * t)
            if share < 0.3:
                return home + sway, y
            if share < 0.45:
                return home + sign * (share - 0.3) / 0.15 * 1.0, y
            if share < 0.75:
                return 9.0, 9.0
            x = home - sign * (0.9 - share) / 0.15 * 1.0 if share < 0.9 else home + sway
            return x, back if cycle % 2 == 0 else row

        return path

    return _plain(rng, _things(rng, count, 0.19 / count**0.4, [visit(i) for i in range(count)]))


def _distractors(rng: np.random.Generator, length: int, count: int) -> Stage:
    """Look-alikes with one texture and one shape, in different tints, change places."""
    surface = SURFACES[int(rng.integers(4))]  # those with pattern enough to carry a tint
    seed = int(rng.integers(1 << 31))
    spread = np.array([[1.35, 0.95, 0.6], [0.6, 0.95, 1.4], [0.8, 1.4, 0.7], [1.3, 0.7, 1.3]])
    turn = rng.uniform(0, 2 * math.pi)
    speed = 2 * math.pi / float(np.clip(length * 1.3, 24, 60))
    things = []
    for i in range(count):
        sprite = _sprite(
            np.random.default_rng(seed), surface, spread[i % 4] * (1 - 0.15 * (i // 4))
        )
        phase = turn + 2 * math.pi * i / count

        def path(t: int, phase: float = phase) -> tuple[float, float]:
            return 0.5 + 0.27 * math.cos(phase + speed * t), 0.5 + 0.24 * math.sin(
                phase + speed * t
            )

        things.append(Thing(sprite, 0.17 / (count / 2) ** 0.5, path, spin=0.01, identity=i + 1))
    return _plain(rng, things)


def _scene_cut(rng: np.random.Generator, length: int, count: int) -> Stage:
    """The place changes every third of the clip (at most 20 frames), objects jump with it."""
    shot = max(1, min(length // 3, 20))
    routes = [[_drift(rng, 0.015, i, count) for i in range(count)] for _ in range(3)]

    def path(index: int) -> Path2D:
        return lambda t: routes[t // shot % 3][index](t)

    things = _things(rng, count, 0.2 / count**0.4, [path(i) for i in range(count)])
    return Stage(_scenes(rng, 3), lambda t: t // shot % 3, _pan(rng), things)


def _changing_look(rng: np.random.Generator, length: int, count: int) -> Stage:
    """Objects slowly take another colour and surface and pass behind one pillar after the other.

    When they come out the newest frame shows nothing and the first frame another look: what they
    look like is in the frames between.
    """
    stage = _behind(rng, length, count, 0.12, 0.2, [0.34, 0.58, 0.82])
    for place, thing in enumerate(stage.things):
        if thing.identity:
            other = _sprite(rng, SURFACES[int(rng.integers(len(SURFACES)))], _tint(rng, 0.5))
            other[..., 3] = thing.sprite[..., 3]
            stage.things[place] = replace(thing, last_sprite=other)
    return stage


STAGES: dict[str, tuple[Staging, int]] = {
    "smooth": (_wandering(0.015, 0.2), 1),
    "fast": (_wandering(0.10, 0.18), 1),
    "occlusion": (_occlusion, 1),
    "leave_and_return": (_leave_and_return, 1),
    "distractors": (_distractors, 2),
    "scene_cut": (_scene_cut, 1),
    "tiny": (_wandering(0.012, 0.045, crowding=0), 1),
    "many_objects": (_wandering(0.008, 0.33, crowding=0.5), 8),
    "static_camera": (_wandering(0.02, 0.2, still=True), 1),
    "changing_look": (_changing_look, 1),
}
"""By name: how the stage is set, and the number of objects where none is asked for."""
