"""Recordings of accelerated predictors: what was computed is recorded as it was, and the rest is absent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from figures import readings
from probes.errors import InputError
from probes.observing import AttentionCall, observe
from probes.prompts import Prompt
from probes.recording import merge_recordings, record
from probes.records import ClipRecord, Recording
from sparsity import accelerate
from sparsity.calibration.capture import recorded_traces

FRAMES, ROUTED, GRID = 6, 5, 16
BLOCK, LAST, CROSS = (
    "encoder.stage3.block5.global", "encoder.stage3.block9.global", "memory.layer1.cross",
)  # fmt: skip

Made = Callable[[str | None], Recording]


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory,
    demo_stock: Any,
    clip_frames: np.ndarray,
    clip_mask: np.ndarray,
) -> Made:
    """Recordings of two objects under a profile, or of the stock predictor, made when they are asked for."""
    folder, known = tmp_path_factory.mktemp("made"), {}

    def run(profile: str | None) -> Recording:
        if profile not in known:
            predictor = demo_stock if profile is None else accelerate(demo_stock, profile)
            known[profile] = record(
                predictor, clip_frames, {1: clip_mask, 4: np.roll(clip_mask, 6, 1)},
                out=folder / f"{profile}.recording", rows=["encoder.*.global", "memory.*.cross"],
                statistics=[BLOCK, CROSS], max_frames=FRAMES,
            )  # fmt: skip
        return known[profile]

    return run


@pytest.fixture(scope="module")
def calls(
    demo_stock: Any, clip_frames: np.ndarray, clip_mask: np.ndarray
) -> dict[tuple[str, int], AttentionCall]:
    """What the recommended profile computed on a routed frame, by site and object (0 of the encoder)."""
    found: dict[tuple[str, int], AttentionCall] = {}

    def keep(call: AttentionCall) -> None:
        if call.moment.frame == ROUTED:
            found[call.site, sum(call.moment.objects)] = call

    predictor = accelerate(demo_stock, "recommended")
    with torch.inference_mode(), observe(predictor, keep, [BLOCK, LAST, CROSS]):
        state = predictor.init_state(clip_frames)
        for i, mask in ((1, clip_mask), (4, np.roll(clip_mask, 6, 1))):
            predictor.add_new_mask(state, 0, i, mask)
        list(predictor.propagate_in_video(state, max_frame_num_to_track=ROUTED))
    return found


def weights(call: AttentionCall) -> torch.Tensor:
    """Attention weights in float64, mean over heads, ``[queries, keys]``."""
    scores = call.q[0].double() @ call.k[0].double().mT * call.q.shape[-1] ** -0.5
    return scores.softmax(-1).mean(0)


NUMBERS = (
    *("encoder_mass", "stage3_mass", "encoder_statistics", "object_statistics", "slot_share"),
    *("recall", "similarity", "score", "decoder_saliency"),
)


def furthest(one: ClipRecord, other: ClipRecord) -> float:
    """How far any number lies from its like, as a share of its size; infinite where one of them is absent."""
    worst = 0.0
    for name in NUMBERS:
        a, b = (getattr(clip, name).astype(float) for clip in (one, other))
        if not np.array_equal(np.isnan(a), np.isnan(b)):
            return float("inf")
        worst = max(worst, float(np.nanmax(np.abs(a - b) / (1 + np.abs(a)))))
    return worst


def test_an_exact_run_is_recorded_like_the_stock_one(made: Made) -> None:
    stock, exact = (made(profile)["clip"] for profile in (None, "exact"))
    assert furthest(stock, exact) < 2e-3  # of float16; the products are in another order
    assert np.array_equal(stock.masks("candidates"), exact.masks("candidates"))
    for site in stock.rows:
        index = len(stock.rows[site]) - 1
        a, b = (clip.attention_rows(site, index) for clip in (stock, exact))
        there = ~np.isnan(b)
        assert np.allclose(a[there], b[there], atol=0.01) and not a[~there].any()
    assert furthest(stock, made("recommended")["clip"]) == float("inf")


def test_a_dense_profile_is_stock_to_the_bit(made: Made) -> None:
    stock, dense = (made(profile)["clip"] for profile in (None, "dense"))
    assert furthest(stock, dense) == 0.0
    assert stock.keys_read is None and dense.keys_read is not None
    assert np.array_equal(stock.kept(), dense.kept(), equal_nan=True)
    assert not np.array_equal(stock.kept(), made("paper")["clip"].kept(), equal_nan=True)


def test_of_the_encoder_what_was_left_out_is_absent(
    made: Made, calls: dict[tuple[str, int], AttentionCall]
) -> None:
    recording = made("recommended")
    clip, sites = recording["clip"], recording.header.settings.map_sites
    call = calls[BLOCK, 0]
    assert call.keys is not None and len(call.keys) < GRID**2
    seen = clip.encoder_mass[ROUTED, sites.index(BLOCK)].astype(float).ravel()
    there = np.isin(np.arange(GRID**2), call.keys.numpy())
    assert np.array_equal(~np.isnan(seen), there)
    mass = weights(call).mean(0).numpy() * len(call.keys)
    assert np.allclose(seen[call.keys.numpy()], mass, rtol=2e-3)
    assert np.nanmean(seen) == pytest.approx(1, abs=1e-3)
    assert np.array_equal(~np.isnan(clip.stage3_mass[ROUTED].ravel()), there)
    assert not np.isnan(clip.encoder_mass[0].astype(float)).any()  # the prompted frame is whole
    dense = made(None)["clip"].encoder_mass[ROUTED, sites.index(BLOCK)].ravel()
    assert not np.allclose(seen[there], dense[there], atol=0.01)


def test_statistics_are_over_what_took_part(
    made: Made, calls: dict[tuple[str, int], AttentionCall]
) -> None:
    settings, clip = made("recommended").header.settings, made("recommended")["clip"]
    call = calls[CROSS, 4]
    assert call.keys is not None and call.queries is not None
    p = weights(call)
    table = clip.object_statistics[clip.row(ROUTED, 4), settings.object_sites.index(CROSS), 0]
    found = dict(zip(settings.statistics, table.tolist(), strict=True))
    nats = -(p * p.log()).sum(1)
    assert found["entropy"] == pytest.approx(float((nats / np.log(p.shape[1])).mean()), rel=1e-4)
    assert found["support"] == pytest.approx(float(nats.exp().mean()), rel=1e-4)
    # the mass on the object's own memory over its share of the keys that were read
    (layout,) = call.moment.layouts
    covered = np.concatenate([coverage(clip, entry.frame, 4) for entry in layout.frames])
    inside = call.keys.numpy()[call.keys.numpy() < layout.frame_keys]
    mass = p.mean(0).numpy()[: len(inside)]
    share = (mass * covered[inside]).sum() / mass.sum() / covered[inside].mean()
    assert found["lift"] == pytest.approx(share, rel=1e-3)
    unread = (mass * covered[inside]).sum() / mass.sum() / covered.mean()
    assert found["lift"] != pytest.approx(unread, rel=1e-2)


def coverage(clip: ClipRecord, frame: int, object_id: int) -> np.ndarray:
    """Share of each token that the object covered, of the mask that memory holds."""
    mask = clip.masks()[clip.row(frame, object_id)]
    return mask.reshape(GRID, 4, GRID, 4).mean((1, 3)).ravel()


def test_keys_and_queries_of_memory_are_those_that_took_part(
    made: Made, calls: dict[tuple[str, int], AttentionCall]
) -> None:
    clip = made("recommended")["clip"]
    for object_id in (1, 4):
        i, call = clip.row(ROUTED, object_id), calls[CROSS, object_id]
        assert clip.keys_read is not None and clip.queries_read is not None
        assert call.keys is not None and call.queries is not None
        bits = np.unpackbits(clip.keys_read[i, 1], axis=-1, count=GRID**2).astype(bool)
        (layout,) = call.moment.layouts
        ids = call.keys.numpy()
        for f, entry in enumerate(layout.frames):
            mine = ids[(ids >= f * GRID**2) & (ids < (f + 1) * GRID**2)] - f * GRID**2
            assert np.array_equal(np.flatnonzero(bits[entry.position]), np.sort(mine))
            assert clip.kept()[i, 1, entry.position] == pytest.approx(len(mine) / GRID**2)
        readers = np.unpackbits(clip.queries_read[i], count=GRID**2)
        assert np.array_equal(np.flatnonzero(readers), call.queries.sort()[0].numpy())
    shares = clip.kept()[clip.row(ROUTED, 1), 1]
    assert (shares[[0, 6]] == 1).all() and (shares[3:6] < 0.1).all()  # slot 2 is still empty
    assert np.isnan(shares[1])


def test_what_unread_keys_would_have_got_is_not_said(made: Made) -> None:
    stock, routed = made(None)["clip"], made("recommended")["clip"]
    i = routed.row(ROUTED, 1)
    whole = (routed.kept()[i] == 1).all(0)
    assert np.array_equal(~np.isnan(routed.recall[i].astype(float)).any((0, 2)), whole)
    assert not np.isnan(stock.recall[i][:, stock.memory_frame[i] >= 0].astype(float)).any()
    assert np.allclose(routed.slot_share[i].sum(-1), 1, atol=1e-5)
    ages = made("recommended").to_frame().query("statistic == 'kept'")
    assert ages["value"].min() < 0.1 and ages["value"].max() == 1


def test_raw_rows_lack_queries_and_cells_that_took_no_part(
    made: Made, calls: dict[tuple[str, int], AttentionCall]
) -> None:
    recording = made("recommended")
    clip, call = recording["clip"], calls[BLOCK, 0]
    assert call.keys is not None
    rows = clip.attention_rows(BLOCK, ROUTED).reshape(-1, GRID**2)
    there = np.isin(np.arange(GRID**2), call.keys.numpy())
    assert np.array_equal(~np.isnan(rows), there[:, None] & there[None])
    dense = weights(call)[call.keys.argsort()].numpy()[:, call.keys.argsort().numpy()]
    assert np.allclose(rows[there][:, there], dense, atol=0.01 * dense.max())
    some = clip.attention_rows(LAST, ROUTED).reshape(-1, GRID**2)
    asked = calls[LAST, 0].queries
    assert asked is not None and calls[LAST, 0].keys is None  # computed tokens read all of them
    assert np.array_equal(np.flatnonzero(~np.isnan(some).any(1)), np.sort(asked.numpy()))
    assert not np.isnan(made(None)["clip"].attention_rows(BLOCK, ROUTED)).any()


def test_readings_take_absence_for_what_it_is(made: Made) -> None:
    recording = made("recommended")
    clip, queries = recording["clip"], recording.header.settings.row_queries
    shown = readings.object_map(clip, queries, BLOCK, clip.row(ROUTED, 1))
    assert np.isnan(shown).any() and np.nansum(shown) == pytest.approx(1, abs=0.02)
    absent = np.argwhere(np.isnan(clip.attention_rows(BLOCK, ROUTED)[:, 0, 0]).reshape(GRID, GRID))
    y, x = absent[0]
    with pytest.raises(InputError, match="was not computed on frame 5"):
        readings.pixel_map(recording, "clip", BLOCK, ROUTED, (8 * x + 4, 6 * y + 3))
    assert not np.isnan(
        readings.pixel_map(recording, "clip", BLOCK, 0, (8 * x + 4, 6 * y + 3))
    ).any()
    assert readings.lifts(recording, BLOCK)["clip"] > 0


def test_a_folder_holds_runs_of_one_profile(
    made: Made, demo_stock: Any, clip_frames: np.ndarray, clip_mask: np.ndarray, tmp_path: Path
) -> None:
    recording = made("recommended")
    assert recording.header.settings.profile == accelerate(
        demo_stock, "recommended"
    ).profile.model_dump(mode="json", by_alias=True)
    with pytest.raises(InputError, match="another settings"):
        record(accelerate(demo_stock, "paper"), clip_frames, {1: clip_mask}, out=recording.path)
    with pytest.raises(InputError, match="settings"):
        merge_recordings([recording.path, made("paper").path], tmp_path / "both")


def test_calibration_starts_from_dense_runs(made: Made) -> None:
    assert len(recorded_traces(made(None).path)) == 1
    with pytest.raises(InputError, match="recorded under profile paper"):
        recorded_traces(made("paper").path)


def test_corrections_and_passes_backwards_are_recorded(
    small_stock: Any, clip_frames: np.ndarray, clip_mask: np.ndarray, tmp_path: Path
) -> None:
    prompts = [
        Prompt(frame=2, object=1, mask=np.roll(clip_mask, 2, 1)),
        Prompt(frame=4, object=1, mask=np.roll(clip_mask, 4, 1)),
    ]
    clips = [
        record(predictor, clip_frames, prompts, out=tmp_path / name, statistics=CROSS)["clip"]
        for name, predictor in (
            ("stock", small_stock), ("exact", accelerate(small_stock, "exact")),
            ("paper", accelerate(small_stock, "paper")),
        )
    ]  # fmt: skip
    for clip in clips:
        assert clip.frame.tolist() == [2, 3, 4, 5, 6, 7, 1, 0]
        assert clip.row_frame[clip.conditioning].tolist() == [2, 4]
        assert clip.row_frame[clip.reverse].tolist() == [1, 0]
    assert np.array_equal(clips[0].masks(), clips[1].masks())
    assert not np.array_equal(clips[0].masks(), clips[2].masks())
