"""Long videos: does memory stay flat, and does time per frame?

    python benchmarks/long_video.py VIDEO --box x0,y0,x1,y1
    python benchmarks/long_video.py --frames 5000

The first tracks a video file with bounded history: random weights at 1024 pixels, the profile ``paper``, bfloat16; masks are
handed on frame by frame. The result is ``benchmarks/long_video.json``: megabytes that the video's state holds, resident
memory of the process, and milliseconds per frame over the first and the last frames. Run it on an idle machine.

The second pushes made frames into a camera: the demo model at 128 pixels, the profile ``recommended``. Two objects are
prompted, one is corrected after a tenth of the frames and forgotten after three tenths, and another one is prompted at half
of them. The result is ``benchmarks/long_camera.json``. What grows is the report, by a line a frame up to 10,000; with
``--reported 250`` it is full soon, and nothing grows: ``benchmarks/long_camera_short_report.json``.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probes import build_predictor, open_video
from probes.files import write_text
from sparsity import accelerate
from sparsity.acceleration.session import LAST_REPORTED
from sparsity.evaluation.meters import environment

EVERY = 25
EARLY, LATE = range(20, 70), 50

SIZE = (96, 128)
"""Of made frames."""

OBJECTS = {"left": (34, 48), "right": (94, 48), "late": (64, 24)}
"""By name where each object is about which it goes round: x, y."""

LOOKS = 20
"""How often a camera's memory is looked at."""


def megabytes(value: Any, seen: set[int] | None = None) -> float:
    """Size of all tensors and arrays in a nest of containers and dataclasses, each storage counted once, in MB."""
    seen = set() if seen is None else seen
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        if storage.data_ptr() in seen:
            return 0.0
        seen.add(storage.data_ptr())
        return storage.nbytes() / 1e6
    if isinstance(value, dict):
        value = value.values()
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        value = vars(value).values()
    elif not isinstance(value, (list, tuple)):
        return 0.0
    return sum(megabytes(item, seen) for item in list(value))


def entries(value: Any, seen: set[int] | None = None) -> int:
    """Number of entries of all containers and dataclasses in a nest of them, each counted once."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, (torch.Tensor, np.ndarray, torch.nn.Module, str)):
        return 0
    seen.add(id(value))
    if isinstance(value, dict):
        value = value.values()
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        value = vars(value).values()
    elif not isinstance(value, (list, tuple, set, deque)):
        return 0
    return len(value) + sum(entries(item, seen) for item in list(value))


def resident() -> float:
    """Resident memory of the process in MB."""
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmRSS")
    )
    return int(line.split()[1]) / 1e3


def followed(options: argparse.Namespace) -> dict[str, Any]:
    """Track a video file."""
    left, top, right, bottom = map(int, options.box.split(","))
    predictor = accelerate(build_predictor(options.model, weights="random"), "paper")
    source = open_video(options.video)
    mask = np.zeros((source.height, source.width), bool)
    mask[top:bottom, left:right] = True
    seconds, state_mb, resident_mb = [], {}, {}
    with torch.autocast(predictor.device.type, torch.bfloat16):
        state = predictor.init_state(source, history="bounded")
        predictor.add_new_mask(state, 0, 1, mask)
        start = time.perf_counter()
        frames = options.frames and options.frames - 1
        for frame, _, _ in predictor.propagate_in_video(state, max_frame_num_to_track=frames):
            seconds.append(time.perf_counter() - start)
            if frame % EVERY == 0:
                state_mb[frame], resident_mb[frame] = megabytes(state), resident()
            start = time.perf_counter()
    state_mb[frame], resident_mb[frame] = megabytes(state), resident()
    early = float(np.median([seconds[t] for t in EARLY]))
    late = float(np.median(seconds[-LATE:]))
    return {
        "video": options.video.name,
        "model": f"{options.model}, random weights, {predictor.image_size} px",
        "environment": environment(predictor.device, "bfloat16"),
        "frames": len(seconds),
        "state_mb": state_mb,
        "state_growth_mb_after_frame_50": state_mb[frame] - state_mb[50],
        "resident_mb": resident_mb,
        "ms_frames_20_to_69": 1000 * early,
        "ms_last_50": 1000 * late,
        "ratio": late / early,
    }


def made_frames() -> Iterator[np.ndarray]:
    """Frames uint8 ``[96, 128, 3]`` without end: three ellipses go round on a smooth background."""
    rows, columns = np.indices(SIZE)
    background = np.stack([60 + rows, 40 + columns, 90 + (rows + columns) // 3], -1).astype(
        np.uint8
    )
    colours = (235, 205, 60), (60, 230, 120), (240, 80, 90)
    t = 0
    while True:
        frame = background.copy()
        for colour, (x, y) in zip(colours, OBJECTS.values(), strict=True):
            x, y = x + 6 * np.cos(t / 20), y + 6 * np.sin(t / 20)
            frame[((columns - x) / 12) ** 2 + ((rows - y) / 12) ** 2 < 1] = colour
        yield frame
        t += 1


def pushed(options: argparse.Namespace) -> dict[str, Any]:
    """Push made frames into a camera."""
    count = options.frames
    predictor = accelerate(build_predictor("demo", image_size=128), "recommended")
    camera = predictor.camera(SIZE)
    for name in ("left", "right"):
        camera.prompt(name, points=[OBJECTS[name]])
    seconds, looks, found = [], {}, 0
    for t, frame in zip(range(count), made_frames(), strict=False):
        start = time.perf_counter()
        masks = camera.track(frame)
        if t == 0 and options.reported:
            predictor.session(state_of(camera)).last_reported = options.reported
        seconds.append(time.perf_counter() - start)
        found += all(bool(mask.any()) for mask in masks.values())
        x, y = 6 * np.cos(t / 20), 6 * np.sin(t / 20)
        if t == count // 10:
            camera.prompt("right", points=[(OBJECTS["right"][0] + x, OBJECTS["right"][1] + y)])
        elif t == 3 * count // 10:
            camera.forget("right")
        elif t == count // 2:
            camera.prompt("late", points=[(OBJECTS["late"][0] + x, OBJECTS["late"][1] + y)])
        if (t + 1) % max(1, count // LOOKS) == 0:
            gc.collect()
            looks[t + 1] = look(camera)
    early, late = (float(np.median(some)) for some in (seconds[20:70], seconds[-LATE:]))
    return {
        "model": "demo, 128 px, profile recommended",
        "environment": environment(predictor.device, "float32"),
        "frames": count,
        "lines_of_the_report_at_most": options.reported or LAST_REPORTED,
        "frames_on_which_all_objects_were_found": found,
        "by_frames_pushed": looks,
        "ms_frames_20_to_69": 1000 * early,
        "ms_last_50": 1000 * late,
    }


def state_of(camera: Any) -> dict[str, Any]:
    """The video's state that a camera holds."""
    (state,) = [
        held for held in vars(camera).values() if isinstance(held, dict) and "obj_ids" in held
    ]
    return state


def look(camera: Any) -> dict[str, float]:
    """What a camera holds now: its objects, the process's memory, and what is in its state beside the report's lines."""
    state, report = state_of(camera), camera.report()
    return {
        "objects": len(camera.objects),
        "resident_mb": resident(),
        "state_mb": megabytes(state),
        "entries_beside_report": entries(state) - entries(report),
        "report_lines": len(report.frames),
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "video", type=Path, nargs="?", help="a file; made frames are pushed without"
    )
    parser.add_argument("--box", help="x0,y0,x1,y1 of the object on frame 0 of the file")
    parser.add_argument("--model", default="sam2.1-tiny", help="that tracks the file")
    parser.add_argument("--frames", type=int, help="stop after so many; that are pushed")
    parser.add_argument(
        "--reported", type=int, help="keep the report of so many frames, not of 10,000"
    )
    options = parser.parse_args()
    if options.video is None:
        options.frames = options.frames or 5000
        name = f"long_camera{'_short_report' * (options.reported is not None)}.json"
        result = pushed(options)
    else:
        if options.box is None:
            parser.error("a video wants --box x0,y0,x1,y1")
        result, name = followed(options), "long_video.json"
    text = json.dumps(result, indent=1)
    write_text(Path(__file__).with_name(name), text)
    print(text)


if __name__ == "__main__":
    main()
