"""A card: what one model did on one data set, in one JSON document, with the published figures beside it.

``"schema": "efficient-sam2/card/1"``. This module needs pydantic and numpy alone. A card is checked against itself when it is
read: means and intervals must be those of its clips.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import numpy as np
from pydantic import Field, FiniteFloat, NonNegativeInt, model_validator

from probes.estimates import FEWEST, interval
from sparsity.evaluation.results import (
    Data,
    EndToEndRow,
    Environment,
    Interval,
    Model,
    Quality,
    Run,
    Strict,
    parse_document,
    read_document,
)

SCHEMA: Final = "efficient-sam2/card/1"

STOCK = "stock"
"""Name of the first row: unmodified sam2."""

Weights = Literal["random", "demo", "official", "given"]
"""Which: random ones, the demo model's, those that sam2's authors published, or others."""

SAID: dict[Weights, str] = {
    "random": "RANDOM weights: no figure of quality or attention says anything about SAM 2",
    "demo": "demo model: illustrates the method, and is no evidence about SAM 2 itself",
    "official": "official weights",
    "given": "weights that were given",
}
"""What figures of such weights are worth."""

DECIMALS = 6
"""To which a card's means must be those of its clips."""


class Published(Strict):
    """What is published of a setting, at second hand: read from secondary texts, not from the paper's own tables.

    Attributes
    ----------
    setting
        ``"dense"``, ``"SWR"``, ``"SMR"`` or ``"SWR + SMR"``.
    speed
        Times as fast as dense, on the authors' GPU.
    """

    setting: str
    j_and_f: FiniteFloat
    speed: FiniteFloat | None = None


SETTINGS = ("dense", "SWR", "SMR", "SWR + SMR")

PUBLISHED: dict[tuple[str, str], tuple[float, float, float, float]] = {
    ("sam2.1-large", "SA-V test"): (79.2, 77.5, 79.3, 78.2),
    ("sam2.1-large", "DAVIS 2017 val"): (89.9, 89.7, 89.9, 89.5),
    ("sam2.1-base-plus", "SA-V test"): (77.7, 75.0, 77.8, 75.5),
}
"""J&F by model and data set, in the order of `SETTINGS` (Efficient-SAM2, arXiv 2602.08224, second hand)."""

PUBLISHED_SPEED = {"sam2.1-large": 1.68, "sam2.1-base-plus": 1.74}
"""Of both together, by model, second hand; that of Base+ may leave out what is neither encoder nor memory attention."""

SAV_TEST = 150, 278
"""Clips and objects of SA-V's test set (SAM 2, arXiv 2408.00714, section 5.2)."""

DAVIS_2017 = (
    "bike-packing blackswan bmx-trees breakdance camel car-roundabout car-shadow cows dance-twirl dog dogs-jump drift-chicane "
    "drift-straight goat gold-fish horsejump-high india judo kite-surf lab-coat libby loading mbike-trick motocross-jump "
    "paragliding-launch parkour pigs scooter-black shooting soapbox"
)
"""Clips of DAVIS 2017 val, with blanks between them."""

DAVIS_OBJECTS = 61
"""Objects in them; DAVIS 2016 has one a clip."""


def known_set(layout: str, clips: Mapping[str, int]) -> str | None:
    """Tell which published data set clips are, by their names or numbers.

    Parameters
    ----------
    layout
        Name of the layout, see `sparsity.clips.layouts.LAYOUTS`.
    clips
        Objects by clip; whole clips.

    >>> known_set("SA-V", {str(i): 2 if i < 128 else 1 for i in range(150)})
    'SA-V test'
    """
    objects = sum(clips.values())
    if layout == "SA-V" and (len(clips), objects) == SAV_TEST:
        return "SA-V test"
    if sorted(clips) == DAVIS_2017.split() and objects == DAVIS_OBJECTS:
        return "DAVIS 2017 val"
    return None


def published(model: str, known: str | None, setting: str | None) -> Published | None:
    """Return what is published of a setting of a model on a data set; None where nothing is.

    >>> published("sam2.1-large", "SA-V test", "SWR + SMR").j_and_f
    78.2
    """
    found = None if known is None else PUBLISHED.get((model, known))
    if found is None or setting is None:
        return None
    both = setting == SETTINGS[-1]
    return Published(
        setting=setting,
        j_and_f=found[SETTINGS.index(setting)],
        speed=PUBLISHED_SPEED.get(model) if both else None,
    )


class Loss(Strict):
    """J&F of the stock run less that of a row, in points, paired object by object: mean and its interval.

    Objects of one clip are not independent, so clips are what the interval is over: each counts with the sum of its objects'
    differences from the mean (a ratio of two sums; Cochran, Sampling Techniques, 1977, section 6.3).
    """

    mean: FiniteFloat
    interval: Interval | None = None
    """None of too few clips."""
    objects: NonNegativeInt


def loss_of_objects(quality: Quality, stock: Quality) -> Loss:
    """Return the loss over objects of a row's quality against the stock row's."""
    lost = [
        [stock.clips[name].objects[i].j_and_f - found.j_and_f for i, found in clip.objects.items()]
        for name, clip in quality.clips.items()
    ]
    counts = np.array([len(of) for of in lost])
    mean = float(np.concatenate([np.array(of, float) for of in lost]).mean())
    sums = np.array([sum(of) for of in lost]) - mean * counts
    ends = None
    if len(lost) >= FEWEST:
        ends = interval(mean + sums / counts.mean(), quality.confidence)
    return Loss(mean=mean, interval=ends, objects=int(counts.sum()))


class CardRow(Strict):
    """One way to run the model.

    Attributes
    ----------
    weights
        Which, so that no row is read without it.
    quality
        Against true masks. Of ``stock`` it is that of the run with profile ``dense``, whose masks are stock's bit for bit.
    object_loss
        None for stock.
    speed
        Of the model alone, interleaved with stock sam2 on a made clip; None where it wasn't measured.
    end_to_end
        Milliseconds from a made file to its masks; of ``stock`` those of ``dense``.
    """

    name: str
    weights: Weights
    quality: Quality
    object_loss: Loss | None = None
    windows_kept: FiniteFloat | None = None
    keys_kept: FiniteFloat | None = None
    profile: dict[str, object] | None = None
    speed: Run | None = None
    end_to_end: EndToEndRow | None = None
    published: Published | None = None


class Observed(Strict):
    """A mean over clips and its interval; `chance` where the same is known by chance."""

    name: str
    mean: FiniteFloat
    interval: Interval | None = None
    clips: NonNegativeInt
    chance: FiniteFloat | None = None


class Observations(Strict):
    """The paper's observations, on stock sam2's runs over the first frames of the clips; see `probes.observations`.

    Attributes
    ----------
    frames
        Of a clip, at most.
    lift
        Foreground lift: the decoder's tokens first, then the encoder's global blocks; 1 is chance.
    top10
        Share of memory attention's mass on the top 10 % of keys, by layer.
    consistency
        Cosine (the paper's CS) of a memory frame's key mass with that when it was first recalled, by age; with chance.
    recall
        Mass that the 5 % of tokens chosen at first recollection hold, by age.
    """

    frames: NonNegativeInt
    lift: list[Observed]
    top10: list[Observed]
    consistency: list[Observed]
    recall: list[Observed]


class Card(Strict):
    """A whole card; see the classes of its parts.

    Attributes
    ----------
    environment
        In which speed was measured, where it was; else quality.
    known
        The published data set that the clips are, whole; None for others.
    speed_route
        Which windows were computed when the model alone was timed.
    end_to_end_frames, end_to_end_size
        Of the made file.
    notes
        What a reader must know, in plain words.
    """

    schema_: Literal["efficient-sam2/card/1"] = Field(SCHEMA, alias="schema")
    made_by: str
    environment: Environment
    model: Model
    weights: Weights
    data: Data
    layout: str
    known: str | None = None
    rows: list[CardRow]
    observations: Observations | None = None
    speed_route: str | None = None
    end_to_end_size: str | None = None
    end_to_end_frames: NonNegativeInt | None = None
    notes: list[str] = []

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Card:
        """Refuse rows that are not of these weights and clips, and means that are not those of the clips."""
        names = [row.name for row in self.rows]
        if names[:1] != [STOCK] or len(set(names)) < len(names):
            raise ValueError(f"rows {', '.join(names)}; expected {STOCK} first and each name once")
        if self.model.trained == (self.weights == "random"):
            raise ValueError(
                f"{self.weights} weights of a model that is trained or not; expected one of the two"
            )
        for row in self.rows:
            if row.weights != self.weights:
                raise ValueError(
                    f"row {row.name} of {row.weights} weights; expected {self.weights}"
                )
            _check_means(row, self.rows[0], self.data.clips)
        return self

    def row(self, name: str) -> CardRow:
        """Return the row of that name."""
        return next(row for row in self.rows if row.name == name)

    def to_json(self) -> str:
        """Return the document."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1)


def _check_means(row: CardRow, stock: CardRow, clips: list[str]) -> None:
    """Hold a row's means against its clips."""
    q = row.quality
    if list(q.clips) != clips:
        raise ValueError(f"row {row.name} is of other clips than the card's; expected the same")
    for clip, found in q.clips.items():
        same = list(stock.quality.clips[clip].objects)
        if list(found.objects) != same:
            raise ValueError(
                f"row {row.name} has other objects in {clip} than {STOCK}; expected the same"
            )
    expected: dict[str, tuple[float | None, float | None]] = {
        "J&F over clips": (q.j_and_f, float(np.mean([c.j_and_f for c in q.clips.values()]))),
        "J&F over objects": (
            q.over_objects.j_and_f,
            float(np.mean([o.j_and_f for c in q.clips.values() for o in c.objects.values()])),
        ),
    }
    if row is not stock:
        lost = [stock.quality.clips[name].j_and_f - c.j_and_f for name, c in q.clips.items()]
        expected["loss over clips"] = q.loss, float(np.mean(lost))
        ends = interval(lost, q.confidence) if len(lost) >= FEWEST else (None, None)
        given = q.intervals.get("loss", (None, None))
        expected |= {
            f"{end} end of the loss": (given[n], ends[n]) for n, end in ((0, "low"), (1, "high"))
        }
        by_object, stated = loss_of_objects(q, stock.quality), row.object_loss
        expected["loss over objects"] = None if stated is None else stated.mean, by_object.mean
    for what, (said, found_one) in expected.items():
        if (said is None) != (found_one is None) or (
            said is not None and found_one is not None and round(abs(said - found_one), DECIMALS)
        ):
            raise ValueError(f"row {row.name}: {what} is {said}; its clips give {found_one}")


def load_card(path: str | Path) -> Card:
    """Read a card.

    Raises
    ------
    InputError
        It can't be read, is none, or doesn't agree with itself.
    """
    text = read_document(path, "a card")
    return parse_document(
        Card, text, str(path), f"{SCHEMA}, as efficient-sam2 card writes it; make it again"
    )


def signed(points: float, digits: int = 2) -> str:
    """Return points with their sign, and nothing lost as +0.

    >>> signed(-0.001), signed(-1.25, 1)
    ('+0.00', '-1.2')
    """
    return f"{round(points, digits) + 0.0:+.{digits}f}"


def as_cells(row: CardRow) -> dict[str, str]:
    """What tables show of a row, as text by the head of its column; a dash for what wasn't measured."""
    q, speed, whole, paper = row.quality, row.speed, row.end_to_end, row.published
    dash = "–"

    def ends(found: Interval | None) -> str:
        return "" if found is None else f" ({signed(found[0], 1)} to {signed(found[1], 1)})"

    timed = speed is not None and speed.ms_per_frame is not None and speed.ratio is not None
    return {
        "": row.name,
        "J&F, clips": f"{q.j_and_f:.1f}",
        "J&F, objects": f"{q.over_objects.j_and_f:.1f}",
        "loss, clips": dash if q.loss is None else f"{signed(q.loss)}{ends(q.intervals.get('loss'))}",
        "loss, objects": dash
        if row.object_loss is None
        else f"{signed(row.object_loss.mean)}{ends(row.object_loss.interval)}",
        "windows": dash if row.windows_kept is None else f"{row.windows_kept:.0%}",
        "keys": dash if row.keys_kept is None else f"{row.keys_kept:.0%}",
        "model, ms": f"{speed.ms_per_frame.median:.0f}" if timed else dash,  # type: ignore[union-attr]
        "ratio": f"{speed.ratio.median:.2f}" if timed else dash,  # type: ignore[union-attr]
        "file to masks, ms": dash if whole is None else f"{whole.masks_ms:.0f}",
        "MiB": dash if speed is None or speed.peak_memory_mb is None else f"{speed.peak_memory_mb:.0f}",
        "published J&F": dash if paper is None else f"{paper.j_and_f:.1f} ({paper.setting})",
        "published ratio": dash if paper is None or paper.speed is None else f"{paper.speed:.2f}",
    }  # fmt: skip


def card_table(card: Card) -> str:
    """Return the rows as text, a line each, with what they are worth."""
    lines = [as_cells(row) for row in card.rows]
    heads = list(lines[0])
    widths = [max(len(head), *(len(line[head]) for line in lines)) for head in heads]
    shown = [dict(zip(heads, heads, strict=True)), *lines]
    text = [
        "  ".join(
            f"{line[head]:{'<' if n == 0 else '>'}{width}}"
            for n, (head, width) in enumerate(zip(heads, widths, strict=True))
        )
        for line in shown
    ]
    return "\n".join([*text, *card.notes, f"Model {card.model.name}: {SAID[card.weights]}."])
