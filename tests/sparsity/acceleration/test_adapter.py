"""What tokens that are not computed go through."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from probes.errors import InputError
from sparsity import accelerate
from sparsity.acceleration.model.encoder import window_grid
from sparsity.profile import Profile
from sparsity.techniques.adapter import Adapter, load_adapter
from sparsity.techniques.routing import Routing
from tests.sparsity.acceleration.conftest import (
    FULL,
    PROMPTS,
    Runs,
    encoded,
    make_frames,
    off_by,
    run,
    step,
    track,
)

CPU = torch.device("cpu")


def bottleneck(channels: int, scale: float = 0.02) -> OrderedDict[str, Tensor]:
    """Weights in the form of the authors' files."""
    generator = torch.Generator().manual_seed(0)
    half = channels // 2
    shapes = {
        "norm.weight": (channels,),
        "norm.bias": (channels,),
        "down_project.weight": (half, channels),
        "down_project.bias": (half,),
        "up_project.weight": (channels, half),
        "up_project.bias": (channels,),
    }
    return OrderedDict(
        (name, scale * torch.randn(shape, generator=generator)) for name, shape in shapes.items()
    )


def naive_bottleneck(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    """The paper's adapter, spelled out (method 3.1)."""
    normed = F.layer_norm(x, x.shape[-1:], w["norm.weight"], w["norm.bias"], 1e-6)
    hidden = torch.relu(normed @ w["down_project.weight"].T + w["down_project.bias"])
    return x + hidden @ w["up_project.weight"].T + w["up_project.bias"]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("channels", [448, 576], ids=["base-plus", "large"])
def test_bottleneck_files(channels: int, suffix: str, tmp_path: Path) -> None:
    weights = bottleneck(channels)
    path = tmp_path / f"adapter{suffix}"
    if suffix == ".pth":
        torch.save(weights, path)
    else:
        save_file(dict(weights), path)
    function = load_adapter(Adapter(kind="bottleneck", file=str(path)), channels, CPU)
    x = torch.randn(50, channels)
    torch.testing.assert_close(function(x), naive_bottleneck(x, weights), rtol=1e-5, atol=1e-6)
    assert not torch.equal(function(x), x)


def test_a_file_for_another_model_is_refused_with_its_shapes(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    save_file(dict(bottleneck(448)), path)
    with pytest.raises(InputError, match=r"224, 448.*288, 576.*576 channels"):
        load_adapter(Adapter(kind="bottleneck", file=str(path)), 576, CPU)


def test_another_file_than_the_profile_names_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    save_file(dict(bottleneck(448)), path)
    with pytest.raises(InputError):
        load_adapter(Adapter(kind="bottleneck", file=str(path), sha256="0" * 64), 448, CPU)
    with pytest.raises(InputError, match=r"missing\.safetensors"):
        load_adapter(
            Adapter(kind="ridge", file=str(path.with_name("missing.safetensors"))), 448, CPU
        )


def test_a_ridge_file(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 8, generator=generator) for n in (50, 8))
    bias = torch.arange(8.0)
    save_file({"weight": weight, "bias": bias}, tmp_path / "adapter.safetensors")
    adapter = Adapter(kind="ridge", file=str(tmp_path / "adapter.safetensors"))
    function = load_adapter(adapter, 8, CPU)
    torch.testing.assert_close(function(x), x + x @ weight.T + bias, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(function(x), x + x @ weight + bias, atol=1e-2)


def test_weights_follow_a_model_to_its_device(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    save_file(dict(bottleneck(64)), path)
    function = load_adapter(Adapter(kind="bottleneck", file=str(path)), 64, CPU)
    assert function is not None
    x = torch.randn(5, 64)
    assert not torch.equal(function(x), x)
    moved = function(x.to("meta"))
    assert (moved.device.type, moved.shape) == ("meta", x.shape)


def cached(exact: bool = True) -> Profile:
    """SWR with the change of the last computation for what is left out."""
    return Profile(name="c", exact=exact, routing=Routing(), adapter=Adapter(kind="cached"))


def test_adapters_change_what_is_not_computed_and_nothing_else(
    demo_predictor: Any, tmp_path: Path, runs: Runs
) -> None:
    trunk = demo_predictor.image_encoder.trunk
    channels = trunk.blocks[trunk.stage_ends[2]].dim_out
    path = tmp_path / "adapter.safetensors"
    save_file(dict(bottleneck(channels, scale=0.3)), path)
    some, every = (3, 4), tuple(range(9))
    found = {}
    for adapter in (Adapter(), Adapter(kind="bottleneck", file=str(path))):
        profile = Profile(name="windows", exact=True, routing=Routing(), adapter=adapter)
        fast, state = accelerate(demo_predictor, profile), runs(demo_predictor).resumed()
        for windows in (some, every):
            fast.choose_windows(state, lambda frame, windows=windows: windows)
            found[adapter.kind, windows] = step(fast, state, FULL)
    assert off_by(found["bottleneck", some], found["identity", some]) > 1e-3
    assert torch.equal(found["bottleneck", every], found["identity", every])


def test_the_cached_change_is_nearer_where_nothing_moves(demo_predictor: Any) -> None:
    """On a still picture the last change is this frame's, and only what lies between differs."""
    still, errors = make_frames(1).repeat(3, axis=0), {}
    expected = track(accelerate(demo_predictor, "exact"), still, PROMPTS["mask"])
    for profile in (cached(), cached().model_copy(update={"adapter": Adapter()})):
        fast = accelerate(demo_predictor, profile)
        state = fast.init_state(still)
        fast.choose_windows(state, lambda frame: tuple(range(7)) if frame > 1 else None)
        PROMPTS["mask"][0].give(fast, state)
        run(fast, state)
        errors[profile.adapter.kind] = off_by(encoded(state)[-1], encoded(expected.state)[-1])
    assert 0 < errors["cached"] < 0.5 * errors["identity"]


@pytest.mark.parametrize("exact", [True, False])
def test_the_cached_change_is_as_young_as_the_window(demo_predictor: Any, exact: bool) -> None:
    """The picture changes on frame 2; a window that was computed then is nearer to dense on frame 3 for it."""
    frames = make_frames(1).repeat(4, axis=0)
    frames[2:] = frames[2:, ::-1, ::-1]
    some, others = (0, 1, 2), (6, 7, 8)
    found = {}
    for given in (some, others, None):
        fast = accelerate(demo_predictor, cached(exact))
        state = fast.init_state(frames)
        PROMPTS["mask"][0].give(fast, state)
        routes = {2: given, 3: others if given else None}
        fast.choose_windows(state, routes.get)
        run(fast, state)
        levels = encoded(state)[-1]
        found[given] = levels[..., : levels.shape[-2] // 3, :]
    assert off_by(found[some], found[None]) < off_by(found[others], found[None])


def test_the_first_routed_frame_waits_for_something_cached(demo_predictor: Any, runs: Runs) -> None:
    fast, state = accelerate(demo_predictor), runs(demo_predictor, profile="paper").resumed()
    with fast.use(cached(exact=False)):
        step(fast, state, FULL)
        report = fast.report(state).frames[-1]
        assert (report.windows, report.reason) == (None, "nothing cached")
        assert window_grid(fast).count == report.windows_kept
        step(fast, state, FULL + 1)
        assert fast.report(state).frames[-1].reason == "routed"
