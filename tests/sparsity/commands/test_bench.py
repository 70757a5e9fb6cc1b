"""``efficient-sam2 bench``: its result, its table, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from torch._inductor import config as inductor

import sparsity.demo
from probes.errors import InputError
from sparsity.clips.masks import write_mask
from sparsity.commands.app import run
from sparsity.evaluation import benchmark
from sparsity.evaluation.benchmark import ratio, stored_quality, table, times
from sparsity.evaluation.interleaved import FULL_BANK, UNTIMED, Variant, ladder
from sparsity.evaluation.results import Result, load_result, parse_result
from sparsity.profile import Profile, further_profiles, load_profile
from sparsity.techniques.adapter import Adapter
from sparsity.techniques.routing import Routing
from tests.conftest import make_frames, make_mask

ALL_ROWS = ["stock", "exact", "SWR", "SMR", "SWR + SMR", "paper"]
ALL_ROWS += [profile.name for profile in further_profiles()]
ROWS = ["stock", "SWR", "paper", "recommended"]


@pytest.fixture(scope="module")
def small() -> list[str]:
    """Options of the demo model with random weights, 2 x 2 windows at a size at which it is quick, and of a short run."""
    return ["--model", "demo", "--weights", "random", "--image-size", "128", "--frames", "2"]


@pytest.fixture(scope="module")
def result(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Result:
    out = tmp_path_factory.mktemp("bench") / "result.json"
    options = [word for name in ROWS for word in ("--rows", name)]
    options += ["--windows", "1/4", "--objects", "2", "--report", str(out.with_suffix(".html"))]
    assert run(["bench", *small, *options, "--out", str(out)]) == 0
    page = out.with_suffix(".html").read_text(encoding="utf-8")
    assert "fixed windows 1/4" in page and "recommended" in page and "Plotly.newPlot" in page
    return load_result(out)


def test_random_weights_are_routed_by_fixed_windows_and_every_row_says_so(result: Result) -> None:
    assert [row.name for row in result.runs] == ROWS
    assert not result.model.trained
    assert {row.quality for row in result.runs} == {None}
    assert all("no weights" in str(row.why) and "1/4" in str(row.why) for row in result.runs)
    assert result.run("SWR").windows_kept == 0.25
    assert {row.objects for row in result.runs} == {2}
    assert {row.frames for row in result.runs} == {2}


def test_every_row_is_measured_unless_some_are_named(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def only_asked(stock: Any, variants: list[Variant], *_: Any, **__: Any) -> None:
        asked.append([variant.name for variant in variants])
        raise InputError("asked for")

    monkeypatch.setattr(benchmark, "bench", only_asked)
    for words in ([], ["--rows", "stock", "--rows", "SMR"]):
        assert run(["bench", *small, *words, "--out", str(tmp_path / "out.json")]) == 2
    assert asked == [ALL_ROWS, ["stock", "SMR"]]


def test_rows_are_measured_against_stock(result: Result) -> None:
    for row in result.runs:
        assert row.ms_per_frame is not None and row.ratio is not None and row.stages is not None
        assert 0 < row.ms_per_frame.median <= row.ms_per_frame.p90 <= row.ms_per_frame.p99
        assert row.ratio.low <= row.ratio.median <= row.ratio.high
        assert row.flops and row.peak_memory_mb
    stock = result.run("stock")
    assert stock.ratio is not None and stock.ratio.median == 1.0
    assert stock.profile is None
    assert result.run("paper").profile == load_profile("paper").model_dump(
        mode="json", by_alias=True
    )


def test_the_stamp_says_where_and_how(result: Result) -> None:
    stamp = result.environment
    assert stamp.threads >= 1 and stamp.dtype == "float32" and stamp.device == "cpu"
    assert stamp.cpu and stamp.torch and not stamp.compiled


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*:DeprecationWarning", "ignore:Torchinductor does not support:UserWarning"
)
def test_without_a_compiler_the_compiled_row_says_why(small: list[str], tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    options = [*small, "--compile", "--rows", "stock", "--out", str(out)]
    # torch's own patch: monkeypatch would leave the setting deleted for the tests that follow
    with inductor.patch("cpp.cxx", (None, "/nowhere/g++")):
        assert run(["bench", *options]) == 0
    found = load_result(out)
    assert [row.name for row in found.runs] == ["stock", "compiled"]
    row = found.run("compiled")
    assert row.ms_per_frame is None and "expected a C++ compiler" in str(row.why)
    assert table(found).splitlines()[2].startswith("compiled") and not found.environment.compiled


def test_the_table_has_a_line_a_row_and_each_reason_once(result: Result) -> None:
    lines = table(result).splitlines()
    assert len(lines) == 1 + len(ROWS) + 1
    assert lines[1].startswith("stock") and "1.00..1.00" in lines[1]
    assert lines[-1].startswith("[1] no weights")


def test_ratios_pair_neighbouring_frames() -> None:
    assert ratio([1.0, 4.0], [0.5, 2.0]).median == 2.0
    assert ratio([1.0, 4.0], [2.0, 0.5]).median == 4.25
    assert times([0.001, 0.002, 0.009]).median == 2.0


def quality(j_and_f: float) -> dict[str, Any]:
    one = {"j_and_f": j_and_f, "j": 1, "f": 1}
    return {**one, "over_objects": one, "clips": {"a": {**one, "frames": 5, "objects": {}}}}


def stored(result: Result, **changes: Any) -> Result:
    """An evaluation of the same model: the dense run and the paper's profile."""
    document = json.loads(result.to_json())
    paper = next(row for row in document["runs"] if row["name"] == "paper")
    dense = {**paper, "name": "dense", "profile": None, "quality": quality(80.0), "why": None}
    document["runs"] = [dense, {**paper, "name": "mine", "quality": quality(79.0), "why": None}]
    document["environment"].update(changes)
    return parse_result(json.dumps(document))


def test_quality_is_that_of_the_same_profile_model_and_dtype(result: Result) -> None:
    variants = {variant.name: variant for variant in ladder()}
    model = result.model
    look_up = stored_quality(stored(result), "float32", model)
    assert look_up(variants["stock"]).j_and_f == 80.0  # type: ignore[union-attr]
    assert look_up(variants["paper"]).j_and_f == 79.0  # type: ignore[union-attr]
    assert look_up(variants["SWR"]) == "not in the stored quality"
    other = stored_quality(stored(result, dtype="bfloat16"), "float32", model)
    assert other(variants["paper"]) == "the stored quality is of bfloat16"
    another = model.model_copy(update={"fingerprint": "sha256:" + 64 * "0"})
    other = stored_quality(stored(result), "float32", another)
    assert other(variants["paper"]) == "the stored quality is of another model"
    larger = model.model_copy(update={"image_size": 2 * model.image_size})
    other = stored_quality(stored(result), "float32", larger)
    said = f"the stored quality is at {model.image_size} pixels"
    assert other(variants["paper"]) == other(variants["stock"]) == said


def test_quality_is_found_wherever_the_weights_of_a_shortcut_lie(result: Result) -> None:
    def fitted(folder: str, digit: str) -> Profile:
        adapter = Adapter(kind="ridge", file=f"{folder}/w.safetensors", sha256=64 * digit)
        return Profile(name=folder, routing=Routing(), adapter=adapter)

    document = json.loads(stored(result).to_json())
    document["runs"][1]["profile"] = fitted("here", "a").model_dump(mode="json", by_alias=True)
    look_up = stored_quality(parse_result(json.dumps(document)), "float32", result.model)
    assert look_up(Variant("row", fitted("there", "a"))).j_and_f == 79.0  # type: ignore[union-attr]
    assert look_up(Variant("row", fitted("here", "b"))) == "not in the stored quality"


@pytest.mark.parametrize(("setting", "found"), [("refresh", True), ("margin_px", False)])
def test_quality_is_found_where_it_is_older_than_a_setting(
    result: Result, setting: str, found: bool
) -> None:
    """What a stored profile does not say is at its default."""
    mine = load_profile("paper").model_copy(update={"routing": Routing(margin_px=32.0)})
    document = json.loads(stored(result).to_json())
    document["runs"][1]["profile"] = mine.model_dump(mode="json", by_alias=True)
    document["runs"][1]["profile"]["routing"].pop(setting)
    look_up = stored_quality(parse_result(json.dumps(document)), "float32", result.model)
    assert (look_up(Variant("row", mine)) != "not in the stored quality") == found


def test_a_profile_that_has_the_name_of_another_row_is_refused(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = load_profile("paper").model_copy(update={"routing": Routing(margin_px=32.0)})
    for name in ("paper", "stock", "mine"):
        (tmp_path / f"{name}.json").write_text(mine.model_copy(update={"name": name}).to_json())
        twice = ["--profile", str(tmp_path / f"{name}.json")] * (2 if name == "mine" else 1)
        assert run(["bench", *small, *twice, "--out", str(tmp_path / "out.json")]) == 2
        assert f"a profile of the name {name!r} given" in capsys.readouterr().err


def test_a_video_is_tracked_by_its_own_prompt(small: list[str], tmp_path: Path) -> None:
    needed = FULL_BANK + UNTIMED + 2
    (tmp_path / "clip").mkdir()
    for t, frame in enumerate(make_frames(needed)):
        Image.fromarray(frame).save(tmp_path / "clip" / f"{t:05d}.png")
    write_mask(tmp_path / "prompt.png", make_mask().astype(np.uint8) * 3, "")
    (tmp_path / "routes").mkdir()
    corner = np.zeros((96, 128), np.uint8)
    corner[:20, :30] = 1
    write_mask(tmp_path / "routes" / "00000.png", corner, "")
    out = tmp_path / "result.json"
    options = [*small, "--video", str(tmp_path / "clip"), "--prompt", str(tmp_path / "prompt.png")]
    options += ["--routes", str(tmp_path / "routes"), "--rows", "stock", "--rows", "SWR"]
    options += ["--out", str(out)]
    assert run(["bench", *options]) == 0
    found = load_result(out)
    assert found.data.clips == ["clip"]
    assert [row.name for row in found.runs] == ["stock", "SWR"]
    assert found.data.settings["route"] == "windows of the masks in routes"
    assert 0 < (found.run("SWR").windows_kept or 0) < 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--windows", "4/25"], "this model has 4 windows"),
        (["--windows", "1/4", "--routes", "masks"], "expected one of the two"),
        (["--routes", "nowhere"], "expected a folder of PNG masks"),
        (["--profile", "nothing.json"], "neither a file nor a built-in"),
        (["--quality", "nothing.json"], "can't be read"),
        (["--video", "clip.mp4"], "expected both, or none for a made clip"),
        (["--rows", "paper"], "expected stock, which the others are compared with"),
        (["--rows", "stock", "--rows", "magic"], f"any of {', '.join(ALL_ROWS[1:])}; choose"),
        (["--frames", "0"], "frames"),
        (["--report", "nowhere/bench.html"], "nowhere is no folder"),
    ],
)
def test_bad_input_is_one_line_and_nothing_written(
    small: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    words: str,
) -> None:
    out = tmp_path / "result.json"
    assert run(["bench", *small, *options, "--out", str(out)]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said and "\n" not in said
    assert not list(tmp_path.iterdir())


def test_a_result_is_not_overwritten_unasked(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "result.json"
    out.write_text("mine")
    assert run(["bench", *small, "--out", str(out)]) == 2
    assert "--force to replace it" in capsys.readouterr().err
    assert out.read_text() == "mine"


def test_a_profile_of_another_model_is_refused(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = load_profile("paper").model_copy(update={"model": "sha256:" + 64 * "a"})
    (tmp_path / "p.json").write_text(foreign.to_json())
    options = [*small, "--profile", str(tmp_path / "p.json"), "--out", str(tmp_path / "out.json")]
    assert run(["bench", *options]) == 2
    assert "calibrated for the model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        (
            "image_encoder.neck.fpn_interp_model",
            "bilinear",
            "is exact, but the neck mixes other levels than SAM 2's; set exact to false",
        ),
        ("memory_attention.layer.cross_attention.num_heads", 2, "changes memory attention, but"),
    ],
)
def test_a_technique_that_the_model_cannot_have_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, value: Any, words: str
) -> None:
    other = OmegaConf.load(Path(sparsity.demo.__file__).parent / "config.yaml")
    OmegaConf.update(other.model, setting, value)
    OmegaConf.save(other, tmp_path / "other.yaml")
    options = ["--config", str(tmp_path / "other.yaml"), "--weights", "random"]
    options += ["--image-size", "128", "--frames", "1"]
    out = tmp_path / "out.json"
    assert run(["bench", *options, "--profile", "exact", "--out", str(out)]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert words in said and not out.exists()
