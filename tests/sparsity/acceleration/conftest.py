"""Runs of stock and accelerated predictors that can be compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from probes import build_predictor
from sparsity import accelerate
from sparsity.acceleration.report import FrameReport
from sparsity.acceleration.session import KEY
from sparsity.profile import Memory, Profile, Windows
from tests.conftest import make_frames, make_mask

LONG = 12
"""Frames: enough for a full memory bank and three frames after it."""


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
    whole = make_mask()
    rows, columns = np.indices(whole.shape)
    below, right = rows >= whole.shape[0] // 2, columns >= int(0.4 * whole.shape[1])
    return whole & {0: ~below, 1: below & right, 2: below & ~right}[part]


PROMPTS: dict[str, tuple[Prompt, ...]] = {
    "mask": (Prompt(mask=make_mask()),),
    "point": (Prompt(points=((51, 48),)),),
    "box": (Prompt(box=(20, 18, 84, 78)),),
    "three objects": tuple(Prompt(0, i + 1, part_of_mask(i)) for i in range(3)),
}


def track(predictor: Any, source: Any, prompts: tuple[Prompt, ...], **options: Any) -> Run:
    """Give prompts and track the whole clip.

    Prompts on several frames are run in bfloat16: stock in float32 fails on the frames before an object's
    first prompt, where it has no pointer (memory is bfloat16, the weights are not).
    """
    several = len({prompt.frame for prompt in prompts}) > 1
    with torch.autocast("cpu", torch.bfloat16, enabled=several or torch.is_autocast_enabled("cpu")):
        state = predictor.init_state(source)
        for prompt in prompts:
            prompt.give(predictor, state)
        logits = {
            frame: values.clone()
            for frame, _, values in predictor.propagate_in_video(state, **options)
        }
    return Run(logits, state)


@dataclass(frozen=True)
class Run:
    """Mask logits by frame, and the state they came from."""

    logits: dict[int, torch.Tensor]
    state: dict[str, Any]

    def equal(self, other: Run) -> bool:
        """Whether all logits are the same, bit for bit."""
        return list(self.logits) == list(other.logits) and all(
            torch.equal(values, other.logits[frame]) for frame, values in self.logits.items()
        )


@pytest.fixture(scope="session")
def long_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A clip of 12 frames as a folder of JPEG files; a string, as stock wants it."""
    folder = tmp_path_factory.mktemp("long")
    for t, frame in enumerate(make_frames(LONG)):
        Image.fromarray(frame).save(folder / f"{t:05d}.jpg", quality=92)
    return str(folder)


@pytest.fixture(scope="session")
def demo_predictor() -> Any:
    """The trained demo model: 4 x 4 windows in stage 3, no padding; it tracks from any prompt."""
    return build_predictor("demo", image_size=256, device="cpu")


@pytest.fixture(params=["padded", "dividing"])
def stock(request: pytest.FixtureRequest) -> Any:
    """Stock predictors of both geometries: SAM 2.1 Tiny with random weights, and the demo model."""
    name = {"padded": "tiny_predictor", "dividing": "demo_predictor"}[request.param]
    return request.getfixturevalue(name)


def step(predictor: Any, state: dict[str, Any], frame: int) -> torch.Tensor:
    """Track one frame from what the state remembers, features computed anew: low-resolution logits ``[O, h, w]``."""
    if KEY in state:
        state[KEY].features = None  # those of more windows would serve
    for _ in predictor.propagate_in_video(state, frame, max_frame_num_to_track=0):
        pass
    results = state["output_dict_per_obj"].values()
    return torch.cat([out["non_cond_frame_outputs"][frame]["pred_masks"][0] for out in results])


def encoded(state: dict[str, Any]) -> list[torch.Tensor]:
    """Feature levels that an accelerated predictor computed last, fine to coarse."""
    return state[KEY].features.output["backbone_fpn"]


def off_by(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max())


def other_pixels(run: Run, expected: Run) -> float:
    """Share of mask pixels that differ."""
    pairs = [(run.logits[f] > 0, expected.logits[f] > 0) for f in expected.logits]
    return float(torch.stack([(a != b).float().mean() for a, b in pairs]).mean())


StockRuns = Callable[[Any, str], Run]


@pytest.fixture(scope="session")
def stock_runs(long_folder: str) -> StockRuns:
    """Stock's run of a kind of prompt, made once a session."""
    made: dict[tuple[int, str], Run] = {}

    def run(predictor: Any, kind: str) -> Run:
        key = id(predictor), kind
        if key not in made:
            made[key] = track(predictor, long_folder, PROMPTS[kind])
        return made[key]

    return run


@pytest.fixture
def shortcut_folder(tmp_path: Path) -> Path:
    """A place for shortcut files."""
    folder = tmp_path / "shortcuts"
    folder.mkdir()
    return folder


@pytest.fixture
def fast(demo_predictor: Any) -> Any:
    """The demo model under the paper's profile."""
    return accelerate(demo_predictor, "paper")


def everything_kept() -> Profile:
    """Routing and pruning run, but nothing is left out."""
    return Profile(name="everything", windows=Windows(margin_px=10_000), memory=Memory(keep=1.0))


def last(predictor: Any, state: dict[str, Any]) -> FrameReport:
    """The report of the frame that was tracked last."""
    return predictor.report(state).frames[-1]


def run(predictor: Any, state: dict[str, Any], **options: Any) -> dict[int, torch.Tensor]:
    """Propagate to the end."""
    return {f: values.clone() for f, _, values in predictor.propagate_in_video(state, **options)}


def pruned_objects(report: FrameReport) -> set[int]:
    """Objects whose memory was read in part."""
    return {i for i, item in report.objects.items() if item.pruned_frames > 0}
