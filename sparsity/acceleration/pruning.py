"""Which tokens of an object's memory frames are read on a frame, and what is remembered of that choice."""

from __future__ import annotations

import torch

from probes.layout import MemoryFrame, MemoryLayout, stored_result
from sparsity.acceleration.bank import Bank, Results, memory_tokens
from sparsity.acceleration.memory import Recall
from sparsity.acceleration.report import ObjectReport
from sparsity.acceleration.session import KEY, ChosenTokens, FrameExtras
from sparsity.profile import Memory


def is_exempt(entry: MemoryFrame, memory: Memory) -> bool:
    """Whether a memory frame is read whole now."""
    return (entry.conditioning and "conditioning" in memory.exempt) or (
        entry.newest and "newest" in memory.exempt
    )


def kept_tokens(
    layout: MemoryLayout, results: Results, memory: Memory, stride: int, reverse: bool
) -> tuple[list[ChosenTokens | None], list[int], bool]:
    """Say what is read of each memory frame.

    Parameters
    ----------
    layout
        Of the frame that is to be tracked.
    results
        The object's, with the tokens chosen so far.
    stride
        Memory stride: of other frames only the newest is ever read, so nothing is measured for them.

    Returns
    -------
    tuple
        For each memory frame its kept tokens, or None for all; the positions of the frames whose token
        saliency is to be measured now, at their first recollection (method 4.2); and whether the last of the
        whole frames, the newest, is cut at once, because it is not exempt.
    """
    tokens: list[ChosenTokens | None] = [None] * len(layout.frames)
    measure: list[int] = []
    cut = False
    if memory.keep == 1.0:
        return tokens, measure, cut
    for f, entry in enumerate(layout.frames):
        extras = stored_result(results, entry).get(KEY)
        chosen = None if extras is None else extras.tokens.get(reverse)
        if chosen is not None and chosen.follow(memory):
            if not is_exempt(entry, memory):
                tokens[f] = chosen
        elif entry.conditioning:
            if "conditioning" not in memory.exempt:
                measure.append(f)
        else:
            cut = entry.newest and "newest" not in memory.exempt
            if entry.frame % stride == 0 or cut:
                measure.append(f)
    return tokens, measure, cut


def remember_choice(
    results: Results, bank: Bank, recall: Recall, memory: Memory, reverse: bool
) -> None:
    """Keep newly chosen tokens with the results of the frames they belong to."""
    for f, chosen in recall.chosen.items():
        out = stored_result(results, bank.layout.frames[f])
        features, position = memory_tokens(out)
        every = torch.cat(chosen).to(features.device)
        out.setdefault(KEY, FrameExtras()).tokens[reverse] = ChosenTokens(
            chosen, features.index_select(0, every), position.index_select(0, every), memory
        )


def note_keys(report: ObjectReport, bank: Bank, recall: Recall, memory: Memory) -> None:
    """Enter into an object's report how many keys were read."""
    layout = bank.layout
    prunable = sum(not is_exempt(entry, memory) for entry in layout.frames)
    report.keys_used, report.keys_total = recall.keys_used, layout.keys
    report.pruned_frames = len(bank.pruned) + bank.cut
    report.prunable_keys_total = prunable * layout.tokens
    kept = sum(recall.prunable_used) / max(1, len(recall.prunable_used))
    report.prunable_keys_used = kept + (prunable - report.pruned_frames) * layout.tokens
