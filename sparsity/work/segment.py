"""``efficient-sam2 segment``: a video and prompts in; masks, an overlay and a report out.

Results are written as they come, behind the model. Every 30 seconds and when it is interrupted, the run also saves what
tracking needs to go on (memory, pointers, decisions: some 20 MiB an object at 1024 pixels), so that the
same command continues with the next frame and ends with the masks of a run that wasn't interrupted: bit
for bit with the profile ``dense``, up to rounding with the others, because they choose the fastest of
several equivalent formulations anew in each process. Without a saved state the run starts again. Only
whole files that carry the hash of the same settings are trusted. A stream can't be gone on with: where it is
interrupted it ends.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from probes.errors import InputError
from probes.files import listing
from probes.models import configuration_of, fingerprint
from probes.prompts import read_prompts
from probes.tracking import hash_of_frames
from probes.video import VideoSource, open_video
from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor
from sparsity.acceleration.videos import in_turn
from sparsity.acceleration.watch import check_share
from sparsity.clips.prompt import PromptOptions
from sparsity.clips.sources import Clip
from sparsity.profile import Profile, load_profile
from sparsity.techniques.failure import failure_model_of, load_failure
from sparsity.work.formats import Format, format_of
from sparsity.work.model import ModelChoice, shared_predictor
from sparsity.work.run import Run
from sparsity.work.run_folder import Outcome, RunFolder

Prompting = PromptOptions | Sequence[Any] | str | Path
"""What to track: as a command line says it, a file of prompts, or a list of `probes.prompts.Prompt` or of entries as that
file has."""


@dataclass(frozen=True)
class RunOptions:
    """What is asked of a run, and is the same for all videos of a command; see `run_segment`."""

    choice: ModelChoice
    profile: Profile
    max_frames: int | None = None
    kind: str = "png"
    overlay: bool = True
    force: bool = False
    strict: bool = False
    watch: float | None = None
    failure: str | Path | None = None

    def job(
        self, video: Any, prompt: Prompting, out: Path, opened: VideoSource | None = None
    ) -> Job:
        """Open a video, `opened` where it is open already, and look at its folder; nothing is written yet.

        Raises
        ------
        InputError
            Something given can't be used.
        """
        check_share(self.watch)
        form = format_of(self.kind, Path(out))
        source = open_video(video if opened is None else opened, self.strict)
        if self.max_frames is not None and self.max_frames < 1:
            raise InputError(
                f"max-frames {self.max_frames} given; expected 1 or more; leave it out for all"
            )
        if isinstance(prompt, PromptOptions):
            prompts = prompt.check(source, self.strict)
        else:
            prompts = read_prompts(prompt, source)
        name = Path(video).name if isinstance(video, (str, Path)) else "video"
        clip = Clip(name, source, prompts)
        form.check(clip.objects)
        folder = RunFolder(Path(out))
        folder.look(self.force)
        return Job(video, clip, folder, form)


@dataclass(frozen=True)
class Job:
    """A video that is open, and where its results go."""

    video: Any
    clip: Clip
    folder: RunFolder
    form: Format


def run_segment(
    video: Any,
    prompt: Prompting,
    choice: ModelChoice,
    out: Path,
    *,
    profile: Profile | str | Path = "paper",
    max_frames: int | None = None,
    kind: str = "png",
    overlay: bool = True,
    force: bool = False,
    strict: bool = False,
    watch: float | None = None,
    failure: str | Path | None = None,
) -> Outcome:
    """Track the prompted objects through a video, forward and then back from the first prompt.

    Prompts are given when tracking comes to their frame: objects that come later are tracked from there on, and an object
    that is prompted again is corrected there and followed from the correction; frames before it stay as they are.

    Parameters
    ----------
    video
        Whatever `probes.video.open_video` opens. A stream (a device, an address, an iterator) is tracked forward alone.
    prompt
        What to track: as a command line says it, a file of prompts, or a list of `probes.prompts.Prompt` or of entries
        as that file has.
    choice
        The model.
    out
        Folder for the results; new, empty, or of the same run.
    profile
        A profile, built-in name or file.
    max_frames
        Frames to track at most, the prompted one included.
    kind
        Format of the results; see `sparsity.work.formats`.
    overlay
        Whether ``overlay.mp4`` is drawn.
    force
        Replace the results of another run, and use a profile that was made for another model.
    strict
        Refuse where something of the video is left out, in place of a warning.
    watch
        Share of frames that are tracked densely too, see `sparsity.acceleration.build.accelerate`; None for none.
    failure
        File of a `sparsity.techniques.failure.FailureModel` that says how likely a mask is wrong; default: that of the
        profile's guard, or the one that ships for the demo model; none for others.

    Raises
    ------
    InputError
        Something given can't be used; nothing has been written then.
    KeyboardInterrupt
        The run was interrupted; its state is saved.
    """
    options = RunOptions(
        choice, load_profile(profile), max_frames, kind, overlay, force, strict, watch, failure
    )
    return run_job(options.job(video, prompt, out), options)


def run_job(job: Job, options: RunOptions) -> Outcome:
    """Do one video; see `run_segment`."""
    ((_, ended),) = run_jobs([(job.clip.name, lambda: job)], options, 1)
    if isinstance(ended, Exception):
        raise ended
    return ended


Ended = tuple[str, Outcome | Exception]
"""A video's name, and what its run left behind or why it can't be tracked."""


def run_jobs(
    jobs: Iterable[tuple[str, Callable[[], Job]]], options: RunOptions, at_once: int
) -> Iterator[Ended]:
    """Track several videos with one model in this process, and yield what becomes of each, as they end.

    Parameters
    ----------
    jobs
        By name, opened when their turn comes.
    at_once
        How many are under way at most, a frame of each in turn. Each one's results are those of the video alone: bit for
        bit without the exact rewrites, else but for rounding, as whole frames of several are encoded in one batch.

    Raises
    ------
    InputError
        The profile doesn't fit the model. What is wrong with a video is given out, and costs no other one.
    KeyboardInterrupt
        The runs were interrupted; the states of those under way are saved.
    """
    predictor = shared_predictor(options.choice)
    ended: deque[Ended] = deque()
    left = False

    def steps(name: str, run: Run) -> Generator[int]:
        nonlocal left
        try:
            if not stop:
                with run.folder.held():
                    yield from run.steps(stop)
            if run.finished:
                ended.append((name, run.folder.outcome(run.form)))
            else:
                left = True
        except Exception as error:
            ended.append((name, error))

    def begun() -> Iterator[Run]:
        nonlocal left
        for name, opened in jobs:
            if stop:
                left = True
                return
            try:
                run = _begun(opened(), predictor, options)
            except Exception as error:
                ended.append((name, error))
                continue
            if isinstance(run, Outcome):
                ended.append((name, run))
                continue
            run.frames = steps(name, run)
            yield run

    with (
        stop_after_the_frame() as stop,
        predictor.use(options.profile, force=options.force, watch=options.watch),
        options.choice.autocast(predictor.device.type),
    ):
        for run, _, among in in_turn(predictor, begun(), at_once):
            run.took(among)
            while ended:
                yield ended.popleft()
    yield from ended
    if left:
        raise KeyboardInterrupt


def _begun(job: Job, predictor: EfficientSAM2VideoPredictor, options: RunOptions) -> Run | Outcome:
    """Make a video's folder ready for its run; where it holds what the run would leave behind, return that."""
    folder, form, force = job.folder, job.form, options.force
    settings = {
        "video": _named(job.video, job.clip.video),
        **_settings(job.clip, predictor, options),
        "max_frames": options.max_frames,
        "format": options.kind,
        "overlay": options.overlay,
        "watch": options.watch,
    }
    of = settings["model"], predictor.image_size
    judge = options.profile.guard.failure or failure_model_of(*of)
    if options.failure is not None:
        judge = load_failure(options.failure, *of)
    settings["failure"] = None if judge is None else judge.model_dump(mode="json")
    run = Run(job.clip, predictor, folder, form, settings, judge)
    with folder.held():
        if not folder.enter(settings, force):
            return run
        if run.stream and not force:
            raise InputError(
                f"{folder.path} holds a run of a stream, which can't be gone on with; expected a new folder; choose another "
                "--out, or --force to replace it"
            )
        if run.is_complete() and not force:
            return folder.outcome(form)
        if run.stream or run.is_complete():
            folder.clear(masks=run.stream)
    return run


def _named(video: Any, source: VideoSource) -> str | None:
    """Return another text for another video: of its files, or of its frames where it has none."""
    if isinstance(video, (str, Path)) and Path(video).exists():
        return listing(Path(video))
    if source.num_frames is None:
        return "a stream"
    return hash_of_frames(source, range(source.num_frames))


def _settings(
    clip: Clip, predictor: EfficientSAM2VideoPredictor, options: RunOptions
) -> dict[str, Any]:
    """Return what decides what the masks will be, the run's own settings apart."""
    return {
        "frames": clip.video.num_frames,
        "size": [clip.video.height, clip.video.width],
        "prompt": clip.digest(),
        "model": fingerprint(predictor),
        "configuration": configuration_of(predictor),
        "image_size": predictor.image_size,
        "dtype": options.choice.number_format(predictor.device.type),
        "device": predictor.device.type,
        "profile": options.profile.model_dump(mode="json", by_alias=True),
        "versions": {name: version(name) for name in ("efficient-sam2", "sam2", "torch")},
    }


@contextmanager
def stop_after_the_frame() -> Iterator[list[int]]:
    """Collect interrupts, so that the frame under way is finished; the second one stops at once."""
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    try:
        before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: interrupts don't arrive here
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
