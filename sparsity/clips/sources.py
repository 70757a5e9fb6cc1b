"""Clips: a video, what to track in it, and true masks where they are known; and where they come from."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from probes.container import holds_video
from probes.errors import InputError, some_of, tell_left_out
from probes.files import composed, listing, named
from probes.pictures import IMAGE_SUFFIXES, OTHER_IMAGE_SUFFIXES
from probes.prompts import Prompt, digest_of_prompts, objects_of, read_prompts
from probes.video import VideoSource, open_video
from sparsity.clips.drawn import VOID, Ids
from sparsity.clips.layouts import (
    Annotations,
    Masks,
    clip_folders,
    clip_names,
    first_mask_alone,
    open_annotated,
)
from sparsity.clips.made import CLIP_NAMES, make_clip
from sparsity.clips.prompt import mask_files, masks_by_frame, prompts_of_masks

VIDEO_SUFFIXES = (
    ".264", ".265", ".3g2", ".3gp", ".amv", ".apng", ".asf", ".av1", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif",
    ".h264", ".h265", ".hevc", ".ivf", ".m1v", ".m2t", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov",
    ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".obu", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".ts",
    ".vob", ".webm", ".wmv", ".y4m",
)  # fmt: skip
"""Of video files; others are videos where FFmpeg finds one in them."""

MADE_FRAMES = 16
"""Length of a made clip."""

LISTED = ".json"
"""Of a file of prompts."""

MADE = re.compile(r"made-(?P<name>\w+)-(?P<seed>\d+)")


@dataclass(frozen=True, eq=False)
class Clip:
    """A video and what to track in it.

    Attributes
    ----------
    prompts
        By frame, ascending.
    truth
        True masks by the index of their frame, ascending, of all frames or of some; None where they aren't known.
    layered
        Whether objects may overlap, and masks are a layer an object.
    """

    name: str
    video: VideoSource
    prompts: tuple[Prompt, ...]
    truth: Mapping[int, Masks] | None = None
    layered: bool = False

    @property
    def starts(self) -> dict[int, int]:
        """By object id, ascending: the frame it is prompted on first."""
        return objects_of(self.prompts)

    @property
    def objects(self) -> tuple[int, ...]:
        """Ids of the objects, ascending."""
        return tuple(self.starts)

    @property
    def num_frames(self) -> int:
        """Length of the video."""
        assert self.video.num_frames is not None, (
            "frames of a folder, a file or an array are counted"
        )
        return self.video.num_frames

    @property
    def from_start(self) -> Clip:
        """The same clip with the prompts of its first frame alone."""
        return replace(self, prompts=tuple(p for p in self.prompts if p.frame == 0))

    def first(self, frames: int) -> Clip:
        """The same clip up to so many frames, 3 or more; an object that comes so late that no frame of it counts is left out.

        Raises
        ------
        InputError
            No object is left.
        """
        if frames >= self.num_frames:
            return self
        late = set()
        if self.truth is not None:
            counted = [t for t in self.truth if t < frames][:-2]
            late = {i for i, start in self.starts.items() if start not in counted}
        prompts = tuple(p for p in self.prompts if p.frame < frames and p.object not in late)
        if not prompts:
            raise InputError(
                f"the first {frames} frames of {self.name} given; expected an object on them that leaves a frame to count; "
                "take more frames, or leave it out"
            )
        truth = self.truth
        if isinstance(truth, Annotations):
            truth = truth.until(frames, tuple(objects_of(prompts)))
        return replace(self, video=Beginning(self.video, frames), prompts=prompts, truth=truth)

    def begin(self, predictor: Any, **options: Any) -> dict[str, Any]:
        """Begin the video on an accelerated predictor, with ``init_state``'s options; prompted, ready to be tracked."""
        state: dict[str, Any] = predictor.init_state(self.video, **options)
        self.give_to(predictor, state)
        return state

    def give_to(self, predictor: Any, state: dict[str, Any]) -> None:
        """Give all prompts to a video's state."""
        for prompt in self.prompts:
            prompt.give_to(predictor, state)

    def digest(self) -> str:
        """Return a hash of what the prompts say."""
        return digest_of_prompts(self.prompts)


class Beginning:
    """The first frames of a video."""

    def __init__(self, video: VideoSource, frames: int) -> None:
        self.height, self.width, self.fps = video.height, video.width, video.fps
        self.names = None if video.names is None else video.names[:frames]
        self.num_frames: int | None = frames
        self.frame = video.frame


def clip_of(
    name: str, video: VideoSource, first: Ids, truth: Mapping[int, Masks] | None = None
) -> Clip:
    """Make a clip whose objects are those of its first frame's mask, ids ``[H, W]``."""
    ids = [int(i) for i in np.unique(first) if i not in (0, VOID)]
    return Clip(name, video, tuple(Prompt(0, i, mask=first == i) for i in ids), truth)


def made_clip(frames: int, objects: int | None = 1, size: tuple[int, int] = (270, 480)) -> Clip:
    """Make a clip to measure on, ``smooth`` with seed 1; its masks after the prompt are left out."""
    made = make_clip("smooth", 1, frames, size, objects)
    return clip_of("made clip smooth/1", open_video(made.frames), made.masks[0])


@dataclass(frozen=True)
class ClipSource:
    """Where clips come from: an annotated data set, or a folder of videos; and made clips.

    Attributes
    ----------
    videos
        Folder of videos: folders of frames, or video files.
    prompts
        Folder with ``NAME.json`` for each video, a file of `probes.prompts`; or with ``NAME.png``, the mask of its first
        frame; or with a folder ``NAME`` of masks that are named after their frames.
    dataset
        In place of videos: a data set in one of `sparsity.clips.layouts.LAYOUTS`; its annotations prompt where there is no
        folder with ``NAME.json``.
    strict
        Whether it is refused where something is left out, in place of a warning.
    most
        Frames of a clip that are taken; None for all.
    """

    videos: Path | None = None
    prompts: Path | None = None
    dataset: Path | None = None
    strict: bool = False
    most: int | None = None

    def names(self, made: int = 0, only: list[str] | None = None) -> list[str]:
        """Return the names of all clips: the videos', or those of them that are wanted, and those of `made` made clips.

        Raises
        ------
        InputError
            There is no video, one has no prompt, or one is called as a made clip is.
        """
        if self.dataset is not None:
            return clip_names(self.dataset, only)
        names: list[str] = []
        made_names = [made_name(index) for index in range(made)]
        if self.videos is not None:
            names = self._videos()
        taken = [name for name in made_names if name in names]
        if taken:
            raise InputError(
                f"{self.videos} holds {taken[0]}, the name of a clip that --made {made} adds; expected another name; "
                "rename it, or leave --made out"
            )
        if only is not None:
            known = {composed(name): name for name in names}
            missing = [name for name in only if composed(name) not in known]
            if missing:
                raise InputError(
                    f"clip {missing[0]!r} listed; {self.videos} has {len(names)} others; correct the list"
                )
            names = list(dict.fromkeys(known[composed(name)] for name in only))
        for name in names:
            self.prompt_of(name)
        if only is None and self.prompts is not None and self.videos is not None:
            _tell_unused(self.prompts, names, self.strict)
        return names + made_names

    def _videos(self) -> list[str]:
        """Return the names of the videos of a folder, each once."""
        assert self.videos is not None, "asked where there is a folder"
        if not self.videos.is_dir():
            raise InputError(
                f"videos {self.videos} given; expected a folder of videos; check the path"
            )
        shown = sorted(p for p in self.videos.iterdir() if not p.name.startswith("."))
        dangling = [p.name for p in shown if not p.exists()]
        if dangling:
            tell_left_out(
                [
                    f"{self.videos}: {len(dangling)} links lead nowhere ({some_of(dangling)}), left out"
                ],
                self.strict,
            )
        files = [p for p in shown if is_video(p)]
        names = sorted({p.name for p in shown if p.is_dir()} | {p.stem for p in files})
        count = Counter(composed(p.stem) for p in files)
        twins = sorted(p.name for p in files if count[composed(p.stem)] > 1)
        if twins:
            raise InputError(
                f"{self.videos} holds {' and '.join(twins[:2])}; expected videos of different names, suffix "
                "apart; rename one"
            )
        if not names:
            raise InputError(
                f"{self.videos} holds no videos; expected folders of frames or video files; check the path"
            )
        return names

    def is_made(self, name: str) -> bool:
        """Whether a name is that of a made clip; a video of the folder goes before it."""
        match = MADE.fullmatch(name)
        if match is None or match["name"] not in CLIP_NAMES or self.dataset is not None:
            return False
        return self.videos is None or not video_file(self.videos, name).exists()

    def open(self, name: str, labelled: bool = True) -> Clip:
        """Open a clip.

        Parameters
        ----------
        labelled
            Whether a video's masks are the truth: there must be one for each frame, or the first alone. Each object is
            prompted on the first frame whose mask shows it.

        Raises
        ------
        InputError
            It can't be used: its masks are empty, of another size or of no frame, or one is missing.
        """
        clip = self._whole(name, labelled)
        return clip if self.most is None else clip.first(self.most)

    def _whole(self, name: str, labelled: bool) -> Clip:
        match = MADE.fullmatch(name)
        if match and self.is_made(name):
            made = make_clip(match["name"], seed=int(match["seed"]), frames=MADE_FRAMES)
            return clip_of(
                name, open_video(made.frames), made.masks[0], dict(enumerate(made.masks))
            )
        if self.dataset is not None:
            return self._of_dataset(self.dataset, name, labelled)
        assert self.videos is not None, "a clip that isn't made comes from a folder"
        video = open_video(video_file(self.videos, name), self.strict)
        files = self.prompt_of(name)
        listed = files[0].suffix == LISTED
        pictures = {} if listed else self._masks(files, video)
        prompts = read_prompts(files[0], video) if listed else prompts_of_masks(pictures, video)
        if not labelled:
            return Clip(name, video, prompts)
        complete = len(pictures) in (1, video.num_frames) and 0 in pictures
        if not (listed or complete):
            raise InputError(
                f"{len(pictures)} masks given for the {video.num_frames} frames of {name}; expected one for each "
                "frame, or the first alone; add or remove some"
            )
        if prompts[0].frame:
            raise InputError(
                f"{name} has its first prompt on frame {prompts[0].frame}; expected the objects to track on the first frame; "
                f"give them there, or leave {name} out"
            )
        assert video.num_frames is not None, "frames of a folder or a file are counted"
        uncounted = {i for i, frame in objects_of(prompts).items() if frame > video.num_frames - 3}
        if uncounted:
            what = f"objects {some_of(sorted(map(str, uncounted)))} come on its last two frames, where nothing counts"
            tell_left_out([f"{name}: {what}, left out"], self.strict)
            prompts = tuple(prompt for prompt in prompts if prompt.object not in uncounted)
        objects = tuple(objects_of(prompts))
        truth = Annotations({t: {0: path} for t, path in pictures.items()}, objects, video)
        return Clip(name, video, prompts, truth if len(truth) > 1 else None)

    def _of_dataset(self, dataset: Path, name: str, labelled: bool) -> Clip:
        """Open a clip of a data set, with its own prompts or those given beside it."""
        clip = _annotated(dataset, name, labelled, self.strict)
        if self.prompts is None:
            return clip
        prompts = read_prompts(named(self.prompts, f"{name}{LISTED}"), clip.video)
        given = tuple(objects_of(prompts))
        if labelled and given != clip.objects:
            raise InputError(
                f"prompts of objects {some_of(list(map(str, given)))} of {name} given; its annotations have "
                f"{some_of(list(map(str, clip.objects)))}; expected the same; prompt these"
            )
        return replace(clip, prompts=prompts)

    def _masks(self, files: list[Path], video: VideoSource) -> dict[int, Path]:
        """Masks of a clip by the index of their frame."""
        return {0: files[0]} if files[0].parent == self.prompts else masks_by_frame(files, video)

    def prompt_of(self, name: str) -> list[Path]:
        """Prompts of a clip: a file of them, the mask of its first frame, or masks in the folder of its name."""
        if self.prompts is None:
            raise InputError(
                f"videos {self.videos} given without prompts; expected a folder with {name}.json, or {name}.png, the "
                "mask of its first frame; add --prompts"
            )
        listed, single = (named(self.prompts, f"{name}{end}") for end in (LISTED, ".png"))
        folder = named(self.prompts, name)
        if listed.is_file():
            single = listed
        if single.is_file():
            if folder.is_dir() and self.prompts != self.videos:
                tell_left_out([f"{folder}: masks beside {single.name}, left out"], self.strict)
            return [single]
        if not folder.is_dir():
            raise InputError(
                f"{self.prompts} has neither {name}.json, {name}.png nor a folder {name} of masks; expected a prompt for "
                "each video; add it or leave the video out"
            )
        return mask_files(folder, self.strict)

    def places(self, name: str) -> tuple[Path, ...]:
        """Return where a clip's files lie that isn't made: its video first, then its masks."""
        if self.dataset is not None:
            given = () if self.prompts is None else (named(self.prompts, f"{name}{LISTED}"),)
            return *clip_folders(self.dataset, name), *given
        assert self.videos is not None, "a clip that isn't made comes from a folder"
        return video_file(self.videos, name), *self.prompt_of(name)

    def listing(self, name: str) -> str:
        """Return another text where a clip's video or masks were changed."""
        return name if self.is_made(name) else listing(*self.places(name))


def _annotated(dataset: Path, name: str, labelled: bool, strict: bool) -> Clip:
    """Open a clip of a data set: an object is prompted on the first frame that shows it; without truth where that is all."""
    alone = labelled and first_mask_alone(dataset, name)
    video, truth, starts = open_annotated(dataset, name, labelled and not alone, strict)
    prompts = []
    for i, frame in sorted(starts.items(), key=lambda start: start[1]):
        shown = truth[frame]
        mask = shown[truth.objects.index(i)] if truth.layered else shown == i
        prompts.append(Prompt(frame, i, mask=mask))
    return Clip(name, video, tuple(prompts), None if alone else truth, truth.layered and not alone)


def video_file(videos: Path, name: str) -> Path:
    """Return a video of a folder by its name: a folder of frames, or a video file."""
    folder = named(videos, name)
    if folder.is_dir() or not videos.is_dir():
        return folder
    same = (p for p in sorted(videos.iterdir()) if composed(p.stem) == composed(name))
    return next((p for p in same if is_video(p)), folder)


def holds_videos(folder: Path) -> bool:
    """Whether a folder is one of videos: of folders of frames, or video files."""
    if not folder.is_dir():
        return False
    shown = (p for p in folder.iterdir() if not p.name.startswith("."))
    return any(p.is_dir() or is_video(p) for p in shown)


def is_video(path: Path) -> bool:
    """Whether a file is a video, by its suffix, or where that says nothing by what is in it."""
    suffix = path.suffix.lower()
    if not path.is_file() or path.name.startswith("."):
        return False
    if suffix in VIDEO_SUFFIXES:
        return True
    return suffix not in (*IMAGE_SUFFIXES, *OTHER_IMAGE_SUFFIXES) and holds_video(path)


def _tell_unused(prompts: Path, names: list[str], strict: bool) -> None:
    """Name the masks that no video has the name of."""
    known = {composed(name) for name in names}
    given = [
        p for p in sorted(prompts.iterdir()) if p.suffix.lower() in (".png", LISTED) or p.is_dir()
    ]
    unused = [
        p.name
        for p in given
        if not p.name.startswith(".") and not known & {composed(p.name), composed(p.stem)}
    ]
    if unused:
        tell_left_out(
            [f"{prompts}: {len(unused)} prompts are of no video ({some_of(unused)}), left out"],
            strict,
        )


def made_name(index: int) -> str:
    """Name of the `index`-th made clip: every difficulty in turn, then with the next seed.

    >>> made_name(0), made_name(len(CLIP_NAMES))
    ('made-smooth-100', 'made-smooth-101')
    """
    return f"made-{CLIP_NAMES[index % len(CLIP_NAMES)]}-{100 + index // len(CLIP_NAMES)}"
