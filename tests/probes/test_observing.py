"""Observing changes nothing, sees everything once, and leaves nothing behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from threading import Thread
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
from sparsity.clips.made import make_clip

PROFILES = ("stock", "dense", "exact", "paper", "recommended")


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
        if key.startswith(("_observed", "_run_", "_get_", "_prepare_", "_forward_sam", "_encode_"))
    ]


def as_profile(stock: Any, profile: str) -> Any:
    return stock if profile == "stock" else accelerate(stock, profile)


@pytest.mark.parametrize("profile", PROFILES)
def test_masks_are_the_same_bit_for_bit(
    small_stock: Any, clip_folder: Path, clip_mask: np.ndarray, profile: str
) -> None:
    predictor = as_profile(small_stock, profile)
    _, plain = track(predictor, str(clip_folder), clip_mask, objects=2)
    seen: list[str] = []
    with observe(predictor, lambda call: seen.append(call.site), "*"):
        _, observed = track(predictor, str(clip_folder), clip_mask, objects=2)
    assert all(torch.equal(a, b) for a, b in zip(plain, observed, strict=True))
    assert set(seen) == {site.name for site in attention_sites(small_stock)}
    assert left_behind(predictor) == []
    assert left_behind(small_stock) == []


def test_masks_differ_when_something_is_changed(
    small_stock: Any, clip_folder: Path, clip_mask: np.ndarray
) -> None:
    _, plain = track(small_stock, str(clip_folder), clip_mask)
    bias = small_stock.memory_attention.layers[0].self_attn.out_proj.bias
    before = bias.detach().clone()
    # the first self-attention's queries and keys are the model's own, so what is written there is seen later
    with observe(small_stock, lambda call: bias.add_(0.1), "memory.layer0.self"):
        _, changed = track(small_stock, str(clip_folder), clip_mask)
    with torch.inference_mode():
        bias.copy_(before)
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


@pytest.mark.parametrize(
    ("model", "bf16"), [("tiny", False), ("padded", True), ("dividing", False), ("dividing", True)]
)
def test_recomputed_attention_is_what_the_model_computed(
    request: pytest.FixtureRequest, model: str, bf16: bool, clip_folder: Path, clip_mask: np.ndarray
) -> None:
    predictor = request.getfixturevalue(f"{model}_predictor")
    calls: list[AttentionCall] = []
    outputs: dict[str, list[Tensor]] = {}
    handles = [
        _output_projection(site.module).register_forward_pre_hook(
            lambda m, inputs, name=site.name: outputs.setdefault(name, []).append(inputs[0].clone())
        )
        for site in attention_sites(predictor)
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
            observe(predictor, keep, "*"),
        ):
            track(predictor, str(clip_folder), clip_mask, frames=2)
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
    small_stock: Any, clip_folder: Path, clip_mask: np.ndarray, profile: str
) -> None:
    calls: list[AttentionCall] = []
    predictor = as_profile(small_stock, profile)
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
    small_stock: Any, clip_folder: Path, clip_mask: np.ndarray
) -> None:
    moments = []
    with torch.inference_mode(), observe(small_stock, lambda c: moments.append(c.moment)):
        state = small_stock.init_state(str(clip_folder))
        small_stock.add_new_mask(state, 3, 1, clip_mask)
        list(small_stock.propagate_in_video(state, 3, 2, reverse=True))
    assert {(m.frame, m.reverse) for m in moments} == {(2, True), (1, True)}
    assert [f.frame for f in moments[-1].layouts[0].frames] == [3, 2]


def test_layouts_say_what_the_memory_holds(
    small_stock: Any, clip_folder: Path, clip_mask: np.ndarray
) -> None:
    layouts = {}

    def note(call: AttentionCall) -> None:
        (layout,) = call.moment.layouts
        assert call.k.shape[2] == layout.keys
        layouts[call.moment.frame] = layout

    with observe(small_stock, note, "memory.*.cross"):
        track(small_stock, str(clip_folder), clip_mask, frames=8)
    slots = [(f.slot, f.frame, f.age) for f in layouts[7].frames]
    assert slots[0] == ("prompt", 0, 7)
    assert slots[1:] == [(str(i), i, 7 - i) for i in range(1, 7)]


def test_a_memory_that_is_laid_out_otherwise_is_noticed(
    small_stock: Any, clip_folder: Path, clip_mask: np.ndarray, monkeypatch: pytest.MonkeyPatch
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
        observe(small_stock, lambda call: None),
    ):
        track(small_stock, str(clip_folder), clip_mask, frames=4)
    assert left_behind(small_stock) == []


@pytest.mark.parametrize("profile", PROFILES[1:])
def test_observed_key_counts_are_the_reports(
    clip_frames: np.ndarray, clip_mask: np.ndarray, profile: str
) -> None:
    """Of an object that lies in some of nine windows."""
    predictor = accelerate(build_predictor("demo", image_size=192, device="cpu"), profile)
    frames, mask = np.roll(clip_frames, (-16, -13), (1, 2)), np.roll(clip_mask, (-16, -13), (0, 1))
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
        state, _ = track(predictor, frames, mask, objects=2, frames=8)
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
    small_stock: Any, clip_folder: Path, clip_mask: np.ndarray, profile: str
) -> None:
    predictor = as_profile(small_stock, profile)

    def fail(call: AttentionCall) -> None:
        if call.moment.frame == 2:
            raise LookupError(call.site)

    with (
        pytest.raises(LookupError, match="memory.layer1.cross"),
        observe(predictor, fail, "memory.layer1.cross"),
    ):
        track(predictor, str(clip_folder), clip_mask)
    assert left_behind(predictor) == [] and left_behind(small_stock) == []
    _, after = track(predictor, str(clip_folder), clip_mask)
    _, fresh = track(as_profile(small_stock, profile), str(clip_folder), clip_mask)
    assert all(torch.equal(a, b) for a, b in zip(after, fresh, strict=True))


def test_what_is_seen_outside_a_run_has_no_gradients(small_stock: Any) -> None:
    image = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    found, calls = [], []

    def note(call: AttentionCall) -> None:
        found.append(measure(call))
        calls.append(call)

    with observe(small_stock, note, "*.global"):
        features = small_stock.forward_image(image)
    assert features["vision_features"].requires_grad  # the model's own are untouched
    assert not any(t.requires_grad for call in calls for t in (call.q, call.k, call.v))
    with torch.inference_mode(), observe(small_stock, note, "*.global"):
        small_stock.forward_image(image)
    half = len(found) // 2
    for a, b in zip(found[:half], found[half:], strict=True):
        assert torch.equal(a.mass, b.mass)
    assert not torch.equal(found[0].mass, found[1].mass)


def test_something_is_there_while_it_lasts(small_stock: Any) -> None:
    with observe(small_stock, lambda call: None):
        assert "_observed" in left_behind(small_stock)
    assert left_behind(small_stock) == []


@pytest.mark.parametrize("order", ["inner first", "outer first"])
def test_contexts_nest(
    small_stock: Any, clip_folder: Path, clip_mask: np.ndarray, order: str
) -> None:
    inner, outer = Counter[str](), Counter[str]()
    first = observe(small_stock, lambda call: outer.update([call.site]), "memory.*")
    second = observe(small_stock, lambda call: inner.update([call.site]), "*.cross")
    first.__enter__()
    second.__enter__()
    track(small_stock, str(clip_folder), clip_mask, frames=2)
    ended, left = (second, first) if order == "inner first" else (first, second)
    ended.__exit__(None, None, None)
    assert outer == Counter(
        {f"memory.layer{i}.{k}": 1 for i in range(4) for k in ("self", "cross")}
    )
    assert inner == Counter({f"memory.layer{i}.cross": 1 for i in range(4)})
    track(small_stock, str(clip_folder), clip_mask, frames=2)
    assert sum(outer.values()) == (16 if order == "inner first" else 8)
    assert sum(inner.values()) == (4 if order == "inner first" else 8)
    left.__exit__(None, None, None)
    assert left_behind(small_stock) == []


def test_predictors_that_share_modules_are_told_apart(
    small_stock: Any, clip_folder: Path, clip_mask: np.ndarray
) -> None:
    stock_calls, own_calls = Counter[str](), Counter[str]()
    predictor = accelerate(small_stock, "paper")
    with (
        observe(small_stock, lambda call: stock_calls.update([call.site]), "decoder.final.*"),
        observe(predictor, lambda call: own_calls.update([call.site]), "decoder.final.*"),
    ):
        track(predictor, str(clip_folder), clip_mask, frames=3)
        assert not stock_calls and own_calls.total() == 3
        track(small_stock, str(clip_folder), clip_mask, frames=2)
        assert stock_calls.total() == 2 and own_calls.total() == 3
    assert left_behind(small_stock) == [] and left_behind(predictor) == []


@pytest.fixture
def changed_attention(small_stock: Any) -> Iterator[Callable[[Any], None]]:
    """Let a test give one module's class another forward, as another version of sam2 would have."""
    module = small_stock.memory_attention.layers[2].self_attn
    before = module.__class__
    yield lambda forward: setattr(
        module, "__class__", type("Changed", (before,), {"forward": forward})
    )
    module.__class__ = before


@pytest.mark.parametrize("calls", [0, 2])
def test_no_or_two_attention_calls_raise(
    small_stock: Any, clip_folder: Path, clip_mask: np.ndarray, calls: int, changed_attention: Any
) -> None:
    def forward(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        for _ in range(calls):
            torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return q

    changed_attention(forward)
    with (
        pytest.raises(RuntimeError, match=f"memory.layer2.self called attention {calls} times"),
        observe(small_stock, lambda call: None),
    ):
        track(small_stock, str(clip_folder), clip_mask, frames=2)
    assert left_behind(small_stock) == []


@pytest.mark.process  # of a second or more: torch's compiler is imported
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # it imports its older parts
def test_compiled_modules_are_refused(small_stock: Any) -> None:
    attention = small_stock.memory_attention
    attention.forward = torch.compile(attention.forward)
    try:
        with (
            pytest.raises(InputError, match="memory_attention is compiled"),
            observe(small_stock, lambda call: None),
        ):
            pass
    finally:
        del attention.forward
    with observe(small_stock, lambda call: None):
        pass


def test_what_is_no_video_predictor_is_refused(small_stock: Any) -> None:
    with (
        pytest.raises(InputError, match="takes a SAM 2 video predictor"),
        observe(small_stock.image_encoder, lambda call: None),
    ):
        pass


def track_made(predictor: Any, object_id: int, frames: int) -> None:
    clip = make_clip("smooth", object_id, frames, (144, 256))
    with torch.inference_mode():
        state = predictor.init_state(clip.frames)
        predictor.add_new_mask(state, 0, object_id, clip.masks[0] == 1)
        for _ in predictor.propagate_in_video(state):
            pass


@pytest.mark.parametrize("inside", [True, False])
def test_another_thread_is_not_taken_for_the_own_predictor(small_stock: Any, inside: bool) -> None:
    """The other one tracks in a thread while this one is inside a call of memory attention."""
    observed, other = (accelerate(small_stock, "dense") for _ in range(2))
    heard: list[tuple[int | None, tuple[int, ...]]] = []

    def note(call: AttentionCall) -> None:
        heard.append((call.moment.frame, call.moment.objects))
        if inside and len(heard) == 1:
            thread = Thread(target=track_made, args=(other, 7, 3))
            thread.start()
            thread.join()

    with observe(observed, note, "memory.layer0.cross"):
        track_made(observed, 1, frames=4)
        assert heard == [(1, (1,)), (2, (1,)), (3, (1,))]
        track_made(other, 7, frames=2)
    assert heard[3:] == [(None, ())], "between the own steps others are heard, without a frame"
