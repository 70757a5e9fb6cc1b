"""What a recording holds as one long table, a number a row, for pandas; an optional extra. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probes.errors import InputError
from probes.files import check_folder_of, whole

COLUMNS = (
    *("clip", "site", "stage", "block", "layer", "head", "frame", "object", "slot", "age"),
    *("prompted", "reverse", "statistic", "value"),
)
"""Of the table; what a number does not have is NA in its row. `slot` is one of `probes.records.SLOTS`, of
which the first sums all prompted frames, `age` in frames that of what it holds (of the nearest prompted one);
`prompted` and `reverse` say how the row's frame was tracked."""

NAMES = ("clip", "site", "slot", "statistic")
FLAGS = ("prompted", "reverse")

SIMILARITIES = ("cs", "cs_by_chance", "pearson", "jaccard")
"""Statistics of `ClipRecord.similarity`, in the order of its last axis."""

Part = dict[str, Any]
"""Columns of a part of the table, each of a shape that broadcasts to that of its values."""


def check_tables(path: Path | None = None) -> None:
    """Refuse where a table can't be made, or not be written to this path, before any work.

    Raises
    ------
    InputError
        A package is missing, the name doesn't end in ``.parquet``, or there is no such folder.
    """
    missing = [name for name in ("pandas", *(("pyarrow",) if path else ())) if not find_spec(name)]
    if missing:
        raise InputError(
            f"{' and '.join(missing)} not installed; expected the extra 'tables'; install it: pip install "
            "'efficient-sam2[tables]'"
        )
    if path and path.suffix.lower() != ".parquet":
        raise InputError(
            f"table {path} given; expected a name that ends in .parquet; choose another"
        )
    if path:
        check_folder_of(path)


def table_of(clips: Mapping[str, Any], settings: Any, slots: Sequence[str]) -> Any:
    """Lay clips out as a `pandas.DataFrame` with `COLUMNS`; numbers that do not exist have no row.

    Parameters
    ----------
    clips
        `probes.records.ClipRecord` by name.
    settings
        Of the recording's header.
    slots
        Names of the memory slots, the pointers' last.
    """
    check_tables()
    import pandas as pd  # an extra

    parts = [
        _rows(pd, {"clip": name, **part})
        for name, clip in clips.items()
        for part in _parts(clip, settings, slots)
        if np.size(part["value"])
    ]
    if not parts:
        return pd.DataFrame(columns=list(COLUMNS))
    return pd.concat(parts, ignore_index=True).astype(dict.fromkeys(NAMES, "category"))


def write_table(table: Any, path: Path) -> None:
    """Write a table as parquet; the file is whole or absent."""
    with whole(path) as part:
        table.to_parquet(part, index=False)


def _parts(clip: Any, settings: Any, slots: Sequence[str]) -> Iterator[Part]:
    """Yield the parts of a clip's table."""
    frame = {"frame": clip.frame}
    row = {
        "frame": clip.row_frame, "object": clip.row_object, "prompted": clip.conditioning, "reverse": clip.reverse,
    }  # fmt: skip
    yield {**row, "statistic": "score", "value": clip.score}
    for names, values, where in (
        (settings.encoder_sites, clip.encoder_statistics, frame),
        (settings.object_sites, clip.object_statistics, row),
    ):
        heads = np.arange(values.shape[2])
        yield {
            **{name: _over(column, 0) for name, column in where.items()},
            **_places(names, 1),
            "head": _over(heads, 2),
            "statistic": _over(settings.statistics, 3),
            "value": values,
        }
    ages, layers = clip.ages(), clip.slot_share.shape[1]
    at = {
        **{name: _over(column, 0) for name, column in row.items()},
        **_places([f"memory.layer{layer}.cross" for layer in range(layers)], 1),
    }
    there = np.pad(ages >= 0, ((0, 0), (0, 1)), constant_values=True)[:, None, :, None]
    yield {
        **at,
        "age": np.pad(ages, ((0, 0), (0, 1)), constant_values=-1)[:, None, :, None],
        "slot": _over(slots, 2),
        "statistic": "share",
        "value": np.where(there, clip.slot_share[..., None], np.nan),
    }
    if clip.keys_read is not None:
        yield {
            **at,
            "age": ages[:, None, :, None],
            "slot": _over(slots[:-1], 2),
            "statistic": "kept",
            "value": clip.kept()[..., None],
        }
    kept = [f"{share:g}" for share in settings.keep_shares]
    for names, values in (
        (SIMILARITIES, clip.similarity),
        ([f"recall_{share}" for share in kept], clip.recall),
        ([f"best_recall_{share}" for share in kept], clip.oracle_recall),
    ):
        known = np.where((ages >= 0)[:, None, :, None], values, np.nan)
        held = {"slot": _over(slots[:-1], 2), "age": ages[:, None, :, None]}
        yield {**at, **held, "statistic": _over(names, 3), "value": known}


def _over(values: Sequence[Any] | NDArray[Any], axis: int) -> NDArray[Any]:
    """Lay values along one of four axes."""
    found = np.array(values, object) if isinstance(values, (list, tuple)) else np.asarray(values)
    return found.reshape([-1 if n == axis else 1 for n in range(4)])


def _places(sites: Sequence[str], axis: int) -> Part:
    """Columns of `place_of` for sites along an axis; -1 for what one does not have."""
    found = [{"stage": -1, "block": -1, "layer": -1, **place_of(site)} for site in sites]
    return {
        name: _over([place[name] for place in found], axis)
        for name in ("site", "stage", "block", "layer")
    }


def place_of(site: str) -> Part:
    """Return a site's name and its numbers of stage, block and layer, as far as it has them.

    >>> place_of("encoder.stage3.block5.global")
    {'site': 'encoder.stage3.block5.global', 'stage': 3, 'block': 5}
    """
    found = re.findall(r"\.(stage|block|layer)(\d+)", site)
    return {"site": site, **{kind: int(number) for kind, number in found}}


def _rows(pd: Any, part: Part) -> Any:
    """A part of the table, without the rows whose value is NaN."""
    value = np.asarray(part["value"], float)
    there = ~np.isnan(value)
    columns = {"value": value[there]}
    for name in COLUMNS[:-1]:
        given = part.get(name)
        if name in NAMES:
            columns[name] = np.broadcast_to(np.asarray(given, object), value.shape)[there]
        else:
            kind = "boolean" if name in FLAGS else "Int32"
            found = np.broadcast_to(np.asarray(-1 if given is None else given), value.shape)[there]
            column = pd.array(found.astype(bool if name in FLAGS else "int32"), dtype=kind)
            column[found < 0] = pd.NA
            columns[name] = column
    return pd.DataFrame(columns)[list(COLUMNS)]
