"""How well clips are tracked: each once densely and once with every profile, against true masks and the dense run.

An object's true mask on the first frame that shows it is the prompt. All runs are by the same weights. What is found
of a clip goes into a file of its own, so that what was interrupted goes on with the next clip.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from probes.errors import InputError
from probes.files import files_of, write_text
from probes.tracking import track_forward
from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor
from sparsity.acceleration.report import Report
from sparsity.clips.layouts import Masks
from sparsity.clips.masks import merge_objects
from sparsity.clips.sources import Clip, ClipSource
from sparsity.evaluation.meters import environment, model_of
from sparsity.evaluation.quality import agreement, clip_quality, overall
from sparsity.evaluation.results import (
    ClipQuality,
    Data,
    Environment,
    Model,
    Result,
    Run,
    load_result,
)
from sparsity.evaluation.rules import Rules, overall_figures, rules_of, with_figures
from sparsity.profile import BUILTIN, Profile, load_profile
from sparsity.work.model import ModelChoice, SameModel, predictor_for, shared_predictor, stamp_of
from sparsity.work.spread import Spread, map_clips
from sparsity.work.store import check_new_file

DENSE = "dense"
"""Name of the run that the others are compared with."""

NO_TRUTH = "none: the dense run's masks"
"""What clips with first masks alone are held against."""

WARM_UP = 2
"""Frames at the start of a clip whose time doesn't count: the prompt, and the first tracked one."""


@dataclass(frozen=True)
class Tracked:
    """What a predictor did with a clip.

    Attributes
    ----------
    masks
        By frame: of those that have true masks, or of all where there are none.
    report
        Of all passes.
    seconds
        Of each frame.
    """

    masks: dict[int, Masks]
    report: Report
    seconds: list[float]

    @property
    def timed(self) -> list[float]:
        """Seconds of the frames whose time counts."""
        return self.seconds[WARM_UP:]


def track(predictor: EfficientSAM2VideoPredictor, clip: Clip) -> Tracked:
    """Track a clip from its objects' prompts to its end with the profile in use.

    Prompts are given when tracking comes to their frame, so nothing is tracked before its prompt.
    """
    return track_in_turn({"": predictor}, clip)[""]


def track_in_turn(
    predictors: Mapping[str, EfficientSAM2VideoPredictor], clip: Clip, progress: bool = False
) -> dict[str, Tracked]:
    """Track a clip with several predictors, each doing one frame in turn, so that they share the machine's weather."""
    runs = {name: _Tracking(predictor, clip) for name, predictor in predictors.items()}
    hidden = None if progress else True
    for frame in tqdm(range(clip.num_frames), desc="tracking", unit="frame", disable=hidden):
        for run in runs.values():
            run.step(frame)
    return {name: run.tracked() for name, run in runs.items()}


class _Tracking:
    """A predictor on its way through a clip."""

    def __init__(self, predictor: EfficientSAM2VideoPredictor, clip: Clip) -> None:
        self.predictor, self.clip = predictor, clip
        self.start = clip.prompts[0].frame
        self.state = predictor.init_state(clip.video, history="bounded", corrections="keep")
        self.frames = track_forward(predictor, self.state, clip.prompts, self.start)
        self.masks: dict[int, Masks] = {}
        self.seconds: list[float] = []

    def step(self, frame: int) -> None:
        """Track into the next frame."""
        begun = time.perf_counter()
        ids: list[int] = []
        if frame >= self.start:
            _, ids, logits = next(self.frames)
        found = logits[:, 0].float() if ids else torch.zeros(0)
        found = found.cpu()  # waits for the device
        self.seconds.append(time.perf_counter() - begun)
        if self.clip.truth is None or frame in self.clip.truth:
            self.masks[frame] = _masks(self.clip, ids, found)

    def tracked(self) -> Tracked:
        """Return what was done."""
        return Tracked(self.masks, self.predictor.report(self.state), self.seconds)


def _masks(clip: Clip, ids: list[int], logits: Tensor) -> Masks:
    """Turn logits ``[O, H, W]`` of objects into the kind of masks that the clip's truth is."""
    shape = (clip.video.height, clip.video.width)
    if clip.layered:
        layers = dict(zip(ids, logits.numpy() > 0, strict=True))
        return np.stack([layers.get(i, np.zeros(shape, bool)) for i in clip.objects])
    return merge_objects(logits, ids, shape)


def score(clip: Clip, run: Tracked, dense: Tracked | None = None) -> ClipQuality:
    """Score a run against the true masks and the dense run; without true masks the dense run's are the measure."""
    truth = clip.truth or (dense or run).masks
    place = {frame: position for position, frame in enumerate(run.masks)}
    return clip_quality(
        list(run.masks.values()),
        [truth[frame] for frame in run.masks],
        clip.objects,
        None if dense is None else list(dense.masks.values()),
        starts={i: place[frame] for i, frame in clip.starts.items()},
        windows_kept=run.report.windows_share,
        keys_kept=run.report.keys_share,
        prunable_keys_kept=run.report.prunable_keys_share,
    )


def since_dense(clip: Clip, run: Tracked, dense: Tracked) -> list[tuple[int, float]]:
    """Frames since the last dense one, and agreement with the dense run in per cent, of each routed frame."""
    found = []
    last = 0
    for frame in run.report.frames:
        if frame.windows is None:
            last = frame.frame
        elif frame.frame in run.masks:
            pair = run.masks[frame.frame], dense.masks[frame.frame]
            agreed = agreement(pair[:1], pair[1:], clip.objects)
            found.append((frame.frame - last, float(np.mean(list(agreed.values())))))
    return found


def by_frame(clip: Clip, run: Tracked, dense: Tracked) -> list[tuple[int, float]]:
    """Agreement with the dense run in per cent, mean over objects, of each frame after the first."""
    found = []
    for frame in list(run.masks)[1:]:
        agreed = agreement([run.masks[frame]], [dense.masks[frame]], clip.objects)
        found.append((frame, round(float(np.mean(list(agreed.values()))), 3)))
    return found


def character(clip: Clip, dense: Tracked) -> dict[str, float]:
    """What a clip is like by its dense run: size, motion and score, see `sparsity.profile.Stratum`."""
    masks = list(dense.masks.values())
    covered = [(m.any(0) if m.ndim == 3 else m > 0).mean() for m in masks]
    moved = [agreement([one], [other], clip.objects) for one, other in pairwise(masks)]
    scores = [item.score for frame in dense.report.frames for item in frame.objects.values()]
    return {
        "size": float(np.mean(covered)),
        "motion": 1 - float(np.mean([list(m.values()) for m in moved])) / 100,
        "score": float(np.mean(scores)),
    }


@dataclass(frozen=True)
class Outcome:
    """One profile on one clip.

    Attributes
    ----------
    loss
        J&F of the dense run less this one's, in points; without true masks, 100 less its J&F with the dense
        run's masks.
    seconds
        Median of a tracked frame.
    rescued
        Frames that the guard rescued, with its rule.
    since_dense
        Of each routed frame: frames since the last dense one, and agreement in per cent.
    by_frame
        See the function of that name.
    cues
        Of its report.
    character
        Of the clip.
    """

    quality: ClipQuality
    loss: float
    seconds: float
    rescued: dict[int, str]
    since_dense: list[tuple[int, float]]
    by_frame: list[tuple[int, float]]
    cues: dict[str, float]
    character: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return {**asdict(self), "quality": self.quality.model_dump(mode="json")}


def evaluate_clip(
    predictor: EfficientSAM2VideoPredictor,
    clip: Clip,
    profiles: Sequence[Profile] = (),
    *,
    dense: Profile = BUILTIN[DENSE],
    rules: Rules | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    force: bool = False,
) -> dict[str, Outcome]:
    """Track a clip densely and with every profile.

    Parameters
    ----------
    predictor
        The model; its own profile doesn't matter.
    profiles
        With names that differ.
    dense
        What they are compared with: every window and key.
    rules
        Whose further figures are wanted.
    autocast
        Makes the context in which the model runs.
    force
        Use profiles that were made for another model.

    Returns
    -------
    dict
        By the profile's name; the dense run first.
    """
    if clip.truth is not None:
        clip = replace(clip, truth=dict(clip.truth))  # read once
    found: dict[str, Outcome] = {}
    compared: Tracked | None = None
    for profile in (dense, *(p for p in profiles if p.name != dense.name)):
        with predictor.use(profile, force=force), autocast():
            run = track(predictor, clip)
        quality = score(clip, run, compared)
        if rules is not None and clip.truth is not None:
            true = [clip.truth[frame] for frame in run.masks]
            quality = with_figures(quality, clip, list(run.masks.values()), true, rules)
        base = found[dense.name].quality.j_and_f if found else quality.j_and_f
        found[profile.name] = Outcome(
            quality,
            base - quality.j_and_f,
            statistics.median(run.timed),
            run.report.rescued,
            since_dense(clip, run, compared or run),
            by_frame(clip, run, compared or run),
            run.report.cues,
            character(clip, compared or run),
        )
        compared = compared or run
    return found


@dataclass(frozen=True)
class ClipWork:
    """What is done with one clip, in whatever process takes it; see `sparsity.work.spread.map_clips`.

    Attributes
    ----------
    dense
        Built-in profile that the others are compared with.
    """

    source: ClipSource
    choice: ModelChoice
    profiles: tuple[Profile, ...]
    dense: str = DENSE
    rules: Rules | None = None
    force: bool = False

    def __call__(self, name: str) -> dict[str, Any]:
        """Return every run's `Outcome` as JSON can hold it."""
        predictor = shared_predictor(self.choice)
        found = evaluate_clip(
            predictor,
            self.source.open(name),
            self.profiles,
            dense=BUILTIN[self.dense],
            rules=self.rules,
            autocast=lambda: self.choice.autocast(predictor.device.type),
            force=self.force,
        )
        return {run: outcome.as_json() for run, outcome in found.items()}


def evaluate(
    root: Path,
    choice: ModelChoice,
    out: Path,
    *,
    prompts: Path | None = None,
    profiles: Sequence[str | Path | Profile] = (),
    only: list[str] | None = None,
    most: int | None = None,
    spread: Spread | None = None,
    force: bool = False,
) -> Result:
    """Evaluate all clips of a data set and write the result.

    Parameters
    ----------
    root
        Folder of one of `sparsity.clips.layouts.LAYOUTS`.
    choice
        The model.
    out
        Result file. Clips that are done lie in ``NAME.clips`` beside it until all are.
    prompts
        Folder with ``NAME.json`` for each clip, a file of `probes.prompts`, in place of its first masks.
    profiles
        Built-in names, files or profiles, each evaluated beside the dense run.
    only
        Names of the clips to take; all unless given.
    most
        Frames of a clip that are taken; None for all.
    spread
        Where clips are worked on; here one after the other unless said otherwise.
    force
        Replace another result, and use profiles made for another model.

    Raises
    ------
    InputError
        Something given can't be used, or a clip failed.
    """
    check_new_file(out, force=True)
    source = ClipSource(dataset=root, prompts=prompts, most=most)
    names = source.names(only=only)
    opened = [source.open(name) for name in names]
    frames = sum(clip.num_frames for clip in opened)
    bare = [clip.name for clip in opened if clip.truth is None]
    if 0 < len(bare) < len(names):
        raise InputError(
            f"{len(bare)} of {len(names)} clips have a first mask alone, such as {bare[0]}; expected masks of all frames of all "
            "clips, or first masks alone of all, for agreement with the dense run is no J&F; evaluate them apart with --clips"
        )
    rules = rules_of(root)
    wanted = _different([load_profile(p) for p in profiles])
    predictor = predictor_for(choice, wanted, force)
    model = model_of(choice, predictor)
    number_format = choice.number_format(predictor.device.type)
    data = Data(
        root=root.resolve().name,
        clips=names,
        frames=frames,
        settings={
            "prompt": "mask" if prompts is None else f"{prompts.name}/NAME.json",
            "skipped": ["first", "last"],
            **({"rules": rules.name} if rules.name and not bare else {}),
            **({"truth": NO_TRUTH} if bare else {}),
            **({} if most is None else {"first frames": most}),
            "dtype": number_format,
            "profiles": [p.model_dump(mode="json", by_alias=True) for p in wanted],
        },
    )
    if out.is_file() and not force:
        return _same(out, model, data, source)
    settings = {"root": str(root.resolve()), **stamp_of(predictor, choice), **data.settings}
    contents = {name: source.listing(name) for name in names}
    parts = out.with_name(f"{out.name}.clips")
    work = ClipWork(source, choice, wanted, rules=rules, force=force)
    by_one = SameModel(work, choice, model.fingerprint)
    summary = map_clips(by_one, names, parts, settings, spread or Spread(), contents)
    summary.check()
    found = {
        clip: {run: ClipQuality.model_validate(kept["quality"]) for run, kept in runs.items()}
        for clip, runs in summary.results.items()
    }
    machine = Environment.model_validate(environment(predictor.device, number_format))
    runs = [_run(profile, found, rules) for profile in (BUILTIN[DENSE], *wanted)]
    result = Result(
        schema="efficient-sam2/result/1", environment=machine, model=model, data=data, runs=runs
    )
    write_text(out, result.to_json())
    shutil.rmtree(parts, ignore_errors=True)  # another process may be at the same
    return result


def _run(profile: Profile, found: dict[str, dict[str, ClipQuality]], rules: Rules) -> Run:
    """Put the clips of one run together."""
    clips = {clip: runs[profile.name] for clip, runs in found.items()}
    dense = None if profile.name == DENSE else {clip: runs[DENSE] for clip, runs in found.items()}

    def mean(share: str) -> float:
        return sum(getattr(clip, share) for clip in clips.values()) / len(clips)

    return Run(
        name=profile.name,
        profile=profile.model_dump(mode="json", by_alias=True),
        frames=sum(clip.frames for clip in clips.values()),
        objects=sum(len(clip.objects) for clip in clips.values()),
        windows_kept=mean("windows_kept"),
        keys_kept=mean("keys_kept"),
        prunable_keys_kept=mean("prunable_keys_kept"),
        quality=overall(clips, dense, overall_figures(rules, clips)),
    )


def _different(profiles: list[Profile]) -> tuple[Profile, ...]:
    """Return the profiles beside dense, refusing two of one name and another one of that name."""
    names = [p.name for p in profiles]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"{names.count(name)} profiles of the name {name!r} given; expected different names; "
                "rename one"
            )
    if any(p.name == DENSE and p != BUILTIN[DENSE] for p in profiles):
        raise InputError(
            f"a profile of the name {DENSE!r} given that isn't the built-in one; expected another name, as that run "
            "is what the others are compared with; rename it"
        )
    return tuple(p for p in profiles if p.name != DENSE)


def _same(out: Path, model: Model, data: Data, source: ClipSource) -> Result:
    """Return the result that is there, if it is of the same model, clips and settings, and of these files."""
    result = load_result(out)
    if result.model != model or result.data != data:
        raise InputError(
            f"{out} holds another result; expected one of the same model, clips and profiles, or a new "
            "file; choose another --out, or --force to replace it"
        )
    made = out.stat().st_mtime
    for clip in data.clips:
        files = files_of(*source.places(clip)).values()
        newer = [file for file in files if file.stat().st_mtime > made]
        if newer:
            raise InputError(
                f"{out} is older than {newer[0]} of clip {clip}; expected a result of the clips as they are; "
                "choose another --out, or --force to make it again"
            )
    return result
