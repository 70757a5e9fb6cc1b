"""Attention maps: the right rows, in their natural places."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from probes.errors import InputError
from probes.maps import attention_map, attention_rows, token_at
from probes.seam import AttentionCall

Calls = Callable[[str], list[AttentionCall]]


def by_site(calls: list[AttentionCall]) -> dict[str, AttentionCall]:
    return {call.site: call for call in calls}


@pytest.mark.parametrize("profile", ["dense", "exact"])
def test_rows_are_the_matrix_in_natural_order(demo_calls: Calls, profile: str) -> None:
    reference, calls = by_site(demo_calls("dense")), by_site(demo_calls(profile))
    for site, call in calls.items():
        rows = attention_rows(call, [0, 5])
        if call.where is not None and call.where.kind != "window":
            ref = reference[site]
            p = (ref.q[0].float() @ ref.k[0].float().mT * ref.q.shape[-1] ** -0.5).softmax(-1)
            assert torch.allclose(rows, p[:, [0, 5]], atol=2e-3), site
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
        assert not torch.allclose(seen, attention_map(call, query_xy=(40, 50), head=0) * 1.5)


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
    with pytest.raises(InputError, match="0 of 3 calls fit layer None and object 9"):
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
