"""``segment --submission``: archives that servers take, as their documentation reads, and what is refused."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image

from probes.errors import InputError
from sparsity.clips.masks import PALETTE, write_mask
from sparsity.clips.sources import ClipSource
from sparsity.commands import app as cli
from sparsity.work.submission import BENCHMARKS, plan_submission
from tests.conftest import make_frames

HEIGHT, WIDTH = 64, 96
CLIPS = {"ant": 5, "bee": 6}
"""Their numbers of frames."""

LATE = 2
"""Frame that prompts the second object of ``bee`` where objects may come later."""


@dataclass(frozen=True)
class Made:
    """How a benchmark's set for tests is laid out: folders, names of frames, and whether objects have folders."""

    frames: str = "JPEGImages"
    annotations: str = "Annotations"
    name: str = "{:05d}"
    step: int = 1
    layered: bool = False
    top: str = ""


SETS = {
    "davis": Made("JPEGImages/480p", "Annotations/480p"),
    "youtube-vos": Made(step=5, top="Annotations/"),
    "mose": Made(),
    "sa-v": Made("JPEGImages_24fps", "Annotations_6fps", layered=True),
    "lvos": Made(name="{:08d}", step=5, top="Annotations/"),
}


def names(kind: str, clip: str) -> list[str]:
    """Names of a clip's frames; those of LVOS begin with 1."""
    made = SETS[kind]
    return [made.name.format(t * made.step + (kind == "lvos")) for t in range(CLIPS[clip])]


def starts(kind: str, clip: str) -> dict[int, int]:
    """Objects by the frame that prompts them."""
    return {1: 0, 2: 0 if kind in ("davis", "mose") else LATE} if clip == "bee" else {1: 0}


def square(number: int) -> np.ndarray:
    """Where an object is, bool [H, W]."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:40, 30 * number - 20 : 30 * number + 15] = True
    return mask


def ids_of(objects: list[int]) -> np.ndarray:
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    for number in objects:
        ids[square(number)] = number
    return ids


def make_set(root: Path, kind: str) -> Path:
    """Write a set for tests: frames, masks that prompt, and the list that the benchmark comes with."""
    made = SETS[kind]
    for clip, count in CLIPS.items():
        (root / made.frames / clip).mkdir(parents=True)
        for name, frame in zip(names(kind, clip), make_frames(count, HEIGHT, WIDTH), strict=True):
            Image.fromarray(frame).save(root / made.frames / clip / f"{name}.jpg")
        for number, start in starts(kind, clip).items():
            folder = root / made.annotations / clip
            if made.layered:
                folder /= f"{number - 1:03d}"
            folder.mkdir(parents=True, exist_ok=True)
            same = [i for i, at in starts(kind, clip).items() if at == start]
            ids = square(number).astype(np.uint8) if made.layered else ids_of(same)
            write_mask(folder / f"{names(kind, clip)[start]}.png", ids, "")
    if kind == "davis":
        (root / "ImageSets/2017").mkdir(parents=True)
        (root / "ImageSets/2017/test-dev.txt").write_text("".join(f"{c}\n" for c in CLIPS))
    if kind == "sa-v":
        (root / "sav_test.txt").write_text("".join(f"{c}\n" for c in CLIPS))
    if kind == "youtube-vos":
        (root / "meta.json").write_text(json.dumps({"videos": {c: listed(kind, c) for c in CLIPS}}))
    if kind == "lvos":
        (root / "test_meta.json").write_text(json.dumps({"videos": dict.fromkeys(CLIPS, {})}))
    return root


def listed(kind: str, clip: str) -> dict[str, dict[str, dict[str, list[str]]]]:
    """A clip in YouTube-VOS's list: each object with its frames; the last frame of ``bee`` is not wanted."""
    last = CLIPS[clip] - (clip == "bee")
    frames = names(kind, clip)[:last]
    return {"objects": {str(i): {"frames": frames[at:]} for i, at in starts(kind, clip).items()}}


def wanted(kind: str, clip: str) -> list[str]:
    frames = names(kind, clip)
    return frames[:-1] if (kind, clip) == ("youtube-vos", "bee") else frames


# ---------------------------------------------------------------------- what servers do with an archive


def take(archive: bytes, kind: str, place: Path) -> str:
    """Read an archive as its server does; return what it complains of, or nothing.

    Written from the sources that `sparsity.work.submission` names, and from what a server knows: names of clips and frames,
    the number of each clip's objects and the size of its videos.
    """
    shutil.rmtree(place, ignore_errors=True)
    with ZipFile(io.BytesIO(archive)) as file:
        file.extractall(place)
    root = place / "Annotations" if kind in ("youtube-vos", "lvos") else place
    found = sorted(p.name for p in root.iterdir()) if root.is_dir() else []
    if kind == "mose" and len(found) == 1:  # its server goes into a folder that is alone
        root, found = root / found[0], sorted(p.name for p in (root / found[0]).iterdir())
    if kind == "davis" and len(found) == 1:
        return "folders of the sequences have to be placed directly inside the zip"
    if kind == "sa-v" and found != sorted(CLIPS):  # strict: others are refused, too
        return "Videos that are in one but not in the other"
    for clip in CLIPS:
        if clip not in found:
            return f"{clip} sequence is missing"
        for number, start in starts(kind, clip).items():
            for t, frame in enumerate(names(kind, clip)):
                counts = {
                    "youtube-vos": t >= start and frame in wanted(kind, clip),
                    "lvos": t >= start,
                }
                path = root / clip / f"{frame}.png"
                if kind == "sa-v":
                    path = root / clip / f"{number - 1:03d}" / f"{frame}.png"
                    counts[kind] = t % 4 == 0  # frames of the truth
                if counts.get(kind, True) and (said := look(path, kind, len(starts(kind, clip)))):
                    return said
    return ""


def look(path: Path, kind: str, objects: int) -> str:
    """Read a mask; return what a server complains of."""
    if not path.is_file():
        return f"{path.name} not found"
    with Image.open(path) as image:
        values, mode = np.array(image), image.mode
    if values.shape != (HEIGHT, WIDTH):
        return f"shape mismatch: {path.name}"
    if mode != "P":
        return f"{path.name} is not indexed"
    if values.max() > (1 if kind == "sa-v" else objects):
        return "there is an index higher than the number of objects in the sequence"
    return ""


def changed(archive: bytes, change: Callable[[str, bytes], tuple[str, bytes] | None]) -> bytes:
    """Write an archive anew with other names or contents; None takes a file out."""
    written = io.BytesIO()
    with ZipFile(io.BytesIO(archive)) as old, ZipFile(written, "w") as new:
        for name in old.namelist():
            kept = change(name, old.read(name))
            if kept is not None:
                new.writestr(*kept)
    return written.getvalue()


def small() -> bytes:
    picture = io.BytesIO()
    image = Image.fromarray(np.zeros((HEIGHT // 2, WIDTH), np.uint8))
    image.putpalette(PALETTE.tobytes())
    image.save(picture, format="PNG")
    return picture.getvalue()


@pytest.mark.parametrize("kind", SETS)
def test_the_server_takes_what_the_command_writes(
    kind: str, tmp_path: Path, padded_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = make_set(tmp_path / "set", kind), tmp_path / "out"
    model = ["--config", str(padded_config), "--weights", "random", "--device", "cpu"]
    words = ["segment", str(root), *model, "--profile", "dense", "--out", str(out)]
    assert cli.run([*words, "--submission", kind]) == 0, capsys.readouterr().err
    path = out / f"submission-{kind}.zip"
    assert f"submission  {path}  (2 clips, " in capsys.readouterr().out
    archive = path.read_bytes()
    assert take(archive, kind, tmp_path / "server") == ""
    made = SETS[kind]
    expected = {
        f"{made.top}{clip}/{f'{number - 1:03d}/' if made.layered else ''}{frame}.png"
        for clip in CLIPS
        for number in starts(kind, clip)
        for frame in wanted(kind, clip)
    }
    with ZipFile(path) as file:
        assert file.namelist() == list(dict.fromkeys(file.namelist()))
        assert set(file.namelist()) == expected
    victim = sorted(name for name in expected if f"bee/{'001/' if made.layered else ''}" in name)[
        -2
    ]
    if made.layered:
        victim = victim.replace(Path(victim).name, f"{names(kind, 'bee')[4]}.png")
    changes: dict[str, Callable[[str, bytes], tuple[str, bytes] | None]] = {
        "out": lambda name, data: None if name == victim else (name, data),
        "renamed": lambda name, data: (name.replace("0.png", "0_.png"), data),
        "size": lambda name, data: (name, small() if name == victim else data),
        "clip": lambda name, data: None if "ant/" in name else (name, data),
        "folder": lambda name, data: (f"results/{name}", data),
    }
    if kind == "mose":
        del changes["folder"]
    if kind == "lvos":
        changes["renamed"] = lambda name, data: (name.replace("1.png", "1_.png"), data)
    taken = {
        what: take(changed(archive, change), kind, tmp_path / "server")
        for what, change in changes.items()
    }
    assert all(taken.values()), taken
    assert take(changed(archive, lambda *kept: kept), kind, tmp_path / "server") == ""


# ---------------------------------------------------------------------- what the writer makes of masks


def segmented(out: Path, kind: str, layers: bool = False) -> Path:
    """Write masks as `segment` does, without a model; every object is on every frame."""
    for clip in CLIPS:
        objects = list(starts(kind, clip))
        folder = out / clip / "masks"
        for frame in names(kind, clip):
            if not layers:
                folder.mkdir(parents=True, exist_ok=True)
                write_mask(folder / f"{frame}.png", ids_of(objects), "of a run")
            for number in objects if layers else ():
                (folder / str(number)).mkdir(parents=True, exist_ok=True)
                Image.fromarray(square(number)).save(folder / str(number) / f"{frame}.png")
    return out


def submit(root: Path, out: Path, kind: str) -> dict[str, np.ndarray]:
    """Write an archive of masks; return them by their names in it."""
    path = plan_submission(kind, ClipSource(dataset=root), None, None).write(out)
    with ZipFile(path) as file:
        return {n: np.array(Image.open(io.BytesIO(file.read(n)))) for n in file.namelist()}


@pytest.mark.parametrize("layers", [False, True], ids=["ids", "layers"])
def test_ids_and_layers_are_taken_and_no_object_is_there_before_its_prompt(
    layers: bool, tmp_path: Path
) -> None:
    root = make_set(tmp_path / "mose", "youtube-vos")
    masks = submit(root, segmented(tmp_path / "out", "youtube-vos", layers), "youtube-vos")
    for t, frame in enumerate(wanted("youtube-vos", "bee")):
        found = masks[f"Annotations/bee/{frame}.png"]
        overlap = square(1) & square(2)
        assert overlap.any()
        expected = ids_of([1, 2] if t >= LATE else [1])
        if t >= LATE and layers:
            expected[overlap] = 1  # the smallest id is on top
        elif t < LATE and not layers:
            expected[overlap] = 0  # what the other object had
        assert (found == expected).all(), frame


@pytest.mark.parametrize("layers", [False, True], ids=["ids", "layers"])
def test_sav_gets_a_layer_an_object_that_overlap_only_where_segment_wrote_layers(
    layers: bool, tmp_path: Path
) -> None:
    root = make_set(tmp_path / "set", "sa-v")
    masks = submit(root, segmented(tmp_path / "out", "sa-v", layers), "sa-v")
    first, second = (masks[f"bee/{folder}/00004.png"] for folder in ("000", "001"))
    assert (second == square(2)).all()
    assert (first == square(1)).all() == layers
    assert bool((first & second).any()) == layers
    assert not masks["bee/001/00000.png"].any() and masks["bee/001/00002.png"].any()


def test_the_same_masks_make_the_same_archive(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set", "davis")
    plan = plan_submission("davis", ClipSource(dataset=root), None, None)
    out = segmented(tmp_path / "out", "davis")
    first = plan.write(out).read_bytes()
    mask = out / "ant/masks/00003.png"
    write_mask(mask, ids_of([1]), "of another run")
    assert plan.write(out).read_bytes() == first
    write_mask(mask, ids_of([]), "of another run")
    assert plan.write(out).read_bytes() != first


def spoil(out: Path, what: str) -> None:
    """Break one mask of one clip."""
    mask = out / "bee/masks/00003.png"
    if what == "missing":
        mask.unlink()
    elif what == "renamed":
        mask.rename(mask.with_name("3.png"))
    elif what == "size":
        write_mask(mask, np.zeros((9, 9), np.uint8), "")
    elif what == "colour":
        Image.new("RGB", (WIDTH, HEIGHT)).save(mask)
    elif what == "object":
        write_mask(mask, ids_of([1]) * 7, "")
    elif what == "clip":
        shutil.rmtree(out / "bee")


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("missing", "00003.png is missing, one of 1 masks of clip bee"),
        ("renamed", "00003.png is missing, one of 1 masks of clip bee"),
        ("size", "00003.png is 9x9 in mode P; expected 96x64"),
        ("colour", "in mode RGB; expected 96x64, as its video, and indexed"),
        ("object", r"00003.png has object 7; expected those that prompt clip bee \(1, 2\)"),
        ("clip", "00000.png is missing, one of 6 masks of clip bee"),
    ],
)
def test_masks_that_a_server_would_refuse_make_no_archive(
    what: str, words: str, tmp_path: Path
) -> None:
    root, out = make_set(tmp_path / "set", "mose"), segmented(tmp_path / "out", "mose")
    plan = plan_submission("mose", ClipSource(dataset=root), None, None)
    assert plan.write(out).is_file()
    spoil(out, what)
    with pytest.raises(InputError, match=words):
        plan.write(out)
    assert not [p.name for p in out.iterdir() if "submission" in p.name]


def test_a_layer_that_is_missing_or_of_no_object_is_refused(tmp_path: Path) -> None:
    root, out = make_set(tmp_path / "set", "sa-v"), segmented(tmp_path / "out", "sa-v", True)
    early = out / "bee/masks/2/00000.png"
    early.unlink()
    assert not submit(root, out, "sa-v")[
        "bee/001/00000.png"
    ].any()  # before its prompt none is needed
    shutil.copytree(out / "bee/masks/2", out / "bee/masks/3")
    with pytest.raises(InputError, match="masks has object 3"):
        submit(root, out, "sa-v")
    shutil.rmtree(out / "bee/masks/3")
    shutil.rmtree(out / "bee/masks/2")
    with pytest.raises(InputError, match=r"2.00002.png is missing, one of 4 masks of clip bee"):
        submit(root, out, "sa-v")


# ---------------------------------------------------------------------- what is refused before any work


def test_what_would_be_incomplete_or_fits_no_server_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = make_set(tmp_path / "set", "davis"), tmp_path / "out"
    sav = make_set(tmp_path / "sav", "sa-v")
    shorter, all_of_them = tmp_path / "shorter.txt", tmp_path / "all.txt"
    shorter.write_text("ant\n")
    all_of_them.write_text("bee\nant\n")
    frames, masks = root / "JPEGImages/480p", root / "Annotations/480p"
    one = [str(frames / "ant"), "--prompt", str(masks / "ant/00000.png")]
    refused = {
        "one video": ([*one, "--submission", "davis"], "of one video given; expected a data set"),
        "videos": (
            [str(frames), "--prompt", str(masks), "--submission", "davis"],
            "of a folder of videos given; expected a data set",
        ),
        "max": ([str(root), "--submission", "davis", "--max-frames", "9"], "and max-frames 9"),
        "list": (
            [str(root), "--submission", "davis", "--clips", str(shorter)],
            "the list of clips lacks 1 clips of submission davis (bee)",
        ),
        "unknown": ([str(root), "--submission", "coco"], "expected one of davis, youtube-vos,"),
        "layout": ([str(root), "--submission", "sa-v"], "in the layout of DAVIS; expected SA-V"),
        "of sav": ([str(sav), "--submission", "mose"], "in the layout of SA-V; expected YouTube"),
    }
    found = {}
    for name, (words, expected) in refused.items():
        status = cli.run(["segment", *words, "--out", str(out)])
        said = capsys.readouterr().err
        if status != 2 or len(said.splitlines()) != 1 or expected not in said or out.exists():
            found[name] = status, said
    assert found == {}
    source = ClipSource(dataset=root)
    assert list(plan_submission("davis", source, ["bee", "ant"], None).frames) == ["ant", "bee"]


def test_lists_say_which_clips_and_frames_are_wanted(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set", "youtube-vos")
    source = ClipSource(dataset=root)
    frames = plan_submission("youtube-vos", source, None, None).frames
    assert {clip: len(found) for clip, found in frames.items()} == {"ant": 5, "bee": 5}
    meta = root / "meta.json"
    told = meta.read_text()
    meta.write_text(told.replace("00015", "00016"))
    with pytest.raises(InputError, match=r"ant lacks 1 frames that the server asks for \(00016\)"):
        plan_submission("youtube-vos", source, None, None)
    meta.write_text(told.replace('"ant"', '"cat"'))
    with pytest.raises(InputError, match=r"JPEGImages lacks 1 clips of submission .* \(cat\)"):
        plan_submission("youtube-vos", source, None, None)
    meta.write_text("[]")
    with pytest.raises(InputError, match="meta.json doesn't say which clips and frames"):
        plan_submission("youtube-vos", source, None, None)
    meta.unlink()
    frames = plan_submission("youtube-vos", source, None, None).frames
    assert {clip: len(found) for clip, found in frames.items()} == CLIPS


def test_a_link_that_leads_nowhere_is_a_frame_that_lacks_and_other_pictures_are_none(
    tmp_path: Path,
) -> None:
    root = make_set(tmp_path / "set", "mose")
    folder = root / "JPEGImages/ant"
    shutil.copy(root / "Annotations/ant/00000.png", folder / "thumbnail.png")
    (folder / "._00000.jpg").write_bytes(b"")
    source = ClipSource(dataset=root)
    assert plan_submission("mose", source, None, None).frames["ant"] == names("mose", "ant")
    frame = folder / "00003.jpg"
    frame.rename(tmp_path / "elsewhere.jpg")
    frame.symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(InputError, match=r"ant lacks 1 frames .* asks for \(00003\)"):
        plan_submission("mose", source, None, None)


def test_clips_that_no_list_asks_for_are_left_out(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set", "davis")
    (root / "ImageSets/2017/test-dev.txt").write_text("bee\n")
    source = ClipSource(dataset=root)
    assert list(plan_submission("davis", source, None, None).frames) == ["bee"]
    assert list(plan_submission("davis", source, ["bee"], None).frames) == ["bee"]
    (root / "ImageSets/2017/test-dev.txt").unlink()
    assert list(plan_submission("davis", source, None, None).frames) == list(CLIPS)


def test_every_benchmark_is_tested() -> None:
    assert list(SETS) == list(BENCHMARKS)
