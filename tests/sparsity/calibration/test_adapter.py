"""Adapters: closed forms are exact, the adapter learns through memory attention and survives a kill."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from probes.errors import InputError
from sparsity import accelerate
from sparsity.calibration.adapter import (
    DONE,
    FITTED,
    KINDS,
    Training,
    fit_adapter,
    fit_ridge,
    initial_weights,
    judge_adapters,
    train_bottleneck,
    write_adapter,
)
from sparsity.calibration.routed_frames import (
    RoutedFrame,
    RoutedFrames,
    collect,
    places_in,
    remembering,
    routed_frames,
    stage3_output,
    write_frames,
)
from sparsity.calibration.traces import replay_decisions
from sparsity.clips.sources import ClipSource
from sparsity.techniques.adapter import Adapter, load_adapter
from sparsity.techniques.routing import Guard, Routing
from tests.sparsity.calibration.conftest import made

CHANNELS = 16
CPU = torch.device("cpu")
BEST = Routing(margin_px=0.0, candidates="best")
SHORT = Training(updates=7, batch=1, rate=1e-3)


def changed_by(weight: torch.Tensor, bias: float, seed: int) -> RoutedFrame:
    """Return a frame of which half the tokens are left out and changed by a linear map, the others by noise."""
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, 2000, CHANNELS, generator=generator)
    outside = torch.arange(2000) % 2 == 0
    dense = torch.where(outside[:, None], x + x @ weight.T + bias, noise)
    none = torch.empty(0)
    return RoutedFrame(x, dense, dense, outside, none, none, none, none, none, none)


@pytest.fixture(scope="module")
def linear() -> list[RoutedFrame]:
    """Two frames with the same map."""
    weight = torch.randn(CHANNELS, CHANNELS, generator=torch.Generator().manual_seed(9)) * 0.3
    return [changed_by(weight, 0.5, seed) for seed in (0, 1)]


def collected(predictor, clip, routing, path):
    """Collect routed frames into a file."""
    write_frames(path, collect(predictor, clip, routing))
    return RoutedFrames(places_in(path))


@pytest.fixture(scope="module")
def frames(demo_predictor, tmp_path_factory) -> RoutedFrames:
    """Routed frames of a made clip."""
    path = tmp_path_factory.mktemp("frames") / "smooth.safetensors"
    return collected(demo_predictor, made("smooth"), BEST, path)


def through(kind, weights, folder):
    """Write weights and read them as the predictor does."""
    path = folder / f"{kind}.safetensors"
    write_adapter(weights, path)
    channels = len(next(iter(weights.values())))
    return load_adapter(Adapter(kind=kind, file=str(path)), channels, CPU)


def test_a_ridge_explains_what_is_left_out(linear, tmp_path):
    function = through("ridge", fit_ridge(linear), tmp_path)
    for frame in linear:
        entry, dense = frame.entry[frame.outside], frame.dense[frame.outside]
        error = (function(entry) - dense).square().mean()
        nothing = (dense - entry - (dense - entry).mean(0)).square().mean()
        assert error <= 0.02 * nothing * 1.01
        assert error < (dense - entry).square().mean()


@pytest.mark.parametrize("unit", ["window", "cell"])
def test_frames_are_those_that_are_routed(demo_predictor, traces, frames, unit, tmp_path):
    routing = BEST.model_copy(update={"unit": unit})
    if unit == "cell":
        frames = collected(demo_predictor, made("smooth"), routing, tmp_path / "cells.safetensors")
    assert len(frames) >= 3 and len(frames[:2]) == 2
    decisions, grid = replay_decisions(traces[0], routing, Guard()), traces[0].grid
    place = torch.arange(grid.tokens) // 2
    cell = (place[:, None] * grid.cells.side + place[None]).flatten()
    for frame, t in zip(frames, range(3, len(decisions) + 1, 3), strict=True):
        cells = decisions[t - 1].cells
        assert cells is not None
        assert set(cell[~frame.outside].tolist()) == set(cells)
        assert not set(cell[frame.outside].tolist()) & set(cells)
        assert torch.equal(frame.routed[frame.outside], frame.entry[frame.outside])
        assert not torch.equal(frame.routed[~frame.outside], frame.entry[~frame.outside])


def test_the_teacher_is_what_the_dense_run_computed(demo_predictor, frames):
    frame = frames[1]
    with torch.inference_mode():
        found, student = (
            remembering(demo_predictor, frame, stage3_output(demo_predictor, merged))
            for merged in (frame.dense, frame.routed)
        )
    torch.testing.assert_close(found, frame.target, rtol=1e-4, atol=1e-4)
    assert (student - frame.target).norm() > 1e-2 * frame.target.norm()


def test_half_a_file_holds_no_frames(frames, tmp_path):
    path = tmp_path / "half.safetensors"
    whole, _ = frames.places[0]
    path.write_bytes(whole.read_bytes()[:1000])
    with pytest.raises(SafetensorError):
        places_in(path)
    assert len(places_in(whole)) == len(frames)


def test_errors_are_nothing_for_the_truth_and_less_for_a_ridge(demo_predictor, frames, tmp_path):
    ridge = through("ridge", fit_ridge(frames), tmp_path)
    adapters = {"identity": lambda x: x, "ridge": ridge, "cached": None}
    found = judge_adapters(demo_predictor, frames, adapters)
    assert 0 < found["ridge"]["stage3"] < found["identity"]["stage3"]
    assert 0 < found["ridge"]["remembered"] < found["identity"]["remembered"]
    oracle = judge_adapters(
        demo_predictor, [replace(f, routed=f.dense) for f in frames[:1]],
        {"truth": lambda x, dense=frames[0].dense: dense},
    )  # fmt: skip
    assert oracle["truth"]["stage3"] == 0 and oracle["truth"]["remembered"] < 1e-4
    assert set(found) < set(KINDS)


def test_training_lowers_the_error_and_touches_nothing_else(demo_predictor, frames, tmp_path):
    before = {name: p.detach().clone() for name, p in demo_predictor.named_parameters()}
    asked = [p.requires_grad for p in demo_predictor.parameters()]
    path = tmp_path / "adapter.safetensors"
    steps = train_bottleneck(demo_predictor, frames, Training(16, 1, 3e-3), path)
    losses = [update.loss for update in steps]
    assert len(losses) == 16 and np.mean(losses[-3:]) < 0.95 * np.mean(losses[:3])
    assert all(torch.equal(before[name], p) for name, p in demo_predictor.named_parameters())
    assert [p.requires_grad for p in demo_predictor.parameters()] == asked
    assert list(tmp_path.iterdir()) == [path], "no saved state is left"
    channels = frames[0].entry.shape[1]
    adapter = load_adapter(Adapter(kind="bottleneck", file=str(path)), channels, CPU)
    start = through("bottleneck", initial_weights(channels, 0), tmp_path)
    found = judge_adapters(demo_predictor, frames, {"trained": adapter, "start": start})
    assert found["trained"]["remembered"] < found["start"]["remembered"]


def test_a_fit_is_kept_and_taken_where_it_is_alike(demo_predictor, tmp_path):
    source, folder = ClipSource(), tmp_path / "frames"
    names = source.names(made=1)

    def fit(kind, seed=0):
        frames = routed_frames(demo_predictor, source, names, BEST, folder, most_frames=8)
        training = Training(2, 1, seed=seed)
        return fit_adapter(kind, demo_predictor, frames, tmp_path / "fitted", training)

    first = {kind: fit(kind) for kind in FITTED}
    files = [*folder.iterdir(), *(tmp_path / "fitted").iterdir()]
    written = [file.stat().st_mtime_ns for file in files]
    assert {kind: fit(kind) for kind in FITTED} == first
    assert [file.stat().st_mtime_ns for file in files] == written
    assert len(first["bottleneck"].loss) == 2 and first["ridge"].loss == ()
    assert len({found.adapter.sha256 for found in first.values()}) == len(FITTED)
    other = fit("bottleneck", seed=1)
    assert other.adapter.sha256 != first["bottleneck"].adapter.sha256
    Path(str(other.adapter.file)).write_bytes(b"half")
    assert fit("bottleneck", seed=1).adapter == other.adapter
    channels = demo_predictor.image_encoder.trunk.channel_list[1]
    assert load_adapter(first["ridge"].adapter, channels, CPU) is not None


def test_nothing_to_fit_on_is_said(demo_predictor, tmp_path):
    with pytest.raises(InputError, match="adapter ridge asked for on clips of which no frame is"):
        fit_adapter("ridge", demo_predictor, RoutedFrames([]), tmp_path / "none", SHORT)
    assert not any(tmp_path.iterdir())


KILLED = """
import os, signal, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from probes.models import build_predictor
from sparsity import accelerate
from sparsity.calibration.adapter import Training, train_bottleneck
from sparsity.calibration.routed_frames import RoutedFrames, places_in
predictor = accelerate(build_predictor("demo", image_size=192, device="cpu"), "exact")
steps = train_bottleneck(predictor, RoutedFrames(places_in(Path(sys.argv[1]))), Training(7, 1, 1e-3), Path(sys.argv[2]))
for update, _ in enumerate(steps):
    if update == 5:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.process
def test_a_killed_training_goes_on_to_the_same_weights(demo_predictor, frames, tmp_path):
    whole, killed, other = (
        tmp_path / f"{name}.safetensors" for name in ("whole", "killed", "other")
    )
    unbroken = list(train_bottleneck(demo_predictor, frames, SHORT, whole))
    assert len(unbroken) == 7
    command = [sys.executable, "-c", KILLED, str(frames.places[0][0]), str(killed)]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-500:]
    assert not killed.exists()
    state = tmp_path / f".{killed.name}.training"
    state.with_name(f".{other.name}.training").write_bytes(state.read_bytes())
    before = [tuple(row) for row in load_file(state)[DONE].tolist()]
    found = list(train_bottleneck(demo_predictor, frames, SHORT, killed))
    assert [update.loss for update in found] == [update.loss for update in unbroken]
    assert len(before) == 5 and [(u.loss, u.seconds) for u in found[:5]] == before
    assert killed.read_bytes() == whole.read_bytes()
    steps = train_bottleneck(demo_predictor, frames, replace(SHORT, seed=1), other)
    assert len(list(steps)) == 7, "a state of other settings is not taken over"
    assert other.read_bytes() != whole.read_bytes()


def test_other_models_train_too(dividing_predictor, tmp_path):
    """A model with random weights, of another size than its rotary tables were made for."""
    predictor = accelerate(dividing_predictor, "exact")
    clip = made("smooth", frames=8)
    frames = collected(predictor, clip, BEST, tmp_path / "frames.safetensors")
    assert len(frames)
    steps = train_bottleneck(predictor, frames, Training(3, 1), tmp_path / "w.safetensors")
    losses = [update.loss for update in steps]
    assert len(losses) == 3 and all(np.isfinite(losses))


def test_an_encoder_of_another_build_is_refused(dividing_predictor):
    predictor = accelerate(dividing_predictor, "dense")
    levels = predictor.image_encoder.neck.fpn_top_down_levels
    predictor.image_encoder.neck.fpn_top_down_levels = [1, 2, 3]
    try:
        with pytest.raises(InputError, match="expected an encoder as SAM 2 has; use identity"):
            collect(predictor, made("smooth", frames=4), BEST)
    finally:
        predictor.image_encoder.neck.fpn_top_down_levels = levels
