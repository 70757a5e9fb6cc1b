"""Going back in a tracked video: to a frame, as if nothing after it had been prompted or tracked yet.

What sam2 1.1.0 keeps of objects lies in dicts by object and frame, so going back drops the frames that came after. Prompts do
more than add an entry (a corrected frame's tracked result is gone, a removed object with all of its results), so before those of
a frame are given, what is there is noted. Dicts are copied, with those inside them; tensors are made once and shared.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass
from typing import Any

from probes.tracking import Waiting

NAMES = ("obj_id_to_idx", "obj_idx_to_id", "obj_ids")
"""Entries of a state that say which objects there are."""

BY_FRAME = ("point_inputs_per_obj", "mask_inputs_per_obj", "frames_tracked_per_obj")
"""By object, then by frame."""

BY_KIND = ("output_dict_per_obj", "temp_output_dict_per_obj")
"""By object, then by whether the frame is conditioning, then by frame."""

END = sys.maxsize
"""In place of a frame: all are tracked, and going back from the first prompt has not begun."""


class Past:
    """What a video's state was before each prompted frame's prompts were given."""

    def __init__(self) -> None:
        self._before: dict[int, dict[str, Any]] = {}

    def noting(self, prompts: Iterable[Waiting]) -> list[Waiting]:
        """Return prompts that note what is there before they are given."""
        return [_Noting(prompt, self) for prompt in prompts]

    def note(self, state: dict[str, Any], frame: int) -> None:
        """Note what a state holds, unless that was done for this frame."""
        if frame not in self._before:
            self._before[frame] = _within(state, 0, END)

    def go_back(self, state: dict[str, Any], first: int, frame: int) -> None:
        """Have a state hold what was tracked forward from `first` to `frame`, and no prompt of `frame` or later."""
        later = [noted for noted in self._before if noted >= frame]
        state.update(_within(self._before[min(later)] if later else state, first, frame))
        for noted in later:
            if noted > frame:
                del self._before[noted]

    def forget(self) -> None:
        """Forget all that was noted."""
        self._before.clear()


@dataclass(frozen=True)
class _Noting:
    """A prompt before which is noted what is there."""

    prompt: Waiting
    past: Past

    @property
    def frame(self) -> int:
        return self.prompt.frame

    @property
    def object(self) -> int:
        return self.prompt.object

    @property
    def remove(self) -> bool:
        return self.prompt.remove

    def give_to(self, predictor: Any, state: dict[str, Any]) -> None:
        """Note what a state holds, and add the prompt to it."""
        self.past.note(state, self.frame)
        self.prompt.give_to(predictor, state)


def _within(state: dict[str, Any], first: int, last: int) -> dict[str, Any]:
    """Copy what a state holds of objects on some frames; tensors are shared."""

    def cut(frames: dict[int, Any]) -> dict[int, Any]:
        return {t: _copied(found) for t, found in frames.items() if first <= t <= last}

    kept: dict[str, Any] = {name: copy(state[name]) for name in NAMES}
    for name in BY_FRAME:
        kept[name] = {i: cut(frames) for i, frames in state[name].items()}
    for name in BY_KIND:
        kept[name] = {
            i: {kind: cut(frames) for kind, frames in kinds.items()}
            for i, kinds in state[name].items()
        }
    return kept


def _copied(found: Any) -> Any:
    """Copy a dict and the dicts in it: later frames write into results what they chose of them."""
    return (
        {key: _copied(value) for key, value in found.items()} if isinstance(found, dict) else found
    )
