"""Does calibration find what is there? Its choice beside the cheapest setting of an exhaustive grid that holds.

    python benchmarks/search.py DAVIS-train --work FOLDER

`DAVIS-train` holds JPEGImages/480p, Annotations/480p and calibrate.txt, whose eight clips are taken: as many of their first
frames as `--frames` says, each number for itself, and of the masks the first alone, so what is lost is agreement with the dense
run. Every setting of the grid runs on every clip.
Then calibration is asked for each loss of `LEVELS`, each time as the first question of these clips, and what it takes is
held beside the cheapest of the grid that holds by the same test on the same clips. Cost: operations of a frame against one
with every window and key, by the shares computed and read on the clips of the promise; int8, which calibration may take and the
grid has not, saves none of these. What is done lies in FOLDER; a second start goes on. `--levels` without a number runs the grid
alone. Writes benchmarks/search.json, by number of frames; those that are not asked for stay.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from probes.files import write_text
from sparsity.calibration.bounds import choose
from sparsity.calibration.calibrate import Workplace, calibrate, cost_of
from sparsity.calibration.cost import BASES, Cost, Setting, built_on
from sparsity.calibration.ledger import FILE
from sparsity.calibration.request import Request
from sparsity.calibration.sample import losses_of
from sparsity.calibration.thresholds import mask_only
from sparsity.clips.sources import ClipSource
from sparsity.profile import BUILTIN, Profile
from sparsity.techniques.adapter import Adapter
from sparsity.techniques.retrieval import Retrieval
from sparsity.techniques.routing import Guard
from sparsity.work.model import ModelChoice, shared_predictor, stamp_of
from sparsity.work.spread import Spread

OUT = Path(__file__).with_suffix(".json")

FRAMES = (12, 29)
"""Of each clip; 29 are all there are."""

LEVELS = (1.0, 2.0, 3.0, 5.0)
"""Points of agreement that may be lost."""

MARGINS = (0.0, 8.0, 16.0, 32.0, 64.0)

KEEPS = (0.035, 0.1, None)
"""Shares of memory tokens; None reads all."""

GUARD = Guard(scene_cut=0.12, score_below=0.0)


def exhaustive() -> list[Profile]:
    """Make the grid: every base, unit, margin and share of memory."""
    every = product(BASES, ("window", "cell"), MARGINS, KEEPS)
    found = []
    for base, unit, margin, keep in every:
        setting = Setting(
            mask_only(margin, "best", unit), GUARD, None if keep is None else Retrieval(keep=keep)
        )
        name = f"{base}, {unit}, {margin:g} px, keep {'all' if keep is None else keep}"
        found.append(built_on(BUILTIN[base], name, setting, Adapter(kind="cached")))
    return found


def first_frames(root: Path, folder: Path, names: list[str], frames: int) -> ClipSource:
    """Copy the first frames of clips, and their first masks."""
    for name in names:
        for kind, suffix, count in (("JPEGImages", "jpg", frames), ("Annotations", "png", 1)):
            files = sorted((root / kind / "480p" / name).iterdir())[:count]
            for file in files:
                to = folder / "videos" / name / file.name
                if suffix == "png":
                    to = folder / "masks" / f"{name}.png"
                if not to.exists():
                    to.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(file, to)
    return ClipSource(folder / "videos", folder / "masks")


def run_grid(place: Workplace, names: list[str]) -> dict[str, Any]:
    """Run the grid: by setting its base, and by clip points lost and shares of windows and keys."""
    profiles = exhaustive()
    runs = place.runs("grid", names, profiles)
    lost = losses_of(runs, [p.name for p in profiles], "drift")
    return {
        profile.name: {
            "base": "recommended" if profile.reuse else "paper",
            "lost": [round(float(x), 3) for x in lost[:, i]],
            "windows": shares(runs, profile.name, "windows_kept"),
            "keys": shares(runs, profile.name, "keys_kept"),
        }
        for i, profile in enumerate(profiles)
    }


def shares(runs: dict[str, Any], setting: str, of: str) -> list[float]:
    """A share by clip."""
    return [round(of_clip[setting]["quality"][of], 4) for of_clip in runs.values()]


def asked(place: Workplace, level: float, found: dict[str, Any]) -> dict[str, Any]:
    """Calibrate for a loss; what was taken, and the cheapest of the grid that holds on the clips of the promise."""
    assert place.request.source.videos is not None
    (place.request.source.videos / FILE).unlink(missing_ok=True)
    calibrated = calibrate(replace(place.request, max_drift=level), place.folder, Spread())
    report, promise = calibrated.report, calibrated.profile.promise
    assert promise is not None
    names = report["clips"]["promise"]
    index = [found["clips"].index(name) for name in names]
    costs = {base: Cost(**cost) for base, cost in found["cost"].items()}
    holding = {}
    for name, row in found["grid"].items():
        lost = np.array(row["lost"])[index][:, None]
        if choose(lost, [0], [1.0], place.request.confidence, level).index is not None:
            kept = (float(np.mean(np.array(row[of])[index])) for of in ("windows", "keys"))
            holding[name] = costs[row["base"]](*kept)
    cheapest = min(holding, key=lambda name: holding[name], default=None)
    best = 1.0 if cheapest is None else min(1.0, holding[cheapest])
    cost = 1 / (promise.expected_speedup or 1.0)
    return {
        "max_drift": level,
        "chosen": calibrated.text().splitlines()[0].partition(" ")[2].strip(),
        "cost": round(cost, 4),
        "tried": len(report["searched"]),
        "tested": len(report["tested"]),
        "cheapest": cheapest,
        "cheapest_cost": round(best, 4),
        "ratio": round(cost / best, 4),
    }


def compared(root: Path, work: Path, frames: int, levels: Sequence[float]) -> dict[str, Any]:
    """Run the grid on so many frames of each clip, then calibrate."""
    names = sorted((root / "calibrate.txt").read_text(encoding="utf-8").split())
    source = first_frames(root, work, names, frames)
    request = Request(source, tuple(names), ModelChoice(), max_drift=1.0)
    predictor = shared_predictor(request.choice)
    place = Workplace(request, work / "calibration", Spread(), stamp_of(predictor, request.choice))
    adapter = Adapter(kind="cached")
    found: dict[str, Any] = {
        "model": "demo",
        "clips": names,
        "cost": {base: vars(cost_of(place, names[0], adapter, base)[0]) for base in BASES},
        "grid": run_grid(place, names),
        "asked": [],
    }
    for level in levels:
        found["asked"].append(asked(place, level, found))
        print(frames, found["asked"][-1])
    return found


def main() -> None:
    """Compare, for each number of frames."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="for what is done clip by clip")
    parser.add_argument("--frames", type=int, nargs="+", default=FRAMES)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--levels", type=float, nargs="*", default=LEVELS)
    arguments = parser.parse_args()
    report = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
    for frames in arguments.frames:
        work = arguments.work / str(frames)
        report[str(frames)] = compared(arguments.root, work, frames, arguments.levels)
        write_text(arguments.out, json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
