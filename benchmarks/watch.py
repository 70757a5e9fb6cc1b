"""What frames lose against a dense shadow on the same memory: easy made clips, and harder ones.

``python benchmarks/watch.py --out benchmarks/watch_losses.json`` takes some three minutes on two cores. Tests draw streams
from it whose difficulty jumps, see ``tests/sparsity/acceleration/test_watch.py``. The profile leaves out much and has no
guard; so much is allowed that nothing ends in a safer setting.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from probes.files import write_text
from probes.frames import Pixels
from sparsity import accelerate
from sparsity.clips.made import make_clip
from sparsity.profile import Profile, Promise
from sparsity.techniques.adapter import Adapter
from sparsity.techniques.retrieval import Retrieval
from sparsity.techniques.routing import Routing
from sparsity.work.model import ModelChoice, shared_predictor

FRAMES, SIZE, SEED, REACH = 50, (144, 256), 5, 24

PROFILE = Profile(
    name="narrow",
    exact=True,
    routing=Routing(margin_px=0.0, candidates="best", score_below=-100.0),
    retrieval=Retrieval(),
    adapter=Adapter(kind="cached"),
    promise=Promise(mean_loss=0, upper_bound=50, confidence=0.95, method="none", clips=1),
)


def shaken(frames: Pixels) -> Pixels:
    """Frames from a camera that shakes, by up to `REACH` pixels; all but the first."""
    rng = np.random.default_rng(SEED)
    steps = rng.integers(-REACH, REACH + 1, (len(frames), 2))
    steps[0] = 0
    return np.stack(
        [np.roll(f, (y, x), (0, 1)) for f, (y, x) in zip(frames, steps.tolist(), strict=True)]
    )


CLIPS: dict[str, tuple[str, int, Callable[[Pixels], Pixels] | None]] = {
    "smooth": ("smooth", 1, None),
    "static_camera": ("static_camera", 1, None),
    "fast": ("fast", 1, None),
    "fast, 4 times as fast": ("fast", 4, None),
    "distractors, shaken": ("distractors", 1, shaken),
}
"""By name: the made clip, how many times as fast it is played, and what else is done to it."""

EASY, HARD = ("smooth", "static_camera", "fast"), ("distractors, shaken",)

ROOM = 1.5
"""Times what the easy clip that lost most loses: the level. Calibration takes its drift, which is more than frames lose."""


def losses(name: str, times: int, change: Callable[[Pixels], Pixels] | None) -> list[float]:
    """Points of agreement that tracked frames of a clip lose."""
    clip = make_clip(name, seed=SEED, frames=FRAMES * times, size=SIZE)
    frames = clip.frames[::times]
    fast = accelerate(shared_predictor(ModelChoice("demo", image_size=256)), PROFILE, watch=1.0)
    state = fast.init_state(frames if change is None else change(frames), history="bounded")
    for i in np.unique(clip.masks[0])[1:]:
        fast.add_new_mask(state, 0, int(i), clip.masks[0] == i)
    for _ in fast.propagate_in_video(state):
        pass
    found = fast.report(state).watch
    assert found is not None
    return [round(shadow.loss, 2) for shadow in found.shadows]


def main() -> None:
    """Record and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    clips = {}
    for name, how in CLIPS.items():
        clips[name] = losses(*how)
        print(f"{name}: {np.mean(clips[name]):.2f} points on average", flush=True)
    level = ROOM * max(float(np.mean(clips[name])) for name in EASY)
    found: dict[str, Any] = {"profile": PROFILE.name, "seed": SEED, "level": round(level, 2)}
    found |= {"easy": EASY, "hard": HARD, "clips": clips}
    write_text(given.out, json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
