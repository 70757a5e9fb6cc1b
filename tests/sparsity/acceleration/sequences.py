"""Random sequences of what a client does with sam2's video predictor, played on stock and accelerated ones alike."""

from __future__ import annotations

import copy
import io
import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from probes.errors import InputError
from probes.video import EndOfVideo
from sparsity.techniques import KEY
from tests.sparsity.acceleration.conftest import make_frames, make_mask, off_by

FRAMES = 6

IDS = (1, 7, "cup")
"""Objects, as a client names them."""


Near = Callable[[Tensor, Tensor], bool]
"""Whether a tensor is what is expected, by another one of its shape."""

HALF = "mat1 and mat2 must have the same dtype"
"""What stock raises without autocast where memory holds no pointers: it is bfloat16 then. Exact rewrites read it."""


@dataclass(frozen=True)
class Call:
    """Something that a client does: which method of `Client`, and what it is given."""

    name: str
    given: dict[str, Any] = field(default_factory=dict)


@dataclass
class Raised:
    """What a call raised."""

    kind: type[Exception]
    message: str


class Client:
    """Somebody who tracks a video, and keeps a propagation that was broken off.

    Attributes
    ----------
    predictor, state
        Stock or accelerated, and the video's.
    filled
        Features that the client put into sam2's cache.
    """

    def __init__(self, predictor: Any, state: dict[str, Any], filled: Any = None) -> None:
        self.predictor, self.state, self.filled = predictor, state, filled
        self.frames: Iterator[Any] = iter(())

    def do(self, call: Call) -> Any:
        """Give what a call returns or raises; tensors as they are now."""
        try:
            return copy.deepcopy(getattr(self, call.name)(**call.given))
        except Exception as error:
            return Raised(type(error), str(error))

    def point(self, **given: Any) -> Any:
        return self.predictor.add_new_points_or_box(self.state, **given)

    def mask(self, **given: Any) -> Any:
        return self.predictor.add_new_mask(self.state, **given)

    def clear(self, **given: Any) -> Any:
        return self.predictor.clear_all_prompts_in_frame(self.state, **given)

    def remove(self, **given: Any) -> Any:
        return self.predictor.remove_object(self.state, **given)

    def reset(self) -> Any:
        return self.predictor.reset_state(self.state)

    def preflight(self) -> Any:
        return self.predictor.propagate_in_video_preflight(self.state)

    def propagate(self, taken: int, **given: Any) -> Any:
        """Begin a propagation and take some frames of it."""
        self.frames = self.predictor.propagate_in_video(self.state, **given)
        return self.resume(taken)

    def resume(self, taken: int) -> Any:
        """Take more frames of the propagation that was begun last."""
        return [copy.deepcopy(found) for _, found in zip(range(taken), self.frames, strict=False)]

    @torch.inference_mode()
    def step(self, frame: int, nth: int, reverse: bool) -> Any:
        """Track one object into a frame oneself."""
        outputs = self.state["output_dict_per_obj"][nth]
        out, logits = self.predictor._run_single_frame_inference(
            self.state, outputs, frame, 1, False, None, None, reverse, True
        )
        outputs["non_cond_frame_outputs"][frame] = out
        return logits

    def empty(self) -> Any:
        """Empty sam2's cache of features."""
        self.state["cached_features"].clear()

    @torch.inference_mode()
    def fill(self, frame: int, stock: Any) -> Any:
        """Put features of another picture into it."""
        image = self.state["images"][frame][None].flip(-1)
        self.filled = stock.forward_image(image)
        self.state["cached_features"] = {frame: (image, self.filled)}

    @torch.inference_mode()
    def paint(self, frame: int) -> Any:
        """Put another picture in a frame's place, and have it encoded anew."""
        self.state["images"][frame] = self.state["images"][frame].flip(-1)
        self.state["cached_features"].pop(frame, None)

    def edit(self, frame: int) -> Any:
        """Change the memory of a frame."""
        for outputs in self.state["output_dict_per_obj"].values():
            for results in outputs.values():
                if frame in results and results[frame]["maskmem_features"] is not None:
                    results[frame]["maskmem_features"] = -results[frame]["maskmem_features"]

    def drop(self, frame: int) -> Any:
        """Drop the results of a frame that no prompt was on."""
        for outputs in self.state["output_dict_per_obj"].values():
            outputs["non_cond_frame_outputs"].pop(frame, None)

    def copied(self, saved: bool) -> Any:
        """Go on with a copy of the state, or with one that was saved and read."""
        entry = next(iter(self.state["cached_features"].values()), (None, None))
        mine = self.filled is not None and entry[1] is self.filled
        if saved:
            file = io.BytesIO()
            torch.save(self.state, file)
            file.seek(0)
            self.state = torch.load(file, weights_only=False)
        else:
            self.state = copy.deepcopy(self.state)
        self.filled = next(iter(self.state["cached_features"].values()))[1] if mine else None
        self.frames = iter(())

    def twin(self, stock: Any) -> Client:
        """A stock client with a copy of the state, who has of sam2's cache what a client put there."""
        known = self.state["cached_features"]
        mine = {t: entry for t, entry in known.items() if entry[1] is self.filled}
        state = {key: value for key, value in self.state.items() if key != KEY}
        return Client(stock, copy.deepcopy({**state, "cached_features": mine}))

    def results(self) -> Any:
        """All that sam2 keeps of objects, but what is ours."""
        names = "obj_ids", "frames_tracked_per_obj", "point_inputs_per_obj", "mask_inputs_per_obj"
        outputs = {
            (key, i, kind, t): {name: item for name, item in out.items() if name != KEY}
            for key in ("output_dict_per_obj", "temp_output_dict_per_obj")
            for i, per_object in self.state[key].items()
            for kind, results in per_object.items()
            for t, out in results.items()
        }
        return [self.state[name] for name in names], outputs


def drawn(draw: random.Random, stock: Any, calls: list[Call]) -> Call:
    """Draw what follows some calls, often on the frame of the last one; of what a client may give, some is wrong."""
    frame, object_id = draw.randrange(FRAMES), draw.choice(IDS)
    if calls and draw.random() < 0.6:
        last = calls[-1].given
        frame = last.get("frame_idx", last.get("frame", frame))
    if draw.random() < 0.02:
        frame = draw.choice((FRAMES, -1))
    if len(calls) < 2:
        return Call("mask", {"frame_idx": 0, "obj_id": IDS[len(calls)], "mask": _mask(draw)})
    at = {"frame_idx": frame, "obj_id": object_id}
    kinds: dict[str, tuple[int, Callable[[], dict[str, Any]]]] = {
        "point": (6, lambda: at | _point(draw)),
        "mask": (4, lambda: at | {"mask": _mask(draw)}),
        "clear": (2, lambda: at | {"need_output": draw.random() < 0.7}),
        "remove": (1, lambda: {"obj_id": object_id, "strict": draw.random() < 0.5, "need_output": draw.random() < 0.7}),
        "reset": (0.5, dict),
        "preflight": (2, dict),
        "propagate": (6, lambda: _propagation(draw)),
        "resume": (2, lambda: {"taken": draw.randint(1, 3)}),
        "step": (6, lambda: {"frame": frame, "nth": draw.randrange(2), "reverse": draw.random() < 0.3}),
        "empty": (1, dict),
        "fill": (1, lambda: {"frame": frame, "stock": stock}),
        "paint": (1, lambda: {"frame": frame}),
        "edit": (1, lambda: {"frame": frame}),
        "drop": (1, lambda: {"frame": frame}),
        "copied": (1, lambda: {"saved": draw.random() < 0.5}),
    }  # fmt: skip
    (name,) = draw.choices(list(kinds), [weight for weight, _ in kinds.values()])
    return Call(name, kinds[name][1]())


def _point(draw: random.Random) -> dict[str, Any]:
    count, given = draw.randint(0, 2), dict[str, Any]()
    if count or draw.random() < 0.1:
        points = [[draw.uniform(0, 128), draw.uniform(0, 96)] for _ in range(count)]
        array = np.array(points, np.float32).reshape(-1, 2)
        given["points"] = draw.choice((array, torch.from_numpy(array)))
        labels = [draw.choice((1, 1, 0)) for _ in range(count)]
        given["labels"] = draw.choice((np.array(labels, np.int32), labels))
    if draw.random() < (0.2 if count else 0.9):
        given["box"] = draw.choice(([7, 2, 71, 62], np.array([[60, 20], [120, 90]], np.float32)))
    if draw.random() < 0.3:
        given["clear_old_points"] = False
    if draw.random() < 0.1:
        given["normalize_coords"] = False
    if draw.random() < 0.03:
        given.pop("labels", None)
    return given


def _mask(draw: random.Random) -> Any:
    mask = np.roll(make_mask(draw.randrange(FRAMES)), draw.randrange(0, 128, 16), 1)
    if draw.random() < 0.1:
        mask = np.zeros_like(mask)
    if draw.random() < 0.02:
        mask = mask[None]
    if draw.random() < 0.1:
        mask = mask[::2, ::2]
    return draw.choice((mask, torch.from_numpy(mask.copy())))


def _propagation(draw: random.Random) -> dict[str, Any]:
    return {
        "taken": draw.choice((1, 2, FRAMES + 1)),
        "start_frame_idx": draw.choice((None, None, draw.randrange(FRAMES))),
        "max_frame_num_to_track": draw.choice((None, 0, 2)),
        "reverse": draw.random() < 0.3,
    }


def rounded(found: Tensor, expected: Tensor) -> bool:
    """Whether tensors of several frames differ by rounding alone: of float32, or of memory, which is kept in bfloat16."""
    if not expected.is_floating_point():
        return torch.equal(found, expected)
    most = 1e-2 if expected.dtype == torch.bfloat16 else 1e-3
    return off_by(found, expected) <= most or torch.equal(found, expected)


def finite(found: Tensor, expected: Tensor) -> bool:
    """What holds of every profile."""
    return bool(found.isfinite().all())


NEAR: dict[str | None, Near] = {
    None: torch.equal,
    "dense": torch.equal,
    "exact": rounded,
    "paper": finite,
    "recommended": finite,
}
"""By profile, when what it gives is as near to stock's as it promises."""


def same(found: Any, expected: Any, near: Near = torch.equal) -> bool:
    """Whether two results are alike in kind, ids, frames, shapes and errors, and tensors as `near` says."""
    if isinstance(expected, Raised):
        return isinstance(found, Raised) and _same_error(found, expected)
    if isinstance(expected, Tensor):
        alike = isinstance(found, Tensor) and (found.shape, found.dtype) == (expected.shape, expected.dtype)  # fmt: skip
        return alike and near(found, expected)
    if isinstance(expected, dict):
        keys = isinstance(found, dict) and list(found) == list(expected)
        return keys and all(same(found[key], expected[key], near) for key in expected)
    if isinstance(expected, list | tuple):
        alike = isinstance(found, list | tuple) and len(found) == len(expected)
        return alike and all(same(a, b, near) for a, b in zip(found, expected, strict=True))
    return bool(found == expected)


def _same_error(found: Raised, expected: Raised) -> bool:
    """Whether both raised the same; ours say more behind a video's end and, where sam2 asserts it, of a prompt that is lost."""
    if expected.kind is AssertionError and found.kind is InputError:
        return "lost its last prompt" in found.message
    return found == expected or (found.kind, expected.kind) == (EndOfVideo, IndexError)


@dataclass
class Played:
    """What came of a sequence: the calls, and where the last one gave another result than stock, the profile and both."""

    calls: list[Call] = field(default_factory=list)
    profile: str | None = None
    differs: tuple[Any, Any] | None = None


def side_by_side(seed: int, stock: Any, fast: Any, folder: str, length: int) -> Played:
    """Play one sequence on two predictors, in states of their own, and compare results and states bit for bit."""
    draw = random.Random(seed)
    options = {"offload_video_to_cpu": draw.random() < 0.5, "offload_state_to_cpu": draw.random() < 0.5}  # fmt: skip
    eager = draw.random() < 0.5
    theirs = Client(stock, stock.init_state(folder, **options))
    ours = Client(fast, fast.init_state(folder, **options, eager=eager))
    played = Played()
    for _ in range(length):
        call = drawn(draw, stock, played.calls)
        played.calls.append(call)
        expected = theirs.do(call)
        with fast.use(None) if draw.random() < 0.5 else nullcontext():
            found = ours.do(call)
        pair = (found, ours.results()), (expected, theirs.results())
        if not same(*pair):
            played.differs = pair
            break
    return played


def in_turn(
    seed: int, stock: Any, fast: Any, folder: str, length: int, near: dict[str | None, Near]
) -> Played:
    """Play a sequence whose calls have a profile each; stock does each on a copy of the state before it.

    Parameters
    ----------
    near
        By profile, when its tensors are as near to stock's as it promises.
    """
    draw = random.Random(seed)
    ours = Client(fast, fast.init_state(folder, eager=draw.random() < 0.5))
    played = Played()
    for _ in range(length):
        call, played.profile = drawn(draw, stock, played.calls), draw.choice(list(near))
        if call.name == "resume":  # it has no copy
            continue
        played.calls.append(call)
        theirs = ours.twin(stock)
        expected = theirs.do(call)
        with fast.use(played.profile):
            found = ours.do(call)
        pair = (found, ours.results()), (expected, theirs.results())
        if near[played.profile] is not torch.equal and HALF in str(expected):
            continue  # ours went on
        if not same(*pair, near[played.profile]):
            played.differs = pair
            break
    return played


def write_clip(folder: Path) -> str:
    """Write the clip that sequences are played on as JPEG files, and give the folder as stock wants it."""
    for t, frame in enumerate(make_frames(FRAMES)):
        Image.fromarray(frame).save(folder / f"{t:05d}.jpg", quality=92)
    return str(folder)
