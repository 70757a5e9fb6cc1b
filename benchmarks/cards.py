"""Hold the cards in ``results/`` against themselves, and write ``docs/results.md`` from them.

    efficient-sam2 card DATA --model sam2.1-large --out card
    cp card/card.json results/sam2.1-large-DAVIS.json
    python benchmarks/cards.py

A file that is no card, or whose means are not those of its clips, is refused.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from probes.errors import InputError
from probes.files import write_text
from sparsity.evaluation.card import SAID, Card, as_cells, load_card

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "results", ROOT / "docs" / "results.md"


def load_cards(folder: Path) -> dict[str, Card]:
    """Read all cards of a folder, by the name of their file.

    Raises
    ------
    InputError
        There is none, or one can't be used.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise InputError(f"{folder} holds no card; expected NAME.json; add one")
    return {file.stem: load_card(file) for file in files}


def page(cards: dict[str, Card]) -> str:
    """Return the page, a section a card; official weights come first."""
    order = {"official": 0, "given": 1, "demo": 2, "random": 3}
    lines = [
        "# Results",
        "",
        "What `efficient-sam2 card` found, on whose machine it says. `python benchmarks/cards.py` makes this page from the cards "
        "in `results/` and refuses one whose means are not those of its clips; [CONTRIBUTING](../CONTRIBUTING.md) says how to "
        "add yours. J&F in points of 100; loss is against stock sam2 on the same clips, with its 95 % interval over clips; "
        "ratios are against stock, interleaved in one process. Published figures are second hand.",
    ]
    for name, card in sorted(cards.items(), key=lambda item: (order[item[1].weights], item[0])):
        lines += ["", *section(name, card)]
    return "\n".join(lines)


def section(name: str, card: Card) -> list[str]:
    """Lines of one card."""
    stamp = card.environment
    cells = [as_cells(row) for row in card.rows]
    heads = [head for head in cells[0] if any(line[head] != "–" for line in cells)]
    objects = sum(len(clip.objects) for clip in card.rows[0].quality.clips.values())
    said = SAID[card.weights]
    where = stamp.gpu or f"{stamp.cpu}, {stamp.threads} threads"
    lines = [
        f"## {card.model.name} on {card.known or card.data.root}",
        "",
        f"**{said[0].upper()}{said[1:]}.** "
        f"{len(card.data.clips)} clips, {card.data.frames} frames, {objects} objects; {card.model.image_size} pixels, "
        f"{stamp.dtype}, {where}, torch {stamp.torch}, {card.made_by}, commit {stamp.commit}. "
        f"[All of it](../results/{name}.json).",
        "",
        "| " + " | ".join(heads) + " |",
        "|---|" + "---|" * (len(heads) - 1),
        *("| " + " | ".join(line[head] for head in heads) + " |" for line in cells),
    ]
    if card.observations is not None:
        lines += ["", observed(card)]
    return [*lines, "", *card.notes]


def observed(card: Card) -> str:
    """Say the paper's observations in a sentence each."""
    seen = card.observations
    assert seen is not None, "asked where there are some"
    said = [f"The first {seen.frames} frames of each clip, stock sam2."]
    if seen.lift:
        first, blocks = seen.lift[0], [row.mean for row in seen.lift[1:]]
        said.append(f"Attention on the object over chance: decoder {first.mean:.1f}")
        said[-1] += (
            f", encoder's global blocks {min(blocks):.1f} to {max(blocks):.1f}." if blocks else "."
        )
    if seen.top10:
        masses = [row.mean for row in seen.top10]
        said.append(
            f"The top 10 % of memory's keys hold {min(masses):.0%} to {max(masses):.0%} of the mass, by layer."
        )
    if seen.consistency:
        last = seen.consistency[-1]
        by_chance = "" if last.chance is None else f" ({last.chance:.2f} by chance)"
        said.append(f"Consistency (CS) at {last.name}: {last.mean:.2f}{by_chance}.")
    return " ".join(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args()
    try:
        cards = load_cards(options.results)
    except InputError as error:
        parser.error(str(error))
    write_text(options.out, page(cards))
    print(f"{options.out}: {len(cards)} cards")


if __name__ == "__main__":
    main()
