"""How much house there is, and through how many of its files one tracked frame goes.

    python benchmarks/house.py

Counts product files and their code lines (without docstrings, comments and blank lines), and for a warm frame of the
demo model under some profiles the product files that are entered, and how often a call enters another file than the
call before it. No clock is read.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from probes import build_predictor
from sparsity import accelerate
from sparsity.clips.made import make_clip

ROOT = Path(__file__).parent.parent
PACKAGES = ("probes", "sparsity", "figures")

WARM = 10
"""Frames before the one that is counted: the memory bank is full then."""


def product_files() -> list[Path]:
    """All modules of the product."""
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def code_lines(path: Path) -> int:
    """Lines of a module that hold code."""
    source = path.read_text(encoding="utf-8")
    said = set[int]()
    for node in ast.walk(ast.parse(source)):
        alone = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if alone and isinstance(node.value.value, str):
            said |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    quiet = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    lines = set[int]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (*quiet, tokenize.ENDMARKER):
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - said)


def entered(profile: str) -> list[str]:
    """Product files that calls of one tracked frame enter, in their order, each time they are another than before."""
    fast = accelerate(build_predictor("demo", device="cpu"), profile)
    clip = make_clip("smooth", 1, WARM + 2, (270, 480))
    files = {str(path): path.relative_to(ROOT).as_posix() for path in product_files()}
    found: list[str] = []

    def note(frame: FrameType, event: str, argument: Any) -> None:
        file = files.get(frame.f_code.co_filename)
        if event == "call" and file is not None and (not found or found[-1] != file):
            found.append(file)

    with torch.inference_mode():
        state = fast.init_state(clip.frames)
        fast.add_new_mask(state, 0, 1, clip.masks[0] == 1)
        frames = fast.propagate_in_video(state)
        for _ in range(WARM):
            next(frames)
        sys.setprofile(note)
        try:
            next(frames)
        finally:
            sys.setprofile(None)
    return found


def main() -> None:
    """Print all of it."""
    files = product_files()
    print(f"{len(files)} product files, {sum(map(code_lines, files)):,} lines of code")
    for profile in ("dense", "exact", "paper", "recommended"):
        found = entered(profile)
        print(f"{profile}: {len(set(found))} files, {len(found) - 1} changes of file")
        if "-v" in sys.argv:
            for file in sorted(set(found), key=found.count, reverse=True):
                print(f"  {found.count(file):4} {file}")


if __name__ == "__main__":
    main()
