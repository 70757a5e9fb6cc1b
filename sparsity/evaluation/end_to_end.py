"""What a user waits for: a video file in, masks and overlay out, beside what the model alone takes of it.

Each round tracks a clip with every profile three times: the model alone on frames that lie in memory, the whole of `segment`
with the overlay, and without. Rounds follow one another in one process, so all share the machine's weather; medians count.
CPU time is that of all threads of the process, so it doesn't tell what goes on at the same time from what waits.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import torch

from probes.errors import InputError
from probes.prompts import Prompt
from probes.tracking import without_bar
from probes.video import ModelFrames, open_video
from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor
from sparsity.clips.made import make_clip
from sparsity.clips.masks import write_video
from sparsity.evaluation.meters import environment, model_of
from sparsity.evaluation.results import EndToEnd, EndToEndRow, Environment
from sparsity.profile import Profile, load_profile
from sparsity.work.model import ModelChoice, predictor_for
from sparsity.work.segment import run_segment

SIZES = {"720p": (720, 1280), "1080p": (1080, 1920), "4K": (2160, 3840)}
"""Height and width of the clips, by their usual names."""

ROUNDS = 3

MADE = 270, 480
"""Size at which the clip is made; it is enlarged to the others."""

RATE = 24.0


def run_end_to_end(
    profiles: Sequence[str | Path | Profile],
    choice: ModelChoice,
    *,
    frames: int = 24,
    sizes: Sequence[str] = tuple(SIZES),
    rounds: int = ROUNDS,
    force: bool = False,
) -> EndToEnd:
    """Measure ``dense`` and some profiles, file in, masks out.

    Parameters
    ----------
    profiles
        Built-in names, files or profiles, beside ``dense``.
    frames
        Of the made clip.
    sizes
        Some of `SIZES`.
    rounds
        How often all is done; one more goes before them and doesn't count.
    force
        Use profiles that were made for another model.

    Raises
    ------
    InputError
        A profile or size can't be used.
    """
    for size in sizes:
        if size not in SIZES:
            raise InputError(
                f"size {size!r} given; expected {', '.join(SIZES)}; choose one of them"
            )
    wanted = {p.name: p for p in (load_profile(given) for given in ("dense", *profiles))}
    predictor = predictor_for(choice, wanted.values(), force)
    rows = []
    with TemporaryDirectory() as folder:
        for size in sizes:
            path, prompt = _clip(Path(folder), size, frames)
            rows += _measure(predictor, choice, path, prompt, size, wanted, rounds, force)
    number_format = choice.number_format(predictor.device.type)
    return EndToEnd(
        schema="efficient-sam2/end-to-end/1",
        environment=Environment.model_validate(environment(predictor.device, number_format)),
        model=model_of(choice, predictor),
        frames=frames,
        rounds=rounds,
        rows=rows,
    )


def _clip(folder: Path, size: str, frames: int) -> tuple[Path, Prompt]:
    """Write a made clip at a size; return its file, and the mask of its first frame."""
    height, width = SIZES[size]
    made = make_clip("smooth", 1, frames, MADE, 1)
    path = folder / f"{size}.mp4"
    write_video(path, (cv2.resize(f, (width, height)) for f in made.frames), RATE)
    first = cv2.resize(made.masks[0], (width, height), interpolation=cv2.INTER_NEAREST)
    return path, Prompt(0, 1, mask=first > 0)


def _measure(
    predictor: EfficientSAM2VideoPredictor,
    choice: ModelChoice,
    path: Path,
    prompt: Prompt,
    size: str,
    profiles: dict[str, Profile],
    rounds: int,
    force: bool,
) -> list[EndToEndRow]:
    """Track one clip in rounds."""
    source = open_video(path)
    count = source.num_frames or 0
    images = ModelFrames(source, predictor.image_size, predictor.device).whole()
    shape = source.height, source.width
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    stages: dict[str, list[dict[str, float]]] = {}

    def alone(profile: Profile) -> None:
        with predictor.use(profile, force=force), choice.autocast(predictor.device.type):
            state = predictor.new_state(images, shape, history="bounded", corrections="keep")
            prompt.give_to(predictor, state)
            for _, _, logits in without_bar(predictor.propagate_in_video(state)):
                logits[0, 0, 0, 0].item()  # waits for the device

    def whole(profile: Profile, overlay: bool) -> None:
        with TemporaryDirectory() as out:
            done = run_segment(
                path, (prompt,), choice, Path(out) / "out", profile=profile, overlay=overlay, force=force
            )  # fmt: skip
        if overlay:
            stages.setdefault(profile.name, []).append(done.milliseconds)

    for _ in range(rounds + 1):
        for name, profile in profiles.items():
            for what, work in {
                "model": lambda p=profile: alone(p),
                "no overlay": lambda p=profile: whole(p, False),
                "overlay": lambda p=profile: whole(p, True),
            }.items():
                found.setdefault((name, what), []).append(_timed(work, count))
    medians = {key: _medians(times[1:]) for key, times in found.items()}
    return [
        EndToEndRow(
            size=size,
            profile=name,
            model_ms=medians[name, "model"][0],
            model_cpu_ms=medians[name, "model"][1],
            masks_ms=medians[name, "no overlay"][0],
            masks_cpu_ms=medians[name, "no overlay"][1],
            overlay_ms=medians[name, "overlay"][0],
            overlay_cpu_ms=medians[name, "overlay"][1],
            stages={
                stage: round(statistics.median(run[stage] for run in stages[name][1:]), 1)
                for stage in stages[name][0]
            },
        )
        for name in profiles
    ]


def _timed(work: Callable[[], Any], frames: int) -> tuple[float, float]:
    """Milliseconds a frame by the wall, and of CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        work()
    return (
        1000 * (time.perf_counter() - wall) / frames,
        1000 * (time.process_time() - cpu) / frames,
    )


def _medians(times: list[tuple[float, float]]) -> tuple[float, float]:
    wall, cpu = np.median(np.array(times), axis=0).round(1).tolist()
    return wall, cpu


def table(result: EndToEnd) -> str:
    """Return the rows as text: wall time, CPU time outside the model, and how many times as fast as ``dense``."""
    lines = [
        f"{'':6}{'':14}{'model':>8}{'masks':>8}{'overlay':>9}{'CPU outside':>16}{'ratio to dense':>26}",
        f"{'':6}{'':14}{'ms':>8}{'ms':>8}{'ms':>9}{'masks overlay':>16}{'model  masks overlay':>26}",
    ]
    dense = {row.size: row for row in result.rows if row.profile == "dense"}
    for row in result.rows:
        base = dense[row.size]
        outside = row.masks_cpu_ms - row.model_cpu_ms, row.overlay_cpu_ms - row.model_cpu_ms
        ratios = (
            base.model_ms / row.model_ms,
            base.masks_ms / row.masks_ms,
            base.overlay_ms / row.overlay_ms,
        )
        lines.append(
            f"{row.size:6}{row.profile:14}{row.model_ms:8.0f}{row.masks_ms:8.0f}{row.overlay_ms:9.0f}"
            f"{outside[0]:8.0f}{outside[1]:8.0f}{ratios[0]:12.2f}{ratios[1]:7.2f}{ratios[2]:7.2f}"
        )
    lines.append(
        f"milliseconds a frame, medians of {result.rounds} rounds of {result.frames} frames of a made clip, {result.model.name}; "
        "masks: file in, masks out; overlay: with it"
    )
    if not result.model.trained:
        lines.append("The weights are RANDOM: what routing leaves out says nothing.")
    return "\n".join(lines)
