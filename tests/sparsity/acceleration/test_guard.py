"""Frames that the guard encodes densely, memory that stays flat, and refusals of `accelerate`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from probes import build_predictor, observe
from probes.errors import InputError
from probes.models import fingerprint
from sparsity import accelerate, build_efficient_sam2_video_predictor
from sparsity.acceleration import session
from sparsity.profile import Guard, Memory, Profile, Windows
from tests.conftest import make_frames, make_mask
from tests.sparsity.acceleration.conftest import PROMPTS, Run, track


def guarded(**rules: Any) -> Profile:
    """SWR with some rules of the guard."""
    return Profile(name="guarded", windows=Windows(score_below=-1e3), guard=Guard(**rules))


def reasons(predictor: Any, run: Run) -> dict[int, str]:
    return {item.frame: item.reason for item in predictor.report(run.state).frames}


def test_refresh(demo_predictor: Any, long_folder: str) -> None:
    fast = accelerate(demo_predictor, guarded(refresh_every=3))
    found = reasons(fast, track(fast, long_folder, PROMPTS["mask"]))
    dense = [frame for frame, reason in found.items() if reason == "refresh"]
    assert dense == [4, 7, 10]
    assert not set(dense) & set(
        fast.report(track(fast, long_folder, PROMPTS["mask"]).state).rescued
    )
    fast = accelerate(demo_predictor, guarded())
    assert "refresh" not in reasons(fast, track(fast, long_folder, PROMPTS["mask"])).values()


def test_a_scene_cut_is_encoded_densely(demo_predictor: Any) -> None:
    frames = make_frames(8)
    frames[5:] = 255 - frames[5:]
    fast = accelerate(demo_predictor, guarded(scene_cut=0.1))
    report = fast.report(track(fast, frames, PROMPTS["mask"]).state)
    assert report.rescued == {5: "scene cut"}
    assert json.loads(report.to_json())["summary"]["rescued"] == {"5": "scene cut"}
    fast = accelerate(demo_predictor, guarded(scene_cut=0.9))
    assert fast.report(track(fast, frames, PROMPTS["mask"]).state).rescued == {}


def test_a_rescued_frame_reads_all_of_its_memory(demo_predictor: Any) -> None:
    frames = make_frames(8)
    frames[5:] = 255 - frames[5:]
    pruning = guarded(scene_cut=0.1).model_copy(update={"memory": Memory(keep=0.05)})
    fast = accelerate(demo_predictor, pruning)
    report = fast.report(track(fast, frames, PROMPTS["mask"]).state)
    read = {f.frame: f.objects[1] for f in report.frames}
    assert set(read[5].keys_used) == {read[5].keys_total} and read[5].pruned_frames == 0
    assert read[5].prunable_keys_used == read[5].prunable_keys_total > 0
    assert max(read[6].keys_used) < read[6].keys_total and read[6].pruned_frames > 0


def test_the_report_counts_dense_frames_as_whole(demo_predictor: Any, long_folder: str) -> None:
    fast = accelerate(demo_predictor, "paper")
    run = track(fast, long_folder, PROMPTS["mask"])
    report = fast.report(run.state)
    shares = [item.windows_kept / item.windows_total for item in report.frames]
    assert shares[0] == shares[1] == 1.0 and min(shares) < 1
    assert report.windows_share == pytest.approx(np.mean(shares))
    assert 0 < report.prunable_keys_share < report.keys_share < 1
    document = json.loads(report.to_json())
    assert document["summary"]["windows_share"] == report.windows_share
    assert len(document["frames"]) == 12
    assert set(report.scores(1)) == set(range(12))


def test_the_report_is_written_whatever_ids_are(demo_predictor: Any, long_folder: str) -> None:
    fast = accelerate(demo_predictor, "paper")
    state = fast.init_state(long_folder)
    for object_id in (*np.unique(np.array([0, 3, 7]))[1:], "dog"):  # numpy's own integers
        fast.add_new_mask(state, 0, object_id, make_mask(0))
    list(fast.propagate_in_video(state, max_frame_num_to_track=1))
    document = json.loads(fast.report(state).to_json())
    assert [list(item["objects"]) for item in document["frames"]] == [["3", "7", "dog"]] * 2


def test_bounded_history_keeps_what_can_be_read(demo_predictor: Any) -> None:
    frames = make_frames(26)
    fast = accelerate(demo_predictor, "paper")
    expected = track(fast, frames, PROMPTS["mask"])
    state = fast.init_state(frames, history="bounded")
    PROMPTS["mask"][0].give(fast, state)
    logits = {f: values.clone() for f, _, values in fast.propagate_in_video(state)}
    assert all(torch.equal(logits[f], expected.logits[f]) for f in expected.logits)
    kept = state["output_dict_per_obj"][0]["non_cond_frame_outputs"]
    assert len(kept) <= 17 < len(expected.state["output_dict_per_obj"][0]["non_cond_frame_outputs"])


def test_a_stream_of_bounded_history_does_not_grow(
    demo_predictor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "LAST_REPORTED", 5)
    frames = make_frames(26)
    fast = accelerate(demo_predictor, "paper")
    kept = {}
    for source in ("stream", "video"):
        state = fast.init_state(iter(frames) if source == "stream" else frames, history="bounded")
        PROMPTS["mask"][0].give(fast, state)
        masks = [values.clone() for _, _, values in fast.propagate_in_video(state)]
        kept[source] = [item.frame for item in fast.report(state).frames], masks
        assert len(state["frames_tracked_per_obj"][0]) <= 17
    assert kept["stream"][0] == [21, 22, 23, 24, 25]
    assert kept["video"][0] == list(range(26))
    assert all(map(torch.equal, kept["stream"][1], kept["video"][1]))


def test_bounded_history_in_reverse(demo_predictor: Any) -> None:
    from tests.sparsity.acceleration.conftest import Prompt

    frames = make_frames(22)
    fast = accelerate(demo_predictor, "paper")
    runs = []
    for history in ("full", "bounded"):
        state = fast.init_state(frames, history=history)
        Prompt(21, 1, make_mask(21)).give(fast, state)
        runs.append({f: v.clone() for f, _, v in fast.propagate_in_video(state, reverse=True)})
    assert all(torch.equal(runs[0][f], runs[1][f]) for f in range(22))


def test_a_profile_for_another_model_is_refused_unless_forced(
    demo_predictor: Any, tiny_predictor: Any, long_folder: str
) -> None:
    bound = Profile(name="bound", model=fingerprint(demo_predictor), memory=Memory())
    assert accelerate(demo_predictor, bound).profile == bound
    with pytest.raises(InputError, match="was calibrated for the model .* force it"):
        accelerate(tiny_predictor, bound)
    forced = accelerate(tiny_predictor, bound, force=True)
    run = track(forced, long_folder, PROMPTS["mask"], max_frame_num_to_track=2)
    assert forced.report(run.state).forced
    ours = accelerate(demo_predictor, bound)
    assert not ours.report(track(ours, long_folder, PROMPTS["mask"]).state).forced


def test_a_profile_for_another_input_size_is_refused_unless_forced(demo_predictor: Any) -> None:
    size = demo_predictor.image_size
    bound = Profile(name="bound", image_size=size, memory=Memory())
    assert accelerate(demo_predictor, bound).profile == bound
    other = bound.model_copy(update={"image_size": size + 96})
    with pytest.raises(
        InputError, match=f"at an image_size of {size + 96} .* is {size}; .* force it"
    ):
        accelerate(demo_predictor, other)
    assert accelerate(demo_predictor, other, force=True)._forced


def test_keep_per_layer_must_fit_the_model(demo_predictor: Any) -> None:
    with pytest.raises(InputError, match="3 values of memory.keep, the model has 4"):
        accelerate(demo_predictor, Profile(name="p", memory=Memory(keep=(0.1, 0.2, 0.3))))
    fast = accelerate(demo_predictor, Profile(name="p", memory=Memory(keep=(0.05, 0.1, 0.2, 0.4))))
    run = track(fast, make_frames(6), PROMPTS["mask"])
    item = fast.report(run.state).frames[-1].objects[1]
    tokens = fast.sam_image_embedding_size**2
    spared = [(item.keys_total - used) / item.pruned_frames for used in item.keys_used]
    assert spared == [tokens - int(keep * tokens) for keep in (0.05, 0.1, 0.2, 0.4)]


def test_a_trunk_without_a_global_block_at_the_end_of_stage_3_is_refused() -> None:
    """What windows leave out meets the rest there; with windows it would be computed as another block."""
    stock = build_predictor("demo", image_size=256, device="cpu")
    trunk = stock.image_encoder.trunk
    assert accelerate(stock, "exact").profile.name == "exact"
    trunk.blocks[trunk.stage_ends[2]].window_size = 4
    for profile in ("exact", Profile(name="windows alone", windows=Windows())):
        with pytest.raises(InputError, match="last block of stage 3 attends inside windows"):
            accelerate(stock, profile)
    assert accelerate(stock, Profile(name="keys alone", memory=Memory())).profile.windows is None


def test_other_predictors_are_refused(demo_predictor: Any) -> None:
    class Other(type(demo_predictor)):  # type: ignore[misc]
        pass

    other = Other.__new__(Other)
    other.__dict__ = dict(demo_predictor.__dict__)
    with pytest.raises(InputError, match="a Other was given"):
        accelerate(other)


def test_an_observed_predictor_is_refused(demo_predictor: Any) -> None:
    with (
        observe(demo_predictor, print, sites="memory.*"),
        pytest.raises(InputError, match="accelerate it first"),
    ):
        accelerate(demo_predictor)
    assert accelerate(demo_predictor).profile.name == "paper"


def test_what_sam2_itself_cannot_do_is_said(long_folder: str) -> None:
    stock = build_predictor("demo", image_size=256, device="cpu")
    stock.clear_non_cond_mem_around_input = True
    fast = accelerate(stock, "paper")
    with pytest.raises(InputError, match="clear_non_cond_mem_around_input"):
        track(fast, long_folder, PROMPTS["mask"])


def test_the_builder_has_the_signature_of_sam2() -> None:
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_module("sam2", version_base="1.2"):  # a program that uses Hydra itself
        mine = GlobalHydra.instance().hydra
        predictor = build_efficient_sam2_video_predictor(
            "configs/sam2.1/sam2.1_hiera_t.yaml",
            None,
            device="cpu",
            hydra_overrides_extra=["++model.image_size=256"],
            profile="exact",
        )
        assert GlobalHydra.instance().hydra is mine
    assert (predictor.profile.name, predictor.image_size) == ("exact", 256)
    assert predictor.fill_hole_area == 8, "postprocessing as sam2's builder has it"


def test_accelerating_twice_shares_the_stock_modules(demo_predictor: Any, long_folder: str) -> None:
    once = accelerate(demo_predictor, "paper")
    twice = accelerate(once, "dense")
    assert once.profile.name == "paper" and twice.profile.name == "dense"
    expected = track(demo_predictor, long_folder, PROMPTS["mask"])
    assert track(twice, long_folder, PROMPTS["mask"]).equal(expected)
    assert not track(once, long_folder, PROMPTS["mask"]).equal(expected)
