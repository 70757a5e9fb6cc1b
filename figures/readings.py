"""What figures and notebooks read from recordings: per clip first, then over clips with an interval (`over_clips`).

What the encoder and the decoder attend to comes first, then what memory recalls. Maps and key mass are read from the
rows that a recording keeps; `row_sampling` says which these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from figures.attention import Breadth, lift
from figures.filmstrip import Recollection
from figures.kept import RecallCurve
from probes.errors import InputError, some_of
from probes.estimates import Estimate as Estimate
from probes.estimates import over_clips as over_clips
from probes.estimates import ratio_over_clips as ratio_over_clips
from probes.records import ClipRecord, Header, Recording


def mean(values: NDArray[np.floating]) -> float:
    """Mean of what is a number; NaN where nothing is."""
    numbers = values[~np.isnan(values)]
    return float(numbers.astype(float).mean()) if numbers.size else float("nan")


def mean_over(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mean over the first axis of what is a number, ``[...]``; NaN where nothing is."""
    there = ~np.isnan(values)
    total = np.where(there, values, 0).sum(axis=0, dtype=float)
    return np.where(there.any(axis=0), total / np.maximum(there.sum(axis=0), 1), np.nan)


def breadths(recording: Recording) -> list[Breadth]:
    """Support and distance of every recorded encoder site: median and quartiles over clips, frames and heads."""
    settings = recording.header.settings
    support, distance = (settings.statistics.index(name) for name in ("support", "distance_px"))
    clips = [clip.encoder_statistics for _, clip in recording]
    found = []
    for at, site in enumerate(settings.encoder_sites):
        values = np.concatenate([clip[:, at].reshape(-1, clip.shape[-1]) for clip in clips])
        values = values[:, [support, distance]].astype(float)
        low, middle, high = np.nanpercentile(values, [25, 50, 75], axis=0).tolist()
        found.append(Breadth(site, middle[0], middle[1], (low[0], high[0]), (low[1], high[1])))
    return found


def by_head(recording: Recording, statistic: str, sites: str = "*") -> dict[str, list[Estimate]]:
    """Any recorded statistic, head by head: mean over a clip's frames and objects, then over clips with an interval.

    Parameters
    ----------
    statistic
        One of the recording's `statistics`, such as ``"entropy"``, ``"gini"`` or ``"lift"``.
    sites
        Pattern of sites of the encoder, memory and the decoder, such as ``"memory.*.cross"``. Heads of which nothing is
        known, such as the distance of keys without a place, are left out.

    Raises
    ------
    InputError
        There is no such statistic, or the pattern matches no recorded site that has it.
    """
    settings = recording.header.settings
    if statistic not in settings.statistics:
        raise InputError(
            f"statistic {statistic!r} was asked for; the recording holds {', '.join(settings.statistics)}; choose one"
        )
    k = settings.statistics.index(statistic)
    clips = [clip for _, clip in recording]
    found = {}
    for names, part in (
        (settings.encoder_sites, "encoder_statistics"),
        (settings.object_sites, "object_statistics"),
    ):
        for s, site in enumerate(names):
            tables = [getattr(clip, part)[:, s, :, k] for clip in clips]
            if fnmatchcase(site, sites) and not all(np.isnan(table).all() for table in tables):
                each = [
                    [mean(table[:, head]) for table in tables] for head in range(tables[0].shape[1])
                ]
                found[site] = [over_clips(of) for of in each if not np.isnan(of).all()]
    if not found:
        known = (*settings.encoder_sites, *settings.object_sites)
        raise InputError(
            f"{statistic} of sites {sites!r} was asked for; the recording holds {some_of(known) or 'none'}; choose among them, "
            "or record more"
        )
    return found


def lifts(recording: Recording, site: str) -> dict[str, float]:
    """How much more attention than chance falls on the tracked objects, mean over a clip's frames, by clip.

    Parameters
    ----------
    site
        One of the recording's `map_sites` (all queries of an encoder block), or ``"decoder"`` (its output
        tokens, mean over layers and heads).
    """
    sites = recording.header.settings.map_sites
    if site not in (*sites, "decoder"):
        raise InputError(
            f"site {site!r} was asked for; the recording holds {', '.join(sites)}; choose one of them"
        )
    found = {}
    for info, clip in recording:
        values = []
        masks = clip.masks()
        for i in np.flatnonzero(~clip.conditioning):
            if site == "decoder":
                mass = clip.decoder_saliency[i]
            else:
                t = _last(clip, int(clip.row_frame[i]))
                mass = clip.encoder_mass[t, sites.index(site)].astype(float)
            values.append(lift(mass, masks[i]))
        found[info.name] = mean(np.array(values))
    return found


def pixel_map(
    recording: Recording, name: str, site: str, frame: int, xy: tuple[float, float]
) -> NDArray[np.float64]:
    """What a pixel attends to at an encoder site on a frame: the stored row nearest to it, ``[r, r]``.

    Parameters
    ----------
    name
        Of the clip.
    xy
        In pixels of the video.

    Raises
    ------
    InputError
        There is no such clip, the pixel lies outside the video, the frame was not tracked, or no rows of that encoder
        site were stored.
    """
    header = recording.header
    info, clip = recording.info(name), recording.clip(name)
    if not (0 <= xy[0] < info.width and 0 <= xy[1] < info.height):
        raise InputError(
            f"pixel ({xy[0]}, {xy[1]}) was asked for; clip {name} is {info.width} x {info.height} pixels; choose "
            "one inside"
        )
    nearest = nearest_query(header, (xy[0] / info.width, xy[1] / info.height))
    found = np.asarray(_encoder_rows(clip, site, frame)[nearest], float)
    if np.isnan(found).all():
        raise InputError(
            f"pixel ({xy[0]}, {xy[1]}) was asked for; its token was not computed on frame {frame} of {name}, recorded "
            "under a profile; choose another pixel, or a dense frame"
        )
    return found


def nearest_query(header: Header, at: tuple[float, float]) -> int:
    """Which of a recording's `row_queries` lies nearest to a place, given as shares of width and height."""
    g, queries = header.model.grid, np.array(header.settings.row_queries)
    x, y = at[0] * g - 0.5, at[1] * g - 0.5
    return int(np.hypot(queries // g - y, queries % g - x).argmin())


def object_map(clip: ClipRecord, queries: Sequence[int], site: str, i: int) -> NDArray[np.float64]:
    """What an object's own pixels attend to at an encoder site: mean of the stored rows inside its mask, NaN where none is.

    Parameters
    ----------
    queries
        The recording's `row_queries`.
    i
        Row of the object on the frame.
    """
    rows = _encoder_rows(clip, site, int(clip.row_frame[i]))
    mask = clip.masks()[i]
    side = clip.decoder_saliency.shape[-1]
    inside = mask.reshape(side, 4, side, 4).mean(axis=(1, 3)).ravel()[list(queries)] > 0.5
    if not inside.any():
        more = (
            f", or record it with more of them (row_side={side})" if len(queries) < side**2 else ""
        )
        raise InputError(
            f"no stored query lies inside object {clip.row_object[i]} on frame {clip.row_frame[i]}, which covers "
            f"{100 * mask.mean():.2g} % of the picture; expected one that covers a query token that is stored, as "
            f"{len(queries)} of {side**2} are; choose another frame or object{more}"
        )
    return mean_over(rows[inside])


def _encoder_rows(clip: ClipRecord, site: str, frame: int) -> NDArray[np.float32]:
    """Stored rows of an encoder site on a frame, ``[Q, r, r]``."""
    stored = [name for name in clip.rows if name.startswith("encoder.")]
    if site not in stored:
        raise InputError(
            f"site {site!r} was asked for; the recording holds rows of the encoder sites "
            f"{', '.join(stored) or 'none'}; choose one of them"
        )
    if frame not in clip.frame:
        raise InputError(
            f"frame {frame} was asked for; the clip was tracked on frames {clip.frame.min()} to "
            f"{clip.frame.max()}; choose one of them"
        )
    return np.asarray(clip.attention_rows(site, _last(clip, frame)))


def _last(clip: ClipRecord, frame: int) -> int:
    """Position of a frame among the tracked ones; of the last pass where it was tracked twice."""
    return int(np.flatnonzero(clip.frame == frame)[-1])


def recall_curves(recording: Recording, keep: float) -> dict[str, RecallCurve]:
    """Mass recall by layer and age since the first recollection, means over clips with intervals.

    Parameters
    ----------
    keep
        Share of a frame's tokens chosen at first recollection, one of the recording's `keep_shares`.

    Raises
    ------
    InputError
        Recall was recorded for other shares.
    """
    shares = recording.header.settings.keep_shares
    if keep not in shares:
        raise InputError(
            f"share {keep:g} was asked for; recall was recorded for {', '.join(f'{s:g}' for s in shares)}; choose "
            "one of them"
        )
    at = shares.index(keep)
    clips = [
        (_recalled_after(clip), clip.recall[..., at], clip.oracle_recall[..., at])
        for _, clip in recording
    ]
    oldest = max((int(after.max(initial=-1)) for after, _, _ in clips), default=-1)
    curves = {}
    for layer in range(recording.header.model.layers):
        ages, estimates, best = [], [], []
        for age in range(oldest + 1):
            values, oracle = (
                [mean(found[k][:, layer][found[0] == age]) for found in clips] for k in (1, 2)
            )
            if not np.isnan(values).all():
                ages.append(age)
                estimates.append(over_clips(values, (0, 1)))
                best.append(over_clips(oracle).mean)
        curves[f"layer {layer}"] = RecallCurve(
            ages,
            [e.mean for e in estimates],
            [e.low for e in estimates],
            [e.high for e in estimates],
            best,
        )
    return curves


def similarity(recording: Recording, layer: int, age: int, chance: bool = False) -> list[float]:
    """CS between the first recollection and `age` frames later, one mean a clip; or what it is by chance."""
    column = 1 if chance else 0
    return [
        mean(clip.similarity[:, layer, :, column][_recalled_after(clip) == age])
        for _, clip in recording
    ]


def similarities(clip: ClipRecord) -> NDArray[np.float64]:
    """CS with a memory frame's first recollection and the same by chance, ``[n, L, P, 2]``.

    NaN where nothing is compared: at the first recollection itself, of a frame that was tracked in the other direction,
    and in the slot of the prompt where it sums several prompted frames.
    """
    found = clip.similarity[..., :2].astype(float)
    found[:, :, 1:][(clip.ages()[:, None, 1:] == 1).repeat(found.shape[1], 1)] = np.nan
    known: dict[tuple[int, bool], set[int]] = {}
    of_rows = zip(clip.row_object.tolist(), clip.reverse.tolist(), clip.prompt_frames, strict=True)
    for i, (object_id, reverse, held) in enumerate(of_rows):
        prompts = set(held[held >= 0].tolist())
        if len(prompts) != 1 or not prompts <= known.get((object_id, reverse), set()):
            found[i, :, 0] = np.nan
        known.setdefault((object_id, reverse), set()).update(prompts)
    return found


def _recalled_after(clip: ClipRecord) -> NDArray[np.integer]:
    """Frames from the first recollection of what is in each memory slot to its row, ``[n, P]``; -1 of no such frame.

    A frame is recalled first when it is the newest, one frame old. Prompted ones don't count, which need not be.
    """
    after = clip.ages() - 1
    after[clip.memory_frame < 0] = -1
    after[:, 0] = -1
    for object_id in np.unique(clip.row_object):
        mine = clip.row_object == object_id
        prompted = clip.row_frame[mine & clip.conditioning]
        after[mine[:, None] & np.isin(clip.memory_frame, prompted)] = -1
    return after


def recollections(
    clip: ClipRecord, object_id: int, times: Sequence[int], site: str
) -> list[Recollection]:
    """What an object's frames recall, from stored rows: mean over the stored queries, for the film strip.

    Where memory held several prompted frames, age 0 is the mean over them, told of the nearest one.
    """
    _check_cross(site)
    layer = int(site.split(".")[1].removeprefix("layer"))
    compared = similarities(clip)
    found = []
    for time in times:
        i = clip.row(time, object_id)
        mass = mean_over(clip.attention_rows(site, i))
        prompts = max(1, int((clip.prompt_frames[i] >= 0).sum()))
        for slot, (remembered, age) in enumerate(
            zip(clip.memory_frame[i].tolist(), clip.ages()[i].tolist(), strict=True)
        ):
            if remembered < 0:
                continue
            cosine, baseline = compared[i, layer, slot].tolist()
            fresh = np.isnan(cosine)
            found.append(
                Recollection(
                    time,
                    age if slot else 0,
                    remembered,
                    mass[slot] if slot else mass[slot] / prompts,
                    None if fresh else cosine,
                    None if fresh else baseline,
                )
            )
    return found


def key_mass(recording: Recording, site: str) -> NDArray[np.float64]:
    """Key mass over the memory of a cross-attention site, ``[samples, keys]``, approximately: from stored rows.

    Stored are rows of some queries, in 8 bits, with several tokens a key on large grids (`row_sampling` says
    which), so Gini and top mass differ from those of all queries and tokens. Only rows with the fullest memory that
    was recorded count, and a single prompted frame in it, so that all samples have as many keys, each of one token.

    Raises
    ------
    InputError
        It is no such site, or no row has memory of a single prompted frame that was read whole.
    """
    _check_cross(site)
    samples: list[NDArray[np.float64]] = []
    most = 0
    for _, clip in recording:
        there = clip.memory_frame >= 0
        single = (clip.prompt_frames >= 0).sum(axis=1) == 1
        for i in np.flatnonzero(there.any(axis=1) & single):
            held = int(there[i].sum())
            if held > most:
                most, samples = held, []
            if held == most:
                rows = mean_over(clip.attention_rows(site, int(i))[:, there[i]])
                samples.extend([] if np.isnan(rows).any() else [rows.ravel()])
    if not samples:
        raise InputError(
            f"no frame of {recording.path} has a full memory with one prompted frame that was read whole; expected a clip "
            "with one prompt and frames after it, tracked by the stock predictor; record such a one"
        )
    return np.array(samples, float)


def _check_cross(site: str) -> None:
    if not fnmatchcase(site, "memory.layer*.cross"):
        raise InputError(
            f"site {site!r} was asked for; expected memory cross-attention; choose one such as 'memory.layer0.cross'"
        )


def row_sampling(recording: Recording) -> str:
    """Say, for a caption, from what `key_mass` and `recollections` are read."""
    settings, grid = recording.header.settings, recording.header.model.grid
    cell = grid // settings.row_grid
    queries = f"{len(settings.row_queries)} of {grid**2} query rows"
    return f"{queries}, {cell} x {cell} tokens a key, 8 bits"
