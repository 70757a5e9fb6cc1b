"""Statistics of attention calls while they stream: added, merged, saved."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from probes.mass import foreground_lift
from probes.measure import ROW_STATISTICS as ROW_STATISTICS
from probes.measure import CallStatistics as CallStatistics
from probes.measure import measure as measure
from probes.measure import slot_shares as slot_shares
from probes.records import QUERY_ROWS
from probes.seam import AttentionCall


class AttentionStatistics:
    """Accumulates statistics per site, head and object over frames; two halves merge to the whole.

    Calls of several row lengths are kept apart: entropy and the like can't be averaged over them.

    Parameters
    ----------
    rows, seed
        As in `measure`; the seed is advanced with each frame.

    Examples
    --------
    ``with observe(predictor, statistics.add, "*.global"): …; statistics.result()``
    """

    def __init__(self, rows: int | None = QUERY_ROWS, seed: int = 0) -> None:
        self.rows, self.seed = rows, seed
        self._sums: dict[tuple[str, int, int], dict[str, Tensor]] = {}

    def add(self, call: AttentionCall, foreground: Tensor | None = None) -> CallStatistics:
        """Add a call, and return its own statistics.

        Parameters
        ----------
        foreground
            Share of each token of the site's grid that the object covers, ``[grid**2]``; adds the
            foreground lift.
        """
        found = measure(call, self.rows, self.seed + (call.moment.frame or 0))
        for o, object_id in enumerate(found.objects or (-1,)):
            if o >= len(found.mass):  # a call that objects share
                break
            values = {name: mean[o] for name, mean in found.means.items()}
            if call.where is not None and call.where.kind == "cross":
                values["slots"] = slot_shares(found, call)[o]
            if foreground is not None and found.mass.shape[-1] == len(foreground):
                values["lift"] = foreground_lift(found.mass[o], foreground)
            key = found.site, object_id, call.k.shape[2]
            sums = self._sums.setdefault(key, {})
            for name, value in values.items():
                kept = value.detach().double().cpu()
                known = torch.isfinite(kept)
                add = torch.stack([torch.where(known, kept, 0.0), known.double()])
                sums[name] = sums[name] + add if name in sums else add
        return found

    def merge(self, other: AttentionStatistics) -> None:
        """Add what another accumulator has seen."""
        for key, sums in other._sums.items():
            own = self._sums.setdefault(key, {})
            for name, value in sums.items():
                own[name] = own[name] + value if name in own else value.clone()

    def result(self) -> list[dict[str, Any]]:
        """Means over frames: one entry per site, object (-1: encoder) and ``keys`` of a row, with a list over heads
        per statistic.

        ``slots`` is a list over `probes.records.SLOTS`. Every entry also says over how many ``calls``.
        """
        entries = []
        for (site, object_id, keys), sums in sorted(self._sums.items()):
            entry: dict[str, Any] = {"site": site, "object": object_id, "keys": keys}
            for name, (total, count) in sums.items():
                entry[name] = (total / count).tolist()
            entry["calls"] = int(sums["entropy"][1].max())
            entries.append(entry)
        return entries

    def state_dict(self) -> dict[str, Tensor]:
        """All sums, for `load_state_dict` and safetensors."""
        return {
            f"{site}|{object_id}|{keys}|{name}": value
            for (site, object_id, keys), sums in self._sums.items()
            for name, value in sums.items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from saved sums."""
        self._sums = {}
        for key, value in state.items():
            site, object_id, keys, name = key.split("|")
            sums = self._sums.setdefault((site, int(object_id), int(keys)), {})
            sums[name] = value.clone()


def token_coverage(mask: Tensor, grid: int) -> Tensor:
    """Share of each token that a mask ``[h, w]`` covers, float32 ``[grid**2]``; h and w divide by the grid."""
    pooled = torch.nn.functional.adaptive_avg_pool2d(mask[None, None].float(), grid)
    return pooled.reshape(-1)
