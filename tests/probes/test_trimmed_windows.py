"""Trimmed windows: a token that is not there is neither key nor query, in masses, statistics and maps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from probes.errors import InputError
from probes.maps import attention_map, attention_rows
from probes.mass import attention_weights, key_mass, window_slots
from probes.measure import measure
from probes.observing import AttentionCall, Moment
from probes.sites import AttentionSite

GRID, WINDOW, HEADS = 6, 4, 2
"""2 x 2 windows of 4 x 4 tokens, of which the right and lower ones are half padding."""


def made(pool: int = 1, windows: tuple[int, ...] = (0, 1, 3)) -> AttentionCall:
    """A call of trimmed windows: of cells of 2 x 2 tokens some are there, and all padding is."""
    site = AttentionSite(
        "encoder.stage3.block3.window", "encoder", "window", HEADS, GRID, 16, WINDOW, pool, 3, 3,
        module=None,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)

    def draw(tokens: int) -> Tensor:
        return torch.randn(len(windows), HEADS, tokens, 8, generator=generator)

    q, k, v = draw((WINDOW // pool) ** 2) * 2, draw(WINDOW**2), draw(WINDOW**2)
    cells = torch.tensor([[1, 0, 0, 1], [0, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]])
    there = cells.bool().view(-1, 2, 2).repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)
    ids = torch.tensor(windows)
    there = (there | (window_slots(GRID, WINDOW) < 0))[ids][:, None, None]
    return AttentionCall(
        site.name, q, k, v, Moment(2), keys=ids, there=there, where=site, size=(96, 96)
    )


def token_of(slot: int, window: int) -> int:
    return int(window_slots(GRID, WINDOW)[window, slot])


def centres(side: int, tokens: int) -> Tensor:
    """Middles of a window's queries or keys of so many tokens a side, (y, x) in pixels of the model's input."""
    y, x = torch.arange(side**2) // side, torch.arange(side**2) % side
    return (torch.stack([y, x], -1) + 0.5) * tokens * 16


def computed(call: AttentionCall, window: int) -> list[tuple[int, int]]:
    """Which queries of a window are there, and the token of each on the grid of queries, by hand."""
    assert call.where is not None and call.keys is not None and call.there is not None
    pool = call.where.pool
    side = WINDOW // pool
    places = window_slots(GRID // pool, side)[window]
    there = call.there[call.keys.tolist().index(window), 0, 0].view(WINDOW, WINDOW)
    return [
        (y * side + x, int(places[y * side + x]))
        for y in range(side)
        for x in range(side)
        if there[y * pool, x * pool] and places[y * side + x] >= 0
    ]


def weights(call: AttentionCall) -> Tensor:
    """The whole matrix in float64, absent keys left out."""
    assert call.there is not None
    scores = call.q.double() @ call.k.double().mT * call.q.shape[-1] ** -0.5
    return scores.masked_fill(~call.there, -math.inf).softmax(-1)


def with_other_absent_tokens(call: AttentionCall) -> AttentionCall:
    """The same call with something else where no token is."""
    assert call.there is not None
    absent = ~call.there[:, :, 0, :, None]
    k = torch.where(absent, call.k + 3, call.k)
    q = torch.where(absent, call.q - 3, call.q) if call.q.shape == call.k.shape else call.q
    return replace(call, q=q, k=k)


def test_weights_are_those_among_the_keys_that_are_there() -> None:
    call = made()
    assert call.there is not None
    found = attention_weights(call.q, call.k, call.there)
    assert torch.allclose(found.double(), weights(call), atol=1e-6)
    assert (found.masked_select(~call.there) == 0).all()
    assert not torch.allclose(found, attention_weights(call.q, call.k), atol=1e-3)


@pytest.mark.parametrize("buffer", [2**24, 700])
def test_absent_keys_receive_nothing(buffer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probes.mass.MASS_BYTES", buffer)
    call = made()
    assert call.there is not None
    found = key_mass(call.q, call.k, there=call.there)
    assert torch.allclose(found.double(), weights(call).mean(2), atol=1e-6)
    assert (found.masked_select(~call.there[:, :, 0]) == 0).all()
    assert not torch.allclose(found, key_mass(call.q, call.k), atol=1e-3)


@pytest.mark.parametrize("pool", [1, 2])
def test_mass_on_the_grid_is_of_what_is_there(pool: int) -> None:
    call = made(pool)
    found = measure(call)
    expected = torch.zeros(HEADS, GRID**2, dtype=torch.float64)
    rows = 0
    for b, window in enumerate((0, 1, 3)):
        for query, _ in computed(call, window):
            rows += 1
            for slot, token in enumerate(window_slots(GRID, WINDOW)[window].tolist()):
                if token >= 0:
                    expected[:, token] += weights(call)[b, :, query, slot]
    assert found.rows == rows
    assert torch.allclose(found.mass[0].double(), expected / rows, atol=1e-6)
    assert not torch.allclose(found.mass, measure(replace(call, there=None)).mass, atol=1e-3)


@pytest.mark.parametrize("pool", [1, 2])
def test_statistics_are_those_of_windows_without_the_absent_tokens(pool: int) -> None:
    """Each row counts with as many keys as it has."""
    call = made(pool)
    assert call.there is not None
    found = measure(call, rows=4)  # a sample would miss most of the few that are there
    sums: dict[str, list[Tensor]] = {}
    for b, window in enumerate((0, 1, 3)):
        for query, _ in computed(call, window):
            among = weights(call)[b, :, query]
            p, real = among[:, call.there[b, 0, 0]], window_slots(GRID, WINDOW)[window] >= 0
            asked = centres(WINDOW // pool, pool)[query]
            far = (centres(WINDOW, 1) - asked).norm(dim=-1)[real]
            n = p.shape[-1]
            ordered = p.sort(-1, descending=True).values
            nats = -(p * p.log()).sum(-1)
            place = torch.arange(1, n + 1)
            for name, value in {
                "entropy": nats / math.log(n),
                "support": nats.exp(),
                "n90": (ordered.cumsum(-1) < 0.9).sum(-1) + 1.0,
                "gini": (ordered * (n + 1 - 2 * place)).sum(-1) / n,
                "top10": ordered[:, : max(1, n // 10)].sum(-1),
                "padding": among[:, ~real].sum(-1),
                "distance_px": (among[:, real] * far).sum(-1) / among[:, real].sum(-1),
            }.items():
                sums.setdefault(name, []).append(value)
    without = measure(replace(call, there=None), rows=None)
    assert sums.keys() == found.means.keys()
    for name, values in sums.items():
        assert torch.allclose(
            found.means[name][0].double(), torch.stack(values).double().mean(0), atol=1e-5
        )
        assert not torch.allclose(found.means[name], without.means[name], atol=1e-3), name


def test_what_lies_where_no_token_is_changes_nothing() -> None:
    call = made()
    other = with_other_absent_tokens(call)
    before, after = measure(call), measure(other)
    assert torch.equal(before.mass, after.mass)
    for name, value in before.means.items():
        assert torch.equal(value, after.means[name]), name
    untrimmed = (measure(replace(one, there=None)) for one in (call, other))
    assert not torch.equal(*(one.mass for one in untrimmed))


@pytest.mark.parametrize("pool", [1, 2])
def test_rows_are_of_what_is_there(pool: int) -> None:
    call = made(pool)
    (query, token), *_ = computed(call, 1)
    row = attention_rows(call, [token])[:, 0]
    expected = torch.zeros(HEADS, GRID**2, dtype=torch.float64)
    for slot, key in enumerate(window_slots(GRID, WINDOW)[1].tolist()):
        if key >= 0:
            expected[:, key] = weights(call)[1, :, query, slot]
    assert torch.allclose(row.double(), expected, atol=1e-6)
    assert not torch.allclose(row, attention_rows(replace(call, there=None), [token])[:, 0])


def middle(token: int) -> tuple[float, float]:
    """A pixel of a token of the grid of keys; the picture is the model's input."""
    return token % GRID * 16 + 8, token // GRID * 16 + 8


Ask = Callable[[AttentionCall], Tensor]


@pytest.mark.parametrize(
    "ask",
    [
        lambda call: attention_rows(call, [token_of(2, 0)]),
        lambda call: attention_map(call, query_xy=middle(token_of(2, 0))),
    ],
    ids=["rows", "map"],
)
def test_a_query_that_is_not_there_is_refused_like_one_of_a_window_left_out(ask: Ask) -> None:
    call = made()
    with pytest.raises(InputError) as absent:
        ask(call)
    with pytest.raises(InputError) as left_out:
        ask(made(windows=(1, 3)))
    assert str(absent.value) == str(left_out.value)
    assert "did not compute on this frame" in str(absent.value)
    assert ask(replace(call, there=None)).sum() > 0


@pytest.mark.parametrize("pool", [1, 2])
def test_who_looks_at_a_token_is_who_is_there(pool: int) -> None:
    call = made(pool)
    slot, key = 5, token_of(5, 0)
    seen = attention_map(call, key_xy=middle(key)).flatten()
    expected = torch.zeros_like(seen, dtype=torch.float64)
    for query, token in computed(call, 0):
        expected[token] = weights(call)[0, :, query, slot].mean()
    assert torch.allclose(seen.double(), expected, atol=1e-6)
    assert (seen > 0).sum() == len(computed(call, 0)) < (WINDOW // pool) ** 2
    untrimmed = attention_map(replace(call, there=None), key_xy=middle(key)).flatten()
    assert (untrimmed > 0).sum() == (WINDOW // pool) ** 2
    absent = middle(token_of(2, 0))
    assert (attention_map(call, key_xy=absent) == 0).all()
    assert (attention_map(replace(call, there=None), key_xy=absent) > 0).any()
