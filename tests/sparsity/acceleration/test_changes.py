"""What somebody put into a model, or round its methods, is never passed by."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sam2.modeling.backbones.hieradet import MultiScaleBlock
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import Tensor, nn

from probes.errors import InputError
from probes.observing import observe
from sparsity import EfficientSAM2VideoPredictor, accelerate
from sparsity.acceleration.model.weights import Weights
from sparsity.profile import BUILTIN
from tests.sparsity.acceleration.conftest import PROMPTS, make_frames, off_by, track

SOME = 3
"""Frames: a prompt, one after it, and one that may be routed."""


class Lora(nn.Module):
    """A linear layer with a low-rank adapter beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.down = nn.Linear(base.in_features, 4, bias=False)
        self.up = nn.Linear(4, base.out_features, bias=False)
        nn.init.normal_(self.up.weight, 0, 0.3)

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor:
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.base_layer(x) + self.up(self.down(x))
        return found


class Doubled(nn.Linear):
    """A linear layer of another class."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.3 * super().forward(x)


def lora(part: str) -> Callable[[Any], None]:
    """Adapters on every linear layer of a part of the model."""

    def change(model: Any) -> None:
        torch.manual_seed(0)
        inside = [m for m in getattr(model, part).modules() if not isinstance(m, Lora)]
        for module in inside:
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, Lora(child))
        model.eval()

    return change


def hooked(path: str, before: bool = False) -> Callable[[Any], None]:
    """A hook that changes what a module makes, or what it is given."""

    def more(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value * 1.2 if value.is_floating_point() else value
        if isinstance(value, dict):
            return {key: more(item) for key, item in value.items()}
        return type(value)(map(more, value)) if isinstance(value, tuple | list) else value

    def change(model: Any) -> None:
        module = model.get_submodule(path)
        if before:
            module.register_forward_pre_hook(lambda module, args: more(args))
        else:
            module.register_forward_hook(lambda module, args, out: more(out))

    return change


def activation(model: Any) -> None:
    for block in model.image_encoder.trunk.blocks:
        block.mlp.act = nn.ReLU()


def memory_activation(model: Any) -> None:
    for layer in model.memory_attention.layers:
        layer.activation = torch.abs


def norm(model: Any) -> None:
    block = model.image_encoder.trunk.blocks[7]
    block.norm2 = nn.RMSNorm(block.norm2.normalized_shape)


def epsilon(model: Any) -> None:
    for layer in model.memory_attention.layers:
        layer.norm2.eps = 0.5


def subclassed(model: Any) -> None:
    proj = model.image_encoder.trunk.blocks[9].attn.proj
    proj.__class__ = Doubled


def patched(model: Any) -> None:
    block = model.image_encoder.trunk.blocks[2]
    forward = block.forward
    block.forward = lambda x: forward(x) * 1.1


class Wrapped(nn.Module):
    """A block inside another module, without its attributes."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inside(*args, **kwargs) * 1.1


def wrapped_block(model: Any) -> None:
    model.image_encoder.trunk.blocks[8] = Wrapped(model.image_encoder.trunk.blocks[8])


def replaced(model: Any) -> None:
    class Mine(nn.Module):
        def __init__(self, encoder: nn.Module) -> None:
            super().__init__()
            self.encoder, self.trunk, self.neck = encoder, encoder.trunk, encoder.neck

        def forward(self, x: Tensor) -> Any:
            return self.encoder(x * 0.8)

    model.image_encoder = Mine(model.image_encoder)


def own_forward_image(model: Any) -> None:
    theirs = model.forward_image

    def mine(image: Tensor) -> Any:
        made = theirs(image)
        made["backbone_fpn"] = [level * 0.7 for level in made["backbone_fpn"]]
        return made

    model.forward_image = mine


def own_heads(model: Any) -> None:
    theirs = model._forward_sam_heads
    model._forward_sam_heads = lambda backbone_features, *args, **kwargs: theirs(
        backbone_features * 1.2, *args, **kwargs
    )


CHANGES: dict[str, tuple[Callable[[Any], None], str | None]] = {
    "adapters in the encoder": (lora("image_encoder"), "early stages"),
    "adapters in memory attention": (lora("memory_attention"), "memory attention"),
    "adapters in the memory encoder": (lora("memory_encoder"), "memory encoder"),
    "hook on an early block": (hooked("image_encoder.trunk.blocks.1"), "early stages"),
    "hook on a block of stage 3": (hooked("image_encoder.trunk.blocks.8"), "stage 3"),
    "hook on a linear layer of stage 3": (hooked("image_encoder.trunk.blocks.8.mlp.layers.0", True), "stage 3"),
    "hook on a late block": (hooked("image_encoder.trunk.blocks.11"), "late stages"),
    "hook on the neck": (hooked("image_encoder.neck"), "image encoder"),
    "hook on a level of the neck": (hooked("image_encoder.neck.convs.3"), "early stages"),
    "hook on memory attention": (hooked("memory_attention"), "memory attention"),
    "hook in the memory encoder": (hooked("memory_encoder.fuser.layers.0.pwconv1"), "memory encoder"),
    "hook in the decoder": (hooked("sam_mask_decoder.output_upscaling.0"), "mask decoder"),
    "another activation": (activation, "early stages"),
    "another activation in memory attention": (memory_activation, "memory attention"),
    "another norm": (norm, "stage 3"),
    "another epsilon": (epsilon, None),
    "a subclass": (subclassed, "stage 3"),
    "a patched forward": (patched, "early stages"),
    "a block inside another module": (wrapped_block, "stage 3"),
    "another encoder": (replaced, "image encoder"),
    "a forward_image of one's own": (own_forward_image, "forward_image"),
    "a wrapper of the decoder's step": (own_heads, None),
}  # fmt: skip
"""By what a client does: how, and the part that the report names then; None where the rewrite stands."""


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return make_frames(SOME)


@pytest.fixture(scope="module")
def plain(small_demo: Any, clip: np.ndarray) -> Tensor:
    return masks(small_demo, clip)


def masks(predictor: Any, clip: Any) -> Tensor:
    """Logits of all frames."""
    fast = (
        predictor
        if isinstance(predictor, EfficientSAM2VideoPredictor)
        else accelerate(predictor, "dense")
    )
    return torch.stack([*track(fast, clip, PROMPTS["mask"]).logits.values()])


@pytest.mark.parametrize("what", CHANGES)
def test_what_was_changed_is_run(
    small_demo: Any, clip: np.ndarray, plain: Tensor, what: str
) -> None:
    """Changed after frames were tracked, and before it is accelerated."""
    change, part = CHANGES[what]
    stock, model = copy.deepcopy(small_demo), copy.deepcopy(small_demo)
    change(stock)
    expected = masks(stock, clip)
    assert off_by(expected, plain) > 1e-3, "it matters"
    late = accelerate(model, "exact")
    assert off_by(masks(late, clip), plain) <= 1e-4
    change(late)
    for fast in (late, accelerate(stock, "exact")):
        run = track(fast, clip, PROMPTS["mask"])
        assert off_by(torch.stack([*run.logits.values()]), expected) <= 1e-4
        assert (part in run.report.changed) if part else not run.report.changed
    with late.use(BUILTIN["recommended"], force=True):
        routed = track(late, clip, PROMPTS["mask"])
    reasons = {frame.reason for frame in routed.report.frames}
    encoder = part not in ("memory attention", "memory encoder", "mask decoder", None)
    assert ("changed encoder" in reasons) == encoder
    with late.use(None):
        assert torch.equal(masks(late, clip), expected)


def test_a_class_whose_forward_was_replaced(
    small_demo: Any, clip: np.ndarray, plain: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast, forward = accelerate(small_demo, "exact"), MultiScaleBlock.forward
    assert off_by(masks(fast, clip), plain) <= 1e-4
    monkeypatch.setattr(MultiScaleBlock, "forward", lambda self, x: forward(self, x) * 0.9)
    expected = masks(small_demo, clip)
    assert off_by(expected, plain) > 1e-3
    assert off_by(masks(fast, clip), expected) <= 1e-4
    monkeypatch.undo()
    assert off_by(masks(fast, clip), plain) <= 1e-4


def counting(module: nn.Module, name: str, counts: Counter[str]) -> Any:
    """A hook that counts calls."""
    return module.register_forward_hook(lambda module, args, out: counts.update([name]))


def test_a_profile_is_whole_again_when_a_hook_is_taken_away(
    small_demo: Any, clip: np.ndarray
) -> None:
    """Accelerated while there was one: checks and the adapter are as without it."""
    model = copy.deepcopy(small_demo)
    hook = model.image_encoder.register_forward_hook(lambda *args: None)
    fast = accelerate(model, "recommended")
    assert {f.reason for f in track(fast, clip, PROMPTS["mask"]).report.frames} >= {
        "changed encoder"
    }
    hook.remove()
    expected = masks(accelerate(small_demo, "recommended"), clip)
    assert torch.equal(masks(fast, clip), expected)
    model.memory_attention.layers[0].cross_attn_image.num_heads = 2
    model.memory_attention.register_forward_hook(lambda *args: None)
    with pytest.raises(InputError, match="its memory attention has several heads"):
        accelerate(model, "exact")


def test_hooks_are_called_as_often_as_stock_calls_them(small_demo: Any, clip: np.ndarray) -> None:
    """On every module of the model, one after the other: added when frames were tracked, and taken away again."""
    stock = accelerate(small_demo, "dense")
    fast = accelerate(small_demo, "exact")
    names = [
        name for name, module in small_demo.named_modules() if name and not list(module.children())
    ]
    before = masks(fast, clip)
    counted = {}
    for kind, predictor in (("stock", stock), ("fast", fast)):
        counts = counted[kind] = Counter[str]()
        handles = [counting(predictor.get_submodule(name), name, counts) for name in names]
        masks(predictor, clip)
        for handle in handles:
            handle.remove()
    assert counted["fast"] == counted["stock"] and sum(counted["stock"].values()) > 400
    assert torch.equal(masks(fast, clip), before), "fast again"


def test_modules_are_walked_again_only_when_something_changed(
    small_demo: Any, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    walks = []
    walk = Weights._walk
    monkeypatch.setattr(Weights, "_walk", lambda self: (walks.append(1), walk(self))[1])
    fast = accelerate(copy.deepcopy(small_demo), "recommended")
    masks(fast, clip)
    walks.clear()
    masks(fast, clip)
    assert not walks
    made = fast.parts.encoder
    with observe(fast, lambda call: None, "*"):
        masks(fast, clip)
    masks(fast, clip)
    assert fast.parts.encoder is made, "watching changes nothing"
    hook = fast.memory_attention.register_forward_hook(lambda *args: None)
    masks(fast, clip)
    assert "memory attention" in fast.parts.look()
    hook.remove()
    assert fast.parts.look() == {}


def test_memory_attention_in_training_mode_drops_as_stock_does(
    small_demo: Any, clip: np.ndarray, plain: Tensor
) -> None:
    model = copy.deepcopy(small_demo)
    model.memory_attention.train()
    for layer in model.memory_attention.layers:
        layer.dropout2.p = 0.5
    fast = accelerate(model, "exact")
    run = track(fast, clip, PROMPTS["mask"])
    assert set(run.report.changed) == {"memory attention"}
    assert "training mode" in run.report.changed["memory attention"]
    assert not torch.equal(masks(fast, clip), torch.stack([*run.logits.values()])), "at random"
    model.memory_attention.eval()
    assert off_by(masks(fast, clip), plain) <= 1e-4


def test_a_module_more_or_less_among_others_is_noticed(small_demo: Any) -> None:
    """Also where it takes nobody's place: at the end, and the last of all that are looked at."""
    model = copy.deepcopy(small_demo)
    known, moves = Weights(model), []
    for change in (
        lambda: None,
        lambda: model.memory_encoder.mask_downsampler.encoder.append(nn.Identity()),
        lambda: None,
        lambda: model.add_module("last", nn.Linear(2, 2)),
        lambda: model.last.register_parameter("more", nn.Parameter(torch.ones(1))),
        lambda: None,
        lambda: model.__delattr__("last"),
    ):
        change()
        moves.append(known.stamp()[0])
    assert moves == [1, 2, 2, 3, 4, 4, 5]


def test_gradients_flow_as_in_stock(small_demo: Any) -> None:
    """Through the parts that a client trains on our predictor."""
    stock = copy.deepcopy(small_demo)
    fast = accelerate(copy.deepcopy(small_demo), "exact")
    found = []
    for model in (stock, fast):
        image = torch.linspace(-1, 1, 3 * 128 * 128).view(1, 3, 128, 128)
        features = model.forward_image(image)["backbone_fpn"]
        side = model.sam_image_embedding_size
        sparse, dense = model.sam_prompt_encoder(
            (torch.full((1, 1, 2), 40.0), torch.ones(1, 1)), None, None
        )
        low, *_ = model.sam_mask_decoder(
            image_embeddings=features[-1], image_pe=model.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense, multimask_output=False,
            repeat_image=False, high_res_features=features[:2],
        )  # fmt: skip
        memory = model.memory_encoder(
            features[-1], low.detach().new_ones(1, 1, 16 * side, 16 * side)
        )
        (low.sum() + memory["vision_features"].sum()).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and len(found[0]) > 100
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], atol=1e-5), name


# ---------------------------------------------------------------------- classes


class Clamped(SAM2VideoPredictor):
    """A client's own class."""

    def _forward_sam_heads(self, *args: Any, **kwargs: Any) -> Any:
        found = list(super()._forward_sam_heads(*args, **kwargs))
        found[3] = found[3].clamp(-2, 2)
        return tuple(found)

    def only_mine(self) -> str:
        return "mine"


def test_a_derived_class_keeps_its_methods(
    small_demo: Any, clip: np.ndarray, plain: Tensor
) -> None:
    mine = copy.deepcopy(small_demo)
    mine.__class__ = Clamped
    state = mine.init_state  # bound to the client's class
    assert state.__self__ is mine
    expected = masks(accelerate(mine, "dense"), clip)
    assert off_by(expected, plain) > 1e-3
    fast = accelerate(mine, "exact")
    assert isinstance(fast, Clamped) and isinstance(fast, EfficientSAM2VideoPredictor)
    assert fast.only_mine() == "mine"
    for other in (fast, copy.copy(fast), copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert isinstance(other, Clamped) and type(other) is type(fast)
        assert off_by(masks(other, clip), expected) <= 1e-4


class Trunk(nn.Module):
    channel_list = (8,)


def quantised(model: Any) -> Any:
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def without_stages(model: Any) -> Any:
    model.image_encoder.trunk = Trunk()
    return model


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("made", "why"),
    [
        (quantised, r"attn.qkv is quantised \(torch.ao"),
        (without_stages, "a predictor with a Trunk as encoder .* with stages and windows"),
        (
            lambda model: nn.Linear(1, 1),
            "a torch.nn.modules.linear.Linear was given; accelerate takes",
        ),
    ],
)
def test_what_cannot_be_accelerated_is_refused_for_its_reason(
    small_demo: Any, made: Callable[[Any], Any], why: str
) -> None:
    with pytest.raises(InputError, match=why):
        accelerate(made(copy.deepcopy(small_demo)), "exact")


def test_sam2s_legacy_predictor_is_refused() -> None:
    from sam2 import sam2_video_predictor_legacy as legacy

    model = legacy.SAM2VideoPredictor.__new__(legacy.SAM2VideoPredictor)
    with pytest.raises(InputError, match="legacy one, which keeps all objects of a video in one"):
        accelerate(model)
