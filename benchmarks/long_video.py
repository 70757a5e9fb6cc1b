"""Track a long video with bounded history: does memory stay flat, and does time per frame?

    python benchmarks/long_video.py VIDEO --box x0,y0,x1,y1

Random weights at 1024 pixels, the profile ``paper``, bfloat16; masks are handed on frame by frame. The
result is ``benchmarks/long_video.json``: megabytes that the video's state holds, resident memory of the
process, and milliseconds per frame over the first and the last frames. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probes import build_predictor, open_video
from sparsity import accelerate
from sparsity.evaluation.environment import environment
from sparsity.runs import write_text

EVERY = 25
EARLY, LATE = range(20, 70), 50


def megabytes(value: Any, seen: set[int] | None = None) -> float:
    """Size of all tensors in a nest of containers and dataclasses, each storage counted once, in MB."""
    seen = set() if seen is None else seen
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


def resident() -> float:
    """Resident memory of the process in MB."""
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmRSS")
    )
    return int(line.split()[1]) / 1e3


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("--box", required=True, help="x0,y0,x1,y1 of the object on frame 0")
    parser.add_argument("--model", default="sam2.1-tiny")
    parser.add_argument("--frames", type=int, help="stop after so many")
    options = parser.parse_args()
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
    result = {
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
    text = json.dumps(result, indent=1)
    write_text(Path(__file__).with_suffix(".json"), text)
    print(text)


if __name__ == "__main__":
    main()
