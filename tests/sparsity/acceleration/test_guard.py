"""Frames that the guard encodes densely, memory that stays flat, and refusals of `accelerate`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import initialize_config_dir, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import MissingConfigException
from sam2.build_sam import build_sam2_video_predictor

from probes import observe
from probes.errors import InputError
from probes.models import fingerprint
from sparsity import accelerate, build_efficient_sam2_video_predictor
from sparsity.acceleration import videos
from sparsity.profile import Profile
from sparsity.techniques.failure import FailureModel
from sparsity.techniques.retrieval import Retrieval
from sparsity.techniques.routing import Guard, Routing
from tests.sparsity.acceleration.conftest import (
    LONG,
    PROMPTS,
    Prompt,
    Run,
    Runs,
    make_frames,
    make_mask,
    run,
    track,
)


def guarded(**rules: Any) -> Profile:
    """SWR with some rules of the guard."""
    return Profile(name="guarded", routing=Routing(score_below=-1e3), guard=Guard(**rules))


def reasons(run: Run) -> dict[int, str]:
    return {item.frame: item.reason for item in run.report.frames}


def test_refresh(demo_predictor: Any, runs: Runs) -> None:
    run = runs(demo_predictor, profile=guarded(refresh_every=3))
    dense = [frame for frame, reason in reasons(run).items() if reason == "refresh"]
    assert dense == [4, 7]
    assert not set(dense) & set(run.report.rescued)
    assert "refresh" not in reasons(runs(demo_predictor, profile=guarded())).values()


def judged(predictor: Any, intercept: float, **changes: Any) -> dict[str, Any]:
    """Rule of the guard by a model that looks at the score alone."""
    model = FailureModel(
        **{
            "model": fingerprint(predictor), "image_size": predictor.image_size, "features": ("score",), "mean": (0.0,),
            "scale": (1.0,), "coefficients": (0.0,), "intercept": intercept, **changes,
        }
    )  # fmt: skip
    return {"failure_above": 0.5, "failure": model}


def test_a_mask_that_is_likely_wrong(demo_predictor: Any, runs: Runs) -> None:
    alarmed = runs(demo_predictor, profile=guarded(**judged(demo_predictor, 1.0)))
    calm = runs(demo_predictor, profile=guarded(**judged(demo_predictor, -1.0)))
    assert reasons(alarmed)[0] == "prompt" and reasons(alarmed)[1] == "first tracked"
    assert {reason for frame, reason in reasons(alarmed).items() if frame > 1} == {"likely wrong"}
    assert set(alarmed.report.rescued) == {frame for frame in reasons(alarmed) if frame > 1}
    assert reasons(calm) == reasons(runs(demo_predictor, profile=guarded()))
    assert "likely wrong" not in reasons(calm).values()


def test_a_failure_model_of_another_model_is_refused(demo_predictor: Any) -> None:
    other = judged(demo_predictor, 1.0, model="sha256:" + 64 * "0")
    with pytest.raises(InputError, match="has a guard.failure for sha256:0000.* fit one for it"):
        accelerate(demo_predictor, guarded(**other))
    with pytest.raises(ValueError, match="belong together; give both or neither"):
        Guard(failure_above=0.5)


CUT = 4
"""Frame from which on all is shown inverted."""


@pytest.fixture(scope="module")
def cut_run(demo_predictor: Any) -> Callable[[Profile], Run]:
    """Runs of a clip with a scene cut."""
    frames = make_frames(CUT + 2)
    frames[CUT:] = 255 - frames[CUT:]
    return lambda profile: track(accelerate(demo_predictor, profile), frames, PROMPTS["mask"])


def test_a_scene_cut_is_encoded_densely(cut_run: Callable[[Profile], Run]) -> None:
    report = cut_run(guarded(scene_cut=0.1)).report
    assert report.rescued == {CUT: "scene cut"}
    assert json.loads(report.to_json())["summary"]["rescued"] == {str(CUT): "scene cut"}
    assert cut_run(guarded(scene_cut=0.9)).report.rescued == {}


def test_a_rescued_frame_reads_all_of_its_memory(cut_run: Callable[[Profile], Run]) -> None:
    pruning = guarded(scene_cut=0.1).model_copy(update={"retrieval": Retrieval(keep=0.05)})
    read = {f.frame: f.objects[1] for f in cut_run(pruning).report.frames}
    cut, after = read[CUT], read[CUT + 1]
    assert set(cut.keys_used) == {cut.keys_total} and cut.pruned_frames == 0
    assert cut.prunable_keys_used == cut.prunable_keys_total > 0
    assert max(after.keys_used) < after.keys_total and after.pruned_frames > 0


def test_the_report_counts_dense_frames_as_whole(demo_predictor: Any, runs: Runs) -> None:
    report = runs(demo_predictor, profile="paper").report
    shares = [item.windows_kept / item.windows_total for item in report.frames]
    assert shares[0] == shares[1] == 1.0 and min(shares) < 1
    assert report.windows_share == pytest.approx(np.mean(shares))
    assert 0 < report.prunable_keys_share < report.keys_share < 1
    document = json.loads(report.to_json())
    assert document["summary"]["windows_share"] == report.windows_share
    assert len(document["frames"]) == LONG
    assert set(report.scores(1)) == set(range(LONG))


def test_the_report_is_written_whatever_ids_are(fast: Any) -> None:
    state = fast.init_state(make_frames(2))
    for object_id in (*np.unique(np.array([0, 3, 7]))[1:], "dog"):  # numpy's own integers
        fast.add_new_mask(state, 0, object_id, make_mask(0))
    list(fast.propagate_in_video(state, max_frame_num_to_track=1))
    document = json.loads(fast.report(state).to_json())
    assert [list(item["objects"]) for item in document["frames"]] == [["3", "7", "dog"]] * 2


@pytest.fixture
def forgetful(own_demo: Any) -> Any:
    """The demo model with pointers of four frames and a memory of three, under the paper's profile."""
    own_demo.num_maskmem, own_demo.max_obj_ptrs_in_encoder = 3, 4
    return accelerate(own_demo, "paper")


def histories(
    fast: Any, prompt: Prompt, frames: np.ndarray, **options: Any
) -> dict[str, tuple[dict[str, Any], dict[int, torch.Tensor]]]:
    """States and masks of a clip with full history and with a bounded one."""
    found = {}
    for history in ("full", "bounded"):
        state = fast.init_state(frames, history=history)
        prompt.give(fast, state)
        found[history] = state, run(fast, state, **options)
    return found


def test_bounded_history_keeps_what_can_be_read(forgetful: Any) -> None:
    found = histories(forgetful, PROMPTS["mask"][0], make_frames(8))
    (full, expected), (bounded, logits) = found["full"], found["bounded"]
    assert all(torch.equal(logits[f], expected[f]) for f in range(8))
    kept, every = (
        state["output_dict_per_obj"][0]["non_cond_frame_outputs"] for state in (bounded, full)
    )
    assert len(kept) <= 5 < len(every)


def test_a_stream_of_bounded_history_does_not_grow(
    forgetful: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(videos, "LAST_REPORTED", 3)
    frames = make_frames(8)
    kept = {}
    for source in ("stream", "video"):
        given = iter(frames) if source == "stream" else frames
        state = forgetful.init_state(given, history="bounded")
        PROMPTS["mask"][0].give(forgetful, state)
        masks = run(forgetful, state)
        kept[source] = [item.frame for item in forgetful.report(state).frames], masks
        assert len(state["frames_tracked_per_obj"][0]) <= 5
    assert kept["stream"][0] == [5, 6, 7]
    assert kept["video"][0] == list(range(8))
    assert all(torch.equal(kept["stream"][1][f], kept["video"][1][f]) for f in range(8))


def test_bounded_history_in_reverse(forgetful: Any) -> None:
    prompt = Prompt(7, mask=make_mask(7))
    (_, full), (state, bounded) = histories(
        forgetful, prompt, make_frames(8), reverse=True
    ).values()
    assert all(torch.equal(full[f], bounded[f]) for f in range(8))
    assert len(state["output_dict_per_obj"][0]["non_cond_frame_outputs"]) <= 5


def test_a_profile_for_another_model_is_refused_unless_forced(
    demo_predictor: Any, padded_predictor: Any
) -> None:
    bound = Profile(name="bound", model=fingerprint(demo_predictor), retrieval=Retrieval())
    assert accelerate(demo_predictor, bound).profile == bound
    with pytest.raises(InputError, match="was calibrated for the model .* force it"):
        accelerate(padded_predictor, bound)
    for fast, forced in (
        (accelerate(padded_predictor, bound, force=True), True),
        (accelerate(demo_predictor, bound), False),
    ):
        assert track(fast, make_frames(2), PROMPTS["mask"]).report.forced == forced


def test_a_profile_for_another_input_size_is_refused_unless_forced(demo_predictor: Any) -> None:
    size = demo_predictor.image_size
    bound = Profile(name="bound", image_size=size, retrieval=Retrieval())
    assert accelerate(demo_predictor, bound).profile == bound
    other = bound.model_copy(update={"image_size": size + 96})
    with pytest.raises(
        InputError, match=f"at an image_size of {size + 96} .* is {size}; .* force it"
    ):
        accelerate(demo_predictor, other)
    assert accelerate(demo_predictor, other, force=True).parts.own.forced


def test_keep_per_layer_must_fit_the_model(demo_predictor: Any) -> None:
    with pytest.raises(InputError, match="3 values of retrieval.keep, the model has 4"):
        accelerate(demo_predictor, Profile(name="p", retrieval=Retrieval(keep=(0.1, 0.2, 0.3))))
    fast = accelerate(
        demo_predictor, Profile(name="p", retrieval=Retrieval(keep=(0.05, 0.1, 0.2, 0.4)))
    )
    item = track(fast, make_frames(4), PROMPTS["mask"]).report.frames[-1].objects[1]
    tokens = fast.sam_image_embedding_size**2
    spared = [(item.keys_total - used) / item.pruned_frames for used in item.keys_used]
    assert spared == [tokens - int(keep * tokens) for keep in (0.05, 0.1, 0.2, 0.4)]


def test_a_trunk_without_a_global_block_at_the_end_of_stage_3_is_refused(own_demo: Any) -> None:
    """What windows leave out meets the rest there; with windows it would be computed as another block."""
    stock = own_demo
    trunk = stock.image_encoder.trunk
    assert accelerate(stock, "exact").profile.name == "exact"
    trunk.blocks[trunk.stage_ends[2]].window_size = 4
    for profile in ("exact", Profile(name="windows alone", routing=Routing())):
        with pytest.raises(InputError, match="last block of stage 3 attends inside windows"):
            accelerate(stock, profile)
    assert (
        accelerate(stock, Profile(name="keys alone", retrieval=Retrieval())).profile.routing is None
    )


def test_an_observed_predictor_is_refused(demo_predictor: Any) -> None:
    with (
        observe(demo_predictor, print, sites="memory.*"),
        pytest.raises(InputError, match="accelerate it first"),
    ):
        accelerate(demo_predictor)
    assert accelerate(demo_predictor).profile.name == "paper"


@pytest.fixture
def hydra_of_my_own() -> Iterator[GlobalHydra]:
    """Hydra, not initialised yet, for a program that uses it itself; sam2's own comes back afterwards."""
    hydra = GlobalHydra.instance()
    before = hydra.hydra
    hydra.clear()
    yield hydra
    GlobalHydra.instance().hydra = before


def test_the_builder_has_the_signature_of_sam2(hydra_of_my_own: GlobalHydra) -> None:
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


def test_a_configuration_is_found_where_the_caller_has_it(
    hydra_of_my_own: GlobalHydra, padded_file: Path
) -> None:
    """As sam2's builder finds it; sam2's own ones are found too, and one that is nowhere is refused by Hydra."""
    with initialize_config_dir(str(padded_file.parent), version_base=None):
        mine = GlobalHydra.instance().hydra
        for build in (build_sam2_video_predictor, build_efficient_sam2_video_predictor):
            assert build(padded_file.name, device="cpu").image_encoder.trunk.window_spec[2] == 6
        tiny = build_efficient_sam2_video_predictor(
            "configs/sam2.1/sam2.1_hiera_t.yaml",
            device="cpu",
            hydra_overrides_extra=["++model.image_size=256"],
        )
        assert tiny.image_size == 256
        with pytest.raises(MissingConfigException):
            build_efficient_sam2_video_predictor("nowhere.yaml", device="cpu")
        assert GlobalHydra.instance().hydra is mine


def test_accelerating_twice_shares_the_stock_modules(
    demo_predictor: Any, long_folder: str, runs: Runs
) -> None:
    once = accelerate(demo_predictor, "paper")
    twice = accelerate(once, "dense")
    assert once.profile.name == "paper" and twice.profile.name == "dense"
    expected = runs(demo_predictor)
    assert track(twice, long_folder, PROMPTS["mask"], 3).equal(expected, 3)
    assert not track(once, long_folder, PROMPTS["mask"], 3).equal(expected, 3)
