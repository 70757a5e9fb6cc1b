"""What memory policies and carried features do on made clips: J&F, identity swaps, objects found again, CPU seconds.

    python benchmarks/made_clips.py policies                 write benchmarks/policies.json, going on where it was interrupted
    python benchmarks/made_clips.py cadence                  write benchmarks/cadence.json
    python benchmarks/made_clips.py policies --bases exact   with these profiles alone; --seeds: on these clips
    python benchmarks/made_clips.py policies --table         print the table of what was measured

The demo model at 256 pixels, one core. Clips are made, so their masks are exact.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from probes import build_predictor
from probes.estimates import over_clips
from probes.files import write_text
from sparsity import accelerate
from sparsity.clips.made import Clip, make_clip
from sparsity.evaluation.quality import score_masks
from sparsity.profile import BUILTIN, FURTHER, Profile
from sparsity.techniques.memory_policy import MemoryPolicy
from sparsity.techniques.routing import Routing

HERE = Path(__file__).parent
FRAMES, SIZE, IMAGE_SIZE = 40, (144, 256), 256
SEEDS = *range(6), *range(12, 18)
"""Of the clips that are measured; settings were tried on those between."""
BASES = ("exact", "paper", "recommended")
KINDS: tuple[str, ...] = get_args(MemoryPolicy.model_fields["kind"].annotation)
STABLE, STABLE_BELOW = "stable masks", 0.7
SECOND = "every second frame"

POLICIES = (*KINDS, STABLE)
ROWS = {"policies": POLICIES, "cadence": (KINDS[0], SECOND)}
"""What is measured on top of each profile; the first one is the profile as it is."""

OBJECTS = {
    "policies": {"occlusion": 2, "leave_and_return": 2, "distractors": 4, "scene_cut": 2},
    "cadence": {"static_camera": 1, "smooth": 1, "fast": 1},
}
"""Kinds of clips, with the number of their objects."""

FOUND, WITHIN = 0.5, 5
"""An object is found again where its J reaches this on one of so many frames after it came back."""

SWAPPED = 0.25
"""J with another object's true mask from which, where it is above that with its own, a mask is that object's."""

Masks = NDArray[np.uint8]


def profile_of(base: str, row: str) -> Profile:
    """A profile with what a row adds to it, named after both."""
    profile = BUILTIN[base]
    if row == KINDS[0]:
        return profile
    if row == SECOND:
        if profile.routing is None:
            return profile.model_copy(update={"routing": Routing(unit="frame", every=2)})
        return FURTHER[SECOND](profile)
    policy = MemoryPolicy(kind=row) if row != STABLE else MemoryPolicy(stable_below=STABLE_BELOW)
    return profile.model_copy(update={"name": f"{base}, {row}", "memory_policy": policy})


def tracked(fast: Any, clip: Clip, features: dict[int, Any]) -> list[Masks]:
    """Track a clip from its first masks; `features` that are given are not computed again."""
    objects = range(1, clip.absent.shape[1] + 1)
    found = []
    with torch.inference_mode():
        state = fast.init_state(clip.frames, history="bounded")
        state["cached_features"].update(features)
        for i in objects:
            fast.add_new_mask(state, 0, i, clip.masks[0] == i)
        for _, ids, logits in fast.propagate_in_video(state):
            best = logits[:, 0].float().numpy()
            ids_there = np.asarray(ids, np.uint8)[best.argmax(0)]
            found.append(np.where(best.max(0) > 0, ids_there, 0).astype(np.uint8))
    return found


def features_of(fast: Any, clip: Clip) -> dict[int, Any]:
    """Features of all frames, which runs that compute whole frames share."""
    with torch.inference_mode():
        state, found = fast.init_state(clip.frames), {}
        for t in range(len(clip.frames)):
            fast._get_image_feature(state, t, 1)
            found[t] = state["cached_features"][t]
    return found


def figures(clip: Clip, found: Sequence[Masks]) -> dict[str, float]:
    """J&F, frames on which an object's mask is another's, objects that came back, and how many of them were found."""
    objects = range(1, clip.absent.shape[1] + 1)
    scores = score_masks(found[1:], list(clip.masks[1:]), objects)
    j = {(i, k): _j(found, clip.masks, i, k) for i in objects for k in objects}
    swaps = back = again = 0
    for i in objects:
        others = [j[i, k] for k in objects if k != i]
        if others:
            most = np.max(others, 0)
            taken = (most > SWAPPED) & (most > j[i, i])
            swaps += int((taken[1:] & ~taken[:-1]).sum())
        gone = clip.absent[:, i - 1]
        for t in np.flatnonzero(gone[:-1] & ~gone[1:]) + 1:
            back += 1
            again += bool((j[i, i][t : t + WITHIN][~gone[t : t + WITHIN]] >= FOUND).any())
    mean = float(np.mean([value for pair in scores.values() for value in pair]))
    return {"jf": mean, "swaps": swaps, "back": back, "found": again}


def _j(found: Sequence[Masks], truth: NDArray[np.uint8], i: int, k: int) -> NDArray[np.float64]:
    """J of found masks of object `i` with true ones of `k`, by frame; 0 where both are empty."""
    pairs = [(one == i, true == k) for one, true in zip(found, truth, strict=True)]
    return np.array([(a & b).sum() / max(1, (a | b).sum()) for a, b in pairs])


def table(rows: dict[str, dict[str, float]], what: str) -> str:
    """J&F against the same profile as it is, with intervals over seeds; swaps; found again; CPU seconds."""
    heads = "profile", "row", "clips", "J&F", "against it", "swaps", "found again", "CPU s", "ratio"
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for base in BASES:
        for row in ROWS[what]:
            for name in OBJECTS[what]:
                pairs = pairs_of(rows, what, name, base, row)
                if not pairs:
                    continue
                gain = over_clips([mine["jf"] - as_is["jf"] for mine, as_is in pairs])
                total = {key: sum(mine[key] for mine, _ in pairs) for key in pairs[0][0]}
                ratio = sum(as_is["cpu"] for _, as_is in pairs) / total["cpu"]
                cells = [base, row, name, f"{total['jf'] / len(pairs):.1f}"]
                cells.append(f"{gain.mean:+.1f} [{gain.low:.1f}, {gain.high:.1f}]")
                cells += [f"{total['swaps']:.0f}", f"{total['found']:.0f} of {total['back']:.0f}"]
                cells += [f"{total['cpu']:.0f}", f"{ratio:.2f}x"]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def pairs_of(
    rows: dict[str, dict[str, float]], what: str, name: str, base: str, row: str
) -> list[tuple[dict[str, float], dict[str, float]]]:
    """Figures of one row and of the profile as it is, for each seed that was measured of a kind of clips."""
    keys = [(_key(name, s, base, row), _key(name, s, base, ROWS[what][0])) for s in SEEDS]
    return [(rows[a], rows[b]) for a, b in keys if a in rows and b in rows]


def _key(name: str, seed: int, base: str, row: str) -> str:
    return f"{name}/{seed}/{base}/{row}"


def measure(
    what: str, bases: Sequence[str], seeds: Sequence[int], document: dict[str, Any], out: Path
) -> None:
    """Measure what is not there yet, and write it row by row."""
    rows = document["rows"]
    fast = accelerate(build_predictor("demo", device="cpu", image_size=IMAGE_SIZE), "exact")
    for base in bases:
        for seed in seeds:
            for name, objects in OBJECTS[what].items():
                left = [row for row in ROWS[what] if _key(name, seed, base, row) not in rows]
                if not left:
                    continue
                clip = make_clip(name, seed, FRAMES, SIZE, objects)
                shared = what == "policies" and BUILTIN[base].routing is None
                features = features_of(fast, clip) if shared else {}
                for row in left:
                    with fast.use(profile_of(base, row)):
                        begun = time.process_time()
                        found = tracked(fast, clip, features)
                        cpu = time.process_time() - begun
                    rows[_key(name, seed, base, row)] = figures(clip, found) | {"cpu": cpu}
                    write_text(out, json.dumps(document, indent=1))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=[*ROWS])
    parser.add_argument("--bases", nargs="+", choices=BASES, default=BASES)
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=SEEDS)
    parser.add_argument("--table", action="store_true", help="print the table, measure nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    out, profiles = (
        HERE / f"{options.what}.json",
        [profile_of("exact", r) for r in ROWS[options.what]],
    )
    made = {
        "model": "demo", "image_size": IMAGE_SIZE, "frames": FRAMES, "size": [*SIZE], "objects": OBJECTS[options.what],
        "profiles": [profile.model_dump(mode="json", by_alias=True, exclude_defaults=True) for profile in profiles],
    }  # fmt: skip
    document: dict[str, Any] = {"made": made, "rows": {}}
    if out.exists():
        document = json.loads(out.read_text(encoding="utf-8"))
        if document["made"] != made:
            raise SystemExit(f"{out} was measured with other settings; move it away")
    if not options.table:
        measure(options.what, options.bases, options.seeds, document, out)
    print(table(document["rows"], options.what))


if __name__ == "__main__":
    main()
