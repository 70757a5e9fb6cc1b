"""Many clips: every clip once, whoever works on it, and whoever dies over it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dask
import pytest
import torch

from probes.errors import InputError
from probes.models import build_predictor, fingerprint
from sparsity.work.model import ModelChoice, SameModel, shared_predictor
from sparsity.work.spread import Spread, Summary, map_clips
from tests.sparsity.work.noting import CLIPS, Note, Removing


@contextmanager
def cluster() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A real scheduler, its address first, with two real worker processes, as a user would start them."""
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    started = subprocess.Popen(
        [*command, "--port", "0", "--no-dashboard", "--host", "127.0.0.1"],
        stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert started.stderr is not None
    address = next(
        line.split("Scheduler at:")[1].strip() for line in started.stderr if "Scheduler at:" in line
    )
    workers = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nworkers", "2",
         "--nthreads", "1", "--no-dashboard"],
        stderr=subprocess.DEVNULL, env=environment,
    )  # fmt: skip
    yield address, started
    for process in (workers, started):
        process.terminate()
        process.wait(20)
    started.stderr.close()


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    with cluster() as (address, _):
        yield address


@pytest.mark.process
def test_two_commands_share_a_machine(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):  # then another command has it indeed
            other.bind(("0.0.0.0", 8787))  # the dashboard's usual port
            other.listen()
        summary = map_clips(Note(tmp_path), CLIPS[:2], tmp_path / "out", {}, Spread(1))
    assert list(summary.results) == CLIPS[:2]


def test_every_clip_once_in_order(tmp_path: Path) -> None:
    work = Note(tmp_path)
    summary = map_clips(work, CLIPS, tmp_path / "out", {}, Spread())
    assert list(summary.results) == CLIPS == work.starts()
    assert summary.results["clip 3"] == {"letters": 6, "last": "3"}
    assert summary.text() == "6 clips done"


def test_a_second_start_goes_on(tmp_path: Path) -> None:
    work = Note(tmp_path)
    map_clips(work, CLIPS[:4], tmp_path / "out", {"theta": 0.7}, Spread())
    (torn,) = (tmp_path / "out").glob("clip 1.*.json")
    torn.write_text(torn.read_text()[:-20])
    again = map_clips(work, CLIPS, tmp_path / "out", {"theta": 0.7}, Spread())
    assert again.resumed == ["clip 0", "clip 2", "clip 3"]
    assert work.starts()[4:] == ["clip 1", "clip 4", "clip 5"]
    assert list(again.results) == CLIPS


def test_any_name_that_a_folder_can_have_keeps_its_result(tmp_path: Path) -> None:
    names = ["動画" * 14, 255 * "x", 254 * "x" + "y", 85 * "像", "a/b", "a%2Fb"]
    names.append(os.fsdecode(b"caf\xe9"))
    whole = map_clips(ascii, names, tmp_path / "out", {}, Spread())
    assert whole.results == {name: ascii(name) for name in names}
    again = map_clips(ascii, [*names, "new"], tmp_path / "out", {}, Spread())
    assert again.resumed == names
    assert again.results == {**whole.results, "new": "'new'"}


def test_other_settings_start_anew(tmp_path: Path) -> None:
    work = Note(tmp_path)
    map_clips(work, CLIPS, tmp_path / "out", {"theta": 0.7}, Spread())
    again = map_clips(work, CLIPS, tmp_path / "out", {"theta": 0.8}, Spread())
    assert again.resumed == []
    assert len(work.starts()) == 2 * len(CLIPS)


def test_a_clip_that_was_changed_is_done_again_and_no_other(tmp_path: Path) -> None:
    work = Note(tmp_path)
    for number, left in (("1", CLIPS), ("2", ["clip 3"]), ("2", [])):
        contents = dict.fromkeys(CLIPS, "1") | {"clip 3": number}
        before = len(work.starts()) if number == "2" else 0
        map_clips(work, CLIPS, tmp_path / "out", {}, Spread(), contents)
        assert work.starts()[before:] == left


def test_a_folder_that_another_process_is_done_with_is_made_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = map_clips(Removing(out), CLIPS, out, {}, Spread())
    assert list(summary.results) == CLIPS
    assert sorted(file.name.split(".")[0] for file in out.iterdir()) == ["clip 4", "clip 5"]


def test_a_broken_clip_does_not_cost_the_others(tmp_path: Path) -> None:
    summary = map_clips(Note(tmp_path, broken="clip 2"), CLIPS, tmp_path / "out", {}, Spread())
    assert list(summary.results) == [clip for clip in CLIPS if clip != "clip 2"]
    assert summary.failed == {"clip 2": "clip 2 has no frames; expected some; record it"}
    with pytest.raises(
        InputError, match="1 of 6 clips failed, first clip 2 .* the others are done"
    ):
        summary.check()
    alone = map_clips(Note(tmp_path, broken="clip 2"), ["clip 2"], tmp_path / "1", {}, Spread())
    with pytest.raises(InputError, match="1 of 1 clips failed, first clip 2 .* none is done"):
        alone.check()
    whole = map_clips(Note(tmp_path), CLIPS, tmp_path / "out", {}, Spread())
    whole.check()
    assert len(whole.results) == 6


@pytest.mark.process
def test_a_killed_worker_is_replaced_and_the_summary_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    work = Note(tmp_path, deadly="clip 2", broken="clip 5", seconds=0.5)
    summary = map_clips(work, CLIPS, tmp_path / "out", {}, Spread(jobs=2))
    assert (tmp_path / "died").exists()
    assert list(summary.results) == CLIPS[:5]
    assert "clip 5 failed: clip 5 has no frames" in summary.text()
    assert "Traceback" not in capfd.readouterr().err, "the summary says it in a line"
    assert summary.retried["clip 2"] == 1
    assert "clip 2 was begun again 1 times: its worker died" in summary.text()
    assert len(list((tmp_path / "out").iterdir())) == 5


@pytest.mark.process
def test_a_clip_that_kills_every_worker_does_not_cost_those_that_wait_beside_it(
    tmp_path: Path,
) -> None:
    work = Note(tmp_path, fatal="clip 0", seconds=0.1)
    usual = {
        "distributed.scheduler.allowed-failures": 1,  # 3 would take as long again
        "distributed.deploy.lost-worker-timeout": "1ms",  # a worker that comes back late, as on a busy machine
    }
    with dask.config.set(usual):
        summary = map_clips(work, CLIPS[:2], tmp_path / "out", {}, Spread(jobs=1))
    assert list(summary.results) == ["clip 1"]
    assert list(summary.failed) == ["clip 0"] and "KilledWorker" in summary.failed["clip 0"]
    assert work.starts().count("clip 0") == 2 and work.starts().count("clip 1") == 1


@pytest.mark.process
def test_a_users_cluster_gives_the_same_and_survives_too(tmp_path: Path, scheduler: str) -> None:
    # a worker that dies has first to get out that it began
    work = Note(tmp_path, deadly="clip 4", broken="clip 1", seconds=0.5)
    spread = map_clips(work, CLIPS, tmp_path / "out", {}, Spread(scheduler=scheduler))
    (tmp_path / "here").mkdir()
    here = map_clips(
        Note(tmp_path / "here", broken="clip 1"), CLIPS, tmp_path / "here" / "out", {}, Spread()
    )
    assert spread.results == here.results
    assert spread.failed == here.failed
    assert spread.retried["clip 4"] == 1
    assert not here.retried
    files = {file.name: json.loads(file.read_text()) for file in (tmp_path / "out").iterdir()}
    assert files == {
        file.name: json.loads(file.read_text()) for file in (tmp_path / "here" / "out").iterdir()
    }


@pytest.mark.process
def test_a_path_means_the_same_to_workers_that_were_started_elsewhere(
    tmp_path: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "log").mkdir()
    monkeypatch.chdir(tmp_path)
    there = map_clips(Note(Path("log")), CLIPS[:2], Path("out"), {}, Spread(scheduler=scheduler))
    assert list(there.results) == CLIPS[:2] and not there.failed
    assert sorted(Note(tmp_path / "log").starts()) == CLIPS[:2]
    elsewhere = Note(Path("nowhere"))
    there = map_clips(elsewhere, CLIPS[2:3], Path("out"), {}, Spread(scheduler=scheduler))
    assert str(tmp_path / "nowhere") in there.failed[CLIPS[2]]


@pytest.mark.process
@pytest.mark.parametrize("gpu", [True, False])
def test_clips_that_occupy_a_gpu_go_where_one_is_announced(
    gpu: bool, tmp_path: Path, mixed_cluster: Any
) -> None:
    spread = Spread(scheduler=mixed_cluster.address, gpu=gpu)
    map_clips(Note(tmp_path, seconds=0.05), CLIPS, tmp_path / "out", {}, spread)
    with_one, without = mixed_cluster.done()
    assert with_one + without == len(CLIPS)
    assert (without == 0) == gpu


@pytest.mark.process
def test_an_interrupted_run_on_a_cluster_goes_on(tmp_path: Path, scheduler: str) -> None:
    work = Note(tmp_path, waits=True)  # two clips are done, the others only after the interrupt
    code = (
        "import pathlib, signal, sys\n"
        "from sparsity.work.spread import Spread, map_clips\n"
        "from tests.sparsity.work.noting import CLIPS, Note\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in the background
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        f"map_clips(Note(folder, waits=True), CLIPS, folder / 'out', {{}}, Spread(scheduler={scheduler!r}))\n"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[3], stderr=subprocess.DEVNULL
    )
    out = tmp_path / "out"
    while not (out.is_dir() and any(out.glob("*.json"))):
        assert running.poll() is None, "it ended before a clip was done"
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    running.wait(30)
    (tmp_path / "go").touch()
    before = {file.name.split(".")[0] for file in out.glob("*.json")}
    assert 0 < len(before) < len(CLIPS)
    summary = map_clips(work, CLIPS, out, {}, Spread(scheduler=scheduler))
    assert set(summary.resumed) == before
    assert list(summary.results) == CLIPS


@pytest.mark.process
def test_a_scheduler_that_goes_away_is_told_of_in_a_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with cluster() as (address, process):

        def kill() -> None:
            while not (tmp_path / "starts").exists():
                time.sleep(0.02)
            process.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(InputError, match="scheduler of the workers went away .* goes on"):
            work = Note(tmp_path, waits=True)
            map_clips(work, CLIPS, tmp_path / "out", {}, Spread(scheduler=address))
        killer.join()
        (tmp_path / "go").touch()
    assert "Traceback" not in capfd.readouterr().err


def test_a_worker_reads_a_checkpoint_anew_that_was_replaced_between_two_commands(
    tmp_path: Path,
) -> None:
    file = tmp_path / "weights.pt"
    choice = ModelChoice(checkpoint=file, image_size=128, device="cpu")

    def weights(clip: str) -> str:
        return fingerprint(shared_predictor(choice))

    def command(model: str) -> Summary:
        return map_clips(
            SameModel(weights, choice, model),
            CLIPS[:2],
            tmp_path / "out",
            {"model": model},
            Spread(),
        )

    models = []
    for seed in range(2):
        drawn: dict[str, Any] = {"weights": "random", "seed": seed}
        model = build_predictor("demo", **drawn, image_size=128, device="cpu")
        torch.save({"model": model.state_dict()}, file)
        models.append(fingerprint(model))
        assert command(models[-1]).results == dict.fromkeys(CLIPS[:2], models[-1])
    assert models[0] != models[1]
    shutil.rmtree(tmp_path / "out")
    assert "the model of a worker is" in command(models[0]).failed[CLIPS[0]]


def test_a_scheduler_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparsity.work.spread.SECONDS_TO_CONNECT", 1)
    for address in ("tcp://127.0.0.1:9", "nonsense"):
        with pytest.raises(InputError, match=f"scheduler {address} does not answer"):
            map_clips(Note(tmp_path), CLIPS, tmp_path / "out", {}, Spread(scheduler=address))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"jobs": -1}, "jobs -1 given"),
        ({"jobs": 2, "scheduler": "tcp://a:1"}, "expected one of the two"),
        ({"threads": 0}, "threads 0 given"),
    ],
)
def test_a_senseless_spread_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Spread(**settings)


def test_nothing_failed_is_nothing_to_raise() -> None:
    Summary({"a": 1}).check()
