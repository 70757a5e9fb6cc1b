"""Training survives SIGKILL and ends as if nothing had been; its losses and its clips ask for what they should."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from probes.models import build_predictor
from sparsity.clips.made import make_clip, write_davis
from training.data import KINDS, Phase, Pool, kind_shares, make_scene
from training.losses import attention_loss, occupancy, pointer_loss
from training.network import CONFIG, export
from training.teaching import NEVER, hidden_keys, salient_only
from training.train import Clock, free_threads, parse_phases
from training.unroll import Step, point_prompt

ROOT = Path(__file__).parents[2]


@pytest.fixture
def material(tmp_path):
    """A DAVIS-layout folder and a folder of stills, made here."""
    davis, stills = tmp_path / "davis", tmp_path / "stills"
    write_davis(davis, {s: make_clip("smooth", frames=4, size=(64, 112)) for s in ("one", "two")})
    (davis / "train.txt").write_text("one\n")
    (davis / "calibrate.txt").write_text("two\n")
    stills.mkdir()
    still = make_clip("static_camera", frames=1, size=(128, 128))
    Image.fromarray(still.frames[0]).save(stills / "photo.jpg")
    Image.fromarray(still.masks[0]).save(stills / "mask.png")
    (stills / "images.csv").write_text("file,mask,mask_kind\nphoto.jpg,mask.png,ids\n")
    return ["--davis", davis, "--stills", stills]


def ended(out):
    """Return the state that a run has reached: its weights and their running mean."""
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    return [*state["model"].values(), *state["mean"].values()]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.process
def test_a_killed_run_goes_on_to_the_same_weights(material, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, "-m", "training.train", *material, "--steps", "20"]
    command += ["--phases", "64:1x3@1", "--threads", "1", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    said = {"env": environment, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([*command, "--out", whole], **said) as straight:
        with subprocess.Popen([*command, "--out", killed, "--save-every", "0.1"], **said) as run:
            until = time.time() + 120
            while not (killed / "checkpoint.pt").exists() and time.time() < until:
                assert run.poll() is None, "it ended without a checkpoint"
                time.sleep(0.05)
            run.send_signal(signal.SIGKILL)
        assert run.returncode == -signal.SIGKILL, "it was over before it could be killed"
        middle = ended(killed)
        subprocess.run([*command, "--out", killed], **said, check=True)
    assert straight.returncode == 0
    log = [json.loads(line) for line in (killed / "log.jsonl").read_text().splitlines()]
    starts = [entry for entry in log if "resumed" in entry]
    assert [s["resumed"] for s in starts] == [False, True]
    assert 0 < starts[1]["step"] < 20 and log[-1]["step"] == 20 and log[-1]["share"] == 1
    assert np.isfinite(log[-1]["calibrate_j"])
    assert equal(ended(killed), ended(whole)) and not equal(middle, ended(whole))

    weights = tmp_path / "weights.safetensors"
    assert export(killed / "best.pt", weights) < 25_000_000
    stored = build_predictor(config=CONFIG, checkpoint=weights).state_dict()
    exact = build_predictor(config=CONFIG, checkpoint=killed / "best.pt").state_dict()
    name = "memory_attention.layers.0.cross_attn_image.q_proj.weight"
    assert stored[name].dtype == torch.float32
    assert torch.equal(stored[name], exact[name].half().float())


def test_phases_are_read_progress_counts_and_threads_are_shared():
    assert parse_phases("128:8x5@0.5,256:3x7@1") == [Phase(128, 8, 5, 0.5), Phase(256, 3, 7, 1.0)]
    assert [Clock(4, None, first_share=0.5).share(step) for step in (0, 2, 4)] == [0.5, 0.75, 1]
    assert [Clock(4, None).share(step) for step in (0, 2, 4)] == [0, 0.5, 1]
    assert 1 <= free_threads(2) <= 2


def test_a_frame_is_hidden_only_where_another_shows_the_target():
    present = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 1], [0, 0, 1, 1]]).bool()
    for seed in range(20):
        torch.manual_seed(seed)
        bias = hidden_keys([0, 1, 2], present, 5, 1.0).view(3, 3, 5)
        assert (bias == bias[..., :1]).all(), "whole frames"
        visible = (bias[..., 0] == 0) & present[:, :3]
        assert visible.any(1).all()
    assert hidden_keys([0, 1, 2], present, 5, 0.0) is None
    assert hidden_keys([0], present, 5, 1.0) is None


def test_salient_tokens_are_those_with_the_most_mass_of_their_frame():
    torch.manual_seed(0)
    logits = torch.randn(2, 1, 16, 3 * 16 + 4)
    bias = salient_only(logits, 3, 0.25).view(2, 3, 16)
    mass = logits[:, 0, :, :48].unflatten(-1, (3, 16)).softmax(-1).mean(1)
    assert ((bias == 0).sum(-1) == 4).all() and set(bias.unique().tolist()) == {0.0, NEVER}
    assert (mass[bias == 0].view(2, 3, 4).amin(-1) >= mass[bias < 0].view(2, 3, 12).amax(-1)).all()


def test_attention_on_the_target_costs_less_than_beside_it():
    truth = torch.zeros(1, 3, 64, 64)
    truth[..., 16:48, 16:48] = 1
    occupied = occupancy(truth)
    on = (occupied[0, 0] > 0).float()
    empty = torch.zeros(1)

    def cost(cells, pointer=0.0):
        row = torch.cat([cells / cells.sum() / 2, cells / cells.sum() / 2]) * (1 - pointer)
        weights = torch.cat([row, torch.full((2,), pointer / 2)])[None, None].expand(1, 16, -1)
        step = Step(2, empty, empty, empty, empty, [weights], [0, 1])
        return attention_loss(step, occupied).item(), pointer_loss(step, 16).item()

    assert cost(on)[0] == pytest.approx(0, abs=1e-4)
    assert cost(1 - on)[0] > 5
    assert cost(on, 0.05)[1] == 0 and cost(on, 0.5)[1] > 0.5 and cost(on, 0.001)[1] > 0.5


def test_a_click_lies_inside_and_a_box_around():
    torch.manual_seed(0)
    mask = torch.zeros(4, 64, 64)
    mask[:, 10:30, 20:50] = 1
    points = point_prompt(mask, "click")["point_coords"][:, 0]
    assert all(mask[i, int(y), int(x)] == 1 for i, (x, y) in enumerate(points))
    box = point_prompt(mask, "box")["point_coords"]
    assert (box - torch.tensor([[20.0, 10], [50, 30]])).abs().max() < 3


@pytest.mark.parametrize("kind", KINDS)
def test_scenes_of_every_kind_show_two_targets(kind):
    random.seed(0)
    torch.manual_seed(0)
    images = torch.randint(0, 255, (6, 4, 32, 32), dtype=torch.uint8)
    images[:, 3] = 0
    images[:, 3, 4:28, 4:28] = 255
    clip = images[:1].expand(8, -1, -1, -1)
    pool = Pool(images, images, [clip], [clip])
    absent = 0
    for _ in range(20):
        frames, masks = make_scene(pool, kind, 5, 32)
        assert frames.shape == (5, 3, 32, 32) and frames.min() >= 0 and frames.max() <= 1
        assert masks.shape == (5, 2, 32, 32) and masks.dtype == torch.bool
        assert not (masks[:, 0] & masks[:, 1]).any(), "a pixel shows one thing"
        absent += int((~masks.flatten(2).any(-1)).sum())
    assert 0 < absent < 100


def test_shares_of_kinds_add_up():
    for progress in (0.0, 0.3, 1.0):
        shares = kind_shares(progress)
        assert set(shares) == set(KINDS) and sum(shares.values()) == pytest.approx(1)
