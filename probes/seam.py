"""The seam: where what happens inside a predictor passes by, attention calls above all.

A predictor's attention hands each call to `Seam.pass_by`. There those who edit it come first (`probes.observing.edit`),
then those who observe are told of what is left to compute (`observe`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from random import SystemRandom
from threading import local
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from probes.errors import InputError
from probes.layout import MemoryLayout
from probes.mass import attention_weights
from probes.sites import AttentionSite


@dataclass(frozen=True)
class Moment:
    """When an attention call happens.

    Attributes
    ----------
    frame
        Index of the frame; None where it is not known (features asked for outside tracking).
    objects
        Ids of the objects that the call's batch rows belong to, in order; empty for encoder calls. A call
        that all objects share (the first memory self-attention) has one row and names them all.
    reverse
        Whether tracking runs backwards.
    layouts
        What each key of memory cross-attention is, one layout per object; empty outside memory attention.
    """

    frame: int | None = None
    objects: tuple[int, ...] = ()
    reverse: bool = False
    layouts: tuple[MemoryLayout, ...] = ()

    def of_row(self, row: int) -> Moment:
        """The same moment for one object of several."""
        return replace(
            self, objects=self.objects[row : row + 1], layouts=self.layouts[row : row + 1]
        )


@dataclass(frozen=True)
class AttentionCall:
    """One attention call, after rotary phases, query pooling and head split.

    Attributes
    ----------
    site
        Dotted name, see `probes.sites`.
    q, k, v
        ``[B, h, Nq, c]``, ``[B, h, Nk, c]``, ``[B, h, Nk, cv]``; not to be changed. In windowed blocks B
        counts windows.
    moment
        When it happens.
    keys
        int64: what took part, where that is not everything in its natural order. Memory and global
        blocks: ``[Nk]``, which of the dense run's keys. Windowed blocks: ``[B]``, which windows.
    queries
        int64 ``[Nq]``: which of the dense run's queries a memory or global call made; None for all of them, in
        global blocks for those that `keys` names.
    there
        bool ``[B, 1, 1, Nk]``: keys of trimmed windows that take part, as keys and as queries; the others are masked.
        None where all do.
    where
        The site itself with its geometry; None for a call that did not pass through `observe` or `edit`.
    size
        Height and width of the video in pixels, where known.
    weights, output
        What an edit put in the place of ``softmax(q kᵀ / √c)``, float ``[B, h, Nq, Nk]``, or of the heads' output,
        ``[B, h, Nq, cv]``; None where it follows from q, k and v.
    """

    site: str
    q: Tensor
    k: Tensor
    v: Tensor
    moment: Moment
    keys: Tensor | None = None
    queries: Tensor | None = None
    there: Tensor | None = None
    where: AttentionSite | None = None
    size: tuple[int, int] | None = None
    weights: Tensor | None = None
    output: Tensor | None = None

    def attention(self) -> Tensor:
        """The attention weights, float32 ``[B, h, Nq, Nk]``: the whole matrix, which may be large."""
        return (
            attention_weights(self.q, self.k, self.there) if self.weights is None else self.weights
        )

    def attended(self) -> Tensor:
        """What the heads give, before the output projection: ``[B, h, Nq, cv]``."""
        if self.output is not None:
            return self.output
        if self.weights is None:
            return F.scaled_dot_product_attention(self.q, self.k, self.v, attn_mask=self.there)
        with torch.autocast(self.v.device.type, enabled=False):
            return (self.weights.float() @ self.v.float()).to(self.v.dtype)

    def change(
        self,
        *,
        q: Tensor | None = None,
        k: Tensor | None = None,
        v: Tensor | None = None,
        weights: Tensor | None = None,
        output: Tensor | None = None,
    ) -> AttentionCall:
        """The same call with other tensors, each of the shape it has here; for functions that `edit` is given.

        What comes later takes the place of what it is computed from: weights that of q and k, output that of all.
        """
        given = {"q": q, "k": k, "v": v, "weights": weights, "output": output}
        found: dict[str, Any] = {name: t for name, t in given.items() if t is not None}
        if weights is not None and (q is not None or k is not None):
            raise InputError(
                f"weights and {'q' if q is not None else 'k'} of {self.site} were given; weights take the place of both; "
                "give one or the other"
            )
        if output is not None and len(found) > 1:
            raise InputError(
                f"output and {next(iter(found))} of {self.site} were given; output takes the place of all others; give "
                "one or the other"
            )
        return replace(self, **found)

    def keep(self, kept: Tensor) -> AttentionCall:
        """The same call with some of its keys alone: as though the others were not there.

        Parameters
        ----------
        kept
            int64 ``[n]``, positions among the call's keys, each once; or bool ``[Nk]``.

        Raises
        ------
        InputError
            None are kept, one isn't there, or the site's keys can't be left out one by one.
        """
        count, device = self.k.shape[2], self.k.device
        where = self.where
        if where is None or not (where.part == "memory" or where.kind == "global"):
            raise InputError(
                f"keys of {self.site} were to be left out; expected a site of memory or global attention; give weights "
                "instead"
            )
        at = kept.to(device)
        if at.dtype == torch.bool:
            at = at.nonzero()[:, 0] if at.shape == (count,) else at.new_zeros(0, dtype=torch.int64)
        right = at.ndim == 1 and len(at) > 0 and len(at.unique()) == len(at)
        if not right or not 0 <= int(at.min()) <= int(at.max()) < count:
            raise InputError(
                f"{len(at)} keys of {self.site} on frame {self.moment.frame} were to be kept; expected some of its "
                f"{count}, each once; keep at least one"
            )
        ids = torch.arange(count, device=device) if self.keys is None else self.keys
        queries = self.queries
        if queries is None and where.kind == "global":
            queries = ids
        k, v = self.k.index_select(2, at), self.v.index_select(2, at)
        return replace(self, k=k, v=v, keys=ids[at], queries=queries)


Change = Callable[[AttentionCall], "AttentionCall | None"]
"""From an attention call to what is computed instead; None: as it was."""


@dataclass(frozen=True)
class Told:
    """What a step of the predictor made, and when."""

    moment: Moment
    what: Any


@dataclass(frozen=True)
class Step:
    """A step of `STEPS` begins, or has ended."""

    name: str
    begins: bool


@dataclass(eq=False)
class Editor:
    """An edit that is in place.

    Attributes
    ----------
    function
        What is given each call.
    sites
        Whose calls, by name.
    calls, changed
        How many came, and how many of them were changed.
    number
        Tells what was made under it from what was not.
    features
        Videos whose frame had features when they were first encoded under the edit, and these: sam2's cache.
    """

    function: Change
    sites: Mapping[str, AttentionSite]
    calls: int = 0
    changed: int = 0
    number: int = field(default_factory=lambda: SystemRandom().getrandbits(64))
    features: list[tuple[dict[str, Any], Any]] = field(default_factory=list, repr=False)

    def __call__(self, call: AttentionCall) -> AttentionCall:
        """Have a call changed; the same object where it is not.

        Raises
        ------
        InputError
            What came back is no call, or has tensors of other shapes.
        """
        site = self.sites.get(call.site)
        if site is None:
            return call
        self.calls += 1
        given = replace(call, where=site)
        made = self.function(given)
        if made is None or not _changed(given, made):
            return call
        self.changed += 1
        _check_change(given, made)
        q, k, v = (new.to(old) for new, old in zip(_qkv(made), _qkv(given), strict=True))
        output = None if made.output is None else made.output.to(v)
        return replace(made, q=q, k=k, v=v, output=output)

    def begin_afresh(self, state: dict[str, Any]) -> None:
        """Put aside features that a video's frame had before, so that they are made under the edit."""
        if not any(state is known for known, _ in self.features):
            self.features.append((state, state["cached_features"]))
            state["cached_features"] = {}

    def end(self) -> None:
        """Put them back."""
        for state, before in self.features:
            state["cached_features"] = before


def _qkv(call: AttentionCall) -> tuple[Tensor, Tensor, Tensor]:
    return call.q, call.k, call.v


def _changed(before: AttentionCall, after: AttentionCall) -> bool:
    if not isinstance(after, AttentionCall):
        raise InputError(
            f"an edit of {before.site} gave a {type(after).__name__}; expected the call or None; return "
            "call.change(output=...) or the like"
        )
    return any(getattr(before, name) is not getattr(after, name) for name in (*_ORDER, "keys"))


_ORDER = {"q": 0, "k": 0, "weights": 1, "v": 1, "output": 2}
"""Tensors of a call: what is of a lower number no longer counts where one of a higher number is set."""


def _check_change(before: AttentionCall, after: AttentionCall) -> None:
    """Refuse what can't be computed, or what another edit has taken the place of."""
    stage = 2 if before.output is not None else 1 if before.weights is not None else 0
    b, h, n, c = before.q.shape
    kept = before.k.shape[2]
    if after.keys is not before.keys and after.keys is not None:
        kept = len(after.keys)
    shapes = {
        "q": (b, h, n, c),
        "k": (b, h, kept, c),
        "v": (b, h, kept, before.v.shape[3]),
        "weights": (b, h, n, kept),
        "output": (b, h, n, before.v.shape[3]),
    }
    for name, number in _ORDER.items():
        new = getattr(after, name)
        if new is getattr(before, name):
            continue
        if number < stage:
            raise InputError(
                f"{name} of {before.site} was changed, but an edit before has set its {'output' if stage == 2 else 'weights'}, "
                f"which no longer follows from {name}; expected a change of what comes later; edit in another order"
            )
        if tuple(new.shape) != shapes[name]:
            raise InputError(
                f"{name} of shape {list(new.shape)} was given for {before.site}; expected {list(shapes[name])}; keep the "
                "shape (call.keep leaves keys out)"
            )
    weights, there = after.weights, after.there
    if weights is None or there is None or weights is before.weights:
        return
    if bool(weights.masked_fill(there, 0).any()):
        raise InputError(
            f"weights of {before.site} were given for keys that are not there (windows are trimmed); expected 0 for "
            "those where call.there is false; start from call.attention()"
        )


class Now(local):
    """What is under way in each thread.

    Attributes
    ----------
    moment
        When the calls happen that are now under way.
    size
        Height and width in pixels of the video they belong to.
    strips
        Calls that are to be joined, by site.
    windows
        Which windows they together hold; None for all.
    """

    moment = Moment()
    size: tuple[int, int] | None = None
    strips: dict[str, list[AttentionCall]] | None = None
    windows: Tensor | None = None


ATTENTION = frozenset({"attention", "gradients", "edit"})
"""Kinds of listeners for which attention calls pass by."""


class Seam:
    """Where what happens inside a predictor passes by; not listened to, it costs a look at an attribute a call.

    Attributes
    ----------
    listeners
        Who is told, by the kind of what happens, see `probes.observing.listen`; kinds that nobody listens to are absent.
    watched
        Whether attention calls are told to anybody, or edited.
    now
        What is under way in this thread.
    threads
        Those in which one of the predictor's own steps is under way; predictors may share modules.
    """

    def __init__(self) -> None:
        self.listeners: dict[str, tuple[Callable[[Any], Any], ...]] = {}
        self.watched = False
        self.now = Now()
        self.threads: set[int] = set()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes over: who listens, not what is under way."""
        return {"listeners": self.listeners, "watched": self.watched}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, now=Now(), threads=set())

    def add(self, callbacks: Mapping[str, Callable[[Any], Any]]) -> None:
        """Let callbacks be told from now on, each of the kind that it is given for."""
        for kind, callback in callbacks.items():
            self.listeners[kind] = (*self.listeners.get(kind, ()), callback)
        self.watched = not ATTENTION.isdisjoint(self.listeners)

    def remove(self, callbacks: Mapping[str, Callable[[Any], Any]]) -> None:
        """Tell them no more."""
        for kind, callback in callbacks.items():
            left = tuple(one for one in self.listeners[kind] if one is not callback)
            if left:
                self.listeners[kind] = left
            else:
                del self.listeners[kind]
        self.watched = not ATTENTION.isdisjoint(self.listeners)

    def tell(self, kind: str, what: Any) -> None:
        """Hand what happened to all that listen to its kind."""
        for listener in self.listeners.get(kind, ()):
            listener(what)

    def editors(self, sites: str | tuple[str, ...] = "") -> tuple[Editor, ...]:
        """Edits that are in place, of sites whose names begin so, or like one of several; the outermost first."""
        found: tuple[Any, ...] = self.listeners.get("edit", ())
        return tuple(one for one in found if any(name.startswith(sites) for name in one.sites))

    def edition(self, sites: str = "") -> tuple[int, ...]:
        """Tells what is made now from what is made under other edits of such sites, or none."""
        return tuple(one.number for one in self.editors(sites))

    def pass_by(
        self,
        site: str,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        keys: Tensor | None = None,
        row: int | None = None,
        queries: Tensor | None = None,
        there: Tensor | None = None,
    ) -> AttentionCall | None:
        """Have a call edited, and tell of what is left of it.

        Parameters
        ----------
        row
            Which of the moment's objects it belongs to; None for all of them.

        Returns
        -------
        AttentionCall or None
            What is to be computed instead; None: the call as it was.
        """
        now = self.now
        keys = now.windows if keys is None and now.strips is not None else keys
        given = self.call(site, q, k, v)
        moment = given.moment if row is None else given.moment.of_row(row)
        given = replace(given, moment=moment, keys=keys, queries=queries, there=there)
        call = self.edited(given)
        if now.strips is not None:
            now.strips.setdefault(site, []).append(call)
        else:
            self.tell_attention(call)
        return None if call is given else call

    def call(self, site: str, q: Tensor, k: Tensor, v: Tensor) -> AttentionCall:
        """A call that is made now."""
        return AttentionCall(site, q, k, v, self.now.moment, size=self.now.size)

    def edited(self, call: AttentionCall) -> AttentionCall:
        """What edits make of a call; the same object where they leave it."""
        for editor in self.listeners.get("edit", ()):
            call = editor(call)
        return call

    def tell_attention(self, call: AttentionCall) -> None:
        """Tell of a call, without gradients to those who didn't ask for them."""
        self.tell("gradients", call)
        if "attention" in self.listeners:
            tensors = {name: getattr(call, name) for name in _ORDER}
            plain: dict[str, Any] = {
                name: t.detach() for name, t in tensors.items() if t is not None
            }
            self.tell("attention", replace(call, **plain))

    @contextmanager
    def at(self, moment: Moment) -> Iterator[None]:
        """Say when the calls of the context happen."""
        before, self.now.moment = self.now.moment, moment
        try:
            yield
        finally:
            self.now.moment = before

    @contextmanager
    def joined(self, windows: Tensor | None) -> Iterator[None]:
        """Join calls of one site, made strip by strip, to one call along the batch, told when the context ends.

        `windows` says which windows the strips together hold, int64; None for all. Calls that are edited come in one
        strip.
        """
        if not self.watched:
            yield
            return
        self.now.strips, self.now.windows = {}, windows
        try:
            yield
            strips = self.now.strips
        finally:
            self.now.strips = self.now.windows = None
        for calls in strips.values():
            first, *more = calls
            if more:
                q, k, v = (torch.cat(tensors) for tensors in zip(*map(_qkv, calls), strict=True))
                first = replace(first, q=q, k=k, v=v)
            self.tell_attention(first)
