"""Training starts, survives SIGKILL, goes on where it was, and its weights load strictly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from probes.errors import InputError
from probes.models import build_predictor
from sparsity.demo.batches import batches
from sparsity.demo.clips import make_clip
from sparsity.demo.export import export
from sparsity.demo.network import CONFIG
from sparsity.demo.photos import load_pool
from sparsity.demo.schedule import Clock, Phase, free_threads, parse_phases
from sparsity.demo.train import Trainer

ROOT = Path(__file__).parents[3]
SMALL = [Phase(64, 1, 3, 1.0)]


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A DAVIS-layout folder and a folder of stills, made here."""
    root = tmp_path_factory.mktemp("material")
    for number, split in enumerate(("train", "calibrate")):
        clip = make_clip("smooth", number, 6, (64, 112))
        (root / "davis").mkdir(exist_ok=True)
        (root / "davis" / f"{split}.txt").write_text(f"{split}_clip\n")
        for kind, arrays, ending in (
            ("JPEGImages", clip.frames, "jpg"),
            ("Annotations", clip.masks, "png"),
        ):
            folder = root / "davis" / kind / "480p" / f"{split}_clip"
            folder.mkdir(parents=True)
            for t, array in enumerate(arrays):
                Image.fromarray(array).save(folder / f"{t:05d}.{ending}")
    stills = root / "stills"
    (stills / "images").mkdir(parents=True)
    (stills / "masks").mkdir()
    rows = ["file,mask,source,objects,mask_kind,width,height"]
    for i in range(4):
        clip = make_clip("static_camera", i, 1, (128, 128))
        Image.fromarray(clip.frames[0]).save(stills / "images" / f"{i}.jpg")
        Image.fromarray(clip.masks[0]).save(stills / "masks" / f"{i}.png")
        rows.append(f"images/{i}.jpg,masks/{i}.png,made,1,ids,128,128")
    (stills / "images.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="module")
def pool(material):
    return load_pool(material / "davis", material / "stills", size=64, cut=48)


def trained(pool, out, seed, stops):
    """Train to the last of ``stops`` steps with a fresh trainer after each stop."""
    torch.set_num_threads(1)
    out.mkdir()
    for stop in stops:
        trainer = Trainer(pool, out, SMALL, "cpu", seed)
        trainer.resume()
        trainer.teacher.attach(trainer.model)
        clock = Clock(stops[-1], None)
        while trainer.step < stop:
            trainer.share = clock.share(trainer.step)
            trainer.model.train()
            trainer.take_step(next(batches(pool, trainer.orders(clock), 0)))
        trainer.save()
    return trainer.mean.state_dict()


def test_a_resumed_run_equals_an_uninterrupted_one(pool, tmp_path):
    straight = trained(pool, tmp_path / "a", 0, [4])
    broken = trained(pool, tmp_path / "b", 0, [2, 4])
    other = trained(pool, tmp_path / "c", 1, [4])
    assert all(torch.equal(straight[k], broken[k]) for k in straight)
    assert not all(torch.equal(straight[k], other[k]) for k in straight)


def test_a_killed_run_goes_on_and_its_weights_load(material, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "sparsity.demo.train", "--davis", material / "davis"]
    command += ["--stills", material / "stills", "--out", out, "--steps", "20"]
    command += ["--phases", "64:1x3@1", "--save-every", "1", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as run:
        until = time.time() + 60
        while not (out / "checkpoint.pt").exists() and run.poll() is None and time.time() < until:
            time.sleep(0.05)
        run.send_signal(signal.SIGKILL)
    assert run.returncode == -signal.SIGKILL, "it was over before it could be killed"
    subprocess.run(command, env=environment, stderr=subprocess.DEVNULL, check=True)
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    starts = [entry for entry in log if "resumed" in entry]
    assert [s["resumed"] for s in starts] == [False, True]
    assert 0 < starts[1]["step"] < 20 and log[-1]["step"] == 20 and log[-1]["share"] == 1
    assert np.isfinite(log[-1]["calibrate_j"])

    weights = tmp_path / "weights.safetensors"
    assert export(out / "best.pt", weights) < 25_000_000
    model = build_predictor(config=CONFIG, checkpoint=weights)
    direct = build_predictor(config=CONFIG, checkpoint=out / "best.pt")
    name = "memory_attention.layers.0.cross_attn_image.q_proj.weight"
    stored, exact = model.state_dict()[name], direct.state_dict()[name]
    assert stored.dtype == torch.float32 and torch.equal(stored, exact.half().float())

    state = torch.load(out / "best.pt", weights_only=True)
    del state["model"][name]
    torch.save(state, tmp_path / "short.pt")
    with pytest.raises(InputError, match=name):
        build_predictor(config=CONFIG, checkpoint=tmp_path / "short.pt")


def test_a_run_starts_from_given_weights_further_on_in_the_schedule(pool, tmp_path):
    weights = tmp_path / "weights.safetensors"
    given = Trainer(pool, tmp_path, SMALL, "cpu", 5)
    torch.save({"model": given.model.state_dict()}, tmp_path / "given.pt")
    export(tmp_path / "given.pt", weights)
    trainer = Trainer(pool, tmp_path, SMALL, "cpu", 6)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.start_from(weights, 0.7)
    for model in (trainer.model, trainer.mean):
        state = model.state_dict()
        assert all(
            torch.equal(state[k], v.half().float()) for k, v in given.model.state_dict().items()
        )
    assert not all(torch.equal(trainer.model.state_dict()[k], v) for k, v in before.items())
    assert trainer.share == 0.7
    assert [Clock(4, None, first_share=0.5).share(step) for step in (0, 2, 4)] == [0.5, 0.75, 1]
    assert [Clock(4, None).share(step) for step in (0, 2, 4)] == [0, 0.5, 1]
    with pytest.raises(InputError, match=r"no\.pt does not exist"):
        trainer.start_from(tmp_path / "no.pt", 0.7)


def test_the_config_is_sam_2_in_small():
    model = build_predictor(config=CONFIG, checkpoint=None, weights="random")
    trunk = model.image_encoder.trunk
    assert trunk.stage_ends == [0, 2, 9, 11] and trunk.global_att_blocks == (5, 7, 9)
    assert model.image_size == 384 and model.image_size // 16 // trunk.window_spec[2] >= 4
    assert model.num_maskmem == 7 and len(model.memory_attention.layers) == 4
    assert model.pred_obj_scores and model.use_obj_ptrs_in_encoder
    assert model.multimask_output_for_tracking
    assert sum(p.numel() for p in model.parameters()) < 12_500_000  # 25 MB as float16


def test_phases_are_read_and_threads_are_shared():
    assert parse_phases("128:8x5@0.5,256:3x7@1") == [Phase(128, 8, 5, 0.5), Phase(256, 3, 7, 1.0)]
    assert 1 <= free_threads(2) <= 2


def test_workers_make_batches_to_order(pool):
    asked = [(0.2, Phase(64, 1, 3, 0.5)), (0.7, Phase(96, 2, 4, 1.0))]

    def made(seed, workers):
        torch.manual_seed(seed)
        return list(batches(pool, asked, workers))

    first, again, other = (made(seed, 2) for seed in (0, 0, 1))
    for one, same in zip(first, again, strict=True):
        assert one[0].dtype == torch.uint8
        assert torch.equal(one[0], same[0]) and torch.equal(one[1], same[1])
    assert [tuple(frames.shape) for frames, _ in first] == [(1, 3, 3, 64, 64), (2, 4, 3, 96, 96)]
    assert [tuple(masks.shape) for _, masks in first] == [(1, 3, 2, 64, 64), (2, 4, 2, 96, 96)]
    assert not torch.equal(first[0][0], other[0][0])
    assert [b[0].shape for b in made(0, 0)] == [b[0].shape for b in first]
