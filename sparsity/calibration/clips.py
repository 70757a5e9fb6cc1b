"""Videos to calibrate on: the user's own with a mask of the first frame, or of every frame; and made clips."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probes.errors import InputError
from probes.frames import natural_key
from probes.video import VideoSource, open_video
from sparsity.demo.clips import CLIP_NAMES, make_clip
from sparsity.masks import VOID, Ids, read_mask
from sparsity.runs import listing

VIDEO_SUFFIXES = (".mp4", ".mov", ".webm", ".mkv", ".avi")

MADE_FRAMES = 16
"""Length of a made clip."""

MADE = re.compile(r"made-(?P<name>\w+)-(?P<seed>\d+)")

FEWEST_FRAMES = 4
"""A prompt, two dense frames and one that can be routed."""


@dataclass(frozen=True, eq=False)
class CalibrationClip:
    """A video with the objects to track.

    Attributes
    ----------
    prompt
        Ids on the first frame, uint8 ``[H, W]``.
    truth
        Ids on every frame, or None where the dense run's masks are the measure.
    """

    name: str
    video: VideoSource
    prompt: Ids
    truth: tuple[Ids, ...] | None

    @property
    def objects(self) -> tuple[int, ...]:
        """Ids on the first frame, ascending."""
        return tuple(int(i) for i in np.unique(self.prompt) if i not in (0, VOID))

    def prompts(self) -> dict[int, NDArray[np.bool_]]:
        """Return the objects on the first frame, bool ``[H, W]`` by id."""
        return {object_id: self.prompt == object_id for object_id in self.objects}


@dataclass(frozen=True)
class ClipSource:
    """Where clips come from.

    Attributes
    ----------
    videos
        Folder of videos: folders of frames, or video files.
    prompts
        Folder with ``NAME.png`` for each video, the mask of its first frame; or with a folder ``NAME``
        that holds a mask for each frame, which are then the truth.
    """

    videos: Path | None = None
    prompts: Path | None = None

    def names(self, made: int = 0, only: list[str] | None = None) -> list[str]:
        """Return the names of all clips: the videos', and those of `made` made clips.

        Raises
        ------
        InputError
            There is no video, one has no prompt, or one is called as a made clip is.
        """
        names: list[str] = []
        made_names = [made_name(index) for index in range(made)]
        if self.videos is not None:
            if not self.videos.is_dir():
                raise InputError(
                    f"videos {self.videos} given; expected a folder of videos; check the path"
                )
            shown = [p for p in self.videos.iterdir() if not p.name.startswith(".")]
            files = [p for p in shown if _is_video(p) and p.is_file()]
            names = sorted({p.name for p in shown if p.is_dir()} | {p.stem for p in files})
            count = Counter(p.stem for p in files)
            twins = sorted(p.name for p in files if count[p.stem] > 1)
            if twins:
                raise InputError(
                    f"{self.videos} holds {' and '.join(twins[:2])}; expected videos of different names, suffix "
                    "apart; rename one"
                )
            if not names:
                raise InputError(
                    f"{self.videos} holds no videos; expected folders of frames or video files; check the path"
                )
        taken = [name for name in made_names if name in names]
        if taken:
            raise InputError(
                f"{self.videos} holds {taken[0]}, the name of a clip that --made {made} adds; expected another name; "
                "rename it, or leave --made out"
            )
        if only is not None:
            missing = [name for name in only if name not in names]
            if missing:
                raise InputError(
                    f"clip {missing[0]!r} listed; {self.videos} has {len(names)} others; correct the list"
                )
            names = list(dict.fromkeys(only))
        for name in names:
            self.prompt_of(name)
        return names + made_names

    def is_made(self, name: str) -> bool:
        """Whether a name is that of a made clip; a video of the folder goes before it."""
        match = MADE.fullmatch(name)
        if match is None or match["name"] not in CLIP_NAMES:
            return False
        return self.videos is None or not video_file(self.videos, name).exists()

    def open(self, name: str) -> CalibrationClip:
        """Open a clip.

        Raises
        ------
        InputError
            It is too short, or its prompt is empty or of another size.
        """
        match = MADE.fullmatch(name)
        if match and self.is_made(name):
            clip = make_clip(match["name"], seed=int(match["seed"]), frames=MADE_FRAMES)
            masks = tuple(clip.masks)
            return CalibrationClip(name, open_video(clip.frames), masks[0], masks)
        assert self.videos is not None, "a clip that isn't made comes from a folder"
        video = open_video(video_file(self.videos, name))
        frames = video.num_frames
        if frames is not None and frames < FEWEST_FRAMES:
            raise InputError(
                f"{name} has {frames} frames; expected {FEWEST_FRAMES} or more, of which one can be routed; "
                "leave it out"
            )
        pictures = self.prompt_of(name)
        prompt = self._ids(pictures[0], video)
        truth = None
        if len(pictures) > 1:
            if len(pictures) != frames:
                raise InputError(
                    f"{len(pictures)} masks given for the {frames} frames of {name}; expected one for each "
                    "frame, or the first alone; add or remove some"
                )
            known = [i for i in np.unique(prompt) if i]
            truth = tuple(
                np.where(np.isin(ids, known), ids, 0).astype(np.uint8)
                for ids in (self._ids(path, video) for path in pictures)
            )
        clip_ = CalibrationClip(name, video, prompt, truth)
        if not clip_.objects:
            raise InputError(
                f"{pictures[0]} is empty; expected the objects to track on the first frame; draw them or "
                f"leave {name} out"
            )
        return clip_

    def prompt_of(self, name: str) -> list[Path]:
        """Masks of a clip: of its first frame, or of all."""
        if self.prompts is None:
            raise InputError(
                f"videos {self.videos} given without prompts; expected a folder with {name}.png, the mask of "
                "its first frame; add --prompts"
            )
        single, folder = self.prompts / f"{name}.png", self.prompts / name
        masks = sorted(folder.glob("[!.]*.png"), key=lambda path: natural_key(path.stem))
        found = [single] if single.is_file() else masks
        if not found:
            raise InputError(
                f"{self.prompts} has neither {name}.png nor a folder {name} of masks; expected a prompt for "
                "each video; add it or leave the video out"
            )
        return found

    def listing(self, name: str) -> str:
        """Return another text where a clip's video or masks were changed."""
        if self.is_made(name):
            return name
        assert self.videos is not None, "a clip that isn't made comes from a folder"
        return listing(video_file(self.videos, name), *self.prompt_of(name))

    @staticmethod
    def _ids(path: Path, video: Any) -> Ids:
        ids = read_mask(path)
        if ids.shape != (video.height, video.width):
            raise InputError(
                f"mask {path} is {ids.shape[1]}x{ids.shape[0]}; its video is {video.width}x{video.height}; give "
                "masks of the video's size"
            )
        return ids


def video_file(videos: Path, name: str) -> Path:
    """Return a video of a folder by its name: a folder of frames, or a video file."""
    folder = videos / name
    if folder.is_dir():
        return folder
    usual = (videos / f"{name}{suffix}" for suffix in VIDEO_SUFFIXES)
    others = (p for p in videos.iterdir() if p.stem == name and _is_video(p))  # .MP4
    return next((f for f in chain(usual, others) if f.is_file()), folder)


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def made_name(index: int) -> str:
    """Name of the `index`-th made clip: every difficulty in turn, then with the next seed.

    >>> made_name(0), made_name(len(CLIP_NAMES))
    ('made-smooth-100', 'made-smooth-101')
    """
    return f"made-{CLIP_NAMES[index % len(CLIP_NAMES)]}-{100 + index // len(CLIP_NAMES)}"
