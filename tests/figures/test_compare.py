"""Two runs side by side: what the figure holds is what the runs did, and what can't be compared is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import figures
from figures.sides import moved_mass, paired, read_side, received
from probes import Prompt, build_predictor, record
from probes.errors import InputError
from probes.records import Recording, load_recording
from sparsity import accelerate
from sparsity.clips.masks import write_mask
from sparsity.commands.app import run
from tests.conftest import make_frames, make_mask
from tests.figures.browser import Browser
from tests.figures.made import make_recording

BLOCK, CROSS = "encoder.stage3.block5.global", "memory.layer1.cross"
FRAMES, GRID = 6, 16

Runs = dict[str, Recording]


@pytest.fixture(scope="module")
def stock() -> Any:
    """The demo model at a size at which it is quick, and still leaves windows out."""
    return build_predictor("demo", image_size=256, device="cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, stock: Any) -> Runs:
    """The same clip by the stock predictor and under a profile, fewer frames of it, and other clips."""
    folder, frames, mask = tmp_path_factory.mktemp("runs"), make_frames(), make_mask()
    small = build_predictor("demo", image_size=128, device="cpu")

    def made(
        name: str,
        predictor: Any,
        frames: Any,
        prompts: Any,
        most: int = FRAMES,
        model: str = "demo",
    ) -> Recording:
        return record(
            predictor, frames, prompts, out=folder / name, name="clip", rows=[BLOCK, CROSS],
            statistics=CROSS, max_frames=most, model=model,
        )  # fmt: skip

    return {
        "stock": made("stock", stock, frames, {1: mask}),
        "paper": made("paper", accelerate(stock, "paper"), frames, {1: mask}),
        "half": made("half", small, frames, {1: mask}, model="half"),
        "short": made("short", small, frames, {1: mask}, 2),
        "other": made("other", small, frames[:, :, ::-1].copy(), {1: mask[:, ::-1]}, 2),
        "second": made("second", small, frames, {2: mask}, 2),
        "small": made("small", small, frames[:, ::2, ::2].copy(), {1: mask[::2, ::2]}, 2),
    }


def panel(figure: Any, title: str) -> list[Any]:
    """Traces of the panel under a title, in the order in which they are drawn."""
    (at,) = [a for a in figure.layout.annotations if a.text.startswith(title) and a.yref == "paper"]
    found = []
    for trace in figure.data:
        x, y = (
            figure.layout[f"{axis[0]}axis{axis[1:]}"].domain for axis in (trace.xaxis, trace.yaxis)
        )
        if abs(sum(x) / 2 - at.x) < 1e-6 and abs(y[1] - at.y) < 1e-6:
            found.append(trace)
    return found


def heat(figure: Any, title: str) -> np.ndarray:
    """The map of a panel, in even shares."""
    return np.asarray(panel(figure, title)[1].customdata, float)


def test_agreement_is_the_iou_of_the_masks(runs: Runs) -> None:
    figure = figures.compare(runs["stock"], runs["paper"])
    one, two = (runs[name]["clip"].masks() for name in ("stock", "paper"))
    iou = (one & two).sum((1, 2)) / (one | two).sum((1, 2))
    line, here = panel(figure, "agreement")
    assert list(line.y) == pytest.approx(iou.tolist()) and min(iou) < 1
    assert list(line.x) == list(range(FRAMES)) and list(here.x) == [0, 0]
    same = panel(figures.compare(runs["stock"], runs["stock"].path), "agreement")[0]
    assert list(same.y) == [1.0] * FRAMES


def test_where_nobody_tracks_an_object_nothing_agrees(tmp_path: Path) -> None:
    small = build_predictor("demo", image_size=128, device="cpu")
    prompts = [
        Prompt(0, 1, mask=make_mask()), Prompt(1, 2, mask=make_mask(9)), Prompt(3, 2, remove=True),
    ]  # fmt: skip
    made = record(small, make_frames()[:4], prompts, out=tmp_path / "r", statistics=CROSS)
    side = read_side(made, None)
    pair = paired(side, side, False)
    assert pair.agreement(1) == [1, 1, 1, 1]
    assert np.array_equal(pair.agreement(2), [np.nan, 1, 1, np.nan], equal_nan=True)


def test_the_same_pixel_is_shown_in_both(runs: Runs) -> None:
    xy, t = (60.0, 50.0), 4
    figure = figures.compare(runs["stock"], runs["paper"], site=BLOCK, query_xy=xy, frame=t)
    q = int(xy[1] / 96 * GRID) * GRID + int(xy[0] / 128 * GRID)
    for name, title in (("stock", "stock"), ("paper", "profile paper")):
        row = runs[name]["clip"].attention_rows(BLOCK, t)[q].astype(float)
        assert np.allclose(
            heat(figure, f"the pixel attends to: {title}"), row / np.nanmean(row), rtol=1e-5, equal_nan=True,
        )  # fmt: skip
        cross = panel(figure, f"the pixel attends to: {title}")[2]
        assert (*cross.x, *cross.y) == xy
    assert np.isnan(heat(figure, "the pixel attends to: profile paper")).any()
    assert not np.isnan(heat(figure, "the pixel attends to: stock")).any()
    elsewhere = figures.compare(
        runs["stock"], runs["paper"], site=BLOCK, query_xy=(20, 50), frame=t
    )
    shown = [heat(f, "the pixel attends to: stock") for f in (figure, elsewhere)]
    assert not np.allclose(*shown)


def test_the_pixel_follows_the_object_unless_one_is_given(runs: Runs) -> None:
    figure = figures.compare(runs["stock"], runs["paper"], site=BLOCK)
    n = list(figure.data).index(panel(figure, "masks: ")[1])
    for t, frame in enumerate(figure.frames):
        cross = frame.data[frame.traces.index(n)]
        mask = runs["stock"]["clip"].masks()[t]
        assert mask[int(cross.y[0] / 96 * len(mask)), int(cross.x[0] / 128 * len(mask))]


def test_key_mass_and_its_difference(runs: Runs) -> None:
    t = 4
    figure = figures.compare(runs["stock"], runs["paper"], site=BLOCK, frame=t)
    at = runs["stock"].header.settings.map_sites.index(BLOCK)
    maps = [runs[name]["clip"].encoder_mass[t, at].astype(float) for name in ("stock", "paper")]
    assert np.allclose(heat(figure, "key mass: stock"), maps[0], atol=2e-3)
    assert np.allclose(heat(figure, "key mass: profile"), maps[1], atol=2e-3, equal_nan=True)
    apart = np.asarray(panel(figure, "difference of key mass")[0].customdata, float)
    assert np.allclose(apart, maps[1] - maps[0], atol=4e-3, equal_nan=True)
    there = ~np.isnan(maps[1])
    one, two = (m[there] / m[there].sum() for m in maps)
    moved = panel(figure, "share of key mass")[0].y
    assert moved[t] == pytest.approx(np.abs(one - two).sum() / 2, rel=1e-3) and moved[t] > 0.001
    same = figures.compare(runs["stock"], runs["stock"], site=BLOCK)
    assert not np.any(panel(same, "share of key mass")[0].y)


def test_memory_is_summed_over_its_frames_and_compared_by_slots(runs: Runs) -> None:
    t, q = 5, 8 * GRID + 6
    figure = figures.compare(runs["stock"], runs["paper"], site=CROSS, query_xy=(52, 50), frame=t)
    for name, title in (("stock", "stock"), ("paper", "profile paper")):
        clip = runs[name]["clip"]
        summed = np.nansum(clip.attention_rows(CROSS, clip.row(t, 1))[q].astype(float), axis=0)
        shown = heat(figure, f"the pixel attends to: {title}")
        assert np.allclose(shown, summed / summed.mean(), rtol=1e-4)
    shares = [runs[name]["clip"].slot_share[t, 1].astype(float) for name in ("stock", "paper")]
    moved = panel(figure, "share of key mass")[0].y
    assert moved[t] == pytest.approx(np.abs(shares[0] - shares[1]).sum() / 2, rel=1e-4)
    assert np.isnan(moved[0])  # the prompted frame recalls nothing
    assert panel(figure, "the pixel attends to: stock")[1].customdata.shape == (GRID, GRID)
    first = figures.compare(runs["stock"], runs["paper"], site=CROSS)
    assert np.isnan(heat(first, "the pixel attends to: stock")).all()


def test_each_frame_has_its_own_pictures_and_the_video_is_the_recorded_one(runs: Runs) -> None:
    frames = make_frames()
    figure = figures.compare(runs["stock"], runs["paper"], frames, theme="dark", frame=3)
    assert len(figure.frames) == len(figure.layout.sliders[0].steps) == FRAMES
    assert figure.layout.sliders[0].active == 3
    first = panel(figure, "masks: ")[0]
    at = list(figure.data).index(first)
    sources = [f.data[f.traces.index(at)].source for f in figure.frames]
    assert first.source == sources[3] and len(set(sources)) == FRAMES
    with pytest.raises(InputError, match="other pictures than those recorded"):
        figures.compare(runs["stock"], runs["paper"], np.roll(frames, 9, 2))
    without = figures.compare(runs["stock"], runs["paper"])
    assert panel(without, "masks: ")[0].source != sources[0]


def test_halves_are_compared_by_their_order(runs: Runs) -> None:
    figure = figures.compare(runs["short"], runs["other"], halves=True, site=CROSS)
    text = [a.text for a in figure.layout.annotations]
    assert [t for t in text if t.startswith("masks: ")] == ["masks: short", "masks: other"]
    assert not any(t.startswith(("agreement", "difference")) for t in text)
    crosses = [
        panel(figures.compare(runs["short"], runs["other"], halves=True, site=BLOCK), f"the pixel attends to: {name}")[2].x[0]
        for name in ("short", "other")
    ]  # fmt: skip
    assert crosses[0] < 64 < crosses[1]  # each run's own object
    with pytest.raises(InputError, match="expected a tuple of two"):
        figures.compare(runs["short"], runs["other"], make_frames(), halves=True)


def test_two_models_with_other_grids(runs: Runs) -> None:
    figure = figures.compare(runs["stock"], runs["half"], site=BLOCK)
    assert heat(figure, "the pixel attends to: half").shape == (8, 8)
    assert not [a for a in figure.layout.annotations if a.text.startswith(("difference", "share"))]
    line = panel(figure, "agreement")[0].y
    assert 0.5 < line[1] < 1


REFUSED: dict[str, tuple[Callable[[Runs], Any], str]] = {
    "frames": (lambda r: figures.compare(r["stock"], r["short"]), r"frames 0 to 5 \(6\) and frames 0 to 1 \(2\)"),
    "size": (lambda r: figures.compare(r["short"], r["small"]), "128x96 and 64x48 pixels"),
    "video": (lambda r: figures.compare(r["short"], r["other"]), "two videos given .* or say halves"),
    "objects": (lambda r: figures.compare(r["short"], r["second"]), "objects 1 and 2 given"),
    "object": (lambda r: figures.compare(r["stock"], r["paper"], object=7), "object 7 was asked for"),
    "site": (lambda r: figures.compare(r["stock"], r["paper"], site="no"), "site 'no' was asked for"),
    "pixel": (lambda r: figures.compare(r["stock"], r["paper"], query_xy=(128, 3)), "video is 128x96"),
    "frame": (lambda r: figures.compare(r["stock"], r["paper"], frame=6), "frame 6 was asked for"),
    "clip": (lambda r: figures.compare(r["stock"], r["paper"], clip="x"), "clip 'x' was asked for"),
    "nothing": (lambda r: figures.compare(r["stock"], "nowhere"), "nowhere is no recording, nor"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_compared_is_refused_in_a_line(runs: Runs, what: str) -> None:
    call, said = REFUSED[what]
    with pytest.raises(InputError, match=said) as refused:
        call(runs)
    assert "\n" not in str(refused.value) and str(refused.value).count(";") == 2


def test_recordings_without_rows_show_key_mass_alone(tmp_path: Path) -> None:
    one, two = (make_recording(tmp_path / name, rows=False) for name in ("one", "two"))
    figure = figures.compare(one, two)
    text = [a.text for a in figure.layout.annotations]
    assert any(t.startswith("key mass: ") for t in text)
    assert not any(t.startswith("the pixel") for t in text)


@pytest.fixture(scope="module")
def segmented(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same clip under two profiles by the command, prompted in its middle."""
    folder = tmp_path_factory.mktemp("segmented")
    (folder / "frames").mkdir()
    for t, frame in enumerate(make_frames(4)):
        Image.fromarray(frame).save(folder / "frames" / f"{t:05d}.jpg")
    write_mask(folder / "prompt.png", make_mask(1).astype(np.uint8), "")
    for profile in ("exact", "paper"):
        words = [
            "segment",
            str(folder / "frames"),
            "--prompt",
            str(folder / "prompt.png"),
            "--prompt-frame",
            "1",
        ]
        assert (
            run(
                [
                    *words,
                    "--image-size",
                    "128",
                    "--profile",
                    profile,
                    "--out",
                    str(folder / profile),
                ]
            )
            == 0
        )
    return [folder / "exact", folder / "paper"]


def test_folders_of_segment_have_masks_and_times(segmented: list[Path]) -> None:
    figure = figures.compare(*segmented)
    report = json.loads((segmented[0] / "report.json").read_text(encoding="utf-8"))
    spent = report["milliseconds"]  # forward from frame 1, and then back
    line, other = panel(figure, "ms a frame")[:2]
    assert list(line.y) == [spent[3], spent[0], spent[1], spent[2]] and line.name == "profile exact"
    assert list(other.y) != list(line.y)
    masks = [np.asarray(Image.open(folder / "masks" / "00003.png")) == 1 for folder in segmented]
    iou = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
    assert panel(figure, "agreement")[0].y[3] == pytest.approx(iou)
    assert panel(figure, "in one mask alone")[0].source
    with pytest.raises(InputError, match="lacks frames of 128x96 pixels"):
        figures.compare(*segmented, make_frames(2))
    assert figures.compare(*segmented, make_frames(4)).frames


def test_a_folder_without_png_masks_is_refused(segmented: list[Path], tmp_path: Path) -> None:
    shutil.copytree(segmented[0], tmp_path / "run")
    (tmp_path / "run" / "masks" / "00002.png").unlink()
    with pytest.raises(InputError, match="3 masks of 4 frames"):
        figures.compare(tmp_path / "run", segmented[1])


def test_moved_mass_of_what_is_unknown_is_unknown(runs: Runs) -> None:
    pair = paired(read_side(runs["stock"], None), read_side(runs["paper"], None), halves=False)
    a, b = pair.a.recorded, pair.b.recorded
    assert a and b
    assert np.isnan(moved_mass(a, b, CROSS, (0, 0), 1)) and moved_mass(a, b, CROSS, (5, 5), 1) > 0


def test_the_command_writes_a_page(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", str(runs["stock"].path), str(runs["paper"].path)]
    out = tmp_path / "page.html"
    assert run([*words, "--site", BLOCK, "--at", "60,50", "--dark", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert "the pixel attends to: profile paper" in out.read_text(encoding="utf-8")
    for wrong in (
        ["--out", "page.doc"],
        ["--at", "6", "--out", str(out)],
        ["--site", "x", "--out", str(out)],
    ):
        out.unlink(missing_ok=True)
        assert run([*words, *wrong]) == 2 and not out.exists()
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_each_site_of_the_decoder_is_shown_by_itself(tmp_path: Path) -> None:
    """And lines of several objects are named; of the decoder no difference is drawn, so none is told of."""
    small = build_predictor("demo", image_size=128, device="cpu")
    sites = ["decoder.layer0.token_to_image", "decoder.final.token_to_image"]
    made = record(
        small, make_frames()[:3], {1: make_mask(), 2: make_mask(9)}, out=tmp_path / "r", rows=sites,
        statistics=CROSS,
    )  # fmt: skip
    side = read_side(made, None).recorded
    assert side is not None
    first, last = (received(side, site, 2, 2) for site in sites)
    assert first is not None and last is not None and not np.allclose(first, last, rtol=0.1)
    rows = side.clip.attention_rows(sites[0], side.clip.row(2, 2)).mean(0)
    assert np.allclose(first, rows / rows.mean())
    figure = figures.compare(made, made, site=sites[0])
    (title,) = [a.text for a in figure.layout.annotations if a.text.startswith("agreement")]
    lines = [line for line in figure.data if line.name and line.name.startswith("object ")]
    for i, line in enumerate(lines, 1):
        assert f'<span style="color:{line.line.color}">{i}</span>' in title
    said = " ".join(a.text for a in figure.layout.annotations).replace("<br>", " ")
    assert len(lines) == 2 and "Of object 1." in said and "red where" not in said


@pytest.mark.process
def test_the_slider_of_the_page_moves_all_of_it(
    runs: Runs, tmp_path: Path, browser: Browser
) -> None:
    figure = figures.compare(
        load_recording(runs["stock"].path), runs["paper"], make_frames(), site=BLOCK
    )
    path = figures.save(figure, tmp_path / "page.html")
    shown = (
        "JSON.stringify(document.querySelector('.plotly-graph-div').data.map(t => t.source || t.x))"
    )
    with browser.open(path.as_uri()) as page:
        page.wait("document.querySelectorAll('.slider-group').length == 1")
        before = json.loads(page.evaluate(shown))
        box = page.evaluate(
            "(() => {const b = document.querySelector('.slider-rail-touch-rect').getBoundingClientRect();"
            " return [b.left, b.top, b.width, b.height]})()"
        )
        page.click(box[0] + box[2] - 2, box[1] + box[3] / 2)
        page.wait(f"{shown} != {json.dumps(json.dumps(before, separators=(',', ':')))}")
        page.wait("document.querySelector('.plotly-graph-div').layout.sliders[0].active == 5")
        after = json.loads(page.evaluate(shown))
        moved = [a != b for a, b in zip(before, after, strict=True) if isinstance(a, str)]
        assert all(moved) and len(moved) == 5
        assert [5, 5] in after and [5, 5] not in before
        assert page.complaints == []
