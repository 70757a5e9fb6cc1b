"""Editing attention: nothing changes where nothing is changed, each edit has its effect on every path, and nothing stays."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from probes import edits
from probes.errors import InputError, LeftOut
from probes.measure import measure
from probes.observing import edit, observe
from probes.seam import AttentionCall, Change
from probes.sites import attention_sites
from sparsity import accelerate
from tests.probes.test_observing import PROFILES, as_profile, left_behind, track

CROSS = "memory.*.cross"


@pytest.fixture
def run(clip_folder: Path, clip_mask: np.ndarray) -> Callable[..., list[Tensor]]:
    """Track the clip with an edit in place; all mask logits."""

    def tracked(
        predictor: Any,
        function: Change | None = None,
        sites: Any = CROSS,
        objects: int = 1,
        frames: int = 3,
    ) -> list[Tensor]:
        with ExitStack() as stack:
            if function is not None:
                stack.enter_context(edit(predictor, function, sites))
            return track(predictor, str(clip_folder), clip_mask, objects, frames)[1]

    return tracked


@pytest.fixture(scope="module")
def untouched(
    small_stock: Any, clip_folder: Path, clip_mask: np.ndarray
) -> Callable[[str], list[Tensor]]:
    """The logits without an edit, by profile."""

    @cache
    def tracked(profile: str) -> list[Tensor]:
        predictor = as_profile(small_stock, profile)
        return track(predictor, str(clip_folder), clip_mask, frames=3)[1]

    return tracked


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def copied(call: AttentionCall) -> AttentionCall:
    return call.change(q=call.q.clone(), k=call.k.clone(), v=call.v.clone())


def tripled(call: AttentionCall) -> AttentionCall:
    return call.change(q=3 * call.q)


@pytest.mark.parametrize("profile", PROFILES)
def test_an_edit_that_returns_what_it_got_changes_nothing(
    small_stock: Any, run: Callable[..., list[Tensor]], profile: str
) -> None:
    predictor = as_profile(small_stock, profile)
    plain = run(predictor, objects=2)
    with edit(predictor, lambda call: call, "*"):
        assert same(run(predictor, copied, "*", objects=2), plain)
    assert not same(run(predictor, tripled, "encoder.stage1.block0.window", objects=2), plain)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_call_passes_by_and_observers_are_told_of_what_is_left(
    small_stock: Any, run: Callable[..., list[Tensor]], profile: str
) -> None:
    predictor = as_profile(small_stock, profile)
    given: list[AttentionCall] = []
    told: list[AttentionCall] = []

    def doubled(call: AttentionCall) -> AttentionCall:
        given.append(call)
        return call.change(v=2 * call.v)

    with observe(predictor, told.append, "*"):
        run(predictor, doubled, "*", objects=2, frames=2)
    assert {call.site for call in given} == {site.name for site in attention_sites(small_stock)}
    assert [(c.site, c.moment) for c in given] == [(c.site, c.moment) for c in told]
    for before, after in zip(given, told, strict=True):
        assert torch.equal(after.v, 2 * before.v) and torch.equal(after.q, before.q)
        assert after.where is not None and after.where.name == before.site


def half(call: AttentionCall) -> AttentionCall:
    return call.change(output=call.attended() / 2)


def sharper(call: AttentionCall) -> AttentionCall:
    squared = call.attention() ** 2
    return call.change(weights=squared / squared.sum(-1, keepdim=True))


def region() -> Tensor:
    mask = torch.zeros(96, 128, dtype=torch.bool)
    mask[20:70, 30:80] = True
    return mask


READY: dict[str, tuple[Change, Any]] = {
    "head": (edits.ablate_heads(0), "encoder.stage3.*"),
    "call": (edits.ablate_call, "memory.layer2.self"),
    "memory frame": (edits.ablate_memory_frames(0), CROSS),
    "newest memory frame": (edits.ablate_memory_frames(lambda f: f.newest), CROSS),
    "pointer": (edits.ablate_pointers([0, 1]), CROSS),
    "region of the encoder": (edits.scale_region(region(), 4.0), "encoder.*"),
    "region of a memory frame": (edits.scale_region(region(), 0.2, memory=0), CROSS),
    "region of the decoder": (edits.scale_region(region(), 4.0), "decoder.*.token_to_image"),
    "output": (half, "memory.*"),
    "weights": (sharper, "*"),
    "one frame": (edits.only(half, frames=[2]), "memory.*"),
}


@pytest.mark.parametrize(
    ("profile", "what"),
    [("stock", what) for what in READY]
    + [("recommended", what) for what in ("memory frame", "region of a memory frame", "weights")],
)
def test_ready_edits_have_an_effect_and_leave_nothing(
    small_stock: Any,
    run: Callable[..., list[Tensor]],
    untouched: Callable[[str], list[Tensor]],
    profile: str,
    what: str,
) -> None:
    predictor = as_profile(small_stock, profile)
    plain = untouched(profile)
    function, sites = READY[what]
    changed = run(predictor, function, sites)
    assert not torch.equal(changed[-1], plain[-1])
    assert all(bool(masks.isfinite().all()) for masks in changed)
    if what == "one frame":
        assert same(changed[:2], plain[:2])
    assert left_behind(predictor) == left_behind(small_stock) == []


@pytest.mark.parametrize("what", ["output", "weights"])
def test_an_exact_profile_computes_the_edit_that_stock_does(
    small_stock: Any, run: Callable[..., list[Tensor]], what: str
) -> None:
    function, sites = READY[what]
    exact = accelerate(small_stock, "exact")
    expected = run(small_stock, function, sites, objects=2, frames=2)
    found = run(exact, function, sites, objects=2, frames=2)
    for a, b in zip(expected, found, strict=True):
        assert (a - b).norm() <= 1e-3 * a.norm()
    assert (found[-1] - run(exact, objects=2, frames=2)[-1]).norm() > 1e-2 * expected[-1].norm()


def test_a_memory_frame_that_is_ablated_is_read_by_nobody(
    small_stock: Any, run: Callable[..., list[Tensor]]
) -> None:
    calls = []
    with observe(small_stock, lambda call: calls.append((call, measure(call))), CROSS):
        run(small_stock, edits.ablate_memory_frames(0), frames=3)
    for call, statistics in calls:
        (layout,) = call.moment.layouts
        assert statistics.mass.shape[-1] == layout.keys and layout.frames[0].frame == 0
        assert call.k.shape[2] == layout.keys - layout.tokens
        mass = statistics.mass[..., : layout.tokens]
        assert bool((mass == 0).all()) and statistics.mass.sum() == pytest.approx(1, abs=1e-4)


def test_a_memory_frame_ablated_by_weights_is_the_same_but_for_rounding(
    small_stock: Any, run: Callable[..., list[Tensor]]
) -> None:
    def zeroed(call: AttentionCall) -> AttentionCall:
        weights = call.attention().clone()
        weights[..., : call.moment.layouts[0].tokens] = 0
        return call.change(weights=weights / weights.sum(-1, keepdim=True))

    ablated = run(small_stock, edits.ablate_memory_frames(0))[-1]
    by_weights = run(small_stock, zeroed)[-1]
    assert torch.allclose(ablated, by_weights, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(ablated, run(small_stock)[-1], rtol=1e-3, atol=1e-3)


def test_an_ablated_call_is_a_hook_that_leaves_the_bias(
    small_stock: Any, run: Callable[..., list[Tensor]]
) -> None:
    projection = small_stock.memory_attention.layers[1].cross_attn_image.out_proj
    handle = projection.register_forward_pre_hook(lambda m, inputs: (0 * inputs[0],))
    try:
        hooked = run(small_stock)
    finally:
        handle.remove()
    edited = run(small_stock, edits.ablate_call, "memory.layer1.cross")
    assert same(edited, hooked) and not same(edited, run(small_stock))


def test_a_patch_is_a_hook_that_puts_the_other_runs_output_in(
    small_stock: Any, clip_folder: Path, clip_mask: np.ndarray, run: Callable[..., list[Tensor]]
) -> None:
    """Hand-made: what comes into the output projection is kept and put in again."""
    site, other = "memory.layer3.cross", np.roll(clip_mask, 30, 1)
    projection = small_stock.memory_attention.layers[3].cross_attn_image.out_proj
    kept: list[Tensor] = []
    keep = projection.register_forward_pre_hook(lambda m, x: kept.append(x[0].clone()))
    stored = edits.StoredCalls()
    with observe(small_stock, stored, site):
        track(small_stock, str(clip_folder), other, frames=3)
    keep.remove()
    put = projection.register_forward_pre_hook(lambda m, x: (kept.pop(0),))
    try:
        hooked = run(small_stock)
    finally:
        put.remove()
    assert kept == []
    patched = run(small_stock, stored.patch("output"), site)
    assert same(patched, hooked)
    assert same(run(small_stock, stored.patch("q", "k", "v"), site), hooked)
    assert not same(patched, run(small_stock))


@pytest.mark.parametrize("profile", PROFILES)
def test_one_objects_memory_is_put_into_another(
    small_stock: Any, run: Callable[..., list[Tensor]], profile: str
) -> None:
    """Under profiles that prune, keys that were kept of each frame are as many."""
    predictor, stored = as_profile(small_stock, profile), edits.StoredCalls()
    with observe(predictor, stored, "memory.*"):
        plain = run(predictor, objects=2)
    own = stored.patch("q", "k", "v")
    assert same(run(predictor, own, "memory.*", objects=2), plain)
    exchanged = stored.patch("k", "v", objects={10: 11})
    changed = run(predictor, exchanged, CROSS, objects=2)
    assert not torch.equal(changed[-1][0], plain[-1][0])
    assert torch.equal(changed[1][1], plain[1][1]), "the other object stays as it is"


@pytest.mark.parametrize("profile", ["exact", "recommended"])
def test_one_of_several_objects_is_edited_alone(
    small_stock: Any, run: Callable[..., list[Tensor]], profile: str
) -> None:
    """Also in the first self-attention, which all objects share where nobody edits it."""
    predictor = as_profile(small_stock, profile)
    plain = run(predictor, objects=2, frames=2)
    for site in ("memory.layer0.self", "memory.layer2.self"):
        changed = run(predictor, edits.only(half, objects=[11]), site, objects=2, frames=2)
        assert torch.equal(changed[1][0], plain[1][0])
        assert not torch.equal(changed[1][1], plain[1][1])


def test_edits_nest_and_the_outer_one_comes_first(
    small_stock: Any, run: Callable[..., list[Tensor]]
) -> None:
    def more(call: AttentionCall) -> AttentionCall:
        return call.change(output=call.attended() + 1)

    def both(call: AttentionCall) -> AttentionCall:
        return call.change(output=call.attended() / 2 + 1)

    with edit(small_stock, half, CROSS) as outer:
        nested = run(small_stock, more)
    assert outer.calls == outer.changed == 8
    assert same(nested, run(small_stock, both))
    with edit(small_stock, more, CROSS):
        assert not same(run(small_stock, half), nested)


def test_nothing_stays_after_an_exception(
    small_stock: Any, run: Callable[..., list[Tensor]], untouched: Callable[[str], list[Tensor]]
) -> None:
    def fails(call: AttentionCall) -> AttentionCall:
        if call.moment.frame == 2:
            raise KeyError("mine")
        return call.change(v=2 * call.v)

    for profile in ("stock", "recommended"):
        predictor = as_profile(small_stock, profile)
        with pytest.raises(KeyError, match="mine"):
            run(predictor, fails, "*")
        assert left_behind(predictor) == left_behind(small_stock) == []
        assert same(run(predictor), untouched(profile))


@pytest.mark.parametrize("profile", PROFILES)
def test_features_of_a_frame_are_made_anew_for_the_edit_and_come_back(
    small_stock: Any, clip_folder: Path, clip_mask: np.ndarray, profile: str
) -> None:
    predictor = as_profile(small_stock, profile)

    def prompted(object_id: int) -> Tensor:
        box = [30, 20, 80, 70]
        masks: Tensor = predictor.add_new_points_or_box(state, 0, object_id, box=box)[2]
        return masks[-1].clone()

    with torch.inference_mode():
        state = predictor.init_state(str(clip_folder))
        before = state["cached_features"]
        plain = prompted(1)
        with edit(predictor, tripled, "encoder.*") as edited:
            changed = prompted(2)
            prompted(3)
        again = prompted(4)
    assert edited.changed == len(attention_sites(small_stock, "encoder")), "encoded once"
    assert not torch.equal(changed, plain)
    assert torch.equal(again, plain) and state["cached_features"] is before


def test_kept_corrections_are_tracked_anew_under_an_edit(
    small_stock: Any, clip_folder: Path, clip_mask: np.ndarray
) -> None:
    """Results that would be given out as they are were made without it."""
    fast = accelerate(small_stock, "exact")

    def masks() -> list[Tensor]:
        return [m.clone() for _, _, m in fast.propagate_in_video(state, max_frame_num_to_track=2)]

    with torch.inference_mode():
        state = fast.init_state(str(clip_folder), corrections="keep")
        fast.add_new_mask(state, 0, 1, clip_mask)
        plain = masks()
        with edit(fast, half, CROSS):
            changed = masks()
        assert not same(changed, plain)
        assert same(masks(), plain)


def refused(text: str) -> Any:
    return pytest.raises(InputError, match=text)


def bad(**shapes: Any) -> Change:
    return lambda call: call.change(**{n: make(call) for n, make in shapes.items()})


BAD: dict[str, tuple[Change, str]] = {
    "q": (bad(q=lambda c: c.q[:, :, 1:]), "q of shape"),
    "k": (bad(k=lambda c: c.k[:, :, 1:]), "call.keep leaves keys out"),
    "weights": (bad(weights=lambda c: c.q), "weights of shape"),
    "output": (bad(output=lambda c: c.k), "output of shape"),
    "both": (bad(q=lambda c: c.q, weights=lambda c: c.attention()), "one or the other"),
    "output and v": (bad(v=lambda c: c.v, output=lambda c: c.q), "one or the other"),
    "a tensor": (lambda call: call.q, "gave a Tensor; expected the call or None"),  # type: ignore[dict-item,return-value]
    "no keys": (lambda call: call.keep(torch.zeros(call.k.shape[2]) > 0), "keep at least one"),
    "keys twice": (lambda call: call.keep(torch.tensor([3, 3])), "each once"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_computed_is_refused(
    small_stock: Any, run: Callable[..., list[Tensor]], what: str
) -> None:
    function, text = BAD[what]
    with refused(text) as error:
        run(small_stock, function, frames=2)
    assert "\n" not in str(error.value) and left_behind(small_stock) == []


def test_what_an_edit_before_has_set_is_not_undone(
    small_stock: Any, run: Callable[..., list[Tensor]]
) -> None:
    for first, second in ((half, sharper), (half, tripled), (sharper, tripled)):
        with refused("edit in another order"), edit(small_stock, first, CROSS):
            run(small_stock, second, frames=2)
    with edit(small_stock, sharper, CROSS):
        run(small_stock, half, frames=2)


def test_sites_are_looked_at_before_anything_runs(small_stock: Any) -> None:
    stored = edits.StoredCalls()
    for function, sites, text in (
        (half, "memory.layer9.*", "no attention site matches"),
        (edits.ablate_heads(0, 1), "memory.*", "head 1 of memory.layer0.self"),
        (edits.ablate_memory_frames(0), "memory.*.self", "which reads none"),
        (edits.only(half, objects=[1]), "encoder.*", "all objects share it"),
        (edits.only(edits.ablate_heads(9), frames=[1]), "decoder.*", "head 9 of"),
        (edits.scale_region(region(), 2), "decoder.layer0.self", "no places of the picture"),
        (stored.patch("output"), CROSS, "no call of it is stored"),
    ):
        with refused(text), edit(small_stock, function, sites):
            pytest.fail("it ran")
    with refused("expected some of q, k"):
        stored.patch("keys")  # type: ignore[arg-type]
    with refused("above 0"):
        edits.scale_region(region(), 0)
    with refused("bool mask"):
        edits.scale_region(region().float(), 2)
    with refused("takes a SAM 2 video predictor"), edit(small_stock.image_encoder, half):
        pytest.fail("it ran")


def test_another_predictor_that_shares_the_modules_is_refused_not_edited(
    small_stock: Any, run: Callable[..., list[Tensor]]
) -> None:
    fast = accelerate(small_stock, "exact")
    with edit(fast, half, CROSS):
        run(fast, frames=2)
        with refused("called from outside the edited predictor"):
            run(small_stock, frames=2)
        with observe(small_stock, lambda call: None):
            observed = run(small_stock, frames=2)
    assert same(observed, run(small_stock, frames=2))


def test_an_edit_that_was_given_no_call_says_so(small_stock: Any) -> None:
    with pytest.warns(LeftOut, match="none of these sites ran"), edit(small_stock, half, CROSS):
        pass


def test_statistics_refuse_weights_that_do_not_follow_from_q_and_k(
    small_stock: Any, run: Callable[..., list[Tensor]]
) -> None:
    calls: list[AttentionCall] = []
    with observe(small_stock, calls.append, CROSS):
        run(small_stock, sharper, frames=2)
        run(small_stock, half, frames=2)
    with refused("were set by an edit"):
        measure(calls[0])
    assert calls[0].weights is not None and calls[-1].output is not None
    assert measure(calls[-1]).mass.sum() == pytest.approx(1, abs=1e-4)
