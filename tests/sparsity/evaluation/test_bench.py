"""The benchmark measures what it says, of the runs it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from probes.errors import InputError
from sparsity.acceleration.encoder import window_grid
from sparsity.evaluation.bench import (
    FULL_BANK,
    STOCK,
    UNTIMED,
    Material,
    Measured,
    Variant,
    bench,
    ladder,
)
from sparsity.evaluation.routes import fixed_windows
from sparsity.evaluation.timing import REST, STAGES, stage_seconds
from sparsity.profile import Memory, Profile
from sparsity.profiles import BUILTIN
from sparsity.techniques import further_profiles
from tests.conftest import make_frames, make_mask

TIMED = 2


@pytest.fixture(scope="module")
def material() -> Material:
    count = FULL_BANK + UNTIMED + TIMED
    return Material(make_frames(count), {1: make_mask()}, "made")


@pytest.fixture(scope="module")
def measured(dividing_predictor: Any, material: Material) -> dict[str, Measured]:
    route = fixed_windows("4/16", window_grid(dividing_predictor))
    said: list[str] = []
    found = bench(
        dividing_predictor,
        ladder(),
        material,
        timed=TIMED,
        route=route,
        share_bank=True,
        say=said.append,
    )
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
    keys = (
        2 * 256 + 5 * 12
    )  # conditioning and newest frame whole, 12 tokens of each of the other five
    pointers = 4 * 10  # of frames 1 to 9 and the prompt, mean over the last frames about that
    assert measured["SMR"].keys_kept == pytest.approx(
        (keys + pointers) / (7 * 256 + pointers), rel=0.02
    )


def test_less_work_counts_fewer_operations(measured: dict[str, Measured]) -> None:
    flops = {name: row.flops for name, row in measured.items()}
    assert flops["SWR + SMR"] < min(flops["SWR"], flops["SMR"])
    assert max(flops["SWR"], flops["SMR"]) < flops[STOCK]
    cheaper = {profile.name for profile in further_profiles()}
    cheaper -= {
        "+ pooled background",
        "+ rolling refresh",
        "+ cached shortcut",
    }  # they add something for quality
    given = "+ trimmed windows"
    assert {name for name in cheaper if flops[name] >= flops["paper"]} == {given}
    assert flops[given] == flops["paper"], "windows that are given stay whole"
    assert min(flops["+ pooled background"], flops["+ rolling refresh"]) > flops["paper"]
    parts = ("early stages", "last block", "stage 4")
    assert all(flops["recommended"] < flops[f"+ {part} reused"] for part in parts)
    saved = flops[STOCK] - flops["SWR"] + flops[STOCK] - flops["SMR"]
    assert flops[STOCK] - flops["SWR + SMR"] == pytest.approx(saved, rel=0.01), "they add up"


def test_stages_cover_a_frame(measured: dict[str, Measured]) -> None:
    for row in measured.values():
        assert set(row.stages) == {*STAGES.values(), REST}
        assert all(value >= 0 for value in row.stages.values())
        assert row.stages["image encoder"] > 0 and row.stages["memory attention"] > 0


def test_a_shared_bank_is_as_full_as_an_own_one(
    dividing_predictor: Any, material: Material
) -> None:
    rows = [Variant(STOCK, None), Variant("SMR", Profile(name="SMR", memory=Memory()))]
    own, shared = (
        bench(dividing_predictor, rows, material, timed=TIMED, share_bank=share, say=lambda _: None)
        for share in (False, True)
    )
    assert [row.flops for row in own] == [row.flops for row in shared]
    assert own[1].keys_kept == shared[1].keys_kept < own[0].keys_kept


def test_stock_stays_stock(dividing_predictor: Any, material: Material) -> None:
    """A benchmark leaves the predictor behind as it was, its methods included."""

    def run() -> np.ndarray:
        from sparsity.acceleration.build import accelerate

        state = accelerate(dividing_predictor, "dense").init_state(material.frames[:3])
        dividing_predictor.add_new_mask(state, 0, 1, material.objects[1])
        with torch.inference_mode():
            return np.stack([m.numpy() for _, _, m in dividing_predictor.propagate_in_video(state)])

    before = run()
    bench(dividing_predictor, [Variant(STOCK, None)], material, timed=1, say=lambda _: None)
    assert np.array_equal(run(), before)
    with stage_seconds(dividing_predictor):
        assert "_encode_new_memory" in vars(dividing_predictor)
    assert "_encode_new_memory" not in vars(dividing_predictor)


def test_a_profile_gets_a_row_of_its_own() -> None:
    mine = Profile(name="mine", memory=Memory(keep=0.5))
    assert [v.name for v in ladder((mine,))][-1] == "mine"
    assert len(ladder((BUILTIN["paper"],))) == len(ladder())


def test_a_short_clip_is_refused(dividing_predictor: Any, material: Material) -> None:
    with pytest.raises(
        InputError, match=f"has {len(material.frames)} frames; expected {FULL_BANK + UNTIMED + 3}"
    ):
        bench(dividing_predictor, ladder(), material, timed=3)


def test_a_clip_without_objects_is_refused(dividing_predictor: Any, material: Material) -> None:
    with pytest.raises(InputError, match="no object on its first frame"):
        bench(dividing_predictor, ladder(), Material(material.frames, {}, "bare"), timed=TIMED)
