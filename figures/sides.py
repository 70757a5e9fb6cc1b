"""Two runs that are to be compared: what of either is known, frame by frame, and whether they can be.

A run is a clip of a recording, with masks and attention, or a folder of ``efficient-sam2 segment``, with masks and times.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from figures.explorer.content import frames_of, frames_of_clip, thumbnail_picture
from figures.paint import UNDERNEATH, Picture, even_shares, shrink, stretch
from figures.readings import mean_over, nearest_query
from probes.errors import InputError, some_of
from probes.frames import natural_key
from probes.records import HEADER, ClipInfo, ClipRecord, Header, Recording, load_recording
from sparsity.clips.drawn import read_mask

MOST_CELLS = 32
"""Cells per side of a map that is drawn, at most."""

Mask = NDArray[np.bool_]
Map = NDArray[np.float64]


@dataclass(frozen=True)
class Recorded:
    """A clip of a recording."""

    header: Header
    info: ClipInfo
    clip: ClipRecord

    @cached_property
    def position(self) -> dict[int, int]:
        """Where each frame stands in the clip; of the last pass where it was tracked twice."""
        return {int(frame): t for t, frame in enumerate(self.clip.frame)}

    @property
    def ran(self) -> tuple[str, str]:
        """The model and the profile."""
        profile = self.header.settings.profile
        return self.header.model.name, "stock" if profile is None else f"profile {profile['name']}"


@dataclass(frozen=True)
class Side:
    """One of two runs.

    Attributes
    ----------
    place, clip
        Where it was read from.
    ran
        The model, where known, and the profile.
    size
        Height and width of the video, in pixels.
    masks
        By frame, ascending, and object id; bool, of any size over the whole frame.
    milliseconds
        By frame, where they were measured.
    recorded
        Its recording, where it is one.
    """

    place: Path
    clip: str
    ran: tuple[str, str]
    size: tuple[int, int]
    masks: Mapping[int, Mapping[int, Mask]]
    milliseconds: Mapping[int, float]
    recorded: Recorded | None = None

    @property
    def frames(self) -> list[int]:
        """Tracked frames, ascending."""
        return list(self.masks)

    @property
    def objects(self) -> set[int]:
        """Ids of all objects."""
        return {i for of_frame in self.masks.values() for i in of_frame}


def read_side(source: Recording | Path | str, clip: str | None) -> Side:
    """Read a run.

    Parameters
    ----------
    source
        A recording, the folder of one, or a folder of ``efficient-sam2 segment`` with masks as indexed PNG.
    clip
        Which clip of a recording; None for the only one.

    Raises
    ------
    InputError
        It is none of these, or holds several clips and no name was given.
    """
    if isinstance(source, (str, Path)):
        folder = Path(source)
        if not (folder / HEADER).is_file():
            if not (folder / "report.json").is_file():
                raise InputError(
                    f"{folder} is no recording, nor what segment left of one video; expected a folder with {HEADER} or "
                    "report.json; make one with 'efficient-sam2 probe' or 'efficient-sam2 segment'"
                )
            return _segmented(folder)
        source = load_recording(folder)
    if clip is None and len(source.names) != 1:
        raise InputError(
            f"{source.path} holds {len(source.names)} clips; expected the name of one of {some_of(source.names)}; give it as "
            "clip"
        )
    info = source.info(clip or source.names[0])
    found = Recorded(source.header, info, source.clip(info.name))
    masks: dict[int, dict[int, Mask]] = {int(frame): {} for frame in sorted(found.clip.frame)}
    for frame, i, mask in zip(
        found.clip.row_frame, found.clip.row_object, found.clip.masks(), strict=True
    ):
        masks[int(frame)][int(i)] = mask
    size = info.height, info.width
    return Side(source.path, info.name, found.ran, size, masks, {}, found)


def _segmented(folder: Path) -> Side:
    """Read what ``efficient-sam2 segment`` left in a folder."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    files = sorted((folder / "masks").glob("*.png"), key=lambda path: natural_key(path.stem))
    if not files or len(files) != report["frames"]:
        raise InputError(
            f"{folder} has {len(files)} masks of {report['frames']} frames; expected an indexed PNG each; track it with "
            "--format png"
        )
    run = report["report"]["frames"]
    reported = {int(frame["frame"]): frame for frame in run}
    # the first frame is a prompted one, unless a long stream's report has forgotten it; frames without objects have no report
    first = min((t for t, frame in reported.items() if frame["reason"] == "prompt"), default=0)
    start = min(reported, default=0)
    order = [*range(first, start + len(files)), *range(first - 1, start - 1, -1)]
    forgotten = any(t < first and not frame["reverse"] for t, frame in reported.items())
    fits = {*reported}.issubset(order) and len(order) == len(report["milliseconds"])
    if not reported or forgotten or not fits:
        raise InputError(
            f"{folder} has a report of {len(reported)} frames and {len(files)} masks; expected those of one run; track it anew"
        )
    ids = {frame: read_mask(file) for frame, file in zip(sorted(order), files, strict=True)}
    objects = [int(i) for i in report["objects"]]
    masks = {frame: {i: picture == i for i in objects} for frame, picture in ids.items()}
    times = dict(zip(order, report["milliseconds"], strict=True))
    ran, size = ("", f"profile {report['report']['profile']}"), next(iter(ids.values())).shape
    return Side(folder, "", ran, size, masks, times)


def pictures_of(side: Side, video: Any, width: int) -> list[Picture]:
    """Each tracked frame of a run, ascending, at most twice so wide; without a video thumbnails, or grey where there are none.

    Raises
    ------
    InputError
        The video is another one.
    """

    def small(frame: Any) -> Picture:
        return shrink(frame, 2 * width)

    tall, wide = side.size
    if video is not None:
        frames = frames_of(video)
        if side.recorded is not None:
            tracked = side.recorded.clip.frame.tolist()
            found = dict(
                zip(
                    tracked,
                    map(small, frames_of_clip(side.recorded.info, tracked, frames)),
                    strict=True,
                )
            )
            return [found[frame] for frame in side.frames]
        try:
            shown = [np.asarray(frames[frame]) for frame in side.frames]  # type: ignore[index]
        except LookupError:
            shown = []
        if not shown or any(picture.shape[:2] != side.size for picture in shown):
            raise InputError(
                f"the video given lacks frames of {wide}x{tall} pixels that {side.place} has masks of; expected the tracked "
                "one; give that one, or none"
            )
        return [small(picture) for picture in shown]
    if side.recorded is None:
        return [np.full((width * tall // wide, width, 3), UNDERNEATH, np.uint8)] * len(side.frames)
    of = side.recorded
    return [thumbnail_picture(of.clip.thumbnail[of.position[f]], tall / wide) for f in side.frames]


@dataclass(frozen=True)
class Pair:
    """Two runs that can be compared, frame by frame.

    Attributes
    ----------
    frames
        Of either side, which belong together.
    objects
        That both have.
    same_video
        Whether a place means the same in both.
    """

    a: Side
    b: Side
    frames: Sequence[tuple[int, int]]
    objects: Sequence[int]
    same_video: bool

    @property
    def names(self) -> tuple[str, str]:
        """What tells one run from the other."""
        both = [*zip(self.a.ran, self.b.ran, strict=True)]
        parts = [pair for pair in both if pair[0] != pair[1]]
        if not parts:
            named = (self.a.clip, self.b.clip), (self.a.place.name, self.b.place.name), ("A", "B")
            parts = [next(pair for pair in named if pair[0] != pair[1])]
        one, other = (", ".join(filter(None, words)) for words in zip(*parts, strict=True))
        return one, other

    def overlap(self, t: int, i: int) -> tuple[Mask, Mask]:
        """Both masks of an object, the coarser one stretched to the finer one's size."""
        at, other = self.frames[t]
        one, two = self.a.masks[at].get(i), self.b.masks[other].get(i)
        known = next((mask for mask in (one, two) if mask is not None), np.zeros((1, 1), bool))
        one, two = (np.zeros_like(known) if mask is None else mask for mask in (one, two))
        tall, wide = max(one.shape, two.shape)
        return stretch(one, tall, wide).astype(bool), stretch(two, tall, wide).astype(bool)

    def agreement(self, i: int) -> list[float]:
        """IoU of an object's two masks on each frame, in [0, 1]; 1 where both are empty, NaN where neither run has it."""
        found = []
        for t, (at, other) in enumerate(self.frames):
            if i not in self.a.masks[at] and i not in self.b.masks[other]:
                found.append(math.nan)
                continue
            one, two = self.overlap(t, i)
            union = int((one | two).sum())
            found.append(float((one & two).sum() / union) if union else 1.0)
        return found


def paired(a: Side, b: Side, halves: bool) -> Pair:
    """Hold two runs against each other.

    Parameters
    ----------
    halves
        Whether they are of two halves of a video, or of two clips: frames belong together by their order, and a place in
        the one is none in the other.

    Raises
    ------
    InputError
        They are of other sizes, frames, videos or objects.
    """
    (tall, wide), (tall_b, wide_b) = a.size, b.size
    what = "two runs"
    if a.size != b.size:
        raise InputError(
            f"{what} of {wide}x{tall} and {wide_b}x{tall_b} pixels given ({a.place}, {b.place}); expected one size; track "
            "the same video"
        )
    one, other = (f"frames {s.frames[0]} to {s.frames[-1]} ({len(s.frames)})" for s in (a, b))
    if len(a.frames) != len(b.frames) or not (halves or a.frames == b.frames):
        raise InputError(
            f"{what} of {one} and {other} given ({a.place}, {b.place}); expected the same frames; track as many of either"
            + ("" if halves or len(a.frames) != len(b.frames) else ", or say halves")
        )
    hashes = [side.recorded.info.video for side in (a, b) if side.recorded]
    if len(set(hashes)) > 1 and not halves:
        raise InputError(
            f"{what} of two videos given ({a.place}, {b.place}), as their recorded pictures differ; expected one; track "
            "the same, or say halves"
        )
    objects = sorted(a.objects & b.objects)
    if not objects:
        raise InputError(
            f"{what} of objects {some_of([str(i) for i in sorted(a.objects)])} and "
            f"{some_of([str(i) for i in sorted(b.objects)])} given ({a.place}, {b.place}); expected one object at least in "
            "both; prompt them alike"
        )
    return Pair(a, b, list(zip(a.frames, b.frames, strict=True)), objects, not halves)


# ---------------------------------------------------------------------- attention


def common_site(pair: Pair, site: str | None) -> str | None:
    """The site whose attention is compared; None where not both are recordings.

    Raises
    ------
    InputError
        Not both hold the one that is asked for.
    """
    held = [_sites(side.recorded) for side in (pair.a, pair.b) if side.recorded]
    if len(held) < 2:
        held = [[], []]
    both = [name for name in held[0] if name in held[1]]
    if site is None:
        return both[0] if both else None
    if site not in both:
        raise InputError(
            f"site {site!r} was asked for; both runs hold attention of {some_of(both) or 'none'}; choose one of them, or "
            "record it in both"
        )
    return site


def _sites(recorded: Recorded | None) -> list[str]:
    """Sites whose attention a recording holds, those with rows first."""
    assert recorded is not None
    settings = recorded.header.settings
    return list(dict.fromkeys((*settings.row_sites, *settings.map_sites)))


def has_rows(recorded: Recorded, site: str) -> bool:
    """Whether a recording holds what single pixels attend to at a site."""
    return site in recorded.clip.rows and not site.startswith("decoder.")


def pixel_attention(
    recorded: Recorded, site: str, frame: int, i: int, at: tuple[float, float]
) -> Map | None:
    """What a place attends to at a site, ``[r, r]`` in even shares, in memory over all its frames; None where nothing is known.

    Parameters
    ----------
    i
        Object, in memory.
    at
        As shares of width and height; the nearest stored query answers.
    """
    rows = _rows(recorded, site, frame, i)
    if rows is None:
        return None
    return _in_even_shares(_over_slots(rows[nearest_query(recorded.header, at)]))


def received(recorded: Recorded, site: str, frame: int, i: int) -> Map | None:
    """Key mass at a site in even shares: from all queries of encoder maps, else from stored rows; in memory over all frames."""
    maps = recorded.header.settings.map_sites
    if site in maps:
        found = recorded.clip.encoder_mass[recorded.position[frame], maps.index(site)]
        return _in_even_shares(found.astype(float))
    rows = _rows(recorded, site, frame, i)
    return None if rows is None else _in_even_shares(_over_slots(mean_over(rows)))


def moved_mass(a: Recorded, b: Recorded, site: str, frames: tuple[int, int], i: int) -> float:
    """Share of the key mass that lies elsewhere in the other run: half the L1 distance, in [0, 1]; NaN if unknown.

    In memory over slots, from all queries; else over places that took part in both.
    """
    found = [_mass(side, site, frame, i) for side, frame in zip((a, b), frames, strict=True)]
    if any(mass is None or mass.shape != found[0].shape for mass in found):
        return float("nan")
    one, two = found
    there = ~np.isnan(one + two)
    one, two = one[there], two[there]
    if not (one.sum() > 0 and two.sum() > 0):
        return float("nan")
    return float(np.abs(one / one.sum() - two / two.sum()).sum() / 2)


def _mass(recorded: Recorded, site: str, frame: int, i: int) -> Any:
    if not site.endswith(".cross"):
        return received(recorded, site, frame, i)
    row = _row(recorded, frame, i)
    layer = int(site.split(".")[1].removeprefix("layer"))
    return None if row is None else recorded.clip.slot_share[row, layer].astype(float)


def _row(recorded: Recorded, frame: int, i: int) -> int | None:
    clip = recorded.clip
    found = np.flatnonzero((clip.row_frame == frame) & (clip.row_object == i))
    return int(found[-1]) if len(found) else None


def _rows(recorded: Recorded, site: str, frame: int, i: int) -> NDArray[np.float32] | None:
    """Stored rows of a site on a frame; None where nothing was seen, as on prompted frames in memory."""
    index = _row(recorded, frame, i)
    if site.startswith("encoder."):
        index = recorded.position[frame]
    if index is None or not np.nansum(recorded.clip.row_scale[site][index]):
        return None
    return recorded.clip.attention_rows(site, index)


def _over_slots(row: NDArray[np.floating]) -> Map:
    """Sum a row over the slots of memory, where it has some."""
    if row.ndim == 2:
        return row.astype(float)
    return np.where(np.isnan(row).all(0), np.nan, np.nansum(row, axis=0, dtype=float))


def _in_even_shares(mass: NDArray[np.floating]) -> Map | None:
    """A map as multiples of the even share of what took part, at most `MOST_CELLS` a side; None where nothing did."""
    cell = -(-len(mass) // MOST_CELLS)
    if cell > 1 and len(mass) % cell == 0:
        blocks = mass.reshape(len(mass) // cell, cell, -1, cell).swapaxes(1, 2)
        mass = mean_over(np.moveaxis(blocks.reshape(*blocks.shape[:2], -1), 2, 0))
    there = ~np.isnan(mass)
    return even_shares(mass) if there.any() and mass[there].sum() > 0 else None
