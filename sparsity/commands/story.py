"""What ``efficient-sam2 demo`` does: the whole story on made clips, with a table and a page of figures.

Probe a clip, calibrate on a few short ones, then track the first with stock sam2 and accelerated, in turn,
frame by frame. Everything that is shown is made on the spot; so few clips can't promise much, and the page says so.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from figures.player import routed_frames
from figures.story import Shown, Story, write_story
from figures.style import evidence
from probes.files import write_text
from probes.models import DEMO, build_predictor, fingerprint
from probes.recording import record
from probes.records import Recording
from probes.video import open_video
from sparsity.acceleration.build import accelerate
from sparsity.calibration.calibrate import Calibration, calibrate, say
from sparsity.calibration.request import Request
from sparsity.clips.made import PHOTOGRAPHED, photographed_cat
from sparsity.clips.masks import draw_over, write_video
from sparsity.clips.sources import Clip, ClipSource, clip_of
from sparsity.evaluation.evaluate import Tracked, score, track_in_turn
from sparsity.profile import Profile, load_profile, save_profile
from sparsity.work.model import ModelChoice
from sparsity.work.spread import Spread

STOCK = "stock"

SHOWN = "made-smooth-1"

SPEEDUP = 1.5
"""Times fewer operations that the calibration of the demo asks for. So few clips promise little of any loss that would be
named, and which setting keeps it would hang on how many a slow machine can try; the surest that fast is always found."""

BUDGET = 120.0
"""Seconds for the runs of that calibration; a slower machine tries fewer settings."""

WEIGHTS = Path(__file__).parents[1] / "demo" / "weights.safetensors"
"""Of the demo model; some installations leave them out."""

MEMORY_SITES = "memory.*.cross"

RANDOM = (
    "The weights are RANDOM: no trained demo weights are installed. The object is kept by place alone, so "
    "these masks say nothing about quality, and there is nothing to calibrate; times and shares are real."
)


@dataclass(frozen=True)
class Row:
    """A run against the one named `STOCK`.

    Attributes
    ----------
    milliseconds, ratio
        Median of a frame, and median of the stock run's times over this one's, frame by frame.
    j_and_f, agreement
        Against the true masks, and mean J with the stock run's masks, in per cent.
    windows, keys, prunable
        Shares computed and read; dense frames count as 1.
    rescued
        Frames that the guard made dense.
    """

    name: str
    milliseconds: float
    ratio: float
    j_and_f: float
    agreement: float
    windows: float
    keys: float
    prunable: float
    rescued: int


def rows_of(runs: Mapping[str, Tracked], clip: Clip) -> list[Row]:
    """Hold each run against the stock one and the true masks; first and last frame are left out."""
    stock = runs[STOCK]
    rows = []
    for name, run in runs.items():
        quality = score(clip, run, stock)
        ratio = statistics.median(a / b for a, b in zip(stock.timed, run.timed, strict=True))
        rows.append(
            Row(
                name,
                1000 * statistics.median(run.timed),
                ratio,
                quality.j_and_f,
                quality.agreement or 0.0,
                quality.windows_kept,
                quality.keys_kept,
                quality.prunable_keys_kept,
                len(run.report.rescued),
            )
        )
    return rows


@dataclass(frozen=True)
class Demo:
    """What the demo found, and where it left its files."""

    rows: list[Row]
    calibration: Calibration | None
    out: Path
    photographed: list[Row]

    def text(self) -> str:
        """Return it as a table, with the promise, or with plain words where the weights are random."""
        lines = [RANDOM, ""] if self.calibration is None else []
        lines.append(_table(self.rows))
        if self.calibration is not None:
            lines += [
                "",
                f"{PHOTOGRAPHED}, a real picture under a moving camera:",
                _table(self.photographed),
            ]
            lines += ["", "calibrated on the spot:", self.calibration.text(), ""]
            lines.append(f"page     {self.out / 'report.html'}")
        lines.append(f"overlay  {self.out / 'overlay.mp4'}")
        return "\n".join(lines)

    def json(self) -> str:
        """Return the rows of the table as JSON."""
        found: dict[str, Any] = {"random_weights": self.calibration is None}
        found |= {"rows": _as_dicts(self.rows), "photographed": _as_dicts(self.photographed)}
        return json.dumps(found, indent=1)


def run_demo(out: Path, clips: int = 5) -> Demo:
    """Probe, calibrate on `clips` made clips, track `SHOWN` and a photograph; write the page, overlays and a report into `out`.

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
        rows, run = _track(stock, clip, profiles)
        _leave(out, stock, clip, rows, run, [])
        return Demo(rows, None, out, [])
    source = ClipSource()
    request = Request(
        source, tuple(source.names(clips)), ModelChoice(DEMO), target_speedup=SPEEDUP, budget=BUDGET,
        base="recommended",
    )  # fmt: skip
    request.check()
    say(f"1/3 probe: {SHOWN}, densely, with all of its memory attention")
    recording = _probe(stock, clip, out / "probed.recording")
    say(f"2/3 calibrate: {clips} made clips, {SPEEDUP:g}x fewer operations wanted")
    found = calibrate(request, out / "calibration", Spread())
    save_profile(found.profile, out / "calibrated.json")
    say("3/3 track: stock sam2 and accelerated, in turn")
    built_in = load_profile(DEMO)
    if built_in.model == fingerprint(stock):
        profiles.append(built_in)
    profiles.append(found.profile)
    rows, run = _track(stock, clip, profiles)
    cat = photographed_cat(clip.num_frames)
    real = clip_of(PHOTOGRAPHED, open_video(cat.frames), cat.masks[0], dict(enumerate(cat.masks)))
    real_rows, real_run = _track(stock, real, profiles)
    _leave(out, stock, clip, rows, run, real_rows)
    _draw(out / "overlay-photographed.mp4", real, real_run)
    story = Story(
        _conditions(stock, clip), run.report.profile,
        Shown(clip.name, _as_dicts(rows), routed_frames(clip.video, run.masks, run.report)),
        Shown(real.name, _as_dicts(real_rows), routed_frames(real.video, real_run.masks, real_run.report)),
        {t: clip.video.frame(t) for t in range(clip.num_frames)},
    )  # fmt: skip
    write_story(out / "report.html", story, recording, found.report, evidence(DEMO))
    return Demo(rows, found, out, real_rows)


def _probe(stock: Any, clip: Clip, folder: Path) -> Recording:
    """Record the clip anew."""
    shutil.rmtree(folder, ignore_errors=True)
    return record(
        stock, clip.video, clip.prompts, out=folder, name=clip.name, model=DEMO,
        statistics=MEMORY_SITES, rows=MEMORY_SITES,
    )  # fmt: skip


def _track(stock: Any, clip: Clip, profiles: list[Profile]) -> tuple[list[Row], Tracked]:
    """Track with stock and all profiles; return all rows, and the run of the last profile that routes."""
    predictors = {STOCK: accelerate(stock, "dense")}
    predictors |= {profile.name: accelerate(stock, profile) for profile in profiles}
    runs = track_in_turn(predictors, clip, progress=True)
    shown = [profile.name for profile in profiles if profile.routing is not None][-1]
    return rows_of(runs, clip), runs[shown]


def _leave(
    out: Path, stock: Any, clip: Clip, rows: list[Row], shown: Tracked, photographed: list[Row]
) -> None:
    """Write the overlay and the report of a run."""
    _draw(out / "overlay.mp4", clip, shown)
    report = {
        "conditions": _conditions(stock, clip),
        "rows": _as_dicts(rows),
        "photographed": _as_dicts(photographed),
        "report": json.loads(shown.report.to_json()),
    }
    write_text(out / "report.json", json.dumps(report, indent=1))


def _draw(path: Path, clip: Clip, run: Tracked) -> None:
    """Write a run's masks over its frames as a video."""
    drawn = (draw_over(clip.video.frame(t), m.astype(np.uint8)) for t, m in run.masks.items())
    write_video(path, drawn, None)


def _as_dicts(rows: list[Row]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]


def _conditions(stock: Any, clip: Clip) -> str:
    return (
        f"{clip.name}, {clip.num_frames} frames, {len(clip.objects)} object; {stock.image_size} px, "
        f"{stock.device.type}, threads: {torch.get_num_threads()}, float32"
    )


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
