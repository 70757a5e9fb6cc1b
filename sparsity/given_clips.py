"""Which clips a command line names, and what is to be tracked in each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probes.errors import InputError
from probes.video import open_video
from sparsity.calibration.clips import ClipSource, video_file
from sparsity.evaluation.jobs import Spread
from sparsity.evaluation.layouts import clip_folders, clip_names, listed_names, open_clip
from sparsity.prompt import CheckedPrompt, Prompt
from sparsity.runs import listing


@dataclass(frozen=True)
class Clips:
    """Clips and what to track in them.

    Attributes
    ----------
    root
        An annotated data set in one of `sparsity.evaluation.layouts.LAYOUTS`, or a folder of videos.
    prompts
        For a folder of videos: a folder with ``NAME.png`` for each, the mask of its first frame. None for a
        data set, whose annotations are the prompts.
    """

    root: Path
    prompts: Path | None = None

    def names(self, listed: Path | None = None) -> list[str]:
        """Return the names of all clips, or of those that a file lists, one a line.

        Raises
        ------
        InputError
            There is none, one is listed that is not there, or one has no prompt.
        """
        if self.prompts is None:
            return clip_names(self.root, listed)
        only = None if listed is None else listed_names(listed)
        return ClipSource(self.root, self.prompts).names(only=only)

    def listings(self, names: list[str]) -> dict[str, str]:
        """By clip: another text where its video or masks were changed."""
        if self.prompts is None:
            return {name: listing(*clip_folders(self.root, name)) for name in names}
        source = ClipSource(self.root, self.prompts)
        return {name: source.listing(name) for name in names}

    def open(self, name: str) -> tuple[Path, ClipPrompt]:
        """Return a clip's video and prompts.

        Raises
        ------
        InputError
            It can't be used; see `open_clip`.
        """
        if self.prompts is None:
            clip = open_clip(self.root, name)
            frames = sorted(set(clip.starts.values()))
            checked = tuple(CheckedPrompt(frame, masks=clip.prompts(frame)) for frame in frames)
            return clip_folders(self.root, name)[0], ClipPrompt(checked)
        video = video_file(self.root, name)
        mask = ClipSource(self.root, self.prompts).prompt_of(name)[0]
        return video, ClipPrompt((Prompt(mask).check(open_video(video)),))


@dataclass(frozen=True)
class ClipPrompt:
    """What to track in a clip: a prompt for each frame on which objects are prompted, ascending."""

    each: tuple[CheckedPrompt, ...]

    def only_one(self, name: str) -> CheckedPrompt:
        """Return the prompt of a clip whose objects are all prompted on one frame.

        Raises
        ------
        InputError
            Some come later.
        """
        if len(self.each) > 1:
            later = self.each[1]
            raise InputError(
                f"clip {name} has objects that come later (on frame {later.frame}); segment expects all on one "
                "frame; leave it out, or segment it by itself with --prompt"
            )
        return self.each[0]

    def give_to(self, predictor: Any, state: dict[str, Any]) -> None:
        """Add all of them to a video's state."""
        for prompt in self.each:
            prompt.give_to(predictor, state)

    def digest(self) -> str:
        """Return a hash of what they say."""
        return hashlib.sha256("".join(p.digest() for p in self.each).encode()).hexdigest()


def clips_of(video: str, prompt: Prompt, listed: Path | None, spread: Spread) -> Clips | None:
    """Tell which clips a command line names; None for one video with a prompt.

    Parameters
    ----------
    video
        One video, a folder of videos, or an annotated data set.
    prompt
        For a folder of videos its mask is a folder too.

    Raises
    ------
    InputError
        It names one video without a prompt, or one with options for many, or many with options for one.
    """
    root = Path(video)
    if prompt.mask is not None and prompt.mask.is_dir():
        _refuse_for_many(prompt)
        return Clips(root, prompt.mask)
    if not (prompt.mask or prompt.points or prompt.box):
        if not root.is_dir() or not any(path.is_dir() for path in root.iterdir()):
            raise InputError(
                f"{video} given without a prompt; expected --prompt, --points or --box, or a data set with "
                "annotations; add a prompt"
            )
        _refuse_for_many(prompt)
        return Clips(root)
    for option, given in (
        ("--clips", listed),
        ("--jobs", spread.jobs),
        ("--scheduler", spread.scheduler),
    ):
        if given:
            raise InputError(
                f"{option} and a prompt for one video given; expected a data set, whose prompts are its "
                "annotations, or a folder of videos and one of masks; drop one"
            )
    return None


def _refuse_for_many(prompt: Prompt) -> None:
    """Refuse what says where the object is in one video."""
    for option, given in (
        ("--points", prompt.points),
        ("--box", prompt.box),
        ("--prompt-frame", prompt.frame),
    ):
        if given:
            raise InputError(
                f"{option} and many clips given; expected masks alone, one a clip, or a data set's annotations; "
                f"leave {option} out, or give one video"
            )
