"""Real runs: each clip densely and with each candidate profile, and what that costs in J&F."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsity.acceleration.build import shared_predictor as shared_predictor
from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor
from sparsity.acceleration.report import Report
from sparsity.calibration.clips import CalibrationClip, ClipSource
from sparsity.calibration.drift import since_dense
from sparsity.evaluation.quality import agreement, score_masks
from sparsity.masks import Ids, merge_objects
from sparsity.options import ModelChoice
from sparsity.profile import Profile
from sparsity.profiles import BUILTIN, parse_profile


@dataclass(frozen=True)
class Outcome:
    """One profile on one clip.

    Attributes
    ----------
    loss
        J&F of the dense run less this one's, in points; without true masks, 100 less its J&F with the dense
        run's masks.
    j_and_f
        Against the true masks, or the dense run's where there are none.
    agreement
        Mean J with the dense run's masks, in per cent.
    windows, keys, prunable
        Shares computed and read; dense frames count as 1.
    seconds
        Median of a tracked frame.
    rescued
        Frames that the guard rescued, with its rule.
    since_dense
        Of each routed frame: frames since the last dense one, and agreement in per cent.
    """

    loss: float
    j_and_f: float
    agreement: float
    windows: float
    keys: float
    prunable: float
    seconds: float
    rescued: dict[int, str]
    since_dense: list[tuple[int, float]]


def run_clip(
    predictor: EfficientSAM2VideoPredictor, clip: CalibrationClip, profiles: tuple[Profile, ...]
) -> dict[str, Outcome]:
    """Track a clip densely (exact arithmetic) and with every profile; the first entry is the dense run's."""
    dense, report, seconds = _track(predictor, clip, BUILTIN["exact"])
    truth = list(clip.truth or dense)
    base = j_and_f(dense, truth, clip.objects)
    found = {"exact": Outcome(0.0, base, 100.0, 1.0, 1.0, 1.0, seconds, {}, [])}
    for profile in profiles:
        masks, report, seconds = _track(predictor, clip, profile)
        quality = j_and_f(masks, truth, clip.objects)
        agreed = agreement(masks[1:-1], dense[1:-1], clip.objects)
        found[profile.name] = Outcome(
            base - quality,
            quality,
            float(np.mean(list(agreed.values()))),
            report.windows_share,
            report.keys_share,
            report.prunable_keys_share,
            seconds,
            report.rescued,
            since_dense(report.frames, masks, dense, clip.objects),
        )
    return found


def _track(
    predictor: EfficientSAM2VideoPredictor, clip: CalibrationClip, profile: Profile
) -> tuple[list[Ids], Report, float]:
    """Masks of all frames, the report, and the median seconds of a tracked frame."""
    seconds: list[float] = []
    masks: list[Ids] = []
    with predictor.use(profile, force=True):
        state = predictor.init_state(clip.video, history="bounded")
        for object_id, mask in clip.prompts().items():
            predictor.add_new_mask(state, 0, object_id, mask)
        start = time.perf_counter()
        for _, ids, logits in predictor.propagate_in_video(state):
            masks.append(merge_objects(logits[:, 0].float().cpu().numpy(), ids))
            seconds.append(time.perf_counter() - start)
            start = time.perf_counter()
        return masks, predictor.report(state), statistics.median(seconds[2:])


def j_and_f(found: list[Ids], truth: list[Ids], objects: tuple[int, ...]) -> float:
    """Mean J&F over objects; the first and the last frame are left out."""
    scores = score_masks(found[1:-1], truth[1:-1], objects)
    return float(np.mean([(j + f) / 2 for j, f in scores.values()]))


@dataclass(frozen=True)
class Runs:
    """What is done with one clip, in whatever process takes it; see `sparsity.evaluation.jobs.map_clips`.

    Attributes
    ----------
    profiles
        As JSON.
    """

    source: ClipSource
    choice: ModelChoice
    profiles: tuple[str, ...]

    def __call__(self, name: str) -> dict[str, Any]:
        predictor = shared_predictor(self.choice)
        profiles = tuple(parse_profile(text) for text in self.profiles)
        with self.choice.autocast(predictor.device.type):
            found = run_clip(predictor, self.source.open(name), profiles)
        return {run: asdict(outcome) for run, outcome in found.items()}


def losses(found: dict[str, dict[str, Any]], names: list[str]) -> NDArray[np.float64]:
    """Loss by clip and profile, ``[clips, profiles]``, of what `Runs` returned."""
    return np.array([[runs[name]["loss"] for name in names] for runs in found.values()])
