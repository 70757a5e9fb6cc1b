"""Statistics of calls: block by block they equal the materialised matrix; samples come close."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from probes import mass as mass_module
from probes.mass import window_slots
from probes.measure import measure, slot_shares
from probes.observing import AttentionCall, observe


@pytest.fixture(scope="module")
def calls(any_predictor: Any, clip_folder: Path, clip_mask: np.ndarray) -> list[AttentionCall]:
    """All calls of one frame, of a model with padded windows and of one without."""
    seen: list[AttentionCall] = []

    def keep(call: AttentionCall) -> None:
        if call.moment.frame == 2:
            seen.append(replace(call, q=call.q.clone(), k=call.k.clone(), v=call.v.clone()))

    with torch.inference_mode(), observe(any_predictor, keep, "*"):
        state = any_predictor.init_state(str(clip_folder))
        any_predictor.add_new_mask(state, 0, 1, clip_mask)
        list(any_predictor.propagate_in_video(state, max_frame_num_to_track=2))
    return seen


def materialised(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """The whole attention matrix in float64 and which of its query rows are real."""
    p = (call.q.double() @ call.k.double().mT * call.q.shape[-1] ** -0.5).softmax(-1)
    real = torch.ones(len(p), p.shape[2], dtype=torch.bool)
    if call.where is not None and call.where.kind == "window":
        site = call.where
        real = window_slots(site.grid // site.pool, site.window // site.pool) >= 0
    return p, real


def test_blockwise_equals_materialised(
    calls: list[AttentionCall], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mass_module, "BLOCK_BYTES", 100_000)
    monkeypatch.setattr(mass_module, "MASS_BYTES", 70_000)
    padded = 0
    for call in calls:
        found = measure(call, rows=None)
        p, real = materialised(call)
        n = p.shape[-1]
        entropy = -(p * p.clamp(min=1e-300).log()).sum(-1) / math.log(n)  # [B, h, Nq]
        w = real.double()[:, None]
        if call.where is not None and call.where.part == "encoder":
            expected = (entropy * w).sum((0, 2)) / w.sum()
            received = (p * w[..., None]).sum(2) / w.sum()  # [windows, h, Nk]
            heads = p.shape[1]
            grid = torch.zeros(heads, call.where.grid**2 + 1, dtype=torch.float64)
            slots = torch.arange(n)[None]
            if call.where.window:
                slots = window_slots(call.where.grid, call.where.window)
            padding = float(received.sum((0, 2)).mean() - 1)
            grid.index_add_(
                1,
                torch.where(slots < 0, call.where.grid**2, slots).reshape(-1),
                received.transpose(0, 1).reshape(heads, -1),
            )
            padding = grid[:, -1]
            assert torch.allclose(found.means["padding"][0].double(), padding, atol=1e-5)
            padded += bool((padding > 0).any())
            expected_mass = grid[None, :, :-1]
            expected = expected[None]
        else:
            expected, expected_mass = entropy.mean(2), p.mean(2)
        assert (found.means["entropy"].double() - expected).abs().max() < 1e-4
        assert torch.allclose(found.mass.double(), expected_mass, rtol=1e-4, atol=1e-8)
    site = calls[0].where
    assert site is not None
    assert (padded > 0) == any(c.where.grid % c.where.window for c in calls if c.where.window)


def test_key_mass_is_of_all_rows_whatever_the_sample(calls: list[AttentionCall]) -> None:
    sampled = False
    for call in calls:
        few, many = measure(call, rows=2), measure(call, rows=None)
        assert torch.equal(few.mass, many.mass)
        if few.rows < many.rows:
            sampled = True
            assert not torch.equal(few.means["entropy"], many.means["entropy"])
    assert sampled


def test_memory_frames_have_a_mass_of_their_own(calls: list[AttentionCall]) -> None:
    call = next(call for call in calls if call.site.endswith("cross"))
    (layout,) = call.moment.layouts
    found, (p, _) = measure(call), materialised(call)
    inside = p[..., : layout.frame_keys].unflatten(-1, (-1, layout.tokens))
    expected = (inside / inside.sum(-1, keepdim=True)).mean(2)
    assert found.by_frame is not None
    assert torch.allclose(found.by_frame.double(), expected, rtol=1e-4, atol=1e-9)
    joint = found.mass[..., : layout.frame_keys].view_as(found.by_frame)
    assert not torch.allclose(joint, found.by_frame, rtol=0.1)


def test_distances_are_from_the_tokens_that_ask(calls: list[AttentionCall]) -> None:
    call = next(call for call in calls if call.site.endswith("cross"))
    asking = torch.tensor([40, 3, 200])
    some = replace(call, q=call.q[:, :, asking])
    few = measure(replace(some, queries=asking), None).means["distance_px"]
    at = torch.stack([asking % 16, asking // 16], -1).double() * 16
    every = torch.arange(256)
    keys = torch.stack([every % 16, every // 16], -1).double() * 16
    p = materialised(call)[0][0, :, asking]
    p = p[..., : call.moment.layouts[0].frame_keys].unflatten(-1, (-1, 256))
    expected = (p * torch.cdist(at, keys)[:, None]).sum((2, 3)) / p.sum((2, 3))
    assert torch.allclose(few[0].double(), expected.mean(1), rtol=1e-4)
    assert not torch.allclose(few, measure(some, None).means["distance_px"], rtol=1e-2)


def test_padding_is_no_place_that_is_far_away(calls: list[AttentionCall]) -> None:
    for call in (c for c in calls if c.where is not None and c.where.kind == "window"):
        site = call.where
        assert site is not None
        p, real = materialised(call)
        slots, pooled = window_slots(site.grid, site.window), site.window // site.pool
        asking = torch.cartesian_prod(*[torch.arange(pooled).double()] * 2) * site.pool
        asking += (site.pool - 1) / 2  # the middle of what was pooled
        asked = torch.cartesian_prod(*[torch.arange(site.window).double()] * 2)
        far = torch.cdist(asking, asked) * site.stride
        inside = p * (slots >= 0)[:, None, None]
        weight = real.double()[:, None]
        found = measure(call, None).means["distance_px"][0].double()
        rows = (inside * far).sum(-1) / inside.sum(-1)
        assert torch.allclose(found, (rows * weight).sum((0, 2)) / weight.sum(), rtol=1e-4)
        if (slots < 0).any():
            wrong = ((p * far).sum(-1) * weight).sum((0, 2)) / weight.sum()
            assert (wrong > 1.02 * found).all()  # padded slots lie beyond the picture


def test_statistics_differ_when_one_key_changes(calls: list[AttentionCall]) -> None:
    call = next(call for call in calls if call.site.endswith("cross"))
    k = call.k.clone()
    k[:, :, 3] += 1
    before, after = measure(call, None), measure(replace(call, k=k), None)
    assert not torch.allclose(before.mass, after.mass, rtol=1e-4)


def test_slots_share_the_mass(calls: list[AttentionCall]) -> None:
    for call in calls:
        if call.site.endswith("cross"):
            shares = slot_shares(measure(call, None), call)
            assert shares.sum().item() == pytest.approx(1, abs=1e-5)
            assert (shares[0, [0, 6, 7]] > 0).all() and (shares[0, 1:6] == 0).all()


def test_some_queries_are_measured_where_they_are(
    demo_calls: Callable[[str], list[AttentionCall]],
) -> None:
    calls = {c.site: c for c in demo_calls("recommended")}
    for site in ("encoder.stage3.block9.global", "memory.layer1.self", "memory.layer1.cross"):
        call = calls[site]
        assert call.queries is not None and call.where is not None
        every = torch.arange(256)
        at = torch.stack([every % 16, every // 16], -1).double() * 16
        read = torch.arange(call.k.shape[2]) if call.keys is None else call.keys
        frames = call.moment.layouts[0].frame_keys if call.where.kind == "cross" else 256
        p = materialised(call)[0][0][..., read < frames]
        far = torch.cdist(at[call.queries], at[read[read < frames] % 256])
        expected = ((p * far).sum(-1) / p.sum(-1)).mean(1)
        found = measure(call, None)
        assert torch.allclose(found.means["distance_px"][0].double(), expected, rtol=1e-4), site
        wrong = torch.cdist(at[: len(call.queries)], at[read[read < frames] % 256])
        assert not torch.allclose(
            found.means["distance_px"][0].double(),
            ((p * wrong).sum(-1) / p.sum(-1)).mean(1),
            rtol=1e-3,
        )
        assert found.mass.shape[-1] == (
            call.moment.layouts[0].keys if call.where.kind == "cross" else 256
        )


def test_an_accelerated_call_is_laid_out_like_a_dense_one(
    demo_calls: Callable[[str], list[AttentionCall]],
) -> None:
    dense, exact = ({c.site: c for c in demo_calls(profile)} for profile in ("dense", "exact"))
    assert dense.keys() == exact.keys()
    for site, call in dense.items():
        a, b = measure(call, None), measure(exact[site], None)
        assert torch.allclose(a.mass, b.mass, rtol=1e-2, atol=1e-5), site
        for name, value in a.means.items():
            assert torch.allclose(value, b.means[name], rtol=1e-2, atol=1e-3, equal_nan=True), name
