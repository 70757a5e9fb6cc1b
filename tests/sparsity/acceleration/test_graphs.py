"""Calls that are recorded as graphs, on a CPU by a tape that knows as little as a graph does."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sparsity.acceleration.model import graphs
from sparsity.acceleration.model.graphs import Graphs
from tests.sparsity.acceleration.tape import Tapes

CPU = torch.device("cpu")


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
    assert graphs.DEVICES == ("cuda",) and not graphs.can_record()
    with torch.inference_mode():
        assert graphs.can_record()
        with TorchDispatchMode():
            assert not graphs.can_record()
        with torch.inference_mode(False):
            assert not graphs.can_record()


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


def test_a_result_that_is_returned_twice_is_one(tapes: Tapes) -> None:
    known = Graphs()

    def function(x: Tensor) -> tuple[Tensor, ...]:
        made = x * 2
        return made, made, x * 2, made.bfloat16()

    for seed in range(4):
        x = numbers(3, seed=seed)
        one, again, other, short = known.run("twice", function, x, CPU)
        assert one is again and one is not other and torch.equal(one, other)
        assert torch.equal(one, 2 * x) and torch.equal(short, (2 * x).bfloat16())
    one.fill_(0)
    assert not torch.equal(one, other), "memory of its own"
