"""Track a clip once and keep what calibration reads of it; kept in a file, so that it is done once."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from probes.models import fingerprint
from probes.observing import observe
from probes.seam import AttentionCall
from probes.video import STD
from sparsity.acceleration.encoder import window_grid
from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor
from sparsity.acceleration.token_saliency import query_sample, token_saliency
from sparsity.calibration.clips import CalibrationClip
from sparsity.calibration.traces import MemoryTrace, Trace, recall_curve
from sparsity.profile import EXACT_TECHNIQUES, Profile, Windows
from sparsity.runs import part_of
from sparsity.select import WindowGrid, thumbnail
from sparsity.window_cues import token_logits

QUERIES = 1024
"""Query rows that memory statistics are taken from, a stratified sample."""

DENSE = Profile(name="watched", windows=Windows(), techniques=dict.fromkeys(EXACT_TECHNIQUES, True))
"""Every window and key, with the routing cues noted."""


def capture(
    predictor: EfficientSAM2VideoPredictor, clip: CalibrationClip, profile: Profile | None = None
) -> Trace:
    """Track a clip and keep its masks, scores, cues and memory statistics.

    Parameters
    ----------
    profile
        Whose run to watch; every window and key unless given. One with a memory gives no memory statistics.
    """
    masks: dict[int, dict[str, Tensor]] = {}
    recalled = _Recalled()
    with predictor.use(profile or DENSE, force=True):
        state = predictor.init_state(clip.video)
        if profile is None:
            predictor.choose_windows(state, lambda frame: None)
        for object_id, mask in clip.prompts().items():
            predictor.add_new_mask(state, 0, object_id, mask)
        with _watched(predictor, masks), observe(predictor, recalled, "memory.*.cross"):
            frames = tuple(frame for frame, _, _ in predictor.propagate_in_video(state))
        spread = torch.tensor(STD).view(3, 1, 1)
        small = [thumbnail(state["images"][frame].cpu()) * spread for frame in frames]
        prompt = _prompt(predictor, state)
    for frame in frames:
        masks.setdefault(frame, prompt)
    columns = {key: torch.stack([masks[frame][key] for frame in frames]) for key in prompt}
    pruned = profile is not None and profile.memory is not None
    return Trace(
        clip.name, fingerprint(predictor), window_grid(predictor), frames, **columns,
        thumbnails=torch.stack(small), memory=None if pruned else recalled.result(),
    )  # fmt: skip


def _prompt(predictor: EfficientSAM2VideoPredictor, state: dict[str, Any]) -> dict[str, Tensor]:
    """What stands for a frame on which all objects are prompted."""
    outs = [o["cond_frame_outputs"][0] for o in state["output_dict_per_obj"].values()]
    best = torch.stack([out["pred_masks"][0, 0] > 0 for out in outs]).cpu()
    side = predictor.sam_image_embedding_size
    return {
        "candidates": best[:, None].repeat(1, 3, 1, 1),
        "best": best,
        "saliency": torch.full((len(outs), side, side), torch.nan),
        "score": torch.tensor([float(out["object_score_logits"].max()) for out in outs]),
        "tracked": torch.zeros(len(outs), dtype=torch.bool),
        "token_logits": torch.full((len(outs), 2, side, side), torch.nan),
    }


@contextmanager
def _watched(
    predictor: EfficientSAM2VideoPredictor, masks: dict[int, dict[str, Tensor]]
) -> Iterator[None]:
    """Note what every tracking step says about the next frame."""
    step = predictor._track_step

    def noting(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        tracked = args[7] if len(args) > 7 else kwargs["output_dict"]
        candidates = getattr(tracked, "candidates", None)
        if candidates is not None:
            part = {
                "candidates": (candidates > 0).cpu(),
                "best": (tracked.best > 0).cpu(),
                "saliency": tracked.saliency.cpu(),
                "score": result[1][6][:, 0].float().cpu(),
                "tracked": torch.ones(len(candidates), dtype=torch.bool),
                "token_logits": token_logits(candidates, tracked.best).cpu(),
            }
            frame = predictor._seam.moment.frame
            assert frame is not None, "tracking steps happen on a frame"
            before = masks.get(frame)
            joined = part if before is None else {k: torch.cat([before[k], part[k]]) for k in part}
            masks[frame] = joined
        return result

    object.__setattr__(predictor, "_track_step", noting)
    try:
        yield
    finally:
        object.__delattr__(predictor, "_track_step")


class _Recalled:
    """Collects token saliency of memory frames, call by call."""

    def __init__(self) -> None:
        self.maps: dict[tuple[int, int], dict[int, dict[int, Tensor]]] = defaultdict(dict)
        self.keys: list[int] = []
        self.prunable: list[int] = []
        self.exposure: dict[int, list[float]] = defaultdict(list)

    def __call__(self, call: AttentionCall) -> None:
        if call.keys is not None or not call.moment.layouts:
            return
        (layout,) = call.moment.layouts
        layer = int(call.site.split(".")[1].removeprefix("layer"))
        if layer == 0:
            self.keys.append(layout.keys)
            self.prunable.append(sum(not f.conditioning and not f.newest for f in layout.frames))
        frame = call.moment.frame or 0
        queries = call.q[0, 0]
        sample = query_sample(len(queries), QUERIES, frame, queries.device)
        everything = token_saliency(queries, call.k[0, 0], sample)
        exposed = 0.0
        for f, entry in enumerate(layout.frames):
            own = slice(f * layout.tokens, (f + 1) * layout.tokens)
            if not (entry.conditioning or entry.newest):
                exposed += float(everything[own].sum())
            if not entry.conditioning:
                seen = token_saliency(queries, call.k[0, 0, own], sample)
                place = call.moment.objects[0], entry.frame
                self.maps[place].setdefault(layer, {})[entry.age] = seen.float().cpu()
        self.exposure[layer].append(exposed)

    def result(self) -> MemoryTrace | None:
        """Put together the frames that were recalled at every age; None where there is none."""
        ages = sorted({age for layers in self.maps.values() for age in layers[0]} - {1})
        whole = [
            layers
            for layers in self.maps.values()
            if all(age in layers[0] for age in (1, *ages)) and ages
        ]
        if not whole:
            return None
        first = torch.stack([torch.stack([m[layer][1] for layer in sorted(m)]) for m in whole])
        later = torch.stack(
            [
                torch.stack([torch.stack([m[layer][a] for a in ages]) for layer in sorted(m)])
                for m in whole
            ]
        )
        return MemoryTrace(
            recall_curve(first.numpy(), later.numpy()),
            tuple(ages),
            np.array([np.mean(self.exposure[i]) for i in sorted(self.exposure)], np.float32),
            np.array(self.keys),
            np.array(self.prunable),
        )


_TENSORS = ("candidates", "best", "saliency", "score", "tracked", "thumbnails")

_MEMORY = ("curve", "exposure", "keys", "prunable")


def save_trace(trace: Trace, path: Path) -> None:
    """Write a trace; the file is whole or absent."""
    tensors = {key: getattr(trace, key).contiguous() for key in _TENSORS}
    about: dict[str, Any] = {
        "name": trace.name,
        "model": trace.model,
        "grid": [trace.grid.tokens, trace.grid.window],
        "frames": trace.frames,
    }
    if trace.token_logits is not None:
        tensors["token_logits"] = trace.token_logits.contiguous()
    if trace.memory is not None:
        about["ages"] = trace.memory.ages
        for key in _MEMORY:
            tensors[f"memory.{key}"] = torch.from_numpy(getattr(trace.memory, key))
    part = part_of(path)
    save_file(tensors, part, {"trace": json.dumps(about)})
    os.replace(part, path)


def load_trace(path: Path) -> Trace | None:
    """Read a trace that `save_trace` wrote; None where there is no whole one."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["trace"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        memory = None
        if "ages" in about:
            parts = {key: tensors[f"memory.{key}"].numpy() for key in _MEMORY}
            memory = MemoryTrace(**parts, ages=tuple(about["ages"]))
        return Trace(
            about["name"], about["model"], WindowGrid(*about["grid"]), tuple(about["frames"]),
            **{key: tensors[key] for key in _TENSORS}, memory=memory,
            token_logits=tensors.get("token_logits"),
        )  # fmt: skip
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
