"""Names of all attention calls: pinned for every model that comes by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import sam2
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from probes.errors import InputError
from probes.models import CONFIGS, build_predictor
from probes.sites import attention_sites, find_sites

SHAPES = {
    # stages' numbers of blocks, global blocks, windows of the four stages, heads of stage 1
    "sam2.1-tiny": ((1, 2, 7, 2), (5, 7, 9), (8, 4, 14, 7), 1),
    "sam2.1-small": ((1, 2, 11, 2), (7, 10, 13), (8, 4, 14, 7), 1),
    "sam2.1-base-plus": ((2, 3, 16, 3), (12, 16, 20), (8, 4, 14, 7), 2),
    "sam2.1-large": ((2, 6, 36, 4), (23, 33, 43), (8, 4, 16, 8), 2),
    "demo": ((1, 2, 7, 2), (5, 7, 9), (8, 4, 4, 2), 1),
}

REST = [
    *(f"memory.layer{i}.{kind}" for i in range(4) for kind in ("self", "cross")),
    "decoder.layer0.self",
    "decoder.layer0.token_to_image",
    "decoder.layer0.image_to_token",
    "decoder.layer1.self",
    "decoder.layer1.token_to_image",
    "decoder.layer1.image_to_token",
    "decoder.final.token_to_image",
]


@pytest.fixture(scope="module", params=SHAPES)
def named(request: pytest.FixtureRequest) -> tuple[str, Any]:
    """A model's name, and the model."""
    if request.param == "demo":
        return request.param, build_predictor("demo", device="cpu")
    # weights are not looked at; random ones that track take half a minute for Large
    path = Path(sam2.__file__).parent / "configs" / "sam2.1" / CONFIGS[request.param]
    return request.param, instantiate(OmegaConf.load(path).model)


def test_the_list_is_pinned(named: tuple[str, Any]) -> None:
    name, model = named
    stages, globals_, _, _ = SHAPES[name]
    blocks = [stage for stage, count in enumerate(stages, 1) for _ in range(count)]
    encoder = [
        f"encoder.stage{stage}.block{i}.{'global' if i in globals_ else 'window'}"
        for i, stage in enumerate(blocks)
    ]
    assert [site.name for site in attention_sites(model)] == encoder + REST


def test_geometry_follows_the_configuration(named: tuple[str, Any]) -> None:
    name, model = named
    stages, globals_, windows, heads = SHAPES[name]
    for site in attention_sites(model, "encoder"):
        first = site.block == sum(stages[: site.stage - 1])
        pools = site.stage > 1 and first
        lag = (
            1 if pools else 0
        )  # a pooling block still has the windows and tokens of the stage before it
        assert site.pool == (2 if pools else 1)
        assert site.window == (0 if site.block in globals_ else windows[site.stage - 1 - lag])
        assert site.grid * site.stride == model.image_size
        assert site.stride == 4 * 2 ** (site.stage - 1 - lag)
        assert site.heads == heads * 2 ** (site.stage - 1)
    assert {site.stride for site in attention_sites(model, "memory")} == {16}


def test_parts_and_kinds_select(padded_predictor: Any) -> None:
    names = [site.name for site in attention_sites(padded_predictor, "memory", "cross")]
    assert names == [f"memory.layer{i}.cross" for i in range(4)]
    assert attention_sites(padded_predictor, "memory", "window") == []
    for what, given in (("part", "nosuch"), ("part", "memory.*"), ("kind", "crossed")):
        with pytest.raises(InputError, match=rf"{what} {re.escape(repr(given))} was asked for"):
            attention_sites(padded_predictor, **{what: given})


def test_patterns_select_in_running_order(padded_predictor: Any) -> None:
    found = [
        s.name for s in find_sites(padded_predictor, ["decoder.final.*", "memory.layer?.self"])
    ]
    assert found == [*(f"memory.layer{i}.self" for i in range(4)), "decoder.final.token_to_image"]


def test_an_unknown_pattern_names_the_nearest(padded_predictor: Any) -> None:
    with pytest.raises(InputError, match=r"'memory.layer9.cross'.*the nearest are memory\.layer"):
        find_sites(padded_predictor, ["memory.*", "memory.layer9.cross"])


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(InputError, match="a Linear was given; expected a SAM 2 model"):
        attention_sites(torch.nn.Linear(2, 2))


def test_modules_are_the_models_own(padded_predictor: Any) -> None:
    sites = attention_sites(padded_predictor)
    owned = {id(module) for module in padded_predictor.modules()}
    assert all(id(site.module) in owned for site in sites)
    assert len({id(site.module) for site in sites}) == len(sites)
    assert isinstance(sites[0].module, torch.nn.Module)
