"""Cards: fetched, made, killed and gone on with; held against themselves; published figures where they belong."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.cards import PAGE, RESULTS, load_cards, page
from probes import checkpoints
from probes.checkpoints import CHECKPOINTS, Checkpoint
from probes.errors import InputError
from probes.estimates import interval
from probes.models import build_predictor
from sparsity.clips.made import make_clip
from sparsity.clips.masks import write_mask
from sparsity.clips.sources import ClipSource
from sparsity.commands import app as cli
from sparsity.evaluation.card import DAVIS_2017, known_set, load_card, published
from sparsity.evaluation.evidence import (
    CARD,
    CardRequest,
    check_memory,
    make_card,
    setting_of,
    weights_of,
)
from sparsity.profile import BUILTIN
from sparsity.work.model import ModelChoice

CLIPS = {"one": ("smooth", 5, 1), "three": ("static_camera", 4, 1), "two": ("distractors", 5, 2)}
CHOICE = ModelChoice(image_size=128, device="cpu")
FRAMES = 4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three short clips in DAVIS layout."""
    root = tmp_path_factory.mktemp("davis")
    for name, (kind, length, objects) in CLIPS.items():
        clip = make_clip(kind, 1, length, (64, 96), objects)
        for folder in ("JPEGImages", "Annotations"):
            (root / folder / "480p" / name).mkdir(parents=True)
        for t in range(length):
            Image.fromarray(clip.frames[t]).save(root / f"JPEGImages/480p/{name}/{t:05d}.jpg")
            write_mask(root / f"Annotations/480p/{name}/{t:05d}.png", clip.masks[t], "")
    return root


@pytest.fixture(scope="module")
def request_(root: Path) -> CardRequest:
    return CardRequest(root, attention_frames=FRAMES, speed_frames=0)


@pytest.fixture(scope="module")
def made(request_: CardRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole card, without speed."""
    out = tmp_path_factory.mktemp("card")
    make_card(request_, CHOICE, out, say=lambda text: None)
    return out


def changed(folder: Path, edit: Any) -> str:
    """A card's text with something changed in it."""
    document = json.loads((folder / CARD).read_text())
    edit(document)
    return json.dumps(document)


def test_a_card_holds_what_was_asked_for(made: Path) -> None:
    card = load_card(made / CARD)
    assert [row.name for row in card.rows] == ["stock", "exact", "paper", "recommended"]
    assert card.data.clips == list(CLIPS)
    assert card.known is None
    assert [row.published for row in card.rows] == 4 * [None]
    loss = card.row("paper").object_loss
    assert loss is not None
    assert loss.objects == 4
    seen = card.observations
    assert seen is not None
    assert [row.name for row in seen.top10] == [f"memory layer {n}" for n in range(4)]
    assert {row.name.split(",")[0] for row in seen.lift[:1]} == {"decoder"}
    assert all(row.chance is not None and 0 < row.chance <= row.mean for row in seen.consistency)


def test_the_same_command_gives_the_same_card_and_another_one_is_refused(
    made: Path, request_: CardRequest
) -> None:
    before = (made / CARD).read_bytes()
    make_card(request_, CHOICE, made, say=lambda text: None)
    assert (made / CARD).read_bytes() == before
    with pytest.raises(InputError, match="holds another card"):
        make_card(replace(request_, most=3), CHOICE, made)
    assert (made / CARD).read_bytes() == before


def test_it_names_the_threads_that_speed_was_measured_with(
    made: Path, request_: CardRequest, tmp_path: Path
) -> None:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    torch.set_num_threads(2)
    try:
        card = make_card(replace(request_, speed_frames=1), CHOICE, tmp_path, say=lambda text: None)
    finally:
        torch.set_num_threads(1)
    assert card.environment.threads == 2
    assert card.rows[1].quality == load_card(made / CARD).rows[1].quality
    assert load_card(made / CARD).environment.threads == 1


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda d: d["rows"][2]["quality"].update(loss=-5.0), "loss over clips is -5.0"),
        (lambda d: d["rows"][1]["quality"]["over_objects"].update(j_and_f=99.0), "J&F over objects"),
        (lambda d: d["rows"][2]["object_loss"].update(mean=0.5), "loss over objects"),
        (lambda d: d["rows"][3]["quality"]["intervals"].pop("loss"), "end of the loss"),
        (lambda d: d["rows"][3].update(weights="official"), "row recommended of official weights"),
        (lambda d: d["model"].update(trained=False), "demo weights of a model"),
        (lambda d: d["rows"].pop(0), "expected stock first"),
        (lambda d: d.update(schema="efficient-sam2/card/2"), "schema"),
        (lambda d: d.update(more=1), "more"),
    ],
)  # fmt: skip
def test_a_card_that_does_not_agree_with_itself_is_refused(
    made: Path, tmp_path: Path, edit: Any, said: str
) -> None:
    (tmp_path / "same.json").write_text(changed(made, lambda d: None))
    load_card(tmp_path / "same.json")
    (tmp_path / "other.json").write_text(changed(made, edit))
    with pytest.raises(InputError, match=said) as caught:
        load_card(tmp_path / "other.json")
    assert "\n" not in str(caught.value)


def test_the_loss_over_objects_is_their_mean_and_its_interval_that_of_clips(made: Path) -> None:
    card = load_card(made / CARD)
    row, stock = card.row("paper"), card.rows[0]
    lost = {
        name: [stock.quality.clips[name].objects[i].j_and_f - o.j_and_f for i, o in clip.objects.items()]
        for name, clip in row.quality.clips.items()
    }  # fmt: skip
    mean = np.mean([x for of in lost.values() for x in of])
    assert row.object_loss is not None
    assert row.object_loss.mean == pytest.approx(mean)
    per_clip = [mean + (sum(of) - mean * len(of)) / (4 / 3) for of in lost.values()]
    assert row.object_loss.interval == pytest.approx(interval(per_clip))
    assert row.object_loss.interval != pytest.approx(
        interval([np.mean(of) for of in lost.values()])
    )


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from sparsity.evaluation.evidence import CardRequest, make_card
from sparsity.work.model import ModelChoice
root, out, folder = sys.argv[1:]
def note(event, given):
    if event == "os.rename" and Path(str(given[1])).parent.name.endswith(folder):
        seen.append(given[1])
        if len(seen) == 2:  # the first one is there now
            os.kill(os.getpid(), signal.SIGKILL)
seen = []
sys.addaudithook(note)
make_card(CardRequest(Path(root), attention_frames=4, speed_frames=0), ModelChoice(image_size=128, device="cpu"), Path(out))
"""


@pytest.mark.process
def test_killed_twice_it_gives_the_same_card(
    made: Path, root: Path, request_: CardRequest, tmp_path: Path
) -> None:
    out = tmp_path / "card"
    for folder, left in ((".json.clips", "quality"), (".recording.clips", "attention")):
        command = [sys.executable, "-c", KILLED, str(root), str(out), folder]
        done = subprocess.run(
            command,
            cwd=Path(__file__).parents[3],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            timeout=300,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        assert not (out / CARD).exists()
        assert any(path.name.startswith(left) for path in (out / "parts").iterdir())
    make_card(request_, CHOICE, out, say=lambda text: None)
    assert (out / CARD).read_bytes() == (made / CARD).read_bytes()


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A local server of a folder's files."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.process
def test_a_checkpoint_in_the_official_format_takes_the_whole_path(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random weights under the official name: fetched from a server, verified, run, and put on a card with speed."""
    stock = build_predictor("sam2.1-tiny", weights="random", image_size=128, device="cpu")
    file = tmp_path / "served" / CHECKPOINTS["sam2.1-tiny"].file
    file.parent.mkdir()
    torch.save({"model": stock.state_dict()}, file)
    content = file.read_bytes()
    wanted = Checkpoint(file.name, len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(checkpoints.CHECKPOINTS, "sam2.1-tiny", wanted)
    monkeypatch.setenv("EFFICIENT_SAM2_CACHE", str(tmp_path / "cache"))
    given = [
        "card", str(root), "--model", "sam2.1-tiny", "--image-size", "128", "--device", "cpu", "--max-frames", "3",
        "--attention-frames", "3", "--speed-frames", "1", "--out", str(tmp_path / "card"),
    ]  # fmt: skip
    (tmp_path / "list.txt").write_text("one\n")
    with serving(file.parent) as url:
        monkeypatch.setenv("EFFICIENT_SAM2_CHECKPOINTS_URL", url)
        assert cli.run([*given, "--clips", str(tmp_path / "list.txt")]) == 0
    card = load_card(tmp_path / "card" / CARD)
    assert card.weights == "official"
    assert (tmp_path / "cache" / "checkpoints" / file.name).read_bytes() == content
    assert {row.name for row in card.rows if row.speed and row.end_to_end} == {
        row.name for row in card.rows
    }
    assert all(row.speed and row.speed.ratio and row.speed.peak_memory_mb for row in card.rows)
    assert card.data.settings["first frames"] == 3
    assert any("first 3 frames" in note for note in card.notes)
    assert (tmp_path / "card" / "card.html").is_file()
    said = capsys.readouterr()
    assert "about" in said.err
    assert "recommended" in said.out
    assert weights_of(ModelChoice("sam2.1-tiny", checkpoint=file)) == "official"
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert weights_of(ModelChoice("sam2.1-tiny", checkpoint=file)) == "given"


def test_random_weights_are_named_on_every_row(root: Path, tmp_path: Path) -> None:
    choice = replace(CHOICE, weights="random", image_size=128)
    asked = CardRequest(root, only=("one",), most=3, attention_frames=0, speed_frames=0)
    card = make_card(asked, choice, tmp_path, say=lambda text: None)
    assert {row.weights for row in card.rows} == {card.weights} == {"random"}
    assert not card.model.trained


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"most": 2}, "2 max frames of a clip given"),
        ({"attention_frames": 1}, "1 attention frames of a clip given"),
        ({"profiles": ("paper",)}, "a profile of the name 'paper' given"),
        ({"profiles": ("dense",)}, "a profile of the name 'dense' given"),
        ({"only": ("four",)}, "clip 'four' listed"),
    ],
)
def test_what_can_not_be_done_is_refused_before_any_work(
    request_: CardRequest, tmp_path: Path, asked: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        make_card(replace(request_, **asked), CHOICE, tmp_path / "card")
    assert not (tmp_path / "card").exists()


@pytest.mark.parametrize(
    "wrong",
    [{"weights": "trained"}, {"dtype": "float8"}, {"device": "nowhere"}, {"image_size": 250}],
)
def test_options_are_looked_at_before_anything_is_fetched(
    request_: CardRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any]
) -> None:
    monkeypatch.setenv("EFFICIENT_SAM2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EFFICIENT_SAM2_CHECKPOINTS_URL", "http://127.0.0.1:9/")
    with pytest.raises(InputError, match=next(iter(wrong))):
        make_card(request_, replace(ModelChoice("sam2.1-tiny"), **wrong), tmp_path / "card")
    assert not (tmp_path / "cache").exists()


def test_a_small_machine_is_refused_in_one_line() -> None:
    check_memory("sam2.1-large", 1024, 4e9, 4.1e9, "machine")
    with pytest.raises(
        InputError, match="needs about 4.0 GB and this machine has 3.0 GB free"
    ) as caught:
        check_memory("sam2.1-large", 1024, 4e9, 3e9, "machine")
    assert "\n" not in str(caught.value)


def test_published_figures_stand_beside_the_settings_they_are_of() -> None:
    clips = dict.fromkeys(DAVIS_2017.split(), 2) | {"blackswan": 3}
    assert known_set("DAVIS", clips) == "DAVIS 2017 val"
    assert known_set("DAVIS", dict.fromkeys(clips, 1)) is None  # DAVIS 2016
    assert known_set("SA-V", clips | {"more": 1}) is None
    paper = BUILTIN["paper"]
    named = {
        "SWR + SMR": paper,
        "SWR": paper.model_copy(update={"retrieval": None, "name": "mine"}),
        "SMR": paper.model_copy(update={"routing": None}),
        "dense": BUILTIN["dense"],
    }
    for setting, profile in named.items():
        assert setting_of(profile.model_dump(mode="json", by_alias=True)) == setting
    assert setting_of(BUILTIN["recommended"].model_dump(mode="json", by_alias=True)) is None
    found = published("sam2.1-large", "DAVIS 2017 val", "SWR + SMR")
    assert found is not None
    assert (found.j_and_f, found.speed) == (89.5, 1.68)
    assert published("sam2.1-tiny", "DAVIS 2017 val", "dense") is None
    assert published("sam2.1-large", None, "dense") is None


def test_the_first_frames_of_a_clip_are_the_clip_up_to_there(root: Path) -> None:
    whole, first = (ClipSource(dataset=root, most=most).open("two") for most in (None, 4))
    assert (whole.num_frames, first.num_frames) == (5, 4)
    assert list(first.truth or ()) == [0, 1, 2, 3]
    assert whole.truth is not None
    assert first.truth is not None
    for t in first.truth:
        assert np.array_equal(first.truth[t], whole.truth[t])
        assert np.array_equal(first.video.frame(t), whole.video.frame(t))
    assert first.objects == whole.objects
    assert ClipSource(dataset=root, most=9).open("two").num_frames == 5


def test_the_page_of_results_is_made_of_the_cards_that_are_there() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(load_cards(RESULTS)) + "\n"
