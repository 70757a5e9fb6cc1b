"""The view that the explorer opens on as one small picture: what a saved notebook shows where no kernel runs."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from figures.explorer.content import Content
from figures.paint import Picture, heated, jpeg
from figures.style import THEMES

WIDE, GAP, EDGE = 400, 8, 12
"""Pixels of a picture's width, between the two, and around them."""

TOP = 100.0
"""Multiple of the even share at which the scale ends, as where the explorer opens."""


def still(content: Content) -> bytes:
    """The opening view as a JPEG: the frame with its query, and beside it the map of what that attends to."""
    meta, start = content.meta, content.meta["start"]
    row = meta["rows"][f"{meta['frames'][start['t']]['index']}:{start['object']}"]
    site = next(one for one in meta["sites"] if one["name"] == start["site"])
    x, y = row["centre"] or (0.5, 0.5)
    query, shares, words, over = (_frame(meta, start["t"]), None, site["name"], start["t"])
    if site["part"] == "memory" and max(row["memory"]) >= 0:
        slot = max(k for k, frame in enumerate(row["memory"]) if frame >= 0)
        place = {frame["index"]: t for t, frame in enumerate(meta["frames"])}
        over = place.get(row["memory"][slot], over)
        held = sum(frame >= 0 for frame in row["memory"]) - 1 + max(1, len(row["prompts"]))
        shares = _shares(content, row["row"], x, y)[slot] * meta["cells"] ** 2 * held
        words = f"what the pixel attends to in memory frame {row['memory'][slot]}, {site['name']}"
    elif site["part"] == "encoder":
        shares = _shares(content, meta["frames"][start["t"]]["position"], x, y) * meta["cells"] ** 2
        words = f"what the pixel attends to, {site['name']}"
    beside = _frame(meta, over)
    if shares is not None:
        beside = heated(beside, shares, TOP)
        words += f"; peak {shares.max():.1f} x even share"
    left = f"frame {meta['frames'][start['t']]['index']}: the cross is the query"
    return _together(meta, _crossed(query, x, y), beside, left, words)


def _frame(meta: dict, t: int) -> Picture:
    """A frame of the explorer, made narrower."""
    packed = base64.b64decode(meta["frames"][t]["picture"].split(",", 1)[1])
    with Image.open(io.BytesIO(packed)) as picture:
        width, height = meta["size"]
        small = picture.convert("RGB").resize((WIDE, max(1, round(WIDE * height / width))))
    return np.asarray(small)


def _shares(content: Content, index: int, x: float, y: float) -> NDArray[np.float32]:
    """Attention of the stored query nearest to a place."""
    grid = content.meta["grid"]
    queries = np.array(content.meta["queries"])
    far = (queries % grid - int(x * grid)) ** 2 + (queries // grid - int(y * grid)) ** 2
    rows: NDArray[np.float32] = content.clip.attention_rows(content.meta["start"]["site"], index)
    return rows[int(far.argmin())]


def _crossed(picture: Picture, x: float, y: float) -> Picture:
    drawn = Image.fromarray(picture)
    pen = ImageDraw.Draw(drawn)
    at, over = x * drawn.width, y * drawn.height
    for shade, thick in (("black", 5), ("white", 2)):
        pen.line((at - 8, over, at + 8, over), shade, thick)
        pen.line((at, over - 8, at, over + 8), shade, thick)
    return np.asarray(drawn)


def _together(meta: dict, first: Picture, second: Picture, left: str, right: str) -> bytes:
    """Both pictures with title, words and caption."""
    look = THEMES[meta["theme"]]
    width = 2 * (WIDE + EDGE) + GAP
    large, small = ImageFont.load_default(15), ImageFont.load_default(11)

    def broken(words: str, room: int) -> str:
        lines = [""]
        for word in words.split():
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and small.getlength(longer) > room:
                lines.append(word)
            else:
                lines[-1] = longer
        return "\n".join(lines)

    hint = "Run this cell to click on other pixels, frames, heads and sites. "
    texts = (
        broken(left, WIDE),
        broken(right, WIDE),
        broken(hint + meta["caption"], width - 2 * EDGE),
    )
    high = [15 * (1 + text.count("\n")) for text in texts]
    top = EDGE + 26
    under = top + len(first) + 4
    page = Image.new("RGB", (width, under + max(high[:2]) + 8 + high[2] + EDGE), look.paper)
    pen = ImageDraw.Draw(page)
    pen.text((EDGE, EDGE), meta["title"], look.ink, large)
    for at, picture, text in ((EDGE, first, texts[0]), (EDGE + WIDE + GAP, second, texts[1])):
        page.paste(Image.fromarray(picture), (at, top))
        pen.multiline_text((at, under), text, look.faint, small, spacing=4)
    pen.multiline_text((EDGE, under + max(high[:2]) + 8), texts[2], look.faint, small, spacing=4)
    return jpeg(np.asarray(page), 80)
