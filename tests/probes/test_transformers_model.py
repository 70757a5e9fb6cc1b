"""Probing transformers' own SAM 2: the same sites and recordings as of ours, and its masks unchanged by a bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from probes.errors import InputError
from probes.models import build_predictor
from probes.observing import AttentionCall, is_observed, listen, observe
from probes.prompts import Prompt
from probes.recording import record
from probes.records import load_recording
from probes.sites import attention_sites
from probes.tracking import begin_video, track_forward
from probes.video import ModelFrames, open_video
from sparsity import accelerate
from tests.conftest import HEIGHT, WIDTH
from tests.probes.transformers_models import give_points, make_session, make_transformers

FRAMES = 4
PROMPT = [Prompt(0, 1, points=np.array([[51.0, 48.0]], np.float32), labels=np.array([1]))]


@pytest.fixture(scope="module")
def theirs() -> Any:
    return make_transformers()


@pytest.fixture(scope="module")
def ours(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """sam2's model with the same weights."""
    path = tmp_path_factory.mktemp("same")
    theirs.save_pretrained(path)
    return build_predictor(str(path), device="cpu")


def _track(model: Any, clip: np.ndarray, frames: int = FRAMES) -> list[torch.Tensor]:
    """Track by transformers' own session and methods; return mask logits."""
    made = ModelFrames(open_video(clip[:frames]), model.image_size, "cpu")
    seen = torch.stack([made[t] for t in range(frames)])
    session = make_session(model, seen, (HEIGHT, WIDTH))
    point = torch.tensor([[51.0, 48.0]]) * 256 / torch.tensor([WIDTH, HEIGHT])
    give_points(session, point, torch.tensor([1], dtype=torch.int32))
    return [
        made.pred_masks for made in model.propagate_in_video_iterator(session, start_frame_idx=0)
    ]


def test_sites_are_those_of_our_model(theirs: Any, ours: Any) -> None:
    sites = attention_sites(theirs)
    assert len(sites) == 27
    assert sites == attention_sites(ours)  # the modules apart
    assert sites[0].module is theirs.vision_encoder.backbone.blocks[0].attn
    other = attention_sites(make_transformers(size=128))
    assert [site.name for site in other] == [site.name for site in sites]
    assert other != sites


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_masks_do_not_change_and_weights_times_values_are_the_output(
    theirs: Any, clip_frames: np.ndarray, implementation: str
) -> None:
    theirs.set_attn_implementation(implementation)
    plain = _track(theirs, clip_frames, 3)
    calls: list[AttentionCall] = []
    outputs: dict[str, torch.Tensor] = {}
    handles = [
        site.module.register_forward_hook(
            lambda module, given, made, name=site.name: outputs.update(
                {name: made if isinstance(made, torch.Tensor) else made[0]}
            )
        )
        for site in attention_sites(theirs)
    ]

    with observe(theirs, calls.append, "*"):
        assert is_observed(theirs)
        seen = _track(theirs, clip_frames, 3)
    for handle in handles:
        handle.remove()
    assert all(map(torch.equal, plain, seen))
    assert not torch.equal(plain[1], seen[2])
    names = [site.name for site in attention_sites(theirs)]
    last = {call.site: call for call in calls}
    assert list(dict.fromkeys(call.site for call in calls if call.moment.frame == 1)) == names
    for name, call in last.items():
        module = call.where.module
        scale = call.q.shape[-1] ** -0.5
        made = (call.q @ call.k.transpose(-2, -1) * scale).softmax(-1) @ call.v
        project = module.proj if hasattr(module, "proj") else module.o_proj
        expected = outputs[name]
        out = project(made.transpose(1, 2).flatten(2)).reshape(expected.shape)
        assert torch.allclose(out, expected, atol=1e-4, rtol=1e-4), name
    assert not is_observed(theirs)
    assert not [name for name in vars(theirs) if name.startswith("_run_single")]
    assert theirs.config._attn_implementation == implementation
    assert {m.config._attn_implementation for m in (s.module for s in attention_sites(theirs))} == {
        implementation
    }
    theirs.set_attn_implementation("sdpa")


def test_calls_are_those_of_our_model(theirs: Any, ours: Any, clip_frames: np.ndarray) -> None:
    def seen_of(model: Any, run: Any) -> list[AttentionCall]:
        calls: list[AttentionCall] = []
        with observe(model, calls.append, ["memory.*", "encoder.stage3.*", "decoder.*"]):
            run()
        return calls

    a = seen_of(theirs, lambda: _track(theirs, clip_frames))

    def run() -> None:
        begun = begin_video(ours, open_video(clip_frames[:FRAMES]))
        with torch.inference_mode():
            list(track_forward(ours, begun, PROMPT, 0))

    b = seen_of(ours, run)

    def by_place(calls: list[AttentionCall]) -> dict[tuple[str, int | None], AttentionCall]:
        return {(call.site, call.moment.frame): call for call in calls}

    first, second = by_place(a), by_place(b)
    assert first.keys() == second.keys()
    for place, call in first.items():
        other = second[place]
        assert call.moment.layouts == other.moment.layouts
        assert call.moment.objects == other.moment.objects
        assert call.size == other.size == (HEIGHT, WIDTH)
        assert torch.allclose(call.q, other.q, atol=1e-3), place
        assert torch.allclose(call.k, other.k, atol=2e-2), place  # memory is bfloat16
    assert not torch.allclose(
        first["memory.layer0.cross", 2].q, second["memory.layer0.cross", 3].q, atol=1e-2
    )


def test_a_recording_holds_what_ours_would(
    theirs: Any, ours: Any, clip_frames: np.ndarray, tmp_path: Path
) -> None:
    found = {
        name: record(
            model, clip_frames[:FRAMES], PROMPT, out=tmp_path / name, name="clip", rows="*.global"
        )
        for name, model in (("theirs", theirs), ("ours", ours))
    }
    a, b = (load_recording(tmp_path / name).clip("clip") for name in found)
    assert a.frame.tolist() == b.frame.tolist() == list(range(FRAMES))
    for name in ("encoder_mass", "slot_share", "decoder_saliency", "memory_frame", "recall"):
        x, y = np.asarray(getattr(a, name)), np.asarray(getattr(b, name))
        assert x.shape == y.shape
        assert np.allclose(x, y, atol=2e-2, equal_nan=True), name
    assert not np.allclose(a.encoder_mass[0], a.encoder_mass[1], atol=1e-3)
    header = found["theirs"].header
    assert header.model.name == "transformers"
    assert "transformers" in header.versions
    assert found["ours"].header.settings == header.settings


def test_objects_that_come_later_and_a_way_back_are_recorded(
    theirs: Any, clip_frames: np.ndarray, clip_mask: np.ndarray, tmp_path: Path
) -> None:
    prompts = [
        Prompt(1, 1, mask=clip_mask),
        Prompt(2, 7, box=np.array([10, 10, 60, 60], np.float32)),
    ]
    found = record(theirs, clip_frames[:FRAMES], prompts, out=tmp_path / "r", name="clip")
    clip = found.clip("clip")
    assert sorted(clip.frame.tolist()) == [0, 1, 2, 3]
    rows = list(zip(clip.row_frame.tolist(), clip.row_object.tolist(), strict=True))
    assert sorted(rows) == [(0, 1), (1, 1), (2, 1), (2, 7), (3, 1), (3, 7)]
    assert not is_observed(theirs)


def test_steps_are_told_in_order(theirs: Any, clip_frames: np.ndarray) -> None:
    told: list[str] = []
    results: list[Any] = []
    with listen(
        theirs,
        step=lambda step: told.append(step.name) if step.begins else None,
        tracked=results.append,
        decoded=results.append,
    ):
        _track(theirs, clip_frames, 2)
    assert told == [
        "image encoder", "memory attention", "mask decoder", "image encoder", "memory encoder",
    ] * 2  # fmt: skip
    assert [one.moment.frame for one in results] == [0, 0, 1, 1]
    assert results[2].what[0].shape == (1, 3, 64, 64)
    assert results[3].what["obj_ptr"].shape == (1, 256)


def test_what_it_cannot_do_is_refused(theirs: Any) -> None:
    with pytest.raises(InputError, match="Sam2VideoModel was given; .*build_predictor") as caught:
        accelerate(theirs, "paper")
    assert str(caught.value).isprintable()
    with pytest.raises(InputError, match="no attention site matches 'memory.none'"):
        with observe(theirs, print, "memory.none"):
            pass
    theirs.config.max_cond_frame_num = 3
    try:
        with pytest.raises(InputError, match="max_cond_frame_num 3 was given"):
            attention_sites(theirs)
    finally:
        theirs.config.max_cond_frame_num = -1


@pytest.mark.process
def test_transformers_is_not_imported_without_such_a_model() -> None:
    code = (
        "import sys, probes.recording, probes.hub, probes.models, sparsity\n"
        "print([n for n in sys.modules if n.split('.')[0] in ('transformers', 'peft', 'huggingface_hub')])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
