"""``make demo`` and ``efficient-sam2 demo``: the whole story on made clips, with a table and a page of figures.

Probe a clip, calibrate on a few short ones, then track the first with stock sam2 and accelerated, in turn,
frame by frame. Everything that is shown is made on the spot; so few clips can't promise much, and the page says so.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from figures.player import RoutedFrame
from figures.story import Story, write_story
from figures.style import evidence
from probes.models import DEMO, build_predictor, fingerprint
from probes.recording import record
from probes.records import Recording
from sparsity.acceleration.build import accelerate
from sparsity.calibration.calibrate import Calibration, calibrate
from sparsity.calibration.clips import CalibrationClip, ClipSource
from sparsity.calibration.request import Request
from sparsity.calibration.watching import say
from sparsity.evaluation.jobs import Spread
from sparsity.masks import draw_over
from sparsity.options import ModelChoice
from sparsity.overlay import write_video
from sparsity.profile import Profile
from sparsity.profiles import load_profile, save_profile
from sparsity.runs import write_text
from sparsity.side_by_side import STOCK, Row, Run, compare, track_in_turn

SHOWN = "made-smooth-1"

MAX_DROP = 5.0
"""Points of J&F that the calibration of the demo accepts: so few clips can't promise less."""

BUDGET = 120.0
"""Seconds for the runs of that calibration; a slower machine tries fewer settings."""

WEIGHTS = Path(__file__).parent / "demo" / "weights.safetensors"
"""Of the demo model; some installations leave them out."""

MEMORY_SITES = "memory.*.cross"

RANDOM = (
    "The weights are RANDOM: no trained demo weights are installed. The object is kept by place alone, so "
    "these masks say nothing about quality, and there is nothing to calibrate; times and shares are real."
)


@dataclass(frozen=True)
class Demo:
    """What the demo found, and where it left its files."""

    rows: list[Row]
    calibration: Calibration | None
    out: Path

    def text(self) -> str:
        """Return it as a table, with the promise, or with plain words where the weights are random."""
        lines = [RANDOM, ""] if self.calibration is None else []
        lines.append(_table(self.rows))
        if self.calibration is not None:
            lines += ["", "calibrated on the spot:", self.calibration.text(), ""]
            lines.append(f"page     {self.out / 'report.html'}")
        lines.append(f"overlay  {self.out / 'overlay.mp4'}")
        return "\n".join(lines)

    def json(self) -> str:
        """Return the rows of the table as JSON."""
        rows = [asdict(row) for row in self.rows]
        return json.dumps({"random_weights": self.calibration is None, "rows": rows}, indent=1)


def run_demo(out: Path, clips: int = 5) -> Demo:
    """Probe, calibrate on `clips` made clips, track `SHOWN`; write the page, the overlay and a report into `out`.

    Raises
    ------
    InputError
        Fewer clips than a calibration needs, or the demo model's weights can't be read.
    """
    clip = ClipSource().open(SHOWN)
    random = not WEIGHTS.is_file()
    if random:
        stock = build_predictor("sam2.1-tiny", weights="random", image_size=256)
    else:
        stock = build_predictor(DEMO)
    profiles = [load_profile(name) for name in ("exact", "paper", "recommended")]
    if random:
        out.mkdir(parents=True, exist_ok=True)
        return Demo(_track(stock, clip, profiles, out)[0], None, out)
    source = ClipSource()
    request = Request(
        source, tuple(source.names(clips)), ModelChoice(DEMO), MAX_DROP, budget=BUDGET
    )
    request.check()
    say(f"1/3 probe: {SHOWN}, densely, with all of its memory attention")
    recording = _probe(stock, clip, out / "probed.recording")
    say(f"2/3 calibrate: {clips} made clips, {MAX_DROP:g} points of J&F accepted")
    found = calibrate(request, out / "calibration", Spread())
    save_profile(found.profile, out / "calibrated.json")
    say("3/3 track: stock sam2 and accelerated, in turn")
    built_in = load_profile(DEMO)
    if built_in.model == fingerprint(stock):
        profiles.append(built_in)
    rows, run = _track(stock, clip, [*profiles, found.profile], out)
    story = Story(
        _conditions(stock, clip), [asdict(row) for row in rows], run.report.profile, _routed(clip, run),
        dict(enumerate(clip.video.frame(t) for t in range(clip.video.num_frames or 0))),
    )  # fmt: skip
    write_story(out / "report.html", story, recording, found.report, evidence(DEMO))
    return Demo(rows, found, out)


def _probe(stock: Any, clip: CalibrationClip, folder: Path) -> Recording:
    """Record the clip anew."""
    shutil.rmtree(folder, ignore_errors=True)
    return record(
        stock, clip.video, clip.prompts(), out=folder, name=clip.name, model=DEMO,
        statistics=MEMORY_SITES, rows=MEMORY_SITES,
    )  # fmt: skip


def _track(
    stock: Any, clip: CalibrationClip, profiles: list[Profile], out: Path
) -> tuple[list[Row], Run]:
    """Track with stock and all profiles; write the overlay and the report of the last one that routes."""
    predictors = {STOCK: accelerate(stock, "dense")}
    predictors |= {profile.name: accelerate(stock, profile) for profile in profiles}
    runs = track_in_turn(predictors, clip)
    rows = compare(runs, clip)
    shown = runs[[profile.name for profile in profiles if profile.windows is not None][-1]]
    drawn = (draw_over(clip.video.frame(t), m) for t, m in enumerate(shown.masks))
    write_video(out / "overlay.mp4", drawn, None)
    report = {
        "conditions": _conditions(stock, clip),
        "rows": [asdict(row) for row in rows],
        "report": json.loads(shown.report.to_json()),
    }
    write_text(out / "report.json", json.dumps(report, indent=1))
    return rows, shown


def _conditions(stock: Any, clip: CalibrationClip) -> str:
    return (
        f"{clip.name}, {clip.video.num_frames} frames, {len(clip.objects)} object; {stock.image_size} px, "
        f"{stock.device.type}, threads: {torch.get_num_threads()}, float32"
    )


def _routed(clip: CalibrationClip, run: Run) -> list[RoutedFrame]:
    """The run, frame by frame, for the player."""
    shown = []
    for frame, mask in zip(run.report.frames, run.masks, strict=True):
        computed = np.zeros(frame.windows_total, bool)
        computed[slice(None) if frame.windows is None else frame.windows] = True
        side = math.isqrt(frame.windows_total)
        picture = clip.video.frame(frame.frame)
        shown.append(RoutedFrame(picture, mask, computed.reshape(side, side), frame.reason))
    return shown


def _table(rows: list[Row]) -> str:
    head = (
        f"{'':11}{'ms/frame':>9}{'ratio':>7}{'J&F':>7}{'agreement':>11}{'windows':>9}{'keys':>6}{'prunable':>10}"
        f"{'rescued':>9}"
    )
    return "\n".join(
        [head]
        + [
            f"{r.name:11}{r.milliseconds:9.0f}{r.ratio:7.2f}{r.j_and_f:7.1f}{r.agreement:11.1f}{r.windows:9.0%}"
            f"{r.keys:6.0%}{r.prunable:10.0%}{r.rescued:9}"
            for r in rows
        ]
    )
