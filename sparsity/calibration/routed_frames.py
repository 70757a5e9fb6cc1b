"""Frames as routing meets them, of which every shortcut is fitted and by which it is judged.

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
from pathlib import Path
from typing import Any, overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from probes.errors import InputError
from sparsity.acceleration.decisions import decide_frame
from sparsity.acceleration.encoder import Routing, window_grid
from sparsity.acceleration.fit import why_not_exact
from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor
from sparsity.acceleration.reuse import CHANGE
from sparsity.acceleration.shortcuts import ShortcutFunction
from sparsity.acceleration.windows import window_tokens
from sparsity.calibration.clips import CalibrationClip
from sparsity.profile import Profile, Router, Shortcut, Windows
from sparsity.runs import part_of

EVERY = 3
"""Frames between those that are kept, as the authors train (method 3.3)."""


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
        Tokens of windows that are not computed, bool ``[N]``.
    cached
        What the blocks changed when the router last had each window computed, ``[N, C]``; on computed frames the
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

    def through(self, shortcut: ShortcutFunction) -> Tensor:
        """What enters the last block when the windows left out go through a shortcut, ``[N, C]``."""
        return torch.where(self.outside[:, None], shortcut(self.entry), self.routed)


NAMES = tuple(field.name for field in fields(RoutedFrame))


class RoutedFrames(Sequence[RoutedFrame]):
    """Frames in files of `collect`, read one at a time: as many as one likes fit in memory."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._places = [(path, i) for path in paths for i in range(frames_in(path) or 0)]

    def __len__(self) -> int:
        return len(self._places)

    @property
    def clips(self) -> dict[str, int]:
        """Frames of each clip that has any."""
        return dict(Counter(path.stem for path, _ in self._places))

    @overload
    def __getitem__(self, index: int) -> RoutedFrame: ...
    @overload
    def __getitem__(self, index: slice) -> list[RoutedFrame]: ...
    def __getitem__(self, index: int | slice) -> RoutedFrame | list[RoutedFrame]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        path, i = self._places[index]
        with safe_open(path, "pt") as file:
            return RoutedFrame(**{name: file.get_tensor(f"{i}.{name}") for name in NAMES})


def frames_in(path: Path) -> int | None:
    """How many frames a file holds; None where there is no whole file."""
    try:
        with safe_open(path, "pt") as file:
            return int(json.loads(file.metadata()["frames"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def collect(
    predictor: EfficientSAM2VideoPredictor,
    clip: CalibrationClip,
    windows: Windows,
    path: Path,
    router: Router | None = None,
    most_frames: int | None = None,
) -> None:
    """Track a clip and write every third routed frame to `path`, whole or not at all; objects take turns.

    Parameters
    ----------
    windows, router
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
            f"a shortcut was asked for a model of which {why}; expected an encoder as SAM 2 has; use identity"
        )
    profile = Profile(
        name="watched", windows=windows, router=router,
        shortcut=Shortcut(kind="cached"), techniques={"encoder": True},
    )  # fmt: skip
    found: list[RoutedFrame] = []
    with predictor.use(profile, force=True):
        state = predictor.init_state(clip.video, history="bounded")
        for object_id, mask in clip.prompts().items():
            predictor.add_new_mask(state, 0, object_id, mask)
        with _watched(predictor, state, found):
            for _ in predictor.propagate_in_video(state, max_frame_num_to_track=most_frames):
                pass
    part = part_of(path)
    tensors = {
        f"{i}.{name}": getattr(frame, name).cpu().contiguous()
        for i, frame in enumerate(found)
        for name in NAMES
    }
    save_file(tensors, part, {"frames": json.dumps(len(found))})
    part.replace(path)


@contextmanager
def _watched(
    predictor: EfficientSAM2VideoPredictor, state: dict[str, Any], found: list[RoutedFrame]
) -> Iterator[None]:
    """Let every frame be dense, note what the router would have computed, and keep the frames it routes."""
    session = predictor._session(state)
    decided: dict[int, tuple[int, ...] | None] = {}
    cached: dict[int, Tensor] = {}

    def dense(frame: int) -> None:
        session.chooser = None
        decided[frame] = decide_frame(predictor, state, session, frame, False).windows
        session.chooser = dense

    def keep(module: Any, args: Any, given: dict[str, Any], out: Tensor) -> None:
        moment = predictor._seam.moment
        frame, last = moment.frame, session.last
        if frame is None or frame not in decided or last is None:
            return
        windows, (change,) = decided[frame], last.parts[CHANGE]
        if windows is None:
            cached[frame] = change
            return
        grid, before = window_grid(predictor), cached[frame - 1]
        inside = window_tokens(grid.tokens, grid.window, windows, change.device).tokens
        cached[frame] = before.index_copy(0, inside, change[inside])
        cached.pop(frame - 2, None)
        turn = state["obj_ids"][(frame // EVERY) % len(state["obj_ids"])]
        if frame % EVERY or moment.objects != (turn,):
            return
        encoder = predictor._encoder
        entry, _ = encoder.early(state["images"][frame][None].to(predictor.device).float())
        routing = Routing(windows, keep_change=True)
        places = encoder.places(routing, entry.device)
        _, routed = encoder.through_stage3(entry, routing, places)
        assert routed is not None, "it was asked for"
        flat = entry.flatten(0, 1)
        outside = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
        outside[inside] = False
        rows = {key: given[key][:, 0].float() for key in ("memory", "memory_pos")}
        found.append(
            RoutedFrame(
                flat.clone(), flat + change, flat + routed, outside, before, out[:, 0].float().clone(),
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
