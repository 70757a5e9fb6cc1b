"""What frames lose against a dense shadow on the same memory: made clips as they are, and the same played several times as fast.

``python benchmarks/watch.py --out benchmarks/watch_losses.json`` takes some 15 minutes on two cores. Tests draw streams from
it whose difficulty jumps, see ``tests/sparsity/acceleration/test_watch.py``. Most frames have a shadow here, and so much is
allowed that nothing ends in a safer setting.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from probes.files import write_text
from sparsity import accelerate
from sparsity.acceleration.watch import level_of
from sparsity.clips.made import make_clip
from sparsity.profile import Profile, load_profile
from sparsity.work.model import ModelChoice, shared_predictor

FRAMES, SIZE, SEED = 40, (144, 256), 5

EASY = ("smooth", "fast", "static_camera", "distractors")

HARD = {"smooth": 7, "fast": 5}
"""Times as fast: objects move on by more than the margin of the profile."""


def losses(name: str, times: int, profile: Profile) -> list[float]:
    """Points of agreement that tracked frames of a clip lose."""
    clip = make_clip(name, seed=SEED, frames=FRAMES * times, size=SIZE)
    fast = accelerate(shared_predictor(ModelChoice("demo")), profile, watch=1.0)
    state = fast.init_state(clip.frames[::times], history="bounded")
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
    profile = load_profile("demo")
    assert profile.promise is not None
    lenient = profile.model_copy(
        update={"promise": profile.promise.model_copy(update={"upper_bound": 50.0})}
    )
    clips, hard = {}, []
    for name, times in [*((name, 1) for name in EASY), *HARD.items()]:
        called = name if times == 1 else f"{name}, {times} times as fast"
        clips[called] = losses(name, times, lenient)
        hard += [called] * (times > 1)
        print(f"{called}: {np.mean(clips[called]):.2f} points on average", flush=True)
    found = {
        "profile": "demo",
        "level": level_of(profile),
        "seed": SEED,
        "hard": hard,
        "clips": clips,
    }
    write_text(given.out, json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
