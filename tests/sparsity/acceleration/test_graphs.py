"""CUDA graphs, recorded on a CPU by a tape that knows as little as a graph does.

Warnings are errors here, so what passes without one was recorded.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from probes import build_predictor, observe
from probes.sites import attention_sites
from sparsity import accelerate
from sparsity.acceleration import graphs
from sparsity.acceleration.encoder import window_grid
from sparsity.acceleration.graphs import Graphs
from sparsity.acceleration.session import KEY, Chosen
from sparsity.profile import Profile
from sparsity.profiles import BUILTIN
from sparsity.routing import Decision
from sparsity.select import WindowGrid
from sparsity.techniques import further_profiles
from tests.conftest import make_frames
from tests.sparsity.acceleration.conftest import Prompt, part_of_mask, step
from tests.sparsity.acceleration.tape import Tapes

CPU = torch.device("cpu")

FRAMES, SOME = 7, 4
"""Frames of a clip, and those after which every kind of call has come."""

BLACK = 5
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
    if profile.memory is None:
        return profile
    memory = profile.memory.model_copy(update={"queries": 16})
    guard = profile.guard.model_copy(update={"mask_jump": 1.0})
    return profile.model_copy(update={"memory": memory, "guard": guard})


PROFILES = {
    profile.name: in_full(profile)
    for profile in (BUILTIN["exact"], BUILTIN["paper"], *further_profiles())
}


def without(technique: str, profile: Profile) -> Profile:
    """The same profile with an exact technique off."""
    return profile.model_copy(update={"techniques": {**profile.techniques, technique: False}})


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
    monkeypatch.setattr(graphs, "can_record", lambda device: True)
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
        return Decision(windows, "given", tuple(sorted(cells)))


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
    predictor: Any, clip: Clip, objects: int = 1, frames: int = SOME, autocast: bool = True
) -> list[Found]:
    """Track the first objects of a clip."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        state = predictor.init_state(clip.frames)
        windows = predictor.profile.windows
        if windows is not None:
            grid = window_grid(predictor)
            predictor.choose_windows(state, lambda f: clip.chosen(f, grid, windows.trimmed))
        for i, mask in enumerate(clip.masks[:objects]):
            Prompt(object_id=i + 1, mask=mask).give(predictor, state)
        tracked = predictor.propagate_in_video(state, max_frame_num_to_track=frames - 1)
        return [(masks.clone(), *cues_of(state, frame)) for frame, _, masks in tracked]


def cues_of(state: dict[str, Any], frame: int) -> Iterator[Tensor]:
    """What each object's result on a frame says about windows, where they are routed."""
    for results in state["output_dict_per_obj"].values():
        out = results["non_cond_frame_outputs"].get(frame)
        cues = None if out is None else out[KEY].cues
        if cues is not None:
            assert cues.mass is not None, "decoded"
            yield from (cues.touched, cues.mass, torch.tensor([cues.score, cues.jump]))
            if cues.cells is not None:
                yield cues.cells


def same(found: list[Found], expected: list[Found]) -> bool:
    """Whether two runs found the same, bit for bit."""
    return [len(frame) for frame in found] == [len(frame) for frame in expected] and all(
        torch.equal(a, b)
        for frames in zip(found, expected, strict=True)
        for a, b in zip(*frames, strict=True)
    )


def parts_of(profile: Profile) -> set[str]:
    """Parts of a profile's frames that are recorded."""
    return ALWAYS if profile.windows is None else ALWAYS | {"cues"}


class Case(NamedTuple):
    """A profile, and how it is run."""

    profile: str
    objects: int = 1
    autocast: bool = True
    size: int = 128


AT_EDGES = ("+ trimmed windows", "+ stage 4 reused", "+ early stages reused")
"""Profiles that are run on padded windows with one object."""

CASES = (
    *(Case(name, size=160 if name in AT_EDGES else 128) for name in PROFILES),
    Case("paper", objects=2, autocast=False, size=160),
    Case("recommended", objects=2, autocast=False),
)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.profile}, {c.objects} at {c.size}")
def test_replayed_frames_are_the_same_bit_for_bit(
    demo: Callable[[int], Any], parts: Parts, case: Case
) -> None:
    """All kinds of calls come in the first two runs, of unlike clips; those of the last run are replays."""
    stock, profile = demo(case.size), PROFILES[case.profile]
    track = partial(run, objects=case.objects, autocast=case.autocast)
    expected = track(accelerate(stock, without("cuda_graphs", profile)), THIS, frames=FRAMES)
    assert not parts.called
    fast = accelerate(stock, profile)
    for clip in (THIS, OTHER):
        unlike = track(fast, clip)
    parts.forget()
    assert same(track(fast, THIS, frames=FRAMES), expected)
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
    turns += [(without("memory_encoder", paper), True), (PROFILES["+ pooled background"], True)]
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
        plain = accelerate(demo(128), without("cuda_graphs", profile))
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
        expected = tracked(accelerate(stock, without("cuda_graphs", BUILTIN["paper"])))
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
    plain = changed(accelerate(demo(128), without("cuda_graphs", BUILTIN["exact"])))
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
    "profile",
    [BUILTIN["dense"], without("cuda_graphs", BUILTIN["recommended"])],
    ids=lambda p: p.name,
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
        Prompt(1, points=((51, 48),)),
        Prompt(2, box=(20, 18, 84, 78)),
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


# ------------------------------------------------------------------ calls of any function


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> Tapes:
    """Record functions on the CPU."""
    found = Tapes()
    monkeypatch.setattr(graphs, "record", found.record)
    return found


class Doubling:
    """Doubles all that it is given and counts how often it runs."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, given: Any) -> Any:
        self.runs += 1
        return graphs.mapped(given, lambda tensor: tensor * 2)


def numbers(*size: int, seed: int = 0) -> Tensor:
    """Random numbers, the same for the same seed."""
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def test_the_second_call_is_recorded_and_later_ones_do_not_run_the_function(tapes: Tapes) -> None:
    known, double = Graphs(), Doubling()
    counts = []
    for seed in range(4):
        x = numbers(3, seed=seed)
        assert torch.equal(known.run("double", double, x, CPU), x * 2)
        counts.append((double.runs, known.recorded, tapes.recorded, tapes.replayed))
    assert counts == [(1, 0, 0, 0), (2, 1, 1, 1), (2, 1, 1, 2), (2, 1, 1, 3)]


def test_all_else_is_as_it_was_when_recorded(tapes: Tapes) -> None:
    """A number and a tensor that took another's place are not seen; a tensor that changed in place is."""
    known, number, held = Graphs(), 1.0, {"other": torch.ones(2), "same": torch.zeros(2)}

    def function(x: Tensor) -> Tensor:
        return x * number + held["other"] + held["same"]

    x = torch.ones(2)
    for _ in range(3):
        assert torch.equal(known.run("function", function, x, CPU), x + 1)
    number, held["other"] = 10.0, torch.full((2,), 100.0)
    assert torch.equal(known.run("function", function, 2 * x, CPU), 2 * x + 1)
    assert torch.equal(function(2 * x), 20 * x + 100)
    held["same"].fill_(1000.0)
    assert torch.equal(known.run("function", function, 3 * x, CPU), 3 * x + 1001)
    assert torch.equal(known.run("afresh", function, 3 * x, CPU), 30 * x + 1100)


@dataclass(frozen=True)
class Item:
    """Tensors of several kinds, and what is none."""

    tensors: list[Tensor]
    named: dict[str, Tensor | None]
    number: int = 0


@dataclass(frozen=True)
class Alike(Item):
    """Another class of the same."""


SQUARE = numbers(4, 4)

UNLIKE: dict[str, tuple[tuple[Hashable, Any], tuple[Hashable, Any]]] = {
    "kind": (("one", SQUARE), ("other", SQUARE)),
    "shape": (("", SQUARE), ("", SQUARE[:2])),
    "strides": (("", SQUARE), ("", SQUARE.t())),
    "expanded": (("", SQUARE), ("", SQUARE[:1].expand(4, 4))),
    "number format": (("", SQUARE), ("", SQUARE.double())),
    "a number": (("", (SQUARE, 1)), ("", (SQUARE, 2))),
    "an equal number of another type": (("", (SQUARE, 1)), ("", (SQUARE, 1.0))),
    "a list for a tuple": (("", (SQUARE,)), ("", [SQUARE])),
    "one more": (("", [SQUARE]), ("", [SQUARE, SQUARE])),
    "none": (("", (SQUARE, None)), ("", (SQUARE, SQUARE))),
    "names": (("", {"a": SQUARE}), ("", {"b": SQUARE})),
    "a field": (("", Item([SQUARE], {}, 1)), ("", Item([SQUARE], {}, 2))),
    "class": (("", Item([SQUARE], {})), ("", Alike([SQUARE], {}))),
}


@pytest.mark.parametrize("what", UNLIKE)
def test_what_differs_is_another_kind(tapes: Tapes, what: str) -> None:
    known, double, (one, other) = Graphs(), Doubling(), UNLIKE[what]
    counts = []
    for kind, given in (one, one, other, one, other, other):
        found = known.run(kind, double, given, CPU)
        assert_same_tree(found, graphs.mapped(given, lambda tensor: tensor * 2))
        counts.append((double.runs, known.recorded))
    assert counts == [(1, 0), (2, 1), (3, 1), (3, 1), (4, 2), (4, 2)]


def assert_same_tree(found: Any, expected: Any) -> None:
    """Compare trees; tensors bit for bit, with their number formats."""
    assert type(found) is type(expected)
    if isinstance(found, Tensor):
        assert found.dtype == expected.dtype and torch.equal(found, expected)
    elif isinstance(found, dict):
        assert list(found) == list(expected)
        for name in found:
            assert_same_tree(found[name], expected[name])
    elif isinstance(found, list | tuple):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_same_tree(a, b)
    elif isinstance(found, Item):
        assert_same_tree(vars(found), vars(expected))
    else:
        assert found == expected


def a_tree(seed: int) -> Any:
    """Tensors in all that may hold them: expanded, empty, transposed, without dimensions, of several formats."""
    whole = torch.arange(5) + seed
    expanded = numbers(1, 3, seed=seed).expand(4, 3)
    tensors = [expanded, numbers(2, 3, seed=seed).t(), torch.empty(0, 3), whole]
    named = {"b": numbers(seed=seed).bfloat16(), "a": None, "c": numbers(6, seed=seed)[::2]}
    inner = Item(tensors, named, 7)
    return inner, [whole > 6, None, (torch.empty(0, 1).expand(0, 8),)], {"x": inner.tensors[0][:2]}


def test_tensors_may_lie_in_tuples_lists_dicts_and_dataclasses(tapes: Tapes) -> None:
    known = Graphs()

    def function(given: Any) -> Any:
        item, (true, none, (empty,)), named = given
        expanded, turned, nothing, whole = item.tensors
        assert expanded.stride() == (0, 1) and turned.stride() == (1, 3) and none is None
        total = expanded.sum() + (turned @ turned.t()).mean() + item.named["b"] + nothing.sum()
        made = Item([total, empty + 1], {"a": None, "c": item.named["c"] * item.number}, 3)
        return made, (torch.where(true, whole, -1), [named["x"] - 1]), {"rows": len(whole)}, None

    for seed in range(5):
        found = known.run("tree", function, a_tree(seed), CPU)
        assert_same_tree(found, function(a_tree(seed)))
    assert (known.recorded, tapes.recorded, tapes.replayed) == (1, 1, 4)


def test_results_are_the_callers_own(tapes: Tapes) -> None:
    """A later call doesn't overwrite them, and what the caller writes there isn't seen by a later call."""
    known, held = Graphs(), torch.ones(2)

    def function(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x, x.view(1, 2) * 2, held  # given, made, and neither

    found = [known.run("", function, torch.full((2,), float(i)), CPU) for i in range(5)]
    for i, (same_as_given, made, _) in enumerate(found[1:], start=1):
        assert same_as_given.tolist() == [i, i] and made.tolist() == [[2 * i, 2 * i]]
    for tensor in found[-1]:
        tensor.fill_(-1.0)
    found.append(known.run("", function, torch.full((2,), 5.0), CPU))
    assert [tensor.flatten().tolist() for tensor in found[-1]] == [[5, 5], [10, 10], [1, 1]]
    assert held.tolist() == [1, 1]


def test_a_replay_does_not_write_to_what_it_is_given(tapes: Tapes) -> None:
    known = Graphs()

    def function(given: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        given["kept"].index_copy_(0, given["places"], given["rows"])
        return given["kept"].sum(0), given

    for seed in range(4):
        kept, rows = numbers(5, 3, seed=seed), numbers(2, 3, seed=seed + 10)
        places = torch.tensor([seed, (seed + 2) % 5])
        given = {"kept": kept, "places": places, "rows": rows}
        expected = kept.index_copy(0, places, rows)
        before = kept.clone()
        total, after = known.run("", function, given, CPU)
        assert torch.equal(total, expected.sum(0)) and torch.equal(after["kept"], expected)
        assert torch.equal(kept, expected if seed == 0 else before), "the first call is plain"
    assert known.recorded == 1


def test_what_was_not_called_for_the_longest_time_is_dropped(
    tapes: Tapes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "MOST_KINDS", 3)
    known, double, x = Graphs(), Doubling(), numbers(3)

    def runs(kinds: str) -> int:
        """How often the function runs while some kinds are called."""
        before = double.runs
        for kind in kinds:
            assert torch.equal(known.run(kind, double, x, CPU), x * 2)
        return double.runs - before

    assert runs("aabbcc") == 6 and known.recorded == 3
    assert runs("abcabc") == 0
    assert runs("acd") == 1 and known.recorded == 2
    assert runs("acac") == 0
    assert runs("bb") == 2 and known.recorded == 3, "dropped, as was what took its place"
    assert runs("d") == 1 and known.recorded == 2
    for i in range(20):
        known.run(i, double, x, CPU)
        known.run(i, double, x, CPU)
        assert known.recorded <= 3


@pytest.mark.parametrize(
    "wait",
    [lambda x: float(x.sum()), lambda x: len(torch.nonzero(x > 0)), lambda x: torch.tensor([2.0])],
    ids=["a number is read", "a size is read", "numbers are sent"],
)
def test_what_cannot_be_recorded_runs_as_it_is(tapes: Tapes, wait: Callable[[Tensor], Any]) -> None:
    known = Graphs()

    def function(x: Tensor) -> Any:
        return x * wait(x)

    for seed in range(5):
        x = numbers(4, seed=seed)
        if seed == 1:
            with pytest.warns(UserWarning, match="runs kernel by kernel: .* capturing") as said:
                found = known.run("waits", function, x, CPU)
            assert len(said) == 1
        else:
            found = known.run("waits", function, x, CPU)
        assert torch.equal(found, function(x))
    assert (known.recorded, tapes.recorded) == (0, 0)
    double = Doubling()
    for _ in range(3):
        known.run("double", double, x, CPU)
    assert (known.recorded, double.runs) == (1, 2), "others are recorded still"


def test_calls_are_recorded_on_a_gpu_in_inference_and_unwatched() -> None:
    gpu = torch.device("cuda")
    assert not graphs.can_record(gpu)
    with torch.inference_mode():
        assert graphs.can_record(gpu) and not graphs.can_record(CPU)
        with TorchDispatchMode():
            assert not graphs.can_record(gpu)
        with torch.inference_mode(False):
            assert not graphs.can_record(gpu)


def test_graphs_that_are_not_launched_make_room_for_others(
    tapes: Tapes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 2)
    known, double, x = Graphs(), Doubling(), numbers(3)
    for kind in "aabbacc":  # b is not launched for the longest time when c is recorded
        assert torch.equal(known.run(kind, double, x, CPU), x * 2)
    assert known.recorded == 2
    before = double.runs
    for kind in "acac":
        known.run(kind, double, x, CPU)
    assert double.runs == before
    known.run("b", double, x, CPU)
    assert double.runs == before + 1, "plainly, like a kind that was never called"
