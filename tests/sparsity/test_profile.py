"""The profile document: strict, versioned, and its errors in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.errors import InputError
from sparsity.profile import EXACT_TECHNIQUES, Guard, Memory, Profile, Shortcut, Windows
from sparsity.profiles import BUILTIN, load_profile, parse_profile, save_profile

shares = st.floats(0.01, 1.0)


@given(
    mass=shares,
    score=st.floats(-50, 50),
    margin=st.floats(0, 500),
    keep=st.one_of(shares, st.lists(shares, min_size=1, max_size=6).map(tuple)),
    rows=st.one_of(st.just("all"), st.integers(1, 9999)),
    refresh=st.one_of(st.none(), st.integers(1, 99)),
)
def test_a_profile_survives_its_json(mass, score, margin, keep, rows, refresh) -> None:  # type: ignore[no-untyped-def]
    profile = Profile(
        name="p",
        windows=Windows(saliency_mass=mass, score_below=score, margin_px=margin),
        memory=Memory(keep=keep, queries=rows),
        guard=Guard(refresh_every=refresh),
        techniques={"encoder": True},
    )
    assert parse_profile(profile.to_json()) == profile


def test_built_in_profiles() -> None:
    assert load_profile("dense") == Profile(name="dense")
    paper = load_profile("paper")
    assert (paper.windows.saliency_mass, paper.windows.score_below) == (0.7, 5.0)
    assert (paper.windows.margin_px, paper.memory.keep, paper.model) == (8.0, 0.05, None)
    assert all(load_profile("exact").technique(name) for name in EXACT_TECHNIQUES)
    assert load_profile("exact").windows is None and load_profile("exact").memory is None
    assert set(BUILTIN) == {"dense", "exact", "paper", "recommended"}


def test_the_calibrated_profile_comes_along_and_is_bound_to_a_model(tmp_path: Path) -> None:
    demo = load_profile("demo")
    assert demo.name == "demo" and demo.promise is not None and demo.made_by is not None
    assert demo.model is not None and demo.model.startswith("sha256:")
    other = tmp_path / "other.json"
    other.write_text(demo.model_copy(update={"name": "other"}).to_json())
    assert load_profile(other).name == "other"


GOOD = json.loads(Profile(name="p", windows=Windows(), memory=Memory()).to_json())

ROUTER = {"cues": ["x"], "mean": [0.0], "scale": [1.0], "coefficients": [1.0]}
ROUTER |= {"intercept": 0.0, "threshold": 0.5}


def changed(**changes: object) -> str:
    return json.dumps({**GOOD, **changes})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (changed(window={}), "window"),
        (changed(windows={"saliency_mass": 1.2}), "windows.saliency_mass is 1.2"),
        (changed(windows={"saliency_mass": 0}), "windows.saliency_mass is 0"),
        (changed(windows={"margin_px": -1}), "windows.margin_px is -1"),
        (changed(memory={"keep": 0.0}), "memory.keep"),
        (changed(memory={"keep": [0.1, 2.0]}), "memory.keep"),
        (changed(memory={"queries": 0}), "memory.queries"),
        (changed(memory={"exempt": ["newest"]}), "pointers"),
        (changed(guard={"refresh_every": 0}), "guard.refresh_every is 0"),
        (changed(techniques={"magic": True}), "magic"),
        (changed(shortcut={"kind": "ridge"}), "shortcut.file"),
        (changed(shortcut={"kind": "identity", "file": "x"}), "takes no file"),
        (changed(router=ROUTER | {"scale": [0.0]}), "router.scale.0 is 0.0"),
        (changed(router=ROUTER | {"mean": [0.0, 1.0]}), "must have the same length"),
        (changed(model="abc"), "model is 'abc'"),
        (changed(name=""), "name is ''"),
        (changed(schema="efficient-sam2/profile/2"), "schema"),
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
    assert parse_profile(changed(router=ROUTER)).router is not None


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
    plain = Profile(name="p", windows=Windows())
    profile = plain.model_copy(update={"shortcut": Shortcut(kind="ridge", file=str(weights))})
    save_profile(profile, out / "mine.json")
    out.rename(other)
    weights.unlink()
    file = Path(str(load_profile(other / "mine.json").shortcut.file))
    assert file == other / "mine.shortcut.pth" and file.read_bytes() == b"weights"
    save_profile(plain, other / "plain.json")
    assert load_profile(other / "plain.json") == plain
    assert {f.name for f in other.iterdir()} == {"mine.json", "mine.shortcut.pth", "plain.json"}
    elsewhere = other / "elsewhere.json"
    elsewhere.write_text(profile.to_json())
    assert load_profile(elsewhere).shortcut.file == str(weights), "a whole path stays what it is"
