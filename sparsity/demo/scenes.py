"""Training clips made on the fly: photographs, cut-outs and real clips composed with exact masks.

A clip has two targets. Either may leave, be covered or change its look; look-alikes and random
jumps make sure that only recall of earlier frames, not the place in the frame, tells the target.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from sparsity.demo.photos import Pool

KINDS = ("jump", "smooth", "still", "davis", "drift")


@dataclass
class Track:
    """Where a layer is in each of T frames, in units of half the frame.

    ``centre`` [T, 2], ``scale`` [T], ``angle`` [T] (radians), ``aspect`` [T], ``flip`` (1 or -1).
    """

    centre: torch.Tensor
    scale: torch.Tensor
    angle: torch.Tensor
    aspect: torch.Tensor
    flip: float

    def theta(self) -> torch.Tensor:
        """Return the map from frame to layer, [T, 2, 3], as ``affine_grid`` wants it."""
        cos, sin = torch.cos(self.angle), torch.sin(self.angle)
        wide, tall = self.scale * self.aspect, self.scale / self.aspect
        top = torch.stack([cos / wide, sin / wide], -1) * self.flip
        bottom = torch.stack([-sin / tall, cos / tall], -1)
        linear = torch.stack([top, bottom], -2)
        shift = -(linear @ self.centre[..., None])
        return torch.cat([linear, shift], -1)


def _uniform(low: float, high: float, *shape: int) -> torch.Tensor:
    return torch.rand(*shape) * (high - low) + low


def _walk(length: int, amplitude: float) -> torch.Tensor:
    """Return a smooth random path [T, 2] from 0: constant velocity and a slow wobble."""
    t = torch.arange(length).float()[:, None]
    wobble = torch.sin(t * _uniform(0.3, 1.5, 1) + _uniform(0, 6.28, 1))
    return amplitude * (t * torch.randn(2) + 1.5 * torch.randn(2) * wobble)


def _flip() -> float:
    return random.choice((1.0, -1.0))


def _object_track(length: int, jumps: bool, low: float, high: float) -> Track:
    size = _uniform(low, high, 1)
    aspect = (1 + torch.randn(1) * 0.12 + torch.randn(length) * 0.02).clamp(0.7, 1.4)
    if jumps:
        return Track(
            _uniform(-0.75, 0.75, length, 2),
            size * torch.exp(torch.randn(length) * 0.12),
            torch.randn(1) * 0.2 + torch.randn(length) * 0.2,
            aspect,
            _flip(),
        )
    return Track(
        _uniform(-0.75, 0.75, 2) + _walk(length, 0.07),
        size * torch.exp(_walk(length, 0.03)[:, 0]),
        torch.randn(1) * 0.3 + _walk(length, 0.05)[:, 0],
        aspect,
        _flip(),
    )


def _camera_track(length: int, kind: str) -> Track:
    aspect = (1 + torch.randn(1) * 0.12).clamp(0.75, 1.35).expand(length)
    zoom = _uniform(1.0, 1.6, 1)
    if kind == "davis":
        centre = (_uniform(-1, 1, 2) * (zoom - 1)).expand(length, 2)
        angle = (torch.randn(1) * 0.08).expand(length)
        return Track(centre, zoom.expand(length), angle, aspect, _flip())
    if kind == "jump":
        zoom = zoom * (1 + torch.randn(length) * 0.05)
        return Track(
            torch.randn(length, 2) * 0.1, zoom, torch.randn(length) * 0.06, aspect, _flip()
        )
    zoom = zoom * torch.exp(_walk(length, 0.03)[:, 0])
    angle = torch.randn(1) * 0.2 + _walk(length, 0.04)[:, 0]
    return Track(torch.randn(2) * 0.2 + _walk(length, 0.06), zoom, angle, aspect, _flip())


def _look(strength: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a random change of colours: a matrix [3, 3] and an offset [3, 1, 1]."""
    mix = torch.eye(3) * (1 + torch.randn(1) * 0.12 * strength)
    mix = mix + torch.randn(3, 3) * 0.05 * strength + torch.diag(torch.randn(3) * 0.1 * strength)
    return mix, torch.randn(3, 1, 1) * 0.05 * strength


def _recolour(
    rgb: torch.Tensor, first: tuple[torch.Tensor, torch.Tensor], last=None
) -> torch.Tensor:
    """Apply a look to frames [T, 3, S, S]; with ``last``, fade from ``first`` to it."""
    length = len(rgb)
    mix, offset = first[0].expand(length, 3, 3), first[1].expand(length, 3, 1, 1)
    if last is not None:
        t = torch.linspace(0, 1, length)
        mix = torch.lerp(mix, last[0].expand_as(mix), t[:, None, None])
        offset = torch.lerp(offset, last[1].expand_as(offset), t[:, None, None, None])
    return torch.einsum("tij,tjhw->tihw", mix, rgb) + offset


def _place(layer: torch.Tensor, track: Track, side: int, padding: str) -> torch.Tensor:
    """Warp a layer [4, s, s] or [T, 4, s, s] (uint8) into T frames, [T, 4, S, S] in 0..1."""
    length = len(track.scale)
    source = layer.float().div(255)
    source = source.expand(length, *source.shape[-3:])
    grid = F.affine_grid(track.theta(), [length, 4, side, side], align_corners=False)
    return F.grid_sample(source, grid, padding_mode=padding, align_corners=False)


def _gap(length: int) -> slice:
    """Return a run of frames after the first."""
    start = random.randrange(1, length)
    return slice(start, min(length, start + random.choice((1, 1, 2, 2, 3))))


class _Canvas:
    """Frames under construction, and what is still visible of each layer put on them."""

    def __init__(self, background: torch.Tensor) -> None:
        self.rgb = background[:, :3]
        self.visible = [background[:, 3]]

    def paste(self, rgb: torch.Tensor, alpha: torch.Tensor) -> None:
        cover = alpha[:, None]
        self.rgb = self.rgb * (1 - cover) + rgb * cover
        self.visible = [v * (1 - alpha) for v in self.visible] + [alpha]


def _background(pool: Pool, kind: str, length: int, side: int) -> torch.Tensor:
    """Return background frames with the mask of what they show, [T, 4, S, S]."""
    if kind == "davis":
        clip = random.choice(pool.clips)
        stride = min(random.choice((1, 1, 2, 2, 3, 4)), (len(clip) - 1) // (length - 1))
        start = random.randrange(len(clip) - stride * (length - 1))
        source = clip[start : start + stride * (length - 1) + 1 : stride]
        if random.random() < 0.5:
            source = source.flip(0)
    else:
        source = pool.photos[random.randrange(len(pool.photos))]
    frames = _place(source, _camera_track(length, kind), side, "reflection")
    if kind in ("davis", "still") and random.random() < 0.12:  # another place for a while
        other = pool.photos[random.randrange(len(pool.photos))]
        cut = _place(other, _camera_track(length, kind), side, "reflection")
        cut[:, 3] = 0
        gap = _gap(length)
        frames[gap] = cut[gap]
    return torch.cat([_recolour(frames[:, :3], _look(1.0)), frames[:, 3:]], 1)


def _occluder(pool: Pool, canvas: _Canvas, side: int, target: int) -> None:
    """Cover a layer with a piece of a photograph for a run of frames."""
    length = len(canvas.rgb)
    cover = canvas.visible[target]
    gap = _gap(length)
    grid = torch.linspace(-1, 1, side)
    mass = cover.flatten(1).sum(1).clamp(min=1)
    centre = torch.stack(
        [(cover.sum(1) * grid).sum(1) / mass, (cover.sum(2) * grid).sum(1) / mass], 1
    )
    extent = (cover.flatten(1).mean(1).sqrt() * random.uniform(0.9, 1.8)).clamp(0.08, 1)
    x = (grid[None, None, :] - centre[:, 0, None, None]) / extent[:, None, None]
    y = (grid[None, :, None] - centre[:, 1, None, None]) / extent[:, None, None]
    power = random.choice((2, 2, 8))
    shape = ((x.abs() ** power + y.abs() ** power) < random.uniform(0.8, 2.0)).float()
    shape = (
        shape * torch.zeros(length).index_fill_(0, torch.arange(length)[gap], 1.0)[:, None, None]
    )
    photo = pool.photos[random.randrange(len(pool.photos))]
    texture = _place(photo, _camera_track(length, "still"), side, "reflection")[:, :3]
    canvas.paste(_recolour(texture, _look(1.0)), shape)
    canvas.visible.pop()


def make_scene(pool: Pool, kind: str, length: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Make one clip with two targets.

    Returns
    -------
    frames : Tensor, float32 [T, 3, S, S]
        RGB in 0..1.
    masks : Tensor, bool [T, 2, S, S]
        The targets' visible pixels; all false where a target is absent.
    """
    canvas = _Canvas(_background(pool, kind, length, side))
    jumps = kind == "jump" or (kind == "drift" and random.random() < 0.5)
    count = {"davis": (1, 1, 2), "still": (1, 2)}.get(kind, (2, 3, 3))
    previous = None
    for layer in range(random.choice(count)):
        twin = previous is not None and random.random() < (0.5 if kind == "drift" else 0.2)
        chosen = previous if twin else random.randrange(len(pool.cutouts))
        assert chosen is not None
        previous = chosen
        small = kind in ("davis", "still") and layer == 0
        track = _object_track(length, jumps, 0.15 if small else 0.2, 0.42 if small else 0.5)
        placed = _place(pool.cutouts[chosen], track, side, "zeros")
        rgb, alpha = placed[:, :3], placed[:, 3]
        first = _look(0.5 if kind == "drift" else 3.0 if twin else 1.3)
        last = None
        if kind == "drift" and layer == 0:
            last = _look(4.0)
            if random.random() < 0.4:  # its surface turns into another's
                other = pool.cutouts[random.randrange(len(pool.cutouts))]
                fade = torch.linspace(0, 0.85, length)[:, None, None, None]
                rgb = torch.lerp(rgb, _place(other, track, side, "border")[:, :3], fade)
        elif random.random() < 0.3:
            last = _look(1.5)
        if random.random() < 0.25:
            alpha = alpha.clone()
            alpha[_gap(length)] = 0
        canvas.paste(_recolour(rgb, first, last), alpha)
    if random.random() < (0.5 if kind == "drift" else 0.2):
        _occluder(pool, canvas, side, random.choice((0, 1)) if kind in ("davis", "still") else 1)
    rgb = (
        canvas.rgb * (1 + torch.randn(length, 1, 1, 1) * 0.04) + torch.randn(length, 1, 1, 1) * 0.02
    )
    if random.random() < 0.12:
        rgb = F.avg_pool2d(rgb, 3, 1, 1)
    if random.random() < 0.06:
        rgb = rgb.mean(1, keepdim=True).expand_as(rgb)
    rgb = rgb + torch.randn_like(rgb) * random.random() * 0.02
    objects = list(range(1, len(canvas.visible)))
    if kind in ("davis", "still"):
        pair = [0, random.choice(objects)]
    elif kind == "drift":
        pair = [1, random.choice(objects[1:])]
    else:
        pair = random.sample(objects, 2)
    return rgb.clamp(0, 1), torch.stack([canvas.visible[i] > 0.5 for i in pair], 1)


def make_batch(
    pool: Pool, shares: dict[str, float], clips: int, length: int, side: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make a batch: frames [B, T, 3, S, S] and masks [B, T, 2, S, S]; kinds by their shares."""
    kinds = random.choices(list(shares), list(shares.values()), k=clips)
    frames, masks = zip(*(make_scene(pool, kind, length, side) for kind in kinds), strict=True)
    return torch.stack(frames), torch.stack(masks)
