"""Ready edits of attention for `probes.observing.edit`: ablate, patch with calls of another run, scale to a region.

Each is a function from a call to what is computed instead. An ablated head or call gives zero to the output projection,
whose bias stays; an ablated memory frame or pointer is read as though the memory bank did not have it. Patching is
causal mediation as in Vig et al. 2020 and Meng et al. 2022 (section 2): a part of one run is put into another.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from probes.errors import InputError
from probes.layout import MemoryFrame, Pointer
from probes.maps import key_tokens, site_of
from probes.mass import token_coverage
from probes.observing import Ready
from probes.seam import AttentionCall, Change
from probes.sites import AttentionSite

Part = Literal["q", "k", "v", "weights", "output"]


def ablate_heads(*heads: int) -> Ready:
    """Let some heads give nothing.

    Parameters
    ----------
    heads
        Which, counted from 0; every site must have them.
    """

    def check(site: AttentionSite) -> None:
        _check_heads(site, heads)

    def change(call: AttentionCall) -> AttentionCall:
        output = call.attended().clone()
        output[:, list(heads)] = 0
        return call.change(output=output)

    return Ready(change, check)


def ablate_call(call: AttentionCall) -> AttentionCall:
    """Let all heads of a call give nothing: the layer adds the bias of its output projection alone."""
    return call.change(output=torch.zeros_like(call.attended()))


def ablate_memory_frames(which: int | Collection[int] | Callable[[MemoryFrame], bool]) -> Ready:
    """Take memory frames out of the bank that some layers read; their object pointers stay.

    Parameters
    ----------
    which
        Indices of frames in the video, or a function of a `probes.layout.MemoryFrame`, such as
        ``lambda frame: frame.conditioning`` or ``lambda frame: frame.age > 3``. Calls whose bank holds none stay as
        they are.
    """

    def gone(call: AttentionCall, keys: Tensor) -> Tensor:
        layout = call.moment.layouts[0]
        mine = [_wanted(which, frame) for frame in layout.frames]
        of_frame = (keys // layout.tokens).clamp(max=len(mine) - 1)
        return torch.tensor(mine, device=keys.device)[of_frame] & (keys < layout.frame_keys)

    return _without_keys(gone)


def ablate_pointers(which: int | Collection[int] | Callable[[Pointer], bool]) -> Ready:
    """Take object pointers out of the bank that some layers read; memory frames stay.

    Parameters
    ----------
    which
        Indices of their frames, or a function of a `probes.layout.Pointer`, such as ``lambda pointer: True``.
    """

    def gone(call: AttentionCall, keys: Tensor) -> Tensor:
        layout = call.moment.layouts[0]
        mine = [_wanted(which, pointer) for pointer in layout.pointers]
        of_pointer = (keys - layout.frame_keys) // layout.pointer_tokens
        no = torch.zeros_like(keys, dtype=torch.bool)
        if not mine:
            return no
        found = torch.tensor(mine, device=keys.device)[of_pointer.clamp(min=0)]
        return torch.where(of_pointer >= 0, found, no)

    return _without_keys(gone)


def _wanted(
    which: int | Collection[int] | Callable[..., bool], entry: MemoryFrame | Pointer
) -> bool:
    if callable(which):
        return bool(which(entry))
    return entry.frame == which if isinstance(which, int) else entry.frame in which


def _without_keys(gone: Callable[[AttentionCall, Tensor], Tensor]) -> Ready:
    """Leave keys of memory cross-attention out: those that `gone` says of the dense run's keys ``[Nk]``."""

    def check(site: AttentionSite) -> None:
        if site.kind != "cross":
            raise InputError(
                f"memory is to be ablated at {site.name}, which reads none; expected memory cross-attention; give sites "
                "such as memory.*.cross"
            )

    def change(call: AttentionCall) -> AttentionCall | None:
        count = call.k.shape[2]
        keys = torch.arange(count, device=call.k.device) if call.keys is None else call.keys
        out = gone(call, keys)
        return call.keep(~out) if bool(out.any()) else None

    return Ready(change, check)


# ---------------------------------------------------------------------- patching


@dataclass
class StoredCalls:
    """Calls of a run, to be put into another: an observer first, then the maker of an edit.

    >>> stored = StoredCalls()  # with observe(predictor, stored, "memory.*"): track one run
    >>> patched = stored.patch("output")  # with edit(predictor, patched, "memory.*"): track another

    Attributes
    ----------
    calls
        By site, frame and object (None for the encoder), one object each; tensors are copies.
    """

    calls: dict[tuple[str, int | None, int | None], AttentionCall] = field(default_factory=dict)

    def __call__(self, call: AttentionCall) -> None:
        """Store a call."""
        moment = call.moment
        names = get_args(Part)
        if not moment.objects:
            self.calls[call.site, moment.frame, None] = replace(
                call, **{n: t.clone() for n in names if (t := getattr(call, n)) is not None}
            )
        for row, known in enumerate(moment.objects):
            at = row if len(call.q) == len(moment.objects) else 0  # one row that all share
            mine = {n: t[at : at + 1].clone() for n in names if (t := getattr(call, n)) is not None}
            of_row = moment.of_row(row)
            self.calls[call.site, moment.frame, known] = replace(call, moment=of_row, **mine)

    def patch(
        self,
        *parts: Part,
        heads: Collection[int] | None = None,
        objects: Mapping[int, int] | None = None,
        later: int = 0,
    ) -> Ready:
        """Make an edit that puts stored calls into a run.

        Parameters
        ----------
        parts
            What is put in: ``"q"``, ``"k"``, ``"v"`` of them, or ``"weights"`` (with or without ``"v"``), or ``"output"``.
        heads
            Of these heads alone; None for all.
        objects
            By object of the run whose call is put into it; others stay as they are. None: every object's own. Encoder
            calls belong to no object.
        later
            The call of frame t is put into frame ``t + later``.

        Raises
        ------
        InputError
            A part is none of these. From inside the run: nothing is stored for a call, or it has another shape.
        """
        if not parts or not set(parts) <= set(get_args(Part)):
            raise InputError(
                f"parts {list(parts)} were to be patched; expected some of {', '.join(get_args(Part))}; choose among them"
            )

        def check(site: AttentionSite) -> None:
            _check_heads(site, heads or ())
            if not any(name == site.name for name, _, _ in self.calls):
                raise InputError(
                    f"{site.name} is to be patched, but no call of it is stored; expected one; observe a run with this "
                    "site first"
                )

        def of(call: AttentionCall, known: int | None) -> AttentionCall | None:
            if objects is not None and known is not None:
                if known not in objects:
                    return None
                known = objects[known]
            frame = None if call.moment.frame is None else call.moment.frame - later
            found = self.calls.get((call.site, frame, known))
            if found is None:
                raise InputError(
                    f"{call.site} is to be patched with the call of frame {frame} and object {known}, which is not stored; "
                    "expected a run that has it; observe one, or restrict the edit with only(…)"
                )
            return found

        def change(call: AttentionCall) -> AttentionCall | None:
            ids = call.moment.objects
            stored = [of(call, known) for known in ids] if ids else [of(call, None)]
            if ids and len(call.q) != len(ids):
                if len(set(map(id, stored))) > 1:
                    raise InputError(
                        f"{call.site} is one call of objects {list(ids)}, which are to be patched each otherwise; expected a "
                        "call each; track them one at a time"
                    )
                stored = stored[:1]
            if all(one is None for one in stored):
                return None
            made = {part: _patched(call, part, stored, heads) for part in parts}
            return call.change(**made)

        return Ready(change, check)


def _part_of(call: AttentionCall, part: Part) -> Tensor:
    if part == "weights":
        return call.attention()
    found: Tensor = call.attended() if part == "output" else getattr(call, part)
    return found


def _patched(
    call: AttentionCall,
    part: Part,
    stored: list[AttentionCall | None],
    heads: Collection[int] | None,
) -> Tensor:
    """A part of a call with that of stored calls in it, row by row."""
    whole = _part_of(call, part).clone()
    rows = whole.split(1) if call.moment.objects else [whole]
    for row, one in zip(rows, stored, strict=True):
        if one is None:
            continue
        new = _part_of(one, part)
        if new.shape != row.shape:
            raise InputError(
                f"{part} of {call.site} on frame {call.moment.frame} has shape {list(row.shape)}, but the stored call's has "
                f"{list(new.shape)}; expected runs whose memory and windows are alike; patch the output, or other frames"
            )
        chosen = list(range(row.shape[1])) if heads is None else list(heads)
        row[:, chosen] = new[:, chosen].to(row)
    return whole


# ---------------------------------------------------------------------- regions


def scale_region(
    region: Tensor,
    factor: float,
    memory: int | Collection[int] | Callable[[MemoryFrame], bool] | None = None,
) -> Ready:
    """Scale the attention to what lies in a region of the picture; each row's weights sum to one again.

    Parameters
    ----------
    region
        bool ``[H, W]`` over the picture. A key that it covers in part is scaled by ``factor ** share``; padding and
        pointers are not scaled.
    factor
        Above 1 for more, between 0 and 1 for less.
    memory
        At memory cross-attention the memory frames it holds for, as `ablate_memory_frames` takes them; None for all.

    Raises
    ------
    InputError
        The region is no mask with something in it, or the factor is not above zero.
    """
    if region.ndim != 2 or region.dtype != torch.bool or not bool(region.any()):
        raise InputError(
            f"a region {region.dtype} of shape {list(region.shape)} was given; expected a bool mask [H, W] with something in "
            "it; give one"
        )
    if not 0 < factor < float("inf"):
        raise InputError(
            f"factor {factor} was given; expected a number above 0; ablate to take attention away altogether"
        )

    def check(site: AttentionSite) -> None:
        if site.part == "decoder" and site.kind != "token_to_image":
            raise InputError(
                f"attention to a region is to be scaled at {site.name}, whose keys are no places of the picture; expected the "
                "encoder, memory or token_to_image; choose such sites"
            )

    def change(call: AttentionCall) -> AttentionCall:
        site, device = site_of(call), call.k.device
        cover = token_coverage(region, site.grid).to(device)
        tokens = key_tokens(call)
        share = torch.where(tokens >= 0, cover[tokens.clamp(min=0)], 0.0)
        if site.kind == "cross" and memory is not None:
            layout = call.moment.layouts[0]
            ids = torch.arange(call.k.shape[2], device=device) if call.keys is None else call.keys
            mine = torch.tensor(
                [_wanted(memory, frame) for frame in layout.frames] + [False], device=device
            )
            share = share * mine[(ids // layout.tokens).clamp(max=len(layout.frames))]
        weights = call.attention() * (factor**share)[:, None, None]
        return call.change(weights=weights / weights.sum(-1, keepdim=True))

    return Ready(change, check)


# ---------------------------------------------------------------------- where and when


def only(
    function: Change, frames: Collection[int] | None = None, objects: Collection[int] | None = None
) -> Ready:
    """Restrict an edit to calls of some frames and some objects.

    Parameters
    ----------
    function
        Any edit.
    frames
        Indices of frames; None for all.
    objects
        Ids; None for all. The encoder's calls belong to no object.
    """

    def check(site: AttentionSite) -> None:
        if objects is not None and site.part == "encoder":
            raise InputError(
                f"{site.name} is to be edited for objects {list(objects)}, but all objects share it; expected a site of "
                "memory or decoder; leave objects out"
            )
        if isinstance(function, Ready):
            function.check(site)

    def change(call: AttentionCall) -> AttentionCall | None:
        if frames is not None and call.moment.frame not in frames:
            return None
        ids = call.moment.objects
        rows = [row for row, known in enumerate(ids) if objects is None or known in objects]
        if objects is None or len(rows) == len(ids):
            return function(call)
        if not rows:
            return None
        return _in_rows(call, rows, function)

    return Ready(change, check)


def _in_rows(call: AttentionCall, rows: list[int], function: Change) -> AttentionCall | None:
    """Edit some of the objects in a call of several."""
    moment = call.moment
    names: tuple[Part, ...] = get_args(Part)
    mine = replace(
        moment,
        objects=tuple(moment.objects[row] for row in rows),
        layouts=tuple(moment.layouts[row] for row in rows if moment.layouts),
    )
    some = {n: t[rows] for n in names if (t := getattr(call, n)) is not None}
    given = replace(call, moment=mine, **some)
    made = function(given)
    if made is None:
        return None
    found: dict[str, Tensor] = {}
    for name in names:
        new: Tensor | None = getattr(made, name)
        if new is None or new is getattr(given, name):
            continue
        whole = _part_of(call, name).clone()
        if new.shape != whole[rows].shape:
            raise InputError(
                f"{name} of shape {list(new.shape)} was given for objects {list(mine.objects)} of {call.site}; expected "
                f"{list(whole[rows].shape)}; keep the shape"
            )
        whole[rows] = new.to(whole)
        found[name] = whole
    return call.change(**found) if found else None


def _check_heads(site: AttentionSite, heads: Collection[int]) -> None:
    wrong = [head for head in heads if not 0 <= head < site.heads]
    if wrong:
        raise InputError(
            f"head {wrong[0]} of {site.name} was given; expected 0 to {site.heads - 1}; choose among them"
        )
