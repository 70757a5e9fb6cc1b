"""What calibration reads of a clip: the dense run's masks, scores and routing cues, and its memory statistics.

A trace holds what the predictor would know on every frame, unreduced, so that any threshold can be tried on it
without the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsity.profile import Router, Windows
from sparsity.routing import ObjectCues, cue_row, cues_on_host
from sparsity.select import LOW_RES_STRIDE, TOKEN_STRIDE, WindowGrid, scene_change, window_mass
from sparsity.window_cues import needed, window_cues

Cues = list[list["ObjectCues | None"]]
"""By frame and object, ``[T][O]``; None on prompts, as the predictor has none there."""

Found = TypeVar("Found")


@dataclass(frozen=True, eq=False)
class MemoryTrace:
    """Attention to the tokens of memory frames.

    Attributes
    ----------
    curve
        Mass recall of the `k + 1` tokens most salient at first recollection (method 4.2), mean over memory frames,
        float64 ``[layers, ages, tokens]``.
    ages
        Ages of the memory frames when they are read later, in frames, ascending.
    exposure
        Share of all attention that falls on memory frames that may be pruned, mean by layer, ``[layers]``.
    keys, prunable
        For each tracked frame and object: keys that a dense run reads, and how many memory frames may be
        pruned, int ``[calls]``.
    """

    curve: NDArray[np.float64]
    ages: tuple[int, ...]
    exposure: NDArray[np.float32]
    keys: NDArray[np.int64]
    prunable: NDArray[np.int64]


def recall_curve(first: NDArray[np.float32], later: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mass recall by number of tokens, mean over memory frames.

    Parameters
    ----------
    first
        Token saliency at first recollection, ``[cases, layers, tokens]``.
    later
        The same at later ages, ``[cases, layers, ages, tokens]``.

    Examples
    --------
    >>> first = np.float32([[[0.2, 0.7, 0.1]]])
    >>> recall_curve(first, np.float32([[[[0.25, 0.5, 0.25]]]])).round(2).tolist()
    [[[0.5, 0.75, 1.0]]]
    """
    order = np.argsort(-first, axis=-1, kind="stable")[:, :, None]
    share = later / np.maximum(later.sum(-1, keepdims=True), 1e-12)
    ranked = np.take_along_axis(share, np.broadcast_to(order, share.shape), -1)
    curve: NDArray[np.float64] = ranked.astype(np.float64).mean(0).cumsum(-1)
    return curve


@dataclass(frozen=True, eq=False)
class Trace:
    """One clip, tracked forward from its prompts.

    Attributes
    ----------
    name
        Of the clip.
    model
        Fingerprint of the model that was run.
    grid
        Windows of encoder stage 3.
    frames
        Their indices, in the order of tracking, ``[T]``.
    candidates
        Whether low-resolution logits of each candidate mask are above 0, ``[T, O, M, h, w]``.
    best
        The same of the mask that was chosen, ``[T, O, h, w]``.
    saliency
        Decoder attention on the token grid, float32 ``[T, O, n, n]``; NaN where no decoder ran.
    score
        Object-score logits, ``[T, O]``.
    tracked
        False on prompts, ``[T, O]``.
    thumbnails
        In units of full scale, ``[T, 3, s, s]``.
    memory
        Memory statistics, or None where they were not recorded.
    token_logits
        Mask logits as the router reads them, float32 ``[T, O, 2, n, n]``; None where they were not recorded.
    """

    name: str
    model: str
    grid: WindowGrid
    frames: tuple[int, ...]
    candidates: Tensor
    best: Tensor
    saliency: Tensor
    score: Tensor
    tracked: Tensor
    thumbnails: Tensor
    memory: MemoryTrace | None
    token_logits: Tensor | None = None

    @property
    def objects(self) -> int:
        """Number of objects."""
        return self.score.shape[1]

    @property
    def digest(self) -> str:
        """SHA-256 of what was recorded."""
        found = hashlib.sha256(self.model.encode())
        for part in (self.candidates, self.best, self.saliency, self.score, self.thumbnails):
            found.update(part.contiguous().numpy().tobytes())
        if self.memory is not None:
            found.update(self.memory.curve.tobytes())
        if self.token_logits is not None:
            found.update(self.token_logits.numpy().tobytes())
        return found.hexdigest()

    @cached_property
    def change(self) -> list[float]:
        """Thumbnail difference of each frame to the one before, 0 on the first."""
        pairs = zip(self.thumbnails, self.thumbnails[1:], strict=False)
        return [0.0, *(scene_change(before, after) for before, after in pairs)]

    @cached_property
    def tokens(self) -> Tensor:
        """Object tokens in each window, over all objects, ``[T, windows]``: what routing must not miss."""
        return self._tokens(self.best.any(1))

    @cached_property
    def tokens_of_objects(self) -> Tensor:
        """The same object by object, ``[T, O, windows]``."""
        return self._tokens(self.best)

    def _tokens(self, masks: Tensor) -> Tensor:
        """Tokens with any pixel of masks ``[..., h, w]`` in each window, ``[..., windows]``."""
        step = TOKEN_STRIDE // LOW_RES_STRIDE
        flat = masks.reshape(-1, 1, *masks.shape[-2:]).float()
        there = torch.nn.functional.max_pool2d(flat, step, ceil_mode=True)[:, 0]
        return window_mass(there, self.grid).reshape(*masks.shape[:-2], self.grid.count)

    @cached_property
    def _found(self) -> dict[tuple[float, str, Router | None], Cues]:
        return {}

    def cues(
        self, margin_px: float, candidates: Literal["all", "best"], router: Router | None = None
    ) -> Cues:
        """Each object's cues on each frame, found once for the same thresholds."""
        key = (margin_px, candidates, router)
        if key not in self._found:
            if router is None:
                windows = Windows(margin_px=margin_px, candidates=candidates)
                found = self._each(lambda t, i: self._cue(t, i, windows))
            else:
                plain = self.cues(margin_px, candidates)
                found = self._each(lambda t, i: self._asked(plain[t][i], t, i, router))
            self._found[key] = found
        return self._found[key]

    @cached_property
    def window_cues(self) -> list[list[Tensor | None]]:
        """What a router reads of each object on each frame, ``[T][O]`` of ``[windows, cues]``; None on prompts."""
        plain = self.cues(0.0, "best")
        return self._each(lambda t, i: self._of_windows(plain[t][i], t, i))

    def _each(self, found: Callable[[int, int], Found]) -> list[list[Found | None]]:
        return [
            [found(t, i) if self.tracked[t, i] else None for i in range(self.objects)]
            for t in range(len(self.frames))
        ]

    def _before(self, t: int, i: int) -> Tensor | None:
        return self.best[t - 1, i] if t and bool(self.tracked[t - 1, i]) else None

    def _cue(self, t: int, i: int, windows: Windows) -> ObjectCues:
        saliency, before = self.saliency[t, i], self._before(t, i)
        row = cue_row(
            self.candidates[t, i].float(), self.best[t, i].float(),
            None if before is None else before.float(), None if bool(saliency.isnan().any()) else saliency,
            float(self.score[t, i]), self.grid, windows,
        )  # fmt: skip
        return cues_on_host(row[None], self.grid)[0]

    def _of_windows(self, cue: ObjectCues | None, t: int, i: int) -> Tensor:
        assert cue is not None, "tracked frames have cues"
        logits = None if self.token_logits is None else self.token_logits[t, i]
        return window_cues(
            self.candidates[t, i], self.best[t, i], self._before(t, i), logits, cue.score, cue.jump, self.grid
        )  # fmt: skip

    def _asked(self, cue: ObjectCues | None, t: int, i: int, router: Router) -> ObjectCues:
        """The same cue with the windows that a router asks for, as `sparsity.routing.cue_row` has it."""
        of_windows = self.window_cues[t][i]
        assert cue is not None and of_windows is not None, "tracked frames have cues"
        return replace(cue, touched=needed(of_windows, router)) if bool(cue.touched.any()) else cue
