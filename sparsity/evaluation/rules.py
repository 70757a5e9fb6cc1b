"""Figures that data sets publish beside J and F, or in their place for boxes, each by the rule of its own evaluation.

===========  =====================================================================  ==================================
rules        figures                                                                taken where
===========  =====================================================================  ==================================
YouTube-VOS  J and F of seen and of unseen categories; G, the mean of the four      ``meta.json`` names categories
MOSEv2       J, F adapted; J&F where objects are gone and where they are back       asked for, or the path says MOSEv2
VOST         J; J of the last quarter of the frames                                 the layout is VOST's
LVOS         J and F, the prompted frame among them, up to the object's last        ``meta.json`` names frame ranges
(boxes)      success: how many frames overlap by more than a threshold, its mean    the truth is a box a frame
===========  =====================================================================  ==================================

All are in per cent and means over objects. Where nothing else is said, an object's frames are those that count for J and
F: annotated, after the one it is prompted on, without the last.

Sources: **MOSEv2** github.com/henghuiding/MOSE-api, ``MOSEv2/sam2_rcms/tools/score.py`` and ``metricsv2.py`` (Ding et al.,
arXiv 2508.05630): J adds 1 to intersection and union; the boundary's tolerance is a tenth of the root of the true area,
rounded up, at most 0.008 of the diagonal. **VOST** github.com/TRI-ML/VOST, ``evaluation/``. **LVOS**
github.com/LingyiHongfd/lvos-evaluation, ``lvos/evaluation_mp.py``; its V and its split by categories are left out.
**YouTube-VOS** (Xu et al., arXiv 1809.03327) scores on a server whose program isn't public: which frames it leaves out
isn't known, and here they are evaluate's. **Boxes** as OTB (Wu et al., CVPR 2013) and LaSOT (Fan et al., arXiv 1809.07845)
score one pass, by github.com/visionml/pytracking, ``pytracking/analysis/extract_results.py``; precision, normalised or not,
and GOT-10k's AO are left out. SA-V, DAVIS and MOSE publish J&F, J and F over objects; SA-V's evaluator
(sam2's ``sav_dataset``) leaves out an object's first and last annotated frame, also where it is prompted later.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.morphology import disk

from probes.errors import InputError
from sparsity.clips.boxes import BoxClip, Boxes
from sparsity.clips.layouts import Masks, find_layout
from sparsity.clips.sources import Clip
from sparsity.evaluation.quality import layer, score_masks
from sparsity.evaluation.results import ClipQuality

Mask = NDArray[np.bool_]

YOUTUBE_VOS, MOSEV2, VOST, LVOS = RULES = ("YouTube-VOS", "MOSEv2", "VOST", "LVOS")

TOLERANCE = 0.008
"""Of the diagonal: how far a boundary may lie off, at most."""

THRESHOLDS = np.linspace(0, 1, 21)
"""Of the overlap, which must be larger: no boxes reach more than 20 of 21."""

OF_SIZE = 0.1
"""Of the root of an object's area: how far its boundary may lie off by the rule of MOSEv2."""

LVOS_STEP = 5
"""LVOS counts every fifth frame, which are those that it annotates."""

_SEEN = """
airplane ape bear bike bird boat bucket bus camel cat cow crocodile deer dog dolphin duck eagle earless_seal elephant
fish fox frisbee frog giant_panda giraffe hand hat hedgehog horse knife leopard lion lizard monkey motorbike mouse
others owl paddle parachute parrot penguin person plant rabbit raccoon sedan shark sheep sign skateboard snail snake
snowboard squirrel surfboard tennis_racket tiger toilet train truck turtle umbrella whale zebra
"""

SEEN = frozenset(_SEEN.split())
"""Categories of YouTube-VOS's training set of 2019, as github.com/wjn922/ReferFormer lists them
(``datasets/categories.py``); where the training set lies beside, its ``meta.json`` says."""


@dataclass(frozen=True)
class Rules:
    """Whose figures are wanted, and what the data set says about its objects.

    Attributes
    ----------
    name
        One of `RULES`, or None for J and F alone.
    objects
        By clip, then by id as text: what ``meta.json`` says of an object.
    seen
        Categories that count as seen.
    """

    name: str | None = None
    objects: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seen: frozenset[str] = SEEN


@dataclass(frozen=True)
class Track:
    """One object through the annotated frames of its clip.

    Attributes
    ----------
    found, true
        Masks bool ``[H, W]``, one an annotated frame.
    start
        Position of the frame that prompts it.
    names
        Of the annotated frames.
    """

    found: Sequence[Mask]
    true: Sequence[Mask]
    start: int
    names: Sequence[str]

    @property
    def counted(self) -> slice:
        """Positions of the frames that count."""
        return slice(self.start + 1, -1)


def rules_of(root: Path, name: str | None = None) -> Rules:
    """Tell whose figures fit a data set; `name` asks for them.

    Raises
    ------
    InputError
        There are no such rules, or its ``meta.json`` doesn't say what they need.
    """
    if name is not None and name.lower() not in (known.lower() for known in RULES):
        raise InputError(
            f"rules {name!r} given; expected one of {', '.join(RULES)}; leave it out for what the data says"
        )
    layout = find_layout(root)
    home = root / layout.subset
    objects = _objects(home / "meta.json")
    entries = [entry for of_clip in objects.values() for entry in of_clip.values()]
    if name is not None:
        chosen = next(known for known in RULES if known.lower() == name.lower())
    elif layout.name == VOST:
        chosen = VOST
    elif any(MOSEV2.lower() in part.lower() for part in home.resolve().parts[-3:]):
        chosen = MOSEV2
    elif any("frame_range" in entry for entry in entries):
        chosen = LVOS
    elif any("category" in entry for entry in entries):
        chosen = YOUTUBE_VOS
    else:
        return Rules()
    needed = {YOUTUBE_VOS: "category", LVOS: "frame_range"}.get(chosen)
    if needed and not any(needed in entry for entry in entries):
        raise InputError(
            f"rules {chosen} given; {home / 'meta.json'} names no {needed} of any object; expected the set's own "
            "file; add it, or leave the rules out"
        )
    trained = home.parent / "train" / "meta.json"
    of_training = _objects(trained) if home.name != "train" else {}
    categories = {
        e["category"] for c in of_training.values() for e in c.values() if "category" in e
    }
    return Rules(chosen, objects, frozenset(categories) or SEEN)


def _objects(path: Path) -> dict[str, dict[str, Any]]:
    """Read what a ``meta.json`` says of each clip's objects; nothing where there is none of that form."""
    try:
        videos = json.loads(path.read_text(encoding="utf-8"))["videos"]
        return {
            name: {i: entry for i, entry in video["objects"].items() if isinstance(entry, dict)}
            for name, video in videos.items()
            if isinstance(video.get("objects"), dict)
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def with_figures(
    quality: ClipQuality, clip: Clip, found: Sequence[Masks], true: Sequence[Masks], rules: Rules
) -> ClipQuality:
    """Return a clip's quality with the further figures of each object.

    Parameters
    ----------
    found, true
        Masks of all annotated frames.
    """
    if rules.name is None or clip.truth is None or clip.video.names is None:
        return quality
    frames = list(clip.truth)
    names = [clip.video.names[frame] for frame in frames]
    each = {}
    for k, i in enumerate(clip.objects):
        ones, others = ([layer(m, k, i) for m in several] for several in (found, true))
        track = Track(ones, others, frames.index(clip.starts[i]), names)
        figures = object_figures(rules, track, clip.name, i)
        each[str(i)] = quality.objects[str(i)].model_copy(update={"figures": figures})
    return quality.model_copy(update={"objects": each})


def object_figures(rules: Rules, track: Track, clip: str, object_id: int) -> dict[str, float]:
    """Return an object's further figures in per cent; one that can't be said is absent."""
    if rules.name == MOSEV2:
        return mosev2(track.found[track.counted], track.true[track.counted])
    if rules.name == VOST:
        j = _j(track.found[track.counted], track.true[track.counted])
        return {"J": float(np.mean(j)), "J last quarter": float(np.mean(j[int(0.75 * len(j)) :]))}
    if rules.name == LVOS:
        entry = rules.objects.get(clip, {}).get(str(object_id), {}).get("frame_range")
        frames = lvos_frames(track, entry) if entry else []
        if frames:
            found, true = ([m[t][None] for t in frames] for m in (track.found, track.true))
            ((mean_j, mean_f),) = score_masks(found, true, [1]).values()
            return {"J": mean_j, "F": mean_f}
    return {}


def lvos_frames(track: Track, entry: Mapping[str, Any]) -> list[int]:
    """Positions of the frames of an object that LVOS counts: from its first, every fifth, before its last."""
    wanted = set(range(int(entry["start"]), int(entry["end"]), LVOS_STEP))
    return [t for t, name in enumerate(track.names) if name.isdigit() and int(name) in wanted]


def overall_figures(rules: Rules, clips: Mapping[str, ClipQuality]) -> dict[str, float]:
    """Return the further figures of a data set in per cent: means over the objects that have them."""
    if rules.name == YOUTUBE_VOS:
        return youtube_vos(rules, clips)
    each = [item.figures for clip in clips.values() for item in clip.objects.values()]
    names = list(dict.fromkeys(name for figures in each for name in figures))
    return {n: float(np.mean([figures[n] for figures in each if n in figures])) for n in names}


def youtube_vos(rules: Rules, clips: Mapping[str, ClipQuality]) -> dict[str, float]:
    """Return J and F of objects of seen and of unseen categories, and G, their mean, where there are both."""
    means: dict[str, float] = {}
    for kind, seen in (("seen", True), ("unseen", False)):
        objects = [
            item
            for name, clip in clips.items()
            for i, item in clip.objects.items()
            if (category := rules.objects.get(name, {}).get(i, {}).get("category")) is not None
            and (category in rules.seen) == seen
        ]
        if objects:
            means[f"J {kind}"] = float(np.mean([item.j for item in objects]))
            means[f"F {kind}"] = float(np.mean([item.f for item in objects]))
    return {"G": float(np.mean(list(means.values()))), **means} if len(means) == 4 else means


# ---------------------------------------------------------------------- MOSEv2


def mosev2(found: Sequence[Mask], true: Sequence[Mask]) -> dict[str, float]:
    """Return an object's figures by the rule of MOSEv2.

    A stretch of frames without the object that begins after the first frame counts as gone, a stretch with it after
    one without as back; J&F of each is the mean over its frames, then over such stretches.
    """
    js = np.array([_j_plus_one(f, t) for f, t in zip(found, true, strict=True)])
    fs = np.array([adapted_f(f, t) for f, t in zip(found, true, strict=True)])
    both = (js + fs) / 2
    figures = {"J&F adapted": both.mean(), "J": js.mean(), "F adapted": fs.mean()}
    there = np.array([bool(mask.any()) for mask in true])
    edges = [0, *(np.flatnonzero(there[1:] != there[:-1]) + 1), len(there)]
    later = list(zip(edges[1:-1], edges[2:], strict=True))
    for name, wanted in (("J&F gone", False), ("J&F back", True)):
        stretches = [both[a:b].mean() for a, b in later if there[a] == wanted]
        if stretches:
            figures[name] = np.mean(stretches)
    return {name: 100 * float(value) for name, value in figures.items()}


def adapted_f(found: Mask, true: Mask) -> float:
    """Return the boundary measure in [0, 1] whose tolerance goes by the object's size.

    A tolerance of the diagonal isn't rounded, and then the disk's middle lies between pixels, as in the source.
    """
    most = TOLERANCE * np.linalg.norm(true.shape)
    reach = disk(min(most, np.ceil(OF_SIZE * np.sqrt(true.sum())) if true.any() else most))
    one, other = _boundary(found), _boundary(true)
    if not one.any() or not other.any():
        return float(one.any() == other.any())
    precision = cv2.dilate(other.astype(np.uint8), reach)[one].mean()
    recall = cv2.dilate(one.astype(np.uint8), reach)[other].mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def _boundary(mask: Mask) -> Mask:
    """Return pixels whose right, lower or lower right neighbour lies on the other side, bool ``[H, W]``."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    edge: Mask = (mask ^ padded[:-1, 1:]) | (mask ^ padded[1:, :-1]) | (mask ^ padded[1:, 1:])
    return edge


def _j_plus_one(found: Mask, true: Mask) -> float:
    return float(((found & true).sum() + 1) / ((found | true).sum() + 1))


def _j(found: Sequence[Mask], true: Sequence[Mask]) -> list[float]:
    """Return J of each frame in per cent."""
    pairs = [((f & t).sum(), (f | t).sum()) for f, t in zip(found, true, strict=True)]
    return [100.0 * float(shared / union) if union else 100.0 for shared, union in pairs]


# ---------------------------------------------------------------------- boxes


def overlaps(found: Boxes, true: Boxes) -> NDArray[np.float64]:
    """Return intersection over union of boxes ``[n, 4]`` (x, y, w, h), ``[n]``; 0 where neither has area.

    >>> overlaps(np.array([[0, 0, 2, 2.0]]), np.array([[1, 0, 2, 2.0]])).round(3).tolist()
    [0.333]
    """
    corner = np.maximum(found[:, :2], true[:, :2])
    end = np.minimum(found[:, :2] + found[:, 2:], true[:, :2] + true[:, 2:])
    shared = np.clip(end - corner, 0, None).prod(1)
    union = found[:, 2:].prod(1) + true[:, 2:].prod(1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def success(found: Boxes, clip: BoxClip) -> float:
    """Return the area under the success plot of a clip in per cent.

    The first frame, which prompts, counts as found; a box without area is taken for the one before; frames without the
    object count as missed where the set flags them, as LaSOT does, and not at all elsewhere.

    Parameters
    ----------
    found
        ``[frames, 4]``; without area where the tool has none.
    """
    found = found.copy()
    found[0] = clip.boxes[0]
    for t in range(1, len(found)):
        if not (found[t, 2:] > 0).all():
            found[t] = found[t - 1]
    seen = clip.seen
    overlap = overlaps(found[seen], clip.boxes[seen])
    frames = len(found) if clip.flagged else int(seen.sum())
    return 100 * float(((overlap[:, None] > THRESHOLDS).sum(0) / frames).mean())
