"""Training material and the clips made of it: photographs, cut-outs and annotated clips with masks.

Material is decoded once and held as uint8 at a fixed square size, because SAM 2 squeezes every frame
to a square. Of it clips with exact masks are composed on the fly, each with two targets. Either may
leave, be covered or change its look; look-alikes and random jumps make sure that only recall of
earlier frames, not the place in the frame, tells the target.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from probes.files import whole

SMALLEST_SHARE = 0.012  # of the photograph; smaller annotated objects are not cut out
SMALLEST_SIDE = 24  # pixels of the annotated object's box

KINDS = ("jump", "smooth", "still", "davis", "drift")


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
        with whole(cache) as part:
            torch.save({f.name: getattr(pool, f.name) for f in fields(pool)}, part)
    return pool


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


@dataclass(frozen=True)
class Phase:
    """A stretch of the run: clips of ``length`` frames at ``size`` px, until share ``end``."""

    size: int
    clips: int
    length: int
    end: float


Batch = tuple[torch.Tensor, torch.Tensor]
"""Frames uint8 ``[B, T, 3, S, S]`` and masks bool ``[B, T, 2, S, S]``."""

Order = tuple[float, Phase]
"""The share of the run that is done and the phase it is in: what a batch is made for."""


def kind_shares(progress: float) -> dict[str, float]:
    """Return how often each kind of clip is made: recall first, real video more and more."""
    real = 0.15 + 0.22 * progress
    jump = 0.45 - 0.25 * progress
    drift = 0.05 + 0.17 * min(1.0, progress * 3)
    rest = 1 - real - jump - drift
    return {"davis": real, "jump": jump, "drift": drift, "smooth": rest * 0.5, "still": rest * 0.5}


class _Made(Dataset[Batch]):
    """Makes batches to order; in a worker from the worker's own random numbers."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def __getitem__(self, order: Order) -> Batch:
        share, phase = order
        frames, masks = make_batch(
            self.pool, kind_shares(share), phase.clips, phase.length, phase.size
        )
        return (frames * 255).round_().byte(), masks


def batches(pool: Pool, orders: Iterable[Order], workers: int) -> Iterator[Batch]:
    """Make a batch for each order.

    Parameters
    ----------
    orders
        Asked for one at a time; with workers, two for each of them ahead of the batch that is due.
    workers
        Processes that make batches; 0: made when they are due, from this process's random numbers.
    """
    made = _Made(pool)
    if workers == 0:
        return map(made.__getitem__, orders)
    return iter(
        DataLoader(
            made,
            batch_size=None,
            sampler=orders,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_one_thread,
        )
    )


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
