"""``segment`` and ``probe`` over many clips, one at a time by whichever process `map_clips` gives it to.

Workers write what they make, so they need to see clips and results under the same paths.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from probes.errors import InputError
from probes.models import fingerprint
from probes.recording import extend_recording, record, recorded_clips
from probes.records import Recording
from probes.video import open_video
from sparsity.acceleration.build import shared_stock
from sparsity.calibration.clips import ClipSource, video_file
from sparsity.evaluation.jobs import Spread, Summary, map_clips, result_file
from sparsity.evaluation.layouts import clip_folders, clip_names, listed_names, open_clip
from sparsity.options import ModelChoice
from sparsity.profile import Profile
from sparsity.prompt import CheckedPrompt, Prompt
from sparsity.runs import listing
from sparsity.segment import run_segment


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


@dataclass(frozen=True)
class SegmentClip:
    """Track one clip into the folder of its name; return the figures of its `sparsity.segment.Outcome`."""

    clips: Clips
    choice: ModelChoice
    out: Path
    profile: Profile
    max_frames: int | None
    force: bool

    def __call__(self, name: str) -> dict[str, Any]:
        video, prompt = self.clips.open(name)
        outcome = run_segment(
            video, prompt.only_one(name), self.choice, self.out / name,
            profile=self.profile, max_frames=self.max_frames, force=self.force,
        )  # fmt: skip
        return {key: value for key, value in asdict(outcome).items() if key != "out"}


def segment_clips(
    work: SegmentClip, listed: Path | None = None, spread: Spread | None = None
) -> Summary:
    """Segment clips into ``OUT/NAME``; one that was interrupted goes on where it stopped.

    Raises
    ------
    InputError
        Something given can't be used, or a clip failed; the others are done then.
    """
    names = work.clips.names(listed)
    parts = _beside(work.out)
    settings = {**_model(work.choice), "max_frames": work.max_frames}
    settings["profile"] = work.profile.model_dump(mode="json", by_alias=True)
    for name in names:
        if not (work.out / name).is_dir():  # somebody removed what was done
            result_file(parts, name).unlink(missing_ok=True)
    contents = work.clips.listings(names)
    summary = map_clips(work, names, parts, settings, spread or Spread(), contents)
    summary.check()
    shutil.rmtree(parts)
    return summary


@dataclass(frozen=True)
class RecordClip:
    """Record one clip into a recording of its own.

    Attributes
    ----------
    parts
        Folder for the recordings ``NAME.recording``.
    settings
        Of `probes.recording.record`, those of a whole recording.
    """

    clips: Clips
    choice: ModelChoice
    parts: Path
    settings: dict[str, Any]
    max_frames: int | None

    def __call__(self, name: str) -> str:
        out = self.parts / f"{name}.recording"
        shutil.rmtree(
            out, ignore_errors=True
        )  # of a worker that died over it, or of other settings
        self.into(out, name)
        return out.name

    def into(self, out: Path, name: str) -> None:
        """Record a clip into a recording, if it isn't there."""
        video, prompt = self.clips.open(name)
        record(
            shared_stock(self.choice), video, prompt.give_to, out=out, name=name,
            max_frames=self.max_frames, **self.settings,
        )  # fmt: skip


def record_clips(
    clips: Clips,
    choice: ModelChoice,
    out: Path,
    *,
    listed: Path | None = None,
    spread: Spread | None = None,
    max_frames: int | None = None,
    **settings: Any,
) -> Recording:
    """Record clips into one recording; those that it holds already are left as they are.

    Parameters
    ----------
    settings
        `statistics`, `rows`, `query_rows`, `autocast` and `model` of `probes.recording.record`.

    Raises
    ------
    InputError
        Something given can't be used, or a clip failed; the others are done then.
    """
    names = clips.names(listed)
    work = RecordClip(clips, choice, _beside(out), settings, max_frames)
    held = recorded_clips(shared_stock(choice), out, **settings)
    for name in (name for name in names if name in held):
        work.into(out, name)  # refuses what differs
    left = [name for name in names if name not in held]
    stamp = {**_model(choice), **settings, "max_frames": max_frames}
    contents = clips.listings(left)
    summary = map_clips(work, left, work.parts, stamp, spread or Spread(), contents)
    summary.check()
    recording = extend_recording(out, [work.parts / part for part in summary.results.values()])
    shutil.rmtree(work.parts)
    return recording


def _beside(out: Path) -> Path:
    """Where results of single clips lie until all are done."""
    return out.with_name(f"{out.name}.clips")


def _model(choice: ModelChoice) -> dict[str, Any]:
    model = shared_stock(choice)
    return {
        "model": fingerprint(model),
        "size": model.image_size,
        "dtype": choice.number_format(model.device.type),
        "device": model.device.type,
        "made_by": version("efficient-sam2"),
    }


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
        It names one video without a prompt, or one with options for many.
    """
    root = Path(video)
    if prompt.mask is not None and prompt.mask.is_dir():
        return Clips(root, prompt.mask)
    if not (prompt.mask or prompt.points or prompt.box):
        if not root.is_dir() or not any(path.is_dir() for path in root.iterdir()):
            raise InputError(
                f"{video} given without a prompt; expected --prompt, --points or --box, or a data set with "
                "annotations; add a prompt"
            )
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
