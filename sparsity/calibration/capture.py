"""Traces: of a clip that is tracked once, of a file where that was done before, or of a recording of ``probe``."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from probes.errors import InputError
from probes.mass import keep_count
from probes.models import fingerprint
from probes.observing import listen, observe
from probes.records import ClipInfo, ClipRecord, Header, ModelInfo, load_recording
from probes.seam import AttentionCall, Told
from probes.tracking import hash_of_frames, without_bar
from probes.video import thumbnail
from sparsity.acceleration.model.encoder import window_grid
from sparsity.acceleration.model.saliency import query_sample, token_saliency
from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor
from sparsity.calibration.traces import MemoryTrace, Trace, recall_curve
from sparsity.clips.sources import Clip, ClipSource
from sparsity.profile import Profile
from sparsity.techniques.routing import Routing
from sparsity.techniques.select import TOKEN_STRIDE, WindowGrid

QUERIES = 1024
"""Query rows that memory statistics are taken from, a stratified sample."""

DENSE = Profile(name="watched", exact=True, graphs=True, routing=Routing())
"""Every window and key, with the routing cues noted."""


def capture(
    predictor: EfficientSAM2VideoPredictor, clip: Clip, profile: Profile | None = None
) -> Trace:
    """Track a clip's objects of its first frame and keep their masks, scores, cues and memory statistics.

    Parameters
    ----------
    profile
        Whose run to watch; every window and key unless given. One with a memory gives no memory statistics.
    """
    recalled = _Recalled()
    with predictor.use(profile or DENSE, force=True):
        state = clip.from_start.begin(predictor)
        if profile is None:
            predictor.choose_windows(state, lambda frame: None)
        masks = _Masks()
        with (
            listen(predictor, saliency=masks.note_saliency, decoded=masks.note_masks),
            observe(predictor, recalled, "memory.*.cross"),
        ):
            frames = tuple(
                frame for frame, _, _ in without_bar(predictor.propagate_in_video(state))
            )
        small = [thumbnail(state["images"][frame].cpu()) for frame in frames]
        prompt = _prompt(predictor, state)
    for frame in frames:
        masks.by_frame.setdefault(frame, prompt)
    columns = {key: torch.stack([masks.by_frame[frame][key] for frame in frames]) for key in prompt}
    pruned = profile is not None and profile.retrieval is not None
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
    }


class _Masks:
    """Collects what every tracking step says about the next frame, object by object."""

    def __init__(self) -> None:
        self.by_frame: dict[int, dict[str, Tensor]] = {}
        self._saliency: Tensor | None = None

    def note_saliency(self, told: Told) -> None:
        """Keep the decoder saliency of the objects that are tracked now; their masks are told next."""
        self._saliency = told.what

    def note_masks(self, told: Told) -> None:
        """Join masks and scores of some objects to those of the same frame."""
        saliency, self._saliency = self._saliency, None
        if saliency is None:
            return  # a prompt
        part = {
            "candidates": (told.what[0] > 0).cpu(),
            "best": (told.what[3][:, 0] > 0).cpu(),
            "saliency": saliency.cpu(),
            "score": told.what[6][:, 0].float().cpu(),
            "tracked": torch.ones(len(saliency), dtype=torch.bool),
        }
        frame = told.moment.frame
        assert frame is not None, "tracking steps happen on a frame"
        before = self.by_frame.get(frame)
        joined = part if before is None else {k: torch.cat([before[k], part[k]]) for k in part}
        self.by_frame[frame] = joined


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
        queries = call.q[:1, 0]
        sample = query_sample(queries.shape[1], QUERIES, frame, queries.device)
        (everything,) = token_saliency(queries, call.k[:1, 0], sample)
        exposed = 0.0
        for f, entry in enumerate(layout.frames):
            own = slice(f * layout.tokens, (f + 1) * layout.tokens)
            if not (entry.conditioning or entry.newest):
                exposed += float(everything[own].sum())
            if not entry.conditioning:
                (seen,) = token_saliency(queries, call.k[:1, 0, own], sample)
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


def write_trace(path: Path, trace: Trace) -> None:
    """Write a trace into a file."""
    tensors = {key: getattr(trace, key).contiguous() for key in _TENSORS}
    about: dict[str, Any] = {
        "name": trace.name,
        "model": trace.model,
        "grid": [trace.grid.tokens, trace.grid.window],
        "frames": trace.frames,
    }
    if trace.memory is not None:
        about["ages"] = trace.memory.ages
        for key in _MEMORY:
            tensors[f"memory.{key}"] = torch.from_numpy(getattr(trace.memory, key))
    save_file(tensors, path, {"trace": json.dumps(about)})


def read_trace(path: Path) -> Trace:
    """Read a file of `write_trace`."""
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
    )  # fmt: skip


def recorded_traces(path: Path) -> list[Trace]:
    """Read the clips of a recording.

    Raises
    ------
    InputError
        It can't be read, or a clip was tracked backwards or with objects that come later.
    """
    recording = load_recording(path)
    return [_trace(clip, info, recording.header) for info, clip in recording]


def matching_traces(
    paths: Sequence[Path], source: ClipSource, names: Sequence[str]
) -> dict[str, Trace]:
    """Read what recordings hold of the clips `names`, and say on stderr which of theirs are none of these.

    Raises
    ------
    InputError
        A recording can't be read, or one of these names is of another clip there.
    """
    found: dict[str, Trace] = {}
    unused: list[str] = []
    for path in paths:
        recording = load_recording(path)
        for info in recording.header.clips:
            if info.name not in names:
                unused.append(info.name)
                continue
            recorded = recording.clip(info.name)
            _check_same(path, info, recorded, source.open(info.name).from_start)
            found[info.name] = _trace(recorded, info, recording.header)
    if unused:
        print(
            f"Recordings of {', '.join(unused)} are not used: the search is on other clips.",
            file=sys.stderr,
        )
    return found


def checked(trace: Trace) -> Trace:
    """Return a trace that calibration can use.

    Raises
    ------
    InputError
        Its masks are empty throughout, or a statistic is not a number.
    """
    if not bool(trace.best[1:].any()):
        raise InputError(
            f"the model finds nothing in {trace.name} after its first frame; an empty mask track has nothing to "
            "calibrate on; check its prompt, or leave the clip out"
        )
    memory = trace.memory
    if not bool(trace.score.isfinite().all()) or (
        memory is not None and not np.isfinite(memory.curve).all()
    ):
        raise InputError(
            f"statistics of {trace.name} are not numbers; expected finite scores and attention; check the "
            "weights, or run in float32"
        )
    return trace


def one_model(traces: Sequence[Trace], model: str) -> None:
    """Hold that all traces are of `model`.

    Raises
    ------
    InputError
        They are of several models, or of another one.
    """
    models = sorted({trace.model for trace in traces})
    named = ", ".join(f"{m[:19]}…" for m in models)
    if len(models) > 1:
        raise InputError(
            f"recordings of {len(models)} models given ({named}); expected one model; record all clips with the "
            "same weights"
        )
    if models and models[0] != model:
        raise InputError(
            f"recordings of the model {named} given; the model to calibrate is {model[:19]}…; record its clips, "
            "or name the model that was recorded"
        )


def one_size(traces: Sequence[Trace], windows: WindowGrid) -> None:
    """Hold that all traces are of the image size whose windows are given.

    Raises
    ------
    InputError
        One is of another size.
    """
    for trace in traces:
        if trace.grid != windows:
            sides = [g.tokens * TOKEN_STRIDE for g in (trace.grid, windows)]
            raise InputError(
                f"clip {trace.name} was recorded at {sides[0]} pixels; the model to calibrate takes {sides[1]}; "
                "record it so, or give that --image-size"
            )


def _check_same(path: Path, info: ClipInfo, recorded: ClipRecord, clip: Clip) -> None:
    """Refuse a recording of another clip by the same name, of a part of it, or of other objects."""
    video = clip.video
    given = {
        "frames": video.num_frames,
        "width": video.width,
        "height": video.height,
        "objects": clip.objects,
    }
    differing = [
        f"{what} {getattr(info, what)}, where the clip has {value}"
        for what, value in given.items()
        if getattr(info, what) != value
    ]
    if not differing and hash_of_frames(video, recorded.frame.tolist()) != info.video:
        differing = ["other pictures than the clip"]
    if differing:
        raise InputError(
            f"recording {path} has {info.name} with {differing[0]}; expected the clip itself; record it anew, or leave "
            "the recording out"
        )


def _trace(clip: ClipRecord, info: ClipInfo, header: Header) -> Trace:
    t, o, model = len(clip.frame), len(info.objects), header.model
    if (profile := header.settings.profile) is not None:
        raise InputError(
            f"clip {info.name} was recorded under profile {profile['name']}; expected a run of the stock predictor, as "
            "calibration starts from dense frames; record it so"
        )
    if bool(clip.reverse.any()) or len(clip.row_frame) != t * o:
        raise InputError(
            f"clip {info.name} was recorded backwards, or with objects that come later; expected all objects on its "
            "first frame, tracked forward; record it so"
        )
    order = np.lexsort((clip.row_object, clip.row_frame))

    def rows(values: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values[order])).reshape(
            t, o, *values.shape[1:]
        )

    return Trace(
        info.name,
        model.fingerprint,
        WindowGrid(model.grid, model.window),
        tuple(int(frame) for frame in clip.frame),
        candidates=rows(clip.masks("candidates")),
        best=rows(clip.masks("best")),
        saliency=rows(clip.decoder_saliency),
        score=rows(clip.score),
        tracked=~rows(clip.conditioning),
        thumbnails=torch.from_numpy(clip.thumbnail),
        memory=_memory(clip, model, header.settings.keep_shares),
    )


def _memory(clip: ClipRecord, model: ModelInfo, shares: tuple[float, ...]) -> MemoryTrace | None:
    """Mass recall by age; between the recorded shares it is taken to be straight."""
    age, there = clip.ages(), clip.memory_frame >= 0  # [n, slots]
    conditioning = np.arange(age.shape[1])[None] == 0
    prunable = there & ~conditioning & (age > 1)
    finite = np.isfinite(clip.recall.astype(np.float32)).all((1, 3))
    ages = sorted({int(a) for a in age[prunable & finite]})
    if not ages:
        return None
    tokens = model.grid**2
    counts = [keep_count(share, tokens) for share in shares]
    curve = np.empty((model.layers, len(ages), tokens))
    for index, wanted in enumerate(ages):
        row, slot = np.nonzero(prunable & finite & (age == wanted))
        mean = clip.recall[row, :, slot].astype(np.float64).mean(0)  # [layers, shares]
        for layer in range(model.layers):
            curve[layer, index] = np.interp(
                np.arange(1, tokens + 1), [0, *counts], [0.0, *mean[layer]]
            )
    called = ~clip.conditioning
    exposure = np.where(prunable[:, None], clip.slot_share[:, :, :-1], 0.0).sum(-1)[called].mean(0)
    # pointers are left out: they are few, and their number isn't recorded
    frames = there[:, 1:].sum(1) + (clip.prompt_frames >= 0).sum(1)
    keys = frames.astype(np.int64)[called] * tokens
    return MemoryTrace(
        curve, tuple(ages), exposure.astype(np.float32), keys, prunable.sum(1)[called]
    )
