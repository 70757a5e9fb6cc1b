"""``segment`` and ``probe`` over many clips: one at a time by whichever process `map_clips` gives it to, or some at once.

Workers write what they make, so they need to see clips and results under the same paths.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from probes.errors import InputError, tell_left_out
from probes.recording import extend_recording, record, recorded_clips
from probes.records import Recording
from probes.video import notes_of
from sparsity.acceleration.watch import check_share
from sparsity.clips.sources import ClipSource
from sparsity.profile import Profile
from sparsity.techniques.failure import load_failure
from sparsity.work.formats import format_of
from sparsity.work.model import (
    ModelChoice,
    SameModel,
    predictor_under,
    shared_predictor,
    shared_stock,
    stamp_of,
)
from sparsity.work.run_folder import Outcome
from sparsity.work.segment import Job, RunOptions, run_job, run_jobs
from sparsity.work.spread import ClipOutcome, Spread, Summary, map_clips, outcome_of, result_name
from sparsity.work.store import check_folder, forget


@dataclass(frozen=True)
class SegmentClip:
    """Track one clip into the folder of its name; return the figures of its `sparsity.work.run_folder.Outcome`."""

    source: ClipSource
    out: Path
    options: RunOptions

    def __call__(self, name: str) -> dict[str, Any]:
        return _figures(run_job(self._job(name), self.options))

    def together(self, names: list[str], at_once: int) -> Iterator[ClipOutcome]:
        """Track several clips at once with one model in this process, and yield what becomes of each."""
        jobs = ((name, partial(self._job, name)) for name in names)
        for name, ended in run_jobs(jobs, self.options, at_once):
            yield outcome_of(name, partial(_figures, ended))

    def _job(self, name: str) -> Job:
        clip = self.source.open(name, labelled=False)
        place = self.source.places(name)[0]
        return self.options.job(place, clip.prompts, self.out / name, clip.video)


def _figures(ended: Outcome | Exception) -> dict[str, Any]:
    if isinstance(ended, Exception):
        raise ended
    return {key: value for key, value in asdict(ended).items() if key != "out"}


def segment_clips(
    work: SegmentClip, only: list[str] | None = None, spread: Spread | None = None
) -> Summary:
    """Segment all clips or some into ``OUT/NAME``; one that was interrupted goes on where it stopped.

    Where local processes would share one GPU, as many clips are tracked at once in this one.

    Raises
    ------
    InputError
        Something given can't be used, or a clip failed; the others are done then.
    """
    check_folder(work.out)
    names = work.source.names(only=only)
    parts = _beside(work.out)
    options, spread = work.options, spread or Spread()
    check_share(options.watch)
    predictor = shared_predictor(options.choice)
    with predictor.use(options.profile, force=options.force, watch=options.watch):
        pass  # one that doesn't fit the model is refused before any work
    format_of(options.kind, work.out)
    settings = {**stamp_of(predictor, options.choice), "max_frames": options.max_frames}
    settings |= {"format": options.kind, "overlay": options.overlay, "watch": options.watch}
    if options.failure is not None:
        judge = load_failure(options.failure, settings["model"], settings["size"])
        settings["failure"] = judge.model_dump(mode="json")
    settings["profile"] = options.profile.model_dump(mode="json", by_alias=True)
    for name in names:
        if not (work.out / name).is_dir():  # somebody removed what was done
            forget(result_name(parts, name))
    contents = {name: work.source.listing(name) for name in names}
    by_one = SameModel(work, options.choice, settings["model"])
    together = None
    if spread.jobs and on_one_gpu(
        predictor.device, options.choice.device, torch.cuda.device_count()
    ):
        together = partial(work.together, at_once=spread.jobs)
    summary = map_clips(by_one, names, parts, settings, spread, contents, together)
    _tell_left_out(summary)
    summary.check()
    shutil.rmtree(parts, ignore_errors=True)
    return summary


def on_one_gpu(device: torch.device, asked: str | None, gpus: int) -> bool:
    """Whether local processes would all have their model on one GPU.

    Parameters
    ----------
    device
        Of the model in this process.
    asked
        The device that the command line names, if it does.
    gpus
        How many CUDA devices there are; processes take one each in turn, unless it says which.
    """
    if device.type != "cuda":
        return device.type != "cpu"
    return gpus < 2 or torch.device(asked or "cuda").index is not None


def _tell_left_out(summary: Summary) -> None:
    """Say here what is left out of clips, which was said where they were worked on."""
    for result in summary.results.values():
        tell_left_out(result["left_out"])


@dataclass(frozen=True)
class RecordClip:
    """Record one clip into a recording of its own.

    Attributes
    ----------
    parts
        Folder for the recordings ``NAME.recording``.
    settings
        Of `probes.recording.record`, those of a whole recording.
    profile
        That is followed; None for the stock predictor.
    """

    source: ClipSource
    choice: ModelChoice
    parts: Path
    settings: dict[str, Any]
    max_frames: int | None
    profile: Profile | None = None

    def __call__(self, name: str) -> dict[str, Any]:
        out = self.parts / f"{name}.recording"
        shutil.rmtree(
            out, ignore_errors=True
        )  # of a worker that died over it, or of other settings
        return {"recording": out.name, "left_out": self.into(out, name)}

    def into(self, out: Path, name: str) -> list[str]:
        """Record a clip into a recording, if it isn't there; return what is left out of it."""
        clip = self.source.open(name, labelled=False)
        with predictor_under(self.choice, self.profile) as predictor:
            record(
                predictor, clip.video, clip.prompts, out=out, name=name,
                max_frames=self.max_frames, **self.settings,
            )  # fmt: skip
        return list(notes_of(clip.video))


def record_clips(
    source: ClipSource,
    choice: ModelChoice,
    out: Path,
    *,
    only: list[str] | None = None,
    spread: Spread | None = None,
    max_frames: int | None = None,
    profile: Profile | None = None,
    **settings: Any,
) -> Recording:
    """Record all clips or some into one recording; those that it holds already are left as they are.

    Parameters
    ----------
    profile
        That is followed; None for the stock predictor.
    settings
        `statistics`, `rows`, `row_side`, `row_heads`, `query_rows`, `autocast` and `model` of `probes.recording.record`.

    Raises
    ------
    InputError
        Something given can't be used, or a clip failed; the others are done then.
    """
    names = source.names(only=only)
    work = RecordClip(source, choice, _beside(out), settings, max_frames, profile)
    with predictor_under(choice, profile) as predictor:
        held = recorded_clips(predictor, out, **settings)
    for name in (name for name in names if name in held):
        work.into(out, name)  # refuses what differs
    left = [name for name in names if name not in held]
    model = stamp_of(shared_stock(choice), choice)
    stamp = {**model, "settings": settings, "max_frames": max_frames}
    if profile is not None:
        stamp["profile"] = profile.model_dump(mode="json", by_alias=True)
    contents = {name: source.listing(name) for name in left}
    by_one = SameModel(work, choice, model["model"])
    summary = map_clips(by_one, left, work.parts, stamp, spread or Spread(), contents)
    _tell_left_out(summary)
    summary.check()
    parts = [work.parts / result["recording"] for result in summary.results.values()]
    recording = extend_recording(out, parts)
    shutil.rmtree(work.parts, ignore_errors=True)
    return recording


def _beside(out: Path) -> Path:
    """Where results of single clips lie until all are done."""
    place = out.resolve()
    if not place.name:
        raise InputError(f"{out} given; expected a folder with a name; choose another --out")
    return place.with_name(f"{place.name}.clips")
