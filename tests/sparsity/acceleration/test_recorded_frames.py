"""Tracked frames whose parts are CUDA graphs, recorded on a CPU by a tape that knows as little as a graph does.

Warnings are errors here, so what passes without one was recorded.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from probes import build_predictor, observe
from probes.sites import attention_sites
from sparsity import accelerate
from sparsity.acceleration.model import graphs
from sparsity.acceleration.model.encoder import window_grid
from sparsity.acceleration.model.graphs import Graphs
from sparsity.acceleration.session import Chosen
from sparsity.profile import BUILTIN, Profile, further_profiles
from sparsity.techniques import KEY
from sparsity.techniques.routing import Decision
from sparsity.techniques.select import WindowGrid
from tests.sparsity.acceleration.conftest import Prompt, make_frames, part_of_mask, step
from tests.sparsity.acceleration.tape import Tapes

FRAMES, SOME = 6, 4
"""Frames of a clip, and those after which every kind of call has come."""

BLACK = 4
"""Frame of `THIS` that shows nothing."""

PAIRS = ((0, 1), (2, 3), (0, 2), (1, 3), (0, 3), (1, 2))
"""Which of four windows are computed on frames that are routed: as many on each, and others."""

ALWAYS = {"mask decoder", "memory encoder", "memory attention", "encoder"}
"""Parts of every frame that are recorded."""


def small(size: int) -> Any:
    """The demo model with a memory of two frames beside the prompt's, which is full on the third frame."""
    stock = build_predictor("demo", image_size=size, device="cpu")
    stock.num_maskmem = stock.max_obj_ptrs_in_encoder = 3
    return stock


@pytest.fixture(scope="module")
def demo() -> Callable[[int], Any]:
    """Small models by image size: 2 x 2 windows at 128 pixels, 3 x 3 at 160, where those at two edges are padded."""
    made: dict[int, Any] = {}

    def of(size: int) -> Any:
        if size not in made:
            made[size] = small(size)
        return made[size]

    return of


def in_full(profile: Profile) -> Profile:
    """The same with more that changes from frame to frame: rows that are sampled, and how much masks changed."""
    if profile.retrieval is None:
        return profile
    retrieval = profile.retrieval.model_copy(update={"queries": 16})
    guard = profile.guard.model_copy(update={"mask_jump": 1.0})
    return profile.model_copy(update={"retrieval": retrieval, "guard": guard})


PROFILES = {
    profile.name: in_full(profile)
    for profile in (BUILTIN["exact"], BUILTIN["paper"], *further_profiles())
}


def plainly(profile: Profile) -> Profile:
    """The same profile without graphs."""
    return profile.model_copy(update={"graphs": False})


@dataclass
class Parts:
    """Calls of the parts of tracked frames that graphs were asked for, and replays among them, by part."""

    tapes: Tapes = field(default_factory=Tapes)
    called: Counter[str] = field(default_factory=Counter)
    replayed: Counter[str] = field(default_factory=Counter)

    def forget(self) -> None:
        """Count from now on."""
        self.called.clear()
        self.replayed.clear()


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Parts:
    """Record the parts of frames on the CPU."""
    found, run = Parts(), Graphs.run

    def counted(graphs: Graphs, kind: Any, *rest: Any) -> Any:
        before = found.tapes.replayed
        made = run(graphs, kind, *rest)
        (part, *_), _ = kind
        found.called[part] += 1
        found.replayed[part] += found.tapes.replayed - before
        return made

    monkeypatch.setattr(Graphs, "run", counted)
    monkeypatch.setattr(graphs, "DEVICES", ("cpu",))
    monkeypatch.setattr(graphs, "can_record", lambda: True)
    monkeypatch.setattr(graphs, "record", found.tapes.record)
    return found


@dataclass(frozen=True)
class Clip:
    """Frames, masks of the objects on the first one, and the pair of windows that routing begins with."""

    frames: np.ndarray
    masks: tuple[np.ndarray, ...]
    first: int

    def chosen(self, frame: int, grid: WindowGrid, trimmed: bool) -> Chosen:
        """Windows of a frame, of as many tokens on each; trimmed by one cell each, another one on every frame."""
        if frame < 2:
            return None
        four = (0, 1, 2, 3) if grid.side == 2 else (2, 5, 6, 7)
        windows = tuple(four[i] for i in PAIRS[(self.first + frame) % len(PAIRS)])
        if not trimmed:
            return windows
        of_cell, cells = grid.window_of_cell, list[int]()
        for window in windows:
            own = torch.nonzero(of_cell == window)[:, 0].tolist()
            own.pop(frame % len(own))
            cells += own
        return Decision(tuple(sorted(cells)), "given")


def with_a_black_frame(frames: np.ndarray) -> np.ndarray:
    """The same without anything to see on frame `BLACK`, where objects are lost."""
    return np.where(np.arange(len(frames))[:, None, None, None] == BLACK, 0, frames)


THIS = Clip(with_a_black_frame(make_frames(FRAMES)), (part_of_mask(0), part_of_mask(1)), 0)

OTHER = Clip(  # backwards and mirrored
    make_frames(FRAMES)[::-1, :, ::-1].copy(),
    (part_of_mask(1)[:, ::-1].copy(), part_of_mask(2)[:, ::-1].copy()),
    3,
)

Found = tuple[Tensor, ...]
"""Masks of a frame, and what they say about windows of the next one."""


def run(
    predictor: Any, clip: Clip, objects: int = 1, frames: int = SOME, autocast: bool = False
) -> list[Found]:
    """Track the first objects of a clip."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        state = predictor.init_state(clip.frames)
        routing = predictor.profile.routing
        if routing is not None:
            grid, trimmed = window_grid(predictor), routing.unit == "cell"
            predictor.choose_windows(state, lambda f: clip.chosen(f, grid, trimmed))
        for i, mask in enumerate(clip.masks[:objects]):
            Prompt(object_id=i + 1, mask=mask).give(predictor, state)
        tracked = predictor.propagate_in_video(state, max_frame_num_to_track=frames - 1)
        return [(masks.clone(), *cues_of(state, frame)) for frame, _, masks in tracked]


def cues_of(state: dict[str, Any], frame: int) -> Iterator[Tensor]:
    """What each object's result on a frame says about windows, where they are routed."""
    for results in state["output_dict_per_obj"].values():
        out = results["non_cond_frame_outputs"].get(frame, {})
        cues, _ = out.get(KEY, {}).get("routing", (None, None))
        if cues is not None:
            assert cues.mass is not None, "decoded"
            yield from (cues.touched, cues.mass, torch.tensor([cues.score, cues.jump]))


def same(found: list[Found], expected: list[Found]) -> bool:
    """Whether two runs found the same, bit for bit."""
    return [len(frame) for frame in found] == [len(frame) for frame in expected] and all(
        torch.equal(a, b)
        for frames in zip(found, expected, strict=True)
        for a, b in zip(*frames, strict=True)
    )


def parts_of(profile: Profile) -> set[str]:
    """Parts of a profile's frames that are recorded."""
    return ALWAYS if profile.routing is None else ALWAYS | {"cues"}


class Case(NamedTuple):
    """A profile, and how it is run."""

    profile: str
    objects: int = 1
    autocast: bool = False
    size: int = 128


AT_EDGES = ("+ trimmed windows", "+ stage 4 reused", "+ early stages reused")
"""Profiles that are run on padded windows with one object."""

CASES = (
    *(Case(name, size=160 if name in AT_EDGES else 128) for name in PROFILES),
    *(Case(name, autocast=True) for name in ("exact", "recommended")),
    Case("paper", objects=2, size=160),
    Case("recommended", objects=2),
)


@pytest.mark.parametrize(
    "case", CASES, ids=lambda c: f"{c.profile}, {c.objects} at {c.size}{', autocast' * c.autocast}"
)
def test_replayed_frames_are_the_same_bit_for_bit(
    demo: Callable[[int], Any], parts: Parts, case: Case
) -> None:
    """All kinds of calls come in the first two runs, of unlike clips; those of the last run are replays."""
    stock, profile = demo(case.size), PROFILES[case.profile]
    track = partial(run, objects=case.objects, autocast=case.autocast)
    expected = track(accelerate(stock, plainly(profile)), THIS, frames=FRAMES)
    assert not parts.called
    fast = accelerate(stock, profile)
    for clip in (THIS, OTHER):
        unlike = track(fast, clip)
    parts.forget()
    assert same(track(fast, THIS, frames=FRAMES), expected)
    if (
        profile.routing is not None and profile.routing.every > 1
    ):  # frames that carry over encode nothing
        assert 0 < parts.replayed["encoder"] == parts.called["encoder"] < FRAMES - 1
    else:
        assert parts.replayed == parts.called
        assert dict(parts.called) == dict.fromkeys(parts_of(profile), FRAMES - 1)
    there = [frame for frame, (masks, *_) in enumerate(expected) if bool((masks > 0).any())]
    assert {*range(FRAMES)} - {BLACK, BLACK + 1} <= {*there}
    assert BLACK not in there or case.profile not in ("exact", "paper")
    all_masks = [masks for masks, *_ in (*unlike, *(expected[frame] for frame in there))]
    assert not any(torch.equal(a, b) for a, b in combinations(all_masks, 2))


def test_profiles_and_number_formats_in_turn(demo: Callable[[int], Any], parts: Parts) -> None:
    """One predictor doesn't take a call of one profile for a call of another."""
    paper = PROFILES["paper"]
    turns = [(paper, True), (paper, False)]
    turns += [(paper.model_copy(update={"exact": False}), False)]
    turns += [(PROFILES["+ last block reused"], False)]
    fast = accelerate(demo(128), "dense")
    found: dict[int, list[Found]] = {}
    for clip in (OTHER, OTHER, THIS):
        parts.forget()
        for i, (profile, autocast) in enumerate(turns):
            with fast.use(profile):
                found[i] = run(fast, clip, frames=3, autocast=autocast)
    assert parts.replayed == parts.called
    assert set(parts.replayed) == parts_of(paper)
    expected = []
    for profile, autocast in turns:
        plain = accelerate(demo(128), plainly(profile))
        expected.append(run(plain, THIS, frames=3, autocast=autocast))
    assert all(same(found[i], masks) for i, masks in enumerate(expected))
    assert not any(same(a, b) for a, b in zip(expected, expected[1:], strict=False))


def test_weights_that_change_are_taken_over(parts: Parts) -> None:
    stock = small(128)
    fast = accelerate(stock, "paper")
    state = fast.init_state(THIS.frames)
    Prompt(mask=THIS.masks[0]).give(fast, state)
    list(fast.propagate_in_video(state, max_frame_num_to_track=3))

    def tracked(predictor: Any) -> Found:
        """Masks and memory of a frame that is tracked once more."""
        masks = step(predictor, state, 3)
        (results,) = state["output_dict_per_obj"].values()
        return masks, results["non_cond_frame_outputs"][3]["maskmem_features"]

    for _ in range(3):
        parts.forget()
        before = tracked(fast)
    assert parts.replayed == parts.called and set(parts.called) == parts_of(fast.profile)
    for weight in (
        stock.image_encoder.trunk.blocks[0].attn.qkv.weight,
        stock.memory_attention.layers[1].linear2.weight,
        stock.sam_mask_decoder.transformer.layers[0].mlp.layers[0].weight,
        stock.memory_encoder.fuser.layers[0].pwconv1.weight,
    ):
        with torch.no_grad():
            weight.add_(weight, alpha=0.5)
        found = [tracked(fast) for _ in range(3)]
        expected = tracked(accelerate(stock, plainly(BUILTIN["paper"])))
        assert same(found, [expected] * 3)
        assert not torch.equal(expected[1], before[1])
        before = expected


def test_settings_of_the_model_that_change_are_followed(
    demo: Callable[[int], Any], parts: Parts
) -> None:
    def changed(predictor: Any) -> Any:
        predictor.sigmoid_scale_for_mem_enc = 3.0
        predictor.sam_mask_decoder.dynamic_multimask_stability_thresh = 0.5
        return predictor

    fast = accelerate(demo(128), "exact")
    for _ in range(3):
        before = run(fast, THIS, frames=3)
    plain = changed(accelerate(demo(128), plainly(BUILTIN["exact"])))
    expected = run(plain, THIS, frames=3)
    assert not same(expected, before)
    assert all(same(run(changed(fast), THIS, frames=3), expected) for _ in range(3))


def test_observed_frames_run_operation_by_operation(
    demo: Callable[[int], Any], parts: Parts
) -> None:
    fast = accelerate(demo(128), PROFILES["paper"])
    for _ in range(3):
        parts.forget()
        expected = run(fast, THIS)
    replayed = dict(parts.replayed)
    assert set(replayed) == parts_of(fast.profile)
    parts.forget()
    seen = Counter[str]()
    with observe(fast, lambda call: seen.update([call.site]), "*"):
        assert same(run(fast, THIS), expected)
    assert not parts.called
    assert set(seen) == {site.name for site in attention_sites(fast)}
    assert seen["memory.layer0.cross"] == SOME - 1
    assert same(run(fast, THIS), expected)
    assert parts.replayed == replayed and seen["memory.layer0.cross"] == SOME - 1


@pytest.mark.parametrize(
    "profile", [BUILTIN["dense"], plainly(BUILTIN["recommended"])], ids=lambda p: p.name
)
def test_nothing_is_recorded_where_graphs_are_off(
    demo: Callable[[int], Any], parts: Parts, profile: Profile
) -> None:
    fast = accelerate(demo(128), profile)
    for _ in range(3):
        run(fast, THIS, frames=2)
    assert not parts.called and parts.tapes.recorded == 0
    with fast.use(BUILTIN["exact"]):
        run(fast, THIS, frames=2)
    assert parts.called


def test_frames_with_prompts_are_not_recorded(demo: Callable[[int], Any], parts: Parts) -> None:
    fast = accelerate(demo(128), BUILTIN["exact"])
    prompts = (
        Prompt(mask=THIS.masks[0]),
        Prompt(1, points=((38, 32),)),
        Prompt(2, box=(7, 2, 71, 62)),
    )
    for _ in range(3):
        state = fast.init_state(THIS.frames)
        for prompt in prompts:
            prompt.give(fast, state)
        assert len(list(fast.propagate_in_video(state, max_frame_num_to_track=2))) == 3
    assert not parts.called and parts.tapes.recorded == 0
    list(fast.propagate_in_video(state, 3, max_frame_num_to_track=0))
    assert set(parts.called) == parts_of(fast.profile)


def test_a_copy_records_anew(demo: Callable[[int], Any], parts: Parts) -> None:
    fast = accelerate(demo(128), PROFILES["paper"])
    for _ in range(2):
        expected = run(fast, THIS, frames=3)
    recorded = parts.tapes.recorded
    other = copy.deepcopy(fast)
    for _ in range(2):
        assert same(run(other, THIS, frames=3), expected)
    assert parts.tapes.recorded == 2 * recorded > 0
    parts.forget()
    assert same(run(other, THIS, frames=3), expected) and same(run(fast, THIS, frames=3), expected)
    assert parts.replayed == parts.called and parts.tapes.recorded == 2 * recorded


def test_frames_that_are_encoded_in_one_batch_are_recorded(parts: Parts, demo: Any) -> None:
    """Those of two cameras together, as one call."""

    def masks(profile: Profile) -> list[Tensor]:
        fast = accelerate(demo(128), profile)
        cameras = [fast.camera(THIS.frames.shape[1:3]) for _ in range(2)]
        for camera, clip in zip(cameras, (THIS, OTHER), strict=True):
            camera.prompt(1, mask=clip.masks[0])
        found = []
        for pictures in zip(THIS.frames[:5], OTHER.frames[:5], strict=True):
            tracked = fast.track_cameras(dict(zip(cameras, pictures, strict=True)))
            found += [tracked[camera][1] for camera in cameras]
        return found

    expected = masks(plainly(PROFILES["exact"]))
    assert not parts.called
    found = masks(PROFILES["exact"])
    assert (parts.called["encoder"], parts.replayed["encoder"]) == (5, 4)
    assert all(map(torch.equal, found, expected)) and not torch.equal(found[8], found[9])
