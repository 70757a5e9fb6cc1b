"""How a card is made: its checkpoint and the machine first, then quality, attention and speed, each kept and gone on with.

What is found lies in ``OUT/parts`` under the hash of everything that decides it, so a run that was stopped goes on where it was,
and one that was done gives the same card again.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from probes.checkpoints import CHECKPOINTS, fetch_checkpoint
from probes.errors import InputError
from probes.files import write_text
from probes.models import DEMO, input_side
from probes.observations import Seen, observe
from sparsity.clips.layouts import FEWEST_FRAMES, find_layout
from sparsity.clips.sources import Clip, ClipSource
from sparsity.evaluation.benchmark import Request, run_bench
from sparsity.evaluation.card import (
    STOCK,
    Card,
    CardRow,
    Observations,
    Observed,
    Weights,
    known_set,
    load_card,
    loss_of_objects,
    published,
)
from sparsity.evaluation.end_to_end import run_end_to_end
from sparsity.evaluation.evaluate import DENSE, evaluate, track
from sparsity.evaluation.results import EndToEnd, Result, load_result
from sparsity.profile import BUILTIN, Profile, load_profile
from sparsity.work.model import ModelChoice, predictor_for, shared_predictor, stamp_of
from sparsity.work.record import record_clips
from sparsity.work.spread import Spread
from sparsity.work.store import check_folder, kept, kept_as

PROFILES = ("exact", "paper", "recommended")
"""Of every card, beside stock sam2."""

CARD, PARTS = "card.json", "parts"

ROUNDS, SIZE = 1, "720p"
"""Of the measurement from file to masks."""

TRIED = 4
"""Frames of a clip that are tracked to tell how long all will take; the first two don't count."""

OBSERVING = 3.0
"""Times that a frame takes longer while its attention is recorded, about."""

BESIDE_WEIGHTS = 2.2e9
"""Bytes that tracking at 1024 pixels holds beside the weights, about: benchmarks/speed has 2 to 3 GB with all in float32."""

FULL_SIDE = 1024

BARE = {"quality": None, "profile": None, "why": None}
"""Of a row's speed: its quality and profile stand on the row."""


@dataclass(frozen=True)
class CardRequest:
    """What a card is to be of.

    Attributes
    ----------
    root
        Data set in one of `sparsity.clips.layouts.LAYOUTS`.
    profiles
        Beside `PROFILES`.
    only
        Names of clips; all unless given.
    most
        Frames of a clip; None for all.
    attention_frames
        Frames of a clip on which attention is observed; 0 for none.
    speed_frames
        Frames that count when speed is measured; 0 for none.
    notes
        Put on the card.
    """

    root: Path
    profiles: tuple[str | Path | Profile, ...] = ()
    only: tuple[str, ...] | None = None
    most: int | None = None
    attention_frames: int = 24
    speed_frames: int = 10
    notes: tuple[str, ...] = ()

    def check(self) -> tuple[Profile, ...]:
        """Look at the request; return all profiles.

        Raises
        ------
        InputError
            Too few frames are asked for, or a profile can't be used.
        """
        for name, frames, none in (
            ("max", self.most, None),
            ("attention", self.attention_frames, 0),
        ):
            if frames != none and frames is not None and frames < FEWEST_FRAMES:
                raise InputError(
                    f"{frames} {name} frames of a clip given; expected {FEWEST_FRAMES} or more, as the first and the last one "
                    "don't count; take more, or leave it out"
                )
        given = [load_profile(profile) for profile in (*PROFILES, *self.profiles)]
        names = [profile.name for profile in given]
        taken = [name for name in names if names.count(name) > 1 or name in (STOCK, DENSE)]
        if taken:
            raise InputError(
                f"a profile of the name {taken[0]!r} given, which another row has; expected different names; rename it, or "
                "leave it out"
            )
        return tuple(given)


def make_card(
    request: CardRequest,
    choice: ModelChoice,
    out: Path,
    *,
    spread: Spread | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> Card:
    """Make a card in a folder, or go on with one.

    Parameters
    ----------
    out
        Folder for ``card.json``.
    spread
        Where clips are worked on.
    force
        Replace another card, and use profiles that were made for another model.
    say
        Told what is done, and how long it will take.

    Raises
    ------
    InputError
        Something given can't be used, the checkpoint can't be fetched, the machine is too small, or a clip failed.
    """
    profiles = request.check()
    check_folder(out)
    source = ClipSource(dataset=request.root, most=request.most)
    names = source.names(only=None if request.only is None else list(request.only))
    opened = [source.open(name) for name in names]
    bare = next((clip.name for clip in opened if clip.truth is None), None)
    if bare is not None:
        raise InputError(
            f"{bare} has no true masks but the first one; expected masks of all clips, as a card is about quality; give a data "
            "set with annotations"
        )
    done = load_card(out / CARD) if (out / CARD).is_file() and not force else None
    check_machine(choice, max(1, (spread or Spread()).jobs))
    weights = weights_of(choice)
    if weights == "official" and choice.checkpoint is None:
        fetch_checkpoint(choice.model, progress=True)
    predictor = predictor_for(choice, profiles, force)
    key = {
        **stamp_of(predictor, choice),
        "weights": weights,
        "root": request.root.resolve().name,
        "clips": {name: source.listing(name) for name in names},
        "most": request.most,
        "profiles": [p.model_dump(mode="json", by_alias=True) for p in profiles],
    }
    if done is not None:
        _check_same(done, key, out)
    parts = out / PARTS
    parts.mkdir(parents=True, exist_ok=True)
    quality_file = kept_as(parts / "quality.json", key)
    if quality_file.is_file():
        found = load_result(quality_file)
    else:
        say(
            f"{estimate(request, choice, opened, len(profiles))}; stopped, the same command goes on"
        )
        found = evaluate(
            request.root, choice, quality_file, profiles=profiles, only=names, most=request.most,
            spread=spread, force=force,
        )  # fmt: skip
    observations, speed, whole = None, None, None
    if request.attention_frames:
        say("quality is done; attention")
        observations = _observations(request, choice, parts, key, spread)
    if request.speed_frames:
        say("speed")
        speed = _speed(request, choice, profiles, parts, key, force)
        whole = _end_to_end(request, choice, profiles, parts, key, force)
    layout = find_layout(request.root).name
    full = request.most is None and predictor.image_size == FULL_SIDE
    known = known_set(layout, {c.name: len(c.objects) for c in opened}) if full else None
    card = Card(
        schema="efficient-sam2/card/1",
        made_by=f"efficient-sam2 {key['made_by']}",
        environment=(speed or found).environment,
        model=found.model,
        weights=weights,
        data=found.data,
        layout=layout,
        known=known,
        rows=_rows(found, weights, known, speed, whole),
        observations=observations,
        speed_route=None if speed is None else speed.data.settings["route"],
        end_to_end_size=None if whole is None else SIZE,
        end_to_end_frames=None if whole is None else whole.frames,
        notes=_notes(request, known),
    )
    write_text(out / CARD, card.to_json())
    return card


# What goes before the work


def weights_of(choice: ModelChoice) -> Weights:
    """Tell which weights a choice means; a file that was given is official where its bytes are."""
    import pooch

    if not choice.trained:
        return "random"
    wanted = None if choice.config else CHECKPOINTS.get(choice.model)
    if choice.checkpoint is not None:
        there = wanted is not None and choice.checkpoint.is_file()
        if there and pooch.file_hash(str(choice.checkpoint)) == wanted.sha256:  # type: ignore[union-attr]
            return "official"
        return "given"
    return "official" if wanted is not None else "demo" if choice.model == DEMO else "given"


def check_machine(choice: ModelChoice, processes: int) -> None:
    """Hold a model against the machine, before anything is fetched.

    Raises
    ------
    InputError
        The device isn't there, its memory is too small, or the model can't have the image size.
    """
    device = choice.check()
    on_gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
    known = None if choice.config else CHECKPOINTS.get(choice.model)
    if known is not None:
        side = input_side(choice.model, choice.image_size)
        free = torch.cuda.mem_get_info(device)[0] if on_gpu else psutil.virtual_memory().available
        needed = memory_needed(known.size, side, 1 if on_gpu else processes)
        check_memory(choice.name, side, needed, free, "GPU" if on_gpu else "machine")


def memory_needed(weights: int, side: int, processes: int) -> float:
    """Bytes that processes need about, each with the weights twice while they are loaded.

    >>> memory_needed(900_000_000, 1024, 1)
    4000000000.0
    """
    return processes * (2 * weights + BESIDE_WEIGHTS * (side / FULL_SIDE) ** 2)


def check_memory(model: str, side: int, needed: float, free: float, where: str) -> None:
    """Refuse where memory is too small.

    Raises
    ------
    InputError
        It is.
    """
    if needed > free:
        raise InputError(
            f"{model} at {side} pixels needs about {needed / 1e9:.1f} GB and this {where} has {free / 1e9:.1f} GB free; expected "
            "as much; take a smaller model or --image-size, fewer --jobs, or another machine"
        )


def _check_same(done: Card, key: dict[str, Any], out: Path) -> None:
    """Refuse to replace a card of other settings."""
    held = {
        "model": done.model.fingerprint,
        "size": done.model.image_size,
        "device": done.environment.device,
        "dtype": done.environment.dtype,
        "root": done.data.root,
        "most": done.data.settings.get("first frames"),
        "profiles": [row.profile for row in done.rows[1:]],
    }
    if done.data.clips != list(key["clips"]) or any(key[name] != of for name, of in held.items()):
        raise InputError(
            f"{out / CARD} holds another card; expected one of the same model, clips and profiles, or a new folder; choose "
            "another --out, or --force to replace it"
        )


def estimate(request: CardRequest, choice: ModelChoice, clips: list[Clip], profiles: int) -> str:
    """Track a few frames densely and say how long a whole card will take here, at most."""
    predictor = shared_predictor(choice)
    few, many = (pick(clips, key=lambda clip: len(clip.objects)) for pick in (min, max))
    tried = {}
    for clip in (few, many) if len(many.objects) > len(few.objects) else (few,):
        start = clip.from_start if clip.prompts[0].frame == 0 else clip
        length = max(FEWEST_FRAMES, start.prompts[0].frame + TRIED)
        with predictor.use(BUILTIN[DENSE]), choice.autocast(predictor.device.type):
            run = track(predictor, start.first(min(length, clip.num_frames)))
        tried[len(clip.objects)] = statistics.median(run.timed[-TRIED + 2 :])
    least, most = min(tried), max(tried)
    each = (tried[most] - tried[least]) / max(1, most - least)

    def frame(objects: int) -> float:
        return tried[least] + each * (objects - least)

    quality = (1 + profiles) * sum(clip.num_frames * frame(len(clip.objects)) for clip in clips)
    seen = sum(
        min(clip.num_frames, request.attention_frames) * frame(len(clip.objects)) for clip in clips
    )
    counted = request.speed_frames
    speed = (1 + profiles) * frame(1) * (counted + 12 + 3 * (ROUNDS + 1) * counted) * bool(counted)
    total = quality + OBSERVING * seen + speed
    frames = sum(clip.num_frames for clip in clips)
    return (
        f"{len(clips)} clips, {frames} frames, {1 + profiles} runs at {frame(least):.2g} s a frame: about {told(total)} in one "
        f"process (quality {told(quality)}, attention {told(OBSERVING * seen)}, speed {told(speed)})"
    )


def told(seconds: float) -> str:
    """Say a time as people do.

    >>> told(40), told(600), told(9000)
    ('40 s', '10 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# The parts of a card


def _observations(
    request: CardRequest,
    choice: ModelChoice,
    parts: Path,
    key: dict[str, Any],
    spread: Spread | None,
) -> Observations:
    """Record the first frames of all clips on stock sam2 and reduce them to numbers."""
    frames = min(request.attention_frames, request.most or request.attention_frames)
    asked = {**key, "attention_frames": frames}

    def make() -> dict[str, Any]:
        recording = record_clips(
            ClipSource(dataset=request.root), choice, kept_as(parts / "attention.recording", asked),
            only=list(key["clips"]), spread=spread, max_frames=frames, statistics="*", rows=(),
            autocast=key["dtype"] == "bfloat16", model=choice.name + ("" if choice.trained else " with random weights"),
        )  # fmt: skip
        found = {name: [_observed(seen) for seen in of] for name, of in observe(recording).items()}
        return Observations(frames=frames, **found).model_dump(mode="json")

    return Observations.model_validate(kept(parts / "attention.json", asked, make))


def _observed(seen: Seen) -> Observed:
    found = seen.found
    return Observed(
        name=seen.name,
        mean=found.mean,
        interval=None if math.isnan(found.low) else (found.low, found.high),
        clips=found.n,
        chance=seen.chance and seen.chance.mean,
    )


def _speed(
    request: CardRequest,
    choice: ModelChoice,
    profiles: tuple[Profile, ...],
    parts: Path,
    key: dict[str, Any],
    force: bool,
) -> Result:
    """Measure the model alone, interleaved with stock sam2 on a made clip."""
    names = (STOCK, *(profile.name for profile in profiles))
    asked = Request(profiles, names, request.speed_frames)

    def make() -> dict[str, Any]:
        return run_bench(asked, choice, force=force).model_dump(mode="json", by_alias=True)

    settings = {**key, "speed_frames": request.speed_frames}
    return Result.model_validate(kept(parts / "speed.json", settings, make))


def _end_to_end(
    request: CardRequest,
    choice: ModelChoice,
    profiles: tuple[Profile, ...],
    parts: Path,
    key: dict[str, Any],
    force: bool,
) -> EndToEnd:
    """Measure from a made file to its masks."""

    def make() -> dict[str, Any]:
        measured = run_end_to_end(
            profiles, choice, frames=request.speed_frames, sizes=(SIZE,), rounds=ROUNDS, force=force
        )
        return measured.model_dump(mode="json", by_alias=True)

    settings = {**key, "speed_frames": request.speed_frames, "rounds": ROUNDS, "size": SIZE}
    return EndToEnd.model_validate(kept(parts / "end-to-end.json", settings, make))


def _rows(
    found: Result, weights: Weights, known: str | None, speed: Result | None, whole: EndToEnd | None
) -> list[CardRow]:
    """Put what was found together, a row a run; stock's quality is the dense run's."""
    stock = found.run(DENSE).quality
    model = found.model.name if weights == "official" else ""  # others are published of nothing
    made = []
    for run in found.runs:
        first = run.name == DENSE
        name = STOCK if first else run.name
        assert run.quality and stock, "what was evaluated has a quality"
        made.append(
            CardRow(
                name=name,
                weights=weights,
                quality=run.quality,
                object_loss=None if first else loss_of_objects(run.quality, stock),
                windows_kept=run.windows_kept,
                keys_kept=run.keys_kept,
                profile=None if first else run.profile,
                speed=None if speed is None else speed.run(name).model_copy(update=BARE),
                end_to_end=None
                if whole is None
                else next(row for row in whole.rows if row.profile == run.name),
                published=published(model, known, setting_of(run.profile)),
            )
        )
    return made


def setting_of(profile: dict[str, Any] | None) -> str | None:
    """Name of the published setting that a profile is, by its routing and retrieval; None for others.

    >>> setting_of(BUILTIN["paper"].model_dump(mode="json", by_alias=True)), setting_of(None)
    ('SWR + SMR', 'dense')
    """
    if profile is None:
        return "dense"
    paper, given = BUILTIN["paper"], Profile.model_validate(profile)
    if given == BUILTIN[DENSE]:
        return "dense"
    plain = given.model_copy(
        update={"name": paper.name, "exact": paper.exact, "graphs": paper.graphs}
    )
    settings = {
        "SWR": paper.model_copy(update={"retrieval": None}),
        "SMR": paper.model_copy(update={"routing": None}),
        "SWR + SMR": paper,
    }
    return next((name for name, of in settings.items() if plain == of), None)


def _notes(request: CardRequest, known: str | None) -> list[str]:
    """What a reader must know of how the card was made."""
    notes = [
        "Quality and speed from file to masks of stock are those of profile dense, whose masks are stock sam2's bit for bit."
    ]
    if request.most is not None:
        notes.append(
            f"The first {request.most} frames of each clip alone, so no published figure compares."
        )
    elif known is None:
        notes.append("The clips are not a whole data set that figures are published of.")
    else:
        notes.append(
            "Published figures are second hand: of Efficient-SAM2 (arXiv 2602.08224), read from secondary texts; its shortcut is "
            "trained, the profile's copies the window; its speed is of the authors' GPU."
        )
    return [*notes, *request.notes]
