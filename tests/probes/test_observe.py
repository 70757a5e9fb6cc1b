"""Observing changes nothing, sees everything once, and leaves nothing behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from probes.errors import InputError
from probes.layout import memory_layout
from probes.measure import measure
from probes.models import build_predictor
from probes.observing import AttentionCall, observe
from probes.sites import attention_sites
from sparsity import accelerate

PROFILES = ("stock", "dense", "exact", "paper", "recommended")


@pytest.fixture(scope="module")
def demo_predictor() -> Any:
    return build_predictor("demo", image_size=256, device="cpu")


def track(
    predictor: Any, video: Any, mask: np.ndarray, objects: int = 1, frames: int = 4
) -> tuple[Any, list[Tensor]]:
    """Track the ellipse, and its shifted copies as further objects; return the state and all logits."""
    with torch.inference_mode():
        state = predictor.init_state(video)
        for i in range(objects):
            predictor.add_new_mask(state, 0, 10 + i, np.roll(mask, 5 * i, 1))
        found = [
            m.clone()
            for _, _, m in predictor.propagate_in_video(state, max_frame_num_to_track=frames - 1)
        ]
    return state, found


def left_behind(predictor: Any) -> list[str]:
    """Name whatever an observer could have left on a predictor and its modules."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return [
        f"{name}.{attribute}"
        for name, module in predictor.named_modules()
        for attribute in module.__dict__
        if attribute == "forward" or (attribute in hooks and module.__dict__[attribute])
    ] + [
        key
        for key in predictor.__dict__
        if key.startswith(("_observed", "_run_", "_get_", "_prepare_"))
    ]


def as_profile(stock: Any, profile: str) -> Any:
    return stock if profile == "stock" else accelerate(stock, profile)


@pytest.mark.parametrize("profile", PROFILES)
def test_masks_are_the_same_bit_for_bit(
    demo_predictor: Any, clip_folder: Path, clip_mask: np.ndarray, profile: str
) -> None:
    predictor = as_profile(demo_predictor, profile)
    _, plain = track(predictor, str(clip_folder), clip_mask, objects=2)
    seen: list[str] = []
    with observe(predictor, lambda call: seen.append(call.site), "*"):
        _, observed = track(predictor, str(clip_folder), clip_mask, objects=2)
    assert all(torch.equal(a, b) for a, b in zip(plain, observed, strict=True))
    assert set(seen) == {site.name for site in attention_sites(demo_predictor)}
    assert left_behind(predictor) == []
    assert left_behind(demo_predictor) == []


def test_masks_differ_when_something_is_changed(
    demo_predictor: Any, clip_folder: Path, clip_mask: np.ndarray
) -> None:
    _, plain = track(demo_predictor, str(clip_folder), clip_mask)
    # the first self-attention's queries and keys are the model's own, so what is written there is seen later
    with observe(
        demo_predictor, lambda call: call.where.module.out_proj.bias.add_(0.1), "memory.layer0.self"
    ):
        _, changed = track(demo_predictor, str(clip_folder), clip_mask)
    with torch.inference_mode():
        demo_predictor.memory_attention.layers[0].self_attn.out_proj.bias.sub_(0.1 * 3)
    assert not torch.equal(plain[-1], changed[-1])


def test_every_site_is_seen_once_a_frame(
    any_predictor: Any, clip_folder: Path, clip_mask: np.ndarray
) -> None:
    seen: Counter[tuple[str, int | None]] = Counter()
    with observe(any_predictor, lambda call: seen.update([(call.site, call.moment.frame)]), "*"):
        track(any_predictor, str(clip_folder), clip_mask, frames=3)
    for site in attention_sites(any_predictor):
        expected = {1: 1, 2: 1} if site.part == "memory" else {0: 1, 1: 1, 2: 1}
        assert {f: seen[site.name, f] for f in range(3) if seen[site.name, f]} == expected


@pytest.mark.parametrize("bf16", [False, True])
def test_recomputed_attention_is_what_the_model_computed(
    any_predictor: Any, clip_folder: Path, clip_mask: np.ndarray, bf16: bool
) -> None:
    calls: list[AttentionCall] = []
    outputs: dict[str, list[Tensor]] = {}
    handles = [
        _output_projection(site.module).register_forward_pre_hook(
            lambda m, inputs, name=site.name: outputs.setdefault(name, []).append(inputs[0].clone())
        )
        for site in attention_sites(any_predictor)
    ]

    def keep(call: AttentionCall) -> None:
        weights = (call.q.float() @ call.k.float().mT * call.q.shape[-1] ** -0.5).softmax(-1)
        calls.append(call)
        found = (weights @ call.v.float()).transpose(1, 2)
        expected = outputs[call.site][-1].float()
        error = (found.reshape(-1) - expected.reshape(-1)).norm() / expected.norm()
        assert error <= (0.05 if bf16 else 5e-5)

    try:
        with (
            torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext(),
            observe(any_predictor, keep, "*"),
        ):
            track(any_predictor, str(clip_folder), clip_mask, frames=2)
    finally:
        for handle in handles:
            handle.remove()
    assert len(calls) > 20
    if bf16:
        assert {call.q.dtype for call in calls} >= {torch.bfloat16}


def _output_projection(module: Any) -> Any:
    return module.proj if hasattr(module, "proj") else module.out_proj


@pytest.mark.parametrize("profile", PROFILES)
def test_moments_tell_frame_and_object(
    demo_predictor: Any, clip_folder: Path, clip_mask: np.ndarray, profile: str
) -> None:
    calls: list[AttentionCall] = []
    predictor = as_profile(demo_predictor, profile)
    with observe(predictor, calls.append, "*"):
        track(predictor, str(clip_folder), clip_mask, objects=2, frames=3)
    assert {call.size for call in calls} == {(96, 128)}
    for call in calls:
        assert call.where is not None and call.where.name == call.site
        assert call.moment.frame in (0, 1, 2)
        assert not call.moment.reverse
        if call.where.part == "encoder":
            assert call.moment.objects == ()
        elif call.site == "memory.layer0.self" and profile not in ("stock", "dense"):
            assert call.moment.objects == (10, 11) and len(call.q) == 1
        else:
            assert len(call.moment.objects) == len(call.q)
    told = {
        (call.moment.frame, i)
        for call in calls
        if call.site == "memory.layer3.cross"
        for i in call.moment.objects
    }
    assert told == {(1, 10), (1, 11), (2, 10), (2, 11)}


def test_tracking_back_is_told_so(
    demo_predictor: Any, clip_folder: Path, clip_mask: np.ndarray
) -> None:
    moments = []
    with torch.inference_mode(), observe(demo_predictor, lambda c: moments.append(c.moment)):
        state = demo_predictor.init_state(str(clip_folder))
        demo_predictor.add_new_mask(state, 3, 1, clip_mask)
        list(demo_predictor.propagate_in_video(state, 3, 2, reverse=True))
    assert {(m.frame, m.reverse) for m in moments} == {(2, True), (1, True)}
    assert [f.frame for f in moments[-1].layouts[0].frames] == [3, 2]


def test_layouts_say_what_the_memory_holds(
    demo_predictor: Any, clip_folder: Path, clip_mask: np.ndarray
) -> None:
    layouts = {}

    def note(call: AttentionCall) -> None:
        (layout,) = call.moment.layouts
        assert call.k.shape[2] == layout.keys
        layouts[call.moment.frame] = layout

    with observe(demo_predictor, note, "memory.*.cross"):
        track(demo_predictor, str(clip_folder), clip_mask, frames=8)
    slots = [(f.slot, f.frame, f.age) for f in layouts[7].frames]
    assert slots[0] == ("prompt", 0, 7)
    assert slots[1:] == [(str(i), i, 7 - i) for i in range(1, 7)]


def test_a_memory_that_is_laid_out_otherwise_is_noticed(
    demo_predictor: Any, clip_folder: Path, clip_mask: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    import probes.observing

    def other(*args: Any) -> Any:
        right = memory_layout(*args)
        return type(right)(
            right.frames[::-1], right.pointers, right.tokens, right.pointer_tokens, 0
        )

    monkeypatch.setattr(probes.observing, "memory_layout", other)
    with (
        pytest.raises(RuntimeError, match="not laid out as expected"),
        observe(demo_predictor, lambda call: None),
    ):
        track(demo_predictor, str(clip_folder), clip_mask, frames=4)
    assert left_behind(demo_predictor) == []


@pytest.mark.parametrize("profile", PROFILES[1:])
def test_observed_key_counts_are_the_reports(
    demo_predictor: Any, clip_folder: Path, clip_mask: np.ndarray, profile: str
) -> None:
    predictor = accelerate(demo_predictor, profile)
    counts: dict[tuple[int | None, int], list[int]] = {}
    windows: dict[int | None, int] = {}
    unread = 0

    def note(call: AttentionCall) -> None:
        nonlocal unread
        if call.where is not None and call.where.part == "encoder":
            windows[call.moment.frame] = len(call.q)
            return
        keys = call.k.shape[2]
        counts.setdefault((call.moment.frame, call.moment.objects[0]), []).append(keys)
        unread += call.moment.layouts[0].keys - keys
        assert (call.keys is None) == (keys == call.moment.layouts[0].keys)
        if call.keys is not None:
            assert len(call.keys) == keys == len(call.keys.unique())

    block = "encoder.stage3.block8.window"
    with observe(predictor, note, ["memory.*.cross", block]):
        state, _ = track(predictor, str(clip_folder), clip_mask, objects=2, frames=8)
    report = predictor.report(state)
    for frame in report.frames[1:]:
        assert windows[frame.frame] == frame.windows_kept
        for i, entry in frame.objects.items():
            if profile != "dense":
                assert counts[frame.frame, i] == entry.keys_used
            else:
                assert len(set(counts[frame.frame, i])) == 1
    assert (unread > 0) == (profile in ("paper", "recommended"))
    if profile == "paper":
        assert counts[7, 10][0] < counts[4, 10][0] * 2
        assert any(frame.windows_kept < frame.windows_total for frame in report.frames)


@pytest.mark.parametrize("profile", PROFILES)
def test_nothing_is_left_after_an_exception(
    demo_predictor: Any, clip_folder: Path, clip_mask: np.ndarray, profile: str
) -> None:
    predictor = as_profile(demo_predictor, profile)

    def fail(call: AttentionCall) -> None:
        if call.moment.frame == 2:
            raise LookupError(call.site)

    with (
        pytest.raises(LookupError, match="memory.layer1.cross"),
        observe(predictor, fail, "memory.layer1.cross"),
    ):
        track(predictor, str(clip_folder), clip_mask)
    assert left_behind(predictor) == [] and left_behind(demo_predictor) == []
    _, after = track(predictor, str(clip_folder), clip_mask)
    _, fresh = track(as_profile(demo_predictor, profile), str(clip_folder), clip_mask)
    assert all(torch.equal(a, b) for a, b in zip(after, fresh, strict=True))


def test_what_is_seen_outside_a_run_has_no_gradients(demo_predictor: Any) -> None:
    image = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    found, calls = [], []

    def note(call: AttentionCall) -> None:
        found.append(measure(call))
        calls.append(call)

    with observe(demo_predictor, note, "*.global"):
        features = demo_predictor.forward_image(image)
    assert features["vision_features"].requires_grad  # the model's own are untouched
    assert not any(t.requires_grad for call in calls for t in (call.q, call.k, call.v))
    with torch.inference_mode(), observe(demo_predictor, note, "*.global"):
        demo_predictor.forward_image(image)
    half = len(found) // 2
    for a, b in zip(found[:half], found[half:], strict=True):
        assert torch.equal(a.mass, b.mass)
    assert not torch.equal(found[0].mass, found[1].mass)


def test_something_is_there_while_it_lasts(demo_predictor: Any) -> None:
    with observe(demo_predictor, lambda call: None):
        assert "_observed" in left_behind(demo_predictor)
    assert left_behind(demo_predictor) == []


@pytest.mark.parametrize("order", ["inner first", "outer first"])
def test_contexts_nest(
    demo_predictor: Any, clip_folder: Path, clip_mask: np.ndarray, order: str
) -> None:
    inner, outer = Counter[str](), Counter[str]()
    first = observe(demo_predictor, lambda call: outer.update([call.site]), "memory.*")
    second = observe(demo_predictor, lambda call: inner.update([call.site]), "*.cross")
    first.__enter__()
    second.__enter__()
    track(demo_predictor, str(clip_folder), clip_mask, frames=2)
    ended, left = (second, first) if order == "inner first" else (first, second)
    ended.__exit__(None, None, None)
    assert outer == Counter(
        {f"memory.layer{i}.{k}": 1 for i in range(4) for k in ("self", "cross")}
    )
    assert inner == Counter({f"memory.layer{i}.cross": 1 for i in range(4)})
    track(demo_predictor, str(clip_folder), clip_mask, frames=2)
    assert sum(outer.values()) == (16 if order == "inner first" else 8)
    assert sum(inner.values()) == (4 if order == "inner first" else 8)
    left.__exit__(None, None, None)
    assert left_behind(demo_predictor) == []


def test_predictors_that_share_modules_are_told_apart(
    demo_predictor: Any, clip_folder: Path, clip_mask: np.ndarray
) -> None:
    stock_calls, own_calls = Counter[str](), Counter[str]()
    predictor = accelerate(demo_predictor, "paper")
    with (
        observe(demo_predictor, lambda call: stock_calls.update([call.site]), "decoder.final.*"),
        observe(predictor, lambda call: own_calls.update([call.site]), "decoder.final.*"),
    ):
        track(predictor, str(clip_folder), clip_mask, frames=3)
        assert not stock_calls and own_calls.total() == 3
        track(demo_predictor, str(clip_folder), clip_mask, frames=2)
        assert stock_calls.total() == 2 and own_calls.total() == 3
    assert left_behind(demo_predictor) == [] and left_behind(predictor) == []


@pytest.fixture
def changed_attention(demo_predictor: Any) -> Iterator[Callable[[Any], None]]:
    """Let a test give one module's class another forward, as another version of sam2 would have."""
    module = demo_predictor.memory_attention.layers[2].self_attn
    before = module.__class__
    yield lambda forward: setattr(
        module, "__class__", type("Changed", (before,), {"forward": forward})
    )
    module.__class__ = before


@pytest.mark.parametrize("calls", [0, 2])
def test_no_or_two_attention_calls_raise(
    demo_predictor: Any,
    clip_folder: Path,
    clip_mask: np.ndarray,
    calls: int,
    changed_attention: Any,
) -> None:
    def forward(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        for _ in range(calls):
            torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return q

    changed_attention(forward)
    with (
        pytest.raises(RuntimeError, match=f"memory.layer2.self called attention {calls} times"),
        observe(demo_predictor, lambda call: None),
    ):
        track(demo_predictor, str(clip_folder), clip_mask, frames=2)
    assert left_behind(demo_predictor) == []


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # torch's compiler imports its older parts
def test_compiled_modules_are_refused(demo_predictor: Any) -> None:
    attention = demo_predictor.memory_attention
    attention.forward = torch.compile(attention.forward)
    try:
        with (
            pytest.raises(InputError, match="memory_attention is compiled"),
            observe(demo_predictor, lambda call: None),
        ):
            pass
    finally:
        del attention.forward
    with observe(demo_predictor, lambda call: None):
        pass


def test_what_is_no_video_predictor_is_refused(demo_predictor: Any) -> None:
    with (
        pytest.raises(InputError, match="takes a SAM 2 video predictor"),
        observe(demo_predictor.image_encoder, lambda call: None),
    ):
        pass
