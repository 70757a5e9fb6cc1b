"""Exact rewrites, all windows kept and all keys kept: the same mathematics as stock, to rounding."""

from __future__ import annotations

import copy
import time
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from probes.errors import InputError
from sparsity import accelerate, build_efficient_sam2_video_predictor
from sparsity.acceleration.model import choice, linear, stages
from sparsity.acceleration.model.attention import attend, batched, blocked, fastest, fused
from sparsity.acceleration.model.encoder import window_grid
from sparsity.acceleration.model.linear import Linear
from sparsity.profile import BUILTIN, Profile, parse_profile
from sparsity.techniques.retrieval import Retrieval
from sparsity.techniques.routing import Routing
from tests.sparsity.acceleration.conftest import (
    FULL,
    PROMPTS,
    Prompt,
    Run,
    Runs,
    encoded,
    make_frames,
    off_by,
    other_pixels,
    part_of_mask,
    run,
    step,
    track,
)

SIZES = {"tiny": "t", "small": "s", "base-plus": "b+", "large": "l"}
"""Sizes of SAM 2.1 and their configurations. At 256 pixels windows pad the grid but for Large, whose single one fills it."""


def windows_alone(exact: bool) -> Profile:
    """SWR without SMR, with and without the exact rewrites."""
    return Profile(name="windows", routing=Routing(), exact=exact)


@pytest.mark.parametrize("exact", [False, True], ids=["stock around", "rewritten"])
def test_all_windows_kept_equals_dense(stock: Any, exact: bool, runs: Runs) -> None:
    fast = accelerate(stock, windows_alone(exact))
    state = runs(stock).resumed()
    expected = step(stock, state, FULL)
    every = tuple(range(_windows(fast)))
    fast.choose_windows(state, lambda frame: every)
    assert off_by(step(fast, state, FULL), expected) <= 1e-4
    fast.choose_windows(state, lambda frame: every[1:])
    assert off_by(step(fast, state, FULL), expected) > 1e-3


def _windows(predictor: Any) -> int:
    return window_grid(predictor).count


FEWER_BLOCKS = {
    "large": [
        "model.image_encoder.trunk.stages=[2,6,8,4]",
        "model.image_encoder.trunk.global_att_blocks=[10,13,15]",
    ]
}
"""Stage 3 of Large with 8 of its 36 blocks, the global ones and the last among them: the others are more of the same."""


@pytest.mark.parametrize("name", SIZES)
def test_features_of_all_sizes(name: str) -> None:
    fast = build_efficient_sam2_video_predictor(
        f"configs/sam2.1/sam2.1_hiera_{SIZES[name]}.yaml", device="cpu", profile="exact",
        hydra_overrides_extra=["++model.image_size=256", *FEWER_BLOCKS.get(name, [])],
    )  # fmt: skip
    levels = _levels(fast)
    with fast.use("dense"):
        expected = _levels(fast)
    assert [level.shape for level in levels] == [level.shape for level in expected]
    assert max(map(off_by, levels, expected)) <= 1e-5
    assert min(off_by(level.flip(-1), level) for level in levels) > 1e-2


def test_early_stages_in_one_strip_equal_those_in_many(
    padded_predictor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _levels(accelerate(padded_predictor, "dense"))
    for tokens in (256, 2**20):
        monkeypatch.setattr(stages, "STRIP_TOKENS", tokens)
        assert max(map(off_by, _levels(accelerate(padded_predictor, "exact")), expected)) <= 1e-5


def _levels(predictor: Any) -> list[Tensor]:
    """Feature levels of the first frame."""
    state = predictor.init_state(make_frames(1))
    stock = state["cached_features"]
    levels = stock[0][1]["backbone_fpn"] if stock else encoded(state)
    return [level.clone() for level in levels]


@pytest.mark.parametrize("kind", ["mask", "three objects"])
def test_exact_equals_stock(stock: Any, kind: str, runs: Runs) -> None:
    state = runs(stock, kind).resumed()
    expected = step(stock, state, FULL)
    assert off_by(step(accelerate(stock, "exact"), state, FULL), expected) <= 1e-4
    assert off_by(step(stock, state, FULL + 1), expected) > 1e-3


def test_a_whole_exact_run_has_the_masks_of_stock(demo_predictor: Any, runs: Runs) -> None:
    """Memory is stored in bfloat16, so what rounds differently once grows; masks hardly feel it."""
    expected = runs(demo_predictor, "three objects")
    run = runs(demo_predictor, "three objects", "exact")
    assert other_pixels(run, expected) <= 1e-4
    assert other_pixels(runs(demo_predictor), expected) > 1e-2


@pytest.mark.parametrize("exact", [False, True], ids=["fused", "rewritten"])
def test_keeping_all_keys_equals_stock(stock: Any, exact: bool, runs: Runs) -> None:
    state = runs(stock, "three objects").resumed()
    expected = _memory_conditioned(stock, state)
    whole = Profile(name="whole", retrieval=Retrieval(keep=1.0), exact=exact)
    assert _distance(_memory_conditioned(accelerate(stock, whole), state), expected) <= 1e-5
    few = accelerate(stock, Profile(name="few", retrieval=Retrieval(keep=0.05), exact=exact))
    nothing_chosen = _memory_conditioned(few, state)
    assert _distance(nothing_chosen, expected) <= 1e-5, "the first look chooses, later ones are cut"
    assert _distance(_memory_conditioned(few, state), expected) > 1e-4


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _memory_conditioned(predictor: Any, state: dict[str, Any]) -> Tensor:
    """Output of memory attention on a frame, ``[O, tokens, C]``."""
    noted, heads = [], predictor._forward_sam_heads

    def note(backbone_features: Tensor, *args: Any, **kwargs: Any) -> Any:
        noted.extend(backbone_features.flatten(2).permute(0, 2, 1).clone())
        return heads(backbone_features, *args, **kwargs)

    predictor._forward_sam_heads = note
    try:
        step(predictor, state, FULL)
    finally:
        del predictor._forward_sam_heads
    return torch.stack(noted)


def test_bfloat16_is_no_further_from_float32_than_stock(small_demo: Any, runs: Runs) -> None:
    exact = runs(small_demo)
    theirs, ours = runs(small_demo, half=True), runs(small_demo, profile="exact", half=True)
    assert _mean_error(ours, exact) <= 1.25 * _mean_error(theirs, exact)
    assert _mean_error(ours, exact) > 0


def _mean_error(run: Run, expected: Run) -> float:
    errors = [(run.logits[f].float() - expected.logits[f]).abs().mean() for f in expected.logits]
    return float(torch.stack(errors).mean())


def test_objects_tracked_together_equal_objects_tracked_alone(
    demo_predictor: Any, runs: Runs
) -> None:
    together, alone = (accelerate(demo_predictor, "paper") for _ in range(2))
    alone.non_overlap_masks_for_mem_enc = True  # does nothing to a single one
    assert together.parts.batches_objects and not alone.parts.batches_objects
    state = runs(demo_predictor, "three objects").resumed()
    step(alone, state, FULL)  # chooses tokens
    expected = step(alone, state, FULL)
    assert off_by(step(together, state, FULL), expected) <= 1e-4
    assert off_by(step(together, state, FULL).flip(0), expected) > 1e-2


def test_objects_of_which_nothing_is_known_but_a_later_prompt(demo_predictor: Any) -> None:
    """All keys of their memory are held ones, and there is no pointer."""
    fast, clip = accelerate(demo_predictor, "exact"), make_frames(4)
    prompts = tuple(Prompt(3, i + 1, part_of_mask(i)) for i in range(2))
    found = []
    for those in (prompts, prompts[:1]):
        state = fast.init_state(clip)
        for prompt in those:
            prompt.give(fast, state)
        found.append(run(fast, state, start_frame_idx=0, max_frame_num_to_track=0)[0])
    together, alone = found
    assert off_by(together[:1], alone) <= 1e-4
    assert off_by(together[1:], alone) > 1e-2


def test_public_operators_serve_where_the_private_one_is_missing(
    stock: Any, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "onednn_linear", lambda dtype: False)
    state = runs(stock).resumed()
    expected = step(stock, state, FULL)
    assert off_by(step(accelerate(stock, "exact"), state, FULL), expected) <= 1e-4


@pytest.mark.skipif(not linear.onednn_linear(torch.float32), reason="there is one kernel")
@pytest.mark.parametrize("kernel", ["packed", "plain"])
def test_either_kernel_of_linear_layers_serves(
    stock: Any, runs: Runs, monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    asked = []

    def forced(kind: Any, candidates: Any, *how: Any) -> str:
        asked.append(kind)
        return kernel

    monkeypatch.setattr(linear, "WORTH_TIMING", 1)
    monkeypatch.setattr(linear, "chosen", forced)
    state = runs(stock).resumed()
    expected = step(stock, state, FULL)
    assert not asked, "stock has no part in it"
    found = step(accelerate(stock, "exact"), state, FULL)
    assert asked and off_by(found, expected) <= 1e-4
    asked.clear()
    assert torch.equal(step(accelerate(stock, "dense"), state, FULL), expected) and not asked
    assert not torch.equal(found, expected)


@pytest.mark.skipif(not linear.onednn_linear(torch.float32), reason="there is one kernel")
def test_the_kernel_of_a_kind_of_layer_is_chosen_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "CHOSEN", {})
    monkeypatch.setattr(linear, "WORTH_TIMING", 24 * 40 * 8)
    x, layer = torch.randn(32, 24), torch.nn.Linear(24, 40)
    with torch.inference_mode():
        first, other = (Linear.of(layer, torch.float32) for _ in range(2))
        first(x[:7])
        assert not choice.CHOSEN, "too few rows for a clock"
        expected = F.gelu(layer(x))
        torch.testing.assert_close(first(x, "gelu"), expected, rtol=1e-5, atol=1e-6)
        ((kind, taken),) = choice.CHOSEN.items()
        assert taken in ("packed", "plain")
        for rows in (8, 32):
            other(x[:rows], "gelu")
        assert {kind: taken} == choice.CHOSEN
        first(x)
        assert len(choice.CHOSEN) == 2, "without an activation it is another kind"
        asked = []
        monkeypatch.setattr(choice, "_fastest", lambda *given: asked.append(given) or "plain")
        torch.use_deterministic_algorithms(True)
        try:
            given = other(x, "relu")
        finally:
            torch.use_deterministic_algorithms(False)
        assert (
            torch.equal(given, other._packed(x, "relu")) and not asked and len(choice.CHOSEN) == 2
        )
        assert torch.equal(other(x, "relu"), other._plain(x, "relu")) and asked


@pytest.mark.parametrize("how", ["changed", "replaced"])
def test_new_weights_are_noticed(own_demo: Any, how: str) -> None:
    fast = accelerate(own_demo, "exact")
    state = track(fast, make_frames(4), PROMPTS["mask"]).state
    before = step(fast, state, 3)
    if how == "replaced":
        for whole, name in (
            (own_demo.memory_attention.layers[0], "linear2"),
            (own_demo.image_encoder.trunk.blocks[-1], "norm1"),
        ):
            setattr(whole, name, copy.deepcopy(getattr(whole, name)))
    with torch.no_grad():
        own_demo.memory_attention.layers[0].linear2.weight.mul_(0.5)
        own_demo.image_encoder.trunk.blocks[-1].norm1.weight.mul_(0.5)
    after = step(fast, state, 3)
    assert off_by(after, step(own_demo, state, 3)) <= 1e-4
    assert off_by(after, before) > 1e-3


@pytest.mark.parametrize("part", ["not_a_point_embed.weight", "no_mask_embed.weight"])
def test_what_no_prompt_gives_is_encoded_anew_for_new_weights(own_demo: Any, part: str) -> None:
    fast = accelerate(own_demo, "exact")
    state = track(fast, make_frames(3), PROMPTS["three objects"]).state
    before = step(fast, state, 2)
    with torch.no_grad():
        own_demo.sam_prompt_encoder.get_parameter(part).add_(2.0)
    after = step(fast, state, 2)
    assert off_by(after, step(own_demo, state, 2)) <= 1e-4
    assert off_by(after, before) > 1e-3


@settings(deadline=None, max_examples=25)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 700), st.integers(1, 90)),
    width=st.sampled_from([8, 32]),
    seed=st.integers(0, 99),
)
def test_formulations_of_attention_agree(
    sizes: tuple[int, int, int, int], width: int, seed: int
) -> None:
    b, h, n, m = sizes
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(b, h, size, width, generator=generator) for size in (n, m, m))
    expected = (q @ k.mT / width**0.5).softmax(-1) @ v
    for formulation in (fused, batched, blocked, attend):
        torch.testing.assert_close(formulation(q, k, v), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(blocked(q, k, v + 1), expected, rtol=1e-4, atol=1e-5)


def test_a_slower_formulation_is_not_chosen() -> None:
    q = torch.zeros(1, 1, 2048, 4)
    ran: list[str] = []

    def formulation(name: str, seconds: float) -> Any:
        def run() -> Tensor:
            ran.append(name)
            time.sleep(seconds)
            return q

        return run

    cases = [("slower", 0.02, 1.5, False), ("faster", 0.0, 1.5, True)]
    cases += [("saves a little", 0.02, 0.1, True), ("saves in vain", 0.02, 0.9, False)]
    for name, slow, clearly, taken in cases:
        candidates = {"default": formulation("default", 0.005), name: formulation(name, slow)}
        for _ in range(2):
            fastest(f"of a test: {name}", candidates, q, 2048, clearly)
        assert ran[-1] == (name if taken else "default")
    fastest("of a test: small", {"default": formulation("default", 0)}, q[:, :, :1], 1)
    assert ran[-1] == "default"


def test_calls_with_other_candidates_are_timed_apart() -> None:
    """1024 tokens may be read in batches, a few more in blocks, and both are of one class by their size."""
    q = torch.zeros(1, 1, 2048, 4)

    def run(*names: str) -> list[str]:
        ran: list[str] = []
        fastest(
            "of a test: others", {name: lambda n=name: ran.append(n) for name in names}, q, 2048
        )
        return ran

    first = run("default", "one")
    assert run("default", "one") == first[-1:], "timed once"
    assert set(run("default", "another")) == {"default", "another"}


@torch.inference_mode()
def test_the_decoder_with_weights_cast_once_is_stocks_bit_for_bit(demo_predictor: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    side, channels = demo_predictor.sam_image_embedding_size, demo_predictor.hidden_dim
    features = torch.randn(2, channels, side, side, generator=generator)
    fine = [
        torch.randn(2, channels // 4 // n, side * 2 * n, side * 2 * n, generator=generator)
        for n in (2, 1)
    ]
    with torch.autocast("cpu", torch.bfloat16):
        for predictor in (demo_predictor, accelerate(demo_predictor, "exact")):
            found = [predictor._forward_sam_heads(features, high_res_features=fine) for _ in "ab"]
            if predictor is demo_predictor:
                expected = found[0]
    for one, two, stock in zip(*found, expected, strict=True):
        assert torch.equal(one, stock) and torch.equal(two, stock)
    assert not torch.equal(stock[:1], stock[1:]), "objects differ"


class CastsOfWeights(TorchDispatchMode):
    """Counts casts of some modules' weights to another number format."""

    def __init__(self, *modules: torch.nn.Module) -> None:
        super().__init__()
        self.weights = {p.data_ptr() for module in modules for p in module.parameters()}
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        cast = func._schema.name in ("aten::to", "aten::_to_copy") and out.dtype != args[0].dtype
        self.count += cast and args[0].data_ptr() in self.weights
        return out


def test_weights_of_sam2s_own_modules_are_cast_once(small_demo: Any) -> None:
    """As long as autocast lasts, and again when they change."""
    stock = copy.deepcopy(small_demo)
    found_by = {}
    for name in ("dense", "exact"):
        fast = accelerate(stock, name)
        counts, logits = [], []
        decoder = stock.sam_mask_decoder.transformer.layers[0].mlp.layers[0].weight
        with torch.autocast("cpu", torch.bfloat16):
            state = fast.init_state(make_frames(6))
            PROMPTS["mask"][0].give(fast, state)
            frames = fast.propagate_in_video(state)
            for t in range(6):
                with CastsOfWeights(
                    stock.sam_mask_decoder.transformer, stock.memory_encoder
                ) as casts:
                    logits.append(next(frames)[2].clone())
                counts.append(casts.count)
                if t == 3:
                    with torch.no_grad():
                        decoder.mul_(-2)
        with torch.no_grad():
            decoder.mul_(-0.5)
        found_by[name] = counts, logits
    (stock_counts, expected), (counts, found) = found_by.values()
    assert min(stock_counts[1:]) > 50
    assert counts[2:4] == counts[5:] + [0] == [0, 0] and counts[4] > 50
    for t in range(4):
        assert off_by(found[t], expected[t]) <= 0.05
    assert off_by(found[4], expected[4]) <= 0.05
    assert off_by(found[4], found[3]) > 0.05


@torch.inference_mode()
def test_the_faster_resize_stays_with_its_profile(demo_predictor: Any, long_folder: str) -> None:
    """One state, two profiles: what was resized and encoded under the one is made anew for the other."""
    near = BUILTIN["exact"].model_copy(update={"name": "near", "resize": "torch"})
    fast = accelerate(demo_predictor, near)
    state = fast.init_state(long_folder)
    first = fast._get_image_feature(state, 0, 1)[2][-1]
    with fast.use("exact"):
        again = fast._get_image_feature(state, 0, 1)[2][-1]
        fresh = fast._get_image_feature(fast.init_state(long_folder), 0, 1)[2][-1]
    assert torch.equal(again, fresh) and not torch.equal(again, first)
    torch.testing.assert_close(first, fresh, rtol=0, atol=0.05 * float(fresh.abs().max()))
    stock = demo_predictor._get_image_feature(demo_predictor.init_state(long_folder), 0, 1)[2][-1]
    with fast.use("dense"):
        assert torch.equal(fast._get_image_feature(state, 0, 1)[2][-1], stock)
    with pytest.raises(InputError, match="resize 'torch' needs exact"):
        parse_profile(near.to_json().replace('"exact": true', '"exact": false'))
