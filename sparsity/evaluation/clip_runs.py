"""Track one annotated clip, densely and with profiles, and hold its masks against the truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor
from sparsity.acceleration.report import Report
from sparsity.evaluation.layouts import AnnotatedClip, Masks
from sparsity.evaluation.quality import clip_quality
from sparsity.evaluation.results import ClipQuality
from sparsity.masks import merge_objects
from sparsity.profile import Profile
from sparsity.profiles import BUILTIN

DENSE = "dense"
"""Name of the run that the others are compared with."""


def evaluate_clip(
    predictor: EfficientSAM2VideoPredictor,
    clip: AnnotatedClip,
    profiles: Sequence[Profile] = (),
    *,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    force: bool = False,
) -> dict[str, ClipQuality]:
    """Track a clip densely and with every profile.

    Parameters
    ----------
    predictor
        The model; its own profile doesn't matter.
    clip
        From `open_clip`.
    profiles
        With names that differ.
    autocast
        Makes the context in which the model runs.
    force
        Use profiles that were made for another model.

    Returns
    -------
    dict
        By the profile's name; ``"dense"`` first.
    """
    truth = [clip.truth(t) for t in clip.annotations]
    positions = {frame: k for k, frame in enumerate(clip.annotations)}
    starts = {i: positions[frame] for i, frame in clip.starts.items()}
    runs = (BUILTIN[DENSE], *(p for p in profiles if p.name != DENSE))
    found: dict[str, ClipQuality] = {}
    dense: list[Masks] | None = None
    for profile in runs:
        with predictor.use(profile, force=force), autocast():
            masks, report = track(predictor, clip)
        found[profile.name] = clip_quality(
            masks,
            truth,
            clip.objects,
            dense,
            starts=starts,
            windows_kept=report.windows_share,
            keys_kept=report.keys_share,
            prunable_keys_kept=report.prunable_keys_share,
        )
        dense = dense or masks
    return found


def track(
    predictor: EfficientSAM2VideoPredictor, clip: AnnotatedClip
) -> tuple[list[Masks], Report]:
    """Track a clip from its objects' first masks with the profile in use.

    Objects that are prompted on the same frame are tracked together; those that come later have a pass of
    their own, so that nothing is tracked before its prompt.

    Returns
    -------
    masks : list
        Of the annotated frames.
    report : Report
        Of all passes.
    """
    passes = [_Pass(predictor, clip, start) for start in sorted(set(clip.starts.values()))]
    masks: list[Masks] = []
    for frame in range(clip.num_frames):
        logits: dict[int, NDArray[np.float32]] = {}
        for tracked in passes:
            if frame >= tracked.start:
                logits |= tracked.step()
        if frame in clip.annotations:
            masks.append(_masks(clip, logits))
    report, *others = (predictor.report(tracked.state) for tracked in passes)
    for other in others:
        report.frames.extend(other.frames)
    return masks, report


class _Pass:
    """Objects that are prompted on the same frame, on their way through a clip."""

    def __init__(
        self, predictor: EfficientSAM2VideoPredictor, clip: AnnotatedClip, start: int
    ) -> None:
        self.start = start
        self.state = predictor.init_state(clip.video, history="bounded")
        for object_id, mask in clip.prompts(start).items():
            predictor.add_new_mask(self.state, start, object_id, mask)
        self.frames = predictor.propagate_in_video(self.state, start_frame_idx=start)

    def step(self) -> dict[int, NDArray[np.float32]]:
        """Track into the next frame; logits ``[H, W]`` by object id."""
        _, ids, logits = next(self.frames)
        return dict(zip(ids, logits[:, 0].float().cpu().numpy(), strict=True))


def _masks(clip: AnnotatedClip, logits: dict[int, NDArray[np.float32]]) -> Masks:
    """Turn logits by object id into the kind of masks that the clip's truth is."""
    shape = (clip.video.height, clip.video.width)
    if clip.layered:
        absent = np.zeros(shape, bool)
        return np.stack([logits[i] > 0 if i in logits else absent for i in clip.objects])
    if not logits:
        return np.zeros(shape, np.uint8)
    return merge_objects(np.stack(list(logits.values())), list(logits))
