"""Runs of stock and accelerated predictors that can be compared."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import sparsity.demo
from probes import build_predictor
from sparsity import accelerate
from sparsity.acceleration.report import FrameReport, Report
from sparsity.profile import Profile, load_profile
from sparsity.techniques import KEY
from sparsity.techniques.retrieval import Retrieval
from sparsity.techniques.routing import Routing
from tests import conftest as whole

LONG = 9
"""Frames: enough for a full memory bank and two frames with it."""

FULL = LONG - 2
"""A frame with a full memory bank, and another one after it."""

MOVED = (-16, -13)
"""Rows and columns by which pictures are rolled, so that the object lies in four of nine windows."""


def make_frames(frames: int) -> np.ndarray:
    """Return a clip uint8 [T, H, W, 3]."""
    return np.roll(whole.make_frames(frames), MOVED, (1, 2))


def make_mask(t: int = 0) -> np.ndarray:
    """Return where the object is on frame t, bool [H, W]."""
    return np.roll(whole.make_mask(t), MOVED, (0, 1))


@dataclass(frozen=True)
class Prompt:
    """A mask, clicks or a box for one object on one frame."""

    frame: int = 0
    object_id: int = 1
    mask: np.ndarray | None = None
    points: tuple[tuple[float, float], ...] = ()
    box: tuple[float, float, float, float] | None = None

    def give(self, predictor: Any, state: dict[str, Any]) -> None:
        """Give it to a predictor."""
        if self.mask is not None:
            predictor.add_new_mask(state, self.frame, self.object_id, self.mask)
        else:
            points = np.array(self.points, np.float32).reshape(-1, 2)
            labels = np.ones(len(points), np.int32)
            predictor.add_new_points_or_box(
                state, self.frame, self.object_id, points=points if len(points) else None,
                labels=labels if len(points) else None, box=self.box,
            )  # fmt: skip


def part_of_mask(part: int) -> np.ndarray:
    """Halves and quarters of the ellipse, so that several objects are there."""
    found = make_mask()
    rows, columns = np.indices(found.shape)
    below, right = rows >= 32, columns >= 38
    return found & {0: ~below, 1: below & right, 2: below & ~right}[part]


PROMPTS: dict[str, tuple[Prompt, ...]] = {
    "mask": (Prompt(mask=make_mask()),),
    "point": (Prompt(points=((38, 32),)),),
    "box": (Prompt(box=(7, 2, 71, 62)),),
    "three objects": tuple(Prompt(0, i + 1, part_of_mask(i)) for i in range(3)),
}

FEWER = {"point": 4, "box": 4}
"""Frames that are tracked from prompts which differ from a mask on their own frame alone."""


@dataclass(frozen=True)
class Run:
    """Mask logits by frame, and the state they came from."""

    logits: dict[int, torch.Tensor]
    state: dict[str, Any]

    @property
    def report(self) -> Report:
        """What an accelerated predictor says of it."""
        found: Report = self.state[KEY].report
        return found

    def equal(self, other: Run, frames: int | None = None) -> bool:
        """Whether all logits are the same, bit for bit; or those of the first frames."""
        mine, others = (list(run.logits)[:frames] for run in (self, other))
        return mine == others and all(
            torch.equal(self.logits[frame], other.logits[frame]) for frame in mine
        )

    def resumed(self) -> dict[str, Any]:
        """A copy of the state, to be tracked on."""
        return copy.deepcopy(self.state)


def track(
    predictor: Any, source: Any, prompts: tuple[Prompt, ...], frames: int | None = None
) -> Run:
    """Give prompts and track the whole clip, or the first frames of it."""
    state = predictor.init_state(source)
    for prompt in prompts:
        prompt.give(predictor, state)
    most = None if frames is None else frames - 1
    return Run(run(predictor, state, max_frame_num_to_track=most), state)


def run(predictor: Any, state: dict[str, Any], **options: Any) -> dict[int, torch.Tensor]:
    """Propagate to the end."""
    return {f: values.clone() for f, _, values in predictor.propagate_in_video(state, **options)}


class Runs:
    """Runs of the whole clip, each made once a session.

    Nobody may change them: what tracks on from one takes a copy of its state (`Run.resumed`).
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._made: dict[Any, tuple[Any, Run]] = {}

    def __call__(
        self,
        stock: Any,
        kind: str = "mask",
        profile: Profile | str | None = None,
        half: bool = False,
    ) -> Run:
        """A run from a kind of prompt: stock's, or under a profile; `half` is bfloat16 autocast."""
        profile = None if profile is None else load_profile(profile)
        key = id(stock), kind, profile and profile.to_json(), half
        if key not in self._made:
            predictor = stock if profile is None else accelerate(stock, profile)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                made = track(predictor, self.source, PROMPTS[kind], FEWER.get(kind))
            self._made[key] = stock, made
        return self._made[key][1]


@pytest.fixture(scope="session")
def long_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A clip of 9 frames as a folder of JPEG files; a string, as stock wants it."""
    folder = tmp_path_factory.mktemp("long")
    for t, frame in enumerate(make_frames(LONG)):
        Image.fromarray(frame).save(folder / f"{t:05d}.jpg", quality=92)
    return str(folder)


@pytest.fixture(scope="session")
def runs(long_folder: str) -> Runs:
    """Runs of `long_folder`."""
    return Runs(long_folder)


@pytest.fixture(scope="session")
def demo_predictor() -> Any:
    """The trained demo model: 3 x 3 windows in stage 3, no padding; it tracks from any prompt."""
    return build_predictor("demo", image_size=192, device="cpu")


@pytest.fixture(scope="session")
def small_demo() -> Any:
    """The demo model at 128 pixels, 2 x 2 windows: for bfloat16, which takes many times as long on most CPUs."""
    return build_predictor("demo", image_size=128, device="cpu")


@pytest.fixture(scope="session")
def tiny_demo() -> Any:
    """The demo model at 64 pixels, a single window: where nothing is left out."""
    return build_predictor("demo", image_size=64, device="cpu")


@pytest.fixture
def own_demo(demo_predictor: Any) -> Any:
    """A demo model of the test's own, to be changed."""
    return copy.deepcopy(demo_predictor)


@pytest.fixture(scope="session")
def padded_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configuration of a small model whose windows do not divide its grid, like Tiny's: 2 x 2 in stage 3, with padding."""
    settings = OmegaConf.load(Path(sparsity.demo.__file__).parent / "config.yaml")
    trunk = settings.model.image_encoder.trunk
    trunk.embed_dim = 24
    trunk.window_spec = [8, 4, 6, 3]
    settings.model.image_encoder.neck.backbone_channel_list = [192, 96, 48, 24]
    path = tmp_path_factory.mktemp("config") / "padded.yaml"
    OmegaConf.save(settings, path)
    return path


@pytest.fixture(scope="session")
def padded_predictor(padded_file: Path) -> Any:
    """The model of `padded_file`, with random weights."""
    return build_predictor(config=padded_file, weights="random", image_size=128, device="cpu")


@pytest.fixture(params=["padded", "dividing"])
def stock(request: pytest.FixtureRequest) -> Any:
    """Stock predictors of both geometries: with windows that are padded, and the demo model."""
    name = {"padded": "padded_predictor", "dividing": "demo_predictor"}[request.param]
    return request.getfixturevalue(name)


@pytest.fixture
def fast(demo_predictor: Any) -> Any:
    """The demo model under the paper's profile."""
    return accelerate(demo_predictor, "paper")


def step(predictor: Any, state: dict[str, Any], frame: int) -> torch.Tensor:
    """Track one frame from what the state remembers, features computed anew: low-resolution logits ``[O, h, w]``."""
    if KEY in state:
        state[KEY].features = None  # those of more windows would serve
    state["cached_features"].clear()
    for _ in predictor.propagate_in_video(state, frame, max_frame_num_to_track=0):
        pass
    results = state["output_dict_per_obj"].values()
    return torch.cat([out["non_cond_frame_outputs"][frame]["pred_masks"][0] for out in results])


def encoded(state: dict[str, Any]) -> list[torch.Tensor]:
    """Feature levels that an accelerated predictor computed last, fine to coarse."""
    routed = state[KEY].features
    if routed is not None:
        return routed.output["backbone_fpn"]
    ((_, dense),) = state["cached_features"].values()
    return dense["backbone_fpn"]


def off_by(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max())


def other_pixels(run: Run, expected: Run) -> float:
    """Share of mask pixels that differ."""
    pairs = [(run.logits[f] > 0, expected.logits[f] > 0) for f in expected.logits]
    return float(torch.stack([(a != b).float().mean() for a, b in pairs]).mean())


def everything_kept() -> Profile:
    """Routing and pruning run, but nothing is left out."""
    return Profile(
        name="everything", routing=Routing(margin_px=10_000), retrieval=Retrieval(keep=1.0)
    )


def last(predictor: Any, state: dict[str, Any]) -> FrameReport:
    """The report of the frame that was tracked last."""
    return predictor.report(state).frames[-1]


def pruned_objects(report: FrameReport) -> set[int]:
    """Objects whose memory was read in part."""
    return {i for i, item in report.objects.items() if item.pruned_frames > 0}
