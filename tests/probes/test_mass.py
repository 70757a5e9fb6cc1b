"""Key mass: block by block it equals the column means of the whole matrix. Statistics of known rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from probes import mass as mass_module
from probes.mass import (
    attention_weights,
    descending,
    effective_support,
    entropy,
    foreground_lift,
    gini,
    key_mass,
    key_mass_by_frame,
    keys_for_mass,
    normalised_entropy,
    sample_queries,
    top_mass,
)


def made(seed: int, b: int, h: int, n: int, m: int, sharp: float = 2.0) -> tuple[Tensor, Tensor]:
    """Queries and keys ``[b, h, n or m, 8]``."""
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(b, h, rows, 8, generator=generator) for rows in (n, m))
    return q * sharp, k


def whole(q: Tensor, k: Tensor) -> Tensor:
    """The whole matrix in float64."""
    return (q.double() @ k.double().mT * q.shape[-1] ** -0.5).softmax(-1)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 99),
    b=st.integers(1, 5),
    h=st.integers(1, 3),
    n=st.integers(1, 20),
    m=st.integers(1, 20),
    buffer=st.integers(1, 3000),
)
def test_any_block_size_gives_the_column_means(
    seed: int, b: int, h: int, n: int, m: int, buffer: int
) -> None:
    q, k = made(seed, b, h, n, m)
    weight = torch.rand(b, n, generator=torch.Generator().manual_seed(seed)) + 0.1
    p = whole(q, k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mass_module, "MASS_BYTES", buffer)
        plain, weighted = key_mass(q, k), key_mass(q, k, weight)
    share = weight.double() / weight.double().sum(1, keepdim=True)
    assert torch.allclose(plain.double(), p.mean(2), atol=1e-6)
    assert torch.allclose(weighted.double(), (p * share[:, None, :, None]).sum(2), atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 99),
    frames=st.integers(1, 4),
    pointers=st.integers(0, 3),
    buffer=st.integers(1, 3000),
)
def test_frames_sum_to_one_each(seed: int, frames: int, pointers: int, buffer: int) -> None:
    q, k = made(seed, 2, 1, 9, frames * 5 + pointers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mass_module, "MASS_BYTES", buffer)
        joint, conditional = key_mass_by_frame(q, k, frames, 5)
    p = whole(q, k)
    inside = p[..., : frames * 5].unflatten(-1, (frames, 5))
    assert torch.allclose(joint.double(), p.mean(2), atol=1e-6)
    expected = (inside / inside.sum(-1, keepdim=True)).mean(2)
    assert torch.allclose(conditional.double(), expected, atol=1e-6)
    if frames > 1:
        assert not torch.allclose(conditional.flatten(2), joint[..., : frames * 5], atol=1e-3)


def test_rows_without_weight_do_not_count() -> None:
    q, k = made(0, 2, 1, 4, 6)
    weight = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    mass = key_mass(q, k, weight)
    assert torch.allclose(mass[0], key_mass(q[:, :, :2], k)[0], atol=1e-6)
    assert not torch.allclose(mass[0], key_mass(q, k)[0], atol=1e-3)
    assert (mass[1] == 0).all()


def test_a_sample_of_rows_misses_what_all_rows_see() -> None:
    q = torch.eye(8)[None, None] * 40
    assert torch.allclose(key_mass(q, q), torch.full((1, 1, 8), 1 / 8), atol=1e-6)
    assert (key_mass(q[:, :, ::4], q) - 1 / 8).abs().sum() / 2 > 0.7


def test_autocast_does_not_coarsen_it() -> None:
    q, k = made(1, 1, 2, 16, 16, sharp=6.0)
    plain, weights = key_mass(q, k), attention_weights(q, k)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(key_mass(q, k), plain)
        assert torch.equal(attention_weights(q, k), weights)
        coarse = torch.softmax(q @ k.mT * 8**-0.5, -1)
    assert not torch.allclose(coarse.float(), weights, atol=1e-4)


@given(st.lists(st.floats(1e-6, 1), min_size=2, max_size=40))
def test_row_statistics_stay_in_their_ranges(values: list[float]) -> None:
    p = torch.tensor(values) / sum(values)
    ordered, n, nats = descending(p[None]), len(values), entropy(p)
    assert torch.equal(ordered[0], p.sort(descending=True).values)
    assert 0 <= normalised_entropy(nats, n) <= 1 + 1e-5
    assert 1 - 1e-4 <= effective_support(nats) <= n + 1e-2
    assert 1 <= keys_for_mass(ordered) <= n
    assert -1e-5 <= gini(ordered) <= (n - 1) / n + 1e-5
    assert top_mass(ordered) >= max(1, n // 10) / n - 1e-5
    assert torch.allclose(nats, entropy(p.flip(0)), atol=1e-5)


def test_row_statistics_of_known_rows() -> None:
    uniform, peak = torch.full((1, 20), 0.05), torch.eye(20)[:1]
    assert normalised_entropy(entropy(uniform), 20).item() == pytest.approx(1)
    assert normalised_entropy(entropy(peak), 20).item() == 0
    assert effective_support(entropy(uniform)).item() == pytest.approx(20)
    assert gini(descending(uniform)).item() == pytest.approx(0, abs=1e-6)
    assert gini(descending(peak)).item() == pytest.approx(0.95)
    assert keys_for_mass(descending(uniform)).item() == 18
    assert keys_for_mass(descending(peak)).item() == 1
    assert top_mass(descending(uniform)).item() == pytest.approx(0.1)
    half = (torch.arange(20) < 10).float()
    assert foreground_lift(uniform[0], half).item() == pytest.approx(1)
    assert foreground_lift(peak[0], half).item() == pytest.approx(2)
    assert foreground_lift(peak[0], half * 0).isnan()


@pytest.mark.parametrize(("groups", "rows", "wanted"), [(1, 4096, 256), (25, 196, 256), (4, 9, 99)])
def test_samples_are_stratified(groups: int, rows: int, wanted: int) -> None:
    drawn = sample_queries(groups, rows, wanted, 0)
    assert drawn.numel() >= min(wanted, groups * rows)
    step = rows / drawn.shape[1]
    middle = (torch.arange(drawn.shape[1]) + 0.5) * step
    assert ((drawn + 0.5 - middle).abs() <= step / 2 + 0.5).all()
    assert torch.equal(drawn, sample_queries(groups, rows, wanted, 0))
    if drawn.shape[1] < rows:
        assert not torch.equal(drawn, sample_queries(groups, rows, wanted, 1))
