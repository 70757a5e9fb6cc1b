"""``efficient-sam2 evaluate``: how well clips are tracked, densely and with profiles, against annotations.

An object's true mask on the first frame that shows it is the prompt. Every clip is tracked once densely and
once with every profile, by the same weights; its figures go into a file of its own beside the result, so
that an interrupted evaluation goes on with the next clip.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from probes.errors import InputError
from probes.models import fingerprint
from sparsity.acceleration.build import shared_predictor
from sparsity.evaluation.clip_runs import DENSE, evaluate_clip
from sparsity.evaluation.environment import environment
from sparsity.evaluation.jobs import Spread, map_clips
from sparsity.evaluation.layouts import clip_folders, clip_names, open_clip
from sparsity.evaluation.quality import overall
from sparsity.evaluation.results import (
    ClipQuality,
    Data,
    Environment,
    Model,
    Result,
    Run,
    load_result,
)
from sparsity.evaluation.same_model import SameModel
from sparsity.options import ModelChoice
from sparsity.profile import Profile
from sparsity.profiles import BUILTIN, load_profile
from sparsity.runs import check_new_file, files_of, listing, write_text


@dataclass(frozen=True)
class ClipWork:
    """What is done with one clip, in whatever process takes it."""

    root: Path
    choice: ModelChoice
    profiles: tuple[Profile, ...]
    force: bool

    def __call__(self, name: str) -> dict[str, Any]:
        predictor = shared_predictor(self.choice)
        found = evaluate_clip(
            predictor,
            open_clip(self.root, name),
            self.profiles,
            autocast=lambda: self.choice.autocast(predictor.device.type),
            force=self.force,
        )
        return {run: quality.model_dump(mode="json") for run, quality in found.items()}


def evaluate(
    root: Path,
    choice: ModelChoice,
    out: Path,
    *,
    profiles: Sequence[str | Path | Profile] = (),
    listed: Path | None = None,
    spread: Spread | None = None,
    force: bool = False,
) -> Result:
    """Evaluate all clips of a folder and write the result.

    Parameters
    ----------
    root
        Folder of one of `sparsity.evaluation.layouts.LAYOUTS`.
    choice
        The model.
    out
        Result file. Clips that are done lie in ``NAME.clips`` beside it until all are.
    profiles
        Built-in names, files or profiles, each evaluated beside the dense run.
    listed
        File with the names of the clips to take.
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
    clips = [open_clip(root, name) for name in clip_names(root, listed)]
    wanted = _different([load_profile(p) for p in profiles])
    predictor = shared_predictor(choice)
    for profile in wanted:
        with predictor.use(profile, force=force):
            pass  # one that doesn't fit the model is refused before any work
    model = Model(
        name=str(choice.config or choice.model),
        fingerprint=fingerprint(predictor),
        image_size=predictor.image_size,
        trained=choice.weights != "random",
    )
    number_format = choice.number_format(predictor.device.type)
    data = Data(
        root=root.resolve().name,
        clips=[clip.name for clip in clips],
        frames=sum(clip.num_frames for clip in clips),
        settings={
            "prompt": "mask",
            "skipped": ["first", "last"],
            "dtype": number_format,
            "profiles": [p.model_dump(mode="json", by_alias=True) for p in wanted],
        },
    )
    places = {clip.name: clip_folders(root, clip.name) for clip in clips}
    if out.is_file() and not force:
        return _same(out, model, data, places)
    settings = {
        "root": str(root.resolve()),
        "model": model.fingerprint,
        "size": model.image_size,
        "device": predictor.device.type,
        "made_by": version("efficient-sam2"),
        **data.settings,
    }
    contents = {clip: listing(*folders) for clip, folders in places.items()}
    parts = out.with_name(f"{out.name}.clips")
    work = SameModel(ClipWork(root, choice, wanted, force), choice, model.fingerprint)
    summary = map_clips(work, data.clips, parts, settings, spread or Spread(), contents)
    summary.check()
    found = {
        clip: {run: ClipQuality.model_validate(quality) for run, quality in runs.items()}
        for clip, runs in summary.results.items()
    }
    machine = Environment.model_validate(environment(predictor.device, number_format))
    runs = [_run(profile, found) for profile in (BUILTIN[DENSE], *wanted)]
    result = Result(
        schema="efficient-sam2/result/1", environment=machine, model=model, data=data, runs=runs
    )
    write_text(out, result.to_json())
    shutil.rmtree(parts, ignore_errors=True)  # another process may be at the same
    return result


def _run(profile: Profile, found: dict[str, dict[str, ClipQuality]]) -> Run:
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
        quality=overall(clips, dense),
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


def _same(out: Path, model: Model, data: Data, places: dict[str, tuple[Path, ...]]) -> Result:
    """Return the result that is there, if it is of the same model, clips and settings, and of these files."""
    result = load_result(out)
    if result.model != model or result.data != data:
        raise InputError(
            f"{out} holds another result; expected one of the same model, clips and profiles, or a new "
            "file; choose another --out, or --force to replace it"
        )
    made = out.stat().st_mtime
    for clip, folders in places.items():
        newer = [f for f in files_of(*folders).values() if f.stat().st_mtime > made]
        if newer:
            raise InputError(
                f"{out} is older than {newer[0]} of clip {clip}; expected a result of the clips as they are; "
                "choose another --out, or --force to make it again"
            )
    return result


def table(result: Result) -> str:
    """Return the runs as text, one a line."""
    width = max(12, *(len(run.name) + 2 for run in result.runs))
    lines = [
        f"{'':{width}}{'J&F':>6}{'J':>6}{'F':>6}{'agree':>7}{'loss':>7}{'95 %':>15}{'windows':>9}{'keys':>6}"
    ]
    for run in result.runs:
        q = run.quality
        if q is None:
            lines.append(f"{run.name:{width}}{run.why}")
            continue
        agree = "" if q.agreement is None else f"{q.agreement:.1f}"
        loss = "" if q.loss is None else f"{q.loss:+.1f}"
        ends = q.intervals.get("j_and_f" if q.loss is None else "loss")
        between = "" if ends is None else f"{ends[0]:.1f} … {ends[1]:.1f}"
        lines.append(
            f"{run.name:{width}}{q.j_and_f:6.1f}{q.j:6.1f}{q.f:6.1f}{agree:>7}{loss:>7}{between:>15}"
            f"{run.windows_kept:9.0%}{run.keys_kept:6.0%}"
        )
    clips = len(result.data.clips)
    lines.append(
        f"{clips} clips, mean over clips; 95 %: interval of J&F (dense) or of the loss against dense"
    )
    if not result.model.trained:
        lines.append("The weights are RANDOM: these figures say nothing about quality.")
    return "\n".join(lines)
