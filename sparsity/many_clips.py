"""``segment`` and ``probe`` over many clips, one at a time by whichever process `map_clips` gives it to.

Workers write what they make, so they need to see clips and results under the same paths.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from probes.errors import InputError
from probes.models import fingerprint
from probes.recording import extend_recording, record, recorded_clips
from probes.records import Recording
from sparsity.acceleration.build import shared_predictor, shared_stock
from sparsity.evaluation.jobs import Spread, Summary, map_clips, result_file
from sparsity.evaluation.same_model import SameModel
from sparsity.given_clips import Clips
from sparsity.options import ModelChoice
from sparsity.profile import Profile
from sparsity.runs import check_folder
from sparsity.segment import run_segment


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
    check_folder(work.out)
    names = work.clips.names(listed)
    parts = _beside(work.out)
    with shared_predictor(work.choice).use(work.profile, force=work.force):
        pass  # one that doesn't fit the model is refused before any work
    settings = {**_model(work.choice), "max_frames": work.max_frames}
    settings["profile"] = work.profile.model_dump(mode="json", by_alias=True)
    for name in names:
        if not (work.out / name).is_dir():  # somebody removed what was done
            result_file(parts, name).unlink(missing_ok=True)
    contents = work.clips.listings(names)
    by_one = SameModel(work, work.choice, settings["model"])
    summary = map_clips(by_one, names, parts, settings, spread or Spread(), contents)
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
    model = _model(choice)
    stamp = {**model, "settings": settings, "max_frames": max_frames}
    contents = clips.listings(left)
    by_one = SameModel(work, choice, model["model"])
    summary = map_clips(by_one, left, work.parts, stamp, spread or Spread(), contents)
    summary.check()
    recording = extend_recording(out, [work.parts / part for part in summary.results.values()])
    shutil.rmtree(work.parts)
    return recording


def _beside(out: Path) -> Path:
    """Where results of single clips lie until all are done."""
    place = out.resolve()
    if not place.name:
        raise InputError(f"{out} given; expected a folder with a name; choose another --out")
    return place.with_name(f"{place.name}.clips")


def _model(choice: ModelChoice) -> dict[str, Any]:
    model = shared_stock(choice)
    return {
        "model": fingerprint(model),
        "size": model.image_size,
        "dtype": choice.number_format(model.device.type),
        "device": model.device.type,
        "made_by": version("efficient-sam2"),
    }
