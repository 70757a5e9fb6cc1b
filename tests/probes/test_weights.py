"""Weights in transformers' names, held against transformers itself; of fine-tuning; and LoRA, held against PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from probes.errors import InputError
from probes.lora import merge_lora
from probes.models import build_predictor, fingerprint, name_of
from probes.video import ModelFrames, new_state, open_video
from probes.weights import load_strictly, read_checkpoint
from tests.conftest import HEIGHT, WIDTH
from tests.probes.transformers_models import give_points, imported, make_session, make_transformers

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
"""PEFT asks transformers in the older way."""

MASK_TOLERANCE = 1e-4
"""Of mask logits that go up to about 3: what float32 sums in another order leave after three frames."""

MEMORY_TOLERANCE = 2**-6
"""One step of bfloat16, in which both keep memory, at values between 2 and 4."""

FRAMES = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow model of transformers, saved by it."""
    path = tmp_path_factory.mktemp("narrow")
    make_transformers().save_pretrained(path)
    return path


def _compare(
    theirs: Any, ours: Any, clip: np.ndarray, points: torch.Tensor, labels: list[int]
) -> dict[str, float]:
    """Greatest differences over three frames of which the first is prompted; points in pixels of the video."""
    frames = ModelFrames(open_video(clip), ours.image_size, "cpu")
    seen = torch.stack([frames[t] for t in range(FRAMES)])
    size = (HEIGHT, WIDTH)
    session = make_session(theirs, seen, size)
    scaled = points * ours.image_size / torch.tensor([WIDTH, HEIGHT])
    give_points(session, scaled, torch.tensor(labels, dtype=torch.int32))
    state = new_state(frames, FRAMES, size, ours.device, ours.device, frames_on_cpu=False)
    box = points.flatten() if 2 in labels else None
    ours.add_new_points_or_box(
        state, 0, 1,
        points=None if box is not None else points, box=box,
        labels=None if box is not None else torch.tensor(labels),
    )  # fmt: skip
    found = {"masks": 0.0, "pointers": 0.0, "memory": 0.0}
    with torch.inference_mode():
        features = theirs.get_image_features(seen[:1]).fpn_hidden_states
        known = ours._prepare_backbone_features(ours.forward_image(seen[:1]))[1]
        found["features"] = max(
            (a - b).abs().max().item() for a, b in zip(features, known, strict=True)
        )
        for t in range(FRAMES):
            theirs(session, frame_idx=t)
        list(ours.propagate_in_video(state))
    for t in range(FRAMES):
        kind = "non_cond_frame_outputs" if t else "cond_frame_outputs"
        a = session.output_dict_per_obj[0][kind][t]
        b = state["output_dict_per_obj"][0][kind][t]
        memory = b["maskmem_features"].flatten(2).permute(2, 0, 1)
        for name, x, y in (
            ("masks", a["pred_masks"], b["pred_masks"]),
            ("pointers", a["object_pointer"].flatten(), b["obj_ptr"].flatten()),
            ("memory", a["maskmem_features"].float(), memory.float()),
        ):
            assert x.abs().max() > 0.5
            found[name] = max(found[name], (x - y).abs().max().item())
    return found


@pytest.fixture
def uninitialised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are built without drawing weights, which takes most of the time, as all are loaded."""
    for name in ("kaiming_uniform_", "xavier_uniform_", "trunc_normal_", "normal_", "uniform_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *args, **kwargs: tensor)


@pytest.mark.parametrize("trunk", ["tiny", "base-plus"])
@pytest.mark.usefixtures("uninitialised")
def test_what_transformers_saved_tracks_as_there(
    trunk: str, tmp_path: Path, clip_frames: np.ndarray
) -> None:
    theirs = make_transformers(trunk)
    theirs.save_pretrained(tmp_path)
    ours = build_predictor(str(tmp_path), device="cpu")
    assert ours.image_size == 256
    assert name_of(ours) == "sam2"
    point = torch.tensor([[51.0, 48.0]])
    found = _compare(theirs, ours, clip_frames, point, [1])
    assert found["features"] < 1e-5
    assert found["masks"] < MASK_TOLERANCE
    assert found["pointers"] < MASK_TOLERANCE
    assert found["memory"] <= MEMORY_TOLERANCE


def test_a_box_tracks_as_there_and_with_other_weights_not(
    folder: Path, clip_frames: np.ndarray
) -> None:
    ours = build_predictor(str(folder), device="cpu")
    box = torch.tensor([[20.0, 20.0], [80.0, 70.0]])
    theirs = make_transformers()
    found = _compare(theirs, ours, clip_frames, box, [2, 3])
    assert found["masks"] < MASK_TOLERANCE
    assert found["memory"] <= MEMORY_TOLERANCE
    with torch.no_grad():
        ours.maskmem_tpos_enc += 0.05
    other = _compare(theirs, ours, clip_frames, box, [2, 3])
    assert other["masks"] > 10 * MASK_TOLERANCE
    other = _compare(make_transformers(seed=1), ours, clip_frames, box, [2, 3])
    assert other["masks"] > 10 * MASK_TOLERANCE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("memory_encoder.memory_fuser.layers.1.scale"),
            "lacks tensor memory_encoder.memory_fuser.layers.1.scale; ",
        ),
        (lambda s: s.update(spare=torch.zeros(1)), "has the unknown tensor spare; "),
        (
            lambda s: s.update({"prompt_encoder.point_embed.weight": torch.zeros(5, 256)}),
            r"misshapen tensor prompt_encoder.point_embed.weight \(\[5, 256\] for \[4, 256\]\)",
        ),
        (
            lambda s: s["prompt_encoder.shared_embedding.positional_embedding"].add_(1),
            "with other numbers",
        ),
    ],
    ids=["missing", "extra", "misshapen", "copies differ"],
)
def test_tensors_that_do_not_fit_are_named(
    folder: Path, tmp_path: Path, change: Any, message: str
) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(InputError, match=message):
        build_predictor(str(tmp_path), device="cpu")


def test_one_of_the_two_copies_is_enough(folder: Path) -> None:
    model = build_predictor(str(folder), device="cpu")
    state = load_file(folder / "model.safetensors")
    before = fingerprint(model)
    for name in ("shared_image_embedding", "prompt_encoder.shared_embedding"):
        left = {k: v for k, v in state.items() if k != f"{name}.positional_embedding"}
        load_strictly(model, left, folder)
        assert fingerprint(model) == before


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ('"mlp_ratio": 4.0', '"mlp_ratio": 3.0', "mlp_ratio to 3.0; expected 4.0"),
        (
            '"memory_attention_feed_forward_hidden_act": "relu"',
            '"memory_attention_feed_forward_hidden_act": "gelu"',
            "expected relu",
        ),
        ('"model_type": "sam2_video"', '"model_type": "sam3_video"', "'sam3_video'"),
    ],
)
def test_a_model_that_sam2_cannot_build_is_refused(
    folder: Path, tmp_path: Path, setting: str, value: str, message: str
) -> None:
    given = (folder / "config.json").read_text()
    assert setting in given
    (tmp_path / "config.json").write_text(given.replace(setting, value))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(InputError, match=message):
        build_predictor(str(tmp_path), device="cpu")


def test_settings_beside_the_weights_are_taken(folder: Path, tmp_path: Path) -> None:
    given = (folder / "config.json").read_text()
    other = given.replace('"num_maskmem": 7', '"num_maskmem": 4').replace(
        '"max_cond_frame_num": -1', '"max_cond_frame_num": 2'
    )
    (tmp_path / "config.json").write_text(other)
    state = load_file(folder / "model.safetensors")
    key = "memory_temporal_positional_encoding"
    save_file(state | {key: state[key][:4].clone()}, tmp_path / "model.safetensors")
    model = build_predictor(str(tmp_path), device="cpu")
    assert (model.num_maskmem, model.max_cond_frames_in_attn) == (4, 2)
    assert model.image_encoder.trunk.blocks[0].attn.num_heads == 1


# ---------------------------------------------------------------------- fine-tuned


def test_what_training_left_beside_the_model_does_no_harm(
    tmp_path: Path, dividing_config: Path, dividing_predictor: Any
) -> None:
    state = dividing_predictor.state_dict()
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))])
    left = {"optimizer": optimizer.state_dict(), "epoch": 3, "steps": {"train": 9}, "loss": {}}
    torch.save({"model": state, **left}, tmp_path / "checkpoint.pt")
    torch.save(state, tmp_path / "plain.pt")
    for name in ("checkpoint.pt", "plain.pt"):
        tuned = build_predictor(config=dividing_config, checkpoint=tmp_path / name, device="cpu")
        assert fingerprint(tuned) == fingerprint(dividing_predictor)


# ---------------------------------------------------------------------- LoRA


def _adapt(model: Any, folder: Path, **settings: Any) -> Any:
    """Adapt a model with PEFT, draw the adapter, and save it; return PEFT's own merged model."""
    peft = imported("peft")
    adapted = peft.get_peft_model(model, peft.LoraConfig(**settings))
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                weight.copy_(torch.randn(weight.shape, generator=drawn) * 0.1)
    adapted.save_pretrained(folder)
    return adapted.merge_and_unload()


OURS = {
    "r": 4,
    "lora_alpha": 6,
    "target_modules": ["qkv", "q_proj", "out_proj", "dwconv", "conv_s0", "attn.proj"],
    "exclude_modules": r".*dwconv",
    "rank_pattern": {"layers.1.cross_attn_image.q_proj": 2},
    "alpha_pattern": {"self_attn.q_proj": 16},
    "modules_to_save": ["obj_ptr_tpos_proj"],
}


@pytest.mark.parametrize("stabilised", [False, True])
def test_lora_is_merged_as_peft_does(
    tmp_path: Path, dividing_config: Path, stabilised: bool
) -> None:
    base = build_predictor(config=dividing_config, weights="random", device="cpu")
    torch.save({"model": base.state_dict()}, tmp_path / "base.pt")
    merged = _adapt(base, tmp_path / "lora", use_rslora=stabilised, **OURS).state_dict()
    ours = build_predictor(
        config=dividing_config,
        checkpoint=tmp_path / "base.pt",
        lora=tmp_path / "lora",
        device="cpu",
    )
    plain = read_checkpoint(tmp_path / "base.pt")
    changed = 0
    for name, weight in ours.state_dict().items():
        assert torch.allclose(weight, merged[name], atol=1e-6), name
        changed += not torch.allclose(weight, plain[name], atol=1e-3)
    assert changed > 30
    assert name_of(ours) == "sam2"


def test_lora_trained_on_transformers_is_found_with_its_base(folder: Path, tmp_path: Path) -> None:
    theirs = make_transformers()
    theirs.name_or_path = str(folder)
    target = ["qkv", "q_proj", "v_proj"]
    merged = _adapt(theirs, tmp_path / "lora", r=2, lora_alpha=2, target_modules=target)
    by_itself = build_predictor(str(folder), device="cpu")
    ours = build_predictor(str(tmp_path / "lora"), device="cpu")
    assert fingerprint(ours) != fingerprint(by_itself)
    load_strictly(by_itself, merged.state_dict(), folder)
    for name, weight in ours.state_dict().items():
        assert torch.allclose(weight, by_itself.state_dict()[name], atol=1e-6), name
    with pytest.raises(InputError, match="give it as lora"):
        build_predictor(str(folder), checkpoint=tmp_path / "lora", device="cpu")
    with pytest.raises(InputError, match="one adapter"):
        build_predictor(str(tmp_path / "lora"), lora=tmp_path / "lora", device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, t: s.update(peft_type="LOHA"), "describes LOHA; expected plain LoRA"),
        (lambda s, t: s.update(use_dora=True), "describes LORA, use_dora"),
        (lambda s, t: s.update(init_lora_weights="pissa"), "init_lora_weights=pissa"),
        (
            lambda s, t: t.update({"base_model.model.nowhere.lora_B.weight": torch.zeros(2, 2)}),
            "unknown tensor base_model.model.nowhere.lora_B.weight",
        ),
        (
            lambda s, t: t.update({k: v[:, :-1] for k, v in t.items() if "lora_A" in k}),
            "misshapen tensor base_model.model.",
        ),
        (
            lambda s, t: t.pop(next(k for k in t if "lora_A" in k)),
            "misshapen tensor base_model.model.",
        ),
    ],
    ids=["another kind", "dora", "pissa", "unknown", "misshapen", "half"],
)
def test_an_adapter_that_does_not_fit_is_refused(
    tmp_path: Path, dividing_config: Path, change: Any, message: str
) -> None:
    import json

    base = build_predictor(config=dividing_config, weights="random", device="cpu")
    target = ["cross_attn_image.q_proj"]
    _adapt(base, tmp_path, r=2, lora_alpha=2, target_modules=target)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    change(settings, tensors)
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    save_file(
        {k: v.contiguous() for k, v in tensors.items()}, tmp_path / "adapter_model.safetensors"
    )
    with pytest.raises(InputError, match=message) as caught:
        merge_lora(base, tmp_path)
    assert str(caught.value).isprintable()
