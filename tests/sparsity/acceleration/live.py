"""Random sequences of what a client does with cameras, and with stock on the same frames."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from sparsity.acceleration.predictor import EfficientSAM2VideoPredictor
from tests.sparsity.acceleration.conftest import make_frames, make_mask

SIZE = 96, 128

IDS = 1, "cup", 7

SETTINGS = {
    "memory_temporal_stride_for_eval": (1, 1, 2, 3),
    "max_cond_frames_in_attn": (-1, -1, 2, 3),
    "non_overlap_masks": (False, False, True),
    "clear_non_cond_mem_around_input": (False, False, True),
    "max_obj_ptrs_in_encoder": (16, 16, 4),
    "only_obj_ptrs_in_the_past_for_eval": (False, True),
    "multimask_output_for_tracking": (True, True, False),
    "num_maskmem": (7, 7, 4, 2),
}
"""sam2's settings that a client may change on a predictor, and to what."""


def reference(stock: Any) -> Any:
    """A stock predictor for which corrected frames are conditioning ones, with the method that sam2 1.1.0 lacks."""
    found = copy.deepcopy(stock)
    found.add_all_frames_to_correct_as_cond = True
    lacking = EfficientSAM2VideoPredictor._clear_obj_non_cond_mem_around_input
    found._clear_obj_non_cond_mem_around_input = partial(lacking, found)
    return found


@contextmanager
def settings(draw: random.Random, *predictors: Any) -> Iterator[dict[str, Any]]:
    """Draw sam2's settings and have them on some predictors for the length of the context."""
    drawn = {name: draw.choice(values) for name, values in SETTINGS.items()}
    before = [{name: getattr(one, name) for name in drawn} for one in predictors]
    for one in predictors:
        for name, value in drawn.items():
            setattr(one, name, value)
    try:
        yield drawn
    finally:
        for one, old in zip(predictors, before, strict=True):
            for name, value in old.items():
                setattr(one, name, value)


def clip(draw: random.Random, frames: int) -> np.ndarray:
    """A clip uint8 [T, 96, 128, 3] of its own, now and then with a cut."""
    made = np.roll(make_frames(frames), draw.randrange(128), 2)
    if draw.random() < 0.3:
        cut = draw.randrange(1, frames)
        made[cut:] = np.roll(255 - made[cut:], 40, 1)
    return made


def mask(draw: random.Random) -> np.ndarray:
    """A mask bool [96, 128]."""
    return np.roll(make_mask(draw.randrange(6)), draw.randrange(0, 128, 16), 1)


def place(draw: random.Random) -> dict[str, Any]:
    """What a prompt may say of an object."""
    kind = draw.choice(("mask", "mask", "points", "box", "both"))
    if kind == "mask":
        return {"mask": mask(draw)}
    given: dict[str, Any] = {}
    if kind != "points":
        x, y = draw.uniform(0, 60), draw.uniform(0, 40)
        given["box"] = np.float32([x, y, x + draw.uniform(20, 60), y + draw.uniform(20, 50)])
    if kind != "box":
        count = draw.randint(1, 2)
        given["points"] = np.float32(
            [[draw.uniform(0, 127), draw.uniform(0, 95)] for _ in range(count)]
        )
        given["labels"] = np.int32([1, *[draw.randint(0, 1) for _ in range(count - 1)]])
    return given


def give(
    predictor: Any, state: dict[str, Any], frame: int, name: Any, where: dict[str, Any]
) -> Any:
    """Give a prompt to a predictor by sam2's methods."""
    if "mask" in where:
        return predictor.add_new_mask(state, frame, name, where["mask"])
    return predictor.add_new_points_or_box(state, frame, name, **where)


def as_masks(found: Any) -> dict[Any, Tensor]:
    """By id, of what sam2's methods give."""
    _, ids, logits = found
    return {i: logits[k, 0].clone() > 0 for k, i in enumerate(ids)}


@dataclass
class Pushed:
    """A camera, and the same frames in a state that the reference tracks frame by frame.

    Attributes
    ----------
    seen
        Masks of both, call by call.
    """

    camera: Any
    frames: np.ndarray
    state: dict[str, Any]
    prompts: list[tuple[Any, dict[str, Any]]] = field(default_factory=list)
    seen: list[tuple[dict[Any, Tensor], dict[Any, Tensor]]] = field(default_factory=list)

    @property
    def waits(self) -> bool:
        """Whether frames are left."""
        return bool(self.camera.frame < len(self.frames) - 1)

    @property
    def upcoming(self) -> np.ndarray:
        """The frame that is pushed next."""
        found: np.ndarray = self.frames[self.camera.frame + 1]
        return found

    def prompt(self, stock: Any, name: Any, where: dict[str, Any], deaf: bool) -> None:
        """Prompt both, before the first frame or on the one seen last."""
        if self.camera.frame < 0:
            self.prompts.append((name, where))
            self.camera.prompt(name, **where)
            return
        expected = as_masks(give(stock, self.state, self.camera.frame, name, where))
        if not deaf:
            self.seen.append((self.camera.prompt(name, **where), expected))

    def forget(self, stock: Any, name: Any) -> None:
        """Have both forget an object."""
        self.camera.forget(name)
        self.prompts = [it for it in self.prompts if it[0] != name]
        if self.camera.frame >= 0:
            stock.remove_object(self.state, name, need_output=False)

    def expected(self, stock: Any) -> dict[Any, Tensor]:
        """Masks that stock gives of that frame."""
        frame = self.camera.frame + 1
        if frame == 0:  # a prompt on it later is another one before tracking begins
            given = [give(stock, self.state, 0, *prompt) for prompt in self.prompts]
            return as_masks(given[-1]) if given else {}
        if not self.state["obj_ids"]:
            return {}
        (found,) = stock.propagate_in_video(self.state, frame, 0)
        return as_masks(found)


@dataclass
class Played:
    """What was done with some cameras, and what came of it."""

    cameras: list[Pushed]
    done: list[Any]

    @property
    def apart(self) -> float:
        """Largest number of pixels in which a mask and its reference differ; infinite where ids do."""
        most = 0.0
        for found, expected in (pair for one in self.cameras for pair in one.seen):
            if list(found) != list(expected):
                return float("inf")
            most = max([most, *[float((found[i] != expected[i]).sum()) for i in found]])
        return most


def play(seed: int, fast: Any, stock: Any, *, deaf: bool = False) -> Played:
    """Play some cameras, in turn and together, and a reference on the same frames and prompts.

    Parameters
    ----------
    stock
        See `reference`: it keeps every result, and tracks one frame after the other.
    deaf
        Prompts that come while tracking don't reach the cameras, so that these differ.
    """
    draw = random.Random(seed)
    count, length = draw.choice((1, 1, 2, 3)), draw.choice((6, 9, 14))
    history = draw.choice(("bounded", "bounded", "full"))
    with settings(draw, fast, stock) as drawn:
        played = Played(
            [begun(draw, fast, length, history) for _ in range(count)], [history, drawn]
        )
        left = draw.randint(3, 8)
        while any(one.waits for one in played.cameras):
            (what,) = draw.choices(("push", "together", "prompt", "forget"), (5, 3, 4, 1))
            one = draw.choice(played.cameras)
            if what == "push" and one.waits:
                expected = one.expected(stock)
                one.seen.append((one.camera.track(one.upcoming), expected))
            elif what == "together":
                some = [it for it in played.cameras if it.waits and draw.random() < 0.8]
                wanted = [it.expected(stock) for it in some]
                masks = fast.track_cameras({it.camera: it.upcoming for it in some})
                for it, expected in zip(some, wanted, strict=True):
                    it.seen.append((masks[it.camera], expected))
            elif what == "prompt" and (left or not one.camera.objects):
                left = max(0, left - 1)
                name, where = draw.choice(IDS), place(draw)
                played.done.append((played.cameras.index(one), one.camera.frame, name, list(where)))
                one.prompt(stock, name, where, deaf)
            elif what == "forget" and one.camera.objects:
                name = draw.choice(one.camera.objects)
                played.done.append((played.cameras.index(one), one.camera.frame, "forget", name))
                one.forget(stock, name)
    return played


def begun(draw: random.Random, fast: Any, length: int, history: Any) -> Pushed:
    """A camera that nothing was pushed to."""
    frames = clip(draw, length)
    with fast.use("dense"):
        state = fast.init_state(frames)
    state["num_frames"] = sys.maxsize  # as of a stream: pointers' ages are told by it
    return Pushed(fast.camera(SIZE, history=history), frames, state)
