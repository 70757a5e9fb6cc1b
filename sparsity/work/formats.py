"""Results of a run as files: indexed pictures, layers an object, COCO's run-length codes, or boxes.

==============  ==============================  ================================  =====================================
format          while the run lasts             when it is done                   holds
==============  ==============================  ================================  =====================================
``png``         ``masks/NAME.png``              the same                          one object a pixel, 254 objects
``layers``      ``masks/OBJECT/NAME.png``       the same                          overlaps, any number of objects
``coco-rle``    ``masks/NAME.json``             ``masks.json``                    these, scores, predicted IoUs
``boxes-csv``   ``masks/NAME.json``             ``boxes.csv``                     boxes of masks, these figures
==============  ==============================  ================================  =====================================

``masks.json`` is a list as COCO's tools take it: an entry for each object and frame with ``image_id`` (the frame's index),
``category_id`` (the object), ``segmentation``, ``bbox``, ``area`` and ``score`` (the predicted IoU, or the object's presence
where none was predicted), and beside these ``file_name``, ``object_score`` and ``ious`` (of the candidate masks).
"""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from probes.errors import InputError
from probes.files import whole, write_text
from sparsity.acceleration.report import ObjectReport
from sparsity.clips.drawn import LAST_ID, Ids, read_mask
from sparsity.clips.masks import write_layer, write_mask, written_by

FormatName = Literal["png", "layers", "coco-rle", "boxes-csv"]

JOINED = {"coco-rle": "masks.json", "boxes-csv": "boxes.csv"}
"""Formats that end in one file, and its name."""

COLUMNS = ("frame", "name", "object", "x0", "y0", "x1", "y1", "area", "object_score", "iou")


@dataclass(frozen=True, eq=False)
class FrameMasks:
    """What was found on a frame.

    Attributes
    ----------
    frame, name
        Index, and name of its files.
    ids
        One id a pixel ``[H, W]``.
    layers
        Bool ``[H, W]`` by object, where the format keeps overlaps; else empty.
    figures
        By object.
    """

    frame: int
    name: str
    ids: Ids
    layers: Mapping[int, NDArray[np.bool_]]
    figures: Mapping[int, ObjectReport]


@dataclass(frozen=True)
class Format:
    """How a run's results are written into its folder.

    Attributes
    ----------
    folder
        Of the run.
    """

    kind: FormatName
    folder: Path

    @property
    def layered(self) -> bool:
        """Whether objects may overlap."""
        return self.kind != "png"

    @property
    def masks(self) -> Path:
        """Folder of the files of single frames."""
        return self.folder / "masks"

    @property
    def result(self) -> Path:
        """What there is when all is done."""
        return self.folder / JOINED.get(self.kind, "masks")

    def check(self, objects: Iterable[int]) -> None:
        """Refuse objects whose ids the files can't hold.

        Raises
        ------
        InputError
            There are some.
        """
        for number in objects:
            if number < 1 or self.kind == "png" and number > LAST_ID:
                raise InputError(
                    f"object {number} given; expected ids of 1 to {LAST_ID}, which indexed masks can hold; number it anew, or "
                    "choose --format layers or coco-rle"
                )

    def write(self, found: FrameMasks, settings_hash: str) -> None:
        """Write a frame; its files are whole or absent."""
        if self.kind == "png":
            write_mask(self.masks / f"{found.name}.png", found.ids, settings_hash)
        elif self.kind == "layers":
            for number, layer in found.layers.items():
                (self.masks / str(number)).mkdir(exist_ok=True)
                write_layer(self.masks / str(number) / f"{found.name}.png", layer, settings_hash)
        else:
            entries = [_entry(found, number) for number in found.layers]
            part = {"settings_sha256": settings_hash, "objects": entries}
            write_text(self.masks / f"{found.name}.json", json.dumps(part))

    def has(self, name: str, objects: Iterable[int], settings_hash: str) -> bool:
        """Whether a frame was written with these settings, with these objects on it."""
        if self.kind == "png":
            return written_by(self.masks / f"{name}.png", settings_hash)
        if self.kind == "layers":
            return all(
                written_by(self.masks / str(i) / f"{name}.png", settings_hash) for i in objects
            )
        return self._part(name).get("settings_sha256") == settings_hash

    def ids(self, name: str, objects: Sequence[int], size: tuple[int, int]) -> Ids:
        """Read a frame back as one id a pixel; of objects that overlap the one with the smaller id."""
        if self.kind == "png":
            return read_mask(self.masks / f"{name}.png")
        ids: Any = np.zeros(size, np.int32)
        layers: dict[int, NDArray[np.bool_]]
        if self.kind == "layers":
            files = {i: self.masks / str(i) / f"{name}.png" for i in objects}
            layers = {i: read_mask(file) > 0 for i, file in files.items()}
        else:
            entries = self._part(name)["objects"]
            layers = {e["category_id"]: coco.decode(e["segmentation"]) > 0 for e in entries}
        for number in sorted(layers, reverse=True):
            ids[layers[number]] = number
        return ids

    def finish(self, names: Iterable[str]) -> None:
        """Put the files of single frames together, where the format has one file."""
        if self.result == self.masks:
            return
        entries = [entry for name in names for entry in self._part(name)["objects"]]
        if self.kind == "coco-rle":
            write_text(self.result, json.dumps(entries))
        else:
            with whole(self.result) as part, part.open("w", newline="", encoding="utf-8") as file:
                rows = csv.writer(file)
                rows.writerow(COLUMNS)
                rows.writerows(_row(entry) for entry in entries)
        shutil.rmtree(self.masks)

    def _part(self, name: str) -> dict[str, Any]:
        """Read the file of a frame; an empty one where there is none that is whole."""
        try:
            found = json.loads((self.masks / f"{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def format_of(kind: str, folder: Path) -> Format:
    """Return a format by its name.

    Raises
    ------
    InputError
        There is none of that name.
    """
    for known in get_args(FormatName):
        if known == kind:
            return Format(known, folder)
    raise InputError(
        f"format {kind!r} given; expected {', '.join(get_args(FormatName))}; choose one of them"
    )


def _entry(found: FrameMasks, number: int) -> dict[str, Any]:
    """Return an object on a frame as COCO's tools take it."""
    code = coco.encode(np.asfortranarray(found.layers[number].astype(np.uint8)))
    figures = found.figures.get(number)
    score = None if figures is None else figures.score
    ious, iou = ([], None) if figures is None else (figures.ious, figures.iou)
    presence = 1.0 if score is None else 1 / (1 + math.exp(-max(score, -500)))
    return {
        "image_id": found.frame,
        "category_id": number,
        "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
        "bbox": coco.toBbox(code).tolist(),
        "area": int(coco.area(code)),
        "score": presence if iou is None else iou,
        "file_name": found.name,
        "object_score": score,
        "ious": ious,
    }


def _row(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return an object on a frame as a row; an empty mask has no box."""
    x, y, width, height = (int(side) for side in entry["bbox"])
    box = (x, y, x + width, y + height) if entry["area"] else ("",) * 4
    score = "" if entry["object_score"] is None else f"{entry['object_score']:.4f}"
    iou = f"{entry['score']:.4f}" if entry["ious"] else ""
    at = entry["image_id"], entry["file_name"], entry["category_id"]
    return *at, *box, entry["area"], score, iou


def read_masks(file: Path) -> dict[int, dict[int, NDArray[np.bool_]]]:
    """Read a ``masks.json`` back: by frame and object, bool ``[H, W]``.

    Raises
    ------
    InputError
        It can't be read.
    """
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        found: dict[int, dict[int, NDArray[np.bool_]]] = {}
        for entry in entries:
            layer = coco.decode(entry["segmentation"]).astype(bool)
            found.setdefault(entry["image_id"], {})[entry["category_id"]] = layer
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{file} can't be read; expected a masks.json of --format coco-rle; check the path"
        ) from None
    return found
