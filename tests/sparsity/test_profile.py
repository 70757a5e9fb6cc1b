"""The profile document: strict, versioned, and its errors in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.errors import InputError
from sparsity.profile import BUILTIN, SCHEMA, Profile, load_profile, parse_profile, save_profile
from sparsity.techniques.adapter import Adapter
from sparsity.techniques.retrieval import Retrieval
from sparsity.techniques.reuse import CHANGE, REUSED_PARTS
from sparsity.techniques.routing import Guard, Refresh, Routing

shares = st.floats(0.01, 1.0)


@given(
    mass=shares,
    score=st.floats(-50, 50),
    margin=st.floats(0, 500),
    unit=st.sampled_from(["window", "cell"]),
    keep=st.one_of(shares, st.lists(shares, min_size=1, max_size=6).map(tuple)),
    rows=st.one_of(st.just("all"), st.integers(1, 9999)),
    every=st.one_of(st.none(), st.integers(1, 99)),
    reuse=st.one_of(st.booleans(), st.lists(st.sampled_from(REUSED_PARTS), min_size=1).map(tuple)),
)
def test_a_profile_survives_its_json(mass, score, margin, unit, keep, rows, every, reuse) -> None:  # type: ignore[no-untyped-def]
    refresh = None if every is None else Refresh(one_in=every)
    profile = Profile(
        name="p",
        exact=True,
        routing=Routing(
            unit=unit, saliency_mass=mass, score_below=score, margin_px=margin, refresh=refresh
        ),
        retrieval=Retrieval(keep=keep, queries=rows),
        reuse=reuse,
        guard=Guard(refresh_every=every),
    )
    assert parse_profile(profile.to_json()) == profile


def test_built_in_profiles() -> None:
    assert load_profile("dense") == Profile(name="dense")
    paper = load_profile("paper")
    assert paper.routing is not None and paper.retrieval is not None
    assert (paper.routing.saliency_mass, paper.routing.score_below) == (0.7, 5.0)
    assert (paper.routing.margin_px, paper.retrieval.keep, paper.model) == (8.0, 0.05, None)
    exact = load_profile("exact")
    assert exact.exact and exact.graphs
    assert exact == Profile(name="exact", exact=True, graphs=True), "and nothing else"
    assert set(BUILTIN) == {"dense", "exact", "paper", "recommended"}
    assert not any(p.promise or p.made_by for p in BUILTIN.values()), "nobody calibrated them"


def test_what_is_carried_from_frame_to_frame() -> None:
    """Nothing without routing; else what is reused, the cached change, and pictures of what is routed."""
    recommended = load_profile("recommended")
    assert recommended.carried == {*REUSED_PARTS, CHANGE, "pictures of windows"}
    paper = load_profile("paper")
    assert paper.carried == frozenset() == load_profile("exact").carried
    by_cell = paper.model_copy(update={"routing": Routing(unit="cell", refresh=Refresh(one_in=6))})
    assert by_cell.carried == {"pictures of cells"}
    reused = by_cell.model_copy(update={"reuse": ("early",)})
    assert reused.carried == {"pictures of cells", "early"} and reused.reused == {"early"}
    nowhere = Profile(name="p", adapter=Adapter(kind="cached"))
    assert nowhere.carried == frozenset()


def test_the_calibrated_profile_comes_along_and_is_bound_to_a_model(tmp_path: Path) -> None:
    demo = load_profile("demo")
    assert demo.name == "demo" and demo.promise is not None and demo.made_by is not None
    assert demo.model is not None and demo.model.startswith("sha256:")
    other = tmp_path / "other.json"
    other.write_text(demo.model_copy(update={"name": "other"}).to_json())
    assert load_profile(other).name == "other"


GOOD = json.loads(Profile(name="p", routing=Routing(), retrieval=Retrieval()).to_json())


def changed(**changes: object) -> str:
    return json.dumps({**GOOD, **changes})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (changed(window={}), "window"),
        (changed(routing={"saliency_mass": 1.2}), "routing.saliency_mass is 1.2"),
        (changed(routing={"saliency_mass": 0}), "routing.saliency_mass is 0"),
        (changed(routing={"margin_px": -1}), "routing.margin_px is -1"),
        (changed(routing={"unit": "token"}), "routing.unit is 'token'"),
        (changed(routing={"refresh": {"one_in": 0}}), "routing.refresh.one_in is 0"),
        (changed(routing={"refresh": 6}), "routing.refresh is 6"),
        (changed(retrieval={"keep": 0.0}), "retrieval.keep"),
        (changed(retrieval={"keep": [0.1, 2.0]}), "retrieval.keep"),
        (changed(retrieval={"queries": 0}), "retrieval.queries"),
        (changed(retrieval={"exempt": ["newest"]}), "retrieval.exempt"),
        (changed(retrieval={"readers": "routed"}, routing=None), "needs tokens to be routed by"),
        (changed(guard={"refresh_every": 0}), "guard.refresh_every is 0"),
        (changed(exact={"magic": True}), "exact is {'magic': True}"),
        (changed(reuse=["magic"]), "reuse"),
        (changed(reuse=True), "reuse needs routing to leave something out, and exact"),
        (changed(adapter={"kind": "ridge"}), "adapter.file"),
        (changed(adapter={"kind": "mean", "file": "x"}), "adapter.kind is 'mean'"),
        (changed(adapter={"kind": "identity", "file": "x"}), "takes no file"),
        (changed(router={"threshold": 0.5}), "router"),
        (changed(model="abc"), "model is 'abc'"),
        (changed(name=""), "name is ''"),
        (changed(schema="efficient-sam2/profile/3"), "schema"),
        (changed().replace("0.7", "NaN"), "saliency_mass is nan"),
        (changed().replace("0.7", "Infinity"), "saliency_mass is inf"),
        ("{", "is no JSON"),
        ("[]", "document is []"),
    ],
)
def test_bad_documents_are_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        parse_profile(text)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_unchanged_document_is_accepted() -> None:
    assert parse_profile(changed()).name == "p"
    assert parse_profile(changed(reuse=True, exact=True)).reused == set(REUSED_PARTS)


OLDER = {
    "schema": "efficient-sam2/profile/1",
    "name": "p",
    "windows": {"saliency_mass": 0.7, "rolling_refresh": 6, "trimmed": False},
    "memory": {"keep": 0.05, "exempt": ["conditioning", "newest", "pointers"]},
    "shortcut": {"kind": "cached", "file": None, "sha256": None},
    "techniques": {"encoder": True, "stage4_reused": True, "cuda_graphs": True},
    "router": None,
}
"""A profile as it was written before techniques had their own settings."""


def test_a_document_of_the_first_schema_is_refused_with_the_new_keys() -> None:
    with pytest.raises(InputError) as error:
        parse_profile(json.dumps(OLDER))
    said = str(error.value)
    assert "\n" not in said and repr(OLDER["schema"]) in said and repr(SCHEMA) in said
    for old, new in (
        ("windows", "routing"), ("memory", "retrieval"), ("shortcut", "adapter"),
        ("rolling_refresh", "routing.refresh.one_in"), ("trimmed", "routing.unit"),
        ("techniques", "exact, reuse and graphs"),
    ):  # fmt: skip
        assert f"{old} is {new}" in said or f"{old} {new}" in said
    assert parse_profile(json.dumps({"schema": SCHEMA, "name": "p"})) == Profile(name="p")


def test_a_missing_file_names_the_built_in_profiles(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a file nor a built-in; use one of dense, exact"):
        load_profile(tmp_path / "nothing.json")
    (tmp_path / "p.json").write_text(changed(name="mine"))
    assert load_profile(tmp_path / "p.json").name == "mine"


@pytest.mark.parametrize("other", [None, {"name": "mine"}])
def test_what_is_no_profile_is_refused(other: Any) -> None:
    with pytest.raises(InputError, match="given as profile; expected a Profile, a built-in name"):
        load_profile(other)
    assert load_profile(Profile(name="mine")).name == "mine"


def test_a_profile_and_its_weights_can_be_moved_together(tmp_path: Path) -> None:
    weights, out, other = tmp_path / "weights.pth", tmp_path / "out", tmp_path / "other"
    weights.write_bytes(b"weights")
    out.mkdir()
    plain = Profile(name="p", routing=Routing())
    profile = plain.model_copy(update={"adapter": Adapter(kind="ridge", file=str(weights))})
    save_profile(profile, out / "mine.json")
    out.rename(other)
    weights.unlink()
    file = Path(str(load_profile(other / "mine.json").adapter.file))
    assert file == other / "mine.adapter.pth" and file.read_bytes() == b"weights"
    save_profile(plain, other / "plain.json")
    assert load_profile(other / "plain.json") == plain
    assert {f.name for f in other.iterdir()} == {"mine.json", "mine.adapter.pth", "plain.json"}
    elsewhere = other / "elsewhere.json"
    elsewhere.write_text(profile.to_json())
    assert load_profile(elsewhere).adapter.file == str(weights), "a whole path stays what it is"
