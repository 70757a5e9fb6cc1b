"""Linear layers in int8: how far from float32, where they are refused, and what they leave alone."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from probes.errors import InputError
from sparsity import accelerate
from sparsity.acceleration.model import quantized
from sparsity.acceleration.model.linear import Activation, Linear
from sparsity.acceleration.model.quantized import LARGEST, Int8Linear, engine, packed, why_not_int8
from sparsity.profile import BUILTIN, Profile, parse_profile
from tests.sparsity.acceleration.conftest import PROMPTS, make_frames, run

ENGINE = engine()

pytestmark = pytest.mark.skipif(ENGINE is None, reason="torch has no engine for int8 here")

FEW_PER_CENT = 0.05


def int8(name: str = "exact") -> Profile:
    """A built-in profile with int8."""
    return BUILTIN[name].model_copy(update={"name": f"{name} in int8", "quantize": "int8"})


def error(found: Tensor, expected: Tensor) -> float:
    """Relative error of a tensor."""
    return float((found - expected).norm() / expected.norm())


def features(predictor: Any, seed: int = 0) -> Tensor:
    """Features of a random picture."""
    size = predictor.image_size
    picture = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        found: Tensor = predictor.forward_image(picture)["vision_features"]
    return found


@settings(deadline=None, max_examples=25)
@given(
    n=st.integers(1, 40),
    i=st.integers(8, 96),
    o=st.integers(8, 96),
    scale=st.floats(0.01, 100.0),
    bias=st.booleans(),
    activation=st.sampled_from(["none", "gelu", "relu"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_a_layer_is_a_few_per_cent_off(
    n: int, i: int, o: int, scale: float, bias: bool, activation: Activation, dtype: Any, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    layer = torch.nn.Linear(i, o, bias=bias)
    x = (torch.randn(n, i, generator=generator) * scale).to(dtype)
    with torch.no_grad():
        for part in layer.parameters():
            part.copy_(torch.randn(part.shape, generator=generator))
        expected = Linear.of(layer, torch.float32)(x.float(), activation)
        found = Int8Linear.of(layer, dtype)(x, activation)
    assert found.dtype == dtype and found.shape == (n, o)
    # results may be small by chance, so errors are against products without their signs
    size = (x.float().abs() @ layer.weight.detach().abs().t()).norm()
    assert float((found.float() - expected).norm() / size) <= 0.02
    assert not torch.equal(found.float(), expected)


def test_the_largest_numbers_do_not_saturate() -> None:
    """255 times the largest weight, added up; of rows that are zero comes zero."""
    assert ENGINE is not None
    x, weight = torch.ones(4, 256), torch.ones(8, 256)
    weight[3] = 0
    found = Int8Linear(weight, None, torch.float32)(x)
    torch.testing.assert_close(found, x @ weight.t(), rtol=0.01, atol=0)


TRAP = """
from sparsity.acceleration.model.quantized import engine, right_sums
print(engine()[1], [right_sums("fbgemm", largest) for largest in (127, 63)])
"""


@pytest.mark.process
@pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="not x86")
def test_on_a_cpu_without_byte_products_weights_have_seven_bits() -> None:
    """With 8 bits sums saturate there, which the trial must see."""
    older = {"ONEDNN_MAX_CPU_ISA": "AVX2", "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2"}
    done = subprocess.run(
        [sys.executable, "-c", TRAP], capture_output=True, text=True, env={**os.environ, **older}
    )
    assert done.stdout.strip() == "63 [False, True]", done.stderr


def test_packing_leaves_the_engine_of_the_process_as_it_is() -> None:
    assert ENGINE is not None
    before = torch.backends.quantized.engine
    other = next(e for e in torch.backends.quantized.supported_engines if e not in ("none", before))
    packed(torch.ones(8, 8), None, other, LARGEST[0])
    assert torch.backends.quantized.engine == before != other


def test_features_are_a_few_per_cent_off(demo_predictor: Any) -> None:
    plain, fast = accelerate(demo_predictor, "exact"), accelerate(demo_predictor, int8())
    off = error(features(fast), features(plain))
    assert 1e-3 < off <= FEW_PER_CENT


def test_other_profiles_of_the_same_predictor_are_as_they_were(demo_predictor: Any) -> None:
    expected = features(accelerate(demo_predictor, "exact"))
    fast = accelerate(demo_predictor, int8())
    quantised = features(fast)
    with fast.use("exact"):
        assert torch.equal(features(fast), expected)
    with fast.use("dense"):
        assert torch.equal(features(fast), features(demo_predictor))
    assert torch.equal(features(fast), quantised)
    assert not torch.equal(quantised, expected)


def test_the_report_says_so_and_features_of_another_format_are_not_taken(
    demo_predictor: Any,
) -> None:
    fast = accelerate(demo_predictor, int8("recommended"))
    state = fast.init_state(make_frames(3))
    PROMPTS["mask"][0].give(fast, state)
    in_int8 = run(fast, state)
    assert fast.report(state).quantized == "int8"
    assert '"quantized": "int8"' in fast.report(state).to_json()
    with fast.use("recommended"):
        plain = run(fast, state, start_frame_idx=2)
        assert fast.report(state).quantized is None
        assert fast.report(state).frames[-1].reason == "nothing cached"
    assert not torch.equal(in_int8[2], plain[2])


def test_weights_that_are_changed_afterwards_are_noticed(small_demo: Any) -> None:
    stock = copy.deepcopy(small_demo)
    fast = accelerate(stock, int8())
    before = features(fast)
    with torch.no_grad():
        stock.image_encoder.trunk.blocks[-1].mlp.layers[0].weight.mul_(0.5)
    after = features(fast)
    assert torch.equal(after, features(accelerate(stock, int8())))
    assert not torch.equal(after, before)


def test_layers_that_are_not_sam2s_own_run_as_they_are(small_demo: Any) -> None:
    stock = copy.deepcopy(small_demo)
    fast, plain = accelerate(stock, int8()), accelerate(stock, "exact")
    assert not torch.equal(features(fast), features(plain))
    for block in stock.image_encoder.trunk.blocks:
        block.mlp.register_forward_hook(lambda module, given, made: made * 1.01)
    assert torch.equal(features(fast), features(plain))


@pytest.mark.parametrize("value", ['"int4"', "true", "8", '["int8"]'])
def test_other_values_are_refused(value: str) -> None:
    whole = int8().to_json()
    assert parse_profile(whole) == int8()
    with pytest.raises(InputError, match="^quantize is "):
        parse_profile(whole.replace('"quantize": "int8"', f'"quantize": {value}'))


def test_it_needs_the_exact_rewrites() -> None:
    with pytest.raises(InputError, match="quantize needs exact"):
        parse_profile(int8().model_copy(update={"exact": False, "graphs": False}).to_json())


def test_where_it_cannot_run_it_is_refused_in_one_line(
    demo_predictor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "int8 is for CPUs" in str(why_not_int8(torch.device("cuda")))
    assert why_not_int8(torch.device("cpu")) is None
    fast = accelerate(demo_predictor, "exact")
    monkeypatch.setattr(quantized, "ENGINES", ())
    engine.cache_clear()
    try:
        with pytest.raises(InputError, match="'exact in int8' quantizes to int8, but none") as said:
            with fast.use(int8()):
                raise AssertionError("it is in use")
        assert "\n" not in str(said.value)
        with fast.use("recommended"):
            pass
    finally:
        engine.cache_clear()
