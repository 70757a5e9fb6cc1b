"""Does attention tell when tracking is about to fail, beyond the object score? Fitted and judged by clip.

    python benchmarks/failure.py DAVIS-train --work FOLDER
    python benchmarks/failure.py DAVIS-train --dev DAVIS-dev --work FOLDER --fit sparsity/demo/failure.json

Clips to fit on are those of DAVIS-train/calibrate.txt and made ones, on which the demo model was not trained; and as it seldom
fails there, all of DAVIS-train at every third frame, on 18 of which it was. What a
tracked clip gives lies in FOLDER; a second start goes on. `--dev` names clips for the final figure: they choose nothing. Writes
benchmarks/failure.json, from which notebook 08 draws.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from probes.files import write_text
from probes.models import fingerprint
from probes.video import open_video
from sparsity.clips.made import CLIP_NAMES, make_clip
from sparsity.clips.sources import Clip, ClipSource, clip_of
from sparsity.evaluation.failure import (
    KINDS,
    Row,
    fit_failure,
    judge,
    labels,
    out_of_clip,
    reliability,
    rows_of,
)
from sparsity.techniques.failure import RUN_FEATURES, WRONG_BELOW
from sparsity.work.model import ModelChoice, shared_stock

OUT = Path(__file__).with_suffix(".json")

SEED, HARD_SEEDS = 11, (21, 22)
"""Of made clips."""

HARD = ("tiny", "occlusion", "leave_and_return", "fast")
"""Made clips in which the demo model loses objects most."""

HARD_OBJECTS, HARD_FRAMES = 3, 20

STRIDE = 3
"""Of the frames that hurried clips take."""

HURRIED = "-fast"
"""Ends the name of a hurried clip, which counts as one clip with the one it is of."""


def made_clips(frames: int) -> Iterator[Clip]:
    """Make clips of every difficulty, and of the harder ones more, with several objects."""
    wanted: list[tuple[str, int, int | None]] = [(name, SEED, None) for name in CLIP_NAMES]
    wanted += [(name, seed, HARD_OBJECTS) for seed in HARD_SEEDS for name in HARD]
    for name, seed, objects in wanted:
        length = frames if objects is None else HARD_FRAMES
        made = make_clip(name, seed=seed, frames=length, objects=objects)
        truth = dict(enumerate(made.masks))
        yield clip_of(f"made-{name}-{seed}", open_video(made.frames), truth[0], truth)


def annotated(root: Path) -> Iterator[Clip]:
    """Open the clips of a data set, of its calibrate.txt where it has one."""
    source, listed = ClipSource(dataset=root), root / "calibrate.txt"
    names = listed.read_text(encoding="utf-8").split() if listed.is_file() else source.names()
    for name in names:
        yield source.open(name)


def hurried(root: Path) -> Iterator[Clip]:
    """Take every third frame of all clips of a data set: objects move as fast as makes a tracker lose them."""
    source = ClipSource(dataset=root)
    for name in source.names():
        clip = source.open(name)
        assert clip.truth is not None, "it is annotated"
        at = range(0, clip.num_frames, STRIDE)
        truth = {k: clip.truth[frame] for k, frame in enumerate(at)}
        frames = np.stack([clip.video.frame(frame) for frame in at])
        yield clip_of(f"{name}{HURRIED}", open_video(frames), truth[0], truth)


def gathered(clips: Iterator[Clip], frames: int, folder: Path) -> list[Row]:
    """Track clips, or read what was found of them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for clip in clips:
        file = folder / f"{clip.name}.json"
        if not file.is_file():
            found = rows_of(shared_stock(ModelChoice()), clip, frames)
            write_text(file, json.dumps(found))
            print(clip.name, len(found), flush=True)
        for row in json.loads(file.read_text(encoding="utf-8")):
            rows.append({**row, "source": row["clip"].removesuffix(HURRIED)})
    return rows


AHEAD = 5
"""Frames within which a mask that is right may become wrong."""

QUESTIONS = {"now": 0, "ahead": AHEAD}

CURVES = ("score", "run", "run and attention")
"""Whose reliability is drawn."""


def plain(judgement: Any) -> Any:
    """Turn dataclasses into what JSON holds: rounded, and null for NaN."""
    if is_dataclass(judgement) and not isinstance(judgement, type):
        return {key: plain(value) for key, value in vars(judgement).items()}
    if isinstance(judgement, float):
        return None if math.isnan(judgement) else round(judgement, 4)
    return judgement


def found_of(question: int, fitted: list[Row], dev: list[Row]) -> dict[str, Any]:
    """Judge each kind of knowledge on clips that it wasn't fitted on."""
    rows, wrong = labels(fitted, question)
    sets = {"fit": (rows, wrong)} | ({"dev": labels(dev, question)} if dev else {})
    scores = {name: np.array([-row["score"] for row in own]) for name, (own, _) in sets.items()}
    said: dict[str, dict[str, Any]] = {name: {} for name in sets}
    for kind, fit in KINDS.items():
        said["fit"][kind] = out_of_clip(fit, rows, wrong)
        if dev:
            said["dev"][kind] = fit(rows, wrong)(sets["dev"][0])
    return {
        name: {
            "masks": len(sets[name][0]),
            "wrong": sum(sets[name][1]),
            "attention_adds": {
                to: plain(judge(*sets[name], by[f"{to} and attention"], without).gain)
                for to, without in (("score", scores[name]), ("run", by["run"]))
            },
            "judged": {kind: plain(judge(*sets[name], p, by["score"])) for kind, p in by.items()},
            "reliability": {
                kind: [plain(one) for one in reliability(*sets[name], by[kind])] for kind in CURVES
            },
        }
        for name, by in said.items()
    }


def main() -> None:
    """Track, fit and judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--dev", type=Path, help="data set of the final figure")
    parser.add_argument("--work", type=Path, required=True, help="for what is found clip by clip")
    parser.add_argument("--frames", type=int, default=30, help="of an annotated clip, at most")
    parser.add_argument("--made-frames", type=int, default=24)
    parser.add_argument("--fit", type=Path, help="where the model that a run uses goes")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    made, work = arguments.made_frames, arguments.work
    fitted = gathered(annotated(arguments.root), arguments.frames, work / "train")
    fitted += gathered(hurried(arguments.root), arguments.frames, work / "hurried")
    fitted += gathered(made_clips(made), made, work / "made")
    dev = []
    if arguments.dev is not None:
        dev = gathered(annotated(arguments.dev), arguments.frames, work / "dev")
    model = shared_stock(ModelChoice())
    if arguments.fit is not None:
        rows, wrong = labels(fitted)
        fit_failure(
            rows, wrong, RUN_FEATURES, fingerprint(model), model.image_size,
            clips=sorted({row["source"] for row in rows}), masks=len(rows), wrong_masks=sum(wrong),
        ).save(arguments.fit)  # fmt: skip
    answers = {name: found_of(ahead, fitted, dev) for name, ahead in QUESTIONS.items()}
    sets = {"fit": fitted} | ({"dev": dev} if dev else {})
    found: dict[str, Any] = {
        "model": "demo",
        "fingerprint": fingerprint(model),
        "frames": {"annotated": arguments.frames, "made": made},
        "ahead": AHEAD,
        "clips": {
            name: {
                "clips": len({row["source"] for row in rows}),
                "wrong_by_clip": dict(Counter(r["source"] for r in rows if r["j"] < WRONG_BELOW)),
                **{q: {key: answers[q][name][key] for key in ("masks", "wrong")} for q in answers},
            }
            for name, rows in sets.items()
        },
        **{
            part: {q: {name: of[part] for name, of in answers[q].items()} for q in answers}
            for part in ("judged", "attention_adds", "reliability")
        },
    }
    write_text(arguments.out, json.dumps(found, indent=1))
    for question, of in found["judged"].items():
        for name, kinds in of.items():
            for kind, one in kinds.items():
                auc, gain = one["auc"], one["gain"]
                print(
                    f"{question} {name} {kind}: AUC {auc['mean']} ({auc['low']} to {auc['high']}), gain {gain['mean']} "
                    f"({gain['low']} to {gain['high']}), Brier {one['brier']['mean']}"
                )


if __name__ == "__main__":
    main()
