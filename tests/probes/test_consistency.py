"""From frame to frame: maps that move with the object agree when moved along, and a recording tells it all."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.consistency import (
    MEASURES,
    chance_cosine,
    compare_maps,
    cosine,
    frame_to_frame,
    moved,
    window_coverage,
    window_stability,
)
from probes.recording import merge_recordings, record

SIDE = 12


def blob(x: int, y: int) -> torch.Tensor:
    """A map with a bright 3 x 3 spot on a faint slope, ``[12, 12]``."""
    out = torch.linspace(0.01, 0.02, SIDE**2).view(SIDE, SIDE).clone()
    out[y : y + 3, x : x + 3] += 1
    return out


@given(x=st.integers(2, 7), y=st.integers(2, 7), dx=st.integers(-2, 2), dy=st.integers(-2, 2))
def test_what_moves_with_its_object_agrees_when_moved_along(
    x: int, y: int, dx: int, dy: int
) -> None:
    found = dict(
        zip(
            MEASURES,
            compare_maps(blob(x, y), blob(x + dx, y + dy), (dx + 0.2, dy - 0.2)),
            strict=True,
        )
    )
    assert found["moved_cosine"] > 0.999
    assert all(-1e-6 <= value <= 1 + 1e-6 for value in found.values())
    if dx or dy:
        assert found["cosine"] < found["moved_cosine"] - 0.05
        assert found["jaccard"] <= found["moved_jaccard"]
        swapped = compare_maps(blob(x, y), blob(x + dx, y + dy), (-dx, -dy))
        assert swapped[MEASURES.index("moved_cosine")] < found["moved_cosine"]
    else:
        assert found["cosine"] == pytest.approx(found["moved_cosine"])


def test_without_an_object_nothing_is_moved() -> None:
    found = compare_maps(blob(3, 3), blob(3, 3), (math.nan, math.nan))
    assert [math.isnan(value) for value in found] == [name.startswith("moved") for name in MEASURES]
    assert found[0] == pytest.approx(1) and found[2] < 0.9


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), n=st.integers(10, 60), power=st.sampled_from([1, 4, 16]))
def test_chance_is_the_mean_over_all_orders(seed: int, n: int, power: int) -> None:
    """Also where few tokens hold the mass, where one order is far off."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.rand(2, n, generator=generator).pow(power)
    orders = torch.rand(4000, n, generator=generator).argsort(-1)
    found = float(chance_cosine(a, b))
    each = cosine(a[orders], b)
    assert found == pytest.approx(float(each.mean()), abs=4 * float(each.std()) / 60)
    assert found == pytest.approx(float(chance_cosine(3 * b, a)), rel=1e-5)
    # all rotations bring each entry to each other once
    turned = torch.stack([a.roll(k) for k in range(n)])
    assert found == pytest.approx(float(cosine(turned, b).mean()), rel=1e-4)
    assert found != pytest.approx(float(cosine(a.sort().values, b.sort().values)), rel=1e-4)


@given(dx=st.integers(-3, 3), dy=st.integers(-3, 3))
def test_moving_is_undone_inside(dx: int, dy: int) -> None:
    a = torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    back = moved(moved(a, dx, dy), -dx, -dy)
    assert torch.equal(back[3:-3, 3:-3], a[3:-3, 3:-3])
    assert (dx, dy) == (0, 0) or not torch.equal(moved(a, dx, dy), a)


@given(st.lists(st.booleans(), min_size=9, max_size=9))
def test_coverage_is_the_share_inside(kept: list[bool]) -> None:
    windows = torch.tensor(kept)
    mask = torch.ones(SIDE * 4, SIDE * 4, dtype=torch.bool)
    assert window_coverage(windows, mask, SIDE, 4) == pytest.approx(sum(kept) / 9)
    only = torch.zeros_like(mask)
    only[:16, :16] = True
    assert window_coverage(windows, only, SIDE, 4) == float(kept[0])
    assert math.isnan(window_coverage(windows, only & ~only, SIDE, 4))
    assert window_stability(windows, windows) == (1 if any(kept) else 0)
    assert window_stability(windows, ~windows) == 0


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    demo_stock: Any,
    clip_frames: np.ndarray,
    clip_mask: np.ndarray,
) -> Path:
    """A recording of a clip that moves one token a frame to the right; statistics of the decoder only."""
    out = tmp_path_factory.mktemp("moving") / "a.recording"
    still = np.repeat(clip_frames[:1], 4, 0)
    moving = np.stack([np.roll(frame, 8 * t, 1) for t, frame in enumerate(still)])
    record(demo_stock, moving, {1: clip_mask}, out=out, name="moving", statistics="decoder.final.*")
    record(demo_stock, still, {1: clip_mask}, out=out, name="still", statistics="decoder.final.*")
    return out


def test_a_recording_tells_how_consistent_attention_is(folder: Path, tmp_path: Path) -> None:
    merged = merge_recordings([folder], tmp_path / "merged.recording")
    settings_ = merged.header.settings
    moving, still = (frame_to_frame(merged.clip(name), settings_) for name in ("moving", "still"))
    assert list(moving) == ["encoder.stage3", *settings_.map_sites, "decoder"]
    plain, along, chance = (MEASURES.index(f"{k}cosine") for k in ("", "moved_", "chance_"))
    for name, table in moving.items():
        assert table.shape == (4, len(MEASURES)) and np.isnan(table[0]).all()
        start = 2 if name == "decoder" else 1  # the prompted frame is left out
        assert np.isfinite(table[start:]).all() and np.isnan(table[:start]).all()
    for name in settings_.map_sites:
        assert np.allclose(still[name][1:, plain], 1, atol=1e-3)
        assert (moving[name][1:, plain] < 0.9999).all()
    decoder = moving["decoder"][2:].mean(0)
    assert min(decoder[plain], decoder[along]) > decoder[chance]
    assert not np.allclose(moving["decoder"][2:, plain], moving["decoder"][2:, along], atol=1e-4)
    assert np.allclose(still["decoder"][2:, plain], still["decoder"][2:, along], atol=1e-4)


def test_stage_three_is_the_mean_of_its_windowed_blocks(
    folder: Path, tmp_path: Path, demo_stock: Any, clip_frames: np.ndarray, clip_mask: np.ndarray
) -> None:
    everything = record(
        demo_stock, np.repeat(clip_frames[:1], 4, 0), {1: clip_mask}, out=tmp_path / "b.recording",
        name="still", statistics=["encoder.stage3.*", "decoder.final.*"],
    ).clip("still")  # fmt: skip
    few = merge_recordings([folder], tmp_path / "c.recording").clip("still")
    assert np.allclose(few.stage3_mass.astype(float), everything.stage3_mass.astype(float))
    assert np.allclose(few.stage3_mass.astype(float).mean((1, 2)), 1, atol=0.01)
    assert not np.allclose(few.stage3_mass, few.encoder_mass[:, 0], atol=0.01)
