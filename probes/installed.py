"""Whether the installed ``sam2`` is the one that everything here is built on."""

from __future__ import annotations

import hashlib
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

from probes.errors import InputError

# Files that everything here is built on, as they are in sam2 1.1.0. Other packages (rf-sam-2, EdgeTAM)
# install a top-level `sam2` of their own.
_SAM2_FILES = {
    "sam2_video_predictor.py": "912555920a77f72ded07839efa33fcceecc79f3523abbec783f0be46ee2c55c2",
    "modeling/sam2_base.py": "69a46b44e8625f509791352bd09beaafe589cd7d872721384e63d37f9fdc6e41",
    "modeling/sam/transformer.py": "cda19052331e775190ce8b1159efcb828a4632d931a6d8bd4d47109f121782f1",
    "modeling/backbones/hieradet.py": "03785581ca304d0451ae0df7a08ee0bf1e1dbe66fad285066e6b9ffc0d88d64f",
}


def check_sam2() -> None:
    """Refuse a top-level ``sam2`` that isn't the expected package.

    Raises
    ------
    InputError
        sam2 is absent, or one of its files differs from sam2 1.1.0.
    """
    advice = "use an environment of its own and install sam2==1.1.0 there"
    spec = find_spec("sam2")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"no package sam2 is installed; expected sam2 1.1.0; {advice}")
    folder = Path(next(iter(spec.submodule_search_locations)))
    for name, expected in _SAM2_FILES.items():
        file = folder / name
        found = file.read_bytes().replace(b"\r\n", b"\n") if file.is_file() else b""
        if hashlib.sha256(found).hexdigest() != expected:
            owners = " and ".join(sorted(set(packages_distributions().get("sam2", [])))) or folder
            raise InputError(
                f"the installed sam2 (from {owners}) is another one, its {name} differs; expected "
                f"sam2 1.1.0 unmodified; {advice}"
            )


def sam2_folder() -> Path:
    """Folder of the installed package, once `check_sam2` has found it."""
    spec = find_spec("sam2")
    assert spec is not None and spec.submodule_search_locations, "check_sam2 found it"
    return Path(next(iter(spec.submodule_search_locations)))
