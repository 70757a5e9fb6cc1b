"""Measure what the demo model can and can't do, and whether it is worth probing.

    python -m benchmarks.demo_model --out FILE.json
    python -m benchmarks.demo_model --davis FOLDER --list clips.txt --out FILE.json

Without FOLDER, which is of DAVIS layout, made clips are measured: 24 frames of 288 x 512, their
textures not those of training. Frames are 384 x 384 for the model, masks are scored at the
original resolution, first and last frame left out, in the precision of training (bfloat16 where
the CPU has it). Of real clips the first 24 frames are taken ("real_short"); ``efficient-sam2
evaluate`` tracks them whole. Every part is written when it is done, and the same command goes on with
the next one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from vos_benchmark.evaluator import Evaluator

from benchmarks.demo_watchers import Cut, Survey, Swap
from probes.files import write_text
from probes.models import build_predictor, fingerprint
from sparsity.clips.layouts import clip_names, listed_names
from sparsity.clips.made import CLIP_NAMES, make_clip
from sparsity.clips.sources import ClipSource
from training.network import autocast
from training.teaching import AttentionTeacher
from training.train import jaccard
from training.unroll import Unrolled, encode, track_frame, unroll

SIDE = 384
SHORT = 24  # frames of a real clip


@dataclass
class Material:
    """A clip for the model and its truth: frames [1, T, 3, S, S], masks [1, T, O, S, S]."""

    name: str
    frames: torch.Tensor
    masks: torch.Tensor
    truth: np.ndarray  # uint8 [T, H, W], ids of `objects`
    objects: list[int]


def squeeze(images: torch.Tensor) -> torch.Tensor:
    """Resize [N, C, H, W] to the model's square."""
    return F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True)


def prepare(name: str, frames: np.ndarray, truth: np.ndarray) -> Material:
    """Squeeze a clip (uint8 [T, H, W, 3], [T, H, W]) to the model's square."""
    objects = [int(i) for i in np.unique(truth[0]) if i]
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    layers = torch.stack([torch.from_numpy(truth == i) for i in objects], 1).float()
    masks = squeeze(layers) >= 0.5
    return Material(name, squeeze(pixels)[None], masks[None], truth, objects)


def read(root: Path, name: str) -> Material:
    """Read the first frames of a clip of a data set."""
    clip = ClipSource(dataset=root).open(name)
    assert clip.truth is not None, "clips of a data set are annotated"
    times = range(min(SHORT, clip.num_frames))
    frames = np.stack([clip.video.frame(t) for t in times])
    return prepare(name, frames, np.stack([clip.truth[t] for t in times]))


def made(name: str, seeds: range) -> list[Material]:
    """Make clips of a difficulty."""
    clips = {seed: make_clip(name, seed) for seed in seeds}
    return [prepare(f"{name}/{seed}", c.frames, c.masks) for seed, c in clips.items()]


class Subject:
    """The model under measurement."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.teacher = AttentionTeacher()

    @torch.no_grad()
    def track(self, material: Material, watcher: Any = None) -> Unrolled:
        """Track from the first frame's masks; a watcher sees attention written out."""
        self.teacher.bias = None
        attached = watcher is not None
        if attached:
            self.teacher.attach(self.model)
        try:
            with autocast("cpu"):
                return unroll(
                    self.model,
                    material.frames,
                    material.masks,
                    teacher=self.teacher if attached else None,
                    watcher=watcher,
                )
        finally:
            if attached:
                self.teacher.detach(self.model)

    def quality(self, material: Material, watcher: Any = None) -> dict[str, float]:
        """Track and score."""
        return score(self.track(material, watcher), material)


def score(out: Unrolled, material: Material) -> dict[str, float]:
    """Score a material's objects, the first that were tracked, at the original resolution: J, F and their mean, in %."""
    evaluator, size = Evaluator(), material.truth.shape[1:]
    for step in out.steps[:-1]:
        best = step.best[: len(material.objects)].float()
        value, which = F.interpolate(best, size=size, mode="bilinear")[:, 0].max(0)
        found = torch.where(value > 0, torch.tensor(material.objects)[which], 0)
        truth = material.truth[step.frame]
        truth = np.where(np.isin(truth, material.objects), truth, 0)
        evaluator.feed_frame(found.numpy().astype(np.uint8), truth)
    j, f = (float(np.mean(list(each.values()))) for each in evaluator.conclude())
    return {"j_and_f": (j + f) / 2, "j": j, "f": f}


def mean_quality(subject: Subject, clips: list[Material], make: Any = None) -> dict[str, Any]:
    """Return the mean over clips and every clip's J&F."""
    each = {c.name: subject.quality(c, make() if make else None) for c in clips}
    means = {
        k: round(float(np.mean([q[k] for q in each.values()])), 1) for k in ("j_and_f", "j", "f")
    }
    return {**means, "each": {n: round(q["j_and_f"], 1) for n, q in each.items()}}


def swapped(subject: Subject, clips: list[Material]) -> float:
    """Return the mean J&F when each clip is given the memory of the next (first objects)."""
    scores = []
    for clip, other in zip(clips, clips[1:] + clips[:1], strict=True):
        length = min(clip.frames.shape[1], other.frames.shape[1])
        pair = Material(
            clip.name,
            torch.cat([clip.frames[:, :length], other.frames[:, :length]]),
            torch.cat([clip.masks[:, :length, :1], other.masks[:, :length, :1]]),
            clip.truth[:length],
            clip.objects[:1],
        )
        scores.append(subject.quality(pair, Swap(subject.teacher))["j_and_f"])
    return round(float(np.mean(scores)), 1)


@torch.no_grad()
def prompts(subject: Subject, clips: list[Material]) -> dict[str, float]:
    """Return the mean J of frame 0 from one central click and from the tight box."""
    scores: dict[str, list[float]] = {"click": [], "box": []}
    for clip in clips:
        for i in range(len(clip.objects)):
            mask = clip.masks[0, 0, i].numpy()
            depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
            y, x = np.unravel_index(depth.argmax(), mask.shape)
            rows, columns = np.nonzero(mask)
            corners = [[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]]
            points = {"click": [[x + 0.5, y + 0.5]], "box": corners}
            for kind, coordinates in points.items():
                labels = {"click": [1], "box": [2, 3]}[kind]
                prompt = {
                    "point_coords": torch.tensor([coordinates]).float(),
                    "point_labels": torch.tensor([labels], dtype=torch.int32),
                }
                found = first_frame(subject.model, clip.frames[:, 0], prompt)
                truth = clip.masks[0, :1, i]
                scores[kind].append(100 * jaccard(found[0] > 0, truth).item())
    return {kind: round(float(np.mean(values)), 1) for kind, values in scores.items()}


def first_frame(model: Any, frame: torch.Tensor, prompt: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the mask logits [1, 1, S, S] of a prompted frame without memory."""
    with autocast("cpu"):
        _, _, heads = track_frame(model, 0, *encode(model, frame), {}, prompt)
    return heads[4]


def presence(subject: Subject, clips: list[Material]) -> dict[str, float]:
    """Score "absent" as a finding over all frames after the first: precision, recall, F1."""
    hits = wrong = missed = 0
    for clip in clips:
        out = subject.track(clip)
        truly = ~out.targets.flatten(2).any(-1)
        for step in out.steps:
            said = step.score[:, 0] <= 0
            hits += int((said & truly[:, step.frame]).sum())
            wrong += int((said & ~truly[:, step.frame]).sum())
            missed += int((~said & truly[:, step.frame]).sum())
    precision, recall = hits / max(1, hits + wrong), hits / max(1, hits + missed)
    f1 = 2 * hits / max(1, 2 * hits + wrong + missed)
    return {"precision": round(precision, 3), "recall": round(recall, 3), "f1": round(f1, 3)}


def twins(subject: Subject, seeds: range) -> dict[str, float]:
    """Prompt the one look-alike, then the other, each alone: mean J of each way."""
    ways: dict[str, list[float]] = {"first": [], "second": []}
    for seed in seeds:
        clip = make_clip("distractors", seed)
        for way, i in (("first", 1), ("second", 2)):
            alone = prepare(f"{seed}", clip.frames, (clip.masks == i).astype(np.uint8))
            ways[way].append(subject.quality(alone)["j"])
    return {way: round(float(np.mean(values)), 1) for way, values in ways.items()}


def cuts(
    subject: Subject, clips: list[Material], group: str, shares: tuple[float, ...]
) -> dict[str, float]:
    """Return the mean J&F with a group of memory frames cut by rule and share."""
    figures = {}
    if group == "older":
        figures["without"] = mean_quality(
            subject, clips, lambda: Cut(subject.teacher, group, "salient", 0.0)
        )["j_and_f"]
    for rule in ("salient", "random"):
        for share in shares:
            quality = mean_quality(
                subject, clips, lambda r=rule, s=share: Cut(subject.teacher, group, r, s)
            )
            figures[f"{rule}_{share:.0%}"] = quality["j_and_f"]
    return figures


def survey(subject: Subject, clips: list[Material]) -> dict[str, Any]:
    """Return how attention is spread, over all clips."""
    seen = Survey(subject.teacher, subject.model)
    for clip in clips:
        seen.last = []
        targets = clip.masks.transpose(1, 2).flatten(0, 1).float()
        seen.occupied = F.avg_pool2d(targets, 16).flatten(2)
        subject.track(clip, seen)
    return seen.result()


@dataclass
class Report:
    """The figures so far; each is written to the file when it is there, and measured only once."""

    path: Path
    figures: dict[str, Any]

    def resume(self) -> None:
        """Take over what the file holds, if it is about the same model."""
        if self.path.exists():
            found = json.loads(self.path.read_text())
            if all(found.get(name) == value for name, value in self.figures.items()):
                self.figures = found

    def add(self, name: str, measure: Callable[..., Any], *given: Any) -> None:
        """Measure, show and write a figure that is not there yet."""
        if name in self.figures:
            return
        torch.manual_seed(0)  # random cuts
        self.figures[name] = measure(*given)
        write_text(self.path, json.dumps(self.figures, indent=1))
        print(name, json.dumps(self.figures[name]), flush=True)


def measure_real(subject: Subject, report: Report, real: list[Material]) -> None:
    """Add what real clips show."""
    report.add("real_prompts_frame_0_j", prompts, subject, real)
    report.add("real_short", mean_quality, subject, real)
    report.add("real_short_swapped_memory", swapped, subject, real)
    report.add("real_short_all_cut", cuts, subject, real, "all", (0.05,))
    report.add("real_short_older", cuts, subject, real, "older", ())
    report.add("real_short_attention", survey, subject, real)


def measure_made(subject: Subject, report: Report, seeds: range) -> None:
    """Add what made clips show."""
    for name in ("smooth", "occlusion", "leave_and_return", "distractors", "changing_look"):
        report.add(name, mean_quality, subject, made(name, seeds))
    report.add("absence", presence, subject, made("leave_and_return", seeds))
    report.add("twins_j", twins, subject, seeds)
    report.add("distractors_all_cut", cuts, subject, made("distractors", seeds), "all", (0.05,))
    for name in ("changing_look", "occlusion"):
        report.add(f"{name}_older", cuts, subject, made(name, seeds), "older", (0.05,))
    report.add("changing_look_attention", survey, subject, made("changing_look", seeds))
    for name in CLIP_NAMES:
        report.add(name, mean_quality, subject, made(name, seeds))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--davis", type=Path, help="measure real clips instead of made ones")
    parser.add_argument("--list", type=Path, help="clip names; default: all of the folder")
    parser.add_argument("--checkpoint", type=Path, help="default: the weights that come along")
    parser.add_argument("--seeds", type=int, default=6, help="made clips per difficulty")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model = build_predictor("demo", checkpoint=options.checkpoint, device="cpu")
    subject = Subject(model)
    report = Report(
        options.out, {"model": fingerprint(model), "seeds_of_made_clips": options.seeds}
    )
    report.resume()
    if options.davis is None:
        measure_made(subject, report, range(options.seeds))
        return
    names = clip_names(options.davis, options.list and listed_names(options.list))
    measure_real(subject, report, [read(options.davis, name) for name in names])


if __name__ == "__main__":
    main()
