"""Profiles by name and by file: those built in, reading one, and writing one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from pydantic import ValidationError

from probes.errors import InputError
from sparsity.profile import (
    EXACT_TECHNIQUES,
    REUSING_TECHNIQUES,
    Guard,
    Memory,
    Profile,
    Shortcut,
    Windows,
)
from sparsity.runs import write_text

_EXACT = dict.fromkeys(EXACT_TECHNIQUES, True)

BUILTIN = {
    "dense": Profile(name="dense"),
    "exact": Profile(name="exact", techniques=_EXACT),
    "paper": Profile(name="paper", windows=Windows(), memory=Memory(), techniques=_EXACT),
    "recommended": Profile(
        name="recommended",
        windows=Windows(rolling_refresh=6),
        memory=Memory(readers="routed"),
        shortcut=Shortcut(kind="cached"),
        guard=Guard(scene_cut=0.12, score_below=0.0),
        techniques=_EXACT | dict.fromkeys(REUSING_TECHNIQUES, True),
    ),
}
"""Profiles by name: bit-equal to stock; the same maths in another order; the paper's settings; and with these, what
windows gave when they were last computed in place of what is left out. A few of the windows left out are computed on
every frame, and read memory then; frames are whole at scene cuts and where an object is lost."""

CALIBRATED = {"demo": Path(__file__).parent / "demo" / "profile.json"}
"""Profiles by name that ``efficient-sam2 calibrate`` made for a model that ships; refused by any other model."""


def load_profile(name: str | Path | Profile) -> Profile:
    """Return a built-in profile by name, or read one from a JSON file.

    Raises
    ------
    InputError
        The name is unknown and no such file exists, it is something else, or the document breaks the schema: one
        line that says which field, what was given and what is expected.
    """
    if isinstance(name, Profile):
        return name
    if not isinstance(name, str | Path):
        raise InputError(
            f"a {type(name).__name__} given as profile; expected a Profile, a built-in name or a JSON file; give 'dense' "
            "for stock behaviour"
        )
    if str(name) in BUILTIN:
        return BUILTIN[str(name)]
    path = CALIBRATED.get(str(name), Path(name))
    if not path.is_file():
        known = ", ".join([*BUILTIN, *CALIBRATED])
        raise InputError(
            f"profile {str(name)!r} is neither a file nor a built-in; use one of {known}, or a JSON file"
        )
    try:
        found = parse_profile(path.read_text(encoding="utf-8"))
        if found.shortcut.file is not None:
            found = found.with_weights(str(path.parent / found.shortcut.file))
        return found.model_copy(update={"name": str(name)}) if str(name) in CALIBRATED else found
    except (InputError, UnicodeDecodeError) as error:
        raise InputError(f"profile {path}: {error}") from None


def save_profile(profile: Profile, path: Path) -> None:
    """Write a profile, and beside it a copy of its shortcut's weights as ``STEM.shortcut.SUFFIX``.

    The two can be moved together.
    """
    if profile.shortcut.file is not None:
        weights = Path(profile.shortcut.file)
        beside = path.with_name(f"{path.stem}.shortcut{weights.suffix}")
        part = beside.with_name(f".{beside.name}.part")
        shutil.copyfile(weights, part)
        part.replace(beside)
        profile = profile.with_weights(beside.name)
    write_text(path, profile.to_json())


def parse_profile(text: str) -> Profile:
    """Read a profile from JSON text.

    Raises
    ------
    InputError
        The text is no JSON object or breaks the schema.
    """
    try:
        return Profile.model_validate(json.loads(text))
    except json.JSONDecodeError as error:
        raise InputError(
            f"is no JSON ({error.msg} at line {error.lineno}); write one with 'efficient-sam2 calibrate'"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "document"
        raise InputError(
            f"{place} is {first['input']!r}; {first['msg'].lower()}; correct that field"
        ) from None
