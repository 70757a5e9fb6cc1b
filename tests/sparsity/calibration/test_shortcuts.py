"""Shortcuts are fitted to what the blocks do: closed forms exactly, the adapter nearly; files are read back."""

from __future__ import annotations

import pytest
import torch

from sparsity.acceleration.shortcuts import load_shortcut
from sparsity.calibration.shortcuts import (
    FITTED,
    Pairs,
    collect,
    fit_shortcut,
    stage3_error,
    write_shortcut,
)
from sparsity.profile import Shortcut, Windows
from tests.sparsity.calibration.conftest import made

CHANNELS = 16


@pytest.fixture(scope="module")
def linear() -> Pairs:
    """Tokens that a linear map changes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, CHANNELS, generator=generator)
    weight = torch.randn(CHANNELS, CHANNELS, generator=generator) * 0.3
    return Pairs(x, x @ weight.T + 0.5)


def through(kind, weights, folder):
    """Write weights and read them as the predictor does."""
    path = folder / f"{kind}.safetensors"
    write_shortcut(weights, path)
    return load_shortcut(Shortcut(kind=kind, file=str(path)), CHANNELS, torch.device("cpu"))


@pytest.mark.parametrize(("kind", "left"), [("mean", 1.0), ("ridge", 0.02), ("bottleneck", 0.6)])
def test_a_fitted_shortcut_explains_the_change(linear, tmp_path, kind, left):
    function = through(kind, fit_shortcut(kind, [linear]), tmp_path)
    error = (function(linear.entry) - linear.entry - linear.change).square().mean()
    nothing = (linear.change - linear.change.mean(0)).square().mean()
    assert error <= left * nothing * 1.001
    assert error < linear.change.square().mean()


def test_the_same_seed_trains_the_same_adapter(linear):
    one, two, other = (fit_shortcut("bottleneck", [linear], seed) for seed in (0, 0, 1))
    assert torch.equal(one["up_project.weight"], two["up_project.weight"])
    assert not torch.equal(one["up_project.weight"], other["up_project.weight"])


def test_a_kind_without_weights_is_refused(linear):
    with pytest.raises(ValueError, match="'cached' has no weights; expected one of mean, ridge"):
        fit_shortcut("cached", [linear])


def test_on_the_clip_it_was_fitted_to_a_ridge_errs_less_than_identity(
    demo_predictor, traces, tmp_path
):
    clip, windows = made("smooth"), Windows(margin_px=0.0, candidates="best")
    pairs = collect(demo_predictor, clip, traces[0], windows)
    assert set(FITTED) == {"mean", "ridge", "bottleneck"} and len(pairs.entry) > 100
    path = tmp_path / "ridge.safetensors"
    write_shortcut(fit_shortcut("ridge", [pairs]), path)
    ridge = load_shortcut(
        Shortcut(kind="ridge", file=str(path)), pairs.entry.shape[1], torch.device("cpu")
    )
    errors = stage3_error(
        demo_predictor, clip, traces[0], windows, {"identity": lambda x: x, "ridge": ridge}
    )
    assert 0 < errors["ridge"] < errors["identity"]
