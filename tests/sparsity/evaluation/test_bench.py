"""The benchmark measures what it says, of the runs it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from probes import build_predictor
from probes.errors import InputError
from probes.observing import STEPS
from probes.video import open_video
from sparsity.acceleration.build import accelerate
from sparsity.acceleration.model.encoder import window_grid
from sparsity.clips.sources import Clip, clip_of
from sparsity.evaluation.benchmark import possible_rows
from sparsity.evaluation.interleaved import (
    FULL_BANK,
    STOCK,
    UNTIMED,
    Measured,
    Variant,
    bench,
    fixed_windows,
    ladder,
)
from sparsity.evaluation.meters import REST, stage_seconds
from sparsity.profile import BUILTIN, Profile, further_profiles
from sparsity.techniques.retrieval import Retrieval
from tests.conftest import make_frames, make_mask

TIMED = 2


@pytest.fixture(scope="module")
def stock() -> Any:
    """The demo model with random weights, 2 x 2 windows of 2 x 2 cells, at a size at which it is quick."""
    return build_predictor("demo", weights="random", image_size=128, device="cpu")


@pytest.fixture(scope="module")
def clip() -> Clip:
    video = open_video(make_frames(FULL_BANK + UNTIMED + TIMED))
    return clip_of("made", video, make_mask().astype(np.uint8))


@pytest.fixture(scope="module")
def measured(stock: Any, clip: Clip) -> dict[str, Measured]:
    route = fixed_windows("1/4", window_grid(stock))
    said: list[str] = []
    found = bench(stock, ladder(), clip, timed=TIMED, route=route, share_bank=True, say=said.append)
    assert [text.split()[-1] for text in said] == ["all", "go"]
    return {row.name: row for row in found}


def test_every_run_is_timed_on_the_same_number_of_frames(measured: dict[str, Measured]) -> None:
    assert list(measured) == [
        STOCK,
        "exact",
        "SWR",
        "SMR",
        "SWR + SMR",
        "paper",
        *(profile.name for profile in further_profiles()),
    ]
    assert {len(row.seconds) for row in measured.values()} == {TIMED}
    assert all(seconds > 0 for row in measured.values() for seconds in row.seconds)


def test_rows_keep_what_they_are_named_for(measured: dict[str, Measured]) -> None:
    shares = {n: (r.windows_kept, round(r.prunable_keys_kept, 2)) for n, r in measured.items()}
    assert shares[STOCK] == shares["exact"] == (1.0, 1.0)
    assert shares["SWR"] == (0.25, 1.0)
    assert shares["SMR"] == (1.0, 0.05)
    assert shares["SWR + SMR"] == shares["paper"] == (0.25, 0.05)
    keys = 2 * 64 + 5 * 3  # conditioning and newest frame whole, 3 tokens of each of the other five
    pointers = 2 * 12.5  # of the prompt and frames 1 to 11 or 12: mean of the two that count
    share = (keys + pointers) / (7 * 64 + pointers)
    assert measured["SMR"].keys_kept == pytest.approx(share, rel=1e-3)


def test_rows_in_int8_are_left_out_where_there_is_none() -> None:
    rows = ladder()
    assert possible_rows(rows, torch.device("cpu")) == (rows, [])
    kept, runs = possible_rows(rows, torch.device("cuda"))
    assert [run.name for run in runs] == ["+ int8"] and "int8 is for CPUs" in str(runs[0].why)
    assert [row.name for row in kept] == [row.name for row in rows if row.name != "+ int8"]


def test_less_work_counts_fewer_operations(measured: dict[str, Measured]) -> None:
    flops = {name: row.flops for name, row in measured.items()}
    assert flops["SWR + SMR"] < min(flops["SWR"], flops["SMR"])
    assert max(flops["SWR"], flops["SMR"]) < flops[STOCK]
    cheaper = {profile.name for profile in further_profiles()}
    cheaper -= {"+ rolling refresh", "+ cached shortcut"}  # they add something for quality
    # windows that are given stay whole; operations in int8 are as many; what is counted is a frame that is computed
    same = {"+ trimmed windows", "+ int8", "+ faster resize", "+ every second frame"}
    assert {name for name in cheaper if flops[name] >= flops["paper"]} == same
    assert {flops[name] for name in same} == {flops["paper"]}
    assert flops["+ rolling refresh"] > flops["paper"]
    parts = ("early stages", "last block", "stage 4")
    assert all(flops["recommended"] < flops[f"+ {part} reused"] for part in parts)
    saved = flops[STOCK] - flops["SWR"] + flops[STOCK] - flops["SMR"]
    assert flops[STOCK] - flops["SWR + SMR"] == pytest.approx(saved, rel=0.01), "they add up"


def test_stages_cover_a_frame(measured: dict[str, Measured]) -> None:
    for row in measured.values():
        assert set(row.stages) == {*STEPS.values(), REST}
        assert all(value >= 0 for value in row.stages.values())
        assert row.stages["image encoder"] > 0 and row.stages["memory attention"] > 0


def test_a_shared_bank_is_as_full_as_an_own_one(stock: Any, clip: Clip) -> None:
    rows = [Variant(STOCK, None), Variant("SMR", Profile(name="SMR", retrieval=Retrieval()))]
    own, shared = (
        bench(stock, rows, clip, timed=TIMED, share_bank=share, say=lambda _: None)
        for share in (False, True)
    )
    assert [row.flops for row in own] == [row.flops for row in shared]
    assert own[1].keys_kept == shared[1].keys_kept < own[0].keys_kept


def test_stock_stays_stock(stock: Any, clip: Clip) -> None:
    """A benchmark leaves the predictor behind as it was, its methods included."""

    def run() -> np.ndarray:
        state = accelerate(stock, "dense").init_state(make_frames(3))
        clip.give_to(stock, state)
        with torch.inference_mode():
            return np.stack([m.numpy() for _, _, m in stock.propagate_in_video(state)])

    before = run()
    bench(stock, [Variant(STOCK, None)], clip, timed=1, say=lambda _: None)
    assert np.array_equal(run(), before)
    with stage_seconds(stock):
        assert "_encode_new_memory" in vars(stock)
    assert "_encode_new_memory" not in vars(stock)


def test_a_profile_gets_a_row_of_its_own() -> None:
    mine = Profile(name="mine", retrieval=Retrieval(keep=0.5))
    assert [v.name for v in ladder((mine,))][-1] == "mine"
    assert len(ladder((BUILTIN["paper"],))) == len(ladder())


def test_a_short_clip_is_refused(stock: Any, clip: Clip) -> None:
    with pytest.raises(
        InputError, match=f"has {clip.num_frames} frames; expected {FULL_BANK + UNTIMED + 3}"
    ):
        bench(stock, ladder(), clip, timed=3)


def test_a_clip_without_objects_is_refused(stock: Any, clip: Clip) -> None:
    with pytest.raises(InputError, match="no object on its first frame"):
        bench(stock, ladder(), Clip("bare", clip.video, ()), timed=TIMED)
