"""Frames as routing meets them, of which every adapter is fitted and by which it is judged.

A clip is tracked once with every window; where the inference router would have left windows out, what stage 3
gets, what its blocks make of it with all and with the chosen windows, and what memory attention then made of the
frame are kept in a file (method 3.3: the dense encoder is the teacher, frame and memory bank are the same).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, overload

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from probes.errors import InputError
from probes.models import fingerprint
from probes.tracking import without_bar
from sparsity.acceleration.fit import why_not_exact
from sparsity.acceleration.model.encoder import Encoding, window_grid
from sparsity.acceleration.model.windows import window_tokens
from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor
from sparsity.acceleration.route import routed
from sparsity.acceleration.session import Frame
from sparsity.clips.sources import Clip, ClipSource
from sparsity.profile import Profile
from sparsity.techniques.adapter import Adapter, AdapterFunction
from sparsity.techniques.reuse import CHANGE
from sparsity.techniques.routing import Routing
from sparsity.work.store import kept

EVERY = 3
"""Frames between those that are kept, as the authors train (method 3.3)."""

FIT_FRAMES = 24
"""Tracked of each clip that an adapter is fitted on."""


@dataclass(frozen=True, eq=False)
class RoutedFrame:
    """One routed frame and one object; N tokens, K keys, float32.

    Attributes
    ----------
    entry
        What enters stage 3's routed blocks, ``[N, C]``.
    dense, routed
        What enters its last block when every window is computed, and when the chosen ones are (the others
        hold `entry`), ``[N, C]``.
    outside
        Tokens that are not computed, bool ``[N]``.
    cached
        What the blocks changed when routing last had each token computed, ``[N, C]``; on computed frames the
        dense encoder's.
    target
        Memory-conditioned features of the dense encoder, ``[N, D]``.
    place
        Position encoding of the frame's tokens, ``[N, D]``.
    memory, memory_place
        The bank that was read and its position encoding, ``[K, M]``.
    pointers
        Keys at its end that belong to object pointers, int64 ``[]``.
    """

    entry: Tensor
    dense: Tensor
    routed: Tensor
    outside: Tensor
    cached: Tensor
    target: Tensor
    place: Tensor
    memory: Tensor
    memory_place: Tensor
    pointers: Tensor

    def to(self, device: torch.device) -> RoutedFrame:
        """The same on another device."""
        return RoutedFrame(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def through(self, adapter: AdapterFunction) -> Tensor:
        """What enters the last block when tokens that are left out go through an adapter, ``[N, C]``."""
        return torch.where(self.outside[:, None], adapter(self.entry), self.routed)


NAMES = tuple(field.name for field in fields(RoutedFrame))


def write_frames(path: Path, frames: Sequence[RoutedFrame]) -> None:
    """Write frames into a file."""
    tensors = {
        f"{i}.{name}": getattr(frame, name).cpu().contiguous()
        for i, frame in enumerate(frames)
        for name in NAMES
    }
    save_file(tensors, path, {"frames": json.dumps(len(frames))})


Place = tuple[Path, int]
"""A file of `write_frames`, and the number of a frame in it."""


def places_in(path: Path) -> list[Place]:
    """Find the frames of a file of `write_frames`."""
    with safe_open(path, "pt") as file:
        return [(path, i) for i in range(json.loads(file.metadata()["frames"]))]


class RoutedFrames(Sequence[RoutedFrame]):
    """Frames in files, read one at a time: as many as one likes fit in memory."""

    def __init__(self, places: Sequence[Place]) -> None:
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    @property
    def files(self) -> dict[str, int]:
        """Frames in each file that has any, by its name."""
        return dict(Counter(path.name for path, _ in self.places))

    @overload
    def __getitem__(self, index: int) -> RoutedFrame: ...
    @overload
    def __getitem__(self, index: slice) -> list[RoutedFrame]: ...
    def __getitem__(self, index: int | slice) -> RoutedFrame | list[RoutedFrame]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        path, i = self.places[index]
        with safe_open(path, "pt") as file:
            return RoutedFrame(**{name: file.get_tensor(f"{i}.{name}") for name in NAMES})


def routed_frames(
    predictor: EfficientSAM2VideoPredictor,
    source: ClipSource,
    names: Sequence[str],
    routing: Routing,
    folder: Path,
    most_frames: int | None = None,
) -> RoutedFrames:
    """Collect routed frames of clips, one file a clip; what was collected alike is taken from the folder.

    Parameters
    ----------
    routing
        The inference router.
    most_frames
        Track no more than so many of each clip.
    """
    decides = {
        "model": fingerprint(predictor),
        "size": predictor.image_size,
        "device": predictor.device.type,
        "made_by": version("efficient-sam2"),
        "routing": routing.model_dump(),
        "most_frames": most_frames,
    }

    def collected(name: str) -> list[RoutedFrame]:
        return collect(predictor, source.open(name), routing, most_frames)

    places: list[Place] = []
    for name in tqdm(names, desc="routed", unit="clip", disable=None):
        places += kept(
            folder / f"{name}.safetensors",
            {**decides, "clip": source.listing(name)},
            partial(collected, name),
            places_in,
            write_frames,
        )
    return RoutedFrames(places)


def collect(
    predictor: EfficientSAM2VideoPredictor,
    clip: Clip,
    routing: Routing,
    most_frames: int | None = None,
) -> list[RoutedFrame]:
    """Track a clip and keep every third routed frame; objects take turns.

    Parameters
    ----------
    routing
        The inference router.
    most_frames
        Track no more than so many.

    Raises
    ------
    InputError
        The model's encoder is built otherwise than SAM 2's.
    """
    if (why := why_not_exact(predictor)) is not None:
        raise InputError(
            f"an adapter was asked for a model of which {why}; expected an encoder as SAM 2 has; use identity"
        )
    profile = Profile(name="watched", routing=routing, adapter=Adapter(kind="cached"))
    found: list[RoutedFrame] = []
    with predictor.use(profile, force=True):
        state = clip.from_start.begin(predictor, history="bounded")
        with _watched(predictor, state, found):
            tracked = predictor.propagate_in_video(state, max_frame_num_to_track=most_frames)
            for _ in without_bar(tracked):
                pass
    return found


@contextmanager
def _watched(
    predictor: EfficientSAM2VideoPredictor, state: dict[str, Any], found: list[RoutedFrame]
) -> Iterator[None]:
    """Let every frame be dense, note what routing would have computed, and keep the frames it routes."""
    session = predictor.session(state)
    decided: dict[int, tuple[int, ...] | None] = {}
    cached: dict[int, Tensor] = {}

    def dense(frame: int) -> None:
        session.chooser = None
        decided[frame] = routed(
            predictor.parts, session, Frame(state, frame, predictor.parts.grid)
        ).cells
        session.chooser = dense

    def keep(module: Any, args: Any, given: dict[str, Any], out: Tensor) -> None:
        moment = predictor.seam.now.moment
        frame, last = moment.frame, session.last
        if frame is None or frame not in decided or last is None:
            return
        cells, (change,) = decided[frame], last.parts[CHANGE]
        if cells is None:
            cached[frame] = change
            return
        before, where = cached[frame - 1], window_tokens(predictor.parts.grid, cells, change.device)
        inside = where.tokens
        cached[frame] = before.index_copy(0, inside, change[inside])
        cached.pop(frame - 2, None)
        turn = state["obj_ids"][(frame // EVERY) % len(state["obj_ids"])]
        if frame % EVERY or moment.objects != (turn,):
            return
        encoder = predictor.parts.encoder
        entry, _ = encoder.early(state["images"][frame][None].to(predictor.device).float())
        _, changed = encoder.through_stage3(entry, Encoding(cells, keep_change=True), where)
        assert changed is not None, "it was asked for"
        flat = entry.flatten(0, 1)
        outside = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
        outside[inside] = False
        rows = {key: given[key][:, 0].float() for key in ("memory", "memory_pos")}
        found.append(
            RoutedFrame(
                flat.clone(), flat + change, flat + changed, outside, before, out[:, 0].float().clone(),
                given["curr_pos"][-1][:, 0].float().clone(), rows["memory"].clone(), rows["memory_pos"].clone(),
                torch.tensor(given["num_obj_ptr_tokens"]),
            )
        )  # fmt: skip

    handle = predictor.memory_attention.register_forward_hook(keep, with_kwargs=True)
    session.chooser = dense
    try:
        yield
    finally:
        handle.remove()
        session.chooser = None


def stage3_output(predictor: EfficientSAM2VideoPredictor, merged: Tensor) -> Tensor:
    """Stage 3's last block, which all tokens share, on ``[N, C]``; differentiable."""
    side = window_grid(predictor).tokens
    trunk = predictor.image_encoder.trunk
    out: Tensor = trunk.blocks[trunk.stage_ends[2]](merged.view(1, side, side, -1))
    return out


def remembering(
    predictor: EfficientSAM2VideoPredictor, frame: RoutedFrame, stage3: Tensor
) -> Tensor:
    """Stage 4, the neck and memory attention behind stage 3's output ``[1, n, n, C]``: ``[N, D]``; differentiable."""
    trunk, neck = predictor.image_encoder.trunk, predictor.image_encoder.neck
    deep = stage3
    for block in trunk.blocks[trunk.stage_ends[2] + 1 :]:
        deep = block(deep)
    finer = [
        stage3.new_zeros(1, channels, 1, 1) for channels in reversed(trunk.channel_list[2:])
    ]  # levels that memory attention doesn't see
    levels, _ = neck([*finer, stage3.permute(0, 3, 1, 2), deep.permute(0, 3, 1, 2)])
    out: Tensor = predictor.memory_attention(
        curr=[levels[2].flatten(2).permute(2, 0, 1)],
        curr_pos=[frame.place[:, None]],
        memory=frame.memory[:, None],
        memory_pos=frame.memory_place[:, None],
        num_obj_ptr_tokens=int(frame.pointers),
    )
    return out[:, 0]
