"""The archive that a benchmark's server takes, of the masks of a data set's clips.

===========  ===============================  ========================================================================
benchmark    in the archive                   source
===========  ===============================  ========================================================================
davis        CLIP/FRAME.png                   the server's own `evaluation_codalab.py` of
                                              `davisvideochallenge/davis2017-evaluation`: folders of the sequences
                                              "directly inside the zip", in each "an indexed PNG file for every frame",
                                              whose "indexes have to match with the initial frame"
youtube-vos  Annotations/CLIP/FRAME.png       `eval.py` of `hkchengrex/XMem`, `make_zip` of `hkchengrex/Cutie` and
                                              `zip_folder` of `yoxu515/aot-benchmark`, which report the server's
                                              figures; frames: those of `meta.json`, as XMem reads it
mose         CLIP/FRAME.png                   `MOSEv2/sam2_rcms/README.md` ("executed in the root directory of the
                                              output path") and `tools/score.py` of `henghuiding/MOSE-api`: every
                                              frame, in the video's size
sa-v         CLIP/OBJECT/FRAME.png            `sav_dataset/README.md` of `facebookresearch/sam2`: what its evaluator
                                              takes as ``PRED_ROOT``, binary masks; masks without truth are ignored
lvos         Annotations/CLIP/FRAME.png       `eval_scripts/aot` of `LingyiHongfd/LVOS-api` and `make_zip` of Cutie
                                              ("same as YouTubeVOS")
===========  ===============================  ========================================================================

That is what public files say; no archive was uploaded, and the pages of the servers weren't read. The copy of DAVIS's
`evaluation_codalab.py` in `LingyiHongfd/lvos-evaluation` would have LVOS's clips directly in the archive; it still reads
DAVIS, so what LVOS's own tools write goes before it. SA-V's archive is for its evaluator; a server is not known.

Every frame of a clip has its mask, unless a list says which are wanted, and an object is in none before the one that prompts
it, where no benchmark has it: `segment` tracks the first objects of a clip back to its beginning. Masks are written anew from
their pixels, without the settings' hash: the same pixels make the same archive, byte for byte on the same machine.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import numpy as np
from PIL import Image

from probes.errors import InputError, some_of
from probes.files import sweep, whole
from probes.pictures import IMAGE_SUFFIXES, JPEG_SUFFIXES, open_picture
from sparsity.clips.drawn import Ids
from sparsity.clips.layouts import find_layout, listed_names
from sparsity.clips.masks import PALETTE
from sparsity.clips.sources import Clip, ClipSource

READABLE = 0o644 << 16
"""Rights of a file in an archive: those of systems where a file without rights can't be read."""

UNIX = 3
"""System that the rights are of; zipfile would write the one that it runs on."""

FIRST_DAY = (1980, 1, 1, 0, 0, 0)
"""The earliest time that an archive holds."""


@dataclass(frozen=True)
class Benchmark:
    """What a server takes.

    Attributes
    ----------
    layout
        Name of the data set's layout, of `sparsity.clips.layouts.LAYOUTS`.
    top
        Folder of the archive that holds the clips; empty where they lie in it directly.
    lists
        Files of the data set that name the clips that are asked for; the first that is there counts, and without any of
        them all clips are.
    lists_frames
        Whether the list says which frames are wanted, too.
    """

    layout: str
    top: str = ""
    lists: tuple[str, ...] = ()
    lists_frames: bool = False


BENCHMARKS = {
    "davis": Benchmark("DAVIS", lists=tuple(
        f"ImageSets/2017/{split}.txt" for split in ("test-dev", "test-challenge", "val")
    )),
    "youtube-vos": Benchmark(
        "YouTube-VOS, MOSE or LVOS", "Annotations", ("meta.json",), lists_frames=True
    ),
    "mose": Benchmark("YouTube-VOS, MOSE or LVOS"),
    "sa-v": Benchmark("SA-V", lists=("sav_test.txt", "sav_val.txt")),
    "lvos": Benchmark("YouTube-VOS, MOSE or LVOS", "Annotations", lists=tuple(
        f"{split}meta.json" for split in ("test_", "val_", "valid_", "")
    )),
}  # fmt: skip
"""By the name that the command takes."""


@dataclass(frozen=True)
class Submission:
    """An archive that will be written once all clips are segmented.

    Attributes
    ----------
    kind
        Of `BENCHMARKS`.
    frames
        By the name of each clip that is asked for, ascending: names of its wanted frames, ascending.
    """

    kind: str
    source: ClipSource
    frames: dict[str, list[str]]

    def write(self, out: Path) -> Path:
        """Write ``submission-KIND.zip`` beside the clips' folders; the file is whole or absent.

        Masks are taken from ``OUT/CLIP/masks/FRAME.png``, or where they are there from ``OUT/CLIP/masks/ID/FRAME.png``, a
        layer an object. Where a benchmark wants layers and there are none, ids are split: what another object overlaps is
        lost then. Where it wants ids and there are layers, the smallest id is on top, as in sam2's `vos_inference.py`.

        Raises
        ------
        InputError
            A mask is missing, of another size than its video, or of objects that weren't prompted.
        """
        path = out / f"submission-{self.kind}.zip"
        sweep(out)
        path.unlink(missing_ok=True)  # of other masks, maybe
        with whole(path) as part, ZipFile(part, "w", ZIP_STORED) as archive:
            for name, frames in self.frames.items():
                masks = _Masks(self.source.open(name, labelled=False), out / name / "masks")
                masks.check(frames)
                for inside, ids in self._pictures(masks, frames):
                    entry = ZipInfo("/".join(filter(None, (self._top, name, inside))), FIRST_DAY)
                    entry.create_system, entry.external_attr = UNIX, READABLE
                    archive.writestr(entry, _png(ids))
        return path

    @property
    def _top(self) -> str:
        return BENCHMARKS[self.kind].top

    def _pictures(self, masks: _Masks, frames: list[str]) -> Iterator[tuple[str, Ids]]:
        """Yield what lies in a clip's folder of the archive: names, and ids ``[H, W]``."""
        for frame in frames:
            if self.kind != "sa-v":
                yield f"{frame}.png", masks.merged(frame)
                continue
            for number, layer in masks.layers(frame).items():
                yield f"{number - 1:03d}/{frame}.png", layer

    def text(self, path: Path) -> str:
        """Say in a line what was written."""
        count = sum(len(frames) for frames in self.frames.values())
        return f"submission  {path}  ({len(self.frames)} clips, {count} frames)"


def plan_submission(
    kind: str,
    source: ClipSource | None,
    only: list[str] | None,
    max_frames: int | None,
    form: str | None = None,
) -> Submission:
    """Find out what an archive will hold, before any work is done.

    Parameters
    ----------
    kind
        Of `BENCHMARKS`.
    source
        Clips that will be segmented; None for one video.
    only, max_frames
        What is left out of them, if anything.
    form
        Format of the results, where one is asked for.

    Raises
    ------
    InputError
        There is no such benchmark, the clips are no data set in its layout, or not all of what it asks for will be there.
    """
    if kind not in BENCHMARKS:
        raise InputError(
            f"submission {kind!r} given; expected one of {', '.join(BENCHMARKS)}; choose one of them"
        )
    if source is None or source.dataset is None:
        raise InputError(
            f"submission {kind} of {'one video' if source is None else 'a folder of videos'} given; expected a data set "
            f"in the layout of {BENCHMARKS[kind].layout}; give the folder that holds frames and annotations"
        )
    if form not in (None, "png", "layers"):
        raise InputError(
            f"submission {kind} and format {form} given; expected pictures, png or layers, of which archives are made; drop one"
        )
    if max_frames is not None:
        raise InputError(
            f"submission {kind} and max-frames {max_frames} given; expected every frame, as servers refuse what is "
            "incomplete; drop one"
        )
    root, wants = source.dataset, BENCHMARKS[kind]
    layout = find_layout(root)
    if layout.name != wants.layout:
        raise InputError(
            f"submission {kind} given, and {root} in the layout of {layout.name}; expected {wants.layout}; choose the "
            "benchmark that the data set belongs to"
        )
    asked = _asked_for(root, wants)
    there, taken = set(source.names()), set(source.names(only=only))
    for missing, where, what in (
        ([name for name in asked or () if name not in there], root / layout.frames, "add them"),
        ([name for name in asked or there if name not in taken], "the list of clips", "drop it"),
    ):
        if missing:
            raise InputError(
                f"{where} lacks {len(missing)} clips of submission {kind} ({some_of(sorted(missing))}); expected all, as "
                f"servers refuse what is incomplete; {what}"
            )
    frames = {}
    for name in sorted(asked or there):
        files = _frame_files(source.places(name)[0])
        wanted = sorted((asked or {}).get(name) or files)
        absent = [frame for frame in wanted if frame not in files or not files[frame].is_file()]
        if absent:
            raise InputError(
                f"{source.places(name)[0]} lacks {len(absent)} frames that the server asks for ({some_of(absent)}); "
                "expected all; add them"
            )
        frames[name] = wanted
    return Submission(kind, source, frames)


def _frame_files(folder: Path) -> dict[str, Path]:
    """Return the files of a clip's frames by their names, links that lead nowhere too."""
    shown = [p for p in folder.iterdir() if not p.name.startswith(".")]
    pictures = [p for p in shown if p.suffix.lower() in IMAGE_SUFFIXES]
    files = [p for p in pictures if p.suffix.lower() in JPEG_SUFFIXES] or pictures
    return {p.stem: p for p in files}


def _asked_for(root: Path, wants: Benchmark) -> dict[str, list[str]] | None:
    """Return the clips that a data set's list names, each with its wanted frames, none for all; None without a list."""
    path = next((root / name for name in wants.lists if (root / name).is_file()), None)
    if path is None:
        return None
    if path.suffix != ".json":
        return {name: [] for name in listed_names(path)}
    try:
        clips = json.loads(path.read_text(encoding="utf-8"))["videos"]
        if not wants.lists_frames:
            return {str(name): [] for name in clips}
        return {
            name: sorted({str(f) for one in clip["objects"].values() for f in one["frames"]})
            for name, clip in clips.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{path} doesn't say which clips{' and frames' if wants.lists_frames else ''} are asked for; expected the "
            "file that came with the data set; replace it"
        ) from None


class _Masks:
    """Masks of a clip as `segment` wrote them, ids in one picture or a layer an object."""

    def __init__(self, clip: Clip, folder: Path) -> None:
        self.clip, self.folder = clip, folder
        assert clip.video.names is not None, "frames of a folder have names"
        self.index = {name: index for index, name in enumerate(clip.video.names)}
        shown = folder.iterdir() if folder.is_dir() else iter(())
        self.folders = {int(p.name): p for p in shown if p.is_dir() and p.name.isdecimal()}

    def check(self, frames: list[str]) -> None:
        """Hold that there is a mask for each wanted frame, and where there are layers for each object."""
        wanted = [self.folder / f"{frame}.png" for frame in frames]
        if self.folders:
            self._check_ids(set(self.folders), self.folder)
            wanted = [
                self._layer(number, frame)
                for number in self.clip.objects
                for frame in frames
                if self._prompted(number, frame)
            ]
        missing = [path for path in wanted if not path.is_file()]
        if missing:
            raise InputError(
                f"{missing[0]} is missing, one of {len(missing)} masks of clip {self.clip.name}; expected one for each "
                "frame that the server asks for; mend the clip's frames, or give the same command with --force"
            )

    def merged(self, frame: str) -> Ids:
        """Return the ids ``[H, W]`` of a frame."""
        if self.folders:
            ids = np.zeros((self.clip.video.height, self.clip.video.width), np.uint8)
            for number, layer in reversed(self.layers(frame).items()):
                ids[layer > 0] = number
            return ids
        path = self.folder / f"{frame}.png"
        ids = self._read(path)
        self._check_ids(set(np.unique(ids).tolist()) - {0}, path)
        later = [i for i in self.clip.objects if not self._prompted(i, frame)]
        return np.where(np.isin(ids, later), 0, ids).astype(np.uint8)

    def layers(self, frame: str) -> dict[int, Ids]:
        """Return by object, ascending: 1 where it is on a frame, else 0, ``[H, W]``."""
        if not self.folders:
            ids = self.merged(frame)
            return {i: (ids == i).astype(np.uint8) for i in self.clip.objects}
        empty = np.zeros((self.clip.video.height, self.clip.video.width), np.uint8)
        return {
            i: (self._read(self._layer(i, frame)) > 0).astype(np.uint8)
            if self._prompted(i, frame)
            else empty
            for i in self.clip.objects
        }

    def _layer(self, number: int, frame: str) -> Path:
        """Return the file of an object's mask."""
        return self.folders.get(number, self.folder / str(number)) / f"{frame}.png"

    def _prompted(self, number: int, frame: str) -> bool:
        """Whether an object is prompted on a frame or before."""
        return frame not in self.index or self.clip.starts[number] <= self.index[frame]

    def _read(self, path: Path) -> Ids:
        """Read the values ``[H, W]`` of a picture as they are, as servers do."""
        with open_picture(path, "a mask that segment wrote") as image:
            size = self.clip.video.width, self.clip.video.height
            if image.size != size or image.mode not in ("1", "L", "P"):
                raise InputError(
                    f"{path} is {image.size[0]}x{image.size[1]} in mode {image.mode}; expected {size[0]}x{size[1]}, as its "
                    "video, and indexed; give the same command with --force"
                )
            return np.array(image).astype(np.uint8)

    def _check_ids(self, found: set[int], path: Path) -> None:
        other = sorted(found - set(self.clip.objects))
        if other:
            raise InputError(
                f"{path} has object {other[0]}; expected those that prompt clip {self.clip.name} "
                f"({some_of([str(i) for i in self.clip.objects])}); give the same command with --force"
            )


def _png(ids: Ids) -> bytes:
    """Return ids ``[H, W]`` as an indexed PNG in the DAVIS palette."""
    image, written = Image.fromarray(ids), io.BytesIO()
    image.putpalette(PALETTE.tobytes())
    image.save(written, format="PNG")
    return written.getvalue()
