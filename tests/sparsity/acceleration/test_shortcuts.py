"""What windows that are not computed go through."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from probes import build_predictor
from probes.errors import InputError
from sparsity import accelerate
from sparsity.acceleration.encoder import window_grid
from sparsity.acceleration.shortcuts import load_shortcut
from sparsity.profile import Profile, Shortcut, Windows
from tests.conftest import make_frames
from tests.sparsity.acceleration.conftest import (
    PROMPTS,
    encoded,
    off_by,
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
def test_bottleneck_files(channels: int, suffix: str, shortcut_folder: Path) -> None:
    weights = bottleneck(channels)
    path = shortcut_folder / f"adapter{suffix}"
    if suffix == ".pth":
        torch.save(weights, path)
    else:
        save_file(dict(weights), path)
    function = load_shortcut(Shortcut(kind="bottleneck", file=str(path)), channels, CPU)
    x = torch.randn(50, channels)
    torch.testing.assert_close(function(x), naive_bottleneck(x, weights), rtol=1e-5, atol=1e-6)
    assert not torch.equal(function(x), x)


def test_a_file_for_another_model_is_refused_with_its_shapes(shortcut_folder: Path) -> None:
    path = shortcut_folder / "adapter.safetensors"
    save_file(dict(bottleneck(448)), path)
    with pytest.raises(InputError, match=r"224, 448.*288, 576.*576 channels"):
        load_shortcut(Shortcut(kind="bottleneck", file=str(path)), 576, CPU)


def test_another_file_than_the_profile_names_is_refused(shortcut_folder: Path) -> None:
    path = shortcut_folder / "adapter.safetensors"
    save_file(dict(bottleneck(448)), path)
    with pytest.raises(InputError):
        load_shortcut(Shortcut(kind="bottleneck", file=str(path), sha256="0" * 64), 448, CPU)
    with pytest.raises(InputError, match=r"missing\.safetensors"):
        load_shortcut(
            Shortcut(kind="mean", file=str(path.with_name("missing.safetensors"))), 448, CPU
        )


def routed_frame(stock: Any, shortcut: Shortcut, windows: tuple[int, ...]) -> Tensor:
    """Low-resolution logits of a frame of which only some windows are computed."""
    profile = Profile(
        name="windows", windows=Windows(), shortcut=shortcut, techniques={"encoder": True}
    )
    fast = accelerate(stock, profile)
    state = track(fast, make_frames(3), PROMPTS["mask"]).state
    fast.choose_windows(state, lambda frame: windows)
    return step(fast, state, 2)


def test_weights_follow_a_model_to_its_device(shortcut_folder: Path) -> None:
    path = shortcut_folder / "adapter.safetensors"
    save_file(dict(bottleneck(64)), path)
    function = load_shortcut(Shortcut(kind="bottleneck", file=str(path)), 64, CPU)
    assert function is not None
    x = torch.randn(5, 64)
    assert not torch.equal(function(x), x)
    moved = function(x.to("meta"))
    assert (moved.device.type, moved.shape) == ("meta", x.shape)


def test_shortcuts_change_what_is_not_computed_and_nothing_else(
    demo_predictor: Any, shortcut_folder: Path
) -> None:
    trunk = demo_predictor.image_encoder.trunk
    channels = trunk.blocks[trunk.stage_ends[2]].dim_out
    path = shortcut_folder / "adapter.safetensors"
    save_file(dict(bottleneck(channels, scale=0.3)), path)
    adapter = Shortcut(kind="bottleneck", file=str(path))
    some = (5, 6, 9, 10)
    plain = routed_frame(demo_predictor, Shortcut(), some)
    assert off_by(routed_frame(demo_predictor, adapter, some), plain) > 1e-3
    every = tuple(range(16))
    whole = routed_frame(demo_predictor, Shortcut(), every)
    assert torch.equal(routed_frame(demo_predictor, adapter, every), whole)


def test_the_cached_change_is_nearer_where_nothing_moves() -> None:
    """On a still picture the last change is this frame's, and only what lies between differs."""
    stock = build_predictor("demo", image_size=256, device="cpu")
    still = make_frames(1).repeat(6, axis=0)
    cached = Profile(
        name="cached",
        windows=Windows(),
        shortcut=Shortcut(kind="cached"),
        techniques={"encoder": True},
    )
    errors = {}
    for profile in (cached, cached.model_copy(update={"shortcut": Shortcut()})):
        fast = accelerate(stock, profile)
        run = track(fast, still, PROMPTS["mask"])
        assert fast.report(run.state).frames[-1].windows is not None
        expected = accelerate(stock, "exact")
        state = track(expected, still, PROMPTS["mask"]).state
        errors[profile.shortcut.kind] = off_by(encoded(run.state)[-1], encoded(state)[-1])
    assert 0 < errors["cached"] < 0.5 * errors["identity"]


@pytest.mark.parametrize("exact", [True, False])
def test_the_cached_change_is_as_young_as_the_window(demo_predictor: Any, exact: bool) -> None:
    """The picture changes on frame 3; a window that was computed then is nearer to dense on frame 4 for it."""
    frames = make_frames(1).repeat(5, axis=0)
    frames[3:] = frames[3:, ::-1, ::-1]
    kind = Shortcut(kind="cached")
    profile = Profile(name="c", windows=Windows(), shortcut=kind, techniques={"encoder": exact})
    some, others = (0, 1, 2, 3), (12, 13, 14, 15)
    found = {}
    for given in (some, others, None):
        fast = accelerate(demo_predictor, profile)
        state = fast.init_state(frames)
        PROMPTS["mask"][0].give(fast, state)
        routes = {3: given, 4: others if given else None}
        fast.choose_windows(state, routes.get)
        for _ in fast.propagate_in_video(state):
            pass
        levels = encoded(state)[-1]
        found[given] = levels[..., : levels.shape[-2] // 4, :]
    assert off_by(found[some], found[None]) < off_by(found[others], found[None])


def test_the_first_routed_frame_waits_for_something_cached() -> None:
    stock = build_predictor("demo", image_size=256, device="cpu")
    with_cache = Profile(name="c", windows=Windows(), shortcut=Shortcut(kind="cached"))
    fast = accelerate(stock, "paper")
    state = track(fast, make_frames(6), PROMPTS["mask"]).state
    with fast.use(with_cache):
        step(fast, state, 5)
        report = fast.report(state).frames[-1]
        assert (report.windows, report.reason) == (None, "nothing cached")
        assert window_grid(fast).count == report.windows_kept
