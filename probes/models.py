"""SAM 2 video predictors by name, from a folder, by configuration and checkpoint, or with random weights.

The class is always sam2's own ``SAM2VideoPredictor``. Configurations are read as plain yaml, so neither
Hydra's global state nor the working directory matters.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import packages_distributions
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from probes.checkpoints import fetched
from probes.errors import InputError
from probes.hub import OFFICIAL, Found, find, is_hub_name
from probes.lora import merge_lora
from probes.random_weights import make_it_track
from probes.transformers_format import settings_in
from probes.weights import load_strictly, read_checkpoint

if TYPE_CHECKING:
    from sam2.sam2_video_predictor import SAM2VideoPredictor

CONFIGS = {
    "sam2.1-tiny": "sam2.1_hiera_t.yaml",
    "sam2.1-small": "sam2.1_hiera_s.yaml",
    "sam2.1-base-plus": "sam2.1_hiera_b+.yaml",
    "sam2.1-large": "sam2.1_hiera_l.yaml",
}
"""Official models and their configuration inside the sam2 package."""

DEMO = "demo"
"""The small trained model that comes with the project."""

MODEL_NAMES = (*CONFIGS, DEMO)

UNKNOWN = "sam2"
"""What a model is called whose weights aren't known."""

LARGEST_SIDE = 4096
"""Pixels: global attention, which grows with the fourth power, takes 256 times what it takes at 1024."""

# What sam2's own builder adds to a configuration (sam2/build_sam.py:118).
_POSTPROCESSING = {
    "sam_mask_decoder_extra_args.dynamic_multimask_via_stability": True,
    "sam_mask_decoder_extra_args.dynamic_multimask_stability_delta": 0.05,
    "sam_mask_decoder_extra_args.dynamic_multimask_stability_thresh": 0.98,
    "binarize_mask_from_pts_for_mem_enc": True,
    "fill_hole_area": 8,
}


def build_predictor(
    name: str | None = None,
    *,
    checkpoint: str | Path | None = None,
    lora: str | Path | None = None,
    weights: Literal["random"] | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    image_size: int | None = None,
    config: str | Path | None = None,
    apply_postprocessing: bool = True,
    vos_optimized: bool = False,
) -> SAM2VideoPredictor:
    """Build sam2's video predictor in float32.

    Parameters
    ----------
    name
        One of `MODEL_NAMES`: an official model takes the checkpoint that ``efficient-sam2 fetch`` has
        brought, ``"demo"`` the weights that come with the project. Or a name on the Hugging Face hub, such as
        ``"facebook/sam2.1-hiera-large"``, that was fetched, or a folder: with sam2's ``.pt``, transformers'
        ``model.safetensors`` (or its index and parts) and ``config.json``, or PEFT's adapter, whose base is found by the
        name in it. Not with
        `config`.
    checkpoint
        Other weights: a ``.pt`` of sam2, of its training too (``{"model": state_dict, …}``), a ``.safetensors`` in sam2's
        names or transformers', or a folder with one of these.
    lora
        A folder with PEFT's ``adapter_config.json`` and ``adapter_model.safetensors``, to be merged into the weights.
    weights
        ``"random"`` for weights drawn with `seed` under which a prompted object is kept
        (`probes.random_weights`). Not with `checkpoint`.
    seed
        Of the random weights.
    device
        Default: the GPU where torch sees one, else the CPU.
    image_size
        Side of the model's square input in pixels; default as configured (1024 for SAM 2.1). Smaller is
        faster.
    config
        Any sam2 configuration: a yaml file, or a name inside the sam2 package such as
        ``configs/sam2.1/sam2.1_hiera_t.yaml``.
    apply_postprocessing, vos_optimized
        As in sam2's ``build_sam2_video_predictor``.

    Raises
    ------
    InputError
        The name, size, seed, configuration, checkpoint, adapter or device can't be used, or the installed ``sam2`` is another
        package than the expected one.
    """
    check_sam2()
    if not -(2**63) <= seed < 2**63:
        raise InputError(f"seed {seed} given; expected a whole number of 64 bits; choose another")
    found = _elsewhere(name, checkpoint, weights)
    path = _config_file(found.model or "sam2.1-tiny" if found else name, config)
    changes = settings_in(found.config) if found and not found.model and found.config else {}
    settings = _settings(path, changes, image_size, apply_postprocessing, vos_optimized)
    state = _weights(name, checkpoint, weights, found)
    adapter = _adapter(lora, weights, found)
    place = find_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _instantiate(settings, path)
    if state is not None:
        load_strictly(model, *state)
    if adapter is not None:
        merge_lora(model, adapter)
    model.float().to(place).eval()
    if weights == "random":
        make_it_track(model, seed)
    official = found.model if found and name in OFFICIAL else name
    if weights or (official in MODEL_NAMES and checkpoint is None and adapter is None):
        model.probes_name = weights or official
    model.probes_configuration = _digest(settings)
    return model


def input_side(name: str, image_size: int | None = None) -> int:
    """Side of the square input of one of `MODEL_NAMES` in pixels, or the one asked for, without its weights.

    Raises
    ------
    InputError
        The model can't have that size.
    """
    settings = _settings(_config_file(name, None), {}, image_size, False, False)
    return int(settings.image_size)


def find_device(name: str | torch.device) -> torch.device:
    """A device of this machine by its name.

    Raises
    ------
    InputError
        There is none.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # some hold no numbers, such as meta
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        if why.startswith("Expected one of"):  # a list of all that torch has a name for
            why = "torch knows no such device"
        raise InputError(
            f"device {str(name)!r} can't be used ({why}); expected cpu or cuda; choose one that is here"
        ) from None
    return device


def name_of(predictor: SAM2VideoPredictor) -> str:
    """Say which weights a predictor has, as `build_predictor` chose them.

    Returns
    -------
    str
        One of `MODEL_NAMES`, ``"random"`` for random weights, ``"sam2"`` where it isn't known: weights from a
        checkpoint that was given, or a predictor from elsewhere. An accelerated predictor has its stock
        predictor's name.
    """
    return str(getattr(predictor, "probes_name", UNKNOWN))


def configuration_of(predictor: SAM2VideoPredictor) -> str | None:
    """Hash of the settings that a predictor was built with: what decides its masks beside its weights.

    None for a predictor from elsewhere. An accelerated predictor has its stock predictor's.
    """
    return getattr(predictor, "probes_configuration", None)


def _elsewhere(
    name: str | None, checkpoint: str | Path | None, weights: str | None
) -> Found | None:
    """Find what a folder or a name on the hub stands for; None for a name of `MODEL_NAMES` or an unknown one."""
    if name in OFFICIAL and (checkpoint or weights):
        return Found(Path(), OFFICIAL[name])
    if name is None or name in MODEL_NAMES or not (Path(name).is_dir() or is_hub_name(name)):
        return None
    found = find(name)
    if found.model is None and found.config is None:
        raise InputError(
            f"{name} holds {found.weights.name}, of a model that isn't known; expected config.json of transformers beside it; "
            "give the model's name or configuration, and this as checkpoint"
        )
    return found


def _adapter(lora: str | Path | None, weights: str | None, found: Found | None) -> Path | None:
    """Folder of the adapter that is to be merged, or None."""
    both = lora, found.lora if found else None
    given = [Path(one) for one in both if one is not None]
    if len(given) > 1 or (given and weights):
        raise InputError(
            f"lora={str(given[0])!r} with {f'another in {given[1]}' if len(given) > 1 else 'random weights'} given; expected "
            "one adapter and the weights that it was trained on; drop one"
        )
    return given[0] if given else None


def _config_file(name: str | None, config: str | Path | None) -> Path:
    """Return the yaml file of a model."""
    if (name is None) == (config is None):
        raise InputError(
            f"model {name!r} and configuration {config and str(config)!r} given; expected one of the two; "
            f"name one of {', '.join(MODEL_NAMES)} or give a sam2 yaml file"
        )
    if config is not None:
        for candidate in (Path(config), _sam2_folder() / config):
            if candidate.is_file():
                return candidate
        raise InputError(
            f"configuration {config} does not exist; expected a yaml file or a name inside the sam2 "
            "package such as configs/sam2.1/sam2.1_hiera_t.yaml; check the path"
        )
    if name == DEMO:
        return _demo_file("config.yaml")
    if name not in CONFIGS:
        raise InputError(
            f"model {name!r} is not known; expected one of {', '.join(MODEL_NAMES)}, a folder or a Hugging Face name "
            "such as facebook/sam2.1-hiera-large; choose one, or give a configuration and a checkpoint"
        )
    return _sam2_folder() / "configs" / "sam2.1" / CONFIGS[name]


def _demo_file(name: str) -> Path:
    """Return a file of the demo model; found by path, nothing of `sparsity` is imported."""
    file = Path(str(files("sparsity"))) / "demo" / name
    if not file.is_file():
        raise InputError(
            f"the demo model's {name} is not installed; expected {file}; reinstall, or use another model, "
            'for example weights="random"'
        )
    return file


def _weights(
    name: str | None, checkpoint: str | Path | None, weights: str | None, found: Found | None
) -> tuple[dict[str, Tensor], Path] | None:
    """Return the state dict to load and its file, or None for random weights."""
    if weights is not None:
        if weights != "random" or checkpoint is not None:
            raise InputError(
                f"weights={weights!r} with checkpoint={checkpoint and str(checkpoint)!r} given; expected "
                'weights="random" or a checkpoint; drop one'
            )
        return None
    if checkpoint is not None:
        path = Path(checkpoint)
        if path.is_dir():
            inside = find(str(path))
            if inside.lora is not None:
                raise InputError(
                    f"checkpoint {path} is an adapter; expected weights; give it as lora, with the model's own weights"
                )
            path = inside.weights
    elif found is not None:
        path = found.weights
    elif name == DEMO:
        path = _demo_file("weights.safetensors")
    elif name in CONFIGS:
        path = fetched(name)
    else:
        raise InputError(
            "a configuration without weights given; expected a checkpoint too; add checkpoint=… or "
            'weights="random"'
        )
    return read_checkpoint(path), path


def _settings(
    path: Path, given: dict[str, Any], image_size: int | None, postprocessing: bool, compiled: bool
) -> Any:
    """Return the model's settings from a configuration file, with what the caller changes in them."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        settings = OmegaConf.load(path).model
        for key, value in given.items():
            OmegaConf.update(settings, key, value, force_add=True)
        trunk = settings.image_encoder.trunk
        step = 4 * int(trunk.get("window_spec", (8,))[0])
    except (OmegaConfBaseException, YAMLError, AttributeError, UnicodeDecodeError) as error:
        raise InputError(
            f"configuration {path} can't be used ({str(error).splitlines()[0]}); expected a sam2 model "
            "configuration in yaml; compare it with sam2's own"
        ) from None
    changes: dict[str, Any] = {"_target_": "sam2.sam2_video_predictor.SAM2VideoPredictor"}
    if compiled:
        changes["_target_"] += "VOS"
        changes["compile_image_encoder"] = True
    if postprocessing:
        changes |= _POSTPROCESSING
    if image_size is not None:
        nearest = min(max(step, round(image_size / step) * step), LARGEST_SIDE // step * step)
        if image_size != nearest:
            raise InputError(
                f"image_size is {image_size}; expected a multiple of {step} for this model, {LARGEST_SIDE} at most; "
                f"the nearest is {nearest}"
            )
        changes["image_size"] = image_size
    for key, value in changes.items():
        OmegaConf.update(settings, key, value, force_add=True)
    return settings


def _digest(settings: Any) -> str:
    from omegaconf import OmegaConf

    text = OmegaConf.to_yaml(settings, resolve=True, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _instantiate(settings: Any, path: Path) -> SAM2VideoPredictor:
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate
    from omegaconf.errors import OmegaConfBaseException

    try:
        return instantiate(settings, _recursive_=True)
    except (InstantiationException, OmegaConfBaseException) as error:
        raise InputError(
            f"configuration {path} can't be built ({str(error).splitlines()[0]}); expected a sam2 model "
            "configuration; compare it with sam2's own"
        ) from error


def fingerprint(model: torch.nn.Module) -> str:
    """Return ``"sha256:…"`` over the names, shapes, types and bytes of all weights, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return f"sha256:{digest.hexdigest()}"


# Files that everything here is built on, as they are in sam2 1.1.0. Other packages (rf-sam-2, EdgeTAM)
# install a top-level `sam2` of their own.
_SAM2_FILES = {
    "sam2_video_predictor.py": "912555920a77f72ded07839efa33fcceecc79f3523abbec783f0be46ee2c55c2",
    "modeling/sam2_base.py": "69a46b44e8625f509791352bd09beaafe589cd7d872721384e63d37f9fdc6e41",
    "modeling/sam/transformer.py": "cda19052331e775190ce8b1159efcb828a4632d931a6d8bd4d47109f121782f1",
    "modeling/backbones/hieradet.py": "03785581ca304d0451ae0df7a08ee0bf1e1dbe66fad285066e6b9ffc0d88d64f",
}


def check_sam2() -> None:
    """Refuse a top-level ``sam2`` that isn't the expected package.

    Raises
    ------
    InputError
        sam2 is absent, or one of its files differs from sam2 1.1.0.
    """
    advice = "use an environment of its own and install sam2==1.1.0 there"
    spec = find_spec("sam2")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"no package sam2 is installed; expected sam2 1.1.0; {advice}")
    folder = Path(next(iter(spec.submodule_search_locations)))
    for name, expected in _SAM2_FILES.items():
        file = folder / name
        found = file.read_bytes().replace(b"\r\n", b"\n") if file.is_file() else b""
        if hashlib.sha256(found).hexdigest() != expected:
            owners = " and ".join(sorted(set(packages_distributions().get("sam2", [])))) or folder
            raise InputError(
                f"the installed sam2 (from {owners}) is another one, its {name} differs; expected "
                f"sam2 1.1.0 unmodified; {advice}"
            )


def _sam2_folder() -> Path:
    """Folder of the installed package, once `check_sam2` has found it."""
    spec = find_spec("sam2")
    assert spec is not None and spec.submodule_search_locations, "check_sam2 found it"
    return Path(next(iter(spec.submodule_search_locations)))
