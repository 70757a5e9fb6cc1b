"""Recordings of `probe` say the same as watching the clip again, and bad ones are refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from probes import record
from probes.errors import InputError
from sparsity.calibration.capture import (
    checked,
    matching_traces,
    one_model,
    one_size,
    recorded_traces,
)
from sparsity.calibration.report import recall
from sparsity.calibration.thresholds import mask_only
from sparsity.calibration.traces import replay_decisions, replay_retrieval, replay_routing
from sparsity.clips.sources import ClipSource
from sparsity.techniques.retrieval import Retrieval
from sparsity.techniques.routing import Guard, Routing
from sparsity.techniques.select import WindowGrid
from tests.sparsity.calibration.conftest import FRAMES, made


@pytest.fixture(scope="module")
def recording(demo_predictor, tmp_path_factory):
    """The two-object clip, recorded from the stock predictor, as a folder."""
    clip = made("distractors")
    folder = tmp_path_factory.mktemp("recorded") / "distractors.recording"
    record(demo_predictor.stock, clip.video, clip.prompts, out=folder, name="distractors")
    return folder


@pytest.fixture(scope="module")
def recorded(recording):
    """The same, read."""
    (trace,) = recorded_traces(recording)
    return trace


@pytest.fixture
def source(tmp_path):
    """The clip that was recorded, as folders of frames and masks."""
    clip = made("distractors")
    for t in range(FRAMES):
        for kind, picture in (("videos", clip.video.frame(t)), ("masks", clip.truth[t])):
            path = tmp_path / kind / "distractors" / f"{t}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
    return ClipSource(tmp_path / "videos", tmp_path / "masks")


def test_a_recording_of_a_clip_stands_for_it(recording, source, recorded, capsys):
    found = matching_traces([recording], source, ["other", "distractors"])
    assert list(found) == ["distractors"]
    assert found["distractors"].digest == recorded.digest
    assert "not used" not in capsys.readouterr().err


def test_recordings_of_no_clip_of_the_search_are_named(recording, source, capsys):
    assert matching_traces([recording], source, ["smooth"]) == {}
    said = capsys.readouterr().err
    assert "Recordings of distractors are not used" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"frames": 3}, "frames 3, where the clip has 10"),
        ({"height": 96}, "height 96, where the clip has 144"),
        ({"objects": (1,)}, r"objects \(1,\), where the clip has \(1, 2\)"),
        ({"video": "0" * 64}, "other pictures than the clip"),
    ],
)
def test_a_recording_of_something_else_by_the_same_name_is_refused(
    recording, source, tmp_path, change, said
):
    other = tmp_path / "other.recording"
    shutil.copytree(recording, other)
    header = json.loads((other / "header.json").read_text())
    header["clips"][0].update(change)
    (other / "header.json").write_text(json.dumps(header))
    with pytest.raises(
        InputError, match=f"has distractors with {said}; .* record it anew"
    ) as caught:
        matching_traces([other], source, ["distractors"])
    assert "\n" not in str(caught.value)


def test_pictures_that_were_changed_are_refused(recording, source):
    frame = source.videos / "distractors" / "7.png"
    Image.fromarray(255 - np.array(Image.open(frame))).save(frame)
    with pytest.raises(InputError, match="has distractors with other pictures"):
        matching_traces([recording], source, ["distractors"])


@pytest.mark.parametrize(
    "routing",
    [Routing(), mask_only(4.0, "best"), mask_only(4.0, "best", "cell")],
    ids=["paper", "mask", "cells"],
)
def test_a_recording_decides_as_the_watched_clip_does(recorded, traces, routing):
    guard = Guard(mask_jump=0.2, scene_cut=0.1, refresh_every=5)
    given = routing, guard
    decisions = replay_decisions(recorded, *given)
    assert decisions == replay_decisions(traces[2], *given)
    assert np.allclose(
        replay_routing(recorded, *given).recall, replay_routing(traces[2], *given).recall
    )
    assert decisions != replay_decisions(traces[0], *given)


def test_a_recording_recalls_as_the_watched_clip_does(recorded, traces):
    assert recorded.memory.ages == traces[2].memory.ages
    assert recorded.memory.exposure == pytest.approx(traces[2].memory.exposure, abs=0.01)
    for share in (0.05, 0.2):
        one, two = (replay_retrieval(t, Retrieval(keep=share)) for t in (recorded, traces[2]))
        assert one.recall.mean() == pytest.approx(two.recall.mean(), abs=0.03)
    assert (
        replay_retrieval(recorded, Retrieval(keep=0.2)).mass
        > replay_retrieval(recorded, Retrieval(keep=0.05)).mass
    )


def test_recordings_of_different_models_are_refused(traces):
    other = replace(traces[0], model="sha256:" + "0" * 64)
    with pytest.raises(InputError, match="recordings of 2 models given .* expected one model"):
        one_model([traces[1], other], traces[1].model)
    with pytest.raises(InputError, match="the model to calibrate is"):
        one_model([other], traces[1].model)
    one_model(traces, traces[0].model)


def test_recordings_of_another_size_are_refused(traces):
    side = traces[0].grid.tokens * 16
    one_size(traces, traces[0].grid)
    with pytest.raises(InputError, match=f"was recorded at {side} pixels; the model to .* 1024;"):
        one_size(traces, WindowGrid(64, 14))


def test_recall_is_told_of_clips_of_any_length(traces):
    memory = traces[0].memory
    short = replace(memory, curve=memory.curve[:, :2], ages=memory.ages[:2])
    told = recall([traces[0], replace(traces[1], memory=short)])
    assert told["ages"] == [memory.ages[0], memory.ages[-1]]
    means = (memory.curve[:, [0, -1]] + memory.curve[:, [0, 1]])[:, :, 0] / 2
    assert np.array(told["layers"])[:, :, 0] == pytest.approx(means)


def test_an_empty_mask_track_is_refused(traces):
    empty = replace(traces[0], best=torch.zeros_like(traces[0].best))
    with pytest.raises(InputError, match="finds nothing in smooth .* check its prompt"):
        checked(empty)
    assert checked(traces[0]) is traces[0]


@pytest.mark.parametrize("part", ["score", "memory"])
def test_statistics_that_are_no_numbers_are_refused(traces, part):
    if part == "score":
        broken = replace(traces[0], score=torch.full_like(traces[0].score, torch.nan))
    else:
        curve = np.full_like(traces[0].memory.curve, np.nan)
        broken = replace(traces[0], memory=replace(traces[0].memory, curve=curve))
    with pytest.raises(InputError, match="statistics of smooth are not numbers"):
        checked(broken)
