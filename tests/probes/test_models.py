"""Models by name, configuration and checkpoint, and random weights that track."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sam2.build_sam import build_sam2_video_predictor
from sam2.sam2_video_predictor import SAM2VideoPredictor

from probes.errors import InputError
from probes.models import (
    CONFIGS,
    MODEL_NAMES,
    build_predictor,
    configuration_of,
    fingerprint,
    name_of,
)
from probes.random_weights import make_it_track
from sparsity import accelerate


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_predictor: Any) -> Path:
    """A file in the format of the official ones."""
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    torch.save({"model": tiny_predictor.state_dict()}, path)
    return path


@pytest.fixture
def uninitialised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are built without drawing their weights, which takes most of the time and isn't looked at."""
    monkeypatch.setattr("probes.models.make_it_track", lambda model, seed: None)
    for name in ("kaiming_uniform_", "xavier_uniform_", "trunc_normal_", "normal_", "uniform_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *args, **kwargs: tensor)


def test_the_class_is_stock(tiny_predictor: Any) -> None:
    assert type(tiny_predictor) is SAM2VideoPredictor
    assert not tiny_predictor.training
    assert tiny_predictor.image_size == 256
    assert {p.dtype for p in tiny_predictor.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.usefixtures("uninitialised")
def test_settings_equal_those_of_the_stock_builder(name: str) -> None:
    stock = build_sam2_video_predictor(f"configs/sam2.1/{CONFIGS[name]}", device="cpu")
    ours = build_predictor(name, weights="random", device="cpu")
    assert repr(ours) == repr(stock)
    plain = {k: v for k, v in vars(stock).items() if isinstance(v, (int, float, str, bool, dict))}
    assert {k: vars(ours)[k] for k in plain if not k.startswith("_")} == {
        k: v for k, v in plain.items() if not k.startswith("_")
    }
    decoder = stock.sam_mask_decoder
    assert decoder.dynamic_multimask_via_stability
    assert ours.sam_mask_decoder.dynamic_multimask_via_stability


@pytest.mark.usefixtures("uninitialised")
def test_postprocessing_can_be_left_out(dividing_config: Path) -> None:
    plain = build_predictor(
        config=dividing_config, weights="random", device="cpu", apply_postprocessing=False
    )
    assert plain.fill_hole_area == 0
    assert not plain.sam_mask_decoder.dynamic_multimask_via_stability


def test_random_weights_are_seeded_and_leave_the_callers_generator(
    dividing_config: Path, dividing_predictor: Any
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again = build_predictor(config=dividing_config, weights="random", device="cpu")
    assert torch.equal(torch.rand(3), expected)
    assert fingerprint(again) == fingerprint(dividing_predictor)
    other = build_predictor(config=dividing_config, weights="random", device="cpu", seed=1)
    assert fingerprint(other) != fingerprint(dividing_predictor)


def _track(model: Any, folder: Path, mask: np.ndarray, frames: int) -> list[float]:
    """Return the IoU of each tracked frame with the prompt."""
    state = model.init_state(str(folder))
    model.add_new_mask(state, 0, 1, mask)
    found = []
    for _, _, logits in model.propagate_in_video(state, max_frame_num_to_track=frames):
        kept = logits[0, 0].numpy() > 0
        found.append((kept & mask).sum() / (kept | mask).sum())
    return found[1:]


def test_random_weights_track(any_predictor: Any, clip_folder: Path, clip_mask: np.ndarray) -> None:
    assert min(_track(any_predictor, clip_folder, clip_mask, 6)) > 0.45


def test_the_demo_configuration_tracks_at_random_too(
    clip_folder: Path, clip_mask: np.ndarray
) -> None:
    model = build_predictor("demo", weights="random", image_size=128, device="cpu")
    assert model.hidden_dim == 128
    assert min(_track(model, clip_folder, clip_mask, 3)) > 0.45


def test_weights_as_drawn_do_not(
    monkeypatch: pytest.MonkeyPatch, padded_config: Path, clip_folder: Path, clip_mask: np.ndarray
) -> None:
    monkeypatch.setattr("probes.models.make_it_track", lambda model, seed: None)
    drawn = build_predictor(config=padded_config, weights="random", device="cpu")
    assert max(_track(drawn, clip_folder, clip_mask, 2)) < 0.3


def test_fingerprint_sees_one_changed_number(dividing_predictor: Any) -> None:
    copy = deepcopy(dividing_predictor)
    before = fingerprint(copy)
    with torch.no_grad():
        copy.maskmem_tpos_enc[0, 0, 0, 0] += 1e-3
    assert fingerprint(copy) != before == fingerprint(dividing_predictor)
    assert before.startswith("sha256:")
    assert len(before) == 71


def test_a_checkpoint_in_the_official_format_loads(checkpoint: Path, tiny_predictor: Any) -> None:
    loaded = build_predictor("sam2.1-tiny", checkpoint=checkpoint, device="cpu")
    assert fingerprint(loaded) == fingerprint(tiny_predictor)
    assert loaded.image_size == 1024


def test_a_predictor_knows_its_weights(
    demo_stock: Any, tiny_predictor: Any, checkpoint: Path
) -> None:
    assert name_of(demo_stock) == name_of(accelerate(demo_stock, "paper")) == "demo"
    assert name_of(tiny_predictor) == name_of(accelerate(tiny_predictor, "exact")) == "random"
    assert name_of(build_predictor("sam2.1-tiny", checkpoint=checkpoint, device="cpu")) == "sam2"
    elsewhere = build_sam2_video_predictor("configs/sam2.1/sam2.1_hiera_t.yaml", device="cpu")
    assert name_of(elsewhere) == "sam2"


def test_an_official_model_is_called_by_its_name(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    monkeypatch.setattr("probes.models.fetched", lambda name: checkpoint)
    assert name_of(build_predictor("sam2.1-tiny", device="cpu", image_size=256)) == "sam2.1-tiny"


def test_safetensors_load(tmp_path: Path, dividing_config: Path, dividing_predictor: Any) -> None:
    state = {k: v.clone() for k, v in dividing_predictor.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    loaded = build_predictor(
        config=dividing_config, checkpoint=tmp_path / "w.safetensors", device="cpu"
    )
    assert fingerprint(loaded) == fingerprint(dividing_predictor)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("no_mem_embed"), "lacks tensor no_mem_embed; "),
        (lambda s: s.update(spare=torch.zeros(1)), "has the unknown tensor spare; "),
        (
            lambda s: s.update(no_mem_embed=torch.zeros(1, 1, 255)),
            r"misshapen tensor no_mem_embed \(\[1, 1, 255\] for \[1, 1, 256\]\)",
        ),
        (lambda s: [s.pop(k) for k in list(s)[:3]], "and 2 more"),
    ],
    ids=["missing", "extra", "misshapen", "several"],
)
def test_a_checkpoint_of_another_model_is_refused(
    dividing_config: Path, dividing_predictor: Any, tmp_path: Path, change: Any, message: str
) -> None:
    state = dict(dividing_predictor.state_dict())
    change(state)
    torch.save({"model": state}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=message):
        build_predictor(config=dividing_config, checkpoint=tmp_path / "other.pt", device="cpu")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"nonsense", "can't be read"),
        (None, "does not exist"),
        ({"weights": {}}, "holds no state dict under 'model'"),
        ([1, 2], "holds no state dict under 'model'"),
        (
            {"model": {}, "of": Namespace()},
            r"\(Unsupported global: GLOBAL argparse.Namespace .*\);",
        ),
    ],
    ids=["nonsense", "absent", "no model", "a list", "an object"],
)
def test_an_unreadable_checkpoint_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "w.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(InputError, match=message) as caught:
        build_predictor("sam2.1-tiny", checkpoint=path, device="cpu")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "sam3"}, "expected one of sam2.1-tiny"),
        ({}, "expected one of the two"),
        ({"name": "demo", "config": "x.yaml"}, "expected one of the two"),
        ({"config": "nowhere.yaml", "weights": "random"}, "nowhere.yaml does not exist"),
        ({"config": "configs/sam2.1/sam2.1_hiera_t.yaml"}, "add checkpoint="),
        ({"name": "sam2.1-tiny", "weights": "zero"}, "weights='zero'"),
        ({"name": "sam2.1-tiny", "weights": "random", "checkpoint": "a.pt"}, "drop one"),
        ({"name": "sam2.1-tiny", "weights": "random", "image_size": 250}, "multiple of 32 .* 256"),
        (
            {"name": "sam2.1-tiny", "weights": "random", "image_size": 1024000},
            "4096 at most; the nearest is 4096",
        ),
        ({"name": "sam2.1-tiny", "weights": "random", "image_size": 0}, "nearest is 32"),
        ({"name": "demo", "device": "gpu"}, r"device 'gpu' can't be used \(torch knows no such"),
        ({"name": "demo", "device": "cuda:99"}, "expected cpu or cuda; choose one that is here"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build_predictor(**arguments)
    assert "\n" not in str(caught.value)


def test_a_broken_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model: [1, 2]\n")
    with pytest.raises(InputError, match="can't be used"):
        build_predictor(config=tmp_path / "c.yaml", weights="random")


def test_a_configuration_taken_out_of_its_file_is_refused(
    tmp_path: Path, dividing_config: Path
) -> None:
    path, text = tmp_path / "c.yaml", dividing_config.read_text()
    given = text.replace("image_size: 256", "image_size: ${scratch.resolution}")
    path.write_text(given)
    with pytest.raises(InputError, match="can't be built .*scratch.resolution.* not found"):
        build_predictor(config=path, weights="random", device="cpu")
    path.write_text(f"{given}scratch: {{resolution: 256}}\n")
    assert build_predictor(config=path, weights="random", device="cpu").image_size == 256


def test_a_configuration_is_known_by_what_it_sets(
    dividing_config: Path, dividing_predictor: Any, tmp_path: Path
) -> None:
    copy, other = tmp_path / "copy.yaml", tmp_path / "other.yaml"
    copy.write_text(f"# the same\n{dividing_config.read_text()}")
    other.write_text(f"{dividing_config.read_text()}  memory_temporal_stride_for_eval: 2\n")
    same, strided = (
        build_predictor(config=path, weights="random", device="cpu") for path in (copy, other)
    )
    assert configuration_of(same) == configuration_of(dividing_predictor) is not None
    assert configuration_of(strided) != configuration_of(same)
    assert fingerprint(strided) == fingerprint(same), "the weights don't tell them apart"


def test_a_name_inside_the_package_is_a_configuration(tiny_predictor: Any) -> None:
    named = build_predictor(
        config="configs/sam2.1/sam2.1_hiera_t.yaml", weights="random", image_size=256, device="cpu"
    )
    assert fingerprint(named) == fingerprint(tiny_predictor)


@pytest.mark.process
def test_another_package_called_sam2_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sam2"
    folder.mkdir()
    (folder / "__init__.py").touch()
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from probes.models import build_predictor\n"
        "try: build_predictor('sam2.1-tiny', weights='random')\n"
        "except ValueError as error: print(error)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert "the installed sam2" in said
    assert "is another one, its sam2_video_predictor.py differs" in said


@pytest.mark.process
@pytest.mark.parametrize("order", ["before", "cleared"])
def test_a_host_that_uses_hydra_itself_changes_nothing(tmp_path: Path, order: str) -> None:
    (tmp_path / "conf").mkdir()
    start = "from hydra import initialize_config_dir\n" + (
        f"initialize_config_dir({str(tmp_path / 'conf')!r}, version_base=None)\n"
        if order == "before"
        else "import sam2\nfrom hydra.core.global_hydra import GlobalHydra\n"
        "GlobalHydra.instance().clear()\n"
    )
    code = start + (
        "from probes import build_predictor\n"
        "m = build_predictor('sam2.1-tiny', weights='random', image_size=64, device='cpu')\n"
        "print(type(m).__name__)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert said.stdout.strip() == "SAM2VideoPredictor"


def test_names_cover_the_four_sizes_and_the_demo() -> None:
    assert MODEL_NAMES == (
        "sam2.1-tiny",
        "sam2.1-small",
        "sam2.1-base-plus",
        "sam2.1-large",
        "demo",
    )
    assert callable(make_it_track)
