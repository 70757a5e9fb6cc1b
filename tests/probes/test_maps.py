"""Attention maps: the right rows, in their natural places."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from probes.errors import InputError
from probes.maps import attention_map, attention_rows, token_at
from probes.measure import measure
from probes.observing import AttentionCall

Calls = Callable[..., list[AttentionCall]]


def by_site(calls: list[AttentionCall]) -> dict[str, AttentionCall]:
    return {call.site: call for call in calls}


def weights(call: AttentionCall) -> Tensor:
    """The whole attention matrix of the first row, ``[h, Nq, Nk]``."""
    return (call.q[0].float() @ call.k[0].float().mT * call.q.shape[-1] ** -0.5).softmax(-1)


@pytest.mark.parametrize("profile", ["dense", "exact"])
def test_rows_are_the_matrix_in_natural_order(demo_calls: Calls, profile: str) -> None:
    reference, calls = by_site(demo_calls("dense")), by_site(demo_calls(profile))
    for site, call in calls.items():
        rows = attention_rows(call, [0, 5])
        if call.where is not None and call.where.kind != "window":
            ref = reference[site]
            assert torch.allclose(rows, weights(ref)[:, [0, 5]], atol=2e-3), site
        assert torch.allclose(rows.sum(-1), torch.ones(()), atol=1e-4)


def test_windowed_rows_stay_in_their_window(demo_calls: Calls) -> None:
    call = by_site(demo_calls("dense"))[
        "encoder.stage3.block4.window"
    ]  # 16 x 16 tokens, windows of 4
    rows = attention_rows(call, [6 * 16 + 9]).mean((0, 1)).view(16, 16)
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[4:8, 8:12] = True
    assert (rows[inside] > 0).all() and (rows[~inside] == 0).all()
    expected = (call.q[6] @ call.k[6].mT * call.q.shape[-1] ** -0.5).softmax(-1)[:, 2 * 4 + 1]
    assert torch.allclose(rows[4:8, 8:12].reshape(-1), expected.mean(0), atol=1e-6)


def test_a_pixel_names_its_token(demo_calls: Calls) -> None:
    call = by_site(demo_calls("dense"))["encoder.stage3.block5.global"]  # the video is 128 x 96
    assert token_at(call, (127.9, 95.9), 16) == 255
    assert token_at(call, (8.5, 0), 16) == 1
    with pytest.raises(InputError, match="the video is 128x96"):
        token_at(call, (128, 0), 16)


def test_what_a_pixel_looks_at_is_whom_it_looks_at(demo_calls: Calls) -> None:
    for site in (
        "encoder.stage3.block5.global",
        "encoder.stage3.block4.window",
        "memory.layer1.self",
    ):
        call = by_site(demo_calls("dense"))[site]
        seen = attention_map(call, query_xy=(40, 50))
        back = attention_map(call, key_xy=(42, 30))
        at, key = token_at(call, (40, 50), 16), token_at(call, (42, 30), 16)
        assert seen.view(-1)[key].item() == pytest.approx(back.view(-1)[at].item(), abs=1e-6)
        assert not torch.allclose(seen, attention_map(call, query_xy=(80, 50)))
        by_head = [attention_map(call, query_xy=(40, 50), head=h) for h in range(call.q.shape[1])]
        assert torch.allclose(seen, torch.stack(by_head).mean(0), atol=1e-6)
        assert len(by_head) == 1 or not torch.allclose(by_head[0], by_head[1], atol=1e-4)


@pytest.mark.parametrize(
    "site", ["encoder.stage3.block9.global", "memory.layer1.self", "memory.layer1.cross"]
)
def test_maps_of_some_queries_are_those_queries_maps(demo_calls: Calls, site: str) -> None:
    call = by_site(demo_calls("recommended"))[site]
    assert call.queries is not None
    asked, p, read = call.queries.tolist(), weights(call), call.keys
    token = next(t for i, t in enumerate(asked) if t > i and t < len(asked) - 1)
    row = p.new_zeros(len(p), call.moment.layouts[0].keys if "cross" in site else 256)
    row[:, torch.arange(p.shape[2]) if read is None else read] = p[:, asked.index(token)]
    assert torch.allclose(attention_rows(call, [token])[:, 0], row, atol=1e-6)
    assert not torch.allclose(row, attention_rows(call, [asked[token]])[:, 0], atol=1e-4)
    xy = (token % 16 * 8 + 4, token // 16 * 6 + 3)
    seen = attention_map(call, query_xy=xy)
    assert torch.allclose(
        seen.flatten(), row.mean(0)[: row.shape[1] // 256 * 256].view(-1, 256).sum(0), atol=1e-6
    )
    whole = attention_map(call, key_xy=xy).flatten()
    left = torch.ones(256, dtype=torch.bool)
    left[asked] = False
    assert left.any() and (whole[left] == 0).all() and (whole[asked] > 0).all()
    assert whole[token].item() == pytest.approx(seen.flatten()[token].item(), abs=1e-6)
    if site == "memory.layer1.self":
        assert torch.allclose(attention_map(call, object=1).flatten()[read], p.mean((0, 1)))
    with pytest.raises(InputError, match="did not compute"):
        attention_rows(call, [int(left.nonzero()[0])])


@pytest.mark.parametrize(
    "site",
    [
        "memory.layer0.self",
        "memory.layer1.self",
        "memory.layer1.cross",
        "decoder.final.token_to_image",
    ],
)
def test_without_an_object_all_are_averaged(demo_calls: Calls, site: str) -> None:
    dense, exact = (
        [c for c in demo_calls(profile, objects=2) if c.site == site]
        for profile in ("dense", "exact")
    )
    where = {} if site.startswith("decoder") else {"query_xy": (40, 50)}
    both = attention_map(dense, **where)
    assert torch.allclose(both, attention_map(exact, **where), atol=1e-3 * both.max())
    for calls in (dense, exact):
        one, two = (attention_map(calls, object=i, **where) for i in (1, 2))
        assert torch.allclose(both, (one + two) / 2, atol=1e-3 * both.max())
        same = torch.allclose(one, both, atol=1e-2 * both.max())
        assert same == (site == "memory.layer0.self")  # that has not read the objects yet


def test_memory_frames_add_up(demo_calls: Calls) -> None:
    call = by_site(demo_calls("dense"))["memory.layer2.cross"]
    whole = attention_map(call, query_xy=(40, 50))
    parts = [attention_map(call, query_xy=(40, 50), memory_age=age) for age in (1, 2, 3)]
    assert torch.allclose(whole, sum(parts), atol=1e-6)
    pointers = attention_rows(call, [token_at(call, (40, 50), 16)])[..., -6:].sum()
    assert whole.sum().item() + pointers.item() == pytest.approx(1, abs=0.05)
    with pytest.raises(InputError, match="ages 3, 2, 1"):
        attention_map(call, query_xy=(40, 50), memory_age=4)
    recalled = attention_map(call, object=1, memory_age=1)
    assert 0 < recalled.sum() < 1


def test_an_object_is_looked_at_by_the_decoder(demo_calls: Calls) -> None:
    calls = [c for c in demo_calls("dense") if c.site.endswith("token_to_image")]
    assert len(calls) == 3
    seen = attention_map(calls, object=1)
    assert seen.sum().item() == pytest.approx(1, abs=1e-5)
    assert not torch.allclose(seen, attention_map(calls, object=1, layer=0))
    with pytest.raises(InputError, match="0 of 3 calls fit layer None, frame None and object 9"):
        attention_map(calls, object=9)
    with pytest.raises(InputError, match="no answer at decoder"):
        attention_map(calls, query_xy=(1, 1))


def test_keys_that_were_not_read_are_dark(demo_calls: Calls) -> None:
    paper = by_site(demo_calls("paper"))
    call = paper["memory.layer0.cross"]
    assert call.keys is not None
    rows = attention_rows(call, [0])[0, 0]
    unread = torch.ones(len(rows), dtype=torch.bool)
    unread[call.keys] = False
    assert unread.any() and (rows[unread] == 0).all() and (rows[~unread] > 0).any()
    assert attention_map(call, query_xy=(40, 50), memory_age=2).count_nonzero() < 20


def test_early_windows_that_were_left_out_are_known(demo_calls: Calls) -> None:
    """Stages 1 and 2 see the picture alone, so a window that is computed anew is that of a dense run."""
    dense, fast = ({c.site: c for c in demo_calls(name)} for name in ("dense", "recommended"))
    for site in [name for name in dense if name.split(".")[2] in ("block0", "block2", "block3")]:
        whole, part = dense[site], fast[site]
        assert whole.keys is None and part.keys is not None
        assert len(part.keys) == len(part.q) < len(whole.q)
        assert torch.allclose(part.q, whole.q[part.keys], atol=1e-3)
        assert not torch.allclose(part.q, whole.q[: len(part.q)], atol=1e-3)
        found = [attention_map(call, query_xy=(50, 48)) for call in (whole, part)]
        assert torch.allclose(*found, atol=1e-4)
        assert measure(part).mass.sum(-1).allclose(torch.ones(()))
        with pytest.raises(InputError, match="did not compute"):
            attention_map(part, query_xy=(127, 1))


def test_calls_of_several_frames_are_not_averaged(demo_calls: Calls) -> None:
    calls = demo_calls("dense")
    later = [replace(call, moment=replace(call.moment, frame=4), q=2 * call.q) for call in calls]
    site = "memory.layer2.cross"
    both = [call for call in (*calls, *later) if call.site == site]
    with pytest.raises(InputError, match=r"calls of frames 3, 4 were given.*frame="):
        attention_map(both, object=1)
    one, two = (attention_map(both, object=1, frame=t) for t in (3, 4))
    assert torch.equal(one, attention_map(both[0], object=1)) and not torch.equal(one, two)
    with pytest.raises(InputError, match="0 of 2 calls fit layer None, frame 5 and object 1"):
        attention_map(both, object=1, frame=5)


def test_a_head_that_is_not_there_is_named(demo_calls: Calls) -> None:
    call = by_site(demo_calls("dense"))["encoder.stage3.block5.global"]
    last = call.q.shape[1] - 1
    assert attention_map(call, query_xy=(40, 50), head=last).sum() > 0
    for head in (last + 1, -1):
        with pytest.raises(InputError, match=rf"head {head} .* heads 0 to {last}"):
            attention_map(call, query_xy=(40, 50), head=head)
