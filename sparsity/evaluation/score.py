"""Scores of masks or boxes that any tool wrote, so that two systems stand in one table.

Masks are scored as `sparsity.evaluation.evaluate` scores its own: the same objects, the same frames (annotated ones after an
object's prompt, without the clip's last), the same figures to the last digit. ``efficient-sam2 segment`` over a data set
writes the masks that ``evaluate`` scores, with two exceptions: where objects overlap (SA-V) it writes one a pixel, and it
tracks objects that ``evaluate`` doesn't count, such as those that DAVIS shows later, which may take pixels from others.
What else a set publishes, and how boxes are scored, is in `sparsity.evaluation.rules`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from probes.errors import InputError
from probes.files import listing, named, write_text
from sparsity.clips.boxes import BoxClip, box_folders, boxes_of, open_box_clip, predicted_boxes
from sparsity.clips.layouts import Masks, find_layout
from sparsity.clips.predicted import predicted
from sparsity.clips.sources import Clip, ClipSource
from sparsity.evaluation.quality import box_quality, clip_quality, overall
from sparsity.evaluation.results import ClipQuality, Data, Scored, Scores
from sparsity.evaluation.rules import (
    LVOS,
    Rules,
    Track,
    lvos_frames,
    overall_figures,
    rules_of,
    success,
    with_figures,
)
from sparsity.evaluation.tables import HEADS, between_ends, figure_lines, three_means
from sparsity.work.spread import Spread, map_clips
from sparsity.work.store import check_new_file


def score_clip(clip: Clip, found: Mapping[int, Masks], rules: Rules | None = None) -> ClipQuality:
    """Score a tool's masks of a clip.

    Parameters
    ----------
    found
        By frame, in the form of the clip's true masks; those that don't count may be absent.
    rules
        Whose further figures are wanted.
    """
    assert clip.truth is not None, "clips that are scored have true masks"
    frames = list(clip.truth)
    place = {frame: position for position, frame in enumerate(frames)}
    true = [clip.truth[frame] for frame in frames]
    masks = [found[t] if t in found else np.zeros_like(true[n]) for n, t in enumerate(frames)]
    starts = {i: place[frame] for i, frame in clip.starts.items()}
    quality = clip_quality(masks, true, clip.objects, starts=starts)
    return with_figures(quality, clip, masks, true, rules or Rules())


def needed_frames(clip: Clip, rules: Rules) -> dict[int, frozenset[int]]:
    """Return the annotated frames that count of each object, for J and F or by the rules."""
    assert clip.truth is not None, "clips that are scored have true masks"
    frames = list(clip.truth)
    needed = {i: {f for f in frames[:-1] if f > start} for i, start in clip.starts.items()}
    if rules.name == LVOS:
        for i, of_object in needed.items():
            entry = rules.objects.get(clip.name, {}).get(str(i), {}).get("frame_range")
            counted = lvos_frames(Track((), (), 0, _names(clip)), entry) if entry else []
            of_object.update(frames[position] for position in counted)
    return {i: frozenset(of_object) for i, of_object in needed.items()}


def _names(clip: Clip) -> list[str]:
    """Names of the annotated frames."""
    assert clip.truth is not None and clip.video.names is not None, "frames of a folder have names"
    return [clip.video.names[frame] for frame in clip.truth]


@dataclass(frozen=True)
class MaskWork:
    """Score each tool's masks of one clip, in whatever process takes it; see `sparsity.work.spread.map_clips`.

    Attributes
    ----------
    folders
        One a tool.
    """

    truth: Path
    folders: tuple[Path, ...]
    rules: Rules

    def check(self, name: str) -> tuple[int, int]:
        """Look at all files of a clip before the work; return its frames and objects.

        Raises
        ------
        InputError
            A mask is missing or can't be used, or the clip can't.
        """
        clip = ClipSource(dataset=self.truth).open(name)
        for folder in self.folders:
            predicted(folder, clip, needed_frames(clip, self.rules))
        return clip.num_frames, len(clip.objects)

    def __call__(self, name: str) -> list[Any]:
        """Return each tool's `ClipQuality` as JSON can hold it."""
        clip = ClipSource(dataset=self.truth).open(name)
        needed = needed_frames(clip, self.rules)
        found = [score_clip(clip, predicted(f, clip, needed), self.rules) for f in self.folders]
        return [quality.model_dump(mode="json") for quality in found]

    def scored(self, kept: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of a tool's `Scored` from what was found of its clips."""
        clips = {name: ClipQuality.model_validate(found) for name, found in kept.items()}
        figures = overall_figures(self.rules, clips)
        return {
            "frames": sum(clip.frames for clip in clips.values()),
            "objects": sum(len(clip.objects) for clip in clips.values()),
            "quality": overall(clips, figures=figures),
        }

    def places(self, name: str) -> tuple[Path, ...]:
        """Where the files of a clip lie that say the truth."""
        return ClipSource(dataset=self.truth).places(name)


@dataclass(frozen=True)
class BoxWork:
    """Score each tool's boxes of one clip; as `MaskWork`."""

    clips: Mapping[str, Path]
    folders: tuple[Path, ...]

    def check(self, name: str) -> tuple[int, int]:
        """Look at all files of a clip before the work; return its frames and objects."""
        clip = open_box_clip(self.clips[name])
        for folder in self.folders:
            predicted_boxes(folder, clip)
        return len(clip.frames), 1

    def __call__(self, name: str) -> list[float]:
        """Return each tool's success."""
        clip = open_box_clip(self.clips[name])
        return [self._success(folder, clip) for folder in self.folders]

    def _success(self, folder: Path, clip: BoxClip) -> float:
        return success(boxes_of(predicted_boxes(folder, clip), len(clip.frames)), clip)

    def scored(self, kept: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of a tool's `Scored` from what was found of its clips."""
        frames = sum(len(open_box_clip(self.clips[name]).frames) for name in kept)
        return {"frames": frames, "objects": len(kept), "boxes": box_quality(kept)}

    def places(self, name: str) -> tuple[Path, ...]:
        """Where the files of a clip lie that say the truth."""
        return self.clips[name], self.clips[name] / "img"


def score(
    predictions: Sequence[Path],
    truth: Path,
    *,
    only: list[str] | None = None,
    rules: str | None = None,
    out: Path | None = None,
    spread: Spread | None = None,
    force: bool = False,
) -> Scores:
    """Score tools' masks or boxes of all clips of a data set.

    Parameters
    ----------
    predictions
        A folder a tool; see `sparsity.clips.predicted` and `sparsity.clips.boxes`.
    truth
        A folder of one of `sparsity.clips.layouts.LAYOUTS`, or of clips with true boxes.
    only
        Names of the clips to take; all unless given.
    rules
        One of `sparsity.evaluation.rules.RULES`; what the data says unless given.
    out
        File for the scores. Clips that are done lie in ``NAME.clips`` beside it until all are.
    force
        Replace a file that is there.

    Raises
    ------
    InputError
        Something given can't be used, which is told before any work, or a clip failed.
    """
    if out is not None:
        check_new_file(out, force)
    for folder in predictions:
        if not folder.is_dir():
            raise InputError(
                f"predictions {folder} given; expected a folder with masks or boxes of each clip; check the path"
            )
    work, names = _work(tuple(predictions), truth, only, rules)
    sizes = [work.check(name) for name in names]
    chosen = work.rules.name if isinstance(work, MaskWork) else None
    with _parts(out) as folder:
        summary = map_clips(
            work,
            names,
            Path(folder),
            {
                "truth": str(truth.resolve()),
                "predictions": [str(p.resolve()) for p in predictions],
                "rules": chosen,
                "made_by": version("efficient-sam2"),
            },
            spread or Spread(),
            {name: listing(*_places(work, name)) for name in names},
        )
        summary.check()
    scores = Scores(
        schema="efficient-sam2/scores/1",
        made_by=f"efficient-sam2 {version('efficient-sam2')}",
        rules=chosen,
        data=Data(
            root=truth.resolve().name,
            clips=names,
            frames=sum(frames for frames, _ in sizes),
            settings={"skipped": ["first", "last"]} if isinstance(work, MaskWork) else {},
        ),
        runs=[
            Scored(name=name, **work.scored({c: found[n] for c, found in summary.results.items()}))
            for n, name in enumerate(_tools(predictions))
        ],
    )
    if out is not None:
        write_text(out, scores.to_json())
        shutil.rmtree(folder, ignore_errors=True)
    return scores


def _work(
    folders: tuple[Path, ...], truth: Path, only: list[str] | None, rules: str | None
) -> tuple[MaskWork | BoxWork, list[str]]:
    """Tell what a data set's truth is; return the work, and the names of its clips."""
    try:
        find_layout(truth)
    except InputError:
        boxed = box_folders(truth)
        if not boxed:
            raise
        if rules is not None:
            raise InputError(
                f"rules {rules} given; {truth} has true boxes, which are scored by their success; leave it out"
            ) from None
        missing = [name for name in only or () if name not in boxed]
        if missing:
            raise InputError(
                f"clip {missing[0]!r} listed; {truth} has {len(boxed)} others such as {next(iter(boxed))}; correct the list"
            ) from None
        return BoxWork(boxed, folders), list(boxed) if only is None else only
    names = ClipSource(dataset=truth).names(only=only)
    return MaskWork(truth, folders, rules_of(truth, rules)), names


def _parts(out: Path | None) -> AbstractContextManager[Any]:
    """Where results of single clips lie until all are done."""
    return TemporaryDirectory() if out is None else nullcontext(out.with_name(f"{out.name}.clips"))


def _places(work: MaskWork | BoxWork, name: str) -> list[Path]:
    """Where all files of a clip lie."""
    found = [place for place in work.places(name) if place.exists()]
    for folder in work.folders:
        home = named(folder, name)
        inside = sorted(p for p in home.rglob("*") if p.is_dir()) if home.is_dir() else []
        table = named(folder, f"{name}.csv")
        found += [place for place in (home, *inside, table) if place.exists()]
    return found


def _tools(predictions: Sequence[Path]) -> list[str]:
    """Names of the tools: of their folders, or their paths where two folders have one name."""
    names = [folder.resolve().name for folder in predictions]
    return names if len(set(names)) == len(names) else [str(folder) for folder in predictions]


# ---------------------------------------------------------------------- the table


def table(scores: Scores) -> str:
    """Return the tools as text, one a line."""
    width = max(12, *(len(run.name) + 2 for run in scores.runs))
    clips, objects = len(scores.data.clips), scores.runs[0].objects
    if scores.runs[0].boxes is not None:
        lines = [f"{'':{width}}{'success':>8}{'95 %':>15}"]
        for run in scores.runs:
            assert run.boxes is not None
            lines.append(
                f"{run.name:{width}}{run.boxes.success:8.1f}{between_ends(run.boxes.interval):>15}"
            )
        last = f"{clips} clips; success: area under the success plot of boxes, mean over clips"
        return "\n".join([*lines, last])
    lines = [f"{'':{width}}{'over objects':>18}{'over clips':>18}"]
    lines.append(f"{'':{width}}{2 * HEADS}{'95 %':>15}")
    figures: dict[str, dict[str, float]] = {}
    for run in scores.runs:
        assert run.quality is not None
        between = between_ends(run.quality.intervals.get("j_and_f"))
        lines.append(f"{run.name:{width}}{three_means(run.quality)}{between:>15}")
        figures[run.name] = run.quality.figures
    lines.append(
        f"{clips} clips, {objects} objects; over objects: as DAVIS and YouTube-VOS count; over clips: also the interval of "
        "J&F; without an object's prompted frame and the last one"
    )
    return "\n".join([*lines, *figure_lines(scores.rules, figures, width)])
