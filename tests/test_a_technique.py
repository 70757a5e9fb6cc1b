"""A technique is a file: a toy one, added to a copy of the house, touches the places that CONTRIBUTING names and no other."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).parent.parent

TOY = '''"""A toy: masks are steadied by the ones before them."""

from __future__ import annotations

from typing import Any

from sparsity.techniques import KEY, Settings, Share


class Steady(Settings):
    """How much of the last frame's mask is mixed in."""

    share: Share = 0.5


def steady(settings: Steady, part: dict[str, Any], before: dict[str, Any] | None, notes: dict[str, Any]) -> None:
    """Mix an object's low-resolution logits with those remembered of the frame before, and remember them."""
    last = (before or {}).get(KEY, {}).get("steady")
    if last is not None:
        part["pred_masks"] = part["pred_masks"].lerp(last, settings.share)
    notes["steady"] = part["pred_masks"]
'''

ADDED = {
    "sparsity/profile.py": [
        (
            "from sparsity.techniques.routing import",
            "from sparsity.techniques.steady import Steady\n",
        ),
        ("    guard: Guard = Guard()\n", "    steady: Steady | None = None\n"),
        (
            '    "routed readers":',
            '    "steady": lambda profile: profile.model_copy(update={"steady": Steady()}),\n',
        ),
    ],
    "sparsity/acceleration/decode.py": [
        (
            "from sparsity.techniques.routing import",
            "from sparsity.techniques.steady import steady\n",
        ),
        (
            "        found.append(({**part, KEY: notes}",
            "        if parts.here.used.profile.steady is not None:\n"
            "            steady(parts.here.used.profile.steady, part, frame.before[b], notes)\n",
        ),
    ],
    "docs/techniques.md": [("**Reuse**,", "**Steady**, `steady`. A toy.\n\n")],
}
"""By file: what is added, each before the line that begins so."""

NAMED = {"sparsity/techniques/steady.py", *ADDED}

TRY = """
import torch
from probes import build_predictor
from sparsity import accelerate
from sparsity.clips.made import make_clip
from sparsity.evaluation.interleaved import ladder
from sparsity.profile import BUILTIN, FURTHER, parse_profile

rows = {row.name: row.profile for row in ladder()}
steadied = parse_profile(rows["+ steady"].to_json())
assert steadied == rows["+ steady"] and BUILTIN["paper"].steady is None
fast = accelerate(build_predictor("demo", image_size=256, device="cpu"), "paper")
clip, masks = make_clip("smooth", 1, 5, (96, 128)), {}
for profile in (steadied, BUILTIN["paper"], steadied):
    with fast.use(profile), torch.inference_mode():
        state = fast.init_state(clip.frames)
        fast.add_new_mask(state, 0, 1, clip.masks[0] == 1)
        for _ in fast.propagate_in_video(state):
            pass
    results = state["output_dict_per_obj"][0]["non_cond_frame_outputs"]
    masks.setdefault(profile.name, []).append(torch.stack([out["pred_masks"] for out in results.values()]))
one, again = masks["+ steady"]
assert torch.equal(one, again) and not torch.equal(one, masks["paper"][0])
assert torch.equal(one[0], masks["paper"][0][0]), "the first tracked frame has nothing before it"
print("steady")
"""


def files_of(root: Path) -> dict[str, bytes]:
    """Everything of a house that code or pages stand in, by its place."""
    kinds = ("*.py", "*.md", "*.json", "*.toml")
    folders = ("probes", "sparsity", "figures", "docs", "benchmarks", "tests")
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for folder in folders
        for kind in kinds
        for path in (root / folder).rglob(kind)
        if "__pycache__" not in path.parts
    }


def test_a_toy_technique_touches_what_contributing_names(tmp_path: Path) -> None:
    for folder in ("probes", "sparsity", "figures", "docs", "benchmarks", "tests"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    before = files_of(tmp_path)
    (tmp_path / "sparsity/techniques/steady.py").write_text(TOY, encoding="utf-8")
    for place, additions in ADDED.items():
        text = (tmp_path / place).read_text(encoding="utf-8")
        for anchor, added in additions:
            assert text.count(anchor) == 1, f"{place} has one place for {added!r}"
            text = text.replace(anchor, added + anchor)
        (tmp_path / place).write_text(text, encoding="utf-8")

    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TRY],
        cwd=tmp_path, env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin", "TQDM_DISABLE": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert ended.stdout.split() == ["steady"], ended.stderr
    after = files_of(tmp_path)
    assert {place for place in after if after[place] != before.get(place)} == NAMED

    told = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    told = told[told.index("- **a technique**") : told.index("- **a figure**")]
    folders = set(re.findall(r"`((?:sparsity|docs)/[\w/.]*)`", told))
    assert all(any(place.startswith(folder) for folder in folders) for place in NAMED)
    assert all(any(place.startswith(folder) for place in NAMED) for folder in folders)
